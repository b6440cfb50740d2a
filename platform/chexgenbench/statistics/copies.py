"""Whether generated rows repeat training rows, against what real rows do that were held out.

Held-out rows are of patients of whom the model has seen nothing. Where it copies nothing, patients
of the two sides can be exchanged, and every comparison here that takes equally many of both has a
known answer. Sizes decide: the nearest of 4,000 rows is nearer than the nearest of 512 with odds of
8 to 1 whatever the model does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chexgenbench.statistics.arrays import (
    EDGE,
    FloatArray,
    IntArray,
    blocks,
    order_by_content,
    squared_distances,
    vector,
)
from chexgenbench.statistics.estimate import Estimate
from chexgenbench.statistics.neighbours import row_array
from chexgenbench.statistics.sampling import (
    Groups,
    Influence,
    Units,
    interval,
    linear,
    units_of,
    withheld,
)

__all__ = [
    "CopyThreshold",
    "Excess",
    "SidesExcess",
    "copy_threshold",
    "excess_below",
    "members_excess",
    "rate_estimate",
    "training_share",
]

_MOST_GROUPS, _FEWEST_GROUPS = 20, 4
"""Groups of training patients in one cut: at most, and as many as there are patients for."""


@dataclass(frozen=True, slots=True)
class Excess:
    """A rate, what it is without copying, and how much it lies above that.

    Attributes:
        rate: Of the generated rows.
        control: Of the control.
        excess: ``rate - control``, whose interval knows the error of both.
        warning: Something a reader should know.
    """

    rate: Estimate
    control: float
    excess: Estimate
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class SidesExcess:
    """Images among training patients and among equally many held-out ones.

    Attributes:
        share: Share of images that are nearer to the one side than to the other.
        replicated: Share of images that are nearer to a row of the one side than a threshold.
    """

    share: Excess
    replicated: Excess


# --- below a calibrated threshold -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CopyThreshold:
    """A distance below which few rows lie that are no copies.

    Attributes:
        distance: Rows strictly nearer are taken for copies.
        rate: Expected share of held-out rows that are, k / (n + 1).
        rank: k, the rank of the held-out row that the distance is of.
        count: n, held-out rows.
    """

    distance: float
    rate: float
    rank: int
    count: int


def copy_threshold(held_out: ArrayLike, rate: float = 0.01) -> CopyThreshold:
    """The distance below which a share ``rate`` of rows lies that were held out.

    The k-th smallest distance with k = floor(rate (n + 1)), at least 1: whatever the distribution,
    another row like those n lies below it with chance k / (n + 1) (without ties).

    Args:
        held_out: Distance [n] of each held-out row to its nearest training row.
        rate: False matches that are put up with, in (0, 1).

    Raises:
        ValueError: no distances, NaN or infinity, a rate outside (0, 1).

    Source: Vovk, Gammerman and Shafer 2005, "Algorithmic Learning in a Random World" (the
    finite-sample quantile of conformal prediction).

    >>> copy_threshold([5.0, 3.0, 4.0, 9.0], rate=0.4)
    CopyThreshold(distance=4.0, rate=0.4, rank=2, count=4)
    """
    distances = np.sort(vector("held_out", held_out))
    if not 0.0 < rate < 1.0:
        raise ValueError(f"rate must lie in (0, 1), got {rate}")
    n = distances.size
    rank = max(1, min(int(rate * (n + 1) + 1e-9), n))
    return CopyThreshold(float(distances[rank - 1]), rank / (n + 1), rank, n)


def excess_below(
    fake: ArrayLike,
    held_out: ArrayLike,
    *,
    rate: float = 0.01,
    groups_fake: Groups = None,
    groups_held_out: Groups = None,
) -> tuple[Excess, CopyThreshold]:
    """Share of generated rows below :func:`copy_threshold`, and how much that is too many.

    Args:
        fake: Distance [m] of each generated row to its nearest training row.
        held_out: The same [n] of real rows that were held out.
        rate: False matches that are put up with.
        groups_fake: A label a row (patient, prompt): rows of one label are not independent.
        groups_held_out: The same for ``held_out``.

    Returns:
        The excess, and the threshold. ``excess.rate``: as :func:`rate_estimate`, at this threshold.
        ``excess.control``: k / (n + 1). ``excess.excess`` has an interval for q - p, where q and
        p are the shares of all generated and of all held-out rows below this very threshold, given
        the training rows: p is Beta(k, n + 1 - k) whatever the distribution (with n less where rows
        of a patient go together), and its ends are put together with those of q as if the sides
        were independent, which is the cautious side where an image and the real row of its prompt
        go together. For images like real ones q = p at every threshold, so the threshold's own
        error counts in full.

    Raises:
        ValueError: as :func:`copy_threshold` and :func:`rate_estimate`.

    Sources: Wilks 1941, "Determination of sample sizes for setting tolerance limits" (the Beta
    distribution); Zou and Donner 2008, "Construction of confidence limits about effect measures: a
    general approach" (putting ends together).

    >>> found, threshold = excess_below([0.0, 0.0, 7.0, 8.0], [5.0, 3.0, 4.0, 9.0], rate=0.4)
    >>> found.rate.value, found.control, found.excess.value
    (0.5, 0.4, 0.09999999999999998)
    """
    made = vector("fake", fake)
    kept = vector("held_out", held_out)
    threshold = copy_threshold(kept, rate)
    found = rate_estimate(made < threshold.distance, groups=groups_fake)
    below = (kept <= threshold.distance).astype(np.float64)
    units = units_of(0, kept.size, groups_fake=groups_held_out)
    size = _effective_size(below, units)
    share = threshold.rate
    ends = _beta(share * (size + 1), (1 - share) * (size + 1))
    warning = None
    if threshold.rate > rate * (1 + 1e-9):
        warning = (
            f"{kept.size} held-out rows give a false-match rate of 1 in {kept.size + 1} at best"
        )
    excess = _difference(
        found,
        share,
        ends,
        fake=(made < threshold.distance).astype(np.float64) - found.value,
        held_out=below - below.mean(),
        groups=(groups_fake, groups_held_out),
    )
    return Excess(found, share, excess, warning), threshold


def rate_estimate(values: ArrayLike, *, groups: Groups = None) -> Estimate:
    """Share of rows with some property, with an interval that holds at 0 and 1 too.

    Args:
        values: 0 or 1 a row [n], or a share in between.
        groups: A label a row (patient, prompt): rows of one label are not independent.

    Returns:
        Estimate in [0, 1]. The interval is Wilson's for the effective number of rows: as many
        independent rows as would have the cluster-robust variance, and where the share is 0 or 1
        the number of groups; its quantile is that of t with one less than the number of
        groups. Withheld for one group.

    Raises:
        ValueError: not one value a row, no rows, values outside [0, 1], labels that do not fit.

    Sources: Wilson 1927, "Probable inference, the law of succession, and statistical inference";
    Korn and Graubard 1998, "Confidence intervals for proportions with small expected number of
    positive counts estimated from survey data" (the effective size).

    >>> found = rate_estimate([1, 1, 1, 1, 1])
    >>> found.value, round(found.ci_low, 3), found.ci_high
    (1.0, 0.393, 1.0)
    """
    shares = vector("values", np.asarray(values, dtype=np.float64))
    if shares.min() < 0.0 or shares.max() > 1.0:
        raise ValueError("values: a share in [0, 1] a row expected")
    units = units_of(0, shares.size, groups_fake=groups)
    value = min(float(shares.mean()), 1.0)
    influence = linear(units, (shares - value) / shares.size)
    freedom = influence.degrees_of_freedom()
    if freedom < 1.0 - 1e-9:
        return interval(value, 0.0, freedom)
    low, high, error = _wilson(value, _effective_size(shares, units), freedom)
    return Estimate(value, error, low, high, influence=influence, degrees_of_freedom=freedom)


def _effective_size(shares: FloatArray, units: Units) -> float:
    """Independent rows that the rows are worth."""
    value = float(shares.mean())
    variance = linear(units, (shares - value) / shares.size).variance()
    if not 0.0 < value < 1.0 or variance == 0.0:
        return float(units.count)
    return value * (1 - value) / variance


def _wilson(value: float, size: float, freedom: float) -> tuple[float, float, float]:
    """Ends of Wilson's interval, and the standard error that has its width."""
    from scipy.special import stdtrit

    t = float(stdtrit(freedom, 0.975))
    middle = (value + t**2 / (2 * size)) / (1 + t**2 / size)
    half = t / (1 + t**2 / size) * np.sqrt(value * (1 - value) / size + t**2 / (4 * size**2))
    # At 0 and 1 the ends are exact, and rounding must not move them past the value.
    low, high = min(max(middle - half, 0.0), value), max(min(middle + half, 1.0), value)
    return float(low), float(high), float(half / t)


def _beta(a: float, b: float) -> tuple[float, float]:
    from scipy.stats import beta

    low, high = beta.ppf([0.025, 0.975], a, b)
    return float(low), float(high)


def _difference(
    rate: Estimate,
    control: float,
    ends: tuple[float, float],
    *,
    fake: FloatArray,
    held_out: FloatArray,
    groups: tuple[Groups, Groups],
    extra: float = 0.0,
    extra_freedom: float = np.inf,
) -> Estimate:
    """``rate - control`` with ends from the ends of both, and what each row contributed."""
    from scipy.special import stdtrit

    value = rate.value - control
    if rate.ci_low is None or rate.ci_high is None or rate.degrees_of_freedom is None:
        return withheld(value, rate.reason or "no interval of the rate")
    units = units_of(held_out.size, fake.size, groups_real=groups[1], groups_fake=groups[0])
    influence = linear(units, fake / fake.size, -held_out / held_out.size)
    more = float(stdtrit(extra_freedom, 0.975)) ** 2 * extra
    low = value - np.sqrt((rate.value - rate.ci_low) ** 2 + (ends[1] - control) ** 2 + more)
    high = value + np.sqrt((rate.ci_high - rate.value) ** 2 + (control - ends[0]) ** 2 + more)
    error = float(high - low) / (2 * float(stdtrit(rate.degrees_of_freedom, 0.975)))
    return Estimate(
        value,
        error,
        max(float(low), -1.0),
        min(float(high), 1.0),
        influence=replace(influence, extra=extra),
        degrees_of_freedom=rate.degrees_of_freedom,
    )


# --- nearer to training or to held-out rows -------------------------------------------------


def training_share(
    train: ArrayLike,
    held_out: ArrayLike,
    fake: ArrayLike,
    *,
    groups_train: Groups = None,
    groups_held_out: Groups = None,
    groups_fake: Groups = None,
    rate: float = 0.01,
    repeats: int = 10,
    seed: int = 0,
) -> SidesExcess:
    """How much nearer generated rows are to training rows than to as many held-out ones.

    Distances to the closest record (DCR) at equal set sizes: the patients of the training side are
    cut at random into groups of as many as the held-out side has (20 groups at most), one random
    row a patient stands for it, and each generated row is compared with each group. Without copying
    training and held-out patients can be exchanged and the share is 1/2, whatever the generated
    rows are: blurred, or all alike. Equal distances count 1/2.

    Args:
        train: Features [n, d] of the training rows, any real dtype (compared in float64).
        held_out: Features [h, d] of real rows of other patients.
        fake: Features [m, d].
        groups_train: A label a row (patient); without, every row is a patient of its own.
        groups_held_out: The same for ``held_out``.
        groups_fake: The same for ``fake``. An image that answers the prompt of a held-out patient
            is near that patient's rows because it follows the prompt, so those do not count for
            it, and of each group of training patients one does not count either.
        rate: False matches that the threshold of ``replicated`` puts up with, see
            :func:`copy_threshold`; it is calibrated in each cut on the held-out rows against the
            other held-out patients.
        repeats: Cuts, over which everything is averaged.
        seed: Draws the cuts. The order of the rows plays no part.

    Returns:
        ``share``: of rows nearer to the training group; ``control`` is 1/2. ``replicated``: of rows
        nearer to a row of the training group than the threshold; ``control`` is the same share for
        the held-out side, so the excess is 0 without copying, for blurred rows too. The
        intervals are for expectations over patients on all three sides: the error of the real
        sides is how much a value moves when each group of training patients in turn stands for the
        held-out ones, less what of that is due to the number of generated rows. Withheld with
        fewer than 4 training or 2 held-out patients.

        Copies of training rows, of any row alike, give a share of 1/2 and half the part of the
        training patients that a group holds: this sees little where the training side is large.
        Whether the two real sides are of one population it does not ask; where they are not, the
        controls are not right either.

    Raises:
        ValueError: NaN or infinity, different d, no rows, labels that do not fit, a patient on
            both real sides, fewer than 2 held-out patients, a rate outside (0, 1), or fewer than 1
            repeat.

    Sources: Platzer and Reutterer 2021 (arXiv 2104.00635), "Holdout-based empirical assessment of
    mixed-type synthetic data" (the share); Owen 2007, "The pigeonhole bootstrap" (the error of a
    mean over two crossed sides).

    >>> import numpy as np
    >>> rows = np.random.default_rng(0).normal(size=(900, 4))
    >>> honest = training_share(rows[:500], rows[500:600], rows[600:]).share.excess
    >>> honest.ci_low < 0 < honest.ci_high
    True
    """
    real = _RealSides.of(train, held_out, groups_train, groups_held_out, repeats)
    made = real.queries("fake", fake, groups_fake)
    tests = real.held_out_queries()
    share, below_t, below_h = (np.zeros(len(made.rows)) for _ in range(3))
    noise = [0.0, 0.0]  # of share and below
    for cut in real.cuts(repeats, seed):
        near, edge = real.distances(made, cut).fewer, real.edge(tests, cut, rate)
        trained, below = near[:, :-1], (near < edge).astype(np.float64)
        share += _nearer(trained, near[:, -1:], made.norms).mean(axis=1)
        below_t += below[:, :-1].mean(axis=1)
        below_h += below[:, -1]
        # Each group of training patients in turn as the held-out ones.
        moved = [
            _nearer(np.delete(trained, b, axis=1), trained[:, b : b + 1], made.norms).mean(axis=1)
            for b in range(real.groups)
        ]
        noise[0] += real.noise([(np.stack(moved, axis=1), made.units)]) / repeats
        noise[1] += real.noise([(_others_less_own(below[:, :-1]), made.units)]) / repeats
    share, below_t, below_h = share / repeats, below_t / repeats, below_h / repeats
    value = float(share.mean())
    influence = linear(made.units, (share - value) / share.size)
    nearer = Excess(
        real.estimate(value, influence, noise[0], 0.0),
        0.5,
        real.estimate(value, influence, noise[0], 0.5),
    )
    labels = made.units.fake, made.units.fake
    return SidesExcess(nearer, _two_rates(below_t, below_h, labels, noise[1], real.groups - 1))


def members_excess(
    train: ArrayLike,
    held_out: ArrayLike,
    members: ArrayLike,
    others: ArrayLike,
    *,
    own_members: ArrayLike,
    own_others: ArrayLike,
    groups_train: Groups = None,
    groups_held_out: Groups = None,
    rate: float = 0.01,
    repeats: int = 10,
    seed: int = 0,
) -> SidesExcess:
    """How much nearer images of training prompts are to their side than those of held-out prompts.

    An image that follows its prompt is near the real image of that prompt without any copying, and
    equally so on both sides. So each image of a training prompt has its own row and a group of
    training patients less one to be near to; each image of a held-out prompt its own row and the
    held-out patients less one; the groups are those of :func:`training_share`.

    Args:
        train: Features [n, d] of the training rows, any real dtype (compared in float64).
        held_out: Features [h, d] of real rows of other patients.
        members: Features [m, d] of images of training prompts.
        others: Features [o, d] of images that the same model made of held-out prompts.
        own_members: int [m], the row of ``train`` whose prompt each image answers.
        own_others: int [o], the row of ``held_out``.
        groups_train: A label a row (patient); without, every row is a patient of its own. Images
            of one patient's prompts are not independent.
        groups_held_out: The same for ``held_out``.
        rate: False matches that the threshold puts up with, see :func:`copy_threshold`; it is
            calibrated in each cut on the held-out rows against the other held-out patients.
        repeats: Cuts, over which everything is averaged.
        seed: Draws the cuts. The order of the rows plays no part.

    Returns:
        Two rates of the members, with those of ``others`` by the same procedure as controls. The
        excess is 0 for a model that treats its training prompts as any others; its interval is
        over patients on all sides, as in :func:`training_share`.

    Raises:
        ValueError: NaN or infinity, different d, no rows, labels that do not fit, a patient on
            both real sides, an own row that does not exist, fewer than 2 held-out patients, a rate
            outside (0, 1), or fewer than 1 repeat.

    >>> import numpy as np
    >>> rows = np.random.default_rng(0).normal(size=(700, 4))
    >>> train, held_out, other = rows[:500], rows[500:600], rows[600:]
    >>> own = np.arange(100)
    >>> found = members_excess(
    ...     train, held_out, train[:100], other, own_members=own, own_others=own
    ... )
    >>> found.replicated.rate.value, found.replicated.excess.ci_low > 0.8
    (1.0, True)
    """
    real = _RealSides.of(train, held_out, groups_train, groups_held_out, repeats)
    ins = real.prompted("members", members, own_members, real.train, real.train_codes)
    outs = real.prompted("others", others, own_others, real.held_out, real.held_out_codes)
    tests = real.held_out_queries()
    share, below = ([np.zeros(len(side.rows)) for side in (ins, outs)] for _ in range(2))
    noise = [0.0, 0.0]  # of share and below
    each = range(real.groups)
    for cut in real.cuts(repeats, seed):
        edge = real.edge(tests, cut, rate)
        near_in, near_out = real.distances(ins, cut), real.distances(outs, cut)
        ally_in = np.minimum(near_in.fewer[:, :-1], ins.own[:, None])
        ally_out = np.minimum(near_out.fewer, outs.own[:, None])
        share[0] += _nearer(ally_in, near_in.all[:, -1:], ins.norms).mean(axis=1)
        share[1] += _nearer(ally_out[:, -1:], near_out.all[:, :-1], outs.norms).mean(axis=1)
        below[0] += (ally_in < edge).mean(axis=1)
        below[1] += ally_out[:, -1] < edge
        # Each group of training patients in turn as the held-out ones.
        moved_in = [
            _nearer(np.delete(ally_in, b, axis=1), near_in.all[:, b : b + 1], ins.norms).mean(
                axis=1
            )
            for b in each
        ]
        moved_out = [
            _nearer(
                ally_out[:, b : b + 1], np.delete(near_out.all[:, :-1], b, axis=1), outs.norms
            ).mean(axis=1)
            for b in each
        ]
        noise[0] += (
            real.noise(
                [
                    (np.stack(moved_in, axis=1), ins.units),
                    (-np.stack(moved_out, axis=1), outs.units),
                ]
            )
            / repeats
        )
        below_in = [(np.delete(ally_in, b, axis=1) < edge).mean(axis=1) for b in each]
        below_out = (ally_out[:, :-1] < edge).astype(np.float64)
        noise[1] += (
            real.noise([(np.stack(below_in, axis=1), ins.units), (-below_out, outs.units)])
            / repeats
        )
    share, below = ([values / repeats for values in both] for both in (share, below))
    groups = ins.codes, outs.codes
    both = units_of(len(outs.rows), len(ins.rows), groups_real=outs.codes, groups_fake=ins.codes)
    means = [float(values.mean()) for values in share]
    centred = [(values - values.mean()) / values.size for values in share]
    nearer = Excess(
        real.estimate(means[0], linear(ins.units, centred[0]), noise[0], 0.0),
        means[1],
        real.estimate(means[0], linear(both, centred[0], -centred[1]), noise[0], means[1]),
    )
    return SidesExcess(nearer, _two_rates(below[0], below[1], groups, noise[1], real.groups - 1))


def _others_less_own(values: FloatArray) -> FloatArray:
    """For each column the mean [m, j] of the other columns less the column."""
    others: FloatArray = (values.sum(axis=1, keepdims=True) - values) / (values.shape[1] - 1)
    return others - values


def _two_rates(
    values: FloatArray,
    controls: FloatArray,
    groups: tuple[Groups, Groups],
    extra: float,
    extra_freedom: float,
) -> Excess:
    """The mean of the values, and how far it lies above that of the controls."""
    found = rate_estimate(values, groups=groups[0])
    control = rate_estimate(controls, groups=groups[1])
    if control.ci_low is None or control.ci_high is None:
        reason = control.reason or "no interval of the control"
        return Excess(found, control.value, withheld(found.value - control.value, reason))
    excess = _difference(
        found,
        control.value,
        (control.ci_low, control.ci_high),
        fake=values - found.value,
        held_out=controls - control.value,
        groups=groups,
        extra=extra,
        extra_freedom=extra_freedom,
    )
    return Excess(found, control.value, excess)


class _Near(NamedTuple):
    """Squared distances [m, groups + 1] to the nearest row of each group, the held-out one last.

    Attributes:
        all: Of a group without the query's own patient.
        fewer: The same, and where the patient is not in the group, without the group's first row:
            so always of one row fewer than the group has.
    """

    all: FloatArray
    fewer: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class _Queries:
    """Rows whose neighbours are looked for, about the centre in blocks.

    Attributes:
        rows: [m, d] in their own dtype.
        codes: Number of the real patient whose prompt each row answers, -1 for none.
        norms: Squared norms [m] about the centre.
        own: Squared distance [m] to the own row; infinite where none counts.
    """

    rows: NDArray[Any]
    codes: IntArray
    units: Units
    norms: FloatArray
    own: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class _RealSides:
    """Training and held-out rows, and how they are cut into groups of equally many patients.

    Attributes:
        train_codes, held_out_codes: Number of the patient of each row.
        train_rows, held_out_rows: The rows of each patient, both in an order of their content.
        size: Patients of a group.
        groups: Groups of training patients in a cut.
    """

    train: NDArray[Any]
    held_out: NDArray[Any]
    numbers: dict[object, int]
    train_codes: IntArray
    held_out_codes: IntArray
    train_rows: list[IntArray]
    held_out_rows: list[IntArray]
    centre: FloatArray
    size: int
    groups: int

    @classmethod
    def of(
        cls,
        train: ArrayLike,
        held_out: ArrayLike,
        groups_train: Groups,
        groups_held_out: Groups,
        repeats: int,
    ) -> _RealSides:
        if isinstance(repeats, bool) or repeats != int(repeats) or repeats < 1:
            raise ValueError(f"repeats must be a whole number of at least 1, got {repeats}")
        t, h = row_array("train", train), row_array("held_out", held_out)
        if t.shape[1] != h.shape[1]:
            raise ValueError(f"train has {t.shape[1]} features a row and held_out {h.shape[1]}")
        numbers: dict[object, int] = {}
        of_t = _numbered("groups_train", groups_train, len(t), numbers)
        known = len(numbers)
        of_h = _numbered("groups_held_out", groups_held_out, len(h), numbers)
        if of_h.min() < known:
            shared = np.unique(of_h[of_h < known]).size
            raise ValueError(f"{shared} patient(s) are on both sides, of train and of held_out")
        rows_t, rows_h = _by_patient(t, of_t), _by_patient(h, of_h)
        size = min(len(rows_h), len(rows_t) // _FEWEST_GROUPS)
        if size < 2:
            raise ValueError(
                f"rows of at least 2 held-out and {2 * _FEWEST_GROUPS} training patients needed, "
                f"got {len(rows_h)} and {len(rows_t)}"
            )
        groups = min(len(rows_t) // size, _MOST_GROUPS)
        centre = np.median(h.astype(np.float64), axis=0)
        return cls(t, h, numbers, of_t, of_h, rows_t, rows_h, centre, size, groups)

    def queries(self, name: str, rows: ArrayLike, labels: Groups) -> _Queries:
        """Rows that answer prompts of the patients named, or of nobody known."""
        x = self._fitting(name, rows)
        codes = np.full(len(x), -1, dtype=np.int64)
        units = units_of(0, len(x), groups_fake=labels)
        if labels is not None:
            listed = np.asarray(labels).tolist()
            codes = np.array([self.numbers.get(label, -1) for label in listed], dtype=np.int64)
        return _Queries(x, codes, units, self._norms(x), np.full(len(x), np.inf))

    def held_out_queries(self) -> _Queries:
        """The held-out rows themselves."""
        x, codes = self.held_out, self.held_out_codes
        units = units_of(0, len(x), groups_fake=codes)
        return _Queries(x, codes, units, self._norms(x), np.full(len(x), np.inf))

    def prompted(
        self, name: str, rows: ArrayLike, own: ArrayLike, real: NDArray[Any], patients: IntArray
    ) -> _Queries:
        """Rows that answer the prompts of rows ``own`` of ``real``."""
        x = self._fitting(name, rows)
        answered = np.asarray(own)
        if answered.shape != (len(x),) or answered.dtype.kind not in "iu":
            raise ValueError(f"own_{name}: expected the number of a real row for each row")
        if answered.min() < 0 or answered.max() >= len(real):
            raise ValueError(f"own_{name}: real rows are numbered 0 to {len(real) - 1}")
        codes = patients[answered]
        units = units_of(0, len(x), groups_fake=codes)
        gaps = np.concatenate(
            [
                ((x[part].astype(np.float64) - real[answered[part]]) ** 2).sum(axis=1)
                for part in blocks(len(x), 3 * x.shape[1])
            ]
        )
        return _Queries(x, codes, units, self._norms(x), gaps)

    def cuts(self, repeats: int, seed: int) -> Iterator[NDArray[Any]]:
        """Rows [groups + 1, size, d] of each cut: one random row of each patient drawn."""
        random = np.random.default_rng(seed)

        def drawn(patients: IntArray, rows: list[IntArray]) -> list[int]:
            return [int(rows[p][random.integers(rows[p].size)]) for p in patients.tolist()]

        for _ in range(repeats):
            trained = random.permutation(len(self.train_rows))[: self.groups * self.size]
            kept = random.permutation(len(self.held_out_rows))[: self.size]
            yield np.array(
                [*drawn(trained, self.train_rows), *drawn(kept, self.held_out_rows)],
                dtype=np.int64,
            ).reshape(self.groups + 1, self.size)

    def edge(self, tests: _Queries, cut: IntArray, rate: float) -> float:
        """The squared distance below which a share of held-out rows has another patient."""
        return copy_threshold(self.distances(tests, cut).fewer[:, -1], rate).distance

    def distances(self, queries: _Queries, cut: IntArray) -> _Near:
        chosen = np.concatenate([self.train[cut[:-1].ravel()], self.held_out[cut[-1]]])
        y = chosen.astype(np.float64) - self.centre
        patients = np.concatenate(
            [self.train_codes[cut[:-1].ravel()], self.held_out_codes[cut[-1]]]
        )
        norms, shape = (y**2).sum(axis=1), (-1, self.groups + 1, self.size)
        nearest, fewer = (np.empty((len(queries.rows), self.groups + 1)) for _ in range(2))
        for part in blocks(len(queries.rows), 2 * len(y)):
            x = queries.rows[part].astype(np.float64) - self.centre
            squares = squared_distances(x, y, norms)
            own = queries.codes[part, None] == patients
            squares[own] = np.inf
            squares, own = squares.reshape(shape), own.reshape(shape)
            nearest[part] = squares.min(axis=2)
            others = squares[:, :, 1:].min(axis=2, initial=np.inf)
            fewer[part] = np.where(own.any(axis=2), nearest[part], others)
        return _Near(np.maximum(nearest, 0.0), np.maximum(fewer, 0.0))

    def noise(self, parts: list[tuple[FloatArray, Units]]) -> float:
        """Variance of a sum of means over queries that is due to the patients on the real sides.

        Args:
            parts: Values [m, groups] of each side's queries, with each group of training patients
                in turn as the held-out ones.

        With j groups a group's mean has variance s + e / m. The mean over all j less a lone group
        has (j / (j - 1))^2 s, and what is estimated, the mean over j training groups less that over
        the held-out patients, s (1 / j + group size / held-out patients).
        """
        means, own = np.zeros(self.groups), 0.0
        for values, units in parts:
            means += values.mean(axis=0)
            rest = values - values.mean(axis=1, keepdims=True)
            rest = (rest - rest.mean(axis=0)) / len(rest)
            sums = np.zeros((units.count, self.groups))
            np.add.at(sums, units.fake, rest)
            own += float((sums**2).sum()) / (self.groups - 1)
        found = max(float(means.var(ddof=1)) - own, 0.0)
        share = self.size / len(self.held_out_rows)
        return found * (1 - 1 / self.groups) ** 2 * (1 / self.groups + share)

    def estimate(
        self, value: float, influence: Influence, noise: float, control: float
    ) -> Estimate:
        """The value less its control, with the error of all sides."""
        made, freedom = influence.variance(), influence.degrees_of_freedom()
        influence = replace(influence, extra=noise)
        if freedom < 1.0 - 1e-9:
            return interval(value - control, made, freedom)
        if made + noise > 0.0:
            # Satterthwaite's, each side by its own.
            doubt = made**2 / freedom + noise**2 / (self.groups - 1)
            freedom = max((made + noise) ** 2 / doubt, 1.0)
        found = interval(value - control, made + noise, freedom, low=-control, high=1.0 - control)
        return replace(found, influence=influence)

    def _fitting(self, name: str, rows: ArrayLike) -> NDArray[Any]:
        x = row_array(name, rows)
        if x.shape[1] != self.train.shape[1]:
            raise ValueError(
                f"{name} has {x.shape[1]} features a row and train {self.train.shape[1]}"
            )
        return x

    def _norms(self, x: NDArray[Any]) -> FloatArray:
        return np.concatenate(
            [
                ((x[part].astype(np.float64) - self.centre) ** 2).sum(axis=1)
                for part in blocks(len(x), 2 * x.shape[1])
            ]
        )


def _nearer(a: FloatArray, b: FloatArray, norms: FloatArray) -> FloatArray:
    """1 where the squared distance a is smaller than b, 1/2 where they are equal, else 0.

    Rounding is a share of the squared norms, and a row that far away has a norm of at most that of
    the query and the distance.
    """
    with np.errstate(invalid="ignore"):  # both infinite where no row is left: equal
        reach = (np.sqrt(norms)[:, None] + np.sqrt(np.minimum(a, b))) ** 2
        slack = 2 * EDGE * (norms[:, None] + reach)
        return np.where(a < b - slack, 1.0, np.where(b < a - slack, 0.0, 0.5))


def _numbered(name: str, groups: Groups, rows: int, numbers: dict[object, int]) -> IntArray:
    """Numbers of the labels; without labels each row has one of its own."""
    listed = [(name, i) for i in range(rows)] if groups is None else np.asarray(groups).tolist()
    if not isinstance(listed, list) or len(listed) != rows:
        raise ValueError(f"{name}: expected one label for each of {rows} rows")
    return np.array([numbers.setdefault(one, len(numbers)) for one in listed], dtype=np.int64)


def _by_patient(rows: NDArray[Any], patients: IntArray) -> list[IntArray]:
    """The rows of each patient; patients and rows in an order of their content."""
    found: dict[int, list[int]] = {}
    for at in order_by_content(rows).tolist():
        found.setdefault(int(patients[at]), []).append(at)
    return [np.array(members, dtype=np.int64) for members in found.values()]
