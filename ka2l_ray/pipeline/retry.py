"""`--retry-errors`: do failed rows again and keep the others.

In: a `Run`. Out: how many rows the next run does again, by table. Refuses to know: how a stage works.
"""

from collections.abc import Callable

from ka2l_ray.active.round import Round, RoundState
from ka2l_ray.active.schedule import planned_rounds
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.stage import failed_rows, reopen_errors
from ka2l_ray.decode.stage import CANDIDATES, is_apart, is_fitted
from ka2l_ray.decode.states_stage import is_trained
from ka2l_ray.pipeline.table import BY_ROW

Reopen = Callable[[], object]
"""What must be done before a table's rows are done again: records of what was computed from the table are reopened."""

CLASSIFIED_BY = ("evaluation", "known/asked_again")
"""Tables that `base/known` is computed from; it is computed again when their rows are."""


def _nothing() -> None:
    """Nothing was computed from the table that is computed again."""


def retry_errors(run: Run) -> dict[str, int]:
    """Make the next run of the steps do failed rows again and keep the others; returns their number by table, tables
    without any left out.

    Rows are corrected where they stand; what was computed from a whole table before (γ, the probe, what rounds bought
    and trained on) stays as it is, except for the figures of a round whose evaluation is corrected.
    """
    tables: dict[str, tuple[Table, Reopen]] = {name: (run.base(name), _nothing) for name in BY_ROW}
    for name in CLASSIFIED_BY:
        tables[name] = run.base(name), lambda: _classify_again(run)
    apart = is_apart(run, run.base("reconstruction"))
    for name in (*([f"reconstruction/{CANDIDATES}"] if apart else []), "reconstruction"):
        tables[name] = run.base(name), lambda: run.records.reopen("decode")
    for name, made in (("decoder/states", is_trained), ("decoder/probe_states", is_fitted)):
        if not made(run):  # what was made from the rows stays
            tables[name] = run.base(name), _nothing
    if not run.base("activations").folder.exists():  # once sampling began, what γ was taken from stays
        tables["pilot"] = run.base("pilot"), _nothing
    for a_round in planned_rounds(run):
        tables |= {f"{a_round}: {name}": found for name, found in _of_a_round(a_round).items()}
    return {name: n for name, (table, reopen) in tables.items() if (n := _again(table, reopen))}


def _of_a_round(a_round: Round) -> dict[str, tuple[Table, Reopen]]:
    """Tables that a round makes row by row, and how what is computed from each is reopened; those of decoding and of a
    new probe only while they are not done, because the next round has used them."""
    found: dict[str, tuple[Table, Reopen]] = {
        name: (a_round.table(name), lambda: a_round.records.reopen(RoundState.EVALUATE))
        for name in ("evaluation", "evaluation/corpus_prompt")
    }
    if not a_round.table("decoded").is_done:
        if is_apart(a_round.run, written := a_round.table("decoded/written")):
            found[f"decoded {CANDIDATES}"] = a_round.table(f"decoded/{CANDIDATES}"), _nothing
        found["decoded"] = written, _nothing
    if (probed := a_round.folder / "reprobe").exists() and not a_round.records.is_done("reprobe"):
        found |= {f"reprobe {name}": (Table(probed / "base" / name), _nothing) for name in BY_ROW}
    return found


def _classify_again(run: Run) -> None:
    if (known := run.base("known")).is_done:
        known.open_again()


def _again(table: Table, reopen: Reopen) -> int:
    """Have a table's failed rows done again. Records are reopened first, so that a kill leaves no figure that stands on
    other rows."""
    if count := failed_rows(table):
        reopen()
        reopen_errors(table)
    return count
