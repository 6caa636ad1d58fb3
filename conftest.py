"""Settings that every test run shares; the notebooks' kernels inherit the environment."""

import os

# A progress bar's output differs from run to run, and nbval compares what a cell prints.
os.environ["TQDM_DISABLE"] = "1"
