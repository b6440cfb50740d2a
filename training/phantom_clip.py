"""Train the demo's CLIP on fresh phantom pairs: python training/phantom_clip.py --cache DIR.

The patients come from seeds of their own: none is in the demo split.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score

from chexgenbench_plugins.phantom.clip import (
    CONFIG,
    SIZE,
    WEIGHTS,
    build,
    finding_embeddings,
    load_clip,
)
from chexgenbench_plugins.phantom.findings import FINDINGS
from chexgenbench_plugins.phantom.report import vocabulary
from phantom_data import fresh_pairs

SEED = 20250516


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("assets/phantom-clip"))
    parser.add_argument("--pairs", type=int, default=8_000)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument(
        "--evaluate", action="store_true", help="only measure what is in --out, and write that down"
    )
    options = parser.parse_args()
    if options.evaluate:
        figures = json.loads((options.out / "training.json").read_text())
        figures |= evaluate(*load_clip(options.out), options.cache)
        (options.out / "training.json").write_text(json.dumps(figures, indent=1) + "\n")
        return

    torch.manual_seed(SEED)
    start = time.perf_counter()
    images, prompts, _ = fresh_pairs(options.pairs, "clip-train", options.cache)
    words = vocabulary()
    config = {
        "embed_dim": 64,
        "vision": {"layers": [1, 1, 1, 1], "width": 12, "image_size": SIZE, "head_width": 48},
        "text": {
            "context_length": 64,
            "vocab_size": len(words) + 4,
            "width": 128,
            "heads": 4,
            "layers": 3,
        },
        "vocabulary": list(words),
    }
    model, tokenize = build(config)
    tokens = tokenize(prompts)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1.5e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1.5e-3, options.steps, pct_start=0.1)
    rng = np.random.default_rng(SEED)
    target = torch.arange(options.batch)
    losses = []
    model.train()
    for step in range(options.steps):
        rows = rng.choice(len(images), options.batch, replace=False)
        seen = model.encode_image(_pixels(images[rows]), normalize=True)
        read = model.encode_text(tokens[rows], normalize=True)
        logits = model.logit_scale.exp().clamp(max=50) * seen @ read.T
        loss = (
            torch.nn.functional.cross_entropy(logits, target)
            + torch.nn.functional.cross_entropy(logits.T, target)
        ) / 2
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if step % 25 == 24:
            seconds = time.perf_counter() - start
            print(f"step {step + 1} loss {np.mean(losses[-25:]):.3f} {seconds:.0f} s", flush=True)
    model.eval()
    with torch.no_grad():
        model.logit_scale.clamp_(max=float(np.log(50)))
    options.out.mkdir(parents=True, exist_ok=True)
    state = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(state, options.out / WEIGHTS)
    (options.out / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    figures = evaluate(model, tokenize, options.cache)
    figures |= {
        "pairs": options.pairs,
        "steps": options.steps,
        "batch": options.batch,
        "seed": SEED,
        "final_loss": round(float(np.mean(losses[-25:])), 4),
        "seconds": round(time.perf_counter() - start),
        "licence": "Apache-2.0",
    }
    (options.out / "training.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


def _pixels(images: np.ndarray) -> torch.Tensor:
    pixels = torch.from_numpy(images.astype(np.float32) / 127.5 - 1)
    return pixels[:, None].expand(-1, 3, -1, -1)


@torch.no_grad()
def evaluate(model, tokenize, cache: Path) -> dict:  # type: ignore[no-untyped-def, type-arg]
    """Retrieval among 500 held-out pairs, and zero-shot area under the ROC curve by finding."""
    images, prompts, labels = fresh_pairs(500, "clip-test", cache)
    seen = model.encode_image(_pixels(images), normalize=True)
    read = model.encode_text(tokenize(prompts), normalize=True)
    ranks = (seen @ read.T).argsort(1, descending=True)
    hits = ranks == torch.arange(len(images))[:, None]
    scores = (seen @ finding_embeddings(model, tokenize).T).numpy()
    return {
        "retrieval_at_1_of_500": float(hits[:, :1].any(1).float().mean()),
        "retrieval_at_10_of_500": float(hits[:, :10].any(1).float().mean()),
        "auroc": {
            finding: round(float(roc_auc_score(labels[:, i] == 1, scores[:, i])), 3)
            for i, finding in enumerate(FINDINGS)
        },
    }


if __name__ == "__main__":
    main()
