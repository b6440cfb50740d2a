"""`dataset export`: what goes along, what stays, what a fresh process opens, and the way back."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chexgenbench import FINDINGS, Context, UserError
from chexgenbench.datasets import write
from chexgenbench.datasets.card import escape
from chexgenbench.datasets.plain import plain_image
from chexgenbench.errors import ChexGenBenchError
from chexgenbench.files import sha256_bytes, sha256_file
from chexgenbench.home import Home
from chexgenbench.images import read_image
from chexgenbench.progress import Progress
from chexgenbench.splits.prompts import check_images, read_prompts
from chexgenbench.store.run_directory import read_record, read_table, write_run
from chexgenbench.store.store import Store
from chexgenbench.types import QUALITIES
from chexgenbench.workflow.dataset import ExportOptions, export_dataset
from chexgenbench.workflow.options import Options
from chexgenbench_plugins.splits.exported import Exported, ExportedParameters
from desk import Desk

COUNT = 40
SCORE = "alignment@phantom-clip"

READER = """
import json, sys, hashlib, io
import datasets
found = datasets.load_dataset(sys.argv[1], cache_dir=sys.argv[2], split="train")
rows = []
for row in found:
    image = row.pop("image")
    rows.append(row | {"pixels": hashlib.sha256(image.convert("L").tobytes()).hexdigest()})
features = {name: str(kind) for name, kind in found.features.items()}
print(json.dumps({"rows": rows, "features": features}))
"""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A finished run of each of two baselines over 40 prompts."""
    desk = Desk.new(tmp_path_factory.mktemp("dataset"))
    models = [word for name in ("oracle", "noise") for word in ("--model", name)]
    chosen = ("--metric", "fid", "--metric", "alignment")
    desk.run("run", "--limit", COUNT, *models, *chosen, "--device", "cpu", "-q")
    return desk


@pytest.fixture
def own(finished: Desk, tmp_path: Path) -> Desk:
    """The same runs in a folder of the test's own, to change as it likes."""
    shutil.copytree(finished.home, tmp_path / "home")
    return Desk(tmp_path / "home", finished.cache)


def run_of(desk: Desk, model: str = "oracle") -> Path:
    for path in sorted((desk.home / "runs").glob("*/run.json")):
        if read_record(path.parent).model == model:
            return path.parent
    raise AssertionError(model)


def export(
    desk: Desk,
    out: Path,
    model: str = "oracle",
    *,
    credentialed: bool = False,
    plugins: tuple[Path, ...] = (),
    settings: tuple[str, ...] = (),
    **values: Any,
) -> Any:
    options = Options(
        home=Home(desk.home),
        device="cpu",
        plugins=plugins,
        settings=settings,
        include_credentialed=credentialed,
    )
    return export_dataset(options, model, out, ExportOptions(**values), Progress(quiet=True))


def opened(out: Path, cache: Path) -> dict[str, Any]:
    """What `load_dataset` gives in a process that has nothing of ours."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", READER, str(out), str(cache)],
        capture_output=True,
        text=True,
        check=True,
        env={"HF_HUB_OFFLINE": "1", "PATH": "", "HOME": str(cache)},
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def images(out: Path) -> pd.DataFrame:
    tables = [pq.read_table(path, partitioning=None) for path in sorted((out / "data").iterdir())]
    return pd.concat([table.to_pandas() for table in tables], ignore_index=True)


def rows_of(out: Path) -> list[dict[str, Any]]:
    """The rows of either layout, but for the images."""
    if (out / "data").is_dir():
        return images(out).drop(columns=["image"]).astype(object).to_dict("records")
    lines = (out / "train" / "metadata.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def change(desk: Desk, model: str = "oracle", **tables: pd.DataFrame) -> None:
    """Writes tables of a run anew, as another version of the run would have."""
    folder = run_of(desk, model)
    write_run(folder, read_record(folder), tables)


def table(desk: Desk, name: str, model: str = "oracle") -> pd.DataFrame:
    folder = run_of(desk, model)
    frame: pd.DataFrame = read_table(folder, name, read_record(folder)).to_pandas()
    return frame


def values_of(desk: Desk, name: str, values: list[float], model: str = "oracle") -> pd.DataFrame:
    """The per-image scores with one more of that name."""
    known = table(desk, "sample_scores", model)
    first = known[known["metric"] == "alignment"]
    return pd.concat([known, first.assign(metric=name, value=values)], ignore_index=True)


# --- what goes along ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["parquet", "imagefolder"])
def test_a_fresh_process_opens_it_and_finds_what_the_run_has(
    finished: Desk, tmp_path: Path, layout: str
) -> None:
    out = tmp_path / "out"
    done = finished.run("dataset", "export", "oracle", out, "--format", layout)
    assert f"{COUNT} images" in done.out
    assert "NO PRIVACY METRIC LOOKED AT THESE IMAGES" in done.out
    found = opened(out, tmp_path / "datasets")
    rows = pd.DataFrame(found["rows"])
    made, asked = table(finished, "images"), table(finished, "prompts")
    scores = table(finished, "sample_scores").set_index("image_id")["value"]
    assert rows["prompt_id"].tolist() == asked["prompt_id"].tolist() == made["prompt_id"].tolist()
    assert rows["prompt"].tolist() == asked["prompt"].tolist()
    assert rows["sha256"].tolist() == made["sha256"].tolist()
    assert rows["seed"].tolist() == made["seed"].tolist()
    assert rows[SCORE].tolist() == scores[made["image_id"]].tolist()
    assert set(rows["model"]) == {"oracle"}
    assert set(rows["split"]) == {"demo"}
    for finding in FINDINGS:
        np.testing.assert_array_equal(rows[finding].astype(float), asked[finding])
    from hashlib import sha256

    from chexgenbench.images import read_image

    folder = finished.home / "runs" / "generations" / made["generation_id"].iloc[0]
    for pixels, path in zip(rows["pixels"], made["path"], strict=True):
        assert pixels == sha256(read_image(folder / path).convert("L").tobytes()).hexdigest()
    if layout == "parquet":
        assert found["features"]["image"].startswith("Image")
        assert "int8" in found["features"]["Edema"]
    assert not {"patient_id", "image_path", "patient"} & set(rows.columns)


def test_the_card_is_one_that_the_hub_reads_and_has_the_numbers(
    finished: Desk, tmp_path: Path
) -> None:
    from huggingface_hub import DatasetCard

    export(finished, tmp_path / "out", where=f'"{SCORE}" > 0.5')
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    facts = card.data.to_dict()
    assert facts["license"] == "apache-2.0"
    assert facts["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    assert [f["name"] for f in facts["dataset_info"]["features"]] == list(
        images(tmp_path / "out").columns
    )
    run = read_record(run_of(finished))
    assert run.run_id in card.text
    scores = table(finished, "scores")
    one = scores[(scores["metric"] == "alignment") & (scores["subset"] == "overall")].iloc[0]
    assert f"{one['value']:.5g} | {one['ci_low']:.5g} to {one['ci_high']:.5g}" in card.text
    assert f'"{SCORE}" > 0.5' in card.text
    facts = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert facts["run"]["weights"] == run.weights
    assert facts["run"]["versions"] == run.versions
    # Nothing of this machine.
    text = (tmp_path / "out" / "README.md").read_text() + json.dumps(facts)
    assert str(finished.home) not in text
    assert str(finished.cache) not in text


@given(st.text())
def test_no_text_breaks_out_of_its_cell(text: str) -> None:
    import re

    shown = escape(text)
    assert "\n" not in shown
    assert "\r" not in shown
    assert not re.search(r"(?<!\\)(\\\\)*[|<>`]", shown)


def test_the_same_export_is_the_same_bytes(finished: Desk, tmp_path: Path) -> None:
    for name in ("one", "two"):
        export(finished, tmp_path / name)
    one, two = (
        {path.relative_to(tmp_path / name): sha256_file(path) for path in files}
        for name in ("one", "two")
        for files in [sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())]
    )
    assert one == two


def test_large_ones_are_cut_into_shards_of_bounded_groups(
    finished: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(finished, tmp_path / "one")
    monkeypatch.setattr(write, "SHARD_BYTES", 100_000)
    monkeypatch.setattr(write, "_GROUP_BYTES", 30_000)
    export(finished, tmp_path / "many")
    files = sorted((tmp_path / "many" / "data").iterdir())
    assert len(files) > 2
    assert files[0].name == f"train-00000-of-{len(files):05d}.parquet"
    for path in files:
        with pq.ParquetFile(path) as file:
            groups = range(file.num_row_groups)
            read = [file.read_row_group(i, columns=["image"]).to_pylist() for i in groups]
        assert all(sum(len(row["image"]["bytes"]) for row in rows) <= 30_000 for rows in read)
    pd.testing.assert_frame_equal(images(tmp_path / "one"), images(tmp_path / "many"))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 100))
def test_parts_are_consecutive_and_as_large_as_they_may_be(sizes: list[int], most: int) -> None:
    parts = write._cut(sizes, most)
    assert [i for part in parts for i in range(len(sizes))[part]] == list(range(len(sizes)))
    for part in parts:
        assert sum(sizes[part]) <= most or len(sizes[part]) == 1
    for part, after in itertools.pairwise(parts):
        assert sum(sizes[part]) + sizes[after.start] > most


def test_a_prompt_that_looks_like_a_formula_stays_as_it_is(own: Desk, tmp_path: Path) -> None:
    odd = '=HYPERLINK("http://x","y")|\n<b>+1'
    prompts = table(own, "prompts")
    prompts.loc[0, "prompt"] = odd
    change(own, prompts=prompts)
    export(own, tmp_path / "out", format="imagefolder")
    assert rows_of(tmp_path / "out")[0]["prompt"] == odd
    assert not list((tmp_path / "out").rglob("*.csv"))


# --- metadata -------------------------------------------------------------------------------

SECRET = "a prompt of Jane Doe"


def with_metadata(path: Path, kind: str, turned: int = 1) -> bytes:
    """Writes an image with `SECRET` in each field that its format has."""
    from PIL import Image, PngImagePlugin

    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 255, (40, 56, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x010E] = SECRET
    exif[0x0112] = turned
    values: dict[str, Any] = {"exif": exif, "icc_profile": SECRET.encode() * 8}
    if kind == "png":
        text = PngImagePlugin.PngInfo()
        text.add_text("parameters", SECRET)
        text.add_itxt("XML:com.adobe.xmp", SECRET)
        values["pnginfo"] = text
    elif kind == "jpeg":
        values |= {"comment": SECRET.encode(), "xmp": SECRET.encode(), "progressive": turned > 1}
    elif kind == "webp":
        values |= {"xmp": SECRET.encode(), "lossless": True}
    elif kind == "bmp":
        values = {}
    image.save(path, kind, **values)
    path.write_bytes(path.read_bytes() + SECRET.encode())  # and after its end
    return path.read_bytes()


@pytest.mark.parametrize("turned", [1, 6])
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff", "bmp"])
def test_a_file_loses_all_but_its_pixels(tmp_path: Path, kind: str, turned: int) -> None:
    from PIL import Image

    path, out = tmp_path / f"x.{kind}", tmp_path / "out"
    data = with_metadata(path, kind, turned)
    assert b"Jane" in data
    plain = plain_image(path, data)
    assert b"Jane" not in plain
    out.write_bytes(plain)
    np.testing.assert_array_equal(np.asarray(read_image(out)), np.asarray(read_image(path)))
    assert plain_image(out, plain) == plain
    with Image.open(out) as image:
        image.load()
        assert image.format == ("JPEG" if (kind, turned) == ("jpeg", 1) else "PNG")
        assert not set(image.info) - {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        assert not image.getexif()


@given(st.integers(1, 95), st.booleans(), st.booleans(), st.integers(0, 3), st.integers(0, 2**32))
def test_a_jpeg_file_keeps_its_pixels_and_a_plain_one_its_bytes(
    quality: int, progressive: bool, grey: bool, restart: int, seed: int
) -> None:
    import io

    from PIL import Image

    random = np.random.default_rng(seed)
    shape = (33, 47) if grey else (33, 47, 3)
    image = Image.fromarray(random.integers(0, 255, shape, dtype=np.uint8))

    def saved(**more: Any) -> bytes:
        buffer = io.BytesIO()
        options = {"quality": quality, "progressive": progressive, **more}
        image.save(buffer, "JPEG", restart_marker_rows=restart, **options)
        return buffer.getvalue()

    bare = saved()
    assert plain_image(Path("unread"), bare) == bare
    assert plain_image(Path("unread"), saved(comment=SECRET, xmp=SECRET.encode())) == bare


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_what_follows_the_end_of_a_file_stays_behind(tmp_path: Path, kind: str) -> None:
    from PIL import Image

    path = tmp_path / f"x.{kind}"
    Image.new("L", (20, 20), 90).save(path)
    bare = path.read_bytes()
    assert plain_image(path, bare) == bare
    path.write_bytes(bare + SECRET.encode())
    assert SECRET.encode() not in plain_image(path, path.read_bytes())


def test_no_metadata_leaves_with_an_image(secret: Desk, tmp_path: Path) -> None:
    made = table(secret, "images")
    folder = secret.home / "runs" / "generations" / made["generation_id"].iloc[0]
    for row, kind in enumerate(("png", "jpeg", "webp")):
        path = folder / f"images/{'ab'[row % 2]}.{kind}"
        made.loc[row, ["path", "sha256"]] = [
            str(path.relative_to(folder)),
            sha256_bytes(with_metadata(path, kind)),
        ]
    change(secret, images=made)
    done = export(secret, tmp_path / "out")
    told = export(secret, tmp_path / "folder", credentialed=True, format="imagefolder")
    assert "Text and other metadata were taken out of 3 image files." in told.remarks
    assert done.images == told.images == COUNT
    for out in (tmp_path / "out", tmp_path / "folder"):
        assert not [
            path
            for path in out.rglob("*")
            if path.is_file() and SECRET.encode() in path.read_bytes()
        ]
        assert "3 images without the text" in (out / "README.md").read_text()
        assert json.loads((out / "provenance.json").read_text())["metadata_removed"] == 3
        assert [row["source_sha256"] for row in rows_of(out)] == made["sha256"].tolist()
    rows = images(tmp_path / "out")
    assert [sha256_bytes(image["bytes"]) for image in rows["image"]] == rows["sha256"].tolist()
    assert (rows["sha256"] != rows["source_sha256"]).sum() == 3
    files = [
        tmp_path / "folder" / "train" / row["file_name"] for row in rows_of(tmp_path / "folder")
    ]
    assert [sha256_file(path) for path in files] == rows["sha256"].tolist()
    assert [path.suffix for path in files[:3]] == [".png", ".jpeg", ".png"]
    assert len({path.name.lower() for path in files}) == COUNT


def test_the_card_tells_nothing_of_what_a_failure_said(own: Desk, tmp_path: Path) -> None:
    scores = table(own, "scores")
    scores.loc[0, ["status", "reason", "subset"]] = [
        "failed",
        "OSError: /data/p10000032/report.txt",
        "overall",
    ]
    scores.loc[1, ["status", "reason", "subset"]] = ["failed", "/data/p10000032: no", "overall"]
    change(own, scores=scores)
    export(own, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "failed (OSError)" in text
    assert "p10000032" not in text


# --- which images ---------------------------------------------------------------------------


def test_a_condition_chooses_by_scores_labels_and_quantiles(finished: Desk, tmp_path: Path) -> None:
    where = f'"{SCORE}" >= (SELECT quantile_cont("{SCORE}", 0.75) FROM images) -- the best quarter'
    done = export(finished, tmp_path / "out", where=where)
    assert done.images == COUNT // 4
    everything = table(finished, "sample_scores")["value"]
    assert images(tmp_path / "out")[SCORE].min() >= everything.quantile(0.75)
    export(finished, tmp_path / "few", where='"Pleural Effusion" = 1', limit=2)
    few = images(tmp_path / "few")
    assert few["Pleural Effusion"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("alignmint > 0", "cannot be used"),
        ("true) AS a, (true", "not one expression"),
        ("true); DROP TABLE images; SELECT (true", "not one expression"),
        ("random() < 0.5", "other rows each time"),
        ("(SELECT count(*) FROM read_text('/etc/hostname')) > 0", "cannot be used"),
        ("repeat = 7", "No image"),
    ],
)
def test_a_condition_that_cannot_be_used_is_named(
    finished: Desk, tmp_path: Path, where: str, reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        export(finished, tmp_path / "out", where=where)
    assert not list(tmp_path.iterdir())


def test_near_copies_stay_behind_unless_told(own: Desk, tmp_path: Path) -> None:
    change(own, sample_scores=values_of(own, "near_copy", [1.0] * 3 + [0.0] * (COUNT - 3)))
    done = export(own, tmp_path / "out")
    assert done.left_out == {"near-copies of training images": 3}
    left = images(tmp_path / "out")["prompt_id"].tolist()
    assert left == table(own, "prompts")["prompt_id"].tolist()[3:]
    assert "left out 3 images as near-copies" in (tmp_path / "out" / "README.md").read_text()
    assert "near_copy" not in " ".join(images(tmp_path / "out").columns)

    done = export(own, tmp_path / "all", allow_near_copies=True)
    assert done.images == COUNT
    text = (tmp_path / "all" / "README.md").read_text()
    assert f"3 OF THESE {COUNT} IMAGES ARE NEAR-COPIES" in text
    # What stays behind does not move a quantile of what goes along.
    where = f'"{SCORE}" >= (SELECT median("{SCORE}") FROM images)'
    both = export(own, tmp_path / "a", where=where, allow_near_copies=True)
    export(own, tmp_path / "b", where=where)
    assert set(images(tmp_path / "b")["sha256"]) <= set(images(tmp_path / "a")["sha256"])
    assert both.images == COUNT // 2


def test_an_image_equal_to_a_near_copy_stays_behind_too(own: Desk, tmp_path: Path) -> None:
    """The metric looked at the first of them alone: the others were repeats."""
    made = table(own, "images")
    folder = own.home / "runs" / "generations" / made["generation_id"].iloc[0]
    for row in (5, 9):
        shutil.copy(folder / made["path"].iloc[0], folder / made["path"].iloc[row])
        made.loc[row, "sha256"] = made["sha256"].iloc[0]
    said = [1.0] + [0.0] * 6 + [np.nan] * (COUNT - 7)
    change(own, images=made, sample_scores=values_of(own, "near_copy", said))
    done = export(own, tmp_path / "out", keep_flagged=True)
    assert done.left_out == {"near-copies of training images": 3}
    assert made["sha256"].iloc[0] not in set(images(tmp_path / "out")["source_sha256"])


def test_what_privacy_metrics_did_instead_is_said(own: Desk, tmp_path: Path) -> None:
    folder = run_of(own)
    needs = {"members": "training-2000x10", "real": "training-all-real"}
    told = {
        "membership": {"needs": needs},
        "other": {"needs": {"real": "test-all-real"}},
        "fid": {},
    }
    record = read_record(folder)
    write_run(folder, record.model_copy(update={"metrics": told}), {})
    (remark,) = export(own, tmp_path / "out").remarks
    assert "THESE IMAGES: the run's metrics that use training images (membership) said" in remark
    made = table(own, "images")
    made.loc[3:, "status"] = "unreadable"
    values = [np.nan] * 3 + [0.0] * (COUNT - 3)
    change(own, images=made, sample_scores=values_of(own, "near_copy", values))
    remark = export(own, tmp_path / "few").remarks[0]
    assert f"though one looked at {COUNT - 3} images of the run that are not here" in remark


def test_not_looked_at_is_said_and_is_not_clean(own: Desk, tmp_path: Path) -> None:
    (remark,) = export(own, tmp_path / "out").remarks
    assert "NO PRIVACY METRIC LOOKED AT THESE IMAGES" in remark
    assert "NO PRIVACY METRIC LOOKED" in (tmp_path / "out" / "README.md").read_text()
    partly = [0.0] * 30 + [np.nan] * (COUNT - 30)
    change(own, sample_scores=values_of(own, "near_copy", partly))
    (remark,) = export(own, tmp_path / "part").remarks
    assert f"At {COUNT - 30} images of these no privacy metric looked" in remark


def test_spoilt_images_stay_behind_unless_told(own: Desk, tmp_path: Path) -> None:
    made = table(own, "images")
    made["flags"] = [["black", "constant"], ["truncated"], *([[]] * (COUNT - 2))]
    made.loc[2, "status"] = "unreadable"
    change(own, images=made)
    done = export(own, tmp_path / "out")
    assert done.left_out == {
        "unreadable in the run": 1,
        "black, constant, NaN or duplicate": 1,
    }
    assert export(own, tmp_path / "all", keep_flagged=True).images == COUNT - 1
    assert export(own, tmp_path / "b", where="NOT list_contains(flags, 'truncated')").images == 37


def test_a_pool_of_further_images_is_exported_by_its_name(own: Desk, tmp_path: Path) -> None:
    made, asked = table(own, "images"), table(own, "prompts")
    prompts = asked.drop(columns=["split"]).assign(side="training")
    pool = made[["run_id", "generation_id", "prompt_id", "repeat", "seed", "path", "sha256"]]
    pool = pool.assign(pool="training-all", side="training", status="ok", flags=made["flags"])
    pool = pool.assign(image_id="training-all/" + made["image_id"]).iloc[::2]
    scores = table(own, "sample_scores")
    near = scores.assign(
        image_id="training-all/" + scores["image_id"],
        metric="near_copy",
        encoder="",
        value=[1.0] + [0.0] * (COUNT - 1),
    )
    change(own, pool_images=pool, pool_prompts=prompts)
    change(own, sample_scores=pd.concat([scores, near], ignore_index=True))
    done = export(own, tmp_path / "out", pool="training-all")
    assert done.images == COUNT // 2 - 1
    assert set(images(tmp_path / "out")["sha256"]) <= set(pool["sha256"])
    assert "training prompts" in (tmp_path / "out" / "README.md").read_text()
    # No score of the run's own images is taken for one of theirs.
    assert SCORE not in images(tmp_path / "out").columns
    with pytest.raises(UserError, match=r"no pool .* named 'traning'") as error:
        export(own, tmp_path / "other", pool="traning")
    assert "training-all" in str(error.value.hint)


# --- patients' text -------------------------------------------------------------------------


@pytest.fixture
def secret(own: Desk) -> Desk:
    folder = run_of(own)
    record = read_record(folder).model_copy(update={"credentialed": True, "split": "mimic-cxr"})
    prompts = table(own, "prompts").assign(split="mimic-cxr")
    write_run(folder, record, {"prompts": prompts})
    Store(own.home / "Results" / "chexgenbench.duckdb").ingest([folder])
    return own


@pytest.mark.parametrize("layout", ["parquet", "imagefolder"])
def test_nothing_of_a_report_leaves_unless_told(secret: Desk, tmp_path: Path, layout: str) -> None:
    out = tmp_path / "out"
    done = export(secret, out, format=layout)
    assert any("credentialed" in remark for remark in done.remarks)
    asked = table(secret, "prompts")
    rows = rows_of(out)
    text = json.dumps(rows, default=str) + "".join(
        str(path.relative_to(out)) + (path.read_text() if path.suffix != ".parquet" else "")
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.suffix != ".png"
    )
    for column in ("prompt", "prompt_id", "patient_id", "image_path"):
        assert not [value for value in asked[column] if value in text], column
    names = [str(path.relative_to(out)) for path in out.rglob("*")]
    assert not [i for i in asked["prompt_id"] if any(i in name for name in names)]
    assert "no prompts" in (out / "README.md").read_text()
    with pytest.raises(UserError, match="cannot be used"):
        export(secret, tmp_path / "other", where="prompt LIKE '%effusion%'")

    export(secret, tmp_path / "told", format=layout, credentialed=True)
    told = rows_of(tmp_path / "told")
    assert [row["prompt"] for row in told] == asked["prompt"].tolist()
    assert not {"patient_id", "image_path"} & set(told[0])


# --- what can go wrong ----------------------------------------------------------------------


def test_a_folder_that_is_there_stays_as_it_is(finished: Desk, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export(finished, out)  # an empty one is taken
    before = sorted(out.rglob("*"))
    with pytest.raises(UserError, match="is there already"):
        export(finished, out)
    assert sorted(out.rglob("*")) == before


def test_two_exports_do_not_write_one_folder(finished: Desk, tmp_path: Path) -> None:
    with write.new_folder(tmp_path / "out") as aside:
        with pytest.raises(UserError, match="Another export is writing"):
            export(finished, tmp_path / "out")
        (aside / "mine").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_run_is_found_by_model_or_by_the_beginning_of_its_id(
    finished: Desk, tmp_path: Path
) -> None:
    name = run_of(finished).name
    export(finished, tmp_path / "out", name[:6])
    with pytest.raises(UserError, match="no run named 'orcale'") as error:
        export(finished, tmp_path / "other", "orcale")
    assert "oracle" in str(error.value.hint)


def test_an_image_that_is_gone_or_another_one_is_named(own: Desk, tmp_path: Path) -> None:
    made = table(own, "images")
    folder = own.home / "runs" / "generations" / made["generation_id"].iloc[0]
    one, two = (folder / path for path in made["path"].iloc[:2])
    kept = one.read_bytes()
    shutil.copy(two, one)
    with pytest.raises(UserError, match=f"{one.name} is not the image that the run scored"):
        export(own, tmp_path / "out")
    one.unlink()
    with pytest.raises(UserError, match=f"{one.name} is missing"):
        export(own, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
    one.write_bytes(kept)
    assert export(own, tmp_path / "out").images == COUNT


def test_only_what_leaves_is_read_and_needs_room(
    own: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = table(own, "images")
    folder = own.home / "runs" / "generations" / made["generation_id"].iloc[0]
    (folder / made["path"].iloc[-1]).unlink()
    sizes = [(folder / path).stat().st_size for path in made["path"].iloc[:-1]]
    room = sum(sizes[:2]) + 2 * 2000 + 1_000_000
    usage = shutil.disk_usage(tmp_path)._replace(free=room)
    monkeypatch.setattr(write.shutil, "disk_usage", lambda _path: usage)
    assert export(own, tmp_path / "out", limit=2).images == 2
    with pytest.raises(UserError, match="free, and the dataset needs"):
        export(own, tmp_path / "more", limit=COUNT - 1)


def test_a_disk_that_is_too_small_is_noticed_first(
    finished: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(write.shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(UserError, match="free, and the dataset needs"):
        export(finished, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unfinished_run_is_refused(own: Desk, tmp_path: Path) -> None:
    folder = run_of(own)
    write_run(folder, read_record(folder).model_copy(update={"status": "running"}), {})
    with pytest.raises(UserError, match="is running"):
        export(own, tmp_path / "out", folder.name)


SLOW = """
import time
from pathlib import Path
from chexgenbench import Judge, JudgeSpec, hookimpl

class Slow(Judge):
    def judge(self, requests):
        for request in requests:
            with (self.context.home / "asked").open("a") as file:
                file.write(request.path.name + chr(10))
            time.sleep(0.05)
            yield ["High Quality", "Low Quality", "no idea"][SAYS(request.path.name)]

@hookimpl
def chexgenbench_judges():
    yield JudgeSpec(name="slow", summary="x", load=Slow)
"""


@pytest.mark.slow
def test_a_kill_leaves_no_half_of_it_and_no_answer_is_lost(own: Desk, tmp_path: Path) -> None:
    plugin = own.home / "slow.py"
    plugin.write_text(SLOW.replace("SAYS(request.path.name)", "hash_of(request.path.name) % 2"))
    plugin.write_text(
        plugin.read_text() + "\n\ndef hash_of(name):\n    return sum(map(ord, name))\n"
    )
    out = tmp_path / "out"
    command = ("dataset", "export", "oracle", out, "--plugin", plugin, "--judge", "slow")
    process = own.start(*command)
    asked = own.home / "asked"
    deadline = time.monotonic() + 60
    while not (asked.is_file() and len(asked.read_text().splitlines()) > 20):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert not out.exists()
    before = asked.read_text().splitlines()
    done = own.run(*command)
    # One batch of 16 was kept; nobody is asked of those again.
    again = asked.read_text().splitlines()[len(before) :]
    assert not set(before[:16]) & set(again)
    assert len(again) == COUNT - 16
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out"]
    quality = images(out)["quality"]
    assert set(quality) == {"High Quality"}
    assert f"left out: {COUNT - len(quality)} of another quality" in done.out
    assert "The judge slow said" in done.out


def test_too_many_answers_that_are_no_label_are_an_error_and_are_kept(
    own: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHEXGENBENCH_CACHE", str(own.cache))
    plugin = own.home / "slow.py"
    plugin.write_text(SLOW.replace("SAYS(request.path.name)", "2").replace("0.05", "0"))
    told: dict[str, Any] = {"plugins": (plugin,), "judge": "slow"}
    with pytest.raises(ChexGenBenchError, match=f"no label for {COUNT} of {COUNT} images"):
        export(own, tmp_path / "out", **told)
    asked = (own.home / "asked").read_text()
    with pytest.raises(UserError, match=f"{COUNT} of another quality"):
        export(own, tmp_path / "out", settings=("slow.most_unreadable=1",), **told)
    # The share that may be unreadable changes no answer, so nobody is asked again.
    assert (own.home / "asked").read_text() == asked
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError) as error:
        export(own, tmp_path / "out", **{**told, "judge": "slwo"})
    assert "Did you mean 'slow'?" in str(error.value.hint)
    with pytest.raises(UserError) as error:
        export(own, tmp_path / "out", qualities=("Hihg Quality",), **told)
    assert "Did you mean 'High Quality'?" in str(error.value.hint)


def test_a_limit_asks_no_more_than_it_needs(
    own: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHEXGENBENCH_CACHE", str(own.cache))
    plugin = own.home / "limited.py"
    plugin.write_text(SLOW.replace("SAYS(request.path.name)", "0").replace("0.05", "0"))
    done = export(own, tmp_path / "out", plugins=(plugin,), judge="slow", limit=3)
    assert done.images == 3
    assert done.left_out == {"beyond --limit": COUNT - 3}
    assert len((own.home / "asked").read_text().splitlines()) == 16


def test_the_judge_by_scores_keeps_the_oracle_and_not_noise(
    finished: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHEXGENBENCH_CACHE", str(finished.cache))
    done = export(finished, tmp_path / "out", judge="scores")
    kept = images(tmp_path / "out")
    assert len(kept) > COUNT / 2
    assert set(kept["quality"]) <= {"High Quality", "Medium Quality"}
    assert any("The judge scores said" in remark for remark in done.remarks)
    every = tuple(QUALITIES)
    export(finished, tmp_path / "noise", "noise", judge="scores", qualities=every)
    said = images(tmp_path / "noise")["quality"]
    assert said.isin(["High Quality", "Medium Quality"]).sum() < COUNT / 2
    with pytest.raises(UserError, match="no encoder of run"):
        export(finished, tmp_path / "no", judge="scores@clip")
    monkeypatch.setenv("CHEXGENBENCH_CACHE", str(tmp_path / "empty"))
    with pytest.raises(UserError, match="are not in the cache"):
        export(finished, tmp_path / "no", judge="scores")


def test_a_judge_leaves_out_real_images_that_lie_elsewhere(
    own: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was told to skip bad images keeps the rows that name them."""
    monkeypatch.setenv("CHEXGENBENCH_CACHE", str(own.cache))
    prompts = table(own, "prompts")
    change(own, prompts=prompts.assign(image_path=["../other.png", *prompts["image_path"][1:]]))
    export(own, tmp_path / "out", judge="scores", qualities=tuple(QUALITIES))
    assert len(images(tmp_path / "out")) == COUNT


def test_no_judge_is_asked_of_another_image_than_the_runs(
    own: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHEXGENBENCH_CACHE", str(own.cache))
    plugin = own.home / "slow.py"
    plugin.write_text(SLOW.replace("SAYS(request.path.name)", "0").replace("0.05", "0"))
    row = table(own, "images").iloc[0]
    path = own.home / "runs" / "generations" / row["generation_id"] / row["path"]
    path.write_bytes(b"another one")
    with pytest.raises(UserError, match="is not the image that the run scored"):
        export(own, tmp_path / "out", plugins=(plugin,), judge="slow")
    path.unlink()
    with pytest.raises(UserError, match="is missing"):
        export(own, tmp_path / "out", plugins=(plugin,), judge="slow")
    names = (own.home / "asked").read_text().split() if (own.home / "asked").exists() else []
    assert path.name not in names


def test_a_models_images_are_not_taken_from_elsewhere(own: Desk, tmp_path: Path) -> None:
    made = table(own, "images")
    whole = [str(tmp_path / "other.png"), *made["path"][1:]]
    change(own, images=made.assign(path=whole))
    with pytest.raises(UserError, match="leads out of its folder"):
        export(own, tmp_path / "out")


def test_prompts_that_the_run_did_not_encode_are_encoded_for_the_judge(
    own: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a pool: without them each image would fit its prompt."""
    monkeypatch.setenv("CHEXGENBENCH_CACHE", str(tmp_path / "cache"))
    shutil.copytree(own.cache / "features", tmp_path / "cache" / "features")
    every = tuple(QUALITIES)
    asked = {"judge": "scores@phantom-clip", "qualities": every}
    export(own, tmp_path / "own", **asked)
    made, prompts = table(own, "images"), table(own, "prompts")
    pool = made[["run_id", "generation_id", "prompt_id", "repeat", "seed", "path", "sha256"]]
    pool = pool.assign(
        pool="training-all",
        side="training",
        status="ok",
        flags=made["flags"],
        image_id="training-all/" + made["image_id"],
    )
    # Each image is that of another prompt, said in words that no run encoded.
    texts = [f"{text} " for text in np.roll(prompts["prompt"], 1)]
    change(
        own,
        pool_images=pool,
        pool_prompts=prompts.drop(columns=["split"]).assign(side="training", prompt=texts),
    )
    export(own, tmp_path / "pool", pool="training-all", **asked)
    fit = [images(tmp_path / name)["quality"].isin(QUALITIES[:2]).sum() for name in ("own", "pool")]
    assert fit[1] < fit[0] / 2
    # By another encoder than the run's they cannot be.
    folder = run_of(own)
    record = read_record(folder)
    others = {**record.encoders["phantom-clip"], "id": "0" * 16}
    stored = next((tmp_path / "cache" / "features").glob("phantom-clip-*"))
    shutil.copytree(stored / "images", stored.with_name(f"phantom-clip-{'0' * 16}") / "images")
    changed = record.model_copy(update={"encoders": {"phantom-clip": others}})
    write_run(folder, changed, {})
    with pytest.raises(UserError, match="the encoder here is not that of run"):
        export(own, tmp_path / "other", pool="training-all", **asked)


MUTE = """
from chexgenbench import Encoder, EncoderSpec, hookimpl

class Mute(Encoder):
    def preprocess(self, image):
        raise AssertionError("its features are there")

    encode = preprocess

@hookimpl
def chexgenbench_encoders():
    yield EncoderSpec(
        name="mute", summary="x", load=Mute, outputs={"features": 1}, preprocessing="x"
    )
"""


def test_what_a_judge_cannot_see_is_said(
    own: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHEXGENBENCH_CACHE", str(tmp_path / "cache"))
    folder = run_of(own)
    record = read_record(folder)
    (stored,) = (own.cache / "features").glob("phantom-clip-*")
    shutil.copytree(stored / "images", tmp_path / "cache" / "features" / "mute-1" / "images")
    mute = {"mute": {**record.encoders["phantom-clip"], "id": "1"}}
    write_run(folder, record.model_copy(update={"encoders": mute}), {})
    plugin = own.home / "mute.py"
    plugin.write_text(MUTE)
    done = export(own, tmp_path / "out", judge="scores", plugins=(plugin,))
    said = "Whether images answer their prompts was not judged: the encoder mute reads no text"
    assert f"{said}." in done.remarks
    assert escape(said) in (tmp_path / "out" / "README.md").read_text()


# --- the way back ---------------------------------------------------------------------------


def split_of(out: Path, cache: Path, **values: Any) -> Any:
    context = Context(home=out.parent, cache=cache)
    return Exported(ExportedParameters(dataset=str(out), **values), context).source()


@pytest.mark.parametrize("layout", ["parquet", "imagefolder"])
def test_an_export_comes_back_as_a_split(finished: Desk, tmp_path: Path, layout: str) -> None:
    out = tmp_path / "out"
    export(finished, out, format=layout)
    source = split_of(out, tmp_path / "cache", shared_prompts=True)
    assert source.train is not None
    back = read_prompts(
        source.train,
        name="x",
        images_root=source.train_images_root,
        materialise=source.materialise,
    )
    assert check_images(back, decode=True) == []
    asked = table(finished, "prompts")
    same = ["prompt_id", "prompt", *FINDINGS]
    pd.testing.assert_frame_equal(back.table[same], asked[same], check_dtype=False)
    assert [sha256_file(back.path(row)) for row in range(len(back))] == table(finished, "images")[
        "sha256"
    ].tolist()
    assert back.patient_codes() is None
    # As the test side it is the same table, and no longer the training one.
    tested = split_of(out, tmp_path / "cache", shared_prompts=True, side="test")
    assert (tested.test, tested.images_root) == (source.train, source.train_images_root)
    assert tested.train == source.test.with_name("DEMO_ANNOTATIONS_TRAIN.csv")
    # The other side is the demo's.
    theirs = read_prompts(source.test, name="x", images_root=source.images_root)
    assert len(theirs) == 544


def test_a_run_works_on_a_split_from_an_export(own: Desk, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(own, out)
    chosen = ("--split", "exported", "--set", f"exported.dataset={out}", "--metric", "fid")
    with pytest.raises(UserError, match="would share their labels") as shared:
        split_of(out, own.cache)
    message = str(shared.value)
    assert f"{COUNT} prompts" in message
    assert not [name for name in table(own, "prompts")["prompt_id"] if name in message]
    chosen = (*chosen, "--set", "exported.shared_prompts=true")
    # The memorizer gives back images of the training side: those of the dataset.
    command = ("run", *chosen, "--model", "memorizer", "--limit", 20, "-q")
    refused = own.run(*command, "--column", "id=path", code=2)
    assert "--column does not go with the split 'exported'" in refused.err
    own.run(*command)
    folder = run_of(own, "memorizer")
    made = read_table(folder, "images", read_record(folder)).to_pandas()
    from chexgenbench.images import read_image

    taken = {read_image(path).tobytes() for path in (own.cache / "exported").rglob("*.png")}
    generations = own.home / "runs" / "generations"
    given = [
        read_image(generations / generation / path).tobytes()
        for generation, path in zip(made["generation_id"], made["path"], strict=True)
    ]
    assert len(given) == 20
    assert set(given) <= taken


def test_a_damaged_or_hostile_dataset_writes_nothing(finished: Desk, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(finished, out)
    (path,) = (out / "data").iterdir()
    whole = pq.read_table(path, partitioning=None)

    def spoilt(**columns: Any) -> Any:
        frame = whole.to_pandas()
        for name, value in columns.items():
            frame.at[0, name] = value
        pq.write_table(pa.Table.from_pandas(frame, schema=whole.schema), path)
        return split_of(out, tmp_path / "cache", shared_prompts=True)

    first = whole["prompt_id"][0].as_py()
    source = spoilt(file_name="../../escaped.png")
    with pytest.raises(UserError, match="leads out of its folder"):
        source.materialise(source.train, [first])
    source = spoilt(image={"bytes": b"other", "path": "x.png"})
    with pytest.raises(UserError, match="is damaged"):
        source.materialise(source.train, [first])
    assert not list(tmp_path.rglob("*.png"))


def test_a_dataset_that_is_no_split_says_why(secret: Desk, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(secret, out)
    with pytest.raises(UserError, match="exported without its prompts"):
        split_of(out, tmp_path / "cache")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no dataset that") as error:
        split_of(tmp_path / "empty", tmp_path / "cache")
    assert "project folder (--home)" in str(error.value.hint)
    export(secret, tmp_path / "told", credentialed=True, format="imagefolder")
    (tmp_path / "told" / "train" / "metadata.jsonl").write_text('{"file_name": "x.png"}\n')
    with pytest.raises(UserError, match="cannot be read as an exported dataset"):
        split_of(tmp_path / "told", tmp_path / "cache")
