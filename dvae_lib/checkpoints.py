"""Checkpoints: a model's weights in a safetensors file, with the configuration that they belong to."""

from __future__ import annotations

import os
from dataclasses import asdict

import torch
from torch import nn

from dvae_lib.files import (
    describe_model,
    read_description,
    read_tensors,
    refuse_another_model,
    refuse_other_shapes,
    to_json,
    write_tensors,
)
from dvae_lib.training import TrainingConfig

_FORMAT = "dvae_lib checkpoint 1"


def save_checkpoint(
    path: str | os.PathLike[str], model: nn.Module, config: TrainingConfig, dtype: torch.dtype | None = None
) -> None:
    """Write the model's weights and both configurations to `path`, atomically.

    The file appears under its name only when it is complete; an earlier file of that name stays whole until then.

    Args:
        path: where to write, conventionally *.safetensors.
        model: whose weights to write.
        config: the run that made them.
        dtype: what to store the weights in, torch.float16 say; None keeps theirs.

    Raises:
        TypeError: `config` is not a `TrainingConfig`.
        ValueError: a weight is not finite, or not in the range of `dtype`.

    Explained in the chapter "The training loop".
    """
    if not isinstance(config, TrainingConfig):
        raise TypeError(f"config must be a TrainingConfig, got {type(config).__name__}")
    tensors = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in model.state_dict().items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"model has a weight in {name} that is not finite in {tensor.dtype}")
    metadata = {"format": _FORMAT, "model": to_json(describe_model(model)), "training": to_json(asdict(config))}
    write_tensors(path, tensors, metadata)


def load_checkpoint(path: str | os.PathLike[str], model: nn.Module) -> TrainingConfig:
    """Load the weights at `path` into `model` and return the configuration of the run that made them.

    The file must have been made from a model of the same builder, sizes and noise. Weights stored in 16 bits take
    the model's own type. No code is unpickled.

    Args:
        path: a file that `save_checkpoint` wrote.
        model: what to load into; its device and mode stay.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, no checkpoint of this library, or of another model; the model is untouched.

    Explained in the chapter "The training loop".
    """
    tensors, metadata = read_tensors(path, _FORMAT)
    stored, training = (read_description(path, metadata, key) for key in ("model", "training"))
    try:
        config = TrainingConfig(**training)
    except (TypeError, ValueError) as error:
        raise ValueError(f"path {os.fspath(path)} holds no configuration that can be read: {error}") from error
    refuse_another_model(path, stored, model)
    refuse_other_shapes(path, tensors, model)
    model.load_state_dict(tensors)
    return config
