"""Plan and run the encoders over what they have not seen yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from chexgenbench.errors import PLUGIN_FAULTS, ChexGenBenchError, is_disk_fault
from chexgenbench.executors import Workplace, encode_elsewhere
from chexgenbench.features.store import FeatureStore
from chexgenbench.files import digest, sha256_bytes
from chexgenbench.images import BadImage
from chexgenbench.jobs.encode import Gatherer, ImageItem, encode_images, encode_texts
from chexgenbench.jobs.job import EncodeJob, EncoderWork, plain_context
from chexgenbench.registry import Plugin
from chexgenbench.types import Context, Encoder, EncoderSpec, Parameters

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class EncoderPlan:
    """An encoder chosen for a run: its identity names its folder in the feature store.

    Attributes:
        files: the weights, for a worker that is to read them.
    """

    plugin: Plugin[EncoderSpec]
    parameters: Parameters
    context: Context
    identity: Mapping[str, Any]
    images: FeatureStore
    texts: FeatureStore
    files: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        return self.plugin.name

    @property
    def id(self) -> str:
        return digest(self.identity)[:16]

    def lacking(
        self,
        side: Literal["images", "texts"],
        items: Iterable[tuple[str, object]],
        say: Callable[[str], None],
    ) -> list[str]:
        """The keys of those items that have no features, each once.

        Args:
            say: told where features were damaged, so that they are made again.
        """
        store = self.images if side == "images" else self.texts
        keys = store.without(key for key, _ in items)
        for path in store.news():
            say(f"warning: features of {self.name} were damaged, and are made again: {path}")
        return keys

    def close(self) -> None:
        """Ends the use of what is stored; see `FeatureStore.close`."""
        self.images.close()
        self.texts.close()

    def load(self) -> Encoder:
        encoder = self.plugin.create(self.parameters, self.context)
        assert isinstance(encoder, Encoder)  # Plugin.load has checked the class
        return encoder


def plan_encoder(
    plugin: Plugin[EncoderSpec],
    parameters: Parameters,
    context: Context,
    *,
    root: Path,
    weights: Mapping[str, str],
    files: Sequence[Path] = (),
) -> EncoderPlan:
    """Names the encoder's features; reads what is stored of them.

    Args:
        root: the folder that holds the features of all encoders.
        weights: SHA-256 of each weight file.
        files: the weight files.
    """
    identity = {
        "encoder": plugin.identity(),
        "parameters": parameters.identity(),
        "weights": dict(weights),
        "preprocessing": plugin.spec.preprocessing,
        "outputs": dict(plugin.spec.outputs),
        "device": context.device.partition(":")[0],
        "dtype": context.dtype,
    }
    folder = root / f"{plugin.name}-{digest(identity)[:16]}"
    outputs = plugin.spec.outputs
    plan = EncoderPlan(
        plugin,
        parameters,
        context,
        identity,
        images=FeatureStore(folder / "images", outputs),
        texts=FeatureStore(folder / "texts", {"features": outputs.get("features", 0)}),
        files=tuple(files),
    )
    plan.images.refresh()
    plan.texts.refresh()
    return plan


Stage: TypeAlias = Callable[[int], AbstractContextManager[Callable[[int], None]]]
"""Of a number of steps, a context manager that yields what is told of those just done."""


def _silent(_count: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda _done: None)


def text_key(text: str) -> str:
    """The key of a text: the hash of its UTF-8 bytes."""
    return sha256_bytes(text.encode("utf-8"))


@dataclass
class Extraction:
    """What `extract` did: images encoded now, seconds, and the images that are no images."""

    encoded: int = 0
    seconds: float = 0.0
    bad: dict[str, BadImage] = field(default_factory=dict)


def extract(
    images: Sequence[tuple[str, Path]],
    texts: Sequence[str],
    encoders: Sequence[EncoderPlan],
    *,
    batch_size: int,
    text_encoders: frozenset[str] = frozenset(),
    workplaces: Mapping[str, Workplace] = MappingProxyType({}),
    stage: Stage = _silent,
    text_stage: Stage = _silent,
    say: Callable[[str], None] = lambda _text: None,
) -> Extraction:
    """Encodes the images and texts that an encoder has not stored yet.

    Args:
        images: (content hash, file), in canonical order; equal hashes are encoded once.
        texts: the prompts to encode by the encoders named in `text_encoders`.
        workplaces: where encoders work by workers, by their name; the others work here. Texts are
            encoded there too where the encoder has an environment of its own.
        stage: given the number of images to do, a context manager that yields ``advance``.
        text_stage: the same for texts.
        say: told about workers that were lost.

    Returns:
        What was done; an image that cannot be decoded stands in ``bad`` by its hash.
    """
    start = time.perf_counter()
    done = Extraction()
    items: dict[str, ImageItem] = {}
    missing_images = {plan.name: set(plan.lacking("images", images, say)) for plan in encoders}
    for key, path in images:
        lacking = frozenset(name for name, keys in missing_images.items() if key in keys)
        if lacking and key not in items:
            items[key] = ImageItem(key, path, lacking)
    keyed = {text_key(text): text for text in texts}
    lacking_texts = {
        plan.name: [(key, keyed[key]) for key in plan.lacking("texts", keyed.items(), say)]
        for plan in encoders
        if plan.name in text_encoders
    }

    def bad(key: str, error: BadImage) -> None:
        done.bad[key] = error

    away = {plan.name: plan for plan in encoders if plan.name in workplaces}
    for group, missing in _groups(list(away.values()), workplaces, list(items.values())):
        with stage(len(missing)) as advance:
            encode_elsewhere(
                _job(group, batch_size, "images", workplaces),
                missing,
                workplaces[group[0].name],
                sink=lambda name, keys, outputs: away[name].images.write(keys, outputs),
                bad=bad,
                advance=advance,
                say=say,
            )
    for plan in away.values():
        if workplaces[plan.name].foreign and (missing := lacking_texts.pop(plan.name, [])):
            with text_stage(len(missing)) as advance:
                encode_elsewhere(
                    _job([plan], batch_size, "texts", workplaces),
                    missing,
                    workplaces[plan.name],
                    sink=lambda name, keys, outputs: away[name].texts.write(keys, outputs),
                    bad=bad,
                    advance=advance,
                    say=say,
                )
    here = [replace(item, encoders=item.encoders - away.keys()) for item in items.values()]
    _extract_here(
        [item for item in here if item.encoders],
        lacking_texts,
        encoders,
        batch_size=batch_size,
        bad=bad,
        stage=stage,
        text_stage=text_stage,
    )
    done.encoded = len(items) - len(done.bad)
    done.seconds = time.perf_counter() - start
    return done


def _groups(
    encoders: Sequence[EncoderPlan],
    workplaces: Mapping[str, Workplace],
    items: Sequence[ImageItem],
) -> list[tuple[list[EncoderPlan], list[tuple[str, str]]]]:
    """Encoders that work at one place and lack the same images, which are decoded once for them.

    The batches of each are those that one process would cut, whoever else is in its group.
    """
    groups: list[tuple[list[EncoderPlan], list[tuple[str, str]]]] = []
    for plan in encoders:
        missing = [(item.key, str(item.path)) for item in items if plan.name in item.encoders]
        for others, theirs in groups:
            if workplaces[others[0].name] == workplaces[plan.name] and theirs == missing:
                others.append(plan)
                break
        else:
            if missing:
                groups.append(([plan], missing))
    return groups


def _job(
    encoders: Sequence[EncoderPlan],
    batch_size: int,
    side: Literal["images", "texts"],
    workplaces: Mapping[str, Workplace],
) -> EncodeJob:
    """What a worker is told, less its items."""
    workplace, first = workplaces[encoders[0].name], encoders[0]
    weights = [path for plan in encoders for path in plan.files]
    return EncodeJob(
        side=side,
        encoders=tuple(
            EncoderWork(
                name=plan.plugin.name,
                source=plan.plugin.source_hash(),
                parameters=plan.parameters.model_dump(mode="json"),
                outputs=dict((plan.images if side == "images" else plan.texts).outputs),
            )
            for plan in encoders
        ),
        context=plain_context(first.context),
        device=first.context.device.partition(":")[0],
        batch_size=batch_size,
        n_items=0,
        limits=workplace.limits,
        **replace(workplace.source, weights=weights).told(),
    )


def _extract_here(
    items: Sequence[ImageItem],
    texts: Mapping[str, Sequence[tuple[str, str]]],
    encoders: Sequence[EncoderPlan],
    *,
    batch_size: int,
    bad: Callable[[str, BadImage], None],
    stage: Stage,
    text_stage: Stage,
) -> None:
    """Encodes in this process: images by the encoders that each names, texts by encoder name."""
    needed = {name for item in items for name in item.encoders}
    needed |= {name for name, lacking in texts.items() if lacking}
    if not needed:
        return
    chosen = {plan.name: plan for plan in encoders if plan.name in needed}
    loaded = {name: (plan.plugin.spec, plan.load()) for name, plan in chosen.items()}
    writers = {name: Gatherer(plan.images.write) for name, plan in chosen.items()}
    try:
        with stage(len(items)) as advance:
            encode_images(
                items,
                loaded,
                batch_size=batch_size,
                device=next(iter(chosen.values())).context.device,
                sink=lambda name, keys, outputs: writers[name].add(keys, outputs),
                bad=lambda item, error: bad(item.key, error),
                advance=advance,
            )
        for name, todo in texts.items():
            if todo:
                spec, encoder = loaded[name]
                writer = Gatherer(chosen[name].texts.write)
                with text_stage(len(todo)) as advance:
                    encode_texts(
                        todo,
                        spec,
                        encoder,
                        batch_size=batch_size,
                        sink=writer.add,
                        advance=advance,
                    )
                writer.flush()
    except ChexGenBenchError:
        raise
    except PLUGIN_FAULTS as error:
        if is_disk_fault(error):
            raise
        names = ", ".join(sorted(loaded))
        raise ChexGenBenchError(
            f"Encoding failed ({names}): {type(error).__name__}: {error}"
        ) from error
    finally:
        for writer in writers.values():
            writer.flush()


def read_texts(plan: EncoderPlan, texts: Sequence[str]) -> NDArray[np.float32]:
    """Text features float32 [n, d] of `texts`, which `extract` has encoded."""
    return plan.texts.read([text_key(text) for text in texts])["features"]
