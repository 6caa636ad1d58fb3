"""The auto-encoder: its sizes and initialisation, what feeds what, and where the noise goes."""

import copy
import math

import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import Normal, kl_divergence

from dvae_lib import (
    BernoulliNoise,
    GaussianHeads,
    KullbackLeiblerDivergence,
    ReparameterizationSampler,
    VariationalAutoencoder,
    mlp_vae,
)

ALPHA = 1e-6  # the probability that a correct library fails a statistical test, were the seed another one


class RecordingEncoder(nn.Module):
    """Keeps what it is given; the posterior's parameters are the first two pixels and the next two."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        return images.flatten(1)[:, :2], images.flatten(1)[:, 2:4]


class Invert(nn.Module):
    """A noise whose effect is known: x' = 1 - x in train mode."""

    def forward(self, images):
        return 1 - images if self.training else images


def recorder(noise=None):
    decoder = nn.Sequential(nn.Linear(2, 36), nn.Unflatten(1, (1, 6, 6)))
    divergence, sampler = KullbackLeiblerDivergence(), ReparameterizationSampler()
    return VariationalAutoencoder(RecordingEncoder(), divergence, sampler, decoder, noise)


def small(noise=None, latent_size=2):
    return mlp_vae((1, 6, 6), latent_size, hidden_size=8, noise=noise)


def some_images(n=5, channels=1):
    return torch.rand(n, channels, 6, 6).round()


# the article's network


def test_number_of_parameters():
    assert sum(parameter.numel() for parameter in mlp_vae().parameters()) == 3_993_412


def test_layers_of_the_article():
    sizes = [(layer.in_features, layer.out_features) for layer in mlp_vae().modules() if isinstance(layer, nn.Linear)]
    encoder = [(576, 1152), (1152, 1152), (1152, 2), (1152, 2)]
    assert sizes == [*encoder, (2, 1152), (1152, 1152), (1152, 576)]


def test_a_relu_follows_every_hidden_layer_and_nothing_follows_the_outputs():
    model = small()
    kinds = [[type(layer) for layer in part] for part in (model.encoder, model.decoder)]
    hidden = [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU]
    assert kinds == [[nn.Flatten, *hidden, GaussianHeads], [*hidden, nn.Linear, nn.Unflatten]]


@pytest.mark.parametrize(("shape", "latent_size", "hidden_size"), [((1, 6, 6), 3, 8), ((3, 4, 5), 2, 7)])
def test_number_of_parameters_by_hand(shape, latent_size, hidden_size):
    pixels, h, q = math.prod(shape), hidden_size, latent_size
    encoder = (pixels + 1) * h + (h + 1) * h + 2 * (h + 1) * q
    decoder = (q + 1) * h + (h + 1) * h + (h + 1) * pixels
    model = mlp_vae(shape, latent_size, hidden_size)
    assert sum(parameter.numel() for parameter in model.parameters()) == encoder + decoder


def test_weights_start_uniform():
    """U(-b, b), b = 1 / sqrt(fan_in): Kolmogorov-Smirnov and z-test of the variance b^2 / 3 per layer.

    False-alarm probability 1e-6 in all.
    """
    layers = [layer for layer in mlp_vae(hidden_size=128).modules() if isinstance(layer, nn.Linear)]
    for layer in layers:
        bound = 1 / math.sqrt(layer.in_features)
        for values in (layer.weight, layer.bias):
            u = (values.detach().double().flatten() / bound).numpy()  # U(-1, 1): mean square 1/3, its variance 4/45
            assert abs(u).max() <= 1 + 1e-6
            assert stats.kstest(u, "uniform", args=(-1, 2)).pvalue > ALPHA / 28
            if len(u) > 100:
                score = ((u**2).mean() - 1 / 3) / math.sqrt(4 / 45 / len(u))
                assert 2 * stats.norm.sf(abs(score)) > ALPHA / 28


def test_seed_decides_the_weights():
    torch.manual_seed(3)
    first = small().state_dict()
    torch.manual_seed(3)
    second = small().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_noise_adds_no_weights():
    assert small(BernoulliNoise(0.1)).state_dict().keys() == small().state_dict().keys()


def test_heads_are_two_maps():
    heads = GaussianHeads(4, 3)
    features = torch.randn(5, 4)
    mean, log_variance = heads(features)
    torch.testing.assert_close(mean, features @ heads.mean.weight.T + heads.mean.bias)
    torch.testing.assert_close(log_variance, features @ heads.log_variance.weight.T + heads.log_variance.bias)
    assert mean.shape == (5, 3)


def test_configuration_says_what_was_asked_for():
    assert mlp_vae((3, 4, 5), latent_size=6, hidden_size=7).configuration == {
        "builder": "mlp_vae",
        "image_shape": [3, 4, 5],
        "latent_size": 6,
        "hidden_size": 7,
    }


# what feeds what


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 4, 5)])
@pytest.mark.parametrize("n", [1, 7])
def test_shapes(shape, n):
    model = mlp_vae(shape, latent_size=3, hidden_size=8)
    images = torch.rand(n, *shape)
    assert model(images).shape == images.shape
    assert [parameter.shape for parameter in model.encode(images)] == [(n, 3), (n, 3)]
    assert model.decode(torch.zeros(n, 3)).shape == images.shape


def test_forward_is_noise_encode_sample_decode():
    """Step by step with the same seed; sample = mean + exp(log_variance / 2) eps written out."""
    model, images = small(BernoulliNoise(0.3)), some_images()
    torch.manual_seed(7)
    logits = model(images)
    torch.manual_seed(7)
    corrupted = torch.where(torch.rand(images.shape) < 0.3, 1 - images, images)
    mean, log_variance = model.encoder(corrupted)
    codes = mean + torch.exp(log_variance / 2) * torch.randn(5, 2)
    torch.testing.assert_close(logits, model.decoder(codes))


def test_encode_and_decode_are_encoder_and_decoder():
    model, images, codes = small(), some_images(), torch.randn(4, 2)
    assert all(map(torch.equal, model.encode(images), model.encoder(images)))
    assert torch.equal(model.decode(codes), model.decoder(codes))


def test_noise_is_seen_by_the_encoder_in_train_mode():
    model, images = recorder(Invert()), some_images()
    model.train()(images)
    assert torch.equal(model.encoder.seen[0], 1 - images)


def test_no_noise_is_seen_in_eval_mode():
    model, images = recorder(Invert()), some_images()
    model.eval()(images)
    assert torch.equal(model.encoder.seen[0], images)


def test_without_noise_the_encoder_sees_the_images():
    model, images = recorder(), some_images()
    model.train()(images)
    assert model.encoder.seen[0] is images


@pytest.mark.parametrize("training", [True, False])
def test_encode_is_clean(training):
    model, images = recorder(Invert()).train(training), some_images()
    model.encode(images)
    assert model.encoder.seen[0] is images


def test_noise_is_drawn_once_a_pass():
    """Exactly the noise layer's draws come before the sampler's: nothing else touches the generator."""
    model, images = small(BernoulliNoise(0.3)), some_images()
    torch.manual_seed(7)
    model(images)
    after = torch.get_rng_state()
    torch.manual_seed(7)
    torch.rand(images.shape)
    torch.randn(5, 2)
    assert torch.equal(torch.get_rng_state(), after)


def test_images_stay_clean():
    model, images = small(BernoulliNoise(0.5)), some_images()
    before = images.clone()
    model(images)
    assert torch.equal(images, before)


def test_denoising_model_in_eval_mode_is_the_plain_model():
    plain, denoising, images = small(), small(BernoulliNoise(0.3)), some_images()
    denoising.load_state_dict(plain.state_dict())
    torch.manual_seed(7)
    expected = plain.eval()(images)
    torch.manual_seed(7)
    assert torch.equal(denoising.eval()(images), expected)


# kl and posterior


def test_kl_is_that_of_the_last_pass():
    model, images = small(latent_size=3).eval(), some_images()
    model(some_images(2))
    model(images)
    mean, log_variance = model.encoder(images)
    expected = kl_divergence(Normal(mean, torch.exp(log_variance / 2)), Normal(0.0, 1.0)).sum()
    torch.testing.assert_close(model.kl, expected)


def test_kl_in_train_mode_is_that_of_the_corrupted_images():
    model, images = recorder(Invert()).train(), some_images()
    model(images)
    mean, log_variance = (1 - images).flatten(1)[:, :2], (1 - images).flatten(1)[:, 2:4]
    expected = kl_divergence(Normal(mean, torch.exp(log_variance / 2)), Normal(0.0, 1.0)).sum()
    torch.testing.assert_close(model.kl, expected)


def test_kl_has_the_weight_of_the_divergence():
    model, images = small().eval(), some_images()
    model(images)
    plain = model.kl.item()
    model.divergence.weight = 0.25
    model(images)
    assert model.kl.item() == pytest.approx(plain / 4)


def test_kl_reaches_the_encoder_but_not_the_decoder():
    model = small()
    model(some_images())
    model.kl.backward()
    assert all(parameter.grad.any() for parameter in model.encoder.parameters())
    assert all(parameter.grad is None for parameter in model.decoder.parameters())


def test_reconstruction_reaches_every_weight():
    model = small()
    model(some_images()).square().sum().backward()
    assert all(parameter.grad.any() for parameter in model.parameters())


def test_posterior_is_what_the_encoder_said_without_its_graph():
    model, images = small().eval(), some_images()
    assert model.posterior == ()
    model(images)
    torch.testing.assert_close(model.posterior, model.encoder(images))
    assert not any(parameter.requires_grad for parameter in model.posterior)


def test_model_can_be_copied_after_a_pass():
    model, images = small(BernoulliNoise(0.3)), some_images()
    model(images)
    twin = copy.deepcopy(model)
    torch.manual_seed(7)
    expected = model(images)
    torch.manual_seed(7)
    assert torch.equal(twin(images), expected)
    with torch.no_grad():
        next(twin.parameters()).zero_()
    assert next(model.parameters()).any()


# errors


@pytest.mark.parametrize("method", ["forward", "encode"])
@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(1, 6, 6), ValueError, r"images must have shape \(n, 1, 6, 6\), got \(1, 6, 6\)"),
        (torch.zeros(2, 1, 6, 7), ValueError, r"images must have shape \(n, 1, 6, 6\), got \(2, 1, 6, 7\)"),
        (torch.zeros(2, 4, 3, 3), ValueError, r"images must have shape \(n, 1, 6, 6\), got \(2, 4, 3, 3\)"),
        (torch.zeros(0, 1, 6, 6), ValueError, "images must hold at least one image"),
        (torch.zeros(2, 1, 6, 6).int(), TypeError, "images must be a floating-point tensor, got dtype torch.int32"),
        ([[0.0]], TypeError, "images must be a torch.Tensor, got list"),
    ],
)
def test_images_that_do_not_fit(method, images, error, message):
    with pytest.raises(error, match=message):
        getattr(small(), method)(images)


@pytest.mark.parametrize(
    ("codes", "error", "message"),
    [
        (torch.zeros(2), ValueError, r"codes must have shape \(n, 2\), got \(2,\)"),
        (torch.zeros(4, 3), ValueError, r"codes must have shape \(n, 2\), got \(4, 3\)"),
        (torch.zeros(4, 2).long(), TypeError, "codes must be a floating-point tensor, got dtype torch.int64"),
        ((0.0, 0.0), TypeError, "codes must be a torch.Tensor, got tuple"),
    ],
)
def test_codes_that_do_not_fit(codes, error, message):
    with pytest.raises(error, match=message):
        small().decode(codes)


def test_a_model_put_together_by_hand_takes_any_size_but_no_other_rank():
    model = recorder()
    assert model(torch.rand(2, 3, 4, 5)).shape == (2, 1, 6, 6)
    with pytest.raises(ValueError, match=r"images must have shape \(n, channels, height, width\), got \(4, 5\)"):
        model.encode(torch.rand(4, 5))
    with pytest.raises(ValueError, match=r"codes must have shape \(n, code\), got \(2,\)"):
        model.decode(torch.rand(2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"image_shape": (24, 24)}, ValueError, r"image_shape must be \(channels, height, width\), got \(24, 24\)"),
        ({"image_shape": 24}, ValueError, r"image_shape must be \(channels, height, width\), got 24"),
        ({"image_shape": (1, 0, 24)}, ValueError, "image_shape must be at least 1, got 0"),
        ({"image_shape": (1, 24, 2.5)}, TypeError, "image_shape must be an integer, got float 2.5"),
        ({"latent_size": 0}, ValueError, "latent_size must be at least 1, got 0"),
        ({"latent_size": 2.0}, TypeError, "latent_size must be an integer, got float 2.0"),
        ({"hidden_size": -1}, ValueError, "hidden_size must be at least 1, got -1"),
        ({"hidden_size": True}, TypeError, "hidden_size must be an integer, got bool True"),
    ],
)
def test_builder_arguments_that_do_not_fit(arguments, error, message):
    with pytest.raises(error, match=message):
        mlp_vae(**arguments)
