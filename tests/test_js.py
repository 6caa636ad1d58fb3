"""The explorers' front end: its unit tests run under node, against numbers that PyTorch computes here."""

import base64
import json
import math
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
from dvae_lib.widgets import COUNTS, NOISES, Layers, Networks
from dvae_lib.widgets.digits import draw
from dvae_lib.widgets.stills import corrupt
from dvae_lib.widgets.views import DRAWS, FIRST_DRAW, front_end

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
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    counts = dict(re.findall(r"^# (pass|fail|skipped|todo) (\d+)$", result.stdout, re.MULTILINE))
    written = len(re.findall(r"^test\(", path.read_text(), re.MULTILINE))
    assert counts == {"pass": str(written), "fail": "0", "skipped": "0", "todo": "0"}


def run_under_node(tests, fixture, folder):
    """The same, with numbers to compare with."""
    path = folder / "fixture.json"
    path.write_text(json.dumps(fixture))
    run_tests(tests, DVAE_FIXTURE=str(path))


def test_the_front_end_passes_its_unit_tests(tmp_path):
    run_under_node(TESTS, fixture(), tmp_path)


def test_the_front_end_of_the_digits_passes_its_unit_tests(tmp_path):
    run_under_node(TESTS.with_name("digits.test.mjs"), digit_fixture(), tmp_path)


@torch.no_grad()
def further_fixture():
    """One network of bits and one of all levels, as they travel, and what PyTorch makes of pictures with them."""
    squares, generator = all_squares().flatten(1), torch.Generator().manual_seed(4)
    bits, levels = (
        Layers.load(FRONT_END.parents[2] / f"weights/explorer-{name}.safetensors") for name in ("bits", "levels")
    )
    images = torch.cat([torch.rand(3, 576, generator=generator).round(), squares[[74, 255]]])
    codes = torch.randint(2, (5, 12), generator=generator).float()
    decoded = bits.answer(codes, 3).double()
    nats = functional.binary_cross_entropy_with_logits(decoded, images.double(), reduction="none").sum(1)
    found = {"images": images, "codes": codes, "logits": bits.answer(images, 0, 3), "decoded": decoded.sigmoid()}
    cases = []
    for level, deviation in ((0, 0.3), (32, 6**0.5), (64, 20.0)):  # 6 is 0.3 times 20
        noisy = (squares[[100 + level]] + deviation * torch.randn(1, 576, generator=generator)).double()
        log_density = torch.distributions.Normal(squares.double(), deviation).log_prob(noisy).sum(1)
        posterior = (log_density - log_density.logsumexp(0)).exp()  # by Bayes' rule, all squares as probable before
        noise = torch.full((1, 1), deviation).log().double()
        spoilt = torch.cat([noisy / (deviation**2 + 0.1) ** 0.5, noise], 1)
        answers = {"guess": levels.answer(spoilt).sigmoid()[0], "mean": posterior @ squares.double()}
        case = answers | {"noisy": noisy[0], "posterior": posterior}
        cases.append({"level": level, "deviation": deviation} | {name: x.tolist() for name, x in case.items()})
    travels = [{"weights": base64.b64encode(x.weights).decode(), "shapes": x.shapes} for x in (bits, levels)]
    told = {name: tensor.tolist() for name, tensor in found.items()} | {"nats": nats.tolist()}
    return {"bits": travels[0] | told, "levels": travels[1] | {"cases": cases}}


def test_the_front_end_of_bits_and_levels_passes_its_unit_tests(tmp_path):
    run_under_node(TESTS.with_name("further.test.mjs"), further_fixture(), tmp_path)


def test_the_shell_passes_its_unit_tests():
    run_tests(TESTS.with_name("shell.test.mjs"))


# the explorer of the bounds: independent formulas in double precision, on the page's 8-bit weights


def hermite_rule(nodes):
    """Means under the standard normal distribution of the plane: (nodes^2, 2) and (nodes^2,)."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    weights = torch.tensor(weights / weights.sum())
    return torch.cartesian_prod(*2 * [torch.tensor(points)]), torch.outer(weights, weights).flatten()


def stroud_rule():
    """Twelve nodes on four rays, as in Stroud (1971), E2: 7-1, for the density e^(-x^2 - y^2), in units of sqrt(2)."""
    r, s, t = math.sqrt(3), math.sqrt((9 - 3 * math.sqrt(5)) / 8), math.sqrt((9 + 3 * math.sqrt(5)) / 8)
    signs = torch.cartesian_prod(*2 * [torch.tensor([1.0, -1.0])]).double()
    points = torch.cat([torch.tensor([[r, 0], [-r, 0], [0, r], [0, -r]]).double(), s * signs, t * signs])
    shares = [1 / 36, (5 + 2 * math.sqrt(5)) / 45, (5 - 2 * math.sqrt(5)) / 45]
    return math.sqrt(2) * points, torch.tensor(shares).double().repeat_interleave(4)


def turned(points):
    """The rule of each of the Gaussians, turned by the golden angle from one to the next: (DRAWS, nodes, 2)."""
    angle = torch.arange(DRAWS).double() * math.pi * (3 - math.sqrt(5))
    matrix = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(DRAWS, 2, 2)
    return torch.einsum("nij,qj->nqi", matrix, points)


def log_likelihood(model, image, codes):
    pixels = torch.distributions.Bernoulli(logits=model.decode(codes.reshape(-1, 2)), validate_args=False)
    return pixels.log_prob(image).flatten(1).sum(1).view(codes.shape[:-1])


def fine_means(model, image, mean, log_variance, spacing):
    """E_q ln p(image|z) of each Gaussian: midpoints out to 5.5 of its standard deviations, `spacing` of them apart.

    No further than 0.05 in codes. With 0.4, half the spacing moves the mean of 64 Gaussians by less than 5e-4 nats, of
    bounds of hundreds of nats by less than 2e-6 of them.
    """
    found = []
    for centre, sd in zip(mean, (log_variance / 2).exp(), strict=True):
        counts = (11 / (0.05 / sd).clamp(max=spacing)).ceil().int().tolist()
        points = torch.cartesian_prod(*(11 * (torch.arange(n).double() + 0.5) / n - 5.5 for n in counts))
        points = points[points.square().sum(1) < 5.5**2]
        weights = (-points.square().sum(1) / 2).exp()
        values = []
        for codes in (centre + sd * points).split(2000):
            logits = model.decode(codes).flatten(1)
            # the logarithms of 1 + e^-|l| as that of their product, of factors of at most 2
            log_normalisers = logits.clamp(min=0).sum(1) + (1 + (-logits.abs()).exp()).prod(1).log()
            values.append(logits @ image.flatten() - log_normalisers)
        found.append(torch.cat(values) @ weights / weights.sum())
    return torch.stack(found)


def normal(mean, log_variance):
    return torch.distributions.Independent(torch.distributions.Normal(mean, (log_variance / 2).exp()), 1)


def mixture_entropy(mean, log_variance, rule):
    """For each K the mean entropy of the mixtures of K neighbours."""
    entropies, (points, weights) = [], rule
    codes = mean[:, None] + (log_variance / 2).exp()[:, None] * turned(points)  # (DRAWS, nodes, 2)
    for size in COUNTS:
        mean_log = 0.0
        for group in torch.arange(DRAWS).split(size):
            mixture = torch.distributions.MixtureSameFamily(
                torch.distributions.Categorical(torch.ones(size, dtype=torch.float64)),
                normal(mean[group], log_variance[group]),
            )
            mean_log += (mixture.log_prob(codes[group]) @ weights).sum().item() / DRAWS
        entropies.append(-mean_log)
    return entropies


def exact(model, image):
    """ln p(x) from a grid that is 16 times as fine where it matters, and how far one half as fine is from it."""
    axis, fine = torch.linspace(-6, 6, 241).double(), 0.05 * ((torch.arange(16).double() + 0.5) / 16 - 0.5)
    cells = torch.cartesian_prod(axis, axis)
    prior = normal(torch.zeros(2).double(), torch.zeros(2).double())

    def log_joint(codes):
        return torch.cat([log_likelihood(model, image, part) + prior.log_prob(part) for part in codes.split(2000)])

    rough = log_joint(cells)
    kept = cells[rough > rough.max() - 25]
    offsets = torch.cartesian_prod(fine, fine)
    values = log_joint((kept[:, None] + offsets).flatten(0, 1))
    return (values.logsumexp(0) + 2 * math.log(0.05 / 16)).item()


@torch.no_grad()
def bound_fixture(number=50):
    networks = Networks.load(FRONT_END.parents[2] / "weights")
    generator, cases = torch.Generator().manual_seed(5), []
    rules = {"likelihood": stroud_rule(), "entropy": hermite_rule(6), "fine": hermite_rule(20)}
    for number_of_case in range(number):
        index = number_of_case % len(networks.levels)
        model = networks.model(networks.levels[index]).double()
        image = all_squares()[[torch.randint(256, (1,), generator=generator).item()]]
        if number_of_case % 10 == 9:  # what a reader might draw
            image = (image + (torch.rand(image.shape, generator=generator) < 0.02)).clamp(max=1)
        level = 0.5 * torch.rand(1, generator=generator).item() ** 2
        seed = torch.randint(10000, (1,), generator=generator).item()
        draws = torch.cat([corrupt(0, level, image, FIRST_DRAW + DRAWS * seed + draw) for draw in range(DRAWS)])
        (mean, log_variance), clean = model.encode(draws.double()), model.encode(image.double())
        points, weights = rules["likelihood"]
        codes = mean[:, None] + (log_variance / 2).exp()[:, None] * turned(points)
        prior = torch.distributions.Normal(torch.zeros(()).double(), 1)
        energy = (log_likelihood(model, image.double(), codes) + prior.log_prob(codes).sum(2)) @ weights
        entropies = mixture_entropy(mean, log_variance, rules["entropy"])
        points, weights = hermite_rule(10)
        codes = clean[0] + (clean[1] / 2).exp() * points
        posterior = torch.distributions.Normal(clean[0], (clean[1] / 2).exp())
        divergence = torch.distributions.kl_divergence(posterior, prior).sum().item()
        fine_entropies = mixture_entropy(mean, log_variance, rules["fine"])
        second_moments = mean.square() + log_variance.exp()
        log_prior = -(second_moments + math.log(2 * math.pi)).mean(0).sum().item() / 2
        fine_elbo = fine_means(model, image.double(), *clean, 0.12).item() - divergence
        fine_likelihood = fine_means(model, image.double(), mean, log_variance, 0.4).mean().item()
        cases.append(
            {
                "index": index,
                "image": image.flatten().int().tolist(),
                "level": level,
                "seed": seed,
                "clean": [part[0].tolist() for part in clean],
                "last": [part[-1].tolist() for part in (mean, log_variance)],
                "elbo": (log_likelihood(model, image.double(), codes) @ weights).item() - divergence,
                "climb": [energy.mean().item() + entropy for entropy in entropies],
                "entropies": fine_entropies,
                "fine_elbo": fine_elbo,
                "fine_climb": [fine_likelihood + log_prior + entropy for entropy in fine_entropies],
                "exact": exact(model, image.double()) if number_of_case < 12 else None,
                "limit": 1e-3,
            }
        )
    weights = base64.b64encode(networks.weights).decode()
    return {"weights": weights, "shapes": networks.shapes, "levels": networks.levels, "cases": cases}


def test_the_bounds_of_the_page_are_those_of_pytorch(tmp_path):
    run_under_node(TESTS.with_name("bound.test.mjs"), bound_fixture(), tmp_path)


def test_the_joined_module_has_no_import_left_and_offers_what_anywidget_asks_for(tmp_path):
    """As a page loads it: from one text, with nothing beside it."""
    (tmp_path / "joined.mjs").write_text(front_end("bound.mjs"))
    script = """import * as module from "./joined.mjs";
        console.log(typeof module.default.render, JSON.stringify(module.COUNTS).replaceAll(",", ", "));"""
    command = [node(), "--input-type=module", "--eval", script]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.stdout == f"function {json.dumps(COUNTS)}\n", result.stderr
    assert not re.search(r"^import\b", front_end("bound.mjs"), re.MULTILINE)


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
