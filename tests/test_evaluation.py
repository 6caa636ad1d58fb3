"""The overlap with the best true square, against sets of pixels counted one by one."""

import pytest
import torch

from dvae_lib import all_squares, best_square_iou


def pixels_of_square(top, left):
    return {(i, j) for i in range(top, top + 9) for j in range(left, left + 9)}


SQUARES = [pixels_of_square(top, left) for top in range(16) for left in range(16)]


def slow_iou(image):
    """Intersection over union, set by set."""
    found = {(i, j) for i in range(24) for j in range(24) if float(image[0, i, j]) >= 0.5}
    return max(len(found & square) / len(found | square) for square in SQUARES)


def image_of(pixels):
    image = torch.zeros(1, 1, 24, 24)
    for i, j in pixels:
        image[0, 0, i, j] = 1
    return image


@pytest.mark.parametrize("density", [0.02, 0.2, 0.5, 0.9])
def test_random_images(density):
    images = (torch.rand(4, 1, 24, 24) < density).float()
    assert best_square_iou(images).tolist() == pytest.approx([slow_iou(image) for image in images])


def test_squares_with_noise():
    images = all_squares()[::37]
    images = torch.where(torch.rand(images.shape) < 0.1, 1 - images, images)
    assert best_square_iou(images).tolist() == pytest.approx([slow_iou(image) for image in images])


def test_grey_images():
    images = torch.rand(4, 1, 24, 24)
    assert best_square_iou(images).tolist() == pytest.approx([slow_iou(image) for image in images])


def test_true_squares_have_exactly_1():
    result = best_square_iou(all_squares())
    assert result.shape == (256,)
    assert (result == 1).all()


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (set(), 0),
        (SQUARES[37] - {(2, 5)}, 80 / 81),  # the corner missing
        (SQUARES[37] | {(23, 23)}, 81 / 82),  # a pixel too many
        (SQUARES[0] - {(0, j) for j in range(9)}, 72 / 81),  # 8 x 9
        ({(i, j) for i in range(10) for j in range(10)}, 81 / 100),
        ({(i, j) for i in range(24) for j in range(24)}, 81 / 576),
        (SQUARES[0] | SQUARES[255], 1 / 2),  # two that do not touch
        ({(12, 12)}, 1 / 81),
        ({(i, j) for i in range(24) for j in range(4)}, 36 / (96 + 81 - 36)),  # a bar
        ({(i, j) for i in range(18, 24) for j in range(18, 24)}, 36 / 81),  # a square cut off at the edge
    ],
)
def test_by_hand(pixels, expected):
    assert best_square_iou(image_of(pixels)).item() == pytest.approx(expected, abs=1e-7)


def test_a_pixel_counts_from_one_half_on():
    square = all_squares()[:1]
    assert best_square_iou(0.5 * square).item() == 1
    assert best_square_iou(0.499 * square).item() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    assert (best_square_iou(all_squares()[:3].to(dtype)) == 1).all()


def test_images_are_left_alone():
    images = torch.rand(2, 1, 24, 24)
    before = images.clone()
    best_square_iou(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(24, 24), ValueError, r"images must have shape \(n, 1, 24, 24\), got \(24, 24\)"),
        (torch.zeros(2, 3, 24, 24), ValueError, r"images must have shape \(n, 1, 24, 24\), got \(2, 3, 24, 24\)"),
        (torch.zeros(2, 1, 28, 28), ValueError, r"images must have shape \(n, 1, 24, 24\), got \(2, 1, 28, 28\)"),
        (torch.zeros(0, 1, 24, 24), ValueError, "images must hold at least one image"),
        (torch.zeros(2, 1, 24, 24).bool(), TypeError, "images must be a floating-point tensor, got dtype torch.bool"),
        (None, TypeError, "images must be a torch.Tensor, got NoneType"),
    ],
)
def test_images_that_do_not_fit(images, error, message):
    with pytest.raises(error, match=message):
        best_square_iou(images)
