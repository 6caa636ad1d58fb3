"""What the Sphinx extensions `cards` and `markup` write into a page's head and body."""

import base64
import io
from xml.etree import ElementTree

import cards
import docutils.utils
import draw_card
import markup
import matplotlib as mpl
import pictures
import pytest
from docutils import nodes
from docutils.frontend import get_default_settings
from refresh import ROOT

STATIC = ROOT / "_static"


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("given", "address"),
    [("", ""), (" https://a.org/b ", "https://a.org/b/"), ("https://a.org/b//", "https://a.org/b/")],
)
def test_the_address_of_the_site(given, address):
    assert cards.site({"BOOK_URL": given}) == address
    assert cards.site({}) == ""


def test_what_is_no_address_is_refused():
    with pytest.raises(ValueError, match=r"BOOK_URL is the address .* not 'a\.org'"):
        cards.site({"BOOK_URL": "a.org"})


def test_a_head_with_the_sites_address_and_without():
    with_it = cards.tags('A "title"', "What is < ?", "The book", "https://a.org/b/", "book/x.html")
    assert '<meta property="og:title" content="A &quot;title&quot;">' in with_it
    assert '<meta name="description" content="What is &lt; ?">' in with_it
    assert '<meta property="og:url" content="https://a.org/b/book/x.html">' in with_it
    assert '<meta property="og:image" content="https://a.org/b/_static/card.png">' in with_it
    assert "summary_large_image" in with_it
    without = cards.tags('A "title"', "What is < ?", "The book", "", "book/x.html")
    assert "og:title" in without
    assert "og:image" not in without
    assert "og:url" not in without
    assert "http" not in without


def test_a_description_is_the_first_paragraph_cut_at_a_word():
    document = docutils.utils.new_document("page", get_default_settings())
    note = nodes.note("", nodes.paragraph(text="no"))
    document += nodes.section("", nodes.title(text="T"), note, nodes.paragraph(text="Why\nis it so?"))
    assert cards.description(document) == "Why is it so?"
    assert cards.description(document, limit=8) == "Why is ..."


def test_the_pictures_are_what_is_drawn_today():
    assert (STATIC / "favicon.svg").read_text() == draw_card.svg()
    ElementTree.fromstring(draw_card.svg())
    with mpl.rc_context():
        mpl.use("Agg")
        drawn = {name: io.BytesIO() for name in ("favicon", "card")}
        mpl.pyplot.imsave(drawn["favicon"], draw_card.png(), format="png")
        draw_card.card().savefig(drawn["card"], format="png", dpi=100, facecolor=draw_card.GROUND)
    for name, file in drawn.items():
        stored = encoded((STATIC / f"{name}.png").read_bytes())
        assert pictures.problem(stored, encoded(file.getvalue())) is None, name
    assert pictures.decode(encoded((STATIC / "card.png").read_bytes()))[0].size == cards.SIZE


def test_the_icon_is_a_square_with_flipped_pixels():
    icon = draw_card.icon()
    assert icon.shape == (16, 16)
    assert (icon == 1).sum() + sum(icon[pixel] == 0 for pixel in draw_card.FLIPPED) == 81
    assert (icon == 2).sum() >= 3


def test_markup_is_mended():
    corner = '<tr><th class="head text-right"><p></p></th><th class="head"><p>ours</p></th></tr>'
    assert markup.mend(corner) == '<tr><td class="head text-right"></td><th class="head"><p>ours</p></th></tr>'
    assert markup.mend('<summary aria-label="Toggle hidden content">') == "<summary>"
    assert markup.mend('<div role="doc-biblioentry">') == '<div role="listitem">'
