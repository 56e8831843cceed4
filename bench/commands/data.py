"""Commands for data sets: list, download, verify, convert."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.commands.shell import Folder, folders

if TYPE_CHECKING:
    from bench.datasets.official.sources import Source
    from bench.places import Places


@click.group(invoke_without_command=True)
@folders
@click.pass_context
def datasets(ctx: click.Context, places: Places) -> None:
    """List the data sets and whether they are here; download, verify or convert one."""
    if ctx.invoked_subcommand is not None:
        return
    from bench.report import listings
    from bench.report.terminal import print_listing

    print_listing(listings.DATASETS, listings.datasets(places))


class _OfSources(click.Command):
    """Its help names what can be downloaded."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from bench.datasets.catalogue import sources

        formatter.write_paragraph()
        formatter.write_text(f"NAME is one of {', '.join(sources())}.")


@datasets.command(cls=_OfSources)
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="List addresses, sizes, checksums and places; ask no server.")
@folders
def download(name: str, dry_run: bool, places: Places) -> None:
    """Fetch the official files of a data set into the data root.

    Interrupted, the same command goes on where it stopped. A file without a known checksum is pinned on first use.
    """
    from bench.datasets.catalogue import get, names, sources_of
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
        if name in names() and get(name).takes is not None:
            click.echo(f"it is --dataset {name}:{places.data / source.folder}")


def _list_files(source: Source, places: Places) -> None:
    for file in source.files:
        size = "size unknown" if file.size is None else f"{file.size:,} bytes"
        check = file.digest or (f"checksum from {file.digest_url}" if file.digest_url else "sha256 pinned on first use")
        place = f"unpacked into {places.data / file.unpack.target}" if file.unpack else str(places.data / file.path)
        click.echo(f"{' or '.join(file.urls)}  {size}  {check}  {place}")
    click.echo(f"{len(source.files)} files; images: {source.image_set}; licence: {source.licence}")


@datasets.command()
@click.argument("listed", metavar="CSV", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("to", metavar="PATH", type=Folder())
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
@folders
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
