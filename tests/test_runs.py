"""What a run needs of the machine: precision, processes, random numbers, a step that can be captured, Ctrl-C."""

import itertools
import signal
import threading
from functools import partial

import numpy as np
import pytest
import torch
from runs import StoppedError, bars, denoising, interrupt, run, same, short, stop, tiny, weights, with_buffers
from torch import nn

import dvae_lib.runs.devices
from dvae_lib import BernoulliNoise, GaussianNoise, MaskingNoise, SaltAndPepperNoise
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


@pytest.fixture
def _switches_given_back():
    """Whatever a test sets, PyTorch's switches of precision are as before after it."""
    older, newer = torch.get_float32_matmul_precision(), switches()
    yield
    torch.set_float32_matmul_precision(older)
    for module, value in zip(switch_modules(), newer, strict=True):
        module.fp32_precision = value


def switch_modules():
    both = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    return [module for module in both if hasattr(module, "fp32_precision")]  # since PyTorch 2.9


def switches():
    return [module.fp32_precision for module in switch_modules()]


@pytest.mark.usefixtures("_switches_given_back")
@pytest.mark.parametrize("before", ["highest", "high", "medium"])
@pytest.mark.parametrize(("precision", "during"), [("float32", "highest"), ("tf32", "high"), ("bfloat16", "highest")])
def test_precision_of_matrix_products_is_set_and_given_back(before, precision, during):
    torch.set_float32_matmul_precision(before)
    newer, seen = switches(), []

    def look_and_stop():
        seen.append(torch.get_float32_matmul_precision() if precision != "tf32" else "high")
        seen.extend(set(switches()) - {"tf32" if precision == "tf32" else "ieee"})
        stop()

    with pytest.raises(StoppedError), matmul_precision(precision):
        look_and_stop()
    assert seen == [during]
    assert torch.get_float32_matmul_precision() == before
    assert switches() == newer


@pytest.mark.skipif(not switch_modules(), reason="needs PyTorch 2.9")
@pytest.mark.usefixtures("_switches_given_back")
@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_the_newer_switches_of_precision_may_be_in_use(precision):
    """After them the older one can no longer be read; a run neither fails nor forgets what the caller has set."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    before = switches()
    with pytest.raises(RuntimeError):
        torch.get_float32_matmul_precision()
    with matmul_precision(precision):
        assert set(switches()) == {"tf32" if precision == "tf32" else "ieee"}
    assert switches() == before
    assert len(run(tiny(), short(2, precision=precision))) == 2


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
    for seed in (0, 1, 32):
        own = torch.rand(4, generator=torch.Generator().manual_seed(seed))
        assert numbers[seed, 0] == tuple(own.tolist())


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
    expected, model = build(), build()
    run(expected)
    torch.manual_seed(99)
    drawn = []
    run(model, short(report_every=1), on_report=lambda *_: drawn.append(torch.rand(5)))
    assert torch.equal(torch.cat(drawn), alone)
    assert same(weights(model), weights(expected))


# a step that can be captured


@pytest.fixture
def _any_processor(monkeypatch):
    """Take every processor for one with bfloat16 instructions: one without computes the same, more slowly."""
    monkeypatch.setattr(dvae_lib.runs.devices, "bfloat16_instructions", lambda: ["some"])


def own_generators(noise):
    model = tiny(noise)
    model.sampler.generator = torch.Generator().manual_seed(5)
    if noise is not None:
        noise.generator = torch.Generator().manual_seed(6)
    return model


def normalised(noise):
    model = with_buffers()
    model.noise = noise
    return model


MODELS = {"mlp": tiny, "generators of its own": own_generators, "batch normalisation": normalised}
NOISES = {
    "no noise": lambda: None,
    "flips": lambda: BernoulliNoise(0.2),
    "masking": lambda: MaskingNoise(0.2),
    "salt and pepper": lambda: SaltAndPepperNoise(0.2),
    "Gaussian": lambda: GaussianNoise(0.3),
}
SCHEDULES = {
    "inverse time": {"decay": 0.1},
    "cosine, warm-up, weight decay": {"schedule": "cosine", "kl_warm_up": 4, "weight_decay": 0.1},
}


def after(model, config, step, how, steps=6):
    """Weights, rows and generators after `steps` steps: all of them plain, or the first recorded and then replayed."""
    made = Run(model, bars(), config, CPU)
    with made.active():
        operations = record(partial(step, made)) if how == "replayed" else None
        for _ in range(steps - (how == "replayed")):
            step(made) if operations is None else replay(operations)
        states = {f"generator {i}": generator.get_state() for i, generator in enumerate(made.generators)}
        return weights(model) | states | {"rows": made.rows.clone()}


@pytest.mark.usefixtures("_any_processor")
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("build", MODELS)
def test_a_replayed_step_is_the_plain_one_bit_for_bit_and_asks_nothing(build, noise, precision, schedule):
    config = short(precision=precision, **SCHEDULES[schedule])
    plain, replayed = (
        after(MODELS[build](NOISES[noise]()), config, training_step, how) for how in ("plain", "replayed")
    )
    assert same(plain, replayed)
    assert len(plain["rows"][:6, 0].unique()) == 6  # every step has drawn something else
    assert not plain["rows"][6:].any()


count = itertools.count()


def rate_of_python(run):
    """A learning rate that Python computes, and that a record keeps for ever."""
    run.schedule[:, 0].fill_(run.config.learning_rate_at(next(count) % 6))
    training_step(run)


def factor_of_python(run):
    """The same of the factor on the divergence."""
    run.model.divergence.weight = 1.0 + next(count) % 6
    training_step(run)


def batch_of_the_host(run):
    """A part of the images that Python chooses."""
    everything, run.images = run.images, run.images[next(count) % 6 :]
    training_step(run)
    run.images = everything


@pytest.mark.parametrize("step", [rate_of_python, factor_of_python, batch_of_the_host])
def test_the_comparison_sees_what_a_record_freezes(monkeypatch, step):
    found = []
    for how in ("plain", "replayed"):
        monkeypatch.setitem(globals(), "count", itertools.count())
        found.append(after(denoising(), short(decay=0.5), step, how))
    assert not same(*found)


@pytest.mark.parametrize(
    "ask",
    [
        lambda run: run.step.item(),
        lambda run: bool(run.step > 0),
        lambda run: run.schedule[run.step.squeeze(0)],
        lambda run: run.rows[run.schedule[:, 0] > 0.5],
        lambda run: run.rows.nonzero(),
        lambda run: run.rows.masked_select(run.rows > 0),
        lambda run: torch.tensor(0.5),
        lambda run: run.images[[1, 2]],
        lambda run: run.images[torch.from_numpy(np.arange(4))],
    ],
    ids=["item", "bool", "index", "mask", "nonzero", "masked_select", "tensor", "list", "batch of the host"],
)
def test_the_recorder_refuses_questions(ask):
    """The host would wait for the device, or the device for the host."""
    made = Run(tiny(), bars(), short(), CPU)
    with pytest.raises(RuntimeError, match="the step waits for the device"):
        record(partial(ask, made))


def test_a_record_runs_again_on_the_same_tensors():
    """Views, operations in place and out of place, several outputs and draws; by hand."""
    generator, x, drawn = torch.Generator().manual_seed(3), torch.tensor([1.0, 4.0]), torch.zeros(2)
    kept = {}

    def step():
        kept["view"] = x[1:]
        kept["view"].mul_(2)
        kept["std"], kept["mean"] = torch.std_mean(x)
        drawn.copy_(torch.rand(2, generator=generator))

    operations = record(step)
    assert x.tolist() == [1, 8]
    replay(operations)
    replay(operations)
    assert x.tolist() == [1, 32]
    assert kept["mean"].item() == 16.5
    assert kept["std"].item() == pytest.approx(31 / 2**0.5)
    again = torch.Generator().manual_seed(3)
    assert drawn.tolist() == [torch.rand(2, generator=again) for _ in range(3)][2].tolist()


def test_a_step_changes_nothing_but_what_stays_in_its_place():
    """A captured step is replayed on the same addresses: weights, moments, rate, rows and counter."""
    made = Run(denoising().train(), bars(), short(), CPU)

    def addresses():
        tensors = [*made.model.parameters(), made.images, made.step, made.schedule, made.rows]
        tensors.append(made.optimizer.param_groups[0]["lr"])
        return [tensor.data_ptr() for tensor in (*tensors, *made.state().values()) if tensor.numel()]

    before = addresses()[:-1]  # the state of a generator is copied where it is asked for
    training_step(made)
    training_step(made)
    assert [address for address in before if address not in addresses()] == []
    assert made.done == 2


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


class Stream:
    """A place where work is done in order; it notes who waits for whom."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


class Device:
    """The part of torch.cuda that a captured step uses. Work done while a graph records is noted, not executed."""

    def __init__(self, monkeypatch):
        self.log, self.executed, self.recording, self.debug_mode = [], 0, None, 0
        self.current, device = Stream("main", self.log), self

        class Graph:
            work, generators = 0, ()

            def register_generator_state(self, generator):
                assert device.recording is None
                self.generators += (generator,)

            def replay(self):
                device.executed += self.work

        class Recording:
            def __init__(self, graph, stream):
                self.graph, self.stream = graph, stream

            def __enter__(self):
                device.recording, device.current = self.graph, self.stream

            def __exit__(self, error, *_):
                device.recording = None
                if error is None:  # one that fails leaves its stream current, as PyTorch's does
                    device.current = self.main

            main = self.current

        class On:
            def __init__(self, stream):
                self.stream = stream

            def __enter__(self):
                self.before, device.current = device.current, self.stream

            def __exit__(self, *_):
                device.current = self.before

        replacements = {
            "CUDAGraph": Graph,
            "graph": Recording,
            "Stream": lambda _: Stream("side", self.log),
            "stream": On,
            "current_stream": lambda _: self.current,
            "set_stream": lambda stream: setattr(self, "current", stream),
            "get_sync_debug_mode": lambda: self.debug_mode,
            "set_sync_debug_mode": lambda mode: setattr(self, "debug_mode", mode),
        }
        for name, replacement in replacements.items():
            monkeypatch.setattr(torch.cuda, name, replacement)

    def work(self, question=False):
        if question and (self.recording is not None or self.debug_mode == "error"):
            raise RuntimeError("called a synchronizing operation")
        self.log.append((self.current.name, self.debug_mode))
        if self.recording is not None:
            self.recording.work += 1
        else:
            self.executed += 1


def test_each_call_makes_one_step(monkeypatch):
    """Three plain ones on the stream of the capture, the last with questions refused; one recorded; then replays."""
    device, generators = Device(monkeypatch), [torch.Generator(), torch.Generator()]
    step, executed = CapturedStep(device.work, CUDA, generators), []
    for _ in range(8):
        step()
        executed.append(device.executed)
    assert executed == [1, 2, 3, 4, 5, 6, 7, 8]
    assert step.graph.generators == tuple(generators)
    plain = ["side waits for main", ("side", 0), "main waits for side"]
    watched = ["side waits for main", ("side", "error"), "main waits for side"]
    assert device.log == [*plain, *plain, *watched, ("side", 0)]
    assert (device.current.name, device.debug_mode) == ("main", 0)


def test_a_step_that_asks_is_refused_before_the_capture(monkeypatch):
    """The message says what to do, and it can be done in this process: stream and debug mode are as before."""
    device = Device(monkeypatch)
    step = CapturedStep(partial(device.work, question=True), CUDA, [])
    step()
    step()
    message = r"cannot be captured as a graph: .* TrainingConfig\(graph=False\)"
    with pytest.raises(RuntimeError, match=message) as caught:
        step()
    assert "synchronizing" in str(caught.value.__cause__)
    assert step.graph is None
    assert (device.current.name, device.debug_mode) == ("main", 0)


def test_errors_of_a_plain_step_are_passed_on(monkeypatch):
    Device(monkeypatch)
    with pytest.raises(StoppedError):
        CapturedStep(stop, CUDA, [])()


# Ctrl-C


@pytest.fixture
def _default_handler():
    """A shell starts what it puts aside with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_default_handler")
def test_a_first_ctrl_c_is_kept_and_a_second_passed_on():
    answers = []

    def press_twice(pressed):
        for _ in range(2):
            answers.append(pressed(1, None))
            interrupt()

    with pytest.raises(KeyboardInterrupt), ctrl_c() as pressed:
        press_twice(pressed)
    assert answers == [False, True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("_default_handler")
def test_ctrl_c_is_left_to_whoever_has_taken_it():
    """Another handler stays; a thread may set none."""
    heard = []
    signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    with ctrl_c() as pressed:
        interrupt()
        assert not pressed(1, None)
    assert heard == [1]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    inside = []

    def work():
        with ctrl_c() as pressed:
            inside.append((signal.getsignal(signal.SIGINT) is signal.default_int_handler, pressed(1, None)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [(True, False)]
