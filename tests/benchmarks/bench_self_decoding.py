"""A decoder that a real model is for itself: what it finds again, what steering makes of it, and its rivals.

In: a run in which `ka2l train-decoder` trained one. Out: `results/decoding_smollm2.json`, a row for each way:
`itself` (states decoded as they are), `steered` (to another group about the same kind of thing), and beside them what
the pooled state alone tells: the nearest training question by it. All on entities that training never saw.
`wanted` is the share that ask in the words of the wanted group, `kept` the share with the source's entity.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from scipy.stats import binomtest

from ka2l_ray.dataflow.placement import CPU
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.decode.decoders import card_at, load_decoder
from ka2l_ray.decode.grounding import Names
from ka2l_ray.decode.metrics import distinct_2, reconstruction
from ka2l_ray.decode.question_states import QuestionStates, states_of
from ka2l_ray.decode.reading import ReadActor
from ka2l_ray.decode.states import decoder_folder
from ka2l_ray.decode.states_stage import decoder_of, reading
from ka2l_ray.decode.steering import MOST_ROWS, Steering, fit_steering, names_asked, nearest
from ka2l_ray.models.examine import abilities_of
from ka2l_ray.models.loading import load_tokenizer
from ka2l_ray.models.prompts import Tokenize
from ka2l_ray.tables import matrix_or_nan
from ka2l_ray.text.normal import normalize

RESULTS = Path(__file__).parent / "results/decoding_smollm2.json"
FEWEST = 30
"""Questions of a group that is steered from or to."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="folder of the run")
    parser.add_argument("--rows", type=int, default=200, help="held-out questions")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--names", type=int, default=1000, help="names in the list that questions are grounded in")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    run = Run.existing(given.run)
    table = run.base("decoder/states").read()
    kinds = table.select(["error", "held_out", "entity"]).to_pylist()
    asked = [r["error"] is None and r["held_out"] and r["entity"] is not None for r in kinds]
    held = table.filter(pa.array(asked)).slice(0, given.rows)
    taught = table.filter(pa.array([r["error"] is None and not r["held_out"] for r in kinds]))
    tokenizer = load_tokenizer(run.config.model)
    folder = Path(decoder_of(run).path)
    decoder = load_decoder(folder, run.config.model, tokenizer, 0, abilities_of(run.config.model), CPU)
    own, theirs = (decoder.standardised(states_of(part)) for part in (held, taught.slice(0, MOST_ROWS)))
    rows: dict[str, dict[str, float | list[float] | None]] = {}

    def write(states: QuestionStates) -> list[str]:
        texts = list[str]()
        for n, part in enumerate(states.batches(50)):
            texts += decoder.write(part, [f"{n} {k}" for k in range(len(part))], 0, 0.0)
        return texts

    questions, entities = held["question"].to_pylist(), held["entity"].to_pylist()
    found = reconstruction(texts := write(own), questions, entities)
    rows["itself"] = found.__dict__ | {"rows": len(questions), "distinct_2": distinct_2(texts)}
    show("itself", questions, texts)
    near = nearest(own.pooled, theirs.pooled)
    beside = [taught["question"][int(n)].as_py() for n in near]
    rows["nearest training question"] = reconstruction(beside, questions, entities).__dict__
    some = taught.slice(0, MOST_ROWS)
    groups, kinds = some["group"].to_pylist(), kinds_of(run, some)
    steering = fit_steering(theirs.pooled, groups, [None] * len(groups), 0, theirs.mean_token, kinds)
    if steering is None or steering.token_centroids is None:
        raise SystemExit("nothing can be steered")
    rows |= steered(steering, held, taught, own, write, names_of(held, taught, given.names))
    for name, row in rows.items():
        print(name, {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
    RESULTS.write_text(json.dumps({"command": f"bench_self_decoding.py {given.run}", "ways": rows}, indent=1) + "\n")


def kinds_of(run: Run, rows: pa.Table) -> np.ndarray:
    """What the names of questions are (N, D; NaN where none is read), as a run reads it of its probe split."""
    ids, asked = rows["id"].to_pylist(), names_asked(rows["group"].to_pylist(), rows["entity"].to_pylist())
    card = card_at(decoder_folder(decoder_of(run).uri))
    reads = reading(run, card, "probe_states", [ids[n] for n in asked])
    actor, prompts = ReadActor(reads.setup), Tokenize(run.config.model, reads.setup.prompt).add(rows)
    found = [actor(prompts.slice(n, 256))["kind_state"] for n in range(0, len(rows), 256)]
    return matrix_or_nan(pa.chunked_array(found))


def names_of(held: pa.Table, taught: pa.Table, count: int) -> Names:
    """The held-out entities among others, `count` in all."""
    others = [e for e in taught["entity"].to_pylist() if e]
    return Names.of([*held["entity"].to_pylist(), *others][:count])


def steered(steering: Steering, held: pa.Table, taught: pa.Table, own: QuestionStates, write, names: Names) -> dict:
    """The row of `steered`: each held-out question to the next group about the same kind of thing."""
    sizes, words = Counter(taught["group"].to_pylist()), wordings(taught)
    groups = steering.groups_of(own.pooled, held["group"].to_pylist())
    possible = [[t for t in steering.targets[g] if sizes[steering.names[t]] >= FEWEST] for g in groups]
    some = [n for n, targets in enumerate(possible) if targets and sizes[steering.names[groups[n]]] >= FEWEST]
    to = [possible[n][k % len(possible[n])] for k, n in enumerate(some)]
    pooled = steering.steered(own.pooled[some], [groups[n] for n in some], to)
    of_tokens = steering.token_centroids if steering.token_centroids is not None else np.zeros_like(steering.centroids)
    tokens = [own.tokens[n] - of_tokens[groups[n]] + of_tokens[t] for n, t in zip(some, to, strict=True)]
    texts = write(QuestionStates(pooled.astype(np.float32), tokens))
    things = [normalize(held["entity"][n].as_py()) for n in some]
    wanted = [asks_in(words[steering.names[t]], text) for t, text in zip(to, texts, strict=True)]
    kept = [e in normalize(text) for e, text in zip(things, texts, strict=True)]
    show(
        "steered",
        [f"{held['question'][n].as_py()} -> {steering.names[t]}" for n, t in zip(some, to, strict=True)],
        texts,
    )
    listed = [names.within(text) is not None for text in texts]
    figures = {
        "rows": len(some),
        "groups": len(steering.names),
        "wanted": float(np.mean(wanted)),
        "wanted_ci": interval(wanted),
        "kept": float(np.mean(kept)),
        "kept_ci": interval(kept),
        "names_somebody_listed": float(np.mean(listed)),
        "kept_of_those_listed": float(np.mean([k for k, there in zip(kept, listed, strict=True) if there])),
        "distinct_2": distinct_2(texts),
    }
    return {"steered": figures}


def interval(hits: list[bool]) -> list[float]:
    """95 % interval of a share (Wilson)."""
    found = binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
    return [float(found.low), float(found.high)]


def wordings(taught: pa.Table) -> dict[str, set[tuple[str, str]]]:
    """Of each group what its questions say before and after the entity, in every wording that comes twice."""
    found: dict[str, Counter] = {}
    for question, entity, group in zip(*(taught[n].to_pylist() for n in ("question", "entity", "group")), strict=True):
        text, thing = normalize(question), normalize(entity or "")
        if thing and thing in text:
            before, _, after = text.rpartition(thing)
            found.setdefault(group, Counter())[before, after] += 1
    return {group: {w for w, n in counts.items() if n > 1} for group, counts in found.items()}


def asks_in(words: set[tuple[str, str]], text: str) -> bool:
    """Whether a text is asked in one of a group's wordings."""
    said = normalize(text)
    return any(said.startswith(before) and said.endswith(after) for before, after in words)


def show(name: str, sources: list[str], texts: list[str]) -> None:
    print(f"== {name}")
    for source, text in list(zip(sources, texts, strict=True))[:25]:
        print(f"  {source}  =>  {text}")


if __name__ == "__main__":
    main()
