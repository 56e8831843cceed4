"""One query and one candidate of a finished run: what a method finds in the two images, and where the candidate stood.

Only the two images' features are needed. They are read where the data set's are kept, and else extracted anew.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench import registry
from bench.datasets import GRADES, Dataset, Query
from bench.device import resolve_device
from bench.errors import UserError, listed
from bench.evaluation import main_difficulty
from bench.features import FeatureBatch, Features
from bench.features.extract import ExtractOptions, Part
from bench.features.imported import Import
from bench.features.items import items, query_key
from bench.features.sets import Stores, part_folder
from bench.features.store import FeatureStore
from bench.names import Names
from bench.places import Places
from bench.reranker import Explanation, Reranker, Saliency, Scored, parse_options
from bench.results import Run
from bench.rows import Asked, Row, opened, same_row, wanted
from bench.shortlist import UNION
from bench.timing import kept_torch_flags

KINDS = (*GRADES, "negative")
NEAR, SEARCHED = 3, 20_000  # names that a message proposes, and among how many they are looked for
SAME = 1e-4  # relative; scores of one pair and of one among many may round otherwise


@dataclass(frozen=True, eq=False)
class Pair:
    """What there is to see of a query and a candidate."""

    row: str  # of the run, with the options that were given
    query: Query
    candidate: str
    image: Path  # the candidate's
    kind: str  # of KINDS
    score: float | None  # None: it was not scored, and cannot be by itself
    before: int | None  # its place in the first stage's list, from 1; None: it is not in it
    after: int | None  # its place in the row's ranking; None: not in it, or that was of other options
    of: int  # candidates in the list
    explanation: Explanation | Saliency | None = None  # None: the method says nothing of descriptors
    features: tuple[Features, Features] | None = None  # query and candidate, with the keypoints of the explained rows
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.candidate!r} is {self.kind}, expected one of {', '.join(KINDS)}")
        if self.explanation is None:
            return
        if self.features is None:
            raise ValueError("an explanation of rows of no features")
        for rows, image in zip(self.explanation.rows, self.features, strict=True):
            if rows > len(image):
                raise ValueError(f"{self.row} explains row {rows - 1} of {len(image)} local descriptors")

    @property
    def placed(self) -> bool:
        """Whether descriptors have keypoints of their own; those of some other programs have none."""
        return _have_places(self.features or ())


def pair(
    runs: Sequence[Run],
    query: str,
    candidate: str,
    method: str,
    given: Mapping[str, Mapping[str, str]],
    places: Places,
    device: str = "cpu",
) -> Pair:
    """A query and a candidate as a row of one of the runs has them: of the newest that has it, oldest first.

    `method` is METHOD or METHOD@FEATURES. `given` are options by method or row, which stand before those of the run; a
    run that has them is preferred. UserError for what no run has, and for features and images that are gone.
    """
    run, row, options = _chosen(runs, query, candidate, method, given)
    query, candidate = _found(run, query, candidate)
    cls = registry.get(row.partition("@")[0])
    reranker, as_run = cls(options, resolve_device(device)), _as_run(run, row, options)
    number = run.shortlist.queries.index(query)
    for file in (run.dataset.queries[number].image, run.dataset.gallery[candidate]):
        if not file.is_file():
            raise UserError(f"{file}: no such image", hint="`show` needs both images where they were in the run")
    stored = _stored(run, row, number, candidate) if as_run else None
    explains = cls.explain is not Reranker.explain
    scored = explanation = features = None
    if cls.pairwise and "truth" not in reranker.needs() and not reranker.parts() and (explains or stored is None):
        read = _features(run, row, number, candidate, method, reranker, places)
        features = (read[0].placed, read[1].placed)
        scored, explanation = _scored(reranker, read[0].read, read[1].read)
    shown = " ".join([row, *(f"{key}={value}" for key, value in sorted(_all(given, method, row).items()))])
    before, after = _places(run, row, number, candidate, as_run)
    notes = []
    if scored is not None and stored is not None and abs(scored - stored) > SAME * max(1.0, abs(stored)):
        notes.append(f"The run has {stored:.6g}: code, weights, features or device are others now.")
    if not explains:
        notes.append(f"{row} scores no pairs of local descriptors, so there are no matches to show.")
    notes += _about(explanation, features)
    return Pair(
        shown,
        run.dataset.queries[number],
        candidate,
        run.dataset.gallery[candidate],
        run.dataset.grades.get(query, {}).get(candidate, KINDS[-1]),
        stored if scored is None else scored,
        before,
        after,
        run.shortlist.header.k,
        explanation,
        features,
        tuple(notes),
    )


# --- which run ----------------------------------------------------------------------------------------------------


def _chosen(
    runs: Sequence[Run], query: str, candidate: str, method: str, given: Mapping[str, Mapping[str, str]]
) -> tuple[Run, str, Any]:
    """The run, its row, and the row's options with those that are given."""
    having = [(run, row) for run in reversed(runs) for row in _rows(run, method)]
    if not having:
        rows = dict.fromkeys(row for run in reversed(runs) for row in run.record.costs)
        raise UserError(
            f"--method {method}: no finished run has this row",
            hint=f"rows there are: {listed(list(rows), 20)}" if rows else "run it first: `run --method …`",
        )
    for target in given:
        if target not in {method, Asked.parse(method).method, *(row for _, row in having)}:
            raise UserError(f"-o {target}.…: the method is {method}", hint=f"-o {Asked.parse(method).method}.OPTION=…")
    both = [(run, row) for run, row in having if _has(run, query, candidate)]
    if not both:
        _found(having[0][0], query, candidate)  # says what is lacking
    found = [(run, row, _options(run, row, _all(given, method, row))) for run, row in both]
    return next((one for one in found if _as_run(*one)), found[0])


def _rows(run: Run, method: str) -> Iterator[str]:
    """The rows of a run that METHOD or METHOD@FEATURES names; METHOD alone is any row of it where no other is."""
    methods = run.record.identity.methods
    named = [row for row in run.record.costs if same_row(method, row, methods[row].features)]
    yield from named or [row for row in run.record.costs if row.partition("@")[0] == method]


def _all(given: Mapping[str, Mapping[str, str]], method: str, row: str) -> dict[str, str]:
    names = (Asked.parse(method).method, method, row)
    return {option: text for name in dict.fromkeys(names) for option, text in given.get(name, {}).items()}


def _options(run: Run, row: str, given: Mapping[str, str]) -> Any:
    """A row's options, with those that are given before them; a preset that is given sets all others anew."""
    recorded = {} if "preset" in given else _texts(run.record.identity.methods[row].options)
    return parse_options(registry.get(row.partition("@")[0]), {**recorded, **given})


def _as_run(run: Run, row: str, options: Any) -> bool:
    """Whether a row was run with these options; a run does not know those that are younger than it."""
    recorded, plain = run.record.identity.methods[row].options, vars(options)
    return _texts(recorded) == _texts({key: value for key, value in plain.items() if key in recorded})


def _texts(options: Mapping[str, Any]) -> dict[str, str]:
    """Options of a record as the command line has them."""

    def text(value: Any) -> str:
        if isinstance(value, list | tuple):
            return ",".join(map(str, value)) or "none"
        return str(value).lower() if isinstance(value, bool) or value is None else str(value)

    return {key: text(value) for key, value in options.items()}


# --- which images -------------------------------------------------------------------------------------------------


def _has(run: Run, query: str, candidate: str) -> bool:
    return (
        Names(run.shortlist.queries).find(query) is not None and Names(run.dataset.gallery).find(candidate) is not None
    )


def _found(run: Run, query: str, candidate: str) -> tuple[str, str]:
    """Both names as the run has them. UserError for one that it does not have, with the nearest that it has."""
    names = {"query": (query, run.shortlist.queries), "candidate": (candidate, tuple(run.dataset.gallery))}
    known = {what: Names(among).find(name) for what, (name, among) in names.items()}
    for what, (name, among) in names.items():
        if known[what] is None:
            kept = "" if what == "query" else "; a run keeps the images that are candidates or have a label"
            raise UserError(
                f"unknown {what} {name!r}: it is not in {run.shortlist.header.dataset}{kept}",
                hint=f"the nearest names: {listed(_near(name, among))}",
            )
    return str(known["query"]), str(known["candidate"])


def _near(name: str, among: Sequence[str]) -> list[str]:
    """The most similar names, or the first ones where none is similar."""
    inside = [other for other in among if name in other][:NEAR]
    alike = difflib.get_close_matches(name, among[:SEARCHED], n=NEAR, cutoff=0.5)
    return list(dict.fromkeys([*alike, *inside]))[:NEAR] or list(among[:NEAR])


# --- what the run has of them -------------------------------------------------------------------------------------


def _stored(run: Run, row: str, query: int, candidate: str) -> float | None:
    """The pair's score; None where it was not scored."""
    lists = (UNION, run.shortlist.list_for(main_difficulty(run.dataset)))
    scores = run.scores
    of_pair = (scores["query"] == run.shortlist.queries[query]) & (scores["candidate"] == candidate)
    found = scores[of_pair & (scores["method"] == row) & scores["list"].isin(lists)]["score"]
    return float(found.iloc[0]) if len(found) else None


def _places(run: Run, row: str, query: int, candidate: str, as_run: bool) -> tuple[int | None, int | None]:
    """Places from 1 in the first stage's list and in the row's ranking."""
    difficulty = main_difficulty(run.dataset)
    candidates = run.shortlist.candidates(run.shortlist.list_for(difficulty), query)
    names = [run.shortlist.gallery[image] for image in candidates]
    if candidate not in names:
        return None, None
    before = names.index(candidate) + 1
    if not as_run:
        return before, None
    ranking = run.rankings().ranking(row, difficulty, query)
    return before, [run.shortlist.gallery[image] for image in ranking].index(candidate) + 1


# --- what the method finds ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Image:
    """One image's features: what the method reads, and the same rows with their keypoints."""

    read: Features
    placed: Features


def _have_places(images: Sequence[Features]) -> bool:
    return all(len(image) < 2 or bool((image.keypoints != image.keypoints[0]).any()) for image in images)


def _about(explanation: Explanation | Saliency | None, features: tuple[Features, Features] | None) -> Iterator[str]:
    """What must be known to read an explanation, or to know why there is none."""
    if features is None:
        return
    if explanation is None:
        for name, image in zip(("query", "candidate"), features, strict=True):
            if not len(image):
                yield f"The {name} has no local descriptors."
        return
    if isinstance(explanation, Saliency) and not explanation.adds_up:
        weights = ", ".join(f"{name} {weight:.3g}" for name, weight in explanation.elsewhere.items())
        yield f"{explanation.what.capitalize()}, not a share of the score{weights and f'; elsewhere: {weights}'}."
    if not _have_places(features):
        yield "These features have no keypoints, so that no descriptor can be drawn."


def _scored(method: Reranker, query: Features, candidate: Features) -> tuple[float, Explanation | Saliency | None]:
    method.load()
    batch = FeatureBatch((candidate,), torch.ones(1, device=method.device))
    on = query.to(method.device), candidate.to(method.device)
    with kept_torch_flags():
        found = method.score(on[0], replace(batch, images=(on[1],)))
        scores = found.scores if isinstance(found, Scored) else found
        return float(scores.detach().double().cpu()[0]), method.explain(*on)


def _features(
    run: Run, row: str, query: int, candidate: str, method: str, reranker: Reranker, places: Places
) -> tuple[_Image, _Image]:
    """Query and candidate as the row reads them. UserError where that cannot be had."""
    recorded = run.record.identity.methods[row].features
    asked = Asked.parse(method)
    name = asked.features or ("+".join(recorded) if recorded else "")
    two = _of_two(run.dataset, query, candidate)
    with TemporaryDirectory(prefix="rerankbench-") as folder:
        options = ExtractOptions() if run.record.extract is None else run.record.extract
        stores = _Stores(two, options, reranker.device, replace(places, cache=Path(folder)), places)
        found = _opened(row, Asked(reranker.spec.name, name or None), reranker, stores, run)
        if tuple(part.key for read in found.reads for part in read.features.name.parts) != recorded:
            raise UserError(
                f"--method {method}: the run read the features {'+'.join(recorded)}, these are "
                f"{'+'.join(read.features.name.name for read in found.reads)}",
                hint="name the weights that the run was given: METHOD@LOCAL:WEIGHTS",
            )
        if not found.reads:
            raise UserError(f"{row} reads no features, so a pair has no score of its own")
        (read,) = found.reads
        more = read.needs | {"keypoints"} if "local" in read.needs else read.needs
        one, other = (
            _Image(*(read.features.read_all([key], needs, read.used)[0] for needs in (read.needs, more)))
            for key in (query_key(two, 0), candidate)
        )
        return one, other


def _opened(row: str, asked: Asked, method: Reranker, stores: Stores, run: Run) -> Row:
    """The row with its features. What was accepted for the run, its licences too, is accepted again."""
    terms = f"{run.record.features_noncommercial or ''}, {run.record.cards[row].noncommercial or ''}".split(", ")
    try:
        found = wanted(asked, method, asked.features or "", frozenset(terms))
    except UserError as error:
        raise UserError(
            f"{row}: its features cannot be had again: {error.message}",
            hint=f"name them, with the weights that the run was given: --method {asked.method}@LOCAL:WEIGHTS",
        ) from error
    opened_row = (
        found if isinstance(found, str) else opened(found, stores, lambda: (i.key for i in items(stores.dataset)))
    )
    if isinstance(opened_row, str):
        raise UserError(f"{row} cannot run here: {opened_row}")
    return opened_row


def _of_two(dataset: Dataset, query: int, candidate: str) -> Dataset:
    """The data set's query and candidate alone, under the keys that the whole one has for them."""
    asked = dataset.queries[query]
    gallery = {candidate: dataset.gallery[candidate]}
    if dataset.gallery.get(asked.id) == asked.image:
        gallery[asked.id] = asked.image
    return replace(dataset, queries=(asked,), gallery=gallery, grades={}, notes=())


class _Stores(Stores):
    """Features of two images: from where the whole data set's are kept, if they are fresh there, else extracted."""

    def __init__(self, dataset: Dataset, options: ExtractOptions, device: torch.device, places: Places, kept: Places):
        super().__init__(dataset, options, device, places)
        self._kept = kept

    def _open(self, part: Part | Import) -> FeatureStore:
        folder = part_folder(self.dataset.name, part, self.options, self._kept)
        if folder.is_dir():
            store = FeatureStore(folder)
            if _fresh(store, part, self.options, items(self.dataset)):
                return store
        if isinstance(part, Import):
            raise UserError(
                f"{folder}: has no features of these two images",
                hint=f"import them again: `features import {part.name} …`, and name the same --cache-dir",
            )
        return super()._open(part)


def _fresh(store: FeatureStore, part: Part | Import, options: ExtractOptions, two: Iterable[Any]) -> bool:
    """Whether both images are there, and neither they nor what is extracted of them has changed."""
    if store.identity is None or (isinstance(part, Part) and store.identity != part.identity(options)):
        return False
    wanted_items = list(two)
    if isinstance(part, Import):
        return all(item.key in store for item in wanted_items)
    return not any(True for _ in store.stale(wanted_items))
