"""What a run needs of the machine: precision, processes, random numbers, a step that can be captured, Ctrl-C."""

import contextlib
import itertools
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from runs import StoppedError, bars, denoising, interrupt, run, same, short, stop, tiny, weights, with_buffers
from torch import nn
from torch.nn.functional import logsigmoid

import dvae_lib.runs.devices
from dvae_lib import (
    BernoulliNoise,
    GaussianNoise,
    MaskingNoise,
    ReparameterizationSampler,
    SaltAndPepperNoise,
    bernoulli_vae,
    convolutional_vae,
    rectangles,
    shipped,
    squares,
)
from dvae_lib.runs.capture import CapturedStep, carries_hooks, drop_graphs, may_capture, record, replay
from dvae_lib.runs.devices import bfloat16_instructions, effective_precision, matmul_precision, process_rank
from dvae_lib.runs.randomness import layer_generators, lent, run_generator
from dvae_lib.runs.reports import ctrl_c
from dvae_lib.runs.run import Run
from dvae_lib.training import training_step

CPU, CUDA = torch.device("cpu"), torch.device("cuda")  # to name a device needs none

# precision


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_f": True}, []),
        ({"avx512_bf16": True, "amx_bf16": True}, ["amx_bf16", "avx512_bf16"]),
        ({"avx512_bf16": False, "bf16": True, "architecture": "bf16", "bf16_units": 4}, ["bf16"]),
    ],
)
def test_bfloat16_is_what_pytorch_knows_of(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert bfloat16_instructions() == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # a PyTorch before 2.11
    assert bfloat16_instructions() == []


@pytest.mark.parametrize("instructions", [[], ["bf16"]])
@pytest.mark.parametrize(("device", "precision"), [*itertools.product(("cpu", "cuda", "mps"), ("tf32", "bfloat16"))])
def test_bfloat16_becomes_float32_where_it_would_be_emulated(monkeypatch, precision, device, instructions):
    monkeypatch.setattr(dvae_lib.runs.devices, "bfloat16_instructions", lambda: instructions)
    emulated = (precision, device, instructions) == ("bfloat16", "cpu", [])
    assert effective_precision(precision, torch.device(device)) == ("float32" if emulated else precision)


def switch_modules():
    both = torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)
    return [module for module in both if hasattr(module, "fp32_precision")]  # since PyTorch 2.9


def switches():
    """PyTorch's older switch of precision, which cannot be read once one of the newer ones is in use, and these."""
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:
        older = None
    return older, *(module.fp32_precision for module in switch_modules())


@pytest.fixture
def _switches_given_back():
    older, *newer = switches()
    yield
    torch.set_float32_matmul_precision(older)
    for module, value in zip(switch_modules(), newer, strict=True):
        module.fp32_precision = value


NEWER = pytest.param("tf32", marks=pytest.mark.skipif(not switch_modules(), reason="needs PyTorch 2.9"))


@pytest.mark.usefixtures("_switches_given_back")
@pytest.mark.parametrize("caller", ["highest", "high", "medium", NEWER])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_precision_of_matrix_products_is_set_and_given_back(caller, precision):
    """Whichever switch the caller has set."""
    if caller == "tf32":
        torch.backends.cuda.matmul.fp32_precision = caller
    else:
        torch.set_float32_matmul_precision(caller)
    before, tf32 = switches(), precision == "tf32"
    assert (before[0] is None) is (caller == "tf32")
    with contextlib.suppress(StoppedError), matmul_precision(precision):
        older, *newer = switches()
        assert set(newer) <= {"tf32" if tf32 else "ieee"}
        assert tf32 or older == "highest"
        stop()
    assert switches() == before


@pytest.fixture
def _any_processor(monkeypatch):
    """Take every processor for one with bfloat16 instructions: one without computes the same, more slowly."""
    monkeypatch.setattr(dvae_lib.runs.devices, "bfloat16_instructions", lambda: ["some"])


@pytest.mark.usefixtures("_any_processor")
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_precision_is_that_of_the_matrix_products(precision):
    """In bfloat16 the losses are close but not the same, and weights and protocol are in float32 all the same."""
    model, rounded, dtypes = tiny(), precision == "bfloat16", set()
    model.decoder.register_forward_hook(lambda *a: dtypes.add(a[-1].dtype))
    protocol, exact = run(model, short(precision=precision)), run(tiny())
    assert dtypes == {torch.bfloat16 if rounded else torch.float32}
    assert {tensor.dtype for tensor in weights(model).values()} == {torch.float32}
    assert protocol.reconstruction.dtype == np.float32
    assert np.array_equal(protocol.reconstruction, exact.reconstruction) is not rounded
    np.testing.assert_allclose(protocol.reconstruction, exact.reconstruction, rtol=0.02)
    np.testing.assert_allclose(protocol.kl[:4], exact.kl[:4], rtol=0.1)  # before the roundings have added up


@pytest.mark.usefixtures("_any_processor")
def test_what_a_run_in_bfloat16_notes_keeps_the_digits_of_float32():
    """The networks' outputs have 8 bits; losses and moments are formed of them in float32. The oracle is float64."""
    model, seen = tiny(), {}
    model.register_forward_pre_hook(lambda _, inputs: seen.update(clean=inputs[0]))
    model.encoder.register_forward_hook(lambda *a: seen.update(mean=a[-1][0].detach(), log_variance=a[-1][1].detach()))
    model.decoder.register_forward_hook(lambda *a: seen.update(logits=a[-1].detach()))
    row = run(model, short(1, precision="bfloat16")).to_numpy()[0, :5]
    assert {tensor.dtype for name, tensor in seen.items() if name != "clean"} == {torch.bfloat16}
    clean, mean, a, logits = (seen[name].double() for name in ("clean", "mean", "log_variance", "logits"))
    log_likelihood = (clean * logsigmoid(logits) + (1 - clean) * logsigmoid(-logits)).sum()
    kl = 0.5 * (mean**2 + a.exp() - 1 - a).sum()
    expected = torch.stack([-log_likelihood / 8, kl / 8, mean.mean(), a.std(), a.mean()])
    np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("_any_processor")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_callers_autocast_changes_nothing(precision):
    """PyTorch's cache of cast weights lives until the caller's context ends, longer than the weights that it holds."""
    outside, inside = tiny(), tiny()
    rows = run(outside, short(precision=precision))
    with torch.autocast("cpu", torch.bfloat16):
        protocol = run(inside, short(precision=precision))
    assert np.array_equal(protocol.to_numpy(), rows.to_numpy())
    assert same(weights(inside), weights(outside))


# processes and random numbers


def test_rank_and_number_of_processes(monkeypatch):
    assert process_rank() == (0, 1)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 8)
    assert process_rank() == (3, 8)
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)  # a PyTorch built without it
    assert process_rank() == (0, 1)


def drawn(seed, rank):
    return tuple(torch.rand(4, generator=run_generator(seed, rank, CPU)).tolist())


def test_generators_of_all_ranks_and_seeds_differ_and_rank_0_has_the_seeds_own():
    numbers = {(seed, rank): drawn(seed, rank) for seed in range(33) for rank in range(8)}
    assert len(set(numbers.values())) == 33 * 8
    assert numbers[5, 3] == drawn(5, 3)
    assert numbers[32, 0] == tuple(torch.rand(4, generator=torch.Generator().manual_seed(32)).tolist())


def test_a_generator_is_lent_to_layers_without_one():
    own, generator = torch.Generator(), torch.Generator()
    model = nn.Sequential(BernoulliNoise(0.1), BernoulliNoise(0.1, own), GaussianNoise(0.1), BernoulliNoise(0.1, own))
    model.append(nn.Linear(2, 2))
    model[-1].generator = np.random.default_rng(0)  # an attribute of that name may be anything
    assert layer_generators(model) == [own]
    seen = []
    with pytest.raises(StoppedError), lent(generator, model):
        stop(seen.extend(layer.generator for layer in model[:4]))
    assert seen == [generator, own, generator, own]
    assert [layer.generator for layer in model][:4] == [None, own, None, own]


@pytest.mark.parametrize("build", [tiny, denoising])
def test_a_run_neither_reads_nor_moves_the_callers_random_numbers(build):
    """Whatever the caller draws before and meanwhile, the run is the same; and the caller draws what it would have."""
    torch.manual_seed(99)
    alone = torch.rand(50)
    expected, model, drawn = build(), build(), []
    run(expected)
    torch.manual_seed(99)
    run(model, short(report_every=1), on_report=lambda *_: drawn.append(torch.rand(5)))
    assert torch.equal(torch.cat(drawn), alone)
    assert same(weights(model), weights(expected))


OF_ITS_OWN = {
    "squares": lambda generator: squares(3, generator),
    "rectangles": lambda generator: rectangles(3, 2, 5, generator),
    "flips": lambda generator: BernoulliNoise(0.1, generator)(bars()),
    "salt and pepper": lambda generator: SaltAndPepperNoise(0.1, generator)(bars()),
    "Gaussian noise": lambda generator: GaussianNoise(0.1, generator)(bars()),
    "sampler": lambda generator: ReparameterizationSampler(generator)(torch.zeros(3, 2), torch.zeros(3, 2)),
    "a shipped model": lambda _: shipped("explorer-p10"),
}


@pytest.mark.parametrize("draw", OF_ITS_OWN.values(), ids=OF_ITS_OWN)
def test_what_has_a_generator_of_its_own_leaves_the_callers_numbers_alone(draw):
    before = torch.get_rng_state()
    draw(torch.Generator())
    assert torch.equal(torch.get_rng_state(), before)


# a step that can be captured


def own_generators(noise):
    model = tiny(noise)
    for seed, layer in enumerate(filter(None, (noise, model.sampler))):
        layer.generator = torch.Generator().manual_seed(seed)
    return model


def normalised(noise):
    model = with_buffers()
    model.noise = noise
    return model


def bits(noise):
    torch.manual_seed(0)
    return bernoulli_vae((1, 6, 6), latent_size=3, hidden_size=7, noise=noise)


def convolutions(noise):
    torch.manual_seed(0)
    return convolutional_vae((1, 6, 6), channels=(2, 3), noise=noise)


MODELS = {
    "mlp": tiny,
    "generators of its own": own_generators,
    "batch normalisation": normalised,
    "bits": bits,
    "convolutions": convolutions,
}
NOISES = {
    "no noise": lambda: None,
    "flips": lambda: BernoulliNoise(0.2),
    "masking": lambda: MaskingNoise(0.2),
    "salt and pepper": lambda: SaltAndPepperNoise(0.2),
    "Gaussian": lambda: GaussianNoise(0.3),
}
SCHEDULES = {
    "inverse time": {"decay": 0.1},
    "cosine, warm-up, weight decay, cooling": {
        "schedule": "cosine",
        "kl_warm_up": 4,
        "weight_decay": 0.1,
        "final_temperature": 0.1,
    },
}


def after_six(step, model, config, replayed):
    """Weights, rows and generators after six steps: all of them plain, or the first recorded and then replayed."""
    made = Run(model, bars(), config, CPU)
    with made.active():
        again = partial(replay, record(partial(step, made))) if replayed else partial(step, made)
        for _ in range(6 - replayed):
            again()
        states = {f"generator {i}": generator.get_state() for i, generator in enumerate(made.generators)}
        return weights(model) | states | {"rows": made.rows.clone()}


@pytest.mark.usefixtures("_any_processor")
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("build", MODELS)
def test_a_replayed_step_is_the_plain_one_bit_for_bit_and_asks_nothing(build, noise, precision, schedule):
    config = short(precision=precision, **SCHEDULES[schedule])
    plain, replayed = (after_six(training_step, MODELS[build](NOISES[noise]()), config, how) for how in (False, True))
    assert same(plain, replayed)
    assert len(plain["rows"][:6, 0].unique()) == 6  # every step has drawn something else
    assert not plain["rows"][6:].any()


def passes(run):
    """How often Python has gone through a step of this run."""
    run.passes = getattr(run, "passes", -1) + 1
    return run.passes


def rate_of_python(run):
    """A learning rate that Python computes, and that a record keeps for ever."""
    run.schedule[:, 0].fill_(run.config.learning_rate_at(passes(run)))
    training_step(run)


def factor_of_python(run):
    """The same of the factor on the divergence."""
    run.model.divergence.weight = 1.0 + passes(run)
    training_step(run)


def batch_of_the_host(run):
    """A part of the images that Python chooses."""
    everything, run.images = run.images, run.images[passes(run) :]
    training_step(run)
    run.images = everything


@pytest.mark.parametrize("step", [rate_of_python, factor_of_python, batch_of_the_host])
def test_the_comparison_sees_what_a_record_freezes(step):
    plain, replayed = (after_six(step, denoising(), short(decay=0.5), how) for how in (False, True))
    assert not same(plain, replayed)


@pytest.mark.parametrize(
    "ask",
    [
        lambda run: run.step.item(),
        lambda run: bool(run.step > 0),
        lambda run: run.schedule[run.step.squeeze(0)],
        lambda run: run.rows[run.schedule[:, 0] > 0.5],
        lambda run: run.rows.nonzero(),
        lambda run: run.rows.masked_select(run.rows > 0),
        lambda run: run.rows.unique(),
        lambda run: run.rows.unique(dim=0),
        lambda run: run.step.bincount(),
        lambda run: torch.tensor(0.5),
        lambda run: run.images[[1, 2]],
        lambda run: run.images[torch.from_numpy(np.arange(4))],
    ],
    ids=[
        *("item", "bool", "index", "mask", "nonzero", "masked_select", "unique", "unique rows", "bincount", "tensor"),
        *("list", "batch of the host"),
    ],
)
def test_the_recorder_refuses_questions(ask):
    """The host would wait for the device, or the device for the host."""
    made = Run(tiny(), bars(), short(), CPU)
    with pytest.raises(RuntimeError, match="the step waits for the device"):
        record(partial(ask, made))


def test_no_graph_is_kept_before_or_after_a_step():
    """One of a pass outside of the run would meet the capture: its nodes belong to another stream."""
    model, seen = denoising(), []
    model(bars())
    assert model.kl.grad_fn is not None
    made = Run(model, bars(), short(), CPU)
    handle = model.register_forward_pre_hook(lambda *_: seen.append(model.kl.grad_fn))
    training_step(made)
    assert seen == [None]
    assert model.kl.grad_fn is None
    handle.remove()
    run(model, short(2, report_every=1), on_report=lambda *_: model(bars()) is None)
    assert model.kl.grad_fn is None
    value = model.kl.item()
    drop_graphs(model.modules())
    assert model.kl.item() == value


def test_only_cuda_captures_and_only_what_has_no_hooks():
    assert may_capture(tiny(), CUDA)
    assert not may_capture(tiny(), CPU)
    assert Run(tiny(), bars(), short(), CPU).captured is False
    for attach in (
        lambda model: model.register_forward_hook(print),
        lambda model: model.decoder[0].register_forward_pre_hook(print),
        lambda model: model.encoder.register_full_backward_hook(print),
        lambda model: model.encoder[1].register_full_backward_pre_hook(print),
        lambda model: model.encoder[1].weight.register_hook(print),
        lambda model: model.encoder[1].bias.register_post_accumulate_grad_hook(print),
    ):
        model = tiny()
        handle = attach(model)
        assert carries_hooks(model)
        assert not may_capture(model, CUDA)
        handle.remove()
        assert not carries_hooks(model)


# the captured step itself, on a device made of lists: what it needs of a real one is in test_gpu.py


class Device:
    """The part of torch.cuda that a captured step uses: what a graph records is executed when it is replayed."""

    def __init__(self, monkeypatch):
        self.log, self.executed, self.graph, self.mode = [], 0, None, 0
        self.stream = self.main = self.new_stream("main")
        replacements = {
            "CUDAGraph": self.new_graph,
            "graph": self.recording,
            "Stream": lambda _: self.new_stream("side"),
            "stream": self.on,
            "current_stream": lambda _: self.stream,
            "set_stream": lambda stream: setattr(self, "stream", stream),
            "get_sync_debug_mode": lambda: self.mode,
            "set_sync_debug_mode": lambda mode: setattr(self, "mode", mode),
        }
        for name, replacement in replacements.items():
            monkeypatch.setattr(torch.cuda, name, replacement)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *pool: self.log.append(pool), raising=False)

    def new_stream(self, name):
        stream = SimpleNamespace(name=name, device_index=0)
        stream.wait_stream = lambda other: self.log.append(f"{name} waits for {other.name}")
        return stream

    def new_graph(self):
        graph = SimpleNamespace(work=0, generators=[], pool=lambda: "pool")
        graph.register_generator_state = graph.generators.append
        graph.replay = lambda: setattr(self, "executed", self.executed + graph.work)
        return graph

    @contextlib.contextmanager
    def recording(self, graph, stream):
        before, self.stream, self.graph = self.stream, stream, graph
        try:
            yield
            self.stream = before  # one that fails leaves its stream current, as PyTorch's does
        finally:
            self.graph = None

    @contextlib.contextmanager
    def on(self, stream):
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    def work(self):
        self.log.append((self.stream.name, self.mode))
        if self.graph is not None:
            self.graph.work += 1
        else:
            self.executed += 1


PLAIN = ["side waits for main", ("side", 0), "main waits for side"]
WATCHED = ["side waits for main", ("side", "error"), "main waits for side"]


def test_each_call_makes_one_step(monkeypatch):
    """Three plain ones on the stream of the capture, the last with questions refused; one recorded; then replays."""
    device, generators = Device(monkeypatch), [torch.Generator(), torch.Generator()]
    step, executed = CapturedStep(device.work, CUDA, generators), []
    for _ in range(8):
        step()
        executed.append(device.executed)
    assert executed == [1, 2, 3, 4, 5, 6, 7, 8]
    assert step.graph.generators == generators
    assert device.log == [*PLAIN, *PLAIN, *WATCHED, ("side", 0)]
    assert (device.stream, device.mode) == (device.main, 0)


CANNOT = r"cannot be captured as a graph: .* TrainingConfig\(graph=False\)"


@pytest.mark.parametrize(
    ("call", "message", "log"),
    [
        (1, "^called a synchronizing operation", ["side waits for main"]),  # an error of the step's own
        (3, CANNOT, ["side waits for main"]),
        (4, CANNOT, [(0, "pool")]),
    ],
    ids=["plain", "asks", "capture"],
)
def test_a_step_that_fails(monkeypatch, call, message, log):
    """The message says what to do, and it can be done in this process: stream, debug mode and memory are as before."""
    device, calls = Device(monkeypatch), iter(range(1, 5))

    def fail():
        if next(calls) == call:
            raise RuntimeError("called a synchronizing operation")

    step = CapturedStep(fail, CUDA, [])
    for _ in range(call - 1):
        step()
    device.log.clear()
    with pytest.raises(RuntimeError, match=message) as caught:
        step()
    assert "synchronizing" in str(caught.value.__cause__ or caught.value)
    assert step.graph is None
    assert (device.stream, device.mode) == (device.main, 0)
    assert device.log == log


# Ctrl-C: what it does to a run is in test_training.py


def test_ctrl_c_is_left_to_whoever_has_taken_it():
    """Another handler stays; a thread may set none."""
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    try:
        with ctrl_c() as pressed:
            interrupt()
            assert not pressed(1, None)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [1]
    with ThreadPoolExecutor(1) as pool:
        assert len(pool.submit(run, tiny()).result()) == 10
