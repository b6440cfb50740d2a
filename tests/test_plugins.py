"""Plugins: found in every place, described, and refused with the reason when they are wrong."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from chexgenbench import hookspecs
from chexgenbench.errors import ChexGenBenchError, UserError
from chexgenbench.home import Home
from chexgenbench.registry import KINDS, _source_hash, describe, load_registry
from chexgenbench.types import Context, Request
from chexgenbench.workflow.options import Options
from chexgenbench.workflow.plan import find_models, parameter_values
from chexgenbench.workflow.suite import parse_settings, read_suite
from image_sets import image_set, task

GOOD = """
import numpy as np
from chexgenbench import Model, ModelSpec, hookimpl
class Grey(Model):
    def generate(self, requests):
        return [np.full((32, 32), 99, np.uint8) for _ in requests]
@hookimpl
def chexgenbench_models():
    yield ModelSpec(name="{name}", summary="grey", load=Grey)
"""


def plugin(folder: Path, file: str, code: str) -> Path:
    path = folder / file
    path.write_text(code)
    return path


def example(kind: str, number: int = 0) -> str:
    """A plugin in a hook's docstring."""
    text = inspect.getdoc(getattr(hookspecs, f"chexgenbench_{kind}")) or ""
    block = text.split("::\n")[1 + number]
    return inspect.cleandoc(re.split(r"\n(?=\S)", block)[0])


def test_the_example_of_a_task_metric_is_a_whole_plugin(tmp_path: Path) -> None:
    path = plugin(tmp_path, "novelty.py", example("metrics", 1))
    registry = load_registry([path])
    rng = np.random.default_rng(0)
    known = image_set(features=rng.normal(size=(30, 4)), side="training")
    made = image_set(features=known.features[:10] + 0.0, source="model")
    metric = registry.metrics["novelty"]
    context = Context(home=tmp_path, cache=tmp_path)
    found = metric.create(metric.parse({}), context).run(
        task({"made": made, "known": known}, tmp_path)
    )
    assert found.scores[0].estimate.value == 0 and not found.values[0].values.any()


def test_the_built_in_ones_are_all_there() -> None:
    registry = load_registry()
    assert not registry.problems
    assert set(registry.models) >= {
        "oracle",
        "memorizer",
        "noise",
        "images",
        "phantom-diffusion",
        "stable-diffusion",
    }
    assert set(registry.encoders) == {
        "phantom-clip",
        "inception-v3",
        "rad-dino",
        "dinov2",
        "clip",
        "biomedclip",
        "biovil-t",
        "torchxrayvision",
        "radiomics",
    }
    assert set(registry.metrics) == {
        "fid",
        "fid-infinity",
        "kid",
        "cmmd",
        "prdc",
        "inception-score",
        "vendi",
        "alignment",
        "frd",
        "memorisation",
        "membership",
        "reidentification",
        "pixel-distance",
        "latent-distance",
        "linear-probe",
        "classification",
        "report-generation",
    }
    assert set(registry.splits) == {"demo", "csv", "mimic-cxr", "exported", "open-i"}
    assert set(registry.judges) == {"scores", "vlm"}
    for kind in KINDS:
        for item in registry.of_kind(kind).values():
            described = describe(item.spec)
            assert described["summary"]
            assert described["licence"] != "not stated"
            assert all(entry["description"] for entry in described["parameters"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_of_each_hook_is_a_whole_plugin(tmp_path: Path, kind: str) -> None:
    path = plugin(tmp_path, "example.py", example(kind))
    registry = load_registry([path])
    new = set(registry.of_kind(kind)) - set(load_registry().of_kind(kind))
    assert len(new) == 1
    registry.find(kind, new.pop()).load()


def test_the_example_model_makes_images(tmp_path: Path) -> None:
    path = plugin(tmp_path, "stripes.py", example("models"))
    stripes = load_registry([path]).models["stripes"]
    context = Context(home=tmp_path, cache=tmp_path)
    model = stripes.create(stripes.parse({"width": "4"}), context)
    image = next(iter(model.generate([Request(id="a", prompt_id="a", prompt="x", seed=1)])))
    assert image.shape == (128, 128)


def test_a_folder_and_a_file_are_places_for_plugins(tmp_path: Path) -> None:
    folder = tmp_path / "plugins"
    folder.mkdir()
    plugin(folder, "one.py", GOOD.format(name="one"))
    plugin(folder, "broken.py", "import a_module_that_is_not_there")
    file = plugin(tmp_path, "one.py", GOOD.format(name="two"))
    registry = load_registry([file], folder)
    assert {"one", "two"} <= set(registry.models)
    (problem,) = registry.problems
    assert "broken.py" in problem.source
    assert "a_module_that_is_not_there" in problem.reason


def test_an_installed_package_is_a_place_too(tmp_path: Path) -> None:
    plugin(tmp_path, "third_party.py", GOOD.format(name="third-party"))
    info = tmp_path / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[chexgenbench]\nthird = third_party\n")
    done = subprocess.run(
        [sys.executable, "-m", "chexgenbench.cli.main", "models", "list"],
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "third-party" in done.stdout


def test_two_of_one_name_are_both_named(tmp_path: Path) -> None:
    path = plugin(tmp_path, "mine.py", GOOD.format(name="noise"))
    with pytest.raises(UserError, match="noise") as caught:
        load_registry([path])
    assert "mine.py" in caught.value.message
    assert "chexgenbench_plugins.models.noise" in caught.value.message


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import a_module_that_is_not_there", "a_module_that_is_not_there"),
        ("x = = 1", "SyntaxError"),
        ("x = 1", "has no hook"),
        (GOOD.replace("ModelSpec(name", "dict(name").format(name="a"), "dict, not a ModelSpec"),
        (GOOD.format(name="a/b"), "not a plugin name"),
        (GOOD.replace("yield", "1 / 0; yield").format(name="a"), "ZeroDivisionError"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_it(tmp_path: Path, code: str, message: str) -> None:
    path = plugin(tmp_path, "mine.py", code)
    with pytest.raises(UserError, match=message) as caught:
        load_registry([path])
    assert "mine.py" in caught.value.message


def test_a_missing_file() -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_registry([Path("no.py")])


def test_what_load_names_is_checked_when_it_is_used(tmp_path: Path) -> None:
    code = GOOD.replace("load=Grey", 'load="json:JSONDecoder"').format(name="odd")
    with pytest.raises(ChexGenBenchError, match="not a subclass of Model"):
        load_registry([plugin(tmp_path, "a.py", code)]).models["odd"].load()
    code = GOOD.replace("load=Grey", 'load="json:Nothing"').format(name="none")
    with pytest.raises(ChexGenBenchError, match=r"json:Nothing"):
        load_registry([plugin(tmp_path, "b.py", code)]).models["none"].load()
    code = GOOD.replace("load=Grey", 'load=Grey, requires=("not_there_at_all",)').format(name="far")
    with pytest.raises(UserError, match="not_there_at_all") as caught:
        load_registry([plugin(tmp_path, "c.py", code)]).models["far"].load()
    assert "pip install" in str(caught.value.hint)


def test_names_and_parameters_are_suggested() -> None:
    registry = load_registry()
    with pytest.raises(UserError, match="orcale") as caught:
        registry.find("models", "orcale")
    assert "'oracle'" in str(caught.value.hint)
    noise = registry.models["noise"]
    with pytest.raises(UserError, match="deviatoin") as caught:
        noise.parse({"deviatoin": 1})
    assert "'deviation'" in str(caught.value.hint)
    with pytest.raises(UserError, match="deviation"):
        noise.parse({"deviation": "much"})


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from chexgenbench.registry import load_registry; load_registry();"
        "print([m for m in ('torch', 'pandas', 'duckdb', 'diffusers', 'transformers', 'scipy')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_identity_covers_the_code_that_a_plugin_imports(tmp_path: Path) -> None:
    """The oracle's images depend on the renderer, the encoder's on its tokenizer."""
    registry = load_registry()
    own = [registry.models["noise"], registry.models["oracle"], registry.encoders["phantom-clip"]]
    assert len({item.source_hash() for item in own}) == 3
    package = tmp_path / "third_party_pack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("SHADE = 99\n")
    (package / "plugin.py").write_text("from . import helper\n" + GOOD.format(name="packed"))
    sys.path.insert(0, str(tmp_path))
    try:
        hashes = []
        for shade in (99, 98):
            (package / "helper.py").write_text(f"SHADE = {shade}\n")
            _source_hash.cache_clear()
            hashes.append(_source_hash("third_party_pack.plugin"))
        # What is imported for the type checker alone decides nothing.
        (package / "types_alone.py").write_text("SHADE = 1\n")
        guard = (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import types_alone\n"
        )
        code = "from . import helper\n" + guard + GOOD.format(name="packed")
        (package / "plugin.py").write_text(code)
        for shade in (1, 2):
            (package / "types_alone.py").write_text(f"SHADE = {shade}\n")
            _source_hash.cache_clear()
            hashes.append(_source_hash("third_party_pack.plugin"))
    finally:
        sys.path.remove(str(tmp_path))
    assert hashes[0] != hashes[1] != ""
    assert hashes[2] == hashes[3]


def test_a_location_is_no_part_of_an_identity() -> None:
    diffusion = load_registry().models["phantom-diffusion"]
    here, there = (diffusion.parse({"weights": place}) for place in ("a", "b"))
    assert here.identity() == there.identity()
    assert here.identity() != diffusion.parse({"weights": "a", "steps": 3}).identity()


STRIPES = """
import numpy as np
from pydantic import Field
from chexgenbench import Model, Parameters

class Stripes(Model):
    "Stripes of a width."

    class Parameters(Parameters):
        width: int = Field(8, ge=1, description="Width.")

    def generate(self, requests):
        for request in requests:
            row = np.arange(64) // self.parameters.width % 2 * 200
            yield np.tile(row, (64, 1)).astype(np.uint8)

class Other:
    pass
"""


def test_a_model_is_named_by_label_plugin_and_text(tmp_path: Path) -> None:
    folder = tmp_path / "my=images:of" / "chests"
    folder.mkdir(parents=True)
    registry = load_registry(home=tmp_path)
    plain = registry.find("models", "noise")
    assert (plain.name, plain.text, plain.parse({}).size) == ("noise", "noise", 128)
    labelled = registry.find("models", "worst=noise")
    assert (labelled.name, labelled.spec.name) == ("worst", "noise")
    assert labelled.identity() == plain.identity()  # a label makes no other images
    images = registry.find("models", f"images:{folder}")
    assert (images.name, images.parse({}).folder) == ("images:chests", str(folder))
    below = registry.find("models", "mine=images:my=images:of/chests")
    assert (below.name, below.parse({}).folder) == ("mine", str(folder))
    for model in (plain, labelled, images, below):
        again = registry.find("models", model.text)
        assert (again.name, again.values) == (model.name, model.values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("noise:5", "takes no text"),
        ("images:", "after its colon"),
        ("images:a\x1b[2Jb", "after its colon"),
        ("=noise", "no model named '=noise'"),
        ("mine=nois", "no model named 'nois'"),
        ("py", "py:FILE:CLASS"),
        ("mine=py", "py:FILE:CLASS"),
        ("py:quick.py", "py:FILE:CLASS"),
        ("py:nowhere.py:Stripes", "does not exist"),
        ("diffusers", "diffusers:ID_OR_DIR"),
        ("oracle=noise", "name of another model"),
    ],
)
def test_a_model_text_that_names_nothing(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        find_models(load_registry(home=tmp_path), [text])
    assert message in f"{caught.value.message} {caught.value.hint}"


def test_a_place_that_cannot_be_one_is_a_name(tmp_path: Path) -> None:
    registry = load_registry(home=tmp_path)
    for text in ("~nosuchuser/x", "a" * 300, "a\u0000b".replace("\0", "")):
        assert registry.find("models", f"images:{text}").parse({}).folder == text


def test_two_models_of_one_name_want_a_label(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place / "images").mkdir(parents=True)
    registry = load_registry(home=tmp_path)
    with pytest.raises(UserError, match="both be called 'images:images'") as caught:
        find_models(registry, ["images:a/images", "images:b/images"])
    assert "--model LABEL=images:b/images" in str(caught.value.hint)
    assert set(find_models(registry, ["images:a/images", "b=images:b/images"])) == {
        "images:images",
        "b",
    }


def test_a_class_in_a_file_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "quick.py"
    file.write_text(STRIPES)
    registry = load_registry(home=tmp_path)
    found = registry.find("models", "py:quick.py:Stripes")
    assert (found.name, found.spec.summary) == ("py:Stripes", "Stripes of a width.")
    before = found.identity()
    model = found.create(found.parse({"width": "4"}), Context(home=tmp_path, cache=tmp_path))
    request = Request(id="a", prompt_id="a", prompt="a", seed=1)
    assert np.asarray(next(iter(model.generate([request]))))[0, 4] == 200
    file.write_text(STRIPES.replace("200", "100"))
    _source_hash.cache_clear()
    assert registry.find("models", "py:quick.py:Stripes").identity() != before
    for text, message in (
        ("py:quick.py:Other", "no model class 'Other'"),
        ("py:quick.py:Stripe", "no model class 'Stripe'"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            registry.find("models", text)
        assert "Stripes" in str(caught.value.hint)
    helper = tmp_path / "stripe_helper.py"
    helper.write_text("WHITE = 200")
    file.write_text("import stripe_helper\n" + STRIPES)
    monkeypatch.syspath_prepend(str(tmp_path))
    _source_hash.cache_clear()
    before = registry.find("models", "py:quick.py:Stripes").identity()
    helper.write_text("WHITE = 100")
    _source_hash.cache_clear()
    assert registry.find("models", "py:quick.py:Stripes").identity() != before
    file.write_text("from chexgenbench import Model\nclass Stripes(Model): pass")
    with pytest.raises(UserError, match="does not define generate"):
        registry.find("models", "py:quick.py:Stripes")
    file.write_text("1 / 0")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        registry.find("models", "py:quick.py:Stripes")


def test_settings_reach_a_label_or_all_labels_of_a_plugin() -> None:
    kinds = {"noise": "model", "dark": "model", "kid": "metric"}
    has = {"noise": {"size", "mean"}, "dark": {"size", "mean"}, "kid": {"degree"}}
    plugins = {"noise": "noise", "dark": "noise", "kid": "kid"}

    def parse(*settings: str) -> dict[str, dict[str, object]]:
        return parse_settings(list(settings), kinds, has, plugins)

    assert parse("size=5") == {"noise": {"size": "5"}, "dark": {"size": "5"}}
    assert parse("dark.mean=0", "mean=1") == {"noise": {"mean": "1"}, "dark": {"mean": "0"}}
    # A plugin's values reach each of its labels, whichever of them run, and a label's come after.
    assert parse("noise.mean=1") == {"noise": {"mean": "1"}, "dark": {"mean": "1"}}
    assert parse("dark.mean=0", "noise.mean=1")["dark"] == {"mean": "0"}
    assert parse("kid.degree=2") == {"kid": {"degree": "2"}}
    only = parse_settings(["sana.steps=3"], {"a": "model"}, {"a": {"steps"}}, {"a": "sana"})
    assert only == {"a": {"steps": "3"}}
    odd = {"images:a=b": "model"}
    assert parse_settings(["images:a=b.csv=c=d"], odd, {"images:a=b": {"csv"}}, {}) == {
        "images:a=b": {"csv": "c=d"}
    }
    for wrong in ("size", "=5", "steps=5", "noise.=1"):
        with pytest.raises(UserError):
            parse(wrong)


SUITE = """
split = "demo"
models = ["a=noise", "b=noise", "oracle"]
encoders = ["phantom-clip"]
metrics = ["kid"]
[parameters.noise]
size = 64
[parameters.b]
size = 32
"""


@pytest.mark.parametrize("models", [None, ["a=noise"], ["oracle"], ["noise", "b=noise"]])
def test_parameters_of_a_suite_hold_for_the_labels_that_run(
    tmp_path: Path, models: list[str] | None
) -> None:
    (tmp_path / "mine.toml").write_text(SUITE)
    home = Home(tmp_path)
    suite = read_suite(str(tmp_path / "mine.toml"), home, {"models": models})
    registry = load_registry(home=tmp_path)
    chosen = find_models(registry, suite.models)
    values = parameter_values(Options(home=home), suite, chosen)
    sizes = {name: value.get("size") for name, value in values.items() if name != "oracle"}
    assert sizes.items() <= {"a": 64, "b": 32, "noise": 64}.items()
    # Somebody who brings images runs none of them.
    assert parameter_values(Options(home=home), suite, {}) == {}
    with pytest.raises(UserError, match="named 'c'"):
        wrong = suite.model_copy(update={"parameters": {"c": {}}})
        parameter_values(Options(home=home), wrong, chosen)
