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


def assert_painted(images):
    """Every image is what the slow painter makes of its own bounding box."""
    for image, box in zip(images, boxes(images).tolist(), strict=True):
        assert image[0].tolist() == paint(*box)


def assert_uniform(cells, count, weights=None):
    """Pearson's chi-square test of cell numbers 0 .. count - 1; a correct library fails it with probability 1e-6."""
    observed = torch.bincount(cells, minlength=count).double()
    assert len(observed) == count
    expected = torch.ones(count).double() if weights is None else torch.tensor(weights).double()
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > ALPHA


# squares


def test_all_squares_in_order():
    """Image 16 top + left is the 9 x 9 square with its corner at (top, left)."""
    expected = [[paint(top, left, 9, 9)] for top in range(16) for left in range(16)]
    assert torch.equal(all_squares(), torch.tensor(expected))


def test_all_squares_differ():
    images = all_squares()
    assert (images.shape, images.dtype) == ((256, 1, 24, 24), torch.float32)
    assert len(images.unique(dim=0)) == 256


def test_squares_are_painted_right():
    images = squares(64)
    assert (boxes(images)[:, 2:] == 9).all()
    assert_painted(images)


def test_squares_are_uniform_over_the_positions():
    """A chi-square test over the 256 positions, false-alarm probability 1e-6; it sees row-column dependence too."""
    top, left, *_ = boxes(squares(25_600)).T
    assert_uniform(16 * top + left, 256)


def test_successive_squares_are_independent():
    """A chi-square test over the pairs of rows of two successive images, false-alarm probability 1e-6."""
    top = boxes(squares(25_600))[:, 0]
    assert_uniform(16 * top[0::2] + top[1::2], 256)


def test_the_articles_number_of_squares():
    images = squares(50_000)
    assert (images.shape, images.dtype) == ((50_000, 1, 24, 24), torch.float32)
    assert (images.sum((1, 2, 3)) == 81).all()


# rectangles


@pytest.mark.parametrize(("low", "high"), [(1, 24), (4, 12), (9, 9), (20, 24)])
def test_rectangles_are_painted_right(low, high):
    images = rectangles(64, low, high)
    assert (images.shape, images.dtype) == ((64, 1, 24, 24), torch.float32)
    assert_painted(images)


@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 2**40))
def test_rectangles_stay_within_their_bounds(one, other, seed):
    low, high = sorted((one, other))
    images = rectangles(20, low, high, torch.Generator().manual_seed(seed))
    size = boxes(images)[:, 2:]
    assert size.min() >= low
    assert size.max() <= high
    assert torch.equal(images.sum((1, 2, 3)), size.prod(1).float())


def test_every_pair_of_sizes_is_equally_likely():
    """A chi-square test over 5 x 5 pairs, the ends 3 and 7 included; false-alarm probability 1e-6."""
    _, _, height, width = boxes(rectangles(10_000, 3, 7)).T
    assert_uniform(5 * (height - 3) + width - 3, 25)


def test_position_is_uniform_given_the_size():
    """A chi-square test over (height, top, width, left) jointly, false-alarm probability 1e-6.

    A side of 22, 23 or 24 pixels has 3, 2 or 1 positions: six (size, position) cells an axis, 36 for both.
    """
    top, left, height, width = boxes(rectangles(20_000, 22, 24)).T
    first = torch.tensor([0, 3, 5])  # the first cell of each size
    cells = 6 * (first[height - 22] + top) + first[width - 22] + left
    probabilities = [1 / 9, 1 / 9, 1 / 9, 1 / 6, 1 / 6, 1 / 3]
    assert_uniform(cells, 36, [p * q for p in probabilities for q in probabilities])


def test_positions_of_small_rectangles_are_uniform():
    """A chi-square test over the 24 x 24 positions of one pixel, false-alarm probability 1e-6."""
    top, left, *_ = boxes(rectangles(30_000, 1, 1)).T
    assert_uniform(24 * top + left, 576)


def test_equal_sizes_make_squares():
    assert len(rectangles(20_000, 20, 20).unique(dim=0)) == 25


def test_size_24_fills_the_image():
    assert rectangles(3, 24, 24).all()


def test_the_largest_draw_still_fits(monkeypatch):
    """u * positions may round up to positions: the corner must not leave the image."""
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.ones(*shape))
    assert (rectangles(5, 3, 3).sum((1, 2, 3)) == 9).all()


def test_50000_rectangles():
    images = rectangles(50_000, 4, 12)
    assert (images.shape, images.dtype) == ((50_000, 1, 24, 24), torch.float32)


# random numbers, devices, errors

DRAWS = {"squares": squares, "rectangles": lambda n, *args, **kwargs: rectangles(n, 4, 12, *args, **kwargs)}
each_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)


@each_draw
def test_same_generator_seed_same_images(draw):
    first, second, other = (draw(20, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@each_draw
def test_a_generator_leaves_the_default_one_alone(draw):
    before = torch.get_rng_state()
    draw(20, torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), before)


@each_draw
def test_without_generator_the_default_seed_decides(draw):
    torch.manual_seed(5)
    first = draw(20)
    torch.manual_seed(5)
    assert torch.equal(draw(20), first)
    assert not torch.equal(draw(20), first)


@each_draw
def test_images_lie_on_the_cpu_if_nothing_is_said(draw):
    assert draw(2).device.type == "cpu"


@pytest.mark.parametrize(
    "draw",
    [
        lambda: squares(2, device="cpu"),
        lambda: rectangles(2, 4, 12, device="cpu"),
        lambda: all_squares("cpu"),
        lambda: squares(2, torch.Generator("cpu")),
        lambda: rectangles(2, 4, 12, torch.Generator("cpu")),
    ],
)
def test_device_or_generator_decide_where_to_draw(draw):
    """Against PyTorch's default device, for which meta stands here: it exists on every machine."""
    with torch.device("meta"):
        assert draw().device.type == "cpu"


@each_draw
@pytest.mark.parametrize(("n", "error"), [(0, ValueError), (-3, ValueError), (2.0, TypeError), (True, TypeError)])
def test_number_of_images_is_checked(draw, n, error):
    with pytest.raises(error, match="n must be "):
        draw(n)


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        ((0, 5), ValueError, "min_size must be at least 1, got 0"),
        ((5, 25), ValueError, "max_size must be from min_size = 5 to 24, got 25"),
        ((6, 5), ValueError, "max_size must be from min_size = 6 to 24, got 5"),
        ((1.5, 5), TypeError, "min_size must be an integer, got float 1.5"),
        ((1, "5"), TypeError, "max_size must be an integer, got str '5'"),
    ],
)
def test_sizes_are_checked(sizes, error, message):
    with pytest.raises(error, match=message):
        rectangles(3, *sizes)
