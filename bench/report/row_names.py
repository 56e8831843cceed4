"""What rows of tables are called, and which run each row is of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from itertools import chain, takewhile

from bench.report.seeds import Seeds, pooled
from bench.results import Run


def label(run: Run, method: str, show: Collection[str] = ()) -> str:
    """The row's name: the method, with the options that are not the defaults, those in `show`, and how many seeds.

    Files of weights that were trained with several seeds are named by what their names share.
    """
    options = dict(run.record.identity.methods[method].options)
    defaults = run.record.defaults.get(method, {})
    seeds = [f"{len(run.runs)} seeds"] if isinstance(run, Seeds) else []
    drawn = run.record.seeds.get(method, ()) if seeds else ()
    options |= {name: alike(files) for name, files in run.files.items()} if isinstance(run, Seeds) else {}
    changed = [
        f"{key}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in options.items()
        if (key in show or value != defaults.get(key)) and key not in drawn
    ]
    return " ".join([method, *changed, *seeds])


def alike(names: Sequence[str]) -> str:
    """What texts begin and end with, and * for what differs.

    >>> alike(["out/a0.safetensors", "out/a1.safetensors"])
    'out/a*.safetensors'
    """

    def begin(texts: Sequence[str]) -> str:
        columns = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
        return "".join(letters[0] for letters in columns)

    first = begin(names)
    last = begin([name[len(first) :][::-1] for name in names])[::-1]
    return first if all(name == first for name in names) else f"{first}*{last}"


def newest_rows(runs: Sequence[Run], show: Collection[str] = ()) -> dict[str, tuple[Run, str]]:
    """Row as a table has it -> the newest run of it, or its runs with several seeds, and its name there.

    Rows whose names and options are equal while their features are not say what tells them apart. So do rows of as many
    seeds, where the code or the training of some was another: their seeds, else their files of weights.
    """
    found: dict[tuple[str, tuple[str, ...]], tuple[Run, str]] = {}
    for run in runs:
        for row in run.record.costs:
            found[label(run, row, show), run.record.identity.methods[row].contents] = (run, row)
    rows = [
        (label(run, row, show), run.record.identity.methods[row].contents, (run, row))
        for run, row in pooled(found.values(), show)
    ]
    contents_of: dict[str, set[tuple[str, ...]]] = {}
    for name, contents, _ in rows:
        contents_of.setdefault(name, set()).add(contents)
    marked = [
        name if len(contents_of[name]) == 1 else f"{name} [features {'+'.join(sha[:8] for sha in contents)}]"
        for name, contents, _ in rows
    ]
    places = [place for *_, place in rows]
    return dict(zip(_told_apart(marked, [run for run, _ in places]), places, strict=True))


def _told_apart(names: Sequence[str], runs: Sequence[Run]) -> Sequence[str]:
    """The names of rows, where those of several seeds say more as long as others have the same."""
    for said in (lambda seeds: seeds.said, lambda seeds: ", ".join(map(str, chain(*seeds.files.values())))):
        often = Counter(names)
        names = [
            f"{name} [{said(run)}]" if isinstance(run, Seeds) and often[name] > 1 else name
            for name, run in zip(names, runs, strict=True)
        ]
    return names
