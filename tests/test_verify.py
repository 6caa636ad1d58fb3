"""The checks of the book's cells: what agrees prints one fixed line, what does not raises."""

import math

import pytest
import torch

from dvae_lib import verify_close, verify_mean


def draws(n=400, seed=0):
    """n draws whose mean is exactly (1, -2) and whose standard error is about 1 / sqrt(n)."""
    eps = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (eps - eps.mean(0)) / eps.std(0) + torch.tensor([1.0, -2.0])


@pytest.mark.parametrize(
    ("value", "reference"),
    [
        (1.0, 1.05),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.05, 1.95])),
        (torch.ones(2, requires_grad=True), torch.ones(2).double()),
    ],
)
def test_close_values_print_one_line(capsys, value, reference):
    verify_close("the thing", value, reference, tolerance=0.1)
    assert capsys.readouterr().out == "the thing: agrees within 0.1\n"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0, 2.2], "the thing: differs by 0.2, more than 0.1"),
        ([0.8, 2.0], "the thing: differs by 0.2, more than 0.1"),
        ([1.0, math.nan], "the thing: differs by nan"),
        ([1.0, math.inf], "the thing: differs by inf"),
        ([1.0], r"the thing: shapes \(1,\) and \(2,\) differ"),
        ([[1.0, 2.0]], r"the thing: shapes \(1, 2\) and \(2,\) differ"),
    ],
)
def test_values_that_are_not_close_raise(capsys, value, message):
    with pytest.raises(AssertionError, match=message):
        verify_close("the thing", torch.tensor(value, dtype=torch.float64), torch.tensor([1.0, 2.0]), tolerance=0.1)
    assert capsys.readouterr().out == ""


def test_the_tolerance_itself_is_allowed():
    verify_close("the thing", 1.5, 1.0, tolerance=0.5)


@pytest.mark.parametrize("errors", [-4.9, 0, 4.9])
def test_mean_within_five_standard_errors_prints_one_line(capsys, errors):
    """The standard error of 400 draws of standard deviation 1 is 1/20."""
    verify_mean("the mean", draws() + torch.tensor([errors / 20, 0]), torch.tensor([1.0, -2.0]))
    assert capsys.readouterr().out == "the mean: the mean of 400 draws is within 5 standard errors\n"


@pytest.mark.parametrize("errors", [-5.1, 5.1])
def test_mean_further_away_raises(capsys, errors):
    with pytest.raises(AssertionError, match=r"the mean: the mean is 5.1 standard errors away, more than 5"):
        verify_mean("the mean", draws() + torch.tensor([0, errors / 20]), torch.tensor([1.0, -2.0]))
    assert capsys.readouterr().out == ""


def test_number_of_standard_errors_can_be_chosen():
    samples = draws() + 2.5 / 20
    verify_mean("the mean", samples, torch.tensor([1.0, -2.0]), errors=3)
    with pytest.raises(AssertionError, match=r"2.5 standard errors away, more than 2"):
        verify_mean("the mean", samples, torch.tensor([1.0, -2.0]), errors=2)


def test_mean_of_not_a_number_raises():
    samples = draws()
    samples[3, 0] = math.nan
    with pytest.raises(AssertionError, match="the mean is nan standard errors away"):
        verify_mean("the mean", samples, torch.tensor([1.0, -2.0]))


def test_mean_of_another_shape_raises():
    with pytest.raises(AssertionError, match=r"the mean: a draw has shape \(2,\), not \(\)"):
        verify_mean("the mean", draws(), 1.0)
