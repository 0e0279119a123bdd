"""One driver per run folder: a second one would ask and train the same again, and clean away what the first still needs.

In: a run's folder. Out: `driver.json` in it, which names this process and is written anew every `BEAT_S` for as long as it lives.
A driver that was killed leaves the file behind: on its own machine that is seen at once, elsewhere by a file that stays as it is.
Refuses to know: what a run is; tasks and actors of a driver never ask.
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
from types import FrameType
from typing import Any, NoReturn

import psutil

from ka2l_ray.config import ConfigError
from ka2l_ray.dataflow.runs import DRIVER_FILE
from ka2l_ray.dataflow.storage import Folder, as_json

FILE = DRIVER_FILE
BEAT_S = 15.0
LOOKS = 4
"""A file of another machine that is the same for so many beats belongs to a driver that is gone."""
GRACE_S = 60.0
"""A driver whose run was taken over ends as at Ctrl-C, which lets a cluster of its own go; if that takes longer, it is ended at once."""

log = logging.getLogger("ka2l")
_taken_over = threading.Event()


def hold(folder: Folder) -> Callable[[], None]:
    """Make this process the driver of a run until it ends, or until what is returned is called; that leaves no file, and no empty folder.

    Raises `ConfigError` where another one is at work on it; waits up to `LOOKS` · `BEAT_S` where that is on another machine.
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
        with writing:  # a beat under way would write the file again
            if file.read_json_or_empty().get("token") == mine["token"]:
                file.delete()
                if made:
                    folder.delete_if_empty()

    threading.Thread(target=_beat, args=(file, mine, ended, writing), daemon=True).start()
    atexit.register(release)
    return release


def _beat(file: Folder, mine: dict[str, Any], ended: threading.Event, writing: threading.Lock) -> None:
    """Write the file anew for as long as the run is this driver's; stop the process where it no longer is."""
    failing = False
    while not ended.wait(BEAT_S):
        try:
            with writing:
                if ended.is_set():
                    return
                if not (taken_over := file.read_json_or_empty().get("token") != mine["token"]):
                    file.write_json(mine | {"beat_unix_s": time.time()})
        except (
            Exception
        ) as error:  # whatever a storage raises: a thread that ended here would give the run away without a word
            if not failing:
                log.warning(
                    "%s: cannot be kept up (%s: %s); trying again every %g s",
                    file.path,
                    type(error).__name__,
                    error,
                    BEAT_S,
                )
            failing = True
            continue
        if taken_over:
            log.error("another driver has taken over %s; this one stops", posixpath.dirname(file.path))
            _stop()
        if failing:
            log.info("%s: is kept up again", file.path)
        failing = False


def hear_interrupts() -> None:
    """Where SIGINT is ignored, as in what a script starts with `&` or nohup, let it through from this process alone.

    Such a process could not be stopped from within, and would hand the same deafness to all that it starts: Ray cancels a task by the very
    same interrupt. Ctrl-C at the terminal is ignored as before. Does nothing outside the main thread, where Python allows no handler.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _only_from_within)


def _only_from_within(number: int, frame: FrameType | None) -> None:
    if _taken_over.is_set():
        signal.default_int_handler(number, frame)


def _stop() -> NoReturn:
    """End this process: as at Ctrl-C, and after `GRACE_S` at once, whatever holds it up."""
    _taken_over.set()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(GRACE_S)
    log.error("this driver has not ended within %g s of its interrupt; it is ended now", GRACE_S)
    logging.shutdown()
    os._exit(1)


def _lives(folder: Folder, theirs: dict[str, Any]) -> bool:
    """Whether the driver that the file names is at work."""
    if theirs["host"] == socket.gethostname():
        return theirs["pid"] != os.getpid() and _runs(theirs)
    log.info("%s is held by %s; looking for %.0f s whether it lives", folder.path, _who(theirs), LOOKS * BEAT_S)
    for _ in range(LOOKS):
        time.sleep(BEAT_S)
        if (now := (folder / FILE).read_json_or_empty()) != theirs:
            return bool(now)
    return False


def _runs(theirs: dict[str, Any]) -> bool:
    """Whether that process of this machine still runs, and is not another one with its number."""
    try:
        process = psutil.Process(theirs["pid"])
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - theirs["started_unix_s"]) < 1.0
    except psutil.NoSuchProcess:
        return False


def _refused(folder: Folder, theirs: dict[str, Any]) -> ConfigError:
    return ConfigError(
        f"{folder.path}: another driver is at work on this run, {_who(theirs)}. Wait for it, stop it, or choose another run.name"
    )


def _who(theirs: dict[str, Any]) -> str:
    return f"process {theirs['pid']} on {theirs['host']}" if theirs else "which has just come or gone"
