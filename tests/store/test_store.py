"""The store on real DuckDB files."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from chexgenbench.cli.shell import Shell, _found
from chexgenbench.errors import UserError
from chexgenbench.files import file_lock, sign
from chexgenbench.store import exports, questions
from chexgenbench.store import store as store_module
from chexgenbench.store.cookbook import saved_queries, saved_query
from chexgenbench.store.export_csv import OWN_COLUMNS, PUBLISHED_COLUMNS, export_run
from chexgenbench.store.records import (
    ADDED,
    RECORD_VERSION,
    RUN_TABLES,
    SCHEMAS,
    RunRecord,
    conform,
)
from chexgenbench.store.render import render
from chexgenbench.store.run_directory import (
    read_record,
    read_table,
    run_folders,
    write_record,
    write_run,
)
from chexgenbench.store.schema import SCHEMA_VERSION, TABLES, VIEWS
from chexgenbench.store.store import Store
from chexgenbench.types import FINDINGS
from desk import SCRIPT, Desk


def record(run_id: str, model: str = "oracle", minute: int = 0, **changes: object) -> RunRecord:
    values: dict[str, object] = {
        "run_id": run_id,
        "suite": "demo",
        "model": model,
        "split": "demo",
        "protocol": "current",
        "seed": 7,
        "status": "finished",
        "generation_id": "g",
        "model_parameters": {"b": 1, "a": [0.5]},
        "n_prompts": 1,
        "n_images": 1,
        "created_at": f"2026-01-01T00:{minute:02d}:00+00:00",
        "finished_at": f"2026-01-01T01:{minute:02d}:00Z",
        "weights": {"unet": "abc"},
    }
    return RunRecord.model_validate(values | changes)


def tables(run: RunRecord, fid: float = 1 / 3) -> dict[str, pd.DataFrame]:
    scores = [
        {
            "run_id": run.run_id,
            "model": run.model,
            "suite": run.suite,
            "metric": metric,
            "plugin": metric,
            "encoder": encoder,
            "subset": subset,
            "value": None if subset == "Fracture" else fid,
            "standard_error": 0.01,
            "ci_low": fid - 0.02,
            "ci_high": fid + 0.02,
            "n_real": 0 if metric == "alignment" else 5,
            "n_fake": 5,
            "higher_is_better": metric not in ("fid", "kid"),
            "status": "skipped" if subset == "Fracture" else "ok",
            "reason": "too few" if subset == "Fracture" else None,
            "warning": None,
            "warning_level": 0,
            "floor": 0.1,
            "matched": 0.3,
            "excess": 0.2,
            "excess_low": 0.1,
            "excess_high": 0.3,
            "n_floor": 2,
            "encoder_id": "e",
            "basis": f"b {metric} {encoder} {subset}",
            "protocol": run.protocol,
            "seed": run.seed,
            "extra_info": run.extra_info,
            "created_at": run.created_at,
        }
        for metric, encoder in (
            ("fid", "inception-v3"),
            ("fid", "rad-dino"),
            ("fid", "phantom-clip"),
            ("coverage", "rad-dino"),
            ("alignment", "phantom-clip"),
        )
        for subset in ("overall", *FINDINGS)
    ]
    prompt = dict.fromkeys(SCHEMAS["prompts"].names)
    prompt |= {"run_id": run.run_id, "split": "demo", "prompt_id": "p", "prompt": "x", "Edema": 1.0}
    image = dict.fromkeys(SCHEMAS["images"].names)
    image |= {
        "run_id": run.run_id,
        "image_id": "i",
        "prompt_id": "p",
        "seed": 2**63 - 1,
        "batch": 0,
        "call": 4,
        "flags": ["black"],
        "status": "ok",
    }
    sample = {
        "run_id": run.run_id,
        "image_id": "i",
        "prompt_id": "p",
        "metric": "alignment",
        "encoder": "phantom-clip",
        "value": float("nan"),
    }
    pool_prompt = dict.fromkeys(SCHEMAS["pool_prompts"].names)
    pool_prompt |= {"run_id": run.run_id, "side": "training", "prompt_id": "p", "prompt": "x"}
    pool_image = dict.fromkeys(SCHEMAS["pool_images"].names)
    pool_image |= {
        "run_id": run.run_id,
        "pool": "training-1x1",
        "side": "training",
        "image_id": "training-1x1/p",
        "prompt_id": "p",
        "flags": ["black"],
    }
    neighbour = dict.fromkeys(SCHEMAS["neighbours"].names)
    neighbour |= {
        "run_id": run.run_id,
        "plugin": "memorisation",
        "encoder": "",
        "kind": "nearest_training",
        "rank": 1,
        "flagged": True,
    }
    return {
        "pool_prompts": pd.DataFrame([pool_prompt]),
        "pool_images": pd.DataFrame([pool_image]),
        "neighbours": pd.DataFrame([neighbour]),
        "scores": pd.DataFrame(scores),
        "prompts": pd.DataFrame([prompt]),
        "images": pd.DataFrame([image]),
        "sample_scores": pd.DataFrame([sample]),
        "differences": RUN_TABLES["differences"].empty_table(),
        "influences": RUN_TABLES["influences"].empty_table(),
    }


def make(runs: Path, run_id: str, model: str = "oracle", minute: int = 0, fid: float = 1 / 3):
    run = record(run_id, model, minute)
    write_run(runs / run_id, run, tables(run, fid))
    return runs / run_id


def content(store: Store) -> dict[str, list[dict[str, object]]]:
    return {
        name: store.query(f"SELECT * FROM {name} ORDER BY ALL").to_pylist()
        for name in TABLES
        if name != "schema_info"
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "Results" / "chexgenbench.duckdb")
    runs = tmp_path / "runs"
    store.ingest([make(runs, "aa-1"), make(runs, "ab-2", "noise", 1, 2.5)])
    return store


_VALUES = st.one_of(st.none(), st.text(max_size=2))


@given(
    rows=st.lists(st.tuples(_VALUES, _VALUES, st.integers(-2, 2)), max_size=12),
    cut=st.integers(0, 12),
)
def test_a_row_that_is_there_twice_is_found(
    rows: list[tuple[str | None, str | None, int]], cut: int
) -> None:
    kinds = pa.schema([("a", pa.string()), ("b", pa.string()), ("c", pa.int64())])
    plain = [dict(zip(kinds.names, row, strict=True)) for row in rows]
    table = pa.Table.from_pylist(plain, schema=kinds)
    chunks = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    assert store_module._repeats(chunks) == (len(set(rows)) < len(rows))


def test_a_row_that_is_there_twice_is_found_among_more_keys_than_an_integer_counts() -> None:
    # Of 2**80 rows that could be: as one number of 64 bits the last would be the first.
    columns = {name: [*range(2**16), 0] for name in "abcde"}
    columns["a"][-1] = 1
    table = pa.table(columns)
    assert not store_module._repeats(table)
    assert store_module._repeats(pa.concat_tables([table, table.slice(2**16)]))


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMAS)
def test_rows_that_repeat_a_key_are_refused(store: Store, tmp_path: Path, name: str) -> None:
    """There is no index that would refuse them."""
    before = content(store)
    folder = make(tmp_path / "runs", "twice")
    run = read_record(folder)
    table = read_table(folder, name, run)
    if not table.num_rows:
        row = {"run_id": "twice", **{key: "a" for key in TABLES[name].key[1:] if key != "rank"}}
        row |= {"rank": 1, "line": 1, "value": 0.5, "seed": 1, "repeat": 0}
        table = _filled(name, row)
    write_run(folder, run, {name: pa.concat_tables([table, table.slice(0, 1)])})
    key = ", ".join(TABLES[name].key)
    with pytest.raises(UserError, match=f"{name}.parquet has rows that repeat {key}"):
        store.ingest([folder])
    assert content(store) == before
    write_run(folder, run, {name: table})
    assert store.ingest([folder]) == ["twice"] and "twice" in store.run_ids()


def _filled(name: str, row: Mapping[str, object]) -> pa.Table:
    """A row of that table, with something in each column that must have it."""
    kinds = {column: kind for column, kind, _ in TABLES[name].columns}
    plain = {"VARCHAR": "a", "BOOLEAN": False, "VARCHAR[]": []}
    values = {}
    for field in SCHEMAS[name]:
        kind = kinds[field.name].removesuffix(" NOT NULL")
        least = plain.get(kind, 0) if kind != kinds[field.name] else None
        value = row.get(field.name, least)
        values[field.name] = str(value) if kind == "VARCHAR" and value is not None else value
    return pa.Table.from_pylist([values], schema=SCHEMAS[name])


def test_ingest_is_idempotent_and_rebuild_gives_the_same(store: Store, tmp_path: Path) -> None:
    before = content(store)
    assert len(before["runs"]) == 2 and len(before["scores"]) == 2 * 5 * 15
    assert before["images"][0]["seed"] == 2**63 - 1
    assert before["sample_scores"][0]["value"] is None
    assert len(before["models"]) == 2
    store.ingest(run_folders(tmp_path / "runs"))
    assert content(store) == before
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text("{")
    store.path.write_bytes(b"rubbish" * 1000)
    result = store.rebuild(tmp_path / "runs")
    assert result.run_ids == ["aa-1", "ab-2"] and len(result.skipped) == 1
    assert content(store) == before
    store.delete(["aa-1"])
    after = content(store)
    assert {row["run_id"] for row in after["scores"]} == {"ab-2"}
    assert [row["model"] for row in after["models"]] == ["noise"]
    assert sorted(p.name for p in store.path.parent.iterdir() if p.name.startswith(".tmp")) == []


def test_a_run_that_is_under_way_needs_no_tables(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "ac-3"
    write_record(folder, record("ac-3", minute=9, status="running", finished_at=None))
    store.ingest([folder])
    assert (
        store.query("SELECT count(*) AS n FROM leaderboard WHERE run_id = 'ac-3'")[0][0].as_py()
        == 0
    )
    write_record(folder, record("ac-3"))
    with pytest.raises(UserError, match=r"parquet is missing"):
        store.ingest([folder])


def test_latest_run_leads(store: Store, tmp_path: Path) -> None:
    store.ingest([make(tmp_path / "runs", "zz-9", "noise", 30, 9.0)])
    rows = questions.leaderboard(store, metric="fid").to_pylist()
    assert [r["run_id"] for r in rows if r["encoder"] == "rad-dino"] == ["aa-1", "zz-9"]
    rows = questions.leaderboard(store, metric="coverage").to_pylist()
    assert [r["model"] for r in rows] == ["noise", "oracle"]
    rows = questions.leaderboard(store, metric="fid", sort="-value", suite="demo").to_pylist()
    assert rows[0]["model"] == "noise"
    best = store.query("SELECT model FROM best WHERE metric='fid' AND subset='overall'")
    assert set(best.column(0).to_pylist()) == {"oracle"}
    for bad in ({"metric": "fdi"}, {"subset": "Edma"}, {"sort": "x; drop table runs"}):
        with pytest.raises(UserError):
            questions.leaderboard(store, **bad)


def test_a_later_version_that_is_worse_is_found(store: Store, tmp_path: Path) -> None:
    """By a saved query: the same name with other weights, and scores on the same basis."""
    sql = saved_query("versions").sql
    assert store.query(sql).num_rows == 0
    runs = tmp_path / "runs"
    later = record("ad-4", minute=5, weights={"unet": "def"})
    write_run(runs / "ad-4", later, tables(later, fid=0.5))
    store.ingest([runs / "ad-4"])
    found = store.query(sql).to_pylist()
    assert {(row["metric"], row["subset"]) for row in found} == {
        ("fid", subset) for subset in ("overall", *FINDINGS) if subset != "Fracture"
    }
    assert all(row["model"] == "oracle" and row["difference"] > 0 for row in found)
    # Higher is better for the others, so that they got better.
    again = record("ae-5", minute=6, weights={"unet": "def"}, seed=8)
    write_run(runs / "ae-5", again, tables(again, fid=0.4))
    store.ingest([runs / "ae-5"])
    assert {row["value_b"] for row in store.query(sql).to_pylist()} == {0.5, 0.4}


def test_prompts_that_fail_in_all_models(store: Store, tmp_path: Path) -> None:
    """By a saved query: of 40 prompts one is among the worst of both models, one of one only."""
    runs = tmp_path / "runs"
    for run_id, model, low in (("ba-1", "oracle", ("p3", "p9")), ("bb-2", "noise", ("p3", "p5"))):
        run = record(run_id, model, minute=9)
        made = tables(run)
        base = made["sample_scores"].iloc[0].to_dict()
        made["sample_scores"] = pd.DataFrame(
            [
                base | {"image_id": f"i{n}", "prompt_id": f"p{n}", "value": value}
                for n in range(40)
                for value in [-1.0 if f"p{n}" in low else n / 40]
            ]
        )
        write_run(runs / run_id, run, made)
    store.ingest([runs / "ba-1", runs / "bb-2"])
    found = store.query(saved_query("failing-prompts").sql).to_pylist()
    # p0 and p1 are among the lowest four of both; p9 and p5 are so in one.
    assert [row["prompt_id"] for row in found] == ["p3", "p0", "p1"]
    assert found[0]["images"] == 2 and found[0]["alignment"] == -1.0


def test_every_saved_query_is_one_statement_with_a_question() -> None:
    assert len(saved_queries()) >= 15
    for each in saved_queries().values():
        assert each.question.endswith("?")
        assert len(duckdb.extract_statements(each.sql)) == 1
        assert ";" not in each.sql
    with pytest.raises(UserError, match="no saved query named 'rank'"):
        saved_query("rank")


@pytest.mark.slow
def test_a_statement_comes_from_an_argument_a_file_a_pipe_or_the_cookbook(
    store: Store, tmp_path: Path
) -> None:
    desk = Desk(tmp_path, tmp_path / "cache")
    sql = "-- Which?\nselect run_id from runs order by 1"
    (tmp_path / "mine.sql").write_text(sql)
    expected = "run_id\naa-1\nab-2\n"
    assert desk.run("query", "--file", "mine.sql", "-f", "csv").out == expected
    command = [str(SCRIPT), "query", "--file", "-", "-f", "csv"]
    piped = subprocess.run(
        command, input=sql, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert piped.stdout == expected
    desk.run("query", "--file", "mine.sql", "--out", "mine.csv")
    assert (tmp_path / "mine.csv").read_text() == expected
    desk.run("query", "--file", "mine.sql", "--out", "mine.parquet")
    assert pd.read_parquet(tmp_path / "mine.parquet")["run_id"].tolist() == ["aa-1", "ab-2"]
    assert "oracle" in desk.run("query", "--saved", "ranks").out
    shown = desk.run("queries", "show", "ranks").out
    (tmp_path / "ranks.sql").write_text(shown)
    assert "oracle" in desk.run("query", "--file", "ranks.sql").out
    assert len(json.loads(desk.run("queries", "list", "-f", "json").out)) == len(saved_queries())
    for wrong, message in (
        ((), "Give one statement, --file or --saved"),
        (("select 1", "--saved", "ranks"), "Give one statement, --file or --saved"),
        (("--file", "none.sql"), "none.sql cannot be read: No such file or directory"),
        (("--saved", "rank"), "There is no saved query named 'rank'"),
    ):
        assert message in desk.run("query", *wrong, code=2).err


def test_a_shell_on_a_copy(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB's own, which cannot write there; what it does is done to a copy."""
    home = store.path.parent.parent
    before = store.path.read_bytes()

    def shell(sql: str) -> subprocess.CompletedProcess[str]:
        command = [str(SCRIPT), "sql", "--shell", "duckdb", "--home", str(home)]
        return subprocess.run(command, input=sql, capture_output=True, text=True)

    done = shell(".mode csv\nselect model from runs order by 1;\n")
    assert done.stdout.split() == ["model", "noise", "oracle"]
    done = shell("delete from runs;\n")
    assert done.returncode and "read-only" in done.stderr
    assert store.path.read_bytes() == before
    monkeypatch.setattr("sysconfig.get_path", lambda _name: str(home))
    monkeypatch.setenv("PATH", str(home))
    for wanted in (None, Shell.harlequin):
        with pytest.raises(UserError, match=r"There is no .*harlequin") as error:
            _found(wanted)
        assert "pip install duckdb-cli" in str(error.value.hint)


@pytest.mark.slow
def test_runs_of_another_project_are_merged(store: Store, tmp_path: Path) -> None:
    other = tmp_path / "other"
    runs = other / "runs"
    make(runs, "aa-1", minute=4)  # the same, at another time
    make(runs, "ab-2", "noise", 1, 2.25)  # the same run with other scores
    make(runs, "ac-3", "half", 3)
    write_record(runs / "ad-4", record("ad-4", status="running", finished_at=None))
    make(runs, "ae-5")
    (runs / "ae-5" / "scores.parquet").write_bytes(b"rubbish")
    make(runs, "af-6")
    (runs / "af-6" / "images.parquet").unlink()
    (runs / "af-6" / "images.parquet").symlink_to(runs / "ac-3" / "images.parquet")
    desk = Desk(tmp_path, tmp_path / "cache")
    before = content(store)
    for taken, there in ((1, 1), (0, 2)):
        done = desk.run("store", "merge", other, code=1)
        assert f"{taken} runs taken in, {there} were here" in done.out
        (conflict,) = [line for line in done.err.splitlines() if line.startswith("Conflict")]
        assert conflict.startswith("Conflict: ab-2: 75 scores differ, such as ")
        assert conflict.endswith("(value 2.5 here, 2.25 there)")
        left = {line.split(": ")[1] for line in done.err.splitlines() if "Left out" in line}
        assert left == {"ad-4", "ae-5", "af-6"}
        after = content(store)
        for name, rows in after.items():
            mine = [
                row for row in rows if row.get("run_id") != "ac-3" and row.get("model") != "half"
            ]
            assert mine == [row for row in before[name] if row.get("model") != "half"]
        assert {row["run_id"] for row in after["scores"]} == {"aa-1", "ab-2", "ac-3"}
    rebuilt = Store(tmp_path / "again.duckdb")
    rebuilt.rebuild(tmp_path / "runs")
    assert content(rebuilt) == after
    (tmp_path / "empty").mkdir()
    assert "holds no runs" in desk.run("store", "merge", "empty", code=2).err
    assert "is this project" in desk.run("store", "merge", ".", code=2).err


def test_a_table_for_latex(store: Store) -> None:
    text = exports.latex(store, metrics=["fid", "alignment"])
    lines = text.splitlines()
    head = next(line for line in lines if line.startswith("Model"))
    assert head.count("&") == 4  # fid on three encoders, and alignment
    assert r"fid (inception-v3) $\downarrow$" in head
    assert r"alignment (phantom-clip) $\uparrow$" in head
    oracle, noise = (
        next(line for line in lines if line.startswith(name)) for name in ("oracle", "noise")
    )
    # Bold where a model is the best beyond chance, and nowhere where none is.
    assert r"\textbf{0.333} {\scriptsize [0.313, 0.353]}" in oracle
    assert r"2.500 {\scriptsize [2.480, 2.520]}" in noise
    assert all(line.endswith(r" \\") for line in (head, oracle, noise))
    assert lines[-1] == r"\end{tabular}"
    with pytest.raises(UserError, match="no metric named 'fids'"):
        exports.latex(store, metrics=["fids"])
    with pytest.raises(UserError, match="no scores of Fracture"):
        exports.latex(store, subset="Fracture")


def test_small_numbers_are_scaled_and_names_are_escaped(store: Store, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run = record("ca-1", "half_50%", 9)
    made = tables(run)
    made["scores"][["value", "ci_low", "ci_high"]] = [-1.4e-5, -4.1e-5, 1.3e-5]
    write_run(runs / "ca-1", run, made)
    fresh = Store(tmp_path / "other.duckdb")
    fresh.ingest([runs / "ca-1"])
    text = exports.latex(fresh, metrics=["fid"])
    assert r"half\_50\% & -1.4 {\scriptsize [-4.1, 1.3]}" in text
    assert r"$\times 10^{-5}$" in text


def test_a_model_card_has_the_scores(store: Store) -> None:
    from huggingface_hub.repocard_data import model_index_to_eval_results

    block = yaml.safe_load(exports.model_index(store, "oracle"))
    name, results = model_index_to_eval_results(block["model-index"])
    assert name == "oracle"
    fid = next(r for r in results if r.metric_name == "fid (rad-dino)")
    assert fid.metric_value == 1 / 3
    assert fid.metric_args["interval_95"] == [1 / 3 - 0.02, 1 / 3 + 0.02]
    assert fid.task_type == "text-to-image"
    with pytest.raises(UserError, match="no model named 'oracl'"):
        exports.model_index(store, "oracl")


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_every_table_as_a_file(store: Store, tmp_path: Path, kind: Any) -> None:
    secret = record("cb-2", "mine", 7, credentialed=True, images_root="/data/mimic")
    write_run(tmp_path / "runs" / "cb-2", secret, tables(secret))
    store.ingest([tmp_path / "runs" / "cb-2"])
    for include in (False, True):
        folder = tmp_path / f"out-{include}"
        counts = exports.write_tables(store, folder, kind, include_credentialed=include)
        read = pd.read_parquet if kind == "parquet" else pd.read_csv
        found = {
            path.stem: read(path) for path in folder.glob(f"*.{kind}") if path.stem != "columns"
        }
        assert {name: len(frame) for name, frame in found.items()} == counts
        assert counts["scores"] == 3 * 5 * 15 and counts["leaderboard"] == 3 * 5 * 15
        prompts = found["prompts"].set_index("run_id")["prompt"]
        assert prompts["aa-1"] == "x"
        assert pd.isna(prompts["cb-2"]) != include
        roots = found["runs"].set_index("run_id")["images_root"]
        assert pd.isna(roots["cb-2"]) != include
        columns = pd.read_csv(folder / "columns.csv")
        assert set(columns["table_name"]) == set(found)
        with pytest.raises(UserError, match="is not empty"):
            exports.write_tables(store, folder, kind)


class Hub(BaseHTTPRequestHandler):
    """As much of a Hugging Face hub as a commit needs; `sent` is what it was given."""

    sent: ClassVar[dict[str, Any]] = {}

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        base = f"http://127.0.0.1:{self.server.server_address[1]}"
        if self.headers.get("Authorization") != "Bearer secret":
            self.answer({"error": "Invalid credentials"}, 401)
        elif self.path == "/api/repos/create":
            self.sent["made"] = json.loads(body)
            self.answer({"url": f"{base}/datasets/lab/results", "id": "1"})
        elif "/preupload/" in self.path:
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif "/commit/" in self.path:
            lines = [json.loads(line)["value"] for line in body.splitlines()]
            self.sent["files"] = {
                each["path"]: base64.b64decode(each["content"]) for each in lines[1:]
            }
            url = f"{base}/datasets/lab/results/commit/abc"
            self.answer({"commitUrl": url, "commitOid": "abc", "success": True})
        else:
            self.answer({"files": []})

    def answer(self, value: object, code: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_arguments: object) -> None: ...


@pytest.mark.slow
def test_results_are_sent_to_a_hub(store: Store, tmp_path: Path) -> None:
    secret = record("cb-2", "my|<b>", 7, credentialed=True)
    write_run(tmp_path / "runs" / "cb-2", secret, tables(secret))
    store.ingest([tmp_path / "runs" / "cb-2"])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    desk = Desk(tmp_path, tmp_path / "cache")
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", "HF_HUB_OFFLINE": "0"}
    try:
        shown = desk.run("export", "push", "lab/results", **hub, HF_TOKEN="secret").out
        assert "data/scores.parquet" in shown and "Nothing was sent" in shown
        assert not Hub.sent
        refused = desk.run("export", "push", "lab/results", "--yes", code=2, **hub, HF_TOKEN="no")
        assert "The hub refuses lab/results" in refused.err and "HF_TOKEN" in refused.err
        done = desk.run("export", "push", "lab/results", "--yes", **hub, HF_TOKEN="secret")
        assert done.out.strip().endswith("/datasets/lab/results/commit/abc")
        wrong = desk.run("export", "push", "a b", "--yes", code=2, **hub, HF_TOKEN="secret")
        assert "no name of a repository" in wrong.err
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert Hub.sent["made"]["type"] == "dataset"
    assert Hub.sent["made"]["visibility"] == "private"
    sent = Hub.sent["files"]
    scores = pd.read_parquet(io.BytesIO(sent["data/scores.parquet"]))
    assert len(scores) == 3 * 5 * 15
    prompts = pd.read_parquet(io.BytesIO(sent["data/prompts.parquet"])).set_index("run_id")
    assert prompts["prompt"]["aa-1"] == "x" and pd.isna(prompts["prompt"]["cb-2"])
    card = sent["README.md"].decode()
    assert r"| my\|&lt;b&gt; | 0.3333 | 0.3133 to 0.3533 |" in card
    assert yaml.safe_load(card.split("---")[1])["configs"][0]["config_name"] == "leaderboard"
    gone = desk.run("export", "push", "lab/results", "--yes", code=2, **hub, HF_TOKEN="secret")
    assert "does not answer" in gone.err


def test_a_new_store_is_read_by_older_clients(store: Store) -> None:
    """The shell on the package registry is a release behind the library."""
    shell = shutil.which("duckdb", path=sysconfig.get_path("scripts"))
    assert shell is not None
    command = [
        shell,
        "-readonly",
        "-csv",
        str(store.path),
        "-c",
        "select run_id from runs order by 1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["run_id", "aa-1", "ab-2"]


def test_questions_about_runs(store: Store) -> None:
    assert questions.resolve_run(store, "aa") == "aa-1"
    for bad in ("a", "", "q"):
        with pytest.raises(UserError):
            questions.resolve_run(store, bad)
    rows = questions.compare(store, "aa", "ab").to_pylist()
    assert len(rows) == 75
    first = next(r for r in rows if r["metric"] == "fid" and r["subset"] == "overall")
    assert first["better"] == "a" and first["comparable"]
    assert first["settled"] is None and first["ci_low"] is None  # no influence was kept
    assert questions.list_runs(store).num_rows == 2
    shown = dict(zip(*questions.show_run(store, "aa").to_pydict().values(), strict=True))
    assert json.loads(shown["model_parameters"]) == {"a": [0.5], "b": 1}


def test_everything_is_commented(store: Store) -> None:
    bare = store.query(
        "SELECT table_name, column_name FROM duckdb_columns() "
        "WHERE NOT internal AND comment IS NULL"
    )
    assert bare.to_pylist() == []
    sources = "SELECT comment FROM duckdb_tables() WHERE NOT internal"
    assert None not in store.query(sources).column(0).to_pylist()
    views = store.query(
        "SELECT view_name, comment FROM duckdb_views() WHERE NOT internal"
    ).to_pylist()
    assert {v["view_name"] for v in views if v["comment"]} == set(VIEWS)
    published = store.query("SELECT count(*) AS n FROM published WHERE note LIKE '%shifted%'")
    assert published[0][0].as_py() == 2 * 8


@pytest.mark.slow
@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO schema_info VALUES (9, now())",
        "DELETE FROM runs",
        "COPY runs TO '{out}'",
        "EXPORT DATABASE '{out}'",
        "ATTACH '{out}' AS other",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM glob('/etc/*')",
        "SET enable_external_access = true",
        "INSTALL httpfs",
        "SELECT * FROM sql",
        "SELECT 1; SELECT 2",
        "",
    ],
)
def test_query_neither_writes_nor_leaves_the_store(store: Store, tmp_path: Path, sql: str) -> None:
    before = store.path.read_bytes()
    with pytest.raises(UserError):
        store.query(sql.format(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists() and store.path.read_bytes() == before


def test_an_sql_error_shows_where(store: Store) -> None:
    with pytest.raises(UserError, match=r"LINE 1: SELECT nothing FROM runs\n +\^"):
        store.query("SELECT nothing FROM runs")


def test_absent_corrupt_foreign_and_newer_stores(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        Store(tmp_path / "no.duckdb").query("SELECT 1")
    assert "chexgenbench run" in str(caught.value.hint)

    with duckdb.connect(str(store.path)) as connection:
        connection.execute("INSERT INTO schema_info VALUES (99, now())")
    for act in (
        lambda: store.query("SELECT 1"),
        lambda: store.ingest([tmp_path / "runs" / "aa-1"]),
    ):
        with pytest.raises(UserError, match=rf"99.*{SCHEMA_VERSION}"):
            act()

    foreign = tmp_path / "foreign.duckdb"
    with duckdb.connect(str(foreign)) as connection:
        connection.execute("CREATE TABLE mine (a INT)")
    whole = store.path.read_bytes()
    for name, data in (("bad", b"x" * 9000), ("empty", b""), ("cut", whole[:5000])):
        (tmp_path / f"{name}.duckdb").write_bytes(data)
    for name in ("foreign", "bad", "empty", "cut"):
        path = tmp_path / f"{name}.duckdb"
        before = path.read_bytes()
        broken = Store(path)
        for act in (
            lambda broken=broken: broken.query("SELECT 1"),
            lambda broken=broken: broken.ingest([tmp_path / "runs" / "aa-1"]),
        ):
            with pytest.raises(UserError) as caught:
                act()
            assert "store rebuild" in str(caught.value.hint)
            assert path.read_bytes() == before


def test_a_full_disk_leaves_the_old_store(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store.path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.shutil, "copyfile", full)
    with pytest.raises(UserError, match="No space left"):
        store.ingest([tmp_path / "runs" / "aa-1"])
    assert store.path.read_bytes() == before
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Store(tmp_path / "file" / "s.duckdb").ingest([tmp_path / "runs" / "aa-1"])


_WRITER = """
import sys
from pathlib import Path
from chexgenbench.store.store import Store
for folder in sys.argv[2:]:
    Store(Path(sys.argv[1])).ingest([Path(folder)])
"""
_READER = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1], read_only=True)
print("open", flush=True)
sys.stdin.readline()
print(connection.execute("select count(*) from runs").fetchone()[0], flush=True)
"""


def test_two_writers_at_once_beside_a_reader(store: Store, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    names = [[f"w{writer}-{n}" for n in range(3)] for writer in range(2)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def start(code: str, *arguments: object, **keywords: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.Popen(command, env=environment, text=True, **keywords)

    reader = start(_READER, store.path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert reader.stdout is not None and reader.stdout.readline() == "open\n"
    writers = [start(_WRITER, store.path, *(make(runs, n) for n in group)) for group in names]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert reader.communicate("\n", timeout=60)[0] == "2\n"
    found = store.query("SELECT run_id FROM runs").column(0).to_pylist()
    assert sorted(found) == sorted(["aa-1", "ab-2", *names[0], *names[1]])


_STOPPED = """
import os, signal, sys, threading
from pathlib import Path
from chexgenbench.store.store import Store
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
store = Store(Path(sys.argv[1]))
for _ in range(60):
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        store.query("SELECT sum(range % 7) FROM range(400000000)")
    except KeyboardInterrupt as error:
        # It may also have come before or after the query, as Python's own.
        if isinstance(error.__cause__, RuntimeError):
            print("stopped")
            break
"""


def test_ctrl_c_ends_a_query_as_it_ends_other_work(store: Store) -> None:
    """DuckDB's own error for it was taken for a fault of the platform."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", _STOPPED, str(store.path)]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=120)
    assert done.stdout == "stopped\n", done.stderr


_TELLING = """
import sys
from pathlib import Path
from chexgenbench.store.store import Store
change = Store._change_locked
def told(self, *given, **named):
    print("change", flush=True)
    change(self, *given, **named)
Store._change_locked = told
Store(Path(sys.argv[1])).ingest([Path(sys.argv[2])])
"""


def waiting_for(store: Store, folders: Sequence[Path]) -> list[subprocess.Popen[str]]:
    """A process for each run that wants to take it in; `store` is locked here."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    found = []
    for folder in folders:
        command = [sys.executable, "-c", _TELLING, str(store.path), str(folder)]
        pipe = subprocess.PIPE
        found.append(
            subprocess.Popen(command, env=environment, text=True, stdout=pipe, stderr=pipe)
        )
    end = time.monotonic() + 60
    while len(list(store.path.parent.glob(".tmp-*.ingest"))) < len(folders):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def test_who_waits_for_the_store_is_taken_in_by_the_first(store: Store, tmp_path: Path) -> None:
    folders = [make(tmp_path / "runs", f"w-{n}", f"model {n}") for n in range(4)]
    with file_lock(f"{store.path}.lock"):
        writers = waiting_for(store, folders)
    said = "".join(writer.communicate(timeout=60)[0] for writer in writers)
    assert [writer.returncode for writer in writers] == [0] * 4
    assert said == "change\n"
    assert store.run_ids() == ["aa-1", "ab-2", *(folder.name for folder in folders)]
    assert [found for found in store.differing(folders) if found[1]] == []
    assert not list(store.path.parent.glob(".tmp-*"))


def test_a_sign_that_is_gone_is_no_answer(store: Store, tmp_path: Path) -> None:
    folder = make(tmp_path / "runs", "late")
    with file_lock(f"{store.path}.lock"):
        (writer,) = waiting_for(store, [folder])
        for path in store.path.parent.glob(".tmp-*.ingest"):
            path.unlink()
    assert writer.communicate(timeout=60)[0] == "change\n"
    assert "late" in store.run_ids()


def test_a_run_that_does_not_fit_fails_for_its_own_process_alone(
    store: Store, tmp_path: Path
) -> None:
    good, bad = make(tmp_path / "runs", "good"), make(tmp_path / "runs", "w-bad")
    run = read_record(bad)
    with file_lock(f"{store.path}.lock"):
        writers = waiting_for(store, [good, bad])
        # It was well when its process read it.
        table = read_table(bad, "scores", run)
        write_run(bad, run, {"scores": pa.concat_tables([table, table.slice(0, 1)])})
    errors = [writer.communicate(timeout=60)[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 1]
    assert "rows that repeat" in errors[1]
    assert store.run_ids() == ["aa-1", "ab-2", "good"]


def test_what_a_killed_process_waited_for_is_taken_in(store: Store, tmp_path: Path) -> None:
    here = store.path.parent
    make(tmp_path / "runs", "killed-1")
    make(tmp_path, "outside")
    again = read_record(make(tmp_path / "runs", "again"))
    write_record(tmp_path / "runs" / "again", again.model_copy(update={"status": "running"}))
    for name in ("killed-1", "again", "gone", "..", "..-outside"):
        (here / f".tmp-{name}-x1y2.ingest").touch()
    with sign(here, "elsewhere", ".ingest") as answered:
        store.ingest([make(tmp_path / "runs", "next")])
        (held,) = here.glob(".tmp-*")
        assert held.name.startswith(".tmp-elsewhere-") and not answered()
    assert store.run_ids() == ["aa-1", "ab-2", "killed-1", "next"]


def test_the_newest_state_of_a_run_counts(store: Store, tmp_path: Path) -> None:
    """Another process may write a run while this one waits for the store."""
    folder = make(tmp_path / "runs", "late")
    with file_lock(f"{store.path}.lock"):
        (writer,) = waiting_for(store, [folder])
        make(tmp_path / "runs", "late", "another model", fid=7.5)
    assert writer.wait(60) == 0
    assert list(store.differing([folder])) == [(folder, [])]


NEW_COLUMNS = {
    2: {
        "scores": ADDED[2]["scores"],
        "published": ("split", "protocol"),
        "runs": ("subsets", "uncertain", "reference"),
    },
    3: {
        "images": ADDED[3]["images"],
        "runs": ("model_plugin", "workers", "threads", "peak_memory", "n_cut_batches", "remarks"),
    },
    4: {"runs": ("pools",)},
}
NEW_TABLES = {2: ("differences",), 4: ("pool_prompts", "pool_images", "neighbours")}


def names_of(connection: duckdb.DuckDBPyConnection) -> set[str]:
    return {
        name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()
    }


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_an_older_store_and_run_are_taken_in(store: Store, tmp_path: Path, version: int) -> None:
    later = range(version + 1, SCHEMA_VERSION + 1)
    with duckdb.connect(str(store.path)) as connection:
        for view in VIEWS:
            connection.execute(f"DROP VIEW {view}")
        for step in later:
            for table in NEW_TABLES.get(step, ()):
                connection.execute(f"DROP TABLE {table}")
            for table, columns in NEW_COLUMNS.get(step, {}).items():
                for column in columns:
                    connection.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        for table in sorted(SCHEMAS.keys() & names_of(connection)):
            key = ", ".join(TABLES[table].key)
            connection.execute(f"ALTER TABLE {table} ADD PRIMARY KEY ({key})")
        connection.execute("DELETE FROM schema_info WHERE version > ?", [version])
    before = store.path.read_bytes()
    with duckdb.connect(str(store.path), read_only=True) as connection:
        there = {
            (table, column): connection.execute(
                f"SELECT {column}::VARCHAR FROM {table} ORDER BY run_id, 1"
            ).fetchall()
            for table, column in (("scores", "value"), ("images", "sha256"), ("prompts", "prompt"))
        }
    sql = "SELECT run_id, model, metric, value, floor, rank FROM leaderboard WHERE metric = 'fid'"
    rows = store.query(sql).to_pylist()
    assert len(rows) == 2 * 3 * 15
    for (table, column), values in there.items():
        found = store.query(f"SELECT {column}::VARCHAR AS v FROM {table} ORDER BY run_id, 1")
        assert [(value,) for value in found.column(0).to_pylist()] == values and values
    indexed = "SELECT table_name FROM duckdb_constraints() WHERE constraint_type = 'PRIMARY KEY'"
    assert not SCHEMAS.keys() & set(store.query(indexed).column(0).to_pylist())
    with duckdb.connect(str(store.path), read_only=True) as connection:
        assert names_of(connection) == TABLES.keys()
    # What it was is kept, and opens as what it was.
    kept = store.copy_of(version)
    assert kept.read_bytes() == before
    with duckdb.connect(str(kept), read_only=True) as connection:
        (held,) = connection.execute("SELECT max(version) FROM schema_info").fetchall()[0]
    assert held == version
    assert {row["value"] for row in rows} == {None, 1 / 3, 2.5}
    if version < 2:
        assert {row["rank"] for row in rows} == {None}

    old = record("old", "ancient", 5, schema_version=version)
    folder = tmp_path / "runs" / "old"
    folder.mkdir()
    write_record(folder, old)
    for name, table in tables(old).items():
        kept = conform(name, table)
        gone = [column for step in later for column in ADDED.get(step, {}).get(name, ())]
        columns = [column for column in kept.column_names if column not in gone]
        if columns:
            pq.write_table(kept.select(columns), folder / f"{name}.parquet")
    store.ingest([folder])
    assert store.query("SELECT count(*) AS n FROM scores WHERE run_id = 'old'")[0][0].as_py() == 75
    store.ingest([make(tmp_path / "runs", "new", "young", 9)])
    ranks = store.query(
        "SELECT DISTINCT rank FROM leaderboard WHERE run_id = 'new' AND status = 'ok'"
    )
    found = set(ranks.column(0).to_pylist())
    # Rows of version 1 have no basis, so that nothing of its own beats the new run.
    assert found == {1} if version < 2 else found <= {1, 2, 3, 4}


def test_records_are_checked(tmp_path: Path) -> None:
    run = record("r")
    folder = tmp_path / "r"
    write_record(folder, run)
    assert read_record(folder) == run
    path = folder / "run.json"
    value = json.loads(path.read_text())
    assert value.pop("sha256")  # which a record of an older release does not have
    later = RECORD_VERSION + 1
    for change in ({"schema_version": later}, {"colour": 1}, {"status": "odd"}):
        path.write_text(json.dumps(value | change))
        with pytest.raises(UserError, match=r"run\.json"):
            read_record(folder)
    with pytest.raises(ValueError, match="missing columns"):
        write_run(folder, run, {"scores": pd.DataFrame({"run_id": ["r"]})})
    with pytest.raises(ValueError, match="not of 'r'"):
        write_run(folder, run, tables(record("other")))
    write_record(folder, run)
    folder.rename(tmp_path / "other")
    with pytest.raises(UserError, match="not of its folder's"):
        read_record(tmp_path / "other")
    arrow = conform("scores", tables(run)["scores"])
    assert conform("scores", arrow) == arrow


def test_render_keeps_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"n": [1, None], "value": [1 / 3, float("nan")], "l": [["a", "b"], []]})
    assert (
        render(table, "csv", None) == 'n,value,l\n1,0.3333333333333333,"[""a"", ""b""]"\n,nan,[]\n'
    )
    rows = json.loads(render(table, "json", tmp_path / "x.json"))
    assert rows == [{"n": 1, "value": 1 / 3, "l": ["a", "b"]}, {"n": None, "value": None, "l": []}]
    assert json.loads((tmp_path / "x.json").read_text()) == rows
    render(table, "parquet", tmp_path / "x.parquet")
    assert pq.read_table(tmp_path / "x.parquet").num_rows == 2
    wide = pa.table(
        {f"column_{i}": [0.123456] * 2 for i in range(20)} | {"text": ["[red]x " * 30] * 2}
    )
    for columns in (40, 80, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        for shown in (table, wide):
            text = render(shown, "table", None)
            assert isinstance(text, str) and max(map(len, text.splitlines())) <= columns
    assert "0.1235" in text and "[red]" in text


def test_export_does_not_double(tmp_path: Path) -> None:
    first, second = record("r1", extra_info="first, try"), record("r2", "noise")
    for run in (first, second, first):
        export_run(tmp_path, run, tables(run)["scores"])
    overall = pd.read_csv(tmp_path / "image_generation_metrics.csv")
    names = [*PUBLISHED_COLUMNS, *OWN_COLUMNS]
    assert list(overall.columns)[: len(names)] == names
    assert list(overall.columns)[len(names) :] == ["Alignment (phantom-clip)", "FID (phantom-clip)"]
    assert sorted(overall["Run"]) == ["r1", "r2"] and set(overall["FID"]) == {1 / 3}
    assert overall["KID"].isna().all() and "first, try" in set(overall["Extra Info"])
    conditional = pd.read_csv(tmp_path / "conditional_image_generation_metrics.csv")
    assert len(conditional) == 28
    assert conditional.loc[conditional["Pathology"] == "Fracture", "FID"].isna().all()


def test_export_into_a_published_file_and_a_broken_one(tmp_path: Path) -> None:
    path = tmp_path / "image_generation_metrics.csv"
    path.write_text(",".join(PUBLISHED_COLUMNS) + "\n" + ",".join(["0.10"] * 11) + "\n")
    run = record("r1")
    export_run(tmp_path, run, tables(run)["scores"])
    lines = path.read_text().splitlines()
    assert len(lines) == 3 and lines[1].startswith("0.10,0.10")
    path.write_text("colour\nred\n")
    with pytest.raises(UserError, match="FID"):
        export_run(tmp_path, run, tables(run)["scores"])
    assert path.read_text() == "colour\nred\n"


def test_a_run_comes_back_as_it_was_taken_in(store: Store, tmp_path: Path) -> None:
    for name in ("aa-1", "ab-2"):
        folder = tmp_path / "runs" / name
        own = read_record(folder)
        found, kept = store.run(name)
        times = ("created_at", "finished_at", "used_at")
        for each in times:
            a, b = getattr(found, each), getattr(own, each)
            assert a == b or datetime.fromisoformat(a) == datetime.fromisoformat(b)
        assert found.model_copy(update={each: getattr(own, each) for each in times}) == own
        write_run(tmp_path / "again" / name, found, kept)
        store.ingest([tmp_path / "again" / name])
        assert list(store.differing([folder])) == [(folder, [])]
    write_record(tmp_path / "runs" / "ab-2", own.model_copy(update={"n_images": 99}))
    assert list(store.differing([tmp_path / "runs" / "ab-2"])) == [
        (tmp_path / "runs" / "ab-2", ["runs"])
    ]


@pytest.mark.parametrize("name", ["scores", "images", "run.json"])
def test_a_flipped_bit_of_a_run_is_noticed_when_it_is_read(
    store: Store, tmp_path: Path, name: str
) -> None:
    """Any value: a page of Parquet has a checksum, and so has the record."""
    folder = tmp_path / "runs" / "aa-1"
    path = folder / (name if "." in name else f"{name}.parquet")
    whole = path.read_bytes()
    sound = None if "." in name else pq.read_table(path)
    for at in range(0, len(whole), max(1, len(whole) // 400)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        try:
            found = read_record(folder)
            table = None if sound is None else read_table(folder, name, found)
        except UserError as error:
            assert str(path) in error.message
        else:  # what says nothing about the rows, such as the name of the writing program
            assert table is not None and table.equals(conform(name, sound))
    path.write_bytes(whole)
