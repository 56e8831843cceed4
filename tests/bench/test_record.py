"""A run's record: read as it was written, and refused where anything in it is not what it should be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.record import (
    Begun,
    Cost,
    FirstStageCost,
    Identity,
    MethodCard,
    MethodIdentity,
    Part,
    RunRecord,
    Unfinished,
    as_json,
    cold_starts,
    read_record,
    write_record,
)
from bench.scores import ColdStart
from bench.shortlist import Header
from bench.trained import Training

HEADER = Header("folder:x", "files 1", "instance", "gem-lite0", "c0", "blind", 5, False, 9, "9c")
MACHINE = {"cpu": "a processor", "threads": 2, "gpu": None, "workers": 2}


def identity(**more: Any) -> Identity:
    parts = (Part(method="mnn", options={"descriptors": 20}, features=("xfeat",), contents=("f0",)),)
    cascade = MethodIdentity({"stages": ["mnn", "ransac:5"]}, None, "50", parts, ("xfeat",), ("f0",))
    methods = {"cascade": cascade, "broken": MethodIdentity({})}
    given = {"seal": "5ea1", "shortlist": HEADER, "hardware": MACHINE, "methods": methods}
    return Identity(**{**given, **more})


BEGUN = Begun(
    identity=identity(),
    provenance={"commit": None},
    together=("one", "two"),
    skipped={"picky": "not on Mondays"},
    defaults={"cascade": {"stages": []}},
    trained={"cascade": Training(3, "d1", "stages")},
    unreadable={"image": "no image"},
    notes=("A note.",),
    first_stage=FirstStageCost(("gem-lite0",), 0.5, 2.5),
    extract_ms={"xfeat": (1.5, 30.0)},
    cold={"cascade": ColdStart(12.5, None)},
)
RECORD = RunRecord(
    **vars(BEGUN),
    finished="2026-11-25T07:43:41+00:00",
    failed={"broken": "out of luck"},
    costs={"cascade": Cost(17.5, 20.0, 2.25)},
    cards={"cascade": MethodCard(paper=None, licence="Apache-2.0", control=False, needs=("keypoints", "local"))},
    stored_bytes={"xfeat": {"local": (0.0, 132.0)}},
)


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[Callable[[dict], object]], Path]:
    """A folder whose `run.json` is the record's, changed."""

    def write(change: Callable[[dict], object]) -> Path:
        write_record(tmp_path, RECORD)
        content = json.loads((tmp_path / "run.json").read_text())
        change(content)
        (tmp_path / "run.json").write_text(json.dumps(content))
        return tmp_path

    return write


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)
    assert read_record(tmp_path) == RECORD


def test_a_run_that_is_measured_is_unfinished_and_its_cold_starts_are_kept(tmp_path: Path) -> None:
    assert cold_starts(tmp_path) is None
    write_record(tmp_path, BEGUN)
    with pytest.raises(Unfinished):
        read_record(tmp_path)
    assert cold_starts(tmp_path) == BEGUN.cold


def test_a_record_of_another_format_is_unfinished_whatever_it_holds(changed: Callable) -> None:
    with pytest.raises(Unfinished):
        read_record(changed(lambda content: [content.clear(), content.update(status="finished", format=1)]))


def test_a_record_need_not_say_what_is_as_a_rule_empty(changed: Callable) -> None:

    def older(content: dict) -> None:
        for name in ("notes", "together", "features_noncommercial", "stored_bytes", "trained"):
            content.pop(name)
        for name in ("parts", "features", "contents"):
            content["identity"]["methods"]["cascade"].pop(name)

    record = read_record(changed(older))
    assert record.notes == record.together == () and record.stored_bytes == record.trained == {}
    assert record.identity.methods["cascade"].features == record.identity.methods["cascade"].parts == ()


def test_what_a_later_version_adds_is_passed_over(changed: Callable) -> None:
    assert read_record(changed(lambda content: content["identity"].update(more=1))) == RECORD


DAMAGE: dict[str, tuple[Callable[[dict], object], str]] = {
    "no seal": (lambda c: c["identity"].pop("seal"), "run.json: identity.seal is missing"),
    "a number": (lambda c: c["identity"].update(seal=3), "run.json: identity.seal is 3, expected text"),
    "no machine": (lambda c: c["identity"]["hardware"].pop("cpu"), "hardware.cpu is missing"),
    "another policy": (lambda c: c["identity"]["shortlist"].update(policy="fair"), "expected blind or paper"),
    "a training of no row": (lambda c: c["trained"].update(mnn=c["trained"]["cascade"]), "trained.mnn: no row"),
    "a training of no option": (lambda c: c["trained"]["cascade"].update(option="weights"), "no row with an option"),
    "a training of no seed": (lambda c: c["trained"]["cascade"].update(seed=-1), "run.json: seed -1"),
    "no candidates": (lambda c: c["identity"]["shortlist"].update(k=0), "--top-k 0"),
    "true for a number": (lambda c: c["costs"]["cascade"].update(kib_per_image=True), "cascade.kib_per_image is true"),
    "text for a number": (lambda c: c["cold"]["cascade"].update(ms="12"), 'cold.cascade.ms is "12", expected a number'),
    "a list": (lambda c: c.update(failed=[]), "failed is [], expected an object"),
    "an object": (lambda c: c.update(notes={}), "notes is {}, expected a list"),
    "three numbers": (lambda c: c["stored_bytes"].update(local=[1, 2, 3]), "stored_bytes.local is [1, 2, 3]"),
    "no date": (lambda c: c.update(finished=None), "finished is null, expected text"),
    "not a date": (lambda c: c.update(finished="today"), "today"),
    "no card": (lambda c: c["cards"].clear(), "cascade has scores and is not described"),
    "no options": (lambda c: c["identity"]["methods"].clear(), "cascade has scores and is not described"),
    "half a part": (lambda c: c["identity"]["methods"]["cascade"]["parts"][0].pop("method"), "parts[0].method is"),
}


@pytest.mark.parametrize("what", list(DAMAGE))
def test_a_record_that_cannot_be_used_is_refused_with_the_place(changed: Callable, what: str) -> None:
    change, said = DAMAGE[what]
    with pytest.raises(ValueError) as refusal:
        read_record(changed(change))
    assert str(refusal.value).startswith("run.json: ") and said in str(refusal.value)
    assert not isinstance(refusal.value, Unfinished)


def places(value: Any, at: tuple = ()) -> list[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, one in inner for place in places(one, (*at, key)))]


CONTENT = json.loads(json.dumps({"format": 2, "status": "finished", **as_json(RECORD)}))
JSON = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.just([]), st.just({}))


@given(st.sampled_from(places(CONTENT)[1:]), JSON)
def test_a_changed_record_is_read_or_refused_and_breaks_nothing(
    tmp_path_factory: pytest.TempPathFactory, place: tuple, value: object
) -> None:
    content = json.loads(json.dumps(CONTENT))
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    folder = tmp_path_factory.mktemp("run")
    (folder / "run.json").write_text(json.dumps(content))
    try:
        record = read_record(folder)
    except ValueError as error:
        assert str(error).startswith("run.json: ")
    else:
        assert isinstance(record, RunRecord) and record.costs.keys() <= record.cards.keys()


def test_absent_parts_and_features_are_not_in_what_names_a_folder() -> None:
    content = as_json(identity())
    assert not {"features", "contents", "parts"} & content["methods"]["broken"].keys()
    assert content["methods"]["cascade"]["parts"][0]["method"] == "mnn"
