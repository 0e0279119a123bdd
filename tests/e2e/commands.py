"""Running `ka2l` as a user does, and killing it as a machine does."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
LIGHTER = ["--set", "finetune.workers=1", "--set", "finetune.zero_stage=0"]
"""Of a smoke run whose trainings are not what is tested; `tests/ray` trains on two workers."""
SMALLEST = [
    *LIGHTER,
    *("--set", "active.strategies=[ka2l]", "--set", "finetune.replay.ratio=0", "--set", "collect.layers=[4]"),
]
"""Of the run that is made as a job, and of those that are compared with it."""
LINES = 80
"""Lines that a slow job prints."""
KA2L = [sys.executable, "-m", "ka2l_ray.cli"]


@dataclass(frozen=True)
class JobRun:
    """The submission with a wrong token, the one with the right token, the run's folder; and a slow job's log, followed
    through a connection that was cut `cuts` times."""

    refused: subprocess.CompletedProcess[str]
    done: subprocess.CompletedProcess[str]
    folder: Path
    followed: subprocess.CompletedProcess[str]
    cuts: int


def environment() -> dict[str, str]:
    """The test's environment without a cluster to join."""
    return {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")} | {"COLUMNS": "160"}


def ka2l(*arguments: str, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*KA2L, *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout_s
    )


def kill_when(arguments: list[str], ready: Callable[[], bool], wait_s: float = 0.0, timeout_s: float = 600) -> None:
    """Start a command and send it SIGKILL `wait_s` after `ready`; its local cluster is gone on return.

    Fails where the command ends before that.
    """
    process = subprocess.Popen(
        [*KA2L, *arguments],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + timeout_s
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            signal_group(process, signal.SIGKILL)
            raise AssertionError(f"the command ended or hung before the moment to kill it: {process.communicate()[1]}")
        time.sleep(0.05)
    time.sleep(wait_s)
    cluster = psutil.Process(process.pid).children(recursive=True)
    # The group includes Ray's agents, which would outlive it by a minute; workers have groups of their own.
    signal_group(process, signal.SIGKILL)
    process.wait()
    psutil.wait_procs(cluster, timeout=60)


def signal_group(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal to a process started in its own session and to its children there, if any are left."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def listed(manifest: Path) -> list[str]:
    return sorted(f["name"] for f in json.loads(manifest.read_text())["files"])
