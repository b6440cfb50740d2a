"""How large the report page is, and how long it takes to write and to open.

    OMP_NUM_THREADS=1 python benchmarks/report_page.py [--images 20000] [--repeats 3] [--write]

Runs are made up (`tests/made_up.py`): eleven models with scores of fidelity, privacy and utility on
14 findings, paired differences, alignment of each image, pairs of images and the paper's numbers.
Their image files are made up too, 200 of 512 x 512 pixels for each model, each of which has many
names. The page is written by a process of its own and opened from the disk by Chromium; the least
of the repeats counts. ``--write`` puts the table into docs/report.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from side_by_side import ROOT, machine, table, write_between

from browser import CHROMIUM, window
from made_up import make_home

PAGE = ROOT / "docs" / "report.md"
MODELS = tuple(f"model-{place}" for place in range(11))
WRITE = """
import sys, time
from pathlib import Path
from chexgenbench.home import Home
from chexgenbench.report.page import write_report
from chexgenbench.store.store import Store
home = Home(Path(sys.argv[1]))
store = Store(home.store)
begun = time.process_time()
runs = store.query("SELECT DISTINCT run_id FROM leaderboard ORDER BY run_id").column(0).to_pylist()
write_report(store, home, runs)
print(time.process_time() - begun)
"""


def measure(folder: Path, images: int, repeats: int) -> dict[str, str]:
    """Megabytes of the page, processor seconds to write it, seconds to load it and to its
    first and last chart."""
    home = make_home(folder, MODELS, images, files=200, pixels=512)
    seconds = []
    for _ in range(repeats):
        done = subprocess.run(
            [sys.executable, "-c", WRITE, str(folder)], capture_output=True, text=True, check=True
        )
        # Without a script's file, DuckDB takes Python for a console and shows its progress first.
        seconds.append(float(done.stdout.split()[-1]))
    page = home.results / "report.html"
    opened = [_open(page) for _ in range(repeats)]
    names = ("load event, s", "first chart, s", "all charts, s")
    return {
        "models x images": f"{len(MODELS)} x {images:,}",
        "page, MB": f"{page.stat().st_size / 1e6:.1f}",
        "written, s of processor": f"{min(seconds):.1f}",
    } | {name: f"{min(each[place] for each in opened):.2f}" for place, name in enumerate(names)}


def _open(page: Path) -> tuple[float, float, float]:
    """Seconds from the beginning of the navigation, by the page's own clock."""
    with window() as found:
        found.page.goto(page.as_uri())
        found.page.wait_for_selector("html[data-ready]", timeout=60_000)
        assert not found.errors, found.errors
        load, first, last = found.page.evaluate(
            """[performance.getEntriesByType("navigation")[0].loadEventEnd,
                Number(document.querySelector("[data-drawn]").dataset.drawn),
                Number(document.documentElement.dataset.ready)]"""
        )
    return load / 1000, first / 1000, last / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="*", default=[500, 20_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("no chromium here: apt-get install chromium")
    rows = []
    for images in options.images:
        with tempfile.TemporaryDirectory() as folder:
            begun = time.monotonic()
            rows.append(measure(Path(folder) / "home", images, options.repeats))
            print(rows[-1], f"({time.monotonic() - begun:.0f} s in all)", flush=True)
    if options.write:
        lines = [list(row.values()) for row in rows]
        write_between(PAGE, "page", f"{table(list(rows[0]), lines)}\n\n{machine()}")


if __name__ == "__main__":
    main()
