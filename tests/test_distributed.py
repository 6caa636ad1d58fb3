"""Two processes that share each batch do what one does with all of it; each draws for itself, one of them reports."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import runs
import torch
from runs import at_pass, bars, denoising, in_two_processes, run, same, short, weights
from torch import distributed
from torch.nn.functional import logsigmoid

import dvae_lib.runs.files
from dvae_lib import BernoulliNoise, TrainingConfig, load_checkpoint, mlp_vae

ROOT = Path(__file__).resolve().parent.parent
CONFIG = short(10, checkpoint_every=4)

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo"
)


def trained(rank, config, checkpoint=None, build=denoising, at=None):
    """What a rank of a run sees: its draws, what comes back, what it writes and what it shows.

    `at` says that rank `at[0]` does `at[2]()` in the pass of step `at[1]`.
    """
    model = build()
    steps = runs.record(model) if model.noise is not None else []
    if at is not None and at[0] == rank:
        at_pass(model, *at[1:])
    writes, write = [], dvae_lib.runs.files.write
    dvae_lib.runs.files.write = lambda path, *rest: (writes.append(path.name), write(path, *rest))
    os.environ.pop("TQDM_DISABLE", None)
    with contextlib.redirect_stderr(io.StringIO()) as text:
        protocol = run(model, config, progress=True, checkpoint=checkpoint)
    return {
        "steps": steps,
        "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
        "weights": weights(model),
        "protocol": protocol.to_numpy(),
        "writes": writes,
        "stderr": text.getvalue(),
        "training": model.training,
    }


def in_float64():
    return denoising().double()


@pytest.fixture(scope="module")
def twenty_steps(tmp_path_factory):
    """What the two ranks of a run of twenty steps saw."""
    folder = tmp_path_factory.mktemp("twenty")
    config = short(20, report_every=6, checkpoint_every=6)
    return in_two_processes(folder, partial(trained, build=in_float64), config, folder / "run.safetensors")


def losses(clean, mean, log_variance, logits):
    """Reconstruction and divergence of a batch, summed over it, written out."""
    log_likelihood = (clean * logsigmoid(logits) + (1 - clean) * logsigmoid(-logits)).sum()
    return -log_likelihood, 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()


def joined_objective(model, steps):
    """Of the batches of `steps` together, with the draws recorded there."""
    clean, corrupted, eps = (torch.cat([step[name] for step in steps]) for name in ("batch", "corrupted", "eps"))
    mean, log_variance = model.encoder(corrupted)
    return sum(losses(clean, mean, log_variance, model.decoder(mean + torch.exp(log_variance / 2) * eps)))


# what they compute


def test_they_are_one_process_on_the_joined_batches(twenty_steps):
    """Twenty steps of plain Adam, with the scheduled rates, on what the ranks drew together."""
    model, config = in_float64(), short(20)
    optimizer = torch.optim.Adam(model.parameters(), fused=False, foreach=False)
    for number, steps in enumerate(zip(*(rank["steps"] for rank in twenty_steps), strict=True)):
        optimizer.param_groups[0]["lr"] = float(np.float32(config.learning_rate_at(number)))
        optimizer.zero_grad()
        joined_objective(model, steps).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(twenty_steps[0]["gradients"][name], parameter.grad, rtol=0, atol=1e-9 * scale)
        torch.testing.assert_close(twenty_steps[0]["weights"][name], parameter.detach(), rtol=0, atol=1e-9)


def test_both_end_alike(twenty_steps):
    first, second = twenty_steps
    assert same(first["weights"], second["weights"])
    assert same(first["gradients"], second["gradients"])
    assert np.array_equal(first["protocol"], second["protocol"])
    assert not first["training"]
    assert not second["training"]


def rows(rank, config):
    """The protocol of one rank's own half of the batches, from what it recorded."""
    for number, step in enumerate(rank["steps"]):
        mean, a = step["mean"], step["log_variance"]
        sums = losses(step["batch"], mean, a, step["logits"])
        moments = mean.mean(), a.std(), a.mean()
        yield [*(one / len(a) for one in sums), *moments, config.learning_rate_at(number)]


def test_protocol_is_the_mean_over_the_processes(twenty_steps):
    own = [np.array(list(rows(rank, short(20)))) for rank in twenty_steps]
    assert np.abs(own[0] - own[1]).max(0)[:5].min() > 1e-3
    np.testing.assert_allclose(twenty_steps[0]["protocol"], (own[0] + own[1]) / 2, rtol=1e-4, atol=1e-6)


# what they draw


@pytest.mark.parametrize("name", ["batch", "flips", "eps"])
def test_each_draws_its_own_half_of_a_batch(twenty_steps, name):
    """Images, flips and codes: no step in which both have drawn the same."""
    for both in zip(*(rank["steps"] for rank in twenty_steps), strict=True):
        assert [step["batch"].shape for step in both] == [(4, 1, 6, 6)] * 2
        drawn = [step["batch"] != step["corrupted"] if name == "flips" else step[name] for step in both]
        assert not torch.equal(*drawn)
        assert all(one.any() for one in drawn)


def test_rank_0_draws_what_one_process_draws(twenty_steps):
    """Half a batch a step, from the generator with the run's seed; written out."""
    torch.manual_seed(0)
    for step in twenty_steps[0]["steps"]:
        assert torch.equal(step["batch"], bars().double()[torch.randint(12, (4,))])
        assert torch.equal(step["batch"] != step["corrupted"], torch.rand(4, 1, 6, 6) < 0.2)
        torch.testing.assert_close(step["eps"], torch.randn(4, 2, dtype=torch.float64))


# what they show and write


def test_rank_0_alone_shows_its_progress_and_writes(twenty_steps):
    """All images of the joined batches, and the losses of both."""
    first, second = twenty_steps
    last = first["stderr"].strip().rsplit("\r", 1)[-1]
    assert " 160/160 " in last
    assert f"reconstruction={first['protocol'][18:, 0].mean():.2f}" in last
    assert first["writes"] == ["run.safetensors"] * 4
    assert (second["stderr"], second["writes"]) == ("", [])


# ended, and called again


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("build", [denoising, runs.with_generators])
def test_killed_and_called_again(tmp_path, build):
    """When one is killed the other fails too; called again, both go on, with random states of their own."""
    path, work = tmp_path / "run.safetensors", partial(trained, build=build)
    whole = in_two_processes(tmp_path, work, CONFIG)
    kill = partial(signal.raise_signal, signal.SIGKILL)
    killed = in_two_processes(tmp_path, partial(work, at=(1, 6, kill)), CONFIG, path, may_fail=True)
    assert isinstance(killed[0], RuntimeError)
    assert killed[1] == -signal.SIGKILL
    rest = in_two_processes(tmp_path, work, CONFIG, path)
    for before, after in zip(whole, rest, strict=True):
        assert same(after["weights"], before["weights"])
        assert np.array_equal(after["protocol"], before["protocol"])
        assert all(same(*pair) for pair in zip(after["steps"], before["steps"][4:], strict=True))


def interrupted_and_called_again(rank, path):
    """Ctrl-C in rank 1, called again, and called again when it is finished: in the processes of one group."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it puts aside with Ctrl-C ignored
    return [trained(rank, CONFIG, path, at=(1, 5, runs.interrupt)), *(trained(rank, CONFIG, path) for _ in range(2))]


def test_ctrl_c_in_one_ends_both_and_they_go_on(tmp_path):
    """At the next report, which is written; no process looks for the file before it is whole."""
    ranks = in_two_processes(tmp_path, interrupted_and_called_again, tmp_path / "run.safetensors")
    whole = in_two_processes(tmp_path, trained, CONFIG)
    for results in ranks:
        assert [len(result["steps"]) for result in results] == [8, 2, 0]
        for result in results:
            assert np.array_equal(result["protocol"], whole[0]["protocol"][: len(result["protocol"])])
        assert [len(result["protocol"]) for result in results] == [8, 10, 10]
        assert all(same(result["weights"], whole[0]["weights"]) for result in results[1:])


# what is refused


def refused(rank, config, paths=(None, None)):
    """The message with which a run is refused, after a look at what must be untouched."""
    model = denoising()
    before = weights(model)
    with pytest.raises((ValueError, OSError)) as error:
        run(model, config, checkpoint=paths[rank])
    assert same(weights(model), before)
    assert model.training
    return str(error.value)


def spoiled_and_refused(rank, paths):
    """Rank 1 finds what rank 0 does not, in the processes of one group; and in the end rank 0 cannot write."""
    told = [refused(rank, short(), one) for one in paths]
    with pytest.raises(IsADirectoryError):
        trained(rank, short(), paths[0][0].with_name("folder"), at=(0, 2, paths[0][0].with_name("folder").mkdir))
    return told


def test_what_one_of_them_cannot_do_ends_both(tmp_path):
    """All raise one error, and none waits for the other."""
    two, damaged, none = (tmp_path / name for name in ("two", "damaged", "none"))
    in_two_processes(tmp_path, trained, short(), two)
    damaged.write_bytes(two.read_bytes()[:-1])
    pairs = [(two, none), (none, two), (two, damaged), (damaged, two), (two, none / "two"), (none / "two", two)]
    for told in in_two_processes(tmp_path, spoiled_and_refused, pairs):
        expected = ("not there for rank 1", "not there for rank 0", "damaged", "damaged", "none/two", "none/two")
        for part, message in zip(expected, told, strict=True):
            assert part in message


def test_file_of_another_number_of_processes(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    run(denoising(), checkpoint=one)
    in_two_processes(tmp_path, trained, short(), two)
    assert "processes is 2 in the file and 1 here" in refused(0, short(), (two,))
    for message in in_two_processes(tmp_path, refused, short(), (one, one)):
        assert "processes is 1 in the file and 2 here" in message


def test_batch_that_cannot_be_shared(tmp_path):
    for message in in_two_processes(tmp_path, refused, short(batch_size=7)):
        assert message == "batch_size must be a multiple of 2 processes, got 7"


# with torchrun


def by_hand(rank, config):
    torch.manual_seed(3)
    model = mlp_vae(hidden_size=16, noise=BernoulliNoise(0.1))
    run(model, config, dvae_lib.squares(50, torch.Generator().manual_seed(3)))
    return weights(model)


def test_torchrun(tmp_path):
    """The README's command, small: one file, of the same weights as the same run in processes started by hand."""
    path = tmp_path / "dvae.safetensors"
    options = "--steps 20 --batch-size 8 --hidden-size 16 --images 50 --noise 0.1 --seed 3 --report-every 7"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dvae_lib"]
    command += [*options.split(), "--device", "cpu", "--output", str(path)]
    command += ["--checkpoint", str(tmp_path / "run.safetensors")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes)
    try:
        out, err = process.communicate(timeout=120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, err
    assert out.count("20 steps") == 1
    assert sorted(os.listdir(tmp_path)) == ["dvae.safetensors", "run.safetensors"]
    model = mlp_vae(hidden_size=16, noise=BernoulliNoise(0.1))
    config = TrainingConfig(steps=20, batch_size=8, hidden_size=16, seed=3, report_every=7)
    assert load_checkpoint(path, model) == config
    first, _ = in_two_processes(tmp_path, by_hand, config)
    assert same(weights(model), first)
