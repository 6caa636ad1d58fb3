"""Auto-encoders put together from an encoder, a divergence, a sampler, a decoder and, to denoise, a noise layer.

The chapter "The model" assembles them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from dvae_lib._checks import check_choice, check_floating, check_image_shape, check_integer
from dvae_lib.layers import (
    BernoulliDivergence,
    ConcreteSampler,
    KullbackLeiblerDivergence,
    ReparameterizationSampler,
)

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


class VariationalAutoencoder(nn.Module):
    """Encode, keep the divergence, sample, decode; with a noise layer, a denoising auto-encoder.

    `forward(images)` runs noise, encoder, divergence, sampler and decoder, in that order, and returns the
    logits of the pixels, of the shape of `images`. The target of the reconstruction stays the clean `images`:
    without noise that is the variational auto-encoder, with noise the denoising one.

    Args:
        encoder: maps images (n, channels, height, width) to the posterior's parameters, for a Gaussian the
            tuple (mean, log_variance), each (n, code), for bits (logits,).
        divergence: takes the parameters, returns them unchanged, and keeps `.loss`.
        sampler: takes the parameters, returns codes (n, code).
        decoder: maps codes to logits (n, channels, height, width).
        noise: corrupts the encoder's input in train mode; None leaves it clean.
        configuration: what a builder was asked for, stored in checkpoints. Where it holds "image_shape" and
            "latent_size", `encode` and `decode` check their inputs against them.

    Raises:
        TypeError, ValueError: in `forward`, `encode` and `decode`, an input of a wrong type, rank or size.

    Source: Kingma and Welling (2014), Im et al. (2017), Stutz's article.
    """

    def __init__(
        self,
        encoder: nn.Module,
        divergence: nn.Module,
        sampler: nn.Module,
        decoder: nn.Module,
        noise: nn.Module | None = None,
        *,
        configuration: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.noise = noise
        self.encoder = encoder
        self.divergence = divergence
        self.sampler = sampler
        self.decoder = decoder
        self.configuration = configuration or {}
        self.posterior: tuple[Tensor, ...] = ()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of `images`, (n, channels, height, width); `.kl` and `.posterior` are set on the way."""
        corrupted = images if self.noise is None else self.noise(images)  # the same shape
        parameters = self.divergence(*self.encode(corrupted))  # each (n, code)
        self.posterior = tuple(parameter.detach() for parameter in parameters)
        return self.decode(self.sampler(*parameters))  # (n, code) -> (n, channels, height, width)

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the parameters of q(z|images) for the images as they are: no noise is added here."""
        check_image_shape("images", images, self.configuration.get("image_shape"))
        return self.encoder(images)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the logits, (n, channels, height, width), of the pixels given `codes`, (n, code)."""
        check_floating("codes", codes)
        size = self.configuration.get("latent_size", "code")
        if codes.ndim != 2 or size not in ("code", codes.shape[1]):
            raise ValueError(f"codes must have shape (n, {size}), got {tuple(codes.shape)}")
        return self.decoder(codes)

    @property
    def kl(self) -> Tensor:
        """The divergence of the last forward pass: nats, summed over batch and code, differentiable."""
        return self.divergence.loss  # type: ignore[return-value]


class GaussianHeads(nn.Module):
    """Two linear maps from features to the posterior's mean and log-variance (Kingma and Welling, 2014, appendix C.2).

    `forward(features)`, (n, feature_size), returns (mean, log_variance), each (n, latent_size).
    """

    def __init__(self, feature_size: int, latent_size: int) -> None:
        super().__init__()
        self.mean = nn.Linear(feature_size, latent_size)
        self.log_variance = nn.Linear(feature_size, latent_size)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(features), self.log_variance(features)


class BernoulliHead(nn.Linear):
    """A linear map from features, (n, in_features), to the tuple of one tensor (logits,), (n, out_features)."""

    def forward(self, features: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        return (super().forward(features),)


def mlp_vae(
    image_shape: Sequence[int] = (1, 24, 24),
    latent_size: int = 2,
    hidden_size: int = 1152,
    noise: nn.Module | None = None,
    activation: str = "relu",
) -> VariationalAutoencoder:
    """Build the article's auto-encoder: two hidden layers in the encoder and two in the decoder.

    With no arguments it is the article's VAE, 3,993,412 parameters; `noise=BernoulliNoise(0.1)` makes it the
    article's DVAE. Weights and biases start uniform in +-1/sqrt(fan_in), PyTorch's default and Torch7's, drawn
    from PyTorch's default generator: call `torch.manual_seed` first.

    Args:
        image_shape: (channels, height, width).
        latent_size: the number of entries of a code, at least 1.
        hidden_size: the width of the hidden layers, at least 1.
        noise: a layer in front of the encoder, or None.
        activation: of the hidden layers, "relu" or "tanh"; the literature on binarised MNIST has "tanh".

    Raises:
        TypeError, ValueError: a size is not an integer of at least 1, or `image_shape` has not three of them; another
            activation.

    Source: the listing of Stutz's article; Burda et al. (2016) for "tanh".
    """
    shape = _check_sizes(image_shape, latent_size=latent_size, hidden_size=hidden_size)
    layer = ACTIVATIONS[check_choice("activation", activation, ACTIVATIONS)]
    encoder, decoder = _mlps(shape, latent_size, hidden_size, layer, GaussianHeads)
    return VariationalAutoencoder(
        encoder,
        KullbackLeiblerDivergence(),
        ReparameterizationSampler(),
        decoder,
        noise,
        configuration={
            "builder": "mlp_vae",
            "image_shape": list(shape),
            "latent_size": latent_size,
            "hidden_size": hidden_size,
            **({"activation": activation} if activation != "relu" else {}),  # older files do not speak of it
        },
    )


def bernoulli_vae(
    image_shape: Sequence[int] = (1, 24, 24),
    latent_size: int = 50,
    hidden_size: int = 1152,
    noise: nn.Module | None = None,
    temperature: float = 0.5,
) -> VariationalAutoencoder:
    """Build the auto-encoder of the article's Bernoulli listing: `mlp_vae` with a code of bits.

    Args, beside those of `mlp_vae`:
        latent_size: the number of bits of a code.
        temperature: of the relaxed samples in train mode, greater than 0.

    Raises:
        TypeError, ValueError: as `mlp_vae`; `temperature` is not a finite number greater than 0.

    Source: Stutz's Bernoulli listing, with the sampler of Maddison et al. (2017).
    """
    shape = _check_sizes(image_shape, latent_size=latent_size, hidden_size=hidden_size)
    sampler = ConcreteSampler(temperature)
    encoder, decoder = _mlps(shape, latent_size, hidden_size, nn.ReLU, BernoulliHead)
    return VariationalAutoencoder(
        encoder,
        BernoulliDivergence(),
        sampler,
        decoder,
        noise,
        configuration={
            "builder": "bernoulli_vae",
            "image_shape": list(shape),
            "latent_size": latent_size,
            "hidden_size": hidden_size,
            "temperature": sampler.temperature,
        },
    )


def convolutional_vae(
    image_shape: Sequence[int] = (1, 24, 24),
    latent_size: int = 2,
    channels: Sequence[int] = (8, 16, 32),
    noise: nn.Module | None = None,
) -> VariationalAutoencoder:
    """Build the auto-encoder of the article's convolutional listing, 13,765 parameters with no arguments.

    The encoder convolves 3 by 3, and takes the maximum over 2 by 2, once for each entry of `channels`; the decoder
    doubles the size by repeating pixels, and convolves, as often. Odd sizes are rounded up on the way down.

    Args, beside those of `mlp_vae`:
        channels: of the layers of the encoder; the decoder has them in reverse.

    Raises:
        TypeError, ValueError: as `mlp_vae`; `channels` is no sequence of integers of at least 1.

    Source: Stutz's convolutional listing.
    """
    shape = _check_sizes(image_shape, latent_size=latent_size)
    if not isinstance(channels, Sequence) or not channels:
        raise ValueError(f"channels must be a sequence of at least one integer, got {channels!r}")
    widths = [shape[0], *(check_integer("channels", width) for width in channels)]  # 1, 8, 16, 32
    sizes = [shape[1:]]  # (24, 24), (12, 12), (6, 6), (3, 3)
    body = nn.Sequential()  # (n, 1, 24, 24)
    for inner, outer in itertools.pairwise(widths):
        body.extend([nn.Conv2d(inner, outer, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)])
        sizes.append(tuple((size + 1) // 2 for size in sizes[-1]))  # (n, outer, height, width)
    smallest = (widths[-1], *sizes.pop())  # (32, 3, 3)
    features = math.prod(smallest)
    decoder = nn.Sequential(nn.Linear(latent_size, features), nn.Unflatten(1, smallest))  # (n, code) -> (n, 32, 3, 3)
    for inner, outer in itertools.pairwise(reversed(widths)):
        decoder.extend([nn.ReLU(), nn.Upsample(size=sizes.pop()), nn.Conv2d(inner, outer, 3, padding=1)])
    return VariationalAutoencoder(
        body.extend([nn.Flatten(), GaussianHeads(features, latent_size)]),  # (n, 32, 3, 3) -> 2 x (n, code)
        KullbackLeiblerDivergence(),
        ReparameterizationSampler(),
        decoder,
        noise,
        configuration={
            "builder": "convolutional_vae",
            "image_shape": list(shape),
            "latent_size": latent_size,
            "channels": widths[1:],
        },
    )


def _check_sizes(image_shape: Sequence[int], **sizes: int) -> tuple[int, ...]:
    """Return `image_shape` as a tuple if it has three sizes, and it and the other sizes are integers of at least 1."""
    if not isinstance(image_shape, Sequence) or len(image_shape) != 3:
        raise ValueError(f"image_shape must be (channels, height, width), got {image_shape!r}")
    for name, size in sizes.items():
        check_integer(name, size)
    return tuple(check_integer("image_shape", size) for size in image_shape)


def _mlps(
    shape: tuple[int, ...], latent_size: int, hidden_size: int, layer: type[nn.Module], head: Callable[..., nn.Module]
) -> tuple[nn.Sequential, nn.Sequential]:
    """Return an encoder with two hidden layers and `head`, and a decoder with two."""
    pixels = math.prod(shape)
    encoder = nn.Sequential(
        nn.Flatten(),  # (n, channels, height, width) -> (n, pixels)
        nn.Linear(pixels, hidden_size),
        layer(),
        nn.Linear(hidden_size, hidden_size),
        layer(),
        head(hidden_size, latent_size),  # (n, hidden) -> the posterior's parameters, each (n, code)
    )
    decoder = nn.Sequential(
        nn.Linear(latent_size, hidden_size),
        layer(),
        nn.Linear(hidden_size, hidden_size),
        layer(),
        nn.Linear(hidden_size, pixels),
        nn.Unflatten(1, shape),  # (n, pixels) -> (n, channels, height, width)
    )
    return encoder, decoder
