"""Every diffusion family through its plugin, on tiny random weights in the real layout.

The pipelines of `tests/tiny.py` are saved as the real ones are, and loaded, checked and called by
the same code. What a plugin adds to diffusers (embeddings that are kept, generators a request,
refusals) is measured against the bare pipeline called with plain prompts.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import tiny
from chexgenbench.errors import UserError
from chexgenbench.images import to_image
from chexgenbench.registry import Registry, load_registry
from chexgenbench.types import Context, Made, Model, Request

PLUGINS = tuple(tiny.FAMILIES)
# One plugin of each family: sd-v1-4 differs from sd-v1-5 by name alone.
KINDS = tuple(name for name in PLUGINS if name not in {"sd-v1-4", "sd-v2"})
LORA = tuple(tiny.LORA_NAMES)
WHOLE = tuple(name for name in KINDS if name != "radedit")
GUIDED = tuple(name for name in KINDS if name != "flux-1-dev")

# The settings of the published protocol; Flux has none, so its pipeline's own.
SD = {"steps": 50, "guidance": 7.5}
SETTINGS: dict[str, dict[str, object]] = {
    "sd-v1-4": SD,
    "sd-v1-5": SD,
    "sd-v2": SD,
    "sd-v2-1": SD,
    "sd-v3-5-medium": {"steps": 40, "guidance": 4.5, "max_sequence_length": 512},
    "radedit": {"steps": 100, "guidance": 7.5},
    "sana": {"steps": 20, "guidance": 4.5},
    "pixart-sigma": {"steps": 20, "guidance": 4.5},
    "lumina-2": {
        "steps": 50,
        "guidance": 4.0,
        "cfg_trunc_ratio": 0.25,
        "cfg_normalization": True,
    },
    "flux-1-dev": {"steps": 28, "guidance": 3.5, "max_sequence_length": 512},
}
IMAGE_SIZE = {
    "sd-v3-5-medium": 1024,
    "lumina-2": 1024,
    "flux-1-dev": 1024,
}
COMMON = {
    "weights",
    "revision",
    "lora",
    "lora_scale",
    "scheduler",
    "dtype",
    "offload",
    "compile",
    "attention",
    "steps",
    "guidance",
    "negative_prompt",
    "size",
}


@pytest.fixture(scope="session")
def registry() -> Registry:
    return load_registry()


@dataclass
class Shelf:
    """Saved families, each built once."""

    root: Path
    registry: Registry
    kept: dict[str, tiny.Values] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    pipelines: dict[tuple[object, ...], Any] = field(default_factory=dict)

    def values(self, name: str, **more: Any) -> tiny.Values:
        if name not in self.kept:
            folder = self.root / name
            folder.mkdir()
            self.kept[name] = tiny.FAMILIES[name](folder)
        return {**self.kept[name], **more}

    def copy(self, name: str, place: Path) -> tiny.Values:
        """The same with its folders and files copied, to be spoilt."""
        values = self.values(name)
        shutil.copytree(self.root / name, place / name)
        return {
            key: value.replace(str(self.root), str(place)) if isinstance(value, str) else value
            for key, value in values.items()
        }

    def context(self, **more: Any) -> Context:
        return Context(home=self.root, cache=self.root / "cache", **more)

    def files(self, name: str, values: tiny.Values) -> list[Path]:
        """What is hashed."""
        found = self.registry.find("models", name)
        files = found.load().weights(found.parse(values), self.context())
        return sorted(files.values() if isinstance(files, Mapping) else files)

    def check(
        self,
        name: str,
        values: tiny.Values,
        requests: Sequence[Request] = (),
        **context: Any,
    ) -> list[str]:
        """What preflight does, with its remarks."""
        found = self.registry.find("models", name)
        parameters = found.parse(values)
        where = self.context(**context)
        model = found.load()
        model.weights(parameters, where)
        return list(model.check(parameters, where, requests))

    def load(self, name: str, values: tiny.Values | None = None, **context: Any) -> Model:
        values = self.values(name) if values is None else values
        self.check(name, values, ask(3), **context)
        found = self.registry.find("models", name)
        model: Model = found.create(found.parse(values), self.context(**context))
        return model

    def plain(self, name: str) -> Model:
        """The family's own, loaded once; for tests that leave it as it is."""
        if name not in self.models:
            self.models[name] = self.load(name)
        return self.models[name]

    def bare(self, name: str, values: tiny.Values) -> Any:
        key = (name, values["weights"], values.get("lora"))
        if key not in self.pipelines:
            self.pipelines[key] = bare(name, values)
        return self.pipelines[key]


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("families"), registry)


def ask(count: int, **more: Any) -> list[Request]:
    """Requests that go round the prompts, each with a seed of its own."""
    requests = [
        Request(id=f"s{i}", prompt_id=f"s{i}", prompt=tiny.PROMPTS[i % 3], seed=1000 + i)
        for i in range(count)
    ]
    return [replace(request, **more) for request in requests]


def made(model: Model, requests: Sequence[Request], batch: int = 64) -> NDArray[np.int64]:
    images = []
    for start in range(0, len(requests), batch):
        for each in model.generate(requests[start : start + batch]):
            image = each.image if isinstance(each, Made) else each
            images.append(np.asarray(to_image(image)[0]))
    return np.stack(images).astype(int)


def pipeline_of(model: Model) -> Any:
    return model.pipeline  # type: ignore[attr-defined]


def calls(module: torch.nn.Module) -> list[int]:
    """Grows by one with each forward pass of `module`."""
    seen: list[int] = []
    module.register_forward_hook(lambda *_: seen.append(1))
    return seen


def bare(name: str, values: tiny.Values) -> Any:
    """The pipeline as diffusers' own documentation would have a user load it."""
    import diffusers

    if name == "radedit":
        from transformers import BertConfig, BertModel, BertTokenizer

        folder = Path(str(values["text_encoder"]))
        known = json.loads((folder / "config.json").read_text())
        config = BertConfig(**{k: v for k, v in known.items() if k in BertConfig().to_dict()})
        text = BertModel(config, add_pooling_layer=False)
        state = load_file(folder / "model.safetensors")
        text.load_state_dict(
            {
                key.removeprefix("bert."): value
                for key, value in state.items()
                if key.startswith(("bert.embeddings.", "bert.encoder."))
                and not key.endswith("position_ids")
            }
        )
        pipeline = diffusers.StableDiffusionPipeline(
            unet=diffusers.UNet2DConditionModel.from_pretrained(
                values["weights"], subfolder="unet"
            ),
            vae=diffusers.AutoencoderKL.from_pretrained(values["vae"]),
            text_encoder=text.eval(),
            tokenizer=BertTokenizer.from_pretrained(folder, model_max_length=128),
            scheduler=diffusers.DDIMScheduler(
                beta_schedule="linear",
                clip_sample=False,
                prediction_type="epsilon",
                timestep_spacing="trailing",
                steps_offset=1,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    else:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(values["weights"])
    if "lora" in values:
        pipeline.load_lora_weights(str(values["lora"]))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def unadapted(values: tiny.Values) -> tiny.Values:
    return {key: value for key, value in values.items() if key != "lora"}


CALLS: dict[str, dict[str, object]] = {
    "sd-v3-5-medium": {"max_sequence_length": 512},
    "sana": {"use_resolution_binning": False},
    "pixart-sigma": {"use_resolution_binning": False},
    "lumina-2": {"cfg_trunc_ratio": 0.25, "cfg_normalization": True},
}


def plainly(name: str, pipeline: Any, requests: Sequence[Request], **more: Any) -> NDArray[Any]:
    """What the bare pipeline makes of plain prompts, in grey levels before rounding."""
    settings: dict[str, Any] = {
        "guidance_scale": SETTINGS[name]["guidance"],
        "num_inference_steps": tiny.STEPS,
        "height": tiny.SIZE,
        "width": tiny.SIZE,
    }
    settings |= CALLS.get(name, {}) | more
    images = pipeline(
        prompt=[request.prompt for request in requests],
        generator=[torch.Generator().manual_seed(request.seed) for request in requests],
        output_type="np",
        **settings,
    ).images
    return np.asarray(images, np.float64) * 255


def furthest(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(np.abs(a - b).max())


def apart(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Root mean square difference in grey levels."""
    return float(np.sqrt(np.mean((a.astype(float) - b) ** 2)))


# --- the builders ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", tiny.PIPELINES)
def test_a_tiny_pipeline_sees_its_prompt(kind: str) -> None:
    """Its traps are silent: an end token that the encoder does not know, a T5 that is cut off, a
    tokenizer without a vocabulary. Each of its text encoders must tell the prompts apart."""
    pipeline = tiny.build(kind)
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert 20_000 < sum(p.numel() for part in parts for p in part.parameters()) < 200_000
    for number in ("", "_2", "_3"):
        encoder = getattr(pipeline, f"text_encoder{number}", None)
        if encoder is None:
            continue
        tokenizer = getattr(pipeline, f"tokenizer{number}")
        tokenizer.padding_side = "right"  # as every pipeline here has it
        tokens = tokenizer(
            list(tiny.PROMPTS), padding="max_length", max_length=32, return_tensors="pt"
        ).input_ids
        with torch.inference_mode():
            output = encoder(tokens)
        pooled = getattr(output, "text_embeds", None)
        for value in (output.last_hidden_state, output.last_hidden_state[:, :3], pooled):
            if value is not None:
                gaps = [(value[i] - value[j]).abs().max() for i, j in ((0, 1), (0, 2), (1, 2))]
                assert min(gaps) > 0.1


def test_the_builders_make_the_same_pipeline_each_time() -> None:
    one, two = (tiny.build("sd3").transformer.state_dict() for _ in range(2))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_an_end_token_of_another_number_makes_all_prompts_one() -> None:
    """The trap itself, so that the builder's remark stays true."""
    tokenizer = tiny.clip_tokenizer()
    tokens = tokenizer(list(tiny.PROMPTS), padding="max_length", return_tensors="pt").input_ids
    encoder = tiny.clip_text(tokenizer, 16)
    encoder.eos_token_id = encoder.config.eos_token_id = 5
    for part in encoder.modules():
        if hasattr(part, "eos_token_id"):
            part.eos_token_id = 5
    with torch.inference_mode():
        pooled = encoder(tokens).pooler_output
    assert torch.allclose(pooled[0], pooled[1])


@pytest.mark.parametrize("name", LORA)
def test_the_lora_of_a_family_changes_its_images(shelf: Shelf, name: str) -> None:
    values = shelf.values(name)
    with_lora = plainly(name, shelf.bare(name, values), ask(2))
    without = plainly(name, shelf.bare(name, unadapted(values)), ask(2))
    assert apart(with_lora, without) > 1


# --- what a plugin makes --------------------------------------------------------------------


@pytest.mark.parametrize("name", PLUGINS)
def test_settings_are_the_published_ones(registry: Registry, name: str) -> None:
    spec = registry.models[name].spec
    assert spec.argument == "weights"
    fields = spec.parameters.model_fields
    assert set(fields) >= COMMON
    assert all(info.description for info in fields.values())
    found = {key: fields[key].get_default(call_default_factory=True) for key in SETTINGS[name]}
    assert found == SETTINGS[name]
    assert fields["lora"].is_required() is False
    assert fields["lora_scale"].default == 1.0
    assert spec.image_size == IMAGE_SIZE.get(name, 512)
    # As published: Stable Diffusion 1 and 2 and RadEdit in single precision, Lumina in bfloat16.
    single = {"sd-v1-4", "sd-v1-5", "sd-v2", "sd-v2-1", "radedit"}
    coarse = {"lumina-2", "flux-1-dev"}
    wanted = "float32" if name in single else "bfloat16" if name in coarse else "float16"
    assert spec.gpu_dtype == wanted


def test_the_published_flux_settings_are_its_pipelines_own() -> None:
    """None were published; a later diffusers with other defaults should be noticed."""
    from diffusers import FluxPipeline

    call = inspect.signature(FluxPipeline.__call__).parameters
    ours = SETTINGS["flux-1-dev"]
    assert call["num_inference_steps"].default == ours["steps"]
    assert call["guidance_scale"].default == ours["guidance"]
    assert call["max_sequence_length"].default == ours["max_sequence_length"]


@pytest.mark.parametrize("name", PLUGINS)
def test_the_seed_decides_and_the_prompt_counts(shelf: Shelf, name: str) -> None:
    model = shelf.plain(name)
    first = made(model, ask(3))
    assert first.shape == (3, tiny.SIZE, tiny.SIZE, 3)
    assert np.array_equal(first, made(model, ask(3)))
    one_seed = made(model, ask(3, seed=7))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert apart(one_seed[i], one_seed[j]) > 2
    one_prompt = made(model, ask(3, prompt=tiny.PROMPTS[0]))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert apart(one_prompt[i], one_prompt[j]) > 2


@pytest.mark.parametrize("name", KINDS)
def test_a_plugin_makes_what_the_bare_pipeline_makes(shelf: Shelf, name: str) -> None:
    """Embeddings that were made alone and kept are those that a plain prompt gets."""
    values = shelf.values(name)
    requests = ask(4)
    ours = made(shelf.plain(name), requests)
    theirs = plainly(name, shelf.bare(name, values), requests)
    assert furthest(ours, theirs) <= 1


@pytest.mark.parametrize("name", GUIDED)
def test_a_negative_prompt_is_the_bare_pipelines_too(shelf: Shelf, name: str) -> None:
    words, steps = "pleural effusion", 2
    if name == "lumina-2":
        steps = 8  # its guidance stops after a quarter of them
    plain = shelf.values(name, steps=steps)
    values: tiny.Values = {**plain, "negative_prompt": words}
    ours = made(shelf.load(name, values), ask(3))
    theirs = plainly(
        name,
        shelf.bare(name, values),
        ask(3),
        negative_prompt=[words] * 3,
        num_inference_steps=steps,
    )
    assert furthest(ours, theirs) <= 1
    assert apart(ours, made(shelf.load(name, plain), ask(3))) > 1


@pytest.mark.parametrize("name", GUIDED)
def test_without_guidance_nothing_negative_is_read(shelf: Shelf, name: str) -> None:
    values = shelf.values(name, guidance=1)
    model = shelf.load(name, values)
    seen = calls(pipeline_of(model).text_encoder)
    plain = made(model, ask(3))
    assert len(seen) == 3
    theirs = plainly(name, shelf.bare(name, values), ask(3), guidance_scale=1.0)
    assert furthest(plain, theirs) <= 1
    other = made(shelf.load(name, {**values, "negative_prompt": "No change."}), ask(3))
    assert np.array_equal(plain, other)


@pytest.mark.parametrize("name", KINDS)
def test_a_batch_changes_at_most_one_grey_level(shelf: Shelf, name: str) -> None:
    model = shelf.plain(name)
    alone = made(model, ask(7), 1)
    assert np.array_equal(alone, made(model, ask(7), 1))
    for batch in (2, 5):
        difference = np.abs(made(model, ask(7), batch) - alone)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 1e-3


@pytest.mark.parametrize("name", KINDS)
def test_what_was_made_before_leaves_no_trace(shelf: Shelf, name: str) -> None:
    """The same batch is the same to the bit: in another order of batches, with embeddings that are
    kept already, in a fresh instance."""
    requests = ask(6)
    batches = [requests[0:2], requests[2:4], requests[4:6]]
    model = shelf.plain(name)
    forward = [made(model, batch) for batch in batches]
    again = [made(model, batch) for batch in batches]
    fresh = shelf.load(name)
    backward = [made(fresh, batch) for batch in reversed(batches)][::-1]
    for one, two, three in zip(forward, again, backward, strict=True):
        assert np.array_equal(one, two)
        assert np.array_equal(one, three)


@pytest.mark.parametrize("name", KINDS)
def test_a_prompt_is_read_once(shelf: Shelf, name: str) -> None:
    model = shelf.load(name)
    encoders = [
        calls(part)
        for key, part in pipeline_of(model).components.items()
        if key.startswith("text_encoder")
    ]
    made(model, ask(4), 2)
    after = [len(seen) for seen in encoders]
    assert after[0] >= 3
    made(model, ask(6, seed=5), 3)
    assert [len(seen) for seen in encoders] == after


@pytest.mark.parametrize("name", KINDS)
def test_steps_are_counted(shelf: Shelf, name: str) -> None:
    model = shelf.load(name, shelf.values(name, steps=4))
    scheduler = pipeline_of(model).scheduler
    step, seen = scheduler.step, []

    def counted(*given: Any, **more: Any) -> Any:
        seen.append(1)
        return step(*given, **more)

    scheduler.step = counted
    made(model, ask(2))
    # PNDM takes its second step twice.
    assert len(seen) == 4 + (type(scheduler).__name__ == "PNDMScheduler")


@pytest.mark.parametrize("name", KINDS)
def test_half_precision_runs(shelf: Shelf, name: str) -> None:
    model = shelf.load(name, dtype="bfloat16")
    denoiser = getattr(pipeline_of(model), "unet", None) or pipeline_of(model).transformer
    assert denoiser.dtype == torch.bfloat16
    coarse = made(model, ask(2))
    assert apart(coarse, made(shelf.plain(name), ask(2))) < 30
    assert np.array_equal(coarse, made(model, ask(2)))


@pytest.mark.parametrize("name", KINDS)
def test_a_size_is_made_or_refused(shelf: Shelf, name: str) -> None:
    values = shelf.values(name, size=96)
    assert made(shelf.load(name, values), ask(1)).shape == (1, 96, 96, 3)
    model = shelf.load(name, {key: value for key, value in values.items() if key != "size"})
    assert made(model, ask(1, size=32)).shape == (1, 32, 32, 3)
    for wrong in (33, 100, 4):
        with pytest.raises(UserError, match=str(wrong)):
            shelf.check(name, values, ask(2, size=wrong))
    with pytest.raises(UserError, match="68"):
        shelf.check(name, shelf.values(name, size=68), ask(1))


@pytest.mark.parametrize("name", KINDS)
def test_prompts_that_are_too_long_are_counted_and_flagged(shelf: Shelf, name: str) -> None:
    requests = ask(3)
    assert not any("token" in remark for remark in shelf.check(name, shelf.values(name), requests))
    requests[1] = replace(requests[1], prompt="effusion " * 700)
    remarks = shelf.check(name, shelf.values(name), requests)
    assert [remark for remark in remarks if "1 of 3" in remark]
    flags = [
        each.flags if isinstance(each, Made) else ()
        for each in shelf.plain(name).generate(requests)
    ]
    assert flags == [(), ("truncated",), ()]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_refused(shelf: Shelf, name: str, prompt: str) -> None:
    requests = [*ask(2), replace(ask(1)[0], id="odd", prompt_id="row-17", prompt=prompt)]
    with pytest.raises(UserError, match="row-17"):
        shelf.check(name, shelf.values(name), requests)


SCHEDULERS = {
    "sd-v1-5": "EulerDiscreteScheduler",
    "sd-v2-1": "DPMSolverMultistepScheduler",
    "radedit": "DPMSolverMultistepScheduler",
    "sana": "UniPCMultistepScheduler",
    "pixart-sigma": "EulerDiscreteScheduler",
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_is_replaced(shelf: Shelf, name: str) -> None:
    # In two steps, solvers of any order take the same ones.
    values = shelf.values(name, steps=4)
    before = shelf.load(name, values)
    settings = dict(pipeline_of(before).scheduler.config)
    model = shelf.load(name, {**values, "scheduler": SCHEDULERS[name]})
    scheduler = pipeline_of(model).scheduler
    assert type(scheduler).__name__ == SCHEDULERS[name]
    for key in ("prediction_type", "beta_start", "beta_schedule"):
        assert scheduler.config[key] == settings[key]
    assert apart(made(model, ask(2)), made(before, ask(2))) > 0.5


@pytest.mark.parametrize("name", ["sd-v1-5", "flux-1-dev"])
@pytest.mark.parametrize("scheduler", ["EulerScheduler", "UNet2DModel", "KarrasVeScheduler"])
def test_a_scheduler_that_does_not_fit_is_refused(shelf: Shelf, name: str, scheduler: str) -> None:
    with pytest.raises(UserError, match=scheduler):
        shelf.check(name, shelf.values(name, scheduler=scheduler), ask(1))


@pytest.mark.parametrize("name", KINDS)
def test_weights_are_the_files_that_are_loaded(shelf: Shelf, tmp_path: Path, name: str) -> None:
    """Other precisions and single-file checkpoints that lie beside them change no identity."""
    values = shelf.copy(name, tmp_path)
    before = shelf.files(name, values)
    assert all(path.is_file() for path in before)
    assert len(set(before)) == len(before)
    assert {path.suffix for path in before} <= {".safetensors", ".json", ".txt"}
    for path in tmp_path.rglob("*.safetensors"):
        if path.parent.name in {"unet", "transformer", "vae", "text_encoder"}:
            shutil.copy(path, path.with_suffix(".fp16.safetensors"))
            shutil.copy(path, path.parents[1] / f"whole-{path.name}")
    assert shelf.files(name, values) == before
    assert not [path for path in before if path.name == "sdxl_vae.safetensors"]
    if "lora" in values:
        assert Path(str(values["lora"])) in before


@pytest.mark.parametrize("name", KINDS)
def test_where_weights_lie_is_no_part_of_the_identity(
    shelf: Shelf, registry: Registry, tmp_path: Path, name: str
) -> None:
    here, there = shelf.values(name), shelf.copy(name, tmp_path)
    assert registry.models[name].parse(here).identity() == (
        registry.models[name].parse(there).identity()
    )
    one, two = made(shelf.load(name, here), ask(2)), made(shelf.load(name, there), ask(2))
    assert np.array_equal(one, two)


# --- weights that are none ------------------------------------------------------------------


def weights_of(values: tiny.Values) -> Path:
    return Path(str(values["weights"]))


@pytest.mark.parametrize("name", KINDS)
def test_weights_that_are_not_there(shelf: Shelf, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    wrong = "is no diffusers pipeline" if name != "radedit" else r"config\.json"
    with pytest.raises(UserError, match=wrong):
        shelf.check(name, shelf.values(name, weights=str(tmp_path / "empty")))
    with pytest.raises(UserError, match="is not a folder"):
        shelf.check(name, shelf.values(name, weights=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match="owner/unheard-of") as caught:
        shelf.check(name, shelf.values(name, weights="owner/unheard-of"))
    assert "owner/unheard-of" in str(caught.value.hint)


@pytest.mark.parametrize("name", WHOLE)
def test_another_pipelines_weights_are_refused(shelf: Shelf, name: str) -> None:
    other = "sana" if name != "sana" else "pixart-sigma"
    found = type(tiny.build(other)).__name__
    with pytest.raises(UserError, match=found) as caught:
        shelf.check(name, shelf.values(name, weights=shelf.values(other)["weights"]))
    assert "diffusers:" in str(caught.value.hint)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("part", ["class", "part"])
def test_code_that_comes_with_weights_is_refused(
    shelf: Shelf, tmp_path: Path, name: str, part: str
) -> None:
    values = shelf.copy(name, tmp_path)
    folder = weights_of(values)
    index = json.loads((folder / "model_index.json").read_text())
    denoiser = "unet" if "unet" in index else "transformer"
    if part == "class":
        index["_class_name"] = ["pipeline", "Own"]
    else:
        index[denoiser] = ["own_code", "Own"]
    code = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\nOwn = object\n"
    (folder / "pipeline.py").write_text(code)
    (folder / denoiser / "own_code.py").write_text(code)
    (folder / "model_index.json").write_text(json.dumps(index))
    for allow_pickle in (False, True):
        with pytest.raises(UserError, match="code of its own"):
            shelf.load(name, values, allow_pickle=allow_pickle)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", KINDS)
def test_a_part_that_is_missing_is_named(shelf: Shelf, tmp_path: Path, name: str) -> None:
    values = shelf.copy(name, tmp_path)
    folder = Path(str(values.get("text_encoder", weights_of(values) / "text_encoder")))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=folder.name):
        shelf.check(name, values)


@pytest.mark.parametrize("name", KINDS)
def test_damaged_weights_are_the_users_fault(shelf: Shelf, tmp_path: Path, name: str) -> None:
    values = shelf.copy(name, tmp_path)
    part = "transformer" if (weights_of(values) / "transformer").is_dir() else "unet"
    path = weights_of(values) / part / "diffusion_pytorch_model.safetensors"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match="diffusion_pytorch_model"):
            shelf.check(name, values, ask(1))


def pickle_weights(folder: Path) -> None:
    """As older versions of the libraries saved them."""
    for path in folder.rglob("*.safetensors"):
        if "lora" in path.name:
            continue
        name = "pytorch_model.bin" if path.name == "model.safetensors" else f"{path.stem}.bin"
        torch.save(load_file(path), path.with_name(name))
        path.unlink()


@pytest.mark.parametrize("name", KINDS)
def test_pickles_are_refused_unless_the_user_accepts_them(
    shelf: Shelf, tmp_path: Path, name: str
) -> None:
    values = shelf.copy(name, tmp_path)
    pickle_weights(tmp_path)
    with pytest.raises(UserError, match="can run any code") as caught:
        shelf.check(name, values)
    assert "--allow-pickle" in str(caught.value.hint)
    accepted = made(shelf.load(name, values, allow_pickle=True), ask(2))
    assert np.array_equal(accepted, made(shelf.plain(name), ask(2)))


@pytest.mark.parametrize("name", KINDS)
def test_a_parameter_that_the_pipeline_does_not_have(shelf: Shelf, name: str) -> None:
    with pytest.raises(UserError, match="cfg_trunk_ratio"):
        shelf.check(name, shelf.values(name, cfg_trunk_ratio=0.5))
    with pytest.raises(UserError, match="stepps") as caught:
        shelf.check(name, shelf.values(name, stepps=5))
    assert "'steps'" in str(caught.value.hint)
    for values in ({"steps": 0}, {"guidance": -1}, {"dtype": "int8"}, {"offload": "disk"}):
        with pytest.raises(UserError, match=next(iter(values))):
            shelf.check(name, shelf.values(name, **values))


def test_radedit_runs_no_code_of_its_text_encoder(shelf: Shelf) -> None:
    """Its repository names code; `tests/tiny.py` puts some there that would end the process."""
    folder = Path(str(shelf.values("radedit")["text_encoder"]))
    assert "auto_map" in json.loads((folder / "config.json").read_text())
    model = shelf.plain("radedit")
    text = pipeline_of(model).text_encoder
    assert type(text).__module__.startswith("transformers.")
    state = load_file(folder / "model.safetensors")
    mine = text.state_dict()
    same = [key for key in mine if torch.equal(mine[key], state.get(f"bert.{key}", mine[key][:0]))]
    assert set(mine) - set(same) <= {"pooler.dense.weight", "pooler.dense.bias"}
    assert pipeline_of(model).tokenizer.model_max_length == 128


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_radedit_needs_each_of_its_parts(shelf: Shelf, tmp_path: Path, part: str) -> None:
    with pytest.raises(UserError, match="nowhere"):
        shelf.check("radedit", shelf.values("radedit", **{part: str(tmp_path / "nowhere")}))
    with pytest.raises(UserError):
        shelf.check("radedit", shelf.values("radedit", **{part: shelf.values("sana")["weights"]}))


def test_radedits_text_encoder_may_be_a_plain_state_dict(shelf: Shelf, tmp_path: Path) -> None:
    """Its repository has one beside the safetensors; torch's restricted loader runs no code."""
    values = shelf.copy("radedit", tmp_path)
    folder = Path(str(values["text_encoder"]))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert folder / "pytorch_model.bin" in shelf.files("radedit", values)
    ours = made(shelf.load("radedit", values), ask(2))
    assert np.array_equal(ours, made(shelf.plain("radedit"), ask(2)))


@pytest.mark.parametrize("name", ["sd-v1-5", "stable-diffusion"])
def test_a_safety_checker_is_not_loaded(shelf: Shelf, tmp_path: Path, name: str) -> None:
    """The published index names one, which blanks medical images; `fetch` does not bring it."""
    values = shelf.copy("sd-v1-5", tmp_path)
    path = weights_of(values) / "model_index.json"
    index = json.loads(path.read_text()) | {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": True,
    }
    path.write_text(json.dumps(index))
    model = shelf.load(name, values)
    assert pipeline_of(model).safety_checker is None
    assert furthest(made(model, ask(2)), plainly("sd-v1-5", pipeline_of(model), ask(2))) <= 1


@pytest.mark.parametrize("name", ["sd-v3-5-medium", "flux-1-dev", "pixart-sigma"])
def test_weights_in_several_files(shelf: Shelf, tmp_path: Path, name: str) -> None:
    """As the published weights of more than 5 GB are; each file counts, and none may be missing."""
    values = shelf.copy(name, tmp_path)
    transformer = pipeline_of(shelf.plain(name)).transformer
    folder = weights_of(values) / "transformer"
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    kind = {"sd-v3-5-medium": "sd3", "flux-1-dev": "flux"}.get(name, name)
    tiny.build(kind).transformer.save_pretrained(folder, max_shard_size="40KB")
    shards = sorted(folder.glob("*-of-*.safetensors"))
    assert len(shards) > 1
    assert set(shards) < set(shelf.files(name, values))
    model = shelf.load(name, values)
    assert len(pipeline_of(model).transformer.state_dict()) == len(transformer.state_dict())
    assert np.array_equal(made(model, ask(2)), made(shelf.plain(name), ask(2)))
    shards[-1].unlink()
    with pytest.raises(UserError, match=shards[-1].name):
        shelf.check(name, values, ask(1))


# --- LoRA -----------------------------------------------------------------------------------


def rewrite(path: Path, change: Callable[[str, torch.Tensor], Iterator[Any]], **more: str) -> None:
    state = load_file(path)
    changed = dict(pair for key, value in state.items() for pair in change(key, value))
    save_file(changed, path, metadata={"format": "pt", **more})


def lora_of(values: tiny.Values) -> Path:
    return Path(str(values["lora"]))


def _prefix(key: str, value: torch.Tensor) -> Iterator[Any]:
    yield key.replace("transformer.", "unet.", 1), value


def _no_prefix(key: str, value: torch.Tensor) -> Iterator[Any]:
    yield key.removeprefix("transformer."), value


def _no_module(key: str, value: torch.Tensor) -> Iterator[Any]:
    yield (
        key.replace("to_q", "query")
        .replace("to_k", "key")
        .replace("to_v", "value")
        .replace("to_out", "out"),
        value,
    )


def _half(key: str, value: torch.Tensor) -> Iterator[Any]:
    yield (key.replace("to_q", "query") if "to_q" in key else key), value


def _empty(key: str, value: torch.Tensor) -> Iterator[Any]:
    yield from ()


def _odd(key: str, value: torch.Tensor) -> Iterator[Any]:
    if "to_q.lora_B" not in key:
        yield key, value


def _no_lora(key: str, value: torch.Tensor) -> Iterator[Any]:
    yield key.replace("lora_A", "down").replace("lora_B", "up"), value


SPOILT = {
    "wrong prefix": _prefix,
    "no prefix": _no_prefix,
    "no matching module": _no_module,
    "half a match": _half,
    "empty": _empty,
    "half an adapter": _odd,
    "no LoRA": _no_lora,
}


@pytest.mark.parametrize("name", LORA)
@pytest.mark.parametrize("fault", SPOILT)
def test_a_lora_that_does_not_fit_is_refused_before_the_run(
    shelf: Shelf, tmp_path: Path, name: str, fault: str
) -> None:
    """diffusers says little: an unchanged or half-changed output and a line in a log."""
    values = shelf.copy(name, tmp_path)
    rewrite(lora_of(values), SPOILT[fault])
    with pytest.raises(UserError, match=lora_of(values).name):
        shelf.check(name, values, ask(1))


@pytest.mark.parametrize("name", LORA)
def test_a_lora_of_another_width_is_refused_before_the_run(
    shelf: Shelf, tmp_path: Path, name: str
) -> None:
    """Flux would resize its base weights without a word."""
    wider = {"sd-v3-5-medium": tiny.sd_v3, "lumina-2": tiny.lumina_2, "flux-1-dev": tiny.flux}
    values = shelf.values(name)
    path = tiny.save_lora(wider[name](48), tmp_path, lora_of(values).name)
    with pytest.raises(UserError, match=path.name):
        shelf.check(name, {**values, "lora": str(path)}, ask(1))


@pytest.mark.parametrize("name", LORA)
def test_alpha_is_kept_or_said_to_be_assumed(shelf: Shelf, tmp_path: Path, name: str) -> None:
    values = shelf.values(name)
    remarks = shelf.check(name, values, ask(1))
    assert [remark for remark in remarks if "alpha" in remark]
    pipeline = tiny.build({"sd-v3-5-medium": "sd3", "flux-1-dev": "flux"}.get(name, name))
    tensors, config = tiny.lora_tensors(pipeline.transformer, alpha=3 * tiny.RANK)
    from diffusers.training_utils import _collate_lora_metadata

    pipeline.transformer.add_adapter(config)
    metadata = _collate_lora_metadata({"transformer": pipeline.transformer})
    type(pipeline).save_lora_weights(
        tmp_path,
        transformer_lora_layers=tensors,
        weight_name=lora_of(values).name,
        **metadata,
    )
    scaled = {**values, "lora": str(tmp_path / lora_of(values).name)}
    assert not [r for r in shelf.check(name, scaled, ask(1)) if "alpha" in r]
    ours = made(shelf.load(name, scaled), ask(2))
    assert furthest(ours, plainly(name, shelf.bare(name, scaled), ask(2))) <= 1
    assert apart(ours, made(shelf.plain(name), ask(2))) > 1
    # Three times the effect by alpha or by the user's scale is the same.
    by_scale = made(shelf.load(name, {**values, "lora_scale": 3.0}), ask(2))
    assert furthest(ours, by_scale) <= 1


@pytest.mark.parametrize("name", LORA)
def test_a_lora_counts_by_its_scale(shelf: Shelf, name: str) -> None:
    values = shelf.values(name)
    full = made(shelf.plain(name), ask(2))
    none = made(shelf.load(name, {**values, "lora_scale": 0.0}), ask(2))
    base = plainly(name, shelf.bare(name, unadapted(values)), ask(2))
    assert furthest(none, base) <= 1
    assert apart(full, none) > 1


@pytest.mark.parametrize("name", LORA)
def test_a_lora_is_found_in_its_folder(shelf: Shelf, tmp_path: Path, name: str) -> None:
    values = shelf.values(name)
    shutil.copy(lora_of(values), tmp_path)
    model = shelf.load(name, {**values, "lora": str(tmp_path)})
    assert np.array_equal(made(model, ask(2)), made(shelf.plain(name), ask(2)))
    with pytest.raises(UserError, match="nowhere"):
        shelf.check(name, {**values, "lora": str(tmp_path / "nowhere")})
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="empty"):
        shelf.check(name, {**values, "lora": str(empty)})


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_a_lora_that_is_a_pickle_is_refused(
    shelf: Shelf, tmp_path: Path, allow_pickle: bool
) -> None:
    values = shelf.values("flux-1-dev")
    path = tmp_path / "flux_lora.bin"
    torch.save(load_file(lora_of(values)), path)
    with pytest.raises(UserError, match="safetensors"):
        shelf.check("flux-1-dev", {**values, "lora": str(path)}, allow_pickle=allow_pickle)


def test_a_lora_goes_with_other_models_too(shelf: Shelf, tmp_path: Path) -> None:
    """``lora`` is a parameter of every diffusion model, of a U-Net's as well."""
    values = shelf.values("sd-v1-5")
    pipeline = tiny.build("sd-v1")
    state, _ = tiny.lora_tensors(pipeline.unet)
    name = "mine.safetensors"
    type(pipeline).save_lora_weights(tmp_path, unet_lora_layers=state, weight_name=name)
    adapted = {**values, "lora": str(tmp_path / name)}
    ours = made(shelf.load("sd-v1-5", adapted), ask(2))
    assert furthest(ours, plainly("sd-v1-5", shelf.bare("sd-v1-5", adapted), ask(2))) <= 1
    assert apart(ours, made(shelf.plain("sd-v1-5"), ask(2))) > 1
    with pytest.raises(UserError, match="takes no LoRA"):
        shelf.check("pixart-sigma", shelf.values("pixart-sigma", lora=adapted["lora"]), ask(1))


# --- any pipeline of diffusers --------------------------------------------------------------

ANY = {
    "sd-v1-5": {"guidance_rescale": 0.5, "eta": 0.0},
    "sd-v2-1": {"guidance_rescale": 0.5},
    "sd-v3-5-medium": {"max_sequence_length": 64},
    "sana": {"use_resolution_binning": False, "max_sequence_length": 64},
    # Its default, true, needs a package that is not the project's.
    "pixart-sigma": {"use_resolution_binning": False, "clean_caption": False},
    "lumina-2": {"cfg_trunc_ratio": 0.5, "cfg_normalization": False},
    "flux-1-dev": {"max_sequence_length": 64},
}


@pytest.mark.parametrize("name", ANY)
def test_any_diffusers_pipeline(shelf: Shelf, registry: Registry, name: str) -> None:
    folder = shelf.values(name)["weights"]
    text = f"diffusers:{folder}"
    found = registry.find("models", text)
    fields = found.spec.parameters.model_fields
    assert set(fields) >= COMMON - {"steps", "guidance"} | set(ANY[name])
    taken = {"prompt", "generator", "latents", "prompt_embeds", "callback_on_step_end", "height"}
    assert not set(fields) & (taken | {"output_type", "return_dict", "num_images_per_prompt"})
    call = inspect.signature(type(shelf.bare(name, shelf.values(name))).__call__).parameters
    for key in ANY[name]:
        assert fields[key].default == call[key].default
        assert fields[key].description
    values: tiny.Values = {
        # As the command line gives them.
        **{key: str(value) for key, value in ANY[name].items()},
        "num_inference_steps": "2",
        "guidance_scale": "3.0",
        "size": "64",
    }
    shelf.check(text, values, ask(3))
    ours = made(shelf.load(text, values), ask(3))
    plain = shelf.bare(name, {"weights": folder})
    settings = {**ANY[name], "guidance_scale": 3.0}
    call_before = CALLS.get(name, {})
    theirs = plainly(name, plain, ask(3), **{**call_before, **settings})
    assert furthest(ours, theirs) <= 1


def test_an_unknown_call_argument_is_refused_with_the_nearest(shelf: Shelf) -> None:
    text = f"diffusers:{shelf.values('sd-v1-5')['weights']}"
    with pytest.raises(UserError, match="num_inference_step'") as caught:
        shelf.check(text, {"num_inference_step": 5})
    assert "Did you mean 'num_inference_steps'" in str(caught.value.hint)
    for values in ({"num_inference_steps": "many"}, {"guidance_scale": "high"}):
        with pytest.raises(UserError, match=next(iter(values))):
            shelf.check(text, values)


def test_diffusers_with_no_text_or_a_wrong_one(shelf: Shelf, tmp_path: Path) -> None:
    from chexgenbench.workflow.plan import find_models

    with pytest.raises(UserError, match="diffusers"):
        find_models(shelf.registry, ["diffusers"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"model_index\.json"):
        shelf.registry.find("models", f"diffusers:{tmp_path / 'empty'}")
    with pytest.raises(UserError, match="owner/unheard-of"):
        shelf.registry.find("models", "diffusers:owner/unheard-of")
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    for content in ("{", "[]", '{"_class_name": "NoSuchPipeline"}', '{"_class_name": ["a", "b"]}'):
        (wrong / "model_index.json").write_text(content)
        with pytest.raises(UserError, match=r"wrong|NoSuchPipeline"):
            shelf.registry.find("models", f"diffusers:{wrong}")


def test_a_pipeline_that_takes_an_image_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    values = shelf.copy("sd-v1-5", tmp_path)
    path = weights_of(values) / "model_index.json"
    index = json.loads(path.read_text())
    index["_class_name"] = "StableDiffusionImg2ImgPipeline"
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match="StableDiffusionImg2ImgPipeline"):
        shelf.check(f"diffusers:{weights_of(values)}", {}, ask(1))
