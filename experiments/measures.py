"""What is measured alike in every experiment. Likelihoods and bounds are in nats per image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dvae_lib import (
    BernoulliNoise,
    GaussianNoise,
    MaskingNoise,
    SaltAndPepperNoise,
    TrainingConfig,
    VariationalAutoencoder,
    elbo,
    iou,
    mlp_vae,
    train,
)
from experiments.runs import described, group_and_seed

QUICK, ARTICLE = TrainingConfig.quick(), TrainingConfig.article()

INPUT_NOISE = {
    "flips": (BernoulliNoise, (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)),
    "masking": (MaskingNoise, (0.1, 0.3, 0.5, 0.7)),
    "salt and pepper": (SaltAndPepperNoise, (0.1, 0.2, 0.4, 0.6)),
    "Gaussian": (GaussianNoise, (0.1, 0.3, 0.5, 0.7)),
}


class Mean(nn.Module):
    """The place of the sampler in a plain denoising auto-encoder: the code is the mean."""

    def forward(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        return mean


class Group(NamedTuple):
    """Runs that differ in their seed alone; `variational` ones have a divergence and a sampler."""

    seeds: int
    p: float = 0.0
    config: TrainingConfig = QUICK
    variational: bool = True
    latent_size: int = 2

    def build(self, seed: int) -> VariationalAutoencoder:
        """Build the network of a run, with its first weights."""
        torch.manual_seed(seed)
        noise = BernoulliNoise(self.p) if self.p else None
        model = mlp_vae(latent_size=self.latent_size, hidden_size=self.config.hidden_size, noise=noise)
        if not self.variational:
            model.sampler, model.divergence.weight = Mean(), 0.0
        return model

    def trained(
        self, seed: int, images: Tensor, checkpoint: Path | None = None
    ) -> tuple[VariationalAutoencoder, dict[str, float]]:
        """Train the network of a run; return it with the means of its last 500 rows of the protocol."""
        model, config = self.build(seed), replace(self.config, seed=seed)
        protocol = train(model, images, config, device="cpu", progress=False, checkpoint=checkpoint)
        columns = protocol.to_dict().items()
        return model, {key: float(rows[-500:].mean()) for key, rows in columns if key != "learning_rate"}


def group_settings(groups: Mapping[str, Group]) -> dict[str, Any]:
    """Say of each group what its runs have in common."""
    return {
        f"group {name}": {"p": group.p, "variational": group.variational, "config": described(group.config)}
        for name, group in groups.items()
    }


def names(groups: Mapping[str, Group]) -> list[str]:
    """Return the runs, seed by seed, so that an experiment that is stopped has as many of each group."""
    most = max(group.seeds for group in groups.values())
    return [f"{kind}/{seed}" for seed in range(most) for kind, group in groups.items() if seed < group.seeds]


def of_name(name: str, groups: Mapping[str, Group]) -> tuple[Group, int]:
    """Return the group and the seed of run `name`."""
    kind, seed = group_and_seed(name)
    return groups[kind], seed


def summary(values: Tensor) -> dict[str, float]:
    """Say how the values of the images are distributed: the mean, and the tail that it hides."""
    values = values.double()
    return {
        "mean": float(values.mean()),
        "median": float(values.median()),
        "5 %": float(values.quantile(0.05)),
        "least": float(values.min()),
    }


@torch.no_grad()
def draw_log_weights(model: VariationalAutoencoder, images: Tensor, draws: int) -> Tensor:
    """Draw ln p(x, z) - ln q(z|x), z from q(z|x), in float64: (draws, n)."""
    mean, log_variance = model.encode(images)
    posterior = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance))
    prior = torch.distributions.Normal(0.0, 1.0)
    rows = []
    for _ in range(draws):
        codes = posterior.sample()  # (n, code)
        pixels = torch.distributions.Bernoulli(logits=model.decode(codes)).log_prob(images)
        densities = (prior.log_prob(codes) - posterior.log_prob(codes)).sum(1)
        rows.append((pixels.flatten(1).sum(1) + densities).double())
    return torch.stack(rows)


def importance_weighted(log_weights: Tensor, sizes: Sequence[int]) -> dict[str, float]:
    """Return the means of the importance-weighted bounds, all from the same draws, (draws, n)."""
    parts = {size: log_weights.unflatten(0, (-1, size)).logsumexp(1) - math.log(size) for size in sizes}
    return {f"iwae {size}": float(bounds.mean()) for size, bounds in parts.items()}


def clean_bound(model: VariationalAutoencoder, images: Tensor, draws: int) -> tuple[Tensor, dict[str, Any]]:
    """Return the bound of each clean image, (n,), and what is to be stored of it."""
    torch.manual_seed(0)
    bound = elbo(model, images, draws)
    return bound.value, {"elbo": summary(bound.value) | {"standard error": bound.mean()[1]}}


def clean_bounds(
    model: VariationalAutoencoder, images: Tensor, draws: int, sizes: Sequence[int]
) -> tuple[Tensor, dict[str, Any]]:
    """Return the bound of each clean image, (n,), and what is to be stored of it and of the tighter ones."""
    values, found = clean_bound(model, images, draws)
    torch.manual_seed(0)
    return values, found | importance_weighted(draw_log_weights(model, images, max(sizes)), sizes)


def shares_below(found: Tensor) -> dict[str, float]:
    """Return the shares of overlaps, (n,), that are bad in a strict and in a milder sense."""
    return {f"below {limit}": float((found < limit).double().mean()) for limit in (0.5, 0.7, 0.9)}


@torch.no_grad()
def overlap(model: VariationalAutoencoder, seen: Tensor, truth: Tensor) -> float:
    """Return the mean overlap of `truth` with what the model makes of `seen`, by way of the mean of the code."""
    return float(iou(model.decode(model.encode(seen)[0]).sigmoid(), truth).mean())


def overlaps(model: VariationalAutoencoder, truth: Tensor) -> dict[str, dict[str, float]]:
    """Measure the mean overlap of clean images with their reconstructions from corrupted ones, by kind and level."""
    found: dict[str, dict[str, float]] = {}
    for kind, (layer, levels) in INPUT_NOISE.items():
        noises = {level: layer(level, generator=torch.Generator().manual_seed(0)) for level in levels}
        found[kind] = {f"{level:g}": overlap(model, noise.corrupt(truth), truth) for level, noise in noises.items()}
    return found
