"""Time the training step beside its peers, in one run, against the floor of the hardware.

    python -m benchmarks.bench [--batch 16 128] [--rounds 7] [--seconds 1.2] [--steps N] [--only plain dvae_lib]
                               [--device cpu] [--threads 2] [--output FILE]

All train the article's VAE, 3,993,412 parameters, on 50,000 squares with Adam at 1e-3: `dvae_lib.train` in each
precision (on CUDA with and without a captured graph), a plain loop as in the usual example, pythae's trainer and Pyro's
SVI. Before anything is timed, each must learn, and the peers must have the library's objective on equal weights; the
library's own is written out in the tests, in float32. `loops.py` holds the contestants, `timing.py` says how they are
timed, `floor.py` what the floor is. A full run writes its numbers to
benchmarks/results/NAME-OF-THE-HARDWARE.json; a run of a part (`--batch`, `--only`) writes only where `--output` says.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks import floor, timing
from benchmarks.loops import Builder, Library, check_learns, check_same, contestants, draw_losses
from dvae_lib import all_squares, default_device, shipped

BATCH_SIZES = [16, 128]
PLAIN = "plain loop"


def arguments_parser(description: str, rounds: int, seconds: float) -> argparse.ArgumentParser:
    """Return a parser with the options that the benchmark and the ladder share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="measurements of each")
    parser.add_argument("--seconds", type=float, default=seconds, help="about how long one measurement takes")
    parser.add_argument("--steps", type=int, help="steps of one measurement, instead of a time")
    parser.add_argument("--device", type=torch.device, default=default_device())
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="the JSON file to write to")
    return parser


def check(builders: dict[str, Builder], device: torch.device) -> dict[str, dict[str, float]]:
    """See that the contestants compute the same and learn; return their losses, in nats per image.

    The losses are on the shipped weights, as in a fresh model the divergence is nearly nothing.
    """
    trained = shipped("article-vae")
    batch = all_squares()[::2].to(device)
    ours = draw_losses(Library(trained, device), batch)
    losses = {}
    for name, build in builders.items():
        timing.tell(f"  {name}")
        same = check_same(name, build(trained, device), batch, ours)
        learnt = check_learns(name, build(timing.make_model(), device), timing.make_images(2_000), device)
        losses[name] = {"trained_weights": same, "trained_from_scratch": learnt}
    return losses


def run(batch_size: int, builders: dict[str, Builder], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure one batch size; return a row for each contestant."""
    device, sizes = options.device, dict.fromkeys(builders, batch_size)
    timed = timing.take_turns(builders, sizes, device, options.rounds, options.seconds, options.steps)
    reference = [step / batch_size for step in timed[PLAIN]["seconds_per_step"]] if PLAIN in timed else None
    return [
        {"name": name, "ran_in": builders[name].ran_in(device)}
        | row
        | timing.rates(row["seconds_per_step"], batch_size, reference)
        for name, row in timed.items()
    ]


def print_rows(batch_size: str, rows: list[dict[str, Any]], floors: dict[str, Any]) -> None:
    print(f"\nbatch {batch_size}: medians (least .. most)")
    print(f"{'':26} {'ran in':9} {'steps/s':>8} {'images/s':>26} {'x plain loop':>20} {'peak MB':>8} {'of floor':>8}")
    for row in rows:
        ratio = row["ratio"]
        times = timing.in_words(ratio, 2) if ratio else "-"
        memory = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}"
        print(
            f"{row['name']:26} {row['ran_in']:9} {row['steps_per_s']['median']:8.1f} "
            f"{timing.in_words(row['images_per_s'], 0):>26} {times:>20} {memory:>8} {row['floor_share']:8.0%}"
        )
    for precision, one in floors.items():
        parts = ("floor", "compute", "memory", "expected")
        total, compute, memory, expected = (1e3 * one[f"{part}_s"] for part in parts)
        print(
            f"floor in {precision}: {total:.3f} ms a step ({compute:.3f} arithmetic + {memory:.3f} memory); "
            f"{expected:.3f} ms expected at the rates of the step's own shapes"
        )


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the options, if `--steps` gives steps enough to be timed."""
    options = parser.parse_args()
    fewest = timing.fewest_steps(options.device)
    if options.steps is not None and options.steps < fewest:
        parser.error(f"--steps must be at least {fewest} on {options.device}, got {options.steps}")
    return options


def print_rates(rates: dict[str, Any]) -> None:
    matrix = ", ".join(f"{rate / 1e9:.0f} in {name}" for name, rate in rates["square_flops"].items())
    memory = ", ".join(f"{rate / 1e9:.1f} {name}" for name, rate in rates["memory_bytes"].items())
    print(f"square matrix product, GFLOP/s: {matrix}; memory, GB/s: {memory}")


def main() -> None:
    parser = arguments_parser(str(__doc__), rounds=7, seconds=1.2)
    parser.add_argument("--batch", type=int, nargs="+", default=BATCH_SIZES, metavar="SIZE")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contestants whose names contain one of these")
    options = parsed(parser)
    device = options.device
    torch.set_num_threads(options.threads)
    available = contestants(device)
    builders = {
        name: builder
        for name, builder in available.items()
        if not options.only or any(part in name for part in options.only)
    }
    if not builders:
        parser.error(f"--only must match one of {list(available)}")
    for peer in ("pythae", "pyro"):
        if not any(name.startswith(peer) for name in available):
            print(f"{peer} cannot run here and is left out")

    description = timing.hardware(device)
    print(f"{description['name']}, {description['threads']} threads, PyTorch {torch.__version__}")
    timing.tell("do all compute the same, and learn?")
    losses = check(builders, device)
    timing.tell("the hardware's rates")
    wanted = list(dict.fromkeys(builder.ran_in(device) for builder in builders.values()))
    rates = floor.measure(options.batch, wanted, device)
    rows = {}
    for batch_size in options.batch:
        timing.tell(f"batch {batch_size}")
        rows[str(batch_size)] = run(batch_size, builders, options)
        rates = floor.better(rates, floor.measure(options.batch, wanted, device))
    limits = floor.limits(rates)
    print_rates(rates)
    for size, floors in limits["floors"].items():
        for row in rows[size]:
            row["floor_share"] = floors[row["ran_in"]]["floor_s"] * row["steps_per_s"]["median"]
        print_rows(size, rows[size], floors)

    whole = not options.only and options.batch == BATCH_SIZES
    if options.output or whole:
        settings = {"rounds": options.rounds, "seconds": options.seconds, "steps": options.steps}
        content = {"settings": settings, "losses": losses, "limits": limits, "batches": rows}
        timing.store(options.output or timing.result_path(description), "bench", description, content)


if __name__ == "__main__":
    main()
