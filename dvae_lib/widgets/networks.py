"""The networks that the explorers of a page share, and how their weights are packed to travel with it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import torch
import traitlets
from torch import Tensor

from dvae_lib._checks import check_number
from dvae_lib.checkpoints import load_checkpoint
from dvae_lib.models import VariationalAutoencoder, mlp_vae
from dvae_lib.noise import BernoulliNoise

LEVELS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)  # the training noise of the shipped networks
HIDDEN_SIZE = 128  # of the shipped networks
_LINEAR = ("encoder.1", "encoder.3", "encoder.5.mean", "encoder.5.log_variance", "decoder.0", "decoder.2", "decoder.4")


class Networks(ipywidgets.Widget):
    """Networks trained with more and more noise, their weights rounded to 8 bits.

    Each row of a weight matrix is a scale, a 32-bit float, times integers from -127 to 127; biases stay 32-bit
    floats. Page and `model` compute with the same numbers.

    Args:
        models: for each level of training noise p, in [0, 1], a model of `mlp_vae` for square images of one channel;
            all of the same sizes and activation.

    Raises:
        TypeError, ValueError: no models, a level outside [0, 1], or a model of another kind.
    """

    levels = traitlets.List(traitlets.Float()).tag(sync=True)
    shapes = traitlets.List(traitlets.List(traitlets.Int())).tag(sync=True)  # (rows, columns) of the layers of _LINEAR
    activation = traitlets.Unicode("relu").tag(sync=True)
    weights = traitlets.Bytes().tag(sync=True)

    def __init__(self, models: Mapping[float, VariationalAutoencoder]) -> None:
        if not isinstance(models, Mapping):
            raise TypeError(f"models must map levels of training noise to models, got {type(models).__name__}")
        if not models:
            raise ValueError("models must hold at least one model, got none")
        levels = sorted(check_number("models", level, 0, 1) for level in models)
        for model in models.values():
            _check_model(model)
        self.configuration = {"activation": "relu"} | models[levels[0]].configuration
        self.hidden_size: int = self.configuration["hidden_size"]
        for key, value in self.configuration.items():
            if any(({"activation": "relu"} | model.configuration)[key] != value for model in models.values()):
                raise ValueError(f"models must all have the same {key}")
        state = models[levels[0]].state_dict()
        super().__init__(
            levels=levels,
            shapes=[list(state[f"{name}.weight"].shape) for name in _LINEAR],
            activation=self.configuration["activation"],
            weights=b"".join(_pack(models[level]) for level in levels),
        )

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], levels: Iterable[float] = LEVELS, hidden_size: int = HIDDEN_SIZE
    ) -> Networks:
        """Read the shipped networks `explorer-p00.safetensors`, ... of these levels of training noise.

        Args:
            folder: where they lie, conventionally "../weights".
            levels: which ones, each a whole percentage in [0, 1].
            hidden_size: the width that they were built with.

        Raises:
            FileNotFoundError: one of them is not there.
            TypeError, ValueError: a level is not in [0, 1], or a file is damaged or of another model.
        """
        models = {}
        for level in levels:
            p = check_number("levels", level, 0, 1)
            models[p] = empty_model(hidden_size, p)
            load_checkpoint(Path(folder) / f"explorer-p{round(100 * p):02d}.safetensors", models[p])
        return cls(models)

    def model(self, level: float) -> VariationalAutoencoder:
        """Return the model trained with noise `level`, with exactly the weights of the page, in eval mode.

        Raises:
            ValueError: there is none of that level.
        """
        size = len(self.weights) // len(self.levels)
        first = size * self.index(level)
        model = empty_model(p=level, **{key: value for key, value in self.configuration.items() if key != "builder"})
        model.load_state_dict(_unpack(self.weights[first : first + size], self.shapes))
        return model.eval()

    def index(self, level: float) -> int:
        """Return the place of the network trained with noise `level`, or raise a ValueError."""
        if level not in self.levels:
            raise ValueError(f"level must be one of {listed(self.levels)}, got {level!r}")
        return self.levels.index(level)

    def __repr__(self) -> str:
        return f"Networks(p = {listed(self.levels)})"


def empty_model(hidden_size: int, p: float, **sizes: Any) -> VariationalAutoencoder:
    """Build a VAE, or a DVAE for p > 0, whose weights are still to be written: no random number is drawn."""
    with torch.device("meta"):
        model = mlp_vae(hidden_size=hidden_size, noise=BernoulliNoise(p) if p else None, **sizes)
    return model.to_empty(device="cpu")


def listed(levels: Iterable[float]) -> str:
    return ", ".join(f"{level:g}" for level in levels)


def _check_model(model: object) -> None:
    if not isinstance(model, VariationalAutoencoder):
        raise TypeError(f"models must hold VariationalAutoencoders, got {type(model).__name__}")
    if model.configuration.get("builder") != "mlp_vae":
        raise ValueError(f"models must have builder = mlp_vae, got {model.configuration.get('builder')}")
    channels, height, width = model.configuration["image_shape"]
    if channels != 1 or height != width:
        raise ValueError(f"models must have images of one channel, as high as wide, got {(channels, height, width)}")


def _pack(model: VariationalAutoencoder) -> bytes:
    """Return the layers of _LINEAR, packed."""
    return pack_layers(model.state_dict(), _LINEAR, "models")


def pack_layers(state: Mapping[str, Tensor], names: Iterable[str], holder: str) -> bytes:
    """Return the rows' scales, the biases and the rounded weights of each linear layer, one after the other."""
    state = {name: tensor.detach().cpu().float() for name, tensor in state.items()}
    parts = []
    for name in names:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]  # (rows, columns), (rows,)
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise ValueError(f"{holder} must have finite weights, got one in {name} that is not")
        # a row of zeros has the least normal number for a scale, and 0 for its integers
        scale = (weight.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)  # (rows,)
        integers = (weight / scale[:, None]).round().to(torch.int8)
        parts += [scale.numpy().astype("<f4"), bias.numpy().astype("<f4"), integers.numpy().T]  # by columns
    return b"".join(part.tobytes() for part in parts)


def _unpack(data: bytes, shapes: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Return the state that `_pack` wrote, by name."""
    state: dict[str, Tensor] = {}
    for name, (weight, bias) in zip(_LINEAR, unpack_layers(data, shapes), strict=True):
        state |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return state


def unpack_layers(data: bytes, shapes: Sequence[Sequence[int]]) -> list[tuple[Tensor, Tensor]]:
    """Return weight and bias of each layer that `pack_layers` wrote."""
    layers, offset = [], 0
    for rows, columns in shapes:
        floats = np.frombuffer(data, "<f4", 2 * rows, offset).astype(np.float32)
        offset += floats.nbytes
        integers = np.frombuffer(data, np.int8, rows * columns, offset)
        offset += integers.nbytes
        weight = torch.from_numpy(integers.astype(np.float32)).reshape(columns, rows).T
        layers.append((weight * torch.from_numpy(floats[:rows, None]), torch.from_numpy(floats[rows:])))
    return layers
