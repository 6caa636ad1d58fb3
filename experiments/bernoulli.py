"""Codes of bits on the squares, over seeds: is it the relaxation, the posterior or its encoder that falls behind?

    python -m experiments.bernoulli [--processes 2] [--only relaxed-12 bound-9]

`relaxed-B` are models of B bits trained by `train` on relaxed samples, on the quick schedule, `relaxed-9` for as many
steps as the other groups of 9 bits, `-warm` at a higher rate and with a divergence that counts little at first, and
`-cold` with a temperature that falls as well. The other groups of 9 bits draw no codes at all: every step enumerates
all 512 codes, so that the gradient is exact. `likelihood-9` maximises ln p(x) itself, without an encoder. `bound-9`
maximises the evidence lower bound of the usual posterior, independent bits whose logits an encoder predicts; `table-9`
that of independent bits without an encoder, as each image has logits of its own; `joint-9` that of an encoder which
predicts the probability of each of the 512 codes.

Log-likelihoods and bounds are in nats per image, over the 256 squares. `codes` counts how many different codes the
squares have, each square's being its most probable one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dvae_lib import (
    TrainingConfig,
    VariationalAutoencoder,
    all_squares,
    bernoulli_vae,
    elbo,
    exact_log_likelihood,
    importance_weighted_bound,
    squares,
    train,
)
from experiments.measures import QUICK, names, of_name
from experiments.runs import RESULTS, command_line, described

PATH = RESULTS / "bernoulli.json"
IMAGES = 50_000
WARM = replace(QUICK, learning_rate=5e-3, kl_warm_up=2_000)
SHORT = replace(QUICK, steps=3_000)  # of runs that enumerate all codes in every step
DRAWS = 100  # of the bound
CODES = 2_000  # of the importance-weighted bound, where the codes are too many to be enumerated
TABLE_RATE = 0.05  # the learning rate of a table of logits

Posterior = Callable[[Tensor], Tensor]  # indices of squares, (n,), to ln q(z|x) of all codes, (n, codes)


class Group(NamedTuple):
    """Runs that differ in their seed alone."""

    bits: int
    config: TrainingConfig = QUICK
    seeds: int = 3


GROUPS = {
    "relaxed-12": Group(12),
    "relaxed-12-warm": Group(12, WARM),
    "relaxed-12-cold": Group(12, replace(WARM, final_temperature=0.1)),
    "relaxed-20": Group(20, replace(QUICK, learning_rate=5e-3)),
    "relaxed-9": Group(9, SHORT),
    "bound-9": Group(9, SHORT),
    "likelihood-9": Group(9, SHORT),
    "joint-9": Group(9, SHORT),
    "table-9": Group(9, SHORT),
}
SETTINGS = {
    **{f"group {name}": {"bits": group.bits, "config": described(group.config)} for name, group in GROUPS.items()},
    "images": IMAGES,
    "draws": DRAWS,
    "codes": CODES,
    "table rate": TABLE_RATE,
}


def every_code(bits: int) -> Tensor:
    """Return all codes, (2^bits, bits)."""
    return torch.cartesian_prod(*bits * [torch.arange(2.0)]).view(-1, bits)


def log_joint(model: VariationalAutoencoder, images: Tensor, codes: Tensor) -> Tensor:
    """Return ln p(x, z) of all images and all codes, (n, codes)."""
    logits = model.decode(codes).flatten(1)  # (codes, pixels)
    likelihood = images.flatten(1) @ logits.T - functional.softplus(logits).sum(1)
    return likelihood - codes.shape[1] * torch.log(torch.tensor(2.0))


def log_posterior_of_bits(logits: Tensor, codes: Tensor) -> Tensor:
    """Return ln q(z|x) of independent bits, from their logits, (n, bits): (n, codes)."""
    return logits @ codes.T - functional.softplus(logits).sum(1, keepdim=True)


def posterior_of(kind: str, model: VariationalAutoencoder, codes: Tensor, width: int) -> tuple[Posterior, nn.Module]:
    """Return ln q(z|x) of all codes, as a function of the indices of squares, and what in it is to be trained."""
    images = all_squares()
    if kind == "table":
        table = nn.Embedding(len(images), codes.shape[1])
        return lambda index: log_posterior_of_bits(table(index), codes), table
    if kind == "joint":
        model.encoder = bernoulli_vae(latent_size=len(codes), hidden_size=width).encoder
        return lambda index: model.encoder(images[index])[0].log_softmax(1), model.encoder
    return lambda index: log_posterior_of_bits(model.encoder(images[index])[0], codes), model.encoder


def train_exactly(name: str) -> tuple[VariationalAutoencoder, Posterior]:
    """Train the network of a run that enumerates all codes in every step; return it with its posterior."""
    group, seed = of_name(name, GROUPS)
    config, kind = group.config, name.split("-")[0]
    torch.manual_seed(seed)
    images, codes = all_squares(), every_code(group.bits)
    model = bernoulli_vae(latent_size=group.bits, hidden_size=config.hidden_size)
    log_q, trained = posterior_of(kind, model, codes, config.hidden_size)
    if kind == "likelihood":  # the posterior is the exact one, and there is nothing in it to train
        log_q, trained = lambda index: log_joint(model, images[index], codes).log_softmax(1), nn.Module()
    rate = TABLE_RATE if kind == "table" else config.learning_rate
    parts = [{"params": model.decoder.parameters()}, {"params": trained.parameters(), "lr": rate}]
    optimizer = torch.optim.Adam(parts, lr=config.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    for _ in range(config.steps):
        index = torch.randint(len(images), (config.batch_size,))
        joint = log_joint(model, images[index], codes)  # (n, codes)
        if kind == "likelihood":
            value = joint.logsumexp(1)  # ln p(x), (n,)
        else:
            q = log_q(index)
            value = (q.exp() * (joint - q)).sum(1)  # the bound, (n,)
        optimizer.zero_grad()
        (-value.mean()).backward()
        optimizer.step()
        schedule.step()
    return model.eval(), log_q


def measure(name: str) -> dict[str, Any]:
    """Train run `name` and measure it."""
    group, seed = of_name(name, GROUPS)
    if not name.startswith("relaxed"):
        return measured_exactly(*train_exactly(name), every_code(group.bits))
    images = all_squares()
    torch.manual_seed(seed)
    model = bernoulli_vae(latent_size=group.bits, hidden_size=group.config.hidden_size)
    data = squares(IMAGES, torch.Generator().manual_seed(seed))
    train(model, data, replace(group.config, seed=seed), device="cpu", progress=False)
    torch.manual_seed(0)
    (logits,) = model.encode(images)
    found = {"elbo": elbo(model, images, DRAWS).mean()[0], "codes": len(logits.sign().unique(dim=0))}
    if group.bits > 12:
        return found | {"iwae": importance_weighted_bound(model, images, CODES).mean()[0]}
    return found | {"exact": exact_log_likelihood(model, images).mean()[0]}


@torch.no_grad()
def measured_exactly(model: VariationalAutoencoder, log_q: Posterior, codes: Tensor) -> dict[str, Any]:
    """Measure a network whose codes can all be enumerated."""
    images = all_squares()
    q, joint = log_q(torch.arange(len(images))), log_joint(model, images, codes)  # (256, codes)
    return {
        "elbo": float((q.exp() * (joint - q)).sum(1).mean()),
        "codes": len(q.argmax(1).unique()),
        "exact": float(joint.logsumexp(1).mean()),
    }


if __name__ == "__main__":
    command_line(str(__doc__), PATH, SETTINGS, names(GROUPS), measure, 0.8)
