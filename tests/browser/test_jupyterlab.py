"""Chapters in JupyterLab, run from the first cell to the last as a reader does, with a kernel and a browser."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator

import nbformat
import pytest
from refresh import ROOT

TOKEN = "a-token-for-the-tests"
CHAPTERS = ("noise", "explore", "denoising_bound")
PATIENCE = 300_000  # milliseconds, for a machine that does other things as well

# every cell is drawn, on the screen or not; nothing asks for news from outside
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"checkForUpdates": False, "doNotDisturbMode": True, "fetchNews": "false"},
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[str]:
    """JupyterLab's address, on a free port, in a copy of the chapters; nothing is read from or left at home."""
    folder = tmp_path_factory.mktemp("lab")
    for name in CHAPTERS:
        (folder / "root" / "book").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / "book" / f"{name}.ipynb", folder / "root" / "book" / f"{name}.ipynb")
    shutil.copytree(ROOT / "weights", folder / "root" / "weights")
    for name, values in SETTINGS.items():
        file = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    homes = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    homes |= {"IPYTHONDIR": "ipython", "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    paths = {name: str(folder / home) for name, home in homes.items()}
    environment = os.environ | paths | {"PYTHONPATH": str(ROOT), "JUPYTER_TOKEN": TOKEN}
    options = ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0"]
    options += ["--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={folder / 'root'}"]
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not (found := list((folder / "runtime").glob("jpserver-*.json"))):
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield json.loads(found[0].read_text())["url"]
    finally:
        server.terminate()
        server.wait(60)


# Of the notebook that is open: how many code cells wait for their number, and the errors that no tag allows
STATE = """() => {
  const cells = [...jupyterapp.shell.currentWidget.content.model.cells].map((cell) => cell.toJSON());
  const code = cells.filter((cell) => cell.cell_type === "code");
  const untagged = code.filter((cell) => !cell.metadata.tags?.includes("raises-exception"));
  return {
    cells: cells.length,
    waiting: code.filter((cell) => cell.execution_count === null).length,
    errors: untagged.flatMap((cell) => cell.outputs).filter(({ output_type }) => output_type === "error"),
    warnings: code.flatMap((cell) => cell.outputs).filter(({ name }) => name === "stderr"),
  };
}"""


READY = """() => {
  const panel = window.jupyterapp?.shell.currentWidget;
  return panel?.content?.model?.cells?.length > 1 && panel.sessionContext.session?.kernel?.status === "idle";
}"""

# How many colours a canvas shows; one, if nothing is drawn
COLOURS = """(canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return new Set(new Uint32Array(data.buffer)).size;
}"""


@pytest.fixture
def run(browser, lab) -> Iterator[Callable]:
    """Return a function that opens a chapter, runs all of its cells and returns Playwright's page."""
    context = browser.new_context(viewport={"width": 1300, "height": 1000})
    outside: list[str] = []

    def answer(route) -> None:
        if route.request.url.startswith((lab, "data:", "blob:")):
            return route.continue_()
        outside.append(route.request.url)
        return route.abort()

    context.route("**/*", answer)

    def run(name: str):
        page = context.new_page()
        # a workspace of its own: that of the server opens again what an earlier test had open
        page.goto(f"{lab}lab/workspaces/{name}/tree/book/{name}.ipynb?token={TOKEN}", timeout=PATIENCE)
        page.wait_for_function(READY, timeout=PATIENCE)
        # the promise breaks at the first error, also at one that is meant, while the others run on
        page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells').catch(() => null)")
        page.wait_for_function(f"(({STATE})()).waiting === 0", timeout=PATIENCE, polling=500)
        state = page.evaluate(STATE)
        assert state["cells"] == len(nbformat.read(ROOT / "book" / f"{name}.ipynb", as_version=4).cells)
        assert (state["errors"], state["warnings"]) == ([], [])
        return page

    yield run
    context.close()
    assert outside == []


def directives(name: str) -> Counter[str]:
    """How often a chapter's text has each directive: exercise, solution-start, prf:theorem and so on."""
    cells = nbformat.read(ROOT / "book" / f"{name}.ipynb", as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return Counter(re.findall(r"^`{3,}\{([a-z:-]+)\}", text, re.MULTILINE))


@pytest.mark.parametrize("name", ["noise", "denoising_bound"])
def test_a_chapter_runs_and_shows_its_exercises_and_theorems(run, name):
    page = run(name)
    used = directives(name)
    assert used["exercise"] >= 3
    whole = "(count) => document.querySelectorAll('.myst-exercise-title').length >= count"  # drawn one after another
    page.wait_for_function(whole, arg=used["exercise"] + used["solution-start"], timeout=PATIENCE)
    titles = " | ".join(page.locator(".myst-exercise-title").all_text_contents())
    numbers = [str(number) for number in range(1, used["exercise"] + 1)]
    assert sorted(set(re.findall(r"(?:^|\| )Exercise\s(\d+)", titles))) == numbers
    assert sorted(set(re.findall(r"Start of Solution to Exercise\s(\d+)", titles))) == numbers
    proofs = sum(number for name, number in used.items() if name.startswith("prf:"))
    whole = "(count) => document.querySelectorAll('.myst-proof').length >= count"
    page.wait_for_function(whole, arg=proofs, timeout=PATIENCE)
    assert page.locator(".myst-proof").count() == proofs
    shown = page.locator(".jp-Notebook").inner_text()  # what is hidden, as the cells' source, is no part of it
    assert not re.search(r"\{(exercise|solution-\w+|prf:\w+)\}|:label:", shown)


def test_explore_trains_and_shows_the_new_network(run):
    page = run("explore")
    output = page.locator(".jp-OutputArea-output", has=page.get_by_role("button", name="Train"))
    assert output.locator("canvas").count() == 0
    output.get_by_role("button", name="Train").click(timeout=PATIENCE)
    output.get_by_role("status").filter(has_text="nats per image").wait_for(timeout=PATIENCE)
    output.get_by_text("DVAE, p = 0.25").first.wait_for(timeout=PATIENCE)
    drawn = f"(area) => [...area.querySelectorAll('canvas')].filter((canvas) => ({COLOURS})(canvas) > 1).length >= 8"
    page.wait_for_function(drawn, arg=output.element_handle(), timeout=PATIENCE)
