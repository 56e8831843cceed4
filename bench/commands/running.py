"""Commands that measure: run, sweep, first-stages."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.commands.asked import asked, set_up
from bench.commands.shell import Folder, folders, form_option

if TYPE_CHECKING:
    from bench.places import Places
    from bench.setup import Selection, Setup


@click.command()
@asked
@folders
def run(setup: Setup, selection: Selection, force: bool, places: Places) -> None:
    """Run rerankers on one sealed shortlist and print the comparison.

    Killed or interrupted, the same command goes on where it stopped. A row that fails is said below the table, and the
    exit status is 1.
    """
    from bench.report.tables import compare
    from bench.report.terminal import print_table, progress_bars
    from bench.run import execute

    with progress_bars() as progress:
        (outcome,) = execute(setup, [selection], places, progress, force=force)
    for note in outcome.notes:
        click.echo(f"note: {note}", err=True)
    print_table(compare([outcome.run]))
    click.echo(f"\nrun: {outcome.run.folder}")
    _require_all(outcome.run.record.failed)


def _require_all(failed: Collection[str]) -> None:
    """UserError where rows failed: what is printed lacks them."""
    from bench.errors import UserError

    if failed:
        raise UserError(f"failed: {', '.join(failed)}; the reasons are above", hint="the same command tries them again")


@click.command()
@asked
@click.option(
    "--descriptors",
    metavar="N,N,…",
    help="Best-scored local descriptors an image that a method may use. [default: 25,50,100,200,500]",
)
@click.option(
    "--vary",
    multiple=True,
    metavar="METHOD[@FEATURES].OPTION=V,V,…",
    help="Instead of descriptors: these values of an option; several times for all combinations.",
)
@click.option(
    "--out",
    required=True,
    type=Folder(),
    help="Folder for sweep.csv, sweep.md and, for descriptors, sweep.png.",
)
@folders
def sweep(
    setup: Setup,
    selection: Selection,
    force: bool,
    descriptors: str | None,
    vary: tuple[str, ...],
    out: Path,
    places: Places,
) -> None:
    """Run rerankers at several descriptor budgets on one sealed shortlist: quality against bytes and time.

    With --vary, at several values of any option; `--vary ransac.seed=0,1,2` also says the spread over seeds.

    Every budget is a run of its own (in --runs, so `report` knows it too) on the same candidates. Killed or
    interrupted, the same command goes on where it stopped; another budget later runs that one alone (its times then do
    not compare with the others').

    lightglue takes most of the time, for each of queries x top-k pairs: `make demo` says what a pair costs. A smaller
    --top-k makes it shorter.
    """
    from bench import sweep as sweeps
    from bench.report.terminal import print_table, progress_bars

    if vary and descriptors is not None:
        raise click.UsageError("give --descriptors or --vary, not both")
    budgets = sweeps.budgets_of(descriptors or "25,50,100,200,500")
    varied = [sweeps.Varied.parse(text) for text in vary]
    with progress_bars() as progress:
        if varied:
            found = sweeps.vary(setup, selection, varied, places, progress, force=force)
        else:
            found = sweeps.sweep(setup, selection, budgets, places, progress, force=force)
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    print_table(found.table)
    click.echo()
    for path in sweeps.write(found, out):
        click.echo(f"written: {path}")
    _require_all(found.failed)


@click.command("first-stages")
@set_up
@click.option(
    "--first-stage",
    "stages",
    multiple=True,
    metavar="NAME",
    help="GLOBAL, asmk[:OPTION=VALUE…]@LOCAL, sum:A*WEIGHT,B or list:FILE; repeatable. [default: some that are ready]",
)
@form_option
@folders
def first_stages(setup: Setup, stages: tuple[str, ...], form: str, places: Places) -> None:
    """Compare where candidates come from: what is in the lists, the best that any reranker could do, and costs.

    asmk takes the options of the method `asmk`; asmk@LOCAL itself keeps bits, and looks five words up for each
    descriptor of a query. A sum adds similarities in standard deviations above the mean of the gallery.
    """
    from bench.first_stage_table import first_stages as compare
    from bench.report.formats import FORMATS
    from bench.report.terminal import print_table, progress_bars

    with progress_bars() as progress:
        found = compare(setup, stages, places, progress)
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    if form == "terminal":
        print_table(found.table, explain=True)
    else:
        click.echo(FORMATS[form](found.table))
