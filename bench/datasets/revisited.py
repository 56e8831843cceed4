"""Revisited Oxford and Paris (Radenovic et al., CVPR 2018), in the official layout below a data root.

<data root>/roxford5k/gnd_roxford5k.pkl   and   <data root>/roxford5k/jpg/<id>.jpg      (rparis6k likewise)
<data root>/revisitop1m/revisitop1m.txt   and   <data root>/revisitop1m/jpg/<image>      for roxford+1m and rparis+1m
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from bench.datasets.boxes import check_boxes
from bench.datasets.dataset import Dataset, File, Place, Query, Source, Unpack, dataset, grade
from bench.datasets.gallery import Gallery, Layout
from bench.datasets.official.local import NotHere, image_set, require_files, require_images
from bench.errors import UserError
from bench.files import lines_of
from bench.images import Box
from third_party import allowed_pickle

FOLDERS = {"roxford": "roxford5k", "rparis": "rparis6k"}
SOURCE = "http://cmp.felk.cvut.cz/revisitop/data/datasets/{folder}/gnd_{folder}.pkl"
IMAGES = {
    "roxford": "https://www.robots.ox.ac.uk/~vgg/data/oxbuildings/oxbuild_images-v1.tgz",
    "rparis": "https://www.robots.ox.ac.uk/~vgg/data/parisbuildings/paris_1-v1.tgz and paris_2-v1.tgz",
}
DISTRACTORS = "+1m"  # at the end of a name: followed by the million distractors
DISTRACTOR = "1m/"  # what their ids begin with, so that none is that of another image
DISTRACTOR_SUFFIX = ".jpg"
LARGEST_LIST = 2**30  # bytes; the official list has about 40 MB
GET_DISTRACTORS = "python cli.py datasets download revisitop1m"
LARGEST_PICKLE = 16 * 2**20  # bytes; the official files have 150 and 277 kB
LICENCE = "Flickr photographs, research use"
BLURRED = "faces blurred (archives -v1, served since 2022)"
# files of the Paris archives that hold a web page instead of a photograph; no list names them
CORRUPT = frozenset(
    f"paris_{name}.jpg"
    for name in [
        "louvre_000136",
        "louvre_000146",
        "moulinrouge_000422",
        "museedorsay_001059",
        "notredame_000188",
        "pantheon_000284",
        "pantheon_000960",
        "pantheon_000974",
        "pompidou_000195",
        "pompidou_000196",
        "pompidou_000201",
        "pompidou_000467",
        "pompidou_000640",
        "sacrecoeur_000299",
        "sacrecoeur_000330",
        "sacrecoeur_000353",
        "triomphe_000662",
        "triomphe_000833",
        "triomphe_000863",
        "triomphe_000867",
    ]
)


def read_ground_truth(path: Path) -> dict[str, Any]:
    """{"imlist", "qimlist", "gnd"} of an official pickle, read without running anything."""
    content = allowed_pickle.load(path, LARGEST_PICKLE)
    if not isinstance(content, dict) or not {"imlist", "qimlist", "gnd"} <= content.keys():
        raise UserError(f"{path}: expected a dict with imlist, qimlist and gnd")
    return content


def load(name: str, root: Path, images: bool = True) -> Dataset:
    """`roxford` or `rparis`, or with +1m, below the data root; UserError naming what is missing and how to get it.

    Without `images` the photographs need not be there: enough to work with features that others extracted.
    """
    plain = name.removesuffix(DISTRACTORS)
    folder = FOLDERS[plain]
    base = root / folder
    pickle_file = base / f"gnd_{folder}.pkl"
    get = (
        f"python cli.py datasets download {plain}; or ground truth: {SOURCE.format(folder=folder)}; photographs, "
        f"unpacked flat into {base / 'jpg'}: {IMAGES[plain]}; or name another place with --data-root "
        "or RERANKBENCH_DATA"
    )
    if not pickle_file.is_file():
        raise NotHere(
            f"data set {name!r} is not in {root}: missing {pickle_file} and the photographs {base / 'jpg'}/*.jpg",
            hint=get,
        )
    content = read_ground_truth(pickle_file)
    try:
        gallery: Mapping[str, Path] = {image: base / "jpg" / f"{image}.jpg" for image in content["imlist"]}
        if len(gallery) != len(content["imlist"]):
            raise UserError(f"{pickle_file}: imlist names an image twice")
        queries, grades = [], {}
        for image, truth in zip(content["qimlist"], content["gnd"], strict=True):
            queries.append(Query(image, base / "jpg" / f"{image}.jpg", _box(truth["bbx"])))
            grades[image] = grade(
                image, **{key: [content["imlist"][_index(i)] for i in truth[key]] for key in ("easy", "hard", "junk")}
            )
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{pickle_file}: not of the official form ({type(error).__name__}: {error})") from error
    version = image_set(base, "as found (served face-blurred since 2022)")
    if images:
        wanted = {*gallery.values(), *(query.image for query in queries)}
        require_files(name, wanted, base / "missing.txt", get)
    if name != plain:
        more = root / "revisitop1m"
        if not (more / "revisitop1m.txt").is_file():
            raise NotHere(
                f"data set {name!r} is not in {root}: missing {more / 'revisitop1m.txt'}", hint=GET_DISTRACTORS
            )
        ids = chain(gallery, (DISTRACTOR + image for image in read_distractors(more / "revisitop1m.txt")))
        layouts = [Layout(base / "jpg"), Layout(more / "jpg", DISTRACTOR_SUFFIX, DISTRACTOR)]
        near, gallery = len(gallery), Gallery(ids, layouts, str(more / "revisitop1m.txt"))
        version += ", " + image_set(more, "revisitop1m as found")
        if images:
            require_images(name, gallery, more / "missing.txt", GET_DISTRACTORS, first=near)
    notes = check_boxes(queries, str(pickle_file)) if images else ()
    return Dataset(name, "revisited", version, tuple(queries), gallery, grades, notes)


def read_distractors(path: Path) -> Iterator[str]:
    """Ids of the distractors, their paths below jpg/ without suffix, in the list's order, read as they are asked for.

    UserError naming the line for what is no path of a .jpg file.
    """
    try:
        if path.stat().st_size > LARGEST_LIST:
            raise UserError(f"{path}: {path.stat().st_size} bytes, the official list has about 40 MB")
        for number, line in enumerate(lines_of(path), 1):
            name = line.strip().removeprefix("./").removeprefix("jpg/")
            parts = name.split("/")
            if not name.endswith(DISTRACTOR_SUFFIX) or name.startswith("/") or {"..", "", "."} & set(parts):
                raise UserError(f"{path}, line {number}: found {line[:80]!r}, expected jpg/NAME.jpg")
            yield name.removesuffix(DISTRACTOR_SUFFIX)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})", hint=GET_DISTRACTORS) from error


def _index(value: int) -> int:
    if value < 0:
        raise ValueError(f"{value} is no index")
    return value


def _box(values: list[float]) -> Box:
    x1, y1, x2, y2 = (float(v) for v in values)
    return (x1, y1, x2, y2)


def _revisited(folder: str, size: int, sha256: str, archives: tuple[str, ...]) -> Source:
    truth = f"gnd_{folder}.pkl"
    unpack = Unpack(f"{folder}/jpg", flat=True, leave_out=CORRUPT)
    where = "oxbuildings" if folder == "roxford5k" else "parisbuildings"
    return Source(
        folder,
        (
            File(
                f"{folder}/{truth}",
                (f"http://cmp.felk.cvut.cz/revisitop/data/datasets/{folder}/{truth}",),
                size,
                f"sha256:{sha256}",
            ),
            *(
                File(f"{folder}/{name}", (f"https://www.robots.ox.ac.uk/~vgg/data/{where}/{name}",), unpack=unpack)
                for name in archives
            ),
        ),
        BLURRED,
        LICENCE,
    )


def _distractors() -> Source:
    base = "http://ptak.felk.cvut.cz/revisitop/revisitop1m"
    return Source(
        "revisitop1m",
        (
            File("revisitop1m/revisitop1m.txt", (f"{base}/revisitop1m.txt",)),
            *(
                File(
                    f"revisitop1m/revisitop1m.{number}.tar.gz",
                    (f"{base}/jpg/revisitop1m.{number}.tar.gz",),
                    unpack=Unpack("revisitop1m/jpg", strip="jpg/"),
                )
                for number in range(1, 101)
            ),
        ),
        "revisitop1m",
        LICENCE,
    )


def _read(place: Place) -> Dataset:
    return load(place.name, place.data, place.images)


_OXFORD = _revisited(
    "roxford5k",
    149_871,
    "ba7967754bd2d7d2210a5799f9c45ad5835e269a80ef9d3eba44caa35816c471",
    ("oxbuild_images-v1.tgz",),
)
_PARIS = _revisited(
    "rparis6k",
    276_508,
    "d2e729a5293dda7dda8a15c8383424a42e4964a2c4cfea2f32fa85d11d2df499",
    ("paris_1-v1.tgz", "paris_2-v1.tgz"),
)
_MORE = _distractors()
ROXFORD = dataset(
    "roxford",
    summary="Revisited Oxford: 70 queries, 4,993 photographs",
    licence=LICENCE,
    needs="roxford5k/ below the data root",
    source=_OXFORD,
)(_read)
RPARIS = dataset(
    "rparis",
    summary="Revisited Paris: 70 queries, 6,322 photographs",
    licence=LICENCE,
    needs="rparis6k/ below the data root",
    source=_PARIS,
)(_read)
ROXFORD_1M = dataset(
    "roxford+1m",
    summary="Revisited Oxford among a million distractors",
    licence=LICENCE,
    needs="roxford5k/ and revisitop1m/ below the data root",
    source=(_OXFORD, _MORE),
    many=True,
)(_read)
RPARIS_1M = dataset(
    "rparis+1m",
    summary="Revisited Paris among a million distractors",
    licence=LICENCE,
    needs="rparis6k/ and revisitop1m/ below the data root",
    source=(_PARIS, _MORE),
    many=True,
)(_read)
