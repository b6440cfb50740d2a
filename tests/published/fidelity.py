"""The published fidelity scores by the published libraries: the other side of a parity test.

    python tests/published/fidelity.py --real-csv R.csv --real-folder D --synthetic-csv S.csv
        --synthetic-folder D --inception W.pth --rad-dino FOLDER --out scores.json

Follows ``metrics/fid.py`` of the published repository (commit 9a201c1) step by step: which rows of
the two tables are compared, what the images go through before each network, which metric of which
library takes the features and with which arguments. It imports nothing of this project. Two things
differ from there: weights are read from local files instead of being downloaded, and the networks
see each batch once instead of two or three times. Runs with the libraries' published versions
(torchmetrics 1.7.1, torch-fidelity 0.3.0, transformers 4.50.3, prdc 0.2) and with later ones.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

SEED = 42
SUBSETS = 100


def compared(
    real_csv: Path, synthetic_csv: Path, pathology: str | None, prompt_column: str
) -> tuple[list[str], list[str]]:
    """File names of the real side (one row a distinct prompt) and of the generated (all rows)."""
    import pandas as pd

    real, synthetic = pd.read_csv(real_csv), pd.read_csv(synthetic_csv)
    real = real.drop_duplicates(subset=["annotated_prompt"])
    if pathology is not None:
        labels = real["chexpert_labels"].map(ast.literal_eval)
        real = real[labels.map(lambda each: each[pathology]).fillna(0) == 1]
        synthetic = synthetic[synthetic[prompt_column].isin(real["annotated_prompt"])]
    return real["path"].tolist(), synthetic["img_savename"].tolist()


def batches(paths: Sequence[Path], size: int) -> Iterator[Any]:
    """uint8 [b, 3, 299, 299]: squashed, scaled to 0..1, and cut to whole levels again."""
    import torch
    from PIL import Image
    from torchvision import transforms

    shape = transforms.Compose([transforms.Resize((299, 299)), transforms.ToTensor()])
    for start in range(0, len(paths), size):
        images = [shape(Image.open(path).convert("RGB")) for path in paths[start : start + size]]
        yield (torch.stack(images) * 255).to(torch.uint8)


def networks(inception: Path, rad_dino: Path) -> tuple[Any, Any]:
    """Modules from uint8 [b, 3, h, w] to Inception's pool features and RAD-DINO's pooler output."""
    import torch
    import transformers
    from torchmetrics.image.fid import NoTrainInceptionV3

    class Once(torch.nn.Module):
        """Encodes a batch the first time that it is asked about it."""

        def __init__(self, encode: Callable[[Any], Any], num_features: int) -> None:
            super().__init__()
            self.encode = encode
            self.num_features = num_features
            self.seen: tuple[Any, Any] = (None, None)

        def forward(self, images: Any) -> Any:
            if images is not self.seen[0]:
                with torch.inference_mode():
                    self.seen = (images, self.encode(images))
            return self.seen[1]

    pool = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(inception))
    model = transformers.AutoModel.from_pretrained(rad_dino).eval()
    # Up to version 4 the class that resizes by Pillow has the plain name.
    by_pillow = getattr(transformers, "BitImageProcessorPil", transformers.BitImageProcessor)
    processor = by_pillow.from_pretrained(rad_dino)

    def pooled(images: Any) -> Any:
        return model(**processor(images=images, return_tensors="pt")).pooler_output

    return Once(pool, 2048), Once(pooled, model.config.hidden_size)


def scores(
    real: Sequence[Path], synthetic: Sequence[Path], pool: Any, pooled: Any, batch_size: int
) -> dict[str, float]:
    """The columns of the published table at full precision.

    The order of rows within the Inception Score's parts is that of
    ``torch.manual_seed(42); torch.randperm(n)``.
    """
    import torch
    from prdc import compute_prdc
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(len(real), len(synthetic))
    fid, kid = FrechetInceptionDistance(pool), KernelInceptionDistance(pool, SUBSETS, size)
    fid_dino = FrechetInceptionDistance(pooled)
    kid_dino = KernelInceptionDistance(pooled, SUBSETS, size)
    score = InceptionScore(pool)
    features: dict[bool, list[Any]] = {True: [], False: []}
    for is_real, paths in ((True, real), (False, synthetic)):
        for batch in batches(paths, batch_size):
            for metric in (fid, kid, fid_dino, kid_dino):
                metric.update(batch, real=is_real)
            if not is_real:
                score.update(batch)
            features[is_real].append(pooled(batch))
    torch.manual_seed(SEED)
    inception_score = score.compute()[0]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the numbers of rows
        neighbours = compute_prdc(
            torch.cat(features[True]).numpy(), torch.cat(features[False]).numpy(), nearest_k=5
        )
    (kid_mean, kid_deviation), (kid_dino_mean, kid_dino_deviation) = (
        kid.compute(),
        kid_dino.compute(),
    )
    values = {
        "FID": fid.compute(),
        "FID (RadDino)": fid_dino.compute(),
        "Inception Score": inception_score,
        "KID": kid_mean,
        "KID deviation": kid_deviation,
        "KID (RadDino)": kid_dino_mean,
        "KID (RadDino) deviation": kid_dino_deviation,
        **{name.capitalize(): value for name, value in neighbours.items()},
    }
    return {name: float(value) for name, value in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("real-csv", "real-folder", "synthetic-csv", "synthetic-folder"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--inception", type=Path, required=True, help="state dict (.pth)")
    parser.add_argument("--rad-dino", type=Path, required=True, help="transformers folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pathology", help="only rows that have this finding")
    parser.add_argument("--prompt-column", default="annotated_prompt", help="of the synthetic CSV")
    parser.add_argument("--batch-size", type=int, default=32)
    given = parser.parse_args()

    os.environ["HF_HUB_OFFLINE"] = "1"
    real, synthetic = compared(
        given.real_csv, given.synthetic_csv, given.pathology, given.prompt_column
    )
    values = scores(
        [given.real_folder / name for name in real],
        [given.synthetic_folder / name for name in synthetic],
        *networks(given.inception, given.rad_dino),
        given.batch_size,
    )
    sides = {"real": real, "synthetic": synthetic}
    given.out.write_text(json.dumps({**values, **sides}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
