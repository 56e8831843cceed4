"""The shortlist is the same for every reranker, and its seal says so."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.datasets import Dataset, Query
from bench.errors import UserError
from bench.shortlist import BLIND_LIST, Header, Shortlist, first_stage, reranked, search

GALLERY = tuple("abcdefgh")


def dataset(queries: tuple[str, ...] = ("q1", "q2"), protocol: str = "revisited") -> Dataset:
    grades = {"q1": {"a": "easy", "b": "hard", "c": "junk"}, "q2": {"d": "easy", "h": "junk"}}
    return Dataset(
        "tiny",
        protocol,
        "v1",
        tuple(Query(q, Path(f"{q}.png")) for q in queries),
        {i: Path(f"{i}.png") for i in GALLERY},
        {q: grades[q] for q in queries if q in grades},
    )


def similarities(seed: int = 0, queries: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).random((queries, len(GALLERY))).astype(np.float32)


def make(values: np.ndarray | None = None, of: Dataset | None = None, **changed: object) -> Shortlist:
    given_ = {"features": "f", "features_content": "c0", "policy": "blind", "k": 4, **changed}
    return first_stage(of or dataset(), similarities() if values is None else values, **given_)  # type: ignore[arg-type]


CHANGES: dict[str, dict] = {
    "k": {"k": 5},
    "policy": {"policy": "paper"},
    "features": {"features": "g"},
    "feature contents": {"features_content": "c1"},
    "data set": {"of": dataclasses.replace(dataset(), name="other")},
    "image set": {"of": dataclasses.replace(dataset(), image_set="v2")},
    "protocol": {"of": dataset(protocol="instance")},
    "query crop": {
        "of": dataclasses.replace(
            dataset(), queries=(Query("q1", Path("q1.png"), (0, 0, 5, 5)), Query("q2", Path("q2.png")))
        )
    },
    "query ids": {
        "of": dataclasses.replace(dataset(), queries=(Query("q1", Path("q1.png")), Query("q3", Path("q2.png"))))
    },
    "query order": {"of": dataset(("q2", "q1"))},
    "gallery order": {"of": dataclasses.replace(dataset(), gallery={i: Path(i) for i in reversed(GALLERY)})},
}


@pytest.mark.parametrize("what", list(CHANGES))
def test_the_seal_changes_with_everything_it_covers(what: str) -> None:
    assert make(**CHANGES[what]).seal != make().seal


def test_the_seal_changes_with_one_similarity_of_one_candidate() -> None:
    values = similarities()
    best = int(values[0].argmax())
    values[0, best] = np.nextafter(values[0, best], np.float32(2))
    changed = make(values)
    assert np.array_equal(changed.rankings[BLIND_LIST][0], make().rankings[BLIND_LIST][0])
    assert changed.seal != make().seal


def test_the_seal_changes_with_the_order_of_the_tail() -> None:
    values = similarities()
    low = np.argsort(values[0])[:2]
    values[0, low] = values[0, low[::-1]]
    assert make(values).seal != make().seal


def test_the_seal_does_not_change_otherwise() -> None:
    assert make().seal == make().seal
    moved = dataclasses.replace(dataset(), gallery={i: Path("elsewhere") / i for i in GALLERY})
    assert make(of=moved).seal == make().seal  # where the files lie is not what they are


@given(st.integers(0, 10_000), st.integers(1, 8), st.sampled_from(["blind", "paper"]))
def test_a_saved_shortlist_is_the_same_when_loaded(
    tmp_path_factory: pytest.TempPathFactory, seed: int, k: int, policy: str
) -> None:
    path = tmp_path_factory.mktemp("shortlist") / "s.npz"
    made = make(similarities(seed), k=k, policy=policy)
    made.save(path)
    loaded = Shortlist.load(path)
    assert loaded.header == made.header and loaded.seal == made.seal
    assert (loaded.queries, loaded.gallery) == (made.queries, made.gallery)
    assert np.array_equal(loaded.similarities, made.similarities)
    assert all(
        np.array_equal(a, b)
        for name in made.rankings
        for a, b in zip(made.rankings[name], loaded.rankings[name], strict=True)
    )


def tampered(path: Path, **changes: np.ndarray) -> None:
    with np.load(path) as file:
        content = {key: file[key] for key in file.files}
    np.savez(path, **{**content, **{key.replace("__", "/"): value for key, value in changes.items()}})


def test_a_tampered_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    make().save(path)
    with np.load(path) as file:
        ranking, values, about = file["ranking/any/0"], file["similarities"], str(file["about"])
    swapped = ranking.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    raised = values.copy()
    raised[1] += 0.5
    for change in (
        {"ranking__any__0": swapped},
        {"similarities": raised},
        {"about": np.array(about.replace('"k": 4', '"k": 3'))},
        {"about": np.array(about.replace('"q1"', '"q9"'))},
    ):
        make().save(path)
        tampered(path, **change)
        with pytest.raises(UserError, match="seal"):
            Shortlist.load(path)


@pytest.mark.parametrize("damage", ["empty", "garbage", "cut", "flipped", "missing array", "absent"])
def test_a_damaged_file_is_refused_with_its_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "s.npz"
    make().save(path)
    whole = path.read_bytes()
    if damage == "missing array":
        with np.load(path) as file:
            content = {key: file[key] for key in file.files if key != "ranking/any/1"}
        np.savez(path, **content)
    elif damage == "absent":
        path.unlink()
    else:
        path.write_bytes(
            {
                "empty": b"",
                "garbage": b"not an archive" * 9,
                "cut": whole[: len(whole) // 2],
                "flipped": whole[:200] + bytes([whole[200] ^ 0xFF]) + whole[201:],
            }[damage]
        )
    with pytest.raises(UserError, match=r"s.npz"):
        Shortlist.load(path)


def test_a_repeated_image_is_refused() -> None:
    good = make()
    twice = good.rankings[BLIND_LIST][0].copy()
    twice[1] = twice[0]
    with pytest.raises(UserError, match="repeats"):
        dataclasses.replace(good, rankings={BLIND_LIST: (twice, good.rankings[BLIND_LIST][1])})
    beyond = good.rankings[BLIND_LIST][0].copy()
    beyond[0] = len(GALLERY)
    with pytest.raises(UserError, match="not there"):
        dataclasses.replace(good, rankings={BLIND_LIST: (beyond, good.rankings[BLIND_LIST][1])})


def test_k_beyond_the_gallery_is_refused_with_what_is_possible() -> None:
    with pytest.raises(UserError) as refusal:
        make(k=9)
    assert "--top-k 8" in str(refusal.value.hint)
    with pytest.raises(UserError, match="at least 1"):
        make(k=0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_similarities_that_are_not_finite_are_refused(value: float) -> None:
    values = similarities()
    values[1, 3] = value
    with pytest.raises(UserError, match="not finite"):
        make(values)


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(UserError, match="blind or paper"):
        Header("d", "v", "revisited", "f", "c", "papper", 4, False)  # type: ignore[arg-type]


def test_blind_has_one_list_for_every_difficulty_and_knows_no_ground_truth() -> None:
    blind = make()
    assert list(blind.rankings) == [BLIND_LIST]
    assert {blind.list_for(d) for d in dataset().difficulties} == {BLIND_LIST}
    without = dataclasses.replace(dataset(), grades={})
    assert make(of=without).seal == blind.seal
    assert np.array_equal(blind.rankings[BLIND_LIST][0], np.argsort(-similarities()[0], kind="stable"))


def test_paper_moves_what_a_difficulty_ignores_behind_and_keeps_the_order_otherwise() -> None:
    values = np.tile(np.linspace(1, 0.3, 8, dtype=np.float32), (2, 1))  # a b c d e f g h for both queries
    paper = make(values, policy="paper")
    named = {d: ["".join(GALLERY[i] for i in ranking) for ranking in paper.rankings[d]] for d in paper.rankings}
    # q1: a easy, b hard, c junk; q2: d easy, h junk
    assert named == {
        "Easy": ["adefghbc", "abcdefgh"],
        "Medium": ["abdefghc", "abcdefgh"],
        "Hard": ["bdefghac", "abcefgdh"],
    }
    assert [GALLERY[i] for i in paper.union(0)] == list("adefb")  # of the first four of each list


def test_a_query_is_never_its_own_candidate() -> None:
    own = Dataset(
        "self",
        "instance",
        "v",
        tuple(Query(i, Path(i)) for i in GALLERY),
        {i: Path(i) for i in GALLERY},
        {i: {} for i in GALLERY},
    )
    values = np.eye(8, dtype=np.float32)
    made = make(values, of=own, k=7)
    for query in range(8):
        ranking = made.rankings[BLIND_LIST][query]
        assert query not in ranking and len(ranking) == 7
    with pytest.raises(UserError, match="fewer than"):
        make(values, of=own, k=8)


def test_ties_keep_the_gallery_order() -> None:
    values = np.array([[0.5] * 8, [0.1, 0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.9]], dtype=np.float32)
    made = make(values)
    assert made.rankings[BLIND_LIST][0].tolist() == list(range(8))
    assert made.rankings[BLIND_LIST][1].tolist() == [1, 3, 5, 7, 0, 2, 4, 6]


@given(st.integers(1, 8), st.lists(st.integers(-2, 2), min_size=8, max_size=8), st.permutations(range(8)))
def test_reranking_sorts_the_first_k_stably_and_leaves_the_tail(k: int, scores: list[int], ranking: list[int]) -> None:
    first = np.array(ranking)
    whole = reranked(first, k, scores[:k])
    assert whole[:k].tolist() == [ranking[i] for i in sorted(range(k), key=lambda i: -scores[i])]  # sorted() is stable
    assert whole[k:].tolist() == ranking[k:]


def test_long_lists_of_ties_keep_their_order() -> None:
    """Sorts that are not stable keep short lists in order by chance (numpy: up to 16)."""
    first = np.random.default_rng(0).permutation(400)
    assert np.array_equal(reranked(first, 300, np.zeros(300)), first)
    scores = np.random.default_rng(1).integers(0, 3, 300)
    by_hand = [int(image) for score in (2, 1, 0) for image in first[:300][scores == score]]
    assert reranked(first, 300, scores)[:300].tolist() == by_hand
    many = Dataset("many", "revisited", "v", (Query("q", Path("q")),), {f"{i:03d}": Path("x") for i in range(400)}, {})
    ranking = make(np.zeros((1, 400), np.float32), of=many).rankings[BLIND_LIST][0]
    assert ranking.tolist() == list(range(400))


def test_reranking_refuses_another_number_of_scores() -> None:
    with pytest.raises(ValueError, match="3 scores for a shortlist of 4"):
        reranked(np.arange(8), 4, [1, 2, 3])


@pytest.mark.parametrize("seed", range(3))
def test_search_equals_the_inner_products_of_numpy(seed: int) -> None:
    draw = np.random.default_rng(seed)
    queries, gallery = (draw.normal(size=(n, 64)).astype(np.float32) for n in (5, 300))
    queries, gallery = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (queries, gallery))
    assert np.abs(search(queries, gallery) - queries @ gallery.T).max() < 1e-5
