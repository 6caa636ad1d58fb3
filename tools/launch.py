"""From a page to a running notebook: the buttons for Colab and Binder, and the notebooks that they open.

    python tools/launch.py insert                                    # the first cell, into every notebook
    python tools/launch.py branch https://github.com/owner/name      # the branch that the buttons lead to

Nothing in the repository says where it is published. As a Sphinx extension of _config.yml this file reads the address
from the environment variable BOOK_REPOSITORY, as https://github.com/owner/name: with it each notebook's page has the
buttons, and the notebook that a reader downloads holds the address; without it there are no such buttons.

The buttons lead to the branch `launch`: the repository as it is, but with the address in each notebook's first cell.
Colab opens one file alone; that cell, which does nothing elsewhere, fetches the rest of the branch.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbformat import NotebookNode
    from sphinx.application import Sphinx
    from sphinx.config import Config

ROOT = Path(__file__).resolve().parent.parent
BRANCH = "launch"
VARIABLE = "BOOK_REPOSITORY"
TAG = "remove-cell"  # the page does not show it
BLANK = 'address = ""'

# Colab's own packages stay as they are: of what this book needs only its library is missing there.
FIRST_CELL = f"""\
# Colab opens a notebook alone: there, fetch the rest of the book.
import os
import subprocess

if "COLAB_RELEASE_TAG" in os.environ and not os.path.isdir("../weights"):
    {BLANK}
    assert address, "To find its book, open this by its page's Colab button."
    fetch = f"git clone -q --depth 1 -b {BRANCH} {{address}} dvae-book"
    install = "python -m pip install -q --no-deps ./dvae-book"
    command = f"{{{{ test -d dvae-book || {{fetch}}; }}}} && {{install}}"
    subprocess.run(command, shell=True, check=True)
    os.chdir("dvae-book/book")"""


def checked(address: str) -> str:
    """Return the address of a repository on GitHub, where Colab finds notebooks, or raise a ValueError."""
    if not re.fullmatch(r"https://github\.com/[\w-]+/[\w.-]+(?<!\.git)", address, re.ASCII):
        raise ValueError(f"{VARIABLE} must be an address such as https://github.com/owner/name, not {address!r}")
    return address


def stamped(notebook: str, address: str) -> str:
    """Return a notebook file's text with the address in its first cell; one that has it already stays as it is."""
    blank, filled = (json.dumps(line)[1:-1] for line in (BLANK, BLANK.replace('""', f'"{address}"')))
    if filled in notebook:
        return notebook
    if notebook.count(blank) != 1:
        raise ValueError("the notebook's first cell holds no empty address: run python tools/launch.py insert")
    return notebook.replace(blank, filled)


def insert(notebook: "NotebookNode") -> "NotebookNode":
    """Put the first cell into a notebook, or bring it up to date; the numbers of the others follow."""
    from nbformat.v4 import new_code_cell

    if TAG not in notebook.cells[0].metadata.get("tags", []):
        for cell in notebook.cells:
            for numbered in [cell, *cell.get("outputs", [])]:
                if numbered.get("execution_count"):
                    numbered.execution_count += 1
        notebook.cells.insert(0, new_code_cell(execution_count=1, metadata={"tags": [TAG]}))
    notebook.cells[0].source = FIRST_CELL
    return notebook


def branch(address: str, root: Path = ROOT) -> str:
    """Point the branch `launch` to one commit without a past: what HEAD holds, its notebooks stamped.

    The work tree and the index stay as they are. The workflows stay behind: they are not to run there, and GitHub lets
    no workflow push others. The author and date are those of HEAD, so that the same commit comes out every time.
    """
    environment = dict(os.environ)

    def git(*arguments: str, stdin: str | None = None) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(
            command, input=stdin, env=environment, stdout=subprocess.PIPE, encoding="utf-8", check=True
        ).stdout.strip()

    head, name, mail, date = git("log", "-1", "--format=%H%n%an%n%ae%n%aI").split("\n")
    for role in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{role}_NAME": name, f"GIT_{role}_EMAIL": mail, f"GIT_{role}_DATE": date}
    with tempfile.TemporaryDirectory() as folder:
        environment["GIT_INDEX_FILE"] = str(Path(folder) / "index")
        git("read-tree", head)
        git("rm", "-r", "--cached", "--quiet", "--ignore-unmatch", ".github")
        for path in git("ls-files", "book/*.ipynb").split("\n"):
            blob = git("hash-object", "-w", "--stdin", stdin=stamped(git("show", f"{head}:{path}") + "\n", address))
            git("update-index", "--cacheinfo", f"100644,{blob},{path}")
        message = f"The book at {head}, its notebooks with the address {address}"
        commit = git("commit-tree", git("write-tree"), "-m", message)
    git("update-ref", f"refs/heads/{BRANCH}", commit)
    return commit


def configure(_: "Sphinx", config: "Config") -> None:
    """Give the theme what it makes the buttons of."""
    from sphinx.errors import ConfigError

    if address := os.environ.get(VARIABLE):
        try:
            options = {"repository_url": checked(address), "repository_branch": BRANCH, "path_to_docs": ""}
        except ValueError as error:
            raise ConfigError(str(error)) from error
        services = {"colab_url": "https://colab.research.google.com", "binderhub_url": "https://mybinder.org"}
        options["launch_buttons"] = {"notebook_interface": "jupyterlab", **services}
        config.html_theme_options = {**config.html_theme_options, **options}


def stamp_downloads(app: "Sphinx", exception: Exception | None) -> None:
    """Put the address into the notebooks that the download buttons hand out."""
    if exception is None and app.builder.format == "html" and (address := os.environ.get(VARIABLE)):
        for path in (Path(app.outdir) / "_sources").rglob("*.ipynb"):
            path.write_text(stamped(path.read_text("utf-8"), address), "utf-8")


def setup(app: "Sphinx") -> dict[str, Any]:
    app.connect("config-inited", configure)
    app.connect("build-finished", stamp_downloads)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def main(arguments: list[str]) -> int:
    match arguments:
        case ["insert"]:
            import nbformat
            from refresh import normalise, notebooks

            for path in notebooks():
                nbformat.write(normalise(insert(nbformat.read(path, as_version=4))), path)
        case ["branch", address]:
            print(branch(checked(address)))
        case _:
            print(__doc__)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
