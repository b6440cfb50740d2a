"""Where jobs run: worker processes on one or several devices, in any interpreter."""

from chexgenbench.executors.processes import ModelSource, run_workers

__all__ = ["ModelSource", "run_workers"]
