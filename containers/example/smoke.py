"""Run in the environment: what it is for is there, and a worker's packages work beside it."""

import numpy
import pyarrow.parquet

import chexgenbench.jobs.worker

assert numpy.__version__ == "1.26.4", numpy.__version__
assert chexgenbench.jobs.worker.main
assert pyarrow.parquet.read_table
print("numpy", numpy.__version__)
