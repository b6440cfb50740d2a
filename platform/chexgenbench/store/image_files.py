"""Where the images that a run's tables name lie.

A run may come from elsewhere and name any path, so each is held inside the folder that it starts
from.
"""

from __future__ import annotations

from pathlib import Path

from chexgenbench.files import inside


def real_image(images_root: str | None, path: str | None) -> Path:
    """The file of a real image of a run.

    Args:
        images_root: of the run's record.
        path: from there, as the prompts table has it.

    Raises:
        ValueError: the run or the row has none, or the path leads out of the images root.
    """
    if not images_root or not isinstance(path, str) or not path:
        raise ValueError("the row names no real image")
    if not Path(images_root).is_absolute():
        raise ValueError(f"the images root {images_root!r} is no whole path")
    return inside(Path(images_root), path)


def generated_image(
    generations: Path, generation: str | None, path: str | None, *, own: bool
) -> Path:
    """The file of a generated image of a run.

    Args:
        generations: `Home.generations`.
        generation, path: of the row.
        own: the images were there before the run, which has no model plugin. Theirs may be whole
            paths, to any file: a caller shows or hands out one only while its content is what the
            run scored.

    A generation's own folder may be a link: that is whose disk it is.

    Raises:
        ValueError: the row names no image, the generation is no name, or the path leads out of its
            folder.
    """
    if not isinstance(path, str):
        raise ValueError("the row names no image")
    if own and Path(path).is_absolute():
        return Path(path)
    name = generation if isinstance(generation, str) else ""
    if name in ("", "..") or Path(name).name != name:
        raise ValueError(f"{generation!r} names no generation")
    return inside(generations / name, path)
