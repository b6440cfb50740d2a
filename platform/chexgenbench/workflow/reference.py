"""Reference bundles: the real side as features in one file, so that others score without images.

A safetensors file. It holds no image and no text, and for each patient a number drawn at random (a
hash of an id could be reversed by hashing all ids). Features of credentialed images stay under the
licence of the data.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexgenbench.errors import UserError
from chexgenbench.features import EncoderPlan
from chexgenbench.files import atomic_path, digest, sha256_file
from chexgenbench.workflow.plan import Plan

FORMAT = "chexgenbench-reference-1"
_ROWS_IN_PART = 1024


@dataclass(frozen=True, eq=False)
class RealSide:
    """The real images of the split by content: one key a row, None where there is none.

    Attributes:
        known_as: identity where the keys are not the images' own, as in a reference bundle.
    """

    keys: Sequence[str | None]
    skipped: int
    known_as: str | None = None

    @property
    def id(self) -> str:
        return self.known_as or digest(list(self.keys))


def write_reference(path: Path, plan: Plan, real: RealSide) -> str:
    """Writes the encoded real side of a plan and returns the SHA-256 of the file.

    Tensors: ``rows`` int64 [n] (the split's rows that have an image), ``patients`` int64 [rows]
    (pseudonyms; -1 where the split knows no patients), and for each encoder and output
    ``encoder/output`` float32 [n, width] with ``.../mean`` float64 [width] and ``.../covariance``
    float64 [width, width] (n - 1).
    """
    from safetensors.numpy import save_file

    rows = np.asarray([row for row, key in enumerate(real.keys) if key is not None], np.int64)
    if len(rows) < 2:
        raise UserError(f"The split {plan.split.name!r} has {len(rows)} real images to encode.")
    tensors: dict[str, NDArray[Any]] = {
        "rows": rows,
        "patients": _pseudonyms(plan.prompts.patient_codes(), len(plan.prompts)),
    }
    for encoder in plan.encoders:
        outputs = encoder.images.read([key for key in real.keys if key is not None])
        for name, values in outputs.items():
            wide = values.astype(np.float64)
            tensors[f"{encoder.name}/{name}"] = values
            tensors[f"{encoder.name}/{name}/mean"] = wide.mean(axis=0)
            tensors[f"{encoder.name}/{name}/covariance"] = np.atleast_2d(np.cov(wide.T))
    facts = {
        "format": FORMAT,
        "split": plan.split.name,
        "split_hash": plan.prompts.fingerprint(),
        "rows": len(plan.prompts),
        "skipped": real.skipped,
        "real_id": real.id,
        "credentialed": plan.split.spec.credentialed,
        "encoders": {encoder.name: encoder.id for encoder in plan.encoders},
        "tensors": {name: _hash(values) for name, values in sorted(tensors.items())},
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"reference": json.dumps(facts, sort_keys=True)})
    return sha256_file(path)


@dataclass(frozen=True)
class Reference:
    """A bundle whose tensors are what it says they are."""

    path: Path
    facts: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> Reference:
        """Reads the header and checks every tensor against its hash.

        Raises:
            UserError: missing, no bundle, of a newer format, or damaged.
        """
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise UserError(f"The reference {path} does not exist.")
        damaged = UserError(
            f"The reference {path} is damaged or no reference bundle.",
            hint="Fetch it again, or build it: chexgenbench reference build",
        )
        try:
            with safe_open(path, "np") as file:
                facts = json.loads((file.metadata() or {})["reference"])
                if facts.get("format") != FORMAT:
                    raise UserError(
                        f"The reference {path} has the format {facts.get('format')!r}; this "
                        f"release reads {FORMAT!r}."
                    )
                names = set(file.keys())
                if names != set(facts["tensors"]):
                    raise damaged
                for name in sorted(names):
                    if _hash(file.get_tensor(name)) != facts["tensors"][name]:
                        raise damaged
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise damaged from error
        except OSError as error:
            raise UserError(f"The reference {path} cannot be read: {error}.") from error
        return cls(path, facts)

    def tensor(self, name: str) -> NDArray[Any]:
        from safetensors import safe_open

        with safe_open(self.path, "np") as file:
            values: NDArray[Any] = file.get_tensor(name)
        return values

    @cached_property
    def id(self) -> str:
        return digest(dict(self.facts))[:16]

    def real_side(self, plan: Plan) -> RealSide:
        """The bundle as the real side of a plan; its features go into the feature store.

        Raises:
            UserError: another split, other rows or another encoder identity.
        """
        self._check(plan)
        place = {name: row for row, name in enumerate(plan.whole.table["prompt_id"])}
        wanted = [place[name] for name in plan.prompts.table["prompt_id"]]
        there = {int(row): n for n, row in enumerate(self.tensor("rows"))}
        keys = [f"reference-{self.id}-{row}" if row in there else None for row in wanted]
        for encoder in plan.encoders:
            self._copy(
                encoder, [(key, there[row]) for key, row in zip(keys, wanted, strict=True) if key]
            )
        known_as = str(self.facts["real_id"])
        if len(wanted) != self.facts["rows"]:
            known_as = digest([known_as, wanted])
        return RealSide(keys, int(self.facts["skipped"]), known_as)

    def _copy(self, encoder: EncoderPlan, rows: Sequence[tuple[str, int]]) -> None:
        lacking = [(key, row) for key, row in rows if key not in encoder.images]
        if not lacking:
            return
        outputs = {
            name: self.tensor(f"{encoder.name}/{name}") for name in encoder.plugin.spec.outputs
        }
        for start in range(0, len(lacking), _ROWS_IN_PART):
            part = lacking[start : start + _ROWS_IN_PART]
            index = [row for _, row in part]
            encoder.images.write(
                [key for key, _ in part], {name: values[index] for name, values in outputs.items()}
            )

    def _check(self, plan: Plan) -> None:
        facts = self.facts
        if (facts["rows"], facts["split_hash"]) != (len(plan.whole), plan.whole.fingerprint()):
            raise UserError(
                f"The reference {self.path} is of the split {facts['split']!r} with "
                f"{facts['rows']} rows, which is not the split {plan.split.name!r} of this run "
                f"({len(plan.whole)} rows): ids, prompts, labels, patients or paths differ.",
                hint="Use the annotation file that it was built from.",
            )
        for encoder in plan.encoders:
            known = facts["encoders"].get(encoder.name)
            if known is None:
                raise UserError(
                    f"The reference {self.path} has no features of {encoder.name!r}; it has "
                    f"{', '.join(sorted(facts['encoders']))}.",
                    hint="Choose one of these with --encoder, or build another reference.",
                )
            if known != encoder.id:
                raise UserError(
                    f"The reference {self.path} was encoded by {encoder.name!r} of another "
                    f"identity ({known}; here {encoder.id}): weights, code, preprocessing, "
                    "precision or device kind differ.",
                    hint="Use the weights, release and --device that it was built with.",
                )


def _hash(values: NDArray[Any]) -> str:
    facts = f"{values.dtype.str} {values.shape} ".encode()
    return hashlib.sha256(facts + np.ascontiguousarray(values).tobytes()).hexdigest()


def _pseudonyms(codes: NDArray[np.int64] | None, rows: int) -> NDArray[np.int64]:
    if codes is None:
        return np.full(rows, -1, np.int64)
    _, numbered = np.unique(codes, return_inverse=True)
    random = np.random.default_rng(secrets.randbits(128))
    drawn: NDArray[np.int64] = random.permutation(int(numbered.max()) + 1)[numbered]
    return drawn.astype(np.int64)
