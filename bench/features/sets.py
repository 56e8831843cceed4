"""Feature sets: a local part and a global part, each extracted here or imported, read from their stores as one.

A set is named `LOCAL+GLOBAL`, or `LOCAL` alone, which takes the default global descriptor; one extractor or one import
may give both. `NAME:VALUE` sets the first option of an extractor, `NAME:OPTION=VALUE` any of them; another value
without a name sets the next option.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.datasets import Dataset
from bench.datasets.gallery import Gallery
from bench.doors import Door
from bench.errors import UserError, unknown
from bench.executor import Executor, Local
from bench.features import FeatureCard, Features
from bench.features.extract import ExtractOptions, Part, PartExtractor, extract
from bench.features.fill import ExtractReport
from bench.features.imported import Import
from bench.features.importing import IMPORTS, check_foreign
from bench.features.imports.delg import DELG, check_delg
from bench.features.items import items
from bench.features.store import ALL, FeatureStore
from bench.images import LARGEST
from bench.options import read_options
from bench.places import Places, slug
from bench.search import Vectors

DEFAULT_GLOBAL = "gem-lite0"
Progress = Callable[[str, int, int], None]  # what, done, of how many


def _name(value: Any) -> str | None:
    return vars(value)["spec"].name if inspect.isclass(value) and "spec" in vars(value) else None


EXTRACTORS: Door[Any] = Door("extractor", "--features", "bench.features.extractors", "rerankbench.extractors", _name)


@dataclass(frozen=True)
class Condition:
    """What a user must agree to before the features are extracted."""

    option: str  # that agrees, as it is typed
    why: str  # of what follows `its`
    when: str  # to agree


@dataclass(frozen=True)
class SetName:
    """A feature set by name: its parts, before anything of it is extracted. Either part may be missing, not both."""

    local: Part | Import | None
    global_: Part | Import | None

    @staticmethod
    def parse(text: str, where: str | None = None) -> SetName:
        """From LOCAL, LOCAL+GLOBAL or GLOBAL. UserError naming the part that is not known or does not fit.

        `where` is what a message says it is of; None: `--features TEXT`.

        >>> SetName.parse("sift").name
        'sift+gem-lite0'
        """
        where = where or f"--features {text}"
        first, *more = _split(text)
        one = _part(first, where)
        if len(more) > 1:
            raise UserError(f"{where}: {1 + len(more)} parts", hint="expected LOCAL or LOCAL+GLOBAL")
        if more:
            other = _part(more[0], where)
            if _gives(one) == "global" or _gives(other) == "local":
                wrong = first if _gives(one) == "global" else more[0]
                what = "local" if _gives(one) == "global" else "global"
                raise UserError(f"{where}: {wrong!r} gives no {what} descriptors", hint="expected LOCAL+GLOBAL")
            return SetName(one, other)
        if _gives(one) == "global":
            return SetName(None, one)
        return SetName(one, _part(DEFAULT_GLOBAL, where) if _gives(one) == "local" else one)

    def takes_default(self, text: str) -> bool:
        """Whether the name `text` of this set leaves the global descriptor to the default."""
        return self.local is not None and self.local is not self.global_ and len(_split(text)) == 1

    def reading(self, needs: frozenset[str]) -> SetName | None:
        """The parts of it that a method with those needs reads; None where it reads neither.

        >>> SetName.parse("sift").reading(frozenset({"local"})).name
        'sift'
        """
        local = self.local if needs & {"local", "keypoints"} else None
        whole = self.global_ if "global" in needs else None
        return None if local is None and whole is None else SetName(local, whole)

    @property
    def parts(self) -> tuple[Part | Import, ...]:
        """Each part once."""
        found = [part for part in (self.local, self.global_) if part is not None]
        return tuple(found[:1] if len(found) == 2 and found[0] is found[1] else found)

    @property
    def name(self) -> str:
        """As tables have it, with the contents of weights given: equal names mean features made alike."""
        return "+".join(part.key for part in self.parts)

    @property
    def imported(self) -> bool:
        """Whether no photograph is needed to have it."""
        return all(isinstance(part, Import) for part in self.parts)

    @property
    def terms(self) -> tuple[str, ...]:
        """The restricted licences of its weights, which `--accept-licence` must repeat."""
        cards = (part.spec.card for part in self.parts if isinstance(part, Part))
        return tuple(dict.fromkeys(card.noncommercial for card in cards if card.noncommercial))

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What a user must agree to: restricted licences, and foreign code that an extractor runs."""
        code = dict.fromkeys(part.spec.runs for part in self.parts if isinstance(part, Part) and part.spec.runs)
        return (
            *(
                Condition(
                    f"--accept-licence {name}", "weights may not be used commercially", "if your use is allowed by it"
                )
                for name in self.terms
            ),
            *(Condition(f"--trust-code {name}", f"extractor runs code of {name}", "if you trust it") for name in code),
        )

    @property
    def packages(self) -> tuple[str, ...]:
        """The modules that its extractors need."""
        specs = (part.spec for part in self.parts if isinstance(part, Part))
        return tuple(dict.fromkeys(package for spec in specs for package in spec.packages))

    @property
    def card(self) -> FeatureCard:
        """What is known of it before it is extracted or opened."""
        return _card(self, _declared(self.local, 0), _declared(self.global_, 1))

    def skip(self) -> str | None:
        """Why it cannot be extracted here, or None."""
        reasons = (part.skip() for part in self.parts)
        return next((reason for reason in reasons if reason), None)


def card_of(text: str) -> FeatureCard:
    """The card of the set of that name."""
    return SetName.parse(text).card


def local_of(name: str) -> tuple[str, int | None]:
    """The extractor of that name and the values of its local descriptors, to say what imported ones are."""
    spec = EXTRACTORS.get(name).spec
    if spec.gives == "global":
        raise UserError(f"--local {name}: it gives no local descriptors", hint="see `features`")
    return name, spec.local_dim


def _split(text: str) -> list[str]:
    """At each + that a known name follows: paths of weights may hold one too."""
    names = {*EXTRACTORS.names(), *IMPORTS.names()}
    parts = [""]
    for piece in text.split("+"):
        known = piece.partition(":")[0] in names or ":" not in parts[-1]
        if parts == [""]:
            parts = [piece]
        elif known:
            parts.append(piece)
        else:
            parts[-1] += f"+{piece}"
    return parts


def _part(text: str, where: str) -> Part | Import:
    name, colon, rest = text.partition(":")
    if name in IMPORTS.names():
        if colon:
            raise UserError(f"{where}: {name} is imported and takes no options", hint=f"--features {name}")
        return IMPORTS.get(name)
    if name not in EXTRACTORS.names():
        if text and Path(text).is_dir():
            raise UserError(
                f"{where}: {text} is a folder, expected the name of a feature set",
                hint="a folder of `features import --into` is for `features diff`; import without --into to run on it",
            )
        raise unknown("feature set", name, [*EXTRACTORS.names(), *IMPORTS.names()])
    cls = EXTRACTORS.get(name)
    fields = [field for field in cls.Options.__dataclass_fields__ if field != "descriptors"]
    takes = f"{name}:{cls.spec.takes}" if cls.spec.takes else name
    given: dict[str, str] = {}
    for piece in rest.split(":") if colon else ():
        key, equals, value = piece.partition("=")
        if equals and key in fields:
            given[key] = value
        elif equals and "/" not in key:
            raise unknown(f"option of {name}", key, fields)
        elif free := [field for field in fields if field not in given]:
            given[free[0]] = piece
        else:
            raise UserError(f"{where}: {name} takes no weights file", hint=f"--features {takes}")
    try:
        part = Part(cls, read_options(cls.Options, given, name, f"--features {name}:"))
    except UserError as error:
        raise UserError(error.message, hint=error.hint or f"--features {takes}") from error
    if part.lacks_weights:
        raise UserError(f"{where}: {name} needs weights", hint=f"--features {takes}")
    for path in part.given:
        if not path.exists() or path == Path():
            raise UserError(f"{where}: no such weights file: {path}", hint=f"--features {takes}")
    return part


def _gives(part: Part | Import) -> str:
    return part.gives if isinstance(part, Import) else part.spec.gives


def _declared(part: Part | Import | None, which: int) -> int | None:
    if part is None:
        return 0
    if isinstance(part, Import):
        return part.dims[which]
    return (part.spec.local_dim, part.spec.global_dim)[which]


def _card(name: SetName, local_dim: int | None, global_dim: int | None, local: str | None = None) -> FeatureCard:
    one = name.local
    kind = local or ("" if one is None else one.name if isinstance(one, Import) else one.spec.name)
    other = name.global_
    return FeatureCard(
        name.name,
        kind,
        "" if other is None else other.key,
        local_dim,
        global_dim,
        kind if one is None or isinstance(one, Import) else one.key,
        one.given if isinstance(one, Part) else (),
        isinstance(one, Import),
    )


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """The features of a data set's images, read from their stores. A part that is missing is None."""

    name: SetName
    local: FeatureStore | None
    globals_: FeatureStore | None

    @cached_property
    def card(self) -> FeatureCard:
        """What it holds, with the sizes that the stores have."""
        local = 0 if self.local is None else self.local.dims[0]
        whole = 0 if self.globals_ is None else self.globals_.dims[1]
        said = None if self.local is None else (self.local.identity or {}).get("kind")
        return _card(self.name, local, whole, said if isinstance(said, str) else None)

    @property
    def has_globals(self) -> bool:
        return self.card.global_dim != 0

    @property
    def _stores(self) -> list[FeatureStore]:
        stores = [store for store in (self.local, self.globals_) if store is not None]
        return stores[:1] if len(stores) == 2 and stores[0] is stores[1] else stores

    def read(self, key: str, needs: frozenset[str] = ALL, top: int | None = None) -> Features:
        """Features of one image in float32, with only what `needs` names and at most the best `top` local rows."""
        return self.read_all([key], needs, lambda count: count if top is None else top)[0]

    def read_all(
        self, keys: Sequence[str], needs: frozenset[str] = ALL, top: Callable[[int], int] | None = None
    ) -> tuple[Features, ...]:
        """As `FeatureStore.read_all`, from both parts."""
        first, *more = self._stores
        if not more:
            return first.read_all(keys, needs, top)
        images = first.read_all(keys, needs - {"global"}, top)
        if "global" not in needs:
            return images
        whole = torch.from_numpy(more[0].global_descriptors(keys)).unbind()
        return tuple(replace(image, global_descriptor=one) for image, one in zip(images, whole, strict=True))

    def count(self, key: str) -> int:
        """Number of local descriptors stored for the image."""
        return 0 if self.local is None else self.local.count(key)

    def counts(self, keys: Iterable[str]) -> np.ndarray:
        """(len(keys),) numbers of local descriptors."""
        return self._stores[0].counts(keys)

    def vectors(self, keys: Iterable[str]) -> Vectors:
        """The global descriptors of these images as they are stored. UserError where there are none."""
        return self._whole.vectors(keys)

    def global_descriptors(self, keys: Sequence[str]) -> np.ndarray:
        """(len(keys), D) float32; rows of zeros for images without features. UserError where there are none."""
        return self._whole.global_descriptors(keys)

    @property
    def _whole(self) -> FeatureStore:
        if self.globals_ is None:
            raise UserError(f"feature set {self.card.name!r} has no global descriptors", hint="name LOCAL+GLOBAL")
        return self.globals_

    def bytes_per_image(self, needs: frozenset[str]) -> tuple[int, int]:
        """Stored bytes of one image's global descriptor and of one local row, for what `needs` names."""
        whole = 0 if self.globals_ is None else self.globals_.bytes_per_image(needs)[0]
        return whole, 0 if self.local is None else self.local.bytes_per_image(needs)[1]

    def content(self, keys: Callable[[], Iterable[str]]) -> str:
        """sha256 over how the features of these images were made, and of what; `keys` is called for each part."""
        digests = [store.content(keys()) for store in self._stores]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def copies(self, keys: Iterable[str], among: Iterable[str]) -> dict[str, str]:
        """As `FeatureStore.copies`."""
        return self._stores[0].copies(list(keys), among)


def folder_name(dataset: str) -> str:
    """What a data set's folders begin with: its name where that can be one, else a name of its own."""
    name = slug(dataset)
    if name != dataset:  # folders: two paths may become one slug
        name += "-" + hashlib.sha256(dataset.encode()).hexdigest()[:8]
    return name


def part_folder(dataset: str, part: Part | Import, options: ExtractOptions, places: Places) -> Path:
    """Where a part of the features of a data set is kept; how images are extracted does not matter to imported ones."""
    name = folder_name(dataset)
    if isinstance(part, Import):
        return places.cache / "features" / f"{name}-{part.name}"
    how = f"-{options.max_side}px"
    if part.spec.gives != "global":
        how += f"-{options.descriptors}"
        if options.precision != "float16":
            how += f"-{options.precision}"
    if options.max_megapixels != LARGEST:
        how += f"-{options.max_megapixels}mp"
    return places.cache / "features" / f"{name}-{part.key}{how}"


class Stores:
    """The parts of a data set's features, each brought up to date when it is first asked for.

    `unreachable` says why the photographs cannot be read, where only imported parts can be had.
    """

    def __init__(
        self,
        dataset: Dataset,
        options: ExtractOptions,
        device: torch.device,
        places: Places,
        progress: Progress | None = None,
        executor: Executor = Local(),
        skip_unreadable: bool = False,
        unreachable: UserError | None = None,
    ):
        self.dataset, self.options, self.places = dataset, options, places
        self._device, self._progress, self._executor = device, progress, executor
        self._required, self._unreachable = not skip_unreadable, unreachable
        self._found: dict[str, FeatureStore | UserError] = {}
        self._reports: dict[str, ExtractReport] = {}
        self._extracted = False

    def part(self, part: Part | Import) -> FeatureStore:
        """The store of a part; imported ones are only checked to be up to date. UserError, again the next time."""
        if part.key not in self._found:
            try:
                self._found[part.key] = self._open(part)
            except UserError as error:
                self._found[part.key] = error
        found = self._found[part.key]
        if isinstance(found, UserError):
            raise found
        return found

    def of(self, name: SetName) -> FeatureSet:
        """The features of that name."""
        local = None if name.local is None else self.part(name.local)
        whole = None if name.global_ is None else self.part(name.global_)
        if isinstance(name.global_, Import) and whole is not None and whole.dims[1] == 0:
            whole = None
        return FeatureSet(name, local, whole)

    def settled(self) -> None:
        """All parts that will be read have been asked for: what the gallery remembers of its files may go."""
        if isinstance(self.dataset.gallery, Gallery):
            self.dataset.gallery.forget()

    def report(self) -> ExtractReport:
        """What happened to all parts that were asked for."""
        reports = self._reports.values()
        return ExtractReport(
            max((report.extracted for report in reports), default=0),
            {key: reason for report in reports for key, reason in report.unreadable.items()},
            tuple(dict.fromkeys(note for report in reports for note in report.notes)),
            tuple(dict.fromkeys(caveat for report in reports for caveat in report.caveats)),
        )

    def _open(self, part: Part | Import) -> FeatureStore:
        dataset, folder = self.dataset, part_folder(self.dataset.name, part, self.options, self.places)
        if isinstance(part, Import):
            report = check_delg(dataset, folder) if part is DELG else check_foreign(part.name, dataset, folder)
        elif self._unreachable is not None:
            raise self._unreachable
        else:
            progress = None if self._progress is None else partial(self._progress, f"extracting {part.spec.name}")
            report = extract(
                # files are asked for once for all parts, and anew once hours may have passed
                items(dataset, required=self._required, asked=not self._extracted),
                folder,
                partial(PartExtractor, part, self.options, self._device),
                part.identity(self.options),
                progress,
                self._executor,
            )
            self._extracted = self._extracted or report.extracted > 0
        self._reports[part.key] = report
        return FeatureStore(folder)


def features_of(
    dataset: Dataset, name: str, options: ExtractOptions, device: torch.device, places: Places
) -> tuple[FeatureSet, ExtractReport]:
    """The data set's features of that name, brought up to date."""
    stores = Stores(dataset, options, device, places)
    return stores.of(SetName.parse(name)), stores.report()


class FeatureExtractor:
    """A whole feature set ready to run on a device, for trainings: image in, arrays of one image out."""

    batch = 1  # images at once
    shared = False  # by threads

    def __init__(self, name: str, options: ExtractOptions = ExtractOptions(), device: torch.device | str = "cpu"):
        self.name, self.options, self.device = SetName.parse(name), options, torch.device(device)
        parts = [part for part in self.name.parts if isinstance(part, Part)]
        if len(parts) != len(self.name.parts):
            raise UserError(f"--features {name}: imported features cannot be extracted", hint="see `features`")
        if code := [condition for condition in self.name.conditions if condition.option.startswith("--trust-code")]:
            raise UserError(f"--features {name}: its {code[0].why}, which is for runs alone", hint="see `features`")
        self._parts = [PartExtractor(part, options, device) for part in parts]

    @property
    def card(self) -> FeatureCard:
        return self.name.card

    def __call__(self, image: np.ndarray, ratio: float = 1.0) -> dict[str, np.ndarray]:
        """The arrays of every part, named as the fields of `bench.features.Features`."""
        return {name: array for part in self._parts for name, array in part(image, ratio).items()}
