"""Encoders with weights that cannot be fetched here: the users' code on random weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
    assert "chexgenbench encoders fetch inception-v3" in str(caught.value.hint)


def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path) -> None:
    """Defect 22."""

    class Evil:
        def __reduce__(self) -> tuple:
            return (Path(tmp_path / "owned").touch, ())

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(Exception, match=r"(?i)weights"):
        load("inception-v3", tmp_path, weights=str(tmp_path / "evil.pth"))
    assert not (tmp_path / "owned").exists()


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
    assert torch.abs(encoder.preprocess(image) - theirs).max() < 1e-5


def published_pixels(image: Image.Image) -> torch.Tensor:
    """What metrics/fid.py of the published code (commit 9a201c1) gives both of its encoders."""
    from torchvision import transforms

    transform = transforms.Compose([transforms.Resize((299, 299)), transforms.ToTensor()])
    return (transform(image.convert("RGB")) * 255).to(torch.uint8)


def legacy(name: str) -> dict[str, object]:
    return dict(load_registry().encoders[name].spec.protocols["legacy"])


@pytest.mark.parametrize("size", [(40, 16), (299, 301), (5000, 4000)])
@pytest.mark.parametrize("pillow", [None, "12.3.0"])
def test_grey_levels_are_those_of_pillow(
    size: tuple[int, int], pillow: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A view of an array, a copy, a crop; the largest is beyond what Pillow keeps in one piece."""
    from chexgenbench_plugins.encoders.inception_v3 import _levels

    if pillow is not None:
        monkeypatch.setattr("PIL.__version__", pillow)
    grey = picture(*size)
    for image in (grey, grey.copy(), grey.convert("RGB"), grey.crop((3, 2, 30, 14))):
        assert np.array_equal(_levels(image), np.array(image, np.float32))


def test_grey_levels_are_not_copied_by_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it copies, the interpreter's lock is held; colour goes that way."""
    from chexgenbench_plugins.encoders.inception_v3 import _levels

    grey = picture(299, 301)
    colour, copies = grey.convert("RGB"), Image.Image.tobytes
    copied: list[str] = []

    def noted(image: Image.Image, *more: str) -> bytes:
        copied.append(image.mode)
        return copies(image, *more)

    monkeypatch.setattr(Image.Image, "tobytes", noted)
    _levels(grey)
    _levels(colour)
    assert copied == ["RGB"]


@pytest.mark.parametrize("squash", [None, 299])
def test_inception_sees_a_grey_image_as_three_channels_of_it(
    inception: tuple[Path, torch.nn.Module], tmp_path: Path, squash: int | None
) -> None:
    encoder = load("inception-v3", tmp_path, weights=str(inception[0]), squash=squash)
    for image in (picture(700, 512), picture(299, 299), picture(37, 911)):
        grey, colour = encoder.preprocess(image), encoder.preprocess(image.convert("RGB"))
        assert grey.shape == colour.shape == (3, 299, 299)
        assert torch.equal(grey, colour)


@pytest.mark.parametrize("size", [(700, 620), (512, 512), (200, 331), (2000, 2500)])
def test_legacy_rad_dino_sees_what_the_published_code_gave_it(
    rad_dino: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    """Defect 5, kept under the legacy protocol alone."""
    from transformers import BitImageProcessorPil

    processor = BitImageProcessorPil(
        size={"shortest_edge": 518},
        crop_size={"height": 518, "width": 518},
        image_mean=[0.5307] * 3,
        image_std=[0.2583] * 3,
        resample=3,
    )
    encoder = load("rad-dino", tmp_path, weights=str(rad_dino), **legacy("rad-dino"))
    standard = load("rad-dino", tmp_path, weights=str(rad_dino))
    red, green, blue = (picture(*size) for _ in range(3))
    for image in (red, Image.merge("RGB", (red, green, blue))):
        theirs = processor(published_pixels(image)[None], return_tensors="pt").pixel_values[0]
        assert torch.abs(encoder.preprocess(image) - theirs).max() < 1e-5
        assert torch.abs(standard.preprocess(image) - theirs).max() > 0.1


def test_legacy_inception_sees_what_the_published_code_gave_it(
    inception: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    from torchmetrics.image.fid import NoTrainInceptionV3

    path, _ = inception
    reference = NoTrainInceptionV3("inception", ["2048"], str(path))
    encoder = load("inception-v3", tmp_path, weights=str(path), **legacy("inception-v3"))
    image = Image.merge("RGB", [picture(640, 512) for _ in range(3)])
    pixels = published_pixels(image)
    assert torch.equal(encoder.preprocess(image), (pixels.float() - 128) / 128)
    with torch.inference_mode():
        ours = encoder.encode(encoder.preprocess(image)[None])["features"]
        theirs = reference(pixels[None])
    assert np.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_rad_dino_weights_that_are_missing_say_how_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rad-dino") as caught:
        load("rad-dino", tmp_path)
    assert "chexgenbench encoders fetch rad-dino" in str(caught.value.hint)
    assert "346 MB" in str(caught.value)


@pytest.mark.parametrize("name", ["rad-dino", "dinov2", "clip", "biomedclip", "biovil-t"])
def test_another_repository_is_not_asked_for_at_the_published_commit(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(UserError, match=name) as caught:
        load(name, tmp_path, weights="somebody/tuned")
    assert str(caught.value.hint).endswith("hf download somebody/tuned")
    with pytest.raises(UserError, match="at revision 0123") as caught:
        load(name, tmp_path, weights="somebody/tuned", revision="0123")
    assert "hf download somebody/tuned --revision 0123" in str(caught.value.hint)
    (published,) = load_registry().encoders[name].spec.downloads[:1]
    with pytest.raises(UserError, match=f"at revision {published.revision}"):
        load(name, tmp_path, weights=published.source)


def colours(width: int, height: int) -> Image.Image:
    return Image.merge("RGB", [picture(width, height) for _ in range(3)])


SIZES = [(700, 620), (512, 512), (301, 444), (2000, 2500)]


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=518, patch_size=14
    )
    folder = tmp_path_factory.mktemp("dinov2")
    Dinov2Model(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("size", SIZES)
def test_dinov2_preprocessing_is_that_of_its_processor(
    dinov2: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    from transformers import BitImageProcessorPil

    processor = BitImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        resample=3,
    )
    encoder = load("dinov2", tmp_path, weights=str(dinov2))
    for image in (picture(*size), colours(*size)):
        theirs = processor(image.convert("RGB"), return_tensors="pt").pixel_values[0]
        assert torch.abs(encoder.preprocess(image) - theirs).max() < 1e-5


def test_dinov2_gives_the_class_token(dinov2: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    encoder = load("dinov2", tmp_path, weights=str(dinov2))
    reference = AutoModel.from_pretrained(dinov2).eval()
    batch = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        theirs = reference(batch)
        ours = encoder.encode(batch)["features"]
    assert np.allclose(ours, theirs.last_hidden_state[:, 0], atol=1e-5)
    assert np.allclose(ours, theirs.pooler_output, atol=1e-5)


TEXTS = [
    "No pleural effusion.",
    "Large left  pneumothorax &amp; a catheter",
    "Normal heart size. " * 60,
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model in the files and with the settings of the published one."""
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    config = {
        "model_cfg": {
            "embed_dim": 32,
            "quick_gelu": True,
            "vision_cfg": {"image_size": 336, "layers": 2, "width": 64, "patch_size": 28},
            "text_cfg": {
                "context_length": 77,
                "vocab_size": 49408,
                "width": 32,
                "heads": 2,
                "layers": 2,
            },
        },
        "preprocess_cfg": {
            "mean": [0.48145466, 0.4578275, 0.40821073],
            "std": [0.26862954, 0.26130258, 0.27577711],
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }
    folder = tmp_path_factory.mktemp("clip")
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    model = config["model_cfg"]
    network = open_clip.CLIP(32, model["vision_cfg"], model["text_cfg"], quick_gelu=True)
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def test_clip_is_open_clips(clip: Path, tmp_path: Path) -> None:
    import open_clip

    encoder = load("clip", tmp_path, weights=str(clip))
    network, _, transform = open_clip.create_model_and_transforms(f"local-dir:{clip}")
    network.eval()
    for size in SIZES:
        for image in (picture(*size), colours(*size)):
            assert torch.equal(encoder.preprocess(image), transform(image))
    batch = torch.randn(2, 3, 336, 336)
    tokens = open_clip.get_tokenizer(f"local-dir:{clip}")(TEXTS)
    with torch.inference_mode():
        images = network.encode_image(batch, normalize=True)
        texts = network.encode_text(tokens, normalize=True)
        assert np.allclose(encoder.encode(batch)["features"], images, atol=1e-6)
    assert np.allclose(encoder.encode_text(TEXTS), texts, atol=1e-6)


def words(folder: Path) -> None:
    """A BERT tokenizer's files with a vocabulary of letters and a few words."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = [f"##{letter}" for letter in letters]
    vocabulary = [*special, *letters, *pieces, "pleural", "effusion", "normal", "heart"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    settings = {"do_lower_case": True, "tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def biomedclip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """Weights of open_clip's own network in the published layout, and that network."""
    import open_clip
    from transformers import BertConfig

    torch.manual_seed(0)
    bert = tmp_path_factory.mktemp("bert")
    BertConfig(
        vocab_size=300,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=96,
        max_position_embeddings=256,
    ).save_pretrained(bert)
    model = {
        "embed_dim": 512,
        "vision_cfg": {
            "timm_model_name": "vit_tiny_patch16_224",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 224,
        },
        "text_cfg": {
            "hf_model_name": str(bert),
            "hf_model_pretrained": False,
            "hf_tokenizer_name": str(bert),
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": 256,
        },
    }
    network = open_clip.CustomTextCLIP(**model).eval()
    folder = tmp_path_factory.mktemp("biomedclip")
    words(folder)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    state = network.state_dict()
    # The published file still holds a buffer of transformers' older versions.
    state["text.transformer.embeddings.position_ids"] = torch.arange(256)[None]
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    return folder, network


def test_biomedclip_is_open_clips(biomedclip: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    import open_clip
    from open_clip.tokenizer import HFTokenizer

    folder, network = biomedclip
    encoder = load("biomedclip", tmp_path, weights=str(folder))
    transform = open_clip.image_transform(
        224,
        is_train=False,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        interpolation="bicubic",
        resize_mode="shortest",
    )
    for size in SIZES:
        for image in (picture(*size), colours(*size)):
            assert torch.equal(encoder.preprocess(image), transform(image))
    batch = torch.randn(2, 3, 224, 224)
    tokens = HFTokenizer(str(folder), context_length=256)(TEXTS)
    with torch.inference_mode():
        images = network.encode_image(batch, normalize=True)
        texts = network.encode_text(tokens, normalize=True)
        assert np.allclose(encoder.encode(batch)["features"], images, atol=1e-6)
    assert np.allclose(encoder.encode_text(TEXTS), texts, atol=1e-6)
    assert not np.allclose(texts[0], texts[1], atol=1e-3)


def settle(network: torch.nn.Module) -> torch.nn.Module:
    """Random batch statistics, so that a norm that is left out or misplaced shows."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
    return network.eval()


@pytest.fixture(scope="module")
def biovil(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, torch.Tensor]]:
    """Random tensors under the names of the published files (372 for images), and the former."""
    from safetensors.torch import save_file
    from torchvision.models import resnet50
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    state = {f"encoder.encoder.{k}": v for k, v in settle(resnet50()).state_dict().items()}
    state["encoder.backbone_to_vit.weight"] = torch.randn(256, 2048, 1, 1) / 45
    state["encoder.missing_previous_emb"] = torch.randn(1, 256, 1, 1)
    pooler = {"type_embed": (2, 1, 256), "norm_post.weight": (256,), "norm_post.bias": (256,)}
    for block in range(3):
        for norm in ("norm1", "norm2"):
            pooler |= {f"blocks.{block}.{norm}.{part}": (256,) for part in ("weight", "bias")}
        for layer in ("attn.proj_q", "attn.proj_k", "attn.proj_v"):
            pooler[f"blocks.{block}.{layer}.weight"] = (256, 256)
        for layer in ("attn.proj", "mlp.fc1", "mlp.fc2"):
            pooler[f"blocks.{block}.{layer}.weight"] = (256, 256)
            pooler[f"blocks.{block}.{layer}.bias"] = (256,)
    state |= {f"encoder.vit_pooler.{k}": torch.randn(shape) for k, shape in pooler.items()}
    norm = settle(torch.nn.BatchNorm2d(128)).state_dict()
    state |= {f"projector.model.1.{k}": v for k, v in norm.items()}
    state["projector.model.0.weight"] = torch.randn(128, 512, 1, 1) / 22
    state["projector.model.3.weight"] = torch.randn(128, 128, 1, 1) / 11
    state["projector.model.3.bias"] = torch.randn(128)
    assert len(state) == 372

    folder = tmp_path_factory.mktemp("biovil-t")
    torch.save(state, folder / "biovil_t_image_model_proj_size_128.pt")
    config = BertConfig(
        vocab_size=300,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=96,
        max_position_embeddings=48,
    )
    text = {k: v.clone() for k, v in BertForMaskedLM(config).state_dict().items()}
    head = {"dense_to_hidden": (128, 64), "LayerNorm": (128,), "dense_to_output": (128, 128)}
    for name, shape in head.items():
        text[f"cls_projection_head.{name}.weight"] = torch.randn(shape) / 8
        text[f"cls_projection_head.{name}.bias"] = torch.randn(128)
    # As published: the pooler is there and not used.
    text["bert.pooler.dense.weight"], text["bert.pooler.dense.bias"] = (
        torch.ones(64, 64),
        torch.ones(64),
    )
    save_file(text, folder / "model.safetensors")
    settings = config.to_dict() | {
        "model_type": "cxr-bert",
        "projection_size": 128,
        "auto_map": {"AutoModel": "modeling_cxrbert.CXRBertModel"},
    }
    (folder / "config.json").write_text(json.dumps(settings, default=str))
    (folder / "modeling_cxrbert.py").write_text("raise SystemExit('the repository code was run')")
    words(folder)
    return folder, state


def test_biovil_t_images(biovil: tuple[Path, Mapping[str, torch.Tensor]], tmp_path: Path) -> None:
    """Written out with functions: patches, beside them the missing study, projected, averaged."""
    from torch.nn import functional as F
    from torchvision.models import resnet50
    from torchvision.models.feature_extraction import create_feature_extractor

    folder, state = biovil
    encoder = load("biovil-t", tmp_path, weights=str(folder))
    trunk = resnet50()
    prefix = "encoder.encoder."
    trunk.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    )
    trunk = create_feature_extractor(trunk.eval(), {"layer4": "patches"})
    batch = torch.rand(2, 3, 448, 448)
    with torch.inference_mode():
        patches = F.conv2d(trunk(batch)["patches"], state["encoder.backbone_to_vit.weight"])
        assert patches.shape == (2, 256, 14, 14)
        missing = state["encoder.missing_previous_emb"].repeat(2, 1, 14, 14)
        hidden = F.conv2d(torch.cat([patches, missing], 1), state["projector.model.0.weight"])
        norm = {k: state[f"projector.model.1.{k}"] for k in ("running_mean", "running_var")}
        hidden = F.batch_norm(
            hidden,
            **norm,
            weight=state["projector.model.1.weight"],
            bias=state["projector.model.1.bias"],
        ).relu()
        projected = F.conv2d(
            hidden, state["projector.model.3.weight"], state["projector.model.3.bias"]
        )
        theirs = F.normalize(projected.mean((2, 3)), dim=1)
        ours = encoder.encode(batch)["features"]
    assert np.allclose(ours, theirs, atol=1e-6)
    assert np.allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_biovil_t_preprocessing(
    biovil: tuple[Path, Mapping[str, torch.Tensor]], tmp_path: Path, size: tuple[int, int]
) -> None:
    from torchvision import transforms

    encoder = load("biovil-t", tmp_path, weights=str(biovil[0]))
    transform = transforms.Compose(
        [transforms.Resize(512), transforms.CenterCrop(448), transforms.ToTensor()]
    )
    narrow = Image.fromarray(np.array(picture(*size)) // 4 + 70)
    levels = np.array(narrow, np.float64) - 70
    stretched = Image.fromarray((levels / levels.max() * 255).astype(np.uint8))
    theirs = transform(stretched)
    assert torch.equal(encoder.preprocess(narrow), theirs.expand(3, 448, 448))
    assert float(theirs.mean()) == pytest.approx(0.5, abs=0.01)  # 70..133 has become 0..255
    black = encoder.preprocess(Image.new("L", size, 90))
    assert torch.equal(black, torch.zeros(3, 448, 448))


def test_biovil_t_text(biovil: tuple[Path, Mapping[str, torch.Tensor]], tmp_path: Path) -> None:
    """Without the repository's own code, which here ends the process."""
    from safetensors.torch import load_file
    from torch.nn import functional as F
    from transformers import BertConfig, BertModel, BertTokenizer

    folder, _ = biovil
    encoder = load("biovil-t", tmp_path, weights=str(folder))
    state = load_file(folder / "model.safetensors")
    config = BertConfig(
        vocab_size=300,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=96,
        max_position_embeddings=48,
    )
    bert = BertModel(config).eval()
    bert.load_state_dict(
        {k.removeprefix("bert."): v for k, v in state.items() if k.startswith("bert.")}
    )
    texts = ["No pleural effusion.", "no pleural effusion", "normal heart!", "a catheter"]
    tokens = BertTokenizer.from_pretrained(folder)(
        [text.rstrip(".!?") for text in texts], padding=True, return_tensors="pt"
    )
    head = {k.removeprefix("cls_projection_head."): v for k, v in state.items()}
    with torch.inference_mode():
        words = bert(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        hidden = F.linear(words[:, 0], head["dense_to_hidden.weight"], head["dense_to_hidden.bias"])
        hidden = F.layer_norm(
            F.gelu(hidden), (128,), head["LayerNorm.weight"], head["LayerNorm.bias"], 1e-12
        )
        hidden = F.linear(hidden, head["dense_to_output.weight"], head["dense_to_output.bias"])
        theirs = F.normalize(hidden, dim=1)
    ours = encoder.encode_text(texts)
    assert np.allclose(ours, theirs, atol=1e-6)
    assert np.array_equal(ours[0], ours[1])
    assert np.array_equal(ours[:1], encoder.encode_text(texts[:1]))  # no neighbour matters
    assert np.isfinite(encoder.encode_text(["heart " * 200])).all()


@pytest.fixture(scope="module")
def densenet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    import torchxrayvision
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = settle(torchxrayvision.models.DenseNet())
    path = tmp_path_factory.mktemp("densenet") / "densenet121-res224-all.safetensors"
    state = network.state_dict() | {"op_threshs": torch.full((18,), 0.5)}
    save_file(state, path)
    return path, network


def test_torchxrayvision_features(densenet: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    path, network = densenet
    encoder = load("torchxrayvision", tmp_path, weights=str(path))
    batch = torch.randn(2, 1, 224, 224) * 500
    with torch.inference_mode():
        ours, theirs = encoder.encode(batch)["features"], network.features2(batch)
    assert ours.shape == (2, 1024)
    assert np.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [*SIZES, (224, 224), (100, 131)])
def test_torchxrayvision_preprocessing(
    densenet: tuple[Path, torch.nn.Module], tmp_path: Path, size: tuple[int, int]
) -> None:
    import torchxrayvision as xrv

    encoder = load("torchxrayvision", tmp_path, weights=str(densenet[0]))
    bright = Image.fromarray(np.array(picture(*size)) // 4 + 150)
    for image in (picture(*size), bright):
        levels = xrv.utils.normalize(np.array(image), 255)[None]
        theirs = xrv.datasets.XRayResizer(224)(xrv.datasets.XRayCenterCrop()(levels))
        ours = encoder.preprocess(image)
        assert ours.shape == (1, 224, 224)
        assert ours.dtype == torch.float32
        assert np.abs(ours.numpy() - theirs).max() < 1e-3  # of levels from -1024 to 1024


def test_torchxrayvision_takes_no_pickle_of_a_module(tmp_path: Path) -> None:
    import torchxrayvision

    torch.save(torchxrayvision.models.DenseNet(), tmp_path / "published.pt")
    with pytest.raises(UserError, match="cannot be read"):
        load("torchxrayvision", tmp_path, weights=str(tmp_path / "published.pt"))
    with pytest.raises(UserError, match="pickle") as caught:
        load("torchxrayvision", tmp_path)
    assert "save_file" in str(caught.value.hint)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"features.conv0.weight": torch.zeros(64, 3, 7, 7)}, path)
    with pytest.raises(UserError, match="another network"):
        load("torchxrayvision", tmp_path, weights=str(path))


def test_a_folder_of_pickles_is_refused_where_safetensors_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="pickles"):
        load("rad-dino", tmp_path, weights=str(tmp_path))


@pytest.mark.parametrize(
    "name", [name for name, item in load_registry().encoders.items() if item.spec.downloads]
)
def test_every_download_is_pinned_and_the_weights_have_a_hash(name: str) -> None:
    spec = load_registry().encoders[name].spec
    for download in spec.downloads:
        assert download.source.startswith("https://") or len(download.revision or "") == 40
        for file in download.files:
            large = file.name.endswith((".safetensors", ".pt", ".pth", ".bin"))
            assert not large or (file.size and len(file.sha256 or "") == 64)
