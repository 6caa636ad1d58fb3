"""From a page to a running notebook: the buttons, the branch that they lead to, the first cell in a Colab of ours."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import launch
import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from refresh import ROOT, notebooks

ADDRESS = "https://github.com/some-one/the.book"
COLAB = "https://colab.research.google.com/github/some-one/the.book/blob/launch/book/noise.ipynb"
BINDER = "https://mybinder.org/v2/gh/some-one/the.book/launch?urlpath=lab/tree/book/noise.ipynb"


def a_notebook() -> nbformat.NotebookNode:
    cells = [nbformat.v4.new_markdown_cell("# Noise"), nbformat.v4.new_code_cell("1 + 1", execution_count=1)]
    cells[1].outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "2"}, execution_count=1)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def build(folder: Path, address: str | None) -> subprocess.CompletedProcess:
    """Build a small book, which has a notebook and a page that is none."""
    (folder / "book").mkdir()
    nbformat.write(launch.insert(a_notebook()), folder / "book" / "noise.ipynb")
    (folder / "index.md").write_text("# A book\n\n```{toctree}\nbook/noise\nbook/api\n```\n")
    (folder / "book" / "api.md").write_text("# The reference\n")
    (folder / "conf.py").write_text(
        "extensions = ['myst_nb', 'sphinx_book_theme', 'launch']\n"
        "html_theme, nb_execution_mode, exclude_patterns = 'sphinx_book_theme', 'off', ['html']\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != launch.VARIABLE}
    environment |= {"PYTHONPATH": str(ROOT / "tools")} | ({launch.VARIABLE: address} if address is not None else {})
    command = [sys.executable, "-m", "sphinx", "-qW", str(folder), str(folder / "html")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


def links(folder: Path, page: str) -> list[str]:
    return re.findall(r'href="([^"]*(?:colab|binder|\.ipynb)[^"]*)"', (folder / "html" / f"{page}.html").read_text())


def test_with_an_address_each_notebook_has_its_buttons(tmp_path):
    done = build(tmp_path, ADDRESS)
    assert done.returncode == 0, done.stderr
    assert sorted(links(tmp_path, "book/noise")) == ["../_sources/book/noise.ipynb", COLAB, BINDER]
    assert links(tmp_path, "book/api") == []
    assert "COLAB_RELEASE_TAG" not in (tmp_path / "html" / "book" / "noise.html").read_text()
    downloaded = nbformat.read(tmp_path / "html" / "_sources" / "book" / "noise.ipynb", as_version=4)
    assert f'address = "{ADDRESS}"\n' in downloaded.cells[0].source
    assert downloaded.cells[2].outputs[0].data == {"text/plain": "2"}


@pytest.mark.parametrize("address", [None, ""])
def test_without_one_the_download_alone_is_left(tmp_path, address):
    done = build(tmp_path, address)
    assert done.returncode == 0, done.stderr
    assert links(tmp_path, "book/noise") == ["../_sources/book/noise.ipynb"]
    downloaded = nbformat.read(tmp_path / "html" / "_sources" / "book" / "noise.ipynb", as_version=4)
    assert downloaded.cells[0].source == launch.FIRST_CELL


def test_a_bad_address_stops_the_build(tmp_path):
    done = build(tmp_path, "github.com/some-one/the.book")
    assert done.returncode != 0
    wanted = "BOOK_REPOSITORY must be an address such as https://github.com/owner/name"
    assert f"{wanted}, not 'github.com/some-one/the.book'" in done.stderr


@pytest.mark.parametrize(
    "address",
    [
        "https://gitlab.com/owner/name",
        "http://github.com/owner/name",
        "https://github.com/owner",
        "https://github.com/owner/name/",
        "https://github.com/owner/name.git",
        "https://github.com/owner/name/tree/main",
        "https://github.com/owner/na me",
        "https://github.com/owner/name; rm -r .",
        'https://github.com/owner/"name"',
    ],
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match=r"must be an address such as https://github\.com/owner/name, not"):
        launch.checked(address)


def test_the_books_pages_are_built_with_it():
    configuration = yaml.safe_load((ROOT / "_config.yml").read_text())["sphinx"]
    assert configuration["local_extensions"]["launch"] == "tools"
    assert "launch" in configuration["config"]["extensions"]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert "github.repository" in workflow["env"][launch.VARIABLE]
    assert "launch" in workflow["jobs"]["deploy"]["needs"]
    (_, step) = workflow["jobs"]["launch"]["steps"]
    assert step["run"].split("\n")[:2] == [
        f'python3 tools/launch.py branch "${launch.VARIABLE}"',
        f"git push --force origin {launch.BRANCH}",
    ]


def test_binder_has_what_the_library_and_the_notebooks_need():
    """With the bounds that hold elsewhere; conda has names of its own for some."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["widgets"]]
    needed += [
        line for line in (ROOT / "requirements.txt").read_text().splitlines() if line[:7] in ("ipykern", "jupyter")
    ]
    needed += tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    names = {"torch": "pytorch-cpu", "matplotlib": "matplotlib-base"}
    needed = [Requirement(line.split("#")[0]) for line in needed]
    *listed, pip = yaml.safe_load((ROOT / "binder" / "environment.yml").read_text())["dependencies"]
    there = {one.name: one.specifier for one in map(Requirement, [*listed[1:], *pip["pip"]])}
    assert {names.get(one.name, one.name): one.specifier for one in needed} | {"pip": SpecifierSet()} == there
    assert os.access(ROOT / "binder" / "postBuild", os.X_OK)


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_every_notebook_begins_with_this_cell_and_no_other_is_hidden(path):
    first, *others = nbformat.read(path, as_version=4).cells
    assert (first.cell_type, first.source, first.outputs) == ("code", launch.FIRST_CELL, []), "tools/launch.py insert"
    assert first.metadata.tags == [launch.TAG]
    assert not any(launch.TAG in cell.metadata.get("tags", []) for cell in others)
    text = launch.stamped(path.read_text(), ADDRESS)
    assert launch.stamped(text, ADDRESS) == text  # once more, as in a build that copied it before
    stamped = json.loads(text)
    assert f'    address = "{ADDRESS}"\n' in stamped["cells"][0]["source"]


def test_the_cell_is_short():
    assert len(launch.FIRST_CELL.splitlines()) <= 12
    assert max(map(len, launch.FIRST_CELL.splitlines())) <= 80


def test_the_cell_is_put_in_once_and_kept_up_to_date():
    notebook = launch.insert(a_notebook())
    assert [cell.get("execution_count") for cell in notebook.cells] == [1, None, 2]
    assert notebook.cells[2].outputs[0].execution_count == 2
    once = json.dumps(notebook)
    assert json.dumps(launch.insert(notebook)) == once
    notebook.cells[0].source = "an older one"
    assert json.dumps(launch.insert(notebook)) == once


def test_a_notebook_without_the_cell_cannot_be_stamped():
    with pytest.raises(ValueError, match=r"run python tools/launch\.py insert"):
        launch.stamped(nbformat.writes(a_notebook()), ADDRESS)


def run_the_cell(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COLAB")}
    code = launch.FIRST_CELL + "\nprint(os.getcwd())"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=kept | environment, capture_output=True, text=True, timeout=60)


def test_the_cell_does_nothing_elsewhere(tmp_path):
    done = run_the_cell(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path}\n", "")
    done = run_the_cell(ROOT / "book", COLAB_RELEASE_TAG="release")  # nor where the book is there already
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{ROOT / 'book'}\n", "")


def test_in_colab_the_cell_says_when_it_has_no_address(tmp_path):
    done = run_the_cell(tmp_path, COLAB_RELEASE_TAG="release")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "AssertionError: To find its book, open this by its page's Colab button."
    assert not any(tmp_path.iterdir())


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A bare repository that holds this work tree, and the branch that the buttons lead to."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("this is no clone: there is nothing to fetch")
    folder = tmp_path_factory.mktemp("launch")
    source, bare = folder / "source", folder / "origin.git"
    tracked = subprocess.check_output(["git", "-C", ROOT, "ls-files", "-z"], text=True).rstrip("\0").split("\0")
    for path in (ROOT / name for name in tracked):
        if path.exists():
            copy = source / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    git = ["git", "-C", source, "-c", "user.name=Some One", "-c", "user.email=one@example.org"]
    git += ["-c", "core.compression=0"]  # a moment's copy
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "The book"]):
        subprocess.run([*git, *command], check=True)
    commit = launch.branch(ADDRESS, source)
    assert launch.branch(ADDRESS, source) == commit
    assert subprocess.check_output([*git, "status", "--porcelain"], text=True) == ""
    subprocess.run(["git", "clone", "-q", "--bare", source, bare], check=True)
    return bare


def test_the_branch_holds_the_book_with_the_address_in_its_notebooks(origin):
    def git(*command: str) -> str:
        return subprocess.check_output(["git", "-C", origin, *command], text=True)

    assert git("rev-list", "--count", "launch").strip() == "1"
    changed = dict(line.split("\t")[::-1] for line in git("diff", "--name-status", "main", "launch").splitlines())
    books = {f"book/{path.name}" for path in notebooks()}
    assert {name for name, how in changed.items() if how == "M"} == books
    left_out = git("ls-tree", "-r", "--name-only", "main", ".github").splitlines()
    assert {name for name, how in changed.items() if how == "D"} == set(left_out) == changed.keys() - books
    assert left_out
    assert git("show", "launch:book/noise.ipynb") == launch.stamped(git("show", "main:book/noise.ipynb"), ADDRESS)


# What a reader does: open the notebook, press "run all". A last cell looks at what is there.
RUN_ALL = """
import sys
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
look = '''
import dvae_lib.widgets, torch
for value in (os.getcwd(), len(os.listdir("../weights")), dvae_lib.__file__, torch.__file__):
    print(value)
'''
notebook.cells[int(sys.argv[2]):] = [nbformat.v4.new_code_cell(look)]
NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
print(notebook.cells[-1].outputs[0].text, end="")
"""


def test_in_colab_a_chapter_runs_from_nothing(tmp_path, origin):
    """In an environment that has Colab's name in its variables and PyTorch, but no dvae_lib, and no network."""
    python, content = tmp_path / "venv" / "bin" / "python", tmp_path / "content"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own, there = Path(subprocess.check_output(ask, text=True).strip()), Path(sysconfig.get_path("purelib"))
    (own / "there.pth").write_text(f"{there}\n")  # as what Colab has; the links to other folders in it do not count
    content.mkdir()
    notebook = subprocess.check_output(["git", "-C", origin, "show", "launch:book/notation.ipynb"], text=True)
    (content / "notation.ipynb").write_text(notebook)
    before = set(own.iterdir())
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "COLAB_RELEASE_TAG": "release",
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        # the address leads to the clone on this disk
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{origin}.insteadOf",
        "GIT_CONFIG_VALUE_0": ADDRESS,
        # without a network, and so with the setuptools that is there
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
    }
    cells = nbformat.reads(notebook, as_version=4).cells
    for number in (len(cells), 1):  # and its first cell once more, as after a restart of the kernel
        command = [python, "-c", RUN_ALL, "notation.ipynb", str(number)]
        done = subprocess.run(command, cwd=content, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        folder, weights, library, torch = done.stdout.splitlines()
        assert folder == str(content / "dvae-book" / "book")
        assert int(weights) == len(list((ROOT / "weights").iterdir()))
        assert library == str(own / "dvae_lib" / "__init__.py")
        assert torch == str(there / "torch" / "__init__.py")
    assert {path.name.split("-")[0] for path in set(own.iterdir()) - before} == {"dvae_lib"}
