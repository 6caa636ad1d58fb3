"""The notation page lists every symbol of the book's displayed formulas, for the chapter that uses it."""

import re

import nbformat
import pytest
from refresh import ROOT, notebooks
from symbols import displayed, symbols

PAGE = ROOT / "book" / "notation.ipynb"
EVERYWHERE = "everywhere"


def listed() -> list[tuple[str, set[str]]]:
    """Return the symbols of the tables whose last column names chapters: of each formula in a row's first cell, the
    first symbol, and the chapters that the last cell links to, or `EVERYWHERE`."""
    rows = []
    for cell in nbformat.read(PAGE, as_version=4).cells:
        for table in re.findall(r"(?:^\|.*\|$\n?)+", cell.source, re.MULTILINE):
            head, _, *body = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()]
            if head[-1].strip() != "chapters":
                continue
            for first, *_, last in body:
                chapters = set(re.findall(r"\]\((\w+)\)", last)) or {last.strip()}
                rows += [(symbols(formula)[0], chapters) for formula in re.findall(r"\$(.+?)\$", first)]
    return rows


def used() -> set[tuple[str, str]]:
    """Return each symbol of the displayed formulas with each chapter that uses it."""
    return {(symbol, path.stem) for path in notebooks() for formula in displayed(path) for symbol in symbols(formula)}


def test_every_symbol_of_a_displayed_formula_is_listed_for_its_chapter():
    known = {(symbol, chapter) for symbol, chapters in listed() for chapter in chapters}
    everywhere = {symbol for symbol, chapter in known if chapter == EVERYWHERE}
    missing = sorted((chapter, symbol) for symbol, chapter in used() - known if symbol not in everywhere)
    assert not missing, "give each a row of the notation page: " + ", ".join(f"{s} in {c}" for c, s in missing)


def test_no_row_names_a_chapter_without_the_symbol():
    """Neither in a displayed formula nor in the text."""
    for symbol, chapters in listed():
        for chapter in chapters - {EVERYWHERE}:
            cells = nbformat.read(ROOT / "book" / f"{chapter}.ipynb", as_version=4).cells
            text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
            formulas = re.findall(r"\$\$.*?\$\$|\$[^$]+\$", text, re.DOTALL)
            assert any(symbol in symbols(formula) for formula in formulas), f"{symbol} in {chapter}"


@pytest.mark.parametrize(
    ("formula", "found"),
    [
        (r"\mathrm{KL}\big(q(z \mid x) \,\|\, p(z)\big)", ["KL", "q", "z", "x", "p"]),
        (r"\int p(x, z)\, dz = \int_0^r \rho\, \mathrm{d}\rho", ["p", "x", "z", "r", r"\rho"]),
        (r"\frac{d}{dz} \ln p = \tfrac12 d_k", ["z", "p", "d", "k"]),
        (r"\bar q_K(z) \le \widehat{\mathcal{L}} - \tilde{q}", [r"\bar q", "K", "z", r"\hat \mathcal{L}", r"\tilde q"]),
        (r"\mathbb E_{q_\phi} e^{a/2} \varepsilon", [r"\mathbb{E}", "q", r"\phi", "e", "a", r"\varepsilon"]),
        (r"\begin{aligned} L_{\text{dvae}} &\ge -\infty \end{aligned}", ["L"]),
        (r"\operatorname*{mean}_{|I| = M} x' \in u^{\mathsf T}", ["mean", "I", "M", "x", "u", r"\mathsf{T}"]),
    ],
)
def test_the_symbols_of_a_formula(formula, found):
    assert symbols(formula) == found
