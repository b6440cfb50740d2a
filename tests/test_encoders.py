"""Encoders with weights that cannot be fetched here: the users' code on random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from chexgenbench.errors import UserError
from chexgenbench.registry import load_registry
from chexgenbench.types import Context, Encoder

RANDOM = np.random.default_rng(0)


def load(name: str, home: Path, **values: object) -> Encoder:
    found = load_registry().encoders[name]
    parameters = found.parse(values)
    context = Context(home=home, cache=home / "cache")
    found.load().weights(parameters, context)
    return found.create(parameters, context)


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(RANDOM.integers(0, 256, (height, width), dtype=np.uint8))


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """A state dict of torch-fidelity's own network, randomly initialised."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    from chexgenbench_plugins.encoders.inception_v3 import _network

    torch.save(_network().state_dict(), path)
    reference = FeatureExtractorInceptionV3(
        "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
    )
    return path, reference.eval()


def test_inception_is_torch_fidelitys_network(
    inception: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    """Defect 2: class probabilities come from the logits, not from pool features."""
    path, reference = inception
    encoder = load("inception-v3", tmp_path, weights=str(path))
    image = picture(200, 150)
    batch = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
    with torch.inference_mode():
        pool, logits = reference(batch)
        ours = encoder.encode(encoder.preprocess(image)[None])
    assert np.allclose(ours["features"], pool, rtol=1e-4, atol=1e-5)
    assert np.allclose(ours["probabilities"], logits.softmax(1), rtol=1e-4, atol=1e-7)
    assert ours["probabilities"].shape == (1, 1008)
    assert ours["probabilities"].sum() == pytest.approx(1, abs=1e-5)


def test_inception_weights_that_are_missing_say_how_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="inception-v3") as caught:
        load("inception-v3", tmp_path)
    assert "curl" in str(caught.value.hint)


def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path) -> None:
    """Defect 22."""

    class Evil:
        def __reduce__(self) -> tuple:
            return (Path(tmp_path / "owned").touch, ())

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(Exception, match=r"(?i)weights"):
        load("inception-v3", tmp_path, weights=str(tmp_path / "evil.pth"))
    assert not (tmp_path / "owned").exists()


@pytest.fixture(scope="module")
def rad_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Dinov2 whose pooler has the published width."""
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
    folder = tmp_path_factory.mktemp("rad-dino")
    Dinov2Model(config).save_pretrained(folder)
    return folder


def test_rad_dino_keeps_the_aspect_and_goes_to_518_at_once(rad_dino: Path, tmp_path: Path) -> None:
    """Defect 5: images were squashed to 299 and enlarged again."""
    encoder = load("rad-dino", tmp_path, weights=str(rad_dino))
    tall = encoder.preprocess(picture(600, 1200))
    assert tall.shape == (3, 518, 518)
    plain = Image.new("L", (1200, 600))
    plain.paste(255, (300, 0, 900, 600))
    assert encoder.preprocess(plain).min() > 1  # the square in the middle is all that is seen
    with torch.inference_mode():
        output = encoder.encode(tall[None])["features"]
    assert output.shape == (1, 768)
    assert np.isfinite(output).all()


def test_rad_dino_preprocessing_is_that_of_its_processor(rad_dino: Path, tmp_path: Path) -> None:
    from transformers import BitImageProcessorPil

    encoder = load("rad-dino", tmp_path, weights=str(rad_dino))
    image = picture(700, 620)
    processor = BitImageProcessorPil(
        size={"shortest_edge": 518},
        crop_size={"height": 518, "width": 518},
        image_mean=[0.5307] * 3,
        image_std=[0.2583] * 3,
        resample=3,
    )
    theirs = processor(image.convert("RGB"), return_tensors="pt").pixel_values[0]
    assert torch.abs(encoder.preprocess(image) - theirs).max() < 0.02


def test_rad_dino_weights_that_are_missing_say_how_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rad-dino") as caught:
        load("rad-dino", tmp_path)
    assert "hf download microsoft/rad-dino" in str(caught.value.hint)
