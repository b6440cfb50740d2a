"""The checks of each kind of plugin, and how to take them in this process."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from chexgenbench.errors import ChexGenBenchError, UserError, is_disk_fault
from chexgenbench.registry import Plugin
from chexgenbench.testing import common, encoders, judges, metrics, models, splits
from chexgenbench.testing.find import load, locate, plugins_of
from chexgenbench.testing.results import Fault, Result, Skip, Status
from chexgenbench.testing.subject import Origin, Settings, Subject
from chexgenbench.types import Spec

if TYPE_CHECKING:
    import pytest

F = TypeVar("F", bound=Callable[..., Any])
Function = Callable[[Subject], str]

_COMMON: dict[str, Function] = {
    "name": common.named,
    "summary": common.summary,
    "licence": common.licence,
    "descriptions": common.described,
    "lazy": common.lazy,
    "loads": common.loads,
    "docstring": common.documented,
    "parameters": common.parameters,
    "weights": common.weights,
}

_OF_KIND: dict[str, dict[str, Function]] = {
    "model": {
        "images": models.images,
        "same-seed": models.same_seed,
        "fresh-process": models.fresh_process,
        "another-seed": models.another_seed,
        "batches": models.batches,
        "order": models.order,
        "sizes": models.sizes,
        "unusual-prompts": models.unusual_prompts,
    },
    "encoder": {
        "preprocess": encoders.preprocess,
        "outputs": encoders.outputs,
        "batches": encoders.batches,
        "order": encoders.order,
        "repeats": encoders.repeats,
        "fresh-process": encoders.fresh_process,
        "grey-is-colour": encoders.grey_is_colour,
        "tells-apart": encoders.tells_apart,
        "text": encoders.text,
    },
    "metric": {
        "scores": metrics.scores,
        "direction": metrics.direction,
        "repeats": metrics.repeats,
        "order": metrics.order,
        "alone": metrics.alone,
        "small": metrics.small,
        "interval": metrics.interval,
        "patients": metrics.patients,
        "needs": metrics.needs,
        "looks-at-rows": metrics.looks_at_rows,
        "runs": metrics.runs,
        "runs-again": metrics.runs_again,
    },
    "split": {
        "source": splits.source,
        "table": splits.table,
        "images": splits.images,
        "patients": splits.patients,
        "credentialed": splits.credentialed,
    },
    "judge": {
        "labels": judges.labels,
        "alone": judges.alone,
        "learns": judges.learns,
    },
}


def check_names(kind: str) -> list[str]:
    """The names of the checks of a kind of plugin, in the order in which they are taken.

    >>> check_names("judge")[-3:]
    ['labels', 'alone', 'learns']
    """
    return [*_COMMON, *_OF_KIND[kind]]


@dataclass(frozen=True)
class Check:
    """One check of one plugin, which `run` takes.

    Attributes:
        name: of the check, such as ``same-seed``.
        plugin: name of the plugin.
    """

    name: str
    plugin: str
    _subject: Subject = field(repr=False, compare=False)
    _function: Function = field(repr=False, compare=False)

    def run(self) -> Result:
        """Takes the check. Whatever the plugin raises is a failed check; only Ctrl-C goes up."""
        began = time.monotonic()
        status: Status = "passed"
        hint = ""
        try:
            if self.name in self._subject.settings.skip:
                raise Skip("left out, as was asked")
            detail = self._function(self._subject)
        except Skip as reason:
            status, detail = "skipped", str(reason)
        except Fault as fault:
            status, detail, hint = "failed", fault.detail, fault.hint
        except ChexGenBenchError as error:
            status, detail, hint = "failed", error.message, error.hint or ""
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin: SystemExit as well
            if is_disk_fault(error):
                raise
            status, detail = "failed", f"{type(error).__name__}: {error}"
        if status == "failed":
            first = self._subject.faults.setdefault(detail, self.name)
            if first != self.name:
                status, detail, hint = "skipped", f"not taken: what {first} found stops it", ""
        return Result(
            plugin=self.plugin,
            kind=self._subject.spec.kind,
            check=self.name,
            status=status,
            detail=" ".join(detail.split()),
            hint=" ".join(hint.split()),
            seconds=round(time.monotonic() - began, 3),
        )

    def verify(self) -> None:
        """Takes the check inside a test: skips the test where it does not apply.

        Raises:
            AssertionError: the plugin does not keep the contract; with what to do.
        """
        found = self.run()
        if found.status == "skipped":
            import pytest

            pytest.skip(found.detail)
        assert found.status == "passed", _text(found)


def _text(found: Result) -> str:
    hint = f"\n  what to do: {found.hint}" if found.hint else ""
    return f"{found.kind} {found.plugin}, {found.check}: {found.detail}{hint}"


def checks_of(
    plugin: Plugin[Any], folder: Path, settings: Settings, origin: Origin | None = None
) -> list[Check]:
    """All checks of a plugin, which share what they make in `folder`.

    Raises:
        UserError: `settings` names a check or parameter that there is not.
    """
    functions = {**_COMMON, **_OF_KIND[plugin.spec.kind]}
    every = {name for kind in _OF_KIND for name in check_names(kind)}
    for name in settings.skip:
        if name not in every:
            raise UserError(
                f"There is no check {name!r}.", hint=f"There are: {', '.join(sorted(every))}."
            )
    plugin_fields = plugin.spec.parameters.model_fields
    if set(settings.values) - set(plugin_fields):
        plugin.parse(settings.values)  # says which, and the nearest
    subject = Subject(plugin, folder, settings, origin)
    return [Check(name, plugin.name, subject, run) for name, run in functions.items()]


def collect(
    target: str | Path | Spec,
    settings: Settings,
    kind: str | None = None,
    name: str | None = None,
) -> list[Check]:
    """The checks of all plugins that a target means, with a temporary folder that ends with this
    process."""
    import atexit

    folder = Path(tempfile.mkdtemp(prefix="chexgenbench-check-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if not isinstance(target, str | Path):
        return checks_of(Plugin(target, "the caller"), folder / "0", settings)
    origin = locate(target)
    found = plugins_of(origin, load(origin), kind, name)
    return [
        check
        for number, plugin in enumerate(found)
        for check in checks_of(plugin, folder / str(number), settings, origin)
    ]


def check_plugin(
    target: str | Path | Spec,
    settings: Settings | None = None,
    *,
    kind: str | None = None,
    name: str | None = None,
) -> list[Result]:
    """Takes all checks in this process, one after the other.

    A plugin that hangs or ends the process takes it along; `check_apart` survives that.

    Args:
        target: a plugin's file, a package's folder (installed or not), a plugin's name, or a
            descriptor (another process cannot find that, so some checks are skipped).
        settings: parameter values, tolerances, checks to leave out.
        kind: ``model`` and so on, where `target` has several kinds.
        name: of the plugin, where `target` has several.

    Raises:
        UserError: there is no such plugin, parameter or check.
    """
    with _visiting():
        return [each.run() for each in collect(target, settings or Settings(), kind, name)]


@contextmanager
def _visiting() -> Iterator[None]:
    """Leaves Python's path as it was, so that a package that is not installed is no plugin of what
    follows; divisions by zero inside a plugin are its own, since what comes of them is checked."""
    import warnings

    before = list(sys.path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        sys.path[:] = before


def assert_contract(
    target: str | Path | Spec,
    settings: Settings | None = None,
    *,
    kind: str | None = None,
    name: str | None = None,
) -> list[Result]:
    """`check_plugin` as one assertion.

    Raises:
        AssertionError: a check failed; it lists all that did, with what to do.
    """
    found = check_plugin(target, settings, kind=kind, name=name)
    failed = [_text(each) for each in found if each.status == "failed"]
    assert not failed, "\n".join(failed)
    return found


def contract(
    target: str | Path | Spec,
    settings: Settings | None = None,
    *,
    kind: str | None = None,
    name: str | None = None,
) -> Callable[[F], F]:
    """A pytest decorator: the test is run once a check, with it as the argument ``check``.

    The arguments and errors are those of `check_plugin`.
    """
    import pytest

    checks = collect(target, settings or Settings(), kind, name)
    several = len({check.plugin for check in checks}) > 1
    names = [f"{each.plugin}-{each.name}" if several else each.name for each in checks]
    mark: pytest.MarkDecorator = pytest.mark.parametrize("check", checks, ids=names)
    return mark
