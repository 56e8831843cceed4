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
from bench.search import Dense, Vectors
from bench.shortlist import BLIND_LIST, Graded, Header, Shortlist, first_stage, reranked

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
    given_ = {"name": "f", "content": "c0", "policy": "blind", "k": 4, **changed}
    values = similarities() if values is None else values
    # the inner products with unit queries are the values themselves
    return first_stage(of or dataset(), Dense(np.eye(len(values)), Vectors.of(values.T)), **given_)  # type: ignore[arg-type]


def named(made: Shortlist, query: int, of: str = BLIND_LIST) -> str:
    """The letters of a query's candidates."""
    return "".join(made.gallery[i] for i in made.candidates(of, query))


CHANGES: dict[str, dict] = {
    "k": {"k": 5},
    "policy": {"policy": "paper"},
    "first stage": {"name": "g"},
    "contents of the first stage": {"content": "c1"},
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
    assert named(changed, 0) == named(make(), 0)
    assert changed.seal != make().seal


def test_what_stands_behind_the_candidates_is_not_sealed_but_is_kept() -> None:
    values = np.tile(np.linspace(1, 0.3, 8, dtype=np.float32), (2, 1))  # a b c d e f g h for both queries
    moved = values.copy()
    moved[1, 7] = 0.55  # h, junk of the second query, between e and f
    a, b = make(values), make(moved)
    assert a.seal == b.seal
    assert [a.gallery[i] for i in a.graded.of(1)[0]] == ["d", "h"]
    assert (a.graded.of(1)[1].tolist(), b.graded.of(1)[1].tolist()) == ([3, 7], [3, 5])


def test_positives_behind_the_candidates_keep_their_ranks_without_the_ignored() -> None:
    values = np.tile(np.linspace(1, 0.3, 8, dtype=np.float32), (2, 1))[:, ::-1]  # h g f e d c b a
    made = make(np.ascontiguousarray(values))  # candidates h g f e; of q1: a easy, b hard, c junk
    a, b, c = (made.gallery.index(letter) for letter in "abc")
    assert made.tail(BLIND_LIST, 0, [a, b], [c]).tolist() == [5, 6]
    assert made.tail(BLIND_LIST, 0, [a], [b, c]).tolist() == [5]
    assert made.tail(BLIND_LIST, 0, [made.gallery.index("h"), b], []).tolist() == [6]  # h is a candidate
    assert make(np.ascontiguousarray(values), k=8).tail(BLIND_LIST, 0, [a, b], [c]).tolist() == []


def test_a_shortlist_names_only_candidates_and_images_with_a_grade() -> None:
    values = np.tile(np.linspace(1, 0.3, 8, dtype=np.float32), (2, 1))
    made = make(values, k=2)
    assert made.gallery == tuple("abcdh") and made.header.gallery_size == 8
    assert [named(made, q) for q in (0, 1)] == ["ab", "ab"]


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
    for name in made.lists:
        assert np.array_equal(loaded.lists[name], made.lists[name])
        assert np.array_equal(loaded.similarities[name], made.similarities[name])
    for what in ("offsets", "images", "ranks"):
        assert np.array_equal(getattr(loaded.graded, what), getattr(made.graded, what))


def tampered(path: Path, **changes: np.ndarray) -> None:
    with np.load(path) as file:
        content = {key: file[key] for key in file.files}
    np.savez(path, **{**content, **{key.replace("__", "/"): value for key, value in changes.items()}})


def test_a_tampered_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    make().save(path)
    with np.load(path) as file:
        ranking, values, about = file["list/any"], file["similarities/any"], str(file["about"])
        ranks = file["graded/ranks"]
    swapped = ranking.copy()
    swapped[0, [0, 1]] = swapped[0, [1, 0]]
    raised = values.copy()
    raised[1] += 0.5
    for change in (
        {"list__any": swapped},
        {"similarities__any": raised},
        {"graded__ranks": ranks + 1},
        {"about": np.array(about.replace('"policy": "blind"', '"policy": "paper"'))},
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
            content = {key: file[key] for key in file.files if key != "list/any"}
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
    twice, beyond = good.lists[BLIND_LIST].copy(), good.lists[BLIND_LIST].copy()
    twice[0, 1] = twice[0, 0]
    with pytest.raises(UserError, match="'q1' repeats"):
        dataclasses.replace(good, lists={BLIND_LIST: twice})
    beyond[1, 0] = len(GALLERY)
    with pytest.raises(UserError, match="'q2' repeats an image or names one that is not there"):
        dataclasses.replace(good, lists={BLIND_LIST: beyond})


def test_values_that_do_not_fit_together_are_refused() -> None:
    good = make()
    for change in (
        {"lists": {BLIND_LIST: good.lists[BLIND_LIST][:1]}},
        {"lists": {"Easy": good.lists[BLIND_LIST]}},
        {"similarities": {BLIND_LIST: good.similarities[BLIND_LIST][:, :3]}},
        {"queries": ("q1",)},
    ):
        with pytest.raises(ValueError, match=r"shapes|lists"):
            dataclasses.replace(good, **change)
    for offsets in ([0, 2, 1], [1, 2], [], [0, 4]):
        with pytest.raises(ValueError, match=r"offsets|graded"):
            Graded(np.array(offsets), np.zeros(3, int), np.zeros(3, int))


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
    with pytest.raises(UserError, match=rf"gallery image '{list(dataset().gallery)[3]}' of the features .* not finite"):
        make(values)


def test_a_list_whose_similarity_is_not_finite_is_named_with_its_place() -> None:
    made = make()
    made.similarities[BLIND_LIST][1, 2] = np.nan
    with pytest.raises(UserError, match=f"list {BLIND_LIST!r} of query 'q2': the similarity at place 3 is not finite"):
        Shortlist(made.header, made.queries, made.gallery, made.lists, made.similarities, made.graded)


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(UserError, match="blind or paper"):
        Header("d", "v", "revisited", "f", "c", "papper", 4, False, 8, "g")  # type: ignore[arg-type]


def test_blind_has_one_list_for_every_difficulty_and_knows_no_ground_truth() -> None:
    blind = make()
    assert list(blind.lists) == [BLIND_LIST]
    assert {blind.list_for(d) for d in dataset().difficulties} == {BLIND_LIST}
    without = dataclasses.replace(dataset(), grades={})
    assert make(of=without).seal == blind.seal
    whole = make(k=8)
    assert named(whole, 0) == "".join(GALLERY[i] for i in np.argsort(-similarities()[0], kind="stable"))


def test_paper_moves_what_a_difficulty_ignores_behind_and_keeps_the_order_otherwise() -> None:
    values = np.tile(np.linspace(1, 0.3, 8, dtype=np.float32), (2, 1))  # a b c d e f g h for both queries
    paper = make(values, policy="paper")
    whole = make(values, policy="paper", k=8)
    # q1: a easy, b hard, c junk; q2: d easy, h junk
    assert {d: [named(whole, q, d) for q in (0, 1)] for d in whole.lists} == {
        "Easy": ["adefghbc", "abcdefgh"],
        "Medium": ["abdefghc", "abcdefgh"],
        "Hard": ["bdefghac", "abcefgdh"],
    }
    assert {d: [named(paper, q, d) for q in (0, 1)] for d in paper.lists} == {
        "Easy": ["adef", "abcd"],
        "Medium": ["abde", "abcd"],
        "Hard": ["bdef", "abce"],
    }
    assert [paper.gallery[i] for i in paper.union(0)] == list("adefb")
    near = dict(zip(GALLERY, values[0], strict=True))
    assert paper.union_similarities(0).tolist() == [near[i] for i in "adefb"]


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
        assert GALLERY[query] not in named(made, query)
    with pytest.raises(UserError, match="fewer than"):
        make(values, of=own, k=8)


def test_ties_keep_the_gallery_order() -> None:
    values = np.array([[0.5] * 8, [0.1, 0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.9]], dtype=np.float32)
    assert [named(make(values, k=8), q) for q in (0, 1)] == ["abcdefgh", "bdfhaceg"]


@given(st.integers(1, 8), st.lists(st.integers(-2, 2), min_size=8, max_size=8), st.permutations(range(8)))
def test_reranking_sorts_stably(k: int, scores: list[int], ranking: list[int]) -> None:
    order = reranked(np.array(ranking[:k]), scores[:k])
    assert order.tolist() == [ranking[i] for i in sorted(range(k), key=lambda i: -scores[i])]  # sorted() is stable


def test_long_lists_of_ties_keep_their_order() -> None:
    """Sorts that are not stable keep short lists in order by chance (numpy: up to 16)."""
    first = np.random.default_rng(0).permutation(300)
    assert np.array_equal(reranked(first, np.zeros(300)), first)
    scores = np.random.default_rng(1).integers(0, 3, 300)
    by_hand = [int(image) for score in (2, 1, 0) for image in first[scores == score]]
    assert reranked(first, scores).tolist() == by_hand
    ids = [f"{i:03d}" for i in range(400)]
    many = Dataset("many", "revisited", "v", (Query("q", Path("q")),), {i: Path("x") for i in ids}, {})
    assert make(np.zeros((1, 400), np.float32), of=many, k=400).gallery == tuple(ids)
    assert make(np.zeros((1, 400), np.float32), of=many, k=400).candidates(BLIND_LIST, 0).tolist() == list(range(400))


def test_reranking_refuses_another_number_of_scores() -> None:
    with pytest.raises(ValueError, match="3 scores for a shortlist of 4"):
        reranked(np.arange(4), [1, 2, 3])
