"""The explorer: a real server process, asked by urllib and by a real browser."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import psutil
import pytest
from PIL import Image

from browser import Window, needs_browser, window
from chexgenbench.home import Home
from chexgenbench.store.cookbook import saved_queries
from chexgenbench.store.exports import PRIVATE
from chexgenbench.view import live
from chexgenbench.view.pages import IMAGES
from chexgenbench.view.reader import Reader
from chexgenbench.view.source import NoStore, Source
from chexgenbench.view.sql_box import SqlBox, Stopped
from desk import SCRIPT, Desk

EVIL = '<img src=x onerror="alert(1)">'
PROMPTS = 30
SLOW = "select count(*) from range(100000000000) as a, range(1000) as b"

STUBBORN = "SELECT levenshtein(repeat('a', 100000), repeat('b', 100000))"
"""One call of 10^10 steps, some 15 s, that DuckDB does not interrupt."""

SHORT = """
import sys
from pathlib import Path
from chexgenbench.home import Home
from chexgenbench.view.server import serve
serve(Home(Path(sys.argv[1])), ready=lambda guard: print(guard.url, flush=True), query_seconds=1)
"""


@dataclass
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass
class Served:
    """An explorer at work; `cookie` is what a browser has after its first visit."""

    process: subprocess.Popen[str]
    url: str
    cookie: str = ""

    @property
    def port(self) -> int:
        return int(re.search(r":(\d+)/", self.url)[1])  # type: ignore[index]

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def base(self) -> str:
        """With the folder of all addresses."""
        return self.url.partition("/?")[0]

    @property
    def root(self) -> str:
        return self.base.removeprefix(self.origin)

    @property
    def token(self) -> str:
        return self.url.partition("=")[2]

    def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> Reply:
        """The reply to a path below the folder, redirections not followed; names of headers have _
        for -."""
        return self.ask_outside(self.root + path, method, body, **headers)

    def ask_outside(
        self, path: str, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> Reply:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookie:
            given.setdefault("Cookie", self.cookie)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, given)
            found = connection.getresponse()
            return Reply(found.status, found.headers, found.read())
        finally:
            connection.close()

    def page(self, path: str, **query: object) -> str:
        reply = self.ask(f"{path}?{urllib.parse.urlencode(query)}" if query else path)
        assert reply.status == 200, reply.text
        return reply.text

    def sql(self, statement: str, path: str = "/sql") -> Reply:
        body = json.dumps({"sql": statement}).encode()
        return self.ask(path, "POST", body, Origin=self.origin, Content_Type="application/json")


@contextmanager
def serving(home: Path, *options: str, code: str | None = None) -> Iterator[Served]:
    command = [str(SCRIPT), "view", "--home", str(home), "--no-browser", *options]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(home)] if code else command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"COLUMNS": "80"},
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        url = next(found[0] for line in lines if (found := re.search(r"http://\S+", line)))
        served = Served(process, url)
        first = served.ask(url.removeprefix(served.base))
        served.cookie = first.headers["Set-Cookie"].partition(";")[0]
        yield served
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The explorer of a home in which nothing was run."""
    with serving(tmp_path_factory.mktemp("empty")) as served:
        yield served


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """Two models on thirty prompts; the first prompt and a run's label hold markup. For pictures,
    another store, where CHEXGENBENCH_SHOTS_HOME says."""
    if other := os.environ.get("CHEXGENBENCH_SHOTS_HOME"):
        return Desk(Path(other), Path(other) / "cache")
    desk = Desk.new(tmp_path_factory.mktemp("lab"))
    models = ("--model", "oracle", "--model", "noise")
    scores = ("--metric", "alignment", "--metric", "fid")
    desk.run("run", *models, *scores, "--limit", PROMPTS, "--extra-info", EVIL)
    with duckdb.connect(str(store_of(desk))) as store:
        store.execute(
            "UPDATE prompts SET prompt = ? WHERE prompt_id = (SELECT min(prompt_id) FROM prompts)",
            [EVIL],
        )
    return desk


@pytest.fixture(scope="module")
def served(lab: Desk) -> Iterator[Served]:
    with serving(lab.home) as found:
        yield found


def store_of(desk: Desk) -> Path:
    return desk.home / "Results" / "chexgenbench.duckdb"


def rows(desk: Desk, sql: str) -> list[tuple[object, ...]]:
    with duckdb.connect(str(store_of(desk)), read_only=True) as store:
        return store.execute(sql).fetchall()


def changed(desk: Desk, folder: Path, *statements: str) -> Path:
    """A home with that store, in which something was done."""
    home = folder / "home"
    shutil.copytree(desk.home, home)
    with duckdb.connect(str(home / "Results" / "chexgenbench.duckdb")) as connection:
        for statement in statements:
            connection.execute(statement)
    return home


def run_of(desk: Desk, model: str) -> str:
    return str(rows(desk, f"SELECT run_id FROM runs WHERE model = '{model}'")[0][0])


def number(value: object) -> str:
    assert isinstance(value, float)
    return f"{value:.4g}"


def wait_for(found: Callable[[], bool], why: str) -> None:
    """Asks again and again for at most two minutes."""
    end = time.monotonic() + 120
    while not found():
        assert time.monotonic() < end, why
        time.sleep(0.1)


# Who may ask.


def test_without_a_token_nothing_is_shown(empty: Served) -> None:
    for path in ("/", "/sql", "/live.json", "/static/view.css", "/picture/real?run=a&prompt=b"):
        reply = empty.ask(path, Cookie="other=1")
        assert reply.status == 403
        assert b"<" not in reply.body


@pytest.mark.parametrize("token", ["", "x", "%C3%A9", "../..", "None"])
def test_a_wrong_token_opens_nothing(empty: Served, token: str) -> None:
    reply = empty.ask(f"/?token={token}", Cookie="other=1")
    assert reply.status == 403
    assert reply.headers["Set-Cookie"] is None
    assert empty.ask("/", Cookie=f"chexgenbench-{empty.port}={token or 'x'}").status == 403


def test_the_token_buys_a_cookie_and_leaves_the_address(empty: Served) -> None:
    reply = empty.ask(f"/sql?saved=cost&token={empty.token}", Cookie="other=1")
    assert reply.status == 303
    assert reply.headers["Location"] == f"{empty.root}/sql?saved=cost"
    name, *rules = reply.headers["Set-Cookie"].split("; ")
    assert empty.token not in name
    assert {"HttpOnly", "SameSite=Strict", f"Path={empty.root}/"} <= set(rules)
    assert empty.ask("/", Cookie=name).status == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "localhost:1", "127.0.0.1.evil:80"])
def test_another_host_is_refused(empty: Served, host: str) -> None:
    """A name elsewhere that leads here: DNS rebinding."""
    assert empty.ask("/", Host=host).status == 403
    assert empty.ask("/", Host=f"localhost:{empty.port}").status == 200


def test_another_origin_is_refused(empty: Served) -> None:
    for origin in ("https://evil.example", "null", f"http://127.0.0.1:{empty.port + 1}"):
        assert empty.ask("/", Origin=origin).status == 403
        body = b'{"sql": "select 1"}'
        assert empty.ask("/sql", "POST", body, Origin=origin).status == 403
    assert empty.ask("/sql", "POST", b"{}").status == 403  # and so is one that says nothing
    for site in ("cross-site", "same-site"):
        assert empty.ask("/", Sec_Fetch_Site=site).status == 403
    assert empty.ask("/", Sec_Fetch_Site="same-origin", Origin=empty.origin).status == 200


def test_it_is_read_only_and_hardened(empty: Served) -> None:
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert empty.ask("/", method).status == 405
    assert empty.ask("/", "POST", b"", Origin=empty.origin).status == 405
    for path in ("/", "/nothing", "/static/view.js"):
        headers = empty.ask(path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Server"] is None


def test_it_listens_on_this_machine_alone(empty: Served) -> None:
    own = psutil.Process(empty.process.pid).net_connections(kind="inet")
    listening = [each.laddr for each in own if each.status == psutil.CONN_LISTEN]
    assert listening == [("127.0.0.1", empty.port)]
    others = [(socket.AF_INET, "127.0.0.2")] if sys.platform == "linux" else []
    for family, address in [*others, (socket.AF_INET6, "::1")]:
        with pytest.raises(OSError), socket.socket(family) as probe:
            probe.connect((address, empty.port))


def test_all_addresses_are_in_a_folder_that_nobody_knows(tmp_path: Path, empty: Served) -> None:
    """The cookie is for it alone: servers at other ports would be sent one of all paths."""
    assert re.fullmatch(r"/[0-9a-f]{16}", empty.root)
    for path in ("/", "/sql", f"{empty.root}x/", empty.root, f"{empty.root}/../"):
        reply = empty.ask_outside(path)
        assert (reply.status, reply.headers["Location"]) in ((403, None), (404, None)), path
        assert empty.root not in reply.text or path.startswith(f"{empty.root}/")
    assert empty.ask_outside(f"/?token={empty.token}", Cookie="a=b").status == 403
    pages = [empty.page("/"), empty.page("/live"), empty.ask("/nothing").text]
    for page in pages:
        links = re.findall(r'(?:href|src|action)="([^"]+)"', page)
        assert len(links) > 5
        assert all(link.startswith((f"{empty.root}/", "#")) for link in links)
    with serving(tmp_path) as other:
        assert other.root != empty.root


@pytest.mark.parametrize(
    "path",
    [
        "/static/..%2f..%2fserver.py",
        "/static/%2e%2e/server.py",
        "/static/../server.py",
        "/runs/..%2f..%2fetc/images",
        "//evil.example/",
    ],
)
def test_no_address_leads_to_a_file(empty: Served, path: str) -> None:
    reply = empty.ask(path)
    assert reply.status == 404
    assert "import" not in reply.text
    assert "Location" not in reply.headers


def test_a_home_without_a_store_says_so(empty: Served) -> None:
    page = empty.page("/")
    assert "chexgenbench run" in page
    assert empty.ask("/runs/abc").status == 404
    assert json.loads(empty.page("/live.json"))["work"] == []


def test_a_taken_port_is_named(empty: Served, tmp_path: Path) -> None:
    command = [SCRIPT, "view", "--home", tmp_path, "--no-browser", "--port", str(empty.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert f"Port {empty.port} is taken" in done.stderr


# What is shown.


@pytest.mark.slow
def test_the_pages_have_the_numbers_of_the_store(lab: Desk, served: Served) -> None:
    one, two = run_of(lab, "oracle"), run_of(lab, "noise")
    scores = dict(
        rows(
            lab,
            "SELECT metric || ' ' || subset, value FROM scores WHERE status = 'ok' "
            f"AND run_id = '{one}'",
        )
    )
    runs = served.page("/")
    for word in ("oracle", "noise", "finished", number(scores["fid overall"])):
        assert word in runs
    page = served.page(f"/runs/{one}")
    assert number(scores["fid overall"]) in page
    assert number(scores["alignment overall"]) in page
    assert "phantom-clip" in page
    by_finding = served.page(f"/runs/{one}", score="alignment/alignment/phantom-clip")
    labelled = [name for name in scores if name.startswith("alignment ") and "o" not in name[-1]]
    assert sum(number(scores[name]) in by_finding for name in labelled) == len(labelled) > 2
    ((worst, value),) = rows(
        lab,
        f"SELECT prompt_id, value FROM sample_scores WHERE run_id = '{one}' ORDER BY value LIMIT 1",
    )
    gallery = served.page(f"/runs/{one}/images", sample="alignment/phantom-clip", order="asc")
    first = re.findall(r"alignment (-?[\d.e-]+)", gallery)
    assert first[0] == number(value)
    assert [float(each) for each in first] == sorted(float(each) for each in first)
    image = served.page(f"/runs/{one}/image", prompt=worst)
    assert number(value) in image
    assert f"0 of {PROMPTS} (0 %)" in image  # no image is below the worst
    seed = rows(lab, f"SELECT seed FROM images WHERE run_id = '{one}' AND prompt_id = '{worst}'")
    assert str(seed[0][0]) in image
    assert "noise" in image  # the same prompt by the other model
    compared = served.page("/compare", a=one, b=two)
    ((low, high),) = rows(
        lab,
        "SELECT ci_low, ci_high FROM compare WHERE metric = 'alignment' AND subset = 'overall' "
        f"AND run_a = '{one}' AND run_b = '{two}'",
    )
    assert f"{number(low)} to {number(high)}" in compared
    assert "alignment" in served.page("/sql")
    assert "leaderboard" in served.page("/schema.json")


@pytest.mark.slow
def test_a_gallery_by_finding_holds_those_images(lab: Desk, served: Served) -> None:
    run = run_of(lab, "oracle")
    found = rows(
        lab,
        f"SELECT prompt_id FROM prompts WHERE run_id = '{run}' AND \"Lung Opacity\" = 1",
    )
    assert 0 < len(found) < IMAGES
    page = served.page(f"/runs/{run}/images", finding="Lung Opacity")
    assert set(re.findall(r'class="name">(\w+)<', page)) == {each[0] for each in found}
    assert served.ask(f"/runs/{run}/images?finding=1%3D1").status == 400


@pytest.mark.slow
def test_markup_in_texts_is_escaped(lab: Desk, served: Served) -> None:
    run = run_of(lab, "oracle")
    prompt = rows(lab, "SELECT min(prompt_id) FROM prompts")[0][0]
    pages = [
        served.page("/"),
        served.page(f"/runs/{run}"),
        served.page(f"/runs/{run}/images"),
        served.page(f"/runs/{run}/image", prompt=prompt),
        served.sql(f"SELECT prompt FROM prompts WHERE prompt_id = '{prompt}'").text,
        served.sql("""SELECT 1 AS "<img src=x onerror=alert(1)>" """).text,
        served.sql(f'SELECT "{EVIL}"').text,
        served.ask(f"/runs/{urllib.parse.quote(EVIL, safe='')}").text,
        served.page("/", filter=EVIL),
    ]
    for page in pages:
        assert "<img src=x" not in page
    assert sum("&lt;img src=x" in page for page in pages) >= 6


@pytest.mark.slow
def test_unknown_things_are_not_found(lab: Desk, served: Served) -> None:
    run = run_of(lab, "oracle")
    for path in ("/runs/x", "/runs/x/images", f"/runs/{run}/image?prompt=x", "/sql?saved=x"):
        assert served.ask(path).status == 404
    for path in (f"/runs/{run}/image", f"/runs/{run}/images?page=-1", f"/runs/{run}/images?page=x"):
        assert served.ask(path).status == 400


@pytest.mark.slow
@pytest.mark.parametrize("value", ["NULL", "'nan'", "'inf'", "'-inf'"])
def test_a_score_that_is_no_number_has_no_place(lab: Desk, tmp_path: Path, value: str) -> None:
    run = run_of(lab, "oracle")
    (prompt,), (other,) = rows(lab, "SELECT DISTINCT prompt_id FROM prompts ORDER BY 1 LIMIT 2")
    home = changed(
        lab, tmp_path, f"UPDATE sample_scores SET value = {value} WHERE prompt_id = '{prompt}'"
    )
    key = "alignment/phantom-clip"
    with serving(home) as served:
        page = served.page(f"/runs/{run}/image", prompt=prompt)
        assert "Scores of this image" in page
        assert "<line" not in page
        assert f"of {PROMPTS - 1}" not in page
        assert "<line" in (whole := served.page(f"/runs/{run}/image", prompt=other))
        assert f"of {PROMPTS - 1}" in whole
        for order in ("asc", "desc"):  # it comes last either way
            gallery = served.page(f"/runs/{run}/images", sample=key, order=order, page=1)
            assert re.findall(r'class="name">(\w+)<', gallery)[-1] == prompt
            query = {"a": run, "b": run_of(lab, "noise"), "sample": key, "order": order}
            compared = served.page("/compare", **query, page=1)
            assert re.findall(r"<b>(\w+)</b>", compared)[-1] == prompt


@pytest.mark.slow
def test_images_of_one_text_alone_are_compared(lab: Desk, tmp_path: Path) -> None:
    one, two = run_of(lab, "oracle"), run_of(lab, "noise")
    (prompt,) = rows(lab, "SELECT max(prompt_id) FROM prompts")[0]
    twice = (
        "INSERT INTO images BY NAME SELECT * REPLACE (image_id || '~1' AS image_id, 1 AS repeat) "
        "FROM images"
    )
    text = f"UPDATE prompts SET prompt = 'b' WHERE run_id = '{two}' AND prompt_id = '{prompt}'"
    home = changed(lab, tmp_path, twice, text)
    store = home / "Results" / "chexgenbench.duckdb"
    others = "The same prompt by other models"
    with serving(home) as served:
        page = served.page("/compare", a=one, b=two)
        assert f"{2 * (PROMPTS - 1)} images of {PROMPTS - 1} prompts that both answered" in page
        assert "1 prompts have another text" in page
        shown = "".join(served.page("/compare", a=one, b=two, page=at) for at in range(3))
        assert len(re.findall(r"<b>(\w+)</b>", shown)) == 2 * (PROMPTS - 1)
        assert f"<b>{prompt}</b>" not in shown
        assert others in served.page(f"/runs/{one}/image", prompt=prompt)
        for column, said in (("split", "split other"), ("caption_type", "caption other")):
            other = tmp_path / "other.duckdb"
            shutil.copy(store_of(lab), other)
            with duckdb.connect(str(other)) as connection:
                connection.execute(f"UPDATE runs SET {column} = 'other' WHERE run_id = '{two}'")
            other.replace(store)
            page = served.page("/compare", a=one, b=two)
            assert "The runs share no prompt" in page
            assert said in page
            assert 'class="grid two"' not in page
            assert others not in served.page(f"/runs/{one}/image", prompt=prompt)


@pytest.mark.slow
def test_pairs_are_those_of_the_image(lab: Desk, tmp_path: Path) -> None:
    """Rows of a pool may have the names of test prompts."""
    run = run_of(lab, "oracle")
    (prompt, image) = rows(lab, f"SELECT prompt_id, image_id FROM images WHERE run_id = '{run}'")[0]

    def pair(rank: int, value: float, pool: str, image_id: str) -> str:
        return (
            "INSERT INTO neighbours BY NAME SELECT "
            f"'{run}' AS run_id, 'nearest' AS plugin, '' AS encoder, 'nearest_training' AS kind, "
            f"{rank} AS rank, {value} AS value, false AS flagged, '{image_id}' AS image_id, "
            f"'{prompt}' AS prompt_id, {pool} AS pool, 'x' AS path, 'x' AS sha256, "
            f"'other-{rank}' AS other_id, 'training' AS other_side, true AS other_real"
        )

    pool = "'training-2x1'"
    home = changed(
        lab,
        tmp_path,
        pair(1, 0.5, "NULL", str(image)),
        pair(2, 0.25, pool, f"training-2x1/{prompt}"),
        *(pair(rank, rank, pool, f"training-2x1/{rank}") for rank in range(3, IMAGES + 3)),
    )
    with serving(home) as served:
        page = served.page(f"/runs/{run}/image", prompt=prompt)
        assert "other-1," in page
        assert "other-2," not in page
        assert f"/runs/{run}/pairs" in served.page(f"/runs/{run}")

        def others(**query: object) -> list[str]:
            return re.findall(r"other-\d+", served.page(f"/runs/{run}/pairs", **query))

        assert others() == [f"other-{rank}" for rank in range(1, IMAGES + 1)]
        assert others(page=1) == [f"other-{IMAGES + 1}", f"other-{IMAGES + 2}"]
        assert others(order="asc")[:2] == ["other-2", "other-1"]
        key = "nearest/nearest_training/"
        assert others(order="desc", kind=key)[0] == f"other-{IMAGES + 2}"
        assert f"prompt={prompt}" in served.page(f"/runs/{run}/pairs", kind=key)


# Images.


@pytest.mark.slow
def test_images_are_those_of_the_row(lab: Desk, served: Served, tmp_path: Path) -> None:
    run = run_of(lab, "oracle")
    prompt = rows(lab, "SELECT max(prompt_id) FROM prompts")[0][0]
    for kind in ("generated", "real"):
        reply = served.ask(f"/picture/{kind}?run={run}&prompt={prompt}&edge=160")
        assert reply.status == 200
        assert reply.headers["Content-Type"] == "image/webp"
        (tmp_path / "a.webp").write_bytes(reply.body)
        assert max(Image.open(tmp_path / "a.webp").size) <= 160
    assert served.ask(f"/picture/generated?run={run}&prompt={prompt}&edge=9999").status == 400
    for bad in (f"run={run}&prompt=..%2f..%2fsecret", f"run=..%2f&prompt={prompt}", "run=&prompt="):
        assert served.ask(f"/picture/generated?{bad}").status in (400, 404)


@pytest.mark.slow
def test_a_file_outside_is_not_served(lab: Desk, tmp_path: Path) -> None:
    """Rows of the store and links on the disk may be anything."""
    home = tmp_path / "home"
    shutil.copytree(lab.home, home)
    Image.new("L", (64, 64), 200).save(tmp_path / "secret.png")
    store = home / "Results" / "chexgenbench.duckdb"
    run = run_of(lab, "oracle")
    with duckdb.connect(str(store)) as connection:
        prompts = [
            str(row[0])
            for row in connection.execute(
                f"SELECT prompt_id FROM images WHERE run_id = '{run}' ORDER BY 1 LIMIT 5"
            ).fetchall()
        ]
        up, absolute, linked, real, whole = prompts
        set_path = "UPDATE images SET path = ? WHERE run_id = ? AND prompt_id = ?"
        connection.execute(set_path, ["../../../../secret.png", run, up])
        connection.execute(set_path, [str(tmp_path / "secret.png"), run, absolute])
        connection.execute(
            "UPDATE prompts SET image_path = '../../../../../../secret.png' "
            "WHERE run_id = ? AND prompt_id = ?",
            [run, real],
        )
        generation, path = connection.execute(
            "SELECT generation_id, path FROM images WHERE run_id = ? AND prompt_id = ?",
            [run, linked],
        ).fetchall()[0]
    image = home / "runs" / "generations" / generation / path
    image.unlink()
    image.symlink_to(tmp_path / "secret.png")
    with serving(home) as served:
        for prompt in (up, absolute, linked):
            assert served.ask(f"/picture/generated?run={run}&prompt={prompt}").status == 404
        assert served.ask(f"/picture/real?run={run}&prompt={real}").status == 404
        assert served.ask(f"/picture/generated?run={run}&prompt={whole}").status == 200
        for prompt in (up, real):  # the pages themselves stand
            assert served.page(f"/runs/{run}/image", prompt=prompt)


@pytest.mark.slow
def test_a_credentialed_split_shows_no_patient(lab: Desk, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(lab.home, home)
    run = run_of(lab, "oracle")
    prompt, text, path, patient = rows(
        lab,
        "SELECT prompt_id, prompt, image_path, patient_id FROM prompts "
        f"WHERE run_id = '{run}' ORDER BY 1 DESC LIMIT 1",
    )[0]
    with duckdb.connect(str(home / "Results" / "chexgenbench.duckdb")) as connection:
        connection.execute("UPDATE runs SET credentialed = true")
    secrets = (str(text)[:30], str(path), f">{patient}<")

    def everything(served: Served) -> str:
        return "".join(
            [
                served.page("/"),
                served.page(f"/runs/{run}"),
                served.page(f"/runs/{run}/images", page=1),
                served.page(f"/runs/{run}/image", prompt=prompt),
                served.page("/compare", a=run, b=run_of(lab, "noise"), page=1),
                served.sql("FROM prompts").text,
                served.sql("FROM prompts", "/sql.csv").text,
                served.sql("SELECT * FROM query_table('prompts')").text,
                served.sql("SELECT images_root FROM runs").text,
            ]
        )

    pictures = [f"/picture/{kind}?run={run}&prompt={prompt}" for kind in ("generated", "real")]
    with serving(home) as served:
        found = everything(served)
        assert not any(secret in found for secret in secrets)
        assert "--include-credentialed" in found
        assert "<img" not in found  # not even a broken one
        assert [served.ask(each).status for each in pictures] == [404, 404]
    with serving(home, "--include-credentialed") as served:
        found = everything(served)
        assert all(secret in found for secret in secrets)
        assert [served.ask(each).status for each in pictures] == [200, 200]


DIGGING = [
    "FROM duckdb_databases()",
    "FROM duckdb_views()",
    "FROM duckdb_tables()",
    "FROM duckdb_columns()",
    "FROM duckdb_constraints()",
    "FROM duckdb_settings()",
    "FROM duckdb_secrets()",
    "FROM duckdb_temporary_files()",
    "FROM sqlite_master",
    "SHOW ALL TABLES",
    "SUMMARIZE prompts",
    "SUMMARIZE runs",
    "SELECT stats(prompt) FROM prompts",
    "SELECT min(prompt), max(image_path), max(patient_id) FROM prompts",
    "SELECT prompt::INTEGER FROM prompts",
    "SELECT error(prompt) FROM prompts WHERE prompt IS NOT NULL",
    "SELECT strptime(prompt, '%Y') FROM prompts",
    "FROM query_table('prompts')",
    "FROM query('FROM pro' || 'mpts')",
    "FROM pragma_storage_info('prompts')",
    "FROM pragma_table_info('prompts')",
    "FROM table_sample('prompts')",
    "SELECT prompt FROM prompts AT (VERSION => 1)",
]
"""Ways to a table other than its name, and what tells of its values."""


@pytest.mark.slow
def test_no_statement_reaches_what_is_left_out(lab: Desk, tmp_path: Path) -> None:
    home = changed(lab, tmp_path, "UPDATE runs SET credentialed = true")
    store = home / "Results" / "chexgenbench.duckdb"
    found = rows(
        lab,
        "SELECT prompt, image_path, 'patient=' || patient_id FROM prompts WHERE line > 3",
    )
    texts = [str(each[0])[:8] for each in found] + [str(each[1]) for each in found]
    root = str(rows(lab, "SELECT images_root FROM runs")[0][0])
    before = store.read_bytes()
    with serving(home) as served, serving(home, "--include-credentialed") as open_one:
        databases = served.sql("SELECT path FROM duckdb_databases() WHERE path IS NOT NULL").text
        files = [*re.findall(r"<td>(/.+?)</td>", databases), str(store), f"{store}.wal"]
        names = re.findall(
            r"<td>(\w+)</td>", served.sql("SELECT database_name FROM duckdb_databases()").text
        )
        assert "chexgenbench" in names
        asked = [
            *DIGGING,
            *(f"FROM {name}.main.prompts" for name in names),
            *(f"SUMMARIZE {name}.main.prompts" for name in names),
            *(
                f"SELECT * FROM query('SELECT prompt FROM {name}.'||'main.prompts')"
                for name in names
            ),
            *(f"FROM query_table('{name}.main.prompts')" for name in names),
            *(f"FROM pragma_storage_info('{name}.main.prompts')" for name in names),
            *(f"SELECT decode(content) FROM read_blob('{file}')" for file in files),
            *(f"SELECT content::VARCHAR FROM read_blob('{file}')" for file in files),
            *(f"FROM read_text('{file}')" for file in files),
            *(f"FROM read_duckdb('{file}', table_name='prompts')" for file in files),
        ]
        told = 0
        for sql in asked:
            replies = served.sql(sql), served.sql(sql, "/sql.csv")
            for reply in replies:
                assert reply.status in (200, 400)
                assert not any(text in reply.text for text in [*texts, root]), sql
            told += any(text in open_one.sql(sql).text for text in texts)
        assert told >= 8  # the same questions tell, where they may
    assert store.read_bytes() == before


@pytest.mark.slow
def test_no_copy_stays_behind(lab: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a credentialed store the explorer opens a copy, without what is left out."""
    home = changed(lab, tmp_path, "UPDATE runs SET credentialed = true")
    own = tmp_path / "temporary"
    own.mkdir()
    monkeypatch.setenv("TMPDIR", str(own))
    secret = str(rows(lab, "SELECT max(image_path) FROM prompts")[0][0]).encode()
    with serving(home) as served:
        assert served.page("/")
        (copy,) = own.rglob("*.duckdb")
        assert copy.parent.stat().st_mode & 0o077 == 0
        assert secret in (home / "Results" / "chexgenbench.duckdb").read_bytes()
        assert secret not in copy.read_bytes()
        served.process.send_signal(signal.SIGINT)
        served.process.wait(timeout=60)
    assert list(own.iterdir()) == []


@pytest.mark.slow
def test_an_older_store_is_shown_and_left_alone(lab: Desk, tmp_path: Path) -> None:
    home = changed(
        lab,
        tmp_path,
        "DELETE FROM schema_info WHERE version > 3",
        "DROP TABLE neighbours",
        "ALTER TABLE runs DROP COLUMN pools",
    )
    store = home / "Results" / "chexgenbench.duckdb"
    before, files = store.read_bytes(), sorted(store.parent.iterdir())
    with serving(home) as served:
        assert "oracle" in served.page("/")
        assert served.page(f"/runs/{run_of(lab, 'oracle')}")
        assert served.sql("FROM neighbours").status == 200
    assert store.read_bytes() == before
    assert sorted(store.parent.iterdir()) == files


def test_every_private_column_is_hidden() -> None:
    """The pages read the same list as the exports."""
    assert {"prompt", "image_path", "patient_id"} <= set(PRIVATE["prompts"])
    assert PRIVATE["neighbours"]
    assert PRIVATE["pool_prompts"]


# The SQL box.


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO runs SELECT * FROM runs",
        "UPDATE runs SET model = 'x'",
        "DELETE FROM runs",
        "CREATE TABLE t AS SELECT 1",
        "CREATE TEMP TABLE t AS SELECT 1",
        "DROP TABLE runs",
        "ALTER TABLE runs ADD COLUMN x INT",
        "WITH x AS (INSERT INTO models VALUES ('a', 'b', 'c', 'd') RETURNING *) FROM x",
        "COPY runs TO '{folder}/out.csv'",
        "COPY (SELECT 1) TO '{folder}/out.parquet' (FORMAT parquet)",
        "EXPLAIN ANALYZE COPY runs TO '{folder}/out.csv'",
        "EXPORT DATABASE '{folder}/out'",
        "ATTACH '{folder}/other.duckdb'",
        "DETACH chexgenbench",
        "USE memory",
        "INSTALL httpfs",
        "LOAD httpfs",
        "PRAGMA database_list",
        "CALL pragma_version()",
        "SET threads = 1",
        "RESET threads",
        "SET enable_external_access = true",
        "FROM read_csv('{folder}/secret.csv')",
        "FROM read_text('{folder}/secret.csv')",
        "FROM read_blob('{folder}/secret.csv')",
        "FROM read_parquet('{folder}/secret.parquet')",
        "FROM read_json('{folder}/secret.csv')",
        "FROM '{folder}/secret.csv'",
        "FROM glob('{folder}/*')",
        "FROM query('FROM ''{folder}/secret.csv''')",
        "FROM sniff_csv('{folder}/secret.csv')",
        "FROM parquet_metadata('{folder}/secret.parquet')",
        "SELECT getenv('HOME')",
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP TABLE runs",
        "BEGIN",
        "PREPARE p AS SELECT 1",
        "CHECKPOINT",
        "VACUUM",
        "",
        "-- nothing",
    ],
)
def test_a_statement_that_is_no_question_is_refused(
    lab: Desk, served: Served, tmp_path: Path, statement: str
) -> None:
    (tmp_path / "secret.csv").write_text("word\nsesame\n")
    shutil.copy(tmp_path / "secret.csv", tmp_path / "secret.parquet")
    before = store_of(lab).read_bytes()
    reply = served.sql(statement.format(folder=tmp_path))
    assert reply.status == 400
    assert "sesame" not in reply.text
    assert sorted(each.name for each in tmp_path.iterdir()) == ["secret.csv", "secret.parquet"]
    assert store_of(lab).read_bytes() == before


@pytest.mark.slow
def test_questions_are_answered(lab: Desk, served: Served) -> None:
    wanted = rows(lab, "SELECT value FROM leaderboard WHERE metric = 'fid' AND subset = 'overall'")
    sql = "FROM leaderboard SELECT model, value WHERE metric = 'fid' AND subset = 'overall'"
    text = served.sql(sql).text
    assert all(f"{value:.6g}" in text for (value,) in wanted)
    csv = served.sql(sql, "/sql.csv")
    assert csv.headers["Content-Disposition"] == 'attachment; filename="answer.csv"'
    head, *lines = csv.text.splitlines()
    assert head == "model,value"
    assert sorted(float(line.split(",")[1]) for line in lines) == sorted(v for (v,) in wanted)
    for other in ("VALUES (1)", "DESCRIBE runs", "SUMMARIZE scores", "WITH a AS (SELECT 1) FROM a"):
        assert served.sql(other).status == 200
    cut = served.sql("FROM range(5000)").text
    assert cut.count("<tr>") == 1001
    assert "first 1,000 rows" in cut
    assert served.sql("FROM range(5000)", "/sql.csv").text.count("\n") == 5001
    assert "longer than" in served.sql("FROM range(2000000)", "/sql.csv").text
    wrong = served.sql("SELECT model,\n  valu FROM leaderboard").text
    assert "LINE 2" in wrong
    assert "^" in wrong


@pytest.mark.slow
@pytest.mark.parametrize("name", saved_queries())
def test_saved_questions_are_answered(served: Served, name: str) -> None:
    assert served.sql(saved_queries()[name].sql).status == 200
    assert saved_queries()[name].sql.split()[0] in served.page("/sql", saved=name)


@pytest.mark.slow
def test_a_slow_question_is_ended(lab: Desk) -> None:
    with serving(lab.home, code=SHORT) as served:
        reply = served.sql(SLOW)
        assert reply.status == 400
        assert "ended after 1 s" in reply.text
        assert served.sql("SELECT 41 + 1").text.count("42") == 1


@pytest.mark.slow
def test_a_question_is_held_to_its_memory(served: Served) -> None:
    greedy = served.sql("SELECT array_agg(i) FROM range(1000000000) AS t(i)")
    assert greedy.status == 400
    assert "Out of Memory" in greedy.text
    assert served.sql("SELECT 41 + 1").text.count("42") == 1


@pytest.mark.slow
def test_a_reply_does_not_wait_for_what_is_not_interrupted(lab: Desk) -> None:
    """DuckDB looks up between rows alone, and a single call can take long."""
    reader = Reader(Source(Home(lab.home)), plain=True)
    with reader.session() as session:  # nor is a list made while the question is planned
        assert '"range"(' in str(session.rows("EXPLAIN SELECT range(3)"))
    box = SqlBox(reader, seconds=1.0)

    async def here() -> bool:
        return False

    with pytest.raises(Stopped, match="ended after"):
        asyncio.run(box.table(STUBBORN, here))
    assert box.at_work
    wait_for(lambda: not box.at_work, "it never ends")


@pytest.mark.slow
def test_cells_and_answers_are_limited(served: Served) -> None:
    long = served.sql("SELECT repeat('x', 30000) AS a, range(50000) AS b").text
    assert f">{'x' * 2000}...<" in long
    assert len(long) < 6_000
    wide = ", ".join(f"repeat('x', 2000) AS c{at}" for at in range(20))
    assert "longer than 20 MB" in served.sql(f"SELECT {wide} FROM range(1000)").text
    assert "longer than 200 MB" in served.sql(f"SELECT {wide} FROM range(6000)", "/sql.csv").text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("TIMESTAMPTZ '2020-02-03 04:05:06+00'", r"2020-02-0\d \d\d:\d\d:06[+-]\d\d(:\d\d)?"),
        ("DATE 'infinity'", "infinity"),
        ("TIMESTAMP '-infinity'", "-infinity"),
        ("DATE '0044-03-15 (BC)'", r"0044-03-15 \(BC\)"),
        ("TIMESTAMP '290000-01-01'", "290000-01-01 00:00:00"),
        ("TIME '24:00:00'", "24:00:00"),
        ("TIMETZ '12:00:00+02'", r"12:00:00\+02"),
        ("INTERVAL 3 MONTHS", "3 months"),
        ("'101'::BIT", "101"),
        ("12345678901234567890123::BIGNUM", "12345678901234567890123"),
        ("uuid()", "[0-9a-f-]{36}"),
        ("1.50::DECIMAL(9, 2)", "1.50"),
        ("'nan'::DOUBLE", "nan"),
        ("[DATE 'infinity']", r"\[infinity\]|\[\"\"infinity\"\"\]"),
        ("{'a': 1}", r"\{&#39;a&#39;: 1\}|\{\"\"a\"\":1\}"),
    ],
)
def test_values_of_every_type_are_shown(served: Served, value: str, cell: str) -> None:
    sql = f"SELECT {value} AS a, {value} AS a ORDER BY 1; -- twice"
    page = served.sql(sql)
    assert page.status == 200, page.text
    assert len(re.findall(f"<td[^>]*>({cell})</td>", page.text)) == 2
    csv = served.sql(sql, "/sql.csv")
    assert csv.status == 200, csv.text
    head, line = csv.text.splitlines()
    assert head == "a,a"
    assert re.fullmatch(f'"?({cell})"?,"?({cell})"?', line)


@pytest.mark.slow
def test_questions_are_never_logged(lab: Desk) -> None:
    """They may quote a report."""
    asked = [
        "SELECT now() AS sesame",
        "SELECT 'sesame'::INTEGER",
        "SELECT sesame",
        "SELEC 'sesame'",
        "SELECT error('sesame')",
        "SELECT error('sesame') FROM range(5000)",
        "SELECT 'sesame \ud800'",
        "SELECT 'sesame \x00'",
        f"{SLOW} -- sesame",
    ]
    with serving(lab.home, code=SHORT) as served:
        for sql in asked:
            for path in ("/sql", "/sql.csv"):
                assert served.sql(sql, path).status in (200, 400), sql
        line = served.sql("SELECT 1,\n 'x'::INTEGER FROM runs").text
        assert "LINE 2: " in line
        served.process.terminate()
        out, err = served.process.communicate(timeout=60)
    assert "sesame" not in out + err
    assert "Traceback" not in out + err


@pytest.mark.slow
def test_a_question_that_nobody_waits_for_is_ended(lab: Desk, served: Served) -> None:
    """Two may be at work: were the abandoned ones to go on, a third would be refused."""
    body = json.dumps({"sql": SLOW}).encode()
    head = (
        f"POST {served.root}/sql HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n"
        f"Cookie: {served.cookie}\r\n"
        f"Origin: {served.origin}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    waiting = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(2)]
    for each in waiting:
        each.sendall(head + body)
    wait_for(lambda: "at work" in served.sql("SELECT 1").text, "two questions are not at work")
    for each in waiting:
        each.close()
    wait_for(lambda: served.sql("SELECT 1").status == 200, "abandoned questions go on")


@pytest.mark.slow
@pytest.mark.parametrize("sql", [SLOW, STUBBORN])
def test_ctrl_c_ends_it_whatever_it_does(lab: Desk, sql: str) -> None:
    with serving(lab.home) as served:
        body = json.dumps({"sql": sql})
        connection = http.client.HTTPConnection("127.0.0.1", served.port)
        own = {"Cookie": served.cookie, "Origin": served.origin}
        own["Content-Type"] = "application/json"
        connection.request("POST", f"{served.root}/sql", body, own)
        wait_for(lambda: served.ask("/live").status == 200, "no answer")
        served.process.send_signal(signal.SIGINT)
        _, errors = served.process.communicate(timeout=60)
        assert served.process.returncode == 0
        assert "Stopped." in errors
        assert "Traceback" not in errors


def test_a_browser_of_the_terminal_is_not_started(tmp_path: Path) -> None:
    """It would take the terminal that the explorer is ended from."""
    for name in ("www-browser", "links", "elinks", "lynx", "w3m"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    code = "from chexgenbench.cli.view import browser_in_a_window as b; print(b() is not None)"

    def opened(**more: str) -> str:
        lacking = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
        kept = {name: value for name, value in os.environ.items() if name not in lacking}
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, env=kept | {"PATH": str(tmp_path)} | more, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert opened() == "False"
    assert opened(DISPLAY=":0") == "False"
    if sys.platform == "linux":
        (tmp_path / "firefox").write_text("#!/bin/sh\n")
        (tmp_path / "firefox").chmod(0o755)
        assert opened() == "False"
        assert opened(DISPLAY=":0") == "True"
        assert opened(WAYLAND_DISPLAY="wayland-0") == "True"


# A store that changes, and work that goes on.

SLEEPY = """
import time
import numpy as np
from chexgenbench import Model, ModelSpec, hookimpl


class Sleepy(Model):
    def generate(self, requests):
        time.sleep(0.15 * len(requests))
        for request in requests:
            random = np.random.default_rng(request.seed)
            yield random.integers(0, 255, (64, 64)).astype(np.uint8)


@hookimpl
def chexgenbench_models():
    yield ModelSpec(name="sleepy", summary="Slow", load=Sleepy, batch_size=4)
"""


@pytest.mark.slow
def test_a_run_is_followed_to_its_end(tmp_path: Path) -> None:
    desk = Desk.new(tmp_path)
    (desk.home / "sleepy.py").write_text(SLEEPY)
    with serving(desk.home) as served:
        options = ("--plugin", "sleepy.py", "--model", "sleepy", "--metric", "alignment")
        process = desk.start("run", *options, "--limit", 120)
        seen: list[dict[str, object]] = []

        def look() -> bool:
            for work in json.loads(served.page("/live.json"))["work"]:
                seen.extend(work["makes"])
            return any(0 < make["done"] < 120 and make["rate"] for make in seen)  # type: ignore[operator]

        wait_for(lambda: look() or process.poll() is not None, "nothing is seen")
        assert process.poll() is None
        half = next(make for make in reversed(seen) if make["rate"])
        assert half["total"] == 120
        assert half["at_work"] is True
        assert 0 < float(str(half["rate"])) < 1 / 0.15 * 4
        assert float(str(half["left"])) > 0
        assert "batch" in str(half["last"])
        assert "No runs yet" in served.page("/")
        assert "sleepy" in served.page("/live")
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, f"{out}{err}"
        counts = [int(str(make["done"])) for make in seen]
        assert counts == sorted(counts)
        # The same explorer sees the store that came in the meantime.
        assert json.loads(served.page("/live.json"))["work"] == []
        assert "sleepy" in served.page("/")
        assert "120" in served.page("/")


@pytest.mark.slow
def test_a_killed_run_is_told_from_one_at_work(tmp_path: Path) -> None:
    desk = Desk.new(tmp_path)
    (desk.home / "sleepy.py").write_text(SLEEPY)
    options = ("--plugin", "sleepy.py", "--model", "sleepy", "--metric", "alignment")
    process = desk.start("run", *options, "--limit", 120)
    manifests = desk.home / "runs" / "generations"
    wait_for(
        lambda: any(path.stat().st_size > 0 for path in manifests.glob("*/manifest.jsonl")),
        "no image is made",
    )
    process.kill()
    process.communicate()
    old = time.time() - 3600
    for path in (desk.home / "runs").rglob("*"):
        os.utime(path, (old, old))
    with serving(desk.home) as served:
        (work,) = json.loads(served.page("/live.json"))["work"]
        assert not work["alive"]
        assert not work["makes"][0]["at_work"]
        assert work["makes"][0]["left"] is None
        assert "stopped" in served.page("/live")


def test_ended_runs_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be thousands, and every page looks."""
    read: list[Path] = []
    whole = live._json

    def noted(path: Path) -> dict[str, object] | None:
        read.append(path)
        return whole(path)

    monkeypatch.setattr(live, "_json", noted)

    def write(run: str, **record: object) -> Path:
        path = tmp_path / "runs" / run / "run.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"run_id": run} | record))
        return path

    old = time.time() - 3600
    for at in range(5):
        os.utime(write(f"ended-{at}", status="finished"), (old, old))
    foreign = write("foreign", status="running", pools=["a"], model=1, generation_id=[])
    odd = write("odd", status="running", pools={"a": "b"})
    progress = live.Progress(Home(tmp_path))
    assert {work.run for work in progress.look()} == {"foreign", "odd"}
    assert len(read) == 7
    read.clear()
    progress.look()
    assert set(read) == {foreign, odd}
    again = write("ended-3", status="running")  # the same command goes on
    assert "ended-3" in {work.run for work in progress.look()}
    assert again in read


@pytest.mark.slow
def test_readers_see_the_newest_store(lab: Desk, tmp_path: Path) -> None:
    home = Home(tmp_path)
    reader = Reader(Source(home))
    with pytest.raises(NoStore), reader.session():
        pass
    home.results.mkdir()
    shutil.copy(store_of(lab), home.store)
    with reader.session() as before:
        changed = tmp_path / "changed.duckdb"
        shutil.copy(store_of(lab), changed)
        with duckdb.connect(str(changed)) as connection:
            connection.execute("DELETE FROM runs WHERE model = 'noise'")
        changed.replace(home.store)
        with reader.session() as after:
            assert after.rows("SELECT model FROM runs") == [{"model": "oracle"}]
            assert after.version != before.version
        assert len(before.rows("SELECT model FROM runs")) == 2


# In a browser.


@contextmanager
def opened(served: Served, size: str = "desktop", *, dark: bool = False) -> Iterator[Window]:
    """A window after its first visit: the token has left the address."""
    with window(size, dark=dark) as found:
        found.page.goto(served.url)
        assert found.page.url == f"{served.base}/"
        yield found


SHOWN = {
    ("runs", "desktop"),
    ("run", "phone"),
    ("image", "desktop-dark"),
    ("compare", "desktop"),
}
"""Pictures of docs/view.md; made anew by `pytest tests/test_view.py -k "accessible or completes"`
where CHEXGENBENCH_SHOTS is docs/images and CHEXGENBENCH_SHOTS_HOME another store."""


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "dark"), [("desktop", False), ("desktop", True), ("phone", False), ("phone", True)]
)
def test_every_page_is_accessible(lab: Desk, served: Served, size: str, dark: bool) -> None:
    (one,), (two,), *_ = rows(lab, "SELECT run_id FROM runs ORDER BY n_flagged DESC, model DESC")
    prompt = rows(lab, "SELECT max(prompt_id) FROM prompts")[0][0]
    kind = f"{size}-dark" if dark else size
    with opened(served, size, dark=dark) as found:
        for name, path in visited(one, two, prompt).items():
            found.page.goto(served.base + path)
            found.page.wait_for_load_state("networkidle")
            assert found.faults() == [], path
            width = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
            assert not found.page.evaluate(width), f"{path} is wider than the screen"
            broken = "[...document.images].filter((i) => i.complete && !i.naturalWidth).length"
            assert found.page.evaluate(broken) == 0, path
            found.shoot(f"view-{name}-{kind}", shown=(name, kind) in SHOWN)
        assert found.errors == []
        assert all(each.startswith(served.base) for each in found.requests)


def visited(one: object, two: object, prompt: object) -> dict[str, str]:
    """The pages of two runs and a prompt."""
    return {
        "runs": "/",
        "run": f"/runs/{one}",
        "images": f"/runs/{one}/images?sample=alignment/phantom-clip",
        "image": f"/runs/{one}/image?prompt={prompt}",
        "compare": f"/compare?a={one}&b={two}",
        "choose": "/compare",
        "sql": "/sql",
        "live": "/live",
        "pairs": f"/runs/{one}/pairs",
    }


@needs_browser
@pytest.mark.slow
def test_the_sql_box_completes_and_answers(served: Served) -> None:
    with opened(served) as found:
        page = found.page
        page.goto(f"{served.base}/sql")
        page.wait_for_selector("#schema summary")
        box = page.locator("textarea")
        box.fill("")
        box.press_sequentially("select model, value from leaderb")
        page.wait_for_selector("[role=option]")
        box.press("Enter")
        assert box.input_value() == "select model, value from leaderboard"
        box.press_sequentially(" where metr")
        assert "metric" in page.locator("[role=option][aria-selected=true]").inner_text()
        box.press("Tab")
        box.press_sequentially(" = 'fid' and subset = 'overall'")
        box.press("Escape")
        box.press("Control+Enter")
        page.wait_for_selector("#answer table")
        assert "oracle" in page.locator("#answer").inner_text()
        found.shoot("view-sql-desktop", shown=True)
        assert page.locator("#answer tbody tr").count() == 2
        with page.expect_download() as download:
            page.get_by_role("button", name="CSV").click()
        assert Path(download.value.path()).read_text().startswith("model,value\n")
        page.get_by_label("A saved question").select_option("cost")
        assert "hours_for_18575" in box.input_value()
        page.get_by_role("button", name="Ask").click()
        page.get_by_text("hours_for_18575").last.wait_for()
        box.fill("select nothing from nowhere")
        page.get_by_role("button", name="Ask").click()
        page.wait_for_selector("#answer .error")
        assert "LINE 1" in page.locator("#answer .error").inner_text()
        box.fill(SLOW)
        page.get_by_role("button", name="Ask").click()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("Cancelled").wait_for()
        # A refusal is a reply of 400, which browsers note in the console.
        assert [each for each in found.errors if "400" not in each] == []


@needs_browser
@pytest.mark.slow
def test_progress_goes_on_after_a_failed_look(served: Served) -> None:
    with opened(served) as found:
        found.page.route("**/live.json", lambda route: route.abort())
        found.page.goto(f"{served.base}/live")
        said = found.page.get_by_text("The explorer does not answer")
        said.wait_for()
        assert found.faults() == []
        found.page.unroute("**/live.json")
        said.wait_for(state="detached")


@needs_browser
@pytest.mark.slow
def test_runs_are_sorted_and_filtered_and_images_paged(lab: Desk, served: Served) -> None:
    one, two = run_of(lab, "oracle"), run_of(lab, "noise")
    with opened(served) as found:
        page = found.page
        models = page.locator("tbody th[scope=row] a")
        page.locator("a.sort", has_text="Model").click()
        first = models.all_inner_texts()
        page.locator("a.sort", has_text="Model").click()
        assert models.all_inner_texts() == first[::-1]
        assert sorted(first) == ["noise", "oracle"]
        page.get_by_label("Filter").fill("oracle")
        page.get_by_role("button", name="Show").click()
        assert models.all_inner_texts() == ["oracle"]
        models.first.click()
        assert page.url == f"{served.base}/runs/{one}"
        page.goto(f"{served.base}/compare")
        page.locator("select[name=a]").select_option(one)
        page.locator("select[name=b]").select_option(two)
        page.get_by_role("button", name="Show").click()
        shown = page.locator(".grid .prompt b").all_inner_texts()
        differences = [
            float(text.rpartition(": ")[2].replace("\N{MINUS SIGN}", "-"))
            for text in page.locator(".grid .value").all_inner_texts()
        ]
        assert differences == sorted(differences, reverse=True)
        page.get_by_role("link", name="Next").click()
        more = page.locator(".grid .prompt b").all_inner_texts()
        assert len(shown) == IMAGES
        assert len(set(shown) | set(more)) == PROMPTS
        page.get_by_role("link", name="Previous").click()
        assert page.locator(".grid .prompt b").all_inner_texts() == shown
        assert found.errors == []
