"""`ray start --head`, then `ray job submit`, with token authentication on."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ROOT, environment, results

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def head() -> Iterator[tuple[str, dict[str, str]]]:
    """A head node of this test's own: (dashboard address, environment with the token). Ended by its process group, never `ray stop`."""
    port, dashboard, agent = free_port(), free_port(), free_port()
    env = environment() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    ports = [f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command = [*RAY, "start", "--head", "--block", *ports, "--num-cpus=6"]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    deadline = time.monotonic() + 240
    # The dashboard answers before the agent that starts jobs does: ready means that a job of one word has run.
    while (ready := submit(address, env, "true")).returncode != 0:
        if process.poll() is not None or time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"the head node took no job: {ready.stdout}{ready.stderr}{process.communicate()[0]}")
        time.sleep(2)
    yield address, env
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=60)


def submit(address: str, env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*RAY, "job", "submit", "--address", address, "--working-dir", ".", "--", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)


def test_the_loop_runs_as_a_job_and_needs_the_token(head: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    address, env = head
    arguments = ["python", "jobs/active_learning.py", "--config", "jobs/configs/smoke.yaml", "--set", f"run.storage={tmp_path}"]
    refused = submit(address, env | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}, *arguments)
    assert refused.returncode != 0
    done = submit(address, env, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout + done.stderr
    assert [r["round"] for r in results(tmp_path / "smoke")["rounds"]] == [0, 1, 0, 1]
    assert (tmp_path / "smoke/report/index.html").exists()
