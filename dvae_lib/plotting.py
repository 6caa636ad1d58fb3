"""Pictures: grids of images, the manifold of decoded codes, and the protocol of a run.

All draw with matplotlib on the axes or figure that they return, in a palette that colour-blind readers can tell
apart (Okabe and Ito). `use_book_style` sets what the book's figures share. Source of the manifold: the figure of
Stutz's article, in the chapter "The denoising VAE and its manifold".
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from dvae_lib._checks import check_image_shape, check_integer, check_number
from dvae_lib.configuration import BernoulliProtocol, Protocol
from dvae_lib.models import VariationalAutoencoder

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def use_book_style() -> None:
    """Set matplotlib's defaults to the book's: an opaque white ground, two pixels a point of the page."""
    plt.rcParams.update(
        {
            "axes.prop_cycle": plt.cycler(color=PALETTE),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "figure.constrained_layout.use": True,
            "figure.dpi": 200,  # a figure 7.5 inches wide fills the page's 750 points
            "figure.facecolor": "white",
            "font.size": 10,
            "image.cmap": "gray",
            "image.interpolation": "nearest",
            "savefig.facecolor": "white",
        }
    )


def image_grid(images: Tensor, columns: int, padding: int = 1) -> Tensor:
    """Tile images, row by row, into one picture.

    Args:
        images: (n, 1, height, width), values in [0, 1].
        columns: images a row, at least 1; the last row is filled up with grey.
        padding: pixels of mid-grey between two images, at least 0.

    Returns:
        (rows * height + (rows - 1) * padding, columns * width + (columns - 1) * padding), on the CPU.

    Raises:
        TypeError, ValueError: an argument of a wrong type, rank or range.
    """
    check_image_shape("images", images)
    check_integer("columns", columns)
    check_integer("padding", padding, 0)
    if images.shape[1] != 1:
        raise ValueError(f"images must have shape (n, 1, height, width), got {tuple(images.shape)}")
    n, _, height, width = images.shape
    rows = -(-n // columns)  # rounded up
    cells = images.new_full((rows * columns, height + padding, width + padding), 0.5, device="cpu")
    cells[:n, :height, :width] = images[:, 0].detach().cpu()
    grid = cells.unflatten(0, (rows, columns)).permute(0, 2, 1, 3)  # (rows, height, columns, width)
    grid = grid.reshape(rows * (height + padding), columns * (width + padding))
    return grid[: grid.shape[0] - padding, : grid.shape[1] - padding]


def latent_grid(size: int = 20, limit: float = 0.95) -> Tensor:
    """Codes on a regular grid over [-limit, limit]^2; with no arguments the article's, 0.1 apart.

    Args:
        size: codes along each axis, at least 1.
        limit: the largest coordinate, at least 0.

    Returns:
        (size * size, 2), in the order of the pictures of an `image_grid`: the first code is the top left one,
        (-limit, limit), or (0, 0) if there is only one; the first coordinate grows to the right, the second upwards.

    Raises:
        TypeError, ValueError: an argument of a wrong type or out of range.
    """
    limit, size = check_number("limit", limit, 0), check_integer("size", size)
    axis = torch.linspace(-limit, limit, size) if size > 1 else torch.zeros(1)  # a single code lies at the centre
    second, first = torch.meshgrid(axis.flip(0), axis, indexing="ij")  # rows from the top, columns
    return torch.stack([first, second], dim=-1).flatten(0, 1)  # (size, size, 2) -> (size * size, 2)


@torch.no_grad()
def show_manifold(model: VariationalAutoencoder, axes: Axes | None = None, size: int = 20, limit: float = 0.95) -> Axes:
    """Draw the pixel probabilities that `model` decodes from the codes of `latent_grid(size, limit)`.

    Args:
        model: with a code of two entries and images of one channel.
        axes: where to draw; None makes a figure.
        size: images along each axis, at least 1.
        limit: the largest coordinate of a code, greater than 0.

    Returns:
        The axes, its ticks the codes' coordinates.

    Raises:
        TypeError, ValueError: an argument of a wrong type or out of range; a model with another code.
    """
    if check_number("limit", limit, 0) == 0:
        raise ValueError("limit must be greater than 0, got 0")
    codes = latent_grid(size, limit).to(next(model.parameters()))
    picture = image_grid(model.decode(codes).float().sigmoid(), size, padding=0)
    axes = plt.subplots(figsize=(3.6, 3.6))[1] if axes is None else axes
    edge = limit * size / max(size - 1, 1)  # half a picture beyond the outermost codes
    axes.imshow(picture.numpy(), vmin=0, vmax=1, extent=(-edge, edge, -edge, edge))
    axes.set(xlabel="code $z_1$", ylabel="code $z_2$")
    return axes


Run = Protocol | BernoulliProtocol


def plot_protocol(protocols: Mapping[str, Run] | Run, window: int = 50) -> Figure:
    """Plot the five statistics of one run or of several, as means over windows of `window` steps.

    Args:
        protocols: a protocol, or protocols by the name that the legend shows.
        window: steps a point, at least 1; a run shorter than that is one point.

    Returns:
        The figure: reconstruction and divergence in nats per image, the mean of the posterior means, and the
        log-variances, or the logits of a code of bits, as mean (line) plus and minus one standard deviation (band),
        against the step.

    Raises:
        TypeError, ValueError: `window` is not an integer of at least 1; `protocols` holds no protocol.
    """
    check_integer("window", window)
    if not isinstance(protocols, Run | Mapping):
        raise TypeError(f"protocols must be a Protocol or a mapping to Protocols, got {type(protocols).__name__}")
    runs = {"": protocols} if isinstance(protocols, Run) else dict(protocols)
    if not runs:
        raise ValueError("protocols must hold at least one protocol, got none")
    for name, protocol in runs.items():
        if not isinstance(protocol, Run):
            raise TypeError(f"protocols must hold Protocols, got {type(protocol).__name__} as {name!r}")
        if len(protocol) == 0:
            raise ValueError(f"protocols must hold runs of at least one step, got an empty one as {name!r}")
    figure, axes = plt.subplots(2, 2, figsize=(7.5, 4.6), sharex=True)
    for (name, protocol), style in zip(runs.items(), itertools.cycle(("-", "--", "-.", ":"))):  # colours aside
        columns = {key: _window_means(column, window) for key, column in protocol.to_dict().items()}
        steps = _window_means(np.arange(len(protocol)), window)
        reconstruction, kl, mean, spread, centre, _ = columns.values()
        for axis, column in zip(axes.flat, (reconstruction, kl, mean, centre), strict=True):
            axis.plot(steps, column, style, label=name, linewidth=1.2, marker="." if len(steps) == 1 else None)
        axes[1, 1].fill_between(steps, centre - spread, centre + spread, alpha=0.2, linewidth=0)
    scales = {
        "logit" if isinstance(protocol, BernoulliProtocol) else "log-variance": None for protocol in runs.values()
    }
    labels = (
        "reconstruction (nats per image)",
        "divergence (nats per image)",
        "mean of the means",
        f"{' or '.join(scales)}: mean $\\pm$ std",
    )
    for axis, label in zip(axes.flat, labels, strict=True):
        axis.set_ylabel(label)
    axes[0, 0].set_yscale("log")  # it falls from hundreds of nats to one; the divergence stays within a decade
    for axis in axes[1]:
        axis.set_xlabel("step")
        axis.locator_params(axis="x", nbins=4)
    if list(runs) != [""]:
        axes[0, 0].legend(frameon=False)
    return figure


def _window_means(column: np.ndarray, window: int) -> np.ndarray:
    """Means over consecutive windows; the steps of an incomplete last window are left out."""
    window = min(window, len(column))
    full = len(column) // window * window
    return column[:full].reshape(-1, window).mean(axis=1)
