"""VAEs and DVAEs on binarised MNIST, over seeds: bounds and likelihoods as the literature has them.

    python -m experiments.mnist [--processes 2] [--only vae flips-0.02]

784-200-200-50 with tanh, batches of 100, Adam with a rate that falls from 1e-3 along a cosine, over as many images as
200 epochs have. `vae` has no noise, `flips-P` flips, `pepper-P` replaces pixels by salt or pepper. Which level P, a
trial of 40 epochs says, one seed each, `trial-flips-P` and `trial-pepper-P`: the one with the best bound on the
validation images. Three VAEs say what the training is worth: the rate of `inverse-time` falls from 1e-3 to 1e-4 as
1 / (1 + t), `published-weights` begins with weights as Burda et al. (2016) drew them, and `long` has four times the
steps; of these the weights with the best bound on the validation images count, and it ends when they are old.
`plane-vae` and `plane-dvae` have a code of two entries and are smaller.

The likelihood is the importance-weighted bound with 5,000 samples, on all test images. Their file is sorted by digit:
its halves differ by five nats. All in nats per image.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.timing import rounded, write_json
from dvae_lib import (
    BernoulliNoise,
    Protocol,
    SaltAndPepperNoise,
    TrainingConfig,
    VariationalAutoencoder,
    binarized_mnist,
    denoising_bound,
    elbo,
    gaussian_kl,
    load_checkpoint,
    mlp_vae,
    save_checkpoint,
    train,
)
from dvae_lib.runs.files import write_bytes
from experiments.measures import draw_log_weights, names, of_name, overlaps
from experiments.runs import RESULTS, command_line, described, stored

PATH = RESULTS / "mnist.json"
WORK = Path(__file__).resolve().parent / "work"  # runs that are not finished, and what they came to
EPOCH = 500  # steps of 100 images
VALIDATE = 5 * EPOCH
CONFIG = TrainingConfig(
    steps=200 * EPOCH,
    batch_size=100,
    learning_rate=1e-3,
    schedule="cosine",
    hidden_size=200,
    checkpoint_every=VALIDATE,
)
TRIAL = replace(CONFIG, steps=CONFIG.steps // 5)
INVERSE_TIME = replace(CONFIG, schedule="inverse_time", decay=9 / CONFIG.steps)
LONG = replace(CONFIG, steps=4 * CONFIG.steps)
PLANE = replace(CONFIG, steps=CONFIG.steps // 2, hidden_size=128)
PATIENCE = 100 * EPOCH  # steps without a better bound on the validation images, after which the long run ends
LEVELS = (0.02, 0.05, 0.1)
CHOSEN = {"flips": 0.02, "pepper": 0.02}  # by the bound on the validation images, of one seed each: a test compares
NOISES: dict[str, type[nn.Module]] = {"flips": BernoulliNoise, "pepper": SaltAndPepperNoise}


class Group(NamedTuple):
    """Runs that differ in their seed alone; `tested` ones get a likelihood on the test images."""

    seeds: int
    noise: nn.Module | None = None
    config: TrainingConfig = CONFIG
    latent_size: int = 50
    tested: bool = True
    best: bool = False  # take the weights with the best bound on the validation images, not the last
    published_weights: bool = False  # to begin with, instead of PyTorch's

    def build(self, seed: int) -> VariationalAutoencoder:
        """Build the network of a run, with its first weights."""
        torch.manual_seed(seed)
        model = mlp_vae((1, 28, 28), self.latent_size, self.config.hidden_size, self.noise, "tanh")
        if self.published_weights:
            begin_as_published(model)
        return model


@torch.no_grad()
def begin_as_published(model: VariationalAutoencoder) -> None:
    """Draw the first weights as Burda et al. (2016) did.

    Weights are uniform with Glorot's variance, 2 / (inputs + outputs), and biases 0, but for the last layer's: its
    biases are the log-odds of the pixels in the training images.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    *_, last = (layer for layer in model.decoder.modules() if isinstance(layer, nn.Linear))
    last.bias.copy_(images_of("train").mean(0).flatten().clamp(0.001, 0.999).logit())


GROUPS = {
    **{
        f"trial-{kind}-{level:g}": Group(1, layer(level), TRIAL, tested=False)
        for kind, layer in NOISES.items()
        for level in LEVELS
    },
    "vae": Group(3),
    **{f"{kind}-{level:g}": Group(3, NOISES[kind](level)) for kind, level in CHOSEN.items()},
    "plane-vae": Group(1, config=PLANE, latent_size=2, tested=False),
    "plane-dvae": Group(1, BernoulliNoise(0.05), PLANE, latent_size=2, tested=False),
    "inverse-time": Group(1, config=INVERSE_TIME),
    "published-weights": Group(1, published_weights=True),
    "long": Group(1, config=LONG, best=True),
}
DRAWS = 10  # of the bounds
SAMPLES = (1, 50, 500, 5000)  # of the importance-weighted bound
PART = 500  # images whose likelihoods are stored together
SETTINGS = {
    **{
        f"group {name}": {
            "noise": repr(group.noise),
            "latent size": group.latent_size,
            "config": described(group.config),
            **({"first weights": "published"} if group.published_weights else {}),
        }
        for name, group in GROUPS.items()
    },
    "draws": DRAWS,
    "samples": SAMPLES,
    "patience": PATIENCE,
}


@cache
def images_of(split: str) -> Tensor:
    """Read a split once in a process."""
    return binarized_mnist(split)


def rough_bound(model: VariationalAutoencoder, images: Tensor) -> float:
    """Return the mean evidence lower bound of clean images by one draw each; in train mode as well."""
    torch.manual_seed(0)
    return float(torch.cat([draw_log_weights(model, some, 1)[0] for some in images.split(1000)]).mean())


class Watch:
    """Write down the bounds of clean images on the way; keep the weights of the best one."""

    def __init__(self, path: Path, model: VariationalAutoencoder, group: Group) -> None:
        self.path, self.model, self.group = path, model, group
        self.curve: dict[str, dict[str, float]] = stored(path)["runs"]

    def enough(self) -> bool:
        """Whether the run has ended because its best weights are old; one that was killed after that asks as well."""
        return self.group.best and bool(self.curve) and max(map(int, self.curve)) - self.best() >= PATIENCE

    def best(self) -> int:
        """Return the step with the best bound on the validation images."""
        return int(max(self.curve, key=lambda step: self.curve[step]["valid"]))

    def __call__(self, done: int, rows: Protocol) -> bool:
        if done % VALIDATE:
            return False
        images = {"train": images_of("train")[:10_000], "valid": images_of("valid")}
        found = {name: rough_bound(self.model, some) for name, some in images.items()}
        self.curve[str(done)] = rounded(found)  # as a run that goes on from the file has it
        write_json(self.path, {"runs": self.curve})
        if self.group.best and self.best() == done:
            save_checkpoint(self.path.with_suffix(".best.safetensors"), self.model, self.group.config)
        return self.enough()


def trained(name: str) -> tuple[VariationalAutoencoder, Watch]:
    """Train the network of run `name`, or go on where that was stopped; return it with the bounds on the way."""
    group, seed = of_name(name, GROUPS)
    WORK.mkdir(exist_ok=True)
    path = WORK / f"mnist-{name.replace('/', '-')}"
    checkpoint = path.with_name(path.name + ".safetensors")
    if not checkpoint.exists():  # a run that begins anew has no past
        for leftover in WORK.glob(f"{path.name}.*"):
            leftover.unlink()
    model = group.build(seed)
    watch = Watch(path.with_name(path.name + ".json"), model, group)
    config = replace(group.config, seed=seed)
    if not watch.enough():
        train(model, images_of("train"), config, device="cpu", progress=False, checkpoint=checkpoint, on_report=watch)
    if group.best:
        load_checkpoint(watch.path.with_suffix(".best.safetensors"), model)
    return model, watch


@torch.no_grad()
def weights_of(model: VariationalAutoencoder, image: Tensor, draws: int) -> Tensor:
    """Draw ln p(x, z) - ln q(z|x) for one image, (1, 1, 28, 28), in float64: (draws,)."""
    mean, log_variance = model.encode(image)  # each (1, code)
    eps = torch.randn(draws, mean.shape[1])
    codes = mean + torch.exp(0.5 * log_variance) * eps  # (draws, code)
    logits = model.decode(codes).flatten(1)  # (draws, pixels)
    pixels = logits @ image.flatten() - functional.softplus(logits).sum(1)
    # ln p(z) - ln q(z|x): what the normal densities share cancels
    densities = 0.5 * (eps.square() - codes.square() + log_variance).sum(1)
    return (pixels + densities).double()


def likelihood(model: VariationalAutoencoder, image: Tensor, samples: Sequence[int]) -> list[float]:
    """Draw the importance-weighted bounds of one image, (1, 1, 28, 28), with so many samples, from the same draws."""
    at_once = min(500, max(samples))
    draws = torch.cat([weights_of(model, image, at_once) for _ in range(max(samples) // at_once)])
    return [float((draws.view(-1, k).logsumexp(1) - np.log(k)).mean()) for k in samples]


def likelihoods(model: VariationalAutoencoder, images: Tensor, path: Path, samples: Sequence[int]) -> np.ndarray:
    """Return the importance-weighted bounds of each image, (n, len(samples)), all from the same draws.

    Each part of the images is stored at `path` once it is done, and has a seed of its own.
    """
    done = np.load(path) if path.exists() else np.empty((0, len(samples)))
    while len(done) < len(images):
        torch.manual_seed(len(done))
        rows = [likelihood(model, image[None], samples) for image in images[len(done) : len(done) + PART]]
        done = np.concatenate([done, np.array(rows)])
        file = io.BytesIO()
        np.save(file, done)
        write_bytes(path, file.getvalue())
    return done


def by_part(values: Tensor) -> dict[str, float]:
    """Return the mean over all images of a split of 10,000, and over parts of it, which differ."""
    values, half = values.double(), len(values) // 2
    parts = {"all": values, "first half": values[:half], "second half": values[half:], "first 100": values[:100]}
    parts |= {"first 1000": values[:1000], "first 1000 of the second half": values[half : half + 1000]}
    return {name: float(part.mean()) for name, part in parts.items()}


def bounds(model: VariationalAutoencoder, split: str) -> dict[str, Any]:
    """Measure the evidence lower bound of the first 10,000 clean images of a split."""
    torch.manual_seed(0)
    images = images_of(split)[:10_000]
    found = elbo(model, images, DRAWS)
    divergence = gaussian_kl(*model.encode(images)).double().mean()
    return {"elbo": by_part(found.value) | {"standard error": found.mean()[1]}, "kl": float(divergence)}


@torch.no_grad()
def measure(name: str) -> dict[str, Any]:
    """Train run `name` and measure it."""
    group = of_name(name, GROUPS)[0]
    with torch.enable_grad():
        model, watch = trained(name)
    found: dict[str, Any] = {split: bounds(model, split) for split in ("train", "valid", "test")}
    found |= {"curve": watch.curve, "best step": watch.best()}
    test = images_of("test")
    if group.noise is not None:
        torch.manual_seed(0)
        bound = denoising_bound(model, test, DRAWS)
        found["test"]["denoising 0"] = {"all": bound.mean()[0], "standard error": bound.mean()[1]}
    found["overlap"] = overlaps(model, test)
    if group.tested:
        values = torch.from_numpy(likelihoods(model, test, watch.path.with_suffix(".npy"), SAMPLES))
        found["test"] |= {f"iwae {k}": by_part(values[:, i]) for i, k in enumerate(SAMPLES)}
    return found


if __name__ == "__main__":
    others = {"long": 45.0} | {name: 3.0 for name, group in GROUPS.items() if not group.tested}
    command_line(str(__doc__), PATH, SETTINGS, names(GROUPS), measure, 14.0, others)
