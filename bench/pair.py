"""One query and one candidate of a finished run: what a method finds in the two images, and where the candidate stood.

Only the two images' features are needed, and where the query is changed those of its other candidates.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench import registry
from bench.changes import Changes
from bench.datasets import GRADES, Dataset, Query
from bench.device import resolve_device
from bench.errors import UserError, listed
from bench.evaluation import main_difficulty
from bench.features import Features
from bench.images import Box
from bench.named_row import NamedRow, named_row
from bench.names import Names
from bench.places import Places
from bench.reranker import Explanation, Reranker, Saliency
from bench.rescore import Image, have_places, reread, score
from bench.results import Run
from bench.shortlist import UNION, reranked
from bench.timing import kept_torch_flags

KINDS = (*GRADES, "negative")
NEAR, SEARCHED = 3, 20_000  # names that a message proposes, and among how many they are looked for
SAME = 1e-4  # relative; scores of one pair and of one among many may round otherwise


@dataclass(frozen=True)
class Changed:
    """What changes to the images made of a pair."""

    by: str  # the changes, as the command line has them
    score: float
    after: int | None  # the candidate's place in the row's ranking then, from 1; None: it is not in the list


@dataclass(frozen=True, eq=False)
class Pair:
    """What there is to see of a query and a candidate; of changed images their explanation and features."""

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
    changed: Changed | None = None  # None: the images are as they were
    box: Box | None = None  # the part of the candidate that is read, as the query's box; None: all of it
    hidden: tuple[tuple[Box, ...], tuple[Box, ...]] = ((), ())  # of query and candidate, in pixels of their files

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
        return have_places(self.features or ())


def pair(
    runs: Sequence[Run],
    query: str,
    candidate: str,
    method: str,
    given: Mapping[str, Mapping[str, str]],
    places: Places,
    device: str = "cpu",
    changes: Changes = Changes(),
) -> Pair:
    """A query and a candidate as a row of one of the runs has them: of the newest that has it, oldest first.

    `method` is METHOD or METHOD@FEATURES. `given` are options by method or row, which stand before those of the run; a
    run that has them is preferred. UserError for what no run has, for features and images that are gone, and for
    changes of which a method's score knows nothing.
    """
    asked = _chosen(runs, query, candidate, method, given)
    run, row = asked.run, asked.row
    query, candidate = _found(run, query, candidate)
    cls = registry.get(row.partition("@")[0])
    reranker, as_run = cls(asked.options, resolve_device(device)), asked.as_run
    number = run.shortlist.queries.index(query)
    for file in (run.dataset.queries[number].image, run.dataset.gallery[candidate]):
        if not file.is_file():
            raise UserError(f"{file}: no such image", hint="`show` needs both images where they were in the run")
    stored = _stored(run, row, number, candidate) if as_run else None
    explains = cls.explain is not Reranker.explain
    changed = scored = explanation = images = None
    if changes:
        require_pairs(row, reranker)
    if scores_pairs(reranker) and (explains or stored is None or changes):
        reranker.load()
        with reread(run, row, _of(run.dataset, number, [candidate]), method, reranker, places) as plain:
            images = plain.query(0), plain.plain(candidate)
            (scored,) = score(reranker, images[0].read, [images[1].read], [1.0])
        if changes:
            images, changed = _changed(asked, number, candidate, method, reranker, places, changes)
        explanation = _explained(reranker, images)
    before, after = _places(run, row, number, candidate, as_run)
    notes = []
    if scored is not None and stored is not None and abs(scored - stored) > SAME * max(1.0, abs(stored)):
        notes.append(f"The run has {stored:.6g}: code, weights, features or device are others now.")
    if not explains:
        notes.append(f"{row} scores no pairs of local descriptors, so there are no matches to show.")
    if (changes.query.hide or changes.candidate.hide) and "global" in reranker.needs():
        notes.append(f"{row} reads global descriptors too, from which --hide hides nothing.")
    features = None if images is None else (images[0].placed, images[1].placed)
    notes += _about(explanation, features)
    shown = run.dataset.queries[number]
    return Pair(
        asked.shown,
        shown if images is None else replace(shown, box=images[0].box),
        candidate,
        run.dataset.gallery[candidate],
        run.dataset.grades.get(query, {}).get(candidate, KINDS[-1]),
        stored if scored is None else float(scored),
        before,
        after,
        run.shortlist.header.k,
        explanation,
        features,
        tuple(notes),
        changed,
        None if images is None else images[1].box,
        ((), ()) if images is None else (images[0].hidden, images[1].hidden),
    )


def scores_pairs(method: Reranker) -> bool:
    """Whether the features of two images are all that a score of the method depends on."""
    return method.pairwise and "truth" not in method.needs() and not method.parts()


def require_pairs(row: str, method: Reranker) -> None:
    """UserError for a row whose scores are not of two images' features alone."""
    if not scores_pairs(method):
        raise UserError(
            f"{row}: its score is not of two images alone, so changes of one tell nothing",
            hint="--hide, --keep and --scale are for methods that score pairs, such as rrt and ransac",
        )


# --- which run ----------------------------------------------------------------------------------------------------


def _chosen(
    runs: Sequence[Run], query: str, candidate: str, method: str, given: Mapping[str, Mapping[str, str]]
) -> NamedRow:
    """The row with its options, of a run that has both images."""
    found = named_row(runs, method, given, lambda run: _has(run, query, candidate))
    if found is None:
        newest = named_row(runs, method, given)
        assert newest is not None
        _found(newest.run, query, candidate)  # says what is lacking
    assert found is not None
    return found


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


def _about(explanation: Explanation | Saliency | None, features: tuple[Features, Features] | None) -> Iterator[str]:
    """What must be known to read an explanation, or to know why there is none."""
    if features is None:
        return
    if explanation is None:
        for name, image in zip(("query", "candidate"), features, strict=True):
            if not len(image):
                yield f"The {name} has no local descriptors."
        return
    if weights := weights_note(explanation):
        yield weights
    if not have_places(features):
        yield "These features have no keypoints, so that no descriptor can be drawn."


def weights_note(explanation: Explanation | Saliency | None) -> str:
    """What the weights of descriptors are where they are no shares of the score; empty elsewhere."""
    if not isinstance(explanation, Saliency) or explanation.adds_up:
        return ""
    weights = ", ".join(f"{name} {weight:.3g}" for name, weight in explanation.elsewhere.items())
    return f"{explanation.what.capitalize()}, not a share of the score{weights and f'; elsewhere: {weights}'}."


# --- what changes make of it --------------------------------------------------------------------------------------


def _changed(
    asked: NamedRow,
    number: int,
    candidate: str,
    method: str,
    reranker: Reranker,
    places: Places,
    changes: Changes,
) -> tuple[tuple[Image, Image], Changed]:
    """Both images as they are changed, their score, and the candidate's place among the query's other candidates.

    The others are as they were. They are scored again where the query or options are others than the run's. Of several
    scales, the images are of the one that has the pair's highest score.
    """
    run, row = asked.run, asked.row
    name = run.shortlist.list_for(main_difficulty(run.dataset))
    near = [run.shortlist.gallery[image] for image in run.shortlist.candidates(name, number)]
    again = candidate in near and (bool(changes.query) or not asked.as_run)
    dataset = _of(run.dataset, number, [candidate, *(near if again else [])])
    best: tuple[float, tuple[Image, Image]] | None = None
    unchanged = candidate in near and not again
    others = run.rankings().scores(row, name, number).copy() if unchanged else np.full(len(near), -np.inf)
    for each in changes.each:
        with reread(run, row, dataset, method, reranker, places, each, {candidate}) as rereading:
            images = rereading.query(0), rereading.candidate(candidate)
            (scored,) = score(reranker, images[0].read, [images[1].read], [1.0])
            if best is None or scored > best[0]:
                best = float(scored), images
            if again:
                read = [rereading.plain(image).read for image in near]
                similarities = run.shortlist.similarities[name][number].tolist()
                others = np.maximum(others, score(reranker, images[0].read, read, similarities))
    assert best is not None  # there is a scale
    if candidate not in near:
        return best[1], Changed(changes.said, best[0], None)
    others[near.index(candidate)] = best[0]
    after = 1 + reranked(np.arange(len(near)), others).tolist().index(near.index(candidate))
    return best[1], Changed(changes.said, best[0], after)


def _explained(method: Reranker, images: tuple[Image, Image]) -> Explanation | Saliency | None:
    with kept_torch_flags():
        return method.explain(*(image.read.to(method.device) for image in images))


def _of(dataset: Dataset, query: int, names: Sequence[str]) -> Dataset:
    """The data set's query and some gallery images alone, under the keys that the whole one has for them."""
    asked = dataset.queries[query]
    gallery = {name: dataset.gallery[name] for name in names}
    if dataset.gallery.get(asked.id) == asked.image:
        gallery[asked.id] = asked.image
    return replace(dataset, queries=(asked,), gallery=gallery, grades={}, notes=())
