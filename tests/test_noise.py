"""The noise layers: how often and where they strike, and that they leave everything else alone.

The counts are binomial when the layers are right, so that each statistical test is exact: it fails with a
probability of at most ALPHA, over the choice of the seed.
"""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dvae_lib import BernoulliNoise, GaussianNoise, MaskingNoise, SaltAndPepperNoise

ALPHA = 1e-6  # the probability that a correct library fails a statistical test, were the seed another one

PIXEL_NOISES = [BernoulliNoise, MaskingNoise, SaltAndPepperNoise]
NOISES = [BernoulliNoise(0.3), MaskingNoise(0.3), SaltAndPepperNoise(0.6), GaussianNoise(0.3)]


def fresh(noise, seed=None):
    """A copy of `noise` in train mode, drawing from a generator of its own where a seed is given."""
    noise = copy.deepcopy(noise).train()
    noise.generator = None if seed is None else torch.Generator().manual_seed(seed)
    return noise


def binary_images(n=40):
    return torch.rand(n, 1, 24, 24).round()


def assert_binomial(count, n, p, alpha=ALPHA):
    """The exact two-sided binomial test: a true Bin(n, p) fails it with probability at most `alpha`."""
    assert stats.binomtest(int(count), n, p).pvalue > alpha, f"{int(count)} of {n} at p = {p}"


each_noise = pytest.mark.parametrize("noise", NOISES, ids=lambda noise: type(noise).__name__)
each_pixel_noise = pytest.mark.parametrize("kind", PIXEL_NOISES)


# statistics


@pytest.mark.parametrize("p", [0.02, 0.1, 0.5, 0.9])
def test_flip_rate(p):
    """Flips of zeros and of ones, two exact binomial tests: false-alarm probability 1e-6 in all."""
    images = binary_images()
    flipped = BernoulliNoise(p)(images) != images
    for value in (0, 1):
        where = images == value
        assert_binomial(flipped[where].sum(), int(where.sum()), p, ALPHA / 2)


def test_flipped_binary_images_are_binary():
    assert set(BernoulliNoise(0.3)(binary_images()).unique().tolist()) == {0, 1}


def test_flip_of_a_grey_pixel_is_its_complement():
    assert set(BernoulliNoise(0.5)(torch.full((1, 1, 24, 24), 0.25)).unique().tolist()) == {0.25, 0.75}


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_masking_rate(p):
    """Grey pixels either stay or become 0: an exact binomial test, false-alarm probability 1e-6."""
    images = 0.25 + 0.5 * torch.rand(20, 1, 24, 24)
    masked = MaskingNoise(p)(images)
    zero = masked == 0
    assert_binomial(zero.sum(), images.numel(), p)
    assert torch.equal(masked[~zero], images[~zero])


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_salt_and_pepper_rates(p):
    """Grey pixels are hit with p, hit ones are 1 half of the time: exact tests, false-alarm probability 1e-6 in all."""
    images = 0.25 + 0.5 * torch.rand(20, 1, 24, 24)
    result = SaltAndPepperNoise(p)(images)
    hit = result != images
    assert_binomial(hit.sum(), images.numel(), p, ALPHA / 2)
    assert_binomial(result[hit].sum(), int(hit.sum()), 0.5, ALPHA / 2)
    assert set(result[hit].unique().tolist()) == {0, 1}


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_salt_and_pepper_changes_half_of_the_hit_binary_pixels(value):
    """In both directions: an exact binomial test with p / 2, false-alarm probability 1e-6."""
    images = torch.full((20, 1, 24, 24), value)
    assert_binomial((SaltAndPepperNoise(0.4)(images) != images).sum(), images.numel(), 0.2)


@pytest.mark.parametrize("std", [0.1, 2.0])
def test_gaussian_noise_is_normal(std):
    """Mean, variance and distribution of what was added: false-alarm probability 1e-6 in all."""
    images = binary_images(20).double()
    eps = ((GaussianNoise(std)(images) - images) / std).flatten()
    n = eps.numel()
    score, total = eps.mean().item() * math.sqrt(n), eps.square().sum().item()
    assert 2 * stats.norm.sf(abs(score)) > ALPHA / 3
    assert 2 * min(stats.chi2.cdf(total, n), stats.chi2.sf(total, n)) > ALPHA / 3
    assert stats.kstest(eps.numpy(), "norm").pvalue > ALPHA / 3


NEIGHBOURS = {
    "left and right": lambda x: (x[..., 0::2], x[..., 1::2]),
    "above and below": lambda x: (x[..., 0::2, :], x[..., 1::2, :]),
    "two channels": lambda x: (x[:, 0], x[:, 1]),
    "two images": lambda x: (x[0::2], x[1::2]),
}


@pytest.mark.parametrize("split", NEIGHBOURS.values(), ids=NEIGHBOURS)
@each_pixel_noise
def test_neighbours_are_hit_independently(kind, split):
    """Both of a pair are hit with p^2; the pairs are disjoint, so the test is exact: false-alarm probability 1e-6."""
    images = torch.full((20, 2, 24, 24), 0.25)
    first, second = split(kind(0.3)(images) != images)
    assert_binomial((first & second).sum(), first.numel(), 0.3**2)


@pytest.mark.parametrize("split", NEIGHBOURS.values(), ids=NEIGHBOURS)
def test_gaussian_noise_of_neighbours_is_independent(split):
    """Two of a pair have the same sign half of the time: an exact binomial test, false-alarm probability 1e-6."""
    first, second = split(GaussianNoise(1.0)(torch.zeros(20, 2, 24, 24)))
    assert_binomial((first * second > 0).sum(), first.numel(), 0.5)


@each_pixel_noise
def test_two_calls_are_independent(kind):
    """A pixel is hit in both of two calls with p^2: an exact binomial test, false-alarm probability 1e-6."""
    images, noise = torch.full((20, 1, 24, 24), 0.25), kind(0.3)
    both = (noise(images) != images) & (noise(images) != images)
    assert_binomial(both.sum(), images.numel(), 0.3**2)


@each_noise
def test_noise_is_drawn_anew_at_each_call(noise):
    noise, images = fresh(noise), binary_images()
    assert not torch.equal(noise(images), noise(images))


@each_noise
def test_noise_does_not_repeat_from_image_to_image(noise):
    result = fresh(noise)(torch.ones(8, 1, 24, 24))
    assert len(result.unique(dim=0)) == 8


# edges


@each_pixel_noise
def test_p_0_changes_nothing(kind):
    images = binary_images()
    assert torch.equal(kind(0)(images), images)


@each_pixel_noise
def test_p_0_changes_nothing_even_for_the_smallest_draw(kind, monkeypatch):
    """A uniform draw is 0 once in 2^24 times."""
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.zeros(shape))
    images = torch.full((1, 1, 4, 4), 0.25)
    assert torch.equal(kind(0)(images), images)


def test_p_1_flips_all():
    images = binary_images()
    assert torch.equal(BernoulliNoise(1)(images), 1 - images)


def test_p_1_masks_all():
    assert not MaskingNoise(1)(torch.ones(4, 1, 24, 24)).any()


def test_p_1_leaves_fair_coins():
    """An exact binomial test with 1/2, false-alarm probability 1e-6."""
    result = SaltAndPepperNoise(1)(torch.full((20, 1, 24, 24), 0.25))
    assert_binomial(result.sum(), result.numel(), 0.5)
    assert set(result.unique().tolist()) == {0, 1}


def test_std_0_changes_nothing():
    images = binary_images()
    assert torch.equal(GaussianNoise(0)(images), images)


@given(st.floats(0, 1))
def test_every_p_in_range_keeps_or_flips(p):
    images = torch.rand(1, 1, 4, 4).round()
    result = BernoulliNoise(p)(images)
    assert ((result == images) | (result == 1 - images)).all()


@each_pixel_noise
def test_p_is_a_tenth_if_not_given(kind):
    assert kind().p == 0.1


@each_pixel_noise
@pytest.mark.parametrize("p", [1.5, -0.1, 1 + 1e-9, math.nan, math.inf])
def test_p_out_of_range(kind, p):
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\], got "):
        kind(p)


@each_pixel_noise
@pytest.mark.parametrize("p", [True, "0.1", None])
def test_p_of_wrong_type(kind, p):
    with pytest.raises(TypeError, match="p must be a number, got "):
        kind(p)


@pytest.mark.parametrize("std", [-0.1, math.nan, math.inf])
def test_std_out_of_range(std):
    with pytest.raises(ValueError, match="std must be finite and at least 0, got "):
        GaussianNoise(std)


@pytest.mark.parametrize("std", [True, "0.1", None])
def test_std_of_wrong_type(std):
    with pytest.raises(TypeError, match="std must be a number, got "):
        GaussianNoise(std)


@each_noise
@pytest.mark.parametrize("method", ["forward", "corrupt"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integer_images(noise, method, dtype):
    with pytest.raises(TypeError, match=f"images must be a floating-point tensor, got dtype {dtype}"):
        getattr(fresh(noise), method)(torch.ones(1, 1, 4, 4, dtype=dtype))


# what noise leaves alone


@each_noise
@pytest.mark.parametrize("method", ["forward", "corrupt"])
def test_images_are_never_written_into(noise, method):
    images = binary_images()
    before = images.clone()
    getattr(fresh(noise), method)(images)
    assert images._version == 0
    assert torch.equal(images, before)


@pytest.mark.parametrize("noise", [kind(0) for kind in PIXEL_NOISES] + [GaussianNoise(0)], ids=repr)
def test_corrupted_images_have_memory_of_their_own(noise):
    """Writing into the result must not reach the target of the reconstruction."""
    images = binary_images(1)
    noise(images).add_(1)
    assert images.max() == 1


@each_noise
def test_eval_mode_is_the_identity(noise):
    images = binary_images()
    assert fresh(noise).eval()(images) is images


@each_noise
def test_eval_mode_draws_nothing(noise):
    images, before = binary_images(), torch.get_rng_state()
    fresh(noise).eval()(images)
    assert torch.equal(torch.get_rng_state(), before)


@each_noise
@pytest.mark.parametrize("training", [True, False])
def test_corrupt_draws_in_both_modes(noise, training):
    images = binary_images()
    assert not torch.equal(fresh(noise).train(training).corrupt(images), images)


@each_noise
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 1, 24, 24), (3, 3, 5, 7), (1, 1, 1, 1)])
def test_dtype_and_shape_are_kept(noise, dtype, shape):
    result = fresh(noise)(torch.ones(shape, dtype=dtype))
    assert (result.dtype, result.shape) == (dtype, shape)


@each_pixel_noise
@pytest.mark.parametrize("p", [0.002, 0.1])
def test_rate_is_right_in_bfloat16(kind, p):
    """A uniform draw in bfloat16 has too few digits: it is below 0.1 in 10.2 % of the cases, below 0.002 in 0.4 %.

    An exact binomial test, false-alarm probability 1e-6.
    """
    images = torch.full((6000, 1, 24, 24), 0.25, dtype=torch.bfloat16)
    assert_binomial((kind(p)(images) != images).sum(), images.numel(), p)


# random numbers


@each_noise
def test_same_generator_seed_same_noise(noise):
    images = binary_images()
    assert torch.equal(fresh(noise, seed=7)(images), fresh(noise, seed=7)(images))
    assert not torch.equal(fresh(noise, seed=7)(images), fresh(noise, seed=8)(images))


@each_noise
def test_a_generator_leaves_the_default_one_alone(noise):
    images, before = binary_images(), torch.get_rng_state()
    fresh(noise, seed=7)(images)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", [*PIXEL_NOISES, GaussianNoise])
def test_the_generator_is_an_argument(kind):
    images = binary_images()
    first, second = (kind(0.3, generator=torch.Generator().manual_seed(9))(images) for _ in range(2))
    assert torch.equal(first, second)


@each_noise
def test_without_generator_the_default_seed_decides(noise):
    images = binary_images()
    torch.manual_seed(5)
    first = fresh(noise)(images)
    torch.manual_seed(5)
    assert torch.equal(fresh(noise)(images), first)


@pytest.mark.parametrize(
    ("noise", "text"),
    [
        (BernoulliNoise(0.1), "BernoulliNoise(p=0.1)"),
        (MaskingNoise(0.25), "MaskingNoise(p=0.25)"),
        (SaltAndPepperNoise(1), "SaltAndPepperNoise(p=1)"),
        (GaussianNoise(0.5), "GaussianNoise(std=0.5)"),
    ],
)
def test_layer_shows_its_level(noise, text):
    """Checkpoints compare this text."""
    assert repr(noise) == text


@each_noise
def test_images_that_are_no_tensor(noise):
    with pytest.raises(TypeError, match=r"images must be a torch\.Tensor, got list"):
        fresh(noise)([[0.0]])
