"""The embedded demo: chest phantoms, drawn when their images are first needed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from chexgenbench import Split, SplitSource, SplitSpec, hookimpl
from chexgenbench_plugins.data import data_folder


class Demo(Split):
    def source(self) -> SplitSource:
        folder = data_folder("demo_split")
        images = self.context.cache / "phantom" / _renderer()

        def materialise(csv: Path, ids: Sequence[str]) -> None:
            from chexgenbench_plugins.phantom.split import read_rows, render_images

            wanted = set(ids)
            render_images([row for row in read_rows(csv) if row["id"] in wanted], images)

        return SplitSource(
            test=folder / "DEMO_ANNOTATIONS_TEST.csv",
            train=folder / "DEMO_ANNOTATIONS_TRAIN.csv",
            images_root=images,
            materialise=materialise,
        )


def _renderer() -> str:
    """A hash of the code that draws, so that images of an older renderer are not taken for new."""
    import chexgenbench_plugins.phantom as phantom

    code = hashlib.sha256()
    for path in sorted(Path(phantom.__path__[0]).glob("*.py")):
        if path.name != "clip.py":
            code.update(path.read_bytes())
    return code.hexdigest()[:16]


@hookimpl
def chexgenbench_splits() -> Iterator[SplitSpec]:
    yield SplitSpec(
        name="demo",
        summary="Chest phantoms: 544 test prompts, 4,000 training rows, no patient",
        load=Demo,
        licence="Apache-2.0",
        references=("docs/phantom.md",),
    )
