"""The generators of reports that can be trained, behind one form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from chexgenbench import Context, ImageSet, Task
from chexgenbench.files import digest, sha256_file
from chexgenbench_plugins.reports import encoder_decoder, fine_tuning
from chexgenbench_plugins.reports.encoder_decoder import Sizes, Training
from chexgenbench_plugins.reports.images import Chosen, grey_images
from chexgenbench_plugins.reports.settings import HALVES, LLAVA_RAD, ReportParameters, files_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Images = TypeVar("Images")
Places = Sequence[tuple[int, int]]
"""Of each image: the position of its set, and its own in there."""


class Generator(Protocol[Images]):
    """What is trained on pairs of an image and its report and writes reports.

    Attributes:
        training: how it is trained.
        facts: JSON values that decide, with the pairs, what a training leads to.
    """

    @property
    def training(self) -> Training: ...
    @property
    def facts(self) -> Mapping[str, Any]: ...

    def read(self, task: Task, sets: Sequence[ImageSet], places: Places) -> Images:
        """Images in the form that `train` and `write` take."""
        ...

    def train(
        self, images: Images, texts: Sequence[str], folder: Path, advance: Callable[[int], None]
    ) -> Path:
        """Trains, or goes on, and returns the folder of the result; told of each epoch."""
        ...

    def write(self, images: Images, trained: Path, advance: Callable[[int], None]) -> list[str]:
        """A report for each image; told of each image."""
        ...


def generator_of(
    parameters: ReportParameters, context: Context, folders: Mapping[str, Path], seed: int
) -> Generator[Any]:
    """The generator that the parameters name.

    Args:
        parameters: Which, and how it is trained.
        context: Device, and whether pickles may be read.
        folders: Of what is loaded, by the name of the parameter.
        seed: Of the run.

    Raises:
        UserError: a file is not there.
    """
    training = Training(
        epochs=parameters.epochs,
        batch_size=parameters.batch_size,
        learning_rate=parameters.learning_rate,
        tokens=parameters.tokens,
        seed=seed % 2**32,
        device=context.device,
    )
    names = LLAVA_RAD if parameters.generator == "llava-rad" else HALVES
    parts = {name: folders[name] for name in names if name in folders}
    facts: dict[str, Any] = {
        "generator": parameters.generator,
        "training": {**vars(training), "device": training.device.partition(":")[0]},
        "parts": {name: sha256_file(path) for name, path in files_of(parameters, parts).items()},
    }
    if parameters.generator == "llava-rad":
        # What the public code trains in; float32 needs 28 GB for the frozen weights alone.
        dtype = "bfloat16" if context.device.startswith("cuda") else "float32"
        source = fine_tuning.Source(
            own=folders["llava_rad"],
            base=folders["vicuna"],
            published=parameters.start == "published",
            context=replace(context, dtype=dtype),
        )
        facts |= {"start": parameters.start, "dtype": dtype}
        return FineTuned(training=training, facts=facts, source=source)
    sizes = Sizes(
        width=parameters.width,
        layers=parameters.layers,
        heads=parameters.heads,
        patch=parameters.patch,
    )
    facts |= {"size": parameters.size, "sizes": vars(sizes)}
    return EncoderDecoder(
        training=training, facts=facts, sizes=sizes, size=parameters.size, parts=parts
    )


@dataclass(frozen=True, kw_only=True)
class EncoderDecoder:
    """See `encoder_decoder`; images are grey levels, decoded once for all runs."""

    training: Training
    facts: Mapping[str, Any]
    sizes: Sizes
    size: int
    parts: Mapping[str, Path]

    def read(self, task: Task, sets: Sequence[ImageSet], places: Places) -> Chosen:
        kinds = sorted({kind for kind, _ in places})
        return Chosen({kind: self._pixels(task, sets[kind]) for kind in kinds}, places)

    def _pixels(self, task: Task, images: ImageSet) -> NDArray[np.uint8]:
        folder = task.part("images", digest(list(images.keys)), self.size)
        with task.stage("read images", len(images), "images") as advance:
            return grey_images(images.paths, folder, size=self.size, advance=advance)

    def train(
        self, images: Chosen, texts: Sequence[str], folder: Path, advance: Callable[[int], None]
    ) -> Path:
        return encoder_decoder.train(
            images,
            texts,
            folder,
            training=self.training,
            sizes=self.sizes,
            encoder=self.parts.get("encoder"),
            decoder=self.parts.get("decoder"),
            advance=advance,
        )

    def write(self, images: Chosen, trained: Path, advance: Callable[[int], None]) -> list[str]:
        return encoder_decoder.generate(
            images,
            trained,
            tokens=self.training.tokens,
            batch_size=self.training.batch_size,
            device=self.training.device,
            advance=advance,
        )


@dataclass(frozen=True, kw_only=True)
class FineTuned:
    """See `fine_tuning`; images are files, which LLaVA-Rad sizes and crops itself."""

    training: Training
    facts: Mapping[str, Any]
    source: fine_tuning.Source

    def read(self, _task: Task, sets: Sequence[ImageSet], places: Places) -> Sequence[Path]:
        return [sets[kind].paths[at] for kind, at in places]

    def train(
        self,
        images: Sequence[Path],
        texts: Sequence[str],
        folder: Path,
        advance: Callable[[int], None],
    ) -> Path:
        return fine_tuning.fine_tune(
            images, texts, folder, source=self.source, training=self.training, advance=advance
        )

    def write(
        self, images: Sequence[Path], trained: Path, advance: Callable[[int], None]
    ) -> list[str]:
        return fine_tuning.write(
            images, trained, source=self.source, training=self.training, advance=advance
        )
