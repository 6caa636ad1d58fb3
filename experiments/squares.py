"""VAEs and DVAEs on the squares, over seeds: exact likelihood, bounds, reconstruction under noise, folds.

    python -m experiments.squares [--processes 2] [--only vae dvae-0.1]

Groups of runs, by name: `vae` and `dvae-P`, trained on the quick schedule with flips of probability P; `article-vae`
and `article-dvae-0.1`, on the article's; `dae-0.1`, the plain denoising auto-encoder, the same networks without
divergence and sampling; and `vae-warm-up`, `vae-weight-decay` and `vae-slow`, what else might cure a fold. A run's seed
is that of its weights, images and training; what it is measured with is the same for all runs, so that their numbers
can be paired.

All likelihoods and bounds are in nats per image, over the 256 squares.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
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
    all_squares,
    best_square_iou,
    denoising_bound,
    elbo,
    exact_log_likelihood,
    iou,
    mlp_vae,
    squares,
    train,
)
from experiments.runs import RESULTS, command_line

PATH = RESULTS / "squares.json"
QUICK, ARTICLE = TrainingConfig.quick(), TrainingConfig.article()
IMAGES = 50_000


class Group(NamedTuple):
    """Runs that differ in their seed alone."""

    seeds: int
    p: float = 0.0
    config: TrainingConfig = QUICK
    variational: bool = True


GROUPS = {
    "vae": Group(80),
    "dvae-0.1": Group(80, 0.1),
    "dvae-0.05": Group(10, 0.05),
    "dvae-0.2": Group(10, 0.2),
    "dvae-0.3": Group(10, 0.3),
    "dae-0.1": Group(10, 0.1, variational=False),
    "vae-warm-up": Group(20, config=dataclasses.replace(QUICK, kl_warm_up=1_000)),
    "vae-weight-decay": Group(20, config=dataclasses.replace(QUICK, weight_decay=0.01)),
    "vae-slow": Group(20, config=dataclasses.replace(QUICK, learning_rate=5e-4)),
    "article-vae": Group(3, config=ARTICLE),
    "article-dvae-0.1": Group(3, 0.1, config=ARTICLE),
}

DRAWS = 100  # of each bound
EXTRA = (0, 1, 8, 64)  # corruptions beside the first one
SAMPLES = (1, 8, 64, 512)  # of the importance-weighted bound
COPIES = 4  # corruptions of each square
INPUT_NOISE = {
    "flips": (BernoulliNoise, (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)),
    "masking": (MaskingNoise, (0.1, 0.3, 0.5, 0.7)),
    "salt and pepper": (SaltAndPepperNoise, (0.1, 0.2, 0.4, 0.6)),
    "Gaussian": (GaussianNoise, (0.1, 0.3, 0.5, 0.7)),
}
PATCHES = (3, 5, 7)  # pixels, the side of a black patch inside the square
CUTS = (2, 4, 6)  # pixels of a square at the left edge that the frame cuts off
SETTINGS = {
    **{
        f"group {name}": {"p": group.p, "variational": group.variational, "config": dataclasses.asdict(group.config)}
        for name, group in GROUPS.items()
    },
    "images": IMAGES,
    "draws": DRAWS,
    "copies": COPIES,
    "samples from the prior": 10_000,
}


class Mean(nn.Module):
    """The place of the sampler in a plain denoising auto-encoder: the code is the mean."""

    def forward(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        return mean


def build(group: Group, seed: int) -> VariationalAutoencoder:
    """Build the network of a run, with its first weights."""
    torch.manual_seed(seed)
    model = mlp_vae(hidden_size=group.config.hidden_size, noise=BernoulliNoise(group.p) if group.p else None)
    if not group.variational:
        model.sampler, model.divergence.weight = Mean(), 0.0
    return model


def trained(name: str, checkpoint: Path | None = None) -> tuple[VariationalAutoencoder, dict[str, Any]]:
    """Train the network of run `name`; return it with the means of its last 500 rows of the protocol."""
    kind, seed = name.rsplit("/", 1)
    group = GROUPS[kind]
    model = build(group, int(seed))
    config = dataclasses.replace(group.config, seed=int(seed))
    images = squares(IMAGES, torch.Generator().manual_seed(int(seed)))
    protocol = train(model, images, config, device="cpu", progress=False, checkpoint=checkpoint)
    last = {key: float(column[-500:].mean()) for key, column in protocol.to_dict().items() if key != "learning_rate"}
    return model, last


def summary(values: Tensor) -> dict[str, float]:
    """Say how values of the 256 squares are distributed: the mean, and the tail that it hides."""
    values = values.double()
    return {
        "mean": float(values.mean()),
        "median": float(values.median()),
        "5 %": float(values.quantile(0.05)),
        "least": float(values.min()),
    }


def likelihoods(model: VariationalAutoencoder, p: float) -> dict[str, Any]:
    """Measure the exact log-likelihood, and its bounds from clean and from corrupted images."""
    images = all_squares()
    exact, error = exact_log_likelihood(model, images)
    found: dict[str, Any] = {"exact": summary(exact) | {"error": float(error.max())}}
    torch.manual_seed(0)
    clean = elbo(model, images, DRAWS)
    found["elbo"] = summary(clean.value) | {"standard error": clean.mean()[1]}
    found["elbo"]["below -30"] = int((clean.value < -30).sum())
    torch.manual_seed(0)
    log_weights = draw_log_weights(model, images, max(SAMPLES))  # (512, 256)
    for samples in SAMPLES:
        groups = log_weights.view(-1, samples, len(images)).logsumexp(1) - torch.tensor(float(samples)).log()
        found[f"iwae {samples}"] = float(groups.mean())  # the same draws for all
    for extra in EXTRA if p else EXTRA[:1]:  # without noise in training, what flips of 0.1 would cost
        torch.manual_seed(0)
        bound = denoising_bound(model, images, DRAWS, extra, BernoulliNoise(p or 0.1))
        found[f"denoising {extra}"] = summary(bound.value) | {"standard error": bound.mean()[1]}
    return found


@torch.no_grad()
def draw_log_weights(model: VariationalAutoencoder, images: Tensor, draws: int) -> Tensor:
    """Draw ln p(x, z) - ln q(z|x), z from q(z|x), in float64: (draws, n)."""
    mean, log_variance = model.encode(images)
    posterior = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance))
    prior = torch.distributions.Normal(0.0, 1.0)
    rows = []
    for _ in range(draws):
        codes = posterior.sample()  # (n, 2)
        pixels = torch.distributions.Bernoulli(logits=model.decode(codes)).log_prob(images)
        densities = (prior.log_prob(codes) - posterior.log_prob(codes)).sum(1)
        rows.append((pixels.flatten(1).sum(1) + densities).double())
    return torch.stack(rows)


@torch.no_grad()
def overlaps(model: VariationalAutoencoder) -> dict[str, dict[str, float]]:
    """Measure the mean overlap of the clean square with its reconstruction from a corrupted one, by kind and level."""

    def overlap(seen: Tensor, truth: Tensor) -> float:
        return float(iou(model.decode(model.encode(seen)[0]).sigmoid(), truth).mean())

    truth = all_squares().repeat(COPIES, 1, 1, 1)
    found: dict[str, dict[str, float]] = {}
    for kind, (layer, levels) in INPUT_NOISE.items():
        noises = {level: layer(level, generator=torch.Generator().manual_seed(0)) for level in levels}
        found[kind] = {f"{level:g}": overlap(noise.corrupt(truth), truth) for level, noise in noises.items()}
    found["patch"] = {f"{side}": overlap(patched(truth, side), truth) for side in PATCHES}
    left = all_squares()[::16]  # in the first column
    cut = {pixels: nn.functional.pad(left[..., pixels:], (0, pixels)) for pixels in CUTS}
    found["cut"] = {f"{pixels}": overlap(image, image) for pixels, image in cut.items()}
    return found


def patched(images: Tensor, side: int) -> Tensor:
    """Blacken a patch of `side` times `side` pixels, at a random place inside of each square."""
    corner = images.flatten(1).argmax(1)  # of the square: the first white pixel, (n,)
    shift = torch.randint(0, 9 - side + 1, (2, len(images)), generator=torch.Generator().manual_seed(0))
    top, left = corner // 24 + shift[0], corner % 24 + shift[1]  # (n,)
    axis = torch.arange(24)
    rows, columns = ((axis >= first[:, None]) & (axis < first[:, None] + side) for first in (top, left))
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0)


@torch.no_grad()
def samples_from_the_prior(model: VariationalAutoencoder, n: int = 10_000) -> dict[str, float]:
    """Count what the decoder makes of codes drawn from the prior: how many are squares, how many are nowhere near."""
    codes = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    found = torch.cat([best_square_iou(model.decode(some).sigmoid()) for some in codes.split(1000)])
    return {f"below {limit}": float((found < limit).double().mean()) for limit in (0.5, 0.7, 0.9)}


def measure(name: str) -> dict[str, Any]:
    """Train run `name` and measure it. An article's run that is killed goes on from a file in the system's folder."""
    group = GROUPS[name.rsplit("/", 1)[0]]
    checkpoint = None
    if group.config.steps > QUICK.steps:
        checkpoint = Path(tempfile.gettempdir()) / f"dvae-experiments-{name.replace('/', '-')}.safetensors"
    model, last = trained(name, checkpoint)
    found: dict[str, Any] = {"protocol": last, "overlap": overlaps(model)}
    if group.variational:
        found |= {"likelihood": likelihoods(model, group.p), "prior": samples_from_the_prior(model)}
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return found


def names() -> list[str]:
    """The runs, seed by seed, so that an experiment that is stopped has as many of each group."""
    most = max(group.seeds for group in GROUPS.values())
    return [f"{kind}/{seed}" for seed in range(most) for kind, group in GROUPS.items() if seed < group.seeds]


def main(make: Callable[..., None] = command_line) -> None:
    make(str(__doc__), PATH, SETTINGS, names(), measure, minutes=2.0)


if __name__ == "__main__":
    main()
