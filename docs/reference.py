"""The reference pages, from what the code says of itself: metrics, commands, hooks, licences."""

from __future__ import annotations

import dataclasses
import inspect
import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

from chexgenbench.registry import KINDS, describe, load_registry

ROOT = Path(__file__).resolve().parent.parent


def cell(value: object) -> str:
    """A text that stays within one cell of a table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """The lines of a Markdown table, or none where there is no row."""
    lines = ["| " + " | ".join(map(cell, row)) + " |" for row in rows]
    names = list(head)
    if not lines:
        return []
    return ["| " + " | ".join(names) + " |", "| --- " * len(names) + "|", *lines, ""]


# --- metrics --------------------------------------------------------------------------------

_KINDS = {
    "set": ("Set metrics", "They compare the features of real and generated images as two sets."),
    "sample": (
        "Sample metrics",
        "They give each image a value; the platform averages it over any subset.",
    ),
    "task": ("Task metrics", "They train, attack or search something, and report on that."),
}


def metrics() -> str:
    """Every built-in metric, by kind and name."""
    registry = load_registry()
    lines: list[str] = []
    for kind, (title, text) in _KINDS.items():
        lines += [f"## {title}", "", text, ""]
        for name, plugin in sorted(registry.metrics.items()):
            if plugin.spec.metric == kind:
                lines += _metric(name, plugin)
    return "\n".join(lines)


def _metric(name: str, plugin: Any) -> Iterator[str]:
    spec, described = plugin.spec, describe(plugin.spec)
    yield from (f"### {name}", "", f"{spec.summary}.", "")
    reads = f"`{spec.output}` of an encoder" if spec.output else "the images themselves"
    facts = [("reads", reads + (", and the text side of it" if spec.text else ""))]
    if spec.metric == "task":
        needs = plugin.load(here=False).needs(plugin.parse({}))
        facts.append(("images by default", "<br>".join(map(_need, needs.values()))))
    if spec.floor:
        facts.append(("beside it", "`floor`, `matched` and `excess`: real against real images"))
    for protocol, values in spec.protocols.items():
        settings = ", ".join(f"`{key}={value}`" for key, value in values.items())
        facts.append((f"protocol `{protocol}`", settings))
    if spec.requires:
        facts.append(("packages", ", ".join(f"`{each}`" for each in spec.requires)))
    facts.append(("literature", ", ".join(f"<{each}>" for each in spec.references)))
    yield from table(("", ""), facts)
    yield from table(("score", "better", "range", "what it says"), map(_score, spec.scores))
    for formula, names in _formulas(spec.scores).items():
        yield from (", ".join(f"`{each}`" for each in names) + ":", "", f"$$\n{formula}\n$$", "")
    if spec.pitfalls:
        yield from ("Beware:", "", *(f"- {each}" for each in spec.pitfalls), "")
    rows = [
        (f"`{name}.{item['name']}`", f"`{item['default']}`", item["description"])
        for item in described["parameters"]
    ]
    yield from table(("parameter", "default", ""), rows)


def _formulas(scores: Iterable[Any]) -> dict[str, list[str]]:
    """Formula to the scores that have it."""
    found: dict[str, list[str]] = {}
    for score in scores:
        if score.formula:
            found.setdefault(score.formula, []).append(score.name)
    return found


def _score(score: Any) -> tuple[str, str, str, str]:
    ends = [_number(score.lowest), _number(score.highest)]
    better = "higher" if score.higher_is_better else "lower"
    return f"`{score.name}`", better, " to ".join(ends), score.summary


def _number(value: float) -> str:
    return {float("-inf"): "-∞", float("inf"): "∞"}.get(value, f"{value:g}")


def _need(need: Any) -> str:
    rows = "all" if need.prompts is None else f"{need.prompts:,}"
    if need.source == "real":
        which = "every row" if need.every_row else f"{rows} prompts"
        return f"real images of the {need.side} side, {which}"
    each = "as many as the run makes" if need.repeats is None else str(need.repeats)
    return f"made for {rows} prompts of the {need.side} side, {each} a prompt"


# --- commands -------------------------------------------------------------------------------


def commands() -> str:
    """Every command with its arguments and options."""
    import typer
    from typer.main import get_command

    from chexgenbench.cli.main import app

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[str]:
        name = " ".join(("chexgenbench", *words))
        below = getattr(command, "commands", {})
        yield from ("#" * min(3, 1 + max(1, len(words))) + f" {name}", "")
        if command.help:
            yield from (inspect.cleandoc(command.help), "")
        context = typer.Context(command, info_name=name)
        if not below:
            pieces = " ".join(command.collect_usage_pieces(context))
            yield from ("```text", f"{name} {pieces}".strip(), "```", "")
        rows = []
        for parameter in command.params:
            record = parameter.get_help_record(context)
            if record is not None and parameter.name not in {"help", *_COMPLETION}:
                form, text = record
                help_, default, rest = _split(text)
                rows.append((f"`{form}`", _default(default), f"{help_} {rest}".strip()))
        yield from table(("option", "default", ""), rows)
        for key, command_below in below.items():
            yield from walk(command_below, (*words, key))

    return "\n".join(walk(get_command(app), ()))


_COMPLETION = {"install_completion", "show_completion"}
"""Options that typer adds by itself; they depend on the shell."""


def _split(text: str) -> tuple[str, str, str]:
    """An option's help, its default and what else stands in the brackets at its end.

    >>> _split("Only the first N.  [default: (all); x>=1]"), _split("Plain.")
    (('Only the first N.', '(all)', '(x>=1)'), ('Plain.', '', ''))
    """
    pattern = r"(.*?)\s*\[(default: .*|[^\]]*(?:required|x[<>]=?)[^\]]*)\]"
    found = re.fullmatch(pattern, text, re.DOTALL)
    if not found:
        return text, "", ""
    default, rest = "", []
    for item in found[2].split("; "):
        if item.startswith("default: "):
            default = item.removeprefix("default: ")
        else:
            rest.append(item)
    return found[1], default, f"({', '.join(rest)})" if rest else ""


def _default(text: str | None) -> str:
    """The default as the page shows it: a value as code, words as words."""
    if not text:
        return ""
    return text[1:-1] if text.startswith("(") and text.endswith(")") else f"`{text}`"


# --- hooks ----------------------------------------------------------------------------------


_OURS = {"chexgenbench.types", "chexgenbench.errors"}


def hooks() -> str:
    """The hooks with their examples, then the types that pass."""
    import chexgenbench
    from chexgenbench import hookspecs

    lines = ["## Hooks", ""]
    for kind in KINDS:
        hook = getattr(hookspecs, f"chexgenbench_{kind}")
        lines += [f"### {hook.__name__}", "", *markdown(inspect.getdoc(hook) or ""), ""]
    lines += ["## Descriptors", ""]
    classes = [getattr(chexgenbench, name) for name in chexgenbench.__all__]
    known = [each for each in classes if getattr(each, "__module__", "") in _OURS]
    descriptors = [each for each in known if each.__name__.endswith("Spec")]
    for each in descriptors:
        lines += _class(each)
    lines += ["## What passes between a plugin and the platform", ""]
    for each in known:
        if each not in descriptors:
            lines += _class(each)
    return "\n".join(lines)


def _class(kind: type) -> Iterator[str]:
    yield from (f"### {kind.__name__}", "", *markdown(inspect.getdoc(kind) or ""), "")
    if dataclasses.is_dataclass(kind):
        rows = []
        for item in dataclasses.fields(kind):
            needed = item.default is item.default_factory is dataclasses.MISSING
            default = "required" if needed else f"`{_shown_default(item)}`"
            rows.append((f"`{item.name}`", f"`{item.type}`", default))
        yield from table(("field", "type", "default"), rows)
    for name, member in vars(kind).items():
        function = member.__func__ if isinstance(member, classmethod) else member
        if name.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
            continue
        signature = str(inspect.signature(function)).replace("'", "")
        mark = "class method " if isinstance(member, classmethod) else ""
        yield from (f"#### {mark}{kind.__name__}.{name}", "")
        yield from ("```text", f"{name}{signature}", "```", "")
        yield from (*markdown(inspect.getdoc(function) or ""), "")


def _shown_default(item: Any) -> str:
    if item.default is not dataclasses.MISSING:
        value = item.default
        return value.__name__ if inspect.isclass(value) else repr(value)
    return {"dict": "{}", "list": "[]"}.get(item.default_factory.__name__, "made anew")


_PART = re.compile(r"(Attributes|Args|Returns|Raises):")


def markdown(text: str) -> list[str]:
    """A docstring as Markdown: literal blocks as Python, parts as lists.

    >>> markdown("One. ``x``::\\n\\n    a = 1\\n\\nArgs:\\n    a: it\\n        is.\\n    b: that.")
    ['One. `x`:', '', '```python', 'a = 1', '```', '', 'Args:', '', '- `a`: it is.', '- `b`: that.']
    """
    text = re.sub(r"``([^`]+)``", lambda found: f"`{' '.join(found[1].split())}`", text)
    lines: list[str] = []
    source = iter(text.splitlines())
    part, literal = "", False
    block: list[str] = []

    def close() -> None:
        nonlocal literal
        code = inspect.cleandoc("\n".join(block)) if block else ""
        lines.extend(["```python", *code.splitlines(), "```", ""])
        block.clear()
        literal = False

    for line in source:
        if literal:
            if not line or line.startswith("    "):
                block.append(line)
                continue
            close()
        if found := _PART.fullmatch(line):
            part = found[1]
            lines += [line, ""]
        elif part and (item := re.fullmatch(r"    (\w[\w, ]*): (.*)", line)):
            names = (
                item[1] if part == "Raises" else ", ".join(f"`{x}`" for x in item[1].split(", "))
            )
            lines.append(f"- {names}: {item[2]}")
        elif part and line.startswith("    ") and lines[-1]:
            lines[-1] += f" {line.strip()}"
        else:
            part = part if line.startswith("    ") or not line else ""
            literal = line.endswith("::")
            lines.append(line.strip()[:-1] if literal else line.strip())
            if literal:
                lines.append("")
                next(source, None)
    if literal:
        close()
    return lines[:-1] if lines and not lines[-1] else lines


# --- licences -------------------------------------------------------------------------------

PERMISSIVE = {
    "0BSD",
    "Apache-2.0",
    "BSD",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "MIT",
    "MIT-CMU",
    "PSF-2.0",
    "Zlib",
}
"""Licences that ask for no more than their own text; BSD where a package does not say which."""

_SPDX = (
    (r"AGPL|Affero", "AGPL"),
    (r"LGPL|Lesser General Public", "LGPL"),
    (r"GPL|General Public", "GPL"),
    (r"MPL|Mozilla", "MPL-2.0"),
    (r"Apache", "Apache-2.0"),
    (r"2-[Cc]lause|BSD-2|BSD 2", "BSD-2-Clause"),
    (r"3-[Cc]lause|BSD-3|New BSD", "BSD-3-Clause"),
    (r"BSD", "BSD"),
    (r"MIT", "MIT"),
    (r"Python Software Foundation|matplotlib", "PSF-2.0"),
)
"""What binds comes first: of several licences named in one text the strictest is taken."""
UNKNOWN = "not stated in its metadata"


def licence(package: str) -> str:
    """The licence of an installed package by its SPDX name, from its own metadata.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    found = metadata(package)
    if expression := found.get("License-Expression"):
        return str(expression)
    stated = [each for each in found.get_all("Classifier") or [] if each.startswith("License ::")]
    free = (found.get("License") or "").strip().partition("\n")[0]
    # The free text is more exact than a classifier where it is a name and not the licence itself.
    for text in (free if "opyright" not in free else "", *stated):
        for pattern, name in _SPDX:
            if re.search(pattern, text):
                return name
    return UNKNOWN


def permissive(stated: str) -> bool:
    """Whether every part of an SPDX expression is permissive.

    >>> permissive("MIT AND Apache-2.0 WITH LLVM-exception"), permissive("MPL-2.0 AND MIT")
    (True, False)
    """
    parts = re.split(r" AND | OR |[()]", stated)
    return {part.partition(" WITH ")[0].strip() for part in parts} - {""} <= PERMISSIVE


def dependencies() -> dict[str, list[str]]:
    """Requirements of pyproject.toml by what asks for them; ``""`` is what every install has."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def package_of(requirement: str) -> str:
    """Its name without the versions.

    >>> package_of("pytest-xdist>=3.6")
    'pytest-xdist'
    """
    found = re.match(r"[\w.-]+?(?=[<>=!~\[; ]|$)", requirement)
    assert found is not None, requirement
    return found[0]


_TITLES = {
    "": "What every installation has",
    "dev": "For work on the project alone (`dev`)",
}


def licences() -> str:
    """Packages that the project asks for, then weights, each with its licence."""
    lines: list[str] = []
    for extra, requirements in dependencies().items():
        if extra == "bench":  # nobody else installs it, and `make docs` does without
            continue
        lines += [f"### {_TITLES.get(extra, f'With the extra `{extra}`')}", ""]
        rows = []
        for requirement in sorted(requirements, key=str.lower):
            name = package_of(requirement)
            try:
                rows.append((f"`{name}`", requirement[len(name) :], licence(name)))
            except PackageNotFoundError:
                rows.append((f"`{name}`", requirement[len(name) :], "not installed here"))
        lines += table(("package", "version", "licence"), rows)
    lines += ["## Weights and data", "", "What each plugin says of what it loads.", ""]
    registry = load_registry()
    for kind in ("models", "encoders", "splits", "judges"):
        lines += [f"### {kind}", ""]
        specs = [item.spec for _, item in sorted(registry.of_kind(kind).items())]
        lines += table(
            ("name", "licence", "from"),
            ((f"`{spec.name}`", spec.licence, ", ".join(_sources(spec))) for spec in specs),
        )
    return "\n".join(lines)


def _sources(spec: Any) -> list[str]:
    found = []
    for each in getattr(spec, "downloads", ()):
        web = each.source.startswith("https://")
        address = each.source if web else f"https://huggingface.co/{each.source}"
        label = each.source.rpartition("/")[2] if web else each.source
        found.append(f"[{label}]({address})" + (" (gated)" if each.gated else ""))
    return found
