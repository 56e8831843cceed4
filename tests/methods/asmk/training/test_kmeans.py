"""A codebook is made from a folder of photographs, the same each time."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result

from bench.datasets import Dataset
from bench.errors import UserError
from bench.features.sets import card_of
from bench.features.store import FeatureStore
from methods.asmk import Asmk
from methods.asmk.codebook import Codebook
from methods.asmk.training.kmeans import TrainOptions, cluster, train


def test_clusters_far_apart_are_found() -> None:
    centres = np.array([[0, 0], [10, 0], [0, 10]], dtype=np.float32)
    points = np.concatenate([centres + np.float32(0.1), centres - np.float32(0.1)])
    found = cluster(points, 3, 20, seed=1)
    assert np.allclose(sorted(found.tolist()), sorted(centres.tolist()), atol=1e-5)


def test_there_must_be_a_descriptor_for_each_word() -> None:
    with pytest.raises(UserError, match="3 descriptors for 4 words"):
        cluster(np.eye(3, dtype=np.float32), 4, 1, 0)


def test_the_command_line_makes_a_codebook_that_can_be_used(
    cli: Callable[..., Result], instances: Path, tmp_path: Path
) -> None:
    out = tmp_path / "c.safetensors"
    given = ["--words", "20", "--descriptors", "30", "--max-side", "160", "--iterations", "3"]
    result = cli("train", "asmk", "--recipe", "kmeans", "--photos", str(instances), "--out", str(out), *given)
    assert result.exit_code == 0, result.output
    found = Codebook.load(out)
    assert found.centroids.shape == (20, 64) and found.features == "xfeat"
    assert found.trained_on == f"270 xfeat descriptors of 9 images ({instances.name})"
    method = Asmk(Asmk.Options(codebook=out))
    method.load()
    again = tmp_path / "again.safetensors"
    train(TrainOptions(instances, words=20, descriptors=30, max_side=160, iterations=3), again)
    assert torch.equal(Codebook.load(again).centroids, found.centroids)
    other = train(TrainOptions(instances, words=20, descriptors=30, max_side=160, iterations=3, seed=1), again)
    assert other["seed"] == 1 and not torch.equal(Codebook.load(again).centroids, found.centroids)


def test_what_cannot_be_trained_on_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one thing to train on"):
        TrainOptions()
    with pytest.raises(UserError, match="one thing to train on"):
        TrainOptions(tmp_path, store=tmp_path)
    with pytest.raises(UserError, match="words 0"):
        TrainOptions(tmp_path, words=0)
    with pytest.raises(UserError, match="no photographs"):
        train(TrainOptions(tmp_path), tmp_path / "c.safetensors")
    with pytest.raises(UserError, match="no feature store"):
        train(TrainOptions(store=tmp_path), tmp_path / "c.safetensors")


def test_a_feature_store_serves_as_well_as_photographs(stored: tuple[Dataset, FeatureStore], tmp_path: Path) -> None:
    out, store = tmp_path / "c.safetensors", stored[1].local
    train(TrainOptions(store=store.folder, words=5, descriptors=20, iterations=3), out)
    found = Codebook.load(out)
    assert found.features == "xfeat" and found.trained_on.startswith(f"{20 * len(store)} xfeat descriptors")
    assert Asmk(Asmk.Options(codebook=out)).skip(card_of("xfeat")) is None
