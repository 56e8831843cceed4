"""Commands that read finished runs: report, show, export, check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.commands.asked import options_by_row
from bench.commands.shell import Folder, blend_option, folders, form_option

if TYPE_CHECKING:
    from bench.errors import UserError
    from bench.places import Places
    from bench.results import Run


def _note(text: str) -> None:
    click.echo(f"note: {text}", err=True)


def _named_or_finished(folder: Path | None, runs: Path) -> list[Run]:
    """The run in the folder that is named, else all that are finished."""
    from bench.results import finished_runs, sound_run

    return [sound_run(folder)] if folder else finished_runs(runs, say=_note)


def _newest(folder: Path | None, runs: Path) -> Run:
    """The run in the folder that is named, else the newest that is finished."""
    found = _named_or_finished(folder, runs)
    if not found:
        raise _no_run(runs)
    return found[-1]


def _no_run(runs: Path, kind: str = "", hint: str | None = None) -> UserError:
    from bench.errors import UserError

    return UserError(f"no finished run{kind} in {runs}", hint=hint or "python cli.py run --method all --dataset demo")


@click.command()
@form_option
@click.option("--dataset", "-d", help="Only this data set.")
@click.option("--seal", help="Only the shortlist whose seal begins so.")
@blend_option
@click.option(
    "--cascade",
    multiple=True,
    metavar="METHOD[@FEATURES],METHOD[@FEATURES]:FIRST[,…]",
    help="Also the row of this cascade, from stored scores; its time is implied. May be given several times.",
)
@click.option(
    "--gate",
    multiple=True,
    metavar="JUDGE:MOST,RERANKER",
    help="Also RERANKER where JUDGE gives the first candidate at most MOST, from stored scores; repeatable.",
)
@click.option("--columns", metavar="NAME,…", help="Only these columns, in this order; mAP is that of all difficulties.")
@click.option(
    "--within",
    metavar="COST=NUMBER,…",
    help="Also which row is best of those that cost no more: ms (of a query, median), p95, total, kib (an image), mib.",
)
@click.option(
    "--add",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also the run in this bundle of `export --format bundle`; repeatable.",
)
@click.option("--cards", is_flag=True, help="In the terminal, also papers, licences and training data of the methods.")
@click.option("--explain", is_flag=True, help="In the terminal, also what each column is.")
@click.option(
    "--claims",
    is_flag=False,
    flag_value="",
    metavar="[FILE]",
    help="Also published numbers beside ours, of results/claims.toml or of a file like it.",
)
@click.option(
    "--sensitivity", is_flag=True, help="Also whether the order of methods depends on policy, k, blend, ties or AP."
)
@click.option("--plots", type=Folder(), help="Write pictures into this folder.")
@click.option(
    "--html",
    "html",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write all tables, with charts and every query's images, as one page that needs nothing else.",
)
@click.option(
    "--worst",
    metavar="METHOD[,REFERENCE]",
    help="With --plots: also the images of the queries where METHOD loses most to REFERENCE [default: first stage].",
)
@folders
def report(
    form: str,
    dataset: str | None,
    seal: str | None,
    blend: str,
    cascade: tuple[str, ...],
    gate: tuple[str, ...],
    columns: str | None,
    within: str | None,
    add: tuple[Path, ...],
    cards: bool,
    explain: bool,
    claims: str | None,
    sensitivity: bool,
    plots: Path | None,
    html: Path | None,
    worst: str | None,
    places: Places,
) -> None:
    """Tables of all finished runs: one per seal and machine, never two seals in one."""
    from bench.blend import Blend
    from bench.bundle import opened
    from bench.errors import UserError
    from bench.report import claims as published
    from bench.report.formats import FORMATS, to_csv, with_columns
    from bench.report.groups import Scope, grouped, require_replayed, sealed
    from bench.report.limits import Limits
    from bench.report.terminal import print_claims, print_sensitivity, print_table
    from bench.results import finished_runs

    if worst is not None and plots is None:
        raise UserError("--worst without a folder for its pictures", hint=f"--worst {worst} --plots DIR")
    if sensitivity and form not in ("terminal", "md"):
        raise UserError(f"--sensitivity with --format {form}", hint="expected terminal or md")
    if claims is not None and form not in ("terminal", *published.FORMATS):
        raise UserError(f"--claims with --format {form}", hint=f"expected terminal, {', '.join(published.FORMATS)}")
    how, scope = Blend.parse(blend), Scope(dataset, seal)
    limits = None if within is None else Limits.parse(within)
    said = None if claims is None else published.read_claims(Path(claims) if claims else published.SHIPPED)
    added = click.get_current_context().with_resource(opened(add))
    runs = [*finished_runs(places.runs, scope.has, _note), *filter(scope.has, added)]
    runs.sort(key=lambda run: run.record.finished)
    if not runs and said is None:
        others = sealed([*finished_runs(places.runs), *added])
        raise _no_run(places.runs, " of that kind" if scope.narrows else "", others)
    groups = grouped(runs, cascade, gate, how, limits)
    tables = [group.table for group in groups]
    if columns is not None and tables:
        tables = with_columns(tables, columns.split(","))  # of the tables shown; pages and plots have all
    for place, group in enumerate(groups):
        if form == "terminal":
            if place:
                click.echo()
            print_table(tables[place], cards, explain)
        elif form != "csv":  # whose tables are one, for what reads it
            click.echo(FORMATS[form](tables[place]))
        if sensitivity:
            from bench.report import sensitivity as protocol

            varied = protocol.sensitivity(group.runs, group.table, how)
            print_sensitivity(varied) if form == "terminal" else click.echo(protocol.to_markdown(varied))
        if plots is not None:
            from bench.report.plots import quality_against_time

            click.echo(f"plot: {quality_against_time(group.table, plots, group.table.stem)}", err=True)
    if form == "csv" and groups:
        click.echo(to_csv(*tables), nl=said is not None)
    if html is not None:
        from bench.report.page import write_page

        click.echo(f"page: {write_page(html, [(group.runs, group.table) for group in groups], how)}", err=True)
    if worst is not None and plots is not None:
        from bench.report.pictures import sheets

        for line in sheets(groups, worst, plots, added, how):
            click.echo(line, err=True)
    require_replayed(groups, cascade, gate)
    if said is not None:
        listing = published.compared([claim for claim in said if scope.has_dataset(claim.dataset)], runs, how)
        print_claims(listing) if form == "terminal" else click.echo(published.FORMATS[form](listing))


@click.command()
@click.option("--run", "folder", type=Folder(), help="[default: the newest]")
@click.option(
    "--format",
    "form",
    type=click.Choice(["trec", "hloc-pairs", "vpr-preds", "parquet", "csv", "bundle"]),
    default="trec",
    show_default=True,
)
@click.option("--out", type=Folder(), help="Folder for the files.")
@click.option(
    "--to",
    "tracker",
    type=click.Choice(["wandb", "trackio", "mlflow"]),
    help="Send it to this run tracker instead: a run there for each row of the table.",
)
@click.option("--project", help="With --to: the project or experiment there.  [default: rerankbench]")
@blend_option
@folders
def export(
    folder: Path | None,
    form: str,
    out: Path | None,
    tracker: str | None,
    project: str | None,
    blend: str,
    places: Places,
) -> None:
    """Write a finished run for other programs: TREC runs and qrels, hloc pairs, VPR predictions, tables.

    --to sends each row of its table to a run tracker: identity, numbers, and AP by query.

    bundle is the run in one file, without images and features; `report --add` shows it on another machine.

    Blanks and % in names become %XX in TREC files. Their scores are places, so that every scorer keeps our order; a
    scorer's AP is rectangular and sees the candidates alone, so it is not our mAP.
    """
    from bench.blend import Blend
    from bench.errors import UserError
    from bench.exports import export as write

    if (out is None) == (tracker is None):
        found = "neither --out nor --to" if out is None else "both --out and --to"
        raise UserError(f"export: found {found}", hint="--out FOLDER writes files, --to TRACKER sends rows")
    if project is not None and tracker is None:
        raise UserError(f"--project {project} without a tracker", hint=f"--to wandb --project {project}")
    how = Blend.parse(blend)
    run = _newest(folder, places.runs)
    if tracker is not None:
        from bench.trackers import PROJECT, send

        for name in send(run, tracker, project or PROJECT, how):
            click.echo(f"sent to {tracker}: {name}")
    elif out is not None:
        written = write(run, form, out, how)
        for path in dict.fromkeys(path if path.parent == out else path.parent for path in written):
            click.echo(f"written: {path}")


@click.command()
@click.argument("query", required=False)
@click.argument("candidate", required=False)
@click.option("--method", "-m", required=True, metavar="METHOD[@FEATURES]", help="A row of a finished run.")
@click.option(
    "--worst",
    "most",
    type=click.IntRange(1),
    metavar="N",
    help="Instead of QUERY and CANDIDATE: the N queries that lose most to the first stage.",
)
@click.option(
    "--hide",
    multiple=True,
    metavar="query|candidate:X,Y,W,H",
    help="Without the local descriptors in a box, in pixels or in % of the image; repeatable.",
)
@click.option("--keep", multiple=True, metavar="query|candidate:X,Y,W,H", help="Only the part of the image in a box.")
@click.option(
    "--scale",
    multiple=True,
    metavar="query|candidate:FACTOR[,…]",
    help="The image made smaller or larger; of several factors, the highest score counts.",
)
@click.option(
    "--blend",
    default="replace",
    help="With --worst: what add:WEIGHT or sigmoid:LAMBDA,GAMMA makes of it.",
)
@click.option("-o", "options", multiple=True, metavar="METHOD.OPTION=VALUE", help="Instead of the run's; repeatable.")
@click.option("--run", "folder", type=Folder(), help="[default: the newest that has the row and both images]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A .png. [default: show-QUERY-CANDIDATE-METHOD.png here]",
)
@folders
def show(
    query: str | None,
    candidate: str | None,
    method: str,
    most: int | None,
    hide: tuple[str, ...],
    keep: tuple[str, ...],
    scale: tuple[str, ...],
    blend: str,
    options: tuple[str, ...],
    folder: Path | None,
    device: str,
    out: Path | None,
    places: Places,
) -> None:
    """Draw a query beside a candidate: which local descriptors a method matches, the score, the places, the label.

    The matches are those that the score counts. Methods without any show what each descriptor weighs for them, such as
    rrt its attention, or the two images and the score alone, such as aqe.

    --worst draws failures instead: beside each query the wrong candidate that came first, and a right one that fell.

    With --hide, --keep and --scale it says the score and the place before and after that. With --worst it changes the
    images of all queries, and says what that makes of their mean.
    """
    from bench.blend import Blend
    from bench.changes import Changes
    from bench.errors import UserError
    from bench.pair import pair
    from bench.report.matches import draw, file_name, places_of, said

    changes, given = Changes.parse(hide, keep, scale), options_by_row(options, (method,))
    if (most is None) == (query is None) or (query is None) != (candidate is None):
        raise UserError(
            f"show: found {'QUERY' if query else 'no QUERY'}, {'CANDIDATE' if candidate else 'no CANDIDATE'} and "
            f"{'no --worst' if most is None else '--worst'}",
            hint="expected QUERY CANDIDATE, or --worst N",
        )
    how = Blend.parse(blend)
    if most is None and how != Blend():
        raise UserError(f"--blend {blend} of one pair", hint="a blend orders whole lists: --worst N")
    runs = _named_or_finished(folder, places.runs)
    if query is None or candidate is None:
        from bench.report.failures import show_worst
        from bench.report.terminal import progress_bars

        with progress_bars() as progress:
            lines = show_worst(runs, method, most or 1, given, places, changes, device, out, progress, how)
        click.echo("\n".join(lines))
        return
    found = pair(runs, query, candidate, method, given, places, device, changes)
    path = draw(found, out or Path(file_name(found, method)))
    click.echo(f"{found.row}: {said(found)}; {places_of(found)}; {found.kind}")
    for note in found.notes:
        _note(note)
    click.echo(f"written: {path}")


@click.command()
@click.option(
    "--baseline",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to compare a run with. For example results/baseline/demo.json.",
)
@click.option("--run", "folder", type=Folder(), help="Of --baseline. [default: the newest that fits]")
@click.option("--write", is_flag=True, help="Make the run the new baseline instead of checking it.")
@click.option("--base", multiple=True, type=Folder(), help="Instead of a baseline: run of the version before.")
@click.option(
    "--head",
    multiple=True,
    type=Folder(),
    help="Run of the version after, measured in turn with --base on one machine; both repeatable, in order.",
)
@click.option("--reference", metavar="ROW", help="Row that times are relative to. [default: one whose code is equal]")
@click.option("--tolerance", type=float, metavar="POINTS", help="Loss that is tolerated. [default: baseline's, or 0.3]")
@click.option("--ratio-bound", type=float, metavar="FACTOR", help="Of times. [default: baseline's; of two runs 1.5]")
@click.option("--strict", is_flag=True, help="Exit 1 also where something cannot be told.")
@click.option("--summary", type=click.Path(path_type=Path, dir_okay=False), help="Markdown file to write.")
@click.option("--junit", type=click.Path(path_type=Path, dir_okay=False), help="JUnit XML file to write.")
@folders
def check(
    baseline: Path | None,
    folder: Path | None,
    write: bool,
    base: tuple[Path, ...],
    head: tuple[Path, ...],
    reference: str | None,
    tolerance: float | None,
    ratio_bound: float | None,
    strict: bool,
    summary: Path | None,
    junit: Path | None,
    places: Places,
) -> None:
    """Compare a run with a baseline, or with a run of another version; exit 1 and say what changed on a regression."""
    from bench.errors import UserError
    from bench.report import check as checks
    from bench.results import finished_runs, sound_run

    if (baseline is None) == (not (base or head)) or ((base or head) and (write or folder)):
        raise UserError(
            "check: expected --baseline FILE, or --base RUN and --head RUN",
            hint="check --baseline results/baseline/demo.json; --run and --write belong to --baseline",
        )
    if baseline is None:
        runs = [checks.named_run(each) for each in base], [checks.named_run(each) for each in head]
        checked = checks.between(*runs, reference, tolerance, ratio_bound)
    elif write:
        run = _newest(folder, places.runs)
        for note in checks.keep(run, baseline, reference):
            _note(note)
        click.echo(f"baseline {baseline} written from {run.folder}")
        return
    else:
        content = checks.read_baseline(baseline)
        run = sound_run(folder) if folder else checks.matching_run(finished_runs(places.runs, say=_note), content)
        checked = checks.against_baseline(run, content, str(baseline), reference, tolerance, ratio_bound)
    for finding in checked.findings:
        click.echo(finding.line)
    for note in checked.notes:
        _note(note)
    click.echo(f"{checked.now} against {checked.before}: {checked.counted}")
    checks.write_files(checked, summary, junit)
    if not checked.passes(strict):
        raise SystemExit(1)
