"""`dataflow.run_stage`: every row once, whatever fails."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from actors import (
    Crasher,
    Doubler,
    Halver,
    OddOnes,
    Setup,
    Square,
    Stater,
    Sticky,
    StickySetup,
    Sum,
    Unloadable,
    Useless,
)
from ray._private import state as ray_state

from ka2l_ray.config import Pool
from ka2l_ray.dataflow.attempts import Attempt, ShardFile, Shards
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.stage import STATE, Stage, reopen_errors, run_stage
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import StageError
from ka2l_ray.schema import Column, TableSpec

ROWS = 40


def source(folder: Path, rows: int = ROWS) -> Table:
    table = Table(Folder.of(str(folder / "source")))
    table.write(
        (None, pa.table({"id": [f"q{i:03d}" for i in range(rows)], "value": list(range(rows)), "note": ["n"] * rows}))
    )
    return table


def spec(*added: Column, **changes: Any) -> TableSpec:
    given: dict[str, Any] = {"reads": ("value",), "added": added or (Column("doubled", pa.int64(), "twice the value"),)}
    texts = dict.fromkeys(("name", "folder", "step", "code", "row", "about"), "double")
    return TableSpec(**texts, **(given | changes))


def stage(folder: Path, **changes: Any) -> Stage[Any]:
    given: dict[str, Any] = {
        "name": "double",
        "run": "a_run",
        "spec": spec(),
        "actor": Doubler,
        "setup": Setup(str(folder / "log")),
        "pool": Pool(batch_rows=4, shard_rows=5),
        "max_error_fraction": 0.05,
    }
    return Stage(**(given | changes))


def table(folder: Path, name: str = "out") -> Table:
    return Table(Folder.of(str(folder / name)))


def done(folder: Path) -> list[str]:
    """Ids that actors have done, in any attempt."""
    return (folder / "log").read_text().split() if (folder / "log").exists() else []


def test_every_row_once_with_what_is_kept_in_one_file_per_shard(tmp_path: Path) -> None:
    target = table(tmp_path)
    manifest = run_stage(stage(tmp_path, spec=spec(carried=("note",))), source(tmp_path), target)
    assert [(r["id"], r["doubled"], r["note"], r["error"]) for r in target.read().to_pylist()] == [
        (f"q{i:03d}", 2 * i, "n", None) for i in range(ROWS)
    ]
    assert (manifest["rows_in"], manifest["rows"], manifest["errors"]) == (ROWS, ROWS, 0)
    files = list((tmp_path / "out/data/000").iterdir())
    assert sorted(f.name[:7] for f in files) == [f"{n:06d}-" for n in range(8)]
    assert {pq.read_metadata(f).num_rows for f in files} == {5}
    assert not (tmp_path / "out" / STATE).exists()


def test_a_done_stage_is_not_run_again(tmp_path: Path) -> None:
    target = table(tmp_path)
    first = run_stage(stage(tmp_path), source(tmp_path), target)
    assert run_stage(stage(tmp_path), source(tmp_path), target) == first
    assert len(done(tmp_path)) == ROWS


def test_actors_bear_the_name_of_their_stage(tmp_path: Path) -> None:
    """Wherever Ray names its actors: in the dashboard, in `ray list actors`, in the names of its log files."""
    run_stage(stage(tmp_path, name="named_stage"), source(tmp_path), table(tmp_path))
    names = {actor["ActorClassName"] for actor in ray_state.actors().values()}
    assert "MapWorker(MapBatches(named_stage))" in names


def test_an_unknown_or_missing_argument_is_refused_where_the_stage_is_made(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'poisson'"):
        stage(tmp_path, setup=Setup(log="log", poisson=7))  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'log'"):
        stage(tmp_path, setup=Setup())  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'keep'"):
        stage(tmp_path, keep=("note",))


def test_rows_of_several_files_and_row_groups_flow_as_shards_of_their_own_size(tmp_path: Path) -> None:
    rows = [{"id": f"q{i:03d}", "value": i, "note": "n"} for i in range(ROWS)]
    given = table(tmp_path, "source")
    given.folder.make()
    for n, (start, stop) in enumerate([(0, 3), (3, 3), (3, 21), (21, 40)]):
        part = pa.Table.from_pylist(
            rows[start:stop], schema=pa.schema([("id", pa.string()), ("value", pa.int64()), ("note", pa.string())])
        )
        pq.write_table(part, f"{given.folder.path}/{n}.parquet", row_group_size=4)
    given.close([{"name": f"{n}.parquet", "rows": k} for n, k in enumerate((3, 0, 18, 19))])
    target = table(tmp_path)
    run_stage(stage(tmp_path, pool=Pool(shard_rows=7)), given, target)
    assert [(r["id"], r["doubled"]) for r in target.read().to_pylist()] == [(f"q{i:03d}", 2 * i) for i in range(ROWS)]
    assert [f["rows"] for f in target.manifest()["files"]] == [7] * 5 + [5]


def test_rows_are_prepared_before_the_actor_and_a_bad_one_fails_alone(tmp_path: Path) -> None:
    target = table(tmp_path)
    prepared = stage(
        tmp_path,
        actor=Sum,
        prepare=Square(poison=4),
        spec=spec(Column("sum", pa.int64(), ""), Column("apart", pa.bool_(), "")),
    )
    run_stage(prepared, source(tmp_path), target)
    rows = {r["id"]: r for r in target.read().to_pylist()}
    assert [rows[f"q{i:03d}"]["sum"] for i in range(ROWS) if i != 4] == [i + i * i for i in range(ROWS) if i != 4]
    assert rows["q004"]["error"] == "ValueError: 4 has no square here"
    assert all(r["apart"] for r in rows.values() if not r["error"]), "rows were prepared in the actor's process"


def test_states_keep_shape_and_precision_on_their_way(tmp_path: Path) -> None:
    """One shard in float16, the others in float32, as the collecting actor returns them."""
    target = table(tmp_path)
    run_stage(
        stage(
            tmp_path,
            actor=Stater,
            spec=spec(Column("state", None, "")),
            states=pa.schema([("state", pa.list_(pa.float32(), 3))]),
        ),
        source(tmp_path),
        target,
    )
    kinds = [pq.read_schema(f).field("state").type for f in target.files()]
    assert kinds == [pa.list_(pa.float16(), 3), *[pa.list_(pa.float32(), 3)] * 7]
    assert target.read()["state"].to_pylist() == [[float(i)] * 3 for i in range(ROWS)]


def test_a_poisonous_row_fails_alone(tmp_path: Path) -> None:
    target = table(tmp_path)
    manifest = run_stage(stage(tmp_path, setup=Setup(str(tmp_path / "log"), 7)), source(tmp_path), target)
    failed = [r for r in target.read().to_pylist() if r["error"]]
    assert [(r["id"], r["doubled"]) for r in failed] == [("q007", None)]
    assert failed[0]["error"] == "ValueError: value 7 is poisonous"
    assert (manifest["errors"], target.rows) == (1, ROWS)
    assert [f.name for f in (tmp_path / "out" / "errors").iterdir()] == ["000001.parquet"]
    few = stage(tmp_path, setup=Setup(str(tmp_path / "log"), 7))  # of ten rows one may fail, and no more
    assert run_stage(few, source(tmp_path / "few", 10), table(tmp_path, "small"))["errors"] == 1


def test_a_row_that_failed_before_keeps_its_first_error_is_not_shown_to_the_actor_and_sends_no_block_row_by_row(
    tmp_path: Path,
) -> None:
    """The second stage allows no failed row of its own, and reads a column that the first could not fill."""
    first, second = table(tmp_path, "first"), table(tmp_path)
    run_stage(stage(tmp_path, setup=Setup(str(tmp_path / "log"), 7)), source(tmp_path), first)
    halve = stage(tmp_path, name="halve", actor=Halver, spec=spec(Column("half", pa.int64(), ""), reads=("doubled",)))
    manifest = run_stage(replace(halve, setup=Setup(str(tmp_path / "calls")), max_error_fraction=0.0), first, second)
    rows = {r["id"]: r for r in second.read().to_pylist()}
    assert rows["q007"] == {"id": "q007", "half": None, "error": "ValueError: value 7 is poisonous"}
    assert [rows[f"q{i:03d}"]["half"] for i in range(ROWS) if i != 7] == [i for i in range(ROWS) if i != 7]
    assert sorted((tmp_path / "calls").read_text().split()) == ["4", *["5"] * 7]
    assert manifest["errors"] == 1


def test_a_stage_stops_at_the_shard_whose_errors_pass_the_limit(tmp_path: Path) -> None:
    told = (
        r"double: \d+ of 400 rows failed, more than run\.max_error_fraction allows \(0\.05, here 20\)\. "
        r"First: row q\d+: ValueError: value "
        r"\d+ is odd.*--retry-errors"
    )
    target, rows = table(tmp_path), source(tmp_path, 400)
    with pytest.raises(StageError, match=told):
        run_stage(stage(tmp_path, actor=OddOnes), rows, target)
    assert not target.is_done
    seen = len(done(tmp_path))
    assert seen < 400 - 100
    time.sleep(1.0)
    assert len(done(tmp_path)) <= seen + 10, "the stage goes on after it was stopped"
    with pytest.raises(StageError, match=told):  # what is there is enough to refuse it again, without any actor
        run_stage(stage(tmp_path, actor=Unloadable), rows, target)


def test_failed_rows_are_repeated_in_a_new_file_and_the_others_kept(tmp_path: Path) -> None:
    target, rows = table(tmp_path), source(tmp_path)
    run_stage(stage(tmp_path, setup=Setup(str(tmp_path / "log"), 7)), rows, target)
    before, count = {f["name"] for f in target.manifest()["files"]}, len(done(tmp_path))
    assert reopen_errors(target) == 1
    manifest = run_stage(stage(tmp_path), rows, target)
    assert done(tmp_path)[count:] == ["q007"]
    assert [(r["id"], r["doubled"], r["error"]) for r in target.read().to_pylist()] == [
        (f"q{i:03d}", 2 * i, None) for i in range(ROWS)
    ]
    assert len(before & {f["name"] for f in manifest["files"]}) == 7
    assert manifest["errors"] == 0
    assert not (tmp_path / "out" / "errors").exists()
    assert reopen_errors(target) == 0


def test_a_stage_stopped_by_its_errors_goes_on_once_they_are_repeated(tmp_path: Path) -> None:
    target, rows = table(tmp_path), source(tmp_path)
    strict = stage(tmp_path, max_error_fraction=0.0)
    with pytest.raises(StageError, match="1 of 40 rows failed"):
        run_stage(replace(strict, setup=Setup(str(tmp_path / "log"), 39)), rows, target)
    assert reopen_errors(target) == 1
    run_stage(strict, rows, target)
    assert sorted(done(tmp_path)) == [f"q{i:03d}" for i in range(ROWS)]
    assert [r["doubled"] for r in target.read().to_pylist()] == [2 * i for i in range(ROWS)]


def test_a_missing_column_is_named_before_any_actor_starts(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"double: .*source lacks the column\(s\) answer; it has id, value, note"):
        run_stage(stage(tmp_path, spec=spec(reads=("value", "answer"))), source(tmp_path), table(tmp_path))
    assert not (tmp_path / "log").exists()


def test_the_rows_that_are_repeated_are_those_that_were_lost(tmp_path: Path) -> None:
    """Data loss, as in Ray Data's own checkpoint benchmark, of a finished table and of one whose driver died before
    the manifest."""
    target, rows, small = table(tmp_path), source(tmp_path), Pool(shard_rows=2)
    run_stage(stage(tmp_path, pool=small), rows, target)
    for share, state in (
        (0.10, "finished"),
        (0.25, "killed"),
        (0.50, "finished"),
        (0.75, "killed"),
        (0.90, "finished"),
    ):
        if state == "killed":
            files = [ShardFile.parse(f["name"].removeprefix("data/")) for f in target.manifest()["files"]]
            Attempt("", Shards("double", ROWS, 2), {f.shard: f for f in files if f}).save(target.folder / STATE)
            target.open_again()
        names = sorted((tmp_path / "out/data/000").iterdir())
        gone = random.Random(share).sample(names, round(share * len(names)))
        ids = sorted(i for f in gone for i in pq.read_table(f, columns=["id"])["id"].to_pylist())
        for file in gone:
            file.unlink()
        count = len(done(tmp_path))
        run_stage(stage(tmp_path, pool=small), rows, target)
        assert sorted(done(tmp_path)[count:]) == ids
        assert target.read(["id"])["id"].to_pylist() == [f"q{i:03d}" for i in range(ROWS)]


def in_own_cluster(script: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a script in a process that starts a cluster of its own."""
    text = textwrap.dedent(script).format(tests=str(Path(__file__).parent), folder=str(folder))
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True, timeout=300)


KILLED = """
    import os, sys
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    from actors import Killer, KillerSetup
    from ka2l_ray.config import Config
    from ka2l_ray.dataflow.cluster import connect
    from test_dataflow import Folder, Table, run_stage, source, stage

    connect(Config())
    folder = Path({folder!r})
    setup = KillerSetup(str(folder / "log"), driver=os.getpid(), after=24, data=str(folder / "out/data"))
    killer = stage(folder, actor=Killer, setup=setup)
    run_stage(killer, source(folder), Table(Folder.of(str(folder / "out"))))
"""


def test_a_killed_driver_loses_the_shards_in_progress_and_nothing_else(tmp_path: Path) -> None:
    killed = in_own_cluster(KILLED, tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    target = table(tmp_path)
    written = list((tmp_path / "out/data/000").glob("*.parquet"))
    assert written
    assert not target.is_done
    before = done(tmp_path)
    run_stage(
        stage(tmp_path, pool=Pool(max=4, shard_rows=3)), Table(Folder.of(str(tmp_path / "source"))), target
    )  # cut as it was begun
    assert target.read(["id"])["id"].to_pylist() == [f"q{i:03d}" for i in range(ROWS)]
    assert target.manifest()["shard_rows"] == 5
    assert len(done(tmp_path)) - len(before) <= ROWS - 5 * len(written)
    assert not (tmp_path / "out" / STATE).exists()


def test_a_row_that_keeps_killing_actors_is_found_and_given_up(tmp_path: Path) -> None:
    """Shards of eight: two deaths, three halvings, and the single row's own."""
    target = table(tmp_path)
    crasher = stage(tmp_path, actor=Crasher, setup=Setup(str(tmp_path / "log"), 11), pool=Pool(shard_rows=8))
    run_stage(crasher, source(tmp_path), target)
    failed = {r["id"]: r["error"] for r in target.read().to_pylist() if r["error"]}
    assert list(failed) == ["q011"]
    assert failed["q011"] == "the actor's process died at this row without a message; 5 died at its shard"
    assert [r["doubled"] for r in target.read().to_pylist()] == [None if i == 11 else 2 * i for i in range(ROWS)]


def test_an_actor_with_a_broken_device_is_replaced_and_no_row_is_lost(tmp_path: Path) -> None:
    """A sticky error: after its first, every call of that process fails."""
    target = table(tmp_path)
    sticky = StickySetup(str(tmp_path / "log"), 13, mark=str(tmp_path / "broken"))
    run_stage(stage(tmp_path, actor=Sticky, setup=sticky, max_error_fraction=0.0), source(tmp_path), target)
    assert [(r["doubled"], r["error"]) for r in target.read().to_pylist()] == [(2 * i, None) for i in range(ROWS)]
    assert len(set((tmp_path / "broken").read_text().split())) == 1, "it broke once, in one process"


def test_actors_that_only_die_stop_the_stage_and_their_last_error_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ka2l_ray.dataflow.stage.failures.DEATHS", 0)  # then four for each actor of the pool
    with pytest.raises(
        StageError,
        match=r"^double: .*\d actors have died while 0 shards were finished\. Last: RuntimeError: no such kernel",
    ):
        run_stage(stage(tmp_path, actor=Useless), source(tmp_path), table(tmp_path))
    assert not table(tmp_path).is_done


@pytest.mark.long
def test_a_machine_with_little_memory_resumes_too(tmp_path: Path) -> None:
    """Nothing that resume needs has memory set aside for it; here there are 300 MB, and a stage is begun for the
    second time."""
    script = """
        import sys
        sys.path.insert(0, {tests!r})
        from pathlib import Path
        import ray
        from test_dataflow import Attempt, Folder, Table, run_stage, source, stage, STATE, Shards

        ray.init(address="local", num_cpus=4, _memory=300e6, include_dashboard=False)
        out = Folder.of({folder!r}) / "out"
        Attempt("", Shards("double", 40, 5)).save(out / STATE)
        run_stage(stage(Path({folder!r})), source(Path({folder!r})), Table(out))
    """
    resumed = in_own_cluster(script, tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert table(tmp_path).read(["id"])["id"].to_pylist() == [f"q{i:03d}" for i in range(ROWS)]


def test_a_stage_that_no_node_can_hold_ends_and_says_what_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ka2l_ray.dataflow.stage.NO_PROGRESS_S", 5)
    with pytest.raises(
        StageError, match=r"double: no shard of 5 rows was finished within .* no free 64 CPUs and 0 GPUs for an actor"
    ):
        run_stage(stage(tmp_path, pool=Pool(cpus=64, batch_rows=4, shard_rows=5)), source(tmp_path), table(tmp_path))


def test_an_actor_that_cannot_load_says_why_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"^double: .*decode\.decoder = 'x' reads states of another model$"):
        run_stage(stage(tmp_path, actor=Unloadable), source(tmp_path), table(tmp_path))


def test_a_small_table_is_cut_for_every_actor_of_the_pool(tmp_path: Path) -> None:
    target = table(tmp_path)
    run_stage(stage(tmp_path, pool=Pool(min=2, max=2, shard_rows=256)), source(tmp_path), target)
    assert [f["rows"] for f in target.manifest()["files"]] == [5] * 8
