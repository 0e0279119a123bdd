"""As many new questions as are wanted, without a round: `ka2l decode CONFIG --count N`.

In: a run whose pool is scored. Out: `base/new_questions`: the questions that were kept, in `questions.jsonl`, and what
became of the others. The pool questions that are likeliest unknown are decoded first, wave by wave, until so many are
kept; each wave is twice as long as the one before. A killed command goes on in the wave that it was killed in, and one
that wants more goes on after the last.
Refuses to know: how states, probes and decoders are made, who answers.
"""

import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np

from ka2l_ray.active.policies import Acquisition, FarthestFirst, PoolRow, by_probe
from ka2l_ray.active.pool import pool_rows, scored_pool
from ka2l_ray.dataflow.log import log
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.decode.stage import decode, decoded_states

FIRST_WAVE, LONGEST_WAVE = 32, 4096
"""Sources of the first wave, and of any."""
MOST_SOURCES = 2**20
"""Sources that are tried at most, whose ids are kept in memory."""


def new_questions(run: Run, count: int) -> dict[str, Any]:
    """Decode until `count` questions are kept, or no unknown pool question is left; write the chosen ones.

    Of all that are kept, `count` are chosen (`diverse`). Returns the number of `sources`, `statuses`, and the
    `questions`: their `id`, `question`, `source`, `p_unknown` and `augment`, as in the file at `file`.
    """
    folder = run.folder / "base/new_questions"
    kept: dict[str, dict[str, Any]] = {}
    states, statuses, tried, waves = dict[str, Any](), Counter[str](), 0, list[Folder]()
    for number, ids in enumerate(_waves(run), 1):
        wave = folder / f"wave_{number:02d}"
        found = {s["id"]: s for s in pool_rows(run, set(ids))}
        target = Table(wave / "decoded")
        rows = decode(run, [found[i] for i in ids], target, waves).to_pylist()
        waves.append(wave)
        tried += len(ids)
        statuses.update(r["status"] for r in rows)
        new = {r["id"]: r | {"source": found[r["source_id"]]["question"]} for r in rows if r["status"] == "kept"}
        states |= decoded_states(target, new)
        kept |= new
        log.info("%d of %d questions kept from %d sources", len(kept), count, tried, extra={"stage": "decode"})
        if len(kept) >= count:
            break
    if len(kept) < count:
        log.warning(
            "only %d of %d questions are kept, from all %d pool questions that are likely unknown "
            "(decode.min_p_unknown = %g); more ways to make questions: decode.augment, decode.variants",
            *(len(kept), count, tried, run.config.decode.min_p_unknown),
            extra={"stage": "decode"},
        )
    chosen = [kept[c.id] for c in diverse(kept, states, count)]
    questions = [{k: r[k] for k in ("id", "question", "source", "p_unknown", "augment")} for r in chosen]
    file = folder / "questions.jsonl"
    file.write_bytes("".join(json.dumps(q, ensure_ascii=False) + "\n" for q in questions).encode())
    return {"sources": tried, "statuses": dict(statuses), "questions": questions, "file": file.uri}


def diverse(kept: Mapping[str, Mapping[str, Any]], states: Mapping[str, np.ndarray], count: int) -> list[Acquisition]:
    """Of the kept rows of `decoded`, by id, at most `count`, one after another: each time the one with the greatest
    P(unknown) × distance of its state to those chosen before (k-centre, weighted)."""
    rows = [PoolRow(i, r["p_unknown"], state=states[i]) for i, r in kept.items()]
    return FarthestFirst(by_probe, len(rows)).choose(rows, set(), count)


def _waves(run: Run) -> Iterator[list[str]]:
    """Ids of the pool questions that are likely unknown, likeliest first, in waves."""
    least = run.config.decode.min_p_unknown
    likely = ((-row.p_unknown, row.id) for row in scored_pool(run) if row.p_unknown and row.p_unknown >= least)
    ranked = iter([i for _, i in heapq.nsmallest(MOST_SOURCES, likely)])
    size = FIRST_WAVE
    while wave := list(islice(ranked, size)):
        yield wave
        size = min(2 * size, LONGEST_WAVE)
