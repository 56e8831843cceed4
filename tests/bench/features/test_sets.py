"""Feature sets: any local part with any global one, extracted or imported, read as one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import Result

from bench.datasets import Dataset
from bench.errors import UserError
from bench.features.extract import ExtractOptions
from bench.features.sets import FeatureExtractor, FeatureSet, SetName, card_of, features_of, local_of
from bench.features.store import ALL
from bench.places import Places
from bench.results import finished_runs

EXTRACT = ExtractOptions(max_side=160, descriptors=150)
SMALL = ("--max-side", "160", "--keep-descriptors", "150", "-k", "5")
Cli = Callable[..., Result]


def test_a_local_part_alone_takes_the_default_global_descriptor() -> None:
    assert SetName.parse("sift").name == SetName.parse("sift+gem-lite0").name == "sift+gem-lite0"
    card = card_of("sift")
    assert (card.local, card.global_, card.local_dim, card.global_dim) == ("sift", "gem-lite0", 128, 1280)


def test_a_global_descriptor_alone_and_an_import_are_sets_too() -> None:
    whole = SetName.parse("gem-lite0")
    assert whole.local is None and whole.name == "gem-lite0" and whole.card.local_dim == 0
    assert SetName.parse("delg").imported and SetName.parse("delg").card.global_dim == 2048
    mixed = SetName.parse("hloc+gem-lite0")
    assert mixed.name == "hloc+gem-lite0" and not mixed.imported and not mixed.card.known


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("xfaet", "unknown feature set 'xfaet'", "did you mean 'xfeat'"),
        ("xfeat+gem-lite", "unknown feature set 'gem-lite'", "did you mean 'gem-lite0'"),
        ("xfeat+sift", "'sift' gives no global descriptors", "LOCAL+GLOBAL"),
        ("gem-lite0+xfeat", "'gem-lite0' gives no local descriptors", "LOCAL+GLOBAL"),
        ("xfeat+gem-lite0+gem-lite0", "3 parts", "LOCAL+GLOBAL"),
        ("xfeat:bins=3", "unknown option of xfeat 'bins'", "known: none"),
        ("delg:file", "takes no options", "--features delg"),
        ("", "unknown feature set ''", "xfeat"),
    ],
)
def test_names_that_are_none_are_refused_with_a_suggestion(text: str, said: str, hint: str) -> None:
    with pytest.raises(UserError) as refusal:
        SetName.parse(text)
    assert said in refusal.value.message and hint in str(refusal.value.hint)


def test_what_local_says_must_be_an_extractor_of_local_descriptors() -> None:
    assert local_of("superpoint") == ("superpoint", 256)
    for name in ("gem-lite0", "superpiont"):
        with pytest.raises(UserError):
            local_of(name)


def test_parts_are_stored_once_whatever_set_they_are_in(
    instances: Path, stored: tuple[Dataset, FeatureSet], cache: Path
) -> None:
    dataset, xfeat = stored
    places, cpu = Places.of(cache), torch.device("cpu")
    sift, _ = features_of(dataset, "sift", EXTRACT, cpu, places)
    alone, again = features_of(dataset, "gem-lite0", EXTRACT, cpu, places)
    assert again.extracted == 0 and alone.local is None
    assert sift.globals_.folder == xfeat.globals_.folder == alone.globals_.folder  # type: ignore[union-attr]
    keys = list(dataset.gallery)
    np.testing.assert_array_equal(sift.global_descriptors(keys), alone.global_descriptors(keys))
    assert (alone.counts(keys) == 0).all() and len(alone.read(keys[0])) == 0
    assert alone.read(keys[0]).global_descriptor.shape == (1280,)


def test_a_set_reads_what_its_extractors_gave(stored: tuple[Dataset, FeatureSet]) -> None:
    dataset, features = stored
    from bench.images import decode, read_bytes

    key, path = next(iter(dataset.gallery.items()))
    made = FeatureExtractor("xfeat", EXTRACT)(decode(read_bytes(path), path))
    found = features.read(key)
    for name, value in made.items():
        np.testing.assert_allclose(getattr(found, name).numpy(), value, rtol=1e-3, atol=1e-3, err_msg=name)
    assert features.read(key, frozenset({"local"})).global_descriptor.numel() == 0
    assert features.read(key, ALL, 7).descriptors.shape == (7, 64)


def test_content_holds_every_part(stored: tuple[Dataset, FeatureSet], cache: Path) -> None:
    dataset, features = stored
    keys = lambda: iter(dataset.gallery)  # noqa: E731
    places, cpu = Places.of(cache), torch.device("cpu")
    others = [
        features_of(dataset, "sift", EXTRACT, cpu, places)[0],
        features_of(dataset, "gem-lite0", EXTRACT, cpu, places)[0],
        features_of(dataset, "xfeat", ExtractOptions(160, 60), cpu, places)[0],
    ]
    contents = [each.content(keys) for each in (features, *others)]
    assert len(set(contents)) == 4
    assert features_of(dataset, "xfeat", EXTRACT, cpu, places)[0].content(keys) == contents[0]


def test_how_long_extraction_took_is_kept(stored: tuple[Dataset, FeatureSet]) -> None:
    dataset, features = stored
    for store in (features.local, features.globals_):
        decode, extract = store.times(dataset.gallery)  # type: ignore[union-attr,misc]
        assert 0 < decode < 10_000 and 0 < extract < 10_000


def export(features: FeatureSet, dataset: Dataset, place: Path) -> Path:
    """One .npz an image with what the store has of it."""
    for key in dataset.gallery:
        path = place / f"{key}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **{name: value.numpy() for name, value in vars(features.read(key)).items()})
    return place


def test_imported_xfeat_arrays_score_as_the_extracted_ones_do(
    cli: Cli, stored: tuple[Dataset, FeatureSet], instances: Path, tmp_path: Path, cache: Path
) -> None:
    dataset, features = stored
    place = export(features, dataset, tmp_path / "arrays")
    here = ("-d", f"folder:{instances}", "--cache-dir", str(cache), "--runs", str(tmp_path / "runs"))
    methods = ("-m", "mnn,asmk,rrt,lightglue,ransac", "--threads", "1")
    first = ("--first-stage", "gem-lite0")  # whose descriptors are among the arrays
    assert cli("run", *methods, *first, *here, *SMALL).exit_code == 0
    plain = cli("features", "import", "arrays", str(place), *here[:4])
    assert plain.exit_code == 0, plain.output
    skipped = cli("run", "-m", "mnn,rrt,rrt@arrays", *here, *SMALL, "-f", "arrays")
    assert skipped.exit_code == 0 and "rrt@arrays did not run: the shipped weights read xfeat" in " ".join(
        skipped.output.split()
    )
    before = finished_runs(tmp_path / "runs")
    assert set(before[-1].record.costs) == {"mnn@arrays", "rrt"}  # without @ it reads what its weights were made for
    assert cli("features", "import", "arrays", str(place), *here[:4], "--local", "xfeat").exit_code == 0
    done = cli("run", *methods, *here, *SMALL, "-f", "arrays+gem-lite0")
    assert done.exit_code == 0 and "did not run" not in done.output, done.output
    extracted, imported = before[0], finished_runs(tmp_path / "runs")[-1]
    assert imported.seal == extracted.seal
    assert set(imported.record.costs) == {
        *(f"{method}@arrays" for method in ("mnn", "asmk", "lightglue", "ransac")),
        "rrt@arrays+gem-lite0",  # imported global descriptors do not say what made them
    }
    tables = [
        run.scores.assign(method=run.scores.method.str.partition("@")[0])
        .set_index(["method", "query", "candidate"])["score"]
        .sort_index()
        for run in (extracted, imported)
    ]
    pd.testing.assert_series_equal(*tables, check_exact=True)


def test_local_that_contradicts_the_dimensions_is_refused(
    cli: Cli, stored: tuple[Dataset, FeatureSet], instances: Path, tmp_path: Path
) -> None:
    place = export(stored[1], stored[0], tmp_path / "arrays")
    where = ("-d", f"folder:{instances}", "--cache-dir", str(tmp_path / "cache"))
    for name, said in (("superpoint", "has 64-d descriptors, not 256-d ones"), ("xfaet", "did you mean 'xfeat'")):
        refused = cli("features", "import", "arrays", str(place), *where, "--local", name)
        assert refused.exit_code == 1 and said in " ".join(refused.output.split())
