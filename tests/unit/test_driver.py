"""`driver.hold`: one driver per run folder, whatever became of the one before."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from ka2l_ray import driver
from ka2l_ray.artifacts import Folder
from ka2l_ray.config import ConfigError

HOLDER = """
import sys, time
from ka2l_ray import driver
from ka2l_ray.artifacts import Folder

driver.BEAT_S = 0.1
driver.hold(Folder.of(sys.argv[1]))
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


def holder(folder: Path, seconds: float) -> "subprocess.Popen[str]":
    """Another process that holds the run, from the moment that this returns."""
    command = [sys.executable, "-c", HOLDER, str(folder), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_driver_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    first = holder(tmp_path, 600)
    try:
        with pytest.raises(ConfigError, match=rf"{tmp_path}: another driver is at work on this run, process {first.pid} on .*run\.name"):
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


def test_a_driver_whose_run_was_taken_over_stops(tmp_path: Path) -> None:
    process = holder(tmp_path, 600)
    Folder.of(str(tmp_path / driver.FILE)).write_json({"host": "elsewhere", "pid": 1, "started_unix_s": 0.0, "token": "theirs"})
    told = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert "KeyboardInterrupt" in told
    assert json.loads((tmp_path / driver.FILE).read_text())["token"] == "theirs"


def test_a_number_that_another_process_has_by_now_is_no_driver(tmp_path: Path) -> None:
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
def test_a_driver_on_another_machine_is_known_by_its_beats(tmp_path: Path, lives: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "BEAT_S", 0.2)
    file, ended = Folder.of(str(tmp_path / driver.FILE)), threading.Event()
    theirs = {"host": "elsewhere", "pid": 1, "started_unix_s": 0.0, "token": "theirs"}
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
