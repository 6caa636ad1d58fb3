"""Two processes that share each batch do what one does with all of it; each draws for itself, one of them reports."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import (
    StoppedError,
    at_pass,
    bars,
    denoising,
    in_two_processes,
    record,
    run,
    same,
    short,
    stop,
    weights,
    with_buffers,
    with_generators,
)
from torch import distributed
from torch.nn.functional import logsigmoid

import dvae_lib.runs.files
from dvae_lib import BernoulliNoise, TrainingConfig, load_checkpoint, mlp_vae

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo"
)


def trained(rank, config, dtype=torch.float32, checkpoint=None, build=denoising, stop_at=None, kill=None):
    """What a rank of a run sees: its draws, what comes back, what it writes and what it shows."""
    model = build().to(dtype)
    steps = record(model) if model.noise is not None else []
    if stop_at is not None:
        at_pass(model, stop_at, stop)
    if kill is not None and rank == kill[0]:
        at_pass(model, kill[1], lambda: os.kill(os.getpid(), signal.SIGKILL))
    writes, write = [], dvae_lib.runs.files.write
    dvae_lib.runs.files.write = lambda path, *rest: (writes.append(path.name), write(path, *rest))
    torch.manual_seed(99)
    state, text, protocol = torch.get_rng_state(), io.StringIO(), None
    os.environ.pop("TQDM_DISABLE", None)
    with contextlib.redirect_stderr(text), contextlib.suppress(StoppedError):
        protocol = run(model, config, progress=True, checkpoint=checkpoint)
    return {
        "steps": steps,
        "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
        "weights": weights(model),
        "protocol": None if protocol is None else protocol.to_numpy(),
        "writes": writes,
        "stderr": text.getvalue(),
        "state kept": torch.equal(torch.get_rng_state(), state),
        "training": model.training,
    }


@pytest.fixture(scope="module")
def twenty_steps(tmp_path_factory):
    """What the two ranks of a run of twenty steps saw."""
    folder = tmp_path_factory.mktemp("twenty")
    config = short(20, report_every=6, checkpoint_every=6)
    return in_two_processes(folder, trained, config, torch.float32, folder / "run.safetensors")


def joined_objective(model, steps):
    """Reconstruction + divergence of the batches of `steps` together, written out, with the draws recorded there."""
    clean, corrupted, eps = (torch.cat([step[name] for step in steps]) for name in ("batch", "corrupted", "eps"))
    mean, log_variance = model.encoder(corrupted)
    logits = model.decoder(mean + torch.exp(log_variance / 2) * eps)
    log_likelihood = (clean * logsigmoid(logits) + (1 - clean) * logsigmoid(-logits)).sum()
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum() - log_likelihood


# what they compute


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_one_step_is_that_of_one_process_on_the_joined_batch(tmp_path, dtype, tolerance):
    """Its gradients, and the weights after Adam as PyTorch's plainest loop computes it."""
    ranks = in_two_processes(tmp_path, trained, short(1), dtype)
    model = denoising().to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=False, foreach=False)
    joined_objective(model, [rank["steps"][0] for rank in ranks]).backward()
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max().item()
        for rank in ranks:
            torch.testing.assert_close(rank["gradients"][name], parameter.grad, rtol=0, atol=tolerance * scale)
    # the first step of Adam is the sign of the gradient, so that the smallest gradients tell nothing
    large = {name: parameter.grad.abs() > 1e-3 for name, parameter in model.named_parameters()}
    optimizer.step()
    for name, tensor in model.named_parameters():
        for rank in ranks:
            torch.testing.assert_close(rank["weights"][name][large[name]], tensor[large[name]], rtol=0, atol=1e-6)


def test_later_steps_are_those_of_one_process_on_the_joined_batches(twenty_steps):
    """Twenty steps of plain Adam, with the scheduled rates, on what the ranks drew together."""
    model, config = denoising(), short(20)
    optimizer = torch.optim.Adam(model.parameters(), fused=False, foreach=False)
    for number, steps in enumerate(zip(*(rank["steps"] for rank in twenty_steps), strict=True)):
        optimizer.param_groups[0]["lr"] = config.learning_rate_at(number)
        optimizer.zero_grad()
        joined_objective(model, steps).backward()
        optimizer.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(twenty_steps[0]["weights"][name], tensor, rtol=1e-3, atol=1e-4)


def test_weights_stay_the_same_on_both(twenty_steps):
    first, second = twenty_steps
    assert same(first["weights"], second["weights"])
    assert same(first["gradients"], second["gradients"])
    assert not same(first["weights"], weights(denoising()))
    assert not first["training"]
    assert not second["training"]


def rows(rank, config):
    """The protocol of one rank's own half of the batches, from what it recorded."""
    for number, step in enumerate(rank["steps"]):
        clean, logits, a = step["batch"], step["logits"], step["log_variance"]
        log_likelihood = (clean * logsigmoid(logits) + (1 - clean) * logsigmoid(-logits)).sum()
        kl = 0.5 * (step["mean"] ** 2 + a.exp() - 1 - a).sum()
        moments = step["mean"].mean(), a.std(), a.mean()
        yield [-log_likelihood / len(clean), kl / len(clean), *moments, config.learning_rate_at(number)]


def test_protocol_is_the_mean_over_the_processes_on_both(twenty_steps):
    first, second = twenty_steps
    assert np.array_equal(first["protocol"], second["protocol"])
    own = [np.array(list(rows(rank, short(20)))) for rank in twenty_steps]
    assert np.abs(own[0] - own[1]).max(0)[:5].min() > 1e-3
    np.testing.assert_allclose(first["protocol"], (own[0] + own[1]) / 2, rtol=1e-4, atol=1e-6)


def test_running_moments_are_those_of_rank_0(tmp_path):
    """DistributedDataParallel sends the buffers of rank 0 around before a pass; the last pass moves them apart."""
    first, second = in_two_processes(tmp_path, trained, short(5), torch.float32, None, with_buffers)
    parameters = {name for name, _ in with_buffers().named_parameters()}
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in parameters)


# what they draw


def test_each_draws_half_a_batch(twenty_steps):
    for rank in twenty_steps:
        assert [step["batch"].shape for step in rank["steps"]] == [(4, 1, 6, 6)] * 20


@pytest.mark.parametrize("name", ["batch", "flips", "eps"])
def test_each_draws_its_own(twenty_steps, name):
    """Images, flips and codes: no step in which both have drawn the same."""
    for first, second in zip(*(rank["steps"] for rank in twenty_steps), strict=True):
        drawn = [step["batch"] != step["corrupted"] if name == "flips" else step[name] for step in (first, second)]
        assert not torch.equal(*drawn)
        assert drawn[0].any()
        assert drawn[1].any()


def test_rank_0_draws_what_one_process_draws(twenty_steps):
    """Half a batch a step, from the generator with the run's seed; written out."""
    torch.manual_seed(0)
    for step in twenty_steps[0]["steps"]:
        assert torch.equal(step["batch"], bars()[torch.randint(12, (4,))])
        assert torch.equal(step["batch"] != step["corrupted"], torch.rand(4, 1, 6, 6) < 0.2)
        torch.testing.assert_close(step["eps"], torch.randn(4, 2), rtol=1e-3, atol=1e-4)


def test_rank_1_draws_fairly(twenty_steps):
    """All twelve images, a fifth of the pixels flipped, codes' noise of mean 0 and variance 1: within 5 errors."""
    steps = twenty_steps[1]["steps"]
    batches, eps = torch.cat([step["batch"] for step in steps]), torch.cat([step["eps"] for step in steps])
    assert len(batches.flatten(1).unique(dim=0)) == 12
    flips = torch.cat([step["batch"] != step["corrupted"] for step in steps]).double()
    assert abs(flips.mean() - 0.2) < 5 * (0.2 * 0.8 / flips.numel()) ** 0.5
    assert abs(eps.mean()) < 5 / eps.numel() ** 0.5
    assert abs(eps.var() - 1) < 5 * (2 / eps.numel()) ** 0.5


def test_the_callers_random_states_are_given_back(twenty_steps):
    assert all(rank["state kept"] for rank in twenty_steps)


# what they show and write


def test_rank_0_alone_shows_its_progress(twenty_steps):
    """All images of the joined batches, and the losses of both."""
    first, second = twenty_steps
    last = first["stderr"].strip().rsplit("\r", 1)[-1]
    assert " 160/160 " in last
    assert f"reconstruction={first['protocol'][18:, 0].mean():.2f}" in last
    assert second["stderr"] == ""


def test_rank_0_alone_writes(twenty_steps):
    first, second = twenty_steps
    assert first["writes"] == ["run.safetensors"] * 4
    assert second["writes"] == []


# stopped and called again


@pytest.mark.parametrize("build", [denoising, with_generators])
def test_stopped_and_called_again(tmp_path, build):
    """Both go on with random states of their own; bit-identical to the run that was not stopped."""
    path, config = tmp_path / "run.safetensors", short(10, checkpoint_every=4)
    whole = in_two_processes(tmp_path, trained, config, torch.float32, None, build)
    in_two_processes(tmp_path, trained, config, torch.float32, path, build, 6)
    rest = in_two_processes(tmp_path, trained, config, torch.float32, path, build)
    for before, after in zip(whole, rest, strict=True):
        assert same(after["weights"], before["weights"])
        assert np.array_equal(after["protocol"], before["protocol"])
        assert len(after["steps"]) == 6
        for ours, theirs in zip(after["steps"], before["steps"][4:], strict=True):
            assert same(ours, theirs)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_and_called_again(tmp_path):
    """When one of them is killed the other fails too; called again, both go on."""
    path, config = tmp_path / "run.safetensors", short(10, checkpoint_every=4)
    whole = in_two_processes(tmp_path, trained, config)
    killed = in_two_processes(tmp_path, trained, config, torch.float32, path, denoising, None, (1, 6), may_fail=True)
    assert isinstance(killed[0], RuntimeError)
    assert killed[1] == -signal.SIGKILL
    rest = in_two_processes(tmp_path, trained, config, torch.float32, path)
    for before, after in zip(whole, rest, strict=True):
        assert same(after["weights"], before["weights"])
        assert np.array_equal(after["protocol"], before["protocol"])


def resumed_in_the_same_processes(rank, path):
    """StoppedError in step 6, called again, and called again when it is finished: in the processes of one group."""
    model = denoising()
    at_pass(model, 6, stop)
    with contextlib.suppress(StoppedError):
        run(model, short(10, checkpoint_every=4), checkpoint=path)
    protocols = []
    for _ in range(2):
        model = denoising(seed=7)
        protocols.append(run(model, short(10, checkpoint_every=4), checkpoint=path).to_numpy())
    return protocols, weights(model)


def test_called_again_in_the_same_processes(tmp_path):
    """No process looks for the file before it is whole."""
    ranks = in_two_processes(tmp_path, resumed_in_the_same_processes, tmp_path / "run.safetensors")
    whole = in_two_processes(tmp_path, trained, short(10))
    for protocols, tensors in ranks:
        assert np.array_equal(protocols[0], whole[0]["protocol"])
        assert np.array_equal(protocols[1], whole[0]["protocol"])
        assert same(tensors, whole[0]["weights"])


# what is refused


def refused(rank, config, checkpoint=None):
    """The message with which a run is refused, after a look at what must be untouched."""
    model = denoising()
    before, state = weights(model), torch.get_rng_state()
    with pytest.raises(ValueError, match=r"multiple|another run") as error:
        run(model, config, checkpoint=checkpoint)
    assert same(weights(model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    return str(error.value)


def test_file_of_one_process(tmp_path):
    run(denoising(), checkpoint=tmp_path / "run.safetensors")
    for message in in_two_processes(tmp_path, refused, short(), tmp_path / "run.safetensors"):
        assert re.search("run.safetensors .* made with processes = 1, this one has processes = 2", message)


def test_file_of_two_processes(tmp_path):
    path = tmp_path / "run.safetensors"
    in_two_processes(tmp_path, trained, short(), torch.float32, path)
    assert re.search("made with processes = 2, this one has processes = 1", refused(0, short(), path))


def test_batch_that_cannot_be_shared(tmp_path):
    for message in in_two_processes(tmp_path, refused, short(batch_size=7)):
        assert message == "batch_size must be a multiple of 2 processes, got 7"


def interrupted(rank):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it puts aside with Ctrl-C ignored
    model = denoising()
    at_pass(model, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(model)
    return model.training


def test_ctrl_c_ends_the_run_of_several(tmp_path):
    """Nothing is returned, as the others are in the middle of another step."""
    assert in_two_processes(tmp_path, interrupted) == [False, False]


# with torchrun


def test_torchrun(tmp_path):
    """The README's command, small: one file, of the same weights as the same run in processes started by hand."""
    path = tmp_path / "dvae.safetensors"
    options = "--steps 20 --batch-size 8 --hidden-size 16 --images 50 --noise 0.1 --seed 3 --report-every 7"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dvae_lib"]
    command += [*options.split(), "--device", "cpu", "--output", str(path)]
    command += ["--checkpoint", str(tmp_path / "run.safetensors")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
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


def by_hand(rank, config):
    torch.manual_seed(3)
    model = mlp_vae(hidden_size=16, noise=BernoulliNoise(0.1))
    images = dvae_lib.squares(50, torch.Generator().manual_seed(3))
    run(model, config, images)
    return weights(model)
