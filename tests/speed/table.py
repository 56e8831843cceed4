"""One form for every comparison: how many times as fast, what share of the machine's peak, and what bounds it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.speed import Medians, interleaved

WIDTH = 100  # columns of a terminal
WHAT, AGAINST = 22, 13  # letters
SIDE, COPIED = 1024, 1 << 25  # of the matrices and bytes whose product and copy are the machine's peaks
LEAST_SHARE = 0.1  # of a peak; below it, what is between the operations takes the time


@dataclass(frozen=True)
class Work:
    """What a unit of work takes at least."""

    flops: float  # floating-point operations; a multiplication and an addition are two
    bytes: float = 0.0  # read from memory or written to it once; what fits a cache while it is used is not counted

    def __post_init__(self) -> None:
        if not (self.flops >= 0 and self.bytes >= 0 and self.flops + self.bytes > 0):
            raise ValueError(f"{self.flops} operations and {self.bytes} bytes: expected some of either")


@dataclass(frozen=True)
class Peaks:
    """What the machine reaches with as many threads as the work has."""

    flops: float  # a second, of the product of two matrices
    bytes: float  # a second, read and written, of copying

    def __post_init__(self) -> None:
        if not (self.flops > 0 and self.bytes > 0):
            raise ValueError(f"peaks of {self.flops} FLOP/s and {self.bytes} bytes/s: expected more than 0")

    def bound(self, work: Work, seconds: float) -> str:
        """What bounds work that takes so long.

        >>> Peaks(100e9, 10e9).bound(Work(4.3e9, 1e6), 0.1)
        'arithmetic, 43 % of 100 GFLOP/s'
        >>> Peaks(100e9, 10e9).bound(Work(1e6, 6e8), 0.1)
        'memory, 60 % of 10 GB/s'
        >>> Peaks(100e9, 10e9).bound(Work(1e8, 0), 0.1)
        'calls, 1 % of 100 GFLOP/s'
        """
        shares = {"arithmetic": work.flops / self.flops / seconds, "memory": work.bytes / self.bytes / seconds}
        most = max(shares, key=lambda name: shares[name])
        peak = {"arithmetic": f"{self.flops / 1e9:.0f} GFLOP/s", "memory": f"{self.bytes / 1e9:.0f} GB/s"}[most]
        name = most if shares[most] >= LEAST_SHARE else "calls"
        return f"{name}, {100 * shares[most]:.0f} % of {peak}"


class Probe:
    """Calls that find the machine's peaks; they take turns with what is compared with them."""

    def __init__(self, threads: int | None = None, dtype: torch.dtype = torch.float32):
        square = torch.randn(SIDE, SIDE, dtype=dtype)
        image, kernel = square.T[None, :, :, None], square[:, :, None, None]
        source = torch.zeros(COPIED, dtype=torch.uint8)
        copy = torch.empty_like(source)
        calls: dict[str, Callable[[], object]] = {
            "peak, mm": partial(torch.mm, square, square),
            "peak, copy": partial(copy.copy_, source),
        }
        if dtype == torch.float32:  # the other library of torch's has none in double precision
            calls["peak, conv"] = partial(F.conv2d, image, kernel)
        self.calls: Mapping[str, Callable[[], object]] = {
            name: partial(on_threads, threads, call) for name, call in calls.items()
        }

    def peaks(self, medians: Medians) -> Peaks:
        seconds = medians.seconds
        product = min(seconds[name] for name in self.calls if name != "peak, copy")
        return Peaks(2 * SIDE**3 / product, 2 * COPIED / seconds["peak, copy"])


def on_threads(threads: int | None, call: Callable[[], object]) -> object:
    """`call` while torch has so many threads; None: those that it has."""
    before = torch.get_num_threads()
    if threads in (None, before):
        return call()
    torch.set_num_threads(threads)
    try:
        return call()
    finally:
        torch.set_num_threads(before)


def flops_of(call: Callable[[], object]) -> int:
    """Operations of the matrix products of a call, as torch counts them."""

    def counted() -> int:
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    return int(on_threads(1, counted))  # type: ignore[call-overload]  # other threads' are not counted


@dataclass(frozen=True)
class Row:
    """One comparison. ValueError for a name that its column cannot hold, and for a time that is none."""

    what: str
    seconds: float  # of a unit: a pair, or a query of a search or an evaluation
    against: str = ""  # what it is compared with
    times: float | None = None  # how many times as fast as that
    target: float | None = None  # of `times`
    bound: str = ""  # as `Peaks.bound` says it; empty: the work is not known
    same: bool | None = None  # whether the results are equal; None: they need not be, or are held elsewhere

    def __post_init__(self) -> None:
        if len(self.what) > WHAT or len(self.against) > AGAINST:
            raise ValueError(f"{self.what!r} against {self.against!r}: expected {WHAT} and {AGAINST} letters at most")
        if not self.seconds > 0:
            raise ValueError(f"{self.what}: {self.seconds} s")

    def __str__(self) -> str:
        """
        >>> print(Row("match 500x128", 0.0005, "cdist, topk", 1.81, 1.8, "arithmetic, 43 % of 95 GFLOP/s", True))
        match 500x128             0.500   1.81  1.8 met cdist, topk   same  arithmetic, 43 % of 95 GFLOP/s
        """
        times = "" if self.times is None else f"{self.times:.2f}" if self.times < 100 else f"{self.times:.0f}"
        target = "" if self.target is None or self.times is None else f"{self.target:g} {self._met(self.times)}"
        same = {None: "", True: "same", False: "OTHER"}[self.same]
        return _line(self.what, f"{1e3 * self.seconds:.3f}", times, target, self.against, same, self.bound)

    def _met(self, times: float) -> str:
        return "met" if self.target is not None and times >= self.target else "not"


def _line(what: str, ms: str, times: str, target: str, against: str, same: str, bound: str) -> str:
    return f"{what:{WHAT}s} {ms:>8s} {times:>6s} {target:>8s} {against:{AGAINST}s} {same:5s} {bound}".rstrip()


HEADING = _line("", "ms", "times", "target", "against", "", "bound by")


def show(rows: Iterable[Row], medians: Medians) -> bool:
    """Print rows, and how much of their time other programs disturbed; whether no result is another."""
    rows = list(rows)
    for row in rows:
        print(row)
    if medians.disturbed:
        print(f"  {medians.disturbed} of {medians.samples} samples of these were disturbed by other load")
    return all(row.same is not False for row in rows)


def show_machine(rounds: int = 5) -> None:
    """Print the peaks with one thread and with all, and the heading of the rows."""
    for threads in sorted({1, torch.get_num_threads()}):
        probe = Probe(threads)
        peaks = probe.peaks(interleaved(probe.calls, rounds))
        rates = f"products of {SIDE}x{SIDE} {peaks.flops / 1e9:.0f} GFLOP/s, copying {peaks.bytes / 1e9:.1f} GB/s"
        print(f"peak of {threads} {'thread' if threads == 1 else 'threads'}: {rates}")
    print(f"ms of a pair, or of a query of a search; times as fast as what it is held against\n{HEADING}")
