"""The small run that tests of this folder start from, each with something of its own on top."""

import os
import shutil
from pathlib import Path

from ka2l_ray.config import Config, load_config
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.storage import Folder

SMOKE = Path(__file__).parents[2] / "jobs/configs/smoke.yaml"
SMALL = (
    "corpus.world={probe_questions: 120, pool_questions: 40, domain_questions: 10, facts_per_person: 3}",
    "search.min_class_share=0.02",
)


def small(storage: Path | str, *overrides: str) -> Config:
    return load_config(SMOKE, [f"run.storage={storage}", *SMALL, *overrides])


def copied(run: Run, config: Config) -> Run:
    """The base stages of a run under another configuration of what follows them."""
    target = Path(config.run.storage) / config.run.name
    left_out = shutil.ignore_patterns("strategies", "config.yaml", "format.json")
    shutil.copytree(run.folder.path, target, ignore=left_out, copy_function=os.link, dirs_exist_ok=True)
    return Run(Folder.of(str(target)), config)
