"""Damage is named, and made again from what is left; what dead commands leave is found."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chexgenbench.features import HashCache
from chexgenbench.files import Presence, sha256_file
from chexgenbench.home import Home
from chexgenbench.jobs.manifest import MANIFEST, read_manifest, rewrite
from chexgenbench.progress import Progress
from chexgenbench.store.run_directory import read_record, write_record, write_run
from chexgenbench.store.store import Store
from chexgenbench.workflow import leftovers
from chexgenbench.workflow.integrity import repair, verify
from desk import Desk

pytestmark = pytest.mark.slow

SILENT = Progress(quiet=True)
RUN = ("run", "--limit", 24, "--model", "noise", "--model", "memorizer")
SCORES = "select * exclude (created_at) from scores order by all"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    desk = Desk.new(tmp_path_factory.mktemp("finished"))
    desk.run(*RUN)
    return desk


@pytest.fixture
def project(finished: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A copy of a finished project with its cache, which a test may damage."""
    copy = Desk(tmp_path / "home", tmp_path / "cache")
    shutil.copytree(finished.home, copy.home)
    # Real images lie in the cache, and records name them there: those stay where they are.
    shutil.copytree(finished.cache / "features", copy.cache / "features")
    monkeypatch.setenv("CHEXGENBENCH_CACHE", str(copy.cache))
    monkeypatch.delenv("CHEXGENBENCH_HOME", raising=False)
    return copy


def flip(path: Path, at: float = 0.5) -> None:
    """One bit, in a file that keeps its size and its time."""
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 4
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def first(root: Path, pattern: str) -> Path:
    return min(root.glob(pattern))


def files(*roots: Path) -> dict[str, str]:
    """What lies there by content, less the signs of use."""
    return {
        str(path): sha256_file(path)
        for root in roots
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.endswith((".in-use", "lock", "claims"))
    }


def generation(home: Path, model: str) -> Path:
    for path in sorted((home / "runs" / "generations").glob("*/generation.json")):
        if json.loads(path.read_text())["model"]["name"] == model:
            return path.parent
    raise AssertionError(model)


def test_a_sound_project_is_sound(project: Desk) -> None:
    before = files(project.home, project.cache)
    done = project.run("verify")
    assert done.out.startswith("Sound: ")
    assert "48 images" in done.out and "2 runs" in done.out and "1 stores" in done.out
    told = json.loads(project.run("verify", "--json", "--quiet").out)
    assert told["ok"] and not told["damaged"] and not told["unchecked"]
    assert told["checked"]["parts of features"] >= 3
    assert told["checked"]["files of weights"] > 0
    assert files(project.home, project.cache) == before
    assert project.run("repair", "-q").out == done.out


DAMAGE: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "a bit of an image": ("image", "runs/generations/*/images/*.png", flip),
    "an image cut short": (
        "image",
        "runs/generations/*/images/*.png",
        lambda path: path.write_bytes(path.read_bytes()[:100]),
    ),
    "an empty image": ("image", "runs/generations/*/images/*.png", lambda p: p.write_bytes(b"")),
    "a missing image": ("image", "runs/generations/*/images/*.png", Path.unlink),
    "a bit of a manifest": (
        "manifest",
        "runs/generations/*/manifest.jsonl",
        lambda path: path.write_bytes(path.read_bytes().replace(b'"batch"', b'"bauch"', 1)),
    ),
    "a missing manifest": ("manifest", "runs/generations/*/manifest.jsonl", Path.unlink),
    "a bit of a generation's identity": (
        "manifest",
        "runs/generations/*/generation.json",
        lambda path: path.write_text(path.read_text().replace('"float32"', '"float64"')),
    ),
    "a bit of a record": (
        "run",
        "runs/*/run.json",
        lambda path: path.write_text(path.read_text().replace('"n_images": 24', '"n_images": 25')),
    ),
    "a missing record": ("run", "runs/*/run.json", Path.unlink),
    "a bit of the scores": ("run", "runs/*/scores.parquet", lambda path: flip(path, 0.3)),
    "images cut short": (
        "run",
        "runs/*/images.parquet",
        lambda path: path.write_bytes(path.read_bytes()[:500]),
    ),
    "a missing table": ("run", "runs/*/prompts.parquet", Path.unlink),
    "a store cut short": (
        "store",
        "Results/chexgenbench.duckdb",
        lambda path: path.write_bytes(path.read_bytes()[: 1 << 18]),
    ),
    "a missing store": ("store", "Results/chexgenbench.duckdb", Path.unlink),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named_and_made_again(project: Desk, what: str) -> None:
    kind, pattern, damage = DAMAGE[what]
    before, scores = files(project.home), Store(Home(project.home).store).query(SCORES)
    path = first(project.home, pattern)
    damage(path)
    home = Home(project.home)
    found = verify(home, SILENT)
    assert {(fault.kind, fault.place) for fault in found.faults} == {(kind, path)}

    damaged = files(project.home)
    dry = repair(home, SILENT, dry_run=True)
    assert dry.found.faults == found.faults and not dry.done
    assert files(project.home) == damaged

    result = repair(home, SILENT)
    assert result.done and not result.failed
    assert not verify(home, SILENT).faults
    assert Store(home.store).query(SCORES).equals(scores)
    if kind in ("image", "manifest"):
        images = {key: value for key, value in before.items() if key.endswith(".png")}
        assert {key: files(project.home)[key] for key in images} == images
        assert "the same to the bit" in result.done[0]
    # A run that was written again is the one that the same command finds.
    if what == "a bit of a record":
        done = json.loads(project.run(*RUN, "--json", "-q").out)
        assert len(done["reused"]) == 2 and not done["runs"] and not done["images_made"]


def test_what_a_run_alone_keeps_is_lost_and_said(project: Desk) -> None:
    home = Home(project.home)
    path = first(project.home, "runs/*/influences.parquet")
    flip(path, 0.4)
    assert [fault.place for fault in verify(home, SILENT).faults] == [path]
    result = repair(home, SILENT)
    assert "is lost" in result.done[0] and not result.failed
    assert not verify(home, SILENT).faults
    assert read_record(path.parent).status == "finished"


def test_a_lost_run_directory_comes_back_from_the_store(project: Desk) -> None:
    home = Home(project.home)
    folder = first(project.home, "runs/*/run.json").parent
    scores = pq.read_table(folder / "scores.parquet")
    record = read_record(folder)
    shutil.rmtree(folder)
    assert [fault.place for fault in verify(home, SILENT).faults] == [folder]
    assert not repair(home, SILENT).failed
    assert not verify(home, SILENT).faults
    assert pq.read_table(folder / "scores.parquet").equals(scores)
    assert read_record(folder).model_copy(update={"schema_version": 5}) == record


def test_rows_that_are_not_those_of_a_run_directory(project: Desk) -> None:
    home = Home(project.home)
    with duckdb.connect(str(home.store)) as connection:
        connection.execute("UPDATE scores SET value = value + 1e-9 WHERE metric = 'fid'")
    wrong = [fault.wrong for fault in verify(home, SILENT).faults]
    assert len(wrong) == 2 and all("in scores" in each for each in wrong)
    assert not repair(home, SILENT).failed
    assert not verify(home, SILENT).faults


def test_a_run_directory_that_the_store_could_not_take_in_comes_from_the_store(
    project: Desk,
) -> None:
    home = Home(project.home)
    folder = first(project.home, "runs/*/run.json").parent
    record = read_record(folder)
    table = pq.read_table(folder / "prompts.parquet")
    twice = pa.concat_tables([table, table.slice(0, 1)])
    write_run(folder, record, {"prompts": twice})
    (fault,) = verify(home, SILENT).faults
    assert (fault.kind, fault.place) == ("run", folder)
    assert "rows that repeat" in fault.wrong
    result = repair(home, SILENT)
    assert not result.failed and not verify(home, SILENT).faults
    assert len(Store(home.store).run_ids()) == 2
    assert pq.read_table(folder / "prompts.parquet").num_rows == table.num_rows


def test_an_emptied_run_directory_comes_back_from_the_store(project: Desk) -> None:
    home = Home(project.home)
    folder = first(project.home, "runs/*/run.json").parent
    for path in folder.iterdir():
        path.unlink()
    assert [fault.place for fault in verify(home, SILENT).faults] == [folder]
    assert not repair(home, SILENT).failed
    assert not verify(home, SILENT).faults


@pytest.mark.parametrize("path", ["/etc/hostname", "..", "../x.png", "manifest.jsonl", "."])
def test_a_line_that_leads_elsewhere_is_made_again_and_nothing_else_is_touched(
    project: Desk, path: str
) -> None:
    home = Home(project.home)
    folder = generation(project.home, "noise")
    rows = list(read_manifest(folder).values())
    before = files(folder)
    rewrite(folder, MANIFEST, [replace(rows[0], path=path), *rows[1:]])
    (fault,) = verify(home, SILENT).faults
    assert (fault.kind, fault.name) == ("image", rows[0].id)
    assert fault.place.is_relative_to(folder)
    assert not repair(home, SILENT).failed
    assert not verify(home, SILENT).faults
    after = files(folder)
    for name in ("images", "generation.json"):
        assert {k: v for k, v in after.items() if name in k} == {
            k: v for k, v in before.items() if name in k
        }


def test_damage_of_a_run_and_the_store_at_once_loses_no_other_run(project: Desk) -> None:
    home = Home(project.home)
    path = first(project.home, "runs/*/scores.parquet")
    flip(path, 0.3)
    home.store.write_bytes(b"no database" * 1000)
    done = project.run("repair", "--json", "-q", code=1)
    told = json.loads(done.out)
    assert [each["place"] for each in told["failed"]] == [str(path)]
    kept = home.store.with_name("chexgenbench-unreadable.duckdb")
    assert kept.name in told["done"][0] and kept.read_bytes() == b"no database" * 1000
    assert "1 run directories" in told["done"][1]
    left = verify(home, SILENT).faults
    assert [(fault.kind, fault.place) for fault in left] == [("run", path)]


def test_images_that_no_run_can_make_again_stay(project: Desk) -> None:
    home = Home(project.home)
    folder = generation(project.home, "noise")
    image = first(folder, "images/*.png")
    flip(image)
    for path in project.home.glob("runs/*/run.json"):
        if read_record(path.parent).generation_id == folder.name:
            shutil.rmtree(path.parent)
    home.store.unlink()
    before = files(folder)
    done = project.run("repair", code=1, COLUMNS="300")
    assert "Not made again: " in done.out and "no run says" in done.out
    assert files(folder) == before
    # What it says to do works.
    image.unlink()
    project.run("generate", "--limit", 24, "--model", "noise")
    assert not [fault for fault in verify(home, SILENT).faults if fault.kind == "image"]


def test_the_list_tells_a_file_and_what_is_to_be_done(project: Desk) -> None:
    image = first(project.home, "runs/generations/*/images/*.png")
    flip(image)
    done = project.run("verify", "-q", code=1, COLUMNS="200")
    assert str(image.relative_to(project.home)) in done.out
    assert "chexgenbench repair" in done.err
    assert done.out.rstrip().splitlines()[-1].startswith("1 damaged: ")


@pytest.mark.parametrize("side", ["images", "texts"])
def test_features_are_made_again_from_images_and_prompts(project: Desk, side: str) -> None:
    home = Home(project.home)
    parts = sorted(project.cache.glob(f"features/*/{side}/part-*.parquet"))
    vectors = {key: row for part in parts for key, row in rows_of(part).items()}
    for part in parts:
        flip(part, 0.2)
    faults = verify(home, SILENT).faults
    assert {fault.place for fault in faults} == set(parts)
    result = repair(home, SILENT)
    assert not result.failed and f"{len(vectors)} vectors" in result.done[0]
    assert not verify(home, SILENT).faults
    again = sorted(project.cache.glob(f"features/*/{side}/part-*.parquet"))
    found = {key: row for part in again for key, row in rows_of(part).items()}
    assert found == vectors


def rows_of(part: Path) -> dict[str, list[float]]:
    table = pq.read_table(part).to_pydict()
    return dict(zip(table["key"], table["features"], strict=True))


def test_a_run_notices_damaged_features_and_makes_them_again(project: Desk) -> None:
    scores = project.rows(SCORES.replace("run_id, ", ""))
    for part in project.cache.glob("features/*/images/part-*.parquet"):
        flip(part)
    shutil.rmtree(project.home / "Results")
    for path in project.home.glob("runs/*/run.json"):
        shutil.rmtree(path.parent)
    done = project.run(*RUN)
    assert "warning: features of phantom-clip were damaged, and are made again" in done.err
    assert project.rows(SCORES.replace("run_id, ", "")) == scores
    assert "warning" not in project.run(*RUN).err


def test_a_run_does_not_score_an_image_that_was_changed(project: Desk) -> None:
    image = first(generation(project.home, "noise"), "images/*.png")
    HashCache(project.cache / "hashes.sqlite").sha256([image])  # so that its time tells nothing
    flip(image)
    shutil.rmtree(project.home / "Results")
    shutil.rmtree(project.cache / "features")
    for path in project.home.glob("runs/*/run.json"):
        shutil.rmtree(path.parent)
    done = project.run("run", "--limit", 24, "--model", "noise", code=2)
    assert image.name in done.err and "content is not what it was" in done.err
    assert "chexgenbench repair" in done.err


def test_a_store_with_a_damaged_block_says_rebuild(project: Desk) -> None:
    home = Home(project.home)
    data = home.store.read_bytes()
    for at in range(0, len(data), 1 << 12):
        damaged = bytearray(data)
        damaged[at + 99 : at + 103] = b"\xff\x00\xff\x00"
        home.store.write_bytes(damaged)
        done = subprocess.run(
            [sys.executable, "-c", _READ, str(home.store)], capture_output=True, text=True
        )
        assert done.returncode in (0, 2), done.stderr
        if done.returncode == 2:
            assert "store rebuild" in done.stdout
            break
    else:
        raise AssertionError("no damage was noticed")
    project.run("store", "rebuild")
    assert not verify(home, SILENT).faults


_READ = """
import sys
from dataclasses import replace
from pathlib import Path
from chexgenbench.errors import UserError
from chexgenbench.store.store import Store
try:
    for table in ("scores", "images", "prompts", "sample_scores"):
        Store(Path(sys.argv[1])).query(f"SELECT * FROM {table}")
except UserError as error:
    print(error.hint)
    sys.exit(2)
"""


# --- what dead commands leave -----------------------------------------------------------------


def kinds(home: Home) -> set[str]:
    return {left.kind for left in leftovers.find(home)}


def test_a_finished_project_has_no_leftovers(project: Desk) -> None:
    assert leftovers.find(Home(project.home)) == []
    before = files(project.home, project.cache)
    assert "Nothing freed" in project.run("doctor", "--fix").out
    assert files(project.home, project.cache) == before


def test_what_a_killed_run_left_is_named_and_removed(project: Desk) -> None:
    home = Home(project.home)
    process = project.start("run", "--limit", 400, "--model", "oracle", "--model", "noise")
    folder = home.generations
    while process.poll() is None and len(list(folder.glob("*/images/*.png"))) < 48 + 20:
        time.sleep(0.01)
    # While it lives nothing that it holds is a leftover, and nothing of it is removed.
    alive = leftovers.find(home)
    assert not [left for left in alive if left.kind in ("half generation", "record of a run")]
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()

    left = leftovers.find(home)
    assert {"half generation", "record of a run"} <= {each.kind for each in left}
    assert all(each.path.exists() for each in left)
    told = json.loads(project.run("doctor", "--json").out)
    named = [check["detail"] for check in told["checks"] if check["name"] == "leftover"]
    assert any("half generation" in each for each in named)

    # What goes on by the same command is kept unless that is asked for.
    done = json.loads(project.run("doctor", "--fix", "--json").out)
    assert not [each for each in done["leftovers"] if each["unfinished"] and each["removed"]]
    assert kinds(home) == {"half generation", "record of a run"}
    done = json.loads(project.run("doctor", "--fix", "--unfinished", "--json").out)
    assert all(each["removed"] for each in done["leftovers"])
    assert done["freed"] > 10_000
    assert leftovers.find(home) == []
    assert not verify(home, SILENT).faults


def test_each_kind_of_leftover(project: Desk) -> None:
    home = Home(project.home)
    whole = generation(project.home, "noise")
    made: dict[str, list[Path]] = {
        "temporary file": [
            home.results / ".tmp-abc.csv",
            home.results / ".tmp-abc.duckdb",
            home.results / ".tmp-abc.duckdb.wal",
            first(project.home, "runs/*/run.json").parent / ".tmp-x.parquet",
            whole / "images" / ".tmp-x.png",
            first(project.cache, "features/*/images") / ".tmp-x.parquet",
            home.cache / "weights" / "deep" / ".tmp-x.safetensors",
        ],
        "image": [whole / "images" / "SyntheticImg_nobody.png"],
        "job directories": [home.runs / "jobs" / "20260101-000000-00", whole / "shards"],
        "part of a task": [home.cache / "tasks" / "metric-0" / "part"],
        "half environment": [home.cache / "environments" / ".llm-cxr-x1y2z3w4"],
    }
    for kind, paths in made.items():
        for path in paths:
            if kind in ("job directories", "part of a task", "half environment"):
                path.mkdir(parents=True)
                (path / "lock").write_bytes(b"")
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(bytes(1000))
    found = leftovers.find(home)
    assert {(left.kind, left.path) for left in found} == {
        (kind, path) for kind, paths in made.items() for path in paths
    }
    done = project.run("doctor", "--fix", COLUMNS="300")
    assert done.out.count("remove ") == len(found)
    assert "8 kB freed" in done.out.splitlines()[-1]
    assert leftovers.find(home) == []
    assert not verify(home, SILENT).faults


_HOLDER = """
import sys, time
from dataclasses import replace
from pathlib import Path
from chexgenbench.features import FeatureStore
from chexgenbench.files import Presence, atomic_path
from chexgenbench.executors.workplace import folder_of_command
from chexgenbench.jobs.generate import hold
home, cache = Path(sys.argv[1]), Path(sys.argv[2])
generation = Path(sys.argv[3])
with (
    atomic_path(home / "Results" / "x.csv") as temporary,
    folder_of_command(home / "runs" / "jobs") as jobs,
    hold(generation),
):
    (jobs / "job").write_bytes(bytes(1000))
    (generation / "images" / "new.png").write_bytes(bytes(1000))
    store = FeatureStore(Path(sys.argv[4]), {"features": 1})
    store.refresh()
    print("ready", flush=True)
    sys.stdin.readline()
"""


def test_what_a_living_process_holds_is_left_alone(project: Desk) -> None:
    home = Home(project.home)
    folder = generation(project.home, "noise")
    features = first(project.cache, "features/*/images")
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            _HOLDER,
            str(home.root),
            str(home.cache),
            str(folder),
            str(features),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None and holder.stdout.readline() == "ready\n"
    try:
        assert leftovers.find(home) == []
        before = files(project.home, project.cache)
        project.run("doctor", "--fix", "--unfinished")
        done = project.run("cache", "prune", "--to", "0")
        assert f"left as it is: {features.parent.name}" in done.err
        after = files(project.home, project.cache)
        held = {key for key in before if "/texts/" not in key}
        assert {key: after[key] for key in held} == {key: before[key] for key in held}
        listed = json.loads(project.run("cache", "list", "--json").out)
        assert [entry["in_use"] for entry in listed if entry["kind"] == "images"] == [True]
    finally:
        holder.kill()
        holder.communicate()
    # Dead, it holds nothing.
    assert {left.kind for left in leftovers.find(home)} == {
        "temporary file",
        "job directories",
        "image",
    }
    project.run("doctor", "--fix")
    assert leftovers.find(home) == []


def test_a_removal_looks_again_whether_it_is_held(project: Desk) -> None:
    home = Home(project.home)
    path = home.cache / "tasks" / "metric-0" / "part"
    path.mkdir(parents=True)
    (left,) = leftovers.find(home)
    presence = Presence(path.parent)
    assert leftovers.clean(home, [left]) == 0 and path.is_dir()
    presence.close()
    leftovers.clean(home, [left])
    assert not path.exists()


def test_a_removal_looks_again_whether_it_is_a_leftover(project: Desk) -> None:
    """What came into use between the list and the removal stays."""
    home = Home(project.home)
    whole = generation(project.home, "noise")
    rows = list(read_manifest(whole).values())
    rewrite(whole, MANIFEST, rows[:-1])
    (whole / "summary.json").unlink()
    record = read_record(first(project.home, "runs/*/run.json").parent)
    write_record(home.runs / record.run_id, record.model_copy(update={"status": "running"}))
    part = home.cache / "tasks" / "metric-0" / "part"
    part.mkdir(parents=True)
    found = leftovers.find(home)
    assert {left.kind for left in found} == {
        "image",
        "half generation",
        "record of a run",
        "part of a task",
    }
    rewrite(whole, MANIFEST, rows)
    (whole / "summary.json").write_text("{}")
    write_record(home.runs / record.run_id, record)
    (part / "result.json").write_text("{}")
    before = files(project.home, project.cache)
    assert leftovers.clean(home, found, unfinished=True) == 0
    assert files(project.home, project.cache) == before


# --- the size of the cache --------------------------------------------------------------------


def test_the_cache_is_listed_and_pruned(project: Desk) -> None:
    listed = json.loads(project.run("cache", "list", "--json").out)
    assert {entry["kind"] for entry in listed} == {"images", "texts"}
    assert {entry["kind"]: entry["rows"] for entry in listed} == {"images": 72, "texts": 24}
    total = sum(entry["bytes"] for entry in listed)
    table = project.run("cache", "list").out
    assert "50.0 GB" in table and listed[0]["name"] in table
    assert project.run("cache", "prune", code=2).err.startswith("Error: Nothing says")
    before = files(project.cache)
    dry = json.loads(project.run("cache", "prune", "--to", "0", "--dry-run", "--json").out)
    assert dry["bytes"] == total and dry["left"] == 0
    assert files(project.cache) == before
    assert (
        json.loads(project.run("cache", "prune", "--older-than", "1d", "--json").out)["bytes"] == 0
    )
    done = json.loads(project.run("cache", "prune", "--encoder", "phantom-clip", "--json").out)
    assert done["bytes"] == total and done["left"] == 0
    assert project.run("cache", "list", "--json").out.strip() == "[]"
    assert "holds nothing" in project.run("cache", "prune", "--encoder", "x", code=2).err
    # The next run makes them again, and scores the same.
    for path in project.home.glob("runs/*/run.json"):
        shutil.rmtree(path.parent)
    scores = project.rows(SCORES)
    project.run(*RUN)
    assert project.rows(SCORES) == scores


def test_a_run_keeps_the_cache_to_its_size(project: Desk) -> None:
    old = project.cache / "features" / "other-0123456789abcdef" / "images"
    old.mkdir(parents=True)
    part = first(project.cache, "features/phantom-clip-*/images/part-*.parquet")
    shutil.copy(part, old / "part-0.parquet")
    os.utime(old / "part-0.parquet", (1, 1))
    arguments = ("run", "--limit", 24, "--model", "oracle")
    done = project.run(*arguments, CHEXGENBENCH_CACHE_LIMIT="1M")
    assert "of the feature cache removed" not in done.out + done.err
    size = sum(path.stat().st_size for path in project.cache.glob("features/*/*/part-*"))
    done = project.run(*arguments, "--new", CHEXGENBENCH_CACHE_LIMIT=str(size - 1))
    assert "of the feature cache removed" in done.out + done.err
    assert not (old / "part-0.parquet").exists()
    assert list(project.cache.glob("features/phantom-clip-*/images/part-*"))
    done = project.run(*arguments, code=2, CHEXGENBENCH_CACHE_LIMIT="large")
    assert "CHEXGENBENCH_CACHE_LIMIT: 'large' is no size" in done.err
