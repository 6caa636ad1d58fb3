"""Where the missing nats go: decoder, family, amortisation and corruption, on the squares, over seeds.

    python -m experiments.gaps [--processes 2] [--only vae]

The mean of -ln p(x) exceeds the entropy of the data by what the *decoder* lacks. Below ln p(x) lies the bound of the
best Gaussian for each image, less by the gap of the *family*; below it that of the encoder's Gaussian for the clean
image, less by the gap of *amortisation* (Cremer et al., 2018). These two add up to ln p(x) - ELBO. For a denoising
encoder, with a fixed set of corruptions of each image, ln p(x) - L_dvae is the divergence of the mixture from the
posterior, *mixture*, and the information that a code carries about its corruption, *corruption*.

The groups are those of `experiments.squares`, and so are the networks: the same seeds give the same weights. All in
nats per image, over the 256 squares.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dvae_lib import BernoulliNoise, VariationalAutoencoder, all_squares, exact_log_likelihood, gaussian_kl
from experiments import squares
from experiments.measures import group_settings, names, of_name
from experiments.runs import RESULTS, command_line

PATH = RESULTS / "gaps.json"
GROUPS = {name: squares.GROUPS[name]._replace(seeds=10) for name in ("vae", "dvae-0.1")}
NODES, FINE_NODES = 6, 40  # of Gauss-Hermite quadrature along each axis: while searching, and of what is reported
STEPS = 150  # of the search
CORRUPTIONS, DRAWS = 256, 8  # of each image; of a code for each corruption
SETTINGS = {
    **group_settings(GROUPS),
    "images": squares.IMAGES,
    "nodes": [NODES, FINE_NODES],
    "search steps": STEPS,
    "corruptions": CORRUPTIONS,
    "draws": DRAWS,
}


def gaussian_bound(
    model: VariationalAutoencoder, images: Tensor, mean: Tensor, log_variance: Tensor, nodes: int
) -> Tensor:
    """Return E_q[ln p(x|z)] - KL(q || p(z)) for q = N(mean, exp(log_variance)), by quadrature: (n,)."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)  # the weights add up to sqrt(2 pi)
    eps = torch.cartesian_prod(*[torch.tensor(points, dtype=mean.dtype)] * 2)  # (nodes^2, 2)
    weight = torch.outer(*[torch.tensor(weights / math.sqrt(2 * math.pi), dtype=mean.dtype)] * 2).flatten()
    codes = mean[:, None] + torch.exp(0.5 * log_variance)[:, None] * eps  # (n, nodes^2, 2)
    logits = model.decode(codes.flatten(0, 1)).view(*codes.shape[:2], -1)  # (n, nodes^2, pixels)
    likelihood = (logits @ images.flatten(1)[:, :, None]).squeeze(2) - torch.nn.functional.softplus(logits).sum(2)
    return likelihood @ weight - gaussian_kl(mean, log_variance)


def posterior_moments(model: VariationalAutoencoder, images: Tensor, nodes: int = 200) -> tuple[Tensor, Tensor]:
    """Return mean and log-variance of the true posteriors, roughly, from a grid of codes: each (n, 2)."""
    axis = torch.linspace(-4.5, 4.5, nodes)
    codes = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        logits = torch.cat([model.decode(some).flatten(1) for some in codes.split(4000)])  # (nodes^2, pixels)
    log_joint = logits @ images.flatten(1).T - torch.nn.functional.softplus(logits).sum(1, keepdim=True)
    weights = (log_joint - 0.5 * codes.square().sum(1, keepdim=True)).softmax(0)  # (nodes^2, n)
    mean = weights.T @ codes
    variance = weights.T @ codes.square() - mean.square()
    return mean, variance.clamp(min=1e-3).log()


def best_gaussian(
    model: VariationalAutoencoder, images: Tensor, mean: Tensor, log_variance: Tensor
) -> tuple[Tensor, Tensor]:
    """Climb from a Gaussian for each image to one with a higher bound; return it."""
    scale = torch.exp(0.5 * log_variance)
    shift, stretch = (torch.zeros_like(mean, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.Adam([shift, stretch], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        bound = gaussian_bound(model, images, mean + scale * shift, log_variance + stretch, NODES)
        (-bound.sum()).backward()
        optimizer.step()
        schedule.step()
    return (mean + scale * shift).detach(), (log_variance + stretch).detach()


def fine_bound(model: VariationalAutoencoder, images: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return `gaussian_bound` with many nodes, a few images at a time: (n,)."""
    parts = zip(*(tensor.split(16) for tensor in (images, mean, log_variance)), strict=True)
    return torch.cat([gaussian_bound(model, *part, FINE_NODES) for part in parts])


def inference_gaps(model: VariationalAutoencoder, images: Tensor) -> dict[str, Tensor]:
    """Return, for each image, ln p(x), the bound of the best Gaussian found, and that of the encoder's: (n,)."""
    model.requires_grad_(False)
    exact = exact_log_likelihood(model, images).value
    encoded = model.encode(images)
    starts = [encoded, posterior_moments(model, images)]
    candidates = [encoded, *(best_gaussian(model, images, *start) for start in starts)]
    bounds = torch.stack([fine_bound(model, images, *one) for one in candidates], 1)  # (n, 3)
    return {"exact": exact, "best": bounds.amax(1).double(), "encoder": bounds[:, 0].double()}


@torch.no_grad()
def corruption_gaps(model: VariationalAutoencoder, images: Tensor, p: float) -> dict[str, Tensor]:
    """Return, for each image and draw, ln p(x, z) - ln q(z|x') and ln q(z|x') - ln q~(z|x): (n, corruptions * draws).

    q~ is the mixture over the corruptions that were drawn, which stand here for all.
    """
    torch.manual_seed(0)
    noise, normal = BernoulliNoise(p), torch.distributions.Normal
    denoising, information = [], []
    for image in images:
        corrupted = noise.corrupt(image.expand(CORRUPTIONS, -1, -1, -1))
        mean, log_variance = model.encode(corrupted)  # (corruptions, 2)
        posterior = normal(mean, torch.exp(0.5 * log_variance))
        codes = posterior.sample((DRAWS,))  # (draws, corruptions, 2)
        own = posterior.log_prob(codes).sum(2)  # (draws, corruptions)
        each = posterior.log_prob(codes.flatten(0, 1)[:, None]).sum(2)  # (draws * corruptions, corruptions)
        mixture = (each.logsumexp(1) - math.log(CORRUPTIONS)).view_as(own)
        pixels = torch.distributions.Bernoulli(logits=model.decode(codes.flatten(0, 1))).log_prob(image[None])
        joint = pixels.flatten(1).sum(1).view_as(own) + normal(0.0, 1.0).log_prob(codes).sum(2)
        denoising.append((joint - own).flatten().double())
        information.append((own - mixture).flatten().double())
    return {"denoising": torch.stack(denoising), "information": torch.stack(information)}


def measure(name: str) -> dict[str, Any]:
    """Train run `name` and say where its nats go."""
    images, group = all_squares(), of_name(name, GROUPS)[0]
    model, _ = squares.trained(name)
    inference = inference_gaps(model, images)
    means = {key: float(values.mean()) for key, values in inference.items()}
    found: dict[str, Any] = {
        **means,
        "decoder": -math.log(len(images)) - means["exact"],
        "family": means["exact"] - means["best"],
        "amortisation": means["best"] - means["encoder"],
    }
    if group.p:
        corruption = {key: values.mean() for key, values in corruption_gaps(model, images, group.p).items()}
        found["denoising"] = float(corruption["denoising"])
        found["corruption"] = float(corruption["information"])
        found["mixture"] = found["exact"] - found["denoising"] - found["corruption"]
    return found


if __name__ == "__main__":
    command_line(str(__doc__), PATH, SETTINGS, names(GROUPS), measure, minutes=3.0)
