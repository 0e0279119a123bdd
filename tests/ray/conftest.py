"""One local Ray cluster for every test of this folder."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from pyarrow import fs
from runs import small

from ka2l_ray import pipeline
from ka2l_ray.artifacts import Run
from ka2l_ray.config import Config
from ka2l_ray.runtime import connect


@pytest.fixture(scope="session", autouse=True)
def cluster() -> Iterator[None]:
    given = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *([given] if given else [])])  # workers import actors.py
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}  # for moto's server
    os.environ["RAY_OVERRIDE_RESOURCES"] = '{"GPU": 2}'  # simulated: Ray lends them, and no torch can use them
    connect(Config())
    del os.environ["RAY_OVERRIDE_RESOURCES"]
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    """A run up to its scores, made once: (run, results)."""
    run = Run.open(small(tmp_path_factory.mktemp("scored")))
    return run, pipeline.execute(run, "score", "a test")


@pytest.fixture
def bucket() -> Iterator[str]:
    """A bucket on a real S3 API: moto's server."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while all(c.laddr.port != port for c in psutil.Process(server.pid).net_connections() if c.laddr):  # itself, no other process
        assert server.poll() is None, "moto's server ended: another process may have taken its port"
        assert time.monotonic() < deadline, "moto's server did not start"
        time.sleep(0.2)
    query = f"endpoint_override=http://127.0.0.1:{port}&allow_bucket_creation=true&region=us-east-1"
    filesystem = fs.S3FileSystem(endpoint_override=f"http://127.0.0.1:{port}", allow_bucket_creation=True)
    filesystem.create_dir("runs")
    yield f"s3://runs/here?{query}"
    server.terminate()
    server.wait()
