"""What the tests of training runs share: small models, their images, and processes of their own."""

import contextlib
import itertools
import multiprocessing
import pickle
import signal
import time
import traceback
from datetime import timedelta

import torch
from torch import distributed, nn

from dvae_lib import (
    BernoulliNoise,
    KullbackLeiblerDivergence,
    ReparameterizationSampler,
    TrainingConfig,
    VariationalAutoencoder,
    mlp_vae,
    train,
)
from dvae_lib.models import GaussianHeads

# a child is a fork of a server that has imported what takes long and has started no thread
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch", "torch._dynamo", "dvae_lib", "pytest", "hypothesis"])
_stores = itertools.count()


def tiny(noise=None, seed=0, hidden_size=12):
    torch.manual_seed(seed)
    return mlp_vae((1, 6, 6), hidden_size=hidden_size, noise=noise)


def denoising(seed=0):
    return tiny(BernoulliNoise(0.2), seed)


def with_generators(seed=0, device="cpu"):
    """A model whose noise and sampler draw from generators of their own."""
    model = tiny(BernoulliNoise(0.2, torch.Generator(device).manual_seed(seed + 1)), seed)
    model.sampler.generator = torch.Generator(device).manual_seed(seed + 2)
    return model


def with_buffers(seed=0):
    """A model put together by hand, with the running moments of a batch normalisation."""
    torch.manual_seed(seed)
    encoder = nn.Sequential(
        nn.Flatten(), nn.Linear(36, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), GaussianHeads(8, 2)
    )
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 36), nn.Unflatten(1, (1, 6, 6)))
    return VariationalAutoencoder(encoder, KullbackLeiblerDivergence(), ReparameterizationSampler(), decoder)


def bars(n=12):
    """n of twelve images: a bar of one row or of one column of 6 x 6 pixels."""
    images = torch.zeros(12, 1, 6, 6)
    for i in range(6):
        images[i, 0, i, :] = 1
        images[6 + i, 0, :, i] = 1
    return images[:n]


def short(steps=10, **changes):
    return TrainingConfig(**{"steps": steps, "batch_size": 8, "learning_rate": 0.01, "report_every": 4, **changes})


def run(model, config=None, images=None, **options):
    options = {"device": "cpu", "progress": False, **options}
    return train(model, bars() if images is None else images, config or short(), **options)


def weights(model):
    """Parameters and buffers by name, copied."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(first, second):
    """Whether two dictionaries of tensors agree to the last bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def at_pass(model, step, action):
    """Call `action()` in the forward pass of step `step` of this run, counted from 0."""
    passes = iter(range(10**6))

    def hook(*_):
        if next(passes) == step:
            action()

    model.register_forward_pre_hook(hook)


class StoppedError(Exception):
    """What the tests stop a run with."""


def stop(*_):
    raise StoppedError


def interrupt(*_):
    """Ctrl-C, as a terminal sends it."""
    signal.raise_signal(signal.SIGINT)


def record(model):
    """Keep, of every step, the batch, the noise layer's output, the code's noise and the logits."""
    steps = []
    model.register_forward_pre_hook(lambda module, inputs: steps.append({"batch": inputs[0].clone()}))
    model.noise.register_forward_hook(lambda *a: steps[-1].update(corrupted=a[-1].clone()))

    def code(module, parameters, codes):
        mean, log_variance = (parameter.detach() for parameter in parameters)
        steps[-1].update(mean=mean, log_variance=log_variance, eps=(codes.detach() - mean) / (log_variance / 2).exp())

    model.sampler.register_forward_hook(code)
    model.register_forward_hook(lambda *a: steps[-1].update(logits=a[-1].detach()))
    return steps


# two processes


def _member(connection, store, rank, work, arguments):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    distributed.barrier()  # neither is gone before the other has met it
    try:
        result = work(rank, *arguments)
    except Exception as error:
        error.add_note(traceback.format_exc())
        result = error
    # plain pickle: tensors travel as bytes, and the process need not live until they are read
    connection.send_bytes(pickle.dumps(result))
    with contextlib.suppress(RuntimeError):  # the other one may have died
        distributed.destroy_process_group()


def in_two_processes(folder, work, *arguments, may_fail=False, seconds=100):
    """Return what `work(rank, *arguments)` gives in two processes of a gloo group.

    An error is raised here, too, unless it `may_fail`: then it is returned, and the exit code of a process that was
    killed. A process that takes longer than `seconds` fails the test.
    """
    store = folder / f"store{next(_stores)}"
    pipes = [PROCESSES.Pipe(duplex=False) for _ in range(2)]
    members = [
        PROCESSES.Process(target=_member, args=(pipes[rank][1], store, rank, work, arguments)) for rank in range(2)
    ]
    for member, (_, sender) in zip(members, pipes, strict=True):
        member.start()
        sender.close()
    end = time.monotonic() + seconds
    results = []
    try:
        for member, (receiver, _) in zip(members, pipes, strict=True):
            assert receiver.poll(max(0, end - time.monotonic())), f"no result after {seconds} s"
            try:
                results.append(pickle.loads(receiver.recv_bytes()))
            except EOFError:
                member.join(max(0, end - time.monotonic()))
                assert may_fail, f"ended with exit code {member.exitcode} and no result"
                results.append(member.exitcode)
        for member in members:
            member.join(max(0, end - time.monotonic()))
            assert member.exitcode is not None, f"still alive after {seconds} s"
    finally:
        for member in members:
            member.kill()
    if not may_fail:
        for result in results:
            if isinstance(result, Exception):
                raise result
    return results
