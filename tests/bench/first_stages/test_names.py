"""First stages by name: what is understood, what equal names mean, and what is said of names that are none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import UserError
from bench.first_stages.names import COMPARED, DEFAULT, default_for, parse
from bench.setup import Setup
from methods.asmk import SHIPPED


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("gem-lite0", "gem-lite0"),
        ("xfeat+gem-lite0", "gem-lite0"),
        ("delg", "delg"),
        ("asmk@xfeat", "asmk@xfeat"),
        ("asmk:@xfeat", "asmk@xfeat"),
        ("asmk@xfeat+gem-lite0", "asmk@xfeat"),
        ("asmk:binary=true:assignments=5@xfeat", "asmk@xfeat"),
        ("asmk:binary=false:assignments=1@sift", "asmk:assignments=1:binary=false@sift"),
        ("asmk:alpha=3.0:alpha=2@xfeat", "asmk:alpha=2.0@xfeat"),
        ("sum:gem-lite0,asmk@xfeat", "sum:gem-lite0,asmk@xfeat"),
        ("sum:gem-lite0*1.0, asmk@xfeat*0.50", "sum:gem-lite0,asmk@xfeat*0.5"),
        ("sum:xfeat+gem-lite0*2,asmk:binary=true@xfeat", "sum:gem-lite0*2,asmk@xfeat"),
        ("sum:gem-lite0,asmk@xfeat,asmk@sift*1e-3", "sum:gem-lite0,asmk@xfeat,asmk@sift*0.001"),
    ],
)
def test_names_are_canonical(text: str, name: str) -> None:
    assert parse(text).name == name == parse(name).name


def test_a_first_stage_reads_only_what_it_searches() -> None:
    def read(text: str) -> list[str]:
        return [features.name for features in parse(text).sets]

    assert read("xfeat+gem-lite0") == ["gem-lite0"]
    assert read("asmk@xfeat") == ["xfeat"]
    assert read("sum:gem-lite0,asmk@xfeat,asmk:binary=false@xfeat") == ["gem-lite0", "xfeat"]


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False), st.floats(1e-9, 1e9))
def test_equal_names_mean_equal_weights(one: float, other: float) -> None:
    def named(weight: float) -> str:
        return parse(f"sum:gem-lite0*{weight!r},asmk@xfeat").name

    assert parse(named(one)) == parse(f"sum:gem-lite0*{one!r},asmk@xfeat")
    assert (named(one) == named(other)) == (one == other)


def test_weights_that_differ_in_a_late_digit_have_two_names() -> None:
    names = {
        parse(f"sum:gem-lite0*{weight},asmk@xfeat").name for weight in ("1", "1.0000001", "0.1234567", "0.1234568")
    }
    assert len(names) == 4


def test_a_codebook_is_named_by_its_content(tmp_path: Path) -> None:
    for place in ("one", "other"):
        (tmp_path / place).mkdir()
        shutil.copy(SHIPPED, tmp_path / place / "words.safetensors")
    (tmp_path / "changed.safetensors").write_bytes(b"something else")
    paths = ("one/words.safetensors", "other/words.safetensors", "changed.safetensors")
    one, other, changed = (parse(f"asmk:codebook={tmp_path / path}@xfeat").name for path in paths)
    assert one == other != changed and str(tmp_path) not in one
    assert parse(f"asmk:codebook={SHIPPED}@xfeat").name == "asmk@xfeat"


def test_what_is_compared_by_default_has_the_default_in_it_once() -> None:
    names = [parse(text).name for text in COMPARED]
    assert names.count(parse(DEFAULT).name) == 1 and len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("features", "name"),
    [
        ("xfeat", DEFAULT),
        ("sift", DEFAULT),
        ("gem-lite0", "gem-lite0"),
        ("sift+gem-lite0", "gem-lite0"),
        ("delg", "delg"),
    ],
)
def test_globals_that_features_name_are_the_first_stage_unless_another_is_named(features: str, name: str) -> None:
    assert parse(default_for(features)).name == name
    found, asked = (Setup("demo", features=features, first_stage=stage).stage for stage in (None, "asmk@sift"))
    assert found is not None and asked is not None and (found.name, asked.name) == (name, "asmk@sift")


REFUSED = {
    "unknown": ("gem-lit0", "unknown first stage 'gem-lit0'", "did you mean 'gem-lite0'"),
    "unknown kind": ("asmkk@xfeat", "unknown first stage 'asmkk@xfeat'", "did you mean 'asmk'"),
    "a method": ("ransac", "unknown first stage 'ransac'", "asmk, "),
    "nothing": ("", "unknown first stage ''", "gem-lite0"),
    "local alone": ("xfeat", "'xfeat' gives no global descriptors", "asmk@xfeat searches its local ones"),
    "weights lacking": ("asmk@superpoint", "--first-stage asmk@superpoint: superpoint needs weights", "superpoint:"),
    "asmk of nothing": ("asmk", "it names no local descriptors", "for example asmk@xfeat"),
    "asmk of no features": ("asmk@", "it names no local descriptors", "for example asmk@xfeat"),
    "asmk of globals": ("asmk@gem-lite0", "'gem-lite0' gives no local descriptors", "for example asmk@xfeat"),
    "asmk of unknown features": ("asmk@xfaet", "unknown feature set 'xfaet'", "did you mean 'xfeat'"),
    "unknown option": ("asmk:binar=1@xfeat", "unknown option of asmk 'binar'", "did you mean 'binary'"),
    "option without value": ("asmk:binary@xfeat", "'binary', expected OPTION=VALUE", "asmk:binary=false@xfeat"),
    "value of another kind": ("asmk:binary=maybe@xfeat", "binary=maybe: expected true or false", ""),
    "value out of range": ("asmk:assignments=0@xfeat", "options of asmk", "at least 1"),
    "no codebook there": ("asmk:codebook=/nowhere@xfeat", "no such codebook: /nowhere", "train asmk"),
    "a sum of nothing": ("sum:", "sum:: '' cannot be added", "sum:A*WEIGHT,B"),
    "a sum of one": ("sum:gem-lite0", "--first-stage sum:gem-lite0: a sum of 1 first stages", "sum:A*WEIGHT,B"),
    "one of a sum missing": ("sum:gem-lite0,,asmk@xfeat", "'' cannot be added", "sum:A*WEIGHT,B"),
    "one twice": ("sum:gem-lite0,xfeat+gem-lite0", "gem-lite0 and gem-lite0: one first stage is there twice", ""),
    "one of a sum unknown": ("sum:gem-lite0,asmc@xfeat", "unknown first stage 'asmc@xfeat'", "known: "),
    "a sum in a sum": ("sum:gem-lite0,sum:asmk@xfeat", "'sum:asmk@xfeat' cannot be added", "sum:A*WEIGHT,B"),
    "lists in a sum": ("sum:list:f.txt,gem-lite0", "'list:f.txt' cannot be added", "similarities to the whole gallery"),
    "no weight": ("sum:gem-lite0*,asmk@xfeat", "'' is no weight", "sum:A*WEIGHT,B"),
    "a weight that is none": ("sum:gem-lite0*much,asmk@xfeat", "'much' is no weight", "sum:A*WEIGHT,B"),
    "weight 0": ("sum:gem-lite0*0,asmk@xfeat", "weights 0.0, 1.0: expected numbers above 0", ""),
    "weight below 0": ("sum:gem-lite0,asmk@xfeat*-1", "weights 1.0, -1.0: expected numbers above 0", ""),
    "weight without end": ("sum:gem-lite0*1e999,asmk@xfeat", "weights inf, 1.0: expected numbers above 0", ""),
    "weight not a number": ("sum:gem-lite0*nan,asmk@xfeat", "weights nan, 1.0: expected numbers above 0", ""),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_names_that_are_none_are_refused_with_what_to_write_instead(what: str) -> None:
    text, said, hint = REFUSED[what]
    with pytest.raises(UserError) as refusal:
        parse(text)
    assert said in refusal.value.message and hint in str(refusal.value)


@pytest.mark.parametrize("what", list(REFUSED))
def test_the_commands_refuse_them_before_anything_is_extracted(
    cli: Callable[..., Result], instances: Path, tmp_path: Path, what: str
) -> None:
    text, said, _ = REFUSED[what]
    where = ("-d", f"folder:{instances}", "--cache-dir", str(tmp_path / "new"), "--first-stage", text)
    for command in (("run", "-m", "mnn"), ("first-stages",)):
        refused = cli(*command, *where)
        assert refused.exit_code == 1 and said in refused.output, refused.output
    assert not (tmp_path / "new").exists()
