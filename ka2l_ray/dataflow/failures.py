"""What an error means: one row is lost, it is tried again in smaller company, the actor is replaced, or the stage stops.

In: an error and how many rows shared the call that raised it; counts of what has failed so far. Out: a `Verdict`.
Everything that runs rows through a model asks here, so that the same error has the same consequence wherever it is raised.
Refuses to know: Ray, files, models. Loops execute what is decided here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pyarrow as pa

DATA_ERRORS = (ValueError, ArithmeticError, LookupError)
"""What says that a row's data are wrong, whichever process reads them. Any other error of every row is the process' own."""
BROKEN_TYPES = frozenset({"AcceleratorError", "CudaError", "EngineDeadError"})
"""Names of error types (torch's of a device, vLLM's of its engine) after which a process computes nothing right any more."""
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
"""So many failed rows end no stage, as long as they are at most this share of it: one bad row of fifty is no reason to stop."""
DEATHS_OF_A_SHARD = 2
"""Actors that one shard may end before it is halved."""
DEATHS, DEATHS_PER_ACTOR, DEATHS_PER_SHARD = 16, 4, 2
"""Actors that a stage may lose: the first number, or the second for each actor of its pool where that is more, and the third besides for
each shard that it has finished. A machine taken away costs an actor too, so a stage that gets on may lose many."""
FOUND_PER_SHARD = 3
"""For so many rows of each shard that are found and given up, what finding one takes is allowed besides."""


class Verdict(StrEnum):
    """What happens next."""

    ROW = "row"
    """The row gets its error, the others go on."""
    RETRY_ROW = "retry row"
    """Its rows are tried again in smaller company: after a lack of memory in halves, else one by one."""
    REPLACE_ACTOR = "replace the actor"
    """Its process ends, another takes its place and its rows."""
    STOP_STAGE = "stop the stage"


class ActorBroken(RuntimeError):
    """This process must not go on: its device or engine is broken, or every row fails in it."""


class BlockLost(ActorBroken):
    """Every row of a block failed alone, with errors (by row) that say nothing of its data."""

    def __init__(self, errors: Mapping[int, Exception]) -> None:
        super().__init__(named(next(iter(errors.values()))))
        self.errors = errors


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host."""
    return _is(error, MEMORY_TYPES, MEMORY_WORDS)


def is_broken(error: BaseException) -> bool:
    """Whether an error says that its process is of no use any more, as after a CUDA error, which every later call meets again."""
    return isinstance(error, ActorBroken) or (not is_out_of_memory(error) and _is(error, BROKEN_TYPES, BROKEN_WORDS))


def _is(error: BaseException, types: frozenset[str], words: tuple[str, ...]) -> bool:
    return any(t.__name__ in types for t in type(error).__mro__) or any(w in str(error) for w in words)


def on_error(error: Exception, rows: int) -> Verdict:
    """What becomes of the `rows` rows of a call that raised."""
    if is_broken(error):
        return Verdict.REPLACE_ACTOR
    return Verdict.RETRY_ROW if rows > 1 else Verdict.ROW


def on_lost_block(errors: Mapping[int, Exception]) -> Verdict:
    """What becomes of a block whose every row failed alone: wrong data and too little memory are the rows', all else is the actor's."""
    own = [e for e in errors.values() if not isinstance(e, DATA_ERRORS) and not is_out_of_memory(e)]
    return Verdict.REPLACE_ACTOR if own and len(own) == len(errors) else Verdict.ROW


def on_death(deaths: int, actors: int, finished: int, found: int = 0, least: int = DEATHS) -> Verdict:
    """Whether a stage goes on after `deaths` of its actors, with a pool of `actors` and so many shards finished; `found` deaths led to rows
    that were given up, and `least` are never too many."""
    most = max(least, DEATHS_PER_ACTOR * actors) + DEATHS_PER_SHARD * finished + found
    return Verdict.STOP_STAGE if deaths > most else Verdict.REPLACE_ACTOR


def on_failed_rows(failed: int, rows: int, max_error_fraction: float) -> Verdict:
    """Whether a stage of `rows` rows goes on after `failed` of them."""
    return Verdict.STOP_STAGE if failed > most_errors(rows, max_error_fraction) else Verdict.ROW


def most_errors(rows: int, max_error_fraction: float) -> int:
    """Failed rows that are allowed: a share of `rows`, with a floor for small tables; none where the share is 0."""
    if not max_error_fraction:
        return 0
    return max(int(max_error_fraction * rows), min(FLOOR_ROWS, int(FLOOR_SHARE * rows)))


def named(error: BaseException) -> str:
    """An error as it stands in a row."""
    return f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class Done:
    """What came of some rows: columns by name, and the error of each row that failed, by its number; such a row's columns hold no value."""

    columns: Mapping[str, Any]
    failed: Mapping[int, str]


def each_row(
    work: Callable[[pa.Table], Mapping[str, Any]], rows: pa.Table, columns: pa.Schema, chosen: bool = False
) -> Done:
    """Do the work of all rows together and, where that raises, of each alone, so that a bad row costs itself only.

    `work` returns the columns, and may name failed rows in `error`. Raises `ActorBroken` where the process must not go on. That all rows
    fail says nothing of the process where there is one alone, or where they are `chosen` because they failed before.
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
    except Exception as error:  # the actor's code and the data are the user's
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


def _done(found: Mapping[str, Any], rows: int, columns: pa.Schema) -> Done:
    """What work returned, in the types of `columns` (a state may come narrower); failed rows hold nulls."""
    errors = found.get("error") or [None] * rows
    failed = {n: e for n, e in enumerate(errors) if e is not None}
    kept = pa.array([None if n in failed else n for n in range(rows)], pa.int64())
    made = {}
    for column in columns:
        values = found[column.name]
        array = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values, column.type)
        made[column.name] = array.take(kept) if failed else array
    return Done(made, failed)


def _joined(parts: Sequence[Done | None], raised: Mapping[int, Exception], columns: pa.Schema) -> Done:
    """Rows that were done alone, in one piece."""
    tables = [pa.table(dict(p.columns)) if p else _nulls(columns) for p in parts]
    table = pa.concat_tables(tables, promote_options="permissive")
    failed = {n: named(raised[n]) if p is None else p.failed[0] for n, p in enumerate(parts) if p is None or p.failed}
    return Done({name: table[name] for name in columns.names}, failed)


def _nulls(columns: pa.Schema) -> pa.Table:
    return pa.table({f.name: pa.nulls(1, f.type) for f in columns})
