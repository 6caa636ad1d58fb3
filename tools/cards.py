"""A Sphinx extension of _config.yml: what a link to a page shows elsewhere, and the icon in the browser's tab.

Where a link is pasted, the page's title, a sentence and a picture are read from its head (the Open Graph protocol). The
picture, and the page's one true address, must be given with the address of the whole site, which is only known where it
is published: BOOK_URL, an environment variable. Without it they are left out.

    BOOK_URL=https://example.org/book/ make book
"""

import os
from html import escape
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

PICTURE = "_static/card.png"  # drawn by tools/draw_card.py
SIZE = (1200, 630)  # what the large networks ask for
ALT = "The book's title; clean squares, the same with flipped pixels, and what a VAE and a DVAE recover of them"


def site(environment: Any = os.environ) -> str:
    """Return the address of the published site, with a slash at its end, or nothing."""
    address = environment.get("BOOK_URL", "").strip()
    if address and not address.startswith(("https://", "http://")):
        raise ValueError(f"BOOK_URL is the address of the site, as https://example.org/book/, not {address!r}")
    return address.rstrip("/") + "/" if address else ""


def description(document: nodes.document, limit: int = 200) -> str:
    """Return the page's first paragraph, in a chapter the question that it answers, cut at a word."""
    for paragraph in document.findall(nodes.paragraph):
        if isinstance(paragraph.parent, nodes.section) and (text := " ".join(paragraph.astext().split())):
            return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0] + " ..."
    return ""


def tags(title: str, about: str, book: str, address: str, page: str) -> str:
    """Return the tags of a page's head; `address` is the site's, or nothing."""
    named = {"og:title": title, "og:type": "article", "og:site_name": book, "og:description": about}
    if address:
        width, height = SIZE
        named |= {"og:url": address + page, "og:image": address + PICTURE, "og:image:alt": ALT}
        named |= {"og:image:width": width, "og:image:height": height}
    lines = [f'<meta property="{name}" content="{escape(str(content))}">' for name, content in named.items() if content]
    if about:
        lines.append(f'<meta name="description" content="{escape(about)}">')
    lines.append(f'<meta name="twitter:card" content="{"summary_large_image" if address else "summary"}">')
    return "\n".join(lines)


def add_tags(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    if doctree is None:
        return
    page = app.builder.get_target_uri(pagename)
    icon = context["pathto"]("_static/favicon.png", 1)
    book = app.config.html_title
    title = doctree.next_node(nodes.title)
    context["metatags"] = "\n".join(
        [
            context.get("metatags", ""),
            tags(title.astext() if title else book, description(doctree), book, site(), page),
            f'<link rel="icon" type="image/png" sizes="180x180" href="{icon}">',  # for browsers that draw no SVG
            f'<link rel="apple-touch-icon" href="{icon}">',
        ]
    )


def set_address(app: Sphinx, config: Config) -> None:
    config.html_baseurl = site()


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("config-inited", set_address)
    app.connect("html-page-context", add_tags)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
