"""What a report shows together: runs that may share a table, and the rows replayed from their stored scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import cascade, gate
from bench.blend import Blend
from bench.errors import UserError, listed
from bench.replay import Replay
from bench.report.limits import Limits
from bench.report.tables import Table, compare, table_groups
from bench.results import Run


@dataclass(frozen=True)
class Scope:
    """The runs that a report is of: of one data set and of seals that begin so, or all where a field is None."""

    dataset: str | None = None  # its name, its path as it was given, or the last part of the path
    seal: str | None = None

    @property
    def narrows(self) -> bool:
        return bool(self.dataset or self.seal)

    def has_dataset(self, name: str) -> bool:
        """Whether a data set of this name, as a run has it, is meant."""
        if self.dataset is None:
            return True
        kind, colon, path = self.dataset.partition(":")
        given = f"{kind}:{Path(path).expanduser().resolve()}" if colon else self.dataset
        return name in (self.dataset, given) or (":" in name and Path(name.partition(":")[2]).name == self.dataset)

    def has(self, run: Run) -> bool:
        seal = self.seal is None or run.seal.startswith(self.seal)
        return seal and self.has_dataset(run.record.identity.shortlist.dataset)


@dataclass(frozen=True, eq=False)
class Group:
    """Measured runs of one seal and machine, what is replayed from their scores, and the table of them all."""

    measured: tuple[Run, ...]  # oldest first
    cascades: tuple[Replay, ...]
    gates: tuple[Replay, ...]
    table: Table

    @property
    def runs(self) -> tuple[Run, ...]:
        """All that the table is of."""
        return (*self.measured, *self.cascades, *self.gates)


def grouped(
    runs: Sequence[Run],
    cascades: Sequence[str] = (),
    gates: Sequence[str] = (),
    blend: Blend = Blend(),
    limits: Limits | None = None,
) -> list[Group]:
    """A group for each seal and machine of the runs, which are oldest first; the newest group is last.

    A cascade (METHOD,METHOD:FIRST…) or gate (JUDGE:MOST,RERANKER) is in the groups that have its methods. `limits` asks
    of each table for the best row that costs no more. UserError for a cascade or gate that cannot be read or replayed.
    """
    found = []
    for group in table_groups(runs):
        by_stages = [cascade.replay(group, text.split(",")) for text in cascades]
        by_judge = [gate.replay(group, text) for text in gates]
        of_cascades, of_gates = (tuple(again for again in some if again) for some in (by_stages, by_judge))
        table = compare([*group, *of_cascades, *of_gates], blend, limits=limits)
        found.append(Group(tuple(group), of_cascades, of_gates, table))
    return found


def sealed(runs: Sequence[Run]) -> str | None:
    """Of which data sets and seals there are runs, newest first, for who asked for others; None where there is none."""
    found: dict[str, dict[str, None]] = {}
    for run in reversed(runs):
        found.setdefault(run.shortlist.header.dataset, {})[run.seal[:8]] = None
    named = [f"{dataset} (seal {listed(list(seals))})" for dataset, seals in found.items()]
    return f"there are runs of {listed(named)}" if named else None


def run_rows(runs: Sequence[Run]) -> str:
    """The rows of each seal, newest first, for who asked for others."""
    found: dict[str, dict[str, None]] = {}
    for run in reversed(runs):
        found.setdefault(run.seal[:8], {}).update(dict.fromkeys(run.record.costs))
    return "rows are " + "; ".join(f"{', '.join(rows)} (seal {seal})" for seal, rows in found.items())


def require_replayed(groups: Sequence[Group], cascades: Sequence[str] = (), gates: Sequence[str] = ()) -> None:
    """UserError where cascades are asked for and no group has one, or gates."""
    runs = sorted((run for group in groups for run in group.measured), key=lambda run: run.record.finished)
    if cascades and not any(group.cascades for group in groups):
        raise UserError(
            f"--cascade {' --cascade '.join(cascades)}: no finished run above has all of its methods",
            hint=f"{run_rows(runs)}; stages are METHOD and METHOD:FIRST, for example --cascade rrt,lightglue:20",
        )
    if gates and not any(group.gates for group in groups):
        raise UserError(
            f"--gate {' --gate '.join(gates)}: no finished run above has both methods",
            hint=f"{run_rows(runs)}; a gate is JUDGE:MOST,RERANKER, for example --gate ransac:20,lightglue",
        )
