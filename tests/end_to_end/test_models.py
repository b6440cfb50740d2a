"""All eleven models of the paper, and any other, by the command that a user types.

Weights are random and tiny, but of the real classes, in the layout of the real files, and loaded by
the code that loads those.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from desk import Desk
from tiny import FAMILIES, Values, save
from tiny_llm_cxr import tiny_llm_cxr

pytestmark = pytest.mark.slow

PUBLISHED = (
    "sd-v1-4",
    "sd-v1-5",
    "sd-v2",
    "sd-v2-1",
    "sd-v3-5-medium",
    "radedit",
    "sana",
    "pixart-sigma",
    "lumina-2",
    "flux-1-dev",
    "llm-cxr",
)
BUILDERS = {**FAMILIES, "llm-cxr": tiny_llm_cxr}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Values]:
    """Plugin name to the parameters that it runs with."""
    folder = tmp_path_factory.mktemp("tiny")
    return {name: make(folder / name) for name, make in BUILDERS.items()}


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("sd-v1", tmp_path_factory.mktemp("any") / "my-pipeline")


def settings(name: str, values: Values) -> list[str]:
    return [part for key, value in values.items() for part in ("--set", f"{name}.{key}={value}")]


def images(desk: Desk) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in desk.home.glob("runs/generations/*/images/[!.]*.png")}


def test_all_eleven_and_any_pipeline_in_one_command(
    desk: Desk, tiny: dict[str, Values], pipeline: Path
) -> None:
    listed = desk.run("models", "list", COLUMNS="1000").out
    assert set(PUBLISHED) <= {line.split()[0] for line in listed.splitlines()}

    options = [part for name in PUBLISHED for part in ("--model", name)]
    options += ["--model", f"diffusers:{pipeline}", "--model", f"short=sd-v1-5:{pipeline}"]
    options += [part for name in PUBLISHED for part in settings(name, tiny[name])]
    options += ["--set", "diffusers.num_inference_steps=2", "--set", "short.steps=1"]
    done = desk.run("run", "--split", "demo", "--limit", 24, *options)

    models = {*PUBLISHED, "diffusers:my-pipeline", "short"}
    board = desk.rows("select model, metric, value from leaderboard where subset = 'overall'")
    for metric in ("kid", "alignment", "inception_score"):
        found = {row["model"]: float(row["value"]) for row in board if row["metric"] == metric}
        assert set(found) == models
        # Other weights, other images: two models with one number would be one model.
        alone = {value for name, value in found.items() if name not in ("sd-v1-4", "sd-v2-1")}
        assert len(alone) >= len(models) - 3, metric
    for name in models:
        assert name in done.out
    rows = desk.rows(
        "select model, model_plugin, n_images, n_flagged, workers, peak_memory, images_per_second, "
        "json_extract_string(versions, '$.generation.diffusers') as made_by from runs"
    )
    assert {row["model"]: row["n_images"] for row in rows} == dict.fromkeys(models, "24")
    assert {row["model"]: row["model_plugin"] for row in rows}["short"] == "sd-v1-5"
    assert all(float(row["images_per_second"]) > 0 for row in rows)
    assert {row["made_by"] for row in rows} == {version("diffusers")}
    assert max(int(row["peak_memory"]) for row in rows) > 1e6
    again = desk.run("run", "--split", "demo", "--limit", 24, *options)
    assert "generate" not in again.err


def test_workers_any_order_and_a_killed_worker_make_the_same_images(
    tmp_path: Path, pipeline: Path
) -> None:
    options = ("generate", "--model", f"diffusers:{pipeline}", "--limit", 40, "--batch-size", 4)
    options = (*options, "--set", "num_inference_steps=2")
    alone = Desk.new(tmp_path / "alone")
    alone.run(*options)
    wanted = images(alone)
    assert len(wanted) == 40

    several = Desk.new(tmp_path / "several")
    several.run(*options, "--workers", 2)
    assert images(several) == wanted

    killed = Desk.new(tmp_path / "killed")
    process = killed.start(*options, "--workers", 2)
    while process.poll() is None and len(images(killed)) < 5:
        time.sleep(0.005)
    workers = [
        int(line.split()[0])
        for line in subprocess.run(
            ["ps", "-o", "pid=,args=", "--ppid", str(process.pid)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        if "worker" in line
    ]
    assert len(workers) == 2, "too late"
    os.kill(workers[0], signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, f"{out}\n{err}"
    assert images(killed) == wanted

    both = Desk.new(tmp_path / "both")
    process = both.start(*options, "--workers", 2)
    while process.poll() is None and len(images(both)) < 5:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    both.run(*options)
    assert images(both) == wanted


def test_repeats_and_exact(tmp_path: Path, pipeline: Path) -> None:
    """A cached embedding changes nothing, and --exact makes the batch size play no part."""
    base = ("generate", "--model", f"diffusers:{pipeline}", "--limit", 3)
    base = (*base, "--set", "num_inference_steps=2")
    repeated, once = Desk.new(tmp_path / "repeated"), Desk.new(tmp_path / "once")
    repeated.run(*base, "--repeats", 3, "--exact")
    once.run(*base, "--exact", "--batch-size", 7)
    assert len(images(repeated)) == 9
    assert images(once).items() <= images(repeated).items()


def test_the_batch_size_is_measured_once_and_kept(desk: Desk, pipeline: Path) -> None:
    options = ("--model", f"diffusers:{pipeline}", "--limit", 6)
    options = (*options, "--set", "num_inference_steps=1")
    desk.run("generate", *options, "--batch-size", "auto")
    (identity,) = desk.home.glob("runs/generations/*/generation.json")
    size = json.loads(identity.read_text())["batch_size"]
    assert 1 <= size <= 8
    made = images(desk)
    again = desk.run("generate", *options, "--batch-size", "auto")
    assert again.out.startswith("0 images made")
    named = desk.run("generate", *options, "--batch-size", size)
    assert named.out.startswith("0 images made")
    assert images(desk) == made


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "diffusers:EMPTY"], ["no diffusers pipeline", "model_index.json"]),
        (["--model", "sana:PIPELINE"], ["StableDiffusionPipeline", "SanaPipeline", "diffusers:"]),
        (["--model", "sd-v1-5:PICKLED"], ["pickle", "run any code", "--allow-pickle"]),
        (
            ["--model", "diffusers:PIPELINE", "--set", "num_inference_step=2"],
            ["num_inference_steps"],
        ),
        (["--model", "diffusers:PIPELINE", "--set", "num_inference_steps=many"], ["many"]),
        (["--model", "diffusers:PIPELINE", "--set", "size=33"], ["33", "multiple of 8"]),
        (["--model", "diffusers:owner/absent"], ["owner/absent", "not on this machine"]),
        (["--model", "diffusers:PIPELINE", "--set", "lora=LORA"], ["lora", "layer"]),
        (["--model", "diffusers:PIPELINE", "--set", "scheduler=Nothing"], ["Nothing", "DDIM"]),
        (["--model", "sd-v1-5"], ["weights"]),
        (["--model", "flux-1-dev:PIPELINE"], ["FluxPipeline"]),
        (["--model", "diffusers:PIPELINE", "--batch-size", "some"], ["some", "auto"]),
        (["--model", "diffusers:PIPELINE", "--device", "cpu,meta"], ["several kinds"]),
    ],
)
def test_bad_input_is_told_before_anything_is_made(
    desk: Desk, pipeline: Path, tiny: dict[str, Values], options: list[str], said: list[str]
) -> None:
    import shutil

    empty, pickled = desk.home / "empty", desk.home / "pickled"
    empty.mkdir()
    shutil.copytree(pipeline, pickled)
    for path in pickled.rglob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    places = {
        "EMPTY": empty,
        "PICKLED": pickled,
        "PIPELINE": pipeline,
        "LORA": tiny["flux-1-dev"]["lora"],
    }
    for name, place in places.items():
        options = [part.replace(name, str(place)) for part in options]
    done = desk.run("run", "--limit", 4, *options, code=2)
    for text in said:
        assert text in done.err, done.err
    assert not list(desk.home.glob("runs/generations/*/images/*"))


def test_pickles_are_loaded_where_the_user_accepts_the_risk(desk: Desk, pipeline: Path) -> None:
    import shutil

    import torch
    from safetensors.torch import load_file

    pickled = desk.home / "pickled"
    shutil.copytree(pipeline, pickled)
    for path in pickled.rglob("*.safetensors"):
        torch.save(load_file(path), path.with_name(path.name.replace(".safetensors", ".bin")))
        path.unlink()
    for path in pickled.glob("text_encoder/model.bin"):
        path.rename(path.with_name("pytorch_model.bin"))
    options = ("generate", "--set", "steps=1", "--limit", 2)
    desk.run(*options, "--model", f"a=sd-v1-5:{pickled}", "--allow-pickle")
    loaded = images(desk)
    safe = Desk.new(desk.home / "safe")
    safe.run(*options, "--model", f"a=sd-v1-5:{pipeline}")
    assert loaded == images(safe)


def test_what_a_model_needs(desk: Desk, pipeline: Path) -> None:
    table = desk.run("models", "status", COLUMNS="1000").out
    for name in PUBLISHED:
        assert name in table
    ready = desk.run("doctor", "--model", f"diffusers:{pipeline}", COLUMNS="1000").out
    assert "FAULT" not in ready
    lacking = desk.run("doctor", "--model", "sd-v1-5", code=2, COLUMNS="1000").out
    assert "weights" in lacking
