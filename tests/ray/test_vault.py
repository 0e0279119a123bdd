"""The driver's token for the hub in processes of the cluster, which have none of their own."""

import os
import pickle
from contextlib import suppress
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from ka2l_ray.config import NodesSection
from ka2l_ray.dataflow.cluster import hub_address
from ka2l_ray.dataflow.tasks import run_tasks
from ka2l_ray.dataflow.vault import open_vault, vault
from ka2l_ray.errors import ConfigError


def token_there(handle: Any) -> str | None:
    os.environ.pop("HF_TOKEN", None)
    open_vault(handle)
    return os.environ.get("HF_TOKEN")


@pytest.fixture
def on_worker() -> Any:
    return ray.remote(num_cpus=0)(token_there)


def test_a_worker_gets_the_drivers_token_and_a_handle_holds_none(
    on_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_first")
    handle = vault()
    assert ray.get(on_worker.remote(handle)) == "hf_first"
    assert b"hf_first" not in pickle.dumps(handle)
    assert "hf_first" not in repr(ray.get(handle.token.remote()))
    monkeypatch.setenv("HF_TOKEN", "hf_second")
    assert ray.get(on_worker.remote(vault())) == "hf_second"


def test_files_of_a_corpus_are_read_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set of the hub may be one that only the token opens, and is read in a task."""
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_corpus")

    def token_for(file: str) -> str:
        return f"{file} {os.environ.get('HF_TOKEN')}"

    assert run_tasks(NodesSection(), "questions", token_for, [("a",), ("b",)]) == [
        "a hf_of_the_corpus",
        "b hf_of_the_corpus",
    ]


def test_one_whose_process_was_killed_is_replaced(on_worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_first")
    ray.kill(killed := vault())
    with suppress(RayActorError):
        while True:  # until it has gone, which takes a moment
            ray.get(killed.token.remote())
    assert ray.get(on_worker.remote(vault())) == "hf_first"


def test_without_a_token_nothing_is_started_or_changed(
    on_worker: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert vault() is None
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_node")
    open_vault(None)
    assert os.environ["HF_TOKEN"] == "hf_of_the_node"


def test_workers_ask_the_drivers_hub_and_its_address_may_hold_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert hub_address() == {}
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example.com")
    assert hub_address() == {"HF_ENDPOINT": "https://hub.example.com"}
    monkeypatch.setenv("HF_ENDPOINT", "https://user:hf_secret@hub.example.com")
    with pytest.raises(ConfigError, match="HF_ENDPOINT contains a key or password") as raised:
        hub_address()
    assert "hf_secret" not in str(raised.value)
