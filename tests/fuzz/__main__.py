"""`python -m tests.fuzz [--seconds N | --inputs N] [--keep] [TARGET …]`: coverage-guided fuzzing of every parser.

Each target runs in a process of its own (atheris), at most 2 GiB and 10 s an input; what breaks a parser is kept in
`results/fuzz/` and belongs into `tests/fuzz/corpus/TARGET/` once the parser is mended. `--inputs` goes by inputs
instead of seconds, for a long run: the 15 s of the default are some thousands. `--keep` adds to the corpus what reaches
code that nothing in it reached, as long as that is small.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOUND = ROOT / "results" / "fuzz"
MEMORY, TIME = 2048, 10  # MiB and seconds an input may take
LONGEST = 65_536  # bytes of an input
KEPT_BYTES, KEPT_FILES = 512, 16  # of an input, and inputs of a target that are kept at most


@dataclass(frozen=True)
class Bound:
    """When a target is done: after so many seconds or so many inputs, whichever is given."""

    seconds: int | None = None
    inputs: int | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.seconds, self.inputs) if value is not None]
        if len(given) != 1 or given[0] < 1:
            raise ValueError(f"{self}: expected one number of at least 1")

    @property
    def flag(self) -> str:
        """As libFuzzer takes it."""
        return f"-runs={self.inputs}" if self.seconds is None else f"-max_total_time={self.seconds}"


def fuzz(name: str, counts: Path, arguments: list[str]) -> None:
    """Run one target in this process until libFuzzer ends it; counts values and refusals in a file of two numbers."""
    import atheris
    import numpy as np

    folder = Path(tempfile.mkdtemp(dir=counts.parent))
    outcomes = np.memmap(counts, np.int64, "w+", shape=2)
    with atheris.instrument_imports(include=["bench", "third_party"]):
        from bench.errors import UserError
        from tests.fuzz.targets import TARGETS

        target = TARGETS[name]
        path = folder / f"input{target.suffix}"
        path.write_bytes(target.seed())
        target.parse(path)  # imports what it needs, so that it is instrumented

    def one(data: bytes) -> None:
        path.write_bytes(data)
        try:
            target.parse(path)
            outcomes[0] += 1
        except UserError:
            outcomes[1] += 1

    # libFuzzer starts itself again to merge: by the first of its arguments, which must be a program
    again = folder / "again"
    command = shlex.join([sys.executable, "-m", "tests.fuzz", "--child", str(counts), name])
    again.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    again.chmod(0o755)
    atheris.Setup([str(again), *arguments], one)
    atheris.Fuzz()


def run(name: str, bound: Bound, keep: bool = False) -> tuple[str, bool]:
    """A line of figures, and whether nothing but values and refusals came out."""
    from tests.fuzz.targets import CORPUS, TARGETS

    FOUND.mkdir(parents=True, exist_ok=True)
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # every input is a file
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        grown, counts = Path(folder) / "corpus", Path(folder) / "counts"
        grown.mkdir()
        (grown / "seed").write_bytes(TARGETS[name].seed())
        corpora = [place for place in (grown, CORPUS / name) if place.is_dir()]
        done = _child(name, counts, [bound.flag, f"-artifact_prefix={FOUND / name}-"], corpora)
        stats = dict(re.findall(r"stat::(\w+):\s+(\d+)", done.stderr))
        values, refused = (
            (int.from_bytes(counts.read_bytes()[at : at + 8], sys.byteorder) for at in (0, 8))
            if counts.is_file()
            else (0, 0)
        )
        kept = _keep(name, grown, Path(folder)) if keep and not done.returncode else 0
    line = f"{name:<24}{values + refused:>10}{values:>10}{refused:>10}{stats.get('slowest_unit_time_sec', '?'):>10}"
    line += f"{stats.get('peak_rss_mb', '?'):>7}  {'BROKEN' if done.returncode else 'ok'}"
    line += f", {kept} inputs kept" * bool(kept)
    if done.returncode:
        line += "\n" + "\n".join(_readable(done.stderr)[-60:])
    return line, done.returncode == 0


def _child(name: str, counts: Path, flags: Sequence[str], corpora: Sequence[Path]) -> subprocess.CompletedProcess[str]:
    limits = [f"-rss_limit_mb={MEMORY}", f"-timeout={TIME}", f"-max_len={LONGEST}", "-print_final_stats=1"]
    command = [sys.executable, "-m", "tests.fuzz", "--child", str(counts), name, *limits, *flags, *map(str, corpora)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")


def _readable(said: str) -> list[str]:
    """What libFuzzer and Python say of a failure, without the lines on progress."""
    return [line for line in said.splitlines() if not line.startswith("#")]


def _keep(name: str, grown: Path, folder: Path) -> int:
    """Add inputs that reach what the corpus does not, the longest of the short ones; how many were added."""
    from tests.fuzz.targets import CORPUS

    corpus, merged = CORPUS / name, folder / "merged"
    merged.mkdir()
    before = {shutil.copy(file, merged) for file in corpus.glob("*")}
    _child(name, folder / "uncounted", ["-merge=1"], [merged, grown])
    new = [(file.stat().st_size, file) for file in merged.iterdir() if file not in before]
    new = sorted((one for one in new if one[0] <= KEPT_BYTES), reverse=True)[: max(0, KEPT_FILES - len(before))]
    for _, file in new:
        corpus.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, corpus / file.name[:12])
    return len(new)


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        fuzz(sys.argv[3], Path(sys.argv[2]), sys.argv[4:])
        return 0
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    bounds = parser.add_mutually_exclusive_group()
    bounds.add_argument("--seconds", type=int, default=15, help="for each target")
    bounds.add_argument("--inputs", type=int, help="of each target, however long they take; for example 1000000")
    parser.add_argument("--keep", action="store_true", help="add to the corpus what reaches more of the code")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)}; all of them if none")
    given = parser.parse_args()
    if unknown := set(given.targets) - TARGETS.keys():
        parser.error(f"unknown targets: {', '.join(sorted(unknown))}")
    try:
        bound = Bound(inputs=given.inputs) if given.inputs is not None else Bound(seconds=given.seconds)
    except ValueError as error:
        parser.error(str(error))
    print(f"{'target':<24}{'inputs':>10}{'values':>10}{'refused':>10}{'slowest s':>10}{'MiB':>7}")
    sound = True
    for name in given.targets or TARGETS:
        line, ok = run(name, bound, given.keep)
        print(line, flush=True)
        sound = sound and ok
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
