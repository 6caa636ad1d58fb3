"""Codes of bits: divergence, relaxed and hard samples, the model, its run and its bounds, against enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.distributions import Bernoulli, kl_divergence
from torch.nn import functional

from dvae_lib import (
    BernoulliDivergence,
    BernoulliNoise,
    BernoulliProtocol,
    ConcreteSampler,
    Protocol,
    TrainingConfig,
    bernoulli_kl,
    bernoulli_vae,
    denoising_bound,
    elbo,
    exact_log_likelihood,
    importance_weighted_bound,
    load_checkpoint,
    mlp_vae,
    plot_protocol,
    save_checkpoint,
    train,
)
from dvae_lib.training import Run

LOGITS = torch.tensor([[0.0, 1.5, -0.7], [-3.0, 0.2, 40.0]], dtype=torch.float64)


def fair(logits):
    return kl_divergence(Bernoulli(logits=logits), Bernoulli(torch.tensor(0.5).to(logits))).sum(1)


@given(st.lists(st.tuples(*2 * [st.floats(-30, 30)]), min_size=1, max_size=4))
def test_divergence_equals_torch_distributions_and_stays_between_0_and_ln_2_a_bit(images):
    logits = torch.tensor(images, dtype=torch.float64)
    value = bernoulli_kl(logits)
    torch.testing.assert_close(value, fair(logits), rtol=1e-9, atol=1e-9)
    assert (value >= -1e-15).all()
    assert (value <= 2 * math.log(2) + 1e-15).all()


@pytest.mark.parametrize("logit", [-1e4, -100.0, 100.0, 1e4])
def test_divergence_of_a_bit_that_is_decided_is_ln_2_with_no_gradient(logit):
    logits = torch.tensor([[logit]], requires_grad=True)
    value = bernoulli_kl(logits)
    value.sum().backward()
    assert value.item() == pytest.approx(math.log(2), abs=1e-7)
    assert logits.grad.item() == 0


def test_gradient_by_hand_is_that_of_finite_differences():
    assert torch.autograd.gradcheck(bernoulli_kl, LOGITS[:, :2].clone().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_divergence_is_computed_in_float32_at_least(dtype):
    """And the gradient comes back in the type of the logits, which `assert_close` compares as well."""
    logits = torch.linspace(-4, 4, 60).view(4, 15).to(dtype).requires_grad_()
    wide, value = logits.detach().double(), bernoulli_kl(logits)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), fair(wide), rtol=1e-5, atol=0)
    (slope,) = torch.autograd.grad(value.sum(), logits)
    torch.testing.assert_close(slope, (wide * wide.sigmoid() * (-wide).sigmoid()).to(dtype))


def test_layer_passes_its_input_through_and_keeps_the_sum():
    layer = BernoulliDivergence(weight=0.5)
    assert layer.loss is None
    (passed,) = layer(LOGITS)
    assert passed is LOGITS
    torch.testing.assert_close(layer.loss, 0.5 * fair(LOGITS).sum())


# samples


def draws(temperature, logit, n, training=True, seed=0):
    sampler = ConcreteSampler(temperature, torch.Generator().manual_seed(seed)).train(training)
    return sampler(torch.full((n, 1), logit, dtype=torch.float64)).flatten()


@pytest.mark.parametrize("temperature", [0.2, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("logit", [-1.0, 0.0, 2.0])
def test_relaxed_sample_follows_its_law(temperature, logit):
    """P(z <= y) = sigmoid(temperature logit(y) - logit q); a true sampler fails once in a million seeds."""
    z = draws(temperature, logit, 20_000).numpy()
    law = lambda y: 1 / (1 + np.exp(logit - temperature * (np.log(y) - np.log1p(-y))))  # noqa: E731
    assert stats.kstest(z.clip(1e-300, 1 - 1e-16), law).pvalue > 1e-6


@pytest.mark.parametrize("logit", [-1.0, 0.0, 2.0])
def test_hard_sample_is_the_bit_and_the_relaxed_one_rounded(logit):
    hard = draws(0.7, logit, 20_000, training=False)
    assert set(hard.tolist()) == {0.0, 1.0}
    assert torch.equal(hard, draws(0.7, logit, 20_000).round())
    wanted = 1 / (1 + math.exp(-logit))
    assert abs(hard.mean().item() - wanted) < 5 * math.sqrt(wanted * (1 - wanted) / 20_000)


@pytest.mark.parametrize("training", [True, False])
def test_noise_is_of_the_type_and_on_the_device_of_the_logits(training):
    """Against PyTorch's default device, for which meta stands here: it exists on every machine."""
    sampler = ConcreteSampler(0.5).train(training)
    torch.manual_seed(3)
    u = torch.rand(2, 3, dtype=torch.float64)
    noisy = LOGITS + torch.log(u) - torch.log1p(-u)
    torch.manual_seed(3)
    with torch.device("meta"):
        z = sampler(LOGITS)
    torch.testing.assert_close(z, 1 / (1 + torch.exp(-2 * noisy)) if training else (noisy > 0).double())


def test_sampler_shows_its_temperature():
    """The file of a run compares this text."""
    assert repr(ConcreteSampler(0.25)) == "ConcreteSampler(temperature=0.25)"


def test_relaxed_sample_has_the_temperature_of_the_moment():
    sampler, other = (ConcreteSampler(first, torch.Generator().manual_seed(0)) for first in (1.0, 0.25))
    sampler.current.fill_(0.25)  # as the schedule of a run does
    assert torch.equal(sampler(LOGITS), other(LOGITS))


@pytest.mark.parametrize("training", [True, False])
def test_codes_of_bfloat16_logits_are_those_of_float32_rounded(training):
    logits = torch.linspace(-3, 3, 60).view(20, 3).bfloat16()
    pair = [ConcreteSampler(0.5, torch.Generator().manual_seed(0)).train(training) for _ in range(2)]
    codes, wide = (sampler(given) for sampler, given in zip(pair, (logits, logits.float()), strict=True))
    assert codes.dtype == torch.bfloat16
    assert torch.equal(codes, wide.bfloat16())


def test_relaxed_sample_is_differentiable_with_the_gradient_of_finite_differences():
    def sample(logits):
        return ConcreteSampler(0.7, torch.Generator().manual_seed(3))(logits)

    assert torch.autograd.gradcheck(sample, LOGITS[:, :2].clone().requires_grad_())


def test_no_uniform_number_makes_anything_but_a_number(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([[0.0, 1 - 2**-24]]))
    logits = torch.zeros(1, 2, requires_grad=True)
    z = ConcreteSampler(0.1)(logits)
    z.sum().backward()
    assert z.isfinite().all()
    assert logits.grad.isfinite().all()
    warm = ConcreteSampler(100.0)(logits)  # finite noise leaves it near a half
    assert ((warm > 0.4) & (warm < 0.6)).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ConcreteSampler(0), ValueError, "temperature must be greater than 0, got 0"),
        (lambda: ConcreteSampler(-1.0), ValueError, "temperature must be finite and at least 0, got -1.0"),
        (lambda: ConcreteSampler("1"), TypeError, "temperature must be a number, got str '1'"),
        (lambda: ConcreteSampler(1.0)(torch.zeros(2)), ValueError, r"logits must have shape \(batch, code\), got \(2,"),
        (lambda: bernoulli_kl(torch.zeros(1, 2).int()), TypeError, "logits must be a floating-point tensor"),
        (lambda: bernoulli_kl(torch.zeros(1, 2, 3)), ValueError, r"logits must have shape \(batch, code\), got \(1, 2"),
        (lambda: bernoulli_vae(latent_size=0), ValueError, "latent_size must be at least 1, got 0"),
        (lambda: bernoulli_vae(temperature=0.0), ValueError, "temperature must be greater than 0, got 0"),
        (lambda: TrainingConfig(final_temperature=0.0), ValueError, "final_temperature must be greater than 0, got 0"),
    ],
)
def test_arguments_that_do_not_fit(call, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call()


# the model and its run


def toy(noise=None, bits=4, temperature=0.5, seed=0):
    """A model of six pixels; the weights are large, so that its codes say something."""
    torch.manual_seed(seed)
    model = bernoulli_vae((1, 2, 3), latent_size=bits, hidden_size=5, noise=noise, temperature=temperature)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.double().eval()


PIXELS = torch.tensor([*itertools.product([0.0, 1.0], repeat=6)], dtype=torch.float64)
IMAGES = PIXELS.view(-1, 1, 2, 3)  # all 64


def test_the_listings_model_has_its_sizes():
    model = bernoulli_vae()
    assert sum(weights.numel() for weights in model.encoder.parameters()) == 577 * 1152 + 1153 * 1152 + 1153 * 50
    assert sum(weights.numel() for weights in model.decoder.parameters()) == 51 * 1152 + 1153 * 1152 + 1153 * 576
    (logits,) = model.encode(torch.zeros(3, 1, 24, 24))
    assert logits.shape == (3, 50)


@pytest.mark.parametrize("final", [None, 0.1])
def test_temperature_is_a_schedule(final):
    model, seen = toy(temperature=1.0).float(), []
    model.sampler.register_forward_pre_hook(lambda layer, _: seen.append(layer.current.item()))
    config = TrainingConfig(steps=5, batch_size=4, final_temperature=final)
    train(model, IMAGES.float(), config, device="cpu", progress=False)
    wanted = [1.0] * 5 if final is None else [10 ** (-step / 4) for step in range(5)]
    assert seen == pytest.approx(wanted, rel=1e-6)
    assert model.sampler.temperature == 1.0


def test_a_run_of_one_step_has_the_first_temperature():
    assert TrainingConfig(steps=1, final_temperature=0.1).temperature_at(0, 1.0) == 1.0


class Twice(torch.nn.Module):
    """Two samplers, each of half of the bits, with temperatures of their own."""

    def __init__(self):
        super().__init__()
        self.first, self.second = ConcreteSampler(1.0), ConcreteSampler(0.4)

    def forward(self, logits):
        halves = logits.chunk(2, 1)
        return torch.cat([self.first(halves[0]), self.second(halves[1])], 1)


def test_every_sampler_starts_at_its_own_temperature():
    model, seen = toy().float(), []
    model.sampler = Twice()
    for sampler in model.sampler.children():
        sampler.register_forward_pre_hook(lambda layer, _: seen.append(layer.current.item()))
    config = TrainingConfig(steps=3, batch_size=4, final_temperature=0.1)
    train(model, IMAGES.float(), config, device="cpu", progress=False)
    assert seen == pytest.approx([1.0, 0.4, 10**-0.5, 0.2, 0.1, 0.1], rel=1e-6)


def test_a_run_has_a_table_of_temperatures_only_where_a_layer_has_one():
    """The same fact names the protocol's columns."""
    config = TrainingConfig(steps=5, batch_size=4)
    bits, plane = (
        Run(model, IMAGES.float(), config, torch.device("cpu")) for model in (toy(), mlp_vae((1, 2, 3), 2, 5))
    )
    assert bits.temperatures.tolist() == [5 * [0.5]]
    assert plane.temperatures.numel() == 0
    assert (bits.columns, plane.columns) == (BernoulliProtocol, Protocol)


def test_protocol_has_the_columns_of_bits():
    model, seen = toy().float(), []
    model.encoder.register_forward_hook(lambda _, __, output: seen.append(output[0].detach().clone()))
    protocol = train(model, IMAGES.float(), TrainingConfig(steps=3, batch_size=4), device="cpu", progress=False)
    assert isinstance(protocol, BernoulliProtocol)
    assert list(protocol.to_dict()) == ["reconstruction", "kl", "mean", "logit_std", "logit_mean", "learning_rate"]
    for step, logits in enumerate(seen):
        row = [logits.sigmoid().mean(), logits.std(), logits.mean()]
        found = [protocol.mean[step], protocol.logit_std[step], protocol.logit_mean[step]]
        assert found == pytest.approx([value.item() for value in row], rel=1e-5)


def test_a_checkpoint_brings_weights_and_nothing_of_the_schedule(tmp_path):
    path = tmp_path / "bits.safetensors"
    model, other = toy(), toy(seed=1)
    model.sampler.current.fill_(0.01)
    save_checkpoint(path, model, TrainingConfig())
    load_checkpoint(path, other)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))
    assert other.sampler.current.item() == pytest.approx(0.5)
    with pytest.raises(ValueError, match="temperature"):
        load_checkpoint(path, toy(temperature=0.6))


# bounds, against sums over all codes (and over all corrupted images)


def enumerated(model, p=None):
    """ln p(x), the clean bound, L_dvae and L_cvae for all 64 images, each (64,)."""
    codes = torch.tensor([*itertools.product([0.0, 1.0], repeat=4)], dtype=torch.float64)  # (16, 4)
    with torch.no_grad():
        theta = model.decode(codes).sigmoid().flatten(1)  # (16, 6)
        (logits,) = model.encode(IMAGES)
    pixels = PIXELS[:, None]
    log_joint = (pixels * theta.log() + (1 - pixels) * (1 - theta).log()).sum(2) - 4 * math.log(2)  # (64, 16)
    q = torch.where(codes == 1, logits[:, None].sigmoid(), 1 - logits[:, None].sigmoid()).prod(2)  # (64, 16)
    values = {"log p": log_joint.exp().sum(1).log(), "elbo": (q * (log_joint - q.log())).sum(1)}
    if p is not None:
        different = (PIXELS[:, None] != PIXELS).double().sum(2)
        corruption = p**different * (1 - p) ** (6 - different)  # (64, 64)
        mixture = corruption @ q
        values["dvae"] = (corruption[:, :, None] * q * (log_joint[:, None] - q.log())).sum((1, 2))
        values["cvae"] = (mixture * (log_joint - mixture.log())).sum(1)
    return values


def test_exact_log_likelihood_is_the_sum_over_all_codes():
    model = toy()
    found = exact_log_likelihood(model, IMAGES)
    torch.testing.assert_close(found.value, enumerated(model)["log p"], rtol=1e-6, atol=1e-6)
    assert not found.standard_error.any()
    assert found.value.exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_bounds_are_the_enumerated_ones_and_in_order():
    model = toy(BernoulliNoise(0.2))
    exact = enumerated(model, 0.2)
    assert (exact["log p"] > exact["cvae"]).all()
    assert (exact["cvae"] > exact["dvae"]).all()
    torch.manual_seed(0)
    images = IMAGES[::7]
    for bound, options, name in ((elbo, {}, "elbo"), (denoising_bound, {}, "dvae")):
        found = bound(model, images, samples=3000, **options)
        error = (found.value - exact[name][::7]).abs() / found.standard_error
        assert error.max() < 5, (name, error)


def test_many_corruptions_and_many_codes_approach_their_limits():
    model = toy(BernoulliNoise(0.2))
    exact = enumerated(model, 0.2)
    torch.manual_seed(0)
    climbed = denoising_bound(model, IMAGES[:3], samples=2000, extra_corruptions=200)
    assert ((climbed.value - exact["cvae"][:3]).abs() < 5 * climbed.standard_error + 0.02).all()
    weighted = importance_weighted_bound(model, IMAGES[:3], samples=20_000)
    assert ((weighted.value - exact["log p"][:3]).abs() < 5 * weighted.standard_error + 1e-3).all()


def test_reconstruction_of_a_trained_step_is_of_relaxed_codes():
    """In train mode the decoder is handed codes between 0 and 1, in eval mode bits."""
    model, seen = toy(), []
    model.decoder.register_forward_pre_hook(lambda _, codes: seen.append(codes[0].detach()))
    model.train()(IMAGES)
    logits = model.eval()(IMAGES)
    assert ((seen[0] > 0) & (seen[0] < 1)).all()
    assert set(seen[1].flatten().tolist()) <= {0.0, 1.0}
    assert not model.posterior[0].requires_grad  # it keeps no graph alive
    assert functional.binary_cross_entropy_with_logits(logits, IMAGES).isfinite()


def test_a_code_of_one_bit_is_enumerated_as_well():
    """Over all 64 images its probabilities add up to 1."""
    assert exact_log_likelihood(toy(bits=1), IMAGES).value.exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_many_images_are_enumerated_in_parts():
    model, images = toy(), IMAGES.repeat(5, 1, 1, 1)  # 320
    one, five = (exact_log_likelihood(model, some).value for some in (IMAGES, images))
    torch.testing.assert_close(five, one.repeat(5), rtol=0, atol=1e-6)


def test_too_many_bits_are_not_enumerated():
    model = bernoulli_vae((1, 2, 3), latent_size=13, hidden_size=5)
    with pytest.raises(ValueError, match=r"^model must have a code of two entries, or of up to 12 bits, got 13$"):
        exact_log_likelihood(model, IMAGES.float())


def test_the_protocol_of_bits_is_drawn_with_its_own_label():
    protocol = train(toy().float(), IMAGES.float(), TrainingConfig(steps=4, batch_size=4), device="cpu", progress=False)
    figure = plot_protocol({"bits": protocol}, window=2)
    last = figure.axes[3]
    assert last.get_ylabel() == "logit: mean $\\pm$ std"
    np.testing.assert_allclose(last.lines[0].get_ydata(), protocol.logit_mean.reshape(2, 2).mean(1))
    np.testing.assert_allclose(figure.axes[2].lines[0].get_ydata(), protocol.mean.reshape(2, 2).mean(1))
