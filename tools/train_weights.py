"""Train the VAE and the DVAE of the article on its full schedule, and write the weights that the book ships.

    python tools/train_weights.py            # both, into weights/
    python tools/train_weights.py article-vae

Takes 3 to 20 minutes a model on a CPU. Next to each NAME.safetensors (16-bit floats) it writes NAME.protocol.npz, the
means of the protocol's columns over windows of 50 steps, and it renews SHA256SUMS.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
import torch

from dvae_lib import BernoulliNoise, TrainingConfig, mlp_vae, save_checkpoint, squares, train

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
NOISES = {"article-vae": None, "article-dvae": BernoulliNoise(0.1)}
WINDOW = 50


def make(name: str) -> None:
    """Train one model and write its files."""
    config = TrainingConfig.article()
    images = squares(50_000, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = mlp_vae(hidden_size=config.hidden_size, noise=NOISES[name])
    protocol = train(model, images, config)
    save_checkpoint(WEIGHTS / f"{name}.safetensors", model, config, dtype=torch.float16)
    columns = protocol.to_dict().items()
    means = {key: column.reshape(-1, WINDOW).mean(1, dtype=np.float64).astype("f4") for key, column in columns}
    np.savez(WEIGHTS / f"{name}.protocol.npz", **means)


def write_sums() -> None:
    """List the sha256 of every shipped file, in the format that `sha256sum --check` reads."""
    files = sorted(path for path in WEIGHTS.iterdir() if path.suffix in (".safetensors", ".npz"))
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (WEIGHTS / "SHA256SUMS").write_text("".join(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(NOISES), metavar="NAME", help=" or ".join(NOISES))
    names = parser.parse_args().names
    if unknown := set(names) - set(NOISES):
        parser.error(f"NAME must be one of {', '.join(NOISES)}, got {', '.join(sorted(unknown))}")
    for name in names:
        make(name)
    write_sums()
