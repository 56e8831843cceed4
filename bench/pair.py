"""A query and a candidate of a finished run: what a method finds in the two images, and where the candidate stood.

Only the images' features are needed, and where the query is changed those of its other candidates.
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
from bench.evaluation import Rankings, main_difficulty
from bench.features import Features
from bench.images import Box
from bench.named_row import NamedRow, named_row
from bench.names import Names
from bench.places import Places
from bench.reranker import Explanation, Reranker, Saliency
from bench.rescore import Image, Rereading, have_places, reread, score
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
    (found,) = pairs(asked, [(query, candidate)], method, places, device, changes)
    return found


def pairs(
    asked: NamedRow,
    names: Sequence[tuple[str, str]],
    method: str,
    places: Places,
    device: str = "cpu",
    changes: Changes = Changes(),
) -> list[Pair]:
    """Queries with a candidate each, as a row of a run has them; the row is what `method` names.

    The method is loaded once, and features are opened once for each scale. UserError as of `pair`.
    """
    run, row = asked.run, asked.row
    cls = registry.get(row.partition("@")[0])
    reranker, as_run = cls(asked.options, resolve_device(device)), asked.as_run
    wanted = [_Asked(run, *_found(run, *of)) for of in names]
    for file in (file for one in wanted for file in (one.query.image, run.dataset.gallery[one.candidate])):
        if not file.is_file():
            raise UserError(f"{file}: no such image", hint="`show` needs both images where they were in the run")
    stored = [one.stored(row) if as_run else None for one in wanted]
    explains = cls.explain is not Reranker.explain
    if changes:
        require_pairs(row, reranker)
    again = [
        one
        for one, known in zip(wanted, stored, strict=True)
        if scores_pairs(reranker) and (explains or known is None or changes)
    ]
    seen, changed = dict[_Asked, _Scored](), dict[_Asked, tuple[_Scored, Changed]]()
    if again:
        reranker.load()
        with reread(run, row, _of(again), method, reranker, places) as plain:
            seen = {one: _scored(plain, plain.plain(one.candidate), one, reranker) for one in again}
        if changes:
            changed = _changed(asked, again, method, reranker, places, changes)
    rankings = run.rankings() if as_run else None
    found = []
    for one, known in zip(wanted, stored, strict=True):
        shown = changed[one][0] if one in changed else seen.get(one)
        explanation = None if shown is None else _explained(reranker, shown.images)
        scored = seen[one].score if one in seen else None
        found.append(
            Pair(
                asked.shown,
                one.query if shown is None else replace(one.query, box=shown.images[0].box),
                one.candidate,
                run.dataset.gallery[one.candidate],
                run.dataset.grades.get(one.query.id, {}).get(one.candidate, KINDS[-1]),
                known if scored is None else scored,
                *one.places(row, rankings),
                run.shortlist.header.k,
                explanation,
                None if shown is None else (shown.images[0].placed, shown.images[1].placed),
                (*_about_scores(row, reranker, known, scored, changes), *_about(explanation, shown)),
                changed[one][1] if one in changed else None,
                None if shown is None else shown.images[1].box,
                ((), ()) if shown is None else (shown.images[0].hidden, shown.images[1].hidden),
            )
        )
    return found


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


@dataclass(frozen=True)
class _Asked:
    """A query and a candidate that the run has."""

    run: Run
    query_id: str
    candidate: str

    @property
    def number(self) -> int:
        return self.run.shortlist.queries.index(self.query_id)

    @property
    def query(self) -> Query:
        return self.run.dataset.queries[self.number]

    @property
    def list_name(self) -> str:
        """Of the list that places are in."""
        return self.run.shortlist.list_for(main_difficulty(self.run.dataset))

    @property
    def near(self) -> tuple[str, ...]:
        """The candidates of the list, in the first stage's order."""
        shortlist = self.run.shortlist
        return tuple(shortlist.gallery[image] for image in shortlist.candidates(self.list_name, self.number))

    def stored(self, row: str) -> float | None:
        """The pair's score; None where it was not scored."""
        scores = self.run.scores
        of_pair = (scores["query"] == self.query_id) & (scores["candidate"] == self.candidate)
        found = scores[of_pair & (scores["method"] == row) & scores["list"].isin((UNION, self.list_name))]["score"]
        return float(found.iloc[0]) if len(found) else None

    def places(self, row: str, rankings: Rankings | None) -> tuple[int | None, int | None]:
        """Places from 1 in the first stage's list and in the row's ranking, where that is known."""
        if self.candidate not in self.near:
            return None, None
        before = self.near.index(self.candidate) + 1
        if rankings is None:
            return before, None
        ranking = rankings.ranking(row, main_difficulty(self.run.dataset), self.number)
        return before, [self.run.shortlist.gallery[image] for image in ranking].index(self.candidate) + 1


# --- what the method finds ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Scored:
    """The images of a pair, and their score."""

    images: tuple[Image, Image]  # query and candidate
    score: float


def _scored(rereading: Rereading, candidate: Image, one: _Asked, method: Reranker) -> _Scored:
    number = [query.id for query in rereading.dataset.queries].index(one.query_id)
    images = rereading.query(number), candidate
    (found,) = score(method, images[0].read, [images[1].read], [1.0])
    return _Scored(images, float(found))


def _about_scores(
    row: str, method: Reranker, stored: float | None, scored: float | None, changes: Changes
) -> Iterator[str]:
    """What must be known of a score: that it is another than the run's, or what it is not of."""
    if scored is not None and stored is not None and abs(scored - stored) > SAME * max(1.0, abs(stored)):
        yield f"The run has {stored:.6g}: code, weights, features or device are others now."
    if type(method).explain is Reranker.explain:
        yield f"{row} scores no pairs of local descriptors, so there are no matches to show."
    if (changes.query.hide or changes.candidate.hide) and "global" in method.needs():
        yield f"{row} reads global descriptors too, from which --hide hides nothing."


def _about(explanation: Explanation | Saliency | None, shown: _Scored | None) -> Iterator[str]:
    """What must be known to read an explanation, or to know why there is none."""
    if shown is None:
        return
    features = [image.placed for image in shown.images]
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
    asked: NamedRow, wanted: Sequence[_Asked], method: str, reranker: Reranker, places: Places, changes: Changes
) -> dict[_Asked, tuple[_Scored, Changed]]:
    """Both images as they are changed, their score, and the candidate's place among the query's other candidates.

    The others are as they were. They are scored again where the query or options are others than the run's. Of several
    scales, the images are of the one that has the pair's highest score.
    """
    run, row, rankings = asked.run, asked.row, asked.run.rankings()
    again = {one for one in wanted if one.candidate in one.near and (changes.query or not asked.as_run)}
    dataset = _of(wanted, [name for one in wanted if one in again for name in one.near])
    scored: dict[_Asked, list[_Scored]] = {one: [] for one in wanted}  # of each scale
    others: dict[_Asked, list[np.ndarray]] = {one: [] for one in again}  # (k,) scores of the list, of each scale
    for each in changes.each:
        candidates = {one.candidate for one in wanted}
        with reread(run, row, dataset, method, reranker, places, each, candidates) as rereading:
            for one in wanted:
                scored[one].append(_scored(rereading, rereading.candidate(one.candidate), one, reranker))
                if one in again:
                    read = [rereading.plain(image).read for image in one.near]
                    similarities = run.shortlist.similarities[one.list_name][one.number].tolist()
                    others[one].append(score(reranker, scored[one][-1].images[0].read, read, similarities))
    found = {}
    for one, of_scales in scored.items():
        best, after = max(of_scales, key=lambda of: of.score), None
        if one.candidate in one.near:
            known = others[one] if one in again else [rankings.scores(row, one.list_name, one.number)]
            values = np.maximum.reduce(known)
            values[one.near.index(one.candidate)] = best.score
            after = 1 + reranked(np.arange(len(values)), values).tolist().index(one.near.index(one.candidate))
        found[one] = best, Changed(changes.said, best.score, after)
    return found


def _explained(method: Reranker, images: tuple[Image, Image]) -> Explanation | Saliency | None:
    with kept_torch_flags():
        return method.explain(*(image.read.to(method.device) for image in images))


def _of(wanted: Sequence[_Asked], more: Sequence[str] = ()) -> Dataset:
    """The pairs' images and `more` of the gallery alone, under the keys that the run's whole data set has for them."""
    dataset, asked = wanted[0].run.dataset, {one.query_id: one.query for one in wanted}
    gallery = {name: dataset.gallery[name] for name in (*(one.candidate for one in wanted), *more)}
    gallery |= {query.id: query.image for query in asked.values() if dataset.gallery.get(query.id) == query.image}
    return replace(dataset, queries=tuple(asked.values()), gallery=gallery, grades={}, notes=())
