"""The explorers of bits and of noise levels in the built chapter, with no kernel behind it."""

import re

import pytest
import torch
from cdn import ROOT
from test_explorers import ALL_DRAWN, EXPLORERS, IDS, SHOWN, changed, settle
from torch.nn.functional import binary_cross_entropy_with_logits

from dvae_lib import all_squares
from dvae_lib.widgets import Layers, NoiseLevels
from dvae_lib.widgets.stills import corrupt


@pytest.fixture
def open_explorer(open_page):
    """Return a function that opens the chapter and returns the page and one of the two explorers, drawn."""

    def open_explorer(name: str, fragment: str = ""):
        page = open_page("book/explore", fragment=fragment)
        page.wait_for_function(ALL_DRAWN, arg=len(EXPLORERS) + 1)
        settle(page)
        return page, page.locator(".dvae-explorer").filter(has_text=EXPLORERS[IDS.index(name)])

    return open_explorer


def switches(explorer) -> str:
    states = [switch.get_attribute("aria-checked") for switch in explorer.get_by_role("switch").all()]
    return "".join("1" if state == "true" else "0" for state in states)


def test_the_switches_say_what_is_decoded_and_the_address_keeps_them(open_explorer):
    page, explorer = open_explorer("bits")
    bits, square = Layers.load(ROOT / "weights" / "explorer-bits.safetensors"), all_squares()[[74]].flatten(1)
    (shares,) = bits.answer(square, last=3).sigmoid().tolist()
    shown = explorer.locator(".dvae-bits b").all_inner_texts()
    assert [float(text) for text in shown] == pytest.approx(shares, abs=0.0051)
    likeliest = switches(explorer)
    assert likeliest == "".join(str(int(share >= 0.5)) for share in shares)
    before = explorer.evaluate(SHOWN)
    explorer.get_by_role("switch", name="bit 4", exact=True).press("Space")
    changed(page, explorer, before)
    code = switches(explorer)
    assert [j for j in range(12) if code[j] != likeliest[j]] == [3]
    note = explorer.locator(".dvae-note").inner_text()
    wrong, nats = re.search(r"(\d+) wrong pixels of 576, cross-entropy ([\d.]+) nats", note).groups()
    logits = bits.answer(torch.tensor([[float(digit) for digit in code]]), first=3)
    assert int(wrong) == ((logits >= 0) != (square == 1)).sum()
    expected = binary_cross_entropy_with_logits(logits, square, reduction="sum").item()
    assert float(nats) == pytest.approx(expected, abs=0.1)
    assert note.endswith("differ from the most probable code: 1.")
    page.wait_for_function("location.hash.startsWith('#bit_switches=code:')")
    fragment = page.evaluate("location.hash")
    _, fresh = open_explorer("bits", fragment)
    fresh.locator(".dvae-other").wait_for()
    assert switches(fresh) == code
    fresh.get_by_role("button", name="Take over the most probable code").click()
    fresh.locator(".dvae-other").wait_for(state="detached")
    assert switches(fresh) == likeliest


def test_the_errors_of_network_and_exact_mean_are_those_of_pytorch(open_explorer):
    _, explorer = open_explorer("levels")
    view = NoiseLevels(Layers.load(ROOT / "weights" / "explorer-levels.safetensors")).view
    squares = all_squares().flatten(1)
    clean, std = squares[[16 * view.row + view.column]], view.deviation()
    noisy = corrupt(3, std, clean, view.seed)
    posterior = (-torch.cdist(noisy, squares).square() / (2 * std**2)).softmax(1)
    guess, mean = view.guess(noisy), posterior @ squares
    expected = [std, posterior[0, 16 * view.row + view.column], torch.special.entr(posterior).sum().exp()]
    expected += [(a - b).square().sum() for a, b in ((guess, clean), (mean, clean), (guess, mean))]
    pattern = r"(?s)deviation ([\d.]+).* probability ([\d.]+), .* among ([\d.]+) squares\. .* network ([\d.]+), "
    shown = re.search(pattern + r"exact mean ([\d.]+); between the two ([\d.]+)\.", explorer.inner_text()).groups()
    for text, value, tolerance in zip(shown, expected, (0.006, 0.002, 0.1, 0.1, 0.1, 0.1), strict=True):
        assert float(text) == pytest.approx(float(value), abs=tolerance)
