"""Pictures of a comparison."""

from __future__ import annotations

from pathlib import Path

from bench.report.tables import Table


def quality_against_time(table: Table, folder: Path, name: str) -> Path:
    """mAP against ms per query, one point a method, marker area by KiB per image; the file written."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    import seaborn as sns

    quality = next(c.name for c in table.columns if c.name in ("mAP Medium", "mAP All"))
    rows = table.rows.rename_axis("method").reset_index()
    rows["kind"] = ["control" if m in table.controls else "reranker" for m in rows.method]
    with sns.axes_style("whitegrid"):
        figure, axes = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
        sns.scatterplot(rows, x="ms/query p50", y=quality, hue="kind", style="kind", size="KiB/image", sizes=(50, 300),
                        palette={"control": "0.6", "reranker": "tab:blue"}, ax=axes)
        for index, (_, row) in enumerate(rows.sort_values(quality).iterrows()):
            axes.annotate(row["method"], (row["ms/query p50"], row[quality]), xytext=(7, 4 if index % 2 else -11),
                          textcoords="offset points", fontsize=9)
        axes.set_xscale("log")
        axes.set(xlabel=f"ms per query, median, top-{table.about['k']} (log scale)", ylabel=f"{quality} (%)")
        axes.set_title(table.title, fontsize=8, wrap=True, parse_math=False)
        sns.move_legend(axes, "center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=150)
        plt.close(figure)
    return path
