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
    if not images_root or not path or not Path(images_root).is_absolute():
        raise ValueError("the row names no real image")
    return inside(Path(images_root), path)


def generated_image(generations: Path, generation: str | None, path: str, *, own: bool) -> Path:
    """The file of a generated image of a run.

    Args:
        generations: `Home.generations`.
        generation, path: of the row.
        own: the images were there before the run, which has no model plugin. Theirs may be whole
            paths, to any file: a caller shows or uses one only while its content is what the run
            scored.

    Raises:
        ValueError: the generation is no name, or the path leads out of its folder.
    """
    if own and Path(path).is_absolute():
        return Path(path)
    if not generation or generation == ".." or Path(generation).name != generation:
        raise ValueError(f"{generation!r} names no generation")
    return inside(generations / generation, path)
