"""A whole run's summary and heat map, made by hand, as the stages write them."""

from typing import Any

import finished_run
import pytest


@pytest.fixture
def results() -> dict[str, Any]:
    """A whole run's summary that a test may change."""
    return finished_run.results()
