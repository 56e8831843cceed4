"""Contact sheets, on a run whose scores are known."""

import json
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from click.testing import CliRunner

from bench.blend import Blend
from bench.errors import UserError
from bench.evaluation import FIRST_STAGE
from bench.report.groups import grouped
from bench.report.pictures import chosen_run, sheets, worst, worst_queries
from bench.results import Run
from cli import main


@pytest.fixture
def done(run: Callable, write_instances: Callable, tmp_path: Path) -> Run:
    return run(write_instances(tmp_path / "pictures", 4, 3), "oracle,reverse,identity").run


def test_the_worst_queries_are_those_of_the_greatest_loss_and_gains_are_none(done: Run) -> None:
    lost = worst(done, "reverse", "oracle")
    losses = [theirs - ours for _, ours, theirs in lost]
    assert lost and losses == sorted(losses, reverse=True) and min(losses) > 0
    assert worst(done, "oracle", FIRST_STAGE) == [] and worst(done, "identity", FIRST_STAGE) == []


def test_a_sheet_shows_pictures_in_the_colours_of_right_and_wrong(done: Run, tmp_path: Path) -> None:
    sheet = worst_queries(done, "reverse", "oracle", tmp_path / "sheets", "one", rows=2)
    assert sheet is not None
    pixels = (matplotlib.image.imread(sheet)[..., :3] * 255).round().astype(int).reshape(-1, 3)
    for colour in ((0, 114, 178), (213, 94, 0)):
        assert (np.abs(pixels - colour).max(axis=1) == 0).sum() > 500
    assert worst_queries(done, "oracle", FIRST_STAGE, tmp_path / "sheets", "two") is None
    assert [path.name for path in (tmp_path / "sheets").iterdir()] == ["one.png"]


def test_pictures_that_are_gone_do_not_stop_a_sheet(done: Run, tmp_path: Path) -> None:
    for file in done.dataset.gallery.values():
        file.unlink()
    assert worst_queries(done, "reverse", "oracle", tmp_path, "one") is not None


def test_a_sheet_is_of_the_last_run_that_has_both(done: Run, run: Callable) -> None:
    path = Path(done.shortlist.header.dataset.removeprefix("folder:"))
    other = run(path, "random").run
    assert chosen_run([done, other], "reverse", "oracle") is done
    assert chosen_run([done, other], "random", FIRST_STAGE) is other
    assert chosen_run([done, other], "random", "oracle") is None


def test_every_group_that_has_both_rows_has_a_sheet(done: Run, run: Callable, tmp_path: Path) -> None:
    path = Path(done.shortlist.header.dataset.removeprefix("folder:"))
    groups = grouped([done, run(path, "random", top_k=5).run, run(path, "reverse", top_k=6).run])
    assert sheets(groups, "identity", tmp_path) == ["plot: none: identity loses on no query"]
    (both,) = sheets(groups, "reverse,oracle", tmp_path)
    named = [f"{tmp_path / group.table.stem}-worst-reverse.png" for group in (groups[0], groups[2])]
    assert both == f"plot: {named[0]}" and [str(path) for path in tmp_path.glob("*.png")] == named[:1]
    assert sheets(groups[2:], "reverse", tmp_path) == [f"plot: {named[1]}"]


def test_a_run_whose_images_are_elsewhere_has_no_sheet(done: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished run above has reverse and oracle") as error:
        sheets(grouped([done]), "reverse,oracle", tmp_path, [done])
    assert "images of runs that are added are not here" in str(error.value) and not [*tmp_path.glob("*.png")]


def test_a_blend_orders_the_sheet_as_it_orders_the_table(done: Run) -> None:
    """With no weight on its scores every method is the first stage, and loses nothing to it."""
    first = Blend.parse("add:0")
    assert worst(done, "reverse", FIRST_STAGE, first) == [] != worst(done, "reverse", FIRST_STAGE)


def test_the_command_writes_a_sheet_and_asks_for_a_folder(done: Run, tmp_path: Path) -> None:
    common = ["report", "--runs", str(done.folder.parent), "--format", "json", "--worst", "reverse,oracle"]
    result = CliRunner().invoke(main, [*common, "--plots", str(tmp_path / "plots")])
    assert result.exit_code == 0, result.output
    assert any("worst-reverse" in path.name for path in (tmp_path / "plots").iterdir())
    assert json.loads(result.stdout)
    assert "--plots DIR" in CliRunner().invoke(main, common).output
    absent = CliRunner().invoke(main, [*common[:-1], "ransac,oracle", "--plots", str(tmp_path / "plots")])
    assert absent.exit_code != 0 and "no finished run above has ransac and oracle" in absent.output
    assert json.loads(absent.stdout)  # the tables are printed all the same
