"""What is fuzzed: every parser of a file that others wrote, each with a valid file to begin from.

A parser gives a value or the project's own error, whatever the bytes.
"""

from __future__ import annotations

import io
import json
import pickle
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
    from bench.search import Vectors
    from bench.shortlist import first_stage

    gallery = {name: Path(name) for name in "abc"}
    dataset = Dataset("d", "revisited", "v", (Query("q", Path("q")),), gallery, {"q": {"a": "easy"}})
    made = first_stage(
        dataset, Vectors.of(np.eye(3)), np.ones((1, 3)), features="f", features_content="c", policy="blind", k=2
    )
    with tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder) / "s.npz")
        return (Path(folder) / "s.npz").read_bytes()


def _journal(path: Path) -> object:
    from bench.scores import Journal

    return len(Journal(path))


def _journal_seed() -> bytes:
    record = {"method": "m", "query": "q", "scores": {"union": [1.0, 2.0]}, "load_ms": 1.0, "transfer_ms": 0.0}
    return json.dumps(record | {"score_ms": 1.0, "details": {}}).encode() + b"\n"


def _baseline(path: Path) -> object:
    from bench.report.check import read_baseline

    return read_baseline(path)


def _baseline_seed() -> bytes:
    return (Path(__file__).parents[2] / "results" / "baseline" / "demo.json").read_bytes()


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
}
