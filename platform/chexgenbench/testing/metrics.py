"""Checks of a metric: known answers on sides that the kit draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from chexgenbench.errors import ChexGenBenchError, UserError
from chexgenbench.statistics import Estimate
from chexgenbench.testing.common import shorten
from chexgenbench.testing.results import Fault, Skip
from chexgenbench.testing.subject import Subject
from chexgenbench.testing.world import ROWS, WIDTH, read_only, sample
from chexgenbench.types import FINDINGS, ImageNeed, NotApplicable, Sample, ScoreSpec, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chexgenbench.types import ImageSet, TaskResult

DEGREES = (0.0, 1 / 3, 2 / 3, 1.0)
"""How far the generated side is damaged."""

_SLACK = 0.1
"""Share of the whole change by which a step may go the other way: sides are samples."""

_ROUNDING = 4.0
"""Times that rounding may move a score further than a few draws of it did."""

_FEWEST = ((0, 1), (1, 1), (0, 5), (2, 2), (3, 3), (5, 1), (1, 5))
"""Images a side, real and generated: subsets of rare findings are this small."""

Values = dict[str, float]


def outputs(subject: Subject) -> dict[str, int]:
    """Name and width of what an encoder that the metric asks for may return."""
    wanted = subject.spec.output
    if wanted == "features":
        return {"features": WIDTH}
    if wanted == "probabilities":
        return {"features": WIDTH, "probabilities": len(FINDINGS)}
    if subject.origin is not None:
        # Another output has meaning to one metric and one encoder alone; its width is declared.
        from chexgenbench.registry import load_registry

        files = [_path(file) for file in subject.origin.files]
        for plugin in load_registry(files).encoders.values():
            if wanted in plugin.spec.outputs:
                return dict(plugin.spec.outputs)
    return {"features": WIDTH, str(wanted): WIDTH}


def _path(file: str) -> Any:
    from pathlib import Path

    return Path(file)


def side(subject: Subject, degree: float = 0.0, *, seed: int = 2, kind: str = "unlike") -> Sample:
    """Rows of one side, without the text where the metric does not ask for it."""
    drawn = sample(outputs(subject), degree, seed=seed, kind=kind)
    return read_only(drawn if subject.spec.text else replace(drawn, text=None))


def real_side(subject: Subject) -> Sample:
    return side(subject, seed=1)


def estimates(
    subject: Subject, real: Sample, fake: Sample, seed: int = 0
) -> dict[str, Estimate] | str:
    """What a set metric says, or why it is not applicable."""
    metric = subject.instance if seed == 0 else _seeded(subject, seed)
    try:
        found = metric.score(real, fake)
    except NotApplicable as error:
        return str(error) or "NotApplicable without a reason"
    except Exception as error:
        raise Fault(
            f"score() of {len(real)} real and {len(fake)} generated rows raises "
            f"{type(error).__name__}: {error}",
            "raise NotApplicable(reason) where the sides are too small or degenerate",
        ) from error
    if not isinstance(found, Mapping):
        raise Fault(f"score() returns a {type(found).__name__}, not a mapping of name to Estimate")
    return dict(found)


def _seeded(subject: Subject, seed: int) -> Any:
    return subject.plugin.create(subject.parameters, seed)


def rows(subject: Subject, fake: Sample) -> dict[str, NDArray[np.float64]]:
    """What a sample metric says of each row."""
    found = subject.instance.values(fake)
    if not isinstance(found, Mapping):
        raise Fault(f"values() returns a {type(found).__name__}, not a mapping of name to values")
    arrays = {name: np.asarray(column, np.float64) for name, column in found.items()}
    for name, array in arrays.items():
        if array.shape != (len(fake),):
            raise Fault(
                f"{name!r} has shape {list(array.shape)} for {len(fake)} images",
                "return one value an image, in order",
            )
    return arrays


def numbers(subject: Subject, real: Sample, fake: Sample, seed: int = 0) -> Values | str:
    """Score name to value; of a sample metric the mean, as the platform takes it."""
    if subject.spec.metric == "sample":
        return {name: float(array.mean()) for name, array in rows(subject, fake).items()}
    found = estimates(subject, real, fake, seed)
    return found if isinstance(found, str) else {name: e.value for name, e in found.items()}


def _not_a_task(subject: Subject) -> None:
    if subject.spec.metric == "task":
        raise Skip("a task metric works on images of its own choice")


def _known(subject: Subject, real: Sample, fake: Sample) -> Values:
    """`numbers` of sides that are large enough for any metric."""
    found = numbers(subject, real, fake)
    if isinstance(found, str):
        raise Fault(f"not applicable to {len(real)} real and {len(fake)} generated rows: {found}")
    return found


def scores(subject: Subject) -> str:
    """All that is declared is returned, finite and in its range, at every degree of damage."""
    _not_a_task(subject)
    real = real_side(subject)
    seen: dict[str, list[float]] = {}
    for degree in DEGREES:
        fake = side(subject, degree)
        found = _known(subject, real, fake)
        _complete(subject, found)
        for declared in subject.spec.scores:
            _in_range(declared, found[declared.name], f"of rows damaged by {degree:.2f}")
            if subject.spec.metric == "sample":
                array = rows(subject, fake)[declared.name]
                _in_range(declared, float(array.min()), "of an image")
                _in_range(declared, float(array.max()), "of an image")
            seen.setdefault(declared.name, []).append(found[declared.name])
    return "; ".join(f"{name} {min(v):.4g} to {max(v):.4g}" for name, v in seen.items())


def _complete(subject: Subject, found: Mapping[str, Any]) -> None:
    declared = {each.name for each in subject.spec.scores}
    if set(found) != declared:
        raise Fault(
            f"it returns {shorten(sorted(found)) or 'nothing'} and declares "
            f"{shorten(sorted(declared))}",
            "name each number in scores=(ScoreSpec(name=...), ...)",
        )


def _in_range(declared: ScoreSpec, value: float, what: str) -> None:
    if not math.isfinite(value):
        raise Fault(f"{declared.name} {what} is {value}", "raise NotApplicable(reason) instead")
    if not declared.holds(value):
        raise Fault(
            f"{declared.name} {what} is {value:.6g}, outside of "
            f"{declared.lowest:g} to {declared.highest:g}",
            "correct lowest and highest of its ScoreSpec, or the value",
        )


def direction(subject: Subject) -> str:
    """Better for real-like rows than for others, at each degree of damage."""
    _not_a_task(subject)
    said = []
    ladders = {kind: _ladder(subject, kind) for kind in ("unlike", "collapse")}
    same = None
    if subject.spec.metric == "set":
        real = real_side(subject)
        same = numbers(subject, real, replace(real))
    for declared in subject.spec.scores:
        name = declared.name
        # What moves rows away is asked first: a smaller set of images may look more precise.
        kind = next((k for k, ladder in ladders.items() if _moves(ladder[name])), None)
        if kind is None:
            raise Fault(
                f"{name} stays {ladders['unlike'][name][0]:.6g} whatever is done to the images",
                "a score must say something about the generated side",
            )
        ladder = ladders[kind][name]
        worse = -1.0 if declared.higher_is_better else 1.0
        change = worse * (ladder[-1] - ladder[0])
        shown = " -> ".join(f"{value:.4g}" for value in ladder)
        what = "are unlike real ones" if kind == "unlike" else "are all one image"
        if change < 0:
            raise Fault(
                f"{name} gets better the more the images {what}: {shown}, and "
                f"higher_is_better={declared.higher_is_better}",
                "correct higher_is_better, the sign of the score, or which side is which; where "
                "a score is better for images unlike the real ones, leave this check out: "
                "--skip direction",
            )
        steps = worse * np.diff(ladder)
        if steps.min() < -_SLACK * change:
            raise Fault(f"{name} is not monotone over degrees of damage: {shown}")
        if isinstance(same, dict) and worse * (ladder[-1] - same[name]) < 0:
            raise Fault(
                f"{name} of two equal sides is {same[name]:.4g}, worse than {ladder[-1]:.4g} of "
                f"images that {what}"
            )
        said.append(f"{name} {shown}")
    return "; ".join(said)


def _ladder(subject: Subject, kind: str) -> dict[str, list[float]]:
    real = real_side(subject)
    found = [_known(subject, real, side(subject, degree, kind=kind)) for degree in DEGREES]
    for each in found:
        _complete(subject, each)
    return {each.name: [step[each.name] for step in found] for each in subject.spec.scores}


def _moves(ladder: Sequence[float]) -> bool:
    return abs(ladder[-1] - ladder[0]) > 1e-6 * max(1.0, *map(abs, ladder))


def repeats(subject: Subject) -> str:
    """Equal sides and seeds give equal scores, and the sides are left as they were."""
    _not_a_task(subject)
    real, fake = real_side(subject), side(subject)
    first = _known(subject, real, fake)
    random_state = np.random.get_state()  # noqa: NPY002
    np.random.rand(7)  # noqa: NPY002
    again = numbers(subject, real, fake)
    np.random.set_state(random_state)  # noqa: NPY002
    for name, value in first.items():
        other = again[name] if isinstance(again, dict) else math.nan
        if value != other:
            raise Fault(
                f"{name} is {value:.9g} and then {other:.9g} of the same rows",
                "draw from numpy.random.default_rng(self.seed), and keep nothing between calls",
            )
    return ""


def order(subject: Subject) -> str:
    """Rows in another order give the same score.

    Each generated row is near the real one of its prompt, so that pairing by position shows. A
    metric that draws rows, or divides them into parts, may move within its own error, or as far as
    another seed moves it; one that adds up in float32, as far as its sums round.
    """
    _not_a_task(subject)
    real = real_side(subject)
    fresh = side(subject)
    near = {
        name: (0.8 * real.outputs[name] + 0.2 * drawn).astype(np.float32)
        for name, drawn in fresh.outputs.items()
    }
    fake = replace(fresh, outputs=near)
    mixed = [np.random.default_rng(i).permutation(ROWS) for i in (1, 2)]
    if subject.spec.metric == "sample":
        straight, turned = rows(subject, fake), rows(subject, fake.take(mixed[1]))
        for name, array in straight.items():
            if not _same_rows(subject, fake, name, array[mixed[1]], turned[name]):
                raise Fault(
                    f"{name} of an image depends on the order of the images",
                    "a value may depend on its own row alone",
                )
        return ""
    first = estimates(subject, real, fake)
    other = estimates(subject, real.take(mixed[0]), fake.take(mixed[1]))
    if isinstance(first, str) or isinstance(other, str):
        raise Skip(f"not applicable to {ROWS} rows a side")

    def spread(name: str, value: float) -> float:
        """How far other seeds move a score."""
        seeds = [numbers(subject, real, fake, seed) for seed in range(1, 6)]
        return max((abs(each[name] - value) for each in seeds if isinstance(each, dict)), default=0)

    moved = []
    for name, estimate in first.items():
        far = abs(estimate.value - other[name].value)
        if far <= 1e-6 * max(abs(estimate.value), 1e-3):
            continue
        if far <= _ROUNDING * _rounding(subject, real, fake, name, estimate.value):
            continue
        if far > 3 * max(estimate.standard_error or 0.0, spread(name, estimate.value)):
            raise Fault(
                f"{name} is {estimate.value:.6g}, and {other[name].value:.6g} with the rows in "
                "another order",
                "row i of one side is not the real image of row i of the other: use "
                "Sample.answers()",
            )
        moved.append(name)
    return f"{', '.join(moved)} moves, within its error or as by another seed" if moved else ""


def _rounded(side: Sample, terms: int, seed: int) -> Sample:
    """A side whose values moved as far as a float32 sum of `terms` of them may round.

    Such a sum, in whatever order, is the exact one of terms that each moved by at most `terms`
    times the type's precision (Higham, "Accuracy and Stability of Numerical Algorithms", section
    4.2). So this says of any score, whatever its unit, what its sums alone can do to it.
    """
    random = np.random.default_rng(seed)
    most = terms * float(np.finfo(np.float32).eps)

    def moved(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(values * (1 + most * random.uniform(-1, 1, values.shape)), np.float32)

    return replace(
        side,
        outputs={name: moved(values) for name, values in side.outputs.items()},
        text=None if side.text is None else moved(side.text),
    )


def _rounding(subject: Subject, real: Sample, fake: Sample, name: str, value: float) -> float:
    """How far the rounding of float32 sums over the rows moves a score of a set metric."""
    most = 0.0
    for seed in range(3):
        sides = _rounded(real, len(real), seed), _rounded(fake, len(fake), 10 + seed)
        with suppress(Fault):  # it may refuse rows that are no encoder's
            found = numbers(subject, *sides)
            if isinstance(found, dict):
                most = max(most, abs(found[name] - value))
    return most


def _same_rows(
    subject: Subject,
    fake: Sample,
    name: str,
    one: NDArray[np.float64],
    other: NDArray[np.float64],
) -> bool:
    """Whether values of images are equal, but for the rounding of sums over a row's features."""
    if np.allclose(one, other, rtol=1e-6, atol=1e-9):
        return True
    before = rows(subject, fake)[name]
    after = rows(subject, _rounded(fake, max(v.shape[1] for v in fake.outputs.values()), 1))[name]
    return bool(np.allclose(one, other, rtol=1e-6, atol=_ROUNDING * np.abs(after - before).max()))


def alone(subject: Subject) -> str:
    """A value of an image does not depend on the others: the platform averages any subset."""
    if subject.spec.metric != "sample":
        raise Skip("for sample metrics")
    fake = side(subject, 0.2)
    whole = rows(subject, fake)
    index = np.arange(0, ROWS, 7)
    part = rows(subject, fake.take(index))
    for name, array in whole.items():
        if not _same_rows(subject, fake, name, array[index], part[name]):
            raise Fault(
                f"{name} of an image depends on the other images",
                "make it a set metric, or normalise by fixed numbers",
            )
    return ""


def small(subject: Subject) -> str:
    """Few images give a score or a reason, and no crash."""
    _not_a_task(subject)
    real, fake = real_side(subject), side(subject)
    if subject.spec.metric == "sample":
        for count in (1, 2):
            found = rows(subject, fake.take(np.arange(count)))
            if not all(np.isfinite(array).all() for array in found.values()):
                raise Fault(f"of {count} images a value is NaN or infinite")
        return "values of 1 image"
    reasons = set()
    for n_real, n_fake in _FEWEST:
        some = estimates(subject, real.take(np.arange(n_real)), fake.take(np.arange(n_fake)))
        if isinstance(some, str):
            if some == "NotApplicable without a reason":
                raise Fault(
                    f"{n_real} real and {n_fake} generated images: {some}",
                    "say what is needed and what there is",
                )
            reasons.add((n_real, n_fake))
            continue
        for name, estimate in some.items():
            if not math.isfinite(estimate.value):
                raise Fault(
                    f"{name} of {n_real} real and {n_fake} generated images is {estimate.value}",
                    "raise NotApplicable(reason) where the sides are too small",
                )
    return f"a reason for {len(reasons)} of {len(_FEWEST)} small subsets"


def interval(subject: Subject) -> str:
    """An estimate has an interval about its value, or says why there is none."""
    if subject.spec.metric != "set":
        raise Skip("the platform takes the interval of a sample or task metric's mean, or its own")
    found = estimates(subject, real_side(subject), side(subject, 0.2))
    if isinstance(found, str):
        raise Fault(f"not applicable to {ROWS} rows a side: {found}")
    said = []
    for name, estimate in found.items():
        _estimate(name, estimate)
        said.append(name if estimate.ci_low is not None else f"{name}: none, {estimate.reason}")
    return "; ".join(said)


def _estimate(name: str, found: object) -> None:
    hint = "see chexgenbench.statistics.Estimate; mean_estimate() makes one of values"
    if not isinstance(found, Estimate):
        raise Fault(f"{name} is a {type(found).__name__}, not an Estimate", hint)
    ends = (found.standard_error, found.ci_low, found.ci_high)
    if found.ci_low is None or found.ci_high is None:
        if not (found.reason or "").strip():
            raise Fault(f"{name} has neither an interval nor a reason why not", hint)
        return
    if not all(end is None or math.isfinite(end) for end in ends):
        raise Fault(f"the interval of {name} is not finite: {ends}", "withhold it, with a reason")
    if not found.ci_low <= found.value <= found.ci_high:
        raise Fault(
            f"the interval of {name}, {found.ci_low:.6g} to {found.ci_high:.6g}, does not hold "
            f"its value {found.value:.6g}"
        )
    if found.standard_error is not None and found.standard_error < 0:
        raise Fault(f"the standard error of {name} is negative")


def patients(subject: Subject) -> str:
    """Several images of a patient are no more evidence: the error may not shrink with copies."""
    if subject.spec.metric != "set":
        raise Skip("the platform groups the values of a sample metric by patient")
    real, fake = real_side(subject), side(subject, 0.2)
    twice = fake.take(np.repeat(np.arange(ROWS), 3))
    one, other = estimates(subject, real, fake), estimates(subject, real, twice)
    if isinstance(one, str) or isinstance(other, str):
        raise Skip("not applicable to rows that stand several times")
    checked = []
    for name, estimate in one.items():
        before, after = estimate.standard_error, other[name].standard_error
        near = abs(other[name].value - estimate.value) <= 0.05 * abs(estimate.value)
        # Where copies change the value itself, as they do with nearest neighbours, errors do not
        # compare.
        if not before or not after or not near:
            continue
        checked.append(name)
        if after < 0.8 * before:
            raise Fault(
                f"the standard error of {name} falls from {before:.3g} to {after:.3g} when each "
                "generated row stands three times",
                "images of one patient or prompt are one unit: use Sample.units as groups",
            )
    if not checked:
        raise Skip("no score has an error that copies of rows leave comparable")
    return ", ".join(checked)


# --- task metrics ---------------------------------------------------------------------------


def needs(subject: Subject) -> str:
    """What is asked for can be made, and is the same each time."""
    if subject.spec.metric != "task":
        raise Skip("for task metrics")
    from chexgenbench.workflow.plan import weight_paths  # noqa: F401  # the planner's own import
    from chexgenbench.workflow.tasks import plan_task

    found = subject.found.needs(subject.parameters)
    if not isinstance(found, Mapping) or not found:
        raise Fault("needs() returns no mapping of name to ImageNeed")
    wrong = [name for name, need in found.items() if not isinstance(need, ImageNeed)]
    if wrong:
        raise Fault(f"needs() names {shorten(wrong)} without an ImageNeed")
    try:
        plan = plan_task(subject.plugin, subject.parameters, subject.context, (), {}, repeats=1)
    except ChexGenBenchError as error:
        raise Fault(error.message) from error
    if dict(subject.found.needs(subject.parameters)) != dict(found):
        raise Fault("needs() asks for other sets the second time")
    return ", ".join(f"{name}: {need.name}" for name, need in plan.needs.items())


def _rows(subject: Subject, need: ImageNeed) -> Any:
    from chexgenbench.workflow.tasks import Tables

    return Tables(subject.world.test, subject.world.training, 0).rows(need)


def _sets(subject: Subject) -> dict[str, ImageSet]:
    from chexgenbench.workflow.tasks import plan_task

    if "sets" not in subject.kept:
        plan = plan_task(subject.plugin, subject.parameters, subject.context, (), {}, repeats=1)
        wanted = {} if subject.spec.output is None else outputs(subject)
        tables = {name: _rows(subject, need) for name, need in plan.needs.items()}
        try:
            subject.found.check(subject.parameters, subject.context, tables)
        except UserError as error:
            raise Skip(f"it refuses the kit's small split: {error.message}") from error
        subject.kept["sets"] = {
            name: subject.world.images(need, tables[name], wanted)
            for name, need in plan.needs.items()
        }
    kept: dict[str, ImageSet] = subject.kept["sets"]
    return kept


def looks_at_rows(subject: Subject) -> str:
    """check() says sentences, or refuses as the user's fault."""
    if subject.spec.metric != "task":
        raise Skip("for task metrics")
    subject.needed()
    found = subject.found.needs(subject.parameters)
    tables = {name: _rows(subject, need) for name, need in found.items()}
    try:
        said = list(subject.found.check(subject.parameters, subject.context, tables))
    except UserError as error:
        if not error.hint:
            raise Fault(f"it refuses without a hint: {error.message}") from error
        return f"refused: {error.message}"
    if not all(isinstance(each, str) for each in said):
        raise Fault("check() returns something other than sentences")
    return f"{len(said)} remarks"


def _run(subject: Subject, folder: str) -> TaskResult:
    from chexgenbench.types import TaskResult

    sets = _sets(subject)
    metric = subject.create()
    task = Task(
        sets=sets,
        encoder="kit" if subject.spec.output is not None else "",
        model="kit",
        seed=0,
        folder=subject.folder / folder,
        context=subject.context,
        stage=_stage,
        say=lambda _text: None,
    )
    try:
        found = metric.run(task)
    except NotApplicable as error:
        raise Skip(f"not applicable to the kit's small split: {error}") from error
    except UserError as error:
        raise Skip(f"it refuses the kit's small split: {error.message}") from error
    except Exception as error:
        raise Fault(
            f"run() raises {type(error).__name__}: {error}",
            "raise NotApplicable(reason) where the data do not allow it",
        ) from error
    if not isinstance(found, TaskResult):
        raise Fault(f"run() returns a {type(found).__name__}, not a TaskResult")
    return found


@contextmanager
def _stage(_name: str, _total: int, _unit: str = "images") -> Iterator[Callable[[int], None]]:
    yield lambda _count: None


def runs(subject: Subject) -> str:
    """Scores are declared, finite and in range; values and pairs fit their sets."""
    if subject.spec.metric != "task":
        raise Skip("for task metrics")
    found = _run(subject, "task")
    subject.kept["result"] = found
    sets = _sets(subject)
    declared = {each.name: each for each in subject.spec.scores}
    for score in found.scores:
        if score.name not in declared:
            raise Fault(
                f"it returns {score.name!r} and declares {shorten(declared)}",
                "name it in scores, and what tells several of one name apart in variant",
            )
        if isinstance(score.estimate, Estimate):
            _in_range(declared[score.name], score.estimate.value, f"({score.variant or 'plain'})")
            _estimate(f"{score.name} {score.variant}".strip(), score.estimate)
    if not found.scores:
        raise Fault("run() returns no score")
    for each in found.values:
        if each.images not in sets or len(each.values) != len(sets[each.images]):
            raise Fault(f"the values {each.name!r} do not fit the set {each.images!r}")
    for pairs in found.pairs:
        for name, at in ((pairs.images, pairs.at), (pairs.others, pairs.others_at)):
            inside = name in sets and len(at) == len(pairs.values)
            if not inside or (len(at) and not 0 <= at.min() <= at.max() < len(sets[name])):
                raise Fault(f"the pairs {pairs.kind!r} do not fit the set {name!r}")
    return f"{len(found.scores)} scores"


def runs_again(subject: Subject) -> str:
    """In a folder of its own the same images and seed give the same scores."""
    if subject.spec.metric != "task":
        raise Skip("for task metrics")
    if "result" not in subject.kept:
        raise Skip("it did not run")
    first, again = subject.kept["result"], _run(subject, "task-again")
    one = {(s.name, s.variant, s.subset): _value(s.estimate) for s in first.scores}
    other = {(s.name, s.variant, s.subset): _value(s.estimate) for s in again.scores}
    if one.keys() != other.keys():
        raise Fault("it returns other scores the second time")
    for key, value in one.items():
        if value != other[key] and not abs(value - other[key]) <= 1e-6 * max(1.0, abs(value)):
            raise Fault(
                f"{' '.join(filter(None, key))} is {value:.9g} and then {other[key]:.9g}",
                "all that is random must come from task.seed",
            )
    return ""


def _value(estimate: Estimate | str) -> float:
    return estimate.value if isinstance(estimate, Estimate) else math.inf
