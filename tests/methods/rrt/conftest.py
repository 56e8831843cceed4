"""Trainings in tests draw no pictures (half a second each) unless the test asks for them with `pictures`."""

import pytest

from methods.rrt.loop import Curves


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(Curves, "draw", lambda self: self.file)


@pytest.fixture
def pictures() -> None:
    """Ask for pictures."""
