"""A data set that a server on this machine gives, for `datasets download`: a list and an archive."""

import os

from bench.datasets.dataset import Dataset, File, Place, Source, Unpack, dataset

AT = os.environ.get("TORTURE_SERVER", "http://127.0.0.1:1")
FILES = (
    File("torture/list.txt", (f"{AT}/list.txt",)),
    File("torture/archive.tar", (f"{AT}/archive.tar",), unpack=Unpack("torture", strip="images", most_files=100)),
)
SOURCE = Source("torture", FILES, "one", "none")


@dataset("torture-served", summary="a list and an archive", licence="none", needs="a server", source=SOURCE)
def load(place: Place) -> Dataset:
    """Never read: it is downloaded and no more."""
    raise NotImplementedError
