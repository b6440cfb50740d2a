"""Logistic regression on features: standardised, with a penalty chosen by validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from chexgenbench import Task, UserError
from chexgenbench.files import atomic_path, file_lock, sha256_bytes

from .data import seed_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Rows = tuple[NDArray[np.float32], NDArray[np.float32]]
    """Features [n, d] and what to say of them [n, 14], NaN where nothing is asked."""


def fit_predict(
    task: Task,
    train: Rows,
    validation: Rows,
    test: NDArray[np.float32],
    penalties: Sequence[float],
    weights: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Probabilities [1 + refits, n, 14] of the findings for `test` features [n, d].

    One C for all findings: the one with the least log loss on `validation` of models fitted to
    `train`. Then both are fitted together: all rows, and those of each of the `weights`. Features
    are standardised by what is fitted to. A finding that has one class there gets its share of
    positives for every image.

    Args:
        weights: 1 or 0 for the rows of train and validation, in that order [refits, rows].

    Raises:
        UserError: features that are not finite.
    """
    import numpy as np

    for features in (train[0], validation[0], test):
        if not np.isfinite(features).all():
            raise UserError(f"The encoder {task.encoder!r} gave features that are not numbers.")
    arrays: list[NDArray[Any]] = [*train, *validation, test, weights]
    hashes = [[sha256_bytes(np.ascontiguousarray(a).tobytes()), a.shape] for a in arrays]
    folder = task.part("probe", hashes, list(penalties))
    path = folder / "probabilities.npy"
    with file_lock(folder / "lock"):
        if not path.exists():
            losses = [
                _log_loss(_fit(train, validation[0], penalty), validation[1])
                for penalty in penalties
            ]
            best = penalties[int(np.argmin(losses))]
            both = (
                np.concatenate([train[0], validation[0]]),
                np.concatenate([train[1], validation[1]]),
            )
            fits = [_fit(both, test, best, each) for each in (None, *weights)]
            with atomic_path(path) as temporary:
                np.save(temporary, np.stack(fits).astype(np.float32))
    found: NDArray[np.float32] = np.load(path)
    return found


def halves(patients: NDArray[np.str_], times: int, seed: int) -> NDArray[np.float64]:
    """1 where a row is in a half, else 0 [2 times, rows]: one half of the patients and the other,
    `times` times, by a hash of seed, number and patient, so that all regimes and models are halved
    alike."""
    import numpy as np

    names, rows = np.unique(patients, return_inverse=True)
    found = []
    for number in range(times):
        ranks = np.argsort([seed_of("half", seed, number, str(name)) for name in names])
        chosen = np.zeros(len(names), np.bool_)
        chosen[ranks[: len(names) // 2]] = True
        found += [chosen[rows], ~chosen[rows]]
    return np.array(found, np.float64)


def _fit(
    train: Rows,
    features: NDArray[np.float32],
    penalty: float,
    weights: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Probabilities [n, 14] for `features` of models fitted to the rows of `train` with weight."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    x = train[0].astype(np.float64)
    centre, scale = x.mean(axis=0), x.std(axis=0)
    # A feature that never varies says nothing; rounding would blow up what is left of it.
    scale[scale <= 1e-6 * np.abs(centre)] = np.inf
    scale[scale == 0.0] = np.inf
    x = (x - centre) / scale
    asked = (features.astype(np.float64) - centre) / scale
    found = np.empty((len(features), train[1].shape[1]))
    for column, goal in enumerate(train[1].T):
        known = ~np.isnan(goal) if weights is None else ~np.isnan(goal) & (weights > 0)
        classes = np.unique(goal[known])
        if classes.size < 2:
            found[:, column] = goal[known].mean() if known.any() else 0.5
            continue
        model = LogisticRegression(C=penalty, max_iter=2000)
        model.fit(x[known], goal[known])
        found[:, column] = model.predict_proba(asked)[:, 1]
    return found


def _log_loss(chance: NDArray[np.float64], truth: NDArray[np.float32]) -> float:
    """Mean over the known entries of -log of the chance given to what is there."""
    import numpy as np

    known = ~np.isnan(truth)
    given = np.where(truth == 1.0, chance, 1.0 - chance)[known]
    return float(-np.log(given.clip(min=1e-12)).mean())
