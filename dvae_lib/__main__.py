"""Train the article's auto-encoder from the command line, in one process or, under torchrun, in several.

    python -m dvae_lib --noise 0.1 --checkpoint run.safetensors --output dvae.safetensors
    torchrun --nproc-per-node 2 -m dvae_lib --noise 0.1 --output dvae.safetensors

With --checkpoint, a run that was killed goes on where it was when the same command is given again. After Ctrl-C the run
ends at its next report, says how far it came, and exits with 130; the output is then written only with --keep-partial.
Under torchrun the processes share each batch and rank 0 writes; on several machines all must reach the same checkpoint.
The chapters "The training loop" and "The speed of a step" explain the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import distributed

from dvae_lib.checkpoints import save_checkpoint
from dvae_lib.data import squares
from dvae_lib.models import mlp_vae
from dvae_lib.noise import BernoulliNoise
from dvae_lib.runs.devices import default_device, process_rank
from dvae_lib.training import PRECISIONS, TrainingConfig, train


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m dvae_lib", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--noise", type=float, default=0.0, help="probability of a flipped pixel; 0 trains a plain VAE")
    parser.add_argument("--quick", action="store_true", help="the quick schedule instead of the article's")
    parser.add_argument("--images", type=int, default=50_000, help="how many squares to train on")
    parser.add_argument("--output", help="where to write the trained model")
    parser.add_argument("--keep-partial", action="store_true", help="write the output of an interrupted run as well")
    parser.add_argument("--checkpoint", help="where to keep the state of the run, and to go on from")
    parser.add_argument("--device", help="cpu, say; by default the accelerator that PyTorch finds, or the CPU")
    parser.add_argument("--no-graph", dest="graph", action="store_false", help="do not capture the step")
    parser.add_argument("--precision", choices=PRECISIONS)
    for name in ("steps", "batch-size", "kl-warm-up", "hidden-size", "seed", "report-every", "checkpoint-every"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("learning-rate", "weight-decay"):
        parser.add_argument(f"--{name}", type=float)
    options = parser.parse_args(arguments)
    if options.output is not None and Path(options.output).is_dir():
        parser.error(f"--output must be a file, got the folder {options.output!r}")
    if options.output is not None and not Path(options.output).absolute().parent.is_dir():
        parser.error(f"--output must lie in a folder that exists, got {options.output}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says; return the exit status, 130 for a run that Ctrl-C ended."""
    options = parse(arguments)
    config = TrainingConfig.quick() if options.quick else TrainingConfig.article()
    given = {name: value for name, value in vars(options).items() if value is not None}
    names = {field.name for field in dataclasses.fields(config)} & given.keys()
    config = dataclasses.replace(config, **{name: given[name] for name in names})
    noise = BernoulliNoise(options.noise) if options.noise else None

    device = default_device() if options.device is None else torch.device(options.device)
    several = "WORLD_SIZE" in os.environ  # which torchrun sets
    if several:
        if device.type != "cpu":
            torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group(None if device.type != "cpu" else "gloo")
    torch.manual_seed(config.seed)
    model = mlp_vae(hidden_size=config.hidden_size, noise=noise)
    images = squares(options.images, torch.Generator().manual_seed(config.seed))
    protocol = train(model, images, config, device=device, checkpoint=options.checkpoint)
    whole = len(protocol) == config.steps
    if process_rank()[0] == 0:
        done = f"{len(protocol)} steps" if whole else f"interrupted after {len(protocol)} of {config.steps} steps"
        last = protocol.to_numpy()[-500:].mean(0)
        print(f"{done}; reconstruction {last[0]:.2f}, divergence {last[1]:.2f} nats per image")
        if options.output is not None and (whole or options.keep_partial):
            save_checkpoint(options.output, model, config)
    if several:
        distributed.destroy_process_group()
    return 0 if whole else 130


if __name__ == "__main__":
    sys.exit(main())
