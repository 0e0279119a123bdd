"""The one call to `map_batches`: a table through a pool of actors into a table.

In: a source table, a plain actor class, a `Pool`. Out: the target table with every source row once, and its counts.
Promises: columns are checked on the driver before any actor starts; a failed row stays in the table with `error` set;
a killed run continues at its last committed block (`attempts`); the manifest is written last.
Refuses to know: what the actors compute.
"""

import contextlib
import posixpath
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, SaveMode
from ray.data.checkpoint import CheckpointConfig
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError

from ka2l_ray.artifacts import Folder, StageError, Table
from ka2l_ray.attempts import Attempt
from ka2l_ray.config import Pool
from ka2l_ray.models.tally import Tally
from ka2l_ray.runtime import ActorMetrics, one_line, telling

CHECKPOINT = "_checkpoint"
NO_PROGRESS_S = 2 * 3600
"""A stage that finishes no block for so long is ended. Nodes take minutes to come, large models to load, and one block may take an hour."""
BLOCKS_PER_ACTOR = 4
"""At least so many blocks for each actor that a pool may have, so that none stands idle while others work through a small table."""
ACTOR_RESTARTS = 5
"""Ray's default is for ever, so that one batch that kills its process would be tried without end."""


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
    """One pass over a table. `keep` are source columns carried into the target beside `id`."""

    name: str
    actor: Callable[..., Actor]
    arguments: Mapping[str, Any]
    columns_in: tuple[str, ...]
    columns_out: pa.Schema
    pool: Pool
    keep: tuple[str, ...] = ()
    max_error_fraction: float = 0.01


class GuardedActor:
    """Runs the actor on a block. Rows that it names in `error` lose their columns; where it raises instead, the block goes row by row,
    so that in either case a bad row costs only itself."""

    def __init__(
        self, stage: str, make: Callable[..., Actor], arguments: Mapping[str, Any], carried: tuple[str, ...], columns_out: pa.Schema
    ) -> None:
        self._actor = make(**arguments)
        self._carried = carried
        self._out = columns_out
        self._metrics = ActorMetrics(stage, self._actor.tally) if isinstance(self._actor, Tallied) else None

    def __call__(self, batch: pa.Table) -> pa.Table:
        with self._metrics.call() if self._metrics else contextlib.nullcontext():
            return self._block(batch)

    def _block(self, batch: pa.Table) -> pa.Table:
        try:
            return self._finish(batch, self._actor(batch))
        except Exception as error:  # the actor's code and data are the user's: any failure becomes a row's `error`
            if batch.num_rows == 1:
                return self._failed(batch, error)
        return pa.concat_tables([self._one(batch.slice(i, 1)) for i in range(batch.num_rows)], promote_options="permissive")

    def _one(self, row: pa.Table) -> pa.Table:
        try:
            return self._finish(row, self._actor(row))
        except Exception as error:  # as above
            return self._failed(row, error)

    def _failed(self, row: pa.Table, error: Exception) -> pa.Table:
        nulls = {f.name: pa.nulls(1, f.type) for f in self._out}
        return self._finish(row, {**nulls, "error": [f"{type(error).__name__}: {error}"]})

    def _finish(self, batch: pa.Table, added: Mapping[str, Any]) -> pa.Table:
        columns: dict[str, Any] = {name: batch[name] for name in self._carried}
        error = pa.array(added.get("error", [None] * batch.num_rows), pa.string())
        kept = pa.array([i if fine else None for i, fine in enumerate(error.is_null().to_pylist())], pa.int64())
        for column in self._out:
            values = added[column.name]
            array = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values, column.type)
            columns[column.name] = array.take(kept) if kept.null_count else array
        return pa.table(columns | {"error": error})


def run_stage(stage: Stage, source: Table, target: Table, part: str | None = None) -> dict[str, Any]:
    """Run a stage unless its table is done; returns the manifest (`rows_in`, `rows`, `errors`, `seconds`).

    Raises `StageError` for a missing column (before any actor starts), for lost or doubled rows, for too many failed rows,
    and for an actor that cannot load or keeps dying.
    """
    if target.is_done:
        (target.folder / CHECKPOINT).delete()  # there after a kill between manifest and cleaning
        return target.manifest()
    files = source.files(part)
    rows_in = source.rows if part is None else source.part_rows(part)
    carried = tuple(dict.fromkeys(("id", *stage.keep)))
    wanted = tuple(dict.fromkeys((*carried, *stage.columns_in)))
    _check_columns(stage, source, wanted)
    data, checkpoints = target.folder.make() / "data", target.folder / CHECKPOINT
    attempt = Attempt.begin(checkpoints, data)
    block = block_rows(stage.pool, rows_in)
    started = time.monotonic()
    if rows_in:
        with _context(attempt.checkpoint), telling(stage.name, lambda: _progress(attempt, block, rows_in)):
            try:
                _execute(stage, source.folder, files, wanted, carried, data, block)
            except (RayError, ExecutionTimeoutError) as error:
                raise StageError(f"{stage.name}: {_why(stage, block, error)}") from error
    committed = attempt.files()
    rows, errors = sum(f["rows"] for f in committed), _write_errors(target.folder, data, committed)
    if rows != rows_in:
        mend = "run again, which does what is missing" if rows < rows_in else f"delete {target.folder.path} and run again"
        raise StageError(f"{stage.name}: {rows_in:,} rows in, {rows:,} rows out; {mend}")
    if errors > stage.max_error_fraction * max(rows_in, 1):
        first = next(_error_rows(data, committed))
        raise StageError(
            f"{stage.name}: {errors:,} of {rows_in:,} rows failed, more than run.max_error_fraction allows "
            f"({stage.max_error_fraction:g}); see {target.folder.path}/errors. First: row {first['id']}: {first['error']}. "
            f"Mend the cause, then delete {target.folder.path} and run again"
        )
    listed = [f | {"name": f"data/{f['name']}"} for f in committed]
    target.close(listed, rows_in=rows_in, errors=errors, seconds=round(time.monotonic() - started, 3))
    checkpoints.delete()
    return target.manifest()


def block_rows(pool: Pool, rows_in: int) -> int:
    """Rows of a block: `pool.block_rows`, fewer where the table would give actors of the pool too few blocks.

    A function of the whole table, so that a run which goes on cuts what is left as before.
    """
    return max(1, min(pool.block_rows, -(-rows_in // (BLOCKS_PER_ACTOR * pool.max))))


def _why(stage: Stage, block: int, error: Exception) -> str:
    if isinstance(error, ExecutionTimeoutError):
        return (
            f"no block of {block} rows was finished within {NO_PROGRESS_S / 3600:g} h. Either the cluster has no free "
            f"{stage.pool.cpus:g} CPUs and {stage.pool.gpus:g} GPUs for an actor, or a block takes longer: lower `block_rows` of its pool"
        )
    return one_line(error)


def _progress(attempt: Attempt, block: int, rows_in: int) -> str:
    return f"about {min(attempt.rows_about(block), rows_in):,} of {rows_in:,} rows committed"


def _check_columns(stage: Stage, source: Table, wanted: tuple[str, ...]) -> None:
    there = source.schema().names
    if missing := [c for c in wanted if c not in there]:
        raise StageError(f"{stage.name}: {source.folder.path} lacks the column(s) {', '.join(missing)}; it has {', '.join(there)}")


def _execute(
    stage: Stage, folder: Folder, files: list[str], wanted: tuple[str, ...], carried: tuple[str, ...], data: Folder, block: int
) -> None:
    pool = stage.pool
    rows = ray.data.read_parquet(
        files, filesystem=folder.filesystem, columns=list(wanted), partitioning=None, override_num_blocks=len(files)
    )
    # Ray has no named parameter for restarts yet; before 2.64 takes this one away, `ray` stays pinned below it.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    mapped = rows.repartition(target_num_rows_per_block=block).map_batches(
        GuardedActor,  # type: ignore[arg-type]
        fn_constructor_args=(stage.name, stage.actor, dict(stage.arguments), carried, stage.columns_out),
        batch_size=block,  # the actor sorts a block by length and cuts it by `batch_rows` and `batch_tokens` itself
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=pool.min, max_size=pool.max),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
        max_restarts=ACTOR_RESTARTS,
        max_task_retries=ACTOR_RESTARTS,
    )
    mapped.write_parquet(data.path, filesystem=data.filesystem, mode=SaveMode.APPEND)


@contextlib.contextmanager
def _context(checkpoint: Folder) -> Iterator[None]:
    """Settings of the one pipeline inside; they are process-wide, so they are put back: row-level resume, a limit on standing still, and
    Ray Data's reader of one file per task. Its newer reader packs files up to 128 MiB into one, so that a corpus of small files is read
    and cut by a single worker, whose memory grows with it (`tests/benchmarks/bench_pool.py`)."""
    context = DataContext.get_current()
    before = (context.checkpoint_config, context.execution_no_progress_timeout_s, context.use_datasource_v2)
    context.use_datasource_v2 = False
    config = CheckpointConfig(
        id_column="id",
        checkpoint_path=checkpoint.path,
        override_filesystem=checkpoint.filesystem,
        delete_checkpoint_on_success=False,  # the manifest comes first: a kill between the two must lose nothing
    )
    # Of the actors that leave out what is done, Ray would start up to ten, each with 1 GiB set aside: on a small machine they never start.
    config.checkpoint_actor_pool_max_size, config.checkpoint_actor_memory_bytes = 1, 0
    context.checkpoint_config = config
    context.execution_no_progress_timeout_s = NO_PROGRESS_S
    try:
        yield
    finally:
        context.checkpoint_config, context.execution_no_progress_timeout_s, context.use_datasource_v2 = before


def _error_rows(data: Folder, files: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    """Failed rows; of files whose statistics show none, nothing is read."""
    paths = [posixpath.join(data.path, f["name"]) for f in files]
    failed = ds.dataset(paths, filesystem=data.filesystem).scanner(columns=["id", "error"], filter=ds.field("error").is_valid())
    for batch in failed.to_batches():
        yield from batch.to_pylist()


def _write_errors(folder: Folder, data: Folder, files: list[dict[str, Any]]) -> int:
    """Derive `errors/` from the table's failed rows, one file per data file that has any; returns their number."""
    (folder / "errors").delete()
    count = 0
    for file in files:
        if failed := list(_error_rows(data, [file])):
            count += len(failed)
            pq.write_table(pa.Table.from_pylist(failed), ((folder / "errors").make() / file["name"]).path, filesystem=folder.filesystem)
    return count
