"""Checks for the book's cells: each fails loudly, or prints one line that is the same on every machine."""

from __future__ import annotations

import torch
from torch import Tensor


def verify_close(what: str, value: Tensor | float, reference: Tensor | float, tolerance: float) -> None:
    """Print that `value` agrees with `reference`, or raise.

    Args:
        what: what is compared, the beginning of the line.
        value: a number or a tensor.
        reference: the independent value, of the same shape.
        tolerance: the largest absolute difference allowed in any entry.

    Raises:
        AssertionError: an entry differs by more, is not a number, or the shapes differ.
    """
    value, reference = _as_double(value), _as_double(reference)
    if value.shape != reference.shape:
        raise AssertionError(f"{what}: shapes {tuple(value.shape)} and {tuple(reference.shape)} differ")
    difference = float((value - reference).abs().max())
    if not difference <= tolerance:  # a NaN fails as well
        raise AssertionError(f"{what}: differs by {difference:.3g}, more than {tolerance:g}")
    print(f"{what}: agrees within {tolerance:g}")


def verify_mean(what: str, samples: Tensor, reference: Tensor | float, errors: float = 5.0) -> None:
    """Print that the mean of independent draws agrees with `reference`, or raise.

    Five standard errors raise a false alarm once in 1.7 million comparisons of a right formula.

    Args:
        what: what is compared, the beginning of the line.
        samples: (n, ...), n draws along the first axis.
        reference: the expectation, of the shape of one draw.
        errors: standard errors allowed.

    Raises:
        AssertionError: an entry's mean is further away, is not a number, or the shapes differ.
    """
    samples, reference = _as_double(samples), _as_double(reference)
    if samples.shape[1:] != reference.shape:
        raise AssertionError(f"{what}: a draw has shape {tuple(samples.shape[1:])}, not {tuple(reference.shape)}")
    standard_error = samples.std(0) / len(samples) ** 0.5
    distance = float(((samples.mean(0) - reference).abs() / standard_error).max())
    if not distance <= errors:
        raise AssertionError(f"{what}: the mean is {distance:.1f} standard errors away, more than {errors:g}")
    print(f"{what}: the mean of {len(samples):,} draws is within {errors:g} standard errors")


def _as_double(value: Tensor | float) -> Tensor:
    # a Python number becomes float64 at once: by way of float32 it would lose half of its digits
    return torch.as_tensor(value, dtype=torch.float64).detach().cpu()
