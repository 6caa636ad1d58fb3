"""The explorers' front end: its unit tests run under node, against numbers that PyTorch computes here."""

import base64
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from dvae_lib import all_squares, best_square_iou, mlp_vae
from dvae_lib.widgets import NOISES, Networks
from dvae_lib.widgets.digits import draw
from dvae_lib.widgets.stills import corrupt
from dvae_lib.widgets.views import front_end

TESTS = Path(__file__).resolve().parent / "js" / "widgets.test.mjs"
FRONT_END = TESTS.parents[2] / "dvae_lib" / "widgets" / "widgets.mjs"


def node() -> str:
    found = shutil.which("node")
    if not found:
        if os.environ.get("CI"):
            pytest.fail("node is not installed, and in CI the tests of the front end must run")
        pytest.skip("node is not installed: the front end's unit tests are left out")
    return found


def steep_model(seed, **sizes):
    """A model with weights large enough for probabilities from 0 to 1."""
    torch.manual_seed(seed)
    model = mlp_vae(hidden_size=32, **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 4
    return model


@torch.no_grad()
def numbers(networks, images, codes):
    """The networks as they travel, and what PyTorch makes of these images and codes with them."""
    expected = []
    for level in networks.levels:
        model = networks.model(level)
        mean, log_variance = model.encode(images)
        logits = model.decode(codes)
        entropy = functional.binary_cross_entropy_with_logits(logits, images, reduction="none").sum((1, 2, 3))
        assert logits.sigmoid().min() < 0.01
        assert logits.sigmoid().max() > 0.99
        values = {"mean": mean, "log_variance": log_variance, "cross_entropy": entropy}
        values["probabilities"] = logits.sigmoid().flatten(1)
        expected.append({name: tensor.tolist() for name, tensor in values.items()})
    return {
        "weights": base64.b64encode(networks.weights).decode(),
        "shapes": networks.shapes,
        "levels": networks.levels,
        "activation": networks.activation,
        "networks": expected,
        "images": images.flatten(1).tolist(),
        "codes": codes.tolist(),
    }


def fixture():
    generator = torch.Generator().manual_seed(2)
    images, codes = torch.rand(20, 1, 24, 24, generator=generator), torch.randn(20, 2, generator=generator)
    images[0], images[1] = 0, all_squares()[100]
    return numbers(Networks({0.0: steep_model(0), 0.1: steep_model(1)}), images, codes) | {
        "overlap": best_square_iou(images).tolist(),
        "squares": [np.packbits(square.bool().numpy()).tobytes().hex() for square in all_squares()],
        "noises": list(NOISES),
    }


def digit_fixture():
    generator = torch.Generator().manual_seed(3)
    images, codes = torch.rand(5, 1, 28, 28, generator=generator), torch.randn(5, 50, generator=generator)
    images[0] = torch.from_numpy(draw("14,5 17,6 14,23"))
    models = {
        p: steep_model(seed, image_shape=(1, 28, 28), latent_size=50, activation="tanh")
        for p, seed in ((0.0, 4), (0.02, 5))
    }
    return numbers(Networks(models), images, codes) | {"hexadecimal": np.packbits(images[0].bool()).tobytes().hex()}


def run_tests(path, **variables):
    """Run a file of unit tests under node: all must pass, and none may be left out."""
    command = [node(), "--test-reporter=tap", str(path)]
    environment = {**os.environ, **variables}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    counts = dict(re.findall(r"^# (pass|fail|skipped|todo) (\d+)$", result.stdout, re.MULTILINE))
    written = len(re.findall(r"^test\(", path.read_text(), re.MULTILINE))
    assert counts == {"pass": str(written), "fail": "0", "skipped": "0", "todo": "0"}


def test_the_front_end_passes_its_unit_tests(tmp_path):
    path = tmp_path / "fixture.json"
    path.write_text(json.dumps(fixture()))
    run_tests(TESTS, DVAE_FIXTURE=str(path))


def test_the_front_end_of_the_digits_passes_its_unit_tests(tmp_path):
    path = tmp_path / "fixture.json"
    path.write_text(json.dumps(digit_fixture()))
    run_tests(TESTS.with_name("digits.test.mjs"), DVAE_FIXTURE=str(path))


def test_the_shell_passes_its_unit_tests():
    run_tests(TESTS.with_name("shell.test.mjs"))


@pytest.mark.parametrize(("kind", "level", "seed"), [(0, 0.1, 1), (1, 0.5, 0), (2, 0.3, 9999), (3, 0.25, 20016)])
def test_a_still_shows_the_noise_that_the_page_draws(kind, level, seed):
    image = all_squares()[[74]]
    drawn = f"""import {{ corrupt }} from "{FRONT_END.as_uri()}";
        const out = new Float32Array(576);
        corrupt({kind}, {level}, {image.flatten().int().tolist()}, {seed}, out);
        console.log(JSON.stringify([...out]));"""
    command = [node(), "--input-type=module", "--eval", drawn]
    page = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout)
    assert len(set(page)) >= 2
    np.testing.assert_allclose(corrupt(kind, level, image, seed).flatten(), page, atol=1e-6)


@pytest.mark.parametrize("part", sorted(FRONT_END.parent.glob("*.mjs")), ids=lambda path: path.name)
def test_the_front_end_fetches_nothing(part):
    source = front_end(*{part.name} - {"widgets.mjs", "shell.mjs"})
    assert part.read_text()[-500:] in source
    assert not re.search(r"\bimport\b\s*[({*\"']|\bfetch\(|XMLHttpRequest|WebSocket|https?:", source)
