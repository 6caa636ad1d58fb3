"""The training loop against a loop and an Adam written out here, and what it leaves behind when things go wrong."""

import copy
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import StoppedError, bars, interrupt, run, short, stop, tiny
from torch import nn
from torch.nn.functional import logsigmoid

import dvae_lib.training
from dvae_lib import BernoulliNoise, Protocol, TrainingConfig, default_device, mlp_vae, train

COLUMNS = ["reconstruction", "kl", "mean", "log_variance_std", "log_variance_mean", "learning_rate"]


def weights(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def assert_same_weights(model, expected):
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), expected, strict=True))


def at_pass(model, step, action):
    """Have `action(output)` replace the decoder's output in the pass of step `step`, counted from 0."""
    passes = iter(range(10**6))
    model.decoder.register_forward_hook(lambda *a: action(a[-1]) if next(passes) == step else None)


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
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()
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
@pytest.mark.parametrize("noise", [None, BernoulliNoise(0.2)])
def test_run_equals_the_reference_loop(noise, changes):
    config = short(steps=20, seed=3, decay=0.05, **changes)
    ours, theirs = tiny(noise), tiny(noise)
    protocol = run(ours, config)
    rows = reference(theirs, bars(), config)
    np.testing.assert_allclose(protocol.to_numpy(), rows, rtol=1e-3, atol=1e-4)
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("weight_decay", [0.0, 0.7])
@pytest.mark.parametrize("schedule", ["inverse_time", "cosine"])
def test_weight_moves_as_adam_says(schedule, weight_decay):
    """Adam by hand, with the scheduled rate at each step; the gradient is -pixels (1 - sigmoid(weight))."""
    config = TrainingConfig(6, 4, learning_rate=0.1, schedule=schedule, decay=0.5, weight_decay=weight_decay)
    model = OneWeight()
    run(model, config, torch.ones(3, 1, 2, 2))
    weight = first = second = 0.0
    for t in range(6):
        rate = 0.1 / (1 + 0.5 * t) if schedule == "inverse_time" else 0.1 * (1 + math.cos(math.pi * t / 6)) / 2
        gradient = -16 / (1 + math.exp(weight))
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        unbiased = first / (1 - 0.9 ** (t + 1)), second / (1 - 0.999 ** (t + 1))
        weight -= rate * (weight_decay * weight + unbiased[0] / (math.sqrt(unbiased[1]) + 1e-8))
    assert model.weight.item() == pytest.approx(weight, rel=1e-5)


def test_gradient_is_that_of_the_sum_over_the_batch():
    """8 images of 4 white pixels, each with the gradient sigmoid(0) - 1: Adam itself hardly sees the factor."""
    model, gradients = OneWeight(), []
    model.weight.register_hook(lambda gradient: gradients.append(gradient.item()))
    run(model, short(steps=1), torch.ones(3, 1, 2, 2))
    assert gradients == [-16]


def test_training_reduces_the_loss():
    """From 36 ln 2 = 25 nats, an undecided model's, to less than the 16.2 of the best constant picture."""
    protocol = run(tiny(hidden_size=32), short(steps=200, batch_size=16))
    loss = protocol.reconstruction + protocol.kl
    assert loss[0] > 24.5
    assert loss[-20:].mean() < 15


def test_weight_of_the_divergence_counts():
    strong, weak = tiny(), tiny()
    strong.divergence.weight, weak.divergence.weight = 10.0, 0.0
    run(strong, short(steps=100))
    run(weak, short(steps=100))
    spread = [model.encode(bars())[0].std().item() for model in (strong, weak)]
    assert spread[0] < 0.5 * spread[1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_images_take_the_dtype_of_the_model(dtype):
    expected, model = tiny(), tiny()
    run(expected)
    run(model, images=bars().to(dtype))
    assert_same_weights(model, weights(expected))


def test_model_ends_in_eval_mode_and_without_being_replaced():
    model = tiny()
    before = list(model.parameters())
    run(model.eval())
    assert not model.training
    assert not any(module.training for module in model.modules())
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))


# reproducibility


def test_one_seed_one_result():
    first, second = tiny(BernoulliNoise(0.1)), tiny(BernoulliNoise(0.1))
    protocols = run(first), run(second)
    assert_same_weights(first, weights(second))
    assert np.array_equal(protocols[0].to_numpy(), protocols[1].to_numpy())


def test_another_seed_another_result():
    first, second = tiny(), tiny()
    run(first, short(seed=0))
    run(second, short(seed=1))
    assert not torch.equal(first.encoder[1].weight, second.encoder[1].weight)


@pytest.mark.parametrize("report_every", [1, 3, 10, 1000])
def test_reports_change_nothing(report_every):
    expected, model = tiny(), tiny()
    protocols = run(expected), run(model, short(report_every=report_every))
    assert_same_weights(model, weights(expected))
    assert np.array_equal(protocols[0].to_numpy(), protocols[1].to_numpy())


# the configuration


def test_configuration_of_the_article():
    assert dataclasses.asdict(TrainingConfig.article()) == {
        "steps": 31_250,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "schedule": "inverse_time",
        "decay": 1e-4,
        "weight_decay": 0.0,
        "kl_warm_up": 0,
        "precision": "float32",
        "hidden_size": 1152,
        "seed": 0,
        "report_every": 50,
        "checkpoint_every": 1_000,
        "graph": True,
    }
    assert TrainingConfig() == TrainingConfig.article()


def test_configuration_for_a_laptop():
    changes = {"steps": 4_000, "batch_size": 64, "learning_rate": 2e-3, "schedule": "cosine", "hidden_size": 256}
    assert TrainingConfig.quick() == dataclasses.replace(TrainingConfig.article(), **changes)


@pytest.mark.parametrize(("step", "rate"), [(0, 1e-3), (1, 1e-3 / 1.0001), (10_000, 5e-4), (30_000, 2.5e-4)])
def test_learning_rate_of_the_article(step, rate):
    assert TrainingConfig.article().learning_rate_at(step) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.4), (25, 0.4 * (2 + math.sqrt(2)) / 4), (50, 0.2), (100, 0.0)])
def test_learning_rate_of_the_cosine(step, rate):
    config = TrainingConfig(steps=100, learning_rate=0.4, schedule="cosine")
    assert config.learning_rate_at(step) == pytest.approx(rate, abs=1e-12)


@given(
    steps=st.integers(2, 500),
    schedule=st.sampled_from(dvae_lib.training.SCHEDULES),
    rate=st.floats(1e-5, 1),
    decay=st.floats(1e-6, 1),
)
def test_learning_rates_fall_and_stay_positive(steps, schedule, rate, decay):
    config = TrainingConfig(steps=steps, learning_rate=rate, schedule=schedule, decay=decay)
    rates = [config.learning_rate_at(step) for step in range(steps)]
    assert rates[0] == pytest.approx(rate)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))
    assert rates[-1] > 0


@pytest.mark.parametrize(
    ("warm_up", "factors"), [(0, [1, 1, 1, 1]), (1, [0, 1, 1, 1]), (4, [0, 0.25, 0.5, 0.75, 1, 1])]
)
def test_factor_of_the_divergence_rises_from_0_to_1(warm_up, factors):
    config = TrainingConfig(kl_warm_up=warm_up)
    assert [config.kl_weight_at(step) for step in range(len(factors))] == factors


@pytest.mark.parametrize("schedule", ["inverse_time", "cosine"])
def test_learning_rates_are_in_the_protocol(schedule):
    config = short(schedule=schedule, decay=0.3)
    expected = np.array([config.learning_rate_at(step) for step in range(10)], dtype=np.float32)
    assert np.array_equal(run(tiny(), config).learning_rate, expected)


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
        ({"weight_decay": "0"}, TypeError, "weight_decay must be a number, got str '0'"),
        ({"kl_warm_up": -1}, ValueError, "kl_warm_up must be at least 0, got -1"),
        ({"kl_warm_up": 0.5}, TypeError, "kl_warm_up must be an integer, got float 0.5"),
        ({"decay": -1}, ValueError, "decay must be finite and at least 0, got -1"),
        ({"decay": math.nan}, ValueError, "decay must be finite and at least 0, got nan"),
        ({"seed": -1}, ValueError, "seed must be .*at least 0, got -1"),
        ({"seed": None}, TypeError, "seed must be .*, got NoneType None"),
        ({"schedule": "linear"}, ValueError, r"schedule must be one of \('inverse_time', 'cosine'\), got 'linear'"),
        ({"precision": "fp8"}, ValueError, r"precision must be one of \('float32', 'tf32', 'bfloat16'\), got 'fp8'"),
    ],
)
def test_configurations_that_make_no_sense(changes, error, message):
    with pytest.raises(error, match=message):
        TrainingConfig(**changes)


# the protocol


def test_protocol_has_a_row_a_step():
    protocol = run(tiny(), short(steps=7))
    assert len(protocol) == 7
    assert list(protocol.to_dict()) == COLUMNS
    assert all(column.shape == (7,) and column.dtype == np.float32 for column in protocol.to_dict().values())


def test_protocol_as_one_array():
    protocol = Protocol(*np.arange(18, dtype=np.float32).reshape(6, 3))
    assert protocol.to_numpy().tolist() == [[i, i + 3, i + 6, i + 9, i + 12, i + 15] for i in range(3)]
    assert [protocol.to_dict()[name].tolist() for name in COLUMNS] == np.arange(18).reshape(6, 3).tolist()
    assert len(protocol) == 3


def test_protocol_shows_length_and_columns():
    assert repr(run(tiny(), short(steps=7))) == f"Protocol of 7 steps: {', '.join(COLUMNS)}"


def test_protocol_is_taken_before_the_update():
    """The first row is that of the initial weights: kl and moments as the encoder has them."""
    model = tiny()
    initial = copy.deepcopy(model)
    protocol = run(model, short(steps=1, batch_size=50), images=bars(1))
    mean, log_variance = (parameter.detach() for parameter in initial.encode(bars(1)))
    assert protocol.mean[0] == pytest.approx(mean.mean().item(), rel=1e-4)
    assert protocol.log_variance_mean[0] == pytest.approx(log_variance.mean().item(), rel=1e-4)
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum().item()
    assert protocol.kl[0] == pytest.approx(kl, rel=1e-4)


# reports, and who ends a run


def test_reports_come_in_time_with_the_rows_since_the_last():
    heard = []
    protocol = run(tiny(), on_report=lambda *report: heard.append(report))
    assert [done for done, _ in heard] == [4, 8, 10]
    assert all(isinstance(rows, Protocol) for _, rows in heard)
    assert np.array_equal(np.concatenate([rows.to_numpy() for _, rows in heard]), protocol.to_numpy())


@pytest.mark.parametrize("answer", [True, np.True_, 1])
def test_whoever_has_seen_enough_ends_the_run(answer):
    """With whole steps: the rows and the weights of a run of just so many."""
    model, expected = tiny(), tiny()
    protocol = run(model, on_report=lambda done, rows: done >= 8 and answer)
    rows = run(expected, short(steps=8)).to_numpy()
    assert np.array_equal(protocol.to_numpy(), rows)
    assert_same_weights(model, weights(expected))
    assert not model.training


@pytest.mark.parametrize(("step", "end"), [(0, 4), (3, 4), (4, 8), (9, 10)])
def test_ctrl_c_ends_the_run_at_the_next_report(step, end):
    """Pressed in the course of a step, it waits: no step is left half done."""
    model, expected, heard = tiny(), tiny(), []
    at_pass(model, step, interrupt)
    protocol = run(model, on_report=lambda done, _: heard.append(done))
    assert len(protocol) == end
    assert heard[-1] == end
    assert np.array_equal(protocol.to_numpy(), run(expected, short(steps=end)).to_numpy())
    assert_same_weights(model, weights(expected))
    assert not model.training


def test_a_second_ctrl_c_is_not_kept():
    """It ends the run at once, and the model holds the weights of the last report: of whole steps, again."""
    model, expected = tiny(), tiny()
    at_pass(model, 5, lambda logits: (interrupt(), interrupt()))
    with pytest.raises(KeyboardInterrupt):
        run(model)
    run(expected, short(steps=4))
    assert_same_weights(model, weights(expected))


@pytest.mark.parametrize(("step", "report"), [(2, 0), (5, 4)])
def test_an_error_undoes_what_was_done_since_the_last_report(step, report):
    """Also that which comes when Adam has changed one half of the weights."""
    model, expected = tiny(), tiny()

    def spoil_and_stop(_):
        with torch.no_grad():
            model.encoder[1].weight.zero_()
        stop()

    at_pass(model, step, spoil_and_stop)
    with pytest.raises(StoppedError):
        run(model)
    if report:
        run(expected, short(steps=report))
    assert_same_weights(model, weights(expected))
    assert not model.training


@pytest.mark.parametrize("on_report", [3, "print"])
def test_listener_of_wrong_type(on_report):
    with pytest.raises(TypeError, match=f"on_report must be callable or None, got {type(on_report).__name__}"):
        run(tiny(), on_report=on_report)


def test_a_run_that_ended_early_says_so(monkeypatch, capsys):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    run(tiny(), progress=True, on_report=lambda done, _: done == 8)
    assert "ended after 8 steps" in capsys.readouterr().err
    run(tiny(), progress=True)
    assert "ended after" not in capsys.readouterr().err


# numbers that are not finite


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("step", "report"), [(0, 0), (1, 0), (3, 0), (4, 4), (6, 4), (7, 4), (8, 8), (9, 8)], ids=lambda n: str(n)
)
def test_loss_not_finite(value, step, report):
    """With reports after steps 4, 8 and 10: the error names the step, the weights are those of the last report."""
    model, good = tiny(), tiny()
    at_pass(model, step, lambda logits: torch.full_like(logits, value) + 0 * logits)
    with pytest.raises(FloatingPointError, match=f"the loss stopped being finite at step {step}; .* step {report}"):
        run(model)
    if report:
        run(good, short(steps=report))
    assert_same_weights(model, weights(good))
    assert not model.training


def bad_gradient_at(parameter, step, value=math.nan):
    passes = iter(range(10**6))
    parameter.register_hook(lambda gradient: gradient * value if next(passes) == step else gradient)


@pytest.mark.parametrize(("step", "report"), [(3, 0), (7, 4), (9, 8)])
def test_weight_not_finite(step, report):
    """A bad gradient just before a report: every loss so far is finite, one weight is not."""
    model, good = tiny(), tiny()
    bad_gradient_at(model.decoder[4].bias, step)
    with pytest.raises(FloatingPointError, match=f"a weight stopped being finite by step {step}; .* step {report}"):
        run(model)
    if report:
        run(good, short(steps=report))
    assert_same_weights(model, weights(good))


def test_loss_not_finite_after_a_bad_gradient():
    """The update of step 5 spoils the weights, the loss of step 6 shows it."""
    model = tiny()
    bad_gradient_at(model.encoder[1].weight, 5)
    with pytest.raises(FloatingPointError, match="the loss stopped being finite at step 6"):
        run(model)


def test_model_can_be_trained_on_after_a_failure():
    model = tiny()
    at_pass(model, 2, lambda logits: logits * math.nan)
    with pytest.raises(FloatingPointError):
        run(model)
    assert np.isfinite(run(model).to_numpy()).all()


# the progress bar


@pytest.fixture
def stderr(monkeypatch, capsys):
    """Run with TQDM_DISABLE set to a value, or unset for None, and return what stands on stderr."""

    def text(disable, **options):
        monkeypatch.delenv("TQDM_DISABLE", raising=False)
        if disable is not None:
            monkeypatch.setenv("TQDM_DISABLE", disable)
        protocol = run(tiny(), short(steps=10, batch_size=8), **options)
        return protocol, capsys.readouterr().err

    return text


@pytest.mark.parametrize("disable", [None, "", "0"])
def test_progress_bar_shows_losses_and_speed(stderr, disable):
    """At the end: all 10 x 8 images, images/s, and the means since the report before."""
    protocol, text = stderr(disable, progress=True)
    last = text.strip().rsplit("\r", 1)[-1]
    assert text.lstrip("\r").startswith("float32: ")
    assert "80.0/80.0" in last
    assert "images/s" in last
    assert f"reconstruction={protocol.reconstruction[8:].mean():.2f}" in last
    assert f"kl={protocol.kl[8:].mean():.2f}" in last


@pytest.mark.parametrize(("disable", "progress"), [(None, False), ("1", True), ("True", True), ("1", False)])
def test_progress_bar_is_silent(stderr, disable, progress):
    assert stderr(disable, progress=progress)[1] == ""


def test_progress_bar_is_shown_unless_told_otherwise(monkeypatch, capsys):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    train(tiny(), bars(), short(), device="cpu")
    assert "images/s" in capsys.readouterr().err


# precision and device


@pytest.fixture
def any_processor(monkeypatch):
    """Take every processor for one with bfloat16 instructions: one without computes the same, more slowly."""
    monkeypatch.setattr("dvae_lib.runs.devices.bfloat16_instructions", lambda: ["some"])


def test_bfloat16_is_close_but_not_the_same(any_processor):
    exact, rounded = tiny(), tiny()
    first, second = run(exact), run(rounded, short(precision="bfloat16"))
    assert second.reconstruction.dtype == np.float32
    assert all(parameter.dtype == torch.float32 for parameter in rounded.parameters())
    assert not np.array_equal(first.reconstruction, second.reconstruction)
    np.testing.assert_allclose(first.reconstruction, second.reconstruction, rtol=0.02)
    np.testing.assert_allclose(first.kl, second.kl, rtol=0.1, atol=0.02)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bfloat16", torch.bfloat16), ("float32", torch.float32), ("tf32", torch.float32)]
)
def test_precision_is_that_of_the_matrix_products(any_processor, precision, dtype):
    model, seen = tiny(), set()
    model.decoder.register_forward_hook(lambda *a: seen.add(a[-1].dtype))
    run(model, short(precision=precision))
    assert seen == {dtype}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_callers_autocast_changes_nothing(any_processor, precision):
    """PyTorch's cache of cast weights lives until the caller's context ends, longer than the weights that it holds."""
    outside, inside = tiny(), tiny()
    rows = run(outside, short(precision=precision))
    with torch.autocast("cpu", torch.bfloat16):
        protocol = run(inside, short(precision=precision))
    assert np.array_equal(protocol.to_numpy(), rows.to_numpy())
    assert_same_weights(inside, weights(outside))


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


# bad arguments

IMAGES = bars()


def with_pixel(value):
    images = bars()
    images[3, 0, 2, 1] = value
    return images


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (IMAGES[:, 0], ValueError, r"images must have shape \(n, 1, 6, 6\), got \(12, 6, 6\)"),
        (IMAGES[..., :5], ValueError, r"images must have shape \(n, 1, 6, 6\), got \(12, 1, 6, 5\)"),
        (IMAGES[:0], ValueError, r"images must hold at least one image, got shape \(0, 1, 6, 6\)"),
        (with_pixel(1.5), ValueError, r"images must lie in \[0, 1\], got values from 0 to 1.5"),
        (with_pixel(-0.25), ValueError, r"images must lie in \[0, 1\], got values from -0.25 to 1"),
        (255 * IMAGES, ValueError, r"images must lie in \[0, 1\], got values from 0 to 255"),
        (with_pixel(math.nan), ValueError, "images must be finite, got a NaN or an infinity"),
        (with_pixel(math.inf), ValueError, "images must be finite, got a NaN or an infinity"),
        (IMAGES.to(torch.uint8), TypeError, "images must be a floating-point tensor, got dtype torch.uint8"),
        (IMAGES.numpy(), TypeError, "images must be a torch.Tensor, got ndarray"),
    ],
)
def test_images_that_do_not_fit(images, error, message, training):
    """The error says what is allowed, and nothing has been touched."""
    model = tiny().train(training)
    before, state = weights(model), torch.get_rng_state()
    with pytest.raises(error, match=message):
        run(model, images=images)
    assert_same_weights(model, before)
    assert model.training is training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("config", [None, {"steps": 3}, 10])
def test_config_of_wrong_type(config):
    model = tiny()
    before = weights(model)
    with pytest.raises(TypeError, match=f"config must be a TrainingConfig, got {type(config).__name__}"):
        train(model, bars(), config, device="cpu", progress=False)
    assert_same_weights(model, before)
    assert model.training


@pytest.mark.parametrize("model", [None, lambda images: images])
def test_model_of_wrong_type(model):
    with pytest.raises(TypeError, match=f"model must be a torch.nn.Module, got {type(model).__name__}"):
        run(model)


def test_a_code_of_one_entry_and_a_batch_of_one_image():
    """A single log-variance has the standard deviation 0, not NaN."""
    model = mlp_vae((1, 6, 6), latent_size=1, hidden_size=8)
    assert not run(model, short(batch_size=1)).log_variance_std.any()


def test_model_without_parameters():
    with pytest.raises(ValueError, match="model must have parameters to train, got Flatten"):
        run(nn.Flatten())
