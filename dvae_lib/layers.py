"""The two layers between encoder and decoder: the Kullback-Leibler divergence and the sampler.

For a Gaussian code both take the encoder's `mean` and `log_variance`, shape (batch, code), of the posterior
q(z|x) = N(mean, diag(exp(log_variance))); the prior is p(z) = N(0, I). The chapters "The divergence layer" and
"The sampler" derive them. For a code of bits both take `logits`, (batch, code), of q(z|x) = Ber(sigmoid(logits)); the
prior is Ber(1/2). The chapter "Codes of bits" derives those.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dvae_lib._checks import check_gaussian, check_logits, check_number


class _GaussianKL(torch.autograd.Function):
    """KL(N(mean, exp(log_variance)) || N(0, 1)) summed over the code, with its gradient written by hand."""

    @staticmethod
    def forward(mean: Tensor, log_variance: Tensor) -> Tensor:
        # expm1(a) - a keeps digits that exp(a) - 1 - a loses near a = 0
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


class _BernoulliKL(torch.autograd.Function):
    """KL(Ber(sigmoid(logits)) || Ber(1/2)) summed over the code, with its gradient written by hand."""

    @staticmethod
    def forward(logits: Tensor) -> Tensor:
        # ln 2 + q ln q + (1 - q) ln(1 - q) is even in the logit; in |logit| nothing large cancels
        size = logits.abs()
        return (math.log(2) - size * torch.sigmoid(-size) - functional.softplus(-size)).sum(1)  # (batch,)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (logits,) = ctx.saved_tensors
        q = torch.sigmoid(logits)
        return grad_output.unsqueeze(1) * q * torch.sigmoid(-logits) * logits  # (batch, code)


def bernoulli_kl(logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence of Ber(sigmoid(logits)) from Ber(1/2), in nats, per image.

    Args:
        logits: (batch, code), ln q - ln(1 - q) of each bit.

    Returns:
        (batch,): sum_j (ln 2 + q_j ln q_j + (1 - q_j) ln(1 - q_j)), from 0 to ln 2 a bit, differentiable.

    Raises:
        TypeError: `logits` is not a floating-point tensor.
        ValueError: `logits` is not a matrix.

    Source: Stutz's Bernoulli listing, in logits.
    """
    check_logits(logits)
    return _BernoulliKL.apply(logits.to(torch.promote_types(logits.dtype, torch.float32)))


def log_density(codes: Tensor, *parameters: Tensor) -> Tensor:
    """Return ln q(z|x), (n,), of N(mean, exp(log_variance)), or for one parameter of Ber(sigmoid(logits))."""
    if len(parameters) == 1:
        return -functional.binary_cross_entropy_with_logits(parameters[0], codes, reduction="none").sum(1)
    mean, log_variance = parameters
    square = (codes - mean).square() * torch.exp(-log_variance)
    return -0.5 * (square + log_variance + math.log(2 * math.pi)).sum(1)  # (n, code) -> (n,)


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


class BernoulliDivergence(KullbackLeiblerDivergence):
    """`KullbackLeiblerDivergence` for a code of bits: its divergence from that of fair coins.

    `forward(logits)` returns the tuple (logits,) unchanged and stores in `.loss` the divergence summed over batch and
    code, in nats, times `weight`. Arguments and errors are those of the Gaussian layer and of `bernoulli_kl`.
    """

    def forward(self, logits: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        self.loss = self.weight * bernoulli_kl(logits).sum()  # (batch,) -> ()
        return (logits,)


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


class ConcreteSampler(nn.Module):
    """Draw a code of bits: in train mode relaxed, z = sigmoid((logits + noise) / temperature), in eval mode hard.

    The noise is logistic, so that z > 1/2 has the probability sigmoid(logits) at every temperature. The hard code,
    [logits + noise > 0] in {0, 1}, is what the relaxed one tends to as the temperature falls; it has no gradient.
    `forward(logits)`, (batch, code), returns z, (batch, code).

    Args:
        temperature: greater than 0, the first value of the tensor `current`, by which `forward` divides. A run writes
            `current` before each step (falling values with `TrainingConfig.final_temperature`) and leaves it there.
        generator: the source of the noise, on the device of `logits`; None takes PyTorch's default generator.

    Raises:
        TypeError, ValueError: `temperature` is not a finite number greater than 0; in `forward`, as `bernoulli_kl`.

    Source: Maddison et al. (2017), Jang et al. (2017), the binary case.
    """

    current: Tensor

    def __init__(self, temperature: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.temperature = check_number("temperature", temperature, 0)
        if self.temperature == 0:
            raise ValueError("temperature must be greater than 0, got 0")
        self.generator = generator
        # a tensor, so that a captured step reads what a schedule has written; no part of a checkpoint
        self.register_buffer("current", torch.tensor(self.temperature), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        check_logits(logits)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))  # under autocast they may have 8 bits
        u = torch.rand(wide.shape, generator=self.generator, dtype=wide.dtype, device=wide.device)
        noisy = wide + torch.logit(u, eps=torch.finfo(wide.dtype).eps)  # logistic noise
        z = torch.sigmoid(noisy / self.current.to(wide)) if self.training else (noisy > 0).to(wide)
        return z.to(logits)  # (batch, code)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature:g}"
