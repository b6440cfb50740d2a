"""The published kit: a new package works as it stands, and each fault is found by its check."""

from __future__ import annotations

import csv
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from chexgenbench import hookspecs
from chexgenbench.errors import UserError
from chexgenbench.registry import KINDS, Plugin, load_registry
from chexgenbench.testing import (
    Result,
    Settings,
    assert_contract,
    check_apart,
    check_plugin,
)
from chexgenbench.testing.checks import check_names, checks_of
from chexgenbench.testing.find import locate, onto_path
from chexgenbench.testing.scaffold import check_name, create
from chexgenbench.testing.world import cases, draw, write_split
from desk import Desk

INSTALL = ("pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "-q")
NEW = tuple(kind[:-1] for kind in KINDS)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new package of each kind, as the command writes it."""
    folder = tmp_path_factory.mktemp("shelf")
    registry = load_registry()
    for kind in NEW:
        create(kind, f"my-{kind}", folder, registry)
    return folder


def source(shelf: Path, kind: str) -> str:
    return (shelf / f"my-{kind}" / "src" / f"my_{kind}" / "plugin.py").read_text(encoding="utf-8")


def spoilt(shelf: Path, kind: str, before: str, after: str, folder: Path) -> Path:
    """The plugin of a new package with one thing changed, as a file."""
    text = source(shelf, kind)
    assert before in text
    path = folder / "spoilt.py"
    path.write_text(text.replace(before, after), encoding="utf-8")
    return path


def by_check(results: list[Result]) -> dict[str, Result]:
    return {result.check: result for result in results}


# --- a new package --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NEW)
def test_a_new_package_keeps_the_contract(shelf: Path, kind: str) -> None:
    found = assert_contract(shelf / f"my-{kind}", Settings(cache=shelf / "cache"))
    assert [each.check for each in found] == check_names(kind)
    assert {each.plugin for each in found} == {f"my-{kind}"}
    passed = [each.check for each in found if each.status == "passed"]
    assert len(passed) >= len(check_names(kind)) - 8  # a set metric is no task metric
    assert "lazy" in passed


@pytest.mark.slow
@pytest.mark.parametrize("kind", NEW)
def test_a_new_package_is_clean_tested_and_installs(shelf: Path, kind: str, tmp_path: Path) -> None:
    folder, scripts = shelf / f"my-{kind}", Path(sys.executable).parent
    python = [sys.executable, "-m"]
    commands = [
        [str(scripts / "ruff"), "check", "--no-cache", "."],
        [str(scripts / "ruff"), "format", "--check", "--no-cache", "."],
        [*python, "mypy", "--python-executable", sys.executable],
        [*python, "pytest", "-q", "-p", "no:cacheprovider"],
        [*python, *INSTALL, "--target", str(tmp_path / "site"), "."],
    ]
    for command in commands:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    desk = Desk.new(tmp_path)
    listed = desk.run(f"{kind}s", "list", PYTHONPATH=str(tmp_path / "site")).out
    assert f"my-{kind} " in listed
    checked = desk.run("plugin", "check", f"my-{kind}", PYTHONPATH=str(tmp_path / "site")).out
    assert ", 0 failed," in checked


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("My_Model", "my-model"),
        ("my--model", "my-model"),
        ("../model", "small letters"),
        ("1model", "small letters"),
        ("a" * 41, "at most 40"),
        ("", "small letters"),
        ("class", "a word of Python"),
        ("noise", "a model named 'noise'"),
        ("sd-v1-5", "a model named 'sd-v1-5'"),
        ("json", "a Python module 'json'"),
        ("numpy", "a Python module 'numpy'"),
    ],
)
def test_names_that_cannot_be_are_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        create("model", name, tmp_path, load_registry())
    assert message in f"{caught.value.message} {caught.value.hint}"
    assert not list(tmp_path.iterdir())


def test_an_old_folder_stays_and_half_a_package_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = load_registry()
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="exists"):
        create("model", "mine", tmp_path, registry)
    with pytest.raises(UserError, match="does not exist"):
        create("model", "other", tmp_path / "nowhere", registry)
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(UserError, match="file is no folder"):
        create("model", "other", tmp_path / "mine" / "file", registry)
    (tmp_path / "mine" / "file").unlink()

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("chexgenbench.testing.scaffold._write_data", full)
    with pytest.raises(OSError, match="No space"):
        create("split", "third", tmp_path, registry)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert check_name("model", "my-model", registry) == "my_model"


# --- examples -------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = {
    f"{kind}-{number}": textwrap.dedent(code)
    for kind in KINDS
    for number, code in enumerate(
        re.findall(
            r"::\n\n((?:    .*\n|\n)+)",
            f"{inspect.getdoc(getattr(hookspecs, f'chexgenbench_{kind}'))}\n",
        )
    )
} | {
    "readme": re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )[0]
}
"""The plugins that the manual and README show."""


def test_every_hook_has_an_example() -> None:
    assert {name.partition("-")[0] for name in EXAMPLES} == {*KINDS, "readme"}
    assert len(EXAMPLES) == 7


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_keeps_the_contract(tmp_path: Path, example: str) -> None:
    path = tmp_path / "example.py"
    path.write_text(EXAMPLES[example], encoding="utf-8")
    # The split's example reads tables that its author has.
    chosen = cases(6)
    table = write_split(tmp_path, "clinic", chosen, [draw(c, i) for i, c in enumerate(chosen)])
    text = table.read_text(encoding="utf-8").replace("annotated_prompt", "caption", 1)
    text = text.replace("patientID", "subject", 1).replace("clinic/0", "0")
    (tmp_path / "clinic" / "images").mkdir()
    for image in (tmp_path / "clinic").glob("*.png"):
        image.rename(tmp_path / "clinic" / "images" / image.name)
    (tmp_path / "clinic" / "test.csv").write_text(text, encoding="utf-8")
    found = assert_contract(path, Settings(skip=("fresh-process",), home=tmp_path))
    taken = {each.check for each in found if each.status == "passed"}
    assert taken & {"images", "outputs", "scores", "runs", "table", "labels"}


# --- faults ---------------------------------------------------------------------------------

FAULTS = [
    ("model", "name", 'name="my-model"', 'name="My-Model"'),
    ("model", "name", 'name="my-model"', 'name="--"'),
    ("model", "summary", 'summary="Two lungs', 'summary="" and "Two lungs'),
    ("model", "licence", 'licence="that of this package"', 'licence="not stated"'),
    ("model", "descriptions", ', description="Width and height in pixels."', ""),
    ("model", "lazy", "import numpy as np", "import numpy as np\nimport scipy.linalg"),
    ("model", "loads", "load=Lungs", 'load="json:JSONDecoder"'),
    ("model", "images", "            yield (", "            return\n            yield ("),
    ("model", "images", ".round().astype(np.uint8)", ".astype(np.float32)"),
    ("model", "images", "(grey.clip(0, 1) * 255).round().astype(np.uint8)", "grey * np.nan"),
    ("model", "images", "image_size=128", "image_size=256"),
    ("model", "same-seed", "default_rng(request.seed)", "default_rng()"),
    ("model", "same-seed", "np.random.default_rng(request.seed)", "np.random"),
    (
        "model",
        "fresh-process",
        "default_rng(request.seed)",
        "default_rng(abs(hash(request.prompt + str(request.seed))))",
    ),
    ("model", "another-seed", "default_rng(request.seed)", "default_rng(7)"),
    (
        "model",
        "batches",
        "default_rng(request.seed)",
        "default_rng(request.seed + len(requests))",
    ),
    ("model", "order", "for request in requests:", "for request in sorted(requests, key=str):"),
    ("model", "sizes", "request.size or self", "self"),
    (
        "model",
        "unusual-prompts",
        "request.prompt.lower()\n",
        'request.prompt.encode("ascii").decode()\n',
    ),
    ("metric", "scores", '{"energy_distance": Est', '{"energy": Est'),
    ("metric", "scores", "lowest=0.0", "lowest=5.0"),
    ("metric", "direction", "higher_is_better=False", "higher_is_better=True"),
    ("metric", "direction", "Estimate(distance,", "Estimate(0.5,"),
    ("metric", "repeats", "distance = float(value)", "distance = float(value) + np.random.rand()"),
    (
        "metric",
        "order",
        "distance = float(value)",
        "distance = float(np.abs(real.features - fake.features).mean())",
    ),
    ("metric", "small", "if fewest < FEWEST", "if fewest < 0"),
    ("metric", "interval", "error, low, high)", "None, None, None)"),
    ("metric", "interval", "error, low, high)", "error, high, high)"),
    (
        "metric",
        "patients",
        "error = float(",
        "error = 1 / len(fake) * float(",
    ),
    ("encoder", "lazy", "import numpy as np", "import numpy as np\nimport torch"),
    ("encoder", "preprocess", "(SIZE, SIZE)", "image.size"),
    ("encoder", "outputs", "DIRECTIONS},", "DIRECTIONS + 1},"),
    ("encoder", "outputs", ".astype(np.float32)", ".astype(np.float64)"),
    ("encoder", "outputs", "(length + 1e-6)", "length"),
    ("encoder", "outputs", 'return {"features": features}', "return features"),
    ("encoder", "batches", "rows / (length", "(rows - rows.mean(0)) / (length"),
    ("encoder", "repeats", "(length + 1e-6)", "(length + np.random.rand())"),
    ("encoder", "tells-apart", "rows / (length + 1e-6)", "(rows * 0 + 1)"),
    ("encoder", "text", 'preprocessing="', 'text=True, preprocessing="'),
    (
        "encoder",
        "grey-is-colour",
        'image.convert("L")',
        "image.getchannel(0).rotate(len(image.mode) * 90)",
    ),
    ("split", "source", 'DATA / "train.csv"', 'DATA / "training.csv"'),
    ("split", "images", "images_root=DATA", "images_root=DATA.parent"),
    ("split", "patients", 'train=DATA / "train.csv"', 'train=DATA / "test.csv"'),
    ("split", "table", "images_root=DATA)", 'images_root=DATA, columns={"prompt": "text"})'),
    ("split", "credentialed", 'licence="that of this package"', 'licence="PhysioNet Credentialed"'),
    ("judge", "labels", '"High Quality"', '"Fine"'),
    ("judge", "labels", "for request in requests:", "for request in requests[1:]:"),
    ("judge", "alone", "spread >= self", "spread / len(requests) >= self"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "check", "before", "after"),
    FAULTS,
    ids=[f"{kind}-{check}-{i}" for i, (kind, check, *_) in enumerate(FAULTS)],
)
def test_a_fault_is_found_by_its_check(
    shelf: Path, kind: str, check: str, before: str, after: str, tmp_path: Path
) -> None:
    path = spoilt(shelf, kind, before, after, tmp_path)
    if kind == "split":
        data = shelf / f"my-{kind}" / "src" / f"my_{kind}" / "data"
        (tmp_path / "data").symlink_to(data)
    # Checks that start a process take a second each, and are taken where they are meant.
    others = tuple({"lazy", "fresh-process"} - {check})
    found = by_check(check_plugin(path, Settings(skip=others, cache=tmp_path / "cache")))
    assert found[check].status == "failed", found[check]
    assert found[check].detail
    assert found["parameters"].status == "passed"


def test_one_fault_is_said_once(shelf: Path, tmp_path: Path) -> None:
    path = spoilt(shelf, "encoder", 'return {"features": features}', "return features", tmp_path)
    found = check_plugin(path, Settings(skip=("lazy",)))
    (failed,) = [each for each in found if each.status == "failed"]
    assert failed.check == "outputs" and "a ndarray, not a mapping" in failed.detail
    after = by_check(found)
    assert after["batches"].detail == "not taken: what outputs found stops it"


@pytest.mark.parametrize(
    "distance",
    [
        "np.linalg.norm(real.features.mean(0) - fake.features.mean(0))",
        "((real.features.mean(0) - fake.features.mean(0)) ** 2).sum()",
        "abs(real.features.sum(0) - fake.features.sum(0)).max()",
    ],
)
def test_sums_in_float32_do_not_depend_on_the_order(
    shelf: Path, tmp_path: Path, distance: str
) -> None:
    path = spoilt(
        shelf, "metric", "distance = float(value)", f"distance = float({distance})", tmp_path
    )
    text = path.read_text(encoding="utf-8")
    assert "Estimate(distance, error, low, high)" in text
    # Without an error, within which a score may move.
    none = 'Estimate(distance, reason="none was derived")'
    path.write_text(text.replace("Estimate(distance, error, low, high)", none), encoding="utf-8")
    found = by_check(check_plugin(path, Settings(skip=("lazy",))))
    assert found["order"].status == "passed", found["order"]


def test_a_split_that_reads_labels_and_says_whose_data_they_are(
    shelf: Path, tmp_path: Path
) -> None:
    data = shelf / "my-split" / "src" / "my_split" / "data"
    shutil.copytree(data, tmp_path / "data")
    for table in (tmp_path / "data").glob("*.csv"):
        rows = list(csv.reader(table.open(encoding="utf-8", newline="")))
        at = rows[0].index("chexpert_labels")
        with table.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(
                [*row[:at], row[at] if i == 0 else "see report", *row[at + 1 :]]
                for i, row in enumerate(rows)
            )
    after = (
        "images_root=DATA, credentialed=True,"
        " labeller=lambda prompts: [[0.0] * 14 for _ in prompts])"
    )
    path = spoilt(shelf, "split", "images_root=DATA)", after, tmp_path)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("that of this package", "PhysioNet Credentialed"), "utf-8")
    found = by_check(check_plugin(path, Settings(skip=("lazy",))))
    assert {name: each.detail for name, each in found.items() if each.status == "failed"} == {}
    assert found["credentialed"].detail.startswith("credentialed")
    # Nor is it credentialed because the descriptor says so.
    open_ = after.replace("credentialed=True", "credentialed=False")
    path = spoilt(shelf, "split", "images_root=DATA)", open_, tmp_path)
    text = path.read_text(encoding="utf-8").replace("credentialed=False,\n", "credentialed=True,\n")
    path.write_text(text, encoding="utf-8")
    found = by_check(check_plugin(path, Settings(skip=("lazy",))))
    assert found["credentialed"].detail.startswith("open")


@pytest.mark.parametrize(
    ("column", "value", "check", "detail", "hint"),
    [
        ("path", "../x.png", "images", "leads out of the folder", "images_root"),
        ("path", "x.png", "images", "the image is missing", "images_root"),
        ("path", "test.csv", "images", "no image that can be read", "images_root"),
        ("id", "same", "table", "the id is that of line 2", 'SplitSource(columns={"id": ""})'),
    ],
)
def test_what_is_wrong_with_a_table_is_said_in_the_authors_words(
    shelf: Path, tmp_path: Path, column: str, value: str, check: str, detail: str, hint: str
) -> None:
    shutil.copytree(shelf / "my-split" / "src" / "my_split" / "data", tmp_path / "data")
    path = spoilt(shelf, "split", "images_root=DATA", "images_root=DATA", tmp_path)
    table = tmp_path / "data" / "test.csv"
    rows = list(csv.reader(table.open(encoding="utf-8", newline="")))
    for row in rows[1:3]:
        row[rows[0].index(column)] = value
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    found = by_check(check_plugin(path, Settings(skip=("lazy",))))[check]
    assert found.status == "failed" and detail in found.detail
    assert hint in found.hint


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('listing')", "prints"),
        ("import os; os.write(1, b'listing')", "prints"),
        (
            "import threading; threading.Thread(None, threading.Event().wait, 'mine', (9,), "
            "daemon=True).start()",
            "starts the thread 'mine'",
        ),
        ("open('noted.txt', 'w').close()", "writes to 'noted.txt'"),
        ("import os; os.makedirs('kept', exist_ok=True)", "changes files (os.mkdir of 'kept')"),
        ("import os; os.system('true')", "starts a process"),
        (
            "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
            ".connect(('127.0.0.1', 9))",
            "uses the network",
        ),
    ],
)
def test_importing_a_plugin_does_nothing_else(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = spoilt(shelf, "judge", "import numpy as np\n", f"import numpy as np\n{code}\n", tmp_path)
    (loaded,) = [
        each
        for each in checks_of(
            Plugin(load_registry().judges["scores"].spec, str(path)),
            tmp_path / "work",
            Settings(),
            locate(path),
        )
        if each.name == "lazy"
    ]
    found = loaded.run()
    assert found.status == "failed" and message in found.detail
    assert "nothing but define it" in found.hint


def test_a_thread_that_never_ends_keeps_no_check_waiting(shelf: Path, tmp_path: Path) -> None:
    code = "import threading; threading.Thread(None, threading.Event().wait, 'mine').start()"
    path = spoilt(shelf, "model", "import numpy as np\n", f"import numpy as np\n{code}\n", tmp_path)
    (checked,) = check_apart(path, Settings(seconds=120))
    failed = {each.check: each.detail for each in checked.results if each.status == "failed"}
    assert list(failed) == ["lazy"] and "starts the thread 'mine'" in failed["lazy"]


def test_what_is_needed_and_not_there_is_skipped_with_its_reason(
    shelf: Path, tmp_path: Path
) -> None:
    path = spoilt(shelf, "model", "Field(128, ge", "Field(ge", tmp_path)
    settings = Settings(skip=("lazy", "fresh-process"))
    found = by_check(check_plugin(path, settings))
    assert found["images"].status == "skipped" and "--set size=" in found["images"].detail
    said = by_check(check_plugin(path, Settings(skip=settings.skip, values={"size": "64"})))
    assert said["images"].status == "passed" and "64 x 64" in said["images"].detail
    path = spoilt(
        shelf, "model", "load=Lungs", 'load=Lungs, requires=("no_such_module",)', tmp_path
    )
    found = by_check(check_plugin(path, settings))
    assert found["images"].status == "skipped"
    assert "no_such_module" in found["images"].detail


def test_a_deterministic_model_says_so(shelf: Path, tmp_path: Path) -> None:
    path = spoilt(shelf, "model", "default_rng(request.seed)", "default_rng(7)", tmp_path)
    settings = Settings(skip=("lazy", "fresh-process"), deterministic=True)
    assert by_check(check_plugin(path, settings))["another-seed"].status == "passed"
    honest = spoilt(shelf, "model", "Two lungs drawn", "Two lungs drawn", tmp_path)
    assert by_check(check_plugin(honest, settings))["another-seed"].status == "failed"


def test_a_tolerance_is_what_is_accepted(shelf: Path, tmp_path: Path) -> None:
    after = "request.seed)\n            shift = len(requests) * 3 / 255"
    path = spoilt(shelf, "model", "request.seed)", after, tmp_path)
    text = path.read_text().replace("np.full((size, size), 0.75)", "0.75 + shift + 0 * x")
    path.write_text(text.replace("self.parameters.grain", "0"))
    skip = ("lazy", "fresh-process")
    assert by_check(check_plugin(path, Settings(skip=skip)))["batches"].status == "failed"
    loose = Settings(skip=skip, tolerance=60)
    assert by_check(check_plugin(path, loose))["batches"].status == "passed"


def test_a_bare_descriptor_is_checked_as_far_as_one_can() -> None:
    spec = load_registry().models["noise"].spec
    found = by_check(check_plugin(spec))
    assert found["same-seed"].status == "passed"
    assert found["fresh-process"].status == found["lazy"].status == "skipped"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no-such-plugin", "no-such-plugin"),
        ("nothing.py", "no file or folder"),
        ("", "no name"),
        ("oracel", "'oracle'"),
    ],
)
def test_targets_that_are_nothing(target: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_plugin(target)
    assert message in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no pyproject.toml"),
        ("= 1", "cannot be read"),
        ("[project]\nname = 'a'", "declares no plugin"),
        ("project = 3", "declares no plugin"),
        ("[project]\nname = 'a'\nentry-points.chexgenbench = {a = 'b\\nc'}", "no plain name"),
        ("[project]\nname = '../a'\nentry-points.chexgenbench = {a = 'b'}", "no plain name"),
    ],
)
def test_folders_that_are_no_package(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(UserError, match=message):
        locate(tmp_path)


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("def broken(:", "Mend the line"),
        ("import no_such_module_here", 'requires=("MODULE",)'),
        ("raise RuntimeError('no')", "by themselves"),
    ],
)
@pytest.mark.parametrize("package", [False, True])
def test_a_plugin_that_cannot_be_imported_gets_a_hint_for_its_fault(
    shelf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    hint: str,
    package: bool,
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = tmp_path / "broken-judge"
    shutil.copytree(shelf / "my-judge", folder)
    # No other test may have imported a module of this name.
    name = f"broken_{abs(hash(code))}"
    (folder / "src" / "my_judge").rename(folder / "src" / name)
    project = folder / "pyproject.toml"
    project.write_text(project.read_text("utf-8").replace("my_judge", name), encoding="utf-8")
    plugin = folder / "src" / name / "plugin.py"
    plugin.write_text(code, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        check_plugin(folder if package else plugin)
    assert hint in (caught.value.hint or "")


def test_a_file_of_an_installed_package_is_named_by_its_folder(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    onto_path(locate(shelf / "my-judge"))
    with pytest.raises(UserError, match="Two judges are named 'my-judge'") as caught:
        check_plugin(shelf / "my-judge" / "src" / "my_judge" / "plugin.py")
    assert "Check the package's folder" in (caught.value.hint or "")


def test_unknown_checks_and_parameters_are_refused() -> None:
    with pytest.raises(UserError, match="no check 'same-sed'"):
        check_plugin("noise", Settings(skip=("same-sed",)))
    with pytest.raises(UserError, match="deviatoin"):
        check_plugin("noise", Settings(values={"deviatoin": 1}))


# --- hostile plugins ------------------------------------------------------------------------

HOSTILE = [
    ("import time; time.sleep(999)", "not ready after"),
    ("import os; os._exit(0)", "exit code 0"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "signal SIGSEGV"),
    ("raise SystemExit(5)", "SystemExit: 5"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("code", "message"), HOSTILE)
def test_a_plugin_that_hangs_or_dies_is_a_failed_check(
    shelf: Path, tmp_path: Path, code: str, message: str
) -> None:
    path = spoilt(
        shelf,
        "model",
        "for request in requests:",
        f"for request in requests:\n            {code}",
        tmp_path,
    )
    settings = Settings(skip=("lazy", "fresh-process"), seconds=6)
    (checked,) = check_apart(path, settings)
    found = by_check(checked.results)
    assert list(found) == list(checked.checks)
    assert found["loads"].status == "passed"
    assert found["images"].status == "failed" and message in found["images"].detail
    if "SystemExit" not in code:
        assert {found[name].status for name in ("order", "sizes")} == {"skipped"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os._exit(3)", "exit code 3"),
        ("raise RuntimeError('broken here')", "broken here"),
        ("import time; time.sleep(999)", "not ready after"),
        ("import no_such_module_here", "no_such_module_here"),
    ],
)
def test_a_file_that_cannot_be_imported_is_a_failed_check(
    tmp_path: Path, code: str, message: str
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(code)
    (checked,) = check_apart(path, Settings(seconds=6))
    (result,) = checked.results
    assert (result.check, result.status) == ("import", "failed")
    assert message in result.detail


# --- the command ----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_writes_checks_and_says_what_to_do(desk: Desk) -> None:
    made = desk.run("plugin", "new", "model", "my-model").out
    assert "chexgenbench plugin check my-model" in made
    assert ", 0 failed," in desk.run("plugin", "check", "my-model").out
    again = desk.run("plugin", "new", "model", "my-model", code=2)
    assert "exists" in again.err
    plugin = desk.home / "my-model" / "src" / "my_model" / "plugin.py"
    text = plugin.read_text(encoding="utf-8")
    plugin.write_text(text.replace("default_rng(request.seed)", "default_rng()"), "utf-8")
    done = desk.run("plugin", "check", "my-model", code=1)
    assert "FAILED  same-seed" in done.out and "request.seed" in done.out
    assert all(len(line) <= 80 for line in done.out.splitlines())
    answer = json.loads(desk.run("plugin", "check", str(plugin), "--json", code=1).out)
    (checked,) = answer["plugins"]
    failed = {each["check"] for each in checked["results"] if each["status"] == "failed"}
    assert "same-seed" in failed and answer["failed"] == len(failed)
    assert desk.run("plugin", "check", "nothing.py", code=2).err.startswith("Error: There is no")
    assert "no NAME=VALUE" in desk.run("plugin", "check", "noise", "--set", "x", code=2).err


def test_what_a_plugin_prints_is_no_part_of_the_answer(desk: Desk, shelf: Path) -> None:
    after = "for request in requests:\n            print('\\x1b[2Jnoise', flush=True)"
    path = spoilt(shelf, "model", "for request in requests:", after, desk.home)
    answer = json.loads(desk.run("plugin", "check", path, "--json", "--skip", "lazy").out)
    assert answer["failed"] == 0
    assert "\x1b" not in json.dumps(answer)


def test_what_a_plugin_prints_when_it_is_listed_is_no_part_of_the_answer(desk: Desk) -> None:
    (desk.home / "loud.py").write_text(
        "from chexgenbench import hookimpl\n"
        "print('importing')\n"
        "@hookimpl\n"
        "def chexgenbench_models():\n"
        "    print('listing')\n"
        "    return ()\n"
    )
    done = desk.run("models", "list", "--plugin", "loud.py", "--json")
    assert json.loads(done.out)
    assert "importing" in done.err and "listing" in done.err


def test_what_to_try_next_can_be_typed(desk: Desk) -> None:
    (desk.home / "my plugins").mkdir()
    made = desk.run("plugin", "new", "judge", "my-judge", "--into", "my plugins").out
    assert "chexgenbench plugin check 'my plugins/my-judge'" in made
    assert "pip install -e './my plugins/my-judge'" in made


def test_the_kit_costs_nothing_to_import() -> None:
    code = (
        "import sys, chexgenbench.testing, chexgenbench.cli.plugin;"
        "print([m for m in ('pytest', 'numpy', 'torch', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "[]"
