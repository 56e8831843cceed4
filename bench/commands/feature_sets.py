"""Commands for feature sets: list, import, compare."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.commands.shell import Folder, folders, given_folders

if TYPE_CHECKING:
    from bench.places import Places


@click.group(invoke_without_command=True)
@click.pass_context
def features(ctx: click.Context) -> None:
    """List the feature sets and whether they can be extracted here; or import one, or say why two differ."""
    if ctx.invoked_subcommand is not None:
        return
    from bench.features.sets import DEFAULT_GLOBAL
    from bench.report import listings
    from bench.report.terminal import print_listing

    print_listing(listings.EXTRACTED, listings.extracted())
    click.echo(f"a feature set is LOCAL+GLOBAL; LOCAL alone takes {DEFAULT_GLOBAL} as its global descriptor\n")
    print_listing(listings.IMPORTED, listings.imported())


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
    "--queries",
    type=click.Path(path_type=Path),
    help="The queries' file, for ames and vpr-descriptors with PLACE the gallery's.",
)
@click.option("--query-globals", type=click.Path(path_type=Path), help="Global descriptors of --queries.")
@click.option("--local", metavar="EXTRACTOR", help="What made the local descriptors: its methods then run on them.")
@click.option("--ordered", is_flag=True, help="For files without scores: their order is that of quality, best first.")
@click.option("--into", type=Folder(), help="Keep it here, beside what is imported of that kind; for `features diff`.")
@folders
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
    click.echo(f"{report.extracted} images imported{'' if report.extracted else ', all were up to date'}: {place}")
    click.echo(f"now: python cli.py {then}{given_folders()}")


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
@folders
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
