"""Compare the numbers of the text with the results of the experiments, and list them all in book/ledger.md.

    python tools/ledger.py             # write the list; say which numbers disagree
    python tools/ledger.py --update    # first replace those by what the results say

A number that comes from a results file is followed by a comment that says where from (experiments/ledger.py). Between
the two nothing may stand but what belongs to the number's typesetting: a dollar, a percent sign, an asterisk, a space.
"""

import argparse
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat
from refresh import ROOT, pages

sys.path.append(str(ROOT))

from experiments.ledger import lookup

LEDGER = ROOT / "book" / "ledger.md"
README = ROOT / "README.md"  # its numbers are compared and renewed as well, but not listed
COMMENT = re.compile(r"<!--(.*?)-->", re.DOTALL)  # every comment of a page is a reference
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
SEPARATOR = r"\{,\}|\\,|,"  # of thousands
MINUS = "\N{MINUS SIGN}"
NUMBER = re.compile(  # the last one before a comment
    rf"((?:(?<![\w)}}])[-{MINUS}+]|(?<![\w.^]))"  # a sign, which does not follow a letter or a digit, or none
    rf"(?:\d{{1,3}}(?:(?:{SEPARATOR})\d{{3}})+|\d+)(?:\.\d+)?)"
    r"(?:\\,|\\%|[%$* ])*\Z"
)
HEAD = """\
(chapter-ledger)=
# The ledger

**Where does each number come from?**

A number that a page computes is printed there, and the tests compare it. Other numbers in the text are the outcome of
trainings, one or many, which no page can repeat. They come from the files of `experiments/results/`, written by the
programs beside them. Next to each such number the page's source carries a comment that names the file, the group of
runs, the place of the number in each run, and the statistic over the runs, which differ in their seeds. A test looks
every one of them up and compares it with what is printed. This page lists them all, chapter by chapter.

Most of the statistics bear their usual names; `least` and `most` are the smallest and the largest value, `sd` is the
standard deviation over the runs, and `runs` says how many there are. `low` and `high` are the ends of the $95\\,\\%$
$t$-interval of the mean over the seeds. `above` counts the runs whose value exceeds a limit, and `fisher` is the
two-sided $p$-value of Fisher's exact test for two such counts, those of the groups `a & b`. `seed` takes the value of
a single run. `minus` changes the sign, and `100 x` makes a percentage. A group `a - b` is the difference of two groups,
seed by seed, and a path `a - b` that of two numbers of each run.
"""


class Entry(NamedTuple):
    """A number of the text, and what the results say about it."""

    page: Path
    title: str
    section: str
    printed: str
    reference: str
    value: float

    def agrees(self) -> bool:
        """Say whether the value, rounded to the decimals that are printed, is what is printed."""
        return number(printed_like(self.printed, self.value)) == number(self.printed)


def number(printed: str) -> float:
    """Return the number that is printed."""
    return float(re.sub(SEPARATOR, "", printed).replace(MINUS, "-"))


def printed_like(old: str, value: float) -> str:
    """Print a value as another number is printed: decimals, thousands, and the sign's character."""
    text = f"{value:,.{len(old.partition('.')[2])}f}"
    sign = "-" if text.startswith("-") and number(text) else ""
    if old[0] == (MINUS if sign else "+"):
        sign = old[0]
    comma = re.search(SEPARATOR, old)
    return sign + text.lstrip("-").replace(",", comma[0] if comma else "," if abs(number(old)) < 1000 else "")


def references(text: str) -> Iterator[tuple[re.Match[str], str, float]]:
    """Find a text's comments: the number before each of them, the reference, and the value that it refers to.

    Raises:
        ValueError: a comment is no reference, or no number stands before it.
    """
    for comment in COMMENT.finditer(text):
        found, reference = NUMBER.search(text, 0, comment.start()), " ".join(comment[1].split())
        if found is None:
            raise ValueError(f"no number stands directly before <!-- {reference} -->")
        row = text[text.rfind("\n", 0, comment.start()) + 1 :].lstrip().startswith("|")
        if row and re.search(r"(?<!\\)\|", comment[1]):
            raise ValueError(f"in a table the bars of <!-- {reference} --> need a backslash each")
        try:
            yield found, reference.replace("\\|", "|"), lookup(reference)
        except KeyError as error:
            raise ValueError(f"<!-- {reference} -->: {error.args[0]}") from None


def sources(path: Path) -> list[str]:
    """Return a page's text: that of its Markdown cells, or all of a Markdown file."""
    if path.suffix == ".md":
        return [path.read_text()]
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]


def page_files() -> list[Path]:
    """Return the files of the book's pages, in order, without the list itself."""
    files = [ROOT / f"{page}{suffix}" for page in pages() for suffix in (".ipynb", ".md")]
    return [path for path in files if path.exists() and path != LEDGER]


def entries(paths: Iterable[Path] | None = None) -> list[Entry]:
    """Return the numbers of these pages that come from results, or of all pages, in order.

    Raises:
        ValueError: as in `references`; says on which page.
    """
    found = []
    for path in page_files() if paths is None else paths:
        headings: list[str] = []
        for text in sources(path):
            try:
                for match, reference, value in references(text):
                    above = headings + HEADING.findall(text, 0, match.start())
                    found.append(Entry(path, above[0], above[-1], match[1], reference, value))
            except ValueError as error:
                raise ValueError(f"{path.name}: {error}") from None
            headings += HEADING.findall(text)
    return found


def updated(text: str) -> str:
    """Return a text with its numbers as the results have them."""
    for match, _, value in reversed(list(references(text))):
        if number(new := printed_like(match[1], value)) != number(match[1]):
            text = text[: match.start(1)] + new + text[match.end(1) :]
    return text


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Change a page's text, and nothing else of it; a page that stays as it is is not written."""
    if path.suffix == ".md":
        content = change(path.read_text())
    else:
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = change(cell.source)
        content = nbformat.writes(notebook) + "\n"
    if content != path.read_text():
        path.write_text(content)


def listing(found: Iterable[Entry]) -> str:
    """Return the list of the numbers as a page: a heading for each chapter, a table for each of its sections."""
    parts = [HEAD]
    for (path, title), chapter in itertools.groupby(found, lambda entry: (entry.page, entry.title)):
        parts.append(f"## {title}\n")
        for section, group in itertools.groupby(chapter, lambda entry: entry.section):
            rows = ["| Number | File | Runs | Value | Statistic |", "|--:|---|---|---|---|"]
            for entry in group:
                printed = re.sub(SEPARATOR, ",", entry.printed).replace("-", MINUS)
                source = " | ".join(f"`{part.strip()}`" for part in entry.reference.split("|"))
                rows.append(f"| {printed} | {source} |")
            parts.append(f"In [{section}]({path.stem}):\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="replace the numbers that disagree")
    update = parser.parse_args(arguments).update
    files = [*page_files(), README]
    wrong = [entry for entry in entries(files) if not entry.agrees()]
    for entry in wrong:
        print(f"{entry.page.name}, {entry.section}: {entry.printed} is {entry.value:.6g} ({entry.reference})")
    if update:
        for path in files:
            rewrite(path, updated)
    LEDGER.write_text(listing(entries()))
    return int(bool(wrong) and not update)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
