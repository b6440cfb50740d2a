"""The report page, in a real browser."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import altair
import pyarrow.parquet as pq
import pytest
from PIL import Image

from browser import Window, needs_browser, window
from chexgenbench.errors import UserError
from chexgenbench.files import sha256_file
from chexgenbench.home import Home
from chexgenbench.report.charts import charts, looks, program
from chexgenbench.report.collect import EXTREMES, Facts, collect
from chexgenbench.report.page import STAGES, render, write_report
from chexgenbench.report.tables import heat_tables, scores_of
from chexgenbench.store.run_directory import read_record, write_record
from chexgenbench.store.store import Store
from chexgenbench.types import FINDINGS
from desk import Desk, Done
from made_up import ENCODER, PRIVACY, REASON, SECONDS, make_home

pytestmark = pytest.mark.slow

RUNS = "SELECT DISTINCT run_id FROM leaderboard ORDER BY run_id"


def write(home: Home, **options: Any) -> Path:
    store = Store(home.store)
    return write_report(store, home, store.query(RUNS).column(0).to_pylist(), **options)


def facts_of(home: Home) -> Facts:
    store = Store(home.store)
    return collect(store, home, store.query(RUNS).column(0).to_pylist())


def drawn_up(facts: Facts, home: Home) -> Path:
    """A page of facts that are no store's."""
    path = home.results / "page.html"
    path.write_text(render(facts, program(home.cache)), encoding="utf-8")
    return path


def data_of(page: Path) -> dict[str, Any]:
    """What the page's script works on."""
    text = page.read_text(encoding="utf-8")
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    data: dict[str, Any] = json.loads(found)
    return data


def rewrite(home: Home, place: int, table: str, **columns: Any) -> None:
    """Changes a table of the run at `place` as somebody else's project might have it."""
    (folder,) = home.runs.glob(f"{place:04x}*")
    rows = pq.read_table(folder / f"{table}.parquet").to_pandas()
    rows.assign(**columns).to_parquet(folder / f"{table}.parquet")
    assert not Store(home.store).rebuild(home.runs).skipped


@contextmanager
def opened(page: Path, size: str = "desktop", **options: Any) -> Iterator[Window]:
    """The page with its charts drawn; it asked for nothing but itself, and had no error."""
    with window(size, **options) as found:
        found.page.goto(page.as_uri())
        found.page.wait_for_selector("html[data-ready]", timeout=60_000)
        yield found
        assert found.errors == []
        own = page.as_uri()
        assert {request for request in found.requests if not request.startswith("data:")} <= {
            own,
            *(request for request in found.requests if request.startswith("blob:")),
        }


def download(found: Window, selector: str) -> list[dict[str, str]]:
    with found.page.expect_download() as waiting:
        found.page.click(selector)
    text = Path(waiting.value.path()).read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text)))


def column(found: Window, table: str, place: int) -> list[str]:
    """The texts of a column, row by row, as they are shown."""
    rows = f"{table} tbody tr:not([hidden])"
    texts: list[str] = found.page.eval_on_selector_all(
        rows, "(rows, place) => rows.map((row) => row.cells[place].textContent.trim())", place
    )
    return texts


def drawn(found: Window, place: int) -> list[str]:
    """What the marks of a chart say of themselves."""
    marks = found.page.locator(f"figure.chart >> nth={place}").locator(
        "svg [aria-roledescription='point']"
    )
    return [mark.get_attribute("aria-label") or "" for mark in marks.all()]


def redrawn(found: Window, place: int, text: str) -> None:
    """Waits until a chart speaks of `text`. (Playwright's own waiting evaluates text, which the
    page's policy forbids.)"""
    figure = found.page.locator(f"figure.chart >> nth={place}")
    figure.locator(f'.draw[data-drawn][aria-label*="{text}"]').first.wait_for()


# --- the demo -------------------------------------------------------------------------------------


@needs_browser
@pytest.mark.parametrize(
    ("size", "dark"), [("desktop", False), ("desktop", True), ("phone", False)]
)
def test_it_opens_from_disk(demo: tuple[Desk, Done], tmp_path: Path, size: str, dark: bool) -> None:
    page = demo[0].home / "demo.html"
    with opened(page, size, dark=dark) as found:
        assert found.faults() == []
        assert found.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        ground = found.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == dark
        shots = Path(os.environ.get("CHEXGENBENCH_SHOTS") or tmp_path)
        for name, part in PARTS.items():
            found.page.locator(part).evaluate("(part) => part.scrollIntoView()")
            found.page.wait_for_timeout(200)
            taken = tmp_path / f"{name}.png"
            found.page.screenshot(path=taken)
            kind = "dark" if dark else size
            shot = shots / f"report-{name}-{kind}.webp"
            with Image.open(taken) as image:
                assert len(image.convert("L").getcolors() or []) > 50  # not one colour
                if shots == tmp_path or (name, kind) in SHOWN:
                    image.save(shot, quality=70, method=6)
                    assert shot.stat().st_size < 200_000


PARTS = {"leaderboard": "h1", "charts": "#charts", "findings": "#findings", "images": "#gallery"}
SHOWN = {
    ("leaderboard", "desktop"),
    ("charts", "dark"),
    ("findings", "desktop"),
    ("images", "phone"),
}
"""Pictures of docs/report.md: CHEXGENBENCH_SHOTS=docs/images pytest tests/test_page.py -k disk."""


def test_it_needs_no_network_and_is_small(demo: tuple[Desk, Done]) -> None:
    text = (demo[0].home / "demo.html").read_text(encoding="utf-8")
    assert len(text.encode()) < 5_000_000
    without = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r"""(?:src|href|url\()\s*=?\s*["']?(?!data:|#)[a-z]+:""", without)
    assert "default-src 'none'" in html.unescape(text)


@needs_browser
def test_headings_sort(demo: tuple[Desk, Done]) -> None:
    with opened(demo[0].home / "demo.html") as found:
        ways = "(heads) => heads.map((head) => head.getAttribute('aria-sort'))"
        names = column(found, "#board-0", 0)
        assert names[0] == "oracle" and names[-1] == "noise"  # by fid, the best first
        heads = found.page.locator("#board-0 thead button")
        recall = next(i for i, head in enumerate(heads.all()) if "recall" in head.inner_text())
        values = f"(rows) => rows.map((row) => Number(row.cells[{recall}].dataset.v))"
        heads.nth(recall).click()
        order = found.page.eval_on_selector_all("#board-0 tbody tr:not([hidden])", values)
        assert order == sorted(order, reverse=True) and len(set(order)) == 4
        assert found.page.eval_on_selector_all("#board-0 th", ways)[recall] == "descending"
        heads.nth(recall).focus()
        found.page.keyboard.press("Enter")
        assert (
            found.page.eval_on_selector_all("#board-0 tbody tr:not([hidden])", values)
            == (order[::-1])
        )
        assert [way for way in found.page.eval_on_selector_all("#board-0 th", ways) if way] == [
            "ascending"
        ]
        assert "recall, ascending" in found.page.inner_text("#live")
        heads.nth(0).press("Space")
        names = column(found, "#board-0", 0)
        assert names == sorted(names)


def _same(shown: str, stored: Any) -> bool:
    if stored is None:
        return shown == ""
    if isinstance(stored, bool):
        return shown == str(stored).lower()
    if isinstance(stored, float | int):
        return float(shown) == stored
    return shown == stored


@needs_browser
@pytest.mark.parametrize("kind", ["board", "heat"])
def test_csv_files_have_the_numbers_of_the_store(demo: tuple[Desk, Done], kind: str) -> None:
    desk = demo[0]
    with opened(desk.home / "demo.html") as found:
        rows = download(found, f'[data-csv="{kind}"] >> nth=0')
    where = "subset = 'overall'" if kind == "board" else "metric = 'fid'"
    stored = (
        Store(desk.home / "Results" / "chexgenbench.duckdb")
        .query(
            "SELECT leaderboard.*, runs.split FROM leaderboard JOIN runs USING (run_id) "
            f"WHERE leaderboard.suite = 'demo' AND {where}"
        )
        .to_pylist()
    )
    key = ("run_id", "metric", "encoder", "subset")
    by_key = {tuple(row[name] for name in key): row for row in stored}
    runs = {row["run_id"] for row in rows}
    assert len(rows) == (4 * 8 if kind == "board" else 4 * 16) and len(runs) == 4
    for row in rows:
        wanted = by_key[tuple(row[name] for name in key)]
        # Other tests run more in this folder, which changes ranks.
        wrong = [n for n in row if n != "rank" and not _same(row[n], wanted[n])]
        assert not wrong, (row, wanted)


@needs_browser
def test_axes_are_chosen(demo: tuple[Desk, Done]) -> None:
    store = Store(demo[0].home / "Results" / "chexgenbench.duckdb")
    with opened(demo[0].home / "demo.html") as found:
        before = drawn(found, 0)
        assert len(before) == 4
        assert all("kid" in mark and "recall" in mark for mark in before)
        across = found.page.locator('figure.chart >> nth=0 >> [data-axis="x"]')
        across.select_option(label="alignment")
        redrawn(found, 0, "alignment")
        after = drawn(found, 0)
    assert len(after) == 4
    for model, value in (
        store.query(
            "SELECT model, value FROM leaderboard WHERE suite = 'demo' AND metric = 'alignment' "
            "AND subset = 'overall'"
        )
        .to_pandas()
        .itertuples(index=False)
    ):
        (mark,) = [mark for mark in after if mark.startswith(f"{model}:")]
        shown = re.search(r"alignment ([-\d.e]+)", mark)
        assert shown and math.isclose(float(shown[1]), value, rel_tol=1e-3)


@needs_browser
def test_without_scripts_the_tables_are_there(demo: tuple[Desk, Done]) -> None:
    page = demo[0].home / "demo.html"
    with window(java_script_enabled=False) as found:
        found.page.goto(page.as_uri())
        text = found.page.inner_text("main")
        assert not found.page.locator(".js-only >> visible=true").count()
        assert found.page.locator("#rows figure img").count() > 16 * 5
    for word in ("oracle", "phantom-diffusion", "alignment", "Pneumothorax", "Provenance"):
        assert word in text
    assert text.count("★ rank 1") >= 8


@needs_browser
def test_axes_show_where_0_is(demo: tuple[Desk, Done]) -> None:
    """Of alignment, whose intervals lie on both sides of it."""
    with opened(demo[0].home / "demo.html") as found:
        heads = found.page.locator("#board-0 thead th").all_inner_texts()
        marked = {
            head.split()[0]
            for place, head in enumerate(heads)
            if found.page.locator(f"#board-0 tbody td:nth-child({place + 1}) .zero").count() == 4
        }
        assert "alignment" in marked and "fid" not in marked and "recall" not in marked
        for axis in "xy":
            select = found.page.locator(f'figure.chart >> nth=0 >> [data-axis="{axis}"]')
            select.select_option(label="alignment")
        redrawn(found, 0, "alignment against alignment")
        lines = found.page.locator("figure.chart >> nth=0 >> svg .role-axis-grid line")
        grey = [line.get_attribute("stroke") for line in lines.all()]
        labels = found.page.locator("figure.chart >> nth=0 >> svg .role-axis-label text")
        texts = [text.replace("\u2212", "-") for text in labels.all_text_contents()]
        assert sum(float(text) == 0 for text in texts) == 2  # across and up
        assert sorted(map(grey.count, set(grey)))[0] == 2 < len(grey)


def test_runs_tell_the_seconds_of_their_stages(demo: tuple[Desk, Done]) -> None:
    store = Store(demo[0].home / "Results" / "chexgenbench.duckdb")
    rows = store.query(
        "SELECT hardware, epoch(finished_at - created_at) AS whole FROM runs WHERE suite = 'demo' "
        "AND status = 'finished' AND model_plugin IS NOT NULL"
    ).to_pylist()
    assert len(rows) >= 4
    for row in rows:
        seconds = json.loads(row["hardware"])["seconds"]
        assert set(seconds) == set(STAGES)
        assert all(value >= 0 for value in seconds.values()) and seconds["score"] > 0
        within = seconds["generate"] + seconds["encode generated"] + seconds["score"]
        assert within <= row["whole"] + 1
    text = (demo[0].home / "demo.html").read_text(encoding="utf-8").split('id="costs"')[1]
    assert all(f">{stage}, s</th>" in text for stage in STAGES)


def test_the_commands_of_the_page_about_it_work(demo: tuple[Desk, Done]) -> None:
    docs = Path(__file__).resolve().parent.parent / "docs"
    text = (docs / "report.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for line in block.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "chexgenbench"
        assert ".html" in demo[0].run(*arguments).out
    for name, kind in SHOWN:
        assert f"images/report-{name}-{kind}.webp" in text


# --- made-up runs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Three models; nothing sets the first two apart. Scores of all kinds, by the paper's means."""
    made = make_home(tmp_path_factory.mktemp("made-up"), ("first", "second", "third"), 120)
    write(made)
    return made


@pytest.fixture(scope="module")
def page(home: Home) -> Path:
    return home.results / "report.html"


@needs_browser
@pytest.mark.parametrize(("size", "dark"), [("desktop", False), ("phone", True)])
def test_nothing_bars_anybody(page: Path, size: str, dark: bool) -> None:
    """With everything that can be opened or shown open."""
    with opened(page, size, dark=dark) as found:
        found.page.keyboard.press("Tab")
        assert found.page.evaluate("document.activeElement.className") == "skip"
        found.page.check("#show-published")
        found.page.eval_on_selector_all("details", "(all) => all.forEach((d) => (d.open = true))")
        found.page.eval_on_selector_all(".spell input", "(all) => all.forEach((i) => i.click())")
        assert found.faults() == []
        assert found.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@needs_browser
def test_ranks_and_the_best(page: Path) -> None:
    with opened(page) as found:
        fid = column(found, "#board-0", 1)
    assert [re.findall(r"rank \d", text) for text in fid] == [["rank 1"], ["rank 1"], ["rank 3"]]
    assert ["★" in text and "best" in text for text in fid] == [True, True, False]


@needs_browser
def test_models_of_the_paper_are_shown_on_demand(page: Path) -> None:
    with opened(page) as found:
        assert not found.page.locator(".published >> visible=true").count()
        assert len(drawn(found, 0)) == 3
        found.page.check("#show-published")
        rows = column(found, "#board-0", 0)
        assert len(rows) == 3 + 11
        assert sum("from the paper: mimic-cxr, legacy protocol" in row for row in rows) == 11
        assert not any("not comparable" in row for row in rows)
        redrawn(found, 0, "(paper)")
        assert sum("(paper)" in mark for mark in drawn(found, 0)) == 11
        rows = download(found, '[data-csv="board"] >> nth=0')
        sana = [r for r in rows if r["model"] == "sana (published)" and r["metric"] == "fid"]
        assert [(r["value"], r["protocol"]) for r in sana] == [("54.225", "legacy")]
        assert found.page.locator("#published tbody tr").count() == 11
        paper = download(found, '[data-csv="table"][data-table="published"]')
        (sana_row,) = [row for row in paper if row[next(iter(row))].startswith("sana")]
        assert "54.225" in sana_row.values()
        found.page.uncheck("#show-published")
        assert len(column(found, "#board-0", 0)) == 3


def test_what_does_not_compare_with_the_paper_says_so(tmp_path: Path) -> None:
    text = write(make_home(tmp_path, ("a", "b"), 4, split="mine", utility=False)).read_text()
    assert text.count("mimic-cxr, legacy protocol; not comparable with these runs") == 11


@needs_browser
def test_one_choice_of_the_papers_numbers(tmp_path: Path) -> None:
    """A score without an encoder is no like of the paper's, whose numbers stand without one where
    there is none of ours; and what does not compare says so wherever it is shown."""
    own = "pixel_distance_mean"
    made = make_home(tmp_path, ("a", "b"), 8, split="mine", metrics=(own, "other"), utility=False)
    made_page = write(made)
    assert own not in {row["metric"] for row in data_of(made_page)["published"]}
    with opened(made_page) as found:
        found.page.check("#show-published")
        redrawn(found, 0, "(paper)")
        paper = [mark for mark in drawn(found, 0) if "(paper)" in mark]
        assert len(paper) == 11 and all("not comparable" in mark for mark in paper)
        for axis, name in (("x", own), ("y", "other")):
            select = found.page.locator(f'figure.chart >> nth=0 >> [data-axis="{axis}"]')
            select.select_option(label=name)
        redrawn(found, 0, f"{own} against other")
        assert len(drawn(found, 0)) == 2
        rows = download(found, '[data-csv="board"] >> nth=0')
    theirs = [row for row in rows if "(published)" in row["model"]]
    metrics = {row["metric"] for row in theirs}
    assert "fid" in metrics and own not in metrics
    assert {row["warning"] for row in theirs} == {"not comparable with these runs"}


@needs_browser
def test_each_suite_has_tables_of_its_own(tmp_path: Path) -> None:
    """Ranks are taken within a suite: two models of rank 1 in one table are tied."""
    made = make_home(tmp_path, ("a", "b", "c", "d"), 8, suites=("one", "one", "two", "two"))
    with opened(write(made)) as found:
        titles = found.page.locator("h3 + .tools + .scroll table.board caption").all_inner_texts()
        assert len(titles) == 4
        assert [title[:10] for title in titles] == ["Suite one:"] * 2 + ["Suite two:"] * 2
        boards = [
            column(found, f"#{table.get_attribute('id')}", 0)
            for table in found.page.locator("h3 + .tools + .scroll table.board").all()
        ]
        assert [sorted(models) for models in boards] == [["a", "b"]] * 2 + [["c", "d"]] * 2
        two = found.page.locator("table.board").filter(has_text="Suite two: Fidelity")
        ranks = two.locator("tbody td:nth-child(2) .rank").all_inner_texts()
        assert [re.findall(r"\d", rank) for rank in ranks] == [["1"], ["2"]]
        rows = download(found, '[data-csv="board"] >> nth=0')
        assert {(row["suite"], row["model"]) for row in rows} == {("one", "a"), ("one", "b")}
        heads = found.page.locator("table.heat >> nth=0 >> thead th").all_text_contents()
        assert heads[2:] == ["a", "b"]
        assert [mark[0] for mark in drawn(found, 0)] == ["a", "b"]
        found.page.locator("[data-group]").select_option(
            label="Suite two: Fidelity, diversity and alignment"
        )
        redrawn(found, 2, "Suite two")
        assert {mark[0] for mark in drawn(found, 2)} == {"c", "d"}
        across = found.page.locator('figure.chart >> nth=0 >> [data-axis="x"]')
        group = across.locator("optgroup[label^='Suite two']").first
        across.select_option(value=group.locator("option").first.get_attribute("value"))
        lacking = found.page.locator("figure.chart >> nth=0 >> .lacking")
        lacking.filter(has_text="No run has both scores.").wait_for()
        assert found.faults() == []


def test_a_gallery_joins_by_split_and_text(tmp_path: Path) -> None:
    made = make_home(tmp_path, ("a", "b", "c"), 8, privacy=False, utility=False)
    rewrite(made, 1, "prompts", split="another", prompt=[f"Other text {i}" for i in range(8)])
    (folder,) = made.runs.glob("0001*")
    write_record(folder, read_record(folder).model_copy(update={"split": "another"}))
    rewrite(made, 2, "prompts", prompt=["Report of study s0", *(f"Changed {i}" for i in range(7))])
    rows = facts_of(made).gallery
    assert {row.split for row in rows} == {"mimic-cxr", "another"}
    for row in rows:
        shown = {picture.caption for picture in row.pictures if picture.source}
        if row.split == "another":
            assert row.prompt.startswith("Other text") and shown == {"real", "b"}
        else:
            assert row.prompt.startswith("Report of study")
            own = {"c"} if row.prompt.endswith(" s0") else set()
            assert shown == {"real", "a"} | own
            assert [picture.caption for picture in row.pictures] == ["real", "a", "c"]
    assert "split another" in write(made).read_text(encoding="utf-8")


def test_a_run_without_prompts_hides_nobody_elses(tmp_path: Path) -> None:
    made = make_home(tmp_path, ("a", "b"), 8, privacy=False, utility=False)
    (folder,) = made.runs.glob("0000*")
    prompts = pq.read_table(folder / "prompts.parquet")
    pq.write_table(prompts.slice(0, 0), folder / "prompts.parquet")
    assert not Store(made.store).rebuild(made.runs).skipped
    rows = facts_of(made).gallery
    assert len(rows) == 8
    assert all([each.caption for each in row.pictures] == ["real", "b"] for row in rows)
    assert all(picture.source for row in rows for picture in row.pictures)


@needs_browser
def test_without_scripts_nothing_is_hidden(home: Home, page: Path) -> None:
    with window(java_script_enabled=False) as found:
        found.page.goto(page.as_uri())
        found.page.locator("#ends summary").first.wait_for()
        rows = found.page.locator("tr.published").all()
        assert len(rows) == 11 and all(row.is_visible() for row in rows)
        assert found.page.locator("#published").is_visible()
        # The browser opens a disclosure without scripts too.
        ends = found.page.locator("#ends details").first.locator("article")
        assert ends.count() > 2 * EXTREMES and all(end.is_visible() for end in ends.all())
        assert found.page.locator("noscript").is_visible()
    alone = replace(facts_of(home), published=[])
    assert "need scripts" in render(alone, "").split("<noscript>")[1].split("</noscript>")[0]


def test_a_heat_map_of_training_says_what_it_counts(page: Path) -> None:
    heads = re.findall(r'<table class="heat">.*?<thead><tr>(.*?)</tr>', page.read_text(), re.DOTALL)
    seconds = [re.findall(r"<th.*?>(.*?)</th>", head)[1] for head in heads]
    assert seconds.count("images") == 7
    assert seconds.count("generated images trained on") == len(seconds) - 7 == 3 * 7


def test_equal_scores_are_shaded_alike(home: Home) -> None:
    facts = facts_of(home)
    cells = [replace(c, value=0.25) if c.metric in ("fid", "recall") else c for c in facts.cells]
    for table in heat_tables(scores_of(cells, facts.records)):
        shades = {cell["good"] for row in table["rows"] for cell in row["cells"] if cell["text"]}
        assert (shades == {50}) == (table["score"].metric in ("fid", "recall"))


@needs_browser
def test_a_file_has_no_rank_that_the_table_withholds(home: Home) -> None:
    """A score without any interval, such as one that was extrapolated."""
    facts = facts_of(home)
    assert {cell.rank for cell in facts.cells if cell.metric == "fid"} == {1, 3}
    bare = [
        replace(cell, ci_low=None, ci_high=None) if cell.metric == "fid" else cell
        for cell in facts.cells
    ]
    with opened(drawn_up(replace(facts, cells=bare), home)) as found:
        assert not any("rank" in text for text in column(found, "#board-0", 1))
        rows = download(found, '[data-csv="board"] >> nth=0')
    assert {row["rank"] for row in rows if row["metric"] == "fid"} == {""}
    assert {row["rank"] for row in rows if row["metric"] == "kid"} == {"1", "3"}


@needs_browser
def test_scores_that_have_no_room_are_counted(tmp_path: Path) -> None:
    names = [f"extra-{place}" for place in range(25)]
    made = make_home(tmp_path, ("a", "b"), 8, metrics=names, privacy=False, utility=False)
    with opened(write(made)) as found:
        left = found.page.locator("figure[data-chart=parallel] .left").inner_text()
        assert left == "The first 24 of 32 scores: 8 are left out."
        assert len(drawn(found, 1)) == 2 * 24


@needs_browser
def test_privacy_has_its_control(page: Path) -> None:
    with opened(page) as found:
        texts = column(found, "#board-1", 1)
        assert [re.search(r"control ([\d.]+), excess ([-\d.]+) to", text) for text in texts]
        assert all("control 0.1, excess" in text for text in texts)
        marks = drawn(found, 1)
        assert len(marks) == 3 and all("excess over control" in mark for mark in marks)
        (mark,) = [mark for mark in marks if mark.startswith("second")]
        assert "replicated_rate, excess over control 0.407" in mark
        rows = download(found, '[data-csv="board"] >> nth=1')
    assert {row["metric"] for row in rows} == set(PRIVACY)
    assert {row["floor"] for row in rows} == {"0.1"}


@needs_browser
def test_curves_of_utility(page: Path) -> None:
    with opened(page) as found:
        figure = found.page.locator("figure[data-chart=regimes]")
        regimes = figure.locator(".draw >> nth=0 >> svg [aria-roledescription='point']")
        ratios = figure.locator(".ratios svg [aria-roledescription='point']")
        assert regimes.count() == 7 * 3
        assert ratios.count() == 4 * 3  # none, 0.25, 0.5, 1: augmented is not shown twice
        figure.locator("[data-curve]").select_option(label="auprc (classification)")
        figure.locator("[data-subset]").select_option("Edema")
        redrawn(found, 3, "auprc (classification), Edema")
        text = figure.locator(".draw >> nth=0").get_attribute("aria-label") or ""
        assert "second, ratio-0.5: 0.505" in text


@needs_browser
def test_all_scores_side_by_side_with_the_missing_ones(tmp_path: Path) -> None:
    made = make_home(tmp_path, ("a", "b"), 8, metrics=("extra",), utility=False)
    # The second run has no such score.
    facts = facts_of(made)
    facts.cells[:] = [c for c in facts.cells if not (c.metric == "extra" and c.column == "b")]
    with opened(drawn_up(facts, made)) as found:
        marks = drawn(found, 2)
        assert len(marks) == 2 * 8
        assert "b, extra: not taken" in marks
        assert column(found, "#board-0", 8)[1].startswith("-not taken")


@needs_browser
def test_cells_by_keyboard(page: Path) -> None:
    with opened(page) as found:
        recall = found.page.locator("details.heatmap", has_text="recall").first
        recall.evaluate("(part) => { part.open = true; }")
        told = recall.locator(".told")
        recall.locator("td.c").first.focus()
        assert told.inner_text().startswith("Atelectasis, first: 0.761; 0.741 to 0.781; 120 images")
        for _ in range(3):
            found.page.keyboard.press("ArrowDown")
        found.page.keyboard.press("ArrowRight")
        assert "Edema, second" in told.inner_text()
        assert "n < 50: 12 images" in told.inner_text()
        assert "weak" in (recall.locator("td.c:focus").get_attribute("class") or "")
        found.page.keyboard.press("ArrowDown")
        found.page.keyboard.press("ArrowDown")
        found.page.keyboard.press("End")
        assert told.inner_text() == f"Fracture, third: -; {REASON}"
        assert recall.locator('td[tabindex="0"]').count() == 1
        # A screen reader finds the same in the cell, and a reader can have it shown.
        cell = recall.locator('td[tabindex="0"]')
        assert REASON in (cell.text_content() or "")
        assert not cell.locator(".more").evaluate("(part) => part.offsetWidth > 1")
        recall.locator(".spell input").check()
        assert cell.locator(".more").evaluate("(part) => part.offsetWidth > 1")


@needs_browser
def test_images_are_filtered_by_finding(home: Home, page: Path) -> None:
    store = Store(home.store)
    with opened(page) as found:
        for name in ("#rows", "#ends"):
            select = found.page.locator(f'select[data-filter="{name}"]')
            every = found.page.locator(f"{name} article").count()
            at_first = found.page.locator(f"{name} article:not([hidden])").count()
            select.select_option("Pneumothorax")
            rows = found.page.locator(f"{name} article:not([hidden])")
            assert 1 <= rows.count() < every
            status = found.page.locator("p.tools", has=select).locator(".count").inner_text()
            assert status == f"{rows.count()} shown"
            assert all("Pneumothorax" in (row.text_content() or "") for row in rows.all())
            select.select_option("")
            assert found.page.locator(f"{name} article:not([hidden])").count() == at_first
        shown = found.page.locator("#ends details >> nth=0 >> article:not([hidden]) b")
        values = [float(text) for text in shown.all_text_contents()]
    stored = store.query(
        "SELECT value FROM sample_scores WHERE run_id = ? ORDER BY value DESC",
        [store.query(RUNS).column(0)[0].as_py()],
    )["value"].to_pylist()
    ends = stored[:EXTREMES] + stored[: -EXTREMES - 1 : -1]
    assert values == pytest.approx(ends, rel=1e-3)


@needs_browser
def test_all_is_open_in_print(page: Path) -> None:
    with opened(page) as found:
        closed = found.page.locator("details:not([open])").count()
        assert closed
        found.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert not found.page.locator("details:not([open])").count()
        found.page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert found.page.locator("details:not([open])").count() == closed
        found.page.emulate_media(media="print")
        assert not found.page.locator("nav").is_visible()


@needs_browser
def test_the_theme_can_be_chosen(page: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    with opened(page) as found:
        before = found.page.evaluate(ground)
        found.page.click("#theme")
        assert found.page.evaluate(ground) != before
        assert found.page.get_attribute("#theme", "aria-pressed") == "true"
        assert found.faults() == []


def test_cost_and_provenance(page: Path) -> None:
    text = html.unescape(page.read_text(encoding="utf-8"))
    costs = text.split('id="costs"')[1]

    def shown(model: str) -> list[str]:
        row = re.search(rf'<th scope="row">{model}</th>(.*?)</tr>', costs, re.DOTALL)
        assert row
        return re.findall(r">([^<>\n]+)</td>", row[1])

    seconds = [f"{SECONDS[stage]:.1f}" for stage in STAGES]
    assert shown("second")[:10] == ["0.5", "240.0", *seconds, "86400.0", "2000", "120"]
    assert shown("first")[:8] == ["1", "120.0", *["-"] * len(STAGES), "86400.0"]
    for words in ('"unet": "000', '"steps": 21', "a remark on second", "cuda, float16"):
        assert words in text


# --- what comes from elsewhere --------------------------------------------------------------------

EVIL = '=1+1</script><img src=x onerror="window.hit=1">\u2028{{7*7}}\''


@needs_browser
def test_text_from_elsewhere_stays_text(tmp_path: Path) -> None:
    """A model's name, a prompt, a reason and a metric's name."""
    made = make_home(
        tmp_path, (EVIL, "@b"), 6, text=EVIL, reason=f"+{EVIL}", metrics=(EVIL,), utility=False
    )
    made_page = write(made)
    text = made_page.read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert "\u2028" not in re.findall(r"<script.*?</script>", text, re.DOTALL)[0]
    with opened(made_page) as found:
        assert found.page.evaluate("window.hit") is None
        data = json.loads(found.page.text_content("#data") or "")
        assert data["columns"] == [EVIL, "@b"]
        assert EVIL in found.page.locator("#rows article p").first.text_content()
        assert found.page.locator("#rows article img[src=x]").count() == 0
        options = found.page.locator('figure.chart >> nth=0 >> [data-axis="y"] option')
        assert EVIL in options.all_text_contents()
        found.page.locator('figure.chart >> nth=0 >> [data-axis="y"]').select_option(label=EVIL)
        redrawn(found, 0, "=1+1")
        board = download(found, '[data-csv="board"] >> nth=0')
        recall = next(
            button.get_attribute("data-scores")
            for button in found.page.locator('[data-csv="heat"]').all()
            if "recall" in (button.get_attribute("aria-label") or "")
        )
        found.page.eval_on_selector_all("details", "(all) => all.forEach((d) => (d.open = true))")
        heat = download(found, f'[data-csv="heat"][data-scores="{recall}"]')
        notes = download(found, '[data-csv="table"][data-table="noticed"]')
        found.page.eval_on_selector_all("button", "(all) => all.forEach((b) => b.focus())")
        assert found.page.evaluate("window.hit") is None
    assert {row["model"] for row in board} == {f"'{EVIL}", "'@b"}
    assert f"'{EVIL}" in {row["metric"] for row in board}
    assert {row["reason"] for row in heat if row["subset"] == "Fracture"} == {f"'+{EVIL}"}
    low = [float(row["ci_low"]) for row in board if row["metric"] == "fid"]
    assert len(low) == 2  # numbers are numbers
    assert all(not re.match(r"[=+\-@]", value) for row in notes for value in row.values())


def test_a_split_that_needs_credentials_is_left_out(tmp_path: Path) -> None:
    made = make_home(tmp_path, ("a", "b"), 8, credentialed=True, text="Secret", utility=False)
    text = write(made).read_text(encoding="utf-8")
    assert "Secret" not in text and "data:image" not in text and str(made.root) not in text
    assert "patient-s" not in text
    assert "--include-credentialed" in text
    text = write(made, include_credentialed=True).read_text(encoding="utf-8")
    assert "Secret s0" in text and text.count("data:image") > 10
    assert "patient-s" not in text


@pytest.mark.parametrize(
    "told", [{"seconds": "long"}, {"seconds": {"score": True, "write": 1e999}}]
)
def test_seconds_from_elsewhere_are_numbers_or_none(tmp_path: Path, told: dict[str, Any]) -> None:
    made = make_home(tmp_path, ("a", "b"), 4, privacy=False, utility=False)
    facts = facts_of(made)
    facts.records[:] = [record | {"hardware": told} for record in facts.records]
    costs = render(facts, "").split('id="costs"')[1].split("</table>")[0]
    assert all(row.count(">-</td>") == len(STAGES) for row in costs.split("<tr>")[2:])


def test_only_what_was_scored_is_shown(tmp_path: Path) -> None:
    """An image that has changed since is not the one that the numbers are of."""
    made = make_home(tmp_path, ("a",), 8, utility=False)
    (folder,) = made.runs.glob("0000*")
    pairs = pq.read_table(folder / "neighbours.parquet").to_pandas()
    known = [sha256_file(Path(path)) for path in pairs["other_path"]]
    for other, at_all in ((known, True), (["0" * 64] * len(known), False)):
        rewrite(
            made,
            0,
            "neighbours",
            sha256=pairs["path"].map(lambda p: sha256_file(Path(p))),
            other_sha256=other,
        )
        shown = [pair for group in facts_of(made).pairs.values() for pair in group]
        assert shown and all(pair.first.source for pair in shown)
        assert all(bool(pair.second.source) == at_all for pair in shown)
    rewrite(made, 0, "images", sha256="0" * 64)
    assert all(not row.pictures[1].source for row in facts_of(made).gallery)
    # A folder, a device or nothing at all is no image either.
    for path in (str(tmp_path), "/dev/zero", "", "a\0b"):
        rewrite(made, 0, "neighbours", other_path=path, other_sha256="0" * 64)
        facts = facts_of(made)
        assert not any(pair.second.source for group in facts.pairs.values() for pair in group)


def test_no_path_leaves_its_folder(tmp_path: Path) -> None:
    """A run that came from elsewhere names what it likes."""
    made = make_home(tmp_path / "home", ("a", "b"), 8, utility=False)
    secret = tmp_path / "secret.png"
    Image.new("L", (64, 64), 77).save(secret)
    for folder in made.runs.glob("0*"):
        for name, key in (("images", "path"), ("prompts", "image_path")):
            table = pq.read_table(folder / f"{name}.parquet").to_pandas()
            table[key] = ["../" * 12 + str(secret).lstrip("/"), str(secret)] * 4
            table.to_parquet(folder / f"{name}.parquet")
        pairs = pq.read_table(folder / "neighbours.parquet").to_pandas()
        assert len(pairs)
        pairs["path"], pairs["other_path"] = str(secret), None
        pairs["sha256"] = "0" * 64
        pairs.to_parquet(folder / "neighbours.parquet")
    assert not Store(made.store).rebuild(made.runs).skipped
    text = write(made).read_text(encoding="utf-8")
    assert "data:image" not in text
    assert text.count("no image") > 10


def test_no_generation_leaves_its_folder(tmp_path: Path) -> None:
    made = make_home(tmp_path / "home", ("a",), 8, privacy=False, utility=False)
    Image.new("L", (64, 64), 77).save(tmp_path / "secret.png")
    for folder in made.runs.glob("0*"):
        elsewhere = {"generation_id": "../" * 3, "images_root": None}
        write_record(folder, read_record(folder).model_copy(update=elsewhere))
        table = pq.read_table(folder / "images.parquet").to_pandas()
        table["path"], table["sha256"] = "secret.png", sha256_file(tmp_path / "secret.png")
        table.to_parquet(folder / "images.parquet")
    assert not Store(made.store).rebuild(made.runs).skipped
    assert "data:image" not in write(made).read_text(encoding="utf-8")


def test_a_store_without_scores_and_a_bad_place(tmp_path: Path) -> None:
    made = make_home(tmp_path, ("a",), 4, utility=False)
    store = Store(made.store)
    empty = write_report(store, made, [], out=tmp_path / "empty.html").read_text(encoding="utf-8")
    assert "No score was taken." in empty
    with pytest.raises(UserError, match="is a folder"):
        write(made, out=tmp_path)
    desk = Desk(tmp_path, tmp_path / "cache")
    done = desk.run("report", "--out", "mine.html")
    assert (tmp_path / "mine.html").stat().st_size > 100_000
    assert "mine.html" in done.out


# --- charts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", charts())
def test_a_chart_is_valid(name: str) -> None:
    altair.Chart.from_dict(charts()[name])


def test_models_differ_by_more_than_colour() -> None:
    seen = looks([str(place) for place in range(56)]).values()
    assert len({(look["colour"], look["shape"]) for look in seen}) == 56
    assert all(a["shape"] != b["shape"] for a, b in pairwise(seen))


def test_findings_of_the_page_are_all_14(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    heat = text.split('<table class="heat">')[1]
    assert [name for name in FINDINGS if f'<th scope="row">{name}</th>' in heat] == list(FINDINGS)
    assert ENCODER in text
