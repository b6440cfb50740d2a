"""How often the intervals of memorisation scores accuse honest models, and what they cover.

    OMP_NUM_THREADS=1 python benchmarks/memorisation.py [--repeats 300]

Patients have 2.5 images on average; images follow their prompts. Printed for each excess: its mean
and standard deviation over draws, the root mean square standard error over that deviation, the
share of intervals that hold the mean, and the share that lies above 0. `blurred` images have half
the spread; of `half copies`, one in two is a training row.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from side_by_side import table

from chexgenbench.statistics import (
    Estimate,
    excess_below,
    members_excess,
    nearest,
    training_share,
)

Array = NDArray[np.float64]
RATE = 0.02


@dataclass(frozen=True)
class World:
    """Rows are a patient's part, a prompt's part and noise on a decaying spectrum."""

    d: int
    training: int
    held_out: int
    decay: float = 0.5
    spread: float = 1.0
    copies: float = 0.0

    def side(self, random: np.random.Generator, name: str, count: int) -> tuple[Array, Array, list]:
        of = np.repeat(np.arange(count), random.geometric(0.4, size=count))
        prompts = random.normal(size=(of.size, self.d))
        anatomy = random.normal(size=(count, self.d))[of]
        return self.rows(random, anatomy, prompts), prompts, [f"{name}{i}" for i in of]

    def rows(self, random: np.random.Generator, anatomy: Array, prompts: Array) -> Array:
        noise = random.normal(size=prompts.shape)
        mixed = np.sqrt(0.6) * anatomy + np.sqrt(0.3) * prompts + np.sqrt(0.1) * noise
        return mixed * (1 + np.arange(self.d)) ** -self.decay

    def images(self, random: np.random.Generator, prompts: Array, copied: Array) -> Array:
        made = self.spread * self.rows(random, random.normal(size=prompts.shape), prompts)
        return np.where(random.random(len(made))[:, None] < self.copies, copied, made)

    def draw(self, random: np.random.Generator) -> Iterator[tuple[str, Estimate]]:
        train, prompts, of_train = self.side(random, "t", self.training)
        held_out, asked, of_held_out = self.side(random, "h", self.held_out)
        fake = self.images(random, asked, train[random.integers(len(train), size=len(asked))])
        own = np.sort(random.choice(len(train), min(len(train), 120), replace=False))
        members = self.images(random, prompts[own], train[own])
        labels = {"groups_train": of_train, "groups_held_out": of_held_out}
        found, _ = excess_below(
            nearest(fake, train).distances[:, 0],
            nearest(held_out, train).distances[:, 0],
            rate=RATE,
            groups_fake=of_held_out,
            groups_held_out=of_held_out,
        )
        yield "replicated_rate", found.excess
        equal = training_share(
            train, held_out, fake, groups_fake=of_held_out, rate=RATE, repeats=5, **labels
        )
        yield "replicated_rate_equal_sizes", equal.replicated.excess
        yield "training_share", equal.share.excess
        both = members_excess(
            train,
            held_out,
            members,
            fake,
            own_members=own,
            own_others=np.arange(len(held_out)),
            rate=RATE,
            repeats=5,
            **labels,
        )
        yield "replicated_rate_members", both.replicated.excess
        yield "training_share_members", both.share.excess


WORLDS = {
    "honest": World(16, 500, 100),
    "honest, d = 64": World(64, 300, 60, decay=0.2),
    "honest, few training patients": World(8, 120, 100),
    "blurred": World(16, 500, 100, spread=0.5),
    "half copies": World(16, 500, 100, copies=0.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=300)
    chosen = parser.parse_args()
    lines = []
    for name, world in WORLDS.items():
        found: dict[str, list[Estimate]] = {}
        for stream in np.random.SeedSequence(0).spawn(chosen.repeats):
            for score, excess in world.draw(np.random.default_rng(stream)):
                found.setdefault(score, []).append(excess)
        for score, drawn in found.items():
            values = np.array([one.value for one in drawn])
            given = [one for one in drawn if one.ci_low is not None]
            errors = np.sqrt(np.mean([one.standard_error**2 for one in given]))
            held = np.mean([one.ci_low <= values.mean() <= one.ci_high for one in given])
            above = sum(one.ci_low > 0 for one in given) / len(drawn)
            lines.append(
                [
                    name,
                    f"`{score}`",
                    f"{values.mean():+.4f}",
                    f"{values.std(ddof=1):.4f}",
                    f"{errors / values.std(ddof=1):.2f}",
                    f"{100 * held:.1f}",
                    f"{100 * above:.1f}",
                ]
            )
            print(*lines[-1], flush=True)
    header = ["model", "excess of", "mean", "sd", "se / sd", "holds the mean %", "above 0 %"]
    print(table(header, lines))


if __name__ == "__main__":
    main()
