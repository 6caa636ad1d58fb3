"""Noise layers, the corruption p(x'|x) in front of the encoder of a denoising model.

Each layer draws fresh noise for every entry of `images`, in train mode only; in eval mode it is the identity.
`corrupt` draws whatever the mode. Neither ever writes into its input, which is also the target of the
reconstruction. The chapter "The noise layer" develops them; source: Stutz's article and Im et al. (2017).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dvae_lib._checks import check_floating, check_number


class _Noise(nn.Module):
    """What the noise layers share: noise in train mode, the identity in eval mode."""

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, images: Tensor) -> Tensor:
        return self.corrupt(images) if self.training else images

    def corrupt(self, images: Tensor) -> Tensor:
        """Draw corrupted images of the same shape, in train and eval mode alike; `images` is left as it is."""
        raise NotImplementedError


class _PixelNoise(_Noise):
    """What the layers share that hit each entry independently with probability `p`."""

    def __init__(self, p: float = 0.1, generator: torch.Generator | None = None) -> None:
        super().__init__(generator)
        self.p = check_number("p", p, 0, 1)

    def _hit(self, images: Tensor, p: float) -> Tensor:
        """Draw a mask of the shape of `images`, True with probability `p`."""
        check_floating("images", images)
        # float32 whatever the images are: a uniform draw in bfloat16 has too few digits to compare with p
        return torch.rand(images.shape, generator=self.generator, device=images.device) < p

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


class BernoulliNoise(_PixelNoise):
    """Flip each entry, x' = 1 - x, independently with probability `p`.

    Args:
        p: the probability of a flip, in [0, 1].
        generator: the source of the noise, on the device of the images; None takes PyTorch's default generator.

    Raises:
        TypeError, ValueError: `p` is not a number or outside [0, 1]; `images` is not a floating-point tensor.
    """

    def corrupt(self, images: Tensor) -> Tensor:
        return torch.where(self._hit(images, self.p), 1 - images, images)


class MaskingNoise(_PixelNoise):
    """Set each entry to 0 independently with probability `p`.

    Arguments and errors are those of `BernoulliNoise`. Source: Vincent et al. (2008).
    """

    def corrupt(self, images: Tensor) -> Tensor:
        hit = self._hit(images, self.p)
        return images.masked_fill(hit, 0)


class SaltAndPepperNoise(_PixelNoise):
    """Replace each entry, independently with probability `p`, by 0 or 1 with equal probability.

    A replaced binary entry keeps its value half of the time, so that a fraction p / 2 of the entries changes.
    Arguments and errors are those of `BernoulliNoise`. Source: Vincent et al. (2010).
    """

    def corrupt(self, images: Tensor) -> Tensor:
        replaced, salt = self._hit(images, self.p), self._hit(images, 0.5)
        return torch.where(replaced, salt.to(images.dtype), images)


class GaussianNoise(_Noise):
    """Add independent normal noise, x' = x + std * eps, eps ~ N(0, 1); the result may leave [0, 1].

    `std`, at least 0, is in units of the pixel's value; the rest is as for `BernoulliNoise`. Source: Im et al. (2017).
    """

    def __init__(self, std: float, generator: torch.Generator | None = None) -> None:
        super().__init__(generator)
        self.std = check_number("std", std, 0)

    def corrupt(self, images: Tensor) -> Tensor:
        check_floating("images", images)
        eps = torch.randn(images.shape, generator=self.generator, dtype=images.dtype, device=images.device)
        return images + self.std * eps

    def extra_repr(self) -> str:
        return f"std={self.std:g}"
