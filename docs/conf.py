"""How the pages are built: `make docs`. No server is asked.

The source folder is the repository, so a link between README, pages and cards is the same here and on a git host.
"""

from __future__ import annotations

import inspect
import re
import shutil
import sys
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from bench import __version__  # noqa: E402
from bench.options import described  # noqa: E402

project = "rerankbench"
version = release = __version__
copyright = "its authors, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click"]
root_doc = "README"
include_patterns = ["README.md", "docs/*.md", "docs/reference/*.rst", "methods/*/CARD.md"]
exclude_patterns = ["docs/_build", ".*", "results", "tests", "bench", "third_party", "build"]

myst_heading_anchors = 4
highlight_language = "none"  # most blocks are commands and layouts of folders
smartquotes = False  # a command's -- stays as it is typed
default_role = "code"  # docstrings are prose with code in single backticks

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90

html_theme = "furo"
html_title = f"rerankbench {__version__}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_sphinx = False

# pages in the order of a reader; those that are not named here come last
ORDER = (
    "reading",
    "methods",
    "features",
    "data-sets",
    "extending",
    "training",
    "learned-rerankers",
    "measurements",
    "scale",
    "regression",
    "protocols",
    "design",
)


def contents() -> str:
    """Tables of contents for the side of every page."""
    pages = {file.stem for file in REPOSITORY.glob("docs/*.md")}
    ordered = [name for name in ORDER if name in pages] + sorted(pages - set(ORDER))
    cards = sorted(REPOSITORY.glob("methods/*/CARD.md"))
    parts = {
        "Pages": [f"docs/{name}" for name in ordered],
        "Reference": ["docs/reference/commands", "docs/reference/python"],
        "Shipped weights": [f"methods/{card.parent.name}/CARD" for card in cards],
    }
    return "".join(
        f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(names) + "\n```\n"
        for caption, names in parts.items()
    )


def with_contents(app: Sphinx, page: str, source: list[str]) -> None:
    """The README with the table of contents, which a git host has no use for."""
    if page == root_doc:
        source[0] += contents()


def with_fields(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """A dataclass with the remarks behind its fields: shapes, units and ranges stand there."""
    if what == "class" and inspect.isclass(value) and is_dataclass(value):
        names = {field: re.sub(r"_$", r"\\_", field) for field in described(value)}  # a last _ makes a link otherwise
        lines += ["", *(f":param {names[field]}: {meaning}" for field, meaning in described(value).items()), ""]


def without_mail(app: Sphinx, tree: nodes.document) -> None:
    """METHOD@FEATURES is no address."""
    for link in list(tree.findall(nodes.reference)):
        if link.get("refuri", "").startswith("mailto:"):
            link.replace_self(nodes.Text(link.astext()))


def with_index(app: Sphinx, error: Exception | None) -> None:
    """A copy of the first page under the name that a browser asks for."""
    if error is None and app.builder.name == "html":
        shutil.copyfile(Path(app.outdir, f"{root_doc}.html"), Path(app.outdir, "index.html"))


def setup(app: Sphinx) -> None:
    app.connect("source-read", with_contents)
    app.connect("autodoc-process-docstring", with_fields)
    app.connect("doctree-read", without_mail)
    app.connect("build-finished", with_index)
