"""Judges: what they may say, what is kept of it, and a real network of a few thousand weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from chexgenbench import Context, Judge, JudgeRequest, Sample, UserError
from chexgenbench.datasets.judging import ANSWERS, Answers, ask, count
from chexgenbench.errors import ChexGenBenchError
from chexgenbench.registry import load_registry
from chexgenbench.types import QUALITIES, UNREADABLE
from chexgenbench_plugins.judges.scores import Scores, ScoresParameters
from chexgenbench_plugins.judges.vlm import (
    QUESTION,
    STRICTER,
    Vlm,
    VlmParameters,
    parse,
    without_tokens,
)

SIZE, PATCH = 28, 14


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(home=tmp_path, cache=tmp_path / "cache")


# --- answers that are kept ------------------------------------------------------------------


class Counting(Judge):
    """Says what the prompt says, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def judge(self, requests: Sequence[JudgeRequest]) -> Iterator[str]:
        for request in requests:
            self.asked.append(request.prompt)
            yield request.prompt


def requests_of(*prompts: str) -> list[JudgeRequest]:
    return [JudgeRequest(path=Path("x.png"), prompt=prompt) for prompt in prompts]


def test_an_answer_is_asked_for_once_and_what_is_no_label_is_unreadable(tmp_path: Path) -> None:
    judge = Counting()
    requests = requests_of("High Quality", "a good one")
    first = ask(lambda: judge, requests, ["a", "b"], Answers(tmp_path))
    again = ask(lambda: judge, requests, ["a", "b"], Answers(tmp_path))
    assert first == again == ["High Quality", UNREADABLE]
    assert judge.asked == ["High Quality", "a good one"]
    assert count(first) == {"High Quality": 1, UNREADABLE: 1}
    # Another image, another prompt: other questions.
    ask(lambda: judge, requests, ["c", "b"], Answers(tmp_path))
    assert judge.asked == ["High Quality", "a good one", "High Quality"]


def test_the_kept_answers_hold_no_text_and_survive_a_cut_line(tmp_path: Path) -> None:
    answers = Answers(tmp_path)
    requests = requests_of("High Quality", "Low Quality")
    ask(Counting, requests[:1], ["a"], answers)
    path = tmp_path / ANSWERS
    with path.open("a") as file:
        file.write('["cut by a ki')
    ask(Counting, requests[1:], ["b"], Answers(tmp_path))
    found = Answers(tmp_path)
    assert found.get(Answers.key(requests[0], "a")) == "High Quality"
    assert found.get(Answers.key(requests[1], "b")) == "Low Quality"
    secret = requests_of("Patient Jane Doe has pneumonia.")
    ask(Counting, secret, ["d"], found)
    assert "Jane" not in path.read_text()


def test_a_judge_that_answers_too_little_is_named(tmp_path: Path) -> None:
    class Silent(Judge):
        def judge(self, requests: Sequence[JudgeRequest]) -> list[str]:
            return []

    judge = Silent(None, Context(home=tmp_path, cache=tmp_path))
    with pytest.raises(ChexGenBenchError, match="0 answers to 1 images"):
        ask(lambda: judge, requests_of("x"), ["a"], Answers(tmp_path))


@given(st.text())
def test_only_the_four_labels_are_labels(text: str) -> None:
    said = parse(text)
    plain = " ".join(text.split()).strip(" .*\"'`").casefold()
    assert (said != UNREADABLE) == (plain in {label.casefold() for label in QUALITIES})


@pytest.mark.parametrize("label", QUALITIES)
def test_a_label_is_read_in_the_forms_that_models_write(label: str) -> None:
    for form in (label, f" {label.lower()}.\n", f'"{label}"', f"**{label}**"):
        assert parse(form) == label
    for form in (f"{label} because of the heart", f"not {label}", f"{label}, {label}", ""):
        assert parse(form) == UNREADABLE


# --- the judge by scores --------------------------------------------------------------------


def sample(
    features: np.ndarray[Any, Any],
    text: np.ndarray[Any, Any] | None,
    patients: np.ndarray[Any, Any] | None = None,
) -> Sample:
    return Sample(
        outputs={"features": features.astype(np.float32)},
        text=None if text is None else text.astype(np.float32),
        prompts=np.arange(len(features)),
        patients=patients,
    )


def scored(
    real: Sample,
    features: np.ndarray[Any, Any],
    text: np.ndarray[Any, Any] | None,
    context: Context,
) -> list[str]:
    judge = Scores(ScoresParameters(), context)
    judge.learn(real)
    requests = [
        JudgeRequest(
            path=Path("x"),
            prompt="",
            features=features[i].astype(np.float32),
            text=None if text is None else text[i].astype(np.float32),
        )
        for i in range(len(features))
    ]
    return list(judge.judge(requests))


def pairs(
    random: np.random.Generator, count: int, noise: float = 0.5
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Features of images, and of prompts that they answer."""
    text = random.normal(size=(count, 16))
    return text + noise * random.normal(size=(count, 16)), text


@pytest.mark.parametrize("spoken", [False, True])
def test_new_real_images_get_each_label_as_often_as_the_thresholds_say(
    context: Context, spoken: bool
) -> None:
    random = np.random.default_rng(0)
    shares = dict.fromkeys(QUALITIES, 0.0)
    rounds, known, new = 40, 300, 200
    for _ in range(rounds):
        features, text = pairs(random, known)
        real = sample(features, text if spoken else None)
        said = scored(real, *pairs(random, new), context)
        for label in QUALITIES:
            shares[label] += said.count(label) / new / rounds

    def margin(share: float) -> float:
        """Four standard errors: of the real sides that were drawn, and of the new images."""
        error = np.sqrt(share * (1 - share) * (1 / (known * rounds) + 1 / (new * rounds)))
        return 4 * float(error)

    if not spoken:
        low, high = (int(level * (known + 1)) / (known + 1) for level in (0.05, 0.25))
        assert shares["Low Quality"] == pytest.approx(low, abs=margin(low))
        assert shares["High Quality"] == pytest.approx(1 - high, abs=margin(high))
        return
    # Two shares, each uniform; Frechet's bounds hold however they hang together.
    poor = shares["Low Quality"] + shares["Not Relevant"]
    assert shares["Not Relevant"] <= 0.01 + margin(0.01)
    assert 0.05 - margin(0.05) <= poor <= 0.10 + margin(0.10)
    assert 0.5 - margin(0.5) <= shares["High Quality"] <= 0.75 + margin(0.75)


def test_bad_images_are_told_from_good_ones(context: Context) -> None:
    random = np.random.default_rng(1)
    real = sample(*pairs(random, 300))
    features, text = pairs(random, 100)
    assert set(scored(real, features + 20, text, context)) <= {"Low Quality", "Not Relevant"}
    others = scored(real, features, np.roll(text, 1, axis=0), context)
    assert others.count("Not Relevant") > 80
    # Without a text side nothing is said of relevance.
    without = scored(sample(features, None), features + 20, None, context)
    assert set(without) == {"Low Quality"}


def test_images_of_one_patient_do_not_make_all_others_look_unusual(context: Context) -> None:
    """Ten images a patient, all alike: with them as neighbours no other patient is ever usual."""
    random = np.random.default_rng(2)
    centres = random.normal(size=(60, 16))
    patients = np.repeat(np.arange(60), 10)
    features = centres[patients] + 0.01 * random.normal(size=(600, 16))
    fresh = random.normal(size=(200, 16))
    grouped = scored(sample(features, None, patients), fresh, None, context)
    assert grouped.count("High Quality") > 100
    alone = scored(sample(features, None), fresh, None, context)
    assert alone.count("High Quality") == 0


def test_what_a_judge_says_of_an_image_does_not_depend_on_the_others(context: Context) -> None:
    random = np.random.default_rng(3)
    real = sample(*pairs(random, 300))
    features, text = pairs(random, 60)
    together = scored(real, features, text, context)
    alone = [scored(real, features[i : i + 1], text[i : i + 1], context)[0] for i in range(60)]
    assert together == alone


def test_too_few_real_images_say_nothing(context: Context) -> None:
    with pytest.raises(UserError, match="20 real images"):
        Scores(ScoresParameters(), context).learn(sample(*pairs(np.random.default_rng(0), 12)))


# --- the vision-language judge --------------------------------------------------------------

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %} assistant : {% endif %}"
)


def build_vlm(
    folder: Path, train: Callable[[Any, Any], None] | None = None, template: str | None = TEMPLATE
) -> None:
    """A LLaVA of some ten thousand random weights, with a tokenizer of whole words."""
    import re

    import torch
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(0)
    text = f"{QUESTION} {STRICTER} {' '.join(QUALITIES)} user assistant Fine heart normal : ."
    words = sorted(set(re.findall(r"\w+|[^\w\s]", text)))
    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), "isolated")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=16,
    )
    language = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    network = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=language, image_token_index=4)
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )
    if train is not None:
        train(network, processor)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)


def teach(answers: dict[str, str]) -> Callable[[Any, Any], None]:
    """Trains the network to answer a question with a text, until it does."""

    def train(network: Any, processor: Any) -> None:
        import torch

        picture = Image.new("RGB", (SIZE, SIZE), (90, 90, 90))
        batches = []
        for question, answer in answers.items():
            content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
            inputs = processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
            added = processor.tokenizer(f"{answer}</s>", return_tensors="pt")["input_ids"]
            ids = torch.cat([inputs["input_ids"], added], dim=1)
            labels = ids.clone()
            labels[:, : inputs["input_ids"].shape[1]] = -100
            mask = torch.ones_like(ids)
            batches.append((ids, mask, inputs["pixel_values"], labels))
        optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
        for _ in range(150):
            loss = sum(
                network(input_ids=i, attention_mask=m, pixel_values=p, labels=y).loss
                for i, m, p, y in batches
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if loss.item() < 0.02:
                return
        raise AssertionError(f"not learnt: {loss.item()}")

    return train


@pytest.fixture(scope="module")
def random_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vlm")
    build_vlm(folder)
    return folder


def vlm(folder: Path, context: Context, **values: Any) -> Vlm:
    return Vlm(VlmParameters(weights=str(folder), **values), context)


@pytest.fixture
def pictures(tmp_path: Path) -> list[JudgeRequest]:
    random = np.random.default_rng(0)
    found = []
    for number in range(3):
        path = tmp_path / f"{number}.png"
        Image.fromarray(random.integers(0, 255, (40, 40), dtype=np.uint8)).save(path)
        found.append(JudgeRequest(path=path, prompt="heart normal ."))
    return found


def test_a_random_network_writes_nothing_that_counts(
    random_vlm: Path, context: Context, pictures: list[JudgeRequest]
) -> None:
    assert list(vlm(random_vlm, context).judge(pictures)) == [UNREADABLE] * 3


@pytest.mark.parametrize("mode", ["generate", "likelihood"])
def test_a_token_in_a_prompt_stays_text(
    random_vlm: Path, context: Context, pictures: list[JudgeRequest], mode: str
) -> None:
    """As a token it would stand for an image that is not there, or end the question."""
    import dataclasses

    judge = vlm(random_vlm, context, mode=mode)
    for token in ("<image>", "<image> <image>", "</s>", "<pad>"):
        request = dataclasses.replace(pictures[0], prompt=f"heart {token} normal .")
        assert len(list(judge.judge([request]))) == 1
        question = without_tokens(request.prompt, judge._tokens)
        ids = judge._inputs(request.path, question)["input_ids"][0].tolist()
        bare = judge._inputs(request.path, "heart normal .")["input_ids"][0].tolist()
        for special in (2, 3, 4):  # </s>, <pad>, <image>
            assert ids.count(special) == bare.count(special)


@given(
    st.text(st.sampled_from("<>ab/ \n")),
    st.lists(st.text(st.sampled_from("<>ab/"), min_size=2, max_size=5), max_size=4),
)
def test_no_token_is_left_and_nothing_else_is_lost(text: str, tokens: list[str]) -> None:
    apart = without_tokens(text, tokens)
    assert not [token for token in tokens if token in apart]
    assert "".join(apart.split()) == "".join(text.split())


def test_the_likelihood_is_that_of_writing_the_label_word_by_word(
    random_vlm: Path, context: Context, pictures: list[JudgeRequest]
) -> None:
    import torch

    judge = vlm(random_vlm, context, mode="likelihood")
    inputs = judge._inputs(pictures[0].path, QUESTION)
    for label in QUALITIES:
        ids = judge.processor.tokenizer(label, add_special_tokens=False)["input_ids"]
        assert len(ids) == 2
        written = dict(inputs)
        slow = 0.0
        for token in ids:
            with torch.inference_mode():
                after = judge.network(**written).logits[0, -1].double().softmax(-1)
            slow += float(after[token].log())
            more = torch.tensor([[token]])
            written["input_ids"] = torch.cat([written["input_ids"], more], dim=1)
            written["attention_mask"] = torch.ones_like(written["input_ids"])
        assert judge._log_probability(inputs, label) == pytest.approx(slow, abs=1e-4)
    said = list(judge.judge(pictures))
    assert set(said) <= set(QUALITIES)
    assert said == [next(iter(judge.judge([request]))) for request in pictures]


def test_an_answer_that_is_no_label_is_asked_for_once_more(
    tmp_path: Path, context: Context, pictures: list[JudgeRequest]
) -> None:
    question = QUESTION.replace("{prompt}", pictures[0].prompt)
    answers = {question: "Fine", question + STRICTER: "Low Quality"}
    build_vlm(tmp_path / "taught", teach(answers))
    judge = vlm(tmp_path / "taught", context)
    assert judge._write(pictures[0].path, question).strip() == "Fine"
    assert list(judge.judge(pictures)) == ["Low Quality"] * 3
    sure = vlm(tmp_path / "taught", context, mode="likelihood")
    assert set(sure.judge(pictures)) <= set(QUALITIES)


def test_a_model_without_a_chat_template_or_with_code_of_its_own_is_refused(
    tmp_path: Path, context: Context, random_vlm: Path
) -> None:
    import json
    import shutil

    build_vlm(tmp_path / "plain", template=None)
    with pytest.raises(UserError, match="no chat template"):
        vlm(tmp_path / "plain", context)
    shutil.copytree(random_vlm, tmp_path / "code")
    config = json.loads((tmp_path / "code" / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / "code" / "config.json").write_text(json.dumps(config))
    (tmp_path / "code" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match="cannot be loaded"):
        vlm(tmp_path / "code", context)
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_not_there_are_named_before_anything_is_loaded(context: Context) -> None:
    plugin = load_registry().judges["vlm"]
    with pytest.raises(UserError, match="must be told its weights"):
        plugin.parse({})
    with pytest.raises(UserError, match="not a folder"):
        plugin.load().weights(plugin.parse({"weights": "./nowhere"}), context)
