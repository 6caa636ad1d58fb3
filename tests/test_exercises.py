"""The chapters for a class: every exercise and check is there, no solution is, and a solution put back passes."""

import ast
import re

import exercises
import nbformat
import pytest
from exercises import BLANK, runs, solutions, without_solutions
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from plain import numbers, plain
from refresh import ROOT, notebooks

STATEMENT = re.compile(
    r"^```\{exercise\} (?P<title>[^\n]+)\n:label: (?P<label>\S+)\n(?P<text>.*?)^```$", re.DOTALL | re.M
)
SOLVED = re.compile(r"\{solution-start\}.*?^````$(?P<prose>.*?)(?:\Z|^````\{solution-end\})", re.DOTALL | re.M)
RAW = re.compile(r"\{[\w:-]+\}`|^[`:]{3,}\{|^\([^()\s]+\)=|^:\w+: ", re.MULTILINE)
# what only a solution's own statements begin with: a definition, an assignment, a picture
WORK = re.compile(r"^ *(?:def |class |return |plt\.|[\w.]+(?:\[[^=]*\])?(?:, [\w.]+)* [-+*/@]?= )")

each_notebook = pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)


def both(path):
    return nbformat.read(path, as_version=4), without_solutions(nbformat.read(path, as_version=4), path.stem)


def text_of(notebook, kind="markdown"):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == kind)


def part_of_the_exercises(notebook):
    """The code cells behind the first exercise's statement."""
    first = next(i for i, cell in enumerate(notebook.cells) if "### Exercise" in cell.source)
    return [cell for cell in notebook.cells[first:] if cell.cell_type == "code"]


@each_notebook
def test_every_exercise_is_there_and_its_statement_is_whole(path):
    chapter, written = both(path)
    statements = list(STATEMENT.finditer(text_of(chapter)))
    headings = [f"{numbers()[one['label']]}: {one['title']}" for one in statements]
    assert re.findall(r"^### (Exercise .*)$", text_of(written), re.MULTILINE) == headings
    assert len(headings) == len(solutions(chapter)) >= 2
    for one in statements:
        assert plain(one["text"], lambda page: f"../book/{page}.ipynb").strip() in text_of(written), one["title"]


@each_notebook
def test_no_solution_is_left(path):
    chapter, written = both(path)
    left = "\n".join(cell.source for cell in part_of_the_exercises(written))
    work = [
        line for solution in solutions(chapter) for cell in solution for line in cell.splitlines() if WORK.match(line)
    ]
    assert work
    assert set(work) & set(left.splitlines()) == set()
    assert "{solution" not in text_of(written)
    for one in SOLVED.finditer(text_of(chapter)):
        for paragraph in filter(None, (part.strip() for part in one["prose"].split("\n\n"))):
            assert len(paragraph) < 60 or plain(paragraph) not in text_of(written), paragraph


def checks(source):
    """The calls of `verify_...` that stand in no function, as text."""
    nodes = list(ast.parse(source).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Expr) and ast.unparse(node).startswith("verify_"):
            yield ast.unparse(node)
        elif not isinstance(node, ast.FunctionDef | ast.ClassDef):
            nodes += [part for name in ("body", "orelse") for part in getattr(node, name, [])]


@each_notebook
def test_every_check_of_a_solution_is_kept(path):
    chapter, written = both(path)
    wanted = [check for solution in solutions(chapter) for cell in solution for check in checks(cell)]
    kept = [check for cell in part_of_the_exercises(written) for check in checks(cell.source)]
    assert sorted(kept) == sorted(wanted)


@each_notebook
def test_a_notebook_is_valid_and_plain(path):
    chapter, written = both(path)
    nbformat.validate(written)
    assert not RAW.search(text_of(written))
    new = part_of_the_exercises(written)
    assert any(cell.source == BLANK for cell in new)
    for cell in new:
        ast.parse(cell.source)
        assert cell.outputs == []
        assert cell.execution_count is None
    stored = [cell.outputs for cell in chapter.cells if cell.cell_type == "code"]
    solved = sum(map(len, solutions(chapter)))
    assert [cell.outputs for cell in written.cells if cell.cell_type == "code"][: -len(new)] == stored[:-solved]


def test_what_a_check_asks_for():
    """Work is taken out of loops, the chapter's names are put away, and what follows the last check is dropped."""
    cells = [
        "half = x / 2\nverify_close('half', half, 2, 0)",
        "for n in (1, 2):\n    y = half + n\n    verify_close('y', y, n, 0)\n    print(y)",
    ]
    solution = runs([*cells, "print(half)"])
    assert [run.is_check for run in solution] == [False, True]
    put_away, blank, check = (cell.source for cell in exercises.cells_for(solution, {"half", "x", "y"}))
    assert put_away.endswith('for name in ["half"]:\n    globals().pop(name, None)')
    assert blank == BLANK
    assert check.splitlines() == [
        'missing = {"half"} - globals().keys()',
        'assert not missing, f"not solved yet: define {sorted(missing)}"',
        "verify_close('half', half, 2, 0)",
        "for n in (1, 2):",
        '    raise NotImplementedError("your solution: y")',
        "    verify_close('y', y, n, 0)",
    ]


def test_what_is_there_already_is_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exercises, "FOLDER", tmp_path)
    monkeypatch.setattr(exercises, "ROOT", tmp_path)
    for text in ("left alone", "kl_layer.ipynb"):
        (tmp_path / "kl_layer.ipynb").write_text("mine") if text == "left alone" else (
            tmp_path / "kl_layer.ipynb"
        ).unlink()
        assert exercises.main([str(ROOT / "book" / "kl_layer.ipynb")]) == 0
        assert text in capsys.readouterr().out
        assert ((tmp_path / "kl_layer.ipynb").read_text() == "mine") is (text == "left alone")


def execute(notebook):
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT / "book")}}
    ).execute()


def test_a_chapter_stops_at_the_first_check_and_passes_with_its_solutions_put_back():
    chapter, written = both(ROOT / "book" / "kl_layer.ipynb")
    with pytest.raises(CellExecutionError, match=r"not solved yet: define \['by_code'\]"):
        execute(written)
    rest = iter([run for solution in solutions(chapter) for run in runs(solution)])
    for cell in part_of_the_exercises(written):
        if cell.source == BLANK:
            cell.source = next(rest).source
        elif "globals().pop" not in cell.source:
            run = next(rest)
            assert run.is_check
            cell.source = run.source if "NotImplementedError" in cell.source else cell.source
    assert next(rest, None) is None
    execute(written)
    lines = [
        line for cell in part_of_the_exercises(written) for output in cell.outputs for line in output.text.splitlines()
    ]
    assert sum(" against " in line for line in lines) >= 8
