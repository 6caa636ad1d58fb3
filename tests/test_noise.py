"""The noise layers: how often and where they strike, and that they leave everything else alone."""

import itertools
import math

import pytest
import torch
from scipy import stats

from dvae_lib import BernoulliNoise, GaussianNoise, MaskingNoise, SaltAndPepperNoise

ALPHA = 1e-6  # the probability that a correct library fails a statistical test, were the seed another one

PIXEL_NOISES = [BernoulliNoise, MaskingNoise, SaltAndPepperNoise]
each_pixel_noise = pytest.mark.parametrize("kind", PIXEL_NOISES)
each_noise = pytest.mark.parametrize("kind", [*PIXEL_NOISES, GaussianNoise])


def binary_images(n=40):
    return torch.rand(n, 1, 24, 24).round()


def assert_binomial(events, p, alpha=ALPHA):
    """The exact two-sided binomial test: as many true values as independent events of probability `p` would give."""
    count, n = int(events.sum()), events.numel()
    assert stats.binomtest(count, n, p).pvalue > alpha, f"{count} of {n} at p = {p}"


@pytest.mark.parametrize(
    ("p", "dtype"),
    [*((p, torch.float32) for p in (0, 0.02, 0.1, 0.5, 0.9, 1)), (0.1, torch.float64), (0.002, torch.bfloat16)],
)
@each_pixel_noise
def test_dark_and_bright_pixels_are_hit_with_probability_p(kind, p, dtype):
    """In bfloat16, too, though a uniform draw in bfloat16 has so few digits that it is below 0.002 in 0.4 % of cases.

    Two exact binomial tests, false-alarm probability 1e-6 in all.
    """
    images = (0.25 + 0.5 * binary_images(200)).to(dtype)
    hit = kind(p)(images) != images
    assert_binomial(hit[images == 0.25], p, ALPHA / 2)
    assert_binomial(hit[images == 0.75], p, ALPHA / 2)


@each_pixel_noise
def test_p_0_changes_nothing_even_for_the_smallest_draw(kind, monkeypatch):
    """A uniform draw is 0 once in 2^24 times."""
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.zeros(shape))
    images = torch.full((1, 1, 4, 4), 0.25)
    assert torch.equal(kind(0)(images), images)


@pytest.mark.parametrize(("kind", "struck"), [(BernoulliNoise, lambda x: 1 - x), (MaskingNoise, torch.zeros_like)])
def test_a_flip_is_the_complement_and_a_masked_pixel_is_0(kind, struck):
    images = torch.rand(20, 1, 24, 24)
    result = kind(0.5)(images)
    assert torch.equal(result, torch.where(result == images, images, struck(images)))
    assert torch.equal(kind(1)(images), struck(images))


@pytest.mark.parametrize("p", [0.1, 0.5, 1])
def test_salt_is_as_frequent_as_pepper(p):
    """On dark pixels and on bright ones: two exact binomial tests with 1/2, false-alarm probability 1e-6 in all."""
    images = 0.25 + 0.5 * binary_images(20)
    result = SaltAndPepperNoise(p)(images)
    for value in (0.25, 0.75):
        replaced = result[(images == value) & (result != images)]
        assert set(replaced.tolist()) == {0, 1}
        assert_binomial(replaced, 0.5, ALPHA / 2)


@pytest.mark.parametrize("std", [0.1, 2.0])
def test_gaussian_noise_adds_pytorchs_normal_numbers(std):
    images, source = binary_images(2), torch.Generator().manual_seed(7)
    expected = images + std * torch.randn(images.shape, generator=source)
    torch.testing.assert_close(GaussianNoise(std, torch.Generator().manual_seed(7))(images), expected)


NEIGHBOURS = {
    "left and right": lambda x: (x[..., 0::2], x[..., 1::2]),
    "above and below": lambda x: (x[..., 0::2, :], x[..., 1::2, :]),
    "two channels": lambda x: (x[:, :, 0], x[:, :, 1]),
    "two images": lambda x: (x[:, 0::2], x[:, 1::2]),
    "two calls": lambda x: (x[0], x[1]),
}


@pytest.mark.parametrize("split", NEIGHBOURS.values(), ids=NEIGHBOURS)
@each_pixel_noise
def test_neighbours_are_struck_independently(kind, split):
    """Both of a pair are hit with p^2; the pairs are disjoint, so the test is exact: 1e-6."""
    images, noise = torch.full((20, 2, 24, 24), 0.25), kind(0.3)
    first, second = split(torch.stack([noise(images), noise(images)]) != images)
    assert_binomial(first & second, 0.3**2)


@each_noise
@pytest.mark.parametrize("training", [True, False])
def test_corrupt_draws_in_both_modes_and_never_writes_into_the_images(kind, training):
    images = binary_images()
    before = images.clone()
    assert not torch.equal(kind(0.3).train(training).corrupt(images), images)
    assert torch.equal(images, before)


@each_noise
def test_corrupted_images_have_memory_of_their_own_even_where_nothing_is_changed(kind):
    images = binary_images(1)
    result = kind(0)(images)
    assert torch.equal(result, images)
    assert result.data_ptr() != images.data_ptr()


@each_noise
def test_eval_mode_is_the_identity(kind):
    images = binary_images()
    assert kind(0.3).eval()(images) is images


@each_noise
def test_noise_comes_from_the_generator_or_else_from_the_default_one(kind):
    images = binary_images()
    torch.manual_seed(7)
    expected = kind(0.3)(images)
    assert torch.equal(kind(0.3, generator=torch.Generator().manual_seed(7))(images), expected)
    assert not torch.equal(kind(0.3, generator=torch.Generator().manual_seed(8))(images), expected)


@each_noise
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_shape_and_device_are_kept(kind, dtype):
    """Against PyTorch's default device, for which meta stands here: it exists on every machine."""
    images = torch.ones(3, 3, 5, 7, dtype=dtype)
    with torch.device("meta"):
        result = kind(0.3)(images)
    assert (result.dtype, result.shape, result.device.type) == (dtype, (3, 3, 5, 7), "cpu")


def test_layers_show_their_level():
    """Checkpoints compare this text."""
    layers = BernoulliNoise(), MaskingNoise(0.25), SaltAndPepperNoise(1), GaussianNoise(0.5)
    shown = "BernoulliNoise(p=0.1) MaskingNoise(p=0.25) SaltAndPepperNoise(p=1) GaussianNoise(std=0.5)"
    assert " ".join(map(repr, layers)) == shown


@pytest.mark.parametrize(
    ("kinds", "levels", "error", "message"),
    [
        (PIXEL_NOISES, (1.5, -0.1, 1 + 1e-9, math.nan, math.inf), ValueError, r"p must be in \[0, 1\], got "),
        (PIXEL_NOISES, (True, "0.1", None), TypeError, "p must be a number, got "),
        ([GaussianNoise], (-0.1, math.nan, math.inf), ValueError, "std must be finite and at least 0, got "),
        ([GaussianNoise], (True, "0.1", None), TypeError, "std must be a number, got "),
    ],
)
def test_levels_that_do_not_fit(kinds, levels, error, message):
    for kind, level in itertools.product(kinds, levels):
        with pytest.raises(error, match=f"^{message}"):
            kind(level)


@each_noise
def test_images_that_are_no_floating_point_tensor(kind):
    with pytest.raises(TypeError, match=r"^images must be a floating-point tensor, got dtype torch\.uint8"):
        kind(0.3)(torch.ones(1, 1, 4, 4, dtype=torch.uint8))
