"""The explorers' Python side: the weights that travel, the controls that are joined, and the run in a thread."""

import base64
import io
import itertools
import json
import math
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from unittest.mock import Mock

import ipywidgets
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import traitlets
from IPython.core.formatters import DisplayFormatter
from ipywidgets.embed import embed_data
from PIL import Image
from refresh import notebooks

import dvae_lib
from dvae_lib import BernoulliNoise, TrainingConfig, all_squares, load_checkpoint, mlp_vae, train
from dvae_lib.widgets import (
    COUNTS,
    LEVELS,
    NOISES,
    Bound,
    Denoise,
    DigitDenoise,
    DigitInterpolate,
    DigitMap,
    Interpolate,
    LatentMap,
    Networks,
    TrainAgain,
    TrainingNoise,
    digits,
    explorers,
    stills,
    views,
)

LIBRARY = Path(dvae_lib.__file__).parent
FRONT_END = views.front_end("bound.mjs")  # with all explorers
SHIPPED = LIBRARY.parent / "weights"
PICTURE = {"row": 4, "column": 10, "level": 0.1, "seed": 1, "drawing": ""}
WAY = {"first_row": 2, "first_column": 2, "last_row": 12, "last_column": 13, "position": 50}
EXPLORERS = {  # with what each shows unless it is told otherwise
    LatentMap: {"z1": 0.6, "z2": -0.4, "manifold": True, "dots": True, "compared": [0, 2], "limit": 4.0},
    Denoise: {**PICTURE, "kind_of_noise": 0, "draw_code": False, "compared": [0, 2]},
    TrainingNoise: {**PICTURE, "index": 0, "compared": [0, 1, 2, 3, 4, 5]},
    Interpolate: {**WAY, "compared": [0, 2]},
    Bound: {**PICTURE, "index": 2, "count": 2, "compared": [0, 1, 2, 3, 4, 5]},
    TrainAgain: {"steps": 4000, "compared": [0]},
}
PICTURES = (Denoise, TrainingNoise, Bound)
each_explorer = pytest.mark.parametrize("explorer", EXPLORERS, ids=lambda explorer: explorer.__name__)


def small_model(seed, p=0.0, hidden_size=8):
    torch.manual_seed(seed)
    return mlp_vae(hidden_size=hidden_size, noise=BernoulliNoise(p) if p else None)


@pytest.fixture(autouse=True)
def close_widgets():
    yield
    ipywidgets.Widget.close_all()


@pytest.fixture
def networks():
    return Networks({p: small_model(index, p) for index, p in enumerate(LEVELS)})


def packed(networks):
    """What the bytes say of each layer, network by network: scales and biases (rows,), integers (rows, columns)."""
    stream = io.BytesIO(networks.weights)
    for rows, columns in networks.shapes * len(networks.levels):
        scales, biases = np.frombuffer(stream.read(8 * rows), "<f4").reshape(2, rows)
        yield scales, biases, np.frombuffer(stream.read(rows * columns), np.int8).reshape(columns, rows).T
    assert not stream.read()


def test_each_row_travels_as_a_scale_and_integers_of_eight_bits():
    models = {0.2: small_model(1, 0.2), 0.0: small_model(0)}
    networks = Networks(models)
    rows = packed(networks)
    assert networks.levels == [0.0, 0.2]
    for p in networks.levels:
        model = networks.model(p)
        assert not model.training
        assert repr(model.noise) == repr(models[p].noise)
        state, rounded = models[p].state_dict(), model.state_dict()
        for name in [name.removesuffix(".weight") for name in state if name.endswith("weight")]:
            scales, biases, integers = next(rows)
            weight = state[f"{name}.weight"].numpy()
            np.testing.assert_allclose(scales, abs(weight).max(1) / 127, rtol=1e-6)
            assert (abs(integers).max(1) == 127).all()
            assert (abs(integers * scales[:, None] - weight) <= 0.5001 * scales[:, None]).all()
            assert (biases == state[f"{name}.bias"].numpy()).all()
            assert (rounded[f"{name}.weight"].numpy() == integers * scales[:, None]).all()
            assert torch.equal(rounded[f"{name}.bias"], state[f"{name}.bias"])
    assert next(rows, None) is None


def test_rows_of_zeros_of_constants_and_of_the_least_numbers():
    model = small_model(0)
    with torch.no_grad():
        model.decoder[0].weight[:5] = torch.tensor([[0, 0], [0.3, 0.3], [-7, -7], [1e-44, 0], [127 / 512, -64 / 512]])
    networks = Networks({0.0: model})
    scales, _, integers = list(packed(networks))[4]
    assert integers[:5].tolist() == [[0, 0], [127, 127], [-127, -127], [0, 0], [127, -64]]
    least = np.finfo(np.float32).tiny
    np.testing.assert_allclose(scales[:5], [least, 0.3 / 127, 7 / 127, least, 1 / 512], rtol=1e-6)
    assert (networks.model(0.0).decoder[0].weight[0] == 0).all()


def test_load_reads_the_shipped_networks():
    models = {p: small_model(0, p, 128) for p in (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)}
    for model, name in zip(models.values(), ["p00", "p05", "p10", "p20", "p30", "p40"], strict=True):
        load_checkpoint(SHIPPED / f"explorer-{name}.safetensors", model)
    assert Networks.load(SHIPPED).weights == Networks(models).weights
    for level, name in ((0.29, "p29"), (1.0, "p100")):  # 100 * 0.29 is a little less than 29
        with pytest.raises(FileNotFoundError, match=rf"explorer-{name}\.safetensors"):
            Networks.load(SHIPPED, [level])


# explorers


@each_explorer
def test_each_control_is_named_joined_to_the_view_and_starts_at_its_value(explorer, networks):
    built = explorer(networks)
    state = built.view.get_state()
    assert state == state | EXPLORERS[explorer]
    for link, (name, control) in zip(built.links, built.controls.items(), strict=True):
        joined, trait = link.source
        assert joined is control
        assert link.target == (built.view, name)
        assert getattr(control, trait) == getattr(built.view, name), name
        state = control.get_state()
        assert not state.get("indent")
        assert state.get("tooltip", state["description"]) == state["description"]  # ipywidgets 7 has no such trait
    *boxes, view = built.children
    assert view is built.view
    assert [box.children for box in boxes] == ([tuple(built.controls.values())] if built.controls else [])
    assert all("dvae-controls" in box._dom_classes for box in boxes)
    assert "dvae-explorer" in built._dom_classes


@each_explorer
def test_a_reader_can_reach_all_that_changes_the_picture(explorer, networks):
    """Every trait that the front end follows has a control, or is set by what is drawn on the canvas."""
    built = explorer(networks)
    kind = re.sub(r"_(.)", lambda match: match[1].upper(), built.view.kind)
    body = FRONT_END.split(f"function {kind}(")[1].split("\nfunction ")[0]
    followed = re.findall(r'"(\w+)"', re.search(r"traits: \[(.*?)\]", body)[1])
    if explorer is Interpolate:  # what is said of its ends stands before it
        ends = FRONT_END.split("const SQUARE_ENDS = {")[1].split("};")[0]
        followed += re.findall(r'"(\w+)"', re.search(r"traits: \[(.*?)\]", ends)[1])
    assert set(followed) - {"drawing"} == built.controls.keys()
    table = FRONT_END.split("const EXPLORERS = {")[1].split("}")[0]
    assert re.search(rf"^  {built.view.kind}\b", table, re.MULTILINE) or f"EXPLORERS.{kind} = {kind};" in FRONT_END
    assert f"function {kind}(" in built.view._esm  # each view sends what it needs


@each_explorer
def test_what_the_address_may_set_is_what_the_view_takes(explorer, networks):
    """The page learns types and bounds from `schema`, and passes over all else."""
    view = explorer(networks).view
    assert view.schema.keys() == (set() if explorer is TrainAgain else set(EXPLORERS[explorer]) - {"compared", "limit"})
    for name, words in view.schema.items():
        value = getattr(view, name)
        types = {"boolean": bool, "integer": int, "number": (int, float), "string": str}
        assert isinstance(value, types[words["type"]])
        if words["type"] == "string":
            assert re.fullmatch(words["pattern"], value) is not None
        if "minimum" in words:
            for bound, beyond in ((words["minimum"], -1), (words["maximum"], 1)):
                setattr(view, name, bound)
                with pytest.raises(traitlets.TraitError, match=name):
                    setattr(view, name, bound + beyond)


def test_the_front_end_asks_for_traits_that_exist(networks):
    asked = set(re.findall(r'\bget\("(\w+)"\)', FRONT_END))
    classes = [Networks, *(type(explorer(networks).view) for explorer in EXPLORERS)]
    assert asked <= {name for kind in classes for name in kind.class_traits(sync=True)}
    assert {"networks", "kind", "compared", "limit", "levels", "weights", "shapes"} <= asked


@each_explorer
def test_a_cell_prints_the_same_text_on_every_run(explorer, networks):
    built = explorer(networks)
    levels = ", ".join(f"{LEVELS[index]:g}" for index in EXPLORERS[explorer]["compared"])
    inside = "4000 steps" if explorer is TrainAgain else f"p = {levels}"
    assert repr(built) == f"{explorer.__name__}({inside})"
    assert repr(networks) == "Networks(p = 0, 0.05, 0.1, 0.2, 0.3, 0.4)"
    assert "0x" not in repr(built.view)


CHANGES = {  # of what each explorer shows
    LatentMap: [{"z1": -2.0}, {"z2": 1.0}, {"manifold": False}, {"dots": False}],
    Denoise: [{"row": 9}, {"column": 3}, {"drawing": "f" * 144}, {"kind_of_noise": 3}, {"level": 0.3}, {"seed": 2}],
    TrainingNoise: [{"row": 9}, {"column": 3}, {"drawing": "0" * 144}, {"index": 5}, {"level": 0.3}, {"seed": 2}],
    Bound: [{"row": 9}, {"drawing": "f" * 144}, {"index": 5}, {"level": 0.3}, {"count": 0}, {"seed": 2}],
    Interpolate: [{"first_row": 9}, {"first_column": 9}, {"last_row": 3}, {"last_column": 3}, {"position": 5}],
}


@pytest.mark.parametrize("explorer", CHANGES, ids=lambda explorer: explorer.__name__)
def test_where_nothing_runs_a_cell_shows_a_picture_of_the_explorer(explorer, networks):
    def picture(built):
        stored = built._repr_mimebundle_(include=None, exclude=None)["image/png"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(stored))).convert("L"))

    style = dict(mpl.rcParams)
    built = explorer(networks)
    first = picture(built)
    assert first.shape[1] == 1125  # small: 7.5 inches at 150 pixels
    assert first.std() > 20
    assert (picture(explorer(networks)) == first).all()
    for change in CHANGES[explorer]:
        others = explorer(networks)
        others.view.set_trait(*next(iter(change.items())))
        assert (picture(others) != first).any(), change
    assert dict(mpl.rcParams) == style
    assert not plt.get_fignums()  # nothing that the next cell would show


def test_a_live_kernel_draws_no_picture(networks, monkeypatch):
    """It would wait for what nobody looks at; `tools/refresh.py` and the tests ask for it."""
    built = LatentMap(networks)
    assert "image/png" in built._repr_mimebundle_()
    monkeypatch.setattr(explorers, "still", lambda view: pytest.fail("a picture was drawn"))
    for value in ("", None):
        monkeypatch.delenv("DVAE_STILLS") if value is None else monkeypatch.setenv("DVAE_STILLS", value)
        assert set(built._repr_mimebundle_()) == {"text/plain", "application/vnd.jupyter.widget-view+json"}


@pytest.mark.parametrize(
    "name",
    ["GROUND", "CLEAN", "NOISY", "TRUTH", "FRAMES", "BAR_DRAWS", "FIRST_BAR_DRAW", "ZOOM", "DRAWS", "FIRST_DRAW"],
)
def test_a_still_has_the_colours_and_counts_of_the_page(name):
    assert re.search(rf'^(?:export )?const {name} = "?{getattr(stills, name)}"?;', FRONT_END, re.MULTILINE)


def test_the_bars_of_a_still_have_the_colours_of_the_page():
    style = (LIBRARY / "widgets" / "widgets.css").read_text()
    for part, (colour, _) in stills.PARTS.items():
        assert f".dvae-{part} {{\n  --dvae-colour: {colour};" in style
    assert f"const COUNTS = {list(COUNTS)};" in FRONT_END
    assert stills.COUNTS is COUNTS


@each_explorer
def test_a_cell_stores_the_live_view_first_of_all(explorer, networks):
    built = explorer(networks)
    data, _ = DisplayFormatter().format(built)  # as a kernel does
    view = {"version_major": 2, "version_minor": 0, "model_id": built.model_id}
    assert data["application/vnd.jupyter.widget-view+json"] == view
    assert data["text/plain"] == repr(built)
    assert ("image/png" in data) == (explorer is not TrainAgain)


def test_the_weights_are_in_the_page_once_however_many_explorers_it_has(networks):
    views = [explorer(networks) for explorer in EXPLORERS]
    state = embed_data(views=views, drop_defaults=False)["manager_state"]["state"]
    buffers = [buffer for model in state.values() for buffer in model.get("buffers", [])]
    assert [buffer["path"] for buffer in buffers] == [["weights"]]
    (holder,) = [name for name, model in state.items() if model.get("buffers")]
    refer = [model["state"]["networks"] for model in state.values() if "networks" in model["state"]]
    assert refer == [f"IPY_MODEL_{holder}"] * len(EXPLORERS)


def check_bounds(build, trait, argument, low, high):
    """The argument, the control and the view that `build` makes of a value take low to high, and nothing beyond."""
    step = 1 if isinstance(low, int) else 0.01
    for value in (low, high):
        built = build(value)
        control = built.controls[trait]
        assert (control.value, control.min, control.max, control.step) == (value, low, high, step)
        assert getattr(built.view, trait) == value
    for value in (low - step, high + step):
        with pytest.raises(ValueError, match=argument):
            build(value)
        with pytest.raises(traitlets.TraitError, match=trait):
            setattr(built.view, trait, value)
    with pytest.raises(TypeError, match=argument):
        build("a")


@pytest.mark.parametrize(
    ("explorer", "trait", "argument", "low", "high"),
    [
        (LatentMap, "z1", "code", -4.0, 4.0),
        (LatentMap, "z2", "code", -4.0, 4.0),
        *[(explorer, name, "square", 0, 15) for explorer in PICTURES for name in ("row", "column")],
        *[(explorer, "level", "level", 0.0, 0.5) for explorer in PICTURES],
        *[(explorer, "seed", "seed", 0, 9999) for explorer in PICTURES],
        *[(Interpolate, f"{end}_{name}", end, 0, 15) for end in ("first", "last") for name in ("row", "column")],
        (Interpolate, "position", "position", 0, 100),
    ],
)
def test_argument_control_and_page_have_the_same_bounds(explorer, trait, argument, low, high, networks):
    def build(value):
        pair = (0, value) if trait.endswith(("2", "column")) else (value, 0)
        return explorer(networks, **{argument: value if trait == argument else pair})

    check_bounds(build, trait, argument, low, high)


@pytest.mark.parametrize(
    ("explorer", "trait", "argument", "choices"),
    [
        (Denoise, "kind_of_noise", "noise", NOISES),
        (TrainingNoise, "index", "start", LEVELS),
        (Bound, "index", "start", LEVELS),
        (Bound, "count", "corruptions", COUNTS),
    ],
)
def test_a_choice_is_one_of_those_offered(explorer, trait, argument, choices, networks):
    for place, choice in enumerate(choices):
        built = explorer(networks, **{argument: choice})
        assert (getattr(built.view, trait), built.controls[trait].value) == (place, choice)
    for place in (-1, len(choices)):
        with pytest.raises(traitlets.TraitError, match=trait):
            setattr(built.view, trait, place)


def of_size(image_size, latent_size, levels=LEVELS, **options):
    sizes = {"image_shape": (1, image_size, image_size), "latent_size": latent_size, "hidden_size": 8, **options}
    return Networks({p: mlp_vae(**sizes, noise=BernoulliNoise(p) if p else None) for p in levels})


def spoilt(kind):
    model = small_model(0)
    getattr(model.encoder[5].mean, kind).data[1] = torch.nan
    return Networks({0.0: model})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda _: Networks([]), TypeError, "models must map"),
        (lambda _: Networks({}), ValueError, "at least one"),
        (lambda _: Networks({0.0: torch.nn.Linear(1, 1)}), TypeError, "VariationalAutoencoders, got Linear"),
        *[(lambda _, p=p: Networks({p: small_model(0)}), ValueError, rf"\[0, 1\], got {p}") for p in (-0.01, 1.01)],
        *[(lambda _, kind=kind: kind(of_size(24, 3)), ValueError, "latent_size = 2, got 3") for kind in EXPLORERS],
        *[
            (lambda _, kind=kind: kind(of_size(28, 2)), ValueError, r"image_shape = \[1, 24, 24\]")
            for kind in EXPLORERS
        ],
        (lambda _: Networks({0.0: mlp_vae((1, 24, 28), hidden_size=8)}), ValueError, "as high as wide"),
        (lambda _: Networks({0.0: mlp_vae((3, 24, 24), hidden_size=8)}), ValueError, "one channel"),
        (lambda _: Networks({0.0: small_model(0), 0.1: small_model(0, 0.1, 9)}), ValueError, "same hidden_size"),
        (lambda _: spoilt("weight"), ValueError, r"finite weights, got one in encoder\.5\.mean"),
        (lambda _: spoilt("bias"), ValueError, r"finite weights, got one in encoder\.5\.mean"),
        (lambda _: Networks.load(SHIPPED, hidden_size=9), ValueError, "hidden_size is 128 in the file and 9 here"),
        *[(lambda _, p=p: Networks.load(SHIPPED, [p]), ValueError, "levels must be") for p in (-0.01, 1.01)],
        (lambda some: some.model(0.15), ValueError, r"one of 0, 0.05, 0.1, 0.2, 0.3, 0.4, got 0.15"),
        *[(lambda some, code=code: LatentMap(some, code), TypeError, "two entries") for code in (1.0, (1, 2, 3))],
        (lambda some: LatentMap(some, levels=(0, 0.15)), ValueError, "got 0.15"),
        (lambda some: Denoise(some, levels=(0,)), ValueError, "levels must name two networks, got 1"),
        (lambda some: Interpolate(some, levels=()), ValueError, "levels must name two networks, got 0"),
        (lambda some: Denoise(some, square=3), TypeError, "row, column"),
        (lambda some: Denoise(some, noise="hail"), ValueError, "flip, mask, salt and pepper, Gaussian, got"),
        (lambda some: TrainingNoise(some, start=0.15), ValueError, "got 0.15"),
        (lambda some: Interpolate(some, last=(1, 2, 3)), TypeError, "last must be"),
        (lambda some: Bound(some, start=0.15), ValueError, "got 0.15"),
        *[(lambda some, n=n: Bound(some, corruptions=n), ValueError, "1, 4, 16, 64, got") for n in (0, 2, 65, "4")],
        (lambda some: TrainAgain(some, steps=0), ValueError, "steps must"),
        *[(lambda _, kind=kind: kind({}), TypeError, "must be Networks, got dict") for kind in EXPLORERS],
        *[(lambda some, p=p: TrainAgain(some).start(p), ValueError, "p must be") for p in (0.009, 0.501)],
    ],
)
def test_what_does_not_fit_is_refused(call, error, message, networks):
    with pytest.raises(error, match=message):
        call(networks)


def test_a_drawing_that_the_front_end_cannot_read_is_refused(networks):
    view = Denoise(networks).view
    view.drawing = "0" * 143 + "f"
    for wrong in ("f" * 143, "F" * 144, "g" * 144, "f" * 145):
        with pytest.raises(traitlets.TraitError, match="144 hexadecimal digits"):
            view.drawing = wrong
    view.drawing = ""


# training again


class Page(list):
    """What Python has told the page; `hear` is called with each message before it is noted."""

    hear = staticmethod(lambda message: None)

    def told(self, _, message):
        self.hear(message)
        self.append(message)


@pytest.fixture
def page(monkeypatch):
    page = Page()
    monkeypatch.setattr("ipywidgets.Widget.send", lambda *arguments: page.told(*arguments))
    return page


def click(built, kind, **message):
    built.view._handle_custom_msg({"kind": kind, **message}, [])


def run(built, p=0.1):
    built.start(p)
    built.wait()


def test_a_run_reports_to_the_page_and_shows_explorers_of_the_new_network(networks, page):
    built = TrainAgain(networks, steps=120)
    click(built, "hello")
    assert page == [{"kind": "state", "running": False, "done": 0, "text": "120 steps"}]
    state = built.view.get_state()
    click(built, "train", p=0.2)
    built.wait()
    assert built.view.get_state() == state  # what is stored with a page says nothing of a run, or of a kernel
    told = [(message["running"], message["done"]) for message in page[1:]]
    assert list(dict.fromkeys(told)) == [(True, 0), (True, 50), (True, 100), (True, 120), (False, 120)]
    assert {message["text"] for message in page if message["done"] == 50} == {"p = 0.2: step 50 of 120"}
    assert [type(child) for child in built.children] == [type(built.view), LatentMap, Denoise]
    for child in built.children[1:]:
        shown = child.view.networks
        assert [shown.levels[index] for index in child.view.compared] == [0, 0.2]
        assert shown.weights == Networks({0: networks.model(0), 0.2: built.model}).weights


def test_a_run_is_one_of_train_from_a_seed_of_its_own(networks, page):
    alone = small_model(0, 0.2)
    config = TrainingConfig(steps=150, batch_size=64, learning_rate=2e-3, schedule="cosine", hidden_size=8)
    protocol = train(alone, all_squares(), config, device="cpu", progress=False)
    reconstruction, kl = protocol.reconstruction[50:].mean(), protocol.kl[50:].mean()
    assert reconstruction < 0.8 * 576 * math.log(2)  # that of a network that knows nothing of a pixel
    torch.manual_seed(7)
    built = TrainAgain(networks, steps=150)
    run(built, 0.2)
    losses = f"reconstruction {reconstruction:.1f}, divergence {kl:.1f} nats per image"
    assert page[-1]["text"] == f"p = 0.2, 150 steps: {losses}"
    weights = built.model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in alone.state_dict().items())


def test_a_run_stops_at_its_next_report_and_shows_what_is_trained(networks, page):
    built = TrainAgain(networks, steps=100)
    page.hear = lambda message: click(built, "stop") if message == page.awaited else None
    page.awaited = {"kind": "state", "running": True, "done": 50, "text": "p = 0.1: step 50 of 100"}
    for steps in (50, 100):  # the next run knows nothing of the stop
        run(built)
        assert page[-1]["text"].startswith(f"p = 0.1, {steps} steps: ")
        assert len(built.children) == 3
        page.awaited = None


def test_a_click_during_a_run_is_answered_and_one_at_its_end_starts_the_next(networks, page, monkeypatch):
    built = TrainAgain(networks, steps=50)
    late = threading.Thread(target=click, args=(built, "train"), kwargs={"p": 0.4})

    def click_at_the_end(message):
        if not (message["running"] or late.ident):
            late.start()
            late.join(0.2)  # it has to wait until this message is out

    def click_and_explore(*arguments, explore=built._explore):
        told = len(page)
        click(built, "train", p=0.3)
        assert [message["running"] for message in page[told:]] == [True]
        explore(*arguments)

    page.hear = click_at_the_end
    monkeypatch.setattr(built, "_explore", click_and_explore)
    for p in (0.1, 0.2):
        click(built, "train", p=p)
    with pytest.raises(RuntimeError, match="under way"):
        built.start(0.2)
    for wait in (built.wait, late.join, built.wait):
        wait()
    assert [running for running, _ in itertools.groupby(message["running"] for message in page)] == [True, False] * 2
    assert {re.match(r"p = [\d.]+", message["text"])[0] for message in page} == {"p = 0.1", "p = 0.4"}


def test_of_clicks_at_the_same_moment_one_starts_a_run(networks, page):
    built, together = TrainAgain(networks, steps=50), threading.Barrier(8)

    def start():
        together.wait()
        built.start(0.1)

    with ThreadPoolExecutor(8) as pool:
        clicks = [pool.submit(start) for _ in range(8)]
    assert [type(click.exception()) for click in clicks].count(RuntimeError) == 7
    built.wait()


def test_the_explorers_of_the_run_before_are_closed(networks, page):
    built, alive = TrainAgain(networks, steps=1), set()
    for _ in range(3):
        run(built)
        alive.add(len(ipywidgets.Widget.get_manager_state()["state"]))
    assert len(alive) == 1
    assert all(widget.comm is not None for widget in (networks, built, *built.children))


def test_an_error_in_the_thread_is_told_and_raised(networks, page, monkeypatch):
    built = TrainAgain(networks, steps=1)
    with monkeypatch.context() as patch:
        fail = Mock(side_effect=FloatingPointError("the loss stopped being finite"))
        patch.setattr("dvae_lib.widgets.train_again.train", fail)
        with pytest.raises(FloatingPointError, match="stopped being finite"):
            run(built)
    text = "FloatingPointError: the loss stopped being finite"
    assert page[-1] == {"kind": "state", "running": False, "done": 0, "text": text}
    run(built)  # the next run knows nothing of the error


# digits

DIGITS = {  # with the size of their codes, and what each shows unless it is told otherwise
    DigitDenoise: (50, {"digit": 3, "level": 0.1, "seed": 1, "drawing": "", "kind_of_noise": 0, "draw_code": False}),
    DigitMap: (2, {"z1": 0.5, "z2": -0.5, "manifold": True, "limit": 3.0}),
    DigitInterpolate: (2, {"first_digit": 1, "last_digit": 0, "position": 50, "limit": 3.0}),
}
each_of_digits = pytest.mark.parametrize("explorer", DIGITS, ids=lambda explorer: explorer.__name__)


@each_of_digits
def test_an_explorer_of_digits_shows_its_networks_and_can_be_linked(explorer):
    codes, shown = DIGITS[explorer]
    networks = of_size(28, codes, (0.0, 0.05), activation="tanh")
    built = explorer(networks)
    state = built.view.get_state()
    assert state == state | shown | {"compared": [0, 1], "digits": list(digits.DIGITS)}
    assert built.view.schema.keys() == shown.keys() - {"limit"}
    assert built.controls.keys() == shown.keys() - {"limit", "drawing"}
    assert repr(built) == f"{explorer.__name__}(p = 0, 0.05)"
    assert stills.still(built.view)
    for name in built.controls.keys() & {"digit", "first_digit", "last_digit"}:
        assert (built.controls[name].min, built.controls[name].max) == (0, 9)
    with pytest.raises(ValueError, match="image_shape"):
        explorer(of_size(24, codes))
    with pytest.raises(ValueError, match="latent_size"):
        explorer(of_size(28, 3))
    with pytest.raises(TypeError, match="must be Networks"):
        explorer({})


def test_networks_of_digits_come_back_as_they_travel():
    for activation in ("relu", "tanh"):
        networks = of_size(28, 50, (0.0, 0.02), activation=activation)
        assert networks.activation == activation
        model = networks.model(0.02)
        assert model.configuration["latent_size"] == 50
        assert Networks({0.0: networks.model(0.0), 0.02: model}).weights == networks.weights
    with pytest.raises(ValueError, match="same activation"):
        Networks({p: of_size(28, 2, (p,), activation=name).model(p) for p, name in ((0.0, "relu"), (0.1, "tanh"))})


def test_the_drawn_digits_are_ten_different_pictures_in_the_middle():
    pictures = [digits.draw(strokes) for strokes in digits._STROKES]
    assert [np.packbits(picture).tobytes().hex() for picture in pictures] == list(digits.DIGITS)
    assert len(set(digits.DIGITS)) == 10
    for picture in pictures:
        assert 40 <= picture.sum() <= 140
        assert not np.delete(picture, np.s_[3:25], 0).any()  # nearly as MNIST's, with a margin of four
        assert not np.delete(picture, np.s_[3:25], 1).any()


def test_a_drawing_of_another_size_is_refused():
    view = DigitDenoise(of_size(28, 50, LEVELS[:2])).view
    view.drawing = "f" * 196
    with pytest.raises(traitlets.TraitError, match="drawing"):
        view.drawing = "f" * 144


@pytest.mark.parametrize(
    "path", [path for path in notebooks() if "widgets" in json.loads(path.read_text())["metadata"]]
)
def test_a_page_has_the_front_end_of_today(path):
    """The stored states hold its code: after a change of it, `make refresh` the notebooks with explorers."""
    stored = json.loads(path.read_text())["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    views_of_page = [model["state"] for model in stored.values() if "_esm" in model["state"]]
    assert views_of_page
    for state in views_of_page:
        kind = getattr(import_module(state["_anywidget_id"].rpartition(".")[0]), state["_anywidget_id"].split(".")[-1])
        assert (state["_esm"], state["_css"]) == (str(kind._esm), str(kind._css)), state["kind"]
