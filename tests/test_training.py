"""The training loop against a loop and an Adam written out here, and what it leaves behind when things go wrong."""

import dataclasses
import math
import signal

import numpy as np
import pytest
import torch
from runs import StoppedError, bars, interrupt, run, same, short, stop, tiny, weights
from torch import nn
from torch.nn.functional import logsigmoid

import dvae_lib.training
from dvae_lib import BernoulliNoise, Protocol, TrainingConfig, default_device, mlp_vae, train

COLUMNS = ["reconstruction", "kl", "mean", "log_variance_std", "log_variance_mean", "learning_rate"]


def at_output(model, step, action):
    """Have `action(logits)` replace the decoder's output in the pass of step `step`, counted from 0."""
    passes = iter(range(10**6))
    model.decoder.register_forward_hook(lambda *a: action(a[-1]) if next(passes) == step else None)


def assert_whole_steps(model, steps, protocol=None):
    """The model, in eval mode, and the protocol, where there is one, are those of a run of `steps` steps."""
    expected = tiny()
    rows = run(expected, short(steps)) if steps else None
    assert same(weights(model), weights(expected))
    assert not any(module.training for module in model.modules())
    if protocol is not None:
        assert np.array_equal(protocol.to_numpy(), rows.to_numpy())


class OneWeight(nn.Module):
    """The smallest thing that `train` takes: one weight, the logit of every pixel."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.posterior = torch.zeros(2, 1), torch.zeros(2, 1)

    @property
    def kl(self):
        return 0 * self.weight

    def forward(self, images):
        return self.weight.expand_as(images)


# the arithmetic


def reference(model, images, config):
    """The same run in plain autograd with plain Adam, the losses written out: the rows of its protocol."""
    torch.manual_seed(config.seed)
    decay, start = {"weight_decay": config.weight_decay}, config.learning_rate
    optimizer = torch.optim.AdamW(model.parameters(), lr=start, fused=False, foreach=False, **decay)
    rows = []
    for step in range(config.steps):
        clean = images[torch.randint(len(images), (config.batch_size,))]
        corrupted = clean
        if model.noise is not None:
            corrupted = torch.where(torch.rand(clean.shape) < model.noise.p, 1 - clean, clean)
        mean, log_variance = model.encoder(corrupted)
        logits = model.decoder(mean + torch.exp(log_variance / 2) * torch.randn(mean.shape))
        log_likelihood = (clean * logsigmoid(logits) + (1 - clean) * logsigmoid(-logits)).sum()
        kl = model.divergence.weight * 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()
        rate = config.learning_rate / (1 + config.decay * step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        factor = 1 if step >= config.kl_warm_up else step / config.kl_warm_up
        (factor * kl - log_likelihood).backward()
        optimizer.step()
        n = config.batch_size
        a = log_variance.detach().numpy()
        rows.append([-log_likelihood.item() / n, kl.item() / n, mean.mean().item(), a.std(ddof=1), a.mean(), rate])
    return np.array(rows)


@pytest.mark.parametrize("changes", [{}, {"kl_warm_up": 8}, {"weight_decay": 0.5}], ids=str)
@pytest.mark.parametrize(("noise", "weight"), [(None, 1), (BernoulliNoise(0.2), 1), (None, 4)])
def test_run_equals_the_reference_loop(noise, weight, changes):
    config = short(steps=20, seed=3, decay=0.05, **changes)
    ours, theirs = tiny(noise), tiny(noise)
    ours.divergence.weight = theirs.divergence.weight = weight
    protocol = run(ours.eval(), config)
    np.testing.assert_allclose(protocol.to_numpy(), reference(theirs, bars(), config), rtol=1e-3, atol=1e-4)
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("weight_decay", [0.0, 0.7])
@pytest.mark.parametrize("schedule", ["inverse_time", "cosine"])
def test_weight_moves_as_adam_says(schedule, weight_decay):
    """Adam by hand, with the scheduled rate at each step; the gradient is -pixels (1 - sigmoid(weight))."""
    config = TrainingConfig(6, 4, learning_rate=0.1, schedule=schedule, decay=0.5, weight_decay=weight_decay)
    model, rates = OneWeight(), []
    protocol = run(model, config, torch.ones(3, 1, 2, 2))
    weight = first = second = 0.0
    for t in range(6):
        rates.append(0.1 / (1 + 0.5 * t) if schedule == "inverse_time" else 0.1 * (1 + math.cos(math.pi * t / 6)) / 2)
        gradient = -16 / (1 + math.exp(weight))
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        unbiased = first / (1 - 0.9 ** (t + 1)), second / (1 - 0.999 ** (t + 1))
        weight -= rates[-1] * (weight_decay * weight + unbiased[0] / (math.sqrt(unbiased[1]) + 1e-8))
    assert model.weight.item() == pytest.approx(weight, rel=1e-5)
    np.testing.assert_allclose(protocol.learning_rate, rates, rtol=1e-6)


def test_gradient_is_that_of_the_sum_over_the_batch():
    """8 images of 4 white pixels, each with the gradient sigmoid(0) - 1: Adam itself hardly sees the factor."""
    model, gradients = OneWeight(), []
    model.weight.register_hook(lambda gradient: gradients.append(gradient.item()))
    run(model, short(steps=1), torch.ones(3, 1, 2, 2))
    assert gradients == [-16]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_images_take_the_dtype_of_the_model(dtype):
    model = tiny()
    assert_whole_steps(model, 10, run(model, images=bars().to(dtype)))


def test_a_code_of_one_entry_and_a_batch_of_one_image():
    """A single log-variance has the standard deviation 0, not NaN."""
    model = mlp_vae((1, 6, 6), latent_size=1, hidden_size=8)
    assert not run(model, short(batch_size=1)).log_variance_std.any()


# the configuration


def test_configurations_of_the_article_and_for_a_laptop():
    article = {
        "steps": 31_250,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "schedule": "inverse_time",
        "decay": 1e-4,
        "weight_decay": 0.0,
        "kl_warm_up": 0,
        "final_temperature": None,
        "precision": "float32",
        "hidden_size": 1152,
        "seed": 0,
        "report_every": 50,
        "checkpoint_every": 1_000,
        "graph": True,
    }
    assert TrainingConfig() == TrainingConfig.article()
    assert dataclasses.asdict(TrainingConfig()) == article
    laptop = {"steps": 4_000, "batch_size": 64, "learning_rate": 2e-3, "schedule": "cosine", "hidden_size": 256}
    assert dataclasses.asdict(TrainingConfig.quick()) == article | laptop


@pytest.mark.parametrize(
    ("config", "rates"),
    [
        (TrainingConfig(), {0: 1e-3, 1: 1e-3 / 1.0001, 10_000: 5e-4, 30_000: 2.5e-4}),
        (TrainingConfig(100, schedule="cosine"), {0: 1e-3, 25: 1e-3 * (2 + math.sqrt(2)) / 4, 50: 5e-4, 100: 0}),
    ],
    ids=["article", "cosine"],
)
def test_learning_rate(config, rates):
    assert {step: config.learning_rate_at(step) for step in rates} == pytest.approx(rates, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("warm_up", "factors"), [(0, [1, 1, 1, 1]), (1, [0, 1, 1, 1]), (4, [0, 0.25, 0.5, 0.75, 1, 1])]
)
def test_factor_of_the_divergence_rises_from_0_to_1(warm_up, factors):
    config = TrainingConfig(kl_warm_up=warm_up)
    assert [config.kl_weight_at(step) for step in range(len(factors))] == factors


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"steps": -1}, ValueError, "steps must be at least 1, got -1"),
        ({"steps": 10.0}, TypeError, "steps must be an integer, got float 10.0"),
        ({"steps": True}, TypeError, "steps must be an integer, got bool True"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"hidden_size": 0}, ValueError, "hidden_size must be at least 1, got 0"),
        ({"report_every": 0}, ValueError, "report_every must be at least 1, got 0"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be at least 1, got 0"),
        ({"graph": 1}, TypeError, "graph must be True or False, got int 1"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be greater than 0, got 0"),
        ({"learning_rate": -1e-3}, ValueError, "learning_rate must be .*, got -0.001"),
        ({"learning_rate": math.inf}, ValueError, "learning_rate must be .*, got inf"),
        ({"learning_rate": "1e-3"}, TypeError, "learning_rate must be a number, got str '1e-3'"),
        ({"weight_decay": -1}, ValueError, "weight_decay must be finite and at least 0, got -1"),
        ({"kl_warm_up": -1}, ValueError, "kl_warm_up must be at least 0, got -1"),
        ({"decay": -1}, ValueError, "decay must be finite and at least 0, got -1"),
        ({"decay": math.nan}, ValueError, "decay must be finite and at least 0, got nan"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"seed": 2**64}, ValueError, "seed must be at most 18446744073709551615, got 18446744073709551616"),
        ({"seed": None}, TypeError, "seed must be an integer, got NoneType None"),
        ({"schedule": "linear"}, ValueError, r"schedule must be one of \('inverse_time', 'cosine'\), got 'linear'"),
        ({"precision": "fp8"}, ValueError, r"precision must be one of \('float32', 'tf32', 'bfloat16'\), got 'fp8'"),
    ],
)
def test_configurations_that_make_no_sense(changes, error, message):
    with pytest.raises(error, match=message):
        TrainingConfig(**changes)


# the protocol, reports, and who ends a run


def test_protocol_has_a_row_a_step():
    protocol = run(tiny(), short(steps=7))
    assert len(protocol) == 7
    assert repr(protocol) == f"Protocol of 7 steps: {', '.join(COLUMNS)}"
    assert all(column.shape == (7,) and column.dtype == np.float32 for column in protocol.to_dict().values())


def test_protocol_as_one_array():
    protocol = Protocol(*np.arange(18, dtype=np.float32).reshape(6, 3))
    assert protocol.to_numpy().tolist() == [[i, i + 3, i + 6, i + 9, i + 12, i + 15] for i in range(3)]
    assert [protocol.to_dict()[name].tolist() for name in COLUMNS] == np.arange(18).reshape(6, 3).tolist()


@pytest.mark.parametrize(("every", "expected"), [(1, [*range(1, 11)]), (3, [3, 6, 9, 10]), (5, [5, 10]), (1000, [10])])
def test_reports_come_in_time_with_the_rows_since_the_last_and_change_nothing(every, expected):
    model, heard = tiny(), []
    protocol = run(model, short(report_every=every), on_report=lambda *report: heard.append(report))
    assert [done for done, _ in heard] == expected
    assert all(isinstance(rows, Protocol) for _, rows in heard)
    assert np.array_equal(np.concatenate([rows.to_numpy() for _, rows in heard]), protocol.to_numpy())
    assert_whole_steps(model, 10, protocol)


@pytest.mark.parametrize("answer", [True, np.True_, 1])
def test_whoever_has_seen_enough_ends_the_run(answer):
    model = tiny()
    assert_whole_steps(model, 8, run(model, on_report=lambda done, rows: done >= 8 and answer))


@pytest.mark.parametrize(("step", "end"), [(0, 4), (3, 4), (4, 8), (9, 10)])
def test_ctrl_c_ends_the_run_at_the_next_report(step, end):
    """Pressed in the course of a step, it waits: no step is left half done."""
    model, heard = tiny(), []
    at_output(model, step, interrupt)
    protocol = run(model, on_report=lambda done, _: heard.append(done))
    assert heard[-1] == end
    assert_whole_steps(model, end, protocol)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(("step", "report"), [(2, 0), (5, 4)])
@pytest.mark.parametrize("ends", [stop, lambda: (interrupt(), interrupt())], ids=["error", "second Ctrl-C"])
def test_what_ends_a_run_at_once_undoes_the_steps_since_the_last_report(ends, step, report):
    """Also when Adam has changed one half of the weights."""
    model = tiny()

    def spoil_and_end(_):
        with torch.no_grad():
            model.encoder[1].weight.zero_()
        ends()

    at_output(model, step, spoil_and_end)
    with pytest.raises(StoppedError if ends is stop else KeyboardInterrupt):
        run(model)
    assert_whole_steps(model, report)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# numbers that are not finite


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("step", "report"), [(0, 0), (1, 0), (3, 0), (4, 4), (6, 4), (7, 4), (8, 8), (9, 8)])
def test_loss_not_finite(value, step, report):
    """Reports after steps 4, 8 and 10: the error names the step, the weights are the last report's; it can go on."""
    model = tiny()
    at_output(model, step, lambda logits: torch.full_like(logits, value) + 0 * logits)
    with pytest.raises(FloatingPointError, match=f"the loss stopped being finite at step {step}; .* step {report}"):
        run(model)
    assert_whole_steps(model, report)
    assert np.isfinite(run(model).to_numpy()).all()


@pytest.mark.parametrize(
    ("step", "report", "message"),
    [
        (3, 0, "a weight stopped being finite by step 3"),
        (7, 4, "a weight stopped being finite by step 7"),
        (9, 8, "a weight stopped being finite by step 9"),
        (5, 4, "the loss stopped being finite at step 6"),
    ],
)
def test_a_bad_gradient(step, report, message):
    """Just before a report every loss so far is finite, one weight is not; elsewhere, the next step's loss shows it."""
    model, passes = tiny(), iter(range(10**6))
    model.decoder[4].bias.register_hook(lambda gradient: gradient * math.nan if next(passes) == step else gradient)
    with pytest.raises(FloatingPointError, match=f"{message}; .* step {report}"):
        run(model)
    assert_whole_steps(model, report)


# the progress bar


@pytest.fixture
def stderr(monkeypatch, capsys):
    """Train with TQDM_DISABLE set to a value, or unset for None; return the protocol and what stands on stderr."""

    def text(disable=None, **options):
        monkeypatch.delenv("TQDM_DISABLE", raising=False)
        if disable is not None:
            monkeypatch.setenv("TQDM_DISABLE", disable)
        protocol = train(tiny(), bars(), short(), device="cpu", **options)
        return protocol, capsys.readouterr().err

    return text


@pytest.mark.parametrize("disable", [None, "", "0"])
def test_progress_bar_shows_losses_and_speed(stderr, disable):
    """At the end: all 10 x 8 images, images/s, and the means since the report before."""
    protocol, text = stderr(disable)
    last = text.strip().rsplit("\r", 1)[-1]
    assert text.lstrip("\r").startswith("float32: ")
    assert "80.0/80.0" in last
    assert "images/s" in last
    assert f"reconstruction={protocol.reconstruction[8:].mean():.2f}" in last
    assert f"kl={protocol.kl[8:].mean():.2f}" in last
    assert "ended after" not in text


@pytest.mark.parametrize(("disable", "progress"), [(None, False), ("1", True), ("True", True), ("1", False)])
def test_progress_bar_is_silent(stderr, disable, progress):
    assert stderr(disable, progress=progress)[1] == ""


def test_a_run_that_ended_early_says_so(stderr):
    assert "ended after 8 steps" in stderr(on_report=lambda done, _: done == 8)[1]


# device and arguments


@pytest.mark.parametrize(("found", "expected"), [(None, "cpu"), (torch.device("meta"), "meta")])
def test_default_device(monkeypatch, found, expected):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
    assert default_device() == torch.device(expected)


@pytest.mark.parametrize(("device", "asked"), [(None, 1), ("cpu", 0)])
def test_the_default_device_is_taken_only_if_none_is_given(monkeypatch, device, asked):
    calls = []
    monkeypatch.setattr(dvae_lib.training, "default_device", lambda: calls.append(1) or torch.device("cpu"))
    run(tiny(), device=device)
    assert len(calls) == asked


IMAGES = bars()


def with_pixel(value):
    images = bars()
    images[3, 0, 2, 1] = value
    return images


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        ({"images": IMAGES[:, 0]}, ValueError, r"images must have shape \(n, 1, 6, 6\), got \(12, 6, 6\)"),
        ({"images": IMAGES[..., :5]}, ValueError, r"images must have shape \(n, 1, 6, 6\), got \(12, 1, 6, 5\)"),
        ({"images": IMAGES[:0]}, ValueError, r"images must hold at least one image, got shape \(0, 1, 6, 6\)"),
        ({"images": with_pixel(1.5)}, ValueError, r"images must lie in \[0, 1\], got values from 0 to 1.5"),
        ({"images": with_pixel(-0.25)}, ValueError, r"images must lie in \[0, 1\], got values from -0.25 to 1"),
        ({"images": with_pixel(math.nan)}, ValueError, "images must be finite, got a NaN or an infinity"),
        ({"images": with_pixel(math.inf)}, ValueError, "images must be finite, got a NaN or an infinity"),
        ({"images": IMAGES.to(torch.uint8)}, TypeError, "images must be a floating-point tensor, got .*uint8"),
        ({"images": IMAGES.numpy()}, TypeError, "images must be a torch.Tensor, got ndarray"),
        ({"config": None}, TypeError, "config must be a TrainingConfig, got NoneType"),
        ({"config": {"steps": 3}}, TypeError, "config must be a TrainingConfig, got dict"),
        ({"on_report": "print"}, TypeError, "on_report must be callable or None, got str"),
        ({"model": None}, TypeError, "model must be a torch.nn.Module, got NoneType"),
        ({"model": lambda images: images}, TypeError, "model must be a torch.nn.Module, got function"),
        ({"model": nn.Flatten()}, ValueError, "model must have parameters to train, got Flatten"),
    ],
)
def test_arguments_that_do_not_fit(argument, error, message, training):
    """The error says what is allowed, and nothing has been touched."""
    model = tiny().train(training)
    before = weights(model)
    arguments = {"model": model, "images": bars(), "config": short(), "device": "cpu", "progress": False, **argument}
    with pytest.raises(error, match=message):
        train(**arguments)
    assert same(weights(model), before)
    assert model.training is training
