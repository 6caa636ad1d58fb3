"""How to cite the book: the first page's BibTeX says what CITATION.cff says."""

import re
import tomllib
from pathlib import Path

import nbformat
import yaml
from pybtex.database import parse_string

ROOT = Path(__file__).resolve().parent.parent


def test_the_first_pages_bibtex_is_citation_cff():
    cells = nbformat.read(ROOT / "book" / "intro.ipynb", as_version=4).cells
    (block,) = re.findall(r"```bibtex\n(.*?)```", "\n".join(cell.source for cell in cells), re.S)
    ((_, entry),) = parse_string(block, "bibtex").entries.items()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert entry.type == citation["type"] == "software"
    assert [str(person) for person in entry.persons["author"]] == [f"{{{one['name']}}}" for one in citation["authors"]]
    assert dict(entry.fields) == {
        "title": citation["title"],
        "version": citation["version"],
        "license": citation["license"],
        "year": config["copyright"],
    }
    assert (citation["title"], citation["authors"][0]["name"]) == (config["title"], config["author"])
    assert citation["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
