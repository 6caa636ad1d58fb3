"""Make the whole book one PDF, from the built pages and with a browser: make pdf

    python tools/pdf.py

The pages of _build/html are put one behind the other as `_toc.yml` orders them, so that every number is that of the
pages, and their links become links within the book. Chromium typesets the formulas, prints once to learn on which page
each heading comes to stand, fills in the contents, and prints again. The result is `_build/pdf/denoising-vae.pdf`, with
a copy in `_build/html/`, beside which the pages get their links to it: pages that were built without a PDF offer none.

What a page unfolds on a click cannot stay folded on paper. Solutions stand open. Folded code is left out where it
printed or drew something, which stands in its place, and is set in small print where it is all that a cell has to show.
"""

import html
import importlib.util
import posixpath
import re
import shutil
import sys
import time
from io import BytesIO
from pathlib import Path

import pikepdf
import yaml
from bs4 import BeautifulSoup, Tag
from chromium import MISSING, program
from playwright.sync_api import Page, Route, sync_playwright
from pypdf import PdfReader

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"
PDF = ROOT / "_build" / "pdf" / "denoising-vae.pdf"
SITE = "http://book.invalid"  # nothing is asked of the network: every address is answered below
OFFER = "The whole book as one PDF"
FIRST = "Introduction"  # on the pages the first chapter bears the book's title, here the title page does
EDITION = """
<h2>About this edition</h2>
<p>This is the printed form of a book of web pages, which are made from notebooks. Chapters, equations, figures,
theorems and exercises bear the same numbers there and here; the page numbers are this edition's own.</p>
<p>Some of the pages' code is folded, such as imports and what draws a figure. Here it is left out where its figure or
its output stands, and set in small print with a dotted line where it is all that a cell has to show. The solutions of
the exercises, which the pages fold as well, stand open below each exercise. Where the pages have an explorer, a picture
that answers the reader's mouse, there is a still picture of it.</p>
""".replace("'", "&rsquo;")
MATHJAX = """{
  options: {menuOptions: {settings: {assistiveMml: false}}, processHtmlClass: "math", ignoreHtmlClass: "chapter|front"},
}"""
HEADINGS = """[...document.querySelectorAll("h1, h2, h3, h4, h5, h6")]
  .map((heading) => heading.textContent.replace(/\\s+/g, " ").trim())"""
# Typeset, give the figures one scale, make smaller what is wider than the column; return what still sticks out
LAY_OUT = """async () => {
  await MathJax.startup.promise;
  await Promise.all([...document.images].map((image) => image.decode()));
  await document.fonts.ready;
  for (const item of MathJax.startup.document.math) { // read aloud by its name, not as a heap of signs
    item.typesetRoot.setAttribute("role", "img");
    item.typesetRoot.setAttribute("aria-label", item.math.trim());
  }
  for (const image of document.querySelectorAll(".chapter img")) {
    const dpi = image.closest(".dvae-still") ? 150 : 200; // dvae_lib/widgets/stills.py, dvae_lib/plotting.py
    image.style.width = `${(0.82 * 96 * image.naturalWidth) / dpi}px`;
  }
  for (const box of document.querySelectorAll("mjx-container")) {
    const room = (box.getAttribute("display") ? box : box.closest("p, li, td, dd, figcaption") ?? box).clientWidth;
    const ratio = room / box.firstElementChild.getBoundingClientRect().width;
    if (room && ratio < 1) box.style.fontSize = `${0.99 * ratio * parseFloat(getComputedStyle(box).fontSize)}px`;
  }
  for (const code of document.querySelectorAll("pre")) { // lines stay whole where that leaves them legible
    const style = getComputedStyle(code);
    const longest = Math.max(...code.textContent.split("\\n").map((line) => line.length));
    const fitting = code.clientWidth / (0.603 * longest);
    code.style.fontSize = `${Math.min(parseFloat(style.fontSize), Math.max(fitting, 8))}px`; // 8 px are 6 pt
  }
  for (const table of document.querySelectorAll("table")) {
    const ratio = () => table.parentElement.clientWidth / table.offsetWidth;
    if (ratio() < 0.75) table.classList.add("wide");
    if (ratio() < 1) table.style.zoom = 0.995 * ratio();
  }
  const edge = document.body.getBoundingClientRect().right + 1;
  return [...document.querySelectorAll("body *")]
    .filter((element) => element.getBoundingClientRect().right > edge)
    .map((element) => `${element.closest("[id]")?.id}: ${element.tagName} ${element.textContent.slice(0, 60)}`);
}"""


def contents() -> list[tuple[str | None, list[str]]]:
    """The parts of the book: their titles, and the names of their pages."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [(None, [toc["root"]]), *((p["caption"], [c["file"] for c in p["chapters"]]) for p in toc["parts"])]


def key(page: str, anchor: str = "") -> str:
    """The anchor in the whole book of an anchor of a page: names such as `exercises` stand in many."""
    return "--".join(filter(None, (posixpath.basename(page), anchor)))


def chapter(page: str, pages: set[str]) -> Tag:
    """Return the text of a built page, without what only a screen can show, its links turned into the book's."""
    article = BeautifulSoup((HTML / f"{page}.html").read_text(), "html.parser").find("article")
    assert isinstance(article, Tag), page
    for thing in article.select("a.headerlink, script, button, .toctree-wrapper, .dvae-when-missing, .dvae-pdf"):
        thing.decompose()
    for folded in article.select("details.hide"):
        cell = folded.find_parent(class_="cell")
        assert isinstance(cell, Tag)
        if cell.select_one(".cell_output img, .cell_output pre, .cell_output table"):
            folded.decompose()
        else:
            folded.summary.decompose()
            folded.name = "div"
            folded["class"] = "folded"
    # "... the following:" and an opening before a formula are not torn from what they announce
    for paragraph in article.find_all("p"):
        after = paragraph.find_next_sibling()
        if after and ("math" in after.get("class", []) or paragraph.get_text().rstrip().endswith(":")):
            paragraph["class"] = [*paragraph.get("class", []), "keep"]
    folder = posixpath.dirname(page)
    for thing in article.select("[id]"):
        thing["id"] = key(page, thing["id"])
    for link in article.select("a[href]"):
        target, _, anchor = link["href"].partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        other = posixpath.normpath(posixpath.join(folder, target)).removesuffix(".html") if target else page
        if other in pages:
            # what holds "=" is no anchor but the state of an explorer: on paper, the link leads to its chapter
            link["href"] = f"#{key(other, '' if '=' in anchor else anchor)}"
        else:  # an index, a file for download
            link.unwrap()
    for image in article.select("img"):
        image["src"] = "/" + posixpath.normpath(posixpath.join(folder, image["src"]))
    article.name = "section"
    article.attrs = {"class": "chapter", "id": key(page), "style": f"page: {key(page)}"}
    return article


def entry(target: str, level: str, words: str) -> str:
    """A line of the contents, whose page number is still to come."""
    return (
        f'<li class="{level}"><a href="#{target}"><span>{words}</span><span class="dots"></span>'
        f'<span class="page-number" data-of="{target}">000</span></a></li>'
    )


def words(heading: Tag) -> str:
    return re.sub(r"\s+", " ", heading.decode_contents()).strip()


def whole_book() -> str:
    """Return the HTML of the whole book."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    pages = {page for _, some in contents() for page in some}
    lines, chapters, heads = [], [], []
    for part, some in contents():
        if part:
            lines.append(f'<li class="part">{html.escape(part)}</li>')
        for position, page in enumerate(some):
            text = chapter(page, pages)
            title = text.h1
            if part is None:
                title.string = FIRST
            lines.append(entry(key(page), "chapter-entry", words(title)))
            for section in text.select("section:has(> h2)"):
                lines.append(entry(section["id"], "section-entry", words(section.h2)))
            head = html.unescape(re.sub(r"\\[()]|<[^>]+>", "", words(title))).replace('"', "'")
            heads.append(f'@page {key(page)} {{ @top-left {{ content: "{head}"; }} }}')
            if part and position == 0:
                text.insert(0, BeautifulSoup(f'<p class="part-title">{html.escape(part)}</p>', "html.parser"))
            chapters.append(str(text))
    book = "\n".join(chapters)
    targets = set(re.findall(r'\bid="([^"]+)"', book))
    if lost := {link for link in re.findall(r'href="#([^"]*)"', book) if html.unescape(link) not in targets}:
        raise ValueError(f"links that lead nowhere in the printed book: {sorted(lost)}")
    return f"""<!doctype html>
<html lang="en" data-theme="light">
<head>
<meta charset="utf-8">
<title>{html.escape(citation["title"])}</title>
<meta name="author" content="{html.escape(citation["authors"][0]["name"])}">
<link rel="stylesheet" href="/_static/pygments.css">
<link rel="stylesheet" href="/pdf.css">
<style>{" ".join(heads)}</style>
<script>window.MathJax = {MATHJAX};</script>
<script defer src="/_static/mathjax/tex-chtml.js"></script>
</head>
<body>
<div class="front title-page">
<h1>{html.escape(citation["title"])}</h1>
<p class="abstract">{html.escape(citation["abstract"])}</p>
<figure><img src="/_static/four-rows.png" style="width: 120mm" alt="Four rows of twelve pictures: clean white squares;
the same with every tenth pixel flipped; the VAE's reconstructions, many of them smeared; the DVAE's, crisp"></figure>
<p>{html.escape(citation["authors"][0]["name"])}</p>
<p>Version {citation["version"]} · licence {citation["license"]}</p>
</div>
<div class="edition">{EDITION}</div>
<nav class="contents"><h1>Contents</h1><ul>{"".join(lines)}</ul></nav>
{book}
</body>
</html>"""


def files() -> dict[str, Path]:
    """What the book asks for beside the pages' files, by its address: the style, and the fonts, which pip installed."""
    serif = Path(str(importlib.util.find_spec("font_source_serif_pro").origin)).parent / "files"
    mono = Path(str(importlib.util.find_spec("matplotlib").origin)).parent / "mpl-data" / "fonts" / "ttf"
    fonts = [*serif.glob("*.ttf"), *mono.glob("DejaVuSansMono*.ttf")]
    return {"/pdf.css": ROOT / "tools" / "pdf.css"} | {f"/fonts/{font.name}": font for font in fonts}


def print_pages(page: Page) -> bytes:
    return page.pdf(prefer_css_page_size=True, print_background=True, outline=True, tagged=True)


def page_numbers(pdf: bytes) -> dict[str, int]:
    """The page on which each link's target stands, from 1."""
    reader = PdfReader(BytesIO(pdf))
    found = reader.named_destinations
    return {name.lstrip("/"): reader.get_destination_page_number(place) + 1 for name, place in found.items()}


def store(pdf: bytes, entries: list[str]) -> None:
    """Write the file, with these titles in its outline: Chromium doubles those of headings that begin a page.

    What helps a reading voice, Chromium stores at its full length, more than half of the file; here it is packed.
    """

    left = list(entries)

    def name(items) -> None:
        for item in items:
            item.title = left.pop(0)
            name(item.children)

    with pikepdf.open(BytesIO(pdf)) as file:
        with file.open_outline() as outline:
            name(outline.root)
        if left:
            raise ValueError(f"the outline misses {left}")
        PDF.parent.mkdir(parents=True, exist_ok=True)
        file.save(PDF, object_stream_mode=pikepdf.ObjectStreamMode.generate)


def make(book: str, progress=print) -> tuple[bytes, list[str]]:
    """Print the book; return the file and the headings that its outline leads to."""
    own = files()

    def answer(route: Route) -> None:
        path = route.request.url.removeprefix(SITE).split("?")[0]
        if path == "/":
            route.fulfill(body=book, content_type="text/html; charset=utf-8")
        elif (file := own.get(path, HTML / path.lstrip("/"))).is_file():
            route.fulfill(path=file)
        else:
            route.abort()

    with sync_playwright() as playwright:
        chromium = program(playwright.chromium.executable_path)
        if chromium is None:
            sys.exit(MISSING)
        browser = playwright.chromium.launch(executable_path=chromium)
        page = browser.new_page(viewport={"width": 800, "height": 1000})
        page.set_default_timeout(300_000)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(request.url))
        page.route("**/*", answer)
        page.emulate_media(media="print", color_scheme="light")
        page.goto(SITE)
        problems += page.evaluate(LAY_OUT)
        if problems:
            raise ValueError("the printed book: " + "; ".join(problems))
        progress("typeset")
        headings = page.evaluate(HEADINGS)
        numbers = page_numbers(print_pages(page))
        progress("printed once")
        page.evaluate(
            """(numbers) => document.querySelectorAll(".page-number").forEach((element) => {
              element.textContent = numbers[element.dataset.of];
            })""",
            numbers,
        )
        pdf = print_pages(page)
        browser.close()
    if page_numbers(pdf) != numbers:
        raise ValueError("the contents' page numbers are not those of the pages")
    return pdf, headings


def offer(size: int, count: int) -> None:
    """Put the links to the PDF into the built pages: each page's menu of downloads, and below the first one's title."""
    root = contents()[0][1][0]
    for page in (page for _, some in contents() for page in some):
        file = HTML / f"{page}.html"
        text = re.sub(r'<(li|p) class="dvae-pdf">.*?</\1>\n', "", file.read_text())  # of an earlier PDF
        address = posixpath.relpath(PDF.name, posixpath.dirname(page))
        item = (
            f'<li class="dvae-pdf"><a href="{address}" class="btn btn-sm dropdown-item" title="{OFFER}">'
            '<span class="btn__icon-container"><i class="fas fa-book"></i></span>'
            '<span class="btn__text-container">the book, .pdf</span></a></li>\n'
        )
        line = f'<p class="dvae-pdf"><a href="{address}">{OFFER}</a>, {count} pages, {size / 1e6:.0f} MB</p>\n'
        places = {r'dropdown-download-buttons">.*?<ul class="dropdown-menu">\n': item}
        if page == root:
            places[r"<article.*?</h1>\n"] = line
        for place, link in places.items():
            found = re.search(place, text, re.S)
            if found is None:
                raise ValueError(f"{page}.html has no place for the link to the PDF")
            text = text[: found.end()] + link + text[found.end() :]
        file.write_text(text)


def main() -> None:
    start = time.perf_counter()

    def progress(what: str) -> None:
        print(f"{time.perf_counter() - start:5.0f} s  {what}", flush=True)

    book = whole_book()
    progress("pages joined")
    store(*make(book, progress))
    size = PDF.stat().st_size
    shutil.copy(PDF, HTML / PDF.name)
    count = len(PdfReader(PDF).pages)
    offer(size, count)
    progress(f"{PDF.relative_to(ROOT)}: {count} pages, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
