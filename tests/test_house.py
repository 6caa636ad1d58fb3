"""The layout of the package: what imports what, and how long it is."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dvae_lib"
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports, wherever in the file; `from package import module` counts."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in whole]
        found |= {f"{name}.__init__" if f"{name}.__init__" in MODULES else name for name in names}
    return found & MODULES.keys()


def test_no_import_runs_in_a_circle():
    """Not even one that is deferred into a function or hidden from the interpreter: modules can be put in an order."""
    left = {name: imported(path) - {name} for name, path in MODULES.items()}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}
    assert "dvae_lib.configuration" in imported(MODULES["dvae_lib.training"])


def test_the_doors_are_closed():
    """The book's own code needs no widgets, and of a run's machinery nothing knows what is trained."""
    for name, path in MODULES.items():
        if not name.startswith("dvae_lib.widgets"):
            assert not any(needed.startswith("dvae_lib.widgets") for needed in imported(path)), name
        if name.startswith("dvae_lib.runs"):
            assert imported(path) <= {"dvae_lib.configuration"} | {one for one in MODULES if ".runs." in one}, name


def test_the_library_needs_no_widgets_installed():
    code = "import sys; sys.modules['ipywidgets'] = sys.modules['anywidget'] = None; import dvae_lib.training"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", MODULES)
def test_cuda_is_named_where_a_graph_is_captured_and_nowhere_else(name):
    """The switches of TF32 bear its name; a device is chosen by what PyTorch finds."""
    if name != "dvae_lib.runs.capture":
        text = MODULES[name].read_text().replace("torch.backends.cuda", "switches")
        names = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
        names += [node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)]
        assert "cuda" not in names


def test_the_books_own_code_can_be_read_in_one_sitting():
    lengths = {path.name: len(path.read_text().splitlines()) for path in PACKAGE.glob("*.py")}
    assert max(lengths.values()) <= 300, lengths
    assert sum(lengths.values()) <= 2_000, lengths


def test_each_lower_bound_is_a_version_that_is_run():
    """CI runs the versions of constraints-oldest.txt: each bound is one of them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["widgets"]]
    for name in ("requirements.txt", "requirements-book.txt"):
        lines += [line.split("#")[0] for line in (ROOT / name).read_text().splitlines() if line[:1].isalpha()]
    run = dict(line.split("==") for line in (ROOT / "constraints-oldest.txt").read_text().splitlines())
    for requirement in map(Requirement, lines):
        (bound,) = (Version(one.version) for one in requirement.specifier if one.operator == ">=")
        assert Version(run[requirement.name]) == bound, requirement
