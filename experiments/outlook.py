"""A network that denoises at every level, and the squares that it draws step by step, over seeds.

    python -m experiments.outlook [--processes 2]

The chapter `outlook` develops all of it: the network, which the book's own loop trains, the levels of Gaussian noise,
the sampler, and the bound on the log-likelihood of the squares, which is in nats per image.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dvae_lib import TrainingConfig, all_squares, best_square_iou, squares, train
from experiments.measures import names, of_name, shares_below
from experiments.runs import RESULTS, command_line, described

PATH = RESULTS / "outlook.json"
IMAGES = 50_000
LOW, HIGH = 0.3, 20.0  # standard deviations of the noise, the least and the largest
LEVELS = (5, 9, 17, 33, 65)  # of the chains that are sampled from and bounded
DRAWS = 4  # of the noise of each square and level, for the bound
SAMPLES = 2_000


class Group(NamedTuple):
    """Runs that differ in their seed alone."""

    seeds: int
    config: TrainingConfig


GROUPS = {"chain": Group(3, TrainingConfig(3_000, 64, 2e-3, "cosine", hidden_size=256))}
SETTINGS = {
    **{f"group {name}": {"config": described(group.config)} for name, group in GROUPS.items()},
    "images": IMAGES,
    "levels": [LOW, HIGH],
    "samples": SAMPLES,
    "draws": DRAWS,
}


class EveryLevel(nn.Module):
    """Predicts the pixels of an image that was spoilt by Gaussian noise of a level that it is told.

    `answer(noisy, std)`, (n, 1, 24, 24) and (n,), returns logits, (n, 1, 24, 24). `forward(images)` draws a level and
    noise for each image and answers; it leaves in `.kl` and `.posterior` what `train` asks for.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.generator = None  # `train` lends its own
        self.layers = nn.Sequential(
            nn.Linear(577, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, 576),
        )

    def answer(self, noisy: Tensor, std: Tensor) -> Tensor:
        std = std.view(-1, 1)
        scaled = noisy.flatten(1) / (std**2 + 0.1).sqrt()
        return self.layers(torch.cat([scaled, std.log()], 1)).view_as(noisy)

    def forward(self, images: Tensor) -> Tensor:
        place = {"generator": self.generator, "device": images.device}
        std = LOW * (HIGH / LOW) ** torch.rand(len(images), **place)
        noise = torch.randn(images.shape, **place)
        noisy = images + std.view(-1, 1, 1, 1) * noise
        logits = self.answer(noisy, std)
        self.kl = 0 * logits.sum()
        self.posterior = noisy.flatten(1), std.log().view(-1, 1)
        return logits

    def denoise(self, noisy: Tensor, std: Tensor) -> Tensor:
        """Return the probabilities of the pixels, (n, 576), for noise of one level."""
        images = noisy.view(-1, 1, 24, 24)
        return self.answer(images, std.expand(len(images))).sigmoid().flatten(1)


def levels(count: int) -> Tensor:
    """Return standard deviations from LOW to HIGH, each larger than the one before by the same factor: (count,)."""
    return LOW * (HIGH / LOW) ** (torch.arange(count) / (count - 1))


@torch.no_grad()
def drawn(model: EveryLevel, stds: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw images step by step down the levels, (n, 1, 24, 24): the probabilities of the last answer."""
    mean_image = all_squares().flatten(1).mean(0)
    noisy = mean_image + stds[-1] * torch.randn(n, 576, generator=generator)
    for m in range(len(stds) - 1, 0, -1):
        ratio = (stds[m - 1] / stds[m]) ** 2
        clean = model.denoise(noisy, stds[m])
        fresh = torch.randn(n, 576, generator=generator)
        noisy = clean + ratio * (noisy - clean) + stds[m - 1] * (1 - ratio).sqrt() * fresh
    return model.denoise(noisy, stds[0]).view(-1, 1, 24, 24)


@torch.no_grad()
def bounds(model: EveryLevel, generator: torch.Generator) -> dict[str, dict[str, float]]:
    """Measure the bound on the squares' log-likelihood by chains of each number of levels, and its parts."""
    stds = levels(max(LEVELS))
    truth = all_squares().flatten(1).repeat(DRAWS, 1)  # (n, 576)
    errors = torch.empty(len(stds), len(truth))
    for m, std in enumerate(stds):
        noisy = truth + std * torch.randn(truth.shape, generator=generator)
        errors[m] = (model.denoise(noisy, std) - truth).square().sum(1)
        if m == 0:
            logits = model.answer(noisy.view(-1, 1, 24, 24), std.expand(len(noisy))).flatten(1)
            last = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(1)
    first = (truth - truth.mean(0)).square().sum(1) / (2 * stds[-1] ** 2)
    found = {}
    for count in LEVELS:
        stride = (len(stds) - 1) // (count - 1)
        snr = stds[::stride] ** -2
        steps = ((snr[:-1] - snr[1:]) / 2) @ errors[::stride][1:]  # (n,)
        bound = -(last + steps + first)
        parts = {"last": last, "steps": steps, "first": first, "bound": bound}
        found[f"{count}"] = {name: float(part.mean()) for name, part in parts.items()}
        found[f"{count}"]["standard error"] = float(bound.std() / len(bound) ** 0.5)
    return found


def trained(name: str) -> tuple[EveryLevel, dict[str, float]]:
    """Train the network of run `name`; return it with the mean of its last 500 rows of the protocol."""
    group, seed = of_name(name, GROUPS)
    torch.manual_seed(seed)
    model, config = EveryLevel(group.config.hidden_size), dataclasses.replace(group.config, seed=seed)
    images = squares(IMAGES, torch.Generator().manual_seed(seed))
    protocol = train(model, images, config, device="cpu", progress=False)
    return model, {"reconstruction": float(protocol.reconstruction[-500:].mean())}


def measure(name: str) -> dict[str, Any]:
    """Train run `name`, draw from it and bound its likelihood."""
    model, last = trained(name)
    found: dict[str, Any] = {"protocol": last, "prior": {}}
    for count in LEVELS:
        pictures = drawn(model, levels(count), SAMPLES, torch.Generator().manual_seed(0))
        found["prior"][f"{count}"] = shares_below(best_square_iou(pictures))
    return found | {"bound": bounds(model, torch.Generator().manual_seed(0))}


if __name__ == "__main__":
    command_line(str(__doc__), PATH, SETTINGS, names(GROUPS), measure, 1.0)
