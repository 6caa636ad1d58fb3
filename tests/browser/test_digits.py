"""The explorers of digits in their built page, with no kernel behind it."""

import re

import pytest
import torch
from test_explorers import ALL_DRAWN, SHOWN, changed, settle
from torch.nn.functional import binary_cross_entropy_with_logits

from dvae_lib import shipped
from dvae_lib.widgets import Networks


@pytest.fixture
def open_digits(open_page):
    """Return a function that opens the page and returns it and one of its explorers, drawn."""

    def open_digits(index: int, **options):
        page = open_page("book/digits", **options)
        page.wait_for_function(ALL_DRAWN, arg=3)
        settle(page)
        explorer = page.locator(".dvae-explorer").nth(index)
        explorer.scroll_into_view_if_needed()
        return page, explorer

    return open_digits


def test_the_numbers_first_shown_are_those_of_pytorch(open_digits):
    _, explorer = open_digits(0)
    pixels = explorer.locator(".dvae-inputs canvas").evaluate_all(
        """(canvases) => canvases.map((canvas) =>
          [...canvas.getContext("2d").getImageData(0, 0, 28, 28).data].filter((_, i) => i % 4 === 0))"""
    )
    clean, noisy = torch.tensor(pixels).div(255).double().reshape(2, 1, 1, 28, 28)
    assert noisy.unique().tolist() == [0, 1]
    networks = Networks({0.0: shipped("mnist-vae"), 0.02: shipped("mnist-dvae")})
    notes = explorer.locator(".dvae-note").all_inner_texts()
    for level, note in zip(networks.levels, notes, strict=True):
        pattern = r"(\d+) wrong pixels of 784; cross-entropy ([\d.]+) nats; the noise moves the code by ([\d.]+) dev.*"
        wrong, nats, moved = re.fullmatch(pattern, note).groups()
        model = networks.model(level).double()
        with torch.no_grad():
            (mean, log_variance), (code, _) = model.encode(clean), model.encode(noisy)
            logits = model.decode(code)
        assert int(wrong) == ((logits >= 0) != (clean == 1)).sum()
        cross_entropy = binary_cross_entropy_with_logits(logits, clean, reduction="sum").item()
        assert float(nats) == pytest.approx(cross_entropy, abs=0.1)
        assert float(moved) == pytest.approx(((code - mean) / (log_variance / 2).exp()).norm().item(), abs=0.1)


def test_a_digit_is_drawn_with_a_brush_and_without_gaps(open_digits):
    page, explorer = open_digits(0)
    explorer.get_by_role("button", name="Empty picture").click()
    settle(page)
    before = explorer.evaluate(SHOWN)
    box = explorer.locator("canvas[role=application]").bounding_box()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.5 * box["height"], steps=1)  # as fast as can be
    page.mouse.up()
    changed(page, explorer, before)
    # the address may still be that of the empty picture, or of the brush's first dot
    digits = "[...(location.hash.split('drawing:')[1] ?? '')]"
    page.wait_for_function(
        digits
        + """.map((digit) => parseInt(digit, 16).toString(2).replaceAll("0", "").length)
          .reduce((sum, count) => sum + count, 0) > 9"""
    )
    drawing = re.search("[0-9a-f]{196}", page.evaluate("location.hash"))[0]
    rows = [bin(int(drawing[7 * row : 7 * row + 7], 16))[2:].zfill(28) for row in range(28)]
    set_rows = [row.strip("0") for row in rows if "1" in row]
    assert 2 <= len(set_rows) <= 3
    assert all("0" not in row for row in set_rows)
    assert max(map(len, set_rows)) >= 14


@pytest.mark.parametrize("index", [0, 1, 2], ids=["denoise", "map", "between"])
def test_every_slider_moves_the_picture(open_digits, index):
    page, explorer = open_digits(index, width=400, scheme="dark")
    for handle in explorer.locator(".dvae-controls [role=slider]").all():
        before = explorer.evaluate(SHOWN)
        handle.press("ArrowRight")
        handle.press("ArrowRight")
        changed(page, explorer, before)


def test_the_page_is_small(html):
    assert (html / "book" / "digits.html").stat().st_size < 3e6
