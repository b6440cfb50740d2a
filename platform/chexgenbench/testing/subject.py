"""A plugin under test: where it comes from, with what parameters, and what was made with it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chexgenbench.errors import ChexGenBenchError, UserError
from chexgenbench.executors.launch import last_line
from chexgenbench.registry import Plugin
from chexgenbench.testing.results import Fault, Skip
from chexgenbench.types import Context

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from chexgenbench.testing.world import World

LONGEST = 600.0
"""Seconds that one check may take by default."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a plugin is checked.

    Attributes:
        values: parameter values, as ``--set`` takes them.
        skip: names of checks that are not taken.
        tolerance: how far images or features may move with the batch: grey levels for a model
            (None: 1), a share of the feature's length for an encoder (None: 1e-4).
        deterministic: the model says that its images do not depend on the seed.
        device: where it runs.
        home: the folder that relative places in parameters start from; None: the current one.
        cache: for downloads; None: the user's.
        seconds: the longest that one check may take; beyond that the plugin hangs.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    skip: tuple[str, ...] = ()
    tolerance: float | None = None
    deterministic: bool = False
    device: str = "cpu"
    home: Path | None = None
    cache: Path | None = None
    seconds: float = LONGEST

    def as_json(self) -> dict[str, Any]:
        """As JSON values, for another process."""
        places = {"home": self.home, "cache": self.cache}
        named = {name: None if path is None else str(path) for name, path in places.items()}
        return {**self.__dict__, "values": dict(self.values), "skip": list(self.skip), **named}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Settings:
        """The reverse of `as_json`."""
        places = {
            name: None if values[name] is None else Path(values[name]) for name in ("home", "cache")
        }
        return cls(**{**values, **places, "skip": tuple(values["skip"])})


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How another process finds the same plugins.

    Attributes:
        paths: folders to put on the path, such as the ``src`` of a package that is not installed.
        files: files with plugins.
        distribution: the package whose plugins are meant; empty: those of the file, or `name`.
        name: what the user typed for a plugin that is installed or built in.
    """

    paths: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    distribution: str = ""
    name: str = ""


class Subject:
    """A plugin under test.

    Args:
        plugin: the plugin.
        folder: an empty folder for what is drawn and made.
        settings: how it is checked.
        origin: None where no other process can find it.
    """

    def __init__(
        self, plugin: Plugin[Any], folder: Path, settings: Settings, origin: Origin | None
    ) -> None:
        self.plugin = plugin
        self.spec = plugin.spec
        self.folder = folder
        self.settings = settings
        self.origin = origin
        # What is wrong to the check that found it, so that one fault is said once.
        self.faults: dict[str, str] = {}
        self.kept: dict[str, Any] = {}
        self._fault: str | None = None

    @cached_property
    def world(self) -> World:
        """A small split of pictures."""
        from chexgenbench.testing.world import World

        return World.make(self.folder / "world")

    @cached_property
    def context(self) -> Context:
        from chexgenbench.home import Home

        home = Home.find(self.settings.home)
        return Context(
            device=self.settings.device,
            home=home.root,
            cache=self.settings.cache or home.cache,
            training=self.world.training if getattr(self.spec, "uses_training", False) else None,
        )

    @cached_property
    def parameters(self) -> Any:
        """Parsed; `Skip` where one must be said."""
        fields = self.spec.parameters.model_fields
        given = {**self.plugin.values, **self.settings.values}
        required = [name for name, info in fields.items() if info.is_required()]
        lacking = [name for name in required if name not in given]
        if lacking:
            raise Skip(f"it must be told {', '.join(lacking)}: --set {lacking[0]}=...")
        return self.plugin.parse(self.settings.values)

    @cached_property
    def found(self) -> type[Any]:
        """The class behind the descriptor."""
        found: type[Any] = self._once(self.plugin.load)
        return found

    def needed(self) -> None:
        """`Skip` where something that the plugin needs is not on this machine."""
        try:
            self.parameters  # noqa: B018
            if hasattr(self.found, "weights"):
                self.found.weights(self.parameters, self.context)
        except UserError as error:
            raise Skip(f"not here: {error.message}") from error

    def create(self) -> Any:
        """A new instance; `Skip` where what it needs is not here or it cannot be loaded at all."""
        self.needed()
        argument = self.context if self._takes_context() else 0
        return self._once(lambda: self.plugin.create(self.parameters, argument))

    def _takes_context(self) -> bool:
        return bool(self.spec.kind != "metric" or self.spec.metric == "task")

    @cached_property
    def instance(self) -> Any:
        """One instance that several checks share."""
        return self.create()

    def _once(self, function: Any) -> Any:
        """The result; a fault of loading is said once, and is why later checks are not taken."""
        if self._fault is not None:
            raise Skip(f"it cannot be loaded: {self._fault}")
        try:
            return function()
        except UserError as error:
            raise Skip(f"not here: {error.message}") from error
        except ChexGenBenchError as error:
            self._fault = error.message
            raise Fault(error.message, error.hint or "") from error

    def elsewhere(self, task: str) -> Any:
        """What a fresh process answers to a task of `child`, as JSON values.

        Raises:
            Skip: no other process can find this plugin.
            Fault: the process ended without an answer.
        """
        if self.origin is None:
            raise Skip("a bare descriptor cannot be found by another process; name its file")
        folder = self.folder / f"process-{task}"
        folder.mkdir(parents=True)
        order = {
            "task": task,
            "origin": vars(self.origin),
            "settings": self.settings.as_json(),
            "kind": self.spec.kind,
            "source": self.plugin.source,
            "name": self.plugin.text or self.plugin.spec.name,
            "folder": str(folder),
        }
        (folder / "order.json").write_text(json.dumps(order), encoding="utf-8")
        log = folder / "log.txt"
        try:
            # Into a file: a pipe stays open for as long as a process that the plugin started.
            with log.open("wb") as said:
                done = subprocess.run(
                    child_command(folder / "order.json"),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                    timeout=self.settings.seconds,
                )
        except subprocess.TimeoutExpired as error:
            raise Fault(
                f"a fresh process was not ready after {error.timeout:g} s",
                "a plugin may not wait for anything that does not come; a longer wait: --timeout",
            ) from error
        answer = folder / "answer.json"
        if done.returncode or not answer.is_file():
            last = last_line(log) or f"exit code {done.returncode}"
            raise Fault(f"a fresh process could not do the same: {last}")
        return json.loads(answer.read_text(encoding="utf-8"))

    def made_elsewhere(self) -> list[NDArray[Any]]:
        """The arrays that a fresh process makes of the kit's requests or pictures."""
        import numpy as np

        with np.load(self.elsewhere("make"), allow_pickle=False) as kept:
            return [kept[str(i)] for i in range(len(kept.files))]


def child_command(order: Path) -> list[str]:
    """The command of a child; the current folder stays off its path."""
    return [sys.executable, "-P", "-m", "chexgenbench.testing.child", str(order)]
