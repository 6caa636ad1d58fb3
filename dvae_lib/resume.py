"""Checkpoints of a run that is still going on: all that its remaining steps depend on, in one safetensors file.

The chapter "The training loop" explains what belongs to it.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn

from dvae_lib import files
from dvae_lib.devices import process_rank, random_states, set_random_states

if TYPE_CHECKING:
    from dvae_lib.training import Run, TrainingConfig

_FORMAT = "dvae_lib run 1"
_OPTIMIZER = ("step", "exp_avg", "exp_avg_sq")  # what Adam keeps for each parameter
_FREE = ("report_every", "checkpoint_every", "graph")  # what may change without changing the run


def describe_run(images: Tensor, config: TrainingConfig) -> dict[str, Any]:
    """What must agree, beside the model, between a checkpoint and the run that goes on from it."""
    pixels = images.detach().to("cpu", torch.float32).numpy().tobytes()
    described = {
        **{name: value for name, value in asdict(config).items() if name not in _FREE},
        "images": f"{list(images.shape)}, SHA-256 {hashlib.sha256(pixels).hexdigest()[:16]}",
        "processes": process_rank()[1],
    }
    return json.loads(files.to_json(described))


def save_run(path: str | os.PathLike[str], run: Run, done: int, described: dict[str, Any]) -> None:
    """Write the state of `run` after `done` steps: weights, optimiser, protocol, random states of all processes.

    The learning rate needs no place of its own, as it follows from the number of steps. Rank 0 writes, and the
    others wait until the file is whole.

    Explained in the chapter "The training loop".
    """
    states = [random_states(run.model, run.device)]
    if run.processes > 1:
        own, states = states[0], [[] for _ in range(run.processes)]
        distributed.all_gather_object(states, own)
    if run.rank == 0:
        tensors = {f"model.{name}": tensor for name, tensor in run.model.state_dict().items()}
        for name, parameter in run.model.named_parameters():
            # a parameter that never had a gradient has no moments
            state = run.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{name}.{key}": state[key] for key in _OPTIMIZER if state}
        tensors["rows"] = run.rows[:done]
        for rank, of_rank in enumerate(states):
            tensors |= {f"random.{rank}.{i}": state for i, state in enumerate(of_rank)}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        model = files.to_json(files.describe_model(run.model))
        files.write_tensors(path, tensors, {"format": _FORMAT, "model": model, "run": files.to_json(described)})
    if run.processes > 1:
        distributed.barrier()


def load_run(
    path: str | os.PathLike[str], model: nn.Module, described: dict[str, Any], device: torch.device
) -> dict[str, Tensor] | None:
    """Return the tensors that `save_run` wrote to `path`, after checking that they continue this run; None without.

    What a killed process left beside `path` of a file that it had not finished is removed.

    Raises:
        ValueError: the file is damaged, or of another model, other images, another configuration, another kind of
            device or another number of processes; the message names what differs. Or its folder does not exist.
    """
    if not Path(path).parent.is_dir():
        raise ValueError(f"checkpoint must lie in a folder that exists, got {os.fspath(path)}")
    if process_rank()[0] == 0:
        files.remove_leftovers(path)
    if not os.path.exists(path):
        return None
    tensors, metadata = files.read_tensors(path, _FORMAT)
    model_there, run_there = (files.read_description(path, metadata, key) for key in ("model", "run"))
    files.refuse_another_model(path, model_there, model)
    for key, there, here in files.differences(run_there, described):
        raise ValueError(
            f"path {os.fspath(path)} belongs to another run: it was made with {key} = {there}, "
            f"this one has {key} = {here}; remove the file to start afresh"
        )
    _refuse_other_tensors(path, tensors, model, described["steps"], device)
    return tensors


def restore_run(run: Run, tensors: dict[str, Tensor]) -> int:
    """Put what `load_run` returned into `run`, and return the number of steps made."""
    run.model.load_state_dict({name: tensors[f"model.{name}"] for name in run.model.state_dict()})
    for name, parameter in run.model.named_parameters():
        if f"optimizer.{name}.step" in tensors:
            state = {key: tensors[f"optimizer.{name}.{key}"].to(run.device) for key in _OPTIMIZER}
            run.optimizer.state[parameter] = state
    done = len(tensors["rows"])
    run.rows[:done] = tensors["rows"].to(run.device)
    run.step.fill_(done)
    own = sum(name.startswith(f"random.{run.rank}.") for name in tensors)
    set_random_states([tensors[f"random.{run.rank}.{i}"] for i in range(own)], run.model, run.device)
    return done


def _refuse_other_tensors(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], model: nn.Module, steps: int, device: torch.device
) -> None:
    """Raise a ValueError if a tensor of the file is not one of this run, or of another type or shape."""
    wanted = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        if any(f"optimizer.{name}.{key}" in tensors for key in _OPTIMIZER):
            values = torch.tensor(0.0), parameter, parameter
            wanted |= {f"optimizer.{name}.{key}": value for key, value in zip(_OPTIMIZER, values, strict=True)}
    own = f"random.{process_rank()[0]}."
    wanted |= {f"{own}{i}": state for i, state in enumerate(random_states(model, device))}
    rows = tensors.get("rows", torch.empty(0))
    wanted["rows"] = torch.empty(min(len(rows), steps) if rows.ndim else 0, 6)
    of_others = [name for name in tensors if name.startswith("random.") and not name.startswith(own)]
    stored = {name: _kind(tensor) for name, tensor in tensors.items() if name not in of_others}
    for name, there, here in files.differences(stored, {name: _kind(tensor) for name, tensor in wanted.items()}):
        raise ValueError(
            f"path {os.fspath(path)} does not fit the run: {name} is {there or 'missing'} in the file, "
            f"{here or 'missing'} here"
        )


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
