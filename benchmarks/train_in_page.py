"""Time the run that a reader starts in the built page: 3,000 steps on one core, and what the page itself feels of it.

    make book && npm ci --ignore-scripts
    .venv/bin/python -m benchmarks.train_in_page [--steps 3000] [--core 0] [--chromium /usr/bin/chromium]

The browser and this server share one core of the machine. While the worker trains, a clock in the page ticks every ten
milliseconds: the longest time between two ticks, and the longest task that Chromium reports of the main thread, say how
long a click would have had to wait at the most. Prints both, the time of the run, and what it has learnt. On a machine
that others use, times of the wall clock say more of them; what the main thread has computed does not depend on them.
"""

import argparse
import functools
import http.server
import os
import shutil
import threading
import time

from playwright.sync_api import sync_playwright

from benchmarks.explorers import PAGES, Pages

WATCH = """() => {
  const seen = (window.seen = { gap: 0, late: 0, task: 0, tasks: 0, last: performance.now() });
  setInterval(() => {
    const now = performance.now();
    seen.gap = Math.max(seen.gap, now - seen.last);
    seen.late += now - seen.last > 100 ? 1 : 0;
    seen.last = now;
  }, 10);
  new PerformanceObserver((list) => {
    for (const { duration } of list.getEntries()) {
      seen.task = Math.max(seen.task, duration);
      seen.tasks++;
    }
  }).observe({ type: "longtask" });
}"""
ROOT = "document.querySelector('.dvae-learner')"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"))
    options = parser.parse_args()
    if not (PAGES / "book" / "explore.html").exists():
        parser.error("build the book first")
    os.sched_setaffinity(0, {options.core})  # the browser inherits it
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Pages, directory=str(PAGES)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.goto(f"http://127.0.0.1:{server.server_port}/book/explore.html", wait_until="networkidle")
        page.wait_for_function(f"{ROOT}?.learner?.run.surveyed", timeout=60_000)
        explorer = page.locator(".dvae-explorer").filter(has=page.locator(".dvae-learner"))
        explorer.scroll_into_view_if_needed()
        page.wait_for_timeout(2000)
        drawn = page.evaluate(f"{ROOT}.explorer.durations.length")
        page.evaluate(WATCH)
        devtools = page.context.new_cdp_session(page)
        devtools.send("Performance.enable", {"timeDomain": "threadTicks"})

        def computed() -> float:
            """Seconds that the main thread has computed, not waited for the core."""
            metrics = devtools.send("Performance.getMetrics")["metrics"]
            return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")

        before = computed()
        start = time.perf_counter()
        explorer.get_by_role("button", name="Start").click()
        page.wait_for_function(f"{ROOT}.learner.run.steps >= {options.steps}", timeout=600_000, polling=200)
        seconds = time.perf_counter() - start
        busy = computed() - before
        seen = page.evaluate("window.seen")
        steps, count = page.evaluate(f"[{ROOT}.learner.run.steps, {ROOT}.explorer.durations.length]")
        longest = page.evaluate(f"Math.max(...{ROOT}.explorer.durations.slice({drawn}))")
        said = explorer.locator(".dvae-count, figcaption.dvae-legend").all_inner_texts()
        browser.close()
    load = os.getloadavg()[0]
    print(f"{steps} steps in {seconds:.1f} s, {1000 * seconds / steps:.1f} ms a step; load of the machine {load:.1f}")
    print(f"{(count - drawn) / seconds:.1f} pictures a second, the longest drawn in {longest:.0f} ms")
    per_picture = 1000 * busy / (count - drawn)
    print(f"main thread: {busy:.1f} s of computing, {per_picture:.0f} ms a picture, the clock and all else included")
    print(f"main thread: longest task {seen['task']:.0f} ms ({seen['tasks']} of 50 ms or more)")
    print(f"clock: longest gap {seen['gap']:.0f} ms ({seen['late']} over 100 ms)")
    print(" | ".join(text.replace("\n", ", ") for text in said))


if __name__ == "__main__":
    main()
