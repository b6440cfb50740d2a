"""What the code must never do, looked for in its syntax tree, and what importing it must not start.
docs/security.md says what is trusted and what is not; tests/hostile/ tries it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*(ROOT / "platform").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")])

RUNS_DATA = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
"""Modules whose readers run what a file says."""

ALLOWED = {
    "plugins/weights.py: torch.load(weights_only=False)",  # where the user said --allow-pickle
}


def forbidden(source: str) -> Iterator[str]:
    """What a module does that no module may."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                for name in names:
                    if name.name.split(".")[0] in RUNS_DATA:
                        yield f"import {name.name}"
            case ast.ImportFrom(module=str(module), names=names):
                # What a safe reader raises may be caught.
                error = [name.name for name in names] == ["UnpicklingError"]
                if module.split(".")[0] in RUNS_DATA and not error:
                    yield f"import {module}"
            case ast.Dict(keys=keys, values=values):
                for key, value in zip(keys, values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == "trust_remote_code":
                        yield from _remote(value)
            case ast.Call():
                yield from _of_call(node)


def _of_call(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if name in ("eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"):
        yield f"{name}()"
    if "shell" in given and ast.unparse(given["shell"]) != "False":
        yield "shell=True"
    if "trust_remote_code" in given:
        yield from _remote(given["trust_remote_code"])
    if name.endswith("torch.load") or name == "torch.load":
        safe = given.get("weights_only")
        said = "absent" if safe is None else ast.unparse(safe)
        if said != "True":
            yield f"torch.load(weights_only={said})"
    pickled = ast.unparse(given.get("allow_pickle", ast.Constant(False)))
    if name in ("np.load", "numpy.load") and pickled != "False":
        yield "np.load(allow_pickle=True)"


def _remote(value: ast.expr) -> Iterator[str]:
    if ast.unparse(value) != "False":
        yield f"trust_remote_code={ast.unparse(value)}"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import pickle", "import pickle"),
        ("from joblib import load", "import joblib"),
        ("import shelve as s", "import shelve"),
        ("x = eval(text)", "eval()"),
        ("exec(text)", "exec()"),
        ("os.system(text)", "os.system()"),
        ("subprocess.run(text, shell=True)", "shell=True"),
        ("subprocess.run(text, shell=there)", "shell=True"),
        ("yaml.load(text)", "yaml.load()"),
        ("torch.load(path)", "torch.load(weights_only=absent)"),
        ("torch.load(path, weights_only=said)", "torch.load(weights_only=said)"),
        ("np.load(path, allow_pickle=True)", "np.load(allow_pickle=True)"),
        ("AutoModel.from_pretrained(x, trust_remote_code=True)", "trust_remote_code=True"),
        ("options = {'trust_remote_code': said}", "trust_remote_code=said"),
    ],
)
def test_each_is_found(line: str, found: str) -> None:
    assert list(forbidden(line)) == [found]


def test_what_is_safe_is_not_found() -> None:
    safe = """
torch.load(path, weights_only=True)
AutoModel.from_pretrained(x, trust_remote_code=False)
subprocess.run(command, shell=False)
model.eval()
from pickle import UnpicklingError
json.load(file)
"""
    assert list(forbidden(safe)) == []


def test_no_module_runs_what_a_file_says() -> None:
    assert len(SOURCES) > 200
    found = {
        f"{path.relative_to(ROOT).as_posix()}: {what}"
        for path in SOURCES
        for what in forbidden(path.read_text(encoding="utf-8"))
    }
    assert found == ALLOWED


STARTS = """
import sys
events = []
names = ("socket.connect", "socket.getaddrinfo", "socket.bind", "subprocess.Popen", "os.system",
         "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "urllib.Request")
sys.addaudithook(lambda event, given: events.append(event) if event in names else None)
import threading
before = threading.active_count()
{code}
heavy = [name for name in ("torch", "transformers", "diffusers", "ray") if name in sys.modules]
print(events, heavy, threading.active_count() - before)
"""


@pytest.mark.parametrize(
    "code",
    [
        "import chexgenbench",
        "import chexgenbench.cli.main",
        # Every plugin, as a listing loads it.
        "from chexgenbench.registry import load_registry; assert len(load_registry().models) > 10",
    ],
)
def test_importing_starts_nothing(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STARTS.format(code=code)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[] [] 0"


def test_the_audit_sees_what_it_looks_for() -> None:
    code = "import subprocess, socket; subprocess.run(['true']); socket.socket().bind(('', 0))"
    done = subprocess.run(
        [sys.executable, "-c", STARTS.format(code=code)], capture_output=True, text=True, check=True
    )
    assert "subprocess.Popen" in done.stdout
    assert "socket.bind" in done.stdout


def test_every_exception_from_the_security_rules_is_of_a_known_kind() -> None:
    """Ruff's rules S hold everywhere; the only ones that a line may switch off are those of SQL
    made of the schema's own names, and of words that look like secrets or folders."""
    switched = {
        rule
        for path in SOURCES
        for line in re.findall(r"noqa: ([^\n]*)", path.read_text(encoding="utf-8"))
        for rule in re.findall(r"\bS\d{3}\b", line)
    }
    assert switched <= {"S105", "S108", "S310", "S311", "S608"}
