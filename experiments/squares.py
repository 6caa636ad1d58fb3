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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dvae_lib import (
    BernoulliNoise,
    VariationalAutoencoder,
    all_squares,
    best_square_iou,
    denoising_bound,
    exact_log_likelihood,
    squares,
)
from experiments.measures import (
    ARTICLE,
    QUICK,
    Group,
    clean_bounds,
    group_settings,
    names,
    of_name,
    overlap,
    overlaps,
    shares_below,
    summary,
)
from experiments.runs import RESULTS, command_line

PATH = RESULTS / "squares.json"
IMAGES = 50_000

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
PRIOR_SAMPLES = 10_000
PATCHES = (3, 5, 7)  # pixels, the side of a black patch inside the square
CUTS = (2, 4, 6)  # pixels of a square at the left edge that the frame cuts off
SETTINGS = {
    **group_settings(GROUPS),
    "images": IMAGES,
    "draws": DRAWS,
    "copies": COPIES,
    "samples from the prior": PRIOR_SAMPLES,
}


def trained(name: str, checkpoint: Path | None = None) -> tuple[VariationalAutoencoder, dict[str, float]]:
    """Train the network of run `name`; return it with the means of its last 500 rows of the protocol."""
    group, seed = of_name(name, GROUPS)
    return group.trained(seed, squares(IMAGES, torch.Generator().manual_seed(seed)), checkpoint)


def likelihoods(model: VariationalAutoencoder, p: float) -> dict[str, Any]:
    """Measure the exact log-likelihood, and its bounds from clean and from corrupted images."""
    images = all_squares()
    exact, error = exact_log_likelihood(model, images)
    clean, bounds = clean_bounds(model, images, DRAWS, SAMPLES)
    bounds["elbo"]["below -30"] = int((clean < -30).sum())
    found = {"exact": summary(exact) | {"error": float(error.max())}} | bounds
    for extra in EXTRA if p else EXTRA[:1]:  # without noise in training, what flips of 0.1 would cost
        torch.manual_seed(0)
        bound = denoising_bound(model, images, DRAWS, extra, BernoulliNoise(p or 0.1))
        found[f"denoising {extra}"] = summary(bound.value) | {"standard error": bound.mean()[1]}
    return found


def unforeseen(model: VariationalAutoencoder) -> dict[str, dict[str, float]]:
    """Measure the overlap for inputs that no training has seen: a black patch in the square, a square at the edge."""
    truth = all_squares().repeat(COPIES, 1, 1, 1)
    left = all_squares()[::16]  # in the first column
    cut = {pixels: nn.functional.pad(left[..., pixels:], (0, pixels)) for pixels in CUTS}
    return {
        "patch": {f"{side}": overlap(model, patched(truth, side), truth) for side in PATCHES},
        "cut": {f"{pixels}": overlap(model, image, image) for pixels, image in cut.items()},
    }


def patched(images: Tensor, side: int) -> Tensor:
    """Blacken a patch of `side` times `side` pixels, at a random place inside of each square."""
    corner = images.flatten(1).argmax(1)  # of the square: the first white pixel, (n,)
    shift = torch.randint(0, 9 - side + 1, (2, len(images)), generator=torch.Generator().manual_seed(0))
    top, left = corner // 24 + shift[0], corner % 24 + shift[1]  # (n,)
    axis = torch.arange(24)
    rows, columns = ((axis >= first[:, None]) & (axis < first[:, None] + side) for first in (top, left))
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0)


@torch.no_grad()
def samples_from_the_prior(model: VariationalAutoencoder) -> dict[str, float]:
    """Count what the decoder makes of codes drawn from the prior: how many are squares, how many are nowhere near."""
    codes = torch.randn(PRIOR_SAMPLES, 2, generator=torch.Generator().manual_seed(0))
    found = torch.cat([best_square_iou(model.decode(some).sigmoid()) for some in codes.split(1000)])
    return shares_below(found)


def measure(name: str) -> dict[str, Any]:
    """Train run `name` and measure it. An article's run that is killed goes on from a file in the system's folder."""
    group, checkpoint = of_name(name, GROUPS)[0], None
    if group.config.steps > QUICK.steps:
        checkpoint = Path(tempfile.gettempdir()) / f"dvae-experiments-{name.replace('/', '-')}.safetensors"
    model, last = trained(name, checkpoint)
    truth = all_squares().repeat(COPIES, 1, 1, 1)
    found: dict[str, Any] = {"protocol": last, "overlap": overlaps(model, truth) | unforeseen(model)}
    if group.variational:
        found |= {"likelihood": likelihoods(model, group.p), "prior": samples_from_the_prior(model)}
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return found


if __name__ == "__main__":
    others = {name: 10.0 for name in GROUPS if name.startswith("article")}
    command_line(str(__doc__), PATH, SETTINGS, names(GROUPS), measure, 1.0, others)
