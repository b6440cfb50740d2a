"""Pages in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="SKIPPED, NO CHROMIUM HERE: apt-get install chromium"
)
SIZES = {"desktop": (1300, 900), "phone": (390, 844)}
_SERIOUS = ("serious", "critical")


@dataclass
class Window:
    """A page, with what its console and its network said."""

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def faults(self) -> list[str]:
        """The serious and critical ones that axe-core finds, with where they are."""
        from axe_playwright_python.sync_playwright import Axe

        found: list[dict[str, Any]] = Axe().run(self.page).response["violations"]
        return [
            f"{item['id']} ({item['impact']}): {[node['target'] for node in item['nodes'][:3]]}"
            for item in found
            if item["impact"] in _SERIOUS
        ]

    def shoot(self, name: str, *, shown: bool) -> None:
        """A picture of what the screen shows, which must not be of one colour. Those that are
        `shown` in the documentation are kept where CHEXGENBENCH_SHOTS says."""
        with Image.open(io.BytesIO(self.page.screenshot())) as image:
            assert len(image.convert("L").getcolors() or []) > 50, name
            packed = io.BytesIO()
            image.save(packed, "webp", quality=70, method=6)
        assert len(packed.getvalue()) < 200_000, name
        place = os.environ.get("CHEXGENBENCH_SHOTS")
        if place and shown:
            (Path(place) / f"{name}.webp").write_bytes(packed.getvalue())


@contextmanager
def window(size: str = "desktop", *, dark: bool = False, **options: Any) -> Iterator[Window]:
    """An empty page that keeps downloads; `options` go to Playwright's `new_context`."""
    from playwright.sync_api import sync_playwright

    assert CHROMIUM is not None
    width, height = SIZES[size]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            **options,
        )
        found = Window(context.new_page())
        found.page.on(
            "console",
            lambda message: found.errors.append(message.text) if message.type == "error" else None,
        )
        found.page.on("pageerror", lambda error: found.errors.append(str(error)))
        found.page.on("request", lambda request: found.requests.append(request.url))
        try:
            yield found
        finally:
            browser.close()
