"""The training loop: one function for every model, on CPU and GPU.

The chapter "The training loop" develops it, "The speed of a step" makes it fast, and "The CUDA training loop, built"
captures it; source: the listing of Stutz's article.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from dvae_lib._checks import check_image_shape, check_image_values
from dvae_lib.configuration import PRECISIONS, SCHEDULES, BernoulliProtocol, Protocol, TrainingConfig
from dvae_lib.models import VariationalAutoencoder
from dvae_lib.runs.capture import CapturedStep, drop_graphs
from dvae_lib.runs.devices import default_device, gathered, process_rank
from dvae_lib.runs.reports import Listener, ctrl_c, progress_bar
from dvae_lib.runs.run import Run

__all__ = ["PRECISIONS", "SCHEDULES", "Protocol", "Run", "TrainingConfig", "train", "training_step"]


def train(
    model: VariationalAutoencoder,
    images: Tensor,
    config: TrainingConfig,
    *,
    device: torch.device | str | None = None,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    on_report: Callable[[int, Protocol], object] | None = None,
) -> Protocol:
    """Minimise J = reconstruction + divergence, both costs in nats, summed over the batch, with Adam.

    The images move to the device once; batches, noise and codes are drawn there, and the host waits for the device
    only when it reports, every `config.report_every` steps. The first Ctrl-C ends the run at the next report, which
    returns what it has; a second one raises KeyboardInterrupt at once. The model is left on the device, in eval mode.

    All is drawn from a generator of the run's own, which the layers without one borrow: the caller's random numbers
    are neither read nor moved. A layer of somebody's own that draws from PyTorch's default generator is not covered.

    With `checkpoint`, the state of the run is written there every `config.checkpoint_every` steps and at its end. If
    the file is there at the start, the run goes on from it: killed and called again, it ends with the weights of a run
    that was never killed, on the CPU to the last bit.

    Under torchrun, with torch.distributed initialised, the processes share each batch, draw their own
    images, noise and codes, and average their gradients; rank 0 alone shows progress and writes.

    Args:
        model: a `VariationalAutoencoder`, or a module with the same `forward`, `.kl` and `.posterior`.
        images: (n, channels, height, width), floating-point, in [0, 1].
        config: the run.
        device: where to train; None takes `default_device()`.
        progress: show a progress bar, unless the environment variable TQDM_DISABLE is set.
        checkpoint: a file that the run writes and, when it is there, goes on from.
        on_report: called at each report with the number of steps made and the protocol of those since the report
            before; the run ends where it returns what counts as true.

    Returns:
        The protocol, with a row for every step made; of several processes, the mean of their rows.

    Raises:
        TypeError, ValueError: an argument does not fit, or the checkpoint; the model is untouched.
        FloatingPointError: the loss or a weight stopped being finite; the message names the step. After this and any
            other error on the way, the model holds the weights of the last report before it.
    """
    _check_arguments(model, images, config, on_report)
    run = Run(model, images, config, default_device() if device is None else torch.device(device))
    descriptions = {} if checkpoint is None else run.descriptions()
    state = None if checkpoint is None else run.read(checkpoint, descriptions)
    with run.active():
        if state is not None:
            run.load(state)
        done = reported = written = run.done
        step: Callable[[], None] = partial(training_step, run)
        if run.captured:
            step = CapturedStep(step, run.device, run.generators)
        how = f"{run.precision}, captured" if run.captured else run.precision
        bar = progress_bar(how, config.steps, config.batch_size, done, progress and run.rank == 0)
        enough = False
        with bar as show, ctrl_c() as pressed:
            listeners: list[Listener] = [show, pressed, *filter(None, [on_report])]
            while done < config.steps and not enough:
                step()
                done += 1
                if done % config.report_every and done < config.steps:
                    continue
                rows = run.protocol(reported, done)
                reported = done
                answers = [listener(done, rows) for listener in listeners]
                enough = any(gathered(any(answers)))  # in one of the processes is enough for all
                due = enough or done == config.steps or done - written >= config.checkpoint_every
                if checkpoint is not None and due:
                    run.write(checkpoint, descriptions)
                    written = done
    return run.columns(*run.rows[:done].cpu().numpy().T)


def training_step(run: Run) -> None:
    """Draw a batch, update the model once, note the protocol's row: the same for every device, captured or not.

    The objective is summed over the batch, in nats; the row is per image. Nothing here waits for the device.
    """
    model, optimizer = run.model, run.optimizer
    drop_graphs(run.modules)  # of a pass outside of the run
    size = run.config.batch_size // run.processes
    index = torch.randint(len(run.images), (size,), generator=run.generator, device=run.device)
    batch = run.images[index]  # (n, channels, height, width)
    learning_rate, kl_weight = run.schedule.index_select(0, run.step).squeeze(0)  # (1, 2) -> two of ()
    optimizer.param_groups[0]["lr"].copy_(learning_rate)
    for sampler, temperatures in zip(run.samplers, run.temperatures, strict=True):
        sampler.current.copy_(temperatures.index_select(0, run.step).squeeze(0))  # (1,) -> ()
    # without the cache of cast weights: inside of a caller's autocast it would outlive the update of the weights
    with torch.autocast(run.device.type, torch.bfloat16, run.precision == "bfloat16", cache_enabled=False):
        logits = run.forward(batch)  # the shape of batch
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # not in the 8 bits of bfloat16
    reconstruction = functional.binary_cross_entropy_with_logits(logits, batch, reduction="sum")
    optimizer.zero_grad(set_to_none=True)
    (reconstruction + kl_weight * model.kl).backward(run.factor)
    optimizer.step()
    scale = model.posterior[-1].float()  # (n, code), the log-variances, or the logits of a code of bits
    mean = scale.sigmoid() if run.columns is BernoulliProtocol else model.posterior[0].float()  # (n, code)
    scale_std, scale_mean = torch.std_mean(scale, correction=min(1, scale.numel() - 1))  # of a single entry 0, not NaN
    losses = reconstruction.detach() / size, model.kl.detach() / size
    row = torch.stack([*losses, mean.mean(), scale_std, scale_mean, learning_rate])
    run.rows.index_copy_(0, run.step, row.unsqueeze(0).to(run.rows.dtype))  # (6,) -> (1, 6)
    run.step += 1
    drop_graphs(run.modules)


def _check_arguments(model: object, images: object, config: object, on_report: object) -> None:
    """Refuse what cannot be trained on, before anything has changed."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if next(model.parameters(), None) is None:
        raise ValueError(f"model must have parameters to train, got {type(model).__name__} without any")
    if not isinstance(config, TrainingConfig):
        raise TypeError(f"config must be a TrainingConfig, got {type(config).__name__}")
    if config.batch_size % process_rank()[1]:
        raise ValueError(f"batch_size must be a multiple of {process_rank()[1]} processes, got {config.batch_size}")
    if on_report is not None and not callable(on_report):
        raise TypeError(f"on_report must be callable or None, got {type(on_report).__name__}")
    shape = getattr(model, "configuration", {}).get("image_shape")
    check_image_values("images", check_image_shape("images", images, shape))
