"""Report generation on the chest phantom: a small generator trained on real, on noise images and
on reports of other images; BLEU-4 and F1 of labels of its reports for real test images, and the
coverage of the bootstrap intervals of both.

    python benchmarks/reports.py train [--rows 1500 --epochs 30 --size 64]
    python benchmarks/reports.py coverage [--draws 300]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from chexgenbench_plugins.phantom.split import read_rows, render_row
from chexgenbench_plugins.reports import encoder_decoder, scores
from chexgenbench_plugins.reports.images import squared
from chexgenbench_plugins.reports.labellers import PhantomLabeller
from chexgenbench_plugins.reports.results import swapped

DEMO = Path(__file__).parents[1] / "MIMIC_Splits" / "demo"


def drawn(rows: list[dict[str, str]], size: int) -> np.ndarray:
    """The images of those rows."""
    return np.stack([squared(Image.fromarray(render_row(row)), size) for row in rows])


def measure(name: str, written: list[str], made: list[str], patients: list[str]) -> None:
    """Prints the scores, each beside that of the same reports for other patients' images."""
    labeller = PhantomLabeller()
    other = swapped(np.array(patients))
    assert other is not None
    print(name, f"({len(set(made))} different reports of {len(made)})")
    for reports, what in ((made, "own"), ([made[at] for at in other], "of another patient")):
        bleu = scores.bleu(written, reports, groups=patients)
        parts = scores.label_parts(
            labeller.label(written), labeller.label(reports), uncertain="positive"
        )
        rows = [("bleu4", bleu)]
        rows += [
            (average, scores.label_f1(parts, average=average, groups=patients))
            for average in ("micro", "macro")
        ]
        text = ", ".join(f"{k} {e.value:.4f} ({e.ci_low}..{e.ci_high})" for k, e in rows)
        print(f"  {what}: {text}, rouge-l {scores.rouge_l(written, reports).mean():.4f}")


def trainings(count: int, epochs: int, size: int) -> None:
    """Real images, noise, and reports of the training set drawn at random."""
    train = read_rows(DEMO / "DEMO_ANNOTATIONS_TRAIN.csv")[:count]
    test = read_rows(DEMO / "DEMO_ANNOTATIONS_TEST.csv")[:300]
    written = [row["annotated_prompt"] for row in test]
    patients = [row["patientID"] for row in test]
    real, unseen = drawn(train, size), drawn(test, size)
    random = np.random.default_rng(0)
    texts = [row["annotated_prompt"] for row in train]
    measure("the written reports", written, written, patients)
    measure("one report for all", written, [texts[0]] * len(test), patients)
    measure("reports at random", written, list(random.choice(texts, len(test))), patients)
    noise = random.integers(0, 256, real.shape, dtype=np.uint8)
    for name, images in (("real", real), ("noise", noise)):
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            trained = encoder_decoder.train(
                images,
                texts,
                Path(folder),
                training=encoder_decoder.Training(
                    epochs=epochs,
                    batch_size=32,
                    learning_rate=2e-3,
                    tokens=64,
                    seed=0,
                    device="cpu",
                ),
                sizes=encoder_decoder.Sizes(width=64, layers=2, heads=4, patch=8),
                advance=lambda _count: None,
            )
            made = encoder_decoder.generate(
                unseen,
                trained,
                tokens=64,
                batch_size=64,
                device="cpu",
                advance=lambda _count: None,
            )
        print(f"trained on {name}: {time.perf_counter() - start:.0f} s", flush=True)
        measure(name, written, made, patients)


def coverage(draws: int) -> None:
    """How often the 95 % interval of a sample of patients holds the value of all patients."""
    rows = read_rows(DEMO / "DEMO_ANNOTATIONS_TRAIN.csv")
    written = [row["annotated_prompt"] for row in rows]
    patients = np.array([row["patientID"] for row in rows])
    random = np.random.default_rng(0)
    # Every other report is right, the others are another row's.
    right = random.random(len(rows)) < 0.5
    other = random.permutation(len(rows))
    made = [written[i] if right[i] else written[other[i]] for i in range(len(rows))]
    labeller = PhantomLabeller()
    labels = labeller.label(written), labeller.label(made)
    parts = scores.label_parts(*labels, uncertain="positive")
    bleu = scores.bleu_parts(written, made)
    names = np.unique(patients)
    whole = {
        "bleu4": float(scores.bleu_of_sums(bleu.sum(axis=0))),
        **{
            average: float(scores.f1_of_sums(parts.reshape(len(rows), -1).sum(axis=0), average))
            for average in ("micro", "macro")
        },
    }
    names = np.unique(patients)
    rows_of = {name: np.flatnonzero(patients == name) for name in names}
    for count in (40, 120, 360):
        held: dict[str, list[bool]] = {name: [] for name in whole}
        for _ in range(draws):
            drawn_rows = [rows_of[name] for name in random.choice(names, count)]
            index = np.concatenate(drawn_rows)
            groups = np.repeat(np.arange(count), [len(each) for each in drawn_rows])
            found = {
                "bleu4": scores.of_sums(scores.bleu_of_sums, bleu[index], groups=groups),
                "micro": scores.label_f1(parts[index], average="micro", groups=groups),
                "macro": scores.label_f1(parts[index], average="macro", groups=groups),
            }
            for name, estimate in found.items():
                if estimate.ci_low is not None and estimate.ci_high is not None:
                    held[name].append(estimate.ci_low <= whole[name] <= estimate.ci_high)
        shares = ", ".join(f"{k} {np.mean(v):.3f} of {len(v)}" for k, v in held.items())
        print(f"{count} patients: {shares}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["train", "coverage"])
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--draws", type=int, default=300)
    given = parser.parse_args()
    if given.what == "train":
        trainings(given.rows, given.epochs, given.size)
    else:
        coverage(given.draws)
