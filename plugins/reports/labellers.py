"""What a report states of the 14 findings: 1, 0 (denied), -1 (uncertain) or NaN (not mentioned)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chexgenbench import FINDINGS, UserError

if TYPE_CHECKING:
    import torch

    from chexgenbench_plugins.reports.settings import Uncertain

ORDER = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    "No Finding",
)
"""The findings in the order of CheXbert's heads (stanfordmlgroup/CheXbert, src/constants.py)."""

_CLASSES = np.array([np.nan, 1.0, 0.0, -1.0])
"""CheXbert's classes: blank, positive, negative, uncertain."""

_LONGEST = 512


class Labeller(Protocol):
    """Reads labels off reports."""

    def label(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Labels [n, 14] in the order of `FINDINGS`: 1, 0, -1 for uncertain, NaN not mentioned."""
        ...


def positive(labels: ArrayLike, uncertain: Uncertain) -> NDArray[np.bool_]:
    """Whether each label is positive; not mentioned is not.

    >>> positive([1.0, 0.0, -1.0, float("nan")], "positive").tolist()
    [True, False, True, False]
    """
    values = np.asarray(labels, np.float64)
    return (values == 1.0) | ((values == -1.0) & (uncertain == "positive"))


class PhantomLabeller:
    """Exact on the reports of the chest phantom; sentences outside its grammar say nothing."""

    def label(self, texts: Sequence[str]) -> NDArray[np.float64]:
        from chexgenbench_plugins.phantom.report import parse

        known: dict[str, list[float]] = {}
        for text in texts:
            if text not in known:
                labels = parse(text).labels
                known[text] = [
                    np.nan if labels[name] is None else float(labels[name] or 0.0)
                    for name in FINDINGS
                ]
        return np.array([known[text] for text in texts]).reshape(len(texts), len(FINDINGS))


class CheXbert:
    """CheXbert: BERT and one linear head a finding on the first token's vector.

    Source: Smit et al. 2020, https://arxiv.org/abs/2004.09167.
    """

    def __init__(
        self, folder: Path, *, device: str = "cpu", allow_pickle: bool = False, batch_size: int = 32
    ) -> None:
        """Loads the published weights.

        Args:
            folder: Holds ``chexbert.pth`` (what was published) or ``chexbert.safetensors``, BERT's
                ``vocab.txt``, and ``config.json`` where the network is not bert-base-uncased.
            device: Where it runs.
            allow_pickle: The user's yes to a pickle that holds more than tensors.
            batch_size: Reports at a time.

        Raises:
            UserError: a file is missing, broken or of another network.
        """
        from tokenizers import BertWordPieceTokenizer

        config = _chexbert_config(folder)
        self.network = _network(config)
        _fill(self.network, folder, allow_pickle=allow_pickle)
        self.network.eval().to(device)
        vocabulary = chexbert_files(folder)[1]
        self.tokenizer = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
        longest = min(_LONGEST, config.max_position_embeddings)
        self.tokenizer.enable_truncation(longest)
        self.device, self.batch_size = device, batch_size

    def label(self, texts: Sequence[str]) -> NDArray[np.float64]:
        import torch

        unique = sorted(set(texts), key=lambda text: (len(text), text))
        found: dict[str, NDArray[np.float64]] = {}
        for start in range(0, len(unique), self.batch_size):
            chunk = unique[start : start + self.batch_size]
            # Encoded one by one: empty reports become [CLS] [SEP], as in the published code.
            ids = [self.tokenizer.encode(re.sub(r"\s+", " ", text).strip()).ids for text in chunk]
            width = max(map(len, ids))
            padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
            with torch.inference_mode():
                heads = self.network(padded.to(self.device), mask.to(self.device))
            classes = np.stack([head.argmax(dim=1).cpu().numpy() for head in heads], axis=1)
            columns = [ORDER.index(name) for name in FINDINGS]
            found.update(zip(chunk, _CLASSES[classes][:, columns], strict=True))
        return np.array([found[text] for text in texts]).reshape(len(texts), len(FINDINGS))


def chexbert_files(folder: Path) -> list[Path]:
    """Weights, vocabulary and, where it is there, configuration of CheXbert in `folder`.

    Raises:
        UserError: weights or vocabulary are missing.
    """
    names = ("chexbert.safetensors", "chexbert.pth")
    weights = next((folder / name for name in names if (folder / name).is_file()), None)
    vocabulary, config = folder / "vocab.txt", folder / "config.json"
    missing = [] if weights else [" or ".join(names)]
    missing += [] if vocabulary.is_file() else ["vocab.txt"]
    if weights is None or missing:
        raise UserError(
            f"CheXbert is not in {folder}: {' and '.join(missing)} missing.",
            hint="chexbert.pth is a file of StanfordAIMI/RRG_scorers, vocab.txt one of "
            "google-bert/bert-base-uncased: put both into one folder.",
        )
    return [weights, vocabulary, *([config] if config.is_file() else [])]


def check_chexbert(folder: Path, *, allow_pickle: bool = False) -> None:
    """Raises the `UserError` that loading `CheXbert` would, without its computation or memory."""
    import torch

    with torch.device("meta"):
        network = _network(_chexbert_config(folder))
    # Assigned and not copied: names and shapes are compared, and the file stays on the disk.
    _fill(network, folder, allow_pickle=allow_pickle, assign=True)


def _chexbert_config(folder: Path) -> Any:
    from transformers import BertConfig

    file = folder / "config.json"
    if not file.is_file():
        return BertConfig()
    try:
        return BertConfig.from_json_file(file)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"The configuration of CheXbert cannot be read: {file}") from error


def _fill(
    network: torch.nn.Module, folder: Path, *, allow_pickle: bool, assign: bool = False
) -> None:
    """Loads the weights in `folder` into CheXbert's network."""
    from chexgenbench_plugins.weights import read_content

    weights = chexbert_files(folder)[0]
    content = read_content(weights, "weights of CheXbert", allow_pickle=allow_pickle)
    state = content.get("model_state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise UserError(f"{weights} does not hold CheXbert's weights.")
    # The training code wrapped the network for several GPUs.
    state = {name.removeprefix("module."): value for name, value in state.items()}
    state.pop("bert.embeddings.position_ids", None)
    try:
        network.load_state_dict(state, strict=True, assign=assign)
    except RuntimeError as error:
        raise UserError(
            f"{weights} does not hold the weights of CheXbert's network: "
            f"{str(error).splitlines()[-1].strip()[:200]}",
            hint="Expected are BERT's names below bert. and linear_heads.0 to 13, with "
            "config.json beside the file where BERT is not of the base size.",
        ) from error


def _network(config: Any) -> torch.nn.Module:
    from torch import nn
    from transformers import BertModel

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = BertModel(config)
            sizes = [4] * (len(ORDER) - 1) + [2]
            self.linear_heads = nn.ModuleList(nn.Linear(config.hidden_size, k) for k in sizes)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
            first = self.bert(ids, attention_mask=mask).last_hidden_state[:, 0]
            return [head(first) for head in self.linear_heads]

    return Heads()
