"""How `plugins/pipelines` finds, reads and calls what `tests/test_pipelines.py` does not cover:
stored precisions and shards, LoRA of other trainers, pipelines without a table entry, memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import tiny
from chexgenbench.errors import UserError
from chexgenbench.registry import load_registry
from chexgenbench.types import Context, Made, Model, Request
from chexgenbench_plugins.pipelines import prompts as prompts_module
from chexgenbench_plugins.pipelines.faster import compiled_only

REQUESTS = [
    Request(id=f"s{i}", prompt_id=f"s{i}", prompt=prompt, seed=i)
    for i, prompt in enumerate(tiny.PROMPTS)
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny pipelines ``sd-v1``, ``sana`` and ``lcm``."""
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    root = tmp_path_factory.mktemp("pipelines")
    tiny.save("sd-v1", root / "sd-v1")
    tiny.save("sana", root / "sana")
    parts = tiny.build("sd-v1").components
    parts["scheduler"] = LCMScheduler()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts["unet"] = tiny._unet(16, time_cond_proj_dim=8)
    LatentConsistencyModelPipeline(**parts, requires_safety_checker=False).save_pretrained(
        root / "lcm"
    )
    return root


def check(home: Path, name: str, values: dict[str, Any], **more: Any) -> list[str]:
    found = load_registry().find("models", name)
    parameters, context = found.parse(values), Context(home=home, cache=home, **more)
    model = found.load()
    model.weights(parameters, context)
    return list(model.check(parameters, context, REQUESTS))


def load(home: Path, name: str, values: dict[str, Any], **more: Any) -> Model:
    check(home, name, values, **more)
    found = load_registry().find("models", name)
    return found.create(found.parse(values), Context(home=home, cache=home, **more))


def pixels(model: Model) -> NDArray[Any]:
    made = list(model.generate(REQUESTS))
    assert all(isinstance(each, Made) for each in made)
    return np.stack([each.image for each in made])


def plain(pipeline: Any, **call: Any) -> NDArray[Any]:
    return pipeline(
        prompt=[request.prompt for request in REQUESTS],
        generator=[torch.Generator("cpu").manual_seed(r.seed) for r in REQUESTS],
        output_type="np",
        **call,
    ).images


SD: dict[str, Any] = {"weights": "sd-v1", "steps": 2}


def names(home: Path, values: dict[str, Any]) -> list[str]:
    found = load_registry().models["sd-v1-5"]
    return sorted(found.load().weights(found.parse(values), Context(home=home, cache=home)))


def test_of_two_stored_precisions_one_is_read_and_hashed(home: Path, tmp_path: Path) -> None:
    whole = tiny.build("sd-v1")
    whole.save_pretrained(tmp_path / "both")
    with torch.no_grad():
        for parameter in whole.unet.parameters():
            parameter.mul_(0.9)
    whole.save_pretrained(tmp_path / "both", variant="fp16")
    save_file({"a": torch.zeros(1)}, tmp_path / "both" / "v1-5-pruned.safetensors")
    values = {**SD, "weights": "both"}
    assert names(tmp_path, values) == names(home, SD)
    assert np.array_equal(
        pixels(load(tmp_path, "sd-v1-5", values)), pixels(load(home, "sd-v1-5", SD))
    )
    values["variant"] = "fp16"
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in names(tmp_path, values)
    assert "unet/diffusion_pytorch_model.safetensors" not in names(tmp_path, values)
    assert not np.array_equal(
        pixels(load(tmp_path, "sd-v1-5", values)), pixels(load(home, "sd-v1-5", SD))
    )
    with pytest.raises(UserError, match="no variant 'bf16'"):
        check(tmp_path, "sd-v1-5", {**values, "variant": "bf16"})


def test_a_precision_that_alone_is_stored_is_named(tmp_path: Path) -> None:
    tiny.build("sd-v1").save_pretrained(tmp_path / "half", variant="fp16")
    with pytest.raises(UserError, match=r"lack model\.safetensors") as caught:
        check(tmp_path, "sd-v1-5", {**SD, "weights": "half"})
    assert "variant=fp16" in str(caught.value.hint)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_read_and_must_be_whole(home: Path, tmp_path: Path, variant: str | None) -> None:
    folder = tmp_path / "shards"
    tiny.build("sd-v1").save_pretrained(folder, max_shard_size="20KB", variant=variant)
    shards = sorted((folder / "unet").glob("*-of-*.safetensors"))
    assert len(shards) > 2
    values = {**SD, "weights": "shards", "variant": variant}
    assert {f"unet/{shard.name}" for shard in shards} <= set(names(tmp_path, values))
    assert np.array_equal(
        pixels(load(tmp_path, "sd-v1-5", values)), pixels(load(home, "sd-v1-5", SD))
    )
    shards[1].unlink()
    with pytest.raises(UserError, match=shards[1].name):
        check(tmp_path, "sd-v1-5", values)


# --- what is hashed is what is loaded ---------------------------------------------------------


@pytest.fixture
def copy(home: Path, tmp_path: Path) -> Path:
    """A copy of the pipeline ``sd-v1`` to be spoilt, beside which paths start."""
    shutil.copytree(home / "sd-v1", tmp_path / "sd-v1")
    return tmp_path / "sd-v1"


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_code_in_the_folder_of_a_part_is_refused(copy: Path) -> None:
    """The library prefers ``unet/diffusers.py`` to its own class of that name."""
    mark = copy.parent / "ran"
    (copy / "unet" / "diffusers.py").write_text(
        f"open({str(mark)!r}, 'w')\nfrom diffusers import UNet2DConditionModel\n"
    )
    with pytest.raises(UserError, match=r"code of its own \(unet/diffusers\.py\)"):
        check(copy.parent, "sd-v1-5", SD)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("part", "found", "message"),
    [
        ("tokenizer", ["transformers", "AutoTokenizer"], "tokenizer, a AutoTokenizer"),
        ("unet", ["diffusers", "AutoModel"], "unet, a AutoModel"),
        ("unet", ["diffusers", "StableDiffusionPipeline"], "a StableDiffusionPipeline of"),
        ("unet", ["transformers", "pipeline"], "a pipeline of transformers"),
        ("unet", ["diffusers", "NoSuchModel"], "a NoSuchModel of diffusers"),
        ("unet", ["diffusers", 3], "unet, a 3"),
    ],
)
def test_a_part_is_a_class_of_the_libraries(
    copy: Path, part: str, found: list[Any], message: str
) -> None:
    rewrite(copy / "model_index.json", **{part: found})
    settings = copy / "tokenizer" / "tokenizer_config.json"
    rewrite(settings, auto_map={"AutoTokenizer": ["own.T", "own.T"]}, tokenizer_class="T")
    with pytest.raises(UserError, match=message):
        check(copy.parent, "sd-v1-5", SD)


def test_a_processor_that_names_code_is_refused(copy: Path) -> None:
    """Its parts are loaded by what the folder says they are."""
    rewrite(copy / "model_index.json", tokenizer=["transformers", "PixtralProcessor"])
    rewrite(copy / "tokenizer" / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.T"]})
    with pytest.raises(UserError, match=r"code of their own.*tokenizer_config\.json"):
        check(copy.parent, "sd-v1-5", SD)


def test_an_adapter_beside_a_network_is_refused(copy: Path) -> None:
    """transformers would apply it, and the identity would not show it."""
    from peft import LoraConfig

    encoder = tiny.build("sd-v1").text_encoder
    encoder.add_adapter(LoraConfig(r=4, target_modules=["q_proj"]))
    encoder.save_pretrained(copy / "text_encoder")
    assert (copy / "text_encoder" / "adapter_config.json").is_file()
    with pytest.raises(UserError, match=r"adapter beside.*adapter_model\.safetensors") as caught:
        check(copy.parent, "sd-v1-5", SD)
    assert "lora=" in str(caught.value.hint)


def test_a_configuration_that_names_a_weight_file_is_refused(copy: Path) -> None:
    rewrite(copy / "text_encoder" / "config.json", transformers_weights="other.safetensors")
    with pytest.raises(UserError, match="names a weight file"):
        check(copy.parent, "sd-v1-5", SD)


@pytest.mark.parametrize(
    ("part", "name"), [("text_encoder", "model"), ("unet", "diffusion_pytorch_model")]
)
def test_weights_that_are_there_twice_are_refused(copy: Path, part: str, name: str) -> None:
    """diffusers takes the shards, transformers the single file."""
    folder = copy / part
    state = load_file(folder / f"{name}.safetensors")
    shard = f"{name}-00001-of-00001.safetensors"
    save_file(state, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, shard)}
    (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=rf"{part} are there twice: {name}\.safetensors"):
        check(copy.parent, "sd-v1-5", SD)
    (folder / f"{name}.safetensors").unlink()
    assert f"{part}/{shard}" in names(copy.parent, SD)
    assert f"{part}/{name}.safetensors.index.json" in names(copy.parent, SD)


def test_an_accepted_pickle_of_the_asked_precision_comes_first(home: Path, copy: Path) -> None:
    """As in the library, where an ordinary safetensors file lies beside it."""
    tiny.build("sd-v1").vae.save_pretrained(copy / "vae", variant="fp16")
    state = load_file(copy / "unet" / "diffusion_pytorch_model.safetensors")
    pickled = copy / "unet" / "diffusion_pytorch_model.fp16.bin"
    torch.save({name: value * 0.5 for name, value in state.items()}, pickled)
    values = {**SD, "variant": "fp16"}
    found = load_registry().models["sd-v1-5"]
    for allowed, name in ((True, pickled.name), (False, "diffusion_pytorch_model.safetensors")):
        context = Context(home=copy.parent, cache=copy, allow_pickle=allowed)
        files = found.load().weights(found.parse(values), context)
        assert [each for each in files if each.startswith("unet/diff")] == [f"unet/{name}"]
        made = pixels(load(copy.parent, "sd-v1-5", values, allow_pickle=allowed))
        assert np.array_equal(made, pixels(load(home, "sd-v1-5", SD))) != allowed


@pytest.mark.parametrize("variant", ["fp16", "safetensors", "index"])
def test_a_variant_that_nothing_has_is_refused(tmp_path: Path, variant: str) -> None:
    for name, values in (
        ("sd-v1-5", {"weights": str(tiny.save("sd-v1", tmp_path / "sd"))}),
        ("radedit", tiny.radedit(tmp_path / "radedit")),
    ):
        with pytest.raises(UserError, match=f"no variant '{variant}'"):
            check(tmp_path, name, {**values, "variant": variant})


def test_radedit_reads_a_variant_of_the_part_that_has_it(tmp_path: Path) -> None:
    values = tiny.radedit(tmp_path / "radedit")
    folder = Path(str(values["weights"])) / "unet"
    ordinary = pixels(load(tmp_path, "radedit", values))
    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    halved = {name: value * 0.5 for name, value in state.items()}
    save_file(halved, folder / "diffusion_pytorch_model.fp16.safetensors", {"format": "pt"})
    assert np.array_equal(pixels(load(tmp_path, "radedit", values)), ordinary)
    other = pixels(load(tmp_path, "radedit", {**values, "variant": "fp16"}))
    assert np.abs(other - ordinary).max() > 0.01


def test_radedits_tokenizer_is_made_of_hashed_files_alone(tmp_path: Path) -> None:
    """A ``tokenizer.json`` in the text encoder's folder would be taken before ``vocab.txt``."""
    from transformers import BertTokenizer

    values = tiny.radedit(tmp_path / "radedit")
    folder = Path(str(values["text_encoder"]))
    before = pixels(load(tmp_path, "radedit", values))
    BertTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer.json").read_text())
    words = saved["model"]["vocab"]
    plain = [word for word in words if not word.startswith("[")]
    for word, number in zip(plain, [words[word] for word in reversed(plain)], strict=True):
        words[word] = number
    (folder / "tokenizer.json").write_text(json.dumps(saved))
    assert np.array_equal(pixels(load(tmp_path, "radedit", values)), before)


def test_files_that_are_not_hashed_are_not_seen(home: Path, copy: Path) -> None:
    """The library's search for variants fails at a name without a dot."""
    tiny.build("sd-v1").vae.save_pretrained(copy / "vae", variant="fp16")
    (copy / "unet" / "LICENSE").write_text("")
    model = load(copy.parent, "sd-v1-5", {**SD, "variant": "fp16"})
    assert np.array_equal(pixels(model), pixels(load(home, "sd-v1-5", SD)))


INDEX = "diffusion_pytorch_model.safetensors.index.json"


def test_an_index_cannot_lead_to_a_pickle(copy: Path) -> None:
    unet = copy / "unet"
    single = unet / "diffusion_pytorch_model.safetensors"
    state = load_file(single)
    torch.save(state, unet / "shard.bin")
    single.unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, "shard.bin")}
    (unet / INDEX).write_text(json.dumps(index))
    for allowed in (False, True):
        with pytest.raises(UserError, match="index of the weights"):
            check(copy.parent, "sd-v1-5", SD, allow_pickle=allowed)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"weight_map": {"a": "a.safetensors"}},
        {"metadata": {}, "weight_map": []},
        {"metadata": {}, "weight_map": {}},
        {"metadata": {}, "weight_map": {"a": 3}},
        {"metadata": {}, "weight_map": {"a": "../a.safetensors"}},
        {"metadata": {}, "weight_map": {"a": "/etc/hostname"}},
    ],
)
def test_an_index_of_another_form_is_refused(copy: Path, content: Any) -> None:
    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (copy / "unet" / INDEX).write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"index of the weights.*{INDEX}"):
        check(copy.parent, "sd-v1-5", SD)


def test_a_network_is_known_by_its_class_not_by_its_library(tmp_path: Path) -> None:
    """DeepFloyd's watermarker lives with its pipeline and is saved as diffusers saves networks."""
    from diffusers.pipelines.deepfloyd_if import IFWatermarker

    from chexgenbench_plugins.pipelines.folder import network_files, part_class

    IFWatermarker().save_pretrained(tmp_path)
    kind = part_class("deepfloyd_if", "IFWatermarker", "mine")
    files = network_files(tmp_path, kind, Context(home=tmp_path, cache=tmp_path), None, "mine")
    assert [path.name for path in files] == ["config.json", "diffusion_pytorch_model.safetensors"]


def test_what_changes_no_image_is_no_part_of_the_identity() -> None:
    """The precision counts in the context, and the scale of a LoRA where there is one."""
    found = load_registry().models["sd-v1-5"]
    plain = found.parse(SD).identity()
    for values in ({"dtype": "float32"}, {"lora_scale": 2}):
        assert found.parse({**SD, **values}).identity() == plain
    scales = [found.parse({**SD, "lora": "a", "lora_scale": each}).identity() for each in (1, 2)]
    assert scales[0] != scales[1]


# --- the hub's cache --------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with one commit of a pipeline and of a LoRA, and no newest one."""
    cache = tmp_path / "hub"
    pipeline = cache / "models--me--mine" / "snapshots" / COMMIT
    shutil.copytree(home / "sd-v1", pipeline)
    lora = cache / "models--me--lora" / "snapshots" / COMMIT
    lora.mkdir(parents=True)
    save_file(
        {f"unet.{name}": value for name, value in unet_lora().items()}, lora / "a.safetensors"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


def test_a_commit_is_named_with_the_repository(home: Path, cached: Path) -> None:
    wanted = pixels(load(home, "sd-v1-5", SD))
    for name, values in (
        ("sd-v1-5", {**SD, "weights": "me/mine", "revision": COMMIT}),
        (f"sd-v1-5:me/mine@{COMMIT}", {"steps": 2}),
        (f"diffusers:me/mine@{COMMIT}", {"num_inference_steps": 2}),
    ):
        assert np.array_equal(pixels(load(home, name, values)), wanted)
    for name in ("sd-v1-5:me/mine", "diffusers:me/mine", f"diffusers:me/mine@{'f' * 40}"):
        with pytest.raises(UserError, match="not on this machine") as caught:
            check(home, name, {})
        assert f"me/mine@{COMMIT}" in str(caught.value.hint)
    with pytest.raises(UserError, match="two commits"):
        check(home, f"sd-v1-5:me/mine@{COMMIT}", {"revision": "f" * 40})


def test_a_lora_has_a_commit_of_its_own(home: Path, cached: Path) -> None:
    values = {**SD, "lora": f"me/lora@{COMMIT}", "revision": "f" * 40}
    assert "alpha" in check(home, "sd-v1-5", values)[0]
    with pytest.raises(UserError, match="me/lora is neither"):
        check(home, "sd-v1-5", {**values, "lora": "me/lora"})


# --- what is cut off ----------------------------------------------------------------------------


def test_a_negative_prompt_that_is_too_long_is_said(home: Path, tmp_path: Path) -> None:
    long = "pleural effusion " * 80
    (remark,) = check(home, "sd-v1-5", {**SD, "negative_prompt": long})
    assert remark.startswith("The negative prompt is longer than the 77 tokens that this model")
    assert check(home, "sd-v1-5", {**SD, "negative_prompt": "blurred"}) == []
    three = {"weights": str(tiny.save("sd3", tmp_path / "sd3")), "num_inference_steps": 1}
    values = {**three, "size": tiny.SIZE, "negative_prompt": long}
    (remark,) = check(home, f"diffusers:{three['weights']}", values)
    assert remark.startswith("The negative prompt is longer than the 77 tokens that text_encoder")
    # Before it no instruction stands, as before a prompt.
    sana = {"weights": "sana", "use_resolution_binning": False, "max_sequence_length": 20}
    (remark,) = check(home, "sana", {**sana, "negative_prompt": long})
    assert remark.startswith("The negative prompt is longer than the 20 tokens")


# --- LoRA ---------------------------------------------------------------------------------------


def unet_lora() -> dict[str, torch.Tensor]:
    state, _ = tiny.lora_tensors(tiny.build("sd-v1").unet)
    return {name: value.contiguous() for name, value in state.items()}


def test_loras_of_other_trainers_mean_the_same(home: Path, tmp_path: Path) -> None:
    """One adapter in the names of PEFT, of diffusers before it, and of kohya's scripts."""
    from diffusers.utils import convert_state_dict_to_diffusers

    state = unet_lora()
    peft = {f"unet.{name}": value for name, value in state.items()}
    kohya = {}
    for name, value in state.items():
        layer, _, matrix = name.rpartition(".lora_")
        flat = f"lora_unet_{layer.replace('.', '_')}"
        kohya[f"{flat}.lora_{'down' if matrix.startswith('A') else 'up'}.weight"] = value
        kohya[f"{flat}.alpha"] = torch.tensor(float(tiny.RANK))
    older = convert_state_dict_to_diffusers(dict(peft))
    assert not set(older) & set(peft)
    images = []
    for name, tensors in {"peft": peft, "older": older, "kohya": kohya}.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        values = {**SD, "lora": str(tmp_path / f"{name}.safetensors")}
        remarks = check(home, "sd-v1-5", values)
        # Only kohya's files say alpha by themselves.
        assert len(remarks) == (0 if name == "kohya" else 1)
        images.append(pixels(load(home, "sd-v1-5", values)))
    assert np.array_equal(images[0], images[1])
    assert np.array_equal(images[0], images[2])
    assert np.abs(images[0] - pixels(load(home, "sd-v1-5", SD))).mean() > 0.01


def test_a_lora_of_the_text_encoder_reaches_it(home: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model_state_dict

    encoder = tiny.build("sd-v1").text_encoder
    encoder.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"]))
    random = torch.Generator().manual_seed(0)
    state = {
        f"text_encoder.{name}": torch.randn(value.shape, generator=random)
        for name, value in get_peft_model_state_dict(encoder).items()
    }
    save_file(state, tmp_path / "text.safetensors")
    values = {**SD, "lora": str(tmp_path / "text.safetensors")}
    adapted, bare = load(home, "sd-v1-5", values), load(home, "sd-v1-5", SD)
    assert np.abs(pixels(adapted) - pixels(bare)).mean() > 0.01
    state["text_encoder.encoder.layers.9.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 16)
    save_file(state, tmp_path / "text.safetensors")
    with pytest.raises(UserError, match=r"1 of its 9 names fit no layer.*layers\.9"):
        check(home, "sd-v1-5", values)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unet.mid.dora_scale", "DoRA"),
        ("lora_te_text_model_x.lora_down.weight", "does not fit"),
        ("unet.conv_in.diff_b", "does not fit"),
    ],
)
def test_a_lora_of_another_kind_is_refused(
    home: Path, tmp_path: Path, name: str, message: str
) -> None:
    save_file({name: torch.zeros(4, 4)}, tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match=message):
        check(home, "sd-v1-5", {**SD, "lora": str(tmp_path / "odd.safetensors")})


def test_a_pipeline_that_is_not_in_the_table_is_given_text(home: Path) -> None:
    values = {"num_inference_steps": 2, "original_inference_steps": 10}
    model: Any = load(home, f"diffusers:{home / 'lcm'}", values)
    assert model.encoder is None
    call = {"num_inference_steps": 2, "original_inference_steps": 10}
    assert np.array_equal(pixels(model), plain(model.pipeline, **call))


def test_two_text_encoders_of_one_kind(tmp_path: Path) -> None:
    """SDXL: zeros stand for no negative prompt, and an empty one is read."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    tokenizer = tiny.clip_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        StableDiffusionXLPipeline(
            vae=tiny.kl_vae(0.13),
            text_encoder=tiny.clip_text(tokenizer, 16),
            text_encoder_2=tiny.clip_text(tokenizer, 16, 16),
            tokenizer=tokenizer,
            tokenizer_2=tiny.clip_tokenizer(),
            unet=tiny._unet(
                32,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=64,
            ),
            scheduler=EulerDiscreteScheduler(),
        ).save_pretrained(tmp_path / "xl")
    images = []
    for negative in (None, "", "no change"):
        values = {"num_inference_steps": 2, "negative_prompt": negative}
        model: Any = load(tmp_path, f"diffusers:{tmp_path / 'xl'}", values)
        assert model.encoder is not None
        images.append(pixels(model))
        asked = {} if negative is None else {"negative_prompt": [negative] * len(REQUESTS)}
        theirs = plain(model.pipeline, num_inference_steps=2, **asked)
        assert np.abs(images[-1] - theirs).max() < 1 / 255
    assert np.abs(images[0] - images[1]).max() > 0.01
    assert np.abs(images[1] - images[2]).max() > 0.01


def test_sana_without_memory_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pipeline makes a warning of it, and then an error about a name without value."""
    values = {"weights": "sana", "steps": 1, "use_resolution_binning": False}
    model: Any = load(home, "sana", values)

    def full(*arguments: Any, **more: Any) -> None:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(model.pipeline.vae, "decode", full)
    with pytest.warns(UserWarning, match="no memory left"), pytest.raises(torch.OutOfMemoryError):
        list(model.generate(REQUESTS))


def test_sana_makes_its_trained_size_by_default(home: Path) -> None:
    """Its pipeline alone would make 1024 x 1024, by enlarging."""
    values = {"weights": "sana", "steps": 1, "use_resolution_binning": False}
    assert pixels(load(home, "sana", values)).shape == (3, tiny.SIZE, tiny.SIZE, 3)


def test_sana_without_its_instruction(home: Path) -> None:
    values = {"weights": "sana", "steps": 2, "use_resolution_binning": False}
    model: Any = load(home, "sana", {**values, "complex_human_instruction": False})
    call = {"num_inference_steps": 2, "use_resolution_binning": False}
    size = {"height": tiny.SIZE, "width": tiny.SIZE}
    theirs = plain(model.pipeline, **call, **size, complex_human_instruction=None)
    assert np.abs(pixels(model) - theirs).max() <= 1.5 / 255
    assert np.abs(pixels(model) - plain(model.pipeline, **call, **size)).max() > 0.1


def test_kept_embeddings_are_bounded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = load(home, "sd-v1-5", SD)
    one = 77 * 16 * 4
    monkeypatch.setattr(prompts_module, "_CACHE_BYTES", 2 * one)
    before = pixels(model)
    assert list(model.encoder._kept) == list(tiny.PROMPTS[1:])
    assert model.encoder._bytes == 2 * one
    assert np.array_equal(pixels(model), before)


def test_offload_is_no_part_of_the_identity_and_said_to_be_idle(home: Path) -> None:
    found = load_registry().models["sd-v1-5"]
    values = {**SD, "offload": "model"}
    assert found.parse(values).identity() == found.parse(SD).identity()
    assert check(home, "sd-v1-5", values) == ["offload=model has no effect without a GPU."]
    assert np.array_equal(pixels(load(home, "sd-v1-5", values)), pixels(load(home, "sd-v1-5", SD)))


@pytest.mark.slow
def test_a_compiled_network_makes_the_same_images_whatever_went_before(
    home: Path, tmp_path: Path
) -> None:
    folder = tiny.save("pixart-sigma", tmp_path / "pixart")
    values = {"weights": str(folder), "steps": 2, "use_resolution_binning": False}
    found = load_registry().models["pixart-sigma"]
    eager = pixels(load(home, "pixart-sigma", values))
    compiled = {**values, "compile": True}
    model = load(home, "pixart-sigma", compiled)
    many = pixels(model)
    alone = [np.asarray(next(iter(model.generate([r]))).image) for r in REQUESTS]  # type: ignore[union-attr]
    assert np.abs(many - eager).max() <= 1 / 255
    assert not np.array_equal(many, eager), "nothing was compiled"
    torch._dynamo.reset()
    other = load(home, "pixart-sigma", compiled)
    for request, image in zip(REQUESTS, alone, strict=True):
        assert np.array_equal(np.asarray(next(iter(other.generate([request]))).image), image)  # type: ignore[union-attr]
    assert np.array_equal(pixels(other), many)
    assert found.parse(compiled).identity() != found.parse(values).identity()
    assert "compile" not in found.parse(values).identity()


def test_what_could_not_be_compiled_is_said_before(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="offload=sequential"):
        check(home, "sd-v1-5", {**SD, "compile": True, "offload": "sequential"})
    monkeypatch.setenv("CXX", "no-such-compiler")
    from torch._inductor import config, cpp_builder

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    cpp_builder.cpp_compiler_search.cache_clear()
    with pytest.raises(UserError, match="needs a C\\+\\+ compiler") as caught:
        check(home, "sd-v1-5", {**SD, "compile": True})
    assert "compile=false" in str(caught.value.hint)
    cpp_builder.cpp_compiler_search.cache_clear()


def test_a_network_that_would_be_compiled_too_often_raises(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch would go on uncompiled, and the images would depend on which sizes went before."""
    import torch._dynamo as dynamo

    linear = torch.nn.Linear(2, 2)
    linear.compile(dynamic=False, backend="eager")
    with compiled_only(), dynamo.config.patch(recompile_limit=2):
        linear(torch.ones(1, 2))
        linear(torch.ones(2, 2))
        with pytest.raises(dynamo.exc.FailOnRecompileLimitHit):
            linear(torch.ones(3, 2))


@pytest.mark.slow
def test_another_attention_reaches_the_layers_or_is_refused(home: Path, tmp_path: Path) -> None:
    name = f"diffusers:{tiny.save('flux', tmp_path / 'flux')}"
    values: dict[str, Any] = {"num_inference_steps": 2}
    other = {**values, "attention": "_native_math"}
    first, second = (load(home, name, each) for each in (values, other))
    chosen = {
        str(module.processor._attention_backend.value)
        for module in second.pipeline.transformer.modules()  # type: ignore[attr-defined]
        if hasattr(module, "processor")
    }
    assert chosen == {"_native_math"}
    assert np.abs(pixels(first) - pixels(second)).max() <= 1 / 255
    found = load_registry().find("models", name)
    assert found.parse(values).identity() != found.parse(other).identity()
    for backend, message in (
        ("flesh", "no attention of model"),
        ("flash_hub", "no attention of model"),
        ("flash", "cannot be used here"),
    ):
        with pytest.raises(UserError, match=message):
            check(home, name, {**values, "attention": backend})
    with pytest.raises(UserError, match="No layer of UNet2DConditionModel"):
        check(home, "sd-v1-5", {**SD, "attention": "flash"})


def test_a_tokenizer_as_sentencepiece_alone_is_read(home: Path, tmp_path: Path) -> None:
    """The published PixArt-Sigma holds ``spiece.model`` and no ``tokenizer.json``."""
    import io
    import json

    import sentencepiece

    folder = tiny.save("pixart-sigma", tmp_path / "pixart")
    place = folder / "tokenizer"
    size = json.loads((folder / "text_encoder" / "config.json").read_text())["vocab_size"]
    for path in place.iterdir():
        path.unlink()
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text.lower() for text in tiny.PROMPTS] * 20),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (place / "spiece.model").write_bytes(model.getvalue())
    settings = {"tokenizer_class": "T5Tokenizer", "model_max_length": 64, "extra_ids": 0}
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    assert size > 40
    made = pixels(
        load(
            home,
            "pixart-sigma",
            {"weights": str(folder), "steps": 2, "use_resolution_binning": False},
        )
    )
    assert len({image.tobytes() for image in made}) == len(tiny.PROMPTS)
