"""The explorer that trains: a run in a thread, which the page starts, follows and stops."""

from __future__ import annotations

import math
import threading
from typing import Any

import torch
from torch import nn

from dvae_lib._checks import check_integer, check_number
from dvae_lib.configuration import Protocol, TrainingConfig
from dvae_lib.data import all_squares
from dvae_lib.models import VariationalAutoencoder
from dvae_lib.training import train
from dvae_lib.widgets.explorers import Denoise, Explorer, LatentMap, close_widgets, compared
from dvae_lib.widgets.networks import Networks, empty_model
from dvae_lib.widgets.views import TrainAgainView


class TrainAgain(Explorer):
    """Train a network at a noise of the reader's choice, and explore the result. Needs a kernel, hidden without one.

    The run happens in a thread, on the CPU, with random numbers of its own; when it is done, a `LatentMap` and a
    `Denoise` of the VAE and the new network appear below, in place of those of the run before.

    Args:
        networks: of which that without training noise is compared with the new one.
        steps: of the run, each with a batch of 64 squares.

    Raises:
        TypeError, ValueError: an argument of a wrong type or out of range; no network without training noise.
    """

    def __init__(self, networks: Networks, steps: int = 4000) -> None:
        traits = compared(networks, [0.0])
        self.config = TrainingConfig(
            steps=check_integer("steps", steps),
            batch_size=64,
            learning_rate=2e-3,
            schedule="cosine",
            hidden_size=networks.hidden_size,
        )
        self.model: VariationalAutoencoder | None = None  # the last one trained
        self._shown: list[Explorer] = []  # of that model
        # The page's messages may come in another thread than cells run in. Whoever changes or tells the state of the
        # run holds the lock, so that the last that the page hears is what holds.
        self._lock = threading.RLock()
        self._running, self._done, self._text = False, 0, f"{steps} steps"
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        super().__init__(TrainAgainView(kind="train_again", steps=steps, **traits), {})
        self.view.on_msg(self._answer)

    @property
    def running(self) -> bool:
        """Whether a run is under way: from `start` until the new network's explorers are shown."""
        return self._running

    def start(self, p: float) -> None:
        """Start to train with bit flips of probability `p`, in [0.01, 0.5].

        Raises:
            RuntimeError: a run is under way.
            TypeError, ValueError: `p` is not a number or out of range.
        """
        p = check_number("p", p, 0.01, 0.5)
        with self._lock:
            if self._running:
                raise RuntimeError("a run is under way: stop it, or wait for its end")
            self._stop.clear()
            thread = threading.Thread(target=self._run, args=(p,), daemon=True)
            thread.start()  # it waits for the lock before it tells anything
            self._thread, self._running = thread, True
            self._tell(0, f"p = {p:g}: step 0 of {self.config.steps}")

    def stop(self) -> None:
        """End the run at its next report; what is trained by then can be explored."""
        self._stop.set()

    def wait(self) -> None:
        """Wait for the end of the run, and raise the error that it met, if any."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self, p: float) -> None:
        """Train, show the explorers, and end with the lock held: a click comes before the end or after it."""
        error = None
        try:
            text = self._train(p)
        except Exception as raised:  # nobody would see it in a thread
            error, text = raised, f"{type(raised).__name__}: {raised}"
        with self._lock:
            self._error, self._running = error, False
            self._tell(self._done, text)

    def _train(self, p: float) -> str:
        """Train a model, show its explorers, and return what to say about it."""

        def on_report(done: int, rows: Protocol) -> bool:
            self._tell(done, f"p = {p:g}: step {done} of {self.config.steps}")
            return self._stop.is_set()

        model = _new_model(self.config.hidden_size, p)
        protocol = train(model, all_squares(), self.config, device="cpu", progress=False, on_report=on_report)
        self._explore(p, model)
        reconstruction, kl = protocol.reconstruction[-100:].mean(), protocol.kl[-100:].mean()
        return (
            f"p = {p:g}, {len(protocol)} steps: reconstruction {reconstruction:.1f}, divergence {kl:.1f} nats per image"
        )

    def _explore(self, p: float, model: VariationalAutoencoder) -> None:
        """Show explorers of the new network, and close the last one's."""
        self.model = model
        networks = Networks({0.0: self.view.networks.model(0.0), p: model})
        last, self._shown = self._shown, [kind(networks, levels=networks.levels) for kind in (LatentMap, Denoise)]
        self.children = (self.view, *self._shown)
        close_widgets(*last)

    def _answer(self, _: object, message: dict[str, Any], buffers: object) -> None:
        """Do what the page asks for. During a run a click on "Train" does nothing but to get that run's state.

        Any answer tells the page that there is a kernel.
        """
        with self._lock:
            if message.get("kind") == "train" and not self._running:
                self.start(message["p"])
            elif message.get("kind") == "stop":
                self.stop()
            self._tell(self._done, self._text)

    def _tell(self, done: int, text: str) -> None:
        with self._lock:
            self._done, self._text = done, text
            self.view.send({"kind": "state", "running": self._running, "done": done, "text": text})

    def __repr__(self) -> str:
        return f"TrainAgain({self.config.steps} steps)"


def _new_model(hidden_size: int, p: float) -> VariationalAutoencoder:
    """Build a model with the weights that `mlp_vae` draws after `torch.manual_seed(0)`, from a generator of its own."""
    model = empty_model(hidden_size, p)
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, math.sqrt(5), generator=generator)
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return model
