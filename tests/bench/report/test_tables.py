"""Tables of finished runs: which rows may stand in one, what they say, and that every format says the same."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from bench import metrics
from bench.errors import UserError
from bench.evaluation import FIRST_STAGE
from bench.metrics import Measure
from bench.places import Places
from bench.report.columns import Column
from bench.report.formats import FORMATS, cells, to_csv, to_latex, to_markdown, with_columns, worth_saying
from bench.report.latex import escaped
from bench.report.tables import Table, compare, table_groups
from bench.results import Run, finished_runs
from bench.run import Outcome
from cli import main

Go = Callable[..., Outcome]


@pytest.fixture
def done(finished: Callable, instances: Path) -> Run:
    return finished(instances, "identity,oracle,reverse", top_k=8)


def reciprocal(ranks: np.ndarray, n_positives: int) -> float:
    return float("nan") if n_positives == 0 else 1 / (1 + ranks[0])


def first_rank(ranks: np.ndarray, n_positives: int) -> float:
    """A share of which less is better."""
    return float("nan") if n_positives == 0 else ranks[0] / 100


def test_a_measure_is_one_entry_and_older_runs_have_it_too(done: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Measure("MRR", "RR", "mean reciprocal rank", reciprocal, ("instance",), digits=3)
    monkeypatch.setitem(metrics.MEASURES, "MRR", entry)  # type: ignore[misc]
    table = compare([done])
    (column,) = [column for column in table.columns if column.name == "MRR All"]
    assert (column.meaning, column.digits, column.better) == ("mean reciprocal rank, All, percent", 3, 1)
    values = done.metrics().query("measure == 'MRR' and method == 'identity'")["value"]
    assert table.rows.loc["identity", "MRR All"] == pytest.approx(100 * values.mean()) and 0 < values.mean() <= 1
    assert table.measure == "mAP" and table.about["measure"] == "mAP All"


def test_a_measure_that_is_not_shown_has_no_column(done: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Measure("R@2", "R@2", "two", partial(metrics.recall_at, k=2), ("instance",), shown=False)
    monkeypatch.setitem(metrics.MEASURES, "R@2", entry)  # type: ignore[misc]
    assert not [column for column in compare([done]).columns if column.name.startswith("R@2")]


def test_rows_are_ordered_and_compared_in_the_direction_that_is_better(
    done: Run, run: Callable, instances: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    less = Measure("rank", "rank", "first rank", first_rank, ("instance",), better=-1)
    monkeypatch.setattr("bench.metrics.MEASURES", {"rank": less, **metrics.MEASURES})
    other = run(instances, "mnn,aqe", top_k=8).run
    table = compare([done, other])
    ranks = table.rows["rank All"]
    controls = [name for name in table.rows.index if name in table.controls]
    assert table.measure == "rank" and ranks[controls].is_monotonic_decreasing  # the best row of each kind is the last
    assert ranks["oracle"] == table.ceiling < table.first_stage and table.rows.loc["oracle", "headroom All"] == 100
    contenders = [name for name in table.rows.index if name not in table.controls]
    assert ranks[contenders].is_monotonic_decreasing
    gains = table.rows["gain"]
    assert gains[contenders].idxmax() == ranks[contenders].idxmin() == contenders[-1] and table.answer
    assert (table.rows["gain low"] <= gains)[contenders].all() and (gains <= table.rows["gain high"])[contenders].all()
    assert table.rows.loc[controls, "gain"].isna().all() and table.rows.loc[contenders, "p"].between(0, 1).all()
    assert done.metrics()[done.metrics().method == FIRST_STAGE]["measure"].iloc[0] == "rank"


def test_where_queries_have_one_positive_the_first_places_are_shown(
    run: Callable, write_instances: Callable, tmp_path: Path
) -> None:
    def recalls(views: int) -> list[str]:
        table = compare([run(write_instances(tmp_path / str(views), 4, views), "mnn,reverse", top_k=3).run])
        return [column.name.split(" ")[0] for column in table.columns if column.name.startswith("R@")]

    assert recalls(2) == ["R@1", "R@5", "R@10"] and recalls(3) == ["R@1", "R@10", "R@100"]


def test_columns_that_say_nothing_are_left_out_of_the_terminal() -> None:
    percent = [
        Column(f"mAP {name}", f"mean average precision, {name}, percent", 1, 1) for name in ("Easy", "Hard", "All")
    ]
    columns = (
        *percent,
        Column("gain", "over the first stage", 1),
        Column("equal", "queries", 0),
        Column("worse", "", 0),
    )
    values = {"mAP Easy": [1.0, 2.0], "mAP Hard": [1.0, 3.0], "mAP All": [1.0, 2.0], "gain": [np.nan, np.nan]}
    rows = pd.DataFrame({**values, "equal": [0.0, 0.0], "worse": [0.0, 0.0]}, index=["a", "b"])
    table = Table("t", columns, rows, {"a": "", "b": ""}, frozenset(), (), {}, "mAP", 1.0, 2.0)
    assert [column.name for column in worth_saying(table)] == ["mAP Easy", "mAP Hard", "equal", "worse"]
    one = replace(table, rows=rows.iloc[:1])
    assert [column.name for column in worth_saying(one)] == ["mAP Easy", "mAP Hard", "mAP All", "equal", "worse"]


def test_losses_have_their_sign_and_tiny_p_are_no_zeros(run: Callable, instances: Path) -> None:
    table = compare([run(instances, "mnn,reverse,random,rrt", top_k=8).run])
    at = [column.name for column in table.columns]
    rows = table.rows.copy()
    rows.loc["mnn", ["gain", "gain low", "gain high", "p"]] = [-1.26, -3.0, 0.04, 0.0004]
    text = dict(zip(at, cells(replace(table, rows=rows))[list(rows.index).index("mnn")][2:], strict=True))
    assert [text[name] for name in ("gain", "gain low", "gain high", "p")] == ["-1.3", "-3.0", "+0.0", "<0.001"]


@pytest.fixture
def marked(run: Callable, instances: Path) -> Table:
    """A table with a control and two contenders, of which one is the best and gains more than chance explains."""
    table = compare([run(instances, "identity,mnn,rrt", top_k=8).run])
    rows = table.rows.copy()
    rows.loc["mnn", ["mAP All", "gain", "p", "ms/query p50"]] = [90.0, 5.0, 0.01, 1.0]
    rows.loc["rrt", ["mAP All", "gain", "p", "ms/query p50"]] = [80.0, -1.26, 0.2, 2.0]
    rows.loc["identity", ["mAP All"]] = 99.0  # a control is never the best
    return replace(table, rows=rows)


def texts(lines: list[str], between: str) -> dict[str, list[str]]:
    """Name of a row -> its cells."""
    return {row[0].strip(): [text.strip() for text in row[1:]] for line in lines if (row := line.split(between))}


def test_the_best_contender_of_what_is_better_as_more_is_bold(marked: Table) -> None:
    at = {column.name: 1 + place for place, column in enumerate(marked.columns)}
    md = texts([line.strip("| ") for line in to_markdown(marked).splitlines() if line.startswith("|")], "|")
    latex = texts([line.removesuffix(r" \\") for line in to_latex(marked).splitlines() if " & " in line], " & ")
    for found, bold, control in ((md, "**{}**", "identity*"), (latex, r"\textbf{{{}}}", r"identity$^{\dagger}$")):
        assert set(found) >= {"mnn", "rrt", control}
        assert found["mnn"][at["mAP All"]] == bold.format("90.0")
        assert (found["rrt"][at["mAP All"]], found[control][at["mAP All"]]) == ("80.0", "99.0")
        assert (found["mnn"][at["ms/query p50"]], found["rrt"][at["ms/query p50"]]) == ("1.0", "2.0")
    assert latex["mnn"][at["gain"]] == r"\textbf{+5.0}$^{*}$" and latex["rrt"][at["gain"]] == "$-$1.3"


def test_a_single_contender_is_not_called_the_best(run: Callable, instances: Path) -> None:
    table = compare([run(instances, "identity,mnn", top_k=8).run])
    assert "**" not in to_markdown(table) and r"\textbf" not in to_latex(table)
    assert "Bold" not in to_markdown(table) + to_latex(table)


def test_a_caption_says_what_a_table_is_of_and_where_it_was_measured(marked: Table) -> None:
    about = marked.about
    machine = about["hardware"]
    assert isinstance(machine, dict)
    said = [about["image_set"], f"policy {about['policy']}", f"k = {about['k']}", f"first stage {about['first_stage']}"]
    said += [f"seal {str(about['seal'])[:8]}", machine["cpu"], f"{machine['threads']} thread"]
    (caption,) = [line for line in to_latex(marked).splitlines() if line.startswith(r"\caption{")]
    assert all(escaped(text) in caption for text in said) and caption.endswith("}")
    (line,) = [line for line in to_markdown(marked).splitlines() if line.startswith(f"{about['dataset']}: ")]
    assert all(text in line for text in said)


def test_a_table_of_several_workers_says_so(run: Go, instances: Path) -> None:
    """Their times are not those of one process, and the two tables look alike otherwise."""
    done = run(instances, "identity,mnn", top_k=8).run
    hardware = {**done.record.identity.hardware, "executor": "local", "workers": 2}
    record = replace(done.record, identity=replace(done.record.identity, hardware=hardware))
    several = compare([replace(done, record=record)])
    assert any("2 workers beside one another" in note for note in several.notes)
    assert "2 workers" in to_markdown(several) and "workers" not in to_markdown(compare([done]))


def test_a_table_in_latex_is_a_booktabs_table_with_its_notes_as_comments(marked: Table) -> None:
    text = to_latex(replace(marked, notes=("of a_b & 50%\nof two lines",)))
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    commands = [found.group() for line in lines if (found := re.match(r"\\[a-z]+({[a-z]+})?", line))]
    assert [command for command in commands if not command.startswith(r"\caption")] == [
        r"\begin{table}",
        r"\centering",
        r"\begin{tabular}",
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    assert lines[3] == r"\begin{tabular}{ll" + "r" * len(marked.columns) + "}"
    rules = [lines.index(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")]
    assert rules == [4, 6, 7 + len(marked.rows)]
    assert "% of a_b & 50% of two lines" in text.splitlines() and "hline" not in text


def test_chosen_columns_are_those_of_every_format_in_the_order_asked_for(marked: Table) -> None:
    """A name stands for itself, else for all that begin with it; what is not shown is not explained."""
    (chosen,) = with_columns([marked], ["KiB/image", " mAP", "gain", "R@10 All"])
    names = ["KiB/image", "mAP All", "gain", "R@10 All"]
    assert [column.name for column in chosen.columns] == names
    other = replace(marked, columns=marked.columns[-1:])
    (times,), both = with_columns([marked], ["ms/query"]), with_columns([other, marked], ["mAP All", "peak MiB"])
    assert [column.name for column in times.columns] == ["ms/query p50", "ms/query p95"]
    assert [[column.name for column in table.columns] for table in both] == [["peak MiB"], ["mAP All", "peak MiB"]]
    head = next(line for line in to_markdown(chosen).splitlines() if line.startswith("| method"))
    assert head == f"| method | features | {' | '.join(names)} |"
    read = pd.read_csv(io.StringIO(to_csv(chosen)))
    assert [name for name in read.columns if name in {column.name for column in marked.columns}] == names
    assert "corrected $p" in to_latex(chosen) and "corrected $p" not in to_latex(*with_columns([marked], ["mAP", "p"]))
    with pytest.raises(UserError, match="unknown column 'map'"):
        with_columns([marked], ["mAP", "map"])


def test_a_table_in_latex_has_no_folders_of_the_machine(marked: Table) -> None:
    named = replace(
        marked,
        rows=marked.rows.rename(index={"rrt": "rrt weights=/home/me/w.pt"}),
        features={**marked.features, "rrt weights=/home/me/w.pt": "xfeat"},
    )
    rows = [line for line in to_latex(named).splitlines() if line.endswith(r"\\")]
    assert any(line.startswith("rrt weights=w.pt &") for line in rows) and "/home/me" not in "".join(rows)


def test_a_method_without_a_paper_is_said_to_have_its_licence_alone(
    run: Callable, instances: Path, add_method: Callable
) -> None:
    add_method("mine", "def score(self, query, candidates):\n    return candidates.similarities")
    assert compare([run(instances, "identity,mine").run]).cards == ("mine: Apache-2.0",)


# --- which rows, in which formats -----------------------------------------------------------------------------------


def test_runs_of_different_seals_never_share_a_table(run: Go, instances: Path, places: Places) -> None:
    a, b = run(instances, "identity").run, run(instances, "reverse").run
    c = run(instances, "identity", top_k=5).run
    assert a.seal == b.seal != c.seal
    groups = table_groups(finished_runs(places.runs))
    assert sorted(len(group) for group in groups) == [1, 2]
    for group in groups:
        assert len({r.seal for r in group}) == 1
    with pytest.raises(UserError, match="different shortlists"):
        compare([a, c])
    assert set(compare([a, b]).rows.index) == {"identity", "reverse"}


def test_runs_of_different_machines_never_share_a_table(run: Go, instances: Path, places: Places) -> None:
    a = run(instances, "identity").run
    b = run(instances, "reverse").run
    about = json.loads((b.folder / "run.json").read_text())
    about["identity"]["hardware"]["threads"] = 7
    (b.folder / "run.json").write_text(json.dumps(about))
    assert [len(group) for group in table_groups([a, Run.load(b.folder)])] == [1, 1]


def test_the_newest_row_of_a_method_stands_and_other_options_are_another_row(run: Go, instances: Path) -> None:
    a = run(instances, "mnn").run
    b = run(instances, "mnn", options={"mnn": {"descriptors": "40"}}).run
    assert set(compare([a, b]).rows.index) == {"mnn", "mnn descriptors=40"}


def test_a_folder_of_an_odd_name_is_reported_like_any_other(
    run: Go, write_instances: Callable, places: Places, tmp_path: Path
) -> None:
    """Brackets are markup to the terminal, dollars to a plot's title, percent and underscore to LaTeX."""
    odd = write_instances(tmp_path / "my [old] [/photos] $a_b$ & 50% ü", 2, 2)
    run(odd, "identity,ransac")
    for form in ("terminal", *FORMATS):
        result = CliRunner().invoke(
            main, ["report", "--runs", str(places.runs), "--format", form, "--plots", str(tmp_path / "plots")]
        )
        assert result.exit_code == 0, (form, result.output, result.exception)
        if form != "json":
            assert "[old] [/photos] $a_b$ & 50% ü" in result.output.replace("\n", " "), form


@pytest.fixture
def reported(run: Go, images: Path, places: Places) -> Callable[..., Result]:
    """`report` on the command line, after a run with several methods."""
    run(images, "identity,oracle,ransac,reverse", top_k=5)

    def report(*more: str) -> Result:
        return CliRunner().invoke(main, ["report", "--runs", str(places.runs), "--cache-dir", str(places.cache), *more])

    return report


@pytest.mark.parametrize("form", list(FORMATS))
def test_every_format_holds_the_same_table(reported: Callable[..., Result], places: Places, form: str) -> None:
    result = reported("--format", form)
    assert result.exit_code == 0, result.output
    text = result.stdout
    table = compare(finished_runs(places.runs))
    names, columns = list(table.rows.index), [c.name for c in table.columns]
    if form == "json":
        content = json.loads(text)
        assert content["seal"] == table.about["seal"] and [row["method"] for row in content["rows"]] == names
        assert all(set(columns) <= row.keys() for row in content["rows"])
    elif form == "csv":
        read = pd.read_csv(io.StringIO(text))
        assert read.method.tolist() == names
        np.testing.assert_allclose(read[columns].to_numpy(), table.rows[columns].to_numpy(), rtol=1e-12)
    elif form == "md":
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert len(lines) == 2 + len(names)
        assert {line.count("|") for line in lines} == {len(columns) + 3}
        assert [line.split("|")[1].strip().rstrip("*") for line in lines[2:]] == names
        assert [line.split("|")[2].strip() for line in lines[2:]] == [table.features[name] or "–" for name in names]
    else:
        body = [line for line in text.splitlines() if line.endswith(r"\\")]
        assert len(body) == 1 + len(names) and {line.count(" & ") for line in body} == {len(columns) + 1}
        assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1


def test_the_terminal_table_names_policy_seal_and_every_method(reported: Callable[..., Result], places: Places) -> None:
    text = reported().output
    done = finished_runs(places.runs)[0]
    assert done.seal[:8] in text and "policy blind" in text
    for name in ("identity*", "oracle*", "reverse*", "ransac"):
        assert name in text


def test_a_page_has_all_columns_whichever_the_table_shows(reported: Callable[..., Result], tmp_path: Path) -> None:
    result = reported("--columns", "KiB/image", "--html", str(tmp_path / "page.html"))
    assert result.exit_code == 0 and "KiB/image" in result.stdout and "headroom" not in result.stdout
    assert "headroom Medium" in (page := (tmp_path / "page.html").read_text()) or "headroom All" in page


def test_plots_are_written(reported: Callable[..., Result], tmp_path: Path) -> None:
    result = reported("--plots", str(tmp_path / "plots"), "--format", "json")
    assert result.exit_code == 0, result.output
    (plot,) = (tmp_path / "plots").iterdir()
    assert plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and plot.stat().st_size > 5000


def test_a_report_can_be_narrowed_to_a_seal_a_data_set_and_a_blend(
    reported: Callable[..., Result], places: Places, images: Path
) -> None:
    seal = finished_runs(places.runs)[0].seal
    assert reported("--seal", seal[:8], "--format", "json").exit_code == 0
    assert reported("--dataset", f"folder:{images}", "--format", "json").exit_code == 0
    assert reported("--dataset", images.name, "--format", "json").exit_code == 0
    blended = reported("--blend", "sigmoid:0.5,0.1", "--format", "json")
    assert json.loads(blended.stdout)["blend"] == "sigmoid:0.5,0.1"
    for nothing in (("--seal", "zz"), ("--dataset", "demo")):
        result = reported(*nothing)
        assert result.exit_code == 1 and "no finished run of that kind" in result.output


def test_a_report_refuses_a_run_whose_shortlist_was_changed(reported: Callable[..., Result], places: Places) -> None:
    path = finished_runs(places.runs)[0].folder / "shortlist.npz"
    with np.load(path) as file:
        content = {key: file[key] for key in file.files}
    content["list/any"] = content["list/any"][:, ::-1]
    np.savez(path, **content)
    result = reported("--blend", "add:1")
    assert result.exit_code == 1 and "seal" in result.output


def test_headroom_is_0_for_the_first_stage_and_100_for_the_oracle(run: Go, buildings: Path) -> None:
    rows = compare([run(buildings, "identity,constant,oracle,reverse", top_k=8).run]).rows
    (headroom,) = [name for name in rows.columns if name.startswith("headroom")]
    assert rows.loc["identity", headroom] == 0 == rows.loc["constant", headroom]
    assert rows.loc["oracle", headroom] == pytest.approx(100)
    assert rows.loc["reverse", headroom] < 0


def test_rows_of_earlier_code_of_a_method_are_named(run: Go, instances: Path, add_method: Callable) -> None:
    body = """
@dataclass(frozen=True)
class Options:
    sign: int = 1  # of the score

def score(self, query, candidates):
    return candidates.similarities * self.options.sign{more}
"""
    add_method("coded", "from dataclasses import dataclass\n" + body.format(more=""))
    before = run(instances, "coded", top_k=5, options={"coded": {"sign": "-1"}}).run
    assert not any("earlier code" in note for note in compare([before]).notes)
    add_method("coded", "from dataclasses import dataclass\n" + body.format(more=" + 1"))
    after = run(instances, "coded", top_k=5).run
    said = [note for note in compare([before, after]).notes if "earlier code" in note]
    assert said == ["Measured with earlier code than other rows of the same method: coded sign=-1."]


def test_losses_are_numbers_and_only_a_column_with_a_least_value_says_less_than(done: Run) -> None:
    table = compare([done])
    values = {column.name: -2.25 for column in table.columns} | {"p": 0.0004}
    (row,) = cells(replace(table, rows=pd.DataFrame([values], ["identity"])))
    said = dict(zip((column.name for column in table.columns), row[2:], strict=True))
    assert said["gain"] == said["gain low"] == "-2.2" and said["headroom All"] == "-2" and said["p"] == "<0.001"
