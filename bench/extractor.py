"""What an author of an extractor writes: one class with `Options` and `__call__`, an image in, its features out."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, get_args

import numpy as np
import torch

from bench.options import NoOptions, check_options
from bench.reranker import Card

if TYPE_CHECKING:
    from third_party.released import Released

__all__ = ["About", "Card", "LocalFeatures", "extractor", "pixels_of", "weights_of"]
Gives = Literal["local", "global", "both"]
KNOWN_GIVES = get_args(Gives)


@dataclass(frozen=True)
class LocalFeatures:
    """Local features of one image, sorted by descending `scores`; keypoints in pixels of the image given."""

    descriptors: np.ndarray  # (n, d) float32, unit norm
    keypoints: np.ndarray  # (n, 2) float32 x, y
    scales: np.ndarray  # (n,) pixels; 1 where the detector has a single scale
    orientations: np.ndarray  # (n,) radians; 0 where the detector has none
    scores: np.ndarray  # (n,)

    @staticmethod
    def none(dim: int) -> LocalFeatures:
        """Of an image in which nothing was found: n is 0, `dim` the values of a descriptor."""
        empty = np.zeros(0, dtype=np.float32)
        return LocalFeatures(np.zeros((0, dim), np.float32), np.zeros((0, 2), np.float32), empty, empty, empty)


def pixels_of(image: np.ndarray, device: torch.device) -> torch.Tensor:
    """(1, 3, h, w) float32 in [0, 1] on `device`, of an (h, w, 3) uint8 image."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].to(device, torch.float32) / 255


@dataclass(frozen=True)
class ExtractorSpec:
    """What an extractor declares about itself."""

    name: str
    gives: Gives
    version: int  # of its code; features of another version are extracted again
    card: Card
    summary: str  # first line of the class's docstring
    local_dim: int | None = None  # values of a descriptor, where they do not depend on its options
    global_dim: int | None = None
    packages: tuple[str, ...] = ()  # modules it needs
    takes: str = ""  # the files that its first option must name, as the command line shows them
    fetches: str = ""  # the files that its option `weights` may name, and that are fetched where it names none
    full_size: bool = False  # it is given the image at its full size and makes it smaller itself
    unit_norm: bool = True  # its local descriptors have unit norm
    shared: bool = False  # one object of it may be called by several threads at once
    runs: str | None = None  # foreign code that it runs, which `--trust-code` must repeat

    def skip(self) -> str | None:
        """Why it cannot run here whatever its options, or None."""
        missing = [package for package in self.packages if importlib.util.find_spec(package) is None]
        return f"needs the package {missing[0]}" if missing else None


@dataclass(frozen=True)
class About:
    """What an extractor is with certain options, where its class alone cannot say. A field left out is as declared."""

    label: str = ""  # of the model, as tables have it behind the extractor's name
    files: tuple[Path, ...] = ()  # whose contents decide the features: weights and configurations
    named: tuple[str, ...] = ()  # options that name these files, whose contents stand for them
    local_dim: int | None = None
    global_dim: int | None = None
    card: Card | None = None
    full_size: bool = False
    runs: str | None = None

    def applied(self, spec: ExtractorSpec) -> ExtractorSpec:
        """What the class declares, with what is known now."""
        return replace(
            spec,
            card=self.card or spec.card,
            local_dim=spec.local_dim if self.local_dim is None else self.local_dim,
            global_dim=spec.global_dim if self.global_dim is None else self.global_dim,
            full_size=spec.full_size or self.full_size,
            runs=self.runs,
        )


class Extractor(Protocol):
    """A class that `extractor` declares.

    `__call__` takes (h, w, 3) uint8 RGB and gives, as declared, `LocalFeatures`, a global descriptor (D,) float32 of
    unit norm, or both in that order. A field `descriptors` of its `Options` is what `--keep-descriptors` says; what is
    more than that is cut. `weights(options)`, where it is defined, names the files that decide its features, of which
    some may have to be fetched (`weights_of` fetches them, `waits` says what is not here yet);
    `about(options)`, where it is defined, tells more than the class declares, as `About`, and runs nothing.
    An object is called by one thread at a time, and several threads have an object each. Of a class declared `shared`
    there is one object for all of them: its weights are in memory once, and its calls change nothing in it.
    `batch(images)`, where it is defined, takes several images of one size, and gives what `__call__` gives of each, to
    1e-4.
    """

    spec: ExtractorSpec
    Options: type

    def __init__(self, options: Any, device: torch.device) -> None: ...

    def __call__(self, image: np.ndarray) -> LocalFeatures | np.ndarray | tuple[LocalFeatures, np.ndarray]: ...


E = TypeVar("E", bound=type)


def extractor(
    name: str,
    *,
    gives: Gives,
    version: int,
    card: Card,
    local_dim: int | None = None,
    global_dim: int | None = None,
    packages: Sequence[str] = (),
    takes: str = "",
    fetches: str = "",
    full_size: bool = False,
    unit_norm: bool = True,
    shared: bool = False,
) -> Callable[[E], E]:
    """Declare a class as the extractor `name`. Refuses what the harness could not run."""

    def declare(cls: E) -> E:
        where = f"{cls.__module__}.{cls.__qualname__}"
        if gives not in KNOWN_GIVES:
            raise ValueError(f"{where}: gives {gives!r}, expected one of {', '.join(KNOWN_GIVES)}")
        if any(character in name for character in "+:,@ ") or not name:
            raise ValueError(f"{where}: {name!r} is no name: names stand on the command line beside +, : and @")
        if not hasattr(cls, "Options"):
            cls.Options = NoOptions  # type: ignore[attr-defined]
        check_options(cls.Options, where)  # type: ignore[attr-defined]
        summary = (inspect.getdoc(cls) or name).splitlines()[0].rstrip(".")
        dims = (0 if gives == "global" else local_dim, 0 if gives == "local" else global_dim)
        spec = ExtractorSpec(
            name, gives, version, card, summary, *dims, tuple(packages), takes, fetches, full_size, unit_norm, shared
        )
        cls.spec = spec  # type: ignore[attr-defined]
        return cls

    return declare


def waits(cls: Any, options: Any) -> str | None:
    """What brings the first of its files that is not here yet; None where all are."""
    released = [file for file in _weights(cls, options) if not isinstance(file, Path)]
    if not released:
        return None
    from third_party.released import waits_for

    return waits_for(released)


def weights_of(cls: Any, options: Any) -> tuple[Path, ...]:
    """The files that decide its features, fetched where they are not here.

    The class says which, or else its options name them. UserError, which says every way to a file, where no address
    gives it.
    """
    given = f"--features {cls.spec.name}:weights={cls.spec.fetches}"
    return tuple(file if isinstance(file, Path) else file.file(given) for file in _weights(cls, options))


def _weights(cls: Any, options: Any) -> tuple[Path | Released, ...]:
    if hasattr(cls, "weights"):
        return tuple(cls.weights(options))
    values = [getattr(options, name) for name in getattr(options, "__dataclass_fields__", ())]
    flat = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
    return tuple(part for part in flat if isinstance(part, Path))
