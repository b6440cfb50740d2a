"""Defects of published generation and evaluation scripts (numbers 17 to 24 of the protocol's list).

For each: what a right implementation does, as a check; ours, which passes it; and an implementation
that has the defect, written here, on which the same check fails. `test_defects.py` has those of the
numbers themselves.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from chexgenbench.cli import ending
from chexgenbench.cli.main import app
from chexgenbench.errors import UserError
from chexgenbench.features import extract, plan_encoder
from chexgenbench.features.extract import EncoderPlan
from chexgenbench.files import sha256_file
from chexgenbench.generation import make_requests
from chexgenbench.jobs.generate import generate, hold
from chexgenbench.registry import Plugin, load_registry
from chexgenbench.splits.prompts import read_prompts
from chexgenbench.types import FINDINGS, Context, Encoder, EncoderSpec, Model, Parameters, Request
from chexgenbench_plugins.weights import read_state
from made_up import make_home

REGISTRY = load_registry()
HEADER = "id,path,annotated_prompt,chexpert_labels,patientID,view"
PUBLISHED = (
    *("sd-v1-4", "sd-v1-5", "sd-v2", "sd-v2-1", "sd-v3-5-medium", "radedit", "sana"),
    *("pixart-sigma", "lumina-2", "flux-1-dev", "llm-cxr"),
)
Pixels = NDArray[np.uint8]


def table(folder: Path, rows: int = 6) -> Path:
    path = folder / "split.csv"
    lines = [f's{n},,Prompt {n}.,"{{}}",p{n},PA' for n in range(rows)]
    path.write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
    return path


def command(*words: str) -> tuple[int, str]:
    """Exit code of a command and all that it printed."""
    before, sys.argv = sys.argv, ["chexgenbench", *words]
    told = io.StringIO()
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            return ending.run_to_its_end(app), told.getvalue()
    finally:
        sys.argv = before


# --- 17: the seed is ignored, the batch is not -------------------------------------------------

Make = Callable[[Sequence[Request]], Sequence[Pixels]]


def check_17(make: Make, asked: Callable[[int], Sequence[Request]]) -> None:
    """The seed of the run decides the images, and nothing else that is asked at the same time."""
    first = dict(zip((r.id for r in asked(0)), make(asked(0)), strict=True))
    for request, other in zip(asked(1), make(asked(1)), strict=True):
        assert not np.array_equal(first[request.id], other)
    backwards = list(reversed(asked(0)))
    for request, again in zip(backwards, make(backwards), strict=True):
        assert np.array_equal(first[request.id], again)
    (alone,) = make(asked(0)[3:4])
    assert np.array_equal(first[asked(0)[3].id], alone)


def test_17_the_seed_of_a_request_decides_its_image(tmp_path: Path) -> None:
    prompts = read_prompts(table(tmp_path), name="t")

    def asked(seed: int) -> Sequence[Request]:
        return make_requests(prompts, seed=seed, repeats=1, size=32)

    plugin = REGISTRY.models["noise"]
    model = plugin.create(plugin.parse({}), Context(home=tmp_path, cache=tmp_path))

    def ours(requests: Sequence[Request]) -> Sequence[Pixels]:
        return [np.asarray(image) for image in model.generate(requests)]

    def unseeded(requests: Sequence[Request]) -> Sequence[Pixels]:
        random = np.random.default_rng(42)  # whatever was asked for
        return [random.integers(0, 256, (32, 32), np.uint8) for _ in requests]

    def one_generator(requests: Sequence[Request]) -> Sequence[Pixels]:
        random = np.random.default_rng(requests[0].seed)  # one for the batch
        return [random.integers(0, 256, (32, 32), np.uint8) for _ in requests]

    check_17(ours, asked)
    for wrong in (unseeded, one_generator):
        with pytest.raises(AssertionError):
            check_17(wrong, asked)


# --- 18: encoders run again over the same images -----------------------------------------------


class Counting(Encoder):
    seen = 0

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(image.convert("L"), np.float32)).mean().reshape(1)

    def encode(self, batch: torch.Tensor) -> Mapping[str, NDArray[np.float32]]:
        type(self).seen += len(batch)
        return {"features": batch.numpy()}


def check_18(
    encode: Callable[[Sequence[Path], Sequence[Sequence[int]]], None], folder: Path
) -> None:
    """Several metrics and all findings together encode each image once."""
    random = np.random.default_rng(0)
    paths = []
    for number in range(10):
        paths.append(folder / f"{number}.png")
        Image.fromarray(random.integers(0, 256, (32, 32), np.uint8)).save(paths[-1])
    subsets = [range(10), *(range(n % 5, 10) for n in range(len(FINDINGS)))]
    Counting.seen = 0
    encode(paths, subsets)
    assert Counting.seen == len(paths)


def test_18_each_image_is_encoded_once(tmp_path: Path) -> None:
    context = Context(home=tmp_path, cache=tmp_path)

    def plan(place: str) -> EncoderPlan:
        spec = EncoderSpec(
            name="c", summary="", load=Counting, outputs={"features": 1}, preprocessing=""
        )
        root = tmp_path / place
        return plan_encoder(Plugin(spec, "t"), Parameters(), context, root=root, weights={})

    def once(paths: Sequence[Path], encoder: EncoderPlan) -> None:
        keyed = [(sha256_file(path), path) for path in paths]
        extract(keyed, [], [encoder], batch_size=1)

    def ours(paths: Sequence[Path], subsets: Sequence[Sequence[int]]) -> None:
        for rows in subsets:
            for _metric in ("fid", "kid", "prdc"):
                once([paths[row] for row in rows], plan("features"))

    def each_time(paths: Sequence[Path], subsets: Sequence[Sequence[int]]) -> None:
        for place, rows in enumerate(subsets):
            once([paths[row] for row in rows], plan(f"subset-{place}"))

    check_18(ours, tmp_path)
    with pytest.raises(AssertionError):
        check_18(each_time, tmp_path)


# --- 19: a killed run starts over, half-written files are taken as done -------------------------


class Steady(Model):
    """Notes what it was asked for, and dies at the request `last`."""

    asked: list[str]
    last: str = ""

    def generate(self, requests: Sequence[Request]) -> Iterator[Pixels]:
        for request in requests:
            if request.id == type(self).last:
                raise KeyboardInterrupt
            type(self).asked.append(request.id)
            yield np.random.default_rng(request.seed).integers(0, 256, (32, 32), np.uint8)


Run = Callable[[Sequence[Request], Path], None]


def check_19(run: Run, folder: Path) -> None:
    """Started again, it makes what is missing or half there, and nothing twice."""
    asked = [Request(id=f"r{n}", prompt_id=f"r{n}", prompt="", seed=n) for n in range(8)]
    Steady.asked, Steady.last = [], "r5"
    with contextlib.suppress(KeyboardInterrupt):
        run(asked, folder)
    (before,) = folder.rglob("*r0.png")  # and of the one at work when it was killed, a part
    before.with_name(before.name.replace("r0", "r5")).write_bytes(before.read_bytes()[:100])
    Steady.asked, Steady.last = [], ""
    run(asked, folder)
    for request in asked:
        (path,) = folder.rglob(f"*{request.id}.png")
        wanted = np.random.default_rng(request.seed).integers(0, 256, (32, 32), np.uint8)
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), wanted)
    assert "r0" not in Steady.asked
    assert "r7" in Steady.asked


def test_19_a_killed_run_goes_on(tmp_path: Path) -> None:
    model = Steady(Parameters(), Context(home=tmp_path, cache=tmp_path))

    def ours(requests: Sequence[Request], folder: Path) -> None:
        with hold(folder):
            generate(lambda: model, requests, folder, batch_size=2, advance=lambda _n: None)

    def starts_over(requests: Sequence[Request], folder: Path) -> None:
        for request, pixels in zip(requests, model.generate(requests), strict=True):
            Image.fromarray(pixels).save(folder / f"{request.id}.png")

    def believes_files(requests: Sequence[Request], folder: Path) -> None:
        missing = [each for each in requests if not (folder / f"{each.id}.png").exists()]
        starts_over(missing, folder)

    for place, run in enumerate((ours, starts_over, believes_files)):
        folder = tmp_path / str(place)
        folder.mkdir()
        with nullcontext() if run is ours else pytest.raises((AssertionError, OSError)):
            check_19(run, folder)


# --- 20: nothing is checked before the expensive part -------------------------------------------


def check_20(run: Callable[[Mapping[str, str]], str], made: Callable[[], bool]) -> None:
    """A fault of what is needed last is said before the first image is made."""
    for fault in ({"subset": "a: nothing = 1"}, {"metric": "fidd"}, {"images_root": "nowhere"}):
        told = run(fault)
        assert next(iter(fault.values())).partition(" ")[2].split(" ")[0] in told
        assert not made()


def test_20_what_is_wrong_is_said_before_an_image_is_made(tmp_path: Path) -> None:
    sign = tmp_path / "made"
    (tmp_path / "costly.py").write_text(
        f"""
from pathlib import Path
import numpy as np
from chexgenbench import Model, ModelSpec, hookimpl

class Costly(Model):
    def generate(self, requests):
        Path({str(sign)!r}).touch()
        for request in requests:
            yield np.zeros((32, 32), np.uint8)

@hookimpl
def chexgenbench_models():
    yield ModelSpec(name="costly", summary="x", load=Costly)
""",
        encoding="utf-8",
    )
    path = table(tmp_path)
    path.write_text(path.read_text().replace("s0,,", "s0,a.png,"), encoding="utf-8")

    def ours(fault: Mapping[str, str]) -> str:
        options = [
            word for name, value in fault.items() for word in (f"--{name.replace('_', '-')}", value)
        ]
        words = ("run", "--model", "costly", "--plugin", str(tmp_path / "costly.py"))
        code, told = command(
            *words, "--split", str(path), "--device", "cpu", "--home", str(tmp_path), *options
        )
        assert code == 2
        return told

    def late(fault: Mapping[str, str]) -> str:
        sign.touch()  # it generates,
        try:  # and then looks at what it was given
            read_prompts(path, name="t").select(fault.get("subset", "nothing").partition(":")[2])
        except UserError as error:
            return str(error.message)
        return ""

    check_20(ours, sign.exists)
    with pytest.raises(AssertionError):
        check_20(late, sign.exists)


# --- 21: models without a loader ---------------------------------------------------------------


def check_21(find: Callable[[str], Any]) -> None:
    """Each model of the paper is a class that makes images and says which parameters it takes."""
    for name in PUBLISHED:
        found = find(name)
        assert isinstance(found, type), name
        assert callable(getattr(found, "generate", None)), name


def test_21_every_model_of_the_paper_has_a_loader() -> None:
    def listed(name: str) -> Any:
        return None if name in ("flux-1-dev", "llm-cxr") else REGISTRY.models[name].load(here=False)

    check_21(lambda name: REGISTRY.models[name].load(here=False))
    with pytest.raises(AssertionError):
        check_21(listed)


# --- 22: pickles that run code ------------------------------------------------------------------


def check_22(read: Callable[[Path], Any], folder: Path) -> None:
    """Weights of somebody else run nothing: they are refused, and the good ones read."""
    sign = folder / "owned"

    class Evil:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return os.mkdir, (str(sign),)

    torch.save({"a": torch.ones(2)}, folder / "good.pth")
    torch.save({"a": Evil()}, folder / "evil.pth")
    assert read(folder / "good.pth")["a"].tolist() == [1.0, 1.0]
    with contextlib.suppress(UserError):
        read(folder / "evil.pth")
    assert not sign.exists()


def test_22_a_pickle_runs_nothing(tmp_path: Path) -> None:
    check_22(lambda path: read_state(path, "x"), tmp_path)
    with pytest.raises(AssertionError):
        check_22(lambda path: torch.load(path, weights_only=False), tmp_path)


def test_22_code_of_a_repository_is_pinned_or_not_run() -> None:
    """Where a library could run a repository's code, nothing says that it may."""
    (folder,) = {Path(base) for base in __import__("chexgenbench_plugins").__path__} - {
        Path(__import__("chexgenbench_plugins").__file__).parent
    }
    sources = [*folder.rglob("*.py"), *Path(ending.__file__).parents[1].rglob("*.py")]
    assert len(sources) > 100
    for path in sources:
        text = path.read_text(encoding="utf-8")
        assert "trust_remote_code=True" not in text, path


# --- 23: report text on the console -------------------------------------------------------------


def check_23(validate: Callable[[Path], str], path: Path) -> None:
    """Text of a split of unknown origin is not printed, whatever is wrong with it."""
    secret = "Mr Doe, 57, has a small left effusion"
    for row in (f's0,,{secret}.,"{{}}",p0,PA', f's0,,{secret}.,"{secret}",p0,PA', f"s0,{secret}"):
        path.write_text(f"{HEADER}\n{row}\n", encoding="utf-8")
        assert "effusion" not in validate(path)


def test_23_no_report_text_is_printed(tmp_path: Path) -> None:
    def ours(path: Path) -> str:
        return command("splits", "validate", str(path), "--home", str(tmp_path))[1]

    def prints(path: Path) -> str:
        return str(pd.read_csv(path).to_string())

    check_23(ours, tmp_path / "a.csv")
    with pytest.raises(AssertionError):
        check_23(prints, tmp_path / "a.csv")


# --- 24: a number without its provenance --------------------------------------------------------


def check_24(rows: Sequence[Mapping[str, Any]]) -> None:
    """Beside each number stands what it was made with."""
    assert rows
    for row in rows:
        for name in ("versions", "weights", "hardware"):
            assert json.loads(row[name])
        assert row["seed"] is not None
        assert row["protocol"] in ("standard", "legacy")


def test_24_a_number_says_what_it_was_made_with(tmp_path: Path) -> None:
    from chexgenbench.store.store import Store

    home = make_home(tmp_path / "home", ("a",), 4, privacy=False, utility=False)
    sql = (
        "select scores.value, scores.protocol, scores.seed, versions, weights, hardware "
        "from scores join runs using (run_id)"
    )
    check_24(Store(home.store).query(sql).to_pylist())
    with pytest.raises((AssertionError, KeyError)):
        check_24([{"FID": 54.2, "KID": 0.03, "Extra Info": "sana"}])
