"""Checkpoints: a model's weights in a safetensors file, with the configuration that they belong to.

The chapter "The training loop" explains them.
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from dvae_lib import noise as noises
from dvae_lib.configuration import TrainingConfig
from dvae_lib.models import VariationalAutoencoder, bernoulli_vae, convolutional_vae, mlp_vae
from dvae_lib.runs import files

_BUILDERS = {build.__name__: build for build in (mlp_vae, convolutional_vae, bernoulli_vae)}
_SHIPPED = Path(__file__).resolve().parent.parent / "weights"  # in a clone of the book


def save_checkpoint(
    path: str | os.PathLike[str], model: nn.Module, config: TrainingConfig, dtype: torch.dtype | None = None
) -> None:
    """Write the model's weights and both configurations to `path`, atomically.

    The file appears under its name only when it is complete; an earlier file of that name stays whole until then.

    Args:
        path: where to write, conventionally `*.safetensors`.
        model: whose weights to write.
        config: the run that made them.
        dtype: what to store the weights in, torch.float16 say; None keeps theirs.

    Raises:
        TypeError: `config` is not a `TrainingConfig`.
        ValueError: a weight is not finite, or not in the range of `dtype`.
    """
    if not isinstance(config, TrainingConfig):
        raise TypeError(f"config must be a TrainingConfig, got {type(config).__name__}")
    tensors = dict(model.state_dict())
    tensors |= {name: tensor.to(dtype=dtype) for name, tensor in tensors.items() if tensor.is_floating_point()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"model has a weight in {name} that is not finite in {tensor.dtype}")
    files.write(path, tensors, {"model": files.describe_model(model), "training": asdict(config)})


def load_checkpoint(path: str | os.PathLike[str], model: nn.Module) -> TrainingConfig:
    """Load the weights at `path` into `model` and return the configuration of the run that made them.

    The file, one that `save_checkpoint` or `train` wrote, must have been made from a model of the same builder, sizes
    and noise. Weights stored in 16 bits take the model's own type; its device and mode stay. No code is unpickled.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, no checkpoint of this library, or of another model; the model is untouched.
    """
    tensors, descriptions = files.read(path)
    try:
        config, model_there = TrainingConfig(**descriptions["training"]), descriptions["model"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"path {os.fspath(path)} holds no configuration that can be read: {error}") from error
    files.refuse_difference(path, model_there, files.describe_model(model))
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(files.RUN)}
    there, here = ({name: list(w.shape) for name, w in state.items()} for state in (weights, model.state_dict()))
    files.refuse_difference(path, there, here)
    model.load_state_dict(weights)
    return config


def shipped(name: str) -> VariationalAutoencoder:
    """Build the model `name` that the book ships, with its weights, on the CPU and in eval mode.

    Args:
        name: a file of the folder weights/ without its ending, "article-vae" or "article-dvae" say.

    Raises:
        FileNotFoundError: the folder is not there; it comes with a clone of the book, not with the package alone.
        ValueError: there is no model of that name, and the message lists those that there are; or the library does
            not build it, as the network of all levels.
    """
    if not _SHIPPED.is_dir():
        raise FileNotFoundError(
            f"{_SHIPPED} is not there: the shipped weights come with a clone of the book, not with the package alone"
        )
    names = sorted(path.stem for path in _SHIPPED.glob("*.safetensors"))
    if name not in names:
        raise ValueError(f"name must be one of {', '.join(names)}, got {name!r}")
    path = _SHIPPED / f"{name}.safetensors"
    asked = files.read(path)[1]["model"]
    if "builder" not in asked:
        raise ValueError(f"name must be a model that the library builds, got {name!r}, which is of another kind")
    build, noise = _BUILDERS[asked.pop("builder")], _noise_layer(asked.pop("noise"))
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn, and replaced
        model = build(**asked, noise=noise)
    load_checkpoint(path, model)
    return model.eval()


def _noise_layer(text: str) -> nn.Module | None:
    """Return the layer that `text` shows: "BernoulliNoise(p=0.1)", or "None"."""
    parts = re.fullmatch(r"(\w+)\((p|std)=([\d.e+-]+)\)", text)
    return getattr(noises, parts[1])(**{parts[2]: float(parts[3])}) if parts else None
