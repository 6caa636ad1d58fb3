"""Run notebooks in place and store their outputs, so that a diff shows only what changed.

    python tools/refresh.py                    # every notebook of _toc.yml
    python tools/refresh.py book/noise.ipynb   # some

A notebook that fails is left as it was, and the exit status is 1.
"""

import os
import sys
import time
from pathlib import Path

import nbformat
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

ROOT = Path(__file__).resolve().parent.parent
CELL_KEYS = ("tags", "mystnb")  # of a cell's metadata, what is written by hand


def pages() -> list[str]:
    """Return the pages that _toc.yml names, root first, in order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    chapters = [chapter for part in toc.get("parts", [toc]) for chapter in part["chapters"]]
    return [toc["root"], *(chapter["file"] for chapter in chapters)]


def notebooks() -> list[Path]:
    """Return those of the pages that are notebooks, in order."""
    return [path for page in pages() if (path := ROOT / f"{page}.ipynb").exists()]


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop what differs from run to run or from editor to editor; number the ids of cells and widgets."""
    notebook = number_widgets(notebook)
    widgets = notebook.metadata.get("widgets")
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    if widgets:
        notebook.metadata["widgets"] = widgets
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index}"
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in CELL_KEYS if key in cell.metadata})
        if cell.cell_type == "code":
            cell.outputs = merge_streams(cell.outputs)
        for output in cell.get("outputs", []):
            output.get("metadata", {}).clear()
    return notebook


def number_widgets(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Replace the widgets' random ids, wherever they stand, by numbers in the order of their making."""
    state = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    text = nbformat.writes(notebook) if state else ""
    for number, name in enumerate(state):
        text = text.replace(name, f"{number:032x}")
    return nbformat.reads(text, as_version=4) if state else notebook


def merge_streams(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Join the pieces in which a cell's text happened to arrive."""
    merged: list[nbformat.NotebookNode] = []
    for output in outputs:
        last = merged[-1] if merged else {}
        if output.output_type == "stream" and last.get("name") == output.name:
            last.text += output.text
        else:
            merged.append(output)
    return merged


def refresh(path: Path) -> None:
    """Run one notebook in a kernel of its own, and replace the file when all went well."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
    ).execute()
    temporary = path.with_suffix(".ipynb.new")
    nbformat.write(normalise(notebook), temporary)
    os.replace(temporary, path)


def main(arguments: list[str]) -> int:
    os.environ |= {"TQDM_DISABLE": "1", "DVAE_STILLS": "1"}  # as in the tests
    failures = 0
    for path in [Path(name).resolve() for name in arguments] or notebooks():
        start = time.perf_counter()
        print(f"{path.relative_to(ROOT)} ... ", end="", flush=True)
        try:
            refresh(path)
            print(f"{time.perf_counter() - start:.0f} s")
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            failures += 1
            print(f"failed\n{error}")
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
