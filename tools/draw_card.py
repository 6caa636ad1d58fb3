"""Draw the book's icon and the card of its links into _static: favicon.svg, favicon.png, card.png.

    python tools/draw_card.py

The icon is a white square on a dark ground, with pixels flipped; the card the rows of the first page beside the title.
"""

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from readme_picture import rows

from dvae_lib import image_grid

STATIC = Path(__file__).resolve().parent.parent / "_static"
GROUND, WHITE, ACCENT = "#14181e", "#ffffff", "#56b4e9"
# the icon: the square of 9 pixels on 16 x 16, its flipped pixels told from the others by colour
SIDE, CORNER, FLIPPED = 16, (4, 3), ((2, 12), (5, 5), (6, 10), (10, 6), (13, 2), (14, 13), (1, 5), (9, 14))


def icon() -> np.ndarray:
    """Return the icon as (16, 16) integers: 0 dark, 1 white, 2 flipped."""
    pixels = np.zeros((SIDE, SIDE), dtype=int)
    row, column = CORNER
    pixels[row : row + 9, column : column + 9] = 1
    for flipped in FLIPPED:
        pixels[flipped] = 2 if pixels[flipped] == 0 else 0
    return pixels


def svg() -> str:
    """Return the icon as an SVG, one path a colour."""
    pixels = icon()
    paths = [
        f'<path fill="{colour}" d="{"".join(f"M{x} {y}h1v1h-1z" for y, x in np.argwhere(pixels == value))}"/>'
        for value, colour in ((1, WHITE), (2, ACCENT))
    ]
    ground = f'<rect width="{SIDE}" height="{SIDE}" rx="2" fill="{GROUND}"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIDE} {SIDE}" shape-rendering="crispEdges">'
    return f"{head}{ground}{''.join(paths)}</svg>\n"


def png(size: int = 180) -> np.ndarray:
    """Return the icon as (size, size, 3) bytes, with a margin where the pixels do not fill it."""
    colours = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (GROUND, WHITE, ACCENT)])
    image = np.full((size, size, 3), colours[0], dtype=np.uint8)
    scale = size // SIDE
    start = (size - scale * SIDE) // 2
    large = colours[icon()].repeat(scale, 0).repeat(scale, 1)
    image[start : start + len(large), start : start + len(large)] = large
    return image


def card() -> Figure:
    """Return the card, 1200 x 630 pixels at 100 dots an inch."""
    figure = plt.figure(figsize=(12, 6.3), dpi=100, facecolor=GROUND)
    text = {"color": WHITE, "ha": "left", "va": "center"}
    figure.text(
        0.05, 0.84, "The Denoising\nVariational Auto-Encoder", fontsize=40, weight="bold", linespacing=1.15, **text
    )
    for index, (name, pictures) in enumerate(rows().items()):
        bottom = 0.525 - 0.155 * index
        axis = figure.add_axes((0.18, bottom, 0.77, 0.135))
        axis.imshow(image_grid(pictures, columns=len(pictures)).numpy(), cmap="gray", vmin=0, vmax=1)
        axis.set_axis_off()
        figure.text(0.165, bottom + 0.0675, name, fontsize=21, **{**text, "ha": "right"})
    return figure


if __name__ == "__main__":
    mpl.use("Agg")
    (STATIC / "favicon.svg").write_text(svg())
    plt.imsave(STATIC / "favicon.png", png())
    card().savefig(STATIC / "card.png", dpi=100, facecolor=GROUND)
