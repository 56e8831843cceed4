"""The commands: argument handling and messages, no logic. Heavy imports happen inside the command that needs them."""

from __future__ import annotations

import codecs
import errno
import io
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench import __version__

if TYPE_CHECKING:
    from bench.datasets.official.sources import Source
    from bench.places import Places
    from bench.report.claims import Claim
    from bench.results import Run
    from bench.rows import Wanted
    from bench.setup import Selection, Setup


SPARE = {"·": "|", "–": "-", "—": "-", "…": ".", "×": "x", "±": "~", "−": "-", "≥": ">", "≤": "<"}  # of one column each


def _written_otherwise(error: UnicodeError) -> tuple[str, int]:
    """An error handler of codecs: what a terminal cannot show is shown as something like it, and stray bytes as \\x…"""
    from bench.names import shown

    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(SPARE.get(c, c if c.isascii() else "?") for c in shown(letters)), error.end


class _Commands(click.Group):
    """Turns the project's own errors into click's: a message and a hint, exit status 1, no traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        codecs.register_error("written otherwise", _written_otherwise)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="written otherwise")
        try:
            return super().main(*args, **kwargs)
        except OSError as error:  # of a usage or help text that could not be printed
            click.echo(f"Error: {_of_system(error)}", err=True)
            raise SystemExit(1) from error
        finally:
            _close_output()

    def invoke(self, ctx: click.Context) -> Any:
        from bench.errors import UserError

        try:
            return super().invoke(ctx)
        except UserError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            raise click.ClickException("interrupted; run the same command again to go on where it stopped") from None
        except OSError as error:
            if error.errno is None or error.errno == errno.EPIPE:  # a reader that has read enough; click ends quietly
                raise
            raise click.ClickException(_of_system(error)) from error


def _of_system(error: OSError) -> str:
    """What the system refused, for the user: of a file, or of the output, whose errors name no file."""
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename is not None else f"cannot write to the output: {reason}"


def _close_output() -> None:
    """Print what is left; what cannot be printed is thrown away, since Python would try again and complain at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Folder(click.Path):
    """A folder to read or write: not a file, not below one, and with a name that can be written down."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, file_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        if (wrong := _wrong(os.fspath(value))) is not None:
            self.fail(wrong, param, ctx)
        return path


def _wrong(folder: str) -> str | None:
    """Why no folder can be of that name, or None."""
    from bench.names import encodable, shown

    if not folder:
        return "the name of the folder is empty"
    if not encodable(folder):
        return f"{shown(folder)}: the name is not UTF-8; rename the folder, or link to it under another name"
    above = next((path for path in (Path(folder), *Path(folder).parents) if os.path.lexists(path)), None)
    if above is not None and not above.is_dir():
        return f"{folder}: {above} is a file, a folder was expected"
    return None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="rerankbench")
def main() -> None:
    """Compare image-retrieval rerankers on identical, sealed shortlists.

    \b
    rerankbench run --method all --dataset demo      every reranker on the embedded data set
    rerankbench report                               the tables again, in other formats, with plots
    """


def _folders(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say where things are, handed on as `places`."""

    @click.option("--cache-dir", type=_Folder(), help="Generated images and features. [RERANKBENCH_CACHE]")
    @click.option("--data-root", type=_Folder(), help="Official data sets. [RERANKBENCH_DATA]")
    @click.option("--runs", type=_Folder(), help="Results. [RERANKBENCH_RUNS]")
    @wraps(command)
    def wrapped(*args: Any, cache_dir: Path | None, data_root: Path | None, runs: Path | None, **kwargs: Any) -> Any:
        from bench.errors import UserError
        from bench.places import Places

        places = Places.of(cache_dir, data_root, runs)
        for what, place in vars(places).items():  # those of the environment, too
            if (wrong := _wrong(os.fspath(place))) is not None:
                raise UserError(wrong, hint=f"RERANKBENCH_{what.upper()} names a folder")
        return command(*args, places=places, **kwargs)

    return wrapped


def _options(values: tuple[str, ...], rows: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """-o method.option=value, several times, by method, or by the one of `rows` that it names."""
    from bench.errors import UserError

    found: dict[str, dict[str, str]] = {}
    for text in values:
        row = next((row for row in rows if "@" in row and text.startswith(f"{row}.")), None)
        target, equals, value = text.removeprefix(row or "").partition("=")
        method, dot, option = target.partition(".")
        if not (equals and dot and (method or row) and option):
            raise UserError(f"-o {text}: expected METHOD.OPTION=VALUE", hint="for example -o rrt.descriptors=100")
        found.setdefault(row or method, {})[option] = value
    return found


def _set_threads(threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def _set_up(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say on what, handed on as `setup`."""

    @click.option("--dataset", "-d", required=True, metavar="NAME[:PATH]", help="Data set. See `datasets`.")
    @click.option(
        "--features",
        "-f",
        default="xfeat",
        show_default=True,
        help="Feature set of the methods that name none and can read it. See `features`.",
    )
    @click.option("--top-k", "-k", type=click.IntRange(1), help="Candidates per query. [default: 100, or all if fewer]")
    @click.option(
        "--policy",
        type=click.Choice(["blind", "paper"]),
        default="blind",
        show_default=True,
        help="paper: ignored images are moved behind before the cut, a list per difficulty; uses ground truth.",
    )
    @click.option(
        "--search",
        type=click.Choice(["blocks", "faiss"]),
        default="blocks",
        show_default=True,
        help="How the first stage searches; both find the same. faiss searches global descriptors alone, holds them in "
        "memory, and uses GPUs.",
    )
    @click.option("--whiten", metavar="DATASET", help="PCA-whiten the first stage, learned on another data set.")
    @click.option(
        "--max-side", type=click.IntRange(32), default=640, show_default=True, help="Longer image side, pixels."
    )
    @click.option(
        "--keep-descriptors",
        type=click.IntRange(1),
        default=1000,
        show_default=True,
        help="Local descriptors stored per image.",
    )
    @click.option(
        "--descriptor-precision",
        type=click.Choice(["float16", "int8", "binary"]),
        default="float16",
        show_default=True,
        help="How local descriptors are stored: in two bytes, a byte or a bit a value.",
    )
    @click.option(
        "--max-megapixels",
        type=click.IntRange(1),
        default=300,
        show_default=True,
        help="Images of more are not read. Large JPEGs are decoded at a reduced size.",
    )
    @click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
    @click.option("--threads", type=click.IntRange(1), help="CPU threads of torch. [default: torch's own]")
    @click.option(
        "--executor",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Where images are extracted and queries scored: this machine, or a Ray cluster that sees the same files.",
    )
    @click.option(
        "--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes that share the work."
    )
    @click.option("--ray-address", metavar="ADDRESS", help="Of a running cluster. [default: one on this machine]")
    @click.option("--accept-licence", multiple=True, metavar="NAME", help="Use weights under this restricted licence.")
    @click.option("--trust-code", multiple=True, metavar="NAME", help="Let an extractor run the code of this place.")
    @click.option(
        "--skip-unreadable", is_flag=True, help="Leave out queries whose images cannot be read; the table says so."
    )
    @wraps(command)
    def wrapped(
        *args: Any,
        dataset: str,
        features: str,
        top_k: int | None,
        policy: Any,
        search: str,
        whiten: str | None,
        max_side: int,
        keep_descriptors: int,
        descriptor_precision: str,
        max_megapixels: int,
        device: str,
        threads: int | None,
        executor: str,
        workers: int,
        ray_address: str | None,
        accept_licence: tuple[str, ...],
        trust_code: tuple[str, ...],
        skip_unreadable: bool,
        **kwargs: Any,
    ) -> Any:
        from bench.executor import executor as executor_of
        from bench.features.extract import ExtractOptions
        from bench.setup import Setup

        _set_threads(threads)
        setup = Setup(
            dataset=dataset,
            features=features,
            top_k=top_k,
            policy=policy,
            extract=ExtractOptions(max_side, keep_descriptors, descriptor_precision, max_megapixels),
            whiten=whiten,
            device=device,
            accept_licence=frozenset(accept_licence),
            trust_code=frozenset(trust_code),
            search=search,
            executor=executor_of(executor, workers, threads, ray_address, device),
            skip_unreadable=skip_unreadable,
        )
        return command(*args, setup=setup, **kwargs)

    return wrapped


def _asked(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what to run on what, handed on as `setup`, `selection` and `force`."""

    @click.option(
        "--method",
        "-m",
        required=True,
        metavar="METHOD[@FEATURES],…",
        help="Rerankers, separated by commas, or all, on features of their own where they name some. See `methods`.",
    )
    @click.option(
        "--first-stage",
        metavar="NAME",
        help="Where candidates come from: GLOBAL, asmk@LOCAL, sum:A*WEIGHT,B or list:FILE. [default: the global "
        "descriptors that --features names, else the one that `first-stages` marks]",
    )
    @click.option(
        "--shortlist",
        type=click.Path(path_type=Path),
        help="Candidates from a file instead of our own first stage: a TREC run, hloc's pairs, names or indices in an "
        ".npz, indices in an .npy, .safetensors, .pt or nn_inds .pkl, or a folder of VPR predictions.",
    )
    @click.option(
        "--shortlist-order",
        type=click.Choice(["similarities", "distances", "ranks"]),
        help="What orders those lists: numbers, higher or lower first, or ranks alone. [default: they must agree]",
    )
    @click.option(
        "-o",
        "options",
        multiple=True,
        metavar="METHOD[@FEATURES].OPTION=VALUE",
        help="Option of a method, or of its row on those features; repeatable.",
    )
    @click.option("--force", is_flag=True, help="Measure again even if this very run is finished.")
    @_set_up
    @wraps(command)
    def wrapped(
        *args: Any,
        setup: Setup,
        method: str,
        first_stage: str | None,
        shortlist: Path | None,
        shortlist_order: Any,
        options: tuple[str, ...],
        force: bool,
        **kwargs: Any,
    ) -> Any:
        from dataclasses import replace

        from bench.setup import Selection

        rows = tuple(m.strip() for m in method.split(",") if m.strip())
        selection = Selection(rows, _options(options, rows))
        setup = replace(setup, first_stage=first_stage, shortlist=shortlist, shortlist_order=shortlist_order)
        return command(*args, setup=setup, selection=selection, force=force, **kwargs)

    return wrapped


_format = click.option(
    "--format",
    "form",
    type=click.Choice(["terminal", "md", "csv", "latex", "json"]),
    default="terminal",
    show_default=True,
)


@main.command()
@_asked
@_folders
def run(setup: Setup, selection: Selection, force: bool, places: Places) -> None:
    """Run rerankers on one sealed shortlist and print the comparison.

    Killed or interrupted, the same command goes on where it stopped.
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


@main.command()
@_asked
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
    type=_Folder(),
    help="Folder for sweep.csv, sweep.md and, for descriptors, sweep.png.",
)
@_folders
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

    lightglue takes most of the time: on two CPU cores 28 ms a pair at 200 descriptors and three to four times that at
    500, for each of queries x top-k pairs. A smaller --top-k makes it shorter.
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


@main.command("first-stages")
@_set_up
@click.option(
    "--first-stage",
    "stages",
    multiple=True,
    metavar="NAME",
    help="GLOBAL, asmk[:OPTION=VALUE…]@LOCAL, sum:A*WEIGHT,B or list:FILE; repeatable. [default: some that are ready]",
)
@_format
@_folders
def first_stages(setup: Setup, stages: tuple[str, ...], form: str, places: Places) -> None:
    """Compare where candidates come from: what is in the lists, the best that any reranker could do, and costs.

    asmk takes the options of the method `asmk`; asmk@LOCAL itself keeps bits, and looks five words up for each
    descriptor of a query. A sum adds similarities in standard deviations above the mean of the gallery.
    """
    from bench.first_stage_table import first_stages as compare
    from bench.report.tables import FORMATS
    from bench.report.terminal import print_table, progress_bars

    with progress_bars() as progress:
        found = compare(setup, stages, places, progress)
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    if form == "terminal":
        print_table(found.table, explain=True)
    else:
        click.echo(FORMATS[form](found.table))


_blend = click.option(
    "--blend",
    default="replace",
    show_default=True,
    help="replace, add:WEIGHT or sigmoid:LAMBDA,GAMMA; replayed from stored scores.",
)


@main.command()
@_format
@click.option("--dataset", "-d", help="Only this data set.")
@click.option("--seal", help="Only the shortlist whose seal begins so.")
@_blend
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
@click.option("--plots", type=_Folder(), help="Write pictures into this folder.")
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
@_folders
def report(
    form: str,
    dataset: str | None,
    seal: str | None,
    blend: str,
    cascade: tuple[str, ...],
    gate: tuple[str, ...],
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
    from bench import gate as gates
    from bench.blend import Blend
    from bench.bundle import opened
    from bench.cascade import replay
    from bench.errors import UserError
    from bench.evaluation import FIRST_STAGE
    from bench.places import slug
    from bench.report.tables import FORMATS, compare, table_groups
    from bench.report.terminal import print_listing, print_table

    if worst is not None and plots is None:
        raise UserError("--worst without a folder for its pictures", hint=f"--worst {worst} --plots DIR")
    if sensitivity and form not in ("terminal", "md"):
        raise UserError(f"--sensitivity with --format {form}", hint="expected terminal or md")
    published = None if claims is None else _published(claims, dataset, form)

    def wanted(run: Run) -> bool:
        named = dataset is None or _is_named(run.record.identity.shortlist.dataset, dataset)
        return named and (seal is None or run.seal.startswith(seal))

    added = click.get_current_context().with_resource(opened(add))
    runs = [*_finished(places.runs, wanted), *filter(wanted, added)]
    runs.sort(key=lambda run: run.record.finished)
    if not runs and published is None:
        raise UserError(
            f"no finished run{' of that kind' if dataset or seal else ''} in {places.runs}",
            hint="python cli.py run --method all --dataset demo",
        )
    how = Blend.parse(blend)
    method, _, reference = (worst or "").partition(",")
    reference, found = reference or FIRST_STAGE, False
    replayed = opened_any = False
    sections = []
    for group in table_groups(runs):
        replays = [again for texts in cascade if (again := replay(group, texts.split(","))) is not None]
        gated = [again for text in gate if (again := gates.replay(group, text)) is not None]
        replayed, opened_any = replayed or bool(replays), opened_any or bool(gated)
        replays += gated
        table = compare([*group, *replays], how)
        sections.append(([*group, *replays], table))
        if form == "terminal":
            print_table(table, cards, explain)
        else:
            click.echo(FORMATS[form](table))
        if sensitivity:
            from bench.report import sensitivity as protocol
            from bench.report.terminal import print_sensitivity

            varied = protocol.sensitivity([*group, *replays], table, how)
            print_sensitivity(varied) if form == "terminal" else click.echo(protocol.to_markdown(varied))
        if plots is not None:
            from bench.report.plots import quality_against_time

            name = f"{slug(str(table.about['dataset']))}-{str(table.about['seal'])[:8]}"
            click.echo(f"plot: {quality_against_time(table, plots, name)}", err=True)
            if worst is not None:
                from bench.report.pictures import chosen_run, worst_queries

                # the images of a run from elsewhere are elsewhere
                chosen = chosen_run([run for run in group if run not in added], method, reference)
                if chosen is not None:
                    found = True
                    sheet = worst_queries(chosen, method, reference, plots, f"{name}-worst-{slug(method)}", how)
                    click.echo(f"plot: {sheet or f'none: {method} loses on no query'}", err=True)
    if html is not None:
        from bench.report.page import write_page

        click.echo(f"page: {write_page(html, sections, how)}", err=True)
    if cascade and not replayed:
        raise UserError(
            f"--cascade {' --cascade '.join(cascade)}: no finished run above has all of its methods",
            hint="stages are METHOD and METHOD:FIRST, for example --cascade rrt,lightglue:20",
        )
    if gate and not opened_any:
        raise UserError(
            f"--gate {' --gate '.join(gate)}: no finished run above has both methods",
            hint="a gate is JUDGE:MOST,RERANKER, for example --gate ransac:20,lightglue",
        )
    if worst is not None and not found:
        raise UserError(
            f"--worst {worst}: no finished run above has {' and '.join(worst.split(','))}",
            hint="the images of runs that are added are not here; ask for the picture where they were measured"
            if added
            else None,
        )
    if published is not None:
        from bench.report import claims as beside

        listing = beside.compared(published, runs, how)
        if form == "terminal":
            if rows := beside.cells(listing):
                print_listing(beside.COLUMNS, rows)
            click.echo(listing.note)
        else:
            click.echo(beside.FORMATS[form](listing))


def _published(file: str, dataset: str | None, form: str) -> tuple[Claim, ...]:
    """The claims of a file, or those that are shipped where none is named; of one data set where one is asked for."""
    from bench.errors import UserError
    from bench.report.claims import FORMATS, SHIPPED, read_claims

    if form not in ("terminal", *FORMATS):
        raise UserError(f"--claims with --format {form}", hint=f"expected terminal, {', '.join(FORMATS)}")
    read = read_claims(Path(file) if file else SHIPPED)
    return tuple(claim for claim in read if dataset is None or _is_named(claim.dataset, dataset))


@main.command()
@click.option("--run", "folder", type=_Folder(), help="[default: the newest]")
@click.option(
    "--format",
    "form",
    type=click.Choice(["trec", "hloc-pairs", "vpr-preds", "parquet", "csv", "bundle"]),
    default="trec",
    show_default=True,
)
@click.option("--out", type=_Folder(), help="Folder for the files.")
@click.option(
    "--to",
    "tracker",
    type=click.Choice(["wandb", "trackio", "mlflow"]),
    help="Send it to this run tracker instead: a run there for each row of the table.",
)
@click.option("--project", help="With --to: the project or experiment there.  [default: rerankbench]")
@_blend
@_folders
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
    from bench.results import sound_run

    if (out is None) == (tracker is None):
        found = "neither --out nor --to" if out is None else "both --out and --to"
        raise UserError(f"export: found {found}", hint="--out FOLDER writes files, --to TRACKER sends rows")
    if project is not None and tracker is None:
        raise UserError(f"--project {project} without a tracker", hint=f"--to wandb --project {project}")
    how = Blend.parse(blend)
    runs = [sound_run(folder)] if folder else _finished(places.runs)
    if not runs:
        raise UserError(f"no finished run in {places.runs}", hint="python cli.py run --method all -d demo")
    if tracker is not None:
        from bench.trackers import PROJECT, send

        for name in send(runs[-1], tracker, project or PROJECT, how):
            click.echo(f"sent to {tracker}: {name}")
    elif out is not None:
        written = write(runs[-1], form, out, how)
        for path in dict.fromkeys(path if path.parent == out else path.parent for path in written):
            click.echo(f"written: {path}")


@main.command()
@click.argument("query")
@click.argument("candidate")
@click.option("--method", "-m", required=True, metavar="METHOD[@FEATURES]", help="A row of a finished run.")
@click.option("-o", "options", multiple=True, metavar="METHOD.OPTION=VALUE", help="Instead of the run's; repeatable.")
@click.option("--run", "folder", type=_Folder(), help="[default: the newest that has the row and both images]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A .png. [default: show-QUERY-CANDIDATE-METHOD.png here]",
)
@_folders
def show(
    query: str,
    candidate: str,
    method: str,
    options: tuple[str, ...],
    folder: Path | None,
    device: str,
    out: Path | None,
    places: Places,
) -> None:
    """Draw a query beside a candidate: which local descriptors a method matches, the score, the places, the label.

    The matches are those that the score counts. Methods without any, such as rrt, show the two images and the score.
    """
    from bench.pair import pair
    from bench.report.matches import draw, file_name, places_of, said
    from bench.results import sound_run

    runs = [sound_run(folder)] if folder else _finished(places.runs)
    found = pair(runs, query, candidate, method, _options(options, (method,)), places, device)
    path = draw(found, out or Path(file_name(found, method)))
    click.echo(f"{found.row}: {said(found)}; {places_of(found)}; {found.kind}")
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"written: {path}")


def _finished(runs: Path, wanted: Callable[[Run], bool] = lambda run: True) -> list[Run]:
    """The finished runs in a folder that are wanted, oldest first; those that are left out are named."""
    from bench.results import read_runs

    found = read_runs(runs, wanted)
    for note in found.notes(runs):
        click.echo(f"note: {note}", err=True)
    return list(found.finished)


def _is_named(dataset: str, text: str) -> bool:
    """Whether a user means that data set: by its name, by a path as it was given, or by the last part of the path."""
    kind, colon, path = text.partition(":")
    given = f"{kind}:{Path(path).expanduser().resolve()}" if colon else text
    return dataset in (text, given) or (":" in dataset and Path(dataset.partition(":")[2]).name == text)


@main.command()
@click.option(
    "--baseline",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to compare a run with. For example results/baseline/demo.json.",
)
@click.option("--run", "folder", type=_Folder(), help="Of --baseline. [default: the newest that fits]")
@click.option("--write", is_flag=True, help="Make the run the new baseline instead of checking it.")
@click.option("--base", multiple=True, type=_Folder(), help="Instead of a baseline: run of the version before.")
@click.option(
    "--head",
    multiple=True,
    type=_Folder(),
    help="Run of the version after, measured in turn with --base on one machine; both repeatable, in order.",
)
@click.option("--reference", metavar="ROW", help="Row that times are relative to. [default: one whose code is equal]")
@click.option("--tolerance", type=float, metavar="POINTS", help="Loss that is tolerated. [default: baseline's, or 0.3]")
@click.option("--ratio-bound", type=float, metavar="FACTOR", help="Of times. [default: baseline's; of two runs 1.5]")
@click.option("--strict", is_flag=True, help="Exit 1 also where something cannot be told.")
@click.option("--summary", type=click.Path(path_type=Path, dir_okay=False), help="Markdown file to write.")
@click.option("--junit", type=click.Path(path_type=Path, dir_okay=False), help="JUnit XML file to write.")
@_folders
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
    from bench.results import sound_run

    if (baseline is None) == (not (base or head)) or ((base or head) and (write or folder)):
        raise UserError(
            "check: expected --baseline FILE, or --base RUN and --head RUN",
            hint="check --baseline results/baseline/demo.json; --run and --write belong to --baseline",
        )
    if baseline is None:
        runs = [checks.named_run(each) for each in base], [checks.named_run(each) for each in head]
        checked = checks.between(*runs, reference, tolerance, ratio_bound)
    elif write:
        run = sound_run(folder) if folder else next(iter(_finished(places.runs)[::-1]), None)
        if run is None:
            raise UserError(f"no finished run in {places.runs}", hint="python cli.py run --method all --dataset demo")
        for note in checks.keep(run, baseline, reference):
            click.echo(f"note: {note}", err=True)
        click.echo(f"baseline {baseline} written from {run.folder}")
        return
    else:
        content = checks.read_baseline(baseline)
        run = sound_run(folder) if folder else checks.matching_run(_finished(places.runs), content)
        checked = checks.against_baseline(run, content, str(baseline), reference, tolerance, ratio_bound)
    for finding in checked.findings:
        click.echo(finding.line)
    for note in checked.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"{checked.now} against {checked.before}: {checked.counted}")
    checks.write_files(checked, summary, junit)
    if not checked.passes(strict):
        raise SystemExit(1)


@main.command()
@click.option("--features", "-f", default="xfeat", show_default=True, help="Say what can run on this feature set.")
def methods(features: str) -> None:
    """List the rerankers: what they read, their options and licences, and whether they can run here."""
    import dataclasses

    from bench import registry
    from bench.errors import UserError
    from bench.features.sets import card_of
    from bench.report.terminal import print_listing
    from bench.rows import Asked, wanted

    card, rows = card_of(features), []
    for name in registry.names():
        try:
            cls = registry.get(name)
        except UserError as error:
            rows.append((name, "", "", "", error.message))
            continue
        found = wanted(Asked(name), cls(), features, frozenset())
        options = ", ".join(f"{f.name}={getattr(cls.Options(), f.name)}" for f in dataclasses.fields(cls.Options))
        rows.append(
            (
                name + ("*" if cls.spec.control else ""),
                ", ".join(sorted(cls().needs())),
                options.replace(str(Path.cwd()) + os.sep, ""),
                cls.spec.card.licence,
                found if isinstance(found, str) else _reads(found, card.known),
            )
        )
    print_listing(("method", "reads", "options", "licence", f"here, with --features {features}"), rows)
    click.echo("* control: a floor, a ceiling or a sentinel")


def _reads(row: Wanted, known: bool) -> str:
    """What a method would read."""
    names = dict.fromkeys(
        read.name
        for part in (row.parts or (row,))
        for name in part.choices[:1]
        if (read := name.reading(part.method.needs()))
    )
    on = f", reads {', '.join(names)}" if names else ""
    return f"ready{on}" if known or not names else f"as the imported files are{on}"


@main.group(invoke_without_command=True)
@_folders
@click.pass_context
def datasets(ctx: click.Context, places: Places) -> None:
    """List the data sets and whether they are here; download, verify or convert one."""
    if ctx.invoked_subcommand is not None:
        return
    from bench.datasets import catalogue
    from bench.errors import UserError
    from bench.report.terminal import print_listing

    rows = []
    for name in catalogue.names():
        try:
            loader = catalogue.get(name)
        except UserError as error:
            rows.append((name, "", "", "", error.message))
            continue
        rows.append((loader.usage, loader.summary, loader.licence, loader.needs, catalogue.state(loader, places)))
    print_listing(("data set", "what", "licence", "needs", "here"), rows)


class _OfSources(click.Command):
    """Its help names what can be downloaded."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from bench.datasets.catalogue import sources

        formatter.write_paragraph()
        formatter.write_text(f"NAME is one of {', '.join(sources())}.")


@datasets.command(cls=_OfSources)
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="List addresses, sizes, checksums and places; ask no server.")
@_folders
def download(name: str, dry_run: bool, places: Places) -> None:
    """Fetch the official files of a data set into the data root.

    Interrupted, the same command goes on where it stopped. A file without a known checksum is pinned on first use.
    """
    from bench.datasets.catalogue import sources_of
    from bench.datasets.official.download import download as fetch
    from bench.report.terminal import progress_bars

    for source in sources_of(name):
        if dry_run:
            _list_files(source, places)
            continue
        with progress_bars() as progress:
            done = fetch(source, places.data, progress)
        for note in done.notes:
            click.echo(f"note: {note}", err=True)
        click.echo(
            f"{done.files} files fetched, {len(source.files) - done.files} were there: {places.data / source.folder}"
        )


def _list_files(source: Source, places: Places) -> None:
    for file in source.files:
        size = "size unknown" if file.size is None else f"{file.size:,} bytes"
        check = file.digest or (f"md5 from {file.digest_url}" if file.digest_url else "sha256 pinned on first use")
        place = f"unpacked into {places.data / file.unpack.target}" if file.unpack else str(places.data / file.path)
        click.echo(f"{' or '.join(file.urls)}  {size}  {check}  {place}")
    click.echo(f"{len(source.files)} files; images: {source.image_set}; licence: {source.licence}")


@datasets.command()
@click.argument("listed", metavar="CSV", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("to", metavar="PATH", type=_Folder())
@click.option("--zone", type=int, help="UTM zone that all names are in. [default: that of most images]")
@click.option("--query-every", type=int, metavar="N", help="Make every N-th image a query, where no column says which.")
@click.option("--copy", is_flag=True, help="Copy the photographs instead of linking to them.")
def convert(listed: Path, to: Path, zone: int | None, query_every: int | None, copy: bool) -> None:
    """Make a place-recognition folder for vpr:PATH from a list of photographs with coordinates.

    CSV has the columns image, latitude, longitude and role (query or database). JSON lines are read, too.
    """
    from bench.datasets.convert import convert as make

    made = make(listed, to, zone=zone, query_every=query_every, copy=copy)
    click.echo(
        f"{made.queries} queries and {made.database} images of the database, "
        f"{'links' if made.linked else 'copies'} in UTM zone {made.zone} {'north' if made.north else 'south'}: {to}"
    )


@datasets.command(cls=_OfSources)
@click.argument("name")
@_folders
def verify(name: str, places: Places) -> None:
    """Name the missing, extra and damaged files of a data set that `download` fetched; exit 1 if there are any."""
    from bench.datasets.catalogue import sources_of
    from bench.datasets.official.download import verify as check_files
    from bench.files import writing
    from bench.report.terminal import progress_bars

    sound = True
    for source in sources_of(name):
        with progress_bars() as progress:
            found = check_files(source, places.data, progress)
        for what in ("missing", "extra", "damaged"):
            names = getattr(found, what)
            click.echo(f"{what}: {len(names)}" + "".join(f"\n  {name}" for name in names[:20]))
        if found.sound:
            click.echo(f"{found.checked} files are as they should be")
            continue
        sound = False
        listed = places.data / source.folder / "verify.txt"
        lines = "".join(f"{what} {name}\n" for what in ("missing", "extra", "damaged") for name in getattr(found, what))
        with writing(listed):
            listed.write_text(lines, encoding="utf-8", errors="surrogateescape")
        click.echo(f"all of them are named in {listed}")
    if not sound:
        raise SystemExit(1)


@main.group(invoke_without_command=True)
@click.pass_context
def features(ctx: click.Context) -> None:
    """List the feature sets and whether they can be extracted here; or import one, or say why two differ."""
    if ctx.invoked_subcommand is not None:
        return
    from bench.errors import UserError
    from bench.extractor import waits
    from bench.features.sets import DEFAULT_GLOBAL, EXTRACTORS, IMPORTS
    from bench.report.terminal import print_listing

    def size(dim: int | None, unknown: str = "as it is") -> str:
        return unknown if dim is None else f"{dim}-d" if dim else "–"

    rows = []
    for name in EXTRACTORS.names():
        try:
            cls = EXTRACTORS.get(name)
            spec, missing = cls.spec, None if cls.spec.takes else cls.spec.skip() or waits(cls, cls.Options())
        except UserError as error:
            rows.append((name, "", "", "", "", error.message))
            continue
        here = spec.skip() or (f"needs weights: {name}:{spec.takes}" if spec.takes else missing or "ready")
        dims = (size(dim, "by option") for dim in (spec.local_dim, spec.global_dim))
        rows.append((name, spec.summary, *dims, spec.card.licence, here))
    print_listing(("extractor", "what", "local", "global", "licence", "here"), rows)
    click.echo(f"a feature set is LOCAL+GLOBAL; LOCAL alone takes {DEFAULT_GLOBAL} as its global descriptor\n")
    print_listing(
        ("imported", "what", "local", "global", "PLACE of `features import`"),
        [(each.name, each.summary, *map(size, each.dims), each.place) for each in map(IMPORTS.get, IMPORTS.names())],
    )


@features.command("import")
@click.argument("kind")
@click.argument("folder", metavar="PLACE", type=click.Path(path_type=Path))
@click.option("--dataset", "-d", metavar="NAME[:PATH]", help="Data set; official photographs not needed.")
@click.option(
    "--list",
    "listing",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Instead: the labels of training images, as `train rrt --recipe gld` reads them.",
)
@click.option("--globals", "globals_", type=click.Path(path_type=Path), help="Global descriptors, for hloc and ames.")
@click.option(
    "--queries", type=click.Path(path_type=Path), help="The queries' file, for ames with PLACE the gallery's."
)
@click.option("--query-globals", type=click.Path(path_type=Path), help="Global descriptors of --queries.")
@click.option("--local", metavar="EXTRACTOR", help="What made the local descriptors: its methods then run on them.")
@click.option("--ordered", is_flag=True, help="For files without scores: their order is that of quality, best first.")
@click.option("--into", type=_Folder(), help="Keep it here, beside what is imported of that kind; for `features diff`.")
@_folders
def import_features(
    kind: str,
    folder: Path,
    dataset: str | None,
    listing: Path | None,
    globals_: Path | None,
    queries: Path | None,
    query_globals: Path | None,
    local: str | None,
    ordered: bool,
    into: Path | None,
    places: Places,
) -> None:
    """Make a feature set from the files that others extracted; `features` says of each kind what PLACE is.

    For delg, PLACE holds <image>.delg_global and <image>.delg_local of every query and gallery image: side by side, or
    the queries' in its sub-folder query and the gallery's in index. Queries must have been extracted from their crop,
    as DELG does.
    Interrupted, the same command goes on where it stopped; given again, it reads what has changed. Other files take the
    place of what was imported once they are read.
    """
    from bench.datasets.catalogue import load
    from bench.datasets.gldv2 import read_list
    from bench.features.diff_sides import import_place
    from bench.features.extract import ExtractOptions
    from bench.features.importing import import_foreign
    from bench.features.imports.delg import import_delg, import_listed
    from bench.features.sets import IMPORTS, local_of, part_folder
    from bench.features.store import FeatureStore
    from bench.report.terminal import progress_bars

    if (dataset is None) == (listing is None):
        raise click.UsageError("give --dataset, or --list for training images")
    if listing is not None and into is not None:
        raise click.UsageError("--into goes with --dataset")
    if listing is not None and kind != "delg":
        raise click.UsageError("--list is for delg")
    if kind == "delg" and (ordered or any((globals_, queries, query_globals, local))):
        raise click.UsageError("delg takes no --globals, --queries, --query-globals, --local or --ordered")
    made_by = None if local is None else local_of(local)
    with progress_bars() as progress:

        def told(done: int, total: int) -> None:
            progress("importing features", done, total)

        if listing is not None:
            names = list(read_list(listing))
            place = part_folder(f"list:{listing.resolve()}", IMPORTS.get(kind), ExtractOptions(), places)
            report = import_listed(names, folder, place, told)
            then = f"train rrt --recipe gld --store {shlex.quote(str(place))} --list {shlex.quote(str(listing))}"
            then += " --out FILE.safetensors"
        else:
            assert dataset is not None
            data = load(dataset, places, images=False)
            place = part_folder(data.name, IMPORTS.get(kind), ExtractOptions(), places)
            place = place if into is None else import_place(into, dataset, kind)
            if kind == "delg":
                report = import_delg(data, folder, place, told)
            else:
                more = {"queries": queries, "query_globals": query_globals}
                report = import_foreign(
                    kind, data, folder, place, told, globals_, **more, ordered=ordered, local=made_by
                )
            then = f"run --method all --dataset {shlex.quote(dataset)} --features {kind}"
            then += " --policy paper -o rrt.weights=FILE" if kind == "delg" else ""
            if (FeatureStore(place).identity or {}).get("global_dim") == 0:
                then += " --shortlist FILE"
            if into is not None:
                then = f"features diff {kind} {shlex.quote(str(place))} --dataset {shlex.quote(dataset)}"
    for note in (*report.notes, *report.caveats):
        click.echo(f"note: {note}", err=True)
    click.echo(f"{report.extracted} images imported, the others were up to date: {place}")
    click.echo(f"now: python cli.py {then}")


@features.command("diff")
@click.argument("a")
@click.argument("b")
@click.option("--dataset", "-d", required=True, metavar="NAME[:PATH]", help="The data set that both are of.")
@click.option(
    "--images", type=click.IntRange(1), default=200, show_default=True, help="Images whose keypoints are compared."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draw of these images.")
@click.option("--top-k", "-k", type=click.IntRange(1), default=100, show_default=True, help="Places of the lists.")
@click.option("--max-side", type=click.IntRange(32), default=640, show_default=True, help="As in `run`.")
@click.option("--keep-descriptors", type=click.IntRange(1), default=1000, show_default=True, help="As in `run`.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--format", "form", type=click.Choice(["terminal", "md", "json"]), default="terminal", show_default=True)
@_folders
def diff_features(
    a: str,
    b: str,
    dataset: str,
    images: int,
    seed: int,
    top_k: int,
    max_side: int,
    keep_descriptors: int,
    device: str,
    form: str,
    places: Places,
) -> None:
    """Say why two feature sets of one data set differ: other crops, sizes, orders, lengths, weights.

    A and B name feature sets as `run --features` does, or folders of stores: those that `features import --into` wrote,
    and those in the cache. What is extracted here is extracted first. Lists of the first stage are compared to --top-k,
    and to no more than a tenth of the gallery, or ten.
    """
    from bench.device import resolve_device
    from bench.features.diff import DiffOptions
    from bench.features.diff_sides import diff_named
    from bench.features.extract import ExtractOptions
    from bench.report.features_diff import FORMATS, print_difference
    from bench.report.terminal import progress_bars

    extract, how = ExtractOptions(max_side, keep_descriptors), DiffOptions(images, top_k, seed)
    with progress_bars() as progress:
        found = diff_named(dataset, (a, b), extract, how, resolve_device(device), places, progress)
    if form == "terminal":
        print_difference(found)
    else:
        click.echo(FORMATS[form](found))


class _Trainers(click.Group):
    """`train METHOD`: the methods that have recipes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from bench.recipes import recipes

        return sorted(recipes())

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return _Trainer(name, short_help=f"Train {name}.") if name in self.list_commands(ctx) else None


class _Trainer(click.Command):
    """`train METHOD --recipe NAME`, its other options made from the `TrainOptions` of that recipe."""

    def _known(self) -> list[str]:
        from bench.recipes import recipes

        return list(recipes()[str(self.name)])

    def _recipe(self, help: str | None = None) -> click.Option:
        known = self._known()
        default = "views" if "views" in known else known[0]
        return click.Option(["--recipe"], metavar="NAME", default=default, show_default=True, help=help)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        lenient = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
        peek = click.Command("recipe", params=[self._recipe()], add_help_option=False, context_settings=lenient)
        self._choose(str(peek.make_context("recipe", list(args)).params["recipe"]))
        return super().parse_args(ctx, args)

    def _choose(self, name: str) -> None:
        import dataclasses
        import typing

        from bench.options import described, parse_value
        from bench.recipes import load_recipe

        module = load_recipe(str(self.name), name)
        kinds = typing.get_type_hints(module.TrainOptions)
        meanings = described(module.TrainOptions)

        def run_training(recipe: str, out: Path, **given: str | None) -> None:
            from bench.files import writing
            from bench.report.terminal import progress_bars
            from bench.training import require_name

            require_name(out)  # now, not after the minutes that preparing may take
            with writing(out):
                out.parent.mkdir(parents=True, exist_ok=True)
            values = {
                key: parse_value(text, kinds[key], f"--{key.replace('_', '-')}")
                for key, text in given.items()
                if text is not None
            }
            with progress_bars() as progress:
                card = module.train(module.TrainOptions(**values), out, progress)
            click.echo(f"weights: {out}")
            for key, value in card.items():
                click.echo(f"  {key}: {value}")

        def option(field: dataclasses.Field) -> click.Option:
            value = field.default
            shown = (",".join(map(str, value)) or "none") if isinstance(value, tuple) else str(value)
            names = [f"--{field.name.replace('_', '-')}"]
            return click.Option(names, metavar="VALUE", help=f"{meanings.get(field.name, '')} [default: {shown}]")

        fields = dataclasses.fields(module.TrainOptions)
        recipe = self._recipe(f"{', '.join(self._known())}; each has options of its own.")
        out = click.Option(
            ["--out"],
            required=True,
            type=click.Path(path_type=Path, dir_okay=False),
            help="Weights to write (.safetensors); where a recipe keeps its state beside them, it resumes from that.",
        )
        self.params = [recipe, out, *map(option, fields)]
        self.callback, self.help = run_training, module.train.__doc__


@main.group(cls=_Trainers)
def train() -> None:
    """Train the weights of a reranker."""


@main.command()
@_folders
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


if __name__ == "__main__":
    main()
