"""`driver.hold`: one driver per run folder, however the last one ended; and folders that `Run.open` refuses."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from ka2l_ray.config import Config, ConfigError, parse_config
from ka2l_ray.dataflow import driver
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import StageError

HOLDER = """
import sys, time
from ka2l_ray.dataflow import driver
from ka2l_ray.dataflow.storage import Folder

driver.BEAT_S, driver.GRACE_S = 0.1, 1.0
driver.hold(Folder.of(sys.argv[1]))
print("held", flush=True)
until = time.monotonic() + float(sys.argv[2])
while time.monotonic() < until:
    try:
        time.sleep(until - time.monotonic())
    except KeyboardInterrupt:
        if "deaf" not in sys.argv:
            raise
"""
THEIRS = {"host": "elsewhere", "pid": 1, "started_unix_s": 0.0, "token": "theirs"}


def holder(
    folder: Path, seconds: float, *more: str, sigint: signal.Handlers = signal.SIG_DFL
) -> "subprocess.Popen[str]":
    """Another process that holds the run once this returns; it starts with the given handling of SIGINT."""
    command = [sys.executable, "-c", HOLDER, str(folder), str(seconds), *more]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, sigint),
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the one that a driver writes again and again."""
    return {
        str(f.relative_to(folder)): f.read_bytes()
        for f in sorted(folder.rglob("*"))
        if f.is_file() and f.name != driver.FILE
    }


def config(storage: Path, **run: Any) -> Config:
    return parse_config({"run": {"name": "r", "storage": str(storage)} | run}, "test")


def test_a_second_driver_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    first = holder(tmp_path, 600)
    try:
        with pytest.raises(
            ConfigError, match=rf"{tmp_path}: another driver is at work on this run, process {first.pid} on .*run\.name"
        ):
            driver.hold(Folder.of(str(tmp_path)))
    finally:
        first.kill()
    while psutil.Process(first.pid).status() != psutil.STATUS_ZOMBIE:  # as where nobody asks how it ended
        time.sleep(0.01)
    driver.hold(Folder.of(str(tmp_path)))
    first.communicate()
    assert json.loads((tmp_path / driver.FILE).read_text())["pid"] == os.getpid()


def test_a_driver_that_ends_leaves_no_file(tmp_path: Path) -> None:
    process = holder(tmp_path, 0)
    assert process.communicate()[1] == ""
    assert not (tmp_path / driver.FILE).exists()


@pytest.mark.parametrize("sigint", [signal.SIG_DFL, signal.SIG_IGN], ids=["heard", "ignored"])
def test_a_driver_whose_run_was_taken_over_stops(tmp_path: Path, sigint: signal.Handlers) -> None:
    """Ignored: as in what a script starts with `&` or nohup."""
    process = holder(tmp_path, 600, sigint=sigint)
    Folder.of(str(tmp_path / driver.FILE)).write_json(THEIRS)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert "another driver has taken over" in stderr
    assert "KeyboardInterrupt" in stderr
    assert json.loads((tmp_path / driver.FILE).read_text())["token"] == "theirs"


def test_a_driver_that_ignores_its_interrupt_exits(tmp_path: Path) -> None:
    process = holder(tmp_path, 600, "deaf")
    Folder.of(str(tmp_path / driver.FILE)).write_json(THEIRS)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "has not stopped within 1 s" in stderr


@pytest.mark.parametrize(("hears", "handler"), [(False, "SIG_IGN"), (True, "default_int_handler")])
def test_what_a_deaf_driver_starts_can_be_interrupted(hears: bool, handler: str) -> None:
    """Above all Ray's workers: a task is cancelled by an interrupt, which Python drops where SIGINT is ignored."""
    child = "import signal; print(repr(signal.getsignal(signal.SIGINT)))"
    code = f"import subprocess, sys; from ka2l_ray.dataflow import driver; {'driver.hear_interrupts(); ' * hears}"
    code += f"subprocess.run([sys.executable, '-c', {child!r}])"
    ignore = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731
    done = subprocess.run([sys.executable, "-c", code], preexec_fn=ignore, capture_output=True, text=True, check=True)
    assert handler in done.stdout


def test_ctrl_c_is_still_ignored_where_it_was(tmp_path: Path) -> None:
    process = holder(tmp_path, 600, sigint=signal.SIG_IGN)
    try:
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "the store is away"),
        StageError("is not valid JSON"),
        pa.ArrowInvalid("cut"),
        RuntimeError("no credentials"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_the_heartbeat_survives_whatever_storage_raises(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(driver, "BEAT_S", 0.02)
    reads, failing, read = [0], threading.Event(), Folder.read_json_or_empty

    def fails(file: Folder) -> dict[str, Any]:
        if failing.is_set():
            reads[0] += 1
            raise error
        return read(file)

    monkeypatch.setattr(Folder, "read_json_or_empty", fails)
    caplog.set_level(logging.INFO, "ka2l")
    release = driver.hold(Folder.of(str(tmp_path)))
    try:
        failing.set()
        wait_for(lambda: reads[0] >= 4)
        failing.clear()
        file = tmp_path / driver.FILE
        before = file.read_bytes()
        wait_for(lambda: file.read_bytes() != before)
        wait_for(lambda: "is updated again" in caplog.text)  # logged only after the file is written
    finally:
        failing.clear()
        release()
    messages = [r.message for r in caplog.records]
    assert [type(error).__name__ in m for m in messages if "cannot be updated" in m] == [True]
    assert sum("is updated again" in m for m in messages) == 1


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_refused_driver_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    Run.open(config(tmp_path, seed=7))
    before = content(tmp_path)
    first = holder(tmp_path / "r", 600)
    try:
        token = json.loads((tmp_path / "r" / driver.FILE).read_text())["token"]
        with pytest.raises(ConfigError, match="another driver is at work"):
            Run.open(config(tmp_path, seed=8, max_error_fraction=0.5), hold=driver.hold)
        assert content(tmp_path) == before
        assert json.loads((tmp_path / "r" / driver.FILE).read_text())["token"] == token
    finally:
        first.kill()
        first.communicate()


def test_a_refused_comparison_leaves_every_run_as_it_was(tmp_path: Path) -> None:
    """The second of three seeds is held: neither the first, which is free, nor the third, which is new, changes."""
    for name in ("seed_0", "seed_1"):
        Run.open(config(tmp_path, name=name))
    before = content(tmp_path)
    first = holder(tmp_path / "seed_1", 600)
    try:
        with pytest.raises(ConfigError, match="seed_1: another driver is at work"):
            Run.open_all(
                [config(tmp_path, name=f"seed_{n}", max_error_fraction=0.5) for n in range(3)], hold=driver.hold
            )
    finally:
        first.kill()
        first.communicate()
    assert content(tmp_path) == before
    assert [(tmp_path / f"seed_{n}").exists() for n in range(3)] == [True, True, False]
    assert not (tmp_path / "seed_0" / driver.FILE).exists()


def test_a_refused_configuration_releases_the_run(tmp_path: Path) -> None:
    started = Run.open(config(tmp_path, seed=7))
    (started.folder / "questions/manifest.json").write_json({"files": [], "rows": 0})
    before = content(tmp_path)
    with pytest.raises(ConfigError, match="another configuration"):
        Run.open(config(tmp_path, seed=8), hold=driver.hold)
    assert content(tmp_path) == before
    assert not (tmp_path / "r" / driver.FILE).exists()
    holder(tmp_path / "r", 0).communicate()


def test_a_folder_that_is_not_a_run_is_left_unchanged(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r/thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"has no config\.yaml"):
        Run.open(config(tmp_path), hold=driver.hold)
    assert [f.name for f in (tmp_path / "r").iterdir()] == ["thesis.txt"]


def test_a_run_that_cannot_be_pinned_leaves_no_folder(tmp_path: Path) -> None:
    def pin(given: Config) -> Config:
        raise ConfigError("the hub does not answer")

    with pytest.raises(ConfigError, match="the hub"):
        Run.open(config(tmp_path), pin, driver.hold)
    assert not (tmp_path / "r").exists()


def test_a_reused_process_number_is_not_the_driver(tmp_path: Path) -> None:
    process = holder(tmp_path, 600)
    file = tmp_path / driver.FILE
    try:
        record = json.loads(file.read_text())
    finally:
        process.kill()
    process.communicate()
    file.write_text(json.dumps(record | {"pid": os.getppid(), "started_unix_s": 1.0}))
    driver.hold(Folder.of(str(tmp_path)))


@pytest.mark.parametrize("lives", [True, False])
def test_a_driver_on_another_machine_is_known_by_its_beats(
    tmp_path: Path, lives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "BEAT_S", 0.2)
    file, ended = Folder.of(str(tmp_path / driver.FILE)), threading.Event()
    theirs = THEIRS
    file.write_json(theirs)

    def beat() -> None:
        while not ended.wait(0.05):
            file.write_json(theirs | {"beat_unix_s": time.time()})

    thread = threading.Thread(target=beat)
    try:
        if lives:
            thread.start()
            with pytest.raises(ConfigError, match="process 1 on elsewhere"):
                driver.hold(Folder.of(str(tmp_path)))
        else:
            driver.hold(Folder.of(str(tmp_path)))
    finally:
        ended.set()
        if lives:
            thread.join()
