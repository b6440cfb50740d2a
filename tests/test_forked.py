"""A command by a fork is the command by the script, but for the imports of others' packages."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from desk import Desk
from forked import FREE, PRELOADED, run_forked

PROBE = """
import json, os, random, sys
import numpy
print(json.dumps({
    "argv": sys.argv[1:], "cwd": os.getcwd(), "pid": os.getpid(),
    "asked": os.environ.get("CHEXGENBENCH_ASKED"), "kept": os.environ.get("PYTEST_KEPT"),
    "ours": [name for name in sys.modules if name.startswith("chexgenbench")],
    "theirs": [name for name in %r if name in sys.modules],
    "drawn": [random.random(), numpy.random.rand()],
}))
print("said", file=sys.stderr)
sys.exit(7)
"""

ENV = os.environ | {"HF_HUB_OFFLINE": "1"}


@pytest.mark.slow
def test_a_fork_says_what_the_script_says(desk: Desk) -> None:
    for words, code in (
        (("models", "list"), 0),
        (("metrics", "show", "fid"), 0),
        (("run", "--no-such-option"), 2),
        (("query", "select 1"), 2),
    ):
        forked, whole = (desk.run(*words, code=code, whole=each) for each in (False, True))
        assert (forked.out, forked.err) == (whole.out, whole.err)
        assert forked.out or forked.err


@pytest.mark.slow
def test_a_fork_is_a_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "probe.py").write_text(PROBE % (PRELOADED,))
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    env = ENV | {"PYTHONPATH": path, "CHEXGENBENCH_ASKED": "this"}
    monkeypatch.setenv("PYTEST_KEPT", "not in env")
    found = []
    for _ in range(2):
        done = run_forked(["a", "b c"], cwd=tmp_path, env=env, module="probe")
        assert done is not None
        assert (done.code, done.err) == (7, "said\n")
        found.append(json.loads(done.out))
    for each in found:
        assert each["argv"] == ["a", "b c"] and each["cwd"] == str(tmp_path)
        assert each["asked"] == "this" and each["kept"] is None
        assert each["ours"] == [] and {"torch", "pandas"} <= set(each["theirs"])
    assert found[0]["pid"] != found[1]["pid"]
    assert not set(found[0]["drawn"]) & set(found[1]["drawn"])


def test_what_imports_read_is_never_another(tmp_path: Path) -> None:
    for name in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "HOME", "TMPDIR"):
        assert not name.startswith(FREE)
        changed = ENV | {name: "another"}
        assert run_forked(["--version"], cwd=tmp_path, env=changed) is None
