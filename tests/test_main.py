"""The command line: what it is given reaches the run, and what the run made is what the library makes of it."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import StoppedError, at_pass, interrupt, same, stop, weights

import dvae_lib.__main__
from dvae_lib import BernoulliNoise, TrainingConfig, load_checkpoint, mlp_vae, squares, train
from dvae_lib.__main__ import main, parse

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--steps", "12", "--batch-size", "4", "--hidden-size", "8", "--images", "30", "--device", "cpu"]
CONFIG = TrainingConfig(steps=12, batch_size=4, hidden_size=8)


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


@pytest.fixture
def steps_until(monkeypatch):
    """Have `action()` called in the pass of step `step` of every run of `main`; return where the passes are listed."""

    def arrange(step, action):
        passes = []

        def build(**options):
            model = mlp_vae(**options)
            model.register_forward_pre_hook(lambda *_: passes.append(1))
            at_pass(model, step, action)
            return model

        monkeypatch.setattr(dvae_lib.__main__, "mlp_vae", build)
        return passes

    return arrange


# what the options mean


def test_without_options_it_is_the_article(given_to_train):
    model, images, config, options = given_to_train()
    assert config == TrainingConfig.article()
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_993_412
    assert model.noise is None
    assert images.shape == (50_000, 1, 24, 24)
    assert options == {"device": dvae_lib.default_device(), "checkpoint": None}


def test_options_change_their_entries_of_the_configuration(given_to_train):
    changes = {"steps": 7, "batch_size": 3, "learning_rate": 0.5, "weight_decay": 0.25, "kl_warm_up": 6, "seed": 9}
    changes |= {"precision": "tf32", "hidden_size": 5, "report_every": 2, "checkpoint_every": 11}
    assert given_to_train("--quick", "--images", "9")[2] == TrainingConfig.quick()
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in changes.items()]
    for schedule, base in (([], TrainingConfig.article()), (["--quick"], TrainingConfig.quick())):
        model, _, config, _ = given_to_train("--images", "9", *schedule, *arguments, "--no-graph")
        assert config == dataclasses.replace(base, **changes, graph=False)
        assert model.configuration["hidden_size"] == 5


def test_options_beside_the_configuration(given_to_train):
    arguments = "--noise 0.3 --images 17 --device meta --checkpoint run.safetensors"
    model, images, _, options = given_to_train(*arguments.split())
    assert repr(model.noise) == "BernoulliNoise(p=0.3)"
    assert len(images) == 17
    assert options == {"device": torch.device("meta"), "checkpoint": "run.safetensors"}


def test_a_folder_that_is_missing_is_told_before_the_run_and_not_after_it(tmp_path, given_to_train, capsys):
    given_to_train("--output", str(tmp_path / "model.safetensors"))
    with pytest.raises(SystemExit, match="2"):
        main(["--output", str(tmp_path / "missing" / "model.safetensors")])
    assert "--output must lie in a folder that exists" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["--output", str(tmp_path)])
    assert "--output must be a file, got the folder" in capsys.readouterr().err


def test_help_and_its_examples_are_understood(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert dvae_lib.__main__.__doc__.strip() in text
    examples = [line for line in text.splitlines() if line.startswith("    ") and " -m dvae_lib --" in line]
    parsed = [parse(line.split("-m dvae_lib")[1].split()) for line in examples]
    assert len(parsed) == 2
    assert all(options.noise == 0.1 and options.output == "dvae.safetensors" for options in parsed)


# what it makes


def test_output_is_what_the_library_makes(path, capsys):
    """The seed is that of the weights, the images and the run."""
    assert main([*SMALL, "--noise", "0.1", "--seed", "5", "--output", str(path)]) == 0
    config = dataclasses.replace(CONFIG, seed=5)
    model = mlp_vae(hidden_size=8, noise=BernoulliNoise(0.1))
    assert load_checkpoint(path, model) == config
    torch.manual_seed(5)
    expected = mlp_vae(hidden_size=8, noise=BernoulliNoise(0.1))
    protocol = train(expected, squares(30, torch.Generator().manual_seed(5)), config, device="cpu", progress=False)
    assert same(weights(model), weights(expected))
    means = protocol.reconstruction.mean(), protocol.kl.mean()
    expected_line = f"12 steps; reconstruction {means[0]:.2f}, divergence {means[1]:.2f} nats per image\n"
    assert capsys.readouterr().out == expected_line


def test_losses_are_the_means_of_the_last_500_steps(monkeypatch, capsys):
    rows = np.zeros((6, 1200), dtype=np.float32)
    rows[0, 700:], rows[1, 700:] = np.arange(500), 3
    rows[:2, :700] = 1e6
    monkeypatch.setattr(dvae_lib.__main__, "train", lambda *_, **__: dvae_lib.Protocol(*rows))
    main([*SMALL, "--steps", "1200"])
    assert capsys.readouterr().out == "1200 steps; reconstruction 249.50, divergence 3.00 nats per image\n"


@pytest.mark.parametrize("keep", [False, True])
def test_ctrl_c(path, capsys, steps_until, keep):
    """The run ends at its next report and says so; the output is that of whole runs, unless asked for."""
    steps = steps_until(2, interrupt)
    options = ["--report-every", "5", "--output", str(path), *(["--keep-partial"] if keep else [])]
    assert main([*SMALL, *options]) == 130
    assert len(steps) == 5
    assert capsys.readouterr().out.startswith("interrupted after 5 of 12 steps; reconstruction ")
    assert path.exists() is keep


def test_the_same_command_goes_on(tmp_path, path, capsys, steps_until):
    """Stopped in step 8 of 12, after a checkpoint at step 5: the second call makes seven steps, and the same file."""
    whole = tmp_path / "whole.safetensors"
    command = [*SMALL, "--noise", "0.1", "--report-every", "5", "--checkpoint-every", "5"]
    main([*command, "--output", str(whole)])
    command += ["--checkpoint", str(tmp_path / "run.safetensors"), "--output", str(path)]
    steps = steps_until(8, stop)
    with pytest.raises(StoppedError):
        main(command)
    assert sorted(os.listdir(tmp_path)) == ["run.safetensors", whole.name]
    steps.clear()
    assert main(command) == 0
    assert len(steps) == 7
    assert path.read_bytes() == whole.read_bytes()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == lines[1]
    with pytest.raises(ValueError, match="steps is 12 in the file and 13 here"):
        main([*command, "--steps", "13"])


def test_as_a_command(tmp_path):
    """In a process of its own: a progress bar on stderr, one line on stdout, no file that was not asked for."""
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    options = {"cwd": tmp_path, "env": environment | {"PYTHONPATH": str(ROOT)}, "timeout": 120}
    command = [sys.executable, "-m", "dvae_lib", *SMALL]
    done = subprocess.run(command, **options, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("12 steps; ")
    assert done.stdout.count("\n") == 1
    assert "images/s" in done.stderr
    assert os.listdir(tmp_path) == []
