"""The tutorials, followed to the letter in an empty folder."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from desk import Desk, Done

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "tutorials"
INSTALL = ("pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "-q")
_BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)


class Reader:
    """Somebody who does what a page says.

    A package goes to a folder of its own on the path and not into the environment that the tests
    share; all else is typed as it stands.
    """

    def __init__(self, folder: Path) -> None:
        self.desk = Desk.new(folder)
        self._site = folder / "site"

    def follow(self, page: str, code_goes_to: str) -> list[Done]:
        """Does all blocks of a page, and returns what its `chexgenbench` commands printed."""
        text = (FOLDER / page).read_text(encoding="utf-8")
        said: list[Done] = []
        for language, block in _BLOCK.findall(text):
            if language == "python":
                (self.desk.home / code_goes_to).write_text(block, encoding="utf-8")
                continue
            for line in block.splitlines():
                program, *arguments = shlex.split(line)
                if program == "pip":
                    self._install(arguments)
                else:
                    assert program == "chexgenbench"
                    said.append(self.run(*arguments))
        return said

    def run(self, *arguments: str, code: int = 0) -> Done:
        return self.desk.run(*arguments, code=code, PYTHONPATH=str(self._site))

    def _install(self, arguments: list[str]) -> None:
        command, package = arguments
        assert command == "install"
        subprocess.run(
            [sys.executable, "-m", *INSTALL, "--target", str(self._site), package],
            cwd=self.desk.home,
            check=True,
            capture_output=True,
        )


@pytest.mark.slow
def test_a_model_comes_from_an_empty_folder_to_the_leaderboard(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    said = reader.follow("add-a-model.md", "my-model/src/my_model/plugin.py")
    assert "my-model/pyproject.toml" in said[0].out
    assert all(", 0 failed," in done.out for done in said[1:3])
    board = said[-2].out
    assert board.index("my-model") < board.index("noise")
    query = "select model, value from leaderboard where metric = 'fid' and subset = 'overall'"
    rows = json.loads(reader.run("query", query, "--format", "json").out)
    values = {row["model"]: row["value"] for row in rows}
    assert values.keys() == {"my-model", "noise"}
    assert values["my-model"] < values["noise"]


@pytest.mark.slow
def test_a_metric_comes_from_an_empty_folder_to_the_leaderboard(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    plugin = "my-metric/src/my_metric/plugin.py"
    said = reader.follow("add-a-metric.md", plugin)
    assert all(", 0 failed," in done.out for done in said[1:3])
    board = said[-2].out
    assert board.index("oracle") < board.index("noise")
    # What the page says of the wrong direction.
    path = reader.desk.home / plugin
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("higher_is_better=True", "higher_is_better=False"), "utf-8")
    done = reader.run("plugin", "check", "my-metric", code=1)
    assert re.search(r"FAILED\s+direction\s+confidence gets better", done.out)


@pytest.mark.slow
def test_the_commands_of_the_page_about_plugins_work(tmp_path: Path) -> None:
    said = Reader(tmp_path).follow("../plugins.md", "")
    for kind, made, checked in zip(
        ("model", "encoder", "split"), said[::2], said[1::2], strict=True
    ):
        assert f"my-{kind}/README.md" in made.out
        assert ", 0 failed," in checked.out


def test_the_page_about_plugins_names_every_check() -> None:
    from chexgenbench.testing.checks import check_names

    page = (FOLDER.parent / "plugins.md").read_text(encoding="utf-8")
    table = page.partition("| kind | check |")[2].partition("What a check cannot know")[0]
    named = set(re.findall(r"`([a-z-]+)`", table))
    kinds = ("model", "encoder", "metric", "split", "judge")
    assert {name for kind in kinds for name in check_names(kind)} <= named
