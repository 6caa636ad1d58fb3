"""A step that is recorded once and then replayed: as a list of operations on any machine, as a graph on a CUDA device.

A record holds operations and the tensors that they read and write. It holds nothing of Python: neither branches nor
numbers, which stay as they were when it was made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# operations for which the host waits: they give it a number, or a size that depends on numbers, or come from it
_QUESTIONS = (
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "_unique2", "bincount"),
    "lift_fresh",
)


class Operation(NamedTuple):
    """One operation of a recorded step: `function(*arguments, **keywords)`, and the tensors that it gave."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    outputs: list[Tensor]


class _Recorder(TorchDispatchMode):
    """Sees every operation on its way to the device, notes it, and refuses the questions among them."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _asks(function.overloadpacket.__name__, args):
            raise RuntimeError(f"the step waits for the device: {function}")
        result = function(*args, **(kwargs or {}))
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.operations.append(Operation(function, args, kwargs or {}, outputs))
        return result


def _asks(name: str, arguments: Any) -> bool:
    if name.startswith(("index", "_index")) and isinstance(arguments[1], list | tuple):  # x[mask] counts the mask
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in arguments[1])
    return any(name == word or name.startswith(f"{word}_") for word in _QUESTIONS)


def record(step: Callable[[], object]) -> list[Operation]:
    """Run `step` once, and return the operations that it sent to the device, its backward pass included.

    Raises:
        RuntimeError: the step asks the device for a value, or sends it one of the host's numbers; both would wait.
    """
    with _Recorder() as recorder:
        step()
    return recorder.operations


@torch.no_grad()
def replay(operations: list[Operation]) -> None:
    """Run recorded operations again, each on the same tensors, its results copied to where they were the first time.

    Random numbers are drawn anew from the same generators, as a record holds the generator and not the numbers.
    """
    for function, arguments, keywords, outputs in operations:
        results = [leaf for leaf in tree_leaves(function(*arguments, **keywords)) if isinstance(leaf, Tensor)]
        for kept, result in zip(outputs, results, strict=True):
            if kept.data_ptr() != result.data_ptr():  # a view, or a tensor changed in place, is there already
                kept.copy_(result)


def drop_graphs(modules: Iterable[nn.Module]) -> None:
    """Detach what these layers keep of their last pass, so that nothing holds its graph alive.

    A graph holds nodes that belong to the parameters and to the stream on which it was made; a capture on another
    stream that meets these nodes is refused by CUDA.
    """
    for module in modules:
        kept = vars(module)
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                kept[name] = value.detach()


def carries_hooks(model: nn.Module) -> bool:
    """Whether a module or a parameter carries a hook: Python, which a replay would not run."""
    of_modules = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    of_parameters = ("_backward_hooks", "_post_accumulate_grad_hooks")
    hooks = [getattr(module, name, None) for module in model.modules() for name in of_modules]
    hooks += [getattr(parameter, name, None) for parameter in model.parameters() for name in of_parameters]
    return any(hooks)


def may_capture(model: nn.Module, device: torch.device) -> bool:
    """Whether a step of `model` can be a graph: on a CUDA device, and without hooks that each step must run."""
    return device.type == "cuda" and not carries_hooks(model)


class CapturedStep:
    """A function of no arguments whose work on a CUDA device is recorded once, as a graph, and then replayed.

    Each call makes one step. The first ones call `step` as it is, so that the libraries choose their algorithms; the
    next records it, which executes nothing, and from then on a call replays the record: one launch in place of
    some hundred. The record holds addresses and no values, so that `step` may read and write tensors that stay where
    they are, and nothing on the host. Random numbers go on from replay to replay, as if the step ran anew.

    Args:
        step: what to capture.
        device: the CUDA device that it works on.
        generators: those that it draws from.

    Raises:
        RuntimeError: when called, if the step cannot be captured; the process can go on with plain steps.
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
            self._run_aside(refuse_questions=self.calls == self.warm_up)
            return
        if self.graph is None:
            self.graph = self._capture()
        self.graph.replay()

    def _run_aside(self, refuse_questions: bool) -> None:
        """Run the step as it is, on the stream of the capture; a question is found here, before anything is open."""
        watch = _questions_refused() if refuse_questions else contextlib.nullcontext()
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream), watch:
            self.step()
        torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def _capture(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        before, whole = torch.cuda.current_stream(self.device), False
        try:
            with _explained(), torch.cuda.graph(graph, stream=self.stream):
                self.step()
            whole = True
        finally:
            torch.cuda.set_stream(before)  # a capture that fails leaves its own stream current, and its memory open
            if not whole:
                with contextlib.suppress(RuntimeError):  # where CUDA could end the capture, it is closed already
                    torch._C._cuda_endAllocateToPool(before.device_index, graph.pool())
        return graph


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Say what a RuntimeError of CUDA means here, and what to do."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            "the step cannot be captured as a graph: the model or its noise asks the device for a value, or draws "
            "from a generator that no layer names; train it with TrainingConfig(graph=False)"
        ) from error


@contextlib.contextmanager
def _questions_refused() -> Iterator[None]:
    """Have CUDA raise where the host would wait for the device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with _explained():
            yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
