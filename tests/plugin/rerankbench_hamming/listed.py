"""A data set in a package of its own: the images that a CSV file lists with the instances that they show."""

import csv

from bench.datasets.dataset import Dataset, Instances, Place, Query, dataset
from bench.errors import UserError
from bench.files import file_hash, read_text


@dataset("csv", summary="your images, listed with their instances", licence="yours", needs="the file", takes="FILE")
def load(place: Place) -> Dataset:
    """Every image queries the others of its instance; paths are relative to the file."""
    rows = list(csv.DictReader(read_text(place.path).splitlines()))
    if not rows or not {"image", "instance"} <= rows[0].keys():
        raise UserError(f"{place.path}: expected the columns image and instance", hint="the first line names them")
    gallery = {row["image"]: place.path.parent / row["image"] for row in rows}
    instances: dict[str, list[str]] = {}
    for row in rows:
        instances.setdefault(row["instance"], []).append(row["image"])
    queries = [Query(image, gallery[image]) for group in instances.values() if len(group) > 1 for image in group]
    version = f"listed {file_hash(place.path)[:12]}"
    return Dataset(place.name, "instance", version, tuple(queries), gallery, Instances(instances.values()))
