"""Checks of a model: what it makes depends on its request alone."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexgenbench.errors import ChexGenBenchError, UserError
from chexgenbench.generation.requests import make_requests
from chexgenbench.images import to_image
from chexgenbench.jobs.generate import call_model
from chexgenbench.testing.results import Fault, Skip
from chexgenbench.testing.subject import Subject
from chexgenbench.types import Request

COUNT = 4
"""Requests of a batch."""

UNUSUAL = (
    "x",
    "  Spaces before and after.  ",
    "Line one.\nLine two.\tA tab.",
    "Épanchement pleural, 胸腔积液, плеврит \U0001fac1",
    "<b>100 %s</b> {0} %d &amp; \\n '; --",
    "Left pleural effusion. " * 150,
)

_SEED_HINT = (
    "draw all that is random from request.seed, such as numpy.random.default_rng(request.seed) or "
    "torch.Generator().manual_seed(request.seed)"
)

Pixels = list[NDArray[np.uint8]]


def requests(subject: Subject, count: int = COUNT) -> list[Request]:
    """Requests as a run makes them, for the first rows of the kit's split."""
    return make_requests(subject.world.test.limit(count), seed=0, repeats=1, size=None)


def make(model: Any, wanted: Sequence[Request]) -> Pixels:
    """One call; 8-bit pixels of each image."""
    made = call_model(model, wanted)
    if made is None:
        raise Fault(f"it runs out of memory with {len(wanted)} requests a call")
    return [np.asarray(to_image(image)[0]) for image, _ in made]


def apart(one: Pixels, other: Pixels) -> int:
    """The largest difference in grey levels; 255 where shapes differ."""
    differences = [
        int(np.abs(a.astype(int) - b.astype(int)).max()) if a.shape == b.shape else 255
        for a, b in zip(one, other, strict=True)
    ]
    return max(differences, default=0)


def _first(subject: Subject) -> Pixels:
    if "images" not in subject.kept:
        subject.kept["images"] = make(subject.instance, _asked(subject))
    kept: Pixels = subject.kept["images"]
    return kept


def _asked(subject: Subject, count: int = COUNT) -> list[Request]:
    """`requests`, which the model itself has looked at, as before a run."""
    wanted = requests(subject, count)
    subject.needed()
    try:
        subject.found.check(subject.parameters, subject.context, wanted)
    except UserError as error:
        raise Skip(f"it cannot answer the kit's requests: {error.message}") from error
    return wanted


def _tolerance(subject: Subject) -> float:
    given = subject.settings.tolerance
    return 1.0 if given is None else given


def images(subject: Subject) -> str:
    """One valid image a request: number, kind, range, size."""
    wanted = _asked(subject)
    model = subject.instance
    try:
        made = call_model(model, wanted)
    except ChexGenBenchError as error:
        raise Fault(
            error.message, "return or yield one image a request, in the order of the requests"
        ) from error
    if made is None:
        raise Fault(f"it runs out of memory with {len(wanted)} requests a call")
    size = subject.spec.image_size
    sizes, modes = set(), set()
    for request, (image, _) in zip(wanted, made, strict=True):
        array = np.asarray(image)
        try:
            known, flags = to_image(image)
        except ValueError as error:
            raise Fault(
                f"request {request.id}: {error}",
                "return a PIL image of mode L or RGB, or an array [h, w] or [h, w, 3], uint8 in "
                "0..255 or floating in 0..1",
            ) from error
        if "nan" in flags:
            raise Fault(f"request {request.id}: the image holds NaN or infinity")
        if array.dtype.kind == "f" and (array.min() < -1e-6 or array.max() > 1 + 1e-6):
            raise Fault(
                f"request {request.id}: floating values from {array.min():.3g} to "
                f"{array.max():.3g}, which are cut to 0..1",
                "scale the image, or return uint8 in 0..255",
            )
        if "constant" in flags:
            raise Fault(f"request {request.id}: all pixels are equal")
        sizes.add(known.size)
        modes.add(known.mode)
    if size is not None and not subject.settings.values and sizes != {(size, size)}:
        raise Fault(
            f"image_size={size} is declared and images are {_sizes(sizes)}",
            "declare what it makes by default, or None where that varies",
        )
    subject.kept["images"] = [np.asarray(to_image(image)[0]) for image, _ in made]
    return f"{len(made)} of {_sizes(sizes)}, mode {'/'.join(sorted(modes))}"


def _sizes(sizes: set[tuple[int, int]]) -> str:
    return ", ".join(f"{width} x {height}" for width, height in sorted(sizes))


def same_seed(subject: Subject) -> str:
    """Again after other requests, with the generators that all code shares in another state."""
    first = _first(subject)
    wanted = _asked(subject)
    _stir()
    make(subject.instance, [replace(each, seed=each.seed ^ 12345) for each in wanted[:2]])
    _stir()
    far = apart(first, make(subject.instance, wanted))
    if far:
        raise Fault(f"the same requests give images {far} grey levels apart", _SEED_HINT)
    return ""


def _stir() -> None:
    """Advances the generators that all code shares: a model that draws from them shows."""
    random.random()  # noqa: S311
    np.random.rand(3)  # noqa: NPY002
    if "torch" in sys.modules:
        sys.modules["torch"].rand(3)


def fresh_process(subject: Subject) -> str:
    first = _first(subject)
    other = subject.made_elsewhere()
    if len(other) != len(first):
        raise Fault(f"another process makes {len(other)} images and this one {len(first)}")
    far = apart(first, other)
    if far > _tolerance(subject):
        raise Fault(
            f"another process makes images {far} grey levels apart",
            f"{_SEED_HINT}; hash() of a text differs between processes, hashlib does not",
        )
    return "" if not far else f"up to {far} grey level apart"


def another_seed(subject: Subject) -> str:
    first = _first(subject)
    wanted = [replace(each, seed=each.seed ^ 0x5DEECE66D) for each in _asked(subject)]
    other = make(subject.instance, wanted)
    same = [r.id for r, a, b in zip(wanted, first, other, strict=True) if np.array_equal(a, b)]
    if subject.settings.deterministic:
        if len(same) < len(wanted):
            raise Fault("it is said to be deterministic, and another seed gives another image")
        return "deterministic, as was said"
    if len(same) == len(wanted):
        raise Fault(
            "another seed gives the same images",
            f"{_SEED_HINT}. If its images do not depend on the seed, say --deterministic",
        )
    # A model that draws one of a few images may draw the same one.
    return f"the same image for {len(same)} of {len(wanted)} requests" if same else ""


def batches(subject: Subject) -> str:
    first = _first(subject)
    wanted = _asked(subject)
    alone = [make(subject.instance, [each])[0] for each in wanted]
    far, most = apart(first, alone), _tolerance(subject)
    if far > most:
        raise Fault(
            f"an image made alone and in a batch of {len(wanted)} is {far} grey levels apart, "
            f"more than {most:g}",
            "give each request a generator of its own; nothing may be shared between the rows of "
            "a batch, such as batch normalisation in training mode",
        )
    return f"at most {far} of 255 grey levels apart (up to {most:g} is accepted)"


def order(subject: Subject) -> str:
    """Requests backwards, and one of them twice."""
    first = _first(subject)
    wanted = _asked(subject)
    mixed = [*reversed(wanted), wanted[0]]
    made = make(subject.instance, mixed)
    far = apart(first, [*reversed(made[:-1])])
    most = _tolerance(subject)
    if far > most:
        raise Fault(
            f"in another order images are {far} grey levels apart",
            "return images in the order of the requests, and keep nothing between them",
        )
    if (far := apart(first[:1], made[-1:])) > most:
        raise Fault(f"a request that stands twice in a batch gets images {far} grey levels apart")
    return ""


def sizes(subject: Subject) -> str:
    """Another size than its own is made, or refused before the run."""
    _first(subject)
    own = subject.kept["images"][0].shape[0]
    size = max(32, own // 2 // 32 * 32) if own > 32 else 64
    (wanted,) = [replace(each, size=size) for each in _asked(subject, 1)]
    try:
        subject.found.check(subject.parameters, subject.context, [wanted])
        (made,) = make(subject.instance, [wanted])
    except UserError as error:
        return f"{size} is refused: {error.message}"
    if made.shape[:2] != (size, size):
        raise Fault(
            f"{size} x {size} was asked for and {made.shape[1]} x {made.shape[0]} was made",
            "use request.size where it is not None, or raise UserError in check()",
        )
    return f"{size} x {size} is made"


def unusual_prompts(subject: Subject) -> str:
    """Any text is answered, or refused as the user's fault."""
    refused = []
    (one,) = _asked(subject, 1)
    for text in UNUSUAL:
        wanted = [replace(one, prompt=text)]
        try:
            subject.found.check(subject.parameters, subject.context, wanted)
            make(subject.instance, wanted)
        except UserError:
            refused.append(text)
        except ChexGenBenchError as error:
            raise Fault(
                f"the prompt {text[:40]!r} ({len(text)} characters): {error.message}",
                "answer it, or raise UserError in check()",
            ) from error
    return f"{len(refused)} of {len(UNUSUAL)} are refused" if refused else ""


def answer(subject: Subject) -> list[NDArray[np.uint8]]:
    """What a fresh process makes of the same requests."""
    return make(subject.create(), _asked(subject))
