"""A Sphinx extension of _config.yml: the index of terms leads to the words that define them.

The page book/terms.md says {defined}`data: Gibbs' inequality`: in the chapter `data`, where these words are set in
italics or bold for the first time, or else in the first paragraph that holds them. The place gets a label, and the
link bears the title of its section; the chapter itself holds no mark. Words that are not found are a warning, and so an
error of the build.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "book" / "terms.md"
ENTRY = re.compile(r"\{defined\}`(\w+): ([^`]+)`")


def entries(text: str) -> dict[str, list[str]]:
    """Return what a page of terms looks for, by chapter.

    >>> entries("- nat: {defined}`data: the nat`, and Gibbs {defined}`data: Gibbs' inequality`")
    {'data': ['the nat', "Gibbs' inequality"]}
    """
    found: dict[str, list[str]] = defaultdict(list)
    for chapter, words in ENTRY.findall(text):
        found[chapter].append(words)
    return dict(found)


def label(chapter: str, words: str) -> str:
    """Return the label of a place."""
    return f"term-{chapter}-{nodes.make_id(words)}"


def plain(node: nodes.Node) -> str:
    return " ".join(node.astext().replace("\u2019", "'").split()).lower()  # apostrophes are typeset by now


def place(document: nodes.document, words: str) -> nodes.Element | None:
    """Return the node that defines the words: italics or bold, or else a paragraph."""

    def candidates() -> Iterator[nodes.Element]:
        for kind in (nodes.emphasis, nodes.strong):
            yield from (node for node in document.findall(kind) if plain(node).rstrip(".:,") == words.lower())
        yield from (node for node in document.findall(nodes.paragraph) if words.lower() in plain(node))

    return next(candidates(), None)


def mark(app: Sphinx, document: nodes.document) -> None:
    """Label in a page that was read what the index looks for in it."""
    path, _, chapter = app.env.docname.rpartition("/")
    if path != PAGE.parent.name or chapter == PAGE.stem:
        return
    domain = app.env.get_domain("std")
    for words in entries(PAGE.read_text()).get(chapter, []):
        if (node := place(document, words)) is None:
            continue  # the reference warns
        name, above, titles = label(chapter, words), node, []
        while above is not None:
            if isinstance(above, nodes.section) and isinstance(above[0], nodes.title):  # a theorem's has none
                titles.append(above[0].astext())
            above = above.parent
        target = nodes.target("", "", ids=[name])
        if isinstance(node, nodes.paragraph):
            node.insert(0, target)
        else:
            node.parent.insert(node.parent.index(node), target)
        title = titles[-1] if len(titles) == 1 else f"{titles[-1]}: {titles[0]}"
        domain.anonlabels[name] = (app.env.docname, name)
        domain.labels[name] = (app.env.docname, name, title)


def defined(name: str, raw: str, text: str, lineno: int, inliner: Any, options: Any = None, content: Any = ()) -> Any:
    """The role: a reference to the label, which bears the section's title."""
    chapter, words = ENTRY.fullmatch(f"{{defined}}`{text}`").groups()  # type: ignore[union-attr]
    reference = pending_xref(
        "",
        nodes.inline(text, text),
        refdomain="std",
        reftype="ref",
        reftarget=label(chapter, words),
        refexplicit=False,
        refwarn=True,
        refdoc=inliner.document.settings.env.docname,
    )
    return [reference], []


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_role("defined", defined)
    app.connect("doctree-read", mark)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
