"""`attempts`: what counts when a stage is begun again and again. Spark's rules for committing output, as pure tests."""

from pathlib import Path

import pytest

from ka2l_ray.dataflow.attempts import (
    NOTE,
    SHARDS_PER_FOLDER,
    Attempt,
    ShardFile,
    Shards,
    chosen,
    listed,
)
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import StageError

CUT = Shards("collect", rows=25, size=10)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Folder, Folder]:
    return Folder.of(str(tmp_path / "_attempt")), Folder.of(str(tmp_path / "data")).make()


def write(data: Folder, attempt: Attempt, shard: int, errors: int = 0, own: int | None = None) -> ShardFile:
    """A file as a writing task leaves it."""
    file = ShardFile.new(shard, attempt.token, errors, errors if own is None else own)
    (data / file.name).write_bytes(b"rows")
    return file


def test_shards_cover_every_row_once() -> None:
    assert [CUT.span(n) for n in range(CUT.count)] == [(0, 10), (10, 20), (20, 25)]
    assert sum(map(CUT.length, range(CUT.count))) == 25
    assert Shards("s", 0, 10).count == 0


def test_a_name_says_how_many_rows_failed_and_other_names_are_no_shards() -> None:
    file = ShardFile.new(1234567, "0123abcd", 12, 3)
    assert ShardFile.parse(file.name) == file
    for name in ("000/000001-0123abcd-0123abcd-0-0.parquet.1a2b3c4d.part", "000/part-0.parquet", "manifest.json"):
        assert ShardFile.parse(name) is None


def test_of_two_tries_that_race_one_commits(folders: tuple[Folder, Folder]) -> None:
    """Within an attempt the one that the driver hears of first; after its death always the same one."""
    state, data = folders
    attempt = Attempt.begin(state, data, CUT)
    first, second = write(data, attempt, 0), write(data, attempt, 0)
    assert (attempt.accept(first), attempt.accept(second)) == (True, False)
    assert attempt.counted == {0: first}
    found = [Attempt.begin(state, data, CUT).counted[0] for _ in range(3)]
    assert found == [min(first, second)] * 3


def test_a_try_that_fails_to_write_leaves_the_place_to_the_next(folders: tuple[Folder, Folder]) -> None:
    state, data = folders
    attempt = Attempt.begin(state, data, CUT)
    (data / f"{ShardFile.new(0, attempt.token, 0, 0).name}.1a2b3c4d.part").write_bytes(b"ro")  # killed while it wrote
    assert 0 in Attempt.begin(state, data, CUT).missing
    again = Attempt.begin(state, data, CUT)
    file = write(data, again, 0)
    assert again.accept(file)
    assert again.missing == [1, 2]


def test_where_every_try_fails_nothing_counts(folders: tuple[Folder, Folder]) -> None:
    state, data = folders
    for _ in range(3):
        attempt = Attempt.begin(state, data, CUT)
        assert (attempt.counted, attempt.missing, attempt.done) == ({}, [0, 1, 2], [])


def test_what_an_earlier_attempt_writes_late_never_counts(folders: tuple[Folder, Folder]) -> None:
    state, data = folders
    first = Attempt.begin(state, data, CUT)
    early = write(data, first, 0)
    second = Attempt.begin(state, data, CUT)
    late = write(data, first, 1)
    assert second.counted == {0: early}
    assert not second.accept(late)
    own = write(data, second, 1)
    assert second.accept(own)
    third = Attempt.begin(state, data, CUT)
    write(data, first, 2)
    write(data, second, 2)
    assert third.counted == {0: early, 1: own}
    assert third.missing == [2]


def test_what_counted_once_is_not_replaced_by_a_later_file_of_its_number(folders: tuple[Folder, Folder]) -> None:
    state, data = folders
    first = Attempt.begin(state, data, CUT)
    counts = write(data, first, 0)
    second = Attempt.begin(state, data, CUT)
    assert not second.accept(write(data, second, 0))
    assert Attempt.begin(state, data, CUT).counted == {0: counts}


def test_an_attempt_killed_before_its_note_has_not_begun(
    folders: tuple[Folder, Folder], monkeypatch: pytest.MonkeyPatch
) -> None:
    state, data = folders
    first = Attempt.begin(state, data, CUT)
    write(data, first, 0)
    with monkeypatch.context() as killed:
        killed.delattr(Folder, "write_json")
        with pytest.raises(AttributeError):
            Attempt.begin(state, data, CUT)
    write(data, first, 1)
    assert Attempt.begin(state, data, CUT).missing == [2]


def test_attempts_of_another_stage_are_kept_apart(folders: tuple[Folder, Folder]) -> None:
    state, data = folders
    other = Attempt.begin(state, data, Shards("label", 25, 10))
    write(data, other, 0)
    assert Attempt.begin(state, data, CUT).missing == [0, 1, 2]


def test_how_rows_are_cut_is_kept_and_other_rows_are_refused(folders: tuple[Folder, Folder]) -> None:
    state, data = folders
    Attempt.begin(state, data, CUT)
    assert Attempt.begin(state, data, Shards("collect", 25, 4)).shards == CUT
    with pytest.raises(
        StageError, match=r"collect: .*data was started for 25 rows, and there are 26 now; delete .*data and .*_attempt"
    ):
        Attempt.begin(state, data, Shards("collect", 26, 10))


def test_a_file_that_is_gone_is_a_shard_to_be_done(folders: tuple[Folder, Folder]) -> None:
    state, data = folders
    first = Attempt.begin(state, data, CUT)
    files = [write(data, first, n) for n in range(3)]
    Attempt.begin(state, data, CUT)
    (data / files[1].name).delete()
    assert Attempt.begin(state, data, CUT).missing == [1]


def test_failed_rows_are_repeated_and_their_old_file_counts_until_then(folders: tuple[Folder, Folder]) -> None:
    state, data = folders
    first = Attempt.begin(state, data, CUT)
    old = [write(data, first, n, errors=n) for n in range(3)]
    assert Attempt.left(state, data).retry(state) == 3
    second = Attempt.begin(state, data, CUT)
    assert (second.missing, second.done, second.own_errors) == ([1, 2], [0], 0)
    assert second.counted[1] == old[1]
    new = write(data, second, 1)
    assert second.accept(new)
    third = Attempt.begin(state, data, CUT)  # killed before shard 2 was done anew
    assert (third.missing, third.counted[1], third.counted[2]) == ([2], new, old[2])


def test_a_finished_table_is_opened_again_for_its_failed_shards(folders: tuple[Folder, Folder]) -> None:
    state, data = folders
    files = [ShardFile.new(n, "0123abcd", errors=int(n == 1), own=int(n == 1)) for n in range(3)]
    for file in files:
        (data / file.name).write_bytes(b"rows")
    Attempt("", CUT, {f.shard: f for f in files}, {1}).save(state)
    attempt = Attempt.begin(state, data, CUT)
    assert (attempt.missing, attempt.done) == ([1], [0, 2])


def test_files_beyond_the_last_shard_and_of_other_attempts_are_not_chosen() -> None:
    names = [ShardFile.new(n, token, 0, 0).name for n in (0, 3) for token in ("0123abcd", "ffffffff")]
    assert list(chosen(names, "0123abcd", CUT)) == [0]


def test_folders_hold_a_listing_page_each(tmp_path: Path) -> None:
    data, cut = Folder.of(str(tmp_path)), Shards("s", 2 * SHARDS_PER_FOLDER + 1, 1)
    names = [
        ShardFile.new(n, "0123abcd", 0, 0).name
        for n in (0, SHARDS_PER_FOLDER - 1, SHARDS_PER_FOLDER, 2 * SHARDS_PER_FOLDER)
    ]
    for name in names:
        (data / name).write_bytes(b"")
    assert {n.split("/")[0] for n in names} == {"000", "001", "002"}
    assert sorted(listed(data, cut)) == sorted(names)


def test_the_note_is_all_that_an_attempt_leaves_beside_data(folders: tuple[Folder, Folder]) -> None:
    state, data = folders
    for _ in range(3):
        write(data, Attempt.begin(state, data, CUT), 0)
    assert state.names(files_only=False) == [NOTE]
