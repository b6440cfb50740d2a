"""Images of the store's rows as small WebP files: a row names the file, never an address."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from chexgenbench.errors import UserError
from chexgenbench.files import inside, sha256_file
from chexgenbench.home import Home
from chexgenbench.images import BadImage, webp
from chexgenbench.store.image_files import generated_image, real_image
from chexgenbench.view.reader import Session

EDGES = (160, 320, 1024)
"""Longest sides, in pixels, that an address may ask for."""

Side = Literal["image", "other"]


class NoPicture(UserError):
    """There is no such image, or it is not to be shown; the message names no path."""


class Pictures:
    """Finds the file of a row and makes it small.

    Args:
        most: bytes of images that are kept in memory.
    """

    def __init__(self, home: Home, *, most: int = 64_000_000) -> None:
        self._home, self._most = home, most
        self._kept: OrderedDict[tuple[str, int, int, int], bytes] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def webp(self, path: Path, edge: int) -> bytes:
        """The image, neither side longer than `edge`.

        Raises:
            NoPicture: the file is gone, or is no image.
        """
        try:
            status = path.stat()
            key = (str(path), status.st_mtime_ns, status.st_size, edge)
            with self._lock:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    return self._kept[key]
            data = webp(path, edge)
        except (BadImage, OSError) as error:
            raise NoPicture("The image cannot be read.") from error
        with self._lock:
            if key not in self._kept:
                self._kept[key] = data
                self._size += len(data)
                while self._size > self._most and len(self._kept) > 1:
                    self._size -= len(self._kept.popitem(last=False)[1])
        return data

    def generated(self, session: Session, run: str, prompt: str, repeat: int) -> Path:
        """The file of an image of a run, inside its generation.

        The images of `evaluate` lie where the user had them; such a file is shown only while its
        content is what the run scored.
        """
        _allowed(session, run)
        found = session.rows(
            "SELECT images.generation_id, path, sha256, model_plugin FROM images "
            "JOIN runs USING (run_id) WHERE run_id = ? AND prompt_id = ? AND repeat = ?",
            [run, prompt, repeat],
        )
        if not found:
            raise NoPicture("The store has no such image.")
        row = found[0]
        own = row["model_plugin"] is None
        path = self._generated(row["generation_id"], row["path"], own=own)
        return self._unchanged(path, row["sha256"]) if Path(row["path"]).is_absolute() else path

    def real(self, session: Session, run: str, prompt: str) -> Path:
        """The real image of a prompt, inside the images root of the run's split."""
        _allowed(session, run)
        found = session.rows(
            "SELECT images_root, image_path FROM prompts JOIN runs USING (run_id) "
            "WHERE run_id = ? AND prompt_id = ?",
            [run, prompt],
        )
        if not found or found[0]["images_root"] is None or found[0]["image_path"] is None:
            raise NoPicture("There is no real image to show.")
        with _elsewhere():
            return real_image(found[0]["images_root"], found[0]["image_path"])

    def pair(
        self,
        session: Session,
        run: str,
        plugin: str,
        encoder: str,
        kind: str,
        rank: int,
        side: Side,
    ) -> Path:
        """One side of a pair of `neighbours`: a generated image, or the image beside it."""
        _allowed(session, run)
        found = session.rows(
            "SELECT n.*, runs.images_root, coalesce(i.path, p.path) AS own_path, "
            "coalesce(i.generation_id, p.generation_id) AS generation_id "
            "FROM neighbours AS n JOIN runs USING (run_id) "
            "LEFT JOIN images AS i ON i.run_id = n.run_id AND i.image_id = n.image_id "
            "LEFT JOIN pool_images AS p ON p.run_id = n.run_id AND p.image_id = n.image_id "
            "WHERE n.run_id = ? AND n.plugin = ? AND n.encoder = ? AND n.kind = ? AND n.rank = ?",
            [run, plugin, encoder, kind, rank],
        )
        if not found:
            raise NoPicture("The store has no such pair.")
        row = found[0]
        if side == "image":
            if row["generation_id"] is not None and not Path(row["own_path"]).is_absolute():
                return self._generated(row["generation_id"], row["own_path"], own=False)
            return self._unchanged(Path(row["path"]), row["sha256"])
        if row["other_path"] is None:
            raise NoPicture("The other image is not shown.")
        with _elsewhere():
            if row["other_real"]:
                return real_image(row["images_root"], row["other_path"])
            return inside(self._home.generations, row["other_path"])

    def _generated(self, generation: str | None, path: str, *, own: bool) -> Path:
        with _elsewhere():
            return generated_image(self._home.generations, generation, path, own=own)

    def _unchanged(self, path: Path, sha256: str) -> Path:
        try:
            if not path.is_file() or sha256_file(path) != sha256:
                raise NoPicture("The image is not the one that the run scored.")
        except OSError as error:
            raise NoPicture("The image cannot be read.") from error
        return path


def _allowed(session: Session, run: str) -> None:
    """A baseline may answer with patients' own images: none of a hidden run is shown."""
    if run in session.hidden:
        raise NoPicture("The split is credentialed: --include-credentialed shows its images.")


@contextmanager
def _elsewhere() -> Iterator[None]:
    """Raises `NoPicture` for a path that leads nowhere, or out of its folder."""
    try:
        yield
    except ValueError as error:
        raise NoPicture("The image lies outside its folder.") from error
