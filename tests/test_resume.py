"""Runs that are stopped, killed and called again end as if nothing had happened; what does not fit is refused."""

import dataclasses
import itertools
import json
import math
import os
import random
import signal
import time
from functools import partial

import numpy as np
import pytest
import runs
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import at_pass, bars, denoising, interrupt, run, same, short, stop, tiny, weights, with_generators
from torch import nn

import dvae_lib.runs.files
from dvae_lib import BernoulliNoise, KullbackLeiblerDivergence, TrainingConfig, save_checkpoint
from dvae_lib.runs.randomness import layer_generators


def partly_trained(seed=0):
    """A layer that is not trained has no moments to keep; nor has a parameter that nothing depends on."""
    model = denoising(seed)
    model.encoder[1].requires_grad_(False)
    model.spare = nn.Parameter(torch.randn(3))
    return model


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.safetensors"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A file for the many examples of one property."""
    return tmp_path_factory.mktemp("scratch") / "run.safetensors"


@pytest.fixture
def saved(path):
    """The file of a run of ten steps that was stopped in its seventh: it holds the first four."""
    stopped_run(path)
    return path


def stopped_run(path, build=denoising, images=None, **changes):
    """A run with a file at `path` that an exception ends in step 6, counted from 0."""
    model = build()
    at_pass(model, 6, stop)
    with pytest.raises(runs.StoppedError):
        run(model, short(checkpoint_every=4, **changes), images, checkpoint=path)


def next_model(path, build, seed=7):
    """The model to call again with: one that starts elsewhere, if there is a file to take its weights from."""
    return build(seed=seed if path.exists() else 0)


def count_steps(model):
    steps = []
    model.register_forward_pre_hook(lambda *_: steps.append(1))
    return steps


def generator_states(model):
    return {str(i): generator.get_state() for i, generator in enumerate(layer_generators(model))}


def assert_ends_alike(model, protocol, expected_model, expected_protocol):
    assert same(weights(model), weights(expected_model))
    assert np.array_equal(protocol.to_numpy(), expected_protocol.to_numpy())
    assert same(generator_states(model), generator_states(expected_model))
    assert not model.training


# stopped and called again


@settings(max_examples=30)
@given(
    steps=st.integers(1, 12),
    stops=st.lists(st.tuples(st.integers(0, 11), st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=3),
    schedule=st.sampled_from(["inverse_time", "cosine"]),
    build=st.sampled_from([tiny, denoising, with_generators, runs.with_buffers, partly_trained]),
    action=st.sampled_from([stop, interrupt]),
)
def test_stopped_anywhere_any_number_of_times(scratch, steps, stops, schedule, build, action):
    """Reports and checkpoints may come at other steps each time."""
    scratch.unlink(missing_ok=True)
    config = short(steps, schedule=schedule)
    for seed, (step, *every) in enumerate(stops):
        model = next_model(scratch, build, 10 + seed)
        at_pass(model, step, action)
        changes = dict(zip(("report_every", "checkpoint_every"), every, strict=True))
        try:
            run(model, dataclasses.replace(config, **changes, graph=False), checkpoint=scratch)
        except runs.StoppedError:
            assert action is stop
    last, expected = next_model(scratch, build), build()
    assert_ends_alike(last, run(last, config, checkpoint=scratch), expected, run(expected, config))


@pytest.mark.parametrize(("step", "end"), [(2, 4), (6, 8)])
def test_ctrl_c_is_written_and_finished_steps_are_not_made_again(path, step, end):
    """The file holds all steps up to the next report, whenever a checkpoint was due; a finished one stays as it is."""
    model, expected = denoising(), denoising()
    at_pass(model, step, interrupt)
    protocol, rows = run(model, checkpoint=path), run(expected)
    assert np.array_equal(protocol.to_numpy(), rows.to_numpy()[:end])
    for left in (10 - end, 0):
        model, before = denoising(seed=7), path.read_bytes()
        steps = count_steps(model)
        assert_ends_alike(model, run(model, checkpoint=path), expected, rows)
        assert len(steps) == left
    assert path.read_bytes() == before


def lose(model):
    model.decoder.register_forward_hook(lambda *a: a[-1] * math.nan)


def test_a_failure_leaves_the_last_good_state_and_is_counted_on(path):
    """The loss is lost in step 6, twice: before the first report, the weights to fall back on are the file's."""
    four, expected, again = denoising(), denoising(), denoising(seed=8)
    run(four, short(steps=4))
    for seed, step in ((0, 6), (7, 2)):
        model = denoising(seed)
        at_pass(model, step, partial(lose, model))
        with pytest.raises(FloatingPointError, match=r"at step 6; .* before step 4"):
            run(model, short(checkpoint_every=1), checkpoint=path)
        assert same(weights(model), weights(four))
    assert_ends_alike(again, run(again, checkpoint=path), expected, run(expected))


def test_progress_bar_goes_on(saved, monkeypatch, capsys):
    """It starts at 4 x 8 images, and its first losses are the means of the rows since then."""
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    model = denoising()
    at_pass(model, 1, interrupt)
    protocol = run(model, checkpoint=saved, progress=True)
    bars_shown = [text for text in capsys.readouterr().err.replace("\n", "").split("\r") if text.strip()]
    assert " 32.0/80.0 " in bars_shown[0]
    assert " 64.0/80.0 " in bars_shown[-1]
    assert f"reconstruction={protocol.reconstruction[4:].mean():.2f}" in bars_shown[-1]


# the file


@pytest.mark.parametrize(
    ("steps", "report_every", "checkpoint_every", "expected"),
    [(10, 4, 4, [4, 8, 10]), (10, 4, 3, [4, 8, 10]), (10, 3, 5, [6, 10]), (8, 2, 4, [4, 8]), (5, 100, 1, [5])],
)
def test_checkpoints_wait_for_a_report(path, monkeypatch, steps, report_every, checkpoint_every, expected):
    """Written at the first report `checkpoint_every` steps or more after the one before, and at the end."""
    written, write = [], dvae_lib.runs.files.write
    monkeypatch.setattr(dvae_lib.runs.files, "write", lambda *file: (write(*file), written.append(file[1]["run/rows"])))
    run(tiny(), short(steps, report_every=report_every, checkpoint_every=checkpoint_every), checkpoint=path)
    assert [len(rows) for rows in written] == expected


def test_checkpoints_are_counted_from_the_one_resumed(saved):
    """A listener hears of a step before its checkpoint: at step 10 the file still holds 9."""
    rows = []

    def look(*_):
        rows.append(len(safetensors.torch.load_file(saved)["run/rows"]))

    run(denoising(), short(report_every=1, checkpoint_every=5), checkpoint=saved, on_report=look)
    assert rows == [4, 4, 4, 4, 4, 9]


def test_file_holds_what_the_remaining_steps_depend_on(path):
    """After the first of two steps, Adam's moments are a tenth of the gradient and a thousandth of its square."""
    model, gradients = tiny(), {}
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda gradient, name=name: gradients.setdefault(name, gradient.clone()))
    run(model, short(2, report_every=1), checkpoint=path, on_report=lambda *_: True)
    tensors = safetensors.torch.load_file(path)
    assert same({name: tensor for name, tensor in tensors.items() if not name.startswith("run/")}, weights(model))
    for name, gradient in gradients.items():
        torch.testing.assert_close(tensors[f"run/optimizer/{name}/exp_avg"], 0.1 * gradient)
        torch.testing.assert_close(tensors[f"run/optimizer/{name}/exp_avg_sq"], 0.001 * gradient**2)
        assert tensors[f"run/optimizer/{name}/step"] == 1
    assert tensors["run/rows"].shape == (1, 6)
    generator = torch.Generator().manual_seed(0)
    torch.randint(12, (8,), generator=generator), torch.randn(8, 2, generator=generator)
    assert torch.equal(tensors["run/random/0/0"], generator.get_state())


@pytest.mark.parametrize(
    ("name", "like_it"), [("run.st", "run_st"), ("run[1].st", "run1.st"), ("run*", "runner"), ("r?n", "run")]
)
def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path, name, like_it):
    """Whatever the name means to a shell; .NAME.2.12.new is of a process that is at work on NAME.2."""
    path, model, seen = tmp_path / name, denoising(seed=7), []
    others = [f"{name}.12.new", f".{name}.new", f".{name}.12.new.bak", f".{name}.2.12.new", f".{like_it}.12.new"]
    stopped_run(path)
    for left in (*others, f".{name}.1.new", f".{name}.4711.new"):
        path.with_name(left).write_bytes(b"half a fi")
    at_pass(model, 0, lambda: seen.extend(os.listdir(tmp_path)))
    run(model, checkpoint=path)
    assert sorted(seen) == sorted([*others, name])


# what is refused


def assert_refused(path, model, message, config=None, images=None):
    """The run fails with the message; model, mode, file and the layers' random states stay."""
    before, file, own_states, steps = weights(model), path.read_bytes(), generator_states(model), count_steps(model)
    for training in (True, False):
        model.train(training)
        with pytest.raises(ValueError, match=message):
            run(model, config, images, checkpoint=path)
        assert model.training is training
    assert steps == []
    assert same(weights(model), before)
    assert same(generator_states(model), own_states)
    assert path.read_bytes() == file


CHANGES = {"steps": 11, "batch_size": 9, "learning_rate": 0.02, "schedule": "cosine", "decay": 0.5, "seed": 1}
CHANGES |= {"weight_decay": 0.1, "kl_warm_up": 3, "final_temperature": 0.5, "precision": "tf32", "hidden_size": 13}


def test_every_entry_of_the_configuration_is_decided():
    """A new one belongs to CHANGES, if it changes the run, or to those that are free."""
    free = {"report_every", "checkpoint_every", "graph"}
    assert {field.name for field in dataclasses.fields(TrainingConfig)} == set(CHANGES) | free


@pytest.mark.parametrize(("name", "value"), CHANGES.items())
def test_another_configuration(saved, name, value):
    message = f"run.safetensors does not fit: {name} is {getattr(short(), name)} in the file and {value} here"
    assert_refused(saved, denoising(), message, short(**{name: value}))


@pytest.mark.parametrize(
    "change",
    [
        lambda images: torch.cat([images, images[:1]]),
        lambda images: images * (torch.arange(images.numel()).view_as(images) != 3),  # one pixel
        lambda images: images.flip(0),  # shape and sum agree, but a draw of number 3 gives another one
    ],
)
def test_other_images(saved, change):
    assert_refused(saved, denoising(), "run.safetensors does not fit: images is ", images=change(bars()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])  # in float16, Adam's 1e-8 may be 0
def test_images_are_what_the_model_rounds_them_to(path, dtype):
    """Grey images and a model of any type: with images of another type it is the same run."""
    images = torch.rand(12, 1, 6, 6, dtype=torch.float64)
    stopped_run(path, lambda: tiny().to(dtype), images, learning_rate=1e-3)
    expected, model, config = tiny().to(dtype), tiny(seed=7).to(dtype), short(learning_rate=1e-3)
    protocol = run(model, config, images.to(dtype), checkpoint=path)
    assert_ends_alike(model, protocol, expected, run(expected, config, images))


def with_layer(name, layer, build=denoising):
    model = build()
    model.set_submodule(name, layer)
    return model


@pytest.mark.parametrize(
    ("made_from", "model", "message"),
    [
        (denoising, tiny, r"noise is BernoulliNoise\(p=0.2\) in the file and None here"),
        (denoising, lambda: tiny(BernoulliNoise(0.3)), r"noise is BernoulliNoise\(p=0.2\) in the file and .*p=0.3"),
        (denoising, lambda: tiny(BernoulliNoise(0.2), hidden_size=13), "hidden_size is 12 in the file and 13 here"),
        (denoising, runs.with_buffers, "builder is mlp_vae in the file and None here"),
        (denoising, lambda: with_layer("divergence", KullbackLeiblerDivergence(7)), r"\(weight=1\) in .*weight=7\)"),
        (denoising, lambda: with_layer("sampler", nn.Identity()), r"sampler is Reparam.* and Identity\(\) here"),
        (denoising, lambda: with_layer("decoder.1", nn.Tanh()), r"decoder.1 is ReLU\(\) in the file and Tanh\(\)"),
        (denoising, lambda: denoising().double(), r"bias is float32 \[12\] in the file and float64 \[12\]"),
        (denoising, with_generators, r"run/random/0/1 is None in the file and uint8 \[\d+\] here"),
        (with_generators, denoising, r"run/random/0/1 is uint8 \[\d+\] in the file and None here"),
        (runs.with_buffers, lambda: with_layer("decoder.2", nn.Linear(8, 36, False), runs.with_buffers), "bias=True"),
    ],
)
def test_another_model(path, made_from, model, message):
    stopped_run(path, made_from)
    assert_refused(path, model(), f"run.safetensors does not fit: .*{message}")


def test_file_of_a_model(path):
    save_checkpoint(path, denoising(), short())
    assert_refused(path, denoising(), "run.safetensors does not fit: it holds a model, and no run")


def test_a_momentary_weight_is_no_part_of_the_run(path):
    """What a listener changes on the way is not what the run is: called again, the run begins as it began."""
    model, again = denoising(), denoising(seed=7)
    run(model, checkpoint=path, on_report=lambda *_: setattr(model.divergence, "weight", 0.5) or True)
    assert len(run(again, checkpoint=path)) == 10


def test_damaged_header(saved):
    """A byte changed: refused, or (a digit of a stored number, say) the same names and shapes."""
    whole, chance, refused = saved.read_bytes(), random.Random(0), 0
    for _ in range(30):
        place = chance.randrange(2000)
        saved.write_bytes(whole[:place] + bytes([chance.randrange(256)]) + whole[place + 1 :])
        model = denoising(seed=7)
        try:
            run(model, checkpoint=saved)
        except ValueError:
            refused += 1
            assert same(weights(model), weights(denoising(seed=7)))
    assert refused > 20


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("model", lambda described: None, "noise is None in the file|builder is None in the file"),
        ("training", lambda described: None, "batch_size is None in the file and 8 here"),
        ("run", lambda described: {}, ".* is None in the file"),
        # of another version of the library, say
        ("training", lambda described: described | {"momentum": 0.5}, "momentum is 0.5 in the file and None here"),
        ("training", lambda described: described.pop("decay") and described, "decay is None in the file and 0.0001"),
    ],
)
def test_what_only_one_side_tells_is_a_difference(saved, key, change, message):
    with safetensors.safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    described = change(json.loads(metadata.pop(key)))
    metadata |= {} if described is None else {key: json.dumps(described)}
    safetensors.torch.save_file(safetensors.torch.load_file(saved), saved, metadata)
    assert_refused(saved, denoising(), f"run.safetensors does not fit: {message}")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("run/rows", None),
        ("run/rows", lambda rows: rows[:, :5]),
        ("run/rows", lambda rows: rows.repeat(3, 1)),
        ("run/rows", lambda rows: rows[0]),
        ("run/random/0/1", None),
        ("run/random/0/0", lambda state: state[:100]),
        ("run/optimizer/encoder.1.weight/step", lambda step: step.repeat(2)),
        ("run/optimizer/encoder.5.mean.bias/exp_avg_sq", None),
        ("encoder.1.weight", lambda weight: weight[:3]),
    ],
)
def test_tensor_that_is_missing_or_of_another_shape(path, name, change):
    stopped_run(path, with_generators)
    tensors, descriptions = dvae_lib.runs.files.read(path)
    tensor = tensors.pop(name)
    dvae_lib.runs.files.write(path, tensors | ({name: change(tensor)} if change else {}), descriptions)
    assert_refused(path, with_generators(seed=7), f"run.safetensors does not fit: {name} is ")


def test_folder_that_does_not_exist(tmp_path):
    """Better at the start than after a thousand steps."""
    with pytest.raises(ValueError, match=r"checkpoint must lie in a folder that exists, got .*nowhere"):
        run(denoising(), checkpoint=tmp_path / "nowhere" / "run.safetensors")


# killed

KILL = getattr(signal, "SIGKILL", None)
LENGTH, LIFE = 50, 18  # steps of a run; the most of a process that will be killed
RUNS = int(os.environ.get("DVAE_KILLED_RUNS", "20"))
INTERVALS = [(1, 1), (1, 3), (2, 7), (5, 10)]  # so that writing takes most of the time, or comes now and then


def kill_config(number):
    report_every, checkpoint_every = INTERVALS[number % 4]
    return short(LENGTH, report_every=report_every, checkpoint_every=checkpoint_every, schedule="cosine")


def die_while_writing(number):
    """Have this process killed when half of its file number `number`, counted from 1, is on the disk."""
    fsync, calls = os.fsync, itertools.count(1)

    def half(descriptor):
        if next(calls) == number:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), KILL)
        fsync(descriptor)

    os.fsync = half


def life(path, number, steps, end):
    """One process of run `number`, which counts its steps; `end` is "whole", "killed" or "half" of a file."""
    torch.set_num_threads(1)
    model = next_model(path, with_generators, 1000 + number)

    def count():
        steps.value += 1
        if end == "killed" and steps.value == LIFE:
            time.sleep(60)  # on a slow machine the blow may be late

    model.register_forward_pre_hook(lambda *_: count())
    if end == "half":
        die_while_writing(1 + number // 4 % 2)
    run(model, kill_config(number), checkpoint=path)


def live(path, number, end, chance):
    """Start a process, and kill it at a random moment if that is its end; return its exit code and number of steps."""
    steps = runs.PROCESSES.RawValue("i", 0)
    process = runs.PROCESSES.Process(target=life, args=(path, number, steps, end))
    process.start()
    if end == "killed":
        moment, pause = chance.randrange(LIFE - 5), chance.uniform(0, 0.004)
        while steps.value < moment and process.exitcode is None:
            time.sleep(0.0003)
        time.sleep(pause)
        process.kill()
    process.join(60)
    code = process.exitcode
    process.kill()
    return code, steps.value


@pytest.mark.skipif(KILL is None, reason="needs SIGKILL")
def test_killed_runs_leave_the_file_of_the_one_that_never_was_byte_for_byte(tmp_path):
    """20 runs, or DVAE_KILLED_RUNS, each killed twice at random moments or while it writes."""
    expected = []
    for number, _ in enumerate(INTERVALS):
        run(with_generators(), kill_config(number), checkpoint=tmp_path / "never")
        expected.append((tmp_path / "never").read_bytes())
        (tmp_path / "never").unlink()
    chance, path = random.Random(0), tmp_path / "run.safetensors"
    steps_made = []
    for number in range(RUNS):
        for end in ("half" if number % 3 == 2 else "killed", "killed"):
            code, steps = live(path, number, end, chance)
            assert code == -KILL
            steps_made.append(steps)
            assert end == "killed" or os.listdir(tmp_path) not in ([], [path.name])
        assert live(path, number, "whole", chance)[0] == 0
        assert os.listdir(tmp_path) == [path.name]
        assert path.read_bytes() == expected[number % 4], number
        path.unlink()
    assert len(set(steps_made)) >= min(10, RUNS // 2)
