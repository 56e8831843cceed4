"""What each official data set is made of: files with their mirrors, sizes and checksums, and how archives are unpacked.

Addresses, sizes and checksums as public code prints them; a checksum that is not known is pinned on first use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from bench.errors import unknown

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


@dataclass(frozen=True)
class Unpack:
    """How an archive becomes files below `target`: `flat`, without its folders; without `strip` before each name."""

    target: str
    flat: bool = False
    strip: str = ""
    leave_out: frozenset[str] = frozenset()  # names of files that are not kept
    most_files: int = 200_000
    most_bytes: int = 8 * 2**30


@dataclass(frozen=True)
class File:
    """One file to fetch to `path` below the data root, from the first of `urls` that has it."""

    path: str
    urls: tuple[str, ...]
    size: int | None = None  # bytes
    digest: str | None = None  # sha256:… or md5:…
    digest_url: str | None = None  # of a file that begins with the md5
    unpack: Unpack | None = None

    def __post_init__(self) -> None:
        if not self.urls or any(not url.startswith(("http://", "https://")) for url in self.urls):
            raise ValueError(f"{self.path}: expected http or https addresses, found {self.urls}")
        if self.digest is not None and self.digest.partition(":")[0] not in ("sha256", "md5"):
            raise ValueError(f"{self.path}: digest {self.digest!r}")


@dataclass(frozen=True)
class Source:
    """A data set's files, all in one folder below the data root."""

    folder: str
    files: tuple[File, ...]
    image_set: str  # which version of the images these files are
    licence: str


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
        "Flickr photographs, research use",
    )


def _landmarks() -> Source:
    base = "https://s3.amazonaws.com/google-landmark"
    tables = ("metadata/index.csv", "metadata/test.csv", "ground_truth/retrieval_solution_v2.1.csv")
    return Source(
        "gldv2",
        (
            *(File(f"gldv2/{name}", (f"{base}/{name}",)) for name in tables),
            *(
                File(
                    f"gldv2/{split}_images_{number:03d}.tar",
                    (f"{base}/{split}/images_{number:03d}.tar",),
                    digest_url=f"{base}/md5sum/{split}/md5.images_{number:03d}.txt",
                    unpack=Unpack(f"gldv2/{split}", strip=f"{split}/"),
                )
                for split, parts in (("index", 100), ("test", 20))
                for number in range(parts)
            ),
        ),
        "v2, solution v2.1",
        "annotations CC BY 4.0, photographs CC0 or public domain",
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
        "Flickr photographs, research use",
    )


def _products() -> Source:
    name = "Stanford_Online_Products.zip"
    return Source(
        "sop",
        (
            File(
                f"sop/{name}",
                (f"http://ftp.cs.stanford.edu/cs/cvgl/{name}",),
                digest="md5:7f73d41a2f44250d4779881525aea32e",
                unpack=Unpack("sop"),
            ),
        ),
        name,
        "none stated; research",
    )


def sources() -> Mapping[str, Source]:
    """Every data set that can be downloaded, by name."""
    oxford = "ba7967754bd2d7d2210a5799f9c45ad5835e269a80ef9d3eba44caa35816c471"
    paris = "d2e729a5293dda7dda8a15c8383424a42e4964a2c4cfea2f32fa85d11d2df499"
    return MappingProxyType(
        {
            "roxford": _revisited("roxford5k", 149_871, oxford, ("oxbuild_images-v1.tgz",)),
            "rparis": _revisited("rparis6k", 276_508, paris, ("paris_1-v1.tgz", "paris_2-v1.tgz")),
            "revisitop1m": _distractors(),
            "gldv2": _landmarks(),
            "sop": _products(),
        }
    )


def source(name: str) -> Source:
    known = sources()
    if name not in known:
        raise unknown("data set to download", name, known)
    return known[name]
