"""Scores pairs of reports with the package radgraph, in the environment that it needs.

Run by `chexgenbench_plugins.reports.scores.radgraph_f1` with that environment's interpreter; it
imports nothing of this project. Arguments: the folder of the weights, the device (-1 or the number
of a GPU), a JSON file with ``references`` and ``generated``, and the JSON file to write: a list.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(folder: Path, device: int, source: Path, target: Path) -> None:
    """Writes the reward ``partial`` of each pair."""
    from radgraph import F1RadGraph

    texts = json.loads(source.read_text(encoding="utf-8"))
    scorer = F1RadGraph(
        reward_level="partial",
        model_type=folder.name,
        model_cache_dir=str(folder.parent),
        cuda=device,
    )
    _, rewards, _, _ = scorer(refs=texts["references"], hyps=texts["generated"])
    target.write_text(json.dumps([float(reward) for reward in rewards]), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
