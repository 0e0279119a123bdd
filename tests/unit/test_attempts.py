"""`attempts`: what counts when a stage is begun again and again."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ka2l_ray.artifacts import Folder
from ka2l_ray.attempts import EARLIER, Attempt


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Folder, Folder]:
    return Folder.of(str(tmp_path / "_checkpoint")), Folder.of(str(tmp_path / "data")).make()


def write(attempt: Attempt, name: str, ids: list[str], pending: bool = False) -> None:
    """A block as Ray Data writes it: a checkpoint with its ids, and a data file whose name begins as the checkpoint's."""
    mark = ".pending" if pending else ""
    pq.write_table(pa.table({"id": ids}), f"{attempt.checkpoint.path}/{name}{mark}.parquet")
    pq.write_table(pa.table({"id": ids, "value": [1] * len(ids)}), f"{attempt.data.path}/{name}_000000-0.parquet")


def counted(attempt: Attempt) -> dict[str, int]:
    return {f["name"].split("_")[0]: f["rows"] for f in attempt.files()}


def taken_over(attempt: Attempt) -> list[str]:
    return pq.read_table(f"{attempt.checkpoint.path}/{EARLIER}")["id"].to_pylist()


def test_a_first_attempt_takes_over_nothing(folders: tuple[Folder, Folder]) -> None:
    attempt = Attempt.begin(*folders)
    assert attempt.files() == []
    assert attempt.checkpoint.names() == []


def test_the_next_takes_over_what_is_committed_and_nothing_pending(folders: tuple[Folder, Folder]) -> None:
    first = Attempt.begin(*folders)
    write(first, "a", ["q1", "q2"])
    write(first, "b", ["q3"], pending=True)
    second = Attempt.begin(*folders)
    assert counted(second) == {"a": 2}
    assert taken_over(second) == ["q1", "q2"]
    write(second, "c", ["q3", "q4", "q5"])
    third = Attempt.begin(*folders)
    assert counted(third) == {"a": 2, "c": 3}
    assert taken_over(third) == ["q1", "q2", "q3", "q4", "q5"]
    assert third.rows_about(4) == 5
    assert second.rows_about(4) == 2 + 4


def test_what_an_earlier_attempt_commits_late_never_counts(folders: tuple[Folder, Folder]) -> None:
    first = Attempt.begin(*folders)
    second = Attempt.begin(*folders)
    write(first, "late", ["q1"])
    write(second, "again", ["q1"])
    assert counted(second) == {"again": 1}
    third = Attempt.begin(*folders)
    write(first, "later", ["q1"])
    assert counted(third) == {"again": 1}


def test_an_attempt_killed_before_its_note_has_not_begun(folders: tuple[Folder, Folder], monkeypatch: pytest.MonkeyPatch) -> None:
    first = Attempt.begin(*folders)
    write(first, "a", ["q1"])
    with monkeypatch.context() as killed:
        killed.delattr(Folder, "write_json")
        with pytest.raises(AttributeError):
            Attempt.begin(*folders)
    write(first, "b", ["q2"])
    assert counted(Attempt.begin(*folders)) == {"a": 1, "b": 1}


def test_a_block_written_a_second_time_or_cut_short_is_done_again(folders: tuple[Folder, Folder]) -> None:
    """A write task that died after its commit is tried again by Ray, over the same data file; a power cut leaves a file cut short."""
    first = Attempt.begin(*folders)
    write(first, "whole", ["q1"])
    write(first, "again", ["q2"])
    write(first, "again", ["q2"], pending=True)
    write(first, "cut", ["q3"])
    file = Path(first.data.path, "cut_000000-0.parquet")
    file.write_bytes(file.read_bytes()[:-20])
    second = Attempt.begin(*folders)
    assert counted(second) == {"whole": 1}
    assert taken_over(second) == ["q1"]
