"""A corpus becomes the `questions` table, in the same way for a run and for a preview.

In: a configuration, folders, a way to call functions (in sequence, or as parallel tasks).
Out: the table, and which rows cannot be used.
Refuses to know: Ray, what becomes of the table.
"""

from collections.abc import Callable, Sequence
from typing import Any

from ka2l_ray.config import Config
from ka2l_ray.corpus.files import files_of
from ka2l_ray.corpus.prepare import check_dropped, check_gold, check_splits, join, medmcqa_first, parse_file, shots
from ka2l_ray.corpus.world import write_world
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.storage import Folder

Caller = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], list[Any]]
"""Calls a function once for each tuple of arguments; returns the results in order."""


def in_turn(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Calls in this process, one after the other."""
    return [function(*arguments) for arguments in calls]


def fill(config: Config, table: Table, scratch: Folder, unusable: Folder, call: Caller = in_turn) -> None:
    """Write the table. Raises `ConfigError` for a corpus that cannot be read or split, `StageError` where too many
    rows cannot be used."""
    if config.corpus.source == "world":
        write_world(config, table)
    else:
        _from_files(config, table, scratch, unusable, call)
    check_splits(config, table)
    check_gold(config, table)


def _from_files(config: Config, table: Table, scratch: Folder, unusable: Folder, call: Caller) -> None:
    corpus = config.corpus
    files = files_of(corpus.source, corpus.hub)
    if corpus.format == "medmcqa" and corpus.medmcqa_first == "auto":
        (first,) = call(medmcqa_first, [(files,)])
        corpus = corpus.model_copy(update={"medmcqa_first": first})
    parsed = call(parse_file, [(file, corpus, scratch, unusable, f"{n:06d}") for n, file in enumerate(files)])
    check_dropped(parsed, config.run.max_error_fraction)
    call(join, [(parsed, scratch, corpus, shots(config), config.run.seed, table)])
