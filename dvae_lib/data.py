"""Images to learn from: float32 in {0, 1}, shape (n, 1, height, width).

The chapter "The data" looks at the squares and the rectangles, 24 x 24 and drawn on any device; source: the generator
of Stutz's article and, for `rectangles`, what its text promises. The chapter "Real digits" takes the binarised MNIST.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from dvae_lib._checks import check_choice, check_integer
from dvae_lib.runs.digits import MNIST_SHA256, MNIST_SIZE, read_mnist

IMAGE_SIZE = 24  # pixels, height and width
SQUARE_SIZE = 9  # pixels: the article asks for 8 and draws one more, its ranges being inclusive
POSITIONS = 16  # of a square's corner, along each axis: 24 - 9 + 1


def _paint(top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Paint one filled rectangle an image; each argument has shape (n,) or (1,)."""
    axis = torch.arange(IMAGE_SIZE, device=top.device)  # (24,)
    rows = (axis >= top[:, None]) & (axis < (top + height)[:, None])  # (n, 24)
    columns = (axis >= left[:, None]) & (axis < (left + width)[:, None])  # (n, 24)
    return (rows[:, None, :, None] & columns[:, None, None, :]).float()  # (n, 1, 24, 24)


def _device_of(generator: torch.Generator | None, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    return generator.device if generator is not None else torch.device("cpu")


def squares(n: int, generator: torch.Generator | None = None, device: torch.device | str | None = None) -> Tensor:
    """Draw `n` images of one filled 9 x 9 square, its corner uniform over the 16 x 16 positions that fit.

    There are 256 different images, equally likely, so that the entropy of the data is ln 256 = 5.545 nats.

    Args:
        n: how many, at least 1.
        generator: the source of the positions; None takes PyTorch's default generator.
        device: where to draw; None takes the generator's device, or the CPU.

    Returns:
        (n, 1, 24, 24), float32, 0 outside and 1 inside the square.

    Raises:
        TypeError, ValueError: `n` is not an integer of at least 1.
    """
    check_integer("n", n)
    device = _device_of(generator, device)
    corner = torch.randint(POSITIONS, (2, n), generator=generator, device=device)  # top and left, 0 .. 15
    size = torch.tensor([SQUARE_SIZE], device=device)
    return _paint(corner[0], corner[1], size, size)


def all_squares(device: torch.device | str | None = None) -> Tensor:
    """Return the 256 different squares, (256, 1, 24, 24): image 16 * top + left has its corner at (top, left)."""
    index = torch.arange(POSITIONS**2, device=device)
    size = torch.tensor([SQUARE_SIZE], device=device)
    return _paint(index // POSITIONS, index % POSITIONS, size, size)


def rectangles(
    n: int,
    min_size: int,
    max_size: int,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw `n` images of one filled rectangle whose height and width vary.

    Height and width are independent and uniform over min_size .. max_size, both ends included; then the corner
    is uniform over the positions that fit.

    Args:
        n: how many, at least 1.
        min_size: the smallest side in pixels, at least 1.
        max_size: the largest side in pixels, from `min_size` to 24.
        generator, device: as for `squares`.

    Returns:
        (n, 1, 24, 24), float32, 0 outside and 1 inside the rectangle.

    Raises:
        TypeError, ValueError: an argument is not an integer, or outside what is said above.
    """
    for name, value in (("n", n), ("min_size", min_size), ("max_size", max_size)):
        check_integer(name, value)
    if not min_size <= max_size <= IMAGE_SIZE:
        raise ValueError(f"max_size must be from min_size = {min_size} to {IMAGE_SIZE}, got {max_size}")
    device = _device_of(generator, device)
    sizes = torch.randint(min_size, max_size + 1, (2, n), generator=generator, device=device)  # height, width
    positions = IMAGE_SIZE - sizes + 1  # that fit, of the top and of the left
    u = torch.rand(2, n, generator=generator, device=device)
    corners = (u * positions).long().minimum(positions - 1)  # u < 1, yet u * positions may round up
    return _paint(*corners, *sizes)


def binarized_mnist(split: str, root: str | os.PathLike[str] | None = None) -> Tensor:
    """Return the MNIST digits in the binarisation that Larochelle and Murray drew once for all.

    A folder keeps them packed, in one file of 2.3 MB. Where it is missing, the three public files (110 MB) are looked
    for in the folder and else downloaded. Whatever the way, the images are compared with the sha256 of these files.
    They come in the order of the files. The test images are sorted by digit: a part of them is not a sample of them.

    Args:
        split: "train" (50,000 images), "valid" or "test" (10,000 each).
        root: the folder; None takes the environment variable DVAE_DATA, or ~/.cache/dvae_lib.

    Returns:
        (n, 1, 28, 28), float32, on the CPU.

    Raises:
        TypeError: `root` is not a path.
        ValueError: another split; a file is damaged, or not what it should be: it is not kept.
        OSError: the digits are not there and cannot be downloaded; the message says which files to put where. Or the
            folder cannot be read, or not be written while it lacks the packed file.

    Source: Larochelle and Murray (2011).
    """
    check_choice("split", split, MNIST_SHA256)
    return torch.from_numpy(read_mnist(split, root)).float().view(-1, 1, MNIST_SIZE, MNIST_SIZE)
