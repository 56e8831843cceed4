"""GPR1200 (Schall et al., MMM 2022): every image queries all the others (docs/protocols.md, GPR1200).

PATH/{category}_{name}.jpg   or   PATH/images/{category}_{name}.jpg
"""

from __future__ import annotations

import re

from bench.datasets.dataset import Dataset, Instances, Place, Query, dataset
from bench.datasets.folder import look, require_folder
from bench.datasets.gallery import version_of
from bench.datasets.official.sources import File, Source, Unpack
from bench.errors import UserError
from bench.names import shown

LICENCE = "non-commercial research"
NAME = re.compile(r"([0-9]+)_.+")


def _archive() -> Source:
    url = "https://visual-computing.com/files/GPR1200/GPR1200.zip"
    return Source("gpr1200", (File("gpr1200/GPR1200.zip", (url,), unpack=Unpack("gpr1200")),), "GPR1200.zip", LICENCE)


@dataset(
    "gpr1200",
    summary="GPR1200: 12,000 images of 1,200 categories, each a query",
    licence=LICENCE,
    needs="the unpacked archive of visual-computing.com",
    takes="PATH",
    source=_archive(),
)
def read(place: Place) -> Dataset:
    """Ids are names without suffix, by the number of their category and then by name. UserError for other names."""
    assert place.path is not None
    require_folder(place.path)
    root = place.path / "images" if (place.path / "images").is_dir() else place.path
    found = look(root)
    categories: dict[str, int] = {}
    for image in found.images:
        match = NAME.fullmatch(image)
        if match is None:
            raise UserError(
                f"{root}: found the image {shown(image)!r}, expected names CATEGORY_NAME.jpg, CATEGORY a number",
                hint="other images of your own are a data set as folder:PATH",
            )
        categories[image] = int(match[1])
    ids = sorted(categories, key=lambda image: (categories[image], image))
    members: dict[int, list[str]] = {}
    for image in ids:
        members.setdefault(categories[image], []).append(image)
    gallery = {image: found.images[image] for image in ids}
    return Dataset(
        place.name,
        "gpr1200",
        version_of(root, (path.relative_to(root).as_posix() for path in gallery.values())),
        tuple(Query(image, path) for image, path in gallery.items()),
        gallery,
        Instances(members.values()),
        found.notes(root),
    )
