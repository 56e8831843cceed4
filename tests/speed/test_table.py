"""Rows have one form, and say which peak bounds what they time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.speed import Medians
from tests.speed.table import HEADING, WIDTH, Peaks, Probe, Row, Work, flops_of, on_threads, show, show_machine

PEAKS = Peaks(100e9, 10e9)


@pytest.mark.parametrize(
    ("work", "seconds", "said"),
    [
        (Work(5e9), 0.1, "arithmetic, 50 % of 100 GFLOP/s"),
        (Work(5e9, 4e8), 0.1, "arithmetic, 50 % of 100 GFLOP/s"),
        (Work(5e9, 6e8), 0.1, "memory, 60 % of 10 GB/s"),
        (Work(0, 1e9), 0.1, "memory, 100 % of 10 GB/s"),
        (Work(9e8), 0.1, "calls, 9 % of 100 GFLOP/s"),
        (Work(1e6, 9e7), 0.1, "calls, 9 % of 10 GB/s"),
    ],
)
def test_the_larger_share_of_a_peak_bounds_and_calls_where_both_are_small(
    work: Work, seconds: float, said: str
) -> None:
    assert PEAKS.bound(work, seconds) == said


@given(st.floats(1, 1e13), st.floats(0, 1e13), st.floats(1e-6, 100))
def test_twice_the_time_is_half_the_share(flops: float, size: float, seconds: float) -> None:
    shares = [max(flops / PEAKS.flops, size / PEAKS.bytes) / t for t in (seconds, 2 * seconds)]
    for share, taken in zip(shares, (seconds, 2 * seconds), strict=True):
        assert f" {100 * share:.0f} % of " in PEAKS.bound(Work(flops, size), taken)
    assert shares[0] == pytest.approx(2 * shares[1])


@pytest.mark.parametrize("wrong", [(0, 0), (-1, 5), (5, -1), (float("nan"), 1)])
def test_work_that_is_none_is_refused(wrong: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="expected some of either"):
        Work(*wrong)
    with pytest.raises(ValueError):
        Peaks(0, 1)


ROW = Row("superglue 1000", 0.8501, "plain network", 1.7, 2.2, "arithmetic, 43 % of 195 GFLOP/s", False)


def test_a_row_fits_the_terminal_and_stands_under_its_heading() -> None:
    assert len(str(ROW)) <= WIDTH
    for heading, value in (("ms", "850.100"), ("times", "1.70"), ("target", "2.2 not")):
        end = HEADING.index(heading) + len(heading)
        assert str(ROW)[:end].endswith(value)
    assert str(ROW)[HEADING.index("against") :].startswith("plain network OTHER")
    assert str(ROW)[HEADING.index("bound by") :] == ROW.bound


@pytest.mark.parametrize(("times", "said"), [(2.2, "2.20  2.2 met"), (2.19, "2.19  2.2 not"), (366.4, "366  2.2 met")])
def test_a_target_is_met_or_not(times: float, said: str) -> None:
    assert " ".join(said.split()) in " ".join(str(Row("a", 1, "b", times, 2.2)).split())


def test_what_no_column_holds_is_refused() -> None:
    for wrong in (("a" * 23, 1.0, ""), ("a", 1.0, "b" * 14), ("a", 0.0, "")):
        with pytest.raises(ValueError):
            Row(*wrong)


def test_rows_are_printed_with_what_disturbed_them_and_others_results_fail(capsys: pytest.CaptureFixture[str]) -> None:
    held, open_ = Row("a", 1, same=True), Row("b", 1)
    assert show([held, open_], Medians({}, 0, 6))
    assert "disturbed" not in capsys.readouterr().out
    assert not show([held, ROW], Medians({}, 2, 6))
    assert "2 of 6 samples of these were disturbed" in capsys.readouterr().out


def test_operations_are_those_of_the_products_on_any_number_of_threads() -> None:
    one, other = torch.zeros(30, 40), torch.zeros(40, 50)
    assert flops_of(lambda: one @ other) == 2 * 30 * 40 * 50
    heads = torch.zeros(1, 2, 30, 40)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert flops_of(lambda: attend(heads, heads, heads)) == 2 * 2 * (2 * 30 * 40 * 30)  # two heads, two products each


def test_threads_are_given_back_also_after_an_error() -> None:
    before = torch.get_num_threads()
    assert on_threads(before + 1, torch.get_num_threads) == before + 1
    with pytest.raises(ZeroDivisionError):
        on_threads(before + 1, lambda: 1 / 0)
    assert torch.get_num_threads() == before


def test_a_peak_is_the_faster_librarys_and_copying_counts_both_ways() -> None:
    probe = Probe()
    assert set(probe.calls) == {"peak, mm", "peak, conv", "peak, copy"}
    assert set(Probe(1, torch.float64).calls) == {"peak, mm", "peak, copy"}
    peaks = probe.peaks(Medians({"peak, mm": 0.2, "peak, conv": 0.1, "peak, copy": 0.5}, 0, 1))
    assert peaks == Peaks(2 * 1024**3 / 0.1, 2 * 2**25 / 0.5)


def test_the_machines_peaks_stand_above_the_heading(capsys: pytest.CaptureFixture[str]) -> None:
    show_machine(1)
    *peaks, _, heading = capsys.readouterr().out.splitlines()
    assert peaks[0].startswith("peak of 1 thread: products of 1024x1024 ") and heading == HEADING
    assert all(len(line) <= WIDTH for line in peaks)
