"""The explorers: controls above a view, joined to it in the browser."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ipywidgets
import traitlets

from dvae_lib._checks import check_choice, check_integer, check_number
from dvae_lib.data import IMAGE_SIZE
from dvae_lib.widgets.networks import Networks
from dvae_lib.widgets.stills import still
from dvae_lib.widgets.views import (
    COUNTS,
    NOISES,
    SPEEDS,
    BoundView,
    DenoiseView,
    InterpolateView,
    LatentMapView,
    TrainingNoiseView,
    TrainInPageView,
    View,
)


class Explorer(ipywidgets.VBox):
    """Controls above a view, each joined to the trait of the view that it is named after."""

    def __init__(self, view: View, controls: Mapping[str, ipywidgets.Widget]) -> None:
        self.view: Any = view  # with the traits of its own kind
        self.controls = dict(controls)
        self.links = []
        for name, control in controls.items():
            if control.has_trait("tooltip"):  # before ipywidgets 8, a label shows its own text
                control.tooltip = control.description
            trait = "index" if control.has_trait("index") else "value"  # of a choice, the place of what is chosen
            self.links.append(ipywidgets.jslink((control, trait), (view, name)))
        box = ipywidgets.Box(list(controls.values()))
        box.add_class("dvae-controls")
        super().__init__([box, view] if controls else [view])
        self.add_class("dvae-explorer")

    _ipython_display_ = None  # that of ipywidgets 7 would come first, and knows of no picture

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        """Return the live view; where outputs are to be stored (DVAE_STILLS is set) with a still picture as well."""
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        picture = still(self.view) if os.environ.get("DVAE_STILLS") else None  # it takes a second or two
        bundle = {"text/plain": repr(self), "application/vnd.jupyter.widget-view+json": view}
        return bundle | ({"image/png": picture} if picture else {})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.view.subject()})"


def close_widgets(*widgets: ipywidgets.Widget) -> None:
    """Close these widgets and all that hang on them: children, layouts, styles, links, views and their networks."""
    waiting, closed = list(widgets), set()
    while waiting:
        widget = waiting.pop()
        if widget in closed:
            continue
        held = [getattr(widget, name) for name in widget.keys]
        waiting += [value for value in held if isinstance(value, ipywidgets.Widget)]
        waiting += [*getattr(widget, "children", ()), *getattr(widget, "links", ())]
        widget.close()
        closed.add(widget)


def compared(
    networks: object, levels: Iterable[float], image_size: int = IMAGE_SIZE, latent_size: int = 2
) -> dict[str, Any]:
    """Return the traits of a view that compares the networks of these levels, for images and codes of these sizes."""
    networks = check_networks(networks)
    wanted = {"image_shape": [1, image_size, image_size], "latent_size": latent_size}
    for key, value in wanted.items():
        if networks.configuration[key] != value:
            raise ValueError(f"networks must have {key} = {value}, got {networks.configuration[key]}")
    return {"networks": networks, "compared": [networks.index(level) for level in levels]}


def compared_pair(networks: object, levels: Iterable[float], **sizes: int) -> dict[str, Any]:
    """Return the same, of two networks: what stands side by side in a page and in its still picture."""
    traits = compared(networks, levels, **sizes)
    if len(traits["compared"]) != 2:
        raise ValueError(f"levels must name two networks, got {len(traits['compared'])}")
    return traits


def check_networks(networks: object) -> Networks:
    if not isinstance(networks, Networks):
        raise TypeError(f"networks must be Networks, got {type(networks).__name__}")
    return networks


def _check(view: type[View], trait: str, value: object, name: str = "") -> Any:
    """Return `value` if the view's trait takes it; the error speaks of the argument `name`."""
    bounds: Any = view.class_traits()[trait]
    check = check_integer if isinstance(bounds, traitlets.Int) else check_number
    return check(name or trait, value, bounds.min, bounds.max)


def _check_square(view: type[View], name: str, square: object, prefix: str = "") -> dict[str, int]:
    """Return the square's row and column, each under the name of its trait."""
    if not isinstance(square, Sequence) or len(square) != 2:
        raise TypeError(f"{name} must be (row, column), got {square!r}")
    traits = zip((f"{prefix}row", f"{prefix}column"), square, strict=True)
    return {trait: _check(view, trait, value, f"{trait} of {name}") for trait, value in traits}


def _slider(view: View, trait: str, description: str = "") -> ipywidgets.Widget:
    """A slider that starts at the trait's value and spans what it takes."""
    bounds: Any = view.traits()[trait]
    kind, step = (ipywidgets.IntSlider, 1) if isinstance(bounds, traitlets.Int) else (ipywidgets.FloatSlider, 0.01)
    description = description or trait.replace("_", " ")
    return kind(value=getattr(view, trait), min=bounds.min, max=bounds.max, step=step, description=description)


def _sliders(view: View, traits: Iterable[str]) -> dict[str, ipywidgets.Widget]:
    return {trait: _slider(view, trait) for trait in traits}


def _checkbox(view: View, trait: str, description: str) -> ipywidgets.Widget:
    return ipywidgets.Checkbox(value=getattr(view, trait), description=description, indent=False)


def _network_slider(networks: Networks, start: float) -> ipywidgets.Widget:
    """A slider through the networks, by the noise of their training, that starts at one of them."""
    options = [(f"{p:g}", p) for p in networks.levels]
    return ipywidgets.SelectionSlider(options=options, value=start, description="training p")


def _seed_box(view: View) -> ipywidgets.Widget:
    bounds: Any = view.traits()["seed"]
    return ipywidgets.BoundedIntText(value=view.seed, min=bounds.min, max=bounds.max, description="seed")


class LatentMap(Explorer):
    """Drag a point over the code plane and see what each network decodes there.

    The manifold is the backdrop; the dots are the codes of the 256 squares, coloured by the square's place.

    Args:
        networks: what to decode with.
        code: where the point starts, each entry in [-4, 4].
        levels: the training noise of the two networks compared.

    Raises:
        TypeError, ValueError: an argument of a wrong type or out of range; no network of such a level.
    """

    def __init__(
        self, networks: Networks, code: Sequence[float] = (0.6, -0.4), levels: Sequence[float] = (0.0, 0.1)
    ) -> None:
        traits = compared_pair(networks, levels)
        if not isinstance(code, Sequence) or len(code) != 2:
            raise TypeError(f"code must have two entries, got {code!r}")
        z1, z2 = (_check(LatentMapView, trait, value, "code") for trait, value in zip(("z1", "z2"), code, strict=True))
        view = LatentMapView(kind="latent_map", z1=z1, z2=z2, manifold=True, dots=True, **traits)
        controls = {
            "z1": _slider(view, "z1", "code z\u2081"),
            "z2": _slider(view, "z2", "code z\u2082"),
            "manifold": _checkbox(view, "manifold", "manifold"),
            "dots": _checkbox(view, "dots", "codes of the 256 squares"),
        }
        super().__init__(view, controls)


class Denoise(Explorer):
    """Corrupt a square, or a picture drawn by hand, and see what each network makes of it.

    Args:
        networks: what to encode and decode with.
        square: row and column of the square's corner, each from 0 to 15.
        noise: one of `NOISES`.
        level: the probability that a pixel is struck, or the standard deviation of Gaussian noise, in [0, 0.5].
        seed: of the noise and of the code drawn from the posterior, from 0 to 9999.
        levels: the training noise of the two networks compared.

    Raises:
        TypeError, ValueError: an argument of a wrong type or out of range; no network of such a level.
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
        traits = compared_pair(networks, levels)
        check_choice("noise", noise, NOISES)
        corner = _check_square(DenoiseView, "square", square)
        view = DenoiseView(
            kind="denoise",
            kind_of_noise=NOISES.index(noise),
            level=_check(DenoiseView, "level", level),
            seed=_check(DenoiseView, "seed", seed),
            draw_code=False,
            **corner,
            **traits,
        )
        controls = {
            **_sliders(view, corner),
            "kind_of_noise": ipywidgets.Dropdown(options=NOISES, value=noise, description="noise"),
            "level": _slider(view, "level"),
            "seed": _seed_box(view),
            "draw_code": _checkbox(view, "draw_code", "draw the code, do not take the mean"),
        }
        super().__init__(view, controls)


class TrainingNoise(Explorer):
    """Switch among networks trained with more and more noise, and see manifold and reconstruction change.

    Args:
        networks: what to switch among.
        square: row and column of the square's corner, each from 0 to 15.
        level: the probability that a pixel of the input is flipped, in [0, 0.5].
        seed: of the noise, from 0 to 9999.
        start: the training noise of the network shown first.

    Raises:
        TypeError, ValueError: an argument of a wrong type or out of range; no network of that level.
    """

    def __init__(
        self,
        networks: Networks,
        square: Sequence[int] = (4, 10),
        level: float = 0.1,
        seed: int = 1,
        start: float = 0.0,
    ) -> None:
        traits = compared(networks, check_networks(networks).levels)
        corner = _check_square(TrainingNoiseView, "square", square)
        view = TrainingNoiseView(
            kind="training_noise",
            level=_check(TrainingNoiseView, "level", level),
            seed=_check(TrainingNoiseView, "seed", seed),
            index=networks.index(start),
            **corner,
            **traits,
        )
        controls = {
            "index": _network_slider(networks, start),
            "level": _slider(view, "level", "input noise"),
            **_sliders(view, corner),
            "seed": _seed_box(view),
        }
        super().__init__(view, controls)


class Bound(Explorer):
    """See the log-likelihood of a picture and the bounds on it, in nats, and the posteriors that explain the gaps.

    ln p(x) is a sum over a grid of codes; the bounds of corrupted inputs are those of 64 corruptions that are drawn
    from the seed and stand for all, L_K the mean over mixtures of K of them. Defined in the chapters "The denoising
    bound" and "What denoising costs".

    Args:
        networks: what to choose among.
        square: row and column of the square's corner, each from 0 to 15.
        level: the probability that a pixel of the input is flipped, in [0, 0.5].
        seed: of the corruptions, from 0 to 9999.
        start: the training noise of the network shown first.
        corruptions: K, one of `COUNTS`.

    Raises:
        TypeError, ValueError: an argument of a wrong type or out of range; no network of that level.
    """

    def __init__(
        self,
        networks: Networks,
        square: Sequence[int] = (4, 10),
        level: float = 0.1,
        seed: int = 1,
        start: float = 0.1,
        corruptions: int = 16,
    ) -> None:
        traits = compared(networks, check_networks(networks).levels)
        if corruptions not in COUNTS:
            raise ValueError(f"corruptions must be one of {', '.join(map(str, COUNTS))}, got {corruptions!r}")
        corner = _check_square(BoundView, "square", square)
        view = BoundView(
            kind="bound",
            level=_check(BoundView, "level", level),
            seed=_check(BoundView, "seed", seed),
            index=networks.index(start),
            count=COUNTS.index(corruptions),
            **corner,
            **traits,
        )
        counts = [(str(K), K) for K in COUNTS]
        controls = {
            "index": _network_slider(networks, start),
            "level": _slider(view, "level", "input noise"),
            **_sliders(view, corner),
            "count": ipywidgets.SelectionSlider(options=counts, value=corruptions, description="corruptions"),
            "seed": _seed_box(view),
        }
        super().__init__(view, controls)


class Interpolate(Explorer):
    """Go from one square to another, on the straight line between their codes and between their pixels.

    Args:
        networks: what to encode and decode with.
        first: row and column of the first square's corner, each from 0 to 15.
        last: the same, of the last square.
        position: how far to go, in per cent.
        levels: the training noise of the two networks compared.

    Raises:
        TypeError, ValueError: an argument of a wrong type or out of range; no network of such a level.
    """

    def __init__(
        self,
        networks: Networks,
        first: Sequence[int] = (2, 2),
        last: Sequence[int] = (12, 13),
        position: int = 50,
        levels: Sequence[float] = (0.0, 0.1),
    ) -> None:
        traits = compared_pair(networks, levels)
        corners = _check_square(InterpolateView, "first", first, "first_")
        corners |= _check_square(InterpolateView, "last", last, "last_")
        position = _check(InterpolateView, "position", position)
        view = InterpolateView(kind="interpolate", position=position, **corners, **traits)
        super().__init__(view, {**_sliders(view, corners), "position": _slider(view, "position", "per cent")})


class TrainInPage(Explorer):
    """Train a small network from scratch, in the page and without a kernel, at a noise of the reader's choice.

    A DVAE with hidden layers of 64 units learns from batches of 32 squares, in a worker of the browser. Buttons start
    it, stop it, make one step, and go back to the beginning. A new `p` holds from the next batch on, and a new `seed`
    begins a new run.

    Args:
        p: the probability that a pixel of the encoder's input is flipped in training, in [0, 0.5].
        square: row and column of the corner of the square whose reconstruction is shown, each from 0 to 15.
        seed: of the first weights and of all that is drawn, from 0 to 9999.
        speed: "slow", four steps a second; "steady", at most forty; or "fast", as many as the machine makes.

    Raises:
        TypeError, ValueError: an argument of a wrong type or out of range.
    """

    def __init__(self, p: float = 0.1, square: Sequence[int] = (4, 10), seed: int = 1, speed: str = "fast") -> None:
        corner = _check_square(TrainInPageView, "square", square)
        view = TrainInPageView(
            kind="train_in_page",
            p=_check(TrainInPageView, "p", p),
            seed=_check(TrainInPageView, "seed", seed),
            speed=SPEEDS.index(check_choice("speed", speed, SPEEDS)),
            **corner,
        )
        controls = {
            "p": _slider(view, "p", "noise p"),
            "speed": ipywidgets.Dropdown(options=SPEEDS, value=speed, description="speed"),
            **_sliders(view, corner),
            "seed": _seed_box(view),
        }
        super().__init__(view, controls)
