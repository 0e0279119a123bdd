"""What every tier shares: the world, its tokenizer, a bucket, a whole run's summary, and a fixed choice of hypothesis
examples."""

from collections.abc import Iterator
from typing import Any

import object_store
import pytest
from hypothesis import settings

settings.register_profile("small", max_examples=25, deadline=None, derandomize=True, database=None)
settings.load_profile("small")


@pytest.fixture(scope="session")
def world():
    """The world of the default recipe, the one whose model is shipped."""
    from ka2l_ray.world.facts import build_world

    return build_world()


@pytest.fixture(scope="session")
def tokenizer(world):
    from ka2l_ray.world_model.tokenizer import build_tokenizer

    return build_tokenizer(world)


@pytest.fixture
def results() -> dict[str, Any]:
    """A whole run's summary that a test may change."""
    import finished_run

    return finished_run.results()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of a folder in a bucket of its own."""
    for name, value in object_store.KEYS.items():
        monkeypatch.setenv(name, value)
    with object_store.bucket_on_moto() as uri:
        yield uri
