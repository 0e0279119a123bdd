"""What a run is doing, read from its folder alone: from any machine that reaches it, whether or not its cluster lives.

In: a `Run`. Out: a `RunStatus`: its driver's heartbeat, its steps and rounds, and the tables and training runs in
progress with their rates. Nothing is written and no table's rows are read. Refuses to know: Ray, the terminal.
"""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ka2l_ray.active.round import Round, RoundState
from ka2l_ray.active.schedule import planned_rounds
from ka2l_ray.dataflow.attempts import Progress
from ka2l_ray.dataflow.driver import DriverState, driver_state
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.records import Records, StepRecord
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.stage import STATE
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.pipeline.table import STEP_TABLE
from ka2l_ray.schema import ROUND, TABLES

StepState = Literal["done", "in progress", "to do"]
_BY_ROW = [spec.folder for spec in TABLES.values() if spec.can_fail]
TABLES_OF_BASE = (*(f for f in _BY_ROW if not f.startswith(ROUND)), "base/evaluation/corpus_prompt")
"""Folders of the base model's tables that actors make, below the run's; below that of a round where it makes some of
them anew for a probe of its own."""
TABLES_OF_ROUND = (
    *(f.removeprefix(f"{ROUND}/") for f in _BY_ROW if f.startswith(ROUND)),
    "evaluation/corpus_prompt",
    *(f"reprobe/{f}" for f in TABLES_OF_BASE),
)


@dataclass(frozen=True)
class StepStatus:
    """One step of the run. `in progress`: it was begun and is not done, whether or not a driver is at work."""

    name: str
    does: str
    state: StepState
    seconds: float | None
    """Of all attempts, those that ended by SIGKILL left out; None before the first one ended."""
    rows: int | None
    errors: int | None
    """Rows written and failed; None for a step that counts no rows or is not done."""


@dataclass(frozen=True)
class Work:
    """A table or a training run in progress: `done` of `total` rows, or steps of the optimiser."""

    where: str
    """Its folder below the run's."""
    unit: Literal["rows", "steps"]
    done: int
    total: int
    errors: int
    per_second: float | None
    """Rate of the last attempt, the start of its actors included; None before its first file."""
    left_s: float | None
    """Seconds left at that rate."""
    quiet_s: float
    """Seconds since a file was last written, by this machine's clock."""


@dataclass(frozen=True)
class RunStatus:
    """A run at one moment."""

    run: str
    driver: DriverState | None
    """None where it ended by itself, or never started."""
    steps: tuple[StepStatus, ...]
    rounds: dict[str, int]
    """{state: number of rounds in it}, the states in the order in which a round passes them; without the rounds that a
    strategy which has stopped early leaves out."""
    working: tuple[Work, ...]
    errors: int
    """Failed rows of the steps that are done and of the tables in progress."""

    @property
    def is_done(self) -> bool:
        return all(step.state == "done" for step in self.steps)


def status_of(run: Run) -> RunStatus:
    """The status of a run. Raises `StageError` where a file that it reads is damaged."""
    records, rounds = run.records.all(), list(planned_rounds(run))
    any_begun, results = (run.folder / "strategies").exists(), (run.folder / "results.json").read_json_or_empty()
    last = {(s["strategy"], s["seed"]): s["after_round"] for s in results.get("stopped", ())}
    rounds = [r for r in rounds if r.number <= last.get((r.strategy, r.seed), r.number)]
    states = [r.state if any_begun else RoundState.ACQUIRE for r in rounds]
    begun = [r for r, s in zip(rounds, states, strict=True) if any_begun and s != RoundState.DONE and r.folder.exists()]
    working = (*_of_base(run), *(work for r in begun for work in _of(r)))
    steps = tuple(_step(run, step.name, step.says, step.folders, records.get(step.name, {})) for step in STEP_TABLE)
    if set(states) == {RoundState.DONE}:  # rounds keep their own records
        steps = (*steps[:-1], replace(steps[-1], state="done"))
    counted = Counter(states)
    return RunStatus(
        run=run.folder.uri,
        driver=driver_state(run.folder),
        steps=steps,
        rounds={state.value: counted[state] for state in RoundState if counted[state]},
        working=working,
        errors=sum(step.errors or 0 for step in steps) + sum(work.errors for work in working),
    )


def _step(run: Run, name: str, does: str, folders: tuple[str, ...], record: StepRecord) -> StepStatus:
    rows = record.get("rows") or {}
    is_done = bool(record.get("done"))
    is_begun = not is_done and ("seconds" in record or any((run.folder / f).exists() for f in folders))
    state: StepState = "done" if is_done else "in progress" if is_begun else "to do"
    return StepStatus(name, does, state, record.get("seconds"), rows.get("out"), rows.get("errors"))


def _of_base(run: Run) -> Iterator[Work]:
    for name in TABLES_OF_BASE:
        yield from _table(run.folder, name)


def _of(a_round: Round) -> Iterator[Work]:
    """What a round that is not done has in progress."""
    run = a_round.run.folder
    below = a_round.folder.path.removeprefix(f"{run.path}/")
    for name in TABLES_OF_ROUND:
        yield from _table(run, f"{below}/{name}")
    progress = a_round.folder / "finetune/model-progress.json"
    if not Records(a_round.folder).is_done(RoundState.FINETUNE) and (now := progress.read_json_or_empty()):
        quiet = max(0.0, time.time() - progress.changed_unix_s())
        yield Work(f"{below}/finetune", "steps", now["step"], now["steps"], 0, None, None, quiet)


def _table(run: Folder, where: str) -> Iterator[Work]:
    table = run / where
    if Table(table).is_done or (found := Progress.of(table / STATE, table / "data")) is None:
        return
    attempt, took_s = found.attempt, found.changed_unix_s - found.began_unix_s
    rate = found.rows / took_s if found.rows and took_s > 0 else None
    left_s = (attempt.shards.rows - attempt.rows_done) / rate if rate else None
    quiet_s = max(0.0, time.time() - found.changed_unix_s)  # the storage's clock may be ahead
    yield Work(where, "rows", attempt.rows_done, attempt.shards.rows, attempt.own_errors, rate, left_s, quiet_s)
