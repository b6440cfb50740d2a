"""What can be set of report generation, which files it reads and what it scores."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from chexgenbench import Context, Location, Parameters, ScoreSpec, UserError
from chexgenbench.environments import python_of

METRIC = "report-generation"
SCRATCH = "scratch"
HALVES, LLAVA_RAD = ("encoder", "decoder"), ("llava_rad", "vicuna")
"""What the two generators load, by the name of the parameter."""
_SCRATCH_SIZES = ("size", "width", "layers", "heads", "patch")

Regime = Literal["real", "synthetic", "mixed"]
Uncertain = Literal["positive", "negative"]

_SUMMARIES = {
    "bleu1": "corpus BLEU of single words",
    "bleu4": "corpus BLEU of up to 4 words",
    "rouge_l": "F1 of the longest common subsequence of words",
    "meteor": "words matched by form, stem and synonym",
    "bertscore": "F1 of matched word vectors of a text encoder",
    "radgraph_f1": "F1 of entities and whether they have relations",
    "label_f1_micro": "F1 of the findings that both reports state, pooled",
    "label_f1_macro": "the same, mean over the findings",
    "label_f1_micro_5": "F1 of the five CheXpert competition findings, pooled",
    "label_f1_macro_5": "the same, mean over the five",
}
_F1 = r"\frac{2 \, \mathrm{TP}}{2 \, \mathrm{TP} + \mathrm{FP} + \mathrm{FN}}"
_F1_OF_ONE = r"\frac{2 \, \mathrm{TP}_f}{2 \, \mathrm{TP}_f + \mathrm{FP}_f + \mathrm{FN}_f}"
_FORMULAS = {
    "bleu1": r"\mathrm{BP} \cdot p_1",
    "bleu4": r"\mathrm{BP} \cdot \left( p_1 p_2 p_3 p_4 \right)^{1/4}",
    "rouge_l": r"\operatorname{mean} \frac{2 P R}{P + R}, \quad P = \frac{\mathrm{LCS}}{|w|}, \; "
    r"R = \frac{\mathrm{LCS}}{|v|}",
    "meteor": r"\operatorname{mean} \frac{P R}{0.9 P + 0.1 R} "
    r"\left( 1 - \tfrac{1}{2} (c / u)^3 \right)",
    "bertscore": r"\operatorname{mean} \frac{2 P R}{P + R}, \quad "
    r"P = \frac{1}{|w|} \sum_{a \in w} \max_{b \in v} \cos(a, b)",
    "radgraph_f1": r"\operatorname{mean} \frac{2 \, |W \cap V|}{|W| + |V|}",
    "label_f1_micro": _F1,
    "label_f1_macro": r"\frac{1}{F} \sum_f " + _F1_OF_ONE,
    "label_f1_micro_5": _F1,
    "label_f1_macro_5": r"\frac{1}{5} \sum_f " + _F1_OF_ONE,
    "label_f1": _F1,
}
"""w: the words that were written, v: those of the report that belongs to the image."""

SPECS: tuple[ScoreSpec, ...] = (
    *(
        ScoreSpec(
            name=name,
            higher_is_better=True,
            lowest=0.0,
            highest=1.0,
            summary=text,
            formula=_FORMULAS[name],
        )
        for name, text in (_SUMMARIES | {"label_f1": "F1 of one finding"}).items()
    ),
    *(
        ScoreSpec(
            name=f"{name}_difference",
            higher_is_better=True,
            lowest=-1.0,
            highest=1.0,
            summary=f"{name} of a regime less that of training on real images",
            formula=r"s(A) - s(\text{real})",
        )
        for name in _SUMMARIES
    ),
)


_PACKAGES = (("bertscore", "bert_score", "bert-score"), ("nltk_data", "nltk", "nltk"))


class ReportParameters(Parameters):
    images: int | None = Field(
        None, ge=2, description="Training prompts at most; by default all of them."
    )
    regimes: tuple[Regime, ...] = Field(
        ("real", "synthetic", "mixed"),
        min_length=1,
        description="What to train on: real, synthetic, mixed (half of the real images replaced).",
    )
    generator: Literal["vision-encoder-decoder", "llava-rad"] = Field(
        "vision-encoder-decoder",
        description="The model that writes reports; llava-rad needs llava_rad and vicuna, and a "
        "GPU in practice.",
    )
    llava_rad: Annotated[str | None, Location()] = Field(
        None, description="LLaVA-Rad's files: a folder or hub id, such as microsoft/llava-rad."
    )
    vicuna: Annotated[str | None, Location()] = Field(
        None,
        description="LLaVA-Rad's language model, in the same way, such as lmsys/vicuna-7b-v1.5.",
    )
    start: Literal["base", "published"] = Field(
        "base",
        description="What llava-rad starts from: the language model as it is and a new projector, "
        "or the published LoRA and projector, which were trained on real reports.",
    )
    encoder: Annotated[str, Location()] = Field(
        "google/vit-base-patch16-224-in21k",
        description="The image encoder to start from: a folder or owner/name on the hub; "
        "'scratch': a small one with random weights.",
    )
    decoder: Annotated[str, Location()] = Field(
        "openai-community/gpt2",
        description="The text decoder to start from, in the same way; from scratch it has the "
        "words of the training reports.",
    )
    size: int = Field(224, ge=32, le=1024, description="Width and height in pixels.")
    width: int = Field(96, ge=8, description="Of a half that is made from scratch.")
    layers: int = Field(2, ge=1, description="Of a half that is made from scratch.")
    heads: int = Field(4, ge=1, description="Of attention, from scratch; divides the width.")
    patch: int = Field(16, ge=2, description="Pixels a side of an image token, from scratch.")
    epochs: int = Field(10, ge=1, description="Rounds through the pairs; llava-rad: 3.")
    batch_size: int = Field(32, ge=1, description="Pairs a step.")
    learning_rate: float = Field(5e-5, gt=0, description="Of AdamW, the highest; llava-rad: 1e-4.")
    tokens: int = Field(128, ge=4, le=1024, description="Of a report at most.")
    labeller: Literal["chexbert", "phantom", "none"] = Field(
        "chexbert", description="What reads the findings off reports."
    )
    uncertain: Uncertain = Field(
        "positive", description="What an uncertain finding of a report counts as."
    )
    chexbert: Annotated[str | None, Location()] = Field(
        None, description="A folder with chexbert.pth and vocab.txt."
    )
    nltk_data: Annotated[str | None, Location()] = Field(
        None, description="nltk's data folder with corpora/wordnet, for METEOR."
    )
    bertscore: Annotated[str | None, Location()] = Field(
        None, description="A text encoder (folder or hub id), for BERTScore."
    )
    bertscore_layer: int | None = Field(
        None, ge=1, description="Its layer that is compared, by default the last."
    )
    radgraph: Annotated[str | None, Location()] = Field(
        None, description="The unpacked folder of RadGraph, such as .../radgraph-xl."
    )
    without_patients: bool = Field(
        False, description="Take each row for a patient where the split knows none."
    )

    @model_validator(mode="before")
    @classmethod
    def _published_recipe(cls, values: Any) -> Any:
        """Other defaults for LLaVA-Rad: those that it was published with."""
        if isinstance(values, dict) and values.get("generator") == "llava-rad":
            return {"epochs": 3, "learning_rate": 1e-4, **values}
        return values


def folders_of(parameters: ReportParameters, context: Context) -> dict[str, Path]:
    """The folders that are named or by default needed, by the name of the parameter.

    Raises:
        UserError: one is not there, or what reads it is not.
    """
    from chexgenbench_plugins.weights import weight_folder

    named = LLAVA_RAD if parameters.generator == "llava-rad" else HALVES
    lacking = [name for name in named if getattr(parameters, name) is None]
    if lacking:
        published = {"llava_rad": "microsoft/llava-rad", "vicuna": "lmsys/vicuna-7b-v1.5"}
        raise UserError(
            f"{METRIC}: the generator llava-rad must be told where {' and '.join(lacking)} lie.",
            hint=" ".join(f"--set {METRIC}.{name}={published[name]}" for name in lacking)
            + " (a folder, or a hub id that was fetched: hf download ID)",
        )
    found: dict[str, Path] = {}
    for name in (*named, "bertscore"):
        source = getattr(parameters, name)
        if source not in (None, SCRATCH):
            found[name] = weight_folder(
                source, revision=None, home=context.home, what=f"{METRIC} {name}"
            )
    for name in ("chexbert", "nltk_data", "radgraph"):
        place = getattr(parameters, name)
        if place is None:
            continue
        folder = (context.home / Path(place).expanduser()).resolve()
        if not folder.is_dir():
            raise UserError(f"{METRIC}: the folder of {name} is not there: {folder}")
        found[name] = folder
    for name, module, package in _PACKAGES:
        if name in found and find_spec(module) is None:
            raise UserError(
                f"{METRIC}: {name} is set, and the package {package} is not installed.",
                hint=f"pip install {package}",
            )
    if "radgraph" in found:
        radgraph_python(context)
    return found


def radgraph_python(context: Context) -> Path:
    """The interpreter of the environment that RadGraph runs in.

    Raises:
        UserError: it is not there, or stale.
    """
    found = python_of("radgraph", context.cache)
    if found is None:
        raise UserError(
            f"{METRIC}: RadGraph needs an environment of its own, and "
            f"{context.cache / 'environments' / 'radgraph'} is not there.",
            hint="Make it: chexgenbench env build radgraph; or leave radgraph unset.",
        )
    return found


def files_of(parameters: ReportParameters, folders: Mapping[str, Path]) -> dict[str, Path]:
    """The files in those folders that decide the scores, by ``PARAMETER/NAME``.

    Raises:
        UserError: one is missing, or is a pickle where safetensors are expected.
    """
    from chexgenbench_plugins.weights import safe_weight_files

    found: dict[str, Path] = {}
    for name, folder in folders.items():
        if name == "chexbert":
            from chexgenbench_plugins.reports.labellers import chexbert_files

            files = chexbert_files(folder)
        elif name == "nltk_data":
            from chexgenbench_plugins.reports.scores import wordnet_folder

            files = [path for path in wordnet_folder(folder).iterdir() if path.is_file()]
        elif name == "radgraph":
            from chexgenbench_plugins.reports.scores import radgraph_files

            files = radgraph_files(folder)
        elif name == "llava_rad":
            from chexgenbench_plugins.reports.llava_rad import own_files

            files = own_files(folder, published=parameters.start == "published")
        elif name == "vicuna":
            from chexgenbench_plugins.reports.llava_rad import base_files

            files = base_files(folder)
        else:
            files = list(safe_weight_files(folder, f"{METRIC} {name}"))
        found |= {f"{name}/{path.relative_to(folder)}": path for path in sorted(files)}
    return found


def check_files(parameters: ReportParameters, context: Context) -> None:
    """Looks into the files that are named, as far as that is cheap.

    Raises:
        UserError: they are of another network, or cannot be used at these sizes.
    """
    from chexgenbench_plugins.reports.encoder_decoder import check_halves
    from chexgenbench_plugins.reports.labellers import check_chexbert
    from chexgenbench_plugins.reports.scores import check_radgraph, text_encoder_config

    folders = folders_of(parameters, context)
    if parameters.generator == "llava-rad":
        from chexgenbench_plugins.reports.fine_tuning import lora_settings
        from chexgenbench_plugins.reports.llava_rad import check_llava_rad

        check_llava_rad(
            folders["llava_rad"],
            folders["vicuna"],
            published=parameters.start == "published",
            allow_pickle=context.allow_pickle,
        )
        lora_settings(folders["llava_rad"])
    else:
        if parameters.width % parameters.heads:
            raise UserError(
                f"{METRIC}: the width {parameters.width} is no multiple of the "
                f"{parameters.heads} heads."
            )
        if parameters.encoder == SCRATCH and parameters.size % parameters.patch:
            raise UserError(
                f"{METRIC}: the size {parameters.size} is no multiple of the patch "
                f"{parameters.patch}."
            )
        check_halves(
            folders.get("encoder"),
            folders.get("decoder"),
            size=parameters.size,
            tokens=parameters.tokens,
        )
    if "bertscore" in folders:
        text_encoder_config(folders["bertscore"], parameters.bertscore_layer)
    if "chexbert" in folders and parameters.labeller == "chexbert":
        check_chexbert(folders["chexbert"], allow_pickle=context.allow_pickle)
    if "radgraph" in folders:
        check_radgraph(folders["radgraph"])


def missing_scores(parameters: ReportParameters) -> dict[str, str]:
    """Scores that are not taken because their files are not named, to the reason."""
    reasons = {
        "meteor": (parameters.nltk_data, "nltk_data is not set (nltk's folder with WordNet)"),
        "bertscore": (parameters.bertscore, "bertscore is not set (a text encoder)"),
        "radgraph_f1": (parameters.radgraph, "radgraph is not set (RadGraph's unpacked folder)"),
    }
    found = {name: reason for name, (place, reason) in reasons.items() if place is None}
    if parameters.labeller == "none":
        labels = "labeller is none"
    elif parameters.labeller == "chexbert" and parameters.chexbert is None:
        labels = "chexbert is not set (the folder with chexbert.pth)"
    else:
        return found
    names = [spec.name for spec in SPECS if spec.name.startswith("label_f1")]
    return found | {name: labels for name in names if not name.endswith("_difference")}


def remarks(parameters: ReportParameters) -> list[str]:
    """What the settings leave out, as sentences: `missing_scores`, and settings without effect."""
    llava = parameters.generator == "llava-rad"
    others = (*HALVES, *_SCRATCH_SIZES) if llava else (*LLAVA_RAD, "start")
    fields = type(parameters).model_fields
    idle = [name for name in others if getattr(parameters, name) != fields[name].default]
    said = [f"generator={parameters.generator} does not use {', '.join(idle)}."] if idle else []
    if llava and parameters.start == "published":
        said.append(
            "start=published: these weights have seen real reports, so the synthetic regime is not "
            "of synthetic images alone."
        )
    names: dict[str, list[str]] = {}
    for name, reason in missing_scores(parameters).items():
        names.setdefault(reason, []).append(name)
    return said + [f"no {', '.join(some)}: {reason}." for reason, some in names.items()]
