"""The report page, in a real browser."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from desk import Desk, Done

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.slow

browser = pytest.mark.skipif(
    CHROMIUM is None, reason="SKIPPED, no chromium here: apt-get install chromium"
)


def chromium(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    return subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--enable-logging=stderr",
            f"--user-data-dir={folder / 'profile'}",
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


@browser
@pytest.mark.parametrize("width", [400, 1300])
def test_it_opens_from_disk(demo: tuple[Desk, Done], tmp_path: Path, width: int) -> None:
    page = demo[0].home / "demo.html"
    shot = tmp_path / "page.png"
    done = chromium(tmp_path, f"--screenshot={shot}", f"--window-size={width},2000", page.as_uri())
    assert shot.stat().st_size > 50_000
    assert "CONSOLE" not in done.stderr


@browser
def test_what_the_browser_shows(demo: tuple[Desk, Done], tmp_path: Path) -> None:
    page = demo[0].home / "demo.html"
    dom = chromium(tmp_path, "--dump-dom", page.as_uri()).stdout
    text = re.sub(r"<[^>]+>", " ", dom)
    for word in ("Leaderboard", "phantom-diffusion", "alignment", "Pneumothorax", "Provenance"):
        assert word in text
    assert dom.count("<figure>") == 16 * 5


def test_it_needs_no_network_and_is_small(demo: tuple[Desk, Done]) -> None:
    html = (demo[0].home / "demo.html").read_text()
    assert len(html) < 5_000_000
    assert not re.findall(r"""(?:src|href|url\()\s*=?\s*["']?(?!data:|#)[a-z]+:""", html)
    assert "<script" not in html


def test_text_is_escaped(tmp_path: Path) -> None:
    """A prompt, a model's name and a reason come from elsewhere."""
    desk = Desk.new(tmp_path)
    evil = '<img src=x onerror="alert(1)">'
    with (desk.home / "evil.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "path", "annotated_prompt", "chexpert_labels", "patientID"])
        writer.writerows([[f"s{i}", f"{i}.png", f"{evil} {i}", "{}", "p"] for i in range(3)])
    options = ("--split", "evil.csv", "--model", "noise", "--metric", "alignment")
    desk.run("run", *options, "--include-credentialed")
    html = (desk.home / "Results" / "report.html").read_text()
    assert "<img src=x" not in html
    assert "&lt;img src=x" in html
