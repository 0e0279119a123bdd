"""One cluster for the tests of a file; each begins with the head alone."""

from collections.abc import Iterator

import pytest
from growing import Growing, growing


@pytest.fixture(scope="module")
def grown() -> Iterator[Growing]:
    with growing(**{"gpu-spot": {"max_workers": 4}}) as found:
        yield found


@pytest.fixture
def cluster(grown: Growing) -> Growing:
    """The cluster once it is the head alone, with nothing recorded yet."""
    grown.wait_until_head_alone()
    grown.forget_sizes()
    return grown
