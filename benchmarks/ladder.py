"""Climb from the plain loop to the library one change at a time, and up the batch sizes; each rung measured.

    python -m benchmarks.ladder [--rounds 5] [--seconds 0.8] [--steps N] [--device cpu] [--threads 2] [--output FILE]

The rungs take turns as the contestants of `benchmarks.bench` do, and go into the same file under "ladder". The chapter
"The speed of a step" explains each.
"""

from typing import Any

import torch

from benchmarks import timing
from benchmarks.bench import BATCH_SIZES, arguments_parser, parsed
from benchmarks.loops import Builder, Library, Plain, precisions
from dvae_lib.runs.devices import effective_precision

SIZES = [16, 32, 64, 128, 256, 512]


def true_precisions(device: torch.device) -> list[str]:
    """Return the precisions that the device really has; float32 is the first."""
    return [name for name in precisions(device) if effective_precision(name, device) == name]


def changes(device: torch.device) -> dict[str, Builder]:
    """Return the rungs at one batch size, by name, in order; each keeps what the rungs before it changed."""
    keywords: dict[str, Any] = {}
    rungs = {"plain loop": Builder(Plain)}
    for name, keyword, value in (
        ("images on the device", "resident", True),
        ("no .item()", "item", False),
        ("logits", "logits", True),
        ("fused Adam", "fused", True),
    ):
        keywords = {**keywords, keyword: value}
        rungs[name] = Builder(Plain, keywords)
    lower = true_precisions(device)[1:]
    for precision in lower:
        rungs[precision] = Builder(Plain, {**keywords, "precision": precision})
    graph = device.type == "cuda"
    for precision in ["float32", *lower]:
        name = f"{'captured graph' if graph else 'dvae_lib.train'}, {precision}"
        rungs[name] = Builder(Library, {"precision": precision, "graph": graph})
    return rungs


def batch_sizes(device: torch.device) -> dict[tuple[str, int], Builder]:
    """Return the library in each precision that the device has, at each batch size."""
    graph = device.type == "cuda"
    return {
        (f"dvae_lib {precision} at {size}", size): Builder(Library, {"precision": precision, "graph": graph})
        for precision in true_precisions(device)
        for size in SIZES
    }


def climb(rungs: dict[tuple[str, int], Builder], options: Any) -> list[dict[str, Any]]:
    """Measure the rungs in turns; ratios are to the images per second of the first."""
    builders = {name: builder for (name, _), builder in rungs.items()}
    sizes = dict(list(rungs))
    timed = timing.take_turns(builders, sizes, options.device, options.rounds, options.seconds, options.steps)
    first = next(iter(timed))
    reference = [step / sizes[first] for step in timed[first]["seconds_per_step"]]
    return [
        {"name": name, "batch_size": sizes[name]} | row | timing.rates(row["seconds_per_step"], sizes[name], reference)
        for name, row in timed.items()
    ]


def print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}: medians (least .. most)")
    for row in rows:
        images, ratio = row["images_per_s"], row["ratio"]
        print(
            f"{row['name']:28} {1e3 / row['steps_per_s']['median']:9.3f} ms a step {images['median']:10.0f} images/s "
            f"({images['least']:.0f} .. {images['most']:.0f})  x {ratio['median']:.2f}"
        )


def main() -> None:
    options = parsed(arguments_parser(str(__doc__), rounds=5, seconds=0.8))
    torch.set_num_threads(options.threads)
    description = timing.hardware(options.device)
    print(f"{description['name']}, {description['threads']} threads, PyTorch {torch.__version__}")
    settings = {"rounds": options.rounds, "seconds": options.seconds, "steps": options.steps}
    content: dict[str, Any] = {"settings": settings, "changes": {}}
    for size in BATCH_SIZES:
        rows = climb({(name, size): builder for name, builder in changes(options.device).items()}, options)
        content["changes"][str(size)] = rows
        print_rows(f"one change at a time, batch {size}", rows)
    content["batch_sizes"] = climb(batch_sizes(options.device), options)
    print_rows("batch size", content["batch_sizes"])
    timing.store(options.output or timing.result_path(description), "ladder", description, content)


if __name__ == "__main__":
    main()
