"""A Sphinx extension of _config.yml: mends what axe-core, which tests/browser runs, finds in the pages."""

import re
from typing import Any

from sphinx.application import Sphinx

# by pattern and replacement, with the reason
CHANGES = (
    # a hidden cell's switch says "Show code cell source", and MyST-NB gives it another name, which a screen reader
    # would say in its place
    (r'<summary aria-label="Toggle hidden content">', "<summary>"),
    # the role of an entry of the bibliography is deprecated, and of no use in a list
    (r'role="doc-biblioentry"', 'role="listitem"'),
    # the empty corner above a table's first column is no heading of that column
    (r'<th class="head([^"]*)">(?:<p></p>)?</th>', r'<td class="head\1"></td>'),
)


def mend(html: str) -> str:
    """Return a page's body with the CHANGES made."""
    for pattern, replacement in CHANGES:
        html = re.sub(pattern, replacement, html)
    return html


def mend_page(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    if "body" in context:
        context["body"] = mend(context["body"])


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("html-page-context", mend_page)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
