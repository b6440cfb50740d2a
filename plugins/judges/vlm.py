"""A vision-language model on this machine as judge, as SynthCheX-75K was filtered by one.

The published filter asked HealthGPT whether an image is of high, medium or low quality given its
description, or not relevant to it. Here any image-text-to-text model of transformers that has a
chat template is asked, greedily and one image at a time, so that an answer depends on nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import whitespace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from chexgenbench import (
    Context,
    Judge,
    JudgeParameters,
    JudgeRequest,
    JudgeSpec,
    Location,
    UserError,
    hookimpl,
)
from chexgenbench.types import QUALITIES, UNREADABLE
from chexgenbench_plugins.weights import (
    refuse_adapters,
    safe_weight_files,
    staged,
    weight_folder,
)

if TYPE_CHECKING:
    import torch

QUESTION = (
    "You are an expert in chest radiography who checks synthetic images. The image was made for "
    "this description:\n{prompt}\nHow good is it as a chest radiograph of that description? Answer "
    "with one of: High Quality, Medium Quality, Low Quality. If it does not fit the description at "
    "all, answer: Not Relevant."
)
STRICTER = (
    "\nAnswer with exactly one of these four phrases and nothing else: High Quality; Medium "
    "Quality; Low Quality; Not Relevant."
)


class VlmParameters(JudgeParameters):
    weights: Annotated[str, Location()] = Field(
        description="A folder with a model of transformers (image-text-to-text), or owner/name or "
        "owner/name@COMMIT in the hub's local cache."
    )
    revision: Annotated[str | None, Location()] = Field(
        None, description="The hub commit; ignored for a folder."
    )
    mode: Literal["generate", "likelihood"] = Field(
        "generate",
        description="generate: the model writes its answer; likelihood: the likeliest of the four "
        "labels is taken, so that every answer is one.",
    )
    question: str = Field(QUESTION, description="What is asked; {prompt} stands for the prompt.")
    tokens: int = Field(16, ge=4, le=256, description="Tokens of an answer at most.")


class Vlm(Judge):
    parameters: VlmParameters

    @classmethod
    def weights(cls, parameters: VlmParameters, context: Context) -> Mapping[str, Path]:
        folder = weight_folder(
            parameters.weights,
            revision=parameters.revision,
            home=context.home,
            what="vlm",
            kind="judges",
        )
        refuse_adapters(folder, "vlm")
        files = safe_weight_files(folder, "vlm", allow_pickle=context.allow_pickle)
        found = {path.relative_to(folder).as_posix(): path for path in files}
        return found | {path.name: path for path in sorted(folder.glob("*.jinja"))}

    def __init__(self, parameters: VlmParameters, context: Context) -> None:
        super().__init__(parameters, context)
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        with staged(self.weights(parameters, context)) as folder:
            options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
            try:
                self.processor = AutoProcessor.from_pretrained(folder, **options)
                self.network = AutoModelForImageTextToText.from_pretrained(
                    folder, dtype=getattr(torch, context.dtype), **options
                )
            except (OSError, ValueError, KeyError) as error:
                raise UserError(
                    f"The model of the judge 'vlm' cannot be loaded from {parameters.weights}: "
                    f"{str(error).splitlines()[0]}",
                    hint="It must be an image-text-to-text model of transformers, with its "
                    "processor and without code of its own.",
                ) from error
        if not getattr(self.processor, "chat_template", None):
            raise UserError(
                f"The model in {parameters.weights} has no chat template, so the judge 'vlm' "
                "cannot ask it.",
                hint="Take an instruction-tuned model.",
            )
        self._tokens = _special_tokens(self.processor)
        self.network.eval().requires_grad_(False).to(context.device)

    def judge(self, requests: Sequence[JudgeRequest]) -> Iterator[str]:
        import torch

        with torch.inference_mode():
            for request in requests:
                prompt = without_tokens(request.prompt, self._tokens)
                question = self.parameters.question.replace("{prompt}", prompt)
                if self.parameters.mode == "likelihood":
                    yield self._likeliest(request.path, question)
                    continue
                answer = parse(self._write(request.path, question))
                if answer == UNREADABLE:
                    answer = parse(self._write(request.path, question + STRICTER))
                yield answer

    def _inputs(self, path: Path, question: str) -> dict[str, torch.Tensor]:
        from chexgenbench.images import read_image

        content = [
            {"type": "image", "image": read_image(path).convert("RGB")},
            {"type": "text", "text": question},
        ]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        inputs = inputs.to(self.context.device)
        return {
            name: value.to(self.network.dtype) if value.is_floating_point() else value
            for name, value in inputs.items()
        }

    def _write(self, path: Path, question: str) -> str:
        inputs = self._inputs(path, question)
        ids = self.network.generate(
            **inputs, do_sample=False, num_beams=1, max_new_tokens=self.parameters.tokens
        )
        new = ids[0, inputs["input_ids"].shape[1] :]
        text: str = self.processor.decode(new, skip_special_tokens=True)
        return text

    def _likeliest(self, path: Path, question: str) -> str:
        """The label with the highest probability of being written next, all its tokens together."""
        inputs = self._inputs(path, question)
        scores = [self._log_probability(inputs, label) for label in QUALITIES]
        return QUALITIES[scores.index(max(scores))]

    def _log_probability(self, inputs: Mapping[str, torch.Tensor], label: str) -> float:
        import torch

        length = inputs["input_ids"].shape[1]
        ids = self.processor.tokenizer(label, add_special_tokens=False, return_tensors="pt")
        added = ids["input_ids"].to(self.context.device)
        longer = dict(inputs)
        for name, value in inputs.items():
            # What has a value a token, such as the kind of the token, is 0 for text.
            if value.shape == inputs["input_ids"].shape:
                more = {"input_ids": added, "attention_mask": torch.ones_like(added)}
                longer[name] = torch.cat([value, more.get(name, torch.zeros_like(added))], dim=1)
        logits = self.network(**longer).logits[0, length - 1 : -1].double()
        return float(logits.log_softmax(-1).gather(1, added.T).sum())


def parse(text: str) -> str:
    """The label that an answer is, but for case, quotation marks and a full stop around it.

    >>> parse(' "high quality".'), parse("High Quality, as the heart is normal")
    ('High Quality', 'unreadable')
    """
    plain = " ".join(text.split()).strip(" .*\"'`").casefold()
    return next((label for label in QUALITIES if label.casefold() == plain), UNREADABLE)


def without_tokens(text: str, tokens: Sequence[str]) -> str:
    """`text` with a space within each of `tokens` (without white space), so that it stays text.

    A prompt with a token of the model's own would else stand for an image, or end the question.

    >>> without_tokens("heart <image> normal", ["<image>", "</s>"])
    'heart < image> normal'
    """
    while found := next((token for token in tokens if token in text), None):
        text = text.replace(found, f"{found[0]} {found[1:]}")
    return text


def _special_tokens(processor: Any) -> tuple[str, ...]:
    """What the tokenizer or the processor does not take for text, the longest first."""
    known = {str(token) for token in processor.tokenizer.all_special_tokens}
    added = processor.tokenizer.added_tokens_decoder.values()
    known |= {str(token) for token in added if token.special}
    for name in ("image_token", "boi_token", "eoi_token", "video_token", "audio_token"):
        known.add(str(getattr(processor, name, None) or ""))
    # What a space cannot part is white space or one character: neither stands for an image.
    parted = (token for token in known if len(token) > 1 and not set(token) & set(whitespace))
    return tuple(sorted(parted, key=lambda token: (-len(token), token)))


@hookimpl
def chexgenbench_judges() -> Iterator[JudgeSpec]:
    yield JudgeSpec(
        name="vlm",
        summary="A vision-language model on this machine says which of four labels fits",
        load="chexgenbench_plugins.judges.vlm:Vlm",
        parameters=VlmParameters,
        requires=("transformers",),
        licence="that of the model",
        references=(
            "https://arxiv.org/abs/2505.10496",
            "https://huggingface.co/datasets/raman07/SynthCheX-75K",
        ),
    )
