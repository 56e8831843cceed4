"""What the README and the pages show is run, parsed or looked up."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from string import Template
from typing import Any

import click
import pytest

from bench import registry
from bench.cascade import parse_stages
from bench.conformance import check_reranker
from bench.datasets import catalogue
from bench.datasets.catalogue import sources_of
from bench.errors import UserError
from bench.features.sets import EXTRACTORS, IMPORTS
from bench.first_stages import names as first_stages
from bench.rows import Asked
from bench.sweep import Varied
from cli import main

REPOSITORY = Path(__file__).resolve().parent.parent
README = REPOSITORY / "README.md"
PAGES = [README, *sorted((REPOSITORY / "docs").glob("*.md")), *sorted((REPOSITORY / "methods").glob("*/CARD.md"))]
PLUGIN = REPOSITORY / "tests" / "plugin" / "rerankbench_hamming"
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
WORKFLOW = REPOSITORY / ".github" / "workflows" / "rerank.yml"
PROGRAM = "python cli.py "
PROSE = (
    "data-sets",
    "design",
    "extending",
    "features",
    "learned-rerankers",
    "measurements",
    "methods",
    "protocols",
    "reading",
    "regression",
    "scale",
    "training",
)
LARGEST, LONGEST = 7 * 1024, 25  # bytes of the README, words of a sentence

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))


def blocks(page: Path) -> list[str]:
    return [code for language, code in FENCED.findall(page.read_text()) if language == "python"]


def commands(text: str) -> list[list[str]]:
    """Arguments of every `python cli.py …` in a page's blocks and in its running text."""
    lines = [line for _, block in FENCED.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", FENCED.sub("", text))]
    return [shlex.split(line.removeprefix(PROGRAM), comments=True) for line in lines if line.startswith(PROGRAM)]


def parsed(arguments: list[str]) -> dict[str, Any]:
    """Options and arguments of a command as its user gives them, and as refused as theirs; nothing is run.

    There are none where only its help is asked for.
    """
    context = click.Context(main, **main.context_settings)
    while isinstance(context.command, click.Group):
        if not arguments and context.command.invoke_without_command:
            return {}
        name, command, arguments = context.command.resolve_command(context, arguments)
        assert command is not None
        if isinstance(command, click.Group):
            context = click.Context(command, info_name=name, parent=context)
            continue
        try:
            context = command.make_context(name, list(arguments), parent=context)
        except click.exceptions.Exit as end:
            assert end.exit_code == 0 and "--help" in arguments
            return {}
    return context.params


def require_names(arguments: list[str]) -> None:
    """That what a command names exists; files and weights need not."""
    for name, value in parsed(arguments).items():
        if value and name in REQUIRED:
            REQUIRED[name](value)


def require_row(text: str) -> None:
    """The method is registered, and its features are of extractors or imports that are known; weights need not be."""
    asked = Asked.parse(text)
    if asked.method != "all":
        registry.get(asked.method)
    require_features(asked.features)


def require_features(text: str | None) -> None:
    for part in (text or "").split("+") if text else ():
        assert part.partition(":")[0] in {*EXTRACTORS.names(), *IMPORTS.names()}, text


def require_option(method: str, option: str) -> None:
    known = {field.name for field in fields(registry.get(Asked.parse(method).method).Options)}
    assert option in known, f"{method}.{option}"


def require_stages(texts: list[str]) -> None:
    for stage in parse_stages(texts):
        require_row(stage.row)
        for option, _ in stage.options:
            require_option(stage.method, option)


def require_given(text: str) -> None:
    """-o METHOD[@FEATURES].OPTION=VALUE."""
    target, _, value = text.partition("=")
    method, _, option = target.rpartition(".")
    require_row(method)
    require_option(method, option)
    if (method, option) == ("cascade", "stages"):
        require_stages(value.split(","))


def require_varied(text: str) -> None:
    varied = Varied.parse(text)
    require_row(varied.method)
    require_option(varied.method, varied.option)


def require_first_stage(text: str) -> None:
    if not text.startswith("list:"):
        first_stages.parse(text)


# option or argument of any command -> what must hold of what is given
REQUIRED: Mapping[str, Callable[[Any], object]] = {
    "method": lambda text: [require_row(row.strip()) for row in text.split(",")],
    "options": lambda texts: [require_given(text) for text in texts],
    "vary": lambda texts: [require_varied(text) for text in texts],
    "cascade": lambda texts: [require_stages(text.split(",")) for text in texts],
    "worst": lambda text: [require_row(row) for row in text.split(",")],
    "first_stage": require_first_stage,
    "stages": lambda texts: [require_first_stage(text) for text in texts],
    "features": require_features,
    "dataset": lambda text: catalogue.get(text.partition(":")[0]),
    "whiten": lambda text: catalogue.get(text.partition(":")[0]),
    "local": lambda text: EXTRACTORS.get(text),
    "name": sources_of,
    "kind": lambda text: IMPORTS.get(text),
}


@each_page
def test_what_the_commands_of_a_page_name_exists(page: Path) -> None:
    shown = commands(page.read_text())
    assert shown or page.parent == REPOSITORY / "docs"
    for arguments in shown:
        require_names(arguments)


@pytest.mark.parametrize(
    "wrong",
    [
        "run -d demo -m mnn --no-such-option",
        "run -d demo",  # without its --method
        "no-such-command",
        "features no-such-command",
        "run -d demo -m mnn -k none",
    ],
)
def test_a_command_that_a_user_could_not_give_is_found(wrong: str) -> None:
    (arguments,) = commands(f"text `{PROGRAM}{wrong}` text")
    with pytest.raises(click.UsageError):
        parsed(arguments)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ("run -d demo -m mnm", "mnm"),
        ("run -d demo -m mnn@xfeet", "xfeet"),
        ("run -d demo -m mnn -o mnn.descriptor=5", "mnn.descriptor"),
        ("run -d demo -m cascade -o cascade.stages=rrt,lightgleu:20", "lightgleu"),
        ("run -d demo -m cascade -o cascade.stages=rrt,mnn:20:descriptor=5", "mnn.descriptor"),
        ("run -d dema -m mnn", "dema"),
        ("run -d demo -m mnn --first-stage asmc@xfeat", "asmc"),
        ("first-stages -d demo --first-stage 'sum:gem-lite0,asmc@xfeat'", "asmc"),
        ("sweep -d demo -m mnn --out DIR --vary mnn.seed=1,2", "mnn.seed"),
        ("report --cascade rrt,lightgleu:20", "lightgleu"),
        ("datasets download roxfort", "roxfort"),
        ("features import hlog FILE -d demo", "hlog"),
    ],
)
def test_a_name_that_does_not_exist_is_found(wrong: str, name: str) -> None:
    (arguments,) = commands(f"```\n{PROGRAM}{wrong}  # a remark\n```\n")
    parsed(arguments)  # its options do
    with pytest.raises((UserError, AssertionError), match=re.escape(name)):
        require_names(arguments)


def steps() -> tuple[Mapping[str, str], list[dict[str, Any]]]:
    """The variables and the steps of the workflow's only job."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    ((_, job),) = yaml.safe_load(WORKFLOW.read_text())["jobs"].items()
    return job["env"], job["steps"]


def scripted(run: str, variables: Mapping[str, str]) -> list[list[str]]:
    """Arguments of every `python cli.py …` of a step's script, with its variables as they are."""
    lines = [line.strip() for line in Template(run.replace("\\\n", " ")).substitute(variables).splitlines()]
    return [shlex.split(line.removeprefix(PROGRAM)) for line in lines if line.startswith(PROGRAM)]


def test_the_workflow_measures_in_turn_what_it_compares() -> None:
    env, all_steps = steps()
    given: dict[str, list[dict[str, Any]]] = {"run": [], "check": []}
    for turn in "123":
        for side in ("base", "head"):
            where = {**env, "GITHUB_WORKSPACE": "/w", "GITHUB_STEP_SUMMARY": "/s", "turn": turn, "side": side}
            for step in all_steps:
                for arguments in scripted(step.get("run", ""), where):
                    require_names(arguments)
                    given[arguments[0]].append(parsed(arguments))
    assert sum(step.get("run", "").count(PROGRAM) for step in all_steps) == 2  # none that was not read
    check = given["check"][0]
    assert [command["runs"] for command in given["run"]] == [
        folder for pair in zip(check["base"], check["head"], strict=True) for folder in pair
    ]
    assert len({command["cache_dir"] for command in given["run"]}) == 2
    kept = next(step["with"]["path"].split() for step in all_steps if "upload-artifact" in step.get("uses", ""))
    assert kept == [check["summary"].name, check["junit"].name]


def test_the_workflow_pins_actions_and_names_no_address() -> None:
    _, all_steps = steps()
    used = [step["uses"] for step in all_steps if "uses" in step]
    assert used and all(re.fullmatch(r"actions/[a-z-]+@v\d+", name) for name in used)
    assert "://" not in WORKFLOW.read_text() and "index-url" not in WORKFLOW.read_text()
    (setup,) = (step["with"] for step in all_steps if "setup-python" in step.get("uses", ""))
    assert setup["cache"] == "pip" and setup["cache-dependency-path"] == "head/pyproject.toml"
    assert any("[cpu]" in step.get("run", "") for step in all_steps)
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "cpu" in extras


def test_the_example_reranker_of_the_readme_conforms() -> None:
    example, check = blocks(README)
    names: dict = {}
    for code in (example, check):
        exec(compile(code, str(README), "exec"), names)
    assert names["Chamfer"].spec.name == "chamfer"
    check_reranker(names["Chamfer"], names["Chamfer"].Options(descriptors=3))


@pytest.mark.parametrize("name", ["__init__.py", "colours.py"])
def test_the_page_on_extending_shows_the_files_that_are_installed_here(name: str) -> None:
    assert (PLUGIN / name).read_text() in blocks(REPOSITORY / "docs" / "extending.md")


def test_the_readme_is_short() -> None:
    assert len(README.read_bytes()) <= LARGEST


def sentences(text: str) -> Iterator[str]:
    """Of running text and lists: without code blocks, tables, headings and remarks; inline code and links are words."""
    text = re.sub(r"<!--.*?-->", "", FENCED.sub("\n\n", text), flags=re.DOTALL)
    text = LINK.sub(r"\1", re.sub(r"`[^`]+`", "code", text))
    text = re.sub(r"^(\||#).*$", "", text, flags=re.MULTILINE)
    for passage in re.split(r"\n\s*\n|^\s*(?:[-*]|\d+\.) ", text, flags=re.MULTILINE):
        yield from (part for part in re.split(r"(?<=[.!?])\s+", passage.strip()) if part)


def too_long(text: str) -> list[str]:
    return [sentence for sentence in sentences(text) if len(sentence.split()) > LONGEST]


@pytest.mark.parametrize(
    "page", [README, *(REPOSITORY / "docs" / f"{name}.md" for name in PROSE)], ids=lambda p: p.name
)
def test_no_sentence_of_a_page_is_long(page: Path) -> None:
    text = page.read_text()
    assert len(list(sentences(text))) > 10 and not too_long(text)


def test_a_sentence_that_is_long_is_found() -> None:
    words = " ".join(["word"] * LONGEST)
    short = f"# {words} word\n\n| {words} word |\n\n{words}.\n{words} [word.](page.md)\n\n```\n{words} word\n```\n"
    assert too_long(short) == [f"{words} word."]
    assert not too_long(f"{words}. {words}!\n\n- {words}\n- {words}\n")
    assert too_long(f"- {words}\n  and more\n")


def anchors(page: Path) -> set[str]:
    """Of its headings, as a reader's browser has them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_what_a_page_links_to_is_there(page: Path) -> None:
    for _, target in LINK.findall(FENCED.sub("", page.read_text())):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), target


def test_the_readme_links_to_every_page() -> None:
    linked = {target.partition("#")[0] for _, target in LINK.findall(README.read_text())}
    assert {f"docs/{page.name}" for page in (REPOSITORY / "docs").glob("*.md")} <= linked
