"""Bad input: its own clear error, exit code 2, before any image is made."""

from __future__ import annotations

import csv
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from chexgenbench_plugins.data import data_folder
from desk import Desk

TEST_CSV = data_folder("demo_split") / "DEMO_ANNOTATIONS_TEST.csv"


def nothing_was_made(desk: Desk) -> bool:
    return not list(desk.home.glob("runs/generations/*/images/*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (("--model", "orcale"), "no model named 'orcale'", "'oracle'"),
        (("--metric", "fidd"), "no metric named 'fidd'", "'fid'"),
        (("--encoder", "phantom-clap"), "no encoder named 'phantom-clap'", "'phantom-clip'"),
        (("--split", "demoo"), "no split named 'demoo'", "'demo'"),
        (("--suite", "dem"), "no suite named 'dem'", "'demo'"),
        (("--set", "phantom-diffusion.stepz=3"), "stepz", "'steps'"),
        (("--set", "stepz=3"), "stepz", "'steps'"),
        (("--set", "steps"), "name=value", "steps=20"),
        (("--model", "phantom-diffusion", "--set", "steps=many"), "steps", "models show"),
        (("--metric", "inception-score@rad-dino"), "rad-dino", "phantom-clip"),
        (("--encoder", "rad-dino", "--metric", "alignment"), "alignment", "--encoder"),
        (("--encoder", "rad-dino", "--metric", "fid"), "rad-dino", "encoders fetch rad-dino"),
        (("--split", "missing.csv"), "missing.csv does not exist", ""),
        (("--split", "mimic-cxr"), "MIMIC-CXR", "MIMIC_Splits/README.md"),
        (("--images-root", "nowhere"), "nowhere is not a folder", ""),
        (("--column", "prompt"), "role=NAME", "Roles"),
        (("--device", "cuda:7"), "cuda:7", "--device cpu"),
        (("--dtype", "float8"), "no dtype named 'float8'", "float16"),
        (("--plugin", "none.py"), "none.py does not exist", ""),
        (("--model", "stable-diffusion"), "weights", "models show"),
    ],
)
def test_options(desk: Desk, options: tuple[str, ...], message: str, hint: str) -> None:
    done = desk.run("run", *options, code=2)
    assert message in done.err
    assert hint in done.err
    assert nothing_was_made(desk)


def split(desk: Desk, change: dict[str, str], lines: int = 30) -> Path:
    with TEST_CSV.open(newline="") as file:
        rows = list(csv.DictReader(file))[:lines]
    rows[4] |= change
    path = desk.home / "mine.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotated_prompt": ""}, "line 6: the prompt is empty"),
        ({"chexpert_labels": "none"}, "line 6: the labels are not a dictionary"),
    ],
)
def test_rows(desk: Desk, change: dict[str, str], message: str) -> None:
    path = split(desk, change)
    for command in (("run", "--model", "noise", "--split", path), ("splits", "validate", path)):
        done = desk.run(*command, code=2)
        assert message in done.err
        assert "mine.csv" in done.err
    assert nothing_was_made(desk)


def test_a_cut_file(desk: Desk) -> None:
    path = split(desk, {})
    text = path.read_text()
    path.write_text(text[: text.rindex("{'Atelectasis'") + 50])
    done = desk.run("run", "--model", "noise", "--split", path, code=2)
    assert "line 31" in done.err
    assert "cut off" in done.err


def test_real_images_are_looked_at_before_anything_is_made(desk: Desk) -> None:
    path = split(desk, {})
    done = desk.run("run", "--model", "noise", "--split", path, "--images-root", ".", code=2)
    assert "30 real images" in done.err
    assert "line 2:" in done.err
    assert "--on-bad-image skip" in done.err
    assert nothing_was_made(desk)
    checked = desk.run("splits", "validate", path, "--images-root", ".", code=2)
    assert "30 images" in checked.err
    examined = desk.run("doctor", "--split", path, "--images-root", ".", "-m", "noise", code=2)
    assert "FAULT real images: 30 of 30" in examined.out
    good = desk.run("splits", "validate", path)
    assert "30 rows, 30 prompts" in good.out


def test_own_images_outside_their_folder(desk: Desk) -> None:
    (desk.home / "images").mkdir()
    table = desk.home / "info.csv"
    table.write_text("prompt,img_savename\nsome text,../../etc/passwd\n")
    options = ("evaluate", "--images-csv", table, "--images-dir", "images")
    assert "leads out of its folder" in desk.run(*options, code=2).err
    table.write_text("prompt,img_savename\nsome text,a.png\n")
    assert "None of the 1 prompts" in desk.run(*options, code=2).err
    assert "does not exist" in desk.run("evaluate", "--images-csv", "no.csv", code=2).err


def test_a_store_of_a_newer_release(desk: Desk) -> None:
    (desk.home / "Results").mkdir()
    path = desk.home / "Results" / "chexgenbench.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("create table runs (a int); create table scores (a int)")
        connection.execute("create table schema_info (version int, applied_at timestamp)")
        connection.execute("insert into schema_info values (99, now())")
    before = path.read_bytes()
    assert "schema version 99" in desk.run("query", "select 1", code=2).err
    done = desk.run("run", "--model", "noise", "--limit", 5, code=2)
    assert "schema version 99" in done.err
    assert path.read_bytes() == before
    assert nothing_was_made(desk)


@pytest.mark.parametrize("folder", ["Results", "runs"])
def test_a_folder_that_cannot_be_made(desk: Desk, folder: str) -> None:
    (desk.home / folder).write_text("a file is in the way")
    done = desk.run("run", "--model", "noise", code=2)
    assert f"{folder} cannot be written" in done.err
    assert "--home" in done.err


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB; needs the right to mount."""
    place = tmp_path / "small"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)],
        capture_output=True,
        text=True,
    )
    if made.returncode:
        pytest.skip(f"SKIPPED, no right to mount a small disk here: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_read_only_folder(mounted: Path, desk: Desk) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    done = desk.run("run", "--model", "noise", "--home", mounted, code=2)
    assert "cannot be written" in done.err


def test_a_disk_without_room_is_known_before(mounted: Path, desk: Desk) -> None:
    done = desk.run("run", "--model", "noise", "--home", mounted, code=2)
    assert re.search(r"\d MB free and the images need up to 27 MB", done.err)
    assert not list(mounted.rglob("*.png"))


def test_a_disk_that_fills_loses_nothing(mounted: Path, desk: Desk) -> None:
    """Images larger than the plan could know: the disk fills while they are made."""
    options = ("run", "--model", "noise", "--set", "size=512", "--limit", 40, "--batch-size", 4)
    options = (*options, "--home", mounted)
    failed = desk.run(*options, code=2)
    assert "No space left" in failed.err
    assert "repeat the same command" in failed.err
    kept = {p.name: p.stat().st_mtime_ns for p in mounted.rglob("Synthetic*.png")}
    assert 0 < len(kept) < 40
    subprocess.run(["mount", "-o", "remount,size=60m", str(mounted)], check=True)
    desk.run(*options)
    images = {p.name: p.stat().st_mtime_ns for p in mounted.rglob("Synthetic*.png")}
    assert len(images) == 40
    # Of the batch that was cut, images without a line in the manifest are made again.
    again = [name for name, made in kept.items() if images[name] != made]
    assert len(again) <= 4
