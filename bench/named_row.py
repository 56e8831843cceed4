"""Which row of a finished run a user means, and with which options."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import registry
from bench.errors import UserError, listed
from bench.reranker import parse_options
from bench.results import Run
from bench.rows import Asked, same_row


@dataclass(frozen=True, eq=False)
class NamedRow:
    """A row of a run, with the row's options or with others that were given."""

    run: Run
    row: str
    options: Any
    given: Mapping[str, str]  # options that were given, as the command line has them

    @property
    def as_run(self) -> bool:
        """Whether the row was run with these options; a run does not know those that are younger than it."""
        recorded, plain = self.run.record.identity.methods[self.row].options, vars(self.options)
        return _texts(recorded) == _texts({key: value for key, value in plain.items() if key in recorded})

    @property
    def shown(self) -> str:
        """Its name, with the options that were given."""
        return " ".join([self.row, *(f"{key}={value}" for key, value in sorted(self.given.items()))])


def named_row(
    runs: Sequence[Run],
    method: str,
    given: Mapping[str, Mapping[str, str]],
    fits: Callable[[Run], bool] = lambda run: True,
) -> NamedRow | None:
    """The row METHOD or METHOD@FEATURES of the newest run that has it and `fits`; None where none of those that have it
    does.

    `runs` are oldest first. `given` are options by method or row, which stand before those of the run; a run that has
    them is preferred. UserError for a row that no run has, and for options of another method.
    """
    having = [(run, row) for run in reversed(runs) for row in _rows(run, method)]
    if not having:
        rows = dict.fromkeys(row for run in reversed(runs) for row in run.record.costs)
        raise UserError(
            f"--method {method}: no finished run has this row",
            hint=f"rows there are: {listed(list(rows), 20)}" if rows else "run it first: `run --method …`",
        )
    for target in given:
        if target not in {method, Asked.parse(method).method, *(row for _, row in having)}:
            raise UserError(f"-o {target}.…: the method is {method}", hint=f"-o {Asked.parse(method).method}.OPTION=…")
    found = [_with(run, row, _all(given, method, row)) for run, row in having if fits(run)]
    return next((one for one in found if one.as_run), found[0] if found else None)


def _rows(run: Run, method: str) -> Iterator[str]:
    """The rows of a run that METHOD or METHOD@FEATURES names; METHOD alone is any row of it where no other is."""
    methods = run.record.identity.methods
    named = [row for row in run.record.costs if same_row(method, row, methods[row].features)]
    yield from named or [row for row in run.record.costs if row.partition("@")[0] == method]


def _all(given: Mapping[str, Mapping[str, str]], method: str, row: str) -> dict[str, str]:
    names = (Asked.parse(method).method, method, row)
    return {option: text for name in dict.fromkeys(names) for option, text in given.get(name, {}).items()}


def _with(run: Run, row: str, given: Mapping[str, str]) -> NamedRow:
    """With options that are given before the row's own; a preset that is given sets all others anew."""
    recorded = {} if "preset" in given else _texts(run.record.identity.methods[row].options)
    options = parse_options(registry.get(row.partition("@")[0]), {**recorded, **given})
    return NamedRow(run, row, options, given)


def _texts(options: Mapping[str, Any]) -> dict[str, str]:
    """Options of a record as the command line has them."""

    def text(value: Any) -> str:
        if isinstance(value, list | tuple):
            return ",".join(map(str, value)) or "none"
        return str(value).lower() if isinstance(value, bool) or value is None else str(value)

    return {key: text(value) for key, value in options.items()}
