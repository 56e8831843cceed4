"""What is asked for: the circumstances that all rows of a table share, and the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench import approximate
from bench.candidates import Meaning
from bench.errors import UserError
from bench.executor import Executor, Local
from bench.features.extract import ExtractOptions
from bench.first_stages import names as stages
from bench.first_stages.stage import FirstStage
from bench.rows import DEFAULT_FEATURES
from bench.shortlist import Policy

LISTS = "list"  # the kind of first stage that is a file of candidate lists: list:FILE


@dataclass(frozen=True)
class Setup:
    """What decides the seal and the machine: everything that is the same for the methods of a table."""

    dataset: str
    features: str = DEFAULT_FEATURES  # what rows without features of their own read
    first_stage: str | None = None  # None: global descriptors that `features` names itself, else the default
    top_k: int | None = None  # None: 100, or the gallery's size where it is smaller
    policy: Policy = "blind"
    extract: ExtractOptions = ExtractOptions()
    whiten: str | None = None  # data set to learn PCA whitening on
    device: str = "cpu"
    accept_licence: frozenset[str] = frozenset()
    trust_code: frozenset[str] = frozenset()  # foreign code that extractors may run
    search: str = (
        "blocks"  # how the first stage searches: exactly by blocks or faiss, or by an index that may miss some
    )
    executor: Executor = Local()  # where images are extracted and queries scored
    shortlist: Path | None = None  # other people's candidate lists, instead of a first stage of our own
    skip_unreadable: bool = False  # leave out queries whose images cannot be read, instead of refusing the data set
    shortlist_order: Meaning | None = None  # what orders those lists; None: their numbers and ranks, which must agree

    def __post_init__(self) -> None:
        if self.index is not None and self.lists is not None:
            raise UserError(
                f"--search {self.search}: with --shortlist the candidates are there already", hint="leave --search out"
            )
        if self.shortlist is not None and self.first_stage is not None:
            raise UserError(
                f"--first-stage {self.first_stage}: with --shortlist the candidates are there already",
                hint="leave one of them out",
            )
        if self.lists is None and self.shortlist_order is not None:
            raise UserError(f"--shortlist-order {self.shortlist_order}: no --shortlist was given")
        if self.lists is not None and self.whiten is not None:
            raise UserError(
                f"--whiten {self.whiten}: with --shortlist there is no first stage to whiten",
                hint="leave one of them out",
            )

    @property
    def agreed(self) -> frozenset[str]:
        """The conditions that were agreed to, as they are typed."""
        licences = (f"--accept-licence {name}" for name in self.accept_licence)
        return frozenset((*licences, *(f"--trust-code {name}" for name in self.trust_code)))

    @property
    def lists(self) -> Path | None:
        """The file of other people's candidate lists, if it is the first stage."""
        kind, colon, path = (self.first_stage or "").partition(":")
        return Path(path) if kind == LISTS and colon else self.shortlist

    @property
    def index(self) -> approximate.Kind | None:
        """The index of an approximate search; None where it is exact. UserError for a name that is not known."""
        return approximate.parse(self.search)

    @property
    def stage(self) -> FirstStage | None:
        """The first stage; None where lists are given instead. UserError for a name that is not known."""
        if self.lists is not None:
            return None
        return stages.parse(stages.default_for(self.features) if self.first_stage is None else self.first_stage)


@dataclass(frozen=True)
class Selection:
    """Rows and their options: what one run measures."""

    methods: tuple[str, ...]  # METHOD or METHOD@FEATURES; the method `all` is every one
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # method or row -> option -> text

    def __post_init__(self) -> None:
        if not self.methods:
            raise UserError("--method: no method given", hint="name one or more, or all")
