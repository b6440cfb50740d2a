"""Reference bundles: the same scores without the images, and nobody's image, text or id inside."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from chexgenbench.errors import UserError
from chexgenbench.home import Home
from chexgenbench.progress import Progress
from chexgenbench.store.store import Store
from chexgenbench.workflow.plan import Options
from chexgenbench.workflow.reference import Reference
from chexgenbench.workflow.run import build_reference, run_suite

SCORES = """
    SELECT plugin, metric, encoder, subset, value, standard_error, ci_low, ci_high, floor, matched,
           excess_low, n_real, n_fake, basis, status, warning
    FROM scores WHERE run_id = ? ORDER BY ALL
"""
SUITE = {"models": ["noise"], "metrics": ["kid", "fid", "prdc", "alignment"]}


def options(folder: Path, **changes: object) -> Options:
    values: dict[str, object] = {"home": Home(folder), "suite": "demo", "changes": SUITE}
    return Options(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHEXGENBENCH_CACHE", str(cache))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("build")
    path = folder / "demo.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHEXGENBENCH_CACHE", str(cache))
        built = build_reference(options(folder), path, Progress(quiet=True))
    assert (built.images, built.encoders, built.credentialed) == (544, ["phantom-clip"], False)
    return path


def test_scores_are_those_of_the_images(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = Progress(quiet=True)
    with_images = run_suite(options(tmp_path / "a"), quiet)
    # Another member: a cache of their own, where no real image was ever drawn or encoded.
    other = tmp_path / "other"
    monkeypatch.setenv("CHEXGENBENCH_CACHE", str(other))
    with_bundle = run_suite(options(tmp_path / "b", reference=bundle), quiet)
    assert not (other / "phantom").exists()
    first = Store(Home(tmp_path / "a").store).query(SCORES, with_images.runs).to_pylist()
    second = Store(Home(tmp_path / "b").store).query(SCORES, with_bundle.runs).to_pylist()
    assert len(first) == len(second) == 16 * 7
    for a, b in zip(first, second, strict=True):
        for name, value in a.items():
            expected = pytest.approx(b[name], rel=1e-9) if isinstance(value, float) else b[name]
            assert value == expected


def test_a_part_of_the_split_finds_its_rows(bundle: Path, tmp_path: Path) -> None:
    quiet, changes = Progress(quiet=True), SUITE | {"limit": 150}
    values = []
    for name, reference in (("a", None), ("b", bundle)):
        done = run_suite(options(tmp_path / name, reference=reference, changes=changes), quiet)
        sql = "SELECT value FROM scores WHERE run_id = ? AND status = 'ok' ORDER BY ALL"
        values.append(Store(Home(tmp_path / name).store).query(sql, done.runs).column(0).to_numpy())
    assert len(values[0]) > 50
    np.testing.assert_allclose(values[0], values[1], rtol=1e-9)


def test_it_holds_no_text_image_or_id(bundle: Path) -> None:
    from chexgenbench.splits.prompts import read_prompts
    from chexgenbench_plugins.data import data_folder

    table = read_prompts(data_folder("demo_split") / "DEMO_ANNOTATIONS_TEST.csv", name="d").table
    content = bundle.read_bytes()
    for column in ("prompt_id", "prompt", "patient_id", "image_path"):
        for text in table[column].dropna().unique():
            # Short ids could stand in random bytes by chance.
            assert len(str(text)) < 6 or str(text).encode() not in content
    tensors = load_file(bundle)
    assert set(tensors) == {
        "rows",
        "patients",
        *(
            f"phantom-clip/{output}{part}"
            for output in ("features", "probabilities")
            for part in ("", "/mean", "/covariance")
        ),
    }
    patients, known = tensors["patients"], table["patient_id"]
    same = patients[:, None] == patients[None, :]
    assert (same == (known.to_numpy()[:, None] == known.to_numpy()[None, :])).all()
    features = tensors["phantom-clip/features"].astype(np.float64)
    np.testing.assert_allclose(tensors["phantom-clip/features/mean"], features.mean(axis=0))
    np.testing.assert_allclose(tensors["phantom-clip/features/covariance"], np.cov(features.T))


def test_pseudonyms_are_drawn_anew(bundle: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    build_reference(options(tmp_path), again, Progress(quiet=True))
    assert (load_file(again)["patients"] != load_file(bundle)["patients"]).any()


def altered(bundle: Path, path: Path, change: object) -> Path:
    """The bundle with other facts in its header."""
    with safe_open(bundle, "np") as file:
        facts = json.loads(file.metadata()["reference"])
    save_file(load_file(bundle), path, metadata={"reference": json.dumps(change(facts))})  # type: ignore[operator]
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f | {"split_hash": "0" * 64}, "not the split 'demo'"),
        (lambda f: f | {"rows": 543}, "543 rows"),
        (lambda f: f | {"encoders": {"phantom-clip": "0" * 16}}, "another identity"),
        (lambda f: f | {"encoders": {"rad-dino": "0" * 16}}, "no features of 'phantom-clip'"),
        (lambda f: f | {"format": "chexgenbench-reference-9"}, "reference-9"),
        (lambda f: f | {"tensors": f["tensors"] | {"rows": "0" * 64}}, "damaged"),
        (lambda f: f | {"tensors": {}}, "damaged"),
        (lambda f: [], "damaged"),
    ],
)
def test_it_is_refused_where_it_does_not_fit(
    bundle: Path, tmp_path: Path, change: object, message: str
) -> None:
    path = altered(bundle, tmp_path / "x.safetensors", change)
    with pytest.raises(UserError, match=message):
        run_suite(options(tmp_path, reference=path), Progress(quiet=True))
    assert not list((tmp_path / "runs").glob("*/run.json"))  # before anything is made


def test_damage_is_noticed(bundle: Path, tmp_path: Path) -> None:
    content = bytearray(bundle.read_bytes())
    content[-1000] ^= 1
    for name, data in (("flip", bytes(content)), ("cut", content[:9000]), ("text", b"x" * 99)):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(data)
        with pytest.raises(UserError, match="damaged"):
            Reference.open(path)
    with pytest.raises(UserError, match="does not exist"):
        Reference.open(tmp_path / "none.safetensors")


def test_what_it_is_written_to_must_make_sense(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="safetensors"):
        build_reference(options(tmp_path), tmp_path / "x.zip", Progress(quiet=True))
