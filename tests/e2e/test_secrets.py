"""Secrets of the environment are used, and are in nothing that is written or shown.

A run up to a training: the model from a hub that asks for HF_TOKEN, tables and replies in a bucket, answers from an
endpoint that asks for KA2L_ANNOTATOR_KEY and quotes it in its errors, on a cluster that asks for RAY_AUTH_TOKEN. Its
node has neither HF_TOKEN nor the hub's address, and a cache of its own: workers get both from the driver.
Searched: the run folder, the folder of Ray's session with the logs of its processes, all temporary files and the hub's
cache, and what every command shows. Left out: the memory and environment of processes, which must have them; and
`~/.ray`, where Ray itself keeps the token of a user who has set none.
"""

import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat_server import ChatServer
from commands import KA2L, LIGHTER, ROOT, environment, signal_group
from model_hub import ModelHub
from object_store import KEYS, bucket_on_moto
from planted_secrets import files, files_with, found_in, plant
from ports import free_ports

from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.models.loading import ASSETS

MODEL = "someone/gated-world"
SIZES = "{probe_questions: 120, pool_questions: 40, domain_questions: 10}"


def test_a_planted_secret_is_found_wherever_it_is(tmp_path: Path) -> None:
    planted = plant()
    pq.write_table(pa.table({"answer": [planted["HF_TOKEN"]] * 1000}), tmp_path / "a.parquet")
    (tmp_path / "log").mkdir()
    (tmp_path / "log/worker.out").write_text(f"Authorization: Bearer {planted['KA2L_ANNOTATOR_KEY']}")
    (tmp_path / "fine").write_text("nothing")
    assert sorted(files_with(tmp_path, planted)) == [
        ("a.parquet", "HF_TOKEN"),
        ("log/worker.out", "KA2L_ANNOTATOR_KEY"),
    ]


@contextmanager
def node_of_its_own(folder: Path, env: Mapping[str, str]) -> Iterator[str]:
    """The address of a cluster of one node; its logs are in `folder`. Ended by its process group."""
    (port,) = free_ports(1)
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    process = subprocess.Popen(
        [*start, "--num-cpus=6", f"--temp-dir={folder}", "--include-dashboard=false"],
        env=dict(env),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None, "the node ended"
            assert time.monotonic() < deadline, "the node did not start"
            time.sleep(0.5)
        yield f"127.0.0.1:{port}"
    finally:
        signal_group(process, signal.SIGTERM)
        process.wait(timeout=60)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_secrets_are_used_and_are_in_nothing_that_is_written_or_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = plant()
    for name, value in (KEYS | {"AWS_SECRET_ACCESS_KEY": planted["AWS_SECRET_ACCESS_KEY"]}).items():
        monkeypatch.setenv(name, value)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ka2l-", ignore_cleanup_errors=True)))
        hub = stack.enter_context(ModelHub(MODEL, ASSETS / "model", planted["HF_TOKEN"]).running())
        server = stack.enter_context(ChatServer().running())
        bucket = stack.enter_context(bucket_on_moto())
        server.troubles = defaultdict(lambda: ["status 401", "status 500"])  # each of which quotes the key
        for folder in ("tmp", "hub", "node-hub"):
            (scratch / folder).mkdir()
        both = environment() | {"RAY_TMPDIR": str(scratch), "TMPDIR": str(scratch / "tmp"), "RAY_AUTH_MODE": "token"}
        on_node = both | {name: planted[name] for name in ("AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN")}
        address = stack.enter_context(
            node_of_its_own(scratch / "ray", on_node | {"HF_HOME": str(scratch / "node-hub")})
        )
        env = both | planted | {"HF_HOME": str(scratch / "hub"), "HF_ENDPOINT": hub.url, "RAY_ADDRESS": address}
        run = (Folder.of(bucket) / "smoke").uri
        settings = (
            f"run.storage='{bucket}'",
            f"model.name_or_path={MODEL}",
            f"corpus.world={SIZES}",
            "search.min_class_share=0.02",
            "decode.enabled=false",
            "active.strategies=[ka2l]",
            "annotate.source=endpoint",
            f"annotate.endpoint={{url: '{server.url}', backoff_s: 0.05}}",
        )
        given = ("jobs/configs/smoke.yaml", *(word for s in settings for word in ("--set", s)), *LIGHTER)
        annotate = ("annotate", *given)
        refused, answered, status, report = (
            subprocess.run([*KA2L, *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
            for words in ((*annotate, "--debug"), annotate, ("status", run), ("report", run))
        )

        assert refused.returncode == 2, refused.stderr
        assert "HTTP 401: you sent Bearer ***" in refused.stderr
        assert "Traceback" in refused.stderr
        for done in (answered, status, report):
            assert done.returncode == 0, done.stderr
        assert hub.sent.count("model.safetensors") == 1, "once for all actors of the node, and not for the driver"
        assert [path for path in hub.refused if MODEL in path] == [], "huggingface_hub asks for other things without it"
        assert {h["Authorization"] for h in server.headers} == {f"Bearer {planted['KA2L_ANNOTATOR_KEY']}"}
        assert server.answered.total() == 16

        shutil.rmtree(scratch / "node-hub")
        trained = subprocess.run(
            [*KA2L, "finetune", *given], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600
        )
        assert trained.returncode == 0, trained.stderr
        assert hub.sent.count("model.safetensors") == 2, "a worker of the training has fetched it, with the same token"

        with Folder.of(run).local() as local:
            assert files_with(Path(local), planted) == []
            kept = {file.name for file in files(Path(local))}
            assert {"config.yaml", "results.json", "index.html", "steps.json"} <= kept
            assert len(list(Path(local).glob("annotation_cache/*.json"))) == 16
        logs = [file.name for file in files(scratch / "ray")]
        for kind in ("raylet.out", "gcs_server.out", "worker-", "python-core-worker-", "monitor"):
            assert any(name.startswith(kind) for name in logs), (kind, logs)
        assert files_with(scratch, planted) == []
        for done in (refused, answered, status, report, trained):
            assert found_in((done.stdout + done.stderr).encode(), planted) == set()
