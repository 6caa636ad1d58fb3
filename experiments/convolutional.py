"""Convolutional auto-encoders beside ones of linear layers, over seeds: squares, rectangles and digits.

    python -m experiments.convolutional [--processes 2] [--only squares-conv digits-conv]

Groups of runs, DATA-NETWORK: `conv` is `convolutional_vae`, `mlp` is `mlp_vae`; `-dvae` is trained with flips of
probability 0.1, and with `-warm` the divergence counts little at first. All have the quick schedule from a higher rate.
On the `squares` it has its full length, so that the runs of `experiments.squares` differ from the `mlp` here in the
rate alone; measured are the exact likelihood and the bound of the 256 squares, the overlap under noise, and the
samples. On `rectangles` of random size, with a code of four entries, 2,000 steps; the images that count were not
trained on. `digits` are the binarised MNIST, two epochs, a code of 50 entries; the `mlp` is as wide as makes its
multiplications as many as those of `conv`. All in nats per image.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dvae_lib import (
    BernoulliNoise,
    TrainingConfig,
    VariationalAutoencoder,
    all_squares,
    convolutional_vae,
    exact_log_likelihood,
    mlp_vae,
    squares,
    train,
)
from experiments import mnist, rectangles
from experiments.measures import QUICK, clean_bound, clean_bounds, names, of_name, overlaps, summary
from experiments.runs import RESULTS, command_line, described
from experiments.squares import COPIES, samples_from_the_prior

PATH = RESULTS / "convolutional.json"
IMAGES, FEW = 50_000, 500  # squares to train on; rectangles of the training that are measured
LONG = replace(QUICK, learning_rate=5e-3)  # the convolutional network learns slowly from the quick one's 2e-3
WARM = replace(LONG, kl_warm_up=1_000)
SHORT = replace(LONG, steps=2_000)
DIGITS = replace(LONG, steps=1_000, batch_size=100, hidden_size=400)
DRAWS, DIGIT_DRAWS = 20, 2  # of each bound
SAMPLES = (1, 64)  # of the importance-weighted bound
NODES = 200  # of the quadrature along each axis, before it divides


class Group(NamedTuple):
    """Runs that differ in their seed alone."""

    data: str
    config: TrainingConfig
    convolutional: bool = True
    p: float = 0.0
    seeds: int = 3

    def settings(self) -> dict[str, Any]:
        """Say what all runs of the group have in common, however many there are."""
        found = self._asdict() | {"config": described(self.config)}
        del found["seeds"]
        return found

    def build(self, seed: int) -> VariationalAutoencoder:
        """Build the network of a run, with its first weights."""
        torch.manual_seed(seed)
        shape = (1, 28, 28) if self.data == "digits" else (1, 24, 24)
        code = {"squares": 2, "digits": 50}.get(self.data, rectangles.LATENT_SIZE)
        noise = BernoulliNoise(self.p) if self.p else None
        if self.convolutional:
            return convolutional_vae(shape, code, noise=noise)
        return mlp_vae(shape, code, self.config.hidden_size, noise)

    def images(self, seed: int) -> tuple[Tensor, Tensor]:
        """Return the images to train on and those that count."""
        if self.data == "squares":
            return squares(IMAGES, torch.Generator().manual_seed(seed)), all_squares()
        if self.data == "digits":
            return mnist.images_of("train"), mnist.images_of("test")
        return rectangles.images_of(seed)


GROUPS = {
    f"{data}-{network}": Group(data, config, network == "conv")
    for data, config in (("squares", LONG), ("rectangles", SHORT), ("digits", DIGITS))
    for network in ("conv", "mlp")
}
GROUPS |= {f"{name}-dvae": GROUPS[name]._replace(p=0.1) for name in ("squares-conv", "squares-mlp")}
GROUPS |= {f"{name}-warm": GROUPS[name]._replace(config=WARM) for name in ("squares-conv", "squares-mlp")}
SETTINGS = {
    **{f"group {name}": group.settings() for name, group in GROUPS.items()},
    "images": IMAGES,
    "few": FEW,
    "draws": DRAWS,
    "draws of digits": DIGIT_DRAWS,
    "samples": SAMPLES,
    "nodes": NODES,
}


def likelihoods(data: str, model: VariationalAutoencoder, images: Tensor) -> dict[str, Any]:
    """Measure the bound, and on squares the exact likelihood, on rectangles the importance-weighted bound."""
    if data == "rectangles":
        return clean_bounds(model, images, DRAWS, SAMPLES)[1]
    found = clean_bound(model, images, DRAWS if data == "squares" else DIGIT_DRAWS)[1]
    if data == "squares":
        exact, error = exact_log_likelihood(model, images, NODES)
        found["exact"] = summary(exact) | {"error": float(error.max())}
    return found


def measure(name: str) -> dict[str, Any]:
    """Train run `name` and measure it."""
    group, seed = of_name(name, GROUPS)
    images, test = group.images(seed)
    model = group.build(seed)
    protocol = train(model, images, replace(group.config, seed=seed), device="cpu", progress=False)
    found: dict[str, Any] = {
        "protocol": {key: float(getattr(protocol, key)[-500:].mean()) for key in ("reconstruction", "kl")},
        "likelihood": likelihoods(group.data, model, test),
    }
    if group.data == "squares":
        found |= {"overlap": overlaps(model, test.repeat(COPIES, 1, 1, 1)), "prior": samples_from_the_prior(model)}
    elif group.data == "rectangles":
        found |= {"training likelihood": likelihoods(group.data, model, images[:FEW])}
    return found


if __name__ == "__main__":
    command_line(str(__doc__), PATH, SETTINGS, names(GROUPS), measure, minutes=1.2)
