"""What is listed as being here: rows for everything there is, also for what cannot be imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench import registry
from bench.datasets import catalogue
from bench.errors import UserError
from bench.features.sets import EXTRACTORS, IMPORTS
from bench.places import Places
from bench.report.listings import DATASETS, EXTRACTED, IMPORTED, METHODS, datasets, extracted, imported, methods


def by_name(rows: list[tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    found = {row[0].rstrip("*"): row for row in rows}
    assert len(found) == len(rows)
    return found


def test_everything_has_one_row_with_a_cell_for_each_column(places: Places) -> None:
    for rows, columns in (
        (methods("xfeat"), METHODS),
        (extracted(), EXTRACTED),
        (imported(), IMPORTED),
        (datasets(places), DATASETS),
    ):
        assert {len(row) for row in rows} == {len(columns)} and all(row[-1] for row in rows)
    assert list(by_name(methods("xfeat"))) == registry.names()
    assert list(by_name(extracted())) == EXTRACTORS.names() and list(by_name(imported())) == IMPORTS.names()
    assert [row[0].partition(":")[0] for row in datasets(places)] == catalogue.names()


def test_a_method_that_cannot_be_imported_is_listed_with_its_error_and_hides_no_other(
    add_method: Callable[..., Path],
) -> None:
    before = by_name(methods("xfeat"))
    (add_method("broken", "pass") / "broken.py").write_text("import nothing_of_that_name")
    found = by_name(methods("xfeat"))
    assert found.pop("broken")[1:4] == ("", "", "") and found == before
    assert "nothing_of_that_name" in by_name(methods("xfeat"))["broken"][-1]


def test_what_runs_depends_on_the_features_and_controls_are_marked() -> None:
    on_xfeat, on_globals = by_name(methods("xfeat")), by_name(methods("gem-lite0"))
    assert on_xfeat["mnn"][-1].startswith("ready, reads xfeat") and "has none" in on_globals["mnn"][-1]
    assert on_xfeat["identity"][0] == "identity*" and on_xfeat["identity"][-1] == "ready"
    with pytest.raises(UserError, match="srift"):
        methods("srift")


def test_what_must_be_given_or_brought_is_said_of_an_extractor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # where nothing was fetched
    rows = by_name(extracted())
    assert rows["sift"][2:4] == ("128-d", "–") and rows["sift"][-1] == "ready"
    assert rows["sop"][-1] == "needs weights: sop:WEIGHTS[,FIRST_STAGE_WEIGHTS]"
    assert rows["dedode"][-1] == "no weights yet: they are fetched on first use"
