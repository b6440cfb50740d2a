"""The wheel holds everything, and starting costs nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from chexgenbench import environments

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(out),
            str(ROOT),
        ],
        check=True,
        capture_output=True,
    )
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_has_plugins_and_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "chexgenbench_plugins/models/oracle.py",
        "chexgenbench_plugins/splits/demo.py",
        "chexgenbench_plugins/labelling/rules.py",
        "chexgenbench_plugins/open_i/reports.py",
        "chexgenbench_plugins/suites/demo.toml",
        "chexgenbench_plugins/data/phantom-diffusion/model_index.json",
        "chexgenbench_plugins/data/phantom-clip/model.safetensors",
        "chexgenbench_plugins/data/demo_split/DEMO_ANNOTATIONS_TEST.csv",
        "chexgenbench_plugins/containers/worker/pyproject.toml",
        "chexgenbench_plugins/containers/llm-cxr/Dockerfile",
        "chexgenbench_plugins/containers/llm-cxr/requirements.txt",
        "chexgenbench/published/fidelity.csv",
        "chexgenbench/report/page.html.j2",
    ):
        assert wanted in names
    assert not [name for name in names if name.startswith(("tests", "platform"))]
    assert not [name for name in names if "LLAVARAD" in name or "prompt_INFO" in name]


def test_the_wheel_has_every_plugin_folder_and_asset(wheel: Path) -> None:
    root = Path(__file__).resolve().parent.parent
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {
        f"chexgenbench_plugins/{path.relative_to(root / 'plugins').as_posix()}"
        for path in (root / "plugins").rglob("*.py")
    }
    assert modules <= names, sorted(modules - names)
    for folder in (root / "assets").glob("phantom-*"):
        assert any(name.startswith(f"chexgenbench_plugins/data/{folder.name}/") for name in names)


@pytest.mark.slow
def test_the_wheel_works_by_itself(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    home = tmp_path / "home"
    home.mkdir()
    code = (
        "import sys, chexgenbench, chexgenbench_plugins.data as d;"
        f"assert chexgenbench.__file__.startswith({str(place)!r}), chexgenbench.__file__;"
        f"assert str(d.data_folder('demo_split')).startswith({str(place)!r});"
        "from chexgenbench.cli.main import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "--model", "noise", "--limit", "25"],
        env=os.environ | {"PYTHONPATH": str(place), "CHEXGENBENCH_CACHE": str(tmp_path / "cache")},
        cwd=home,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (home / "Results" / "chexgenbench.duckdb").is_file()
    worker = (
        "import sys, chexgenbench.environments as e; from pathlib import Path;"
        "print(e.worker_hash(), e.find('llm-cxr').folder, e.build_worker_wheel(Path()).name)"
    )
    found = subprocess.run(
        [sys.executable, "-c", worker],
        env=os.environ | {"PYTHONPATH": str(place)},
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert found[0] == environments.worker_hash()  # one worker, from a wheel and from a checkout
    assert found[1] == str(place / "chexgenbench_plugins" / "containers" / "llm-cxr")
    assert (home / found[2]).is_file()


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys\nfrom chexgenbench.cli.main import app\n"
        f"try:\n    app({command!r})\nexcept SystemExit:\n    pass\n"
        "print('heavy:', [m for m in ('torch', 'pandas', 'duckdb', 'numpy', 'pyarrow', 'diffusers')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("heavy: []")


def test_every_option_tells_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the help as it is shown, where a default written in brackets would vanish as markup."""
    from typer.main import get_command

    from chexgenbench.cli.main import app

    monkeypatch.setenv("COLUMNS", "400")
    waiting: list[tuple[tuple[str, ...], Any]] = [((), get_command(app))]
    bare, seen = [], 0
    while waiting:
        words, command = waiting.pop()
        waiting += [
            ((*words, name), each) for name, each in getattr(command, "commands", {}).items()
        ]
        text = CliRunner().invoke(app, [*words, "--help"]).output
        for line in re.findall(r"^│ .*--[a-z].*$", text, re.MULTILINE):
            name = re.search(r"--[a-z-]+", line)
            assert name
            if not re.match(r"│ \*? *(-\w,? )?--", line):
                continue  # a line about something else, which names an option
            seen += 1
            typers_own = name[0] in ("--help", "--install-completion", "--show-completion")
            if not (typers_own or "[default: " in line or "[required]" in line):
                bare.append((*words, name[0]))
    assert seen > 250
    assert bare == []


def test_the_standard_module_platform_is_itself() -> None:
    code = "import chexgenbench, platform; print(platform.system())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip()
