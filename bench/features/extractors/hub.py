"""Global descriptors of models that repositories offer through `torch.hub`, such as MegaLoc, BoQ or EigenPlaces.

Their code is run, so `--trust-code` must name the repository. Some models are known here: how their descriptor is had,
and at which size. Of others the options say it.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from bench.errors import UserError
from bench.extractor import About, Card, extractor
from bench.features.dense import fitted, normalised
from bench.features.extractors.hf import check_size
from bench.features.extractors.sscd import MEAN, STD
from bench.places import slug

CARD = Card("that of the model", "that of the repository")
SHORTEST = 8  # digits of a checksum


@dataclass(frozen=True)
class Known:
    """A model whose use is known: what its authors' own code does before and after it."""

    entry: str
    dim: int  # with these arguments
    card: Card
    arguments: tuple[str, ...] = ()
    multiple: int = 1  # of which the sides must be, in pixels
    square: int | None = None  # pixels of both sides, where it takes no other


# by OWNER/REPO in lower case; each takes pixels normalised as ImageNet's
KNOWN: Mapping[str, Known] = {
    "gmberton/megaloc": Known(
        "get_trained_model", 8448, Card("Berton and Masone, MegaLoc, CVPR workshops 2025", "MIT"), multiple=14
    ),
    "amaralibey/bag-of-queries": Known(
        "get_trained_boq",
        12288,
        Card("Ali-bey, Chaib-draa, Giguère, BoQ, CVPR 2024", "MIT"),
        ("backbone_name=dinov2", "output_dim=12288"),
        square=322,
    ),
    "gmberton/eigenplaces": Known(
        "get_trained_model",
        2048,
        Card("Berton et al., EigenPlaces, ICCV 2023", "MIT"),
        ("backbone=ResNet50", "fc_output_dim=2048"),
    ),
    "gmberton/cosplace": Known(
        "get_trained_model",
        2048,
        Card("Berton, Masone, Caputo, CosPlace, CVPR 2022", "MIT"),
        ("backbone=ResNet50", "fc_output_dim=2048"),
    ),
}


def read_arguments(texts: tuple[str, ...]) -> dict[str, Any]:
    """Of NAME=VALUE each; a value is a number, true, false, none or text.

    >>> read_arguments(("backbone=ResNet50", "dim=512", "pretrained=true"))
    {'backbone': 'ResNet50', 'dim': 512, 'pretrained': True}
    """
    words = {"true": True, "false": False, "none": None}
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"arguments: {text!r}, expected NAME=VALUE")
        try:
            found[name] = words[value.lower()] if value.lower() in words else ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


@extractor("hub", gives="global", version=1, card=CARD, takes="OWNER/REPO:ENTRY")
class Hub:
    """Global descriptor of a model of torch.hub, on GitHub or in a folder; --trust-code lets its code run."""

    @dataclass(frozen=True)
    class Options:
        repository: str = ""  # OWNER/REPO on GitHub, or a folder with hubconf.py that begins with /, ./ or ~
        entry: str = ""  # of its hubconf.py; may be left out for a known model
        arguments: tuple[str, ...] = ()  # NAME=VALUE of the entry, separated by commas
        ref: str = ""  # commit, tag or branch on GitHub; none: its default branch
        size: int | None = None  # pixels of the longer side of the image or crop; none: as --max-side says
        square: int | None = None  # pixels of both sides instead, whatever the image's shape
        multiple: int = 0  # of which the sides must be, in pixels; 0: as is known of the model, else 1
        normalise: Literal["imagenet", "none"] = "imagenet"  # none: values of 0 to 1
        sha256: str = ""  # first digits of the checksum of its weights, which are then checked

        def __post_init__(self) -> None:
            check_size(self.size)
            check_size(self.square)
            read_arguments(self.arguments)
            if not 0 <= self.multiple <= 128:
                raise ValueError(f"multiple {self.multiple}, expected 0 to 128")
            if self.sha256 and len(self.sha256) < SHORTEST:
                raise ValueError(f"sha256 {self.sha256!r}, expected at least {SHORTEST} digits")

    def __init__(self, options: Options, device: torch.device):
        from third_party.torch_hub import load, state_hash

        known = KNOWN.get(options.repository.lower())
        arguments = options.arguments or (known.arguments if known else ())
        self._model = load(
            options.repository, _entry(options), read_arguments(arguments), options.ref, torch.device(device)
        )
        self._options, self._device = options, device
        self._square = options.square or (known.square if known and options.size is None else None)
        self._multiple = options.multiple or (known.multiple if known else 1)
        if options.sha256 and not (found := state_hash(self._model.state_dict())).startswith(options.sha256.lower()):
            raise UserError(
                f"hub:{options.repository}: the weights' sha256 begins with {found[:16]}, expected {options.sha256}",
                hint="the repository offers other weights now; name a ref, or the new checksum if you want these",
            )

    @staticmethod
    def about(options: Options) -> About:
        if not options.repository:
            return About()
        from third_party.torch_hub import contents, local_folder

        folder, entry = local_folder(options.repository), _entry(options)
        known = KNOWN.get(options.repository.lower())
        return About(
            label=slug(entry if folder is not None else options.repository.rpartition("/")[2]),
            files=() if folder is None else contents(folder),
            named=() if folder is None else ("repository",),
            global_dim=known.dim if known and options.arguments in ((), known.arguments) else None,
            card=known.card if known else None,
            full_size=options.size is not None
            or options.square is not None
            or (known is not None and known.square is not None),
            runs=options.repository,
        )

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> np.ndarray:
        if self._square is not None:
            image = np.asarray(Image.fromarray(image).resize((self._square, self._square), Image.Resampling.BICUBIC))
        image = fitted(image, None if self._square is not None else self._options.size, self._multiple)
        imagenet = self._options.normalise == "imagenet"
        pixels = normalised(image, MEAN if imagenet else 0 * MEAN, STD if imagenet else 0 * STD + 255, self._device)
        return F.normalize(self._descriptor(self._model(pixels)), dim=0).cpu().numpy()

    def _descriptor(self, given: Any) -> Tensor:
        """(D,) of what the model gives: that, or the first of several things (BoQ adds its attentions)."""
        first = given[0] if isinstance(given, tuple | list) and given else given
        if not isinstance(first, Tensor) or first.numel() == 0 or first.shape[:-1].numel() != 1:
            shape = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
            raise UserError(
                f"hub:{self._options.repository}: the model gave {shape}, expected a descriptor (1, D)",
                hint="name an entry that gives one descriptor an image",
            )
        return first.reshape(-1).float()


def _entry(options: Any) -> str:
    known = KNOWN.get(options.repository.lower())
    if not options.entry and known is None:
        raise UserError(
            f"hub:{options.repository}: it names no entry of the repository's hubconf.py",
            hint=f"hub:{options.repository}:ENTRY",
        )
    return options.entry or (known.entry if known else "")
