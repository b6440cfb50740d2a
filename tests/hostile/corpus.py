"""Bad and odd input of every kind, made by this script, with what each must come to.

A case writes its files into a `Bench` and fills the holes of the command that is given them:
``splits validate {csv}``. `python tests/hostile/corpus.py --write` writes the table of all cases
into docs/security.md. Nothing is drawn anew: the same call writes the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import re
import shutil
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from chexgenbench.types import FINDINGS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "security.md"

CONTROLS = "\x1b[2J\x1b]0;title\x07\x9b31m\u202e\u2066\u200f"
"""What moves a terminal's cursor, names its window, or turns the direction of writing."""

HEADER = "id,path,annotated_prompt,chexpert_labels,patientID,view"
GOOD = """s1,one.png,Small left pleural effusion.,"{'Pleural Effusion': 1.0}",p1,PA"""
COLUMNS = HEADER.split(",")


@dataclass(frozen=True)
class Bench:
    """Where a case lies: only `home` and `cache` may change when its command has run.

    Attributes:
        home: the project folder, which the command runs in.
        outside: a folder with a file that nobody may reach.
        project: a folder with a small project of made-up runs, to be copied.
    """

    home: Path
    outside: Path
    project: Callable[[], Path]

    @property
    def secret(self) -> Path:
        return self.outside / "secret.png"

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    def csv(self, *rows: str, header: str = HEADER) -> dict[str, Path]:
        return {"csv": self.file("split.csv", "\n".join((header, *rows)) + "\n")}

    def copy(self) -> Path:
        """A project of another lab, in this one's folder."""
        return Path(shutil.copytree(self.project(), self.home / "theirs"))


@dataclass(frozen=True)
class Ran:
    """What a command came to, and where."""

    bench: Bench
    code: int
    out: str
    err: str


Holes = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of input.

    Attributes:
        what: it is, in the table.
        given: the command, with holes.
        says: words of what it prints.
        code: its exit code; 0 where the input is to be taken.
        make: writes the files and fills the holes.
        then: checks what it came to.
        apart: GiB of address space that it has in a process of its own, the console script's, in
            bounded time; 0: in the process of the tests. An ordinary command takes 1.5, one that
            writes the store 2.3.
        writes: names in the project folder that the command may make.
    """

    name: str
    group: str
    what: str
    given: str
    says: Sequence[str]
    code: int
    make: Callable[[Bench], Holes]
    then: Callable[[Ran], None] | None = None
    apart: int = 0
    writes: Sequence[str] = field(default=())

    def words(self, holes: Holes) -> list[str]:
        """The command, its holes filled."""
        return [word.format_map(holes) for word in self.given.split()]


CASES: list[Case] = []
_group = ""


def group(name: str) -> None:
    """The heading that the next cases come under."""
    global _group
    _group = name


def case(
    what: str,
    given: str,
    *says: str,
    code: int = 2,
    apart: int = 0,
    then: Callable[[Ran], None] | None = None,
    writes: Sequence[str] = (),
) -> Callable[[Callable[[Bench], Holes]], Callable[[Bench], Holes]]:
    """Adds a case; the decorated function's name is the case's."""

    def add(make: Callable[[Bench], Holes]) -> Callable[[Bench], Holes]:
        name = make.__name__.strip("_").replace("_", "-")
        assert name not in {each.name for each in CASES}, name
        CASES.append(
            Case(
                name=name,
                group=_group,
                what=what,
                given=given,
                says=says,
                code=code,
                make=make,
                then=then,
                apart=apart,
                writes=writes,
            )
        )
        return make

    return add


# --- CSV files --------------------------------------------------------------------------------

VALIDATE = "splits validate {csv}"


def rows(
    name: str,
    what: str,
    says: str | Sequence[str],
    content: str | bytes,
    *,
    code: int = 2,
    apart: int = 0,
    then: Callable[[Ran], None] | None = None,
) -> None:
    """A case that is one CSV file of this content."""

    def make(bench: Bench) -> Holes:
        return {"csv": bench.file("split.csv", content)}

    make.__name__ = name
    words = (says,) if isinstance(says, str) else says
    case(what, VALIDATE, *words, code=code, apart=apart, then=then)(make)


def lines(*given: str, header: str = HEADER) -> str:
    return "\n".join((header, *given)) + "\n"


group("Tables of prompts")
rows(
    "bom",
    "UTF-8 with a byte order mark",
    "1 rows, 1 prompts",
    b"\xef\xbb\xbf" + lines(GOOD).encode(),
    code=0,
)
rows(
    "crlf",
    "lines that end as on Windows",
    "1 rows, 1 prompts",
    lines(GOOD).replace("\n", "\r\n"),
    code=0,
)
rows("utf16", "UTF-16", "is UTF-16. Save it as UTF-8.", lines(GOOD).encode("utf-16"))
rows("utf32", "UTF-32 without a mark", "line 1 holds a NUL byte", lines(GOOD).encode("utf-32-le"))
rows(
    "latin1",
    "Latin-1",
    "line 2 is not UTF-8. Save it as UTF-8.",
    lines(GOOD.replace("Small", "Kleinér")).encode("latin-1"),
)
rows("overlong", "overlong UTF-8", "line 3 is not UTF-8", lines(GOOD).encode() + b"\xc0\xaf\n")
rows(
    "surrogates",
    "UTF-8 of half a surrogate pair",
    "line 3 is not UTF-8",
    lines(GOOD).encode() + b"\xed\xa0\x80\n",
)
rows(
    "nul",
    "a NUL byte in a cell",
    "line 3 holds a NUL byte, so it is no CSV text",
    lines(GOOD, GOOD.replace("Small", "Sm\0all")),
)
rows(
    "spreadsheet",
    "a ZIP file (a spreadsheet) under .csv",
    "holds a NUL byte, so it is no CSV text",
    b"PK\x03\x04\x14\0\6\0" + bytes(64),
)
rows("web_page", "a web page under .csv", "lacks the columns", "<!DOCTYPE html>\n<p>404</p>\n")
rows("empty", "an empty file", "is empty", b"")
rows("blank", "white space alone", "is empty", "\n \n\t\n")
rows("only_header", "a header and nothing else", "has a header and no rows", lines())
rows(
    "semicolons",
    "semicolons between the cells",
    "lacks the columns 'id' (id)",
    lines(GOOD).replace(",", ";"),
)
rows(
    "short_row",
    "a row of too few cells",
    "line 3: 2 cells, the header has 6",
    lines(GOOD, "s2,two.png"),
)
rows(
    "long_row",
    "a row of too many cells",
    "line 3: 7 cells, the header has 6",
    lines(GOOD, GOOD + ",more"),
)
rows(
    "ragged_rows",
    "thousands of ragged rows",
    ("5000 rows", "... and 4980 more"),
    lines(GOOD, *["x"] * 5000),
)
rows(
    "open_quote",
    "a quotation mark that is never closed",
    ("line 3:", "a quotation mark is not closed"),
    lines(GOOD, GOOD.replace("Small", '"Small').replace("s1,one.png,", "s2,two.png,")),
)
rows(
    "repeated_column",
    "a column twice",
    "has the column 'view' more than once",
    lines(GOOD + ",PA", header=HEADER + ",view"),
)
rows(
    "no_prompt_column",
    "no column of prompts",
    ("lacks the column 'annotated_prompt' (prompt)", "--column prompt=caption"),
    lines(GOOD, header=HEADER.replace("annotated_prompt", "caption")),
)
rows(
    "odd_column",
    "escapes and bidirectional marks in a column's name",
    "lacks the column",
    lines(GOOD, header=HEADER.replace("view", f"v{CONTROLS}").replace("patientID", "x")),
)
rows(
    "empty_prompt", "an empty prompt", "line 3: the prompt is empty", lines(GOOD, "s2,,  ,{},p2,PA")
)
rows("empty_id", "an empty id", "line 3: the id is empty", lines(GOOD, ",,Another text.,{},p2,PA"))
rows(
    "repeated_id",
    "an id of two prompts",
    "line 3: the id is that of line 2, with another prompt",
    lines(GOOD, GOOD.replace("Small", "Large")),
)
rows(
    "field_of_20_mb",
    "a cell of 20 MB",
    "field larger than field limit",
    lines(GOOD, GOOD.replace("Small", "S" * 20_000_000)),
)
rows(
    "many_columns",
    "20,000 columns",
    "has 20006 columns; at most 2000 are read",
    lines(GOOD + ",x" * 20_000, header=HEADER + "".join(f",c{n}" for n in range(20_000))),
)
rows(
    "own_line",
    "a column that is called line",
    "1 rows, 1 prompts",
    lines(GOOD + ",7", header=HEADER + ",line"),
    code=0,
)


@case("one line of 1 GB", VALIDATE, "line 2 has more than 64 MiB, so it is no CSV text", apart=2)
def line_of_1_gb(bench: Bench) -> Holes:
    path = bench.file("split.csv", HEADER + "\n")
    block = b"x" * 2**20
    with path.open("ab") as file:
        for _ in range(1024):
            file.write(block)
    return {"csv": path}


@case("a sparse file of 1 TB", VALIDATE, "line 2 holds a NUL byte", apart=2)
def sparse(bench: Bench) -> Holes:
    path = bench.file("split.csv", HEADER + "\n")
    os.truncate(path, 2**40)
    return {"csv": path}


@case("a pipe that nobody writes to", VALIDATE, "cannot be read: it is a pipe", apart=2)
def csv_is_a_pipe(bench: Bench) -> Holes:
    os.mkfifo(bench.home / "split.csv")
    return {"csv": bench.home / "split.csv"}


@case("a link to a device without end", VALIDATE, "cannot be read: it is a pipe, a device", apart=2)
def csv_is_a_device(bench: Bench) -> Holes:
    (bench.home / "split.csv").symlink_to("/dev/zero")
    return {"csv": bench.home / "split.csv"}


@case("a folder", VALIDATE, "cannot be read: it is a folder")
def csv_is_a_folder(bench: Bench) -> Holes:
    (bench.home / "split.csv").mkdir()
    return {"csv": bench.home / "split.csv"}


@case("a link to itself", VALIDATE, "Symlink loop")
def csv_is_a_loop(bench: Bench) -> Holes:
    (bench.home / "split.csv").symlink_to("split.csv")
    return {"csv": bench.home / "split.csv"}


@case("a file that is not there, with escapes in its name", VALIDATE, "does not exist")
def csv_is_missing(bench: Bench) -> Holes:
    return {"csv": bench.home / f"sp{CONTROLS}lit.csv"}


@case(
    "a NUL byte in the name", "run --dry-run --set csv.test={csv} --split csv", "embedded null byte"
)
def nul_in_a_name(bench: Bench) -> Holes:
    return {"csv": "a\0.csv"}


def labels(name: str, what: str, says: str, text: str, *, code: int = 2, apart: int = 0) -> None:
    """A case that is one row with these labels."""
    cell = '"' + text.replace('"', '""') + '"'
    rows(name, what, says, lines(GOOD, f"s2,,Another text.,{cell},p2,PA"), code=code, apart=apart)


group("Labels")
labels(
    "labels_are_code",
    "a call of os.system",
    "line 3: the labels are not a dictionary",
    "__import__('os').system('touch ../outside/made')",
)
labels(
    "labels_of_code",
    "code as a value of the dictionary",
    "line 3: the labels are not a dictionary",
    "{'Edema': open('../outside/made', 'w')}",
)
labels(
    "labels_are_deep",
    "2,000 brackets in each other",
    "line 3: the labels are not a dictionary",
    "[" * 2000,
    apart=2,
)
labels(
    "labels_are_minus",
    "4,000 minus signs",
    "line 3: the labels are not a dictionary",
    "-" * 4000 + "1",
    apart=2,
)
labels("labels_are_long", "a megabyte", "line 3: labels of 1000000 characters", "1" * 1_000_000)
labels(
    "labels_of_digits",
    "a number of 4,000 digits",
    "line 3: the label of Edema is none of 1, 0, -1 and None",
    "{'Edema': " + "9" * 4000 + "}",
)
labels(
    "labels_of_text",
    "text in the place of a number",
    "line 3: the label of Edema is no number",
    "{'Edema': '<b>1</b>'}",
)
labels("labels_of_nan", "NaN in JSON", "line 3: the label of Edema is none of", '{"Edema": NaN}')
labels(
    "labels_of_infinity",
    "a number beyond all floats",
    "line 3: the label of Edema is none of",
    "{'Edema': 1e999}",
)
labels(
    "labels_of_truth",
    "true in the place of a number",
    "line 3: the label of Edema is no number",
    '{"Edema": true}',
)
labels(
    "labels_of_others",
    "a finding that is none of the 14",
    "line 3: the labels name something that is none",
    "{'\x1b[31mOedema': 1}",
)
labels(
    "labels_unhashable",
    "a list as the name of a finding",
    "line 3: the labels are not a dictionary",
    "{[]: 1}",
)


# --- what prompts and cells hold ---------------------------------------------------------------

group("What prompts hold")
HOSTILE_PROMPTS = (
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "'; DROP TABLE runs; --",
    '=HYPERLINK("http://127.0.0.1/?"&A1)',
    "-2+3+cmd|' /C calc'!A0",
    f"Small {CONTROLS} effusion.",
    "{{ 7 * 7 }} {% include '/etc/passwd' %} %s ${HOME} $(touch ../outside/made)",
    "first line\nsecond line\r\nthird",
    "x" * 100_000,
)


def _cell(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def hostile_rows() -> list[str]:
    return [f"s{n},,{_cell(text)},{{}},p{n},PA" for n, text in enumerate(HOSTILE_PROMPTS)]


def _silent(ran: Ran) -> None:
    """No text of a split of unknown origin is printed."""
    for text in ("alert", "DROP", "HYPERLINK", "cmd|", "effusion", "7 * 7", "second", "xxxx"):
        assert text not in ran.out + ran.err


rows(
    "hostile_prompts",
    "HTML, SQL, formulas, escapes, templates, line ends, 100 kB",
    ("8 rows, 8 prompts", "images not checked"),
    lines(*hostile_rows()),
    code=0,
    then=_silent,
)


def _kept(ran: Ran) -> None:
    """The text is there as it was, neither run nor changed."""
    (answer,) = json.loads(ran.out)
    assert answer["prompt"] == f"{PROMPT} s0"


def _page(ran: Ran) -> None:
    page = (ran.bench.home / "theirs" / "Results" / "report.html").read_text(encoding="utf-8")
    assert "alert(1)" in page  # the text is there,
    for tag in ("<script>alert", "<img src=x", "</title><", "<b>run"):
        assert tag not in page  # and no element of its making


def stored(
    name: str,
    what: str,
    given: str,
    says: str,
    then: Callable[[Ran], None] | None = None,
) -> None:
    """A case of a command on a store that holds `MODEL` and `PROMPT`."""

    def make(bench: Bench) -> Holes:
        return {"home": bench.copy(), "model": MODEL, "prompt_query": PROMPT_QUERY}

    make.__name__ = name
    case(what, f"{given} --home {{home}}", says, code=0, then=then)(make)


MODEL = f"</title><script>alert(1)</script>{CONTROLS}"
PROMPT = f"<img src=x onerror=alert(1)> '; DROP TABLE runs; -- {CONTROLS}"
PROMPT_QUERY = "select prompt from prompts order by line limit 1"

group("Names and prompts of a store")
stored("page", "markup in prompts and in the name of a model", "report", "Page:", _page)
stored("board", "markup and escapes in the name of a model", "leaderboard --metric fid", "alert(1)")
stored("runs", "the same, in the list of runs", "runs list", "alert(1)")
stored("one_run", "the same, in all that is known of a run", "runs show 0000", "alert(1)")
stored(
    "differences",
    "the same, in the differences of two runs",
    "compare 0000 0001 --subset overall",
    "alert(1)",
)
stored("latex", "the same, in a LaTeX table", "export latex --metric fid", "alert(1)")
stored("card", "the same, in a model card", "export model-card {model}", "alert(1)")
stored(
    "asked", "SQL and escapes in a prompt, as a table", "query {prompt_query}", "DROP TABLE runs"
)
stored("asked_as_json", "the same as JSON", "query {prompt_query} --json", "DROP TABLE runs", _kept)


# --- images -----------------------------------------------------------------------------------


def _pixels(width: int = 48, height: int = 32, seed: int = 0, bands: int = 1) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, bands), np.uint8)
    return Image.fromarray(values[:, :, 0] if bands == 1 else values)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _part(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, rows: bytes, *more: bytes, depth: int = 8, colours: int = 0
) -> bytes:
    """A PNG file, whether or not its pixels are those that its header says."""
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    body = _part(b"IHDR", header) + b"".join(more) + _part(b"IDAT", zlib.compress(rows, 1))
    return b"\x89PNG\r\n\x1a\n" + body + _part(b"IEND", b"")


def picture(
    name: str,
    what: str,
    says: str,
    content: Callable[[], bytes],
    *,
    code: int = 2,
    apart: int = 0,
    then: Callable[[Ran], None] | None = None,
) -> None:
    """A case that is one file of a split's real images."""

    def make(bench: Bench) -> Holes:
        bench.file("images/one.png", content())
        return bench.csv(GOOD) | {"images": "images"}

    make.__name__ = name
    case(what, IMAGES, says, code=code, apart=apart, then=then)(make)


def path_cell(name: str, what: str, says: str, cell: str) -> None:
    """A case that is one path of a real image in the table."""

    def make(bench: Bench) -> Holes:
        bench.file("images/one.png", encoded(_pixels(), "PNG"))
        return bench.csv(GOOD.replace("one.png", _cell(cell))) | {"images": "images"}

    make.__name__ = name
    case(what, IMAGES, says)(make)


def placed(
    name: str, what: str, says: str, place: Callable[[Bench, Path], None], *, apart: int = 0
) -> None:
    """A case that has something else than a file in an image's place."""

    def make(bench: Bench) -> Holes:
        (bench.home / "images").mkdir()
        place(bench, bench.home / "images" / "one.png")
        return bench.csv(GOOD) | {"images": "images"}

    make.__name__ = name
    case(what, IMAGES, says, apart=apart)(make)


def _upright(ran: Ran) -> None:
    from chexgenbench.images import read_image

    read = read_image(ran.bench.home / "images" / "one.png")
    assert read.size == (32, 48)
    turned = _pixels().transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(np.asarray(read), np.asarray(turned))


def _as_it_is(ran: Ran) -> None:
    from chexgenbench.images import read_image

    read = np.asarray(read_image(ran.bench.home / "images" / "one.png").convert("L"), float)
    assert np.abs(read - np.asarray(_pixels(), float)).mean() < 12


def _rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(_pixels(), "PNG", exif=exif)


def _animated(kind: str) -> bytes:
    frames = [_pixels(seed=n) for n in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def _zip(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(zipfile.ZipInfo(name), b"made")
    return buffer.getvalue()


IMAGES = "splits validate {csv} --images-root {images}"
SVG = b"""<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>
<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script><text>&x;</text></svg>"""

group("Images")
picture(
    "bomb",
    "a PNG that claims 60,000 x 60,000 pixels",
    "is too large",
    lambda: png(60_000, 60_000, bytes(60_000)),
    apart=2,
)
picture(
    "bomb_of_rows",
    "a small PNG with 200 MB behind its pixels",
    "1 images named",
    lambda: png(48, 32, bytes(200_000_000)),
    code=0,
    apart=2,
)
picture(
    "bomb_of_text",
    "a PNG with a text of 100 MB, packed",
    "is damaged",
    lambda: png(
        48,
        32,
        bytes(49 * 32),
        _part(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000), 1)),
    ),
    apart=2,
)
picture(
    "bomb_of_profile",
    "a PNG with a colour profile of 100 MB, packed",
    "one.png",
    lambda: png(
        48, 32, bytes(49 * 32), _part(b"iCCP", b"x\0\0" + zlib.compress(bytes(100_000_000), 1))
    ),
    code=2,
    apart=2,
)
picture(
    "bomb_tiff",
    "a TIFF that claims 4 billion pixels a side",
    "one.png",
    lambda: _huge_tiff(),
    apart=2,
)
picture(
    "cut_png", "a PNG that ends early", "is truncated", lambda: encoded(_pixels(), "PNG")[:-400]
)
picture(
    "cut_jpeg", "a JPEG that ends early", "is truncated", lambda: encoded(_pixels(), "JPEG")[:-300]
)
picture(
    "flipped", "a PNG with one bit turned", "one.png", lambda: _flipped(encoded(_pixels(), "PNG"))
)
picture("empty_image", "an empty file", "is empty (0 bytes)", lambda: b"")
picture("text_image", "text under .png", "is not an image", lambda: b"not an image\n")
picture(
    "svg", "SVG with a script and an external entity under .png", "is not an image", lambda: SVG
)
picture(
    "html",
    "a web page under .png",
    "is not an image",
    lambda: b"<!DOCTYPE html><script>alert(1)</script>",
)
picture(
    "postscript",
    "PostScript under .png",
    "is not an image",
    lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 32\n(../outside/made) (w) file\n",
)
picture("dicom", "DICOM under .png", "is not an image", lambda: bytes(128) + b"DICM" + bytes(64))
picture("gif", "an animated GIF under .png", "is not an image", lambda: _animated("GIF"))
picture(
    "other_format",
    "a JPEG under .png",
    "1 images named",
    lambda: encoded(_pixels(), "JPEG", quality=95),
    code=0,
    then=_as_it_is,
)
picture(
    "polyglot",
    "a PNG that is a ZIP file too",
    "1 images named",
    lambda: encoded(_pixels(), "PNG") + _zip("../../outside/made"),
    code=0,
    then=_as_it_is,
)
picture(
    "rotated",
    "a PNG that its EXIF turns by a quarter",
    "1 images named",
    _rotated,
    code=0,
    then=_upright,
)
picture(
    "deep_image",
    "16 bits a pixel",
    "has 16 bits or more a pixel",
    lambda: encoded(Image.fromarray(np.arange(48 * 32, dtype=np.uint16).reshape(32, 48)), "PNG"),
)
picture(
    "float_image",
    "a TIFF of floating values with NaN",
    "has 16 bits or more a pixel",
    lambda: encoded(Image.fromarray(np.full((32, 48), np.nan, np.float32)), "TIFF"),
)
picture(
    "cmyk",
    "CMYK",
    "is CMYK",
    lambda: encoded(_pixels(bands=3).convert("CMYK"), "JPEG"),
)
picture(
    "transparent",
    "an alpha channel",
    "has an alpha channel",
    lambda: encoded(_pixels(bands=3).convert("RGBA"), "PNG"),
)
picture("animated_png", "an animated PNG", "holds several images", lambda: _animated("PNG"))
picture("animated_webp", "an animated WebP", "holds several images", lambda: _animated("WEBP"))
picture("pages", "a TIFF of several pages", "holds several images", lambda: _animated("TIFF"))
picture(
    "pixel",
    "one pixel",
    "is 1 x 1 pixels; at least 16 a side are needed",
    lambda: encoded(_pixels(1, 1), "PNG"),
)
placed("image_pipe", "a pipe", "is no file", lambda bench, path: os.mkfifo(path), apart=2)
placed("image_folder", "a folder", "is no file", lambda bench, path: path.mkdir())
placed(
    "image_loop",
    "a link to itself",
    "is a link to itself",
    lambda bench, path: path.symlink_to(path.name),
)
placed(
    "image_device",
    "a link to a device without end",
    "leads out of its folder",
    lambda bench, path: path.symlink_to("/dev/zero"),
    apart=2,
)
placed(
    "image_link",
    "a link to a file outside of the folder",
    "leads out of its folder",
    lambda bench, path: path.symlink_to(bench.secret),
)
placed("image_missing", "nothing", "is missing", lambda bench, path: None)
path_cell("path_up", "a path with ../", "leads out of its folder", "../../outside/secret.png")
path_cell(
    "path_down_and_up",
    "a path with ../ in its middle",
    "leads out of its folder",
    "a/../../../outside/secret.png",
)
path_cell("path_absolute", "an absolute path", "leads out of its folder", "/etc/passwd")
path_cell("path_itself", "a path to the folder itself", "leads out of its folder", ".")
path_cell(
    "path_controls", "escapes and bidirectional marks in a path", "is missing", f"{CONTROLS}.png"
)
path_cell("path_line_end", "a line end in a path", "is missing", "one\n.png")
path_cell("path_long", "a path of 5,000 characters", "File name too long", "x" * 5000)


def _huge_tiff() -> bytes:
    tags = [
        (256, 4, 2**32 - 1),
        (257, 4, 2**32 - 1),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, 1),
        (279, 4, 8),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)


def _flipped(data: bytes) -> bytes:
    at = data.index(b"IDAT") + 40
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


EVALUATE = "evaluate --images-csv {list} --images-dir {images} --device cpu"


def images_list(name: str, what: str, says: str, content: str | None) -> None:
    """A case that is a user's own table of images."""

    def make(bench: Bench) -> Holes:
        bench.file("images/one.png", encoded(_pixels(), "PNG"))
        path = bench.home / "prompt_INFO.csv"
        return {
            "list": path if content is None else bench.file(path.name, content),
            "images": "images",
        }

    make.__name__ = name
    case(what, EVALUATE, says)(make)


group("A user's own images")
images_list(
    "list_up",
    "a file name with ../",
    "line 2: img_savename: '../outside/secret.png' leads out",
    "prompt,img_savename\na,../outside/secret.png\n",
)
images_list(
    "list_controls",
    "escapes in a file name that leads out",
    "line 2: img_savename:",
    f"prompt,img_savename\na,../{CONTROLS}\n",
)
images_list(
    "list_column",
    "no column of file names",
    "lacks the column 'img_savename'",
    "prompt,file\na,one.png\n",
)
images_list(
    "list_empty_name",
    "an empty file name",
    "line 2: img_savename: '' is not a file name",
    "prompt,img_savename\na,\n",
)
images_list(
    "list_of_others",
    "prompts of another split",
    "is one of the split",
    "prompt,img_savename\n<script>alert(1)</script>,one.png\n",
)
images_list("list_missing", "a table that is not there", "does not exist", None)


# --- configuration ----------------------------------------------------------------------------

SUITE = """split = "demo"
models = ["noise"]
encoders = ["phantom-clip"]
metrics = ["fid"]
"""


def suite(name: str, what: str, says: str, text: str | bytes, *, apart: int = 0) -> None:
    """A case that is a suite's file."""

    def make(bench: Bench) -> Holes:
        return {"suite": bench.file("suite.toml", text)}

    make.__name__ = name
    case(what, "run --suite {suite} --dry-run --device cpu", says, apart=apart)(make)


def option(
    name: str,
    what: str,
    given: str,
    says: str | Sequence[str],
    /,
    *,
    apart: int = 0,
    **holes: str,
) -> None:
    """A case that is the value of an option."""

    def make(bench: Bench) -> Holes:
        return holes

    make.__name__ = name
    words = (says,) if isinstance(says, str) else says
    case(what, given, *words, apart=apart)(make)


group("Configuration")
suite(
    "suite_key",
    "a field that suites do not have",
    "There is no field of a suite",
    SUITE + "modles = []\n",
)
suite(
    "suite_controls",
    "escapes in a field's name",
    "There is no field of a suite",
    SUITE + '"\\u001b[2J\\u202e" = 1\n',
)
suite(
    "suite_table",
    "a table in the place of a list",
    "models:",
    SUITE.replace('models = ["noise"]', "models = {a = 1}"),
)
suite(
    "suite_no_model",
    "no model",
    "models: Tuple should have at least 1 item",
    SUITE.replace('"noise"', ""),
)
suite("suite_broken", "broken TOML", "is not valid TOML", SUITE + "seed = \n")
suite("suite_twice", "a field twice", "is not valid TOML", SUITE + 'split = "demo"\n')
suite("suite_latin1", "Latin-1", "is not valid TOML", SUITE.encode() + "# é\n".encode("latin-1"))
suite("suite_nul", "a NUL byte", "is not valid TOML", SUITE + "# \0\n")
suite(
    "suite_deep",
    "100,000 brackets in each other",
    "is nested too deeply",
    SUITE + "seed = " + "[" * 100_000,
    apart=2,
)
suite(
    "suite_tables_deep",
    "a table of 2,000 levels",
    "There is no field of a suite",
    SUITE + "[" + ".".join("a" * 2000) + "]\n",
    apart=2,
)
suite(
    "suite_digits",
    "a number of 5,000 digits",
    "is not valid TOML: Exceeds the limit",
    SUITE + "seed = " + "9" * 5000 + "\n",
)
suite(
    "suite_seed",
    "a seed above 63 bits",
    "seed: Input should be less than",
    SUITE + f"seed = {2**63}\n",
)
suite(
    "suite_negative",
    "a negative number of prompts",
    "limit: Input should be greater than or equal to 1",
    SUITE + "limit = -1\n",
)
suite("suite_infinite", "infinity in the place of a count", "repeats:", SUITE + "repeats = inf\n")
suite(
    "suite_many",
    "a thousand million repeats",
    "repeats: Input should be less than or equal to 1000",
    SUITE + "repeats = 1_000_000_000\n",
)
suite(
    "suite_large",
    "a suite of 20 MB",
    "has more than 1 MiB: it is no suite",
    SUITE + "# x\n" * 5_000_000,
    apart=2,
)
suite(
    "suite_subset_name",
    "escapes in the name of a subset",
    "is no name: 1 to 60 printable characters",
    SUITE + '[subsets]\n"a\\u001b[2J" = "view = 1"\n',
)
suite(
    "suite_subset_taken",
    "a subset that is called as a finding",
    "the name 'edema' is taken",
    SUITE + "[subsets]\nedema = \"view = 'PA'\"\n",
)
suite(
    "suite_parameters",
    "a parameter that a model does not have",
    "noise",
    SUITE + '[parameters.noise]\n"__class__" = 1\n',
)
suite(
    "suite_model_path",
    "a model that is called ../x",
    "There is no model named '../x'",
    SUITE.replace('"noise"', '"../x"'),
)


@case(
    "a pipe in the place of a suite",
    "run --suite {suite} --dry-run",
    "cannot be read: it is a pipe",
    apart=2,
)
def suite_is_a_pipe(bench: Bench) -> Holes:
    os.mkfifo(bench.home / "suite.toml")
    return {"suite": bench.home / "suite.toml"}


@case(
    "a folder in the place of a suite",
    "run --suite {suite} --dry-run",
    "cannot be read: it is a folder",
)
def suite_is_a_folder(bench: Bench) -> Holes:
    (bench.home / "suite.toml").mkdir()
    return {"suite": bench.home / "suite.toml"}


RUN = "run --model noise --dry-run --device cpu"
option(
    "set_unknown",
    "a parameter that nothing has",
    f"{RUN} --set {{set}}",
    "There is no parameter of the chosen models named",
    set="__init__=1",
)
option(
    "set_without_value",
    "a parameter without a value",
    f"{RUN} --set {{set}}",
    "is not of the form name=value",
    set=f"steps{CONTROLS}",
)
option(
    "set_huge",
    "a number of 5,000 digits for a size",
    "run --model phantom-diffusion --dry-run --device cpu --set {set}",
    "steps",
    set="phantom-diffusion.steps=" + "9" * 5000,
)
option(
    "set_infinite",
    "infinity for a count of steps",
    "run --model phantom-diffusion --dry-run --device cpu --set {set}",
    "steps",
    set="phantom-diffusion.steps=inf",
)
option(
    "memory_huge",
    "400 digits of memory",
    f"{RUN} --memory {{memory}}",
    "is more than any machine has",
    memory="9" * 400 + "T",
)
option(
    "memory_odd",
    "a size in no unit",
    f"{RUN} --memory {{memory}}",
    "is no size",
    memory=f"16{CONTROLS}",
)
option(
    "batch_huge",
    "a batch size of 30 digits",
    f"{RUN} --batch-size {{size}}",
    "is neither a number nor auto",
    size="9" * 30,
)
option(
    "batch_digits",
    "a batch size of 5,000 digits",
    f"{RUN} --batch-size {{size}}",
    "batch",
    size="9" * 5000,
)
option("limit_negative", "a negative limit", f"{RUN} --limit {{limit}}", "--limit", limit="-1")
option(
    "column_role",
    "a column for a role that there is none of",
    f"{RUN} --column {{column}}",
    "is not of the form role=NAME",
    column=f"{CONTROLS}=x",
)
option(
    "subset_sql",
    "a second statement in a subset",
    f"{RUN} --subset {{subset}}",
    "cannot be used",
    subset="a: true); DROP TABLE prompts; --",
)
option(
    "subset_file",
    "a file read by a subset",
    f"{RUN} --subset {{subset}}",
    "cannot be used",
    subset="a: (select count(*) from read_text('/etc/passwd')) > 0",
)
option(
    "subset_write",
    "a file written by a subset",
    f"{RUN} --subset {{subset}}",
    "cannot be used",
    subset="a: copy prompts to '../outside/made'",
)
option(
    "subset_deep",
    "a subset of 20,000 brackets",
    f"{RUN} --subset {{subset}}",
    "cannot be used",
    apart=8,
    subset="a: " + "(" * 20_000 + "true" + ")" * 20_000,
)
option(
    "subset_random",
    "a subset that is another each time",
    f"{RUN} --subset {{subset}}",
    "chooses other rows each time",
    subset="a: random() > 0.5",
)
option(
    "device_odd",
    "escapes in the name of a device",
    "run --model noise --dry-run --device {device}",
    "device",
    device=f"cpu{CONTROLS}",
)
option(
    "executor_odd",
    "an executor that there is none of",
    f"{RUN} --executor {{executor}}",
    "executor",
    executor=f"{CONTROLS}=process",
)


# --- names ------------------------------------------------------------------------------------

group("Names")
option(
    "model_up",
    "a model called ../../x",
    "models show {name}",
    "There is no model named '../../x'",
    name="../../x",
)
option(
    "model_controls",
    "a model's name with escapes",
    "models show {name}",
    "There is no model named",
    name=CONTROLS,
)
option(
    "model_line_end",
    "a line end after a model's colon",
    "run --dry-run --model {name}",
    "after its colon: no name",
    name="images:a\nb",
)
option(
    "model_label",
    "a label with ../",
    "run --dry-run --model {name}",
    "There is no model named",
    name="../x=noise",
)
option(
    "model_text",
    "a folder that is not there",
    "run --dry-run --device cpu --model {name}",
    "does not exist",
    name="images:../../nowhere",
)
option(
    "encoder_up",
    "an encoder called ../x",
    "encoders show {name}",
    "There is no encoder named '../x'",
    name="../x",
)
option(
    "suite_up",
    "a suite called ../x",
    "run --dry-run --suite {name}",
    "There is no suite named '../x'",
    name="../x",
)
option("query_up", "a saved query called ../x", "queries show {name}", "../x", name="../x")
option("environment_up", "an environment called ../x", "env build {name}", "../x", name="../x")
option(
    "environment_removed",
    "an environment called .. to be removed",
    "env remove {name}",
    "..",
    name="..",
)
option("plugin_up", "a new plugin called ../x", "plugin new model {name}", "../x", name="../x")
option(
    "plugin_controls",
    "a new plugin with escapes in its name",
    "plugin new model {name}",
    "name",
    name=f"a{CONTROLS}",
)
option(
    "plugin_keyword",
    "a new plugin that is called as a word of Python",
    "plugin new model {name}",
    "class",
    name="class",
)


@case("a folder that is a file", "runs list --home {home}", "There is no store at")
def home_is_a_file(bench: Bench) -> Holes:
    return {"home": bench.file("a", "")}


@case(
    "a run called ../../outside, to be deleted", "runs delete {run} --yes --home {home}", "outside"
)
def run_up(bench: Bench) -> Holes:
    return {"home": bench.copy(), "run": "../../outside"}


@case("an empty name of a run, to be deleted", "runs delete {run} --yes --home {home}", "run")
def run_empty(bench: Bench) -> Holes:
    return {"home": bench.copy(), "run": ""}


@case("wildcards for a run, to be deleted", "runs delete {run} --yes --home {home}", "%")
def run_wild(bench: Bench) -> Holes:
    return {"home": bench.copy(), "run": "%"}


@case(
    "SQL in the name of a subset",
    "leaderboard --subset {subset} --home {home}",
    "There is no subset named",
)
def subset_of_sql(bench: Bench) -> Holes:
    return {"home": bench.copy(), "subset": "x' OR 1=1; DROP TABLE runs; --"}


@case(
    "SQL in the column to sort by",
    "leaderboard --sort {sort} --home {home}",
    "There is no column named",
)
def sort_by_sql(bench: Bench) -> Holes:
    return {"home": bench.copy(), "sort": "value; DROP TABLE runs"}


# --- questions --------------------------------------------------------------------------------

QUERY = "query {sql} --home {home}"


def question(name: str, what: str, says: str, sql: str, *, code: int = 2, apart: int = 0) -> None:
    def make(bench: Bench) -> Holes:
        return {"home": bench.copy(), "sql": sql}

    make.__name__ = name
    case(what, QUERY, says, code=code, apart=apart)(make)


group("SQL")
question("drop", "a table dropped", "read-only", "drop table runs")
question(
    "two_statements", "two statements", "holds 2 statements, not one", "select 1; drop table runs"
)
question("no_statement", "no statement", "holds 0 statements, not one", "/* nothing */")
question("copied", "a table written to a file", "disabled", "copy runs to '../outside/made.csv'")
question("read_file", "a file read", "disabled", "select * from read_text('/etc/passwd')")
question(
    "read_by_name",
    "a file read by its name",
    "Table with name /etc/passwd does not exist",
    "select * from '/etc/passwd'",
)
question("attached", "another database attached", "disabled", "attach '../outside/made.duckdb'")
question(
    "extension", "an extension loaded", "Loading external extensions is disabled", "load httpfs"
)
question(
    "unlocked",
    "the guard switched off",
    "configuration has been locked",
    "set enable_external_access = true",
)
question(
    "deep_sql",
    "20,000 brackets",
    "Max expression depth limit of 1000 exceeded",
    "select " + "(" * 20_000 + "1" + ")" * 20_000,
    apart=4,
)
question(
    "escapes_of_sql",
    "escapes made by SQL",
    "(1 row)",
    "select chr(27) || '[2J' || chr(8238) as x",
    code=0,
)


@case(
    "a statement in a file that is no text",
    "query --file {file} --home {home}",
    "it is no UTF-8 text",
)
def question_of_bytes(bench: Bench) -> Holes:
    return {"home": bench.copy(), "file": bench.file("ask.sql", b"select \xff")}


# --- stores and runs --------------------------------------------------------------------------


def spoilt(
    name: str,
    what: str,
    says: str,
    spoil: Callable[[Bench, Path], None],
    *,
    code: int = 0,
    apart: int = 0,
    given: str = "store merge {theirs}",
) -> None:
    """A case that is another lab's project, one run of which is spoilt."""

    def make(bench: Bench) -> Holes:
        theirs = bench.copy()
        spoil(bench, theirs / "runs" / RUN_ID)
        return {"theirs": theirs}

    make.__name__ = name
    case(what, given, says, code=code, apart=apart, writes=("Results", "runs"))(make)


RUN_ID = "0000" + "0" * 12


def _record(change: Callable[[dict[str, Any]], None]) -> Callable[[Bench, Path], None]:
    def spoil(bench: Bench, run: Path) -> None:
        values = json.loads((run / "run.json").read_text(encoding="utf-8"))
        sealed = values.pop("sha256", None) is not None
        change(values)
        if sealed:  # who changes a record can seal it again
            from chexgenbench.files import digest

            values["sha256"] = digest(values)
        (run / "run.json").write_text(json.dumps(values), encoding="utf-8")

    return spoil


def _bytes(name: str, data: bytes) -> Callable[[Bench, Path], None]:
    return lambda bench, run: (run / name).write_bytes(data) and None


def _edited(run: Path) -> None:
    text = (run / "run.json").read_text(encoding="utf-8")
    (run / "run.json").write_text(text.replace('"n_images": 6', '"n_images": 7'), encoding="utf-8")


def _linked(bench: Bench, run: Path) -> None:
    (run / "scores.parquet").unlink()
    (run / "scores.parquet").symlink_to(bench.secret)


def _piped(bench: Bench, run: Path) -> None:
    (run / "scores.parquet").unlink()
    os.mkfifo(run / "scores.parquet")


def _cut(bench: Bench, run: Path) -> None:
    data = (run / "scores.parquet").read_bytes()
    (run / "scores.parquet").write_bytes(data[: len(data) // 2])


group("Another lab's project (its good runs are taken in)")
spoilt("record_broken", "a record that is no JSON", "cannot be read", _bytes("run.json", b"{"))
spoilt(
    "record_binary", "a record that is no text", "cannot be read", _bytes("run.json", b"\xff\xfe\0")
)
spoilt(
    "record_deep",
    "a record of 100,000 brackets",
    "it is nested too deeply",
    _bytes("run.json", b"[" * 100_000),
    apart=4,
)
spoilt(
    "record_list",
    "a record that is a list",
    "is not the record of a run: the whole file",
    _bytes("run.json", b"[1]"),
)
spoilt(
    "record_digits",
    "a number of 5,000 digits",
    "cannot be read",
    _bytes("run.json", b'{"seed": ' + b"9" * 5000 + b"}"),
)
spoilt(
    "record_changed",
    "a number changed by hand",
    "is damaged: its content is not what was written",
    lambda bench, run: _edited(run),
)
spoilt(
    "record_surrogate",
    "half of a pair of surrogates",
    "cannot be read",
    _bytes("run.json", b'{"model": "\\ud800"}'),
)
spoilt(
    "record_up",
    "a record that calls its run ../../../outside",
    "is the record of the run '../../../outside'",
    _record(lambda values: values.update(run_id="../../../outside")),
)
spoilt(
    "record_new",
    "a record of a later release",
    "this release reads up to",
    _record(lambda values: values.update(schema_version=10**9)),
)
spoilt(
    "record_field",
    "a field that records do not have",
    "is not the record of a run",
    _record(lambda values: values.update(evil="<script>")),
)
spoilt(
    "record_type",
    "text in the place of a number",
    "is not the record of a run: n_images",
    _record(lambda values: values.update(n_images="\x1b[2J")),
)
spoilt(
    "table_broken",
    "a table that is no Parquet",
    "cannot be read",
    _bytes("scores.parquet", b"PAR1" + bytes(100) + b"PAR1"),
)
spoilt("table_cut", "a table that ends early", "cannot be read", _cut)
spoilt(
    "table_missing",
    "a table that is not there",
    "is missing",
    lambda bench, run: (run / "scores.parquet").unlink(),
)
spoilt(
    "table_linked",
    "a table that is a link to a file outside",
    "there is a symbolic link in it",
    _linked,
)
spoilt("table_piped", "a table that is a pipe", "is missing", _piped, apart=4)


@case("a folder without runs", "store merge {theirs}", "holds no runs")
def merge_nothing(bench: Bench) -> Holes:
    return {"theirs": bench.outside}


@case("this project itself", "store merge {theirs}", "is this project")
def merge_itself(bench: Bench) -> Holes:
    (bench.home / "runs").mkdir()
    return {"theirs": bench.home}


@case("a store that is no database", "leaderboard", "cannot be read")
def store_of_noise(bench: Bench) -> Holes:
    bench.file("Results/chexgenbench.duckdb", bytes(range(256)) * 64)
    return {}


@case("an empty store", "leaderboard", "chexgenbench.duckdb")
def store_empty(bench: Bench) -> Holes:
    bench.file("Results/chexgenbench.duckdb", b"")
    return {}


@case("a pipe in the place of a store", "leaderboard", "There is no store at", apart=2)
def store_is_a_pipe(bench: Bench) -> Holes:
    (bench.home / "Results").mkdir()
    os.mkfifo(bench.home / "Results" / "chexgenbench.duckdb")
    return {}


# --- weights ----------------------------------------------------------------------------------


class Evil:
    """Unpickled, it writes a file."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, ("touch ../outside/made",)


def pickled() -> bytes:
    import pickle

    return pickle.dumps({"state_dict": Evil()}, protocol=2)


def torch_file() -> bytes:
    """What torch.save writes, with a pickle that runs a command."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in (
            ("data.pkl", pickled()),
            ("version", b"3\n"),
            ("byteorder", b"little"),
            ("../../../outside/made", b"made"),
        ):
            file.writestr(zipfile.ZipInfo(f"archive/{name}"), data)
    return buffer.getvalue()


def safetensors(header: str | bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + data


CONVERT = "convert sana {checkpoint} {out}"


def checkpoint(
    name: str, what: str, says: str, file: str, content: Callable[[], bytes], *, apart: int = 0
) -> None:
    def make(bench: Bench) -> Holes:
        return {"checkpoint": bench.file(file, content()), "out": "made"}

    make.__name__ = name
    case(what, CONVERT, says, apart=apart)(make)


def bundle(name: str, what: str, says: str, content: bytes, *, apart: int = 0) -> None:
    def make(bench: Bench) -> Holes:
        return {"file": bench.file("real.safetensors", content)}

    make.__name__ = name
    case(what, "reference show {file}", says, apart=apart)(make)


def folder(
    name: str, what: str, says: str, files: Mapping[str, str | bytes | Callable[[], bytes]]
) -> None:
    """A case that is a folder of a diffusion pipeline."""

    def make(bench: Bench) -> Holes:
        for each, content in files.items():
            bench.file(f"weights/{each}", content() if callable(content) else content)
        return {"model": f"stable-diffusion:{bench.home / 'weights'}"}

    make.__name__ = name
    case(what, "run --dry-run --device cpu --model {model}", says)(make)


INDEX = json.dumps(
    {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.30.0",
        **{
            name: ["diffusers", kind]
            for name, kind in (
                ("unet", "UNet2DConditionModel"),
                ("vae", "AutoencoderKL"),
                ("scheduler", "DDIMScheduler"),
            )
        },
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
)

group("Weights")
checkpoint(
    "pickle",
    "a pickle that runs a command",
    "cannot be read without running code that its author chose",
    "weights.pkl",
    pickled,
)
checkpoint(
    "torch_pickle",
    "a file of torch.save whose pickle runs a command, with a name ../ in its archive",
    "cannot be read without running code that its author chose",
    "weights.pth",
    torch_file,
)
checkpoint(
    "torch_archive",
    "an archive with names ../ under .pth",
    "cannot be read",
    "weights.pth",
    lambda: _zip("../../outside/made", "/tmp/made"),
)
checkpoint(
    "checkpoint_text", "text under .pth", "cannot be read", "weights.pth", lambda: b"not weights\n"
)
checkpoint(
    "checkpoint_empty",
    "an empty file under .safetensors",
    "cannot be read",
    "weights.safetensors",
    lambda: b"",
)
checkpoint(
    "checkpoint_header",
    "safetensors with a header of 2^62 bytes",
    "cannot be read",
    "weights.safetensors",
    lambda: safetensors("{}", length=2**62),
    apart=8,
)
checkpoint(
    "checkpoint_state",
    "safetensors of another network",
    "The checkpoint has 1 tensors that are not of sana",
    "weights.safetensors",
    lambda: safetensors('{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
)
bundle(
    "header_long",
    "a header longer than the file",
    "is damaged or no reference bundle",
    safetensors("{}", length=2**40),
    apart=2,
)
bundle(
    "header_text",
    "a header that is no JSON",
    "is damaged or no reference bundle",
    safetensors("not JSON"),
)
bundle(
    "header_deep",
    "a header of 100,000 brackets",
    "is damaged or no reference bundle",
    safetensors("[" * 100_000),
    apart=2,
)
bundle(
    "header_offsets",
    "a tensor that lies beyond the file",
    "is damaged or no reference bundle",
    safetensors('{"rows":{"dtype":"I64","shape":[4],"data_offsets":[0,4096]}}', bytes(32)),
)
bundle(
    "header_overlap",
    "two tensors in one place",
    "is damaged or no reference bundle",
    safetensors(
        '{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}',
        bytes(8),
    ),
)
bundle(
    "header_shape",
    "a shape of 2^62 values",
    "is damaged or no reference bundle",
    safetensors(
        '{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,8]}}', bytes(8)
    ),
    apart=2,
)
bundle(
    "header_other",
    "safetensors that are no bundle",
    "is damaged or no reference bundle",
    safetensors('{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}', bytes(8)),
)
bundle(
    "header_format",
    "a bundle of a later release, with escapes in its format",
    "has the format",
    safetensors('{"__metadata__":{"reference":"{\\"format\\": \\"x\\\\u001b[2J\\"}"}}'),
)


@case(
    "published weights as a pickle alone",
    "run --dry-run --device cpu --model noise --encoder rad-dino --metric fid --set {weights}",
    "a pickle can run any code on this machine",
)
def pickles_alone(bench: Bench) -> Holes:
    bench.file("weights/config.json", "{}")
    bench.file("weights/preprocessor_config.json", "{}")
    bench.file("weights/pytorch_model.bin", pickled())
    return {"weights": "rad-dino.weights=weights"}


folder("pipeline_index", "a pipeline whose index is a list", "weights", {"model_index.json": "[1]"})
folder(
    "pipeline_deep",
    "a pipeline whose index is 100,000 brackets",
    "it is nested too deeply",
    {"model_index.json": "[" * 100_000},
)
folder(
    "pipeline_code",
    "a pipeline of a class of its own code",
    "weights",
    {
        "model_index.json": INDEX.replace(
            '["diffusers", "UNet2DConditionModel"]', '["evil", "Evil"]'
        ),
        "evil.py": "open('../outside/made', 'w')",
        "unet/evil.py": "open('../outside/made', 'w')",
    },
)
folder(
    "pipeline_up",
    "a pipeline of which a part lies in ../../outside",
    "names a part '../../outside', which is no name",
    {"model_index.json": INDEX.replace('"unet"', '"../../outside"')},
)
folder(
    "pipeline_odd",
    "a pipeline whose index has no names and lists of lists",
    "names a part '', which is no name",
    {
        "model_index.json": INDEX.replace('"unet"', '""').replace(
            '"vae": ["diffusers"', '"vae": [[]'
        )
    },
)
folder("pipeline_nothing", "a folder without a pipeline", "weights", {"a.txt": "x"})


# --- plugins ----------------------------------------------------------------------------------


def plugin(
    name: str,
    what: str,
    says: str,
    text: str | bytes,
    *,
    more: str | None = None,
    apart: int = 0,
) -> None:
    """A case that is a plugin's file, or two."""

    def make(bench: Bench) -> Holes:
        bench.file("second.py", more or "")
        return {"plugin": bench.file("first.py", text), "more": bench.home / "second.py"}

    make.__name__ = name
    given = "models list --plugin {plugin}" + (" --plugin {more}" if more is not None else "")
    case(what, given, says, apart=apart)(make)


def model_plugin(name: str) -> str:
    return f"""
from chexgenbench import Model, ModelSpec, hookimpl

class Odd(Model):
    def generate(self, requests):
        return []

@hookimpl
def chexgenbench_models():
    yield ModelSpec(name={name!r}, summary="x", load=Odd)
"""


group("Plugins")
plugin(
    "same_name",
    "two plugins of one name",
    "Two models are named 'odd'",
    model_plugin("odd"),
    more=model_plugin("odd"),
)
plugin(
    "built_in_name",
    "a plugin that is called as a built-in one",
    "Two models are named 'noise'",
    model_plugin("noise"),
)
plugin("name_up", "a plugin called ../x", "'../x' is not a plugin name", model_plugin("../x"))
plugin(
    "name_controls",
    "escapes and bidirectional marks in a plugin's name",
    "is not a plugin name",
    model_plugin(f"odd{CONTROLS}"),
)
plugin("name_empty", "a plugin without a name", "'' is not a plugin name", model_plugin(""))
plugin(
    "name_number",
    "a number for a name",
    "7 is not a plugin name",
    model_plugin("odd").replace("name='odd'", "name=7"),
)
plugin("no_hook", "a file without a hook", "has no hook", "x = 1\n")
plugin("broken", "a file that is no Python", "cannot be used: SyntaxError", "def (\n")
plugin("binary", "a file of bytes", "cannot be used: ", bytes(range(256)))
plugin("deep", "100,000 brackets", "cannot be used: ", "x = " + "(" * 100_000, apart=2)
plugin(
    "raises",
    "a file that raises, with escapes in its message",
    "cannot be used: ValueError",
    f"raise ValueError({CONTROLS!r})\n",
)
plugin(
    "exits",
    "a file that ends the program",
    "cannot be used: SystemExit",
    "import sys\nsys.exit(0)\n",
    apart=2,
)
plugin(
    "not_a_spec",
    "a hook that yields something else",
    "yielded a type, not a ModelSpec",
    model_plugin("odd").replace("yield ModelSpec", "yield str; ModelSpec"),
)
plugin(
    "hook_raises",
    "a hook that raises",
    "KeyError",
    model_plugin("odd").replace("yield ModelSpec", "raise KeyError('x'); yield ModelSpec"),
)
plugin(
    "hook_of_one",
    "a hook that returns no list",
    "TypeError",
    model_plugin("odd").replace("yield ModelSpec", "return ModelSpec"),
)


@case("a plugin's file that is not there", "models list --plugin {plugin}", "does not exist")
def plugin_missing(bench: Bench) -> Holes:
    return {"plugin": bench.home / f"{CONTROLS}.py"}


@case("a pipe in the place of a plugin", "models list --plugin {plugin}", "does not exist", apart=2)
def plugin_is_a_pipe(bench: Bench) -> Holes:
    os.mkfifo(bench.home / "first.py")
    return {"plugin": bench.home / "first.py"}


# --- jobs -------------------------------------------------------------------------------------

JOB: dict[str, Any] = {
    "format": 2,
    "kind": "generate",
    "plugins": [],
    "context": {"dtype": "float32", "allow_pickle": False, "home": ".", "cache": "."},
    "model": "noise",
    "source": "0" * 64,
    "parameters": {},
    "batch_size": 1,
    "n_requests": 1,
}


def _requests(bench: Bench, name: str = "a") -> None:
    """A job's table of one request."""
    from chexgenbench.jobs.job import GenerateJob, write_generate_job
    from chexgenbench.registry import load_registry
    from chexgenbench.types import Request

    source = load_registry().models["noise"].source_hash()
    context = JOB["context"] | {"home": str(bench.home), "cache": str(bench.home)}
    values = GenerateJob.model_validate(JOB | {"source": source, "context": context})
    request = Request(id=name, prompt_id="a", prompt="a", seed=1, size=32)
    write_generate_job(bench.home / "job", values, [request])


def job(
    name: str,
    what: str,
    says: str,
    content: str | bytes | dict[str, Any],
    requests: bytes | None = None,
    *,
    code: int = 2,
    apart: int = 0,
) -> None:
    """A case that is a job directory for the worker."""

    def make(bench: Bench) -> Holes:
        _requests(bench)
        text = json.dumps(content) if isinstance(content, dict) else content
        bench.file("job/job.json", text)
        if requests is not None:
            bench.file("job/requests.parquet", requests)
        return {"job": bench.home / "job"}

    make.__name__ = name
    case(what, "worker {job}", says, code=code, apart=apart, writes=("job",))(make)


group("Job directories")
job("job_broken", "a job that is no JSON", "cannot be read", "{")
job("job_deep", "a job of 100,000 brackets", "it is nested too deeply", "[" * 100_000, apart=2)
job("job_digits", "a number of 5,000 digits", "cannot be read", '{"format": ' + "9" * 5000 + "}")
job(
    "job_format",
    "a job of another release",
    "has format 99, and this worker reads format 2",
    JOB | {"format": 99},
)
job("job_kind", "a job of an unknown kind", "is a job of the kind", JOB | {"kind": CONTROLS})
job(
    "job_field",
    "a field that jobs do not have",
    "cannot be read",
    JOB | {"command": "touch ../outside/made"},
)
job(
    "job_negative",
    "a negative batch size",
    "batch_size Input should be greater than or equal to 1",
    JOB | {"batch_size": -1},
)
job(
    "job_context",
    "a job that says nothing of its place",
    "its context is no context",
    JOB | {"context": {}},
)
job(
    "job_plugin",
    "a plugin that is not there",
    "does not exist",
    JOB | {"plugins": [f"../{CONTROLS}.py"]},
)
job("job_code", "a job planned with other code", "has other code", JOB, code=1)
job("job_requests", "requests that are no Parquet", "cannot be read", JOB, b"PAR1" + bytes(64))


@case(
    "requests that are called ../../outside/made",
    "worker {job}",
    "which is no file name",
    writes=("job",),
)
def job_up(bench: Bench) -> Holes:
    _requests(bench, "../../outside/made")
    return {"job": bench.home / "job"}


@case("a folder that is no job", "worker {job}", "is no job directory")
def job_nothing(bench: Bench) -> Holes:
    return {"job": bench.home}


def sharded(
    name: str, what: str, given: str, says: str, content: str | dict[str, Any], *, code: int = 2
) -> None:
    """A case that is the list of job directories."""

    def make(bench: Bench) -> Holes:
        bench.file(
            "jobs/shards.json", json.dumps(content) if isinstance(content, dict) else content
        )
        return {"jobs": bench.home / "jobs"}

    make.__name__ = name
    case(what, given, says, code=code)(make)


SHARDS: dict[str, Any] = {
    "format": 1,
    "count": 1,
    "command": f"chexgenbench shard {CONTROLS}",
    "generations": [],
}
PART = {"folder": "../../outside", "batches": [0], "n_images": 1, "files": {}}
ASKED = {
    "model": CONTROLS,
    "images": "own",
    "generation": "../../outside",
    "identity": {},
    "n_images": 1,
    "parts": [PART],
}
sharded(
    "shards_broken",
    "a list of job directories that is no JSON",
    "jobs {jobs}",
    "cannot be read",
    "{",
)
sharded(
    "shards_format",
    "one of another release",
    "jobs {jobs}",
    "has format 99",
    SHARDS | {"format": 99},
)
sharded(
    "shards_field",
    "a field that it does not have",
    "jobs {jobs}",
    "is damaged: evil",
    SHARDS | {"evil": 1},
)
sharded(
    "shards_up",
    "a job directory called ../../outside",
    "jobs {jobs}",
    "leads out of its folder",
    SHARDS | {"generations": [ASKED]},
    code=0,
)
sharded(
    "shards_foreign",
    "job directories that this project did not write",
    "merge {jobs}",
    "is not what this project",
    SHARDS | {"generations": [ASKED]},
)


@case("a folder without job directories", "merge {jobs}", "shards.json is missing")
def merge_no_jobs(bench: Bench) -> Holes:
    return {"jobs": bench.outside}


# --- datasets and archives --------------------------------------------------------------------

EXPORTED = "splits validate exported --set {dataset} --set {other}"


def _exported(bench: Bench) -> Holes:
    other = bench.csv(GOOD.replace("one.png", ""))["csv"]
    return {"dataset": "exported.dataset=dataset", "other": f"exported.other={other}"}


def dataset(
    name: str, what: str, says: str, files: Mapping[str, str | bytes], *, apart: int = 0
) -> None:
    """A case that is an exported dataset."""

    def make(bench: Bench) -> Holes:
        for each, content in files.items():
            bench.file(f"dataset/{each}", content)
        return _exported(bench)

    make.__name__ = name
    case(what, EXPORTED, says, apart=apart)(make)


FINDING_CELLS = dict.fromkeys(FINDINGS)
PROVENANCE = json.dumps({"run": "0", "prompts_included": True})


def metadata(**changes: Any) -> str:
    row = {
        "file_name": "one.png",
        "prompt_id": "a",
        "repeat": 0,
        "sha256": "0" * 64,
        "prompt": "A prompt.",
    }
    return json.dumps(row | FINDING_CELLS | changes) + "\n"


group("Datasets and archives")
dataset(
    "dataset_nothing", "a folder that is no dataset", "it has no provenance.json", {"a.txt": "x"}
)
dataset(
    "dataset_broken", "a provenance that is no JSON", "cannot be read", {"provenance.json": "{"}
)
dataset("dataset_list", "a provenance that is a list", "is no dataset", {"provenance.json": "[1]"})
dataset(
    "dataset_deep",
    "a provenance of 100,000 brackets",
    "it is nested too deeply",
    {"provenance.json": "[" * 100_000},
    apart=2,
)
dataset(
    "dataset_bare",
    "a dataset without prompts",
    "was exported without its prompts",
    {"provenance.json": '{"run": "0"}'},
)
dataset(
    "dataset_lines",
    "rows that are no JSON",
    "cannot be read as an exported dataset",
    {"provenance.json": PROVENANCE, "train/metadata.jsonl": "{\n"},
)
dataset(
    "dataset_parquet",
    "a table that is no Parquet",
    "cannot be read as an exported dataset",
    {"provenance.json": PROVENANCE, "data/train-0.parquet": b"PAR1" + bytes(64) + b"PAR1"},
)
dataset(
    "dataset_types",
    "a row whose cells are of other kinds",
    "cannot be read as an exported dataset",
    {
        "provenance.json": PROVENANCE,
        "train/metadata.jsonl": metadata(prompt_id=[1], Edema={"a": 1}),
    },
)
dataset(
    "dataset_up",
    "an image called ../../outside/secret.png",
    "leads out of its folder",
    {
        "provenance.json": PROVENANCE,
        "train/metadata.jsonl": metadata(file_name="../../../outside/secret.png"),
    },
)


@case(
    "an image called ../../../outside/made.png in a Parquet dataset",
    EXPORTED,
    "leads out of its folder",
)
def dataset_parquet_up(bench: Bench) -> Holes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = encoded(_pixels(), "PNG")
    import hashlib

    row = json.loads(
        metadata(file_name="../../../../outside/made.png", sha256=hashlib.sha256(data).hexdigest())
    )
    path = bench.file("dataset/data/train-0.parquet", b"")
    pq.write_table(pa.Table.from_pylist([row | {"image": {"bytes": data, "path": "x"}}]), path)
    bench.file("dataset/provenance.json", PROVENANCE)
    return _exported(bench)


@case("an archive with names ../ in the place of a dataset", EXPORTED, "is no dataset")
def dataset_archive(bench: Bench) -> Holes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        entry = tarfile.TarInfo("../../outside/made")
        file.addfile(entry, io.BytesIO())
    bench.file("dataset", buffer.getvalue())
    return _exported(bench)


OPEN_I = "splits validate open-i --set {table}"


REPORT = """<?xml version="1.0" encoding="utf-8"?><eCitation><uId id="CXR1"/><MedlineCitation>
<Article><Abstract><AbstractText Label="IMPRESSION">Small left effusion.</AbstractText></Abstract>
</Article></MedlineCitation><parentImage id="CXR1_1"><figureId>F1</figureId></parentImage>
</eCitation>"""


def open_i(
    name: str,
    what: str,
    says: str,
    files: Mapping[str, str | bytes | Callable[[], bytes]],
    *,
    apart: int = 0,
) -> None:
    """A case that is a collection of public reports."""

    def make(bench: Bench) -> Holes:
        for each, content in files.items():
            bench.file(f"open_i/{each}", content() if callable(content) else content)
        return {"table": "open-i.projections=open_i/nlmcxr_tsne_pa.csv.gz"}

    make.__name__ = name
    case(what, OPEN_I, says, apart=apart)(make)


BILLION = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {"abcdefghij"[n + 1]} "{f"&{chr(97 + n)};" * 10}">' for n in range(9))
    + "]><eCitation>&j;</eCitation>"
)
open_i(
    "archive_bomb",
    "a table that unpacks to 2 GB",
    "it unpacks to more than",
    {
        "ecgen-radiology/1.xml": REPORT,
        "images/CXR1_1.png": b"x",
        "nlmcxr_tsne_pa.csv.gz": lambda: gzip.compress(bytes(2**20), mtime=0) * 2048,
    },
    apart=2,
)
open_i(
    "archive_cut",
    "a packed table that ends early",
    "cannot be read",
    {
        "ecgen-radiology/1.xml": REPORT,
        "images/CXR1_1.png": b"x",
        "nlmcxr_tsne_pa.csv.gz": lambda: gzip.compress(b"x" * 999, mtime=0)[:-9],
    },
)
open_i(
    "report_entities",
    "a report of entities in each other",
    "1.xml",
    {"ecgen-radiology/1.xml": BILLION, "images/CXR1_1.png": b"x"},
    apart=2,
)
open_i(
    "report_external",
    "a report with an external entity",
    "1.xml",
    {
        "ecgen-radiology/1.xml": '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><eCitation>&a;</eCitation>',
        "images/CXR1_1.png": b"x",
    },
)
open_i(
    "report_broken",
    "a report that is no XML",
    "1.xml",
    {"ecgen-radiology/1.xml": "<eCitation>", "images/CXR1_1.png": b"x"},
)


# --- where results go -------------------------------------------------------------------------

group("Where results go")


@case("a folder that holds something", "dataset export 0000 {out} --home {home}", "mine")
def export_over(bench: Bench) -> Holes:
    home = bench.copy()
    bench.file("mine/a.txt", "mine")
    return {"home": home, "out": bench.home / "mine"}


@case(
    "SQL that reads a file as the choice of images",
    "dataset export 0000 out --where {where} --home {home}",
    "cannot be used",
)
def export_where(bench: Bench) -> Holes:
    return {"home": bench.copy(), "where": "(select count(*) from read_text('/etc/passwd')) > 0"}


@case(
    "a folder in the place of the file",
    "query {sql} --out {out} --home {home}",
    "cannot be written",
)
def out_is_a_folder(bench: Bench) -> Holes:
    (bench.home / "out.csv").mkdir()
    return {"home": bench.copy(), "sql": "select 1", "out": "out.csv"}


@case("a file in the place of the folder", "export tables {out} --home {home}", "out")
def out_is_a_file(bench: Bench) -> Holes:
    return {"home": bench.copy(), "out": bench.file("out", "mine")}


# --- the table --------------------------------------------------------------------------------


def shown(text: str) -> str:
    """A cell of a Markdown table."""
    plain = "".join(sign if sign.isprintable() else " " for sign in text)
    return plain.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def table() -> str:
    """All cases as Markdown, a table a group."""
    parts: list[str] = []
    for name in dict.fromkeys(each.group for each in CASES):
        parts += [f"### {name}", "", "| input | given to | what happens |", "| --- | --- | --- |"]
        for each in CASES:
            if each.group == name:
                given = re.sub(r"\{(\w+)\}", lambda hole: hole[1].upper(), each.given)
                given = given.replace(" --device cpu", "")
                said = "; ".join(f"“{shown(words)}”" for words in each.says if words)
                ends = f"exit {each.code}"
                happens = f"{ends}: {said}" if said else ends
                parts.append(f"| {shown(each.what)} | `{given}` | {happens} |")
        parts.append("")
    refused = sum(each.code == 2 for each in CASES)
    well = sum(each.code == 0 for each in CASES)
    head = (
        f"{len(CASES)} kinds of input: {refused} are refused (exit code 2). {well} end with 0: "
        "they are read as what they are, or a part is left out and it is said why."
    )
    return "\n".join([head, "", *parts]).rstrip()


BEGIN, END = "<!-- hostile -->\n", "<!-- /hostile -->"


def page(text: str) -> str:
    """The page with the table of today between its markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE} lacks the markers {BEGIN.strip()} and {END}")
    return f"{before}{BEGIN}{table()}\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--write", action="store_true", help="write the table into docs/security.md"
    )
    options = parser.parse_args()
    if not options.write:
        print(table())
        return 0
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
