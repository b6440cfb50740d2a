"""LLaVA-Rad: a radiograph and perhaps the reason for the exam to the findings of its report.

The network is written out from its parts: timm's ViT (BiomedCLIP-CXR), two linear layers, and
transformers' Llama (Vicuna 7B) with a LoRA. Facts after the public code, microsoft/LLaVA-Rad, as
pradyunramesh/LLaVA-Rad has it: ``llava/model/builder.py``, ``llava_arch.py``,
``open_clip_encoder.py`` and ``eval/model_mimic_cxr.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chexgenbench import Context, UserError
from chexgenbench.files import read_json

if TYPE_CHECKING:
    import PIL.Image
    import torch

VISION = ("biomedclipcxr_518.json", "biomedclipcxr_518_checkpoint.pt")
ADAPTER = ("adapter_config.json", "adapter_model.bin", "non_lora_trainables.bin")
"""The files of microsoft/llava-rad that are read: the image encoder; the LoRA and the projector."""

_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_QUESTION = "Provide a description of the findings in the radiology image"
_TRUNK, _PROJECTOR = "visual.trunk.", "mm_projector."
_BASE = "language model of LLaVA-Rad"
_ALONE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""For ``from_pretrained``: no download, and neither code of a folder nor a question about it."""


def own_files(folder: Path, *, published: bool) -> list[Path]:
    """The files of microsoft/llava-rad in `folder` that decide what the network does.

    Args:
        folder: Where they lie.
        published: With the published LoRA and projector; else those of the image encoder, and
            ``adapter_config.json`` where it is there.

    Raises:
        UserError: one is missing.
    """
    needed = (*VISION, *ADAPTER) if published else VISION
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"LLaVA-Rad is not in {folder}: {', '.join(missing)} missing.",
            hint="They are files of microsoft/llava-rad: hf download microsoft/llava-rad",
        )
    found = [folder / name for name in needed]
    config = folder / ADAPTER[0]
    return found if published or not config.is_file() else [*found, config]


def base_files(folder: Path) -> list[Path]:
    """The weights, configuration and tokenizer of the language model in `folder`.

    Raises:
        UserError: there are no weights, or more than one network's.
    """
    from chexgenbench_plugins.weights import one_or_shards, refuse_adapters

    refuse_adapters(folder, _BASE)
    for name in ("model.safetensors", "pytorch_model.bin"):
        weights = one_or_shards(folder, name, f"{name}.index.json", _BASE)
        if weights:
            break
    else:
        raise UserError(
            f"The {_BASE} is not in {folder}: neither model.safetensors nor pytorch_model.bin.",
            hint="It is lmsys/vicuna-7b-v1.5: hf download lmsys/vicuna-7b-v1.5",
        )
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"The {_BASE} in {folder} lacks config.json.")
    small = [path for path in folder.iterdir() if path.suffix in {".json", ".model", ".txt"}]
    return [*weights, *sorted(p for p in small if p.is_file() and ".index." not in p.name)]


def check_llava_rad(folder: Path, base: Path, *, published: bool, allow_pickle: bool) -> None:
    """Looks into the files as far as that is cheap: no weight is read into memory.

    Args:
        folder: The files of microsoft/llava-rad.
        base: The language model.
        published: Whether the published LoRA and projector are used.
        allow_pickle: The user's yes, see `read_content`.

    Raises:
        UserError: a file is missing, broken, wants code of its own or is of another network.
    """
    import torch
    from transformers import AutoConfig

    own_files(folder, published=published)
    base_files(base)
    try:
        config = AutoConfig.from_pretrained(base, **_ALONE)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"The {_BASE} cannot be loaded: {base}") from error
    if config.model_type != "llama":
        raise UserError(f"The {_BASE} in {base} is no Llama: it is {config.model_type!r}.")
    with torch.device("meta"):
        tower, _ = _tower(folder, allow_pickle=allow_pickle)
        if published:
            projector = _new_projector(tower.embed_dim, config.hidden_size)
            _fill_projector(projector, folder, allow_pickle=allow_pickle)


def question(reason: str | None) -> tuple[str, str]:
    """What stands before and after the image in the prompt, with the reason for the exam or not.

    >>> question("cough")[1].splitlines()[1][60:]
    ' given the following indication: cough ASSISTANT:'
    """
    about = f" given the following indication: {' '.join(reason.splitlines())}" if reason else "."
    return f"{_SYSTEM} USER: ", f"\n{_QUESTION}{about} ASSISTANT:"


class LlavaRad:
    """The network, for greedy reports.

    Attributes:
        size: pixels a side of the images that the ViT reads.
        language: Vicuna, with the LoRA merged in.
        projector: from patches to the vectors of words.
    """

    def __init__(
        self, folder: Path, base: Path, context: Context, *, published: bool = True
    ) -> None:
        """Loads the weights.

        Args:
            folder: The files of microsoft/llava-rad, see `own_files`.
            base: The language model that the LoRA was trained on (lmsys/vicuna-7b-v1.5).
            context: Device and precision.
            published: With the published LoRA and projector; else the language model as it is and
                a projector of random weights.

        Raises:
            UserError: a file is missing, broken or of another network.
        """
        import torch
        from transformers import AutoTokenizer, LlamaForCausalLM

        from chexgenbench_plugins.weights import staged

        own_files(folder, published=published)
        self.device, self.dtype = context.device, getattr(torch, context.dtype)
        tower, self.size = _tower(folder, allow_pickle=context.allow_pickle)
        self.tower = tower.eval().requires_grad_(requires_grad=False).to(self.device, self.dtype)
        try:
            with staged({path.name: path for path in base_files(base)}) as alone:
                self.tokenizer: Any = AutoTokenizer.from_pretrained(alone, **_ALONE)
                language: Any = LlamaForCausalLM.from_pretrained(alone, dtype=self.dtype, **_ALONE)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"The {_BASE} cannot be loaded: {base}") from error
        if published:
            language = _with_lora(language, folder)
        self.language = language.eval().to(self.device)
        projector = _new_projector(tower.embed_dim, language.config.hidden_size)
        if published:
            _fill_projector(projector, folder, allow_pickle=context.allow_pickle)
        self.projector = projector.eval().to(self.device, self.dtype)

    def describe(
        self,
        images: Iterable[PIL.Image.Image],
        reasons: Iterable[str | None],
        tokens: int = 256,
        *,
        together: int = 1,
    ) -> Iterator[str]:
        """The findings of each image, word by word the most likely.

        Args:
            images: Radiographs, mode L or RGB.
            reasons: The reason for each exam; None: not given.
            tokens: Of a report at most.
            together: Images a batch; those of one batch follow each other and have one reason.
        """
        import torch

        for reason, group in groupby(zip(images, reasons, strict=True), key=itemgetter(1)):
            while chunk := [self.prepared(image) for image, _ in islice(group, together)]:
                yield from self._written(torch.stack(chunk), reason, tokens)

    def _written(self, pixels: torch.Tensor, reason: str | None, tokens: int) -> list[str]:
        import torch
        from transformers import GenerationConfig

        # Not the settings in the folder of the language model, which are for conversations.
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        settings = GenerationConfig(
            max_new_tokens=tokens,
            do_sample=False,
            num_beams=1,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=end,
            pad_token_id=end if pad is None else pad,
        )
        with torch.inference_mode():
            prompt = self.prompt(self.patches(pixels), reason)
            ids = self.language.generate(
                inputs_embeds=prompt,
                attention_mask=prompt.new_ones(prompt.shape[:2], dtype=torch.long),
                generation_config=settings,
            )
        texts: list[str] = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def words(self, ids: list[int]) -> torch.Tensor:
        """The vectors of tokens [1, tokens, width]."""
        import torch

        embed = self.language.get_input_embeddings()
        found: torch.Tensor = embed(torch.tensor([ids], dtype=torch.long, device=self.device))
        return found

    def prompt(self, patches: torch.Tensor, reason: str | None) -> torch.Tensor:
        """The prompt's vectors [b, tokens + patches, width] with the images' in their place."""
        import torch

        before, after = question(reason)
        head = self.tokenizer(before)["input_ids"]
        tail = self.tokenizer(after)["input_ids"]
        if tail[:1] == [self.tokenizer.bos_token_id]:
            tail = tail[1:]
        texts = [self.words(ids).expand(len(patches), -1, -1) for ids in (head, tail)]
        seen = self.projector(patches.to(self.projector[0].weight.dtype)).to(self.dtype)
        return torch.cat([texts[0], seen, texts[1]], dim=1)

    def prepared(self, image: PIL.Image.Image) -> torch.Tensor:
        """float32 [3, size, size] as the ViT reads it; open_clip's transform sizes and crops."""
        from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, image_transform

        prepare: Any = image_transform(
            self.size, is_train=False, mean=OPENAI_DATASET_MEAN, std=OPENAI_DATASET_STD
        )
        values: torch.Tensor = prepare(image.convert("RGB"))
        return values

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the block before the last of the ViT says of each patch [b, patches, width]."""
        import torch

        tower = self.tower
        with torch.no_grad():
            values = pixels.to(self.device, self.dtype)
            values = tower.norm_pre(tower._pos_embed(tower.patch_embed(values)))
            for block in tower.blocks[:-1]:
                values = block(values)
        found: torch.Tensor = values[:, tower.num_prefix_tokens :]
        return found


def _tower(folder: Path, *, allow_pickle: bool) -> tuple[Any, int]:
    """The ViT, and the pixels a side of its images."""
    import timm

    from chexgenbench_plugins.weights import read_content

    config, path = (folder / name for name in VISION)
    try:
        vision = read_json(config)["vision_cfg"]
        name, size = str(vision["timm_model_name"]), int(vision["image_size"])
        # Names with a prefix would be looked for on the hub.
        if not timm.is_model(name):
            raise ValueError(name)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{config} does not describe an image encoder of timm: {error}.") from error
    tower = timm.create_model(name, pretrained=False, num_classes=0, img_size=size)
    content = read_content(path, "image encoder of LLaVA-Rad", allow_pickle=allow_pickle)
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    names = {name.removeprefix("module."): value for name, value in content.items()}
    _fill(tower, _below(names, _TRUNK), path)
    return tower, size


def _new_projector(inner: int, outer: int) -> Any:
    from torch import nn

    return nn.Sequential(nn.Linear(inner, outer), nn.GELU(), nn.Linear(outer, outer))


def _fill_projector(projector: Any, folder: Path, *, allow_pickle: bool) -> None:
    from chexgenbench_plugins.weights import read_content

    path = folder / ADAPTER[2]
    content = read_content(path, "projector of LLaVA-Rad", allow_pickle=allow_pickle)
    _fill(projector, _below(content, _PROJECTOR), path)


def _with_lora(language: Any, folder: Path) -> Any:
    from peft import PeftModel

    from chexgenbench_plugins.weights import staged

    # Alone: what else lies there is not read.
    with staged({name: folder / name for name in ADAPTER[:2]}) as alone:
        return PeftModel.from_pretrained(language, str(alone)).merge_and_unload()


def _below(content: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose name holds `prefix`, by what follows it."""
    return {name.partition(prefix)[2]: value for name, value in content.items() if prefix in name}


def _fill(network: Any, state: Mapping[str, Any], path: Path) -> None:
    try:
        # Nothing can be copied to a network that lies nowhere, because it is only checked.
        nowhere = any(weight.is_meta for weight in network.parameters())
        network.load_state_dict(state, strict=True, assign=nowhere)
    except RuntimeError as error:
        raise UserError(
            f"{path} does not hold what LLaVA-Rad needs: {str(error).splitlines()[-1].strip()}"
        ) from error
