"""The options that say what to run on what, as values of `bench.setup`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from bench.setup import Setup


def options_by_row(values: tuple[str, ...], rows: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """-o method.option=value, several times, by method, or by the one of `rows` that it names."""
    from bench.errors import UserError

    found: dict[str, dict[str, str]] = {}
    for text in values:
        row = next((row for row in rows if "@" in row and text.startswith(f"{row}.")), None)
        target, equals, value = text.removeprefix(row or "").partition("=")
        method, dot, option = target.partition(".")
        if not (equals and dot and (method or row) and option):
            raise UserError(f"-o {text}: expected METHOD.OPTION=VALUE", hint="for example -o rrt.descriptors=100")
        found.setdefault(row or method, {})[option] = value
    return found


def _set_threads(threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def set_up(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say on what, handed on as `setup`."""

    @click.option("--dataset", "-d", required=True, metavar="NAME[:PATH]", help="Data set. See `datasets`.")
    @click.option(
        "--features",
        "-f",
        default="xfeat",
        show_default=True,
        help="Feature set of the methods that name none and can read it. See `features`.",
    )
    @click.option("--top-k", "-k", type=click.IntRange(1), help="Candidates per query. [default: 100, or all if fewer]")
    @click.option(
        "--policy",
        type=click.Choice(["blind", "paper"]),
        default="blind",
        show_default=True,
        help="paper: ignored images are moved behind before the cut, a list per difficulty; uses ground truth.",
    )
    @click.option(
        "--search",
        metavar="NAME[:OPTION=VALUE…]",
        default="blocks",
        show_default=True,
        help="How the first stage searches: by blocks or faiss, which find the same, or by ivfpq or hnsw, which may "
        "miss some. All but blocks search global descriptors alone. faiss holds them in memory, and uses GPUs.",
    )
    @click.option("--whiten", metavar="DATASET", help="PCA-whiten the first stage, learned on another data set.")
    @click.option(
        "--max-side", type=click.IntRange(32), default=640, show_default=True, help="Longer image side, pixels."
    )
    @click.option(
        "--keep-descriptors",
        type=click.IntRange(1),
        default=1000,
        show_default=True,
        help="Local descriptors stored per image.",
    )
    @click.option(
        "--descriptor-precision",
        type=click.Choice(["float16", "int8", "binary"]),
        default="float16",
        show_default=True,
        help="How local descriptors are stored: in two bytes, a byte or a bit a value.",
    )
    @click.option(
        "--max-megapixels",
        type=click.IntRange(1),
        default=300,
        show_default=True,
        help="Images of more are not read. Large JPEGs are decoded at a reduced size.",
    )
    @click.option(
        "--batch",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Images of one size that an extractor is given at once, where it takes several: for GPUs.",
    )
    @click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
    @click.option("--threads", type=click.IntRange(1), help="CPU threads, an image each. [default: torch's own]")
    @click.option(
        "--executor",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Where images are extracted and queries scored: this machine, or a Ray cluster that sees the same files.",
    )
    @click.option(
        "--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes that share the work."
    )
    @click.option("--ray-address", metavar="ADDRESS", help="Of a running cluster. [default: one on this machine]")
    @click.option("--accept-licence", multiple=True, metavar="NAME", help="Use weights under this restricted licence.")
    @click.option("--trust-code", multiple=True, metavar="NAME", help="Let an extractor run the code of this place.")
    @click.option(
        "--skip-unreadable", is_flag=True, help="Leave out queries whose images cannot be read; the table says so."
    )
    @wraps(command)
    def wrapped(
        *args: Any,
        dataset: str,
        features: str,
        top_k: int | None,
        policy: Any,
        search: str,
        whiten: str | None,
        max_side: int,
        keep_descriptors: int,
        descriptor_precision: str,
        max_megapixels: int,
        batch: int,
        device: str,
        threads: int | None,
        executor: str,
        workers: int,
        ray_address: str | None,
        accept_licence: tuple[str, ...],
        trust_code: tuple[str, ...],
        skip_unreadable: bool,
        **kwargs: Any,
    ) -> Any:
        from bench.executor import executor as executor_of
        from bench.features.extract import ExtractOptions
        from bench.setup import Setup

        _set_threads(threads)
        setup = Setup(
            dataset=dataset,
            features=features,
            top_k=top_k,
            policy=policy,
            extract=ExtractOptions(max_side, keep_descriptors, descriptor_precision, max_megapixels, batch),
            whiten=whiten,
            device=device,
            accept_licence=frozenset(accept_licence),
            trust_code=frozenset(trust_code),
            search=search,
            executor=executor_of(executor, workers, threads, ray_address, device),
            skip_unreadable=skip_unreadable,
        )
        return command(*args, setup=setup, **kwargs)

    return wrapped


def asked(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what to run on what, handed on as `setup`, `selection` and `force`."""

    @click.option(
        "--method",
        "-m",
        required=True,
        metavar="METHOD[@FEATURES],…",
        help="Rerankers, separated by commas, or all, on features of their own where they name some. See `methods`.",
    )
    @click.option(
        "--first-stage",
        metavar="NAME",
        help="Where candidates come from: GLOBAL, asmk@LOCAL, sum:A*WEIGHT,B or list:FILE. [default: the global "
        "descriptors that --features names, else the one that `first-stages` marks]",
    )
    @click.option(
        "--shortlist",
        type=click.Path(path_type=Path),
        help="Candidates from a file instead of our own first stage: a TREC run, hloc's pairs, names or indices in an "
        ".npz, indices in an .npy, .safetensors, .pt or nn_inds .pkl, or a folder of VPR predictions.",
    )
    @click.option(
        "--shortlist-order",
        type=click.Choice(["similarities", "distances", "ranks"]),
        help="What orders those lists: numbers, higher or lower first, or ranks alone. [default: they must agree]",
    )
    @click.option(
        "-o",
        "options",
        multiple=True,
        metavar="METHOD[@FEATURES].OPTION=VALUE",
        help="Option of a method, or of its row on those features; repeatable.",
    )
    @click.option("--force", is_flag=True, help="Measure again even if this very run is finished.")
    @set_up
    @wraps(command)
    def wrapped(
        *args: Any,
        setup: Setup,
        method: str,
        first_stage: str | None,
        shortlist: Path | None,
        shortlist_order: Any,
        options: tuple[str, ...],
        force: bool,
        **kwargs: Any,
    ) -> Any:
        from dataclasses import replace

        from bench.setup import Selection

        rows = tuple(m.strip() for m in method.split(",") if m.strip())
        selection = Selection(rows, options_by_row(options, rows))
        setup = replace(setup, first_stage=first_stage, shortlist=shortlist, shortlist_order=shortlist_order)
        return command(*args, setup=setup, selection=selection, force=force, **kwargs)

    return wrapped
