"""Checkpoints: what is written comes back, and whatever does not fit is refused with the model untouched."""

import json
import os
from functools import partial

import numpy as np
import pytest
import safetensors.torch
import torch
from runs import same, weights, with_buffers
from torch import nn

import dvae_lib.checkpoints
from dvae_lib import TrainingConfig, convolutional_vae, load_checkpoint, mlp_vae, save_checkpoint, shipped
from dvae_lib.noise import BernoulliNoise, GaussianNoise, MaskingNoise, SaltAndPepperNoise
from dvae_lib.runs import files

CONFIG = TrainingConfig(steps=7, learning_rate=0.02, schedule="cosine", kl_warm_up=3, seed=5, graph=False)


def small(noise=None, latent_size=2, hidden_size=8, shape=(1, 6, 6)):
    return mlp_vae(shape, latent_size, hidden_size, noise)


def with_tanh():
    return mlp_vae((1, 6, 6), 2, 8, activation="tanh")


def flipping(p=0.1, **sizes):
    return small(BernoulliNoise(p), **sizes)


def assert_refused(path, model, message, error=ValueError):
    """Loading fails with the message, and the model is as it was."""
    before = weights(model)
    with pytest.raises(error, match=message):
        load_checkpoint(path, model)
    assert same(weights(model), before)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def saved(path):
    """A file of a small model's weights."""
    save_checkpoint(path, small(), CONFIG)
    return path


# there and back


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "build",
    [
        small,
        flipping,
        with_tanh,
        lambda: small().double(),
        partial(nn.Linear, 3, 2),
        lambda: nn.Sequential(*[nn.Linear(3, 3)] * 2),
    ],
    ids=["plain", "noise", "tanh", "float64", "no builder", "shared weights"],
)
def test_round_trip_is_exact(path, build, training):
    """Into the same parameters: an optimizer that holds them goes on working. The mode stays."""
    model, other = build(), build().train(training)
    before = list(other.parameters())
    save_checkpoint(path, model, CONFIG)
    assert os.listdir(path.parent) == [path.name]
    assert load_checkpoint(path, other) == CONFIG
    assert same(weights(other), weights(model))
    assert all(a is b for a, b in zip(other.parameters(), before, strict=True))
    assert {weight.dtype for weight in before} == {weight.dtype for weight in model.parameters()}
    assert other.training is training


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_weights_are_rounded_and_nothing_else(path, dtype):
    model, other = small(), small()
    before = weights(model)
    save_checkpoint(str(path), model, CONFIG, dtype=dtype)
    assert same(weights(model), before)
    assert {tensor.dtype for tensor in safetensors.torch.load_file(path).values()} == {dtype}
    load_checkpoint(str(path), other)
    assert same(weights(other), {name: tensor.to(dtype).float() for name, tensor in before.items()})


def test_a_count_is_no_weight_and_keeps_its_type(path):
    """A layer's number of batches: 100,001 is beyond the range of float16, 2,049 beyond its digits."""
    for count in (2_049, 100_001):
        model, other = with_buffers(), with_buffers(1)
        model.encoder[2].num_batches_tracked.fill_(count)
        save_checkpoint(path, model, CONFIG, torch.float16)
        load_checkpoint(path, other)
        assert other.encoder[2].num_batches_tracked == count


def test_numbers_of_numpy(path):
    config = TrainingConfig(steps=np.int64(3), learning_rate=np.float32(0.5))
    save_checkpoint(path, small(hidden_size=np.int64(8)), config)
    assert load_checkpoint(path, small()) == config


@pytest.mark.parametrize("steps", [10**i for i in range(8)])
def test_equal_content_is_equal_byte_for_byte(path, steps):
    """Also from process to process: names and descriptions are in order. The tensors begin at a multiple of 8."""
    model, config = flipping(), TrainingConfig(steps)
    contents = set()
    for _ in range(5):
        save_checkpoint(path, model, config)
        contents.add(path.read_bytes())
    (content,) = contents
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    assert end % 8 == 0
    assert list(header) == sorted(header)
    assert list(header["__metadata__"]) == ["format", "model", "training"]


def test_what_is_read_does_not_hang_on_the_file(saved):
    """A mapped file cannot be replaced on every system, and what is written over it shows in the tensors."""
    tensors, _ = files.read(saved)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    with open(saved, "r+b") as file:
        file.write(bytes(saved.stat().st_size))
    assert same(tensors, before)


# files that are refused


@pytest.mark.parametrize("end", [0, 4, 8, 100, -100, -1])
def test_truncated_file(saved, end):
    saved.write_bytes(saved.read_bytes()[:end])
    assert_refused(saved, small(), "model.safetensors is not a complete safetensors file")


OPENS = b"cos\nmkdir\n(S'opened'\ntR."  # a pickle that makes a folder when it is loaded


@pytest.mark.parametrize("content", [b"garbage" * 100, bytes(64), b"\xff" * 64, b'{"format": "json"}', OPENS])
def test_file_that_is_no_safetensors(path, monkeypatch, content):
    """It is not unpickled either."""
    monkeypatch.chdir(path.parent)
    path.write_bytes(content)
    assert_refused(path, small(), "model.safetensors is not a complete safetensors file")
    assert os.listdir() == [path.name]


@pytest.mark.parametrize(("metadata", "found"), [(None, "None"), ({"format": "pt"}, "'pt'")])
def test_safetensors_of_somebody_else(path, metadata, found):
    model = small()
    safetensors.torch.save_file(model.state_dict(), path, metadata)
    assert_refused(path, model, f"must have format 'dvae_lib checkpoint 1', got {found}")


@pytest.mark.parametrize(
    ("made_from", "model", "message"),
    [
        (partial(flipping, hidden_size=9), flipping, "hidden_size is 9 in the file and 8 here"),
        (partial(flipping, latent_size=3), flipping, "latent_size is 3 in the file and 2 here"),
        (partial(flipping, shape=(1, 4, 9)), flipping, r"image_shape is \[1, 4, 9\] in .* and \[1, 6, 6\] here"),
        (partial(flipping, 0.2), flipping, r"noise is BernoulliNoise\(p=0.2\) in .* BernoulliNoise\(p=0.1\) here"),
        (lambda: small(MaskingNoise(0.1)), flipping, r"noise is MaskingNoise\(p=0.1\) in .* BernoulliNoise\(p=0.1\)"),
        (small, flipping, r"noise is None in the file and BernoulliNoise\(p=0.1\) here"),
        (flipping, small, r"noise is BernoulliNoise\(p=0.1\) in the file and None here"),
        (partial(nn.Linear, 3, 2), flipping, "builder is None in the file and mlp_vae here"),
        (small, with_tanh, "activation is None in the file and tanh here"),
        (with_tanh, small, "activation is tanh in the file and None here"),
        # models put together by hand have no configuration to compare
        (partial(nn.Linear, 5, 2), partial(nn.Linear, 3, 2), r"weight is \[2, 5\] in the file and \[2, 3\] here"),
        (partial(nn.Linear, 3, 2, bias=False), partial(nn.Linear, 3, 2), r"bias is None in .* \[2\] here"),
        (lambda: nn.Sequential(nn.Linear(3, 2)), partial(nn.Linear, 3, 2), r"0.bias is \[2\] in .* None here"),
    ],
)
def test_file_of_another_model(path, made_from, model, message):
    save_checkpoint(path, made_from(), CONFIG)
    assert_refused(path, model(), f"model.safetensors does not fit: {message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": None}, "model.safetensors holds no configuration that can be read: 'training'"),
        ({"model": None}, "model.safetensors holds no configuration that can be read: 'model'"),
        ({"training": '{"speed": 3}'}, "model.safetensors holds no configuration that can be read: .*speed"),
        ({"training": '{"steps": -1}'}, "holds no configuration that can be read: steps must be at least 1, got -1"),
        ({"training": "[1"}, "model.safetensors holds a description that cannot be read: "),
        ({"model": "3"}, "model.safetensors holds a description that cannot be read: model, 3"),
    ],
)
def test_descriptions_that_cannot_be_read(path, changes, message):
    model = small()
    metadata = {"format": "dvae_lib checkpoint 1", "model": json.dumps({**model.configuration, "noise": "None"})}
    metadata |= {"training": "{}"} | changes
    metadata = {key: text for key, text in metadata.items() if text is not None}
    safetensors.torch.save_file(small().state_dict(), path, metadata)
    assert_refused(path, model, message)


def test_no_such_file(path):
    assert_refused(path, small(), "model.safetensors", FileNotFoundError)


# what is not written


@pytest.mark.parametrize(
    ("value", "dtype"), [(np.nan, None), (np.inf, None), (-np.inf, torch.bfloat16), (1e6, torch.float16)]
)
def test_weight_not_finite(path, value, dtype):
    """In the type that it would be stored in: 1e6 is too large for 16 bits."""
    model, found = small(), dtype or torch.float32
    with torch.no_grad():
        model.decoder[0].weight[1, 0] = value
    with pytest.raises(ValueError, match=f"model has a weight in decoder.0.weight that is not finite in {found}"):
        save_checkpoint(path, model, CONFIG, dtype)
    assert os.listdir(path.parent) == []


def test_config_of_wrong_type(path):
    with pytest.raises(TypeError, match="config must be a TrainingConfig, got dict"):
        save_checkpoint(path, small(), {"steps": 3})
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


def test_file_is_whole_and_on_the_disk_when_it_gets_its_name(saved, monkeypatch):
    """Although so small a file may still lie in Python's buffer; the old one stays until then."""
    old, replace, events = saved.read_bytes(), os.replace, []

    def look(source, target):
        assert saved.read_bytes() == old
        events.append((os.path.dirname(source), load_checkpoint(source, nn.Linear(3, 2))))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(os.fstat(descriptor).st_size))
    monkeypatch.setattr(os, "replace", look)
    save_checkpoint(saved, nn.Linear(3, 2), CONFIG)
    assert events == [saved.stat().st_size, (str(saved.parent), CONFIG)]


def test_a_leftover_of_the_same_process_number_is_written_over(path):
    """In a container, the process that is started again has the number of the one that was killed."""
    path.with_name(f".{path.name}.{os.getpid()}.new").write_bytes(b"half a fi")
    save_checkpoint(path, small(), CONFIG)
    assert os.listdir(path.parent) == [path.name]
    assert load_checkpoint(path, small()) == CONFIG


# the book's own


@pytest.mark.parametrize(("name", "noise"), [("article-vae", "None"), ("article-dvae", "BernoulliNoise(p=0.1)")])
def test_shipped_model(name, noise):
    """The caller's random numbers are not moved by weights that are drawn and replaced."""
    state = torch.get_rng_state()
    model = shipped(name)
    assert torch.equal(torch.get_rng_state(), state)
    assert (model.configuration["hidden_size"], repr(model.noise), model.training) == (1152, noise, False)
    there = safetensors.torch.load_file(dvae_lib.checkpoints._SHIPPED / f"{name}.safetensors")
    assert same(weights(model), {key: tensor.float() for key, tensor in there.items()})


@pytest.mark.parametrize(
    "noise", [None, BernoulliNoise(0), MaskingNoise(0.25), SaltAndPepperNoise(1e-5), GaussianNoise(0.3)], ids=repr
)
def test_every_noise_can_be_shipped(path, monkeypatch, noise):
    monkeypatch.setattr(dvae_lib.checkpoints, "_SHIPPED", path.parent)
    model = small(noise)
    save_checkpoint(path, model, CONFIG)
    assert repr(shipped("model").noise) == repr(noise)
    assert same(weights(shipped("model")), weights(model))


def test_the_activation_is_shipped_with_the_model(path, monkeypatch):
    """Files that were made when there were only ReLUs do not speak of it, and neither does a new one of ReLUs."""
    monkeypatch.setattr(dvae_lib.checkpoints, "_SHIPPED", path.parent)
    images = torch.rand(3, 1, 6, 6)
    for build, expected in ((with_tanh, {"activation": "tanh"}), (small, {})):
        model = build().eval()
        save_checkpoint(path, model, CONFIG)
        description = files.read(path)[1]["model"]
        assert {key: value for key, value in description.items() if key == "activation"} == expected
        assert all(map(torch.equal, shipped("model").encode(images), model.encode(images)))


def test_a_convolutional_model_can_be_shipped_however_its_weights_lie_in_memory(path, monkeypatch):
    monkeypatch.setattr(dvae_lib.checkpoints, "_SHIPPED", path.parent)
    model = convolutional_vae((1, 6, 6), channels=(2, 3), noise=MaskingNoise(0.25)).eval()
    model.to(memory_format=torch.channels_last)
    assert not model.encoder[3].weight.is_contiguous()
    save_checkpoint(path, model, CONFIG)
    assert repr(shipped("model")) == repr(model)
    assert same(weights(shipped("model")), weights(model))


def test_no_such_shipped_model(path, monkeypatch):
    monkeypatch.setattr(dvae_lib.checkpoints, "_SHIPPED", path.parent)
    for name in ("b", "a"):
        save_checkpoint(path.with_stem(name), small(), CONFIG)
    with pytest.raises(ValueError, match="name must be one of a, b, got 'c'"):
        shipped("c")
    monkeypatch.setattr(dvae_lib.checkpoints, "_SHIPPED", path.parent / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"nowhere is not there: the shipped weights come with a clone"):
        shipped("a")
