"""Numbers to judge a model by."""

from __future__ import annotations

import torch
from torch import Tensor

from dvae_lib._checks import check_image_shape
from dvae_lib.data import IMAGE_SIZE, all_squares


def best_square_iou(images: Tensor) -> Tensor:
    """How square an image is: its largest intersection over union with one of the 256 true squares.

    A pixel counts as set where it is at least 1/2.

    Args:
        images: (n, 1, 24, 24), probabilities or binary pixels, not logits.

    Returns:
        (n,), in [0, 1]; 1 exactly for a true square, 0 for an empty image.

    Raises:
        TypeError, ValueError: `images` is of a wrong type, rank or size.

    Used in the chapters "The training loop" and "The manifold"; source: the usual overlap measure of object detection.
    """
    check_image_shape("images", images, (1, IMAGE_SIZE, IMAGE_SIZE))
    found = (images >= 0.5).float().flatten(1)  # (n, 576)
    squares = all_squares(images.device).flatten(1)  # (256, 576)
    intersection = found @ squares.T  # (n, 256)
    union = found.sum(1, keepdim=True) + squares.sum(1) - intersection  # (n, 1) + (256,) -> (n, 256)
    return torch.amax(intersection / union, dim=1)
