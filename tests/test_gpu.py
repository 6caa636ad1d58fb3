"""The captured step against the plain one. What a GPU is needed for is marked `gpu` and skipped without one.

Most tests run on the CPU as well, where both runs take the plain path: that shows that the test itself works.
"""

import contextlib
import gc
import math
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import (
    AsksNothing,
    StoppedError,
    bars,
    denoising,
    run,
    same,
    short,
    stop,
    tiny,
    weights,
    with_buffers,
    with_generators,
)
from torch import nn
from torch.nn.functional import logsigmoid

import dvae_lib.runs.files
import dvae_lib.training
from dvae_lib import BernoulliNoise, ReparameterizationSampler, TrainingConfig, load_checkpoint, mlp_vae, squares
from dvae_lib.runs.devices import CapturedStep, layer_generators
from dvae_lib.training import Run, training_step

ROOT = Path(__file__).resolve().parent.parent
NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
gpu = pytest.param("cuda", marks=NEEDS_GPU)
each_device = pytest.mark.parametrize("device", ["cpu", gpu])
each_graph = pytest.mark.parametrize("graph", [True, False], ids=["graph", "plain"])
# on the CPU there is one path, whatever is asked for
PATHS = {"cpu": ("cpu", True), "graph": ("cuda", True), "plain": ("cuda", False)}
each_path = pytest.mark.parametrize(
    ("device", "graph"),
    [pytest.param(*path, id=name, marks=() if name == "cpu" else NEEDS_GPU) for name, path in PATHS.items()],
)
LONG = 200 if torch.cuda.is_available() else 40  # steps; without a GPU these runs show only that the tests work


def on_gpu(test):
    """Mark a test that makes no sense elsewhere."""
    for mark in NEEDS_GPU:
        test = mark(test)
    return test


def own_generators(seed=0, device="cpu"):
    return with_generators(seed, device)


MODELS = {
    "plain": lambda seed=0, device="cpu": tiny(seed=seed),
    "denoising": lambda seed=0, device="cpu": denoising(seed),
    "generators of its own": own_generators,
    "buffers": lambda seed=0, device="cpu": with_buffers(seed),
}
each_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


def calm(steps=LONG, **changes):
    """A run so gentle that roundings stay small: 200 steps make less than 1e-5 of 1e-7."""
    return short(steps, **{"learning_rate": 1e-3, "report_every": 50, **changes})


def assert_close(model, protocol, expected_model, expected_protocol, device):
    """Float tolerance on a GPU, the same bits on the CPU."""
    exact = device == "cpu"
    tolerances = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-3, "atol": 1e-4}
    np.testing.assert_allclose(protocol.to_numpy(), expected_protocol.to_numpy(), **tolerances)
    for name, tensor in expected_model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, **tolerances, msg=name)
    pairs = zip(layer_generators(model), layer_generators(expected_model), strict=True)
    assert all(torch.equal(a.get_state(), b.get_state()) for a, b in pairs)


@pytest.fixture
def seen(monkeypatch):
    """What `train` makes: its runs and captured steps, and how often Python went through a step."""
    found = {"runs": [], "captured": [], "passes": 0}

    def make(kind, real):
        def build(*arguments):
            found[kind].append(real(*arguments))
            return found[kind][-1]

        return build

    def counted(run):
        found["passes"] += 1
        training_step(run)

    monkeypatch.setattr(dvae_lib.training, "Run", make("runs", Run))
    monkeypatch.setattr(dvae_lib.training, "CapturedStep", make("captured", CapturedStep))
    monkeypatch.setattr(dvae_lib.training, "training_step", counted)
    return found


# the same run


@each_device
@each_model
def test_captured_run_equals_the_plain_one(device, build):
    """200 steps from the same random numbers: weights, protocol and the layers' generators."""
    captured, plain = build(device=device), build(device=device)
    first = run(captured, calm(graph=True), device=device)
    second = run(plain, calm(graph=False), device=device)
    assert_close(captured, first, plain, second, device)
    assert first.reconstruction[-20:].mean() < first.reconstruction[:20].mean()


@each_path
def test_what_is_replayed(seen, device, graph):
    """On a GPU: three plain steps, one recorded, and the rest replays, which Python does not go through."""
    run(tiny(), calm(40, graph=graph), device=device)
    captures = graph and device == "cuda"
    assert seen["runs"][0].captured is captures
    assert seen["passes"] == (4 if captures else 40)
    assert len(seen["captured"]) == captures
    if captures:
        assert seen["captured"][0].calls == 40
        assert seen["captured"][0].graph is not None


@each_path
@pytest.mark.parametrize("report_every", [1, 3, 7, 1000])
def test_reports_change_nothing(device, graph, report_every):
    """Neither those in the first three steps, nor those that do not divide the run."""
    expected, model = denoising(), denoising()
    rows = run(expected, calm(30, graph=graph, report_every=10), device=device)
    protocol = run(model, calm(30, graph=graph, report_every=report_every), device=device)
    assert_close(model, protocol, expected, rows, device)


@each_path
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_short_runs(device, graph, steps):
    """Over before the capture, or just after it: as many rows as steps, all of them filled."""
    model, plain = denoising(), denoising()
    protocol = run(model, calm(steps, graph=graph), device=device)
    assert len(protocol) == steps
    assert protocol.to_numpy()[:, [0, 1, 3, 5]].all()
    assert_close(model, protocol, plain, run(plain, calm(steps, graph=False), device=device), device)


@each_path
@pytest.mark.parametrize("schedule", ["inverse_time", "cosine"])
def test_learning_rate_and_moments_move(seen, device, graph, schedule):
    """The protocol's rates are the schedule's at each step, and Adam has counted every one."""
    config = calm(graph=graph, schedule=schedule, decay=0.01)
    protocol = run(tiny(), config, device=device)
    expected = np.array([config.learning_rate_at(step) for step in range(LONG)], dtype=np.float32)
    assert np.array_equal(protocol.learning_rate, expected)
    (made,) = seen["runs"]
    assert made.step.item() == LONG
    assert made.optimizer.param_groups[0]["lr"].item() == pytest.approx(config.learning_rate_at(LONG - 1), rel=1e-6)
    for state in made.optimizer.state.values():
        assert state["step"].item() == LONG
        assert state["exp_avg"].abs().sum() > 0
        assert state["exp_avg_sq"].sum() > 0


@each_path
def test_the_rate_that_is_noted_is_the_rate_that_is_used(device, graph):
    """A constant gradient: each of Adam's steps is the learning rate, and the weight has gone the sum of them."""
    model, config = Slope().to(device), calm(100, graph=graph, decay=0.1)
    run(model, config, torch.rand(5, 1, 2, 2), device=device)
    assert model.weight.item() == pytest.approx(-sum(config.learning_rate_at(t) for t in range(100)), rel=1e-3)


class Slope(nn.Module):
    """One weight with the gradient 1 at every step."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.posterior = ()

    @property
    def kl(self):
        return self.weight

    def forward(self, images):
        self.posterior = torch.zeros(2, 1, device=images.device), torch.zeros(2, 1, device=images.device)
        return torch.zeros_like(images)


# random numbers


class Logging(nn.Module):
    """Keeps what passes, step after step, in a tensor on the device: also when no Python runs."""

    def __init__(self, inner, steps, shape):
        super().__init__()
        self.inner = inner
        self.generator = inner.generator
        self.register_buffer("count", torch.zeros(1, dtype=torch.int64), persistent=False)
        self.register_buffer("inputs", torch.zeros(steps, *shape), persistent=False)
        self.register_buffer("outputs", torch.zeros(steps, *shape), persistent=False)

    def forward(self, *inputs):
        output = self.inner(*inputs)
        self.inputs.index_copy_(0, self.count, inputs[0].detach().unsqueeze(0).to(self.inputs.dtype))
        self.outputs.index_copy_(0, self.count, output.detach().unsqueeze(0).to(self.outputs.dtype))
        self.count += 1
        return output


class Eps(nn.Module):
    """A sampler that returns its noise alone."""

    def __init__(self, generator=None):
        super().__init__()
        self.generator = generator

    def forward(self, mean, log_variance):
        eps = torch.randn(mean.shape, generator=self.generator, device=mean.device)
        return eps + 0 * (mean + log_variance)


def logged(steps, device, own, batch=8):
    """A model that logs batches, corrupted batches and the noise of the codes; `own` generators, or the default one."""
    sources = [torch.Generator(device).manual_seed(seed) for seed in (5, 6)] if own else [None, None]
    model = tiny()
    model.noise = Logging(BernoulliNoise(0.2, sources[0]), steps, (batch, 1, 6, 6))
    model.sampler = Logging(Eps(sources[1]), steps, (batch, 2))
    return model


def draws(steps, device, graph, own):
    model = logged(steps, device, own)
    run(model, calm(steps, graph=graph, seed=3), device=device)
    assert model.noise.count.item() == model.sampler.count.item() == steps
    batches, corrupted = model.noise.inputs.cpu(), model.noise.outputs.cpu()
    return batches, batches != corrupted, model.sampler.outputs.cpu()


@each_path
@pytest.mark.parametrize("own", [False, True], ids=["default generator", "own generators"])
def test_every_step_draws_afresh(device, graph, own):
    """No two of the same batch, flips or codes, and each as frequent as it should be, within 5 errors."""
    steps = LONG
    batches, flips, eps = draws(steps, device, graph, own)
    for drawn in (batches, flips, eps):
        assert len(drawn.flatten(1).unique(dim=0)) == steps
    images = (batches.reshape(-1, 1, 36) == bars().reshape(1, 12, 36)).all(2)  # which of the twelve it is
    assert images.sum(1).eq(1).all()
    n = steps * 8
    assert (images.sum(0) / n - 1 / 12).abs().max() < 5 * math.sqrt(1 / 12 * 11 / 12 / n)
    assert abs(flips.double().mean() - 0.2) < 5 * math.sqrt(0.2 * 0.8 / flips.numel())
    by_pixel = flips.double().mean((0, 1))
    assert (by_pixel - 0.2).abs().max() < 5 * math.sqrt(0.2 * 0.8 / n)
    assert abs(eps.mean()) < 5 / math.sqrt(eps.numel())
    assert abs(eps.var() - 1) < 5 * math.sqrt(2 / eps.numel())
    # one step's draws tell nothing of the next one's
    correlation = (eps[1:] * eps[:-1]).mean()
    assert abs(correlation) < 5 / math.sqrt(eps[1:].numel())


@each_device
@pytest.mark.parametrize("own", [False, True], ids=["default generator", "own generators"])
def test_replays_draw_what_plain_steps_draw(device, own):
    for captured, plain in zip(draws(60, device, True, own), draws(60, device, False, own), strict=True):
        assert torch.equal(captured, plain)


@each_path
def test_the_callers_random_states_are_given_back(device, graph):
    """The CPU's and the GPU's default generator; a run in between does not show in the caller's draws."""
    model = denoising()
    torch.manual_seed(42)
    expected = [torch.rand(6), torch.rand(6, device=device)]
    torch.manual_seed(42)
    first = [torch.rand(3), torch.rand(3, device=device)]
    run(model, calm(20, graph=graph), device=device)
    second = [torch.rand(3), torch.rand(3, device=device)]
    if device == "cpu":  # one generator for both
        order = [first[0], first[1], second[0], second[1]]
        assert torch.equal(torch.cat(order), torch.cat(expected))
    else:
        states = torch.cuda.get_rng_state()
        run(model, calm(20, graph=graph), device=device)
        assert torch.equal(torch.cuda.get_rng_state(), states)
        assert torch.equal(torch.cat([first[0], second[0]]), expected[0])


@each_path
def test_one_seed_one_result(device, graph):
    first, second = denoising(), denoising()
    protocols = [run(model, calm(50, graph=graph), device=device) for model in (first, second)]
    assert_close(first, protocols[0], second, protocols[1], device)
    other = run(denoising(), calm(50, graph=graph, seed=1), device=device)
    assert not np.allclose(other.reconstruction, protocols[0].reconstruction, rtol=1e-2)


@each_path
def test_a_model_is_trained_on_and_used_after_a_run(device, graph):
    """The second run captures anew; the weights stay where they are, and passes outside of a run work."""
    model = denoising().to(device)
    before = [parameter.data_ptr() for parameter in model.parameters()]
    first = run(model, calm(graph=graph), device=device)
    second = run(model, calm(graph=graph), device=device)
    assert second.reconstruction.mean() < first.reconstruction.mean()
    assert [parameter.data_ptr() for parameter in model.parameters()] == before
    assert not model.training
    with torch.no_grad():
        logits = model(bars().to(device))
    assert logits.isfinite().all()


# precision


@pytest.fixture
def any_processor(monkeypatch):
    """Take every processor for one with bfloat16 instructions: one without computes the same, more slowly."""
    monkeypatch.setattr("dvae_lib.runs.devices.bfloat16_instructions", lambda: ["some"])


def wide(device, steps):
    """A model whose matrix products are large enough for every kind of unit, and logs its draws."""
    torch.manual_seed(0)
    model = mlp_vae(hidden_size=128, noise=BernoulliNoise(0.1))
    model.noise = Logging(model.noise, steps, (32, 1, 24, 24))
    model.sampler = Logging(ReparameterizationSampler(), steps, (32, 2))
    return model.to(device)


def images_24():
    return squares(200, torch.Generator().manual_seed(0))


def gradients_and_truth(device, precision, graph, steps):
    """The gradients of a run's last step, and those of the written-out objective in float64 on the CPU.

    Nothing moves: with a learning rate of 1e-12, all steps are at the initial weights.
    """
    model = wide(device, steps)
    config = TrainingConfig(steps=steps, batch_size=32, learning_rate=1e-12, precision=precision, graph=graph)
    run(model, config, images_24(), device=device)
    gradients = {name: parameter.grad.double().cpu() for name, parameter in model.named_parameters()}
    exact = wide("cpu", steps).double()
    clean, corrupted = (kept[-1].double().cpu() for kept in (model.noise.inputs, model.noise.outputs))
    mean, log_variance = exact.encoder(corrupted)
    codes = model.sampler.outputs[-1].double().cpu()
    eps = (codes - model.sampler.inputs[-1].double().cpu()) / torch.exp(log_variance.detach() / 2)
    logits = exact.decoder(mean + torch.exp(log_variance / 2) * eps)
    log_likelihood = (clean * logsigmoid(logits) + (1 - clean) * logsigmoid(-logits)).sum()
    (0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum() - log_likelihood).backward()
    return gradients, {name: parameter.grad for name, parameter in exact.named_parameters()}


@each_path
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("tf32", 1e-2), ("bfloat16", 5e-2)])
def test_gradients_of_each_precision(any_processor, device, graph, precision, tolerance):
    """Each parameter's, in length, within the precision's error of those in float64; the fifth step is a replay."""
    gradients, truth = gradients_and_truth(device, precision, graph, 5)
    for name, gradient in gradients.items():
        error = (gradient - truth[name]).norm() / truth[name].norm()
        assert error < tolerance, name
    if precision == "bfloat16":
        name = "decoder.2.weight"
        assert (gradients[name] - truth[name]).norm() / truth[name].norm() > 1e-4


@each_path
@pytest.mark.parametrize(("precision", "tolerance"), [("tf32", 0.01), ("bfloat16", 0.03)])
def test_runs_of_each_precision_learn_alike(any_processor, device, graph, precision, tolerance):
    """At the end the losses are those of float32, within what the precision explains."""
    exact = run(denoising(), calm(graph=graph), device=device)
    rounded = run(denoising(), calm(graph=graph, precision=precision), device=device)
    assert rounded.reconstruction[-30:].mean() == pytest.approx(exact.reconstruction[-30:].mean(), rel=tolerance)
    assert rounded.to_numpy().dtype == np.float32


@on_gpu
def test_tf32_is_used_where_it_is_asked_for():
    """Products of 1024 x 1024 matrices: the error against float64 is a hundred times that of float32."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs a GPU of compute capability 8.0")

    def error(precision):
        with dvae_lib.runs.devices.matmul_precision(precision):
            return ((a @ b).double() - a.double() @ b.double()).abs().mean()

    a, b = torch.rand(2, 1024, 1024, device="cuda")
    assert error("tf32") > 10 * error("float32")


# stopped and called again


def stop_after_write(monkeypatch, number):
    """Stop the run when its file number `number` is whole, counted from 1: replays pass no hook."""
    write, writes = dvae_lib.runs.files.write, iter(range(1, 10**6))

    def stopping(*arguments):
        write(*arguments)
        if next(writes) == number:
            stop()

    monkeypatch.setattr(dvae_lib.runs.files, "write", stopping)


@each_device
@each_model
@pytest.mark.parametrize(("before", "after"), [(True, True), (True, False), (False, True)])
def test_resumed_across_captured_and_plain(monkeypatch, tmp_path, device, build, before, after):
    """Stopped at step 30 of 50: the rest ends like the run that went through."""
    path, config = tmp_path / "run.safetensors", calm(50, report_every=10, checkpoint_every=10)
    expected, stopped, model = (build(seed, device=device) for seed in (0, 0, 7))
    rows = run(expected, config, device=device)
    with monkeypatch.context() as patch:
        stop_after_write(patch, 3)
        with pytest.raises(StoppedError):
            run(stopped, calm(50, report_every=10, checkpoint_every=10, graph=before), device=device, checkpoint=path)
    rest = calm(50, report_every=10, checkpoint_every=10, graph=after)
    assert_close(model, run(model, rest, device=device, checkpoint=path), expected, rows, device)


@on_gpu
def test_checkpoint_of_another_device(tmp_path):
    """Its random numbers cannot go on here, so that it is refused, before anything has changed."""
    path = tmp_path / "run.safetensors"
    run(denoising(), calm(20), device="cpu", checkpoint=path)
    model = denoising(seed=7)
    before = weights(model)
    with pytest.raises(ValueError, match=r"run\.safetensors"):
        run(model, calm(20), device="cuda", checkpoint=path)
    assert same(weights(model), before)
    assert next(model.parameters()).device.type == "cpu"


# when things go wrong


class Fault(nn.Module):
    """Multiplies what passes in step `step` by NaN; the steps are counted on the device."""

    def __init__(self, step):
        super().__init__()
        self.step = step
        self.register_buffer("count", torch.zeros(1, dtype=torch.int64), persistent=False)

    def forward(self, values):
        factor = torch.where(self.count == self.step, math.nan, 1.0)
        self.count += 1
        return values * factor


@each_path
@pytest.mark.parametrize(("step", "report"), [(1, 0), (3, 0), (10, 0), (25, 20), (39, 20), (40, 40)])
def test_loss_not_finite(device, graph, step, report):
    """Reports at 20, 40, 60: the error names the step, and the weights are those of the report before."""
    model, good = denoising(), denoising()
    model.decoder.append(Fault(step))
    message = rf"the loss stopped being finite at step {step}; .* before step {report}\."
    with pytest.raises(FloatingPointError, match=message):
        run(model, calm(60, report_every=20, graph=graph), device=device)
    model.decoder.pop(-1)
    if report:
        run(good, calm(report, report_every=20, graph=graph), device=device)
    for name, tensor in good.to(device).state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    assert not model.training


@each_path
def test_ctrl_c(monkeypatch, device, graph):
    """Between two reports, under replay: as many rows as steps, and the weights of just those."""
    owner, name = (CapturedStep, "__call__") if graph and device == "cuda" else (dvae_lib.training, "training_step")
    step, calls = getattr(owner, name), iter(range(10**6))

    def interrupted(argument):
        if next(calls) == 33:
            raise KeyboardInterrupt
        step(argument)

    model, expected = denoising(), denoising()
    rows = run(expected, calm(33, graph=graph), device=device)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        protocol = run(model, calm(50, report_every=20, graph=graph), device=device)
    assert len(protocol) == 33
    assert_close(model, protocol, expected, rows, device)


class Asking(BernoulliNoise):
    """Noise that asks the device for a value."""

    def corrupt(self, images):
        return super().corrupt(images) if images.sum().item() > 0 else images


class Hidden(nn.Module):
    """Noise whose generator no layer names."""

    def __init__(self, device):
        super().__init__()
        self.source = torch.Generator(device).manual_seed(0)

    def forward(self, images):
        return torch.where(
            torch.rand(images.shape, generator=self.source, device=images.device) < 0.2, 1 - images, images
        )


@each_device
@pytest.mark.parametrize("noise", [lambda device: Asking(0.2), Hidden], ids=["asks", "hidden generator"])
def test_a_model_that_cannot_be_captured(device, noise):
    """The error says so and what to do; done so, the model trains, and other models are captured as before."""
    message = r"the step cannot be captured as a graph: .* TrainingConfig\(graph=False\)"
    refuses = pytest.raises(RuntimeError, match=message) if device == "cuda" else contextlib.nullcontext()
    with refuses:
        run(tiny(noise(device)), calm(20), device=device)
    protocol = run(tiny(noise(device)), calm(20, graph=False), device=device)
    assert len(protocol) == 20
    captured, plain = denoising(), denoising()
    rows = run(captured, calm(20), device=device), run(plain, calm(20, graph=False), device=device)
    assert_close(captured, rows[0], plain, rows[1], device)


# what a step costs the host and the memory


@contextlib.contextmanager
def no_waiting(device):
    """Fail where the host waits for the device."""
    if device == "cpu":
        with AsksNothing():
            yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_path
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_host_does_not_wait_between_reports(device, graph, precision):
    made = Run(denoising().to(device).train(), bars(), calm(graph=graph), precision, torch.device(device))
    step = partial(training_step, made)
    if made.captured:
        step = CapturedStep(step, torch.device(device), [])
    for _ in range(5):
        step()
    with no_waiting(device):
        for _ in range(30):
            step()
    assert made.step.item() == 35


@on_gpu
def test_the_host_is_ahead_of_the_device():
    """Replays are queued, not waited for: 50 of them are handed over in less than half the time that they take."""
    torch.manual_seed(0)
    device = torch.device("cuda")
    model = mlp_vae(hidden_size=2048, noise=BernoulliNoise(0.1)).to(device).train()
    made = Run(model, images_24(), TrainingConfig(steps=300, batch_size=2048), "float32", device)
    step = CapturedStep(partial(training_step, made), device, [])
    for _ in range(10):
        step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(50):
        step()
    queued = time.perf_counter()
    torch.cuda.synchronize()
    assert queued - start < (time.perf_counter() - start) / 2
    assert made.step.item() == 60


def settle():
    """Drop what nobody holds, and cuBLAS's work space, which stays with each stream that a run has used."""
    gc.collect()
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


def peak_memory(steps, graph, hidden_size=1152):
    """The most bytes that a run of the article's networks holds on the GPU beyond what was there."""
    settle()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = mlp_vae(hidden_size=hidden_size, noise=BernoulliNoise(0.1))
    run(model, TrainingConfig(steps=steps, hidden_size=hidden_size, graph=graph), images_24(), device="cuda")
    return torch.cuda.max_memory_allocated() - before


@on_gpu
@each_graph
def test_memory_is_bounded(graph):
    """Weights, gradients, two moments and the copy to fall back on: five times 16 MB, activations and work space."""
    peak = peak_memory(60, graph)
    assert 5 * 4 * 3_993_412 < peak < 400e6
    assert peak_memory(300, graph) < peak + 1e6  # more steps take no more, but for their rows


@on_gpu
@each_graph
def test_memory_is_given_back(graph):
    """After the run and the model are gone, so is what they held."""
    peak_memory(20, graph)  # what is made once
    settle()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        peak_memory(20, graph)
    settle()
    assert torch.cuda.memory_allocated() < before + 1e6


# several


@on_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_torchrun_on_two_gpus(tmp_path):
    """The README's command on two devices, and once more from its checkpoint."""
    path = tmp_path / "dvae.safetensors"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dvae_lib"]
    options = "--steps 40 --batch-size 8 --hidden-size 16 --images 50 --noise 0.1 --report-every 10"
    command += [*options.split(), "--output", str(path), "--checkpoint", str(tmp_path / "run.safetensors")]
    outputs, models = [], []
    for _ in range(2):
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "TQDM_DISABLE": "1"}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
        models.append(mlp_vae(hidden_size=16, noise=BernoulliNoise(0.1)))
        assert load_checkpoint(path, models[-1]).steps == 40
    assert outputs[0].count("40 steps") == 1
    assert outputs[0] == outputs[1]
    assert same(weights(models[0]), weights(models[1]))
