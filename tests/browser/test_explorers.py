"""The explorers of the built chapter, driven as a reader would, with no kernel behind the page."""

import re

import numpy as np
import pytest
import torch
from cdn import ROOT
from torch.nn.functional import binary_cross_entropy_with_logits

from dvae_lib import all_squares
from dvae_lib.widgets import LEVELS, LIMIT, Bound, Networks, TrainingNoise
from dvae_lib.widgets.page_run import PageRun
from dvae_lib.widgets.stills import BAR_DRAWS, FIRST_BAR_DRAW, bound_of, corrupt

# words that only one of them has
EXPLORERS = ["code z₁", "draw the code", "wrong pixels by", "per cent", "corruptions"]
EXPLORERS += ["Random bits", "exact posterior mean", "posterior, noisy input"]
IDS = ["map", "denoise", "training", "between", "bound", "bits", "levels", "page"]
TRAIN_IN_PAGE = IDS.index("page")
each_explorer = pytest.mark.parametrize("index", range(len(EXPLORERS)), ids=IDS)
of_trained_networks = pytest.mark.parametrize("index", range(TRAIN_IN_PAGE), ids=IDS[:TRAIN_IN_PAGE])

# What an explorer shows: the pixels of its canvases, and where its markers stand
SHOWN = """(explorer) => [...explorer.querySelectorAll("canvas")].map((canvas) => canvas.toDataURL()).join()
  + [...explorer.querySelectorAll("[style]")].map((element) => element.style.left).join()"""
ALL_DRAWN = """(count) => {
  const roots = [...document.querySelectorAll(".dvae-explorer .dvae")];
  return roots.length === count && roots.every((root) => root.explorer);
}"""
FOCUSABLE = "a[href], button, input, select, [role=slider], [role=application], [contenteditable=true]"


@pytest.fixture
def open_explorer(open_page):
    """Return a function that opens the chapter and returns the page and one of its explorers, drawn."""

    def open_explorer(index: int, **options):
        page = open_page("book/explore", **options)
        page.wait_for_function(ALL_DRAWN, arg=len(EXPLORERS) + 1)  # one that is still to come would move the others
        explorer = page.locator(".dvae-explorer").filter(has_text=EXPLORERS[index])
        explorer.scroll_into_view_if_needed()
        wait_for_answers(page, explorer)
        return page, explorer

    return open_explorer


def settle(page) -> None:
    """Wait until two frames are drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done())))")


def wait_for_answers(page, explorer) -> None:
    """Wait until a worker owes the explorer nothing, so that what changes next was changed by the reader."""
    still = "(explorer) => !explorer.querySelector('[aria-busy=true]')"
    page.wait_for_function(still, arg=explorer.element_handle())
    settle(page)


def changed(page, explorer, before: str) -> str:
    """Wait until `explorer` shows anything but `before`, which on a busy machine takes a while, and return it."""
    differs = f"([explorer, before]) => ({SHOWN})(explorer) !== before"
    page.wait_for_function(differs, arg=[explorer.element_handle(), before])
    wait_for_answers(page, explorer)
    return explorer.evaluate(SHOWN)


@each_explorer
def test_every_slider_moves_the_picture_by_mouse_and_by_keyboard(open_explorer, index):
    page, explorer = open_explorer(index)
    tracks = explorer.locator(".dvae-controls .noUi-base")
    assert tracks.count() >= 2
    for track in tracks.all():
        before = explorer.evaluate(SHOWN)
        box = track.bounding_box()
        track.click(position={"x": 0.93 * box["width"], "y": box["height"] / 2})
        clicked = changed(page, explorer, before)
        track.locator("[role=slider]").press("ArrowLeft")
        changed(page, explorer, clicked)
    assert explorer.locator(".dvae").evaluate("(root) => root.explorer.durations.length") >= 4  # of each picture


@of_trained_networks
def test_every_other_control_changes_what_is_seen(open_explorer, index):
    page, explorer = open_explorer(index, reduced_motion=True)
    controls = explorer.locator("select, input[type=checkbox], input[type=number], .dvae button")
    assert controls.count() >= 1
    for control in controls.all():
        kind, name = control.evaluate("(control) => [control.type, control.textContent]")
        if name == "Clear":  # there is nothing to clear before something is drawn
            continue
        before = explorer.evaluate(SHOWN)
        if kind == "select-one":
            control.select_option(index=2)
        elif kind == "number":
            control.fill("77")
            control.press("Enter")
        else:
            control.click()
        changed(page, explorer, before)  # a button that plays makes its first step after a second


@each_explorer
def test_the_keyboard_alone_reaches_every_control(open_explorer, index):
    page, explorer = open_explorer(index)
    wanted = explorer.locator(FOCUSABLE).locator("visible=true").count()
    explorer.evaluate("(explorer) => { explorer.tabIndex = -1; explorer.focus(); }")  # as if come from above
    reached = explorer.evaluate_handle("() => new Set()")
    for _ in range(wanted + 10):
        page.keyboard.press("Tab")
        inside = explorer.evaluate(
            """(explorer, reached) => {
              const focused = document.activeElement;
              if (explorer.contains(focused)) reached.add(focused);
              return explorer.contains(focused);
            }""",
            reached,
        )
        if not inside:
            break
    missed = explorer.evaluate(
        """(explorer, [reached, focusable]) => [...explorer.querySelectorAll(focusable)]
          .filter((element) => element.checkVisibility() && !element.disabled && !reached.has(element))
          .map((element) => element.outerHTML)""",
        [reached, FOCUSABLE],
    )
    assert missed == []
    assert wanted >= 6


@each_explorer
def test_every_control_has_a_name(open_explorer, index):
    _, explorer = open_explorer(index)
    unnamed = explorer.evaluate(
        """(explorer, focusable) => [...explorer.querySelectorAll(focusable + ", canvas[role]")]
          .filter((element) => element.checkVisibility())
          .filter((element) => !(element.ariaLabel || element.title || element.labels?.[0]?.textContent
            || (element.tagName === "BUTTON" && element.textContent)))
          .map((element) => element.outerHTML)""",
        FOCUSABLE,
    )
    assert unnamed == []


@each_explorer
def test_what_is_seen_is_also_said(open_explorer, index):
    page, explorer = open_explorer(index)
    words = explorer.locator("[aria-live=polite]")
    page.wait_for_function("(words) => words.textContent", arg=words.element_handle())
    before = words.inner_text()
    explorer.locator("[role=slider]").last.press("Home")
    explorer.locator("[role=slider]").first.press("End")
    page.wait_for_function("([words, before]) => words.textContent !== before", arg=[words.element_handle(), before])
    assert len(words.inner_text()) > 20


@pytest.mark.parametrize("width", [400, 1300, 1600, 1920])
def test_explorers_use_a_wide_screen_and_cover_nothing(open_page, width):
    page = open_page("book/explore", width=width)
    page.wait_for_function(ALL_DRAWN, arg=len(EXPLORERS) + 1)
    edges = """(selector) => {
      const boxes = [...document.querySelectorAll(selector)].filter((element) => element.checkVisibility());
      return boxes.map((element) => element.getBoundingClientRect()).map(({ left, right }) => [left, right]);
    }"""
    text = page.evaluate(edges, "article section > p")[0]
    explorers = page.evaluate(edges, ".dvae-explorer, .dvae-explorer *")
    right = max(right for _, right in explorers)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert right <= width
    if width >= 1300:
        contents = page.evaluate(edges, ".bd-sidebar-secondary")[0]
        assert right <= contents[0]
        assert contents[1] <= width
    assert (right > text[1] + 100) == (width >= 1600)


@pytest.mark.parametrize("touch", [False, True], ids=["mouse", "touch"])
def test_a_point_is_put_on_the_code_plane(open_explorer, touch):
    page, explorer = open_explorer(0, has_touch=touch)
    plane = explorer.locator("canvas[role=slider]").first
    before = explorer.evaluate(SHOWN)
    box = plane.bounding_box()
    position = {"x": 0.75 * box["width"], "y": 0.25 * box["height"]}
    plane.tap(position=position) if touch else plane.click(position=position)
    shown = changed(page, explorer, before)
    text = plane.get_attribute("aria-valuetext")
    assert text.count("2.0") == 2, text  # to the right and upwards, half of LIMIT each
    assert LIMIT == 4
    code = np.array(re.findall(r"[\d.]+", text), dtype=float)
    for key, step in {"ArrowLeft": (-0.05, 0), "ArrowUp": (0, 0.05), "Shift+ArrowDown": (0, -0.5)}.items():
        plane.press(key)
        shown = changed(page, explorer, shown)
        code += step
        found = re.findall(r"[\d.]+", plane.get_attribute("aria-valuetext"))
        assert [float(part) for part in found] == pytest.approx(code.tolist(), abs=1e-6)


def test_a_picture_is_drawn_by_hand(open_explorer):
    page, explorer = open_explorer(1)
    before = explorer.evaluate(SHOWN)
    box = explorer.locator("canvas[role=application]").bounding_box()
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 0.1 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.4 * box["height"], steps=5)
    page.mouse.up()
    changed(page, explorer, before)


def test_the_way_leads_from_the_first_picture_to_the_last(open_explorer):
    page, explorer = open_explorer(3)
    now = explorer.locator("canvas[aria-label='Picture on the way, between pixels']")
    grey = "(canvas) => [...canvas.getContext('2d').getImageData(0, 0, 24, 24).data].filter((_, i) => i % 4 === 0)"
    for key, (row, column) in {"Home": (2, 2), "End": (12, 13)}.items():
        before = explorer.evaluate(SHOWN)
        explorer.get_by_role("slider", name="per cent").press(key)
        changed(page, explorer, before)
        assert now.evaluate(grey) == (255 * all_squares()[16 * row + column]).int().flatten().tolist()


@pytest.mark.parametrize("reduced_motion", [False, True], ids=["motion", "reduced"])
def test_the_play_button_moves_and_with_reduced_motion_only_steps(open_explorer, reduced_motion):
    page, explorer = open_explorer(3, reduced_motion=reduced_motion)
    handle = explorer.get_by_role("slider", name="per cent")
    handle.press("Home")
    handle.evaluate(
        """(handle) => {
          window.seen = [];
          new MutationObserver(() => window.seen.push(Number(handle.getAttribute("aria-valuenow"))))
            .observe(handle, { attributes: true, attributeFilter: ["aria-valuenow"] });
        }"""
    )
    explorer.get_by_role("button", name="Play").click()
    page.wait_for_function("window.seen.at(-1) >= 50")
    seen = sorted({value for value in page.evaluate("window.seen") if value <= 50})
    largest = max(b - a for a, b in zip([0, *seen], seen, strict=False))
    assert (largest >= 12) if reduced_motion else (largest <= 5)


def test_what_plays_stops_where_the_reader_moves_it(open_explorer):
    _, explorer = open_explorer(3)
    slider = explorer.get_by_role("slider", name="per cent")
    explorer.get_by_role("button", name="Play").click()
    explorer.get_by_role("button", name="Pause").wait_for()
    slider.press("Home")
    explorer.get_by_role("button", name="Play").wait_for()
    assert float(slider.get_attribute("aria-valuenow")) == 0


def test_training_needs_a_kernel_and_is_hidden_without_one(open_page):
    page = open_page("book/explore")
    page.wait_for_function(ALL_DRAWN, arg=len(EXPLORERS) + 1)
    assert page.get_by_role("button", name="Train").count() == 0
    assert page.locator(".dvae button", has_text="Train").count() == 1  # there, and hidden


def test_a_still_picture_stands_on_paper_and_where_no_explorer_is(open_page):
    page = open_page("book/explore")
    page.wait_for_function(ALL_DRAWN, arg=len(EXPLORERS) + 1)
    stills = page.locator(".dvae-still img")
    live = page.locator(".cell_output:has(> .dvae-still) .dvae-explorer")

    def seen():
        return [where.locator("visible=true").count() for where in (stills, live)]

    assert seen() == [0, len(EXPLORERS)]
    page.emulate_media(media="print")
    assert seen() == [len(EXPLORERS), 0]
    page.emulate_media(media="screen")
    page.evaluate("document.querySelectorAll('.dvae-explorer').forEach((explorer) => explorer.remove())")
    assert seen() == [len(EXPLORERS), 0]


def test_the_networks_of_the_page_are_the_shipped_ones(open_explorer):
    _, explorer = open_explorer(2)
    codes = torch.tensor([[0.0, 0.0], [1.0, -1.0], [-0.5, 2.0]])
    decoded = explorer.evaluate(
        """(explorer, codes) => explorer.querySelector(".dvae").explorer.sheets.map(({ network }) => {
          const probabilities = new Float32Array(576);
          return codes.map((code) => {
            network.decode(Float32Array.from(code), probabilities);
            return [...probabilities];
          });
        })""",
        codes.tolist(),
    )
    networks = Networks.load(ROOT / "weights")
    with torch.no_grad():
        expected = [networks.model(level).decode(codes).sigmoid().flatten(1) for level in LEVELS]
    np.testing.assert_allclose(decoded, torch.stack(expected), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("name", "explorers"), [("book/intro", 1), ("book/explore", len(EXPLORERS) + 1)])
def test_the_numbers_first_shown_are_those_of_pytorch(open_page, name, explorers):
    page = open_page(name)
    page.wait_for_function(ALL_DRAWN, arg=explorers)
    settle(page)
    explorer = page.locator(".dvae-explorer").filter(has_text=EXPLORERS[1])
    pixels = explorer.locator(".dvae-inputs canvas").evaluate_all(
        """(canvases) => canvases.map((canvas) =>
          [...canvas.getContext("2d").getImageData(0, 0, 24, 24).data].filter((_, i) => i % 4 === 0))"""
    )
    clean, noisy = torch.tensor(pixels).div(255).double().reshape(2, 1, 1, 24, 24)
    assert noisy.unique().tolist() == [0, 1]  # flipped, and nothing lost on the canvas
    networks = Networks.load(ROOT / "weights", levels=(0.0, 0.1))
    notes = explorer.locator(".dvae-note").all_inner_texts()
    for level, note in zip(networks.levels, notes, strict=True):
        wrong, nats = re.fullmatch(r"(\d+) wrong pixels of 576; cross-entropy ([\d.]+) nats", note).groups()
        model = networks.model(level).double()
        with torch.no_grad():
            logits = model.decode(model.encode(noisy)[0])
        assert int(wrong) == ((logits >= 0) != (clean == 1)).sum()
        cross_entropy = binary_cross_entropy_with_logits(logits, clean, reduction="sum").item()
        assert float(nats) == pytest.approx(cross_entropy, abs=0.1)


@torch.no_grad()
def test_pixels_too_many_are_orange_and_missing_ones_blue(open_explorer):
    _, explorer = open_explorer(1)
    read = """(canvases) => canvases.map((canvas) => [...canvas.getContext("2d").getImageData(0, 0, 24, 24).data])"""
    inputs = torch.tensor(explorer.locator(".dvae-inputs canvas").evaluate_all(read)).view(2, 1, 1, 24, 24, 4)[..., 0]
    shown = torch.tensor(explorer.locator("canvas[aria-label='at 1/2']").evaluate_all(read)).view(2, 24, 24, 4)
    colours = torch.tensor([[0, 0, 0], [86, 180, 233], [230, 159, 0], [255, 255, 255]])
    networks, wrong = Networks.load(ROOT / "weights", levels=(0.0, 0.1)), 0
    for level, picture in zip(networks.levels, shown, strict=True):
        model = networks.model(level).double()
        found, wanted = model.decode(model.encode(inputs[1].double() / 255)[0])[0, 0] >= 0, inputs[0, 0, 0] == 255
        assert torch.equal(picture[..., :3], colours[2 * found.long() + wanted.long()])
        wrong += int((found != wanted).sum())
    assert wrong > 0


@torch.no_grad()
def test_ellipses_and_bars_are_those_of_pytorch(open_explorer):
    """Two standard deviations of both posteriors around their means, z2 upwards; wrong pixels of 16 corruptions."""
    page, explorer = open_explorer(2)
    bars = explorer.locator(".dvae-bars b")
    page.wait_for_function("(bar) => bar.textContent", arg=bars.last.element_handle())
    least, ellipses = explorer.locator(".dvae").evaluate(
        """(root) => {
          const [seen, pen] = [[], CanvasRenderingContext2D.prototype];
          const { ellipse } = pen;
          pen.ellipse = function (...given) { seen.push(given.slice(0, 4)); ellipse.apply(this, given); };
          root.explorer.draw();
          pen.ellipse = ellipse;
          const { clientWidth } = root.querySelector(".dvae-plane");
          return [Math.round((4 * 480) / clientWidth) / 2, seen]; // two points of the page, which can still be seen
        }"""
    )
    view = TrainingNoise(Networks.load(ROOT / "weights")).view
    clean, model = all_squares()[[16 * view.row + view.column]], view.networks.model(LEVELS[view.index])
    images = clean, corrupt(0, view.level, clean, view.seed)
    for found, image in zip(ellipses, images, strict=True):
        mean, log_variance = model.encode(image)
        first, second = (mean[0] / LIMIT).clamp(-1, 1).tolist()
        radii = (120 * (log_variance[0] / 2).exp()).clamp(min=least).tolist()  # 480 pixels for codes from -4 to 4
        assert found == pytest.approx([240 + 240 * first, 240 - 240 * second, *radii], abs=0.05)
    seeds = range(FIRST_BAR_DRAW + BAR_DRAWS * view.seed, FIRST_BAR_DRAW + BAR_DRAWS * (view.seed + 1))
    draws = torch.cat([corrupt(0, view.level, clean, seed) for seed in seeds])
    for level, text in zip(LEVELS, bars.all_inner_texts(), strict=True):
        model = view.networks.model(level)
        wrong = ((model.decode(model.encode(draws)[0]) >= 0) != (clean == 1)).sum().item() / BAR_DRAWS
        assert float(text) == pytest.approx(wrong, abs=0.2 if wrong < 9.9 else 0.7)  # from 10 on as whole numbers
    view.networks.close()


# once the worker has filled its table and refined the bounds
COUNTED = """(reading) => reading.textContent.startsWith('Of the ')
  && reading.closest('.dvae').getAttribute('aria-busy') === 'false'"""


def test_the_bounds_first_shown_are_those_of_pytorch(open_explorer):
    page, explorer = open_explorer(4)
    reading = explorer.locator(".dvae-reading")
    page.wait_for_function(COUNTED, arg=reading.element_handle(), timeout=60000)
    settle(page)
    values = [float(text.replace("\u2212", "-")) for text in explorer.locator(".dvae-hang > b").all_inner_texts()]
    built = Bound(Networks.load(ROOT / "weights"))
    found = bound_of(built.view)
    built.view.networks.close()
    expected = [found[name] for name in ("exact", "L_16", "L_1", "elbo")]
    np.testing.assert_allclose(values, expected, atol=0.002 + 0.005, rtol=0)
    assert [f"{value:.2f}" for value in values] == [f"{value:.2f}" for value in expected]  # as the still has them
    gaps = [float(text) for text in explorer.locator(".dvae-gaps b").all_inner_texts()]
    between = [expected[0] - expected[1], expected[1] - expected[2], expected[0] - expected[3]]
    np.testing.assert_allclose(gaps, between, atol=0.004 + 0.005, rtol=0)
    assert f"{gaps[1]:.2f}" in reading.inner_text()


def test_a_bar_says_when_it_is_still_counted_and_the_others_stand(open_explorer):
    page, explorer = open_explorer(4)
    reading = explorer.locator(".dvae-reading")
    page.wait_for_function(COUNTED, arg=reading.element_handle(), timeout=60000)
    explorer.get_by_role("slider", name="training p").press("ArrowRight")
    pending = """(explorer) => explorer.querySelector(".dvae-reading").textContent.includes("being counted")
      && [...explorer.querySelectorAll(".dvae-hang > b")].map((bar) => bar.innerText)"""
    exact, *others = page.wait_for_function(pending, arg=explorer.element_handle()).json_value()
    assert exact == "\u2026"
    assert all(re.fullmatch(r"\u2212[\d.]+", text) for text in others)
    page.wait_for_function(COUNTED, arg=reading.element_handle(), timeout=60000)
    assert re.fullmatch(r"\u2212[\d.]+", explorer.locator(".dvae-hang > b").first.inner_text())


def test_a_page_that_may_start_no_worker_counts_the_bounds_itself(open_explorer):
    page, explorer = open_explorer(4)
    values = explorer.locator(".dvae-hang > b")
    page.wait_for_function(COUNTED, arg=explorer.locator(".dvae-reading").element_handle())
    counted = values.all_inner_texts()
    page.add_init_script("window.Worker = class { constructor() { throw new DOMException('no'); } };")
    page.reload()
    page.wait_for_function(ALL_DRAWN, arg=len(EXPLORERS) + 1)
    page.wait_for_function(COUNTED, arg=explorer.locator(".dvae-reading").element_handle())
    assert values.all_inner_texts() == counted


def test_the_page_is_small(html):
    assert (html / "book" / "explore.html").stat().st_size < 4e6


# training in the page


@pytest.fixture
def open_training(open_explorer):
    """Return a function that opens the chapter and returns the page, the explorer that trains and its buttons."""

    def open_training(**options):
        page, explorer = open_explorer(TRAIN_IN_PAGE, **options)
        return page, explorer, *(explorer.get_by_role("button", name=name) for name in ("Start", "Step", "Reset"))

    return open_training


def training_numbers(explorer) -> dict[str, float]:
    """What the explorer says of its run."""
    text = explorer.locator(".dvae").inner_text().replace(",", "")
    names = {"steps": r"Step (\d+)", "reconstruction": r"reconstruction ([\d.]+)", "divergence": r"divergence ([\d.]+)"}
    found = {name: re.search(pattern, text) for name, pattern in names.items()}
    return {name: float(match[1]) for name, match in found.items() if match}


def wait_for_steps(page, explorer, least: int) -> dict[str, float]:
    enough = """([explorer, least]) =>
      Number(explorer.querySelector(".dvae-count").textContent.replace(",", "").match(/\\d+/)[0]) >= least"""
    page.wait_for_function(enough, arg=[explorer.element_handle(), least], timeout=120_000)
    settle(page)
    return training_numbers(explorer)


def test_a_step_is_one_step_and_pytorchs_with_the_same_draws(open_training):
    page, explorer, _, step, _ = open_training()
    assert training_numbers(explorer) == {"steps": 0}
    run, costs = PageRun(1), []
    for steps in (1, 2, 3):
        before = explorer.evaluate(SHOWN)
        step.click()
        shown = wait_for_steps(page, explorer, steps)
        changed(page, explorer, before)
        costs.append(run.step(0.1))
        reconstruction, divergence = np.mean(costs, axis=0)
        assert shown["steps"] == steps
        assert shown["reconstruction"] == pytest.approx(reconstruction, abs=0.051)  # shown to a tenth
        assert shown["divergence"] == pytest.approx(divergence, abs=0.051)
    page.wait_for_timeout(500)
    assert training_numbers(explorer) == shown


def test_a_run_starts_learns_pauses_and_repeats_itself_from_its_seed(open_training):
    page, explorer, start, step, reset = open_training()
    seen = []
    for speed in ("fast", "steady"):
        explorer.get_by_role("combobox").select_option(speed)
        start.click()
        pause = explorer.get_by_role("button", name="Pause")
        early = wait_for_steps(page, explorer, 1)
        assert step.is_disabled()
        late = wait_for_steps(page, explorer, max(60, early["steps"] + 30))
        assert late["reconstruction"] < early["reconstruction"] < 405
        assert late["reconstruction"] < 300
        pause.click()
        start.wait_for()
        stands = "(root) => root.learner.run.surveyed.running === false"  # the answer to the pause has come
        page.wait_for_function(stands, arg=explorer.locator(".dvae").element_handle())
        settle(page)
        paused = training_numbers(explorer)
        page.wait_for_timeout(700)
        assert training_numbers(explorer) == paused
        seen.append(explorer.locator(".dvae").evaluate("(root) => [...root.learner.rows.slice(0, 180)]"))
        reset.click()
        settle(page)
        assert training_numbers(explorer) == {"steps": 0}
    assert seen[0] == seen[1]  # reconstruction, divergence and noise of sixty steps, to the last bit
    explorer.get_by_role("spinbutton").fill("2")
    explorer.get_by_role("spinbutton").press("Enter")
    step.click()
    wait_for_steps(page, explorer, 1)
    assert explorer.locator(".dvae").evaluate("(root) => root.learner.rows[0]") != seen[0][0]


def test_noise_that_is_set_during_a_run_holds_at_once(open_training):
    page, explorer, _, step, _ = open_training()
    step.click()
    wait_for_steps(page, explorer, 1)
    explorer.get_by_role("slider", name="noise p").press("End")
    settle(page)
    step.click()
    wait_for_steps(page, explorer, 2)
    rows = explorer.locator(".dvae").evaluate("(root) => [...root.learner.rows.slice(0, 6)]")
    assert (rows[2], rows[5]) == (pytest.approx(0.1), 0.5)


def test_less_motion_means_fewer_pictures(open_training):
    page, explorer, start, _, _ = open_training(reduced_motion=True)
    drawn = "(root) => root.explorer.durations.length"
    root = explorer.locator(".dvae")
    start.click()
    wait_for_steps(page, explorer, 1)
    before = root.evaluate(drawn)
    page.wait_for_timeout(2000)
    assert root.evaluate(drawn) - before <= 2


def test_a_page_that_may_start_no_worker_says_so(open_training):
    page, explorer, start, step, _ = open_training()
    page.evaluate("() => { window.Worker = class { constructor() { throw new DOMException('no'); } }; }")
    start.click()
    explorer.get_by_text("may not start a worker").wait_for()
    assert start.is_disabled()
    assert step.is_disabled()
    assert training_numbers(explorer) == {"steps": 0}
