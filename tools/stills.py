"""A Sphinx extension of _config.yml: beside each live widget stands the still picture that its output stores.

MyST-NB keeps one of an output's forms for a page, the live one, so that a page without scripts, or a printout, would
show nothing. The picture goes before the widget, in a box of the class `dvae-still`, which `_static/book.css` hides on
the screen once the widget is there. Under the picture stands a line on what is missing, which the style sheet hides
until `_static/stills.js` sees that it is.
"""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

MISSING = "This picture is a still: the explorer needs scripts from cdn.jsdelivr.net, and they have not come."
VIEW, PICTURE = "application/vnd.jupyter.widget-view+json", "image/png"


class KeepStills(SphinxPostTransform):
    """Copy the picture out of an output that holds a widget as well, before MyST-NB chooses (priority 4)."""

    default_priority = 3
    formats = ("html",)

    def run(self, **_: Any) -> None:
        for bundle in list(self.document.findall(nodes.container)):
            if bundle.get("nb_element") != "mime_bundle":
                continue
            forms = {form["mime_type"]: form for form in bundle.children}
            if {VIEW, PICTURE} <= forms.keys():
                still = nodes.container(classes=["dvae-still"])
                still += [image.deepcopy() for image in forms[PICTURE].children]
                still += nodes.paragraph(text=MISSING, classes=["dvae-when-missing"])
                bundle.parent.insert(bundle.parent.index(bundle), still)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_post_transform(KeepStills)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
