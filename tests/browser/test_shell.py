"""What every explorer has around it: the state in the page's address, and the buttons at its end."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image, ImageFilter
from test_explorers import ALL_DRAWN, EXPLORERS, SHOWN, each_explorer, settle, wait_for_answers

from dvae_lib import all_squares

KINDS = ["latent_map", "denoise", "training_noise", "interpolate", "bound"]  # in the order of EXPLORERS
KINDS += ["bit_switches", "noise_levels", "train_in_page"]
STATE = re.compile(r'(<script type="application/vnd.jupyter.widget-state\+json">)(.*?)(</script>)', re.DOTALL)


@pytest.fixture
def open_explorer(open_page):
    """Return a function that opens the chapter at a fragment and returns the page and an explorer, drawn."""

    def open_explorer(index: int, fragment: str = "", **options):
        page = open_page("book/explore", fragment=fragment, **options)
        page.wait_for_function(ALL_DRAWN, arg=len(EXPLORERS) + 1)
        page.wait_for_timeout(500)  # an address is written, and an explorer scrolled to, a moment later
        settle(page)
        return page, page.locator(".dvae-explorer").filter(has_text=EXPLORERS[index])

    return open_explorer


def hash_of(page, pattern: str) -> str:
    """Wait for an address whose fragment matches, and return the fragment."""
    page.wait_for_function("(pattern) => RegExp(`^${pattern}$`).test(location.hash)", arg=pattern)
    return page.evaluate("location.hash")


def same(page, explorer, shown: str) -> None:
    """Wait until `explorer` shows what another page showed."""
    equal = f"([explorer, shown]) => ({SHOWN})(explorer) === shown"
    page.wait_for_function(equal, arg=[explorer.element_handle(), shown])


def wait_for_top(page, thing) -> None:
    """Wait until the page has scrolled to `thing`."""
    there = "(thing) => { const { top } = thing.getBoundingClientRect(); return top >= 0 && top < 200; }"
    page.wait_for_function(there, arg=thing.element_handle())


def readouts(explorer) -> list[str]:
    """What the controls say."""
    return explorer.locator(".dvae-controls").evaluate(
        """(box) => [...box.querySelectorAll(".widget-readout, input, select")]
          .map((part) => part.type === "checkbox" ? part.checked : part.value ?? part.textContent).map(String)"""
    )


@each_explorer
def test_what_is_set_goes_to_the_address_and_comes_back_in_a_fresh_page(open_explorer, index):
    page, explorer = open_explorer(index)
    assert page.evaluate("location.hash") == ""
    before = readouts(explorer)
    for slider in explorer.locator(".dvae-controls [role=slider]").all():
        slider.press("ArrowRight")
        slider.press("ArrowRight")
    for box in explorer.locator("input[type=checkbox]").all():
        box.click()
    settle(page)
    shown, said = explorer.evaluate(SHOWN), readouts(explorer)
    count = sum(a != b for a, b in zip(said, before, strict=True))
    assert count >= 2
    changed = hash_of(page, rf"#{KINDS[index]}=(\w+:[\w.-]+(,|$)){{{count}}}")  # and nothing else
    fresh, again = open_explorer(index, fragment=changed)
    same(fresh, again, shown)
    assert readouts(again) == said
    assert fresh.evaluate("location.hash") == changed
    wait_for_top(fresh, again)


def test_a_drawing_is_in_the_address(open_explorer):
    page, explorer = open_explorer(1)
    canvas = explorer.locator("canvas[role=application]")
    for key in ("ArrowRight", "ArrowUp", "Space"):
        canvas.press(key)
    canvas.blur()
    changed = hash_of(page, "#denoise=drawing:[0-9a-f]{144}")
    expected = all_squares()[16 * 4 + 10, 0].bool().numpy()
    expected[12 - 1, 12 + 1] = False  # from the middle one to the right and one up
    assert changed == f"#denoise=drawing:{np.packbits(expected).tobytes().hex()}"
    fresh, again = open_explorer(1, fragment=changed)
    same(fresh, again, explorer.evaluate(SHOWN))


def test_explorers_have_the_address_in_common_and_the_first_one_is_shown(open_explorer):
    page, _ = open_explorer(2, fragment="#training_noise=index:5&latent_map=z1:-2&hide=nothing")
    boxes = [page.locator(".dvae-explorer").filter(has_text=text) for text in EXPLORERS]
    assert readouts(boxes[0])[0] == "\u22122.00"
    assert readouts(boxes[2])[0] == "0.4"
    wait_for_top(page, boxes[2])
    boxes[3].get_by_role("slider", name="per cent").press("Home")
    hash_of(page, "#training_noise=index:5&latent_map=z1:-2&hide=nothing&interpolate=position:0")


NONSENSE = [
    "#denoise=level:9,row:x,bogus:3,column,kind_of_noise:1.5,drawing:fff,seed:-1,draw_code:maybe",
    "#denoise=%E0%A4%A,level:0.3&&=&latent_map=z1:&latent_map",
    "#denoise-2=level:0.3&__proto__=level:0.3&constructor=z1:1",
]


@pytest.mark.parametrize("fragment", NONSENSE)
def test_nonsense_in_the_address_is_passed_over(open_explorer, fragment):
    plain = readouts(open_explorer(1)[1])
    page, explorer = open_explorer(1, fragment=fragment)  # which fails if the page raises an error
    assert readouts(explorer) == plain
    assert page.evaluate("location.hash") == fragment


def test_a_headings_anchor_stays_what_it_is(open_explorer):
    page, explorer = open_explorer(1, fragment="#denoising")
    assert page.evaluate("location.hash") == "#denoising"
    wait_for_top(page, page.locator("#denoising > h2"))
    explorer.get_by_role("slider", name="row").press("Home")
    hash_of(page, "#denoising&denoise=row:0")
    page.locator(".bd-sidebar-secondary a[href='#the-plane-of-codes']").click()  # says nothing of explorers
    hash_of(page, "#the-plane-of-codes&denoise=row:0")
    assert readouts(explorer)[0] == "0"


def test_a_link_within_the_page_sets_an_explorer(open_explorer):
    page, explorer = open_explorer(1)
    explorer.get_by_role("slider", name="column").press("Home")
    page.get_by_role("link", name="this link").click()
    wait_for_top(page, explorer)
    # the column as well is again that of the page as it comes
    assert readouts(explorer) == ["4", "10", "salt and pepper", "0.25", "1", "false"]
    page.mouse.wheel(0, -100)  # from here on the page leaves the scrolling to the reader
    page.wait_for_timeout(500)
    page.evaluate("scrollTo({ top: 0, behavior: 'instant' })")
    page.get_by_role("link", name="this link").click()  # once more, to where the address is already
    wait_for_top(page, explorer)


def test_the_second_explorer_of_a_kind_has_a_name_of_its_own(open_explorer):
    page, _ = open_explorer(1)
    url = page.url
    second = "f" * 32

    def twice(route):
        text = route.fetch().text()
        before, stored, after = STATE.search(text).groups()
        stored = json.loads(stored)
        view = next(model for model in stored["state"].values() if model["state"].get("kind") == "denoise")
        stored["state"][second] = view
        shown = {"version_major": 2, "version_minor": 0, "model_id": second}
        shown = f'<script type="application/vnd.jupyter.widget-view+json">{json.dumps(shown)}</script>'
        text = text.replace("</article>", f"{shown}</article>", 1)
        text = STATE.sub(lambda _: before + json.dumps(stored).replace("</", r"<\/") + after, text)
        route.fulfill(body=text, content_type="text/html")

    page.route(re.compile(r"explore\.html"), twice)
    page.goto("about:blank")
    page.goto(f"{url}#denoise-2=level:0.3")
    shells = "(count) => document.querySelectorAll('.dvae-shell').length === count"
    page.wait_for_function(shells, arg=len(KINDS) + 1)
    fresh = page.get_by_role("button", name="Fresh noise")
    first, last = fresh.first, fresh.last  # the first explorer with such a button, and the one added at the page's end
    last.click()
    hash_of(page, "#denoise-2=level:0.3,seed:2")
    first.click()
    hash_of(page, "#denoise-2=level:0.3,seed:2&denoise=seed:2")


def test_in_a_frame_of_another_page_the_address_is_left_alone(open_page):
    page = open_page("search")
    page.evaluate(
        """() => document.body.prepend(Object.assign(document.createElement("iframe"),
          { src: "book/explore.html#denoise=level:0.3", width: 900, height: 900 }))"""
    )
    frame = page.wait_for_selector("iframe").content_frame()
    frame.wait_for_function(ALL_DRAWN, arg=len(EXPLORERS) + 1)
    explorer = frame.locator(".dvae-explorer").filter(has_text=EXPLORERS[1])
    assert readouts(explorer)[3] == "0.10"
    explorer.get_by_role("slider", name="row").press("Home")
    page.wait_for_timeout(1000)
    assert frame.evaluate("location.hash") == "#denoise=level:0.3"
    assert explorer.locator(".dvae-shell button").locator("visible=true").all_inner_texts() == ["Save picture"]


def visible(page, selector: str) -> int:
    return page.locator(selector).locator("visible=true").count()


def test_the_controls_can_be_hidden_and_the_keyboard_brings_them_back(open_explorer):
    page, explorer = open_explorer(1)
    explorer.get_by_role("button", name="Hide controls").click()
    hash_of(page, "#hide=controls")
    for fresh in (page, open_explorer(1, fragment="#hide=controls")[0]):
        hidden = ".dvae-controls, .bd-sidebar-primary, .dvae .dvae-button:not([role=switch])"  # bits are what is shown
        assert [visible(fresh, hidden), visible(fresh, ".dvae-shell button")] == [0, len(EXPLORERS)]
        assert visible(fresh, ".dvae canvas") > 20
    assert page.evaluate("document.activeElement.textContent") == "Show controls"
    page.keyboard.press("Enter")
    hash_of(page, "")
    assert [visible(page, ".dvae-controls"), visible(page, ".bd-sidebar-primary")] == [len(EXPLORERS), 1]
    assert page.evaluate("document.activeElement.textContent") == "Hide controls"


def test_a_link_is_copied(open_explorer):
    page, explorer = open_explorer(1, permissions=["clipboard-read", "clipboard-write"])
    explorer.get_by_role("slider", name="row").press("Home")
    explorer.get_by_role("button", name="Copy link").click()
    explorer.get_by_role("button", name="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == f"{page.url.split('#')[0]}#denoise=row:0"
    words = explorer.locator("[aria-live=polite]")
    page.wait_for_function("(words) => words.textContent === 'Link copied.'", arg=words.element_handle())
    explorer.get_by_role("button", name="Copy link").wait_for()  # its old name again


@pytest.mark.parametrize("old", [True, False], ids=["the old way", "no way"])
def test_where_the_clipboard_is_closed_the_link_can_be_selected(open_explorer, old):
    page, explorer = open_explorer(0)
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.evaluate("(old) => (document.execCommand = () => old)", old)
    explorer.get_by_role("button", name="Copy link").click()
    explorer.get_by_role("button", name="Copied" if old else "Copy link").wait_for()
    field = explorer.get_by_role("textbox", name="Link to this view")
    assert field.count() == (0 if old else 1)
    if not old:
        assert page.evaluate("getSelection().toString()") == f"{page.url}#latent_map="


def save_picture(page, explorer) -> tuple[str, Image.Image]:
    """Save the explorer's picture and return the name of its file and the picture."""
    with page.expect_download() as download:
        explorer.get_by_role("button", name="Save picture").click()
    return download.value.suggested_filename, Image.open(download.value.path())


@each_explorer
@pytest.mark.parametrize("options", [{}, {"width": 400, "scheme": "dark"}], ids=["light", "dark phone"])
def test_a_saved_picture_shows_what_the_explorer_shows(open_explorer, index, options):
    page, explorer = open_explorer(index, **options)
    explorer.scroll_into_view_if_needed()
    name, picture = save_picture(page, explorer)
    assert name == f"dvae-{KINDS[index].replace('_', '-')}.png"
    saved = np.asarray(picture.convert("RGB")).astype(int)
    assert picture.convert("RGBA").getextrema()[3] == (255, 255)
    boxes = explorer.locator(".dvae").evaluate(
        """(root) => {
          const { left, top, width, height } = root.getBoundingClientRect();
          const box = (element) => {
            const found = element.getBoundingClientRect();
            return [found.left - left, found.top - top, found.width, found.height];
          };
          const canvases = [...root.querySelectorAll(".dvae-picture, .dvae-plane")].map((canvas) =>
            ({ box: box(canvas), url: canvas.toDataURL(), exact: canvas.matches(".dvae-picture") }));
          return { size: [width, height], canvases, title: box(root.querySelector(".dvae-title, .dvae-count")) };
        }"""
    )
    height, width = saved.shape[:2]
    assert [width, height] == pytest.approx([2 * length + 64 for length in boxes["size"]], abs=1)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert saved[2, 2].tolist() == [int(part) for part in re.findall(r"\d+", ground)]
    for canvas in boxes["canvases"]:
        content = Image.open(io.BytesIO(base64.b64decode(canvas["url"].split(",")[1])))
        wanted = np.asarray(content.convert("RGBA")).astype(int)  # (rows, columns, 4)
        left, top, wide, high = (2 * length for length in canvas["box"])
        rows = (32 + top + (np.arange(len(wanted)) + 0.5) * high / len(wanted)).astype(int)
        columns = (32 + left + (np.arange(wanted.shape[1]) + 0.5) * wide / wanted.shape[1]).astype(int)
        found = saved[rows[:, None], columns]
        wrong = (abs(found - wanted[..., :3]).max(2) > 2) & (wanted[..., 3] == 255)
        if canvas["exact"]:
            assert wrong.mean() < 0.01, canvas["box"]  # a corner is round
        else:  # a plane is drawn smaller: alike, if not pixel by pixel
            assert abs(found - wanted[..., :3]).mean() < 12
    left, top, wide, high = (round(2 * length) for length in boxes["title"])
    title = saved[32 + top : 32 + top + high, 32 + left : 32 + left + 2 * high]
    assert abs(title - saved[2, 2]).max() > 150  # there are letters


ON_WHOLE_POINTS = """(root) => {
  const { left, top } = root.getBoundingClientRect();
  const [x, y] = [left + scrollX, top + scrollY];
  Object.assign(root.style, { position: "relative", left: `${Math.ceil(x) - x}px`, top: `${Math.ceil(y) - y}px` });
}"""
BOXES = """(root, selector) => {
  const { left, top } = root.getBoundingClientRect();
  return [...root.querySelectorAll(selector)].map((element) => {
    const box = element.getBoundingClientRect();
    return [box.left - left, box.top - top, box.right - left, box.bottom - top];
  });
}"""
# What the style sheet alone draws: at least how many there are, which of their pixels from the left are compared, and
# how different these may be, of 255: without the marks they differ by a third more, at the least.
MARKS = {
    "#bit_switches=code:111000111000": {
        ".dvae-other > div": (3, slice(None), 25),  # a frame
        "[role=switch][aria-checked=true]": (6, slice(None), 11),  # a border, and within it a shadow
    },
    "#bound=": {
        ".dvae-rungs > span": (4, slice(90, None), 6),  # a line above
        ".dvae-torn .dvae-base": (3, slice(None), 4.5),  # teeth
        ".dvae-hang .dvae-mixture": (1, slice(None), 7),  # stripes, falling
        ".dvae-hang .dvae-corruption": (1, slice(None), 10),  # dots
        ".dvae-hang .dvae-amortisation": (1, slice(None), 10),  # stripes, rising
        ".dvae-reading": (1, slice(20), 20),  # a line on the left
    },
}


def boxes_in(root, selector: str) -> list[list[int]]:
    """Left, top, right and bottom of parts of an explorer and two points around them, in pixels of a saved picture."""
    grown = (28, 28, 36, 36)
    return [[round(2 * x) + by for x, by in zip(box, grown, strict=True)] for box in root.evaluate(BOXES, selector)]


def difference(saved: Image.Image, seen: Image.Image, box: list[int], columns: slice) -> float:
    """The mean difference within a box, slightly blurred and moved by up to a pixel: the page's boxes are on pixels."""

    def part(picture, right: int, down: int) -> np.ndarray:
        moved = [place + by for place, by in zip(box, (right, down, right, down), strict=True)]
        return np.asarray(picture.filter(ImageFilter.BoxBlur(1)).crop(moved)).astype(int)[:, columns]

    wanted, near = part(seen, 0, 0), (-1, 0, 1)
    return min(abs(part(saved, right, down) - wanted).max(2).mean() for right in near for down in near)


def dashes(picture: Image.Image, box: list[int]) -> int:
    """How often the colour changes along a level line."""
    left, top, right, bottom = box
    row = np.asarray(picture).astype(int)[(top + bottom) // 2, left:right]
    return (abs(np.diff(row, axis=0)).max(1) > 40).sum()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("fragment", MARKS, ids=["bits", "bound"])
def test_a_saved_picture_has_the_lines_and_patterns_of_the_page(open_explorer, fragment, scheme):
    index = KINDS.index(fragment[1 : fragment.index("=")])
    page, explorer = open_explorer(index, fragment=fragment, scheme=scheme, device_scale_factor=2)
    wait_for_answers(page, explorer)
    root = explorer.locator(".dvae")
    root.evaluate(ON_WHOLE_POINTS)
    saved = save_picture(page, explorer)[1].convert("RGB")
    seen = Image.new("RGB", saved.size, saved.getpixel((2, 2)))
    seen.paste(Image.open(io.BytesIO(root.screenshot())), (32, 32))
    for selector, (least, columns, limit) in MARKS[fragment].items():
        differences = [difference(saved, seen, box, columns) for box in boxes_in(root, selector)]
        assert len(differences) >= least, selector
        assert max(differences) < limit, (selector, differences)
    for box in boxes_in(root, ".dvae-level"):  # where a dash begins is the browser's choice
        assert dashes(saved, box) == pytest.approx(dashes(seen, box), rel=0.3)
        assert dashes(seen, box) > 50


def test_the_buttons_are_not_on_paper(open_explorer):
    page, _ = open_explorer(0)
    assert visible(page, ".dvae-shell") == len(EXPLORERS)
    page.emulate_media(media="print")
    assert visible(page, ".dvae-shell") == 0
