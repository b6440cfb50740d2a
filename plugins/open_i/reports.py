"""Reports of the collection: Open-I's XML files, or Kaggle's two tables."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

from chexgenbench import UserError
from chexgenbench.files import sha256_bytes

REPORTS_FOLDER = "ecgen-radiology"
REPORTS_TABLE, PROJECTIONS_TABLE = "indiana_reports.csv", "indiana_projections.csv"

_LARGEST_REPORT = 1 << 20
"""Bytes; the longest of Open-I's has 9 kB."""
_LARGEST_TABLE = 1 << 26
_DEEPEST = 64
_SHOWN = 20
_IMAGE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*")
_FRONTAL = {"frontal": "Frontal", "pa": "Frontal", "ap": "Frontal", "lateral": "Lateral"}
_FRONTAL |= {"l": "Lateral", "ll": "Lateral", "rl": "Lateral"}


@dataclass(frozen=True)
class Report:
    """One report of the collection.

    Attributes:
        uid: of the report, which is also all that is known of its patient, such as ``CXR1``.
        mesh: terms of its indexers.
        images: ids of its images, in the order of the report.
    """

    uid: str
    findings: str
    impression: str
    mesh: tuple[str, ...]
    images: tuple[str, ...]


@dataclass(frozen=True)
class Collection:
    """All reports, in the order of their numbers.

    Attributes:
        views: image key (see `image_key`) to ``Frontal`` or ``Lateral``, where a table says so.
        content: hash of the files.
    """

    reports: Sequence[Report]
    views: Mapping[str, str]
    content: str


def image_key(name: str) -> str:
    """What an image is called everywhere: Kaggle drops ``CXR``, and one of two equal numbers.

    >>> image_key("CXR1_1_IM-0001-3001.png"), image_key("1_IM-0001-3001.dcm.png")
    ('1_IM-0001-3001', '1_IM-0001-3001')
    """
    for ending in (".png", ".jpg", ".jpeg", ".dcm"):
        name = name.removesuffix(ending)
    return re.sub(r"^(\d+)_\1_IM-", r"\1_IM-", name.removeprefix("CXR"))


def read_collection(folder: Path, projections: Path | None) -> Collection:
    """The reports below `folder`: ``ecgen-radiology/*.xml`` or ``indiana_reports.csv``.

    Args:
        projections: a table of views beside that of the folder, for Open-I's form has none.

    Raises:
        UserError: nothing of the kind is there, or files that cannot be used, by name and without
            their text.
    """
    if not folder.is_dir():
        raise UserError(f"The folder of the collection is not there: {folder}.", hint=HOW_TO_GET)
    xml = next((p for p in (folder / REPORTS_FOLDER, folder) if any(p.glob("*.xml"))), None)
    table = folder / REPORTS_TABLE
    if xml is not None:
        reports, content = _read_xml(sorted(xml.glob("*.xml"), key=_number))
    elif table.is_file():
        projections = projections or folder / PROJECTIONS_TABLE
        reports, content = _read_kaggle(table, projections)
    else:
        packed = sorted(path.name for path in folder.glob("*.tgz"))
        raise UserError(
            f"{folder} holds neither {REPORTS_FOLDER}/*.xml nor {REPORTS_TABLE}"
            + (f", but {', '.join(packed)}, which is still packed." if packed else "."),
            hint=HOW_TO_GET,
        )
    views: dict[str, str] = {}
    if projections is not None:
        views, hashed = _read_views(projections)
        content = sha256_bytes(f"{content}{hashed}".encode())
    return Collection(reports, views, content)


HOW_TO_GET = (
    "Get NLMCXR_reports.tgz and NLMCXR_png.tgz from https://openi.nlm.nih.gov/faq#collection and "
    "unpack them: tar -xzf NLMCXR_reports.tgz; mkdir images; tar -xzf NLMCXR_png.tgz -C images. "
    "docs/open_i.md tells the rest."
)


def _number(path: Path) -> tuple[int, str]:
    return (int(path.stem) if path.stem.isdecimal() else 1 << 62, path.name)


# --- Open-I's files --------------------------------------------------------------------------


def _read_xml(paths: Sequence[Path]) -> tuple[list[Report], str]:
    reports: list[Report] = []
    faults: list[tuple[str, str]] = []
    hashes: list[str] = []
    reports_of: dict[str, str] = {}
    images_of: dict[str, str] = {}
    for path in paths:
        try:
            if path.stat().st_size > _LARGEST_REPORT:
                raise ValueError(f"it is larger than {_LARGEST_REPORT >> 20} MiB")
            data = path.read_bytes()
            report = _parse(data)
            if (other := reports_of.setdefault(report.uid, path.name)) != path.name:
                raise ValueError(f"its id is that of {other}")
            for image in report.images:
                if (other := images_of.setdefault(image_key(image), path.name)) != path.name:
                    raise ValueError(f"an image of it is one of {other}")
        except ValueError as error:
            faults.append((path.name, str(error)))
        except OSError as error:
            faults.append((path.name, f"it cannot be read: {error.strerror}"))
        else:
            hashes.append(sha256_bytes(data))
            reports.append(report)
    if faults:
        raise _faulty("reports", paths[0].parent, faults)
    return reports, sha256_bytes("".join(hashes).encode())


def _faulty(what: str, folder: Path, faults: Sequence[tuple[str, str]]) -> UserError:
    listed = [f"{name}: {fault}" for name, fault in faults[:_SHOWN]]
    more = f"\n... and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    return UserError(
        f"{len(faults)} {what} in {folder} cannot be used:\n" + "\n".join(listed) + more,
        hint="Unpack NLMCXR_reports.tgz again, or take these files out of the folder.",
    )


class _Handler:
    """Collects a report from the events of the parser; anything but plain elements is refused."""

    def __init__(self) -> None:
        self.uid = ""
        self.sections: dict[str, list[str]] = {}
        self.mesh: list[str] = []
        self.images: list[str] = []
        self._open: list[str] = []
        self._text: list[str] = []
        self._section = ""

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if not self._open and tag != "eCitation":
            raise ValueError("it is no report of the collection: it does not begin with eCitation")
        self._open.append(tag)
        if len(self._open) > _DEEPEST:
            raise ValueError(f"it nests more than {_DEEPEST} elements")
        self._text = []
        if tag == "uId":
            self.uid = attributes.get("id", "")
        elif tag == "AbstractText":
            self._section = attributes.get("Label", "").upper()
        elif tag == "parentImage":
            self.images.append(attributes.get("id", ""))

    def text(self, data: str) -> None:
        self._text.append(data)

    def end(self, tag: str) -> None:
        self._open.pop()
        text = " ".join("".join(self._text).split())
        if tag == "AbstractText" and text:
            self.sections.setdefault(self._section, []).append(text)
        elif tag == "major" and text:
            self.mesh.append(text)
        self._text = []

    def refuse(self, *_: object) -> None:
        raise ValueError("it declares a document type or entities, which no report needs")


def _parse(data: bytes) -> Report:
    """Raises `ValueError` with a reason that repeats no text of the report."""
    found = _Handler()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = found.start
    parser.EndElementHandler = found.end
    parser.CharacterDataHandler = found.text
    # Entities that grow, and those that name files, can only be declared in a document type.
    parser.StartDoctypeDeclHandler = found.refuse
    parser.EntityDeclHandler = found.refuse
    parser.ExternalEntityRefHandler = found.refuse
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        reason = expat.errors.messages.get(error.code, "unknown")
        raise ValueError(f"line {error.lineno} is not XML: {reason}") from error
    if not re.fullmatch(r"[A-Za-z0-9_-]+", found.uid):
        raise ValueError("it has no id (uId) of letters and digits")
    if not all(map(_IMAGE_ID.fullmatch, found.images)):
        raise ValueError("the id of an image is no file name")
    return Report(
        uid=found.uid,
        findings=" ".join(found.sections.get("FINDINGS", ())),
        impression=" ".join(found.sections.get("IMPRESSION", ())),
        mesh=tuple(found.mesh),
        images=tuple(dict.fromkeys(found.images)),
    )


# --- Kaggle's tables -------------------------------------------------------------------------


def _read_kaggle(table: Path, projections: Path) -> tuple[list[Report], str]:
    rows, hashed = _rows(table, ("uid", "MeSH", "findings", "impression"))
    images, _ = _rows(projections, ("uid", "filename", "projection"))
    images_of: dict[str, list[str]] = {}
    faults: list[tuple[str, str]] = []
    known: dict[str, int] = {}
    for line, row in images:
        name = row["filename"].strip()
        if not _IMAGE_ID.fullmatch(name):
            faults.append((f"{projections.name}, line {line}", "filename is no file name"))
        elif known.setdefault(name, line) != line:
            faults.append((f"{projections.name}, line {line}", f"repeats line {known[name]}"))
        images_of.setdefault(row["uid"].strip(), []).append(name)
    reports: list[Report] = []
    lines: dict[str, int] = {}
    for line, row in rows:
        uid = row["uid"].strip()
        if not re.fullmatch(r"[A-Za-z0-9_-]+", uid):
            faults.append((f"{table.name}, line {line}", "uid is none of letters and digits"))
        elif lines.setdefault(uid, line) != line:
            faults.append((f"{table.name}, line {line}", f"its uid is that of line {lines[uid]}"))
        reports.append(
            Report(
                uid=f"CXR{uid}",
                findings=" ".join(row["findings"].split()),
                impression=" ".join(row["impression"].split()),
                mesh=tuple(term.strip() for term in row["MeSH"].split(";") if term.strip()),
                images=tuple(images_of.get(uid, ())),
            )
        )
    if faults:
        raise _faulty("rows", table.parent, faults)
    return reports, hashed


def _read_views(path: Path) -> tuple[dict[str, str], str]:
    """Views by image, and the hash of the table: Kaggle's, or that of torchxrayvision."""
    names, kinds = ("filename", "imageid"), ("projection", "tsne-view")
    rows, hashed = _rows(path, ())
    header = rows[0][1].keys() if rows else ()
    name = next((column for column in names if column in header), None)
    kind = next((column for column in kinds if column in header), None)
    if name is None or kind is None:
        raise UserError(
            f"{path} is no table of views: it has {', '.join(header) or 'no rows'}.",
            hint=f"It needs a column {' or '.join(names)}, and a column {' or '.join(kinds)}.",
        )
    views: dict[str, str] = {}
    for line, row in rows:
        view = _FRONTAL.get(row[kind].strip().lower())
        if row[kind].strip() and view is None:
            raise UserError(f"{path}, line {line}: {kind} is neither frontal nor lateral.")
        if view is not None:
            views[image_key(row[name].strip())] = view
    return views, hashed


def _rows(path: Path, needed: Sequence[str]) -> tuple[list[tuple[int, dict[str, str]]], str]:
    """Line and cells of each row of a CSV file, which may be packed with gzip, and its hash."""
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = _unpack(data)
    except FileNotFoundError as error:
        raise UserError(f"The file {path} does not exist.") from error
    except (OSError, EOFError, zlib.error, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"The file {path} cannot be read: {reason}.") from error
    try:
        rows = list(_records(data.decode("utf-8-sig")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no CSV file in UTF-8: {type(error).__name__}.") from error
    except ValueError as error:
        raise UserError(f"{path}, {error}.") from error
    missing = [name for name in needed if not rows or name not in rows[0][1]]
    if missing:
        raise UserError(f"{path} has no rows, or lacks the column {', '.join(missing)}.")
    return rows, sha256_bytes(data)


def _records(text: str) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = next(reader, [])
    start = reader.line_num + 1
    for row in reader:
        if row:
            if len(row) != len(header):
                raise ValueError(f"line {start}: {len(row)} cells, the header has {len(header)}")
            yield start, dict(zip(header, row, strict=True))
        start = reader.line_num + 1


def _unpack(data: bytes) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        unpacked = file.read(_LARGEST_TABLE + 1)
    if len(unpacked) > _LARGEST_TABLE:
        raise ValueError(f"it unpacks to more than {_LARGEST_TABLE >> 20} MiB")
    return unpacked
