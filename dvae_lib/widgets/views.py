"""The state of each explorer: what its controls set, in Python and in the page, within bounds that are said here."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import ipywidgets
import traitlets
from anywidget import AnyWidget

from dvae_lib.data import POSITIONS
from dvae_lib.widgets.networks import Networks, listed

NOISES = ("flip", "mask", "salt and pepper", "Gaussian")  # of the encoder's input, in the front end's order
SPEEDS = ("slow", "steady", "fast")  # of a run in the page, in the front end's order
LIMIT = 4.0  # the code planes reach from -LIMIT to LIMIT
COUNTS = (1, 4, 16, 64)  # corruptions K behind a rung of the bounds, in the front end's order
DRAWS = 64  # corruptions of a picture behind the bounds
FIRST_DRAW = 30000  # of their seeds
_FOLDER = Path(__file__).parent
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./widgets\.mjs";\n', re.MULTILINE)


def front_end(*parts: str) -> str:
    """Return widgets.mjs, these files and shell.mjs, one behind the other, as the one module that a page loads.

    A part adds its explorer to EXPLORERS. Its import from widgets.mjs, which node needs, is left out.
    """
    files = ("widgets.mjs", *parts, "shell.mjs")
    return _IMPORT.sub("", "\n".join((_FOLDER / file).read_text(encoding="utf-8") for file in files))


class View(AnyWidget):
    """What one explorer draws."""

    _esm = front_end()
    _css = _FOLDER / "widgets.css"
    kind = traitlets.Unicode().tag(sync=True)  # the front end's name for the explorer
    limit = traitlets.Float(LIMIT).tag(sync=True)
    schema = traitlets.Dict().tag(sync=True)  # what each trait may be that the page's address sets, as JSON Schema

    @traitlets.default("schema")
    def _schema(self) -> dict[str, dict[str, Any]]:
        own = self.traits(sync=True).keys() - View.class_traits().keys()
        return {name: found for name in sorted(own) if (found := _schema_of(self.traits()[name]))}

    def subject(self) -> str:
        """What is explored, in few words, for the explorer's name in Python."""
        return ""

    def __repr__(self) -> str:
        return f"view of {self.kind.replace('_', ' ')}"


class NetworksView(View):
    """What an explorer of trained networks draws."""

    networks = traitlets.Instance(Networks).tag(sync=True, **ipywidgets.widget_serialization)
    compared = traitlets.List(traitlets.Int()).tag(sync=True)  # places of the networks shown side by side

    @traitlets.validate("drawing")
    def _check_drawing(self, proposal: dict[str, Any]) -> str:
        pattern = self.traits()["drawing"].metadata["pattern"]
        if not re.fullmatch(pattern, proposal["value"]):
            digits = re.findall(r"\d+", pattern)[-1]
            raise traitlets.TraitError(
                f"drawing must be {digits} hexadecimal digits or empty, got {proposal['value']!r}"
            )
        return proposal["value"]

    def subject(self) -> str:
        return f"p = {listed(self.networks.levels[index] for index in self.compared)}"


def _schema_of(trait: Any) -> dict[str, Any]:
    """Return what a trait takes: a truth value, a number within bounds, or a string of a pattern."""
    if isinstance(trait, traitlets.Bool):
        return {"type": "boolean"}
    if isinstance(trait, traitlets.Int | traitlets.Float):
        bounds = [math.inf if bound is None else bound for bound in (trait.min, trait.max)]
        kind = "integer" if isinstance(trait, traitlets.Int) else "number"
        return {"type": kind, "minimum": bounds[0], "maximum": bounds[1]} if all(map(math.isfinite, bounds)) else {}
    return {"type": "string", "pattern": trait.metadata["pattern"]} if "pattern" in trait.metadata else {}


def _corner() -> traitlets.Int:
    return traitlets.Int(min=0, max=POSITIONS - 1).tag(sync=True)


class LatentMapView(NetworksView):
    z1 = traitlets.Float(min=-LIMIT, max=LIMIT).tag(sync=True)
    z2 = traitlets.Float(min=-LIMIT, max=LIMIT).tag(sync=True)
    manifold = traitlets.Bool().tag(sync=True)
    dots = traitlets.Bool().tag(sync=True)


class PictureView(NetworksView):
    row = _corner()
    column = _corner()
    drawing = traitlets.Unicode("").tag(sync=True, pattern="([0-9a-f]{144})?")  # hexadecimal; empty for the square
    level = traitlets.Float(min=0, max=0.5).tag(sync=True)
    seed = traitlets.Int(min=0, max=9999).tag(sync=True)


class DenoiseView(PictureView):
    kind_of_noise = traitlets.Int(min=0, max=len(NOISES) - 1).tag(sync=True)
    draw_code = traitlets.Bool().tag(sync=True)


class OneNetworkView(PictureView):
    index = traitlets.Int(min=0).tag(sync=True)  # of the network shown

    @traitlets.default("schema")
    def _schema(self) -> dict[str, dict[str, Any]]:
        last = len(self.networks.levels) - 1
        return super()._schema() | {"index": {"type": "integer", "minimum": 0, "maximum": last}}

    @traitlets.validate("index")
    def _check_index(self, proposal: dict[str, Any]) -> int:
        if proposal["value"] >= len(self.networks.levels):
            raise traitlets.TraitError(f"index must be below {len(self.networks.levels)}, got {proposal['value']}")
        return proposal["value"]


class TrainingNoiseView(OneNetworkView):
    pass


class BoundView(OneNetworkView):
    _esm = front_end("bound.mjs")
    count = traitlets.Int(min=0, max=len(COUNTS) - 1).tag(sync=True)  # place of K in COUNTS


class InterpolateView(NetworksView):
    first_row = _corner()
    first_column = _corner()
    last_row = _corner()
    last_column = _corner()
    position = traitlets.Int(min=0, max=100).tag(sync=True)  # per cent of the way


class TrainInPageView(View):
    _esm = front_end("learner.mjs")
    p = traitlets.Float(min=0, max=0.5).tag(sync=True)  # training noise
    row = _corner()
    column = _corner()
    speed = traitlets.Int(min=0, max=len(SPEEDS) - 1).tag(sync=True)
    seed = traitlets.Int(min=0, max=9999).tag(sync=True)

    def subject(self) -> str:
        return f"p = {self.p:g}"


class TrainAgainView(NetworksView):
    steps = traitlets.Int().tag(sync=True)
