"""What a method is: its own code and the shared code that it reads."""

from __future__ import annotations

import hashlib
from pathlib import Path

import methods
from bench import registry
from bench.provenance import source_hash

HOME = Path(methods.__file__).parent


def test_the_shared_modules_that_a_method_imports_are_part_of_it() -> None:
    shared = [HOME / "_matching.py", HOME / "_parallel.py", *sorted((HOME / "_verification").glob("*.py"))]
    text = b"".join(path.read_bytes() for path in (HOME / "ransac.py", *shared))
    assert source_hash(registry.get("ransac")) == hashlib.sha256(text).hexdigest()


def test_a_method_that_imports_none_is_its_files_alone() -> None:
    files = sorted((HOME / "rrt").glob("*.py"))
    text = b"".join(path.read_bytes() for path in files)
    assert len(files) == 3 and source_hash(registry.get("rrt")) == hashlib.sha256(text).hexdigest()
