"""The overlap with the best true square, against sets of pixels; the bounds, against sums and quadrature."""

import functools
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from dvae_lib import (
    BernoulliNoise,
    Estimate,
    KullbackLeiblerDivergence,
    ReparameterizationSampler,
    VariationalAutoencoder,
    all_squares,
    best_square_iou,
    denoising_bound,
    elbo,
    importance_weighted_bound,
    mlp_vae,
)
from dvae_lib.evaluation import _mean_over_draws


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


# ---- bounds on the log-likelihood, on a model small enough for exact sums ----

Z = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]  # a grid of codes, (grid, 1)
PIXELS = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)), dtype=torch.float64)  # all 8 images, (8, 3)
P = 0.2


class ToyEncoder(nn.Module):
    """A posterior that moves with the pixels, and is none too good."""

    def forward(self, images):
        mean = images.flatten(1) @ images.new_tensor([[1.2], [-0.9], [0.6]]) - 0.4  # (n, 3) -> (n, 1)
        return mean, -1.0 + 0.3 * mean


@pytest.fixture(scope="module")
def toy():
    """A model of images of three pixels with a code of one entry."""
    decoder = nn.Sequential(nn.Linear(1, 3), nn.Unflatten(1, (1, 1, 3))).double()
    with torch.no_grad():
        decoder[0].weight.copy_(torch.tensor([[2.0], [-1.5], [1.0]]))
        decoder[0].bias.copy_(torch.tensor([0.2, -0.4, 0.0]))
    layers = ToyEncoder(), KullbackLeiblerDivergence(), ReparameterizationSampler(), decoder
    configuration = {"image_shape": [1, 1, 3]}
    return VariationalAutoencoder(*layers, noise=BernoulliNoise(P), configuration=configuration)


@pytest.fixture(scope="module")
def exact(toy):
    """Log-likelihood, evidence lower bound, denoising bound and bound of the mixture, each (8,), by quadrature."""
    images = PIXELS.view(8, 1, 1, 3)
    with torch.no_grad():
        likelihood = torch.distributions.Bernoulli(logits=toy.decode(Z).view(-1, 1, 3)).log_prob(PIXELS).sum(2)
        mean, log_variance = toy.encode(images)
    log_joint = likelihood + torch.distributions.Normal(0.0, 1.0).log_prob(Z)  # (grid, 8)
    log_q = torch.distributions.Normal(mean[:, 0], (log_variance[:, 0] / 2).exp()).log_prob(Z)  # (grid, 8)
    flips = (PIXELS[:, None] != PIXELS).double().sum(2)  # (8, 8), x and x'
    weight = P**flips * (1 - P) ** (3 - flips)  # p(x'|x)
    log_mixture = torch.logsumexp(log_q[:, None] + weight.log(), 2)  # (grid, 8)

    def integral(log_density, integrand):
        return torch.trapezoid(log_density.exp() * integrand, Z.expand_as(integrand), dim=0)

    denoising = torch.stack([integral(log_q, log_joint[:, i : i + 1] - log_q) @ weight[i] for i in range(8)])
    return {
        "log p": torch.trapezoid(log_joint.exp(), Z.expand_as(log_joint), dim=0).log(),
        "elbo": integral(log_q, log_joint - log_q),
        "denoising": denoising,
        "mixture": integral(log_mixture, log_joint - log_mixture),
    }


def assert_within(estimate, reference, errors=5.0):
    """Five standard errors: a right bound fails once in 1.7 million images."""
    assert ((estimate.value - reference).abs() <= errors * estimate.standard_error).all()
    assert (estimate.standard_error < 0.05).all()  # the comparison says something


IMAGES = PIXELS.view(8, 1, 1, 3)


def repeated(bound, model, samples, **options):
    """Estimate with 100 copies of every image, which is faster than 100 times the draws."""
    estimate = bound(model, IMAGES.repeat(100, 1, 1, 1), samples=samples // 100, **options)
    errors = estimate.standard_error.view(100, 8).square().sum(0).sqrt() / 100
    return Estimate(estimate.value.view(100, 8).mean(0), errors)


def test_the_exact_values_are_ordered_as_the_theory_says(exact):
    assert (exact["log p"] > exact["mixture"]).all()
    assert (exact["mixture"] > exact["denoising"] + 0.05).all()
    assert exact["log p"].exp().sum() == pytest.approx(1, abs=1e-6)


def test_elbo_against_quadrature(toy, exact):
    assert_within(repeated(elbo, toy, 20_000), exact["elbo"])


def test_denoising_bound_against_quadrature(toy, exact):
    assert_within(repeated(denoising_bound, toy, 20_000), exact["denoising"])


def test_denoising_bound_takes_the_noise_it_is_given(toy, exact):
    without = repeated(denoising_bound, toy, 20_000, noise=BernoulliNoise(0.0))
    assert_within(without, exact["elbo"])


def test_one_extra_corruption_against_quadrature(toy, exact):
    """K = 1: the average over all pairs (x'_0, x'_1), the code drawn for the first, weighs both densities equally."""
    with torch.no_grad():
        mean, log_variance = toy.encode(IMAGES)
        likelihood = torch.distributions.Bernoulli(logits=toy.decode(Z).view(-1, 1, 3)).log_prob(PIXELS).sum(2)
    log_joint = likelihood + torch.distributions.Normal(0.0, 1.0).log_prob(Z)
    log_q = torch.distributions.Normal(mean[:, 0], (log_variance[:, 0] / 2).exp()).log_prob(Z)
    pair = torch.logaddexp(log_q[:, :, None], log_q[:, None, :]) - np.log(2)  # (grid, x'_0, x'_1)
    flips = (PIXELS[:, None] != PIXELS).double().sum(2)
    weight = P**flips * (1 - P) ** (3 - flips)
    reference = torch.stack(
        [
            torch.einsum(
                "ab,a,b->",
                torch.trapezoid(log_q.exp()[:, :, None] * (log_joint[:, i, None, None] - pair), Z[:, 0], dim=0),
                weight[i],
                weight[i],
            )
            for i in range(8)
        ]
    )
    assert (reference > exact["denoising"]).all()
    assert_within(repeated(denoising_bound, toy, 20_000, extra_corruptions=1), reference)


def test_many_extra_corruptions_approach_the_mixture(toy, exact):
    estimate = repeated(denoising_bound, toy, 20_000, extra_corruptions=60)
    gap = exact["mixture"] - exact["denoising"]
    assert (estimate.value > exact["denoising"] + 0.8 * gap).all()
    assert (estimate.value < exact["mixture"] + 5 * estimate.standard_error).all()


def test_importance_weighted_bound_of_one_sample_averages_to_the_elbo(toy, exact):
    repeated = IMAGES.repeat(4000, 1, 1, 1)
    values = importance_weighted_bound(toy, repeated, samples=1).value.view(4000, 8)
    error = values.std(0) / 4000**0.5
    assert ((values.mean(0) - exact["elbo"]).abs() <= 5 * error).all()


def test_importance_weighted_bound_climbs_to_the_log_likelihood(toy, exact):
    estimate = importance_weighted_bound(toy, IMAGES, samples=3_000)
    assert_within(estimate, exact["log p"])
    few = importance_weighted_bound(toy, IMAGES.repeat(500, 1, 1, 1), samples=5).value.view(500, 8).mean(0)
    assert (exact["elbo"] < few).all()
    assert (few < exact["log p"]).all()


@pytest.mark.parametrize(
    "bound",
    [
        functools.partial(elbo, samples=20),
        functools.partial(denoising_bound, samples=20, extra_corruptions=2),
        functools.partial(importance_weighted_bound, samples=400),
    ],
    ids=["elbo", "denoising_bound", "importance_weighted_bound"],
)
def test_standard_error_is_the_spread_over_repetitions(toy, bound):
    """For 2000 repetitions: mean squared error against the variance of the values, within 25 percent."""
    estimate = bound(toy, IMAGES[3:4].expand(2000, -1, -1, -1))
    assert estimate.standard_error.square().mean() == pytest.approx(estimate.value.var(), rel=0.25)
    mean, error = estimate.mean()
    assert mean == pytest.approx(estimate.value.mean())
    assert error == pytest.approx(estimate.standard_error.square().mean().sqrt() / 2000**0.5)


@pytest.mark.parametrize("bound", [elbo, denoising_bound, importance_weighted_bound])
def test_bounds_in_batches_cover_every_image_in_order(toy, bound):
    estimate = bound(toy, IMAGES.repeat(3, 1, 1, 1), samples=400, batch_size=7)
    assert estimate.value.shape == estimate.standard_error.shape == (24,)
    copies, errors = estimate.value.view(3, 8), estimate.standard_error.view(3, 8)
    assert ((copies[0] - copies[1:]).abs() < 5 * (errors[0] ** 2 + errors[1:] ** 2).sqrt()).all()
    assert copies.mean(0).std() > 5 * errors.mean()  # images differ, so a wrong order would show above


@pytest.mark.parametrize("bound", [elbo, denoising_bound, importance_weighted_bound])
def test_a_single_draw_has_no_standard_error(toy, bound):
    estimate = bound(toy, IMAGES, samples=1)
    assert estimate.value.isfinite().all()
    assert estimate.standard_error.isnan().all()


@pytest.mark.parametrize("bound", [elbo, denoising_bound, importance_weighted_bound])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"images": IMAGES[0]}, ValueError, "images must have shape"),
        ({"images": IMAGES * 2}, ValueError, r"images must lie in \[0, 1\]"),
        ({"images": IMAGES * float("nan")}, ValueError, "images must be finite"),
        ({"images": IMAGES[:0]}, ValueError, "images must hold at least one image"),
        ({"images": IMAGES.repeat(1, 1, 1, 2)}, ValueError, r"images must have shape \(n, 1, 1, 3\)"),
        ({"samples": 0}, ValueError, "samples must be at least 1, got 0"),
        ({"samples": 2.5}, TypeError, "samples must be an integer"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ],
)
def test_bounds_refuse_bad_input(toy, bound, arguments, error, message):
    with pytest.raises(error, match=message):
        bound(**{"model": toy, "images": IMAGES, **arguments})


def test_denoising_bound_needs_noise_and_whole_corruptions(toy):
    with pytest.raises(ValueError, match="noise must be a noise layer"):
        denoising_bound(mlp_vae((1, 1, 3), latent_size=1, hidden_size=4).double(), IMAGES)
    with pytest.raises(ValueError, match="extra_corruptions must be at least 0, got -1"):
        denoising_bound(toy, IMAGES, extra_corruptions=-1)


def test_running_mean_and_standard_error_by_hand():
    """Draws 1, 3, 8: mean 4, variance (9 + 1 + 16) / 2 = 13, standard error sqrt(13 / 3)."""
    draws = iter([1.0, 3.0, 8.0])
    estimate = _mean_over_draws(lambda: torch.tensor([next(draws)], dtype=torch.float64), 3)
    assert estimate.value.tolist() == pytest.approx([4])
    assert estimate.standard_error.tolist() == pytest.approx([(13 / 3) ** 0.5])
