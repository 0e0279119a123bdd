"""The run folder: what counts is what a manifest lists, and a folder belongs to one configuration."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ka2l_ray.config import Config, ConfigError, parse_config
from ka2l_ray.dataflow import records as records_module
from ka2l_ray.dataflow.manifests import MANIFEST, Table
from ka2l_ray.dataflow.records import Records
from ka2l_ray.dataflow.runs import FORMAT, Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import StageError

STORE = "endpoint_override=http%3A%2F%2F127.0.0.1%3A9&region=eu-west-3"


def ids(*names: str) -> pa.Table:
    return pa.table({"id": pa.array(names, pa.string()), "p": pa.array([len(n) for n in names], pa.float64())})


@pytest.fixture
def table(tmp_path) -> Table:
    return Table(Folder.of(str(tmp_path / "table")))


def config(tmp_path, **sections: dict) -> Config:
    sections["run"] = {"name": "r", "storage": str(tmp_path)} | sections.get("run", {})
    return parse_config(sections, "test")


def test_a_written_table_reads_back(table):
    table.write((None, ids("a", "bb")), errors=0)
    assert table.read().equals(ids("a", "bb"))
    assert table.read(["id"]).column_names == ["id"]
    assert (table.rows, table.manifest()["errors"], table.schema().names) == (2, 0, ["id", "p"])


def test_batches_stream_the_same_rows_as_read(table):
    table.write((None, ids("a", "bb")), (None, ids("c")))
    assert pa.Table.from_batches(table.batches()).equals(table.read())
    assert [b.schema.names for b in table.batches(["p"])] == [["p"], ["p"]]


def test_leftovers_in_the_folder_are_not_read(table, tmp_path):
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


def test_parts_are_read_apart_and_together(table):
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


def test_listed_files_are_read_where_they_lie(table, tmp_path):
    table.write(("pool", ids("a")), ("eval", ids("b", "c")))
    other = Table(Folder.of(str(tmp_path / "runs/deep/other")))
    other.close(table.listed_from(other.folder, "eval"))
    assert other.read()["id"].to_pylist() == ["b", "c"]
    assert (other.rows, other.part_rows("eval")) == (2, 2)


def test_a_file_is_replaced_whole(tmp_path):
    file = Folder.of(str(tmp_path)) / "deep" / "results.json"
    file.write_json({"a": 1})
    file.write_json({"a": None, "b": "é"})
    assert file.read_json() == {"a": None, "b": "é"}
    assert (Folder.of(str(tmp_path)) / "deep").names() == ["results.json"]


def test_of_many_who_write_a_new_file_at_the_same_moment_one_does(tmp_path):
    for n in range(20):
        file, start = Folder.of(str(tmp_path)) / f"{n}.json", threading.Barrier(4)

        def write(me, file=file, start=start):
            start.wait()
            return file.write_new(me)

        with ThreadPoolExecutor(4) as pool:
            wrote = list(pool.map(write, [b"a", b"b", b"c", b"d"]))
        assert sum(wrote) == 1
        assert file.read_bytes() == b"abcd"[(i := wrote.index(True)) : i + 1]
    assert len(list(tmp_path.iterdir())) == 20


def test_seconds_of_every_attempt_count_also_of_one_that_failed(tmp_path, monkeypatch):
    clock = iter([10.0, 11.5, 20.0, 20.25, 30.0, 34.0])
    monkeypatch.setattr(records_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    records = Records(Folder.of(str(tmp_path)))
    assert records.all() == {}
    with pytest.raises(KeyError), records.timed("label"):
        raise KeyError
    assert not records.is_done("label")
    with records.timed("label"):
        pass
    records.finish("label", {"in": 3, "out": 3, "errors": 1}, "said")
    with records.timed("score"):
        pass
    assert records.seconds() == {"label": 1.75, "score": 4.0}
    assert (records.done(), records.result("label")) == ({"label"}, "said")
    assert records.rows() == {"label": {"in": 3, "out": 3, "errors": 1}}
    records.reopen("label")
    assert (records.done(), records.result("label"), records.rows()) == (set(), None, {})
    assert records.seconds()["label"] == 1.75
    records.forget({"label"})
    assert records.seconds() == {"score": 4.0}


def test_a_folder_is_uploaded_whole_and_deleted_whole(tmp_path):
    (tmp_path / "from" / "inner").mkdir(parents=True)
    (tmp_path / "from" / "inner" / "x").write_text("1")
    folder = Folder.of(str(tmp_path / "to"))
    folder.upload(tmp_path / "from")
    with folder.local() as local:
        assert (Path(local) / "inner" / "x").read_text() == "1"
    assert folder.exists()
    folder.delete()
    folder.delete()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("uri", "same"),
    [
        (f"s3://bucket/a/b?{STORE}", f"s3://bucket/a/b?{STORE}"),
        ("s3://bucket/a?region=eu-west-3", "s3://bucket/a?region=eu-west-3"),
        ("gs://bucket/a?project_id=p", "gcs://bucket/a?project_id=p"),
        ("/a/b", "/a/b"),
        ("/a b/ü?x#y", "/a b/ü?x#y"),
        ("file:///a/b", "/a/b"),
    ],
)
def test_a_folders_uri_opens_the_same_folder_again_on_the_same_filesystem(uri, same):
    """Nothing connects before something is read."""
    folder = Folder.of(uri)
    assert folder.uri == same
    for place in (folder, folder / "runs" / "r"):
        again = Folder.of(place.uri)
        assert (again.path, again.uri, again.is_local) == (place.path, place.uri, place.is_local)
        assert again.filesystem == place.filesystem


def test_options_of_a_store_belong_to_everything_below_it():
    table = Run(Folder.of(f"s3://bucket/runs?{STORE}") / "r", Config()).base("scores")
    assert table.folder.uri == f"s3://bucket/runs/r/base/scores?{STORE}"
    assert table.folder.filesystem != Folder.of("s3://bucket/runs?region=eu-west-3").filesystem


def test_a_relative_path_is_opened_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Folder.of("runs")
    monkeypatch.chdir("/")
    assert Folder.of(folder.uri) == Folder.of(str(tmp_path / "runs")) == folder


@pytest.mark.parametrize("name", ["a%20b", "50%25", "a%3Fb"])
def test_a_uri_with_escaped_characters_opens_again(name):
    folder = Folder.of(f"s3://bucket/{name}?region=eu-west-3")
    assert Folder.of(folder.uri).path == folder.path


def test_an_unsupported_scheme_names_the_uri_and_the_field_where_it_is_one():
    with pytest.raises(ConfigError, match=r"^'ftp://host/x': "):
        Folder.of("ftp://host/x")
    with pytest.raises(ConfigError, match=r"^run\.storage = 'ftp://host': "):
        Run.open(config("ftp://host"))


def test_a_new_run_stores_its_configuration(tmp_path):
    run = Run.open(config(tmp_path, run={"seed": 7}))
    again = Run.existing(run.folder.path)
    assert again.config == run.config
    assert (again.config.run.seed, again.hash) == (7, run.hash)


def test_a_run_refuses_another_configuration_and_names_what_differs(tmp_path):
    begun = Run.open(config(tmp_path, run={"seed": 7}))
    (begun.folder / "questions/manifest.json").write_json({"files": [], "rows": 0})
    with pytest.raises(ConfigError, match=r"another configuration.*collect\.samples: 10 → 4; run\.seed: 7 → 8"):
        Run.open(config(tmp_path, run={"seed": 8}, collect={"samples": 4}))
    assert Run.existing(str(tmp_path / "r")).config.run.seed == 7


def test_a_run_that_has_nothing_yet_takes_a_mended_configuration(tmp_path):
    """A first stage that refuses the corpus leaves the folder; the mended configuration is to run under the same name."""
    Run.open(config(tmp_path, run={"seed": 7}))
    assert Run.open(config(tmp_path, run={"seed": 8})).config.run.seed == 8
    assert Run.existing(str(tmp_path / "r")).config.run.seed == 8


def test_a_run_goes_on_with_the_commit_it_pinned(tmp_path):
    def pin(given):
        return given.model_copy(update={"model": given.model.model_copy(update={"revision": "abc"})})

    hub = {"model": {"name_or_path": "owner/name"}}
    assert Run.open(config(tmp_path, **hub), pin).config.model.revision == "abc"
    again = Run.open(config(tmp_path, **hub), lambda given: pytest.fail("pinned twice"))
    assert again.config.model.revision == "abc"


def test_a_run_accepts_other_pools_and_stores_them(tmp_path):
    Run.open(config(tmp_path))
    Run.open(config(tmp_path, collect={"pool": {"max": 9}}, ray={"local_cpus": 12}))
    assert Run.existing(str(tmp_path / "r")).config.collect.pool.max == 9


@pytest.mark.parametrize("holding", ["thesis.txt", "photos/cat.jpg"])
def test_a_run_refuses_a_folder_that_is_not_its_own(tmp_path, holding):
    foreign = tmp_path / "r" / holding
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    with pytest.raises(ConfigError, match=r"holds no config\.yaml"):
        Run.open(config(tmp_path))
    assert not (tmp_path / "r" / "config.yaml").exists()


def test_a_run_takes_an_empty_folder(tmp_path):
    (tmp_path / "r").mkdir()
    assert Run.open(config(tmp_path)).folder.path == str(tmp_path / "r")


def test_a_run_killed_while_storing_its_configuration_can_be_opened_again(tmp_path):
    """`write_bytes` writes to a side file first; a kill before the move leaves only that."""
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.yaml.1a2b3c4d.part").write_text("run: {na")
    assert Run.open(config(tmp_path)).config.run.name == "r"


def test_a_run_bears_its_format_from_the_beginning(tmp_path):
    run = Run.open(config(tmp_path))
    assert (run.folder / "format.json").read_json()["format"] == FORMAT
    assert (run.folder / "format.json").read_json()["written_by"].startswith("ka2l-ray ")


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize(
    ("stored", "says"),
    [
        (None, r"has run format 1, written by an earlier version.*format 3.*another run\.name"),
        ('{"format": 4, "written_by": "ka2l-ray 9.1.0"}', r"has run format 4, written by ka2l-ray 9\.1\.0; .*format 3"),
        ('{"for', r"format\.json: does not say which format the run has .*another run\.name"),
        ('{"format": 2}', r"format\.json: does not say which format the run has"),
    ],
)
def test_a_run_of_another_format_is_refused_and_stays_as_it_is(tmp_path, stored, says, begun):
    run = Run.open(config(tmp_path))
    if begun:
        (run.folder / "questions/manifest.json").write_json({"files": [], "rows": 0})
    (run.folder / "format.json").delete()
    if stored is not None:
        (tmp_path / "r/format.json").write_text(stored)
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    with pytest.raises(ConfigError, match=says):
        Run.open(config(tmp_path, run={"max_error_fraction": 0.5}))
    with pytest.raises(ConfigError, match=says):
        Run.existing(run.folder.uri)
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before


def test_a_format_that_no_configuration_followed_is_replaced(tmp_path):
    """Another version was killed between the two; it has begun nothing."""
    (tmp_path / "r").mkdir()
    (tmp_path / "r/format.json").write_text('{"format": 4, "written_by": "ka2l-ray 9.1.0"}')
    Run.open(config(tmp_path))
    assert Run.existing(str(tmp_path / "r")).config.run.name == "r"


@pytest.mark.parametrize("left", [["driver.json"], ["driver.json", "format.json"]])
def test_a_run_killed_before_it_stored_its_configuration_can_be_opened_again(tmp_path, left):
    Run.open(config(tmp_path))
    (tmp_path / "r/driver.json").write_text("{}")
    for file in (tmp_path / "r").iterdir():
        if file.name not in left:
            file.unlink()
    assert Run.open(config(tmp_path)).config.run.name == "r"


def test_a_run_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=rf"{tmp_path}: holds no config\.yaml"):
        Run.existing(str(tmp_path))


def test_storage_that_cannot_be_written_is_a_configuration_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run\.storage.*cannot be written"):
        Run.open(config(tmp_path / "file"))


def test_the_start_of_a_fine_tuning_is_stored_under_the_name_that_the_file_gave_it(tmp_path):
    run = Run.open(config(tmp_path, finetune={"from": "base"}))
    assert "  from: base\n" in (run.folder / "config.yaml").read_bytes().decode()
    assert Run.existing(run.folder.uri).config == Run.open(config(tmp_path)).config == run.config


def test_rounds_of_draws_have_folders_of_their_own(tmp_path):
    run = Run.open(config(tmp_path, run={"seed": 3}))
    assert run.round("ka2l", 0, 1).path == str(tmp_path / "r/strategies/ka2l/seed_3/round_01")
    assert len({run.round("random", draw, n).path for draw in range(3) for n in range(3)}) == 9
    assert run.base("scores").folder.path == str(tmp_path / "r/base/scores")


@pytest.mark.parametrize("text", ['{"files": [', "", "\0\0\0\0", "[" * 100_000])
@pytest.mark.parametrize("name", ["base/scores/manifest.json", "results.json"])
def test_a_torn_file_of_a_run_is_named_in_one_line(tmp_path: Path, name: str, text: str) -> None:
    file = Folder.of(str(tmp_path)) / name
    file.write_bytes(text.encode())
    with pytest.raises(StageError, match=rf"{name}: is no whole JSON .*Delete it and run again") as refused:
        file.read_json_or_empty()
    assert "\n" not in str(refused.value)


def test_a_manifest_that_lists_nothing_is_no_table(tmp_path: Path) -> None:
    table = Table(Folder.of(str(tmp_path)) / "scores")
    for text, says in (
        ("{}", "lacks files and rows"),
        ('{"rows": 3}', "lacks files"),
        ("[]", "must hold a JSON object, not list"),
    ):
        (table.folder / "manifest.json").write_bytes(text.encode())
        with pytest.raises(StageError, match=rf"scores/manifest\.json: {says}"):
            table.manifest()
