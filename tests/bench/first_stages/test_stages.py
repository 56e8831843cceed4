"""First stages on real features: what their lists are, what the seal holds, and what cannot be searched."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import Result
from PIL import Image

from bench.datasets import Dataset
from bench.errors import UserError
from bench.evaluation import CEILING, FIRST_STAGE
from bench.features.extract import ExtractOptions
from bench.features.sets import FeatureSet, Stores
from bench.first_stages.asmk import build
from bench.first_stages.names import parse
from bench.first_stages.stage import Context, Opened
from bench.places import Places
from bench.results import Run
from bench.run import Outcome
from bench.search import BLOCK, search_by
from bench.shortlist import Shortlist
from bench.trec import run_lines
from methods.asmk.codebook import Codebook

EXTRACT = ExtractOptions(max_side=160, descriptors=150)
SMALL = ("--max-side", "160", "--keep-descriptors", "150", "--threads", "1")
SUM = "sum:gem-lite0,asmk@xfeat*0.5"
Go = Callable[..., Outcome]
Cli = Callable[..., Result]


@pytest.fixture
def context(stored: tuple[Dataset, FeatureSet], cache: Path, tmp_path: Path) -> Context:
    """Of the instances, with the session's features and this test's own indices."""
    dataset, _ = stored
    stores = Stores(dataset, EXTRACT, torch.device("cpu"), Places.of(cache))
    return Context(dataset, stores, Places.of(tmp_path / "own"))


def lists_of(shortlist: Shortlist) -> dict[str, list[str]]:
    """Of every query, the ids of its candidates; of the one list of the policy blind."""
    (name,) = shortlist.lists
    return {
        query: [shortlist.gallery[c] for c in shortlist.candidates(name, number)]
        for number, query in enumerate(shortlist.queries)
    }


def whole(opened: Opened) -> np.ndarray:
    """(queries, count) exact similarities."""
    found = opened.similarities
    return np.stack([found.exact(query, np.arange(found.count)) for query in range(found.queries)])


# --- what the lists are -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["", ":binary=false", ":assignments=1:binary=false:descriptors=60", ":alpha=1"])
def test_the_kernel_as_a_first_stage_is_the_reranker_on_the_whole_gallery(run: Go, images: Path, options: str) -> None:
    given = {"binary": "true", "assignments": "5", **dict(o.split("=") for o in options.split(":") if o)}
    done = run(images, "asmk,identity", first_stage=f"asmk{options}@xfeat", options={"asmk": given}).run
    scores = done.scores[done.scores.method == "asmk"].set_index(["query", "candidate"])["score"]
    (name,) = done.shortlist.lists
    for number, (query, listed) in enumerate(lists_of(done.shortlist).items()):
        found, expected = done.shortlist.similarities[name][number], scores.loc[query].loc[listed].to_numpy()
        assert (np.diff(found) <= 0).all()
        np.testing.assert_allclose(found, expected, atol=1e-6 if given["binary"] == "true" else 2e-3)
    assert scores.max() > 0.02


def test_a_sum_on_real_features_is_what_is_written_down_of_its_parts(context: Context) -> None:
    parts = [whole(parse(text).open(context)) for text in ("gem-lite0", "asmk@xfeat")]
    found, expected = whole(parse(SUM).open(context)), np.zeros(parts[0].shape)
    for values, weight in zip(parts, (1, 0.5), strict=True):
        for query, own in enumerate(context.own):
            others = np.delete(values[query], own)  # every query is in the gallery
            expected[query] += weight * (values[query] - others.mean()) / others.std()
    spread = (expected[:, :, None] - expected[:, None]), (found[:, :, None] - found[:, None])
    np.testing.assert_allclose(*spread, rtol=0.02, atol=0.02)
    assert (context.own >= 0).all() and np.ptp(expected) > 2


@pytest.mark.parametrize("stage", ["gem-lite0", "asmk@xfeat", "asmk:binary=false@xfeat", SUM])
def test_the_lists_do_not_depend_on_the_blocks(context: Context, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    def found() -> tuple[list, list]:
        similarities = parse(stage).open(context).similarities
        lists = search_by(similarities, 6, own=context.own, block=found.block)  # type: ignore[attr-defined]
        return lists.order.tolist(), lists.similarities.tolist()

    found.block = BLOCK  # type: ignore[attr-defined]
    one = found()
    shutil.rmtree(context.places.cache, ignore_errors=True)
    monkeypatch.setitem(build.__kwdefaults__, "block", 4)  # images of a block of the inverted file
    monkeypatch.setattr("bench.first_stages.weighted_sum.BLOCK", 5)
    monkeypatch.setattr("bench.first_stages.weighted_sum.QUERIES", 2)
    found.block = 3  # type: ignore[attr-defined]
    assert found() == one


@pytest.mark.parametrize(
    ("heavy", "alone"), [("sum:gem-lite0*1e5,asmk@xfeat", "gem-lite0"), ("sum:gem-lite0,asmk@xfeat*1e5", "asmk@xfeat")]
)
def test_a_weight_that_is_far_larger_gives_that_first_stages_lists(
    run: Go, instances: Path, heavy: str, alone: str
) -> None:
    found = [lists_of(run(instances, "identity", first_stage=text).run.shortlist) for text in (heavy, alone, SUM)]
    assert found[0] == found[1] != found[2]


def test_whitening_is_of_the_global_part_of_a_sum(run: Go, instances: Path, buildings: Path) -> None:
    def lists(first_stage: str, **more: str) -> tuple[dict, str]:
        shortlist = run(instances, "identity", first_stage=first_stage, **more).run.shortlist
        best = {query: images[:3] for query, images in lists_of(shortlist).items()}  # behind them are near ties
        return best, shortlist.header.first_stage

    white = {"whiten": f"folder:{buildings}"}
    heavy, name = lists("sum:gem-lite0*1e5,asmk@xfeat", **white)
    assert name == f"sum:gem-lite0+pca11[folder:{buildings}]*100000,asmk@xfeat"
    assert heavy == lists("gem-lite0", **white)[0] != lists("gem-lite0")[0]
    assert lists("sum:gem-lite0,asmk@xfeat*1e5", **white)[0] == lists("asmk@xfeat")[0]


def test_a_first_stage_without_global_descriptors_has_nothing_to_whiten(
    run: Go, instances: Path, buildings: Path
) -> None:
    with pytest.raises(UserError, match="the first stage asmk@xfeat has no global descriptors to whiten"):
        run(instances, "identity", first_stage="asmk@xfeat", whiten=f"folder:{buildings}")


def test_the_policies_hold_for_any_first_stage(run: Go, buildings: Path) -> None:
    for stage in ("asmk@xfeat", SUM):
        done = run(buildings, "identity,constant,oracle", first_stage=stage, policy="paper", top_k=5).run
        for number, query in enumerate(done.shortlist.queries):
            for difficulty, (_, ignored) in done.dataset.difficulties.items():
                listed = [done.shortlist.gallery[c] for c in done.shortlist.candidates(difficulty, number)]
                assert not {done.dataset.grades[query].get(image) for image in listed} & ignored
        values = done.metrics().set_index(["method", "query", "difficulty", "measure"])["value"]
        for one, other in (("identity", FIRST_STAGE), ("constant", "identity"), ("oracle", CEILING)):
            pd.testing.assert_series_equal(values.loc[one], values.loc[other], check_exact=True)


# --- what the seal holds ------------------------------------------------------------------------------------------


def codebook(path: Path, seed: int) -> Path:
    centroids = torch.randn((32, 64), generator=torch.Generator().manual_seed(seed)) / 8
    Codebook(centroids, "xfeat", "nothing", seed).save(path)
    return path


def test_the_seal_changes_with_all_that_decides_the_lists(run: Go, instances: Path, tmp_path: Path) -> None:
    books = [codebook(tmp_path / f"{seed}.safetensors", seed) for seed in range(2)]
    asked: list[tuple[str, dict]] = [
        ("gem-lite0", {}),
        ("asmk@xfeat", {}),
        (f"asmk:codebook={books[0]}@xfeat", {}),
        (f"asmk:codebook={books[1]}@xfeat", {}),
        ("asmk:descriptors=100@xfeat", {}),
        ("asmk:alpha=2@xfeat", {}),
        ("asmk:binary=false@xfeat", {}),
        ("asmk@xfeat", {"extract": replace(EXTRACT, descriptors=100)}),
        ("asmk@xfeat", {"extract": replace(EXTRACT, precision="int8")}),
        ("sum:gem-lite0,asmk@xfeat", {}),
        ("sum:gem-lite0,asmk@xfeat*1.0001", {}),
        ("gem-lite0", {"extract": replace(EXTRACT, max_side=128)}),
        ("gem-lite0", {"top_k": 5}),
    ]
    seals = [run(instances, "identity", first_stage=stage, **more).run.seal for stage, more in asked]
    assert len(set(seals)) == len(asked)


def test_the_seal_holds_neither_rows_nor_features_that_the_first_stage_does_not_read(run: Go, instances: Path) -> None:
    def seals(stage: str) -> set[str]:
        return {
            run(instances, rows, first_stage=stage, **more).run.seal  # type: ignore[arg-type]
            for rows, more in (
                ("identity", {}),
                ("mnn@sift,aqe", {}),
                ("identity", {"features": "sift"}),
                ("asmk", {"options": {"asmk": {"alpha": "2"}}}),
            )
        }

    assert [len(seals(stage)) for stage in ("gem-lite0", "asmk@xfeat", SUM)] == [1, 1, 1]
    fewer = run(instances, "identity", first_stage="gem-lite0", extract=replace(EXTRACT, descriptors=20)).run.seal
    assert seals("gem-lite0") == {fewer}


def test_equal_names_give_one_seal(run: Go, instances: Path) -> None:
    texts = ("sum:gem-lite0,asmk@xfeat*0.5", "sum:xfeat+gem-lite0*1.0,asmk:binary=true@xfeat+gem-lite0*0.50")
    runs = [run(instances, "identity", first_stage=text).run for text in texts]
    assert runs[0].folder == runs[1].folder


# --- queries without features -------------------------------------------------------------------------------------


@pytest.fixture
def grey(write_instances: Callable[..., Path], tmp_path: Path) -> Path:
    """Three instances of three views and one of two, of which one is flat grey: XFeat finds nothing on it."""
    root = write_instances(tmp_path / "set", 3, 3)
    (root / "wall").mkdir()
    shutil.copy(root / "object0" / "view0.png", root / "wall" / "painted.png")
    Image.fromarray(np.full((120, 160, 3), 127, np.uint8)).save(root / "wall" / "bare.png")
    return root


def test_queries_without_features_of_the_first_stage_are_named_under_the_table(cli: Cli, grey: Path) -> None:
    def said(stage: str) -> str:
        done = cli("run", "-m", "identity", "-d", f"folder:{grey}", *SMALL, "--first-stage", stage)
        assert done.exit_code == 0, done.output
        return " ".join(done.output.split())

    note = "1 of 11 queries have no features of the first stage, so their candidates are in the gallery's order: wall/"
    assert note in said("asmk@xfeat")
    assert note in " ".join(cli("report").output.split())
    assert "no features of the first stage" not in said("gem-lite0")
    assert "no features of the first stage" not in said(SUM)  # its global descriptor still ranks


def test_such_a_query_is_ranked_by_the_rest_of_a_sum(run: Go, grey: Path) -> None:
    kernel, whole, both = (
        lists_of(run(grey, "identity", first_stage=stage).run.shortlist) for stage in ("asmk@xfeat", "gem-lite0", SUM)
    )
    assert kernel["wall/bare"] == [image for image in whole if image != "wall/bare"]  # the gallery's order
    assert both["wall/bare"] == whole["wall/bare"] != kernel["wall/bare"]
    assert kernel["wall/painted"][0] == both["wall/painted"][0] == "object0/view0"


# --- what cannot be searched --------------------------------------------------------------------------------------


@pytest.fixture
def imported(cli: Cli, write_instances: Callable[..., Path], tmp_path: Path) -> tuple[Path, tuple[str, ...]]:
    """A data set whose features were exported and imported as `arrays`, said to be XFeat's; and where that is."""
    root = write_instances(tmp_path / "set", 3, 3)
    here = ("-d", f"folder:{root}", "--cache-dir", str(tmp_path / "cache"))
    done = cli("run", "-m", "mnn", *here, *SMALL, "--first-stage", "sum:gem-lite0,asmk@xfeat")
    assert done.exit_code == 0, done.output
    found = Run.load(Path(re.findall(r"^run: (.*)$", done.output, re.MULTILINE)[0]))
    features = Stores(found.dataset, EXTRACT, torch.device("cpu"), Places.of(tmp_path / "cache"))
    read = features.of(parse("asmk@xfeat").sets[0]), features.of(parse("gem-lite0").sets[0])
    for key in found.dataset.gallery:
        path = tmp_path / "arrays" / f"{key}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {
            name: value.numpy() for name, value in vars(read[0].read(key, frozenset({"local", "keypoints"}))).items()
        }
        np.savez(path, **{**arrays, "global_descriptor": read[1].global_descriptors([key])[0]})
    done = cli("features", "import", "arrays", str(tmp_path / "arrays"), *here, "--local", "xfeat")
    assert done.exit_code == 0, done.output
    return root, here


def test_imported_features_are_searched_like_extracted_ones(
    run: Go, cli: Cli, imported: tuple[Path, tuple[str, ...]]
) -> None:
    _, here = imported

    def lists(stage: str) -> dict[str, list[str]]:
        done = cli("run", "-m", "identity", *here, *SMALL, "--first-stage", stage)
        assert done.exit_code == 0, done.output
        return lists_of(Run.load(Path(re.findall(r"^run: (.*)$", done.output, re.MULTILINE)[0])).shortlist)

    assert lists("asmk@arrays") == lists("asmk@xfeat")
    assert lists("sum:arrays,asmk@arrays") == lists("sum:gem-lite0,asmk@xfeat") != lists("asmk@xfeat")


@pytest.mark.parametrize("stage", ["arrays", "asmk@arrays", "sum:gem-lite0,asmk@arrays"])
def test_imported_features_of_a_part_of_the_gallery_are_an_error_with_the_command_to_give(
    cli: Cli, imported: tuple[Path, tuple[str, ...]], view: Callable, stage: str
) -> None:
    root, here = imported
    Image.fromarray(view(1, 7)).save(root / "object1" / "view7.png")
    for command in (("run", "-m", "mnn"), ("first-stages",)):
        done = cli(*command, *here, *SMALL, "--first-stage", stage)
        said = " ".join(done.output.split())
        assert done.exit_code == 1 and "1 of 10 images have not been imported" in said
        assert "features import arrays" in said and "--dataset folder:" in said


def test_without_a_codebook_of_the_features_none_is_searched(cli: Cli, instances: Path) -> None:
    done = cli("run", "-m", "mnn", "-d", f"folder:{instances}", *SMALL, "--first-stage", "asmk@sift")
    said = " ".join(done.output.split())
    assert done.exit_code == 1 and "--first-stage asmk@sift: the codebook codebook.safetensors is of 64-d xfeat" in said
    assert "train asmk --recipe kmeans" in said and "asmk:codebook=FILE.safetensors@LOCAL names one" in said


@pytest.mark.parametrize("stage", ["asmk@xfeat", SUM])
def test_faiss_searches_global_descriptors_alone(cli: Cli, instances: Path, stage: str) -> None:
    where = ("-d", f"folder:{instances}", *SMALL, "--first-stage", stage, "--search", "faiss")
    for command in (("run", "-m", "mnn"), ("first-stages",)):
        done = cli(*command, *where)
        said = " ".join(done.output.split())
        assert done.exit_code == 1 and "--search faiss: it searches global descriptors alone" in said
        assert "--search blocks" in said


# --- lists of a file ----------------------------------------------------------------------------------------------


def test_lists_of_a_file_are_a_first_stage_by_either_option(cli: Cli, run: Go, instances: Path, tmp_path: Path) -> None:
    lists = lists_of(run(instances, "identity", first_stage="asmk@xfeat", top_k=5).run.shortlist)
    file = tmp_path / "theirs.run"
    ranked = {query: [(image, float(5 - i)) for i, image in enumerate(images)] for query, images in lists.items()}
    file.write_text("".join(run_lines(ranked, "theirs")))
    folders, tables = [], []
    for option in (("--shortlist", str(file)), ("--first-stage", f"list:{file}")):
        done = cli("run", "-m", "mnn,identity", "-d", f"folder:{instances}", "-k", "5", *SMALL, *option)
        assert done.exit_code == 0 and "Candidates are those of theirs.run" in " ".join(done.output.split())
        folders.append(re.findall(r"^run: (.*)$", done.output, re.MULTILINE)[0])
        tables.append(Run.load(Path(folders[-1])))
    assert folders[0] == folders[1] and lists_of(tables[0].shortlist) == lists
    both = cli("run", "-m", "mnn", "-d", f"folder:{instances}", "--shortlist", str(file), "--first-stage", "gem-lite0")
    assert both.exit_code == 1 and "with --shortlist the candidates are there already" in both.output


# --- an index that is built -----------------------------------------------------------------------------------------


def test_an_index_that_was_interrupted_goes_on_with_the_next_block(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(build.__kwdefaults__, "block", 2)
    indices = context.places.cache / "first-stages"

    def interrupt(what: str, done: int, total: int) -> None:
        assert what == "indexing xfeat" and total == 9
        if done >= 6:
            raise KeyboardInterrupt

    def blocks() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in sorted(indices.glob("*/[0-9]*/vectors.npy"))}

    with pytest.raises(KeyboardInterrupt):
        parse("asmk@xfeat").open(replace(context, progress=interrupt))
    kept = blocks()
    assert 2 <= len(kept) < 5
    resumed = parse("asmk@xfeat").open(context)
    assert len(blocks()) == 5 and kept.items() <= blocks().items()
    undisturbed = parse("asmk@xfeat").open(replace(context, places=Places.of(tmp_path / "undisturbed")))
    np.testing.assert_array_equal(whole(resumed), whole(undisturbed))
    assert (resumed.content, resumed.bytes_per_image) == (undisturbed.content, undisturbed.bytes_per_image)


def test_an_index_is_shared_by_searches_that_store_the_same_and_by_no_others(context: Context) -> None:
    def indices() -> int:
        return len(list((context.places.cache / "first-stages").iterdir()))

    counts = []
    for text in ("asmk@xfeat", "asmk:assignments=1:alpha=2@xfeat", SUM, "asmk:binary=false@xfeat"):
        parse(text).open(context)
        counts.append(indices())
    assert counts == [1, 1, 1, 2]
    parse("asmk:descriptors=60@xfeat").open(context)
    assert indices() == 3


def test_a_list_that_is_not_there_is_an_error_before_the_data_set_is_made(cli: Cli, tmp_path: Path) -> None:
    folders = ("--cache-dir", str(tmp_path / "cache"), "--runs", str(tmp_path / "runs"))
    for given in (("--first-stage", "list:/nowhere/lists.run"), ("--shortlist", "/nowhere/lists.run")):
        done = cli("run", "-m", "identity", "-d", "demo", *given, *folders)
        assert done.exit_code == 1 and "/nowhere/lists.run: cannot be read" in done.output
    assert not (tmp_path / "cache").exists()
