"""List the symbols of the book's displayed equations, each with the chapters that use it, the first one first.

    python tools/symbols.py

A symbol is a letter, Latin or Greek, with its accent and in its face, in an index as well, or an operator's upright
name, as KL. `tests/test_notation.py` asks that the notation page lists each of them, for each chapter.
"""

import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
GREEK = (
    "alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|pi|rho|sigma|tau|phi|varphi|chi|psi"
    "|omega|ell|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Phi|Psi|Omega"
)
FACE = r"\\(?:mathcal|mathbb|mathsf)\s*(?:\{[A-Za-z]\}|[A-Za-z])"
LETTER = rf"{FACE}|\\(?:{GREEK})(?![A-Za-z])|[A-Za-z]"
SILENT = [  # no symbols: words, environments, labels, differentials
    r"\\(?:text|textit|label|begin|end|tag)\s*\{[^{}]*\}",
    r"\\mathrm\{d\}",
    r"\\frac\{d\}(?=\{d)",
    rf"(?<![A-Za-z\\])d(?=\s*(?:[A-Za-z]|\\(?:{GREEK})(?![A-Za-z])))",
]
TOKEN = re.compile(
    rf"\\(?P<accent>bar|tilde|hat|widehat|widetilde)\s*\{{?\s*(?P<under>{LETTER})"
    r"|\\(?:mathrm|operatorname\*?|mathbf)\s*\{(?P<name>[A-Za-z]+)\}"
    rf"|(?P<letter>{LETTER})"
    r"|\\[A-Za-z]+"  # any other command
)


def symbols(formula: str) -> list[str]:
    """Return the symbols of a formula in LaTeX, in their order, each once."""
    for pattern in SILENT:
        formula = re.sub(pattern, " ", formula)
    found = []
    for token in TOKEN.finditer(formula):
        accent, under, name, letter = token.group("accent", "under", "name", "letter")
        if under:
            found.append(f"\\{accent.removeprefix('wide')} {face(under)}")
        elif name or letter:
            found.append(name or face(letter))
    return list(dict.fromkeys(found))


def face(letter: str) -> str:
    """Write a letter in one of the faces in one way: \\mathcal{L}."""
    return re.sub(r"^(\\math\w+?)\s*\{?([A-Za-z])\}?$", r"\1{\2}", letter)


def displayed(path: Path) -> list[str]:
    """Return the displayed formulas of a notebook's text."""
    cells = nbformat.read(path, as_version=4).cells
    text = [cell.source for cell in cells if cell.cell_type == "markdown"]
    return [formula for source in text for formula in re.findall(r"\$\$(.*?)\$\$", source, re.DOTALL)]


def main() -> None:
    from refresh import notebooks

    where: dict[str, list[str]] = {}
    for path in notebooks():
        for symbol in dict.fromkeys(symbol for formula in displayed(path) for symbol in symbols(formula)):
            where.setdefault(symbol, []).append(path.stem)
    for symbol, chapters in sorted(where.items()):
        print(f"{symbol:16s} {' '.join(chapters)}")


if __name__ == "__main__":
    main()
