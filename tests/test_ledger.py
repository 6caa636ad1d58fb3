"""The numbers of the text that come from results: each agrees with its file, and all are listed in the appendix."""

import json
import math
import shutil
from pathlib import Path

import ledger
import nbformat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refresh import notebooks

from experiments import ledger as results
from experiments.runs import RESULTS

CLAIM = "<!-- results.json | vae | score/5 % | mean -->"


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """A results file with the values 1, 2, 6 of seeds 2, 10, 11 and others beside them."""
    scores = {"vae": {11: 6.0, 2: 1.0, 10: 2.0}, "dvae-0.1": {2: 0.5, 3: 9.0, 10: 4.0}, "single": {0: -2500.125}}
    scores |= {"five": dict(enumerate([1] * 5 + [0] * 10)), "two": dict(enumerate([1] * 2 + [0] * 13))}
    by_name = {f"{group}/{seed}": score for group, found in scores.items() for seed, score in found.items()}
    runs = {name: {"score": {"5 %": score, "root": abs(score) ** 0.5}} for name, score in by_name.items()}
    (tmp_path / "results.json").write_text(json.dumps({"settings": {}, "machines": [], "runs": runs}))
    monkeypatch.setattr(results, "RESULTS", tmp_path)


@pytest.fixture
def page(tmp_path, made_up):
    """Write a page of this text and return its path."""

    def write(text, suffix=".md"):
        path = tmp_path / f"chapter{suffix}"
        cells = [nbformat.v4.new_markdown_cell(part) for part in text.split("\n***\n")]
        cells.insert(1, nbformat.v4.new_code_cell("'7' + '<!-- of code -->'"))
        path.write_text(text if suffix == ".md" else nbformat.writes(nbformat.v4.new_notebook(cells=cells)) + "\n")
        return path

    return write


# the book


def test_every_number_of_the_book_is_what_the_results_say():
    """A comment that is no reference, or one to what is not there, raises and says on which page."""
    found = ledger.entries([*ledger.page_files(), ledger.README])
    wrong = [f"{one.page.name}: {one.printed} is {one.value:.6g}" for one in found if not one.agrees()]
    assert any(one.page == ledger.README for one in found)
    assert wrong == [], "run: make ledger"


def test_the_appendix_lists_them_all():
    assert ledger.LEDGER.read_text() == ledger.listing(ledger.entries()), "run: make ledger"
    assert {path.suffix for path in ledger.page_files()} == {".md", ".ipynb"}
    assert ledger.LEDGER not in ledger.page_files()


def test_every_results_file_can_be_asked():
    for path in RESULTS.glob("*.json"):
        names = json.loads(path.read_text())["runs"]
        groups = [name.rpartition("/")[0] for name in names]
        for group in set(groups):
            assert results.lookup(f"{path.name} | {group} | seconds | runs") == groups.count(group)
            assert results.lookup(f"{path.name} | {group} | seconds | least") > 0


# looking up

# The quantile of t with 2 degrees of freedom; the variance of 1, 2, 6 is 7
HALF = 4.302653 * math.sqrt(7) / math.sqrt(3)


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize(
    ("group", "statistic", "expected"),
    [
        ("vae", "mean", 3),
        ("vae", "median", 2),
        ("vae", "sd", math.sqrt(7)),
        ("vae", "least", 1),
        ("vae", "most", 6),
        ("vae", "runs", 3),
        ("vae", "half", HALF),
        ("vae", "low", 3 - HALF),
        ("vae", "high", 3 + HALF),
        ("vae", "minus low", HALF - 3),
        ("vae", "minus 100 x mean", -300),
        ("vae", "above 1", 2),
        ("vae", "seed 11", 6),
        ("vae - dvae-0.1", "runs", 2),
        ("vae - dvae-0.1", "mean", (0.5 - 2) / 2),
        ("vae - dvae-0.1", "seed 10", -2),
        ("five & two", "fisher above 0.5", 0.38985),
    ],
)
def test_statistics_by_hand(group, statistic, expected):
    assert results.lookup(f"results.json | {group} | score/5 % | {statistic}") == pytest.approx(expected, rel=1e-5)


@pytest.mark.usefixtures("made_up")
def test_differences_of_two_numbers_of_a_run():
    found = results.values("results.json", "vae", "score/5 % - score/root")
    np.testing.assert_allclose(found, [1 - 1, 2 - 2**0.5, 6 - 6**0.5])
    of_both = results.values("results.json", "vae - dvae-0.1", "score/5 % - score/root")
    np.testing.assert_allclose(of_both, [(1 - 1) - (0.5 - 0.5**0.5), (2 - 2**0.5) - (4 - 2)])


@pytest.mark.usefixtures("made_up")
def test_what_the_notebooks_call():
    np.testing.assert_array_equal(results.values("results.json", "vae", "score/5 %"), np.array([1.0, 2.0, 6.0]))
    assert list(results.runs_of("results.json", "vae")) == [2, 10, 11]
    assert results.interval(np.array([1.0, 2.0, 6.0])) == pytest.approx((3, 3 - HALF, 3 + HALF), rel=1e-6)
    assert results.folds("results.json", "five", "score/5 %") == (5, 15)
    assert results.fisher(5, 15, 2, 15) == pytest.approx(0.38985, abs=1e-5)  # of the hypergeometric distribution


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("results.json | vae | score/5 %", ValueError, "not of the form"),
        ("results.json | vae | score/5 % | average", ValueError, "no statistic 'average'"),
        ("results.json | vae | score/5 % | fisher above 1", ValueError, "no statistic 'fisher above 1'"),
        ("results.json | single | score/5 % | low", ValueError, "at least 2 values, not 1"),
        ("results.json | dae | score/5 % | mean", KeyError, "results.json has no runs of a group 'dae'"),
        ("other.json | vae | score/5 % | mean", KeyError, "other.json has no runs"),
        ("results.json | vae | score | mean", KeyError, "no number at 'score' in run vae/2"),
        ("results.json | vae | score/5 %/x | mean", KeyError, "no number at 'score/5 %/x' in run vae/2"),
        ("results.json | vae | score/5 % | seed 3", KeyError, "has no run vae/3"),
    ],
)
def test_a_reference_to_nothing_is_refused(reference, error, message):
    with pytest.raises(error, match=message):
        results.lookup(reference)


# numbers in the text


@pytest.mark.usefixtures("made_up")
@given(
    value=st.floats(-1e7, 1e7),
    decimals=st.integers(0, 4),
    separator=st.sampled_from(["", ",", "{,}", "\\,"]),
    minus=st.sampled_from(["-", ledger.MINUS]),
    around=st.sampled_from(["{}", "${}$", "**{}**", "${}\\,\\%$", "{} %", "80 to ${}$", "a 7, {}", "$p = {}$", "({} "]),
)
def test_a_number_is_found_again_and_replaced_in_place(value, decimals, separator, minus, around):
    printed = f"{value:,.{decimals}f}".replace(",", separator).replace("-", minus)
    before, after = around.split("{}")
    ((found, _, _),) = ledger.references(f"{before}{printed}{after}{CLAIM} and 8")
    assert found[1] == printed
    assert found.start(1) == len(before)
    assert ledger.number(printed) == float(f"{value:.{decimals}f}")
    assert ledger.number(ledger.printed_like(printed, value)) == ledger.number(printed)
    assert ledger.updated(before + printed + after + CLAIM) == f"{before}{3:.{decimals}f}{after}{CLAIM}"


@pytest.mark.parametrize(
    ("old", "value", "new"),
    [
        ("8.28", -0.004, "0.00"),
        ("-8.28", 0.125, "0.12"),
        ("+8.2", 1.0, "+1.0"),
        ("+8.2", -1.0, "-1.0"),
        (f"{ledger.MINUS}8.2", -1.0, f"{ledger.MINUS}1.0"),
        ("1{,}000", 1234567.0, "1{,}234{,}567"),
        ("1000", 2000.0, "2000"),
        ("999", 1000.0, "1,000"),
    ],
)
def test_a_number_is_printed_as_the_one_before(old, value, new):
    assert ledger.printed_like(old, value) == new


@pytest.mark.parametrize(
    ("before", "found"), [("3-4", "4"), ("of $x-8.5$", "8.5"), ("1,2,345", "2,345"), ("=-2", "-2")]
)
@pytest.mark.usefixtures("made_up")
def test_what_is_no_part_of_the_number(before, found):
    ((match, _, _),) = ledger.references(before + CLAIM)
    assert match[1] == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"no number {CLAIM}", "no number stands directly before"),
        (f"3 nats{CLAIM}", "no number stands directly before"),
        (f"3{CLAIM}{CLAIM}", "no number stands directly before"),
        (f"$10^{{-3}}$ {CLAIM}", "no number stands directly before"),
        (f"$10^3${CLAIM}", "no number stands directly before"),
        (f"a line's end, 3\n{CLAIM}", "no number stands directly before"),  # Markdown would end the paragraph there
        (f"| a | 3{CLAIM} |", "in a table the bars"),
        ("3<!-- to do -->", "not of the form"),
        ("3<!-- results.json | vae | nowhere | mean -->", "has no number at 'nowhere' in run vae/2"),
        ("3<!-- results.json | vae | score/5 % | seed 7 -->", "has no run vae/7"),
    ],
)
def test_a_malformed_comment_is_an_error_that_names_the_page(page, text, message):
    with pytest.raises(ValueError, match=rf"^chapter\.md: .*{message}"):
        ledger.entries([page(f"# A title\n\n{text}")])


TEXT = f"""(chapter-x)=
# A title

Of 3{CLAIM} and **-2.0 %**<!-- results.json | vae | score/5 % |
minus 100 x mean -->.

***
The cell after holds 6<!-- results.json | vae | score/5 % | most -->.

## A section

***
| $2{{,}}500.2$<!-- results.json \\| single \\| score/5 % \\| minus mean --> |
"""


@pytest.mark.parametrize("suffix", [".md", ".ipynb"])
def test_a_page_is_read_renewed_and_listed(page, suffix):
    path = page(TEXT, suffix)
    found = ledger.entries([path])
    assert [(one.section, one.printed, one.agrees()) for one in found] == [
        ("A title", "3", True),
        ("A title", "-2.0", False),
        ("A title", "6", True),
        ("A section", "2{,}500.2", False),
    ]
    ledger.rewrite(path, ledger.updated)
    renewed = path.read_text()
    expected = TEXT.replace("2.0 %", "300.0 %").replace("500.2", "500.1")
    assert "\n***\n".join(ledger.sources(path)) == expected
    assert all(one.agrees() for one in ledger.entries([path]))
    ledger.rewrite(path, ledger.updated)
    assert path.read_text() == renewed
    lines = ledger.listing(ledger.entries([path])).removeprefix(ledger.HEAD).split("\n")
    assert [line for line in lines if line and "--" not in line and "Number" not in line] == [
        "## A title",
        "In [A title](chapter):",
        "| 3 | `results.json` | `vae` | `score/5 %` | `mean` |",
        f"| {ledger.MINUS}300.0 | `results.json` | `vae` | `score/5 %` | `minus 100 x mean` |",
        "| 6 | `results.json` | `vae` | `score/5 %` | `most` |",
        "In [A section](chapter):",
        "| 2,500.1 | `results.json` | `single` | `score/5 %` | `minus mean` |",
    ]


def test_the_command_says_what_disagrees_and_updates_only_when_asked(page, tmp_path, monkeypatch, capsys):
    path = page("# A title\n\nit is 4" + CLAIM)
    monkeypatch.setattr(ledger, "page_files", lambda: [path])
    monkeypatch.setattr(ledger, "README", tmp_path / "README.md")
    ledger.README.write_text("no number\n")
    monkeypatch.setattr(ledger, "LEDGER", tmp_path / "ledger.md")
    assert ledger.main([]) == 1
    assert "chapter.md, A title: 4 is 3 (results.json" in capsys.readouterr().out
    assert "| 4 |" in ledger.LEDGER.read_text()
    assert ledger.main(["--update"]) == 0
    assert "it is 3<" in path.read_text()
    assert "| 3 |" in ledger.LEDGER.read_text()
    assert ledger.main([]) == 0


def test_a_notebook_keeps_its_stored_form(tmp_path):
    for notebook in notebooks():
        copy = Path(shutil.copy(notebook, tmp_path))
        ledger.rewrite(copy, lambda text: text + "!")
        assert copy.read_bytes() != notebook.read_bytes()
        ledger.rewrite(copy, lambda text: text.removesuffix("!"))
        assert copy.read_bytes() == notebook.read_bytes(), notebook.name
