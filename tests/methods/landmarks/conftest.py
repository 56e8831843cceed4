"""Trainings in tests draw no pictures, which take half a second each."""

import pytest

from bench.training import Curves


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Curves, "draw", lambda self: self.file)
