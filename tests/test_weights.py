"""The shipped weights are the ones that the book says they are."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch

from dvae_lib import BernoulliNoise, TrainingConfig, all_squares, best_square_iou, load_checkpoint, mlp_vae

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
NOISES = {"article-vae": None, "article-dvae": BernoulliNoise(0.1)}


def listed() -> dict[str, str]:
    lines = (WEIGHTS / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def load(name: str):
    model = mlp_vae(noise=NOISES[name])
    return model.eval(), load_checkpoint(WEIGHTS / f"{name}.safetensors", model)


each_model = pytest.mark.parametrize("name", NOISES)


def test_every_shipped_file_is_listed_and_has_its_sha256():
    files = {path.name for path in WEIGHTS.iterdir()} - {"SHA256SUMS", "README.md"}
    assert files == set(listed()) == {f"{n}.{end}" for n in NOISES for end in ("safetensors", "protocol.npz")}
    for name, digest in listed().items():
        assert hashlib.sha256((WEIGHTS / name).read_bytes()).hexdigest() == digest, name


def test_all_shipped_weights_together_are_under_20_mb():
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 20e6


@each_model
def test_the_weights_belong_to_the_articles_configuration(name):
    _, config = load(name)
    assert config == TrainingConfig.article()


@each_model
def test_the_weights_are_stored_in_16_bits(name):
    with safetensors.safe_open(WEIGHTS / f"{name}.safetensors", framework="pt") as file:
        tensors = [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    assert sum(tensor.numel() for tensor in tensors) == 3_993_412


@each_model
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
        assert best_square_iou(model.decode(mean).sigmoid()).median() > 0.95


def test_only_the_denoising_model_reconstructs_from_corrupted_images():
    clean = all_squares()
    corrupted = BernoulliNoise(0.1, torch.Generator().manual_seed(0)).corrupt(clean)
    iou = {}
    for name in NOISES:
        model, _ = load(name)
        with torch.no_grad():
            decoded = model.decode(model.encode(corrupted)[0]) > 0
        both, either = (decoded * clean).sum((1, 2, 3)), ((decoded + clean) > 0).sum((1, 2, 3))
        iou[name] = float((both / either).mean())
    assert iou["article-dvae"] > 0.95 > 0.9 > iou["article-vae"]
