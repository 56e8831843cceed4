"""What a method keeps of images is made once an image, within a bound, and counted apart."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bench.cascade import REPLAYED, replay
from bench.conformance import batch_of, example
from bench.features import FeatureBatch, Features
from bench.features.sets import card_of
from bench.indexes import Indexes, keeps_index
from bench.journal import Journal, Record
from bench.record import IndexCost
from bench.report.tables import compare
from bench.reranker import Reranker
from bench.run import index_cost

CARD = card_of("xfeat")
BYTES = 8  # of what `Counting` keeps of an image
IMAGES = [example(n, CARD, n) for n in range(6)]


class Counting(Reranker):
    """Keeps the number of descriptors of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def needs(self) -> frozenset[str]:
        return frozenset({"local"})

    def index(self, image: Features) -> Mapping[str, Tensor]:
        self.made += 1
        return {"count": torch.tensor(len(image))}


class Two(Counting):
    """Reads two descriptors."""

    def descriptors_used(self, available: int) -> int:
        return min(available, 2)


def counts(batch: FeatureBatch) -> list[int]:
    assert batch.index is not None
    return [int(entry["count"]) for entry in batch.index]


@given(st.lists(st.lists(st.integers(0, 5), unique=True, min_size=1), max_size=12), st.integers(0, 7))
def test_whatever_is_asked_what_is_kept_is_right_and_never_more_than_the_bound(
    queries: list[list[int]], held: int
) -> None:
    indexes, method, images = Indexes(held * BYTES), Counting(), 0
    for wanted in queries:
        batch, made = indexes.batch(method, [str(i) for i in wanted], batch_of([IMAGES[i] for i in wanted]))
        assert counts(batch) == wanted
        assert indexes.bytes <= held * BYTES and made.bytes == made.images * BYTES
        images += made.images
    distinct = len({i for wanted in queries for i in wanted})
    assert images == method.made >= distinct
    assert held < distinct or images == distinct


def test_the_images_used_longest_ago_go_first() -> None:
    indexes, method = Indexes(2 * BYTES), Counting()
    made = [indexes.batch(method, [str(i)], batch_of([IMAGES[i]]))[1].images for i in (1, 2, 1, 3, 1, 2)]
    assert made == [1, 1, 0, 1, 0, 1]


def test_methods_share_nothing_and_each_is_given_as_many_descriptors_as_it_reads() -> None:
    indexes = Indexes()
    for method in (Counting(), Two()):
        batch, made = indexes.batch(method, ["a"], batch_of([IMAGES[5]]))
        assert (counts(batch), made.images) == ([method.descriptors_used(5)], 1)


def test_another_process_begins_with_nothing() -> None:
    indexes = Indexes(4 * BYTES)
    indexes.batch(Counting(), ["a"], batch_of([IMAGES[1]]))
    again = pickle.loads(pickle.dumps(indexes))
    assert (indexes.bytes, again.bytes) == (BYTES, 0)


def test_places_of_a_batch_keep_what_belongs_to_them() -> None:
    whole = batch_of(IMAGES, truth=True).with_index([{"count": torch.tensor(len(image))} for image in IMAGES])
    part = whole.at([4, 1])
    assert [len(image) for image in part] == counts(part) == [4, 1]
    assert torch.equal(part.similarities, whole.similarities[[4, 1]])
    assert part.positives is not None and part.positives.tolist() == [True, False]
    with pytest.raises(ValueError, match="6 images but 1 of them indexed"):
        whole.with_index([{}])


def test_only_a_method_that_says_so_keeps_something() -> None:
    assert keeps_index(Counting()) and not keeps_index(Reranker())


# --- in a run -----------------------------------------------------------------------------------------------------

KEEPS = """
def index(self, image):
    return {"sum": image.descriptors.sum(dim=0), "more": torch.zeros(100)}
def score(self, query, candidates):
    assert candidates.index is not None and len(candidates.index) == len(candidates)
    found = torch.stack([entry["sum"] for entry in candidates.index])
    assert torch.equal(found, torch.stack([image.descriptors.sum(dim=0) for image in candidates]))
    return found @ query.descriptors.sum(dim=0)
"""
KIB = (64 + 100) * 4 / 1024


@pytest.fixture
def kept(add_method: Callable) -> str:
    add_method("keeps", KEEPS, {"local"})
    return "keeps"


def test_a_run_makes_it_once_an_image_and_counts_its_time_and_bytes_apart(
    run: Callable, instances: Path, kept: str
) -> None:
    done = run(instances, f"{kept},mnn", top_k=5).run
    assert not done.record.failed and list(done.record.indexed) == [kept]
    assert done.record.indexed[kept].kib == done.record.costs[kept].kib_per_image == pytest.approx(KIB)
    journal = Journal(done.folder / "journal.jsonl")
    found = {row: [journal.read(row, query) for query in done.shortlist.queries] for row in (kept, "mnn")}
    images = {row: sum(record.indexed for record in records if record) for row, records in found.items()}
    candidates = set(done.scores[done.scores.method == kept].candidate)
    assert images == {kept: len(candidates), "mnn": 0} and len(candidates) < 9 * 5
    assert done.record.indexed[kept] == index_cost(Keeping(1), filter(None, found[kept]))  # type: ignore[arg-type]
    notes = [note for note in compare([done]).notes if "indexed" in note]
    assert len(notes) == 1 and notes[0].startswith(f"{kept}: ") and f"{KIB:.1f} KiB" in notes[0]


def test_a_stage_of_a_cascade_keeps_what_it_would_keep_alone(run: Callable, instances: Path, kept: str) -> None:
    done = run(instances, f"{kept},mnn,cascade", top_k=5, options={"cascade": {"stages": f"{kept},mnn:3"}}).run
    assert not done.record.failed
    sizes = {row: cost.kib_per_image for row, cost in done.record.costs.items()}
    assert done.record.indexed["cascade"].kib == done.record.indexed[kept].kib
    assert sizes["cascade"] == pytest.approx(sizes["mnn"] + sizes[kept])
    again = replay([done], [kept, "mnn:3"])
    assert again is not None
    assert vars(again.record.costs[REPLAYED]) == pytest.approx(vars(done.record.costs["cascade"]))
    assert again.record.indexed[REPLAYED] == done.record.indexed[kept]


class Keeping:
    """A row of so many methods that keep something."""

    def __init__(self, methods: int):
        self.indexing = (Counting(),) * methods


@pytest.mark.parametrize(("methods", "cost"), [(1, IndexCost(2.0, 1.0)), (2, IndexCost(4.0, 2.0))])
def test_the_cost_of_an_image_is_that_of_all_methods_of_a_row(methods: int, cost: IndexCost) -> None:
    records = [
        Record("m", str(images), {}, 1.0, 1.0, 1.0, indexed=images, index_bytes=1024 * images, index_ms=2.0 * images)
        for images in (4, 0, 2)
    ]
    assert index_cost(Keeping(methods), records) == cost  # type: ignore[arg-type]
    assert str(index_cost(Keeping(methods), [])) == "IndexCost(ms=nan, kib=nan)"  # type: ignore[arg-type]
