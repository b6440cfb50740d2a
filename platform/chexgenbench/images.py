"""Images at the door: what is read from files, and what models return."""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from chexgenbench.errors import UserError
from chexgenbench.files import sha256_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMALLEST = 16
"""Sides below this many pixels hold no radiograph; encoders would enlarge a few grey levels."""

LARGEST_PIXELS = 89_478_485
"""Far above any radiograph (about 4,000 x 5,000); a file that claims more is not decoded. Pillow
warns from there on."""

# What is wrong is raised here. The filters of a process are no thread's own, so they are set once:
# Pillow warns of damaged EXIF, which is no pixel, and of the size, which is checked.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_SHA256 = re.compile("[0-9a-f]{64}")
_PNG = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB = 0, 2
"""PNG's numbers of the two colour types that models' images have."""
_MOST_PARTS = 10_000
"""Of a PNG file; Pillow writes one for each 64 kB or more."""
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
_PLAIN_MODES = {"L": "L", "1": "L", "RGB": "RGB", "P": "RGB", "YCbCr": "RGB"}


class BadImage(UserError):
    """An image file that cannot be used: which one, why, and what to do."""


def read_image(path: Path, *, content: str = "") -> Image.Image:
    """The image in `path`, decoded as a whole, 8 bits, mode L or RGB, turned upright by its EXIF.

    Nothing is guessed: 16 bits have no agreed window, CMYK no agreed profile, transparency no
    agreed background, so each is refused with what to do.

    Args:
        content: the SHA-256 that the file must have; another key, or none, is not compared.

    Raises:
        BadImage: missing, empty, truncated, not an image, not of the kind above, or with other
            content.
    """
    try:
        if not path.is_file():
            raise BadImage(f"{path} is missing." if not path.exists() else f"{path} is no file.")
        if path.stat().st_size == 0:
            raise BadImage(f"{path} is empty (0 bytes).")
        if _SHA256.fullmatch(content) and sha256_file(path) != content:
            raise BadImage(
                f"{path} is damaged: its content is not what it was.",
                hint="`chexgenbench verify` names all that is damaged, `chexgenbench repair` makes "
                "generated images again.",
            )
        return _decode(path, path, _FORMATS, LARGEST_PIXELS)
    except OSError as error:
        raise BadImage(f"{path} cannot be read: {error.strerror or error}.") from error


def read_png(data: bytes, name: str, largest: int) -> Image.Image:
    """The image in a PNG file of the kind that `jobs.writer` makes: 8 bits, grey or RGB.

    It has an IHDR part, IDAT parts and an IEND part, each with its checksum, and its pixels are
    all that the IDAT parts hold. A file with anything more in it, such as text, a profile or bytes
    after its end or behind its pixels, is refused: nobody has looked at that.

    Args:
        name: what messages call it.
        largest: pixels that are decoded at most.

    Raises:
        BadImage: anything else.
    """
    header, packed = _parts(data, name)
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    depth, colours, *methods = header[8:]
    if width * height > largest:
        raise BadImage(f"{name} is too large: {width} x {height} pixels.")
    if depth != 8 or colours not in (_GREY, _RGB) or any(methods):
        raise BadImage(
            f"{name} has {depth} bits a value and the PNG colour type {colours}; 8 bits, grey (0) "
            "or RGB (2), not interlaced, are expected."
        )
    rows = height * (1 + width * (3 if colours == _RGB else 1))
    unpacking = zlib.decompressobj()
    try:
        size = len(unpacking.decompress(packed, rows + 1))
    except zlib.error as error:
        raise BadImage(f"{name} is damaged: {error}.") from error
    if size < rows or (size == rows and not unpacking.eof):
        raise BadImage(f"{name} is truncated: its pixels end early.")
    if size > rows or unpacking.unused_data:
        raise BadImage(f"{name} holds more than its pixels.")
    return _decode(io.BytesIO(data), name, ("PNG",), largest)


def _parts(data: bytes, name: str) -> tuple[bytes, bytes]:
    """The content of a PNG file's header, and that of its IDAT parts together."""
    if not data.startswith(_PNG):
        raise BadImage(f"{name} is not a PNG file.")
    at, kinds, header, packed = len(_PNG), b"", b"", bytearray()
    while not kinds.endswith(b"E") and at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 12 + length
        if kind not in (b"IHDR", b"IDAT", b"IEND"):
            raise BadImage(f"{name} has a part {kind!r}, which no image of a model has.")
        if end > len(data):
            break
        if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise BadImage(f"{name} is damaged: the checksum of its part {kind!r} is wrong.")
        if kind == b"IHDR":
            header = data[at + 8 : end - 4]
        elif kind == b"IDAT":
            packed += data[at + 8 : end - 4]
        kinds += kind[1:2]
        at = end
        if len(kinds) > _MOST_PARTS:
            raise BadImage(f"{name} has more than {_MOST_PARTS} parts.")
    if not kinds.endswith(b"E"):
        raise BadImage(f"{name} is truncated.")
    if at < len(data):
        raise BadImage(f"{name} goes on after its end.")
    # H, D, E: second letters of IHDR, IDAT and IEND.
    if not re.fullmatch(b"HD+E", kinds) or len(header) != 13 or length:
        raise BadImage(f"{name} has its parts in no order of a PNG file.")
    return header, bytes(packed)


def _decode(
    file: Path | io.BytesIO, path: Path | str, formats: tuple[str, ...], largest: int
) -> Image.Image:
    try:
        with Image.open(file, formats=formats) as image:
            _check_header(path, image, largest)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return image.convert(_PLAIN_MODES[image.mode])
    except (BadImage, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise BadImage(f"{path} is not an image ({', '.join(formats)}).") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"{path} is too large: {error}") from error
    except OSError as error:
        reason = error.strerror or str(error)
        if "truncated" in reason or "broken data stream" in reason:
            raise BadImage(f"{path} is truncated: {reason}.") from error
        raise BadImage(f"{path} cannot be read: {reason}.") from error
    except Exception as error:  # decoders raise SyntaxError, ValueError, struct.error ...
        raise BadImage(f"{path} is damaged: {type(error).__name__}: {error}.") from error


def _check_header(path: Path | str, image: Image.Image, largest: int) -> None:
    width, height = image.size
    if width * height > largest:
        raise BadImage(f"{path} is too large: {width} x {height} pixels.")
    if min(width, height) < SMALLEST:
        raise BadImage(
            f"{path} is {width} x {height} pixels; at least {SMALLEST} a side are needed."
        )
    if getattr(image, "n_frames", 1) > 1:
        raise BadImage(f"{path} holds several images.", hint="Save one image a file.")
    mode = image.mode
    if mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        raise BadImage(
            f"{path} has an alpha channel (mode {mode}).",
            hint="Save it without transparency, on the background you mean.",
        )
    if mode.startswith("I") or mode == "F":
        raise BadImage(
            f"{path} has 16 bits or more a pixel (mode {mode}).",
            hint="Convert it to 8 bits with the window that you mean.",
        )
    if mode == "CMYK":
        raise BadImage(f"{path} is CMYK.", hint="Convert it to greyscale or RGB.")
    if mode not in _PLAIN_MODES:
        raise BadImage(f"{path} has the mode {mode}.", hint="Convert it to greyscale or RGB.")


def to_image(made: Any) -> tuple[Image.Image, tuple[str, ...]]:
    """What a model returned, as an 8-bit image (mode L or RGB), and what is suspect about it.

    Args:
        made: a PIL image of mode L or RGB, or an array [h, w] or [h, w, 3], uint8 in 0..255 or
            floating in 0..1 (values beyond are clipped, NaN becomes black).

    Returns:
        The image, and flags among ``nan`` (some value was NaN or infinite), ``black`` (no pixel
        above 2 of 255) and ``constant`` (all pixels equal).

    Raises:
        ValueError: anything else.

    >>> import numpy as np
    >>> to_image(np.zeros((16, 16)))[1]
    ('black', 'constant')
    """
    flags: list[str] = []
    if isinstance(made, Image.Image):
        if made.mode not in ("L", "RGB"):
            raise ValueError(f"an image of mode L or RGB is expected, not {made.mode}")
        pixels: NDArray[np.uint8] = np.asarray(made, np.uint8)
    else:
        pixels = _eight_bits(np.asarray(made), flags)
    if min(pixels.shape[:2]) < SMALLEST:
        raise ValueError(f"an image of shape {pixels.shape} is below {SMALLEST} pixels a side")
    if pixels.max() <= 2:
        flags.append("black")
    if pixels.min() == pixels.max():
        flags.append("constant")
    return Image.fromarray(pixels), tuple(flags)


def _eight_bits(array: NDArray[Any], flags: list[str]) -> NDArray[np.uint8]:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or array.size == 0:
        raise ValueError(f"an image [h, w] or [h, w, 3] is expected, not shape {array.shape}")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise ValueError(f"uint8 or floating values are expected, not {array.dtype}")
    if not np.isfinite(array).all():
        flags.append("nan")
        array = np.nan_to_num(array, nan=0.0, posinf=1.0, neginf=0.0)
    eight: NDArray[np.uint8] = (array.astype(np.float64).clip(0, 1) * 255).round().astype(np.uint8)
    return eight


THUMBNAIL = 16
"""Pixels a side of a `thumbnail`."""


def webp(path: Path, edge: int) -> bytes:
    """A WebP file of the image, neither side longer than `edge` pixels, without metadata.

    Raises:
        BadImage: as `read_image`.
    """
    image = read_image(path)
    image.thumbnail((edge, edge))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


def thumbnail(image: Image.Image) -> NDArray[np.uint8]:
    """Grey levels [16, 16] of an image of any size: the mean of each area."""
    small = image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small, np.uint8)


def duplicates(
    thumbnails: NDArray[np.uint8],
    prompts: Sequence[str],
    *,
    tolerance: float = 2.0,
    block: int = 2048,
) -> NDArray[np.bool_]:
    """Bool [n]: whether an image is practically the same as one of another prompt.

    Args:
        thumbnails: [n, 16, 16] of `thumbnail`.
        prompts: what each image answers; images of one prompt are not compared.
        tolerance: the root mean square difference, in grey levels, up to which two are the same.
        block: rows compared at a time, which bounds the memory; the result does not depend on it.

    >>> import numpy as np
    >>> flat, ramp = np.zeros((16, 16), np.uint8), np.arange(256, dtype=np.uint8).reshape(16, 16)
    >>> duplicates(np.stack([ramp, flat, ramp, flat]), ["a", "b", "c", "b"])
    array([ True, False,  True, False])
    """
    # Sums of 256 products of bytes stay below 2 ** 24, so every float32 here is an exact integer,
    # in whatever order a matrix product adds.
    rows = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    squares = (rows * rows).sum(axis=1)
    _, group = np.unique(np.asarray(prompts), return_inverse=True)
    limit = tolerance**2 * rows.shape[1]
    found = np.zeros(len(rows), np.bool_)
    for start in range(0, len(rows), block):
        first = slice(start, start + block)
        for other in range(start, len(rows), block):
            second = slice(other, other + block)
            products = rows[first] @ rows[second].T
            distances = (squares[first, None] - products) + (squares[None, second] - products)
            same = (distances <= limit) & (group[first, None] != group[None, second])
            found[first] |= same.any(axis=1)
            found[second] |= same.any(axis=0)
    return found
