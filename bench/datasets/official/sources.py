"""What an official data set is made of: files with their mirrors, sizes and checksums, and how archives are unpacked.

A checksum that is not known is pinned on first use.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unpack:
    """How an archive becomes files below `target`: `flat`, without its folders; without `strip` before each name."""

    target: str
    flat: bool = False
    strip: str = ""
    leave_out: frozenset[str] = frozenset()  # names of files that are not kept
    most_files: int = 200_000
    most_bytes: int = 8 * 2**30


@dataclass(frozen=True)
class File:
    """One file to fetch to `path` below the data root, from the first of `urls` that has it."""

    path: str
    urls: tuple[str, ...]
    size: int | None = None  # bytes
    digest: str | None = None  # sha256:… or md5:…
    digest_url: str | None = None  # of a file with the checksum, or with those of many files and their names
    unpack: Unpack | None = None

    def __post_init__(self) -> None:
        if not self.urls or any(not url.startswith(("http://", "https://")) for url in self.urls):
            raise ValueError(f"{self.path}: expected http or https addresses, found {self.urls}")
        if self.digest is not None and self.digest.partition(":")[0] not in ("sha256", "md5"):
            raise ValueError(f"{self.path}: digest {self.digest!r}")


@dataclass(frozen=True)
class Source:
    """A data set's files, all in one folder below the data root."""

    folder: str
    files: tuple[File, ...]
    image_set: str  # which version of the images these files are
    licence: str
