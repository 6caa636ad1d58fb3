"""The checks of the book's cells: what agrees prints one fixed line, what does not raises."""

import math

import pytest
import torch

from dvae_lib import verify_close, verify_mean

MEAN = torch.tensor([1.0, -2.0])
DOUBLE = torch.float64


def draws(first=0.0, second=0.0):
    """400 draws, (400, 2), of standard deviations 1 and 10; their mean is so many standard errors away from MEAN."""
    eps = torch.randn(400, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    eps = (eps - eps.mean(0)) / eps.std(0)
    return MEAN + (eps + torch.tensor([first, second]) / math.sqrt(400)) * torch.tensor([1, 10])


@pytest.mark.parametrize(
    ("check", "arguments", "printed"),
    [
        (verify_close, (1.5, 1.0, 0.5), "agrees within 0.5"),  # the tolerance itself
        (verify_close, (0.1, torch.tensor(0.1, dtype=DOUBLE), 1e-15), "agrees within 1e-15"),  # to the last digit
        (verify_close, (torch.ones(2, requires_grad=True), torch.tensor([1.05, 0.95]), 0.1), "agrees within 0.1"),
        (verify_mean, (draws(-4.9), MEAN), "the mean of 400 draws is within 5 standard errors"),
        (verify_mean, (draws(0, 4.9), MEAN), "the mean of 400 draws is within 5 standard errors"),
        (verify_mean, (draws(2.5, -2.5), MEAN, 3), "the mean of 400 draws is within 3 standard errors"),
    ],
)
def test_what_agrees_prints_one_line(capsys, check, arguments, printed):
    check("the thing", *arguments)
    assert capsys.readouterr().out == f"the thing: {printed}\n"


@pytest.mark.parametrize(
    ("check", "arguments", "message"),
    [
        (verify_close, (torch.tensor([1.0, -1.8], dtype=DOUBLE), MEAN, 0.1), "differs by 0.2, more than 0.1"),
        (verify_close, (torch.tensor([0.8, -2.0], dtype=DOUBLE), MEAN, 0.1), "differs by 0.2, more than 0.1"),
        (verify_close, (torch.tensor([1.0, math.nan]), MEAN, 0.1), "differs by nan"),
        (verify_close, (MEAN[None], MEAN, 0.1), r"shapes \(1, 2\) and \(2,\) differ"),
        (verify_mean, (draws(5.1), MEAN), "the mean is 5.1 standard errors away, more than 5"),
        (verify_mean, (draws(0, -5.1), MEAN), "the mean is 5.1 standard errors away, more than 5"),
        (verify_mean, (draws(2.5), MEAN, 2), "the mean is 2.5 standard errors away, more than 2"),
        (verify_mean, (draws(math.nan), MEAN), "the mean is nan standard errors away"),
        (verify_mean, (draws(), 1.0), r"a draw has shape \(2,\), not \(\)"),
    ],
)
def test_what_does_not_agree_raises_and_prints_nothing(capsys, check, arguments, message):
    with pytest.raises(AssertionError, match=f"^the thing: {message}"):
        check("the thing", *arguments)
    assert capsys.readouterr().out == ""
