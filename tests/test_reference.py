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
from chexgenbench.workflow.options import Options
from chexgenbench.workflow.reference import Reference, _hash
from chexgenbench.workflow.run import build_reference, run_suite

QUIET = Progress(quiet=True)
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
        built = build_reference(options(folder), path, QUIET)
    assert (built.images, built.encoders, built.credentialed) == (544, ["phantom-clip"], False)
    return path


@pytest.mark.slow
def test_scores_are_those_of_the_images(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_images = run_suite(options(tmp_path / "a"), QUIET)
    # Another member: a cache of their own, where no real image was ever drawn or encoded.
    other = tmp_path / "other"
    monkeypatch.setenv("CHEXGENBENCH_CACHE", str(other))
    with_bundle = run_suite(options(tmp_path / "b", reference=bundle), QUIET)
    assert not (other / "phantom").exists()
    first = Store(Home(tmp_path / "a").store).query(SCORES, with_images.runs).to_pylist()
    second = Store(Home(tmp_path / "b").store).query(SCORES, with_bundle.runs).to_pylist()
    assert len(first) == len(second) == 16 * 7
    for a, b in zip(first, second, strict=True):
        for name, value in a.items():
            expected = pytest.approx(b[name], rel=1e-9) if isinstance(value, float) else b[name]
            assert value == expected


def test_a_part_of_the_split_finds_its_rows(bundle: Path, tmp_path: Path) -> None:
    changes = SUITE | {"limit": 150}
    values = []
    for name, reference in (("a", None), ("b", bundle)):
        done = run_suite(options(tmp_path / name, reference=reference, changes=changes), QUIET)
        sql = "SELECT value, basis FROM scores WHERE run_id = ? AND status = 'ok' ORDER BY basis"
        values.append(Store(Home(tmp_path / name).store).query(sql, done.runs))
    assert values[0].num_rows > 50
    np.testing.assert_allclose(*(table["value"].to_numpy() for table in values), rtol=1e-9)
    # So a member with images and one with the bundle can compare their models.
    assert values[0]["basis"].to_pylist() == values[1]["basis"].to_pylist()


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
        "content",
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
    build_reference(options(tmp_path), again, QUIET)
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
        (lambda f: f | {"rows": 545}, "545 rows"),
        (lambda f: f | {"encoders": {"phantom-clip": "0" * 16}}, "another identity"),
        (lambda f: f | {"encoders": {"rad-dino": "0" * 16}}, "no features of 'phantom-clip'"),
        (lambda f: f | {"format": "chexgenbench-reference-9"}, "reference-9"),
        (lambda f: f | {"tensors": f["tensors"] | {"rows": "0" * 64}}, "damaged"),
        (lambda f: f | {"tensors": {}}, "damaged"),
        (lambda f: [], "damaged"),
        (lambda f: f | {"rows": "544"}, "damaged"),
        (lambda f: {k: v for k, v in f.items() if k != "encoders"}, "damaged"),
    ],
)
def test_it_is_refused_where_it_does_not_fit(
    bundle: Path, tmp_path: Path, change: object, message: str
) -> None:
    path = altered(bundle, tmp_path / "x.safetensors", change)
    with pytest.raises(UserError, match=message):
        run_suite(options(tmp_path, reference=path), QUIET)
    assert not list((tmp_path / "runs").glob("*/run.json"))  # before anything is made


def rebuilt(bundle: Path, path: Path, **tensors: np.ndarray) -> Path:
    """The bundle with other tensors and true hashes of them."""
    with safe_open(bundle, "np") as file:
        facts = json.loads(file.metadata()["reference"])
    content = load_file(bundle) | {name.replace("__", "/"): t for name, t in tensors.items()}
    facts["tensors"] = {name: _hash(values) for name, values in content.items()}
    save_file(content, path, metadata={"reference": json.dumps(facts)})
    return path


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"rows": np.arange(300)}, "rows make no sense"),
        ({"rows": np.arange(544)[None]}, "rows make no sense"),
        ({"rows": np.arange(544)[::-1].copy()}, "rows make no sense"),
        ({"rows": np.arange(1, 545)}, "rows make no sense"),
        ({"phantom-clip__features": np.zeros((544, 9), np.float32)}, r"\[544, 9\]"),
        ({"phantom-clip__features": np.zeros((544, 64))}, "float64"),
        ({"phantom-clip__features": np.full((544, 64), np.nan, np.float32)}, "NaN"),
    ],
)
def test_a_bundle_that_lies_is_refused(
    bundle: Path, tmp_path: Path, tensors: dict[str, np.ndarray], message: str
) -> None:
    path = rebuilt(bundle, tmp_path / "x.safetensors", **tensors)
    with pytest.raises(UserError, match=message):
        run_suite(options(tmp_path, reference=path), QUIET)


@pytest.mark.slow
def test_other_features_under_the_same_images_are_another_run(bundle: Path, tmp_path: Path) -> None:
    moved = load_file(bundle)["phantom-clip/features"] + np.float32(1)
    path = rebuilt(bundle, tmp_path / "x.safetensors", **{"phantom-clip__features": moved})
    (honest,) = run_suite(options(tmp_path, reference=bundle), QUIET).runs
    (other,) = run_suite(options(tmp_path, reference=path), QUIET).runs
    assert honest != other
    store = Store(Home(tmp_path).store)
    known = store.query("SELECT DISTINCT reference FROM runs").column(0).to_pylist()
    assert sorted(known) == sorted({Reference.open(bundle).id, Reference.open(path).id})


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
        build_reference(options(tmp_path), tmp_path / "x.zip", QUIET)
    (tmp_path / "file").write_text("")
    # Before an image is drawn or encoded, and not when all is done.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHEXGENBENCH_CACHE", str(tmp_path / "cold"))
        with pytest.raises(UserError, match="cannot be written"):
            build_reference(options(tmp_path), tmp_path / "file" / "x.safetensors", QUIET)
    assert not (tmp_path / "cold" / "phantom").exists()
