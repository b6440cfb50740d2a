"""The fault harness in short: kills at random, some other faults, two commands at once.

`python tests/faults` does all of it; docs/reliability.md has what it found.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from faults.bench import Bench, differences, leftovers, state, whole
from faults.crowd import at_once, one_after_another
from faults.kills import Whole, at_random
from faults.scenes import SCENES, CannotTry

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Whole]:
    bench = Bench(tmp_path_factory.mktemp("undisturbed"))
    return bench, Whole.measure(bench)


def test_twenty_kills_lose_nothing(tmp_path: Path, undisturbed: tuple[Bench, Whole]) -> None:
    seed = random.randrange(10**6)
    print(f"to replay it: python tests/faults --part kills --kills 20 --seed {seed}")
    tally = at_random(tmp_path, 20, seed, undisturbed[1], print)
    assert not tally.wrong
    assert tally.count >= 20


@pytest.mark.parametrize(
    "name", ("permission_lost", "model_exits", "no_locks", "disk_fills_at_scores")
)
def test_a_fault(name: str, tmp_path: Path, undisturbed: tuple[Bench, Whole]) -> None:
    try:
        SCENES[name].play(Bench(tmp_path), undisturbed[1])
    except CannotTry as error:
        pytest.skip(f"SKIPPED, {error}")


def test_two_at_once_with_a_reader(tmp_path: Path) -> None:
    wanted = one_after_another(tmp_path / "alone", [1, 2])
    crowd = at_once(tmp_path / "crowd", [1, 2], wanted)
    assert not crowd.wrong


# --- the harness itself: a check that cannot fail shows nothing -----------------------------------


def _first(bench: Bench, pattern: str) -> Path:
    return sorted(bench.folder.glob(pattern))[0]


def _image_lost(bench: Bench) -> None:
    _first(bench, "home/runs/generations/*/images/*.png").unlink()


def _image_other(bench: Bench) -> None:
    first, second = sorted(bench.folder.glob("home/runs/generations/*/images/*.png"))[:2]
    shutil.copy(second, first)


def _line_twice(bench: Bench) -> None:
    path = _first(bench, "home/runs/generations/*/manifest.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines, lines[0]]))


def _vector_twice(bench: Bench) -> None:
    path = _first(bench, "cache/features/*/images/part-*.parquet")
    shutil.copy(path, path.with_name("part-twice.parquet"))


def _vector_other(bench: Bench) -> None:
    path = _first(bench, "cache/features/*/images/part-*.parquet")
    table = pq.read_table(path)
    features = table.column("features").combine_chunks()
    values = features.flatten().to_numpy().copy()
    values[0] += 1e-6
    turned = type(features).from_arrays(values, features.type.list_size)
    pq.write_table(table.set_column(1, table.schema.field(1), turned), path)


def _row_lost(bench: Bench) -> None:
    with duckdb.connect(str(bench.store)) as connection:
        one = "select min(image_id) from sample_scores"
        connection.execute(f"delete from sample_scores where image_id in ({one})")


def _score_other(bench: Bench) -> None:
    with duckdb.connect(str(bench.store)) as connection:
        connection.execute("update scores set value = value * (1 + 1e-15) where value is not null")


def _csv_row_twice(bench: Bench) -> None:
    path = bench.home / "Results" / "image_generation_metrics.csv"
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")


@pytest.mark.parametrize(
    "spoil",
    (
        _image_lost,
        _image_other,
        _line_twice,
        _vector_twice,
        _vector_other,
        _row_lost,
        _score_other,
        _csv_row_twice,
    ),
)
def test_what_is_wrong_is_seen(
    spoil: Callable[[Bench], None], tmp_path: Path, undisturbed: tuple[Bench, Whole]
) -> None:
    good, reference = undisturbed
    shutil.copytree(good.folder, tmp_path, dirs_exist_ok=True)
    bench = Bench(tmp_path)
    assert not differences(state(bench), reference.state)
    assert not whole(bench)
    assert not leftovers(bench)
    spoil(bench)
    assert differences(state(bench), reference.state)
    if spoil in (_image_lost, _image_other):
        assert whole(bench)
