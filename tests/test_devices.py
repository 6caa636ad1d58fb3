"""What the runs ask of the machine, with stand-ins for machines that are not at hand."""

import contextlib
import math
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import AsksNothing, StoppedError, bars, denoising, run, same, short, stop, tiny, weights, with_generators
from torch import nn

import dvae_lib.runs.devices
import dvae_lib.training
from dvae_lib import BernoulliNoise
from dvae_lib.runs.devices import (
    CapturedStep,
    effective_precision,
    keep_freed_memory,
    layer_generators,
    matmul_precision,
    process_rank,
    processor_has_bfloat16,
    random_states,
    seeded,
    set_random_states,
)
from dvae_lib.training import Run, training_step

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


def assert_then_stop(condition):
    assert condition
    stop()


# precision


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({}, False),
        ({"avx2": True, "avx512_f": True}, False),
        ({"avx512_bf16": True}, True),
        ({"avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"bf16": True, "architecture": "aarch64"}, True),
        ({"architecture": "bf16", "cpu_name": "bf16 of sorts"}, False),
        ({"bf16_units": 4}, False),
    ],
)
def test_bfloat16_is_what_pytorch_knows_of(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert processor_has_bfloat16() is expected


def test_a_pytorch_that_knows_nothing_of_the_processor(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert processor_has_bfloat16() is False


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps", "meta"])
@pytest.mark.parametrize("has_bfloat16", [True, False])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_bfloat16_becomes_float32_where_it_would_be_emulated(monkeypatch, precision, has_bfloat16, device):
    monkeypatch.setattr(dvae_lib.runs.devices, "processor_has_bfloat16", lambda: has_bfloat16)
    emulated = precision == "bfloat16" and device == "cpu" and not has_bfloat16
    assert effective_precision(precision, torch.device(device)) == ("float32" if emulated else precision)


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_a_run_computes_in_what_the_processor_has(monkeypatch, capsys, has_bfloat16):
    """Without instructions for bfloat16 it is the run in float32, to the last bit, and the progress bar says so."""
    monkeypatch.setattr(dvae_lib.runs.devices, "processor_has_bfloat16", lambda: has_bfloat16)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    asked, exact = denoising(), denoising()
    run(asked, short(precision="bfloat16"), progress=True)
    run(exact)
    assert same(weights(asked), weights(exact)) is not has_bfloat16
    assert capsys.readouterr().err.lstrip("\r").startswith("bfloat16: " if has_bfloat16 else "float32: ")


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
@pytest.mark.parametrize(("precision", "during"), [("float32", "highest"), ("tf32", "high"), ("bfloat16", "highest")])
def test_precision_of_matrix_products_is_given_back(before, precision, during):
    own = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(before)
    try:
        with pytest.raises(StoppedError), matmul_precision(precision):
            assert_then_stop(torch.get_float32_matmul_precision() == during)
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision(own)


# processes and random numbers


def test_one_process_alone():
    assert process_rank() == (0, 1)


def test_rank_and_number_of_processes(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 8)
    assert process_rank() == (3, 8)


def test_without_distributed_in_pytorch(monkeypatch):
    """A build without it has neither the functions nor ranks."""
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    monkeypatch.delattr(torch.distributed, "is_initialized")
    assert process_rank() == (0, 1)


def drawn(seed, rank):
    with seeded(seed, rank):
        return torch.rand(4).tolist()


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**40])
def test_rank_0_has_the_seeds_own_numbers(seed):
    assert drawn(seed, 0) == torch.rand(4, generator=torch.Generator().manual_seed(seed)).tolist()


def test_all_ranks_of_all_seeds_differ():
    """Rank 1 of seed 0 is not rank 0 of seed 1, nor any other of 32 seeds by 8 ranks."""
    numbers = {tuple(drawn(seed, rank)) for seed in range(32) for rank in range(8)}
    assert len(numbers) == 32 * 8


def test_ranks_draw_the_same_again():
    assert drawn(5, 3) == drawn(5, 3)


@pytest.mark.parametrize("rank", [0, 2])
def test_the_callers_random_state_is_given_back(rank):
    torch.manual_seed(77)
    expected = torch.rand(6)
    torch.manual_seed(77)
    first = torch.rand(3)
    with pytest.raises(StoppedError), seeded(0, rank):
        assert_then_stop(torch.rand(10).numel() == 10)
    assert torch.equal(torch.cat([first, torch.rand(3)]), expected)


def test_layer_generators_are_found_once_each():
    shared, own = torch.Generator(), torch.Generator()
    model = tiny(BernoulliNoise(0.1, shared))
    model.sampler.generator = own
    model.decoder.append(BernoulliNoise(0.1, shared))
    model.decoder.append(BernoulliNoise(0.1))
    found = layer_generators(model)
    assert len(found) == 2
    assert found[0] is shared
    assert found[1] is own


def test_a_generator_of_another_kind_is_none():
    """A layer's attribute of that name may be anything."""
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].generator = np.random.default_rng(0)
    assert layer_generators(model) == []


def test_random_states_come_back():
    """The default generator's and those of the layers, put back in another process, say: all draws are repeated."""

    def draws(model):
        return [torch.rand(3).tolist(), model.noise.corrupt(bars()).tolist(), model.sampler(*parameters).tolist()]

    parameters = torch.zeros(4, 2), torch.zeros(4, 2)
    model, other = with_generators(), with_generators(seed=7)
    torch.rand(5), model.noise.corrupt(bars()), model.sampler(*parameters)
    states = random_states(model, CPU)
    expected = draws(model)
    assert [state.dtype for state in states] == [torch.uint8] * 3
    torch.manual_seed(4711)
    set_random_states(states, other, CPU)
    assert draws(other) == expected


@pytest.mark.parametrize("change", [lambda states: states[:-1], lambda states: [*states, states[0]]])
def test_random_states_of_another_model(change):
    states = random_states(with_generators(), CPU)
    with pytest.raises(ValueError, match="argument"):
        set_random_states(change(states), with_generators(), CPU)


# memory

FREE_AND_ALLOCATE = """
import ctypes, os, resource, torch
from dvae_lib.runs.devices import keep_freed_memory

torch.set_num_threads(1)
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: one huge page for 512 would hide what it costs

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        tensors = [torch.empty(2 * 2**20).fill_(1) for _ in range(6)]  # 8 MB each
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for threshold in (-3, -1):  # as low as at the start of a process, wherever glibc has moved them since
    ctypes.CDLL(None).mallopt(threshold, 128 * 1024)
if os.fork():  # glibc adjusts itself to what has been freed: each of the two starts from nothing
    os.wait()
    keep_freed_memory()
page_faults()
print(page_faults(), flush=True)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the thresholds are glibc's")
def test_freed_memory_is_kept():
    """A loop that frees and allocates 48 MB: each time 12,000 page faults, and then at most a hundredth of them."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    environment |= {"OMP_NUM_THREADS": "1", "THP_MEM_ALLOC_ENABLE": "0"}
    command = [sys.executable, "-c", FREE_AND_ALLOCATE]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=True)
    without, kept = (int(line) for line in done.stdout.split())
    assert without > 10_000
    assert kept < without / 100


def test_a_run_on_the_cpu_keeps_freed_memory(monkeypatch):
    calls = []
    monkeypatch.setattr(dvae_lib.training, "keep_freed_memory", lambda: calls.append(1))
    run(tiny())
    assert calls == [1]


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_left_alone(monkeypatch, system):
    def refuse(*_):
        raise AssertionError("asked the C library")

    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(dvae_lib.runs.devices.ctypes, "CDLL", refuse)
    keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(dvae_lib.runs.devices.ctypes, "CDLL", lambda _: object())
    keep_freed_memory()


# the captured step, with a device made of lists


class FakeStream:
    def __init__(self, log, name):
        self.log, self.name = log, name

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")

    def __enter__(self):
        self.log.append(f"on {self.name}")

    def __exit__(self, *_):
        self.log.append(f"off {self.name}")


class FakeCuda:
    """The part of torch.cuda that a captured step uses; work done while a graph records is noted, not executed."""

    def __init__(self):
        self.log, self.recording, self.executed, self.generators = [], None, 0, []
        self.current = FakeStream(self.log, "main")
        fake = self

        class Graph:
            def __init__(self):
                self.work = 0

            def register_generator_state(self, generator):
                assert fake.recording is None
                fake.generators.append(generator)

            def replay(self):
                fake.log.append("replay")
                fake.executed += self.work

        class Recording:
            def __init__(self, graph, stream):
                self.graph, self.stream = graph, stream

            def __enter__(self):
                fake.recording = self.graph

            def __exit__(self, *_):
                fake.recording = None

        self.CUDAGraph, self.graph = Graph, Recording

    def Stream(self, device):  # noqa: N802
        return FakeStream(self.log, "side")

    def stream(self, stream):
        return stream

    def current_stream(self, device):
        return self.current

    def launch(self):
        """What a step does: one piece of work."""
        if self.recording is not None:
            self.recording.work += 1
        else:
            self.executed += 1


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    for name in ("CUDAGraph", "graph", "Stream", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    return fake


def test_each_call_makes_one_step(cuda):
    """Three plain ones, then one recorded and replayed, then replays of the same record."""
    calls = []
    step = CapturedStep(lambda: (calls.append(1), cuda.launch()), torch.device("cuda"), [])
    executed = []
    for _ in range(8):
        step()
        executed.append(cuda.executed)
    assert executed == [1, 2, 3, 4, 5, 6, 7, 8]
    assert len(calls) == 4
    assert cuda.log.count("replay") == 5


def test_plain_calls_wait_on_both_sides(cuda):
    """On the stream of the capture, after what was queued before and before what comes after."""
    step = CapturedStep(cuda.launch, torch.device("cuda"), [])
    step()
    assert cuda.log == ["side waits for main", "on side", "off side", "main waits for side"]


def test_generators_are_registered_before_the_capture(cuda):
    generators = [torch.Generator(), torch.Generator()]
    step = CapturedStep(cuda.launch, torch.device("cuda"), generators)
    for _ in range(3):
        step()
    assert cuda.generators == []
    step()
    step()
    assert cuda.generators == generators


def test_capture_is_on_the_stream_of_the_plain_calls(cuda, monkeypatch):
    streams = []
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: streams.append(stream) or cuda.graph(graph, stream))
    step = CapturedStep(cuda.launch, torch.device("cuda"), [])
    for _ in range(5):
        step()
    assert streams == [step.stream]


def test_a_step_that_cannot_be_captured(cuda):
    def ask():
        if cuda.recording is not None:
            raise RuntimeError("operation not permitted when stream is capturing")

    step = CapturedStep(ask, torch.device("cuda"), [])
    for _ in range(3):
        step()
    with pytest.raises(
        RuntimeError, match=r"cannot be captured as a graph: .* TrainingConfig\(graph=False\)"
    ) as caught:
        step()
    assert "not permitted" in str(caught.value.__cause__)


def test_other_errors_are_passed_on(cuda):
    def fail():
        raise KeyError("something else")

    with pytest.raises(KeyError, match="something else"):
        CapturedStep(fail, torch.device("cuda"), [])()


@pytest.mark.parametrize("graph", [True, False])
def test_only_cuda_captures(graph):
    assert Run(tiny(), bars(), short(graph=graph), "float32", CPU).captured is False


# a step asks the device nothing


MODELS = pytest.mark.parametrize("build", [tiny, denoising, with_generators])


@MODELS
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_asks_for_no_value(build, precision):
    """Nor does it make a tensor of a number: that would be a copy to the device, and waits too."""
    run = Run(build().train(), bars(), short(), precision, CPU)
    training_step(run)  # Adam makes its state
    with AsksNothing():
        training_step(run)
    assert run.step.item() == 2


class NoOptimizer:
    """Adam needs more than shapes; what it is given is looked at elsewhere."""

    def __init__(self, parameters, lr, **_):
        self.parameters, self.param_groups = list(parameters), [{"lr": lr}]

    def zero_grad(self, set_to_none):
        for parameter in self.parameters:
            parameter.grad = None

    def step(self):
        assert all(parameter.grad.device.type == "meta" for parameter in self.parameters)


@pytest.mark.parametrize("build", [tiny, denoising])
def test_a_step_needs_shapes_alone(monkeypatch, build):
    """On the meta device there are no values: whoever asks for one, or copies it to the host, fails."""
    monkeypatch.setattr(torch.optim, "Adam", NoOptimizer)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    device = torch.device("meta")
    run = Run(build().to(device).train(), bars(), short(), "float32", device)
    training_step(run)
    assert run.rows.is_meta


@pytest.mark.parametrize(
    "ask",
    [
        lambda run: run.step.item(),
        lambda run: bool(run.step > 0),
        lambda run: run.rates[run.step.squeeze(0)],
        lambda run: run.rows[run.rates > 0.5],
        lambda run: torch.tensor(0.5),
    ],
    ids=["item", "bool", "index", "mask", "tensor"],
)
def test_the_guard_sees_who_asks(ask):
    run = Run(tiny(), bars(), short(), "float32", CPU)
    with pytest.raises(AssertionError, match="waits for the device"), AsksNothing():
        ask(run)


def test_a_step_changes_nothing_but_what_stays_in_its_place():
    """A captured step is replayed on the same addresses: weights, moments, rate, rows and counter."""
    run = Run(denoising().train(), bars(), short(), "float32", CPU)
    training_step(run)

    def addresses():
        tensors = [
            *run.model.parameters(),
            run.images,
            run.step,
            run.rates,
            run.rows,
            run.optimizer.param_groups[0]["lr"],
        ]
        for state in run.optimizer.state.values():
            tensors += state.values()
        return [tensor.data_ptr() for tensor in tensors]

    before, first = addresses(), weights(run.model)
    training_step(run)
    assert addresses() == before
    assert not same(weights(run.model), first)
    assert run.step.tolist() == [2]
    assert run.rows[:2].ne(0).all()
    assert not run.rows[2:].any()


def test_rates_on_the_device_are_those_of_the_schedule():
    run = Run(tiny().train(), bars(), short(schedule="cosine"), "float32", CPU)
    for step in range(3):
        training_step(run)
        rate = run.optimizer.param_groups[0]["lr"].item()
        assert rate == pytest.approx(0.01 * (1 + math.cos(math.pi * step / 10)) / 2, rel=1e-6)
