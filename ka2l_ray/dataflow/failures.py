"""What an error means: one row fails, rows are retried in smaller batches, the actor is replaced, or the stage stops.

In: an error and the number of rows in the call that raised it; counts of what has failed so far. Out: a `Verdict`.
Everything that runs rows through a model asks here, so that an error has the same consequence wherever it is raised.
Refuses to know: Ray, files, models. Loops execute what is decided here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pyarrow as pa

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
    STOP_STAGE = "stop the stage"


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


def on_death(deaths: int, actors: int, finished: int, found: int = 0, least: int = DEATHS) -> Verdict:
    """Whether a stage goes on after `deaths` of its actors, with a pool of `actors` and `finished` shards. `found`
    deaths led to rows that were given up; `least` are always allowed."""
    most = max(least, DEATHS_PER_ACTOR * actors) + DEATHS_PER_SHARD * finished + found
    return Verdict.STOP_STAGE if deaths > most else Verdict.REPLACE_ACTOR


def on_failed_rows(failed: int, rows: int, max_error_fraction: float) -> Verdict:
    """Whether a stage of `rows` rows goes on after `failed` of them have failed."""
    return Verdict.STOP_STAGE if failed > most_errors(rows, max_error_fraction) else Verdict.ROW


def most_errors(rows: int, max_error_fraction: float) -> int:
    """How many failed rows are allowed: a share of `rows`, with a floor for small tables; none where the share is 0."""
    if not max_error_fraction:
        return 0
    return max(int(max_error_fraction * rows), min(FLOOR_ROWS, int(FLOOR_SHARE * rows)))


def named(error: BaseException) -> str:
    """An error as text for the column `error`."""
    return f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class Done:
    """The result for some rows: columns by name, and by number the error of each row that failed; its columns are
    null."""

    columns: Mapping[str, Any]
    failed: Mapping[int, str]


def each_row(
    work: Callable[[pa.Table], Mapping[str, Any]], rows: pa.Table, columns: pa.Schema, chosen: bool = False
) -> Done:
    """Work on all rows together and, where that raises, on each alone, so that a bad row fails only itself.

    `work` returns `columns`, and may report failed rows in `error`. Raises `ActorBroken` where the process must not
    go on. If all rows fail, that says nothing about the process where there is only one row, or where they were
    `chosen` because they failed before.
    """
    try:
        return _each_row(work, rows, columns)
    except BlockLost as lost:
        if rows.num_rows > 1 and not chosen:
            raise
        return Done(
            {f.name: pa.nulls(rows.num_rows, f.type) for f in columns}, {n: named(e) for n, e in lost.errors.items()}
        )


def _each_row(work: Callable[[pa.Table], Mapping[str, Any]], rows: pa.Table, columns: pa.Schema) -> Done:
    try:
        return _done(work(rows), rows.num_rows, columns)
    except Exception as error:  # an actor's code and data may raise anything
        if isinstance(error, BlockLost):
            raise
        if on_error(error, rows.num_rows) == Verdict.REPLACE_ACTOR:
            raise ActorBroken(named(error)) from error
        first = error
    parts, raised = ([None], {0: first}) if rows.num_rows == 1 else _one_by_one(work, rows, columns)
    if len(raised) == rows.num_rows and on_lost_block(raised) == Verdict.REPLACE_ACTOR:
        raise BlockLost(raised) from first
    return _joined(parts, raised, columns)


def _one_by_one(
    work: Callable[[pa.Table], Mapping[str, Any]], rows: pa.Table, columns: pa.Schema
) -> tuple[list[Done | None], dict[int, Exception]]:
    parts: list[Done | None] = []
    raised: dict[int, Exception] = {}
    for n in range(rows.num_rows):
        try:
            parts.append(_done(work(rows.slice(n, 1)), 1, columns))
        except Exception as error:  # as above
            if on_error(error, 1) == Verdict.REPLACE_ACTOR:
                raise ActorBroken(named(error)) from error
            parts.append(None)
            raised[n] = error
    return parts, raised


def _done(result: Mapping[str, Any], rows: int, columns: pa.Schema) -> Done:
    """What work returned, in the types of `columns` (states may be narrower); failed rows are null."""
    errors = result.get("error") or [None] * rows
    failed = {n: e for n, e in enumerate(errors) if e is not None}
    kept = pa.array([None if n in failed else n for n in range(rows)], pa.int64())
    arrays = {}
    for column in columns:
        values = result[column.name]
        array = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values, column.type)
        arrays[column.name] = array.take(kept) if failed else array
    return Done(arrays, failed)


def _joined(parts: Sequence[Done | None], raised: Mapping[int, Exception], columns: pa.Schema) -> Done:
    """The results of rows that were worked on one by one, as one."""
    tables = [pa.table(dict(p.columns)) if p else _nulls(columns) for p in parts]
    table = pa.concat_tables(tables, promote_options="permissive")
    failed = {n: named(raised[n]) if p is None else p.failed[0] for n, p in enumerate(parts) if p is None or p.failed}
    return Done({name: table[name] for name in columns.names}, failed)


def _nulls(columns: pa.Schema) -> pa.Table:
    return pa.table({f.name: pa.nulls(1, f.type) for f in columns})
