"""The checks of the book's cells: what agrees prints one fixed line, what does not raises."""

import math

import pytest
import torch

from dvae_lib import verify_close, verify_mean

MEAN = torch.tensor([1.0, -2.0])


def draws(first=0.0, second=0.0):
    """400 draws, (400, 2), of standard deviations 1 and 10; their mean is so many standard errors away from MEAN."""
    eps = torch.randn(400, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    eps = (eps - eps.mean(0)) / eps.std(0)
    return MEAN + (eps + torch.tensor([first, second]) / math.sqrt(400)) * torch.tensor([1, 10])


@pytest.mark.parametrize(
    ("value", "reference", "tolerance"),
    [
        (1.5, 1.0, 0.5),  # the tolerance itself
        (0.1, torch.tensor(0.1, dtype=torch.float64), 1e-15),  # a number keeps all its digits
        (torch.ones(2, requires_grad=True), torch.tensor([1.05, 0.95]).double(), 0.1),
    ],
)
def test_close_values_print_one_line(capsys, value, reference, tolerance):
    verify_close("the thing", value, reference, tolerance)
    assert capsys.readouterr().out == f"the thing: agrees within {tolerance}\n"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0, 2.2], "differs by 0.2, more than 0.1"),
        ([0.8, 2.0], "differs by 0.2, more than 0.1"),
        ([1.0, math.nan], "differs by nan"),
        ([[1.0, 2.0]], r"shapes \(1, 2\) and \(2,\) differ"),
    ],
)
def test_values_that_are_not_close_raise(capsys, value, message):
    with pytest.raises(AssertionError, match=f"^the thing: {message}"):
        verify_close("the thing", torch.tensor(value, dtype=torch.float64), torch.tensor([1.0, 2.0]), tolerance=0.1)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("samples", "allowed", "errors"),
    [(draws(-4.9), "5", {}), (draws(0, 4.9), "5", {}), (draws(2.5, -2.5), "3", {"errors": 3})],
)
def test_mean_within_the_standard_errors_prints_one_line(capsys, samples, allowed, errors):
    verify_mean("the mean", samples, MEAN, **errors)
    assert capsys.readouterr().out == f"the mean: the mean of 400 draws is within {allowed} standard errors\n"


@pytest.mark.parametrize(
    ("samples", "reference", "errors", "message"),
    [
        (draws(5.1), MEAN, {}, "the mean is 5.1 standard errors away, more than 5"),
        (draws(0, -5.1), MEAN, {}, "the mean is 5.1 standard errors away, more than 5"),
        (draws(2.5), MEAN, {"errors": 2}, "the mean is 2.5 standard errors away, more than 2"),
        (draws(math.nan), MEAN, {}, "the mean is nan standard errors away"),
        (draws(), 1.0, {}, r"a draw has shape \(2,\), not \(\)"),
    ],
)
def test_mean_further_away_or_of_another_shape_raises(capsys, samples, reference, errors, message):
    with pytest.raises(AssertionError, match=f"^the mean: {message}"):
        verify_mean("the mean", samples, reference, **errors)
    assert capsys.readouterr().out == ""
