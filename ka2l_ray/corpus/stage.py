"""The `questions` stage: one Ray task per file of the corpus, then one that joins them.

In: the `corpus` section.
Out: the `questions` table, one group of files per split, and `questions/dropped`, the rows that cannot be used.
Refuses to know: formats, duplicates, how rows become a table.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import ray

from ka2l_ray import schema
from ka2l_ray.chat.replies import replies_folder
from ka2l_ray.config import ConfigError, NodesSection
from ka2l_ray.corpus.table import Result, check_budget, fill
from ka2l_ray.corpus.together import large_group
from ka2l_ray.dataflow.log import log, log_progress
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.tasks import cancel, fetch, placed
from ka2l_ray.dataflow.vault import open_vault, vault

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
        replies = replies_folder(run.config.annotate.endpoint, run.folder)
        fill(run.config, table, scratch, table.folder / DROPPED, partial(_as_tasks, run.config.ray.tasks), replies)
        check_budget(run.config, table.part_rows("pool"))
    except ConfigError:
        table.folder.delete()
        raise
    scratch.delete()
    if run.config.corpus.source != "world":
        log.info("%s", summary(table.manifest()), extra={"stage": "questions"})
        if large := large_group(table.manifest()):
            log.warning("%s", large, extra={"stage": "questions"})
    return table.manifest()


def _as_tasks(
    nodes: NodesSection, function: Callable[..., Result], calls: Sequence[tuple[object, ...]]
) -> list[Result]:
    """Each call as a Ray task on these nodes, as many at once as they have CPUs; the first that fails ends all."""
    task, token = ray.remote(_with_token).options(name=function.__name__, **placed(nodes)), vault()
    waiting = {task.remote(token, function, *arguments): n for n, arguments in enumerate(calls)}
    done: dict[int, Result] = {}
    with log_progress("questions", lambda: f"{len(done):,} of {len(calls):,} files read" if len(calls) > 1 else None):
        try:
            while waiting:
                (ready,), _ = ray.wait(list(waiting))
                number = waiting.pop(ready)
                done[number] = fetch(ready)
        finally:
            cancel(waiting)  # before the folder that they write to is deleted
    return [done[n] for n in range(len(calls))]


def _with_token(token: Any, function: Callable[..., Result], *arguments: object) -> Result:
    """The call, which may read a data set of the hub that only the driver's token opens."""
    open_vault(token)
    return function(*arguments)


def summary(manifest: dict[str, Any]) -> str:
    """What became of the rows, in words."""
    splits = ", ".join(f"{sum(f['rows'] for f in manifest['files'] if f['part'] == s):,} {s}" for s in schema.SPLITS)
    return (
        f"{manifest['rows_in']:,} rows: {manifest['dropped']:,} dropped, {manifest['merged']:,} merged with an equal "
        f"question; {manifest['rows']:,} questions ({splits}), of which {manifest['near_duplicates']:,} repeat another "
        f"almost word for word; {manifest['entities']:,} entities; the largest group that stays in one split has "
        f"{manifest['largest_group']:,} questions"
    ) + _again(manifest)


def _again(manifest: dict[str, Any]) -> str:
    """What eval asks again, in words; empty where it asks other facts only."""
    if "asked_again" not in manifest:
        return ""
    lacking = f", {manifest['not_reworded']:,} questions have no wording to reserve" if manifest["not_reworded"] else ""
    return f"; {manifest['asked_again']:,} questions of eval ask pool facts again{lacking}"
