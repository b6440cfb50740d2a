"""LLaVA-Rad: a radiograph and perhaps the reason for the exam to the findings of its report.

The network is written out from its parts: timm's ViT (BiomedCLIP-CXR), two linear layers, and
transformers' Llama (Vicuna 7B) with a LoRA. Facts after the public code, microsoft/LLaVA-Rad, as
pradyunramesh/LLaVA-Rad has it: ``llava/model/builder.py``, ``llava_arch.py``,
``open_clip_encoder.py`` and ``eval/model_mimic_cxr.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from chexgenbench import Context, UserError
from chexgenbench.files import read_json

if TYPE_CHECKING:
    import PIL.Image
    import torch

FILES = (
    "adapter_config.json",
    "adapter_model.bin",
    "non_lora_trainables.bin",
    "biomedclipcxr_518.json",
    "biomedclipcxr_518_checkpoint.pt",
)
"""The files of microsoft/llava-rad that are read."""

_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_QUESTION = "Provide a description of the findings in the radiology image"
_TRUNK, _PROJECTOR = "visual.trunk.", "mm_projector."


def refuse() -> NoReturn:
    """Raises `UserError`: task metrics cannot fine-tune in another environment yet."""
    raise UserError(
        "The report generator 'llava-rad' cannot be fine-tuned yet: its training runs in the "
        "environment of containers/llava-rad, and task metrics run in this one only.",
        hint="Take the default: --set report-generation.generator=vision-encoder-decoder",
    )


def question(reason: str | None) -> tuple[str, str]:
    """What stands before and after the image in the prompt, with the reason for the exam or not.

    >>> question("cough")[1].splitlines()[1][60:]
    ' given the following indication: cough ASSISTANT:'
    """
    about = f" given the following indication: {' '.join(reason.splitlines())}" if reason else "."
    return f"{_SYSTEM} USER: ", f"\n{_QUESTION}{about} ASSISTANT:"


class LlavaRad:
    """The published model, for greedy reports of single images.

    Attributes:
        size: pixels a side of the images that the ViT reads.
    """

    def __init__(self, folder: Path, base: Path, context: Context) -> None:
        """Loads the weights.

        Args:
            folder: The files of microsoft/llava-rad, see `FILES`.
            base: The language model that the LoRA was trained on (lmsys/vicuna-7b-v1.5).
            context: Device and precision.

        Raises:
            UserError: a file is missing, broken or of another network.
        """
        import torch
        from transformers import AutoTokenizer, LlamaForCausalLM

        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise UserError(f"LLaVA-Rad is not in {folder}: {', '.join(missing)} missing.")
        self.device, self.dtype = context.device, getattr(torch, context.dtype)
        self.tower, self.size = _tower(folder, context)
        alone: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        self.tokenizer = AutoTokenizer.from_pretrained(base, **alone)
        language = LlamaForCausalLM.from_pretrained(base, dtype=self.dtype, **alone)
        self.language = _with_lora(language, folder).eval().to(self.device)
        self.projector = _projector(
            folder, self.tower.embed_dim, language.config.hidden_size, context
        )

    def describe(
        self, images: Sequence[PIL.Image.Image], reasons: Sequence[str | None], tokens: int = 256
    ) -> Iterator[str]:
        """The findings of each image, word by word the most likely.

        Args:
            images: Radiographs, mode L or RGB.
            reasons: The reason for each exam; None: not given.
            tokens: Of a report at most.
        """
        import torch

        for image, reason in zip(images, reasons, strict=True):
            with torch.inference_mode():
                ids = self.language.generate(
                    inputs_embeds=self._embedded(image, reason),
                    max_new_tokens=tokens,
                    do_sample=False,
                    num_beams=1,
                )
            yield self.tokenizer.decode(ids[0], skip_special_tokens=True).strip()

    def _embedded(self, image: PIL.Image.Image, reason: str | None) -> torch.Tensor:
        """The prompt's vectors [1, tokens + patches, width] with the image's in its place."""
        import torch

        before, after = question(reason)
        embed = self.language.get_input_embeddings()
        head = self.tokenizer(before)["input_ids"]
        tail = self.tokenizer(after)["input_ids"]
        if tail[:1] == [self.tokenizer.bos_token_id]:
            tail = tail[1:]
        texts = [embed(torch.tensor([ids], device=self.device)) for ids in (head, tail)]
        return torch.cat([texts[0], self.projector(self.patches(image)), texts[1]], dim=1)

    def patches(self, image: PIL.Image.Image) -> torch.Tensor:
        """What the block before the last of the ViT says of each patch [1, patches, width]."""
        from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, image_transform

        prepare: Any = image_transform(
            self.size, is_train=False, mean=OPENAI_DATASET_MEAN, std=OPENAI_DATASET_STD
        )
        tower = self.tower
        values = prepare(image.convert("RGB"))[None].to(self.device, self.dtype)
        values = tower.norm_pre(tower._pos_embed(tower.patch_embed(values)))
        for block in tower.blocks[:-1]:
            values = block(values)
        return values[:, tower.num_prefix_tokens :]


def _tower(folder: Path, context: Context) -> tuple[Any, int]:
    import timm
    import torch

    from chexgenbench_plugins.weights import read_content

    vision = read_json(folder / "biomedclipcxr_518.json")["vision_cfg"]
    size = int(vision["image_size"])
    tower = timm.create_model(
        vision["timm_model_name"], pretrained=False, num_classes=0, img_size=size
    )
    path = folder / "biomedclipcxr_518_checkpoint.pt"
    content = read_content(path, "image encoder of LLaVA-Rad", allow_pickle=context.allow_pickle)
    content = content.get("state_dict", content)
    names = {name.removeprefix("module."): value for name, value in content.items()}
    _fill(tower, _below(names, _TRUNK), path)
    return tower.eval().to(context.device, getattr(torch, context.dtype)), size


def _projector(folder: Path, inner: int, outer: int, context: Context) -> Any:
    import torch
    from torch import nn

    from chexgenbench_plugins.weights import read_content

    projector = nn.Sequential(nn.Linear(inner, outer), nn.GELU(), nn.Linear(outer, outer))
    path = folder / "non_lora_trainables.bin"
    content = read_content(path, "projector of LLaVA-Rad", allow_pickle=context.allow_pickle)
    _fill(projector, _below(content, _PROJECTOR), path)
    return projector.eval().to(context.device, getattr(torch, context.dtype))


def _with_lora(language: Any, folder: Path) -> Any:
    from peft import PeftModel

    from chexgenbench_plugins.weights import staged

    names = ("adapter_config.json", "adapter_model.bin")
    # Alone: what else lies there is not read.
    with staged({name: folder / name for name in names}) as alone:
        return PeftModel.from_pretrained(language, str(alone)).merge_and_unload()


def _below(content: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose name holds `prefix`, by what follows it."""
    return {name.partition(prefix)[2]: value for name, value in content.items() if prefix in name}


def _fill(network: Any, state: Mapping[str, Any], path: Path) -> None:
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"{path} does not hold what LLaVA-Rad needs: {str(error).splitlines()[-1].strip()}"
        ) from error
