"""The one place that touches files: tensors with a description, in safetensors files that are never half written.

A model's file holds its weights under their own names. A run's file is a model's file with more in it: what else the
run needs to go on, under names that begin with "run/". Equal content makes files that are equal byte for byte.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

FORMAT = "dvae_lib checkpoint 1"
RUN = "run/"  # what the names of a run's own tensors begin with

Description = dict[str, Any]


def write(path: str | os.PathLike[str], tensors: dict[str, Tensor], descriptions: dict[str, Description]) -> None:
    """Write `tensors` and `descriptions` under another name, force them to the disk, and rename them to `path`.

    An earlier file of that name stays whole until the last moment, and so does the new one after it.
    """
    apart = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    metadata = {"format": FORMAT} | {key: _to_json(description) for key, description in descriptions.items()}
    write_bytes(path, _sorted(safetensors.torch.save(apart, metadata)))


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` as `write` does: under another name, forced to the disk, and renamed."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with open(temporary, "wb") as file:  # over what an earlier process of this number left
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Description]]:
    """Return the tensors and the descriptions at `path`, in memory of their own; no code is unpickled.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or was not made by `write`.
    """
    content = Path(path).read_bytes()
    try:
        tensors = safetensors.torch.load(content)
        metadata = _split(content)[0].get("__metadata__", {})
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"path {os.fspath(path)} is not a complete safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"path {os.fspath(path)} must have format {FORMAT!r}, got {metadata.get('format')!r}")
    try:
        descriptions = {key: json.loads(text) for key, text in metadata.items() if key != "format"}
    except ValueError as error:
        raise ValueError(f"path {os.fspath(path)} holds a description that cannot be read: {error}") from error
    for key, description in descriptions.items():
        if not isinstance(description, dict):
            raise ValueError(f"path {os.fspath(path)} holds a description that cannot be read: {key}, {description!r}")
    return tensors, descriptions


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove what killed processes left of files that they meant to rename to `path`."""
    path = Path(path)
    temporary = re.compile(rf"\.{re.escape(path.name)}\.\d+\.new")
    for leftover in path.parent.iterdir():
        if temporary.fullmatch(leftover.name):
            leftover.unlink(missing_ok=True)


def describe_model(model: nn.Module) -> Description:
    """What a model is to its file: what the builder was asked for, and the noise that it was trained with."""
    return {**getattr(model, "configuration", {}), "noise": repr(getattr(model, "noise", None))}


def describe_layers(model: nn.Module) -> Description:
    """What a model is to a run: every layer with what it says of itself, the divergence's weight among it."""
    return {name: f"{type(module).__name__}({module.extra_repr()})" for name, module in model.named_modules()}


def describe_tensors(tensors: dict[str, Tensor]) -> Description:
    """The type and the shape of each tensor."""
    return {name: f"{tensor.dtype} {list(tensor.shape)}".removeprefix("torch.") for name, tensor in tensors.items()}


def refuse_difference(path: str | os.PathLike[str], there: Description, here: Description) -> None:
    """Raise a ValueError that names the first entry of the file at `path` that differs from what is here."""
    there, here = json.loads(_to_json(there)), json.loads(_to_json(here))  # a tuple is a list in a file
    for key in sorted(there.keys() | here.keys()):
        if there.get(key) != here.get(key):
            raise ValueError(
                f"path {os.fspath(path)} does not fit: {key} is {there.get(key)} in the file and {here.get(key)} here"
            )


def _to_json(value: Any) -> str:
    return json.dumps(value, default=lambda number: number.item())  # NumPy's numbers as Python's


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header of a safetensors file, and the bytes of its tensors."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def _sorted(content: bytes) -> bytes:
    """Return the same file with its header in alphabetical order: safetensors puts metadata in any order."""
    header, tensors = _split(content)
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + tensors
