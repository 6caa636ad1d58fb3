"""The benchmark's counts by hand, its loops against the library's objective, its stored numbers. Nothing is timed."""

import contextlib
import functools
import itertools
import json
import math
import platform
import re
from pathlib import Path

import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from benchmarks import bench, floor, ladder, loops, timing
from dvae_lib import all_squares, mlp_vae, shipped

ROOT = Path(__file__).resolve().parent.parent
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
CPU = torch.device("cpu")
BATCH = all_squares()[::16]


@pytest.fixture(scope="module")
def model():
    """The shipped VAE, whose divergence is some nats, so that a loss without it would show."""
    return shipped("article-vae")


def test_a_small_networks_operations_and_bytes_are_counted_as_by_hand():
    """The gradient by the input stops before the first layer, whose matrix is then not read either."""
    layers = [(3, 4), (4, 2)]
    assert floor.step_flops(5, layers) == {"forward": 200, "backward_input": 80, "backward_weight": 200}
    assert list(floor.step_bytes(layers).values()) == [104, 32, 104, 416, 312]  # of 26 numbers of 4 bytes
    assert floor.state_bytes(layers) == 416


def test_pytorch_counts_the_same_operations_of_a_step_of_the_article():
    counter = pytest.importorskip("torch.utils.flop_counter").FlopCounterMode(display=False)
    vae = mlp_vae()
    with counter:
        (vae(all_squares()[:16]).sum() + vae.kl).backward()
    assert counter.get_total_flops() == sum(floor.step_flops(16).values()) == 361_635_840


def test_the_floor_is_the_sum_of_its_parts_at_the_given_rates():
    one = floor.floor(16, flops_rate=361_635_840 / 0.003, bytes_rate=sum(floor.step_bytes().values()) / 0.005)
    assert one == pytest.approx({"compute_s": 0.003, "memory_s": 0.005, "floor_s": 0.008, "bound_s": 0.005})


def test_what_is_expected_takes_each_product_at_its_own_rate_and_adams_traffic():
    flops = floor.step_flops(16)
    rates = {"forward": flops["forward"] / 1, "backward_input": flops["backward_input"] / 2}
    rates["backward_weight"] = flops["backward_weight"] / 4
    assert floor.expected(16, rates, bytes_rate=4 * 7 * 3_993_412 / 8) == pytest.approx(1 + 2 + 4 + 8)


def test_of_two_measurements_the_better_of_each_rate_is_kept():
    assert floor.better({"a": 1.0, "b": {"c": 4.0}}, {"a": 2.0, "b": {"c": 3.0}}) == {"a": 2.0, "b": {"c": 4.0}}


@pytest.mark.parametrize(("square", "best"), [(3e9, 5e9), (7e9, 7e9)])
def test_the_floor_takes_the_best_rates_and_what_is_expected_the_steps_own(square, best):
    own = {"forward": 1e9, "backward_input": 5e9, "backward_weight": 1e9}
    rates = {"square_flops": {"float32": square}, "own_flops": {"16": {"float32": own}}}
    one = floor.limits({"memory_bytes": {"copy": 1e9, "in place": 2e9}, **rates})["floors"]["16"]["float32"]
    assert one == {**floor.floor(16, best, 2e9), "expected_s": floor.expected(16, own, 2e9)}


def by_hand(model, images):
    """Reconstruction and divergence, summed over the batch."""
    mean, log_variance = model.encoder(images)
    posterior = Normal(mean, torch.exp(0.5 * log_variance))
    codes = mean + posterior.stddev * torch.randn(mean.shape)
    likelihood = Bernoulli(logits=model.decoder(codes)).log_prob(images).sum()
    return float(kl_divergence(posterior, Normal(0.0, 1.0)).sum() - likelihood)


@pytest.mark.parametrize("builder", [loops.Library, loops.Plain, functools.partial(loops.Plain, logits=True)])
@torch.no_grad()
def test_the_loss_is_what_is_written_out_at_the_same_weights_and_noise(model, builder):
    contestant, losses = builder(model, CPU), []
    for loss in (contestant.loss, functools.partial(by_hand, model)):
        torch.manual_seed(5)
        losses.append(float(loss(BATCH)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    "name", ["plain loop", "dvae_lib float32", "pythae", "pyro Trace_ELBO", "pyro TraceMeanField_ELBO"]
)
def test_a_contestant_has_the_librarys_objective_and_learns(model, name):
    build = loops.contestants(CPU).get(name)
    if build is None:
        pytest.skip("not installed")
    loops.check_same(name, build(model, CPU), BATCH, loops.draw_losses(loops.Library(model, CPU), BATCH, draws=20))
    loops.check_learns(name, build(mlp_vae(), CPU), all_squares(), CPU)


def test_a_contestant_without_the_divergence_is_refused(model):
    class Wrong(loops.Plain):
        def loss(self, images):
            model(images)
            return super().loss(images) - model.kl

    ours = loops.draw_losses(loops.Library(model, CPU), BATCH, draws=20)
    with pytest.raises(AssertionError, match=r"wrong one: .* nats per image where the library has"):
        loops.check_same("wrong one", Wrong(model, CPU), BATCH, ours)


def test_a_contestant_of_another_size_is_refused(model):
    contestant = loops.Plain(model, CPU)
    contestant.decoder.fc5 = torch.nn.Linear(1152, 577)
    with pytest.raises(AssertionError, match="large one has 3994565 parameters"):
        loops.check_same("large one", contestant, BATCH, torch.zeros(2))


def test_a_contestant_that_does_not_train_is_refused():
    idle = loops.Plain(mlp_vae(), CPU)
    idle.train = lambda images, batch_size, steps: None
    with pytest.raises(AssertionError, match="idle one does not learn"):
        loops.check_learns("idle one", idle, all_squares(), CPU)


def test_weights_are_copied_only_between_equal_shapes():
    with pytest.raises(ValueError, match=r"target must have the shapes of source, got \(3,\) for \(2,\)"):
        loops.copy_weights([torch.zeros(2)], [torch.zeros(3)])


RUNGS = {name: builder.keywords for name, builder in ladder.changes(CPU).items() if builder.kind is loops.Plain}


@pytest.mark.parametrize("keywords", RUNGS.values(), ids=list(RUNGS))
def test_every_rung_changes_what_it_says_and_makes_the_steps_asked_for(keywords, monkeypatch):
    plain, called = loops.Plain(mlp_vae(), CPU, **keywords), []

    def note(owner, name, label=None):
        original = getattr(owner, name)

        def noted(*arguments, **options):
            called.append(label(*arguments) if label else name)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, noted)

    note(plain, "loss", label=lambda images: tuple(images.shape))
    note(torch.optim.Adam, "step", label=lambda self: "fused" if self.defaults["fused"] else "step by step")
    note(torch.Tensor, "item", label=lambda self: "item of a loss" if self.requires_grad else "item")
    note(loops, "endless")
    note(torch, "sigmoid")
    plain.train(all_squares(), 4, 3)
    assert called.count((4, 1, 24, 24)) == 3
    assert called.count("fused" if keywords.get("fused") else "step by step") == 3
    assert called.count("item of a loss") == 3 * keywords.get("item", True)
    assert called.count("endless") == (not keywords.get("resident"))
    assert called.count("sigmoid") == 3 * (not keywords.get("logits"))


def test_each_rung_adds_one_change_to_the_rung_before():
    rungs = list(RUNGS.values())
    assert rungs[0] == {}
    for before, after in itertools.pairwise(rungs):
        assert len({key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}) == 1
    assert ladder.changes(CPU)["dvae_lib.train, float32"].kind is loops.Library


def test_batches_go_on_after_the_last_one_of_an_epoch():
    batches = loops.endless(all_squares()[:10], 4)  # two an epoch
    assert {next(batches).shape for _ in range(5)} == {(4, 1, 24, 24)}


@pytest.mark.parametrize(
    ("seconds", "steps", "expected"),
    [
        (lambda steps: 5 + 0.25 * steps, 40, 0.25),  # 5 s happen once
        (lambda steps: 0.01 * steps + 3 * (steps > 4), timing.fewest_steps(torch.device("cuda")), 0.01),  # a capture
    ],
)
def test_a_step_is_the_difference_of_two_runs(monkeypatch, seconds, steps, expected):
    monkeypatch.setattr(timing, "run_seconds", seconds)
    assert timing.step_seconds(steps) == pytest.approx(expected)


def test_the_number_of_steps_fits_the_time_asked_for(monkeypatch):
    monkeypatch.setitem(timing._worker, "device", CPU)
    monkeypatch.setattr(timing, "run_seconds", lambda steps: 3 + 1e-4 * steps)
    assert timing.find_steps(2.0) == pytest.approx(20_000, rel=1e-3)


def test_rates_and_ratios_are_taken_round_by_round():
    found = timing.rates([0.1, 0.2, 0.4], 8, reference=[0.1, 0.1, 0.1])
    assert found["steps_per_s"] == pytest.approx({"median": 5, "least": 2.5, "most": 10})
    assert found["images_per_s"] == pytest.approx({"median": 40, "least": 20, "most": 80})
    assert found["ratio"] == pytest.approx({"median": 4, "least": 2, "most": 8})
    assert timing.rates([0.1], 8, None)["ratio"] is None


def test_contestants_take_turns_and_each_starts_a_round(monkeypatch):
    asked = []

    class Worker:
        pool = contextlib.nullcontext()

        def __init__(self, builder, batch_size, device):
            self.name = builder

        def ask(self, function, *arguments):
            if function is timing.step_seconds:
                asked.append(self.name)
            return {timing.step_seconds: 0.5, timing.find_steps: 7, timing.peak_memory: 99}[function]

    monkeypatch.setattr(timing, "Worker", Worker)
    rows = timing.take_turns({"a": "a", "b": "b"}, {"a": 1, "b": 1}, CPU, rounds=3, seconds=1)
    assert asked == ["a", "b", "b", "a", "a", "b"]
    assert rows["a"] == {"peak_bytes": 99, "steps": 7, "seconds_per_step": [0.5, 0.5, 0.5]}


def test_a_worker_is_a_process_of_its_own_whose_memory_is_not_its_parents():
    held = torch.ones(200_000_000)  # 800 MB in this process
    worker = timing.Worker(loops.Builder(loops.Plain), 2, CPU)
    with worker.pool:
        peak = worker.ask(timing.resident_peak)
        growth = worker.ask(timing.peak_memory, 1)
    assert peak < timing.resident_peak() - held.nbytes / 2  # however much of it is PyTorch's, which both load
    assert growth > 4 * 4 * loops.PARAMETERS  # weights, gradients and two moments


def test_results_are_stored_beside_what_is_there_or_leave_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "machine.json"
    timing.store(path, "bench", {"name": "machine"}, {"rows": [1.23456789]})
    timing.store(path, "ladder", {"name": "machine"}, {"rows": (2,)})
    stored = json.loads(path.read_text())
    assert (stored["bench"]["rows"], stored["ladder"]["rows"]) == ([1.23457], [2])
    assert stored["hardware"] == {"name": "machine"}
    with pytest.raises(TypeError):
        timing.store(path, "bench", {}, {"rows": object()})

    def killed(*_):
        raise OSError("killed before the last moment")

    monkeypatch.setattr(timing.os, "replace", killed)
    with pytest.raises(OSError, match="last moment"):
        timing.store(path, "bench", {}, {"rows": [1]})
    assert json.loads(path.read_text()) == stored
    assert [one.name for one in tmp_path.iterdir()] == ["machine.json"]


def test_there_are_results_of_the_articles_batch_size_and_128():
    assert RESULTS
    assert bench.BATCH_SIZES == [16, 128]
    assert timing.result_path({"name": "NVIDIA H200", "device": "cuda", "threads": 16}).name == "nvidia-h200.json"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_stored_results_have_their_fields_and_agree_with_themselves(path):
    text = path.read_text()
    assert not re.search(rf"/|\b{re.escape(platform.node() or '-')}\b", text)  # it names no place on a machine
    stored = json.loads(text)
    assert timing.result_path(stored["hardware"]) == path
    assert {"hardware", "bench", "ladder"} == set(stored)
    assert list(stored["bench"]["batches"]) == list(stored["ladder"]["changes"]) == ["16", "128"]
    for part in ("bench", "ladder"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", stored[part]["date"])
        assert stored[part]["versions"]["torch"]
        assert stored[part]["settings"]["rounds"] >= 1
    for size, rows in stored["bench"]["batches"].items():
        plain = next(row for row in rows if row["name"] == "plain loop")
        assert {"pythae", "pyro Trace_ELBO", "dvae_lib float32"} <= {row["name"].split(",")[0] for row in rows}
        for row in rows:
            check_row(row, int(size), plain["seconds_per_step"], stored["bench"]["settings"]["rounds"])
            one = stored["bench"]["limits"]["floors"][size][row["ran_in"]]
            assert row["floor_share"] == pytest.approx(one["floor_s"] * row["steps_per_s"]["median"], rel=1e-4)
            assert one["floor_s"] == pytest.approx(one["compute_s"] + one["memory_s"], rel=1e-4)
    for size, rows in stored["ladder"]["changes"].items():
        for row in rows:
            check_row(row, int(size), rows[0]["seconds_per_step"], stored["ladder"]["settings"]["rounds"])
    assert {row["batch_size"] for row in stored["ladder"]["batch_sizes"]} == set(ladder.SIZES)


def check_row(row, batch_size, plain, rounds):
    seconds = row["seconds_per_step"]
    assert len(seconds) == rounds
    assert all(math.isfinite(value) and value > 0 for value in seconds)
    assert row["images_per_s"]["least"] == pytest.approx(batch_size / max(seconds), rel=1e-4)
    assert row["ratio"]["most"] == pytest.approx(max(p / s for p, s in zip(plain, seconds, strict=True)), rel=1e-4)
    assert row["steps"] >= 2
