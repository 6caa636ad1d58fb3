"""What `train` asks of the machine: a device, random numbers, precision, memory, a captured step, other processes.

The chapter "The speed of a step" measures what each of these brings.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import distributed, nn


def default_device() -> torch.device:
    """Return the accelerator that PyTorch finds (a GPU, say), or the CPU: the one place that chooses."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def process_rank() -> tuple[int, int]:
    """Return this process's number and how many train together: (0, 1), unless torch.distributed is initialised."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


@contextlib.contextmanager
def seeded(seed: int, rank: int) -> Iterator[None]:
    """Seed the default generators of all devices, for each rank differently; at the end the caller's state is back."""
    accelerator = torch.accelerator.current_accelerator() or torch.device("cpu")
    with torch.random.fork_rng(range(torch.accelerator.device_count()), device_type=accelerator.type):
        # rank 0 draws what a run of one process draws; the sequence of seeds keeps the others apart from all seeds
        torch.manual_seed(seed if rank == 0 else int(np.random.SeedSequence([seed, rank]).generate_state(1)[0]))
        yield


def random_states(model: nn.Module, device: torch.device) -> list[torch.Tensor]:
    """Return the states of all generators that a step draws from, each a tensor of bytes on the CPU."""
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state())
    return states + [generator.get_state() for generator in layer_generators(model)]


def set_random_states(states: list[torch.Tensor], model: nn.Module, device: torch.device) -> None:
    """Put back what `random_states` returned.

    Raises:
        ValueError: there are more or fewer states than generators.
    """
    setters: list[Callable[[torch.Tensor], object]] = [torch.set_rng_state]
    if device.type != "cpu":
        setters.append(torch.get_device_module(device).set_rng_state)
    setters += [generator.set_state for generator in layer_generators(model)]
    for setter, state in zip(setters, states, strict=True):
        setter(state)


def layer_generators(model: nn.Module) -> list[torch.Generator]:
    """Return the generators that layers of the model own, each once."""
    found = (getattr(module, "generator", None) for module in model.modules())
    return list(dict.fromkeys(generator for generator in found if isinstance(generator, torch.Generator)))


def effective_precision(precision: str, device: torch.device) -> str:
    """Return the precision that a run asked for `precision` computes in.

    A processor without instructions for bfloat16 emulates them, several times slower than float32: there,
    "bfloat16" becomes "float32". Everything else is taken at its word.
    """
    if precision == "bfloat16" and device.type == "cpu" and not processor_has_bfloat16():
        return "float32"
    return precision


def processor_has_bfloat16() -> bool:
    """Whether the processor has instructions for products in bfloat16, as far as PyTorch knows."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # since PyTorch 2.11
    return any(value is True for name, value in capabilities.items() if "bf16" in name)


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Let float32 matrix products use TF32 for the time of a run, where that is asked for."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def keep_freed_memory() -> None:
    """Have the C library keep freed blocks of up to 32 MB for the next step, instead of giving them back at once.

    By default glibc returns a large block to the system when it is freed, and the gradients that the next step
    allocates lie on pages that the system has to map and clear again. The two thresholds set here are those that
    glibc's own adjustment can reach. Elsewhere than on Linux with glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # the names' values in glibc's malloc.h
        mallopt(mmap_threshold, 32 * 2**20)
        mallopt(trim_threshold, 64 * 2**20)


class CapturedStep:
    """A function of no arguments whose work on a CUDA device is recorded once, as a graph, and then replayed.

    Each call makes one step. The first ones call `step` as it is, so that whatever is made on first use exists; the
    next records it, which executes nothing, and from then on a call replays the record: one launch in place of
    some hundred. The record holds addresses and no values, so that `step` may read and write tensors that stay where
    they are, and nothing on the host. Random numbers go on from replay to replay, as if the step ran anew.

    Args:
        step: what to capture.
        device: the CUDA device that it works on.
        generators: those that it draws from, beside the default one.
    """

    warm_up = 3

    def __init__(self, step: Callable[[], None], device: torch.device, generators: list[torch.Generator]) -> None:
        self.step, self.device, self.generators = step, device, generators
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream = torch.cuda.Stream(device)
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls <= self.warm_up:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self.stream):
                self.step()
            torch.cuda.current_stream(self.device).wait_stream(self.stream)
            return
        if self.graph is None:
            self.graph = self._capture()
        self.graph.replay()

    def _capture(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.step()
        except RuntimeError as error:
            raise RuntimeError(
                "the step cannot be captured as a graph: the model or its noise asks the device for a value, or draws "
                "from a generator that no layer names; train it with TrainingConfig(graph=False)"
            ) from error
        return graph
