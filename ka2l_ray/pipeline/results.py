"""The content of `results.json`, from what is done so far.

In: a `Run`. Out: a JSON object; parts that did not run are null. Refuses to know: how a stage works.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from ka2l_ray import schema
from ka2l_ray.active.outcome import base_record, eval_scope
from ka2l_ray.active.round import RoundState
from ka2l_ray.active.saving import savings
from ka2l_ray.active.schedule import planned_rounds, stopped
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.versions import versions
from ka2l_ray.label.stage import gamma, label_summary
from ka2l_ray.results_schema import Results
from ka2l_ray.world.facts import build_world


def gather(run: Run, command: str) -> Results:
    """The content of results.json; `command` is what the user typed."""
    config = run.config
    knowledge, found = run.base("knowledge"), run.folder / "base/search/search.json"
    records = _records(run)
    content: dict[str, Any] = {
        "config_hash": run.hash,
        "command": command,
        "model": config.model.identity,
        "versions": versions(),
        "seed": config.run.seed,
        "label": label_summary(run, gamma(run)) if knowledge.is_done else None,
        "search": found.read_json() if found.exists() else None,
        "decode": _decode_summary(run),
        "eval_scope": eval_scope(config),
        "rounds": records,
        "saving": savings(records),
        "stopped": _stops(run),
        "rows": run.records.rows() | _round_rows(run),
        "time_s": _seconds(run, records),
    }
    return Results(**content)


def _round_rows(run: Run) -> dict[str, Any]:
    """The entry of `rows` for all rounds: annotations planned and bought; empty before the first purchase."""
    rounds = planned_rounds(run)
    bought = [t.rows for r in rounds if (t := r.table("annotations")).is_done]
    return {"rounds": {"in": sum(r.budget for r in rounds), "out": sum(bought), "errors": 0}} if bought else {}


def _seconds(run: Run, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds by step: those of the base steps, and of every finished round."""
    total: Counter[str] = Counter(run.records.seconds())
    for record in records:
        total.update(record["seconds"])
    return {name: round(seconds, 3) for name, seconds in total.items()}


def _records(run: Run) -> list[dict[str, Any]]:
    if not run.base("evaluation").is_done:
        return []
    rounds = planned_rounds(run)
    draws = dict.fromkeys((r.strategy, r.seed) for r in rounds)
    records = [base_record(run, strategy, seed) for strategy, seed in draws]
    records += [r.record() for r in rounds if r.state == RoundState.DONE]
    order = list(draws)
    records.sort(key=lambda r: (order.index((r["strategy"], r["seed"])), r["round"]))
    return records


def _stops(run: Run) -> list[dict[str, Any]]:
    """Strategies that stopped before their last round, and why; the first round that is not done tells."""
    if not run.base("evaluation").is_done:
        return []
    first = [
        r
        for r in planned_rounds(run)
        if r.state == RoundState.ACQUIRE and all(e.state == RoundState.DONE for e in r.earlier)
    ]
    return [
        {"strategy": r.strategy, "seed": r.seed, "after_round": r.number - 1, "reason": reason.value}
        for r in first
        if (reason := stopped(r))
    ]


def _decode_summary(run: Run) -> dict[str, Any] | None:
    """The `decode` part: reconstruction metrics, and what became of the generated questions. `still_unknown_fraction`
    is over well-formed questions, the two fractions against the truth are over kept ones."""
    if (metrics := run.records.result("decode")) is None:
        return None
    tables = [t for r in planned_rounds(run) if (t := r.table("decoded")).is_done]
    rows = [row for t in tables for row in t.read(["question", "p_unknown", "status"]).to_pylist()]
    kept = [r for r in rows if r["status"] == "kept"]
    well_formed = [r for r in rows if r["status"] != "malformed"]
    unknown = [r["p_unknown"] >= run.config.decode.min_p_unknown for r in well_formed]
    world = build_world() if run.config.corpus.source == "world" else None
    kinds = [world.ask(r["question"]).kind for r in kept] if world else []
    return metrics | {
        "generated": len(rows),
        "kept": len(kept),
        "statuses": {s: sum(r["status"] == s for r in rows) for s in schema.DECODE_STATUSES},
        "still_unknown_fraction": fmean(unknown) if unknown else None,
        "truly_unknown_fraction": fmean(k == "unseen" for k in kinds) if kinds else None,
        "answerable": fmean(k not in ("nobody", "malformed") for k in kinds) if kinds else None,
    }
