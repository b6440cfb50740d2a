"""The built-in plugins; in a checkout their code lies in the top-level `plugins/` folder."""

from pathlib import Path

# In a wheel the folders are inside this package already, and the added path does not exist.
__path__.append(str(Path(__file__).resolve().parents[2] / "plugins"))
