"""Random numbers of a run: a generator of its own, which it lends to the layers that have none.

The caller's random numbers are neither read nor moved by a run, not even by one in another thread. That holds for the
library's layers and for all that draw from an attribute `generator`; a layer of somebody's own (or PyTorch's Dropout)
that draws from PyTorch's default generator is not covered, neither by the seed nor by the file of a run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn


def run_generator(seed: int, rank: int, device: torch.device) -> torch.Generator:
    """Return a generator on `device`: for rank 0 with `seed` itself, for the others with seeds unlike all others."""
    own = seed if rank == 0 else int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])
    return torch.Generator(device).manual_seed(own)


def layer_generators(model: nn.Module) -> list[torch.Generator]:
    """Return the generators that layers of the model own, each once."""
    found = (getattr(module, "generator", None) for module in model.modules())
    return list(dict.fromkeys(generator for generator in found if isinstance(generator, torch.Generator)))


@contextlib.contextmanager
def lent(generator: torch.Generator, model: nn.Module) -> Iterator[None]:
    """Let the layers of `model` whose `generator` is None draw from this one meanwhile."""
    without = [module for module in model.modules() if getattr(module, "generator", generator) is None]
    for module in without:
        module.generator = generator  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in without:
            module.generator = None  # type: ignore[assignment]
