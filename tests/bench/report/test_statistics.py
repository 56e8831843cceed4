"""Differences are paired by query, and their interval and p say when there is none."""

from __future__ import annotations

import doctest
import itertools
import math
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.datasets import Instances, revisited
from bench.report import statistics
from bench.report.statistics import Comparison, compare, groups_of, holm, tied_with_best

VALUES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30)
EIGHTHS = st.integers(0, 8).map(lambda n: n / 8)  # sums of these are exact
FEW = st.lists(st.tuples(EIGHTHS, EIGHTHS), min_size=1, max_size=10)


def series(values: list[float] | np.ndarray) -> pd.Series:
    return pd.Series(list(values), index=[f"q{i:05d}" for i in range(len(values))], dtype=float)


def two(n: int, effect: float = 0.0, seed: int = 0, noise: float = 0.1) -> tuple[pd.Series, pd.Series]:
    """Two methods on n queries, of which the first is better by about `effect`."""
    draw = np.random.default_rng(seed)
    theirs = draw.random(n)
    return series(theirs + draw.normal(effect, noise, n)), series(theirs)


def ends(interval: statistics.Interval) -> tuple[float, float]:
    return interval.low, interval.high


def width(interval: statistics.Interval) -> float:
    return interval.high - interval.low


def by_brute_force(delta: np.ndarray) -> float:
    """The share of all sign flips whose mean is as far from zero, flip by flip."""
    flips = itertools.product([1, -1], repeat=len(delta))
    return float(np.mean([abs(np.dot(signs, delta)) >= abs(delta.sum()) for signs in flips]))


def test_the_worked_examples_are_right() -> None:
    failed, attempted = doctest.testmod(statistics)
    assert attempted and not failed


# --- gains --------------------------------------------------------------------------------------------------------


def test_a_clear_difference_excludes_zero_and_noise_does_not() -> None:
    draw = np.random.default_rng(0)
    noise = draw.normal(0, 0.1, 60)
    clear = compare(series(list(0.3 + noise)), series([0.0] * 60)).interval
    none = compare(series(list(noise - noise.mean())), series([0.0] * 60)).interval
    assert clear.low > 0.2 and none.low < 0 < none.high


# --- pairs --------------------------------------------------------------------------------------------------------


def test_a_comparison_pairs_by_query_and_says_what_it_drops() -> None:
    ours = pd.Series({"a": 0.5, "b": math.nan, "c": 0.75, "d": 0.5, "only ours": 0.5})
    theirs = pd.Series({"d": 0.5, "c": 0.25, "b": 0.5, "a": 0.75, "only theirs": 1.0, "nobody's": math.nan})
    found = compare(ours, theirs)
    assert found.difference == pytest.approx((-0.25 + 0.5 + 0) / 3)
    assert (found.wins, found.ties, found.losses) == (1, 1, 1) and found.queries == 3
    assert found.dropped == 4


def test_less_may_be_better() -> None:
    ours, theirs = two(20, 0.1)
    assert compare(ours, theirs, better=-1) == compare(theirs, ours)
    assert compare(ours, theirs, better=-1).difference < 0


@pytest.mark.parametrize("groups", [None, {"q00000": "a", "q00001": "b", "q00002": "b"}])
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_method_compared_with_itself_is_a_tie(groups: Mapping[str, str] | None, seeds: int) -> None:
    values = series([0.1, 0.7, 0.3])
    found = compare([values] * seeds, values, groups)
    assert found.difference == 0 and found.p == 1 and (found.wins, found.ties, found.losses) == (0, 3, 0)
    assert ends(found.interval) == pytest.approx((0, 0), abs=1e-15) and found.detectable == 0
    if groups:
        assert found.clustered is not None and found.clustered.p == 1
        assert ends(found.clustered.interval) == pytest.approx((0, 0), abs=1e-15)


def test_one_query_tells_nothing() -> None:
    found = compare(series([0.9]), series([0.1]), {"q00000": 1})
    assert found.difference == pytest.approx(0.8) and found.p == 1 and found.wins == found.queries == 1
    assert found.clustered is not None and found.clustered.groups == 1 and found.clustered.p == 1
    assert np.isnan([*ends(found.interval), *ends(found.clustered.interval), found.detectable]).all()


@pytest.mark.parametrize(
    "ours", [series([]), series([math.nan, math.nan]), pd.Series({"another": 1.0}), pd.Series([], dtype=object)]
)
def test_no_common_query_gives_no_value(ours: pd.Series) -> None:
    found = compare(ours, series([0.1, 0.2]), {})
    assert found.p == 1 and found.queries == 0 and found.dropped == len({*ours.index, "q00000", "q00001"})
    assert found.clustered is not None and found.clustered.groups == 0 and found.clustered.p == 1
    assert np.isnan([found.difference, *ends(found.interval), *ends(found.clustered.interval), found.detectable]).all()


@given(VALUES, st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_the_order_of_the_queries_does_not_matter(pairs: list[tuple[float, float]], random: object) -> None:
    ours, theirs = (series([p[i] for p in pairs]) for i in (0, 1))
    groups = {query: i // 3 for i, query in enumerate(ours.index)}
    mixed = list(ours.index)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    one, other = compare(ours, theirs, groups), compare(ours[mixed], theirs, {query: groups[query] for query in mixed})
    assert repr(one) == repr(other)  # NaNs are equal as text


@given(VALUES)
@settings(max_examples=20, deadline=None)
def test_swapping_the_sides_is_the_negative(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = (series([p[i] for p in pairs]) for i in (0, 1))
    groups = {query: i // 2 for i, query in enumerate(ours.index)}
    one, other = compare(ours, theirs, groups), compare(theirs, ours, groups)
    assert one.difference == -other.difference and one.p == other.p
    assert (one.wins, one.ties, one.losses) == (other.losses, other.ties, other.wins)
    assert ends(one.interval) == pytest.approx((-other.interval.high, -other.interval.low), nan_ok=True)
    assert one.clustered is not None and other.clustered is not None and one.clustered.p == other.clustered.p
    flipped = -other.clustered.interval.high, -other.clustered.interval.low
    assert ends(one.clustered.interval) == pytest.approx(flipped, nan_ok=True)


def test_swapping_the_sides_is_the_negative_where_values_repeat() -> None:
    draw = np.random.default_rng(0)
    ours, theirs = (series(draw.integers(2, size=500)) for _ in range(2))
    one, other = compare(ours, theirs).interval, compare(theirs, ours).interval
    assert ends(one) == pytest.approx((-other.high, -other.low), abs=1e-12)


@pytest.mark.parametrize("factor", [0.25, 100])
def test_values_in_percent_give_the_same_p_and_intervals_in_percent(factor: float) -> None:
    ours, theirs = two(40, 0.02)
    one, other = compare(ours, theirs), compare(factor * ours, factor * theirs)
    assert one.p == other.p and (one.wins, one.losses) == (other.wins, other.losses)
    assert other.difference == pytest.approx(factor * one.difference)
    assert ends(other.interval) == pytest.approx((factor * one.interval.low, factor * one.interval.high))
    assert other.detectable == pytest.approx(factor * one.detectable)


def test_values_that_rounding_alone_tells_apart_are_ties() -> None:
    assert 0.1 + 0.2 != 0.3
    found = compare(series([0.1 + 0.2, 0.5]), series([0.3, 0.5]))
    assert found.ties == 2 and found.difference == 0


@pytest.mark.parametrize(
    ("ours", "more", "said"),
    [
        (pd.Series([1.0, 2.0], ["a", "a"]), {}, "'a' has two values"),
        (pd.Series({"a": math.inf}), {}, "infinite"),
        ([], {}, "no seed"),
        (pd.Series({"a": 1.0}), {"better": 0}, "better is 0"),
        (pd.Series({"a": 1.0}), {"groups": {"b": 1}}, "'a' has no group"),
    ],
)
def test_what_cannot_be_compared_is_refused(ours: statistics.Values, more: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        compare(ours, pd.Series({"a": 1.0}), **more)


def test_a_comparison_holds_no_impossible_number() -> None:
    found = compare(*two(5))
    for wrong in ({"p": 1.5}, {"p": math.nan}, {"wins": -1}, {"dropped": -1}):
        with pytest.raises(ValueError):
            replace(found, **wrong)
    for low, high in ((1, 0), (math.nan, 0)):
        with pytest.raises(ValueError):
            statistics.Interval(low, high)
    with pytest.raises(ValueError):
        statistics.Clustered(3, found.interval, -0.1)


# --- p ------------------------------------------------------------------------------------------------------------


@given(FEW)
@settings(max_examples=50, deadline=None)
def test_p_of_few_queries_is_the_share_of_all_flips(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = (np.array([p[i] for p in pairs]) for i in (0, 1))
    assert compare(series(ours), series(theirs)).p == by_brute_force(ours - theirs)


@given(st.lists(st.integers(-100, 100), min_size=1, max_size=10))
@settings(max_examples=50, deadline=None)
def test_p_does_not_depend_on_how_hundredths_round(hundredths: list[int]) -> None:
    ours = series(np.array(hundredths) / 100)
    assert compare(ours, 0 * ours).p == by_brute_force(np.array(hundredths))


@given(FEW, st.lists(st.integers(0, 3), min_size=10, max_size=10))
@settings(max_examples=50, deadline=None)
def test_clustered_p_flips_whole_groups(pairs: list[tuple[float, float]], groups: list[int]) -> None:
    ours, theirs = (series([p[i] for p in pairs]) for i in (0, 1))
    of = dict(zip(ours.index, groups, strict=False))
    found = compare(ours, theirs, of).clustered
    sums = (ours - theirs).groupby(of).sum().to_numpy()
    assert found is not None and found.groups == len(sums) and found.p == by_brute_force(sums)


def test_queries_that_tie_do_not_change_p() -> None:
    ours, theirs = two(12, 0.05)
    same = pd.Series(0.5, [f"tie{i}" for i in range(200)])
    assert compare(pd.concat([ours, same]), pd.concat([theirs, same])).p == compare(ours, theirs).p


@pytest.mark.parametrize("n", [17, 18, 20])
def test_drawn_p_is_near_the_share_of_all_flips(n: int) -> None:
    ours, theirs = two(n, 0.03, n)
    assert 2 ** len(ours) > statistics.FLIPS  # so that it is drawn
    sums = np.zeros(1)
    for delta in (ours - theirs).to_numpy():
        sums = np.concatenate([sums + delta, sums - delta])
    exact = float((np.abs(sums) >= abs(sums[0]) - 1e-12).mean())
    assert compare(ours, theirs).p == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / statistics.FLIPS))


@pytest.mark.parametrize(("n", "effect"), [(10, 0.05), (41, 0.02), (70, 0.0)])
def test_p_is_that_of_scipy(n: int, effect: float) -> None:
    ours, theirs = two(n, effect)
    draws = 20_000
    reference = scipy.stats.permutation_test(
        (ours.to_numpy(), theirs.to_numpy()),
        lambda x, y, axis: np.abs((x - y).mean(axis=axis)),
        permutation_type="samples",
        vectorized=True,
        n_resamples=draws,
        alternative="greater",
        rng=np.random.default_rng(1),
    ).pvalue
    error = 0 if 2**n <= draws else math.sqrt(reference * (1 - reference) * (1 / draws + 1 / statistics.FLIPS))
    assert compare(ours, theirs).p == pytest.approx(reference, abs=5 * error + 2 / draws * (error > 0) + 1e-12)


def test_drawn_p_counts_what_was_observed() -> None:
    found = compare(series(np.ones(60)), series(np.zeros(60)))
    assert found.p == 1 / (statistics.FLIPS + 1)


def test_p_is_uniform_where_methods_do_not_differ() -> None:
    found = [compare(*two(12, 0, seed)).p for seed in range(300)]
    assert scipy.stats.kstest(found, "uniform").pvalue > 0.01


# --- intervals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [8, 70])
def test_the_interval_is_that_of_scipy(n: int) -> None:
    ours, theirs = two(n, 0.05)
    reference = scipy.stats.bootstrap(
        (ours.to_numpy(), theirs.to_numpy()),
        lambda x, y, axis: (x - y).mean(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=statistics.DRAWS,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    found = compare(ours, theirs).interval
    assert ends(found) == pytest.approx((reference.low, reference.high), abs=0.05 * width(found))


def test_the_interval_does_not_depend_on_how_much_is_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = two(30)
    whole = compare(ours, theirs)
    monkeypatch.setattr(statistics, "DRAWN", 1000)
    assert compare(ours, theirs) == whole


def test_counting_values_that_repeat_gives_the_intervals_of_drawing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    ours, theirs = (series(draw.integers(2, size=2000)) for _ in range(2))
    groups = {query: i // 5 for i, query in enumerate(ours.index)}
    counted = compare(ours, theirs, groups)
    monkeypatch.setattr(statistics, "REPEATED", math.inf)
    drawn = compare(ours, theirs, groups)
    assert counted.clustered is not None and drawn.clustered is not None
    for one, other in ((counted.interval, drawn.interval), (counted.clustered.interval, drawn.clustered.interval)):
        assert one != other  # so that both ways were taken
        assert ends(one) == pytest.approx(ends(other), abs=0.05 * width(one))


def test_memory_does_not_grow_with_the_draws_of_all_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "DRAWN", 2**16)
    ours, theirs = two(2000)
    groups = {query: i // 2 for i, query in enumerate(ours.index)}
    tracemalloc.start()
    compare(ours, theirs, groups)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < statistics.DRAWS * len(ours)  # a byte a query drawn, where whole numbers have eight


def test_groups_of_one_query_each_change_nothing() -> None:
    ours, theirs = two(25, 0.05)
    found = compare(ours, theirs, {query: query for query in ours.index})
    assert found.clustered == statistics.Clustered(25, found.interval, found.p)


def test_the_names_of_the_groups_do_not_matter() -> None:
    ours, theirs = two(24, 0.05)
    some = {query: i // 4 for i, query in enumerate(ours.index)}
    others = {query: ("group", -number) for query, number in some.items()}
    assert compare(ours, theirs, some) == compare(ours, theirs, others)


def test_where_queries_of_a_group_agree_the_clustered_interval_is_wider_and_p_larger() -> None:
    draw = np.random.default_rng(0)
    ours = series(np.repeat(draw.normal(0.05, 0.1, 20), 5))
    found = compare(ours, series(np.zeros(100)), {query: i // 5 for i, query in enumerate(ours.index)})
    assert found.clustered is not None and found.clustered.groups == 20
    assert width(found.clustered.interval) == pytest.approx(math.sqrt(5) * width(found.interval), rel=0.1)
    assert found.clustered.p > found.p


def test_the_clustered_interval_is_of_the_mean_over_queries_and_not_over_groups() -> None:
    ours = series([1.0] * 8 + [0.0] * 2)
    found = compare(ours, series(np.zeros(10)), {query: i // 8 for i, query in enumerate(ours.index)})
    assert found.clustered is not None and found.clustered.groups == 2
    assert found.difference == 0.8 and ends(found.clustered.interval) == (0, 1)


@pytest.mark.parametrize("n", [20, 80])
def test_a_detectable_difference_is_beyond_the_critical_value_four_times_of_five(n: int) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, n)
    found = compare(series(noise), series(np.zeros(n)))
    standard_error = noise.std(ddof=1) / math.sqrt(n)
    shifted = scipy.stats.norm(found.detectable, standard_error)
    assert shifted.sf(1.959964 * standard_error) == pytest.approx(0.8, abs=1e-4)


# --- seeds --------------------------------------------------------------------------------------------------------


def test_the_value_of_a_query_is_the_mean_over_seeds() -> None:
    ours, theirs = two(15, 0.05)
    shift = series(np.linspace(-0.05, 0.05, 15))
    seeds, one = compare([ours - shift, ours + shift], [theirs, theirs, theirs]), compare(ours, theirs)
    assert seeds.difference == pytest.approx(one.difference) and seeds.p == one.p
    assert (seeds.wins, seeds.losses) == (one.wins, one.losses) and seeds.detectable == pytest.approx(one.detectable)


def test_seeds_that_agree_add_nothing() -> None:
    ours, theirs = two(15, 0.05)
    assert ends(compare([ours] * 3, [theirs] * 2).interval) == pytest.approx(ends(compare(ours, theirs).interval))


@pytest.mark.parametrize("swap", [False, True])
def test_spread_between_seeds_widens_the_interval(swap: bool) -> None:
    ours, theirs = two(40, noise=0.01)
    seeds = [ours + shift for shift in (-0.1, 0, 0.1)]
    spread, none = compare(*([theirs, seeds] if swap else [seeds, theirs])), compare(ours, theirs)
    # means of three seeds drawn of three: all the lowest one time of 27, which is more often than 2.5 %
    assert spread.interval.low == pytest.approx(-0.1, abs=0.02) and spread.interval.high == pytest.approx(0.1, abs=0.02)
    assert width(spread.interval) > 10 * width(none.interval)
    assert abs(spread.difference) == pytest.approx(abs(none.difference)) and spread.p == none.p


def test_both_sides_draw_their_seeds_apart() -> None:
    values = series(np.full(10, 0.5))
    seeds = [values - 0.1, values + 0.1]
    assert ends(compare(seeds, seeds).interval) == pytest.approx((-0.2, 0.2))  # 1 of 16 draws each


def test_a_query_that_a_seed_has_no_value_for_is_dropped() -> None:
    found = compare([series([0.5, 0.5, math.nan]), series([0.5, math.nan, 0.5])], series([0.25, 0.25, 0.25]))
    assert found.queries == 1 and found.dropped == 2 and found.difference == 0.25


# --- Holm ---------------------------------------------------------------------------------------------------------


def test_holm_of_a_case_worked_by_hand() -> None:
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 are 0.02, 0.03, 0.06, 0.04; the last may not be the smaller
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.9, 0.8]) == (1, 1) and holm([0.2]) == (0.2,) and holm([]) == ()


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.001, 0.999))
def test_holm_rejects_what_its_steps_reject(p_values: list[float], level: float) -> None:
    """Holm's procedure as it is stated: from the smallest on, reject while p is at most level / those left."""
    rejected: set[int] = set()
    for i in sorted(range(len(p_values)), key=lambda i: p_values[i]):
        if p_values[i] * (len(p_values) - len(rejected)) > level:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(holm(p_values)) if p <= level} == rejected


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_makes_nothing_smaller(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    for i, j in itertools.combinations(range(len(p_values)), 2):
        assert (p_values[i] - p_values[j]) * (adjusted[i] - adjusted[j]) >= 0
        assert p_values[i] != p_values[j] or adjusted[i] == adjusted[j]


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan])
def test_holm_refuses_what_is_no_probability(wrong: float) -> None:
    with pytest.raises(ValueError, match="probability"):
        holm([0.5, wrong])


# --- tied with the best -------------------------------------------------------------------------------------------


def test_who_is_clearly_worse_is_not_tied_with_the_best() -> None:
    best, middle = two(60, 0.02)
    rows = {"poor": middle - 0.3, "best": best, "same": best.copy(), "seeds": [best + 0.01, best - 0.01]}
    assert tied_with_best(rows) == {"best", "same", "seeds"}
    assert tied_with_best({name: rows[name] for name in reversed(rows)}) == tied_with_best(rows)
    assert tied_with_best(rows, better=-1) == {"poor"}


def test_p_is_corrected_for_the_number_of_methods() -> None:
    ours, theirs = series(np.ones(6)), series(np.zeros(6))
    assert compare(ours, theirs).p == 2 / 2**6
    assert tied_with_best({"best": ours, "b": theirs}) == {"best"}
    assert tied_with_best({"best": ours, "b": theirs, "c": theirs}) == {"best", "b", "c"}  # twice 2 / 64 is over 0.05


def test_few_groups_tell_nothing_apart() -> None:
    rows = {"best": series(np.ones(40)), "poor": series(np.zeros(40))}
    groups = {query: i % 4 for i, query in enumerate(rows["best"].index)}
    assert tied_with_best(rows) == {"best"} and tied_with_best(rows, groups) == {"best", "poor"}


@pytest.mark.parametrize("other_seed", [(), (series([0.5] * 20 + [1.0] * 60),)])
def test_the_best_is_that_of_the_queries_that_all_have(other_seed: tuple[pd.Series, ...]) -> None:
    lucky = series([0.5] * 20 + [math.nan] * 60)
    best = series([1.0] * 20 + [0.0] * 60)
    assert best.mean() < lucky.mean()
    assert tied_with_best({"best": best, "lucky": [lucky, *other_seed]}) == {"best"}


def test_of_equal_means_the_first_by_name_is_the_best() -> None:
    values, _ = two(40, noise=0.3)
    rows = {"b": values, "a": series(values.to_numpy()[::-1]), "c": values - 0.02}  # c is worse than b on every query
    assert tied_with_best({"b": rows["b"], "c": rows["c"]}) == {"b"}
    assert tied_with_best(rows) == tied_with_best({name: rows[name] for name in "abc"}) == {"a", "b", "c"}


def test_without_a_comparison_all_are_tied() -> None:
    assert tied_with_best({}) == frozenset() and tied_with_best({"alone": series([0.5])}) == {"alone"}
    assert tied_with_best({"a": pd.Series({"q": 1.0}), "b": pd.Series({"r": 0.0})}) == {"a", "b"}


# --- groups -------------------------------------------------------------------------------------------------------


def joined(grades: Mapping[str, Mapping[str, str]], queries: list[str]) -> set[frozenset[str]]:
    """Groups by the definition: pairs of queries that depend on the same images, and chains of such."""
    counted = {q: {image for image, grade in grades.get(q, {}).items() if grade != "junk"} for q in queries}
    near = np.array(
        [
            [a == b or bool(counted[a] & counted[b]) or (a in counted[b] and b in counted[a]) for b in queries]
            for a in queries
        ]
    )
    for _ in queries:
        near = near @ near
    return {frozenset(q for q, there in zip(queries, row, strict=True) if there) for row in near}


def sets(groups: Mapping[str, str]) -> set[frozenset[str]]:
    return {frozenset(q for q, other in groups.items() if other == group) for group in groups.values()}


IMAGES = st.sampled_from([*"123456", "q0", "q1", "q2"])
GRADES = st.dictionaries(
    st.sampled_from([f"q{i}" for i in range(8)]),
    st.dictionaries(IMAGES, st.sampled_from(["easy", "hard", "junk"]), max_size=3),
)


@given(GRADES)
def test_groups_are_the_queries_that_chains_of_shared_positives_join(grades: dict[str, dict[str, str]]) -> None:
    queries = [f"q{i}" for i in range(8)]
    groups = groups_of(grades, queries)
    assert list(groups) == queries and sets(groups) == joined(grades, queries)
    assert all(groups[group] == group for group in groups.values())  # named by the first of them
    assert sets(groups_of(grades, queries[::-1])) == sets(groups)


@given(st.lists(st.integers(1, 4), max_size=5))
def test_groups_of_instances_are_the_instances(sizes: list[int]) -> None:
    members = [[f"{number}/{view}" for view in range(size)] for number, size in enumerate(sizes)]
    grades, queries = Instances(members), [image for of in members for image in of]
    groups = groups_of(grades, queries)
    assert sets(groups) == {frozenset(of) for of in members}
    assert groups == groups_of(dict(grades), queries)


def test_the_positives_of_instances_are_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    grades = Instances([[f"{number}/{view}" for view in range(100)] for number in range(600)])
    monkeypatch.delattr(Instances, "__getitem__")
    assert len(set(groups_of(grades, list(grades)).values())) == 600


def test_queries_without_grades_are_groups_of_their_own() -> None:
    assert groups_of({}, ["a", "b", "a"]) == groups_of(Instances([]), ["a", "b"]) == {"a": "a", "b": "b"}
    assert groups_of({}, []) == {}


@pytest.mark.parametrize("name", ["roxford", "rparis"])
def test_the_official_queries_are_few_groups(official: Path, name: str) -> None:
    dataset = revisited.load(name, official, images=False)
    queries = [query.id for query in dataset.queries]
    groups = groups_of(dataset.grades, queries)
    assert sets(groups) == joined(dataset.grades, queries)
    positives = {
        query: frozenset(i for i, grade in dataset.grades[query].items() if grade != "junk") for query in queries
    }
    alike = {frozenset(q for q in queries if positives[q] == of) for of in positives.values()}
    assert all(len({groups[query] for query in same}) == 1 for same in alike)
    # a photograph that shows two landmarks joins their queries, so groups are fewer than sets of positives
    assert 1 < len(sets(groups)) < len(alike) < len(queries)
    found = compare(*(pd.Series(np.random.default_rng(i).random(len(queries)), queries) for i in (0, 1)), groups)
    assert isinstance(found, Comparison) and found.clustered is not None
    assert found.clustered.groups == len(sets(groups)) and found.clustered.p >= 2 / 2**found.clustered.groups
