"""The Sphinx extension that keeps an explorer's still picture beside the live widget."""

import docutils.utils
import pytest
from docutils import nodes
from docutils.frontend import get_default_settings
from stills import MISSING, PICTURE, VIEW, KeepStills

TEXT = "text/plain"


def page(*forms):
    """A page with one output of these forms, as MyST-NB leaves it, between two paragraphs."""
    document = docutils.utils.new_document("page", get_default_settings())
    bundle = nodes.container(nb_element="mime_bundle")
    for form in forms:
        child = nodes.image(uri="still.png", alt="what is seen") if form == PICTURE else nodes.raw(text=form)
        bundle += nodes.container("", child, mime_type=form)
    cell = nodes.container("", nodes.paragraph(text="before"), bundle, nodes.paragraph(text="after"))
    document += cell
    return document, cell, bundle


@pytest.mark.parametrize("order", [(VIEW, PICTURE, TEXT), (PICTURE, TEXT, VIEW)])
def test_the_picture_stands_before_the_widget(order):
    document, cell, bundle = page(*order)
    KeepStills(document).run()
    before, still, widget, after = cell.children
    assert widget is bundle
    assert [part.astext() for part in (before, after)] == ["before", "after"]
    assert still["classes"] == ["dvae-still"]
    assert still.astext().endswith(MISSING)
    assert [image["alt"] for image in still.findall(nodes.image)] == ["what is seen"]
    assert [form["mime_type"] for form in bundle] == list(order)  # among which MyST-NB chooses next


@pytest.mark.parametrize("forms", [(VIEW, TEXT), (PICTURE, TEXT), (TEXT,)])
def test_any_other_output_is_left_as_it_is(forms):
    document, _, _ = page(*forms)
    before = document.pformat()
    KeepStills(document).run()
    assert document.pformat() == before
