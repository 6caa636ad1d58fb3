"""The chapters' text without the directives of MyST, for programs that know only Markdown: Jupyter, reveal.js.

What Sphinx would number is numbered as on the pages, what it would link is named, and what it would include is put in.
"""

import ast
import functools
import re
import textwrap
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import nbformat
from pybtex.database import parse_file
from references import cells, figure
from refresh import ROOT, pages

FENCE = r"^(?P<fence>[`:]{3,})\{(?P<name>[\w:-]+)\} *(?P<title>[^\n]*)\n(?P<body>.*?)^(?P=fence) *$"
DIRECTIVE = re.compile(FENCE, re.DOTALL | re.MULTILINE)
OPTION = re.compile(r"^:(?P<key>[\w-]+): *(?P<value>[^\n]*)\n", re.MULTILINE)
ROLE = re.compile(r"\{(?P<role>[\w:-]+)\}`(?:(?P<text>[^`<]*?) *<)?(?P<label>[^`<>]+)>?`")
TARGET = re.compile(r"^\((?P<label>[^()\s]+)\)= *\n", re.MULTILINE)
EQUATION = re.compile(r"\$\$(?P<formula>[^$]+)\$\$ *\((?P<label>[^()\s]+)\)")
LINK = re.compile(r"(?<!!)\[(?P<text>[^\[\]]*)\]\((?P<page>[^()\s]+)\)")
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
KINDS = {"exercise": "Exercise", "prf:theorem": "Theorem", "prf:proposition": "Proposition"}


def plain(text: str, address: Callable[[str], str | None] = lambda page: None) -> str:
    """Return a text with numbers, names and code in the place of MyST's targets, roles and directives.

    Args:
        text: of a Markdown cell.
        address: of a page of the book, "noise", for the links to it; None where there shall be none.

    Raises:
        KeyError: a label or source is unknown; ValueError: a directive or a role is.
    """
    text = COMMENT.sub("", text)
    while DIRECTIVE.search(text):
        text = DIRECTIVE.sub(_block, text)
    text = EQUATION.sub(lambda part: f"$${part['formula']}\\tag{{{numbers()[part['label']]}}}$$", text)
    text = ROLE.sub(lambda part: _role(part["role"], part["text"], part["label"]), TARGET.sub("", text))
    return LINK.sub(lambda part: _link(part["text"], part["page"], address), text)


def _block(part: re.Match[str]) -> str:
    name, title = part["name"], part["title"].strip()
    options = {option["key"]: option["value"] for option in OPTION.finditer(part["body"])}
    body = OPTION.sub("", part["body"]).strip()
    if name == "literalinclude":
        return f"```{options['language']}\n{source(title, options.get('pyobject'))}\n```"
    if name == "exercise":
        return f"### {numbers()[options['label']]}: {title}\n\n{body}"
    if name in KINDS:
        return f"**{numbers()[options['label']]}** ({title}). {body}"
    if name == "prf:proof":
        return f"*Proof.* {body} ∎"
    if name == "admonition":
        return f"**{title}** {body}"
    raise ValueError(f"there is no plain text for the directive {name}")


def _role(role: str, text: str | None, label: str) -> str:
    if role == "cite:p":
        return f"[{'; '.join(f'{authors}, {year}' for authors, year in map(_cited, label.split(',')))}]"
    if role == "cite:t":
        return " and ".join(f"{authors} [{year}]" for authors, year in map(_cited, label.split(",")))
    if role == "eq":
        return f"({numbers()[label]})"
    if role in {"ref", "numref", "prf:ref"}:
        return text or numbers()[label]
    raise ValueError(f"there is no plain text for the role {role}")


def _link(text: str, page: str, address: Callable[[str], str | None]) -> str:
    name = PurePosixPath(page).stem
    if re.match(r"[a-z]+:", page) or name not in {Path(one).name for one in pages()}:
        return f"[{text}]({page})"
    return f"[{text}]({address(name)})" if address(name) else text


def source(path: str, name: str | None) -> str:
    """Return the source of a file, named as in `book/`, or of a function or class of it."""
    text = (ROOT / "book" / path).read_text()
    if name is None:
        return text.strip()
    node = ast.parse(text)
    for part in name.split("."):
        node = next((one for one in node.body if getattr(one, "name", None) == part), None)
        if node is None:
            raise KeyError(f"{path} has no {name}")
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return textwrap.dedent("\n".join(text.splitlines()[first - 1 : node.end_lineno]))


def _cited(key: str) -> tuple[str, str]:
    entry = bibliography()[key.strip()]
    names = [" ".join([*one.prelast_names, *one.last_names]) for one in entry.persons["author"]]
    names = [re.sub(r"[{}\\'\"`^~]", "", name) for name in names]
    return (" and ".join(names) if len(names) < 3 else f"{names[0]} et al."), entry.fields["year"]


@functools.cache
def bibliography():
    """Return the entries of the book's bibliography."""
    return parse_file(ROOT / "book" / "references.bib").entries


@functools.cache
def numbers() -> dict[str, str]:
    """Return, for each label, the number or the title by which the pages name it."""
    found = {}
    for number, page in enumerate(pages()):
        counts: dict[str, int] = {}

        def count(kind: str, counts: dict[str, int] = counts, number: int = number) -> str:
            counts[kind] = counts.get(kind, 0) + 1
            return f"{number}.{counts[kind]}" if number else f"{counts[kind]}"

        for cell in cells(page):
            if "name" in figure(cell):
                found[figure(cell)["name"]] = f"Fig. {count('figure')}"
            if cell.cell_type == "markdown":
                _add(cell, found, count)
    return found


def _add(cell: nbformat.NotebookNode, found: dict[str, str], count: Callable[[str], str]) -> None:
    for part in EQUATION.finditer(cell.source):
        found[part["label"]] = count("equation")
    for part in DIRECTIVE.finditer(cell.source):
        label = re.search(r"^:label: *(\S+)", part["body"], re.MULTILINE)
        if part["name"] in KINDS and label:
            found[label[1]] = f"{KINDS[part['name']]} {count(part['name'])}"
    for part in re.finditer(rf"{TARGET.pattern}\s*#+ +(?P<title>[^\n]+)", cell.source, re.MULTILINE):
        found[part["label"]] = part["title"].strip()
