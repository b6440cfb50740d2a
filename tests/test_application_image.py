"""The root Dockerfile: what a builder is sent, and the demo in a container of the image.

The whole image takes packages of 2 to 7 GB and ten minutes, so it is built only where
CHEXGENBENCH_TEST_IMAGE says with what: ``cpu`` or ``cuda``, or the path of a folder with wheels of
torch and torchvision for processors. The stage that makes the wheel is built wherever podman is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from container_host import base_image, building, podman_environment

ROOT = Path(__file__).resolve().parent.parent
SECRET = "a patient's report"

PLANTED = (
    "MIMIC_Splits/MIMIC_TEST.csv",
    "MIMIC_Splits/images/p10/s1.jpg",
    "assets/CSV/prompt_INFO.csv",
    "assets/synthetic_images/1.png",
    "runs/generations/0/manifest.jsonl",
    "Results/chexgenbench.duckdb",
    ".venv/secret.py",
    ".git/config",
    ".env",
)
"""Files of a user's checkout that no builder may be sent."""


@dataclass
class Podman:
    running: Mapping[str, str]
    building: Mapping[str, str]
    base: str

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = self.building if arguments[0] == "build" else self.running
        return subprocess.run(
            ["podman", *arguments], env=environment, capture_output=True, text=True
        )

    def build(self, context: Path, tag: str, *arguments: str) -> str:
        """Everything that the build said, ``failed`` at its end where it did."""
        done = self(
            *("build", "--format", "docker", "--tag", tag, "--build-arg", f"BASE={self.base}"),
            *(*arguments, "--file", str(context / "Dockerfile"), str(context)),
        )
        return done.stdout + done.stderr + ("failed" if done.returncode else "")

    def done(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = self(*arguments)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done

    def output(self, *arguments: str) -> str:
        return self.done(*arguments).stdout


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Podman:
    folder = tmp_path_factory.mktemp("podman")
    environment = podman_environment(folder)
    base = base_image(environment, folder)
    return Podman(environment, building(folder), base)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this one, as a user has it who has worked with patients in it."""
    folder = tmp_path_factory.mktemp("checkout") / "copy"
    left_out = (".venv", ".git", "runs", "Results", "tests", "docs", "build", "dist")
    shutil.copytree(
        ROOT,
        folder,
        ignore=lambda path, _names: left_out if Path(path) == ROOT else ("__pycache__",),
    )
    for name in PLANTED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(SECRET)
    return folder


@pytest.mark.slow
def test_a_builder_is_sent_no_patient_and_the_wheel_has_the_demo(
    podman: Podman, checkout: Path, tmp_path: Path
) -> None:
    tag = f"localhost/chexgenbench-test-wheel:{uuid.uuid4().hex[:12]}"
    said = podman.build(checkout, tag, "--target", "wheel")
    assert not said.endswith("failed"), said[-3000:]
    name = tag.rpartition(":")[2]
    try:
        podman.output("create", "--name", name, tag, "true")
        podman.output("cp", f"{name}:/source", str(tmp_path / "source"))
        podman.output("cp", f"{name}:/dist", str(tmp_path / "dist"))
    finally:
        podman("rm", "--force", name)
        podman("rmi", "--force", tag)
    sent = [path for path in (tmp_path / "source").rglob("*") if path.is_file()]
    assert tmp_path / "source" / "pyproject.toml" in sent
    assert not [path for path in sent if SECRET.encode() in path.read_bytes()]
    (wheel,) = (tmp_path / "dist").glob("chexgenbench-*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    for part in (
        "chexgenbench/cli/main.py",
        "chexgenbench_plugins/models/noise.py",
        "chexgenbench_plugins/data/demo_split/DEMO_ANNOTATIONS_TEST.csv",
        "chexgenbench_plugins/data/phantom-clip/model.safetensors",
        "chexgenbench_plugins/data/phantom-diffusion/unet/diffusion_pytorch_model.safetensors",
    ):
        assert part in packed


def test_the_compose_file_lets_nothing_out() -> None:
    """No network; nothing to write but the results, which the SQL service cannot write either."""
    services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert services.keys() == {"demo", "sql"}
    for service in services.values():
        assert service["read_only"] is True
        assert service["network_mode"] == "none"
        assert service["cap_drop"] == ["ALL"]
    assert services["sql"]["volumes"] == ["results:/data:ro"]


@pytest.fixture(scope="module")
def image(podman: Podman) -> Iterator[str]:
    kind = os.environ.get("CHEXGENBENCH_TEST_IMAGE")
    if not kind:
        pytest.skip(
            "THE APPLICATION IMAGE IS NOT TESTED: set CHEXGENBENCH_TEST_IMAGE to cpu, cuda, or a "
            "folder with wheels of torch and torchvision (ten minutes, 2 to 7 GB)"
        )
    chosen = ["--build-arg", f"TORCH={kind}"]
    if Path(kind).is_dir():
        chosen = ["--build-context", f"wheels={kind}"]
    tag = "localhost/chexgenbench-test-application"
    said = podman.build(ROOT, tag, "--build-arg", "COMMIT=abc", *chosen)
    assert not said.endswith("failed"), said[-3000:]
    yield tag
    podman("rmi", "--force", tag)


@pytest.mark.slow
def test_the_demo_runs_in_the_image_and_the_volume_keeps_it(podman: Podman, image: str) -> None:
    volume = f"chexgenbench-test-{uuid.uuid4().hex[:12]}"
    held = ["run", "--rm", "--runtime", "runc", "--ulimit", "host", "--network", "none"]
    held += ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"]
    held += ["--security-opt", "no-new-privileges"]
    mine = [*held, "--volume", f"{volume}:/data", image]
    asked = ["run", "--limit", "20", "--model", "oracle", "--model", "noise"]
    try:
        first = podman.done(*mine, *asked)
        assert "generate noise: 20 of 20 images" in first.stderr
        board = first.stdout
        assert board.index("oracle") < board.index("Store: Results/chexgenbench.duckdb")
        again = podman.done(*mine, *asked)
        assert "generate noise" not in again.stderr
        compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
        entry, (query,) = (compose["services"]["sql"][key] for key in ("entrypoint", "command"))
        said = podman.output(
            *(*held, "--volume", f"{volume}:/data:ro", "--entrypoint", entry[0], image),
            *(*entry[1:], query),
        )
        assert said.index("oracle") < said.index("noise")
        health = podman.output("inspect", "--format", "{{json .HealthCheck}}", image)
        assert '"CMD","chexgenbench","doctor"' in health
        assert "FAULT" not in podman.output(*mine, "doctor")
        inside = [*mine[:-1], "--entrypoint", "sh", image, "-c"]
        assert podman.output(*inside, "id -u").strip() == "1000"
        assert podman(*inside, "touch /opt/x").returncode
        for tool in ("gcc", "make"):
            assert podman(*inside, f"command -v {tool}").returncode
    finally:
        podman("volume", "rm", "--force", volume)


@pytest.mark.slow
def test_a_word_that_is_no_kind_of_torch_is_refused(podman: Podman) -> None:
    tag = "localhost/chexgenbench-test-none"
    said = podman.build(ROOT, tag, "--target", "environment", "--build-arg", "TORCH=gpu")
    assert said.endswith("failed")
    assert "TORCH=gpu is neither cpu nor cuda." in said
