"""Run in the environment: what it is for is there, and a worker's packages work beside it."""

import numpy
import pandas
import pyarrow.parquet
import safetensors

import chexgenbench.jobs.worker

assert numpy.__version__ == "1.26.4", numpy.__version__
assert chexgenbench.jobs.worker.main
assert pyarrow.parquet.read_table and safetensors.safe_open
assert len(pandas.DataFrame({"a": [1, 2]}).query("a > 1")) == 1
print("numpy", numpy.__version__)
