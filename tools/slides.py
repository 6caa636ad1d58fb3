"""Write slides of a chapter, from the same notebook as its page, with reveal.js.

    python tools/slides.py book/noise.ipynb      # one or more
    python tools/slides.py                       # all chapters

A section is a column of slides, and each code cell ends a slide of it: with the text that announces it, its code,
unless the page folds that, and its outputs. Of a paragraph a slide shows the first sentence, what is in bold face, and
what leads to a formula or a list; these, tables and code stay. The whole text is in the speaker's notes (the key S).
Solutions of exercises are left out.

Slides lie in _build/slides/, with reveal.js and MathJax beside them where npm has installed both (npm ci); without them
the slides ask a CDN for the same versions, and say so.
"""

import itertools
import json
import re
import shutil
import sys
from html import escape
from pathlib import Path

import nbformat
from exercises import END, START
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from plain import plain
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from references import END as SENTENCE
from references import UNREAD, figure
from refresh import ROOT, notebooks

FOLDER = ROOT / "_build" / "slides"
PACKAGES = ROOT / "node_modules"
CDN = "https://cdn.jsdelivr.net/npm"
TAKEN = {  # of each package
    "reveal.js": (
        *("dist/reset.css", "dist/reveal.css", "dist/theme/white.css", "dist/theme/fonts"),
        *("dist/reveal.js", "plugin/notes/notes.js"),
    ),
    "mathjax": ("es5/tex-mml-chtml.js", "es5/output/chtml/fonts/woff-v2"),
}
LINES = 24  # of text and code that fit on a slide
KEPT = re.compile(r"^(?:#|\$\$|[-*+|>] |\d+\. |```|!\[|\*\*|\||:::)")  # a block that is no paragraph
HEADING = re.compile(r"^(#{1,3}) +(.+)$", re.MULTILINE)
CODE = HtmlFormatter(style="default", cssclass="code")
STYLE = f"""
.reveal {{ font-size: 24px }} .reveal .slides {{ text-align: left }}
.reveal .slides section {{ height: 100%; overflow: auto }} .reveal .slides section.stack {{ overflow: visible }}
.reveal h1, .reveal h2, .reveal h3 {{ text-transform: none; letter-spacing: 0 }}
.reveal h1 {{ font-size: 1.9em }} .reveal h2 {{ font-size: 1.45em }} .reveal h3 {{ font-size: 1.15em }}
.reveal pre {{ font-size: 0.75em; width: 100%; box-shadow: none; background: #f6f6f6; padding: 0.5em; overflow: auto }}
.reveal pre.output {{ background: none; border-left: 4px solid #bbb; color: #333 }}
.reveal img {{ max-height: 460px; display: block; margin: 0.3em auto }}
.reveal figcaption {{ font-size: 0.7em; color: #555 }} .reveal table {{ font-size: 0.75em }}
{CODE.get_style_defs(".code")}
"""
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
{sheets}
<style>{style}</style>
</head>
<body>
<div class="reveal"><div class="slides">
{slides}
</div></div>
<script>
MathJax = {{tex: {{inlineMath: [["\\\\(", "\\\\)"]], displayMath: [["\\\\[", "\\\\]"]]}}}};
</script>
{scripts}
<script>
Reveal.initialize({{hash: true, slideNumber: "c/t", width: 1100, height: 700, margin: 0.06, center: false,
  transition: "none", plugins: [RevealNotes]}});
</script>
</body>
</html>
"""


def markdown() -> MarkdownIt:
    """Return a renderer whose formulas MathJax will find."""
    renderer = MarkdownIt("commonmark", {"html": False}).enable("table")
    dollarmath_plugin(renderer, allow_labels=False)
    renderer.add_render_rule("math_inline", lambda self, tokens, i, *_: f"\\({escape(tokens[i].content)}\\)")
    renderer.add_render_rule("math_block", lambda self, tokens, i, *_: f"<p>\\[{escape(tokens[i].content)}\\]</p>\n")
    return renderer


RENDERER = markdown()


def parts(text: str) -> list[str]:
    """Return the blocks of a text: what blank lines separate, but a formula or block of code stays whole."""
    found: list[str] = []
    whole = re.compile(r"^```.*?^```$|\$\$.*?\$\$", re.DOTALL | re.MULTILINE)
    kept = whole.sub(lambda part: part[0].replace("\n\n", "\n\0"), text)
    for block in re.split(r"\n\s*\n", kept):
        found += [block.replace("\0", "\n").strip()] if block.strip() else []
    return found


def short(text: str) -> str:
    """Return a text with each paragraph cut to its first sentence and what leads on, and to what is in bold face."""
    return "\n\n".join(block if KEPT.match(block) else _short(block) for block in parts(text))


def _short(paragraph: str) -> str:
    before, dollars, after = paragraph.partition("$$")  # a formula may stand within a paragraph
    hidden = UNREAD.sub(lambda part: re.sub(r"[^\n]", "x", part[0]), before)
    ends = [end.end() for end in SENTENCE.finditer(hidden)]
    cuts = [0, *ends] + ([len(before)] if not ends or ends[-1] < len(before) else [])
    sentences = [before[a:b].strip() for a, b in itertools.pairwise(cuts)]
    chosen = [one for i, one in enumerate(sentences) if i == 0 or "**" in one]
    if len(sentences) > 1 and sentences[-1] not in chosen and not re.search(r"[.?!][)\"'*_]*$", sentences[-1]):
        chosen.append(sentences[-1])  # it leads to what comes next
    return "\n".join([" ".join(chosen), dollars + after]).strip() if dollars else " ".join(chosen)


def text_of(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Return the cells of a chapter without its solutions, their Markdown made plain."""
    cells, inside = [], False
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cells += [] if inside or "remove-cell" in cell.metadata.get("tags", []) else [cell]
            continue
        rest, text = cell.source, ""
        while part := (END if inside else START).search(rest):
            text += "" if inside else rest[: part.start()]
            rest, inside = rest[part.end() :], not inside
        text = plain(text if inside else text + rest, lambda page: f"../html/book/{page}.html").strip()
        cells += [nbformat.v4.new_markdown_cell(text)] if text else []
    return cells


def outputs(cell: nbformat.NotebookNode) -> str:
    """Return what a cell has printed and drawn."""
    found = ""
    drawn = cell.metadata.get("mystnb", {})
    for output in cell.outputs:
        if "text" in output:
            found += f'<pre class="output">{escape(output.text)}</pre>\n'
        elif "image/png" in output.get("data", {}):
            picture = output.data["image/png"].replace("\n", "")
            alt = escape(drawn.get("image", {}).get("alt", ""), quote=True)
            found += f'<figure><img alt="{alt}" src="data:image/png;base64,{picture}">'
            found += f"<figcaption>{RENDERER.render(plain(figure(cell).get('caption', '')))}</figcaption></figure>\n"
        elif "text/plain" in output.get("data", {}):
            found += f'<pre class="output">{escape(output.data["text/plain"])}</pre>\n'
    return found


def slide(text: str, cell: nbformat.NotebookNode | None = None) -> str:
    """Return one slide: a text, shortened, and a code cell; the whole text are its notes."""
    found = RENDERER.render(short(text))
    if cell is not None:
        folded = "hide-input" in cell.metadata.get("tags", [])
        found += ("" if folded else highlight(cell.source, PythonLexer(), CODE)) + outputs(cell)
    return f'<section>\n{found}<aside class="notes">{RENDERER.render(text)}</aside>\n</section>\n' if found else ""


def lines(text: str, cell: nbformat.NotebookNode) -> int:
    """Return about how many lines of a slide a text and a cell take."""
    found = sum(len(line) // 95 + 1 + line.count("\\\\") for line in short(text).splitlines())
    for output in cell.outputs:
        found += 18 if "image/png" in output.get("data", {}) else len(output.get("text", "").splitlines())
    return found + (0 if "hide-input" in cell.metadata.get("tags", []) else len(cell.source.splitlines()))


def with_code(text: str, cell: nbformat.NotebookNode) -> str:
    """Return a slide of a text and a cell, or two where one would be too long: the last block announces the cell."""
    blocks = parts(text)
    if len(blocks) > 1 and lines(text, cell) > LINES:
        return slide("\n\n".join(blocks[:-1])) + slide(blocks[-1], cell)
    return slide(text, cell)


def columns(notebook: nbformat.NotebookNode) -> list[str]:
    """Return the slides of a chapter, section by section."""
    found = [""]
    waiting = ""
    for cell in text_of(notebook):
        if cell.cell_type == "code":
            found[-1] += with_code(waiting, cell)
            waiting = ""
            continue
        for piece in re.split(r"^(?=#{2,3} )", cell.source, flags=re.MULTILINE):
            if HEADING.match(piece):
                found[-1] += slide(waiting) if waiting.strip() else ""
                waiting = ""
                found += [""] if piece.startswith("## ") else []
            waiting += f"\n\n{piece}"
    found[-1] += slide(waiting) if waiting.strip() else ""
    return [f"<section>\n{column}</section>" for column in found if column]


def needed(folder: Path) -> tuple[list[str], list[str]]:
    """Return the addresses of sheets and scripts; where npm has the packages, they are copied beside the slides."""
    bases = {}
    for name, files in TAKEN.items():
        version = json.loads((ROOT / "package.json").read_text())["devDependencies"][name]
        bases[name] = f"{CDN}/{name}@{version}"
        if (PACKAGES / name / files[0]).exists():
            bases[name] = name
            for file in files:
                origin, target = PACKAGES / name / file, folder / name / file
                target.parent.mkdir(parents=True, exist_ok=True)
                if origin.is_dir():
                    shutil.copytree(origin, target, dirs_exist_ok=True)
                else:
                    shutil.copyfile(origin, target)
        else:
            print(f"{name} is not installed (npm ci): the slides ask {CDN} for it, and need the network")
    found = [f"{bases[name]}/{file}" for name, files in TAKEN.items() for file in files]
    return [one for one in found if one.endswith(".css")], [one for one in found if one.endswith(".js")]


def page(notebook: nbformat.NotebookNode, sheets: list[str], scripts: list[str]) -> str:
    """Return a chapter's slides as a page."""
    title = HEADING.search("\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown"))
    return PAGE.format(
        title=escape(title[2]),
        style=STYLE,
        sheets="\n".join(f'<link rel="stylesheet" href="{sheet}">' for sheet in sheets),
        scripts="\n".join(f'<script src="{script}"></script>' for script in scripts),
        slides="\n".join(columns(notebook)),
    )


def main(arguments: list[str]) -> int:
    FOLDER.mkdir(parents=True, exist_ok=True)
    sheets, scripts = needed(FOLDER)
    for path in [Path(name).resolve() for name in arguments] or notebooks():
        target = FOLDER / f"{path.stem}.html"
        target.write_text(page(nbformat.read(path, as_version=4), sheets, scripts))
        print(target.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
