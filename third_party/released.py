"""Released files of weights: from an installed package, else fetched once from their authors, always of one sha256."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch

from bench.errors import UserError
from bench.files import file_hash, whole

OFFLINE = "HF_HUB_OFFLINE"  # as the hub's own tools read it: where it is 1, nothing is fetched
PATIENCE = httpx.Timeout(30, connect=10)  # seconds


@dataclass(frozen=True)
class Released:
    """One file of weights as its authors released it.

    `package` is the module that may hold it, at `place` below its folder; `install` is the command that brings the
    package; `urls` are addresses of the same bytes.
    """

    what: str
    sha256: str
    urls: tuple[str, ...]
    package: str = ""
    place: str = ""
    install: str = ""

    def __post_init__(self) -> None:
        if len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef"):
            raise ValueError(f"{self.what}: sha256 {self.sha256!r}")
        if not self.urls or bool(self.package) != bool(self.place):
            raise ValueError(f"{self.what}: expected an address, and a package together with a place in it")

    def here(self) -> Path | None:
        """Where the file is on this machine, or None. UserError for one of other bytes."""
        for path in (self._in_package(), self._fetched()):
            if path is not None and path.is_file():
                if (found := file_hash(path)) != self.sha256:
                    again = self.install if path == self._in_package() else "remove the file; it is then fetched again"
                    raise UserError(
                        f"{path}: sha256 is {found[:12]}…, expected {self.sha256[:12]}… ({self.what})", hint=again
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
        return Path(torch.hub.get_dir()) / "checkpoints" / f"{self.sha256[:12]}-{name}"

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
        ways = [self.install] if self.install else []
        ways += [f"give a file with {given}"] if given else []
        raise UserError(
            f"{self.what}: its weights are not here and cannot be fetched\n" + "\n".join(f"  {why}" for why in reasons),
            hint="; or ".join([*ways, f"put the file of sha256 {self.sha256[:12]}… at {path}"]),
        )

    def _receive(self, url: str, path: Path) -> None:
        """ValueError for other bytes than expected; `path` then is not there."""
        digest = hashlib.sha256()
        with whole(path) as part, httpx.stream("GET", url, timeout=PATIENCE, follow_redirects=True) as answer:
            answer.raise_for_status()
            with part.open("wb") as out:
                for piece in answer.iter_bytes():
                    out.write(piece)
                    digest.update(piece)
            if digest.hexdigest() != self.sha256:
                raise ValueError(f"sha256 is {digest.hexdigest()[:12]}…, expected {self.sha256[:12]}…")
