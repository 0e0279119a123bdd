"""`shards`: a range of rows is read, carried and written whole, and failed rows are done anew in place. Without Ray."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ka2l_ray.dataflow import shards
from ka2l_ray.dataflow.attempts import Attempt, ShardFile, Shards
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import StageError

SCHEMA = pa.schema([("id", pa.string()), ("value", pa.int64())])


OUT = pa.schema([("doubled", pa.int64())])


def rows(start: int, stop: int) -> pa.Table:
    return pa.table({"id": [f"q{n}" for n in range(start, stop)], "value": list(range(start, stop))}, schema=SCHEMA)


def source(folder: Path, lengths: list[int], group: int) -> Table:
    table, start, files = Table(Folder.of(str(folder / "source"))), 0, []
    table.folder.make()
    for n, length in enumerate(lengths):
        pq.write_table(rows(start, start + length), f"{table.folder.path}/{n}.parquet", row_group_size=group)
        files.append({"name": f"{n}.parquet", "rows": length})
        start += length
    table.close(files)
    return table


def begin(folder: Path, total: int, size: int) -> tuple[Attempt, Folder]:
    data = Folder.of(str(folder / "data")).make()
    return Attempt.begin(Folder.of(str(folder / "state")), data, Shards("double", total, size)), data


def double(batch: pa.Table) -> pa.Table:
    values = batch["value"].to_pylist()
    return pa.table({"doubled": [2 * v for v in values], "error": pa.nulls(len(values), pa.string())})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any), st.integers(1, 9), st.integers(1, 40))
def test_every_row_is_in_its_shard_whatever_the_files(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], group: int, size: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    table, total = source(folder, lengths, group), sum(lengths)
    attempt, data = begin(folder, total, size)
    reading = shards.Reading.of(table, None, ("id", "value"), attempt, data)
    found = []
    for entry in range(len(reading.entries)):
        head, block = shards.unpacked(shards.read(pa.table({"id": [entry]}), reading, None))
        assert (head.shard, block.num_rows) == (entry, attempt.shards.length(entry))
        found += block["value"].to_pylist()
    assert found == list(range(total))


def test_a_packed_shard_is_one_row_and_no_value_of_it_changes() -> None:
    states = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(12, dtype=np.float16)), 4)
    table = pa.table({"id": ["a", None, "c"], "state": states, "texts": [["x"], [], None]})
    row = shards.packed(shards.Head(3, ("a",), True), table)
    assert row.num_rows == 1
    head, again = shards.unpacked(row)
    assert (head, again) == (shards.Head(3, ("a",), True), table)
    two = pa.concat_tables([row, shards.packed(shards.Head(4), table)])  # as Ray may join and cut blocks
    assert shards.unpacked(two.slice(1, 1)) == (shards.Head(4), table)


def test_rows_that_failed_before_are_not_shown_and_keep_their_error() -> None:
    shown = []

    def work(batch: pa.Table) -> pa.Table:
        shown.extend(batch["id"].to_pylist())
        return double(batch)

    block = rows(0, 4).append_column("error", pa.array([None, "first", None, None]))
    out = shards.through(work, block, ("id",), OUT)
    assert shown == ["q0", "q2", "q3"]
    assert out.to_pylist() == [
        {"id": f"q{n}", "doubled": None if n == 1 else 2 * n, "error": "first" if n == 1 else None} for n in range(4)
    ]


def test_a_shard_of_failed_rows_alone_is_shown_to_nobody() -> None:
    block = rows(0, 2).append_column("error", pa.array(["a", "b"]))
    out = shards.through(lambda batch: pytest.fail("shown"), block, ("id",), OUT)
    assert out.to_pylist() == [{"id": "q0", "doubled": None, "error": "a"}, {"id": "q1", "doubled": None, "error": "b"}]
    assert out["doubled"].type == pa.int64()


def test_rows_given_up_say_why_but_for_those_that_failed_before() -> None:
    block = rows(0, 2).append_column("error", pa.array([None, "first"]))
    assert shards.lost(block, ("id",), OUT, "died")["error"].to_pylist() == ["died", "first"]


class Prepare:
    columns: ClassVar[pa.Schema] = pa.schema([("tokens", pa.int64())])

    def load(self) -> None: ...

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        if 2 in batch["value"].to_pylist():
            raise ValueError("no token")
        return {"tokens": [v + 1 for v in batch["value"].to_pylist()]}


def test_rows_are_prepared_where_they_are_read_and_a_bad_one_fails_alone(tmp_path: Path) -> None:
    attempt, data = begin(tmp_path, 4, 4)
    reading = shards.Reading.of(source(tmp_path, [4], 2), None, ("id", "value"), attempt, data)
    head, block = shards.unpacked(shards.read(pa.table({"id": [0]}), reading, Prepare()))
    assert block["tokens"].to_pylist() == [1, 2, None, 4]
    assert block["error"].to_pylist() == [None, None, "ValueError: no token", None]
    assert head == shards.Head(0), "it failed in this stage"


def test_a_file_is_written_whole_under_a_name_that_counts_its_errors(tmp_path: Path) -> None:
    attempt, data = begin(tmp_path, 3, 3)
    reading = shards.Reading.of(source(tmp_path, [3], 3), None, ("id", "value"), attempt, data)
    block = pa.table({"id": ["q0", "q1", "q2"], "doubled": [0, None, None], "error": [None, "before", "here"]})
    told = shards.write(shards.packed(shards.Head(0, ("q1",)), block), reading).to_pylist()[0]
    file = ShardFile.parse(told["name"])
    assert file is not None
    assert (file.shard, file.attempt, file.errors, file.own) == (0, attempt.token, 2, 1)
    assert pq.read_table((data / file.name).path) == block
    assert (told["first_id"], told["first_error"]) == ("q2", "here")
    assert [p for p in Path(data.path).rglob("*") if p.suffix == ".part"] == []


def test_only_failed_rows_are_read_again_and_keep_their_places(tmp_path: Path) -> None:
    table = source(tmp_path, [4], 4)
    first, data = begin(tmp_path, 4, 4)
    reading = shards.Reading.of(table, None, ("id", "value"), first, data)
    old = pa.table({"id": ["q0", "q1", "q2", "q3"], "doubled": [0, None, 4, None], "error": [None, "x", None, "y"]})
    written = ShardFile.parse(shards.write(shards.packed(shards.Head(0), old), reading)["name"][0].as_py())
    assert written is not None
    first.accept(written)
    first.again.add(0)
    again = shards.Reading.of(table, None, ("id", "value"), first, data)
    head, block = shards.unpacked(shards.read(pa.table({"id": [0]}), again, None))
    assert block["id"].to_pylist() == ["q1", "q3"]
    assert head.again
    done = shards.through(double, block, ("id",), OUT).set_column(2, "error", pa.array([None, "z"]))
    new = ShardFile.parse(shards.write(shards.packed(head, done), again)["name"][0].as_py())
    assert new is not None
    assert new.name != written.name
    assert (new.errors, new.own) == (1, 1)
    assert pq.read_table((data / new.name).path).to_pylist() == [
        {"id": "q0", "doubled": 0, "error": None},
        {"id": "q1", "doubled": 2, "error": None},
        {"id": "q2", "doubled": 4, "error": None},
        {"id": "q3", "doubled": 6, "error": "z"},
    ]


class Unloadable(Prepare):
    def load(self) -> None:
        raise OSError("the hub does not answer")


class Broken(Prepare):
    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        raise RuntimeError("no such kernel")


@pytest.mark.parametrize(
    ("prepare", "error", "says"),
    [
        (Unloadable(), OSError, "the hub does not answer"),
        (Broken(), StageError, r"no row of shard 0 can be prepared: RuntimeError: no such"),
    ],
)
def test_a_failure_to_prepare_any_row_is_not_blamed_on_rows(
    tmp_path: Path, prepare: Prepare, error: type[Exception], says: str
) -> None:
    attempt, data = begin(tmp_path, 4, 4)
    reading = shards.Reading.of(source(tmp_path, [4], 2), None, ("id", "value"), attempt, data)
    with pytest.raises(error, match=says):
        shards.read(pa.table({"id": [0]}), reading, prepare)
