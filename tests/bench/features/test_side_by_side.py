"""Images extracted side by side have the features that each has alone, and say no time that another disturbed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Barrier, Event

import numpy as np
import pytest
import torch
from PIL import Image

from bench.errors import UserError
from bench.extractor import Card, extractor
from bench.features.extract import ExtractOptions, Part, PartExtractor, extract
from bench.features.items import Item
from bench.features.sets import SetName
from bench.features.store import FeatureStore
from bench.options import NoOptions
from bench.places import Places
from bench.prepare import prepare
from bench.setup import Selection, Setup

PATIENCE = 60.0  # seconds after which a thread that nobody meets gives up


@extractor("met", gives="global", version=1, global_dim=3, card=Card("a test", "MIT"))
class Met:
    """The mean colour, once `during` has been called with the object and the red of the first pixel."""

    during: Callable[[Met, int], object]
    made: list[Met]

    def __init__(self, options: NoOptions, device: torch.device):
        Met.made.append(self)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        Met.during(self, int(image[0, 0, 0]))
        mean = image.reshape(-1, 3).mean(axis=0) + 1
        return (mean / np.linalg.norm(mean)).astype(np.float32)


@extractor("met-shared", gives="global", version=1, global_dim=3, card=Card("a test", "MIT"), shared=True)
class MetShared(Met):
    """As `Met`, for several threads at once."""


@pytest.fixture
def torch_threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads torch has, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def photographs(tmp_path: Path, view: Callable[[int, int], np.ndarray]) -> list[Item]:
    """Seven images of 120 x 160 pixels, whose first pixel has the image's number for its red."""
    found = []
    for number in range(7):
        pixels = view(number, 0)
        pixels[0, 0, 0] = number
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        found.append(Item(str(number), (tmp_path / f"{number}.png",)))
    return found


def stored(
    wanted: Sequence[Item], folder: Path, name: str | type = Met, batch: int = 1, device: str = "cpu"
) -> FeatureStore:
    (part,) = SetName.parse(name).parts[:1] if isinstance(name, str) else (Part(name, NoOptions()),)
    options = ExtractOptions(descriptors=100, batch=batch)
    if not isinstance(name, str):
        Met.made = []
    extract(wanted, folder, lambda: PartExtractor(part, options, device), part.identity(options))
    return FeatureStore(folder)


def alike(one: FeatureStore, other: FeatureStore, wanted: Sequence[Item]) -> bool:
    """Whether two stores have the same of these images, to the bit."""
    keys = [item.key for item in wanted]
    needs = frozenset({"global"} if one.dims[1] else {"local", "keypoints"})
    pairs = zip(one.read_all(keys, needs), other.read_all(keys, needs), strict=True)
    return all(torch.equal(getattr(a, name), value) for a, b in pairs for name, value in vars(b).items())


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["xfeat", "gem-lite0", "sift"])
def test_features_are_equal_to_the_bit_for_any_number_of_threads(
    name: str, batch: int, photographs: list[Item], tmp_path: Path, torch_threads: Callable[[int], None]
) -> None:
    found = {}
    for threads in (1, 2, 3):
        torch_threads(threads)
        found[threads] = stored(photographs, tmp_path / str(threads) / "store", name, batch)
    assert alike(found[2], found[1], photographs) and alike(found[3], found[1], photographs)


def test_the_seal_does_not_depend_on_the_threads(
    buildings: Path, tmp_path: Path, torch_threads: Callable[[int], None]
) -> None:
    seals = set()
    for threads in (1, 2):
        torch_threads(threads)
        setup = Setup(f"folder:{buildings}", extract=ExtractOptions(max_side=160, descriptors=150))
        places = Places(tmp_path / str(threads), tmp_path / "data", tmp_path / "runs")
        seals.add(prepare(setup, [Selection(("identity",))], places, None).scorer.shortlist.seal)
    assert len(seals) == 1


def test_as_many_images_are_at_work_as_torch_has_threads_and_each_gets_its_own_features(
    photographs: list[Item], tmp_path: Path, torch_threads: Callable[[int], None]
) -> None:
    torch_threads(1)
    Met.during = lambda extractor, image: None
    one = stored(photographs, tmp_path / "one" / "store")
    torch_threads(3)
    three, waited = Barrier(3, timeout=PATIENCE), Event()

    def during(extractor: Met, image: int) -> None:
        if image < 3:
            three.wait()  # each of the first three goes on when all of them are here
        if image == 0:
            waited.wait(PATIENCE)  # the first image is the last of the first five to be finished
        elif image == 4:
            waited.set()

    Met.during = during
    assert alike(stored(photographs, tmp_path / "three" / "store"), one, photographs) and waited.is_set()


def test_a_thread_computes_with_one_of_torchs_and_later_ones_have_all(
    photographs: list[Item], tmp_path: Path, torch_threads: Callable[[int], None]
) -> None:
    torch_threads(3)
    seen: list[int] = []
    Met.during = lambda extractor, image: seen.append(torch.get_num_threads())
    stored(photographs, tmp_path / "store")
    assert seen == [1] * len(photographs) and torch.get_num_threads() == 3
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen[-1] == 3


@pytest.mark.parametrize("batch", [1, 3])
def test_only_an_image_with_nothing_beside_it_has_a_time(
    batch: int, photographs: list[Item], tmp_path: Path, torch_threads: Callable[[int], None]
) -> None:
    torch_threads(2)
    apart = {2, 3, 5}
    wanted = [Item(item.key, item.files, alone=int(item.key) in apart) for item in photographs]
    inside: set[int] = set()
    beside: dict[int, set[int]] = {}

    def during(extractor: Met, image: int) -> None:
        inside.add(image)
        for other in inside:
            beside[other] = beside.get(other, set()) | inside
        torch.ones(300, 300) @ torch.ones(300, 300)
        inside.remove(image)

    Met.during = during
    store = stored(wanted, tmp_path / "store", Met, batch)
    assert all(beside[image] == {image} for image in apart)
    timed = {image for image in range(len(wanted)) if store.times([str(image)]) is not None}
    assert timed == apart


@pytest.mark.parametrize(("cls", "objects"), [(Met, 2), (MetShared, 1)])
def test_each_thread_has_an_object_of_its_own_unless_the_class_is_shared(
    cls: type, objects: int, photographs: list[Item], tmp_path: Path, torch_threads: Callable[[int], None]
) -> None:
    torch_threads(2)
    two, met = Barrier(2, timeout=PATIENCE), []

    def during(extractor: Met, image: int) -> None:
        if image < 6:
            two.wait()
            met.append(extractor)
            two.wait()

    Met.during = during
    stored(photographs, tmp_path / "store", cls)
    assert len(Met.made) == objects and len(met) == 6
    assert all(len(set(map(id, met[i : i + 2]))) == objects for i in (0, 2, 4))


@pytest.mark.parametrize("batch", [1, 3])
def test_where_a_device_computes_threads_only_read(
    batch: int, photographs: list[Item], tmp_path: Path, torch_threads: Callable[[int], None]
) -> None:
    torch_threads(2)
    Met.during = lambda extractor, image: None
    cpu = stored(photographs, tmp_path / "cpu" / "store")
    callers: set[int] = set()
    Met.during = lambda extractor, image: callers.add(threading.get_ident())
    device = stored(photographs, tmp_path / "device" / "store", Met, batch, "meta")
    assert callers == {threading.get_ident()} and len(Met.made) == 1
    assert alike(device, cpu, photographs)
    assert device.times(["0"]) is None


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_unreadable_image_is_told_and_an_error_names_its_image(
    device: str, photographs: list[Item], tmp_path: Path, torch_threads: Callable[[int], None]
) -> None:
    torch_threads(2)
    photographs[1].files[0].write_bytes(b"no image")
    Met.during = lambda extractor, image: None
    assert stored(photographs, tmp_path / "store", device=device).errors().keys() == {"1"}

    def during(extractor: Met, image: int) -> None:
        if image == 4:
            raise UserError("no colour")

    Met.during = during
    with pytest.raises(UserError, match=r"4\.png: no colour"):
        stored(photographs, tmp_path / "other" / "store", device=device)
    assert torch.get_num_threads() == 2


def test_after_an_interruption_nothing_more_is_begun(
    photographs: list[Item], tmp_path: Path, torch_threads: Callable[[int], None]
) -> None:
    torch_threads(2)
    begun: list[int] = []
    Met.made, Met.during = [], lambda extractor, image: begun.append(image)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    many = [Item(f"{item.key}-{again}", item.files) for again in range(20) for item in photographs]
    part = Part(Met, NoOptions())
    with pytest.raises(KeyboardInterrupt):
        extract(many, tmp_path / "store", lambda: PartExtractor(part), part.identity(ExtractOptions()), interrupt)
    alive = [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]
    assert len(begun) < 20 and not alive and torch.get_num_threads() == 2
