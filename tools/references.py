"""List the book's references that point ahead of their chapter, each with the sentence that it stands in.

    python tools/references.py

No chapter needs what a later one says. So a reference to a later chapter, or to something in it, stands under the
heading "The way on" or in a sentence that marks it as an outlook, by the words "we return to this in" or "to which we
return in". The notation, the reference, the ledger and the bibliography may be looked up from anywhere; the first page
and the appendix may name whatever they like. `tests/test_references.py` asks for all of this.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import nbformat
import yaml
from refresh import ROOT, pages

LOOKED_UP = {"notation", "api", "ledger", "bibliography"}
WAY_ON = "The way on"
OUTLOOK = re.compile(r"\b(?:we return to this in|to which we return in)\b", re.IGNORECASE)

ROLE = re.compile(r"\{(?:ref|numref|eq|prf:ref|doc)\}`(?:[^`<]*<)?(?P<role>[^`<>]+)>?`")
LINK = re.compile(r"(?<!!)\[[^\[\]]*\]\((?P<link>[^()\s]+)\)")
SOLUTION = re.compile(r"^[`:]{3,}\{solution(?:-start)?\} *(?P<solution>\S+)", re.MULTILINE)
REFERENCE = re.compile("|".join(pattern.pattern for pattern in (ROLE, LINK, SOLUTION)), re.MULTILINE)
LABEL = re.compile(
    r"^\((?P<target>[^()\s]+)\)=|^ *:(?:label|name): *(?P<option>\S+)|\$\$ *\((?P<equation>[^()\s]+)\)", re.MULTILINE
)
HEADING = re.compile(r"^#{1,2} +(?P<title>.+?) *$", re.MULTILINE)  # one of a lower level leaves a section open
UNREAD = re.compile(  # what is no text: a block of code, a code span, formulas; but a role is text
    r"(?P<read>\{[\w:-]+\}`[^`]*`)"
    r"|^(?P<fence>`{3,})(?!`| *\{)[^\n]+\n.*?^(?P=fence) *$"
    r"|(?<!`)(?P<ticks>`{1,2})(?!`)(?:(?!\n\n).)+?(?<!`)(?P=ticks)(?!`)"
    r"|\$\$.*?\$\$"
    r"|(?<!\\)\$[^$]+\$",
    re.DOTALL | re.MULTILINE,
)
END = re.compile(
    r"[.?!][)\"'*_]*(?=\s|$)"  # a full stop, not a decimal point
    r"|\n[ \t]*\n"  # a blank line
    r"|\n(?=[ \t]*(?:[-*+|>] ?|\d+\. |#+ |[`:]{3}))"  # the next item, row of a table, heading or block
)


class Reference(NamedTuple):
    """A reference: where it stands, and the page or label that it names."""

    name: str
    cell: int
    heading: str
    sentence: str

    @property
    def is_outlook(self) -> bool:
        return self.heading == WAY_ON or bool(OUTLOOK.search(self.sentence))


def cells(page: str) -> list[nbformat.NotebookNode]:
    """Return the cells of a page of _toc.yml; one of plain Markdown is a single cell."""
    if (path := ROOT / f"{page}.ipynb").exists():
        return nbformat.read(path, as_version=4).cells
    return [nbformat.v4.new_markdown_cell((ROOT / f"{page}.md").read_text())]


def figure(cell: nbformat.NotebookNode) -> Mapping[str, str]:
    """Return caption and name of the figure that a code cell draws."""
    return cell.metadata.get("mystnb", {}).get("figure", {})


def labels(page: Iterable[nbformat.NotebookNode]) -> list[str]:
    """Return the labels that a page defines, in order."""
    found = []
    for cell in page:
        if cell.cell_type == "markdown":
            found += [next(filter(None, label.groups())) for label in LABEL.finditer(cell.source)]
        elif "name" in figure(cell):
            found.append(figure(cell)["name"])
    return found


def references(page: Iterable[nbformat.NotebookNode]) -> list[Reference]:
    """Return the references of a page's text and of its figures' captions, in order."""
    found, heading = [], ""
    for number, cell in enumerate(page):
        text = cell.source if cell.cell_type == "markdown" else figure(cell).get("caption", "")
        plain = UNREAD.sub(lambda part: part["read"] or re.sub(r"[^\n]", "x", part[0]), text)  # of the same length
        for part in re.finditer(f"{HEADING.pattern}|{REFERENCE.pattern}", plain, re.MULTILINE):
            if part["title"]:
                heading = part["title"]
            elif name := named(part["role"] or part["link"] or part["solution"]):
                found.append(Reference(name, number, heading, sentence(text, plain, part)))
    return found


def named(written: str) -> str:
    """Return the page or label that a reference names; nothing for an address elsewhere."""
    if re.match(r"[a-z]+:", written) and not written.startswith("project:"):
        return ""
    page, _, label = written.removeprefix("project:").strip().partition("#")
    return re.sub(r"\.(?:ipynb|md)$", "", PurePosixPath(page).name) or label


def sentence(text: str, plain: str, part: re.Match[str]) -> str:
    """Return the sentence around a part of `plain`, as it stands in `text`, on one line."""
    ends = list(END.finditer(plain))
    start = max((end.end() for end in ends if end.end() <= part.start()), default=0)
    stop = min((end.end() for end in ends if end.start() >= part.end()), default=len(text))
    return " ".join(text[start:stop].split())


def homes(book: Mapping[str, Sequence[nbformat.NotebookNode]]) -> dict[str, str]:
    """Return the page of each label, and of each page.

    Raises:
        ValueError: a label is defined twice.
    """
    found = {name: name for name in book}
    for name, page in book.items():
        for label in labels(page):
            if label in found:
                raise ValueError(f"{label} is defined in {found[label]} and in {name}")
            found[label] = name
    return found


def unknown(book: Mapping[str, Sequence[nbformat.NotebookNode]]) -> list[str]:
    """Return the references to what is nowhere defined, as complaints."""
    home = homes(book)
    return [
        f"{name}, cell {found.cell}: nothing is called {found.name}: {found.sentence}"
        for name, page in book.items()
        for found in references(page)
        if found.name not in home
    ]


def ahead(book: Mapping[str, Sequence[nbformat.NotebookNode]], exempt: Iterable[str] = ()) -> list[str]:
    """Return the references to a later page that no outlook marks, as complaints.

    Args:
        book: the pages' cells, by name, in the book's order.
        exempt: the pages that may refer to any other.
    """
    home, order = homes(book), {name: place for place, name in enumerate(book)}
    return [
        f"{name}, cell {found.cell}: {found.name} of {target} comes later: {found.sentence}"
        for name, page in book.items()
        if name not in set(exempt)
        for found in references(page)
        if (target := home.get(found.name, name)) not in LOOKED_UP
        and order[target] > order[name]
        and not found.is_outlook
    ]


def whole_book() -> tuple[dict[str, list[nbformat.NotebookNode]], set[str]]:
    """Return the pages' cells, by name, in the order of _toc.yml; and the first page and those of the appendix."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    (appendix,) = (part["chapters"] for part in toc["parts"] if part["caption"] == "Appendix")
    exempt = [toc["root"], *(chapter["file"] for chapter in appendix)]
    return {Path(page).name: cells(page) for page in pages()}, {Path(page).name for page in exempt}


def main() -> None:
    book, exempt = whole_book()
    print(*unknown(book), *ahead(book, exempt), sep="\n")


if __name__ == "__main__":
    main()
