"""Places that cannot be written, two processes at once, and runs that were damaged: said, and nothing is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from bench.datasets import cached
from bench.errors import UserError
from bench.features.sets import ExtractOptions, SetName, part_folder
from bench.locks import alone, lock_of
from bench.places import Places
from bench.results import Run, read_runs
from cli import main
from tests.programs import Start

REPOSITORY = Path(__file__).resolve().parent.parent
SMALL = ["--max-side", "160", "--keep-descriptors", "150", "--threads", "1"]
Cli = Callable[..., Result]


@pytest.fixture
def command(program: Start) -> Start:
    """A real process of the command line, its output in pipes unless told otherwise."""
    return partial(program, "cli.py")


def asked(images: Path, place: Path, *more: str) -> list[str]:
    return [
        *("run", "-m", "mnn,identity", "-d", f"folder:{images}", *SMALL),
        *("--cache-dir", str(place / "cache"), "--runs", str(place / "runs"), *more),
    ]


def records(place: Path) -> list[tuple[str, str]]:
    (journal,) = (place / "runs").glob("*/journal.jsonl")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    return [(line["method"], line["query"]) for line in lines]


def table(output: bytes) -> list[str]:
    return [line for line in output.decode().splitlines() if not line.startswith("run:")]


# --- two at once --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("--force",)])
def test_the_same_command_twice_at_once_gives_one_run_and_one_table(
    command: Start, instances: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    name, options = f"folder:{instances}", ExtractOptions(160, 150)
    places = Places.of(tmp_path / "cache", tmp_path, tmp_path / "runs")
    store = part_folder(name, SetName.parse("gem-lite0").parts[0], options, places)  # which comes first
    with alone(store, "extracting into"):  # until both are at the same point
        both = [command(*asked(instances, tmp_path, *more)) for _ in range(2)]
        for process in both:
            assert process.stderr is not None
            assert f"another process is extracting into {store}; waiting" in process.stderr.readline().decode()
    done = [(process.communicate(timeout=200), process.returncode) for process in both]
    assert [code for _, code in done] == [0, 0], done
    (first, _), (second, _) = (out for out, _ in done)
    assert table(first) == table(second) and "mnn" in first.decode()
    found = records(tmp_path)
    assert len(found) == len(set(found)) == 18
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".lock") or ".tmp-" in path.name]


HOLDER = """
import sys, time
from pathlib import Path
from bench.locks import alone
with alone(Path(sys.argv[1]), "holding"):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder() -> Iterator[Callable[[Path], subprocess.Popen]]:
    """A process that holds the lock of a place until it is killed."""
    started = []

    def start(place: Path) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(place)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_who_waits_goes_on_when_the_holder_is_killed(
    command: Start, instances: Path, tmp_path: Path, holder: Callable
) -> None:
    assert command(*asked(instances, tmp_path)).finish().returncode == 0
    (run,) = (tmp_path / "runs").iterdir()
    held = holder(run)
    waiting = command(*asked(instances, tmp_path, "--force"))
    assert waiting.stderr is not None
    said = b""
    while b"waiting" not in said:
        assert waiting.poll() is None
        said += waiting.stderr.readline()
    assert b"another process is measuring" in said and run.name.encode() in said
    time.sleep(0.5)
    assert waiting.poll() is None and len(records(tmp_path)) == 18
    held.send_signal(signal.SIGKILL)
    waiting.communicate(timeout=200)
    assert waiting.returncode == 0 and len(set(records(tmp_path))) == len(records(tmp_path)) == 18


def test_a_lock_file_that_is_left_behind_holds_nobody_up(tmp_path: Path, holder: Callable) -> None:
    held = holder(tmp_path / "place")
    held.send_signal(signal.SIGKILL)
    held.wait()
    assert lock_of(tmp_path / "place").is_file()
    with alone(tmp_path / "place", "using") as locked:
        assert locked
    assert not lock_of(tmp_path / "place").exists()


COUNTED = """
import sys
from pathlib import Path
from bench.locks import alone
place = Path(sys.argv[1])
for _ in range(200):
    with alone(place / "counter", "counting"):
        before = int((place / "counter").read_text())
        (place / "counter").write_text(str(before + 1))
"""


def test_nobody_is_inside_together_however_often_the_lock_changes_hands(tmp_path: Path) -> None:
    (tmp_path / "counter").write_text("0")
    program = [sys.executable, "-c", COUNTED, str(tmp_path)]
    workers = [subprocess.Popen(program, cwd=REPOSITORY, stderr=subprocess.DEVNULL) for _ in range(3)]
    assert [worker.wait(100) for worker in workers] == [0, 0, 0]
    assert (tmp_path / "counter").read_text() == "600"


def test_a_generated_set_is_made_once_by_two_who_want_it(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom bench.datasets import cached\n"
        "def write(place):\n    time.sleep(0.3)\n    (place / 'made').write_text('x')\n    print('made')\n"
        "cached.make(Path(sys.argv[1]) / 'set', write)\n"
    )
    (tmp_path / "set.tmp-1-dead").mkdir()  # of a process that was killed
    both = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    out = [process.communicate(timeout=100)[0] for process in both]
    assert sorted(out) == [b"", b"made\n"] and [p.name for p in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"sha'])
def test_a_generated_set_whose_record_is_torn_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "content.json").write_text(text)
    with pytest.raises(UserError, match="cannot be read"):
        cached.load(tmp_path, "demo")


# --- damaged runs -------------------------------------------------------------------------------------------------


def _about(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def go(run: Path) -> None:
        about = json.loads((run / "run.json").read_text())
        change(about)
        (run / "run.json").write_text(json.dumps(about))

    return go


def _half(name: str) -> Callable[[Path], object]:
    return lambda run: os.truncate(run / name, (run / name).stat().st_size // 2)


def _other_queries(run: Path) -> None:
    content = json.loads((run / "dataset.json").read_text())
    content["queries"] = content["queries"][1:]
    (run / "dataset.json").write_text(json.dumps(content))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty record": lambda run: (run / "run.json").write_text(""),
    "record is a list": lambda run: (run / "run.json").write_text("[]"),
    "record is a folder": lambda run: [(run / "run.json").unlink(), (run / "run.json").mkdir()],
    "no identity": _about(lambda about: about.pop("identity")),
    "no seal": _about(lambda about: about["identity"].pop("seal")),
    "no costs": _about(lambda about: about.pop("costs")),
    "no card": _about(lambda about: about["cards"].clear()),
    "no date": _about(lambda about: about.update(finished=None)),
    "another seal": _about(lambda about: about["identity"].update(seal="00")),
    "other queries": _other_queries,
    **{
        f"half of {name}": _half(name)
        for name in ("run.json", "dataset.json", "shortlist.npz", "metrics.parquet", "scores.parquet", "ledger.parquet")
    },
    **{
        f"no {name}": lambda run, name=name: (run / name).unlink()  # type: ignore[misc]
        for name in ("dataset.json", "shortlist.npz", "metrics.parquet", "details.parquet")
    },
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, instances: Path, cache: Path) -> Path:
    """A folder of two runs, for `two` to copy."""
    runs = tmp_path_factory.mktemp("kept") / "runs"
    folders = {"RERANKBENCH_CACHE": str(cache), "RERANKBENCH_RUNS": str(runs)}
    for name in ("identity", "reverse"):
        done = CliRunner(env=folders).invoke(main, ["run", "-m", name, "-d", f"folder:{instances}", *SMALL])
        assert done.exit_code == 0, done.output
    return runs


@pytest.fixture
def two(kept: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A sound run, and a second one to be damaged."""
    runs = shutil.copytree(kept, tmp_path / "runs")
    sound, other = sorted(runs.iterdir(), key=lambda p: "reverse" in json.loads((p / "run.json").read_text())["costs"])
    return sound, other


def test_a_damaged_run_is_named_and_left_out_of_every_report(cli: Cli, two: tuple[Path, Path], tmp_path: Path) -> None:
    sound, other = two
    runs, plain = sound.parent, tmp_path / "plain"
    shutil.copytree(other, plain)
    for what, damage in DAMAGE.items():
        shutil.rmtree(other)
        shutil.copytree(plain, other)
        damage(other)
        result = cli("report", "--format", "json")
        assert result.exit_code == 0, (what, result.output)
        assert [row["method"] for row in json.loads(result.stdout)["rows"]] == ["identity"], what
        note = f"note: {other} is damaged and left out: "
        assert note in result.stderr and result.stderr.count(str(other)) == 1, (what, result.stderr)
        found = read_runs(runs)
        assert list(found.damaged) == [other.name] and found.unfinished == {} and len(found.finished) == 1
    for arguments in (("export",), ("export", "--format", "csv")):
        assert cli(*arguments, "--out", str(tmp_path / "out")).exit_code == 0
        result = cli(*arguments, "--out", str(tmp_path / "out"), "--run", str(other))
        assert result.exit_code == 1 and "damaged" in result.output and "hint" in result.output


def test_a_damaged_run_is_made_whole_by_its_command(
    cli: Cli, two: tuple[Path, Path], instances: Path, tmp_path: Path
) -> None:
    _, other = two
    plain = tmp_path / "plain"
    shutil.copytree(other, plain)
    for what in ("empty record", "half of run.json", "no identity", "no metrics.parquet", "half of shortlist.npz"):
        shutil.rmtree(other)
        shutil.copytree(plain, other)
        DAMAGE[what](other)
        result = cli("run", "-m", "reverse", "-d", f"folder:{instances}", *SMALL)
        assert result.exit_code == 0 and "resuming" in result.stderr, (what, result.output)
        assert Run.load(other).damage() == ""
        assert (other / "journal.jsonl").read_bytes() == (plain / "journal.jsonl").read_bytes()


def test_unfinished_runs_are_named_with_the_command_that_finishes_them(cli: Cli, two: tuple[Path, Path]) -> None:
    _, other = two
    command = ["cli.py", "run", "-d", "folder:/my photos"]
    _about(lambda about: (about.update(status="running"), about["provenance"].update(command=command)))(other)
    result = cli("report")
    assert result.exit_code == 0
    finish = "this finishes it: python cli.py run -d 'folder:/my photos'"
    assert f"{other} is unfinished and left out; {finish}" in result.stderr
    lock_of(other).touch()
    shutil.copytree(other, other.with_name("more"))
    _about(lambda about: about.pop("provenance"))(other.with_name("more"))
    assert f"{other.with_name('more')} is unfinished and left out\n" in cli("report").stderr
    for number in range(5):
        shutil.copytree(other, other.with_name(f"more{number}"))
    assert "2 more unfinished runs" in cli("report").stderr


def test_runs_of_another_version_are_counted_and_named(cli: Cli, two: tuple[Path, Path]) -> None:
    _, other = two
    _about(lambda about: about.update(format=2))(other)
    assert f"1 run is of another version and left out of {other.parent}: {other.name}" in cli("report").stderr


# --- places that cannot be written --------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc, where nobody can make a folder")
@pytest.mark.parametrize("option", ["--cache-dir", "--runs"])
def test_a_run_that_cannot_write_says_where(cli: Cli, instances: Path, option: str) -> None:
    result = cli("run", "-m", "identity", "-d", f"folder:{instances}", *SMALL, option, "/proc/nowhere")
    assert result.exit_code == 1 and "Error: /proc/nowhere" in result.output and "hint" in result.output


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc, where nobody can make a folder")
def test_every_output_that_cannot_be_written_is_a_message(cli: Cli, two: tuple[Path, Path], instances: Path) -> None:
    for arguments in (
        ("report", "--plots", "/proc/nowhere"),
        ("report", "--html", "/proc/nowhere/page.html"),
        ("report", "--plots", "/proc/nowhere", "--worst", "reverse"),
        ("export", "--out", "/proc/nowhere"),
        ("sweep", "-m", "mnn", "-d", f"folder:{instances}", *SMALL, "--descriptors", "25", "--out", "/proc/nowhere"),
        ("train", "asmk", "--photos", str(instances), "--words", "5", "--out", "/proc/nowhere/w.safetensors"),
        ("train", "rrt", "--out", "/proc/nowhere/w.safetensors"),
        ("run", "-m", "identity", "-d", "demo", "--cache-dir", "/proc/nowhere"),
    ):
        result = cli(*arguments)
        assert result.exit_code == 1 and "Error: /proc/nowhere" in result.output, (arguments, result.output)


def test_a_baseline_below_a_file_is_a_message(cli: Cli, instances: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert cli("run", "-m", "mnn", "-d", f"folder:{instances}", *SMALL).exit_code == 0
    result = cli("check", "--write", "--baseline", str(tmp_path / "file" / "b.json"))
    assert result.exit_code == 1 and "cannot write" in result.output and "a file stands where" in result.output


FULL = """
import resource, signal, sys
from cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
main()
"""


@pytest.mark.parametrize(
    "arguments", [("report", "--plots", "{out}"), ("export", "--format", "csv", "--out", "{out}/out")]
)
def test_a_disk_full_in_the_middle_of_an_output_is_a_message(
    program: Start, two: tuple[Path, Path], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    given = [text.format(out=tmp_path / "out") for text in arguments]
    done = program("-c", FULL, "64", *given, "--runs", str(two[0].parent)).finish()
    assert done.returncode == 1 and "cannot write" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_nothing_is_written_where_nothing_is_to_be_done(cli: Cli, instances: Path, cache: Path, tmp_path: Path) -> None:
    """A cache and runs that others made, and that may not be written: not even a lock is."""
    given = ("run", "-m", "identity", "-d", f"folder:{instances}", *SMALL)
    assert cli(*given).exit_code == 0

    def written() -> dict[Path, int]:
        folders = [path for place in (cache, tmp_path / "runs") for path in (place, *place.rglob("*"))]
        return {path: path.stat().st_mtime_ns for path in folders}

    before = written()
    result = cli(*given)
    assert result.exit_code == 0 and "already finished" in result.stderr and written() == before
    assert cli("report").exit_code == 0 and written() == before


def test_doctor_tries_to_write_where_it_says_one_can(cli: Cli, tmp_path: Path) -> None:
    for option, what in (("--cache-dir", "cache"), ("--runs", "runs")):
        result = cli("doctor", option, "/proc/nowhere")
        assert result.exit_code == 1
        assert re.search(rf"^FAIL  {what}: /proc/nowhere \(cannot be written: ", result.output, re.MULTILINE)


# --- names of folders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--cache-dir", "--runs", "--data-root"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "empty"),
        ("caf\udce9", "caf\\xe9: the name is not UTF-8"),
        ("{file}/below", "is a file"),
        ("{file}", "file"),
    ],
)
def test_a_name_that_can_be_no_folder_is_refused(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, name: str, said: str
) -> None:
    (tmp_path / "a file").touch()
    name = name.format(file=tmp_path / "a file")
    result = cli("report", option, name)
    assert result.exit_code == 2 and said in result.output
    if name:
        variable = {"--cache-dir": "RERANKBENCH_CACHE", "--runs": "RERANKBENCH_RUNS", "--data-root": "RERANKBENCH_DATA"}
        monkeypatch.setenv(variable[option], name)
        result = cli("report")
        assert result.exit_code == 1 and said in result.output and variable[option] in result.output


# --- the terminal -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("arguments", [("run", "--help"), ("methods",), ("report",)])
def test_a_terminal_that_takes_nothing_is_a_message(
    command: Start, arguments: tuple[str, ...], two: tuple[Path, Path]
) -> None:
    with open("/dev/full", "w") as full:
        process = command(*arguments, env={"RERANKBENCH_RUNS": str(two[0].parent)}, stdout=full)
        _, said = process.communicate(timeout=100)
    assert process.returncode == 1
    assert said.decode() == "Error: cannot write to the output: No space left on device\n"


@pytest.mark.parametrize("arguments", [("report",), ("run", "--help")])
def test_a_reader_that_has_read_enough_ends_the_command_quietly(
    command: Start, arguments: tuple[str, ...], two: tuple[Path, Path]
) -> None:
    process = command(*arguments, env={"RERANKBENCH_RUNS": str(two[0].parent)})
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(100) in (0, 1)
    process.stderr.close()


IN_TURN = """
import json, sys
from cli import main
for arguments in json.loads(sys.argv[1]):
    main(arguments, standalone_mode=False)
    print("<end>")
"""


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_a_terminal_that_knows_ascii_alone_shows_the_table(
    instances: Path, cache: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    places = {"RERANKBENCH_CACHE": str(cache), "RERANKBENCH_RUNS": str(tmp_path / "runs"), **environment}
    commands = [["run", "-m", "mnn,identity", "-d", f"folder:{instances}", *SMALL], ["report"], ["methods"]]
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN, json.dumps(commands)],
        cwd=REPOSITORY,
        env={**os.environ, **places},
        capture_output=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).isascii()
    *outputs, rest = done.stdout.decode().split("<end>\n")
    assert len(outputs) == len(commands) and not rest
    for out in outputs:
        widths = {len(line) for line in out.splitlines() if line.startswith("|")}
        assert "mnn" in out and len(widths) == 1, "columns stand below one another"


def test_a_name_that_is_not_utf_8_is_printed_escaped(command: Start, tmp_path: Path) -> None:
    process = command("run", "-m", "identity", "-d", b"folder:/nowhere/caf\xe9".decode(errors="surrogateescape"))
    _, said = process.communicate(timeout=100)
    assert process.returncode == 1 and b"/nowhere/caf\\xe9" in said and b"Traceback" not in said


def test_images_from_the_future_are_read(cli: Cli, view: Callable[[int, int], np.ndarray], tmp_path: Path) -> None:
    for number in range(4):
        folder = tmp_path / "set" / f"object{number // 2}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"view{number}.png"
        Image.fromarray(view(number // 2, number)).save(path)
        os.utime(path, (5e9, 5e9) if number else (-5e8, -5e8))
    given = ("run", "-m", "identity", "-d", f"folder:{tmp_path / 'set'}", *SMALL)
    assert cli(*given).exit_code == 0
    assert "already finished" in cli(*given).stderr


def test_a_run_beside_other_work_says_so(cli: Cli, two: tuple[Path, Path]) -> None:
    for busy, said in ((0.0, False), (None, False), (1e3, True)):
        for folder in two:
            _about(lambda about, busy=busy: about.update(others_busy=busy))(folder)
        assert ("cores busy while this was measured" in cli("report").stdout) == said
