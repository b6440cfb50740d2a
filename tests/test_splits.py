"""CSV files to tables: what is kept, what is refused, and with which line."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from chexgenbench.errors import ChexGenBenchError, UserError
from chexgenbench.splits.csv_file import read_csv
from chexgenbench.splits.labels import decide_uncertain, parse_labels
from chexgenbench.splits.prompts import PUBLISHED_COLUMNS, check_images, read_prompts
from chexgenbench.splits.user_images import read_user_images
from chexgenbench.types import FINDINGS

Row = dict[str, str]


def row(number: int, prompt: str, labels: str = "{'Edema': 1.0}", **changes: str) -> Row:
    return {
        "id": f"s{number}",
        "path": f"{number}.png",
        "annotated_prompt": prompt,
        "chexpert_labels": labels,
        "patientID": f"p{number % 2}",
        "view": "PA",
    } | changes


def write(path: Path, rows: list[Row]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def read(path: Path, **keywords: object):  # type: ignore[no-untyped-def]
    return read_prompts(path, name="t", **keywords)  # type: ignore[arg-type]


def test_duplicates_go_the_first_stays_and_conflicts_are_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.csv",
        [
            row(0, "One.\nTwo lines."),
            row(1, "Another."),
            row(2, "One.\nTwo lines.", "{'Edema': 1}"),
            row(3, "Another.", "{'Edema': -1.0}"),
        ],
    )
    table = read(path)
    assert table.table["prompt_id"].tolist() == ["s0", "s1"]
    assert (table.rows_read, table.duplicates, table.conflicts) == (4, 2, [(4, 7)])
    assert table.table["line"].tolist() == [2, 4]
    assert table.table["copies"].tolist() == [2, 2]
    first = table.limit(1)
    assert (len(first), first.duplicates, first.conflicts) == (1, 1, [])
    assert table.take(np.array([1])).table["prompt_id"].tolist() == ["s1"]
    assert first.fingerprint() != table.fingerprint() == read(path).fingerprint()


def test_uncertain_labels_are_kept_apart_unless_said(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [row(0, "a", "{'Edema': -1.0}"), row(1, "b")])
    positives = {
        policy: read(path, uncertain=policy).subset_mask("Edema").tolist()
        for policy in ("keep", "positive", "negative")
    }
    assert positives == {"keep": [False, True], "positive": [True, True], "negative": [False, True]}
    for policy in ("keep", "positive"):
        table = read(path, uncertain=policy)
        assert table.table["Edema"].tolist() == [-1.0, 1.0]
        assert table.fingerprint() == read(path).fingerprint()
    assert np.isnan(read(path).table["Fracture"]).all()


def test_patients(tmp_path: Path) -> None:
    rows = [row(i, f"prompt {i}", patientID=p) for i, p in enumerate(["x", "", "y", "x", ""])]
    codes = read(write(tmp_path / "t.csv", rows)).patient_codes()
    assert codes is not None
    assert codes[0] == codes[3]
    assert len(set(codes.tolist())) == 4
    nobody = write(tmp_path / "n.csv", [row(0, "a", patientID="")])
    assert read(nobody).patient_codes() is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"id,path,annotated_prompt,chexpert_labels,patientID\n", "header and no rows"),
        (b"id,path,annotated_prompt\na,b,c\n", r"chexpert_labels.*patientID"),
        (b'id,path,annotated_prompt,chexpert_labels,patientID\na,b,"c', "line 2.*unexpected end"),
        (b"id,path,annotated_prompt,chexpert_labels,patientID\na,b,c\n", "line 2: 3 cells"),
        (b"id,path,annotated_prompt,chexpert_labels,patientID\na,b,c,{},p,x\n", "line 2: 6 cells"),
        (b"id,id,annotated_prompt\na,b,c\n", "'id' more than once"),
        (b"id,path\n\xff\xfe,b\n", "line 2 is not UTF-8"),
        (b"id,path\na\0,b\n", "line 2 holds a NUL"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "split.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert "split.csv" in caught.value.message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotated_prompt": "  "}, "line 3: the prompt is empty"),
        ({"chexpert_labels": "[1, 2]"}, "line 3: the labels are not a dictionary"),
        ({"chexpert_labels": ""}, "line 3: the labels are not a dictionary"),
        ({"chexpert_labels": "__import__('os').system('true')"}, "not a dictionary"),
        ({"chexpert_labels": "{'Cat': 1.0}"}, "none of the 14"),
        ({"chexpert_labels": "{'Edema': 2}"}, "none of 1, 0, -1"),
        ({"chexpert_labels": "{'Edema': True}"}, "no number"),
        ({"chexpert_labels": "{" * 3000}, "not a dictionary"),
        ({"chexpert_labels": "{'a': " * 4000}, "23999 characters"),
        ({"id": ""}, "line 3: the id is empty"),
        ({"id": "s0"}, "line 3: the id is that of line 2"),
    ],
)
def test_a_bad_row_is_listed_by_line_without_its_text(
    tmp_path: Path, change: Row, message: str
) -> None:
    path = write(tmp_path / "t.csv", [row(0, "SECRET one"), row(1, "SECRET two") | change])
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert "SECRET" not in f"{caught.value.message} {caught.value.hint}"
    assert caught.value.exit_code == 2


def test_all_bad_rows_are_counted_and_the_first_listed(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [row(i, f"p{i}", "x") for i in range(50)])
    with pytest.raises(UserError, match="50 rows") as caught:
        read(path)
    assert caught.value.message.count("line ") == 20
    assert "30 more" in caught.value.message


def test_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "clinic.csv"
    path.write_text("caption,file\nClear lungs.,a.png\nEffusion.,b.png\n")
    with pytest.raises(UserError, match=r"annotated_prompt.*it has caption, file") as caught:
        read(path)
    assert "--column" in str(caught.value.hint)
    columns = {"prompt": "caption", "path": "file", "labels": "", "patient": "", "id": ""}
    table = read(path, columns=columns)
    assert table.table["prompt_id"].tolist() == ["row-2", "row-3"]
    assert table.subset_mask("overall").sum() == 2
    assert table.subset_mask("Edema").sum() == 0
    with pytest.raises(UserError, match="nothere"):
        read(path, columns=columns | {"view": "nothere"})
    with pytest.raises(UserError, match="prompt"):
        read(path, columns=columns | {"prompt": ""})


def test_a_column_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "chexpert.csv"
    path.write_text(
        "caption,Edema,Pleural Effusion,No Finding,sex\na,1.0,,0,F\nb,-1,0.0,nan,M\nc,,1,,F\n"
    )
    columns = {"prompt": "caption", "path": "", "patient": "", "id": ""}
    table = read(path, columns=columns)
    assert table.labels_from == "columns"
    np.testing.assert_array_equal(table.table["Edema"], [1, -1, np.nan])
    np.testing.assert_array_equal(table.table["Pleural Effusion"], [np.nan, 0, 1])
    assert table.table["Fracture"].isna().all()
    assert list(table.others.columns) == ["sex"]
    # One that is named differently, and the others then do not count.
    path.write_text(path.read_text().replace("Pleural Effusion", "effusion"))
    named = read(path, columns=columns | {"Pleural Effusion": "effusion"})
    np.testing.assert_array_equal(named.table["Pleural Effusion"], [np.nan, 0, 1])
    assert named.table["Edema"].isna().all()
    assert read(path, columns=columns | {"labels": ""}).labels_from == "nowhere"
    with pytest.raises(UserError, match="name one of them"):
        read(path, columns=columns | {"Edema": "Edema", "labels": "sex"})
    with pytest.raises(UserError, match="'oedema'"):
        read(path, columns=columns | {"Edema": "oedema"})
    path.write_text(path.read_text().replace("-1,", "maybe,"))
    with pytest.raises(UserError, match="line 3: the label of Edema is none of 1, 0, -1") as caught:
        read(path, columns=columns)
    assert "maybe" not in caught.value.message


def test_labels_in_json_are_those_of_a_dictionary() -> None:
    json = '{"Edema": 1.0, "Fracture": null, "Pneumonia": -1}'
    np.testing.assert_array_equal(
        parse_labels(json), parse_labels("{'Edema': 1, 'Fracture': None, 'Pneumonia': -1.0}")
    )
    with pytest.raises(ValueError, match="no number"):
        parse_labels('{"Edema": true}')


def test_a_labeller_reads_the_prompts_whatever_the_file_says(tmp_path: Path) -> None:
    def labeller(prompts: Sequence[str]) -> NDArray[np.float64]:
        labels = np.full((len(prompts), 14), np.nan)
        labels[:, FINDINGS.index("Fracture")] = [1.0 if "broken" in p else 0.0 for p in prompts]
        return labels

    path = write(tmp_path / "t.csv", [row(0, "a broken rib"), row(1, "b", "{'Fracture': 1}")])
    table = read(path, labeller=labeller)
    assert table.labels_from == "prompts"
    assert table.table["Fracture"].tolist() == [1.0, 0.0]
    assert table.table["Edema"].isna().all()
    assert table.fingerprint() != read(path).fingerprint()
    with pytest.raises(UserError, match="no use"):
        read(path, labeller=labeller, columns={"labels": "chexpert_labels"})
    for wrong in (np.zeros((1, 14)), np.full((2, 14), 7.0)):
        with pytest.raises(ChexGenBenchError, match="labeller"):
            read(path, labeller=lambda prompts, wrong=wrong: wrong)


def test_images_are_looked_for_inside_their_root_only(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    outside = tmp_path / "secret.png"
    for place in (outside, root / "0.png"):
        Image.new("L", (32, 32)).save(place)
    (root / "link.png").symlink_to(outside)
    (root / "cut.png").write_bytes(b"\x89PNG")
    rows = [
        row(0, "a"),
        row(1, "b"),
        row(2, "c", path="../secret.png"),
        row(3, "d", path=str(outside)),
        row(4, "e", path="link.png"),
        row(5, "f", path="cut.png"),
        row(6, "g", path=""),
    ]
    table = read(write(tmp_path / "t.csv", rows), images_root=root)
    bad = dict(check_images(table))
    assert sorted(bad) == [1, 2, 3, 4]
    assert "missing" in bad[1].message
    assert all("leads out" in bad[i].message for i in (2, 3, 4))
    assert sorted(dict(check_images(table, decode=True))) == [1, 2, 3, 4, 5]


@given(
    st.dictionaries(st.sampled_from(FINDINGS), st.sampled_from([None, 0.0, 1.0, -1.0, 0, 1, -1]))
)
def test_labels_read_back(labels: dict[str, float | None]) -> None:
    values = parse_labels(str(labels))
    for name, value in zip(FINDINGS, values, strict=True):
        expected = labels.get(name)
        assert np.isnan(value) if expected is None else value == expected
    decided = decide_uncertain(values, "negative")
    assert not (decided == -1).any()


@given(st.text(max_size=200))
def test_any_text_is_labels_or_a_value_error(text: str) -> None:
    try:
        assert parse_labels(text).shape == (14,)
    except ValueError as error:
        assert "label" in str(error)


@given(st.lists(st.text(min_size=1).filter(lambda t: t.strip() and "\0" not in t), min_size=1))
def test_cells_of_any_text_come_back_with_their_lines(tmp_path_factory, cells) -> None:  # type: ignore[no-untyped-def]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(["a", "b"])
    lines, at = [], 2
    for cell in cells:
        lines.append(at)
        start = buffer.tell()
        writer.writerow([cell, "x"])
        written = buffer.getvalue()[start:]
        at += written.replace("\r\n", "\n").replace("\r", "\n").count("\n")
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    path.write_bytes(buffer.getvalue().encode("utf-8", "surrogatepass"))
    try:
        table = read_csv(path)
    except UserError as error:
        assert "UTF-8" in error.message
        return
    assert table["a"].tolist() == cells
    assert table["line"].tolist() == lines


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbfa,b\n1,2\n")
    assert list(read_csv(path).columns) == ["a", "b", "line"]


def test_the_published_names() -> None:
    assert set(PUBLISHED_COLUMNS.values()) >= {"annotated_prompt", "chexpert_labels", "patientID"}


def test_own_images_join_by_prompt(tmp_path: Path) -> None:
    prompts = read(write(tmp_path / "t.csv", [row(0, "a"), row(1, "b"), row(2, "a")]))
    folder = tmp_path / "images"
    folder.mkdir()
    info = write(
        tmp_path / "info.csv",
        [
            {"prompt": "b", "img_savename": "1.png"},
            {"prompt": "a", "img_savename": "sub/2.png"},
            {"prompt": "a", "img_savename": "3.png"},
            {"prompt": "unknown", "img_savename": "4.png"},
        ],
    )
    own = read_user_images(info, folder, prompts)
    assert own.rows.tolist() == [1, 0, 0]
    assert (own.unmatched, own.ambiguous, own.repeated) == (1, 2, 1)
    assert own.paths[1] == folder.resolve() / "sub" / "2.png"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a", "img_savename": "../x.png"}], "line 2: img_savename.*leads out"),
        ([{"prompt": "a", "img_savename": "/etc/passwd"}], "leads out"),
        ([{"prompt": "a", "img_savename": ""}], "not a file name"),
        ([{"prompt": " ", "img_savename": "x.png"}], "prompt is empty"),
        ([{"prompt": "zzz", "img_savename": "x.png"}], "None of the 1 prompts"),
        ([{"prompt": "a", "file": "x.png"}], "img_savename"),
    ],
)
def test_own_images_that_do_not_fit(tmp_path: Path, rows: list[Row], message: str) -> None:
    prompts = read(write(tmp_path / "t.csv", [row(0, "a")]))
    with pytest.raises(UserError, match=message):
        read_user_images(write(tmp_path / "info.csv", rows), tmp_path, prompts)


def test_own_images_need_their_folder(tmp_path: Path) -> None:
    prompts = read(write(tmp_path / "t.csv", [row(0, "a")]))
    info = write(tmp_path / "info.csv", [{"prompt": "a", "img_savename": "x.png"}])
    with pytest.raises(UserError, match="does not exist"):
        read_user_images(info, tmp_path / "no", prompts)


def test_any_column_of_the_file_selects_rows(tmp_path: Path) -> None:
    rows = [
        row(0, "a", view="PA", sex="F", Age="61", note=""),
        row(1, "b", "{'Pleural Effusion': 1}", view="AP", sex="M", Age="8", note=""),
        row(2, "c", "{'Pleural Effusion': -1}", view="PA", sex="", Age="70", note=""),
    ]
    table = read(write(tmp_path / "t.csv", rows))
    assert table.select("view = 'PA'").tolist() == [True, False, True]
    assert table.select("Age > 60 and sex = 'F'").tolist() == [True, False, False]
    assert table.select("sex <> 'F'").tolist() == [False, True, False]  # unknown is not chosen
    assert table.select('"Pleural Effusion" = -1 -- a remark').tolist() == [False, False, True]
    assert table.take(np.array([2, 0])).select("Age = 70").tolist() == [True, False]
    assert not table.select("note = 'x'").any()


def test_conditions_over_several_rows_choose_the_right_ones(tmp_path: Path) -> None:
    """A window function makes the database return rows in another order."""
    random = np.random.default_rng(0)
    patients = random.integers(0, 400, 1000)
    rows = [row(i, f"text {i}", patientID=f"p{p}") for i, p in enumerate(patients)]
    table = read(write(tmp_path / "t.csv", rows))
    first = np.zeros(1000, bool)
    first[np.unique(patients, return_index=True)[1]] = True
    one = "row_number() over (partition by patient_id order by line) = 1"
    np.testing.assert_array_equal(table.select(one), first)
    several = np.bincount(patients)[patients] > 3
    np.testing.assert_array_equal(
        table.select("count(*) over (partition by patient_id) > 3"), several
    )
    with pytest.raises(UserError, match="other rows each time"):
        table.select("random() < 0.5")


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("colour = 'red'", "colour"),
        ("view = ", "syntax error"),
        ("count(*) > 1", "cannot be used"),
        ("true); drop table prompts; --", "cannot be used"),
        ("annotated_prompt = 'x'", "annotated_prompt"),
        ("exists (select * from read_text('/etc/passwd'))", "cannot be used"),
    ],
)
def test_a_condition_that_cannot_be_used(tmp_path: Path, condition: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        read(write(tmp_path / "t.csv", [row(0, "a"), row(1, "b")])).select(condition)


def test_a_condition_that_fails_on_a_cell_does_not_quote_it(tmp_path: Path) -> None:
    table = read(write(tmp_path / "t.csv", [row(0, "secret words"), row(1, "b")]))
    with pytest.raises(UserError) as caught:
        table.select("prompt::INTEGER = 1")
    assert "secret" not in f"{caught.value.message} {caught.value.hint}"
