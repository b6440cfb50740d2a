"""The split open-i: Open-I's files and Kaggle's, what is left out of them, and what is refused."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from chexgenbench import FINDINGS, Context, SplitSource, UserError
from chexgenbench.splits.prompts import PromptTable, check_images, read_prompts
from chexgenbench.testing import Settings, check_plugin
from chexgenbench_plugins.open_i.reports import Report
from chexgenbench_plugins.open_i.tables import is_test, prompt_of
from chexgenbench_plugins.splits.open_i import OpenI, OpenIParameters
from desk import Desk

IMPRESSIONS = (
    "Small left pleural effusion.",
    "No acute cardiopulmonary abnormality.",
    "Moderate cardiomegaly. No pneumothorax.",
    "Right basilar opacity, XXXX pneumonia.",
)


def xml(
    uid: str,
    impression: str = "Normal chest.",
    findings: str = "The lungs are clear.",
    images: tuple[str, ...] = ("1001", "2001"),
    mesh: tuple[str, ...] = ("normal",),
) -> str:
    pictures = "".join(
        f'<parentImage id="{uid}_IM-0001-{view}"><figureId>F1</figureId>'
        "<caption>PA and lateral</caption></parentImage>"
        for view in images
    )
    terms = "".join(f"<major>{term}</major>" for term in mesh)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<eCitation>\n'
        f'<meta type="rr"/><uId id="{uid}"/>'
        "<licenseURL>http://creativecommons.org/licenses/by-nc-nd/4.0/</licenseURL>"
        "<MedlineCitation><Article><Abstract>"
        '<AbstractText Label="COMPARISON">None.</AbstractText>'
        f'<AbstractText Label="FINDINGS">{findings}</AbstractText>'
        f'<AbstractText Label="IMPRESSION">{impression}</AbstractText>'
        f"</Abstract></Article></MedlineCitation><MeSH>{terms}</MeSH>{pictures}\n</eCitation>"
    )


def draw(path: Path, seed: int) -> None:
    grey = np.random.default_rng(seed).integers(0, 256, (48, 40), np.uint8)
    Image.fromarray(grey).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 reports of two images each, and a table of their views."""
    return collection(tmp_path / "open_i")


def collection(folder: Path, count: int = 40) -> Path:
    (folder / "ecgen-radiology").mkdir(parents=True)
    (folder / "images").mkdir()
    views = ["uid,filename,projection"]
    for number in range(1, count + 1):
        uid = f"CXR{number}"
        text = f"{IMPRESSIONS[number % 4]} Report {number}."
        (folder / "ecgen-radiology" / f"{number}.xml").write_text(xml(uid, text))
        for view, name in (("1001", "Frontal"), ("2001", "Lateral")):
            draw(folder / "images" / f"{uid}_IM-0001-{view}.png", number)
            views.append(f"{number},{number}_IM-0001-{view}.dcm.png,{name}")
    (folder / "indiana_projections.csv").write_text("\n".join(views) + "\n")
    return folder


def source(folder: Path, **values: Any) -> SplitSource:
    home = folder.parent
    context = Context(device="cpu", home=home, cache=home / "cache")
    parameters = OpenIParameters(**{"folder": str(folder), **values})
    return OpenI(parameters, context).source()


def read(found: SplitSource, side: str = "test") -> PromptTable:
    path = found.test if side == "test" else found.train
    assert path is not None
    return read_prompts(path, name="open-i", images_root=found.images_root)


def rows(folder: Path, **values: Any) -> list[dict[str, str]]:
    found = source(folder, **values)
    paths = [path for path in (found.test, found.train) if path is not None]
    return [row for path in paths for row in csv.DictReader(path.open(newline=""))]


# --- what it reads -----------------------------------------------------------------------------


def test_frontal_images_with_prompts_labels_and_patients(folder: Path) -> None:
    found = source(folder)
    sides = read(found).table, read(found, "train").table
    whole = {row["id"]: row for row in rows(folder)}
    assert len(whole) == 40 == len(sides[0]) + len(sides[1])
    assert not set(sides[0]["patient_id"]) & set(sides[1]["patient_id"])
    one = whole["CXR4_IM-0001-1001"]
    assert one["annotated_prompt"] == "Small left pleural effusion. Report 4."
    assert (one["patientID"], one["view"], one["mesh"]) == ("CXR4", "Frontal", "normal")
    table = read(found)
    assert not read_bad(table)
    effusion = table.subset_mask("Pleural Effusion")
    assert [("effusion" in text) for text in table.table["prompt"]] == effusion.tolist()
    pneumonia = [row for row in whole.values() if "pneumonia" in row["annotated_prompt"]]
    assert pneumonia[0]["annotated_prompt"].startswith("Right basilar opacity, pneumonia.")
    assert not found.credentialed
    assert "40" not in found.notes[0]
    assert sum(int(word) for word in found.notes[0].split() if word.isdecimal()) == 40


def read_bad(table: PromptTable) -> list[Any]:
    return check_images(table, decode=True)


def test_sections_views_marks_and_labels(folder: Path) -> None:
    assert len(rows(folder, views="first")) == 40
    every = rows(folder, views="all")
    assert len(every) == 80
    assert {row["view"] for row in every} == {"Frontal", "Lateral"}
    both = {row["annotated_prompt"] for row in rows(folder, prompt="both")}
    assert "The lungs are clear. No acute cardiopulmonary abnormality. Report 1." in both
    assert {r["annotated_prompt"] for r in rows(folder, prompt="findings")} == {
        "The lungs are clear."
    }
    assert any("XXXX" in row["annotated_prompt"] for row in rows(folder, keep_marks=True))
    assert all("1.0" not in row["chexpert_labels"] for row in rows(folder, labels="none"))
    mesh = {row["chexpert_labels"] for row in rows(folder, labels="mesh")}
    assert len(mesh) == 1
    assert "'No Finding': 1.0" in mesh.pop()


def test_the_draw_of_the_test_side_depends_on_nothing_else(folder: Path) -> None:
    first = {row["id"] for row in csv.DictReader(source(folder).test.open(newline=""))}
    (folder / "ecgen-radiology" / "1.xml").unlink()
    again = {row["id"] for row in csv.DictReader(source(folder).test.open(newline=""))}
    assert again == first - {"CXR1_IM-0001-1001"}
    other = {row["id"] for row in csv.DictReader(source(folder, seed=1).test.open(newline=""))}
    assert other != first
    assert source(folder, test=1.0).train is None
    drawn = [is_test(f"CXR{number}", 0.3, 0) for number in range(4000)]
    assert 0.27 < np.mean(drawn) < 0.33


def test_a_second_reading_writes_nothing_and_a_changed_report_does(folder: Path) -> None:
    path = source(folder).test
    before = path.stat().st_mtime_ns
    assert source(folder).test == path
    assert path.stat().st_mtime_ns == before
    (folder / "ecgen-radiology" / "9.xml").write_text(xml("CXR9", "Right pneumothorax."))
    assert source(folder).test != path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Normal chest x-XXXX.", "Normal chest."),
        ("No XXXX effusion.", "No effusion."),
        ("XXXX XXXX. Clear lungs.", "Clear lungs."),
        ("Clear lungs. XXXX, XXXX.", "Clear lungs."),
        ("XXXX", ""),
        ("Xray of the XX chest.", "Xray of the XX chest."),
        ("Dictated XXXX/XXXX, stable.", "Dictated, stable."),
        ("Size is 3.5 cm.", "Size is 3.5 cm."),
    ],
)
def test_what_de_identification_took_out(text: str, expected: str) -> None:
    report = Report("CXR1", "", text, (), ())
    assert prompt_of(report, "impression") == expected
    assert prompt_of(report, "impression", keep_marks=True) == text


def test_a_table_of_views_of_its_own(folder: Path) -> None:
    table = folder.parent / "views.csv.gz"
    lines = ["imageid,tsne-view", "CXR1_IM-0001-2001,PA", "CXR2_IM-0001-1001,L"]
    table.write_bytes(gzip.compress("\n".join(lines).encode()))
    found = rows(folder, projections=str(table), test=1.0)
    assert [row["id"] for row in found] == ["CXR1_IM-0001-2001"]


def test_kaggles_form(tmp_path: Path) -> None:
    folder = tmp_path / "kaggle"
    pictures = folder / "images" / "images_normalized"
    pictures.mkdir(parents=True)
    (folder / "indiana_reports.csv").write_text(
        "uid,MeSH,Problems,image,indication,comparison,findings,impression\n"
        '1,normal,normal,PA,Cough,None.,"Clear, normal lungs.",Normal chest.\n'
        "2,Cardiomegaly/mild;Opacity/lung,Cardiomegaly,PA,,,,Mild cardiomegaly.\n"
    )
    (folder / "indiana_projections.csv").write_text(
        "uid,filename,projection\n"
        "1,1_IM-0001-4001.dcm.png,Frontal\n1,1_IM-0001-3001.dcm.png,Lateral\n"
        "2,2_IM-0652-1001.dcm.png,Frontal\n"
    )
    for name in ("1_IM-0001-4001", "1_IM-0001-3001", "2_IM-0652-1001"):
        draw(pictures / f"{name}.dcm.png", 0)
    found = rows(folder, test=1.0, labels="mesh")
    assert [(row["path"], row["patientID"]) for row in found] == [
        ("1_IM-0001-4001.dcm.png", "CXR1"),
        ("2_IM-0652-1001.dcm.png", "CXR2"),
    ]
    assert "'Cardiomegaly': 1.0" in found[1]["chexpert_labels"]
    assert not read_bad(read(source(folder, test=1.0)))
    with (folder / "indiana_reports.csv").open("a") as file:
        file.write("2,normal,normal,PA,,,,Secret words.\n")
    with pytest.raises(UserError, match="line 4: its uid is that of line 3") as caught:
        source(folder)
    assert "Secret" not in str(caught.value)


# --- what is left out, and said -------------------------------------------------------------


def test_what_is_left_out_is_counted(folder: Path) -> None:
    reports = folder / "ecgen-radiology"
    (reports / "1.xml").write_text(xml("CXR1", images=()))
    (reports / "2.xml").write_text(xml("CXR2", impression="XXXX."))
    (folder / "images" / "CXR3_IM-0001-1001.png").unlink()
    draw(folder / "images" / "CXR99_IM-0001-1001.png", 1)
    (reports / "4.xml").write_text(xml("CXR4", images=("7001",)))
    assert source(folder).notes[1:] == (
        "Open-I: 1 reports without an image are left out.",
        "Open-I: 1 reports without a frontal image are left out.",
        "Open-I: 1 reports have fewer than 2 words to draw and are left out.",
        "Open-I: 1 images that reports name have no file and are left out.",
        "Open-I: 5 image files belong to no report.",
    )
    assert len(rows(folder)) == 36


# --- what is refused ----------------------------------------------------------------------


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'
    '<eCitation><uId id="CXR7"/>&b;</eCitation>'
)
OUTSIDE = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
    '<eCitation><uId id="CXR7"/>&a;</eCitation>'
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<eCitation><uId", "7.xml: line 1 is not XML"),
        ("", "7.xml: line 1 is not XML: no element found"),
        (BOMB, "7.xml: it declares a document type or entities"),
        (OUTSIDE, "7.xml: it declares a document type or entities"),
        ("<html><uId id='a'/></html>", "7.xml: it is no report of the collection"),
        ("<eCitation></eCitation>", "7.xml: it has no id"),
        ("<eCitation><uId id='../x'/></eCitation>", "7.xml: it has no id"),
        ("<eCitation>" + "<a>" * 80, "7.xml: it nests more than 64"),
        (xml("CXR7", "SECRET " * 200_000), "7.xml: it is larger than 1 MiB"),
        (xml("CXR8", "SECRET"), "8.xml: its id is that of 7.xml"),
        (
            xml("CXR7").replace("CXR7_IM-0001-1001", "../../etc/passwd"),
            "7.xml: the id of an image is no file name",
        ),
        (xml("CXR7").replace("CXR7_IM-0001-1001", ".."), "7.xml: the id of an image is no"),
        (
            xml("CXR7").replace("CXR7_IM-0001-1001", "CXR6_IM-0001-1001"),
            "7.xml: an image of it is one of 6.xml",
        ),
    ],
)
def test_a_report_that_cannot_be_used(folder: Path, content: str, message: str) -> None:
    (folder / "ecgen-radiology" / "7.xml").write_text(content)
    with pytest.raises(UserError) as caught:
        source(folder)
    assert message in caught.value.message
    assert "SECRET" not in f"{caught.value.message} {caught.value.hint}"
    assert caught.value.exit_code == 2


def test_all_broken_reports_are_counted_and_the_first_listed(folder: Path) -> None:
    for number in range(1, 31):
        (folder / "ecgen-radiology" / f"{number}.xml").write_text("<")
    with pytest.raises(UserError, match=r"^30 reports") as caught:
        source(folder)
    assert caught.value.message.count("is not XML") == 20
    assert "10 more" in caught.value.message


def test_what_is_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not there") as caught:
        source(tmp_path / "nowhere")
    assert "tar -xzf NLMCXR_reports.tgz" in str(caught.value.hint)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="holds neither"):
        source(empty)
    (empty / "NLMCXR_reports.tgz").touch()
    with pytest.raises(UserError, match=r"NLMCXR_reports\.tgz, which is still packed"):
        source(empty)
    with pytest.raises(UserError, match="There is no image in"):
        source(folder, images=str(empty))
    with pytest.raises(UserError, match="folder of images is not there"):
        source(folder, images=str(tmp_path / "nowhere"))
    draw(empty / "CXR999_IM-0001-1001.png", 0)
    with pytest.raises(UserError, match="No report of the 40 is left"):
        source(folder, images=str(empty))
    (folder / "indiana_projections.csv").unlink()
    with pytest.raises(UserError, match="Nothing says which images are frontal") as caught:
        source(folder)
    assert "open-i.views=first" in str(caught.value.hint)
    assert len(rows(folder, views="first")) == 40


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("views.csv", b"a,b\n1,2\n", "is no table of views: it has a, b"),
        ("views.csv", b"filename,projection\nx.png,Upside down\n", "line 2: projection is neither"),
        ("views.csv", b"filename,projection\nx.png\n", "line 2: 1 cells, the header has 2"),
        ("views.csv", b"\xff\xfe", "no CSV file in UTF-8"),
        ("views.csv.gz", b"no gzip", "cannot be read"),
        ("views.csv.gz", gzip.compress(b"0" * (1 << 26) + b"0"), "unpacks to more than 64 MiB"),
        ("views.csv", None, "does not exist"),
    ],
)
def test_a_table_of_views_that_cannot_be_used(
    folder: Path, name: str, content: bytes | None, message: str
) -> None:
    path = folder.parent / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        source(folder, projections=str(path))


def test_an_image_that_is_a_link_to_elsewhere_is_not_read(folder: Path) -> None:
    secret = folder.parent / "secret.png"
    draw(secret, 0)
    for path in (folder / "images").glob("*1001.png"):
        path.unlink()
        path.symlink_to(secret)
    table = read(source(folder))
    assert [str(fault) for _, fault in read_bad(table)]
    assert len(read_bad(table)) == len(table)


def test_the_contract_of_splits(folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    settings = Settings(values={"folder": str(folder)}, home=home, cache=tmp_path / "cache")
    found = check_plugin("open-i", settings, kind="split")
    assert not [f"{each.check}: {each.detail}" for each in found if each.status == "failed"]
    assert sum(each.status == "passed" for each in found) >= 4


# --- the command ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_on_the_collection(desk: Desk) -> None:
    collection(desk.home / "open_i", 80)
    checked = desk.run("splits", "validate", "open-i")
    assert "finding                     present" in checked.out
    assert max(map(len, checked.out.splitlines())) <= 80
    told = json.loads(desk.run("splits", "validate", "open-i", "--json").out)
    assert told["split"] == "open-i"
    counts = told["sides"]["test"]["labels"]
    assert list(counts) == list(FINDINGS)
    assert counts["Pleural Effusion"]["present"] > 0
    options = ("--split", "open-i", "--model", "noise", "--metric", "fid", "--metric", "kid")
    done = desk.run("run", *options, "--limit", 12)
    assert "Open-I: " in done.out + done.err
    runs = desk.rows("select split, credentialed, n_prompts from runs")
    assert runs == [{"split": "open-i", "credentialed": "false", "n_prompts": "12"}]
    (score,) = desk.rows(
        "select value, n_real from leaderboard where metric = 'fid' and subset = 'overall'"
    )
    assert float(score["value"]) > 0
    assert score["n_real"] == "12"
    page = (desk.home / "Results" / "report.html").read_text()
    assert "Small left pleural effusion" in page
    missing = desk.run("run", *options, "--set", "open-i.folder=nowhere", code=2)
    assert "docs/open_i.md" in missing.err


@pytest.mark.slow
def test_a_csv_file_of_any_kind(desk: Desk) -> None:
    (desk.home / "pictures").mkdir()
    lines = ["caption,file,who,Pleural Effusion,Edema"]
    for number in range(12):
        draw(desk.home / "pictures" / f"{number}.png", number)
        text = "Left effusion" if number % 2 else "Clear lungs"
        lines.append(f"{text} {number}.,{number}.png,p{number // 2},{number % 2},")
    table = desk.home / "mine.csv"
    table.write_text("\n".join(lines) + "\n")
    options = ["--images-root", "pictures"]
    for role in ("prompt=caption", "path=file", "patient=who", "id="):
        options += ["--column", role]
    checked = desk.run("splits", "validate", table, *options)
    assert "12 rows, 12 prompts" in checked.out
    assert "labels from a column a finding" in checked.out
    assert "6 patients" in checked.out
    run = ("run", "--split", table, "--model", "noise", "--metric", "fid", *options)
    desk.run(*run)
    found = "select run_id, credentialed from runs order by created_at"
    assert [row["credentialed"] for row in desk.rows(found)] == ["true"]
    page = desk.home / "Results" / "report.html"
    assert "Clear lungs" not in page.read_text()
    desk.run(*run, "--set", "csv.credentialed=false")
    assert [row["credentialed"] for row in desk.rows(found)] == ["true", "false"]
    assert "Clear lungs" in page.read_text()
    # Labels read off the prompts, and none at all.
    rules = json.loads(
        desk.run("splits", "validate", table, *options, "--set", "csv.labels=rules", "--json").out
    )
    side = rules["sides"]["test"]
    assert side["labels_from"] == "prompts"
    assert side["labels"]["Pleural Effusion"]["present"] == 6
    assert side["labels"]["No Finding"]["present"] == 6
    none = desk.run("splits", "validate", table, *options, "--column", "labels=")
    assert "no score of a single finding" in none.out
    desk.run(*run, "--column", "labels=", "--new")
    scores = desk.rows(
        "select scores.status, scores.reason from scores join runs using (run_id) "
        "where subset = 'Edema' and metric = 'fid' order by runs.created_at desc limit 1"
    )
    assert scores[0]["status"] != "ok"
    assert scores[0]["reason"]
