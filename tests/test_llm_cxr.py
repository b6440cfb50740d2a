"""LLM-CXR on a tiny GPT-NeoX and a tiny VQ-GAN in the layout of the published files."""

from __future__ import annotations

import importlib.metadata
import json
import pickle
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from chexgenbench.errors import ChexGenBenchError, UserError
from chexgenbench.executors import run_workers
from chexgenbench.images import read_image, to_image
from chexgenbench.jobs.generate import hold
from chexgenbench.jobs.job import GenerateJob, plain_context
from chexgenbench.registry import load_registry
from chexgenbench.types import Context, Made, Model, Request
from chexgenbench_plugins.llm_cxr.sampling import LENGTH, choose, draw_codes
from chexgenbench_plugins.llm_cxr.vqgan import VqGan
from tiny_llm_cxr import (
    CODES,
    POSITIONS,
    REPORTS,
    published_state,
    taming,
    tiny_llm_cxr,
)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llm-cxr")
    tiny_llm_cxr(folder)
    return folder


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return load(tiny)


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny, tmp_path / "copy")


def load(folder: Path, *, dtype: str = "float32", pickles: bool = False, **values: Any) -> Model:
    """By the way that a run goes: weights, check, create."""
    found = load_registry().models["llm-cxr"]
    parameters = found.parse({"weights": str(folder)} | values)
    context = Context(home=folder, cache=folder, dtype=dtype, allow_pickle=pickles)
    found.load().weights(parameters, context)
    found.load().check(parameters, context, requests(1))
    return found.create(parameters, context)


def requests(count: int, **changes: Any) -> list[Request]:
    return [
        Request(
            **{"id": f"s{i}", "prompt_id": f"s{i}", "prompt": REPORTS[i % 3], "seed": 100 + i}
            | changes
        )
        for i in range(count)
    ]


def images(model: Model, wanted: Sequence[Request]) -> list[np.ndarray]:
    return [made.image for made in model.generate(wanted)]


def draw(model: Any, texts: Sequence[str], seeds: Sequence[int], **changes: Any) -> torch.Tensor:
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 0.92} | changes
    prompts = [model.prompts.encode(text)[0] for text in texts]
    return draw_codes(model.language, prompts, seeds, first=model.prompts.first, **settings)


def remarks(folder: Path, wanted: Sequence[Request], **values: Any) -> Sequence[str]:
    found = load_registry().models["llm-cxr"]
    parameters = found.parse({"weights": str(folder)} | values)
    return found.load().check(parameters, Context(home=folder, cache=folder), wanted)


# --- images ---------------------------------------------------------------------------------


def test_seed_and_prompt_decide(model: Model) -> None:
    first = images(model, requests(3))
    assert all(image.shape == (64, 64, 3) and image.dtype == np.float32 for image in first)
    assert all(0 <= image.min() < image.max() <= 1 for image in first)
    assert all(map(np.array_equal, first, images(model, requests(3))))
    for changes in ({"seed": 7}, {"prompt": "Clear lungs."}):
        others = images(model, requests(3, **changes))
        assert not any(map(np.array_equal, first, others))


def test_an_image_is_its_request_s_alone(model: Model) -> None:
    """In float32 the codes, and so the pixels, are the same bits in any batch and order."""
    wanted = requests(7)
    alone = [images(model, [request])[0] for request in wanted]
    assert all(map(np.array_equal, alone, images(model, wanted)))
    assert all(map(np.array_equal, alone[::-1], images(model, wanted[::-1])))


def test_half_precision_is_repeatable(tiny: Path) -> None:
    model = load(tiny, dtype="bfloat16")
    first = images(model, requests(3))
    assert model.language.dtype == torch.bfloat16  # type: ignore[attr-defined]
    assert all(map(np.array_equal, first, images(model, requests(3))))


def test_another_size_is_resampled(tiny: Path, model: Model) -> None:
    (native,) = images(model, requests(1))
    (large,) = images(model, requests(1, size=128))
    assert large.shape == (128, 128, 3)
    assert abs(large.reshape(64, 2, 64, 2, 3).mean((1, 3)) - native).mean() < 0.05
    (small,) = images(load(tiny, size=32), requests(1))
    assert small.shape == (32, 32, 3)
    assert abs(native.reshape(32, 2, 32, 2, 3).mean((1, 3)) - small).mean() < 0.05
    assert remarks(tiny, requests(2)) == []
    (remark,) = remarks(tiny, requests(2), size=512)
    assert "64 pixels; they are resampled to 512" in remark


# --- codes ----------------------------------------------------------------------------------


def test_256_codes_and_nothing_else(model: Model) -> None:
    """With a flat distribution every code is drawn, and none outside."""
    codes = draw(model, REPORTS * 2, range(6), temperature=10, top_p=1)
    assert codes.shape == (6, LENGTH) == (6, 256)
    assert set(codes.flatten().tolist()) == set(range(CODES))


def test_greedy_is_what_transformers_generates(model: Any) -> None:
    """Prompts of unequal length in one batch, against `generate` with all text forbidden."""
    prompts = [model.prompts.encode(text)[0] for text in REPORTS]
    width, first = max(map(len, prompts)), model.prompts.first
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    assert 0 < mask.sum(1).min() < width
    wanted = model.language.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=LENGTH,
        do_sample=False,
        pad_token_id=0,
        prefix_allowed_tokens_fn=lambda *_: list(range(first, first + CODES)),
    )
    drawn = draw(model, REPORTS, [0, 1, 2], top_k=1)
    assert torch.equal(drawn, wanted[:, width:] - first)
    assert len(set(map(tuple, drawn.tolist()))) == 3


def test_rotary_share_of_old_configurations_counts(model: Any) -> None:
    """Half of 16 channels turn, in pairs; newer versions call the setting another name."""
    assert len(model.language.gpt_neox.rotary_emb.inv_freq) == 4


logits = st.lists(st.floats(-30, 30), min_size=2, max_size=40)
distinct = st.lists(st.integers(-300, 300), min_size=2, max_size=40, unique=True)


@given(
    distinct.map(lambda found: [each / 10 for each in found]),
    st.floats(0.05, 5),
    st.integers(0, 50),
    st.floats(0.01, 1),
)
def test_choices_are_those_of_transformers(
    values: list[float], temperature: float, top_k: int, top_p: float
) -> None:
    """The codes that can be drawn, and how often, against transformers' filters."""
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    scores = torch.tensor([values], dtype=torch.double) / temperature
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    mass = (
        TopPLogitsWarper(top_p)(None, scores).softmax(1)[0] if top_p < 1 else scores.softmax(1)[0]
    )
    n = 2000
    uniform = (torch.arange(n, dtype=torch.double) + 0.5) / n
    table = torch.tensor([values], dtype=torch.double).expand(n, -1)
    drawn = choose(table, uniform, temperature=temperature, top_k=top_k, top_p=top_p)
    share = torch.bincount(drawn, minlength=len(values)) / n
    assert abs(share - mass).max() <= 1.5 / n


@given(st.integers(2, 40), st.data())
def test_of_equal_codes_as_many_stay_as_may(count: int, data: st.DataObject) -> None:
    """transformers would keep them all; which stay is free, and each is as likely."""
    top_k = data.draw(st.integers(1, count))
    uniform = (torch.arange(100 * top_k, dtype=torch.double) + 0.5) / (100 * top_k)
    table = torch.zeros(len(uniform), count, dtype=torch.double)
    drawn = choose(table, uniform, temperature=1, top_k=top_k, top_p=1)
    found = sorted(torch.bincount(drawn, minlength=count).tolist(), reverse=True)
    assert found[top_k:] == [0] * (count - top_k)
    assert all(abs(each - 100) <= 1 for each in found[:top_k])


@given(logits, st.floats(0.01, 1))
def test_the_ends_of_the_unit_interval_are_safe(values: list[float], top_p: float) -> None:
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.double)
    table = torch.tensor([values, values], dtype=torch.double)
    low, high = choose(table, ends, temperature=1, top_k=0, top_p=top_p).tolist()
    assert values[low] == max(values)
    assert values[high] <= max(values)
    assert choose(table, ends, temperature=1, top_k=1, top_p=top_p).tolist() == [low, low]


def test_scores_that_are_no_numbers_end_it(tiny: Path) -> None:
    model: Any = load(tiny)
    model.language.gpt_neox.final_layer_norm.weight[0] = torch.nan
    with pytest.raises(ChexGenBenchError, match="NaN"):
        draw(model, REPORTS, [0, 1, 2])


# --- prompts --------------------------------------------------------------------------------


def test_the_prompt_is_the_published_one(model: Any) -> None:
    """training/consts.py, filled in; then what stands before the first code in training."""
    ids, cut = model.prompts.encode(REPORTS[0])
    assert not cut
    assert model.prompts.tokenizer.decode(ids, skip_special_tokens=False) == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nGenerate a chest X-ray image that "
        "corresponds to the entered free-text radiology reports for the chest X-ray image.\n\n"
        "Input:\nLarge left pleural effusion.\n\n### Response:\n<"
    )
    assert ids[-2] == model.prompts.tokenizer.token_to_id("### Response:\n")


@given(st.text(max_size=1500))
def test_any_report_fits(model: Any, report: str) -> None:
    """Whole, or its beginning with the frame on both sides of it."""
    prompts = model.prompts
    ids, cut = prompts.encode(report)
    assert len(ids) <= POSITIONS - LENGTH
    assert ids[-len(prompts.tail) :] == prompts.tail
    text = prompts.tokenizer.decode(ids[: -len(prompts.tail)], skip_special_tokens=False)
    whole = prompts.head + report
    if cut:
        assert len(ids) == POSITIONS - LENGTH
        # The cut can go through the bytes of a character.
        assert whole.startswith(text.rstrip("\ufffd"))
    else:
        assert text == whole


@given(st.lists(st.sampled_from(["### Response:\n", "### Response:", "### End", "#", "\n", " a"])))
def test_a_report_cannot_speak_for_the_frame(model: Any, parts: list[str]) -> None:
    """What is spelt like a token of the frame stays text."""
    prompts, report = model.prompts, "".join(parts)
    ids, cut = prompts.encode(report)
    control = {prompts.tokenizer.token_to_id(word) for word in ("### Response:\n", "### End")}
    assert [token for token in ids if token in control] == [
        prompts.tokenizer.token_to_id("### Response:\n")
    ]
    if not cut:
        text = prompts.tokenizer.decode(ids[: -len(prompts.tail)], skip_special_tokens=False)
        assert text == prompts.head + report


def test_long_prompts_are_counted_and_flagged(tiny: Path, model: Model) -> None:
    long = "The heart is severely enlarged. " * 60
    wanted = [*requests(3), *requests(2, prompt=long)]
    (remark,) = remarks(tiny, wanted)
    assert remark.startswith(f"1 of 4 prompts are longer than the {POSITIONS - LENGTH} tokens")
    made = list(model.generate(wanted))
    assert all(isinstance(each, Made) for each in made)
    assert [each.flags for each in made] == [()] * 3 + [("truncated",)] * 2
    # The end that is not seen is the end of the report.
    same = images(model, requests(2, prompt=long + "Large effusion."))
    assert all(np.array_equal(a.image, b) for a, b in zip(made[3:], same, strict=True))


def test_empty_prompts_are_refused(tiny: Path) -> None:
    with pytest.raises(UserError, match=r"2 prompts are empty: s0, s1\."):
        remarks(tiny, requests(2, prompt=" \n"))


def test_an_instruction_without_room(tiny: Path) -> None:
    with pytest.raises(UserError, match="leaves no room"):
        load(tiny, instruction="word " * 400)


# --- VQ-GAN ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("widths", "blocks"), [((32, 32, 64), 1), ((32,), 2), ((32, 64, 32, 96), 2)]
)
def test_pixels_are_those_of_taming(tmp_path: Path, widths: tuple[int, ...], blocks: int) -> None:
    """Against its network written again in tests/tiny_llm_cxr.py, by torch's own layers; in double
    precision, where no order of additions hides a difference or makes one."""
    network = taming(widths=widths, blocks=blocks)
    save_file(published_state(network), tmp_path / "vqgan.safetensors")
    vqgan = VqGan(tmp_path / "vqgan.safetensors").to("cpu")
    assert (vqgan.codes, vqgan.size) == (CODES, 16 * 2 ** (len(widths) - 1))
    assert {value.dtype for value in vqgan.network.parameters()} == {torch.float32}
    vqgan.network.double()
    vqgan.codebook = vqgan.codebook.double()
    network.double()
    codes = torch.randint(0, CODES, (2, LENGTH), generator=torch.Generator().manual_seed(3))
    wanted = ((network(codes).clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1)
    assert wanted.std() > 0.02
    for row, image in zip(codes, wanted, strict=True):
        assert abs(vqgan.decode(row, vqgan.size) - image).max() < 1e-12


def test_a_lightning_checkpoint_runs_no_code(copy: Path, monkeypatch: Any) -> None:
    """Its classes beside the tensors become placeholders; the images stay."""
    wanted = images(load(copy), requests(1))[0]
    file = next((copy / "vqgan").iterdir())
    module = types.ModuleType("pytorch_lightning")
    checkpointer = type("ModelCheckpoint", (), {"__module__": "pytorch_lightning"})
    module.ModelCheckpoint = checkpointer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pytorch_lightning", module)
    state = torch.load(file, weights_only=True)["state_dict"]
    beside = {"epoch": 4, "callbacks": {checkpointer: {"best": checkpointer()}}}
    torch.save(beside | {"state_dict": state}, file)
    monkeypatch.delitem(sys.modules, "pytorch_lightning")
    assert np.array_equal(images(load(copy), requests(1))[0], wanted)


class Evil:
    """A pickle that leaves a mark when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


def test_a_pickle_of_more_than_tensors_is_refused(copy: Path) -> None:
    file, mark = next((copy / "vqgan").iterdir()), copy / "mark"
    state = torch.load(file, weights_only=True)["state_dict"]
    torch.save({"state_dict": state, "more": Evil(mark)}, file)
    with pytest.raises(UserError, match=r"without running code.*more than tensors") as caught:
        load(copy)
    assert "--allow-pickle" in str(caught.value.hint)
    assert not mark.exists()
    assert images(load(copy, pickles=True), requests(1))
    assert mark.exists()


def test_a_pickle_of_before_torch_1_6_is_no_exception(copy: Path) -> None:
    """Nothing can be said of its content before it is loaded."""
    wanted = images(load(copy), requests(1))[0]
    file, mark = next((copy / "vqgan").iterdir()), copy / "mark"
    state = torch.load(file, weights_only=True)["state_dict"]
    older = {"_use_new_zipfile_serialization": False}
    torch.save({"state_dict": state}, file, **older)
    assert np.array_equal(images(load(copy), requests(1))[0], wanted)
    torch.save({"state_dict": state, "more": Evil(mark)}, file, **older)
    with pytest.raises(UserError, match="without running code") as caught:
        load(copy)
    assert "--allow-pickle" in str(caught.value.hint)
    assert "\x1b" not in caught.value.message
    assert not mark.exists()
    assert np.array_equal(images(load(copy, pickles=True), requests(1))[0], wanted)


def test_the_language_model_is_never_unpickled(copy: Path) -> None:
    state = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    mark = copy / "mark"
    torch.save(state | {"more": Evil(mark)}, copy / "pytorch_model.bin")
    for pickles in (False, True):
        with pytest.raises(UserError, match="can run code"):
            load(copy, pickles=pickles)
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(mark), 2))
    with pytest.raises(UserError, match="cannot be read"):
        load(copy)
    assert not mark.exists()


# --- the language model's files -------------------------------------------------------------


def test_every_published_layout_gives_the_same_images(copy: Path, model: Model) -> None:
    """safetensors, pytorch_model.bin with the buffers that old versions saved, and parts."""
    (wanted,) = images(model, requests(1))
    state = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    buffers = {}
    for layer in range(2):
        name = f"gpt_neox.layers.{layer}.attention."
        buffers[name + "bias"] = torch.ones(1, 1, POSITIONS, POSITIONS, dtype=torch.bool).tril()
        buffers[name + "masked_bias"] = torch.tensor(-1e9)
        buffers[name + "rotary_emb.inv_freq"] = 10000 ** (-torch.arange(0, 8, 2) / 8)
    torch.save(state | buffers, copy / "pytorch_model.bin")
    assert np.array_equal(images(load(copy), requests(1))[0], wanted)
    (copy / "pytorch_model.bin").unlink()
    names = sorted(state)
    parts = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(names)}
    for part in set(parts.values()):
        torch.save({name: state[name] for name in names if parts[name] == part}, copy / part)
    index = copy / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    divided = load(copy)
    assert np.array_equal(images(divided, requests(1))[0], wanted)
    files = divided.weights(divided.parameters, divided.context)
    assert {*parts.values(), index.name} < {file.name for file in files.values()}
    (copy / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(UserError, match=r"lack pytorch_model-00002-of-00002\.bin"):
        load(copy)
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"x": "../elsewhere.bin"}}))
    with pytest.raises(UserError, match="index of the weights"):
        load(copy)
    save_file(state, copy / "model.safetensors", {"format": "pt"})
    assert np.array_equal(images(load(copy), requests(1))[0], wanted)
    part = "model-00001-of-00001.safetensors"
    table = {"metadata": {}, "weight_map": dict.fromkeys(names, part)}
    (copy / "model.safetensors.index.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match="are there twice"):
        load(copy)


def test_all_that_decides_is_hashed(copy: Path) -> None:
    model = load(copy)
    files = model.weights(model.parameters, model.context).values()
    assert set(files) == {file for file in copy.rglob("*") if file.is_file()}


def test_names_of_the_files_do_not_depend_on_where_they_lie(copy: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(copy, tmp_path / "renamed")
    shutil.move(moved / "vqgan", tmp_path / "other")
    here, there = load(copy), load(moved, vqgan=str(tmp_path / "other"))
    one, two = (list(model.weights(model.parameters, model.context)) for model in (here, there))
    assert one == two


def test_an_adapter_beside_the_language_model_is_refused(copy: Path) -> None:
    """transformers would apply it, and the identity would not show it."""
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"adapter beside.*adapter_config\.json"):
        load(copy)


def test_the_precision_counts_in_the_context_alone(tiny: Path) -> None:
    found = load_registry().models["llm-cxr"]
    values = {"weights": str(tiny)}
    given = found.parse({**values, "dtype": "float32"})
    assert given.identity() == found.parse(values).identity()


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _state(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def _vqgan(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = published_state(taming())
    edit(state)
    torch.save({"state_dict": state}, next((folder / "vqgan").iterdir()))


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no VQ-GAN": (lambda f: shutil.rmtree(f / "vqgan"), "VQ-GAN of 'llm-cxr' is not there"),
    "two VQ-GANs": (lambda f: (f / "vqgan" / "b.ckpt").touch(), "is not the only one"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    "no configuration": (lambda f: (f / "config.json").unlink(), "config.json"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot be read"),
    "another model": (lambda f: _edit(f / "config.json", model_type="llama"), "a llama model"),
    "no context": (
        lambda f: (f / "config.json").write_text('{"model_type": "gpt_neox", "vocab_size": 9}'),
        "lacks max_position_embeddings",
    ),
    "vocabulary without codes": (
        lambda f: _edit(f / "config.json", vocab_size=300),
        "do not belong together: the language model knows 300 tokens",
    ),
    "another tokenizer": (
        lambda f: (f / "tokenizer.json").write_text(
            (f / "tokenizer.json").read_text().replace("### Response:\\n", "### Answer:\\n")
        ),
        "not the tokenizer of LLM-CXR",
    ),
    "other codes": (
        lambda f: _vqgan(f, lambda s: s.update({"quantize.embedding.weight": torch.ones(40, 8)})),
        "the VQ-GAN 40 codes",
    ),
    "no codebook": (
        lambda f: _vqgan(f, lambda s: s.pop("quantize.embedding.weight")),
        "of another network: .*quantize.embedding.weight",
    ),
    "a layer too few": (
        lambda f: _vqgan(f, lambda s: s.pop("decoder.mid.attn_1.q.bias")),
        "of another network: .*to_q.bias",
    ),
    "a layer too many": (
        lambda f: _vqgan(f, lambda s: s.update({"decoder.more.weight": torch.ones(1)})),
        "of another network: .*decoder.more",
    ),
    "another shape": (
        lambda f: _vqgan(f, lambda s: s.update({"post_quant_conv.weight": torch.ones(4, 8, 1, 1)})),
        "of another network: .*post_quant_conv.weight",
    ),
    "a narrow VQ-GAN": (
        lambda f: _vqgan(
            f, lambda s: s.update({"decoder.up.0.block.0.conv2.weight": torch.ones(8)})
        ),
        "of another network",
    ),
    "no VQ-GAN at all": (
        lambda f: torch.save({"state_dict": {}}, next((f / "vqgan").iterdir())),
        "of another network",
    ),
    "a list": (lambda f: torch.save([1], next((f / "vqgan").iterdir())), "no state dict"),
    "a broken VQ-GAN": (
        lambda f: next((f / "vqgan").iterdir()).write_bytes(b"PK\x03\x04nothing"),
        "cannot be read",
    ),
    "a broken language model": (
        lambda f: (f / "model.safetensors").write_bytes(b"nothing"),
        "cannot be read",
    ),
    "a weight too few": (
        lambda f: _state(f, lambda s: s.pop("gpt_neox.layers.1.mlp.dense_h_to_4h.weight")),
        "of another network: .*dense_h_to_4h",
    ),
    "no head": (lambda f: _state(f, lambda s: s.pop("embed_out.weight")), "of another network"),
    "a weight of another shape": (
        lambda f: _state(f, lambda s: s.update({"embed_out.weight": torch.ones(3, 32)})),
        "embed_out|lm_head",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_weights_is_named(copy: Path, fault: str) -> None:
    spoil, message = FAULTS[fault]
    spoil(copy)
    with pytest.raises(UserError, match=message):
        load(copy)


def test_the_folder_itself(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        load(tmp_path, weights="./nowhere")


# --- an environment of its own --------------------------------------------------------------


@pytest.fixture(scope="module")
def own_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with what containers/llm-cxr pins and nothing else.

    What is installed here in the pinned version is linked, and the rest comes by pip.
    """
    lock = (ROOT / "containers" / "llm-cxr" / "requirements.txt").read_text()
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)", lock, re.MULTILINE))
    here = {
        re.sub(r"[-_.]+", "-", found.name).lower(): found
        for found in importlib.metadata.distributions()
    }
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    others = []
    for name, version in pins.items():
        if name not in here or here[name].version != version:
            others.append(f"{name}=={version}")
            continue
        for top in {file.parts[0] for file in here[name].files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(here[name].locate_file(top))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site]
    done = subprocess.run([*command, *others], capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"packages of containers/llm-cxr cannot be had here: {done.stderr[-300:]}")
    (site / "chexgenbench.pth").write_text(f"{ROOT / 'platform'}\n")
    return folder / "bin" / "python"


@pytest.mark.slow
def test_the_same_images_with_the_published_dependencies(
    tiny: Path, model: Model, own_python: Path, tmp_path: Path
) -> None:
    """transformers 4.28.1 in a worker of its own draws the same codes in float32: another code
    would be another patch, and the pixels differ by a grey level at most."""
    version = [own_python, "-c", "import transformers; print(transformers.__version__)"]
    assert subprocess.check_output(version, text=True).strip() == "4.28.1"
    plugin = load_registry().models["llm-cxr"]
    job = GenerateJob(
        model="llm-cxr",
        source=plugin.source_hash(),
        parameters={"weights": str(tiny)},
        context=plain_context(Context(home=tiny, cache=tiny)),
        batch_size=3,
        n_requests=5,
    )
    long = requests(1, id="long", prompt=REPORTS[1] * 60)
    wanted = [*requests(4), *long]
    with hold(tmp_path):
        rows = run_workers(job, wanted, tmp_path, devices=["cpu"], interpreter=own_python)
    assert [rows[request.id].flags for request in wanted] == [()] * 4 + [("truncated",)]
    for request in wanted:
        (image,) = images(model, [request])
        made = read_image(tmp_path / rows[request.id].path)
        apart = abs(np.asarray(made).astype(int) - np.asarray(to_image(image)[0]))
        assert apart.max() <= 1
        assert (apart > 0).mean() < 0.01


@pytest.mark.slow
def test_the_smoke_test_passes_there(own_python: Path) -> None:
    smoke = ROOT / "containers" / "llm-cxr" / "smoke.py"
    done = subprocess.run([own_python, "-P", smoke], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "transformers 4.28.1" in done.stdout


@pytest.mark.slow
def test_a_fault_comes_back_from_there(copy: Path, own_python: Path, tmp_path: Path) -> None:
    _state(copy, lambda state: state.pop("embed_out.weight"))
    plugin = load_registry().models["llm-cxr"]
    job = GenerateJob(
        model="llm-cxr",
        source=plugin.source_hash(),
        parameters={"weights": str(copy)},
        context=plain_context(Context(home=copy, cache=copy)),
        batch_size=1,
        n_requests=1,
    )
    with hold(tmp_path / "g"), pytest.raises(UserError, match="of another network: embed_out"):
        run_workers(job, requests(1), tmp_path / "g", devices=["cpu"], interpreter=own_python)
