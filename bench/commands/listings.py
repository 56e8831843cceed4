"""Commands that say what is here: methods, doctor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.commands.shell import folders

if TYPE_CHECKING:
    from bench.places import Places
    from bench.rows import Wanted


@click.command()
@click.option("--features", "-f", default="xfeat", show_default=True, help="Say what can run on this feature set.")
def methods(features: str) -> None:
    """List the rerankers: what they read, their options and licences, and whether they can run here."""
    import dataclasses

    from bench import registry
    from bench.errors import UserError
    from bench.features.sets import card_of
    from bench.report.terminal import print_listing
    from bench.rows import Asked, wanted

    card, rows = card_of(features), []
    for name in registry.names():
        try:
            cls = registry.get(name)
        except UserError as error:
            rows.append((name, "", "", "", error.message))
            continue
        found = wanted(Asked(name), cls(), features, frozenset())
        options = ", ".join(f"{f.name}={getattr(cls.Options(), f.name)}" for f in dataclasses.fields(cls.Options))
        rows.append(
            (
                name + ("*" if cls.spec.control else ""),
                ", ".join(sorted(cls().needs())),
                options.replace(str(Path.cwd()) + os.sep, ""),
                cls.spec.card.licence,
                found if isinstance(found, str) else _reads(found, card.known),
            )
        )
    print_listing(("method", "reads", "options", "licence", f"here, with --features {features}"), rows)
    click.echo("* control: a floor, a ceiling or a sentinel")


def _reads(row: Wanted, known: bool) -> str:
    """What a method would read."""
    names = dict.fromkeys(
        read.name
        for part in (row.parts or (row,))
        for name in part.choices[:1]
        if (read := name.reading(part.method.needs()))
    )
    on = f", reads {', '.join(names)}" if names else ""
    return f"ready{on}" if known or not names else f"as the imported files are{on}"


@click.command()
@folders
def doctor(places: Places) -> None:
    """Examine environment, devices, threads, packages and folders; exit 1 if something must be mended."""
    from bench.doctor import examine

    answers = examine(places)
    for answer in answers:
        click.echo(
            f"{'ok  ' if answer.ok else 'FAIL'}  {answer.what}: {answer.found}"
            + ("" if answer.ok else f"  -> {answer.todo}")
        )
    if not all(answer.ok for answer in answers):
        raise SystemExit(1)
