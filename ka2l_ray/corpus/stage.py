"""The `questions` stage: one Ray task per file of the corpus, then one that joins them.

In: the `corpus` section.
Out: the `questions` table, one group of files per split, and `questions/dropped`, the rows that cannot be used.
Refuses to know: formats, duplicates, how rows become a table.
"""

from functools import partial
from typing import Any

from ka2l_ray import schema
from ka2l_ray.chat.replies import replies_folder
from ka2l_ray.config import ConfigError
from ka2l_ray.corpus.table import check_budget, fill
from ka2l_ray.corpus.together import large_group
from ka2l_ray.dataflow.log import log
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.tasks import run_tasks

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
        fill(
            run.config,
            table,
            scratch,
            table.folder / DROPPED,
            partial(run_tasks, run.config.ray.tasks, "questions"),
            replies,
        )
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
