"""Pictures of a comparison."""

from __future__ import annotations

from pathlib import Path

from bench.report.tables import Table


def quality_against_time(table: Table, folder: Path, name: str) -> Path:
    """mAP against median ms per query, one point a reranker, between first stage and ceiling; the file written."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    import seaborn as sns

    quality = next(c.name for c in table.columns if c.name in ("mAP Medium", "mAP All"))
    rows = table.rows[[method not in table.controls for method in table.rows.index]].rename_axis("method").reset_index()
    with sns.axes_style("whitegrid"):
        figure, axes = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
        sns.scatterplot(rows, x="ms/query p50", y=quality, hue="method", s=90, legend=False, ax=axes)
        for place, (_, row) in enumerate(rows.sort_values("ms/query p50").iterrows()):
            above = place % 2 == 0  # neighbours in time write on different sides, so that close points stay readable
            axes.annotate(
                f"{row['method']}\n{row['KiB/image']:.1f} KiB/image",
                (row["ms/query p50"], row[quality]),
                xytext=(0, 9 if above else -9),
                textcoords="offset points",
                fontsize=8,
                ha="center",
                va="bottom" if above else "top",
            )
        for level, text in ((table.first_stage, "first stage"), (table.ceiling, "ceiling of the shortlists")):
            axes.axhline(level, linestyle="--", color="0.5", linewidth=1)
            axes.annotate(
                text,
                (0.01, level),
                xycoords=("axes fraction", "data"),
                xytext=(0, 2),
                textcoords="offset points",
                fontsize=8,
                color="0.4",
            )
        axes.set_xscale("log")
        if len(rows):
            axes.set_xlim(rows["ms/query p50"].min() / 3, rows["ms/query p50"].max() * 3)
        low, high = min([table.first_stage, *rows[quality]]), max([table.ceiling, *rows[quality]])
        axes.set_ylim(low - 0.1 * (high - low) - 1, high + 0.1 * (high - low) + 1)
        axes.set(xlabel=f"ms per query, median, {table.about['k']} candidates (log scale)", ylabel=f"{quality} (%)")
        axes.set_title(table.title.replace(" · policy", "\npolicy"), fontsize=9)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=150)
        plt.close(figure)
    return path
