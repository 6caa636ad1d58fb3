"""Two explorers of the networks that the last chapters develop: a code of bits, and denoising at all levels.

Explained in the chapter "Play: noise and code".
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets
import torch
import traitlets
from torch import Tensor
from torch.nn import functional

from dvae_lib.data import IMAGE_SIZE, POSITIONS, all_squares
from dvae_lib.runs import files
from dvae_lib.widgets.explorers import Explorer, _check, _check_square, _seed_box, _sliders
from dvae_lib.widgets.networks import pack_layers, unpack_layers
from dvae_lib.widgets.views import View, front_end

PIXELS = IMAGE_SIZE**2
BITS = 12  # of a code
LEVELS = 65  # of the noise, from LOW to HIGH, each larger than the one before by the same factor
LOW, HIGH = 0.3, 20.0  # standard deviations


class Layers(ipywidgets.Widget):
    """The linear layers of one network, their weights rounded to 8 bits as those of `Networks`.

    Args:
        state: the network's weights and biases, by name: "encoder.1.weight" say. The layers come in the order of
            their names, the decoder's last.

    Raises:
        TypeError, ValueError: no layers, a layer without a bias, or weights that are not finite.
    """

    shapes = traitlets.List(traitlets.List(traitlets.Int())).tag(sync=True)  # (rows, columns) of each layer
    weights = traitlets.Bytes().tag(sync=True)

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        if not isinstance(state, Mapping):
            raise TypeError(f"state must map names to tensors, got {type(state).__name__}")
        found = {name.rpartition(".")[0] for name in state}
        names = sorted(found, key=lambda name: (name.startswith("decoder"), name))
        if not names or state.keys() != {f"{name}.{part}" for name in names for part in ("weight", "bias")}:
            raise ValueError(f"state must hold weight and bias of at least one layer, got {', '.join(state)}")
        super().__init__(
            shapes=[list(state[f"{name}.weight"].shape) for name in names],
            weights=pack_layers(state, names, "state"),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Layers:
        """Read the layers of a shipped network, "../weights/explorer-bits.safetensors" say.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: the file is damaged, or no checkpoint of a network of linear layers.
        """
        return cls(files.read(path)[0])

    def answer(self, inputs: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Return what the layers from `first` to before `last` make of `inputs`, with a ReLU between two layers.

        Args:
            inputs: (n, columns of the first layer).

        Returns: (n, rows of the last layer), computed with exactly the weights of the page.
        """
        layers = unpack_layers(self.weights, self.shapes)[first:last]
        for place, (weight, bias) in enumerate(layers):
            inputs = functional.linear(inputs.relu() if place else inputs, weight.to(inputs), bias.to(inputs))
        return inputs

    def __repr__(self) -> str:
        return f"Layers({' | '.join(f'{columns}-{rows}' for rows, columns in self.shapes)})"


class LayersView(View):
    """What an explorer of a single network draws."""

    _esm = front_end("further.mjs")
    networks = traitlets.Instance(Layers).tag(sync=True, **ipywidgets.widget_serialization)
    row = traitlets.Int(min=0, max=POSITIONS - 1).tag(sync=True)
    column = traitlets.Int(min=0, max=POSITIONS - 1).tag(sync=True)


class BitSwitchesView(LayersView):
    code = traitlets.Unicode(BITS * "0").tag(sync=True, pattern=f"[01]{{{BITS}}}")
    drawing = traitlets.Unicode("").tag(sync=True, pattern=f"([0-9a-f]{{{PIXELS // 4}}})?")  # empty for the square

    @traitlets.validate("code", "drawing")
    def _check_text(self, proposal: dict[str, Any]) -> str:
        name, value = proposal["trait"].name, proposal["value"]
        pattern = self.traits()[name].metadata["pattern"]
        if not re.fullmatch(pattern, value):
            raise traitlets.TraitError(f"{name} must be of the pattern {pattern}, got {value!r}")
        return value

    def subject(self) -> str:
        return f"{BITS} bits"


class NoiseLevelsView(LayersView):
    level = traitlets.Int(min=0, max=LEVELS - 1).tag(sync=True)  # place of the noise among the levels
    seed = traitlets.Int(min=0, max=9999).tag(sync=True)

    def deviation(self) -> float:
        """The standard deviation of the noise."""
        return standard_deviation(self.level)

    def guess(self, noisy: Tensor) -> Tensor:
        """The network's answer to noisy images of this level, (n, 576)."""
        return network_guess(self.networks, noisy, self.deviation())

    def subject(self) -> str:
        return f"{LEVELS} levels"


class BitSwitches(Explorer):
    """Set the twelve bits of a code by hand, and see what the encoder makes of a square.

    Args:
        network: the layers of a `bernoulli_vae` for squares with codes of twelve bits.
        code: what the switches say at first, twelve digits 0 or 1; None for the most probable code of the square.
        square: row and column of the square's corner, each from 0 to 15.

    Raises:
        TypeError, ValueError: an argument of a wrong type or out of range; a network of other sizes.
    """

    def __init__(self, network: Layers, code: str | None = None, square: Sequence[int] = (4, 10)) -> None:
        network = _check_layers(network, PIXELS, BITS, PIXELS)
        corner = _check_square(BitSwitchesView, "square", square)
        if code is None:
            image = all_squares()[[POSITIONS * corner["row"] + corner["column"]]].flatten(1)
            code = "".join("1" if logit >= 0 else "0" for logit in network.answer(image, last=3)[0])
        elif not isinstance(code, str) or not re.fullmatch(rf"[01]{{{BITS}}}", code):
            raise ValueError(f"code must be {BITS} digits 0 or 1, got {code!r}")
        view = BitSwitchesView(kind="bit_switches", networks=network, code=code, **corner)
        super().__init__(view, _sliders(view, ("row", "column")))


class NoiseLevels(Explorer):
    """Spoil a square with Gaussian noise of any level, and compare a network's guess with the exact posterior mean.

    Args:
        network: the layers of the network that the chapter `outlook` trains.
        level: place of the noise's standard deviation, 0.3 (20 / 0.3)^(level / 64), from 0 to 64.
        square: row and column of the square's corner, each from 0 to 15.
        seed: of the noise, from 0 to 9999.

    Raises:
        TypeError, ValueError: an argument of a wrong type or out of range; a network of other sizes.
    """

    def __init__(self, network: Layers, level: int = 32, square: Sequence[int] = (4, 10), seed: int = 1) -> None:
        view = NoiseLevelsView(
            kind="noise_levels",
            networks=_check_layers(network, PIXELS + 1, PIXELS),
            level=_check(NoiseLevelsView, "level", level),
            seed=_check(NoiseLevelsView, "seed", seed),
            **_check_square(NoiseLevelsView, "square", square),
        )
        super().__init__(view, {**_sliders(view, ("row", "column", "level")), "seed": _seed_box(view)})


def standard_deviation(level: int) -> float:
    """The standard deviation of the noise at this place among the levels."""
    return LOW * (HIGH / LOW) ** (level / (LEVELS - 1))


@torch.no_grad()
def network_guess(network: Layers, noisy: Tensor, std: float) -> Tensor:
    """Return the pixels' probabilities, (n, 576), that the network of all levels gives for noisy images, (n, 576)."""
    level = torch.full((len(noisy), 1), std, dtype=noisy.dtype)
    scaled = noisy / (level**2 + 0.1).sqrt()
    return network.answer(torch.cat([scaled, level.log()], 1)).sigmoid()


def _check_layers(network: object, *sizes: int) -> Layers:
    """Return `network` if it consists of stacks of three layers with these inputs and outputs."""
    if not isinstance(network, Layers):
        raise TypeError(f"network must be Layers, got {type(network).__name__}")
    ends = [[network.shapes[k][1], network.shapes[k + 2][0]] for k in range(0, len(network.shapes) - 2, 3)]
    if len(network.shapes) % 3 or ends != [list(pair) for pair in itertools.pairwise(sizes)]:
        raise ValueError(f"network must lead from {' to '.join(map(str, sizes))} in threes of layers, got {network!r}")
    return network
