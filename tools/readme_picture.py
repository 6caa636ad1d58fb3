"""Draw the picture at the top of the README into _static/four-rows.png.

    python tools/readme_picture.py

Twelve squares, their corruptions, and what the shipped VAE and DVAE make of them, as on the book's first page.
tests/test_pictures.py compares the stored picture with the one that is drawn.
"""

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from dvae_lib import BernoulliNoise, all_squares, image_grid, shipped
from dvae_lib.plotting import use_book_style

PICTURE = Path(__file__).resolve().parent.parent / "_static" / "four-rows.png"


@torch.no_grad()
def rows() -> dict[str, torch.Tensor]:
    """Return each row's twelve pictures; the squares and the draws of the noise are those of the first page."""
    clean = all_squares()[10::22]  # (12, 1, 24, 24)
    corrupted = BernoulliNoise(0.1, torch.Generator().manual_seed(0)).corrupt(clean)
    pictures = {"clean": clean, "corrupted": corrupted}
    for name in ("VAE", "DVAE"):
        model = shipped(f"article-{name.lower()}")
        pictures[name] = model.decode(model.encode(corrupted)[0]).sigmoid()
    return pictures


def draw() -> Figure:
    """Return the figure."""
    figure, axes = plt.subplots(4, 1, figsize=(7.5, 3.1))
    for axis, (name, pictures) in zip(axes, rows().items(), strict=True):
        axis.imshow(image_grid(pictures, columns=len(pictures)).numpy(), vmin=0, vmax=1)
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.set(xticks=[], yticks=[], frame_on=False)
    return figure


if __name__ == "__main__":
    mpl.use("Agg")
    use_book_style()
    draw().savefig(PICTURE)
