"""`python -m tests.torture [--seconds 300] [--only NAME] [--seed N]`: what may happen to a command, over and over.

Each round has a folder of its own. After it the folder must be what an undisturbed command leaves: the same tables and
features, no query twice, no temporary file, and no finished work done again. A round that fails is printed with its
commands, and its folder is kept. `--only NAME --seed N --first K --rounds 1` plays round K again.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.torture.process import ALONE

if TYPE_CHECKING:
    from tests.torture.scenarios import Bench


@dataclass
class Tally:
    """What came of a scenario's rounds."""

    rounds: int = 0
    hits: int = 0
    failures: int = 0
    seconds: float = 0.0
    skipped: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    os.environ.update(ALONE)
    from tests.torture import inputs, process, server
    from tests.torture.scenarios import SCENARIOS, Bench

    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="for all scenarios together")
    parser.add_argument("--rounds", type=int, help="of each scenario, however long they take")
    parser.add_argument("--hits", type=int, help="until so many disturbances of each scenario met a command")
    parser.add_argument("--only", action="append", choices=SCENARIOS, metavar="NAME", help=", ".join(SCENARIOS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    given = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="rerankbench-torture-"))
    serving = None
    tallies = {name: Tally() for name in given.only or SCENARIOS}
    end = time.monotonic() + given.seconds
    number = given.first
    try:
        process.prepare()
        made = process.apart(inputs.make, folder / "inputs")
        serving = server.serve(made.served, folder / "requests")
        bench = Bench(folder, made, serving)
        while going := _going(tallies, given, number, end):
            for name in going:
                if given.rounds is None and time.monotonic() > end:
                    break
                _play(bench, name, given.seed, number, tallies[name])
            number += 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    finally:
        if serving is not None:
            with suppress(ProcessLookupError):
                os.killpg(serving.pid, signal.SIGKILL)
        print(_table(tallies))
        if not any(tally.failures for tally in tallies.values()):
            shutil.rmtree(folder, ignore_errors=True)
    return int(any(tally.failures for tally in tallies.values()))


def _going(tallies: dict[str, Tally], given: argparse.Namespace, number: int, end: float) -> list[str]:
    """The scenarios that have a round to come."""
    able = [name for name, tally in tallies.items() if not tally.skipped]
    if given.rounds is not None:
        return able if number < given.first + given.rounds else []
    if given.hits is not None:
        able = [name for name in able if tallies[name].hits < given.hits]
    return able if time.monotonic() < end else []


def _play(bench: Bench, name: str, seed: int, number: int, tally: Tally) -> None:
    from tests.torture.scenarios import SCENARIOS, Round, Skipped, Wrong

    folder = bench.folder / f"{name}-{number}"
    folder.mkdir()
    round = Round(bench, folder, random.Random(f"{seed} {name} {number}"))
    began = time.monotonic()
    try:
        SCENARIOS[name].play(round)
    except Skipped as reason:
        tally.skipped = str(reason)
        shutil.rmtree(folder, ignore_errors=True)
        return
    except (Wrong, RuntimeError, OSError, ValueError) as error:
        tally.failures += 1
        said = str(error) if isinstance(error, Wrong) else traceback.format_exc()
        steps = "\n".join(f"  {step}" for step in round.steps)
        print(f"FAILED {name}: --seed {seed} --first {number}, kept in {folder}\n{steps}\n{said}\n", flush=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    tally.rounds += 1
    tally.hits += round.hits
    tally.seconds += time.monotonic() - began


def _table(tallies: dict[str, Tally]) -> str:
    lines = [f"{'scenario':<24}{'rounds':>8}{'hits':>8}{'failures':>10}{'seconds':>10}"]
    for name, tally in tallies.items():
        line = f"{name:<24}{tally.rounds:>8}{tally.hits:>8}{tally.failures:>10}{tally.seconds:>10.0f}"
        lines.append(line + (f"  skipped: {tally.skipped}" if tally.skipped else ""))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
