"""The floor of a training step: its arithmetic and its traffic, counted, over the rates of this machine, measured.

The floor is the time of the matrix products at the best rate of any that was measured, in general a large square one,
plus the time to move weights, gradients and Adam's state at the memory's best rate:

    floor = floating-point operations / (operations per second) + bytes / (bytes per second)

It is a sum, as if nothing overlapped; a machine that hid the shorter part behind the longer would need the longer
alone, `bound`. It leaves out the images, the activations (batch x width, hundreds of times smaller than the weights at
the article's batch of 16), biases, ReLUs, loss, noise and random numbers, what starting each kernel costs, and that a
matrix product with few rows runs far below the rate of a square one. `expected` puts that last part in: the products at
the rates of the step's own shapes, which include reading the weights and writing the gradients, plus Adam's traffic.
On a machine that is not quiet all these rates waver, and so each is measured more than once and the best is kept.

The traffic is the same in every precision, as weights, gradients and state are kept in float32. The memory's rate is
the better of two, measured on as many bytes as the step works on: copying one half into the other, and adding in place.
A copy is credited with its reads and writes; yet a store to a line that is not in the cache reads that line first, and
so an update in place, which has read it anyway, can be half as fast again. Where part of the state stays in a large
cache from step to step, a step can come out under this floor.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dvae_lib.runs.devices import matmul_precision

Layers = Sequence[tuple[int, int]]
ARTICLE: Layers = ((576, 1152), (1152, 1152), (1152, 2), (1152, 2), (2, 1152), (1152, 1152), (1152, 576))  # (in, out)
FLOAT = 4  # bytes of a float32


def step_flops(batch_size: int, layers: Layers = ARTICLE) -> dict[str, int]:
    """Return the floating-point operations of one step by kind: a product of (a, b) and (b, c) takes 2 a b c.

    The first layer's gradient by its input is not needed.
    """
    product = [2 * batch_size * n * m for n, m in layers]
    return {"forward": sum(product), "backward_input": sum(product[1:]), "backward_weight": sum(product)}


def step_bytes(layers: Layers = ARTICLE) -> dict[str, int]:
    """Return the bytes of one step by pass over weights and biases, their gradients and Adam's two moments."""
    parameters = sum(n * m + m for n, m in layers)
    return {
        "forward reads weights": FLOAT * parameters,
        "backward reads weights": FLOAT * sum(n * m for n, m in layers[1:]),  # neither the first layer's nor biases
        "backward writes gradients": FLOAT * parameters,
        "adam reads weights, gradients, moments": 4 * FLOAT * parameters,
        "adam writes weights, moments": 3 * FLOAT * parameters,
    }


def state_bytes(layers: Layers = ARTICLE) -> int:
    """Return the bytes of weights, gradients and two moments: what the step works on."""
    return 4 * FLOAT * sum(n * m + m for n, m in layers)


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def best_time(action: Callable[[], object], device: torch.device, seconds: float = 0.05, blocks: int = 7) -> float:
    """Return the seconds of one `action`, the least over `blocks` blocks of about `seconds` each.

    On CUDA ten actions are captured and replayed together, so that the time is theirs and not that of starting them.
    """
    together = 1
    if device.type == "cuda":
        together = 10
        action = _captured(action, together)
    times: list[float] = []
    repeats = 1
    while len(times) < blocks:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(repeats):
            action()
        synchronize(device)
        taken = time.perf_counter() - start
        if taken < seconds / 2 and not times:
            repeats *= 2
        else:
            times.append(taken / repeats)
    return min(times) / together


def matrix_rate(precision: str, device: torch.device) -> float:
    """Return the operations per second of the best of some large square products."""
    sizes = (1024, 2048) if device.type == "cpu" else (4096, 8192)
    rates = []
    for size in sizes:
        a, b, out = (_normal(size, size, precision=precision, device=device) for _ in range(3))
        with matmul_precision(precision):
            rates.append(2 * size**3 / best_time(functools.partial(torch.mm, a, b, out=out), device))
    return max(rates)


def step_rates(batch_size: int, precision: str, device: torch.device, width: int = 1152) -> dict[str, float]:
    """Return the operations per second of the step's own products, batch x width x width, by kind as in `step_flops`.

    Four weights take turns, as no weight of a step is used twice in a row.
    """
    x, y = (_normal(batch_size, width, precision=precision, device=device) for _ in range(2))
    weights = [_normal(width, width, precision=precision, device=device) for _ in range(4)]
    actions: dict[str, Callable[[Tensor], Tensor]] = {
        "forward": lambda w: functional.linear(x, w),
        "backward_input": lambda w: y @ w,
        "backward_weight": lambda w: torch.mm(y.t(), x, out=w),  # the gradient overwrites a tensor of w's size
    }
    rates = {}
    with matmul_precision(precision):
        for kind, action in actions.items():
            taken = best_time(functools.partial(_for_all, action, weights), device)
            rates[kind] = len(weights) * 2 * batch_size * width**2 / taken
    return rates


def memory_rates(device: torch.device, size: int | None = None) -> dict[str, float]:
    """Return bytes per second, read and written, on `size` bytes, by default as many as the step works on."""
    half = (state_bytes() if size is None else size) // 2 // FLOAT
    source, target = torch.ones(half, device=device), torch.zeros(half, device=device)
    both = torch.ones(2 * half, device=device)
    return {
        "copy": 2 * FLOAT * half / best_time(lambda: target.copy_(source), device),
        "in place": 2 * FLOAT * 2 * half / best_time(lambda: both.add_(1), device),
    }


def floor(batch_size: int, flops_rate: float, bytes_rate: float) -> dict[str, float]:
    """Return the floor of a step in seconds, with its parts and the lower bound under full overlap."""
    compute = sum(step_flops(batch_size).values()) / flops_rate
    memory = sum(step_bytes().values()) / bytes_rate
    return {"compute_s": compute, "memory_s": memory, "floor_s": compute + memory, "bound_s": max(compute, memory)}


def expected(batch_size: int, rates: dict[str, float], bytes_rate: float) -> float:
    """Return the seconds of a step whose products run at the rates of their own shapes, with Adam's traffic."""
    products = sum(count / rates[kind] for kind, count in step_flops(batch_size).items())
    adam = sum(count for name, count in step_bytes().items() if name.startswith("adam"))
    return products + adam / bytes_rate


def measure(batch_sizes: Sequence[int], precisions: Sequence[str], device: torch.device) -> dict[str, Any]:
    """Measure the machine's rates, per second: of memory, of square products, and of the step's own, by batch size."""
    return {
        "memory_bytes": memory_rates(device),
        "square_flops": {precision: matrix_rate(precision, device) for precision in precisions},
        "own_flops": {
            str(batch_size): {precision: step_rates(batch_size, precision, device) for precision in precisions}
            for batch_size in batch_sizes
        },
    }


def better(a: Any, b: Any) -> Any:
    """Return the higher of two measurements of each rate: what the machine can do shows at its best moment."""
    return {key: better(a[key], b[key]) for key in a} if isinstance(a, dict) else max(a, b)


def limits(rates: dict[str, Any]) -> dict[str, Any]:
    """Return the rates, the counts, and the floors by batch size and precision."""
    memory = max(rates["memory_bytes"].values())
    floors: dict[str, dict[str, dict[str, float]]] = {}
    for batch_size, own in rates["own_flops"].items():
        floors[batch_size] = {}
        for precision, square in rates["square_flops"].items():
            best = max(square, *own[precision].values())
            floors[batch_size][precision] = {
                **floor(int(batch_size), best, memory),
                "expected_s": expected(int(batch_size), own[precision], memory),
            }
    flops = {batch_size: step_flops(int(batch_size)) for batch_size in rates["own_flops"]}
    return {"rates": rates, "counts": {"flops": flops, "bytes": step_bytes()}, "floors": floors}


def _captured(action: Callable[[], object], times: int) -> Callable[[], object]:
    action()  # whatever is made on first use exists before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            action()
    return graph.replay


def _for_all(action: Callable[[Tensor], object], tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        action(tensor)


def _normal(*shape: int, precision: str, device: torch.device) -> Tensor:
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    return torch.randn(*shape, device=device).to(dtype)
