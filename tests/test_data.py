"""The squares and the rectangles, against a slow painter and against the distributions that they promise."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dvae_lib import all_squares, rectangles, squares

ALPHA = 1e-6  # the probability that a correct library fails a statistical test, were the seed another one


def paint(top, left, height, width):
    """One image, pixel by pixel, as nested lists."""
    inside_rows, inside_columns = range(top, top + height), range(left, left + width)
    return [[float(i in inside_rows and j in inside_columns) for j in range(24)] for i in range(24)]


def boxes(images):
    """(n, 4): top, left, height and width of what is not 0, from the images alone."""
    rows, columns = images[:, 0].amax(2), images[:, 0].amax(1)  # each (n, 24)
    return torch.stack([rows.argmax(1), columns.argmax(1), rows.sum(1).long(), columns.sum(1).long()], dim=1)


def assert_uniform(cells, count, weights=None, alpha=ALPHA):
    """Pearson's chi-square test of cell numbers 0 .. count - 1; a correct library fails it with probability `alpha`."""
    observed = torch.bincount(cells, minlength=count).double()
    assert len(observed) == count
    expected = torch.ones(count).double() if weights is None else torch.tensor(weights).double()
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > alpha


def test_all_squares_in_order():
    """Image 16 top + left is the 9 x 9 square with its corner at (top, left)."""
    images = all_squares()
    expected = [[paint(top, left, 9, 9)] for top in range(16) for left in range(16)]
    assert images.dtype == torch.float32
    assert torch.equal(images, torch.tensor(expected))


def test_squares_are_drawn_uniformly_and_independently():
    """Chi-square tests over the positions, and over rows and columns of two successive images: false alarms 1e-6."""
    images = squares(25_600)
    top, left, *_ = boxes(images).T
    assert images.dtype == torch.float32
    assert torch.equal(images, all_squares()[16 * top + left])
    assert_uniform(16 * top + left, 256, alpha=ALPHA / 3)
    for corner in (top, left):
        assert_uniform(16 * corner[0::2] + corner[1::2], 256, alpha=ALPHA / 3)


@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 2**40))
def test_rectangles_are_filled_and_stay_within_their_bounds(one, other, seed):
    """An image of zeros and ones is one filled rectangle if and only if its bounding box holds no zero."""
    low, high = sorted((one, other))
    images = rectangles(20, low, high, torch.Generator().manual_seed(seed))
    assert (images.shape, images.dtype) == ((20, 1, 24, 24), torch.float32)
    assert ((images == 0) | (images == 1)).all()
    size = boxes(images)[:, 2:]
    assert size.min() >= low
    assert size.max() <= high
    assert torch.equal(images.sum((1, 2, 3)), size.prod(1).float())


def test_sizes_are_uniform_and_positions_given_the_size():
    """A chi-square test over (height, top, width, left) jointly, both ends included; false-alarm probability 1e-6.

    A side of 22, 23 or 24 pixels has 3, 2 or 1 positions: six (size, position) cells an axis, 36 for both.
    """
    top, left, height, width = boxes(rectangles(20_000, 22, 24)).T
    first = torch.tensor([0, 3, 5])  # the first cell of each size
    cells = 6 * (first[height - 22] + top) + first[width - 22] + left
    probabilities = [1 / 9, 1 / 9, 1 / 9, 1 / 6, 1 / 6, 1 / 3]
    assert_uniform(cells, 36, [p * q for p in probabilities for q in probabilities])


def test_the_largest_draw_still_fits(monkeypatch):
    """u * positions may round up to positions: the corner must not leave the image."""
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.ones(*shape))
    assert (rectangles(5, 3, 3).sum((1, 2, 3)) == 9).all()


def some_rectangles(n, *args, **kwargs):
    return rectangles(n, 4, 12, *args, **kwargs)


@pytest.mark.parametrize("draw", [squares, some_rectangles])
def test_images_come_from_the_generator_or_else_from_the_default_one(draw):
    torch.manual_seed(3)
    expected = draw(20)
    assert torch.equal(draw(20, torch.Generator().manual_seed(3)), expected)
    assert not torch.equal(draw(20, torch.Generator().manual_seed(4)), expected)
    assert not torch.equal(draw(20), expected)


@pytest.mark.parametrize("draw", [squares, some_rectangles])
@pytest.mark.parametrize("where", [{}, {"device": "cpu"}, {"generator": torch.Generator("cpu")}])
def test_device_or_generator_decide_where_to_draw_or_else_it_is_the_cpu(draw, where):
    """Against PyTorch's default device, for which meta stands here: it exists on every machine."""
    with torch.device("meta"):
        assert draw(2, **where).device.type == all_squares("cpu").device.type == "cpu"


@pytest.mark.parametrize(
    ("draw", "arguments", "error", "message"),
    [
        (squares, (0,), ValueError, "n must be at least 1, got 0"),
        (squares, (2.0,), TypeError, "n must be an integer, got float 2.0"),
        (rectangles, (-3, 4, 12), ValueError, "n must be at least 1, got -3"),
        (rectangles, (3, 0, 5), ValueError, "min_size must be at least 1, got 0"),
        (rectangles, (3, 5, 25), ValueError, "max_size must be from min_size = 5 to 24, got 25"),
        (rectangles, (3, 6, 5), ValueError, "max_size must be from min_size = 6 to 24, got 5"),
        (rectangles, (3, 1, "5"), TypeError, "max_size must be an integer, got str '5'"),
    ],
)
def test_arguments_that_do_not_fit(draw, arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        draw(*arguments)
