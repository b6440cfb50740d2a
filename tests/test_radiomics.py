"""Radiomics and the Frechet Radiomics Distance: pyradiomics' values, frd-score's distance."""

from __future__ import annotations

import contextlib
import csv
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from chexgenbench.registry import load_registry
from chexgenbench.statistics import Estimate, frechet_distance, frechet_radiomics_distance
from chexgenbench.types import Context, NotApplicable, Sample, SetMetric
from chexgenbench_plugins.encoders.radiomics import NAMES, Radiomics, RadiomicsParameters, extract
from chexgenbench_plugins.phantom import oracle_image

FloatArray = NDArray[np.float64]
SPLIT = Path(__file__).parents[1] / "MIMIC_Splits/demo/DEMO_ANNOTATIONS_TEST.csv"
WORKING = 64  # pixels: small, so that an image takes a fifth of a second


def phantoms(count: int, seed: int, size: int = WORKING, blur: float = 0.0) -> list[Image.Image]:
    with SPLIT.open(newline="", encoding="utf-8") as file:
        prompts = [row["annotated_prompt"] for row in itertools.islice(csv.DictReader(file), count)]
    return [
        Image.fromarray(oracle_image(prompt, None, 1000 * seed + i, size)).filter(
            ImageFilter.GaussianBlur(blur)
        )
        for i, prompt in enumerate(prompts)
    ]


def make(tmp_path: Path, **values: object) -> Radiomics:
    found = load_registry().encoders["radiomics"]
    parameters = found.parse({"size": WORKING, "workers": 2, **values})
    context = Context(home=tmp_path, cache=tmp_path)
    assert found.load().weights(parameters, context)
    return found.create(parameters, context)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Radiomics]:
    made = make(tmp_path_factory.mktemp("radiomics"))
    yield made
    assert made.pool is not None
    made.pool.shutdown()


def outputs(encoder: Radiomics, images: Sequence[Image.Image]) -> dict[str, NDArray[np.float32]]:
    return dict(encoder.encode(torch.stack([encoder.preprocess(image) for image in images])))


def sample(found: dict[str, NDArray[np.float32]]) -> Sample:
    rows = np.arange(len(found["radiomics"]))
    return Sample(outputs=found, text=None, prompts=rows, patients=None)


def frd(real: dict[str, NDArray[np.float32]], fake: dict[str, NDArray[np.float32]]) -> Estimate:
    plugin = load_registry().metrics["frd"]
    metric = plugin.create(plugin.parse({}), 0)
    assert isinstance(metric, SetMetric)
    return metric.score(sample(real), sample(fake))["frd"]


# --- the encoder ----------------------------------------------------------------------------


def grey_levels(kind: str) -> NDArray[np.uint8]:
    random = np.random.default_rng(5)
    pixels = np.zeros((WORKING, WORKING), np.uint8)
    if kind == "phantom":
        return np.asarray(phantoms(1, 3)[0])
    if kind == "noise":
        return random.integers(0, 256, (WORKING + 1, WORKING - 3), dtype=np.uint8)
    if kind == "halves":  # the wavelet bands of one direction are flat
        pixels[:, WORKING // 2 :] = 255
    else:
        pixels[20, 30] = 255
    return pixels


@pytest.mark.parametrize("kind", ["phantom", "noise", "halves", "one pixel"])
def test_features_are_those_of_the_published_settings_bit_for_bit(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also that `NAMES`, and with it the declared width, is what pyradiomics gives: all but the
    numbers of pixels and of connected parts of the mask, which are the same for every image."""
    package = pytest.importorskip("frd_score.frd")
    pixels = grey_levels(kind)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    theirs = package.process_image_mask_pair(
        (tmp_path / "image.png", None), feature_extractor=package.get_feature_extractor("v1")
    )[1]
    named = dict(zip((name.replace("original_", "") for name in NAMES), NAMES, strict=True))
    named.update({name: name for name in NAMES if name.startswith("diagnostics")})
    assert {name for name in theirs if name not in named} == {
        f"diagnostics_Mask-{part}_{number}"
        for part in ("original", "interpolated")
        for number in ("VoxelNum", "VolumeNum")
    }
    ours = dict(zip(NAMES, extract(pixels.astype(np.float32)), strict=True))
    unequal = {k: (v, ours[named[k]]) for k, v in theirs.items() if k in named}
    unequal = {name: pair for name, pair in unequal.items() if pair[0] != pair[1]}
    assert len(NAMES) == len(set(NAMES)) == len(theirs) - 4
    assert not unequal


def test_a_laplacian_of_gaussian_gives_nothing_for_one_slice() -> None:
    """Why it is not among the filters, though the published settings ask for it."""
    import SimpleITK
    from radiomics import imageoperations

    random = np.random.default_rng(0)

    def filtered(slices: int) -> int:
        image = SimpleITK.GetImageFromArray(random.normal(size=(slices, 32, 32)))
        return len(list(imageoperations.getLoGImage(image, None, sigma=[2.0, 3.0])))

    assert filtered(1) == 0
    assert filtered(8) == 2


def test_declared_widths_are_those_of_the_outputs(encoder: Radiomics) -> None:
    spec = load_registry().encoders["radiomics"].spec
    found = outputs(encoder, phantoms(2, 0))
    assert {name: values.shape[1] for name, values in found.items()} == dict(spec.outputs)
    assert all(values.dtype == np.float32 for values in found.values())
    assert np.isfinite(found["radiomics"]).all()
    assert not found["undefined"].any()


def test_features_depend_neither_on_workers_nor_on_the_batch(
    encoder: Radiomics, tmp_path: Path
) -> None:
    images = phantoms(5, 1)
    together = outputs(encoder, images)["radiomics"]
    alone = make(tmp_path, workers=1)
    one_by_one = np.concatenate([outputs(alone, [image])["radiomics"] for image in images])
    assert np.array_equal(together, one_by_one)
    padded = outputs(encoder, [*images, images[-1], images[-1]])["radiomics"]
    assert np.array_equal(padded, together[[0, 1, 2, 3, 4, 4, 4]])


def test_workers_are_no_part_of_the_identity_and_size_is() -> None:
    identity = RadiomicsParameters(size=128, workers=3).identity()
    assert identity == RadiomicsParameters(size=128).identity()
    assert identity != RadiomicsParameters(size=256, workers=3).identity()


def test_preprocessing_keeps_the_aspect_and_reads_every_pixel(encoder: Radiomics) -> None:
    wide = Image.new("L", (400, 200))
    wide.paste(255, (100, 0, 300, 200))
    assert encoder.preprocess(wide).shape == (WORKING, WORKING)
    assert encoder.preprocess(wide).min() > 200  # the square in the middle is all that is seen
    # Without antialiasing a fine grid becomes coarse stripes; with it, its mean grey.
    grid = np.indices((512, 512)).sum(axis=0) % 2 * 255
    inside = encoder.preprocess(Image.fromarray(grid.astype(np.uint8)))
    assert inside.min() > 120
    assert inside.max() < 135
    own = phantoms(1, 2)[0]
    assert np.array_equal(encoder.preprocess(own).numpy(), np.asarray(own, np.float32))


def test_an_image_of_one_grey_level_has_no_features(encoder: Radiomics) -> None:
    images = [*phantoms(6, 0), Image.new("L", (WORKING, WORKING), 0)]
    found = outputs(encoder, images)
    assert np.isfinite(found["radiomics"]).all()
    assert found["undefined"].all(axis=1).tolist() == [False] * 6 + [True]


def test_a_black_image_is_counted_in_the_warning_and_left_out(encoder: Radiomics) -> None:
    real = outputs(encoder, phantoms(6, 0))
    fake = outputs(encoder, phantoms(6, 7))
    black = outputs(encoder, [Image.new("L", (WORKING, WORKING), 0)])
    joined = {name: np.concatenate([fake[name], black[name]]) for name in fake}
    with_black, without = frd(real, joined), frd(real, fake)
    assert with_black.value == without.value
    assert "0 of 6 real and 1 of 7 generated rows" in str(with_black.warning)
    with pytest.raises(NotApplicable, match="at least 2 rows"):
        frd(real, black)


# --- processes ------------------------------------------------------------------------------

ENDLESS = """
import sys, numpy as np, torch
from pathlib import Path
from chexgenbench.types import Context
from chexgenbench_plugins.encoders.radiomics import Radiomics, RadiomicsParameters
encoder = Radiomics(RadiomicsParameters(size=64, workers=2), Context(home=Path(), cache=Path()))
random = np.random.default_rng(0)
def batch(n):
    return torch.from_numpy(random.integers(0, 256, (n, 64, 64)).astype(np.float32))
encoder.encode(batch(2))
print("started", flush=True)
encoder.encode(batch(5000))
"""


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A process that encodes for some ten minutes, and its workers."""
    script = tmp_path / "endless.py"
    script.write_text(f"if __name__ == '__main__':\n{re.sub('(?m)^', '    ', ENDLESS)}")
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        workers: list[psutil.Process] = []
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            workers = psutil.Process(process.pid).children(recursive=True)
            assert len(workers) >= 2
            yield process, workers
        finally:
            process.kill()
            for left in workers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    left.kill()


def all_gone(processes: list[psutil.Process], seconds: float = 20.0) -> bool:
    return not psutil.wait_procs(processes, timeout=seconds)[1]


@pytest.mark.slow
def test_workers_die_with_a_killed_parent(
    endless: tuple[subprocess.Popen[str], list[psutil.Process]],
) -> None:
    process, workers = endless
    process.kill()
    assert all_gone(workers)


@pytest.mark.slow
def test_ctrl_c_stops_at_once_and_leaves_nothing(
    endless: tuple[subprocess.Popen[str], list[psutil.Process]],
) -> None:
    process, workers = endless
    time.sleep(1.0)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it as well
    _, errors = process.communicate(timeout=20)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert "_prepare" not in errors
    assert all_gone(workers)


@pytest.mark.slow
def test_an_encoder_that_is_dropped_takes_its_workers_along(tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    encoder = make(tmp_path)
    outputs(encoder, phantoms(2, 0))
    workers = [p for p in psutil.Process().children(recursive=True) if p not in before]
    # multiprocessing's resource tracker stays until the program ends.
    workers = [p for p in workers if "resource_tracker" not in " ".join(p.cmdline())]
    assert len(workers) == 2
    del encoder
    assert all_gone(workers)


# --- the distance ---------------------------------------------------------------------------


def draw(seed: int, n: int = 300, d: int = 5) -> tuple[FloatArray, FloatArray]:
    random = np.random.default_rng(seed)
    scale = 10.0 ** random.uniform(-3, 6, d)
    real, noise = random.normal(size=(2, n, d))
    fake = 0.5 * real[::-1] + noise + 0.4
    return real * scale + 3 * scale, fake * scale + 3 * scale


def by_definition(real: FloatArray, fake: FloatArray) -> float:
    """log of the Frechet distance of z-scores, by scipy's matrix root."""
    from scipy.linalg import sqrtm

    mean, deviation = real.mean(axis=0), real.std(axis=0)
    x, y = (real - mean) / deviation, (fake - mean) / deviation
    a, b, gap = np.cov(x.T), np.cov(y.T), x.mean(axis=0) - y.mean(axis=0)
    return float(np.log(gap @ gap + np.trace(a + b - 2 * sqrtm(a @ b).real)))


def test_the_distance_is_its_definition() -> None:
    real, fake = draw(0)
    assert frechet_radiomics_distance(real, fake).value == pytest.approx(
        by_definition(real, fake), rel=1e-10
    )


def test_units_and_origins_of_features_do_not_matter() -> None:
    real, fake = draw(1)
    factor, offset = np.array([1e-6, 1.0, -20.0, 1e5, 3.0]), np.array([0.0, 1e3, 1.0, -5.0, 0.1])
    plain = frechet_radiomics_distance(real, fake)
    moved = frechet_radiomics_distance(real * factor + offset, fake * factor + offset)
    assert moved.value == pytest.approx(plain.value, rel=1e-8)
    assert moved.standard_error == pytest.approx(plain.standard_error, rel=1e-6)
    # The sides have roles: it is the real one that sets the scale.
    assert frechet_radiomics_distance(fake, real).value != pytest.approx(plain.value, rel=1e-3)


def test_features_without_a_value_and_constants_of_the_real_side_are_left_out() -> None:
    real, fake = draw(2)
    plain = frechet_radiomics_distance(real, fake)
    random = np.random.default_rng(0)
    more = np.full((300, 4), 0.1), random.normal(size=(300, 4))
    more[0][:, 2:] = random.normal(size=(300, 2))
    more[0][7, 2] = np.nan
    more[1][9, 3] = np.inf
    wider = frechet_radiomics_distance(
        np.hstack([real, more[0]]).astype(np.float64), np.hstack([fake, more[1]])
    )
    assert wider.value == pytest.approx(plain.value, rel=1e-12)
    assert wider.warning == "2 of 9 features have no value in some row, and are left out"


def test_rows_without_any_value_are_left_out_and_counted() -> None:
    real, fake = draw(3)
    plain = frechet_radiomics_distance(real, fake, groups_real=range(300), groups_fake=range(300))
    nothing = np.full((1, 5), np.nan)
    found = frechet_radiomics_distance(
        np.vstack([nothing, real]),
        np.vstack([fake, nothing]),
        groups_real=[-1, *range(300)],
        groups_fake=[*range(300), -1],
    )
    assert found.value == plain.value
    assert found.standard_error == pytest.approx(plain.standard_error, rel=1e-2)
    assert found.warning == (
        "1 of 301 real and 1 of 301 generated rows have no feature at all, and are left out"
    )
    assert found.influence is not None
    assert found.influence.real.shape == found.influence.fake.shape == (301,)
    assert found.influence.real[0] == found.influence.fake[-1] == 0.0


def test_few_images_have_a_value_a_warning_and_no_interval() -> None:
    real, fake = draw(4, n=6, d=9)
    found = frechet_radiomics_distance(real, fake)
    assert found.value == pytest.approx(by_definition(real, fake), rel=1e-5)
    assert found.standard_error is None
    assert str(found.warning).startswith("n <= d: 6 rows, 9 features")
    assert found.reason == found.warning


@pytest.mark.parametrize(
    ("real", "fake", "message"),
    [
        (np.eye(4), np.eye(4), "logarithm of zero"),
        (np.ones((4, 2)), np.eye(4)[:, :2], "every feature is constant"),
        (np.full((4, 2), np.nan), np.eye(4)[:, :2], "at least 2 rows a side"),
        (np.eye(3), np.eye(4), "3 features a row"),
        (np.eye(3)[0], np.eye(3), "expected an array"),
    ],
)
def test_what_has_no_distance_is_refused(real: FloatArray, fake: FloatArray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_radiomics_distance(real, fake)


def test_the_influence_is_what_leaving_a_row_out_changes() -> None:
    """The scale comes from the real side, and so does part of the error."""
    n = 1500
    real, fake = draw(5, n=n)
    found = frechet_radiomics_distance(real, fake)
    assert found.influence is not None
    rows = range(0, n, 30)
    for side, influence in enumerate((found.influence.real, found.influence.fake)):
        changes = []
        for row in rows:
            sides = [real, fake]
            sides[side] = np.delete(sides[side], row, axis=0)
            changes.append(found.value - frechet_radiomics_distance(*sides).value)
        assert np.allclose(changes, influence[list(rows)], atol=0.03 * np.abs(influence).max())
    mean, deviation = real.mean(axis=0), real.std(axis=0)
    unscaled = frechet_distance((real - mean) / deviation, (fake - mean) / deviation).influence
    assert unscaled is not None
    plain = unscaled.real / np.exp(found.value)
    assert not np.allclose(
        plain, found.influence.real, atol=0.1 * np.abs(found.influence.real).max()
    )


def test_the_standard_error_is_the_spread_over_other_draws() -> None:
    random = np.random.default_rng(0)
    values, errors = [], []
    for _ in range(400):
        shared = random.normal(size=(120, 6))
        real = shared + random.normal(size=(120, 6))
        fake = shared + 1.3 * random.normal(size=(120, 6)) + 0.5
        found = frechet_radiomics_distance(real, fake, pairs=True)
        values.append(found.value)
        errors.append(found.standard_error)
    # 400 draws know a standard deviation to 3.5 %.
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.11)


# --- against frd-score ----------------------------------------------------------------------


@pytest.mark.slow
def test_frd_is_that_of_the_frd_score_package(encoder: Radiomics, tmp_path: Path) -> None:
    """Its z-scores are float32, which is seven digits: that, and no more, may differ."""
    pytest.importorskip("frd_score")
    sides = {"a": phantoms(12, 1), "b": phantoms(13, 2, blur=0.5)}
    for name, images in sides.items():
        (tmp_path / name).mkdir()
        for number, image in enumerate(images):
            image.save(tmp_path / name / f"{number:02d}.png")
    done = subprocess.run(
        [sys.executable, "-m", "frd_score", "a", "b", "-w", "2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    match = re.search(r"FRD \(v1\): (\S+)", done.stdout)
    assert match is not None
    found = frd(outputs(encoder, sides["a"]), outputs(encoder, sides["b"]))
    assert found.value == pytest.approx(float(match.group(1)), abs=1e-5)
    assert found.standard_error is None


def test_the_distance_is_that_of_frd_score_where_it_computes_in_float64() -> None:
    """Z-scores by the real side, columns that are left out, and the distance, by its functions."""
    package = pytest.importorskip("frd_score.frd")
    real, fake = draw(6)
    real, fake = (np.hstack([side, side[:, :2] ** 2]) for side in (real, fake))
    real[:, 5] = 4.0  # constant on the real side alone
    scaled = [
        package.z_score_normalize(
            side, base_distribution=real, replace_nan=False, handle_std_zero=False
        )
        for side in (real, fake)
    ]
    kept = np.isfinite(scaled).all(axis=(0, 1))
    assert kept.tolist() == [True] * 5 + [False, True]
    x, y = (side[:, kept] for side in scaled)
    theirs = package.calculate_frechet_distance(
        x.mean(axis=0), np.cov(x, rowvar=False), y.mean(axis=0), np.cov(y, rowvar=False)
    )
    assert np.exp(frechet_radiomics_distance(real, fake).value) == pytest.approx(theirs, rel=1e-9)


def test_storing_features_in_float32_does_not_move_the_distance(encoder: Radiomics) -> None:
    real, fake = phantoms(6, 1), phantoms(6, 2)
    exact = [np.array([extract(encoder.preprocess(i).numpy()) for i in s]) for s in (real, fake)]
    stored = frd(outputs(encoder, real), outputs(encoder, fake))
    assert stored.value == pytest.approx(frechet_radiomics_distance(*exact).value, rel=1e-5)


# --- defect 11 ------------------------------------------------------------------------------

Scored = Callable[[Sequence[Image.Image], Sequence[Image.Image]], float]


def published(real: Sequence[Image.Image], fake: Sequence[Image.Image], batch: int = 4) -> float:
    """Defect 11: every image at the resolution of its file, and whole batches only."""
    sides = []
    for images in (real, fake):
        whole = len(images) // batch * batch
        pixels = [np.asarray(image.convert("L"), np.float32) for image in images[:whole]]
        sides.append(np.array([extract(levels) for levels in pixels]))
    return frechet_radiomics_distance(*sides).value


def does_not_see_resolution(score: Scored) -> None:
    """Real images of four times the pixels, and generated ones that show the same at 64."""
    real = [image.resize((128, 128), Image.Resampling.BICUBIC) for image in phantoms(8, 1)]
    fake = phantoms(8, 2)
    large = score(real, fake)
    small = score([image.resize((64, 64), Image.Resampling.BICUBIC) for image in real], fake)
    assert large == pytest.approx(small, rel=1e-6)


def counts_every_image(score: Scored) -> None:
    """The last image of six decides too, whatever the batch."""
    real, fake = phantoms(6, 1), phantoms(6, 2)
    changed = [*fake[:-1], fake[-1].filter(ImageFilter.GaussianBlur(2))]
    assert score(real, changed) != score(real, fake)


@pytest.mark.slow
@pytest.mark.parametrize("check", [does_not_see_resolution, counts_every_image])
def test_defect_11(check: Callable[[Scored], None], encoder: Radiomics) -> None:
    with pytest.raises(AssertionError):
        check(published)
    check(lambda real, fake: frd(outputs(encoder, real), outputs(encoder, fake)).value)


def test_frd_is_asked_of_radiomics_alone_and_nothing_else_is() -> None:
    registry = load_registry()
    spec = registry.metrics["frd"].spec
    assert [n for n, e in registry.encoders.items() if spec.output in e.spec.outputs] == [
        "radiomics"
    ]
    outputs = set(registry.encoders["radiomics"].spec.outputs)
    assert [n for n, m in registry.metrics.items() if m.spec.output in outputs] == ["frd"]
    assert not spec.scores[0].higher_is_better
