"""A bucket on a real S3 API: moto's server, in a process of its own."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from pyarrow import fs

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
"""What stands in the environment of whoever speaks to it."""


@contextmanager
def bucket_on_moto() -> Iterator[str]:
    """The URI of a folder in a fresh bucket; the caller has set `KEYS`."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while all(
        c.laddr.port != port for c in psutil.Process(server.pid).net_connections() if c.laddr
    ):  # itself, no other process
        assert server.poll() is None, "moto's server ended: another process may have taken its port"
        assert time.monotonic() < deadline, "moto's server did not start"
        time.sleep(0.2)
    query = f"endpoint_override=http://127.0.0.1:{port}&allow_bucket_creation=true&region=us-east-1"
    filesystem = fs.S3FileSystem(endpoint_override=f"http://127.0.0.1:{port}", allow_bucket_creation=True)
    filesystem.create_dir("runs")
    try:
        yield f"s3://runs/here?{query}"
    finally:
        server.terminate()
        server.wait()
