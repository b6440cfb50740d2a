"""Run in the environment: radgraph imports, with the method of tokenizers that it calls."""

import transformers
from radgraph import F1RadGraph, RadGraph
from transformers import BertTokenizerFast

import chexgenbench.jobs.worker

assert transformers.__version__ == "4.57.6", transformers.__version__
assert F1RadGraph and RadGraph and chexgenbench.jobs.worker.main
assert hasattr(BertTokenizerFast, "encode_plus"), "radgraph 0.1.18 calls it"
print("radgraph with transformers", transformers.__version__)
