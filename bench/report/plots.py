"""Pictures of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.files import writing
from bench.names import shown
from bench.report.tables import Table


def _quality(table: Table) -> str:
    """The column that the picture is about."""
    return str(table.about["measure"])


def _bounds(axes: Any, table: Table) -> None:
    """First stage and ceiling as lines, with room around them and what lies between."""
    for level, text in ((table.first_stage, "first\nstage"), (table.ceiling, "ceiling")):
        axes.axhline(level, linestyle="--", color="0.5", linewidth=1)
        axes.annotate(
            text,
            (1, level),  # outside, where no curve goes
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            fontsize=8,
            color="0.4",
            va="center",
        )
    values = table.rows[_quality(table)][[name not in table.controls for name in table.rows.index]]
    levels = [table.first_stage, table.ceiling, *values]
    low, high = min(levels), max(levels)
    axes.set_ylim(low - 0.1 * (high - low) - 1, high + 0.1 * (high - low) + 1)


def saved(figure: Any, folder: Path, name: str, dpi: int) -> Path:
    """The picture's file, written into the folder. UserError where that cannot be done."""
    import matplotlib.pyplot as plt

    path = folder / f"{name}.png"
    try:
        with writing(path, "make room there, or name another folder with --plots or --out"):
            folder.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=dpi)
    finally:
        plt.close(figure)
    return path


def quality_against_time(table: Table, folder: Path, name: str) -> Path:
    """Quality against median ms per query, one point a reranker, between first stage and ceiling; the file written."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    import seaborn as sns
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    quality = _quality(table)
    rows = table.rows[[method not in table.controls for method in table.rows.index]].sort_values(quality)[::-1]
    with sns.axes_style("whitegrid"):
        figure, axes = plt.subplots(figsize=(7.5, 5.4), layout="constrained")
        colours = sns.color_palette("husl", max(1, len(rows)))
        # numbers, since names would cover each other where points are close
        for number, (colour, (method, row)) in enumerate(zip(colours, rows.iterrows(), strict=False), 1):
            place = row["ms/query p50"], row[quality]
            label = f"{number}  {method}: {row[quality]:.1f}, {row['KiB/image']:.1f} KiB/image"
            axes.plot(*place, "o", color=colour, markersize=14, markeredgecolor="white", label=label, zorder=3)
            axes.annotate(str(number), place, ha="center", va="center", color="white", fontsize=8, zorder=4)
        if len(rows):
            figure.legend(loc="outside lower center", ncols=2, fontsize=7.5, markerscale=0.5, frameon=False)
        _bounds(axes, table)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        if len(rows):
            axes.set_xlim(rows["ms/query p50"].min() / 3, rows["ms/query p50"].max() * 3)
        axes.set(xlabel=f"ms per query, median, {table.about['k']} candidates (log scale)", ylabel=f"{quality} (%)")
        axes.set_title(shown(table.title).replace(" · policy", "\npolicy"), fontsize=9)
        return saved(figure, folder, name, 150)


def quality_against_descriptors(table: Table, points: Mapping[str, tuple[str, int]], folder: Path, name: str) -> Path:
    """A sweep: quality against descriptors and KiB an image, and ms a pair against descriptors; the file written.

    `points` gives each row's method and budget; a line a method. Descriptors and KiB are those counted in the runs.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    import seaborn as sns
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

    quality = _quality(table)
    rows = table.rows.loc[list(points)].assign(method=[method for method, _ in points.values()])
    budgets = sorted({budget for _, budget in points.values()})
    panels = (
        ("desc mean", quality, "local descriptors per image (mean, log scale)", f"{quality} (%)"),
        ("KiB/image", quality, "KiB per image, all that the method reads (log scale)", f"{quality} (%)"),
        ("desc mean", "ms/pair", "local descriptors per image (mean, log scale)", "ms per pair, median (log scale)"),
    )
    with sns.axes_style("whitegrid"):
        figure, places = plt.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
        for axes, (x, y, x_label, y_label) in zip(places, panels, strict=True):
            sns.lineplot(
                rows,
                x=x,
                y=y,
                hue="method",
                style="method",
                markers=True,
                dashes=False,
                markersize=8,
                palette="colorblind",
                legend=axes is places[0],
                estimator=None,
                ax=axes,
            )
            axes.set_xscale("log")
            axes.set(xlabel=x_label, ylabel=y_label)
            if x == "desc mean":
                axes.xaxis.set_major_locator(FixedLocator(budgets))
            else:
                axes.xaxis.set_major_locator(FixedLocator([2.0**n for n in range(-3, 12)]))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
            if y == quality:
                _bounds(axes, table)
            else:
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        places[0].legend(title=None, fontsize=9)
        figure.suptitle(shown(table.title), fontsize=9)
        return saved(figure, folder, name, 150)
