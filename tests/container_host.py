"""Real containers for the tests: a podman that works as root in a sandbox, and a base image.

No registry is asked: the base is Debian bookworm with Python, made by debootstrap once a machine
and kept in podman's storage. Where podman or debootstrap is not there, the tests that need it are
skipped.
"""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

BASE = "localhost/chexgenbench-test-base"

_CONF = """\
[containers]
default_ulimits = []
netns = "none"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""


def podman_environment(folder: Path) -> dict[str, str]:
    """Environment variables with which podman runs here; skips where it does not.

    Args:
        folder: takes podman's configuration: without systemd it needs another one than Debian's.
    """
    lacking = [name for name in ("podman", "runc", "debootstrap") if shutil.which(name) is None]
    if lacking:
        pytest.skip(f"NO CONTAINER IS TESTED: {', '.join(lacking)} not installed")
    if os.geteuid() != 0:
        pytest.skip(
            "NO CONTAINER IS TESTED: the base image is made by debootstrap, which needs root"
        )
    conf = folder / "containers.conf"
    conf.write_text(_CONF)
    return {**os.environ, "CONTAINERS_CONF": str(conf)}


def building(folder: Path) -> dict[str, str]:
    """Environment variables with which podman builds here: by the host's network, with its
    certificates where the base (Debian) looks for them."""
    conf = folder / "building.conf"
    text = _CONF.replace('netns = "none"', 'netns = "host"')
    bundle = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
    if bundle and Path(bundle).is_file():
        mount = f"{Path(bundle).resolve()}:/etc/ssl/certs/ca-certificates.crt:ro"
        text = text.replace("[engine]", f'volumes = ["{mount}"]\n[engine]')
    conf.write_text(text)
    return {**os.environ, "CONTAINERS_CONF": str(conf)}


def base_image(environment: dict[str, str], folder: Path) -> str:
    """The name of an image with Debian's Python 3.11, made where it is not there yet."""
    with FileLock("/tmp/chexgenbench-test-base.lock"):
        known = ["podman", "image", "exists", BASE]
        if subprocess.run(known, env=environment).returncode:
            root = folder / "rootfs"
            packages = "ca-certificates,python3,python3-venv,python3-pip"
            made = subprocess.run(
                [
                    "debootstrap",
                    "--variant=minbase",
                    f"--include={packages}",
                    "bookworm",
                    str(root),
                ],
                capture_output=True,
                text=True,
            )
            if made.returncode:
                pytest.skip(f"NO CONTAINER IS TESTED: debootstrap failed: {made.stderr[-300:]}")
            subprocess.run(
                f"tar -C {root} -c . | podman import - {BASE}",
                shell=True,
                check=True,
                env=environment,
                capture_output=True,
            )
            shutil.rmtree(root)
    return BASE
