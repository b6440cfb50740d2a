"""The chest phantom: same seed, same picture; findings where they belong; text read back."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from chexgenbench_plugins.data import data_folder
from chexgenbench_plugins.phantom import (
    FINDINGS,
    Finding,
    Study,
    compose,
    draw_anatomy,
    labels_of,
    oracle_image,
    parse,
    render,
    render_images,
    render_row,
    vocabulary,
)
from chexgenbench_plugins.phantom.findings import (
    SHAPES,
    generator,
    make_study,
    random_finding,
    reconcile,
)
from chexgenbench_plugins.phantom.report import tokens
from chexgenbench_plugins.phantom.split import (
    COLUMNS,
    FILE_NAMES,
    csv_text,
    make_rows,
    read_labels,
    read_rows,
)

SIZE = 128


@st.composite
def studies(draw: st.DrawFn) -> Study:
    rng = generator("test study", draw(st.integers(0, 2**32)))
    states = draw(
        st.dictionaries(
            st.sampled_from(sorted(SHAPES)),
            st.sampled_from(["present", "uncertain", "absent"]),
            max_size=6,
        )
    )
    view = draw(st.sampled_from([None, "PA", "AP"]))
    return make_study({n: random_finding(n, rng, s) for n, s in states.items()}, view)


def pair(finding: Finding, patient: int) -> tuple[np.ndarray, np.ndarray]:
    """One patient without and with a finding, otherwise the same picture."""
    anatomy = draw_anatomy(patient)
    plain = render(anatomy, Study((), "PA"), patient, SIZE).astype(float)
    return plain, render(anatomy, Study((finding,), "PA"), patient, SIZE).astype(float)


def test_same_seed_same_image_in_another_process() -> None:
    study = Study((Finding("Edema", severity="mild"),), "AP")
    image = render(draw_anatomy(3), study, 4)
    assert image.dtype == np.uint8
    assert image.shape == (SIZE, SIZE)
    code = (
        "import hashlib; from chexgenbench_plugins.phantom import *;"
        "s = Study((Finding('Edema', severity='mild'),), 'AP');"
        "print(hashlib.sha256(render(draw_anatomy(3), s, 4).tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.sha256(image.tobytes()).hexdigest()


@pytest.mark.parametrize("size", [32, 64, 200])
def test_other_sizes_show_the_same_picture(size: int) -> None:
    big = render(draw_anatomy(1), Study((), "PA"), 2, 256).astype(np.float32)
    small = render(draw_anatomy(1), Study((), "PA"), 2, size).astype(np.float32)
    coarse = [
        np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BOX))
        for image in (big, small)
    ]
    assert np.corrcoef(coarse[0].ravel(), coarse[1].ravel())[0, 1] > 0.95


def test_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="32"):
        render(draw_anatomy(1), Study(), 1, 16)


def test_two_studies_of_a_patient_are_related() -> None:
    same, other = [], []
    for patient in range(12):
        first = render(draw_anatomy(patient), Study((), "PA"), 1000 + patient).astype(float)
        again = render(draw_anatomy(patient), Study((), "PA"), 2000 + patient).astype(float)
        stranger = render(draw_anatomy(patient + 50), Study((), "PA"), 2000 + patient).astype(float)
        assert not np.array_equal(first, again)
        same.append(np.abs(first - again).mean())
        other.append(np.abs(first - stranger).mean())
    assert np.mean(same) < np.mean(other)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("name", "details", "change"),
    [
        ("Pleural Effusion", {"severity": "severe"}, "brighter"),
        ("Consolidation", {"severity": "severe", "zone": "mid"}, "brighter"),
        ("Pneumonia", {"severity": "severe", "zone": "mid"}, "brighter"),
        ("Lung Opacity", {"severity": "severe", "zone": "mid"}, "brighter"),
        ("Lung Lesion", {"severity": "severe", "zone": "mid"}, "brighter"),
        ("Atelectasis", {"severity": "severe"}, "brighter"),
        ("Pleural Other", {"severity": "severe", "kinds": ("thickening",)}, "brighter"),
        ("Pleural Other", {"severity": "severe", "kinds": ("plaque",)}, "brighter"),
        ("Pneumothorax", {"severity": "severe"}, "any"),
        ("Fracture", {"severity": "severe", "zone": "mid"}, "any"),
    ],
)
def test_a_finding_shows_on_its_side(name: str, details: dict, change: str, side: str) -> None:
    """The patient's left is on the right of the image."""
    for patient in range(3):
        plain, ill = pair(Finding(name, side=side, **details), patient)  # type: ignore[arg-type]
        moved = np.clip(ill - plain, 0, None) if change == "brighter" else np.abs(ill - plain)
        image_left, image_right = moved[:, : SIZE // 2].sum(), moved[:, SIZE // 2 :].sum()
        here, there = (image_right, image_left) if side == "left" else (image_left, image_right)
        assert here > 2 * there
        assert moved.max() > 15


def test_effusion_is_low_and_pneumothorax_darkens_the_edge() -> None:
    plain, ill = pair(Finding("Pleural Effusion", side="right", severity="moderate"), 5)
    rows = np.clip(ill - plain, 0, None).sum(1)
    assert rows[SIZE // 2 :].sum() > 5 * rows[: SIZE // 2].sum()
    plain, ill = pair(Finding("Pneumothorax", side="left", severity="severe"), 5)
    assert (ill - plain)[30:60, 64:].min() < -20


@pytest.mark.parametrize(
    "finding",
    [
        Finding("Cardiomegaly", severity="severe"),
        Finding("Enlarged Cardiomediastinum", severity="severe"),
        Finding("Edema", severity="severe"),
        Finding("Support Devices", kinds=("pacemaker", "endotracheal tube")),
    ],
)
def test_a_central_finding_brightens(finding: Finding) -> None:
    plain, ill = pair(finding, 8)
    assert (ill - plain).max() > 30
    assert (ill - plain).mean() > 0.3


def test_severity_and_doubt_change_the_amount() -> None:
    def amount(finding: Finding) -> float:
        plain, ill = pair(finding, 2)
        return float(np.abs(ill - plain).sum())

    grades = [
        amount(Finding("Pleural Effusion", side="left", severity=severity))
        for severity in ("mild", "moderate", "severe")
    ]
    assert grades == sorted(grades)
    doubted = Finding("Pleural Effusion", "uncertain", side="left", severity="severe")
    assert 0 < amount(doubted) < grades[2]


@settings(max_examples=300, deadline=None)
@given(studies(), st.integers(0, 2**32))
def test_a_report_reads_back(study: Study, seed: int) -> None:
    prompt = compose(study, generator("test wording", seed))
    parsed = parse(prompt)
    assert parsed.complete, parsed.unknown
    assert parsed.study == study
    assert parsed.labels == labels_of(study)
    assert set(tokens(prompt)) <= set(vocabulary())
    assert parse(prompt.upper()).study == study


def test_foreign_text_is_said_to_be_foreign() -> None:
    parsed = parse("Small left pleural effusion. The patient likes tea.")
    assert parsed.unknown == ("the patient likes tea.",)
    assert parsed.labels["Pleural Effusion"] == 1.0
    assert not parse("A picture of a cat").complete


@settings(max_examples=60, deadline=None)
@given(studies(), st.integers(0, 2**32))
def test_labels_win_over_the_text(study: Study, seed: int) -> None:
    labels = labels_of(study) | {"Lung Opacity": 1.0, "Edema": None, "No Finding": None}
    mended = reconcile(study, labels, generator("test reconcile", seed))
    assert labels_of(mended) == labels


def test_impossible_findings_are_refused() -> None:
    with pytest.raises(ValueError, match="details"):
        Finding("Pneumothorax", side="bilateral", severity="mild")
    with pytest.raises(ValueError, match="denied"):
        Finding("Edema", "absent", severity="mild")
    with pytest.raises(ValueError, match="drawn"):
        Finding("No Finding")
    with pytest.raises(ValueError, match="order"):
        Study((Finding("Edema", "absent"), Finding("Atelectasis", "absent")))


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_committed_split_is_what_the_code_makes(split: str) -> None:
    committed = (data_folder("demo_split") / FILE_NAMES[split]).read_bytes()  # type: ignore[index]
    assert csv_text(make_rows(split)).encode() == committed  # type: ignore[arg-type]


def test_the_split_is_fit_for_statistics() -> None:
    train, test = (read_rows(data_folder("demo_split") / name) for name in FILE_NAMES.values())
    assert len(train) == 4000
    assert tuple(test[0]) == COLUMNS
    assert len({row["id"] for row in train + test}) == len(train) + len(test)
    assert not {row["patientID"] for row in train} & {row["patientID"] for row in test}
    first: dict[str, dict] = {}
    differing = 0
    for row in test:
        labels = read_labels(row["chexpert_labels"])
        differing += first.setdefault(row["annotated_prompt"], labels) != labels
        assert row["Contains_Uncertainity"] == str(-1.0 in labels.values())
        assert row["chexpert_labels_len"] == str(sum(v is not None for v in labels.values()))
    assert len(first) >= 512
    assert 1 <= differing < len(test) - len(first)
    positives = {f: sum(labels[f] == 1.0 for labels in first.values()) for f in FINDINGS}
    assert min(positives.values()) >= 15
    assert sum(count > 80 for count in positives.values()) >= 4
    assert max(len(tokens(row["annotated_prompt"])) for row in train + test) <= 62


def test_a_row_is_enough_to_draw_its_image() -> None:
    row = read_rows(data_folder("demo_split") / FILE_NAMES["test"])[0]
    wanted = ("id", "patientID", "view", "annotated_prompt", "chexpert_labels")
    assert np.array_equal(render_row(row), render_row({name: row[name] for name in wanted}))
    with pytest.raises(ValueError, match="not a label"):
        read_labels("{'Cat': 1.0}")


def test_images_are_written_once_and_mended(tmp_path: Path) -> None:
    rows = read_rows(data_folder("demo_split") / FILE_NAMES["test"])[:6]
    assert render_images(rows, tmp_path / "images", size=64).written == 6
    first = tmp_path / "images" / rows[0]["path"]
    content = first.read_bytes()
    first.write_bytes(content[: len(content) // 2])
    again = render_images(rows, tmp_path / "images", size=64)
    assert (again.written, again.kept) == (1, 5)
    assert first.read_bytes() == content
    assert not list((tmp_path / "images").rglob("*.tmp"))
    with pytest.raises(ValueError, match="leaves"):
        render_images([rows[0] | {"path": "../outside.png"}], tmp_path / "images")


def test_the_oracle_draws_fresh_patients() -> None:
    prompt = "Large left pleural effusion."
    one, two = (oracle_image(prompt, None, seed).astype(float) for seed in (1, 2))
    assert not np.array_equal(one, two)
    assert np.array_equal(one, oracle_image(prompt, None, 1))
    for image in (one, two):
        assert image[75:95, 70:110].mean() > image[75:95, 18:58].mean() + 20
    labels = dict.fromkeys(FINDINGS) | {"Pleural Effusion": 1.0}
    assert oracle_image("words of another language", labels, 1).shape == (SIZE, SIZE)
