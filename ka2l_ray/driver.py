"""One driver per run folder: a second one would ask and train the same again, and clean away what the first still needs.

In: a run's folder. Out: `driver.json` in it, which names this process and is written anew every `BEAT_S` for as long as it lives.
A driver that was killed leaves the file behind: on its own machine that is seen at once, elsewhere by a file that stays as it is.
Refuses to know: what a run is; tasks and actors of a driver never ask.
"""

import atexit
import contextlib
import logging
import os
import signal
import socket
import threading
import time
import uuid
from typing import Any

import psutil

from ka2l_ray.artifacts import Folder
from ka2l_ray.config import ConfigError

FILE = "driver.json"
BEAT_S = 15.0
LOOKS = 4
"""A file of another machine that is the same for so many beats belongs to a driver that is gone."""

log = logging.getLogger("ka2l")


def hold(folder: Folder) -> None:
    """Make this process the driver of a run until it ends.

    Raises `ConfigError` where another one is at work on it; waits up to `LOOKS` · `BEAT_S` where that is on another machine.
    """
    file = folder / FILE
    if (theirs := file.read_json_or_empty()) and _lives(folder, theirs):
        who = _who(theirs)
        raise ConfigError(f"{folder.path}: another driver is at work on this run, {who}. Wait for it, stop it, or choose another run.name")
    mine = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started_unix_s": psutil.Process().create_time(),
        "token": uuid.uuid4().hex,
    }
    file.write_json(mine)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_S):
            with contextlib.suppress(OSError):  # storage that does not answer for a moment; the next beat tries again
                if file.read_json_or_empty().get("token") != mine["token"]:
                    log.error("another driver has taken over %s; this one stops", folder.path)
                    os.kill(os.getpid(), signal.SIGINT)
                    return
                file.write_json(mine | {"beat_unix_s": time.time()})

    def release() -> None:
        ended.set()
        if file.read_json_or_empty().get("token") == mine["token"]:
            file.delete()

    threading.Thread(target=beat, daemon=True).start()
    atexit.register(release)


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


def _who(theirs: dict[str, Any]) -> str:
    return f"process {theirs['pid']} on {theirs['host']}"
