"""Where each plugin works: in this process, beside it, in a container, or on a cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from chexgenbench.environments import python_of
from chexgenbench.errors import UserError, unknown_name
from chexgenbench.executors import Launcher, ModelSource, Processes, Workplace
from chexgenbench.jobs.job import Limits

if TYPE_CHECKING:
    from chexgenbench.executors.cluster import Ray
    from chexgenbench.registry import Plugin
    from chexgenbench.workflow.options import Options

Kind = Literal["here", "process", "container", "ray"]
KINDS: tuple[str, ...] = ("auto", *get_args(Kind))


@dataclass(frozen=True)
class Place:
    """Where a plugin works.

    Attributes:
        kind: ``here`` is this process, or several of this machine that share one folder.
        interpreter: the Python of the plugin's own environment, where it has one on this machine.
        environment: the name of that environment, ``containers/NAME``.
    """

    kind: Kind
    interpreter: Path | None = None
    environment: str | None = None

    @property
    def here(self) -> bool:
        """Whether the plugin's modules must be installed in this environment."""
        return self.kind in ("here", "process", "ray") and self.interpreter is None


def place_of(options: Options, plugin: Plugin[Any]) -> Place:
    """Where ``--executor`` lets a model, an encoder or a task metric work.

    Without a word of the user, a plugin with an environment of its own works in that: in its venv
    where that was built, else in its container where that was built, else here. ``container`` for
    all leaves encoders and metrics without an environment here: they have no container. A model
    that reads the training side works here where ``process`` or ``ray`` is said for all.

    Raises:
        UserError: an executor that is not known, or that this model cannot work with; a venv or an
            image that is stale.
    """
    own: str | None = plugin.spec.environment
    kind = chosen_kind(options.executors, plugin.name)
    if getattr(plugin.spec, "uses_training", False):
        named = f"{plugin.name}={kind}" in options.executors and kind not in ("auto", "here")
        # Who asks for containers does so because of the code: it is not let out by what it says.
        if named or kind == "container":
            raise UserError(
                f"The model {plugin.name!r} reads the split's training side, which a job directory "
                "does not hold.",
                hint=f"Let it work here: --executor {plugin.name}=here",
            )
        kind = "here"
    if kind == "container" and own is None and plugin.spec.kind != "model":
        kind = "here" if f"{plugin.name}=container" not in options.executors else kind
    if kind == "container":
        return Place("container", None, own)
    python = python_of(own, options.home.cache, options.home)
    if kind == "process" and own is not None and python is None:
        raise UserError(
            f"The environment {own} of the {plugin.spec.kind} {plugin.name!r} is not built.",
            hint=f"Build it: chexgenbench env build {own}. Or let it work here, where its packages "
            f"may be others: --executor {plugin.name}=here",
        )
    if kind != "auto":
        return Place(cast(Kind, kind), python, own)
    if own is not None and python is None:
        from chexgenbench.executors.containers import is_built

        if is_built(own, options.runtime, options.home):
            return Place("container", None, own)
    return Place("here", python, own)


def check_places(options: Options, plugins: Sequence[Plugin[Any]], devices: Sequence[str]) -> None:
    """Raises `UserError` where a plugin's place is not there: no runtime, an image that is not
    built, a cluster that does not answer or has no such worker, a shared place that cannot be
    written to."""
    tried = False
    for plugin in plugins:
        place = place_of(options, plugin)
        if place.kind not in ("container", "ray"):
            continue
        if place.kind == "ray" and options.shared is not None and not tried:
            _try_shared(options.shared)
            tried = True
        launcher = launcher_of(place, options, devices)
        if place.kind == "ray":
            cast("Ray", launcher).check_memory(options.memory)
    kinds = {place_of(options, plugin).kind for plugin in plugins}
    if plugins and "ray" not in kinds and (options.address or options.shared):
        option = "--address" if options.address else "--shared"
        raise UserError(
            f"{option} is for the executor ray, and nothing in this run works by it.",
            hint="Say --executor ray as well, or leave it out.",
        )
    if plugins and kinds == {"here"} and options.shards is not None:
        raise UserError(
            "--shards is for the executors process, container and ray, and all of this run works "
            "here.",
            hint="Say --executor as well, or leave it out.",
        )


def _try_shared(url: str) -> None:
    """Raises `UserError` where a file cannot be left in a shared place, read and removed."""
    from chexgenbench.executors.mirror import Remote, told, without_secret

    mark = os.urandom(8).hex()
    try:
        probe = Remote(f"{url.rstrip('/')}/chexgenbench-{mark}")
        probe.write("probe", mark.encode())
        found = probe.read("probe")
        probe.remove()
    except UserError:
        raise
    except Exception as error:  # each of fsspec's file systems has errors of its own
        raise UserError(
            f"Nothing can be written to {without_secret(url)}: {told(error, url)}",
            hint="Name another place with --shared, which this machine may write to.",
        ) from error
    if found != mark.encode():
        raise UserError(
            f"What was written to {without_secret(url)} is read back as something else.",
            hint="Name another place with --shared.",
        )


def chosen_kind(executors: Sequence[str], plugin: str) -> str:
    """What ``--executor`` says of a plugin: ``KIND`` for all, ``NAME=KIND`` for one.

    >>> chosen_kind(("ray", "sana=container"), "sana"), chosen_kind((), "sana")
    ('container', 'auto')

    Raises:
        UserError: a kind that is not known.
    """
    found = "auto"
    for text in executors:
        name, equals, kind = text.rpartition("=")
        if kind not in KINDS:
            raise unknown_name("executor", kind, KINDS)
        if not equals and found == "auto":
            found = kind
        if equals and name == plugin:
            return kind
    return found


def check_executors(executors: Sequence[str], plugins: Sequence[str]) -> None:
    """Raises `UserError` where ``--executor NAME=KIND`` names what is not in the run: none of its
    models, encoders and task metrics."""
    for text in executors:
        name, equals, _ = text.rpartition("=")
        if equals and name not in plugins:
            raise unknown_name("model, encoder or task metric (in --executor)", name, plugins)
        chosen_kind([text], name)


def launcher_of(place: Place, options: Options, devices: Sequence[str]) -> Launcher | None:
    """What starts a model's workers; None where they share the generation's folder.

    Args:
        devices: those that the user named; each gets a worker, or ``--workers`` in turn.

    Raises:
        UserError: the place is not there: no runtime, no image, no cluster.
    """
    if place.kind == "here":
        return None
    count = options.workers or len(devices)
    places = [devices[number % len(devices)] for number in range(count)]
    if place.kind == "process":
        return Processes(places, place.interpreter)
    if place.kind == "container":
        from chexgenbench.executors.containers import Containers

        return Containers(places, place.environment, options.runtime, options.home)
    from chexgenbench.executors.cluster import Ray

    if options.address is None:
        raise UserError(
            "The executor ray needs an address.",
            hint="--address HOST:6379, or --address local for the processors of this machine.",
        )
    return Ray(
        options.address,
        workers=options.workers,
        device=devices[0],
        interpreter=place.interpreter,
        shared=options.shared,
    )


def workplace_of(
    options: Options, plugin: Plugin[Any], source: ModelSource, devices: Sequence[str]
) -> Workplace | None:
    """Where an encoder or a task metric works; None where that is this process.

    Args:
        source: where plugins come from.
        devices: as for `launcher_of`.
    """
    place = place_of(options, plugin)
    if place.kind == "here" and place.interpreter is None:
        return None

    def start() -> Launcher:
        if place.kind == "here":
            return Processes(devices, place.interpreter)
        launcher = launcher_of(place, options, devices)
        assert launcher is not None  # only of what works here
        return launcher

    # Where job directories travel through a shared place, the project's folder is not seen.
    shared = options.shared.rstrip("/") if place.kind == "ray" and options.shared else None

    def forget(folder: Path) -> None:
        from chexgenbench.executors.mirror import Remote, place_at

        if shared is not None:
            Remote(place_at(shared, folder)).remove()

    return Workplace(
        open=start,
        name=f"{place.kind} {place.environment or ''} {place.interpreter or ''}",
        root=options.home.runs / "jobs",
        source=source,
        limits=Limits(memory=options.memory),
        timeout=options.timeout,
        shards=options.shards,
        sees_files=place.kind != "container" and shared is None,
        foreign=not place.here,
        elsewhere=shared,
        forget=forget,
    )
