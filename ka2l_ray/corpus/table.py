"""A corpus becomes the `questions` table, in the same way for a run and for a preview, or is refused.

In: a configuration, folders, a way to call functions (in sequence, or as parallel tasks).
Out: the table, and which rows cannot be used.
Refuses to know: Ray, what becomes of the table.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain, starmap
from typing import Protocol, TypeVar, TypeVarTuple

from ka2l_ray import schema
from ka2l_ray.config import Config, ConfigError
from ka2l_ray.corpus.again import ask_again, given_wordings, questions_again
from ka2l_ray.corpus.files import File, files_of
from ka2l_ray.corpus.formats import UnusableError, cop, first_option
from ka2l_ray.corpus.prepare import Parsed, join, parse_file, shots
from ka2l_ray.corpus.reword import RepliedWordings, ask_for_wordings
from ka2l_ray.corpus.world import write_world
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.rows import BadRow
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import StageError

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


class Caller(Protocol):
    """Calls a function once for each tuple of arguments; returns the results in order."""

    def __call__(
        self, function: Callable[[*Arguments], Result], calls: Sequence[tuple[*Arguments]], /
    ) -> list[Result]: ...


def in_turn(function: Callable[..., Result], calls: Sequence[tuple[object, ...]]) -> list[Result]:
    """Calls in this process, one after the other."""
    return list(starmap(function, calls))


def fill(
    config: Config,
    table: Table,
    scratch: Folder,
    unusable: Folder,
    call: Caller = in_turn,
    replies: Folder | None = None,
) -> None:
    """Write the table. An endpoint that rewords questions is asked from this process; its replies are kept in
    `replies`, by default with the scratch files. Raises `ConfigError` for a corpus that cannot be read or split,
    `StageError` where too many rows cannot be used or reworded."""
    if config.corpus.source == "world":
        write_world(config, table)
    elif questions_again(config):
        joined = Table(scratch / "joined")
        _from_files(config, joined, scratch, unusable, call)
        _asked_again(config, joined, table, call, replies or scratch / "replies")
    else:
        _from_files(config, table, scratch, unusable, call)
    check_splits(config, table)
    check_gold(config, table)


def _from_files(config: Config, table: Table, scratch: Folder, unusable: Folder, call: Caller) -> None:
    corpus = config.corpus
    files = files_of(corpus.source, corpus.hub, corpus.encoding)
    if corpus.format == "medmcqa" and corpus.medmcqa_first == "auto":
        (first,) = call(medmcqa_first, [(files,)])
        corpus = corpus.model_copy(update={"medmcqa_first": first})
    parsed = call(parse_file, [(file, corpus, scratch, unusable, f"{n:06d}") for n, file in enumerate(files)])
    check_dropped(parsed, config.run.max_error_fraction)
    call(join, [(parsed, scratch, corpus, shots(config), config.run.seed, table)])


def _asked_again(config: Config, joined: Table, table: Table, call: Caller, replies: Folder) -> None:
    """Eval asks the pool's facts again: `table` from `joined`."""
    if config.corpus.rewordings.source != "endpoint":
        call(ask_again, [(joined, config, given_wordings, table, {})])
        return
    wordings = RepliedWordings(config, replies)
    ledger = ask_for_wordings(joined, wordings)
    call(ask_again, [(joined, config, wordings, table, {"rewordings_ledger": ledger})])


def medmcqa_first(files: Sequence[File]) -> int:
    """What the `cop` of the files counts from, 0 or 1. Raises `ConfigError` where the rows leave it open or
    contradict each other."""
    found: set[int | None] = set()
    for row in chain.from_iterable(file.rows(("cop",)) for file in files):
        if not isinstance(row.values, BadRow):
            with suppress(UnusableError):  # reported when the row is parsed
                found.add(cop(row.values))
    numbers = frozenset(n for n in found if n is not None)
    if not numbers:
        return 1  # no gold, or no such column, which is reported when rows are parsed
    where = f"{files[0].name}{' …' if len(files) > 1 else ''}"
    try:
        first = first_option(numbers)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    if first is None:
        raise ConfigError(
            f"{where}: cop takes the values {sorted(numbers)}, which fit counting from 0 and from 1; "
            "set corpus.medmcqa_first to 0 (the hub's files) or 1 (the authors')"
        )
    return first


def check_dropped(parsed: Sequence[Parsed], most: float) -> None:
    """Raise `ConfigError` where there is no row, and `StageError`, which quotes the first, where more rows cannot
    be used than `run.max_error_fraction` allows."""
    rows, dropped = sum(p.rows for p in parsed), sum(p.dropped for p in parsed)
    if not rows:
        raise ConfigError(f"corpus.source: {', '.join(p.name for p in parsed)} contain(s) no row")
    if dropped > most * rows:
        first = next(p.first_problem for p in parsed if p.first_problem)
        raise StageError(
            f"questions: {dropped:,} of {rows:,} rows cannot be used, more than run.max_error_fraction allows "
            f"({most:g}). First: {first}"
        )


def check_splits(config: Config, table: Table) -> None:
    """Raise `ConfigError` where a split got no question."""
    if empty := [s for s in schema.SPLITS if not table.part_rows(s)]:
        manifest = table.manifest()
        alike, largest = manifest.get("near_duplicates", 0), manifest["largest_group"]
        reasons = [f"{alike:,} of them almost the same as another"] if alike else []
        reasons += [f"up to {largest:,} about one entity or alike"] if largest > 1 else []
        raise ConfigError(
            f"corpus.source = {config.corpus.source!r}: {table.rows:,} usable questions"
            + (f", {', '.join(reasons)}," if reasons else "")
            + f" are too few, the split(s) {', '.join(empty)} would be empty"
        )


def check_gold(config: Config, table: Table) -> None:
    """Raise `ConfigError` where a strategy ranks by grades and no pool question has gold."""
    if "quadrant" in config.active.strategies and not table.manifest()["graded"]["pool"]:
        raise ConfigError(
            "active.strategies: `quadrant` needs gold answers, and no pool question has one; leave it out"
        )


def check_budget(config: Config, pool: int) -> None:
    """Raise `ConfigError` where more annotations are to be bought than the pool has questions."""
    if config.active.budget > pool:
        raise ConfigError(
            f"active.budget = {config.active.budget:,} exceeds the pool of {pool:,} questions; buy fewer, or give "
            "corpus.split.pool more"
        )
