"""What a folder holds, so that two can be compared: after any disturbance it is what an undisturbed one is.

Nothing here uses the program's own readers.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

LOCAL = ("descriptors", "keypoints", "scales", "orientations", "scores")
WHOLE = ("global_descriptor", "image_size")
TIMES = re.compile(r"(^| )(ms|s)\b|_ms$|ms/|cold|MiB|others")  # columns of a table that are not the same twice
FACTS = ("identity", "skipped", "failed", "together", "defaults", "extract", "seeds", "costs", "cards", "stored_bytes")


def contents(root: Path, merging: bool = False) -> dict[str, str]:
    """Relative path -> what matters of that file; shards of a store together, and no lock files that nobody holds.

    A journal with a query twice, and a store with an image twice, are another content than one without; unless
    `merging`, for a store whose merged shards may not have been removed yet.
    """
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_dir():
            if path.name == "shards":
                found[name] = _digest(json.dumps(_images(path, merging), sort_keys=True).encode())
            elif not any(path.iterdir()):
                found[name] = "an empty folder"
        elif path.name.endswith(".lock"):
            if _held(path):
                found[name] = "a lock that is held"
        elif not (path.parent.parent.name == "shards" and _is_shard(path.parent)):
            found[name] = next(digest for matches, digest in KINDS if matches(path))(path)
    return found


def finished(root: Path) -> dict[str, str]:
    """Work that is done and must not be done again -> a mark that doing it again would change."""
    found: dict[str, str] = {}
    for path in sorted(root.rglob("shard.json")):
        store = path.parents[2].relative_to(root).as_posix().removesuffix(".new")
        if _is_shard(path.parent):
            for entry in json.loads(path.read_text())["images"]:
                mark = entry.get("ms") or path.stat().st_mtime_ns
                found[f"{store}: features of {entry['key']}"] = str(mark)
    for path in sorted(root.rglob("journal.jsonl")):
        for line in path.read_bytes().splitlines(keepends=True):
            if (record := _record(line)) is not None:
                found[f"{path.relative_to(root)}: {record['method']} on {record['query']}"] = _digest(line)
    for path in sorted((root / "data").rglob("*")):
        if path.suffix == ".txt" or (path.suffix == ".jpg" and not list((root / "data").rglob("*.tar"))):
            # an archive is unpacked whole or again, and removed afterwards
            found[f"{path.relative_to(root)}: fetched"] = f"{path.stat().st_mtime_ns}"
    return found


def differences(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """Lines on what is there and should not be, is not there, or is another."""
    more = [f"{name}: found, expected nothing there" for name in sorted(found.keys() - expected.keys())]
    less = [f"{name}: found nothing, expected a file" for name in sorted(expected.keys() - found.keys())]
    both = sorted(found.keys() & expected.keys())
    return more + less + [f"{n}: found {found[n]}, expected {expected[n]}" for n in both if found[n] != expected[n]]


def repeated(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Lines on finished work that is gone or was done again."""
    return [
        f"{name}: {'gone' if name not in after else 'done again'}, expected what was finished before"
        for name, mark in before.items()
        if after.get(name) != mark
    ]


def _is_shard(folder: Path) -> bool:
    return folder.name.replace("-", "", 1).isdigit()


def _images(shards: Path, merging: bool) -> dict[str, list[str]]:
    """Image -> what is stored of it, once for each shard that has it; if `merging`, a shard FIRST-LAST hides those that
    it was made from, of which some may be gone in part."""
    found: dict[str, list[str]] = {}
    folders = list(filter(_is_shard, sorted(shards.iterdir())))
    merged = [tuple(map(int, folder.name.split("-"))) for folder in folders if "-" in folder.name] if merging else []
    for folder in folders:
        if folder.name.isdigit() and any(first <= int(folder.name) <= last for first, last in merged):
            continue
        listed = json.loads((folder / "shard.json").read_text())
        arrays = {
            name: np.load(folder / f"{name}.npy") for name in (*LOCAL, *WHOLE) if (folder / f"{name}.npy").exists()
        }
        offsets = np.load(folder / "offsets.npy")
        for row, entry in enumerate(listed["images"]):
            digest = hashlib.sha256(f"{entry['sha256']} {entry['box']} {entry['error']}".encode())
            for name, array in arrays.items():
                rows = array[offsets[row] : offsets[row + 1]] if name in LOCAL else array[row]
                digest.update(f"{name} {rows.dtype} {rows.shape}".encode() + rows.tobytes())
            found.setdefault(entry["key"], []).append(digest.hexdigest()[:16])
    return found


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
        return record if isinstance(record, dict) and {"method", "query", "scores"} <= record.keys() else None
    except ValueError:
        return None


def _held(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _journal(path: Path) -> str:
    records = [_record(line) for line in path.read_bytes().splitlines(keepends=True)]
    plain = sorted(json.dumps([r["method"], r["query"], r["scores"], r["details"]]) for r in records if r is not None)
    return f"{len(records)} lines {_digest(''.join(plain).encode())}"


def _table(path: Path) -> str:
    import pyarrow.parquet as pq

    table = pq.read_table(path, use_threads=False).to_pandas()
    kept = table[[name for name in table.columns if not TIMES.search(name)]]
    text = kept.sort_values(list(kept.columns)).to_csv(index=False)
    return f"{len(kept)} rows {_digest(text.encode())}"


def _printed_table(path: Path) -> str:
    import pandas as pd

    table = pd.read_csv(path, dtype=str)
    return f"{len(table)} rows {_digest(table[[n for n in table.columns if not TIMES.search(n)]].to_csv().encode())}"


def _run(path: Path) -> str:
    content = json.loads(path.read_text())
    return f"{content['status']} {_digest(json.dumps({n: content.get(n) for n in FACTS}, sort_keys=True).encode())}"


def _downloads(path: Path) -> str:
    content = json.loads(path.read_text())
    plain = {name: {k: v for k, v in entry.items() if k != "url"} for name, entry in content.items()}
    return _digest(json.dumps(plain, sort_keys=True).encode())


def _weights(path: Path) -> str:
    """The order of the names in its header is another every time."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        digest = hashlib.sha256(json.dumps(file.metadata(), sort_keys=True).encode())
        for name in sorted(file.keys()):
            digest.update(name.encode() + file.get_tensor(name).tobytes())
    return digest.hexdigest()[:16]


def _lines(path: Path) -> str:
    return _digest(b"".join(sorted(path.read_bytes().splitlines(keepends=True))))


def _bytes(path: Path) -> str:
    return _digest(path.read_bytes())


def _there(path: Path) -> str:
    return "a file"


def _named(*names: str) -> Callable[[Path], bool]:
    return lambda path: path.name in names


def _ends(*suffixes: str) -> Callable[[Path], bool]:
    return lambda path: path.suffix in suffixes


KINDS: Iterable[tuple[Callable[[Path], bool], Callable[[Path], str]]] = (
    (_named("journal.jsonl"), _journal),
    (_named("run.json"), _run),
    (_named("downloads.json"), _downloads),
    (_named("manifest.jsonl"), _lines),
    (_named("index.sqlite", "sweep.md"), _there),
    (_named("sweep.csv"), _printed_table),
    (_ends(".parquet"), _table),
    (_ends(".safetensors"), _weights),
    (_ends(".png"), _there),
    (lambda path: True, _bytes),
)
