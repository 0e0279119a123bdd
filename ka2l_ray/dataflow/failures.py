"""What an error means: one row fails, rows are retried in smaller batches, the actor is replaced, or the stage stops.

In: an error and the number of rows in the call that raised it. Out: a `Verdict`; how many rows and actors a stage may
lose before it stops.
Everything that runs rows through a model asks here, so that an error has the same consequence wherever it is raised.
Refuses to know: Ray, files, models. Loops execute what is decided here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum

import pyarrow as pa
import pyarrow.compute as pc

DATA_ERRORS = (ValueError, ArithmeticError, LookupError)
"""Errors that mean that a row's data are wrong, whichever process reads them. Where every row fails with another error,
it is the process that is broken."""
BROKEN_TYPES = frozenset({"AcceleratorError", "CudaError", "EngineDeadError"})
"""Error types (torch's for a device, vLLM's for its engine) after which nothing that a process computes can be
trusted."""
BROKEN_WORDS = (
    "CUDA error",
    "HIP error",
    "CUBLAS_STATUS",
    "CUDNN_STATUS",
    "cuDNN error",
    "device-side assert",
    "NCCL error",
)
MEMORY_TYPES = frozenset({"OutOfMemoryError", "MemoryError"})
MEMORY_WORDS = ("DefaultCPUAllocator: can't allocate memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
FLOOR_ROWS, FLOOR_SHARE = 5, 0.1
"""This many failed rows do not stop a stage if they are at most this share of it: one bad row of fifty is no reason
to."""
DEATHS_OF_A_SHARD = 2
"""Actors that one shard may kill before it is halved."""
DEATHS, DEATHS_PER_ACTOR, DEATHS_PER_SHARD = 16, 4, 2
"""Actors that a stage may lose: the larger of the first number and the second times the size of its pool, plus the
third times the number of finished shards. A machine that is taken away costs an actor too, so a stage that makes
progress may lose many."""
FOUND_PER_SHARD = 3
"""Rows per shard that may be found and given up without the deaths that it takes counting against the stage."""


class Verdict(StrEnum):
    """What happens next."""

    ROW = "row"
    """The row gets its error; the others go on."""
    RETRY_ROW = "retry row"
    """Its rows are retried in smaller batches: in halves where memory ran out, else one by one."""
    REPLACE_ACTOR = "replace the actor"
    """Its process ends; another takes its place and its rows."""


class ActorBroken(RuntimeError):
    """This process must not go on: its device or engine is broken, or every row fails in it."""


class BlockLost(ActorBroken):
    """Every row of a block failed even alone, with errors (by row) that have nothing to do with its data."""

    def __init__(self, errors: Mapping[int, Exception]) -> None:
        super().__init__(named(next(iter(errors.values()))))
        self.errors = errors


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host."""
    return _is(error, MEMORY_TYPES, MEMORY_WORDS)


def is_broken(error: BaseException) -> bool:
    """Whether an error means that its process is unusable, as after a CUDA error, which every later call raises
    again."""
    return isinstance(error, ActorBroken) or (not is_out_of_memory(error) and _is(error, BROKEN_TYPES, BROKEN_WORDS))


def _is(error: BaseException, types: frozenset[str], words: tuple[str, ...]) -> bool:
    return any(t.__name__ in types for t in type(error).__mro__) or any(w in str(error) for w in words)


def on_error(error: Exception, rows: int) -> Verdict:
    """What to do about a call of `rows` rows that raised `error`."""
    if is_broken(error):
        return Verdict.REPLACE_ACTOR
    return Verdict.RETRY_ROW if rows > 1 else Verdict.ROW


def on_lost_block(errors: Mapping[int, Exception]) -> Verdict:
    """What to do about a block whose every row failed alone: wrong data and too little memory are the rows' problem,
    anything else is the actor's."""
    own = [e for e in errors.values() if not isinstance(e, DATA_ERRORS) and not is_out_of_memory(e)]
    return Verdict.REPLACE_ACTOR if own and len(own) == len(errors) else Verdict.ROW


def most_deaths(actors: int, finished: int, found: int = 0, least: int = DEATHS) -> int:
    """How many actors a stage may lose, with a pool of `actors` and `finished` shards. `found` deaths led to rows that
    were given up; `least` are always allowed."""
    return max(least, DEATHS_PER_ACTOR * actors) + DEATHS_PER_SHARD * finished + found


def most_errors(rows: int, max_error_fraction: float) -> int:
    """How many failed rows are allowed: a share of `rows`, with a floor for small tables; none where the share is 0."""
    if not max_error_fraction:
        return 0
    return max(int(max_error_fraction * rows), min(FLOOR_ROWS, int(FLOOR_SHARE * rows)))


def named(error: BaseException) -> str:
    """An error as text for the column `error`."""
    return f"{type(error).__name__}: {error}"


Work = Callable[[pa.Table], Mapping[str, Iterable[object]]]
"""What is done with rows: returns columns and may return `error`, a message per failed row and null for the others."""


def each_row(work: Work, rows: pa.Table, columns: pa.Schema, chosen: bool = False) -> pa.Table:
    """Work on all rows together and, where that raises, on each alone, so that a bad row fails only itself.

    Returns `columns` (states may be narrower) and `error`; the columns of a failed row are null. Raises `ActorBroken`
    where the process must not go on. If all rows fail, that says nothing about the process where there is only one
    row, or where they were `chosen` because they failed before.
    """
    says_nothing = chosen or rows.num_rows == 1
    done = _or_its_error if says_nothing else _result
    whole = done(work, rows, columns)
    if isinstance(whole, pa.Table):
        return whole
    alone = range(rows.num_rows) if rows.num_rows > 1 else ()
    parts = [done(work, rows.slice(n, 1), columns) for n in alone] or [whole]
    raised = {n: part for n, part in enumerate(parts) if isinstance(part, Exception)}
    if len(raised) == len(parts) and not says_nothing and on_lost_block(raised) == Verdict.REPLACE_ACTOR:
        raise BlockLost(raised) from whole
    tables = [part if isinstance(part, pa.Table) else failed(columns, [named(part)]) for part in parts]
    return pa.concat_tables(tables, promote_options="permissive")


def failed(columns: pa.Schema, errors: Sequence[str | None]) -> pa.Table:
    """Rows without values, each with its error."""
    return pa.table({f.name: pa.nulls(len(errors), f.type) for f in columns} | {"error": pa.array(errors, pa.string())})


def _result(work: Work, rows: pa.Table, columns: pa.Schema) -> pa.Table | Exception:
    """What work returns, or the error that it raised unless that ends the process."""
    try:
        return _typed(work(rows), rows.num_rows, columns)
    except (BlockLost, ActorBroken):
        raise
    except Exception as error:  # an actor's code and data may raise anything
        if on_error(error, rows.num_rows) == Verdict.REPLACE_ACTOR:
            raise ActorBroken(named(error)) from error
        return error


def _or_its_error(work: Work, rows: pa.Table, columns: pa.Schema) -> pa.Table | Exception:
    """As `_result`, and where a block is lost the first error of it: which row's it is need not be known, because a
    block may be of parts of rows."""
    try:
        return _result(work, rows, columns)
    except BlockLost as lost:
        return next(iter(lost.errors.values()))


def _typed(result: Mapping[str, Iterable[object]], rows: int, columns: pa.Schema) -> pa.Table:
    """What work returned, in the types of `columns`; failed rows are null."""
    errors = result.get("error") or [None] * rows
    kept = pa.array([n if e is None else None for n, e in enumerate(errors)], pa.int64())
    arrays = {}
    for column in columns:
        values = result[column.name]
        is_array = isinstance(values, (pa.Array, pa.ChunkedArray))
        array: pa.Array | pa.ChunkedArray = values if is_array else pa.array(values, column.type)  # pyright: ignore
        if len(array) != rows:
            raise ActorBroken(f"{column.name}: {len(array)} values for {rows} rows")
        arrays[column.name] = pc.take(array, kept) if kept.null_count else array
    return pa.table(arrays | {"error": pa.array(errors, pa.string())})
