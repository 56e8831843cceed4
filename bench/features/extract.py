"""From an image to what is stored of it: one extractor at a time, checked as it goes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor as Pool
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import groupby, islice
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch

from bench.errors import UserError, unknown
from bench.executor import Executor, Local
from bench.extractor import About, ExtractorSpec, LocalFeatures, weights_of
from bench.features.fill import ExtractReport, Stamped, fill
from bench.features.items import Item, stamp
from bench.features.precision import PRECISIONS
from bench.features.shards import Entry
from bench.files import file_hash
from bench.images import LARGEST, UnreadableImage, content_hash, read_bytes, read_picture, shrink
from bench.threads import in_turn, threads

FORMAT = 2  # of what is stored of an image; features of another are extracted again
UNIT = 1e-2  # a descriptor whose norm is this near to 1 has unit norm: some extractors work in half precision
HELD = 2**28  # bytes of images at most that wait for others of their size
WINDOW = 64  # images among which those of one size are looked for
AHEAD = 2  # images a thread that are begun before it is their turn to be stored
PROBE = 128  # pixels of the sides of the picture that tells how long descriptors are
T = TypeVar("T")


@dataclass(frozen=True)
class ExtractOptions:
    """How features are extracted; part of the feature set's identity."""

    max_side: int = 640  # longer side in pixels that an image is shrunk to (scaled with the crop, as DELG does)
    descriptors: int = 1000  # best-scored local descriptors stored per image
    precision: str = "float16"  # how their values are stored: a key of PRECISIONS
    max_megapixels: int = LARGEST  # of an image as its file declares it: a larger one is refused before it is decoded
    batch: int = 1  # images of one size at once, where the extractor takes several; no part of the identity

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise unknown("precision of descriptors", self.precision, PRECISIONS)
        if self.max_side < 32 or self.descriptors < 1:
            raise UserError(
                f"max_side {self.max_side} and descriptors {self.descriptors}: "
                "expected at least 32 pixels and 1 descriptor"
            )
        if self.batch < 1:
            raise UserError(f"batch {self.batch}: expected at least 1 image at once")
        if self.max_megapixels < 1:
            raise UserError(f"max_megapixels {self.max_megapixels}: expected at least 1")


@dataclass(frozen=True)
class Part:
    """An extractor with its options: what makes the local or the global descriptors of a feature set, or both."""

    cls: Any  # the declared class
    options: Any

    @cached_property
    def about(self) -> About:
        """What its options tell of it. UserError for options that name nothing."""
        here = hasattr(self.cls, "about") and self.cls.spec.skip() is None
        return self.cls.about(self.options) if here else About()

    @cached_property
    def spec(self) -> ExtractorSpec:
        return self.about.applied(self.cls.spec)

    @property
    def lacks_weights(self) -> bool:
        """Whether its options name nothing that it could run with."""
        named = self.given or self.about.label or self.cls.spec.skip()
        return bool(self.cls.spec.takes) and not named

    @property
    def given(self) -> tuple[Path, ...]:
        """The files that its options name and `about` does not, in the order of the options."""
        fields = (name for name in self.options.__dataclass_fields__ if name not in self.about.named)
        values = (getattr(self.options, name) for name in fields)
        flat = (part for value in values for part in (value if isinstance(value, tuple) else (value,)))
        return tuple(part for part in flat if isinstance(part, Path))

    @cached_property
    def key(self) -> str:
        """The name, with the contents of the files given and other options: equal keys mean equal features."""
        plain = {k: v for k, v in asdict(self.options).items() if k not in ("descriptors", *self.about.named)}
        changed = {k: v for k, v in plain.items() if v != getattr(type(self.options)(), k) and not _names_files(v)}
        digests = [self.about.label] if self.about.label else []
        digests += [_content(path)[:8] for path in self.given]
        if self.about.files:
            contents = "".join(map(_content, self.about.files))
            digests.append(hashlib.sha256(contents.encode()).hexdigest()[:8])
        if changed:
            digests.append(hashlib.sha256(json.dumps(changed, sort_keys=True, default=str).encode()).hexdigest()[:8])
        return "-".join([self.spec.name, *digests])

    def skip(self) -> str | None:
        """Why it cannot be extracted here, or None."""
        if self.lacks_weights:
            return f"needs weights: --features {self.spec.name}:{self.spec.takes}"
        return self.spec.skip()

    def identity(self, options: ExtractOptions) -> dict[str, object]:
        """What decides the features of an image, besides the image; no place of a file."""
        local = self.spec.gives != "global"
        inside = ("descriptors", *self.about.named)
        weights = self.about.files or weights_of(self.cls, self.options)
        plain = {k: v for k, v in asdict(self.options).items() if k not in inside and not _names_files(v)}
        return {
            "extractor": self.spec.name,
            "version": [FORMAT, self.spec.version],
            "options": plain,
            "weights": [_content(path) for path in weights],
            "max_side": options.max_side,
            **({"local": self.key, "descriptors": options.descriptors} if local else {}),
            **({"precision": options.precision} if local else {}),
            # what is as ever is not said, so that stores made before there was a choice stay what they are
            **({} if options.max_megapixels == LARGEST else {"max_megapixels": options.max_megapixels}),
        }


def _content(path: Path) -> str:
    """sha256 of a file; a large one is read once, as long as it is not written to."""
    stat = path.stat()
    return _content_of(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _content_of(path: Path, size: int, changed: int) -> str:
    return file_hash(path)


def _names_files(value: object) -> bool:
    values = value if isinstance(value, tuple) else (value,)
    return any(isinstance(part, Path) for part in values)


class PartExtractor:
    """One extractor ready to run on a device: image in, arrays of one image out."""

    def __init__(self, part: Part, options: ExtractOptions = ExtractOptions(), device: torch.device | str = "cpu"):
        if reason := part.skip():
            raise UserError(f"feature set {part.spec.name!r} cannot run here: {reason}", hint="install what it needs")
        self.part, self.options = part, options
        own = part.options
        if "descriptors" in own.__dataclass_fields__:
            own = replace(own, descriptors=options.descriptors)
        self._extractor: Any = part.cls(own, torch.device(device))
        self.device = torch.device(device)
        self.shared = part.spec.shared
        self.takes_several = hasattr(self._extractor, "batch")
        self.batch = options.batch if self.takes_several else 1  # images of one size at once

    def __call__(self, image: np.ndarray, ratio: float = 1.0) -> dict[str, np.ndarray]:
        """Arrays named as the fields of `bench.features.Features`; keypoints and scales in pixels of `image`.

        `ratio` scales the size limit: the crop's longer side over the whole image's. UserError for an extractor that
        breaks its promise.
        """
        return self.of_shrunk(self.shrunk(image, ratio), image.shape)

    def shrunk(self, image: np.ndarray, ratio: float = 1.0) -> np.ndarray:
        """The image as the extractor is given it."""
        return image if self.part.spec.full_size else shrink(image, max(32.0, self.options.max_side * ratio))

    def of_shrunk(self, image: np.ndarray, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        """As `__call__`, of an image that is `shrunk` already; `shape` is the one that it had before."""
        return self._arrays(self._extractor(image), shape, image.shape)

    def together(self, images: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]]) -> list[dict[str, np.ndarray]]:
        """As `__call__`, of images of one size that are `shrunk` already; `shapes` are those that they had before."""
        found = list(self._extractor.batch(images))
        if len(found) != len(images):
            raise self._fail(f"gave {len(found)} results for {len(images)} images at once")
        given = zip(found, shapes, images, strict=True)
        return [self._arrays(one, shape, image.shape) for one, shape, image in given]

    def _arrays(self, found: Any, whole: tuple[int, ...], small: tuple[int, ...]) -> dict[str, np.ndarray]:
        """What is stored of what the extractor gave, of an image of the shape `whole` made `small`."""
        height, width = whole[:2]
        gives = self.part.spec.gives
        if gives == "both" and not (isinstance(found, tuple) and len(found) == 2):
            raise self._fail(f"gave {type(found).__name__}, expected LocalFeatures and a global descriptor")
        arrays: dict[str, np.ndarray] = {"image_size": np.array([width, height], dtype=np.int32)}
        if gives != "local":
            arrays["global_descriptor"] = self._checked_global(found[1] if gives == "both" else found)
        if gives != "global":
            local = self._checked_local(found[0] if gives == "both" else found)
            expected = self.part.spec.local_dim
            if expected is not None and local.descriptors.shape[1] != expected:
                raise self._fail(f"gave {local.descriptors.shape[1]}-d local descriptors, and declares {expected}-d")
            zoom = np.array([width / small[1], height / small[0]], dtype=np.float32)
            arrays |= {
                "descriptors": local.descriptors,
                "keypoints": np.clip(local.keypoints * zoom, 0, [width - 1, height - 1]).astype(np.float32),
                "scales": local.scales * float(zoom.mean()),
                "orientations": local.orientations,
                "scores": local.scores,
            }
        return arrays

    @cached_property
    def dims(self) -> tuple[int, int]:
        """Values of a local and of a global descriptor, 0 where it gives none; where undeclared, of a noisy picture."""
        if self.part.spec.local_dim is not None and self.part.spec.global_dim is not None:
            return self.part.spec.local_dim, self.part.spec.global_dim
        arrays = self(np.random.default_rng(0).integers(0, 256, (PROBE, PROBE, 3), np.uint8))
        sizes = [arrays[name].shape[-1] if name in arrays else 0 for name in ("descriptors", "global_descriptor")]
        return sizes[0], sizes[1]

    def empty(self) -> dict[str, np.ndarray]:
        """The arrays of an image that cannot be read."""
        local, whole = self.dims
        arrays: dict[str, np.ndarray] = {"image_size": np.ones(2)}
        if whole:
            arrays["global_descriptor"] = np.zeros(whole)
        if local:
            arrays |= {"descriptors": np.zeros((0, local)), "keypoints": np.zeros((0, 2))}
            arrays |= {name: np.zeros(0) for name in ("scales", "orientations", "scores")}
        return arrays

    def _fail(self, what: str) -> UserError:
        name = self.part.spec.name
        return UserError(f"the extractor {name!r} {what}", hint="bench.conformance.check_extractor finds such mistakes")

    def _checked_global(self, found: Any) -> np.ndarray:
        if not isinstance(found, np.ndarray) or found.ndim != 1 or not len(found) or found.dtype.kind != "f":
            shape = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
            raise self._fail(f"gave {shape}, expected a global descriptor (D,) of floats")
        if not np.isfinite(found).all():
            raise self._fail("gave non-finite global_descriptor")
        if self.part.spec.global_dim not in (None, len(found)):
            raise self._fail(f"gave a {len(found)}-d global descriptor, and declares {self.part.spec.global_dim}-d")
        norm = float(np.linalg.norm(found.astype(np.float64)))
        if abs(norm - 1) > UNIT:
            raise self._fail(f"gave a global descriptor of norm {norm:.3g}, expected 1")
        return found

    def _checked_local(self, found: Any) -> LocalFeatures:
        if not isinstance(found, LocalFeatures):
            raise self._fail(f"gave {type(found).__name__}, expected LocalFeatures")
        n = len(found.scores) if found.scores.ndim == 1 else -1
        shapes = {"keypoints": (n, 2), "scales": (n,), "orientations": (n,), "scores": (n,)}
        if found.descriptors.ndim != 2 or len(found.descriptors) != n:
            raise self._fail(f"gave descriptors {found.descriptors.shape}, expected ({max(n, 0)}, d)")
        for name, shape in shapes.items():
            if getattr(found, name).shape != shape:
                raise self._fail(f"gave {name} {getattr(found, name).shape}, expected {shape}")
        for name in ("descriptors", *shapes):
            if not np.isfinite(getattr(found, name)).all():
                raise self._fail(f"gave non-finite {name}")
        if n > 1 and (np.diff(found.scores) > 0).any():
            raise self._fail("gave local descriptors that are not sorted by descending score")
        if self.part.spec.unit_norm and n:
            norms = np.linalg.norm(found.descriptors.astype(np.float64), axis=1)
            if (np.abs(norms - 1) > UNIT).any() and (norms > 0).all():
                worst = norms[np.abs(norms - 1).argmax()]
                raise self._fail(f"gave a local descriptor of norm {worst:.3g}, expected 1")
        most = self.options.descriptors
        return found if n <= most else LocalFeatures(**{name: value[:most] for name, value in vars(found).items()})


def extract(
    wanted: Iterable[Item],
    folder: Path,
    make_extractor: Callable[[], PartExtractor],
    identity: Mapping[str, object],
    progress: Callable[[int, int], None] | None = None,
    executor: Executor = Local(),
) -> ExtractReport:
    """Bring the store in `folder` up to date with the images `wanted`; finished shards are kept whatever happens.

    An image whose contents this store, or one beside it, has features of is not read again, whatever its name.
    Raises UserError for query images that cannot be read, all of them named, and for a full disk.
    """
    return fill(wanted, folder, partial(_SideBySide, make_extractor), identity, progress, executor=executor, reuse=True)


@dataclass(frozen=True, eq=False)
class _Picture:
    """An image that is read."""

    item: Item
    image: np.ndarray  # the crop, maybe decoded at a reduced size
    size: tuple[int, int]  # width and height that the crop has in the file
    ratio: float  # as `PartExtractor` takes it
    sha256: str
    ms: float  # that reading it took


@dataclass(frozen=True)
class _Unreadable:
    """An image that cannot be read."""

    sha256: str  # empty where there is no file
    why: str

    def entry(self, extractor: PartExtractor) -> Entry:
        return Entry(self.sha256, extractor.empty(), self.why)


@dataclass(frozen=True, eq=False)
class _Shrunk:
    """An image as an extractor is given it."""

    item: Item
    image: np.ndarray
    shape: tuple[int, ...]  # before it was shrunk
    size: tuple[int, int]  # as of `_Picture`
    sha256: str


def _extract_one(item: Item, extractor: PartExtractor) -> Entry:
    """The features of one image; an unreadable one has an error and empty arrays."""
    picture = _picture(item, extractor.options)
    if isinstance(picture, _Unreadable):
        return picture.entry(extractor)
    began = time.perf_counter()
    with _naming(item):
        found = extractor(picture.image, picture.ratio)
    times = (picture.ms, 1000 * (time.perf_counter() - began))
    return Entry(picture.sha256, _in_pixels_of_the_file(found, picture.image.shape, picture.size), None, times)


def _picture(item: Item, options: ExtractOptions) -> _Picture | _Unreadable:
    """The image that an item is made from."""
    (path,) = item.files
    sha256 = ""
    try:
        began = time.perf_counter()
        data = read_bytes(path)
        sha256 = content_hash(data)
        picture = read_picture(data, path, options.max_megapixels, options.max_side)
        image, size, ratio = picture.crop(item.box, path)
        return _Picture(item, image, size, ratio, sha256, 1000 * (time.perf_counter() - began))
    except UnreadableImage as problem:
        return _Unreadable(sha256, problem.message)
    except UserError as problem:
        raise UserError(f"{path}: {problem.message}", hint=problem.hint) from problem


class _SideBySide:
    """Features of several images at a time, as many as torch has threads.

    On a CPU one thread reads an image and computes all of its features, or those of a batch. So they depend neither on
    the number of threads nor on other programs. Another device computes for one image or batch after the other, while
    the threads read the images that follow. An image that goes alone has a time: nothing of this process is beside it.
    """

    def __init__(self, make: Callable[[], PartExtractor]):
        self._make, self._making = make, Lock()
        self._first = make()
        self._idle = [self._first]

    def stream(self, items: Iterable[Item]) -> Generator[Stamped, None, None]:
        """As `bench.features.fill.Streams` has it."""
        count = torch.get_num_threads()
        if count == 1 and self._first.batch == 1 and not self._elsewhere:
            yield from ((stamp(item.files), _extract_one(item, self._first)) for item in items)
            return
        with threads(count) as pool:
            for alone, some in groupby(items, lambda item: item.alone):
                if alone:
                    for item in some:
                        yield stamp(item.files), self._computed(pool, partial(self._one, item)).result()
                elif self._first.batch > 1 or self._elsewhere:
                    yield from self._grouped(pool, in_turn(pool, self._shrunk, some, AHEAD * count + self._first.batch))
                else:
                    yield from in_turn(pool, self._untimed, some, AHEAD * count)

    @property
    def _elsewhere(self) -> bool:
        """Whether the extractor computes on a device, where threads would wait for one another."""
        return self._first.device.type != "cpu"

    def _computed(self, pool: Pool, work: Callable[[], T]) -> Future[T]:
        """What an extractor does: in a thread where it computes with the thread's core, else at once."""
        if not self._elsewhere:
            return pool.submit(work)
        done: Future[T] = Future()
        done.set_result(work())
        return done

    @contextmanager
    def _lent(self) -> Iterator[PartExtractor]:
        """An extractor that no other thread has meanwhile, unless it may be shared."""
        if self._first.shared:
            yield self._first
            return
        try:
            extractor = self._idle.pop()
        except IndexError:
            with self._making:  # what loads weights need not expect several threads
                extractor = self._make()
        try:
            yield extractor
        finally:
            self._idle.append(extractor)

    def _one(self, item: Item) -> Entry:
        with self._lent() as extractor:
            return _extract_one(item, extractor)

    def _untimed(self, item: Item) -> Stamped:
        before = stamp(item.files)
        return before, replace(self._one(item), times=None)  # disturbed by those beside it

    def _shrunk(self, item: Item) -> tuple[tuple[int, ...], _Shrunk | _Unreadable]:
        before, found = stamp(item.files), _picture(item, self._first.options)
        if isinstance(found, _Unreadable):
            return before, found
        small = self._first.shrunk(found.image, found.ratio)
        return before, _Shrunk(item, small, found.image.shape, found.size, found.sha256)

    def _grouped(
        self, pool: Pool, images: Iterator[tuple[tuple[int, ...], _Shrunk | _Unreadable]]
    ) -> Iterator[Stamped]:
        """As many images of one size at once as the extractor takes."""
        while window := list(self._begun(pool, islice(images, WINDOW))):
            for before, entries, place in window:
                yield before, entries.result()[place]

    def _begun(
        self, pool: Pool, images: Iterable[tuple[tuple[int, ...], _Shrunk | _Unreadable]]
    ) -> Iterator[tuple[tuple[int, ...], Future[list[Entry]], int]]:
        """Of each image, what it is stored with: its stamp, the entries of its group, and which of them is its own."""
        stamps: list[tuple[int, ...]] = []
        places: dict[int, tuple[Future[list[Entry]], int]] = {}
        waiting: dict[tuple[int, ...], list[tuple[int, _Shrunk]]] = {}

        def begin(group: Sequence[tuple[int, _Shrunk | _Unreadable]]) -> None:
            entries = self._computed(pool, partial(self._at_once, [image for _, image in group]))
            places.update({number: (entries, place) for place, (number, _) in enumerate(group)})

        for number, (before, image) in enumerate(images):
            stamps.append(before)
            if isinstance(image, _Unreadable):
                begin([(number, image)])
                continue
            alike = waiting.setdefault(image.image.shape, [])
            alike.append((number, image))
            full = len(alike) == self._first.batch
            if full or sum(one.image.nbytes for group in waiting.values() for _, one in group) > HELD:
                most = image.image.shape if full else max(waiting, key=lambda shape: len(waiting[shape]))
                begin(waiting.pop(most))
        for group in waiting.values():
            begin(group)
        return ((before, *places[number]) for number, before in enumerate(stamps))

    def _at_once(self, group: Sequence[_Shrunk | _Unreadable]) -> list[Entry]:
        """The entries of images of one size, or of one that cannot be read."""
        with self._lent() as extractor:
            images = [image for image in group if isinstance(image, _Shrunk)]
            if not images:
                return [image.entry(extractor) for image in group if isinstance(image, _Unreadable)]
            with _naming(images[0].item):
                if len(images) == 1:
                    found = [extractor.of_shrunk(images[0].image, images[0].shape)]
                else:
                    found = extractor.together([one.image for one in images], [one.shape for one in images])
            return [
                Entry(one.sha256, _in_pixels_of_the_file(arrays, one.shape, one.size))
                for one, arrays in zip(images, found, strict=True)
            ]


@contextmanager
def _naming(item: Item) -> Iterator[None]:
    """A UserError inside names the image."""
    try:
        yield
    except UserError as problem:
        raise UserError(f"{item.files[0]}: {problem.message}", hint=problem.hint) from problem


def _in_pixels_of_the_file(
    arrays: dict[str, np.ndarray], shape: tuple[int, ...], size: tuple[int, int]
) -> dict[str, np.ndarray]:
    """What was found on an image that was decoded at a reduced size, as if it had been of `size` (width, height)."""
    height, width = shape[:2]
    if (width, height) == size:
        return arrays
    zoom = np.array([size[0] / width, size[1] / height], dtype=np.float32)
    moved: dict[str, np.ndarray] = {"image_size": np.array(size, dtype=np.int32)}
    if "keypoints" in arrays:
        moved["keypoints"] = (arrays["keypoints"] * zoom).astype(np.float32)
        moved["scales"] = arrays["scales"] * float(zoom.mean())
    return {**arrays, **moved}
