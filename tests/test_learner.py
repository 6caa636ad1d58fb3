"""The network that learns in the page: its arithmetic under node, against PyTorch, and its Python side."""

import base64
import io
import json
import os
import re
import subprocess
from pathlib import Path

import ipywidgets
import numpy as np
import pytest
import torch
from PIL import Image
from test_js import node
from test_widgets import check_bounds
from torch.nn.functional import binary_cross_entropy_with_logits

import dvae_lib
from dvae_lib import BernoulliNoise, all_squares, iou, mlp_vae
from dvae_lib.widgets import SPEEDS, TrainInPage, page_run, stills
from dvae_lib.widgets.views import front_end

FOLDER = Path(dvae_lib.__file__).parent / "widgets"
FRONT_END = (FOLDER / "learner.mjs").read_text()
TESTS = Path(__file__).resolve().parent / "js" / "learner.test.mjs"


class Given(torch.nn.Module):
    """A noise layer, or a sampler, that takes what it is given."""

    def __init__(self, call):
        super().__init__()
        self.forward = call


def listed(parameters):
    """Weights and biases of each layer, row by row."""
    values = [parameter.detach().flatten().tolist() for parameter in parameters]
    return [{"weights": values[i], "biases": values[i + 1]} for i in range(0, len(values), 2)]


def fixture():
    """What PyTorch makes of a model of `mlp_vae` in double precision, with everything random handed over."""
    torch.manual_seed(3)
    model = mlp_vae(hidden_size=page_run.HIDDEN).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((2 * parameter).float())  # steep enough for a divergence, and the page's numbers
    images = all_squares().double()[torch.randperm(256)[: page_run.BATCH]]
    inputs = BernoulliNoise(0.2).corrupt(images)
    eps = torch.randn(page_run.BATCH, 2).float().double()
    model.noise = Given(lambda _: inputs)
    model.sampler = Given(lambda mean, log_variance: mean + torch.exp(log_variance / 2) * eps)
    first = listed(model.parameters())
    reconstruction = binary_cross_entropy_with_logits(model(images), images, reduction="sum")
    divergence = model.kl
    (reconstruction + divergence).backward()
    gradient = listed(parameter.grad for parameter in model.parameters())
    with torch.no_grad():
        codes = model.encode(all_squares().double())[0]
        overlaps = iou(model.decode(codes).sigmoid(), all_squares().double()).sort().values
        tile = model.decode(torch.tensor([[-1.8, 2.6]]).double()).sigmoid()
        survey = {"codes": codes.flatten().tolist(), "row": 3, "column": 5, "tile": tile.flatten().tolist()}
        apart = 100 + overlaps[100:200].diff().argmax().item()  # below the widest gap, untouched by rounding
        survey |= {"least": (overlaps[apart] + overlaps[apart + 1]).item() / 2, "standing": 255 - apart}
    optimizer, adam = torch.optim.Adam(model.parameters(), lr=page_run.RATE), []
    for scale in (1.0, -0.3, 0.01, 4.0):
        for parameter in model.parameters():
            parameter.grad = (scale * parameter.grad.roll(1)).float().double()
        optimizer.step()
        adam.append(
            {
                "gradient": listed(parameter.grad for parameter in model.parameters()),
                "layers": listed(model.parameters()),
            }
        )
    run = page_run.PageRun(7)
    return {
        "layers": first,
        "images": images.flatten().tolist(),
        "inputs": inputs.flatten().tolist(),
        "eps": eps.flatten().tolist(),
        "reconstruction": reconstruction.item() / page_run.BATCH,
        "divergence": divergence.item() / page_run.BATCH,
        "gradient": gradient,
        "survey": survey,
        "rate": page_run.RATE,
        "adam": adam,
        "run": {
            "seed": 7,
            "p": 0.1,
            "first": listed(run.model.parameters()),
            "curves": [run.step(0.1) for _ in range(20)],
        },
    }


def test_the_page_learns_as_pytorch_does(tmp_path):
    path = tmp_path / "fixture.json"
    path.write_text(json.dumps(fixture()))
    command = [node(), "--test-reporter=tap", str(TESTS)]
    environment = {**os.environ, "DVAE_FIXTURE": str(path)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    counts = dict(re.findall(r"^# (pass|fail|skipped|todo) (\d+)$", result.stdout, re.MULTILINE))
    written = len(re.findall(r"^test\(", TESTS.read_text(), re.MULTILINE))
    assert counts == {"pass": str(written), "fail": "0", "skipped": "0", "todo": "0"}


@pytest.mark.parametrize("name", ["HIDDEN", "BATCH", "RATE"])
def test_python_makes_the_page_s_run(name):
    assert re.search(rf"^export const {name} = {getattr(page_run, name)};", FRONT_END, re.MULTILINE)


def test_the_generator_can_be_entered_anywhere():
    whole = page_run.uniforms(5, 1000)
    assert (np.concatenate([page_run.uniforms(5, 300), page_run.uniforms(5, 700, 300)]) == whole).all()


# the explorer


@pytest.fixture(autouse=True)
def close_widgets():
    yield
    ipywidgets.Widget.close_all()


def test_each_control_is_named_joined_to_the_view_and_starts_at_its_value():
    built = TrainInPage()
    shown = {"p": 0.1, "row": 4, "column": 10, "seed": 1, "speed": 2, "kind": "train_in_page"}
    state = built.view.get_state()
    assert state == state | shown
    followed = re.search(r"traits: \[(.*?)\]", FRONT_END)[1]
    assert set(re.findall(r'"(\w+)"', followed)) == built.controls.keys()
    for link, (name, control) in zip(built.links, built.controls.items(), strict=True):
        joined, trait = link.source
        assert joined is control
        assert link.target == (built.view, name)
        assert getattr(control, trait) == getattr(built.view, name), name
    assert repr(built) == "TrainInPage(p = 0.1)"
    assert f"SPEEDS = {json.dumps(SPEEDS)}" in FRONT_END
    asked = set(re.findall(r'\bget\("(\w+)"\)', FRONT_END))
    assert asked <= {"_esm", *type(built.view).class_traits(sync=True)}


def test_the_page_loads_both_parts_as_one_module():
    text = TrainInPage().view.get_state()["_esm"]
    assert text == front_end("learner.mjs")
    assert "import {" not in text
    names = re.findall(r"^(?:export )?(?:async )?(?:function|const|let|class) (\w+)", text, re.MULTILINE)
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("trait", "argument", "low", "high"),
    [("p", "p", 0.0, 0.5), ("seed", "seed", 0, 9999), ("row", "square", 0, 15), ("column", "square", 0, 15)],
)
def test_argument_control_and_page_have_the_same_bounds(trait, argument, low, high):
    def build(value):
        pair = (0, value) if trait == "column" else (value, 0)
        return TrainInPage(**{argument: value if trait == argument else pair})

    check_bounds(build, trait, argument, low, high)


def test_a_speed_is_one_of_those_offered():
    assert [TrainInPage(speed=speed).view.speed for speed in SPEEDS] == [0, 1, 2]
    with pytest.raises(ValueError, match="speed must be one of slow, steady, fast"):
        TrainInPage(speed="faster")


def test_the_still_shows_the_run_that_its_note_speaks_of(monkeypatch):
    def picture(**options):
        stored = TrainInPage(**options)._repr_mimebundle_()["image/png"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(stored))).convert("L"))

    monkeypatch.setattr(stills, "FILM", (0, 1, 3, 8))
    first = picture()
    assert first.shape[1] == 1125
    assert (picture() == first).all()
    assert (picture(square=(1, 1), speed="slow") == first).all()  # it speaks of neither
    for change in ({"p": 0.3}, {"seed": 2}):
        assert (picture(**change) != first).any(), change
