"""What is fuzzed: every parser of a file that others wrote, each with a valid file to begin from.

A parser gives a value or the project's own error, whatever the bytes.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import shutil
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Target:
    """`parse` reads a file; `seed` makes the bytes of a valid one."""

    parse: Callable[[Path], object]
    seed: Callable[[], bytes]
    suffix: str = ""


def _image(path: Path) -> object:
    from bench.images import decode, read_bytes

    return decode(read_bytes(path), path)


def _png() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(file, "png")
    return file.getvalue()


def _delg_global(path: Path) -> object:
    from third_party import delg

    return delg.parse_global(delg.read_bytes(path), path)


def _delg_local(path: Path) -> object:
    from third_party import delg

    return delg.parse_local(delg.read_bytes(path), path)


def _message(*fields: tuple[int, bytes]) -> bytes:
    """Length-delimited protobuf fields; all are shorter than 128 bytes."""
    return b"".join(bytes([number << 3 | 2, len(content)]) + content for number, content in fields)


def _datum(values: np.ndarray) -> bytes:
    shape = _message((1, bytes([len(values)])))
    return _message((1, shape), (2, _message((1, values.astype("<f4").tobytes()))))


def _delg_local_seed() -> bytes:
    floats = b"".join(bytes([number << 3 | 5]) + np.float32(number).tobytes() for number in range(2, 7))
    feature = _message((1, _datum(np.ones(4)))) + floats
    return _message((1, feature), (1, feature))


def _ground_truth(path: Path) -> object:
    from bench.datasets.revisited import read_ground_truth

    return read_ground_truth(path)


def _ground_truth_seed() -> bytes:
    truth = {"bbx": [0, 0, 9.5, 9], "easy": [0], "hard": [1], "junk": []}
    return pickle.dumps({"gnd": [truth], "imlist": ["a", "b"], "qimlist": ["q"]}, protocol=3)


def _index_lists(path: Path) -> object:
    from third_party.allowed_pickle import read_index_lists

    return read_index_lists(path)


def _landmark_list(path: Path) -> object:
    from bench.datasets.gldv2 import read_list

    return read_list(path)


def _folder(path: Path) -> object:
    """A gnd.json beside a gallery of one image."""
    from bench.datasets import folder

    root = path.parent / f"{path.name}-set"
    if not root.is_dir():
        (root / "gallery").mkdir(parents=True)
        (root / "queries").mkdir()
        for name in ("gallery/a.png", "gallery/b.png", "queries/q.png"):
            (root / name).write_bytes(_png())
    (root / "gnd.json").write_bytes(path.read_bytes())
    return folder.load(root)


def _folder_seed() -> bytes:
    query = {"query": "q", "box": [0, 0, 8, 8], "easy": ["a"], "hard": [], "junk": ["b"]}
    return json.dumps({"gallery": ["a", "b"], "queries": [query]}).encode()


def _checkpoint(path: Path) -> object:
    from third_party.checkpoints import read_torch

    return read_torch(path, "")


def _checkpoint_seed() -> bytes:
    import torch

    file = io.BytesIO()
    torch.save({"state": {"module.a": torch.ones(2)}}, file)
    return file.getvalue()


def _safetensors(path: Path) -> object:
    from third_party.checkpoints import read_safetensors

    return read_safetensors(path, "f", "")


def _safetensors_seed() -> bytes:
    import torch
    from safetensors.torch import save

    return save({"a": torch.ones(2)}, {"format": "f", "config": "{}"})


def _shortlist(path: Path) -> object:
    from bench.shortlist import Shortlist

    return Shortlist.load(path)


def _shortlist_seed() -> bytes:
    import tempfile

    from bench.datasets import Dataset, Query
    from bench.search import Dense, Vectors
    from bench.shortlist import first_stage

    gallery = {name: Path(name) for name in "abc"}
    dataset = Dataset("d", "revisited", "v", (Query("q", Path("q")),), gallery, {"q": {"a": "easy"}})
    made = first_stage(
        dataset, Dense(np.ones((1, 3)), Vectors.of(np.eye(3))), name="f", content="c", policy="blind", k=2
    )
    with tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder) / "s.npz")
        return (Path(folder) / "s.npz").read_bytes()


def _journal(path: Path) -> object:
    from bench.journal import Journal

    return len(Journal(path))


def _journal_seed() -> bytes:
    record = {"method": "m", "query": "q", "scores": {"union": [1.0, 2.0]}, "load_ms": 1.0, "transfer_ms": 0.0}
    return json.dumps(record | {"score_ms": 1.0, "details": {}}).encode() + b"\n"


def _baseline(path: Path) -> object:
    from bench.report.check import read_baseline

    return read_baseline(path)


def _baseline_seed() -> bytes:
    return (Path(__file__).parents[2] / "results" / "baseline" / "demo.json").read_bytes()


def _products(path: Path) -> object:
    from bench.datasets.sop import read_list

    return read_list(path)


def _distractors(path: Path) -> object:
    from bench.datasets.revisited import read_distractors

    return list(read_distractors(path))


def _landmark_index(path: Path) -> object:
    from bench.datasets.gldv2 import read_index

    return list(read_index(path))


def _solution(path: Path) -> object:
    from bench.datasets.gldv2 import read_solution

    return read_solution(path)


def _trec_run(path: Path) -> object:
    from bench.trec import read_run

    return read_run(path)


def _trec_qrels(path: Path) -> object:
    from bench.trec import read_qrels

    return read_qrels(path)


def _predictions(path: Path) -> object:
    from bench.predictions import read_file

    return read_file(path)


def _columns(path: Path) -> object:
    from bench.columns import read_table

    return read_table(path, ("image", "instance"), ("split",))


def _instre(path: Path) -> object:
    from bench.datasets.instre import read_truth

    return read_truth(path)


def _instre_seed() -> bytes:
    from scipy.io import savemat

    names, entries = np.empty((1, 1), object), np.empty((1, 1), [("ok", object), ("bbx", object)])
    names[0, 0] = "a/1.jpg"
    entries[0, 0] = (np.array([[1]], np.uint16), np.array([[1.0, 2, 3, 4]]))
    file = io.BytesIO()
    savemat(file, {"imlist": names, "qimlist": names, "gnd": entries}, do_compression=True)
    return file.getvalue()


def _boxes(path: Path) -> object:
    from bench.datasets.ilias import read_box

    return read_box(path)


def _exhibits(path: Path) -> object:
    from bench.datasets.met import read_list

    return read_list(path, "MET_id")


def _groups(path: Path) -> object:
    """A groups.json of three images."""
    from bench.datasets.listed import Finder, read_groups

    images = {name: Path(name) for name in "abc"}
    return read_groups(path, Finder(path.parent, lambda: images), images)


def _listed_places(path: Path) -> object:
    """A list of images beside the folders of a place-recognition set."""
    from bench.datasets.vpr import Side

    folder = path.parent / f"{path.name}-set" / "database"
    folder.mkdir(parents=True, exist_ok=True)
    folder.with_name("database_images_paths.txt").write_bytes(path.read_bytes())
    return Side.of(folder, photographs=False)


def _candidates(path: Path) -> object:
    from bench.candidates import imported_shortlist
    from bench.datasets import Dataset, Query

    gallery = {name: Path(name) for name in "abc"}
    dataset = Dataset("d", "revisited", "v", (Query("q", Path("q")),), gallery, {"q": {"a": "easy"}})
    return imported_shortlist(path, dataset, "blind", 2)


def _candidates_seed() -> bytes:
    file = io.BytesIO()
    np.savez(file, queries=np.array(["q"]), candidates=np.array([["a", "b"]]), similarities=np.array([[0.5, 0.25]]))
    return file.getvalue()


def _candidates_safetensors_seed() -> bytes:
    from safetensors.numpy import save

    return save({"candidates": np.array([[0, 1]]), "similarities": np.array([[0.5, 0.25]])})


def _candidates_torch_seed() -> bytes:
    import torch

    file = io.BytesIO()
    torch.save((torch.tensor([[0.5, 0.25]]), torch.tensor([[0, 1]])), file)
    return file.getvalue()


def _candidates_npy_seed() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([[0, 1]]))
    return file.getvalue()


def _archive(path: Path) -> object:
    from bench.datasets.official.sources import Unpack
    from bench.datasets.official.unpack import unpack

    root = path.parent / "unpacked"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    found = unpack(path, root, Unpack("set", most_files=50, most_bytes=2**20), root / "manifest.jsonl")
    inside = sum(file.is_file() for file in path.parent.rglob("*")) - 1  # the manifest is in there too, the archive not
    assert found[0] <= inside, "files were written that are not below the target"
    return found


def _tar_seed() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo("a/b.jpg")
        entry.size = 3
        archive.addfile(entry, io.BytesIO(b"abc"))
    return file.getvalue()


def _zip_seed() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/b.jpg", b"abc")
    return file.getvalue()


def _record(path: Path) -> object:
    from bench.datasets.official.local import read_record

    (path.parent / "downloads.json").write_bytes(path.read_bytes())
    try:
        return read_record(path.parent)
    except Exception as error:
        error.args = (f"{error} {path.name}",)  # the record has a name of its own
        if hasattr(error, "message"):
            error.message += f" {path.name}"
        raise


def _hloc(path: Path) -> object:
    from third_party.foreign_features import Hloc

    features = Hloc(path)
    return [features.read(name) for name in features.names()]


def _hloc_seed() -> bytes:
    import h5py

    file = io.BytesIO()
    with h5py.File(file, "w", libver="latest") as content:
        content["a/keypoints"], content["a/descriptors"] = np.zeros((2, 2)), np.zeros((4, 2))
    return file.getvalue()


def _ames(path: Path) -> object:
    from third_party.foreign_features import Ames

    features = Ames(path)
    return [features.read(name) for name in features.names()[:10]]


def _matrices(path: Path) -> object:
    from third_party.foreign_features import Matrices

    features = Matrices(path)
    return [features.read(name) for name in features.names()[:10]]


def _matrices_seed() -> bytes:
    file = io.BytesIO()
    np.save(file, np.eye(3, dtype=np.float32))
    return file.getvalue()


def _ames_seed() -> bytes:
    import h5py

    file = io.BytesIO()
    with h5py.File(file, "w", libver="latest") as content:
        content["features"] = np.zeros((1, 2, 9), np.float32)
    return file.getvalue()


def _colmap(path: Path) -> object:
    from third_party.foreign_features import Colmap

    features = Colmap(path)
    return [features.read(name) for name in features.names()]


def _colmap_seed() -> bytes:
    database = sqlite3.connect(":memory:")
    database.executescript(
        "PRAGMA page_size = 512; CREATE TABLE images (image_id INTEGER PRIMARY KEY, name TEXT);"
        "CREATE TABLE keypoints (image_id INTEGER, rows INTEGER, cols INTEGER, data BLOB);"
        "CREATE TABLE descriptors (image_id INTEGER, rows INTEGER, cols INTEGER, data BLOB);"
        "INSERT INTO images VALUES (1, 'a.png');"
    )
    database.execute("INSERT INTO keypoints VALUES (1, 1, 2, ?)", (np.ones(2, np.float32).tobytes(),))
    database.execute("INSERT INTO descriptors VALUES (1, 1, 4, ?)", (np.ones(4, np.uint8).tobytes(),))
    database.commit()
    return database.serialize()


def _arrays(path: Path) -> object:
    from third_party.foreign_features import ImageFiles

    return ImageFiles(path.parent).read(path.name)


def _arrays_seed() -> bytes:
    file = io.BytesIO()
    np.savez(file, descriptors=np.ones((2, 4)), keypoints=np.ones((2, 2)))
    return file.getvalue()


def _arrays_safetensors_seed() -> bytes:
    from safetensors.numpy import save

    return save({"descriptors": np.ones((2, 4)), "keypoints": np.ones((2, 2))})


TARGETS: Mapping[str, Target] = {
    "image": Target(_image, _png),
    "delg-global": Target(_delg_global, lambda: _datum(np.ones(8))),
    "delg-local": Target(_delg_local, _delg_local_seed),
    "ground-truth": Target(_ground_truth, _ground_truth_seed),
    "index-lists": Target(_index_lists, lambda: pickle.dumps(np.arange(6).reshape(2, 3), 4)),
    "landmark-list": Target(_landmark_list, lambda: b"landmark_id,images\n7,a b\n"),
    "landmark-list-delg": Target(_landmark_list, lambda: b"jpg/a.jpg,7,640,480\njpg/b.jpg,8,1,1"),
    "folder": Target(_folder, _folder_seed),
    "checkpoint": Target(_checkpoint, _checkpoint_seed),
    "safetensors": Target(_safetensors, _safetensors_seed),
    "shortlist": Target(_shortlist, _shortlist_seed),
    "journal": Target(_journal, _journal_seed),
    "baseline": Target(_baseline, _baseline_seed),
    "sop": Target(_products, lambda: b"image_id class_id super_class_id path\n1 1 1 a_final/b.JPG\n"),
    "distractors": Target(_distractors, lambda: b"jpg/a.jpg\nb/c.jpg\n"),
    "gldv2-index": Target(_landmark_index, lambda: b"id\naaa1\nbbb2\n"),
    "gldv2-solution": Target(_solution, lambda: b"id,images,Usage\nt001,aaa1 bbb2,Public\nt002,None,Ignored\n"),
    "trec-run": Target(_trec_run, lambda: b"q Q0 a%20b 1 2.5 tag\nq Q0 c 2 1.5 tag\n"),
    "trec-qrels": Target(_trec_qrels, lambda: b"q 0 a 1\nq 0 b 0\n"),
    "predictions": Target(_predictions, lambda: b"Query path:\nq\n\nPredictions paths:\na\nb\n\nPositives paths:\na\n"),
    "places": Target(_listed_places, lambda: b"@584844.09@4477316.41@17@T@@.jpg\na/@1e3@-2.5@.png\n"),
    "columns-csv": Target(_columns, lambda: b'image;instance\r\na.jpg;mug\r\n"b;c.jpg";"lamp ""x"""\r\n'),
    "columns-jsonl": Target(_columns, lambda: b'{"image": "a", "instance": 3}\n{"image": "b", "instance": "x"}\n'),
    "groups": Target(_groups, lambda: b'{"x": ["a", "b"], "y": ["c"]}'),
    "instre": Target(_instre, _instre_seed, ".mat"),
    "ilias-boxes": Target(_boxes, lambda: b"5 4 10 8\n12 2 8 20\n"),
    "met": Target(_exhibits, lambda: b'[{"path": "test_met/a.jpg", "MET_id": 34}, {"path": "test_other/b.jpg"}]'),
    "candidates-npz": Target(_candidates, _candidates_seed, ".npz"),
    "candidates-pickle": Target(_candidates, lambda: pickle.dumps(np.arange(3).reshape(1, 3), 4), ".pkl"),
    "candidates-npy": Target(_candidates, _candidates_npy_seed, ".npy"),
    "candidates-safetensors": Target(_candidates, _candidates_safetensors_seed, ".safetensors"),
    "candidates-torch": Target(_candidates, _candidates_torch_seed, ".pt"),
    "candidates-pairs": Target(_candidates, lambda: b"q a 0.5\nq b 0.25\n"),
    "candidates-gz": Target(_candidates, lambda: gzip.compress(b"q Q0 a 1 0.5 t\nq Q0 b 2 0.25 t\n", mtime=0)),
    "tar": Target(_archive, _tar_seed),
    "tar-gz": Target(_archive, lambda: gzip.compress(_tar_seed(), mtime=0)),
    "zip": Target(_archive, _zip_seed),
    "downloads": Target(_record, lambda: b'{"a": {"sha256": "0"}}'),
    "hloc": Target(_hloc, _hloc_seed),
    "ames": Target(_ames, _ames_seed),
    "colmap": Target(_colmap, _colmap_seed),
    "vpr-descriptors": Target(_matrices, _matrices_seed, ".npy"),
    "arrays-npz": Target(_arrays, _arrays_seed, ".npz"),
    "arrays-safetensors": Target(_arrays, _arrays_safetensors_seed, ".safetensors"),
}
