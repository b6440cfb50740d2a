"""The diffusion plugin on a tiny pipeline that the test builds, and the shipped one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import tiny
from chexgenbench.errors import UserError
from chexgenbench.generation.requests import seed_of
from chexgenbench.images import to_image
from chexgenbench.registry import load_registry
from chexgenbench.types import Context, Made, Model, Request


def requests(count: int, size: int | None = None) -> list[Request]:
    return [
        Request(
            id=f"s{i}",
            prompt_id=f"s{i}",
            prompt=tiny.PROMPTS[i % 3],
            seed=seed_of(0, f"s{i}", 0),
            size=size,
        )
        for i in range(count)
    ]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion 1.x folder of random weights, 64 x 64."""
    return tiny.save("sd-v1", tmp_path_factory.mktemp("tiny-sd"))


def load(name: str, home: Path, **values: object) -> Model:
    found = load_registry().models[name]
    parameters = found.parse(values)
    context = Context(home=home, cache=home)
    found.load().weights(parameters, context)
    return found.create(parameters, context)


def _weights(model: Model) -> list[bytes]:
    files = model.weights(model.parameters, model.context)
    return [path.read_bytes() for path in getattr(files, "values", lambda: files)()]


def pixels(model: Model, wanted: list[Request], batch: int) -> np.ndarray:
    made = []
    for start in range(0, len(wanted), batch):
        for each in model.generate(wanted[start : start + batch]):
            image = each.image if isinstance(each, Made) else each
            made.append(np.asarray(to_image(image)[0]))
    return np.stack(made).astype(int)


def test_the_seed_decides_and_the_prompt_counts(weights: Path) -> None:
    """Defect 17: the seed argument was ignored."""
    model = load("stable-diffusion", weights.parent, weights=str(weights), steps=2)
    wanted = requests(3)
    first = pixels(model, wanted, 3)
    assert first.shape == (3, 64, 64, 3)
    assert np.array_equal(first, pixels(model, wanted, 3))
    other_seed = [Request(**{**vars(r), "seed": r.seed + 1}) for r in wanted]
    assert not np.array_equal(first, pixels(model, other_seed, 3))
    other_prompt = [Request(**{**vars(r), "prompt": "Large"}) for r in wanted]
    assert not np.array_equal(first, pixels(model, other_prompt, 3))


def test_a_batch_changes_at_most_one_grey_level(weights: Path) -> None:
    model = load("stable-diffusion", weights.parent, weights=str(weights), steps=2)
    wanted = requests(12)
    alone = pixels(model, wanted, 1)
    assert np.array_equal(alone, pixels(model, wanted, 1))
    for batch in (5, 12):
        difference = np.abs(pixels(model, wanted, batch) - alone)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 1e-3


def test_size_is_asked_for_and_checked(weights: Path) -> None:
    model = load("stable-diffusion", weights.parent, weights=str(weights), steps=1)
    assert pixels(model, requests(1, size=48), 1).shape == (1, 48, 48, 3)
    with pytest.raises(UserError, match="multiple"):
        list(model.generate(requests(1, size=33)))


def test_weights_that_are_missing_wrong_or_pickles(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        load("stable-diffusion", tmp_path, weights="./nowhere")
    with pytest.raises(UserError, match="neither a folder nor in the hub") as caught:
        load("stable-diffusion", tmp_path, weights="owner/name")
    assert "hf download owner/name" in str(caught.value.hint)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"no model_index\.json"):
        load("stable-diffusion", tmp_path, weights="empty")
    (empty / "model_index.json").write_text(json.dumps({"_class_name": "SanaPipeline"}))
    with pytest.raises(UserError, match="SanaPipeline"):
        load("stable-diffusion", tmp_path, weights="empty")
    (empty / "model_index.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load("stable-diffusion", tmp_path, weights="empty")
    pickled = tmp_path / "pickled"
    shutil.copytree(weights, pickled)
    for path in pickled.rglob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    with pytest.raises(UserError, match="pickles"):
        load("stable-diffusion", tmp_path, weights="pickled")


def test_the_shipped_pipeline_is_small_and_safe() -> None:
    """At most 15 MB, safetensors only, and what the plugin loads by itself."""
    from chexgenbench_plugins.data import data_folder

    files = [p for p in data_folder("phantom-diffusion").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 15e6
    assert {p.suffix for p in files} <= {".safetensors", ".json", ".txt"}
    figures = json.loads((data_folder("phantom-diffusion") / "training.json").read_text())
    assert figures["images"] == 4000


@pytest.mark.slow
def test_the_shipped_pipeline_follows_its_prompt(tmp_path: Path) -> None:
    """The side of a large effusion is the brighter lung base (the patient's left is on the right
    of the image)."""
    model = load("phantom-diffusion", tmp_path)
    sides = ["left", "right"] * 8
    wanted = [
        Request(
            id=f"e{i}",
            prompt_id=f"e{i}",
            prompt=f"PA view of the chest. Large {side} pleural effusion.",
            seed=seed_of(3, f"e{i}", 0),
        )
        for i, side in enumerate(sides)
    ]
    made = pixels(model, wanted, 16)
    grey = made if made.ndim == 3 else made.mean(axis=3)
    right_of_image = grey[:, 72:96, 72:108].mean((1, 2)) - grey[:, 72:96, 20:56].mean((1, 2))
    followed = [(d > 0) == (side == "left") for d, side in zip(right_of_image, sides, strict=True)]
    assert np.mean(followed) >= 0.85


def test_ready_images_are_a_model(tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "mine"
    folder.mkdir()
    for i in range(2):
        Image.new("L", (32, 32), 50 * i).save(folder / f"SyntheticImg_s{i}.png")
    model = load("images", tmp_path, folder="mine")
    assert pixels(model, requests(2), 2)[1].max() == 50
    with pytest.raises(UserError, match=r"no image for 1 of 3 requests \(s2\)"):
        model.check(model.parameters, model.context, requests(3))
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    other = load("images", tmp_path, folder="elsewhere")
    names = [list(each.weights(each.parameters, each.context)) for each in (model, other)]
    assert names[0] == names[1] == ["SyntheticImg_s0.png", "SyntheticImg_s1.png"]
    # Links that change places answer other prompts, though the files stay.
    links = tmp_path / "links"
    links.mkdir()
    found = []
    for order in ((0, 1), (1, 0)):
        for i, target in enumerate(order):
            (links / f"SyntheticImg_s{i}.png").unlink(missing_ok=True)
            (links / f"SyntheticImg_s{i}.png").symlink_to(folder / f"SyntheticImg_s{target}.png")
        linked = load("images", tmp_path, folder="links")
        files = linked.weights(linked.parameters, linked.context)
        found.append({name: path.read_bytes() for name, path in files.items()})
    assert found[0].keys() == found[1].keys() and found[0] != found[1]
    table = tmp_path / "info.csv"
    table.write_text(f'prompt,img_savename\n"{tiny.PROMPTS[0]}",SyntheticImg_s1.png\n')
    by_prompt = load("images", tmp_path, folder="mine", csv="info.csv")
    assert pixels(by_prompt, requests(1), 1).max() == 50
    second = [Request(**{**vars(requests(1)[0]), "id": "s0~1", "repeat": 1})]
    with pytest.raises(UserError, match="no image for 1 of 1"):
        by_prompt.check(by_prompt.parameters, by_prompt.context, second)
    before = _weights(by_prompt)
    table.write_text(f'prompt,img_savename\n"{tiny.PROMPTS[0]}",SyntheticImg_s0.png\n')
    assert before != _weights(load("images", tmp_path, folder="mine", csv="info.csv"))
    for values in ({"folder": "none"}, {"folder": "."}):
        with pytest.raises(UserError):
            load("images", tmp_path, **values)
