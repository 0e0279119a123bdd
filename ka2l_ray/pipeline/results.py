"""The content of `results.json`, from what is done so far.

In: a `Run`. Out: a JSON object; parts that did not run are null. Refuses to know: how a stage works.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from ka2l_ray import schema
from ka2l_ray.active.outcome import WORDINGS, base_record, known_counts, noise_floor
from ka2l_ray.active.prior import priors
from ka2l_ray.active.round import RoundState
from ka2l_ray.active.saving import savings
from ka2l_ray.active.schedule import curve, planned_rounds, stopped
from ka2l_ray.active.strategies import draws
from ka2l_ray.corpus.again import eval_scope
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.versions import versions
from ka2l_ray.decode.metrics import distinct_2
from ka2l_ray.decode.stage import CANDIDATES
from ka2l_ray.label.stage import label_summary
from ka2l_ray.results_schema import Results, RoundResult, StoppedResult
from ka2l_ray.text.grading import Grading
from ka2l_ray.world.facts import World, build_world

WALL = "wall"
"""The record in `steps.json` whose seconds are those of whole commands."""


def gather(run: Run, command: str) -> Results:
    """The content of results.json; `command` is what the user typed."""
    found, evaluated = run.folder / "base/search/search.json", run.base("evaluation").is_done
    records = _records(run) if evaluated else []
    return {
        "config_hash": run.hash,
        "command": command,
        "model": run.config.model.identity,
        "versions": versions(),
        "seed": run.config.run.seed,
        "label": label_summary(run) if run.base("knowledge").is_done else None,
        "search": found.read_json() if found.exists() else None,
        "decode": _decode_summary(run),
        "eval_scope": (scope := eval_scope(run.config)),
        "eval_wording": WORDINGS[scope],
        "evaluation_ledger": _evaluation_ledger(run),
        "known": known_counts(run),
        "noise_floor": noise_floor(run),
        "prior": _prior(run) if run.table("questions").is_done else {},
        "rounds": records,
        "saving": savings(records),
        "stopped": _stops(run) if evaluated else [],
        "rows": run.records.rows() | _round_rows(run),
        "time_s": _seconds(run, records),
        "wall_s": run.records.seconds().get(WALL),
        "first_rows_s": _first_rows(run),
    }


def _evaluation_ledger(run: Run) -> dict[str, Mapping[str, float]]:
    """What evaluation alone pays for: rewordings of an endpoint, and what the base model is asked besides `eval`."""
    questions, known, floor = run.table("questions"), run.base("known"), run.base("noise_floor")
    found: dict[str, Mapping[str, float]] = {}
    if questions.is_done and (asked := questions.manifest().get("rewordings_ledger")):
        found["rewordings"] = asked
    if known.is_done:
        found["known"] = {name: known.manifest()[name] for name in ("questions", "samples")}
    if floor.is_done:
        found["noise_floor"] = {"questions": floor.rows, "samples": 0}
    return found


def _prior(run: Run) -> dict[str, float]:
    """What a guess by topic gets right under the run's grading, by scope of eval."""
    batches = run.table("questions").batches(["scope", "group", "answers"], part="eval")
    return priors((row for batch in batches for row in batch.to_pylist()), Grading.of(run.config))


def _first_rows(run: Run) -> dict[str, float]:
    """Seconds until the first rows of each table of the base model that actors made."""
    tables = {spec.name: run.table(spec.folder) for spec in schema.TABLES.values() if spec.folder.startswith("base/")}
    facts = {name: table.manifest() for name, table in tables.items() if table.is_done}
    return {name: seconds for name, found in facts.items() if (seconds := found.get("first_shard_s")) is not None}


def _round_rows(run: Run) -> dict[str, Mapping[str, int]]:
    """The entry of `rows` for all rounds: annotations planned and bought; empty before the first purchase."""
    rounds = planned_rounds(run)
    bought = [t.rows for r in rounds if (t := r.table("annotations")).is_done]
    return {"rounds": {"in": sum(r.budget for r in rounds), "out": sum(bought), "errors": 0}} if bought else {}


def _seconds(run: Run, records: Sequence[RoundResult]) -> dict[str, float]:
    """Seconds by step: those of the base steps, and of every finished round."""
    total: Counter[str] = Counter({name: s for name, s in run.records.seconds().items() if name != WALL})
    for record in records:
        total.update(record.get("seconds", {}))
    return {name: round(seconds, 3) for name, seconds in total.items()}


def _records(run: Run) -> list[RoundResult]:
    """Round 0 and the finished rounds of every strategy and draw, curve by curve."""
    records = []
    for strategy, draw in draws(run.config.active):
        finished = [r.record() for r in curve(run, strategy, draw) if r.state == RoundState.DONE]
        records += [base_record(run, strategy, run.draw_seed(draw)), *finished]
    return records


def _stops(run: Run) -> list[StoppedResult]:
    """Strategies that stopped before their last round, and why; the first round that is not done tells."""
    return [
        {"strategy": r.strategy, "seed": r.seed, "after_round": r.number - 1, "reason": reason.value}
        for r in planned_rounds(run)
        if r.state == RoundState.ACQUIRE and all(e.state == RoundState.DONE for e in r.earlier)
        if (reason := stopped(r))
    ]


def _decode_summary(run: Run) -> dict[str, Any] | None:
    """The `decode` part: reconstruction metrics, and what became of the generated questions. `still_unknown_fraction`
    is over well-formed questions, the two fractions against the truth are over kept ones."""
    if (metrics := run.records.result("decode")) is None:
        return None
    tables = [t for r in planned_rounds(run) if (t := r.table("decoded")).is_done]
    columns = ["question", "augment", "p_unknown", "explained", "explained_after", "status"]
    rows = [row for t in tables for row in t.read(columns).to_pylist()]
    world = build_world() if run.config.corpus.source == "world" else None
    by_augment = {a: [r for r in rows if r["augment"] == a] for a in run.config.decode.augment}
    least = run.config.decode.min_p_unknown
    funnels = {a: _funnel(own, least, world) for a, own in by_augment.items()}
    stages = [Table(t.folder / name) for t in tables for name in (CANDIDATES, "written")]
    seconds = sum(stage.facts().get("seconds", 0.0) for stage in stages)
    kept = [r["question"] for r in rows if r["status"] == "kept"]
    also = {
        "distinct_2": distinct_2(kept) if kept else None,
        "kept_per_s": len(kept) / seconds if seconds else None,
        "grounding": run.config.decode.grounding,
        "explained_after": _corrected(rows, run.config.decode.corrections),
        "by_augment": funnels,
    }
    return metrics | _funnel(rows, least, world) | also


def _corrected(rows: Sequence[Mapping[str, Any]], corrections: int) -> list[float] | None:
    """Mean share explained before any correction and after each, of what was corrected; None where nothing was."""
    found = [r["explained_after"] for r in rows if r["status"] != "exhausted" and len(r["explained_after"]) > 1]
    return [fmean(shares[n] for shares in found) for n in range(corrections + 1)] if found else None


def _funnel(rows: Sequence[Mapping[str, Any]], min_p_unknown: float, world: World | None) -> dict[str, Any]:
    """What became of generated questions."""
    kept = [r for r in rows if r["status"] == "kept"]
    unknown = [r["p_unknown"] >= min_p_unknown for r in rows if r["status"] not in ("malformed", "exhausted")]
    facts = [world.ask(r["question"]) for r in kept] if world else []
    written = [r["explained"] for r in rows if r["status"] != "exhausted"]
    return {
        "generated": len(written),
        "kept": len(kept),
        "statuses": {s: sum(r["status"] == s for r in rows) for s in schema.DECODE_STATUSES},
        "explained": fmean(written) if written else None,
        "still_unknown_fraction": fmean(unknown) if unknown else None,
        "truly_unknown_fraction": fmean(f is not None and f.truth == "unseen" for f in facts) if facts else None,
        "answerable": fmean(f is not None for f in facts) if facts else None,
    }
