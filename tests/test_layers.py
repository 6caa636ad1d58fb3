"""The divergence layer and the sampler, against distributions, quadrature, autograd and numbers worked out by hand."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from torch.distributions import Normal, kl_divergence

from dvae_lib import KullbackLeiblerDivergence, ReparameterizationSampler, gaussian_kl

ALPHA = 1e-6  # the probability that a correct library fails a statistical test, were the seed another one

means = st.floats(-30, 30)
log_variances = st.floats(-20, 10)


def parameters(batch=3, code=2, dtype=torch.float64, requires_grad=False):
    """Random (mean, log_variance), away from the prior."""
    pair = torch.randn(batch, code, dtype=dtype) + 0.5, 0.8 * torch.randn(batch, code, dtype=dtype) - 0.3
    return tuple(tensor.requires_grad_(requires_grad) for tensor in pair)


def plain_kl(mean, log_variance):
    """The closed form as it stands in the book, for autograd to differentiate: (batch,)."""
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(dim=1)


# gaussian_kl: values


@given(st.lists(st.tuples(means, log_variances), min_size=1, max_size=6))
def test_kl_equals_torch_distributions(pairs):
    mean, log_variance = torch.tensor(pairs, dtype=torch.float64).T[:, None]  # each (1, code)
    posterior = Normal(mean, torch.exp(log_variance / 2))
    expected = kl_divergence(posterior, Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(gaussian_kl(mean, log_variance), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("mean", "log_variance"), [(0.0, 0.0), (1.5, 0.0), (0.0, 1.0), (-2.0, -1.5), (0.3, -4.0)])
def test_kl_equals_its_integral(mean, log_variance):
    """The definition, integral of q (ln q - ln p), by quadrature."""
    q, p = stats.norm(mean, math.exp(log_variance / 2)), stats.norm()
    low, high = q.ppf(1e-16), q.isf(1e-16)
    integral, _ = integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), low, high, epsabs=1e-11)
    value = gaussian_kl(torch.full((1, 1), mean).double(), torch.full((1, 1), log_variance).double())
    assert value.item() == pytest.approx(integral, abs=1e-8)


@pytest.mark.parametrize(
    ("mean", "log_variance", "expected"),
    [
        ([3.0, 4.0], [0.0, 0.0], 12.5),
        ([0.0], [math.log(4)], 0.8068528194400547),  # (4 - 1 - ln 4) / 2
        ([1.0], [-math.log(4)], 0.8181471805599453),  # (1 + 1/4 - 1 + ln 4) / 2
    ],
)
def test_kl_by_hand(mean, log_variance, expected):
    value = gaussian_kl(torch.tensor([mean], dtype=torch.float64), torch.tensor([log_variance], dtype=torch.float64))
    assert value.item() == pytest.approx(expected, abs=1e-14)


def test_kl_is_one_number_per_image():
    mean, log_variance = parameters(batch=5, code=3)
    rows = [gaussian_kl(mean[i : i + 1], log_variance[i : i + 1]).item() for i in range(5)]
    result = gaussian_kl(mean, log_variance)
    assert result.shape == (5,)
    assert result.tolist() == pytest.approx(rows)


@given(means, log_variances)
def test_kl_is_never_negative(mean, log_variance):
    for dtype in (torch.float32, torch.float64):
        assert gaussian_kl(torch.tensor([[mean]], dtype=dtype), torch.tensor([[log_variance]], dtype=dtype)) >= 0


def test_kl_of_the_prior_is_exactly_zero():
    zeros = torch.zeros(2, 3)
    assert gaussian_kl(zeros, zeros).tolist() == [0, 0]


@given(st.floats(1e-3, 30), st.sampled_from([-1, 1]))
def test_kl_is_zero_for_the_prior_only(distance, sign):
    off, zero = torch.tensor([[sign * distance]]), torch.zeros(1, 1)
    assert gaussian_kl(off, zero) > 0
    assert gaussian_kl(zero, off) > 0


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("size", [1e-3, 1e-2, 0.1])
def test_kl_keeps_its_digits_near_the_prior(size, sign):
    """For a small log-variance a, exp(a) - 1 - a loses all digits in float32; the oracle is its series a^2/2 + ..."""
    a = torch.tensor([[sign * size]])  # float32
    exact = float(a)
    expected = 0.5 * sum(exact**k / math.factorial(k) for k in range(2, 12))
    assert gaussian_kl(torch.zeros(1, 1), a).item() == pytest.approx(expected, rel=3e-4)


def test_gradient_keeps_its_digits_near_the_prior():
    """The gradient by the log-variance, (exp(a) - 1) / 2, is a / 2 + a^2 / 4 + ... to full precision."""
    a = torch.tensor([[1e-6]], requires_grad=True)
    gaussian_kl(torch.zeros(1, 1), a).sum().backward()
    assert a.grad.item() == pytest.approx(math.expm1(a.item()) / 2, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_kl_of_16_bit_inputs_is_float32(dtype):
    mean, log_variance = parameters(batch=4, code=50, dtype=dtype)
    result = gaussian_kl(mean, log_variance)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), plain_kl(mean.double(), log_variance.double()), rtol=1e-5, atol=0)


def test_kl_keeps_float64():
    assert gaussian_kl(*parameters()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradient_of_16_bit_inputs_has_their_dtype(dtype):
    mean, log_variance = parameters(dtype=dtype, requires_grad=True)
    gaussian_kl(mean, log_variance).sum().backward()
    assert mean.grad.dtype == log_variance.grad.dtype == dtype
    torch.testing.assert_close(mean.grad, mean.detach())


# gaussian_kl: gradients


def test_gradient_equals_that_of_the_plain_closed_form():
    """With another factor on each image, so that the factor's place matters."""
    factor = torch.tensor([1.0, -2.0, 0.25], dtype=torch.float64)
    mean, log_variance = parameters(requires_grad=True)
    ours = torch.autograd.grad(factor @ gaussian_kl(mean, log_variance), (mean, log_variance))
    plain = torch.autograd.grad(factor @ plain_kl(mean, log_variance), (mean, log_variance))
    torch.testing.assert_close(ours, plain)


def test_gradient_by_hand():
    """d/dmean = mean and d/dlog_variance = (exp(log_variance) - 1) / 2."""
    mean = torch.tensor([[3.0, -2.0]], dtype=torch.float64, requires_grad=True)
    log_variance = torch.tensor([[math.log(5), math.log(0.5)]], dtype=torch.float64, requires_grad=True)
    gaussian_kl(mean, log_variance).sum().backward()
    assert mean.grad.tolist() == [[3.0, -2.0]]
    assert log_variance.grad[0].tolist() == pytest.approx([2.0, -0.25])


def test_kl_gradcheck():
    assert torch.autograd.gradcheck(gaussian_kl, parameters(requires_grad=True))


def test_kl_gradgradcheck():
    assert torch.autograd.gradgradcheck(gaussian_kl, parameters(requires_grad=True))


# KullbackLeiblerDivergence


def loss_of(mean, log_variance, weight=1.7):
    layer = KullbackLeiblerDivergence(weight)
    layer(mean, log_variance)
    return layer.loss


def test_layer_gradcheck():
    assert torch.autograd.gradcheck(loss_of, parameters(requires_grad=True))


def test_layer_gradgradcheck():
    assert torch.autograd.gradgradcheck(loss_of, parameters(requires_grad=True))


def test_layer_returns_the_very_same_tensors():
    mean, log_variance = parameters()
    passed = KullbackLeiblerDivergence()(mean, log_variance)
    assert passed[0] is mean
    assert passed[1] is log_variance


def test_loss_is_none_before_the_first_pass():
    assert KullbackLeiblerDivergence().loss is None


def test_loss_is_the_sum_over_batch_and_code():
    mean, log_variance = parameters(batch=4, code=3)
    posterior = Normal(mean, torch.exp(log_variance / 2))
    expected = kl_divergence(posterior, Normal(0.0, 1.0)).sum()
    torch.testing.assert_close(loss_of(mean, log_variance, weight=1.0), expected)


def test_loss_is_that_of_the_last_pass():
    layer = KullbackLeiblerDivergence()
    layer(*parameters())
    layer(torch.zeros(1, 2), torch.zeros(1, 2))
    assert layer.loss.item() == 0


@pytest.mark.parametrize("weight", [0, 0.5, 3.0])
def test_weight_multiplies_loss_and_gradient(weight):
    mean, log_variance = parameters(requires_grad=True)
    plain = plain_kl(mean, log_variance).sum()
    ours = loss_of(mean, log_variance, weight)
    torch.testing.assert_close(ours, weight * plain)
    gradients = torch.autograd.grad(ours, (mean, log_variance))
    expected = torch.autograd.grad(plain, (mean, log_variance))
    torch.testing.assert_close(gradients, tuple(weight * gradient for gradient in expected))


def test_scaled_loss_scales_the_gradient():
    """As a loss scaler for 16-bit training does: every gradient is the scale times the plain one."""
    mean, log_variance = parameters(requires_grad=True)
    plain = torch.autograd.grad(loss_of(mean, log_variance), (mean, log_variance))
    scaled = torch.autograd.grad(loss_of(mean, log_variance) * 1024, (mean, log_variance))
    torch.testing.assert_close(scaled, tuple(1024 * gradient for gradient in plain))


def test_loss_alone_makes_the_gradient():
    """A gradient through the outputs passes unchanged; that of the divergence comes with `.loss` only."""
    mean, log_variance = parameters(requires_grad=True)
    layer = KullbackLeiblerDivergence()
    passed_mean, passed_log_variance = layer(mean, log_variance)
    outputs = (2 * passed_mean + 3 * passed_log_variance).sum()
    without = torch.autograd.grad(outputs, (mean, log_variance), retain_graph=True)
    torch.testing.assert_close(without, (torch.full_like(mean, 2), torch.full_like(mean, 3)))
    with_loss = torch.autograd.grad(outputs + layer.loss, (mean, log_variance))
    torch.testing.assert_close(with_loss, (2 + mean, 3 + 0.5 * (log_variance.exp() - 1)))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_layer_can_be_copied_after_a_pass(duplicate):
    layer = KullbackLeiblerDivergence(0.5).eval()
    layer(*parameters(requires_grad=True))
    twin = duplicate(layer)
    assert (twin.weight, twin.loss, twin.training) == (0.5, None, False)
    assert layer.loss is not None


def test_layer_shows_its_weight():
    assert repr(KullbackLeiblerDivergence(0.5)) == "KullbackLeiblerDivergence(weight=0.5)"


@pytest.mark.parametrize("weight", [-0.1, math.inf, math.nan])
def test_weight_out_of_range(weight):
    with pytest.raises(ValueError, match="weight must be finite and at least 0"):
        KullbackLeiblerDivergence(weight)


@pytest.mark.parametrize("weight", ["1", None, True])
def test_weight_of_wrong_type(weight):
    with pytest.raises(TypeError, match="weight must be a number"):
        KullbackLeiblerDivergence(weight)


# errors that gaussian_kl, the layer and the sampler share


@pytest.mark.parametrize("use", [gaussian_kl, KullbackLeiblerDivergence(), ReparameterizationSampler()])
@pytest.mark.parametrize(
    ("mean", "log_variance", "error", "message"),
    [
        ([[0.0]], torch.zeros(1, 1), TypeError, "mean must be a torch.Tensor, got list"),
        (torch.zeros(1, 1), 0.0, TypeError, "log_variance must be a torch.Tensor, got float"),
        (torch.zeros(1, 1).int(), torch.zeros(1, 1), TypeError, "mean must be a floating-point tensor"),
        (torch.zeros(1, 1), torch.zeros(1, 1).int(), TypeError, "log_variance must be a floating-point tensor"),
        (torch.zeros(3), torch.zeros(3), ValueError, r"mean must have shape \(batch, code\), got \(3,\)"),
        (torch.zeros(2, 3), torch.zeros(2, 1), ValueError, r"log_variance .* shape of mean, \(2, 3\), got \(2, 1\)"),
    ],
)
def test_parameters_of_wrong_type_or_shape(use, mean, log_variance, error, message):
    with pytest.raises(error, match=message):
        use(mean, log_variance)


# ReparameterizationSampler


def sample(mean, log_variance, seed=0):
    """Draw with a fixed eps, as gradcheck needs it."""
    return ReparameterizationSampler(torch.Generator().manual_seed(seed))(mean, log_variance)


def test_sampler_draws_from_the_posterior():
    """Kolmogorov-Smirnov tests of the standardised draws, false-alarm probability 1e-6 in all."""
    n, mean, variance = 20_000, torch.tensor([1.5, -3.0, 0.0]), torch.tensor([4.0, 0.01, 1.0])
    z = ReparameterizationSampler()(mean.expand(n, 3), variance.log().expand(n, 3))
    eps = ((z - mean) / variance.sqrt()).T.double().numpy()
    assert min(stats.kstest(column, "norm").pvalue for column in eps) > ALPHA / 3


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (2.0, 0.25), (-1.0, 9.0)])
def test_sampler_mean_and_variance(mean, variance):
    """A z-test of E z and a chi-square test of Var z, false-alarm probability 1e-6 in all."""
    n = 20_000
    shape = torch.ones(n // 2, 2, dtype=torch.float64)
    z = ReparameterizationSampler()(mean * shape, math.log(variance) * shape)
    score = (z.mean().item() - mean) / math.sqrt(variance / n)
    assert 2 * stats.norm.sf(abs(score)) > ALPHA / 2
    ratio = (z - mean).square().sum().item() / variance  # chi-square with n degrees of freedom
    assert 2 * min(stats.chi2.cdf(ratio, n), stats.chi2.sf(ratio, n)) > ALPHA / 2


def test_sampler_draws_entries_independently():
    """The correlation of neighbours in code and in batch is N(0, 1/n) nearly; false-alarm probability 1e-6 in all."""
    n = 20_000
    z = ReparameterizationSampler()(torch.zeros(n, 2), torch.zeros(n, 2)).double()
    for left, right in [(z[:, 0], z[:, 1]), (z[0::2], z[1::2])]:
        score = (left * right).sum().item() / math.sqrt(left.numel())
        assert 2 * stats.norm.sf(abs(score)) > ALPHA / 2


def test_sampler_draws_anew_at_each_call():
    sampler, pair = ReparameterizationSampler(), parameters()
    assert (sampler(*pair) != sampler(*pair)).all()


@pytest.mark.parametrize("training", [True, False])
def test_sampler_draws_in_both_modes(training):
    sampler, pair = ReparameterizationSampler().train(training), parameters()
    assert (sampler(*pair) != pair[0]).all()


def test_sampler_with_the_same_generator_seed_draws_the_same():
    pair = parameters()
    torch.testing.assert_close(sample(*pair, seed=3), sample(*pair, seed=3), rtol=0, atol=0)
    assert (sample(*pair, seed=3) != sample(*pair, seed=4)).all()


def test_sampler_with_a_generator_leaves_the_default_one_alone():
    pair, before = parameters(), torch.get_rng_state()
    sample(*pair)
    assert torch.equal(torch.get_rng_state(), before)


def test_sampler_without_generator_follows_the_default_seed():
    pair, sampler = parameters(), ReparameterizationSampler()
    torch.manual_seed(5)
    first = sampler(*pair)
    torch.manual_seed(5)
    assert torch.equal(sampler(*pair), first)


def test_sampler_scales_noise_by_the_standard_deviation():
    """With log-variance ln 4 the standard deviation is 2: z = mean + 2 eps."""
    eps = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = sample(torch.ones(2, 3, dtype=torch.float64), torch.full((2, 3), math.log(4), dtype=torch.float64))
    torch.testing.assert_close(z, 1 + 2 * eps)


def test_sampler_gradcheck():
    assert torch.autograd.gradcheck(sample, parameters(requires_grad=True))


def test_sampler_gradient_by_hand():
    """d/dmean = g and d/dlog_variance = 1/2 exp(log_variance / 2) eps g."""
    mean, log_variance = parameters(requires_grad=True)
    upstream = torch.randn(3, 2, dtype=torch.float64)
    gradients = torch.autograd.grad(sample(mean, log_variance), (mean, log_variance), upstream)
    eps = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(gradients, (upstream, 0.5 * torch.exp(log_variance / 2) * eps * upstream))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_sampler_keeps_the_dtype(dtype):
    assert ReparameterizationSampler()(*parameters(dtype=dtype)).dtype == dtype
