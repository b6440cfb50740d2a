"""Times of the explorer's pages over a store with ten million scores of single images.

    python benchmarks/view_speed.py [--runs 20] [--prompts 18575] [--repeats 4] [--scores 7]

fills a store of the real schema in a temporary folder (about 2 GB), starts the explorer on it as a
process of its own, asks for each page twenty times with another run, finding, score and page each,
and prints the median and the longest time, and the mean CPU time of the server, which a busy
machine changes less. A request before them opens the file.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

import duckdb
import psutil

from chexgenbench.store.schema import migrate
from chexgenbench.types import FINDINGS

SCRIPT = Path(sysconfig.get_path("scripts")) / "chexgenbench"
REPORT = "PA view of the chest. Suspected dense consolidation in the right upper lobe. No change. "
TIMES = 20
SCORES = ("alignment", "near_copy", "nearest_training_distance", "reid_match", "realism", "rarity")


def score(number: int) -> str:
    return SCORES[number] if number < len(SCORES) else f"score_{number}"


def run_id(number: int) -> str:
    return f"{(number * 0x9E3779B97F4A7C15) % 2**64:016x}"


def fill(path: Path, runs: int, prompts: int, repeats: int, scores: int) -> None:
    """A store with that many rows, written as ingest does: run by run."""
    path.parent.mkdir(parents=True)
    connection = duckdb.connect(str(path), config={"storage_compatibility_version": "v1.0.0"})
    migrate(connection, path)
    labels = ", ".join(
        f'CASE WHEN hash(i, {at}) % 8 = 0 THEN 1.0 END AS "{finding}"'
        for at, finding in enumerate(FINDINGS)
    )
    for number in range(runs):
        name = run_id(number)
        connection.execute(
            f"""
            INSERT INTO runs BY NAME SELECT '{name}' AS run_id, 'large' AS suite,
              'model-{number}' AS model, 'model' AS model_plugin, 'm{number}' AS model_id,
              'large' AS split, 'standard' AS protocol, 0 AS seed, 'finished' AS status,
              'g{number}' AS generation_id, '{{}}' AS model_parameters, {repeats} AS repeats,
              false AS exact, 'cpu' AS device, 'float32' AS dtype, {prompts} AS n_prompts,
              {prompts * repeats} AS n_images, 0 AS n_skipped_images, 0 AS n_flagged,
              '[]' AS remarks, now()::TIMESTAMP AS created_at, now()::TIMESTAMP AS finished_at,
              '' AS extra_info, 'annotated_prompt' AS caption_type, false AS credentialed,
              '{{}}' AS versions, '{{}}' AS weights, '{{}}' AS hardware, '{{}}' AS encoders,
              '{{}}' AS metrics, '{{}}' AS pools
            """
        )
        connection.execute(
            f"""
            INSERT INTO prompts BY NAME SELECT '{name}' AS run_id, 'large' AS split,
              's' || (50000000 + i) AS prompt_id, repeat('{REPORT}', 1 + i % 3) || i AS prompt,
              'p' || (i // 3) AS patient_id, 'PA' AS view, i AS line, {labels}
            FROM range({prompts}) AS t(i)
            """
        )
        connection.execute(
            f"""
            INSERT INTO images BY NAME SELECT '{name}' AS run_id, 'g{number}' AS generation_id,
              's' || (50000000 + i) || CASE WHEN r > 0 THEN '~' || r ELSE '' END AS image_id,
              's' || (50000000 + i) AS prompt_id, r AS repeat, i * 7 + r AS seed,
              'images/' || i || '.png' AS path, sha256(i || '-' || r || '{name}') AS sha256,
              512 AS width, 512 AS height, 0.1 AS seconds, i // 8 AS batch, 8 AS call,
              CASE WHEN hash(i, r, {number}) % 50 = 0 THEN ['duplicate'] ELSE [] END AS flags,
              'ok' AS status
            FROM range({prompts}) AS t(i), range({repeats}) AS u(r)
            """
        )
        for each in range(scores):
            connection.execute(
                f"""
                INSERT INTO sample_scores BY NAME SELECT run_id, image_id, prompt_id,
                  '{score(each)}' AS metric, 'encoder-{each % 2}' AS encoder,
                  (hash(image_id, {number}, {each}) % 1000000) / 1e6 AS value
                FROM images WHERE run_id = '{name}'
                """
            )
        connection.execute(
            f"""
            INSERT INTO scores BY NAME SELECT '{name}' AS run_id, 'model-{number}' AS model,
              'large' AS suite, 'metric_' || m AS metric, 'metric' AS plugin,
              'encoder-0' AS encoder, s AS subset, random() AS value, 0.01 AS standard_error,
              0.1 AS ci_low, 0.9 AS ci_high, {prompts} AS n_real, {prompts} AS n_fake,
              true AS higher_is_better, 'ok' AS status, 'b' AS basis, 'standard' AS protocol,
              0 AS seed, now()::TIMESTAMP AS created_at
            FROM range(20) AS t(m), (SELECT unnest(?) AS s)
            """,
            [["overall", "macro", *FINDINGS]],
        )
        print(f"run {number + 1} of {runs}", file=sys.stderr, flush=True)
    connection.execute("CHECKPOINT")
    connection.close()


def addresses(runs: int, prompts: int, repeats: int, scores: int) -> dict[str, list[str]]:
    """Page to twenty addresses of it, no two alike."""
    found: dict[str, list[str]] = {}

    def add(name: str, path: str, **query: object) -> None:
        text = urllib.parse.urlencode(query)
        found.setdefault(name, []).append(f"{path}?{text}" if text else path)

    for at in range(TIMES):
        run, other = run_id(at % runs), run_id((at + 1) % runs)
        number = at % scores
        key = f"{score(number)}/encoder-{number % 2}"
        finding = FINDINGS[at % len(FINDINGS)]
        last = prompts * repeats // 24 - 1
        place = f"/runs/{run}/images"
        add("runs", "/")
        add("runs, filtered and sorted", "/", filter=f"model-{at}", sort="n_images")
        add("run", f"/runs/{run}")
        add("images", place, page=at)
        add("images by a score", place, sample=key)
        add("images by a score, last pages", place, sample=key, page=max(0, last - at))
        add("images of a finding by a score", place, sample=key, finding=finding)
        prompt = f"s{50000000 + at * 37 % prompts}"
        add("image", f"/runs/{run}/image", prompt=prompt, repeat=at % repeats)
        add("compare", "/compare", a=run, b=other, sample=key)
        add("compare, later pages", "/compare", a=run, b=other, sample=key, page=50 + at)
        add("SQL box", "/sql")
        add("names for completion", "/schema.json")
        add("progress", "/live.json")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=18_575)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--scores", type=int, default=7)
    parser.add_argument("--home", type=Path, help="keep the store there, and find it there again")
    options = parser.parse_args()
    size = (options.runs, options.prompts, options.repeats, options.scores)
    with tempfile.TemporaryDirectory(prefix="view-speed-") as folder:
        home = options.home or Path(folder)
        store = home / "Results" / "chexgenbench.duckdb"
        if not store.exists():
            fill(store, *size)
        rows = size[0] * size[1] * size[2] * size[3]
        print(f"{rows:,} scores of single images, {store.stat().st_size / 1e9:.2f} GB")
        server = subprocess.Popen(
            [str(SCRIPT), "view", "--home", str(home), "--no-browser"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        try:
            measure(server, addresses(*size))
        finally:
            server.terminate()
            server.wait()


def measure(server: subprocess.Popen[str], pages: dict[str, list[str]]) -> None:
    assert server.stdout is not None
    found = None
    while found is None:
        found = re.search(r"(http://\S+)/\?\S+", server.stdout.readline())
    base = found[1]
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    browser.open(found[0]).close()  # the token for a cookie; this opens the store as well
    used = psutil.Process(server.pid)
    print(f"{'page':32} {'median':>8} {'worst':>8} {'CPU':>8}  ms, of {TIMES}")
    for page, paths in pages.items():
        times = []
        before = sum(used.cpu_times()[:2])
        for path in paths:
            begun = time.perf_counter()
            with browser.open(base + path) as got:
                got.read()
            times.append(1000 * (time.perf_counter() - begun))
        busy = 1000 * (sum(used.cpu_times()[:2]) - before) / len(paths)
        middle = statistics.median(times)
        print(f"{page:32} {middle:8.0f} {max(times):8.0f} {busy:8.0f}", flush=True)


if __name__ == "__main__":
    main()
