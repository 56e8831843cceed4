"""`python -m tests.fuzz [--seconds N] [TARGET …]`: coverage-guided fuzzing (atheris) of every parser, bounded.

Each target runs in a process of its own, at most 2 GiB and 10 s an input; what breaks a parser is kept in
`results/fuzz/` and belongs into `tests/fuzz/corpus/TARGET/` once the parser is mended.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOUND = ROOT / "results" / "fuzz"
MEMORY, TIME = 2048, 10  # MiB and seconds an input may take


def fuzz(name: str, counts: Path, arguments: list[str]) -> None:
    """Run one target in this process until libFuzzer ends it; counts values and refusals in a file of two numbers."""
    import atheris
    import numpy as np

    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
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

    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def run(name: str, seconds: int) -> tuple[str, bool]:
    """A line of figures, and whether nothing but values and refusals came out."""
    from tests.fuzz.targets import CORPUS, TARGETS

    FOUND.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        grown, counts = Path(folder) / "corpus", Path(folder) / "counts"
        grown.mkdir()
        (grown / "seed").write_bytes(TARGETS[name].seed())
        limits = [f"-max_total_time={seconds}", f"-rss_limit_mb={MEMORY}", f"-timeout={TIME}", "-print_final_stats=1"]
        limits += [f"-artifact_prefix={FOUND / name}-", "-max_len=65536"]
        corpora = [str(place) for place in (grown, CORPUS / name) if place.is_dir()]
        command = [sys.executable, "-m", "tests.fuzz", "--child", str(counts), name, *limits, *corpora]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
        stats = dict(re.findall(r"stat::(\w+):\s+(\d+)", done.stderr))
        values, refused = (
            (int.from_bytes(counts.read_bytes()[at : at + 8], sys.byteorder) for at in (0, 8))
            if counts.is_file()
            else (0, 0)
        )
    line = f"{name:<20}{values + refused:>10}{values:>10}{refused:>10}{stats.get('slowest_unit_time_sec', '?'):>9}"
    line += f"{stats.get('peak_rss_mb', '?'):>9}  {'ok' if done.returncode == 0 else 'BROKEN'}"
    if done.returncode:
        line += "\n" + "\n".join(done.stderr.splitlines()[-40:])
    return line, done.returncode == 0


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        fuzz(sys.argv[3], Path(sys.argv[2]), sys.argv[4:])
        return 0
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=15, help="for each target")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)}; all of them if none")
    given = parser.parse_args()
    if unknown := set(given.targets) - TARGETS.keys():
        parser.error(f"unknown targets: {', '.join(sorted(unknown))}")
    print(f"{'target':<20}{'inputs':>10}{'values':>10}{'refused':>10}{'slowest s':>9}{'MiB':>9}")
    sound = True
    for name in given.targets or TARGETS:
        line, ok = run(name, given.seconds)
        print(line, flush=True)
        sound = sound and ok
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
