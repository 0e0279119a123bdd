"""Shared by the tests of the configuration."""

import pytest

from ka2l_ray.config import Config, load_config


@pytest.fixture
def load(tmp_path):
    """Loads a configuration from YAML text and overrides; the file is always named `run.yaml`."""

    def load(text: str = "", *overrides: str) -> Config:
        (tmp_path / "run.yaml").write_text(text)
        return load_config(tmp_path / "run.yaml", overrides)

    return load
