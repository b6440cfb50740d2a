"""What README and docs show is run or generated, and the site of them is built."""

from __future__ import annotations

import doctest
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest

import chexgenbench
from browser import needs_browser, window
from chexgenbench.registry import KINDS, load_registry
from chexgenbench.store.cookbook import saved_queries, saved_query
from chexgenbench.store.store import Store
from desk import Desk, Done

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in (
        *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING")),
        *(each for each in sorted(DOCS.rglob("*.md")) if "_build" not in each.parts),
        *sorted((ROOT / "containers").glob("*/README.md")),
        *sorted((ROOT / "assets").glob("*/README.md")),
        ROOT / "MIMIC_Splits" / "README.md",
    )
}

RUN = (
    "README.md",
    "docs/cookbook.md",
    "docs/dataset.md",
    "docs/integrity.md",
    "docs/models.md",
    "docs/quickstart.md",
    "docs/scores.md",
    "docs/store.md",
    "docs/tutorials/evaluate-your-images.md",
    "docs/tutorials/many-machines.md",
    "docs/tutorials/mimic-cxr.md",
    "docs/using_the_cli.md",
)
"""Pages whose commands and code run here, in their order, where the demo has run."""

ELSEWHERE = {
    "docs/open_i.md": "test_open_i.py",
    "docs/plugins.md": "test_tutorials.py",
    "docs/report.md": "test_page.py",
    "docs/tutorials/add-a-metric.md": "test_tutorials.py",
    "docs/tutorials/add-a-model.md": "test_tutorials.py",
    "docs/view.md": "test_view.py",
}
"""Pages whose commands and code another file of tests runs."""

INCLUDES = ("docs/changelog.md", "docs/contributing.md")
"""Pages that hold a file of the root, for the site."""

SILENT = ("shard", "worker", "merge")
"""Commands that may say all they have to say on the error stream."""


@dataclass(frozen=True)
class Block:
    """A fenced block; `before` is the paragraph above, `part` the generated part it is in."""

    language: str
    text: str
    before: str
    part: str


def fenced(page: str) -> Iterator[Block]:
    """The fenced blocks of a page, also those in a list."""
    text = PAGES[page].read_text(encoding="utf-8")
    for found in re.finditer(r"^( *)```([^\n]*)\n(.*?)^\1```$", text, re.DOTALL | re.MULTILINE):
        above = text[: found.start()]
        opened = re.findall(r"^<!-- ([/\w -]+) -->$", above, re.MULTILINE)
        part = opened[-1] if opened and not opened[-1].startswith("/") else ""
        inside = "\n".join(line[len(found[1]) :] for line in found[3].splitlines())
        yield Block(found[2].strip(), inside + "\n", above.rstrip().rpartition("\n\n")[2], part)


COMMAND = re.compile(
    r"^(\$ |chexgenbench |python3? |pip |make |docker |podman |sbatch |ray )", re.M
)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_has_somebody_who_runs_it(page: str) -> None:
    """Commands that no test can run stand indented; their options are checked all the same."""
    text = PAGES[page].read_text(encoding="utf-8")
    for block in fenced(page):
        if block.language in ("", "text"):
            # A board, a diagram, a usage line of the reference; a command would go unseen here.
            assert block.part or not COMMAND.search(block.text), block.text
        elif block.language in ("sh", "python") and not block.part:
            assert page in RUN or page in ELSEWHERE, f"nobody runs\n{block.text}"
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "r":
            assert "not run by a test" in block.before
        elif block.language.startswith("{include}"):
            assert page in INCLUDES
        else:
            known = {"docs/cookbook.md": "sql", "docs/hooks.md": "python"}
            assert block.part and known.get(page) == block.language, block.text
    if page in ELSEWHERE and any(each.language in ("sh", "python") for each in fenced(page)):
        test = ROOT / "tests" / ELSEWHERE[page]
        assert Path(page).name in test.read_text(encoding="utf-8"), f"{test.name} knows no {page}"
    assert text.count("```") % 2 == 0


def name_of(block: Block, number: int) -> str:
    """What the page says to save the code as.

    >>> name_of(Block("python", "", "Save this as `mine.py`:", ""), 0)
    'mine.py'
    """
    said = re.search(r"[Ss]ave (?:this|it)\s+as\s+`(\w+\.py)`", block.before)
    return said[1] if said else f"block_{number}.py"


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_the_commands_and_code_of_a_page_work(
    demo: tuple[Desk, Done], tmp_path: Path, page: str
) -> None:
    from chexgenbench_plugins.data import data_folder

    # What a page makes must not be found by another.
    desk = Desk(tmp_path / "home", demo[0].cache)
    shutil.copytree(demo[0].home, desk.home)
    # A checkout has it; nothing else of that folder, where somebody's credentialed files may lie.
    (desk.home / "MIMIC_Splits").mkdir(exist_ok=True)
    (desk.home / "MIMIC_Splits" / "demo").symlink_to(ROOT / "MIMIC_Splits" / "demo")
    ran = 0
    for number, block in enumerate(fenced(page)):
        if block.part or block.language not in ("sh", "python"):
            continue
        ran += 1
        if block.language == "python":
            code = desk.home / name_of(block, number)
            code.write_text(block.text, encoding="utf-8")
            done = subprocess.run(
                [sys.executable, code.name], cwd=desk.home, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{block.text}\n{done.stderr}"
            continue
        for line in block.text.splitlines():
            line = line.replace("FOLDER", str(data_folder("phantom-diffusion")))
            program, *arguments = shlex.split(line, comments=True) or ["", ""]
            assert program == "chexgenbench", line
            done_ = desk.run(*arguments)
            assert done_.out.strip() or "--out" in arguments or arguments[0] in SILENT, line
    assert ran


@pytest.mark.parametrize("number", range(6))
def test_the_examples_of_the_hooks_are_plugins(number: int, tmp_path: Path) -> None:
    blocks = [each for each in fenced("docs/hooks.md") if each.language == "python"]
    assert len(blocks) == 6
    path = tmp_path / "example.py"
    path.write_text(blocks[number].text)
    registry = load_registry([path])
    found = [
        plugin
        for kind in ("models", "encoders", "metrics", "splits", "judges")
        for plugin in registry.of_kind(kind).values()
        if plugin.source == str(path)
    ]
    assert not registry.problems
    assert len(found) == 1 and found[0].load()


def test_generated_parts_are_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nrun: make docs"


def test_links_lead_somewhere() -> None:
    """On a forge, where the pages are read as they are; the site's are checked below."""
    for page in PAGES.values():
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def _numbers(text: str) -> list[float]:
    return [float(n) for n in re.findall(r"(?<![\w.])-?\d+\.?\d*(?:e-?\d+)?(?![\w.])", text)]


def _board(text: str) -> dict[tuple[str, str], list[float]]:
    """(score, model) to value and interval; notes such as "lower is better" are no numbers."""
    found: dict[tuple[str, str], list[float]] = {}
    metric = ""
    for line in text.split("Store:")[0].splitlines():
        row = re.match(r"(\w*)[\w -]*?\s+(oracle|phantom-diffusion|memorizer|noise)\s+(.*)", line)
        if row:
            metric = row[1] or metric
            found[metric, row[2]] = _numbers(row[3])
    return found


@pytest.mark.slow
def test_the_leaderboard_of_the_readme_is_the_demos(demo: tuple[Desk, Done]) -> None:
    """To 2 % of each score's largest number: other machines round otherwise."""
    match = re.search(r"<!-- leaderboard -->\n```\n(.*?)```", README, re.DOTALL)
    assert match
    shown, printed = _board(match[1]), _board(demo[1].out)
    assert shown.keys() == printed.keys()
    assert len(shown) == 8 * 4
    for (metric, model), wanted in shown.items():
        found = printed[metric, model]
        scale = max(abs(n) for (m, _), row in shown.items() if m == metric for n in row)
        assert len(wanted) == len(found) >= 1
        assert all(abs(a - b) <= 0.02 * scale for a, b in zip(wanted, found, strict=True)), model


NOT_OF_THE_DEMO = {"copies", "pareto-privacy", "privacy-excess", "utility", "versions"}
"""Saved queries about privacy, utility or a second version of a model; tested elsewhere."""


@pytest.mark.slow
@pytest.mark.parametrize("name", saved_queries())
def test_a_saved_query_is_answered(demo: tuple[Desk, Done], name: str) -> None:
    answer = Store(demo[0].home / "Results" / "chexgenbench.duckdb").query(saved_query(name).sql)
    assert bool(answer.num_rows) == (name not in NOT_OF_THE_DEMO | {"failing-prompts"})
    assert len(set(answer.column_names)) == len(answer.column_names)


@pytest.mark.slow
def test_what_the_demo_says_to_try_works(demo: tuple[Desk, Done]) -> None:
    desk, done = demo
    for line in done.out.split("Try next:\n")[1].strip().splitlines():
        assert desk.run(*shlex.split(line)[1:]).out.strip()


SHOWN = [
    (path, line.strip())
    for path in PAGES.values()
    if path.name != "cli.md"  # usage lines, which are generated
    for line in path.read_text(encoding="utf-8").splitlines()
    if re.match(r"\s*chexgenbench [a-z]", line)
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "line"), SHOWN, ids=[f"{path.name}-{i}" for i, (path, _) in enumerate(SHOWN)]
)
def test_commands_on_every_page_have_the_options_they_show(page: Path, line: str) -> None:
    """Also those that need the reader's own folders, and so are not run."""
    from typer.main import get_command

    from chexgenbench.cli.main import app

    command = get_command(app)
    words = shlex.split(line.partition("  # ")[0])[1:]
    if words[-1] == "..." and not words[-2].startswith("-"):
        words.pop()  # the reader's own options
    while words and hasattr(command, "commands"):
        if words[0].startswith("-"):
            break
        assert words[0] in command.commands, f"{page.name}: {line}"
        command = command.commands[words.pop(0)]
    if "--help" not in words and words not in (["--version"],):
        command.make_context(command.name or "", words)


SET = sorted(
    {
        (page, *found)
        for page, path in PAGES.items()
        for found in re.findall(r"--set (?:([\w-]+)\.)?([\w-]+)=", path.read_text(encoding="utf-8"))
        if page != "docs/cli.md"  # of the option in general
    }
)

NO_PARAMETER = {
    ("docs/models.md", "parameter"): "stands for any",
    ("docs/models.md", "num_inference_steps"): "of the pipeline in a folder of the reader's",
    ("docs/performance.md", "complex_human_instruction"): "of the pipeline that a benchmark builds",
    ("docs/convert.md", "ema"): "of a conversion",
    ("docs/tutorials/add-a-model.md", "NAME"): "stands for any",
}
"""What `--set` names on a page that is no parameter of a built-in plugin, and why."""


@pytest.mark.parametrize(("page", "plugin", "parameter"), SET, ids=[".".join(e) for e in SET])
def test_parameters_on_every_page_are_there(page: str, plugin: str, parameter: str) -> None:
    """Also inside of a sentence or a table, where no other test looks."""
    if (page, parameter) in NO_PARAMETER:
        return
    registry = load_registry()
    known = {
        kind: {
            name: {*each.spec.parameters.model_fields}
            for name, each in registry.of_kind(kind).items()
        }
        for kind in KINDS
    }
    named = [plugins[plugin] for plugins in known.values() if plugin in plugins]
    if not named and plugin == "METRIC":
        named = [*known["metrics"].values()]
    elif not named:
        # A bare name is that of the chosen models; any other word is a model's label.
        named = [*known["models"].values()]
    assert any(parameter in each for each in named)


# --- the site -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make docs` builds, by the command that it builds it with."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    line = re.search(r"^\t\$\(BIN\)/python (-m sphinx .*) docs docs/_build/html$", makefile, re.M)
    assert line and {"-W", "--keep-going"} <= set(line[1].split())
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, *line[1].split(), "docs", str(out), "-d", str(out / ".doctrees")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


class Links(HTMLParser):
    """What an HTML page points to, what it loads, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.targets.append(found["href"])
        elif tag in ("link", "img", "script", "source", "iframe"):
            self.loaded += [found[name] for name in ("href", "src") if name in found]


@pytest.mark.slow
def test_the_site_has_no_warning_and_no_link_that_leads_nowhere(site: Path) -> None:
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert len(pages) > 30
    for path, links in pages.items():
        for target in links.loaded + links.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                assert target not in links.loaded, f"{path.name} loads {target}"
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert file.exists(), f"{path.name}: {target}"
            if parts.fragment and file in pages:
                assert unquote(parts.fragment) in pages[file].anchors, f"{path.name}: {target}"


@pytest.mark.slow
def test_formulas_of_the_site_are_mathml(site: Path) -> None:
    page = (site / "metrics.html").read_text(encoding="utf-8")
    shown = {s.formula for p in load_registry().metrics.values() for s in p.spec.scores}
    blocks = re.findall(r"<math [^>]*display=.block.*?</math>", page, re.DOTALL)
    assert len(blocks) >= len(shown) > 20
    # What the converter does not know it would leave as it stands.
    assert not [each for each in blocks if "\\" in each]


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("size", ["desktop", "phone"])
@pytest.mark.parametrize("dark", [False, True])
def test_the_site_can_be_read_by_everybody(site: Path, size: str, dark: bool) -> None:
    with window(size, dark=dark) as seen:
        for name in ("index", "concepts", "metrics", "cli"):
            seen.page.goto((site / f"{name}.html").as_uri())
            assert seen.faults() == [], name
            assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
    assert {urlsplit(each).scheme for each in seen.requests} <= {"file", "data"}


def module(name: str) -> ModuleType:
    """A file of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize("name", ["conf", "reference"])
def test_doctests_of_what_makes_the_pages(name: str) -> None:
    result = doctest.testmod(module(name))
    assert result.attempted and not result.failed


# --- what pages state of the project --------------------------------------------------------


def test_every_built_in_score_has_a_formula_and_every_metric_its_pitfalls() -> None:
    for name, plugin in load_registry().metrics.items():
        assert plugin.spec.pitfalls, name
        assert all(score.formula and score.summary for score in plugin.spec.scores), name


def test_required_packages_have_permissive_licences() -> None:
    reference = module("reference")
    for requirement in reference.dependencies()[""]:
        stated = reference.licence(reference.package_of(requirement))
        assert reference.permissive(stated), f"{requirement}: {stated}"


def test_a_licence_that_binds_is_not_taken_for_a_permissive_one() -> None:
    reference = module("reference")
    for package in ("tqdm", "certifi"):
        assert "MPL-2.0" in reference.licence(package)
        assert not reference.permissive(reference.licence(package))
    assert not reference.permissive(reference.UNKNOWN)


def test_the_version_is_one() -> None:
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    assert citation["version"] == project["version"] == chexgenbench.__version__
    assert citation["license"] == project["license"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## (Unreleased|{re.escape(project['version'])})", changes, re.MULTILINE)


def test_every_variable_of_ours_stands_on_a_page() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "platform").rglob("*.py"))
    pages = "".join((DOCS / f"{name}.md").read_text() for name in ("cli", "using_the_cli"))
    names = set(re.findall(r"\bCHEXGENBENCH_[A-Z]+\b", code))
    assert len(names) >= 2
    assert {name for name in names if f"`{name}" not in pages} == set()
