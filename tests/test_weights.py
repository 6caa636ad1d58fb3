"""The shipped weights are the ones that the book says they are."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dvae_lib import (
    BernoulliNoise,
    TrainingConfig,
    all_squares,
    bernoulli_vae,
    best_square_iou,
    binarized_mnist,
    elbo,
    exact_log_likelihood,
    iou,
    load_checkpoint,
    mlp_vae,
    shipped,
)
from dvae_lib.runs.digits import mnist_is_at_hand
from experiments import bernoulli, mnist, outlook

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
FLIPS = {"article-vae": 0.0, "article-dvae": 0.1}  # the probability of a flip in training
RUNS = {"quick-vae": 0.0, "quick-dvae": 0.1}  # of the squares' experiment, seed 0
DIGITS = {  # runs of the digits' experiment, seed 0: the probability of a flip, the parameters counted by hand
    "mnist-vae": (0.0, 425_284),  # 784-200-200-2x50-200-200-784 with biases
    "mnist-dvae": (0.02, 425_284),
    "mnist-plane-vae": (0.0, 235_540),  # 784-128-128-2x2-128-128-784
    "mnist-plane-dvae": (0.05, 235_540),
}
EXPLORERS = {f"explorer-p{round(100 * p):02d}": p for p in (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)}

FURTHER = {"explorer-bits": bernoulli.GROUPS["relaxed-12"], "explorer-levels": outlook.GROUPS["chain"]}


def load(name: str):
    p = (FLIPS | RUNS | EXPLORERS)[name]
    size = 1152 if name in FLIPS else 256 if name in RUNS else 128
    model = mlp_vae(hidden_size=size, noise=BernoulliNoise(p) if p > 0 else None)
    return model.eval(), load_checkpoint(WEIGHTS / f"{name}.safetensors", model)


@torch.no_grad()
def overlap(name: str, p: float = 0.0) -> float:
    """Mean intersection over union of the reconstructions of flipped squares with the squares themselves."""
    model, _ = load(name)
    clean = all_squares().repeat(4, 1, 1, 1)
    corrupted = BernoulliNoise(p, torch.Generator().manual_seed(0)).corrupt(clean)
    decoded = model.decode(model.encode(corrupted)[0]) > 0
    return float(iou(decoded.float(), clean).mean())


each_model = pytest.mark.parametrize("name", FLIPS | RUNS | EXPLORERS)
each_article_model = pytest.mark.parametrize("name", FLIPS)


def test_every_shipped_file_is_listed_and_has_its_sha256_and_all_are_under_25_mb():
    shipped = [path for path in WEIGHTS.iterdir() if path.name not in ("SHA256SUMS", "README.md")]
    models = {f"{name}.safetensors" for name in [*FLIPS, *RUNS, *DIGITS, *EXPLORERS, *FURTHER, "toy-dvae"]}
    assert {path.name for path in shipped} == models | {f"{name}.protocol.npz" for name in FLIPS}
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in shipped]
    assert sorted(lines) == sorted((WEIGHTS / "SHA256SUMS").read_text().splitlines())
    assert sum(path.stat().st_size for path in shipped) < 25e6


@each_article_model
def test_the_weights_belong_to_the_articles_configuration(name):
    assert load(name)[1] == TrainingConfig.article()


@pytest.mark.parametrize("name", EXPLORERS)
def test_the_explorers_share_one_schedule_and_differ_in_the_noise_alone(name):
    (model, config), (other, same) = load(name), load("explorer-p00")
    assert (model.configuration, config) == (other.configuration, same)
    assert (config.schedule, config.steps * config.batch_size) == ("cosine", 2_048_000)


@each_model
def test_the_weights_are_stored_in_16_bits(name):
    tensors = load_file(WEIGHTS / f"{name}.safetensors").values()
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    # counted by hand: 576-128-128-2x2-128-128-576 with biases, in the article's 1152 for 128, in the quick ones 256
    counted = 3_993_412 if name in FLIPS else 429_124 if name in RUNS else 182_084
    assert sum(tensor.numel() for tensor in tensors) == counted


@each_article_model
def test_the_protocol_covers_the_articles_run(name):
    config = TrainingConfig.article()
    with np.load(WEIGHTS / f"{name}.protocol.npz") as columns:
        assert {column.shape for column in columns.values()} == {(config.steps // 50,)}
        rates = [config.learning_rate_at(step) for step in range(50)]
        np.testing.assert_allclose(columns["learning_rate"][0], np.mean(rates), rtol=1e-5)
        # trained: the objective of the last windows is far below that of the first, and above the data's entropy
        objective = columns["reconstruction"] + columns["kl"]
        assert np.log(256) < objective[-100:].mean() < 0.2 * objective[0]


@each_model
def test_the_model_decodes_squares_from_the_codes_of_squares(name):
    model, _ = load(name)
    with torch.no_grad():
        mean, _ = model.encode(all_squares())
        quality = best_square_iou(model.decode(mean).sigmoid()).median()
    assert quality > (0.95 if (FLIPS | RUNS | EXPLORERS)[name] <= 0.1 else 0.85)


def test_only_the_denoising_model_reconstructs_from_corrupted_images():
    assert overlap("article-dvae", 0.1) > 0.95 > 0.9 > overlap("article-vae", 0.1)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.2, 0.3, 0.4])
def test_an_explorer_is_the_best_of_the_six_at_the_noise_that_it_was_trained_with(p):
    overlaps = {level: overlap(name, p) for name, level in EXPLORERS.items()}
    assert overlaps[p] > max(overlaps.values()) - 0.005
    assert overlaps[p] > {0.0: 0.99, 0.1: 0.99, 0.2: 0.95, 0.3: 0.85, 0.4: 0.6}[p]


def test_training_noise_helps_against_noise_and_costs_on_clean_images():
    assert overlap("explorer-p00", 0.1) < 0.9 < overlap("explorer-p10", 0.1) - 0.05
    assert overlap("explorer-p40") < 0.75


@torch.no_grad()
def test_the_toy_has_learned_its_bars():
    model = shipped("toy-dvae")
    assert (model.configuration["image_shape"], model.configuration["latent_size"]) == ([1, 1, 8], 1)
    # counted by hand: 8-32-32-2x1-32-32-8 with biases
    assert sum(tensor.numel() for tensor in load_file(WEIGHTS / "toy-dvae.safetensors").values()) == 2_794
    bars = torch.stack([torch.eye(8)[place : place + 3].sum(0) for place in range(6)]).view(6, 1, 1, 8)
    codes = torch.linspace(-6, 6, 2_001)[:, None]
    prior = torch.exp(-0.5 * codes[:, 0] ** 2) / (2 * torch.pi) ** 0.5
    log_likelihood = torch.distributions.Bernoulli(logits=model.decode(codes)[:, None]).log_prob(bars).sum((2, 3, 4))
    probability = (log_likelihood.exp() * prior[:, None]).sum(0) * 12 / 2_000
    assert 0.5 < probability.sum() < 1  # of the 256 images of eight pixels these six have more than half
    assert probability.min() > 0.5 / 6 * 0.9


@pytest.mark.parametrize("name", DIGITS)
def test_the_networks_of_the_digits_are_those_of_the_experiment(name):
    model, (p, parameters) = shipped(name), DIGITS[name]
    group = {"mnist-vae": "vae", "mnist-dvae": "flips-0.02"}.get(name, name.removeprefix("mnist-"))
    expected = mnist.GROUPS[group].build(0)
    assert model.configuration == expected.configuration
    assert repr(model) == repr(expected)
    assert (model.noise.p if p else model.noise) == (p or None)
    tensors = load_file(WEIGHTS / f"{name}.safetensors").values()
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    assert sum(tensor.numel() for tensor in tensors) == parameters


@pytest.mark.skipif(not mnist_is_at_hand(), reason="the binarised MNIST is not at hand: set DVAE_DATA")
@pytest.mark.parametrize("name", DIGITS)
def test_the_networks_of_the_digits_have_learned_them(name):
    some = binarized_mnist("test")[::50]  # of both halves
    share = binarized_mnist("train").mean(0).clamp(1e-4, 1 - 1e-4)
    independent = torch.distributions.Bernoulli(share).log_prob(some).sum((1, 2, 3))
    torch.manual_seed(0)
    gain = elbo(shipped(name), some, 5).value.mean() - independent.mean()
    assert 40 < gain < 130  # nats


def load_further(name: str):
    model = bernoulli_vae(latent_size=12, hidden_size=128) if name == "explorer-bits" else outlook.EveryLevel(128)
    return model.eval(), load_checkpoint(WEIGHTS / f"{name}.safetensors", model)


@pytest.mark.parametrize("name", FURTHER)
def test_the_further_explorers_networks_are_trained_as_the_experiments_but_narrower(name):
    _, config = load_further(name)
    assert config == replace(FURTHER[name].config, hidden_size=128, seed=0)
    tensors = load_file(WEIGHTS / f"{name}.safetensors").values()
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    # counted by hand: 576-128-128-12-128-128-576 and 577-128-128-576 with biases
    assert sum(tensor.numel() for tensor in tensors) == {"explorer-bits": 184_396, "explorer-levels": 164_800}[name]


@torch.no_grad()
def test_the_bits_are_as_good_as_the_chapters():
    model, _ = load_further("explorer-bits")
    (logits,) = model.encode(all_squares())
    assert 60 <= len((logits > 0).unique(dim=0)) <= 150  # of 256; the chapter's three seeds have 65 to 94
    assert -32 < exact_log_likelihood(model, all_squares()).value.mean() < -20  # the chapter's have -30 to -26


@torch.no_grad()
def test_the_network_of_all_levels_is_near_the_exact_posterior_where_there_is_much_noise():
    model, _ = load_further("explorer-levels")
    squares = all_squares().flatten(1)
    for std, most in ((2.45, 0.5), (7.0, 0.1), (20.0, 0.1)):  # of the exact mean's error
        noisy = squares + std * torch.randn(squares.shape, generator=torch.Generator().manual_seed(0))
        exact = (noisy @ squares.T / std**2).softmax(1) @ squares
        errors = [(found - squares).square().sum() for found in (model.denoise(noisy, torch.tensor(std)), exact)]
        assert 1 < errors[0] / errors[1] < 1 + most


def test_what_the_library_does_not_build_is_not_shipped_by_name():
    assert len(shipped("explorer-bits").encode(all_squares()[:1])[0][0]) == 12
    with pytest.raises(ValueError, match="another kind"):
        shipped("explorer-levels")
