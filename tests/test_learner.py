"""The network that learns in the page: its arithmetic under node, against PyTorch, and its Python side."""

import json
import os
import re
import subprocess
from pathlib import Path

import torch
from test_js import node
from torch.nn.functional import binary_cross_entropy_with_logits

import dvae_lib
from dvae_lib import BernoulliNoise, all_squares, iou, mlp_vae
from dvae_lib.widgets import page_run

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
            {"gradient": listed(parameter.grad for parameter in model.parameters()), "layers": listed(model.parameters())}
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
