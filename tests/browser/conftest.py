"""The built pages in a browser: served from this machine, with every CDN request answered from node_modules.

    make browser

Environment: BOOK_HTML names the folder of the pages (_build/html unless set), CHROMIUM the browser's program. Where
there is no browser or no node_modules the tests are skipped; where CI is set they fail instead.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import NoReturn

import pytest
from cdn import PACKAGES, ROOT, package_file
from chromium import MISSING, program
from refresh import pages

HTML = Path(os.environ.get("BOOK_HTML", ROOT / "_build" / "html"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("browser")


def missing(what: str) -> NoReturn:
    """Skip for want of something, or fail where CI is set: there nothing may go untested."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(what)


@pytest.fixture(scope="session")
def packages() -> Path:
    """The npm packages that stand in for the CDN."""
    if not PACKAGES.is_dir():
        missing("there is no node_modules: run npm ci")
    return PACKAGES


@pytest.fixture(scope="session")
def html() -> Path:
    """The folder of the built pages, none of them older than its source."""
    for page in pages():
        source = next(ROOT / f"{page}{suffix}" for suffix in (".ipynb", ".md") if (ROOT / f"{page}{suffix}").exists())
        built = HTML / f"{page}.html"
        if not built.exists():
            pytest.fail(f"{page}.html is not built: run make book")
        if built.stat().st_mtime < source.stat().st_mtime:
            pytest.fail(f"{page}.html is older than {source.name}: run make book")
    return HTML


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def site(html: Path) -> Iterator[str]:
    """The address that the built pages are served on."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=html)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def browser():
    """Chromium, headless: what CHROMIUM names, or the system's, or Playwright's own."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("Playwright is not installed: pip install -r requirements.txt")
    with sync_playwright() as playwright:
        found = program(playwright.chromium.executable_path)
        if found is None:
            missing(MISSING)
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, site: str, packages: Path) -> Iterator[Callable]:
    """Return a function that opens a page as a reader would and waits until it is drawn.

    `open_page("book/noise", width=400, scheme="dark", reduced_motion=True)` returns Playwright's page; `fragment`, as
    in "#a-heading", goes to its address, and further keywords to the browser's context. The test fails if a page raised
    an error, wrote one to the console, or asked for anything that failed or comes from outside, files of the npm
    packages at their exact versions aside. Of these the ones whose address holds `blocked` do not come, as where the
    CDN does not answer; what the console says of that, by the browser or by the script that asked, does not count then.
    """
    problems: list[str] = []
    contexts = []
    refused: set[str] = set()

    def answer(route, blocked: str | None) -> None:
        url = route.request.url
        if url.startswith((site + "/", "data:", "blob:")):
            return route.continue_()
        if blocked is not None and blocked in url:
            refused.add(url)
            return route.abort()
        try:
            # other origins' scripts with an integrity hash, and fonts, need the header
            return route.fulfill(path=package_file(url), headers={"Access-Control-Allow-Origin": "*"})
        except ValueError as error:
            problems.append(f"outside request: {error}")
            return route.abort()

    def open_page(
        name: str,
        width: int = 1300,
        scheme: str = "light",
        reduced_motion: bool = False,
        fragment: str = "",
        blocked: str | None = None,
        **options,
    ):
        context = browser.new_context(
            viewport={"width": width, "height": 1000},
            color_scheme=scheme,
            reduced_motion="reduce" if reduced_motion else "no-preference",
            **options,
        )
        contexts.append(context)
        context.set_default_timeout(120_000)  # milliseconds, for a machine that does other things as well
        context.route("**/*", partial(answer, blocked=blocked))
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(f"{name}: uncaught {error}"))
        if blocked is None:
            page.on("console", lambda message: message.type == "error" and problems.append(f"{name}: {message.text}"))
        page.on("requestfailed", lambda r: r.url in refused or problems.append(f"{name}: failed {r.url} {r.failure}"))
        page.on("response", lambda r: r.status >= 400 and problems.append(f"{name}: {r.status} for {r.url}"))
        page.goto(f"{site}/{name}.html{fragment}", wait_until="networkidle")
        page.wait_for_function("!document.querySelector('script[src*=mathjax]') || window.MathJax?.startup?.promise")
        page.evaluate("Promise.all([window.MathJax?.startup?.promise, document.fonts.ready]).then(() => null)")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not problems
