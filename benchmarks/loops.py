"""The contestants: the same networks, data, batch size and Adam, trained by the library, a plain loop and two peers.

Each is built from the weights of one `dvae_lib.mlp_vae()` and has three things: `parameters()`, in the library's order;
`loss(images)`, its own objective summed over a batch, in nats, by its own code; and `train(images, batch_size, steps)`,
which starts a run as a reader of its documentation would. `check_same` refuses a contestant that does not compute what
the others do.
"""

import contextlib
import dataclasses
import functools
import importlib
import itertools
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from dvae_lib import TrainingConfig, mlp_vae, train
from dvae_lib.runs.devices import effective_precision, matmul_precision

PARAMETERS = 3_993_412
LEARNING_RATE = 1e-3


class Contestant(Protocol):
    """What the benchmark asks of a contestant."""

    def parameters(self) -> list[nn.Parameter]: ...
    def loss(self, images: Tensor) -> Tensor: ...
    def train(self, images: Tensor, batch_size: int, steps: int) -> None: ...


# the article's networks, once, for everyone but the library


class Encoder(nn.Module):
    """576 - 1152 - 1152 - (2, 2), ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(576, 1152), nn.Linear(1152, 1152)
        self.mean, self.log_variance = nn.Linear(1152, 2), nn.Linear(1152, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = functional.relu(self.fc2(functional.relu(self.fc1(x.flatten(1)))))
        return self.mean(h), self.log_variance(h)  # each (n, 2)


class Decoder(nn.Module):
    """2 - 1152 - 1152 - 576, ReLU, with the logits of the pixels at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.fc3, self.fc4, self.fc5 = nn.Linear(2, 1152), nn.Linear(1152, 1152), nn.Linear(1152, 576)

    def forward(self, z: Tensor) -> Tensor:
        return self.fc5(functional.relu(self.fc4(functional.relu(self.fc3(z)))))  # (n, 576)


class _Networks:
    """An encoder and a decoder on `device` with the weights of `model`."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.device = device
        self.encoder, self.decoder = Encoder().to(device), Decoder().to(device)
        copy_weights(model.parameters(), self.parameters())

    def parameters(self) -> list[nn.Parameter]:
        return [*self.encoder.parameters(), *self.decoder.parameters()]


@torch.no_grad()
def copy_weights(source: Iterable[Tensor], target: Iterable[Tensor]) -> None:
    """Copy tensor by tensor; both must have the same number, of the same shapes."""
    for new, old in zip(source, target, strict=True):
        if new.shape != old.shape:
            raise ValueError(f"target must have the shapes of source, got {tuple(old.shape)} for {tuple(new.shape)}")
        old.copy_(new)


def endless(images: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Yield shuffled batches, (batch_size, 1, 24, 24), epoch after epoch."""
    loader = DataLoader(TensorDataset(images), batch_size=batch_size, shuffle=True, drop_last=True)
    return (x for _ in itertools.count() for (x,) in loader)


# the contestants


class Library:
    """`dvae_lib.train`, with the article's schedule."""

    def __init__(self, model: nn.Module, device: torch.device, precision: str = "float32", graph: bool = True) -> None:
        self.device = device
        self.config = configuration(precision=precision, graph=graph)
        self.model = mlp_vae().to(device)
        copy_weights(model.parameters(), self.parameters())

    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def loss(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        return functional.binary_cross_entropy_with_logits(logits, images, reduction="sum") + self.model.kl

    def train(self, images: Tensor, batch_size: int, steps: int) -> None:
        config = dataclasses.replace(self.config, batch_size=batch_size, steps=steps)
        train(self.model, images, config, device=self.device, progress=False)


class Plain(_Networks):
    """The loop that a PyTorch example usually has: a DataLoader, a sigmoid, Adam with its defaults, `.item()`.

    Each keyword changes one thing; the ladder of the chapter "The speed of a step" adds them one after another.

    Args:
        resident: keep the images on the device as one tensor and draw the batches there, with replacement.
        item: read the loss after every step.
        logits: leave the sigmoid to the loss.
        fused: let Adam update each weight in one pass.
        precision: of the matrix products, as in `TrainingConfig`.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        *,
        resident: bool = False,
        item: bool = True,
        logits: bool = False,
        fused: bool = False,
        precision: str = "float32",
    ) -> None:
        super().__init__(model, device)
        self.resident, self.item, self.logits, self.fused = resident, item, logits, fused
        self.precision = precision

    def loss(self, images: Tensor) -> Tensor:
        low = self.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16) if low else contextlib.nullcontext():
            mean, log_variance = self.encoder(images)
            z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
            output = self.decoder(z).float()
        x = images.flatten(1)
        if self.logits:
            reconstruction = functional.binary_cross_entropy_with_logits(output, x, reduction="sum")
        else:
            reconstruction = functional.binary_cross_entropy(torch.sigmoid(output), x, reduction="sum")
        mean, log_variance = mean.float(), log_variance.float()
        divergence = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
        return reconstruction + divergence

    def train(self, images: Tensor, batch_size: int, steps: int) -> None:
        optimizer = torch.optim.Adam(self.parameters(), lr=LEARNING_RATE, fused=self.fused or None)
        if self.resident:
            images = images.to(self.device)
        else:
            batches = endless(images, batch_size)
        with matmul_precision(self.precision):
            for _ in range(steps):
                if self.resident:
                    x = images[torch.randint(len(images), (batch_size,), device=self.device)]
                else:
                    x = next(batches).to(self.device)
                optimizer.zero_grad()
                loss = self.loss(x)
                loss.backward()
                optimizer.step()
                if self.item:
                    loss.item()


class _EnoughError(Exception):
    """Raised in pythae's trainer after the last step that is wanted."""


class Pythae:
    """pythae's `VAE` and `BaseTrainer`, with networks of our own as its documentation describes; nothing is logged.

    The trainer counts in epochs; a callback ends the run after `steps` steps. Its progress bar is switched off.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        callbacks: Any = load("pythae.trainers.training_callbacks")
        callbacks.tqdm = functools.partial(tqdm, disable=True)
        base, nets = load("pythae.models.base.base_utils"), load("pythae.models.nn")
        models, self.device = load("pythae.models"), device

        class OwnEncoder(nets.BaseEncoder):  # type: ignore[name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.network = Encoder()

            def forward(self, x: Tensor) -> Any:
                mean, log_variance = self.network(x)
                return base.ModelOutput(embedding=mean, log_covariance=log_variance)

        class OwnDecoder(nets.BaseDecoder):  # type: ignore[name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.network = Decoder()

            def forward(self, z: Tensor) -> Any:
                return base.ModelOutput(reconstruction=torch.sigmoid(self.network(z)).view(-1, 1, 24, 24))

        config = models.VAEConfig(input_dim=(1, 24, 24), latent_dim=2, reconstruction_loss="bce")
        self.model = models.VAE(config, encoder=OwnEncoder(), decoder=OwnDecoder()).to(device)
        copy_weights(model.parameters(), self.parameters())

    def parameters(self) -> list[nn.Parameter]:
        return [*self.model.encoder.parameters(), *self.model.decoder.parameters()]

    def loss(self, images: Tensor) -> Tensor:
        return self.model({"data": images}).loss * len(images)  # pythae's is the mean over the batch

    def train(self, images: Tensor, batch_size: int, steps: int) -> None:
        datasets, trainers = load("pythae.data.datasets"), load("pythae.trainers")
        callbacks = load("pythae.trainers.training_callbacks")
        logging.getLogger("pythae.trainers.base_trainer.base_trainer").setLevel(logging.ERROR)
        count = iter(range(1, steps + 1))

        class Stop(callbacks.TrainingCallback):  # type: ignore[name-defined]
            def on_train_step_end(self, training_config: Any, **kwargs: Any) -> None:
                if next(count) == steps:
                    raise _EnoughError

        with tempfile.TemporaryDirectory() as folder:
            config = trainers.BaseTrainerConfig(
                output_dir=folder,
                per_device_train_batch_size=batch_size,
                learning_rate=LEARNING_RATE,
                num_epochs=1 + steps * batch_size // len(images),
                no_cuda=self.device.type == "cpu",
            )
            dataset = datasets.BaseDataset(images, torch.zeros(len(images)))
            trainer = trainers.BaseTrainer(self.model, dataset, training_config=config, callbacks=[Stop()])
            try:
                trainer.train()
            except _EnoughError:
                return
            raise RuntimeError(f"pythae's trainer ended before step {steps}")


class Pyro(_Networks):
    """Pyro's SVI with its Adam, model and guide as in its tutorial on variational auto-encoders.

    `elbo` is "Trace_ELBO", the tutorial's, whose divergence is sampled, or "TraceMeanField_ELBO", which takes the
    closed form of the divergence as the other contestants do. Checks of the distributions' arguments are off.
    """

    def __init__(self, model: nn.Module, device: torch.device, elbo: str = "Trace_ELBO") -> None:
        super().__init__(model, device)
        self.pyro, self.infer, self.optim = load("pyro"), load("pyro.infer"), load("pyro.optim")
        self.distributions = load("pyro.distributions")
        self.distributions.enable_validation(False)
        self.elbo = getattr(self.infer, elbo)()

    def _model(self, x: Tensor) -> None:
        self.pyro.module("decoder", self.decoder)
        with self.pyro.plate("data", len(x)):
            standard = self.distributions.Normal(x.new_zeros(len(x), 2), x.new_ones(len(x), 2))
            z = self.pyro.sample("latent", standard.to_event(1))
            pixels = self.distributions.Bernoulli(torch.sigmoid(self.decoder(z)), validate_args=False)
            self.pyro.sample("obs", pixels.to_event(1), obs=x.flatten(1))

    def _guide(self, x: Tensor) -> None:
        self.pyro.module("encoder", self.encoder)
        with self.pyro.plate("data", len(x)):
            mean, log_variance = self.encoder(x)
            posterior = self.distributions.Normal(mean, torch.exp(0.5 * log_variance))
            self.pyro.sample("latent", posterior.to_event(1))

    def loss(self, images: Tensor) -> Tensor:
        self.pyro.clear_param_store()
        return torch.as_tensor(self.elbo.loss(self._model, self._guide, images))

    def train(self, images: Tensor, batch_size: int, steps: int) -> None:
        self.pyro.clear_param_store()
        svi = self.infer.SVI(self._model, self._guide, self.optim.Adam({"lr": LEARNING_RATE}), loss=self.elbo)
        batches = endless(images, batch_size)
        for _ in range(steps):
            svi.step(next(batches).to(self.device))


def load(name: str) -> ModuleType:
    """Import a peer's module, which is there only in the benchmark's own environment."""
    return importlib.import_module(name)


# what runs here


def configuration(**changes: Any) -> TrainingConfig:
    """Return the article's configuration with `changes`."""
    return dataclasses.replace(TrainingConfig.article(), **changes)


def precisions(device: torch.device) -> list[str]:
    """Return the precisions to ask for: TF32 only where the device has it, the others everywhere."""
    has_tf32 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return ["float32", "tf32", "bfloat16"] if has_tf32 else ["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Builder:
    """How to build a contestant, in whatever process: its class, its keywords, and the peer that it needs."""

    kind: Callable[..., Contestant]
    keywords: dict[str, Any] = dataclasses.field(default_factory=dict)
    peer: str | None = None

    def __call__(self, model: nn.Module, device: torch.device) -> Contestant:
        return self.kind(model, device, **self.keywords)

    def ran_in(self, device: torch.device) -> str:
        """Return the precision in which the matrix products run."""
        return effective_precision(self.keywords.get("precision", "float32"), device)


def contestants(device: torch.device) -> dict[str, Builder]:
    """Return how to build what can run on `device`, by name."""
    builders: dict[str, Builder] = {"plain loop": Builder(Plain)}
    graphs = (True, False) if device.type == "cuda" else (False,)
    for precision, graph in itertools.product(precisions(device), graphs):
        name = f"dvae_lib {precision}{', graph' if graph else ''}"
        builders[name] = Builder(Library, {"precision": precision, "graph": graph})
    if available("pythae.trainers") and device.type in ("cpu", "cuda"):
        builders["pythae"] = Builder(Pythae, {}, "pythae.trainers")
    if available("pyro"):
        for elbo in ("Trace_ELBO", "TraceMeanField_ELBO"):
            builders[f"pyro {elbo}"] = Builder(Pyro, {"elbo": elbo}, "pyro")
    return builders


def available(name: str) -> bool:
    try:
        load(name)
    except ImportError:
        return False
    return True


@torch.no_grad()
def draw_losses(contestant: Contestant, images: Tensor, draws: int = 40) -> Tensor:
    """Return the contestant's loss of the batch, in nats per image, at `draws` draws of the codes, (draws,)."""
    return torch.stack([contestant.loss(images).double().cpu() for _ in range(draws)]) / len(images)


def check_same(name: str, contestant: Contestant, images: Tensor, ours: Tensor) -> float:
    """Raise an AssertionError unless the contestant has the library's parameters and objective.

    `ours` are the library's losses at equal weights, by `draw_losses`. The means may differ by five standard errors.
    Returns the contestant's mean loss, in nats per image.
    """
    count = sum(parameter.numel() for parameter in contestant.parameters())
    assert count == PARAMETERS, f"{name} has {count} parameters, not {PARAMETERS}"
    theirs = draw_losses(contestant, images, len(ours))
    error = ((ours.var() + theirs.var()) / len(ours)).sqrt()
    assert (ours.mean() - theirs.mean()).abs() <= 5 * error, (
        f"{name}: {theirs.mean():.4f} nats per image where the library has {ours.mean():.4f} +- {error:.4f}"
    )
    return float(theirs.mean())


def check_learns(
    name: str, contestant: Contestant, images: Tensor, device: torch.device, batch_size: int = 16, steps: int = 60
) -> float:
    """Raise an AssertionError unless `steps` steps halve the loss; return the loss, in nats per image, after them."""
    torch.manual_seed(0)
    library, losses = Library(mlp_vae(), device), []
    for count in (0, steps):
        if count:
            contestant.train(images, batch_size, count)
        copy_weights(contestant.parameters(), library.parameters())
        losses.append(float(draw_losses(library, images.to(device), 1)))
    assert losses[1] < losses[0] / 2, f"{name} does not learn: {losses[0]:.1f}, then {losses[1]:.1f} nats per image"
    return losses[1]
