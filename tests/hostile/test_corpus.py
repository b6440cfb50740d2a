"""Every case of the hostile corpus, and what it comes to (corpus.py says what is expected)."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chexgenbench.cli import ending
from chexgenbench.cli.main import app
from desk import SCRIPT
from hostile.corpus import CASES, CONTROLS, MODEL, PAGE, PROMPT, Bench, Case, Ran, page
from made_up import make_home

PATIENCE = 120.0
"""Seconds after which a command hangs. Far above what any takes, however busy the machine."""


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Two made-up runs, the first of a model and of prompts with hostile text."""

    @functools.cache
    def make() -> Path:
        home = tmp_path_factory.mktemp("project") / "theirs"
        models = (MODEL, "other")
        make_home(home, models, 6, text=PROMPT, reason="<b>run", privacy=False, utility=False)
        return home

    return make


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: Callable[[], Path]
) -> Iterator[Bench]:
    for name in ("home", "cache", "outside", "user", "temporary"):
        (tmp_path / name).mkdir()
    for name, place in (
        ("CHEXGENBENCH_HOME", "home"),
        ("CHEXGENBENCH_CACHE", "cache"),
        ("HOME", "user"),
        ("XDG_CONFIG_HOME", "user"),
        ("TMPDIR", "temporary"),
    ):
        monkeypatch.setenv(name, str(tmp_path / place))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.chdir(tmp_path / "home")
    found = Bench(tmp_path / "home", tmp_path / "outside", project)
    found.secret.write_bytes(b"\x89PNG secret")
    yield found


def here(words: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """The command in this process, with all that the console script does around it."""
    monkeypatch.setattr(sys, "argv", ["chexgenbench", *words])
    out, err = io.StringIO(), io.StringIO()
    before = signal.getsignal(signal.SIGINT)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = ending.run_to_its_end(app)
    finally:
        signal.signal(signal.SIGINT, before)
    return code, out.getvalue(), err.getvalue()


def apart(words: list[str], memory: int) -> tuple[int, str, str]:
    """The console script, in bounded time and so many bytes of address space."""
    process = subprocess.Popen(
        [str(SCRIPT), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (memory, memory)),
    )
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        pytest.fail("it hangs")
    return process.returncode, out, err


def snapshot(folder: Path, *, deep: bool = True) -> dict[str, str]:
    """Every file, folder and link below, with what it holds."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            kind = f"link to {path.readlink()}"
        elif path.is_file():
            # Content of what is large is known by its size: it takes no part in what is written.
            size = path.stat().st_size
            whole = size < 10_000_000
            kind = hashlib.sha256(path.read_bytes()).hexdigest() if whole else f"{size} bytes"
        else:
            kind = "folder" if path.is_dir() else "other"
        found[str(path.relative_to(folder))] = kind
    return found


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in {*before, *after} if before.get(name) != after.get(name)}


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("each", CASES, ids=[each.name for each in CASES])
def test_hostile(each: Case, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    holes = each.make(bench)
    words = each.words(holes)
    root = bench.home.parent
    before, made = snapshot(root), snapshot(bench.home)
    if each.apart:
        code, out, err = apart(words, each.apart * 2**30)
    else:
        code, out, err = here(words, monkeypatch)
    told = out + err
    assert "Traceback" not in told
    assert "Unexpected" not in told, told
    assert code == each.code, told
    for text in each.says:
        assert flat(text) in flat(told), told
    if each.code:
        assert err.startswith(("Error: ", "Failed: ")), err
    assert not [sign for sign in told if sign != "\n" and not sign.isprintable()]
    outside = {
        name
        for name in changed(before, snapshot(root))
        if name.split("/")[0] not in ("home", "cache")
    }
    assert not outside
    # The project's own folders, and what the command is to write.
    allowed = ("Results", "runs", *each.writes, *(["theirs"] if "home" in holes else []))
    within = {
        name for name in changed(made, snapshot(bench.home)) if name.split("/")[0] not in allowed
    }
    assert not within
    if each.then is not None:
        each.then(Ran(bench, code, out, err))


def test_there_are_at_least_sixty_and_each_has_its_own_words() -> None:
    refused = [each for each in CASES if each.code == 2]
    assert len(refused) >= 60
    assert all(any(each.says) for each in CASES if each.code == 2 or each.then is None)
    kinds = {(each.given.split()[0], each.says) for each in refused}
    assert len(kinds) >= 60


def test_the_corpus_holds_what_a_terminal_obeys() -> None:
    assert not any(sign.isprintable() for sign in re.sub(r"[\x20-\x7e]", "", CONTROLS))


def test_the_page_is_current() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "python tests/hostile/corpus.py --write"
