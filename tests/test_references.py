"""No chapter leans on a later one: a reference that points ahead is marked as an outlook, and each has its target."""

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell
from references import WAY_ON, ahead, homes, labels, references, unknown, whole_book

BOOK, EXEMPT = whole_book()


def page(*texts, caption=None, name=None):
    """A page of these texts, and of a figure if it has a caption or a name."""
    figure = {key: value for key, value in (("caption", caption), ("name", name)) if value}
    drawn = [new_code_cell("plot()", metadata={"mystnb": {"figure": figure}})] if figure else []
    return [*map(new_markdown_cell, texts), new_code_cell("1 + 1"), *drawn]


LATER = page("(chapter-later)=\n# Later\n\n$$\nx\n$$ (eq-later)\n", name="fig-later")


def test_every_reference_of_the_book_has_its_target():
    complaints = unknown(BOOK)
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("chapter", [chapter for chapter in BOOK if chapter not in EXEMPT])
def test_a_reference_that_points_ahead_is_an_outlook(chapter):
    """Where it is none, say it here, put it under "The way on", or into a sentence with "we return to this in"."""
    complaints = ahead(BOOK, set(BOOK) - {chapter})
    assert not complaints, "\n".join(complaints)


def test_the_exempt_pages_are_the_first_and_the_appendix():
    assert {"intro", "notation", "terms", "pitfalls", "from_lua", "api", "ledger", "bibliography"} == EXEMPT


def test_the_reader_finds_what_a_plain_count_of_the_book_finds():
    for name, cells in BOOK.items():
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        text += "\n".join(str(cell.metadata.get("mystnb", "")) for cell in cells if cell.cell_type == "code")
        starts = [f"{{{role}}}`" for role in ("ref", "numref", "eq", "prf:ref", "doc")]
        starts += [f"]({page}{end}" for page in BOOK for end in ").#"]
        assert len(references(cells)) == sum(map(text.count, [*starts, "](#", "](api-", "{solution-start}"])), name
        assert len(labels(cells)) == sum(map(text.count, ["(chapter-", "\n(api-", "$$ (", ":label: ", "'name':"])), name


@pytest.mark.parametrize(
    "written",
    [
        "[text](later)",
        "[text](later.ipynb)",
        "[text](later.md#chapter-later)",
        "[text](../book/later.ipynb)",
        "[text](#chapter-later)",
        "[text](chapter-later)",
        "[two\nlines](later)",
        "{ref}`chapter-later`",
        "{ref}`a text <chapter-later>`",
        "{numref}`fig-later`",
        "{numref}`Picture %s <fig-later>`",
        "{eq}`eq-later`",
        "{prf:ref}`eq-later`",
        "{doc}`later`",
        "{doc}`/book/later`",
    ],
)
def test_each_kind_of_reference_is_seen(written):
    (complaint,) = ahead({"first": page("# First", f"One. See {written} for more. Three."), "later": LATER})
    assert complaint.startswith("first, cell 1: ")
    assert complaint.endswith(f" of later comes later: See {' '.join(written.split())} for more.")
    assert not ahead({"later": LATER, "first": page(f"See {written}.")})


def test_a_caption_is_read_as_well():
    (complaint,) = ahead({"first": page("# First", caption="As in {eq}`eq-later`."), "later": LATER})
    assert complaint == "first, cell 2: eq-later of later comes later: As in {eq}`eq-later`."


def test_each_kind_of_label_is_seen():
    text = """(target)=
# A page

$$ a $$ (eq-line)

$$
\\begin{aligned} b \\end{aligned}
$$ (eq-block)

```{exercise} Title
:label: ex-one

What is `:label: none`?
```

````{solution-start} ex-one
:label: sol-one
:class: dropdown
````

```{figure} picture.png
:name: fig-file
```"""
    assert labels(page(text, name="fig-cell")) == [
        *("target", "eq-line", "eq-block", "ex-one", "sol-one", "fig-file", "fig-cell")
    ]
    assert [found.name for found in references(page(text))] == ["ex-one"]


@pytest.mark.parametrize(
    "text",
    [
        "Elsewhere: [a site](https://example.org/later), [a letter](mailto:later@example.org).",
        "A picture is none: ![alt](later.png).",
        "Code is none: `[text](later)`, ``{eq}`eq-later` ``.",
        "Nor is a block:\n\n```python\nsee = '[text](later)'  # {eq}`eq-later`\n```\n\nas this.",
        "Nor are formulas: $[0, 1](later)$ and\n\n$$\n\\big[z\\big](later)\n$$\n\nas these.",
        "A work: {cite:p}`later`.",
    ],
)
def test_what_is_no_reference_is_not_taken_for_one(text):
    assert references(page(text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "We return to this in {ref}`chapter-later`.",
        "It is a question to which we return in the chapter on [the later](later), and only there.",
        "It is small, $p = 0.1$ at most, and we\nreturn to this in [a later\nchapter](later).",
        f"Here.\n\n## {WAY_ON}\n\nNext comes [the later](later). It has {{eq}}`eq-later`.",
        f"## {WAY_ON}\n\n### In detail\n\nNext comes [the later](later).",
    ],
)
def test_a_marked_outlook_passes(text):
    book = {"first": page("# First", text), "later": LATER}
    assert [found.is_outlook for found in references(book["first"])].count(False) == 0
    assert references(book["first"])
    assert ahead(book) == []


@pytest.mark.parametrize(
    "text",
    [
        "We return to this in a minute. See {eq}`eq-later`.",
        "See {eq}`eq-later`. We return to this in a minute.",
        "See {eq}`eq-later`, where\n\nwe return to this in a minute.",
        "- we return to this in a minute\n- see {eq}`eq-later`",
        "| we return to this in a minute |\n| see {eq}`eq-later` |",
        "We return to it in {ref}`chapter-later`.",
        f"## {WAY_ON}\n\nNext.\n\n## Appendix\n\nSee {{eq}}`eq-later`.",
        f"## {WAY_ON} from here\n\nSee {{eq}}`eq-later`.",
    ],
)
def test_a_reference_ahead_is_found_where_nothing_marks_it(text):
    assert len(ahead({"first": page("# First", text), "later": LATER})) == 1


def test_the_heading_holds_in_the_cells_that_follow_it():
    first = page("# First", f"## {WAY_ON}", "[The next](later).", "## More", "[The next](later).")
    assert [complaint[:13] for complaint in ahead({"first": first, "later": LATER})] == ["first, cell 4"]


def test_pages_for_looking_up_and_exempt_pages():
    book = {"first": page("[a](notation), [b](ledger), [c](bibliography), [d](later)."), "later": LATER}
    book |= {name: page(f"# {name}") for name in ("notation", "ledger", "bibliography")}
    (complaint,) = ahead(book)
    assert "later of later" in complaint
    assert ahead(book, exempt={"first"}) == []


@pytest.mark.parametrize("written", ["[text](latter)", "{eq}`eq-latter`", "[text](#eq-latter)", "[text](other.ipynb)"])
def test_an_unknown_label_is_an_error(written):
    book = {"first": page("# First", f"One.\nSee {written}, please."), "later": LATER}
    (complaint,) = unknown(book)
    assert complaint.startswith("first, cell 1: nothing is called ")
    assert complaint.endswith(f": See {written}, please.")
    assert ahead(book) == []
    assert unknown({"first": page("See {eq}`eq-later` of [it](later)."), "later": LATER}) == []


def test_an_exercise_is_known_to_its_solution():
    (complaint,) = unknown({"first": page("````{solution-start} ex-none\n:label: sol-none\n````")})
    assert complaint.startswith("first, cell 0: nothing is called ex-none")


def test_a_label_has_one_home():
    with pytest.raises(ValueError, match="eq-later is defined in first and in later"):
        homes({"first": page("$$\ny\n$$ (eq-later)"), "later": LATER})
