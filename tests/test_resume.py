"""Runs that are stopped, killed and called again end as if nothing had happened; what does not fit is refused."""

import builtins
import dataclasses
import json
import math
import os
import pickle
import random
import signal
import time

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import (
    PROCESSES,
    StoppedError,
    at_pass,
    bars,
    denoising,
    interrupt,
    record,
    run,
    same,
    short,
    stop,
    tiny,
    weights,
    with_buffers,
    with_generators,
)
from torch import nn

import dvae_lib.runs.files
from dvae_lib import BernoulliNoise, TrainingConfig, load_checkpoint, save_checkpoint
from dvae_lib.runs.randomness import layer_generators

MODELS = {
    "plain": tiny,
    "denoising": denoising,
    "generators of its own": with_generators,
    "buffers": with_buffers,
}
each_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.safetensors"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A folder for the many examples of one property."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture
def saved(path):
    """The file of a run of ten steps that was stopped in its seventh: it holds the first four."""
    stopped_run(path)
    return path


def stopped_run(path, build=denoising, step=6, config=None):
    """A run with a file at `path` that an exception ends in `step`, counted from 0."""
    model = build()
    at_pass(model, step, stop)
    with pytest.raises(StoppedError):
        run(model, config or short(checkpoint_every=4), checkpoint=path)
    return model


def next_model(path, build, seed=7):
    """The model to call again with: one that starts elsewhere, if there is a file to take its weights from."""
    return build(seed=seed if path.exists() else 0)


def count_steps(model):
    steps = []
    model.register_forward_pre_hook(lambda *_: steps.append(1))
    return steps


def contents(path):
    """The tensors and the metadata of a file, read with safetensors alone."""
    with safetensors.safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def generator_states(model):
    return [generator.get_state() for generator in layer_generators(model)]


def assert_ends_alike(model, protocol, expected_model, expected_protocol):
    assert same(weights(model), weights(expected_model))
    assert np.array_equal(protocol.to_numpy(), expected_protocol.to_numpy())
    pairs = zip(generator_states(model), generator_states(expected_model), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    assert not model.training


# stopped and called again


@each_model
@pytest.mark.parametrize("step", [0, 1, 4, 5, 9])
def test_stopped_and_called_again(path, build, step):
    """A model that starts elsewhere, with generators that start elsewhere, ends like the one that ran through."""
    stopped_run(path, build, step)
    expected, model = build(), next_model(path, build)
    assert_ends_alike(model, run(model, checkpoint=path), expected, run(expected))


@settings(max_examples=30)
@given(
    steps=st.integers(1, 12),
    stops=st.lists(st.integers(0, 11), min_size=1, max_size=3),
    report_every=st.integers(1, 6),
    checkpoint_every=st.integers(1, 9),
    schedule=st.sampled_from(["inverse_time", "cosine"]),
    build=st.sampled_from(list(MODELS.values())),
    action=st.sampled_from([stop, interrupt]),
)
def test_stopped_anywhere_any_number_of_times(
    scratch, steps, stops, report_every, checkpoint_every, schedule, build, action
):
    path = scratch / "run.safetensors"
    path.unlink(missing_ok=True)
    config = short(steps, schedule=schedule, report_every=report_every, checkpoint_every=checkpoint_every)
    for seed, step in enumerate(stops):
        model = next_model(path, build, 10 + seed)
        at_pass(model, step, action)
        try:
            run(model, config, checkpoint=path)
        except StoppedError:
            assert action is stop
    last, expected = next_model(path, build), build()
    assert_ends_alike(last, run(last, config, checkpoint=path), expected, run(expected, config))


def test_draws_go_on_where_they_were(path):
    """Batches, flips and the noise of the codes after the checkpoint are those of the uninterrupted run."""
    expected, model = denoising(), denoising(seed=7)
    all_steps, later_steps = record(expected), record(model)
    run(expected)
    stopped_run(path)
    run(model, checkpoint=path)
    assert len(later_steps) == 6
    for ours, theirs in zip(later_steps, all_steps[4:], strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_file_at_the_end_does_not_tell_the_interruption(path, tmp_path):
    """Adam's moments and the random states, too, are those of the run that was never stopped."""
    stopped_run(path)
    run(denoising(seed=7), checkpoint=path)
    run(denoising(), checkpoint=tmp_path / "other.safetensors")
    (tensors, metadata), (others, other_metadata) = contents(path), contents(tmp_path / "other.safetensors")
    assert same(tensors, others)
    assert metadata == other_metadata


@pytest.mark.parametrize("step", [2, 6])
def test_interrupted_and_called_again(path, step):
    """Ctrl-C: the rows of all steps made are returned, the file holds those of the last checkpoint."""
    model, expected = denoising(), denoising()
    at_pass(model, step, interrupt)
    protocol = run(model, short(checkpoint_every=4), checkpoint=path)
    rows = run(expected)
    assert np.array_equal(protocol.to_numpy(), rows.to_numpy()[:step])
    again = next_model(path, denoising)
    steps = count_steps(again)
    assert_ends_alike(again, run(again, checkpoint=path), expected, rows)
    assert len(steps) == (10 if step < 4 else 6)


def test_reports_and_checkpoints_may_come_at_other_steps(saved):
    expected, model = denoising(), denoising(seed=7)
    config = short(report_every=3, checkpoint_every=1, graph=False)
    assert_ends_alike(model, run(model, config, checkpoint=saved), expected, run(expected))


@each_model
def test_finished_run_is_not_run_again(path, build):
    model, again = build(), build(seed=7)
    protocol = run(model, checkpoint=path)
    before, steps = path.read_bytes(), count_steps(again)
    assert_ends_alike(again, run(again, checkpoint=path), model, protocol)
    assert steps == []
    assert path.read_bytes() == before


def test_layers_that_are_not_trained(path):
    """They have no moments to keep; nor has a parameter that nothing depends on."""

    def build(seed=0):
        model = denoising(seed)
        model.encoder[1].requires_grad_(False)
        model.spare = nn.Parameter(torch.randn(3))
        return model

    stopped_run(path, build)
    expected, model = build(), build(seed=7)
    assert_ends_alike(model, run(model, checkpoint=path), expected, run(expected))


def test_resumed_model_is_trained_in_place(saved):
    model = denoising(seed=7)
    before = list(model.parameters())
    run(model, checkpoint=saved)
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))


def test_noise_is_on_after_a_resumption(saved):
    model, modes = denoising().eval(), []
    model.noise.register_forward_hook(lambda module, *_: modes.append(module.training))
    run(model, checkpoint=saved)
    assert modes == [True] * 6


@pytest.mark.parametrize("end", ["regular", "stopped", "finished"])
def test_the_callers_random_state_is_given_back(saved, end):
    if end == "finished":
        run(denoising(), checkpoint=saved)
    model = denoising()
    if end == "stopped":
        at_pass(model, 1, stop)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    try:
        run(model, checkpoint=saved)
    except StoppedError:
        assert end == "stopped"
    assert torch.equal(torch.get_rng_state(), before)


def test_a_failure_leaves_the_last_good_state(path):
    """The loss is lost in step 6: the file holds the first four steps, and a run without that fault goes on."""
    model, expected, again = denoising(), denoising(), denoising(seed=7)
    model.decoder.register_forward_hook(lambda *a: a[-1] * (math.nan if len(steps) == 7 else 1))
    steps = count_steps(model)
    with pytest.raises(FloatingPointError, match=r"at step 6; .* before step 4"):
        run(model, short(checkpoint_every=1), checkpoint=path)
    assert_ends_alike(again, run(again, checkpoint=path), expected, run(expected))


def test_a_failure_after_a_resumption_names_step_and_weights(saved):
    """The steps are counted on; before the first report, the weights to fall back on are the file's."""
    model, four = denoising(seed=7), denoising()
    model.decoder.register_forward_hook(lambda *a: a[-1] * (math.nan if len(steps) == 3 else 1))
    steps = count_steps(model)
    with pytest.raises(FloatingPointError, match=r"at step 6; .* before step 4"):
        run(model, checkpoint=saved)
    run(four, short(steps=4))
    assert same(weights(model), weights(four))


def test_progress_bar_goes_on(saved, monkeypatch, capsys):
    """It starts at 4 x 8 images, and its first losses are the means of the rows since then."""
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    protocol = run(denoising(), checkpoint=saved, progress=True)
    bars_shown = capsys.readouterr().err.replace("\n", "").split("\r")
    assert " 32.0/80.0 " in next(text for text in bars_shown if text.strip())
    assert " 80.0/80.0 " in bars_shown[-1]
    assert f"reconstruction={protocol.reconstruction[8:].mean():.2f}" in bars_shown[-1]


def test_speed_is_that_of_the_steps_made_now(saved, monkeypatch, capsys):
    """In the first report after a resumption: the mean of steps 4 .. 7, and not of all eight."""
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    model = denoising()
    at_pass(model, 5, interrupt)
    expected = run(denoising())
    run(model, checkpoint=saved, progress=True)
    last = capsys.readouterr().err.rsplit("\r", 1)[-1]
    assert " 64.0/80.0 " in last
    assert f"reconstruction={expected.reconstruction[4:8].mean():.2f}" in last


# the file


@pytest.fixture
def written(monkeypatch):
    """The numbers of steps at which a file was written."""
    steps, write = [], dvae_lib.runs.files.write

    def spy(path, tensors, metadata):
        write(path, tensors, metadata)
        steps.append(len(tensors["rows"]))

    monkeypatch.setattr(dvae_lib.runs.files, "write", spy)
    return steps


@pytest.mark.parametrize(
    ("steps", "report_every", "checkpoint_every", "expected"),
    [
        (10, 4, 4, [4, 8, 10]),
        (10, 4, 3, [4, 8, 10]),
        (10, 3, 5, [6, 10]),
        (10, 2, 5, [6, 10]),
        (10, 4, 1000, [10]),
        (3, 1, 1, [1, 2, 3]),
        (5, 100, 1, [5]),
        (8, 2, 4, [4, 8]),
        (1, 1, 1, [1]),
    ],
)
def test_checkpoints_wait_for_a_report(path, written, steps, report_every, checkpoint_every, expected):
    """Written at the first report `checkpoint_every` steps or more after the one before, and at the end."""
    run(tiny(), short(steps, report_every=report_every, checkpoint_every=checkpoint_every), checkpoint=path)
    assert written == expected


def test_checkpoints_are_counted_from_the_one_resumed(saved, written):
    run(denoising(), short(report_every=1, checkpoint_every=5), checkpoint=saved)
    assert written == [9, 10]


def test_without_checkpoint_nothing_is_written(tmp_path, written, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(tiny())
    assert written == []
    assert os.listdir(tmp_path) == []


def test_file_holds_what_the_remaining_steps_depend_on(path):
    """After the first of two steps, Adam's moments are a tenth of the gradient and a thousandth of its square."""
    model, gradients, states = tiny(), {}, []
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda gradient, name=name: gradients.setdefault(name, gradient.clone()))
    at_pass(model, 1, stop)
    model.register_forward_pre_hook(lambda *_: states.append(torch.get_rng_state()))
    config = short(2, report_every=1, checkpoint_every=1)
    with pytest.raises(StoppedError):
        run(model, config, checkpoint=path)
    tensors, _ = contents(path)
    assert same({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")}, weights(model))
    for name, gradient in gradients.items():
        torch.testing.assert_close(tensors[f"optimizer.{name}.exp_avg"], 0.1 * gradient)
        torch.testing.assert_close(tensors[f"optimizer.{name}.exp_avg_sq"], 0.001 * gradient**2)
        assert tensors[f"optimizer.{name}.step"] == 1
    assert tensors["rows"].shape == (1, 6)


def test_nothing_but_the_file_is_left(path):
    run(denoising(), checkpoint=path)
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("as_path", [str, lambda path: path])
def test_path_may_be_a_string(path, as_path):
    expected = run(tiny(), checkpoint=as_path(path))
    assert np.array_equal(run(tiny(seed=7), checkpoint=as_path(path)).to_numpy(), expected.to_numpy())


def test_nothing_is_unpickled(saved, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("unpickled")

    for module, name in [(pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")]:
        monkeypatch.setattr(module, name, refuse)
    run(denoising(), checkpoint=saved)


class Trap:
    """An object whose unpickling creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("dump", [pickle.dump, torch.save], ids=["pickle", "torch"])
def test_pickle_is_refused_and_not_opened(path, dump):
    trap = path.with_name("sprung")
    with open(path, "wb") as file:
        dump({"model": Trap(trap)}, file)
    assert_refused(path, denoising(), message="run.safetensors is not a complete safetensors file")
    assert not trap.exists()


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["full", "interrupted"])
@pytest.mark.parametrize(
    ("module", "function"), [(os, "replace"), (os, "fsync"), (safetensors.torch, "save")], ids=lambda x: str(x)[:7]
)
def test_failure_while_writing_leaves_the_old_file(saved, monkeypatch, module, function, error):
    def fail(*_, **__):
        raise error

    before = saved.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(module, function, fail)
        if isinstance(error, KeyboardInterrupt):
            assert len(run(denoising(), short(checkpoint_every=4), checkpoint=saved)) == 8
        else:
            with pytest.raises(OSError, match="disk full"):
                run(denoising(), short(checkpoint_every=4), checkpoint=saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]
    expected, model = denoising(), denoising(seed=7)
    assert_ends_alike(model, run(model, checkpoint=saved), expected, run(expected))


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("name", ["run.safetensors", "run[1].st", "run*", "r?n"])
def test_what_killed_processes_left_is_removed(tmp_path, name, there):
    """Half a file beside the whole one is not looked at, whatever the name means to a shell."""
    path, model, expected = tmp_path / name, denoising(), denoising()
    if there:
        stopped_run(path)
        model = denoising(seed=7)
    for pid in (1, 4711):
        path.with_name(f".{name}.{pid}.new").write_bytes(b"half a fi")
    rows = run(expected)
    at_pass(model, 0, lambda: seen.append(os.listdir(tmp_path)))
    seen = []
    assert_ends_alike(model, run(model, checkpoint=path), expected, rows)
    assert seen == [[name] if there else []]


def test_a_leftover_of_the_same_process_number(path):
    """In a container, the process that is started again has the number of the one that was killed."""
    path.with_name(f".{path.name}.{os.getpid()}.new").write_bytes(b"half a fi")
    save_checkpoint(path, denoising(), short())
    assert os.listdir(path.parent) == [path.name]
    assert load_checkpoint(path, denoising()) == short()


@pytest.mark.parametrize(
    "other", [".other.st.12.new", "run.st.12.new", ".run.st.new", ".run.st.12.new.bak", ".run.st.2.12.new"]
)
def test_other_files_are_left_alone(tmp_path, other):
    """The last is what a process leaves that is at work on run.st.2."""
    (tmp_path / other).write_bytes(b"somebody's")
    run(tiny(), checkpoint=tmp_path / "run.st")
    assert (tmp_path / other).read_bytes() == b"somebody's"


# what is refused


def assert_refused(path, model, config=None, images=None, message="", error=ValueError):
    """The run fails with the message; model, mode, file and the caller's and the layers' random states stay."""
    before, training, file = weights(model), model.training, path.read_bytes()
    state, own_states = torch.get_rng_state(), generator_states(model)
    steps = count_steps(model)
    with pytest.raises(error, match=message):
        run(model, config, images, checkpoint=path)
    assert steps == []
    assert same(weights(model), before)
    assert model.training is training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(*pair) for pair in zip(generator_states(model), own_states, strict=True))
    assert path.read_bytes() == file


CHANGES = {
    "steps": 11,
    "batch_size": 9,
    "learning_rate": 0.02,
    "schedule": "cosine",
    "decay": 0.5,
    "precision": "tf32",
    "hidden_size": 13,
    "seed": 1,
}
FREE = {"report_every", "checkpoint_every", "graph"}


def test_every_entry_of_the_configuration_is_decided():
    """A new one belongs to CHANGES, if it changes the run, or to FREE."""
    assert {field.name for field in dataclasses.fields(TrainingConfig)} == set(CHANGES) | FREE


@pytest.mark.parametrize(("name", "value"), CHANGES.items())
@pytest.mark.parametrize("training", [True, False])
def test_another_configuration(saved, name, value, training):
    there = getattr(short(), name)
    message = f"run.safetensors .* made with {name} = {there}, this one has {name} = {value}; remove the file"
    assert_refused(saved, denoising().train(training), short(**{name: value}), message=message)


def test_finished_run_is_not_prolonged(path):
    """More steps would be another schedule's."""
    run(denoising(), checkpoint=path)
    assert_refused(path, denoising(), short(steps=20), message="made with steps = 10, this one has steps = 20")


def one_more(images):
    return torch.cat([images, images[:1]])


def one_pixel(images):
    images = images.clone()
    images[3, 0, 0, 0] = 1 - images[3, 0, 0, 0]
    return images


def other_order(images):
    """The same images, so that shape and sum agree, but a draw of number 3 gives another one."""
    return images.flip(0)


def other_place(images):
    """One white pixel of one image moved by one, as between two squares."""
    images = images.clone()
    images[0, 0, 0] = images[0, 0, 0].roll(1)
    images[0, 0, :, 0], images[0, 0, :, 1] = images[0, 0, :, 1].clone(), images[0, 0, :, 0].clone()
    images[0, 0] = images[0, 0].t().clone()
    return images


@pytest.mark.parametrize("change", [one_more, one_pixel, other_order, other_place])
def test_other_images(saved, change):
    assert_refused(saved, denoising(), images=change(bars()), message="run.safetensors .* made with images = ")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_images_of_another_dtype_are_the_same_images(saved, dtype):
    run(denoising(seed=7), images=bars().to(dtype), checkpoint=saved)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_grey_images_and_a_model_of_any_dtype(path, dtype):
    """What the model rounds its images to is not held against them."""
    images = torch.rand(12, 1, 6, 6, dtype=torch.float64)
    stopped = tiny().to(dtype)
    at_pass(stopped, 6, stop)
    config = short(checkpoint_every=4, learning_rate=1e-3)
    with pytest.raises(StoppedError):
        run(stopped, config, images, checkpoint=path)
    expected, model = tiny().to(dtype), tiny(seed=7).to(dtype)
    assert_ends_alike(model, run(model, config, images, checkpoint=path), expected, run(expected, config, images))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: tiny(), r"noise = BernoulliNoise\(p=0.2\), the model has noise = None"),
        (lambda: tiny(BernoulliNoise(0.3)), r"noise = BernoulliNoise\(p=0.2\), the model has .*p=0.3"),
        (lambda: tiny(BernoulliNoise(0.2), hidden_size=13), "hidden_size = 12, the model has hidden_size = 13"),
        (lambda: with_buffers(), "builder = mlp_vae, the model has builder = None"),
        (with_generators, "random"),
        (lambda: denoising().double(), "float"),
    ],
    ids=["no noise", "noise", "width", "builder", "generators", "dtype"],
)
def test_another_model(saved, model, message):
    assert_refused(saved, model(), message=message)


def test_model_with_fewer_generators(path):
    """The file has states for generators that this model has not."""
    stopped_run(path, with_generators)
    assert_refused(path, denoising(), message="random")


def test_weights_of_other_shapes(path):
    """Models put together by hand have no configuration to compare."""

    def wider():
        model = with_buffers()
        model.decoder[2], model.decoder[0] = nn.Linear(9, 36), nn.Linear(2, 9)
        return model

    stopped_run(path, with_buffers)
    message = "decoder.0.bias .*8.* in the file.*9"
    assert_refused(path, wider(), message=message)


def test_file_of_save_checkpoint(path):
    save_checkpoint(path, denoising(), short())
    assert_refused(path, denoising(), message="run.safetensors must have format 'dvae_lib run 1', got 'dvae_lib check")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a good file."""
    path = tmp_path_factory.mktemp("whole") / "run.safetensors"
    stopped_run(path)
    return path.read_bytes()


@settings(max_examples=30)
@given(part=st.floats(0, 1, exclude_max=True))
def test_truncated_file(scratch, whole, part):
    path = scratch / "run.safetensors"
    path.write_bytes(whole[: int(part * len(whole))])
    assert_refused(path, denoising(), message="run.safetensors is not a complete safetensors file")


@pytest.mark.parametrize("missing", [1, 2, 8, 100])
def test_end_is_missing(path, whole, missing):
    path.write_bytes(whole[:-missing])
    assert_refused(path, denoising(), message="run.safetensors is not a complete safetensors file")


@settings(max_examples=30)
@given(place=st.integers(0, 2000), value=st.integers(0, 255))
def test_damaged_header(scratch, whole, place, value):
    """A byte of the header changed: refused, or (a digit of a stored number, say) the same names and shapes."""
    path = scratch / "run.safetensors"
    changed = bytearray(whole)
    changed[place] = value
    path.write_bytes(changed)
    model = denoising()
    before = weights(model)
    try:
        run(model, checkpoint=path)
    except ValueError:
        assert same(weights(model), before)


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, bytes(64), b"\xff" * 64], ids=["empty", "text", "0", "255"])
def test_file_that_is_no_safetensors(path, content):
    path.write_bytes(content)
    assert_refused(path, denoising(), message="run.safetensors is not a complete safetensors file")


def changed_file(path, change_tensors=lambda tensors: None, change_metadata=lambda metadata: None):
    tensors, metadata = contents(path)
    change_tensors(tensors)
    change_metadata(metadata)
    safetensors.torch.save_file(tensors, path, metadata)


@pytest.mark.parametrize("key", ["model", "run"])
@pytest.mark.parametrize("value", [None, "", "[1", "{", "3", "[]"])
def test_description_that_cannot_be_read(saved, key, value):
    changed_file(saved, change_metadata=lambda metadata: metadata.pop(key))
    if value is not None:
        changed_file(saved, change_metadata=lambda metadata: metadata.update({key: value}))
    assert_refused(saved, denoising(), message="run.safetensors holds no (configuration|description) that can be read")


@pytest.mark.parametrize(
    "name",
    [
        "rows",
        "random.0.0",
        "random.0.1",
        "random.0.2",
        "optimizer.encoder.1.weight.step",
        "optimizer.decoder.4.bias.exp_avg",
        "optimizer.encoder.5.mean.bias.exp_avg_sq",
        "model.encoder.1.weight",
    ],
)
def test_missing_tensor(path, name):
    stopped_run(path, with_generators)
    changed_file(path, lambda tensors: tensors.pop(name))
    assert_refused(path, with_generators(seed=7), message=f"run.safetensors .*{name.removeprefix('model.')}")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("rows", lambda rows: rows[:, :5].contiguous()),
        ("rows", lambda rows: rows.repeat(3, 1)),
        ("rows", lambda rows: rows[0].clone()),
        ("random.0.0", lambda state: state[:100].clone()),
        ("random.0.1", lambda state: state[:100].clone()),
        ("optimizer.encoder.1.weight.exp_avg", lambda moment: moment[:3].clone()),
        ("optimizer.encoder.1.weight.step", lambda step: step.repeat(2)),
        ("model.encoder.1.weight", lambda weight: weight[:3].clone()),
    ],
)
def test_tensor_of_another_shape(path, name, change):
    stopped_run(path, with_generators)
    changed_file(path, lambda tensors: tensors.update({name: change(tensors[name])}))
    assert_refused(path, with_generators(seed=7), message=f"run.safetensors .*{name.removeprefix('model.')}")


def test_folder_that_does_not_exist(tmp_path):
    """Better at the start than after a thousand steps."""
    model = denoising()
    steps = count_steps(model)
    with pytest.raises(ValueError, match="nowhere"):
        run(model, checkpoint=tmp_path / "nowhere" / "run.safetensors")
    assert steps == []


def test_what_is_wrong_is_named_in_the_files_own_words(saved):
    """Entries that only one side has, of another version of the library say, are differences too."""

    def change(metadata):
        metadata["run"] = json.dumps({**json.loads(metadata["run"]), "momentum": 0.5})

    changed_file(saved, change_metadata=change)
    assert_refused(saved, denoising(), message="made with momentum = 0.5, this one has momentum = None")


def test_what_the_file_does_not_tell_is_a_difference(saved):
    def change(metadata):
        described = json.loads(metadata["run"])
        del described["decay"]
        metadata["run"] = json.dumps(described)

    changed_file(saved, change_metadata=change)
    assert_refused(saved, denoising(), message="made with decay = None, this one has decay = 0.0001")


# killed

KILL = getattr(signal, "SIGKILL", None)
LENGTH, LIFE, RUNS = 50, 18, 20  # steps of a run; the most of a process that will be killed; runs


def kill_config(number):
    """Reports and checkpoints that come at every step, so that writing takes most of the time, or now and then."""
    report_every, checkpoint_every = [(1, 1), (1, 3), (2, 7), (5, 10)][number % 4]
    return short(LENGTH, report_every=report_every, checkpoint_every=checkpoint_every, schedule="cosine")


class HalfAFile:
    """A file whose first half is written when the process is killed."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        os.kill(os.getpid(), KILL)


def die_while_writing(moment, number):
    """Have this process killed in the course of writing its file number `number`, counted from 1."""
    opened, renamed = builtins.open, os.replace
    files, renames = iter(range(1, 10**6)), iter(range(1, 10**6))

    def open_half(name, *arguments, **options):
        file = opened(name, *arguments, **options)
        half = moment == "half" and str(name).endswith(".new") and next(files) == number
        return HalfAFile(file) if half else file

    def rename(source, target):
        if moment == "before" and next(renames) == number:
            os.kill(os.getpid(), KILL)
        renamed(source, target)
        if moment == "after" and next(renames) == number:
            os.kill(os.getpid(), KILL)

    builtins.open, os.replace = open_half, rename


def life(path, number, steps, end):
    """One process of run `number`: it counts its steps, and ends as `end` says: (moment, file), "killed" or None."""
    torch.set_num_threads(1)
    model = next_model(path, with_generators, 1000 + number)

    def count(*_):
        steps.value += 1
        if end == "killed" and steps.value == LIFE:
            time.sleep(60)  # on a slow machine the blow may be late

    model.register_forward_pre_hook(count)
    if isinstance(end, tuple):
        die_while_writing(*end)
    protocol = run(model, kill_config(number), checkpoint=path)
    tensors = {**weights(model), "protocol": torch.from_numpy(protocol.to_numpy())}
    for i, state in enumerate(generator_states(model)):
        tensors[f"generator {i}"] = state
    safetensors.torch.save_file(tensors, path.with_suffix(".result"))


def live(path, number, end, chance):
    """Start a process and, if it is to be killed, do so; return its exit code and the number of its steps."""
    steps = PROCESSES.RawValue("i", 0)
    process = PROCESSES.Process(target=life, args=(path, number, steps, end))
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
def test_killed_runs_end_like_the_one_that_never_was(tmp_path):
    """20 runs, each killed twice: at random moments, and seven of them first in the course of writing their file."""
    expected = with_generators()
    rows = run(expected, short(LENGTH, schedule="cosine"))
    reference = {**weights(expected), "protocol": torch.from_numpy(rows.to_numpy())}
    for i, state in enumerate(generator_states(expected)):
        reference[f"generator {i}"] = state
    chance = random.Random(0)
    writing = ["half", "before", "after", "half", "before", "after", "half"]
    steps_made, half_written, completed = [], 0, []
    for number in range(RUNS):
        path = tmp_path / f"run{number}.safetensors"
        ends = ["killed", "killed"]
        if number >= RUNS - len(writing):
            moment = writing[number - RUNS]
            ends[0] = (moment, 1 + number % 2)
        for end in ends:
            code, steps = live(path, number, end, chance)
            assert code == -KILL
            steps_made.append(steps)
            left = [name for name in os.listdir(tmp_path) if name.startswith(f".{path.name}.") and name[-4:] == ".new"]
            half_written += bool(left)
            if end[0] in ("half", "before"):
                assert left
        assert live(path, number, None, chance)[0] == 0
        completed.append(safetensors.torch.load_file(path.with_suffix(".result")))
        expected_files = [name for i in range(number + 1) for name in (f"run{i}.result", f"run{i}.safetensors")]
        assert sorted(os.listdir(tmp_path)) == sorted(expected_files)
    assert all(same(result, reference) for result in completed)
    assert len(steps_made) == 2 * RUNS
    assert len(set(steps_made)) >= 10
    assert half_written >= 5
