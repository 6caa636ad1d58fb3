"""What is the seed's and what is the noise's: the planes of codes of six networks on the squares, decoded.

    python -m experiments.planes

A VAE and a DVAE of each of three seeds, chosen by what `experiments.squares` stored: the first seed of which neither
folds, the first of which the VAE alone does, and the first of which the DVAE alone does. They are trained again, on the
same schedule and from the same seeds. Takes two minutes on one core. Writes results/planes.npz, with the arrays

    seeds    (3,)
    groups   (2,)                          of experiments.squares, the VAE's and the DVAE's
    pictures (2, 3, tiles, tiles, 24, 24)  probabilities decoded from the codes of `latent_grid`, in 255ths
    overlap  (2, 3, side, side)            best overlap of decoded codes with any square, in hundredths, the same way
    bad      (2, 3)                        the share of draws from the prior whose best overlap is below 0.7
    faulty   (2, 3)                        the share below 0.9
    protocol (2, 3, windows, 2)            reconstruction and divergence, as means over WINDOW steps
    settings                               in JSON
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.timing import tell
from dvae_lib import VariationalAutoencoder, latent_grid, train
from dvae_lib import squares as draw_squares
from experiments import squares
from experiments.measures import Group
from experiments.runs import RESULTS, group_and_seed, machine, stored
from experiments.strip import FOLDED, LIMIT, SIDE, look, write

PATH = RESULTS / "planes.npz"
GROUPS = ("vae", "dvae-0.1")
TILES, EDGE = 15, 2.8  # of the decoded pictures: along an axis, and the largest coordinate of their codes
WINDOW = 50  # steps


def chosen(runs: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the first seed of which neither network folds, the VAE alone, and the DVAE alone."""
    folds: dict[int, dict[str, bool]] = {}
    for name, run in runs.items():
        group, seed = group_and_seed(name)
        if group in GROUPS:
            folds.setdefault(seed, {})[group] = run["prior"]["below 0.7"] > FOLDED
    kinds = [tuple(folds[seed].get(group) for group in GROUPS) for seed in sorted(folds)]
    first, second, third = (kinds.index(kind) for kind in ((False, False), (True, False), (False, True)))
    seeds = sorted(folds)
    return seeds[first], seeds[second], seeds[third]


@torch.no_grad()
def plane(model: VariationalAutoencoder) -> dict[str, Any]:
    """Return what is decoded from the plane of codes, and how often it is no square."""
    pictures = model.decode(latent_grid(TILES, EDGE)).sigmoid().view(TILES, TILES, 24, 24)
    shares = squares.samples_from_the_prior(model)
    found = {"bad": shares["below 0.7"], "faulty": shares["below 0.9"], "overlap": look(model)["overlap"]}
    return found | {"pictures": (255 * pictures).round().byte().numpy()}


def measured(group: Group, seed: int) -> dict[str, Any]:
    """Train the network of a run of `experiments.squares`; return its plane of codes and its protocol."""
    model, images = group.build(seed), draw_squares(squares.IMAGES, torch.Generator().manual_seed(seed))
    protocol = train(model, images, replace(group.config, seed=seed), device="cpu", progress=False)
    losses = np.stack([protocol.reconstruction, protocol.kl], axis=1)  # (steps, 2)
    means = losses.reshape(-1, min(WINDOW, len(losses)), 2).mean(1)
    return plane(model) | {"protocol": means.astype("f4")}


def main() -> None:
    torch.set_num_threads(1)
    tell("planes: six runs, about two minutes")
    seeds = chosen(stored(squares.PATH)["runs"])
    rows = [[measured(squares.GROUPS[group], seed) for seed in seeds] for group in GROUPS]
    keys = ("pictures", "overlap", "bad", "faulty", "protocol")
    arrays = {key: np.array([[one[key] for one in row] for row in rows]) for key in keys}
    settings: dict[str, Any] = {"map": [SIDE, LIMIT], "tiles": [TILES, EDGE], "folded": FOLDED, "window": WINDOW}
    settings |= {"configs": [squares.SETTINGS[f"group {group}"] for group in GROUPS], "images": squares.IMAGES}
    settings |= {"machine": machine()}
    write(PATH, {"seeds": seeds, "groups": GROUPS, **arrays, "settings": json.dumps(settings)})


if __name__ == "__main__":
    main()
