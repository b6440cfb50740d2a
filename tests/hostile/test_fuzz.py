"""Parsers, the store's identifiers and the job protocol, given anything: each returns what it found
or raises `UserError`, and nothing else.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from chexgenbench.cli.run import bytes_of
from chexgenbench.errors import ChexGenBenchError, UserError
from chexgenbench.files import inside, read_json, sha256_file
from chexgenbench.generation.requests import request_id
from chexgenbench.home import Home
from chexgenbench.images import BadImage, read_image, read_png
from chexgenbench.jobs.job import (
    EncodeJob,
    GenerateJob,
    read_facts,
    read_generate_job,
    write_generate_job,
)
from chexgenbench.registry import split_model
from chexgenbench.splits.condition import select_rows
from chexgenbench.splits.csv_file import read_csv
from chexgenbench.splits.labels import parse_label, parse_labels
from chexgenbench.splits.prompts import read_prompts
from chexgenbench.store import questions
from chexgenbench.store.cookbook import saved_query
from chexgenbench.store.run_directory import read_record, read_table
from chexgenbench.store.store import Store
from chexgenbench.types import FINDINGS, Request
from chexgenbench.workflow.needs import safetensors_memory
from chexgenbench.workflow.reference import Reference
from chexgenbench.workflow.shards import look
from chexgenbench.workflow.suite import parse_settings, parse_subsets, read_suite
from hostile.corpus import CONTROLS, HEADER, SUITE, encoded, safetensors
from hostile.corpus import _pixels as pixels
from made_up import make_home

many = settings(
    max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
few = settings(many, max_examples=30)
asked = settings(many, max_examples=8)  # of the store, which is opened each time


def pieces(*parts: str) -> st.SearchStrategy[str]:
    """Texts of these parts, and of a few signs that parsers stumble over."""
    odd = (
        "\0",
        "\r",
        "\n",
        "\t",
        " ",
        "\ufeff",
        "\u202e",
        "\x1b[2J",
        "é",
        "9" * 5000,
        "../",
        "'",
        '"',
    )
    return st.lists(st.sampled_from((*parts, *odd)), max_size=12).map("".join)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(["", "../x", CONTROLS, "a" * 300, "0" * 64, "finished", "cpu"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def spoilt(data: bytes) -> st.SearchStrategy[bytes]:
    """The bytes cut, with some of them changed, or with others put in."""

    def cut(at: int) -> bytes:
        return data[:at]

    def change(where: list[tuple[int, int]]) -> bytes:
        changed = bytearray(data)
        for place, value in where:
            changed[place] = value
        return bytes(changed)

    place = st.integers(0, len(data) - 1)
    return (
        place.map(cut)
        | st.lists(st.tuples(place, st.integers(0, 255)), min_size=1, max_size=8).map(change)
        | st.tuples(place, st.binary(max_size=20)).map(lambda p: data[: p[0]] + p[1] + data[p[0] :])
        | st.binary(max_size=60)
    )


def changed(facts: dict[str, Any]) -> st.SearchStrategy[str]:
    """The JSON of the facts, of which one is another value, gone, or new; or any JSON, or none."""

    def put(name: str, value: Any) -> str:
        return json.dumps(facts | {name: value})

    names = st.sampled_from([*facts, "evil"])
    return (
        st.builds(put, names, values)
        | names.map(lambda name: json.dumps({k: v for k, v in facts.items() if k != name}))
        | values.map(json.dumps)
        | pieces(*json.dumps(facts)[:200])
    )


# --- tables of prompts -------------------------------------------------------------------------

cells = pieces(
    "a", "b,", '""', ",", "\n", "1", "{}", "NA", "nan", "-", "=1", "\u2028", "\x0b", "\x1c", "\x85"
)


@many
@given(
    text=pieces(
        "id,path\n",
        "a,b\n",
        ",",
        '"',
        '""',
        "\r\n",
        '"a\nb",c\n',
        "x",
        "NA",
        "\x0b",
        "\x1c",
        "\x85",
        "\u2028",
    )
)
@example(text="a,b\n\x1c,\n")
@example(text='a\r"b"\r')
@example(text="a,b\r1,2\r")
@example(text="line,b\n1,2\n")
@example(text="a\n \n1\n")
def test_a_table_is_read_as_csv_has_it_or_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode("utf-8"))
    try:
        table = read_csv(path)
    except UserError:
        return
    records = [
        row for row in csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline="")) if row
    ]
    kept = [place for place, name in enumerate(records[0]) if name != "line"]
    read = [list(table.columns[:-1]), *table.iloc[:, :-1].to_numpy().tolist()]
    assert read == [[row[place] for place in kept] for row in records]


@many
@given(data=st.binary(max_size=200) | spoilt((HEADER + "\ns1,a.png,text,{},p,PA\n").encode()))
def test_any_bytes_are_a_table_or_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    with suppress(UserError):
        read_prompts(path, name="t")


@few
@given(
    prompts=st.lists(st.text(min_size=1, max_size=30) | cells, min_size=1, max_size=5, unique=True)
)
def test_prompts_arrive_as_they_were_written(prompts: list[str], tmp_path: Path) -> None:
    assume(all(text.strip() and "\0" not in text for text in prompts))
    path = tmp_path / "a.csv"
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL)
    writer.writerow(HEADER.split(","))
    for number, text in enumerate(prompts):
        writer.writerow([f"s{number}", "", text, "{}", "p", "PA"])
    try:
        path.write_bytes(buffer.getvalue().encode("utf-8"))
    except UnicodeEncodeError:
        assume(False)
    assert read_prompts(path, name="t").table["prompt"].tolist() == prompts


@many
@given(
    text=pieces(
        "{",
        "}",
        "'Edema'",
        '"Edema"',
        ":",
        "1",
        "-1.0",
        "None",
        "null",
        ",",
        "(",
        ")",
        "[",
        "-",
        "1e999",
        "\\x",
        "0x",
        "f'",
        "lambda:",
        "1j",
        "...",
        "set()",
        "\\",
    )
)
@example(text="{'Edema': 1if 1else 0}")
def test_labels_are_labels_or_no_value(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for parse in (parse_labels, parse_label):
            try:
                found = np.atleast_1d(parse(text))
            except ValueError as error:
                assert not text.strip() or text.strip() not in str(error) or len(text) < 12
                continue
            assert found.shape in ((14,), (1,))
            assert np.isin(found[~np.isnan(found)], (1.0, 0.0, -1.0)).all()


# --- the command line and suites ---------------------------------------------------------------


@many
@given(
    text=pieces(
        *SUITE.splitlines(keepends=True),
        "seed = ",
        "1e400",
        "nan",
        "[",
        "]",
        "{",
        "}",
        "=",
        "[parameters.x]\n",
        "[subsets]\n",
        "a = 1\n",
        "1979-05-27",
    )
)
def test_a_suite_is_a_suite_or_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(text.encode("utf-8"))
    try:
        read_suite(str(path), Home(tmp_path), {})
    except UserError as error:
        assert len(error.message) < 20_000


@many
@given(
    text=pieces(
        "steps", "=", ".", "noise", ":", "16", "G", "e", "9" * 400, "T", "B", "i", "view = 'PA'"
    )
)
def test_options_are_read_or_refused(text: str) -> None:
    kinds, plugins = {"noise": "model"}, {"noise": "noise"}
    for parse in (
        bytes_of,
        lambda text: parse_settings([text], kinds, {"noise": {"steps"}}, plugins),
        lambda text: parse_subsets([text]),
    ):
        try:
            parse(text)
        except UserError:
            continue
    label, name, argument = split_model(text)
    assert re.fullmatch(r"[A-Za-z0-9._-]*", label)
    assert (
        f"{f'{label}=' if label else ''}{name}{'' if argument is None else f':{argument}'}" == text
    )


@few
@given(
    text=pieces(
        "view",
        " = ",
        "1",
        "(",
        ")",
        "select ",
        "from prompts",
        "; ",
        "--",
        "/*",
        "true",
        "and ",
        "read_text('/etc/passwd')",
        "copy prompts to 'made'",
        "{}",
        "$1",
        "?",
        "::int",
        "E'\\x00'",
        "struct_pack(a := 1)",
    )
)
def test_a_condition_chooses_rows_or_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas as pd

    monkeypatch.chdir(tmp_path)
    frame = pd.DataFrame({"view": ["PA", None, "AP"]})
    try:
        mask = select_rows(frame, text, "prompts")
    except UserError:
        return
    finally:
        assert not list(tmp_path.iterdir())
    assert mask.shape == (3,)
    assert mask.dtype == np.bool_


# --- names and places --------------------------------------------------------------------------


@many
@given(text=st.text(max_size=20) | pieces("..", "/", "a", "~", "link", "\\", ".", "//"))
@example(text="link/secret")
@example(text="loop/a")
def test_no_path_leads_out_of_its_folder(text: str, tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    if not root.exists():
        root.mkdir()
        out.mkdir()
        (root / "link").symlink_to(out)
        (root / "loop").symlink_to("loop")
    try:
        found = inside(root, text)
    except (ValueError, OSError):
        return
    assert found.is_relative_to(root)
    assert found != root
    assert found == found.resolve()


ids = st.text(max_size=20) | pieces("a", "~1", ".", "..", "/", "-", "s50")


@many
@given(first=ids, second=ids, repeats=st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_ids_of_requests_are_file_names_and_differ(
    first: str, second: str, repeats: tuple[int, int]
) -> None:
    try:
        first.encode(), second.encode()
    except UnicodeEncodeError:
        return
    names = [
        request_id(each, repeat) for each, repeat in zip((first, second), repeats, strict=True)
    ]
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._~-]*", name)
    if (first, repeats[0]) != (second, repeats[1]):
        assert names[0] != names[1]


# --- images ------------------------------------------------------------------------------------

FILES = {
    "PNG": encoded(pixels(), "PNG"),
    "JPEG": encoded(pixels(bands=3), "JPEG"),
    "TIFF": encoded(pixels(), "TIFF", compression="tiff_lzw"),
    "WEBP": encoded(pixels(bands=3), "WEBP"),
    "BMP": encoded(pixels(), "BMP"),
}


@many
@given(data=st.one_of(*map(spoilt, FILES.values())))
def test_a_spoilt_image_is_refused_or_an_image(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)
    try:
        image = read_image(path)
    except BadImage:
        return
    assert image.mode in ("L", "RGB")
    assert min(image.size) >= 16


@many
@given(data=spoilt(FILES["PNG"]))
def test_a_spoilt_png_of_a_worker_is_refused(data: bytes) -> None:
    assume(data != FILES["PNG"])
    with pytest.raises(BadImage):
        read_png(data, "a.png", 10_000)


# --- jobs --------------------------------------------------------------------------------------

GENERATE = GenerateJob(
    context={"home": "/", "cache": "/", "dtype": "float32", "allow_pickle": False},
    model="noise",
    source="",
    parameters={},
    batch_size=2,
    n_requests=1,
)
ENCODE = EncodeJob(context=GENERATE.context, encoders=(), batch_size=1, n_items=0)
REQUEST = Request(id="a", prompt_id="a", prompt="a", seed=1)


def facts(job: Any) -> dict[str, Any]:
    found: dict[str, Any] = job.model_dump(mode="json")
    return found


@many
@given(text=changed(facts(GENERATE)) | changed(facts(ENCODE)))
@example(text="[" * 100_000)
@example(text='{"format": ' + "9" * 5000 + "}")
def test_a_job_is_a_job_or_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_bytes(text.encode("utf-8"))
    with suppress(UserError):
        read_facts(tmp_path).context_on("cpu")


@functools.cache
def _requests(folder: Path) -> bytes:
    write_generate_job(folder, GENERATE, [REQUEST])
    return (folder / "requests.parquet").read_bytes()


@few
@given(data=st.data())
def test_requests_are_requests_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    _requests.cache_clear()
    content = data.draw(spoilt(_requests(tmp_path)))
    (tmp_path / "requests.parquet").write_bytes(content)
    try:
        _, found = read_generate_job(tmp_path)
    except UserError:
        return
    assert [type(each) for each in found] == [Request]


@few
@given(name=ids)
@example(name="../../outside")
@example(name="")
def test_no_request_is_named_after_another_folder(name: str, tmp_path: Path) -> None:
    try:
        write_generate_job(
            tmp_path, GENERATE, [Request(id=name, prompt_id="a", prompt="a", seed=1)]
        )
    except UnicodeEncodeError:
        return
    try:
        _, (found,) = read_generate_job(tmp_path)
    except UserError:
        return
    assert not {"/", "\\", "\0"} & set(found.id)
    assert found.id.strip(".")


PART = {"folder": "a/shard-0001", "batches": [0], "n_images": 1, "files": {}}
ASKED = {
    "model": "a",
    "images": "own",
    "generation": "0",
    "identity": {},
    "n_images": 1,
    "parts": [PART],
}


@many
@given(
    text=changed({"format": 1, "count": 1, "command": "x", "generations": [ASKED]})
    | changed(PART).map(
        lambda part: (
            '{"format": 1, "count": 1, "command": "x", "generations": '
            + json.dumps([ASKED | {"parts": []}]).replace('"parts": []', f'"parts": [{part}]')
            + "}"
        )
    )
)
def test_a_list_of_jobs_is_one_or_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "shards.json").write_bytes(text.encode("utf-8"))
    try:
        shown = look(tmp_path)
    except UserError:
        return
    assert all(isinstance(each.state, str) for each in shown)


# --- the store ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    home = make_home(tmp_path_factory.mktemp("store"), ("a", "b"), 4, privacy=False, utility=False)
    found = Store(home.store)
    before = sha256_file(home.store)
    yield found
    assert sha256_file(home.store) == before  # whatever was asked


names = st.text(max_size=12) | pieces(
    "0000", "%", "_", "' or 1=1", ";", "\\", "fid", "overall", "*"
)


@asked
@given(name=names)
@example(name="")
@example(name="%")
@example(name="0" * 40)
def test_a_run_is_found_by_its_id_alone(name: str, store: Store) -> None:
    known = {"0000" + "0" * 12, "0001" + "0" * 12}
    try:
        assert questions.resolve_run(store, name) in {run for run in known if run.startswith(name)}
    except UserError:
        assert name == "" or sum(run.startswith(name) for run in known) != 1


@asked
@given(name=names)
def test_other_names_are_known_or_refused(name: str, store: Store) -> None:
    asks: tuple[Callable[[], object], ...] = (
        lambda: questions.leaderboard(store, metric=name),
        lambda: questions.leaderboard(store, subset=name),
        lambda: questions.leaderboard(store, suite=name),
        lambda: questions.leaderboard(store, sort=name),
        lambda: questions.show_run(store, name),
        lambda: saved_query(name),
    )
    for ask in asks:
        try:
            ask()
        except UserError:
            continue


@few
@given(
    sql=pieces(
        "select ",
        "* ",
        "from runs",
        "1",
        "drop table runs",
        ";",
        "--",
        "/*",
        "(",
        ")",
        "copy runs to 'made'",
        "attach 'made'",
        "read_csv('/etc/passwd')",
        "pragma ",
        "set threads = 0",
        "$1",
        "?",
        "update runs set model = 'x'",
    )
)
def test_a_question_has_an_answer_or_is_refused(
    sql: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with suppress(UserError):
        store.query(sql)
    assert not list(tmp_path.iterdir())


@few
@given(data=st.data())
def test_a_run_directory_is_one_or_refused(
    data: st.DataObject, store: Store, tmp_path: Path
) -> None:
    theirs = store.path.parent.parent / "runs" / ("0000" + "0" * 12)
    folder = tmp_path / theirs.name
    folder.mkdir(exist_ok=True)
    record = read_record(theirs)
    table = (theirs / "scores.parquet").read_bytes()
    (folder / "run.json").write_text(
        data.draw(changed(read_json(theirs / "run.json"))), encoding="utf-8"
    )
    (folder / "scores.parquet").write_bytes(data.draw(spoilt(table)))
    for read in (lambda: read_record(folder), lambda: read_table(folder, "scores", record)):
        try:
            read()
        except UserError:
            continue


@many
@given(
    data=pieces(
        "{",
        "}",
        '"a"',
        ":",
        '"dtype"',
        '"F32"',
        '"shape"',
        "[",
        "]",
        ",",
        "-1",
        "1e999",
        "4611686018427387904",
        '"data_offsets"',
        '"__metadata__"',
    ).map(safetensors)
    | spoilt(safetensors('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)))
)
def test_the_header_of_weights_is_one_or_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(UserError):
        Reference.open(path)
    with suppress(UserError):
        assert safetensors_memory(path, "float32") >= 0


def test_what_is_fuzzed_can_pass(tmp_path: Path) -> None:
    """The parsers do not refuse everything: each takes what is good."""
    (tmp_path / "a.csv").write_text(HEADER + "\ns1,a.png,text,{},p,PA\n")
    assert len(read_prompts(tmp_path / "a.csv", name="t")) == 1
    (tmp_path / "a.toml").write_text(SUITE)
    assert read_suite(str(tmp_path / "a.toml"), Home(tmp_path), {}).models == ("noise",)
    write_generate_job(tmp_path, GENERATE, [REQUEST])
    assert read_generate_job(tmp_path)[1] == [REQUEST]
    assert read_png(FILES["PNG"], "a.png", 10_000).size == (48, 32)
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
        assert read_image(tmp_path / name).size == (48, 32)
    assert np.isnan(parse_labels("{}")).sum() == len(FINDINGS)
    with pytest.raises(ChexGenBenchError):
        read_json(tmp_path / "none.json")
