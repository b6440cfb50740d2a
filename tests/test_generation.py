"""Generation: the same images whatever happens on the way."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from chexgenbench.errors import ChexGenBenchError
from chexgenbench.generation.requests import request_id, seed_of
from chexgenbench.jobs.generate import MANIFEST, generate, read_manifest
from chexgenbench.registry import Plugin
from chexgenbench.types import Context, Image, Model, ModelSpec, Parameters, Request

CONTEXT = Context(home=Path(), cache=Path())


class Batchy(Model):
    """Like a real pipeline, each image depends a little on its whole batch."""

    calls = 0

    def generate(self, requests: Sequence[Request]) -> Iterator[Image]:
        type(self).calls += 1
        together = sum(request.seed for request in requests) % 251
        for request in requests:
            random = np.random.default_rng(request.seed)
            yield random.integers(0, 200, (32, 32), dtype=np.uint8) + np.uint8(together % 50)


def requests(count: int) -> list[Request]:
    return [
        Request(id=f"r{i}", prompt_id=f"r{i}", prompt=f"text {i}", seed=seed_of(0, f"r{i}", 0))
        for i in range(count)
    ]


def make(folder: Path, model: type[Model] = Batchy, count: int = 11, batch: int = 4) -> dict:
    load = lambda: model(Parameters(), CONTEXT)  # noqa: E731
    rows = generate(load, requests(count), folder, batch_size=batch, advance=lambda _n: None)
    return {key: row.sha256 for key, row in rows.items()}


def test_the_manifest_tells_all_of_an_image(tmp_path: Path) -> None:
    hashes = make(tmp_path)
    assert list(hashes) == [f"r{i}" for i in range(11)]
    row = read_manifest(tmp_path)["r5"]
    assert (row.width, row.height, row.batch, row.flags) == (32, 32, 1, ())
    assert row.seed == seed_of(0, "r5", 0)
    assert (tmp_path / row.path).name == "SyntheticImg_r5.png"
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.parametrize("lost", [("r5",), ("r0", "r10"), tuple(f"r{i}" for i in range(11))])
def test_missing_images_are_made_again_as_they_were(tmp_path: Path, lost: Sequence[str]) -> None:
    whole = make(tmp_path)
    for name in lost:
        (tmp_path / "images" / f"SyntheticImg_{name}.png").unlink()
    assert make(tmp_path) == whole


def test_nothing_is_made_twice(tmp_path: Path) -> None:
    make(tmp_path)
    Batchy.calls = 0
    make(tmp_path)
    assert Batchy.calls == 0


def test_a_cut_line_and_an_empty_file_count_as_not_made(tmp_path: Path) -> None:
    whole = make(tmp_path)
    manifest = tmp_path / MANIFEST
    manifest.write_bytes(manifest.read_bytes()[:-30])
    (tmp_path / "images" / "SyntheticImg_r2.png").write_bytes(b"")
    assert make(tmp_path) == whole
    assert len(manifest.read_text().splitlines()) == len(
        [json.loads(line) for line in manifest.read_text().splitlines()]
    )


def test_a_damaged_manifest_is_said(tmp_path: Path) -> None:
    make(tmp_path)
    lines = (tmp_path / MANIFEST).read_text().splitlines()
    (tmp_path / MANIFEST).write_text("\n".join([lines[0], "{}", *lines[1:]]) + "\n")
    with pytest.raises(ChexGenBenchError, match="line 2 is damaged"):
        make(tmp_path)


class Slow(Batchy):
    def generate(self, requests: Sequence[Request]) -> Iterator[Image]:
        time.sleep(0.05)
        yield from super().generate(requests)


def _in_process(folder: Path, images: int) -> None:
    """Makes that many images and then waits to be killed, in the middle of a batch."""

    class Stopping(Batchy):
        def generate(self, requests: Sequence[Request]) -> list[Image]:  # type: ignore[override]
            if len(list(folder.glob("images/*.png"))) >= images:
                time.sleep(600)
            return list(super().generate(requests))

    make(folder, Stopping, count=40)


def test_killed_at_any_moment_and_started_again_it_is_the_same(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", count=40)
    killed = tmp_path / "killed"
    spawn = multiprocessing.get_context("fork")
    for images_before in (1, 14, 30):
        process = spawn.Process(target=_in_process, args=(killed, images_before))
        process.start()
        while process.is_alive() and len(list(killed.glob("images/*.png"))) < images_before:
            time.sleep(0.001)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert len(read_manifest(killed)) < 40
    assert make(killed, count=40) == whole


def test_two_at_once_share_the_work(tmp_path: Path) -> None:
    results: list[dict] = []
    threads = [
        threading.Thread(target=lambda: results.append(make(tmp_path, Slow))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1]
    lines = (tmp_path / MANIFEST).read_text().splitlines()
    assert len(lines) == 11


def failing(returned: object) -> type[Model]:
    class Failing(Model):
        def generate(self, requests: Sequence[Request]) -> object:  # type: ignore[override]
            if isinstance(returned, Exception):
                raise returned
            return returned

    return Failing


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (RuntimeError("out of luck"), "RuntimeError: out of luck"),
        (FileNotFoundError("no config.json"), "FileNotFoundError: no config.json"),
        ([], "0 images for 4 requests"),
        ([np.zeros((3, 32, 32))] * 4, "r0: an image"),
        ([np.zeros((32, 32))] * 5, "5 images for 4"),
        (None, "TypeError"),
    ],
)
def test_a_failing_model_is_named(tmp_path: Path, returned: object, message: str) -> None:
    with pytest.raises(ChexGenBenchError, match=message):
        make(tmp_path, failing(returned))


def test_a_full_disk_is_no_fault_of_the_model(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        make(tmp_path, failing(OSError(errno.ENOSPC, "No space left on device")))


def test_a_model_that_cannot_be_loaded_is_a_failure_of_the_model(tmp_path: Path) -> None:
    class Unloadable(Batchy):
        def __init__(self, parameters: object, context: Context) -> None:
            raise KeyError("weights")

    plugin = Plugin(ModelSpec(name="u", summary="", load=Unloadable), "here.py")
    with pytest.raises(ChexGenBenchError, match=r"'u' \(here\.py\) cannot be loaded: KeyError"):
        plugin.create(Parameters(), CONTEXT)


def test_flags_are_kept(tmp_path: Path) -> None:
    pictures = [
        np.zeros((32, 32), np.uint8),
        np.full((32, 32), np.nan),
        np.full((32, 32), 0.4),
        np.eye(32),
    ]
    make(tmp_path, failing(pictures), count=4)
    assert [row.flags for row in read_manifest(tmp_path).values()] == [
        ("black", "constant"),
        ("nan", "black", "constant"),
        ("constant",),
        (),
    ]


def test_seeds_depend_on_the_request_alone() -> None:
    seeds = {seed_of(run, name, repeat) for run in (0, 1) for name in "ab" for repeat in range(10)}
    assert len(seeds) == 40
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "x" * 300, "a~1", "a b", "ä"])
def test_an_id_that_is_no_file_name_becomes_a_hash(name: str) -> None:
    assert len(request_id(name, 0)) == 32
    assert request_id(name, 3) == f"{request_id(name, 0)}~3"
