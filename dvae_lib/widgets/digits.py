"""The explorers of handwritten digits: a map of codes, a way between two digits, and one that corrupts and restores.

The page starts from ten digits that no hand wrote: `_STROKES` says how a brush goes, since MNIST's images do not come
with the book. Explained in the chapter "Play: digits".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets
import numpy as np
import traitlets

from dvae_lib._checks import check_choice
from dvae_lib.widgets.explorers import Explorer, _check, _checkbox, _seed_box, _slider, compared_pair
from dvae_lib.widgets.networks import Networks
from dvae_lib.widgets.views import NOISES, NetworksView, front_end

SIZE = 28  # pixels, height and width
CODE = 50  # entries of the large networks' codes
LIMIT = 3.0  # of the map
_STROKES = (  # of each digit, from 0 on: corners (x, y), x to the right and y down, where the brush goes; "/" lifts it
    "14,5 17,6 19,9 20,14 19,18 17,21 14,23 11,22 9,19 8,14 9,9 11,6 14,5",
    "15,5 14,14 13,23",
    "9,9 11,6 15,5 18,7 18,11 15,15 11,19 8,22 14,21 20,22",
    "9,6 14,5 18,7 18,10 15,13 12,14 16,14 19,17 18,21 14,23 8,22",
    "10,5 9,10 9,14 14,14 19,13 / 19,5 18,13 17,23",
    "19,5 11,6 10,12 15,12 18,15 18,19 15,22 9,22",
    "17,5 13,8 10,13 9,18 11,22 15,22 18,19 17,16 14,15 10,18",
    "8,7 13,6 19,6 17,11 14,16 12,23",
    "18,7 14,5 10,7 11,11 17,16 18,20 14,23 10,20 12,15 17,11 18,7",
    "18,9 15,6 11,7 10,11 13,13 17,12 18,8 18,14 16,23",
)
_BRUSH = 1.3  # pixels: its radius


def draw(strokes: str) -> np.ndarray:
    """Return the picture, of zeros and ones, that a brush makes along `strokes`: (28, 28)."""
    y, x = np.indices((SIZE, SIZE)) + 0.5
    picture = np.zeros((SIZE, SIZE), np.uint8)
    for line in strokes.split(" / "):
        corners = np.array([corner.split(",") for corner in line.split()], float) + 0.5
        for start, way in zip(corners, np.diff(corners, axis=0), strict=False):
            share = np.clip(((x - start[0]) * way[0] + (y - start[1]) * way[1]) / (way @ way), 0, 1)
            picture |= np.hypot(x - start[0] - share * way[0], y - start[1] - share * way[1]) <= _BRUSH
    return picture


DIGITS = tuple(np.packbits(draw(strokes)).tobytes().hex() for strokes in _STROKES)  # as the page and a link have them


def _digit() -> traitlets.Int:
    return traitlets.Int(min=0, max=len(DIGITS) - 1).tag(sync=True)


class DigitView(NetworksView):
    """What an explorer of digits draws."""

    _esm = front_end("digits.mjs")
    digits = traitlets.List(list(DIGITS)).tag(sync=True)  # to start from, hexadecimal


class DigitMapView(DigitView):
    limit = traitlets.Float(LIMIT).tag(sync=True)
    z1 = traitlets.Float(min=-LIMIT, max=LIMIT).tag(sync=True)
    z2 = traitlets.Float(min=-LIMIT, max=LIMIT).tag(sync=True)
    manifold = traitlets.Bool().tag(sync=True)


class DigitInterpolateView(DigitView):
    limit = traitlets.Float(LIMIT).tag(sync=True)
    first_digit = _digit()
    last_digit = _digit()
    position = traitlets.Int(min=0, max=100).tag(sync=True)  # per cent of the way


class DigitDenoiseView(DigitView):
    digit = _digit()
    drawing = traitlets.Unicode("").tag(sync=True, pattern="([0-9a-f]{196})?")  # hexadecimal; empty for the digit
    level = traitlets.Float(min=0, max=0.5).tag(sync=True)
    seed = traitlets.Int(min=0, max=9999).tag(sync=True)
    kind_of_noise = traitlets.Int(min=0, max=len(NOISES) - 1).tag(sync=True)
    draw_code = traitlets.Bool().tag(sync=True)


class DigitMap(Explorer):
    """Drag a point over the plane of codes and see which digit each network paints there.

    Args:
        networks: what to decode with, for images of 28 by 28 pixels, with codes of two entries.
        code: where the point starts, each entry in [-3, 3].
        levels: the training noise of the two networks compared; None for those that there are.

    Raises:
        TypeError, ValueError: an argument of a wrong type or out of range; no network of such a level.
    """

    def __init__(
        self, networks: Networks, code: Sequence[float] = (0.5, -0.5), levels: Sequence[float] | None = None
    ) -> None:
        traits = _compared(networks, levels, 2)
        if not isinstance(code, Sequence) or len(code) != 2:
            raise TypeError(f"code must have two entries, got {code!r}")
        z1, z2 = (_check(DigitMapView, trait, value, "code") for trait, value in zip(("z1", "z2"), code, strict=True))
        view = DigitMapView(kind="digit_map", z1=z1, z2=z2, manifold=True, **traits)
        controls = {
            "z1": _slider(view, "z1", "code z\u2081"),
            "z2": _slider(view, "z2", "code z\u2082"),
            "manifold": _checkbox(view, "manifold", "manifold"),
        }
        super().__init__(view, controls)


class DigitInterpolate(Explorer):
    """Go from one digit to another, on the straight line between their codes and between their pixels.

    Args:
        networks: what to encode and decode with, for images of 28 by 28 pixels, with codes of two entries.
        first: the digit to start from.
        last: the digit to end with.
        position: how far to go, in per cent.
        levels: the training noise of the two networks compared; None for those that there are.

    Raises:
        TypeError, ValueError: an argument of a wrong type or out of range; no network of such a level.
    """

    def __init__(
        self,
        networks: Networks,
        first: int = 1,
        last: int = 0,
        position: int = 50,
        levels: Sequence[float] | None = None,
    ) -> None:
        traits = _compared(networks, levels, 2)
        view = DigitInterpolateView(
            kind="digit_interpolate",
            first_digit=_check(DigitInterpolateView, "first_digit", first, "first"),
            last_digit=_check(DigitInterpolateView, "last_digit", last, "last"),
            position=_check(DigitInterpolateView, "position", position),
            **traits,
        )
        names = {"first_digit": "first digit", "last_digit": "last digit", "position": "per cent"}
        super().__init__(view, {name: _slider(view, name, text) for name, text in names.items()})


class DigitDenoise(Explorer):
    """Corrupt a digit, or a picture drawn by hand, and see what each network makes of it.

    Args:
        networks: what to encode and decode with, for images of 28 by 28 pixels, with codes of fifty entries.
        digit: the digit to start from.
        noise: one of `NOISES`.
        level: the probability that a pixel is struck, or the standard deviation of Gaussian noise, in [0, 0.5].
        seed: of the noise and of the code drawn from the posterior, from 0 to 9999.
        levels: the training noise of the two networks compared; None for those that there are.

    Raises:
        TypeError, ValueError: an argument of a wrong type or out of range; no network of such a level.
    """

    def __init__(
        self,
        networks: Networks,
        digit: int = 3,
        noise: str = "flip",
        level: float = 0.1,
        seed: int = 1,
        levels: Sequence[float] | None = None,
    ) -> None:
        traits = _compared(networks, levels, CODE)
        check_choice("noise", noise, NOISES)
        view = DigitDenoiseView(
            kind="digit_denoise",
            digit=_check(DigitDenoiseView, "digit", digit),
            kind_of_noise=NOISES.index(noise),
            level=_check(DigitDenoiseView, "level", level),
            seed=_check(DigitDenoiseView, "seed", seed),
            draw_code=False,
            **traits,
        )
        controls = {
            "digit": _slider(view, "digit"),
            "kind_of_noise": ipywidgets.Dropdown(options=NOISES, value=noise, description="noise"),
            "level": _slider(view, "level"),
            "seed": _seed_box(view),
            "draw_code": _checkbox(view, "draw_code", "draw the code, do not take the mean"),
        }
        super().__init__(view, controls)


def _compared(networks: object, levels: Sequence[float] | None, latent_size: int) -> dict[str, Any]:
    if levels is None:
        levels = networks.levels if isinstance(networks, Networks) else ()
    return compared_pair(networks, levels, image_size=SIZE, latent_size=latent_size)
