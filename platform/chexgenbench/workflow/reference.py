"""Reference bundles: the real side as features in one file, so that others score without images.

A safetensors file. It holds no image and no text, and for each patient a number drawn at random (a
hash of an id could be reversed by hashing all ids). The hash of each image's content says what was
encoded to those who have the image, and nothing to others. Features of credentialed images stay
under the licence of the data.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from chexgenbench.errors import UserError
from chexgenbench.features import EncoderPlan
from chexgenbench.files import atomic_path, digest, sha256_file

if TYPE_CHECKING:
    from chexgenbench.workflow.plan import Plan

FORMAT = "chexgenbench-reference-1"
_ROWS_IN_PART = 1024
_AGAIN = "Fetch it again, or build it: chexgenbench reference build"


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

    Tensors: ``rows`` int64 [n] (the split's rows that have an image), ``content`` uint8 [n, 32]
    (SHA-256 of each image file), ``patients`` int64 [rows] (pseudonyms; -1 where the split knows no
    patients), and for each encoder and output ``encoder/output`` float32 [n, width] with
    ``.../mean`` float64 [width] and ``.../covariance`` float64 [width, width] (n - 1).
    """
    from safetensors.numpy import save_file

    rows = np.asarray([row for row, key in enumerate(real.keys) if key is not None], np.int64)
    if len(rows) < 2:
        raise UserError(f"The split {plan.split.name!r} has {len(rows)} real images to encode.")
    keys = [key for key in real.keys if key is not None]
    tensors: dict[str, NDArray[Any]] = {
        "rows": rows,
        "content": np.frombuffer(b"".join(map(bytes.fromhex, keys)), np.uint8).reshape(-1, 32),
        "patients": _pseudonyms(plan.prompts.patient_codes(), len(plan.prompts)),
    }
    for encoder in plan.encoders:
        for name, values in encoder.images.read(keys).items():
            wide = values.astype(np.float64)
            tensors[f"{encoder.name}/{name}"] = values
            tensors[f"{encoder.name}/{name}/mean"] = wide.mean(axis=0)
            tensors[f"{encoder.name}/{name}/covariance"] = np.atleast_2d(np.cov(wide.T))
    facts = Facts(
        format=FORMAT,
        split=plan.split.name,
        split_hash=plan.prompts.fingerprint(),
        rows=len(plan.prompts),
        credentialed=plan.split.spec.credentialed,
        encoders={encoder.name: encoder.id for encoder in plan.encoders},
        tensors={name: _hash(values) for name, values in sorted(tensors.items())},
    )
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"reference": facts.model_dump_json()})
    return sha256_file(path)


class Facts(BaseModel):
    """The header of a bundle."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: str
    split: str
    split_hash: str
    rows: int = Field(ge=2)
    credentialed: bool
    encoders: dict[str, str]
    tensors: dict[str, str]


@dataclass(frozen=True)
class Reference:
    """A bundle whose tensors are what it says they are."""

    path: Path
    facts: Facts

    @classmethod
    def open(cls, path: Path) -> Reference:
        """Reads the header and checks every tensor against its hash.

        Raises:
            UserError: missing, no bundle, of a newer format, or damaged.
        """
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise UserError(f"The reference {path} does not exist.")
        try:
            with safe_open(path, "np") as file:
                header = (file.metadata() or {}).get("reference", "")
                found = json.loads(header).get("format") if header.startswith("{") else None
                if isinstance(found, str) and found != FORMAT:
                    raise UserError(
                        f"The reference {path} has the format {found!r}; this release reads "
                        f"{FORMAT!r}."
                    )
                facts = Facts.model_validate_json(header)
                bundle = cls(path, facts)
                for name in {*facts.tensors, *file.keys()}:
                    if _hash(file.get_tensor(name)) != facts.tensors.get(name):
                        raise bundle.damaged(f"the tensor {name!r} is another")
        except (SafetensorError, ValueError) as error:  # a validation error is one
            reason = str(error).splitlines()[0]
            raise UserError(
                f"The reference {path} is damaged or no reference bundle: {reason}", hint=_AGAIN
            ) from error
        except OSError as error:
            raise UserError(f"The reference {path} cannot be read: {error}.") from error
        _ = bundle._rows  # they make sense
        return bundle

    def damaged(self, reason: str) -> UserError:
        return UserError(
            f"The reference {self.path} is damaged or no reference bundle: {reason}.", hint=_AGAIN
        )

    def tensor(self, name: str) -> NDArray[Any]:
        """A tensor by name; `UserError` where there is none."""
        from safetensors import safe_open

        if name not in self.facts.tensors:
            raise self.damaged(f"it has no {name!r}")
        with safe_open(self.path, "np") as file:
            values: NDArray[Any] = file.get_tensor(name)
        return values

    @cached_property
    def id(self) -> str:
        """Identity of the content, wherever the file lies."""
        return digest(self.facts.model_dump())[:16]

    def check(self, plan: Plan) -> None:
        """Whether it fits a plan.

        Raises:
            UserError: another split, other rows, another encoder identity, or features that are
                not what the encoder declares.
        """
        facts = self.facts
        if (facts.rows, facts.split_hash) != (len(plan.whole), plan.whole.fingerprint()):
            raise UserError(
                f"The reference {self.path} is of the split {facts.split!r} with {facts.rows} "
                f"rows, which is not the split {plan.split.name!r} of this run "
                f"({len(plan.whole)} rows): ids, prompts, labels, patients or paths differ.",
                hint="Use the annotation file that it was built from.",
            )
        for encoder in plan.encoders:
            known = facts.encoders.get(encoder.name)
            if known is None:
                raise UserError(
                    f"The reference {self.path} has no features of {encoder.name!r}; it has "
                    f"{', '.join(sorted(facts.encoders))}.",
                    hint="Choose one of these with --encoder, or build another reference.",
                )
            if known != encoder.id:
                raise UserError(
                    f"The reference {self.path} was encoded by {encoder.name!r} of another "
                    f"identity ({known}; here {encoder.id}): weights, code, preprocessing, "
                    "precision or device kind differ.",
                    hint="Use the weights, release and --device that it was built with.",
                )
            for name, width in encoder.plugin.spec.outputs.items():
                values = self.tensor(f"{encoder.name}/{name}")
                if values.shape != (len(self._rows), width) or values.dtype != np.float32:
                    raise self.damaged(
                        f"{encoder.name}/{name} is {values.dtype} {list(values.shape)}"
                    )
                if not np.isfinite(values).all():
                    raise self.damaged(f"{encoder.name}/{name} holds NaN or infinity")

    def real_side(self, plan: Plan) -> RealSide:
        """The bundle as the real side of a plan that it fits; its features go into the feature
        store, under keys of their own: what is in a bundle passes for no image that is here."""
        place = {name: row for row, name in enumerate(plan.whole.table["prompt_id"])}
        wanted = [place[name] for name in plan.prompts.table["prompt_id"]]
        there = {int(row): n for n, row in enumerate(self._rows)}
        content = [bytes(row).hex() for row in self.tensor("content")]
        keys = [f"reference-{self.id}-{row}" if row in there else None for row in wanted]
        for encoder in plan.encoders:
            pairs = zip(keys, wanted, strict=True)
            self._copy(encoder, [(key, there[row]) for key, row in pairs if key])
        named = plan.prompts.table["image_path"].notna()
        skipped = sum(key is None for key, name in zip(keys, named, strict=True) if name)
        # The identity that the images themselves would give.
        known_as = digest([content[there[row]] if row in there else None for row in wanted])
        return RealSide(keys, skipped, known_as)

    @cached_property
    def _rows(self) -> NDArray[np.int64]:
        rows, content = self.tensor("rows"), self.tensor("content")
        if (
            rows.ndim != 1
            or rows.dtype != np.int64
            or (np.diff(rows, prepend=-1) < 1).any()
            or not len(rows)
            or rows[-1] >= self.facts.rows
            or content.shape != (len(rows), 32)
            or content.dtype != np.uint8
        ):
            raise self.damaged("its rows make no sense")
        return rows

    def _copy(self, encoder: EncoderPlan, rows: Sequence[tuple[str, int]]) -> None:
        missing = set(encoder.images.without(key for key, _ in rows))
        lacking = [(key, row) for key, row in rows if key in missing]
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
