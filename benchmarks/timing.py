"""How the contestants are timed, what memory they take, and where the numbers go.

A measurement is the difference of two runs, one of `steps` steps and one of a tenth of them, so that what happens once
(moving the images, making optimiser and loader, capturing a graph) does not count. Every run starts from the same
weights. Each contestant has a process of its own, and only one works at a time: in a round each is measured once, each
round starting with another one, so that a slow minute of the machine hits all. Ratios are taken within a round.
"""

import concurrent.futures
import contextlib
import datetime
import json
import multiprocessing
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dvae_lib
from benchmarks.floor import synchronize
from benchmarks.loops import Builder, load
from dvae_lib import all_squares, mlp_vae
from dvae_lib.runs.devices import bfloat16_instructions

RESULTS = Path(__file__).resolve().parent / "results"
IMAGES = 50_000


def make_images(n: int = IMAGES) -> Tensor:
    """Draw `n` squares, (n, 1, 24, 24), without taking more memory on the way than they need."""
    return all_squares()[torch.randint(256, (n,), generator=torch.Generator().manual_seed(0))]


def make_model() -> nn.Module:
    """Build the article's VAE with the weights that every contestant starts from."""
    torch.manual_seed(0)
    return mlp_vae()


# time and memory, in processes of their own


class Worker:
    """A contestant in a process of its own: what one changes in its process (the allocator, say) helps no other."""

    def __init__(self, builder: Builder, batch_size: int, device: torch.device) -> None:
        arguments = (builder, batch_size, device, torch.get_num_threads())
        context = multiprocessing.get_context("spawn")
        self.pool = concurrent.futures.ProcessPoolExecutor(1, context, initializer=_prepare, initargs=arguments)

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.pool.submit(function, *arguments).result()


_worker: dict[str, Any] = {}


def _prepare(builder: Builder, batch_size: int, device: torch.device, threads: int) -> None:
    torch.set_num_threads(threads)
    if builder.peer is not None:
        load(builder.peer)
    _worker.update(builder=builder, batch_size=batch_size, device=device, model=make_model(), images=make_images())


def run_seconds(steps: int) -> float:
    """In a worker: return the seconds of a run of `steps` steps from the first weights."""
    device = _worker["device"]
    contestant = _worker["builder"](_worker["model"], device)
    synchronize(device)
    start = time.perf_counter()
    contestant.train(_worker["images"], _worker["batch_size"], steps)
    synchronize(device)
    return time.perf_counter() - start


def step_seconds(steps: int) -> float:
    """In a worker: return the seconds of one step, a run of `steps` less a run of a tenth over the difference."""
    short = max(1, steps // 10)
    taken = run_seconds(short)
    return (run_seconds(steps) - taken) / (steps - short)


def fewest_steps(device: torch.device) -> int:
    """Return the fewest steps that are timed: where a graph is captured, a tenth of them must get past that."""
    return 6 if device.type == "cpu" else 60


def find_steps(seconds: float) -> int:
    """In a worker: return how many steps take about `seconds`; the runs that find out also warm everything up."""
    steps = fewest = fewest_steps(_worker["device"])
    while True:
        one = max(step_seconds(steps), 1e-6)
        if one * steps >= seconds / 2 or steps >= 1_000_000:
            return max(fewest, round(seconds / one))
        steps = min(10 * steps, max(2 * steps, round(seconds / one)))


def peak_memory(steps: int = 12) -> int | None:
    """In a worker that has not run yet: return the bytes that building and training the contestant takes at most.

    On an accelerator: the allocator's peak; the images count where they are kept on the device. Elsewhere: the growth
    of the peak of resident memory, after PyTorch, the peer and the images are loaded. None where neither can be told.
    """
    if _worker["device"].type == "cpu":
        before = resident_peak()
        run_seconds(steps)
        return resident_peak() - before
    module = torch.get_device_module(_worker["device"])
    if not hasattr(module, "max_memory_allocated"):
        return None
    run_seconds(steps)
    return module.max_memory_allocated()


def resident_peak() -> int:
    """Return the most bytes that this process has had in memory so far.

    On Linux from /proc, as `getrusage` there starts a child with its parent's peak.
    """
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def take_turns(
    builders: Mapping[str, Builder],
    batch_sizes: Mapping[str, int],
    device: torch.device,
    rounds: int,
    seconds: float,
    steps: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Measure all contestants `rounds` times, one at a time.

    Returns, by name, the peak of memory, the number of steps, and the seconds of one step in each round.
    """
    with contextlib.ExitStack() as stack:
        workers, rows = {}, {}
        for name, builder in builders.items():
            tell(f"  {name}: starting")
            workers[name] = worker = Worker(builder, batch_sizes[name], device)
            stack.enter_context(worker.pool)
            peak = worker.ask(peak_memory)
            found = worker.ask(find_steps, min(seconds, 0.2) if steps else seconds)
            rows[name] = {"peak_bytes": peak, "steps": steps or found, "seconds_per_step": []}
        names = list(builders)
        for turn in range(rounds):
            tell(f"  round {turn + 1} of {rounds}")
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                rows[name]["seconds_per_step"].append(workers[name].ask(step_seconds, rows[name]["steps"]))
    for name, row in rows.items():
        if min(row["seconds_per_step"]) <= 0:
            raise RuntimeError(f"{name}: {row['steps']} steps are too few to be timed")
    return rows


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def in_words(spread: Mapping[str, float], digits: int) -> str:
    """Say the median, with the least and the most."""
    median, least, most = (f"{spread[key]:.{digits}f}" for key in ("median", "least", "most"))
    return f"{median} ({least} .. {most})"


def rates(seconds: Sequence[float], batch_size: int, reference: Sequence[float] | None) -> dict[str, Any]:
    """Return steps and images per second and, round by round, how many times as fast as a reference's it is.

    `reference` holds the reference's seconds per image.
    """
    faster = reference and [one / (step / batch_size) for one, step in zip(reference, seconds, strict=True)]
    return {
        "steps_per_s": spread([1 / value for value in seconds]),
        "images_per_s": spread([batch_size / value for value in seconds]),
        "ratio": spread(faster) if faster else None,
    }


# where, when and with what


def processor_name() -> str:
    """Return the processor's name as the system gives it, or the architecture."""
    if sys.platform == "linux":
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return platform.processor() or platform.machine()


def hardware(device: torch.device) -> dict[str, Any]:
    """Describe what the numbers were measured on."""
    processor = processor_name()
    name = processor
    if device.type != "cpu":
        module = torch.get_device_module(device)
        name = module.get_device_name(device) if hasattr(module, "get_device_name") else f"{processor} {device.type}"
    return {
        "name": name,
        "device": device.type,
        "processor": processor,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": bfloat16_instructions(),
    }


def result_path(description: Mapping[str, Any]) -> Path:
    """Return the file of this hardware under benchmarks/results/: processors of one name may differ in instructions."""
    name = description["name"]
    if description["device"] == "cpu":
        name += f" {' '.join(description['bfloat16']) or 'no bf16'} {description['threads']} threads"
    return RESULTS / (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".json")


def versions() -> dict[str, str | None]:
    """Return the versions of what was timed; None for what is not installed."""
    found = {"python": platform.python_version(), "cuda": torch.version.cuda, "dvae_lib": dvae_lib.__version__}
    for package in ("torch", "pythae", "pyro-ppl"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def store(path: Path, key: str, description: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Put `content` under `key` into the JSON file at `path`, atomically; what stands under other keys stays."""
    stored = json.loads(path.read_text()) if path.exists() else {}
    stored["hardware"] = description
    stored[key] = {"date": datetime.date.today().isoformat(), "versions": versions(), **content}
    write_json(path, stored)
    print(f"stored under {key!r} in {os.path.relpath(path)}")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content`, its floats rounded to six digits, to the JSON file at `path`, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        temporary.write_text(json.dumps(rounded(content), indent=1) + "\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def rounded(value: Any) -> Any:
    """Return `value` with its floats, at any depth, rounded to six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value


def tell(message: str) -> None:
    """Say on stderr what is going on."""
    print(message, file=sys.stderr, flush=True)
