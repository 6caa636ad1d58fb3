"""Explorers of noise and code that run in the page, with and without a kernel.

The networks' weights travel in the page's widget state, once, as 8-bit integers. The front end, widgets.mjs, encodes,
samples, decodes and draws; its controls are ipywidgets joined to it in the browser. Nothing waits for Python.

Explained in the chapter "Play: noise and code".
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import torch
import traitlets
from anywidget import AnyWidget
from torch import Tensor

from dvae_lib._checks import check_integer, check_number
from dvae_lib.checkpoints import load_checkpoint
from dvae_lib.data import IMAGE_SIZE, POSITIONS, all_squares
from dvae_lib.models import VariationalAutoencoder, mlp_vae
from dvae_lib.noise import BernoulliNoise
from dvae_lib.training import TrainingConfig, train

LEVELS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)  # the training noise of the shipped networks
NOISES = ("flip", "mask", "salt and pepper", "Gaussian")  # of the encoder's input, in the front end's order
HIDDEN_SIZE = 128  # of the shipped networks
MAX_SEED = 9999
LIMIT = 4.0  # the code planes reach from -LIMIT to LIMIT
_LINEAR = ("encoder.1", "encoder.3", "encoder.5.mean", "encoder.5.log_variance", "decoder.0", "decoder.2", "decoder.4")
_FOLDER = Path(__file__).parent


class Networks(ipywidgets.Widget):
    """The networks that the explorers of a page share, their weights rounded to 8 bits.

    Each row of a weight matrix is a scale, a 32-bit float, times integers from -127 to 127; biases stay 32-bit
    floats. Page and `model` compute with the same numbers.

    Args:
        models: for each level of training noise p, in [0, 1], a model of `mlp_vae` for squares, with a code of two
            entries; all of the same hidden size.

    Raises:
        TypeError, ValueError: no models, a level outside [0, 1], or a model of another kind.

    Explained in the chapter "Play: noise and code".
    """

    levels = traitlets.List(traitlets.Float()).tag(sync=True)
    shapes = traitlets.List(traitlets.List(traitlets.Int())).tag(sync=True)  # (rows, columns) of the layers of _LINEAR
    weights = traitlets.Bytes().tag(sync=True)

    def __init__(self, models: Mapping[float, VariationalAutoencoder]) -> None:
        if not isinstance(models, Mapping):
            raise TypeError(f"models must map levels of training noise to models, got {type(models).__name__}")
        if not models:
            raise ValueError("models must hold at least one model, got none")
        levels = sorted(check_number("models", level, 0, 1) for level in models)
        for model in models.values():
            _check_model(model)
        self.hidden_size: int = next(iter(models.values())).configuration["hidden_size"]
        if any(model.configuration["hidden_size"] != self.hidden_size for model in models.values()):
            raise ValueError("models must all have the same hidden_size")
        state = models[levels[0]].state_dict()
        super().__init__(
            levels=levels,
            shapes=[list(state[f"{name}.weight"].shape) for name in _LINEAR],
            weights=b"".join(_pack(models[level]) for level in levels),
        )

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], levels: Iterable[float] = LEVELS, hidden_size: int = HIDDEN_SIZE
    ) -> Networks:
        """Read the shipped networks `explorer-p00.safetensors`, ... of these levels of training noise.

        Args:
            folder: where they lie, conventionally "../weights".
            levels: which ones, each a whole percentage in [0, 1].
            hidden_size: the width that they were built with.

        Raises:
            FileNotFoundError: one of them is not there.
            TypeError, ValueError: a level is not in [0, 1], or a file is damaged or of another model.
        """
        models = {}
        for level in levels:
            p = check_number("levels", level, 0, 1)
            model = _build(hidden_size, p)
            load_checkpoint(Path(folder) / f"explorer-p{round(100 * p):02d}.safetensors", model)
            models[p] = model.eval()
        return cls(models)

    def model(self, level: float) -> VariationalAutoencoder:
        """Return the model trained with noise `level`, with exactly the weights of the page, in eval mode.

        Raises:
            ValueError: there is none of that level.
        """
        size = len(self.weights) // len(self.levels)
        first = size * self.index(level)
        model = _build(self.hidden_size, level)
        model.load_state_dict(_unpack(self.weights[first : first + size], self.shapes))
        return model.eval()

    def index(self, level: float) -> int:
        """Return the place of the network trained with noise `level`, or raise a ValueError."""
        if level not in self.levels:
            raise ValueError(f"level must be one of {_listed(self.levels)}, got {level!r}")
        return self.levels.index(level)

    def __repr__(self) -> str:
        return f"Networks(p = {_listed(self.levels)})"


def _build(hidden_size: int, p: float) -> VariationalAutoencoder:
    """Build a VAE, or a DVAE for p > 0, and leave the caller's random numbers as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return mlp_vae(hidden_size=hidden_size, noise=BernoulliNoise(p) if p else None)


def _check_model(model: object) -> None:
    if not isinstance(model, VariationalAutoencoder):
        raise TypeError(f"models must hold VariationalAutoencoders, got {type(model).__name__}")
    wanted = {"builder": "mlp_vae", "image_shape": [1, IMAGE_SIZE, IMAGE_SIZE], "latent_size": 2}
    for key, value in wanted.items():
        if model.configuration.get(key) != value:
            raise ValueError(f"models must have {key} = {value}, got {model.configuration.get(key)}")


def _pack(model: VariationalAutoencoder) -> bytes:
    """Return the rows' scales, the biases and the rounded weights of each linear layer, one after the other."""
    state = {name: tensor.detach().cpu().float() for name, tensor in model.state_dict().items()}
    parts = []
    for name in _LINEAR:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]  # (rows, columns), (rows,)
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise ValueError(f"models must have finite weights, got one in {name} that is not")
        scale = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127  # (rows,)
        integers = (weight / scale[:, None]).round().to(torch.int8)
        parts += [scale.numpy().astype("<f4"), bias.numpy().astype("<f4"), integers.numpy().T]  # by columns
    return b"".join(part.tobytes() for part in parts)


def _unpack(data: bytes, shapes: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Return the state that `_pack` wrote, by name."""
    state, offset = {}, 0
    for name, (rows, columns) in zip(_LINEAR, shapes, strict=True):
        floats = np.frombuffer(data, "<f4", 2 * rows, offset).astype(np.float32)
        offset += 8 * rows
        integers = np.frombuffer(data, np.int8, rows * columns, offset).astype(np.float32)
        offset += rows * columns
        weight = torch.from_numpy(integers).reshape(columns, rows).T
        state[f"{name}.weight"] = weight * torch.from_numpy(floats[:rows, None])
        state[f"{name}.bias"] = torch.from_numpy(floats[rows:])
    return state


def _listed(levels: Iterable[float]) -> str:
    return ", ".join(f"{level:g}" for level in levels)


class _View(AnyWidget):
    """What one explorer draws: the state that its controls set, in the page and in Python."""

    _esm = _FOLDER / "widgets.mjs"
    _css = _FOLDER / "widgets.css"
    kind = traitlets.Unicode().tag(sync=True)
    networks = traitlets.Instance(Networks).tag(sync=True, **ipywidgets.widget_serialization)
    compared = traitlets.List(traitlets.Int()).tag(sync=True)  # places of the networks shown side by side
    limit = traitlets.Float(LIMIT).tag(sync=True)

    def __repr__(self) -> str:
        return f"view of {self.kind.replace('_', ' ')}"


def _corner() -> traitlets.Int:
    return traitlets.Int(0, min=0, max=POSITIONS - 1).tag(sync=True)


class _LatentMapView(_View):
    z1 = traitlets.Float(0.0, min=-LIMIT, max=LIMIT).tag(sync=True)
    z2 = traitlets.Float(0.0, min=-LIMIT, max=LIMIT).tag(sync=True)
    manifold = traitlets.Bool(True).tag(sync=True)
    dots = traitlets.Bool(True).tag(sync=True)


class _PictureView(_View):
    row = _corner()
    column = _corner()
    drawing = traitlets.Unicode("").tag(sync=True)  # 144 hexadecimal digits, or empty for the square
    level = traitlets.Float(0.1, min=0, max=1).tag(sync=True)
    seed = traitlets.Int(1, min=0, max=MAX_SEED).tag(sync=True)

    @traitlets.validate("drawing")
    def _check_drawing(self, proposal: dict[str, Any]) -> str:
        if not re.fullmatch("([0-9a-f]{144})?", proposal["value"]):
            raise traitlets.TraitError(f"drawing must be 144 hexadecimal digits or empty, got {proposal['value']!r}")
        return proposal["value"]


class _DenoiseView(_PictureView):
    kind_of_noise = traitlets.Int(0, min=0, max=len(NOISES) - 1).tag(sync=True)
    draw_code = traitlets.Bool(False).tag(sync=True)


class _TrainingNoiseView(_PictureView):
    index = traitlets.Int(0, min=0).tag(sync=True)

    @traitlets.validate("index")
    def _check_index(self, proposal: dict[str, Any]) -> int:
        if proposal["value"] >= len(self.networks.levels):
            raise traitlets.TraitError(f"index must be below {len(self.networks.levels)}, got {proposal['value']}")
        return proposal["value"]


class _InterpolateView(_View):
    first_row = _corner()
    first_column = _corner()
    last_row = _corner()
    last_column = _corner()
    position = traitlets.Int(50, min=0, max=100).tag(sync=True)  # per cent of the way


class _TrainAgainView(_View):
    steps = traitlets.Int().tag(sync=True)


class _Explorer(ipywidgets.VBox):
    """Controls above a view, joined in the browser."""

    def __init__(self, view: _View, controls: Mapping[str, ipywidgets.Widget]) -> None:
        self.view = view
        self.controls = dict(controls)
        self.links = []
        for name, control in controls.items():
            control.tooltip = control.description
            trait = "index" if hasattr(control, "index") else "value"  # of a choice, the place of what is chosen
            self.links.append(ipywidgets.jslink((control, trait), (view, name)))
        box = ipywidgets.Box(list(controls.values()))
        box.add_class("dvae-controls")
        super().__init__([box, view] if controls else [view])
        self.add_class("dvae-explorer")

    def _compared(self) -> str:
        levels = [self.view.networks.levels[index] for index in self.view.compared]
        return f"p = {_listed(levels)}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._compared()})"


def _compared(networks: object, levels: Iterable[float]) -> dict[str, Any]:
    """Return the traits of a view that compares the networks of these levels."""
    networks = _check_networks(networks)
    return {"networks": networks, "compared": [networks.index(level) for level in levels], "limit": LIMIT}


def _check_networks(networks: object) -> Networks:
    if not isinstance(networks, Networks):
        raise TypeError(f"networks must be Networks, got {type(networks).__name__}")
    return networks


def _check_square(name: str, square: object, prefix: str = "") -> dict[str, int]:
    """Return the square's row and column, each under the name of its trait."""
    if not isinstance(square, Sequence) or len(square) != 2:
        raise TypeError(f"{name} must be (row, column), got {square!r}")
    row, column = (check_integer(name, value, 0) for value in square)
    if max(row, column) >= POSITIONS:
        raise ValueError(f"{name} must have row and column from 0 to {POSITIONS - 1}, got {square!r}")
    return {f"{prefix}row": row, f"{prefix}column": column}


def _slider(description: str, value: float, low: float, high: float, step: float = 1) -> ipywidgets.Widget:
    if isinstance(step, int):
        return ipywidgets.IntSlider(value=value, min=low, max=high, step=step, description=description)
    return ipywidgets.FloatSlider(value=value, min=low, max=high, step=step, description=description)


def _square_sliders(corner: Mapping[str, int]) -> dict[str, ipywidgets.Widget]:
    return {name: _slider(name.replace("_", " "), value, 0, POSITIONS - 1) for name, value in corner.items()}


def _seed_box(seed: int) -> ipywidgets.Widget:
    return ipywidgets.BoundedIntText(value=seed, min=0, max=MAX_SEED, description="seed")


class LatentMap(_Explorer):
    """Drag a point over the code plane and see what each network decodes there.

    The manifold is the backdrop; the dots are the codes of the 256 squares, coloured by the square's place.

    Args:
        networks: what to decode with.
        code: where the point starts, each entry in [-4, 4].
        levels: the training noise of the networks compared.

    Raises:
        TypeError, ValueError: an argument of a wrong type or out of range; no network of such a level.

    Explained in the chapter "Play: noise and code".
    """

    def __init__(
        self, networks: Networks, code: Sequence[float] = (0.6, -0.4), levels: Sequence[float] = (0.0, 0.1)
    ) -> None:
        traits = _compared(networks, levels)
        if not isinstance(code, Sequence) or len(code) != 2:
            raise TypeError(f"code must have two entries, got {code!r}")
        z1, z2 = (check_number("code", value, -LIMIT, LIMIT) for value in code)
        controls = {
            "z1": _slider("code z\u2081", z1, -LIMIT, LIMIT, 0.01),
            "z2": _slider("code z\u2082", z2, -LIMIT, LIMIT, 0.01),
            "manifold": ipywidgets.Checkbox(value=True, description="manifold", indent=False),
            "dots": ipywidgets.Checkbox(value=True, description="codes of the 256 squares", indent=False),
        }
        super().__init__(_LatentMapView(kind="latent_map", z1=z1, z2=z2, **traits), controls)


class Denoise(_Explorer):
    """Corrupt a square, or a picture drawn by hand, and see what each network makes of it.

    Args:
        networks: what to encode and decode with.
        square: row and column of the square's corner, each from 0 to 15.
        noise: one of `NOISES`.
        level: the probability that a pixel is struck, or the standard deviation of Gaussian noise, in [0, 0.5].
        seed: of the noise and of the code drawn from the posterior, from 0 to 9999.
        levels: the training noise of the networks compared.

    Raises:
        TypeError, ValueError: an argument of a wrong type or out of range; no network of such a level.

    Explained in the chapter "Play: noise and code".
    """

    def __init__(
        self,
        networks: Networks,
        square: Sequence[int] = (4, 10),
        noise: str = "flip",
        level: float = 0.1,
        seed: int = 1,
        levels: Sequence[float] = (0.0, 0.1),
    ) -> None:
        traits = _compared(networks, levels)
        if noise not in NOISES:
            raise ValueError(f"noise must be one of {', '.join(NOISES)}, got {noise!r}")
        corner = _check_square("square", square)
        view = _DenoiseView(
            kind="denoise",
            kind_of_noise=NOISES.index(noise),
            level=check_number("level", level, 0, 0.5),
            seed=check_integer("seed", seed, 0, MAX_SEED),
            **corner,
            **traits,
        )
        controls = {
            **_square_sliders(corner),
            "kind_of_noise": ipywidgets.Dropdown(options=NOISES, value=noise, description="noise"),
            "level": _slider("level", level, 0, 0.5, 0.01),
            "seed": _seed_box(seed),
            "draw_code": ipywidgets.Checkbox(description="draw the code, do not take the mean", indent=False),
        }
        super().__init__(view, controls)


class TrainingNoise(_Explorer):
    """Switch among networks trained with more and more noise, and see manifold and reconstruction change.

    Args:
        networks: what to switch among.
        square: row and column of the square's corner, each from 0 to 15.
        level: the probability that a pixel of the input is flipped, in [0, 0.5].
        seed: of the noise, from 0 to 9999.
        start: the training noise of the network shown first.

    Raises:
        TypeError, ValueError: an argument of a wrong type or out of range; no network of that level.

    Explained in the chapter "Play: noise and code".
    """

    def __init__(
        self,
        networks: Networks,
        square: Sequence[int] = (4, 10),
        level: float = 0.1,
        seed: int = 1,
        start: float = 0.0,
    ) -> None:
        traits = _compared(networks, _check_networks(networks).levels)
        corner = _check_square("square", square)
        view = _TrainingNoiseView(
            kind="training_noise",
            level=check_number("level", level, 0, 0.5),
            seed=check_integer("seed", seed, 0, MAX_SEED),
            index=networks.index(start),
            **corner,
            **traits,
        )
        options = [(f"{p:g}", p) for p in networks.levels]
        controls = {
            "index": ipywidgets.SelectionSlider(options=options, value=start, description="training p"),
            "level": _slider("input noise", level, 0, 0.5, 0.01),
            **_square_sliders(corner),
            "seed": _seed_box(seed),
        }
        super().__init__(view, controls)


class Interpolate(_Explorer):
    """Go from one square to another, on the straight line between their codes and between their pixels.

    Args:
        networks: what to encode and decode with.
        first: row and column of the first square's corner, each from 0 to 15.
        last: the same, of the last square.
        position: how far to go, in per cent.
        levels: the training noise of the networks compared.

    Raises:
        TypeError, ValueError: an argument of a wrong type or out of range; no network of such a level.

    Explained in the chapter "Play: noise and code".
    """

    def __init__(
        self,
        networks: Networks,
        first: Sequence[int] = (2, 2),
        last: Sequence[int] = (12, 13),
        position: int = 50,
        levels: Sequence[float] = (0.0, 0.1),
    ) -> None:
        traits = _compared(networks, levels)
        corners = _check_square("first", first, "first_") | _check_square("last", last, "last_")
        check_integer("position", position, 0, 100)
        view = _InterpolateView(kind="interpolate", position=position, **corners, **traits)
        controls = {
            **_square_sliders(corners),
            "position": _slider("per cent", position, 0, 100),
        }
        super().__init__(view, controls)


class TrainAgain(_Explorer):
    """Train a network at a noise of the reader's choice, and explore the result. Needs a kernel, hidden without one.

    The run happens in a thread, on the CPU; when it is done, a `LatentMap` and a `Denoise` of the VAE and the new
    network appear below. While it runs, PyTorch's default generator is in use: do not draw from it elsewhere.

    Args:
        networks: of which that without training noise is compared with the new one.
        steps: of the run, each with a batch of 64 squares.

    Raises:
        TypeError, ValueError: an argument of a wrong type or out of range; no network without training noise.

    Explained in the chapter "Play: noise and code".
    """

    def __init__(self, networks: Networks, steps: int = 4000) -> None:
        traits = _compared(networks, [0.0])
        self.config = TrainingConfig(
            steps=check_integer("steps", steps),
            batch_size=64,
            learning_rate=2e-3,
            schedule="cosine",
            hidden_size=networks.hidden_size,
        )
        self.model: VariationalAutoencoder | None = None  # the last one trained
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._done, self._text = 0, f"{steps} steps"
        self._error: Exception | None = None
        super().__init__(_TrainAgainView(kind="train_again", steps=steps, **traits), {})
        self.view.on_msg(self._answer)

    @property
    def running(self) -> bool:
        """Whether a run is under way."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, p: float) -> None:
        """Start to train with bit flips of probability `p`, in [0.01, 0.5].

        Raises:
            RuntimeError: a run is under way.
            TypeError, ValueError: `p` is not a number or out of range.
        """
        p = check_number("p", p, 0.01, 0.5)
        if self.running:
            raise RuntimeError("a run is under way: stop it, or wait for its end")
        self._stop.clear()
        self._error = None
        self._thread = threading.Thread(target=self._run, args=(p,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the run after the step at hand; what is trained by then can be explored."""
        self._stop.set()

    def wait(self) -> None:
        """Wait for the end of the run, and raise the error that it met, if any."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self, p: float) -> None:
        try:
            text = self._train(p)
        except Exception as error:  # nobody would see it in a thread
            self._error, text = error, f"{type(error).__name__}: {error}"
        self._report(False, text)

    def _train(self, p: float) -> str:
        """Train a model, show its explorers, and return what to say about it."""
        self._done = 0
        model = _build(self.config.hidden_size, p)

        def count(*_: object) -> None:
            if self._stop.is_set():
                raise KeyboardInterrupt  # on which `train` ends early and keeps what it has
            self._done += 1
            if self._done % self.config.report_every == 0:
                self._report(True, f"p = {p:g}: step {self._done} of {self.config.steps}")

        hook = model.register_forward_pre_hook(count)
        protocol = train(model, all_squares(), self.config, device="cpu", progress=False)
        hook.remove()
        if len(protocol) == 0:
            return "stopped before the first step"
        self._explore(p, model)
        reconstruction, kl = protocol.reconstruction[-100:].mean(), protocol.kl[-100:].mean()
        return (
            f"p = {p:g}, {len(protocol)} steps: reconstruction {reconstruction:.1f}, divergence {kl:.1f} nats per image"
        )

    def _explore(self, p: float, model: VariationalAutoencoder) -> None:
        """Show explorers of the new network, in place of the last one's."""
        self.model = model
        networks = Networks({0.0: self.view.networks.model(0.0), p: model})
        self.children = (self.view, *(kind(networks, levels=networks.levels) for kind in (LatentMap, Denoise)))

    def _answer(self, _: object, message: dict[str, Any], buffers: object) -> None:
        """Do what the page asks for; any answer tells it that there is a kernel."""
        if message.get("kind") == "train" and not self.running:
            self.start(message["p"])
        elif message.get("kind") == "stop":
            self.stop()
        self._report(self.running, self._text)

    def _report(self, running: bool, text: str) -> None:
        self._text = text
        self.view.send({"kind": "state", "running": running, "done": self._done, "text": text})

    def __repr__(self) -> str:
        return f"TrainAgain({self.config.steps} steps)"
