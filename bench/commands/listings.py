"""Commands that say what is here: methods, doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bench.commands.shell import folders

if TYPE_CHECKING:
    from bench.places import Places


@click.command()
@click.option("--features", "-f", default="xfeat", show_default=True, help="Say what can run on this feature set.")
def methods(features: str) -> None:
    """List the rerankers: what they read, their options and licences, and whether they can run here."""
    from bench.report import listings
    from bench.report.terminal import print_listing

    print_listing((*listings.METHODS[:-1], f"here, with --features {features}"), listings.methods(features))
    click.echo("* control: a floor, a ceiling or a sentinel")


@click.command()
@folders
def doctor(places: Places) -> None:
    """Examine environment, devices, threads, packages and folders; exit 1 if something must be mended."""
    from bench.doctor import examine

    answers = examine(places)
    for answer in answers:
        click.echo(
            f"{'ok  ' if answer.ok else 'FAIL'}  {answer.what}: {answer.found}"
            + ("" if answer.ok else f"  -> {answer.todo}")
        )
    if not all(answer.ok for answer in answers):
        raise SystemExit(1)
