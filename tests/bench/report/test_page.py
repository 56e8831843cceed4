"""The page of a comparison: it says what the table says, loads nothing, and no name in it is markup or script."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bench.blend import Blend
from bench.datasets import Dataset, Query
from bench.evaluation import FIRST_STAGE, evaluate
from bench.report import sections
from bench.report.charts import Axis, front
from bench.report.formats import cells, to_csv, to_json
from bench.report.page import PICTURES, embedded, page
from bench.report.sections import KINDS, SHOWN, Section
from bench.report.sensitivity import change, order, sensitivity
from bench.report.tables import compare
from bench.report.thumbnails import SIDE, thumbnail, thumbnails
from bench.results import TABLES, Run
from bench.run import Outcome
from bench.shortlist import Graded, Shortlist

Go = Callable[..., Outcome]
LARGEST = 30_000_000  # characters of a page of 70 queries, 8 methods and 100 candidates


class Parsed(HTMLParser):
    """Elements with their attributes, rows of text cells by table class, and what scripts hold."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[tuple[str, str | None]]]] = {}
        self.scripts: list[str] = []
        self.text = ""
        self._table = self._inside = ""
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.elements.append((tag, given))
        self._inside = tag if tag in ("script", "style") else self._inside
        if tag == "table":
            self._table = given["class"] or ""
            self.tables.setdefault(self._table, [])
        if tag == "tr":
            self.tables[self._table].append([])
        if tag in ("td", "th"):
            self.tables[self._table][-1].append(("", given.get("data-value")))
            self._cell = True
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._table = ""
        if tag in ("td", "th"):
            said, value = self.tables[self._table][-1][-1]
            self.tables[self._table][-1][-1] = (said.strip(), value)
            self._cell = False
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif not self._inside:
            self.text += data
            if self._cell:
                said, value = self.tables[self._table][-1][-1]
                self.tables[self._table][-1][-1] = (said + data, value)

    @property
    def data(self) -> dict:
        return json.loads(self.scripts[0])


@pytest.fixture
def done(finished: Callable[..., Run], buildings: Path) -> Run:
    return finished(buildings, "identity,oracle,reverse,constant,aqe,mnn", top_k=8)


def shown(*runs: Run, blend: Blend = Blend()) -> Parsed:
    return Parsed(page([(runs, compare(runs, blend))], blend))


# --- it says what the table says ------------------------------------------------------------------------------------


def test_the_table_of_the_page_is_the_table(done: Run) -> None:
    table = compare([done])
    rows = Parsed(page([([done], table)])).tables["sortable"]
    assert [said for said, _ in rows[0]] == ["method", "features", *(c.name for c in table.columns)]
    for (name, of, *values), texts in zip(rows[1:], cells(table), strict=True):
        assert name[1] == texts[0].removesuffix("*") and of[0] == texts[1]
        assert ("* control" in name[0]) == (name[1] in table.controls)
        assert [said for said, _ in values] == texts[2:]
        exact = [float(value) if value else float("nan") for _, value in values]
        np.testing.assert_array_equal(exact, table.rows.loc[name[1]])


def test_the_head_says_answer_seal_and_caveats(done: Run) -> None:
    table = compare([done])
    text = Parsed(page([([done], table)])).text
    for said in (table.answer, done.seal, *table.notes, done.shortlist.header.image_set, "crop", "AP"):
        assert said in text


def test_values_by_query_are_those_that_the_table_means(done: Run) -> None:
    table, (section,) = compare([done]), shown(done).data["sections"]
    assert section["rows"] == ["first stage", *table.rows.index] and section["queries"] == ["query0", "query1"]
    for name, values in zip(section["rows"], section["values"], strict=True):
        mean = table.first_stage if name == "first stage" else table.rows.loc[name, "mAP Medium"]
        assert np.mean(values) == pytest.approx(mean, abs=1e-3)
    best = max(set(table.rows.index) - table.controls, key=lambda name: table.rows.loc[name, "mAP Medium"])
    assert [section["rows"][row] for row in section["pair"]] == [best, "first stage"]


@pytest.mark.parametrize("blend", [Blend(), Blend.parse("add:0.01")], ids=str)
def test_rankings_are_those_of_the_scores_with_grades_and_places_before(done: Run, blend: Blend) -> None:
    (section,) = shown(done, blend=blend).data["sections"]
    rankings, grades = done.rankings(blend), done.dataset.grades
    gallery = np.array(done.shortlist.gallery)
    for number, query in enumerate(section["queries"]):
        first = gallery[done.shortlist.candidates("any", number)].tolist()
        for name, places in zip(section["rows"], section["details"][str(number)]["rankings"], strict=True):
            row = FIRST_STAGE if name == "first stage" else name
            images = [section["images"][image][0] for image, *_ in places]
            assert images == gallery[rankings.ranking(row, "Medium", number)][:SHOWN].tolist()
            assert [KINDS[kind] for _, kind, *_ in places] == [grades[query].get(i, "negative") for i in images]
            assert [before for _, _, before, _ in places] == [first.index(image) + 1 for image in images]
            scores = [score for *_, score in places]
            assert scores == sorted(scores, reverse=True)


def test_downloads_are_the_tables_own_formats(done: Run) -> None:
    table = compare([done])
    found = {
        given["download"]: base64.b64decode(given["href"].partition("base64,")[2]).decode()
        for tag, given in Parsed(page([([done], table)])).elements
        if tag == "a"
    }
    assert sorted(name.rpartition(".")[2] for name in found) == ["csv", "json"]
    (csv,), (line,) = ([text for name, text in found.items() if name.endswith(kind)] for kind in ("csv", "json"))
    assert csv == to_csv(table) and line == to_json(table)
    assert pd.read_csv(io.StringIO(csv))["mAP Medium"].tolist() == table.rows["mAP Medium"].tolist()


def test_other_protocols_are_those_of_the_replay(done: Run) -> None:
    found, parsed = sensitivity([done], compare([done])), shown(done)
    families, names, *rows, verdict = parsed.tables["sensitivity"]
    assert [said for said, _ in families] == ["method", "table", *dict.fromkeys(one.family for one in found.choices)]
    assert [said for said, _ in names] == [one.name for one in found.choices]
    assert [said for said, _ in verdict[2:]] == [order(found, one) for one in found.choices]
    for name, (said, value, *texts) in zip(found.values.index, rows, strict=True):
        assert said[0] == ("first stage" if name == FIRST_STAGE else name) and value[0] == f"{found.value(name):.1f}"
        for (text, _), choice in zip(texts, found.choices, strict=True):
            known = found.value(name, choice)
            assert text == ("–" if np.isnan(known) else f"{known:.1f}") + change(found, name, choice)
    assert found.answer in parsed.text and all(note in parsed.text for note in found.notes)


def test_queries_too_many_to_replay_are_said_to_be(done: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections, "REPLAYED", 3)
    parsed = shown(done)
    assert "Too many queries to replay here" in parsed.text and "sensitivity" not in parsed.tables


def test_cards_and_commands_are_there(done: Run) -> None:
    text = shown(done).text
    for card in done.record.cards.values():
        assert card.licence in text and (card.paper or "") in text
    sources = {identity.source_sha256 for identity in done.record.identity.methods.values()}
    assert all(source and source in text for source in sources)
    assert str(done.record.finished) in text


def test_a_row_that_may_not_be_sold_says_so(done: Run) -> None:
    closed = replace(done.record.cards["mnn"], noncommercial="CC BY-NC 4.0")
    other = replace(done, record=replace(done.record, cards={**done.record.cards, "mnn": closed}))
    rows = {name[1]: name[0] for name, *_ in shown(other).tables["sortable"][1:]}
    assert {name for name, said in rows.items() if "non-commercial" in said} == {"mnn"}
    assert "NOT FOR COMMERCIAL USE (CC BY-NC 4.0)" in shown(other).text


def test_rows_are_marked_as_the_answer_has_them(run: Go, instances: Path, done: Run) -> None:
    """Two queries tell no contender from another; the best of one contender is the best of none."""
    rows = {name[1]: name[0] for name, *_ in shown(done).tables["sortable"][1:]}
    assert {name for name, said in rows.items() if "≈ best" in said} == {"aqe", "mnn"}
    assert "≈ best</span>" not in page([([one := run(instances, "identity,mnn", top_k=5).run], compare([one]))])


def test_every_seal_is_a_section_of_its_own(done: Run, run: Go, instances: Path) -> None:
    other = run(instances, "identity,mnn", top_k=5).run
    parsed = Parsed(page([([done], compare([done])), ([other], compare([other]))]))
    ids = [given["id"] for tag, given in parsed.elements if tag == "article"]
    assert ids == ["s1", "s2"] and len(parsed.data["sections"]) == 2
    assert [given["href"] for tag, given in parsed.elements if tag == "a"][:2] == ["#s1", "#s2"]


# --- it holds all that it shows -------------------------------------------------------------------------------------


def test_nothing_is_loaded_from_anywhere(done: Run) -> None:
    text = page([([done], compare([done]))])
    parsed = Parsed(text)
    for _, attributes in parsed.elements:
        for name in ("src", "href", "action", "srcset", "xlink:href", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttpRequest", text)
    (policy,) = [given["content"] for _, given in parsed.elements if given.get("http-equiv")]
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:;")


def test_each_image_is_there_once_and_small(done: Run) -> None:
    data = shown(done).data
    section = data["sections"][0]
    used = {number for _, number in section["images"]} | {d["image"] for d in section["details"].values()}
    assert used == set(range(len(data["thumbnails"]))) and len(set(data["thumbnails"])) == len(data["thumbnails"])
    for text in data["thumbnails"]:
        with Image.open(io.BytesIO(base64.b64decode(text))) as image:
            assert image.format == "JPEG" and max(image.size) <= SIDE
    assert section["details"]["0"]["box"] == pytest.approx([10 / 160, 5 / 120, 140 / 160, 110 / 120], abs=1e-3)


def test_a_thumbnail_keeps_the_shape_of_a_large_photograph(tmp_path: Path) -> None:
    wide, broken = tmp_path / "wide.jpg", tmp_path / "broken.jpg"
    Image.new("RGB", (2000, 500), "red").save(wide)
    broken.write_bytes(wide.read_bytes()[:100])
    small = thumbnail(wide)
    assert small is not None and small.size == (2000, 500)
    with Image.open(io.BytesIO(base64.b64decode(small.jpeg))) as image:
        assert image.size == (140, 35)
    assert thumbnail(broken) is None and thumbnail(tmp_path / "absent.jpg") is None
    room = len(small.jpeg)
    assert list(thumbnails([broken, wide, wide, broken], room)) == [broken, wide]
    assert list(thumbnails([broken, wide], room - 1)) == [broken]


def test_images_that_cannot_be_read_show_their_names(run: Go, write_buildings: Callable, tmp_path: Path) -> None:
    gone = run(write_buildings(tmp_path / "gone"), "identity,mnn", top_k=8).run
    for file in (*gone.dataset.gallery.values(), *(query.image for query in gone.dataset.queries)):
        file.unlink()
    parsed = shown(gone)
    assert parsed.data["thumbnails"] == [] and {number for _, number in parsed.data["sections"][0]["images"]} == {-1}
    assert "could not be read and show their names" in parsed.text


@dataclass(frozen=True, eq=False)
class Made(Run):
    """A run of tables that were made up."""

    made: tuple[Shortlist, Dataset, pd.DataFrame, pd.DataFrame]

    @property
    def shortlist(self) -> Shortlist:  # type: ignore[override]
        return self.made[0]

    @property
    def dataset(self) -> Dataset:  # type: ignore[override]
        return self.made[1]

    @property
    def scores(self) -> pd.DataFrame:  # type: ignore[override]
        return self.made[2]

    @property
    def ledger(self) -> pd.DataFrame:  # type: ignore[override]
        return self.made[3]

    def metrics(self, blend: Blend = Blend()) -> pd.DataFrame:
        return evaluate(self.rankings(blend))


def made(like: Run, folder: Path, queries: int, names: Sequence[str], k: int, gallery: int) -> Made:
    """Random scores of all methods on random lists; every image is noise, which no JPEG makes small."""
    draw = np.random.default_rng(0)
    folder.mkdir()
    noise = []
    for number in range(20):
        noise.append(folder / f"{number}.png")
        Image.fromarray(draw.integers(0, 256, (140, 140, 3), np.uint8)).save(noise[-1])
    images = [f"image{number}" for number in range(gallery)]
    files = {image: folder / f"{image}.png" for image in images}
    for number, file in enumerate(files.values()):
        os.link(noise[number % len(noise)], file)
    ids = tuple(f"query{number}" for number in range(queries))
    lists = np.stack([draw.permutation(gallery)[:k] for _ in ids])
    grades = {query: {images[image]: "easy" for image in of[:5]} for query, of in zip(ids, lists, strict=True)}
    graded = Graded(np.arange(0, 5 * queries + 1, 5), lists[:, :5].ravel(), np.tile(np.arange(5), queries))
    header = replace(like.shortlist.header, k=k, gallery_size=gallery, protocol="instance")
    similarities = np.sort(draw.random((queries, k)), axis=1)[:, ::-1].astype(np.float32)
    shortlist = Shortlist(header, ids, tuple(images), {"any": lists}, {"any": similarities}, graded)
    pairs = [
        (name, "any", query, images[i]) for name in names for query, of in zip(ids, lists, strict=True) for i in of
    ]
    scores = pd.DataFrame(pairs, columns=TABLES["scores"].names[:-1]).assign(score=draw.random(len(pairs)))
    times = [(name, query, k, 1.0, 0.0, 10.0) for name in names for query in ids]
    ledger = pd.DataFrame(times, columns=TABLES["ledger"].names)
    asked = tuple(Query(query, noise[0]) for query in ids)
    old = like.record
    record = replace(
        old,
        identity=replace(old.identity, methods=dict.fromkeys(names, old.identity.methods["mnn"]), shortlist=header),
        defaults={},
        skipped={},
        cold={},
        costs=dict.fromkeys(names, old.costs["mnn"]),
        cards=dict.fromkeys(names, old.cards["mnn"]),
    )
    dataset = Dataset("made", "instance", "noise", asked, files, grades)
    return Made(folder, record, (shortlist, dataset, scores, ledger))


def test_a_page_of_many_rankings_stays_small_enough(done: Run, tmp_path: Path) -> None:
    large = made(done, tmp_path / "noise", 70, [f"method{number}" for number in range(8)], 100, 3000)
    text = page([([large], compare([large]))])
    data = Parsed(text).data
    held = sum(map(len, data["thumbnails"]))
    assert 0.99 * PICTURES < held <= PICTURES and len(text) < LARGEST
    assert re.search(r"\d+ images show their names, since the page would be too large", text)
    assert len(data["sections"][0]["details"]) == 70  # every query has its rankings, also where images have no room


# --- names are names ------------------------------------------------------------------------------------------------

HOSTILE = ["<img src=x onerror=alert(1)>", "'\"><b>${1}`", "a\nb", "&lt;i&gt; {{ 7*7 }}", "\u2028]]>--><!--"]


def hostile(root: Path, view: Callable[[int, int], np.ndarray]) -> Path:
    """One folder per instance, each of a hostile name; one image is called </script>, as far as a path allows it."""
    for scene, name in enumerate(HOSTILE):
        (root / name).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(view(scene, number)).save(root / name / f"{name}{number}.png")
    (root / "<").mkdir()
    for number, name in enumerate(["script>", "script>alert(1)"]):
        Image.fromarray(view(9, number)).save(root / "<" / f"{name}.png")
    return root


MARKED = """
@dataclass(frozen=True)
class Options:
    mark: str = "plain"

def score(self, query, candidates):
    return candidates.similarities
"""


@pytest.fixture
def attacked(run: Go, view: Callable, add_method: Callable, tmp_path: Path) -> Run:
    add_method("marked", "from dataclasses import dataclass\n" + MARKED)
    root = hostile(tmp_path / "<script>alert(1)</script" / "set", view)
    return run(root, "identity,marked", top_k=5, options={"marked": {"mark": "</script><b onclick='x'>${2}"}}).run


def test_no_name_is_markup_or_ends_a_script(attacked: Run) -> None:
    text = page([([attacked], compare([attacked]))])
    parsed = Parsed(text)
    tags = [tag for tag, _ in parsed.elements]
    assert tags.count("script") == 2 and not {"img", "b", "iframe", "object"} & set(tags)
    assert not [name for _, given in parsed.elements for name in given if name.startswith("on")]
    raw = parsed.scripts[0]
    assert not set("<>&\u2028\u2029\n") & set(raw)
    assert parsed.data["sections"][0]["queries"] == [query.id for query in attacked.dataset.queries]
    assert any("</script>" in image for image, _ in parsed.data["sections"][0]["images"])
    (name,) = [name for name in compare([attacked]).rows.index if name.startswith("marked")]
    assert name == "marked mark=</script><b onclick='x'>${2}"
    assert name in parsed.data["sections"][0]["rows"] and name in parsed.text
    assert "{{ 7*7 }}" in parsed.text and "&lt;i&gt;" in parsed.text


@given(st.recursive(st.text() | st.integers() | st.none() | st.booleans(), st.lists, max_leaves=5))
def test_embedded_json_comes_back_and_has_no_character_of_markup(value: object) -> None:
    text = str(embedded({"</script>": value}))
    assert json.loads(text) == {"</script>": value}
    assert text.isascii() and not set("<>&\n") & set(text)


def test_no_number_that_json_lacks_is_embedded() -> None:
    with pytest.raises(ValueError):
        embedded([float("nan")])


# --- little or nothing to show --------------------------------------------------------------------------------------


def test_a_value_that_is_missing_is_a_dash_and_no_point(done: Run) -> None:
    table = compare([done])
    rows = table.rows.copy()
    rows.loc["mnn", ["KiB/image", "extract ms"]] = float("nan")
    text = page([([done], replace(table, rows=rows))])
    columns, *found = Parsed(text).tables["sortable"]
    place = [said for said, _ in columns].index("KiB/image")
    assert [row[place] for row in found if row[0][1] == "mnn"] == [("–", "")]
    assert (
        text.count("Without a value: mnn.") == 1
        and "nan" not in re.sub(r"base64,[^\"]*|JSON", "", text).split("<script")[0]
    )


@pytest.mark.parametrize("names", ["identity,oracle", "mnn", "identity"])
def test_controls_alone_and_a_contender_alone_have_a_page(run: Go, instances: Path, names: str) -> None:
    alone = run(instances, names, top_k=5).run
    parsed = shown(alone)
    assert len(parsed.tables["sortable"]) == 2 + names.count(",")
    contender = "mnn" in names
    assert ("No contender has a value here" in parsed.text) == (not contender)
    assert ("matrix" in parsed.tables) == contender == ("sensitivity" in parsed.tables)


def test_one_query_has_a_page(run: Go, write_buildings: Callable, tmp_path: Path) -> None:
    root = write_buildings(tmp_path / "one")
    truth = json.loads((root / "gnd.json").read_text())
    (root / "gnd.json").write_text(json.dumps(truth | {"queries": truth["queries"][:1]}))
    (root / "queries" / "query1.png").unlink()
    parsed = shown(run(root, "identity,mnn,aqe", top_k=8).run)
    assert parsed.data["sections"][0]["queries"] == ["query0"] and "query by query: ap" in parsed.text.lower()


def test_queries_without_a_positive_have_no_value(run: Go, write_buildings: Callable, tmp_path: Path) -> None:
    root = write_buildings(tmp_path / "none")
    truth = json.loads((root / "gnd.json").read_text())
    truth["queries"][1] |= {"easy": [], "hard": []}
    (root / "gnd.json").write_text(json.dumps(truth))
    (section,) = shown(run(root, "identity,mnn,aqe", top_k=8).run).data["sections"]
    assert all(values[0] is not None and values[1] is None for values in section["values"])


def test_a_table_of_other_runs_is_refused(done: Run, run: Go, instances: Path) -> None:
    with pytest.raises(ValueError, match="differ in the row"):
        Section((done,), compare([run(instances, "identity", top_k=5).run]))


# --- charts ---------------------------------------------------------------------------------------------------------

POINTS = st.dictionaries(st.text(max_size=3), st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8)


@given(POINTS, st.sampled_from([1, -1]))
def test_a_point_is_on_the_front_if_no_other_beats_it(points: dict[str, tuple[int, int]], better: int) -> None:
    def beaten(point: tuple[int, int]) -> bool:
        return any(x <= point[0] and better * y >= better * point[1] and (x, y) != point for x, y in points.values())

    assert set(front(points, better)) == {name for name, point in points.items() if not beaten(point)}


@given(st.lists(st.integers(-(10**9), 10**9).map(lambda number: number / 1000), max_size=6), st.booleans())
def test_an_axis_holds_its_values_in_order_and_has_ticks(values: list[float], log: bool) -> None:
    axis = Axis.around(values, log)
    shares = [axis.share(value) for value in sorted(values)]
    assert shares == sorted(shares) and all(0 <= share <= 1 for share in shares)
    assert all(0 <= tick.share <= 1 for tick in axis.ticks)
    assert [tick.share for tick in axis.ticks] == sorted(tick.share for tick in axis.ticks)


# --- the command ----------------------------------------------------------------------------------------------------

Cli = Callable[..., Result]


def test_the_command_writes_a_page_beside_the_tables_and_refuses_a_folder(cli: Cli, done: Run, tmp_path: Path) -> None:
    common = ("report", "--runs", str(done.folder.parent), "--format", "json")
    file = tmp_path / "new" / "page.html"
    result = cli(*common, "--html", str(file))
    assert result.exit_code == 0 and json.loads(result.stdout) and f"page: {file}" in result.stderr
    assert file.read_text() == page([([done], compare([done]))]) and [*file.parent.iterdir()] == [file]
    wrong = cli(*common, "--html", str(tmp_path))
    assert wrong.exit_code != 0 and "--html" in wrong.output and "is a directory" in wrong.output


def test_a_cascade_that_is_replayed_is_in_the_page(cli: Cli, done: Run, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    given = ("--format", "json", "--cascade", "aqe,mnn:4", "--html", str(file))
    assert cli("report", "--runs", str(done.folder.parent), *given).exit_code == 0
    assert any("stages=aqe,mnn:4" in name for name in Parsed(file.read_text()).data["sections"][0]["rows"])


# --- in a browser ---------------------------------------------------------------------------------------------------

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# the page in a frame of its own, so that it is as narrow as a phone and is driven without being changed
DRIVEN = """<!DOCTYPE html><meta charset="utf-8"><iframe style="width:{width}px;height:900px;border:0" srcdoc="{page}">
</iframe><pre id="found"></pre><script>
addEventListener("load", async () => {{
  const page = document.querySelector("iframe").contentDocument, found = {{}};
  const all = (name) => [...page.querySelectorAll(name)];
  {script}
  document.getElementById("found").textContent = btoa(encodeURIComponent(JSON.stringify(found)));
}});
</script>"""


@pytest.fixture
def browse(tmp_path: Path) -> Iterator[Callable[[Path], str]]:
    """The document of a file once its scripts have run. Whatever the console was told fails the test."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr")

    def go(file: Path) -> str:
        own = (f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom", file.as_uri())
        done = subprocess.run([browser, *flags, *own], capture_output=True, text=True, timeout=120, check=True)
        assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return done.stdout

    yield go


@pytest.fixture
def drive(browse: Callable[[Path], str], tmp_path: Path) -> Callable[..., dict]:
    """What a script finds in a page of some width."""

    def go(text: str, script: str, width: int = 1200) -> dict:
        file = tmp_path / "driven.html"
        file.write_text(DRIVEN.format(width=width, page=html.escape(text), script=script))
        (found,) = re.findall(r'<pre id="found">([^<]*)</pre>', browse(file))
        return json.loads(unquote(base64.b64decode(found).decode()))

    return go


def test_a_page_opened_from_disk_runs_without_a_word_on_the_console(
    browse: Callable[[Path], str], done: Run, tmp_path: Path
) -> None:
    file = tmp_path / "page.html"
    file.write_text(page([([done], compare([done]))]))
    found = browse(file)
    assert re.search(r'class="counts"[^>]*>\d wins, \d ties, \d losses; mean', found)
    assert len(re.findall(r'<button type="button" tabindex="-?\d" data-query=', found)) == 2


def test_a_click_on_a_head_sorts_and_a_second_turns_it_round(drive: Callable[..., dict], done: Run) -> None:
    table = compare([done])
    column = 2 + [c.name for c in table.columns].index("ms/query p50")
    script = f"""
      const order = () => all(".sortable tbody tr").map((row) => row.cells[0].dataset.value);
      const head = page.querySelector(".sortable").tHead.rows[0].cells[{column}];
      found.orders = [order()];
      for (let time = 0; time < 2; time++) {{
        head.querySelector("button").click();
        found.orders.push(order(), head.getAttribute("aria-sort"));
      }}"""
    before, fast, up, slow, down = drive(page([([done], table)]), script)["orders"]
    assert before == list(table.rows.index) and (up, down) == ("ascending", "descending")
    # measured times may stand in the order of the table: of the two orders, one differs from it
    assert fast == table.rows["ms/query p50"].sort_values(kind="stable").index.tolist() == slow[::-1] != slow


def test_a_query_that_is_opened_shows_its_images_and_is_left_again(drive: Callable[..., dict], done: Run) -> None:
    script = """
      const panel = page.querySelector(".panel");
      found.before = panel.hidden;
      all(".differences button")[1].click();
      found.after = panel.hidden;
      found.focused = page.activeElement.textContent;
      const images = [...panel.querySelectorAll("img")];
      await Promise.all(images.map((image) => image.decode()));
      found.images = images.filter((image) => image.naturalWidth > 0 && image.src.startsWith("data:image/jpeg")).length;
      found.strips = panel.querySelectorAll(".strip").length;
      found.kinds = [...new Set([...panel.querySelectorAll(".kind")].map((kind) => kind.textContent))].sort();
      found.box = panel.querySelectorAll(".boxed i").length;
      panel.querySelector("button").click();
      found.closed = panel.hidden;"""
    found = drive(page([([done], compare([done]))]), script)
    rankings = 1 + len(done.record.costs)
    assert found["before"] and not found["after"] and found["closed"] and found["focused"] in ("query0", "query1")
    assert (found["strips"], found["images"], found["box"]) == (rankings, 1 + 8 * rankings, 1)
    assert set(found["kinds"]) <= set(KINDS) and {"easy", "hard", "negative"} <= set(found["kinds"])


def test_other_rows_are_compared_when_they_are_chosen(drive: Callable[..., dict], done: Run) -> None:
    script = """
      const [ours, theirs] = [page.querySelector(".ours"), page.querySelector(".theirs")];
      found.names = [...ours.options].map((option) => option.textContent);
      theirs.value = ours.value;
      theirs.dispatchEvent(new Event("change"));
      found.same = page.querySelector(".counts").textContent;"""
    found = drive(page([([done], compare([done]))]), script)
    assert found["same"] == "0 wins, 2 ties, 0 losses; mean 0.0 points"
    assert found["names"] == ["first stage", *compare([done]).rows.index]


@pytest.mark.parametrize("width", [360, 1200])
def test_no_part_of_the_page_is_wider_than_the_screen(drive: Callable[..., dict], done: Run, width: int) -> None:
    script = """
      const sizes = () => [page.documentElement.scrollWidth, page.documentElement.clientWidth];
      found.before = sizes();
      all(".differences button")[0].click();
      all("details").forEach((part) => { part.open = true; });
      found.after = sizes();"""
    found = drive(page([([done], compare([done]))]), script, width)
    for wide, screen in found.values():
        assert wide == screen <= width


PAPER = 960  # CSS pixels that a landscape page of US letter is wide, within its margins


def test_on_paper_nothing_is_cut_hidden_or_to_be_clicked(drive: Callable[..., dict], done: Run) -> None:
    """What holds in print holds here on the screen, whose size a script can see."""
    text = page([([done], compare([done]))]).replace("@media print {", "@media all {")
    script = """
      page.defaultView.dispatchEvent(new Event("beforeprint"));
      const seen = (element) => element.getClientRects().length > 0;
      found.wide = [page.documentElement.scrollWidth, page.documentElement.clientWidth];
      found.tables = all(".scroll").map((one) =>
        [one.scrollWidth, one.clientWidth, one.scrollHeight, one.clientHeight]);
      found.controls = all("select, .downloads a, nav a").filter(seen).length;
      found.said = all(".compared").filter(seen).map((part) => part.textContent);
      found.closed = all("details:not([open])").length;
      found.opened = all("details").length;
      page.defaultView.dispatchEvent(new Event("afterprint"));
      found.after = all("details[open]").length;"""
    found = drive(text, script, PAPER)
    assert found["wide"][0] == found["wide"][1] <= PAPER and len(found["tables"]) == 4
    for wide, room, high, height in found["tables"]:
        assert wide == room and high == height
    assert found["controls"] == found["closed"] == found["after"] == 0 and found["opened"] == 7
    (said,) = found["said"]
    assert said.endswith(" minus first stage") and said.split()[0] in ("mnn", "aqe")


def test_paper_is_white_whatever_the_screen_is(done: Run) -> None:
    """Dark colours are a screen's alone, so that none of them is left in print."""
    text = page([([done], compare([done]))])
    assert re.findall(r"@media ([^{]*dark\)) {", text) == ["screen and (prefers-color-scheme: dark)"]
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert re.search(r":root \{\s*color-scheme: light;", style) and "--back: #ffffff" in style


def test_hostile_names_are_text_in_a_browser(drive: Callable[..., dict], attacked: Run) -> None:
    script = """
      const order = [...page.querySelector(".query").options].slice(1).map((option) => option.value);
      found.said = order.map((value) => {
        page.querySelector("select.query").value = value;
        page.querySelector("select.query").dispatchEvent(new Event("change"));
        return page.querySelector(".panel h4").textContent;
      });
      found.elements = all("img[onerror], b, script").length;
      found.sources = all("img").every((image) => image.src.startsWith("data:"));"""
    found = drive(page([([attacked], compare([attacked]))]), script)
    assert found["said"] == [query.id for query in attacked.dataset.queries]
    assert found["elements"] == 2 and found["sources"]
