"""The pages where the CDN does not answer: formulas and pictures show all the same, and a line says what is missing."""

import json

import pytest
from cdn import ROOT
from refresh import notebooks, pages

VIEW, PICTURE = "application/vnd.jupyter.widget-view+json", "image/png"
UNTYPESET = "[...document.querySelectorAll('article .math')].filter((e) => !e.querySelector('mjx-container')).length"
# fonts that a page asked for and did not get; of those for formulas, how many it has
FONTS = """() => [
  [...document.fonts].filter(({ status }) => status === "error").map(({ family }) => family),
  [...document.fonts].filter(({ family, status }) => family.startsWith("MJX") && status === "loaded").length,
]"""


def explorers(name: str) -> int:
    """How many outputs of a page are explorers that have a still picture."""
    path = ROOT / f"{name}.ipynb"
    cells = json.loads(path.read_text())["cells"] if path in notebooks() else []
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    return sum({VIEW, PICTURE} <= data.keys() for data in outputs)


WITH_EXPLORERS = [name for name in pages() if explorers(name)]


def seen(page, what: str) -> int:
    return page.locator(what).locator("visible=true").count()


def test_there_are_explorers_to_miss():
    assert {"book/intro", "book/explore"} <= set(WITH_EXPLORERS)


@pytest.mark.parametrize("name", pages())
def test_without_the_outside_formulas_and_pictures_show(open_page, name):
    page = open_page(name, blocked="")
    formulas = page.locator("article .math").count()
    assert page.evaluate(UNTYPESET) == 0
    failed, loaded = page.evaluate(FONTS)
    assert failed == []
    assert loaded >= min(formulas, 1)
    stills = page.locator(".dvae-still img")
    assert seen(page, ".dvae-still img") == explorers(name)
    assert all(still.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0 for still in stills.all())
    assert seen(page, ".dvae-when-missing") == explorers(name)


@pytest.mark.parametrize("script", ["/require.js", "/embed-amd.js", "/anywidget@"])
def test_each_script_is_missed_by_itself(open_page, script):
    page = open_page("book/intro", blocked=script)
    page.locator(".dvae-when-missing").first.wait_for()
    assert seen(page, ".dvae-still img") == explorers("book/intro")
    assert seen(page, ".dvae-explorer, .widget-subarea") == 0  # controls that control nothing


@pytest.mark.parametrize("name", WITH_EXPLORERS)
def test_with_the_scripts_no_line_says_that_they_are_missing(open_page, name):
    page = open_page(name)
    page.wait_for_function(
        "count => document.querySelectorAll('.cell_output:has(> .dvae-still) .dvae').length === count",
        arg=explorers(name),
    )
    assert seen(page, ".dvae-when-missing") == 0
    page.evaluate("document.documentElement.classList.add('dvae-missing')")  # as if they came late
    assert seen(page, ".dvae-when-missing") == 0


def test_scripts_that_neither_come_nor_fail_are_missed_after_a_while(open_page):
    page = open_page("search")  # a page without explorers, on which the clock can be set
    page.clock.install(time=0)
    page.clock.pause_at(1000)  # the time of loading does not count
    page.reload()
    page.clock.run_for(19_000)
    missing = "document.documentElement.classList.contains('dvae-missing')"
    assert not page.evaluate(missing)
    page.clock.run_for(2_000)
    assert page.evaluate(missing)


def test_where_scripts_are_off_the_line_stands(open_page, browser, site):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{site}/book/intro.html", wait_until="domcontentloaded")
    assert seen(page, ".dvae-when-missing") == explorers("book/intro")
    context.close()
