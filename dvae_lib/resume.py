"""Checkpoints of a run that is still going on: all that its remaining steps depend on, in one safetensors file.

The chapter "The training loop" explains what belongs to it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed, nn

from dvae_lib import files
from dvae_lib.devices import process_rank, random_states, set_random_states

if TYPE_CHECKING:
    from dvae_lib.training import Run, TrainingConfig

_FORMAT = "dvae_lib run 1"
_OPTIMIZER = ("step", "exp_avg", "exp_avg_sq")  # what Adam keeps for each parameter
_FREE = ("report_every", "checkpoint_every", "graph")  # what may change without changing the run


def save_run(path: str | os.PathLike[str], run: Run, done: int) -> None:
    """Write the state of `run` after `done` steps: weights, optimiser, protocol, random states of all processes.

    The learning rate needs no place of its own, as it follows from the number of steps. Rank 0 writes.

    Explained in the chapter "The training loop".
    """
    states = [random_states(run.model, run.device)]
    if run.processes > 1:
        own, states = states[0], [[] for _ in range(run.processes)]
        distributed.all_gather_object(states, own)
    if run.rank != 0:
        return
    tensors = {f"model.{name}": tensor for name, tensor in run.model.state_dict().items()}
    for name, parameter in run.model.named_parameters():
        for key in _OPTIMIZER:
            tensors[f"optimizer.{name}.{key}"] = run.optimizer.state[parameter][key]
    tensors["rows"] = run.rows[:done]
    for rank, of_rank in enumerate(states):
        tensors |= {f"random.{rank}.{i}": state for i, state in enumerate(of_rank)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    model, described = files.describe_model(run.model), _description(run.images, run.config)
    metadata = {"format": _FORMAT, "model": files.to_json(model), "run": files.to_json(described)}
    files.write_tensors(path, tensors, metadata)


def load_run(
    path: str | os.PathLike[str], model: nn.Module, images: Tensor, config: TrainingConfig
) -> dict[str, Tensor] | None:
    """Return the tensors that `save_run` wrote to `path`, after checking that they continue this run; None without.

    What a killed process left beside `path` of a file that it had not finished is removed.

    Raises:
        ValueError: the file is damaged, or of another model, other images, another configuration or another number
            of processes; the message names what differs.
    """
    if process_rank()[0] == 0:
        files.remove_leftovers(path)
    if not os.path.exists(path):
        return None
    tensors, metadata = files.read_tensors(path, _FORMAT)
    try:
        model_there, run_there = json.loads(metadata["model"]), json.loads(metadata["run"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"path {os.fspath(path)} holds no description that can be read: {error}") from error
    files.refuse_another_model(path, model_there, model)
    run_here = json.loads(files.to_json(_description(images, config)))
    for key in sorted(run_there.keys() | run_here.keys()):
        if run_there.get(key) != run_here.get(key):
            raise ValueError(
                f"path {os.fspath(path)} belongs to another run: it was made with {key} = {run_there.get(key)}, "
                f"this one has {key} = {run_here.get(key)}; remove the file to start afresh"
            )
    prefix = "model."
    weights = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
    files.refuse_other_shapes(path, weights, model)
    needed = {"rows", f"random.{process_rank()[0]}.0"}
    needed |= {f"optimizer.{name}.{key}" for name, _ in model.named_parameters() for key in _OPTIMIZER}
    if missing := sorted(needed - tensors.keys()):
        raise ValueError(f"path {os.fspath(path)} lacks {missing[0]}")
    return tensors


def restore_run(run: Run, tensors: dict[str, Tensor]) -> int:
    """Put what `load_run` returned into `run`, and return the number of steps made."""
    run.model.load_state_dict({name: tensors[f"model.{name}"] for name in run.model.state_dict()})
    for name, parameter in run.model.named_parameters():
        state = {key: tensors[f"optimizer.{name}.{key}"].to(run.device) for key in _OPTIMIZER}
        run.optimizer.state[parameter] = state
    done = len(tensors["rows"])
    run.rows[:done] = tensors["rows"].to(run.device)
    run.step.fill_(done)
    own = sorted(
        (int(name.split(".")[2]), state) for name, state in tensors.items() if name.startswith(f"random.{run.rank}.")
    )
    set_random_states([state for _, state in own], run.model, run.device)
    return done


def _description(images: Tensor, config: TrainingConfig) -> dict[str, object]:
    """What must agree, beside the model, between a checkpoint and the run that goes on from it."""
    return {
        **{name: value for name, value in asdict(config).items() if name not in _FREE},
        "images": f"{list(images.shape)}, sum {images.sum(dtype=torch.float64).item():.6g}",
        "processes": process_rank()[1],
    }
