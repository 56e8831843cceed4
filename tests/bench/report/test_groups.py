"""What a report is of: runs in groups, and what is replayed from their scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench import cascade, gate
from bench.blend import Blend
from bench.errors import UserError
from bench.report.groups import Scope, grouped, require_replayed
from bench.report.tables import compare
from bench.results import Run

CASCADE, GATE = "mnn,reverse:2", "mnn:3,reverse"


@pytest.fixture
def done(run: Callable, instances: Path) -> Run:
    found: Run = run(instances, "identity,mnn,reverse", top_k=5).run
    return found


@pytest.mark.parametrize(
    ("text", "name", "meant"),
    [
        (None, "demo", True),
        ("demo", "demo", True),
        ("demo", "folder:/images/demo", True),
        ("folder:/images/mine", "folder:/images/mine", True),
        ("folder:/images/x/../mine", "folder:/images/mine", True),
        ("mine", "folder:/images/mine", True),
        ("images", "folder:/images/mine", False),
        ("min", "folder:/images/mine", False),
        ("folder:/mine", "folder:/images/mine", False),
        ("vpr:/images/mine", "folder:/images/mine", False),
        ("roxford", "roxford5k", False),
    ],
)
def test_a_data_set_is_meant_by_its_name_its_path_or_the_end_of_its_path(
    text: str | None, name: str, meant: bool
) -> None:
    assert Scope(text).has_dataset(name) == meant


def test_a_path_of_a_data_set_may_begin_here_or_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Scope("folder:mine").has_dataset(f"folder:{tmp_path.resolve() / 'mine'}")
    assert Scope("folder:~/mine").has_dataset(f"folder:{tmp_path.resolve() / 'mine'}")


def test_a_run_is_in_a_scope_by_its_data_set_and_the_beginning_of_its_seal(done: Run) -> None:
    name = done.shortlist.header.dataset
    assert all(scope.has(done) for scope in (Scope(), Scope(name), Scope(name, done.seal[:8]), Scope(seal=done.seal)))
    assert not any(scope.has(done) for scope in (Scope("demo"), Scope(name, "zz"), Scope("demo", done.seal[:8])))


def test_runs_of_other_candidates_are_another_group(done: Run, run: Callable, instances: Path) -> None:
    fewer, later = run(instances, "mnn", top_k=4).run, run(instances, "random", top_k=5).run
    first, second = grouped([done, fewer, later])
    assert first.measured == first.runs == (done, later) and second.runs == (fewer,)
    assert set(first.table.rows.index) == {"identity", "mnn", "reverse", "random"}
    assert set(second.table.rows.index) == {"mnn"} and first.table.stem != second.table.stem
    assert first.table.stem.endswith(f"-{done.seal[:8]}")


def test_what_is_replayed_stands_in_the_table_of_its_group(done: Run) -> None:
    blend = Blend.parse("add:0.5")
    (group,) = grouped([done], [CASCADE], [GATE], blend)
    assert [*group.cascades[0].record.costs, *group.gates[0].record.costs] == [cascade.REPLAYED, gate.REPLAYED]
    assert group.runs == (done, *group.cascades, *group.gates)
    assert group.table.rows.equals(compare(group.runs, blend).rows)
    assert {f"{cascade.REPLAYED} stages={CASCADE}", f"{gate.REPLAYED} gate={GATE}"} <= set(group.table.rows.index)


def test_a_replay_is_in_the_groups_that_have_its_methods_and_asked_for_in_vain_where_none_has(
    done: Run, run: Callable, instances: Path
) -> None:
    groups = grouped([done, run(instances, "mnn", top_k=4).run], [CASCADE], [GATE])
    assert [(len(group.cascades), len(group.gates)) for group in groups] == [(1, 1), (0, 0)]
    require_replayed(groups, [CASCADE], [GATE])
    require_replayed(groups[1:])
    with pytest.raises(UserError, match=f"--cascade {CASCADE} --cascade mnn,rrt:2: no finished run above has all"):
        require_replayed(groups[1:], [CASCADE, "mnn,rrt:2"], [GATE])
    with pytest.raises(UserError, match=f"--gate {GATE}: no finished run above has both"):
        require_replayed(groups[1:], gates=[GATE])
