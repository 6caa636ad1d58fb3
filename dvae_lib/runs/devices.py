"""Devices and processes: where a run computes, in which precision, and who computes with it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")


def default_device() -> torch.device:
    """Return the accelerator that PyTorch finds (a GPU, say), or the CPU: the one place that chooses."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def process_rank() -> tuple[int, int]:
    """Return this process's number and how many train together: (0, 1), unless torch.distributed is initialised."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def gathered(value: T) -> list[T]:
    """Return the `value` of each process, in the order of their ranks: all must call."""
    processes = process_rank()[1]
    if processes == 1:
        return [value]
    values: list[Any] = [None] * processes
    distributed.all_gather_object(values, value)
    return values


def all_or_none(action: Callable[[], T]) -> T:
    """Return what `action` does, if it succeeds in all processes; where it fails in one, raise its error in each."""
    result, failure = None, None
    try:
        result = action()
    except Exception as error:
        failure = error
    failures = gathered(failure)  # by all, also by the one that failed
    if failure := failure or next(filter(None, failures), None):
        raise failure
    return result  # type: ignore[return-value]


def effective_precision(precision: str, device: torch.device) -> str:
    """Return the precision that a run asked for `precision` computes in.

    A processor without instructions for bfloat16 emulates them, several times slower than float32: there,
    "bfloat16" becomes "float32". Everything else is taken at its word.
    """
    if precision == "bfloat16" and device.type == "cpu" and not bfloat16_instructions():
        return "float32"
    return precision


def bfloat16_instructions() -> list[str]:
    """Return the names of the processor's instructions for products in bfloat16, as far as PyTorch knows."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # since PyTorch 2.11
    return sorted(name for name, there in capabilities.items() if "bf16" in name and there is True)


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Let float32 matrix products use TF32 for the time of a run where that is asked for, and nowhere else.

    PyTorch has two kinds of switches for it, an older one for all products and newer ones for each library. Once a
    caller has set one of the newer kind, the older one can no longer be read, and both must come back as they were.
    """
    newer = [module.matmul for module in (torch.backends.cuda, torch.backends.mkldnn) if _has_newer_switch(module)]
    before = [switch.fp32_precision for switch in newer]
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:
        older = None
    if older is not None:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    for switch in newer:
        switch.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older)
        for switch, value in zip(newer, before, strict=True):
            switch.fp32_precision = value


def _has_newer_switch(module: Any) -> bool:
    return hasattr(getattr(module, "matmul", None), "fp32_precision")  # since PyTorch 2.9
