"""Rows: what a method reads by itself and when it is told, what rows are called, and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from bench import registry
from bench.cascade import REPLAYED, order, replay
from bench.datasets import Dataset
from bench.errors import UserError
from bench.features.extract import ExtractOptions
from bench.features.sets import FeatureSet, Stores
from bench.places import Places
from bench.prepare import asked_rows
from bench.replay import ranks_as_scores
from bench.reranker import parse_options
from bench.results import Run
from bench.rows import Asked, Row, counts_of, opened, parts_of, same_row, wanted
from bench.run import Outcome, costs

Go = Callable[..., Outcome]
Open = Callable[..., Row | str]


@pytest.fixture
def row(stored: tuple[Dataset, FeatureSet], cache: Path) -> Open:
    """`row("mnn@sift", features="xfeat", extract=…, descriptors="20")`: that row on the instances, or why not."""
    dataset, _ = stored

    def go(
        text: str,
        features: str = "xfeat",
        extract: ExtractOptions = ExtractOptions(max_side=160, descriptors=150),
        **options: str,
    ) -> Row | str:
        asked = Asked.parse(text)
        cls = registry.get(asked.method)
        found = wanted(asked, cls(parse_options(cls, options)), features, frozenset())
        if isinstance(found, str):
            return found
        return opened(found, Stores(dataset, extract, torch.device("cpu"), Places.of(cache)), lambda: dataset.gallery)

    return go


def scores_of(run: Run, name: str) -> pd.Series:
    return run.scores[run.scores.method == name].set_index(["list", "query", "candidate"])["score"]


# --- how rows are asked for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("mnn", Asked("mnn")),
        ("mnn@sift", Asked("mnn", "sift")),
        ("mnn@superpoint:a@b.pth+gem-lite0", Asked("mnn", "superpoint:a@b.pth+gem-lite0")),
        ("all@sift", Asked("all", "sift")),
    ],
)
def test_a_row_is_a_method_or_a_method_and_features(text: str, asked: Asked) -> None:
    assert Asked.parse(text) == asked and str(asked) == text


@pytest.mark.parametrize("text", ["", "@", "@sift", "mnn@"])
def test_half_a_row_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="expected METHOD or METHOD@FEATURES"):
        Asked.parse(text)


def test_all_is_every_method_also_on_features_of_its_own() -> None:
    assert [str(asked) for asked in asked_rows(["all@sift"])] == [f"{name}@sift" for name in registry.names()]
    both = [str(asked) for asked in asked_rows(["mnn", "all", "mnn@sift", "mnn"])]
    assert both == ["mnn", *(name for name in registry.names() if name != "mnn"), "mnn@sift"]


# --- what they read, and what they are called ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "features", "name", "reads"),
    [
        ("mnn", "xfeat", "mnn", "xfeat"),
        ("mnn@xfeat", "sift", "mnn", "xfeat"),
        ("mnn@xfeat+gem-lite0", "gem-lite0", "mnn", "xfeat"),
        ("mnn", "sift", "mnn@sift", "sift"),
        ("mnn@sift", "xfeat", "mnn@sift", "sift"),
        ("aqe", "sift", "aqe", "gem-lite0"),
        ("aqe@sift", "xfeat", "aqe", "gem-lite0"),
        ("aqe@gem-lite0", "sift", "aqe", "gem-lite0"),
        ("rrt", "xfeat", "rrt", "xfeat+gem-lite0"),
        ("rrt@xfeat", "sift", "rrt", "xfeat+gem-lite0"),
        ("identity", "sift", "identity", None),
        ("identity@sift", "xfeat", "identity", None),
    ],
)
def test_equal_names_are_equal_rows_however_they_are_asked_for(
    row: Open, text: str, features: str, name: str, reads: str | None
) -> None:
    found = row(text, features)
    assert isinstance(found, Row) and found.name == name
    assert [features.name.name for features in found.sets] == ([] if reads is None else [reads])


@pytest.mark.parametrize("features", ["sift", "gem-lite0", "sift+gem-lite0"])
@pytest.mark.parametrize("method", ["rrt", "lightglue", "asmk"])
def test_a_method_that_cannot_read_the_features_reads_those_its_weights_were_made_for(
    row: Open, method: str, features: str
) -> None:
    found = row(method, features)
    assert isinstance(found, Row) and found.name == method
    assert found.features is not None and found.features.name.local is not None
    assert found.features.name.local.key == "xfeat"


@pytest.mark.parametrize(
    ("text", "features", "reason"),
    [
        ("rrt@sift", "xfeat", "the shipped weights read"),
        ("lightglue@sift", "xfeat", "no weights for sift come with a package: give "),
        ("asmk@sift", "xfeat", "of 64-d xfeat descriptors, not of 128-d sift"),
        ("mnn@gem-lite0", "xfeat", "it reads local descriptors, and the feature set has none"),
        ("mnn", "gem-lite0", "it reads local descriptors, and the feature set has none"),
    ],
)
def test_features_that_are_named_are_read_or_refused_and_never_others(
    row: Open, text: str, features: str, reason: str
) -> None:
    found = row(text, features)
    assert isinstance(found, str) and reason in found


def test_how_descriptors_are_stored_is_not_in_the_name(row: Open) -> None:
    for extract in (ExtractOptions(160, 60), ExtractOptions(160, 150, "int8"), ExtractOptions(128, 150)):
        found = row("mnn", extract=extract)
        assert isinstance(found, Row) and found.name == "mnn"


@pytest.mark.parametrize(
    ("text", "row", "features", "same"),
    [
        ("mnn", "mnn", ("xfeat",), True),
        ("mnn@xfeat", "mnn", ("xfeat",), True),
        ("mnn@xfeat+gem-lite0", "mnn", ("xfeat",), True),
        ("mnn@sift", "mnn", ("xfeat",), False),
        ("mnn", "mnn@sift", ("sift",), False),
        ("mnn@sift", "mnn@sift", ("sift",), True),
        ("rrt@xfeat", "rrt", ("xfeat", "gem-lite0"), True),
        ("aqe@sift", "aqe", ("gem-lite0",), True),
        ("ransac@xfeat", "mnn", ("xfeat",), False),
        ("mnn@superpoint-1234", "mnn@superpoint-1234", ("superpoint-1234",), True),
        ("mnn@superpoint-9999", "mnn@superpoint-1234", ("superpoint-1234",), False),
        ("identity@sift", "identity", (), True),
    ],
)
def test_a_row_is_found_by_every_name_that_asks_for_it(text: str, row: str, features: tuple, same: bool) -> None:
    assert same_row(text, row, features) == same


# --- in a run -----------------------------------------------------------------------------------------------------


def test_a_row_asked_for_twice_runs_once(run: Go, instances: Path) -> None:
    done = run(instances, "mnn,mnn@xfeat,aqe@sift,mnn@xfeat+gem-lite0,aqe", top_k=3).run
    assert set(done.record.costs) == {"mnn", "aqe"} and len(done.ledger) == 2 * 9
    assert done.folder == run(instances, "mnn,aqe", top_k=3).run.folder


def test_a_row_asked_for_twice_with_other_options_is_an_error(run: Go, instances: Path, places: Places) -> None:
    with pytest.raises(UserError, match="--method mnn@xfeat: it is the row mnn, which is asked for with other options"):
        run(instances, "mnn,mnn@xfeat", top_k=3, options={"mnn@xfeat": {"descriptors": "20"}})
    assert not places.runs.exists()
    done = run(instances, "mnn,mnn@xfeat", top_k=3, options={"mnn": {"descriptors": "20"}}).run
    assert list(done.record.costs) == ["mnn"] and done.record.costs["mnn"].descriptors_max == 20


def test_all_on_features_of_its_own_says_of_every_method_what_became_of_it(run: Go, instances: Path) -> None:
    done = run(instances, "all@sift,mnn", top_k=2).run
    rows, skipped = done.record.identity.methods, done.record.skipped
    methods = [name.partition("@")[0] for name in (*rows, *skipped)]
    assert set(methods) == set(registry.names()) and not done.record.failed
    read = {key for name, one in rows.items() if name != "mnn" for key in one.features}
    assert read == {"sift", "gem-lite0"} and rows["mnn"].features == ("xfeat",)
    assert {"mnn", "mnn@sift", "ransac@sift", "aqe"} <= set(rows)
    assert {"rrt@sift", "lightglue@sift", "asmk@sift"} <= set(skipped)


# --- rows made of others ------------------------------------------------------------------------------------------

STAGES = [
    "rrt,ransac@sift:5",
    "mnn@sift,mnn:4",
    "aqe,mnn@sift:6,rrt:3",
    "identity,ransac@sift:5:descriptors=40,mnn@sift:2",
]


@pytest.mark.parametrize("stages", STAGES)
def test_a_cascade_of_several_feature_sets_ranks_as_its_stages_do_alone(run: Go, buildings: Path, stages: str) -> None:
    texts = stages.split(",")
    named = [text.split(":") for text in texts]
    options = {
        "cascade": {"stages": stages},
        **{method: dict(o.split("=") for o in more if "=" in o) for method, *more in named},
    }
    done = run(buildings, ",".join(["cascade", *(method for method, *_ in named)]), top_k=8, options=options).run
    rows = done.record.identity.methods
    (of_cascade,) = (name for name in rows if name.startswith("cascade"))
    assert of_cascade == "cascade"  # its options say what its stages read
    firsts = [next((int(part) for part in more if part.isdigit()), None) for _, *more in named]
    for query in done.shortlist.queries:
        candidates = done.scores[(done.scores.method == "cascade") & (done.scores["query"] == query)]
        each = [
            scores_of(done, next(name for name in rows if same_row(method, name, rows[name].features)))
            .loc[:, query, :]
            .droplevel("list")
            .loc[candidates["candidate"]]
            .to_numpy()
            for method, *_ in named
        ]
        best = order(len(candidates), [(n, of.__getitem__) for n, of in zip(firsts, each, strict=True)])
        assert candidates["score"].tolist() == ranks_as_scores(best).tolist()


@pytest.mark.parametrize("stages", STAGES[:3])
def test_a_cascade_of_several_feature_sets_is_what_its_replay_is(run: Go, buildings: Path, stages: str) -> None:
    texts = stages.split(",")
    rows = ",".join(["cascade", *(text.split(":")[0] for text in texts)])
    done = run(buildings, rows, top_k=8, options={"cascade": {"stages": stages}}).run
    again = replay([done], texts)
    assert again is not None
    pd.testing.assert_series_equal(scores_of(again, REPLAYED), scores_of(done, "cascade"), check_exact=True)
    ours, theirs = done.record.costs["cascade"], again.record.costs[REPLAYED]
    assert vars(ours) == pytest.approx(vars(theirs))
    one, other = done.record.identity.methods["cascade"], again.record.identity.methods[REPLAYED]
    assert dict(zip(one.features, one.contents, strict=True)) == dict(zip(other.features, other.contents, strict=True))


def test_stages_without_features_of_their_own_read_those_of_the_cascade(row: Open) -> None:
    def read(text: str, features: str, stages: str) -> tuple[str, list[str]]:
        found = row(text, features, stages=stages)
        assert isinstance(found, Row)
        return found.name, list(parts_of([found]))

    assert read("cascade", "xfeat", "mnn,ransac:3") == ("cascade", ["xfeat"])
    assert read("cascade", "sift", "mnn,ransac:3") == ("cascade@sift", ["sift"])
    assert read("cascade@sift", "xfeat", "mnn,ransac@xfeat:3") == ("cascade@sift", ["sift", "xfeat"])
    assert read("cascade", "sift", "rrt,lightglue:3") == ("cascade", ["xfeat", "gem-lite0"])
    assert read("cascade", "sift", "rrt,ransac:3") == ("cascade@xfeat+gem-lite0+sift", ["xfeat", "gem-lite0", "sift"])
    said = row("cascade@sift", stages="rrt,ransac:3")
    assert isinstance(said, str) and said.startswith("rrt: the shipped weights read")


def cost_of(row: Row | str, dataset: Dataset) -> dict[str, float]:
    assert isinstance(row, Row)
    return vars(costs(row, counts_of(row.sets, dataset.gallery)))


def test_stages_that_read_two_feature_sets_cost_the_sum_of_both(row: Open, stored: tuple[Dataset, FeatureSet]) -> None:
    dataset, _ = stored
    found = cost_of(row("cascade", stages="rrt,ransac@sift:5"), dataset)
    parts = [cost_of(row(text), dataset) for text in ("rrt", "ransac@sift")]
    assert found == pytest.approx({what: sum(part[what] for part in parts) for what in found})
    assert all(part["kib_per_image"] > 0 for part in parts)


def test_stages_share_what_they_read_of_one_feature_set(row: Open, stored: tuple[Dataset, FeatureSet]) -> None:
    dataset, _ = stored
    shared = row("cascade", stages="mnn:9:descriptors=100,ransac:5:descriptors=40")
    assert isinstance(shared, Row) and len(shared.reads) == 1 and shared.reading_of == (0, 0)
    assert shared.reads[0].needs == {"local", "keypoints"} and shared.reads[0].used(150) == 100
    assert cost_of(shared, dataset) == cost_of(row("ransac", descriptors="100"), dataset)
    three = row("cascade", stages="identity,rrt:9,mnn@sift:5,aqe:4,mnn:3")
    assert isinstance(three, Row) and three.reading_of == (None, 0, 1, 0, 0)
    assert [reading.features.name.name for reading in three.reads] == ["xfeat+gem-lite0", "sift"]


def test_a_part_of_features_is_counted_once_however_it_is_read(row: Open, stored: tuple[Dataset, FeatureSet]) -> None:
    dataset, _ = stored
    parts = [cost_of(row(text), dataset) for text in ("rrt", "mnn@sift")]  # the global descriptor is in the first
    for stages in ("aqe,mnn@sift:5,rrt:3", "rrt,mnn@sift:5,aqe:3", "mnn@sift,aqe:5,rrt:3"):
        found = cost_of(row("cascade", stages=stages), dataset)
        assert found == pytest.approx({what: sum(part[what] for part in parts) for what in found}), stages
