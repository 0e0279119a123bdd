"""One smoke run for all tests of this folder: a Ray job on a head node of its own, with token authentication."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from commands import KA2L, LINES, ROOT, SMALLEST, JobRun, environment, signal_group
from cutting_proxy import cutting_proxy
from ports import free_ports

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the longest test first, beside which the others are run."""
    slow = {item.path for item in items if "job_run" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def job_run(tmp_path_factory: pytest.TempPathFactory) -> JobRun:
    storage = tmp_path_factory.mktemp("job")
    command = [
        "python",
        "jobs/active_learning.py",
        "--config",
        "jobs/configs/smoke.yaml",
        "--set",
        f"run.storage={storage}",
        *SMALLEST,
    ]
    with head() as (address, env):
        refused = submit(address, env | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}, *command)
        followed, cuts = follow_through_cuts(address, env)
        return JobRun(refused, submit(address, env, *command), storage / "smoke", followed, cuts)


def follow_through_cuts(address: str, env: dict[str, str]) -> tuple[subprocess.CompletedProcess[str], int]:
    """Follow the log of a job that prints `LINES` lines, slowly, and ends with status 7: (what was shown, cuts)."""
    slow = f"import time\nfor n in range({LINES}): print('line', n, 'x' * 200, flush=True); time.sleep(0.1)\nexit(7)"
    arguments = [*RAY, "job", "submit", "--address", address, "--no-wait", "--submission-id", "slow-1", "--"]
    subprocess.run([*arguments, "python", "-c", slow], env=env, check=True, capture_output=True)
    server = urlsplit(address)
    where = (server.hostname or "", server.port or 0)
    with cutting_proxy(where, b"/logs/tail", allowed=(0, 5_000, 5_000)) as (proxy, port):
        command = [*KA2L, "submit", "--follow", "slow-1", "--address", f"http://127.0.0.1:{port}"]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    return done, proxy.cut


@contextmanager
def head() -> Iterator[tuple[str, dict[str, str]]]:
    """A head node: (dashboard address, environment with the token)."""
    env = environment() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    with ExitStack() as stack:
        try:
            address = stack.enter_context(head_node(env))
        except (AssertionError, subprocess.TimeoutExpired):  # another process may have taken one of its ports
            address = stack.enter_context(head_node(env))
        yield address, env


@contextmanager
def head_node(env: dict[str, str]) -> Iterator[str]:
    """The dashboard's address. Ended by its process group, never `ray stop`."""
    port, dashboard, agent, client = free_ports(4)
    ports = [
        f"--port={port}",
        f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}",
        f"--ray-client-server-port={client}",
    ]
    scratch = tempfile.mkdtemp(prefix="ka2l-")  # not shared: Ray looks in the shared one for a cluster that is gone
    command = [*RAY, "start", "--head", "--block", *ports, "--num-cpus=6", f"--temp-dir={scratch}"]
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_for_jobs(process, address, env)
        yield address
    finally:
        signal_group(process, signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            signal_group(process, signal.SIGKILL)
            process.wait()
        shutil.rmtree(scratch, ignore_errors=True)


def _wait_for_jobs(process: subprocess.Popen[str], address: str, env: dict[str, str]) -> None:
    """The dashboard answers before the agent that starts jobs does: ready means that a job of one word has run."""
    deadline = time.monotonic() + 240
    while (ready := submit(address, env, "true", timeout_s=120)).returncode != 0:
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"the head node took no job: {ready.stdout}{ready.stderr}")
        time.sleep(2)


def submit(
    address: str, env: dict[str, str], *command: str, timeout_s: float = 900
) -> subprocess.CompletedProcess[str]:
    arguments = [*RAY, "job", "submit", "--address", address, "--working-dir", ".", "--", *command]
    return subprocess.run(arguments, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout_s)
