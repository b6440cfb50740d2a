"""Where things lie: the project folder of the user, and the cache that all projects share."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from chexgenbench.errors import UserError


@dataclass(frozen=True)
class Home:
    """The folders of one project.

    Attributes:
        root: ``--home``, CHEXGENBENCH_HOME, or the current folder.
    """

    root: Path

    @classmethod
    def find(cls, root: Path | None = None) -> Home:
        """The home the user named, else CHEXGENBENCH_HOME, else the current folder."""
        chosen = root or Path(os.environ.get("CHEXGENBENCH_HOME") or ".")
        return cls(real_path(chosen))

    @property
    def results(self) -> Path:
        return self.root / "Results"

    @property
    def store(self) -> Path:
        return self.results / "chexgenbench.duckdb"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def generations(self) -> Path:
        return self.runs / "generations"

    @cached_property
    def cache(self) -> Path:
        """CHEXGENBENCH_CACHE, or the user's cache folder."""
        named = os.environ.get("CHEXGENBENCH_CACHE")
        if named:
            return real_path(Path(named))
        import platformdirs

        return Path(platformdirs.user_cache_dir("chexgenbench", appauthor=False))

    @staticmethod
    def user_folder() -> Path:
        """The user's own folder of suites and, in ``plugins``, of plugins."""
        import platformdirs

        return Path(platformdirs.user_config_dir("chexgenbench", appauthor=False))

    @property
    def features(self) -> Path:
        return self.cache / "features"

    @property
    def hashes(self) -> Path:
        """What `HashCache` keeps."""
        return self.cache / "hashes.sqlite"

    @property
    def option(self) -> str:
        """`` --home PLACE`` where a command needs it to find this home again, else nothing."""
        return (
            "" if Home.find().root == self.root else f" --home {shlex.quote(self.shown(self.root))}"
        )

    def shown(self, path: Path) -> str:
        """`path` as the user would type it: relative to the current folder where it lies below."""
        try:
            return str(path.resolve().relative_to(Path.cwd()))
        except ValueError:
            return str(path)


def real_path(path: Path) -> Path:
    """The place that a user named: absolute, ``~`` and links followed.

    Raises:
        UserError: there is no such user, or a link leads to itself.
    """
    try:
        return path.expanduser().resolve()
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f"{path} names no place: {error}.") from error


def interpreter(cache: Path, environment: str | None) -> Path | None:
    """The Python of an environment of its own in the cache; None where it is not there."""
    if environment is None:
        return None
    path = cache / "environments" / environment / "bin" / "python"
    return path if path.is_file() else None
