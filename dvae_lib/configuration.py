"""What a training run is, and what it leaves: the configuration and the protocol.

The chapter "The training loop" explains both; source: the listing of Stutz's article.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from dvae_lib._checks import check_integer, check_number

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
        weight_decay: a step shrinks each weight by this times the learning rate (AdamW, Loshchilov and Hutter, 2019).
        kl_warm_up: steps over which the factor on the divergence rises from 0 to 1; 0 for 1 from the start.
        final_temperature: to which that of a Concrete sampler falls, by the same factor a step; None keeps its own.
        precision: of the matrix products: "float32"; "tf32" or "bfloat16" (autocast), where the device has them.
        hidden_size: the width that the run's networks are built with; `train` takes the model as it is.
        seed: of the batches, the noise and the codes; a layer with a generator of its own keeps to that.
        report_every: steps between two reports, the only moments at which the host waits for the device.
        checkpoint_every: steps between two checkpoints, of a run that writes them; they wait for a report.
        graph: capture the step as a graph and replay it, where the device can (CUDA, one process, no hooks). A captured
            step is made of operations: numbers and attributes of Python stay as they were when it was captured, so
            that what changes during a run must be a schedule of this configuration, or a tensor on the device.

    Raises:
        TypeError, ValueError: an entry of a wrong type or out of range; the message names it.
    """

    steps: int = 31_250
    batch_size: int = 16
    learning_rate: float = 1e-3
    schedule: str = "inverse_time"
    decay: float = 1e-4
    weight_decay: float = 0.0
    kl_warm_up: int = 0
    final_temperature: float | None = None
    precision: str = "float32"
    hidden_size: int = 1152
    seed: int = 0
    report_every: int = 50
    checkpoint_every: int = 1_000
    graph: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "hidden_size", "report_every", "checkpoint_every"):
            check_integer(name, getattr(self, name))
        check_integer("seed", self.seed, 0, 2**64 - 1)  # what a generator takes
        check_integer("kl_warm_up", self.kl_warm_up, 0)
        for name in ("decay", "weight_decay"):
            check_number(name, getattr(self, name), 0)
        if check_number("learning_rate", self.learning_rate, 0) == 0:
            raise ValueError("learning_rate must be greater than 0, got 0")
        if self.final_temperature is not None and check_number("final_temperature", self.final_temperature, 0) == 0:
            raise ValueError("final_temperature must be greater than 0, got 0")
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

    def kl_weight_at(self, step: int) -> float:
        """Return the factor on the divergence in step `step`, beside the divergence layer's own weight."""
        return min(1.0, step / self.kl_warm_up) if self.kl_warm_up else 1.0

    def temperature_at(self, step: int, first: float) -> float:
        """Return the temperature of step `step`, for a sampler whose temperature is `first` in step 0."""
        if self.final_temperature is None or self.steps == 1:
            return first
        return first * (self.final_temperature / first) ** (step / (self.steps - 1))


class _Columns:
    """What the protocols share: columns by name, each (steps,)."""

    reconstruction: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.reconstruction)

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {len(self)} steps: {', '.join(self.to_dict())}"

    def to_dict(self) -> dict[str, NDArray[np.float32]]:
        """Return the columns by name, each (steps,)."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    def to_numpy(self) -> NDArray[np.float32]:
        """Return all columns as one array, (steps, 6), in the order of `to_dict`."""
        return np.stack(list(self.to_dict().values()), axis=1)


@dataclass(frozen=True, repr=False)
class Protocol(_Columns):
    """What a run measured, a row a step, in named columns of shape (steps,).

    Args:
        reconstruction: the cost -ln p(x|z), a cross-entropy, before the update, in nats, per image of the batch.
        kl: divergence, in nats, per image of the batch, with the divergence layer's weight, without the warm-up's.
        mean: mean of the posterior means over batch and code.
        log_variance_std: standard deviation of the log-variances over batch and code.
        log_variance_mean: mean of the log-variances over batch and code.
        learning_rate: of the update.
    """

    reconstruction: NDArray[np.float32]
    kl: NDArray[np.float32]
    mean: NDArray[np.float32]
    log_variance_std: NDArray[np.float32]
    log_variance_mean: NDArray[np.float32]
    learning_rate: NDArray[np.float32]


@dataclass(frozen=True, repr=False)
class BernoulliProtocol(_Columns):
    """What a run of a model with a code of bits measured: `Protocol`, with logits in the place of log-variances.

    Args, beside those of `Protocol`:
        mean: mean of the bits' probabilities over batch and code.
        logit_std: standard deviation of their logits over batch and code.
        logit_mean: mean of their logits.
    """

    reconstruction: NDArray[np.float32]
    kl: NDArray[np.float32]
    mean: NDArray[np.float32]
    logit_std: NDArray[np.float32]
    logit_mean: NDArray[np.float32]
    learning_rate: NDArray[np.float32]
