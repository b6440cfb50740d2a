"""Images at the door: real files of every kind that goes wrong."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chexgenbench.images import BadImage, read_image, to_image

GREY = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)


def save(path: Path, mode: str = "L", size: tuple[int, int] = (64, 64), **keywords: object) -> Path:
    Image.fromarray(GREY).convert("RGB").convert(mode).resize(size).save(path, **keywords)  # type: ignore[arg-type]
    return path


def sixteen_bits(path: Path) -> Path:
    Image.fromarray(GREY.astype(np.uint16) * 256).save(path)
    return path


def cut(path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def text(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def animated(path: Path) -> Path:
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: d / "none.png", "missing"),
        (lambda d: d, "no file"),
        (lambda d: text(d / "empty.png", b""), "empty"),
        (lambda d: cut(d / "cut.png"), "truncated"),
        (lambda d: text(d / "page.png", b"<svg>not a picture</svg>"), "not an image"),
        (lambda d: text(d / "head.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 40), "not an image|damaged"),
        (lambda d: sixteen_bits(d / "deep.png"), "16 bits"),
        (lambda d: save(d / "print.jpg", "CMYK"), "CMYK"),
        (lambda d: save(d / "clear.png", "RGBA"), "alpha"),
        (lambda d: save(d / "clear2.png", "LA"), "alpha"),
        (lambda d: save(d / "key.png", "P", transparency=3), "alpha"),
        (lambda d: save(d / "thin.png", size=(1, 64)), "1 x 64"),
        (lambda d: save(d / "flat.png", size=(64, 1)), "64 x 1"),
        (lambda d: animated(d / "film.png"), "several images"),
        (lambda d: save(d / "old.gif", "L"), "not an image"),
    ],
)
def test_a_bad_image_says_what_and_which(tmp_path: Path, make, message: str) -> None:  # type: ignore[no-untyped-def]
    path = make(tmp_path)
    with pytest.raises(BadImage, match=message) as caught:
        read_image(path)
    assert str(path) in caught.value.message


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadImage, match="no file"):
        read_image(tmp_path / "pipe.png")


def test_threads_that_read_leave_the_warnings_filters_alone(tmp_path: Path) -> None:
    """They are the process's: two threads that change them and back may leave them changed."""
    Image.new("L", (64, 64)).save(tmp_path / "a.png")
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: read_image(tmp_path / "a.png"), range(200)))
    assert list(warnings.filters) == before


def test_a_lack_of_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object) -> None:
        raise MemoryError

    Image.new("L", (64, 64)).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lacking)
    with pytest.raises(MemoryError):
        read_image(tmp_path / "a.png")


def test_a_bomb_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (30_000, 30_000)).save(path)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(BadImage, match="too large"):
        read_image(path)


@pytest.mark.parametrize(("mode", "read"), [("L", "L"), ("RGB", "RGB"), ("1", "L"), ("P", "RGB")])
def test_good_modes(tmp_path: Path, mode: str, read: str) -> None:
    image = read_image(save(tmp_path / "image.png", mode))
    assert (image.mode, image.size) == (read, (64, 64))


def test_exif_turns_the_image_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    Image.fromarray(GREY[:32]).save(path, exif=exif)
    assert read_image(path).size == (32, 64)


@pytest.mark.parametrize(
    ("made", "flags"),
    [
        (GREY, ()),
        (np.stack([GREY] * 3, axis=2), ()),
        (GREY[:, :, None], ()),
        (GREY / 255.0, ()),
        (np.zeros((32, 32), np.uint8), ("black", "constant")),
        (np.full((32, 32), 0.5, np.float32), ("constant",)),
        (np.where(GREY < 9, np.nan, GREY / 255.0), ("nan",)),
        (np.full((32, 32), np.nan), ("nan", "black", "constant")),
        (Image.fromarray(GREY), ()),
    ],
)
def test_what_models_return(made: object, flags: tuple[str, ...]) -> None:
    image, found = to_image(made)
    assert found == flags
    assert image.mode in ("L", "RGB")


def test_floats_are_rounded_not_cut() -> None:
    image, _ = to_image(np.full((16, 16), 0.999))
    assert np.asarray(image).max() == 255
    assert np.array_equal(np.asarray(to_image(GREY / 255.0)[0]), GREY)


@pytest.mark.parametrize(
    "made",
    [
        np.zeros((3, 64, 64)),
        np.zeros((64, 64, 4)),
        np.zeros(64),
        np.zeros((64, 64), np.int64),
        np.zeros((8, 64)),
        np.zeros((0, 0)),
        "a string",
        None,
        Image.new("RGBA", (64, 64)),
    ],
)
def test_what_is_no_image_is_refused(made: object) -> None:
    with pytest.raises(ValueError):
        to_image(made)
