"""Checkpoints: a model's weights in a safetensors file, with the configuration that they belong to."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from dvae_lib.training import TrainingConfig

_FORMAT = "dvae_lib checkpoint 1"


def _description(model: nn.Module) -> dict[str, Any]:
    """What must agree between a checkpoint and a model: what the builder was asked for, and the noise."""
    return {**getattr(model, "configuration", {}), "noise": repr(getattr(model, "noise", None))}


def _plain_number(value: Any) -> Any:
    """Return one of NumPy's numbers, which JSON does not know, as Python's."""
    return value.item()


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
    metadata = {
        "format": _FORMAT,
        "model": json.dumps(_description(model), default=_plain_number),
        "training": json.dumps(asdict(config), default=_plain_number),
    }
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with open(temporary, "xb") as file:
            file.write(safetensors.torch.save(tensors, metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"path {os.fspath(path)} is not a complete safetensors file: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"path {os.fspath(path)} must have format {_FORMAT!r}, got {metadata.get('format')!r}")
    try:
        stored, config = json.loads(metadata["model"]), TrainingConfig(**json.loads(metadata["training"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"path {os.fspath(path)} holds no configuration that can be read: {error}") from error
    wanted = _description(model)
    for key in sorted(stored.keys() | wanted.keys()):
        if stored.get(key) != wanted.get(key):
            raise ValueError(
                f"path {os.fspath(path)} does not fit the model: it was made with {key} = {stored.get(key)}, "
                f"the model has {key} = {wanted.get(key)}"
            )
    state = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name in sorted(shapes.keys() | tensors.keys()):
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != shapes.get(name):
            raise ValueError(
                f"path {os.fspath(path)} does not fit the model: {name} has shape {found} in the file "
                f"and {shapes.get(name)} in the model"
            )
    model.load_state_dict(tensors)
    return config
