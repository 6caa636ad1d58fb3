"""The explorers' Python side: the weights that travel, the controls that are joined, and the run in a thread."""

import math
import re
import threading
from pathlib import Path

import ipywidgets
import pytest
import torch
import traitlets
from ipywidgets.embed import embed_data

from dvae_lib import BernoulliNoise, TrainingConfig, all_squares, mlp_vae, save_checkpoint
from dvae_lib import widgets as widgets_module
from dvae_lib.widgets import (
    LEVELS,
    LIMIT,
    NOISES,
    Denoise,
    Interpolate,
    LatentMap,
    Networks,
    TrainAgain,
    TrainingNoise,
)

FRONT_END = (Path(widgets_module.__file__).parent / "widgets.mjs").read_text()
EXPLORERS = [LatentMap, Denoise, TrainingNoise, Interpolate, TrainAgain]
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


# weights


def weights_and_scales(model):
    """The weight matrices by name, with what the largest of 127 steps of each row must be."""
    for name, weight in model.state_dict().items():
        if name.endswith("weight"):
            yield name, weight, weight.abs().amax(1, keepdim=True) / 127


def test_the_weights_survive_within_half_a_step_of_their_row():
    models = {0.0: small_model(0), 0.2: small_model(1, 0.2)}
    networks = Networks(models)
    for p, model in models.items():
        state = networks.model(p).state_dict()
        for name, weight, step in weights_and_scales(model):
            assert ((state[name] - weight).abs() <= 0.5001 * step).all(), name
            steps = state[name] / step
            assert torch.allclose(steps, steps.round(), atol=1e-4), name
            assert (steps.round().abs().amax(1) == 127).all(), name  # all 8 bits are used
        for name, bias in model.state_dict().items():
            if name.endswith("bias"):
                assert torch.equal(state[name], bias), name


def test_packing_again_what_travelled_changes_nothing(networks):
    again = Networks({p: networks.model(p) for p in networks.levels})
    for p in networks.levels:
        state, other = networks.model(p).state_dict(), again.model(p).state_dict()
        assert all(torch.allclose(state[name], other[name], rtol=1e-6, atol=0) for name in state)


def test_a_row_of_zeros_stays_zero():
    model = small_model(0)
    with torch.no_grad():
        model.decoder[0].weight[3] = 0
    state = Networks({0.0: model}).model(0.0).state_dict()
    assert (state["decoder.0.weight"][3] == 0).all()
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_the_bytes_are_one_a_weight_and_eight_a_row(networks):
    model = small_model(0)
    matrices = [tensor for tensor in model.state_dict().values() if tensor.ndim == 2]
    size = sum(matrix.numel() + 8 * len(matrix) for matrix in matrices)
    assert len(networks.weights) == len(LEVELS) * size
    assert networks.shapes == [list(matrix.shape) for matrix in matrices]


def test_models_come_back_by_their_level_in_eval_mode_with_their_noise():
    networks = Networks({0.3: small_model(1, 0.3), 0.0: small_model(0)})
    assert networks.levels == [0.0, 0.3]
    assert networks.model(0.0).noise is None
    model = networks.model(0.3)
    assert model.noise.p == 0.3
    assert not model.training
    images = all_squares()[::50]
    with torch.no_grad():
        wanted = small_model(1, 0.3).encode(images)[0]
        assert torch.allclose(model.encode(images)[0], wanted, atol=0.02)
        assert not torch.allclose(networks.model(0.0).encode(images)[0], wanted, atol=0.02)


@pytest.mark.parametrize(
    ("models", "error", "message"),
    [
        ([], TypeError, "models must map"),
        ({}, ValueError, "at least one"),
        ({0.0: torch.nn.Linear(1, 1)}, TypeError, "VariationalAutoencoders, got Linear"),
        ({1.5: small_model(0)}, ValueError, r"in \[0, 1\], got 1.5"),
        ({"a": small_model(0)}, TypeError, "must be a number"),
        ({0.0: mlp_vae(latent_size=3, hidden_size=8)}, ValueError, "latent_size = 2, got 3"),
        ({0.0: mlp_vae((1, 28, 28), hidden_size=8)}, ValueError, "image_shape"),
        ({0.0: small_model(0), 0.1: small_model(0, 0.1, 9)}, ValueError, "same hidden_size"),
    ],
)
def test_other_models_are_refused(models, error, message):
    with pytest.raises(error, match=message):
        Networks(models)


def test_weights_that_are_not_finite_are_refused():
    model = small_model(0)
    with torch.no_grad():
        model.encoder[5].mean.bias[1] = torch.nan
    with pytest.raises(ValueError, match=r"encoder\.5\.mean"):
        Networks({0.0: model})


def test_a_level_that_is_not_there_is_refused(networks):
    with pytest.raises(ValueError, match=r"one of 0, 0.05, 0.1, 0.2, 0.3, 0.4, got 0.15"):
        networks.model(0.15)


def test_load_reads_the_shipped_form(tmp_path):
    models = {p: small_model(index, p) for index, p in enumerate(LEVELS)}
    config = TrainingConfig(hidden_size=8)
    for p, name in zip(LEVELS, ["p00", "p05", "p10", "p20", "p30", "p40"], strict=True):
        save_checkpoint(tmp_path / f"explorer-{name}.safetensors", models[p], config)
    loaded = Networks.load(tmp_path, hidden_size=8)
    assert loaded.levels == list(LEVELS)
    assert loaded.weights == Networks(models).weights
    assert Networks.load(tmp_path, levels=(0, 0.1), hidden_size=8).levels == [0, 0.1]
    with pytest.raises(ValueError, match="hidden_size = 8, the model has hidden_size = 9"):
        Networks.load(tmp_path, hidden_size=9)
    with pytest.raises(FileNotFoundError, match=r"explorer-p29\.safetensors"):
        Networks.load(tmp_path, levels=[0.29], hidden_size=8)  # 100 * 0.29 is a little less than 29
    with pytest.raises(ValueError, match="levels must be"):
        Networks.load(tmp_path, levels=[-0.1], hidden_size=8)


# explorers


@each_explorer
def test_each_control_is_joined_to_the_view_and_starts_at_its_value(explorer, networks):
    built = explorer(networks)
    for link, (name, control) in zip(built.links, built.controls.items(), strict=True):
        joined, trait = link.source
        assert joined is control
        assert link.target == (built.view, name)
        assert getattr(control, trait) == getattr(built.view, name), name


@each_explorer
def test_a_reader_can_reach_all_that_changes_the_picture(explorer, networks):
    """Every trait that the front end follows has a control, or is set by what is drawn on the canvas."""
    built = explorer(networks)
    kind = re.sub(r"_(.)", lambda match: match[1].upper(), built.view.kind)
    body = FRONT_END.split(f"function {kind}(")[1].split("\nfunction ")[0]
    followed = re.findall(r'"(\w+)"', re.search(r"traits: \[(.*?)\]", body)[1])
    assert set(followed) - {"drawing"} == built.controls.keys()


@each_explorer
def test_the_front_end_asks_for_traits_that_exist(explorer, networks):
    view = explorer(networks).view
    assert re.search(rf"^  {view.kind}\b", FRONT_END.split("const EXPLORERS = {")[1].split("}")[0], re.MULTILINE)
    asked = set(re.findall(r'\bget\("(\w+)"\)', FRONT_END))
    classes = [type(explorer(networks).view) for explorer in EXPLORERS]
    known = {name for kind in classes for name in kind.class_traits(sync=True)} | set(Networks.class_traits(sync=True))
    assert asked <= known
    assert {"networks", "kind", "compared", "limit", "levels", "weights", "shapes"} <= asked


@pytest.mark.parametrize(
    ("explorer", "text"),
    [
        (LatentMap, "LatentMap(p = 0, 0.1)"),
        (Denoise, "Denoise(p = 0, 0.1)"),
        (TrainingNoise, "TrainingNoise(p = 0, 0.05, 0.1, 0.2, 0.3, 0.4)"),
        (Interpolate, "Interpolate(p = 0, 0.1)"),
        (TrainAgain, "TrainAgain(4000 steps)"),
    ],
)
def test_a_cell_prints_the_same_text_on_every_run(explorer, text, networks):
    built = explorer(networks)
    bundle = built._repr_mimebundle_()
    assert bundle["text/plain"] == repr(built) == text
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert repr(networks) == "Networks(p = 0, 0.05, 0.1, 0.2, 0.3, 0.4)"
    assert "0x" not in repr(built.view)


def test_the_weights_are_in_the_page_once_however_many_explorers_it_has(networks):
    views = [explorer(networks) for explorer in EXPLORERS]
    state = embed_data(views=views, drop_defaults=False)["manager_state"]["state"]
    buffers = [buffer for model in state.values() for buffer in model.get("buffers", [])]
    assert [buffer["path"] for buffer in buffers] == [["weights"]]
    (holder,) = [name for name, model in state.items() if model.get("buffers")]
    refer = [model["state"]["networks"] for model in state.values() if "networks" in model["state"]]
    assert refer == [f"IPY_MODEL_{holder}"] * len(EXPLORERS)


def test_nothing_of_a_run_is_stored_with_the_page(networks):
    """Train again is hidden until a kernel answers, and no trait may say that one did."""
    built = TrainAgain(networks)
    before = built.view.get_state()
    built._answer(built.view, {"kind": "hello"}, [])
    assert built.view.get_state() == before
    assert built.children == (built.view,)


def test_explorers_start_where_they_are_told(networks):
    assert (LatentMap(networks, code=(1, -2)).view.z1, LatentMap(networks, code=(1, -2)).view.z2) == (1, -2)
    view = Denoise(networks, (3, 9), "mask", 0.25, 77, levels=(0.05, 0.4)).view
    values = (view.row, view.column, view.kind_of_noise, view.level, view.seed, view.compared)
    assert values == (3, 9, NOISES.index("mask"), 0.25, 77, [1, 5])
    view = TrainingNoise(networks, (3, 9), 0.25, 77, start=0.2).view
    assert (view.row, view.column, view.level, view.seed, view.index) == (3, 9, 0.25, 77, 3)
    view = Interpolate(networks, (1, 2), (3, 4), 60).view
    values = (view.first_row, view.first_column, view.last_row, view.last_column, view.position)
    assert values == (1, 2, 3, 4, 60)


@pytest.mark.parametrize(
    ("explorer", "arguments", "error", "message"),
    [
        (LatentMap, {"code": (0, LIMIT + 1)}, ValueError, "code must be"),
        (LatentMap, {"code": 1.0}, TypeError, "two entries"),
        (LatentMap, {"levels": (0, 0.15)}, ValueError, "got 0.15"),
        (Denoise, {"square": (16, 0)}, ValueError, "from 0 to 15"),
        (Denoise, {"square": (0, -1)}, ValueError, "square must be at least 0"),
        (Denoise, {"square": 3}, TypeError, "row, column"),
        (Denoise, {"noise": "hail"}, ValueError, "flip, mask, salt and pepper, Gaussian, got 'hail'"),
        (Denoise, {"level": 0.6}, ValueError, "level must be"),
        (Denoise, {"seed": 10000}, ValueError, "at most 9999"),
        (Denoise, {"seed": 1.5}, TypeError, "seed must be an integer"),
        (TrainingNoise, {"start": 0.15}, ValueError, "got 0.15"),
        (TrainingNoise, {"square": (0, 16)}, ValueError, "from 0 to 15"),
        (Interpolate, {"first": (0, 16)}, ValueError, "first must"),
        (Interpolate, {"last": "ab"}, TypeError, "last must"),
        (Interpolate, {"position": 101}, ValueError, "at most 100"),
        (TrainAgain, {"steps": 0}, ValueError, "steps must"),
    ],
)
def test_bad_arguments_are_refused(explorer, arguments, error, message, networks):
    with pytest.raises(error, match=message):
        explorer(networks, **arguments)


@each_explorer
def test_anything_but_networks_is_refused(explorer):
    with pytest.raises(TypeError, match="networks must be Networks, got dict"):
        explorer({0.0: small_model(0)})


@pytest.mark.parametrize(
    ("explorer", "trait", "wrong"),
    [
        (LatentMap, "z1", LIMIT + 0.1),
        (LatentMap, "z2", -LIMIT - 0.1),
        (Denoise, "row", 16),
        (Denoise, "level", 1.1),
        (Denoise, "seed", 10000),
        (Denoise, "kind_of_noise", 4),
        (TrainingNoise, "column", -1),
        (TrainingNoise, "index", len(LEVELS)),
        (Interpolate, "last_row", 16),
        (Interpolate, "position", 101),
    ],
)
def test_a_value_out_of_range_does_not_reach_the_front_end(explorer, trait, wrong, networks):
    view = explorer(networks).view
    with pytest.raises(traitlets.TraitError):
        setattr(view, trait, wrong)


def test_a_drawing_that_the_front_end_cannot_read_is_refused(networks):
    view = Denoise(networks).view
    view.drawing = "0" * 143 + "f"
    for wrong in ("f" * 143, "F" * 144, "g" * 144, "f" * 145):
        with pytest.raises(traitlets.TraitError, match="144 hexadecimal digits"):
            view.drawing = wrong
    view.drawing = ""


# training again


@pytest.fixture
def messages(monkeypatch):
    """What Python tells the page."""
    sent = []
    monkeypatch.setattr("ipywidgets.Widget.send", lambda self, content, buffers=None: sent.append(content))
    return sent


def ask(built, **message):
    built._answer(built.view, message, [])


def test_a_run_trains_reports_and_shows_explorers_of_the_new_network(networks, messages):
    built = TrainAgain(networks, steps=120)
    ask(built, kind="train", p=0.2)
    built.wait()
    done = [message["done"] for message in messages if message["running"]]
    assert done[-2:] == [50, 100]
    assert messages[-1]["running"] is False
    assert messages[-1]["done"] == 120
    text = r"p = 0.2, 120 steps: reconstruction ([\d.]+), divergence [\d.]+ nats per image"
    reconstruction = float(re.fullmatch(text, messages[-1]["text"])[1])
    assert reconstruction < 0.8 * 576 * math.log(2)  # that of an untrained network, which knows nothing of a pixel
    assert built.model.noise.p == 0.2
    assert [type(child) for child in built.children[1:]] == [LatentMap, Denoise]
    shown = built.children[1].view.networks
    assert shown.levels == [0, 0.2]
    assert shown.weights.endswith(Networks({0.2: built.model}).weights)
    assert torch.equal(
        shown.model(0).state_dict()["decoder.4.weight"], networks.model(0).state_dict()["decoder.4.weight"]
    )


def test_a_run_can_be_stopped_and_what_is_trained_is_kept(networks, messages):
    built = TrainAgain(networks, steps=5_000)
    reached = threading.Event()
    report = built._report
    built._report = lambda running, text: (report(running, text), built._done >= 50 and reached.set())
    ask(built, kind="train", p=0.1)
    assert reached.wait(60)
    with pytest.raises(RuntimeError, match="under way"):
        built.start(0.1)
    ask(built, kind="train", p=0.3)  # a second click does no harm
    ask(built, kind="stop")
    built.wait()
    assert not built.running
    assert 0 < built._done < 5_000
    assert built.model.noise.p == 0.1
    assert built.model(all_squares()[:2]).shape == (2, 1, 24, 24)  # nothing of the run hangs on it


def test_a_run_that_is_stopped_at_once_shows_nothing(networks, messages):
    built = TrainAgain(networks, steps=50)
    built._stop.clear = built._stop.set  # stopped before the first step
    built.start(0.1)
    built.wait()
    assert built.model is None
    assert built.children == (built.view,)
    assert messages[-1] == {"kind": "state", "running": False, "done": 0, "text": "stopped before the first step"}


def test_an_error_in_the_thread_is_told_and_raised(networks, messages, monkeypatch):
    def fail(*_, **__):
        raise FloatingPointError("the loss stopped being finite")

    monkeypatch.setattr(widgets_module, "train", fail)
    built = TrainAgain(networks, steps=50)
    built.start(0.1)
    with pytest.raises(FloatingPointError, match="stopped being finite"):
        built.wait()
    assert messages[-1]["text"] == "FloatingPointError: the loss stopped being finite"
    assert messages[-1]["running"] is False


def test_training_again_does_not_touch_the_callers_random_numbers(networks, messages):
    built = TrainAgain(networks, steps=5)
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    built.start(0.1)
    built.wait()
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("p", [0, 0.6, -1, float("nan")])
def test_a_noise_out_of_range_is_refused(p, networks):
    with pytest.raises(ValueError, match="p must be"):
        TrainAgain(networks).start(p)
