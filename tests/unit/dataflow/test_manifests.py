"""Tables: what counts is what the manifest lists."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ka2l_ray.dataflow.manifests import MANIFEST, Table
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import StageError

STORE = "endpoint_override=http%3A%2F%2F127.0.0.1%3A9&region=eu-west-3"


def ids(*names: str) -> pa.Table:
    return pa.table({"id": pa.array(names, pa.string()), "p": pa.array([len(n) for n in names], pa.float64())})


@pytest.fixture
def table(tmp_path) -> Table:
    return Table(Folder.of(str(tmp_path / "table")))


def test_a_written_table_reads_back(table):
    table.write((None, ids("a", "bb")), errors=0)
    assert table.read().equals(ids("a", "bb"))
    assert table.read(["id"]).column_names == ["id"]
    assert (table.rows, table.manifest()["errors"], table.schema().names) == (2, 0, ["id", "p"])


def test_batches_stream_the_same_rows_as_read(table):
    table.write((None, ids("a", "bb")), (None, ids("c")))
    assert pa.Table.from_batches(table.batches()).equals(table.read())
    assert [b.schema.names for b in table.batches(["p"])] == [["p"], ["p"]]


def test_files_that_are_not_listed_are_not_read(table, tmp_path):
    table.write((None, ids("a")))
    pq.write_table(ids("ghost"), tmp_path / "table" / "part-killed.parquet")
    assert table.read()["id"].to_pylist() == ["a"]
    assert [b["id"].to_pylist() for b in table.batches()] == [["a"]]
    assert table.rows == 1


def test_files_without_a_manifest_are_not_a_table(table, tmp_path):
    (tmp_path / "table").mkdir()
    pq.write_table(ids("ghost"), tmp_path / "table" / "part-1.parquet")
    assert not table.is_done
    for read in (table.read, table.manifest, table.schema, lambda: list(table.batches())):
        with pytest.raises(StageError, match=rf"{tmp_path}/table.*not finished.*{MANIFEST}"):
            read()


def test_the_manifest_is_written_after_the_files(table, monkeypatch):
    """A kill while a file is written leaves a table that is not done."""

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", killed)
    with pytest.raises(KeyboardInterrupt):
        table.write((None, ids("a")))
    assert not table.is_done


def test_writing_again_replaces_the_rows(table):
    table.write((None, ids("old", "older")))
    table.write((None, ids("new")))
    assert table.read()["id"].to_pylist() == ["new"]
    assert table.rows == 1


def test_parts_are_read_separately_and_together(table):
    table.write(("probe", ids("a", "b")), ("pool", ids("c")), ("eval", ids()))
    assert table.read(part="probe")["id"].to_pylist() == ["a", "b"]
    assert table.read(part="pool")["id"].to_pylist() == ["c"]
    assert table.read(part="eval").num_rows == 0
    assert table.read()["id"].to_pylist() == ["a", "b", "c"]
    assert [table.part_rows(p) for p in ("probe", "pool", "eval")] == [2, 1, 0]


@pytest.mark.parametrize("storage", ["{tmp}", f"s3://bucket/runs?{STORE}"])
def test_a_table_lists_the_files_of_another_by_a_path_between_the_two(tmp_path, storage, monkeypatch):
    root = Folder.of(storage.format(tmp=tmp_path)) / "r"
    files = [
        {"name": "eval-1.parquet", "rows": 2, "part": "eval"},
        {"name": "data/pool-1.parquet", "rows": 3, "part": "pool"},
    ]
    monkeypatch.setattr(Table, "manifest", lambda self: {"files": files})
    questions, far = Table(root / "questions"), root / "strategies/ka2l/seed_0/round_01/evaluation/questions"
    assert questions.listed_from(far, "eval") == [files[0] | {"name": "../../../../../../questions/eval-1.parquet"}]
    assert [f["name"] for f in questions.listed_from(root / "other")] == [
        "../questions/eval-1.parquet",
        "../questions/data/pool-1.parquet",
    ]


def test_files_listed_by_another_table_are_read_in_place(table, tmp_path):
    table.write(("pool", ids("a")), ("eval", ids("b", "c")))
    other = Table(Folder.of(str(tmp_path / "runs/deep/other")))
    other.close(table.listed_from(other.folder, "eval"))
    assert other.read()["id"].to_pylist() == ["b", "c"]
    assert (other.rows, other.part_rows("eval")) == (2, 2)


def test_a_manifest_without_files_or_rows_is_refused(tmp_path: Path) -> None:
    table = Table(Folder.of(str(tmp_path)) / "scores")
    for text, says in (
        ("{}", "lacks files and rows"),
        ('{"rows": 3}', "lacks files"),
        ("[]", "must be a JSON object, not list"),
    ):
        (table.folder / "manifest.json").write_bytes(text.encode())
        with pytest.raises(StageError, match=rf"scores/manifest\.json: {says}"):
            table.manifest()
