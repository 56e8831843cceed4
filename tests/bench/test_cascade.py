"""Cascades: what their stages reorder, and that a replay is what a run would have been."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from bench import registry
from bench.cascade import REPLAYED, Stage, order, parse_stages, replay
from bench.errors import UserError
from bench.replay import ranks_as_scores
from bench.report.tables import compare
from bench.results import Run
from cli import main

BY_SIZE = """
def score(self, query, candidates):
    return torch.tensor([float(int(c.descriptors.abs().sum() * 100) % 3) for c in candidates])
"""
BY_NAME = """
def score(self, query, candidates):
    return torch.tensor([float(c.descriptors.abs().sum() * 1e3 % 5) for c in candidates])
"""


@pytest.fixture
def two(add_method: Callable[..., Path]) -> None:
    """Two methods that reorder, one with many ties."""
    add_method("size", "import torch\n" + BY_SIZE, {"local"})
    add_method("name", "import torch\n" + BY_NAME, {"local"})


def score_of(run: Run, method: str) -> pd.Series:
    return run.scores[run.scores.method == method].set_index(["list", "query", "candidate"])["score"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("size", "at least two stages"),
        ("size,name", "must say how many"),
        ("size:3,name:4", "more candidates than size:3"),
        ("size,name:0", "neither a number"),
        ("size,name:2:3", "neither a number"),
        ("size,:2", "names no method"),
    ],
)
def test_stages_that_make_no_cascade_are_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_stages(text.split(","))


def test_a_stage_may_give_its_method_options() -> None:
    assert Stage.parse("a:5:x=1:y=b") == Stage("a", 5, (("x", "1"), ("y", "b")))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 12), st.data())
def test_a_stage_permutes_the_first_and_leaves_the_others(first: list[int], n: int, data: st.DataObject) -> None:
    k = len(first)
    second = data.draw(st.lists(st.integers(0, 3), min_size=k, max_size=k))
    one = order(k, [(None, lambda at: np.array(first)[at])])
    two = order(k, [(None, lambda at: np.array(first)[at]), (n, lambda at: np.array(second)[at])])
    assert sorted(two) == list(range(k)) and list(two[n:]) == list(one[n:])
    expected = sorted(one[:n], key=lambda i: (-second[i], list(one).index(i)))  # ties keep the order of stage one
    assert list(two[:n]) == expected
    assert list(np.argsort(-ranks_as_scores(two), kind="stable")) == list(two)


@pytest.mark.parametrize("policy", ["blind", "paper"])
@pytest.mark.parametrize("stages", ["size,name:3", "name,size:4,name:2", "identity,size:100"])
def test_a_replay_ranks_as_a_run_does(run: Callable, buildings: Path, two: None, policy: str, stages: str) -> None:
    done = run(
        buildings, "size,name,identity,cascade", policy=policy, top_k=8, options={"cascade": {"stages": stages}}
    ).run
    again = replay([done], stages.split(","))
    assert again is not None
    pd.testing.assert_series_equal(score_of(again, REPLAYED), score_of(done, "cascade"), check_exact=True)
    assert (score_of(done, "cascade").groupby(["list", "query"]).diff().dropna() != -1).any()  # it reordered
    values = [
        run.metrics().query("method == @name")["value"].tolist() for run, name in ((again, REPLAYED), (done, "cascade"))
    ]
    assert values[0] == values[1]
    row = compare([done, again]).rows.loc[f"{REPLAYED} stages={stages}"]
    own = compare([done]).rows.filter(like="cascade", axis=0).iloc[0]
    assert row[["desc mean", "desc max", "KiB/image"]].tolist() == own[["desc mean", "desc max", "KiB/image"]].tolist()


def test_a_replay_costs_each_stage_its_share(run: Callable, instances: Path, two: None) -> None:
    done = run(instances, "size,name", top_k=6).run
    again = replay([done], ["size", "name:2"])
    assert again is not None
    ledger = done.ledger.set_index(["method", "query"])["score_ms"]
    for _, row in again.ledger.iterrows():
        assert row.score_ms == pytest.approx(ledger["size", row.query] + ledger["name", row.query] * 2 / 6)
        assert row.pairs == 6


def test_no_run_with_all_of_its_methods_no_replay(run: Callable, instances: Path, two: None) -> None:
    done = run(instances, "size", top_k=6).run
    assert replay([done], ["size", "name:2"]) is None
    with pytest.raises(UserError, match="takes the runs as they are"):
        replay([done], ["size", "size:2:x=1"])
    with pytest.raises(UserError, match="at least two"):
        replay([done], ["size"])


def test_a_cascade_is_what_its_stages_are(add_method: Callable, two: None) -> None:
    cls = registry.get("cascade")
    cascade = cls(cls.Options(("size", "ransac:5:descriptors=30")))
    assert cascade.needs() == {"local", "keypoints"}
    assert cascade.descriptors_used(500) == 500 and cls(cls.Options(("identity", "ransac:2"))).descriptors_used(9) == 9
    assert [part.spec.name for part in cascade.parts()] == ["size", "ransac"]
    assert cascade.parts()[1].options.descriptors == 30

    from bench.features.sets import card_of

    with pytest.raises(UserError, match=r"stages=size,oracle:5: a stage reads the ground truth"):
        cls(cls.Options(("size", "oracle:5")))
    assert "rrt" in str(cls(cls.Options(("rrt", "ransac:5"))).skip(card_of("sift")))


def test_other_weights_or_code_of_a_stage_are_another_run(
    run: Callable, instances: Path, add_method: Callable, two: None
) -> None:
    stages = {"cascade": {"stages": "size,name:2"}}
    before = run(instances, "cascade", top_k=6, options=stages).run
    place = add_method("name", "import torch\n" + BY_NAME.replace("1e3", "1e2"), {"local"})
    assert place.is_dir()
    assert run(instances, "cascade", top_k=6, options=stages).run.folder != before.folder


def test_the_command_replays_and_says_so(run: Callable, instances: Path, two: None) -> None:
    done: Run = run(instances, "size,name", top_k=6).run
    common = ["report", "--runs", str(done.folder.parent), "--format", "md", "--cascade"]
    shown = CliRunner().invoke(main, [*common, "size,name:3"])
    assert shown.exit_code == 0, shown.output
    assert "| cascade (replayed) stages=size,name:3 |" in shown.output and "implied" in shown.output
    absent = CliRunner().invoke(main, [*common, "size,ransac:3"])
    assert absent.exit_code != 0 and "no finished run above has all of its methods" in absent.output


def test_a_cascade_was_trained_on_what_its_stages_were_trained_on() -> None:
    cls = registry.get("cascade")
    card = cls(cls.Options(("rrt", "lightglue:5"))).card()
    assert "rrt: warped photographs" in str(card.trained_on) and "lightglue: MegaDepth" in str(card.trained_on)
    assert cls(cls.Options(("mnn", "ransac:5"))).card().trained_on is None


def test_a_stage_is_given_no_more_descriptors_than_it_reads(
    run: Callable, instances: Path, add_method: Callable
) -> None:
    body = """
    @dataclass(frozen=True)
    class Options:
        descriptors: int = 5  # read

    seen = set()

    def score(self, query, candidates):
        self.seen.update(len(image) for image in (query, *candidates))
        return candidates.similarities
    """
    add_method("few", "from dataclasses import dataclass\n" + textwrap.dedent(body), {"local"})
    run(instances, "cascade", top_k=6, options={"cascade": {"stages": "few,ransac:3"}})
    assert registry.get("few").seen == {5}  # type: ignore[attr-defined]
