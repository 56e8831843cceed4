"""What every command shares: errors as click's, an output that always can be written, folders, formats."""

from __future__ import annotations

import codecs
import errno
import io
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

import click

SPARE = {"·": "|", "–": "-", "—": "-", "…": ".", "×": "x", "±": "~", "−": "-", "≥": ">", "≤": "<"}  # of one column each


def _written_otherwise(error: UnicodeError) -> tuple[str, int]:
    """An error handler of codecs: what a terminal cannot show is shown as something like it, and stray bytes as \\x…"""
    from bench.names import shown

    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(SPARE.get(c, c if c.isascii() else "?") for c in shown(letters)), error.end


class Commands(click.Group):
    """Turns the project's own errors into click's: a message and a hint, exit status 1, no traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        codecs.register_error("written otherwise", _written_otherwise)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="written otherwise")
        try:
            return super().main(*args, **kwargs)
        except OSError as error:  # of a usage or help text that could not be printed
            click.echo(f"Error: {_of_system(error)}", err=True)
            raise SystemExit(1) from error
        finally:
            _close_output()

    def invoke(self, ctx: click.Context) -> Any:
        from bench.errors import UserError

        try:
            return super().invoke(ctx)
        except UserError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            raise click.ClickException("interrupted; run the same command again to go on where it stopped") from None
        except OSError as error:
            if error.errno is None or error.errno == errno.EPIPE:  # a reader that has read enough; click ends quietly
                raise
            raise click.ClickException(_of_system(error)) from error


def _of_system(error: OSError) -> str:
    """What the system refused, for the user: of a file, or of the output, whose errors name no file."""
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename is not None else f"cannot write to the output: {reason}"


def _close_output() -> None:
    """Print what is left; what cannot be printed is thrown away, since Python would try again and complain at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Folder(click.Path):
    """A folder to read or write: not a file, not below one, and with a name that can be written down."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, file_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        if (wrong := wrong_folder(os.fspath(value))) is not None:
            self.fail(wrong, param, ctx)
        return path


def wrong_folder(folder: str) -> str | None:
    """Why no folder can be of that name, or None."""
    from bench.names import encodable, shown

    if not folder:
        return "the name of the folder is empty"
    if not encodable(folder):
        return f"{shown(folder)}: the name is not UTF-8; rename the folder, or link to it under another name"
    above = next((path for path in (Path(folder), *Path(folder).parents) if os.path.lexists(path)), None)
    if above is not None and not above.is_dir():
        return f"{folder}: {above} is a file, a folder was expected"
    return None


def folders(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say where things are, handed on as `places`."""

    @click.option("--cache-dir", type=Folder(), help="Generated images and features. [RERANKBENCH_CACHE]")
    @click.option("--data-root", type=Folder(), help="Official data sets. [RERANKBENCH_DATA]")
    @click.option("--runs", type=Folder(), help="Results. [RERANKBENCH_RUNS]")
    @wraps(command)
    def wrapped(*args: Any, cache_dir: Path | None, data_root: Path | None, runs: Path | None, **kwargs: Any) -> Any:
        from bench.errors import UserError
        from bench.places import Places

        places = Places.of(cache_dir, data_root, runs)
        for what, place in vars(places).items():  # those of the environment, too
            if (wrong := wrong_folder(os.fspath(place))) is not None:
                raise UserError(wrong, hint=f"RERANKBENCH_{what.upper()} names a folder")
        return command(*args, places=places, **kwargs)

    return wrapped


def given_folders() -> str:
    """The options of `folders` that this command was given, for the next one; empty where there are none."""
    given = click.get_current_context().params
    options = {"--cache-dir": given.get("cache_dir"), "--data-root": given.get("data_root")}
    return "".join(f" {option} {shlex.quote(str(path))}" for option, path in options.items() if path is not None)


form_option = click.option(
    "--format",
    "form",
    type=click.Choice(["terminal", "md", "csv", "latex", "json"]),
    default="terminal",
    show_default=True,
)


blend_option = click.option(
    "--blend",
    default="replace",
    show_default=True,
    help="replace, add:WEIGHT or sigmoid:LAMBDA,GAMMA; replayed from stored scores.",
)
