"""Google Landmarks: the lists that label its training images, as DELG and RRT or as GLDv2 itself write them."""

from __future__ import annotations

import csv
from pathlib import Path

from bench.errors import UserError


def read_list(path: Path) -> dict[str, str]:
    """Label by image name, in the list's order. UserError naming the line for what is neither of the two formats."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    header = lines[0].split(",") if lines else []
    if {"landmark_id", "images"} <= set(header):
        rows = [(name, row["landmark_id"]) for row in csv.DictReader(lines) for name in (row["images"] or "").split()]
    else:
        rows = []
        for number, line in enumerate(lines, 1):
            parts = [part.strip() for part in line.rsplit(",", 3)]
            if len(parts) != 4 or not all(parts[:2]) or not (parts[2].isdigit() and parts[3].isdigit()):
                raise UserError(
                    f"{path}, line {number}: found {line[:80]!r}, expected jpg/NAME.jpg,LABEL,WIDTH,HEIGHT",
                    hint="or GLDv2's train_clean.csv, with the header landmark_id,images",
                )
            rows.append((parts[0], parts[1]))
    found: dict[str, str] = {}
    for name, label in rows:
        if found.setdefault(name, label) != label:
            raise UserError(f"{path}: {name!r} has the labels {found[name]!r} and {label!r}")
    return found
