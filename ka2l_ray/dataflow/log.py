"""The log: one line when a stage starts, one when it ends, and its progress in between.

In: what to say. Out: lines on stderr. Refuses to know: Ray, stages, results.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("ka2l")


def set_up_logging() -> None:
    """Plain lines with seconds on stderr; on a terminal Ray adds its progress bars."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(name)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    log.setLevel(logging.INFO)


@contextmanager
def stage_line(name: str, detail: str = "") -> Iterator[None]:
    """Log that a stage starts and, once it has ended, how long it took."""
    log.info("%-10s %s", name, detail or "…")
    started = time.monotonic()
    yield
    log.info("%-10s done in %.1f s", name, time.monotonic() - started)


@contextmanager
def log_progress(name: str, progress: Callable[[], str | None], every_s: float = 20.0) -> Iterator[None]:
    """Log `progress()` every `every_s` seconds while the work inside runs, unless it is None or has not changed."""
    ended = threading.Event()

    def watch() -> None:
        last = None
        while not ended.wait(every_s):
            if (now := progress()) and now != last:
                last = now
                log.info("%-10s %s", name, now)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
