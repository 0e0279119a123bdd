"""One driver per run folder: a second one would repeat the first one's work and delete what the first still needs.

In: a run's folder. Out: `driver.json` in it, which names this process and is rewritten every `BEAT_S` while it lives.
A driver that was killed leaves the file behind: on the same machine that is noticed at once, from another machine once
the file has stopped changing. Refuses to know: what a run is. Tasks and actors do not use it.
"""

import atexit
import logging
import os
import posixpath
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

import psutil

from ka2l_ray.config import ConfigError
from ka2l_ray.dataflow.failures import named
from ka2l_ray.dataflow.log import log
from ka2l_ray.dataflow.runs import DRIVER_FILE as FILE
from ka2l_ray.dataflow.storage import Folder, as_json

BEAT_S = 15.0
MISSED_BEATS = 4
"""The driver of a file from another machine that has not changed for this many beats is gone."""
GRACE_S = 60.0
"""A driver whose run was taken over stops as at Ctrl-C, which also stops its own cluster; after this time it exits."""

_taken_over = threading.Event()


def hold(folder: Folder) -> Callable[[], None]:
    """Make this process the driver of a run until it ends, or until the function returned here is called.

    That function deletes the file, and the folder where this created it and it is still empty. Raises `ConfigError`
    where another driver is at work on the run; waits up to `MISSED_BEATS` · `BEAT_S` where that is on another machine.
    """
    file, made = folder / FILE, not folder.exists()
    if (theirs := file.read_json_or_empty()) and _lives(folder, theirs):
        raise _refused(folder, theirs)
    mine = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started_unix_s": psutil.Process().create_time(),
        "token": uuid.uuid4().hex,
    }
    hear_interrupts()
    if theirs and file.read_json_or_empty() == theirs:
        file.delete()
    if not file.write_new(as_json(mine)):
        raise _refused(folder, file.read_json_or_empty())
    ended, writing = threading.Event(), threading.Lock()

    def release() -> None:
        ended.set()
        with writing:  # otherwise a beat in progress would write the file again
            if file.read_json_or_empty().get("token") == mine["token"]:
                file.delete()
                if made:
                    folder.delete_if_empty()

    threading.Thread(target=_beat, args=(file, mine, ended, writing), daemon=True).start()
    atexit.register(release)
    return release


def _beat(file: Folder, mine: dict[str, Any], ended: threading.Event, writing: threading.Lock) -> None:
    """Rewrite the file while it is this driver's; stop the process once it is not."""
    failing = False
    while not ended.wait(BEAT_S):
        try:
            with writing:
                if ended.is_set():
                    return
                if not (taken_over := file.read_json_or_empty().get("token") != mine["token"]):
                    file.write_json(mine | {"beat_unix_s": time.time()})
        except Exception as error:  # whatever storage raises: if this thread ended, the run would be lost silently
            if not failing:
                log.warning("%s: cannot be updated (%s); retrying every %g s", file.path, named(error), BEAT_S)
            failing = True
        else:
            if taken_over:
                _stop(file)
            if failing:
                log.info("%s: is updated again", file.path)
            failing = False


def hear_interrupts() -> None:
    """Where SIGINT is ignored, as in what a script starts with `&` or nohup, accept it from this process only.

    Otherwise such a process could not stop itself, and its child processes would ignore the interrupt too, with which
    Ray cancels tasks. Ctrl-C at the terminal is still ignored. Does nothing outside the main thread, where Python
    allows no handlers.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _only_from_within)


def _only_from_within(number: int, frame: FrameType | None) -> None:
    if _taken_over.is_set():
        signal.default_int_handler(number, frame)


def _stop(file: Folder) -> NoReturn:
    """Stop this process as at Ctrl-C; where that takes longer than `GRACE_S`, exit."""
    log.error("another driver has taken over %s; this one stops", posixpath.dirname(file.path))
    _taken_over.set()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(GRACE_S)
    log.error("this driver has not stopped within %g s of its interrupt; it exits now", GRACE_S)
    logging.shutdown()
    os._exit(1)


def _lives(folder: Folder, theirs: dict[str, Any]) -> bool:
    """Whether the driver that the file names is still running."""
    if theirs["host"] == socket.gethostname():
        return theirs["pid"] != os.getpid() and _runs(theirs)
    log.info(
        "%s is held by %s; watching for %.0f s whether it is alive", folder.path, _who(theirs), MISSED_BEATS * BEAT_S
    )
    for _ in range(MISSED_BEATS):
        time.sleep(BEAT_S)
        if (now := (folder / FILE).read_json_or_empty()) != theirs:
            return bool(now)
    return False


@dataclass(frozen=True)
class DriverState:
    """The process that `driver.json` names. `is_alive`: on this machine, whether it runs; on another one, whether its
    last sign of life is younger than `MISSED_BEATS` · `BEAT_S`, by this machine's clock."""

    host: str
    pid: int
    is_alive: bool
    beat_age_s: float


def driver_state(folder: Folder) -> DriverState | None:
    """The driver of a run; None where it ended by itself or never started. Nothing is written or waited for."""
    file = folder / FILE
    if not (theirs := file.read_json_or_empty()):
        return None
    age_s = max(0.0, time.time() - file.changed_unix_s())
    is_alive = _runs(theirs) if theirs["host"] == socket.gethostname() else age_s < MISSED_BEATS * BEAT_S
    return DriverState(theirs["host"], theirs["pid"], is_alive, age_s)


def _runs(theirs: dict[str, Any]) -> bool:
    """Whether that process of this machine still runs, and its number has not been given to another one."""
    try:
        process = psutil.Process(theirs["pid"])
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - theirs["started_unix_s"]) < 1.0
    except psutil.NoSuchProcess:
        return False


def _refused(folder: Folder, theirs: dict[str, Any]) -> ConfigError:
    return ConfigError(
        f"{folder.path}: another driver is at work on this run, {_who(theirs)}. "
        "Wait for it, stop it, or choose another run.name"
    )


def _who(theirs: dict[str, Any]) -> str:
    return f"process {theirs['pid']} on {theirs['host']}" if theirs else "which has only just started or ended"
