"""Every page of the book, as a reader meets it."""

import re

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


@pytest.mark.parametrize("name", ["genindex", "search"])
def test_a_page_that_sphinx_adds(open_page, name):
    assert hindrances(open_page(name)) == []


def test_axe_finds_what_it_should(open_page):
    page = open_page("book/terms")
    assert hindrances(page) == []
    page.evaluate("""() => {
      document.querySelector("article h2").outerHTML = "<h4>Too low</h4>";
      document.querySelector("article p").innerHTML = '<a href="#"></a><b style="color: #bbb">pale</b>';
    }""")
    found = " ".join(hindrances(page))
    assert all(rule in found for rule in ("moderate: heading-order", "serious: color-contrast", "serious: link-name"))


@each_page
def test_a_page_has_an_icon_and_what_a_link_shows(html, name):
    head = (html / f"{name}.html").read_text().split("</head>")[0]
    icons = re.findall(r'<link rel="(?:icon|apple-touch-icon)"[^>]*href="([^"]+)"', head)
    assert {icon.rsplit("/")[-1] for icon in icons} == {"favicon.svg", "favicon.png"}
    assert all((html / name).parent.joinpath(icon).exists() for icon in icons)
    said = dict(re.findall(r'<meta (?:property|name)="([\w:]+)" content="([^"]+)">', head))
    assert len(said["og:title"]) > 5
    assert 20 < len(said["description"]) <= 204
    assert said["description"] == said["og:description"]


def test_a_term_of_the_index_leads_into_a_chapter(open_page):
    page = open_page("book/terms")
    page.get_by_role("link", name="The sampler: A baseline").click()
    page.wait_for_url("**/sampler.html#term-sampler-baseline")
    assert page.locator(".target:target + em").inner_text() == "baseline"


def test_a_table_that_scrolls_is_a_stop_for_the_keyboard(open_page):
    stops = "[...document.querySelectorAll('.pst-scrollable-table-container')].map((box) => box.tabIndex)"
    assert 0 in open_page("book/notation", width=400).evaluate(stops)
    assert set(open_page("book/terms").evaluate(stops)) <= {-1}
    assert set(open_page("book/model").evaluate(stops)) == {-1}


def test_a_formula_is_a_stop_for_the_keyboard_only_where_it_scrolls(open_page):
    formulas = """() => [...document.querySelectorAll("mjx-container")].map((box) => [
      box.parentElement.matches("div.math") && box.scrollWidth > box.clientWidth, box.tabIndex === 0])"""
    wide, narrow = (open_page("book/denoising_bound", width=width) for width in (1300, 400))
    assert {(scrolls, stop) for scrolls, stop in wide.evaluate(formulas)} == {(False, False)}
    assert {(scrolls, stop) for scrolls, stop in narrow.evaluate(formulas)} == {(False, False), (True, True)}


def test_there_are_formulas_and_figures_to_look_at(open_page):
    page = open_page("book/noise")
    assert page.locator("article .math mjx-container").count() > 20
    assert page.locator("article img").count() >= 2


def test_the_search_finds_a_chapter(open_page):
    page = open_page("search")
    page.goto(f"{page.url}?q=corruption")
    page.locator("#search-results li a").first.wait_for()
