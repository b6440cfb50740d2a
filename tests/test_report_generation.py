"""The task metric `report-generation`: what it trains on, what it keeps, what it finds."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from chexgenbench import Context, ImageSet, NotApplicable, TaskScore, UserError
from chexgenbench.images import read_image
from chexgenbench_plugins.metrics.report_generation import ReportGeneration
from chexgenbench_plugins.phantom.split import read_rows
from chexgenbench_plugins.reports import encoder_decoder, results
from chexgenbench_plugins.reports.encoder_decoder import Sizes, Training
from chexgenbench_plugins.reports.experiment import compose, row_ids, texts_of
from chexgenbench_plugins.reports.fine_tuning import (
    Source,
    adapted,
    fine_tune,
    report_loss,
    write,
)
from chexgenbench_plugins.reports.images import squared
from chexgenbench_plugins.reports.labellers import PhantomLabeller
from chexgenbench_plugins.reports.llava_rad import VISION, LlavaRad, base_files, question
from chexgenbench_plugins.reports.results import Scorer, report_scores
from chexgenbench_plugins.reports.scores import rouge_l
from chexgenbench_plugins.reports.settings import SPECS, ReportParameters
from chexgenbench_plugins.reports.vocabulary import joined, word_tokenizer
from image_sets import image_set, prompt_table, task

ROWS = read_rows(
    Path(__file__).parents[1] / "MIMIC_Splits" / "demo" / "DEMO_ANNOTATIONS_TRAIN.csv"
)[:400]
TEXTS = [row["annotated_prompt"] for row in ROWS]
PATIENTS = [row["patientID"] for row in ROWS]
SIZES = Sizes(width=32, layers=1, heads=2, patch=8)
TINY: dict[str, Any] = {
    "encoder": "scratch",
    "decoder": "scratch",
    "size": 32,
    "patch": 8,
    "width": 32,
    "layers": 1,
    "heads": 2,
    "tokens": 24,
    "epochs": 2,
    "labeller": "phantom",
}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def ignore(_count: int) -> None:
    return None


def training(**changes: Any) -> Training:
    fixed = Training(epochs=2, batch_size=4, learning_rate=1e-3, tokens=24, seed=3, device="cpu")
    return replace(fixed, **changes)


def pictures(count: int, seed: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size), dtype=np.uint8)


def sets(folder: Path, *, train: int = 12, test: int = 12, seed: int = 0) -> dict[str, ImageSet]:
    """Noise for images, the phantom's reports for text; test rows follow the training rows."""
    rows, last = slice(0, train), slice(train, train + test)
    common: dict[str, Any] = {"folder": folder}
    return {
        "real": image_set(
            images=list(pictures(train, 1)),
            side="training",
            patients=PATIENTS[rows],
            prompts=TEXTS[rows],
            **common,
        ),
        "synthetic": image_set(
            images=list(pictures(train, 2 + seed)),
            side="training",
            source="model",
            patients=PATIENTS[rows],
            prompts=TEXTS[rows],
            **common,
        ),
        "test": image_set(
            images=list(pictures(test, 1000)),
            patients=PATIENTS[last],
            prompts=TEXTS[last],
            **common,
        ),
    }


def run(
    folder: Path, images: Mapping[str, ImageSet], **changes: Any
) -> tuple[dict[tuple[str, str, str], TaskScore], list[str]]:
    own = ReportParameters(**(TINY | changes))
    context = Context(home=folder, cache=folder / "cache")
    said: list[str] = []
    found = ReportGeneration(own, context).run(task(images, folder, context=context, said=said))
    by_name = {(s.name, s.variant, s.subset): s for s in found.scores}
    assert len(by_name) == len(found.scores)
    return by_name, [*said, *found.notes]


# --- what a training is made of -------------------------------------------------------------


def test_regimes_pair_images_with_the_reports_of_their_rows(tmp_path: Path) -> None:
    images = sets(tmp_path)
    real, synthetic = images["real"], images["synthetic"]
    assert texts_of(real) == texts_of(synthetic) == TEXTS[:12]
    assert compose("real", real, synthetic, 0) == [(False, at) for at in range(12)]
    assert compose("synthetic", real, synthetic, 0) == [(True, at) for at in range(12)]
    mixed = compose("mixed", real, synthetic, 0)
    assert sum(made for made, _ in mixed) == 6
    assert sorted(at for _, at in mixed) == list(range(12))
    assert mixed != compose("mixed", real, synthetic, 1)


def test_the_half_that_is_replaced_is_chosen_by_row_and_not_by_place(tmp_path: Path) -> None:
    images = sets(tmp_path)
    real, synthetic = images["real"], images["synthetic"]
    order = np.random.default_rng(0).permutation(12)
    names = row_ids(real)
    first = {names[at] for made, at in compose("mixed", real, synthetic, 5) if made}
    turned = real.take(order), synthetic.take(order)
    names = row_ids(turned[1])
    assert first == {names[at] for made, at in compose("mixed", *turned, 5) if made}


def test_a_row_without_a_readable_image_is_no_pair(tmp_path: Path) -> None:
    images = sets(tmp_path)
    kept = images["synthetic"].take(np.arange(1))
    with pytest.raises(NotApplicable, match="synthetic: 1 pairs"):
        compose("synthetic", images["real"], kept, 0)


def test_images_keep_their_aspect_and_their_sides() -> None:
    wide = np.zeros((20, 40), np.uint8)
    wide[:, 20:] = 200
    small = squared(Image.fromarray(wide), 16)
    assert small.shape == (16, 16)
    assert small[8, 12] > 190 and small[8, 2] < 10
    assert small[1].max() == small[14].max() == 0


def test_reports_survive_the_words_of_the_tokenizer() -> None:
    from chexgenbench_plugins.phantom.report import parse

    tokenizer = word_tokenizer(TEXTS)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        back = joined(tokenizer.decode(ids, skip_special_tokens=True))
        assert back == " ".join(text.lower().split())
        assert parse(back) == parse(text)
    assert tokenizer("unheard words")["input_ids"][:2] == [tokenizer.unk_token_id] * 2
    assert word_tokenizer(TEXTS[::-1]).get_vocab() == tokenizer.get_vocab()
    assert len(word_tokenizer(TEXTS, limit=10)) == 14


# --- training -------------------------------------------------------------------------------


def learn(folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    done = encoder_decoder.train(
        pictures(10, 0),
        TEXTS[:10],
        folder,
        training=training(**changes),
        sizes=SIZES,
        advance=ignore,
    )
    return load_file(done / "model.safetensors")


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_training_depends_on_the_seed_alone(tmp_path: Path) -> None:
    first = learn(tmp_path / "a", epochs=1)
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    assert same(first, learn(tmp_path / "b", epochs=1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert not same(first, learn(tmp_path / "c", epochs=1, seed=4))


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """A process is killed between two epochs; another ends the work, bit by bit the same."""
    script = textwrap.dedent(
        """
        import sys, time
        sys.path.insert(0, sys.argv[2])
        from pathlib import Path
        import test_report_generation as tests

        def advance(count):
            if any(Path(sys.argv[1]).glob("epoch-0001")):
                time.sleep(600)

        tests.ignore = advance
        tests.learn(Path(sys.argv[1]), epochs=2)
        """
    )
    folder = tmp_path / "killed"
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder), str(Path(__file__).parent)],
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    try:
        deadline = time.monotonic() + 120
        while not (folder / "epoch-0001").is_dir():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (folder / "trained").exists()
    whole = learn(tmp_path / "whole", epochs=2)
    assert same(whole, learn(folder, epochs=2))
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "trained"]


@pytest.mark.slow
def test_two_processes_train_once(tmp_path: Path) -> None:
    """Another process is in the middle of the same training: this one waits for its weights."""
    script = textwrap.dedent(
        """
        import sys, time
        sys.path.insert(0, sys.argv[2])
        from pathlib import Path
        import test_report_generation as tests

        folder = Path(sys.argv[1])

        def advance(count):
            # Time for the other to train as well, and to take these checkpoints away.
            deadline = time.monotonic() + 5
            while (folder / "epoch-0001").is_dir() and time.monotonic() < deadline:
                time.sleep(0.05)

        tests.ignore = advance
        tests.learn(folder, epochs=2)
        """
    )
    folder = tmp_path / "shared"
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder), str(Path(__file__).parent)],
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    try:
        deadline = time.monotonic() + 120
        while not (folder / "epoch-0001").is_dir():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        found = learn(folder, epochs=2)
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()
    assert same(found, learn(tmp_path / "alone", epochs=2))
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "trained"]


def test_a_small_generator_learns_its_pairs(tmp_path: Path) -> None:
    """Two kinds of images, two reports: after training each image gets its own report."""
    images = np.zeros((16, 32, 32), np.uint8)
    images[::2, :, :16] = 255
    texts = ["large left effusion.", "no acute findings."] * 8
    done = encoder_decoder.train(
        images,
        texts,
        tmp_path,
        training=training(epochs=40, learning_rate=3e-3),
        sizes=SIZES,
        advance=ignore,
    )
    made = [
        encoder_decoder.generate(
            images[:5], done, tokens=24, batch_size=size, device="cpu", advance=ignore
        )
        for size in (1, 5)
    ]
    assert made[0] == made[1] == texts[:5]


def published(folder: Path) -> dict[str, Path]:
    """A ViT of 32 pixels and a GPT-2 of 64 tokens as transformers saves them."""
    from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTModel

    small: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    reader = ViTModel(ViTConfig(image_size=32, patch_size=8, intermediate_size=64, **small))
    tokenizer = word_tokenizer(TEXTS)
    writer = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=64)
    )
    halves = {"encoder": folder / "vit", "decoder": folder / "gpt"}
    reader.save_pretrained(halves["encoder"])
    writer.save_pretrained(halves["decoder"])
    tokenizer.save_pretrained(halves["decoder"])
    return halves


def with_code(folder: Path, trace: Path) -> None:
    """Makes the folder want code of its own, which leaves `trace` behind where it is run."""
    file = folder / "config.json"
    classes = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer")
    config = json.loads(file.read_text())
    config |= {"model_type": "mine", "auto_map": dict.fromkeys(classes, "evil.Evil")}
    file.write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w')\n")


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_code_in_a_folder_is_not_run_whatever_the_terminal_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: str
) -> None:
    halves = published(tmp_path)
    trace = tmp_path / "ran"
    with_code(halves[half], trace)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    with pytest.raises(UserError, match=f"{half} of the report generator cannot be loaded"):
        check(tmp_path, **{half: str(halves[half])})
    with pytest.raises(UserError, match=f"{half} of the report generator cannot be loaded"):
        encoder_decoder.train(
            pictures(6, 0),
            TEXTS[:6],
            tmp_path / "a",
            training=training(epochs=1),
            sizes=SIZES,
            advance=ignore,
            **halves,
        )
    assert not trace.exists()


def test_a_half_that_cannot_be_used_is_found_before_anything(tmp_path: Path) -> None:
    halves = {name: str(folder) for name, folder in published(tmp_path).items()}
    check(tmp_path, **halves)
    with pytest.raises(UserError, match="reads images of 32 pixels, not of 48") as caught:
        check(tmp_path, **halves | {"size": 48})
    name, _, value = str(caught.value.hint).removeprefix("--set report-generation.").partition("=")
    check(tmp_path, **halves | {name: int(value)})
    with pytest.raises(UserError, match="writes 64 tokens at most, not 65"):
        check(tmp_path, **halves | {"tokens": 65})
    with pytest.raises(UserError, match="writes no text: it is of the kind 'vit'"):
        check(tmp_path, decoder=halves["encoder"])
    with pytest.raises(UserError, match="none of images of a fixed size"):
        check(tmp_path, encoder=halves["decoder"])
    broken = tmp_path / "chexbert"
    broken.mkdir()
    (broken / "vocab.txt").write_text("[PAD]")
    (broken / "chexbert.pth").write_bytes(b"broken")
    with pytest.raises(UserError, match="CheXbert cannot be read"):
        check(tmp_path, labeller="chexbert", chexbert="chexbert")


def test_published_halves_are_loaded_from_folders(tmp_path: Path) -> None:
    halves = published(tmp_path)
    common: dict[str, Any] = {"training": training(epochs=1), "sizes": SIZES, "advance": ignore}
    done = encoder_decoder.train(pictures(6, 0), TEXTS[:6], tmp_path / "a", **halves, **common)
    made = encoder_decoder.generate(
        pictures(2, 1), done, tokens=8, batch_size=2, device="cpu", advance=ignore
    )
    assert len(made) == 2
    with pytest.raises(UserError, match="reads images of 32 pixels, not of 48"):
        encoder_decoder.train(pictures(6, 0, 48), TEXTS[:6], tmp_path / "b", **halves, **common)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="text decoder of the report generator cannot be loaded"):
        encoder_decoder.train(
            pictures(6, 0), TEXTS[:6], tmp_path / "c", encoder=None, decoder=empty, **common
        )


# --- the metric -----------------------------------------------------------------------------


def test_scores_stand_for_each_regime_and_patients_text_nowhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found, said = run(tmp_path, sets(tmp_path / "images"))
    declared = {spec.name for spec in SPECS}
    assert {name for name, _, _ in found} <= declared
    regimes = ("real", "synthetic", "mixed")
    for name in ("bleu1", "bleu4", "rouge_l", "label_f1_micro", "label_f1_macro"):
        for regime in regimes:
            score = found[name, regime, "overall"]
            assert not isinstance(score.estimate, str) and score.control is not None
        for regime in regimes[1:]:
            assert (f"{name}_difference", f"{regime}_minus_real", "overall") in found
    assert isinstance(found["label_f1", "real", "Fracture"].estimate, str)
    assert [found["bleu4", regime, "overall"].n_fake for regime in regimes] == [0, 12, 6]
    assert "nltk_data is not set" in str(found["meteor", "real", "overall"].estimate)
    assert any("no radgraph_f1" in line for line in said)
    output = capfd.readouterr()
    for text in TEXTS[:24]:
        assert text not in output.out + output.err + " ".join(said)


def test_scores_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    images = sets(tmp_path / "images")
    draw = np.random.default_rng(0)
    shuffled = {name: each.take(draw.permutation(len(each))) for name, each in images.items()}
    found, _ = run(tmp_path / "one", images)
    again, _ = run(tmp_path / "two", shuffled)
    assert again == found
    parts = [
        sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
        for folder in (tmp_path / "one", tmp_path / "two")
    ]
    assert parts[0] == parts[1]


def test_the_real_regime_is_trained_once_for_all_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Path] = []
    original = encoder_decoder.train

    def counted(*args: Any, **kwargs: Any) -> Path:
        if not (args[2] / "trained").is_dir():
            trained.append(args[2])
        return original(*args, **kwargs)

    monkeypatch.setattr(encoder_decoder, "train", counted)
    first, _ = run(tmp_path, sets(tmp_path / "one"), regimes=("real", "synthetic"), epochs=1)
    assert len(trained) == 2
    again, _ = run(tmp_path, sets(tmp_path / "one"), regimes=("real", "synthetic"), epochs=1)
    assert len(trained) == 2
    assert first == again
    run(tmp_path, sets(tmp_path / "two", seed=7), regimes=("real", "synthetic"), epochs=1)
    assert len(trained) == 3
    run(tmp_path, sets(tmp_path / "one"), regimes=("real",), epochs=2)
    assert len(trained) == 4


def scored(reports: Mapping[str, list[str]], test: ImageSet) -> dict[tuple[str, str, str], Any]:
    scorer = Scorer(
        by_report={"rouge_l": rouge_l}, labeller=PhantomLabeller(), uncertain="positive"
    )
    counts = dict.fromkeys(reports, (10, 0))
    found = report_scores(test, reports, scorer, counts=counts)
    return {(s.name, s.variant, s.subset): s for s in found}


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    table = prompt_table(len(TEXTS), patients=PATIENTS, prompts=TEXTS)
    features = np.random.default_rng(0).normal(size=(len(TEXTS), 2))
    return image_set(features=features, table=table)


def test_reports_that_are_right_score_one_and_their_control_does_not(test_set: ImageSet) -> None:
    found = scored({"real": TEXTS}, test_set)
    for (_, _, subset), score in found.items():
        assert score.estimate.value == pytest.approx(1.0), subset
        assert score.control < 0.75
    assert len([name for name, _, _ in found if name == "label_f1"]) == 14


def test_one_report_for_all_images_is_no_better_than_its_control(test_set: ImageSet) -> None:
    """Micro F1 of one report for all is 2 p / (1 + p / m) by hand: every image gets its m
    findings, and a share of them is right."""
    text = "Small left pleural effusion. No pneumothorax."
    found = scored({"real": [text] * len(TEXTS)}, test_set)
    truth = PhantomLabeller().label(TEXTS)
    stated = np.isin(truth, (1.0, -1.0))
    right = stated[:, 9].sum()  # Pleural Effusion
    expected = 2 * right / (len(TEXTS) + stated.sum())
    micro = found["label_f1_micro", "real", "overall"]
    assert micro.estimate.value == pytest.approx(expected)
    assert micro.control == pytest.approx(expected)
    macro = 2 * right / (len(TEXTS) + right) / 14
    assert found["label_f1_macro", "real", "overall"].estimate.value == pytest.approx(macro)
    assert found["bleu4", "real", "overall"].estimate.value < 0.1


def test_differences_are_paired_by_patient(test_set: ImageSet) -> None:
    """Two regimes with nearly the same faults differ with a smaller error than two scores that have
    nothing to do with each other would."""
    other = results.swapped(test_set.patients)
    assert other is not None
    wrong = [TEXTS[other[i]] if i % 2 else TEXTS[i] for i in range(len(TEXTS))]
    worse = [TEXTS[other[i]] if i % 20 == 0 else wrong[i] for i in range(len(TEXTS))]
    found = scored({"real": wrong, "synthetic": worse}, test_set)
    for name in ("bleu4", "rouge_l", "label_f1_micro"):
        gap = found[f"{name}_difference", "synthetic_minus_real", "overall"].estimate
        real = found[name, "real", "overall"].estimate
        made = found[name, "synthetic", "overall"].estimate
        assert gap.value == pytest.approx(made.value - real.value)
        assert gap.ci_high < 0
        assert gap.standard_error < 0.75 * np.hypot(real.standard_error, made.standard_error)


def test_a_swapped_report_is_of_another_patient() -> None:
    names = np.array(["b", "a", "b", "c", "b", "a"])
    other = results.swapped(names)
    assert other is not None
    assert sorted(other) == list(range(6))
    assert (names[other] != names).all()
    assert results.swapped(np.array(["a", "a", "b"])) is None


# --- bad input ------------------------------------------------------------------------------


def tables(**patients: Any) -> dict[str, Any]:
    return {
        "real": prompt_table(4, side="training"),
        "synthetic": prompt_table(4, side="training"),
        "test": prompt_table(4, **patients),
    }


def check(folder: Path, images: Mapping[str, Any] | None = None, **changes: Any) -> Any:
    own = ReportParameters(**(TINY | changes))
    context = Context(home=folder, cache=folder / "cache")
    ReportGeneration.weights(own, context)
    return ReportGeneration.check(own, context, tables() if images is None else images)


def test_what_cannot_be_taken_is_said_before_anything_expensive(tmp_path: Path) -> None:
    remarks = check(tmp_path)
    assert any("no bertscore" in remark for remark in remarks)
    assert any("label_f1: chexbert is not set" in r for r in check(tmp_path, labeller="chexbert"))
    with pytest.raises(UserError, match="no multiple of the 3 heads"):
        check(tmp_path, heads=3)
    with pytest.raises(UserError, match="no multiple of the patch"):
        check(tmp_path, patch=5)
    with pytest.raises(UserError, match="folder of chexbert is not there"):
        check(tmp_path, chexbert="nowhere")
    with pytest.raises(UserError, match="report-generation decoder"):
        check(tmp_path, decoder="owner/missing")
    (tmp_path / "rg").mkdir()
    with pytest.raises(UserError, match="RadGraph needs an environment of its own"):
        check(tmp_path, radgraph="rg")


def test_patients_are_needed_unless_told_otherwise(tmp_path: Path) -> None:
    without = tables(patients=[None] * 4)
    with pytest.raises(UserError, match="must keep patients apart"):
        check(tmp_path, without)
    check(tmp_path, without, without_patients=True)
    few = tables() | {"real": prompt_table(1, side="training")}
    with pytest.raises(UserError, match="two real rows at least, and has 1"):
        check(tmp_path, few)


# --- LLaVA-Rad ------------------------------------------------------------------------------


def tiny_llava_rad(folder: Path) -> tuple[Path, Path, Any]:
    """LLaVA-Rad's files with a tiny ViT and a tiny Llama of random weights, and those networks."""
    import timm
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    base, own = folder / "base", folder / "llava-rad"
    own.mkdir(parents=True)
    tokenizer = word_tokenizer([*TEXTS, "user: assistant: provide a description of the findings"])
    tokenizer.save_pretrained(base)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            initializer_range=0.2,  # So that a random network tells its inputs apart.
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        language = LlamaForCausalLM(config)
        language.save_pretrained(base)
        lora = LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "v_proj", "up_proj"])
        adapted = get_peft_model(language, lora)
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.3)
        tower = timm.create_model("test_vit", pretrained=False, num_classes=0, img_size=64)
        projector = torch.nn.Sequential(
            torch.nn.Linear(tower.embed_dim, 32), torch.nn.GELU(), torch.nn.Linear(32, 32)
        )
    adapted.save_pretrained(own, safe_serialization=False)
    vision = {"timm_model_name": "test_vit", "image_size": 64}
    (own / "biomedclipcxr_518.json").write_text(json.dumps({"vision_cfg": vision}))
    trunk = {f"visual.trunk.{name}": value for name, value in tower.state_dict().items()}
    torch.save(trunk | {"logit_scale": torch.ones(())}, own / "biomedclipcxr_518_checkpoint.pt")
    prefix = "base_model.model.model.mm_projector."
    torch.save(
        {prefix + name: value for name, value in projector.state_dict().items()},
        own / "non_lora_trainables.bin",
    )
    return own, base, (tower.eval(), projector, adapted.merge_and_unload().eval())


def test_llava_rad_reads_the_published_layout(tmp_path: Path) -> None:
    """Against the parts that were saved: the merged LoRA, the patches, the first word by hand."""
    own, base, (tower, projector, language) = tiny_llava_rad(tmp_path)
    context = Context(home=tmp_path, cache=tmp_path)
    model = LlavaRad(own, base, context)
    for name, weight in language.state_dict().items():
        torch.testing.assert_close(model.language.state_dict()[name], weight)
    image = Image.fromarray(pictures(1, 5, 64)[0])
    features = model.patches(model.prepared(image)[None])
    assert features.shape == (1, 16, tower.embed_dim)
    states = []
    tower.blocks[-1].register_forward_pre_hook(lambda _module, inputs: states.append(inputs[0]))
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    pixels = torch.from_numpy(np.asarray(image.convert("RGB"), np.float32) / 255).permute(2, 0, 1)
    mean, std = (torch.tensor(v)[:, None, None] for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    with torch.no_grad():
        tower(((pixels - mean) / std)[None])
        torch.testing.assert_close(features, states[0][:, 1:], rtol=1e-4, atol=1e-5)
        ids = [model.tokenizer(part)["input_ids"] for part in question("trauma")]
        embed = language.get_input_embeddings()
        before, after = (embed(torch.tensor([part])) for part in ids)
        inputs = torch.cat([before, projector(states[0][:, 1:]), after], dim=1)
        word = int(language(inputs_embeds=inputs).logits[0, -1].argmax())
    made = list(model.describe([image], ["trauma"], tokens=1))
    assert made == [model.tokenizer.decode([word], skip_special_tokens=True).strip()]


def test_llava_rad_writes_the_same_for_images_together(tmp_path: Path) -> None:
    own, base, _ = tiny_llava_rad(tmp_path)
    model = LlavaRad(own, base, Context(home=tmp_path, cache=tmp_path))
    images = [Image.fromarray(each) for each in pictures(5, 5, 64)]
    reasons = ["trauma", None, None, None, "cough"]
    alone = list(model.describe(images, reasons, tokens=6))
    assert alone == list(model.describe(iter(images), iter(reasons), tokens=6, together=2))


def test_llava_rads_language_model_may_be_a_state_dict_in_shards(tmp_path: Path) -> None:
    """As lmsys publishes it; what lies beside it, a second copy or an adapter, is refused."""
    from safetensors.torch import load_file

    own, base, (_, _, language) = tiny_llava_rad(tmp_path)
    state = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    names = {key: f"pytorch_model-0000{1 + at % 2}-of-00002.bin" for at, key in enumerate(state)}
    for file in set(names.values()):
        torch.save({key: state[key] for key in state if names[key] == file}, base / file)
    index = base / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert {*names.values(), index.name, "config.json"} < {each.name for each in base_files(base)}
    model = LlavaRad(own, base, Context(home=tmp_path, cache=tmp_path))
    for name, weight in language.state_dict().items():
        torch.testing.assert_close(model.language.state_dict()[name], weight)
    torch.save(state, base / "pytorch_model.bin")
    with pytest.raises(UserError, match="are there twice"):
        base_files(base)
    (base / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="adapter"):
        base_files(base)


def test_llava_rad_refuses_other_files(tmp_path: Path) -> None:
    own, base, _ = tiny_llava_rad(tmp_path)
    context = Context(home=tmp_path, cache=tmp_path)
    torch.save({"mm_projector.0.weight": torch.zeros(3)}, own / "non_lora_trainables.bin")
    with pytest.raises(UserError, match=r"non_lora_trainables\.bin does not hold"):
        LlavaRad(own, base, context)
    (own / "adapter_model.bin").unlink()
    with pytest.raises(UserError, match=r"adapter_model\.bin missing"):
        LlavaRad(own, base, context)


def llava_source(folder: Path, *, published: bool = False, dtype: str = "float32") -> Source:
    if not (folder / "llava-rad").is_dir():
        tiny_llava_rad(folder)
    context = Context(home=folder, cache=folder, dtype=dtype)
    return Source(
        own=folder / "llava-rad", base=folder / "base", published=published, context=context
    )


def two_kinds(folder: Path, count: int = 6) -> tuple[list[Path], list[str]]:
    """Images that are dark and light in turn, and a report for each kind."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{at}.png" for at in range(count)]
    for at, path in enumerate(paths):
        image = np.random.default_rng(at).integers(0, 60, (64, 64), dtype=np.uint8)
        Image.fromarray(image + np.uint8(180 * (at % 2))).save(path)
    texts = ["small left pleural effusion.", "no pneumothorax. cardiomegaly."]
    return paths, [texts[at % 2] for at in range(count)]


def tuned(folder: Path, start: Source, *, advance: Any = ignore, **changes: Any) -> Path:
    paths, texts = two_kinds(folder.with_name("images"))
    return fine_tune(
        paths, texts, folder, source=start, training=training(**changes), advance=advance
    )


def test_llava_rad_learns_its_pairs(tmp_path: Path) -> None:
    start = llava_source(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    changes: dict[str, Any] = {"epochs": 25, "learning_rate": 3e-3, "batch_size": 2}
    done = tuned(tmp_path / "run", start, **changes)
    paths, texts = two_kinds(tmp_path / "images")
    counted: list[int] = []
    made = write(paths, done, source=start, training=training(**changes), advance=counted.append)
    assert [joined(text) for text in made] == texts
    assert sum(counted) == len(paths)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert [path.name for path in done.iterdir()] == ["trained.safetensors"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["lock", "trained"]


def test_llava_rads_loss_is_of_the_report_alone(tmp_path: Path) -> None:
    """By hand, from the words that follow each place of prompt, patches and report."""
    model, weights = adapted(llava_source(tmp_path), 0)
    image = Image.fromarray(pictures(1, 5, 64)[0])
    ids = [*model.tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]]
    ids = [*ids, model.tokenizer.eos_token_id]
    pixels = model.prepared(image)
    loss = report_loss(model, pixels, ids)
    with torch.no_grad():
        prompt = model.prompt(model.patches(pixels[None]), None)
        logits = model.language(inputs_embeds=torch.cat([prompt, model.words(ids)], 1)).logits[0]
        place = prompt.shape[1] - 1
        said = logits.log_softmax(-1)
        by_hand = -sum(float(said[place + at, word]) for at, word in enumerate(ids))
    assert float(loss.detach()) == pytest.approx(by_hand, rel=1e-5)
    loss.backward()
    parts = {"language": model.language, "projector": model.projector, "tower": model.tower}
    moved = {
        f"{part}.{name}"
        for part, network in parts.items()
        for name, weight in network.named_parameters()
        if weight.grad is not None
    }
    assert moved == set(weights)
    assert all("lora_" in name or name.startswith("projector.") for name in moved)


def test_llava_rads_training_lowers_its_loss_and_keeps_what_is_frozen(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    start = llava_source(tmp_path, dtype="bfloat16")
    model, weights = adapted(start, 3)
    paths, texts = two_kinds(tmp_path / "images")
    frozen = {n: w.clone() for n, w in model.language.state_dict().items() if "lora_" not in n}
    assert {weight.dtype for weight in frozen.values()} == {torch.bfloat16}

    def loss() -> float:
        ids = model.tokenizer(texts[0], add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            return float(report_loss(model, model.prepared(read_image(paths[0])), ids))

    first = loss()
    done = tuned(tmp_path / "run", start, epochs=6, learning_rate=3e-3)
    found = load_file(done / "trained.safetensors")
    assert found.keys() == weights.keys()
    assert {weight.dtype for weight in found.values()} == {torch.float32}
    with torch.no_grad():
        for name, weight in weights.items():
            assert not torch.equal(weight, found[name]), name
            weight.copy_(found[name])
    assert loss() < 0.8 * first
    again = adapted(start, 3)[0].language.state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in frozen.items())


def test_a_stopped_fine_tuning_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    start = llava_source(tmp_path)
    state = torch.random.get_rng_state()
    whole = tuned(tmp_path / "whole", start, epochs=3)
    assert torch.equal(state, torch.random.get_rng_state())
    seen: list[int] = []

    def stop(count: int) -> None:
        seen.append(count)
        if sum(seen) == 1:
            raise KeyboardInterrupt

    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        tuned(folder, start, epochs=3, advance=stop)
    assert (folder / "epoch-0001").is_dir() and not (folder / "trained").exists()
    torch.manual_seed(99)
    went_on: list[int] = []
    again = tuned(folder, start, epochs=3, advance=went_on.append)
    assert went_on == [1, 1, 1]
    name = "trained.safetensors"
    assert (again / name).read_bytes() == (whole / name).read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "trained"]
    other = tuned(tmp_path / "other", start, epochs=3, seed=4)
    assert (other / name).read_bytes() != (whole / name).read_bytes()


def test_llava_rad_starts_without_what_reports_taught_it_unless_told(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    own, _, (_, projector, merged) = tiny_llava_rad(tmp_path)
    published, _ = adapted(llava_source(tmp_path, published=True), 0)
    base, _ = adapted(llava_source(tmp_path), 0)
    for model, same in ((published, True), (base, False)):
        name = "model.layers.0.self_attn.q_proj"
        inner = model.language.base_model.model.get_submodule(name).base_layer.weight
        assert torch.allclose(inner, merged.get_submodule(name).weight) == same
        assert torch.equal(model.projector[0].weight, projector[0].weight) == same
    plain = load_file(tmp_path / "base" / "model.safetensors")
    weight = base.language.base_model.model.get_submodule(name).base_layer.weight
    assert torch.equal(weight, plain[f"{name}.weight"])
    for file in ("adapter_model.bin", "non_lora_trainables.bin"):
        (own / file).unlink()
    adapted(llava_source(tmp_path), 0)
    with pytest.raises(UserError, match=r"adapter_model\.bin, non_lora_trainables\.bin missing"):
        adapted(llava_source(tmp_path, published=True), 0)


def test_regimes_are_scored_with_llava_rad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_llava_rad(tmp_path)
    images = sets(tmp_path / "images", train=4, test=4)
    changes: dict[str, Any] = {
        "generator": "llava-rad",
        "llava_rad": "llava-rad",
        "vicuna": "base",
        "epochs": 1,
        "tokens": 8,
    }
    found, said = run(tmp_path, images, **changes)
    for regime, made in (("real", 0), ("synthetic", 4), ("mixed", 2)):
        score = found["bleu1", regime, "overall"]
        assert not isinstance(score.estimate, str)
        assert score.n_fake == made
    assert ("bleu1_difference", "mixed_minus_real", "overall") in found
    assert any("llava-rad does not use encoder, decoder, size" in line for line in said)

    def never(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("done before")

    monkeypatch.setattr(LlavaRad, "__init__", never)
    again, _ = run(tmp_path, images, **changes)
    assert again == found
    # Another content of the files is another training.
    with (tmp_path / "llava-rad" / "adapter_config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(AssertionError, match="done before"):
        run(tmp_path, images, **changes)


def test_what_llava_rad_lacks_is_said_before_anything(tmp_path: Path) -> None:
    own, base, _ = tiny_llava_rad(tmp_path)
    llava: dict[str, Any] = {"generator": "llava-rad", "llava_rad": str(own), "vicuna": str(base)}
    assert any("does not use encoder" in remark for remark in check(tmp_path, **llava))
    started = check(tmp_path, **llava, start="published")
    assert any("have seen real reports" in remark for remark in started)
    assert any("does not use vicuna" in remark for remark in check(tmp_path, vicuna="base"))
    with pytest.raises(UserError, match="told where llava_rad and vicuna lie") as caught:
        check(tmp_path, generator="llava-rad")
    assert "--set report-generation.vicuna=lmsys/vicuna-7b-v1.5" in str(caught.value.hint)
    with pytest.raises(UserError, match="report-generation vicuna"):
        check(tmp_path, **llava | {"vicuna": "nowhere"})
    with pytest.raises(UserError, match=r"biomedclipcxr_518_checkpoint\.pt missing"):
        check(tmp_path, **llava | {"llava_rad": str(base)})
    with pytest.raises(UserError, match="language model of LLaVA-Rad is not in"):
        check(tmp_path, **llava | {"vicuna": str(own.parent)})
    config = own / "adapter_config.json"
    config.write_text(json.dumps({"r": "many"}))
    with pytest.raises(UserError, match="does not describe a LoRA"):
        check(tmp_path, **llava)
    config.unlink()
    check(tmp_path, **llava)
    torch.save({"visual.trunk.norm.weight": torch.zeros(3)}, own / VISION[1])
    with pytest.raises(UserError, match=r"checkpoint\.pt does not hold what"):
        check(tmp_path, **llava)
    torch.save({"state_dict": {}, "arguments": Path()}, own / VISION[1])
    with pytest.raises(UserError, match="cannot be read without running code"):
        check(tmp_path, **llava)
    (own / VISION[0]).write_text(
        json.dumps({"vision_cfg": {"timm_model_name": "hf-hub:owner/name", "image_size": 64}})
    )
    with pytest.raises(UserError, match="does not describe an image encoder"):
        check(tmp_path, **llava)


def test_llava_rad_has_the_defaults_that_it_was_published_with() -> None:
    usual, llava = ReportParameters(), ReportParameters(generator="llava-rad")
    assert (usual.epochs, usual.learning_rate) == (10, 5e-5)
    assert (llava.epochs, llava.learning_rate) == (3, 1e-4)
    assert ReportParameters(generator="llava-rad", epochs=1).epochs == 1
    assert ReportParameters(**llava.model_dump()) == llava
