"""A run: all that a step reads and writes, in its place on the device, and the state that the run goes on from."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from dvae_lib.configuration import BernoulliProtocol, Protocol, TrainingConfig
from dvae_lib.runs import files
from dvae_lib.runs.capture import drop_graphs, may_capture
from dvae_lib.runs.devices import all_or_none, effective_precision, gathered, matmul_precision, process_rank
from dvae_lib.runs.randomness import layer_generators, lent, run_generator

_FREE = ("report_every", "checkpoint_every", "graph")  # what may change without changing the run


class Run:
    """All that a step reads and writes. It stays in its place on the device, so that a step can be captured.

    To make one leaves the model as it is. `with run.active():` puts the model on the device and in train mode.
    """

    def __init__(self, model: nn.Module, images: Tensor, config: TrainingConfig, device: torch.device) -> None:
        self.model: Any = model
        self.modules = list(model.modules())
        self.config, self.device = config, device
        self.rank, self.processes = process_rank()
        self.precision = effective_precision(config.precision, device)
        self.captured = config.graph and self.processes == 1 and may_capture(model, device)
        self.images = images.to(device, next(model.parameters()).dtype)  # (N, channels, height, width)
        self.layers = files.describe_layers(model)  # as the run begins: a momentary value is no part of what it is
        self.generators = [run_generator(config.seed, self.rank, device), *layer_generators(model)]
        self.generator = self.generators[0]
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        # processes average their gradients: times their number, that is the sum over the joined batch
        self.factor = torch.tensor(float(self.processes), device=device)  # ()
        schedule = [(config.learning_rate_at(step), config.kl_weight_at(step)) for step in range(config.steps)]
        self.schedule = torch.tensor(schedule, dtype=torch.float32, device=device)  # (steps, 2)
        self.samplers: list[Any] = [module for module in self.modules if hasattr(module, "temperature")]
        firsts, steps = [sampler.temperature for sampler in self.samplers], range(config.steps)
        temperatures = [[config.temperature_at(step, first) for step in steps] for first in firsts]
        self.temperatures = torch.tensor(temperatures, dtype=torch.float32, device=device)  # (samplers, steps)
        # what has a temperature relaxes a code that is given by logits
        self.columns: Callable[..., Any] = BernoulliProtocol if self.samplers else Protocol
        self.rows = torch.zeros(config.steps, len(fields(Protocol)), device=device)  # (steps, 6)
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=self.schedule[0, 0].clone(),
            weight_decay=config.weight_decay,
            fused=True,
            capturable=self.captured,
        )
        for parameter in model.parameters():
            moments = {key: torch.zeros_like(parameter, device=device) for key in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": torch.zeros((), device=device)} | moments
        self.forward: Callable[[Tensor], Tensor] = model
        self.good: list[Tensor] = []  # the weights of the last report

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Have the model on the device, in train mode, drawing from the run's generator; an error undoes half a step.

        At the end the model is in eval mode, on the device, with its layers' generators as they were. If an error ended
        the run, it holds the weights of the last report.
        """
        try:
            self.model.to(self.device).train()
            if self.processes > 1:
                self.forward = DistributedDataParallel(self.model, gradient_as_bucket_view=True)
            self.good = [weight.clone() for weight in self._weights()]
            # a caller's autocast ends here; that of the step is its own
            with (
                lent(self.generator, self.model),
                matmul_precision(self.precision),
                torch.autocast(self.device.type, enabled=False),
            ):
                yield
        except BaseException:
            if self.good:  # none if the run did not come so far
                torch._foreach_copy_(self._weights(), self.good)
            raise
        finally:
            drop_graphs(self.modules)
            self.model.eval()

    def state(self) -> dict[str, Tensor]:
        """Return what the remaining steps depend on: weights, Adam's moments, the protocol, all random states.

        The learning rate needs no place of its own, as it follows from the number of rows. All processes must call.
        """
        tensors = dict(self.model.state_dict())
        for name, parameter in self.model.named_parameters():
            adam = self.optimizer.state[parameter].items()
            tensors |= {f"{files.RUN}optimizer/{name}/{key}": value for key, value in adam}
        tensors[f"{files.RUN}rows"] = self.rows[: self.done]
        for rank, states in enumerate(gathered([generator.get_state() for generator in self.generators])):
            tensors |= {f"{files.RUN}random/{rank}/{i}": state for i, state in enumerate(states)}
        return tensors

    def load(self, state: dict[str, Tensor]) -> None:
        """Take what `state` of the same run gave."""
        self.model.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith(files.RUN)})
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                value.copy_(state[f"{files.RUN}optimizer/{name}/{key}"])
        rows = state[f"{files.RUN}rows"]
        self.rows[: len(rows)] = rows.to(self.device)
        self.step.fill_(len(rows))
        for i, generator in enumerate(self.generators):
            generator.set_state(state[f"{files.RUN}random/{self.rank}/{i}"])
        torch._foreach_copy_(self.good, self._weights())

    @property
    def done(self) -> int:
        """The number of steps made; to ask is to wait for the device."""
        return int(self.step)

    def protocol(self, first: int, last: int) -> Protocol:
        """Return the rows of the steps from `first` up to `last`; of several processes, the mean of their rows.

        Raises:
            FloatingPointError: one of the rows, or a weight, is not finite. Otherwise the weights are kept, to fall
                back on.
        """
        if self.processes > 1:
            distributed.all_reduce(self.rows[first:last])
            self.rows[first:last] /= self.processes
        rows = self.rows[first:last].cpu()
        self._keep_if_finite(rows, first)
        return self.columns(*rows.numpy().T)

    def _keep_if_finite(self, rows: Tensor, first: int) -> None:
        weights, finite = self._weights(), rows.isfinite().all(1).tolist()
        if not all(finite):
            problem = f"the loss stopped being finite at step {first + finite.index(False)}"
        elif not torch.stack([weight.isfinite().all() for weight in weights]).all():
            problem = f"a weight stopped being finite by step {first + len(rows) - 1}"
        else:
            torch._foreach_copy_(self.good, weights)
            return
        raise FloatingPointError(
            f"{problem}; the model holds its weights of before step {first}. A lower learning_rate may help."
        )

    def _weights(self) -> list[Tensor]:
        return list(self.model.state_dict().values())  # views: to write to them is to write to the model

    # the file of a run

    def descriptions(self) -> dict[str, files.Description]:
        """What the file says of the run: the model, the configuration, and what else makes it this run."""
        pixels = self.images.detach().to("cpu", torch.float32).numpy().tobytes()
        images = f"{list(self.images.shape)}, SHA-256 {hashlib.sha256(pixels).hexdigest()[:16]}"
        run = {"images": images, "processes": self.processes, "layers": self.layers}
        return {"model": files.describe_model(self.model), "training": asdict(self.config), "run": run}

    def write(self, path: str | os.PathLike[str], descriptions: dict[str, files.Description]) -> None:
        """Write the run's state to `path`: rank 0 does, and the others wait until the file is whole."""
        state = self.state()
        all_or_none(lambda: files.write(path, state, descriptions) if self.rank == 0 else None)

    def read(
        self, path: str | os.PathLike[str], descriptions: dict[str, files.Description]
    ) -> dict[str, Tensor] | None:
        """Return the state at `path` after seeing that it continues this run; None where there is no file yet.

        What a killed process left beside `path` of a file that it had not finished is removed.

        Raises:
            ValueError: in all processes alike. The file is damaged, holds a model alone, or is of another run; or its
                folder does not exist, or some of the processes see the file and others do not.
        """
        there = gathered(all_or_none(lambda: _is_there(path)))
        if self.rank == 0:
            files.remove_leftovers(path)
        if any(there) and not all(there):
            raise ValueError(
                f"checkpoint must be seen by all processes or by none, got {os.fspath(path)}, which is not there for "
                f"rank {there.index(False)}"
            )
        if not any(there):
            return None
        here = self.state()
        return all_or_none(lambda: _read_state(path, descriptions, here, self.config.steps))


def _is_there(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file at `path`, in a folder that must exist."""
    if not Path(path).parent.is_dir():
        raise ValueError(f"checkpoint must lie in a folder that exists, got {os.fspath(path)}")
    return os.path.exists(path)


def _read_state(
    path: str | os.PathLike[str],
    descriptions: dict[str, files.Description],
    here: dict[str, Tensor],
    steps: int,
) -> dict[str, Tensor]:
    """Return the state at `path` if its descriptions are these, and its tensors of the types and shapes of `here`."""
    there, stored = files.read(path)
    if "run" not in stored:
        raise ValueError(f"path {os.fspath(path)} does not fit: it holds a model, and no run to go on with")
    for key, wanted in descriptions.items():
        found = dict(stored.get(key, {}))
        if key == "run":  # its layers stand below the others, each by its name
            found, wanted = ({**one, **one.get("layers", {}), "layers": None} for one in (found, wanted))
        left_out = _FREE if key == "training" else ()
        files.refuse_difference(
            path, *({name: value for name, value in one.items() if name not in left_out} for one in (found, wanted))
        )
    rows = there.get(f"{files.RUN}rows", torch.zeros(0))
    wanted_rows = torch.zeros(min(len(rows), steps) if rows.ndim else 0, here[f"{files.RUN}rows"].shape[1])
    files.refuse_difference(
        path, files.describe_tensors(there), files.describe_tensors({**here, f"{files.RUN}rows": wanted_rows})
    )
    return there
