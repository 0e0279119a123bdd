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

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ka2l_ray.config import Pool
from ka2l_ray.dataflow import failures, shards
from ka2l_ray.dataflow.attempts import Attempt, ShardFile, Shards, failed, listed, reopen, retry
from ka2l_ray.dataflow.deaths import Piece, Register
from ka2l_ray.dataflow.failures import ActorBroken, Verdict, each_row, most_errors, on_failed_rows
from ka2l_ray.dataflow.log import log, log_progress
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.metrics import ActorMetrics
from ka2l_ray.dataflow.shard_size import BLOCK_BYTES, row_bytes, shard_rows
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.dataflow.tally import Tally
from ka2l_ray.dataflow.tasks import one_line, raised_by_library
from ka2l_ray.errors import StageError, UserError
from ka2l_ray.schema import NO_COLUMNS, TableSpec

STATE = "_attempt"
"""Folder of a stage that is not finished, next to its `data`."""
LOAD_PAUSES_S = (1.0, 5.0)
FILES_AT_ONCE = 16
NO_PROGRESS_S = 2 * 3600
"""A stage that finishes no shard for this long is stopped. Nodes take minutes to start, large models to load, and one
shard may take an hour."""


class Actor(Protocol):
    """Loaded once per process; maps a batch (B rows) to the columns that its table's spec adds.

    Besides them it may return `error`: a message per failed row, null for the others.
    """

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]: ...


@runtime_checkable
class Tallied(Protocol):
    """An actor that counts what it does, for metrics."""

    tally: Tally


Setup = TypeVar("Setup")


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[Setup]):
    """One pass over a table: `actor(setup)` makes each actor, in its own process.

    `spec` is of the table that is written: which columns are read, carried over and added. `states` are the added ones
    that the configuration decides on. `prepare` adds columns for the actor on a CPU, in the task that reads a shard.
    `row_seconds` is how long an 8B model on one GPU takes per row (`shard_size`).
    """

    name: str
    spec: TableSpec
    actor: Callable[[Setup], Actor]
    setup: Setup
    pool: Pool
    states: pa.Schema = NO_COLUMNS
    max_error_fraction: float = 0.01
    prepare: shards.Prepare | None = None
    row_seconds: float = 0.0

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

    def __init__(self, stage: Stage[Any], register: Any) -> None:
        self._stage, self._register, name = stage, register, uuid.uuid4().hex
        if why := ray.get(register.loads.remote(name)):
            raise StageError(why)
        self._actor = _loaded(stage)
        register.loaded.remote(name)
        self._metrics = ActorMetrics(stage.name, self._actor.tally) if isinstance(self._actor, Tallied) else None

    def __call__(self, packed: pa.Table) -> pa.Table:
        head, rows = shards.unpacked(packed)
        suspicion, why = ray.get(self._register.begins.remote(head.shard, rows.num_rows))
        if why:
            raise StageError(why)
        with self._metrics.call() if self._metrics else contextlib.nullcontext():
            pieces = [self._run(head, rows, piece, suspicion.given_up.get(piece[0], "")) for piece in suspicion.pieces]
        self._register.moves.remote(head.shard, None)
        whole = pa.concat_tables(pieces, promote_options="permissive")
        self._register.finishes.remote(head.shard)
        return shards.packed(head, whole)

    def _run(self, head: shards.Head, rows: pa.Table, piece: Piece, given_up: str) -> pa.Table:
        start, stop = piece
        part = rows.slice(start, stop - start)
        if given_up:
            return shards.lost(part, self._stage, given_up)
        if stop - start < rows.num_rows:
            ray.get(self._register.moves.remote(head.shard, piece))
        try:
            work = partial(each_row, self._actor, columns=self._stage.added, chosen=head.again)
            return shards.through(work, part, self._stage)
        except ActorBroken as broken:
            ray.get(self._register.reports.remote(head.shard, str(broken)))
            # an exception would reach the driver, and this actor, idle again, would fail every shard that waits
            os._exit(1)


def _named_actor(name: str) -> type[ShardActor]:
    """`ShardActor` under a stage's name: Ray's dashboard and logs call its actors `MapWorker(MapBatches(NAME))`."""
    return type(name, (ShardActor,), {})


def _loaded(stage: Stage[Any]) -> Actor:
    """The stage's actor. Ray starts no other actor for one that cannot load, so a failure that is not the user's
    mistake is retried: storage or a model hub may not answer for a moment."""
    for pause_s in LOAD_PAUSES_S:
        try:
            return stage.actor(stage.setup)
        except UserError:
            raise
        except Exception as error:
            log.warning("%s: an actor cannot load (%s); trying again in %.0f s", stage.name, error, pause_s)
            time.sleep(pause_s)
    return stage.actor(stage.setup)


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
    rows_in = source.rows if part is None else source.part_rows(part)
    _check_columns(stage, source)
    size = shard_rows(stage.pool, rows_in, row_bytes(stage.added), stage.row_seconds)
    attempt = Attempt.begin(state, data.make(), Shards(stage.name, rows_in, size))
    started = time.monotonic()
    if attempt.missing:
        _check_errors(stage, attempt, data)
        _execute(stage, attempt, source, part, data)
    _check_errors(stage, attempt, data)
    files = [
        {"name": f"data/{attempt.counted[n].name}", "rows": attempt.shards.length(n)}
        for n in range(attempt.shards.count)
    ]
    errors = _write_errors(target.folder, data, [f for f in attempt.counted.values() if f.errors])
    target.close(
        files,
        rows_in=rows_in,
        errors=errors,
        seconds=round(time.monotonic() - started, 3),
        stage=stage.name,
        shard_rows=attempt.shards.size,
        **facts,
    )
    state.delete()
    return target.manifest()


def failed_rows(target: Table) -> int:
    """Number of failed rows in a table that a stage has finished or started; `reopen_errors` has them repeated."""
    if not target.is_done:
        return failed(target.folder / STATE, target.folder / "data")
    manifest = target.manifest()
    return manifest.get("errors", 0) if "shard_rows" in manifest else 0


def reopen_errors(target: Table) -> int:
    """Mark the shards with failed rows as not done, so that the table's stage repeats these rows and keeps the others.

    Returns the number of these rows. A kill at any moment loses nothing: the next run of the stage does what is
    missing.
    """
    state, data = target.folder / STATE, target.folder / "data"
    if not target.is_done:
        return retry(state, data)
    if not failed_rows(target):
        return 0
    manifest = target.manifest()
    files = _files_of(manifest)
    reopen(state, _shards_of(manifest), files, [f.shard for f in files if f.errors])
    target.open_again()
    return manifest["errors"]


def _reopened(stage: Stage[Any], target: Table) -> bool:
    """Whether files of a finished table are gone; if so, the rest is noted and the manifest set aside."""
    manifest = target.manifest()
    if "shard_rows" not in manifest:
        return False
    cut, files = _shards_of(manifest), _files_of(manifest)
    present = set(listed(target.folder / "data", cut))
    kept = [f for f in files if f.name in present]
    if len(kept) == len(files):
        return False
    log.warning(
        "%-10s %d of %d files of %s are gone: repeating them",
        stage.name,
        len(files) - len(kept),
        len(files),
        target.folder.path,
    )
    reopen(target.folder / STATE, cut, kept, ())
    target.open_again()
    return True


def _shards_of(manifest: Mapping[str, Any]) -> Shards:
    return Shards(manifest["stage"], manifest["rows_in"], manifest["shard_rows"])


def _files_of(manifest: Mapping[str, Any]) -> list[ShardFile]:
    return [file for f in manifest["files"] if (file := ShardFile.parse(f["name"].removeprefix("data/")))]


def _check_columns(stage: Stage[Any], source: Table) -> None:
    present = source.schema().names
    if missing := [c for c in stage.wanted if c not in present]:
        raise StageError(
            f"{stage.name}: {source.folder.path} lacks the column(s) {', '.join(missing)}; it has {', '.join(present)}"
        )


def _check_errors(stage: Stage[Any], attempt: Attempt, data: Folder, first: str = "") -> None:
    """Raise `StageError` where more rows failed in this stage than are allowed."""
    rows, errors = attempt.shards.rows, attempt.own_errors
    if on_failed_rows(errors, rows, stage.max_error_fraction) != Verdict.STOP_STAGE:
        return
    own = (f for f in attempt.counted.values() if f.own == f.errors > 0)  # none of their rows failed before
    first = first or next(
        (f"row {r['id']}: {r['error']}" for f in own for r in shards.failed_rows(data / f.name).to_pylist()),
        "see the tables' column `error`",
    )
    raise StageError(
        f"{stage.name}: {errors:,} of {rows:,} rows failed, more than run.max_error_fraction allows "
        f"({stage.max_error_fraction:g}, here {most_errors(rows, stage.max_error_fraction):,}). First: {first}. "
        "Fix the cause, then `ka2l run CONFIG --retry-errors` repeats the failed rows and keeps the others"
    )


def _execute(stage: Stage[Any], attempt: Attempt, source: Table, part: str | None, data: Folder) -> None:
    """Send every missing shard through the pipeline, and accept each file that the driver hears of."""
    reading = shards.Reading.of(source, part, stage.wanted, attempt, data)
    # on the driver's node: if that dies, so does the driver
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    register: Any = (
        ray.remote(Register).options(num_cpus=0, scheduling_strategy=here).remote(stage.pool.max, failures.DEATHS)
    )
    with _progress_limit(), log_progress(stage.name, lambda: _progress(attempt)):
        try:
            for outcome in _outcomes(stage, reading, register):
                file = ShardFile.parse(outcome["name"])
                assert file is not None, outcome
                attempt.accept(file)
                _check_errors(stage, attempt, data, f"row {outcome['first_id']}: {outcome['first_error']}")
        except (RayError, ExecutionTimeoutError) as error:
            if raised_by_library(error):
                raise
            raise StageError(f"{stage.name}: {_reason(stage, attempt.shards.size, error)}") from error
    if missing := attempt.missing:
        raise StageError(
            f"{stage.name}: {len(missing):,} of {attempt.shards.count:,} shards were not written; run again"
        )


def _progress(attempt: Attempt) -> str:
    done, cut = attempt.done, attempt.shards
    rows = sum(map(cut.length, done))
    return f"{rows:,} of {cut.rows:,} rows done ({len(done):,} of {cut.count:,} shards), {attempt.own_errors:,} failed"


def _outcomes(stage: Stage[Any], reading: shards.Reading, register: Any) -> Iterator[dict[str, Any]]:
    """Run the pipeline: yields what `shards.write` returns of each shard, as soon as it is written."""
    pool, entries = stage.pool, len(reading.entries)
    data = ray.data.range(entries, override_num_blocks=entries)
    data.set_name(stage.name)
    data = data.map_batches(
        partial(shards.read, reading=reading, stage=stage),
        batch_size=1,
        batch_format="pyarrow",
        # room for a shard as read and as prepared; without it, Ray would also run this task inside the actor, whose GPU
        # would then wait
        memory=2 * BLOCK_BYTES,
    )
    data = data.map_batches(
        _named_actor(stage.name),  # type: ignore[arg-type]
        fn_constructor_args=(stage, register),
        # a shard is one row; the actor itself sorts its rows by length and cuts them by `batch_rows` and `batch_tokens`
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=pool.min, max_size=pool.max),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
    )
    data = data.map_batches(partial(shards.write, reading=reading), batch_size=1, batch_format="pyarrow")
    batches: Any = data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
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


@contextlib.contextmanager
def _progress_limit() -> Iterator[None]:
    """Limit the time without progress for the pipeline inside; the setting is process-wide, so it is restored."""
    context = DataContext.get_current()
    before = context.execution_no_progress_timeout_s
    context.execution_no_progress_timeout_s = NO_PROGRESS_S
    try:
        yield
    finally:
        context.execution_no_progress_timeout_s = before


def _write_errors(folder: Folder, data: Folder, files: list[ShardFile]) -> int:
    """Write `errors/` from the table's failed rows, one file per data file that has any; returns their number."""
    (folder / "errors").delete()
    if not files:
        return 0
    errors = (folder / "errors").make()

    def write(file: ShardFile) -> int:
        rows = shards.failed_rows(data / file.name)
        pq.write_table(rows, (errors / f"{file.shard:06d}.parquet").path, filesystem=folder.filesystem)
        return rows.num_rows

    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        return sum(pool.map(write, files))
