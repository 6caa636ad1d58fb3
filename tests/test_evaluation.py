"""The overlap of pictures, against sets of pixels; the bounds and the exact log-likelihood, against quadrature."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import integrate
from torch import nn
from torch.distributions import Bernoulli, Normal

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
    exact_log_likelihood,
    importance_weighted_bound,
    iou,
    mlp_vae,
)
from dvae_lib.evaluation import _in_float64, _mean_over_draws

SQUARES = [{(top + i, left + j) for i in range(9) for j in range(9)} for top in range(16) for left in range(16)]


def pixels_of(image):
    return {(i, j) for i in range(image.shape[1]) for j in range(image.shape[2]) if float(image[0, i, j]) >= 0.5}


def set_by_set(found, truth):
    return len(found & truth) / len(found | truth)


def test_overlap_with_the_best_square_against_sets_of_pixels():
    grey, noisy = torch.rand(4, 1, 24, 24), BernoulliNoise(0.1).corrupt(all_squares()[::37])
    binary = [(torch.rand(4, 1, 24, 24) < density).float() for density in (0.02, 0.2, 0.5, 0.9)]
    images = torch.cat([grey, noisy, *binary, torch.ones(1, 1, 24, 24)])
    expected = [max(set_by_set(found, square) for square in SQUARES) for found in map(pixels_of, images)]
    assert best_square_iou(images).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_true_squares_have_exactly_1_and_an_empty_image_0(dtype):
    squares = all_squares().to(dtype)
    assert best_square_iou(torch.cat([squares, 0.5 * squares])).tolist() == 512 * [1]  # a pixel counts from 1/2 on
    assert best_square_iou(0.49 * squares[:1]).tolist() == [0]


def test_overlap_of_two_pictures_against_sets_of_pixels():
    found, truth = torch.rand(2, 5, 1, 3, 4)
    found[0] = truth[0] = found[1] = truth[1] = 0.49  # nothing is set in either
    truth[1, 0, 1, 1] = 0.5  # a single pixel
    expected = [set_by_set(pixels_of(a), pixels_of(b)) for a, b in zip(found[1:], truth[1:], strict=True)]
    assert iou(found, truth).tolist() == pytest.approx([1, *expected])


# models small enough for exact sums

Z = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]  # a grid of codes, (grid, 1)
PIXELS = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)), dtype=torch.float64)  # all 8 images, (8, 3)
IMAGES = PIXELS.view(8, 1, 1, 3)
P = 0.2


class ToyEncoder(nn.Module):
    """A posterior that moves with the pixels, and is none too good."""

    def forward(self, images):
        mean = images.flatten(1) @ images.new_tensor([[1.2], [-0.9], [0.6]]) - 0.4  # (n, 3) -> (n, 1)
        return mean, -1.0 + 0.3 * mean


def toy_decoder(code_size):
    """Looks at the first entry of the code alone."""
    decoder = nn.Sequential(nn.Linear(code_size, 3), nn.Unflatten(1, (1, 1, 3))).double()
    with torch.no_grad():
        decoder[0].weight[:] = 0
        decoder[0].weight[:, 0] = torch.tensor([2.0, -1.5, 1.0])
        decoder[0].bias[:] = torch.tensor([0.2, -0.4, 0.0])
    return decoder


def toy(sampler=None):
    """A model of images of three pixels with a code of one entry."""
    layers = ToyEncoder(), KullbackLeiblerDivergence(), sampler or ReparameterizationSampler(), toy_decoder(1)
    return VariationalAutoencoder(*layers, noise=BernoulliNoise(P))


@torch.no_grad()
def densities(codes):
    """ln p(x, z) and ln q(z|x) of the toy model at m codes for all images, each (m, 8)."""
    model = toy()
    mean, log_variance = model.encode(IMAGES)
    likelihood = Bernoulli(logits=model.decode(codes).view(-1, 1, 3)).log_prob(PIXELS).sum(2)
    log_q = Normal(mean[:, 0], (log_variance[:, 0] / 2).exp()).log_prob(codes)
    return likelihood + Normal(0.0, 1.0).log_prob(codes), log_q


@pytest.fixture(scope="module")
def exact():
    """Log-likelihood and bounds of each image, (8,), by quadrature."""
    log_joint, log_q = densities(Z)
    flips = (PIXELS[:, None] != PIXELS).double().sum(2)  # (8, 8), x and x'
    weight = P**flips * (1 - P) ** (3 - flips)  # p(x'|x)
    log_mixture = torch.logsumexp(log_q[:, None] + weight.log(), 2)  # (grid, 8)
    pair = torch.logaddexp(log_q[:, :, None], log_q[:, None, :]) - np.log(2)  # (grid, x'_1, x'_2)

    def integral(values):
        return torch.trapezoid(values, Z[:, 0], dim=0)

    def one_extra(i):
        """K = 2: over all pairs (x'_1, x'_2), the code drawn for the first, both densities weighed equally."""
        inner = integral(log_q.exp()[:, :, None] * (log_joint[:, i, None, None] - pair))
        return torch.einsum("ab,a,b->", inner, weight[i], weight[i])

    denoising = [integral(log_q.exp() * (log_joint[:, i : i + 1] - log_q)) @ weight[i] for i in range(8)]
    return {
        "log p": integral(log_joint.exp()).log(),
        "elbo": integral(log_q.exp() * (log_joint - log_q)),
        "denoising": torch.stack(denoising),
        "one extra": torch.stack([one_extra(i) for i in range(8)]),
        "mixture": integral(log_mixture.exp() * (log_joint - log_mixture)),
    }


def repeated(bound, samples=20_000, **options):
    """Estimate with 100 copies of every image, which is faster than 100 times the draws."""
    estimate = bound(toy(), IMAGES.repeat(100, 1, 1, 1), samples=samples // 100, **options)
    errors = estimate.standard_error.view(100, 8).square().sum(0).sqrt() / 100
    assert (errors < 0.05).all()  # a comparison says something
    return Estimate(estimate.value.view(100, 8).mean(0), errors)


def assert_within(estimate, reference):
    """Five standard errors: a right bound fails once in 1.7 million images."""
    assert ((estimate.value - reference).abs() <= 5 * estimate.standard_error).all()


def test_the_exact_values_are_ordered_as_the_theory_says(exact):
    assert (exact["log p"] > exact["mixture"]).all()
    assert (exact["mixture"] > exact["one extra"]).all()
    assert (exact["one extra"] > exact["denoising"]).all()
    assert exact["log p"].exp().sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("bound", "options", "reference"),
    [
        (elbo, {}, "elbo"),
        (denoising_bound, {}, "denoising"),
        (denoising_bound, {"noise": BernoulliNoise(0.0)}, "elbo"),
        (denoising_bound, {"extra_corruptions": 1}, "one extra"),
    ],
)
def test_bounds_against_quadrature(exact, bound, options, reference):
    assert_within(repeated(bound, **options), exact[reference])


def test_many_extra_corruptions_approach_the_mixture(exact):
    estimate = repeated(denoising_bound, extra_corruptions=60)
    gap = exact["mixture"] - exact["denoising"]
    assert (estimate.value > exact["denoising"] + 0.8 * gap).all()
    assert (estimate.value < exact["mixture"] + 5 * estimate.standard_error).all()


def test_importance_weighted_bound_climbs_to_the_log_likelihood(exact):
    estimate = importance_weighted_bound(toy(), IMAGES, samples=3_000)
    assert_within(estimate, exact["log p"])
    assert (estimate.standard_error < 0.05).all()


def test_importance_weighted_bound_and_its_error_by_hand():
    """The logarithm of the weights' mean; the error is their standard deviation over sqrt(K) and their mean."""
    codes = torch.tensor([[-1.0], [0.0], [2.0]], dtype=torch.float64)
    draws = iter(codes)
    estimate = importance_weighted_bound(toy(lambda mean, _: next(draws).expand_as(mean)), IMAGES, samples=3)
    log_joint, log_q = densities(codes)
    weights = (log_joint - log_q).exp()  # (3, 8)
    torch.testing.assert_close(estimate.value, weights.mean(0).log())
    torch.testing.assert_close(estimate.standard_error, weights.std(0) / 3**0.5 / weights.mean(0))


def test_running_mean_and_standard_error_by_hand():
    """Draws 1, 3, 8: mean 4, variance (9 + 1 + 16) / 2 = 13, standard error sqrt(13 / 3)."""
    draws = iter([1.0, 3.0, 8.0])
    estimate = _mean_over_draws(lambda: torch.tensor([next(draws)], dtype=torch.float64), 3)
    assert estimate.value.tolist() == pytest.approx([4])
    assert estimate.standard_error.tolist() == pytest.approx([(13 / 3) ** 0.5])


def test_mean_over_the_images_by_hand():
    assert Estimate(torch.tensor([1.0, 3.0]), torch.tensor([3.0, 4.0])).mean() == pytest.approx((2, 2.5))


each_bound = pytest.mark.parametrize("bound", [elbo, denoising_bound, importance_weighted_bound])


@each_bound
def test_bounds_in_batches_cover_every_image_in_order(bound):
    sizes, model = [], toy(lambda mean, _: (sizes.append(len(mean)), mean)[1])  # the code is the mean: nothing is drawn
    model.noise = BernoulliNoise(0.0)
    whole = bound(model, IMAGES, samples=2)
    in_batches = bound(model, IMAGES, samples=2, batch_size=3)
    assert sizes == [8, 8, 3, 3, 3, 3, 2, 2]
    assert (whole.value.shape, whole.standard_error.shape) == ((8,), (8,))
    torch.testing.assert_close(in_batches, whole)


@each_bound
def test_a_single_draw_has_no_standard_error(bound):
    estimate = bound(toy(), IMAGES, samples=1)
    assert estimate.value.isfinite().all()
    assert estimate.standard_error.isnan().all()


# the exact log-likelihood


def with_decoder(decoder, pixels):
    model = mlp_vae((1, 1, pixels), hidden_size=4).double()
    model.decoder = decoder
    return model


def test_exact_log_likelihood_against_quadrature(exact):
    """Of a decoder that leaves the second entry of the code alone, so that the integral has one dimension."""
    model = with_decoder(toy_decoder(2), 3)
    estimate = exact_log_likelihood(model, IMAGES)
    torch.testing.assert_close(estimate.value, exact["log p"], atol=1e-8, rtol=0)
    assert (estimate.standard_error < 1e-8).all()
    in_float32 = exact_log_likelihood(model.float(), IMAGES.float())
    assert in_float32.value.dtype == torch.float64
    torch.testing.assert_close(in_float32.value, exact["log p"], atol=1e-5, rtol=0)


def test_exact_log_likelihood_is_a_sum_over_a_grid_and_its_error_the_change_by_every_second_node():
    def on_a_grid(nodes):
        axis = torch.linspace(-6, 6, nodes, dtype=torch.float64)[:, None]
        prior = Normal(0.0, 1.0).log_prob(axis).logsumexp(0)  # of the second entry
        return densities(axis)[0].logsumexp(0) + prior + 2 * np.log(12 / (nodes - 1))

    estimate = exact_log_likelihood(with_decoder(toy_decoder(2), 3), IMAGES, nodes=33, limit=6.0)
    torch.testing.assert_close(estimate.value, on_a_grid(33))
    torch.testing.assert_close(estimate.standard_error, (on_a_grid(33) - on_a_grid(17)).abs())


class Disc(nn.Module):
    """Decodes one pixel, set in a disc around (0.3, -0.2) that is narrow for the grid of the test."""

    def __init__(self):
        super().__init__()
        self.centre = nn.Parameter(torch.tensor([0.3, -0.2]).double())

    def forward(self, codes):
        return (3 - 400 * (codes - self.centre).square().sum(1))[:, None, None, None]


def test_exact_log_likelihood_says_where_its_grid_ends_too_early():
    model = with_decoder(toy_decoder(2), 3)
    whole, cut = exact_log_likelihood(model, IMAGES), exact_log_likelihood(model, IMAGES, limit=3.0)
    assert whole.standard_error.isfinite().all()
    assert (cut.value < whole.value).all()
    assert cut.standard_error.isposinf().all()


@pytest.mark.parametrize(("limit", "missed"), [(4.3, True), (4.7, False)])
def test_a_millionth_at_the_edge_of_the_grid_is_too_much(limit, missed):
    """Of a decoder that ignores the code, the prior's share there: 4 phi(limit) widths of a cell, 3.3e-6 or 6.0e-7."""
    decoder = toy_decoder(2)
    torch.nn.init.zeros_(decoder[0].weight)
    error = exact_log_likelihood(with_decoder(decoder, 3), IMAGES, limit=limit).standard_error
    assert (error.isposinf() == missed).all()


def test_exact_log_likelihood_of_many_images_is_summed_in_parts():
    model, images = with_decoder(toy_decoder(2), 3), IMAGES.repeat(33, 1, 1, 1)  # 264
    found, few = (exact_log_likelihood(model, some, nodes=60) for some in (images, IMAGES))
    torch.testing.assert_close(found, Estimate(few.value.repeat(33), few.standard_error.repeat(33)))


def test_where_a_device_has_no_float64_the_cpu_has():
    """An object stands here for a tensor of such a device, at which PyTorch raises a TypeError."""

    def refuse():
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    there = SimpleNamespace(double=refuse, cpu=lambda: torch.tensor([0.5]))
    torch.testing.assert_close(_in_float64(there), torch.tensor([0.5], dtype=torch.float64))


def test_exact_log_likelihood_divides_the_cells_that_matter():
    """Where the pixel is set; where it is not, the first grid will do."""

    def density(z2, z1):
        logit = 3 - 400 * ((z1 - 0.3) ** 2 + (z2 + 0.2) ** 2)
        return np.exp(-(z1**2 + z2**2) / 2) / (2 * np.pi) / (1 + np.exp(-logit))

    inside, _ = integrate.dblquad(density, 0, 0.6, -0.5, 0.1, epsabs=1e-10)
    pixel = torch.tensor([0.0, 1.0]).double().view(2, 1, 1, 1)
    estimate = exact_log_likelihood(with_decoder(Disc(), 1), pixel, nodes=60)
    assert estimate.value[0] == pytest.approx(np.log1p(-inside), abs=1e-3)
    assert estimate.value[1] == pytest.approx(np.log(inside), abs=1e-5)
    assert (estimate.standard_error < 1e-3).all()


@pytest.mark.parametrize("function", [elbo, denoising_bound, importance_weighted_bound, exact_log_likelihood])
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[0], "images must have shape"),
        (IMAGES - 0.1, r"images must lie in \[0, 1\]"),
        (IMAGES + 0.1, r"images must lie in \[0, 1\]"),
        (IMAGES * float("nan"), "images must be finite"),
        (IMAGES + float("inf"), "images must be finite"),
        (IMAGES.masked_fill(IMAGES > 0, float("inf")), "images must be finite"),
    ],
)
def test_images_that_are_no_probabilities(function, images, message):
    with pytest.raises(ValueError, match=message):
        function(toy(), images)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        *[
            (lambda b=b, name=name: b(toy(), IMAGES, **{name: 0}), ValueError, f"{name} must be at least 1, got 0")
            for b in (elbo, denoising_bound, importance_weighted_bound)
            for name in ("samples", "batch_size")
        ],
        (lambda: denoising_bound(mlp_vae(), torch.ones(1, 1, 24, 24)), ValueError, "noise must be a noise layer"),
        (lambda: denoising_bound(toy(), IMAGES, extra_corruptions=-1), ValueError, "extra_corruptions .* at least 0"),
        (lambda: exact_log_likelihood(toy(), IMAGES), ValueError, "model must have a code of two entries, or of up"),
        (lambda: exact_log_likelihood(toy(), IMAGES, nodes=1), ValueError, "nodes must be at least 2, got 1"),
        (lambda: exact_log_likelihood(toy(), IMAGES, limit=0), ValueError, "limit must be greater than 0, got 0"),
        (lambda: best_square_iou(torch.zeros(2, 1, 28, 28)), ValueError, r"images must have shape \(n, 1, 24, 24\)"),
        (lambda: iou([], IMAGES), TypeError, "found must be a torch.Tensor, got list"),
        (lambda: iou(IMAGES, IMAGES[..., :2]), ValueError, r"truth must have shape \(n, 1, 1, 3\), got \(8, 1, 1, 2"),
        (lambda: iou(IMAGES, IMAGES[:5]), ValueError, "truth must hold as many images as found, 8, got 5"),
    ],
)
def test_arguments_that_do_not_fit(call, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call()
