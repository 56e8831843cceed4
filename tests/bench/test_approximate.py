"""An approximate search finds what its index proposes, in the exact order; how much it misses is measured and said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from bench import approximate
from bench.approximate import BY, FEWEST, Hnsw, Index, IvfPq, Recall, opened, parse
from bench.errors import UserError
from bench.report.check import _asking_for
from bench.results import read_runs
from bench.search import Dense, Vectors, search
from bench.setup import Setup

SMALL = IvfPq(lists=8, probes=3, codes=4, bits=3, refine=4)
SMALLEST = FEWEST * 8  # images that it can be built of
KINDS = {"ivfpq": SMALL, "hnsw": Hnsw(links=4, construction=8, breadth=4)}
D = 16

each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def unit(rows: int, seed: int) -> np.ndarray:
    """(rows, D) float32 of unit norm, around 20 centres."""
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(20, D))
    found = centres[draw.integers(0, 20, rows)] + 0.5 * draw.normal(size=(rows, D))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


GALLERY, QUERIES = unit(600, 0), unit(150, 1)
SOURCE = Dense(QUERIES, Vectors.of(GALLERY))


@each_kind
def test_what_is_found_stands_in_the_exact_order_with_exact_similarities(kind: Any, tmp_path: Path) -> None:
    found = opened(kind, SOURCE, tmp_path, "a").search(SOURCE, 10)
    exact = (GALLERY.astype(np.float64) @ QUERIES.astype(np.float64).T).T.astype(np.float32)
    for query, (images, values) in enumerate(zip(found.order, found.similarities, strict=True)):
        assert len(set(images.tolist())) == 10
        assert values.tolist() == exact[query, images].tolist() == sorted(values.tolist(), reverse=True)


@each_kind
def test_recall_is_the_share_of_the_exact_lists_that_is_found(kind: Any, tmp_path: Path) -> None:
    """Recomputed with no code of the search: by sorting every similarity, on the queries that the seed draws."""
    index, own = opened(kind, SOURCE, tmp_path, "a"), np.full(len(QUERIES), -1)
    recall = index.recall(SOURCE, 10, own)
    drawn = np.sort(np.random.default_rng(0).permutation(150)[:100])
    found = index.search(SOURCE, 10).order
    shares = []
    for query in drawn:
        exact = np.argsort(-(GALLERY.astype(np.float64) @ QUERIES[query].astype(np.float64)), kind="stable")[:10]
        shares.append(len(set(exact.tolist()) & set(found[query].tolist())) / 10)
    assert recall == Recall(float(np.mean(shares)), 100, 10)
    assert 0.3 < recall.share < 1  # else it would not tell one list from another


@each_kind
def test_the_querys_own_image_is_left_out_of_both_lists(kind: Any, tmp_path: Path) -> None:
    source, own = Dense(GALLERY[:50], Vectors.of(GALLERY)), np.arange(50)
    index = opened(kind, source, tmp_path, "a")
    assert all(query not in images for query, images in enumerate(index.search(source, 10, own=own).order))
    assert index.recall(source, 10, own).share > 0.5 and index.recall(source, 10, own).queries == 50


def test_an_index_that_proposes_everything_finds_the_exact_lists_bit_for_bit(tmp_path: Path) -> None:
    everything = IvfPq(lists=8, probes=8, codes=4, bits=3, refine=600)
    index, own = opened(everything, SOURCE, tmp_path, "a"), np.full(len(QUERIES), -1)
    exact, found = search(QUERIES, Vectors.of(GALLERY), 30), index.search(SOURCE, 30)
    assert np.array_equal(found.order, exact.order) and np.array_equal(found.similarities, exact.similarities)
    assert index.recall(SOURCE, 30, own).share == 1


def test_graded_images_that_are_not_found_have_no_rank(tmp_path: Path) -> None:
    index = opened(SMALL, SOURCE, tmp_path, "a")
    found = index.search(SOURCE, 10)
    outside = np.setdiff1d(np.arange(600), found.order[0])[:2]
    probes = [np.array([found.order[0][3], outside[0], found.order[0][0], outside[1]])] + [np.array([], int)] * 149
    assert index.search(SOURCE, 10, probes=probes).ranks[0].tolist() == [3, -1, 0, -1]


def test_queries_without_features_have_the_galleries_order_as_in_an_exact_search(tmp_path: Path) -> None:
    source = Dense(np.zeros((2, D), np.float32), Vectors.of(GALLERY))
    found = opened(SMALL, source, tmp_path, "a").search(source, 4, own=np.array([-1, 1]))
    assert found.order.tolist() == [[0, 1, 2, 3], [0, 2, 3, 4]]


@each_kind
def test_an_index_is_built_once_and_is_the_same_whoever_builds_it(kind: Any, tmp_path: Path) -> None:
    first = opened(kind, SOURCE, tmp_path / "a", "features")
    again, elsewhere = (opened(kind, SOURCE, tmp_path / name, "features") for name in "ab")
    assert first.built and elsewhere.built and not again.built
    lists = [index.search(SOURCE, 10).order.tolist() for index in (first, again, elsewhere)]
    assert lists[0] == lists[1] == lists[2]
    assert first.bytes_per_image == again.bytes_per_image > 0


def test_other_descriptors_and_other_options_have_an_index_of_their_own(tmp_path: Path) -> None:
    changed = GALLERY.copy()
    changed[0] = changed[1]
    others = [
        (SMALL, SOURCE, "other features"),
        (IvfPq(lists=8, probes=4, codes=4, bits=3, refine=4), SOURCE, "features"),
        (SMALL, Dense(QUERIES, Vectors.of(changed)), "features"),  # whitened otherwise, say
    ]
    opened(SMALL, SOURCE, tmp_path, "features")
    assert all(opened(kind, source, tmp_path, identity).built for kind, source, identity in others)


def test_a_damaged_index_is_built_anew(tmp_path: Path) -> None:
    opened(SMALL, SOURCE, tmp_path, "features")
    (file,) = tmp_path.iterdir()
    for content in (file.read_bytes()[:200], b"", b"text"):
        file.write_bytes(content)
        assert opened(SMALL, SOURCE, tmp_path, "features").built
        assert not opened(SMALL, SOURCE, tmp_path, "features").built


def test_a_gallery_too_small_to_train_is_refused_with_what_it_takes() -> None:
    assert SMALL.resolved(SMALLEST, D).lists == 8
    with pytest.raises(UserError, match=f"gallery of {SMALLEST - 1} images is too small .*, which takes {SMALLEST}"):
        SMALL.resolved(SMALLEST - 1, D)
    with pytest.raises(UserError, match=r"a gallery of 9983 images is too small .*, which takes 9984") as refusal:
        IvfPq().resolved(9983, 1280)
    assert "--search blocks" in str(refusal.value.hint)
    with pytest.raises(UserError, match=r"codes=5: descriptors of 16 values cannot be parted") as refusal:
        IvfPq(codes=5).resolved(20_000, D)
    assert refusal.value.hint == "codes=16 divides them"


def test_options_that_are_not_given_follow_the_gallery() -> None:
    assert IvfPq().resolved(1_000_000, 1280).name == "ivfpq:lists=4000:probes=32:codes=64:bits=8:refine=8"
    assert IvfPq().resolved(9984, 1280).name == "ivfpq:lists=256:probes=32:codes=64:bits=8:refine=8"
    assert IvfPq(lists=4).resolved(10_000, 100).name == "ivfpq:lists=4:probes=4:codes=50:bits=8:refine=8"
    assert Hnsw().resolved(10, 4).name == "hnsw:links=32:construction=200:breadth=256"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("exactly", "unknown --search: 'exactly'"),
        ("blocks:probes=2", "unknown --search: 'blocks:probes=2'"),
        ("ivfpq:probe=2", "unknown option of --search ivfpq 'probe'"),
        ("ivfpq:8", "'8', expected OPTION=VALUE"),
        ("ivfpq:probes=0", "probes=0, expected 1 or more"),
        ("ivfpq:bits=13", "bits=13, expected 1 to 12"),
        ("hnsw:links=many", "--search hnsw:links=many: expected int"),
    ],
)
def test_what_names_no_search_is_refused_before_anything_is_done(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Setup("nowhere", search=text)


@pytest.mark.parametrize("kind", [IvfPq(3, 5, 7, 4, 2), IvfPq(), Hnsw(5, 6, 7)])
def test_a_name_is_read_as_what_it_names(kind: Any) -> None:
    assert parse(kind.name) == kind


def test_too_few_proposals_are_an_error_that_says_so(tmp_path: Path) -> None:
    narrow = IvfPq(lists=8, probes=1, codes=4, bits=3)
    with pytest.raises(UserError, match=r"a query finds [0-9]+ images, 500 are wanted") as refusal:
        opened(narrow, SOURCE, tmp_path, "a").search(SOURCE, 500)
    assert "--search ivfpq:probes=4" in str(refusal.value.hint)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@each_kind
def test_descriptors_that_are_no_numbers_are_named(kind: Any, value: float, tmp_path: Path) -> None:
    gallery = GALLERY.copy()
    gallery[123, 4] = value
    with pytest.raises(UserError, match="gallery image 123 gives similarities that are not finite"):
        opened(kind, Dense(QUERIES, Vectors.of(gallery)), tmp_path, "a")
    index = opened(kind, SOURCE, tmp_path, "a")
    with pytest.raises(UserError, match="query 123 gives similarities that are not finite"):
        index.search(Dense(gallery[:150], Vectors.of(GALLERY)), 5)


def test_a_recall_that_cannot_be_is_refused() -> None:
    for share, queries in ((1.2, 5), (0.5, 0), (float("nan"), 5)):
        with pytest.raises(ValueError, match="expected a share in 0 to 1"):
            Recall(share, queries, 10)


# --- a whole run --------------------------------------------------------------------------------------------------


@pytest.fixture
def city(tmp_path: Path, cli: Callable[..., Result]) -> tuple[str, ...]:
    """600 images and 30 queries that are named and nowhere, with descriptors of their own; options that name them."""
    root, log = tmp_path / "city", tmp_path / "log"
    for part, rows in (("database", GALLERY), ("queries", QUERIES[:30])):
        (root / part).mkdir(parents=True)
        log.mkdir(exist_ok=True)
        np.save(log / f"{part}_descriptors.npy", rows)
        names = [f"@{500 + 10 * number}@100@17@T@{part}{number}@.jpg" for number in range(len(rows))]
        (root / f"{part}_images_paths.txt").write_text("\n".join(names))
    here = ("-d", f"vpr:{root}", "--cache-dir", str(tmp_path / "cache"))
    done = cli("features", "import", "vpr-descriptors", str(log), *here)
    assert done.exit_code == 0, done.output
    return (*here, "-f", "vpr-descriptors")


SEARCH = "ivfpq:lists=8:probes=1:codes=2:bits=3:refine=1"
RUN = ("run", "-m", "identity,aqe", "-k", "10")


def test_a_run_records_its_recall_and_says_it_in_the_tables_first_line(
    cli: Callable[..., Result], city: tuple[str, ...], tmp_path: Path
) -> None:
    done = cli(*RUN, *city, "--search", SEARCH, "--runs", str(tmp_path / "runs"))
    assert done.exit_code == 0, done.output
    (run,) = read_runs(tmp_path / "runs").finished
    found = run.record.first_stage.approximate
    assert found is not None and found.how == SEARCH and found.build_ms is not None and found.build_ms > 0
    assert run.shortlist.header.first_stage == f"vpr-descriptors{BY}{SEARCH}"
    exact = search(QUERIES[:30], Vectors.of(GALLERY), 10).order
    gallery = list(run.shortlist.gallery)
    numbers = np.array([int(name.split("database")[2].split("@")[0]) for name in gallery])
    listed = numbers[run.shortlist.lists["any"]]
    shares = [np.isin(one, other).mean() for one, other in zip(exact, listed, strict=True)]
    assert found.recall == Recall(float(np.mean(shares)), 30, 10) and found.recall.share < 1
    said = " ".join(done.output.split())
    assert f"first stage vpr-descriptors by {SEARCH} (recall {100 * found.recall.share:.1f} %)" in said
    assert "graded images that it does not list are not retrieved" in said
    again = cli(*RUN, *city, "--search", SEARCH, "--runs", str(tmp_path / "runs"))
    assert "already finished" in again.output


def test_exact_and_approximate_lists_have_seals_of_their_own(
    cli: Callable[..., Result], city: tuple[str, ...], tmp_path: Path
) -> None:
    everything = "ivfpq:lists=8:probes=8:codes=4:bits=3:refine=600"
    for option in ("blocks", "faiss", everything):
        done = cli(*RUN, *city, "--search", option, "--runs", str(tmp_path / option.partition(":")[0]))
        assert done.exit_code == 0, done.output
    blocks, faiss, index = (read_runs(tmp_path / name).finished[0] for name in ("blocks", "faiss", "ivfpq"))
    assert blocks.seal == faiss.seal != index.seal
    assert np.array_equal(blocks.shortlist.lists["any"], index.shortlist.lists["any"])  # it found all of them
    assert index.record.first_stage.approximate.recall.share == 1  # type: ignore[union-attr]
    assert "approximate" not in json.loads(next(tmp_path.glob("blocks/*/run.json")).read_text())["first_stage"]
    here, there = (run.record.first_stage.kib_per_image for run in (blocks, index))
    assert here is not None and there is not None and there > here


def test_first_stages_compares_them_and_names_what_is_refused(
    cli: Callable[..., Result], city: tuple[str, ...], instances: Path
) -> None:
    where = city[:-2]
    done = cli("first-stages", *where, "--first-stage", "vpr-descriptors", "-k", "10", "--search", SEARCH)
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "% of the 10 images of the exact lists, mean of 30 queries" in said
    small = cli("first-stages", "-d", f"folder:{instances}", "--first-stage", "gem-lite0", "--search", "ivfpq")
    assert small.exit_code == 1 and "a gallery of 9 images is too small to train" in " ".join(small.output.split())
    lists = cli(*RUN, "-d", f"folder:{instances}", "--shortlist", "theirs.run", "--search", "hnsw")
    assert lists.exit_code == 1 and "with --shortlist the candidates are there already" in " ".join(
        lists.output.split()
    )
    kernel = cli(*RUN, "-d", f"folder:{instances}", "--first-stage", "asmk@xfeat", "--search", "hnsw")
    assert kernel.exit_code == 1 and "it searches global descriptors alone" in " ".join(kernel.output.split())


def test_the_command_that_is_missing_names_the_search() -> None:
    assert _asking_for(f"gem-lite0{BY}{SEARCH}") == f" --first-stage gem-lite0 --search {SEARCH}"
    assert _asking_for("gem-lite0") == " --first-stage gem-lite0"
    assert _asking_for(f"gem-lite0{BY}nothing") == _asking_for("theirs.run") == ""


def test_a_full_disk_is_the_users_to_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        opened(SMALL, SOURCE, tmp_path / "file" / "indexes", "a")
    assert isinstance(opened(SMALL, SOURCE, tmp_path / approximate.FOLDER, "a"), Index)
