"""Tables as text: Markdown, CSV, JSON lines and LaTeX, and the cells that all of them show."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from bench.errors import unknown
from bench.names import without_folders
from bench.report.columns import Column
from bench.report.latex import comment, escaped
from bench.report.notes import machine
from bench.report.tables import Table
from bench.report.verdict import SURE


def with_columns(tables: Sequence[Table], asked: Sequence[str]) -> list[Table]:
    """The tables with these columns alone, in their order: each by its name, or by what several names begin with.

    A table without one of them is shown without it. UserError for one that no table has.
    """
    found: list[dict[str, Column]] = [{} for _ in tables]
    for text in map(str.strip, asked):
        for table, kept in zip(tables, found, strict=True):
            exact = [column for column in table.columns if column.name == text]
            begin = [column for column in table.columns if column.name.startswith(f"{text} ")]
            kept |= {column.name: column for column in exact or begin}
        known = dict.fromkeys(column.name for table in tables for column in table.columns)
        if not any(name == text or name.startswith(f"{text} ") for name in known):
            raise unknown("column", text, known)
    return [replace(table, columns=tuple(kept.values())) for table, kept in zip(tables, found, strict=True)]


def worth_saying(table: Table) -> tuple[Column, ...]:
    """The columns that say something: not without any value, and none of quality that repeats one before it."""
    kept: list[Column] = []
    quality = {column.name for column in table.columns if column.meaning.endswith("percent")}
    for column in table.columns:
        values = table.rows[column.name]
        repeated = (
            column.name in quality
            and len(values) > 1
            and any(values.equals(table.rows[other.name]) for other in kept if other.name in quality)
        )
        if values.notna().any() and not repeated:
            kept.append(column)
    return tuple(kept)


def _text(value: float, column: Column) -> str:
    if column.least is not None and value < column.least:
        return f"<{column.least:g}"
    return "–" if np.isnan(value) else f"{value:{'+' if column.signed else ''}.{column.digits}f}"


def cells(table: Table) -> list[list[str]]:
    """The table as text, a list a row, without its header: row, what it reads, and the columns."""
    return [
        [
            name + ("*" if name in table.controls else ""),
            table.features[name] or "–",
            *(_text(float(table.rows.loc[name, c.name]), c) for c in table.columns),
        ]
        for name in table.rows.index
    ]


def best(table: Table) -> dict[str, set[str]]:
    """Column of which more is better -> the contenders with the most, where there are several to compare."""
    rows = table.rows.loc[[name for name in table.rows.index if name not in table.controls]]
    if len(rows) < 2:
        return {}
    columns = [column.name for column in table.columns if column.better > 0]
    return {name: set(rows.index[rows[name] == rows[name].max()]) for name in columns}


def caption(table: Table) -> str:
    """What a table is of, and on what it was measured, for a reader who sees nothing else."""
    about = table.about
    said = [f"image set {about['image_set']}", f"policy {about['policy']}", f"k = {about['k']}"]
    if "first_stage" in about:
        said.append(f"first stage {about['first_stage']}")
    if "seal" in about:
        said.append(f"seal {str(about['seal'])[:8]}")
    if isinstance(hardware := about.get("hardware"), Mapping):
        said.append(f"measured on {machine(hardware)}")
    bold = " Bold: the best contender, where more is better." if best(table) else ""
    return f"{about['dataset']}: {'; '.join(said)}.{bold}"


def to_markdown(table: Table) -> str:
    header, leading = [table.of, "features", *(c.name for c in table.columns)], best(table)
    lines = [
        f"### {table.title}",
        "",
        *([table.answer, ""] if table.answer else []),
        caption(table),
        "",
        "| " + " | ".join(header) + " |",
        "|" + "|".join(["---", "---", *["---:"] * len(table.columns)]) + "|",
    ]
    for name, row in zip(table.rows.index, cells(table), strict=True):
        marked = [
            f"**{text}**" if name in leading.get(column.name, ()) else text
            for column, text in zip(table.columns, row[2:], strict=True)
        ]
        lines.append("| " + " | ".join([*row[:2], *marked]) + " |")
    return "\n".join([*lines, "", *(f"- {note}" for note in (*table.notes, *table.cards)), ""])


def to_csv(*tables: Table) -> str:
    """Unrounded values, one line a row of each table; a column that a table has not is empty in its lines."""
    return pd.concat(map(_records, tables), ignore_index=True).to_csv(index=False)


def _records(table: Table) -> pd.DataFrame:
    """The rows with what they are of: which rows stand in one table is told by seal and machine."""
    kept = ("dataset", "first_stage", "policy", "k", "seal", "blend")
    about = {key: str(table.about[key]) for key in kept if key in table.about}
    if isinstance(hardware := table.about.get("hardware"), Mapping):
        about["machine"] = machine(hardware)
    return (
        table.rows[[column.name for column in table.columns]]
        .rename_axis(table.of)
        .reset_index()
        .assign(features=[table.features[name] for name in table.rows.index])
        .assign(control=[name in table.controls for name in table.rows.index], **about)
    )


def to_json(table: Table) -> str:
    """The table on one line, so that several tables are JSON lines."""
    rows = [
        {
            table.of: name,
            "features": table.features[name],
            "control": name in table.controls,
            **{c.name: None if np.isnan(v := float(table.rows.loc[name, c.name])) else v for c in table.columns},
        }
        for name in table.rows.index
    ]
    return json.dumps({**table.about, "answer": table.answer, "rows": rows, "notes": table.notes, "cards": table.cards})


def to_latex(table: Table) -> str:
    """A floating table that needs the package booktabs; title, answer and notes are comments."""
    columns = [table.of, "features", *(column.name for column in table.columns)]
    marks = [rf" $^{{*}}$ after a gain: corrected $p < {SURE:g}$."] if _starred(table) else []
    marks += [r" $^{\dagger}$: a control, not a contender."] if table.controls else []
    return "\n".join(
        [
            comment(table.title),
            *([comment(table.answer)] if table.answer else []),
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escaped(caption(table))}{''.join(marks)}}}",
            r"\begin{tabular}{ll" + "r" * len(table.columns) + "}",
            r"\toprule",
            " & ".join(map(escaped, columns)) + r" \\",
            r"\midrule",
            *(" & ".join(row) + r" \\" for row in _latex_cells(table)),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            *map(comment, (*table.notes, *table.cards)),
            "",
        ]
    )


def _starred(table: Table) -> set[str]:
    """The rows whose gain, where it is shown, is more than chance explains."""
    if "p" not in table.rows or "gain" not in [column.name for column in table.columns]:
        return set()
    return set(table.rows.index[table.rows["p"] < SURE])


def _latex_cells(table: Table) -> list[list[str]]:
    leading, starred, rows = best(table), _starred(table), []
    short = without_folders([str(name) for name in table.rows.index])
    for name, texts in zip(table.rows.index, cells(table), strict=True):
        row = [escaped(short[str(name)]) + (r"$^{\dagger}$" if name in table.controls else ""), escaped(texts[1])]
        for column, text in zip(table.columns, texts[2:], strict=True):
            shown = re.sub(r"^-(?=\d)", "$-$", escaped(text))
            if name in leading.get(column.name, ()):
                shown = rf"\textbf{{{shown}}}"
            row.append(shown + "$^{*}$" * (column.name == "gain" and name in starred))
        rows.append(row)
    return rows


FORMATS: Mapping[str, Callable[[Table], str]] = {"md": to_markdown, "csv": to_csv, "latex": to_latex, "json": to_json}
