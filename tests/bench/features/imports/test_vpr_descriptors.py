"""Matrices of global descriptors: rows belong to sorted files, and what does not fit is refused with both numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from bench.datasets import Dataset, catalogue, folder
from bench.errors import UserError
from bench.features.importing import check_foreign, import_foreign
from bench.features.items import query_key
from bench.features.sets import SetName
from bench.features.store import FeatureStore
from bench.places import Places
from third_party.foreign_features import Matrices

KIND = "vpr-descriptors"
DATABASE = ["b/@500.0@100.0@17@T@.jpg", "a/@500.0@109.0@17@T@.jpg", "@900.0@100.0@17@T@.jpg", "b/@700.0@1.0@17@T@.jpg"]
QUERIES = ["@500.0@101.0@17@T@.jpg", "@901.0@100.0@17@T@.jpg"]
D = 8


def place(root: Path) -> Path:
    for part, names in (("database", DATABASE), ("queries", QUERIES)):
        for name in names:
            path = root / part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 12)).save(path)
    return root


def load(root: Path) -> Dataset:
    return catalogue.load(f"vpr:{root}", Places(*[Path("nowhere")] * 3))


def unit(rows: int, seed: int = 0) -> np.ndarray:
    """(rows, D) float32 of unit norm."""
    found = np.random.default_rng((rows, seed)).normal(size=(rows, D))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def saved(place: Path, database: np.ndarray, queries: np.ndarray | None) -> Path:
    """The folder that the evaluation writes."""
    place.mkdir(exist_ok=True)
    np.save(place / "database_descriptors.npy", database)
    if queries is not None:
        np.save(place / "queries_descriptors.npy", queries)
    return place


def globals_of(dataset: Dataset, store: Path) -> tuple[np.ndarray, np.ndarray]:
    """What is stored of gallery and queries, in the data set's order."""
    found = FeatureStore(store)
    return (
        found.global_descriptors(list(dataset.gallery)),
        found.global_descriptors([query_key(dataset, i) for i in range(len(dataset.queries))]),
    )


def test_rows_are_those_of_the_sorted_files_bit_for_bit(tmp_path: Path) -> None:
    root = place(tmp_path / "city")
    dataset, database, queries = load(root), unit(4), unit(2)
    by_glob = sorted(str(path) for path in (root / "database").rglob("*.jpg"))  # as the evaluation lists them
    report = import_foreign(KIND, dataset, saved(tmp_path / "log", database, queries), tmp_path / "store")
    assert report.extracted == 6
    assert report.caveats == (
        "vpr-descriptors files name no images: rows are taken as the sorted files of database and queries",
    )
    assert not [note for note in report.notes if "not in the files" in note or "no local" in note]
    store = FeatureStore(tmp_path / "store")
    assert store.dims == (0, D)
    for row, path in zip(database, by_glob, strict=True):
        key = Path(path).relative_to(root).as_posix()
        assert np.array_equal(store.read(key).global_descriptor.numpy(), row)
    stored, asked = globals_of(dataset, tmp_path / "store")
    assert np.array_equal(asked, queries[np.argsort(QUERIES)]) and stored.shape == (4, D)


def test_a_list_of_images_beside_a_folder_is_the_order_of_its_rows(tmp_path: Path) -> None:
    root = place(tmp_path / "city")
    (root / "database_images_paths.txt").write_text("\n".join(sorted(DATABASE, reverse=True)))
    dataset, database = load(root), unit(4)
    import_foreign(KIND, dataset, saved(tmp_path / "log", database, unit(2)), tmp_path / "store")
    stored, _ = globals_of(dataset, tmp_path / "store")
    assert list(dataset.gallery) == [f"database/{name}" for name in sorted(DATABASE, reverse=True)]
    assert np.array_equal(stored, database)


def test_another_data_sets_rows_are_sorted_by_file_not_by_its_lists(buildings: Path, tmp_path: Path) -> None:
    truth = json.loads((buildings / "gnd.json").read_text())
    truth["gallery"].reverse()
    other = tmp_path / "reversed"
    other.mkdir()
    (other / "gnd.json").write_text(json.dumps(truth))
    for part in ("gallery", "queries"):
        (other / part).symlink_to(buildings / part)
    dataset, database, queries = folder.load(other), unit(12), unit(2)
    report = import_foreign(KIND, dataset, saved(tmp_path / "log", database, queries), tmp_path / "store")
    stored, asked = globals_of(dataset, tmp_path / "store")
    assert list(dataset.gallery) != sorted(dataset.gallery)
    assert np.array_equal(stored[np.argsort(list(dataset.gallery))], database) and np.array_equal(asked, queries)
    assert any("do not tell whether 2 of 2 queries were cropped" in caveat for caveat in report.caveats)


def test_queries_that_are_gallery_images_need_no_rows_of_their_own(instances: Path, tmp_path: Path) -> None:
    dataset, database = folder.load(instances), unit(9)
    import_foreign(KIND, dataset, saved(tmp_path / "log", database, None), tmp_path / "store")
    both = saved(tmp_path / "both", database, unit(9, seed=1))
    import_foreign(KIND, dataset, both, tmp_path / "other")
    for store in ("store", "other"):
        stored, asked = globals_of(dataset, tmp_path / store)
        assert np.array_equal(stored, database) and np.array_equal(asked, database)


def test_files_may_be_named_one_by_one(tmp_path: Path) -> None:
    dataset, log = load(place(tmp_path / "city")), saved(tmp_path / "log", unit(4), unit(2))
    import_foreign(KIND, dataset, log, tmp_path / "store")
    files = {"queries": log / "queries_descriptors.npy"}
    import_foreign(KIND, dataset, log / "database_descriptors.npy", tmp_path / "other", **files)
    for one, other in zip(
        globals_of(dataset, tmp_path / "store"), globals_of(dataset, tmp_path / "other"), strict=True
    ):
        assert np.array_equal(one, other)
    with pytest.raises(UserError, match="a folder has its own queries"):
        import_foreign(KIND, dataset, log, tmp_path / "store", **files)


def test_it_is_a_first_stage_and_a_methods_global_descriptor(cli: Callable[..., Result], tmp_path: Path) -> None:
    root = place(tmp_path / "city")
    queries = np.eye(D, dtype=np.float32)[:2]
    near = dict(
        zip(sorted(DATABASE), np.eye(D, dtype=np.float32)[[1, 0, 2, 3]], strict=True)
    )  # a/… is 8 m from the first
    log = saved(tmp_path / "log", np.stack([near[name] for name in sorted(DATABASE)]), queries)
    here = ("-d", f"vpr:{root}", "--cache-dir", str(tmp_path / "cache"))
    refused = cli("run", "-m", "identity", *here, "-f", KIND)
    assert refused.exit_code == 1 and f"features import {KIND}" in refused.output
    imported = cli("features", "import", KIND, str(log), *here)
    assert imported.exit_code == 0 and "6 images imported" in imported.output, imported.output
    assert "--shortlist" not in imported.output  # it has global descriptors
    done = cli("run", "-m", "identity,aqe", *here, "-f", KIND, "-k", "2")
    assert done.exit_code == 0, done.output
    assert f"aqe@{KIND}" in done.output and "100.0" in done.output
    assert "rows are taken as the sorted files of database and queries" in done.output


def test_it_joins_local_descriptors_of_another_set_and_has_none_of_its_own() -> None:
    found = SetName.parse(f"xfeat+{KIND}")
    assert found.local is not None and found.local.key == "xfeat" and found.global_ is not None
    alone = SetName.parse(KIND)
    assert alone.local is None and alone.card.local_dim == 0 and alone.imported
    with pytest.raises(UserError, match="gives no local descriptors"):
        SetName.parse(f"{KIND}+gem-lite0")


@pytest.mark.parametrize(
    ("database", "queries", "says"),
    [
        (
            unit(5),
            unit(2),
            "rows 5 of the database and 2 of the queries; .* has 4 images of the gallery and 2 of queries",
        ),
        (
            unit(4),
            unit(3),
            "rows 4 of the database and 3 of the queries; .* has 4 images of the gallery and 2 of queries",
        ),
        (unit(4), None, "rows 4 of the database; .* has 4 images of the gallery and 2 of queries"),
        (unit(4), unit(2)[:, :5], "5 values a descriptor, and database_descriptors.npy has 8"),
        (np.ones((4, D), np.int64), unit(2), "int64 .4, 8., expected floating-point numbers .images, D."),
        (np.ones((4, D), complex), unit(2), "complex128 .4, 8., expected floating-point numbers"),
        (unit(4)[0], unit(2), "float32 .8,., expected floating-point numbers"),
        (unit(4)[:, :0], unit(2), "float32 .4, 0., expected floating-point numbers"),
        (
            np.where(np.arange(4)[:, None] == 2, np.nan, unit(4)),
            unit(2),
            "'database row 2': values of global_descriptor",
        ),
        (unit(4), unit(2) * np.float32([[1], [np.inf]]), "'queries row 1': values of global_descriptor are not finite"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, database: np.ndarray, queries: np.ndarray | None, says: str
) -> None:
    dataset = load(place(tmp_path / "city"))
    with np.errstate(invalid="ignore"), pytest.raises(UserError, match=says):
        import_foreign(KIND, dataset, saved(tmp_path / "log", database, queries), tmp_path / "store")
    with pytest.raises(UserError, match="6 of 6 images have not been imported"):
        check_foreign(KIND, dataset, tmp_path / "store")


def test_other_files_are_refused_and_pickles_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "database.npy"
    np.save(path, np.array([{}], object), allow_pickle=True)
    with pytest.raises(UserError, match=r"database\.npy: not readable as a \.npy"):
        Matrices(path)
    np.save(path, unit(4))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"database\.npy: not readable as a \.npy"):
        Matrices(path)
    np.savez(tmp_path / "several.npz", a=unit(4))
    with pytest.raises(UserError, match="an archive of several arrays"):
        Matrices(tmp_path / "several.npz")
    with pytest.raises(UserError, match=r"database_descriptors\.npy: no such file") as refusal:
        Matrices(tmp_path)
    assert "--save_descriptors" in str(refusal.value.hint)


def test_rows_of_another_length_are_normalised_and_said(tmp_path: Path) -> None:
    dataset, database = load(place(tmp_path / "city")), unit(4)
    report = import_foreign(KIND, dataset, saved(tmp_path / "log", 3 * database, unit(2)), tmp_path / "store")
    stored, _ = globals_of(dataset, tmp_path / "store")
    assert np.allclose(stored, database, atol=1e-6)
    assert "4 of 6 images had global descriptors that were not of unit length: they were normalised" in report.caveats


def test_options_for_local_descriptors_are_refused(tmp_path: Path) -> None:
    dataset, log = load(place(tmp_path / "city")), saved(tmp_path / "log", unit(4), unit(2))
    with pytest.raises(UserError, match="--ordered: vpr-descriptors has no local descriptors"):
        import_foreign(KIND, dataset, log, tmp_path / "store", ordered=True)
    with pytest.raises(UserError, match="--local: vpr-descriptors has no local descriptors"):
        import_foreign(KIND, dataset, log, tmp_path / "store", local=("superpoint", 256))


def test_other_matrices_take_the_place_of_those_imported(tmp_path: Path) -> None:
    dataset, store = load(place(tmp_path / "city")), tmp_path / "store"
    log = saved(tmp_path / "log", unit(4), unit(2))
    import_foreign(KIND, dataset, log, store)
    assert import_foreign(KIND, dataset, log, store).extracted == 0
    again = import_foreign(KIND, dataset, saved(tmp_path / "log", unit(4, seed=1), unit(2)), store)
    assert again.extracted == 6 and np.array_equal(globals_of(dataset, store)[0], unit(4, seed=1))
