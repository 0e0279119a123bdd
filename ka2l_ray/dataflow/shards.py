"""A shard on its way: read and prepared by one task, worked on by an actor, written by another task.

In: a range of a table's rows. Out: one row of Ray Data whose columns are lists; at the end one file, written whole or
not at all. A shard is packed into a single row because Ray cuts and joins blocks by rows and bytes, and a shard must
stay in one piece.
Refuses to know: Ray, what actors compute.
"""

import bisect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ka2l_ray import schema
from ka2l_ray.dataflow.attempts import Attempt, ShardFile
from ka2l_ray.dataflow.failures import ActorBroken, each_row, failed
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.parquet import open_parquet
from ka2l_ray.dataflow.storage import FILES_AT_ONCE, Folder
from ka2l_ray.errors import StageError

NUMBER, BEFORE, AGAIN = "shard", "failed_before", "again"
"""Columns of a packed shard besides those of its rows: its `Head`."""
OUTCOME = pa.schema([("name", pa.string()), ("first_id", pa.string()), ("first_error", pa.string())])
"""What `write` returns of a shard."""
ERROR = schema.ERROR.name


class Prepare(Protocol):
    """Adds columns on a CPU. It is sent to tasks, so it is small; `load` fetches what it needs, once per process."""

    columns: ClassVar[pa.Schema]

    def load(self) -> object: ...

    def __call__(self, batch: pa.Table) -> Mapping[str, Iterable[object]]: ...


@dataclass(frozen=True)
class Entry:
    """A shard to be done: its source files with the rows [start, stop) of each."""

    shard: int
    sources: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Reading:
    """What tasks need to know to read any shard of an attempt and to write its file."""

    source: Folder
    wanted: tuple[str, ...]
    data: Folder
    attempt: str
    entries: tuple[Entry, ...]
    old: Mapping[int, str]
    """Of the shards whose failed rows alone are repeated: the file that these are in."""

    @classmethod
    def of(cls, source: Table, part: str | None, wanted: Sequence[str], attempt: Attempt, data: Folder) -> "Reading":
        names = (*wanted, *([ERROR] if ERROR in source.schema().names and ERROR not in wanted else []))
        paths, bounds = source.files(part), [0, *itertools.accumulate(f["rows"] for f in source.entries(part))]
        old = {n: attempt.counted[n].name for n in attempt.again}
        entries = tuple(Entry(n, _spans(paths, bounds, *attempt.shards.span(n))) for n in attempt.missing)
        return cls(source.folder, names, data, attempt.token, entries, old)


def _spans(paths: Sequence[str], bounds: Sequence[int], start: int, stop: int) -> tuple[tuple[str, int, int], ...]:
    """The files that contain rows [start, stop) of a table, with the range in each."""
    return tuple(
        (paths[n], max(start - bounds[n], 0), min(stop, bounds[n + 1]) - bounds[n])
        for n in _covering(bounds, start, stop)
        if bounds[n] < bounds[n + 1]
    )


def _covering(bounds: Sequence[int], start: int, stop: int) -> range:
    """Numbers of the parts that contain rows [start, stop); part n has the rows [bounds[n], bounds[n + 1])."""
    return range(bisect.bisect_right(bounds, start) - 1, bisect.bisect_left(bounds, stop))


def read(numbers: pa.Table, reading: Reading, prepare: Prepare | None) -> pa.Table:
    """The task that reads a shard and prepares those of its rows that have not failed before.

    `numbers` has one value: the number of the entry of `reading`. Returns the packed shard. Raises `StageError` where
    preparing fails for reasons that have nothing to do with the rows.
    """
    entry = reading.entries[numbers.column(0)[0].as_py()]
    rows = pa.concat_tables([_rows(reading, *span) for span in entry.sources], promote_options="permissive")
    if ERROR not in rows.column_names:
        rows = rows.append_column(schema.ERROR, pa.nulls(rows.num_rows, pa.string()))
    if old := reading.old.get(entry.shard):
        rows = rows.filter(pc.is_in(rows["id"], failed_rows(reading.data / old)["id"]))  # pyright: ignore
    head = Head(entry.shard, tuple(rows["id"].filter(rows[ERROR].is_valid()).to_pylist()), old is not None)
    if prepare is not None:
        prepare.load()  # a failure here is no single row's
        work = partial(each_row, prepare, columns=prepare.columns, chosen=head.again)
        try:
            rows = _beside(rows, _through(work, rows, prepare.columns))
        except ActorBroken as broken:
            raise StageError(f"no row of shard {entry.shard} can be prepared: {broken}") from broken
    return packed(head, rows)


def _rows(reading: Reading, path: str, start: int, stop: int) -> pa.Table:
    """Rows [start, stop) of a file; only the row groups that contain them are read."""
    with open_parquet(Folder(reading.source.filesystem, path)) as file:
        lengths = (file.metadata.row_group(n).num_rows for n in range(file.num_row_groups))
        bounds = [0, *itertools.accumulate(lengths)]
        groups = _covering(bounds, start, stop)
        rows = file.read_row_groups(list(groups), columns=list(reading.wanted))
        return rows.slice(start - bounds[groups[0]], stop - start)


def failed_rows(file: Folder) -> pa.Table:
    """`id` and `error` of the failed rows in a shard's file."""
    with open_parquet(file) as opened:
        table = opened.read(columns=["id", ERROR])
    return table.filter(table[ERROR].is_valid())


def write_errors(folder: Folder, data: Folder, files: Iterable[ShardFile]) -> None:
    """Write the failed rows of a table's files, one file per data file that has any; there is no folder without any."""
    folder.delete()
    bad = [f for f in files if f.errors]

    def write_of(file: ShardFile) -> None:
        rows, name = failed_rows(data / file.name), f"{file.shard:06d}.parquet"
        pq.write_table(rows, (folder / name).path, filesystem=folder.filesystem)

    if bad:
        folder.make()
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            list(pool.map(write_of, bad))


def through(work: Callable[[pa.Table], pa.Table], rows: pa.Table, carried: Sequence[str], added: pa.Schema) -> pa.Table:
    """Rows through an actor: carried columns, added ones, and `error`. The actor does not see rows that failed before;
    they keep their error."""
    return _beside(rows.select(carried), _through(work, rows, added))


def lost(rows: pa.Table, carried: Sequence[str], added: pa.Schema, why: str) -> pa.Table:
    """Rows that are given up, as `through` would return them."""
    return through(lambda alive: failed(added, [why] * alive.num_rows), rows, carried, added)


def _through(work: Callable[[pa.Table], pa.Table], rows: pa.Table, columns: pa.Schema) -> pa.Table:
    """`columns` and `error` of all rows: what work makes of those that have no error yet, and the errors of the
    others."""
    before = rows[ERROR].to_pylist()
    fine = [error is None for error in before]
    if not any(fine):
        return failed(columns, before)
    if all(fine):
        return work(rows)
    numbers = itertools.count()
    places = pa.array([next(numbers) if f else None for f in fine], pa.int64())
    spread = work(rows.filter(pa.array(fine))).take(places)
    return _beside(spread, pa.table({ERROR: pc.coalesce(rows[ERROR], spread[ERROR])}))  # pyright: ignore


def _beside(left: pa.Table, right: pa.Table) -> pa.Table:
    """The columns of two tables of as many rows; where both have one, that of the right."""
    return pa.table({name: table[name] for table in (left, right) for name in table.column_names})


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
        values = rows[name].combine_chunks()
        columns[name] = pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)
    return pa.table(columns)


def unpacked(row: pa.Table) -> tuple[Head, pa.Table]:
    """The rows of a packed shard."""
    names = [name for name in row.column_names if name not in (NUMBER, BEFORE, AGAIN)]
    columns = {name: row[name].combine_chunks()[0].values for name in names}
    return Head(row[NUMBER][0].as_py(), tuple(row[BEFORE][0].as_py()), row[AGAIN][0].as_py()), pa.table(columns)


def write(packed_row: pa.Table, reading: Reading) -> pa.Table:
    """The task that writes a shard's file: to memory first, then whole or not at all.

    Where only failed rows were repeated, they replace the old ones, and all rows go to a new file. Returns one row:
    the file's `name`, and `first_id` and `first_error` of the first row that failed in this stage (null where none
    did).
    """
    head, rows = unpacked(packed_row)
    own = failed_here(head, rows)
    if old := reading.old.get(head.shard):
        rows = _merged(reading.data / old, rows)
    file = ShardFile.new(head.shard, reading.attempt, rows.num_rows - rows[ERROR].null_count, own.num_rows)
    buffer = pa.BufferOutputStream()
    pq.write_table(rows, buffer)
    (reading.data / file.name).write_bytes(buffer.getvalue())
    first = own.select(["id", ERROR]).slice(0, 1).to_pylist() or [{"id": None, ERROR: None}]
    return pa.table({"name": [file.name], "first_id": [first[0]["id"]], "first_error": [first[0][ERROR]]}, OUTCOME)


def failed_here(head: Head, rows: pa.Table) -> pa.Table:
    """The rows of a shard that failed in this stage, not in an earlier one."""
    bad = rows.filter(rows[ERROR].is_valid())
    return bad.filter(pc.invert(pc.is_in(bad["id"], pa.array(head.failed_before, pa.string()))))  # pyright: ignore


def _merged(old: Folder, repeated: pa.Table) -> pa.Table:
    with open_parquet(old) as opened:
        before = opened.read()
    place = {i: n for n, i in enumerate(repeated["id"].to_pylist())}
    both = pa.concat_tables([before, repeated.select(before.column_names)], promote_options="permissive")
    order = [before.num_rows + place[i] if i in place else n for n, i in enumerate(before["id"].to_pylist())]
    return both.take(order)
