"""Two nodes, of which the second has a disk of its own where the first has the run's storage: told before any work."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from commands import ROOT, environment

DRIVER = """
import os, signal, subprocess, sys, time
import ray
from ka2l_ray.cli.app import app
from ka2l_ray.config import ConfigError, load_config
from ka2l_ray.dataflow.cluster import connect
from ka2l_ray.dataflow.nodes import check_nodes

hidden, shared, *unshared = sys.argv[1:]
smoke = "jobs/configs/smoke.yaml"
connect(load_config(smoke))
gcs = ray.get_runtime_context().gcs_address
start = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={gcs}", "--num-cpus=0", "--block"]
command = [*unshared, "sh", "-ec", 'mount -t tmpfs none "$0" && exec "$@"', hidden, *start]
second = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
try:
    while len(ray.nodes()) < 2:
        assert second.poll() is None, "the second node did not start"
        time.sleep(0.1)
    check_nodes(load_config(smoke, [f"run.storage={shared}"]))
    print("shared: well")
    try:
        check_nodes(load_config(smoke, [f"run.storage={shared}", f"model.adapter={hidden}/adapter"]))
    except ConfigError as error:
        print("adapter:", error)
    app(["collect", smoke, "--set", f"run.storage={hidden}"])
finally:
    os.killpg(second.pid, signal.SIGKILL)
    second.wait()
"""


def unshared() -> list[str]:
    """The command that gives a process mounts of its own, as root or as a user who may."""
    found = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    if subprocess.run([*found, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system allows no mount namespaces")
    return found


@pytest.mark.long
def test_storage_that_a_node_does_not_share_is_refused_before_any_work(tmp_path: Path) -> None:
    hidden, shared = tmp_path / "hidden", tmp_path / "shared"
    for folder in (hidden / "adapter", shared):
        folder.mkdir(parents=True)
    command = [sys.executable, "-c", DRIVER, str(hidden), str(shared), *unshared()]
    with tempfile.TemporaryDirectory(prefix="ka2l-", ignore_cleanup_errors=True) as scratch:
        own = environment() | {
            "RAY_TMPDIR": scratch
        }  # in the common one `ray start` would leave word of a cluster that is no more
        done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=240, check=False)
    assert "shared: well" in done.stdout, done.stderr
    assert f"adapter: model.adapter = '{hidden}/adapter': not found on node " in done.stdout
    assert done.returncode == 2, done.stderr
    assert f"run.storage = '{hidden}' is not shared: node " in done.stderr
    assert "cannot read what the driver wrote" in done.stderr
    assert not list(hidden.rglob("manifest.json"))
    assert [f for folder in (hidden, shared) for f in folder.glob(".reach-*")] == []
