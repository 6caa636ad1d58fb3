"""The index of terms names every word that the chapters define, and leads to the place."""

import re

import docutils.utils
import nbformat
import pytest
from docutils import nodes
from docutils.frontend import get_default_settings
from refresh import notebooks
from terms import PAGE, entries, label, place

TEXT = PAGE.read_text()
ENTRIES = entries(TEXT)
ITEMS = re.findall(r"^- (.+)$", TEXT, re.MULTILINE)

# Short emphasised words that the index leaves out, by the reason; those of more than four words are sentences.
# a word of a sentence that is said louder
STRESSED = """above, fast, stands, steady, adds, all, any, are, at, beside, between, can, costs, every, everything,
exactly, falls, faster, first, how, independently, inverted, is, jointly, lower, moves, new, newer,
not, nothing, now, of the draws, often, old, on, on a grid, on the same images, one, one square,
over the batch, over the steps, pays, plus, predict, random, roughly there, slower, some, square,
test, through, tighter, to, two, where, without, worse, worst, clean, distribution, end, exact,
estimate, if and only if, less likely, linear, log, mean, nearest, bound, fault, rates, model,
images, indices, place, size, values, positions, fresh noise, maximum, set, not set, circular,
strided, the gradient, in place, slices, sorted, correct or not, decoder's, negative"""
# explained under another word
ELSEWHERE = """batch, builder, denoising tokenizers, family, folds, geometric, gradients, launched, log-variances, most
probable square, number of the step, random numbers, sampler, static, table, vae, variance, weights"""
# the beginning of a paragraph, or the name of a part of the book or of a button
RUN_IN = """a model of images, a plane folds, appendix, copy link, further, hide controls, random bits, reset, start,
it cannot be repeated,
it closes in like, save picture, it converges to, it has a direction, it is a bound, it never falls with,
it never stops, it spoils the target, mended, parameters get lost, play, proof, seen, symptom, the hardware's limit,
understood, what denoising buys, wrong images are welcome"""
EXCEPTIONS = {" ".join(words.split()) for words in f"{STRESSED}, {ELSEWHERE}, {RUN_IN}".split(",")}


def words_of(path):
    return "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")


def emphasised(text: str) -> set[str]:
    """The short words in italics or bold, without those in formulas and code."""
    for pattern in (r"```.*?```", r"\$\$.*?\$\$", r"\$[^$\n]*\$", r"`[^`\n]*`"):
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    found = re.findall(r"(?<![*\w])\*{1,2}([^*\s](?:[^*]{0,58}[^*\s])?)\*{1,2}(?![*\w])", text)
    found = [" ".join(words.split()).rstrip(".:, ").lower() for words in found]
    return {words for words in found if len(words.split()) <= 4}


CHAPTERS = {path.stem: path for path in notebooks() if path.stem != "notation"}
EMPHASISED = {name: emphasised(words_of(path)) for name, path in CHAPTERS.items()}


def test_emphasis_is_recognised():
    text = "A *latent-variable\nmodel* of $a * b * c$, `*args`, **a test.** 2 * 3 * 4"
    text += "\n$$ q^* (*) r^* $$ *of five words in all*"
    assert emphasised(text) == {"latent-variable model", "a test"}


@pytest.mark.parametrize(("chapter", "words"), [(name, words) for name, all_of in ENTRIES.items() for words in all_of])
def test_an_entry_leads_to_a_place(chapter, words):
    text = " ".join(words_of(CHAPTERS[chapter]).split()).lower()
    assert words.lower() in EMPHASISED[chapter] or words.lower() in text


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_word_that_a_chapter_defines_is_in_the_index(chapter):
    known = {words.lower() for all_of in ENTRIES.values() for words in all_of}
    assert EMPHASISED[chapter] - known - EXCEPTIONS == set(), "add them to book/terms.md, or to the exceptions above"


def test_the_index_is_in_order_and_large():
    names = [re.sub(r"\W+", " ", item.split(":")[0]).lower() for item in ITEMS]
    assert names == sorted(names)
    assert len(names) >= 100
    letters = re.findall(r"^## (\w) to (\w)$", TEXT, re.MULTILINE)
    assert (letters[0][0], letters[-1][1]) == ("A", "Z")
    for (first, last), section in zip(letters, re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:], strict=False):
        initials = {item[0].upper() for item in re.findall(r"^- (.+)$", section, re.MULTILINE)}
        assert min(initials) >= first
        assert max(initials) <= last


def page(*parts):
    """A page of one section with a paragraph of these parts."""
    document = docutils.utils.new_document("page", get_default_settings())
    paragraph = nodes.paragraph("", "", *parts)
    document += nodes.section("", nodes.title(text="A title with the word prior"), paragraph)
    return document, paragraph


def test_a_place_is_the_emphasised_word_before_the_paragraph():
    italic, bold = nodes.emphasis(text="Prior"), nodes.strong(text="prior.")
    document, paragraph = page(nodes.Text("the prior, the "), bold, nodes.Text(" and the "), italic)
    assert place(document, "prior") is italic
    italic.replace_self(nodes.Text("rest"))
    assert place(document, "prior") is bold
    bold.replace_self(nodes.Text("rest"))
    assert place(document, "prior") is paragraph
    assert place(document, "posterior") is None


def test_labels_differ():
    labels = [label(chapter, words) for chapter, all_of in ENTRIES.items() for words in all_of]
    assert len(set(labels)) == len(labels)
    assert label("data", "Gibbs' inequality") == "term-data-gibbs-inequality"
