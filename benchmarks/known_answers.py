"""Scores of images that are known to get worse: do they say so, and at every step?

    python benchmarks/known_answers.py [--images 544] [--write]

The generated side starts as what the demo's oracle draws: fresh phantoms that show what each prompt
says. Then 25, 50 and 100 % of the images are replaced, in one random order, by noise, by their
blurred selves, or by the same patient without findings. Every metric that the installed plugins
offer on the encoder is taken, through the plugin that the platform calls. ``--write`` puts table
and plot into docs/known_answers.md and docs/known_answers.svg.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from side_by_side import ROOT, table, write_between

from chexgenbench.registry import Registry, load_registry
from chexgenbench.statistics import Estimate, mean_estimate
from chexgenbench.types import (
    Context,
    Encoder,
    NotApplicable,
    Sample,
    SampleMetric,
    ScoreSpec,
    SetMetric,
)

ENCODER = "phantom-clip"
SHARES = (0, 25, 50, 100)
SEED = 20250516

Pixels = NDArray[np.uint8]

CORRUPTIONS: Mapping[str, str] = {
    "noise": "Gaussian grey levels, as the demo's noise model makes them",
    "blurred": "the same image, Gaussian blur of 3 pixels",
    "findings removed": "the same patient and exposure, drawn without findings",
}


@dataclass(frozen=True)
class Exemption:
    """Why a score need not get worse at every step.

    ``in_the_end``: at 100 % it still must; else it must not, or the reason has gone.
    """

    reason: str
    in_the_end: bool = True


_BALLS_GROW = Exemption(
    "the fewer good images are left the larger their balls, which go on covering the real side"
)

EXEMPTIONS: Mapping[tuple[str, str], Exemption] = {
    **{("recall", corruption): _BALLS_GROW for corruption in CORRUPTIONS},
    ("density", "findings removed"): Exemption(
        "healthy chests lie where the real images are densest", in_the_end=False
    ),
}


@dataclass(frozen=True)
class Answer:
    """One score under one corruption, at each of SHARES."""

    score: ScoreSpec
    corruption: str
    estimates: tuple[Estimate, ...]

    @property
    def values(self) -> list[float]:
        return [estimate.value for estimate in self.estimates]

    def worse_at_every_step(self) -> bool:
        """Strictly, in the direction that the plugin declares."""
        return bool((np.diff(self._badness()) > 0).all())

    def worse_in_the_end(self) -> bool:
        """With all images replaced against none."""
        bad = self._badness()
        return bool(bad[-1] > bad[0])

    @property
    def exemption(self) -> Exemption | None:
        return EXEMPTIONS.get((self.score.name, self.corruption))

    def as_it_should_be(self) -> bool:
        """Worse at every step, or as much of that as the exemption leaves."""
        if self.exemption is None:
            return self.worse_at_every_step()
        return self.worse_in_the_end() == self.exemption.in_the_end

    def _badness(self) -> NDArray[np.float64]:
        values = np.array(self.values)
        return -values if self.score.higher_is_better else values


@dataclass(frozen=True)
class Features:
    """Encoder outputs of the real images, the oracle's and each corruption of those, by row."""

    real: Mapping[str, NDArray[np.float32]]
    clean: Mapping[str, NDArray[np.float32]]
    corrupted: Mapping[str, Mapping[str, NDArray[np.float32]]]
    text: NDArray[np.float32] | None
    patients: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.patients)

    def side(self, outputs: Mapping[str, NDArray[np.float32]]) -> Sample:
        rows = np.arange(len(self), dtype=np.int64)
        return Sample(outputs=outputs, text=self.text, prompts=rows, patients=self.patients)

    def mixed(self, corruption: str, share: int) -> Sample:
        """Generated side with that percentage replaced; a larger share holds the smaller one."""
        order = np.random.default_rng(SEED).permutation(len(self))
        replaced = np.zeros((len(self), 1), dtype=bool)
        replaced[order[: round(len(self) * share / 100)]] = True
        bad = self.corrupted[corruption]
        return self.side({k: np.where(replaced, bad[k], good) for k, good in self.clean.items()})


def draw(images: int) -> tuple[list[str], NDArray[np.int64], dict[str, list[Pixels]]]:
    """Prompts and patients of the first rows of the demo's test split, and their images."""
    from chexgenbench.types import Request
    from chexgenbench_plugins.data import data_folder
    from chexgenbench_plugins.models.noise import Noise, NoiseParameters
    from chexgenbench_plugins.phantom import draw_anatomy, oracle_image, render, render_row
    from chexgenbench_plugins.phantom.canvas import one_thread
    from chexgenbench_plugins.phantom.findings import make_study, seed_of
    from chexgenbench_plugins.phantom.split import read_labels, read_rows

    listed = read_rows(data_folder("demo_split") / "DEMO_ANNOTATIONS_TEST.csv")
    rows = list({row["annotated_prompt"]: row for row in reversed(listed)}.values())[::-1][:images]
    if len(rows) < images:
        raise SystemExit(f"the demo split has {len(rows)} prompts, {images} were asked for")
    prompts = [row["annotated_prompt"] for row in rows]
    _, patients = np.unique([row["patientID"] for row in rows], return_inverse=True)
    seeds = [seed_of("known answers", row["id"]) for row in rows]
    with one_thread():
        clean = [
            oracle_image(row["annotated_prompt"], read_labels(row["chexpert_labels"]), seed)
            for row, seed in zip(rows, seeds, strict=True)
        ]
        empty = [
            # The seeds that oracle_image takes for the patient and for the exposure.
            render(draw_anatomy(seed_of("oracle patient", s)), make_study({}), seed_of("oracle", s))
            for s in seeds
        ]
        real = [render_row(row) for row in rows]
    requests = [
        Request(id=row["id"], prompt_id=row["id"], prompt="", seed=seed >> 1)
        for row, seed in zip(rows, seeds, strict=True)
    ]
    here = Path()
    noise = Noise(NoiseParameters(), Context(home=here, cache=here))
    made = {
        "real": real,
        "clean": clean,
        "noise": [np.asarray(image, np.uint8) for image in noise.generate(requests)],
        "blurred": [blurred(image) for image in clean],
        "findings removed": empty,
    }
    return prompts, patients.astype(np.int64), made


def blurred(image: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(3)), np.uint8)


def encode(images: int, registry: Registry) -> Features:
    """Draws and encodes; about 0.1 s an image on one core."""
    import torch

    prompts, patients, made = draw(images)
    plugin = registry.encoders[ENCODER]
    encoder = plugin.create(plugin.parse({}), Context(home=Path(), cache=Path()))
    assert isinstance(encoder, Encoder)

    def outputs(side: Sequence[Pixels]) -> dict[str, NDArray[np.float32]]:
        batches = []
        with torch.inference_mode():
            for start in range(0, len(side), 32):
                part = [encoder.preprocess(Image.fromarray(p)) for p in side[start : start + 32]]
                batches.append(encoder.encode(torch.stack(part)))
        return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}

    return Features(
        real=outputs(made["real"]),
        clean=outputs(made["clean"]),
        corrupted={name: outputs(made[name]) for name in CORRUPTIONS},
        text=encoder.encode_text(prompts) if plugin.spec.text else None,
        patients=patients,
    )


def answers(features: Features, registry: Registry) -> list[Answer]:
    """Every score of every metric plugin that the encoder serves, under every corruption."""
    found: list[Answer] = []
    real = features.side(features.real)
    for plugin in registry.metrics.values():
        spec = plugin.spec
        if spec.metric == "task" or spec.output not in real.outputs:
            continue
        if spec.text and real.text is None:
            continue
        metric = plugin.create(plugin.parse({}), 0)
        for corruption in CORRUPTIONS:
            try:
                taken = [_take(metric, real, features.mixed(corruption, share)) for share in SHARES]
            except NotApplicable as reason:
                print(f"{spec.name}: {reason}", file=sys.stderr)
                break
            found.extend(
                Answer(score, corruption, tuple(estimates[score.name] for estimates in taken))
                for score in spec.scores
                if all(score.name in estimates for estimates in taken)
            )
    return sorted(found, key=lambda answer: answer.score.name)


def _take(metric: object, real: Sample, fake: Sample) -> Mapping[str, Estimate]:
    if isinstance(metric, SetMetric):
        return metric.score(real, fake)
    assert isinstance(metric, SampleMetric)
    return {
        name: mean_estimate(values, groups=fake.patients)
        for name, values in metric.values(fake).items()
    }


def report(found: Sequence[Answer], features: Features) -> str:
    rows = []
    for answer in found:
        cells = [_cell(estimate) for estimate in answer.estimates]
        verdict = "yes" if answer.worse_at_every_step() else "no"
        if answer.exemption:
            demanded = "demanded at 100 % only" if answer.exemption.in_the_end else "not demanded"
            verdict += f" ({demanded}: {answer.exemption.reason})"
        arrow = "higher" if answer.score.higher_is_better else "lower"
        rows.append(
            [f"{answer.score.name} ({arrow} is better)", answer.corruption, *cells, verdict]
        )
    header = ["score", "replaced by", *(f"{share} %" for share in SHARES), "worse at every step"]
    return f"{len(features)} images a side, encoder {ENCODER}.\n\n{table(header, rows)}"


def _cell(estimate: Estimate) -> str:
    error = estimate.standard_error
    return f"{estimate.value:.4g}" + (f" ± {error:.1g}" if error is not None else "")


def plot(found: Sequence[Answer], path: Path) -> None:
    """A panel a score, a line a corruption, 95 % intervals as bars."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(answer.score.name for answer in found))
    columns = 3
    lines = -(-len(names) // columns)
    mpl.rcParams.update({"svg.hashsalt": "known answers", "svg.fonttype": "none", "font.size": 9})
    figure, axes = plt.subplots(
        lines, columns, figsize=(10, 2.6 * lines), layout="constrained", squeeze=False
    )
    styles = dict(zip(CORRUPTIONS, ("o-", "s--", "^:"), strict=True))
    for axis, name in zip(axes.flat, names, strict=False):
        for answer in found:
            if answer.score.name != name:
                continue
            ends = np.array(
                [
                    (e.value - e.ci_low, e.ci_high - e.value)
                    if e.ci_low is not None and e.ci_high is not None
                    else (0.0, 0.0)
                    for e in answer.estimates
                ]
            ).T
            shift = 1.2 * (list(CORRUPTIONS).index(answer.corruption) - 1)
            axis.errorbar(
                [share + shift for share in SHARES],
                answer.values,
                yerr=ends.clip(0),
                fmt=styles[answer.corruption],
                capsize=2,
                markersize=4,
                label=answer.corruption,
            )
        better = "higher" if found_spec(found, name).higher_is_better else "lower"
        axis.set_xlabel("images replaced (%)")
        axis.set_ylabel(f"{name}\n({better} is better)")
        axis.set_xticks(SHARES)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def found_spec(found: Sequence[Answer], name: str) -> ScoreSpec:
    return next(answer.score for answer in found if answer.score.name == name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=544)
    parser.add_argument("--write", action="store_true", help="into docs/known_answers.md and .svg")
    parser.add_argument("--plot", type=Path, help="the plot alone, to this file")
    chosen = parser.parse_args()
    registry = load_registry()
    features = encode(chosen.images, registry)
    found = answers(features, registry)
    print(report(found, features))
    if chosen.plot:
        plot(found, chosen.plot)
    if chosen.write:
        plot(found, ROOT / "docs" / "known_answers.svg")
        write_between(ROOT / "docs" / "known_answers.md", "known-answers", report(found, features))
    failed = [answer for answer in found if not answer.as_it_should_be()]
    for answer in failed:
        print(f"not worse: {answer.score.name}, {answer.corruption}", file=sys.stderr)
    raise SystemExit(len(failed) > 0)


if __name__ == "__main__":
    main()
