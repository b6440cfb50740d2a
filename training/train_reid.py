"""Train the demo's re-identification network: python training/train_reid.py --cache DIR.

It learns from phantom patients of its own: none is in the demo split. The studies of a patient are
drawn one by one with other findings, views, poses and films, and eight patients share one list of
studies, so that what a study shows says nothing about whose it is.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score
from torch.nn.functional import cross_entropy, mse_loss, softplus

from chexgenbench_plugins.phantom import draw_anatomy, labels_of, render
from chexgenbench_plugins.phantom.canvas import one_thread
from chexgenbench_plugins.phantom.findings import FINDINGS, Study, generator, seed_of
from chexgenbench_plugins.phantom.split import _draw_study
from chexgenbench_plugins.reid.network import Architecture, build, pair_scores, pixels

SEED = 20250517
SHARING = 8  # patients that share a list of studies
ARCHITECTURE = Architecture(
    bottleneck=False,
    layers=(1, 1, 1, 1),
    channels=(16, 32, 64, 96),
    inputs=1,
    features=128,
    size=64,
    first=0,
    pooled=False,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("assets/phantom-reid"))
    parser.add_argument("--patients", type=int, default=3_200)
    parser.add_argument("--studies", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2_400)
    parser.add_argument("--batch", type=int, default=32, help="patients a step, two studies each")
    parser.add_argument("--evaluate", action="store_true", help="only measure what is in --out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = build(ARCHITECTURE)
    if options.evaluate:
        state = load_file(options.out / "model.safetensors")
        network.load_state_dict({name: value.float() for name, value in state.items()})
        figures = json.loads((options.out / "training.json").read_text())
        figures |= evaluate(network, options.cache)
        (options.out / "training.json").write_text(json.dumps(figures, indent=1) + "\n")
        return

    torch.manual_seed(SEED)
    network = build(ARCHITECTURE)
    with torch.no_grad():
        # Features apart, and a pair of patients apart by the same weight of each: from zero
        # differences the pairs alone would not find a way.
        network.model.fc.weight *= 4
        network.fc_end.weight.fill_(-0.3)
        network.fc_end.bias.fill_(3.0)
    bodies = torch.from_numpy(anatomies(options.patients, "reid-train"))
    body = torch.nn.Linear(network.model.fc.in_features, bodies.shape[1])
    start = time.perf_counter()
    images, _ = shared_studies(options.patients, options.studies, "reid-train", options.cache)
    print(f"{len(images)} patients, {time.perf_counter() - start:.0f} s", flush=True)
    weights = [*network.parameters(), *body.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, options.steps, pct_start=0.1)
    rng = np.random.default_rng(SEED)
    losses = []
    target = torch.arange(options.batch)
    same = torch.eye(options.batch, dtype=torch.bool)
    network.train()
    for step in range(options.steps):
        patients, first, second = batch(images, options.batch, rng)
        seen = torch.cat([augmented(first, rng), augmented(second, rng)])
        pooled = network.model.global_pool(network.model.forward_features(seen))
        a, b = torch.sigmoid(network.model.fc(pooled)).chunk(2)
        logits = network.fc_end((a[:, None] - b[None]).abs())[:, :, 0]
        # Which of the batch is the patient: this teaches; the second term makes it a probability,
        # and the third, what the body measures, shows early where to look.
        which = cross_entropy(logits, target) + cross_entropy(logits.T, target)
        alike, apart = logits.diagonal(), logits[~same]
        loss = which / 2 + (softplus(-alike).mean() + softplus(apart).mean()) / 2
        measured = mse_loss(body(pooled), bodies[patients].repeat(2, 1))
        loss = loss + measured
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        losses.append((which.item() / 2, measured.item()))
        if step % 25 == 24:
            seconds = time.perf_counter() - start
            mean = np.mean(losses[-25:], axis=0)
            print(f"step {step + 1} loss {mean.round(3).tolist()} {seconds:.0f} s", flush=True)
    network.eval()
    options.out.mkdir(parents=True, exist_ok=True)
    state = {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in network.state_dict().items()
    }
    save_file(state, options.out / "model.safetensors")
    (options.out / "config.json").write_text(json.dumps(asdict(ARCHITECTURE), indent=1) + "\n")
    network.load_state_dict({name: value.float() for name, value in state.items()})
    figures = evaluate(network, options.cache) | {
        "patients": options.patients,
        "studies": options.studies,
        "steps": options.steps,
        "batch": options.batch,
        "seed": SEED,
        "final_loss": round(float(np.mean([each[0] for each in losses[-25:]])), 4),
        "seconds": round(time.perf_counter() - start),
        "licence": "Apache-2.0",
    }
    (options.out / "training.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


def batch(
    images: NDArray[np.uint8], count: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint8]]:
    """`count` patients in whole groups, and two studies of each that their group shares: so pairs
    of a group differ by the patient alone."""
    groups = rng.choice(len(images) // SHARING, count // SHARING, replace=False)
    patients = (groups[:, None] * SHARING + np.arange(SHARING)).ravel()
    studies = np.stack([rng.permutation(images.shape[1])[:2] for _ in groups]).repeat(SHARING, 0)
    # Half of the patients bring the other study, so that the study does not tell the pair.
    swap = rng.random(len(patients)) < 0.5
    studies[swap] = studies[swap][:, ::-1]
    return patients, images[patients, studies[:, 0]], images[patients, studies[:, 1]]


def anatomies(patients: int, name: str) -> NDArray[np.float32]:
    """The measures of each body, standardised [patients, measures]."""
    bodies = [draw_anatomy(seed_of("reid patient", name, each)) for each in range(patients)]
    values = np.array([[v for k, v in asdict(b).items() if k != "vessel_seed"] for b in bodies])
    return ((values - values.mean(0)) / values.std(0)).astype(np.float32)


def augmented(images: NDArray[np.uint8], rng: np.random.Generator) -> torch.Tensor:
    """Shifted, brightened, blurred and with noise: what a generator may do to a patient."""
    values = torch.from_numpy(images.astype(np.float32) / np.float32(255))[:, None]
    for row in range(len(values)):
        shift = tuple(int(each) for each in rng.integers(-2, 3, 2))
        values[row, 0] = torch.roll(values[row, 0], shift, (0, 1))
        if rng.random() < 0.2:
            values[row] = torch.nn.functional.avg_pool2d(values[row], 3, 1, 1)
    scale = torch.from_numpy(rng.normal(1.0, 0.06, (len(values), 1, 1, 1)).astype(np.float32))
    offset = torch.from_numpy(rng.normal(0.0, 0.03, (len(values), 1, 1, 1)).astype(np.float32))
    noise = torch.from_numpy(rng.normal(0.0, 0.01, values.shape).astype(np.float32))
    return (values * scale + offset + noise).clamp(0, 1)


def shared_studies(
    patients: int, studies: int, name: str, cache: Path
) -> tuple[NDArray[np.uint8], list[Study]]:
    """What the network sees, uint8 [patients, studies, size, size], and each one's study, in a
    list [patients * studies]."""
    drawn: list[Study] = []
    for patient in range(patients):
        rng = generator("reid studies", name, patient // SHARING)
        drawn += [_draw_study(rng, None) for _ in range(studies)]
    path, side = cache / f"{name}-{patients}x{studies}.npy", ARCHITECTURE.size
    if path.exists():
        return np.load(path), drawn
    images = np.empty((patients, studies, side, side), np.uint8)
    with one_thread():
        for number, study in enumerate(drawn):
            patient, at = divmod(number, studies)
            anatomy = draw_anatomy(seed_of("reid patient", name, patient))
            image = Image.fromarray(render(anatomy, study, seed_of("reid film", name, number)))
            seen = pixels(image, ARCHITECTURE)[0].numpy()
            images[patient, at] = np.rint(seen * 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, images)
    return images, drawn


@torch.no_grad()
def evaluate(network: torch.nn.Module, cache: Path) -> dict[str, object]:
    """Verification of patients never seen: every pair of one patient against pairs of two.

    ``matched`` pairs of two patients show the same study, ``any`` pairs whatever study; pairs of
    one patient show two different studies in both.
    """
    images, drawn = shared_studies(400, 4, "reid-test", cache)
    network.eval()
    flat = torch.from_numpy(images.astype(np.float32) / np.float32(255)).flatten(0, 1)[:, None]
    vectors = torch.cat([network(part) for part in flat.split(64)]).numpy().reshape(400, 4, -1)
    weight, bias = network.fc_end.weight.numpy()[0], float(network.fc_end.bias)
    one, matched, two = [], [], []
    labels = np.array([[labels_of(study)[f] or 0.0 for f in FINDINGS] for study in drawn])
    views = np.array([str(study.view) for study in drawn])
    other_view = []
    for patient in range(len(vectors)):
        group = patient - patient % SHARING
        for at in range(4):
            for other in range(at):
                pair = vectors[patient, at], vectors[patient, other]
                one.append(pair)
                apart = {views[patient * 4 + at], views[patient * 4 + other]} == {"AP", "PA"}
                other_view.append(apart)
            matched += [(vectors[patient, at], vectors[mate, at]) for mate in range(group, patient)]
        for step in (1, 2, 3):
            stranger = (patient + step * 4 * SHARING) % len(vectors)
            two.append((vectors[patient, step], vectors[stranger, step - 1]))
    scores = [
        pair_scores(np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs]), weight, bias)
        for pairs in (one, matched, two)
    ]
    rate = {}
    for name, negative in (("matched", scores[1]), ("any", scores[2])):
        threshold = np.quantile(negative, 0.99)
        rate[name] = (
            round(float(roc_auc_score(np.r_[np.ones(len(one)), np.zeros(len(negative))],
                                      np.r_[scores[0], negative])), 4),
            round(float((scores[0] > threshold).mean()), 3),
        )  # fmt: skip
    across = scores[0][np.array(other_view)]
    return {
        "auc_matched": rate["matched"][0],
        "auc_any": rate["any"][0],
        "tpr_at_1pct_fpr_matched": rate["matched"][1],
        "tpr_at_1pct_fpr_any": rate["any"][1],
        "mean_same_patient": round(float(scores[0].mean()), 3),
        "mean_same_patient_other_view": round(float(across.mean()), 3) if len(across) else None,
        "mean_other_patient": round(float(scores[1].mean()), 3),
        "test_patients": len(vectors),
        "findings_a_study": round(float((labels == 1).sum(1).mean()), 2),
    }


if __name__ == "__main__":
    main()
