"""One local Ray cluster for every test of this folder."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from ka2l_ray.config import Config
from ka2l_ray.runtime import connect


@pytest.fixture(scope="session", autouse=True)
def cluster() -> Iterator[None]:
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # workers import actors.py
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}  # for moto's server
    connect(Config())
    yield
    ray.shutdown()
