"""Draw the picture at the top of the README, the manifolds of the shipped VAE and DVAE, into _static/manifolds.png.

python tools/readme_picture.py
"""

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

from dvae_lib import shipped, show_manifold
from dvae_lib.plotting import use_book_style

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    mpl.use("Agg")
    use_book_style()
    figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.9), sharey=True)
    for axis, name in zip(axes, ("VAE", "DVAE"), strict=True):
        show_manifold(shipped(f"article-{name.lower()}"), axis).set_title(name)
    axes[1].set_ylabel("")
    figure.savefig(ROOT / "_static/manifolds.png")
