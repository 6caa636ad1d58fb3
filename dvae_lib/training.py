"""The training loop: one function for every model, on CPU and GPU, and the protocol that it returns.

The chapter "The training loop" develops it, and "The speed of a step" makes it fast; source: the listing of
Stutz's article.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from dvae_lib._checks import check_image_shape, check_image_values, check_integer, check_number
from dvae_lib.devices import (
    CapturedStep,
    default_device,
    effective_precision,
    keep_freed_memory,
    layer_generators,
    matmul_precision,
    process_rank,
    seeded,
)
from dvae_lib.models import VariationalAutoencoder
from dvae_lib.resume import describe_run, load_run, restore_run, save_run

SCHEDULES = ("inverse_time", "cosine")
PRECISIONS = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True)
class TrainingConfig:
    """What a training run is: the same configuration, model seed and machine give the same weights.

    Args:
        steps: parameter updates.
        batch_size: images an update, drawn with replacement.
        learning_rate: Adam's, before the schedule; betas (0.9, 0.999) and eps 1e-8 are Adam's defaults.
        schedule: "inverse_time", lr / (1 + decay t), or "cosine", lr (1 + cos(pi t / steps)) / 2, at t = 0, 1, ...
        decay: of the inverse-time schedule, per step.
        precision: of the matrix products: "float32"; "tf32" or "bfloat16" (autocast), where the device has them.
        hidden_size: the width that the run's networks are built with; `train` takes the model as it is.
        seed: of the batches, the noise and the codes; a layer with a generator of its own keeps to that.
        report_every: steps between two reports, the only moments at which the host waits for the device.
        checkpoint_every: steps between two checkpoints, of a run that writes them; they wait for a report.
        graph: capture the step as a graph and replay it, where the device can (CUDA, one process).

    Raises:
        TypeError, ValueError: an entry of a wrong type or out of range; the message names it.

    Explained in the chapter "The training loop"; source: the listing of Stutz's article.
    """

    steps: int = 31_250
    batch_size: int = 16
    learning_rate: float = 1e-3
    schedule: str = "inverse_time"
    decay: float = 1e-4
    precision: str = "float32"
    hidden_size: int = 1152
    seed: int = 0
    report_every: int = 50
    checkpoint_every: int = 1_000
    graph: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "hidden_size", "report_every", "checkpoint_every"):
            check_integer(name, getattr(self, name))
        check_integer("seed", self.seed, 0)
        check_number("decay", self.decay, 0)
        if check_number("learning_rate", self.learning_rate, 0) == 0:
            raise ValueError("learning_rate must be greater than 0, got 0")
        if not isinstance(self.graph, bool):
            raise TypeError(f"graph must be True or False, got {type(self.graph).__name__} {self.graph!r}")
        for name, allowed in (("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")

    @classmethod
    def article(cls) -> TrainingConfig:
        """The article's run: 31,250 steps of 16 images, lr 1e-3 / (1 + 1e-4 t), hidden layers of 1152."""
        return cls()

    @classmethod
    def quick(cls) -> TrainingConfig:
        """A run for a CPU: 4,000 steps of 64 images, a cosine schedule from lr 2e-3, hidden layers of 256."""
        return cls(steps=4_000, batch_size=64, learning_rate=2e-3, schedule="cosine", hidden_size=256)

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of step `step` = 0, 1, ..., `steps` - 1."""
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate / (1 + self.decay * step)


@dataclass(frozen=True)
class Protocol:
    """What a run measured, a row a step, in named columns of shape (steps,).

    Args:
        reconstruction: binary cross-entropy of the batch before the update, in nats, per image.
        kl: divergence of the batch, in nats, per image, with the divergence layer's weight.
        mean: mean of the posterior means over batch and code.
        log_variance_std: standard deviation of the log-variances over batch and code.
        log_variance_mean: mean of the log-variances over batch and code.
        learning_rate: of the update.

    Explained in the chapter "The training loop"; source: the protocol of Stutz's listing.
    """

    reconstruction: NDArray[np.float32]
    kl: NDArray[np.float32]
    mean: NDArray[np.float32]
    log_variance_std: NDArray[np.float32]
    log_variance_mean: NDArray[np.float32]
    learning_rate: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.reconstruction)

    def __repr__(self) -> str:
        return f"Protocol of {len(self)} steps: {', '.join(self.to_dict())}"

    def to_dict(self) -> dict[str, NDArray[np.float32]]:
        """Return the columns by name, each (steps,)."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to_numpy(self) -> NDArray[np.float32]:
        """Return all columns as one array, (steps, 6), in the order of `to_dict`."""
        return np.stack(list(self.to_dict().values()), axis=1)


def train(
    model: VariationalAutoencoder,
    images: Tensor,
    config: TrainingConfig,
    *,
    device: torch.device | str | None = None,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Protocol:
    """Minimise reconstruction + divergence, summed over the batch, with Adam.

    The images move to the device once; batches, noise and codes are drawn there, and the host waits for the
    device only when it reports, every `config.report_every` steps. Interrupted (Ctrl-C), the run ends early
    and returns what it has. The model is left on the device, in eval mode.

    With `checkpoint`, the state of the run is written there every `config.checkpoint_every` steps. If the file is
    there at the start, the run goes on from it: killed and called again, it ends with the weights of a run that
    was never killed, on the CPU to the last bit.

    Under torchrun, with torch.distributed initialised, the processes share each batch, draw each their own
    images, noise and codes, and average their gradients; rank 0 alone reports and writes.

    Args:
        model: a `VariationalAutoencoder`, or a module with the same `forward`, `.kl` and `.posterior`.
        images: (n, channels, height, width), floating-point, in [0, 1].
        config: the run.
        device: where to train; None takes `default_device()`.
        progress: show a progress bar, unless the environment variable TQDM_DISABLE is set.
        checkpoint: a file that the run writes and, when it is there, goes on from.

    Returns:
        The protocol, with a row for every step made; of several processes, the mean of their rows.

    Raises:
        TypeError, ValueError: an argument does not fit, or the checkpoint; the model is untouched.
        FloatingPointError: the loss or a weight stopped being finite; the message names the step, and the model
            holds the weights of the last report before it.

    Developed in the chapter "The training loop"; source: the listing of Stutz's article.
    """
    _check_arguments(model, images, config)
    device = default_device() if device is None else torch.device(device)
    rank, processes = process_rank()
    described = {} if checkpoint is None else describe_run(images, config)
    restored = None if checkpoint is None else load_run(checkpoint, model, described, device)
    precision = effective_precision(config.precision, device)
    if device.type == "cpu":
        keep_freed_memory()
    with seeded(config.seed, rank), matmul_precision(precision):
        run = Run(model.to(device).train(), images, config, precision, device)
        done = restore_run(run, restored) if restored else 0
        step: Callable[[], None] = partial(training_step, run)
        if run.captured:
            step = CapturedStep(step, device, layer_generators(model))
        good = [tensor.clone() for tensor in model.state_dict().values()]
        reported = saved = done
        bar = _progress_bar(run, done, progress and rank == 0)
        try:
            while done < config.steps:
                step()
                done += 1
                if done % config.report_every == 0 or done == config.steps:
                    run.average_rows(reported, done)
                    _check_finite(model, run.rows[reported:done], reported, good)
                    reconstruction, kl = run.rows[reported:done, :2].mean(0).tolist()
                    bar.set_postfix(reconstruction=f"{reconstruction:.2f}", kl=f"{kl:.2f}", refresh=False)
                    bar.update((done - reported) * config.batch_size)
                    reported = done
                    if checkpoint is not None and (done - saved >= config.checkpoint_every or done == config.steps):
                        save_run(checkpoint, run, done, described)
                        saved = done
        except KeyboardInterrupt:
            if processes > 1:
                raise  # the others are in the middle of another step
            bar.set_description(f"interrupted after {done} steps")
            _check_finite(model, run.rows[reported:done], reported, good)
        finally:
            bar.close()
            model.eval()
    return Protocol(*run.rows[:done].cpu().numpy().T)


class Run:
    """All that a step reads and writes. It stays in its place on the device, so that a step can be captured."""

    def __init__(
        self,
        model: VariationalAutoencoder,
        images: Tensor,
        config: TrainingConfig,
        precision: str,
        device: torch.device,
    ) -> None:
        self.model, self.config, self.precision, self.device = model, config, precision, device
        self.rank, self.processes = process_rank()
        self.images = images.to(device, next(model.parameters()).dtype)  # (N, channels, height, width)
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        # processes average their gradients: times their number, that is the sum over the joined batch
        self.factor = torch.tensor(float(self.processes), device=device)  # ()
        rates = [config.learning_rate_at(step) for step in range(config.steps)]
        self.rates = torch.tensor(rates, dtype=torch.float32, device=device)  # (steps,)
        self.rows = torch.zeros(config.steps, len(fields(Protocol)), device=device)  # (steps, 6)
        self.captured = config.graph and device.type == "cuda" and self.processes == 1
        self.optimizer = torch.optim.Adam(
            model.parameters(), lr=self.rates[0].clone(), fused=True, capturable=self.captured
        )
        self.forward: Callable[[Tensor], Tensor] = model
        if self.processes > 1:
            self.forward = DistributedDataParallel(model, gradient_as_bucket_view=True)

    def average_rows(self, first: int, last: int) -> None:
        """Replace the rows of the steps from `first` up to `last` by their means over the processes."""
        if self.processes > 1:
            distributed.all_reduce(self.rows[first:last])
            self.rows[first:last] /= self.processes


def training_step(run: Run) -> None:
    """Draw a batch, update the model once, note the protocol's row: the same for every device, captured or not.

    The objective is summed over the batch, in nats; the row is per image. Nothing here waits for the device.
    """
    model, optimizer = run.model, run.optimizer
    size = run.config.batch_size // run.processes
    batch = run.images[torch.randint(len(run.images), (size,), device=run.device)]  # (n, channels, height, width)
    rate = run.rates.index_select(0, run.step).squeeze(0)  # (1,) -> ()
    for group in optimizer.param_groups:
        group["lr"].copy_(rate)
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.precision == "bfloat16"):
        logits = run.forward(batch)  # the shape of batch
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # not in the 8 bits of bfloat16
    reconstruction = functional.binary_cross_entropy_with_logits(logits, batch, reduction="sum")
    optimizer.zero_grad(set_to_none=True)
    (reconstruction + model.kl).backward(run.factor)
    optimizer.step()
    mean, log_variance = model.posterior[0].float(), model.posterior[-1].float()  # each (n, code)
    correction = min(1, log_variance.numel() - 1)  # the deviation of a single entry is 0, not NaN
    log_variance_std, log_variance_mean = torch.std_mean(log_variance, correction=correction)
    row = torch.stack(
        [
            reconstruction.detach() / size,
            model.kl.detach() / size,
            mean.mean(),
            log_variance_std,
            log_variance_mean,
            rate,
        ]
    )
    run.rows.index_copy_(0, run.step, row.unsqueeze(0).to(run.rows.dtype))  # (6,) -> (1, 6)
    run.step += 1


def _check_arguments(model: VariationalAutoencoder, images: Tensor, config: TrainingConfig) -> None:
    """Refuse what cannot be trained on, before anything has changed."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if next(model.parameters(), None) is None:
        raise ValueError(f"model must have parameters to train, got {type(model).__name__} without any")
    if not isinstance(config, TrainingConfig):
        raise TypeError(f"config must be a TrainingConfig, got {type(config).__name__}")
    if config.batch_size % process_rank()[1]:
        raise ValueError(f"batch_size must be a multiple of {process_rank()[1]} processes, got {config.batch_size}")
    check_image_values("images", check_image_shape("images", images))
    configuration = getattr(model, "configuration", {})
    check_image_shape("images", images, configuration.get("image_shape"))


def _progress_bar(run: Run, done: int, progress: bool) -> tqdm:
    # tqdm's notebook bar overlooks TQDM_DISABLE, its plain bar does not
    disable = not progress or os.environ.get("TQDM_DISABLE", "") not in ("", "0")
    size = run.config.batch_size
    how = f"{run.precision}, captured" if run.captured else run.precision
    return tqdm(
        desc=how, total=run.config.steps * size, initial=done * size, unit=" images", unit_scale=True, disable=disable
    )


def _check_finite(model: VariationalAutoencoder, rows: Tensor, first: int, good: list[Tensor]) -> None:
    """Copy finite weights into `good`; if they or `rows`, of the steps from `first` on, are not, undo and raise."""
    weights = list(model.state_dict().values())  # views: to write to them is to write to the model
    finite = rows.isfinite().all(1).tolist()  # waits for the device
    if not all(finite):
        problem = f"the loss stopped being finite at step {first + finite.index(False)}"
    elif not torch.stack([weight.isfinite().all() for weight in weights]).all():
        problem = f"a weight stopped being finite by step {first + len(rows) - 1}"
    else:
        torch._foreach_copy_(good, weights)
        return
    torch._foreach_copy_(weights, good)
    raise FloatingPointError(
        f"{problem}; the model holds its weights of before step {first}. A lower learning_rate may help."
    )
