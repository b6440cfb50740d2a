"""What README and docs show is run or generated."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from chexgenbench.store.cookbook import saved_queries, saved_query
from chexgenbench.store.store import Store
from desk import Desk, Done

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def test_generated_parts_are_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nrun: make docs"


def test_links_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "MIMIC_Splits" / "README.md"]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def _numbers(text: str) -> list[float]:
    return [float(n) for n in re.findall(r"(?<![\w.])-?\d+\.?\d*(?:e-?\d+)?(?![\w.])", text)]


def _board(text: str) -> dict[tuple[str, str], list[float]]:
    """(score, model) to value and interval; notes such as "lower is better" are no numbers."""
    found: dict[tuple[str, str], list[float]] = {}
    metric = ""
    for line in text.split("Store:")[0].splitlines():
        row = re.match(r"(\w*)[\w -]*?\s+(oracle|phantom-diffusion|memorizer|noise)\s+(.*)", line)
        if row:
            metric = row[1] or metric
            found[metric, row[2]] = _numbers(row[3])
    return found


@pytest.mark.slow
def test_the_leaderboard_of_the_readme_is_the_demos(demo: tuple[Desk, Done]) -> None:
    """To 2 % of each score's largest number: other machines round otherwise."""
    match = re.search(r"<!-- leaderboard -->\n```\n(.*?)```", README, re.DOTALL)
    assert match
    shown, printed = _board(match[1]), _board(demo[1].out)
    assert shown.keys() == printed.keys()
    assert len(shown) == 8 * 4
    for (metric, model), wanted in shown.items():
        found = printed[metric, model]
        scale = max(abs(n) for (m, _), row in shown.items() if m == metric for n in row)
        assert len(wanted) == len(found) >= 1
        assert all(abs(a - b) <= 0.02 * scale for a, b in zip(wanted, found, strict=True)), model


@pytest.mark.slow
def test_the_commands_of_the_readme_work(demo: tuple[Desk, Done]) -> None:
    desk = demo[0]
    (code,) = blocks(README, "python")
    (desk.home / "checkers.py").write_text(code)
    commands = [line for block in blocks(README, "sh") for line in block.splitlines()]
    assert len(commands) >= 5
    for line in commands:
        program, *arguments = shlex.split(line)
        assert program == "chexgenbench"
        assert desk.run(*arguments).out.strip()


@pytest.mark.slow
def test_the_commands_of_the_scores_page_work(demo: tuple[Desk, Done]) -> None:
    page = (ROOT / "docs" / "scores.md").read_text(encoding="utf-8")
    commands = [line for block in blocks(page, "sh") for line in block.splitlines()]
    assert len(commands) >= 8
    for line in commands:
        program, *arguments = shlex.split(line)
        assert program == "chexgenbench"
        assert demo[0].run(*arguments).out.strip()
    (code,) = blocks(page, "python")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert len(done.stdout.split()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("page", ["cookbook", "store"])
def test_the_commands_and_code_of_a_page_about_sql_work(
    demo: tuple[Desk, Done], page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    for line in [line for block in blocks(text, "sh") for line in block.splitlines()]:
        assert demo[0].run(*shlex.split(line)[1:]).out.strip() or "--out" in line
    codes = blocks(text, "python")
    assert len(codes) == (2 if page == "store" else 0)
    for code in codes:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=demo[0].home,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert "oracle" in done.stdout


NOT_OF_THE_DEMO = {"copies", "pareto-privacy", "privacy-excess", "utility", "versions"}
"""Saved queries about privacy, utility or a second version of a model; tested elsewhere."""


@pytest.mark.slow
@pytest.mark.parametrize("name", saved_queries())
def test_a_saved_query_is_answered(demo: tuple[Desk, Done], name: str) -> None:
    answer = Store(demo[0].home / "Results" / "chexgenbench.duckdb").query(saved_query(name).sql)
    assert bool(answer.num_rows) == (name not in NOT_OF_THE_DEMO | {"failing-prompts"})
    assert len(set(answer.column_names)) == len(answer.column_names)


@pytest.mark.slow
def test_what_the_demo_says_to_try_works(demo: tuple[Desk, Done]) -> None:
    desk, done = demo
    for line in done.out.split("Try next:\n")[1].strip().splitlines():
        assert desk.run(*shlex.split(line)[1:]).out.strip()


PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "containers").glob("*/README.md"),
    ROOT / "MIMIC_Splits" / "README.md",
]
SHOWN = [
    (path, line.strip())
    for path in PAGES
    for line in path.read_text(encoding="utf-8").splitlines()
    if re.match(r"\s*chexgenbench [a-z]", line)
]


@pytest.mark.parametrize(
    ("page", "line"), SHOWN, ids=[f"{path.name}-{i}" for i, (path, _) in enumerate(SHOWN)]
)
def test_commands_on_every_page_have_the_options_they_show(page: Path, line: str) -> None:
    """Also those that need the reader's own folders, and so are not run."""
    from typer.main import get_command

    from chexgenbench.cli.main import app

    command = get_command(app)
    words = shlex.split(line.partition("  # ")[0])[1:]
    if words[-1] == "..." and not words[-2].startswith("-"):
        words.pop()  # the reader's own options
    while words and hasattr(command, "commands"):
        if words[0].startswith("-"):
            break
        assert words[0] in command.commands, f"{page.name}: {line}"
        command = command.commands[words.pop(0)]
    if "--help" not in words and words not in (["--version"],):
        command.make_context(command.name or "", words)


@pytest.mark.slow
def test_the_commands_of_the_models_page_work(tmp_path: Path) -> None:
    from chexgenbench_plugins.data import data_folder

    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    desk = Desk.new(tmp_path)
    (code,) = blocks(page, "python")
    (desk.home / "stripes.py").write_text(code)
    commands = [line for block in blocks(page, "sh") for line in block.splitlines()]
    assert len(commands) >= 3
    for line in commands:
        program, *arguments = shlex.split(
            line.replace("FOLDER", str(data_folder("phantom-diffusion")))
        )
        assert program == "chexgenbench"
        assert desk.run(*arguments).out.strip()
