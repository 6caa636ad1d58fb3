"""Train the models that the book ships, and write their weights.

    python tools/train_weights.py            # all of them, into weights/
    python tools/train_weights.py article-vae explorer-p10

The VAE and the DVAE of the article, on its full schedule, take 3 to 20 minutes each on a CPU; the six small models of
the explorers, which differ in the probability of a flip alone (p10: 0.1), about 2 minutes each. The other models are
runs of experiments/, here made again: half a minute each for those of the squares, 3 to 10 minutes for those of the
digits; explorer-bits and explorer-levels, smaller networks of the groups of codes of bits and of denoising at all
levels, a minute or two each; toy-dvae, on bars of three white pixels among eight, takes seconds, and keeps 32 bits.
The other weights are 16-bit floats, NAME.safetensors. Beside each of the article's models stands NAME.protocol.npz, the
means of the protocol's columns over windows of 50 steps. SHA256SUMS is renewed.
"""

import argparse
import hashlib
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dvae_lib import (  # noqa: E402
    BernoulliNoise,
    TrainingConfig,
    bernoulli_vae,
    mlp_vae,
    save_checkpoint,
    squares,
    train,
)
from experiments import bernoulli, mnist, outlook  # noqa: E402
from experiments import squares as squares_experiment  # noqa: E402
from experiments.measures import of_name  # noqa: E402

WEIGHTS = ROOT / "weights"
ARTICLE = TrainingConfig.article()
EXPLORER = TrainingConfig(steps=16_000, batch_size=128, learning_rate=2e-3, schedule="cosine", hidden_size=128)
MODELS = {  # the run, and the probability of a flip
    "article-vae": (ARTICLE, 0.0),
    "article-dvae": (ARTICLE, 0.1),
    **{f"explorer-p{round(100 * p):02d}": (EXPLORER, p) for p in (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)},
}
RUNS = {  # of the experiments: which, and the run's name there
    "quick-vae": (squares_experiment, "vae/0"),
    "quick-dvae": (squares_experiment, "dvae-0.1/0"),
    "mnist-vae": (mnist, "vae/0"),
    "mnist-dvae": (mnist, f"flips-{mnist.CHOSEN['flips']:g}/0"),
    "mnist-plane-vae": (mnist, "plane-vae/0"),
    "mnist-plane-dvae": (mnist, "plane-dvae/0"),
}
FURTHER = {  # of the experiments' groups, with hidden layers of 128: how to build it, and how to train it
    "explorer-bits": (lambda: bernoulli_vae(latent_size=12, hidden_size=128), bernoulli.GROUPS["relaxed-12"].config),
    "explorer-levels": (lambda: outlook.EveryLevel(128), outlook.GROUPS["chain"].config),
}
TOY = TrainingConfig(steps=3_000, batch_size=64, learning_rate=2e-3, schedule="cosine", hidden_size=32)
WINDOW = 50


def make_toy() -> None:
    """Train a DVAE on six images of eight pixels, a bar of three at each place, in 64 bits."""
    bars = torch.stack([torch.eye(8, dtype=torch.float64)[place : place + 3].sum(0) for place in range(6)])
    torch.manual_seed(0)
    model = mlp_vae((1, 1, 8), 1, TOY.hidden_size, BernoulliNoise(0.1)).double()
    train(model, bars.view(6, 1, 1, 8).repeat(100, 1, 1, 1), TOY, device="cpu")
    save_checkpoint(WEIGHTS / "toy-dvae.safetensors", model, TOY, dtype=torch.float32)


def make_further(name: str) -> None:
    """Train one network of the kinds that the last chapters develop, with seed 0."""
    build, config = FURTHER[name]
    config = replace(config, hidden_size=128, seed=0)
    torch.manual_seed(0)
    model = build()
    train(model, squares(50_000, torch.Generator().manual_seed(0)), config, device="cpu")
    save_checkpoint(WEIGHTS / f"{name}.safetensors", model, config, dtype=torch.float16)


def make(name: str) -> None:
    """Train one model and write its files."""
    if name in FURTHER:
        make_further(name)
        return
    if name == "toy-dvae":
        make_toy()
        return
    if name in RUNS:
        experiment, run = RUNS[name]
        group, seed = of_name(run, experiment.GROUPS)
        config = replace(group.config, seed=seed)
        save_checkpoint(WEIGHTS / f"{name}.safetensors", experiment.trained(run)[0], config, dtype=torch.float16)
        return
    config, p = MODELS[name]
    images = squares(50_000, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = mlp_vae(hidden_size=config.hidden_size, noise=BernoulliNoise(p) if p > 0 else None)
    protocol = train(model, images, config)
    save_checkpoint(WEIGHTS / f"{name}.safetensors", model, config, dtype=torch.float16)
    if config == ARTICLE:
        columns = protocol.to_dict().items()
        means = {key: column.reshape(-1, WINDOW).mean(1, dtype=np.float64).astype("f4") for key, column in columns}
        np.savez(WEIGHTS / f"{name}.protocol.npz", **means)


def write_sums() -> None:
    """List the sha256 of every shipped file, in the format that `sha256sum --check` reads."""
    files = sorted(path for path in WEIGHTS.iterdir() if path.suffix in (".safetensors", ".npz"))
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (WEIGHTS / "SHA256SUMS").write_text("".join(lines))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # `train` would keep the first Ctrl-C, and a part be shipped
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*MODELS, *RUNS, *FURTHER, "toy-dvae"]
    parser.add_argument("names", nargs="*", default=every, metavar="NAME", help=" or ".join(every))
    names = parser.parse_args().names
    if unknown := set(names) - set(every):
        parser.error(f"NAME must be one of {', '.join(every)}, got {', '.join(sorted(unknown))}")
    for name in names:
        make(name)
    write_sums()
