"""Where a run's images lie, whatever its tables say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chexgenbench.store.image_files import generated_image, real_image


def test_images_lie_below_their_folders(tmp_path: Path) -> None:
    real = real_image(str(tmp_path / "files"), "p10/one.jpg")
    assert real == tmp_path / "files" / "p10" / "one.jpg"
    made = generated_image(tmp_path, "oracle-1", "images/a.png", own=False)
    assert made == tmp_path / "oracle-1" / "images" / "a.png"


def test_images_that_were_there_are_taken_by_their_whole_path(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.png"
    assert generated_image(tmp_path / "made", None, str(elsewhere), own=True) == elsewhere
    with pytest.raises(ValueError, match="names no generation"):
        generated_image(tmp_path / "made", None, str(elsewhere), own=False)
    with pytest.raises(ValueError, match="leads out"):
        generated_image(tmp_path / "made", "oracle-1", str(elsewhere), own=False)


@pytest.mark.parametrize("path", ["../b/x.png", "/etc/passwd", "", ".", "link/x.png"])
def test_no_path_leaves_its_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError):
        generated_image(tmp_path, "a", path, own=False)
    with pytest.raises(ValueError):
        real_image(str(tmp_path / "a"), path)


@pytest.mark.parametrize("generation", ["..", ".", "", None, "a/b", "/a", "a/.."])
def test_a_generation_is_a_name(tmp_path: Path, generation: str | None) -> None:
    with pytest.raises(ValueError, match="names no generation"):
        generated_image(tmp_path, generation, "x.png", own=False)


@pytest.mark.parametrize("root", [None, "", "files", "../files"])
def test_a_run_without_a_whole_images_root_has_no_real_images(root: str | None) -> None:
    with pytest.raises(ValueError, match=r"names no real image|no whole path"):
        real_image(root, "x.png")


@pytest.mark.parametrize("path", [None, float("nan")])
def test_a_row_without_a_path_has_no_image(tmp_path: Path, path: Any) -> None:
    with pytest.raises(ValueError, match="names no image"):
        generated_image(tmp_path, "a", path, own=True)
    with pytest.raises(ValueError, match="names no real image"):
        real_image(str(tmp_path), path)
    with pytest.raises(ValueError, match="names no generation"):
        generated_image(tmp_path, path, "x.png", own=False)
