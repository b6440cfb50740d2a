"""What a plugin offers and what passes between it and the platform.

A hook yields descriptors (`ModelSpec`, `EncoderSpec`, `MetricSpec`, `SplitSpec`, `JudgeSpec`); they
cost nothing to list. The class named by ``load`` is imported only when the plugin is used.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, SupportsIndex

from pydantic import BaseModel, ConfigDict, Field

from chexgenbench.files import digest

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import PIL.Image
    import torch
    from numpy.typing import NDArray

    from chexgenbench.splits.prompts import PromptTable
    from chexgenbench.statistics.estimate import Estimate

    Image = PIL.Image.Image | NDArray[np.uint8] | NDArray[np.float32]
else:
    Image = Any

OVERALL = "overall"
"""The subset of all rows."""

MACRO = "macro"
"""The mean over the findings; not a set of rows."""

FINDINGS: tuple[str, ...] = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
"""The 14 CheXpert labels, in the order of the published protocol."""


class Location:
    """Marks a parameter that says where something lies: ``Annotated[str, Location()]``.

    A result depends on the content there, which `weights` names and the platform hashes, and not on
    the place; so the place is no part of an identity.
    """


class Parameters(BaseModel):
    """Base of a plugin's parameters: typed, defaulted, unknown names refused.

    Give each field a ``Field(default, description=...)``: `show` prints them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    def identity(self) -> dict[str, Any]:
        """The values that a result depends on, as JSON values: all but locations."""
        places = {
            name
            for name, info in type(self).model_fields.items()
            if any(isinstance(mark, Location) for mark in info.metadata)
        }
        return self.model_dump(mode="json", exclude=places)


class NotApplicable(Exception):
    """Raised by a metric that cannot be taken on this subset; recorded as ``skipped``."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """Where and how a plugin runs.

    Attributes:
        device: a torch device string, such as ``cpu`` or ``cuda:0``.
        dtype: ``float32``, ``float16`` or ``bfloat16``; chosen by device unless the user said.
        home: the project folder that relative paths start from.
        cache: a folder for downloads and derived files, shared by all projects of the user.
        allow_pickle: the user accepts weights as pickles, which can run code when they are loaded.
        training: the split's training table and images; None where the split has none.
    """

    device: str = "cpu"
    dtype: str = "float32"
    allow_pickle: bool = False
    home: Path
    cache: Path
    training: PromptTable | None = None


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file of a `Download`.

    Attributes:
        name: its path in the hub's repository, or its name in the cache folder ``weights``.
        size: bytes; None where nobody published it.
        sha256: 64 hexadecimal digits; None where nobody published it. What a run uses is hashed in
            any case, so an unknown hash makes a download unchecked, not a result unidentified.
    """

    name: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Download:
    """Files that `chexgenbench encoders fetch NAME` (or ``models``) brings; a run brings none.

    Attributes:
        source: ``owner/name`` on the hub, whose local cache then holds the files, or the address
            (``https://...``) of the one file.
        files: the files, those alone.
        patterns: for a hub repository instead of `files`: all that match one of these shell
            patterns, such as ``transformer/*``; never a pickle.
        revision: the hub commit; None is the newest, which another day may be another.
        size: bytes of all that `patterns` bring, about; None where nobody published it.
        gated: whether the hub wants a licence accepted, and a login, before it sends them.
    """

    source: str
    files: tuple[RemoteFile, ...] = ()
    patterns: tuple[str, ...] = ()
    revision: str | None = None
    size: int | None = None
    gated: bool = False


# --- models ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Request:
    """One image to make.

    Attributes:
        id: unique in a generation; also the stem of the image's file name.
        prompt_id: the row of the split it answers.
        prompt: the text.
        seed: 63 bits hashed from (run seed, prompt id, repeat): all randomness comes from it, so
            that an image depends neither on order nor on the number of machines.
        repeat: 0 for the first image of a prompt, 1 for the second, and so on.
        size: width and height in pixels; None leaves it to the model.
        labels: finding to 1.0 (present), 0.0 (absent), -1.0 (uncertain) or None (not mentioned).
        patient_id: the patient of the row, where the split knows it.
        view: the projection of the row (``PA``, ``AP``, ...), where the split knows it.
    """

    id: str
    prompt_id: str
    prompt: str
    seed: int
    repeat: int = 0
    size: int | None = None
    labels: Mapping[str, float | None] = field(default_factory=dict)
    patient_id: str | None = None
    view: str | None = None


@dataclass(frozen=True, kw_only=True)
class Made:
    """An image, and what its model knows to be wrong with it.

    Attributes:
        flags: short names that go to the manifest and the store beside the platform's own
            (``black``, ``constant``, ``nan``, ``duplicate``), such as ``truncated`` where the
            model read a part of the prompt only.
    """

    image: Image
    flags: tuple[str, ...] = ()


class Model(ABC):
    """Makes images from requests. Subclass it, override `generate`, and perhaps the rest."""

    def __init__(self, parameters: Any, context: Context) -> None:
        self.parameters = parameters
        self.context = context

    @classmethod
    def weights(cls, parameters: Any, context: Context) -> Sequence[Path] | Mapping[str, Path]:
        """The files whose content decides the images; they are hashed into the identity.

        A mapping names them (``lora``, ``unet/config.json``), where they lie in several folders; a
        sequence is named by what the files have not in common. Runs in preflight, so it loads
        nothing. Raise `UserError` when a file is missing.
        """
        return ()

    @classmethod
    def check(cls, parameters: Any, context: Context, requests: Sequence[Request]) -> Sequence[str]:
        """Looks at the requests before anything is made; returns remarks, each a sentence.

        Runs in preflight after `weights`, so it loads no weights. Raise `UserError` where a request
        cannot be answered, such as a size that the model cannot make.
        """
        return ()

    @abstractmethod
    def generate(self, requests: Sequence[Request]) -> Iterable[Image | Made]:
        """One image a request, in order.

        An image is a PIL image (mode L or RGB), or an array of shape [h, w] or [h, w, 3]: uint8 in
        0..255 or floating in 0..1.
        """


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Describes a model.

    Attributes:
        name: what the user types.
        summary: one line.
        load: ``"module:Class"``, or the `Model` class itself where importing it is cheap.
        parameters: typed parameters with defaults.
        argument: the parameter that ``--model NAME:TEXT`` sets to TEXT; None: no such form.
        expand: ``"module:function"``, or the function; it is given TEXT and the home folder and
            returns the `ModelSpec` to use in place of this one, for example with the parameters
            that the pipeline in TEXT has. Without TEXT such a model cannot run; the summary says
            what to write.
        image_size: width and height in pixels that it makes by default; None if it varies.
        batch_size: requests a call where the user does not say.
        gpu_dtype: the precision that ``--dtype auto`` means on a GPU. (A parameter named ``dtype``
            that is not ``auto`` stands before ``--dtype``.)
        version: change it when the same weights would give other images.
        uses_training: it reads the split's training side (which then is part of its identity).
        environment: the environment of its own that it runs in where that is there
            (``containers/NAME``); its `requires` are looked for in there.
        convert: ``"module:function"`` behind ``chexgenbench convert NAME CHECKPOINT OUT``; it is
            given the checkpoint, the folder to fill, what ``--base`` named (None: nothing), a
            `Context` and, as keyword-only arguments, its settings; it returns JSON values for the
            record of the conversion.
        downloads: the files that `fetch` brings for the default parameters.
        licence, references, requires: licence of the weights, papers or addresses, and modules that
            must be importable.
    """

    name: str
    summary: str
    load: str | type[Model]
    parameters: type[Parameters] = Parameters
    argument: str | None = None
    expand: str | Callable[[str, Path], ModelSpec] | None = None
    image_size: int | None = None
    batch_size: int = 8
    gpu_dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    version: str = "1"
    uses_training: bool = False
    environment: str | None = None
    convert: str | None = None
    downloads: tuple[Download, ...] = ()
    licence: str = "not stated"
    references: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    kind: ClassVar[str] = "model"


# --- encoders -------------------------------------------------------------------------------


class Encoder(ABC):
    """Turns images, and perhaps texts, into feature vectors."""

    def __init__(self, parameters: Any, context: Context) -> None:
        self.parameters = parameters
        self.context = context

    @classmethod
    def weights(cls, parameters: Any, context: Context) -> Sequence[Path] | Mapping[str, Path]:
        """The files whose content decides the features; see `Model.weights`."""
        return ()

    @abstractmethod
    def preprocess(self, image: PIL.Image.Image) -> torch.Tensor:
        """One 8-bit image (mode L or RGB) to a float32 tensor, of the same shape for all images.

        Several threads call it at once.
        """

    @abstractmethod
    def encode(self, batch: torch.Tensor) -> Mapping[str, NDArray[np.float32]]:
        """Stacked `preprocess` results to named outputs, each float32 [n, width].

        The names and widths are those of `EncoderSpec.outputs`.
        """

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts to float32 [n, d] in the space of ``features``, if `EncoderSpec.text` says so."""
        raise NotImplementedError(f"{type(self).__name__} has no text side")


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """Describes an encoder.

    Attributes:
        outputs: name to width of what `Encoder.encode` returns: ``features``, which metrics read
            unless they say otherwise, and ``probabilities`` where the encoder is a classifier
            (rows sum to 1). Numbers that mean something to one metric alone have another name.
        text: whether `Encoder.encode_text` exists.
        preprocessing: resizing, antialiasing, normalisation, in words; part of the identity.
        protocols: protocol name to parameter values that it sets, for example
            ``{"legacy": {"squash": 299}}``; the user's own ``--set`` comes after them.
        version: change it when the same weights would give other features.
        environment: as for `ModelSpec`; images, and texts too, are then encoded in there.

    The other attributes are those of `ModelSpec`.
    """

    name: str
    summary: str
    load: str | type[Encoder]
    outputs: Mapping[str, int]
    preprocessing: str
    parameters: type[Parameters] = Parameters
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    text: bool = False
    version: str = "1"
    environment: str | None = None
    downloads: tuple[Download, ...] = ()
    licence: str = "not stated"
    references: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    kind: ClassVar[str] = "encoder"


# --- metrics --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One side of a comparison under one encoder, in canonical row order.

    Attributes:
        outputs: the encoder's outputs, each float32 [n, width].
        text: text features of each row's prompt, float32 [n, d]; None unless the metric asks.
        prompts: integer code [n] of the prompt; equal codes on the two sides are the same prompt.
        patients: integer code [n] of the patient, None where the split has none.
    """

    outputs: Mapping[str, NDArray[np.float32]]
    text: NDArray[np.float32] | None
    prompts: NDArray[np.int64]
    patients: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def features(self) -> NDArray[np.float32]:
        return self.outputs["features"]

    def take(self, index: NDArray[np.int64]) -> Sample:
        """The rows at those positions, in that order."""
        return replace(
            self,
            outputs={name: values[index] for name, values in self.outputs.items()},
            text=None if self.text is None else self.text[index],
            prompts=self.prompts[index],
            patients=None if self.patients is None else self.patients[index],
        )

    @property
    def units(self) -> NDArray[np.int64]:
        """The independent unit [n] of each row, for ``groups``: its patient, or else its prompt.

        Equal codes on the two sides, in any subset and in any run of the same prompts are the same
        unit, so this says all that ``pairs`` would.
        """
        return self.prompts if self.patients is None else self.patients

    def answers(self, other: Sample) -> NDArray[np.int64]:
        """For each row the first row of `other` with the same prompt, -1 where there is none."""
        import numpy as np

        order = np.argsort(other.prompts, kind="stable")
        ranked = other.prompts[order]
        if not len(ranked):
            return np.full(len(self), -1, np.int64)
        place = np.searchsorted(ranked, self.prompts).clip(max=len(ranked) - 1)
        return np.where(ranked[place] == self.prompts, order[place], -1)


class SetMetric(ABC):
    """Compares two sets of features (or looks at the generated one alone)."""

    def __init__(self, parameters: Any, seed: int) -> None:
        self.parameters = parameters
        self.seed = seed

    @abstractmethod
    def score(self, real: Sample, fake: Sample) -> Mapping[str, Estimate]:
        """Score name to estimate. Raise `NotApplicable` where the subset is too small."""


class SampleMetric(ABC):
    """A value for each generated image; the platform averages it over any subset."""

    def __init__(self, parameters: Any, seed: int) -> None:
        self.parameters = parameters
        self.seed = seed

    @abstractmethod
    def values(self, fake: Sample) -> Mapping[str, NDArray[np.float64]]:
        """Score name to float64 [n]."""


# --- task metrics ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ImageNeed:
    """A set of images that a task metric works on.

    Attributes:
        side: ``test``, the rows whose prompts the run answers and whose real images were held out,
            or ``training``, the rows of the split's training table.
        source: ``real`` images of those rows, or images that the ``model`` makes for their prompts.
        prompts: rows at most, chosen by a hash of the run's seed and the row's id, so that a larger
            number keeps the rows of a smaller one; None: all.
        repeats: images of a prompt, each from a seed of its own; 1 for real ones. None: as many as
            the run makes of each of its own prompts.
        every_row: with all rows of the file, also those that repeat a prompt, which count once
            elsewhere; for real images.
    """

    side: Literal["test", "training"]
    source: Literal["real", "model"]
    prompts: int | None = None
    repeats: int | None = 1
    every_row: bool = False

    @property
    def name(self) -> str:
        """What the store calls the set, such as ``training-2000x10``."""
        count = "all" if self.prompts is None else self.prompts
        if self.source == "real":
            return f"{self.side}-{'every' if self.every_row else count}-real"
        return f"{self.side}-{count}x{self.repeats or 'own'}"


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """The images of an `ImageNeed` in canonical order, unreadable ones left out.

    Attributes:
        need: what was asked for.
        prompts: the rows of the split that were chosen.
        rows: int64 [n], the row of `prompts` that each image belongs to or answers.
        repeats: int64 [n], 0 for the first image of a prompt.
        ids: name of each image, the row's ``prompt_id`` for a real one.
        keys: SHA-256 of each image file.
        paths: where each image lies; `chexgenbench.images.read_image` reads it.
        outputs: the outputs of the encoder that the metric is taken on, float32 [n, width] each;
            empty where it takes none.
    """

    need: ImageNeed
    prompts: PromptTable
    rows: NDArray[np.int64]
    repeats: NDArray[np.int64]
    ids: tuple[str, ...]
    keys: tuple[str, ...]
    paths: tuple[Path, ...]
    outputs: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def features(self) -> NDArray[np.float32]:
        return self.outputs["features"]

    @property
    def patients(self) -> NDArray[np.str_]:
        """The patient [n] of each image, for ``groups``; a row without one is one of its own."""
        import numpy as np

        table = self.prompts.table
        alone = (self.need.side + " row ") + table["prompt_id"].astype(str)
        known = table["patient_id"].notna()
        names = ("patient " + table["patient_id"].astype(str)).where(known, alone)
        chosen: NDArray[np.str_] = names.to_numpy(dtype=np.str_)[self.rows]
        return chosen

    @property
    def labels(self) -> NDArray[np.float64]:
        """The findings [n, 14] of each image's row: 1, 0, -1 for uncertain, NaN not mentioned."""
        import numpy as np

        values: NDArray[np.float64] = self.prompts.table[list(FINDINGS)].to_numpy(np.float64)
        return values[self.rows]

    def take(self, index: NDArray[np.int64]) -> ImageSet:
        """The images at those positions, in that order."""
        chosen = index.tolist()
        return replace(
            self,
            rows=self.rows[index],
            repeats=self.repeats[index],
            ids=tuple(self.ids[i] for i in chosen),
            keys=tuple(self.keys[i] for i in chosen),
            paths=tuple(self.paths[i] for i in chosen),
            outputs={name: values[index] for name, values in self.outputs.items()},
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What a task metric is given to work with.

    Attributes:
        sets: the images that it asked for, by the names it gave them.
        encoder: the encoder whose outputs the sets hold; empty where the metric takes none.
        model: what results call the model, for messages.
        seed: of the run.
        folder: for checkpoints and intermediate results, see `part`; shared by all runs.
        context: device, dtype and places.
        stage: ``with task.stage("train resnet50", 20, "epochs") as advance: advance(1)``.
        say: shows a line.
    """

    sets: Mapping[str, ImageSet]
    encoder: str
    model: str
    seed: int
    folder: Path
    context: Context
    stage: Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]
    say: Callable[[str], None]

    def part(self, *facts: object) -> Path:
        """A folder for a part of the work that depends on `facts` alone (JSON values), such as a
        classifier trained on given images: equal facts find what was done, also in another run and
        after a kill. Name in them all that the part depends on; the plugin's code and version are
        added."""
        folder = self.folder / digest(list(facts))[:24]
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):
            os.utime(folder)  # what was used last is pruned last
        return folder


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One number of a task metric.

    Attributes:
        name: of a declared `ScoreSpec`.
        variant: what tells several of that name apart, such as the training regime: the store then
            calls it ``NAME_VARIANT``.
        subset: ``overall``, a finding, or ``macro`` for a mean over the findings.
        estimate: the value and its interval, or why there is none.
        control: what the same procedure says where there is nothing to find (stored as ``floor``).
        excess: the value less its control with a paired interval, where it has a control.
        n_real, n_fake: real and generated images that it was taken from.

    Raises:
        TypeError: one of them is no count.
    """

    name: str
    estimate: Estimate | str
    variant: str = ""
    subset: str = OVERALL
    control: float | None = None
    excess: Estimate | None = None
    n_real: int = 0
    n_fake: int = 0

    def __post_init__(self) -> None:
        for name in ("n_real", "n_fake"):
            count = getattr(self, name)
            if not isinstance(count, SupportsIndex) or count.__index__() < 0:
                raise TypeError(f"TaskScore {self.name!r}: {name} is {count!r} and no count.")


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageValues:
    """A value for each image of a set, for SQL and for the filters of an export.

    Where an image has several values of one name, being in several sets, the largest counts.

    Attributes:
        name: such as ``nearest_training_distance``; ``near_copy`` is 1 for an image that must not
            leave (exports refuse it), else 0.
        images: the name of the set.
        values: float64 [n].
    """

    name: str
    images: str
    values: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class ImagePairs:
    """Pairs of images that a person should see side by side, the most telling first.

    Attributes:
        kind: such as ``nearest_training`` or ``same_patient``.
        images, others: names of the sets of the two sides.
        at, others_at: int64 [k], positions in them.
        values: float64 [k], a distance or score.
        flagged: bool [k], whether the pair is taken for a copy or for one patient.
    """

    kind: str
    images: str
    others: str
    at: NDArray[np.int64]
    others_at: NDArray[np.int64]
    values: NDArray[np.float64]
    flagged: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskResult:
    """What a task metric found. ``notes`` are shown after the run, a sentence each."""

    scores: Sequence[TaskScore]
    values: Sequence[ImageValues] = ()
    pairs: Sequence[ImagePairs] = ()
    notes: Sequence[str] = ()


class TaskMetric(ABC):
    """Trains or runs something on sets of images: a classifier, an attack, a search for copies."""

    def __init__(self, parameters: Any, context: Context) -> None:
        self.parameters = parameters
        self.context = context

    @classmethod
    @abstractmethod
    def needs(cls, parameters: Any) -> Mapping[str, ImageNeed]:
        """The sets of images that it works on, by names of its own choice.

        Equal needs of several metrics are one set, made, decoded and encoded once.
        """

    @classmethod
    def weights(cls, parameters: Any, context: Context) -> Sequence[Path] | Mapping[str, Path]:
        """The files whose content decides the scores; see `Model.weights`."""
        return ()

    @classmethod
    def check(
        cls, parameters: Any, context: Context, tables: Mapping[str, PromptTable]
    ) -> Sequence[str]:
        """Looks at the rows of each set before anything expensive; returns remarks, as sentences.

        Raise `UserError` where the metric cannot be taken, such as no row with a patient.
        """
        return ()

    @abstractmethod
    def run(self, task: Task) -> TaskResult:
        """Does the work. Raise `NotApplicable` where the data do not allow it.

        It depends on the sets, the parameters and the seed alone, and goes on after a kill from
        what it left in `Task.part`.
        """


@dataclass(frozen=True, kw_only=True)
class ScoreSpec:
    """One number of a metric: its name in the store, its direction and its range.

    Attributes:
        summary: what it says, in words; ``show`` and the documentation print it.
        formula: the same in LaTeX mathematics, without dollar signs, such as ``\\frac{1}{m}``.
    """

    name: str
    higher_is_better: bool
    lowest: float = float("-inf")
    highest: float = float("inf")
    summary: str = ""
    formula: str = ""

    def holds(self, value: float) -> bool:
        """Whether a value is finite and within the range; rounding may carry one a last bit beyond.

        >>> share = ScoreSpec(name="precision", higher_is_better=True, lowest=0, highest=1)
        >>> share.holds(1 + 2e-16), share.holds(1.01), share.holds(float("nan"))
        (True, False, False)
        """
        slack = 1e-9 * max(1.0, abs(value))
        return math.isfinite(value) and self.lowest - slack <= value <= self.highest + slack


@dataclass(frozen=True, kw_only=True)
class MetricSpec:
    """Describes a metric.

    Attributes:
        metric: ``set`` (a `SetMetric`), ``sample`` (a `SampleMetric`) or ``task`` (a `TaskMetric`).
        scores: the numbers it reports.
        output: the encoder output it reads; encoders without it are not asked. None: it reads the
            images themselves, and is taken once (a task metric only).
        text: it needs text features, so only encoders with a text side are asked.
        floor: whether real images can take the place of generated ones, so that the platform
            reports what the metric says of real against real at the same sizes.
        environment: as for `ModelSpec`; of a task metric only, others are taken here.
        protocols: as for `EncoderSpec`.
        pitfalls: what misleads a reader of its scores, each a sentence.

    The other attributes are those of `ModelSpec`.
    """

    name: str
    summary: str
    load: str | type[SetMetric] | type[SampleMetric] | type[TaskMetric]
    metric: Literal["set", "sample", "task"]
    scores: tuple[ScoreSpec, ...]
    output: str | None = "features"
    text: bool = False
    floor: bool = False
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    parameters: type[Parameters] = Parameters
    version: str = "1"
    environment: str | None = None
    pitfalls: tuple[str, ...] = ()
    licence: str = "not stated"
    references: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    kind: ClassVar[str] = "metric"


# --- splits ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SplitSource:
    """Where the tables and images of a split lie.

    Attributes:
        test: CSV whose prompts are answered and whose images are the real side.
        train: CSV of the training side, if there is one.
        images_root: the folder that the image paths of the CSV start from; None means that there
            are no real images, and only metrics that need none can be taken.
        train_images_root: the same for `train`, where its images lie elsewhere; ``--images-root``
            then speaks of the test side alone.
        columns: our name (``id, prompt, path, labels, patient, view``, or a finding) to the CSV's
            column name, where it differs from the published schema.
        own_columns: whether ``--column`` is refused, since the split wrote a CSV itself.
        materialise: called with a CSV and ids of its rows just before their images are read; a
            procedural split draws the missing ones then.
        labeller: reads labels [n, 14] off the n prompts, 1, 0, -1 for uncertain and NaN where not
            mentioned, in the order of `FINDINGS`; the CSV's own labels are then left alone.
        credentialed: what `SplitSpec` says of it, where that depends on the parameters.
        notes: what the user should know of these files, a sentence each, without their text.
    """

    test: Path
    train: Path | None = None
    images_root: Path | None = None
    train_images_root: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    own_columns: bool = False
    materialise: Callable[[Path, Sequence[str]], None] | None = None
    labeller: Callable[[Sequence[str]], NDArray[np.float64]] | None = None
    credentialed: bool | None = None
    notes: tuple[str, ...] = ()


class Split(ABC):
    """Names the files of a split."""

    def __init__(self, parameters: Any, context: Context) -> None:
        self.parameters = parameters
        self.context = context

    @abstractmethod
    def source(self) -> SplitSource:
        """Cheap. Raise `UserError` when a file is missing, saying how to get it."""


@dataclass(frozen=True, kw_only=True)
class SplitSpec:
    """Describes a split; what it holds is known by its content, so it has no version.

    Attributes:
        credentialed: its prompts and images are patients' data: they reach no log, page or
            export unless the user says ``--include-credentialed`` for that command.

    The other attributes are those of `ModelSpec`.
    """

    name: str
    summary: str
    load: str | type[Split]
    parameters: type[Parameters] = Parameters
    credentialed: bool = False
    licence: str = "not stated"
    references: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    kind: ClassVar[str] = "split"


# --- judges ---------------------------------------------------------------------------------

QUALITIES: tuple[str, ...] = ("High Quality", "Medium Quality", "Low Quality", "Not Relevant")
"""What a judge calls an image, the labels of SynthCheX-75K, the best first."""

UNREADABLE = "unreadable"
"""What an image is called where the judge said none of `QUALITIES`."""


class JudgeParameters(Parameters):
    """Base of a judge's parameters."""

    most_unreadable: float = Field(
        0.05, ge=0, le=1, description="Share of answers that may be no label; above it, an error."
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class JudgeRequest:
    """One generated image to judge.

    Attributes:
        labels: finding to 1.0 (present), 0.0 (absent), -1.0 (uncertain) or None (not mentioned).
        features: float32 [d] under the judge's encoder; None where the judge takes no features.
        text: float32 [d] of the prompt in the same space; None where the encoder has no text side.
    """

    path: Path
    prompt: str
    labels: Mapping[str, float | None] = field(default_factory=dict)
    features: NDArray[np.float32] | None = None
    text: NDArray[np.float32] | None = None


class Judge(ABC):
    """Says of what quality generated images are."""

    def __init__(self, parameters: Any, context: Context) -> None:
        self.parameters = parameters
        self.context = context

    @classmethod
    def weights(cls, parameters: Any, context: Context) -> Sequence[Path] | Mapping[str, Path]:
        """The files whose content decides the answers; see `Model.weights`."""
        return ()

    def learn(self, real: Sample) -> None:
        """Takes the real images of the run, called once before `judge`, where `JudgeSpec.features`.

        Raise `UserError` where they are too few.
        """
        raise NotImplementedError(f"{type(self).__name__} takes no features")

    @abstractmethod
    def judge(self, requests: Sequence[JudgeRequest]) -> Iterable[str]:
        """One of `QUALITIES` a request, in order; anything else counts as `UNREADABLE`.

        An answer depends on its own request (and on `learn`) alone: answers are kept, by the
        content of image, prompt and labels, and an image is not judged twice.
        """


@dataclass(frozen=True, kw_only=True)
class JudgeSpec:
    """Describes a judge.

    Attributes:
        features: it reads features that the run left in the cache, of the real and of the generated
            images, under an encoder of the run (``--judge NAME@ENCODER``).
        version: change it when the same weights would give other answers.

    The other attributes are those of `ModelSpec`.
    """

    name: str
    summary: str
    load: str | type[Judge]
    parameters: type[JudgeParameters] = JudgeParameters
    features: bool = False
    version: str = "1"
    licence: str = "not stated"
    references: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    kind: ClassVar[str] = "judge"


Spec = ModelSpec | EncoderSpec | MetricSpec | SplitSpec | JudgeSpec
