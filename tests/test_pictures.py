"""Pictures of notebooks are compared: what must pass, and what must be seen."""

import base64
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbclient
import nbformat
import numpy as np
import pictures
import pytest
import readme_picture

from dvae_lib import default_device
from dvae_lib.plotting import use_book_style

ROOT = Path(__file__).resolve().parent.parent
OTHER = {"Software": "a matplotlib of another version"}


def drawn(markers=8, colour="tab:blue", size=(7.5, 3.0), legend=True, images=True, up=0.0, metadata=None):
    """A figure as the chapters have them, a curve with markers beside a picture, as a PNG in base64."""
    figure, (left, right) = plt.subplots(1, 2, figsize=size)
    x = np.arange(8)
    left.plot(x, x**2, "-", color=colour, label="curve")
    left.plot(x[:markers], 40 - 3 * x[:markers], "o", color="tab:orange", label="markers")
    left.set(xlabel="steps", ylabel="nats")
    if legend:
        left.legend(frameon=False)
    if images:
        right.imshow(np.add.outer(x, x) % 3, cmap="gray")
    box = right.get_position()
    right.set_position([box.x0, box.y0 + up / 300, box.width, box.height])
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=200, metadata=metadata)
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture(autouse=True)
def _own_freetype(monkeypatch):
    monkeypatch.setattr(pictures, "OWN_FREETYPE", True)


def test_the_same_picture_passes():
    assert pictures.problem(drawn(), drawn()) is None


@pytest.mark.parametrize(
    "change", [{"markers": 7}, {"colour": "tab:red"}, {"legend": False}, {"images": False}, {"size": (7.52, 3.0)}]
)
def test_a_change_that_a_reader_could_see_is_seen(change):
    assert pictures.problem(drawn(), drawn(**change)) is not None


def test_the_difference_is_the_root_mean_square_over_pixels_and_colours():
    black = pictures.Image.new("RGB", (4, 2))
    white = black.copy()
    white.putpixel((0, 0), (255, 0, 0))  # one of 24 numbers
    assert pictures.rms(black, white) == pytest.approx(255 / 24**0.5)
    assert pictures.rms(black, black) == 0


@pytest.mark.parametrize(
    ("change", "seen"), [({"up": 1.0}, False), ({"size": (7.6, 3.0)}, False), ({"images": False}, True)]
)
def test_another_version_may_move_letters_and_axes_a_little(change, seen):
    """The same changes by the same version are all seen; a panel that is missing is seen in any case."""
    assert (pictures.problem(drawn(), drawn(**change, metadata=OTHER)) is not None) == seen
    assert pictures.problem(drawn(), drawn(**change)) is not None


def test_by_blocks_and_with_another_freetype_as_with_another_version(monkeypatch):
    assert pictures.problem(drawn(), drawn(up=1.0)) is not None
    assert pictures.problem(drawn(), drawn(up=1.0), by_blocks=True) is None
    assert pictures.problem(drawn(), drawn(images=False), by_blocks=True) is not None
    monkeypatch.setattr(pictures, "OWN_FREETYPE", False)
    assert pictures.problem(drawn(), drawn(up=1.0)) is None


@pytest.mark.parametrize(
    ("tag", "cpu", "gpu"),
    [("hide-input", True, True), ("picture-of-cpu", True, False), ("picture-of-training", True, False)]
    + [(tag, False, False) for tag in ("picture-varies", "nbval-ignore-output", "nbval-skip")],
)
def test_tags_say_where_a_picture_is_compared(tag, cpu, gpu):
    assert (pictures.is_compared({tag}, on_cpu=True), pictures.is_compared({tag}, on_cpu=False)) == (cpu, gpu)


def test_transparency_is_white():
    plt.figure(figsize=(0.1, 0.1))
    file = io.BytesIO()
    plt.savefig(file, format="png", transparent=True)
    picture, maker = pictures.decode(base64.b64encode(file.getvalue()).decode())
    assert picture.getextrema() == ((255, 255),) * 3
    assert "matplotlib" in maker.lower()


def test_the_readme_shows_what_the_shipped_networks_make_today():
    stored = base64.b64encode(readme_picture.PICTURE.read_bytes()).decode()
    with mpl.rc_context():
        use_book_style()
        file = io.BytesIO()
        readme_picture.draw().savefig(file, format="png")
    assert pictures.problem(stored, base64.b64encode(file.getvalue()).decode()) is None
    text = (ROOT / "README.md").read_text()
    assert f"](_static/{readme_picture.PICTURE.name})" in text


def cell(slope, *tags):
    source = f"import matplotlib.pyplot as plt\nplt.plot([0, {slope}])\nplt.show()" if slope else "pass"
    return nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)})


def test_nbval_fails_where_a_picture_is_another(tmp_path):
    """Cells that store the picture of another cell: that is what a broken figure looks like."""
    cells = [cell(1), cell(2), cell(3, "picture-varies"), cell(4, "picture-of-cpu"), cell(None)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, kernel_name="python3").execute()
    for broken in notebook.cells[1:]:
        broken.outputs = notebook.cells[0].outputs
    nbformat.write(notebook, tmp_path / "broken.ipynb")
    options = ["-c", "pyproject.toml", "--rootdir", str(tmp_path), "-p", "conftest", "--nbval", "-v", "--tb=no"]
    command = [sys.executable, "-m", "pytest", *options, str(tmp_path / "broken.ipynb")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tools")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    results = re.findall(r"Cell (\d) (\w+)", done.stdout)
    of_cpu = "FAILED" if default_device().type == "cpu" else "PASSED"
    verdicts = ["PASSED", "FAILED", "PASSED", of_cpu, "FAILED"]  # the last one made no picture, and stores one
    assert results[:5] == [(str(number), verdict) for number, verdict in enumerate(verdicts)], done.stdout
    assert (tmp_path / pictures.WHERE / "broken-1-0-made.png").exists()
