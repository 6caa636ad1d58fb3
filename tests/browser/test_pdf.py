"""The printed book, read as a file, and the pages' links to it."""

import json
import re
import unicodedata

import pdf
import pytest
from pypdf import PdfReader
from refresh import notebooks, pages

VIEW, PICTURE = "application/vnd.jupyter.widget-view+json", "image/png"


@pytest.fixture(scope="session")
def book(html) -> PdfReader:
    if not pdf.PDF.exists() or pdf.PDF.name not in (html / f"{pages()[0]}.html").read_text():
        pytest.fail("there is no PDF of these pages: run make pdf")
    return PdfReader(pdf.PDF)


@pytest.fixture(scope="session")
def texts(book) -> list[str]:
    return [page.extract_text() for page in book.pages]


def flat(text: str) -> str:
    """A text without its spaces, which a PDF does not store; of two signs for one apostrophe it may give either."""
    return re.sub(r"\s+|\\[()]", "", unicodedata.normalize("NFKC", text).replace("\u02bc", "\u2019"))


@pytest.fixture(scope="session")
def titles(html) -> dict[str, str]:
    """Each chapter's title, with its number, as its page has it."""
    found = {}
    for page in pages():
        heading = pdf.chapter(page, set(pages())).h1
        found[page] = pdf.FIRST if page == pages()[0] else heading.get_text()
    return found


def outline(entries, depth=0):
    for entry in entries:
        if isinstance(entry, list):
            yield from outline(entry, depth + 1)
        else:
            yield depth, entry


def test_every_chapter_is_there_and_the_outline_leads_to_it(book, texts, titles):
    entries = {flat(entry.title): book.get_destination_page_number(entry) for _, entry in outline(book.outline)}
    starts = []
    for page, title in titles.items():
        assert flat(title) in entries, title
        starts.append(entries[flat(title)])
        assert flat(title) in flat(texts[starts[-1]]), page
    assert starts == sorted(set(starts))
    assert len(entries) > 200  # the sections too


def test_the_pages_are_numbered_and_the_contents_name_the_chapters_pages(texts, titles):
    for number, text in enumerate(texts[1:], 2):
        assert str(number) in text.split(), number
    assert "1" not in texts[0].split()
    targets = pdf.page_numbers(pdf.PDF.read_bytes())
    first = targets[pdf.key(pages()[0])]
    contents = flat("".join(texts[: first - 1]))
    for page, title in titles.items():
        assert f"{flat(title)}{targets[pdf.key(page)]}" in contents, page


def test_no_reference_is_lost_and_no_formula_left_untypeset(texts):
    for number, text in enumerate(texts, 1):
        lost = re.search(r"\?\?|\[\?\]|\(\?\)|\bundefined\b(?! (?:value|behaviour))|\bNone\[|Math input error", text)
        assert not lost, (number, text[lost.start() - 40 : lost.end() + 40])
        prose = "\n".join(line for line in text.split("\n") if "$" not in line)  # in code, for a figure's label
        assert not re.search(r"\\\(|\\\[|\\(?:frac|mathcal|mathrm|mathbb|sum|text|ln|begin|left)\b", prose), number


def test_every_link_of_a_page_leads_into_the_book(book):
    ends = set(book.named_destinations)
    links = outside = 0
    for page in book.pages:
        for note in page.get("/Annots") or []:
            note = note.get_object()
            if "/Dest" in note:
                links += 1
                assert str(note["/Dest"]).lstrip("/") in {end.lstrip("/") for end in ends}
            elif note.get("/A", {}).get("/S") == "/URI":
                outside += 1
                assert re.match(r"https?://", note["/A"]["/URI"]), note["/A"]["/URI"]
                assert "book.invalid" not in note["/A"]["/URI"]
    assert links > 1000
    assert outside >= 20


def test_the_numbers_are_those_of_the_pages(texts, html):
    whole = flat("".join(texts))
    for page in pages():
        text = (html / f"{page}.html").read_text()
        for number in re.findall(r'class="eqno">(\([\d.]+\))<', text):
            assert number in whole, (page, number)
        for number in re.findall(r'class="caption-number">([^<]+)<', text):
            assert flat(number) in whole, (page, number)


def test_there_is_a_picture_for_each_figure_and_each_explorer(book):
    outputs = [
        output.get("data", {})
        for path in notebooks()
        for cell in json.loads(path.read_text())["cells"]
        for output in cell.get("outputs", [])
    ]
    assert sum({VIEW, PICTURE} <= data.keys() for data in outputs) >= 5
    drawn = [thing.get_object() for page in book.pages for thing in page["/Resources"].get("/XObject", {}).values()]
    pictures = [thing for thing in drawn if thing["/Subtype"] == "/Image"]
    assert len(pictures) == sum(PICTURE in data for data in outputs) + 1  # the title's


def test_the_file_has_a_title_a_language_and_a_bounded_size(book):
    assert book.metadata.title == "The Denoising Variational Auto-Encoder"
    assert book.trailer["/Root"]["/Lang"] == "en"
    assert book.trailer["/Root"]["/MarkInfo"]["/Marked"]
    assert 200 < len(book.pages) < 700
    assert 2e6 < pdf.PDF.stat().st_size < 20e6


def test_the_pages_offer_the_pdf_and_the_links_work(open_page, book):
    page = open_page("book/intro")
    line = page.get_by_role("link", name="The whole book as one PDF").first
    assert f"{len(book.pages)} pages" in line.locator("..").inner_text()
    address = line.evaluate("link => link.href")
    answer = page.request.get(address)
    assert answer.status == 200
    assert answer.body() == pdf.PDF.read_bytes()
    page = open_page("book/noise", width=400)
    page.get_by_role("button", name="Download this page").click()
    item = page.get_by_role("link", name="the book, .pdf")
    item.wait_for()
    assert item.evaluate("link => link.href") == address
