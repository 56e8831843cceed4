"""Measuring one call: synchronised wall time, peak memory, and torch's global flags left as they were."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")


def synchronize(device: torch.device) -> None:
    """Wait for queued work, so that a clock read after it counts the work and not its launch."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """The call's value and its wall time in milliseconds, device work included."""
    synchronize(device)
    start = time.perf_counter()
    value = call()
    synchronize(device)
    return value, (time.perf_counter() - start) * 1e3


@dataclass(frozen=True)
class CpuSeconds:
    """Seconds of processor time so far: of the whole machine, and of this process."""

    machine: float
    process: float
    at: float  # seconds of a steady clock

    @staticmethod
    def now(stat: Path = Path("/proc/stat")) -> CpuSeconds | None:
        """None where the system does not tell, as on others than Linux."""
        try:
            name, *ticks = stat.read_text().split("\n", 1)[0].split()
            user, nice, system, _, _, irq, softirq, *_ = (int(tick) for tick in ticks)
        except (OSError, ValueError):
            return None
        if name != "cpu":
            return None
        busy = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
        return CpuSeconds(busy, time.process_time(), time.monotonic())

    def others(self, later: CpuSeconds) -> float:
        """Cores that other programs kept busy between two such moments.

        >>> CpuSeconds(10, 1, 0).others(CpuSeconds(25, 6, 10))
        1.0
        """
        seconds = later.at - self.at
        used = (later.machine - self.machine) - (later.process - self.process)
        return max(0.0, used / seconds) if seconds > 0 else 0.0


def torch_flags() -> dict[str, object]:
    """The global switches of torch that change speed or results."""
    return {
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "default_dtype": str(torch.get_default_dtype()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "cuda_matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
    }


def _restore(flags: dict[str, object]) -> None:
    torch.set_grad_enabled(bool(flags["grad"]))
    if flags["threads"] != torch.get_num_threads():
        torch.set_num_threads(int(str(flags["threads"])))
    torch.set_default_dtype(getattr(torch, str(flags["default_dtype"]).removeprefix("torch.")))
    torch.use_deterministic_algorithms(bool(flags["deterministic"]))
    torch.set_float32_matmul_precision(str(flags["float32_matmul_precision"]))
    torch.backends.cudnn.benchmark = bool(flags["cudnn_benchmark"])
    torch.backends.cudnn.deterministic = bool(flags["cudnn_deterministic"])
    torch.backends.cudnn.allow_tf32 = bool(flags["cudnn_tf32"])


@contextmanager
def kept_torch_flags() -> Iterator[None]:
    """Whatever the body does to torch's global flags is undone, so that no method runs under another's settings."""
    before = torch_flags()
    try:
        yield
    finally:
        if torch_flags() != before:
            _restore(before)


@dataclass
class PeakMemory:
    """Largest memory in MiB above that at the start of the body; None where the platform cannot say."""

    mib: float | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """CUDA: the allocator's peak. Linux: the resident-set high-water mark, reset by the kernel at the start."""
    result = PeakMemory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        yield result
        result.mib = (torch.cuda.max_memory_allocated(device) - start) / 2**20
        return
    resettable = _reset_high_water_mark()
    before = _status_kib("VmRSS")
    yield result
    after = _status_kib("VmHWM")
    if resettable and before is not None and after is not None:
        result.mib = max(0, after - before) / 1024


def _reset_high_water_mark() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status_kib(name: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)
