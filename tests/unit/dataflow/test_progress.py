"""`attempts.Progress`: how far a stage has come, from names and times of its files."""

import os
from pathlib import Path

from ka2l_ray.dataflow.attempts import NOTE, Attempt, Progress, ShardFile, Shards
from ka2l_ray.dataflow.storage import Folder

CUT = Shards("collect", rows=25, size=10)


def write(data: Folder, attempt: Attempt, shard: int, at_s: float, own: int = 0) -> ShardFile:
    file = ShardFile.new(shard, attempt.token, own, own)
    (data / file.name).write_bytes(b"rows")
    os.utime((data / file.name).path, (at_s, at_s))
    return file


def test_rows_errors_and_times_are_those_of_the_files_that_count(tmp_path: Path) -> None:
    state, data = Folder.of(str(tmp_path / "_attempt")), Folder.of(str(tmp_path / "data")).make()
    assert Progress.of(state, data) is None
    first = Attempt.begin(state, data, CUT)
    file = write(data, first, 0, 50.0, own=2)
    second = Attempt.begin(state, data, CUT)
    os.utime((state / NOTE).path, (1_000.0, 1_000.0))
    found = Progress.of(state, data)
    assert found is not None
    assert (found.attempt.rows_done, found.attempt.shards.rows, found.attempt.own_errors, found.rows) == (10, 25, 2, 0)
    assert (found.began_unix_s, found.changed_unix_s) == (1_000.0, 1_000.0)
    write(data, second, 2, 1_010.0, own=1)
    write(data, first, 1, 1_005.0)  # late, by an attempt that is over
    found = Progress.of(state, data)
    assert found is not None
    assert (found.attempt.rows_done, found.attempt.own_errors, found.rows) == (15, 3, 5)
    assert found.changed_unix_s == 1_010.0
    Attempt(shards=CUT, counted={0: file}).retry(state)
    found = Progress.of(state, data)
    assert found is not None
    assert (found.attempt.rows_done, found.attempt.own_errors) == (0, 0), (
        "a shard whose failed rows are to be repeated is not done"
    )
