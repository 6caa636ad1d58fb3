"""Experiments: runs are stored as they come, made once, and measured alike; on networks too small to learn."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from dvae_lib import BernoulliNoise, all_squares, best_square_iou, elbo, gaussian_kl, mlp_vae
from dvae_lib import rectangles as draw_rectangles
from experiments import gaps, measures, rectangles, runs, squares, strip

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


EXPERIMENTS = {"squares": squares, "rectangles": rectangles, "gaps": gaps}
each_experiment = pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)


@each_experiment
def test_every_run_has_a_group_and_no_name_stands_twice(experiment):
    names = measures.names(experiment.GROUPS)
    assert len(set(names)) == len(names) == sum(group.seeds for group in experiment.GROUPS.values())
    assert [name.rsplit("/")[1] for name in names[:2]] == ["0", "0"]  # seed by seed
    group, seed = measures.of_name(names[-1], experiment.GROUPS)
    assert group.seeds == seed + 1


@each_experiment
def test_what_is_stored_was_made_by_these_programs(experiment):
    content = runs.stored(experiment.PATH)
    settings = json.loads(json.dumps(experiment.SETTINGS))
    assert {key: settings[key] for key in content["settings"]} == content["settings"]
    assert content["runs"].keys() <= set(measures.names(experiment.GROUPS))
    assert all(run["machine"] < len(content["machines"]) for run in content["runs"].values())


@pytest.fixture
def small(monkeypatch):
    """Groups that train for three steps."""
    for experiment in EXPERIMENTS.values():
        groups = {
            name: group._replace(config=dataclasses.replace(group.config, steps=3, hidden_size=8))
            for name, group in experiment.GROUPS.items()
        }
        changes = {"GROUPS": groups, "IMAGES": 64, "DRAWS": 2, "SAMPLES": (1, 4), "FINE_NODES": 6, "STEPS": 3}
        for name, value in (changes | {"CORRUPTIONS": 3}).items():
            if hasattr(experiment, name):
                monkeypatch.setattr(experiment, name, value)
    monkeypatch.setattr(squares, "EXTRA", (0, 1))
    monkeypatch.setattr(rectangles, "TEST_IMAGES", 16)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", [name for name in squares.GROUPS if name not in ("dvae-0.05", "dvae-0.2", "dvae-0.3")])
def test_each_kind_of_group_is_trained_and_measured_on_the_squares(name):
    found = squares.measure(f"{name}/1")
    assert json.loads(json.dumps(found)) == found
    assert found["overlap"].keys() == {*measures.INPUT_NOISE, "patch", "cut"}
    assert ("likelihood" in found) == squares.GROUPS[name].variational
    if "likelihood" in found:
        chain = found["likelihood"]
        assert chain["exact"]["mean"] > chain["iwae 4"] >= chain["iwae 1"]
        assert chain["elbo"]["mean"] == pytest.approx(chain["iwae 1"], abs=20)
        assert ("denoising 1" in chain) == (squares.GROUPS[name].p > 0)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["dvae-0.1", "dae-0.1"])
def test_each_kind_of_group_is_trained_and_measured_on_the_rectangles(name):
    found = rectangles.measure(f"{name}/1")
    assert json.loads(json.dumps(found)) == found
    assert found["overlap"].keys() == measures.INPUT_NOISE.keys()
    assert {"likelihood", "training likelihood", "prior"} <= found.keys() or name == "dae-0.1"


@pytest.mark.usefixtures("small")
def test_a_seed_decides_weights_data_and_training():
    first, again, other = (squares.trained(name)[0].state_dict() for name in ("vae/1", "vae/1", "vae/2"))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["encoder.1.weight"], other["encoder.1.weight"])


def test_the_mean_of_the_log_weights_is_the_elbo(network):
    """Two estimators of one expectation."""
    images = all_squares()[::64]
    weights = measures.draw_log_weights(network, images, 4000)
    bound = elbo(network, images, 4000)
    error = (weights.var(0) / len(weights) + bound.standard_error.double() ** 2).sqrt()
    assert ((weights.mean(0) - bound.value).abs() < 5 * error).all()


def test_importance_weighted_bounds_by_hand():
    """Weights 1, 3, 2, 2 of one image: the mean of ln w, of ln of the means of pairs, and ln of the mean of all."""
    bounds = measures.importance_weighted(torch.tensor([[1.0], [3.0], [2.0], [2.0]]).double().log(), (1, 2, 4))
    expected = {"iwae 1": math.log(12) / 4, "iwae 2": math.log(2), "iwae 4": math.log(2)}
    assert bounds == pytest.approx(expected)


def test_a_plain_auto_encoder_has_neither_divergence_nor_draws():
    model = squares.GROUPS["dae-0.1"].build(0).eval()
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


def test_a_rectangle_is_its_own_bounding_box_and_two_pixels_span_one():
    images = draw_rectangles(50, 1, 24)
    assert torch.equal(rectangles.bounding_boxes(images), images)
    two = torch.zeros(1, 1, 24, 24)
    two[0, 0, 3, 9] = two[0, 0, 6, 4] = 0.6
    box = torch.zeros(1, 1, 24, 24)
    box[0, 0, 3:7, 4:10] = 1
    assert torch.equal(rectangles.bounding_boxes(two), box)
    assert not rectangles.bounding_boxes(0 * two).any()


def test_no_test_image_was_trained_on():
    trained_on, test = rectangles.images_of(0)
    assert (len(trained_on), len(test)) == (rectangles.IMAGES, rectangles.TEST_IMAGES)
    both = torch.cat([trained_on, test]).flatten(1).unique(dim=0)
    assert len(both) == len(trained_on.flatten(1).unique(dim=0)) + len(test.flatten(1).unique(dim=0))


# where the nats go


@pytest.fixture
def network():
    torch.manual_seed(0)
    return mlp_vae(hidden_size=16).eval()


def test_the_bound_of_a_gaussian_by_quadrature_is_the_elbo(network):
    images = all_squares()[::64]
    drawn = elbo(network, images, 4000)
    bound = gaps.gaussian_bound(network, images, *network.encode(images), 12)
    assert ((bound - drawn.value).abs() < 5 * drawn.standard_error).all()


def test_a_decoder_that_ignores_the_code_has_the_prior_for_a_posterior(network):
    """All that is missing is what the encoder's Gaussians are away from the prior."""
    torch.nn.init.zeros_(network.decoder[4].weight)
    images = all_squares()[::64]
    found = gaps.inference_gaps(network, images)
    torch.testing.assert_close(found["best"], found["exact"], atol=1e-3, rtol=0)
    divergence = gaussian_kl(*network.encode(images)).double()
    torch.testing.assert_close(found["exact"] - found["encoder"], divergence, atol=1e-3, rtol=0)


def test_the_moments_of_a_posterior_that_is_known(network):
    """Logits linear in the code, small: the posterior is nearly a Gaussian, by the second-order expansion at 0."""
    slopes = 1e-2 * torch.randn(576, 2)
    network.decoder = torch.nn.Sequential(torch.nn.Linear(2, 576, bias=False), torch.nn.Unflatten(1, (1, 24, 24)))
    network.decoder[0].weight.data = slopes
    image = all_squares()[:1]
    mean, log_variance = gaps.posterior_moments(network, image)
    slope = (image.flatten(1) - 0.5) @ slopes  # (1, 2)
    precision = torch.eye(2) + slopes.T @ slopes / 4
    covariance = torch.linalg.inv(precision)
    torch.testing.assert_close(mean, slope @ covariance, atol=2e-3, rtol=0)
    torch.testing.assert_close(log_variance.exp()[0], covariance.diagonal(), atol=2e-3, rtol=0)


def test_without_noise_a_code_carries_nothing_about_the_corruption(network):
    images = all_squares()[::64]
    found = gaps.corruption_gaps(network, images, 0.0)
    torch.testing.assert_close(found["information"], torch.zeros_like(found["information"]), atol=1e-4, rtol=0)
    bound = elbo(network, images, 2000)
    error = (found["denoising"].var(1) / found["denoising"].shape[1] + bound.standard_error.double() ** 2).sqrt()
    assert ((found["denoising"].mean(1) - bound.value).abs() < 5 * error).all()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["vae", "dvae-0.1"])
def test_the_gaps_add_up(name):
    found = gaps.measure(f"{name}/0")
    assert found["exact"] - found["family"] - found["amortisation"] == pytest.approx(found["encoder"])
    assert min(found["decoder"], found["family"], found["amortisation"]) >= 0
    assert ("corruption" in found) == (name != "vae")


# how a fold arises


@pytest.mark.usefixtures("small")
def test_a_strip_shows_the_training_of_the_run_that_it_names(monkeypatch):
    monkeypatch.setattr(strip, "STEPS", (1, 3))
    group = squares.GROUPS["vae"]
    group = group._replace(config=dataclasses.replace(group.config, report_every=1))
    first, last = strip.watched(group, 1)
    model = squares.trained("vae/1")[0]
    assert np.array_equal(last["means"].reshape(256, 2), model.encode(all_squares())[0].detach())
    assert last["bad"] == squares.samples_from_the_prior(model)["below 0.7"]
    assert last["overlap"].shape == (strip.SIDE, strip.SIDE)
    centre = best_square_iou(model.decode(torch.zeros(1, 2)).sigmoid())
    assert last["overlap"][strip.SIDE // 2, strip.SIDE // 2] == pytest.approx(100 * centre.item(), abs=0.5)
    assert not np.array_equal(first["means"], last["means"])


def test_a_strip_is_of_the_first_seed_that_folds_and_the_first_that_does_not():
    shares = {"vae/0": 0.0, "vae/10": 0.3, "vae/2": 0.01, "vae/3": 0.02, "dvae-0.1/1": 0.5}
    assert strip.chosen({name: {"prior": {"below 0.7": share}} for name, share in shares.items()}) == (3, 0)


def test_the_stored_strip_was_made_by_this_program_and_is_small():
    assert strip.PATH.stat().st_size < 300_000
    content = np.load(strip.PATH)
    settings = json.loads(str(content["settings"]))
    assert settings["config"] == json.loads(json.dumps(squares.SETTINGS["group vae"]))
    assert settings["map"] == [strip.SIDE, strip.LIMIT]
    assert tuple(content["steps"]) == strip.STEPS
    assert tuple(content["seeds"]) == strip.chosen(runs.stored(squares.PATH)["runs"])


def test_a_strip_that_is_written_is_whole(path):
    strip.write(path, {"bad": np.ones(2)})
    assert np.load(path)["bad"].tolist() == [1, 1]
    assert [one.name for one in path.parent.iterdir()] == [path.name]
