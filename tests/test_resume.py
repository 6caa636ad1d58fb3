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


@pytest.mark.parametrize(("step", "end"), [(2, 4), (6, 8)])
def test_interrupted_and_called_again(path, step, end):
    """Ctrl-C: the file holds all steps that were made, up to the next report, whenever a checkpoint was due."""
    model, expected, again = denoising(), denoising(), denoising(seed=7)
    at_pass(model, step, interrupt)
    protocol = run(model, checkpoint=path)
    rows, steps = run(expected), count_steps(again)
    assert np.array_equal(protocol.to_numpy(), rows.to_numpy()[:end])
    assert_ends_alike(again, run(again, checkpoint=path), expected, rows)
    assert len(steps) == 10 - end


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
    model = denoising()
    at_pass(model, 1, interrupt)
    protocol = run(model, checkpoint=saved, progress=True)
    bars_shown = [text for text in capsys.readouterr().err.replace("\n", "").split("\r") if text.strip()]
    assert " 32.0/80.0 " in bars_shown[0]
    assert " 64.0/80.0 " in bars_shown[-1]
    assert f"reconstruction={protocol.reconstruction[4:].mean():.2f}" in bars_shown[-1]


# the file


@pytest.fixture
def written(monkeypatch):
    """The numbers of steps at which a file was written."""
    steps, write = [], dvae_lib.runs.files.write

    def spy(path, tensors, descriptions):
        write(path, tensors, descriptions)
        steps.append(len(tensors["run/rows"]))

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
    model, gradients = tiny(), {}
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda gradient, name=name: gradients.setdefault(name, gradient.clone()))
    at_pass(model, 1, stop)
    config = short(2, report_every=1, checkpoint_every=1)
    with pytest.raises(StoppedError):
        run(model, config, checkpoint=path)
    tensors, _ = contents(path)
    assert same({name: tensor for name, tensor in tensors.items() if not name.startswith("run/")}, weights(model))
    for name, gradient in gradients.items():
        torch.testing.assert_close(tensors[f"run/optimizer/{name}/exp_avg"], 0.1 * gradient)
        torch.testing.assert_close(tensors[f"run/optimizer/{name}/exp_avg_sq"], 0.001 * gradient**2)
        assert tensors[f"run/optimizer/{name}/step"] == 1
    assert tensors["run/rows"].shape == (1, 6)
    generator = torch.Generator().manual_seed(0)
    torch.randint(12, (8,), generator=generator), torch.randn(8, 2, generator=generator)
    assert torch.equal(tensors["run/random/0/0"], generator.get_state())


def test_nothing_is_unpickled(saved, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("unpickled")

    for module, name in [(pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")]:
        monkeypatch.setattr(module, name, refuse)
    run(denoising(), checkpoint=saved)


@pytest.mark.parametrize(
    ("module", "function"), [(os, "replace"), (os, "fsync"), (safetensors.torch, "save")], ids=lambda x: str(x)[:7]
)
def test_failure_while_writing_leaves_the_old_file(saved, monkeypatch, module, function):
    def fail(*_, **__):
        raise OSError("disk full")

    before = saved.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(module, function, fail)
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
    "weight_decay": 0.1,
    "kl_warm_up": 3,
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
    message = f"run.safetensors does not fit: {name} is {there} in the file and {value} here"
    assert_refused(saved, denoising().train(training), short(**{name: value}), message=message)


def one_more(images):
    return torch.cat([images, images[:1]])


def one_pixel(images):
    images = images.clone()
    images[3, 0, 0, 0] = 1 - images[3, 0, 0, 0]
    return images


def other_order(images):
    """The same images, so that shape and sum agree, but a draw of number 3 gives another one."""
    return images.flip(0)


@pytest.mark.parametrize("change", [one_more, one_pixel, other_order])
def test_other_images(saved, change):
    assert_refused(saved, denoising(), images=change(bars()), message="run.safetensors does not fit: images is ")


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


def heavier():
    model = denoising()
    model.divergence.weight = 7.0
    return model


def another_sampler():
    class Mean(nn.Module):
        def forward(self, mean, log_variance):
            return mean

    model = denoising()
    model.sampler = Mean()
    return model


def another_layer():
    model = denoising()
    model.decoder[1] = nn.Tanh()
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: tiny(), r"noise is BernoulliNoise\(p=0.2\) in the file and None here"),
        (lambda: tiny(BernoulliNoise(0.3)), r"noise is BernoulliNoise\(p=0.2\) in the file and .*p=0.3"),
        (lambda: tiny(BernoulliNoise(0.2), hidden_size=13), "hidden_size is 12 in the file and 13 here"),
        (lambda: with_buffers(), "builder is mlp_vae in the file and None here"),
        (lambda: heavier(), r"divergence is KullbackLeiblerDivergence\(weight=1\) in the file and .*weight=7\) here"),
        (lambda: another_sampler(), r"sampler is ReparameterizationSampler\(\) in the file and Mean\(\) here"),
        (lambda: another_layer(), r"decoder.1 is ReLU\(\) in the file and Tanh\(\) here"),
        (with_generators, "random"),
        (lambda: denoising().double(), "float"),
    ],
    ids=["no noise", "noise", "width", "builder", "weight", "sampler", "layer", "generators", "dtype"],
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
    message = (
        r"decoder.0 is Linear\(in_features=2, out_features=8, .* in the file and Linear\(in_features=2, out_features=9"
    )
    assert_refused(path, wider(), message=message)


def test_file_of_a_model(path):
    save_checkpoint(path, denoising(), short())
    assert_refused(path, denoising(), message="run.safetensors does not fit: it holds a model, and no run")


def test_a_momentary_weight_is_no_part_of_the_run(path):
    """What a listener changes on the way is not what the run is: called again, the run begins as it began."""
    model, again = denoising(), denoising(seed=7)
    run(model, checkpoint=path, on_report=lambda *_: setattr(model.divergence, "weight", 0.5) or True)
    assert len(run(again, checkpoint=path)) == 10


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
    assert_refused(
        saved, denoising(), message="run.safetensors (holds a description that cannot be read|does not fit|must have)"
    )


@pytest.mark.parametrize(
    "name",
    [
        "run/rows",
        "run/random/0/0",
        "run/random/0/1",
        "run/random/0/2",
        "run/optimizer/encoder.1.weight/step",
        "run/optimizer/decoder.4.bias/exp_avg",
        "run/optimizer/encoder.5.mean.bias/exp_avg_sq",
        "encoder.1.weight",
    ],
)
def test_missing_tensor(path, name):
    stopped_run(path, with_generators)
    changed_file(path, lambda tensors: tensors.pop(name))
    assert_refused(path, with_generators(seed=7), message=f"run.safetensors .*{name}")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("run/rows", lambda rows: rows[:, :5].contiguous()),
        ("run/rows", lambda rows: rows.repeat(3, 1)),
        ("run/rows", lambda rows: rows[0].clone()),
        ("run/random/0/0", lambda state: state[:100].clone()),
        ("run/random/0/1", lambda state: state[:100].clone()),
        ("run/optimizer/encoder.1.weight/exp_avg", lambda moment: moment[:3].clone()),
        ("run/optimizer/encoder.1.weight/step", lambda step: step.repeat(2)),
        ("encoder.1.weight", lambda weight: weight[:3].clone()),
    ],
)
def test_tensor_of_another_shape(path, name, change):
    stopped_run(path, with_generators)
    changed_file(path, lambda tensors: tensors.update({name: change(tensors[name])}))
    assert_refused(path, with_generators(seed=7), message=f"run.safetensors .*{name}")


def test_folder_that_does_not_exist(tmp_path):
    """Better at the start than after a thousand steps."""
    model = denoising()
    steps = count_steps(model)
    with pytest.raises(ValueError, match="nowhere"):
        run(model, checkpoint=tmp_path / "nowhere" / "run.safetensors")
    assert steps == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda described: described.update(momentum=0.5), "momentum is 0.5 in the file and None here"),
        (lambda described: described.pop("decay"), "decay is None in the file and 0.0001 here"),
    ],
)
def test_what_only_one_side_tells_is_a_difference(saved, change, message):
    """Of another version of the library, say."""

    def changed(metadata):
        described = json.loads(metadata["training"])
        change(described)
        metadata["training"] = json.dumps(described)

    changed_file(saved, change_metadata=changed)
    assert_refused(saved, denoising(), message=message)


# killed

KILL = getattr(signal, "SIGKILL", None)
LENGTH, LIFE = 50, 18  # steps of a run; the most of a process that will be killed
RUNS = int(os.environ.get("DVAE_KILLED_RUNS", "20"))


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
    """20 runs, or DVAE_KILLED_RUNS, each killed twice: at random moments, and seven of them first while they write."""
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
