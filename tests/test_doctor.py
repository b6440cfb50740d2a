"""What a model needs: read from headers and folders, shown by ``models status`` and ``doctor``."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from chexgenbench.errors import UserError
from chexgenbench.provenance import total_memory
from chexgenbench.workflow.needs import safetensors_memory, weight_memory
from desk import Desk

HALF = {"float32": 4, "float16": 2, "bfloat16": 2}
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
dtypes = st.sampled_from(["float16", "float32", "float64", "int64", "uint8", "bool"])


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights") / "a.safetensors"


@given(
    tensors=st.dictionaries(st.text(max_size=5), st.tuples(shapes, dtypes), max_size=4),
    dtype=st.sampled_from(sorted(HALF)),
    metadata=st.none() | st.just({"format": "pt"}),
)
def test_the_header_tells_the_memory(
    scratch: Path,
    tensors: dict[str, tuple[tuple[int, ...], str]],
    dtype: str,
    metadata: dict[str, str] | None,
) -> None:
    tensors.pop("__metadata__", None)
    arrays = {name: np.zeros(shape, kind) for name, (shape, kind) in tensors.items()}
    scratch.write_bytes(save(arrays, metadata))
    expected = sum(
        prod(array.shape) * (HALF[dtype] if array.dtype.kind == "f" else array.dtype.itemsize)
        for array in arrays.values()
    )
    assert safetensors_memory(scratch, dtype) == expected


@given(content=st.binary(max_size=40))
def test_any_bytes_are_a_size_or_an_error_that_names_the_file(
    scratch: Path, content: bytes
) -> None:
    scratch.write_bytes(content)
    try:
        assert safetensors_memory(scratch, "float32") >= 0
    except UserError as error:
        assert str(scratch) in error.message


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32"}}',
        b'{"a": {"dtype": ["F32"], "shape": [1]}}',
        b'{"a": {"dtype": "F32", "shape": ["x"]}}',
        b'{"a": {"dtype": "F32", "shape": [-1]}}',
        b'{"a": ',
        b"\xff\xfe",
    ],
)
def test_a_broken_header_is_named(scratch: Path, header: bytes) -> None:
    scratch.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="no safetensors file"):
        safetensors_memory(scratch, "float32")


def weights(path: Path, numbers: int) -> Path:
    """A header that names so many float32 numbers, and none of them: nobody loads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = json.dumps(
        {"a": {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}}
    ).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return path


def test_memory_stands_by_part_the_largest_first(tmp_path: Path) -> None:
    files = {"vae/a.safetensors": 3, "unet/1.safetensors": 5, "unet/2.safetensors": 2}
    paths = {name: weights(tmp_path / name, size) for name, size in files.items()}
    paths["unet/config.json"] = tmp_path / "unet" / "config.json"
    paths["text/model.bin"] = tmp_path / "pickle.bin"
    paths["text/model.bin"].write_bytes(b"0123")
    assert list(weight_memory(paths, "float16").items()) == [("unet", 14), ("vae", 6), ("text", 4)]


def test_parts_in_the_hubs_cache_are_called_by_their_repository(tmp_path: Path) -> None:
    base = tmp_path / "models--owner--sdxl-vae" / "snapshots" / ("0" * 40)
    alone = {"a.safetensors": weights(base / "a.safetensors", 1)}
    assert weight_memory(alone, "float32") == {"sdxl-vae": 4}
    name = f"models--owner--sdxl-vae/snapshots/{'0' * 40}/a.safetensors"
    assert weight_memory({name: base / "a.safetensors"}, "float32") == {"sdxl-vae": 4}


PLUGIN = """
from pathlib import Path

from pydantic import Field

from chexgenbench import Model, ModelSpec, Parameters, UserError, hookimpl
from chexgenbench.types import Download

HUGE = Download(source="owner/huge", patterns=("*",), revision="0" * 40, size=10**16, gated=True)
LORA = Download(source="owner/lora", patterns=("*.safetensors",))

class Settings(Parameters):
    folder: str = "weights"
    dtype: str = "auto"
    offload: str = "none"

class Named(Parameters):
    folder: str = "weights"
    lora: str = Field(description="The file of the LoRA.")
    weights: str = Field(description="A folder.")

class Mine(Model):
    @classmethod
    def weights(cls, parameters, context):
        return sorted((context.home / parameters.folder).rglob("*.safetensors"))

    @classmethod
    def check(cls, parameters, context, requests):
        if parameters.folder == "refused":
            raise UserError("The size does not fit.")
        return (f"{len(requests)} prompts were looked at in {context.dtype}.",)

    def generate(self, requests):
        raise NotImplementedError

class Away(Mine):
    @classmethod
    def weights(cls, parameters, context):
        raise UserError("Nothing is here.", hint="Type: chexgenbench models fetch away")

@hookimpl
def chexgenbench_models():
    yield ModelSpec(name="mine", summary="a test", load=Mine, parameters=Settings, licence="MIT")
    yield ModelSpec(
        name="away", summary="a test", load=Away, downloads=(HUGE,), requires=("no_such_module",)
    )
    yield ModelSpec(name="far", summary="a test", load=Away, downloads=(HUGE, LORA))
    yield ModelSpec(
        name="apart", summary="a test", load=Mine, parameters=Settings, environment="apart",
        requires=("no_such_module",),
    )
    yield ModelSpec(
        name="named", summary="a test", load=Mine, parameters=Named, argument="weights"
    )
    yield ModelSpec(name="text", summary="text:FILE", load=Mine, expand=lambda text, home: None)
"""


@pytest.fixture
def plugins(desk: Desk) -> tuple[str, str]:
    path = desk.home / "mine.py"
    path.write_text(PLUGIN)
    return "--plugin", str(path)


def test_the_table_has_a_line_for_each_model(desk: Desk, plugins: tuple[str, str]) -> None:
    weights(desk.home / "weights" / "unet" / "a.safetensors", 3_000_000)
    weights(desk.home / "weights" / "vae" / "a.safetensors", 1_000_000)
    done = desk.run("models", "status", *plugins, "--device", "cpu", COLUMNS="1000")
    lines = {line.split()[0]: line for line in done.out.splitlines()}
    listed = desk.run("models", "list", *plugins, COLUMNS="1000").out
    assert set(lines) == {line.split()[0] for line in listed.splitlines()} | {"model"}
    assert "16 MB as float32, of which unet 12 MB" in lines["mine"]
    assert lines["mine"].split()[-2:] == ["nothing", "MIT"]
    assert "modules to install: no_such_module" in lines["away"]
    assert "to fetch: 10000000.0 GB; a licence to accept" in lines["away"]
    assert "to fetch: 10000000.0 GB and more; a licence to accept" in lines["far"]
    assert "lora to name; weights to name" in lines["named"]
    assert "a text: text:..." in lines["text"]
    assert "  nothing  " in lines["noise"]


def test_what_to_do_is_said_of_models_by_name(desk: Desk, plugins: tuple[str, str]) -> None:
    said = desk.run("models", "status", "away", "far", "named", *plugins, COLUMNS="1000").out
    assert "away: The modules no_such_module are not installed: pip install no_such_module" in said
    assert "far: Nothing is here. Type: chexgenbench models fetch away" in said
    assert "away: owner/huge (10000000.0 GB) is not on this machine. Fetch: chexgenbench" in said
    assert "https://huggingface.co/owner/huge" in said
    assert "named: The parameter lora has no default: --set named.lora=..." in said
    assert "named: The parameter weights has no default: --set named.weights=..., or --mod" in said
    unknown = desk.run("models", "status", "awy", *plugins, code=2)
    assert "Did you mean 'away'?" in unknown.err
    named = desk.run("models", "status", f"named:{desk.home}", *plugins).out
    assert "weights to name" not in named


def test_the_device_of_the_table_must_be_there(desk: Desk) -> None:
    fault = desk.run("models", "status", "noise", "--device", "nosuch", code=2)
    assert "The device 'nosuch' is not there" in fault.err


def test_the_same_as_json(desk: Desk, plugins: tuple[str, str]) -> None:
    weights(desk.home / "weights" / "unet" / "a.safetensors", 3)
    options = ("models", "status", "mine", "far", *plugins, "--dtype", "bfloat16", "--json")
    mine, far = json.loads(desk.run(*options).out)
    assert mine["ready"]
    assert mine["missing"] == []
    assert mine["memory_by_part"] == {"unet": 6}
    assert mine["weight_files"] == 1
    assert mine["weight_bytes"] == (desk.home / "weights/unet/a.safetensors").stat().st_size
    assert not far["ready"]
    assert far["bytes_to_fetch"] == 10**16


def doctor(desk: Desk, *options: str, code: int) -> list[str]:
    done = desk.run("doctor", *options, code=code, COLUMNS="1000")
    return [line for line in done.out.splitlines() if "model" in line.split(":")[0]]


def test_doctor_says_all_of_a_model(desk: Desk, plugins: tuple[str, str]) -> None:
    weights(desk.home / "weights" / "unet" / "a.safetensors", 3_000_000)
    options = (*plugins, "--device", "cpu", "--model", "mine")
    lines = doctor(desk, *options, "--set", "dtype=bfloat16", code=0)
    assert lines[0].startswith("ok    model mine: 1 weight files, ")
    assert lines[1].startswith("ok    model mine memory: weights alone 6 MB as bfloat16; ")
    assert lines[2] == "ok    model mine prompts: 544 prompts were looked at in bfloat16."
    assert lines[3] == "ok    model mine licence: MIT"
    assert len(lines) == 4


def test_doctor_compares_with_the_memory_there_is(desk: Desk, plugins: tuple[str, str]) -> None:
    fits_alone = int(total_memory("cpu") * 0.6) // 4
    for part in ("unet", "vae"):
        weights(desk.home / "weights" / part / "a.safetensors", fits_alone)
    options = (*plugins, "--device", "cpu", "--model", "mine")
    memory = doctor(desk, *options, code=2)[1]
    assert memory.startswith("FAULT model mine memory: weights alone ")
    assert memory.endswith("--set mine.offload=model")
    memory = doctor(desk, *options, "--set", "offload=model", code=0)[1]
    assert memory.startswith("ok    model mine memory")


def test_doctor_names_each_models_own_faults(desk: Desk, plugins: tuple[str, str]) -> None:
    options = (*plugins, "--model", "far", "--model", "a=mine", "--set", "a.folder=refused")
    lines = doctor(desk, *options, code=2)
    faults = [line for line in lines if line.startswith("FAULT")]
    assert [line.split(":")[0] for line in faults] == [
        "FAULT model far",
        "FAULT model far",
        "FAULT model far",
        "FAULT model far disk",
        "FAULT model a prompts",
    ]
    assert "10000000.0 GB to fetch" in faults[3]
    assert faults[4].endswith("The size does not fit.")


def test_doctor_says_what_every_model_lacks_where_one_cannot_be_planned(
    desk: Desk, plugins: tuple[str, str]
) -> None:
    weights(desk.home / "weights" / "unet" / "a.safetensors", 3_000_000)
    models = ("--model", "far", "--model", "named", "--model", "l=mine", "--model", "x=named:/w")
    given = ("--set", "l.dtype=float16", "--set", "x.lora=a", "--set", "biovil-t.weights=/w")
    lines = doctor(desk, *plugins, *models, *given, code=2)
    said = "\n".join(lines)
    assert "FAULT model far: Nothing is here. Type: chexgenbench models fetch away" in said
    assert "FAULT model far: owner/huge, owner/lora (10000000.0 GB and more) is not on" in said
    assert "FAULT model named: The parameter weights has no default" in said
    assert "ok    model l memory: weights alone 6 MB as float16" in said
    assert "ok    model x: 1 weight files" in said


def test_an_environment_of_its_own_brings_its_own_modules(
    desk: Desk, plugins: tuple[str, str]
) -> None:
    options = ("models", "status", "apart", *plugins)
    assert "pip install no_such_module, or make its environment: chexgenbench env build apart" in (
        desk.run(*options, COLUMNS="1000").out
    )
    python = desk.cache / "environments" / "apart" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    (needs,) = json.loads(desk.run(*options, "--json").out)
    assert needs["environment"] == "apart"
    assert needs["ready"]


def test_parameters_of_task_metrics_in_a_suite_are_no_fault(desk: Desk) -> None:
    done = desk.run("doctor", "--suite", "quick", "--device", "cpu", COLUMNS="1000")
    assert "ok    model memorizer" in done.out
    assert "FAULT" not in done.out


@pytest.mark.parametrize(
    "options",
    [
        ("--metric", "fid"),
        ("--metric", "fid", "--encoder", "phantom-clip"),
        ("--metric", "memorisation", "--model", "noise", "--limit", "120"),
    ],
)
def test_a_command_may_leave_out_what_the_suite_has_parameters_for(
    desk: Desk, options: tuple[str, ...]
) -> None:
    done = desk.run("run", "--suite", "quick", "--device", "cpu", "--dry-run", *options)
    assert "noise" in done.out
