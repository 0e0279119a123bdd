"""The stages in order; what is done is skipped.

In: a `Run`. Out: its tables, `results.json` and the report.
Refuses to know: what a stage computes. A stage is done when its manifest (or summary) is there.
"""

import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import ray

from ka2l_ray import schema
from ka2l_ray.active.acquire import SAMPLING, STATES
from ka2l_ray.active.outcome import base_record, eval_scope, evaluate_base
from ka2l_ray.active.round import Round, State, scored_pool
from ka2l_ray.active.rounds import play, sample_candidates
from ka2l_ray.active.saving import savings
from ka2l_ray.active.stop import Stop, decide
from ka2l_ray.annotate.sources import Waiting
from ka2l_ray.artifacts import Folder, Run, Table, booked
from ka2l_ray.collect.stage import collect, sample_pool, wanted_layers
from ka2l_ray.config import Config, ConfigError, Strategy
from ka2l_ray.corpus.stage import questions
from ka2l_ray.dataflow import failed_rows, reopen_errors
from ka2l_ray.decode.actor import decoder_folder
from ka2l_ray.decode.model import read_card
from ka2l_ray.decode.stage import check_decoder
from ka2l_ray.label.stage import gamma_file, label, label_pool, label_summary
from ka2l_ray.models.loading import check_model, commit, refused_by_name
from ka2l_ray.probe.search import search
from ka2l_ray.probe.stage import score
from ka2l_ray.report.page import write_report
from ka2l_ray.runtime import connect, log, stage_line, versions
from ka2l_ray.world.facts import build_world

RESULTS, ROWS, TIMES, REDO = "results.json", "rows.json", "times.json", "redo.json"
"""`ROWS` and `TIMES` are the books of the base steps; a step is in `ROWS` once it is done."""
EVALUATIONS = ("evaluation", "evaluation/corpus_prompt")
ROWWISE = (
    *("activations", "clusters", "knowledge", "scores", "pool_samples", "pool_clusters", "pool_knowledge"),
    *("replay", *EVALUATIONS),
)
"""Tables of the base model that are made row by row."""
ANSWERS_WITHIN_S = 10.0
SAMPLES_POOL = "K samples of the pool, for the strategies that rank by them (entropy, likelihood, quadrant)"
ROUND_COMMANDS = {"decode": State.ACQUIRE, "annotate": State.ANNOTATE, "finetune": State.FINETUNE, "evaluate": State.EVALUATE}
"""Up to which state a round command takes the next round."""
Counts = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One step of the pipeline and the folders that hold its output, below the run's."""

    name: str
    does: Callable[[Run], Counts | None]
    """None from `rounds`, which keep their own books: whichever command plays one, `gather` finds them."""
    folders: tuple[str, ...]
    says: str


def _label(run: Run) -> Counts:
    manifest = label(run)
    if not gamma_file(run).exists():
        gamma_file(run).write_json({"threshold_nats": manifest["threshold_nats"]})
    return manifest


def gamma(run: Run) -> float:
    """γ as the labelling stage wrote it."""
    return gamma_file(run).read_json()["threshold_nats"]


def _search(run: Run) -> Counts:
    search(run, gamma(run))
    rows = run.base("knowledge").rows
    return {"rows_in": rows, "rows": rows, "errors": 0}


def _decode_check(run: Run) -> Counts:
    if run.config.decode.enabled and not (run.folder / "base/reconstruction/metrics.json").exists():
        (run.folder / "base/reconstruction/metrics.json").write_json(check_decoder(run))
    return run.base("reconstruction").manifest() if run.config.decode.enabled else {"rows_in": 0, "rows": 0, "errors": 0}


def _sample_pool(run: Run) -> Counts:
    if not set(run.config.active.strategies) & set(SAMPLING):
        return {"rows_in": 0, "rows": 0, "errors": 0}
    sample_pool(run)
    return label_pool(run, gamma(run))


def _rounds(run: Run) -> None:
    """Play every round that can be played; one that waits for people holds up only its own strategy and draw."""
    planned = list(plan(run))
    for n, a_round in enumerate(planned, 1):
        if a_round.state == State.DONE or _held_up(a_round):
            continue
        try:
            record = play(a_round)
        except Waiting as waiting:
            log.info("round      %d/%d %s seed %d round %d: %s", n, len(planned), a_round.strategy, a_round.seed, a_round.number, waiting)
            continue
        if record:
            log.info("round      %s", describe(record, n, len(planned)))


def play_curve(run: Run, strategy: str, draw: int) -> str:
    """Every round of one strategy and draw that may be played, in order; returns the last one's figures in words."""
    own = [r for r in plan(run) if (r.strategy, r.draw) == (strategy, draw)]
    for a_round in own:
        if a_round.state != State.DONE and not _held_up(a_round):
            play(a_round)
    done = [r for r in own if r.state == State.DONE]
    return describe(done[-1].record(), len(done), len(own)) if done else "stopped before its first round"


def _held_up(a_round: Round) -> bool:
    """Whether a round cannot be played now: its strategy has stopped, or an earlier round is not done."""
    return any(r.state != State.DONE for r in a_round.earlier) or stopped(a_round) is not None


def stopped(a_round: Round) -> Stop | None:
    """Why a strategy ended before this round, by `active.stop`; None where it goes on. Earlier rounds are done.

    `random` never stops early: savings are measured against its full budget.
    """
    if a_round.strategy == "random":
        return None
    stop = a_round.run.config.active.stop
    accuracies = [base_record(a_round.run, a_round.strategy, a_round.seed)["accuracy"], *(r.record()["accuracy"] for r in a_round.earlier)]
    unknown_left = True
    if stop.p_unknown is not None:
        bought = {i for r in a_round.earlier for i in r.table("acquired").read(["id"])["id"].to_pylist()}
        unknown_left = any((row.p_unknown or 0.0) >= stop.p_unknown and row.id not in bought for row in scored_pool(a_round.run))
    return decide(stop, accuracies, unknown_left)


STEPS = (
    Step("questions", questions, ("questions",), "read the corpus and split it"),
    Step(
        "collect",
        collect,
        ("base/pilot", "base/activations", "base/samples"),
        "hidden states, greedy answer and K samples of the probe split",
    ),
    Step("label", _label, ("base/clusters", "base/knowledge"), "clusters, semantic entropy, γ, known or unknown"),
    Step("search", _search, ("base/search",), "Ray Tune over layers and thresholds"),
    Step("score", score, ("base/scores",), "P(unknown) of the pool from blocks 1 … l"),
    Step("sample_pool", _sample_pool, ("base/pool_samples", "base/pool_clusters", "base/pool_knowledge"), SAMPLES_POOL),
    Step("replay", sample_candidates, ("base/replay",), "the base model's own answers to pool questions that rounds may replay"),
    Step("decode", _decode_check, ("base/reconstruction",), "how well the decoder finds a question again"),
    Step("evaluate", evaluate_base, ("base/evaluation",), "greedy answers of the base model to the eval split"),
    Step("rounds", _rounds, ("strategies",), "acquire, decode, annotate, fine-tune, evaluate, round by round"),
)
STEP_NAMES = tuple(s.name for s in STEPS)


def check(config: Config) -> None:
    """Refuse before any work what can be known to fail: layers, budgets, strategies."""
    with refused_by_name(config.model):
        check_model(config.model)
        wanted_layers(config)
    check_sections(config)
    check_decoder_fits(config)
    check_address(config)


def check_decoder_fits(config: Config) -> None:
    """Refuse a decoder of another model, or of another prompt where that is known before questions are read."""
    if not config.decode.enabled:
        return
    name = config.decode.decoder
    try:
        card = read_card(decoder_folder(name))
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(f"decode.decoder = {name!r}: holds no decoder: {error}. Or set decode.enabled: false") from error
    if card.model != (given := config.model.name_or_path) and not card.model.startswith((f"{given}@", f"{given} + ")):
        raise ConfigError(
            f"decode.decoder = {name!r} reads states of model {card.model!r}, not of {config.model.name_or_path!r}; "
            "give one that was trained on this model, or set decode.enabled: false"
        )
    if config.corpus.prompt.style == "bare" and card.prompt != config.corpus.prompt.template:
        raise ConfigError(
            f"decode.decoder = {name!r} reads states under prompt {card.prompt!r}, not {config.corpus.prompt.template!r}; "
            "use that prompt, or set decode.enabled: false"
        )


def cluster_resources(config: Config) -> Mapping[str, float] | None:
    """What the cluster at `ray.address` or RAY_ADDRESS has now, by Ray's names; None where a run would start one of its own.

    Raises `ConfigError` where none answers there.
    """
    if _cluster(config) is None:
        return None
    check_address(config)
    connect(config)
    return ray.cluster_resources()


def _cluster(config: Config) -> str | None:
    """The address of the cluster to join; None where a run starts one of its own."""
    address = config.ray.address or os.environ.get("RAY_ADDRESS") or "local"
    return None if address == "local" else address


def check_address(config: Config) -> None:
    """Raise `ConfigError` where nothing listens at a `HOST:PORT`: Ray itself would go on trying for minutes."""
    if (address := _cluster(config)) is None or "://" in address or ":" not in address:
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWERS_WITHIN_S).close()
    except (OSError, ValueError) as error:
        raise ConfigError(f"ray.address = {address!r}: no Ray cluster answers there: {error}") from error


def pinned(config: Config) -> Config:
    """The same with the commit that a hub id stands for today, so that a run goes on with the weights it began with."""
    if config.model.revision is not None or (revision := commit(config.model)) is None:
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"revision": revision})})


def check_sections(config: Config) -> None:
    """What contradicts itself between sections; the model is not looked at."""
    world = config.corpus.source == "world"
    if "oracle" in config.active.strategies and not world:
        raise ConfigError("active.strategies: `oracle` needs corpus.source = world, where the truth is known")
    if world and config.active.budget > config.corpus.world.pool_questions:
        raise ConfigError(
            f"active.budget = {config.active.budget} exceeds corpus.world.pool_questions = {config.corpus.world.pool_questions}"
        )
    if not world and config.annotate.source == "world":
        raise ConfigError("annotate.source: `world` needs corpus.source = world; use `reference`")
    if config.model.adapter is not None and not Folder.of(config.model.adapter).exists():
        raise ConfigError(f"model.adapter = {config.model.adapter!r}: no such folder; a hub's adapter must be downloaded first")
    if config.active.budget > config.acquire.candidates and (comparing := sorted(set(config.active.strategies) & set(STATES))):
        raise ConfigError(
            f"active.budget = {config.active.budget} exceeds acquire.candidates = {config.acquire.candidates}, "
            f"which is all that {', '.join(comparing)} may choose from; raise acquire.candidates"
        )
    if config.acquire.balance == "group" and (together := sorted(set(config.active.strategies) & set(STATES))):
        raise ConfigError(f"acquire.balance = group does not go with {', '.join(together)}, which spread their choice by states")


def execute(run: Run, until: str | None, command: str) -> dict[str, Any]:
    """Run the steps up to `until`, write results.json and the report; returns the results."""
    run_steps(run, until)
    return publish(run, command)


def run_steps(run: Run, until: str | None) -> None:
    """Run every step up to and with `until`, all where it is None."""
    if unfinished := (run.folder / REDO).read_json_or_empty():
        redo(run, unfinished["from"])
    last = STEP_NAMES.index(until) if until else len(STEPS) - 1
    for step in STEPS[: last + 1]:
        done_before = step.name in (run.folder / ROWS).read_json_or_empty()
        with stage_line(step.name, "done before" if done_before else step.says):
            with nullcontext() if done_before or step.name == "rounds" else booked(run.folder / TIMES, step.name):
                counts = step.does(run)
            if counts is not None:
                _note_rows(run, step.name, counts)


def publish(run: Run, command: str) -> dict[str, Any]:
    """Write results.json and the report from what is done so far; returns the results. `command` is what the user typed."""
    results = gather(run, command)
    (run.folder / RESULTS).write_json(results)
    write_report(run)
    return results


def advance(run: Run, name: str, command: str) -> list[Round]:
    """Finish the base stages, take every strategy's next round up to what the round command `name` names, publish.

    Returns the rounds that wait for people.
    """
    run_steps(run, "evaluate")
    for a_round in next_rounds(run):
        log.info("%-10s %s seed %d round %d", name, a_round.strategy, a_round.seed, a_round.number)
        try:
            play(a_round, ROUND_COMMANDS[name])
        except Waiting as waiting:
            log.info("%-10s %s", name, waiting)
    publish(run, command)
    return waiting_rounds(run)


def next_rounds(run: Run) -> list[Round]:
    """The first round of every strategy and draw that is not done and may be played."""
    return [r for r in plan(run) if r.state != State.DONE and not _held_up(r)]


def waiting_rounds(run: Run) -> list[Round]:
    """Rounds whose questions people have to answer."""
    return [r for r in plan(run) if r.state == State.WAITING]


def redo(run: Run, name: str) -> None:
    """Delete the output of a step and of all that follow it. Killed half-way, it is finished before any step runs: else results of later
    steps would stand on new inputs, and object storage, where files go one by one, would show a table whose files are gone."""
    note = run.folder / REDO
    first = min([name, *note.read_json_or_empty().values()], key=STEP_NAMES.index)
    note.write_json({"from": first})
    for step in STEPS[STEP_NAMES.index(first) :]:
        for folder in step.folders:
            (run.folder / folder).delete()
    kept = STEP_NAMES[: STEP_NAMES.index(first)]
    for book in (run.folder / ROWS, run.folder / TIMES):
        if book.exists():
            book.write_json({k: v for k, v in book.read_json().items() if k in kept})
    (run.folder / RESULTS).delete()
    note.delete()


def retry_errors(run: Run) -> dict[str, int]:
    """Have the next run of the steps do failed rows anew and keep the others; returns how many by table, the tables without any left out.

    Rows are mended where they stand; what was computed from a whole table before (γ, the probe, what rounds bought and trained on) stays
    as it is, but for the figures of a round whose evaluation is mended.
    """
    tables: dict[str, tuple[Table, Sequence[Folder]]] = {name: (run.base(name), ()) for name in ROWWISE}
    tables["reconstruction"] = run.base("reconstruction"), (run.folder / "base/reconstruction/metrics.json",)
    if not (run.folder / "base/pilot/gamma.json").exists():  # what γ was taken from is not looked at again
        tables["pilot"] = run.base("pilot"), ()
    for a_round in plan(run):
        tables |= {
            f"{a_round.strategy} seed {a_round.seed} round {a_round.number}: {name}": found for name, found in _of_a_round(a_round).items()
        }
    return {name: n for name, (table, made_from_it) in tables.items() if (n := _again(table, made_from_it))}


def _of_a_round(a_round: Round) -> dict[str, tuple[Table, Sequence[Folder]]]:
    """Tables that a round makes row by row, and what is made from each; of decoding and of a new probe only while they are not done, for
    the next round has used them."""
    found: dict[str, tuple[Table, Sequence[Folder]]] = {n: (a_round.table(n), (a_round.folder / "round.json",)) for n in EVALUATIONS}
    if not a_round.table("decoded").is_done:
        found["decoded"] = a_round.table("decoded/written"), ()
    if (probed := a_round.folder / "reprobe").exists() and not (a_round.folder / "reprobe.json").exists():
        found |= {f"reprobe {name}": (Table(probed / "base" / name), ()) for name in ROWWISE}
    return found


def _again(table: Table, made_from_it: Sequence[Folder]) -> int:
    """Have a table's failed rows done anew; what is made from it goes first, so that a kill leaves nothing that stands on other rows."""
    count = failed_rows(table)
    if count:
        for file in made_from_it:
            file.delete()
        reopen_errors(table)
    return count


def plan(run: Run) -> Sequence[Round]:
    """Every round of every strategy and draw, in order: the strategies alternate round by round."""
    active = run.config.active
    draws: list[tuple[Strategy, int]] = [(s, d) for s in active.strategies for d in range(active.random_draws if s == "random" else 1)]
    return [Round(run, s, d, n) for n in range(1, active.rounds + 1) for s, d in draws]


def describe(record: dict[str, Any], number: int, total: int) -> str:
    shown = {k: record[k] for k in ("accuracy", "domain_accuracy", "known_accuracy", "replayed_accuracy")}
    figures = "  ".join(f"{k} {'–' if v is None else f'{v:.3f}'}" for k, v in shown.items())
    who = f"{record['strategy']} seed {record['seed']} round {record['round']}"
    return f"{number}/{total} {who}: {record['annotations']} annotations  {figures}"


def gather(run: Run, command: str) -> dict[str, Any]:
    """The content of results.json from what is done so far; parts that did not run are null."""
    config = run.config
    knowledge, found = run.base("knowledge"), run.folder / "base/search/search.json"
    records = _records(run)
    return {
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
        "rows": (run.folder / ROWS).read_json_or_empty() | _round_rows(run),
        "time_s": _seconds(run, records),
    }


def _round_rows(run: Run) -> dict[str, Any]:
    """The entry of `rows` for all rounds: annotations planned and bought; none before the first is bought."""
    rounds = plan(run)
    bought = [t.rows for r in rounds if (t := r.table("annotations")).is_done]
    return {"rounds": {"in": sum(r.budget for r in rounds), "out": sum(bought), "errors": 0}} if bought else {}


def _seconds(run: Run, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds by step: the base steps' own, and those of every finished round."""
    total: Counter[str] = Counter((run.folder / TIMES).read_json_or_empty())
    for record in records:
        total.update(record["seconds"])
    return {name: round(seconds, 3) for name, seconds in total.items()}


def _records(run: Run) -> list[dict[str, Any]]:
    if not run.base("evaluation").is_done:
        return []
    rounds = plan(run)
    draws = dict.fromkeys((r.strategy, r.seed) for r in rounds)
    records = [base_record(run, strategy, seed) for strategy, seed in draws]
    records += [(r.folder / "round.json").read_json() for r in rounds if (r.folder / "round.json").exists()]
    order = list(draws)
    records.sort(key=lambda r: (order.index((r["strategy"], r["seed"])), r["round"]))
    return records


def _stops(run: Run) -> list[dict[str, Any]]:
    """Strategies that ended before their rounds were used up, and why: of each, the first round that is not done can tell."""
    if not run.base("evaluation").is_done:
        return []
    first = [r for r in plan(run) if r.state == State.ACQUIRE and all(e.state == State.DONE for e in r.earlier)]
    return [
        {"strategy": r.strategy, "seed": r.seed, "after_round": r.number - 1, "reason": reason.value}
        for r in first
        if (reason := stopped(r))
    ]


def _decode_summary(run: Run) -> dict[str, Any] | None:
    """The `decode` part: reconstruction metrics, and the fate of what every round generated; shares are over the kept ones."""
    metrics = run.folder / "base/reconstruction/metrics.json"
    if not metrics.exists():
        return None
    tables = [t for r in plan(run) if (t := r.table("decoded")).is_done]
    rows = [row for t in tables for row in t.read(["question", "p_unknown", "status"]).to_pylist()]
    kept = [r for r in rows if r["status"] == "kept"]
    well_formed = [r for r in rows if r["status"] != "malformed"]
    unknown = [r["p_unknown"] >= run.config.decode.min_p_unknown for r in well_formed]
    world = build_world() if run.config.corpus.source == "world" else None
    kinds = [world.ask(r["question"]).kind for r in kept] if world else []
    return metrics.read_json() | {
        "generated": len(rows),
        "kept": len(kept),
        "statuses": {s: sum(r["status"] == s for r in rows) for s in schema.DECODE_STATUSES},
        "still_unknown_fraction": fmean(unknown) if unknown else None,
        "truly_unknown_fraction": fmean(k == "unseen" for k in kinds) if kinds else None,
        "answerable": fmean(k not in ("nobody", "malformed") for k in kinds) if kinds else None,
    }


def _note_rows(run: Run, name: str, counts: Counts) -> None:
    rows = {"in": counts.get("rows_in", counts.get("rows", 0)), "out": counts["rows"], "errors": counts.get("errors", 0)}
    (run.folder / ROWS).write_json((run.folder / ROWS).read_json_or_empty() | {name: rows})
