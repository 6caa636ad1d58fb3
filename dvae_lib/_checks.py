"""Argument checks shared by the library: each names the argument, what it got and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real

from torch import Tensor


def check_integer(name: str, value: object, low: int = 1, high: float = math.inf) -> int:
    """Return `value` if it is an integer in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__} {value!r}")
    number = int(value)
    if number < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")
    if number > high:
        raise ValueError(f"{name} must be at most {high}, got {value}")
    return number


def check_number(name: str, value: object, low: float, high: float = math.inf) -> float:
    """Return `value` as a float if it is a finite number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {value!r}")
    number = float(value)
    if not (math.isfinite(number) and low <= number <= high):
        allowed = f"in [{low}, {high}]" if high < math.inf else f"finite and at least {low}"
        raise ValueError(f"{name} must be {allowed}, got {value}")
    return number


def check_choice(name: str, value: object, allowed: Iterable[str]) -> str:
    """Return `value` if it is one of the strings `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    return value


def check_floating(name: str, value: object) -> Tensor:
    """Return `value` if it is a tensor of floating-point numbers."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got dtype {value.dtype}")
    return value


def check_image_shape(name: str, images: object, image_shape: Sequence[int] | None = None) -> Tensor:
    """Return `images` if its shape is (n, channels, height, width), of `image_shape` where one is given.

    Only shapes are looked at, so that the check costs no synchronisation with a GPU.
    """
    images = check_floating(name, images)
    wanted = ", ".join(map(str, image_shape or ("channels", "height", "width")))
    fits = images.ndim == 4 and (image_shape is None or tuple(images.shape[1:]) == tuple(image_shape))
    if not fits:
        raise ValueError(f"{name} must have shape (n, {wanted}), got {tuple(images.shape)}")
    if len(images) == 0:
        raise ValueError(f"{name} must hold at least one image, got shape {tuple(images.shape)}")
    return images


def check_image_values(name: str, images: Tensor) -> Tensor:
    """Return `images` if every entry is finite and lies in [0, 1]."""
    low, high = (float(bound) for bound in images.aminmax())  # both NaN, if any entry is; no copy of the images
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} must be finite, got a NaN or an infinity")
    if low < 0 or high > 1:
        raise ValueError(f"{name} must lie in [0, 1], got values from {low:g} to {high:g}")
    return images


def check_logits(logits: object) -> None:
    """Pass if `logits` is a floating-point matrix (batch, code)."""
    if (logits := check_floating("logits", logits)).ndim != 2:
        raise ValueError(f"logits must have shape (batch, code), got {tuple(logits.shape)}")


def check_gaussian(mean: object, log_variance: object) -> None:
    """Pass if `mean` and `log_variance` are floating-point matrices of one shape (batch, code)."""
    mean, log_variance = check_floating("mean", mean), check_floating("log_variance", log_variance)
    if mean.ndim != 2:
        raise ValueError(f"mean must have shape (batch, code), got {tuple(mean.shape)}")
    if log_variance.shape != mean.shape:
        raise ValueError(
            f"log_variance must have the shape of mean, {tuple(mean.shape)}, got {tuple(log_variance.shape)}"
        )
