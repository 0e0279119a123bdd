"""A finished run, made by hand as the stages write it: its summary, its heat map, its tables. No Ray, no model."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ka2l_ray import schema
from ka2l_ray.config import Config
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run

KINDS = {
    "known": (0.0, 0.325),
    "rare": (0.325, 0.8018),
    "misconception": (0.0, 0.5),
    "unseen": (1.97, 2.303, 2.164, 0.8018, 1.6),
}
"""Entropies of the probe questions by truth."""
GRADED = {"questions": 2198, "graded": 2190, "note": None}
EACH = 40
WIDTH = 8
TOPICS = 30


def _round(strategy: str, seed: int, number: int, end: float) -> dict[str, Any]:
    gain = (end - 0.48) * math.sqrt(number / 3)
    return {
        "strategy": strategy,
        "seed": seed,
        "round": number,
        "annotations": 75 * number,
        "cost": 75.0 * number,
        "accuracy": 0.48 + gain,
        "domain_accuracy": None if strategy == "oracle" else 0.41 + gain * (0.22 if strategy == "ka2l" else 0.02),
        "known_accuracy": 1.0 - 0.012 * number - (0.004 * seed if number else 0),
        "replayed_accuracy": 1.0 - 0.004 * number,
        "corpus_prompt_accuracy": None,
        "ledger": _ledger(75 * number) if number else {},
    }


def _ledger(asked: int) -> dict[str, float]:
    """Of 75, two are refused, one is blank, and five get answers that another curve paid for."""
    part = asked // 75
    counts = dict.fromkeys(schema.ANNOTATION_STATUSES, 0) | {
        "answered": asked - 3 * part,
        "refused": 2 * part,
        "blank": part,
    }
    return {
        "asked": asked,
        "rejected": 3 * part,
        **counts,
        "cached": 5 * part,
        "cost": float(asked),
        "paid": asked - 5.0 * part,
    }


def _rounds() -> list[dict[str, Any]]:
    ends = {("ka2l", 0): 0.744, ("random", 0): 0.622, ("random", 1): 0.604, ("random", 2): 0.647, ("oracle", 0): 0.762}
    return [_round(strategy, seed, number, end) for (strategy, seed), end in ends.items() for number in range(4)]


def _search() -> dict[str, Any]:
    layers = []
    for layer in range(9):
        auroc = 0.61 + 0.33 * math.sin(min(layer, 6) / 6 * math.pi / 2) - 0.01 * max(0, layer - 6)
        interval = [auroc - 0.021, min(1.0, auroc + 0.019)]
        entry = {"layer": layer, "position": "last", "auroc": auroc, "auroc_ci": interval}
        layers.append(entry | {"auroc_vs_truth": min(0.995, auroc + 0.04)})
    chosen = {name: layers[6][name] for name in ("layer", "position", "auroc", "auroc_ci", "auroc_vs_truth")}
    return chosen | {"probe": "linear", "objective": "correctness", "threshold_nats": 0.8018, "layers": layers} | GRADED


def results() -> Any:
    """A whole run's results, as in `results.json` (sorted by name, some numbers null)."""
    return {
        "command": "ka2l run jobs/configs/demo.yaml",
        "config_hash": "0123456789ab",
        "model": "world",
        "versions": {"ka2l_ray": "0.1.0", "ray": "2.62.0", "vllm": None},
        "seed": 0,
        "label": {
            "questions": 2200,
            "unknown_fraction": 0.4832,
            "threshold_nats": 0.8018,
            "right": 1054,
            "wrong": 1146,
            "entropy_auroc_vs_incorrect": 0.931,
            "entropy_auroc_vs_truth": 0.987,
            "baselines": {"likelihood": 0.884, "predictive_entropy": None},
            "quadrants": {"known": 981, "misconception": 156, "shaky": 73, "unknown": 990},
        },
        "search": _search(),
        "decode": {
            "generated": 300,
            "kept": 181,
            "exact_match": 0.412,
            "token_accuracy": 0.871,
            "bleu": 71.3,
            "token_f1": 0.86,
            "still_unknown_fraction": 0.79,
            "truly_unknown_fraction": None,
            "answerable": 0.93,
            "distinct_2": 0.42,
            "explained_after": [0.61, 0.702, 0.71],
            "kept_per_s": 3.1,
            "grounding": None,
            "statuses": {
                "duplicate": 61,
                "eval": 7,
                "far": 0,
                "ungrounded": 0,
                "kept": 181,
                "known": 40,
                "malformed": 11,
            },
            "steering_groups": 12,
            "steering_found": 0.86,
            "explained": 0.81,
            "by_augment": {
                way: {"generated": 150, "kept": kept, "explained": 0.8, "answerable": 0.9}
                | {"truly_unknown_fraction": 0.9}
                for way, kept in (("steer", 120), ("noise", 61))
            },
        },
        "eval_scope": "pool",
        "rounds": _rounds(),
        "saving": [
            {"strategy": "ka2l", "seed": 0, "saving": 0.412, "of_oracle": 0.871},
            {"strategy": "oracle", "seed": 0, "saving": 0.473, "of_oracle": None},
        ],
        "rows": {
            "collect": {"in": 2200, "out": 2200, "errors": 0},
            "decode": {"in": 150, "out": 300, "errors": None},
            "label": {"in": 2200, "out": 2198, "errors": 2},
        },
        "first_rows_s": {"activations": 8.1, "scores": 2.2},
        "time_s": {
            "collect": 61.2,
            "decode": 12.9,
            "evaluate": 33.1,
            "finetune": 410.4,
            "label": 0.8,
            "score": 4.0,
            "search": 9.3,
        },
    }


def heat() -> list[dict[str, Any]]:
    """Layers × thresholds × C, with a gap where a threshold was not tried."""
    return [
        {
            "layer": layer,
            "position": "last",
            "threshold_nats": 0.325 + 0.16 * t,
            "inverse_regularization": c,
            "auroc": 0.6 + 0.04 * layer - 0.01 * abs(t - 5) - c / 99,
        }
        for layer in range(9)
        for t in range(11)
        for c in (0.03, 0.3)
        if (layer, t) != (2, 10)
    ]


def open_run(storage: Path, title: str = "What the model does not know", **sections: Any) -> Run:
    """An empty run named `r`, with the strategies of `results`."""
    active = {"strategies": ["ka2l", "random", "oracle"], "rounds": 3, "budget": 225}
    tree = {"run": {"name": "r", "storage": str(storage)}, "report": {"title": title}, "active": active}
    return Run.open(Config.model_validate(tree | sections))


def write_run(storage: Path) -> Run:
    """A whole run, one round of each curve with tables."""
    run = open_run(storage)
    (run.folder / "results.json").write_json(results())
    (run.folder / "base/search/heat.json").write_json(heat())
    write_knowledge(run)
    write_states(run)
    write_round(run, "ka2l", 0, 1, decoded=12)
    for draw in range(3):
        write_round(run, "random", draw, 1)
    return run


def knowledge_rows() -> list[dict[str, Any]]:
    """`EACH` rows per entropy value and truth over `TOPICS` topics, a failed row, and a row without truth or topic."""
    rows = [
        {"entropy_nats": v, "truth": t, "correct": t == "known"} for t, values in KINDS.items() for v in values
    ] * EACH
    rows = [
        r | {"group": f"topic {n % TOPICS}", "unknown": int(r["entropy_nats"] >= 0.8018)} for n, r in enumerate(rows)
    ]
    rows = [r | {"quadrant": "unknown" if r["unknown"] else "known"} for r in rows]
    rows.append({"entropy_nats": None, "truth": "known"})
    rows.append({"entropy_nats": 0.0, "correct": True, "unknown": 0, "quadrant": "known"})
    return [{"id": f"p{n:04d}"} | r for n, r in enumerate(rows)]


def write_knowledge(run: Run) -> None:
    write(run.base("knowledge"), knowledge_rows(), schema.KNOWLEDGE)


def write_states(run: Run) -> None:
    """States of layer 6 in two files: unknown questions differ along one direction; a failed row has no state."""
    rng = np.random.default_rng(0)
    columns = schema.states(["last"], [6], WIDTH, half=True)
    rows = []
    for row in knowledge_rows():
        state = rng.normal(size=WIDTH) + 6 * np.eye(WIDTH)[2] * (row.get("unknown") or 0)
        rows.append(
            {"id": row["id"], "last_006": None if row["entropy_nats"] is None else state.astype(np.float16).tolist()}
        )
    table = pa.Table.from_pylist(rows, schema=schema.join(pa.schema([schema.ID]), columns, error=False))
    half = table.num_rows // 2
    run.base("activations").write((None, table.slice(0, half)), (None, table.slice(half)))


def write_round(
    run: Run, strategy: str, draw: int, number: int, bought: int = 10, decoded: int = 0, text: str = ""
) -> None:
    """Tables of a round that bought pool questions; every text contains `text`.

    Acquired and annotated questions are in different orders.
    """
    folder, name = run.round(strategy, draw, number), f"{strategy}-{draw}-{number}"
    ids = [f"{name}-{n}" for n in range(bought)]
    pool = [{"id": i, "question": f"Who is {i}? {text}", "answers": ["a baker"], "split": "pool"} for i in ids]
    known = run.table("questions").read().to_pylist() if run.table("questions").is_done else []
    run.table("questions").write(("pool", pa.Table.from_pylist(known + pool, schema=schema.QUESTIONS)))
    chosen = [{"id": i, "reason": f"p_unknown {1 - n / 1000:.3f} {text}", "rank": n} for n, i in enumerate(ids)]
    write(Table(folder / "acquired"), chosen, schema.ACQUIRED)
    bought_rows = [
        {k: q[k] for k in ("id", "question")} | {"answer": f"baker of {q['id']} {text}"} for q in reversed(pool)
    ]
    write(
        Table(folder / "annotations"),
        [q | {"cost": 1.0, "status": "answered"} for q in bought_rows],
        schema.ANNOTATIONS,
    )
    if decoded:
        write(Table(folder / "decoded"), [_decoded(n, ids[n % bought], text) for n in range(decoded)], schema.DECODED)


def _decoded(number: int, source: str, text: str) -> dict[str, Any]:
    status = schema.DECODE_STATUSES[number % len(schema.DECODE_STATUSES)]
    row = {
        "id": f"{source}-d{number}",
        "source_id": source,
        "variant": number,
        "question": f"Where does number {number} live? {text}",
    }
    row |= {"augment": ("steer", "noise")[number % 2], "explained": 0.8}
    return row | {"similarity": None if status == "malformed" else 0.75, "p_unknown": 0.875, "status": status}


def write(table: Table, rows: list[dict[str, Any]], columns: pa.Schema) -> None:
    table.write((None, pa.Table.from_pylist(rows, schema=columns)))
