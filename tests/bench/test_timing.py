"""Measuring counts the work, finds the peak, and leaves torch as it was."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from bench.timing import CpuSeconds, kept_torch_flags, timed, torch_flags
from tests.programs import Start

CPU = torch.device("cpu")


def test_a_call_is_timed_in_milliseconds_and_its_value_given_back() -> None:
    value, ms = timed(lambda: time.sleep(0.05) or 7, CPU)
    assert value == 7 and 50 <= ms < 1000


CHANGES = {
    "threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "grad": lambda: torch.set_grad_enabled(False),
    "default_dtype": lambda: torch.set_default_dtype(torch.float64),
    "deterministic": lambda: torch.use_deterministic_algorithms(True),
    "float32_matmul_precision": lambda: torch.set_float32_matmul_precision("medium"),
    "cudnn_benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", not torch.backends.cudnn.benchmark),
    "cudnn_deterministic": lambda: setattr(torch.backends.cudnn, "deterministic", True),
    "cudnn_tf32": lambda: setattr(torch.backends.cudnn, "allow_tf32", not torch.backends.cudnn.allow_tf32),
    "cuda_matmul_tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
}


@pytest.mark.parametrize("flag", list(CHANGES))
def test_every_flag_of_torch_is_seen_and_put_back(flag: str) -> None:
    assert set(CHANGES) == set(torch_flags())
    before = torch_flags()
    with kept_torch_flags():
        CHANGES[flag]()
        assert torch_flags()[flag] != before[flag]
    assert torch_flags() == before


def test_flags_are_put_back_when_the_body_raises() -> None:
    before = torch_flags()
    with pytest.raises(RuntimeError, match="midway"), kept_torch_flags():
        torch.set_grad_enabled(False)
        raise RuntimeError("midway")
    assert torch_flags() == before


PEAKS = """
import torch
from bench.timing import peak_memory
with peak_memory(torch.device("cpu")) as peak:
    block = bytearray(b"x" * (200 * 2**20))  # 400 MiB while it is copied
    del block
with peak_memory(torch.device("cpu")) as nothing:
    pass
print(peak.mib, nothing.mib)
"""


def test_the_peak_is_that_of_the_body_even_if_it_is_given_back(program: Start) -> None:
    """In a process of its own: here other threads may give memory of earlier tests back meanwhile."""
    done = program("-c", PEAKS).finish()
    assert done.returncode == 0, done.stderr
    peak, nothing = done.stdout.split()
    if peak == "None":
        pytest.skip("this platform cannot say the peak")
    assert 300 < float(peak) < 500 and float(nothing) < 50


# --- other programs -------------------------------------------------------------------------------------------------


def test_the_machine_s_processor_time_is_read_from_its_ticks(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    stat = tmp_path / "stat"
    stat.write_text(
        f"cpu  {3 * ticks} {ticks} {2 * ticks} 99999 88888 {ticks} {ticks} 0 0 0\ncpu0 1 2 3 4 5 6 7 0 0 0\n"
    )
    found = CpuSeconds.now(stat)
    assert found is not None and found.machine == pytest.approx(8)


@pytest.mark.parametrize("text", ["", "cpu", "cpu a b c d e f g", "mem 1 2 3 4 5 6 7"])
def test_a_system_that_does_not_tell_is_not_guessed_at(tmp_path: Path, text: str) -> None:
    (tmp_path / "stat").write_text(text)
    assert CpuSeconds.now(tmp_path / "stat") is None and CpuSeconds.now(tmp_path / "none") is None


def test_what_this_process_uses_is_not_of_others() -> None:
    before, after = CpuSeconds(100, 10, 0), CpuSeconds(120, 30, 10)
    assert before.others(after) == 0 and before.others(CpuSeconds(145, 30, 10)) == 2.5 and before.others(before) == 0
