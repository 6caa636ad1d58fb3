"""Write the chapters for a class: the exercises without their solutions, whose checks stay and can be run.

    python tools/exercises.py                    # all chapters, into classroom/
    python tools/exercises.py book/noise.ipynb   # some

Of a solution's code only the lines that check it are left: calls of `verify_...` and assertions, also within a loop.
Where the rest stood there is a cell "# your solution", or in a loop a line that says what is missing. A check that
asks for a name that is not defined yet says so. The chapter before the exercises is the book's, outputs and all.

The notebooks lie in classroom/, beside book/: so what they name by "../", as the weights, is found from there, too. One
that is there already may hold somebody's work, and is left alone.
"""

import ast
import builtins
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell
from plain import plain
from refresh import ROOT, notebooks

FOLDER = ROOT / "classroom"
START = re.compile(r"^(?P<fence>[`:]{3,})\{solution-start\}.*?^(?P=fence) *$\n?", re.DOTALL | re.MULTILINE)
END = re.compile(r"^(?P<fence>[`:]{3,})\{solution-end\}.*?^(?P=fence) *$\n?", re.DOTALL | re.MULTILINE)
BLANK = "# your solution"
HEAD = """*This is a chapter of [the book]({page}) for work in class. Run it from the top. Each exercise at its end has
cells "{blank}", and after them the checks that the book's own solution has to pass. A check tells which names it asks
for, and shows the value that it expects.*"""


class Run(NamedTuple):
    """Statements of a solution that follow each other: work, which is taken out, or its checks, which stay."""

    is_check: bool
    source: str


def is_check(node: ast.stmt) -> bool:
    """Whether a statement only compares: an assertion, or a call of `verify_...`."""
    if isinstance(node, ast.Assert):
        return True
    called = node.value.func if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else None
    return isinstance(called, ast.Name) and called.id.startswith("verify_")


def holds_check(node: ast.stmt) -> bool:
    """Whether a statement is a check, or a loop or block with one in it; what a function does is its author's work."""
    if isinstance(node, ast.For | ast.While | ast.With | ast.If | ast.Try):
        return any(map(holds_check, [*node.body, *getattr(node, "orelse", [])]))
    return is_check(node)


def runs(cells: list[str]) -> list[Run]:
    """Return the code of a solution in its order, split where work and checks meet, up to the last check."""
    found: list[Run] = []
    for cell in cells:
        lines, end = cell.splitlines(), 0
        for node in ast.parse(cell).body:
            first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", ()))])
            piece = "\n".join(lines[min(end, first - 1) : node.end_lineno]).strip("\n")
            end = node.end_lineno
            if found and found[-1].is_check == holds_check(node):
                found[-1] = found[-1]._replace(source=f"{found[-1].source}\n{piece}")
            else:
                found.append(Run(holds_check(node), piece))
    if len(found) > 1 and not found[-1].is_check:
        found.pop()
    return found


def emptied(source: str) -> str:
    """Return checks with the work in their loops taken out; where they need it, a line says which names it gave."""
    lines = source.splitlines()
    for node in reversed(ast.parse(source).body):
        _empty(node, lines)
    return "\n".join(lines)


def _empty(node: ast.stmt, lines: list[str]) -> None:
    if is_check(node):
        return
    needed: set[str] = set()
    groups = [group for body in (node.body, getattr(node, "orelse", [])) for group in _grouped(body)]
    for kept, group in reversed(groups):
        if kept:
            needed |= read_by_checks(group)
            for one in reversed(group):
                _empty(one, lines)
            continue
        wanted = ", ".join(sorted(stored(group) & needed))
        blank = f'{" " * group[0].col_offset}raise NotImplementedError("your solution: {wanted}")'
        lines[group[0].lineno - 1 : group[-1].end_lineno] = [blank] if wanted else []


def read_by_checks(nodes: list[ast.stmt]) -> set[str]:
    """Return the names that checks read, also those in loops, which read what they go through."""
    found = set()
    for node in nodes:
        if is_check(node):
            found |= loaded([node])
        elif holds_check(node):
            head = [part for name, part in ast.iter_fields(node) if name in {"iter", "test"}]
            found |= read_by_checks([*node.body, *getattr(node, "orelse", [])]) | loaded(
                [*head, *getattr(node, "items", [])]
            )
    return found


def _grouped(body: list[ast.stmt]) -> Iterator[tuple[bool, list[ast.stmt]]]:
    group: list[ast.stmt] = []
    for node in body:
        if group and holds_check(group[0]) != holds_check(node):
            yield holds_check(group[0]), group
            group = []
        group.append(node)
    if group:
        yield holds_check(group[0]), group


def stored(nodes: list[ast.stmt]) -> set[str]:
    """Return the names that statements define, functions, classes and imports among them."""
    found = {name.id for node in nodes for name in ast.walk(node) if _is(name, ast.Store)}
    for one in (one for node in nodes for one in ast.walk(node)):
        if isinstance(one, ast.FunctionDef | ast.ClassDef):
            found.add(one.name)
        elif isinstance(one, ast.alias):
            found.add((one.asname or one.name).partition(".")[0])
    return found


def loaded(nodes: list[ast.stmt]) -> set[str]:
    """Return the names that statements read."""
    return {name.id for node in nodes for name in ast.walk(node) if _is(name, ast.Load)} - set(dir(builtins))


def _is(node: ast.AST, context: type[ast.expr_context]) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, context)


def asked(solution: list[Run]) -> list[set[str]]:
    """Return, for each run, the names of the work before it that it reads, if it checks."""
    found, given = [], set()
    for run in solution:
        nodes = ast.parse(run.source).body
        found.append(read_by_checks(nodes) & given - stored(nodes))
        given |= stored(nodes)
    return found


def read_first(solution: list[Run]) -> set[str]:
    """Return the names that the work reads before it defines them: those of the chapter that it goes on from."""
    found, given = set(), set()
    for run in solution:
        for node in ast.parse(run.source).body:
            found |= loaded([node]) - given
            given |= stored([node])
    return found


def cells_for(solution: list[Run], taken: set[str]) -> list[nbformat.NotebookNode]:
    """Return the cells that stand in a solution's place; `taken` are names that the chapter before it has used."""
    wanted = asked(solution)
    old = sorted(set().union(*wanted) & taken - read_first(solution))
    found = []
    if old:
        put_away = (
            "# the chapter used these names, too; the checks want yours\nfor name in {}:\n    globals().pop(name, None)"
        )
        found.append(new_code_cell(put_away.format(_listed(old, "[]"))))
    for run, names in zip(solution, wanted, strict=True):
        guard = f"missing = {_listed(sorted(names), '{}')} - globals().keys()\n"
        guard += 'assert not missing, f"not solved yet: define {sorted(missing)}"\n'
        found.append(new_code_cell((guard if names else "") + emptied(run.source) if run.is_check else BLANK))
    return found


def _listed(names: list[str], brackets: str) -> str:
    return brackets[0] + ", ".join(f'"{name}"' for name in names) + brackets[1]


def solutions(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """Return the sources of the code cells of each solution, in order."""
    found: list[list[str]] = []
    inside = False
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for part in re.finditer(r"\{solution-(start|end)\}", cell.source):
                inside = part[1] == "start"
                found += [[]] if inside else []
        elif inside:
            found[-1].append(cell.source)
    return found


def without_solutions(notebook: nbformat.NotebookNode, page: str) -> nbformat.NotebookNode:
    """Return a chapter for a class: plain Markdown, and an empty cell and the checks in the place of each solution.

    Args:
        notebook: as it is stored in `book/`.
        page: its name there.
    """
    left, taken = iter(solutions(notebook)), set()
    cells = [new_markdown_cell(HEAD.format(page=f"../book/{page}.ipynb", blank=BLANK))]
    inside = False
    for cell in notebook.cells:
        if cell.cell_type == "code":
            taken |= stored(ast.parse(re.sub(r"^[%!]", "#", cell.source, flags=re.MULTILINE)).body)
            cells += [] if inside else [nbformat.from_dict(dict(cell))]
            continue
        rest = cell.source
        while part := (END if inside else START).search(rest):
            if not inside:
                cells += _text(rest[: part.start()])
                cells += cells_for(runs(next(left)), taken)
            rest, inside = rest[part.end() :], not inside
        cells += [] if inside else _text(rest)
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    return nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)


def _text(text: str) -> list[nbformat.NotebookNode]:
    text = plain(text, lambda page: f"../book/{page}.ipynb").strip()
    return [new_markdown_cell(text)] if text else []


def main(arguments: list[str]) -> int:
    FOLDER.mkdir(exist_ok=True)
    for path in [Path(name).resolve() for name in arguments] or notebooks():
        target = FOLDER / path.name
        if target.exists():
            print(f"{target.relative_to(ROOT)} is there already, and left alone: move it away to have it written anew")
            continue
        nbformat.write(without_solutions(nbformat.read(path, as_version=4), path.stem), target)
        print(target.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
