"""What listens to a run's reports: the progress bar and Ctrl-C, beside whatever the caller gives as `on_report`.

A listener is called as `listener(done, rows)`: the number of steps made, and the `Protocol` of those since the report
before. One whose answer counts as true has seen enough, and the run ends there, with whole steps.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tqdm.auto import tqdm

Listener = Callable[[int, Any], object]


def bars_are_off() -> bool:
    """Whether the environment variable TQDM_DISABLE is set by now: tqdm reads it when it is imported, if at all."""
    return os.environ.get("TQDM_DISABLE", "") not in ("", "0")


@contextlib.contextmanager
def progress_bar(description: str, steps: int, batch_size: int, done: int, shown: bool) -> Iterator[Listener]:
    """Show images and losses on stderr, unless the environment variable TQDM_DISABLE is set."""
    disable = not shown or bars_are_off()
    total, initial = steps * batch_size, done * batch_size
    bar = tqdm(desc=description, total=total, initial=initial, unit=" images", unit_scale=True, disable=disable)
    reached = done

    def show(done: int, rows: Any) -> None:
        nonlocal reached
        losses = {name: f"{getattr(rows, name).mean():.2f}" for name in ("reconstruction", "kl")}
        bar.set_postfix(losses, refresh=False)
        bar.update((done - reached) * batch_size)
        reached = done

    try:
        yield show
    finally:
        if reached < steps:
            bar.set_description(f"ended after {reached} steps")
        bar.close()


@contextlib.contextmanager
def ctrl_c() -> Iterator[Listener]:
    """Keep a first Ctrl-C for the next report, so that it never leaves half a step; a second one is passed on at once.

    Only Python can keep it, in the main thread, and only where nobody else does: elsewhere this changes nothing.
    """
    pressed = threading.Event()

    def note(number: int, frame: object) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    main = threading.current_thread() is threading.main_thread()
    ours = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield lambda done, rows: pressed.is_set()
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
