"""What an author of an extractor declares, and what becomes of one that breaks its promise."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch

from bench.conformance import check_extractor
from bench.errors import UserError
from bench.extractor import About, Card, LocalFeatures, extractor, waits
from bench.features.extract import ExtractOptions, Part, PartExtractor
from bench.features.sets import EXTRACTORS, SetName

CARD = Card(None, "MIT")
IMAGE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
# not: those with weights to be given, or to be fetched
READY = [
    name
    for name in EXTRACTORS.names()
    if not (cls := EXTRACTORS.get(name)).spec.takes and waits(cls, cls.Options()) is None
]


def a_local(gives: Callable[[np.ndarray], Any] | None = None, **declared: Any) -> type:
    """A local extractor of sixteen places whose result goes through `gives`."""

    @extractor("made", gives="local", version=1, card=CARD, **declared)
    class Made:
        """A grid of sixteen places."""

        def __init__(self, options: object, device: torch.device):
            self.called = 0

        def __call__(self, image: np.ndarray) -> Any:
            self.called += 1
            rows = np.abs(np.random.default_rng(0).normal(size=(16, 8))).astype(np.float32)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            points = np.zeros((16, 2), np.float32)
            ones = np.ones(16, np.float32)
            found = LocalFeatures(rows, points, ones, 0 * ones, np.linspace(1, 0.1, 16).astype(np.float32))
            return found if gives is None else gives(self, found)  # type: ignore[call-arg]

    return Made


def changed(**fields: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any, LocalFeatures], LocalFeatures]:
    return lambda _, found: LocalFeatures(**{**vars(found), **{k: f(getattr(found, k)) for k, f in fields.items()}})


@pytest.mark.parametrize("name", READY)
def test_every_extractor_here_conforms(name: str) -> None:
    check_extractor(EXTRACTORS.get(name))


def test_a_sound_extractor_conforms() -> None:
    check_extractor(a_local())
    check_extractor(a_local(local_dim=8))


WRONG = {
    "no features": (lambda _, found: found.descriptors, "gave ndarray, expected LocalFeatures"),
    "one keypoint less": (changed(keypoints=lambda k: k[1:]), r"gave keypoints \(15, 2\), expected \(16, 2\)"),
    "flat descriptors": (changed(descriptors=np.ravel), "gave descriptors"),
    "twice the norm": (changed(descriptors=lambda d: 2 * d), "local descriptor of norm 2, expected 1"),
    "unsorted": (changed(scores=lambda s: s[::-1].copy()), "not sorted by descending score"),
    "not a number": (changed(descriptors=lambda d: d * np.nan), "non-finite descriptors"),
    "infinite places": (changed(keypoints=lambda k: k + np.inf), "non-finite keypoints"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_broken_promise_is_named_by_conformance_and_by_a_run(what: str) -> None:
    gives, said = WRONG[what]
    with pytest.raises(AssertionError, match=said):
        check_extractor(a_local(gives))
    with pytest.raises(UserError, match=f"the extractor 'made' {said}|the extractor 'made' gave"):
        PartExtractor(Part(a_local(gives), a_local().Options()))(IMAGE)  # type: ignore[attr-defined]


def test_other_results_on_a_second_call_are_found() -> None:
    def wander(self: Any, found: LocalFeatures) -> LocalFeatures:
        return changed(keypoints=lambda k: k + self.called)(self, found)

    with pytest.raises(AssertionError, match="a second call gave other keypoints"):
        check_extractor(a_local(wander))


def test_an_object_that_threads_share_and_that_its_calls_change_is_found() -> None:
    both, calls = Barrier(2, timeout=60), []

    def of_the_last(self: Any, found: LocalFeatures) -> LocalFeatures:
        self.place = threading.get_ident()
        if threading.current_thread() is not threading.main_thread():
            calls.append(self)
            if len(calls) > 2:  # one thread has made its two calls, and now two threads do
                both.wait()
        mine = self.place == threading.get_ident()
        return found if mine else changed(keypoints=lambda k: k + 1)(self, found)

    with pytest.raises(AssertionError, match="made: two threads at once get other keypoints"):
        check_extractor(a_local(of_the_last, shared=True))
    calls.clear()
    check_extractor(a_local(of_the_last))
    assert len(calls) == 6 and len(set(map(id, calls))) == 2


def test_a_declared_size_must_be_the_one_given() -> None:
    with pytest.raises(AssertionError, match="gave 8-d local descriptors, and declares 9-d"):
        check_extractor(a_local(local_dim=9))


@pytest.mark.parametrize("vector", [np.ones(4, np.float32), np.zeros((2, 2), np.float32), np.array(["a"]), None])
def test_a_global_descriptor_that_is_none_is_refused(vector: Any) -> None:
    @extractor("made", gives="global", version=1, card=CARD)
    class Made:
        def __init__(self, options: object, device: torch.device): ...

        def __call__(self, image: np.ndarray) -> Any:
            return vector

    with pytest.raises(UserError, match="the extractor 'made' gave"):
        PartExtractor(Part(Made, Made.Options()))(IMAGE)  # type: ignore[attr-defined]


def test_more_descriptors_than_are_kept_are_cut_and_the_option_says_how_many() -> None:
    class Counting(a_local()):  # type: ignore[misc]
        @dataclass(frozen=True)
        class Options:
            descriptors: int = 1000

        def __init__(self, options: Options, device: torch.device):
            super().__init__(options, device)
            self.told = options.descriptors

    made = PartExtractor(Part(Counting, Counting.Options()), ExtractOptions(descriptors=5))
    assert made._extractor.told == 5 and len(made(IMAGE)["scores"]) == 5  # type: ignore[attr-defined]


def test_keypoints_and_scales_are_in_pixels_of_the_image_given() -> None:
    far = changed(keypoints=lambda k: k + 19)
    made = PartExtractor(Part(a_local(far), a_local().Options()), ExtractOptions(max_side=40))  # type: ignore[attr-defined]
    arrays = made(np.zeros((60, 80, 3), np.uint8))
    assert arrays["keypoints"][0].tolist() == [38, 38] and arrays["scales"][0] == 2
    assert arrays["image_size"].tolist() == [80, 60]
    whole = PartExtractor(Part(a_local(far, full_size=True), a_local().Options()), ExtractOptions(max_side=40))  # type: ignore[attr-defined]
    assert whole(np.zeros((60, 80, 3), np.uint8))["keypoints"][0].tolist() == [19, 19]


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"gives": "pixels"}, "expected one of local, global, both"),
        ({"name": "a+b"}, "is no name"),
        ({"name": ""}, "is no name"),
    ],
)
def test_declarations_that_cannot_be_kept_are_refused(declared: dict[str, Any], said: str) -> None:
    given = {"name": "made", "gives": "local", "version": 1, "card": CARD} | declared
    with pytest.raises(ValueError, match=said):
        extractor(given.pop("name"), **given)(type("Made", (), {}))


def test_options_without_defaults_are_refused() -> None:
    class Made:
        @dataclass
        class Options:
            bins: int

    with pytest.raises(TypeError, match="defaults"):
        extractor("made", gives="local", version=1, card=CARD)(Made)


def test_the_identity_is_name_version_options_and_weights_and_no_place(tmp_path: Path) -> None:
    @extractor("made", gives="local", version=1, card=CARD)
    class Made:
        @dataclass(frozen=True)
        class Options:
            weights: Path | None = None
            layers: int = 3

    files = [tmp_path / name for name in ("one.pt", "copy.pt", "other.pt")]
    for path, content in zip(files, ("w", "w", "v"), strict=True):
        path.write_text(content)
    one, copy, other = (Part(Made, Made.Options(path)) for path in files)
    assert one.identity(ExtractOptions()) == copy.identity(ExtractOptions()) != other.identity(ExtractOptions())
    assert one.key == copy.key != other.key and str(tmp_path) not in str(one.identity(ExtractOptions()))
    deeper = Part(Made, Made.Options(files[0], layers=4))
    assert deeper.key != one.key and deeper.identity(ExtractOptions()) != one.identity(ExtractOptions())
    assert "max_megapixels" not in one.identity(ExtractOptions())


@extractor("told", gives="global", version=1, card=CARD, takes="MODEL")
class Told:
    """A global descriptor whose options say what it is."""

    @dataclass(frozen=True)
    class Options:
        model: str = ""
        power: float = 1.0

    def __init__(self, options: Any, device: torch.device): ...

    @staticmethod
    def about(options: Any) -> About:
        if not options.model:
            return About()
        place = Path(options.model)
        card = Card(None, place.read_text(), noncommercial=place.read_text())
        return About("small", (place,), ("model",), global_dim=3, card=card, full_size=True, runs="their/code")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        assert image.shape == IMAGE.shape
        return np.array([1, 0, 0], np.float32)


def test_options_may_tell_what_a_class_cannot(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("theirs")
    part = Part(Told, Told.Options(str(tmp_path / "one")))
    spec = part.spec
    assert (spec.name, spec.card.licence, spec.global_dim, spec.local_dim) == ("told", "theirs", 3, 0)
    assert spec.full_size and spec.runs == "their/code" and Told.spec.runs is None and Told.spec.card == CARD
    extract = PartExtractor(part, ExtractOptions(max_side=32))
    assert extract.dims == (0, 3) and len(extract(IMAGE)["global_descriptor"]) == 3
    name = SetName(None, part)
    assert [each.option for each in name.conditions] == ["--accept-licence theirs", "--trust-code their/code"]


def test_what_options_name_is_known_by_its_contents_and_not_by_its_place(tmp_path: Path) -> None:
    def key(file: str, power: float = 1.0) -> tuple[str, object]:
        part = Part(Told, Told.Options(str(tmp_path / file), power))
        return part.key, part.identity(ExtractOptions())

    (tmp_path / "one").write_text("theirs")
    (tmp_path / "copy").write_text("theirs")
    (tmp_path / "other").write_text("ours")
    assert key("one") == key("copy") and key("one")[0].startswith("told-small-")
    for other in (key("other"), key("one", 2.0)):
        assert other[0] != key("one")[0] and other[1] != key("one")[1]
    (tmp_path / "copy").write_text("ours!!")  # of the same length
    assert key("copy")[0] != key("one")[0]


def test_options_that_name_nothing_are_a_skip() -> None:
    part = Part(Told, Told.Options())
    assert part.lacks_weights and "told:MODEL" in str(part.skip())
