"""The one call to `map_batches`: a table through a pool of actors into a table, shard by shard.

In: a source table, a plain actor class, a `Pool`. Out: the target table with every source row once, and its counts.
A shard is a range of source rows, fixed before the stage starts. It is one row of Ray Data (its columns are lists), so that it stays one
block from the task that reads and tokenises it through the actor to the task that writes the one file of its number (`attempts`).
Promises: columns are checked on the driver before any actor starts; a failed row stays in the table with its first `error`; a killed run
loses the shards under way; a stage whose errors pass the limit stops then; the manifest is written last.
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
from typing import Any, Protocol, runtime_checkable

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
from ka2l_ray.dataflow.deaths import Register
from ka2l_ray.dataflow.failures import ActorBroken, Verdict, each_row, most_errors, on_failed_rows
from ka2l_ray.dataflow.log import log, log_progress
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.metrics import ActorMetrics
from ka2l_ray.dataflow.shard_size import BLOCK_BYTES, row_bytes, shard_rows
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.dataflow.tally import Tally
from ka2l_ray.dataflow.tasks import one_line, raised_by_library
from ka2l_ray.errors import StageError, UserError

STATE = "_attempt"
"""Folder of a stage that is not finished, beside its `data`."""
LOAD_PAUSES_S = (1.0, 5.0)
FILES_AT_ONCE = 16
NO_PROGRESS_S = 2 * 3600
"""A stage that finishes no shard for so long is ended. Nodes take minutes to come, large models to load, and one shard may take an hour."""


class Actor(Protocol):
    """Loaded once per process; adds columns to a batch. `Stage.columns_out` gives their names and types.

    Besides them it may return `error`: a message per failed row, null for the others.
    """

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]: ...


@runtime_checkable
class Tallied(Protocol):
    """An actor that counts what it does, for metrics."""

    tally: Tally


@dataclass(frozen=True)
class Stage:
    """One pass over a table. `keep` are source columns carried into the target beside `id`; `prepare` adds columns for the actor on a CPU,
    in the task that reads a shard. `row_seconds` is what a row takes an 8B model on one GPU (`shard_size`)."""

    name: str
    actor: Callable[..., Actor]
    arguments: Mapping[str, Any]
    columns_in: tuple[str, ...]
    columns_out: pa.Schema
    pool: Pool
    keep: tuple[str, ...] = ()
    max_error_fraction: float = 0.01
    prepare: shards.Prepare | None = None
    row_seconds: float = 0.0

    @property
    def carried(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(("id", *self.keep)))

    @property
    def wanted(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.carried, *self.columns_in)))


class ShardActor:
    """Runs the actor on a shard: whole or, where it has ended actors before, in pieces. Ends its own process where that is broken, and Ray
    starts another that is given the same shard."""

    def __init__(self, stage: Stage, register: Any) -> None:
        self._stage, self._register, name = stage, register, uuid.uuid4().hex
        if why := ray.get(register.load.remote(name)):
            raise StageError(why)
        self._actor = _loaded(stage)
        register.loaded.remote(name)
        self._metrics = ActorMetrics(stage.name, self._actor.tally) if isinstance(self._actor, Tallied) else None

    def __call__(self, packed: pa.Table) -> pa.Table:
        head, rows = shards.unpacked(packed)
        suspicion, why = ray.get(self._register.begin.remote(head.shard, rows.num_rows))
        if why:
            raise StageError(why)
        with self._metrics.call() if self._metrics else contextlib.nullcontext():
            pieces = [
                self._piece(head, rows, piece, suspicion.given_up.get(piece[0], "")) for piece in suspicion.pieces
            ]
        self._register.at.remote(head.shard, None)
        whole = pa.concat_tables(pieces, promote_options="permissive")
        self._register.over.remote(head.shard)
        return shards.packed(head, whole)

    def _piece(self, head: shards.Head, rows: pa.Table, piece: tuple[int, int], given_up: str) -> pa.Table:
        start, stop = piece
        part = rows.slice(start, stop - start)
        if given_up:
            return shards.lost(part, self._stage.carried, self._stage.columns_out, given_up)
        if stop - start < rows.num_rows:
            ray.get(self._register.at.remote(head.shard, piece))
        try:
            work = partial(each_row, self._actor, columns=self._stage.columns_out, chosen=head.again)
            return shards.through(work, part, self._stage)
        except ActorBroken as broken:
            ray.get(self._register.ends.remote(head.shard, str(broken)))
            os._exit(
                1
            )  # an exception would reach the driver, and the actor, idle at once, would fail every shard that waits


def _loaded(stage: Stage) -> Actor:
    """The stage's actor. What is no user's mistake is tried again: storage or a hub that does not answer for a moment would end the stage,
    for Ray starts no actor anew that could not load."""
    for pause_s in LOAD_PAUSES_S:
        try:
            return stage.actor(**stage.arguments)
        except UserError:
            raise
        except Exception as error:
            log.warning("%s: an actor cannot load (%s); trying again in %.0f s", stage.name, error, pause_s)
            time.sleep(pause_s)
    return stage.actor(**stage.arguments)


def run_stage(stage: Stage, source: Table, target: Table, part: str | None = None, **facts: Any) -> dict[str, Any]:
    """Run a stage unless its table is done; returns the manifest (`rows_in`, `rows`, `errors`, `seconds`, and `facts`).

    Shards whose files are gone from a finished table are done again. Raises `StageError` for a missing column (before any actor starts),
    for too many failed rows as soon as there are, and for actors that cannot load or keep dying.
    """
    data, state = target.folder / "data", target.folder / STATE
    if target.is_done and not _reopened(stage, target):
        state.delete()  # there after a kill between manifest and cleaning
        return target.manifest()
    rows_in = source.rows if part is None else source.part_rows(part)
    _check_columns(stage, source)
    size = shard_rows(stage.pool, rows_in, row_bytes(stage.columns_out), stage.row_seconds)
    attempt = Attempt.begin(state, data.make(), Shards(stage.name, rows_in, size))
    started = time.monotonic()
    if attempt.missing:
        _check_errors(stage, attempt, data)
        _execute(stage, attempt, source, part, data)
    _check_errors(stage, attempt, data)
    files = [_entry(attempt, n) for n in range(attempt.shards.count)]
    errors = _write_errors(target.folder, data, [f for f in attempt.counted.values() if f.errors])
    seconds = round(time.monotonic() - started, 3)
    target.close(
        files,
        rows_in=rows_in,
        errors=errors,
        seconds=seconds,
        stage=stage.name,
        shard_rows=attempt.shards.size,
        **facts,
    )
    state.delete()
    return target.manifest()


def failed_rows(target: Table) -> int:
    """Failed rows of a table that a stage has finished or begun, each of which `reopen_errors` would have done anew."""
    if not target.is_done:
        return failed(target.folder / STATE, target.folder / "data")
    manifest = target.manifest()
    return manifest.get("errors", 0) if "shard_rows" in manifest else 0


def reopen_errors(target: Table) -> int:
    """Take back that a table is done, or that a shard of an unfinished one is, where rows failed: its stage does those again and keeps the
    others. Returns how many. Nothing is lost by a kill at any moment: the next run of the stage does what is still missing."""
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


def _reopened(stage: Stage, target: Table) -> bool:
    """Whether files of a finished table are gone; its manifest then goes too, once what is left is noted."""
    manifest = target.manifest()
    if "shard_rows" not in manifest:
        return False
    shards_, files = _shards_of(manifest), _files_of(manifest)
    there = set(listed(target.folder / "data", shards_))
    kept = [f for f in files if f.name in there]
    if len(kept) == len(files):
        return False
    log.warning(
        "%-10s %d of %d files of %s are gone: doing them again",
        stage.name,
        len(files) - len(kept),
        len(files),
        target.folder.path,
    )
    reopen(target.folder / STATE, shards_, kept, ())
    target.open_again()
    return True


def _shards_of(manifest: Mapping[str, Any]) -> Shards:
    return Shards(manifest["stage"], manifest["rows_in"], manifest["shard_rows"])


def _files_of(manifest: Mapping[str, Any]) -> list[ShardFile]:
    return [file for f in manifest["files"] if (file := ShardFile.parse(f["name"].removeprefix("data/")))]


def _entry(attempt: Attempt, shard: int) -> dict[str, Any]:
    return {"name": f"data/{attempt.counted[shard].name}", "rows": attempt.shards.length(shard)}


def _check_columns(stage: Stage, source: Table) -> None:
    there = source.schema().names
    if missing := [c for c in stage.wanted if c not in there]:
        raise StageError(
            f"{stage.name}: {source.folder.path} lacks the column(s) {', '.join(missing)}; it has {', '.join(there)}"
        )


def _check_errors(stage: Stage, attempt: Attempt, data: Folder, first: str = "") -> None:
    """Raise `StageError` where more rows failed in this stage than are allowed."""
    rows, errors = attempt.shards.rows, attempt.own_errors
    if on_failed_rows(errors, rows, stage.max_error_fraction) != Verdict.STOP_STAGE:
        return
    own = (f for f in attempt.counted.values() if f.own == f.errors > 0)  # no row in them failed before
    first = first or next(
        (f"row {r['id']}: {r['error']}" for f in own for r in _failed_rows(data, f)), "see the tables' column `error`"
    )
    raise StageError(
        f"{stage.name}: {errors:,} of {rows:,} rows failed, more than run.max_error_fraction allows ({stage.max_error_fraction:g}, here "
        f"{most_errors(rows, stage.max_error_fraction):,}). First: {first}. Mend the cause, then `ka2l run CONFIG --retry-errors` does "
        "the failed rows anew and keeps the others"
    )


def _execute(stage: Stage, attempt: Attempt, source: Table, part: str | None, data: Folder) -> None:
    """Every missing shard through the pipeline; what the driver hears of counts."""
    reading = shards.Reading.of(source, part, stage.wanted, attempt, data)
    here = NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )  # where the driver dies with it anyway
    register: Any = (
        ray.remote(Register).options(num_cpus=0, scheduling_strategy=here).remote(stage.pool.max, failures.DEATHS)
    )
    with _context(), log_progress(stage.name, lambda: _progress(attempt)):
        try:
            for outcome in _outcomes(stage, reading, register):
                file = ShardFile.parse(outcome["name"])
                assert file is not None, outcome
                attempt.accept(file)
                _check_errors(stage, attempt, data, f"row {outcome['first_id']}: {outcome['first_error']}")
        except (RayError, ExecutionTimeoutError) as error:
            if raised_by_library(error):
                raise
            raise StageError(f"{stage.name}: {_why(stage, attempt.shards.size, error)}") from error
    if missing := attempt.missing:
        raise StageError(
            f"{stage.name}: {len(missing):,} of {attempt.shards.count:,} shards were not written; run again"
        )


def _progress(attempt: Attempt) -> str:
    done, cut = attempt.done, attempt.shards
    rows = sum(map(cut.length, done))
    return f"{rows:,} of {cut.rows:,} rows done ({len(done):,} of {cut.count:,} shards), {attempt.own_errors:,} failed"


def _outcomes(stage: Stage, reading: shards.Reading, register: Any) -> Iterator[dict[str, Any]]:
    """The pipeline: what became of each shard, as it is written."""
    pool, entries = stage.pool, len(reading.entries)
    data = ray.data.range(entries, override_num_blocks=entries)
    data = data.map_batches(
        partial(shards.read, reading=reading, stage=stage),
        batch_size=1,
        batch_format="pyarrow",
        memory=2
        * BLOCK_BYTES,  # for a shard as it comes and as it goes; besides, Ray would run this in the actor, whose GPU then waits
    )
    data = data.map_batches(
        ShardActor,  # type: ignore[arg-type]
        fn_constructor_args=(stage, register),
        batch_size=1,  # a shard is one row; the actor sorts its rows by length and cuts them by `batch_rows` and `batch_tokens` itself
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=pool.min, max_size=pool.max),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
    )
    data = data.map_batches(partial(shards.write, reading=reading), batch_size=1, batch_format="pyarrow")
    batches: Any = data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    for batch in batches:
        yield from batch.to_pylist()


def _why(stage: Stage, size: int, error: Exception) -> str:
    if isinstance(error, ExecutionTimeoutError):
        return (
            f"no shard of {size} rows was finished within {NO_PROGRESS_S / 3600:g} h. Either the cluster has no free "
            f"{stage.pool.cpus:g} CPUs and {stage.pool.gpus:g} GPUs for an actor, or a shard takes longer: lower `shard_rows` of its pool"
        )
    return one_line(error)


@contextlib.contextmanager
def _context() -> Iterator[None]:
    """A limit on standing still for the one pipeline inside; the setting is process-wide, so it is put back."""
    context = DataContext.get_current()
    before = context.execution_no_progress_timeout_s
    context.execution_no_progress_timeout_s = NO_PROGRESS_S
    try:
        yield
    finally:
        context.execution_no_progress_timeout_s = before


def _failed_rows(data: Folder, file: ShardFile) -> list[dict[str, str]]:
    with pq.ParquetFile((data / file.name).path, filesystem=data.filesystem) as opened:
        table = opened.read(columns=["id", "error"])
    return table.filter(table["error"].is_valid()).to_pylist()


def _write_errors(folder: Folder, data: Folder, files: list[ShardFile]) -> int:
    """Derive `errors/` from the table's failed rows, one file per data file that has any; returns their number."""
    (folder / "errors").delete()
    if not files:
        return 0
    errors = (folder / "errors").make()

    def derive(file: ShardFile) -> int:
        failed = _failed_rows(data, file)
        pq.write_table(
            pa.Table.from_pylist(failed), (errors / f"{file.shard:06d}.parquet").path, filesystem=folder.filesystem
        )
        return len(failed)

    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        return sum(pool.map(derive, files))
