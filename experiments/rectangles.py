"""VAEs and DVAEs on rectangles of random size, over seeds: there are too many of them to be learned by heart.

    python -m experiments.rectangles [--processes 2] [--only vae dvae-0.1]

Height and width are independent and uniform over 3 to 18 pixels, and the place is uniform: 53,824 different images,
with an entropy of 10.78 nats. The code has four entries. Training sees 10,000 draws, in three times as many batches as
on the squares; the test images are other rectangles, none of which is among them. Likelihoods and bounds are in nats
per image.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dvae_lib import VariationalAutoencoder, iou, rectangles
from experiments.measures import (
    QUICK,
    Group,
    clean_bounds,
    group_settings,
    names,
    of_name,
    overlaps,
    shares_below,
)
from experiments.runs import RESULTS, command_line

PATH = RESULTS / "rectangles.json"
SMALLEST, LARGEST = 3, 18  # pixels
IMAGES, TEST_IMAGES = 10_000, 1_000
LATENT_SIZE = 4
LONG = replace(QUICK, steps=12_000)
GROUPS = {
    "vae": Group(5, 0.0, LONG, latent_size=LATENT_SIZE),
    "dvae-0.05": Group(5, 0.05, LONG, latent_size=LATENT_SIZE),
    "dvae-0.1": Group(5, 0.1, LONG, latent_size=LATENT_SIZE),
    "dvae-0.2": Group(5, 0.2, LONG, latent_size=LATENT_SIZE),
    "dae-0.1": Group(5, 0.1, LONG, variational=False, latent_size=LATENT_SIZE),
}
DRAWS = 100  # of the bound
PRIOR_SAMPLES = 10_000
SAMPLES = (1, 8, 64, 512)  # of the importance-weighted bound
SETTINGS = {
    **group_settings(GROUPS),
    "sizes": [SMALLEST, LARGEST],
    "latent size": LATENT_SIZE,
    "images": IMAGES,
    "test images": TEST_IMAGES,
    "draws": DRAWS,
    "samples from the prior": PRIOR_SAMPLES,
}


def images_of(seed: int) -> tuple[Tensor, Tensor]:
    """Draw training images, and test images that are none of these."""
    generator = torch.Generator().manual_seed(seed)
    trained_on = rectangles(IMAGES, SMALLEST, LARGEST, generator)
    others = rectangles(2 * TEST_IMAGES, SMALLEST, LARGEST, generator)
    known = {image.numpy().tobytes() for image in trained_on}
    fresh = [i for i, image in enumerate(others) if image.numpy().tobytes() not in known]
    return trained_on, others[fresh[:TEST_IMAGES]]


def likelihoods(model: VariationalAutoencoder, images: Tensor) -> dict[str, Any]:
    """Measure the bounds from clean images."""
    return clean_bounds(model, images, DRAWS, SAMPLES)[1]


def bounding_boxes(images: Tensor) -> Tensor:
    """Fill the smallest rectangle that holds all white pixels, in images of probabilities: the same shape."""
    white = images >= 0.5
    parts = [white.any(axis, keepdim=True) for axis in (3, 2)]  # of each row, of each column
    inside = [
        (part.cumsum(axis) > 0) & (part.flip(axis).cumsum(axis).flip(axis) > 0)
        for part, axis in zip(parts, (2, 3), strict=True)
    ]
    return (inside[0] & inside[1]).to(images.dtype)


@torch.no_grad()
def samples_from_the_prior(model: VariationalAutoencoder) -> dict[str, float]:
    """Count how many codes of the prior are decoded into rectangles: into what fills its own bounding box."""
    codes = torch.randn(PRIOR_SAMPLES, LATENT_SIZE, generator=torch.Generator().manual_seed(0))
    pictures = torch.cat([model.decode(some).sigmoid() for some in codes.split(1000)])
    found = iou(pictures, bounding_boxes(pictures))
    return shares_below(found) | {"empty": float((pictures < 0.5).flatten(1).all(1).double().mean())}


def measure(name: str) -> dict[str, Any]:
    """Train run `name` and measure it, on images that it has not seen."""
    group, seed = of_name(name, GROUPS)
    images, test = images_of(seed)
    model, last = group.trained(seed, images)
    found: dict[str, Any] = {"protocol": last, "overlap": overlaps(model, test)}
    if group.variational:
        seen = likelihoods(model, images[:TEST_IMAGES])
        found |= {"likelihood": likelihoods(model, test), "training likelihood": seen}
        found["prior"] = samples_from_the_prior(model)
    return found


if __name__ == "__main__":
    command_line(str(__doc__), PATH, SETTINGS, names(GROUPS), measure, minutes=2.0)
