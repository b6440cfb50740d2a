"""What all tests share: a folder to work in, and one whole demo run for those that need it."""

from __future__ import annotations

import compileall
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

# Several workers share the cores; each, and what it starts, computes with its part of them.
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

# A shell's background job ignores Ctrl-C, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from hypothesis import settings

from desk import Desk, Done

# A program that tests start, with arguments: not a module to look for doctests in.
collect_ignore = ["hostile_worker.py"]

# A busy machine is no fault of the code: examples have no deadline.
settings.register_profile("chexgenbench", deadline=None)
settings.load_profile("chexgenbench")


_OF_THE_DEMO = {"test_demo.py", "test_docs.py", "test_page.py"}
"""Files with tests of the whole demo."""

_LONGEST = (
    "demo",
    "test_privacy_utility",
    "test_models",
    "test_cli",
    "test_builtin_contract",
    "test_builtin_contract models",
    "test_ray",
    "test_tutorials",
    "test_job_kinds",
    "test_shards",
    "test_environments",
    "test_pipelines",
    "test_report_generation",
    "test_runs",
)
"""Groups that take minutes, the longest first."""


def _group(test: str) -> str:
    """What runs in one worker, of a test's id: the tests of a file, and all tests of the whole
    demo, so that what they share is made once."""
    file, _, name = test.partition("::")
    path = Path(file)
    if path.name in _OF_THE_DEMO and "_the_site" not in name:
        return "demo"
    if path.stem == "test_builtin_contract" and "[model-" in name:
        return f"{path.with_suffix('')} models"
    return str(path.with_suffix(""))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes comes first, so that the workers end together."""
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        group = _group(item.nodeid)
        groups.setdefault(group, []).append(item)
        if "demo" not in getattr(item, "fixturenames", ()):
            continue
        item.add_marker("slow")
        if group != "demo":
            raise pytest.UsageError(f"{item.path.name} takes the demo: put it into _OF_THE_DEMO")

    def place(group: str) -> tuple[int, int]:
        name = Path(group).name
        at = _LONGEST.index(name) if name in _LONGEST else len(_LONGEST)
        return at, -sum(item.get_closest_marker("slow") is not None for item in groups[group])

    items[:] = [item for group in sorted(groups, key=place) for item in groups[group]]


def pytest_configure(config: pytest.Config) -> None:
    """Compiles the code once for the many processes that tests start: where Python is told to write
    no bytecode, each would."""
    if not hasattr(config, "workerinput"):
        for name in ("platform", "plugins"):
            compileall.compile_dir(config.rootpath / name, quiet=2)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """By `_group`. The marks of pytest-xdist 3.8 for that have no effect under pytest 9.2, which
    takes no other name for a test."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return Groups(config, log)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk.new(tmp_path)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Desk, Done]:
    """The demo suite as `make run` runs it: four models, 544 prompts."""
    desk = Desk.new(tmp_path_factory.mktemp("demo"))
    shutil.rmtree(desk.cache)  # all is made, as at a newcomer's
    done = desk.run("run", whole=True)
    # Later tests run more in this folder, and each run writes the page anew.
    shutil.copy(desk.home / "Results" / "report.html", desk.home / "demo.html")
    print(f"the demo took {done.seconds:.0f} s", file=sys.stderr)
    return desk, done


@pytest.fixture(scope="session")
def rad_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of RAD-DINO's kind: one layer, and a pooler of the published width."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=768,
        num_hidden_layers=1,
        num_attention_heads=12,
        image_size=518,
        patch_size=14,
        mlp_ratio=1,
    )
    folder = tmp_path_factory.mktemp("rad-dino")
    Dinov2Model(config).save_pretrained(folder)
    return folder
