"""Captured runs on a CUDA device. What a step computes, and that it can be replayed, is shown on the CPU."""

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
from runs import StoppedError, bars, denoising, run, same, short, stop, tiny, weights, with_buffers, with_generators
from torch import nn

import dvae_lib.training
from dvae_lib import BernoulliNoise, TrainingConfig, load_checkpoint, mlp_vae, squares
from dvae_lib.runs.capture import CapturedStep
from dvae_lib.runs.devices import matmul_precision
from dvae_lib.runs.randomness import layer_generators
from dvae_lib.runs.run import Run
from dvae_lib.training import training_step

ROOT = Path(__file__).resolve().parent.parent
DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
each_graph = pytest.mark.parametrize("graph", [True, False], ids=["graph", "plain"])

MODELS = {
    "denoising": lambda seed=0, device=DEVICE: denoising(seed),
    "generators of its own": lambda seed=0, device=DEVICE: with_generators(seed, device),
    "buffers": lambda seed=0, device=DEVICE: with_buffers(seed),
}
each_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


def calm(steps=200, **changes):
    """A run so gentle that roundings stay small: 200 steps make less than 1e-5 of 1e-7."""
    return short(steps, **{"learning_rate": 1e-3, "report_every": 50, **changes})


def assert_close(model, protocol, expected_model, expected_protocol):
    """Within what the roundings of other kernels explain; the draws are the same, and so are their generators."""
    assert np.array_equal(protocol.learning_rate, expected_protocol.learning_rate)
    np.testing.assert_allclose(protocol.to_numpy(), expected_protocol.to_numpy(), rtol=1e-3, atol=1e-4)
    for name, tensor in expected_model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    pairs = zip(layer_generators(model), layer_generators(expected_model), strict=True)
    assert all(torch.equal(a.get_state(), b.get_state()) for a, b in pairs)


def assert_captured_is_plain(build, **changes):
    """And the device's default generator, which a graph registers, too, is where it was."""
    captured, plain, state = build(), build(), torch.cuda.get_rng_state()
    rows = run(captured, calm(graph=True, **changes), device=DEVICE)
    assert_close(captured, rows, plain, run(plain, calm(graph=False, **changes), device=DEVICE))
    assert torch.equal(torch.cuda.get_rng_state(), state)


# the same run


@each_model
def test_a_captured_run_is_the_plain_one(build):
    assert_captured_is_plain(build)


@pytest.mark.parametrize(
    "changes",
    [
        *[{"steps": steps} for steps in (1, 2, 3, 4, 5)],  # over before the capture, or just after it
        *[{"steps": 30, "report_every": every} for every in (1, 3, 7)],
        {"decay": 0.1},
        {"schedule": "cosine", "kl_warm_up": 100, "weight_decay": 0.1},
    ],
    ids=str,
)
def test_lengths_reports_and_schedules_of_a_captured_run(changes):
    """Rate and factor move from replay to replay."""
    assert_captured_is_plain(denoising, **changes)


@pytest.mark.parametrize(
    ("graph", "hook", "passes"),
    [(True, False, 4), (False, False, 40), (True, True, 40)],
    ids=["graph", "plain", "hook"],
)
def test_what_is_replayed(monkeypatch, graph, hook, passes):
    """Three plain steps, one recorded, and the rest replays, which Python does not go through; none with a hook."""
    model, captured, heard = denoising(), [], []
    monkeypatch.setattr(
        dvae_lib.training, "training_step", lambda run: (captured.append(run.captured), training_step(run))
    )
    if hook:
        model.decoder.register_forward_hook(lambda *_: heard.append(1))
    run(model, calm(40, graph=graph, precision="bfloat16"), device=DEVICE)
    assert captured == [graph and not hook] * passes
    assert len(heard) == 40 * hook


def test_passes_outside_of_a_run():
    """Before, between and after two captured runs, and in their reports: no graph of theirs meets the capture."""
    models, rows = [denoising().to(DEVICE) for _ in range(2)], []
    for model, graph in zip(models, (True, False), strict=True):
        before = [parameter.data_ptr() for parameter in model.parameters()]
        look = partial(model, bars().to(DEVICE))
        config = calm(30, graph=graph, report_every=2)
        for _ in range(2):
            look()
            assert model.kl.grad_fn is not None
            rows.append(run(model, config, device=DEVICE, on_report=lambda *_, look=look: look() is None))
        assert look().isfinite().all()
        assert [parameter.data_ptr() for parameter in model.parameters()] == before
    assert_close(models[0], rows[1], models[1], rows[3])
    np.testing.assert_allclose(rows[0].to_numpy(), rows[2].to_numpy(), rtol=1e-3, atol=1e-4)


# precision


class Float32Codes(nn.Module):
    """A sampler that draws the same numbers in each precision."""

    generator = None

    def forward(self, mean, log_variance):
        return mean + torch.exp(log_variance / 2) * torch.randn(
            mean.shape, generator=self.generator, device=mean.device
        )


def images_24():
    return squares(200, torch.Generator().manual_seed(0))


def gradients(precision, graph, dtype=torch.float32):
    """Those of a run's fifth step, a replay if captured; at a learning rate of 1e-12 all are at the initial weights."""
    torch.manual_seed(0)
    model = mlp_vae(hidden_size=128, noise=BernoulliNoise(0.1)).to(dtype)  # large enough for every kind of unit
    model.sampler = Float32Codes()
    config = TrainingConfig(steps=5, batch_size=32, learning_rate=1e-12, precision=precision, graph=graph)
    run(model, config, images_24(), device=DEVICE)
    return {name: parameter.grad.double() for name, parameter in model.named_parameters()}


@each_graph
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("tf32", 1e-2), ("bfloat16", 5e-2)])
def test_gradients_of_each_precision(graph, precision, tolerance):
    """Each parameter's, in length, within the precision's error of those in float64."""
    truth = gradients("float32", False, torch.float64)
    errors = {
        name: (gradient - truth[name]).norm() / truth[name].norm()
        for name, gradient in gradients(precision, graph).items()
    }
    assert max(errors.values()) < tolerance, errors
    assert precision != "bfloat16" or errors["decoder.2.weight"] > 1e-4


def test_tf32_is_used_where_it_is_asked_for():
    """Products of 1024 x 1024 matrices: the error against float64 is a hundred times that of float32."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs a GPU of compute capability 8.0")

    def error(precision):
        with matmul_precision(precision):
            return ((a @ b).double() - a.double() @ b.double()).abs().mean()

    a, b = torch.rand(2, 1024, 1024, device=DEVICE)
    assert error("tf32") > 10 * error("float32")


# stopped and called again


@each_model
@pytest.mark.parametrize("device", [DEVICE, pytest.param("cuda:1", marks=needs_two)])
@pytest.mark.parametrize(("before", "after"), [(True, True), (True, False), (False, True)])
def test_resumed_across_captured_and_plain(tmp_path, device, build, before, after):
    """Stopped at step 40 of 50 with a file of 30, the rest ends like the run that went through: on any device."""
    config = partial(calm, 50, report_every=10, checkpoint_every=10)
    options = {"device": device, "checkpoint": tmp_path / "run.safetensors"}
    expected, stopped, model = (build(seed, device=device) for seed in (0, 0, 7))
    rows = run(expected, config(), device=device)
    with pytest.raises(StoppedError):
        run(stopped, config(graph=before), on_report=lambda done, _: done == 40 and stop(), **options)
    assert_close(model, run(model, config(graph=after), **options), expected, rows)


def test_checkpoint_of_another_device(tmp_path):
    """Its random numbers cannot go on here, so that it is refused, before anything has changed."""
    path = tmp_path / "run.safetensors"
    run(denoising(), calm(20), device="cpu", checkpoint=path)
    model = denoising(seed=7)
    before = weights(model)
    with pytest.raises(ValueError, match=r"run\.safetensors"):
        run(model, calm(20), device=DEVICE, checkpoint=path)
    assert same(weights(model), before)
    assert next(model.parameters()).device.type == "cpu"


# when things go wrong


@each_graph
@pytest.mark.parametrize(("step", "report"), [(1, 0), (3, 0), (10, 0), (25, 20), (39, 20), (40, 40)])
def test_a_row_not_finite(monkeypatch, graph, step, report):
    """Reports at 20, 40, 60: the error names the step, and the weights are those of the report before."""
    rate, model, good = TrainingConfig.learning_rate_at, denoising(), denoising()
    monkeypatch.setattr(TrainingConfig, "learning_rate_at", lambda self, t: math.nan if t == step else rate(self, t))
    with pytest.raises(FloatingPointError, match=rf"finite at step {step}; .* before step {report}\."):
        run(model, calm(60, report_every=20, graph=graph), device=DEVICE)
    if report:
        run(good, calm(report, report_every=20, graph=graph), device=DEVICE)
    for name, tensor in good.to(DEVICE).state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


class Asking(BernoulliNoise):
    """Noise that asks the device for a value."""

    def corrupt(self, images):
        return super().corrupt(images) if images.sum().item() > 0 else images


class Hidden(nn.Module):
    """Noise whose generator no layer names."""

    def __init__(self):
        super().__init__()
        self.source = torch.Generator(DEVICE).manual_seed(0)

    def forward(self, images):
        hit = torch.rand(images.shape, generator=self.source, device=images.device) < 0.2
        return torch.where(hit, 1 - images, images)


@pytest.mark.parametrize("noise", [lambda: Asking(0.2), Hidden], ids=["asks", "hidden generator"])
def test_a_model_that_cannot_be_captured(noise):
    """The error says so and what to do; done so, the model trains; stream and memory serve other captures."""
    stream = torch.cuda.current_stream()
    with pytest.raises(RuntimeError, match=r"cannot be captured as a graph: .* TrainingConfig\(graph=False\)"):
        run(tiny(noise()), calm(20), device=DEVICE)
    assert torch.cuda.current_stream() == stream
    assert len(run(tiny(noise()), calm(20, graph=False), device=DEVICE)) == 20
    assert_captured_is_plain(denoising, steps=20)


# what a step costs the host and the memory


def test_the_host_is_ahead_of_the_device():
    """Replays are queued, not waited for: 50 of them are handed over in less than half the time that they take."""
    torch.manual_seed(0)
    device = torch.device(DEVICE)
    model = mlp_vae(hidden_size=2048, noise=BernoulliNoise(0.1))
    made = Run(model, images_24(), TrainingConfig(steps=300, batch_size=2048), device)
    step = CapturedStep(partial(training_step, made), device, made.generators)
    with made.active():
        for _ in range(10):
            step()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(50):
            step()
        queued = time.perf_counter()
        torch.cuda.synchronize()
        assert queued - start < (time.perf_counter() - start) / 2
        assert made.done == 60


def settle():
    """Drop what nobody holds, and cuBLAS's work space, which stays with each stream that a run has used."""
    gc.collect()
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


def peak_memory(steps, graph):
    """The most bytes that a run of the article's networks holds on the GPU beyond what was there."""
    settle()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(mlp_vae(noise=BernoulliNoise(0.1)), TrainingConfig(steps=steps, graph=graph), images_24(), device=DEVICE)
    return torch.cuda.max_memory_allocated() - before


@each_graph
def test_memory_is_bounded_and_given_back(graph):
    """Weights, gradients, two moments and the copy to fall back on: five times 16 MB, activations and work space."""
    peak = peak_memory(60, graph)
    assert 5 * 4 * 3_993_412 < peak < 400e6
    settle()
    before = torch.cuda.memory_allocated()
    assert peak_memory(300, graph) < peak + 1e6  # more steps take no more, but for their rows
    settle()
    assert torch.cuda.memory_allocated() < before + 1e6


@needs_two
def test_torchrun_on_two_gpus(tmp_path):
    """The README's command on two devices, and once more from its checkpoint."""
    path = tmp_path / "dvae.safetensors"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dvae_lib"]
    options = "--steps 40 --batch-size 8 --hidden-size 16 --images 50 --noise 0.1 --report-every 10"
    command += [*options.split(), "--output", str(path), "--checkpoint", str(tmp_path / "run.safetensors")]
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    outputs, models = [], []
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
        models.append(mlp_vae(hidden_size=16, noise=BernoulliNoise(0.1)))
        assert load_checkpoint(path, models[-1]).steps == 40
    assert outputs[0].count("40 steps") == 1
    assert outputs[0] == outputs[1]
    assert same(weights(models[0]), weights(models[1]))
