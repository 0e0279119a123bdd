"""Run a table through a pool of actors into another table, shard by shard; the only place that makes an actor pool.

In: a source table and a `Stage`: the target's spec, a plain actor class with its setup, a pool. Out: the target table
with every source row exactly once, and its manifest.
A shard is a range of source rows, fixed before the stage starts. It travels as one row of Ray Data (its columns are
lists), so that it stays one block from the task that reads and tokenizes it through the actor to the task that writes
its file (`attempts`).
Promises: columns are checked on the driver before any actor starts; a failed row stays in the table with its first
`error`; a killed run loses only the shards in progress; a stage with too many errors stops at once; the manifest is
written last.
Refuses to know: what the actors compute, what an error means (`failures`).
"""

import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ka2l_ray.config import ANY_NODE, NodesSection, Pool
from ka2l_ray.dataflow import failures, shards
from ka2l_ray.dataflow.attempts import Attempt, ShardFile, Shards, listed
from ka2l_ray.dataflow.deaths import Piece, Register
from ka2l_ray.dataflow.failures import ActorBroken, each_row, most_errors
from ka2l_ray.dataflow.log import log, log_progress, set_up_worker_logging
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.metrics import ActorMetrics
from ka2l_ray.dataflow.patience import patiently
from ka2l_ray.dataflow.shard_size import BLOCK_BYTES, row_bytes, shard_rows
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.dataflow.tasks import one_line, placed, raised_by_library
from ka2l_ray.dataflow.vault import open_vault, vault
from ka2l_ray.errors import StageError
from ka2l_ray.schema import NO_COLUMNS, TableSpec

STATE = "_attempt"
"""Folder of a stage that is not finished, next to its `data`."""
NO_PROGRESS_S = 2 * 3600
"""A stage that finishes no shard for this long is stopped. Nodes take minutes to start, large models to load, and one
shard may take an hour."""


class Actor(Protocol):
    """Loaded once per process; maps a batch (B rows) to the columns that its table's spec adds.

    Besides them it may return `error`: a message per failed row, null for the others.
    """

    def __call__(self, batch: pa.Table) -> Mapping[str, Iterable[object]]: ...


Setup = TypeVar("Setup")


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[Setup]):
    """One pass over a table: `actor(setup)` makes each actor, in its own process.

    `spec` is of the table that is written: which columns are read, carried over and added. `states` are the added ones
    that the configuration decides on. `prepare` adds columns for the actor on a CPU, in the task that reads a shard.
    `row_seconds` is how long an 8B model on one GPU takes per row (`shard_size`). `tasks` are the nodes of the tasks
    that read and write. `run` names the run in metrics and logs.
    """

    name: str
    run: str
    spec: TableSpec
    actor: Callable[[Setup], Actor]
    setup: Setup
    pool: Pool
    states: pa.Schema = NO_COLUMNS
    max_error_fraction: float = 0.01
    prepare: shards.Prepare | None = None
    row_seconds: float = 0.0
    tasks: NodesSection = ANY_NODE

    @property
    def carried(self) -> tuple[str, ...]:
        return ("id", *self.spec.carried)

    @property
    def added(self) -> pa.Schema:
        return self.spec.added_fields(self.states)

    @property
    def wanted(self) -> tuple[str, ...]:
        """Columns of the source table that are read."""
        return tuple(dict.fromkeys((*self.carried, *self.spec.reads)))


class ShardActor:
    """Runs the actor on a shard: on all of it or, where the shard has killed actors before, piece by piece. Ends its
    own process when that is broken; Ray then starts another one and gives it the same shard."""

    def __init__(self, stage: Stage[Any], register: Any, token: Any) -> None:
        self._stage, self._register, name = stage, register, uuid.uuid4().hex
        set_up_worker_logging(stage.run, stage.name)
        open_vault(token)
        if why := ray.get(register.loads.remote(name)):
            raise StageError(why)
        self._metrics = ActorMetrics(stage.run, stage.name)
        # Ray starts no other actor for one that cannot load
        self._actor = patiently(partial(stage.actor, stage.setup), stage.name)
        register.loaded.remote(name)
        self._metrics.loaded(self._actor)

    def __call__(self, packed: pa.Table) -> pa.Table:
        head, rows = shards.unpacked(packed)
        suspicion, why = ray.get(self._register.begins.remote(head.shard, rows.num_rows))
        if why:
            raise StageError(why)
        with self._metrics.call():
            pieces = [self._run(head, rows, piece, suspicion.given_up.get(piece[0], "")) for piece in suspicion.pieces]
        self._register.notes.remote(head.shard, piece=None)
        whole = pa.concat_tables(pieces, promote_options="permissive")
        self._register.finishes.remote(head.shard)
        failed = shards.failed_here(head, whole.select(["id", shards.ERROR]))
        self._metrics.rows(rows.num_rows - len(head.failed_before), failed.num_rows)
        for first in failed.slice(0, 1).to_pylist():
            count = f"{failed.num_rows:,} of {rows.num_rows:,} rows of shard {head.shard} failed"
            log.warning("%s; the first, %s: %s", count, first["id"], first["error"], extra={"id": first["id"]})
        return shards.packed(head, whole)

    def _run(self, head: shards.Head, rows: pa.Table, piece: Piece, given_up: str) -> pa.Table:
        start, stop = piece
        part, carried, added = rows.slice(start, stop - start), self._stage.carried, self._stage.added
        if given_up:
            return shards.lost(part, carried, added, given_up)
        if stop - start < rows.num_rows:
            ray.get(self._register.notes.remote(head.shard, piece=piece))
        work = partial(each_row, self._actor, columns=added, chosen=head.again)
        try:
            return shards.through(work, part, carried, added)
        except ActorBroken as broken:
            ray.get(self._register.notes.remote(head.shard, why=str(broken)))
            # an exception would reach the driver, and this actor, idle again, would fail every shard that waits
            os._exit(1)


def run_stage(
    stage: Stage[Any], source: Table, target: Table, part: str | None = None, **facts: float | None
) -> dict[str, Any]:
    """Run a stage unless its table is done; returns the manifest (`schema.STAGE_FACTS` and the given `facts`).

    Shards of a finished table whose files are gone are repeated. Raises `StageError` for a missing column (before any
    actor starts), for too many failed rows (as soon as there are), and for actors that cannot load or keep dying.
    """
    data, state = target.folder / "data", target.folder / STATE
    if target.is_done and not _reopened(stage, target):
        state.delete()  # left by a kill between manifest and clean-up
        return target.manifest()
    if rows_in := source.part_rows(part):
        _check_columns(stage, source)
    size = shard_rows(stage.pool, rows_in, row_bytes(stage.added), stage.row_seconds)
    attempt = Attempt.begin(state, data.make(), Shards(stage.name, rows_in, size))
    started = time.monotonic()
    _check_errors(stage, attempt, data)
    first_shard_s = _execute(stage, attempt, source, part, data) if attempt.missing else None
    files = [
        {"name": f"data/{attempt.counted[n].name}", "rows": attempt.shards.length(n)}
        for n in range(attempt.shards.count)
    ]
    shards.write_errors(target.folder / "errors", data, attempt.counted.values())
    target.close(
        files,
        rows_in=rows_in,
        errors=attempt.errors,
        seconds=round(time.monotonic() - started, 3),
        first_shard_s=first_shard_s,
        stage=stage.name,
        shard_rows=attempt.shards.size,
        **facts,
    )
    state.delete()
    return target.manifest()


def failed_rows(target: Table) -> int:
    """Number of failed rows in a table that a stage has finished or started; `reopen_errors` has them repeated."""
    return _last(target).errors


def begun_by(target: Table) -> str | None:
    """Name of the stage that has finished or started a table; None where none has."""
    return _last(target).shards.stage or None


def reopen_errors(target: Table) -> int:
    """Mark the shards with failed rows as not done, so that the table's stage repeats these rows and keeps the others.

    Returns the number of these rows. A kill at any moment loses nothing: the next run of the stage does what is
    missing.
    """
    failed = _last(target).retry(target.folder / STATE)
    if failed and target.is_done:
        target.open_again()
    return failed


def _last(target: Table) -> Attempt:
    """The last attempt at a table, which may have finished it; one at nothing for a table that no stage writes."""
    if not target.is_done:
        return Attempt.left(target.folder / STATE, target.folder / "data")
    return Attempt.of(target.manifest())


def _reopened(stage: Stage[Any], target: Table) -> bool:
    """Whether files of a finished table are gone; if so, the rest is noted and the manifest set aside."""
    last = _last(target)
    present = set(listed(target.folder / "data", last.shards))
    gone = [n for n, file in last.counted.items() if file.name not in present]
    if gone:
        where, files = target.folder.path, len(last.counted)
        said = "%d of %d files of %s are gone: repeating them"
        log.warning(said, len(gone), files, where, extra={"stage": stage.name})
        for n in gone:
            del last.counted[n]
        last.save(target.folder / STATE)
        target.open_again()
    return bool(gone)


def _check_columns(stage: Stage[Any], source: Table) -> None:
    present = source.schema().names
    if missing := [c for c in stage.wanted if c not in present]:
        raise StageError(
            f"{stage.name}: {source.folder.path} lacks the column(s) {', '.join(missing)}; it has {', '.join(present)}"
        )


def _check_errors(stage: Stage[Any], attempt: Attempt, data: Folder, first: str = "") -> None:
    """Raise `StageError` where more rows failed in this stage than are allowed."""
    rows, errors = attempt.shards.rows, attempt.own_errors
    most = most_errors(rows, stage.max_error_fraction)
    if errors <= most:
        return
    own = (f for f in attempt.counted.values() if f.own == f.errors > 0)  # none of their rows failed before
    first = first or next(
        (f"row {r['id']}: {r['error']}" for f in own for r in shards.failed_rows(data / f.name).to_pylist()),
        "see the tables' column `error`",
    )
    raise StageError(
        f"{stage.name}: {errors:,} of {rows:,} rows failed, more than run.max_error_fraction allows "
        f"({stage.max_error_fraction:g}, here {most:,}). First: {first}. "
        "Fix the cause, then `ka2l run CONFIG --retry-errors` repeats the failed rows and keeps the others"
    )


def _execute(stage: Stage[Any], attempt: Attempt, source: Table, part: str | None, data: Folder) -> float | None:
    """Send every missing shard through the pipeline, and accept each file that the driver hears of. Returns the seconds
    until the first one: nodes that start, weights that are fetched and loaded, and its own rows."""
    started, first_shard_s = time.monotonic(), None
    reading = shards.Reading.of(source, part, stage.wanted, attempt, data)
    # on the driver's node: if that dies, so does the driver
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    register: Any = (
        ray.remote(Register).options(num_cpus=0, scheduling_strategy=here).remote(stage.pool.max, failures.DEATHS)
    )
    with log_progress(stage.name, lambda: _progress(attempt)):
        try:
            for outcome in _outcomes(stage, reading, register):
                file = ShardFile.parse(outcome["name"])
                assert file is not None, outcome
                attempt.accept(file)
                if first_shard_s is None:
                    first_shard_s = round(time.monotonic() - started, 3)
                    log.info("first rows after %.1f s", first_shard_s, extra={"stage": stage.name})
                _check_errors(stage, attempt, data, f"row {outcome['first_id']}: {outcome['first_error']}")
        except (RayError, ExecutionTimeoutError) as error:
            if raised_by_library(error):
                raise
            raise StageError(f"{stage.name}: {_reason(stage, attempt.shards.size, error)}") from error
    if missing := attempt.missing:
        raise StageError(
            f"{stage.name}: {len(missing):,} of {attempt.shards.count:,} shards were not written; run again"
        )
    return first_shard_s


def _progress(attempt: Attempt) -> str:
    done, cut, failed = attempt.done, attempt.shards, attempt.own_errors
    return f"{attempt.rows_done:,} of {cut.rows:,} rows done ({len(done):,} of {cut.count:,} shards), {failed:,} failed"


def _read(numbers: pa.Table, token: Any, **options: Any) -> pa.Table:
    """`shards.read`, whose `prepare` may need a tokenizer of the hub."""
    open_vault(token)
    return shards.read(numbers, **options)


def _outcomes(stage: Stage[Any], reading: shards.Reading, register: Any) -> Iterator[dict[str, str]]:
    """Run the pipeline: yields what `shards.write` returns of each shard, as soon as it is written."""
    pool, entries, token = stage.pool, len(reading.entries), vault()
    data = ray.data.range(entries, override_num_blocks=entries)
    data.set_name(stage.name)
    data.context.execution_no_progress_timeout_s = NO_PROGRESS_S
    data = data.map_batches(
        partial(_read, token=token, reading=reading, prepare=stage.prepare),
        batch_size=1,
        batch_format="pyarrow",
        # room for a shard as read and as prepared; without it, Ray would also run this task inside the actor, whose GPU
        # would then wait
        memory=2 * BLOCK_BYTES,
        **placed(stage.tasks),
    )
    data = data.map_batches(
        # of the stage's name, by which Ray's dashboard and logs call its actors: `MapWorker(MapBatches(NAME))`
        type(stage.name, (ShardActor,), {}),
        fn_constructor_args=(stage, register, token),
        # a shard is one row; the actor itself sorts its rows by length and cuts them by `batch_rows` and `batch_tokens`
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=pool.min, max_size=pool.max),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
        **placed(pool.nodes),
    )
    data = data.map_batches(
        partial(shards.write, reading=reading), batch_size=1, batch_format="pyarrow", **placed(stage.tasks)
    )
    batches: Iterable[pa.Table] = data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    for batch in batches:
        yield from batch.to_pylist()


def _reason(stage: Stage[Any], size: int, error: Exception) -> str:
    if isinstance(error, ExecutionTimeoutError):
        return (
            f"no shard of {size} rows was finished within {NO_PROGRESS_S / 3600:g} h. Either the cluster has no free "
            f"{stage.pool.cpus:g} CPUs and {stage.pool.gpus:g} GPUs for an actor, or a shard takes longer: lower "
            "`shard_rows` of its pool"
        )
    return one_line(error)
