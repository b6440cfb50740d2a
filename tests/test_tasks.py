"""Task metrics: what they ask for is made once, and what they return is kept or refused."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from chexgenbench.errors import UserError
from chexgenbench.splits.prompts import read_prompts
from chexgenbench.types import ImageNeed
from chexgenbench.workflow.tasks import (
    SetImages,
    Tables,
    chosen_rows,
    covers,
    fewest,
    find_copies,
    find_leakage,
    part_of,
)
from chexgenbench_plugins.data import data_folder
from desk import Desk
from image_sets import GAP, image_set, prompt_table

TEST_CSV = data_folder("demo_split") / "DEMO_ANNOTATIONS_TEST.csv"
TRAIN_CSV = data_folder("demo_split") / "DEMO_ANNOTATIONS_TRAIN.csv"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    desk = Desk.new(tmp_path_factory.mktemp("tasks"))
    (desk.home / "gap.py").write_text(GAP)
    return desk


def gap(*more: object) -> tuple[object, ...]:
    return ("run", "--plugin", "gap.py", "--metric", "gap", "--limit", 6, "--device", "cpu", *more)


@pytest.fixture(scope="module")
def finished(desk: Desk) -> Desk:
    done = desk.run(*gap("-m", "oracle", "-m", "memorizer", "--metric", "kid"))
    assert "gap: worked" in done.out
    return desk


@pytest.mark.slow
def test_a_memorizer_repeats_the_images_of_training_prompts(finished: Desk) -> None:
    rows = finished.rows(
        "SELECT model, value, floor, excess, n_real, n_fake, encoder, status FROM scores "
        "WHERE metric = 'gap' ORDER BY model"
    )
    assert [row["model"] for row in rows] == ["memorizer", "oracle"]
    assert float(rows[0]["value"]) == 0 < float(rows[1]["value"])
    assert (rows[0]["n_real"], rows[0]["n_fake"]) == ("6", "12")
    assert float(rows[0]["floor"]) == 2.0 and float(rows[0]["excess"]) == -2.0
    skipped = finished.rows("SELECT * FROM scores WHERE metric = 'gap_edema'")
    assert {(row["status"], row["reason"], row["subset"]) for row in skipped} == {
        ("skipped", "no such rows", "Edema")
    }


def test_pools_values_and_pairs_are_in_the_store(finished: Desk) -> None:
    pools = finished.rows(
        "SELECT model, pool, count(*) AS n, count(DISTINCT i.seed) AS seeds, "
        "count(DISTINCT prompt_id) AS rows FROM pool_images AS i JOIN runs USING (run_id) "
        "JOIN pool_prompts USING (run_id, side, prompt_id) GROUP BY ALL ORDER BY model"
    )
    assert [(row["pool"], row["n"], row["seeds"], row["rows"]) for row in pools] == [
        ("training-6x2", "12", "12", "6")
    ] * 2
    copies = finished.rows(
        "SELECT model, sum(value) AS n FROM sample_scores AS s JOIN pool_images AS i "
        "USING (run_id, image_id) JOIN runs USING (run_id) WHERE metric = 'near_copy' "
        "GROUP BY model ORDER BY model"
    )
    assert [float(row["n"]) for row in copies] == [12, 0]
    own = finished.rows(
        "SELECT count(*) AS n FROM sample_scores JOIN images USING (run_id, image_id) "
        "WHERE metric = 'one'"
    )
    assert own[0]["n"] == "12"
    pairs = finished.rows(
        "SELECT * FROM neighbours JOIN runs USING (run_id) WHERE model = 'memorizer' ORDER BY rank"
    )
    assert [row["rank"] for row in pairs] == ["1", "2", "3"]
    assert {row["flagged"].lower() for row in pairs} == {"true"}
    assert all(row["image_id"].startswith("training-6x2/") for row in pairs)
    assert all(Path(row["path"]).is_file() and Path(row["other_path"]).is_file() for row in pairs)
    assert pairs[0]["other_real"].lower() == "true" and pairs[0]["other_side"] == "training"
    page = (finished.home / "Results" / "report.html").read_text()
    assert "nearest training" in page and "pair flagged" in page


@pytest.mark.slow
def test_the_same_again_makes_nothing_and_another_metric_makes_no_image_again(
    finished: Desk,
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.home.glob("runs/*/*/images/*")}
    finished.run(*gap("-m", "oracle", "-m", "memorizer", "--metric", "kid"))
    finished.run(*gap("-m", "oracle"))
    after = {path: path.stat().st_mtime_ns for path in finished.home.glob("runs/*/*/images/*")}
    assert before == after and len(before) == 2 * (6 + 12)
    dry = finished.run(*gap("-m", "oracle", "--dry-run"))
    assert "oracle, training-6x2: 12 of 12 images cached" in dry.out
    assert "task gap: on training-6x2" in dry.out and "looked at 6 rows" in dry.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [
        ("raise", "failed", "RuntimeError: broken inside"),
        ("skip", "skipped", "not today"),
        ("nan", "failed", "ValueError: it returned nan for 'gap'"),
        ("name", "failed", "ValueError: it returned 'gape', which it does not declare"),
        ("count", "failed", "TypeError: TaskScore 'gap': n_real is None and no count"),
        ("pairs", "failed", "ValueError: the pairs 'nearest_training' name images"),
    ],
)
def test_a_metric_that_fails_is_recorded_and_the_others_stand(
    finished: Desk, fault: str, status: str, reason: str
) -> None:
    finished.run(*gap("-m", "noise", "--metric", "kid", "--set", f"gap.fault={fault}"))
    row = finished.rows(
        "SELECT s.status, s.reason FROM scores AS s JOIN runs AS r USING (run_id) "
        "WHERE r.model = 'noise' AND metric = 'gap' ORDER BY r.created_at DESC LIMIT 1"
    )[0]
    assert row["status"] == status and row["reason"].startswith(reason)
    kid = finished.rows("SELECT s.status FROM scores AS s WHERE model = 'noise' AND metric = 'kid'")
    assert "ok" in {item["status"] for item in kid}


def test_a_metric_that_refuses_its_rows_ends_the_command_before_anything(desk: Desk) -> None:
    done = desk.run(*gap("-m", "oracle", "--set", "gap.fault=check", "--seed", 7), code=2)
    assert "wants more rows" in done.err and "Give it more" in done.err


def test_images_of_ones_own_have_no_pool(finished: Desk) -> None:
    images = finished.rows(
        "SELECT i.generation_id, path, prompt FROM images AS i "
        "JOIN prompts USING (run_id, prompt_id) JOIN runs USING (run_id) WHERE model = 'oracle'"
    )
    folder = finished.home / "runs" / "generations" / images[0]["generation_id"]
    table = finished.home / "prompt_INFO.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "img_savename"])
        writer.writerows((row["prompt"], row["path"]) for row in images)
    options = ("--plugin", "gap.py", "--metric", "gap", "--limit", 6, "--device", "cpu")
    finished.run("evaluate", "--images-csv", table, "--images-dir", folder, *options)
    row = finished.rows(
        "SELECT status, reason FROM scores WHERE model LIKE 'images:%' AND metric = 'gap'"
    )[0]
    assert row["status"] == "skipped"
    assert "images that a model makes" in row["reason"]


def leaky(folder: Path, column: str) -> Path:
    """A copy of the demo split whose test file has two rows with a value of the training file."""
    with TRAIN_CSV.open(newline="") as file:
        training = list(csv.DictReader(file))[:40]
    with TEST_CSV.open(newline="") as file:
        test = list(csv.DictReader(file))[:40]
    for row in (3, 5):
        test[row][column] = training[row + 10][column]
    for name, rows in (("test.csv", test), ("train.csv", training)):
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    return folder


LEAKY = """
from pathlib import Path
from chexgenbench import Split, SplitSource, SplitSpec, hookimpl

class Leaky(Split):
    def source(self):
        here = Path(__file__).parent
        return SplitSource(
            test=here / "test.csv", train=here / "train.csv", images_root=here / "images"
        )

@hookimpl
def chexgenbench_splits():
    yield SplitSpec(name="leaky", summary="Two patients on both sides", load=Leaky)
"""


@pytest.mark.slow
def test_patients_on_both_sides_are_refused_with_the_lines(desk: Desk, tmp_path: Path) -> None:
    folder = leaky(tmp_path, "patientID")
    (folder / "leaky.py").write_text(LEAKY)
    options = gap("-m", "oracle", "--plugin", folder / "leaky.py", "--split", "leaky")
    done = desk.run(*options, code=2)
    assert "overlap in 2 rows" in done.err
    assert re.search(r"line 5 of test.csv and line \d+ of train.csv: the same patient", done.err)
    assert "--allow-leakage" in done.err
    with TRAIN_CSV.open(newline="") as file:
        patients = {row["patientID"] for row in csv.DictReader(file)}
    assert not any(patient in done.err for patient in patients), "a patient's id in a message"
    dry = desk.run(*options, "--allow-leakage", "--dry-run")
    assert "overlap in 2 rows: the scores do not hold" in dry.out
    # A run without task metrics compares nothing across the sides.
    plain = ("run", "-m", "oracle", "--plugin", folder / "leaky.py", "--split", "leaky")
    desk.run(*plain, "--metric", "alignment", "--limit", 3, "--dry-run")


def test_rows_that_repeat_a_prompt_count_where_images_do(tmp_path: Path) -> None:
    """A patient or an image in such a row is on the training side all the same."""
    folder = leaky(tmp_path, "patientID")
    with (folder / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    again = dict(rows[0], id="again", patientID="p-again", path="again.png")
    with (folder / "train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, again.keys())
        writer.writeheader()
        writer.writerows([*rows, again])
    training = read_prompts(folder / "train.csv", name="x", images_root=tmp_path)
    assert "p-again" not in set(training.table["patient_id"])
    assert "p-again" in set(training.every_row().table["patient_id"])
    test = prompt_table(3, patients=["p-again", "b", "c"], images_root=tmp_path)
    found = find_leakage(Tables(test, training, 0))
    assert found == [f"line 2 of test.csv and line {len(rows) + 2} of train.csv: the same patient"]
    every = ImageNeed(side="training", source="real", every_row=True)
    assert len(Tables(test, training, 0).rows(every)) == len(rows) + 1
    assert every.name == "training-every-real"


def test_equal_content_on_both_sides_is_found(tmp_path: Path) -> None:
    sides: dict[str, SetImages] = {}
    for side, keys in (("test", ["a", "b"]), ("training", ["c", "b"])):
        sides[side] = SetImages(
            prompts=prompt_table(2, side=side),
            rows=np.arange(2),
            repeats=np.zeros(2, np.int64),
            ids=["0", "1"],
            keys=keys,
            paths=[tmp_path, tmp_path],
        )
    needs = {ImageNeed(side=side, source="real"): made for side, made in sides.items()}  # type: ignore[arg-type]
    assert find_copies(needs) == ["line 3 of test.csv and line 3 of training.csv: the same image"]


def own_split(folder: Path, spoil: str) -> tuple[object, ...]:
    """Options for a split of the demo's first rows with images of its own, one of them spoilt."""
    images = folder / "images"
    images.mkdir()
    for name, source in (("test.csv", TEST_CSV), ("train.csv", TRAIN_CSV)):
        with source.open(newline="") as file:
            rows = list(csv.DictReader(file))[:10]
        for number, row in enumerate(rows):
            row["path"] = f"{name}-{number}.png"
            noise = np.random.default_rng([number, len(name)]).integers(0, 255, (32, 32))
            Image.fromarray(noise.astype(np.uint8)).save(images / row["path"])
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    chosen = images / "train.csv-3.png"
    if spoil == "missing":
        chosen.unlink()
    elif spoil == "truncated":
        chosen.write_bytes(chosen.read_bytes()[:200])
    elif spoil == "copied":
        chosen.write_bytes((images / "test.csv-2.png").read_bytes())
    without = ', images_root=here / "images"' if spoil == "no images" else "nothing"
    (folder / "leaky.py").write_text(LEAKY.replace(without, ""))
    return ("--plugin", folder / "leaky.py", "--split", "leaky", "-m", "noise")


@pytest.mark.slow
@pytest.mark.parametrize("spoil", ["missing", "truncated"])
def test_a_training_image_that_cannot_be_used_is_named_before_any_is_made(
    desk: Desk, tmp_path: Path, spoil: str
) -> None:
    options = gap(*own_split(tmp_path, spoil), "--set", "gap.prompts=10")
    done = desk.run(*options, "--seed", 3, code=2)
    assert "1 real images of the split cannot be used" in done.err
    assert "line 5 of train.csv" in done.err and "--on-bad-image skip" in done.err
    assert "generate" not in done.err
    done = desk.run(*options, "--seed", 3, "--on-bad-image", "skip")
    assert "1 real images that privacy and utility need cannot be read" in done.out
    row = desk.rows(
        "SELECT s.n_real, r.n_skipped_images FROM scores AS s JOIN runs AS r USING (run_id) "
        "WHERE r.split = 'leaky' AND metric = 'gap' AND r.seed = 3 ORDER BY r.created_at DESC"
    )[0]
    assert (row["n_real"], row["n_skipped_images"]) == ("9", "1")


def test_a_training_image_that_is_a_test_image_is_refused(desk: Desk, tmp_path: Path) -> None:
    options = gap(*own_split(tmp_path, "copied"), "--set", "gap.prompts=10", "--seed", 4)
    done = desk.run(*options, code=2)
    assert "line 4 of test.csv and line 5 of train.csv: the same image" in done.err
    assert "generate" not in done.err


def test_no_image_is_made_for_a_side_without_real_ones(desk: Desk, tmp_path: Path) -> None:
    options = gap(*own_split(tmp_path, "no images"), "--seed", 5)
    done = desk.run(*options, code=2)
    assert "needs real images" in done.err and "--images-root" in done.err


def test_what_a_task_noticed_is_said_of_a_finished_run_too(finished: Desk) -> None:
    again = finished.run(*gap("-m", "oracle", "-m", "memorizer", "--metric", "kid"))
    assert "gap: worked" in again.out
    assert "gap: worked" in (finished.home / "Results" / "report.html").read_text()


def test_several_values_are_set_with_commas(desk: Desk) -> None:
    done = desk.run(
        "run", "-m", "oracle", "--metric", "classification", "--limit", 60, "--dry-run",
        "--set", "classification.ratios=0.5,2", "--set", "classification.regimes=real,synthetik",
        code=2,
    )  # fmt: skip
    assert "synthetik" in done.err and "ratios" not in done.err


def test_the_same_image_on_both_sides_is_found(tmp_path: Path) -> None:
    test = prompt_table(4, side="test", images_root=tmp_path)
    training = prompt_table(6, side="training", images_root=tmp_path)
    assert find_leakage(Tables(test, training, 0)) == []
    frame = training.table.assign(
        image_path=["a", "b", test.table["image_path"].iloc[2], "c", "d", "e"]
    )
    found = find_leakage(Tables(test, replace(training, table=frame), 0))
    assert found == ["line 4 of test.csv and line 4 of training.csv: the same image"]
    assert find_leakage(Tables(test, None, 0)) == []


def test_more_rows_keep_the_fewer_ones_and_another_seed_takes_others() -> None:
    table = prompt_table(50)
    few, many, other = (chosen_rows(table, n, seed) for n, seed in ((5, 0), (20, 0), (20, 1)))
    assert set(few.tolist()) < set(many.tolist()) and len(many) == 20
    assert (np.diff(many) > 0).all()
    assert set(many.tolist()) != set(other.tolist())
    shuffled = table.take(np.random.default_rng(0).permutation(50))
    chosen = [shuffled.table["prompt_id"].iloc[i] for i in chosen_rows(shuffled, 20, 0)]
    assert set(chosen) == {table.table["prompt_id"].iloc[i] for i in many}
    tables = Tables(table, None, 0)
    assert len(tables.rows(ImageNeed(side="test", source="real", prompts=99))) == 50
    with pytest.raises(UserError, match="no training side"):
        tables.rows(ImageNeed(side="training", source="real"))


def test_a_pool_serves_what_it_covers() -> None:
    def need(prompts: int | None, repeats: int = 1, side: Any = "training") -> ImageNeed:
        return ImageNeed(side=side, source="model", prompts=prompts, repeats=repeats)

    wanted = [need(5), need(20), need(3, 2), need(None, side="test"), need(7, side="test"), need(5)]
    assert fewest(wanted) == [need(20), need(3, 2), need(None, side="test")]
    assert covers(need(None), need(9)) and not covers(need(9), need(None))
    assert not covers(need(20), need(3, 2)) and not covers(need(20, side="test"), need(5))

    table = prompt_table(6)
    made = SetImages(
        prompts=table,
        rows=np.repeat(np.arange(6), 3),
        repeats=np.tile(np.arange(3), 6),
        ids=[f"{row}~{k}" for row in range(6) for k in range(3)],
        keys=[f"key {row} {k}" for row in range(6) for k in range(3)],
        paths=[Path(f"{row}-{k}.png") for row in range(6) for k in range(3)],
    )
    rows = table.take(np.asarray([4, 1]))
    part = part_of(made, need(2, 2), rows)
    assert list(part.ids) == ["4~0", "4~1", "1~0", "1~1"]
    assert part.rows.tolist() == [0, 0, 1, 1] and part.repeats.tolist() == [0, 1, 0, 1]
    assert list(part.keys) == ["key 4 0", "key 4 1", "key 1 0", "key 1 1"]


def test_rows_without_a_patient_are_units_of_their_own() -> None:
    made = image_set(
        features=np.ones((6, 2)), patients=["a", None, "a"], repeats=2, source="model", side="test"
    )
    _, counts = np.unique(made.patients, return_counts=True)
    assert sorted(counts.tolist()) == [2, 4]
    chosen: Any = made.take(np.asarray([5, 0]))
    assert chosen.ids == ("test-2~1", "test-0~0") and chosen.features.shape == (2, 2)
