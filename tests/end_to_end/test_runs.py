"""Real processes: killed, failing, resumed, in other batches, with other people's files."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chexgenbench_plugins.data import data_folder
from desk import Desk

pytestmark = pytest.mark.slow

SMALL = ("run", "--limit", 90, "--model", "oracle", "--model", "phantom-diffusion")
SMALL = (*SMALL, "--set", "phantom-diffusion.steps=2")
METRIC = "inception-score"
"""It needs no real images."""

SCORES = "select * exclude (created_at) from scores order by all"


def manifests(home: Path) -> dict[str, list[dict]]:
    return {
        path.parent.name: [
            {k: v for k, v in json.loads(line).items() if k not in ("seconds", "memory")}
            for line in path.read_text().splitlines()
        ]
        for path in home.glob("runs/generations/*/manifest.jsonl")
    }


def test_killed_at_three_moments_the_scores_are_the_same_to_the_bit(tmp_path: Path) -> None:
    whole, killed = Desk.new(tmp_path / "whole"), Desk.new(tmp_path / "killed")
    whole.run(*SMALL)
    generations = killed.home / "runs" / "generations"
    moments: list[tuple[str, Callable[[], bool]]] = [
        ("features", lambda: any(killed.cache.rglob("part-*.parquet"))),
        ("images", lambda: len(list(generations.glob("*/images/*.png"))) > 100),
        ("store", lambda: len(list(killed.home.glob("runs/*/scores.parquet"))) == 2),
    ]
    for name, come in moments:
        process = killed.start(*SMALL)
        while process.poll() is None and not come():
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, f"too late for {name}"
    killed.run(*SMALL)
    assert killed.rows(SCORES) == whole.rows(SCORES)
    lines = manifests(killed.home)
    assert lines == manifests(whole.home)
    for rows in lines.values():
        assert len({row["id"] for row in rows}) == len(rows) == 90
    assert not list((killed.home / "runs" / "generations").rglob(".tmp-*"))


def test_interrupted_it_says_how_to_go_on(desk: Desk) -> None:
    process = desk.start(*SMALL)
    while process.poll() is None and not any(desk.home.glob("runs/generations/*/images/*.png")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "same command goes on" in err
    assert "Traceback" not in err


def test_encoding_batches_do_not_change_scores(tmp_path: Path) -> None:
    found = {}
    first = Desk.new(tmp_path / "images")
    options = ("--limit", 90, "--model", "phantom-diffusion", "--set", "steps=2")
    first.run("generate", *options)
    sql = "select metric, subset, value from scores where status = 'ok' order by all"
    for batch in (1, 7, 32):
        desk = Desk.new(tmp_path / str(batch))
        shutil.copytree(first.home / "runs", desk.home / "runs")
        done = desk.run("run", *options, "--encode-batch-size", batch)
        assert "generate" not in done.err
        found[batch] = {
            (row["metric"], row["subset"]): float(row["value"]) for row in desk.rows(sql)
        }
    assert found[1].keys() == found[7].keys() == found[32].keys()
    assert len({value for (metric, _), value in found[32].items() if metric == "kid"}) == 16
    for batch in (1, 7):
        for key, value in found[32].items():
            assert found[batch][key] == pytest.approx(value, rel=1e-5), key


def images(desk: Desk) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in desk.home.glob("runs/generations/*/images/*.png")}


def test_generation_batches(tmp_path: Path) -> None:
    """With --exact bit-identical; without, at most one grey level apart in a few pixels."""
    import numpy as np
    from PIL import Image

    made: dict[tuple[bool, int], dict[str, bytes]] = {}
    pixels: dict[tuple[bool, int], np.ndarray] = {}
    for exact in (True, False):
        for batch in (1, 7, 32):
            desk = Desk.new(tmp_path / f"{exact}-{batch}")
            options = ("--model", "phantom-diffusion", "--set", "steps=4", "--limit", 33)
            flags = ("--exact",) if exact else ()
            desk.run("generate", *options, "--batch-size", batch, *flags)
            made[exact, batch] = images(desk)
            files = sorted(desk.home.glob("runs/generations/*/images/*.png"))
            stack = [np.asarray(Image.open(path), np.int16) for path in files]
            pixels[exact, batch] = np.stack(stack)
    assert made[True, 1] == made[True, 7] == made[True, 32] == made[False, 1]
    for batch in (7, 32):
        difference = np.abs(pixels[False, batch] - pixels[False, 1])
        assert difference.max() <= 1
        assert (difference > 0).mean() < 1e-3


BROKEN = """
from chexgenbench import Model, ModelSpec, hookimpl
class Broken(Model):
    def generate(self, requests):
        raise FileNotFoundError("the weights are haunted")
class Unloadable(Model):
    def __init__(self, parameters, context):
        raise KeyError("no such layer")
    def generate(self, requests):
        return []
@hookimpl
def chexgenbench_models():
    yield ModelSpec(name="broken", summary="fails", load=Broken)
    yield ModelSpec(name="unloadable", summary="fails earlier", load=Unloadable)
    yield ModelSpec(name="absent", summary="fails first", load="not_a_module:Model")
"""


def test_one_model_fails_and_the_others_stand(desk: Desk) -> None:
    path = desk.home / "broken.py"
    path.write_text(BROKEN)
    options = ("run", "--limit", 30, "--plugin", path)
    failing = [word for name in ("broken", "unloadable", "absent") for word in ("-m", name)]
    done = desk.run(*options, *failing, "--model", "noise", code=1)
    for reason in ("haunted", "no such layer", "not_a_module"):
        assert reason in done.err
    assert "noise" in done.out
    rows = desk.rows("select model, status, reason from runs order by model")
    assert [(row["model"], row["status"]) for row in rows] == [
        ("broken", "failed"),
        ("noise", "finished"),
        ("unloadable", "failed"),
    ]
    assert "haunted" in rows[0]["reason"]
    assert desk.rows("select distinct model from leaderboard") == [{"model": "noise"}]


CHECKERS = '''"""A third-party model: the whole file."""

import numpy as np
from pydantic import Field

from chexgenbench import Model, ModelSpec, Parameters, hookimpl


class CheckerParameters(Parameters):
    cell: int = Field(16, ge=1, description="Side of a square in pixels.")


class Checkers(Model):
    def generate(self, requests):
        for request in requests:
            random = np.random.default_rng(request.seed)
            board = np.indices((128, 128)).sum(0) // self.parameters.cell % 2
            yield (board * 100 + random.integers(0, 60, (128, 128))).astype(np.uint8)


@hookimpl
def chexgenbench_models():
    yield ModelSpec(
        name="checkers", summary="A checkerboard", load=Checkers, parameters=CheckerParameters
    )
'''


def test_a_third_party_model_of_30_lines(desk: Desk, tmp_path: Path) -> None:
    assert len(CHECKERS.splitlines()) <= 30
    path = tmp_path / "checkers.py"
    path.write_text(CHECKERS)
    desk.run("run", "--plugin", path, "-m", "checkers", "--set", "cell=8", "--limit", 80)
    (row,) = desk.rows(
        "select model, value from leaderboard where metric='kid' and subset='overall'"
    )
    assert row["model"] == "checkers"
    shown = desk.run("leaderboard", "--metric", "kid").out
    assert all(head in shown for head in ("checkers", "ci_low", "ci_high"))
    (run,) = desk.rows("select model_parameters from runs")
    assert json.loads(run["model_parameters"]) == {"cell": 8}


def own_images(desk: Desk, count: int = 50) -> tuple[Path, Path]:
    """The published layout for a user's own images, filled with the oracle's."""
    desk.run("generate", "--model", "oracle", "--limit", count)
    table, folder = desk.home / "assets/CSV/prompt_INFO.csv", desk.home / "assets/synthetic_images"
    table.parent.mkdir(parents=True)
    folder.mkdir(parents=True)
    (generation,) = (desk.home / "runs/generations").iterdir()
    with (generation / "generations_with_metadata.csv").open() as file:
        rows = list(csv.DictReader(file))
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "img_savename"])
        for row in rows:
            name = Path(row["synthetic_filename"]).name
            shutil.copy(generation / row["synthetic_filename"], folder / name)
            writer.writerow([row["annotated_prompt"], name])
    return table, folder


def test_a_users_own_images_are_scored_with_one_command(desk: Desk) -> None:
    table, folder = own_images(desk)
    with table.open("a") as file:
        file.write("A prompt that the split does not have.,x.png\n")
    options = ("evaluate", "--images-csv", "assets/CSV/prompt_INFO.csv")
    options += ("--images-dir", "assets/synthetic_images", "--extra-info", "my first try")
    done = desk.run(*options)
    assert "1 rows" in done.out
    assert "50 images answer 50 prompts" in done.out
    (row,) = desk.rows(
        "select model, n_fake, n_real, extra_info from leaderboard "
        "where metric = 'kid' and subset = 'overall'"
    )
    assert row == {
        "model": "images:synthetic_images",
        "n_fake": "50",
        "n_real": "50",
        "extra_info": "my first try",
    }
    with (desk.home / "Results/image_generation_metrics.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert line["Extra Info"] == "my first try"

    # An image that cannot be read is named, and counted as skipped when it is to be skipped.
    first = sorted(folder.glob("*.png"))[0]
    first.write_bytes(first.read_bytes()[:60])
    sorted(folder.glob("*.png"))[1].unlink()
    failed = desk.run(*options, code=2)
    assert first.name in failed.err
    assert "missing" in failed.err
    desk.run(*options, "--on-bad-image", "skip")
    (run,) = desk.rows(
        "select n_images, n_skipped_images from leaderboard join runs using (run_id) "
        "where metric = 'kid' and leaderboard.subset = 'overall'"
    )
    assert run == {"n_images": "48", "n_skipped_images": "2"}


def test_repeated_prompts_weigh_the_same_unless_the_protocol_is_legacy(desk: Desk) -> None:
    """Defect 6: the real side had each prompt once, the generated side every row."""
    table, _ = own_images(desk)
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines, *lines[1:6]]) + "\n")
    options = ("evaluate", "--images-csv", "assets/CSV/prompt_INFO.csv", "--metric", "kid")
    assert "the first image of each prompt counts" in desk.run(*options).out
    assert "all count, as in the published code" in desk.run(*options, "--protocol", "legacy").out
    rows = desk.rows(
        "select protocol, n_real, n_fake from scores where subset = 'overall' order by protocol"
    )
    assert rows == [
        {"protocol": "legacy", "n_real": "50", "n_fake": "55"},
        {"protocol": "standard", "n_real": "50", "n_fake": "50"},
    ]


def test_generated_first_and_evaluated_later(desk: Desk) -> None:
    options = ("--model", "noise", "--limit", 30)
    assert "images are not all there" in desk.run("evaluate", *options, code=2).err
    desk.run("generate", *options)
    done = desk.run("evaluate", *options)
    assert "generate" not in done.err
    assert desk.rows("select distinct model from leaderboard") == [{"model": "noise"}]


def test_another_split_by_csv_file_keeps_its_text_to_itself(desk: Desk) -> None:
    """Defect 23: text of unknown origin is handled as a patient's."""
    rows = (data_folder("demo_split") / "DEMO_ANNOTATIONS_TEST.csv").read_text().splitlines()
    (desk.home / "mine.csv").write_text("\n".join(rows[:31]) + "\n")
    desk.run("run", "--model", "noise", "--limit", 1)  # draws nothing but what it needs
    (images_root,) = desk.cache.glob("phantom/*")
    options = ("run", "--split", "mine.csv", "--model", "noise")
    failed = desk.run(*options, "--images-root", images_root, code=2)
    assert "29 real images" in failed.err
    desk.run("run", "--model", "noise", "--limit", 30)
    done = desk.run(*options, "--images-root", images_root)
    secret = rows[1].split("[],")[1][:20]
    page = (desk.home / "Results/report.html").read_text()
    assert secret not in done.out + done.err + page
    assert "data:image" not in page
    desk.run(*options, "--images-root", images_root, "--include-credentialed")
    page = (desk.home / "Results/report.html").read_text()
    assert secret in page
    assert "data:image" in page


def test_a_limited_run_does_not_hide_the_whole_one(desk: Desk) -> None:
    """The leaderboard has what was asked for last, finished before or not."""
    sql = "select n_fake, extra_info from leaderboard where metric = 'kid' and subset = 'overall'"
    options = ("run", "--model", "noise", "--limit")
    desk.run(*options, 40)
    desk.run(*options, 10)
    assert desk.rows(sql) == [{"n_fake": "10", "extra_info": ""}]
    results = desk.home / "Results"
    (results / "image_generation_metrics.csv").unlink()
    desk.run(*options, 40, "--extra-info", "again")
    assert desk.rows(sql) == [{"n_fake": "40", "extra_info": "again"}]
    with (results / "image_generation_metrics.csv").open() as file:
        assert [row["Extra Info"] for row in csv.DictReader(file)] == ["again"]


def test_an_image_that_was_changed_is_noticed(desk: Desk) -> None:
    options = ("--model", "noise", "--limit", 6)
    desk.run("generate", *options)
    first, second = sorted(desk.home.glob("runs/generations/*/images/*.png"))[:2]
    whole = first.read_bytes()
    first.write_bytes(second.read_bytes())
    failed = desk.run("run", *options, code=1)
    assert "not as they were made" in failed.err
    assert first.name in failed.err
    first.unlink()
    desk.run("run", *options)
    assert first.read_bytes() == whole


def test_policies_of_labels_share_the_images(desk: Desk) -> None:
    desk.run("generate", "--model", "noise", "--limit", 60)
    counts = {}
    for policy in ("keep", "positive"):
        done = desk.run("run", "--model", "noise", "--limit", 60, "--uncertain", policy)
        assert "generate" not in done.err
        rows = desk.rows("select subset, n_fake from leaderboard where metric = 'alignment'")
        counts[policy] = sum(int(row["n_fake"]) for row in rows)
    assert counts["positive"] > counts["keep"]


def test_new_repeats_a_finished_run(desk: Desk) -> None:
    options = ("run", "--model", "noise", "--limit", 25)
    desk.run(*options)
    desk.run(*options, "--new")
    rows = desk.rows("select run_id, generation_id from runs")
    assert len(rows) == 2
    assert len({row["generation_id"] for row in rows}) == 2
    sql = "select distinct value from scores where metric = 'kid' and subset = 'overall'"
    assert len(desk.rows(sql)) == 1


def test_repeats_are_further_images_of_a_prompt(desk: Desk) -> None:
    desk.run("run", "--model", "noise", "--limit", 12, "--repeats", 2)
    (run,) = desk.rows("select n_images, repeats, n_prompts from runs")
    assert run == {"n_images": "24", "repeats": "2", "n_prompts": "12"}
    assert desk.rows("select count(distinct sha256) as n from images") == [{"n": "24"}]
    (row,) = desk.rows("select n_real, n_fake from scores where metric='kid' and subset='overall'")
    assert row == {"n_real": "12", "n_fake": "24"}


@pytest.mark.parametrize("labelled", [True, False])
def test_what_it_says_to_try_next_has_an_answer(tmp_path: Path, labelled: bool) -> None:
    """Of scores that the demo's suggestions would not find."""
    desk, table = Desk.new(tmp_path), tmp_path / "prompts.csv"
    rows = [f"Report {number}.,{number % 2}" for number in range(60)]
    table.write_text("\n".join(["prompt,effusion", *rows]), encoding="utf-8")
    columns = {"id": "", "prompt": "prompt", "labels": "", "patient": "", "path": "", "view": ""}
    if labelled:
        columns["Pleural Effusion"] = "effusion"
    named = [word for role, name in columns.items() for word in ("--column", f"{role}={name}")]
    done = desk.run("run", "--split", table, *named, "--model", "noise", "--metric", METRIC)
    tries = [shlex.split(line) for line in done.out.split("Try next:\n")[1].strip().splitlines()]
    assert len(tries) == (3 if labelled else 2)
    for _program, *words in tries[:-1]:
        assert "noise" in desk.run(*words).out
