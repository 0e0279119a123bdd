"""Folders that are made once for all processes of a node: complete or absent, and made again where they are damaged."""

import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ka2l_ray.errors import ConfigError, UserError
from ka2l_ray.models import cache
from ka2l_ray.models.cache import cached, copies_folder, locked


def build(folder: Path) -> None:
    time.sleep(0.1)
    with (folder.parent / "builds").open("a") as log:
        log.write("built\n")
    (folder / "inner").mkdir()
    (folder / "inner/weights").write_bytes(b"1234")


def build_and_hang(folder: Path) -> None:
    (folder / "weights").write_bytes(b"12")
    (folder.parent / "hangs").touch()
    time.sleep(60)


def builds(place: Path) -> int:
    return (place / "builds").read_text().count("\n")


def test_several_processes_build_it_once(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=cached, args=(tmp_path, "m", build)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0] * 4
    assert builds(tmp_path) == 1
    assert (tmp_path / "m/inner/weights").read_bytes() == b"1234"


def test_a_killed_build_is_never_used_and_frees_the_lock(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=cached, args=(tmp_path, "m", build_and_hang))
    process.start()
    while not (tmp_path / "hangs").exists():
        time.sleep(0.01)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "m").exists()
    folder = cached(tmp_path, "m", build)
    assert sorted(f.name for f in folder.rglob("*") if f.is_file()) == [cache.CONTENTS, "weights"]


def cut(folder: Path) -> None:
    (folder / "inner/weights").write_bytes(b"12")


def deleted(folder: Path) -> None:
    (folder / "inner/weights").unlink()


def without_record(folder: Path) -> None:
    (folder / cache.CONTENTS).write_text("{")


@pytest.mark.parametrize("damage", [cut, deleted, without_record])
def test_a_damaged_folder_is_built_again(damage: Callable[[Path], None], tmp_path: Path) -> None:
    damage(cached(tmp_path, "m", build))
    assert (cached(tmp_path, "m", build) / "inner/weights").read_bytes() == b"1234"
    assert cached(tmp_path, "m", build) == tmp_path / "m"
    assert builds(tmp_path) == 2


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        RuntimeError(f"I/O error: {os.strerror(errno.ENOSPC)} (os error 28)"),
    ],
)
def test_a_full_disk_is_one_clear_error_that_names_the_field(error: Exception, tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "weights").write_bytes(b"12")
        raise error

    with pytest.raises(ConfigError, match=r"the disk of node .* is full.*set model\.cache to a folder on a larger"):
        cached(tmp_path, "m", fill)
    assert not (tmp_path / "m").exists()


def test_another_error_passes_unchanged(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise OSError("connection reset")

    with pytest.raises(OSError, match="reset") as raised:
        cached(tmp_path, "m", fail)
    assert not isinstance(raised.value, UserError)


def test_what_cannot_fit_is_refused_before_it_is_fetched(tmp_path: Path) -> None:
    too_much = pytest.raises(ConfigError, match=r"1,000,000\.0 GB of weights are to be stored here, where")
    with too_much, cache.room_for(10**15, tmp_path):
        raise AssertionError("nothing may be fetched")


def test_a_place_that_cannot_be_made_is_refused_by_its_field(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"model\.cache = .*file.*: cannot be written"):
        copies_folder(str(tmp_path / "file"))


def test_a_lock_is_for_one_name(tmp_path: Path) -> None:
    with locked(tmp_path / "a.lock"), locked(tmp_path / "b.lock"):
        assert {f.name for f in tmp_path.iterdir()} == {"a.lock", "b.lock"}
