"""The explorers of bits and of noise levels: Python's side."""

import base64
import io
import math
import re
from pathlib import Path

import ipywidgets
import numpy as np
import pytest
import torch
import traitlets
from ipywidgets.embed import embed_data
from PIL import Image

from dvae_lib import all_squares, bernoulli_vae, load_checkpoint, mlp_vae
from dvae_lib.widgets import BitSwitches, Layers, NoiseLevels, further, views
from experiments import outlook

SHIPPED = Path(further.__file__).parents[2] / "weights"
FRONT_END = views.front_end("further.mjs")
EXPLORERS = {  # with their networks' sizes, and what each shows unless it is told otherwise
    BitSwitches: {"row": 4, "column": 10, "drawing": ""},
    NoiseLevels: {"row": 4, "column": 10, "level": 32, "seed": 1},
}
each_explorer = pytest.mark.parametrize("explorer", EXPLORERS, ids=lambda explorer: explorer.__name__)


@pytest.fixture(autouse=True)
def close_widgets():
    yield
    ipywidgets.Widget.close_all()


def layers_of(explorer):
    torch.manual_seed(0)
    model = bernoulli_vae(latent_size=12, hidden_size=8) if explorer is BitSwitches else outlook.EveryLevel(8)
    return Layers(model.state_dict())


def picture(built):
    stored = built._repr_mimebundle_(include=None, exclude=None)["image/png"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(stored))).convert("L"))


@torch.no_grad()
def test_the_layers_answer_as_the_shipped_networks_do_up_to_rounding():
    bits, levels = bernoulli_vae(latent_size=12, hidden_size=128), outlook.EveryLevel(128)
    for name, model in (("bits", bits), ("levels", levels)):
        load_checkpoint(SHIPPED / f"explorer-{name}.safetensors", model.eval())
    squares = all_squares()
    found, (wanted,) = Layers.load(SHIPPED / "explorer-bits.safetensors"), bits.encode(squares)
    assert (found.answer(squares.flatten(1), last=3) - wanted).abs().mean() < 0.02 * wanted.abs().mean()
    codes = (wanted > 0).float()
    decoded = bits.decode(codes).sigmoid().flatten(1)
    assert (found.answer(codes, first=3).sigmoid() - decoded).abs().mean() < 0.002
    noisy = squares.flatten(1) + 2 * torch.randn(256, 576, generator=torch.Generator().manual_seed(0))
    guess = further.network_guess(Layers.load(SHIPPED / "explorer-levels.safetensors"), noisy, 2.0)
    assert (guess - levels.denoise(noisy, torch.tensor(2.0))).abs().mean() < 0.002


def test_the_levels_are_those_of_the_chapter():
    stds = [further.standard_deviation(level) for level in range(further.LEVELS)]
    np.testing.assert_allclose(stds, outlook.levels(65), rtol=1e-6)
    assert (further.LOW, further.HIGH) == (outlook.LOW, outlook.HIGH)
    assert f"const [LOW, HIGH] = [{further.LOW:g}, {further.HIGH:g}];" in FRONT_END
    assert f"const LEVELS = {further.LEVELS};" in FRONT_END


@each_explorer
def test_an_explorer_shows_its_network_and_can_be_linked(explorer):
    shown = EXPLORERS[explorer]
    built = explorer(layers_of(explorer))
    state = built.view.get_state()
    assert state == state | shown
    assert built.view.schema.keys() == shown.keys() | ({"code"} if explorer is BitSwitches else set())
    assert built.controls.keys() == shown.keys() - {"drawing"}
    kind = re.sub(r"_(.)", lambda match: match[1].upper(), built.view.kind)
    body = FRONT_END.split(f"function {kind}(")[1].split("\nfunction ")[0]
    followed = re.findall(r'"(\w+)"', re.search(r"traits: \[(.*?)\]", body)[1])
    assert set(followed) == built.view.schema.keys()
    assert set(re.findall(r'\bget\("(\w+)"\)', body)) <= built.view.class_traits(sync=True).keys()
    assert repr(built) == f"{explorer.__name__}({'12 bits' if explorer is BitSwitches else '65 levels'})"
    for name, control in built.controls.items():
        assert control.value == getattr(built.view, name)
        for bound in (control.min - 1, control.max + 1):
            with pytest.raises(traitlets.TraitError, match=name):
                setattr(built.view, name, bound)
    state = embed_data(views=[built], drop_defaults=False)["manager_state"]["state"]
    assert [b["path"] for model in state.values() for b in model.get("buffers", [])] == [["weights"]]


@pytest.mark.parametrize(
    ("explorer", "change"),
    [
        *[(BitSwitches, change) for change in ({"row": 9}, {"drawing": "f" * 144})],
        *[(NoiseLevels, change) for change in ({"column": 3}, {"level": 9}, {"seed": 2})],
    ],
)
def test_a_still_shows_what_the_explorer_is_set_to(explorer, change):
    layers = layers_of(explorer)
    first, other = explorer(layers), explorer(layers)
    assert (picture(first) == picture(explorer(layers))).all()
    other.view.set_trait(*next(iter(change.items())))
    assert (picture(other) != picture(first)).any()


def test_the_switches_start_at_the_most_probable_code_of_the_square():
    layers = layers_of(BitSwitches)
    for square in ((0, 0), (15, 15)):
        image = all_squares()[[16 * square[0] + square[1]]].flatten(1)
        (logits,) = layers.answer(image, last=3).tolist()
        code = "".join(str(int(logit > 0)) for logit in logits)
        assert BitSwitches(layers, square=square).view.code == code
    built = BitSwitches(layers, "010101010101")
    assert built.view.code == "010101010101"
    for wrong in ("01" * 5, "2" * 12, "01" * 7):
        with pytest.raises(traitlets.TraitError, match="code must be"):
            built.view.code = wrong
    with pytest.raises(traitlets.TraitError, match="drawing must be"):
        built.view.drawing = "f" * 143


def spoilt():
    state = bernoulli_vae(latent_size=12, hidden_size=8).state_dict()
    state["encoder.3.weight"][0, 0] = math.nan
    return state


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Layers([]), TypeError, "state must map"),
        (lambda: Layers({}), ValueError, "at least one layer"),
        (lambda: Layers({"a.weight": torch.zeros(2, 2)}), ValueError, "weight and bias"),
        (lambda: Layers(spoilt()), ValueError, r"finite weights, got one in encoder\.3"),
        (lambda: Layers.load(SHIPPED / "none.safetensors"), FileNotFoundError, "none"),
        *[(lambda kind=kind: kind({}), TypeError, "must be Layers, got dict") for kind in EXPLORERS],
        (lambda: BitSwitches(layers_of(NoiseLevels)), ValueError, "576 to 12 to 576 in threes"),
        (lambda: NoiseLevels(layers_of(BitSwitches)), ValueError, "577 to 576 in threes"),
        (lambda: BitSwitches(Layers(mlp_vae(hidden_size=8).state_dict())), ValueError, "in threes"),
        (lambda: BitSwitches(layers_of(BitSwitches), "01"), ValueError, "code must be 12 digits"),
        (lambda: BitSwitches(layers_of(BitSwitches), square=3), TypeError, "row, column"),
        (lambda: NoiseLevels(layers_of(NoiseLevels), 65), ValueError, "level must be"),
        (lambda: NoiseLevels(layers_of(NoiseLevels), seed=-1), ValueError, "seed must be"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
