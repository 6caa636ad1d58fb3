"""Experiments: runs are stored as they come, made once, and measured alike; on networks too small to learn."""

import dataclasses
import json

import pytest
import torch

from dvae_lib import BernoulliNoise, all_squares, elbo, mlp_vae
from experiments import runs, squares

SETTINGS = {"steps": 3, "rate": 0.001}


def measure(name):
    """What a process of its own is asked to do; the second call of a run would say something else."""
    group, seed = name.rsplit("/", 1)
    if group == "broken":
        raise RuntimeError("this run fails")
    return {"group": group, "value": int(seed) / 3, "threads": torch.get_num_threads()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.json"


def test_an_experiment_that_was_stopped_goes_on_with_what_is_missing(path):
    runs.put(path, SETTINGS, "a/10", {"value": "of before"})
    with pytest.raises(RuntimeError, match="this run fails"):
        runs.make(path, SETTINGS, ["a/10", "a/2", "broken/0"], measure, 1)
    content = json.loads(path.read_text())
    assert list(content["runs"]) == ["a/2", "a/10"]  # by number, and nothing of the run that failed
    assert content["runs"]["a/10"]["value"] == "of before"
    assert content["runs"]["a/2"].items() >= {"group": "a", "value": 0.666667, "threads": 1, "machine": 0}.items()
    assert content["settings"] == SETTINGS
    (machine,) = content["machines"]
    assert machine["hardware"]["threads"] == 1
    assert machine["versions"]["torch"]
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_runs_of_other_settings_are_not_mixed_in_and_new_parts_may_come(path):
    runs.put(path, SETTINGS, "a/0", {})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="holds runs of other settings: steps is 3 there"):
        runs.put(path, SETTINGS | {"steps": 4}, "a/1", {})
    assert path.read_bytes() == before
    runs.put(path, {"another": "part"}, "b/0", {})
    assert runs.stored(path)["settings"] == SETTINGS | {"another": "part"}


def test_a_run_of_another_machine_says_so(path, monkeypatch):
    runs.put(path, SETTINGS, "a/0", {})
    monkeypatch.setattr(runs, "machine", lambda: {"hardware": {"name": "another"}})
    runs.put(path, SETTINGS, "a/1", {})
    content = runs.stored(path)
    assert [run["machine"] for run in content["runs"].values()] == [0, 1]
    assert content["machines"][1] == {"hardware": {"name": "another"}}


def test_every_run_has_a_group_and_no_name_stands_twice():
    names = squares.names()
    assert len(set(names)) == len(names) == sum(group.seeds for group in squares.GROUPS.values())
    assert names[:2] == ["vae/0", "dvae-0.1/0"]  # seed by seed


@pytest.fixture
def small(monkeypatch):
    """Groups that train for three steps."""
    config = dataclasses.replace(squares.QUICK, steps=3, hidden_size=8)
    groups = {
        name: group._replace(config=dataclasses.replace(group.config, steps=3, hidden_size=8))
        for name, group in squares.GROUPS.items()
    }
    monkeypatch.setattr(squares, "GROUPS", groups)
    for name, value in {"QUICK": config, "IMAGES": 64, "DRAWS": 2, "EXTRA": (0, 1), "SAMPLES": (1, 4)}.items():
        monkeypatch.setattr(squares, name, value)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", squares.GROUPS)
def test_each_group_is_trained_and_measured(name):
    found = squares.measure(f"{name}/1")
    assert json.loads(json.dumps(found)) == found
    assert found["overlap"].keys() == {*squares.INPUT_NOISE, "patch", "cut"}
    assert ("likelihood" in found) == squares.GROUPS[name].variational
    if "likelihood" in found:
        chain = found["likelihood"]
        assert chain["exact"]["mean"] > chain["iwae 4"] >= chain["iwae 1"]
        assert chain["elbo"]["mean"] == pytest.approx(chain["iwae 1"], abs=20)
        assert ("denoising 1" in chain) == (squares.GROUPS[name].p > 0)


@pytest.mark.usefixtures("small")
def test_a_seed_decides_weights_data_and_training():
    first, again, other = (squares.trained(name)[0].state_dict() for name in ("vae/1", "vae/1", "vae/2"))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["encoder.1.weight"], other["encoder.1.weight"])


def test_the_mean_of_the_log_weights_is_the_elbo():
    """Two estimators of one expectation, on a network whose posterior is far from the prior."""
    torch.manual_seed(0)
    model = mlp_vae(hidden_size=16).eval()
    images = all_squares()[::64]
    weights = squares.draw_log_weights(model, images, 4000)
    bound = elbo(model, images, 4000)
    error = (weights.var(0) / len(weights) + bound.standard_error.double() ** 2).sqrt()
    assert ((weights.mean(0) - bound.value).abs() < 5 * error).all()


def test_a_plain_auto_encoder_has_neither_divergence_nor_draws():
    model = squares.build(squares.GROUPS["dae-0.1"], 0).eval()
    images = all_squares()[:4]
    assert torch.equal(model(images), model(images))
    assert model.kl == 0
    assert isinstance(model.noise, BernoulliNoise)


@pytest.mark.parametrize("side", squares.PATCHES)
def test_a_patch_lies_inside_of_the_square(side):
    images = all_squares().repeat(2, 1, 1, 1)
    lost = images - squares.patched(images, side)
    assert (lost.sum((1, 2, 3)) == side**2).all()
    assert set(lost.unique().tolist()) == {0.0, 1.0}
    for axis in (2, 3):  # as wide as high
        assert (lost.amax(axis).sum((1, 2)) == side).all()
