"""Image files without what else they carry: text, EXIF, XMP, colour profiles, thumbnails.

Tools that make images write the prompt into such fields, and a prompt can be report text.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from chexgenbench.images import read_image

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"

_PNG_CHUNKS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"sRGB", b"gAMA", b"cHRM", b"sBIT", b"pHYs"}
"""Chunks that hold pixels, or a few numbers of how to show them."""

_ORIENTATION = 0x0112


def plain_image(path: Path, data: bytes) -> bytes:
    """The image of the file `path`, whose content is `data`, in a file that holds nothing else.

    A PNG or JPEG file that has nothing else stays as it is. A JPEG file loses its segments of
    metadata and is not compressed again. Any other becomes a PNG file of the pixels that
    `read_image` gives, upright and of 8 bits: those that the run scored.

    Raises:
        BadImage: as `read_image`.
    """
    if data.startswith(PNG) and _is_plain_png(data):
        return data
    if data.startswith(JPEG):
        stripped = _plain_jpeg(data)
        if stripped is not None and _upright(data):
            return stripped
    buffer = io.BytesIO()
    # A new image: one that was read takes its profile and EXIF along.
    Image.fromarray(np.asarray(read_image(path))).save(buffer, "PNG")
    return buffer.getvalue()


def _is_plain_png(data: bytes) -> bool:
    at, kind = len(PNG), b""
    while at + 12 <= len(data) and kind != b"IEND":
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind not in _PNG_CHUNKS:
            return False
        at += 12 + length
    return kind == b"IEND" and at == len(data)


def _plain_jpeg(data: bytes) -> bytes | None:
    """The file without metadata and what follows its end; None where it cannot be followed.

    Segments as in ITU-T T.81, annex B. Of the application segments Adobe's stays, since it says how
    colours are coded, and JFIF's, without its thumbnail.
    """
    kept = [data[:2]]
    try:
        for marker, segment in _segments(data):
            if marker == 0xE0 and segment[4:9] == b"JFIF\0":
                kept.append(b"\xff\xe0\x00\x10" + segment[4:16].ljust(14, b"\0"))
            elif marker == 0xEE and segment[4:9] == b"Adobe":
                kept.append(b"\xff\xee\x00\x0e" + segment[4:16].ljust(12, b"\0"))
            elif 0xC0 <= marker <= 0xDF:
                kept.append(segment)
    except ValueError:
        return None
    plain = b"".join(kept)
    return data if plain == data else plain


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and bytes of each segment after the first; a scan has its coded data with it.

    Raises:
        ValueError: the file does not end as it should.
    """
    at = 2
    while True:
        if data[at : at + 1] != b"\xff":
            raise ValueError("no marker")
        while data[at + 1 : at + 2] == b"\xff":  # fill bytes
            at += 1
        marker = int.from_bytes(data[at + 1 : at + 2], "big")
        if marker == 0xD9:
            yield marker, data[at : at + 2]
            return
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        end = at + 2 + length
        if length < 2 or end > len(data):
            raise ValueError("cut")
        if marker == 0xDA:
            end = _scan_end(data, end)
        yield marker, data[at:end]
        at = end


def _scan_end(data: bytes, at: int) -> int:
    """Where the next segment begins: a marker that is neither a stuffed byte nor a restart."""
    while True:
        at = data.index(b"\xff", at)
        after = data[at + 1 : at + 2]
        if after not in (b"\x00", b"\xff") and not b"\xd0" <= after <= b"\xd7":
            return at
        at += 1 if after == b"\xff" else 2


def _upright(data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as image:
        return bool(image.getexif().get(_ORIENTATION, 1) == 1)
