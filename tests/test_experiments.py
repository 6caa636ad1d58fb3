"""Experiments: runs are stored as they come, made once, and measured alike; on networks too small to learn."""

import dataclasses
import json
import math
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Normal
from torch.utils.flop_counter import FlopCounterMode

from dvae_lib import (
    BernoulliNoise,
    TrainingConfig,
    all_squares,
    bernoulli_vae,
    best_square_iou,
    denoising_bound,
    elbo,
    exact_log_likelihood,
    gaussian_kl,
    importance_weighted_bound,
    mlp_vae,
    train,
)
from dvae_lib import rectangles as draw_rectangles
from experiments import (
    bernoulli,
    convolutional,
    gaps,
    measures,
    mnist,
    outlook,
    planes,
    rectangles,
    runs,
    squares,
    strip,
)

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
        runs.make(path, SETTINGS, ["a/10", "broken/0", "a/2"], measure, 1)
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
    with pytest.raises(ValueError, match="holds runs of other settings: steps is 3 there"):
        runs.make(path, SETTINGS | {"steps": 4}, ["broken/0"], measure, 1)  # which is not run
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


EXPERIMENTS = {
    "squares": squares,
    "gaps": gaps,
    "rectangles": rectangles,
    "mnist": mnist,
    "bernoulli": bernoulli,
    "outlook": outlook,
    "convolutional": convolutional,
}
each_experiment = pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)


@each_experiment
def test_every_run_has_a_group_and_no_name_stands_twice(experiment):
    names = measures.names(experiment.GROUPS)
    assert len(set(names)) == len(names) == sum(group.seeds for group in experiment.GROUPS.values())
    first = names[: len(experiment.GROUPS)][:2]
    assert [name.rsplit("/")[1] for name in first] == ["0"] * len(first)  # seed by seed
    group, seed = measures.of_name(names[-1], experiment.GROUPS)
    assert group.seeds == seed + 1


@each_experiment
def test_what_is_stored_was_made_by_these_programs(experiment):
    content = runs.stored(experiment.PATH)
    settings = json.loads(json.dumps(experiment.SETTINGS))
    assert {key: settings[key] for key in content["settings"]} == content["settings"]
    assert content["runs"].keys() <= set(measures.names(experiment.GROUPS))
    assert all(run["machine"] < len(content["machines"]) for run in content["runs"].values())


def test_an_estimate_makes_nothing(path, monkeypatch, capsys):
    runs.put(path, SETTINGS, "a/0", {})
    made = []
    monkeypatch.setattr(runs, "make", lambda *arguments: made.append(arguments))

    def call(*options):
        monkeypatch.setattr(sys, "argv", ["program", *options])
        runs.command_line("", path, SETTINGS, ["a/0", "a/1", "a/2", "b/0"], measure, minutes=60.0, others={"b": 150.0})
        return capsys.readouterr().err

    assert call("--estimate", "--processes", "3") == "results: 3 of 4 runs are missing, about 1.5 hours\n"
    assert made == []
    assert call("--only", "a") == "results: 2 of 3 runs are missing, about 1.0 hours\n"
    assert made == [(path, SETTINGS, ["a/0", "a/1", "a/2"], measure, 2)]


def test_make_says_how_long_all_of_it_takes_and_then_runs_all_of_it():
    root = Path(runs.__file__).resolve().parent.parent
    programs = {path.stem for path in root.glob("experiments/*.py") if "__main__" in path.read_text()}
    assert programs == EXPERIMENTS.keys() | {"strip", "planes"}  # which take minutes, and need the squares
    recipe = re.search(r"\nexperiments: .*\n((?:\t.*\n)+)", (root / "Makefile").read_text())[1].splitlines()
    calls = [re.search(r"-m experiments\.(\w+)(.*)", line).groups() for line in recipe]
    first, *others = EXPERIMENTS
    order = (first, "strip", "planes", *others)
    assert calls == [(name, " --estimate") for name in EXPERIMENTS] + [(name, "") for name in order]


@pytest.fixture
def small(monkeypatch, digits):
    """Groups that train for three steps."""
    monkeypatch.setattr(mnist, "VALIDATE", 3)
    for experiment in EXPERIMENTS.values():
        groups = {
            name: group._replace(config=dataclasses.replace(group.config, steps=3, hidden_size=8))
            for name, group in experiment.GROUPS.items()
        }
        changes = {"GROUPS": groups, "IMAGES": 64, "DRAWS": 2, "SAMPLES": (1, 4), "FINE_NODES": 6, "STEPS": 3}
        for name, value in (changes | {"CORRUPTIONS": 3, "NODES": 20}).items():
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
def test_a_chain_of_levels_is_trained_and_measured(monkeypatch):
    monkeypatch.setattr(outlook, "SAMPLES", 16)
    found = outlook.measure("chain/1")
    assert json.loads(json.dumps(found)) == found
    for count in map(str, outlook.LEVELS):
        bound = found["bound"][count]
        assert bound["bound"] == pytest.approx(-(bound["last"] + bound["steps"] + bound["first"]), rel=1e-5)
        assert 0 <= found["prior"][count]["below 0.7"] <= 1
    steps = [found["bound"][str(count)]["steps"] for count in outlook.LEVELS]
    assert steps == sorted(steps, reverse=True)


def test_the_chain_of_levels_with_the_exact_denoiser_paints_squares_and_has_the_entropy_as_its_bound():
    known = all_squares().flatten(1)

    class Exact(outlook.EveryLevel):
        def answer(self, noisy, std):
            weights = (noisy.flatten(1) @ known.T / std.view(-1, 1) ** 2).softmax(1)
            return torch.logit(weights @ known, eps=1e-7).view_as(noisy)

    model, generator = Exact(1), torch.Generator().manual_seed(0)
    pictures = outlook.drawn(model, outlook.levels(9), 32, generator)
    assert best_square_iou(pictures).min() == 1
    bound = outlook.bounds(model, generator)["65"]
    assert bound["bound"] == pytest.approx(-math.log(256) - 0.36, abs=5 * bound["standard error"])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", convolutional.GROUPS)
def test_each_kind_of_group_is_trained_and_measured_for_the_convolutions(name):
    found = convolutional.measure(f"{name}/1")
    group = convolutional.GROUPS[name]
    assert json.loads(json.dumps(found)) == found
    assert ("exact" in found["likelihood"]) == (group.data == "squares") == ("overlap" in found)
    assert ("iwae 4" in found["likelihood"]) == (group.data == "rectangles") == ("training likelihood" in found)
    model = group.build(1)
    assert model.configuration["builder"] == ("convolutional_vae" if name.count("conv") else "mlp_vae")
    assert isinstance(model.noise, BernoulliNoise) == name.endswith("dvae")


def test_the_networks_for_the_digits_have_as_many_multiplications():
    """Within a tenth, by PyTorch's own counter."""
    counts = []
    for name in ("digits-conv", "digits-mlp"):
        model = convolutional.GROUPS[name].build(0)
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 1, 28, 28))
        counts.append(counter.get_total_flops())
    assert counts[0] == pytest.approx(counts[1], rel=0.1)


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


# codes of bits


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", bernoulli.GROUPS)
def test_each_kind_of_group_of_bits_is_trained_and_measured(monkeypatch, name):
    monkeypatch.setattr(bernoulli, "CODES", 20)
    found = bernoulli.measure(f"{name}/1")
    assert json.loads(json.dumps(found)) == found
    likelihood = found["iwae" if name == "relaxed-20" else "exact"]
    assert likelihood > found["elbo"] - 1
    assert likelihood == pytest.approx(-576 * math.log(2), abs=10)  # hardly trained
    assert 1 <= found["codes"] <= 256


def test_the_sums_over_all_codes_are_those_of_torch_distributions():
    torch.manual_seed(0)
    codes, model = bernoulli.every_code(3), bernoulli_vae(latent_size=3, hidden_size=8)
    images = all_squares()[::64]
    assert len(codes.unique(dim=0)) == 8
    pixels = Bernoulli(logits=model.decode(codes))
    joint = torch.stack([pixels.log_prob(image).sum((1, 2, 3)) for image in images]) - 3 * math.log(2)
    torch.testing.assert_close(bernoulli.log_joint(model, images, codes), joint, rtol=1e-5, atol=1e-3)
    (logits,) = model.encode(images)
    posterior = torch.stack([Bernoulli(logits=one).log_prob(codes).sum(1) for one in logits])
    torch.testing.assert_close(bernoulli.log_posterior_of_bits(logits, codes), posterior)
    torch.testing.assert_close(posterior.logsumexp(1), torch.zeros(4), atol=1e-5, rtol=0)


@pytest.mark.usefixtures("small")
def test_the_posterior_of_the_exact_likelihood_closes_the_bound():
    found = bernoulli.measure("likelihood-9/0")
    assert found["elbo"] == pytest.approx(found["exact"], abs=1e-3)


def test_a_table_of_posteriors_is_trained_towards_the_exact_ones(monkeypatch):
    """With a decoder that hardly moves, its bound climbs to the likelihood."""
    gaps = []
    for steps in (1, 150):
        config = TrainingConfig(steps=steps, batch_size=256, learning_rate=1e-9, hidden_size=8)
        monkeypatch.setitem(bernoulli.GROUPS, "table-9", bernoulli.Group(3, config))
        found = bernoulli.measured_exactly(*bernoulli.train_exactly("table-9/0"), bernoulli.every_code(3))
        gaps.append(found["exact"] - found["elbo"])
    assert gaps[0] > 0.2
    assert 0 <= gaps[1] < gaps[0] / 4


# the binarised MNIST

TINY = TrainingConfig(steps=15, batch_size=10, learning_rate=0.1, hidden_size=8, report_every=1, checkpoint_every=3)


@pytest.fixture
def digits(monkeypatch, tmp_path):
    """A few images in the place of the digits, and a folder for the runs."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"train": 60, "valid": 24, "test": 12}
    parts = {split: (torch.rand(n, 1, 28, 28, generator=generator) < 0.2).float() for split, n in sizes.items()}
    monkeypatch.setattr(mnist, "images_of", parts.__getitem__)
    monkeypatch.setattr(mnist, "WORK", tmp_path / "work")
    return parts


@pytest.fixture
def tiny(monkeypatch, digits):
    """Three groups of runs that look at the validation images every third step and have patience for six."""
    groups = {"last": {}, "best": {"best": True}, "noisy": {"noise": BernoulliNoise(0.1), "tested": False}}
    groups = {name: mnist.Group(1, config=TINY, latent_size=3, **changes) for name, changes in groups.items()}
    for name, value in (("GROUPS", groups), ("VALIDATE", 3), ("PATIENCE", 6), ("SAMPLES", (1, 4)), ("PART", 5)):
        monkeypatch.setattr(mnist, name, value)


def decoder_28(latent_size=2, noise=None):
    torch.manual_seed(0)
    return mlp_vae((1, 28, 28), latent_size, 8, noise, "tanh").eval()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["vae", "trial-flips-0.05", "pepper-0.02", "published-weights", "plane-dvae", "long"])
def test_each_kind_of_group_is_trained_and_measured_on_the_digits(monkeypatch, name):
    found = mnist.measure(f"{name}/0")
    group = mnist.GROUPS[name]
    assert json.loads(json.dumps(found)) == found
    assert found["overlap"].keys() == measures.INPUT_NOISE.keys()
    assert (list(found["curve"]), found["best step"]) == (["3"], 3)
    assert {"iwae 1", "iwae 4"} & found["test"].keys() == ({"iwae 1", "iwae 4"} if group.tested else set())
    assert ("denoising 0" in found["test"]) == (group.noise is not None)
    model = group.build(0)
    assert [type(model.noise), model.configuration["activation"]] == [type(group.noise), "tanh"]
    assert model.configuration["latent_size"] == (2 if name.startswith("plane") else 50)
    assert ("pepper" in name) == ("SaltAndPepper" in repr(model.noise))
    assert (name == "long") == group.best


@pytest.mark.usefixtures("tiny")
def test_what_is_measured_is_what_the_library_measures(digits):
    """The bounds of the trained model, with draws of their own: within five standard errors of both."""
    found = mnist.measure("noisy/0")
    model, _ = mnist.trained("noisy/0")
    for split, images in digits.items():
        bound = elbo(model, images, 2000)
        error = 5 * found[split]["elbo"]["standard error"]
        assert found[split]["elbo"]["all"] == pytest.approx(bound.mean()[0], abs=error)
        assert found[split]["kl"] == pytest.approx(gaussian_kl(*model.encode(images)).mean().item(), rel=1e-4)
    denoising = found["test"]["denoising 0"]
    bound = denoising_bound(model, digits["test"], 2000)
    assert denoising["all"] == pytest.approx(bound.mean()[0], abs=5 * denoising["standard error"])


class Killed(BaseException):
    """What stands in the tests for the end of a process."""


def kill_at(monkeypatch, number, after=False):
    """End the program at the file of this number that it writes, before or after that has its name."""
    rename, renamed = os.replace, []

    def replace(*paths):
        renamed.append(paths)
        if len(renamed) <= number or after:
            rename(*paths)
        if len(renamed) > number:
            raise Killed

    monkeypatch.setattr(os, "replace", replace)
    return renamed


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("group", ["last", "best"])
@pytest.mark.parametrize("after", [False, True])
def test_a_run_that_is_killed_wherever_it_writes_ends_as_one_that_is_not(monkeypatch, tmp_path, group, after):
    with monkeypatch.context() as patched:
        written = kill_at(patched, 1000)
        model, watch = mnist.trained(f"{group}/0")
    weights = model.state_dict()
    assert len(written) >= 8
    for number in range(len(written) + 1):  # the last time it is not killed, and called again all the same
        monkeypatch.setattr(mnist, "WORK", tmp_path / f"work-{number}")
        with monkeypatch.context() as patched:
            kill_at(patched, number, after)
            if number < len(written):
                with pytest.raises(Killed):
                    mnist.trained(f"{group}/0")
            else:
                mnist.trained(f"{group}/0")
        again, curve = mnist.trained(f"{group}/0")
        assert curve.curve == watch.curve
        assert all(torch.equal(again.state_dict()[key], weights[key]) for key in weights)


@pytest.mark.usefixtures("tiny")
def test_the_long_run_has_the_weights_of_its_best_step_and_ends_when_they_are_old(digits):
    """Against a run that is stopped there; the other runs go to their end and have their last weights."""
    model, watch = mnist.trained("best/0")
    best = watch.best()
    assert list(watch.curve) == [str(step) for step in range(3, best + 7, 3)]
    assert 3 < best < TINY.steps - 6  # or this test would say little
    assert best == max(range(3, best + 7, 3), key=lambda step: watch.curve[str(step)]["valid"])
    other, whole = mnist.trained("last/0")
    assert list(whole.curve) == ["3", "6", "9", "12", "15"]
    for found, steps in ((model, best), (other, TINY.steps)):
        expected = mnist.GROUPS["best"].build(0)
        train(
            expected,
            digits["train"],
            TINY,
            device="cpu",
            progress=False,
            on_report=lambda done, _: done == steps,  # noqa: B023
        )
        assert all(torch.equal(found.state_dict()[key], value) for key, value in expected.state_dict().items())
        assert whole.curve[str(steps)]["valid"] == pytest.approx(mnist.rough_bound(expected, digits["valid"]), rel=1e-5)
        assert whole.curve[str(steps)]["train"] == pytest.approx(mnist.rough_bound(expected, digits["train"]), rel=1e-5)


@pytest.mark.usefixtures("tiny")
def test_a_run_that_begins_anew_takes_nothing_from_an_earlier_one():
    _, watch = mnist.trained("last/0")
    for name in ("mnist-last-0.json", "mnist-last-1.json"):
        runs.write_json(mnist.WORK / name, {"runs": {"3000": {"train": 0.0, "valid": 0.0}}})
    (mnist.WORK / "mnist-last-0.npy").touch()
    (mnist.WORK / "mnist-last-0.safetensors").unlink()
    assert mnist.trained("last/0")[1].curve == watch.curve
    assert not (mnist.WORK / "mnist-last-0.npy").exists()
    assert (mnist.WORK / "mnist-last-1.json").exists()


def test_the_rough_bound_is_the_elbo_with_and_without_noise_in_training(digits):
    model, images = decoder_28(3, BernoulliNoise(0.3)), digits["test"]
    found = mnist.rough_bound(model, images.repeat(400, 1, 1, 1))
    exact, error = elbo(model, images, 4000).mean()
    assert found == pytest.approx(exact, abs=5 * error * 11**0.5)  # of 400 draws, and of 4000
    assert mnist.rough_bound(model.train(), images) == mnist.rough_bound(model.eval(), images)


def test_the_weights_are_those_of_the_densities(digits):
    """From the same draws, with the densities of PyTorch."""
    model, image = decoder_28(3), digits["test"][:1]
    torch.manual_seed(5)
    found = mnist.weights_of(model, image, 40)
    torch.manual_seed(5)
    mean, log_variance = model.encode(image)
    posterior = Normal(mean, torch.exp(log_variance / 2))
    codes = posterior.mean + posterior.stddev * torch.randn(40, 3)
    pixels = Bernoulli(logits=model.decode(codes)).log_prob(image).flatten(1).sum(1)
    expected = pixels + (Normal(0.0, 1.0).log_prob(codes) - posterior.log_prob(codes)).sum(1)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected.double(), atol=1e-3, rtol=0)


def test_the_likelihoods_are_the_importance_weighted_bounds_of_the_library(digits, tmp_path):
    """With 500 times the draws: each image within five standard errors, for a decoder whose weights vary."""
    model, images = decoder_28(3), digits["test"][:4]
    model.decoder[0].weight.data *= 4
    model.decoder[4].weight.data *= 4
    found = mnist.likelihoods(model, images, tmp_path / "some.npy", (1, 4, 2000))
    assert found.shape == (4, 3)
    for column, samples in ((0, 1), (1, 4)):
        draws = importance_weighted_bound(model, images.repeat(500, 1, 1, 1), samples).value.view(500, 4).double()
        error = draws.std(0) * (1 / 500 + samples / 2000) ** 0.5
        assert (error > 1e-3).all()
        assert ((torch.from_numpy(found[:, column]) - draws.mean(0)).abs() < 5 * error).all()
    assert (np.diff(found) > 0).all()


def test_the_likelihoods_reach_the_exact_one(digits, tmp_path):
    model, images = decoder_28(2), digits["test"][:4]
    found = mnist.likelihoods(model, images, tmp_path / "some.npy", (2000,))[:, 0]
    exact = exact_log_likelihood(model, images).value
    for value, image, truth in zip(found, images, exact, strict=True):
        weights = (mnist.weights_of(model, image[None], 2000) - truth).exp()
        assert value == pytest.approx(float(truth), abs=5 * float(weights.std()) / 2000**0.5 + 1e-3)


def test_the_likelihoods_of_a_model_in_closed_form(digits, tmp_path):
    """A decoder that ignores the code, a posterior that is the prior: each draw is ln p(x), exactly."""
    model, images = decoder_28(3), digits["test"]
    for layer in (model.decoder[4], model.encoder[-1].mean, model.encoder[-1].log_variance):
        torch.nn.init.zeros_(layer.weight)
    for layer in (model.encoder[-1].mean, model.encoder[-1].log_variance):
        torch.nn.init.zeros_(layer.bias)
    exact = Bernoulli(logits=model.decoder[4].bias.double()).log_prob(images.flatten(1).double()).sum(1)
    found = mnist.likelihoods(model, images, tmp_path / "some.npy", (1, 4, 8))
    np.testing.assert_allclose(found, np.repeat(exact.detach().numpy()[:, None], 3, 1), atol=1e-3)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("after", [False, True])
def test_likelihoods_that_are_killed_go_on_with_the_same_draws(digits, monkeypatch, tmp_path, after):
    """Twelve images in parts of five."""
    model = decoder_28(3)
    whole = mnist.likelihoods(model, digits["test"], tmp_path / "whole.npy", (1, 4))
    one = mnist.likelihoods(model, digits["test"][:1].expand(12, -1, -1, -1), tmp_path / "one.npy", (1, 4))
    assert len({*one[:, 0]}) == len(whole) == 12  # no two have the same draws
    for number in range(3):
        path = tmp_path / f"{number}.npy"
        with monkeypatch.context() as patched:
            kill_at(patched, number, after)
            with pytest.raises(Killed):
                mnist.likelihoods(model, digits["test"], path, (1, 4))
        assert (len(np.load(path)) if path.exists() else 0) == min(12, 5 * (number + after))
        np.testing.assert_array_equal(mnist.likelihoods(model, digits["test"], path, (1, 4)), whole)
    with monkeypatch.context() as patched:  # what is done is not made again
        patched.setattr(mnist, "weights_of", None)
        np.testing.assert_array_equal(mnist.likelihoods(model, digits["test"], path, (1, 4)), whole)


def test_parts_of_a_split_by_hand():
    found = mnist.by_part(torch.arange(10_000.0))
    halves = {"all": 4999.5, "first half": 2499.5, "second half": 7499.5}
    assert found == halves | {"first 100": 49.5, "first 1000": 499.5, "first 1000 of the second half": 5499.5}


def test_the_published_weights_are_glorots_and_the_pixels_log_odds(monkeypatch):
    share = torch.linspace(0, 1, 784).view(1, 28, 28)
    monkeypatch.setattr(mnist, "images_of", {"train": share[None]}.__getitem__)
    layers = dict(mnist.GROUPS["published-weights"].build(0).named_parameters())
    weights = {name: values for name, values in layers.items() if name.endswith("weight")}
    assert len(weights) == 7
    for name, values in weights.items():
        limit = (6 / sum(values.shape)) ** 0.5  # of a uniform density with the variance 2 / (inputs + outputs)
        assert 0.99 * limit < values.abs().max() <= limit, name
        assert values.var().item() == pytest.approx(2 / sum(values.shape), rel=0.05), name
    *others, last = (values for name, values in layers.items() if name.endswith("bias"))
    assert not torch.cat(others).any()
    assert last.sigmoid()[1:-1].tolist() == pytest.approx(share.flatten()[1:-1].tolist(), abs=1e-5)
    assert last[0].item() == pytest.approx(math.log(0.001 / 0.999), rel=1e-4)
    plain = dict(mnist.GROUPS["vae"].build(0).named_parameters())
    assert plain.keys() == layers.keys()
    assert not any(torch.equal(plain[name], values) for name, values in layers.items())


def check_choice(stored, chosen):
    """Compare CHOSEN with the trials that are stored, once all levels of a kind are."""
    for kind in mnist.NOISES:
        levels = {level: stored.get(f"trial-{kind}-{level:g}/0") for level in mnist.LEVELS}
        if all(levels.values()):
            assert chosen[kind] == max(levels, key=lambda level: levels[level]["valid"]["elbo"]["all"]), kind


def test_the_chosen_levels_are_those_with_the_best_bound_on_the_validation_images():
    check_choice(runs.stored(mnist.PATH)["runs"], mnist.CHOSEN)
    assert mnist.CHOSEN.items() <= {(kind, level) for kind in mnist.NOISES for level in mnist.LEVELS}


def test_the_chosen_levels_on_made_up_results():
    bounds = {"flips-0.02": -100.0, "flips-0.05": -99.0, "flips-0.1": -101.0, "pepper-0.02": -90.0}
    stored = {f"trial-{name}/0": {"valid": {"elbo": {"all": bound}}} for name, bound in bounds.items()}
    check_choice(stored, {"flips": 0.05})
    for wrong in ({"flips": 0.02}, {"pepper": 0.02}):
        with pytest.raises((AssertionError, KeyError), match="flips"):
            check_choice(stored, wrong)


def test_the_runs_that_count_have_a_likelihood():
    for name, run in runs.stored(mnist.PATH)["runs"].items():
        assert ("iwae 5000" in run["test"]) == measures.of_name(name, mnist.GROUPS)[0].tested, name


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


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", planes.GROUPS)
def test_a_plane_is_that_of_the_run_that_it_names(name):
    found, (model, last) = planes.measured(squares.GROUPS[name], 1), squares.trained(f"{name}/1")
    corner = model.decode(torch.tensor([[-planes.EDGE, planes.EDGE]])).sigmoid()[0, 0].detach()
    assert found["pictures"].shape == (planes.TILES, planes.TILES, 24, 24)
    assert np.abs(found["pictures"][0, 0] / 255 - corner.numpy()).max() < 1 / 255
    assert found["bad"] == squares.samples_from_the_prior(model)["below 0.7"]
    assert found["protocol"] == pytest.approx(np.array([[last["reconstruction"], last["kl"]]]), rel=1e-5)


def test_planes_are_of_the_first_seeds_of_their_kind():
    vae, dvae = (0.02, 0.0, 0.03, 0.0), (0.02, 0.0, 0.0, 0.05)
    shares = {f"vae/{i}": x for i, x in enumerate(vae)} | {f"dvae-0.1/{i}": x for i, x in enumerate(dvae)}
    assert planes.chosen({name: {"prior": {"below 0.7": share}} for name, share in shares.items()}) == (1, 2, 3)


def test_the_stored_planes_were_made_by_this_program_and_are_small():
    assert planes.PATH.stat().st_size < 300_000
    content = np.load(planes.PATH)
    settings = json.loads(str(content["settings"]))
    wanted = json.loads(json.dumps([squares.SETTINGS[f"group {group}"] for group in planes.GROUPS]))
    assert settings["configs"] == wanted
    assert settings["map"] == [strip.SIDE, strip.LIMIT]
    assert settings["tiles"] == [planes.TILES, planes.EDGE]
    assert tuple(content["groups"]) == planes.GROUPS
    assert tuple(content["seeds"]) == planes.chosen(runs.stored(squares.PATH)["runs"])
    there = runs.stored(squares.PATH)["runs"]
    for key, limit in (("bad", 0.7), ("faulty", 0.9)):
        shares = [
            [there[f"{group}/{seed}"]["prior"][f"below {limit}"] for seed in content["seeds"]]
            for group in planes.GROUPS
        ]
        np.testing.assert_allclose(content[key], shares, atol=1e-3)
    steps = squares.GROUPS["vae"].config.steps
    assert content["protocol"].shape == (2, 3, steps // planes.WINDOW, 2)


def test_a_strip_that_is_written_is_whole(path):
    strip.write(path, {"bad": np.ones(2)})
    assert np.load(path)["bad"].tolist() == [1, 1]
    assert [one.name for one in path.parent.iterdir()] == [path.name]
