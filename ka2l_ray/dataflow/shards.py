"""A shard on its way: read and prepared by one task, worked on by an actor, written by another task.

In: a range of a table's rows. Out: one row of Ray Data whose columns are lists; at the end one file, written whole or
not at all. A shard is packed into a single row because Ray cuts and joins blocks by rows and bytes, and a shard must
stay in one piece.
Refuses to know: Ray, what actors compute.
"""

import bisect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ka2l_ray import schema
from ka2l_ray.dataflow.attempts import Attempt, ShardFile
from ka2l_ray.dataflow.failures import ActorBroken, Done, each_row
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import StageError

NUMBER, BEFORE, AGAIN = "shard", "failed_before", "again"
"""Columns of a packed shard besides those of its rows: its `Head`."""
ERROR = schema.ERROR.name


class Prepare(Protocol):
    """Adds columns on a CPU. It is sent to tasks, so it is small; `load` fetches what it needs, once per process."""

    columns: ClassVar[pa.Schema]

    def load(self) -> object: ...

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]: ...


class Columns(Protocol):
    """What a stage says about its columns."""

    @property
    def carried(self) -> tuple[str, ...]: ...
    @property
    def added(self) -> pa.Schema: ...
    @property
    def prepare(self) -> Prepare | None: ...


@dataclass(frozen=True)
class Entry:
    """A shard to be done: its source files with the rows [start, stop) of each and, where only failed rows are
    repeated, the file `old` that they are in."""

    shard: int
    sources: tuple[tuple[str, int, int], ...]
    old: str | None


@dataclass(frozen=True)
class Reading:
    """What tasks need to know to read any shard of an attempt and to write its file."""

    source: Folder
    wanted: tuple[str, ...]
    data: Folder
    attempt: str
    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, source: Table, part: str | None, wanted: Sequence[str], attempt: Attempt, data: Folder) -> "Reading":
        names = (*wanted, *([ERROR] if ERROR in source.schema().names and ERROR not in wanted else []))
        counts = [f["rows"] for f in source.entries(part)]
        ends, paths = list(itertools.accumulate(counts)), source.files(part)
        entries = tuple(
            Entry(
                n, _spans(paths, ends, *attempt.shards.span(n)), attempt.counted[n].name if n in attempt.again else None
            )
            for n in attempt.missing
        )
        return cls(source.folder, names, data, attempt.token, entries)

    def entry(self, shard: int) -> Entry:
        return self.entries[bisect.bisect_left(self.entries, shard, key=lambda e: e.shard)]


def _spans(paths: Sequence[str], ends: Sequence[int], start: int, stop: int) -> tuple[tuple[str, int, int], ...]:
    """The files that contain rows [start, stop) of a table, with the range in each; `ends` counts rows up to each
    file's end."""
    spans = []
    for n in range(bisect.bisect_right(ends, start), len(paths)):
        first = ends[n - 1] if n else 0
        if first >= stop:
            break
        if ends[n] > first:
            spans.append((paths[n], max(start - first, 0), min(stop, ends[n]) - first))
    return tuple(spans)


def read(numbers: pa.Table, reading: Reading, stage: Columns) -> pa.Table:
    """The task that reads a shard and prepares those of its rows that have not failed before.

    `numbers` has one value: the number of the entry of `reading`. Returns the packed shard. Raises `StageError` where
    preparing fails for reasons that have nothing to do with the rows.
    """
    entry = reading.entries[numbers.column(0)[0].as_py()]
    rows = pa.concat_tables([_rows(reading, *span) for span in entry.sources], promote_options="permissive")
    if ERROR not in rows.column_names:
        rows = rows.append_column(schema.ERROR, pa.nulls(rows.num_rows, pa.string()))
    if entry.old is not None:
        rows = rows.filter(pc.is_in(rows["id"], failed_rows(reading.data / entry.old)["id"]))  # pyright: ignore
    head = Head(entry.shard, tuple(rows["id"].filter(rows[ERROR].is_valid()).to_pylist()), entry.old is not None)
    if stage.prepare is None:
        return packed(head, rows)
    columns = stage.prepare.columns
    stage.prepare.load()  # a failure here is no single row's
    try:
        work = partial(each_row, stage.prepare, columns=columns, chosen=head.again)
        done, places = _without_failed(work, rows, columns)
    except ActorBroken as broken:
        raise StageError(f"no row of shard {entry.shard} can be prepared: {broken}") from broken
    for name in columns.names:
        rows = rows.append_column(name, _placed(done.columns[name], places))
    return packed(head, _with_errors(rows, done, places))


def _rows(reading: Reading, path: str, start: int, stop: int) -> pa.Table:
    """Rows [start, stop) of a file; only the row groups that contain them are read."""
    with pq.ParquetFile(path, filesystem=reading.source.filesystem) as file:
        ends = list(itertools.accumulate(file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)))
        groups = [n for n, end in enumerate(ends) if end > start and (ends[n - 1] if n else 0) < stop]
        first = ends[groups[0] - 1] if groups[0] else 0
        return file.read_row_groups(groups, columns=list(reading.wanted)).slice(start - first, stop - start)


def failed_rows(file: Folder) -> pa.Table:
    """`id` and `error` of the failed rows in a shard's file."""
    with pq.ParquetFile(file.path, filesystem=file.filesystem) as opened:
        table = opened.read(columns=["id", ERROR])
    return table.filter(table[ERROR].is_valid())


def through(work: Callable[[pa.Table], Done], rows: pa.Table, stage: Columns) -> pa.Table:
    """Rows through an actor: carried columns, added ones, and `error`. The actor does not see rows that failed before;
    they keep their error."""
    done, places = _without_failed(work, rows, stage.added)
    columns = {name: rows[name] for name in stage.carried}
    columns |= {name: _placed(done.columns[name], places) for name in stage.added.names}
    return _with_errors(pa.table(columns | {ERROR: rows[ERROR]}), done, places)


def lost(rows: pa.Table, stage: Columns, why: str) -> pa.Table:
    """Rows that are given up, as `through` would return them."""
    nulls = {f.name: pa.nulls(rows.num_rows, f.type) for f in stage.added}
    errors = {ERROR: pc.fill_null(rows[ERROR], why)}  # pyright: ignore
    return pa.table({name: rows[name] for name in stage.carried} | nulls | errors)


def _without_failed(work: Callable[[pa.Table], Done], rows: pa.Table, columns: pa.Schema) -> tuple[Done, pa.Array]:
    """What work makes of the rows that have no error yet, and each row's number among them, null where it has one."""
    fine = rows[ERROR].is_null().to_pylist()
    numbers = iter(range(len(fine)))
    places = pa.array([next(numbers) if f else None for f in fine], pa.int64())
    if not any(fine):
        return Done({f.name: pa.nulls(1, f.type) for f in columns}, {}), places
    return work(rows if all(fine) else rows.filter(pa.array(fine))), places


def _placed(values: pa.Array | pa.ChunkedArray, places: pa.Array) -> pa.Array:
    """Values of the rows that were worked on, spread over all rows."""
    array = _array(values)
    return array.take(places) if places.null_count or len(array) != len(places) else array


def _array(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    combined = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined


def _with_errors(rows: pa.Table, done: Done, places: pa.Array) -> pa.Table:
    """All rows with the errors that work reported; `places` as from `_without_failed`."""
    if not done.failed:
        return rows
    before = zip(rows[ERROR].to_pylist(), places.to_pylist(), strict=True)
    errors = [error if place is None else done.failed.get(place) for error, place in before]
    return rows.set_column(rows.column_names.index(ERROR), schema.ERROR, pa.array(errors, pa.string()))


@dataclass(frozen=True)
class Head:
    """What is known about a shard besides its rows."""

    shard: int
    failed_before: tuple[str, ...] = ()
    """Ids of rows that failed in an earlier stage."""
    again: bool = False
    """Whether its rows are only those that failed in this stage before."""


def packed(head: Head, rows: pa.Table) -> pa.Table:
    """A shard as one row: each column becomes a list. No value is copied."""
    columns = {
        NUMBER: pa.array([head.shard]),
        BEFORE: pa.array([head.failed_before], pa.list_(pa.string())),
        AGAIN: pa.array([head.again]),
    }
    for name in rows.column_names:
        values = _array(rows[name])
        columns[name] = pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)
    return pa.table(columns)


def unpacked(row: pa.Table) -> tuple[Head, pa.Table]:
    """The rows of a packed shard."""
    columns = {name: _array(row[name])[0].values for name in row.column_names if name not in (NUMBER, BEFORE, AGAIN)}
    return Head(row[NUMBER][0].as_py(), tuple(row[BEFORE][0].as_py()), row[AGAIN][0].as_py()), pa.table(columns)


def write(packed_row: pa.Table, reading: Reading) -> pa.Table:
    """The task that writes a shard's file: to memory first, then whole or not at all.

    Where only failed rows were repeated, they replace the old ones, and all rows go to a new file. Returns one row:
    the file's `name`, and `first_id` and `first_error` of the first row that failed in this stage (null where none
    did).
    """
    head, rows = unpacked(packed_row)
    entry, failed = reading.entry(head.shard), rows.filter(rows[ERROR].is_valid())
    own = failed.filter(pc.invert(pc.is_in(failed["id"], pa.array(head.failed_before, pa.string()))))  # pyright: ignore
    first = own.slice(0, 1)
    if entry.old is not None:
        rows = _merged(reading.data / entry.old, rows)
    file = ShardFile.new(head.shard, reading.attempt, rows.num_rows - rows[ERROR].null_count, own.num_rows)
    buffer = pa.BufferOutputStream()
    pq.write_table(rows, buffer)
    (reading.data / file.name).write_bytes(buffer.getvalue())
    outcome = {"first_id": first["id"].to_pylist() or [None], "first_error": first[ERROR].to_pylist() or [None]}
    return pa.table({"name": [file.name]} | {name: pa.array(value, pa.string()) for name, value in outcome.items()})


def _merged(old: Folder, repeated: pa.Table) -> pa.Table:
    with pq.ParquetFile(old.path, filesystem=old.filesystem) as opened:
        before = opened.read()
    place = {i: n for n, i in enumerate(repeated["id"].to_pylist())}
    both = pa.concat_tables([before, repeated.select(before.column_names)], promote_options="permissive")
    order = [before.num_rows + place[i] if i in place else n for n, i in enumerate(before["id"].to_pylist())]
    return both.take(order)
