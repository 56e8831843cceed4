"""Methods and plugins are known by name; a broken one is visible and stops nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from click.testing import Result

from bench import doors, registry
from bench.errors import UserError
from bench.reranker import Card, Reranker

CONTROLS = {"identity", "constant", "random", "reverse", "oracle"}


def test_the_registry_knows_the_controls_and_the_matchers() -> None:
    assert CONTROLS | {"ransac", "lightglue", "rrt"} <= set(registry.names())
    for name in registry.names():
        cls = registry.get(name)
        assert cls.spec.name == name and cls.spec.control == (name in CONTROLS) and cls.__doc__


PLUGINS = {
    "good_plugin": """
from bench.reranker import Card, Reranker, register
@register("backwards", needs=(), card=Card(paper=None, licence="MIT"))
class Backwards(Reranker):
    "The first stage, backwards."
    def score(self, query, candidates):
        return -candidates.similarities
""",
    "broken_plugin": "import a_package_that_is_not_there\n",
    "crashing_plugin": "raise SystemError('very broken')\n",
    "empty_plugin": "class NotAReranker: pass\n",
}


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`plugins(name="module:attribute", …)`: entry points of installed packages, as the registry sees them."""
    place = tmp_path / "site"
    place.mkdir()
    for module, source in PLUGINS.items():
        (place / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(str(place))
    for module in PLUGINS:
        monkeypatch.delitem(sys.modules, module, raising=False)

    def install(**points: str) -> None:
        def found(group: str) -> list[EntryPoint]:
            if group != "rerankbench.rerankers":
                return []
            return [EntryPoint(name.replace("_", "-"), value, group) for name, value in points.items()]

        monkeypatch.setattr(doors, "installed", found)

    return install


def test_a_plugin_is_a_method_like_any_other(plugins: Callable[..., None], run: Callable, instances: Path) -> None:
    plugins(backwards="good_plugin:Backwards")
    assert "backwards" in registry.names()
    done = run(instances, "backwards,reverse").run
    table = done.scores.set_index(["method", "query", "candidate"]).score
    assert table["backwards"].equals(table["reverse"])


def test_a_plugin_may_name_its_module(plugins: Callable[..., None]) -> None:
    plugins(backwards="good_plugin")
    assert registry.get("backwards").__name__ == "Backwards"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("broken_plugin:X", "ModuleNotFoundError: No module named 'a_package_that_is_not_there'"),
        ("crashing_plugin:X", "SystemError: very broken"),
        ("good_plugin:Missing", "AttributeError"),
        ("empty_plugin:NotAReranker", "expected exactly one method registered as 'odd', found 0"),
        ("good_plugin:Backwards", "expected exactly one method registered as 'odd', found 0"),
        ("nothing", "ModuleNotFoundError"),
    ],
)
def test_a_broken_plugin_is_listed_with_its_error_and_stops_nothing_else(
    plugins: Callable[..., None], run: Callable, cli: Callable[..., Result], instances: Path, value: str, said: str
) -> None:
    plugins(odd=value)
    assert "odd" in registry.names() and registry.get("ransac")
    with pytest.raises(UserError, match="method 'odd' cannot be loaded") as refusal:
        registry.get("odd")
    assert said in str(refusal.value) and refusal.value.hint
    with pytest.raises(UserError, match="method 'odd' cannot be loaded"):
        run(instances, "identity,odd")
    listed = " ".join(cli("methods").output.split())
    assert "odd" in listed and "cannot be loaded" in listed and "ransac" in listed


def test_with_all_a_broken_plugin_is_a_reported_skip(
    plugins: Callable[..., None], run: Callable, instances: Path
) -> None:
    plugins(odd="broken_plugin:X")
    done = run(instances, "all", top_k=1).run
    assert "cannot be loaded" in done.record.skipped["odd"] and "identity" in done.record.costs


def test_two_plugins_of_one_name_are_refused(plugins: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    plugins()
    point = EntryPoint("backwards", "good_plugin:Backwards", "rerankbench.rerankers")
    other = EntryPoint("backwards", "empty_plugin:NotAReranker", "rerankbench.rerankers")
    monkeypatch.setattr(doors, "installed", lambda group: [point, other] if group == point.group else [])
    with pytest.raises(UserError, match="is registered by") as refusal:
        registry.get("backwards")
    assert "empty_plugin:NotAReranker" in str(refusal.value) and "good_plugin:Backwards" in str(refusal.value)


def test_a_plugin_cannot_take_the_name_of_a_method_that_is_here(plugins: Callable[..., None]) -> None:
    plugins(identity="good_plugin:Backwards")
    with pytest.raises(UserError, match="'identity' is registered by good_plugin:Backwards and by methods/identity"):
        registry.get("identity")
    assert registry.get("ransac")


def declare(needs: set[str] = frozenset(), control: bool = False, **body: object) -> type[Reranker]:  # type: ignore[assignment]
    cls = type("Declared", (Reranker,), {"score": lambda self, q, c: c.similarities, **body})
    return registry.register("declared", needs=needs, card=Card(None, "MIT"), control=control)(cls)


def test_declarations_the_harness_could_not_keep_are_refused() -> None:
    @dataclass
    class Needy:
        k: int

    class Undeclared:
        k: int = 3

    assert declare({"local", "global"}).spec.needs == {"local", "global"}
    for refused, said in (
        ({"needs": {"pixels"}}, "needs"),
        ({"needs": {"truth"}}, "only a control"),
        ({"Options": Needy}, "defaults"),
        ({"Options": Undeclared}, "dataclass"),
    ):
        with pytest.raises((ValueError, TypeError), match=said):
            declare(**refused)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must inherit"):
        registry.register("declared", needs=(), card=Card(None, "MIT"))(Undeclared)  # type: ignore[type-var]
