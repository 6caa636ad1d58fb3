"""Checks for the book's cells: each fails loudly, or prints what was measured beside what was expected.

The numbers of these lines may differ in their last digits from machine to machine, and so the tests of the notebooks
pass over them (tools/nbval.cfg): that they agree is what has just been asserted.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FIXED = (1e-4, 1e9)  # what is smaller or larger is written with an exponent
DIGITS = (4, 15)  # significant ones of the largest number of a line, at least and at most; float64 has no more


def verify_close(what: str, value: Tensor | float, reference: Tensor | float, tolerance: float) -> None:
    """Print `value` beside `reference`, or raise where they differ.

    Both are printed to the decade of the tolerance, with four significant digits or more. Of several entries the one
    that differs most is printed, of those that differ equally the largest.

    Args:
        what: what is compared, the beginning of the line.
        value: a number or a tensor.
        reference: the independent value, of the same shape.
        tolerance: the largest absolute difference allowed in any entry; 0 for what has to be equal.

    Raises:
        AssertionError: an entry differs by more, is not a number, the shapes differ, or there are no entries.
    """
    value, reference = _as_double(value), _as_double(reference)
    if value.shape != reference.shape:
        raise AssertionError(f"{what}: shapes {tuple(value.shape)} and {tuple(reference.shape)} differ")
    measured, expected = _worst((value - reference).abs(), value, reference, what)
    difference = abs(measured - expected)
    line = f"{what}: {' against '.join(_written([measured, expected], tolerance))}"
    if not difference <= tolerance:  # a NaN fails as well
        raise AssertionError(f"{line}, differs by {difference:.3g}, more than {tolerance:g}")
    if tolerance == 0:
        print(f"{line}, all {value.numel():,} entries exactly" if value.numel() > 1 else f"{line}, exactly")
    else:
        print(f"{line}{_of(value)}, within {tolerance:g}")


def verify_mean(what: str, samples: Tensor, reference: Tensor | float, errors: float = 5.0) -> None:
    """Print the mean of independent draws and its standard error beside `reference`, or raise where they differ.

    Two digits of the standard error are printed or more, as many decimals of the rest, and of the largest of the three
    numbers four significant digits or more. Of several entries the one that is most standard errors away is printed.
    Five standard errors raise a false alarm once in 1.7 million comparisons of a right formula.

    Args:
        what: what is compared, the beginning of the line.
        samples: (n, ...), n draws along the first axis.
        reference: the expectation, of the shape of one draw.
        errors: standard errors allowed.

    Raises:
        AssertionError: an entry's mean is further away, is not a number, the shapes differ, or there are no entries.
    """
    samples, reference = _as_double(samples), _as_double(reference)
    if samples.shape[1:] != reference.shape:
        raise AssertionError(f"{what}: a draw has shape {tuple(samples.shape[1:])}, not {tuple(reference.shape)}")
    means, standard_errors = samples.mean(0), samples.std(0) / len(samples) ** 0.5
    distances = (means - reference).abs() / standard_errors
    mean, expected, error, distance = _worst(distances, means, reference, what, standard_errors, distances)
    written = _written([mean, expected, error], error / 10)
    line = f"{what}: {written[0]} +- {written[2]} against {written[1]}"
    if not distance <= errors:
        raise AssertionError(f"{line}, {distance:.1f} standard errors away, more than {errors:g}")
    print(f"{line}{_of(reference)}, {len(samples):,} draws, within {errors:g} standard errors")


def _as_double(value: Tensor | float) -> Tensor:
    # a Python number becomes float64 at once: by way of float32 it would lose half of its digits
    return torch.as_tensor(value, dtype=torch.float64).detach().cpu()


def _worst(deviation: Tensor, value: Tensor, reference: Tensor, what: str, *others: Tensor) -> list[float]:
    # the entries of value, reference and others where the deviation is largest; one that is not a number counts as that
    if not deviation.numel():
        raise AssertionError(f"{what}: there are no entries to compare, the shape is {tuple(deviation.shape)}")
    deviation = deviation.nan_to_num(nan=math.inf)
    size = reference.abs().nan_to_num(nan=math.inf)
    index = torch.where(deviation == deviation.max(), size, -1.0).argmax()
    return [float(entries.flatten()[index]) for entries in (value, reference, *others)]


def _of(entries: Tensor) -> str:
    return f", the worst of {entries.numel():,} entries" if entries.numel() > 1 else ""


def _written(numbers: list[float], step: float) -> list[str]:
    # the numbers to the decade of `step`, but within DIGITS; where the step is 0, as whole numbers if they are
    sizes = [abs(number) for number in numbers if number != 0 and math.isfinite(number)]
    scale = max(sizes, default=1.0)
    if step == 0 and scale < FIXED[1] and all(float(size).is_integer() for size in sizes):
        return [f"{number:z.0f}" for number in numbers]
    leading = math.floor(math.log10(scale))
    wanted = leading - math.floor(math.log10(step)) + 1 if step > 0 and math.isfinite(step) else 6
    last = leading + 1 - min(max(wanted, DIGITS[0]), DIGITS[1])
    fixed = FIXED[0] <= scale < FIXED[1]
    return [_one(number, last, fixed) for number in numbers]


def _one(number: float, last: int, fixed: bool) -> str:
    # a number down to 10^last; zero itself without decimals
    if number == 0 or not math.isfinite(number):
        return f"{number:z.0f}"
    if fixed:
        return f"{number:z.{max(-last, 0)}f}"
    return f"{number:.{max(math.floor(math.log10(abs(number))) - last, 0)}e}"
