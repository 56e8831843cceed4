"""A finished run in other people's formats. Only files are read: nothing is scored again.

A run keeps k candidates of every query and the ranks of graded images, so what is exported is the candidates' part of a
ranking: scorers of the exported files do not see positives behind it, as our own measures do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bench import trec
from bench.blend import Blend
from bench.bundle import export_bundle
from bench.candidates import common_folder
from bench.errors import UserError
from bench.evaluation import FIRST_STAGE, Rankings, graded
from bench.files import whole, writing
from bench.names import shown
from bench.places import slug
from bench.predictions import FOLDER, text_of
from bench.results import Run


def ranked(rankings: Rankings, method: str, difficulty: str) -> dict[str, list[tuple[str, float]]]:
    """query -> (image, place from the end), best first, without the images that the difficulty ignores."""
    shortlist, found = rankings.shortlist, {}
    for number, query in enumerate(shortlist.queries):
        _, ignored = graded(shortlist, rankings.dataset, number, difficulty)
        out = set(ignored.tolist())
        kept = [shortlist.gallery[i] for i in rankings.ranking(method, difficulty, number) if i not in out]
        found[query] = [(image, float(len(kept) - i)) for i, image in enumerate(kept)]
    return found


def export_trec(run: Run, folder: Path, blend: Blend) -> list[Path]:
    """A run a method and difficulty, in the order of the blend, and qrels a difficulty.

    Qrels cannot say that an image is to be ignored, so ignored images are left out of that difficulty's runs.
    """
    written, rankings = [], run.rankings(blend)
    for difficulty in run.dataset.difficulties:
        relevant = {}
        for number, query in enumerate(run.shortlist.queries):
            positives, _ = graded(run.shortlist, run.dataset, number, difficulty)
            relevant[query] = [run.shortlist.gallery[i] for i in positives]
        written.append(_write(folder / f"{slug(difficulty)}.qrels", trec.qrels_lines(relevant)))
        for method in (FIRST_STAGE, *run.record.costs):
            name = "first-stage" if method == FIRST_STAGE else slug(method)
            lines = trec.run_lines(ranked(rankings, method, difficulty), name)
            written.append(_write(folder / f"{name}.{slug(difficulty)}.run", lines))
    return written


def export_pairs(run: Run, folder: Path, blend: Blend) -> list[Path]:
    """hloc's list of pairs to match, `query candidate` a line: every candidate of any list.

    Files are named by their path below the folder common to all images of the run, so that a query and a gallery image
    of one file name stay two. UserError for a blend: pairs have no order that it could change.
    """
    if blend != Blend():
        raise UserError(
            f"--blend {blend}: hloc-pairs lists the same candidates in any order",
            hint="export as trec, or leave it out",
        )
    gallery, images = run.dataset.gallery, run.shortlist.gallery
    root = common_folder([*(query.image for query in run.dataset.queries), *gallery.values()])

    def lines() -> Iterator[str]:
        for number, query in enumerate(run.dataset.queries):
            for candidate in run.shortlist.union(number):
                files = (query.image, gallery[images[candidate]])
                names = [file.absolute().relative_to(root).as_posix() for file in files]
                for name in names:
                    if any(c.isspace() for c in name):
                        raise UserError(
                            f"{shown(name)!r}: hloc parts names by blanks", hint="rename the file, or export as trec"
                        )
                yield " ".join(names) + "\n"

    return [_write(folder / "pairs.txt", lines())]


def export_predictions(run: Run, folder: Path, blend: Blend) -> list[Path]:
    """A folder METHOD/preds with a file of paths for each query, in the order of the blend, as VPR-methods-evaluation.

    A data set of several difficulties has folders METHOD.DIFFICULTY. Files are numbered in the order of the queries.
    """
    written, rankings, files = [], run.rankings(blend), run.dataset.gallery
    several = len(run.dataset.difficulties) > 1
    for difficulty in run.dataset.difficulties:
        for method in (FIRST_STAGE, *run.record.costs):
            name = "first-stage" if method == FIRST_STAGE else slug(method)
            place = folder / (f"{name}.{slug(difficulty)}" if several else name) / FOLDER
            place.mkdir(parents=True, exist_ok=True)
            for number, query in enumerate(run.dataset.queries):
                positives, ignored = graded(run.shortlist, run.dataset, number, difficulty)
                order = rankings.ranking(method, difficulty, number)
                listed, right = ([files[run.shortlist.gallery[i]] for i in some] for some in (order, positives))
                out = {files[run.shortlist.gallery[i]] for i in ignored}
                text = text_of(query.image, [file for file in listed if file not in out], right)
                written.append(_write(place / f"{number:03d}.txt", iter([text])))
    return written


def export_parquet(run: Run, folder: Path, blend: Blend) -> list[Path]:
    return _tables(run, folder, blend, "parquet")


def export_csv(run: Run, folder: Path, blend: Blend) -> list[Path]:
    return _tables(run, folder, blend, "csv")


def _tables(run: Run, folder: Path, blend: Blend, form: str) -> list[Path]:
    """scores as the methods gave them, details, ledger and the measures of the blend as long tables."""
    written = []
    tables = {"scores": run.scores, "details": run.details, "ledger": run.ledger, "metrics": run.metrics(blend)}
    for name, table in tables.items():
        path = folder / f"{name}.{form}"
        with whole(path) as temporary:
            if form == "csv":
                table.to_csv(temporary, index=False)
            else:
                table.to_parquet(temporary, index=False)
        written.append(path)
    return written


def _write(path: Path, lines: Iterator[str]) -> Path:
    with whole(path) as temporary, temporary.open("w", encoding="utf-8", errors="surrogateescape") as file:
        file.writelines(lines)
    return path


FORMATS: Mapping[str, Callable[[Run, Path, Blend], list[Path]]] = {
    "trec": export_trec,
    "hloc-pairs": export_pairs,
    "vpr-preds": export_predictions,
    "parquet": export_parquet,
    "csv": export_csv,
    "bundle": export_bundle,
}


def export(run: Run, form: str, folder: Path, blend: Blend = Blend()) -> list[Path]:
    """Write a finished run into a folder in one of FORMATS; the files written. UserError if it cannot be written."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return FORMATS[form](run, folder, blend)
