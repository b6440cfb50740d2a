"""The built-in plugins are held to the contract that other authors' plugins are held to.

Where weights are needed, tiny random ones in the real layout stand for them. A check that does not
apply to a plugin is a skipped test with its reason.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import tiny
from chexgenbench.generation.requests import make_requests
from chexgenbench.registry import KINDS, load_registry
from chexgenbench.testing import Settings, check_plugin
from chexgenbench.testing.world import World, cases, draw
from forked import run_forked
from test_encoders import biomedclip, biovil, densenet  # noqa: F401
from test_judges import build_vlm
from tiny_llm_cxr import tiny_llm_cxr

SMALL = {"prompts": 60, "repeats": 2}
"""Of the metrics that make images for prompts."""

VALUES: dict[tuple[str, str], dict[str, Any]] = {
    ("metric", "membership"): SMALL,
    ("metric", "memorisation"): {"prompts": 60, "repeats": 2},
    ("metric", "reidentification"): {**SMALL, "weights": "phantom"},
    ("metric", "pixel-distance"): {**SMALL, "size": 64},
    ("metric", "latent-distance"): SMALL,
    ("model", "phantom-diffusion"): {"steps": 4},
    # A random network writes no label, which is not what is looked at here.
    ("judge", "vlm"): {"most_unreadable": 1.0},
}
"""Parameters that make a check possible, or short, in a test."""

ABSENT = {
    ("metric", "classification"): "trains networks for minutes; tests/test_classification.py",
    ("metric", "report-generation"): "trains networks for minutes; tests/test_report_generation.py",
}
"""What is not run here, and why; its descriptor is checked all the same."""

BEHAVIOUR = {
    "model": {"images"},
    "encoder": {"outputs"},
    "metric": {"scores", "runs"},
    "split": {"table"},
    "judge": {"labels"},
}
"""Checks of which one at least must be taken, or the plugin itself has not been tried."""


def _ready_images(folder: Path) -> dict[str, Any]:
    """An image for each request that the kit makes, by the published names."""
    folder.mkdir(parents=True)
    world = World.make(folder / "world")
    every = cases(len(world.test))
    for number, request in enumerate(make_requests(world.test, seed=0, repeats=1, size=None)):
        path = folder / f"SyntheticImg_{request.id}.png"
        Image.fromarray(draw(every[number], 77 + number)).save(path)
    return {"folder": str(folder)}


def _dinov2(folder: Path) -> dict[str, Any]:
    import torch
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=768,
        num_hidden_layers=1,
        num_attention_heads=12,
        image_size=518,
        patch_size=14,
        mlp_ratio=1,
    )
    Dinov2Model(config).save_pretrained(folder)
    return {"weights": str(folder)}


def _inception(folder: Path) -> dict[str, Any]:
    import torch

    from chexgenbench_plugins.encoders.inception_v3 import _network

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(_network().state_dict(), folder / "inception.pth")
    return {"weights": str(folder / "inception.pth")}


def _clip(folder: Path) -> dict[str, Any]:
    """A network of two layers whose output is as wide as the published one."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    image = {"image_size": 336, "layers": 2, "width": 64, "patch_size": 28}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    sides = {"vision_cfg": image, "text_cfg": text}
    settings = {
        "model_cfg": {"embed_dim": 768, "quick_gelu": True, **sides},
        "preprocess_cfg": {"interpolation": "bicubic", "resize_mode": "shortest"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    network = open_clip.CLIP(768, image, text, quick_gelu=True)
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    return {"weights": str(folder)}


def _vlm(folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True)
    build_vlm(folder)
    return {"weights": str(folder)}


def _llm_cxr(folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True)
    return dict(tiny_llm_cxr(folder))


def _csv(folder: Path) -> dict[str, Any]:
    World.make(folder)
    return {"test": str(folder / "test.csv"), "train": str(folder / "training.csv")}


def _mimic(folder: Path) -> dict[str, Any]:
    World.make(folder)
    (folder / "test.csv").rename(folder / "LLAVARAD_ANNOTATIONS_TEST.csv")
    (folder / "training.csv").rename(folder / "LLAVARAD_ANNOTATIONS_TRAIN.csv")
    return {"folder": str(folder)}


def _diffusers(folder: Path) -> str:
    folder.mkdir(parents=True)
    return f"diffusers:{tiny.save('sd-v1', folder / 'weights')}"


def _py(folder: Path) -> str:
    folder.mkdir(parents=True)
    (folder / "mine.py").write_text(_GREY)
    return f"py:{folder / 'mine.py'}:Grey"


_GREY = '''"""A model."""
import numpy as np
from chexgenbench import Model

class Grey(Model):
    "Grey noise."

    def generate(self, requests):
        for request in requests:
            size = request.size or 64
            random = np.random.default_rng(request.seed)
            yield random.integers(0, 256, (size, size), dtype=np.uint8)
'''

TEXTS = {("model", "diffusers"): _diffusers, ("model", "py"): _py}
"""Models that a text makes: a function that fills a folder and returns it."""


def _whole(name: str) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        folder.mkdir(parents=True)
        return dict(tiny.FAMILIES[name](folder))

    return make


BUILT: dict[tuple[str, str], Callable[[Path], dict[str, Any]]] = {
    ("model", "images"): _ready_images,
    ("encoder", "dinov2"): _dinov2,
    ("encoder", "rad-dino"): _dinov2,
    ("encoder", "inception-v3"): _inception,
    **{("model", name): _whole(name) for name in tiny.FAMILIES},
    ("model", "stable-diffusion"): _whole("sd-v1-5"),
    ("model", "llm-cxr"): _llm_cxr,
    ("encoder", "clip"): _clip,
    ("judge", "vlm"): _vlm,
    ("split", "csv"): _csv,
    ("split", "mimic-cxr"): _mimic,
}
"""Plugins whose files are built: a function that fills a folder and returns parameters."""

SKIP = {
    # Ready images have the size that they have, and no run asks a model for another.
    ("model", "images"): ("sizes",),
    # A class of the user's states no licence and no parameters' descriptions.
    ("model", "py"): ("licence",),
    # Its summary names the folder, whose name is as long as the machine's temporary places are.
    ("model", "diffusers"): ("summary",),
}
"""Checks that do not fit a plugin, each with why."""

FIXTURES = {"biomedclip": "biomedclip", "biovil-t": "biovil", "torchxrayvision": "densenet"}
"""Encoders whose random weights tests/test_encoders.py builds, and by which fixture."""

DETERMINISTIC = {("model", "images")}


@pytest.fixture(autouse=True)
def _processes_are_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that makes the kit's images again need not import others' packages again; one that
    says what a plugin imports must be new."""
    real = subprocess.run

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        *_, module, order = command
        if json.loads(Path(order).read_text())["task"] == "make":
            env = os.environ | {"HF_HUB_OFFLINE": "1"}
            done = run_forked([order], cwd=Path.cwd(), env=env, module=module)
            if done is not None:
                said = done.out.encode(), done.err.encode()
                return subprocess.CompletedProcess(command, done.code, *said)
        return real(command, **options)

    monkeypatch.setattr("chexgenbench.testing.subject.subprocess.run", run)


@cache
def _every() -> list[tuple[str, str]]:
    registry = load_registry()
    return [(kind[:-1], name) for kind in KINDS for name in registry.of_kind(kind)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), _every(), ids=["-".join(each) for each in _every()])
def test_a_built_in_plugin_keeps_the_contract(
    kind: str, name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    values = dict(VALUES.get((kind, name), {}))
    if (kind, name) in BUILT:
        values |= BUILT[kind, name](tmp_path / "weights")
    if kind == "encoder" and name in FIXTURES:
        values["weights"] = str(request.getfixturevalue(FIXTURES[name])[0])
    target = name
    if (kind, name) in TEXTS:
        target = TEXTS[kind, name](tmp_path / "weights")
    skip = SKIP.get((kind, name), ())
    if (kind, name) in ABSENT:
        skip = (*skip, "images", "runs", "runs-again", "looks-at-rows")
    settings = Settings(
        values=values,
        skip=skip,
        deterministic=(kind, name) in DETERMINISTIC,
        home=tmp_path,
        cache=tmp_path / "cache",
    )
    found = check_plugin(target, settings, kind=kind)
    failed = [
        f"{each.check}: {each.detail} ({each.hint})" for each in found if each.status == "failed"
    ]
    assert not failed, "\n".join(failed)
    taken = {each.check for each in found if each.status == "passed"}
    assert {"loads", "docstring"} <= taken
    if not taken & BEHAVIOUR[kind]:
        (why, *_) = [e.detail for e in found if e.check in BEHAVIOUR[kind]][-1:]
        pytest.skip(f"descriptor alone: {ABSENT.get((kind, name), why)}")
