"""The slides: all sections, pictures and formulas are there, no solution, no folded code, nothing raw."""

import re
from html import escape, unescape

import nbformat
import pytest
import slides
from exercises import solutions
from pygments import highlight
from pygments.lexers import PythonLexer
from refresh import notebooks

RAW = re.compile(
    r"\{[\w:-]+\}(?:`|<code>)|```|(?:^|>)\([^()\s]+\)=|(?:^|>):\w+: |\$\$|\{solution|&lt;!--", re.MULTILINE
)
NOTES = re.compile(r'<aside class="notes">.*?</aside>', re.DOTALL)

each_notebook = pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)


@each_notebook
def test_slides_of_a_chapter(path):
    chapter = nbformat.read(path, as_version=4)
    cells = slides.text_of(chapter)
    found = "\n".join(slides.columns(chapter))
    assert not RAW.search(re.sub(r"<pre.*?</pre>|base64,[^\"]*", "", found, flags=re.DOTALL))
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    sections = len(re.findall(r"^##? ", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE))
    assert len(re.findall(r"<section>\s*<section>", found)) == sections
    code = [cell for cell in cells if cell.cell_type == "code"]
    pictures = sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    assert found.count("<img ") == pictures
    assert unescape(NOTES.sub("", found)).count("\\tag{") == text.count("\\tag{")
    for cell in code:
        folded = "hide-input" in cell.metadata.get("tags", [])
        assert (highlight(cell.source, PythonLexer(), slides.CODE) in found) is not folded
    solved = {source for solution in solutions(chapter) for source in solution} - {cell.source for cell in code}
    assert not any(highlight(source, PythonLexer(), slides.CODE) in found for source in solved)
    shown = [
        cell
        for cell in chapter.cells
        if cell.cell_type == "code" and "remove-cell" not in cell.metadata.get("tags", [])
    ]
    assert len(code) == len(shown) - sum(map(len, solutions(chapter)))
    printed = [output.text for cell in code for output in cell.outputs if "text" in output]
    assert all(escape(one) in found for one in printed)
    assert found.count("<section>") == found.count("</section>")


def test_what_a_slide_shows_of_a_paragraph():
    rest = "**Third** is bold. So\n\n$$\na\n\n$$\n\nOne. Two:\n\n- a\n- b"
    text = f"First, 1.5 of $a. B$. Second. {rest}"
    assert slides.short(text) == f"First, 1.5 of $a. B$. {rest}"
