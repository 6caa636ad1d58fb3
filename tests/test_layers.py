"""The divergence layer and the sampler, against distributions, autograd and numbers worked out by hand."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from dvae_lib import KullbackLeiblerDivergence, ReparameterizationSampler, gaussian_kl

pairs = st.tuples(st.floats(-30, 30), st.floats(-20, 10))  # a mean and a log-variance


def parameters(batch=3, code=2, requires_grad=False):
    """Random (mean, log_variance) in float64, away from the prior."""
    pair = 0.5 + torch.randn(batch, code).double(), -0.3 + 0.8 * torch.randn(batch, code).double()
    return tuple(tensor.requires_grad_(requires_grad) for tensor in pair)


def torch_kl(mean, log_variance):
    """The divergence from the prior as torch.distributions has it, (batch,)."""
    return kl_divergence(Normal(mean, torch.exp(log_variance / 2)), Normal(0.0, 1.0)).sum(1)


@given(st.lists(st.tuples(pairs, pairs), min_size=1, max_size=4))
def test_kl_equals_torch_distributions_and_is_never_negative(images):
    mean, log_variance = torch.tensor(images, dtype=torch.float64).unbind(-1)  # each (batch, 2)
    value = gaussian_kl(mean, log_variance)
    torch.testing.assert_close(value, torch_kl(mean, log_variance), rtol=1e-9, atol=1e-9)
    assert (value >= 0).all()
    assert (gaussian_kl(mean.float(), log_variance.float()) >= 0).all()


@pytest.mark.parametrize("size", [-0.1, -1e-2, -1e-3, 1e-3, 1e-2, 0.1])
def test_kl_and_its_gradient_keep_their_digits_near_the_prior(size):
    """exp(a) - 1 loses digits in float32 for a small a; the oracles are the series a^2/2! + ... and a/1! + ... ."""
    a = torch.tensor([[size]], requires_grad=True)
    value = gaussian_kl(torch.zeros(1, 1), a)
    value.sum().backward()
    terms = [a.item() ** k / math.factorial(k) for k in range(12)]
    assert value.item() == pytest.approx(sum(terms[2:]) / 2, rel=3e-4)
    assert a.grad.item() == pytest.approx(sum(terms[1:]) / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("mean_dtype", "log_variance_dtype", "expected"),
    [
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float32, torch.float16, torch.float32),
        (torch.float64, torch.float64, torch.float64),
        (torch.float64, torch.float16, torch.float64),
        (torch.float32, torch.float64, torch.float64),
    ],
)
def test_kl_is_computed_in_float32_at_least(mean_dtype, log_variance_dtype, expected):
    """And the gradients come back in the dtypes of the inputs, which `assert_close` compares as well."""
    mean, log_variance = parameters(batch=4, code=50)
    mean, log_variance = mean.to(mean_dtype).requires_grad_(), log_variance.to(log_variance_dtype).requires_grad_()
    result = gaussian_kl(mean, log_variance)
    assert result.dtype == expected
    torch.testing.assert_close(result.double(), torch_kl(mean.double(), log_variance.double()), rtol=1e-5, atol=0)
    by_mean, by_log_variance = torch.autograd.grad(result.sum(), (mean, log_variance))
    torch.testing.assert_close(by_mean, mean.detach())
    torch.testing.assert_close(by_log_variance, (0.5 * torch.expm1(log_variance.double())).to(log_variance_dtype))


def test_first_and_second_derivatives():
    inputs = parameters(requires_grad=True)
    assert torch.autograd.gradcheck(gaussian_kl, inputs)
    assert torch.autograd.gradgradcheck(gaussian_kl, inputs)


@pytest.mark.parametrize("weight", [0, 0.5, 3.0])
def test_layer_passes_its_input_on_and_keeps_the_weighted_sum_of_the_last_pass(weight):
    layer = KullbackLeiblerDivergence(weight)
    assert layer.loss is None
    layer(*parameters(batch=2))
    mean, log_variance = parameters(batch=4, code=3)
    passed = layer(mean, log_variance)
    assert passed[0] is mean
    assert passed[1] is log_variance
    torch.testing.assert_close(layer.loss, weight * torch_kl(mean, log_variance).sum())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_layer_can_be_copied_after_a_pass(duplicate):
    layer = KullbackLeiblerDivergence(0.5).eval()
    layer(*parameters(requires_grad=True))
    twin = duplicate(layer)
    assert (twin.weight, twin.loss, twin.training) == (0.5, None, False)
    assert layer.loss is not None


def test_layer_shows_its_weight():
    assert repr(KullbackLeiblerDivergence()) == "KullbackLeiblerDivergence(weight=1)"
    assert repr(KullbackLeiblerDivergence(0.5)) == "KullbackLeiblerDivergence(weight=0.5)"


@pytest.mark.parametrize("training", [True, False])
def test_sampler_draws_anew_from_its_generator_or_else_from_the_default_one(training):
    """z = mean + std * eps in both modes, eps being PyTorch's normal numbers."""
    mean, log_variance = parameters()
    source = torch.Generator().manual_seed(3)
    eps = [torch.randn(3, 2, generator=source, dtype=torch.float64) for _ in range(2)]
    expected = [mean + log_variance.exp().sqrt() * each for each in eps]
    sampler = ReparameterizationSampler(torch.Generator().manual_seed(3)).train(training)
    torch.testing.assert_close([sampler(mean, log_variance) for _ in range(2)], expected)
    sampler = ReparameterizationSampler().train(training)
    torch.manual_seed(3)
    torch.testing.assert_close([sampler(mean, log_variance) for _ in range(2)], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_sampler_keeps_dtype_and_device(dtype):
    """Against PyTorch's default device, for which meta stands here: it exists on every machine."""
    mean, log_variance = (tensor.to(dtype) for tensor in parameters())
    with torch.device("meta"):
        z = ReparameterizationSampler()(mean, log_variance)
    assert (z.dtype, z.device.type) == (dtype, "cpu")


@pytest.mark.parametrize("use", [gaussian_kl, KullbackLeiblerDivergence(), ReparameterizationSampler()])
@pytest.mark.parametrize(
    ("mean", "log_variance", "error", "message"),
    [
        ([[0.0]], torch.zeros(1, 1), TypeError, "mean must be a torch.Tensor, got list"),
        (torch.zeros(1, 1), torch.zeros(1, 1).int(), TypeError, "log_variance must be a floating-point tensor"),
        (torch.zeros(3), torch.zeros(3), ValueError, r"mean must have shape \(batch, code\), got \(3,\)"),
        (torch.zeros(2, 3), torch.zeros(2, 1), ValueError, r"log_variance .* shape of mean, \(2, 3\), got \(2, 1\)"),
    ],
)
def test_parameters_of_wrong_type_or_shape(use, mean, log_variance, error, message):
    with pytest.raises(error, match=f"^{message}"):
        use(mean, log_variance)


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (-0.1, ValueError, "weight must be finite and at least 0, got -0.1"),
        (math.inf, ValueError, "weight must be finite and at least 0, got inf"),
        (math.nan, ValueError, "weight must be finite and at least 0, got nan"),
        (True, TypeError, "weight must be a number, got bool True"),
        ("1", TypeError, "weight must be a number, got str '1'"),
    ],
)
def test_weight_that_is_no_factor(weight, error, message):
    with pytest.raises(error, match=f"^{message}"):
        KullbackLeiblerDivergence(weight)
