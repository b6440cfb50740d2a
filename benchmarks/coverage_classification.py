"""How often the 95 % intervals of classification and attack scores hold what they are for.

    python benchmarks/coverage_classification.py [--repeats 1000] [--only auc] [--seed 0]

Prints a Markdown table. Columns as in benchmarks/coverage.py: coverage of the intervals given, the
range that this number of intervals leaves to a true 95 %, the share of all draws with a wrong
interval, the share without one, and the mean standard error over the standard deviation. Target:
the statistic's own expectation, or its value in the population where one is named.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

import numpy as np
from coverage import Draw, FloatArray, IntArray, Scenario, binomial_range, patients, simulate
from scipy.special import expit, ndtr, ndtri

from chexgenbench.statistics import (
    Estimate,
    average_precision,
    by_column,
    cluster_bootstrap,
    expected_calibration_error,
    roc_auc,
    threshold_metrics,
    tpr_at_fpr,
)
from chexgenbench.statistics.attacks import Pool, Prompted, membership_attacks
from chexgenbench.statistics.difference import difference


def world(
    rng: np.random.Generator, n: int, share: float, images: float, columns: int = 1
) -> tuple[IntArray, FloatArray, FloatArray]:
    """Patients [n], labels and normal scores [n, columns]: AUC 0.8 where patients count nothing.

    Half of the variance of a score, and of what decides a label, is the patient's where patients
    have several rows.
    """
    who = patients(rng, n, images)
    common = 0.5 if images > 1 else 0.0

    def mixed() -> FloatArray:
        own = rng.normal(size=(n, columns))[who]
        return np.sqrt(common) * own + np.sqrt(1 - common) * rng.normal(size=(n, columns))

    labels = (mixed() > ndtri(1 - share)).astype(np.float64)
    return who, labels, mixed() + np.sqrt(2) * ndtri(0.8) * labels


def ranked(n: int, share: float, images: float) -> Draw:
    """AUC and average precision, and the difference to a second model on the same rows."""

    def draw(rng: np.random.Generator) -> dict[str, Estimate]:
        while True:
            who, labels, scores = world(rng, n, share, images)
            if 1 < labels.sum() < n - 1:
                break
        y, s = labels[:, 0], scores[:, 0]
        other = s + rng.normal(size=n)
        found = {}
        for name, statistic in (("auc", roc_auc), ("average precision", average_precision)):
            both = [statistic(one, y, groups=who) for one in (s, other)]
            found[name] = both[0]
            found[f"{name} difference"] = difference(*both)
        return found

    return draw


def columns(n: int, share: float, images: float, count: int = 5) -> Draw:
    """Metrics at a threshold, and macro averages over columns."""

    def draw(rng: np.random.Generator) -> dict[str, Estimate]:
        names = [f"c{j}" for j in range(count)]
        while True:
            who, labels, scores = world(rng, n, share, images, count)
            if labels.sum(axis=0).min() > 1:
                break
        cut = float(np.sqrt(2) * ndtri(0.8))
        found = {}
        for metric, one in threshold_metrics(
            scores, labels, names, threshold=cut, groups=who
        ).items():
            every = one.estimates()
            for name in ("c0", "micro", "macro"):
                estimate = every[name]
                assert isinstance(estimate, Estimate)
                found[f"{metric} {name}"] = estimate
        macro = by_column(roc_auc, scores, labels, names, groups=who).estimates()["macro"]
        assert isinstance(macro, Estimate)
        return {**found, "auc macro": macro}

    return draw


def calibration(n: int, images: float, sharpness: float) -> Draw:
    """ECE of a forecast whose logits are `sharpness` times the true ones."""

    def draw(rng: np.random.Generator) -> dict[str, Estimate]:
        who = patients(rng, n, images)
        logit = rng.normal(size=n)[who] + rng.normal(size=n)
        y = (rng.random(n) < expit(logit)).astype(np.float64)
        return {
            "calibration error": expected_calibration_error(expit(sharpness * logit), y, groups=who)
        }

    return draw


def bootstrapped(n: int, images: float) -> Draw:
    """F1 and the standard deviation of a skewed value by the cluster bootstrap."""

    def draw(rng: np.random.Generator) -> dict[str, Estimate]:
        who, labels, scores = world(rng, n, 0.2, images)
        y, called = labels[:, 0], scores[:, 0] > 0.8
        names = [f"p{i}" for i in who]

        def f1(weights: FloatArray) -> FloatArray:
            return 2 * weights @ (y * called) / (weights @ (y + called))

        def median_like(weights: FloatArray) -> FloatArray:
            mean = weights @ scores[:, 0] / weights.sum(axis=1)
            square = weights @ scores[:, 0] ** 2 / weights.sum(axis=1)
            return np.sqrt(square - mean**2)

        return {
            "bootstrap f1": cluster_bootstrap(f1, names, draws=500),
            "bootstrap deviation": cluster_bootstrap(median_like, names, draws=500),
        }

    return draw


def at_rate(m: int, n: int, fpr: float, images: float, shift: float) -> Draw:
    """TPR at a fixed FPR, patients with several rows on both sides."""

    def draw(rng: np.random.Generator) -> dict[str, Estimate]:
        sides = []
        for size, name in ((m, "a"), (n, "b")):
            who = patients(rng, size, images)
            common = 0.5 if images > 1 else 0.0
            values = np.sqrt(common) * rng.normal(size=size)[who]
            values += np.sqrt(1 - common) * rng.normal(size=size)
            sides.append((values, [f"{name}{i}" for i in who]))
        (high, of_high), (low, of_low) = sides
        found = tpr_at_fpr(high + shift, low, fpr, groups_positive=of_high, groups_negative=of_low)
        return {f"tpr at {fpr:g}": found}

    return draw


def attacked(n: int, images: float, leak: float, shift: float, repeats: int = 3) -> Draw:
    """Membership attacks on a model that follows its prompts and copies a share of its members.

    Rows have six labels, which move the image, and scatter about them the more of them they have;
    non-members have other shares of them by `shift`. Half of the scatter is the patient's.
    """
    effect = np.random.default_rng(5).normal(size=(6, 16))

    def draw(rng: np.random.Generator) -> dict[str, Estimate]:
        def rows(count: int, name: str, share: float) -> tuple[FloatArray, FloatArray, list[str]]:
            who = patients(rng, count, images)
            labels = (rng.random((count, 6)) < share).astype(np.float64)
            own = rng.normal(size=(count, 16))[who] + rng.normal(size=(count, 16))
            scatter = (1 + labels.mean(axis=1, keepdims=True)) * np.sqrt(0.5) * own
            return labels @ effect + scatter, labels, [f"{name}{i}" for i in who]

        real, labels, names = rows(2 * n, "a", 0.3)
        pool = Pool.checked(real, names, labels)
        held_out = rows(n, "b", 0.3 + shift)
        sides = []
        for one, copied in (((real[:n], labels[:n], names[:n]), leak), (held_out, 0.0)):
            of = np.arange(n * repeats) // repeats
            spread = 1 + one[1][of].mean(axis=1, keepdims=True)
            made = one[1][of] @ effect + spread * rng.normal(size=(len(of), 16))
            made = np.where(rng.random(n)[of, None] < copied, one[0][of], made)
            sides.append(Prompted.checked("side", one[0], one[2], one[1], made, of))
        found = membership_attacks(sides[0], sides[1], pool, rates=())
        every = {f"{name}: auc": one.auc for name, one in found.items()}
        return every | {f"{name}: excess": one.excess_auc for name, one in found.items()}

    return draw


def scenarios() -> Iterator[Scenario]:
    for images, text in ((1.0, ""), (2.5, ", patients")):
        for n, share in ((60, 0.3), (200, 0.1), (500, 0.02), (500, 0.2)):
            yield Scenario(f"{n} rows, {100 * share:g} % positive{text}:", ranked(n, share, images))
        for n, share in ((100, 0.2), (400, 0.1)):
            yield Scenario(
                f"5 columns, {n} rows, {100 * share:g} % positive{text}:", columns(n, share, images)
            )
        for n in (100, 500):
            for sharpness in (1.0, 1.5, 3.0):
                yield Scenario(
                    f"{n} rows, logits times {sharpness:g}{text}:",
                    calibration(n, images, sharpness),
                )
        yield Scenario(f"150 rows{text}:", bootstrapped(150, images), share=0.4)
        for m, n, fpr in ((200, 400, 0.1), (200, 4000, 0.01), (2000, 4000, 0.01)):
            for shift in (0.0, 1.0, 3.0):
                yield Scenario(
                    f"{m} and {n} rows, {shift:g} sd apart{text}:",
                    at_rate(m, n, fpr, images, shift),
                    truth=float(ndtr(shift - ndtri(1 - fpr))),
                )
        for leak, shift in ((0.0, 0.0), (0.0, 0.1), (0.3, 0.0)):
            yield Scenario(
                f"attack, 200 a side, {100 * leak:g} % copied, label shares {shift:+g}{text}:",
                attacked(200, images, leak, shift),
                share=0.5,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--only", default="", help="scenarios whose name matches this pattern")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("| interval | draws | coverage % | | wrong % | withheld % | se / sd | target | mean |")
    print("|---|---|---|---|---|---|---|---|---|")
    for scenario in scenarios():
        if not re.search(options.only, scenario.name):
            continue
        count = max(2, round(options.repeats * scenario.share))
        for row in simulate(scenario, count, options.seed):
            if not row.intervals:
                print(f"| {row.name} | {row.repeats} | | | | 100 | | | |", flush=True)
                continue
            low, high = binomial_range(row.intervals)
            wrong = 100 * (row.intervals - row.held) / row.repeats
            none = 100 * (1 - row.intervals / row.repeats)
            print(
                f"| {row.name} | {row.repeats} | {100 * row.rate:.1f} "
                f"| ({100 * low:.1f} to {100 * high:.1f}) | {wrong:.1f} | {none:.1f} "
                f"| {row.error_ratio:.2f} | {row.truth:.4g} | {row.mean:.4g} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
