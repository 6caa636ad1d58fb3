"""What the unit tests share: fixed random draws, figures that need no screen and are closed again."""

import hypothesis
import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch

mpl.use("Agg")
torch.set_num_threads(1)  # the tests' networks are too small to share

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
