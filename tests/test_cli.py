"""The command line itself: its help, listings, JSON, colours, errors, completion and Ctrl-C."""

from __future__ import annotations

import inspect
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from typer.main import get_command
from typer.testing import CliRunner

from chexgenbench.cli.main import app
from chexgenbench.cli.output import print_json, print_listing, print_text
from desk import SCRIPT, Desk

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "using_the_cli.md").read_text(encoding="utf-8")


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group, by its words."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), get_command(app))]
    while waiting:
        words, command = waiting.pop()
        yield words, command
        for name, below in getattr(command, "commands", {}).items():
            waiting.append(((*words, name), below))


ALL = dict(commands())
LEAVES = {words: each for words, each in ALL.items() if not hasattr(each, "commands")}


def options(command: Any) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts}


def invoke(*words: object, code: int = 0, **environment: str) -> Any:
    done = CliRunner().invoke(
        app, [str(word) for word in words], env={"COLUMNS": "80"} | environment
    )
    assert done.exit_code == code, (words, done.output, done.exception)
    return done


def fits(text: str, width: int = 80) -> None:
    for line in text.splitlines():
        assert cell_len(line) <= width, line
    assert "\N{HORIZONTAL ELLIPSIS}" not in text


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """Two models of 25 images each."""
    desk = Desk.new(tmp_path_factory.mktemp("project"))
    desk.run("run", "--model", "noise", "--model", "oracle", "--limit", 25, "--quiet")
    return desk


# Help and listings


def test_every_help_fits_80_columns_and_has_every_name() -> None:
    for words, command in ALL.items():
        text = invoke(*words, "--help").output
        fits(text)
        assert "Usage: " in text
        for name in options(command) - {"--help"}:
            if name.startswith("--"):
                assert re.search(rf"{name}(?![\w-])", text), (words, name)
        for name in getattr(command, "commands", {}):
            assert re.search(rf"│ {name} ", text), (words, name)


def test_the_help_groups_the_commands_and_tells_the_exit_codes() -> None:
    text = invoke("--help").output
    panels = re.findall(r"─ (\w+) ─", text)
    assert panels == ["Options", "Run", "Results", "Plugins", "Machines", "Upkeep", "Data"]
    for code in ("0 well", "1 something", "2 bad input", "130 stopped"):
        assert code in text


def test_commands_are_named_and_described_alike() -> None:
    verbs = {"list", "show", "status", "info", "build", "remove", "fetch"}
    for words, command in LEAVES.items():
        assert command.help, words
        if words[-1] in {"list", "show", "status", "info"}:
            assert "--json" in options(command), words
        if words[-1] in verbs and words[0] not in ("queries", "reference"):
            assert "--home" in options(command) or words[0] in ("cache", "containers", "env"), words
        for parameter in command.params:
            assert getattr(parameter, "help", "") or parameter.name == "help", (
                words,
                parameter.name,
            )


LISTINGS = [
    *((kind, "list") for kind in ("models", "encoders", "metrics", "splits", "judges")),
    ("models", "status"),
    ("models", "show", "flux-1-dev"),
    ("metrics", "show", "memorisation"),
    ("env", "list"),
    ("queries", "list"),
    ("runs", "list"),
    ("runs", "show", "RUN"),
    ("leaderboard",),
    ("store", "info"),
    ("doctor", "--model", "noise"),
]


@pytest.mark.slow
@pytest.mark.parametrize("words", LISTINGS, ids=" ".join)
def test_every_listing_fits_80_columns(project: Desk, words: tuple[str, ...]) -> None:
    run = sorted(path.name for path in (project.home / "runs").iterdir())[0]
    words = tuple(run if word == "RUN" else word for word in words)
    home = () if words[0] in ("queries",) else ("--home", project.home)
    done = invoke(*words, *home, CHEXGENBENCH_CACHE=str(project.cache))
    # A path, or another single word, is never broken, nor parted from the key before it.
    for line in done.stdout.splitlines():
        assert cell_len(line) <= 80 or " " not in re.sub(r"^\w+: ", "", line.strip()), line
    assert "\N{HORIZONTAL ELLIPSIS}" not in done.stdout
    if words[-1] == "list" and words[0] != "runs":
        for entry in json.loads(invoke(*words, "--json").stdout):
            assert any(
                line.split()[0] == entry["name"] for line in done.stdout.splitlines() if line
            )


@pytest.mark.slow
def test_in_a_pipe_an_entry_is_one_line() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    done = subprocess.run(
        [SCRIPT, "models", "status"], env=environment, capture_output=True, text=True, check=True
    )
    names = [each["name"] for each in json.loads(invoke("models", "status", "--json").stdout)]
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["model", *names]


def test_wide_characters_and_escapes_keep_a_listing_straight(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lungs = "\u80f8\u90e8\u30ec\u30f3\u30c8\u30b2\u30f3"  # 7 characters, 14 cells
    print_listing(("name", "what"), [(lungs, f"{lungs} {lungs} {lungs}"), ("b", "x\x1b[31m\ty")])
    text = capsys.readouterr().out
    fits(text, 40)
    assert "\x1b" not in text
    head, first, *rest = text.splitlines()
    assert cell_len(head[: head.index("what")]) == cell_len(first[: first.index(" ")]) + 2 == 16
    assert text.count(lungs) == 4
    assert rest[-1].split() == ["b", "x\N{REPLACEMENT CHARACTER}[31m", "y"]

    # Where columns do not fit side by side, a row is a block.
    monkeypatch.setenv("COLUMNS", "24")
    print_listing(("name", "first", "second"), [("a-long-name-of-20-abc", "one two", "three four")])
    assert capsys.readouterr().out == (
        "a-long-name-of-20-abc\n  first: one two\n  second: three four\n"
    )
    print_text("a path /a/very/long/path/without/any/space b", hanging=2)
    assert capsys.readouterr().out.splitlines() == [
        "a path",
        "  /a/very/long/path/without/any/space",
        "  b",
    ]


# JSON


def documented() -> dict[str, tuple[str, list[str], bool]]:
    """Command to its kind of value, its keys, and whether these are all."""
    section = PAGE.partition("## The keys of")[2]
    found = {}
    for row in re.findall(r"^\| (`.*?) \| (list|object) \| (.*) \|$", section, re.MULTILINE):
        names, kind, keys = row
        keys, more = re.sub(r"\(.*?\)", "", keys), "more" in keys or "those of" in keys
        for name in re.findall(r"`(.*?)`", names):
            free = "columns of" in keys
            listed = [] if free else re.findall(r"`(\w+)`", keys.replace("those of `list`", ""))
            found[name] = (kind, listed, more or free or "notes" in keys.split("and what")[-1:])
    return found


def test_every_command_with_json_is_on_the_page() -> None:
    with_json = {" ".join(words) for words, each in LEAVES.items() if "--json" in options(each)}
    assert with_json == {name for name in documented() if " --" not in name}


NO_JSON = {
    "view": "a server that works until it is stopped",
    "sql": "another program's prompt",
    "export latex": "LaTeX, to paste",
    "export model-card": "YAML, to paste",
    "env remove": "prints nothing",
    "containers remove": "prints nothing",
}
NO_QUIET = {
    "doctor": "each of its lines is the result",
    "plugin check": "each of its lines is the result",
    "leaderboard": "its notes belong to the numbers",
    "compare": "its notes belong to the numbers",
    "view": "its address is the result",
    "sql": "another program's prompt",
    **dict.fromkeys(
        (
            "query", "report", "convert", "jobs", "worker", "runs delete", "store rebuild",
            "store merge", "export tables", "export latex", "export model-card", "export push",
            "splits validate", "plugin new", "env remove", "env worker", "containers remove",
            "cache prune",
        ),
        "says its result alone, and what was left out of it",
    ),
}  # fmt: skip
AT_ONCE = ("list", "show", "status", "info")
"""Verbs of commands that read and answer."""


def test_every_command_has_json_and_quiet_or_a_reason() -> None:
    names = {" ".join(words): options(command) for words, command in LEAVES.items()}
    assert set(NO_JSON) | set(NO_QUIET) <= set(names)
    for name, known in names.items():
        assert ("--json" in known) != (name in NO_JSON), name
        if name.split()[-1] not in AT_ONCE:
            assert ("--quiet" in known) != (name in NO_QUIET), name


def test_what_shows_progress_can_be_quiet() -> None:
    """A command that makes a `Progress` hands it what ``--quiet`` says."""
    for words, command in LEAVES.items():
        source = inspect.getsource(command.callback)
        if "Progress(" in source:
            assert "--quiet" in options(command), words
            assert "Progress(quiet)" in source, words


def alone(text: str) -> Any:
    """The value, where the text is JSON and nothing else."""
    assert text.lstrip()[:1] in "[{"
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


JSON_OF = {
    "models list": (),
    "encoders list": (),
    "metrics list": (),
    "splits list": (),
    "judges list": (),
    "models show": ("sana",),
    "encoders show": ("phantom-clip",),
    "metrics show": ("fid",),
    "splits show": ("demo",),
    "judges show": ("scores",),
    "models status": ("noise",),
    "doctor": ("--model", "noise"),
    "doctor --fix": (),
    "verify": (),
    "repair": (),
    "env list": (),
    "queries list": (),
    "queries show": ("findings",),
    "run --dry-run": ("--model", "noise"),
    "generate": ("--model", "noise", "--limit", "25"),
    "leaderboard": (),
    "runs list": (),
    "runs show": ("RUN",),
    "query": ("select 1.5::double as a, 'NaN'::double as b",),
    "store info": (),
    "compare": ("RUN", "RUN2"),
    "report": ("RUN", "--out", "OUT"),
    "export push": ("my-lab/my-results",),
    "splits validate": ("TABLE", "--column", "path=", "--column", "labels="),
    "plugin new": ("model", "my-model", "--into", "OUT"),
}
HOMELESS = ("queries list", "queries show", "plugin new")


@pytest.mark.slow
@pytest.mark.parametrize("name", JSON_OF)
def test_json_stands_alone_and_has_the_keys_of_the_page(
    project: Desk, tmp_path: Path, name: str
) -> None:
    first, second = sorted(
        path.name for path in (project.home / "runs").iterdir() if path.name != "generations"
    )
    words = [*name.split(), *JSON_OF[name], "--json"]
    out = str(tmp_path / "page.html" if name == "report" else tmp_path)
    table = tmp_path / "small.csv"
    table.write_text("annotated_prompt,patientID,id\nSmall left effusion.,1,1\n")
    named = {"RUN": first, "RUN2": second, "OUT": out, "TABLE": str(table)}
    words = [named.get(word, word) for word in words]
    if name not in HOMELESS:
        words += ["--home", str(project.home)]
    value = alone(invoke(*words, CHEXGENBENCH_CACHE=str(project.cache)).stdout)
    kind, keys, more = documented()[name]
    assert type(value) is {"list": list, "object": dict}[kind]
    rows = value if kind == "list" else [value]
    assert rows
    for row in rows:
        assert set(keys) <= row.keys() if more else list(row) == keys
    if name == "query":
        assert value == [{"a": 1.5, "b": None}]
    elif name == "report":
        assert Path(value["page"]) == Path(out)
        assert Path(out).is_file()
        assert value["runs"] == [first]
    elif name == "export push":
        assert (value["sent"], value["address"]) == (False, None)
        assert {"README.md"} < {each["file"] for each in value["files"]}
    elif name == "plugin new":
        assert all(Path(path).is_file() for path in value["files"])


def test_a_run_that_is_deleted_is_named(project: Desk, tmp_path: Path) -> None:
    desk = Desk(tmp_path / "home", project.cache)
    shutil.copytree(project.home, desk.home)
    first, second = sorted(
        path.name for path in (desk.home / "runs").iterdir() if path.name != "generations"
    )
    asked = desk.run("runs", "delete", first, "--json", code=2)
    assert asked.out == ""
    assert "Say --yes." in asked.err
    assert (desk.home / "runs" / first).is_dir()
    done = desk.run("runs", "delete", first, "--json", "--yes")
    value = alone(done.out)
    assert list(value) == documented()["runs delete"][1]
    assert value["run"] == first
    assert not Path(value["folder"]).exists()
    assert [row["run_id"] for row in alone(desk.run("runs", "list", "--json").out)] == [second]


def test_the_wheel_that_is_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chexgenbench import environments

    monkeypatch.setattr(environments, "build_worker_wheel", lambda out: out / "a.whl")
    value = alone(invoke("env", "worker", tmp_path, "--json").stdout)
    assert list(value) == documented()["env worker"][1]
    assert value["wheel"] == str(tmp_path / "a.whl")


@pytest.mark.slow
def test_the_commands_of_the_page_print_json(project: Desk) -> None:
    (block,) = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    lines = block.splitlines()
    assert len(lines) >= 5
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "chexgenbench"
        assert alone(project.run(*words).out)


@pytest.mark.slow
def test_json_of_a_run_has_no_table_and_what_is_said_goes_elsewhere(desk: Desk) -> None:
    broken = desk.home / "broken.py"
    broken.write_text(
        "from chexgenbench import Model, ModelSpec, hookimpl\n"
        "class Broken(Model):\n"
        "    def generate(self, requests):\n"
        "        raise ValueError('no image today')\n"
        "@hookimpl\n"
        "def chexgenbench_models():\n"
        "    yield ModelSpec(name='broken', summary='fails', load=Broken)\n"
    )
    options = ("--plugin", broken, "-m", "noise", "-m", "broken", "--limit", 6, "--metric", "kid")
    done = desk.run("run", *options, "--json", code=1)
    value = alone(done.out)
    assert list(value) == documented()["run"][1]
    assert len(value["runs"]) == 1
    assert value["images_made"] == 6
    assert "no image today" in value["failed"]["broken"]["message"]
    assert Path(value["page"]).is_file()
    assert "generate noise" in done.err
    quiet = desk.run("run", *options, "--json", "--quiet", code=1)
    assert alone(quiet.out)["reused"] == value["runs"]
    assert quiet.err.startswith("Failed: broken: ")


def test_a_listing_of_nothing_is_an_empty_list(desk: Desk) -> None:
    desk.run("store", "rebuild")
    for words in (("runs", "list"), ("leaderboard",), ("query", "select 1 where false")):
        assert alone(desk.run(*words, "--json").out) == []


def test_json_and_another_format_are_refused(project: Desk) -> None:
    done = project.run("runs", "list", "--json", "--format", "csv", code=2)
    assert done.err.startswith("Error: --json and --format csv")
    assert done.out == ""


def test_json_has_no_number_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": float("nan"), "b": [float("inf"), 1.0], "c": Path("x"), "d": "\u80f8"})
    text = capsys.readouterr().out
    assert alone(text) == {"a": None, "b": [None, 1.0], "c": "x", "d": "\u80f8"}
    assert "\u80f8" in text


@pytest.mark.slow
def test_job_directories_are_listed(desk: Desk) -> None:
    options = ("shard", "out", "--shards", 2, "--model", "noise", "--limit", 6, "--batch-size", 2)
    written = alone(desk.run(*options, "--json").out)
    assert list(written) == documented()["shard"][1]
    (desk.home / "brief").mkdir()
    brief = desk.run("shard", "brief/out", *options[2:], "--quiet").out
    assert brief.splitlines() == ["2 job directories for 6 images in brief/out"]
    assert sum(job["images"] for job in written["jobs"]) == 6
    rows = alone(desk.run("jobs", "out", "--json").out)
    assert [list(row) for row in rows] == [documented()["jobs"][1]] * 2
    assert [row["folder"] for row in rows] == [job["folder"] for job in written["jobs"]]
    text = desk.run("jobs", "out").out
    fits(text)
    assert all(row["folder"] in text for row in rows)
    result = alone(desk.run("worker", f"out/{rows[0]['folder']}", "--json").out)
    assert list(result) == documented()["worker"][1]
    assert result["done"]
    assert result["error"] is None
    facts = desk.home / "out" / rows[1]["folder"] / "job.json"
    whole = facts.read_text()
    facts.write_text(whole.replace('"noise"', '"nobody"'))
    failed = desk.run("worker", f"out/{rows[1]['folder']}", "--json", code=2)
    result = alone(failed.out)
    assert (result["done"], result["exit_code"]) == (False, 2)
    assert "nobody" in result["error"]["message"]
    assert result["error"]["message"] in failed.err
    facts.write_text(whole)
    merged = alone(desk.run("merge", "out", "--json", "--quiet", code=1).out)
    assert list(merged) == documented()["merge"][1]
    assert merged["lacking"] == [2]
    assert not merged["complete"]
    assert merged["generations"][0]["jobs"][0]["complete"]


def test_containers_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from chexgenbench.executors import containers

    image = SimpleNamespace(
        environment="llm-cxr", size=3e9, base="python", created="2026-01-02T03:04:05Z", id="abc"
    )
    monkeypatch.setattr(containers, "find_runtime", lambda _: SimpleNamespace(command="podman"))
    monkeypatch.setattr(containers, "images", lambda _: [image])
    monkeypatch.setattr(containers, "is_current", lambda *_: True)
    monkeypatch.setattr(containers, "known", lambda _: ["llm-cxr", "example"])
    rows = alone(invoke("containers", "list", "--json").stdout)
    assert [list(row) for row in rows] == [documented()["containers list"][1]] * 2
    assert [row["state"] for row in rows] == ["ready", "not built"]
    text = invoke("containers", "list").stdout
    fits(text)
    assert "podman" in text


# Terminals


def in_terminal(
    desk: Desk, *arguments: object, act: Callable[[str], None] | None = None, **environment: str
) -> tuple[int, str]:
    """Exit code and output of a command on a terminal of 80 columns."""
    import fcntl
    import struct
    import termios

    child, terminal = pty.fork()
    if child == 0:
        changed = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
        changed |= {"TERM": "xterm", "CHEXGENBENCH_CACHE": str(desk.cache)} | environment
        os.chdir(desk.home)
        time.sleep(0.2)  # until the size of the terminal is set
        os.execve(SCRIPT, [str(SCRIPT), *map(str, arguments)], changed)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    output = b""
    while True:
        try:
            block = os.read(terminal, 65536)
        except OSError:
            break
        if not block:
            break
        output += block
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), output.decode()


def without_codes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.slow
def test_a_terminal_gets_a_bar_with_stage_and_time_left(desk: Desk) -> None:
    options = ("generate", "-m", "phantom-diffusion", "-m", "noise", "--limit", 24)
    options = (*options, "--batch-size", 4, "--set", "phantom-diffusion.steps=8")
    code, text = in_terminal(desk, *options)
    assert code == 0
    plain = without_codes(text)
    assert "model 1 of 2, generate phantom-diffusion" in plain
    assert "model 2 of 2, generate noise" in plain
    assert re.search(r"\d+/24 images .*\d:\d\d left", plain)
    assert re.search(r"24/24 images .*/s in 0:\d\d", plain)
    for line in re.findall(r"model \d[^\r\n]*", plain):
        assert cell_len(line.rstrip()) <= 80, line


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": "xterm", "quiet": "yes"}])
def test_a_dumb_terminal_gets_lines_and_quiet_nothing(
    desk: Desk, environment: dict[str, str]
) -> None:
    quiet = ("--quiet",) if environment.pop("quiet", "") else ()
    options = ("generate", "-m", "noise", "--limit", 6, *quiet)
    code, text = in_terminal(desk, *options, **environment)
    assert code == 0
    assert "\x1b" not in text
    assert ("generate noise: 6 of 6 images" in text) is not bool(quiet)
    assert "6 images made" in text


def test_colours_only_where_they_are_wanted(desk: Desk) -> None:
    assert "\x1b[" not in desk.run("run", "--help", TERM="xterm").out
    assert "\x1b[" in desk.run("run", "--help", TERM="xterm", FORCE_COLOR="1").out
    code, text = in_terminal(desk, "run", "--help")
    assert code == 0
    assert re.search(r"\x1b\[(?:\d+;)*3\d", text)
    code, text = in_terminal(desk, "run", "--help", NO_COLOR="1")
    assert "--model" in without_codes(text)
    assert not re.search(r"\x1b\[(?:\d+;)*[34]\d", text)
    code, text = in_terminal(desk, "run", "--help", TERM="dumb")
    assert "\x1b[" not in text


def test_another_encoding_shows_what_it_can(desk: Desk) -> None:
    done = desk.run("models", "--help", code=0, PYTHONIOENCODING="ascii")
    assert "Commands" in done.out


# Pipes


@pytest.mark.parametrize("words", [("models", "list"), ("run", "--help"), ("QUERY",)])
def test_a_reader_that_leaves_early_is_no_error(project: Desk, words: tuple[str, ...]) -> None:
    if words == ("QUERY",):
        words = ("query", "select * from range(200000)", "--format", "csv")
    process = project.start(*words)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=60) == 141
    assert err == ""


def test_closed_standard_streams_are_no_crash(project: Desk) -> None:
    run = sorted(path.name for path in (project.home / "runs").iterdir())[0]

    def done(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", f"{SCRIPT} {line}"], cwd=project.home, capture_output=True, text=True
        )

    asked = done(f"runs delete {run} <&-")
    assert asked.returncode == 2
    assert "Say --yes" in asked.stderr
    assert (project.home / "runs" / run).is_dir()
    assert done(f"runs delete {run} </dev/null").returncode == 1
    assert (project.home / "runs" / run).is_dir()
    empty = done("query --file - <&-")
    assert empty.returncode == 2
    assert "Traceback" not in empty.stderr
    assert done("models list >&-").returncode == 0
    assert done("models list 2>&-").returncode == 0


# Errors


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("rnu",), "No such command 'rnu'.", "Did you mean 'run'? See: chexgenbench --help"),
        (("models", "shwo"), "No such command 'shwo'.", "Did you mean 'show'?"),
        (("run", "--modle", "x"), "No such option: --modle.", "Did you mean '--model'?"),
        (("run", "--limit", "x"), "--limit", "See: chexgenbench run --help"),
        (("models", "show"), "Missing argument 'name'", "See: chexgenbench models show --help"),
        (("models", "show", "orcale"), "no model named 'orcale'", "Did you mean 'oracle'?"),
        (("metrics", "show", "fidd"), "no metric named 'fidd'", "Did you mean 'fid'?"),
        (("queries", "show", "findngs"), "'findngs'", "'findings'"),
        (("leaderboard",), "There is no store at", "run `chexgenbench run` first"),
        (("env", "build", "llm-cxrr"), "llm-cxrr", "llm-cxr"),
        (("query", "--format", "jsn", "select 1"), "jsn", "See: chexgenbench query --help"),
    ],
)
def test_errors_are_two_lines_and_suggest(
    desk: Desk, words: tuple[str, ...], message: str, hint: str
) -> None:
    done = desk.run(*words, code=2)
    first, second = done.err.splitlines()[:2]
    assert first.startswith("Error: ")
    assert message in first
    assert hint in second
    assert done.out == ""


def test_no_words_show_the_help(desk: Desk) -> None:
    done = desk.run(code=2)
    assert "Usage: chexgenbench" in done.out
    assert done.err == ""


FAULTY = """
import sys
import chexgenbench.cli.plugins as plugins
def fault(*_):
    raise ZeroDivisionError("a secret of the data")
plugins._registry = fault
from chexgenbench.cli.main import main
sys.argv = ["chexgenbench", "models", "list"]
main()
"""


def test_an_unexpected_error_is_short_and_its_place_is_kept(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", FAULTY]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    first, second = done.stderr.splitlines()
    assert first == "Error: Unexpected ZeroDivisionError: a secret of the data."
    path = Path(second.rpartition(" ")[2])
    assert path.parent == tmp_path
    assert path.stat().st_mode & 0o077 == 0
    assert "in fault" in path.read_text()
    environment["CHEXGENBENCH_DEBUG"] = "1"
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "in fault" in done.stderr
    assert len(list(tmp_path.iterdir())) == 1


# Completion


def completed(desk: Desk, line: str) -> list[str]:
    """What bash would offer for the last word."""
    words = line.split(" ")
    environment = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    return desk.run(_CHEXGENBENCH_COMPLETE="complete_bash", **environment).out.split()


def test_words_are_completed(project: Desk) -> None:
    assert completed(project, "chexgenbench ru") == ["run", "runs"]
    assert completed(project, "chexgenbench run --mo") == ["--model"]
    assert completed(project, "chexgenbench run --model ph") == ["phantom-diffusion"]
    assert completed(project, "chexgenbench run --model mine=ora") == ["mine=oracle"]
    assert completed(project, "chexgenbench evaluate --metric fid-") == ["fid-infinity"]
    assert completed(project, "chexgenbench run --metric kid@phantom") == ["kid@phantom-clip"]
    assert completed(project, "chexgenbench run --suite qui") == ["quick"]
    assert completed(project, "chexgenbench metrics show prd") == ["prdc"]
    assert completed(project, "chexgenbench query --saved find") == ["findings"]
    assert completed(project, "chexgenbench leaderboard --format js") == ["json"]
    runs = {path.parent.name for path in project.home.glob("runs/*/run.json")}
    assert set(completed(project, "chexgenbench runs show ")) == runs
    elsewhere = f"chexgenbench compare --home {project.home} "
    assert set(completed(project, elsewhere)) == runs


def test_a_new_suite_is_completed_at_once(desk: Desk) -> None:
    assert completed(desk, "chexgenbench run --suite my") == []
    (desk.home / "suites").mkdir()
    (desk.home / "suites" / "mysuite.toml").write_text('models = ["noise"]\n')
    assert completed(desk, "chexgenbench run --suite my") == ["mysuite"]


def test_completion_imports_nothing_heavy_once_it_knows_the_names(project: Desk) -> None:
    completed(project, "chexgenbench run --model ph")
    code = (
        "import atexit, sys\n"
        "heavy = ('torch', 'pandas', 'duckdb', 'numpy', 'pyarrow', 'rich.console', 'diffusers')\n"
        "tell = lambda: print([m for m in heavy if m in sys.modules], file=sys.stderr)\n"
        "atexit.register(tell)\n"
        "from chexgenbench.cli.main import main\n"
        "sys.argv = ['chexgenbench']\n"
        "main()"
    )
    environment = os.environ | {
        "CHEXGENBENCH_CACHE": str(project.cache),
        "_CHEXGENBENCH_COMPLETE": "complete_bash",
        "COMP_WORDS": "chexgenbench run --model ph",
        "COMP_CWORD": "3",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=project.home,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "phantom-diffusion"
    assert done.stderr.strip() == "[]"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_script_for_bash_works_in_bash(project: Desk, tmp_path: Path) -> None:
    environment = os.environ | {
        "PATH": f"{SCRIPT.parent}{os.pathsep}{os.environ['PATH']}",
        "CHEXGENBENCH_CACHE": str(project.cache),
        "HOME": str(tmp_path),
    }
    lines = (
        "chexgenbench --install-completion >&2 && source ~/.bash_completions/chexgenbench.sh\n"
        "COMP_WORDS=(chexgenbench models sta); COMP_CWORD=2\n"
        "_chexgenbench_completion chexgenbench; echo ${COMPREPLY[@]}\n"
        "chexgenbench --show-completion | grep -c _CHEXGENBENCH_COMPLETE=complete_bash\n"
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", lines], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["status", "1"]
    assert (tmp_path / ".bashrc").is_file()


# Ctrl-C

SCORES = "select * exclude (created_at) from scores order by all"


def images(desk: Desk) -> dict[str, bytes]:
    found = desk.home.glob("runs/generations/*/images/[!.]*.png")  # whole files
    return {f"{path.parent.parent.name}/{path.name}": path.read_bytes() for path in found}


def stopped(desk: Desk, come: Callable[[], bool], *arguments: object, times: int = 1) -> Any:
    """Ends a command as a terminal's Ctrl-C does, of which every process of its group hears."""
    process = subprocess.Popen(
        [str(SCRIPT), *map(str, arguments)],
        cwd=desk.home,
        env=os.environ | {"CHEXGENBENCH_CACHE": str(desk.cache), "COLUMNS": "80"},
        stdout=subprocess.PIPE,
        stderr=(desk.home.parent / "err.txt").open("w"),
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not come():
        time.sleep(0.002)
    assert process.poll() is None, "too late"
    for _ in range(times):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)
    out, _ = process.communicate(timeout=120)
    err = (desk.home.parent / "err.txt").read_text()
    assert "Traceback" not in err + out
    assert not working(desk), "a worker is left"
    return process.returncode, err


def working(desk: Desk) -> list[str]:
    """Processes that still work for the project."""
    import psutil

    deadline = time.monotonic() + 30
    while True:
        found = []
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or ())
            if str(desk.home) in line and "worker" in line:
                found.append(line)
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


STEADY = ("run", "-m", "phantom-diffusion", "--limit", 32, "--batch-size", 4, "--set", "steps=4")
STEADY = (*STEADY, "--extra-info", "it's mine; $HOME", "--metric", "kid")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A run that nobody stopped."""
    desk = Desk.new(tmp_path_factory.mktemp("whole"))
    desk.run(*STEADY)
    return desk


@pytest.mark.slow
@pytest.mark.parametrize("workers", [(), ("--workers", "2"), ("--executor", "process")], ids=str)
def test_ctrl_c_while_images_are_made(desk: Desk, whole: Desk, workers: tuple[str, ...]) -> None:
    options = (*STEADY, *workers)
    made = lambda: any(desk.home.glob("runs/generations/**/*.png"))  # noqa: E731
    code, err = stopped(desk, made, *options)
    assert code == 130
    assert "Ctrl-C again ends it at once" in err
    assert len(images(desk)) < 32
    # Word for word what it says goes on.
    line = err.rstrip().splitlines()[-1].strip()
    program, *words = shlex.split(line)
    assert Path(program).name == "chexgenbench"
    assert words == [str(word) for word in options]
    done = desk.run(*words)
    assert not list(desk.home.rglob(".tmp-*"))
    assert images(desk) == images(whole)
    assert desk.rows(SCORES) == whole.rows(SCORES)
    assert "Page:" in done.out


@pytest.mark.slow
def test_ctrl_c_while_scores_are_taken(tmp_path: Path) -> None:
    whole, desk = Desk.new(tmp_path / "whole"), Desk.new(tmp_path / "stopped")
    options = ("run", "-m", "noise", "--limit", 300)
    said = desk.home.parent / "err.txt"
    encoded = re.compile(r"encode noise: (\d+) of \1 images in")  # its end; scores come next
    code, _ = stopped(
        desk, lambda: said.exists() and bool(encoded.search(said.read_text())), *options
    )
    assert code == 130
    assert not list(desk.home.glob("runs/*/scores.parquet"))
    before = images(desk)
    assert len(before) == 300
    done = desk.run(*options)
    assert "generate" not in done.err
    assert images(desk) == before
    whole.run(*options)
    assert images(whole) == before
    assert desk.rows(SCORES) == whole.rows(SCORES)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=str)
def test_ctrl_c_twice_ends_at_once_and_the_work_goes_on(
    desk: Desk, workers: tuple[str, ...]
) -> None:
    options = ("generate", "-m", "phantom-diffusion", "--limit", 24, "--batch-size", 4, *workers)
    made = lambda: any(desk.home.glob("runs/generations/**/*.png"))  # noqa: E731
    code, _ = stopped(desk, made, *options, times=2)
    assert code in (-signal.SIGINT, 130)
    desk.run(*options)
    assert len(images(desk)) == 24


@pytest.mark.slow
def test_ctrl_c_of_a_new_run_says_that_it_begins_anew(desk: Desk) -> None:
    options = ("generate", "-m", "noise", "--limit", 300, "--new")
    code, err = stopped(desk, lambda: bool(images(desk)), *options)
    assert code == 130
    assert "begins anew" in err
    assert "chexgenbench generate" not in err
