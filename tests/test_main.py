"""The command line: what it is given reaches the run, and what the run made is what the library makes of it."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import StoppedError, at_pass, same, stop, weights

import dvae_lib.__main__
from dvae_lib import BernoulliNoise, TrainingConfig, load_checkpoint, mlp_vae, squares, train
from dvae_lib.__main__ import main, parse

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--steps", "12", "--batch-size", "4", "--hidden-size", "8", "--images", "30", "--device", "cpu"]
CONFIG = TrainingConfig(steps=12, batch_size=4, hidden_size=8)


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    """As if not under torchrun, which sets these."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def given_to_train(monkeypatch):
    """Call `main` with a command line up to the call of `train`, and return its arguments."""

    calls = []

    def note(model, images, config, **options):
        calls.append((model, images, config, options))
        stop()

    def call(*arguments):
        with pytest.raises(StoppedError):
            main(arguments)
        return calls.pop()

    monkeypatch.setattr(dvae_lib.__main__, "train", note)
    return call


# what the options mean


def test_without_options_it_is_the_article(given_to_train):
    model, images, config, options = given_to_train()
    assert config == TrainingConfig.article()
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_993_412
    assert model.noise is None
    assert images.shape == (50_000, 1, 24, 24)
    assert options == {"device": dvae_lib.default_device(), "checkpoint": None}


def test_quick(given_to_train):
    model, _, config, _ = given_to_train("--quick")
    assert config == TrainingConfig.quick()
    assert model.configuration["hidden_size"] == 256


@pytest.mark.parametrize("base", ["article", "quick"])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("steps", 7),
        ("batch_size", 3),
        ("hidden_size", 5),
        ("seed", 9),
        ("report_every", 2),
        ("checkpoint_every", 11),
        ("precision", "tf32"),
    ],
)
def test_options_override_the_configuration(given_to_train, base, option, value):
    """One entry changes, all others stay those of the schedule."""
    arguments = [f"--{option.replace('_', '-')}", str(value)] + (["--quick"] if base == "quick" else [])
    model, _, config, _ = given_to_train(*arguments)
    assert config == dataclasses.replace(getattr(TrainingConfig, base)(), **{option: value})
    assert model.configuration["hidden_size"] == config.hidden_size


@pytest.mark.parametrize(("arguments", "graph"), [([], True), (["--no-graph"], False)])
def test_graph(given_to_train, arguments, graph):
    assert given_to_train(*arguments)[2].graph is graph


@pytest.mark.parametrize(
    ("arguments", "noise"), [(["--noise", "0"], "None"), (["--noise", "0.3"], "BernoulliNoise(p=0.3)")]
)
def test_noise(given_to_train, arguments, noise):
    assert repr(given_to_train(*arguments)[0].noise) == noise


def test_images_device_and_checkpoint(given_to_train):
    _, images, _, options = given_to_train("--images", "17", "--device", "meta", "--checkpoint", "run.safetensors")
    assert len(images) == 17
    assert options == {"device": torch.device("meta"), "checkpoint": "run.safetensors"}


@pytest.mark.parametrize("seed", [0, 5])
def test_seed_is_that_of_model_and_images(given_to_train, seed):
    model, images, _, _ = given_to_train("--seed", str(seed), "--hidden-size", "8", "--images", "20")
    torch.manual_seed(seed)
    assert same(weights(model), weights(mlp_vae(hidden_size=8)))
    assert torch.equal(images, squares(20, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize(
    "arguments",
    [["--precision", "fp8"], ["--steps", "many"], ["--steps", "1.5"], ["--noise"], ["--fast"], ["quick"]],
    ids=" ".join,
)
def test_command_lines_that_are_not_understood(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "usage: python -m dvae_lib" in error
    assert "error: " in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["--noise", "1.5"], r"p must be in \[0, 1\], got 1.5"),
        (["--noise", "-0.1"], r"p must be in \[0, 1\], got -0.1"),
        (["--images", "0"], "n must be at least 1, got 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_values_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        main([*SMALL, *arguments])


def test_help(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    options = ["noise", "quick", "images", "output", "checkpoint", "device", "no-graph", "precision", "steps"]
    options += ["batch-size", "hidden-size", "seed", "report-every", "checkpoint-every"]
    assert all(f"--{option} " in text for option in options)
    assert "torchrun --nproc-per-node 2 -m dvae_lib" in text


def test_the_examples_of_the_help_are_understood():
    examples = [line for line in dvae_lib.__main__.__doc__.splitlines() if line.startswith("    ")]
    parsed = [parse(line.split("-m dvae_lib")[1].split()) for line in examples]
    assert len(parsed) == 2
    assert all(options.noise == 0.1 and options.output == "dvae.safetensors" for options in parsed)


# what it makes


def test_output_is_what_the_library_makes(path, capsys):
    main([*SMALL, "--noise", "0.1", "--output", str(path)])
    model = mlp_vae(hidden_size=8, noise=BernoulliNoise(0.1))
    assert load_checkpoint(path, model) == CONFIG
    torch.manual_seed(0)
    expected = mlp_vae(hidden_size=8, noise=BernoulliNoise(0.1))
    protocol = train(expected, squares(30, torch.Generator().manual_seed(0)), CONFIG, device="cpu", progress=False)
    assert same(weights(model), weights(expected))
    means = protocol.reconstruction.mean(), protocol.kl.mean()
    expected_line = f"12 steps; reconstruction {means[0]:.2f}, divergence {means[1]:.2f} nats per image\n"
    assert capsys.readouterr().out == expected_line


def test_losses_are_the_means_of_the_last_500_steps(monkeypatch, capsys):
    rows = np.zeros((6, 1200), dtype=np.float32)
    rows[0, 700:], rows[1, 700:] = np.arange(500), 3
    rows[:2, :700] = 1e6
    monkeypatch.setattr(dvae_lib.__main__, "train", lambda *_, **__: dvae_lib.Protocol(*rows))
    main(SMALL)
    assert "1200 steps; reconstruction 249.50, divergence 3.00 nats per image" in capsys.readouterr().out


def test_without_output_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(SMALL)
    assert os.listdir(tmp_path) == []


def test_the_same_command_goes_on(tmp_path, monkeypatch, path, capsys):
    """StoppedError in step 8 of 12, after a checkpoint at step 5: the second call makes seven steps."""
    checkpoint, whole = tmp_path / "run.safetensors", tmp_path / "whole.safetensors"
    command = [*SMALL, "--noise", "0.1", "--report-every", "5", "--checkpoint-every", "5"]
    main([*command, "--output", str(whole)])
    command += ["--checkpoint", str(checkpoint), "--output", str(path)]
    steps = []

    def built(action):
        def build(**options):
            model = mlp_vae(**options)
            model.register_forward_pre_hook(lambda *_: steps.append(1))
            at_pass(model, 8, action)
            return model

        return build

    monkeypatch.setattr(dvae_lib.__main__, "mlp_vae", built(stop))
    with pytest.raises(StoppedError):
        main(command)
    assert os.listdir(tmp_path).count("run.safetensors") == 1
    assert not path.exists()
    steps.clear()
    monkeypatch.setattr(dvae_lib.__main__, "mlp_vae", built(stop))
    main(command)
    assert len(steps) == 7
    model, expected = (mlp_vae(hidden_size=8, noise=BernoulliNoise(0.1)) for _ in range(2))
    load_checkpoint(path, model)
    load_checkpoint(whole, expected)
    assert same(weights(model), weights(expected))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == lines[1]


def test_another_command_does_not_go_on(tmp_path):
    checkpoint = ["--checkpoint", str(tmp_path / "run.safetensors")]
    main([*SMALL, *checkpoint])
    with pytest.raises(ValueError, match="made with steps = 12, this one has steps = 13"):
        main([*SMALL, *checkpoint, "--steps", "13"])


def test_as_a_command(tmp_path):
    """In a process of its own: a progress bar on stderr, one line on stdout, the file where it was asked for."""
    path = tmp_path / "model.safetensors"
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    command = [sys.executable, "-m", "dvae_lib", *SMALL, "--output", str(path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.startswith("12 steps; ")
    assert done.stdout.count("\n") == 1
    assert "images/s" in done.stderr
    assert load_checkpoint(path, mlp_vae(hidden_size=8)) == CONFIG
