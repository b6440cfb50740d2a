"""Generation: the same images whatever happens on the way."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chexgenbench import provenance
from chexgenbench.errors import ChexGenBenchError
from chexgenbench.generation import Generation, choose_batch_size, plan_generation
from chexgenbench.generation.batch_size import Trial, best_size
from chexgenbench.generation.requests import request_id, seed_of
from chexgenbench.images import duplicates
from chexgenbench.jobs.claims import CLAIMS
from chexgenbench.jobs.generate import generate, hold, work
from chexgenbench.jobs.manifest import (
    MANIFEST,
    PROCESSES,
    SUMMARY,
    Process,
    read_calls,
    read_manifest,
    read_processes,
    rewrite,
)
from chexgenbench.registry import Plugin
from chexgenbench.types import Context, Image, Made, Model, ModelSpec, Parameters, Request

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
    with hold(folder):
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
        ("black", "constant", "duplicate"),
        ("nan", "black", "constant", "duplicate"),
        ("constant",),
        (),
    ]


def test_flags_of_the_model_stand_beside_ours(tmp_path: Path) -> None:
    made = [Made(image=np.zeros((32, 32)), flags=("truncated", "black")), Made(image=np.eye(32))]
    make(tmp_path, failing(made), count=2)
    flags = [row.flags for row in read_manifest(tmp_path).values()]
    assert flags == [("black", "constant", "truncated"), ()]


@pytest.mark.parametrize(
    "flags",
    ["bad", (1,), (np.float32(1),), ("Capital",), ("",), ("x" * 41,), ("a b",), None, {"a"}],
)
def test_flags_that_are_no_names_are_the_fault_of_the_model(tmp_path: Path, flags: object) -> None:
    made = Made(image=np.eye(32), flags=flags)  # type: ignore[arg-type]
    with pytest.raises(ChexGenBenchError, match="Failing returned the flags"):
        make(tmp_path, failing([made]), count=1)


class Collapsed(Batchy):
    """Every third prompt is answered by one picture, with a little noise of its own."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Image]:
        for request, image in zip(requests, super().generate(requests), strict=True):
            random = np.random.default_rng(request.seed)
            if int(request.id[1:]) % 3 == 0:
                image = np.tile(np.arange(32, dtype=np.uint8) * 6, (32, 1))
                image += random.integers(0, 4, (32, 32), dtype=np.uint8)
            yield image


def test_one_image_for_several_prompts_is_flagged(tmp_path: Path) -> None:
    collapsed = make(tmp_path, Collapsed)
    flags = {row.id: row.flags for row in read_manifest(tmp_path).values()}
    assert flags == {f"r{i}": ("duplicate",) if i % 3 == 0 else () for i in range(11)}
    manifest = (tmp_path / MANIFEST).read_bytes()
    assert make(tmp_path, Collapsed) == collapsed
    assert (tmp_path / MANIFEST).read_bytes() == manifest


def test_images_of_one_prompt_may_repeat() -> None:
    small = np.zeros((4, 16, 16), np.uint8)
    assert not duplicates(small, ["a"] * 4).any()
    assert duplicates(small, ["a", "a", "a", "b"]).all()


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    block=st.integers(1, 50),
    spread=st.sampled_from([1, 3, 8, 255]),
)
def test_duplicates_are_those_of_the_definition(seed: int, n: int, block: int, spread: int) -> None:
    random = np.random.default_rng(seed)
    # Near the largest sums, where float32 would round first.
    small = 255 - random.integers(0, spread + 1, (n, 16, 16), dtype=np.uint8)
    small[random.integers(0, 2, n) == 0] //= 255
    prompts = [str(i) for i in random.integers(0, 5, n)]
    rows = small.reshape(n, 256).astype(np.int64)
    squares = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
    other = np.array(prompts)[:, None] != np.array(prompts)[None]
    expected = ((squares <= 4 * 256) & other).any(axis=1)
    assert duplicates(small, prompts, block=block).tolist() == expected.tolist()


def short_of_memory(limit: int, error: Callable[[], Exception] = MemoryError) -> type[Batchy]:
    """A model that fits calls of at most `limit` requests; it counts what it was asked."""

    class Short(Batchy):
        asked: ClassVar[list[int]] = []

        def generate(self, requests: Sequence[Request]) -> Iterator[Image]:
            self.asked.append(len(requests))
            if len(requests) > limit:
                raise error()
            yield from super().generate(requests)

    return Short


CUDA = "CUDA out of memory. Tried to allocate 20.00 MiB."
CPU = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        MemoryError,
        lambda: torch.OutOfMemoryError(CUDA),
        lambda: RuntimeError(CPU),
        lambda: RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        lambda: OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_out_of_memory_halves_the_batch(tmp_path: Path, error: Callable[[], Exception]) -> None:
    short = short_of_memory(3, error)
    make(tmp_path, short, count=20, batch=8)
    # The first batch of 8 fails once at 8 and once at 4; later ones start with 2.
    assert short.asked == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    assert {row.call for row in read_manifest(tmp_path).values()} == {2}
    assert read_calls(tmp_path) == {0: (2, 2, 2, 2), 1: (2, 2, 2, 2), 2: (2, 2)}


def test_a_batch_is_cut_again_as_it_was(tmp_path: Path) -> None:
    """Images depend on their call, so a resume with more memory must form the same calls."""
    whole = make(tmp_path, short_of_memory(5), count=20, batch=8)
    lost = [tmp_path / "images" / f"SyntheticImg_r{i}.png" for i in (1, 9, 13, 19)]
    for path in lost:
        path.unlink()
    roomy = short_of_memory(100)
    assert make(tmp_path, roomy, count=20, batch=8) == whole
    assert roomy.asked == [4, 4, 4, 4]
    assert make(tmp_path / "roomy", roomy, count=20, batch=8) != whole


def test_memory_that_runs_out_in_the_middle_keeps_what_was_made(tmp_path: Path) -> None:
    class Later(Batchy):
        """Fits 4 requests until it has made 6 calls, then 2: something else fills the memory."""

        asked: ClassVar[list[int]] = []

        def generate(self, requests: Sequence[Request]) -> Iterator[Image]:
            self.asked.append(len(requests))
            if len(requests) > (4 if len(self.asked) < 4 else 2):
                raise MemoryError
            yield from super().generate(requests)

    make(tmp_path, Later, count=16, batch=8)
    assert Later.asked == [8, 4, 4, 4, 2, 2, 2, 2]
    assert read_calls(tmp_path) == {0: (4, 4), 1: (2, 2, 2, 2)}


def test_killed_with_short_memory_it_goes_on_as_it_was(tmp_path: Path) -> None:
    """The cut is on the disk before the first image that depends on it."""
    whole = make(tmp_path / "whole", short_of_memory(2), count=8, batch=8)

    class Killed(short_of_memory(2)):  # type: ignore[misc]
        def generate(self, requests: Sequence[Request]) -> Iterator[Image]:
            if requests[0].id == "r4" and len(requests) == 2:
                while len(list(tmp_path.glob("killed/images/*.png"))) < 4:
                    time.sleep(0.001)
                os.kill(os.getpid(), signal.SIGKILL)
            yield from super().generate(requests)

    process = multiprocessing.get_context("fork").Process(
        target=make, args=(tmp_path / "killed", Killed, 8, 8)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert make(tmp_path / "killed", short_of_memory(100), count=8, batch=8) == whole


class Ended(BaseException):
    """Stands for a kill where all that matters is what is on the disk."""


def interrupted(limit: int, calls: int) -> type[Model]:
    """Fits calls of at most `limit` requests, and is killed after that many calls."""

    class Interrupted(short_of_memory(limit)):  # type: ignore[misc]
        def generate(self, requests: Sequence[Request]) -> Iterator[Image]:
            if len(self.asked) == calls:
                raise Ended
            return super().generate(requests)  # type: ignore[no-any-return]

    return Interrupted


def worked(folder: Path, worker: int, model: type[Model]) -> None:
    with pytest.raises(Ended):
        load = lambda: model(Parameters(), CONTEXT)  # noqa: E731
        work(load, requests(8), folder, batch_size=8, worker=worker)


def test_the_finest_cut_holds_whichever_worker_noted_it(tmp_path: Path) -> None:
    """Worker 2 cuts a batch in two and is killed; worker 1 cuts it in four and is killed."""
    folder = tmp_path / "killed"
    with hold(folder):
        (folder / CLAIMS).touch()
        worked(folder, 2, interrupted(limit=4, calls=1))
        assert read_calls(folder) == {0: (4, 4)}
        worked(folder, 1, interrupted(limit=2, calls=2))
        assert list(read_manifest(folder)) == ["r0", "r1"]
    roomy = short_of_memory(100)
    whole = make(tmp_path / "whole", short_of_memory(2), count=8, batch=8)
    assert make(folder, roomy, count=8, batch=8) == whole
    assert roomy.asked == [2, 2, 2]


def test_calls_that_have_made_images_are_not_cut_again(tmp_path: Path) -> None:
    """They are made again as they were if they fit, though memory is short for others."""
    whole = make(tmp_path, short_of_memory(100), count=24, batch=8)
    for i in (0, 9, 17):
        (tmp_path / "images" / f"SyntheticImg_r{i}.png").unlink()

    class Once(short_of_memory(100)):  # type: ignore[misc]
        def generate(self, requests: Sequence[Request]) -> Iterator[Image]:
            if not self.asked:
                self.asked.append(0)
                raise MemoryError
            return super().generate(requests)  # type: ignore[no-any-return]

    again = make(tmp_path, Once, count=24, batch=8)
    assert Once.asked == [0, 4, 8, 8]
    assert [name for name in whole if again[name] != whole[name]] == ["r0"]
    assert read_calls(tmp_path) == {0: (4, 4)}


def test_a_made_call_keeps_its_size_while_its_neighbour_is_cut(tmp_path: Path) -> None:
    make(tmp_path, short_of_memory(4), count=8, batch=8)
    (tmp_path / "images" / "SyntheticImg_r0.png").unlink()
    make(tmp_path, short_of_memory(2), count=8, batch=8)
    assert read_calls(tmp_path) == {0: (2, 2, 4)}
    assert [row.call for row in read_manifest(tmp_path).values()] == [2, 4, 4, 4, 4, 4, 4, 4]


def test_progress_of_a_batch_in_pieces_counts_each_image(tmp_path: Path) -> None:
    model = short_of_memory(4)
    make(tmp_path, model, count=16, batch=8)
    (tmp_path / "images" / "SyntheticImg_r1.png").unlink()
    seen: list[int] = []
    load = lambda: model(Parameters(), CONTEXT)  # noqa: E731
    with hold(tmp_path):
        generate(load, requests(16), tmp_path, batch_size=8, advance=seen.append)
    assert sum(seen) == 16


def test_no_memory_for_one_image_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ChexGenBenchError, match="out of memory on cpu with one image") as caught:
        make(tmp_path, short_of_memory(0))
    assert "offload" in str(caught.value.hint)


def test_images_are_written_while_the_next_are_made(tmp_path: Path) -> None:
    """The second call ends only when the first one's images are there."""

    class Patient(Batchy):
        def generate(self, requests: Sequence[Request]) -> Iterator[Image]:
            if requests[0].id == "r4":
                end = time.monotonic() + 20
                while len(list(tmp_path.glob("images/*.png"))) < 4:
                    assert time.monotonic() < end
                    time.sleep(0.001)
            yield from super().generate(requests)

    make(tmp_path, Patient, count=8)


def test_an_image_that_the_model_uses_again_is_not_changed(tmp_path: Path) -> None:
    class Reusing(Batchy):
        """Gives out views of one buffer, which its next call writes over."""

        buffer = np.zeros((4, 32, 32), np.uint8)

        def generate(self, requests: Sequence[Request]) -> Iterator[Image]:
            for i, image in enumerate(super().generate(requests)):
                self.buffer[i] = image
                yield self.buffer[i]

    assert make(tmp_path / "reusing", Reusing, count=40) == make(tmp_path / "plain", count=40)


def test_a_disk_that_fills_while_images_are_written(tmp_path: Path) -> None:
    """A folder that takes no file stands for it: the fault is the writer's, a call behind."""

    class Blocking(Batchy):
        calls = 0

        def generate(self, requests: Sequence[Request]) -> Iterator[Image]:
            if requests[0].id == "r4":
                (tmp_path / "images" / "SyntheticImg_r6.png").mkdir(parents=True)
            yield from super().generate(requests)

    with pytest.raises(OSError, match="SyntheticImg_r6"):
        make(tmp_path, Blocking, count=40)
    assert [f"r{i}" for i in range(4)] == list(read_manifest(tmp_path))[:4]
    assert Blocking.calls < 10
    (tmp_path / "images" / "SyntheticImg_r6.png").rmdir()
    assert make(tmp_path, count=40) == make(tmp_path / "whole", count=40)


def test_seeds_depend_on_the_request_alone() -> None:
    seeds = {seed_of(run, name, repeat) for run in (0, 1) for name in "ab" for repeat in range(10)}
    assert len(seeds) == 40
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "x" * 300, "a~1", "a b", "ä"])
def test_an_id_that_is_no_file_name_becomes_a_hash(name: str) -> None:
    assert len(request_id(name, 0)) == 32
    assert request_id(name, 3) == f"{request_id(name, 0)}~3"


def generation(folder: Path, model: type[Model], batch: int | None = 4) -> Generation:
    plugin = Plugin(ModelSpec(name="batchy", summary="", load=model), "here.py")
    return plan_generation(
        plugin,
        Parameters(),
        replace(CONTEXT, home=folder, cache=folder),
        requests(11),
        batch_size=batch,
        exact=False,
        root=folder,
        weights={},
    )


def test_what_it_took_is_kept(tmp_path: Path) -> None:
    planned = generation(tmp_path, short_of_memory(2))
    planned.run()
    summary = planned.summary()
    rows = read_manifest(planned.folder).values()
    assert (summary.n_images, summary.workers, summary.cut_batches) == (11, 1, 3)
    assert summary.devices == ("cpu",)
    assert summary.seconds == pytest.approx(sum(row.seconds for row in rows))
    assert summary.images_per_second == pytest.approx(11 / summary.seconds)
    assert summary.peak_memory == max(row.memory for row in rows)
    assert summary.threads == torch.get_num_threads()
    assert summary.hardware["processor"]
    assert summary.versions == provenance.versions()


SIZE = 200_000_000


class Large(Batchy):
    """Holds as much."""

    def __init__(self, parameters: object, context: Context) -> None:
        super().__init__(parameters, context)
        self.weights_of_it = np.ones(SIZE, np.uint8)


class Bursting(Batchy):
    """Takes as much during a call and gives it back."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Image]:
        np.ones(SIZE, np.uint8)
        return super().generate(requests)


def test_the_memory_is_that_of_the_model_alone(tmp_path: Path) -> None:
    """Whatever else this process holds, or held."""
    held = np.ones(SIZE, np.uint8)

    def taken(name: str, model: type[Model]) -> int:
        planned = generation(tmp_path / name, model)
        planned.run()
        return planned.summary().peak_memory

    before = taken("before", Batchy)
    assert 0.9 * SIZE < taken("large", Large) < 1.5 * SIZE
    if sys.platform == "linux":
        assert 0.9 * SIZE < taken("bursting", Bursting) < 1.5 * SIZE
    assert before < 0.2 * SIZE
    assert taken("after", Batchy) < 0.2 * SIZE
    assert held.all()


def test_two_commands_at_once_leave_a_finished_one_as_it_is(tmp_path: Path) -> None:
    """One looks while the other is about to finish, and waits for it."""
    inside, waits = threading.Event(), threading.Event()

    class Gated(Batchy):
        calls = 0

        def generate(self, requests: Sequence[Request]) -> Iterator[Image]:
            inside.set()
            assert waits.wait(20)
            yield from super().generate(requests)

    first, second = generation(tmp_path, Gated), generation(tmp_path, Gated)
    thread = threading.Thread(target=first.run)
    thread.start()
    assert inside.wait(20)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        waits.set()

    rows = second.run(say=say)
    thread.join()
    assert "another process" in said[0]
    assert (len(rows), Gated.calls) == (11, 3)
    assert first.summary() == second.summary()


def test_nothing_of_a_generation_is_touched_while_another_command_holds_it(tmp_path: Path) -> None:
    planned = generation(tmp_path, Batchy)
    planned.run()
    (planned.folder / "images" / "SyntheticImg_r1.png").unlink()
    seen: list[bool] = []

    def say(_text: str) -> None:
        now = {path: path.stat().st_mtime_ns for path in planned.folder.rglob("*.*")}
        seen.append(now == files)
        done.set()

    done = threading.Event()
    with hold(planned.folder):
        files = {path: path.stat().st_mtime_ns for path in planned.folder.rglob("*.*")}
        thread = threading.Thread(target=lambda: planned.run(say=say))
        thread.start()
        assert done.wait(20)
    thread.join()
    assert seen == [True]
    assert planned.made() == 11


def test_lost_files_are_not_made(tmp_path: Path) -> None:
    planned = generation(tmp_path, Batchy)
    planned.run()
    assert planned.made() == 11
    (planned.folder / "images" / "SyntheticImg_r1.png").unlink()
    (planned.folder / "images" / "SyntheticImg_r2.png").write_bytes(b"")
    assert planned.made() == 9


def elsewhere(folder: Path, **versions: str) -> Process:
    """Lets the images of a generation be of a machine that is gone, and of other packages."""
    process = Process(
        id="elsewhere",
        versions={**provenance.versions(), **versions},
        hardware={"device": "cuda:1", "gpu": "A GPU"},
    )
    rewrite(folder, PROCESSES, [process])
    rows = read_manifest(folder).values()
    rewrite(folder, MANIFEST, [replace(row, device="cuda:1", process=process.id) for row in rows])
    return process


def test_what_made_the_images_is_not_asked_of_this_machine(tmp_path: Path) -> None:
    planned = generation(tmp_path, Batchy)
    planned.run()
    process = elsewhere(planned.folder, torch="1.0")
    (planned.folder / SUMMARY).unlink()
    planned.run()
    assert planned.summary().hardware == process.hardware
    assert planned.summary().versions["torch"] == "1.0"


def test_versions_that_changed_on_the_way_are_all_named(tmp_path: Path) -> None:
    planned = generation(tmp_path, Batchy)
    planned.run()
    elsewhere(planned.folder, torch="1.0")
    (planned.folder / "images" / "SyntheticImg_r1.png").unlink()
    planned.run()
    own = provenance.versions()
    assert planned.summary().versions == {**own, "torch": f"1.0, {own['torch']}"}
    assert planned.summary().hardware["gpu"] == "A GPU"
    for path in (planned.folder / "images").iterdir():
        path.unlink()
    planned.run()  # none of the others' images is left
    assert planned.summary().versions == own
    assert len(read_processes(planned.folder)) == 1


def test_what_it_took_covers_all_resumptions(tmp_path: Path) -> None:
    """Of images that were there, what their rows say; nothing is counted twice."""
    planned = generation(tmp_path, Slow)
    planned.run()
    first = planned.summary()
    planned.run()
    assert planned.summary() == first
    (planned.folder / "images" / "SyntheticImg_r1.png").unlink()
    planned.run()
    assert planned.summary().n_images == 11
    assert planned.summary().seconds == pytest.approx(first.seconds, rel=0.5)


def test_a_manifest_of_another_release_is_not_read(tmp_path: Path) -> None:
    old = tmp_path / "0123456789abcdef"
    old.mkdir()
    (old / "generation.json").write_text('{"model": {"name": "batchy"}, "device": "cpu"}')
    (old / MANIFEST).write_text('{"id": "r0"}\n')
    planned = generation(tmp_path, Slow)
    assert planned.seconds_an_image() is None
    planned.run()
    assert planned.seconds_an_image() == pytest.approx(planned.summary().seconds / 11)


class Timed(Model):
    """A call takes 20 ms for up to 8 requests, twice that for twice as many, by its own clock."""

    now = 0.0
    calls: ClassVar[list[list[str]]] = []

    def generate(self, requests: Sequence[Request]) -> Iterator[Image]:
        self.calls.append([request.id for request in requests])
        Timed.now += 0.02 * max(1, len(requests) / 8)
        yield from (np.eye(32) for _ in requests)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sleeping would take long and, on a busy machine, any time."""
    own = SimpleNamespace(perf_counter=lambda: Timed.now)
    monkeypatch.setattr("chexgenbench.generation.batch_size.time", own)
    Timed.calls.clear()


def choose(folder: Path, model: type[Model], count: int = 100, ask: bool = False) -> int | None:
    """The batch size; with `ask` only where it is known."""
    planned = generation(folder, model)
    return choose_batch_size(
        planned.plugin,
        planned.parameters,
        planned.context,
        requests(count),
        root=folder / "generations",
        weights={},
        say=None if ask else lambda _text: None,
    )


def test_the_batch_size_is_measured_once(clock: None, tmp_path: Path) -> None:
    assert choose(tmp_path, Timed, ask=True) is None
    assert not Timed.calls
    size = choose(tmp_path, Timed)
    assert size == 8
    asked = [len(call) for call in Timed.calls]
    assert asked == sorted(asked)
    assert set(asked) == {1, 2, 4, 8, 16, 32}  # two sizes without a gain end it
    # Consecutive calls ask for other prompts: a model may remember those it knows.
    assert not set(Timed.calls[0]) & set(Timed.calls[1])
    Timed.calls.clear()
    assert choose(tmp_path, Timed) == choose(tmp_path, Timed, ask=True) == size
    assert not Timed.calls


def test_a_size_that_does_not_fit_is_not_chosen(tmp_path: Path) -> None:
    assert choose(tmp_path, short_of_memory(2)) in (1, 2)
    assert choose(tmp_path / "none", short_of_memory(0)) == 1


def test_no_batch_is_larger_than_the_requests(clock: None, tmp_path: Path) -> None:
    assert choose(tmp_path, Timed, count=5) == 4


RATES = st.lists(st.floats(0.01, 1e6), min_size=1, max_size=7)


@given(rates=RATES)
def test_the_best_size_is_the_smallest_of_the_fast_ones(rates: list[float]) -> None:
    trials = [Trial(2**i, rate, 0.1) for i, rate in enumerate(rates)]
    size = best_size(trials)
    chosen = rates[size.bit_length() - 1]
    assert chosen >= 0.95 * max(rates)
    assert all(rate < 0.95 * max(rates) for rate in rates[: size.bit_length() - 1])
