"""Features: each image once, and the numbers do not depend on how the work was cut."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from chexgenbench.errors import ChexGenBenchError
from chexgenbench.features import FeatureStore, HashCache, extract, plan_encoder
from chexgenbench.features.extract import EncoderPlan, read_texts
from chexgenbench.files import sha256_file
from chexgenbench.jobs import encode as encode_module
from chexgenbench.registry import Plugin, load_registry
from chexgenbench.types import Context, Encoder, EncoderSpec, Parameters


class Thumbnail(Encoder):
    """Counts what it does; its output depends a little on the shape of the batch, as kernels do."""

    decoded = 0
    encoded = 0

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        type(self).decoded += 1
        return torch.from_numpy(np.asarray(image.resize((8, 8)), np.float32))

    def encode(self, batch: torch.Tensor) -> Mapping[str, np.ndarray]:
        type(self).encoded += 1
        return {"features": batch.flatten(1).numpy() + len(batch) * 1e-3}

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([np.full(64, float(len(text)), np.float32) for text in texts])


def plan(root: Path, encoder: type[Encoder] = Thumbnail, **changes: object) -> EncoderPlan:
    keywords: dict = {
        "name": "thumbnail",
        "summary": "",
        "load": encoder,
        "outputs": {"features": 64},
        "preprocessing": "8 x 8",
        "text": True,
    }
    spec = EncoderSpec(**(keywords | changes))
    context = Context(home=root, cache=root)
    return plan_encoder(
        Plugin(spec, "test"), Parameters(), context, root=root / "features", weights={}
    )


@pytest.fixture
def images(tmp_path: Path) -> list[tuple[str, Path]]:
    random = np.random.default_rng(0)
    listed = []
    for number in range(23):
        path = tmp_path / f"{number}.png"
        Image.fromarray(random.integers(0, 255, (32, 32), dtype=np.uint8)).save(path)
        listed.append((sha256_file(path), path))
    return listed


def run(  # type: ignore[no-untyped-def]
    plans: Sequence[EncoderPlan],
    images: list,
    batch: int = 4,
    texts: Sequence[str] = (),
    **more: Any,
):
    return extract(
        images, texts, plans, batch_size=batch, text_encoders=frozenset({"thumbnail"}), **more
    )


def test_each_image_is_decoded_and_encoded_once(tmp_path: Path, images: list) -> None:
    Thumbnail.decoded = Thumbnail.encoded = 0
    assert run([plan(tmp_path)], [*images, *images], texts=["a", "bb", "a"]).encoded == 23
    assert (Thumbnail.decoded, Thumbnail.encoded) == (23, 6)
    again = plan(tmp_path)
    assert run([again], images, texts=["bb"]).encoded == 0
    assert (Thumbnail.decoded, Thumbnail.encoded) == (23, 6)
    assert read_texts(again, ["bb", "a"])[:, 0].tolist() == [2.0, 1.0]


def test_who_waits_for_an_image_decodes_others(
    tmp_path: Path, images: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread decodes ahead, and the first image is ready only once another one is."""
    monkeypatch.setattr(encode_module, "_decoders", lambda _device: 1)
    another = threading.Event()

    class Slow(Thumbnail):
        def preprocess(self, image: Image.Image) -> torch.Tensor:
            if threading.current_thread() is threading.main_thread():
                another.set()
            assert another.wait(60)
            return super().preprocess(image)

    slow, plain = plan(tmp_path / "slow", Slow), plan(tmp_path / "plain")
    assert run([slow], images).encoded == run([plain], images).encoded == 23
    keys = [key for key, _ in images]
    stored = [each.images.read(keys)["features"] for each in (slow, plain)]
    assert np.array_equal(*stored)


def test_progress_tells_of_images_and_of_texts(tmp_path: Path, images: list) -> None:
    told: dict[str, list[int]] = {"images": [], "texts": []}

    def stage(what: str, total: int) -> nullcontext[Callable[[int], None]]:
        told[what].append(total)
        return nullcontext(told[what].append)

    stages = {"stage": partial(stage, "images"), "text_stage": partial(stage, "texts")}
    run([plan(tmp_path)], images, texts=["a", "bb", "c", "d", "a", "e"], **stages)
    (images_to_do, *done), texts = told["images"], told["texts"]
    assert images_to_do == sum(done) == 23
    assert texts == [5, 4, 1]


def test_what_was_stored_before_does_not_change_a_row(tmp_path: Path, images: list) -> None:
    """A full batch and a padded one have the same shape, and so the same kernels."""
    keys = [key for key, _ in images]
    whole, parts = plan(tmp_path / "a"), plan(tmp_path / "b")
    run([whole], images)
    for start in (20, 3, 11, 0):
        run([parts], images[start : start + 5])
    run([parts], images)
    first, second = whole.images.read(keys)["features"], parts.images.read(keys)["features"]
    assert np.array_equal(first, second)
    assert np.array_equal(whole.images.read(keys[::-1])["features"], first[::-1])


def test_unreadable_images_are_named_and_not_encoded(tmp_path: Path, images: list) -> None:
    images[4][1].write_bytes(b"\x89PNG")
    done = run([plan(tmp_path)], images)
    assert list(done.bad) == [images[4][0]]
    assert done.encoded == 22


def test_another_version_or_preprocessing_is_another_encoder(tmp_path: Path) -> None:
    ids = {
        plan(tmp_path).id,
        plan(tmp_path, version="2").id,
        plan(tmp_path, preprocessing="9 x 9").id,
    }
    assert len(ids) == 3


def test_damaged_parts_are_encoded_again(tmp_path: Path, images: list) -> None:
    first = plan(tmp_path)
    run([first], images)
    (part,) = (tmp_path / "features").rglob("images/*.parquet")
    part.write_bytes(part.read_bytes()[:100])
    again = plan(tmp_path)
    assert again.images.damaged == [part]
    assert run([again], images).encoded == 23


def test_a_flipped_bit_anywhere_in_a_part_is_noticed(tmp_path: Path) -> None:
    """Every byte once: in the header, the keys, the values and the footer."""
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    keys = ["a" * 64, "b" * 64, "c" * 64]
    FeatureStore(tmp_path, {"features": 4}).write(keys, {"features": values})
    (part,) = tmp_path.glob("part-*")
    whole = part.read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        part.write_bytes(damaged)
        store = FeatureStore(tmp_path, {"features": 4})
        store.refresh()
        with suppress(KeyError, ChexGenBenchError):
            assert np.array_equal(store.read(keys)["features"], values)
            raise AssertionError(f"byte {at} was not noticed")
        assert store.without(keys) == keys
        store.write(keys, {"features": values})
        assert part.read_bytes() == whole
        assert store.without(keys) == []
        assert np.array_equal(store.read(keys)["features"], values)


def test_a_damaged_part_gives_way_to_another_with_the_same_rows(tmp_path: Path) -> None:
    values = np.arange(8, dtype=np.float32).reshape(2, 4)
    store = FeatureStore(tmp_path, {"features": 4})
    store.write(["a", "b"], {"features": values})
    store.write(["b", "a"], {"features": values[::-1]})
    first, second = sorted(tmp_path.glob("part-*"))
    whole = first.read_bytes()
    first.write_bytes(whole.replace(values[0].tobytes(), bytes(16)))
    again = FeatureStore(tmp_path, {"features": 4})
    again.refresh()
    assert again.without(["a", "b", "z"]) == ["z"]
    assert np.array_equal(again.read(["a", "b"])["features"], values)
    assert again.damaged == again.news() == [first] and again.news() == []
    assert list(tmp_path.glob("part-*")) == [second]


def test_parts_of_an_older_release_are_read(tmp_path: Path) -> None:
    values = np.arange(8, dtype=np.float32).reshape(2, 4)
    FeatureStore(tmp_path, {"features": 4}).write(["a", "b"], {"features": values})
    (part,) = tmp_path.glob("part-*")
    part.rename(tmp_path / "part-0123456789abcdef0123456789abcdef.parquet")
    store = FeatureStore(tmp_path, {"features": 4})
    store.refresh()
    assert store.without(["a", "b"]) == [] and not store.damaged
    assert np.array_equal(store.read(["b"])["features"], values[1:])


def test_an_image_that_was_changed_is_not_encoded(tmp_path: Path, images: list) -> None:
    path = images[3][1]
    stat = path.stat()
    Image.new("L", (32, 32), 7).save(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    own = plan(tmp_path)
    done = run([own], images)
    assert "content is not what it was" in done.bad[images[3][0]].message
    assert images[3][0] not in own.images and images[4][0] in own.images


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({}, "no 'features'"),
        ({"features": np.zeros((4, 63), np.float32)}, "shape"),
        ({"features": np.full((4, 64), np.nan, np.float32)}, "NaN"),
        (RuntimeError("bang"), "RuntimeError: bang"),
    ],
)
def test_a_faulty_encoder_is_named(
    tmp_path: Path, images: list, returned: object, message: str
) -> None:
    class Faulty(Thumbnail):
        def encode(self, batch: torch.Tensor) -> Mapping[str, np.ndarray]:
            if isinstance(returned, Exception):
                raise returned
            return returned  # type: ignore[return-value]

    with pytest.raises(ChexGenBenchError, match=message):
        run([plan(tmp_path, Faulty)], images)


_WRITER = """
import sys
from pathlib import Path
from typing import Any
import numpy as np
from chexgenbench.features import FeatureStore
store = FeatureStore(Path(sys.argv[1]), {"features": 64})
for number in range(int(sys.argv[2]), 10**9):
    rows = np.full((50, 64), number, np.float32)
    store.write([f"{number}-{i}" for i in range(50)], {"features": rows})
    print(number, flush=True)
"""


def test_killed_writers_leave_whole_parts_only(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path), str(start)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for start in (0, 1_000_000)
    ]
    for writer in writers:
        assert writer.stdout is not None
        for _ in range(3):
            writer.stdout.readline()
    time.sleep(0.05)
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
    store = FeatureStore(tmp_path, {"features": 64})
    store.refresh()
    assert store.damaged == []
    assert "0-0" in store
    assert "1000000-49" in store
    assert (store.read(["1000000-7", "0-49"])["features"][:, 0] == [1_000_000, 0]).all()
    with pytest.raises(KeyError):
        store.read(["never"])


def test_hashes_are_remembered_until_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    cache = HashCache(tmp_path / "hashes.sqlite")
    first = cache.sha256([path, tmp_path / "none"])
    assert first == [sha256_file(path), None]
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert cache.sha256([path]) == [sha256_file(path)] != first[:1]


def test_a_damaged_hash_cache_costs_time_only(tmp_path: Path) -> None:
    path = tmp_path / "hashes.sqlite"
    path.write_bytes(b"no database" * 1000)
    assert HashCache(path).sha256([path]) == [sha256_file(path)]


def test_texts_that_fail_name_the_encoder(tmp_path: Path, images: list) -> None:
    class Mute(Thumbnail):
        def encode_text(self, texts: Sequence[str]) -> np.ndarray:
            raise ValueError("no words")

    with pytest.raises(ChexGenBenchError, match=r"thumbnail.*no words"):
        run([plan(tmp_path, Mute)], images, texts=["a"])


@pytest.mark.parametrize("batch", [1, 7, 32])
def test_the_demo_encoder_does_not_depend_on_the_batch(tmp_path: Path, batch: int) -> None:
    """Within 1e-5 of the largest entry: kernels may differ in the last bits."""
    random = np.random.default_rng(1)
    encoder_plugin = load_registry().encoders["phantom-clip"]
    parameters = encoder_plugin.parse({})
    context = Context(home=tmp_path, cache=tmp_path)
    encoder = encoder_plugin.create(parameters, context)
    pictures = random.integers(0, 255, (32, 128, 128), dtype=np.uint8)
    tensors = torch.stack([encoder.preprocess(Image.fromarray(p)) for p in pictures])
    with torch.inference_mode():
        whole = encoder.encode(tensors)["features"]
        parts = [encoder.encode(part)["features"] for part in tensors.split(batch)]
    assert np.abs(np.concatenate(parts) - whole).max() < 1e-5 * np.abs(whole).max()
    assert np.allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)
