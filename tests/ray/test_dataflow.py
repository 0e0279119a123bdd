"""`dataflow.run_stage`: every row once, whatever fails."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from actors import Crasher, Doubler, Late, Unloadable

from ka2l_ray.artifacts import Folder, StageError, Table
from ka2l_ray.config import Pool
from ka2l_ray.dataflow import Stage, run_stage, shard_rows
from ka2l_ray.models.tally import Tally
from ka2l_ray.runtime import ActorMetrics

ROWS = 40


def source(folder: Path, rows: int = ROWS) -> Table:
    table = Table(Folder.of(str(folder / "source")))
    table.write((None, pa.table({"id": [f"q{i:03d}" for i in range(rows)], "value": list(range(rows)), "note": ["n"] * rows})))
    return table


def stage(folder: Path, **changes: Any) -> Stage:
    given: dict[str, Any] = {
        "name": "double",
        "actor": Doubler,
        "arguments": {"log": str(folder / "log")},
        "columns_in": ("value",),
        "columns_out": pa.schema([("doubled", pa.int64())]),
        "pool": Pool(batch_rows=4, shard_rows=5),
        "max_error_fraction": 0.05,
    }
    return Stage(**(given | changes))


def test_every_row_once_with_what_is_kept(tmp_path: Path) -> None:
    target = Table(Folder.of(str(tmp_path / "out")))
    manifest = run_stage(stage(tmp_path, keep=("note",)), source(tmp_path), target)
    rows = sorted(target.read().to_pylist(), key=lambda r: r["id"])
    assert [(r["id"], r["doubled"], r["note"], r["error"]) for r in rows] == [(f"q{i:03d}", 2 * i, "n", None) for i in range(ROWS)]
    assert (manifest["rows_in"], manifest["rows"], manifest["errors"]) == (ROWS, ROWS, 0)


def test_a_done_stage_is_not_run_again(tmp_path: Path) -> None:
    target = Table(Folder.of(str(tmp_path / "out")))
    first = run_stage(stage(tmp_path), source(tmp_path), target)
    assert run_stage(stage(tmp_path), source(tmp_path), target) == first
    assert len((tmp_path / "log").read_text().split()) == ROWS


def test_a_poisonous_row_costs_only_itself(tmp_path: Path) -> None:
    target = Table(Folder.of(str(tmp_path / "out")))
    manifest = run_stage(stage(tmp_path, arguments={"log": str(tmp_path / "log"), "poison": 7}), source(tmp_path), target)
    failed = [r for r in target.read().to_pylist() if r["error"]]
    assert [(r["id"], r["doubled"]) for r in failed] == [("q007", None)]
    assert failed[0]["error"] == "ValueError: value 7 is poisonous"
    assert manifest["errors"] == 1
    assert target.rows == ROWS
    assert len(list((tmp_path / "out" / "errors").iterdir())) == 1


def test_too_many_failed_rows_stop_the_stage_and_name_the_first(tmp_path: Path) -> None:
    told = r"1 of 4 rows failed, more than run\.max_error_fraction allows.*q003: ValueError: value 3.*delete .*/out and run again$"
    with pytest.raises(StageError, match=told):
        run_stage(
            stage(tmp_path, arguments={"log": str(tmp_path / "log"), "poison": 3}),
            source(tmp_path, 4),
            Table(Folder.of(str(tmp_path / "out"))),
        )
    assert not Table(Folder.of(str(tmp_path / "out"))).is_done


def test_a_missing_column_is_named_before_any_actor_starts(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"double: .*source lacks the column\(s\) answer; it has id, value, note"):
        run_stage(stage(tmp_path, columns_in=("value", "answer")), source(tmp_path), Table(Folder.of(str(tmp_path / "out"))))
    assert not (tmp_path / "log").exists()


def in_own_cluster(script: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a script in a process that starts a cluster of its own."""
    text = textwrap.dedent(script).format(tests=str(Path(__file__).parent), folder=str(folder))
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True, timeout=300)


KILLED = """
    import os, sys
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    from actors import Killer
    from ka2l_ray.config import Config
    from ka2l_ray.runtime import connect
    from test_dataflow import Folder, Table, run_stage, source, stage

    connect(Config())
    folder = Path({folder!r})
    arguments = dict(log=str(folder / "log"), driver=os.getpid(), after=24, checkpoint=str(folder / "out/_checkpoint"))
    killer = stage(folder, actor=Killer, arguments=arguments)
    run_stage(killer, source(folder), Table(Folder.of(str(folder / "out"))))
"""


def test_a_killed_driver_continues_at_the_last_committed_block(tmp_path: Path) -> None:
    killed = in_own_cluster(KILLED, tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    target = Table(Folder.of(str(tmp_path / "out")))
    committed = len([f for f in (tmp_path / "out/_checkpoint").glob("*/*.parquet") if ".pending" not in f.name])
    assert committed > 0
    assert not target.is_done
    before = (tmp_path / "log").read_text().split()
    run_stage(stage(tmp_path), Table(Folder.of(str(tmp_path / "source"))), target)
    redone = (tmp_path / "log").read_text().split()[len(before) :]
    assert sorted(target.read(["id"])["id"].to_pylist()) == [f"q{i:03d}" for i in range(ROWS)]
    assert len(redone) < ROWS
    assert len(redone) <= ROWS - 5 * committed
    assert not (tmp_path / "out/_checkpoint").exists()


def test_a_batch_that_keeps_killing_its_process_ends_the_stage_and_what_is_then_committed_late_is_not_there_twice(tmp_path: Path) -> None:
    target, rows = Table(Folder.of(str(tmp_path / "out"))), source(tmp_path)
    with pytest.raises(StageError, match="double: "):
        run_stage(stage(tmp_path, actor=Crasher, arguments={"log": str(tmp_path / "log"), "poison": 39}), rows, target)
    assert not target.is_done
    (checkpoint, *_) = [f for f in (tmp_path / "out/_checkpoint").glob("*/*.parquet") if ".pending" not in f.name]
    (written,) = (tmp_path / "out/data").glob(f"{checkpoint.stem}*")
    late, before = pq.read_table(written)["id"].to_pylist(), len((tmp_path / "log").read_text().split())
    moves = [(str(tmp_path / f.name), str(f)) for f in (written, checkpoint)]
    for aside, place in moves:
        Path(place).rename(aside)
    run_stage(stage(tmp_path, actor=Late, arguments={"log": str(tmp_path / "log"), "moves": moves}), rows, target)
    assert written.exists()
    assert sorted(target.read(["id"])["id"].to_pylist()) == [f"q{i:03d}" for i in range(ROWS)]
    assert set(late) <= set((tmp_path / "log").read_text().split()[before:]), "it was not given out again, so nothing was shown"


SMALL = """
    import sys
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    import pyarrow as pa, pyarrow.parquet as pq, ray
    from ka2l_ray.attempts import Attempt
    from test_dataflow import Folder, Table, run_stage, source, stage

    ray.init(address="local", num_cpus=4, _memory=300e6, include_dashboard=False)
    folder, out = Path({folder!r}), Folder.of({folder!r}) / "out"
    first = Attempt.begin(out / "_checkpoint", (out / "data").make())
    pq.write_table(pa.table({{"id": ["q000"]}}), first.checkpoint.path + "/a.parquet")
    pq.write_table(pa.table({{"id": ["q000"], "doubled": [0], "error": pa.nulls(1, pa.string())}}), first.data.path + "/a_0.parquet")
    run_stage(stage(folder), source(folder), Table(out))
"""


def test_a_machine_with_little_memory_resumes_too(tmp_path: Path) -> None:
    """Ray would set aside 1 GiB for what leaves out the rows that are done; here it has less, and would wait."""
    resumed = in_own_cluster(SMALL, tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert sorted(Table(Folder.of(str(tmp_path / "out"))).read(["id"])["id"].to_pylist()) == [f"q{i:03d}" for i in range(ROWS)]
    assert "q000" not in (tmp_path / "log").read_text()


def test_a_stage_that_no_node_can_hold_ends_and_says_what_it_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ka2l_ray.dataflow.NO_PROGRESS_S", 5)
    with pytest.raises(StageError, match=r"double: no block of 5 rows was finished within .* no free 64 CPUs and 0 GPUs for an actor"):
        run_stage(
            stage(tmp_path, pool=Pool(cpus=64, batch_rows=4, shard_rows=5)), source(tmp_path), Table(Folder.of(str(tmp_path / "out")))
        )


def test_an_actor_that_cannot_load_says_why_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"^double: .*decode\.decoder = 'x' reads states of another model$"):
        run_stage(stage(tmp_path, actor=Unloadable), source(tmp_path), Table(Folder.of(str(tmp_path / "out"))))


@pytest.mark.parametrize(
    ("rows", "actors", "block"), [(100_000, 8, 256), (8192, 8, 256), (2200, 8, 69), (40, 8, 2), (3, 8, 1), (1, 1, 1), (40, 1, 10)]
)
def test_a_small_table_has_blocks_for_every_actor(rows: int, actors: int, block: int) -> None:
    pool = Pool(max=actors, shard_rows=256)
    assert shard_rows(pool, rows) == block
    assert -(-rows // block) >= min(rows, 2 * actors)


def test_a_table_smaller_than_a_block_is_cut_for_every_actor_of_the_pool(tmp_path: Path) -> None:
    target = Table(Folder.of(str(tmp_path / "out")))
    run_stage(stage(tmp_path, pool=Pool(min=2, max=2, shard_rows=256)), source(tmp_path), target)
    assert sorted(f["rows"] for f in target.manifest()["files"]) == [5] * 8


def test_waiting_is_the_time_between_calls_whatever_a_call_does_besides_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by hand: 3 s before the first call, which takes 10 s, of them 4 in the model; 5 s until the second, of 1 s."""
    now, added = [100.0], []
    monkeypatch.setattr("ka2l_ray.runtime.time", SimpleNamespace(monotonic=lambda: now[0]))
    tally = Tally()
    metrics = ActorMetrics("stage", tally)
    for name, counter in metrics._counters.items():
        monkeypatch.setattr(counter, "inc", lambda value, tags, name=name: added.append((name, value, tags["stage"])))
    for wait, work, model in ((3.0, 10.0, 4.0), (5.0, 1.0, 0.0)):
        now[0] += wait
        with metrics.call():
            now[0] += work
            tally.model_s += model
    assert added == [("model_s", 4.0, "stage"), ("waiting_s", 3.0, "stage"), ("waiting_s", 5.0, "stage")]
