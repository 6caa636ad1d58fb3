"""The page of the library's reference shows every public name, and no other."""

import re

import pytest
from refresh import ROOT

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
