"""What the unit tests share: fixed random draws, figures that need no screen and are closed again."""

import signal

import hypothesis
import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch

mpl.use("Agg")
torch.set_num_threads(1)  # the tests' networks are too small to share
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it for what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests press Ctrl-C

# the same cases on every run and machine, and none written to disk
hypothesis.settings.register_profile("reproducible", deadline=None, derandomize=True, database=None, max_examples=50)
hypothesis.settings.load_profile("reproducible")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(1234)


@pytest.fixture(autouse=True)
def _figures_closed():
    yield
    plt.close("all")
