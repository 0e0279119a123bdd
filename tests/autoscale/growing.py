"""A cluster on this machine that Ray's own autoscaler grows and shrinks; every node is a Ray node of its own.

Its form is `cluster/local-autoscaling.yaml`, which a user can start by hand. Its processes are ended by id: those of
the head by its process group, those of other nodes by the session's folder, which is in their command lines.
"""

import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from ports import free_ports

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
os.environ |= TOKEN  # before Ray is imported: it reads them then
import ray  # noqa: E402

ROOT = Path(__file__).parents[2]
FORM = ROOT / "cluster/local-autoscaling.yaml"
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
HEAD_NODE_ID = "f" * 51 + "00000"
AS_FAKE_HEAD = {
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_NODE_ID,
}
NODE_TYPE = "ka2l/node-type"
SAMPLE_S = 0.25
HOST = "127.0.0.1"


@dataclass
class Growing:
    """A running cluster, and its size over time: {node type: nodes alive}, without the head, at each change."""

    address: str
    dashboard: str
    env: dict[str, str]
    folder: Path
    sizes: list[tuple[float, Counter[str]]] = field(default_factory=list)
    began_s: float = field(default_factory=time.monotonic)

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that are alive, without the head."""
        return [n for n in ray.nodes() if n["Alive"] and n["NodeID"] != HEAD_NODE_ID]

    def size(self) -> Counter[str]:
        return Counter(n["Labels"][NODE_TYPE] for n in self.nodes())

    def wait_for(self, done: Callable[[], bool], what: str, at_most_s: float = 120.0) -> None:
        deadline = time.monotonic() + at_most_s
        while not done():
            assert time.monotonic() < deadline, f"{what}: not within {at_most_s:g} s; sizes were {self.sizes}"
            time.sleep(SAMPLE_S)

    def wait_until_head_alone(self) -> None:
        self.wait_for(lambda: not self.nodes(), "the head alone")

    def open_when(self, gate: Path, done: Callable[[], bool]) -> None:
        """Make the file `gate` once `done`, or give up on it, so that a stage which waits for it ends in any case."""
        try:
            self.wait_for(done, gate.name)
        finally:
            gate.touch()

    def largest(self, node_type: str) -> int:
        """The most nodes of a type that were alive at once."""
        return max((sizes[node_type] for _, sizes in self.sizes), default=0)

    def watch(self, ended: threading.Event) -> None:
        while not ended.wait(SAMPLE_S):
            with suppress(Exception):
                if not self.sizes or self.size() != self.sizes[-1][1]:
                    self.sizes.append((round(time.monotonic() - self.began_s, 1), self.size()))

    def raylet_of(self, node_id: str) -> psutil.Process:
        """The process whose end is the end of a node."""
        port = next(f":{n['NodeManagerPort']}" for n in self.nodes() if n["NodeID"] == node_id).lstrip(":")
        raylets = [p for p in _processes(str(self.folder)) if p.name() == "raylet"]
        return next(
            p for p in raylets if port in {str(c.laddr.port) for c in p.net_connections() if c.status == "LISTEN"}
        )

    def forget_sizes(self) -> None:
        self.sizes, self.began_s = [], time.monotonic()


def _words(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _processes(folder: str) -> list[psutil.Process]:
    """This user's processes whose command lines name the cluster's folder."""
    return [p for p in psutil.process_iter() if folder in _words(p)]


def form(address: str, folder: Path, **node_types: dict[str, Any]) -> dict[str, Any]:
    """The shipped form, at an address and in a folder; `node_types` override fields of its own."""
    made = yaml.safe_load(FORM.read_text())
    made["provider"] |= {"gcs_address": address, "node_folders": str(folder)}
    for name, fields in node_types.items():
        made["available_node_types"][name] |= fields
    for name, node_type in made["available_node_types"].items():
        node_type["labels"] |= {NODE_TYPE: name}
    return made


@contextmanager
def growing(**node_types: dict[str, Any]) -> Iterator[Growing]:
    """The cluster, joined by this process as a driver."""
    port, dashboard, agent, client = free_ports(4)
    folder = Path(tempfile.mkdtemp(prefix="ka2l-auto-"))
    address = f"{HOST}:{port}"
    (folder / "cluster.json").write_text(json.dumps(form(address, folder, **node_types)))
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | AS_FAKE_HEAD
    env |= TOKEN | {"OMP_NUM_THREADS": "1"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    command = [*RAY, "start", "--head", "--block", f"--autoscaling-config={folder}/cluster.json", "--num-cpus=0"]
    command += [f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command += [f"--ray-client-server-port={client}", f"--temp-dir={folder}/ray", f"--node-ip-address={HOST}"]
    said = (folder / "head.log").open("w+")
    head = subprocess.Popen(command, env=env, stdout=said, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    ended = threading.Event()
    found = Growing(address, f"http://127.0.0.1:{dashboard}", env, folder)
    try:
        _join(address, head, folder / "head.log")
        watcher = threading.Thread(target=found.watch, args=(ended,), daemon=True)
        watcher.start()
        yield found
        ended.set()
        watcher.join()
    finally:
        ended.set()
        ray.shutdown()
        _end(head, str(folder))
        shutil.rmtree(folder, ignore_errors=True)


def _join(address: str, head: subprocess.Popen[str], said: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            return
        except (ConnectionError, RuntimeError) as error:
            ray.shutdown()
            if head.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the head did not start: {error}\n{said.read_text()}") from error
            time.sleep(1)


def _end(head: subprocess.Popen[str], folder: str) -> None:
    with suppress(ProcessLookupError):
        os.killpg(head.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        head.wait(timeout=5)
    left = _processes(folder)
    for process in left:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=10)
    if head.poll() is None:
        head.kill()
        head.wait()
