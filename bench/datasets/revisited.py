"""Revisited Oxford and Paris (Radenovic et al., CVPR 2018), in the official layout below a data root.

<data root>/roxford5k/gnd_roxford5k.pkl   and   <data root>/roxford5k/jpg/<id>.jpg      (rparis6k likewise)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.datasets import Box, Dataset, Query, grade
from bench.errors import UserError
from third_party import allowed_pickle

FOLDERS = {"roxford": "roxford5k", "rparis": "rparis6k"}
SOURCE = "http://cmp.felk.cvut.cz/revisitop/data/datasets/{folder}/gnd_{folder}.pkl"
IMAGES = {
    "roxford": "https://www.robots.ox.ac.uk/~vgg/data/oxbuildings/oxbuild_images-v1.tgz",
    "rparis": "https://www.robots.ox.ac.uk/~vgg/data/parisbuildings/paris_1-v1.tgz and paris_2-v1.tgz",
}
LARGEST_PICKLE = 16 * 2**20  # bytes; the official files have 150 and 277 kB


def read_ground_truth(path: Path) -> dict[str, Any]:
    """{"imlist", "qimlist", "gnd"} of an official pickle, read without running anything."""
    content = allowed_pickle.load(path, LARGEST_PICKLE)
    if not isinstance(content, dict) or not {"imlist", "qimlist", "gnd"} <= content.keys():
        raise UserError(f"{path}: expected a dict with imlist, qimlist and gnd")
    return content


def load(name: str, root: Path, images: bool = True) -> Dataset:
    """`roxford` or `rparis` below the data root; UserError naming every missing file and how to get it.

    Without `images` the photographs need not be there: enough to work with features that others extracted.
    """
    folder = FOLDERS[name]
    base = root / folder
    pickle_file = base / f"gnd_{folder}.pkl"
    get = (
        f"ground truth: {SOURCE.format(folder=folder)}; photographs, unpacked flat into {base / 'jpg'}: "
        f"{IMAGES[name]}; or name another place with --data-root or RERANKBENCH_DATA"
    )
    if not pickle_file.is_file():
        raise UserError(
            f"data set {name!r} is not in {root}: missing {pickle_file} and the photographs {base / 'jpg'}/*.jpg",
            hint=get,
        )
    content = read_ground_truth(pickle_file)
    try:
        gallery = {image: base / "jpg" / f"{image}.jpg" for image in content["imlist"]}
        if len(gallery) != len(content["imlist"]):
            raise UserError(f"{pickle_file}: imlist names an image twice")
        queries, grades = [], {}
        for image, truth in zip(content["qimlist"], content["gnd"], strict=True):
            queries.append(Query(image, base / "jpg" / f"{image}.jpg", _box(truth["bbx"])))
            grades[image] = grade(
                image, **{key: [content["imlist"][_index(i)] for i in truth[key]] for key in ("easy", "hard", "junk")}
            )
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{pickle_file}: not of the official form ({type(error).__name__}: {error})") from error
    dataset = Dataset(name, "revisited", "as found (served face-blurred since 2022)", tuple(queries), gallery, grades)
    if images:
        _require_photographs(dataset, base, get)
    return dataset


def _require_photographs(dataset: Dataset, base: Path, get: str) -> None:
    wanted = {*dataset.gallery.values(), *(query.image for query in dataset.queries)}
    here = {file.name for file in (base / "jpg").iterdir()} if (base / "jpg").is_dir() else set()
    missing = sorted(path.name for path in wanted if path.name not in here)
    if missing:
        listed = base / "missing.txt"
        shown = ", ".join(missing) if len(missing) <= 20 else ", ".join(missing[:20]) + ", …"
        try:
            listed.write_text("\n".join(missing) + "\n")
            where = f" (all of them are named in {listed})" if len(missing) > 20 else ""
        except OSError:
            where, shown = "", ", ".join(missing)
        raise UserError(
            f"data set {dataset.name!r}: {len(missing)} of {len(wanted)} photographs are missing "
            f"from {base / 'jpg'}: {shown}{where}",
            hint=get,
        )


def _index(value: int) -> int:
    if value < 0:
        raise ValueError(f"{value} is no index")
    return value


def _box(values: list[float]) -> Box:
    x1, y1, x2, y2 = (float(v) for v in values)
    return (x1, y1, x2, y2)
