"""Other programs' features come into the store as they are, and what is none is refused."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import Result

from bench.datasets import Dataset, folder
from bench.errors import UserError
from bench.features.importing import IMPORTS, check_foreign, import_foreign
from bench.features.items import query_key
from bench.features.store import FeatureStore
from third_party.foreign_features import Ames, Colmap, Hloc, ImageFiles

N, D, G = 12, 128, 6


def features(number: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(number // 3)  # three views of an object are alike
    rows = draw.normal(size=(N, D)).astype(np.float32)
    rows = np.abs(rows) / np.linalg.norm(rows, axis=1, keepdims=True)
    return {
        "descriptors": rows / np.linalg.norm(rows, axis=1, keepdims=True),
        "keypoints": draw.uniform(0, 100, (N, 2)).astype(np.float32),
        "scores": draw.permutation(N).astype(np.float32),
        "image_size": np.array([160, 120]),
        "global_descriptor": np.eye(G, dtype=np.float32)[number // 3],
    }


def ordered(dataset: Dataset) -> list[str]:
    own = [query_key(dataset, i) for i in range(len(dataset.queries))]
    return [*dataset.gallery, *(key for key in own if key not in dataset.gallery)]


def write(kind: str, dataset: Dataset, place: Path) -> tuple[Path, Path | None]:
    """Files of that kind for every image, named as the other program would."""
    images = {image: features(i) for i, image in enumerate(ordered(dataset))}
    path, globals_ = place / kind, None
    if kind == "hloc":
        globals_ = place / "globals.h5"
        with h5py.File(path, "w") as local, h5py.File(globals_, "w") as whole:
            for image, found in images.items():
                for name in ("keypoints", "scores", "image_size"):
                    local[f"db/{image}.png/{name}"] = found[name]
                local[f"db/{image}.png/descriptors"] = found["descriptors"].T
                whole[f"db/{image}.png/global_descriptor"] = found["global_descriptor"]
    elif kind == "ames":
        globals_ = place / "globals.npy"
        rows = np.zeros((len(images), N + 3, 5 + D), np.float32)
        rows[:, N:, 3] = 1  # padding
        for row, found in zip(rows, images.values(), strict=True):
            row[:N, :2], row[:N, 4], row[:N, 5:] = found["keypoints"], found["scores"], found["descriptors"]
        with h5py.File(path, "w") as file:
            file["features"] = rows
        np.save(globals_, np.stack([found["global_descriptor"] for found in images.values()]))
    elif kind == "colmap":
        import pycolmap

        database = pycolmap.Database.open(str(path))
        camera = database.write_camera(
            pycolmap.Camera.create_from_model_id(1, pycolmap.CameraModelId.SIMPLE_PINHOLE, 100.0, 160, 120)
        )
        for image, found in images.items():
            number = database.write_image(pycolmap.Image(name=f"{image}.png", camera_id=camera))
            database.write_keypoints(number, found["keypoints"])
            rows = np.rint(found["descriptors"] * 255).astype(np.uint8)
            database.write_descriptors(
                number, pycolmap.FeatureDescriptors(type=pycolmap.FeatureExtractorType.SIFT, data=rows)
            )
        database.close()
    else:
        for image, found in images.items():
            (path / image).parent.mkdir(parents=True, exist_ok=True)
            np.savez(path / f"{image}.npz", **found)
    return path, globals_


@pytest.mark.parametrize(
    "kind", [each.name for each in map(IMPORTS.get, IMPORTS.names()) if each.read and each.gives == "both"]
)
def test_what_another_program_wrote_is_read_and_can_be_run(
    cli: Callable[..., Result], instances: Path, tmp_path: Path, kind: str
) -> None:
    dataset = folder.load(instances)
    path, globals_ = write(kind, dataset, tmp_path)
    more = () if globals_ is None else ("--globals", str(globals_))
    here = ("-d", f"folder:{instances}", "--cache-dir", str(tmp_path / "cache"))
    refused = cli("run", "-m", "identity", *here, "-f", kind)
    assert refused.exit_code == 1 and f"features import {kind}" in refused.output
    assert cli("features", "import", kind, str(path), *more, *here).exit_code == 0
    done = cli("run", "-m", "identity,mnn,maxsim", *here, "-f", kind, "-k", "4")
    if kind == "colmap":  # no global descriptors, so no first stage
        assert done.exit_code == 1 and "has no global descriptors" in done.output
        lists = [f"{q.id} Q0 {g} 1 1 x\n" for q in dataset.queries for g in dataset.gallery if g != q.id]
        (tmp_path / "theirs.run").write_text("".join(lists))
        done = cli("run", "-m", "mnn,maxsim", *here, "-f", kind, "-k", "4", "--shortlist", str(tmp_path / "theirs.run"))
    assert done.exit_code == 0, done.output
    (stored,) = (tmp_path / "cache" / "features").iterdir()
    store = FeatureStore(stored)
    for number, image in enumerate(ordered(dataset)):
        found, expected = store.read(image), features(number)
        best = np.argsort(-expected["scores"]) if kind != "colmap" else np.arange(N)
        assert np.allclose(found.keypoints, expected["keypoints"][best], atol=1e-4)
        if kind == "colmap":
            assert np.allclose(found.descriptors.norm(dim=1), 1, atol=1e-4)
        else:
            assert np.allclose(found.descriptors, expected["descriptors"][best], atol=1e-6)
            assert np.allclose(found.global_descriptor, expected["global_descriptor"])
    if kind != "colmap":
        assert "100.0" in done.output  # views of an object have one global descriptor: all are found


def test_an_import_killed_while_it_took_the_place_of_another_goes_on_from_there(
    cli: Callable[..., Result], instances: Path, tmp_path: Path
) -> None:
    dataset = folder.load(instances)
    path, globals_ = write("hloc", dataset, tmp_path)
    given = ("features", "import", "hloc", str(path), "--globals", str(globals_), "-d", f"folder:{instances}")
    given += ("--cache-dir", str(tmp_path / "cache"))
    assert cli(*given).exit_code == 0
    (store,) = (tmp_path / "cache" / "features").iterdir()
    store.rename(store.with_name(f"{store.name}.new"))  # the old one is gone, the new one not yet in its place
    done = cli(*given)
    assert done.exit_code == 0 and "0 images imported" in done.output
    assert [path.name for path in store.parent.iterdir()] == [store.name] and len(FeatureStore(store)) == 9


def test_hdf5_that_points_elsewhere_or_holds_no_numbers_is_refused(tmp_path: Path) -> None:
    def group(file: object) -> object:
        made = file.create_group("a.png")  # type: ignore[attr-defined]
        made["keypoints"], made["descriptors"] = np.zeros((2, 2)), np.zeros((4, 2))
        return made

    def external(file: object) -> None:
        made = group(file)
        del made["keypoints"]  # type: ignore[attr-defined]
        made["keypoints"] = h5py.ExternalLink("/etc/passwd", "/x")  # type: ignore[index]

    def soft(file: object) -> None:
        made = group(file)
        del made["descriptors"]  # type: ignore[attr-defined]
        made["descriptors"] = h5py.SoftLink("/a.png/keypoints")  # type: ignore[index]

    def names(file: object) -> None:
        made = group(file)
        made["scores"] = np.array([b"a", b"b"])  # type: ignore[index]

    def outside(file: object) -> None:
        made = group(file)
        stored = [(str(tmp_path / "raw"), 0, 64)]
        made.create_dataset("scores", (8,), "f8", external=stored)  # type: ignore[attr-defined]

    def huge(file: object) -> None:
        group(file).create_dataset("scores", (2**40,), "f4", chunks=(2**10,))  # type: ignore[attr-defined]

    for number, make in enumerate((external, soft, names, outside, huge)):
        path = tmp_path / f"{number}.h5"
        with h5py.File(path, "w") as file:
            make(file)
        with pytest.raises(UserError, match="refused"):
            Hloc(path).read("a.png")
    with h5py.File(tmp_path / "top.h5", "w") as file:
        file["a.png"] = h5py.ExternalLink("/etc/passwd", "/x")
    with pytest.raises(UserError, match="is a link"):
        Hloc(tmp_path / "top.h5").names()


def test_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    for data in (b"", b"\x89HDF\r\n\x1a\n" + b"\0" * 99, b"SQLite format 3\0" + b"x" * 500, b"text"):
        path.write_bytes(data)
        for read in (lambda: Hloc(path).names(), lambda: Ames(path), lambda: Colmap(path).names()):
            with pytest.raises(UserError, match="damaged"):
                read()
    (tmp_path / "a.npz").write_bytes(b"PK")
    (tmp_path / "b.safetensors").write_bytes(b"x" * 20)
    for name in ImageFiles(tmp_path).names():
        with pytest.raises(UserError, match=name):
            ImageFiles(tmp_path).read(name)


def test_a_database_without_the_tables_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "db") as database:
        database.execute("CREATE TABLE images (image_id INTEGER, name TEXT)")
        database.execute("INSERT INTO images VALUES (1, 'a.png')")
    with pytest.raises(UserError, match="no such table"):
        Colmap(tmp_path / "db").read("a.png")


BAD = {
    "descriptors": np.full((N, D), np.nan),
    "keypoints": np.zeros((N - 1, 2)),
    "scores": np.zeros((N, 2)),
    "image_size": np.zeros(3),
    "global_descriptor": np.zeros(G + 1),
}


@pytest.mark.parametrize("name", BAD)
def test_values_that_do_not_fit_are_named(instances: Path, tmp_path: Path, name: str) -> None:
    dataset = folder.load(instances)
    path, _ = write("arrays", dataset, tmp_path)
    image = list(dataset.gallery)[4]
    np.savez(path / f"{image}.npz", **{**features(4), name: BAD[name]})
    with pytest.raises(UserError, match=rf"{name}.*|.*{image}"):
        import_foreign("arrays", dataset, path, tmp_path / "store")


def test_an_image_that_is_not_there_or_there_twice_is_named(instances: Path, tmp_path: Path) -> None:
    dataset = folder.load(instances)
    path, _ = write("arrays", dataset, tmp_path)
    (path / "object1" / "view1.npz").rename(path / "object1" / "other.npz")
    with pytest.raises(UserError, match=r"(no|more than one) image.* fits 'object1/view1'"):
        import_foreign("arrays", dataset, path, tmp_path / "store")
    with pytest.raises(UserError, match="9 images have not been imported"):
        check_foreign("arrays", dataset, tmp_path / "nothing")
    with pytest.raises(UserError, match="no such file"):
        import_foreign("hloc", dataset, tmp_path / "nowhere.h5", tmp_path / "store")
