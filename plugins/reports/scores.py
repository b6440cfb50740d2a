"""How near generated reports come to the ones that were written for the same images.

Each score is taken report by report with a maintained package, and is either the mean over the
reports (ROUGE-L, METEOR, BERTScore, RadGraph F1) or a function of sums over them (BLEU, F1 of
labels). Intervals are over patients: closed for a mean, by the bootstrap for a function of sums.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chexgenbench import FINDINGS, UserError
from chexgenbench.files import read_json
from chexgenbench.statistics.classification import cluster_bootstrap
from chexgenbench.statistics.estimate import Estimate
from chexgenbench.statistics.sampling import Groups, linear, units_of
from chexgenbench_plugins.reports import radgraph_worker

if TYPE_CHECKING:
    from chexgenbench_plugins.reports.settings import Uncertain

Floats = NDArray[np.float64]
Texts = Sequence[str]

FIVE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
"""The findings of "F1-5", those of the CheXpert competition (Irvin et al. 2019)."""

_STEP = 1e-4
_FILES_ALONE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def bleu(references: Texts, generated: Texts, *, order: int = 4, groups: Groups = None) -> Estimate:
    """Corpus BLEU by sacrebleu: its tokens of kind 13a, lower case, exponential smoothing.

    Args:
        references: The report written for each image [n].
        generated: The report generated for it [n]; may be empty.
        order: Longest n-gram, 1 to 4.
        groups: The patient of each image.

    Returns:
        In 0..1, sacrebleu's score over 100.

    Raises:
        ValueError: no reports, or not one a reference.

    Source: Papineni et al. 2002; Post 2018, "A call for clarity in reporting BLEU scores".
    """
    parts = bleu_parts(references, generated, order=order)
    return of_sums(lambda sums: bleu_of_sums(sums, order), parts, groups=groups, high=1.0)


def bleu_parts(references: Texts, generated: Texts, *, order: int = 4) -> Floats:
    """What each report adds to BLEU [n, 2 order + 2]: n-grams found, n-grams there, both lengths.

    Raises:
        ValueError: no reports, or not one a reference.
    """
    from sacrebleu.metrics import BLEU

    _same(references, generated)
    scorer = BLEU(lowercase=True, max_ngram_order=order, effective_order=True)
    rows: list[list[float]] = []
    for written, made in zip(references, generated, strict=True):
        one = scorer.sentence_score(made, [written])
        rows.append([*one.counts, *one.totals, one.sys_len, one.ref_len])
    return np.asarray(rows, np.float64)


def bleu_of_sums(sums: Floats, order: int = 4) -> Floats:
    """BLEU [...] from sums of `bleu_parts` [..., 2 order + 2], as sacrebleu's ``compute_bleu``."""
    found, there = sums[..., :order], sums[..., order : 2 * order]
    made, written = sums[..., -2], sums[..., -1]
    none = found == 0
    # Exponential smoothing: the k-th order without any match counts as 2^-k matches.
    smoothed = np.where(none, 0.5 ** np.cumsum(none, axis=-1), found)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(smoothed / there).mean(axis=-1)
        brevity = np.where(made < written, np.exp(1 - written / made), 1.0)
        score = brevity * np.exp(logs)
    empty = (there == 0).any(axis=-1) | (found.sum(axis=-1) == 0)
    return np.asarray(np.where(empty, 0.0, score), np.float64)


def rouge_l(references: Texts, generated: Texts) -> Floats:
    """ROUGE-L F1 [n] in 0..1 of each report, by rouge-score without stemming (Lin 2004).

    Raises:
        ValueError: no reports, or not one a reference.
    """
    from rouge_score.rouge_scorer import RougeScorer

    _same(references, generated)
    scorer = RougeScorer(["rougeL"])
    pairs = zip(references, generated, strict=True)
    return np.array([scorer.score(written, made)["rougeL"].fmeasure for written, made in pairs])


def meteor(references: Texts, generated: Texts, *, nltk_data: Path) -> Floats:
    """METEOR [n] in 0..1 of each report, by nltk: equal words, equal stems, synonyms.

    Args:
        references: The report written for each image [n].
        generated: The report generated for it [n].
        nltk_data: nltk's data folder, with ``corpora/wordnet`` unpacked.

    Raises:
        UserError: WordNet is not there.
        ValueError: no reports, or not one a reference.

    Source: Banerjee and Lavie 2005; parameters of nltk's ``single_meteor_score``.
    """
    import warnings

    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader
    from nltk.translate.meteor_score import single_meteor_score

    _same(references, generated)
    # nltk opens files below its own folders alone, and the user named this one.
    if str(nltk_data) not in nltk.data.path:
        nltk.data.path.append(str(nltk_data))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The multilingual functions")
            reader = WordNetCorpusReader(str(wordnet_folder(nltk_data)), None)
    except (OSError, LookupError, ValueError, AssertionError) as error:
        raise UserError(f"WordNet cannot be read in {nltk_data}.") from error
    pairs = zip(references, generated, strict=True)
    return np.array(
        [
            single_meteor_score(words(written), words(made), wordnet=reader)
            for written, made in pairs
        ]
    )


def wordnet_folder(nltk_data: Path) -> Path:
    """Where WordNet lies in nltk's data folder.

    Raises:
        UserError: it is not there.
    """
    folder = nltk_data / "corpora" / "wordnet"
    names = ("data.noun", "index.noun", "lexnames", "index.sense")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"WordNet is not in {folder}: {', '.join(missing)} missing.",
            hint=f"python -m nltk.downloader -d {nltk_data} wordnet, and unpack wordnet.zip there.",
        )
    return folder


def bert_score(
    references: Texts,
    generated: Texts,
    *,
    folder: Path,
    layer: int | None = None,
    device: str = "cpu",
    batch_size: int = 32,
) -> Floats:
    """BERTScore F1 [n] of each report, by bert-score: no idf, no rescaling with a baseline.

    Not by torchmetrics (1.9): it sorts both sides by length and undoes that wrongly, so that
    reports are compared with those of other images.

    Args:
        references: The report written for each image [n].
        generated: The report generated for it [n]; an empty one scores 0.
        folder: A text encoder as transformers saves it, safetensors and tokenizer.
        layer: The one whose vectors are compared; None: the last.
        device: Where the encoder runs.
        batch_size: Reports at a time.

    Raises:
        UserError: the folder holds no such encoder.
        ValueError: no reports, or not one a reference.

    Source: Zhang et al. 2020, https://arxiv.org/abs/1904.09675.
    """
    from collections import defaultdict

    from bert_score.utils import bert_cos_score_idf
    from transformers import AutoModel, AutoTokenizer

    _same(references, generated)
    config = text_encoder_config(folder, layer)
    # Layers that are not used are not made. bert-score's own loader would ask on the terminal
    # whether to run code that lies in the folder.
    config.num_hidden_layers = layer or config.num_hidden_layers
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **_FILES_ALONE)
        model = AutoModel.from_pretrained(
            folder, config=config, use_safetensors=True, **_FILES_ALONE
        )
    except (OSError, ValueError, TypeError) as error:
        raise _no_text_encoder(folder) from error
    if config.is_encoder_decoder:
        model = model.get_encoder()
    longest = getattr(config, "max_position_embeddings", 512)
    # A tokenizer that was saved without its length says 1e30, which is no length.
    tokenizer.model_max_length = min(tokenizer.model_max_length, longest)
    weights: dict[int, float] = defaultdict(lambda: 1.0)
    weights |= {tokenizer.sep_token_id: 0.0, tokenizer.cls_token_id: 0.0}
    scores = np.zeros(len(references))
    kept = [i for i, text in enumerate(generated) if text.strip() and references[i].strip()]
    if kept:
        found = bert_cos_score_idf(
            model.to(device),
            [references[i] for i in kept],
            [generated[i] for i in kept],
            tokenizer,
            weights,
            device=device,
            batch_size=batch_size,
        )
        scores[kept] = found[:, 2].numpy()
    return scores


def text_encoder_config(folder: Path, layer: int | None) -> Any:
    """The configuration of the text encoder in `folder`.

    Raises:
        UserError: it cannot be read, wants code of its own, or has no such layer.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, **_FILES_ALONE)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _no_text_encoder(folder) from error
    layers = getattr(config, "num_hidden_layers", None)
    if layers is None:
        raise _no_text_encoder(folder)
    if layer is not None and layer > layers:
        raise UserError(
            f"The text encoder of BERTScore in {folder} has {layers} layers, and layer {layer} is "
            "asked for.",
            hint=f"--set report-generation.bertscore_layer={layers}",
        )
    return config


def _no_text_encoder(folder: Path) -> UserError:
    return UserError(
        f"The text encoder of BERTScore cannot be loaded from {folder}.",
        hint="Name a folder with config.json, model.safetensors and the tokenizer's files.",
    )


def radgraph_f1(
    references: Texts, generated: Texts, *, folder: Path, python: Path, device: str = "cpu"
) -> Floats:
    """RadGraph F1 [n] in 0..1 of each report: entities with their label and whether they have a
    relation (the reward ``partial`` of the package radgraph).

    The package (0.1.18) calls ``encode_plus`` of tokenizers, which transformers 5 no longer has,
    so it runs in an environment of its own; texts go there and back in private temporary files.

    Args:
        references: The report written for each image [n].
        generated: The report generated for it [n]; an empty one scores 0.
        folder: What the package unpacks, named after its kind; see `radgraph_files`.
        python: The interpreter of the environment (``containers/radgraph``).
        device: ``cpu`` or ``cuda:N``.

    Raises:
        UserError: the folder is not there, or the package failed.
        ValueError: no reports, or not one a reference.

    Source: Jain et al. 2021, https://arxiv.org/abs/2106.14463; Delbrouck et al. 2022,
    https://arxiv.org/abs/2210.12186.
    """
    _same(references, generated)
    radgraph_files(folder)
    worker = Path(radgraph_worker.__file__)
    gpu = "-1" if device == "cpu" else device.partition(":")[2] or "0"
    with tempfile.TemporaryDirectory(prefix="chexgenbench-") as name:
        source, target = Path(name, "reports.json"), Path(name, "rewards.json")
        pairs = {"references": list(references), "generated": list(generated)}
        source.write_text(json.dumps(pairs), encoding="utf-8")
        arguments = [str(folder), gpu, str(source), str(target)]
        offline = {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        done = subprocess.run(
            [str(python), "-P", str(worker), *arguments],
            capture_output=True,
            # transformers asks there whether to run code that lies beside weights.
            stdin=subprocess.DEVNULL,
            env=os.environ | offline,
            check=False,
            text=True,
        )
        # The last line names the exception; what it says could quote a report.
        if done.returncode != 0 or not target.is_file():
            kind = (done.stderr.strip().splitlines() or ["?"])[-1].partition(":")[0]
            raise UserError(
                f"RadGraph failed in {python}: {kind}, exit code {done.returncode}.",
                hint=f"Run {worker.name} there by hand with a report of your own to see it whole.",
            )
        rewards = np.asarray(json.loads(target.read_text(encoding="utf-8")), np.float64)
    if rewards.shape != (len(references),):
        raise UserError(f"RadGraph returned {rewards.size} scores for {len(references)} reports.")
    return rewards


def radgraph_files(folder: Path) -> list[Path]:
    """The files of RadGraph in `folder`.

    Raises:
        UserError: some are missing.
    """
    files = [folder / "config.json", folder / "weights.th"]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise UserError(
            f"RadGraph is not in {folder}: {', '.join(missing)} missing.",
            hint="Unpack radgraph-xl.tar.gz of StanfordAIMI/RRG_scorers into a folder radgraph-xl.",
        )
    return [*files, *(path for path in (folder / "vocabulary").glob("*") if path.is_file())]


def check_radgraph(folder: Path) -> None:
    """Raises `UserError` where the files in `folder` are plainly none of RadGraph's."""
    config, weights = radgraph_files(folder)[:2]
    content = read_json(config)
    if not isinstance(content, dict) or "model" not in content:
        raise UserError(f"{config} is no configuration of RadGraph: it describes no model.")
    with weights.open("rb") as file:
        head = file.read(2)
    # What torch.save writes: a zip archive, or before torch 1.6 a pickle.
    if head not in (b"PK", b"\x80\x02"):
        raise UserError(f"The weights of RadGraph are no file of torch: {weights}")


def label_parts(truth: ArrayLike, stated: ArrayLike, *, uncertain: Uncertain) -> Floats:
    """What each report adds to F1 [n, 14, 3]: true positives, false positives, false negatives.

    Args:
        truth: Labels [n, 14] of the written reports: 1, 0, -1 for uncertain, NaN not mentioned.
        stated: Labels [n, 14] of the generated ones.
        uncertain: ``positive`` or ``negative``: what -1 counts as, on both sides. Not mentioned
            counts as negative.

    Raises:
        ValueError: shapes differ.
    """
    from chexgenbench_plugins.reports.labellers import positive

    real, made = positive(truth, uncertain), positive(stated, uncertain)
    if real.shape != made.shape or real.ndim != 2:
        raise ValueError(f"labels [n, 14] expected on both sides: {real.shape} and {made.shape}")
    return np.stack([real & made, ~real & made, real & ~made], axis=-1).astype(np.float64)


def label_f1(
    parts: Floats, *, average: str, groups: Groups = None, columns: Sequence[int] | None = None
) -> Estimate:
    """F1 of labels, micro or macro, with an interval over patients.

    Args:
        parts: Of `label_parts` [n, k, 3].
        average: ``micro`` (all findings pooled) or ``macro`` (mean of the findings' F1).
        groups: The patient of each report.
        columns: The findings to take; None: all.

    Returns:
        In 0..1. A finding that neither side ever states has an F1 of 0, as in scikit-learn.

    Raises:
        ValueError: no reports or no findings.
    """
    chosen = parts if columns is None else parts[:, list(columns)]
    if not chosen.size:
        raise ValueError("no reports or no findings")
    rows = chosen.reshape(len(chosen), -1)
    return of_sums(lambda sums: f1_of_sums(sums, average), rows, groups=groups, high=1.0)


def f1_of_sums(sums: Floats, average: str) -> Floats:
    """F1 [...], ``micro`` or ``macro``, from sums of `label_parts` [..., k x 3]."""
    counts = sums.reshape(*sums.shape[:-1], -1, 3)
    if average == "micro":
        counts = counts.sum(axis=-2, keepdims=True)
    twice, wrong = 2 * counts[..., 0], counts[..., 1] + counts[..., 2]
    f1 = np.divide(twice, twice + wrong, out=np.zeros_like(twice), where=twice + wrong > 0)
    return np.asarray(f1.mean(axis=-1), np.float64)


def well_known(truth: ArrayLike, *, uncertain: Uncertain, least: int = 2) -> list[int]:
    """The findings that at least `least` of the written reports [n, 14] state."""
    from chexgenbench_plugins.reports.labellers import positive

    counts = positive(truth, uncertain).sum(axis=0)
    return [at for at in range(len(FINDINGS)) if counts[at] >= least]


def of_sums(
    statistic: Callable[[Floats], Floats],
    parts: Floats,
    *,
    groups: Groups = None,
    low: float = 0.0,
    high: float = np.inf,
) -> Estimate:
    """A function of sums over rows, such as BLEU or F1, with an interval over patients.

    Args:
        statistic: Sums [..., k] to values [...]; unchanged where all sums are multiplied.
        parts: What each row adds [n, k], n >= 1.
        groups: The patient of each row.
        low: Lower end of the statistic's range.
        high: Upper end of it.

    Returns:
        Estimate with the interval of `cluster_bootstrap`, withheld where that withholds it. Its
        influence is the derivative of the statistic with respect to each row's weight
        (infinitesimal jackknife), so that differences of two regimes or models are paired by
        patient.
    """
    rows = len(parts)
    names: Sequence[object] = np.arange(rows) if groups is None else groups
    found = cluster_bootstrap(lambda weights: statistic(weights @ parts), names, low=low, high=high)
    sums = parts.sum(axis=0)
    first = (statistic(sums + _STEP * parts) - statistic(sums - _STEP * parts)) / (2 * _STEP)
    units = units_of(0, rows, groups_fake=names)
    return replace(found, influence=linear(units, first - first.mean()))


def words(text: str) -> list[str]:
    """Lower-case words and numbers of a report.

    >>> words("No pneumothorax; tube 3.5 cm above.")
    ['no', 'pneumothorax', 'tube', '3.5', 'cm', 'above']
    """
    return re.findall(r"\d+\.\d+|\w+", text.lower())


def _same(references: Texts, generated: Texts) -> None:
    if not references or len(references) != len(generated):
        raise ValueError(
            f"a generated report for each written one expected: {len(generated)} and "
            f"{len(references)}"
        )
