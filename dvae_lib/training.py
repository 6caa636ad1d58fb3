"""The training loop: one function for every model, on CPU and GPU, and the protocol that it returns.

The chapter "The training loop" develops it; source: the listing of Stutz's article.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from dvae_lib._checks import check_image_shape, check_image_values, check_integer, check_number
from dvae_lib.models import VariationalAutoencoder

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
        precision: of the matrix products: "float32"; "tf32", where the device has it; or "bfloat16" (autocast).
        hidden_size: the width that the run's networks are built with; `train` takes the model as it is.
        seed: of the batches, the noise and the codes; a layer with a generator of its own keeps to that.
        report_every: steps between two reports, the only moments at which the host waits for the device.

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

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "hidden_size", "report_every"):
            check_integer(name, getattr(self, name))
        check_integer("seed", self.seed, 0)
        check_number("decay", self.decay, 0)
        if check_number("learning_rate", self.learning_rate, 0) == 0:
            raise ValueError("learning_rate must be greater than 0, got 0")
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


def default_device() -> torch.device:
    """Return the accelerator that PyTorch finds (a GPU, say), or the CPU: the one place that chooses."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def train(
    model: VariationalAutoencoder,
    images: Tensor,
    config: TrainingConfig,
    *,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Protocol:
    """Minimise reconstruction + divergence, summed over the batch, with Adam.

    The images move to the device once; batches, noise and codes are drawn there, and the host waits for the
    device only when it reports, every `config.report_every` steps. Interrupted (Ctrl-C), the run ends early
    and returns what it has. The model is left on the device, in eval mode.

    Args:
        model: a `VariationalAutoencoder`, or a module with the same `forward`, `.kl` and `.posterior`.
        images: (n, channels, height, width), floating-point, in [0, 1].
        config: the run.
        device: where to train; None takes `default_device()`.
        progress: show a progress bar, unless the environment variable TQDM_DISABLE is set.

    Returns:
        The protocol, with a row for every step made.

    Raises:
        TypeError, ValueError: an argument does not fit; the model is untouched.
        FloatingPointError: the loss or a weight stopped being finite; the message names the step, and the model
            holds the weights of the last report before it.

    Developed in the chapter "The training loop"; source: the listing of Stutz's article.
    """
    _check_arguments(model, images, config)
    device = default_device() if device is None else torch.device(device)
    with _seeded(config.seed), _matmul_precision(config.precision):
        model.to(device).train()
        images = images.to(device, next(model.parameters()).dtype)
        optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
        rows = torch.zeros(config.steps, len(fields(Protocol)), device=device)
        good = [tensor.clone() for tensor in model.state_dict().values()]
        done = reported = 0
        bar = _progress_bar(config, progress)
        try:
            for step in range(config.steps):
                batch = images[torch.randint(len(images), (config.batch_size,), device=device)]
                rows[step] = training_step(model, batch, optimizer, config, config.learning_rate_at(step))
                done = step + 1
                if done % config.report_every == 0 or done == config.steps:
                    _check_finite(model, rows[reported:done], reported, good)
                    reconstruction, kl = rows[reported:done, :2].mean(0).tolist()
                    bar.set_postfix(reconstruction=f"{reconstruction:.2f}", kl=f"{kl:.2f}", refresh=False)
                    bar.update((done - reported) * config.batch_size)
                    reported = done
        except KeyboardInterrupt:
            bar.set_description(f"interrupted after {done} steps")
            _check_finite(model, rows[reported:done], reported, good)
        finally:
            bar.close()
            model.eval()
    return Protocol(*rows[:done].cpu().numpy().T)


def training_step(
    model: VariationalAutoencoder, batch: Tensor, optimizer: torch.optim.Optimizer, config: TrainingConfig, rate: float
) -> Tensor:
    """Update the model once on `batch`, (n, channels, height, width), and return the protocol's row, (6,).

    The objective is summed over the batch, in nats; the row is per image. Nothing here waits for the device.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        logits = model(batch)  # the shape of batch
    reconstruction = functional.binary_cross_entropy_with_logits(logits.float(), batch, reduction="sum")
    optimizer.zero_grad(set_to_none=True)
    (reconstruction + model.kl).backward()
    optimizer.step()
    mean, log_variance = model.posterior[0].float(), model.posterior[-1].float()  # each (n, code)
    return torch.stack(
        [
            reconstruction.detach() / len(batch),
            model.kl.detach() / len(batch),
            mean.mean(),
            log_variance.std(correction=min(1, log_variance.numel() - 1)),  # of a single entry 0, not NaN
            log_variance.mean(),
            torch.full((), rate, device=batch.device),
        ]
    )


def _check_arguments(model: VariationalAutoencoder, images: Tensor, config: TrainingConfig) -> None:
    """Refuse what cannot be trained on, before anything has changed."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if next(model.parameters(), None) is None:
        raise ValueError(f"model must have parameters to train, got {type(model).__name__} without any")
    if not isinstance(config, TrainingConfig):
        raise TypeError(f"config must be a TrainingConfig, got {type(config).__name__}")
    check_image_values("images", check_image_shape("images", images))
    configuration = getattr(model, "configuration", {})
    check_image_shape("images", images, configuration.get("image_shape"))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the default generators, those of all devices, and give the caller's random state back at the end."""
    accelerator = torch.accelerator.current_accelerator() or torch.device("cpu")
    with torch.random.fork_rng(range(torch.accelerator.device_count()), device_type=accelerator.type):
        torch.manual_seed(seed)
        yield


@contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    """Let float32 matrix products use TF32 for the time of a run, where that is asked for."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _progress_bar(config: TrainingConfig, progress: bool) -> tqdm:
    # tqdm's notebook bar overlooks TQDM_DISABLE, its plain bar does not
    disable = not progress or os.environ.get("TQDM_DISABLE", "") not in ("", "0")
    return tqdm(total=config.steps * config.batch_size, unit=" images", unit_scale=True, disable=disable)


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
