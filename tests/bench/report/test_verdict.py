"""What a comparison concludes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bench.errors import UserError
from bench.report.limits import Limits
from bench.report.verdict import Verdict, answer, clustered, verdict, within

QUERIES = [f"q{number}" for number in range(40)]
FIRST = pd.Series(np.linspace(0.2, 0.8, 40), QUERIES)
DRAW = np.random.default_rng(0)


def moved(by: float, spread: float = 0.02) -> pd.Series:
    return FIRST + by + pd.Series(DRAW.normal(0, spread, 40), QUERIES)


def told(values: dict[str, pd.Series], ms: dict[str, float] | None = None, kib: dict[str, float] | None = None) -> str:
    found = verdict(values, FIRST)
    assert isinstance(found, Verdict)
    table = pd.DataFrame(
        {
            "mAP All": {name: 100 * of.mean() for name, of in values.items()},
            "ms/query p50": ms or dict.fromkeys(values, 1.0),
            "KiB/image": kib or dict.fromkeys(values, 1.0),
        }
    )
    return answer(found, table, "mAP All", 90.0)


def test_the_best_alone_is_named_with_what_it_gains() -> None:
    said = told({"good": FIRST + 0.1, "bad": FIRST - 0.1})
    assert said == (
        "good reaches 60.0 mAP All, +10.0 over the first stage and better than the rest on these 40 queries. "
        "The best any method can do on these lists is 90.0."
    )


def test_the_tied_are_named_with_what_tells_them_apart() -> None:
    values = {"a": moved(0.1), "b": moved(0.1), "worse": FIRST - 0.2}
    said = told(values, {"a": 10.0, "b": 50.0, "worse": 1.0}, {"a": 60.0, "b": 15.0, "worse": 1.0})
    assert "a and b cannot be told apart" in said.replace("b and a", "a and b")
    assert "a needs the least time, 20 % of the most" in said and "b reads the fewest bytes, 25 % of the most" in said
    assert "worse" not in said


def test_one_that_is_cheapest_in_time_and_bytes_is_named_once() -> None:
    values = {"a": moved(0.1), "b": moved(0.1)}
    said = told(values, {"a": 10.0, "b": 50.0}, {"a": 6.0, "b": 15.0})
    assert said.count("a needs") == 1 and "and reads the fewest bytes, 40 % of the most" in said


def test_costs_that_are_alike_are_not_said_to_differ() -> None:
    values = {"a": moved(0.1), "b": moved(0.1)}
    same = told(values, {"a": 10.0, "b": 10.2}, {"a": 6.0, "b": 6.0})
    assert "least time" not in same and "fewest" not in same and "cannot be told apart on these 40 queries. " in same
    three = {**values, "c": moved(0.1)}
    two = told(three, {"a": 10.0, "b": 10.5, "c": 20.0}, {"a": 6.0, "b": 6.0, "c": 2.0})
    assert "a and b need the least time, 50 % of the most, c reads the fewest bytes, 33 % of the most" in two
    time_alone = told(values, {"a": 10.0, "b": 50.0}, {"a": 6.0, "b": 6.0})
    assert "a needs the least time, 20 % of the most" in time_alone and "fewest" not in time_alone


def test_of_equal_ones_the_first_by_name_is_named_first() -> None:
    """In every process: the tied are a set, whose order depends on the hashes of names."""
    names = [f"m{number}" for number in range(9)]
    found = verdict(dict.fromkeys(reversed(names), FIRST + 0.1), FIRST)
    assert found is not None and list(found.best) == names


COSTS = {"fast": (2.0, 5.0), "small": (20.0, 1.0), "best": (30.0, 40.0), "unknown": (1.0, float("nan"))}


def afforded(limits: str, **gains: float) -> str:
    values = {
        name: FIRST + by for name, by in {"fast": 0.05, "small": 0.1, "best": 0.2, "unknown": 0.3, **gains}.items()
    }
    found = verdict(values, FIRST)
    assert found is not None
    rows = pd.DataFrame.from_dict(COSTS, orient="index", columns=["ms/query p50", "KiB/image"])
    rows["mAP All"] = [100 * values[name].mean() for name in rows.index]
    rows.loc["identity"] = [0.0, 0.0, 50.0]  # a control is none of the contenders
    return within(found, values, rows, "mAP All", Limits.parse(limits))


def test_the_best_row_within_limits_is_named_with_what_it_gains() -> None:
    assert afforded("ms=25,kib=10") == (
        "2 of 4 rows cost at most 25 ms/query p50 and 10 KiB/image: small reaches 60.0 mAP All, "
        "+10.0 against the first stage."
    )
    assert afforded("ms=30").startswith("4 of 4 rows cost at most 30 ms/query p50: unknown reaches")
    assert afforded("kib=40").startswith(
        "3 of 4 rows cost at most 40 KiB/image: best reaches"
    )  # an equal cost is within


def test_what_no_row_can_do_is_said_with_the_least_of_each_cost() -> None:
    assert afforded("ms=1.5,kib=0.5") == (
        "No row costs at most 1.5 ms/query p50 and 0.5 KiB/image; the least is 1.0 ms/query p50 (unknown) and "
        "1.0 KiB/image (small)."
    )


def test_a_row_within_limits_whose_gain_is_not_sure_is_said_to_be_so() -> None:
    assert afforded("ms=3,kib=10", fast=-0.1).endswith("-10.0 against the first stage. No gain of these rows is sure.")
    said = afforded("ms=25,kib=10", fast=0.1)
    assert "fast reaches" in said and said.endswith("and cannot be told apart from small.")


@pytest.mark.parametrize(
    "text", ["", "ms", "ms=", "ms=0", "ms=-1", "ms=nan", "ms=inf", "ms=5ms", "ms=1,ms=2", "mx=3", "ms=1,"]
)
def test_limits_that_are_none_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match=r"--within .*:") as error:
        Limits.parse(text)
    assert "kib" in str(error.value.hint)


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
def test_gains_by_chance_are_said_to_be_none(names: tuple[str, ...]) -> None:
    said = told({name: moved(0.0, 0.2) for name in names})
    who = "a cannot be told apart" if len(names) == 1 else "No method can be told apart"
    assert said.startswith(f"{who} from the first stage on these 40 queries")


def test_a_method_that_only_harms_is_no_gain() -> None:
    found = verdict({"bad": FIRST - 0.1}, FIRST)
    assert found is not None and not found.gained("bad") and found.corrected["bad"] < 0.001


def test_less_may_be_better() -> None:
    found = verdict({"low": FIRST - 0.1, "high": FIRST + 0.1}, FIRST, better=-1)
    assert found is not None and found.best == ("low",) and found.gained("low") and not found.gained("high")


def test_more_methods_make_each_gain_less_sure() -> None:
    values = {f"m{number}": moved(0.01, 0.05) for number in range(8)}
    alone = verdict({"m0": values["m0"]}, FIRST)
    among = verdict(values, FIRST)
    assert alone is not None and among is not None and alone.corrected["m0"] < among.corrected["m0"]


def test_queries_without_a_positive_are_not_counted() -> None:
    first = FIRST.copy()
    first.iloc[:10] = np.nan
    found = verdict({"a": first + 0.1}, first)
    assert found is not None and found.queries == 30
    assert verdict({"a": FIRST * np.nan}, FIRST * np.nan) is None and verdict({}, FIRST) is None


def test_queries_that_share_positives_are_said_to_be_fewer_than_they_are() -> None:
    groups = {query: number // 20 for number, query in enumerate(QUERIES)}  # two places
    values = {"one place": FIRST + np.repeat([0.1, 0.0], 20), "both": FIRST + 0.1}
    found = verdict(values, FIRST, groups)
    assert found is not None and found.gains["one place"].interval.low > 0
    assert clustered(found) == (
        "Queries that share positives make 2 groups of the 40; drawn as wholes, the intervals of one place reach zero."
    )
    alone = verdict(values, FIRST, {query: query for query in QUERIES})
    assert alone is not None and clustered(alone) is None


def test_what_is_tied_with_the_best_and_gains_nothing_for_sure_is_named() -> None:
    noise = pd.Series(np.random.default_rng(3).normal(0, 0.3, 40), QUERIES)
    values = {"sure": FIRST + 0.05, "wild": FIRST + noise - noise.mean() + 0.04}
    found = verdict(values, FIRST)
    assert found is not None and set(found.best) == {"sure", "wild"} and not found.gained("wild")
    assert "Of wild, no gain over the first stage is sure." in told(values)
    assert "is sure" not in told({"a": FIRST + 0.1, "b": FIRST + 0.1})


def test_a_contender_alone_is_compared_with_no_rest() -> None:
    assert told({"a": FIRST + 0.1}).startswith(
        "a reaches 60.0 mAP All, +10.0 over the first stage on these 40 queries."
    )
