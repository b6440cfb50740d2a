"""The console script at work in a folder of its own, faults for it, and all that it leaves."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sysconfig
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent
PLUGIN = HERE / "plugin.py"
SCRIPT = Path(sysconfig.get_path("scripts")) / "chexgenbench"

SMALL: tuple[str, ...] = (
    *("run", "--plugin", str(PLUGIN), "--device", "cpu", "--limit", "24"),
    *("--model", "blend", "--model", "dots", "--encoder", "grid"),
    *("--metric", "kid", "--metric", "alignment"),
)
"""A whole run: two models, an encoder, a metric of sets and one of samples, 48 images, the page."""

IMAGES = 48

LONGEST = 240.0
"""Seconds after which a command hangs."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `site/sitecustomize.py` does in the process, and at which event.

    Attributes:
        act: ``none``, the name of a signal, the name of an error number, ``torn`` (cuts the file
            and kills), ``late`` (kills after `amount` seconds), ``clock`` (it goes back by `amount`
            seconds; needs `site/clock.c`, preloaded).
        event, match: the events that count: their kind (empty: any) and a pattern in the path.
        nth: the event of those at which the fault comes.
        always: an error at every such event, not at one.
        where: ``command`` or ``worker``; empty is both.
        locks: the error of every lock.
        note: a file that always holds the number, kind and path of the last event.
        waits: a file that gets a line for each lock, with the seconds it was waited for.
    """

    act: str = "none"
    event: str = ""
    match: str = ""
    nth: int = 0
    always: bool = False
    where: str = "command"
    amount: float = 0.0
    locks: str = ""
    note: str = ""
    waits: str = ""


@dataclass
class Ended:
    """A process that ended, by itself or not."""

    code: int
    out: str
    err: str
    seconds: float

    def shown(self) -> str:
        return f"exit {self.code} after {self.seconds:.1f} s\n{self.out}\n{self.err}"


@dataclass
class Bench:
    """A home and a cache below one folder, or on a disk of their own."""

    folder: Path
    disk: Path | None = None
    home: Path = field(init=False)
    cache: Path = field(init=False)

    def __post_init__(self) -> None:
        place = self.disk or self.folder
        self.home, self.cache = place / "home", place / "cache"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.home.mkdir(parents=True, exist_ok=True)

    @property
    def store(self) -> Path:
        return self.home / "Results" / "chexgenbench.duckdb"

    @property
    def note(self) -> Path:
        return self.folder / "note"

    def start(
        self,
        *words: object,
        plan: Plan | None = None,
        preload: Path | None = None,
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Starts the command; its output goes to files, so that nobody needs to read it."""
        environment = {
            **os.environ,
            "CHEXGENBENCH_CACHE": str(self.cache),
            "COLUMNS": "80",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        if plan is not None:
            roots = [f"{self.home}/", f"{self.cache}/"]
            environment["CHEXGENBENCH_FAULT"] = json.dumps({**asdict(plan), "roots": roots})
            paths = [str(HERE / "site"), os.environ.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        if preload is not None:
            environment["LD_PRELOAD"] = str(preload)
        with (self.folder / "out").open("w") as out, (self.folder / "err").open("w") as err:
            return subprocess.Popen(
                [str(SCRIPT), *map(str, words)],
                cwd=self.home,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                text=True,
                **options,
            )

    def wait(self, process: subprocess.Popen[str], begun: float) -> Ended:
        """Its end; one that hangs is a fault."""
        try:
            code = process.wait(LONGEST)
        except subprocess.TimeoutExpired:
            end_all(process)
            raise AssertionError(f"it hangs\n{self._said().shown()}") from None
        said = self._said()
        return Ended(code, said.out, said.err, time.monotonic() - begun)

    def run(self, *words: object, plan: Plan | None = None, **options: Any) -> Ended:
        begun = time.monotonic()
        return self.wait(self.start(*words, plan=plan, **options), begun)

    def well(self, *words: object, **options: Any) -> Ended:
        """The command, which must end with 0."""
        done = self.run(*words, **options)
        assert done.code == 0, done.shown()
        return done

    def rows(self, sql: str) -> list[dict[str, str]]:
        out = self.well("query", sql, "--format", "csv").out
        return list(csv.DictReader(out.splitlines()))

    def last_event(self) -> tuple[int, str]:
        """Number of the last event of the last command with `note`, and its kind and path."""
        text = self.note.read_text().strip() if self.note.exists() else ""
        if not text:
            return 0, ""
        number, _, what = text.partition(" ")
        return int(number), what

    def remove(self) -> None:
        shutil.rmtree(self.folder)

    def _said(self) -> Ended:
        return Ended(-1, (self.folder / "out").read_text(), (self.folder / "err").read_text(), 0.0)


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The worker processes that a command has started."""
    found = []
    with suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                if "chexgenbench.jobs.worker" in child.cmdline():
                    found.append(child)
    return found


def end_all(process: subprocess.Popen[str]) -> None:
    """Ends a process and all that it started, by SIGKILL."""
    with suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    process.kill()
    process.wait()


# --- what is there -------------------------------------------------------------------------------

_TIMES = {
    *("seconds", "memory", "worker", "process", "seconds_generating", "images_per_second"),
    *("peak_memory", "workers", "hardware", "created_at", "finished_at", "used_at"),
    "applied_at",
}
"""What two undisturbed runs do not have in common."""

Rows = Counter[tuple[tuple[str, str], ...]]


@dataclass
class State:
    """All that commands have left in a home and its cache, without times and without an order.

    Attributes:
        images: path to SHA-256.
        manifests: folder to rows.
        features: encoder's folder and side to keys with the bytes of their vectors.
        tables: table of the store, or ``run/table`` of a run directory, to rows.
        csvs: file to rows.
    """

    images: dict[str, str] = field(default_factory=dict)
    manifests: dict[str, Rows] = field(default_factory=dict)
    features: dict[str, Counter[tuple[str, bytes]]] = field(default_factory=dict)
    tables: dict[str, Rows] = field(default_factory=dict)
    csvs: dict[str, Rows] = field(default_factory=dict)


def _rows(table: pa.Table) -> Rows:
    names = [name for name in table.column_names if name not in _TIMES]
    columns = [map(repr, table.column(name).to_pylist()) for name in names]
    return Counter(
        tuple(
            (name, text.rpartition("/cache/")[2] if name == "images_root" else text)
            for name, text in zip(names, row, strict=True)
        )
        for row in zip(*columns, strict=True)
    )


def _directed(table: pa.Table) -> pa.Table:
    """Differences from the lesser run to the greater: which of two ran last is no matter."""
    turned = []
    for row in table.to_pylist():
        if row["run_id"] > row["other_run"]:
            row["run_id"], row["other_run"] = row["other_run"], row["run_id"]
            low, high = row["ci_low"], row["ci_high"]
            row["ci_low"], row["ci_high"] = (None if x is None else -x for x in (high, low))
            row["difference"] = None if row["difference"] is None else -row["difference"]
        turned.append(row)
    return pa.Table.from_pylist(turned, schema=table.schema)


def manifest_lines(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of a generation's manifest and its parts."""
    lines: list[dict[str, Any]] = []
    for path in sorted(folder.glob("manifest*.jsonl")):
        with suppress(FileNotFoundError):  # gathered just now
            text = path.read_bytes()
            lines += [json.loads(line) for line in text.split(b"\n")[:-1]]
    return lines


def stored(cache: Path) -> dict[str, Counter[tuple[str, bytes]]]:
    """Encoder's folder and side to keys with the bytes of their vectors; one each, or too many."""
    found: dict[str, Counter[tuple[str, bytes]]] = {}
    for path in sorted(cache.glob("features/*/*/part-*.parquet")):
        table = pq.read_table(path)
        rows = found.setdefault(f"{path.parent.parent.name}/{path.parent.name}", Counter())
        names = sorted(set(table.column_names) - {"key"})
        for row in range(table.num_rows):
            values = [repr(table.column(name)[row].as_py()).encode() for name in names]
            rows[table.column("key")[row].as_py(), b"|".join(values)] += 1
    return found


def state(bench: Bench) -> State:
    """What stands there now, read without the product."""
    found = State(features=stored(bench.cache))
    for folder in sorted(bench.home.glob("runs/generations/*")):
        for path in sorted((folder / "images").glob("[!.]*")):
            name = str(path.relative_to(bench.home))
            found.images[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        rows = [
            tuple(sorted((k, repr(v)) for k, v in line.items() if k not in _TIMES))
            for line in manifest_lines(folder)
        ]
        found.manifests[folder.name] = Counter(rows)
    for folder in sorted(bench.home.glob("runs/*")):
        for path in sorted(folder.glob("[!.]*.parquet")):
            table = pq.read_table(path, partitioning=None)
            if path.stem == "differences":
                rows_of = found.tables.setdefault("runs/differences", Counter())
                rows_of.update(_rows(_directed(table)))
            else:
                found.tables[f"{folder.name}/{path.stem}"] = _rows(table)
    if bench.store.exists():
        with duckdb.connect(str(bench.store), read_only=True) as connection:
            names = connection.execute("select table_name from duckdb_tables()").fetchall()
            for (name,) in names:
                table = connection.sql(f'from "{name}"').to_arrow_table()
                table = _directed(table) if name == "differences" else table
                found.tables[f"store/{name}"] = _rows(table)
    for path in sorted(bench.home.glob("Results/[!.]*.csv")):
        with path.open(newline="") as file:
            found.csvs[path.name] = Counter(
                tuple(sorted(row.items())) for row in csv.DictReader(file)
            )
    return found


def differences(found: State, wanted: State, *, shared: bool = False) -> list[str]:
    """What is not as after an undisturbed run, in words; nothing where all is equal to the bit.

    Args:
        shared: several commands worked at once: two may have encoded one image, with one result.
    """
    said = []
    for name in ("images", "manifests", "tables", "csvs"):
        a: Mapping[str, Any] = getattr(found, name)
        b: Mapping[str, Any] = getattr(wanted, name)
        if lacking := sorted(set(b) - set(a)):
            said.append(f"{name} lacking: {lacking[:5]}")
        if surplus := sorted(set(a) - set(b)):
            said.append(f"{name} too many: {surplus[:5]}")
        said += [
            f"{name} {key} differs: {_apart(a[key], b[key])}"
            for key in sorted(set(a) & set(b))
            if a[key] != b[key]
        ]
    for folder in sorted(set(found.features) | set(wanted.features)):
        mine, theirs = found.features.get(folder, Counter()), wanted.features.get(folder, Counter())
        if set(mine) != set(theirs):
            said.append(f"features {folder}: {len(mine)} vectors, {len(theirs)} wanted, or others")
        if not shared and any(count > 1 for count in mine.values()):
            said.append(f"features {folder}: a vector stands twice")
    return said


def _apart(found: Any, wanted: Any) -> str:
    """The first row that is lacking and the first that is too many, where they differ."""
    if not isinstance(found, Counter):
        return f"{found} where {wanted} is wanted"
    lost, gained = list((wanted - found).elements()), list((found - wanted).elements())
    if not lost or not gained:
        return f"{len(lost)} rows lacking {lost[:1]}, {len(gained)} too many {gained[:1]}"
    near = min(gained, key=lambda row: len(set(row) ^ set(lost[0])))
    pairs = sorted(set(lost[0]) - set(near)), sorted(set(near) - set(lost[0]))
    return f"{len(lost)} rows; {pairs[1]} where {pairs[0]} is wanted"


def leftovers(bench: Bench) -> list[Path]:
    """Temporary files that nobody will rename any more."""
    found = [path for root in (bench.home, bench.cache) for path in root.rglob(".tmp-*")]
    return sorted(path.relative_to(bench.folder) for path in found)


def whole(bench: Bench) -> list[str]:
    """What is broken at any moment, also just after a kill; nothing where all is well.

    Every line of a manifest has its image, whole; every finished run has its tables; every part of
    the features can be read; and the store opens and answers.
    """
    said: list[str] = []
    for folder in bench.home.glob("runs/generations/*"):
        ids: list[str] = []
        for line in manifest_lines(folder):
            ids.append(line["id"])
            path = folder / line["path"]
            if not path.is_file():
                said.append(f"{path} stands in the manifest and is not there")
            elif hashlib.sha256(path.read_bytes()).hexdigest() != line["sha256"]:
                said.append(f"{path} is not what the manifest says")
    for path in bench.home.glob("runs/*/run.json"):
        record = json.loads(path.read_text())
        if record["status"] == "finished":
            for name in ("scores", "images", "prompts", "sample_scores", "influences"):
                try:
                    pq.read_table(path.parent / f"{name}.parquet", partitioning=None)
                except (OSError, pa.ArrowException) as error:
                    said.append(f"{path.parent.name} is finished without its {name}: {error}")
    try:
        stored(bench.cache)
    except (OSError, pa.ArrowException) as error:
        said.append(f"features cannot be read: {error}")
    if bench.store.exists():
        try:
            with duckdb.connect(str(bench.store), read_only=True) as connection:
                connection.execute("select count(*) from leaderboard").fetchall()
                twice = "select count(*) - count(distinct run_id) from runs"
                if connection.execute(twice).fetchall() != [(0,)]:
                    said.append("the store has a run twice")
        except duckdb.Error as error:
            said.append(f"the store cannot be read: {error}")
    return said


def made(bench: Bench) -> dict[Path, int]:
    """The images that stand in a manifest, with the time of their file: one that is made again has
    another."""
    return {
        folder / line["path"]: (folder / line["path"]).stat().st_mtime_ns
        for folder in bench.home.glob("runs/generations/*")
        for line in manifest_lines(folder)
        if (folder / line["path"]).exists()
    }


_STAGES = (
    ("real images", r"/cache/phantom/"),
    ("hashes", r"/hashes\.sqlite"),
    ("features", r"/cache/features/"),
    ("image files", r"/images/"),
    ("manifest and its like", r"/runs/generations/"),
    ("run directory", r"/home/runs/"),
    ("store", r"\.duckdb|\.ingest$"),
    ("CSV files", r"Results/.*csv"),
    ("page", r"report\.html|/cache/vega/|/Results/\.tmp-[^/]*\.html"),
)

BEFORE = "before the first write"
CHECK = "the check that folders can be written"


def stage_of(event: str) -> str:
    """Where a process was, by its last event."""
    if not event:
        return BEFORE
    for name, pattern in _STAGES:
        if re.search(pattern, event):
            return name
    return CHECK  # by a file without a name


def stages() -> Sequence[str]:
    return (BEFORE, CHECK, *(name for name, _ in _STAGES))
