"""Every published diffusion family as a random pipeline of some ten thousand parameters.

They have the classes, component names and file layout of the real weights, and are saved, loaded
and called by the same code; only the numbers in their configurations are small. Images are 64 x 64.
``PIPELINES`` builds the pipelines, ``FAMILIES`` saves what a model plugin of that name loads.

Random weights alone would hide faults: an untrained text encoder says nearly the same of every
prompt, and an untrained decoder paints nearly grey. So widths of the initial values are raised
until other prompts give plainly other images; `tests/test_pipelines.py` holds them to that.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SIZE = 64
STEPS = 2
RANK = 4
PROMPTS = ("Large left pleural effusion.", "The heart is severely enlarged.", "No change.")
LORA_NAMES = {
    "sd-v3-5-medium": "sd3-5_medium_lora.safetensors",
    "lumina-2": "lumina2_lora.safetensors",
    "flux-1-dev": "flux_lora.safetensors",
}

# --- tokenizers -----------------------------------------------------------------------------


@cache
def _corpus() -> tuple[str, ...]:
    from chexgenbench_plugins.data import data_folder

    with (data_folder("demo_split") / "DEMO_ANNOTATIONS_TEST.csv").open(encoding="utf-8") as file:
        return (*PROMPTS, *(row["annotated_prompt"] for row in csv.DictReader(file)))


@cache
def _words() -> tuple[str, ...]:
    return tuple(sorted({w for text in _corpus() for w in re.findall(r"[a-z]+", text.lower())}))


_CHARACTERS = tuple(map(chr, range(33, 127)))


@cache
def _bpe(clip: bool) -> tuple[Mapping[str, int], tuple[tuple[str, str], ...]]:
    """A vocabulary and merges, learnt from the demo's prompts in the way of CLIP or of Gemma."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    core = Tokenizer(models.BPE(unk_token="<unk>"))
    alphabet = [c for c in _CHARACTERS if not (clip and c.isupper())]
    if clip:
        core.normalizer = normalizers.Lowercase()
        core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace()
    # Tokens named beforehand have fixed numbers, by which the trainer decides between equals.
    if clip:
        named = [*alphabet, *(f"{c}</w>" for c in alphabet)]
        trainer = trainers.BpeTrainer(
            vocab_size=700, show_progress=False, special_tokens=named, end_of_word_suffix="</w>"
        )
    else:
        named = ["▁", *alphabet]
        trainer = trainers.BpeTrainer(vocab_size=700, show_progress=False, special_tokens=named)
    core.train_from_iterator(_corpus(), trainer)
    learnt = json.loads(core.to_str())["model"]
    vocabulary = list(learnt["vocab"])
    return {token: i for i, token in enumerate(vocabulary)}, tuple(map(tuple, learnt["merges"]))


def clip_tokenizer(length: int = 77) -> Any:
    """The two special tokens come last, as in the published vocabulary."""
    from transformers import CLIPTokenizer

    vocabulary, merges = _bpe(clip=True)
    size = len(vocabulary)
    special = {"<|startoftext|>": size, "<|endoftext|>": size + 1}
    return CLIPTokenizer(
        vocab={**vocabulary, **special}, merges=list(merges), model_max_length=length
    )


def t5_tokenizer(length: int = 512) -> Any:
    from transformers import T5TokenizerFast

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    spellings = [s for word in _words() for s in (word, word.capitalize())]
    pieces = [(f"▁{s}", -5.0) for s in spellings if len(s) > 1]
    letters = [(c, -10.0) for c in ("▁", *_CHARACTERS)]
    return T5TokenizerFast(vocab=special + pieces + letters, model_max_length=length)


def gemma_tokenizer() -> Any:
    """With the start token that the published tokenizer adds and one from a vocabulary does not."""
    from tokenizers import processors
    from transformers import GemmaTokenizerFast

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    learnt, merges = _bpe(clip=False)
    vocabulary = {
        token: i for i, token in enumerate([*special, *(t for t in learnt if t not in special)])
    }
    tokenizer = GemmaTokenizerFast(vocab=vocabulary, merges=list(merges))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return tokenizer


# --- parts ----------------------------------------------------------------------------------


def _raise(module: Any, gain: float) -> Any:
    """Draws the matrices of `module` anew, `gain` over the square root of their inputs wide."""
    for parameter in module.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=gain / parameter[0].numel() ** 0.5)
    return module.eval()


def _choosy(module: Any, factor: float, *names: str) -> Any:
    """Sharpens attention: where most tokens are padding or a system prompt, an even look at all of
    them says nearly the same of every prompt."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if any(part in name for part in names):
                parameter *= factor
    return module


def clip_text(tokenizer: Any, width: int, projection: int | None = None) -> Any:
    """CLIPTextModel, or with a projection CLIPTextModelWithProjection.

    The pooled output is taken at the end token, so its number in the configuration must be the
    tokenizer's; with another one all prompts are pooled to the same vector.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=projection or width,
    )
    return _raise((CLIPTextModelWithProjection if projection else CLIPTextModel)(config), 1)


def t5_text(tokenizer: Any, width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_ff=width,
        d_kv=8,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return _raise(T5EncoderModel(config), 1)


def gemma_text(tokenizer: Any, width: int) -> Any:
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _raise(Gemma2Model(config), 1)


def _contrast(vae: Any, latent: torch.Tensor) -> Any:
    """Scales the last layer until pixels spread by 0.4 about grey, in units of half the range."""
    last = vae.decoder.conv_out
    with torch.inference_mode():
        image = vae.eval().decode(latent).sample
    with torch.no_grad():
        last.weight *= 0.4 / image.std()
        if last.bias is not None:
            last.bias.zero_()
    return vae


def kl_vae(scaling: float, shift: float | None = None, **more: Any) -> Any:
    """AutoencoderKL of four levels, so eight times down as the real ones."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=SIZE,
        scaling_factor=scaling,
        shift_factor=shift,
        **more,
    )
    return _contrast(vae, torch.randn(4, 4, SIZE // 8, SIZE // 8))


def _unet(width: int, **more: Any) -> Any:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=SIZE // 8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        norm_num_groups=4,
        cross_attention_dim=width,
        **more,
    )
    return _raise(unet, 1)


def _flow(**more: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**more)


# --- pipelines ------------------------------------------------------------------------------


def _stable_diffusion(scheduler: Any, **unet: Any) -> Any:
    from diffusers import StableDiffusionPipeline

    tokenizer = clip_tokenizer()
    return StableDiffusionPipeline(
        vae=kl_vae(0.18215),
        unet=_unet(16, **unet),
        text_encoder=clip_text(tokenizer, 16),
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sd_v1() -> Any:
    """Epsilon prediction, PNDM, convolutions about the attention."""
    from diffusers import PNDMScheduler

    return _stable_diffusion(
        PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
        )
    )


def sd_v2() -> Any:
    """Velocity prediction, DDIM, linear layers about the attention."""
    from diffusers import DDIMScheduler

    return _stable_diffusion(
        DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        use_linear_projection=True,
    )


def sd_v3(width: int = 16) -> Any:
    """SD 3.5 with its double attention and query and key norms; `width` is that of the heads.

    T5 must be as wide as both CLIP projections together: a narrower one is cut off in silence.
    """
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    tokenizer, long = clip_tokenizer(), t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=SIZE // 8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=width // 2,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=width,
        pooled_projection_dim=32,
        pos_embed_max_size=SIZE // 8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=_raise(transformer, 1),
        vae=kl_vae(1.5305, 0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_text(tokenizer, 16, 16),
        tokenizer=tokenizer,
        text_encoder_2=clip_text(tokenizer, 16, 16),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_text(long, 32),
        tokenizer_3=long,
        scheduler=_flow(shift=3.0),
    )


def sana() -> Any:
    """A DC autoencoder, 32 times down, and Gemma."""
    from diffusers import (
        AutoencoderDC,
        DPMSolverMultistepScheduler,
        SanaPipeline,
        SanaTransformer2DModel,
    )

    tokenizer = gemma_tokenizer()
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8,) * 6,
        decoder_block_out_channels=(8,) * 6,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
        scaling_factor=0.41407,
    )
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=SIZE // 32,
    )
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=gemma_text(tokenizer, 16),
        vae=_contrast(vae, torch.randn(16, 4, SIZE // 32, SIZE // 32)),
        transformer=_raise(transformer, 1),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


def pixart_sigma() -> Any:
    from diffusers import (
        DPMSolverMultistepScheduler,
        PixArtSigmaPipeline,
        PixArtTransformer2DModel,
    )

    tokenizer = t5_tokenizer()
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=SIZE // 8,
        use_additional_conditions=False,
    )
    return PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=t5_text(tokenizer, 16),
        vae=kl_vae(0.13025),
        transformer=_raise(transformer, 1),
        scheduler=DPMSolverMultistepScheduler(),
    )


def lumina_2(width: int = 24) -> Any:
    """The first of `axes_lens` bounds the prompt's tokens, so it stays well above them."""
    from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

    tokenizer = gemma_tokenizer()
    transformer = Lumina2Transformer2DModel(
        sample_size=SIZE // 8,
        in_channels=4,
        hidden_size=width,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(width // 6,) * 3,
        axes_lens=(600, 64, 64),
        cap_feat_dim=16,
    )
    _raise(transformer, 1)
    _choosy(transformer, 4, "norm_q")
    _choosy(transformer, 3, "norm_out.linear_2.weight")
    return Lumina2Pipeline(
        transformer=transformer,
        scheduler=_flow(shift=6.0),
        vae=kl_vae(0.3611, 0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=gemma_text(tokenizer, 16),
        tokenizer=tokenizer,
    )


def flux(width: int = 24) -> Any:
    """Pooled CLIP beside T5; inputs are 2 x 2 latents; `guidance` is an embedding."""
    from diffusers import FluxPipeline, FluxTransformer2DModel

    tokenizer, long = clip_tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=width // 2,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(width // 6,) * 3,
    )
    return FluxPipeline(
        scheduler=_flow(shift=3.0, use_dynamic_shifting=True),
        vae=kl_vae(0.3611, 0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_text(tokenizer, 16),
        tokenizer=tokenizer,
        text_encoder_2=t5_text(long, 16),
        tokenizer_2=long,
        transformer=_raise(transformer, 1),
    )


PIPELINES: Mapping[str, Callable[[], Any]] = {
    "sd-v1": sd_v1,
    "sd-v2": sd_v2,
    "sd3": sd_v3,
    "sana": sana,
    "pixart-sigma": pixart_sigma,
    "lumina-2": lumina_2,
    "flux": flux,
}


def build(kind: str, seed: int = 0) -> Any:
    """A pipeline of `PIPELINES`, the same one each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PIPELINES[kind]()


def save(kind: str, folder: Path) -> Path:
    """A diffusers folder with safetensors, as on the hub."""
    build(kind).save_pretrained(folder)
    return folder


# --- LoRA -----------------------------------------------------------------------------------


def lora_tensors(network: Any, alpha: int = RANK) -> tuple[dict[str, torch.Tensor], Any]:
    """Tensors of a trained adapter of `RANK` on the attention, by name, and its configuration.

    The second matrix of an untrained adapter is zero and would change no image, so it is drawn.
    """
    from peft import LoraConfig, get_peft_model_state_dict

    config = LoraConfig(
        r=RANK, lora_alpha=alpha, target_modules=["to_q", "to_k", "to_v", "to_out.0"]
    )
    network.add_adapter(config)
    state = get_peft_model_state_dict(network)
    network.delete_adapters("default")
    random = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(value.shape, generator=random) / 2 for name, value in state.items()
    }, config


def save_lora(pipeline: Any, folder: Path, name: str) -> Path:
    """As diffusers' training scripts save it: no record of alpha."""
    tensors, _ = lora_tensors(pipeline.transformer)
    type(pipeline).save_lora_weights(folder, transformer_lora_layers=tensors, weight_name=name)
    return folder / name


# --- what the plugins load ------------------------------------------------------------------

Value = str | int | float | bool
Values = dict[str, Value]


def _whole(kind: str, **more: Value) -> Callable[[Path], Values]:
    def make(folder: Path) -> Values:
        return {"weights": str(save(kind, folder / "weights")), "steps": STEPS, **more}

    return make


def _with_lora(plugin: str, kind: str, **more: Value) -> Callable[[Path], Values]:
    def make(folder: Path) -> Values:
        pipeline = build(kind)
        pipeline.save_pretrained(folder / "base")
        path = save_lora(pipeline, folder, LORA_NAMES[plugin])
        return {"weights": str(folder / "base"), "lora": str(path), "steps": STEPS, **more}

    return make


def radedit(folder: Path) -> Values:
    """Three folders in the layout of the three hub repositories.

    The VAE's has its weights twice, as a single-file checkpoint too, and the text encoder's names
    code of its own and holds the heads that its published file has.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = _choosy(_unet(16), 8, "attn2.to_q", "attn2.to_out.0.weight")
        unet.save_pretrained(folder / "radedit" / "unet")
        vae = folder / "sdxl-vae"
        kl_vae(0.13025).save_pretrained(vae)
        shutil.copy(vae / "diffusion_pytorch_model.safetensors", vae / "sdxl_vae.safetensors")
        save_cxr_bert(folder / "biovil-t", 16)
    return {
        "weights": str(folder / "radedit"),
        "vae": str(vae),
        "text_encoder": str(folder / "biovil-t"),
        "steps": STEPS,
    }


def save_cxr_bert(folder: Path, width: int) -> None:
    """BioViL-T's text side under its published names; `read_state` of the encoder reads them."""
    from transformers import BertConfig, BertForMaskedLM

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [c for c in _CHARACTERS if not c.isupper()]
    words = [word for word in _words() if len(word) > 1]
    vocabulary = [*special, *letters, *words, *(f"##{c}" for c in letters)]
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=width,
        max_position_embeddings=512,
    )
    network = _raise(BertForMaskedLM(config), 1)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    projection = 8
    state |= {
        "bert.embeddings.position_ids": torch.arange(512)[None],
        "bert.pooler.dense.weight": torch.zeros(width, width),
        "bert.pooler.dense.bias": torch.zeros(width),
        "cls_projection_head.dense_to_hidden.weight": torch.zeros(projection, width),
        "cls_projection_head.dense_to_hidden.bias": torch.zeros(projection),
        "cls_projection_head.LayerNorm.weight": torch.ones(projection),
        "cls_projection_head.LayerNorm.bias": torch.zeros(projection),
        "cls_projection_head.dense_to_output.weight": torch.zeros(projection, projection),
        "cls_projection_head.dense_to_output.bias": torch.zeros(projection),
    }
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    code = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    settings = config.to_diff_dict() | {
        "architectures": ["BioViLTModel"],
        "auto_map": code,
        "model_type": "cxr-bert",
        "projection_size": projection,
    }
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "code.py").write_text("raise SystemExit('repository code ran')\n", encoding="utf-8")
    tokenizer = {
        "do_lower_case": True,
        "model_max_length": 512,
        "tokenizer_class": "CXRBertTokenizer",
        "auto_map": {"AutoTokenizer": ["code.Tokenizer", None]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")


FAMILIES: Mapping[str, Callable[[Path], Values]] = {
    "sd-v1-4": _whole("sd-v1"),
    "sd-v1-5": _whole("sd-v1"),
    "sd-v2": _whole("sd-v2"),
    "sd-v2-1": _whole("sd-v2"),
    "sd-v3-5-medium": _with_lora("sd-v3-5-medium", "sd3"),
    "radedit": radedit,
    # Binning moves a size to the nearest trained one, and there is none this small.
    "sana": _whole("sana", use_resolution_binning=False),
    "pixart-sigma": _whole("pixart-sigma", use_resolution_binning=False),
    "lumina-2": _with_lora("lumina-2", "lumina-2"),
    # The pipeline's own size does not come from the weights: 1024.
    "flux-1-dev": _with_lora("flux-1-dev", "flux", size=SIZE),
}
"""Plugin name to a function that fills a folder and returns the parameters to run it with."""
