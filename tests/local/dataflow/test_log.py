"""The log's two formats: the plain one as ever, and one JSON object per line, whoever writes it."""

import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ka2l_ray.config import RunSection
from ka2l_ray.dataflow.log import (
    JSON_FIELDS,
    JsonLines,
    PlainLines,
    about,
    log,
    log_progress,
    set_up_logging,
    stage_line,
    writes_json,
)

OTHERS = """
import logging, sys, warnings
from ka2l_ray.cli.exits import plain_errors
from ka2l_ray.config import ConfigError, RunSection
from ka2l_ray.dataflow import log

library = logging.getLogger("library")
library.addHandler(logging.StreamHandler())
library.propagate = False
log.set_up_logging(RunSection(name="r", log="json"))
late = logging.getLogger("late")
late.addHandler(logging.StreamHandler(sys.stderr))
late.propagate = False
log.write_json_lines()
library.error("a library says\\ntwo lines")
late.error("a library that was imported later")
logging.getLogger("quiet").info("not shown")
with log.stage_line("collect"):
    warnings.warn("something is deprecated", stacklevel=1)
with plain_errors(debug=True):
    raise ConfigError("corpus.source = 'x': no such file")
"""
WORKER = """
from ka2l_ray.dataflow.log import log, set_up_worker_logging

set_up_worker_logging("r", "collect")
log.warning("%d rows failed", 2, extra={"id": "q7"})
"""


@pytest.fixture(autouse=True)
def doing_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever other tests of this process have set up."""
    monkeypatch.setattr("ka2l_ray.dataflow.log._about", {"run": None, "stage": None})


@pytest.fixture
def lines() -> Iterator[dict[str, io.StringIO]]:
    """What the package's logger writes in either format while the test runs."""
    texts = {"text": io.StringIO(), "json": io.StringIO()}
    handlers = [logging.StreamHandler(texts["text"]), logging.StreamHandler(texts["json"])]
    for handler, formatter in zip(handlers, (PlainLines(), JsonLines()), strict=True):
        handler.setFormatter(formatter)
        log.addHandler(handler)
    before = log.level
    log.setLevel(logging.INFO)
    yield texts
    log.setLevel(before)
    for handler in handlers:
        log.removeHandler(handler)


def parsed(text: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in text.splitlines()]
    assert all(tuple(line)[: len(JSON_FIELDS)] == JSON_FIELDS for line in found)
    return found


def test_a_stage_begins_its_lines_and_is_a_field(lines: dict[str, io.StringIO]) -> None:
    with about(run="r"), stage_line("collect", "300 rows"):
        log.warning("row %s is odd", "q7", extra={"id": "q7"})
        log.info("by %s", "entropy", extra={"stage": "search"})
    log.info("%d%% of nothing", 5)
    plain = [re.sub(r"^\d\d:\d\d:\d\d ka2l ", "", line) for line in lines["text"].getvalue().splitlines()]
    end = plain.pop(3)
    assert plain == ["collect    300 rows", "row q7 is odd", "search     by entropy", "5% of nothing"]
    assert re.fullmatch(r"collect    done in 0\.\d s", end)
    found = parsed(lines["json"].getvalue())
    assert [(x["level"], x["run"], x["stage"], x["id"], x["message"]) for x in found] == [
        ("info", "r", "collect", None, "300 rows"),
        ("warning", "r", "collect", "q7", "row q7 is odd"),
        ("info", "r", "search", None, "by entropy"),
        ("info", "r", "collect", None, found[3]["message"]),
        ("info", None, None, None, "5% of nothing"),
    ]
    assert datetime.now(UTC) - datetime.fromisoformat(found[0]["time"]) < timedelta(minutes=1)


@pytest.mark.parametrize(
    "said",
    ["two\nlines", '"quoted" \\ {braces}', "\x1b[31mred\x07", "γ ≥ 0.5 \U0001f600"],
)
def test_whatever_is_said_stays_on_one_line(lines: dict[str, io.StringIO], said: str) -> None:
    log.info("%s", said)
    (line,) = parsed(lines["json"].getvalue())
    assert line["message"] == said
    assert lines["json"].getvalue().isascii()


def test_progress_is_about_its_stage_and_so_is_what_is_said_meanwhile(lines: dict[str, io.StringIO]) -> None:
    counted, shown = iter(range(9)), threading.Event()

    def progress() -> str | None:
        if (n := next(counted)) > 1:
            shown.set()
        return f"{min(n, 1)} of 1 rows done"

    with log_progress("score", progress, every_s=0.01):
        shown.wait(30)
        log.warning("late")
    found = [(x["stage"], x["message"]) for x in parsed(lines["json"].getvalue())]
    assert found[:2] == [("score", "0 of 1 rows done"), ("score", "1 of 1 rows done")]
    assert ("score", "late") in found
    time.sleep(0.05)
    assert len(parsed(lines["json"].getvalue())) == len(found)


def test_plain_lines_are_the_default() -> None:
    set_up_logging(RunSection(name="r"))
    assert RunSection().log == "text"
    assert not writes_json()


def run(code: str, **environment: str) -> list[str]:
    """The lines on stderr of a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_libraries_warnings_errors_and_tracebacks_are_lines_of_json_too() -> None:
    found = parsed("\n".join(run(OTHERS)))
    assert [(x["level"], x["logger"], x["stage"]) for x in found] == [
        ("error", "library", None),
        ("error", "late", None),
        ("info", "ka2l", "collect"),
        ("warning", "py.warnings", "collect"),
        ("info", "ka2l", "collect"),
        ("error", "ka2l", None),
        ("error", "ka2l", None),
    ]
    assert found[0]["message"] == "a library says\ntwo lines"
    assert "something is deprecated" in found[3]["message"]
    assert "Traceback" in found[5]["traceback"]
    assert found[6]["message"] == "corpus.source = 'x': no such file"
    assert {x["run"] for x in found} == {"r"}


def test_a_worker_writes_as_its_driver_does() -> None:
    (line,) = parsed("\n".join(run(WORKER, KA2L_LOG="json")))
    assert (line["run"], line["stage"], line["id"], line["message"]) == ("r", "collect", "q7", "2 rows failed")
    assert run(WORKER, KA2L_LOG="text") == run(WORKER) == ["2 rows failed"]
