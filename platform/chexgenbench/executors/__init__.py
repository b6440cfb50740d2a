"""Where jobs run: this machine's processes, other interpreters, containers, clusters."""

from chexgenbench.executors.encoding import encode_elsewhere
from chexgenbench.executors.launch import Launcher, Processes
from chexgenbench.executors.processes import ModelSource, run_workers
from chexgenbench.executors.shards import run_shards
from chexgenbench.executors.task_metrics import TaskFailed, run_task
from chexgenbench.executors.workplace import Workplace

__all__ = [
    "Launcher",
    "ModelSource",
    "Processes",
    "TaskFailed",
    "Workplace",
    "encode_elsewhere",
    "run_shards",
    "run_task",
    "run_workers",
]
