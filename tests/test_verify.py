"""The checks of the book's cells: what agrees prints one line with its numbers, what does not raises with them."""

import contextlib
import io
import math
import re
from decimal import Decimal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dvae_lib import verify_close, verify_mean

MEAN = torch.tensor([1.0, -2.0])
DOUBLE = torch.float64
SINGLE = torch.tensor(0.3)  # 0.30000001192092896
WORST = "the worst of 2 entries"
FIVE = "400 draws, within 5 standard errors"


def draws(first=0.0, second=0.0):
    """400 draws, (400, 2), of standard deviations 1 and 10; their mean is so many standard errors away from MEAN."""
    eps = torch.randn(400, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    eps = (eps - eps.mean(0)) / eps.std(0)
    return MEAN + (eps + torch.tensor([first, second]) / math.sqrt(400)) * torch.tensor([1, 10])


@pytest.mark.parametrize(
    ("check", "arguments", "printed"),
    [
        (verify_close, (1.5, 1.0, 0.5), "1.500 against 1.000, within 0.5"),  # the tolerance itself
        # a Python number keeps all of its digits
        (verify_close, (0.1, torch.tensor(0.1, dtype=DOUBLE), 1e-15), f"{0.1:.15f} against {0.1:.15f}, within 1e-15"),
        (
            verify_close,
            (torch.ones(2).requires_grad_(), [1.05, 0.94], 0.1),
            f"1.000 against 0.940, {WORST}, within 0.1",
        ),
        (verify_mean, (draws(-4.9), MEAN), f"0.755 +- 0.050 against 1.000, {WORST}, {FIVE}"),
        (verify_mean, (draws(0, 4.9), MEAN), f"0.450 +- 0.500 against -2.000, {WORST}, {FIVE}"),
        (verify_mean, (draws(2.5)[:, 0], 1, 3), "1.125 +- 0.050 against 1.000, 400 draws, within 3 standard errors"),
        (verify_mean, (draws(2.5)[:, 0] + 99, 100), f"100.125 +- 0.050 against 100.000, {FIVE}"),
        (verify_mean, (1e-6 * draws()[:, 0], 1e-6), f"1.000e-06 +- 5.0e-08 against 1.000e-06, {FIVE}"),
    ],
)
def test_what_agrees_prints_one_line(capsys, check, arguments, printed):
    check("the thing", *arguments)
    assert capsys.readouterr().out == f"the thing: {printed}\n"


@pytest.mark.parametrize(
    ("value", "reference", "tolerance", "printed"),
    [
        (-1.5489234, -1.5489, 1e-4, "-1.5489 against -1.5489, within 0.0001"),
        (-1.5489234, -1.5489, 5e-4, "-1.5489 against -1.5489, within 0.0005"),  # down to the decade of the tolerance
        (576.0, 575.0, 2, "576.0 against 575.0, within 2"),  # four significant digits at least, of the larger number
        (0.0, 0.5, 1, "0 against 0.5000, within 1"),  # zero itself is a plain 0
        (1e-9, 0.5, 1, "0.0000 against 0.5000, within 1"),
        (-1e-9, 0.5, 1, "0.0000 against 0.5000, within 1"),  # without a sign
        (1.234567e-17, 0, 1e-12, "1.235e-17 against 0, within 1e-12"),  # tiny: with an exponent
        (3.123456e-8, 3.1234e-8, 1e-12, "3.1235e-08 against 3.1234e-08, within 1e-12"),
        (0.0002, 0.0001, 0.01, "0.0002000 against 0.0001000, within 0.01"),
        (0.00009, 0.00008, 0.01, "9.000e-05 against 8.000e-05, within 0.01"),
        (5e9, 5e9 - 1, 1, "5.000000000e+09 against 4.999999999e+09, within 1"),
        (0, 0, 1e-12, "0 against 0, within 1e-12"),
        (1 / 3, 1 / 3, 1e-40, "0.333333333333333 against 0.333333333333333, within 1e-40"),  # no more than float64 has
        (361635840, 361635840, 0, "361635840 against 361635840, exactly"),
        (SINGLE, SINGLE.clone(), 0, "0.300000 against 0.300000, exactly"),
        ([3.0], [3.0], 0, "3 against 3, exactly"),
        # of several entries the one that differs most, and of those that differ equally the largest
        ([1.0, 2.0, 3.0], [1.0, 2.25, 3.0], 0.5, "2.000 against 2.250, the worst of 3 entries, within 0.5"),
        ([[0.0, -9.0], [8.0, 1.0]], [[0.0, -9.0], [8.0, 1.0]], 0, "-9 against -9, all 4 entries exactly"),
        (torch.zeros(40, 100), torch.zeros(40, 100), 1e-6, "0 against 0, the worst of 4,000 entries, within 1e-06"),
        ([1.0], [1.0], 0.1, "1.000 against 1.000, within 0.1"),  # one entry is a number
    ],
)
def test_the_digits_that_are_printed(capsys, value, reference, tolerance, printed):
    verify_close("x", value, reference, tolerance)
    assert capsys.readouterr().out == f"x: {printed}\n"


@pytest.mark.parametrize(
    ("check", "arguments", "message"),
    [
        (verify_close, ([1.0, -1.8], MEAN, 0.1), r"-1\.800 against -2\.000, differs by 0\.2, more than 0\.1$"),
        (verify_close, ([0.8, -2.0], MEAN, 0.1), r"0\.800\d* against 1\.000\d*, differs by 0\.2, more than 0\.1$"),
        (verify_close, (2, 3, 0), r"2 against 3, differs by 1, more than 0$"),
        (verify_close, ([9.0, math.nan], MEAN, 0.1), r"nan against -2\.000, differs by nan, more than 0\.1$"),
        (verify_close, (1.0, math.nan, 0.1), r"1\.000 against nan, differs by nan"),
        (verify_close, (math.nan, math.nan, 0.1), "nan against nan, differs by nan"),
        (verify_close, (math.inf, 1.0, 0.1), r"inf against 1\.000, differs by inf"),
        (verify_close, (MEAN[None], MEAN, 0.1), r"shapes \(1, 2\) and \(2,\) differ"),
        (verify_close, (torch.empty(0, 2), torch.empty(0, 2), 0.1), r"there are no entries to compare, .* \(0, 2\)"),
        (verify_mean, (draws(5.1), MEAN), r"1\.255 \+- 0\.050 against 1\.000, 5\.1 standard errors away, more than 5$"),
        (verify_mean, (draws(0, -5.1), MEAN), r"-4\.55. \+- 0\.500 against -2\.000, 5\.1 standard errors away"),
        (verify_mean, (draws(2.5), MEAN, 2), r".*, 2\.5 standard errors away, more than 2$"),
        (verify_mean, (draws(math.nan), MEAN), r"nan \+- nan against 1.*, nan standard errors away"),
        (verify_mean, (torch.ones(9), 2.0), r"1 \+- 0 against 2, inf standard errors away"),
        (verify_mean, (draws(), 1.0), r"a draw has shape \(2,\), not \(\)"),
    ],
)
def test_what_does_not_agree_raises_and_prints_nothing(capsys, check, arguments, message):
    with pytest.raises(AssertionError, match=f"^the thing: {message}"):
        check("the thing", *arguments)
    assert capsys.readouterr().out == ""


def printed_by(check, *arguments) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        check("x", *arguments)
    return out.getvalue()


def holds(text: str, number: float) -> bool:
    """Whether a printed number is the number, to half a unit of its last digit."""
    unit = Decimal(1).scaleb(Decimal(text).as_tuple().exponent)
    return abs(Decimal(text) - Decimal(number)) <= unit / 2 if text != "0" else number == 0


sizes = st.floats(1e-30, 1e30)
numbers = st.one_of(st.just(0.0), sizes, sizes.map(lambda size: -size), st.integers(-(10**6), 10**6).map(float))


@given(numbers, st.floats(-1, 1), st.sampled_from([0.0, 1e-15, 1e-12, 3e-9, 1e-6, 0.02, 0.5, 5.0, 300.0]))
def test_what_is_printed_is_what_was_measured(reference, part, tolerance):
    value = reference + part * 0.99 * tolerance
    if not abs(value - reference) <= tolerance:  # a sum of very unequal numbers is rounded
        value = reference
    line = printed_by(verify_close, value, reference, tolerance)
    measured, expected = re.fullmatch(r"x: (\S+) against (\S+), (?:exactly|within \S+)\n", line).groups()
    assert holds(measured, value)
    assert holds(expected, reference)
    larger, number = max((abs(reference), expected), (abs(value), measured))
    digits = len(Decimal(number).as_tuple().digits)
    whole = larger.is_integer() and tolerance == 0
    assert (4 <= digits <= 16) or whole or larger == 0  # 9.9996 is rounded to 10.000: one digit more
    if tolerance and digits < 15:  # what the tolerance tells apart can be told apart in print
        assert Decimal(number).as_tuple().exponent <= math.floor(math.log10(tolerance))


@given(st.floats(-1e4, 1e4), st.floats(1e-7, 1e5), st.integers(2, 50), st.integers(0, 2**20))
def test_the_mean_that_is_printed_is_that_of_the_draws(mean, scale, n, seed):
    eps = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    samples = mean + scale * eps
    line = printed_by(verify_mean, samples, samples.mean() + 0.1 * scale / n**0.5 * float(eps.std()))
    found = re.fullmatch(r"x: (\S+) \+- (\S+) against (\S+), ([\d,]+) draws, within 5 standard errors\n", line)
    assert holds(found[1], float(samples.mean()))
    assert holds(found[2], float(samples.std() / n**0.5))
    assert int(found[4].replace(",", "")) == n
    assert len(Decimal(found[2]).as_tuple().digits) >= 2
