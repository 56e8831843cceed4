"""Contact sheets, on a run whose scores are known."""

import json
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from click.testing import CliRunner

from bench.errors import UserError
from bench.report.pictures import chosen_run, ranking, worst, worst_queries
from bench.results import FIRST_STAGE, Run
from cli import main


@pytest.fixture
def done(run: Callable, write_instances: Callable, tmp_path: Path) -> Run:
    return run(write_instances(tmp_path / "pictures", 4, 3), "oracle,reverse,identity").run


def test_a_ranking_is_what_the_methods_scores_say(done: Run) -> None:
    for query in range(len(done.shortlist.queries)):
        first = ranking(done, FIRST_STAGE, query)
        k = done.shortlist.header.k
        assert (ranking(done, "identity", query) == first).all()
        assert (ranking(done, "reverse", query)[:k] == first[:k][::-1]).all()


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


def test_unknown_methods_are_named_with_what_there_is(done: Run) -> None:
    with pytest.raises(UserError, match="ransac"):
        chosen_run([done], "ransac")
    with pytest.raises(UserError, match="'ransac' is not in") as error:
        worst(done, "reverse", "ransac")
    assert "oracle" in str(error.value.hint)


def test_the_command_writes_a_sheet_and_asks_for_a_folder(done: Run, tmp_path: Path) -> None:
    common = ["report", "--runs", str(done.folder.parent), "--format", "json", "--worst", "reverse,oracle"]
    result = CliRunner().invoke(main, [*common, "--plots", str(tmp_path / "plots")])
    assert result.exit_code == 0, result.output
    assert any("worst-reverse" in path.name for path in (tmp_path / "plots").iterdir())
    assert json.loads(result.stdout)
    assert "--plots DIR" in CliRunner().invoke(main, common).output
