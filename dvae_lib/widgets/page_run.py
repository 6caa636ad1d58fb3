"""What the page's own training draws, for Python: the same first weights, batches, flips and codes, from the same seed.

The front end, learner.mjs, trains without Python; here PyTorch makes the same run, for the still picture and the tests.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from dvae_lib.data import all_squares
from dvae_lib.layers import gaussian_kl
from dvae_lib.models import mlp_vae

HIDDEN, BATCH, RATE = 64, 32, 0.004  # as in the front end


class PageRun:
    """The run of the page that starts from `seed`, in double precision: `step(p)` makes one step."""

    def __init__(self, seed: int) -> None:
        self._seed, self._drawn = seed, 0
        self._squares = all_squares().double()
        with torch.device("meta"):
            model = mlp_vae(hidden_size=HIDDEN)
        self.model = model.to_empty(device="cpu").double()
        for layer in self.model.modules():
            if isinstance(layer, nn.Linear):
                rows, columns = layer.weight.shape
                drawn = (2 * self._uniforms(rows * (columns + 1)) - 1) / math.sqrt(columns)
                layer.weight.data = drawn[: rows * columns].reshape(columns, rows).T.contiguous()
                layer.bias.data = drawn[rows * columns :]
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=RATE)

    def draw(self, p: float) -> tuple[Tensor, Tensor, Tensor]:
        """Draw images and inputs of the encoder, (32, 1, 24, 24), and the sampler's eps, (32, 2)."""
        images = self._squares[(256 * self._uniforms(BATCH)).long()]
        hit = self._uniforms(images.numel()).reshape(images.shape) < p
        u, v = self._uniforms(4 * BATCH).reshape(BATCH, 2, 2).unbind(2)
        eps = (-2 * torch.log(1 - u)).sqrt() * torch.cos(2 * math.pi * v)
        return images, torch.where(hit, 1 - images, images), eps

    def step(self, p: float) -> tuple[float, float]:
        """Make one step with flips of probability `p`; return reconstruction and divergence, in nats per image."""
        images, inputs, eps = self.draw(p)
        mean, log_variance = self.model.encode(inputs)
        logits = self.model.decode(mean + torch.exp(log_variance / 2) * eps)
        reconstruction = binary_cross_entropy_with_logits(logits, images, reduction="sum")
        divergence = gaussian_kl(mean, log_variance).sum()
        self.optimizer.zero_grad()
        (reconstruction + divergence).backward()
        self.optimizer.step()
        return reconstruction.item() / BATCH, divergence.item() / BATCH

    def _uniforms(self, count: int) -> Tensor:
        """Return the next `count` numbers of the page's generator."""
        self._drawn += count
        return torch.from_numpy(uniforms(self._seed, count, self._drawn - count))


def uniforms(seed: int, count: int, start: int = 0) -> np.ndarray:
    """Return `count` of the front end's uniform numbers in [0, 1) from number `start` on.

    The generator is mulberry32; its arithmetic is modulo 2^32.
    """
    first = np.uint32((seed + 1) * 0x9E3779B9 % 2**32)
    state = first + np.arange(start + 1, start + count + 1, dtype=np.uint32) * np.uint32(0x6D2B79F5)
    t = (state ^ (state >> 15)) * (state | 1)
    t ^= t + (t ^ (t >> 7)) * (t | 61)
    return (t ^ (t >> 14)) / 2**32
