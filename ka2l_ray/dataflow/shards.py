"""What a shard is while it flows: read and prepared by one task, written by another.

In: a range of a table's rows. Out: one row of Ray Data whose columns are lists; at the end one file, whole or not at all.
A shard is packed into a single row because Ray cuts and joins blocks by rows and bytes, and this one must stay what it is.
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
"""Columns of a packed shard beside its rows': its `Head`."""
ERROR = schema.ERROR.name


class Prepare(Protocol):
    """Adds columns on a CPU. It travels to tasks, so it is small; `load` gets what it needs, once per process."""

    columns: ClassVar[pa.Schema]

    def load(self) -> object: ...

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]: ...


class Columns(Protocol):
    """What a stage says of its columns."""

    @property
    def carried(self) -> tuple[str, ...]: ...
    @property
    def columns_out(self) -> pa.Schema: ...
    @property
    def prepare(self) -> Prepare | None: ...


@dataclass(frozen=True)
class Entry:
    """A shard to be done: its source files with the rows [start, stop) of each, and the file whose failed rows are done anew, if any."""

    shard: int
    sources: tuple[tuple[str, int, int], ...]
    old: str | None


@dataclass(frozen=True)
class Reading:
    """What tasks need to read any shard of an attempt and to write its file."""

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
    """The files that hold rows [start, stop) of a table, with the rows of each; `ends` are the numbers of rows up to each file's end."""
    found = []
    for n in range(bisect.bisect_right(ends, start), len(paths)):
        first = ends[n - 1] if n else 0
        if first >= stop:
            break
        if ends[n] > first:
            found.append((paths[n], max(start - first, 0), min(stop, ends[n]) - first))
    return tuple(found)


def read(numbers: pa.Table, reading: Reading, stage: Columns) -> pa.Table:
    """The task that reads a shard (`numbers` holds which entry of `reading`) and prepares the rows that have not failed before."""
    entry = reading.entries[numbers.column(0)[0].as_py()]
    rows = pa.concat_tables([_rows(reading, *span) for span in entry.sources], promote_options="permissive")
    if ERROR not in rows.column_names:
        rows = rows.append_column(schema.ERROR, pa.nulls(rows.num_rows, pa.string()))
    if entry.old is not None:
        rows = rows.filter(pc.is_in(rows["id"], _failed_ids(reading.data / entry.old)))  # pyright: ignore
    head = Head(entry.shard, tuple(rows["id"].filter(rows[ERROR].is_valid()).to_pylist()), entry.old is not None)
    if stage.prepare is None:
        return packed(head, rows)
    columns = stage.prepare.columns
    stage.prepare.load()  # what fails here fails for all rows, and is no row's error
    try:
        done, at = _of_the_others(partial(each_row, stage.prepare, columns=columns, chosen=head.again), rows, columns)
    except ActorBroken as broken:
        raise StageError(f"no row of shard {entry.shard} can be prepared: {broken}") from broken
    for name in columns.names:
        rows = rows.append_column(name, _placed(done.columns[name], at))
    return packed(head, _with_errors(rows, done, at))


def _rows(reading: Reading, path: str, start: int, stop: int) -> pa.Table:
    """Rows [start, stop) of a file, of which no other row group is read."""
    with pq.ParquetFile(path, filesystem=reading.source.filesystem) as file:
        ends = list(itertools.accumulate(file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)))
        groups = [n for n, end in enumerate(ends) if end > start and (ends[n - 1] if n else 0) < stop]
        first = ends[groups[0] - 1] if groups[0] else 0
        return file.read_row_groups(groups, columns=list(reading.wanted)).slice(start - first, stop - start)


def _failed_ids(file: Folder) -> pa.ChunkedArray:
    with pq.ParquetFile(file.path, filesystem=file.filesystem) as opened:
        table = opened.read(columns=["id", ERROR])
    return table.filter(table[ERROR].is_valid())["id"]


def through(work: Callable[[pa.Table], Done], rows: pa.Table, stage: Columns) -> pa.Table:
    """Rows through an actor: carried columns, its own, and `error`. A row that failed before keeps its error, and is not shown to it."""
    done, at = _of_the_others(work, rows, stage.columns_out)
    columns = {name: rows[name] for name in stage.carried}
    columns |= {name: _placed(done.columns[name], at) for name in stage.columns_out.names}
    return _with_errors(pa.table(columns | {ERROR: rows[ERROR]}), done, at)


def lost(rows: pa.Table, carried: Sequence[str], columns: pa.Schema, why: str) -> pa.Table:
    """Rows that are given up."""
    nulls = {f.name: pa.nulls(rows.num_rows, f.type) for f in columns}
    return pa.table({name: rows[name] for name in carried} | nulls | {ERROR: pc.fill_null(rows[ERROR], why)})  # pyright: ignore


def _of_the_others(work: Callable[[pa.Table], Done], rows: pa.Table, columns: pa.Schema) -> tuple[Done, pa.Array]:
    """What work does of the rows that have no error yet, and for each row its number among them, null where it has one."""
    fine = rows[ERROR].is_null().to_pylist()
    numbers = iter(range(len(fine)))
    at = pa.array([next(numbers) if f else None for f in fine], pa.int64())
    if not any(fine):
        return Done({f.name: pa.nulls(1, f.type) for f in columns}, {}), at
    return work(rows if all(fine) else rows.filter(pa.array(fine))), at


def _placed(values: pa.Array | pa.ChunkedArray, at: pa.Array) -> pa.Array:
    """Values of the rows that were worked on, at all rows' places."""
    array = _array(values)
    return array.take(at) if at.null_count or len(array) != len(at) else array


def _array(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    combined = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined


def _with_errors(rows: pa.Table, done: Done, at: pa.Array) -> pa.Table:
    """The rows with the errors that work gave them; `at` as above."""
    if not done.failed:
        return rows
    errors = [
        e if n is None else done.failed.get(n) for e, n in zip(rows[ERROR].to_pylist(), at.to_pylist(), strict=True)
    ]
    return rows.set_column(rows.column_names.index(ERROR), schema.ERROR, pa.array(errors, pa.string()))


def _failed(rows: pa.Table) -> int:
    return rows.num_rows - rows[ERROR].null_count


@dataclass(frozen=True)
class Head:
    """What is known of a shard beside its rows."""

    shard: int
    failed_before: tuple[str, ...] = ()
    """Ids of rows that failed in an earlier stage."""
    again: bool = False
    """Whether its rows are those that failed in this stage before."""


def packed(head: Head, rows: pa.Table) -> pa.Table:
    """A shard as one row, each column of its rows as one list. No value is copied."""
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
    """The task that writes a shard's file: to memory first, then whole or not at all. Returns its name and the first error of this stage.

    Where only failed rows were done anew, they take the places of the old ones, and all go to a new file.
    """
    head, rows = unpacked(packed_row)
    entry, failed = reading.entry(head.shard), rows.filter(rows[ERROR].is_valid())
    own = failed.filter(pc.invert(pc.is_in(failed["id"], pa.array(head.failed_before, pa.string()))))  # pyright: ignore
    first = own.slice(0, 1)
    if entry.old is not None:
        rows = _merged(reading.data / entry.old, rows)
    file = ShardFile.new(head.shard, reading.attempt, _failed(rows), own.num_rows)
    buffer = pa.BufferOutputStream()
    pq.write_table(rows, buffer)
    (reading.data / file.name).write_bytes(buffer.getvalue())
    told = {"first_id": first["id"].to_pylist() or [None], "first_error": first[ERROR].to_pylist() or [None]}
    return pa.table({"name": [file.name]} | {k: pa.array(v, pa.string()) for k, v in told.items()})


def _merged(old: Folder, anew: pa.Table) -> pa.Table:
    with pq.ParquetFile(old.path, filesystem=old.filesystem) as opened:
        before = opened.read()
    place = {i: n for n, i in enumerate(anew["id"].to_pylist())}
    both = pa.concat_tables([before, anew.select(before.column_names)], promote_options="permissive")
    order = [before.num_rows + place[i] if i in place else n for n, i in enumerate(before["id"].to_pylist())]
    return both.take(order)
