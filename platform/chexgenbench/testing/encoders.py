"""Checks of an encoder: features depend on their own image alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from chexgenbench.testing.models import UNUSUAL
from chexgenbench.testing.results import Fault, Skip
from chexgenbench.testing.subject import Subject

if TYPE_CHECKING:
    import torch

COUNT = 6
_SHAPES = ((96, 96), (160, 90), (70, 128), (224, 224))
_FLAT = (0, 255)
"""Grey levels of pictures without any contrast."""

TEXTS = (
    "Large left pleural effusion.",
    "No acute cardiopulmonary process.",
    "The heart is severely enlarged. A pacemaker is in place.",
)

_ROWS_HINT = (
    "a row of encode() may depend on that row of the batch alone: call eval() on the network, and "
    "normalise by fixed numbers"
)


def pictures(subject: Subject) -> list[Image.Image]:
    """Grey pictures of several shapes."""
    drawn = subject.world.pictures(COUNT)
    return [image.resize(_SHAPES[i % len(_SHAPES)]) for i, image in enumerate(drawn)]


def encode(encoder: Any, images: Sequence[Image.Image]) -> dict[str, NDArray[Any]]:
    """Outputs of one batch."""
    import torch

    batch = torch.stack([encoder.preprocess(image) for image in images])
    return _run(encoder, batch)


def _run(encoder: Any, batch: torch.Tensor) -> dict[str, NDArray[Any]]:
    import torch

    with torch.inference_mode():
        outputs = encoder.encode(batch)
    if not isinstance(outputs, Mapping):
        raise Fault(
            f"encode() returns a {type(outputs).__name__}, not a mapping of output to rows",
            'return {"features": rows}, with rows float32 [n, d]',
        )
    return {name: np.asarray(rows) for name, rows in outputs.items()}


def _first(subject: Subject) -> dict[str, NDArray[Any]]:
    if "outputs" not in subject.kept:
        subject.kept["outputs"] = encode(subject.instance, pictures(subject))
    kept: dict[str, NDArray[Any]] = subject.kept["outputs"]
    return kept


def _tolerance(subject: Subject) -> float:
    given = subject.settings.tolerance
    return 1e-4 if given is None else given


def apart(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The largest distance of two rows, as a share of the row's length."""
    length = np.linalg.norm(one.astype(np.float64), axis=1).clip(min=1e-12)
    distance = np.linalg.norm(one.astype(np.float64) - other.astype(np.float64), axis=1)
    return float((distance / length).max(initial=0.0))


def _same(subject: Subject, one: NDArray[Any], other: NDArray[Any], what: str, hint: str) -> str:
    far, most = apart(one, other), _tolerance(subject)
    if not far <= most:
        raise Fault(f"{what}: features differ by {far:.2g} of their length, not {most:g}", hint)
    return f"{far:.1g} of the length apart (up to {most:g} is accepted)"


def preprocess(subject: Subject) -> str:
    """One shape and type of tensor for every kind of image."""
    import torch

    encoder = subject.instance
    shapes = set()
    for image in pictures(subject):
        for each in (image, image.convert("RGB")):
            tensor = encoder.preprocess(each)
            if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float32:
                kind = getattr(tensor, "dtype", type(tensor).__name__)
                raise Fault(f"preprocess() returns {kind}, where a float32 tensor is expected")
            shapes.add(tuple(tensor.shape))
    if len(shapes) > 1:
        raise Fault(
            f"preprocess() returns tensors of several shapes: {sorted(shapes)}",
            "resize every image to one shape, grey ones and colour ones alike",
        )
    return f"float32 {list(shapes.pop())}"


def outputs(subject: Subject) -> str:
    """Names, widths, type and values are as declared, of pictures of one grey level as well."""
    found = _first(subject)
    declared = dict(subject.spec.outputs)
    if set(found) != set(declared):
        raise Fault(
            f"encode() returns {', '.join(found) or 'nothing'} and outputs declares "
            f"{', '.join(declared)}"
        )
    for name, width in declared.items():
        rows = found[name]
        if rows.shape != (COUNT, width):
            raise Fault(f"{name!r} has shape {list(rows.shape)}, not [{COUNT}, {width}]")
        if rows.dtype != np.float32:
            raise Fault(f"{name!r} is {rows.dtype}, not float32", "end with .float().cpu().numpy()")
        if not np.isfinite(rows).all():
            raise Fault(f"{name!r} holds NaN or infinity")
    chances = found.get("probabilities")
    if chances is not None and not (
        np.allclose(chances.sum(1), 1, atol=1e-3) and chances.min() >= -1e-6
    ):
        raise Fault(f"rows of probabilities sum to {chances.sum(1).min():.4g}", "take a softmax")
    flat = encode(subject.instance, [Image.new("L", _SHAPES[0], grey) for grey in _FLAT])
    for name, rows in flat.items():
        for grey, row in zip(_FLAT, rows, strict=True):
            if not np.isfinite(row).all():
                raise Fault(
                    f"{name!r} of an image that is {grey} everywhere holds NaN or infinity",
                    "a failed model makes such images: add a small number to what is divided by, "
                    "such as a standard deviation or a length",
                )
    return ", ".join(f"{name} [{width}]" for name, width in declared.items())


def batches(subject: Subject) -> str:
    first = _first(subject)
    images = pictures(subject)
    alone = [encode(subject.instance, [image]) for image in images]
    longer = encode(subject.instance, [*images, *images[:3]])
    said = ""
    for name in first:
        rows = np.concatenate([one[name] for one in alone])
        said = _same(subject, first[name], rows, f"{name!r} of an image alone", _ROWS_HINT)
        _same(subject, first[name], longer[name][:COUNT], f"{name!r} in a longer batch", _ROWS_HINT)
    return said


def order(subject: Subject) -> str:
    first = _first(subject)
    turned = encode(subject.instance, pictures(subject)[::-1])
    for name in first:
        _same(subject, first[name], turned[name][::-1], f"{name!r} in another order", _ROWS_HINT)
    return ""


def repeats(subject: Subject) -> str:
    first = _first(subject)
    again = encode(subject.instance, pictures(subject))
    for name in first:
        hint = "switch dropout off (eval()), and draw nothing at random"
        _same(subject, first[name], again[name], f"{name!r} a second time", hint)
    return ""


def fresh_process(subject: Subject) -> str:
    first = _first(subject)
    other = subject.made_elsewhere()
    hint = "fix what is drawn at random when it is made, and load weights that weights() names"
    for (name, rows), theirs in zip(sorted(first.items()), other, strict=True):
        if rows.shape != theirs.shape:
            raise Fault(f"{name!r} has another shape in a fresh process")
        _same(subject, rows, theirs, f"{name!r} in a fresh process", hint)
    return ""


def grey_is_colour(subject: Subject) -> str:
    """A grey image and the same one as RGB have the same features."""
    first = _first(subject)
    colour = encode(subject.instance, [image.convert("RGB") for image in pictures(subject)])
    hint = "convert the image in preprocess(): image.convert('L') or image.convert('RGB')"
    for name in first:
        _same(subject, first[name], colour[name], f"{name!r} of a grey image saved as RGB", hint)
    return ""


def tells_apart(subject: Subject) -> str:
    found = _first(subject)
    rows = found.get("features", next(iter(found.values()))).astype(np.float64)
    for i in range(1, len(rows)):
        if apart(rows[:1], rows[i : i + 1]) <= _tolerance(subject):
            raise Fault(
                f"images 1 and {i + 1} differ and have the same features",
                "look at what preprocess() leaves of an image, and at the last layer",
            )
    return ""


def text(subject: Subject) -> str:
    if not subject.spec.text:
        raise Skip("it declares no text side (text=True)")
    encoder, width = subject.instance, subject.spec.outputs["features"]

    def rows(texts: Sequence[str]) -> NDArray[Any]:
        found = np.asarray(encoder.encode_text(list(texts)))
        if found.shape != (len(texts), width):
            raise Fault(
                f"encode_text() of {len(texts)} texts returns {list(found.shape)}, not "
                f"[{len(texts)}, {width}]: the space of 'features'"
            )
        if found.dtype != np.float32 or not np.isfinite(found).all():
            raise Fault(f"encode_text() returns {found.dtype} values that must be finite float32")
        return found

    together = rows(TEXTS)
    alone = np.concatenate([rows([each]) for each in TEXTS])
    said = _same(subject, together, alone, "a text alone", _ROWS_HINT)
    turned = rows(TEXTS[::-1])[::-1]
    _same(subject, together, turned, "texts in another order", _ROWS_HINT)
    for i in range(1, len(TEXTS)):
        if apart(together[:1], together[i : i + 1]) <= _tolerance(subject):
            raise Fault(f"the texts {TEXTS[0]!r} and {TEXTS[i]!r} have the same features")
    rows([*UNUSUAL, ""])
    return said


def answer(subject: Subject) -> list[NDArray[Any]]:
    """What a fresh process encodes, output by output in the order of their names."""
    return [rows for _, rows in sorted(encode(subject.create(), pictures(subject)).items())]
