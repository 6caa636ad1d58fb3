"""Tensors in safetensors files, written so that no reader and no crash ever meets half of one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn


def describe_model(model: nn.Module) -> dict[str, Any]:
    """What must agree between a file and a model: what the builder was asked for, and the noise."""
    return {**getattr(model, "configuration", {}), "noise": repr(getattr(model, "noise", None))}


def to_json(value: Any) -> str:
    """Return `value` as JSON, with NumPy's numbers as Python's."""
    return json.dumps(value, default=lambda number: number.item())


def write_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write `tensors` and `metadata` under another name, force them to the disk, and rename them to `path`.

    An earlier file of that name stays whole until the last moment, and so does the new one after it.

    Explained in the chapter "The training loop".
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with open(temporary, "wb") as file:  # over what an earlier process of this number left
            file.write(safetensors.torch.save(tensors, metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove what killed processes left of files that they meant to rename to `path`."""
    path = Path(path)
    temporary = re.compile(rf"\.{re.escape(path.name)}\.\d+\.new")
    for leftover in path.parent.iterdir():
        if temporary.fullmatch(leftover.name):
            leftover.unlink(missing_ok=True)


def read_tensors(path: str | os.PathLike[str], form: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata at `path`; no code is unpickled.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or its metadata do not say that it is of the format `form`.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"path {os.fspath(path)} is not a complete safetensors file: {error}") from error
    if metadata.get("format") != form:
        raise ValueError(f"path {os.fspath(path)} must have format {form!r}, got {metadata.get('format')!r}")
    return tensors, metadata


def read_description(path: str | os.PathLike[str], metadata: dict[str, str], key: str) -> dict[str, Any]:
    """Return the dictionary that stands as JSON under `key` in the metadata of the file at `path`.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    try:
        description = json.loads(metadata[key])
    except (KeyError, ValueError) as error:
        raise ValueError(f"path {os.fspath(path)} holds no configuration that can be read: {error}") from error
    if not isinstance(description, dict):
        raise ValueError(f"path {os.fspath(path)} holds no configuration that can be read: {key} is {description!r}")
    return description


def differences(there: dict[str, Any], here: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield, in order, each key that has not the same value in both, with the two values; None is for a lacking one."""
    for key in sorted(there.keys() | here.keys()):
        if there.get(key) != here.get(key):
            yield key, there.get(key), here.get(key)


def refuse_another_model(path: str | os.PathLike[str], stored: dict[str, Any], model: nn.Module) -> None:
    """Raise a ValueError if `stored`, a model's description in the file at `path`, is not that of `model`."""
    for key, there, here in differences(stored, describe_model(model)):
        raise ValueError(
            f"path {os.fspath(path)} does not fit the model: it was made with {key} = {there}, "
            f"the model has {key} = {here}"
        )


def refuse_other_shapes(path: str | os.PathLike[str], tensors: dict[str, Tensor], model: nn.Module) -> None:
    """Raise a ValueError if `tensors`, those of the file at `path`, are not of the model's names and shapes."""
    stored, wanted = (
        {name: tuple(tensor.shape) for name, tensor in of.items()} for of in (tensors, model.state_dict())
    )
    for name, there, here in differences(stored, wanted):
        raise ValueError(
            f"path {os.fspath(path)} does not fit the model: {name} has shape {there} in the file "
            f"and {here} in the model"
        )
