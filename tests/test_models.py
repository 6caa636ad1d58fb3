"""The auto-encoder: its sizes and first weights, what feeds what, and where the noise goes."""

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
    convolutional_vae,
    mlp_vae,
)


def small(noise=None):
    return mlp_vae((1, 6, 6), hidden_size=8, noise=noise)


def some_images(n=5):
    return torch.rand(n, 1, 6, 6).round()


@pytest.mark.parametrize(
    ("asked", "layer"), [({}, nn.ReLU), ({"activation": "relu"}, nn.ReLU), ({"activation": "tanh"}, nn.Tanh)]
)
def test_layers_of_the_article(asked, layer):
    """A ReLU, or what was asked for, follows every hidden layer, and nothing the outputs."""
    model = mlp_vae(**asked)
    sizes = [(layer.in_features, layer.out_features) for layer in model.modules() if isinstance(layer, nn.Linear)]
    encoder = [(576, 1152), (1152, 1152), (1152, 2), (1152, 2)]
    assert sizes == [*encoder, (2, 1152), (1152, 1152), (1152, 576)]
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_993_412
    kinds = [[type(layer) for layer in part] for part in (model.encoder, model.decoder)]
    hidden = [nn.Linear, layer, nn.Linear, layer]
    assert kinds == [[nn.Flatten, *hidden, GaussianHeads], [*hidden, nn.Linear, nn.Unflatten]]


def test_every_size_can_be_chosen_and_is_kept_in_the_configuration():
    model = mlp_vae((3, 4, 5), latent_size=6, hidden_size=7)
    assert model(torch.rand(2, 3, 4, 5)).shape == (2, 3, 4, 5)
    encoder = (60 + 1) * 7 + (7 + 1) * 7 + 2 * (7 + 1) * 6
    decoder = (6 + 1) * 7 + (7 + 1) * 7 + (7 + 1) * 60
    assert sum(parameter.numel() for parameter in model.parameters()) == encoder + decoder
    sizes = {"image_shape": [3, 4, 5], "latent_size": 6, "hidden_size": 7}
    assert model.configuration == {"builder": "mlp_vae", **sizes}
    assert mlp_vae((3, 4, 5), 6, 7, activation="relu").configuration == model.configuration
    assert mlp_vae((3, 4, 5), 6, 7, activation="tanh").configuration == {**model.configuration, "activation": "tanh"}


def test_the_activation_is_not_drawn():
    """The same seed gives the same first weights."""
    states = []
    for activation in ("relu", "tanh"):
        torch.manual_seed(3)
        states.append(mlp_vae((1, 6, 6), hidden_size=8, activation=activation).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(map(torch.equal, states[0].values(), states[1].values()))


def test_weights_start_uniform():
    """U(-b, b), b = 1 / sqrt(fan_in): a Kolmogorov-Smirnov test of each tensor, false-alarm probability 1e-6 in all."""
    for layer in filter(lambda layer: isinstance(layer, nn.Linear), mlp_vae(hidden_size=128).modules()):
        for values in (layer.weight, layer.bias):
            u = values.detach().double().flatten().numpy() * layer.in_features**0.5
            assert abs(u).max() <= 1 + 1e-6
            assert stats.kstest(u, "uniform", args=(-1, 2)).pvalue > 1e-6 / 14


def test_noise_adds_no_weights_and_draws_nothing_when_the_model_is_built():
    states = []
    for noise in (None, BernoulliNoise(0.1)):
        torch.manual_seed(3)
        states.append(small(noise).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(map(torch.equal, states[0].values(), states[1].values()))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("p", [None, 0.3])
def test_forward_written_out(p, training):
    """Noise in train mode only, encoder, divergence, sampler and decoder, step by step with the same seed."""
    model = small(None if p is None else BernoulliNoise(p)).train(training)
    model.divergence.weight = 0.25
    assert model.posterior == ()
    model(some_images(2))  # what this pass leaves behind does not count
    images = some_images()
    torch.manual_seed(7)
    logits = model(images)

    torch.manual_seed(7)
    noisy = training and p is not None
    encoded = torch.where(torch.rand(images.shape) < p, 1 - images, images) if noisy else images
    heads, features = model.encoder[-1], model.encoder[:-1](encoded)
    mean = features @ heads.mean.weight.T + heads.mean.bias
    log_variance = features @ heads.log_variance.weight.T + heads.log_variance.bias
    codes = mean + torch.exp(log_variance / 2) * torch.randn(5, 2)
    torch.testing.assert_close(logits, model.decoder(codes))

    divergence = kl_divergence(Normal(mean, torch.exp(log_variance / 2)), Normal(0.0, 1.0)).sum()
    torch.testing.assert_close(model.kl, 0.25 * divergence)
    torch.testing.assert_close(model.posterior, (mean, log_variance))
    assert not any(parameter.requires_grad for parameter in model.posterior)


@pytest.mark.parametrize("training", [True, False])
def test_encode_and_decode_are_encoder_and_decoder_without_noise(training):
    model, images, codes = small(BernoulliNoise(0.5)).train(training), some_images(), torch.randn(4, 2)
    assert all(map(torch.equal, model.encode(images), model.encoder(images)))
    assert torch.equal(model.decode(codes), model.decoder(codes))


def test_kl_reaches_the_encoder_alone_and_the_logits_reach_every_weight():
    model = small()
    logits = model(some_images())
    names, weights = zip(*model.named_parameters(), strict=True)
    by_kl = torch.autograd.grad(model.kl, weights, retain_graph=True, allow_unused=True)
    for name, gradient in zip(names, by_kl, strict=True):
        assert gradient.any() if name.startswith("encoder.") else gradient is None, name
    assert all(gradient.any() for gradient in torch.autograd.grad(logits.square().sum(), weights))


class FirstPixels(nn.Module):
    """An encoder for images of any size: the parameters are the first two pixels and the next two."""

    def forward(self, images):
        return images.flatten(1)[:, :2], images.flatten(1)[:, 2:4]


def by_hand():
    decoder = nn.Sequential(nn.Linear(2, 36), nn.Unflatten(1, (1, 6, 6)))
    return VariationalAutoencoder(FirstPixels(), KullbackLeiblerDivergence(), ReparameterizationSampler(), decoder)


def test_a_model_put_together_by_hand_takes_any_size():
    assert by_hand()(torch.rand(2, 3, 4, 5)).shape == (2, 1, 6, 6)


IMAGES = [
    (torch.zeros(2, 1, 6, 7), ValueError, r"images must have shape \(n, 1, 6, 6\), got \(2, 1, 6, 7\)"),
    (torch.zeros(0, 1, 6, 6), ValueError, "images must hold at least one image"),
    (torch.zeros(2, 1, 6, 6).int(), TypeError, "images must be a floating-point tensor, got dtype torch.int32"),
    ([[0.0]], TypeError, "images must be a torch.Tensor, got list"),
]
CODES = [
    (torch.zeros(2), ValueError, r"codes must have shape \(n, 2\), got \(2,\)"),
    (torch.zeros(4, 3), ValueError, r"codes must have shape \(n, 2\), got \(4, 3\)"),
    (torch.zeros(4, 2).long(), TypeError, "codes must be a floating-point tensor, got dtype torch.int64"),
]


@pytest.mark.parametrize(
    ("model", "method", "argument", "error", "message"),
    [
        *((small, method, *case) for case in IMAGES for method in ("forward", "encode")),
        *((small, "decode", *case) for case in CODES),
        (by_hand, "encode", torch.zeros(4, 5), ValueError, r"images .* \(n, channels, height, width\), got \(4, 5\)"),
        (by_hand, "decode", torch.zeros(2), ValueError, r"codes must have shape \(n, code\), got \(2,\)"),
    ],
)
def test_images_and_codes_that_do_not_fit(model, method, argument, error, message):
    with pytest.raises(error, match=f"^{message}"):
        getattr(model(), method)(argument)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"image_shape": (24, 24)}, ValueError, r"image_shape must be \(channels, height, width\), got \(24, 24\)"),
        ({"image_shape": 24}, ValueError, r"image_shape must be \(channels, height, width\), got 24"),
        ({"image_shape": (1, 0, 24)}, ValueError, "image_shape must be at least 1, got 0"),
        ({"latent_size": 0}, ValueError, "latent_size must be at least 1, got 0"),
        ({"hidden_size": True}, TypeError, "hidden_size must be an integer, got bool True"),
        ({"activation": "sigmoid"}, ValueError, "activation must be one of relu, tanh, got 'sigmoid'"),
        ({"activation": ["tanh"]}, ValueError, r"activation must be one of relu, tanh, got \['tanh'\]"),
    ],
)
def test_builder_arguments_that_do_not_fit(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        mlp_vae(**arguments)


# the convolutional model


def test_convolutional_layers_of_the_listing():
    model = convolutional_vae()
    kernels = [tuple(w.shape) for w in model.parameters() if w.ndim == 4]
    assert kernels == [(8, 1, 3, 3), (16, 8, 3, 3), (32, 16, 3, 3), (16, 32, 3, 3), (8, 16, 3, 3), (1, 8, 3, 3)]
    matrices = [tuple(w.shape) for w in model.parameters() if w.ndim == 2]
    assert matrices == [(2, 288), (2, 288), (288, 2)]
    assert sum(parameter.numel() for parameter in model.parameters()) == 13_765


def test_convolutional_parts_and_configuration():
    """The noise is the one that was given, the divergence counts once, and the arguments build the model again."""
    noise = BernoulliNoise(0.2)
    model = convolutional_vae((1, 7, 10), 4, (3, 5), noise)
    assert model.noise is noise
    assert model.divergence.weight == 1.0
    sizes = {"image_shape": [1, 7, 10], "latent_size": 4, "channels": [3, 5]}
    assert model.configuration == {"builder": "convolutional_vae", **sizes}
    assert convolutional_vae(**sizes).configuration == model.configuration


@pytest.mark.parametrize("size", [(24, 24), (28, 28), (7, 10), (1, 3)])
def test_convolutional_model_gives_back_the_size_of_its_images(size):
    model = convolutional_vae((2, *size), latent_size=4, channels=(3, 5))
    assert model(torch.rand(3, 2, *size)).shape == (3, 2, *size)
    smallest = tuple(-(-pixels // 4) for pixels in size)
    assert model.encoder[:-2](torch.rand(1, 2, *size)).shape == (1, 5, *smallest)


def test_convolutional_model_written_out():
    torch.manual_seed(0)
    model, functional = convolutional_vae((1, 6, 6), channels=(2, 3)).double().eval(), nn.functional
    images = torch.rand(4, 1, 6, 6).double()
    weights = [parameter.detach() for parameter in model.parameters()]
    hidden = images
    for kernel, bias in (weights[0:2], weights[2:4]):
        hidden = functional.pad(functional.relu(functional.conv2d(hidden, kernel, bias, padding=1)), (0, 1, 0, 1))
        n, channels, height, width = hidden.shape
        hidden = hidden[:, :, : height // 2 * 2, : width // 2 * 2]  # of an even size the added zeros are cut off again
        hidden = hidden.reshape(n, channels, height // 2, 2, width // 2, 2).amax((3, 5))
    mean, log_variance = (hidden.flatten(1) @ weights[i].T + weights[i + 1] for i in (4, 6))
    for found, wanted in zip(model.encode(images), (mean, log_variance), strict=True):
        torch.testing.assert_close(found, wanted)
    hidden = (mean @ weights[8].T + weights[9]).view(-1, 3, 2, 2)
    for size, kernel, bias in ((3, *weights[10:12]), (6, *weights[12:14])):
        index = torch.arange(size) * hidden.shape[-1] // size  # the nearest pixel of the smaller picture
        hidden = functional.conv2d(functional.relu(hidden)[:, :, index][..., index], kernel, bias, padding=1)
    torch.testing.assert_close(model.decode(mean), hidden)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": ()}, r"channels must be a sequence of at least one integer, got \(\)"),
        ({"channels": 8}, "channels must be a sequence of at least one integer, got 8"),
        ({"channels": (8, 0)}, "channels must be at least 1, got 0"),
        ({"latent_size": 0}, "latent_size must be at least 1, got 0"),
        ({"image_shape": (24, 24)}, r"image_shape must be \(channels, height, width\), got \(24, 24\)"),
    ],
)
def test_convolutional_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        convolutional_vae(**arguments)
