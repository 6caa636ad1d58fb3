"""The two layers between encoder and decoder: the Kullback-Leibler divergence and the sampler.

Both take the encoder's `mean` and `log_variance`, shape (batch, code), of the posterior
q(z|x) = N(mean, diag(exp(log_variance))). The prior is p(z) = N(0, I). The chapters "The divergence layer" and
"The sampler" derive them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dvae_lib._checks import check_gaussian, check_number


class _GaussianKL(torch.autograd.Function):
    """KL(N(mean, exp(log_variance)) || N(0, 1)) summed over the code, with its gradient written by hand."""

    @staticmethod
    def forward(mean: Tensor, log_variance: Tensor) -> Tensor:
        # expm1(a) - a keeps the digits that exp(a) - 1 - a loses near a = 0
        return 0.5 * (mean.square() + torch.expm1(log_variance) - log_variance).sum(1)  # (batch,)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = ctx.saved_tensors
        grad_output = grad_output.unsqueeze(1)  # (batch,) -> (batch, 1)
        return grad_output * mean, grad_output * 0.5 * torch.expm1(log_variance)


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Divergence KL(q(z|x) || p(z)) of N(mean, diag(exp(log_variance))) from N(0, I), in nats, per image.

    Args:
        mean: (batch, code).
        log_variance: (batch, code), the natural logarithm of the variance.

    Returns:
        (batch,): 1/2 sum_j (mean_j^2 + exp(log_variance_j) - 1 - log_variance_j), differentiable.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: an argument is not a matrix, or the shapes differ.

    Derived in the chapter "The divergence layer". Source: Kingma and Welling (2014), appendix B.
    """
    check_gaussian(mean, log_variance)
    # in float32 at least, as under autocast the inputs may have 8 bits
    dtype = torch.promote_types(torch.promote_types(mean.dtype, log_variance.dtype), torch.float32)
    return _GaussianKL.apply(mean.to(dtype), log_variance.to(dtype))


class KullbackLeiblerDivergence(nn.Module):
    """Pass the posterior's parameters through and keep their divergence from the prior.

    `forward(mean, log_variance)` returns both unchanged and stores in `.loss` the divergence summed over
    batch and code, in nats, times `weight`. `.loss` is differentiable: add it to the reconstruction and
    call `backward` on the sum. Before the first forward pass `.loss` is None.

    Args:
        weight: the factor on the divergence, at least 0; 1 gives the evidence lower bound.

    Raises:
        TypeError, ValueError: `weight` is not a number, negative or not finite; in `forward`, as `gaussian_kl`.

    Developed in the chapter "The divergence layer". Source: Stutz's article and Kingma and Welling (2014).
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = check_number("weight", weight, 0)
        self.loss: Tensor | None = None

    def forward(self, mean: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
        self.loss = self.weight * gaussian_kl(mean, log_variance).sum()  # (batch,) -> ()
        return mean, log_variance

    def __getstate__(self) -> dict[str, Any]:
        # a loss that hangs on a graph can be neither copied nor pickled; a copy of the layer starts without
        return {**self.__dict__, "loss": None}

    def extra_repr(self) -> str:
        return f"weight={self.weight:g}"


class ReparameterizationSampler(nn.Module):
    """Draw a code from the posterior, differentiably: z = mean + exp(log_variance / 2) * eps, eps ~ N(0, I).

    `forward(mean, log_variance)`, both (batch, code), returns z, (batch, code). It draws in train and in
    eval mode alike; use the mean itself where no randomness is wanted.

    Args:
        generator: the source of eps, on the device of `mean`; None takes PyTorch's default generator.

    Raises:
        TypeError, ValueError: in `forward`, as `gaussian_kl`.

    Derived in the chapter "The sampler". Source: Kingma and Welling (2014), section 2.4.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        check_gaussian(mean, log_variance)
        eps = torch.randn(mean.shape, generator=self.generator, dtype=mean.dtype, device=mean.device)
        return mean + torch.exp(0.5 * log_variance) * eps  # (batch, code)
