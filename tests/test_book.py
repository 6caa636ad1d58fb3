"""Guards on the notebooks as they are stored: what nbval cannot see, or passes over in silence."""

import itertools
import json
import re
import subprocess
from pathlib import Path

import nbformat
import pytest
from launch import TAG
from refresh import normalise, notebooks, pages

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
PICTURE_TAGS = {"picture-varies", "picture-of-cpu", "picture-of-training"}  # tools/pictures.py
OTHER_FILES = {"references.bib", "ruff.toml"}  # in book/ beside the pages


# what is a yes or a no by nature, by the beginning of its line
VERDICTS = {
    "first derivatives: ": "gradcheck compares a hundred differences, and returns True or raises",
    "second derivatives:": "the same",
    "gradcheck:": "the same",
    "Normal.sample:  knows its inputs:": "a tensor has a graph or has none",
    "active after construction:": "a layer's mode",
    "active in evaluation:": "a layer's mode",
    "in eval mode:": "a model's mode",
    "a number follows:": "the number of the step at which a run breaks depends on the processor",
    "graph   ": "a setting in the table of settings",
}

NOTEBOOKS = notebooks()


def code_cells(path: Path) -> list[tuple[int, nbformat.NotebookNode]]:
    cells = nbformat.read(path, as_version=4).cells
    return [(index, cell) for index, cell in enumerate(cells) if cell.cell_type == "code"]


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def figures(cell: nbformat.NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def is_live(cell: nbformat.NotebookNode) -> bool:
    """Whether a cell shows an explorer; its picture is a still that stands for it, and no figure of the book."""
    return any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in cell.outputs)


each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_every_page_exists_and_nothing_else_lies_in_the_book():
    named = {f"{Path(page).name}{suffix}" for page in pages() for suffix in (".ipynb", ".md")}
    present = {str(path.relative_to(BOOK)) for path in BOOK.rglob("*") if path.is_file()}
    present = {name for name in present if not name.startswith(".")}  # an editor's and a linter's caches
    assert present - named == OTHER_FILES
    assert all(sum((ROOT / f"{page}{suffix}").exists() for suffix in (".ipynb", ".md")) == 1 for page in pages())


def test_there_are_notebooks_to_guard():
    assert len(NOTEBOOKS) >= 8


@each_notebook
def test_every_code_cell_was_executed_in_order(path):
    counts = [cell.execution_count for _, cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1)), "run: make refresh"
    assert all(cell.source.strip() for _, cell in code_cells(path)), "an empty code cell"


@each_notebook
def test_the_stored_form_is_what_refresh_writes(path):
    stored = json.loads(path.read_text())
    again = normalise(nbformat.read(path, as_version=4))
    assert json.loads(nbformat.writes(again)) == stored, "run: make refresh"


@each_notebook
def test_no_untagged_error_is_stored(path):
    for index, cell in code_cells(path):
        raised = any(output.output_type == "error" for output in cell.outputs)
        assert raised == ("raises-exception" in tags(cell)), f"cell {index}"


@each_notebook
def test_no_warning_or_progress_bar_is_stored(path):
    for index, cell in code_cells(path):
        assert not any(output.get("name") == "stderr" for output in cell.outputs), f"cell {index}"


@each_notebook
def test_every_figure_has_alt_text_and_a_caption(path):
    names = []
    for index, cell in code_cells(path):
        if not figures(cell):
            continue
        mystnb = cell.metadata.get("mystnb", {})
        assert figures(cell) == 1, f"cell {index} stores {figures(cell)} figures"
        assert len(mystnb.get("image", {}).get("alt", "")) >= 40, f"cell {index} has no alt text worth the name"
        if is_live(cell):
            continue
        assert len(mystnb.get("figure", {}).get("caption", "")) >= 20, f"cell {index} has no caption"
        names.append(mystnb["figure"]["name"])
    assert len(set(names)) == len(names)


def test_every_explorer_has_a_still_for_where_nothing_runs():
    """Not the one that trains: without a kernel it shows nothing."""
    live = [cell for path in NOTEBOOKS for _, cell in code_cells(path) if is_live(cell)]
    assert len(live) >= 5
    assert [cell.source for cell in live if not figures(cell)] == ["TrainAgain(networks)"]


@each_notebook
def test_no_output_holds_an_object_address_or_a_machine_path(path):
    for index, cell in code_cells(path):
        text = json.dumps([{**output, "data": {**output.get("data", {}), "image/png": ""}} for output in cell.outputs])
        found = re.search(r"0x[0-9a-f]{6,}|(?<![\w.])/(?:home|root|tmp|work|Users|opt|usr|var|mnt)/", text)
        assert not found, f"cell {index} stores {found.group()}"


def is_verdict(line: str) -> bool:
    """Whether a line says that something holds and not by how much; a True needs no other word, nor helps a number."""
    words = r"(?i)\b(agrees?|equal|passed|passes|ok|holds|held|caught|identical|unchanged|as expected)\b"
    return bool(re.search(r"\b(True|False)\b", line) or (re.search(words, line) and not re.search(r"\d", line)))


def test_a_verdict_is_recognised():
    verdicts = ["same weights: True", "K = 3: [True, False]", "x: agrees", "all passed", "OK", "(f) holds"]
    numbers = ["x: 0.5000 against 0.5000, within 0.1", "p = 0.2, holds", "equal images: 0.38"]
    assert [is_verdict(line) for line in verdicts + numbers] == [True] * 6 + [False] * 3


def test_verdicts_come_with_a_number():
    """A reader wants to see what was measured; what is a yes or a no by nature is listed above, and nothing in vain."""
    used = set()
    for path in NOTEBOOKS:
        for index, cell in code_cells(path):
            texts = [output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in cell.outputs]
            for line in filter(is_verdict, "\n".join(texts).splitlines()):
                known = {start for start in VERDICTS if line.startswith(start)}
                assert known, f"{path.stem}, cell {index}: {line}"
                used |= known
    assert used == set(VERDICTS)


@each_notebook
def test_few_cells_go_uncompared(path):
    cells = code_cells(path)
    uncompared = [cell for _, cell in cells if {"nbval-ignore-output", "nbval-skip"} & set(tags(cell))]
    assert len(uncompared) <= 0.1 * len(cells)
    assert not any(re.search(r"(?i)^#\s*nbval", cell.source, re.MULTILINE) for _, cell in cells), "use tags"


def test_few_pictures_go_uncompared():
    """Only what shows measured times; a tag that nobody knows would do nothing."""
    cells = [cell for path in NOTEBOOKS for _, cell in code_cells(path)]
    known = {TAG, "hide-input", "remove-output", "raises-exception", "nbval-ignore-output", *PICTURE_TAGS}
    assert {tag for cell in cells for tag in tags(cell)} <= known
    drawn = [cell for cell in cells if figures(cell)]
    assert all(figures(cell) for cell in cells if PICTURE_TAGS & set(tags(cell)))
    assert sum("picture-varies" in tags(cell) for cell in drawn) <= len(drawn) / 20


@each_notebook
def test_cells_are_short(path):
    for index, cell in code_cells(path):
        assert len(cell.source.splitlines()) <= 40, f"cell {index}"


@each_notebook
def test_a_sentence_announces_every_cell(path):
    cells = nbformat.read(path, as_version=4).cells
    for before, cell in itertools.pairwise(cells):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown", f"no prose before: {cell.source.splitlines()[0]}"


@each_notebook
def test_a_chapter_has_exercises_with_executed_solutions(path):
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    exercises = re.findall(r"\{exercise\}[^\n]*\n:label: (\S+)", text)
    solved = re.findall(r"\{solution-start\} (\S+)\n:label: \S+\n:class: dropdown", text)
    assert len(exercises) >= 2
    assert sorted(exercises) == sorted(solved)
    depth, executed = 0, 0
    for cell in cells:
        if cell.cell_type == "markdown":
            depth += cell.source.count("{solution-start}") - cell.source.count("{solution-end}")
        elif depth:
            executed += 1
    assert depth == 0
    assert executed >= len(exercises)


def test_no_file_names_a_path_of_somebodys_machine():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for name in tracked:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".yml", ".toml", ".txt", ".cff", ".bib", ".css", ".ipynb"}:
            assert not re.search(r"/(?:home|root|work)/\w", path.read_text()), name
