"""Adapters are counted by PEFT on a whole model without weights, half a second each time: once per choice here."""

from collections.abc import Iterator
from functools import cache

import pytest

from ka2l_ray.planning import plan, shapes


@pytest.fixture(autouse=True, scope="session")
def counted_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "adapter_parameters", cache(shapes.adapter_parameters))
        yield
