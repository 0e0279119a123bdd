"""What each step of the table does.

In: a `Run`. Out: its tables, and the numbers of rows that went in, came out and failed. Refuses to know: which steps
are done, results.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ka2l_ray.active.evaluation import evaluate_base
from ka2l_ray.active.examples import sample_candidates
from ka2l_ray.active.known import find_known
from ka2l_ray.active.strategies import Need, that_need
from ka2l_ray.collect.stage import collect, sample_pool
from ka2l_ray.corpus.stage import questions
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.decode.stage import check_decoder, is_fitted
from ka2l_ray.decode.training import train_decoder
from ka2l_ray.label.stage import gamma, label, label_pool
from ka2l_ray.pipeline.curves import play_rounds
from ka2l_ray.probe.search import search
from ka2l_ray.probe.stage import score

Counts = Mapping[str, Any]
"""`rows_in`, `rows` and `errors`: a table's manifest, or the like."""
NOTHING: Counts = {"rows_in": 0, "rows": 0, "errors": 0}


def _label(run: Run) -> Counts:
    """γ is the step's result too, so that it outlives a lost manifest (`label.stage`)."""
    manifest = label(run)
    return manifest | {"result": {"threshold_nats": manifest["threshold_nats"]}}


def _search(run: Run) -> Counts:
    search(run, gamma(run))
    rows = run.base("knowledge").rows
    return {"rows_in": rows, "rows": rows, "errors": 0}


def _score(run: Run) -> Counts:
    return score(run, with_state=bool(that_need(Need.STATES, run.config.active.strategies)))


def _sample_pool(run: Run) -> Counts:
    if not that_need(Need.SAMPLES, run.config.active.strategies):
        return NOTHING
    sample_pool(run)
    return label_pool(run)


def _decode(run: Run) -> Counts:
    """Reconstruction metrics are the step's result."""
    if not run.config.decode.enabled:
        return NOTHING
    if run.config.decode.decoder is None:
        train_decoder(run)
    metrics = run.records.result("decode")
    if metrics is None or not is_fitted(run):
        metrics = check_decoder(run)
    return run.base("reconstruction").manifest() | {"result": metrics}


def _evaluate(run: Run) -> Counts:
    manifest = evaluate_base(run)
    find_known(run)
    return manifest


DOES: dict[str, Callable[[Run], Counts | None]] = {
    "questions": questions,
    "collect": collect,
    "label": _label,
    "search": _search,
    "score": _score,
    "sample_pool": _sample_pool,
    "replay": sample_candidates,
    "decode": _decode,
    "evaluate": _evaluate,
    "rounds": play_rounds,
}
"""By step name. `rounds` counts no rows and is never marked as done: each round keeps its own records."""
