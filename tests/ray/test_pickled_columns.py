"""Where Ray Data runs, a column of its pickled type runs code as soon as a value is read; none is."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data
from pickle_trap import Trap
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectArray
from runs import small

from ka2l_ray.config import ConfigError, HubSection
from ka2l_ray.corpus.files import files_of
from ka2l_ray.corpus.stage import questions
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.shards import failed_rows
from ka2l_ray.dataflow.storage import Folder

REFUSED = r"q\.parquet: column '{}' has the type 'ray\.data\.arrow_pickled_object', whose values may be pickles"


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path / "mark")


def pickled(trap: Trap) -> pa.ExtensionArray:
    return ArrowPythonObjectArray.from_objects([trap] * 60)


def test_the_trap_works(trap: Trap, tmp_path: Path) -> None:
    assert ray.data.DataContext.get_current(), "Ray Data is loaded"
    pq.write_table(pa.table({"question": pickled(trap)}), tmp_path / "q.parquet")
    pq.read_table(tmp_path / "q.parquet")
    assert not trap.is_sprung
    with pytest.raises(FileExistsError):
        pq.read_table(tmp_path / "q.parquet")["question"].to_pylist()
    assert trap.is_sprung


def as_it_is(values: pa.ExtensionArray) -> pa.Array:
    return values


def nested(values: pa.ExtensionArray) -> pa.Array:
    return pa.StructArray.from_arrays([values], names=["text"])


@pytest.mark.parametrize("column", ["question", "answers", "id"])
@pytest.mark.parametrize("put", [as_it_is, nested])
def test_a_corpus_with_a_pickled_column_is_refused(
    column: str, put: Callable[[pa.ExtensionArray], pa.Array], trap: Trap, tmp_path: Path
) -> None:
    columns = {"question": [f"Who is {n}?" for n in range(60)], "answers": ["x"] * 60, "id": list(map(str, range(60)))}
    pq.write_table(pa.table(columns | {column: put(pickled(trap))}), tmp_path / "q.parquet")
    run = Run.open(small(tmp_path / "runs", f"corpus.source={tmp_path}/q.parquet"))
    with pytest.raises(ConfigError, match=REFUSED.format(column)) as refused:
        questions(run)
    assert "Traceback" not in str(refused.value)
    assert not trap.is_sprung


def test_a_data_set_saved_with_a_pickled_column_is_refused(trap: Trap, tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"question": ["Who?"] * 60}).save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    with pa.memory_map(str(arrow)) as source:
        metadata = pa.ipc.open_stream(source).schema.metadata
    table = pa.table({"question": pickled(trap)}).replace_schema_metadata(metadata)
    arrow.unlink()
    with pa.OSFile(str(arrow), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (file,) = files_of(str(tmp_path / "saved"), HubSection())
    with pytest.raises(ConfigError, match="saved: cannot be read: "):
        list(file.rows(["question"]))
    assert not trap.is_sprung


def test_a_table_of_a_run_with_a_pickled_column_is_not_read(trap: Trap, tmp_path: Path) -> None:
    table = Table(Folder.of(str(tmp_path)))
    pq.write_table(pa.table({"id": ["a"] * 60, "error": pickled(trap)}), tmp_path / "q.parquet")
    table.close([{"name": "q.parquet", "rows": 60}])
    for read in (
        table.read,
        table.schema,
        lambda: list(table.batches()),
        lambda: failed_rows(table.folder / "q.parquet"),
    ):
        with pytest.raises(ConfigError, match=REFUSED.format("error")):
            read()
    assert not trap.is_sprung
