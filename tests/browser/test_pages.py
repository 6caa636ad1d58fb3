"""Every page of the book, as a reader meets it."""

import pytest
from cdn import PACKAGES
from refresh import pages

each_page = pytest.mark.parametrize("name", pages())

# What sticks out of the window's right edge, unless a box of its own scrolls it
OVERFLOW = """() => {
  const width = document.documentElement.clientWidth;
  const scrolls = (element) => {
    for (let box = element.parentElement; box && box !== document.body; box = box.parentElement)
      if (getComputedStyle(box).overflowX !== "visible" && box.getBoundingClientRect().right <= width + 1) return true;
    return false;
  };
  const out = [...document.querySelectorAll("article *")]
    .filter((e) => e.checkVisibility() && e.getBoundingClientRect().right > width + 1 && !scrolls(e))
    .map((e) => `${e.tagName} ${e.className} ends at ${Math.round(e.getBoundingClientRect().right)}`);
  if (document.documentElement.scrollWidth > width) out.push("the page itself");
  return out;
}"""

# Relative luminance of the page's ground and text, as the WCAG defines it
LUMINANCE = """() => {
  const luminance = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const text = document.querySelector("article p");
  return [getComputedStyle(document.body).backgroundColor, getComputedStyle(text).color].map(luminance);
}"""


# The pages are drawn, explorers included, before axe-core looks at them
DRAWN = """() => {
  const roots = [...document.querySelectorAll(".dvae-explorer .dvae")];
  const views = document.querySelectorAll('script[type="application/vnd.jupyter.widget-view+json"]');
  return roots.length === views.length && roots.every((root) => root.explorer);
}"""
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
AXE = """async (rules) => {
  const options = { resultTypes: ["violations"], runOnly: { type: "tag", values: rules } };
  const { violations } = await axe.run(document, options);
  return violations.flatMap(({ id, impact, help, nodes }) =>
    nodes.map(({ target }) => `${impact}: ${id} at ${target.join(" ")}: ${help}`));
}"""


def hindrances(page) -> list[str]:
    """What axe-core finds in a page that would keep somebody from reading or using it, the least of it included."""
    page.wait_for_function(DRAWN)
    page.evaluate((PACKAGES / "axe-core" / "axe.min.js").read_text())
    return page.evaluate(AXE, RULES)


def contrast(ground: float, text: float) -> float:
    return (max(ground, text) + 0.05) / (min(ground, text) + 0.05)


@each_page
def test_a_page_in_a_light_window(open_page, name):
    page = open_page(name)
    untypeset = (
        "[...document.querySelectorAll('article .math')].filter((e) => !e.querySelector('mjx-container')).length"
    )
    assert page.evaluate(untypeset) == 0
    # a mistake in a formula; a macro that MathJax does not know is set in red
    assert page.locator("mjx-merror, [data-mjx-error], mjx-mtext[style*='color: red']").count() == 0
    for image in page.locator("article img").all():
        assert (image.get_attribute("alt") or "").strip(), image.get_attribute("src")
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    ground, text = page.evaluate(LUMINANCE)
    assert ground > 0.9
    assert contrast(ground, text) > 7
    assert hindrances(page) == []


@each_page
def test_a_page_on_a_phone_in_the_dark(open_page, name):
    page = open_page(name, width=400, scheme="dark")
    assert page.evaluate(OVERFLOW) == []
    ground, text = page.evaluate(LUMINANCE)
    assert ground < 0.1
    assert contrast(ground, text) > 7
    assert hindrances(page) == []


def test_there_are_formulas_and_figures_to_look_at(open_page):
    page = open_page("book/noise")
    assert page.locator("article .math mjx-container").count() > 20
    assert page.locator("article img").count() >= 2


def test_the_search_finds_a_chapter(open_page):
    page = open_page("search")
    page.goto(f"{page.url}?q=corruption")
    page.locator("#search-results li a").first.wait_for()
