"""`ka2l status`: what a run is doing, as lines on the terminal or as JSON.

In: a `RunStatus`. Out: text on stdout. Refuses to know: how the status is found.
"""

import json
from dataclasses import asdict
from datetime import timedelta

from rich.console import Console
from rich.table import Table as RichTable

from ka2l_ray.cli.terminal import as_text
from ka2l_ray.pipeline.status import RunStatus, Work


def print_status(status: RunStatus, as_json: bool = False) -> None:
    """A row per step, a line for each table or training run in progress, the rounds and the driver; or one JSON object,
    for scripts."""
    if as_json:
        print(json.dumps(asdict(status) | {"is_done": status.is_done}, indent=1))  # noqa: T201
        return
    console = Console()
    table = RichTable("step", "state", "seconds", "rows", "failed", title=as_text(status.run, "table.title"))
    for step in status.steps:
        counts = ("–" if n is None else f"{n:,}" for n in (step.rows, step.errors))
        table.add_row(step.name, step.state, "–" if step.seconds is None else f"{step.seconds:,.1f}", *counts)
    console.print(table)
    lines = [*map(_work, status.working), _rounds(status), _driver(status), f"errors   {status.errors:,} failed rows"]
    for line in lines:
        console.print(as_text(line), soft_wrap=True)


def _work(work: Work) -> str:
    share = f"{work.done / work.total:.0%}" if work.total else "–"
    line = f"working  {work.where}: {work.done:,} of {work.total:,} {work.unit} ({share}), {work.errors:,} failed"
    if work.per_second and work.left_s is not None:
        line += f", {work.per_second:,.3g} {work.unit}/s, {_time(work.left_s)} left"
    return f"{line}, last written {_time(work.quiet_s)} ago"


def _rounds(status: RunStatus) -> str:
    total = sum(status.rounds.values())
    states = ", ".join(f"{n:,} {_STATES[state]}" for state, n in status.rounds.items())
    return f"rounds   {total:,}: {states}"


_STATES = {
    "acquire": "to begin",
    "annotate": "to annotate",
    "waiting": "waiting for people's answers",
    "finetune": "to fine-tune",
    "evaluate": "to evaluate",
    "done": "done",
}


def _driver(status: RunStatus) -> str:
    if (driver := status.driver) is None:
        return f"driver   none: the run is {'done' if status.is_done else 'not done, and nobody is at work on it'}"
    who = f"process {driver.pid} on {driver.host}, last sign of life {_time(driver.beat_age_s)} ago"
    return f"driver   {who}" + ("" if driver.is_alive else ": gone, the same command continues the run")


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
