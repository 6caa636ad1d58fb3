"""How a fold arises: the plane of codes of two VAEs on the squares, at some steps of their training.

    python -m experiments.strip

The two are chosen by what `experiments.squares` stored: the first seed of the group `vae` that folds, and the first
that does not. They are trained again, on the same schedule and from the same seeds, and looked at on the way. Takes a
minute on one core. Writes results/strip.npz, with the arrays

    seeds   (2,)                  the one that folds, the other
    steps   (6,)
    means   (2, 6, 16, 16, 2)     the encoder's mean of each square, by the square's top row and left column
    overlap (2, 6, side, side)    best overlap of decoded codes with any square, in hundredths, as of `latent_grid`
    bad     (2, 6)                the share of draws from the prior whose best overlap is below 0.7
    settings                      in JSON
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.timing import tell
from dvae_lib import Protocol, VariationalAutoencoder, all_squares, best_square_iou, latent_grid, train
from dvae_lib import squares as draw_squares
from dvae_lib.runs.files import write_bytes
from experiments import squares
from experiments.measures import Group
from experiments.runs import RESULTS, group_and_seed, machine, stored

PATH = RESULTS / "strip.npz"
STEPS = (50, 200, 500, 1000, 2000, 4000)
SIDE, LIMIT = 97, 4.0  # of the map of the code plane: codes along an axis, the largest coordinate
FOLDED = 0.01  # of the draws from the prior are bad


def chosen(runs: Mapping[str, Any]) -> tuple[int, int]:
    """Return the first seed of the VAEs that folds, and the first that does not."""
    shares = {name: run["prior"]["below 0.7"] for name, run in runs.items() if group_and_seed(name)[0] == "vae"}
    folds = sorted((group_and_seed(name)[1], share > FOLDED) for name, share in shares.items())
    return next(seed for seed, found in folds if found), next(seed for seed, found in folds if not found)


@torch.no_grad()
def look(model: VariationalAutoencoder) -> dict[str, Any]:
    """Return where the squares lie in the plane of codes, and what is decoded from there."""
    means = model.encode(all_squares())[0].view(16, 16, 2)
    codes = latent_grid(SIDE, LIMIT).split(1000)
    overlap = torch.cat([best_square_iou(model.decode(some).sigmoid()) for some in codes]).view(SIDE, SIDE)
    bad = squares.samples_from_the_prior(model)["below 0.7"]
    return {"means": means.numpy().astype("f4"), "overlap": (100 * overlap).round().byte().numpy(), "bad": bad}


def watched(group: Group, seed: int) -> list[dict[str, Any]]:
    """Train the network of a run of `experiments.squares`, and look at it at each of STEPS."""
    model, seen = group.build(seed), []

    def on_report(step: int, protocol: Protocol) -> None:
        if step in STEPS:
            seen.append(look(model))

    images = draw_squares(squares.IMAGES, torch.Generator().manual_seed(seed))
    train(model, images, replace(group.config, seed=seed), device="cpu", progress=False, on_report=on_report)
    return seen


def write(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write the arrays, compressed, to the file at `path`, atomically."""
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    write_bytes(path, file.getvalue())


def main() -> None:
    torch.set_num_threads(1)
    tell("strip: two runs, about a minute")
    group, seeds = squares.GROUPS["vae"], chosen(stored(squares.PATH)["runs"])
    runs = [watched(group, seed) for seed in seeds]
    arrays = {key: np.array([[one[key] for one in run] for run in runs]) for key in ("means", "overlap", "bad")}
    settings = {"group": "vae", "map": [SIDE, LIMIT], "folded": FOLDED, "machine": machine()}
    settings |= {"config": squares.SETTINGS["group vae"], "images": squares.IMAGES}
    write(PATH, {"seeds": seeds, "steps": STEPS, **arrays, "settings": json.dumps(settings)})


if __name__ == "__main__":
    main()
