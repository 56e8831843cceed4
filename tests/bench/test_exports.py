"""Exports keep our order; other scorers' AP of them is rectangular, and ours is not."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from PIL import Image

from bench.blend import Blend
from bench.errors import UserError
from bench.evaluation import FIRST_STAGE
from bench.exports import FORMATS, export, ranked
from bench.metrics import average_precision
from bench.results import Run
from bench.trec import read_qrels, read_run


@pytest.fixture
def done(finished: Callable, buildings: Path) -> Run:
    return finished(buildings, "identity,mnn,constant", top_k=8)


def rectangular(run: list[str], relevant: set[str]) -> float:
    hits = np.flatnonzero([image in relevant for image in run])
    return float(((np.arange(len(hits)) + 1) / (hits + 1)).sum() / len(relevant))


def test_another_scorer_finds_the_rectangular_ap_of_our_order(done: Run, tmp_path: Path) -> None:
    """ir_measures' AP takes precision at each positive; revisitop's takes the mean of it and of the precision just
    before it. On the same lists ours is therefore another number, by the difference computed here."""
    measures = pytest.importorskip("ir_measures", reason="ir-measures is not installed")
    export(done, "trec", tmp_path)
    compared = 0
    for difficulty in ("Easy", "Medium", "Hard"):
        qrels = read_qrels(tmp_path / f"{difficulty}.qrels")
        for method, name in ((FIRST_STAGE, "first-stage"), ("mnn", "mnn")):
            file = tmp_path / f"{name}.{difficulty}.run"
            theirs = {
                m.query_id: m.value
                for m in measures.iter_calc(
                    [measures.AP],
                    measures.read_trec_qrels(str(tmp_path / f"{difficulty}.qrels")),
                    measures.read_trec_run(str(file)),
                )
            }
            metrics = done.metrics()
            ours = metrics[(metrics.method == method) & (metrics.difficulty == difficulty) & (metrics.measure == "mAP")]
            for query, rows in read_run(file).items():
                if query not in qrels:
                    continue
                images, relevant = [image for image, _ in rows], set(qrels[query])
                assert theirs[query] == pytest.approx(rectangular(images, relevant), abs=1e-6)
                places = np.flatnonzero([image in relevant for image in images])
                if len(places) == len(relevant):  # none behind the candidates
                    value = float(ours[ours["query"] == query]["value"].iloc[0])
                    before = np.where(places == 0, 1.0, np.arange(len(places)) / np.maximum(places, 1))
                    after = (np.arange(len(places)) + 1) / (places + 1)
                    assert value == pytest.approx(theirs[query] - (after - before).sum() / 2 / len(places), abs=1e-6)
                    assert value == pytest.approx(average_precision(places, len(places)), abs=1e-12)
                    compared += 1
    assert compared > 3


def test_a_run_file_is_in_our_order_without_ignored_images(done: Run, tmp_path: Path) -> None:
    export(done, "trec", tmp_path)
    for difficulty in done.dataset.difficulties:
        _, ignored = done.dataset.difficulties[difficulty]
        for method in ("identity", "mnn"):
            found = read_run(tmp_path / f"{method}.{difficulty}.run")
            assert found == ranked(done.rankings(), method, difficulty)
            for query, rows in found.items():
                assert not {done.dataset.grades[query].get(image) for image, _ in rows} & ignored
                assert [score for _, score in rows] == [float(len(rows) - i) for i in range(len(rows))]
        assert ranked(done.rankings(), "constant", difficulty) == ranked(done.rankings(), FIRST_STAGE, difficulty)


def test_a_blend_orders_what_is_exported_as_it_orders_the_table(done: Run, tmp_path: Path) -> None:
    first = Blend.parse("add:0")  # no weight on its scores: every method is the first stage
    for blend, folder in ((Blend(), tmp_path / "plain"), (first, tmp_path / "blended")):
        export(done, "trec", folder, blend)
        export(done, "csv", folder, blend)
    runs = {name: read_run(tmp_path / name) for name in ("plain/mnn.Hard.run", "plain/first-stage.Hard.run")}
    assert runs["plain/mnn.Hard.run"] != runs["plain/first-stage.Hard.run"]
    assert read_run(tmp_path / "blended" / "mnn.Hard.run") == runs["plain/first-stage.Hard.run"]
    plain, blended = (pd.read_csv(tmp_path / name / "metrics.csv") for name in ("plain", "blended"))
    values = {method: rows["value"].tolist() for method, rows in blended.fillna(-1).groupby("method")}
    assert values["mnn"] == values[FIRST_STAGE] and not plain.equals(blended)
    scores = [(tmp_path / name / "scores.csv").read_bytes() for name in ("plain", "blended")]
    assert scores[0] == scores[1]  # a method's own, which no blend changes


def test_pairs_have_no_order_that_a_blend_could_change(done: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--blend add:1: hloc-pairs"):
        export(done, "hloc-pairs", tmp_path, Blend.parse("add:1"))


def test_tables_are_read_by_pandas(done: Run, tmp_path: Path) -> None:
    for form, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
        assert len(export(done, form, tmp_path)) == 4
        table = read(tmp_path / f"scores.{form}")
        assert len(table) == len(done.scores) and table["score"].sum() == pytest.approx(done.scores["score"].sum())


def test_pairs_name_the_files_below_the_folder_common_to_all_images(done: Run, buildings: Path, tmp_path: Path) -> None:
    (path,) = export(done, "hloc-pairs", tmp_path)
    lines = [line.split() for line in path.read_text().splitlines()]
    assert len(lines) == 2 * 8 and {query for query, _ in lines} == {"queries/query0.png", "queries/query1.png"}
    assert all(done.dataset.gallery[Path(image).stem] == buildings / image for _, image in lines)


def test_a_folder_that_cannot_be_written_is_said(done: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for form in FORMATS:
        with pytest.raises(UserError, match="cannot write"):
            export(done, form, tmp_path / "file")


@pytest.mark.parametrize("form", FORMATS)
def test_a_disk_that_fills_leaves_no_half_of_a_file(done: Run, tmp_path: Path, form: str) -> None:
    """The limit is the system's: beyond it, writing fails as on a full disk."""
    resource = pytest.importorskip("resource", reason="this system has no limits of resources")
    _ = [done.scores, done.details, done.ledger, done.metrics()]  # read before writing is limited
    written = export(done, form, tmp_path / "whole")
    whole = {path.relative_to(tmp_path / "whole"): path.read_bytes() for path in written}
    largest = max(map(len, whole.values()))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, before[1]))
        with pytest.raises(UserError, match="cannot write"):
            export(done, form, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    left = {path.relative_to(tmp_path / "out"): path.read_bytes() for path in files}
    assert len(left) < len(whole) and all(whole[name] == content for name, content in left.items())


def test_the_command_exports_the_newest_run(cli: Callable[..., Result], buildings: Path, tmp_path: Path) -> None:
    nothing = cli("export", "--out", str(tmp_path / "out"))
    assert nothing.exit_code == 1 and "no finished run" in nothing.output
    small = ("--max-side", "160", "--keep-descriptors", "150", "-k", "6")
    assert cli("run", "-m", "identity", "-d", f"folder:{buildings}", *small).exit_code == 0
    shown = cli("export", "--out", str(tmp_path / "out"))
    assert shown.exit_code == 0 and (tmp_path / "out" / "identity.Medium.run").is_file()


def test_the_command_takes_the_blends_of_a_report(cli: Callable[..., Result], buildings: Path, tmp_path: Path) -> None:
    small = ("--max-side", "160", "--keep-descriptors", "150", "-k", "6")
    assert cli("run", "-m", "reverse", "-d", f"folder:{buildings}", *small).exit_code == 0
    for blend in ("add:0", "replace"):
        assert cli("export", "--blend", blend, "--out", str(tmp_path / blend)).exit_code == 0
    first, blended, plain = (
        read_run(tmp_path / name)
        for name in ("replace/first-stage.Easy.run", "add:0/reverse.Easy.run", "replace/reverse.Easy.run")
    )
    assert blended == first != plain
    refused = cli("export", "--blend", "ad:1", "--out", str(tmp_path / "no"))
    assert refused.exit_code == 1 and "did you mean 'add'" in refused.output and not (tmp_path / "no").exists()


def test_a_query_and_a_gallery_image_of_one_file_name_stay_two_in_pairs(
    cli: Callable[..., Result], view: Callable[[int, int], np.ndarray], tmp_path: Path
) -> None:
    root = tmp_path / "numbered"
    for folder in ("queries", "gallery"):
        (root / folder).mkdir(parents=True)
        for number in range(3):
            picture = view(number, 0 if folder == "queries" else 1 + number % 2)
            Image.fromarray(picture).save(root / folder / f"{number:03}.png")
    truth = {"gallery": [f"{n:03}" for n in range(3)], "queries": [{"query": "000", "easy": ["001"]}]}
    (root / "gnd.json").write_text(json.dumps(truth))
    small = ("-m", "identity", "-d", f"folder:{root}", "--max-side", "160", "--keep-descriptors", "150", "-k", "2")
    assert cli("run", *small).exit_code == 0
    assert cli("export", "--format", "hloc-pairs", "--out", str(tmp_path / "out")).exit_code == 0
    pairs = tmp_path / "out" / "pairs.txt"
    lines = pairs.read_text().splitlines()
    assert set(lines) <= {f"queries/000.png gallery/{n:03}.png" for n in range(3)} and len(lines) == 2
    again = cli("run", *small, "--shortlist", str(pairs))
    assert again.exit_code == 0 and "have no scores" in again.output
