"""Settings that every test run shares; the notebooks' kernels inherit the environment."""

import os

import pytest

# A progress bar's output differs from run to run, and nbval compares what a cell prints.
os.environ["TQDM_DISABLE"] = "1"
# Where several notebooks run side by side, one thread each is faster than all threads for all.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Compare the pictures of a notebook's cell as well, which nbval passes over."""
    result = yield
    if hasattr(item, "test_outputs") and item.options["check"]:
        from pictures import check

        check(item)
    return result
