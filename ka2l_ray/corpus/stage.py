"""The `questions` stage: one Ray task per file of the corpus, then one that joins them.

In: the `corpus` section.
Out: the `questions` table, one group of files per split, and `questions/dropped`, the rows that cannot be used.
Refuses to know: formats, duplicates, how rows become a table.
"""

from collections.abc import Callable, Sequence
from typing import Any

import ray

from ka2l_ray import schema
from ka2l_ray.config import ConfigError
from ka2l_ray.corpus.prepare import check_budget
from ka2l_ray.corpus.table import fill
from ka2l_ray.corpus.together import large_group
from ka2l_ray.dataflow.log import log, log_progress
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.tasks import cancel, fetch

SCRATCH, DROPPED = "_parsed", "dropped"


def questions(run: Run) -> dict[str, Any]:
    """Write the `questions` table unless it is there; returns its manifest.

    Raises `ConfigError` for a corpus that cannot be read or split, or whose pool is smaller than the budget;
    `StageError` where too many rows cannot be used.
    """
    table = run.table("questions")
    if table.is_done:
        (table.folder / SCRATCH).delete()  # there after a kill between manifest and cleaning
        check_budget(run.config, table.part_rows("pool"))
        return table.manifest()
    table.folder.delete()  # what a killed attempt left
    scratch = (table.folder / SCRATCH).make()
    try:
        fill(run.config, table, scratch, table.folder / DROPPED, _as_tasks)
        check_budget(run.config, table.part_rows("pool"))
    except ConfigError:
        table.folder.delete()
        raise
    scratch.delete()
    if run.config.corpus.source != "world":
        log.info("questions  %s", summary(table.manifest()))
        if large := large_group(table.manifest()):
            log.warning("questions  %s", large)
    return table.manifest()


def _as_tasks(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Each call as a Ray task, as many at once as the cluster has CPUs; the first that fails ends all."""
    task = ray.remote(function)
    waiting = {task.remote(*arguments): n for n, arguments in enumerate(calls)}
    done: dict[int, Any] = {}
    with log_progress("questions", lambda: f"{len(done):,} of {len(calls):,} files read" if len(calls) > 1 else None):
        try:
            while waiting:
                (ready,), _ = ray.wait(list(waiting))
                number = waiting.pop(ready)
                done[number] = fetch(ready)
        finally:
            cancel(waiting)  # before the folder that they write to is deleted
    return [done[n] for n in range(len(calls))]


def summary(manifest: dict[str, Any]) -> str:
    """What became of the rows, in words."""
    splits = ", ".join(f"{sum(f['rows'] for f in manifest['files'] if f['part'] == s):,} {s}" for s in schema.SPLITS)
    return (
        f"{manifest['rows_in']:,} rows: {manifest['dropped']:,} dropped, {manifest['merged']:,} merged with an equal "
        f"question; {manifest['rows']:,} questions ({splits}), of which {manifest['near_duplicates']:,} repeat another "
        f"almost word for word; {manifest['entities']:,} entities; the largest group that stays in one split has "
        f"{manifest['largest_group']:,} questions"
    )
