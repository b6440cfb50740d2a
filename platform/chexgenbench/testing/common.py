"""Checks of every plugin: what it says of itself, and that it costs nothing to list."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable

from chexgenbench.errors import UserError
from chexgenbench.testing.results import Fault, Skip
from chexgenbench.testing.subject import Subject

HEAVY = (
    "accelerate",
    "cv2",
    "datasets",
    "diffusers",
    "duckdb",
    "jax",
    "matplotlib",
    "monai",
    "open_clip",
    "pandas",
    "peft",
    "pyarrow",
    "radiomics",
    "ray",
    "scipy",
    "skimage",
    "sklearn",
    "tensorflow",
    "timm",
    "torch",
    "torchmetrics",
    "torchvision",
    "torchxrayvision",
    "transformers",
)
"""Top-level modules that take a good part of a second or more to import."""

_LONGEST_SUMMARY = 100


_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")


def named(subject: Subject) -> str:
    """A name that can be typed after an option, and told from others where case is not."""
    said: str = subject.spec.name
    if ":" in subject.plugin.text:
        raise Skip("the user's text names it")
    if not _NAME.fullmatch(said):
        raise Fault(
            f"{said!r} cannot be typed as the name of a {subject.spec.kind}",
            "use small letters, digits, dots, hyphens and underscores, a letter or digit first, at "
            "most 100 characters: folders and files are called so",
        )
    return said


def summary(subject: Subject) -> str:
    text = subject.spec.summary
    if not isinstance(text, str) or not text.strip():
        raise Fault("the summary is empty", "say in one line what it is: summary=...")
    if "\n" in text or len(text) > _LONGEST_SUMMARY:
        raise Fault(
            f"the summary has {len(text)} characters; lists show one line",
            f"use at most {_LONGEST_SUMMARY} characters and no line break",
        )
    return ""


def licence(subject: Subject) -> str:
    said = str(subject.spec.licence)
    if not said.strip() or said == "not stated":
        raise Fault("no licence is stated", "name that of the weights or data: licence=...")
    return said


def described(subject: Subject) -> str:
    fields = subject.spec.parameters.model_fields
    bare = [name for name, info in fields.items() if not (info.description or "").strip()]
    if bare:
        raise Fault(
            f"parameters without a description: {', '.join(bare)}",
            "write Field(default, description=...); `show` prints it",
        )
    if not fields:
        raise Skip("it has no parameters")
    return ", ".join(fields)


def lazy(subject: Subject) -> str:
    """Lists the plugins in a fresh process, and looks at what that imported and did."""
    found = subject.elsewhere("modules")
    heavy = sorted(set(found["modules"]) & set(HEAVY))
    if heavy:
        raise Fault(
            f"importing the plugin's file imports {', '.join(heavy)}, for every command that lists "
            "plugins",
            "import them inside the methods, or name the class by a text: load='package.file:Mine'",
        )
    if found["did"]:
        raise Fault(
            f"importing the plugin's file {shorten(found['did'])}; every command that lists "
            "plugins would",
            "importing a plugin must do nothing but define it: move this into the class that "
            "`load` names",
        )
    return ""


def loads(subject: Subject) -> str:
    found = subject.found
    lacking = sorted(getattr(found, "__abstractmethods__", ()))
    if lacking:
        raise Fault(f"the class {found.__name__} does not define {', '.join(lacking)}")
    return f"{found.__module__}:{found.__qualname__}"


def documented(subject: Subject) -> str:
    found = subject.found
    module = sys.modules.get(found.__module__)
    if not (found.__doc__ or (module is not None and inspect.getdoc(module))):
        raise Fault(
            f"neither the class {found.__name__} nor its module has a docstring",
            "say what it computes, and where the definition is from",
        )
    return ""


def parameters(subject: Subject) -> str:
    fields = subject.spec.parameters.model_fields
    parsed = subject.parameters  # skips where one must be said
    if subject.plugin.parse({**subject.settings.values}) != parsed:
        raise Fault("the same values give other parameters the second time")
    try:
        parsed.identity()
    except Exception as error:
        raise Fault(
            f"the values cannot be written as JSON: {type(error).__name__}: {error}",
            "use numbers, texts, lists of them, or None",
        ) from error
    try:
        subject.plugin.parse({"no_such_parameter": 1})
    except UserError:
        pass
    else:
        raise Fault(
            "an unknown parameter is accepted, so a misspelt one would do nothing",
            "derive the parameters from chexgenbench.Parameters and leave extra='forbid'",
        )
    for name, values in getattr(subject.spec, "protocols", {}).items():
        try:
            subject.plugin.parse({**values, **subject.settings.values})
        except UserError as error:
            raise Fault(f"the values of the protocol {name!r} do not parse: {error.message}") from (
                error
            )
    return f"{len(fields)} with {'values that were set' if subject.settings.values else 'defaults'}"


def weights(subject: Subject) -> str:
    """The files that decide results are named and can be hashed."""
    if not hasattr(subject.found, "weights"):
        raise Skip(f"a {subject.spec.kind} of this kind names no weights")
    from chexgenbench.files import sha256_file
    from chexgenbench.workflow.plan import weight_paths

    chosen = subject.parameters
    try:
        named = weight_paths(subject.plugin, chosen, subject.context)
    except UserError as error:
        if not error.hint:
            raise Fault(
                f"what is missing is said, but not what to do: {error.message}",
                "raise UserError(message, hint=...)",
            ) from error
        raise Skip(f"not here: {error.message}") from error
    gone = [name for name, path in named.items() if not path.is_file()]
    if gone:
        raise Fault(
            f"weights() names what is no file: {', '.join(gone[:3])}",
            "name files, and raise UserError with a hint where one is missing",
        )
    again = weight_paths(subject.plugin, chosen, subject.context)
    if again != named:
        raise Fault("weights() names other files the second time")
    smallest = sorted(named.values(), key=lambda path: path.stat().st_size)[:3]
    for path in smallest:
        sha256_file(path)
    if not named:
        return "none"
    size = sum(path.stat().st_size for path in named.values())
    return f"{len(named)} files, {size / 1e6:.1f} MB, readable"


def shorten(items: Iterable[object], most: int = 3) -> str:
    """The first few, for a message.

    >>> shorten(range(5))
    '0, 1, 2 and 2 more'
    """
    listed = [str(item) for item in items]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
