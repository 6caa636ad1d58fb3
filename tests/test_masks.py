"""tools/nbval.cfg hides the numbers of verify_close and verify_mean from nbval, and nothing else."""

import ast
import contextlib
import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from nbval.plugin import get_sanitize_patterns
from refresh import notebooks

from dvae_lib import verify_close, verify_mean

ROOT = Path(__file__).resolve().parent.parent
PATTERNS = get_sanitize_patterns((ROOT / "tools" / "nbval.cfg").read_text())
SAMPLES = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))


def masked(text: str) -> str:
    """What nbval compares."""
    for pattern, replacement in PATTERNS:
        text = re.sub(pattern, replacement, text)
    return text


def printed_by(check, *arguments) -> str:
    """What a check prints, or, as the book's `caught` does, its complaint."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            check(*arguments)
        except AssertionError as complaint:
            print(f"a mistake, caught: {complaint}")
    return out.getvalue()


# pairs of calls whose lines differ in nothing but what may differ from machine to machine
PAIRS = [
    [(verify_close, ("x, y: z", 0.5 + delta, 0.5, 1e-3)) for delta in (0, 4e-4)],
    [(verify_close, ("x", value, 0, 1e-9)) for value in (0, 1.2e-17)],
    [(verify_close, ("x", value, value, 5e5)) for value in (9.9e8, 1.01e9)],
    [(verify_close, ("x", [1.0, -value], [1.0, 0.25], 5)) for value in (1, 3)],
    [(verify_close, ("x", value, value, 0)) for value in (0.25, 0.375)],
    [(verify_close, ("x", [value, 0], [value, 0], 0)) for value in (0.25, -1.5e-7)],
    [(verify_mean, ("x", SAMPLES[:, 0] + delta, delta)) for delta in (0, 0.5)],
    [(verify_mean, ("x", 1e-7 * SAMPLES + delta, [delta] * 3)) for delta in (0, 1e-7)],
    [(verify_close, ("x", value, 0.5, 1e-3)) for value in (0.25, -1.5)],
    [(verify_mean, ("x", SAMPLES[:, 0], value)) for value in (3, 4)],
]


@pytest.mark.parametrize("pair", PAIRS)
def test_other_digits_pass(pair):
    first, second = (printed_by(check, *arguments) for check, arguments in pair)
    assert first != second
    assert masked(first) == masked(second)
    assert masked("before\n" + first + "after 1.5\n") == "before\n" + masked(first) + "after 1.5\n"


LINES = [printed_by(check, *arguments).rstrip("\n") for pair in PAIRS for check, arguments in pair]


def test_a_changed_name_tolerance_or_number_is_noticed():
    """Of a line only the numbers are replaced; its name and its clauses stay."""
    for line in LINES:
        name, numbers, clauses = re.split(r"(?<=: )(-?\d\S* (?:\+- \S+ )?against -?\d[^\s,]*)", line, maxsplit=1)
        clauses = re.sub(r"(?<=differs by )[^\s,]+|[^\s,]+(?= standard errors away)", "<number>", clauses)
        assert masked(line) == name + re.sub(r"-?\d\S*", "<number>", numbers) + clauses
    changed = [
        (verify_close, ("x", 0.5, 0.5, 1e-3), ("y", 0.5, 0.5, 1e-3)),
        (verify_close, ("K = 1", 0.5, 0.5, 1e-3), ("K = 2", 0.5, 0.5, 1e-3)),
        (verify_close, ("x", 0.5, 0.5, 1e-3), ("x", 0.5, 0.5, 2e-3)),
        (verify_close, ("x", 0.5, 0.5, 1e-3), ("x", 0.5, 0.5, 0)),
        (verify_close, ("x", 0.5, 0.5, 1e-3), ("x", [0.5, 0], [0.5, 0], 1e-3)),
        (verify_close, ("x", [0.5] * 3, [0.5] * 3, 1e-3), ("x", [0.5, 0], [0.5, 0], 1e-3)),
        (verify_close, ("x", 5, 5, 0), ("x", 6, 6, 0)),  # whole numbers that have to be equal
        (verify_close, ("x", [5, 0], [5, 0], 0), ("x", [6, 0], [6, 0], 0)),
        (verify_mean, ("x", SAMPLES[:, 0], 0), ("x", SAMPLES[:999, 0], 0)),
        (verify_mean, ("x", SAMPLES[:, 0], 0), ("x", SAMPLES[:, 0], 0, 6)),
        (verify_mean, ("x", SAMPLES, [0] * 3), ("x", SAMPLES[:, :2], [0] * 2)),
        (verify_close, ("x", 0.5, 1.5, 1e-3), ("y", 0.5, 1.5, 1e-3)),
        (verify_close, ("x", 0.5, 1.5, 1e-3), ("x", 0.5, 1.5, 2e-3)),
        (verify_close, ("x", 0.5, 1.5, 1e-3), ("x", math.nan, 1.5, 1e-3)),
        (verify_close, ("x", 5, 6, 0), ("x", 5, 7, 0)),
        (verify_mean, ("x", SAMPLES[:, 0], 9), ("x", SAMPLES[:, 0], 9, 6)),
    ]
    for check, first, second in changed:
        assert masked(printed_by(check, *first)) != masked(printed_by(check, *second)), second


@pytest.mark.parametrize(
    "line",
    [
        "x: 0.5 against 0.6",
        "x 0.5 against 0.6, within 0.2",
        "0.5 against 0.6, within 0.2",
        "x: 0.5 against 0.6, within 0.2 or so",
        "x: 0.5 and 0.5 against 0.6, within 0.2",
        "x: 0.5 against about 0.6, within 0.2",
        "x: nan against 0.6, within 0.2",
        "x: 0.5 against 0.6, differs by 0.1, more than 0.01",
        "x: 0.5 against 0.6, the worst of them, within 0.2",
        "x: 0.5 +- 0.1 against 0.6, within 5 standard errors",
        "x: 0.5 against 0.6, 1,000 draws, within 5 standard errors",
        "x: 0.5 +- 0.1 against 0.6, 1,000 draws, 5.1 standard errors away, more than 5",
        "x: 3 against 3, exactly",
        "x: 0.5 against 0.7, differs by 0.2, more than 0.1",  # a complaint that nobody has caught
        "x: 0.5 against\n0.6, within 0.2",
    ],
)
def test_what_is_no_line_of_verify_is_compared_as_it_is(line):
    assert masked(line) == line


def calls_of(tree: ast.AST, names: set[str]) -> list[ast.Call]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in names]


def mentions(tree: ast.AST, names: set[str]) -> bool:
    return any(isinstance(node, ast.Name) and node.id in names for node in ast.walk(tree))


def as_printed(call: ast.Call) -> str:
    """What a print may come to: each value that is not written in the source is a number."""
    parts = []
    for argument in call.args:
        pieces = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
        parts.append("".join(str(p.value) if isinstance(p, ast.Constant) else "0.5" for p in pieces))
    return " ".join(parts)


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_no_cell_prints_such_a_line_by_itself(path):
    """A masked line comes from a cell that calls verify, and what the cells print otherwise cannot be taken for one."""
    checks = {"verify_close", "verify_mean"}
    for index, cell in enumerate(nbformat.read(path, as_version=4).cells):
        if cell.cell_type != "code":
            continue
        tree = ast.parse(re.sub(r"(?m)^%.*$", "", cell.source))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        checks |= {function.name for function in functions if mentions(function, checks)}
        for call in calls_of(tree, {"print"}):
            text = as_printed(call)
            assert masked(text) == text, f"cell {index}: print({text!r})"
        stored = "".join(output.get("text", "") for output in cell.outputs)
        if masked(stored) != stored:
            assert mentions(tree, checks), f"cell {index} calls no check"
        plain = [json.dumps(output.data) for output in cell.outputs if "data" in output]
        assert all(masked(text) == text for text in plain), f"cell {index}"


def notebook(*outputs: str) -> nbformat.NotebookNode:
    """Cells that print the same line of verify and a number, with outputs as if they had been stored elsewhere."""
    source = "from dvae_lib import verify_close\nverify_close('x', 0.5, 0.5, 1e-3)\nprint('y', 1.5)"
    streams = [nbformat.v4.new_output("stream", name="stdout", text=text) for text in outputs]
    cells = [nbformat.v4.new_code_cell(source, execution_count=1, outputs=[stream]) for stream in streams]
    return nbformat.v4.new_notebook(cells=cells)


def test_nbval_uses_the_masks_wherever_it_is_started(tmp_path):
    line, other = "x: 0.5000 against 0.5000, within 0.001\n", "x: 0.4998 against 0.5001, within 0.001\n"
    stored = [line + "y 1.5\n", other + "y 1.5\n", line + "y 1.6\n", other.replace("0.001", "0.002") + "y 1.5\n"]
    nbformat.write(notebook(*stored), tmp_path / "masked.ipynb")
    options = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), "-p", "conftest", "--nbval"]
    command = [sys.executable, "-m", "pytest", *options, "-v", "--tb=no", "masked.ipynb"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools")])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    results = re.findall(r"Cell \d (\w+)", done.stdout)
    assert results[:4] == ["PASSED", "PASSED", "FAILED", "FAILED"], done.stdout + done.stderr
