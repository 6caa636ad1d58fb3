"""Time the built page of the explorers: until text can be read and the first picture is live, and one decode-and-draw.
Of the explorer of the bounds, one draw after a fresh noise, with all bounds computed anew.

    make book && npm ci --ignore-scripts
    .venv/bin/python -m benchmarks.explorers [--loads 5] [--chromium /usr/bin/chromium]

A server on this machine gives the pages and, in place of the CDN, the same files from node_modules; each load has a
browser profile of its own, so that nothing is cached. Prints medians with the least and the most.
"""

import argparse
import functools
import http.server
import shutil
import threading
from pathlib import Path

from playwright.sync_api import sync_playwright

from benchmarks.timing import in_words, spread
from tools.cdn import PACKAGES, ROOT, package_file

# the first paragraph's painting is told to whoever asks for it by this attribute, before it is painted
WATCH = """() => {
  new PerformanceObserver((list) => (window.paragraph ??= list.getEntries()[0].renderTime))
    .observe({ type: "element", buffered: true });
  new MutationObserver((_, observer) => {
    const paragraph = document.querySelector("article p");
    if (paragraph) {
      paragraph.setAttribute("elementtiming", "paragraph");
      observer.disconnect();
    }
  }).observe(document, { childList: true, subtree: true });
}"""
PAGES = ROOT / "_build" / "html"
CDN = "https://cdn.jsdelivr.net/npm/"


class Pages(http.server.SimpleHTTPRequestHandler):
    """The built pages, with the CDN's address replaced by one of this server."""

    def translate_path(self, path: str) -> str:
        of_package = path.startswith("/npm/")
        return str(package_file(CDN + path.removeprefix("/npm/"))) if of_package else super().translate_path(path)

    def do_GET(self) -> None:
        file = Path(self.translate_path(self.path))
        if file.suffix != ".html" or not file.is_file():
            super().do_GET()
            return
        content = file.read_bytes().replace(CDN.encode(), b"/npm/")
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=int, default=5)
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"))
    options = parser.parse_args()
    if not (PAGES / "book" / "explore.html").exists() or not PACKAGES.exists():
        parser.error("build the book and install the npm packages first")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Pages, directory=str(PAGES)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/book/explore.html"
    readable: dict[str, list[float]] = {"anything painted": [], "the first paragraph painted": []}
    first, draws, bounds = [], [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium)
        for _ in range(options.loads):
            page = browser.new_context().new_page()
            page.add_init_script(f"({WATCH})()")
            page.goto(address)
            page.wait_for_function("() => document.querySelector('.dvae')?.explorer?.shown")
            first.append(page.evaluate("() => document.querySelector('.dvae').explorer.shown"))
            page.wait_for_function("() => document.querySelectorAll('.dvae').length >= 4")
            page.wait_for_timeout(1000)
            painted = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
            for times, what in zip(readable.values(), (painted, "window.paragraph"), strict=True):
                times.append(page.evaluate(what))
            draws.append(
                page.evaluate(
                    """() => [...document.querySelectorAll('.dvae')].slice(0, 4).map(({ explorer }) => {
                      const times = [];
                      for (let i = 0; i < 50; i++) {
                        const start = performance.now();
                        explorer.draw();
                        times.push(performance.now() - start);
                      }
                      return times.sort((a, b) => a - b)[25];
                    })"""
                )
            )
            bounds.append(
                page.evaluate(
                    """async () => {
                      const root = document.querySelector('.dvae:has(.dvae-ladder)');
                      const buttons = [...root.querySelectorAll('button')];
                      const button = buttons.find((one) => one.textContent === 'Fresh noise');
                      const frame = () => new Promise(requestAnimationFrame);
                      const times = [];
                      for (let i = 0; i < 25; i++) {
                        button.click();
                        for (let j = 0; j < 3; j++) await frame();
                        times.push(root.explorer.durations.at(-1));
                      }
                      return times.sort((a, b) => a - b)[12];
                    }"""
                )
            )
            page.context.close()
        browser.close()
    print(f"{(PAGES / 'book' / 'explore.html').stat().st_size / 1e6:.2f} MB in the page")
    for what, times in readable.items():
        print(f"{what}, from the request on: {in_words(spread(times), 2)} ms")
    print(f"first picture, from the request on: {in_words(spread(first), 2)} ms")
    for name, values in zip(
        ("latent map", "denoise", "training noise", "interpolate"), zip(*draws, strict=True), strict=True
    ):
        print(f"decode and draw, {name}: {in_words(spread(values), 2)} ms")
    print(f"compute and draw, bounds of 64 fresh corruptions: {in_words(spread(bounds), 2)} ms")


if __name__ == "__main__":
    main()
