"""Checkpoints: what is written comes back, and whatever does not fit is refused with the model untouched."""

import json
import os
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from dvae_lib import BernoulliNoise, MaskingNoise, TrainingConfig, load_checkpoint, mlp_vae, save_checkpoint

CONFIG = TrainingConfig(
    steps=7, batch_size=3, learning_rate=0.02, schedule="cosine", decay=0.1, hidden_size=8, seed=5, report_every=2
)


def small(noise=None, latent_size=2, hidden_size=8, shape=(1, 6, 6)):
    return mlp_vae(shape, latent_size, hidden_size, noise)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_weights(model, expected):
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def assert_refused(path, model, message, error=ValueError):
    """Loading fails with the message, and the model is as it was."""
    before, training = weights(model), model.training
    with pytest.raises(error, match=message):
        load_checkpoint(path, model)
    assert_weights(model, before)
    assert model.training is training


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def saved(path):
    """A file of a small model's weights."""
    save_checkpoint(path, small(), CONFIG)
    return path


# there and back


@pytest.mark.parametrize("as_path", [str, lambda path: path])
@pytest.mark.parametrize("noise", [None, BernoulliNoise(0.1)])
def test_round_trip_is_exact(path, noise, as_path):
    model, other = small(noise), small(noise)
    save_checkpoint(as_path(path), model, CONFIG)
    assert load_checkpoint(as_path(path), other) == CONFIG
    assert_weights(other, weights(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_weights_are_rounded_and_nothing_else(path, dtype):
    model, other = small(), small()
    before = weights(model)
    save_checkpoint(path, model, CONFIG, dtype=dtype)
    assert_weights(model, before)
    assert {tensor.dtype for tensor in safetensors.torch.load_file(path).values()} == {dtype}
    load_checkpoint(path, other)
    assert_weights(other, {name: tensor.to(dtype).float() for name, tensor in before.items()})


def test_float64_weights_stay_float64(path):
    model, other = small().double(), small().double()
    save_checkpoint(path, model, CONFIG)
    load_checkpoint(path, other)
    assert_weights(other, weights(model))
    assert next(other.parameters()).dtype == torch.float64


@pytest.mark.parametrize("training", [True, False])
def test_loading_keeps_the_mode(saved, training):
    model = small().train(training)
    load_checkpoint(saved, model)
    assert model.training is training


def test_loading_writes_into_the_same_parameters(saved):
    """An optimizer that holds them goes on working."""
    model = small()
    before = list(model.parameters())
    load_checkpoint(saved, model)
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))


def test_model_can_be_saved_after_a_pass(path):
    model = small()
    model(torch.rand(3, 1, 6, 6))
    save_checkpoint(path, model, CONFIG)
    load_checkpoint(path, small())


def test_a_model_without_builder_has_a_checkpoint_too(path):
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    save_checkpoint(path, model, CONFIG)
    assert load_checkpoint(path, other) == CONFIG
    assert_weights(other, weights(model))


def test_another_file_of_that_name_is_replaced(saved):
    model = small()
    save_checkpoint(saved, model, CONFIG)
    other = small()
    load_checkpoint(saved, other)
    assert_weights(other, weights(model))


def test_nothing_but_the_file_is_left(saved):
    assert os.listdir(saved.parent) == [saved.name]


# files that are refused


@pytest.mark.parametrize("length", [0, 4, 8, 100, 0.5, -100, -1])
def test_truncated_file(saved, length):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(length * len(content)) if isinstance(length, float) else length])
    assert_refused(saved, small(), "model.safetensors is not a complete safetensors file")


@pytest.mark.parametrize(
    "content", [b"garbage" * 100, bytes(64), b"\xff" * 64, pickle.dumps({"weight": [1.0]}), b'{"format": "json"}']
)
def test_file_that_is_no_safetensors(path, content):
    path.write_bytes(content)
    assert_refused(path, small(), "model.safetensors is not a complete safetensors file")


@pytest.mark.parametrize(("metadata", "found"), [(None, "None"), ({"format": "pt"}, "'pt'")])
def test_safetensors_of_somebody_else(path, metadata, found):
    model = small()
    safetensors.torch.save_file(model.state_dict(), path, metadata)
    assert_refused(path, model, f"must have format 'dvae_lib checkpoint 1', got {found}")


@pytest.mark.parametrize(
    ("made_from", "message"),
    [
        (lambda: small(hidden_size=9), "made with hidden_size = 9, the model has hidden_size = 8"),
        (lambda: small(latent_size=3), "made with latent_size = 3, the model has latent_size = 2"),
        (
            lambda: small(shape=(1, 4, 9)),
            r"made with image_shape = \[1, 4, 9\], the model has image_shape = \[1, 6, 6\]",
        ),
        (lambda: small(BernoulliNoise(0.2)), r"noise = BernoulliNoise\(p=0.2\), .* noise = BernoulliNoise\(p=0.1\)"),
        (lambda: small(MaskingNoise(0.1)), r"noise = MaskingNoise\(p=0.1\), .* noise = BernoulliNoise\(p=0.1\)"),
        (small, r"noise = None, the model has noise = BernoulliNoise\(p=0.1\)"),
        (lambda: nn.Linear(2, 2), "made with builder = None, the model has builder = mlp_vae"),
    ],
)
def test_file_of_another_model(path, made_from, message):
    save_checkpoint(path, made_from(), CONFIG)
    assert_refused(path, small(BernoulliNoise(0.1)), message)


def test_model_without_noise_refuses_weights_trained_with_noise(path):
    save_checkpoint(path, small(BernoulliNoise(0.1)), CONFIG)
    assert_refused(path, small(), r"noise = BernoulliNoise\(p=0.1\), the model has noise = None")


@pytest.mark.parametrize(
    ("made_from", "message"),
    [
        (lambda: nn.Linear(5, 2), r"weight has shape \(2, 5\) in the file and \(2, 3\) in the model"),
        (lambda: nn.Linear(3, 2, bias=False), r"bias has shape None in the file and \(2,\) in the model"),
        (lambda: nn.Bilinear(3, 3, 2), r"weight has shape \(2, 3, 3\) in the file and \(2, 3\) in the model"),
        (lambda: nn.Sequential(nn.Linear(3, 2)), r"0.bias has shape \(2,\) in the file and None in the model"),
    ],
)
def test_weights_of_other_names_or_shapes(path, made_from, message):
    """Models put together by hand have no configuration to compare."""
    save_checkpoint(path, made_from(), CONFIG)
    assert_refused(path, nn.Linear(3, 2), message)


def test_no_such_file(path):
    assert_refused(path, small(), "model.safetensors", FileNotFoundError)


# what is not written


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weight_not_finite(path, value):
    model = small()
    with torch.no_grad():
        model.decoder[0].weight[1, 0] = value
    with pytest.raises(ValueError, match=r"decoder.0.weight that is not finite in torch.float32"):
        save_checkpoint(path, model, CONFIG)
    assert os.listdir(path.parent) == []


def test_weight_too_large_for_16_bits(path):
    model = small()
    with torch.no_grad():
        model.encoder[1].bias[3] = 1e6
    with pytest.raises(ValueError, match=r"encoder.1.bias that is not finite in torch.float16"):
        save_checkpoint(path, model, CONFIG, dtype=torch.float16)
    assert os.listdir(path.parent) == []
    save_checkpoint(path, model, CONFIG)


@pytest.mark.parametrize("config", [None, {"steps": 3}])
def test_config_of_wrong_type(path, config):
    with pytest.raises(TypeError, match=f"config must be a TrainingConfig, got {type(config).__name__}"):
        save_checkpoint(path, small(), config)
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize(("module", "function"), [(os, "replace"), (os, "fsync"), (safetensors.torch, "save")])
def test_failure_while_writing_leaves_the_old_file(saved, monkeypatch, module, function, error):
    def fail(*_, **__):
        raise error

    before = saved.read_bytes()
    monkeypatch.setattr(module, function, fail)
    with pytest.raises(type(error)):
        save_checkpoint(saved, small(), CONFIG)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_file_is_complete_when_it_gets_its_name(saved, monkeypatch):
    """At the moment of renaming, the temporary file in the same folder already holds everything."""
    model, replace, seen = small(), os.replace, []

    def look(source, target):
        assert os.path.dirname(source) == os.path.dirname(target)
        seen.append(load_checkpoint(source, small()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    save_checkpoint(saved, model, CONFIG)
    assert seen == [CONFIG]


def test_file_is_on_the_disk_when_it_gets_its_name(path, monkeypatch):
    """What is synchronised is all of the file, although so small a one may still lie in Python's buffer."""
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    save_checkpoint(path, nn.Linear(3, 2), CONFIG)
    assert sizes == [path.stat().st_size]


def test_numbers_of_numpy(tmp_path):
    config = TrainingConfig(steps=np.int64(3), learning_rate=np.float32(0.5))
    model = mlp_vae((1, 6, 6), hidden_size=np.int64(8))
    save_checkpoint(tmp_path / "model.safetensors", model, config)
    assert load_checkpoint(tmp_path / "model.safetensors", small()) == config


@pytest.mark.parametrize("training", [None, '{"speed": 3}', '{"steps": -1}', "[1", "3"])
def test_configuration_that_cannot_be_read(tmp_path, training):
    path, model = tmp_path / "model.safetensors", small()
    metadata = {"format": "dvae_lib checkpoint 1", "model": json.dumps({**model.configuration, "noise": "None"})}
    metadata |= {} if training is None else {"training": training}
    safetensors.torch.save_file(small().state_dict(), path, metadata)
    assert_refused(path, model, "model.safetensors holds no configuration that can be read")
