"""Numbers to judge a model by: bounds on the log-likelihood, in nats per image, and how square a picture is.

The bounds draw codes with `model.sampler` and corruptions with `model.noise`, hence from PyTorch's default generator
unless these layers hold one of their own. Memory grows neither with the number of images nor with that of draws. The
chapter "The denoising bound" derives `denoising_bound`, "The evidence lower bound" the other bounds and the exact
log-likelihood; "The denoising VAE and its manifold" introduces the overlaps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dvae_lib._checks import check_image_shape, check_image_values, check_integer, check_number
from dvae_lib.data import IMAGE_SIZE, all_squares
from dvae_lib.layers import bernoulli_kl, gaussian_kl, log_density
from dvae_lib.models import VariationalAutoencoder


class Estimate(NamedTuple):
    """A Monte-Carlo estimate for each image.

    Args:
        value: (n,), nats per image.
        standard_error: (n,), of the draws for the image at hand; NaN of only one draw, inf of a grid that is too small.
    """

    value: Tensor
    standard_error: Tensor

    def mean(self) -> tuple[float, float]:
        """Return the mean over the images and its standard error, both in nats per image.

        The error is that of the draws: the images are taken as given. Where a few draws outweigh the others, as for
        images that a model decodes badly, it is itself too small.
        """
        return float(self.value.mean()), float(self.standard_error.square().sum().sqrt() / len(self.value))


def elbo(model: VariationalAutoencoder, images: Tensor, samples: int = 100, batch_size: int = 1000) -> Estimate:
    """Evidence lower bound of clean images, -(KL(q(z|x) || p(z)) + reconstruction), the divergence in closed form.

    Args:
        model: with a Gaussian code or one of bits; in eval mode, as the samples of bits are relaxed in train mode.
        images: (n, channels, height, width), on the model's device, in [0, 1].
        samples: draws of the code for each image.
        batch_size: images at a time.

    Returns:
        The bound for each image, (n,), in nats; the reconstruction in it is the cost -E_q(z|x) ln p(x|z).

    Raises:
        TypeError, ValueError: an argument of a wrong type, rank, size or range.

    Source: Kingma and Welling (2014), section 2.3.
    """

    def bound(batch: Tensor) -> Estimate:
        parameters = model.encode(batch)
        divergence = gaussian_kl(*parameters) if len(parameters) == 2 else bernoulli_kl(*parameters)  # (n,)
        return _mean_over_draws(lambda: _log_likelihood(model, batch, model.sampler(*parameters)) - divergence, samples)

    return _over_batches(bound, images, samples, batch_size)


def denoising_bound(
    model: VariationalAutoencoder,
    images: Tensor,
    samples: int = 100,
    extra_corruptions: int = 0,
    noise: nn.Module | None = None,
    batch_size: int = 1000,
) -> Estimate:
    """What a DVAE maximises, and with extra corruptions a tighter bound, for each clean image, (n,), in nats.

    A draw corrupts the image to x'_1, draws z from q(z|x'_1), and has the value
    ln p(x, z) - ln [(q(z|x'_1) + ... + q(z|x'_K)) / K] with K corruptions in all. Its mean, L_K, is the denoising bound
    for K = 1 and climbs towards the evidence lower bound of the mixture posterior as K grows.

    Args, beside those of `elbo`:
        extra_corruptions: K - 1, at least 0, fresh ones for every draw.
        noise: the corruption, a layer with `corrupt`; None takes the model's.

    Raises:
        TypeError, ValueError: as `elbo`; there is neither `noise` nor a noise layer of the model.

    Source: Im et al. (2017), with the order of the bounds put right; Yin and Zhou (2018) for K > 1.
    """
    layer = model.noise if noise is None else noise
    if layer is None:
        raise ValueError("noise must be a noise layer where the model has none, got None")
    corrupt: Callable[[Tensor], Tensor] = layer.corrupt  # type: ignore[assignment]
    check_integer("extra_corruptions", extra_corruptions, 0)

    def bound(batch: Tensor) -> Estimate:
        def draw() -> Tensor:
            parameters = model.encode(corrupt(batch))
            codes = model.sampler(*parameters)
            log_q = log_density(codes, *parameters)
            for _ in range(extra_corruptions):
                log_q = torch.logaddexp(log_q, log_density(codes, *model.encode(corrupt(batch))))
            return _log_joint(model, batch, codes, len(parameters)) - log_q + math.log(extra_corruptions + 1)

        return _mean_over_draws(draw, samples)

    return _over_batches(bound, images, samples, batch_size)


def importance_weighted_bound(
    model: VariationalAutoencoder, images: Tensor, samples: int = 50, batch_size: int = 1000
) -> Estimate:
    """Importance-weighted bound ln (1/K sum_k p(x, z_k) / q(z_k|x)), z_k from q(z|x), for K = `samples`.

    One draw of a random quantity: its mean is the evidence lower bound for K = 1 and rises to ln p(x) with K.
    Arguments and errors are those of `elbo`.

    Returns:
        One draw for each image, (n,), in nats, whose mean is the bound; its standard error is the spread of the weights
        carried through the logarithm to first order, sqrt(var(w) / K) / mean(w). That is at most 1, and too small where
        a few weights outweigh the others.

    Source: Burda et al. (2016).
    """

    def bound(batch: Tensor) -> Estimate:
        parameters = model.encode(batch)
        log_sum = log_sum_of_squares = batch.new_full((len(batch),), -math.inf)
        for _ in range(samples):
            codes = model.sampler(*parameters)
            log_weight = _log_joint(model, batch, codes, len(parameters)) - log_density(codes, *parameters)
            log_sum = torch.logaddexp(log_sum, log_weight)
            log_sum_of_squares = torch.logaddexp(log_sum_of_squares, 2 * log_weight)
        # K sum w^2 / (sum w)^2 - 1, the relative variance of the weights; rounding may take it below 0
        variance = (torch.exp(math.log(samples) + log_sum_of_squares - 2 * log_sum) - 1).clamp(min=0)
        error = (variance / (samples - 1)).sqrt() if samples > 1 else torch.full_like(log_sum, math.nan)
        return Estimate(log_sum - math.log(samples), error)

    return _over_batches(bound, images, samples, batch_size)


@torch.no_grad()
def exact_log_likelihood(
    model: VariationalAutoencoder, images: Tensor, nodes: int = 400, limit: float = 7.0
) -> Estimate:
    """ln p(x) of a model with a code of two entries: the sum of p(x|z) p(z) over a grid of codes times a cell's area.

    For a code of up to 12 bits it is the mean of p(x|z) over all codes, with no error but that of rounding. The grid
    reaches from -limit to limit. Where every second node alone gives another value by more than 1e-3 nats, the cells
    that matter for such an image are divided into four, again and again. The decoder runs in its own precision, all
    sums in float64, on the CPU where the device has no float64.

    Args:
        model: with a code of two entries, or of up to 12 bits.
        images: (n, channels, height, width), on the model's device, in [0, 1].
        nodes: of the first grid along each axis, at least 2; between two of them ln p(x, z) may change by 20 nats.
        limit: where the grid ends, greater than 0; beyond 7 lies 5e-12 of the prior.

    Returns:
        ln p(x) of each image, (n,), in nats; as its standard error, what leaving out every second node changes, or inf
        where a millionth of the sum lies at the edge of the grid: what lies beyond it is missing, perhaps by many nats.

    Raises:
        TypeError, ValueError: an argument of a wrong type, rank, size or range; a code of another size.
    """
    check_image_values("images", check_image_shape("images", images))
    check_integer("nodes", nodes, 2)
    if check_number("limit", limit, 0) == 0:
        raise ValueError("limit must be greater than 0, got 0")
    parameters = model.encode(images[:1])
    size, bits = parameters[0].shape[1], len(parameters) == 1
    if size > 12 if bits else size != 2:
        raise ValueError(f"model must have a code of two entries, or of up to 12 bits, got {size}")
    if bits:
        codes = torch.cartesian_prod(*size * [_in_float64(torch.arange(2, device=images.device))]).view(-1, size)
        value = torch.cat([_log_joint_of_cells(model, some, codes, 1).logsumexp(0) for some in images.split(256)])
        return Estimate(value, torch.zeros_like(value))
    parts = [_integral(model, some, nodes, limit) for some in images.split(256)]
    return Estimate(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _integral(model: VariationalAutoencoder, images: Tensor, nodes: int, limit: float) -> Estimate:
    """`exact_log_likelihood` of so many images that the values at all nodes fit into memory."""
    device = _in_float64(images).device
    axis, width = torch.linspace(-limit, limit, nodes, dtype=torch.float64, device=device), 2 * limit / (nodes - 1)
    cells = torch.cartesian_prod(axis, axis)  # (nodes^2, 2)
    second = torch.arange(nodes, device=device) % 2 == 0
    log_joint = _log_joint_of_cells(model, images, cells)  # (nodes^2, n)
    value = log_joint.logsumexp(0) + 2 * math.log(width)
    coarse = log_joint[torch.cartesian_prod(second, second).all(1)].logsumexp(0) + 2 * math.log(2 * width)
    error = (value - coarse).abs()
    missed = log_joint[cells.abs().amax(1) > limit - width / 2].logsumexp(0) + 2 * math.log(width * 1e3) > value
    while (rough := error > 1e-3).any() and width > 1e-3:
        # of the cells left out, each holds less than e^-20 of the largest
        near = (log_joint > log_joint.amax(0) - 20)[:, rough].any(1)
        width /= 2
        corners = torch.cartesian_prod(*2 * [torch.tensor([-0.5, 0.5], dtype=torch.float64, device=device) * width])
        cells = (cells[near][:, None] + corners).flatten(0, 1)  # (m, 2) -> (m, 4, 2) -> (4 m, 2)
        log_joint = _log_joint_of_cells(model, images, cells)
        finer = log_joint.logsumexp(0) + 2 * math.log(width)
        error, value = torch.where(rough, (finer - value).abs(), error), torch.where(rough, finer, value)
    return Estimate(value, error.masked_fill(missed, math.inf))


def iou(found: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of the pixels that are set, at least 1/2, in `found` and in `truth`.

    Args:
        found: (n, channels, height, width), probabilities or binary pixels, not logits.
        truth: the same shape.

    Returns:
        (n,), in [0, 1]; 1 where the same pixels are set, or none in either.

    Raises:
        TypeError, ValueError: an argument is of a wrong type or rank, or the shapes differ.
    """
    check_image_shape("found", found)
    check_image_shape("truth", truth, found.shape[1:])
    if len(truth) != len(found):
        raise ValueError(f"truth must hold as many images as found, {len(found)}, got {len(truth)}")
    ours, theirs = (images.flatten(1) >= 0.5 for images in (found, truth))  # (n, pixels)
    union = (ours | theirs).sum(1)
    return torch.where(union > 0, (ours & theirs).sum(1) / union, 1.0)


def best_square_iou(images: Tensor) -> Tensor:
    """How square an image is: its largest intersection over union with one of the 256 true squares.

    Args:
        images: (n, 1, 24, 24), probabilities or binary pixels, not logits.

    Returns:
        (n,), in [0, 1]; 1 exactly for a true square, 0 for an empty image.

    Raises:
        TypeError, ValueError: `images` is of a wrong type, rank or size.
    """
    check_image_shape("images", images, (1, IMAGE_SIZE, IMAGE_SIZE))
    found = (images >= 0.5).float().flatten(1)  # (n, 576)
    squares = all_squares(images.device).flatten(1)  # (256, 576)
    intersection = found @ squares.T  # (n, 256)
    union = found.sum(1, keepdim=True) + squares.sum(1) - intersection  # (n, 1) + (256,) -> (n, 256)
    return torch.amax(intersection / union, dim=1)


def _log_likelihood(model: VariationalAutoencoder, images: Tensor, codes: Tensor) -> Tensor:
    """Return ln p(x|z) summed over the pixels, (n,)."""
    logits = model.decode(codes)  # (n, channels, height, width)
    return -functional.binary_cross_entropy_with_logits(logits, images, reduction="none").flatten(1).sum(1)


def _log_joint(model: VariationalAutoencoder, images: Tensor, codes: Tensor, parameters: int) -> Tensor:
    """Return ln p(x, z) = ln p(x|z) + ln p(z), (n,); the prior is the posterior whose parameters are all 0."""
    return _log_likelihood(model, images, codes) + log_density(codes, *parameters * [torch.zeros_like(codes)])


def _log_joint_of_cells(model: VariationalAutoencoder, images: Tensor, cells: Tensor, parameters: int = 2) -> Tensor:
    """Return ln p(x, z) of the n images at each of the m codes `cells`, (m, 2), float64: (m, n), float64."""
    rows = []
    for codes in cells.split(4000):
        logits = _in_float64(model.decode(codes.to(next(model.parameters()))).flatten(1))  # (4000, pixels)
        # x ln theta + (1 - x) ln(1 - theta) = x logit - ln(1 + e^logit)
        likelihood = logits @ images.flatten(1).to(logits).T - functional.softplus(logits).sum(1, keepdim=True)
        rows.append(likelihood + log_density(codes, *parameters * [torch.zeros_like(codes)])[:, None])  # (4000, n)
    return torch.cat(rows)


def _in_float64(tensor: Tensor) -> Tensor:
    """Return `tensor` in float64, on the CPU where its device has none."""
    try:
        return tensor.double()
    except TypeError:
        return tensor.cpu().double()


def _mean_over_draws(draw: Callable[[], Tensor], samples: int) -> Estimate:
    """Average `samples` draws, each (n,), keeping only the running mean and sum of squared deviations."""
    mean = squares = torch.zeros(())  # a scalar on the CPU joins tensors of any device
    for count in range(1, samples + 1):
        value = draw()
        deviation = value - mean
        mean = mean + deviation / count
        squares = squares + deviation * (value - mean)
    variance = squares / (samples - 1) if samples > 1 else torch.full_like(mean, math.nan)
    return Estimate(mean, (variance / samples).sqrt())


@torch.no_grad()
def _over_batches(bound: Callable[[Tensor], Estimate], images: Tensor, samples: int, batch_size: int) -> Estimate:
    """Check what the bounds have in common, and apply `bound` to `batch_size` images at a time."""
    check_image_values("images", check_image_shape("images", images))
    check_integer("samples", samples)
    check_integer("batch_size", batch_size)
    values, errors = zip(*(bound(batch) for batch in images.split(batch_size)), strict=True)
    return Estimate(torch.cat(values), torch.cat(errors))
