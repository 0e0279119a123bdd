"""One local Ray cluster for every test of this folder."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import object_store
import pytest
import ray
from golden import ONE_RANK, group_of_one
from runs import small

from ka2l_ray.config import Config
from ka2l_ray.dataflow.cluster import connect
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.pipeline import loop


@pytest.fixture(scope="session", autouse=True)
def cluster() -> Iterator[None]:
    given = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), *([given] if given else [])]
    )  # workers import actors.py
    os.environ |= object_store.KEYS  # before workers start, for they write to buckets too
    os.environ["RAY_OVERRIDE_RESOURCES"] = '{"GPU": 2}'  # simulated: Ray lends them, and no torch can use them
    connect(Config())
    del os.environ["RAY_OVERRIDE_RESOURCES"]
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    """A run up to its scores, made once: (run, results)."""
    run = Run.open(small(tmp_path_factory.mktemp("scored")))
    return run, cast(dict[str, Any], loop.execute(run, "score", "a test"))


@pytest.fixture(scope="session")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this process alone, made once: DeepSpeed keeps the first that it sees."""
    with group_of_one(tmp_path_factory.mktemp("group")):
        yield


@pytest.fixture(scope="module")
def one_rank(group: None) -> Iterator[None]:
    """This process as the only rank of a training, without Ray."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ONE_RANK.items():
            patch.setenv(name, value)
        yield
