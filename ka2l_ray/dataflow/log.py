"""The log: one line when a stage starts, one when it ends, and its progress in between.

In: what to say. Out: lines on stderr, plain or one JSON object each. Refuses to know: Ray, stages, results.
A record's `stage` (`extra={"stage": …}`) begins a plain line; a JSON line has it as a field, with the run and, where it
is about one row, the row's `id`.
"""

import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from ka2l_ray.config import RunSection
from ka2l_ray.text.printable import printable

log = logging.getLogger("ka2l")
FORMAT_VARIABLE = "KA2L_LOG"
"""Environment variable of Ray's workers that says how their lines look, as the driver's `run.log` does."""
JSON_FIELDS = ("time", "level", "logger", "run", "stage", "id", "message")
_about: dict[str, str | None] = {"run": None, "stage": None}
"""What this process is doing, for lines that do not say it themselves."""


class PlainLines(logging.Formatter):
    """`HH:MM:SS LOGGER STAGE MESSAGE`; lines may quote what others wrote, so control characters are escaped."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(name)s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        if stage := record.__dict__.get("stage"):
            record.message = f"{stage:<10} {record.message}"
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class JsonLines(logging.Formatter):
    """One object per line with `JSON_FIELDS`, null where they do not apply, and `traceback` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        said = {name: record.__dict__[name] for name in ("run", "stage", "id") if name in record.__dict__}
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_about,
            **said,
        }
        line = {name: fields.get(name) for name in JSON_FIELDS}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up_logging(run: RunSection | None = None) -> None:
    """Lines on stderr in the format of `run.log`, by default plain ones with the time to the second; on a terminal Ray
    adds its progress bars to those."""
    if run is not None:
        _about["run"] = run.name
    if run is not None and run.log == "json":
        write_json_lines()
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(PlainLines())
        logging.basicConfig(level=logging.WARNING, handlers=[handler])
    log.setLevel(logging.INFO)


def set_up_worker_logging(run: str, stage: str) -> None:
    """Lines of this worker, about a stage of a run, in the format that the driver writes; plain ones stay as Python
    and Ray write them."""
    _about.update(run=run, stage=stage)
    if os.environ.get(FORMAT_VARIABLE) == "json":
        write_json_lines()


def write_json_lines() -> None:
    """Have all loggers and Python's warnings write JSON lines to the console.

    Some libraries make handlers of their own when they are imported, so call this again after that.
    """
    handler = logging.StreamHandler(sys.stderr)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.captureWarnings(True)
    loggers = [logging.root, *(x for x in logging.root.manager.loggerDict.values() if isinstance(x, logging.Logger))]
    for console in (h for logger in loggers for h in logger.handlers if isinstance(h, logging.StreamHandler)):
        if not isinstance(console, logging.FileHandler):
            console.setFormatter(JsonLines())


@contextmanager
def native_lines_logged() -> Iterator[None]:
    """Within this context, what code other than Python's writes to stderr becomes lines of the log, where these are
    JSON."""
    if not writes_json():
        yield
        return
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            for line in caught.read().decode(errors="replace").splitlines():
                log.info("%s", line)


def writes_json() -> bool:
    """Whether this process writes JSON lines."""
    return any(isinstance(handler.formatter, JsonLines) for handler in logging.root.handlers)


@contextmanager
def about(**doing: str) -> Iterator[None]:
    """Within this context, lines that do not say it themselves are about this `run` or `stage`."""
    before = dict(_about)
    _about.update(doing)
    try:
        yield
    finally:
        _about.update(before)


@contextmanager
def stage_line(name: str, detail: str = "") -> Iterator[None]:
    """Log that a stage starts and, once it has ended, how long it took."""
    log.info("%s", detail or "…", extra={"stage": name})
    started = time.monotonic()
    with about(stage=name):
        yield
    log.info("done in %.1f s", time.monotonic() - started, extra={"stage": name})


@contextmanager
def log_progress(name: str, progress: Callable[[], str | None], every_s: float = 20.0) -> Iterator[None]:
    """Log `progress()` every `every_s` seconds while the work inside runs, unless it is None or has not changed."""
    ended = threading.Event()

    def watch() -> None:
        last = None
        while not ended.wait(every_s):
            if (now := progress()) and now != last:
                last = now
                log.info("%s", now, extra={"stage": name})

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        with about(stage=name):
            yield
    finally:
        ended.set()
        watcher.join()
