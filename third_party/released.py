"""Released files of weights: from an installed package, else fetched once from their authors, always the same bytes."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch

from bench.errors import UserError
from bench.files import file_hash, whole, write_whole

OFFLINE = "HF_HUB_OFFLINE"  # as the hub's own tools read it: where it is 1, nothing is fetched
PATIENCE = httpx.Timeout(30, connect=10)  # seconds


@dataclass(frozen=True)
class Released:
    """One file of weights as its authors released it.

    `package` is the module that may hold it, at `place` below its folder; `install` is the command that brings the
    package; `urls` are addresses of the same bytes. Where `sha256` is not known (None), the first fetch decides: the
    sum of what came is kept beside the file, and other bytes are refused from then on.
    """

    what: str
    sha256: str | None
    urls: tuple[str, ...]
    package: str = ""
    place: str = ""
    install: str = ""

    def __post_init__(self) -> None:
        if self.sha256 is not None and (len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef")):
            raise ValueError(f"{self.what}: sha256 {self.sha256!r}")
        if not self.urls or bool(self.package) != bool(self.place):
            raise ValueError(f"{self.what}: expected an address, and a package together with a place in it")

    def here(self) -> Path | None:
        """Where the file is on this machine, or None. UserError for one of other bytes."""
        for path in (self._in_package(), self._fetched()):
            if path is not None and path.is_file():
                expected = self._expected(path)
                if expected is not None and (found := file_hash(path)) != expected:
                    again = self.install if path == self._in_package() else "remove the file; it is then fetched again"
                    raise UserError(
                        f"{path}: sha256 is {found[:12]}…, expected {expected[:12]}… ({self.what})", hint=again
                    )
                return path
        return None

    def waits(self) -> str | None:
        """What brings the file here, or None where it is."""
        if self.here() is not None:
            return None
        return f"no weights yet: {self.install}" if self.install else "no weights yet: they are fetched on first use"

    def file(self, given: str = "") -> Path:
        """The file, fetched where it is not here. `given` is the option that names a file of the user's.

        UserError, which says every way to the file, where no address gives these bytes.
        """
        return self.here() or self._fetch(given)

    def _in_package(self) -> Path | None:
        spec = importlib.util.find_spec(self.package) if self.package else None
        if spec is None or not spec.submodule_search_locations:
            return None
        return Path(next(iter(spec.submodule_search_locations))) / self.place

    def _fetched(self) -> Path:
        name = self.urls[0].rpartition("/")[2]
        mark = self.sha256 or hashlib.sha256(self.urls[0].encode()).hexdigest()
        return Path(torch.hub.get_dir()) / "checkpoints" / f"{mark[:12]}-{name}"

    def _expected(self, path: Path) -> str | None:
        """The sum that the file at `path` must have: the known one, else that of the first fetch, None before it."""
        if self.sha256 is not None or path != self._fetched():
            return self.sha256
        pin = _pin(path)
        return pin.read_text(encoding="utf-8").strip() if pin.is_file() else None

    def _fetch(self, given: str) -> Path:
        path, reasons = self._fetched(), []
        if os.environ.get(OFFLINE) == "1":
            reasons.append(f"nothing is fetched, since {OFFLINE}=1")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            for url in self.urls:
                try:
                    self._receive(url, path)
                    return path
                except (httpx.HTTPError, OSError, ValueError) as error:
                    reasons.append(f"{url}: {error or type(error).__name__}")
        expected = self._expected(path)
        ways = [self.install] if self.install else []
        ways += [f"give a file with {given}"] if given else []
        raise UserError(
            f"{self.what}: its weights are not here and cannot be fetched\n" + "\n".join(f"  {why}" for why in reasons),
            hint="; or ".join([*ways, f"put the file{f' of sha256 {expected[:12]}…' if expected else ''} at {path}"]),
        )

    def _receive(self, url: str, path: Path) -> None:
        """ValueError for other bytes than expected; `path` then is not there."""
        expected, digest = self._expected(path), hashlib.sha256()
        with whole(path) as part, httpx.stream("GET", url, timeout=PATIENCE, follow_redirects=True) as answer:
            answer.raise_for_status()
            with part.open("wb") as out:
                for piece in answer.iter_bytes():
                    out.write(piece)
                    digest.update(piece)
            if expected is None:  # the sum before the file, so that no file stands without the sum of its fetch
                write_whole(_pin(path), f"{digest.hexdigest()}\n")
            elif digest.hexdigest() != expected:
                first = "" if self.sha256 else f" of the first fetch, as {_pin(path)} has it"
                raise ValueError(f"sha256 is {digest.hexdigest()[:12]}…, expected {expected[:12]}…{first}")


def waits_for(files: Iterable[Released]) -> str | None:
    """What brings those of the files that are not here, or None where all are."""
    return next((reason for file in files if (reason := file.waits())), None)


def _pin(path: Path) -> Path:
    """Where the sum of what was fetched to `path` is kept."""
    return path.with_name(f"{path.name}.sha256")
