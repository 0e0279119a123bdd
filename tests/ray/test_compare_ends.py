"""The first curve that fails ends a comparison: nothing of the others goes on once its error is raised."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
import ray.data
from ray.exceptions import RayTaskError, TaskCancelledError, WorkerCrashedError

from ka2l_ray.config import ConfigError
from ka2l_ray.dataflow.cluster import _without_counts
from ka2l_ray.dataflow.tasks import cancel, raised_by_library
from ka2l_ray.errors import StageError, UserError, internal
from ka2l_ray.pipeline.curves import play_side_by_side


def write_on(folder: Path) -> None:
    """As a curve that works: a file every 0.1 s, for a minute."""
    for n in range(600):
        (folder / f"{os.getpid()}-{n}").touch()
        time.sleep(0.1)


class Writer:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, batch: dict[str, object]) -> dict[str, object]:
        write_on(self._folder)
        return batch


def in_a_pipeline(folder: Path) -> str:
    """One long block in an actor of Ray Data, which lets it go on where the pipeline alone is cancelled."""
    actors = ray.data.ActorPoolStrategy(min_size=1, max_size=1)
    ray.data.range(2, override_num_blocks=1).map_batches(
        Writer, fn_constructor_args=(folder,), compute=actors
    ).materialize()
    return "done"


def in_itself(folder: Path) -> str:
    write_on(folder)
    return "done"


def in_a_blocking_call(folder: Path) -> str:
    """Waits for a task of its own."""
    ray.get(ray.remote(write_on).remote(folder))
    return "done"


def wait_for(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not list(folder.iterdir()):
        assert time.monotonic() < deadline, "the other curve did not begin"
        time.sleep(0.05)


def fail_once_it_works(folder: Path) -> str:
    wait_for(folder)
    raise ConfigError("active.budget = 9: mend it")


def play(work: Callable[[Path], str], folder: Path) -> str:
    return work(folder)


LONG = [pytest.param(f, marks=pytest.mark.long) for f in (in_itself, in_a_blocking_call)]


@pytest.mark.parametrize("works", [*LONG, in_a_pipeline], ids=lambda f: f.__name__)
def test_once_a_failure_is_raised_nothing_of_the_other_curves_goes_on(
    works: Callable[[Path], str], tmp_path: Path
) -> None:
    """A curve itself has ended by then; an actor of its pipeline ends with the call that it is in, or after the half
    minute that Ray gives an actor whose owner is gone."""
    calls = {
        "bad": (fail_once_it_works, tmp_path),
        "good": (works, tmp_path),
        "queued": (in_itself, tmp_path / "never"),
    }
    with pytest.raises(StageError) as failed:
        play_side_by_side(play, calls, at_once=2)
    assert str(failed.value) == "bad: active.budget = 9: mend it; cancelled with it: good"
    deadline = time.monotonic() + (60.0 if works is in_a_pipeline else 2.0)
    while goes_on(tmp_path):
        assert time.monotonic() < deadline, "it goes on"
    assert not (tmp_path / "never").exists()


def goes_on(folder: Path) -> bool:
    """Whether anything is written within a second and a half."""
    written = len(list(folder.iterdir()))
    time.sleep(1.5)
    return len(list(folder.iterdir())) > written


def sleep_deaf(folder: Path) -> None:
    (folder / "begun").touch()
    time.sleep(20)
    (folder / "ended").touch()


def test_a_task_that_does_not_hear_is_ended_with_its_process(tmp_path: Path) -> None:
    reference = ray.remote(num_cpus=0)(sleep_deaf).remote(tmp_path)
    wait_for(tmp_path)
    begun = time.monotonic()
    cancel([reference], patience_s=1.0)
    assert time.monotonic() - begun < 10
    with pytest.raises((TaskCancelledError, WorkerCrashedError)):
        ray.get(reference, timeout=5)


def miss_a_key(folder: Path) -> str:
    return {}[str(folder)]


def test_a_librarys_error_in_a_curve_is_no_mistake_of_the_user_and_names_curve_and_place(tmp_path: Path) -> None:
    with pytest.raises(RayTaskError) as failed:
        play_side_by_side(play, {"ka2l draw 0 of seed 7": (miss_a_key, tmp_path)}, at_once=1)
    assert not isinstance(failed.value, UserError)
    assert raised_by_library(failed.value)
    line = internal(failed.value)
    assert line.startswith("internal error: KeyError: ")
    assert re.search(
        r"in ka2l_ray\.pipeline\.curves:\d+, raised in .*test_compare_ends:\d+\); from ka2l draw 0 of seed 7; "
        "run again",
        line,
    )


def test_ray_does_not_count_its_processes_on_the_terminal() -> None:
    shown = []
    show = _without_counts(lambda data: shown.append(data["lines"]))
    show({"lines": ["WARNING: 8 PYTHON worker processes have been started on node: 3c2d"]})
    show({"lines": ["a node is out of disk space", "16 PYTHON worker processes have been started on node: 3c2d"]})
    assert shown == [["a node is out of disk space"]]
