"""What is asked of a hub before a run, and what is refused in a run and in its plan alike."""

import json
import shutil
from pathlib import Path

import pytest
from model_hub import ModelHub

from ka2l_ray.config import Config, ConfigError
from ka2l_ray.models.loading import WORLD_MODEL
from ka2l_ray.planning.plan import make_plan
from ka2l_ray.planning.subject import check_subject

ID = "someone/world"


def test_a_hub_is_asked_for_a_listing_three_times_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For its commit, its files, and whether they are given; every small file is fetched once."""
    with ModelHub(ID, WORLD_MODEL, "hf_right").running() as hub:
        hub.is_asked(monkeypatch)
        config = Config.model_validate({"model": {"name_or_path": ID, "cache": str(tmp_path)}})
        check_subject(config)
        assert len(hub.sent) == len(set(hub.sent))
        asked = hub.requests
        check_subject(config)
        assert hub.requests - asked <= 3


def test_a_model_that_cannot_be_sampled_as_it_states_is_refused_by_its_plan(tmp_path: Path) -> None:
    shutil.copytree(WORLD_MODEL, tmp_path / "model")
    (tmp_path / "model/generation_config.json").write_text(json.dumps({"temperature": 0.0}))
    config = Config.model_validate({"model": {"name_or_path": str(tmp_path / "model")}})
    for check in (check_subject, make_plan):
        with pytest.raises(ConfigError, match=r"collect\.temperature = 'auto'.*give a number above 0"):
            check(config)
