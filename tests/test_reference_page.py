"""The page of the library's reference shows every public name, and no other."""

import re

import nbformat
import pytest
from refresh import ROOT, notebooks

import dvae_lib

PAGE = (ROOT / "book" / "api.md").read_text()
SHOWN = re.findall(r"^\.\. autoapi(?:function|class):: (\S+)$", PAGE, re.MULTILINE)


def test_every_public_name_is_shown_once():
    names = [path.rpartition(".")[2] for path in SHOWN]
    assert sorted(names) == sorted({*dvae_lib.__all__, "use_book_style"})


@pytest.mark.parametrize("path", SHOWN)
def test_it_is_shown_where_it_is_defined(path):
    module, _, name = path.rpartition(".")
    thing = getattr(dvae_lib, name, None) or dvae_lib.plotting.use_book_style
    assert (thing.__module__, thing.__name__) == (module, name)
    assert thing.__doc__


USERS = [path for path in notebooks() if re.search(r"^ *\"?(from|import) dvae_lib", path.read_text(), re.MULTILINE)]


@pytest.mark.parametrize("path", USERS, ids=lambda path: path.stem)
def test_a_chapter_that_uses_the_library_leads_to_its_reference(path):
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    labels = {"api", *re.findall(r"^\((\S+)\)=$", PAGE, re.MULTILINE)}
    links = re.findall(r"\]\((api[\w-]*)\)|\{ref\}`(chapter-api)`", text)
    assert links
    assert {"".join(link) for link in links} <= labels


@pytest.mark.parametrize("path", USERS, ids=lambda path: path.stem)
def test_the_reference_leads_to_the_chapter(path):
    """Not to the first page and those for looking things up, which develop nothing."""
    found = {
        link.removeprefix("chapter-") for link in re.findall(r"\]\((\w+)\)|\{ref\}`([\w-]+)`", PAGE) for link in link
    }
    assert path.stem in found or path.stem in ("intro", "notation", "from_lua")
