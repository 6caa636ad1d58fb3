"""Settings that every test run shares; the notebooks' kernels inherit the environment."""

import os
from pathlib import Path

import pytest

# A progress bar's output differs from run to run, and nbval compares what a cell prints.
os.environ["TQDM_DISABLE"] = "1"
# Pictures are compared too, and among those that are stored are the explorers' stills.
os.environ["DVAE_STILLS"] = "1"
# Where several notebooks run side by side, one thread each is faster than all threads for all.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# A notebook's kernel runs in the notebook's own folder.
if os.environ.get("DVAE_DATA"):
    os.environ["DVAE_DATA"] = str(Path(os.environ["DVAE_DATA"]).expanduser().absolute())

# What nbval does not compare of the cells' outputs. It would look for a relative path where pytest was started.
MASKS = Path(__file__).resolve().parent / "tools" / "nbval.cfg"

LEFT_OUT = """needs the binarised MNIST, which is not at hand: run, once and with a network, \
python -c "from dvae_lib import binarized_mnist; binarized_mnist('test')", or set DVAE_DATA to a folder that holds it"""


def pytest_configure(config):
    """Give nbval the masks, wherever pytest was started, unless the command names a file of its own."""
    if config.getoption("nbval_sanitize_with", None) is None:
        config.option.nbval_sanitize_with = str(MASKS)


def pytest_collection_modifyitems(items):
    """Leave out the notebooks that would download the digits; the summary at the end says so."""
    needing = {item.path for item in items if hasattr(item, "cell") and "binarized_mnist(" in item.cell.source}
    if needing:
        from dvae_lib.runs.digits import mnist_is_at_hand

        for item in items:
            if item.path in needing and not mnist_is_at_hand():
                item.add_marker(pytest.mark.skip(reason=LEFT_OUT))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Compare the pictures of a notebook's cell as well, which nbval passes over."""
    result = yield
    if hasattr(item, "test_outputs") and item.options["check"]:
        from pictures import check

        check(item)
    return result
