"""`make decoding`: where new questions come from, and how many of them anybody could answer.

In: the shipped world, in which every question's answer is known, three seeds of split, samples and probe. Out:
`results/decoding.json`, and a line per way and seed. Each way makes 300 questions from the 150 pool questions that
`ka2l` buys; all go through the same filters as in a run. Beside decoding stand rivals that need no decoder: questions
about random names of the domain, and every wording of every attribute for the names in the sources (enumeration, which
needs to know which words are a name).
Says nothing of corpora in free text, which have neither names nor templates to enumerate.
"""

import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from world_lab import Lab, Setting

from ka2l_ray.config import DecodeSection
from ka2l_ray.world.facts import ATTRIBUTES, RESERVED_PHRASING, build_world, phrase_question

RESULTS = Path(__file__).parent / "results" / "decoding.json"
SEEDS, SOURCES, AGAIN = (0, 1, 2), 150, 400
"""`AGAIN` pool questions are decoded from their own states."""
NEAR = 0.8
"""`decode.min_explained` of the demo."""
WAYS: dict[str, dict[str, Any]] = {
    "steer": {"min_explained": NEAR},
    "steer, grounded in the corpus's names": {"grounding": "corpus"},
    "steer, grounded, two corrections": {"grounding": "corpus", "corrections": 2},
    "steer, any distance": {},
    "steer, one candidate": {"candidates": 1},
    "interpolate": {"augment": ("interpolate",), "min_explained": NEAR},
    "temperature": {"augment": ("temperature",), "min_explained": NEAR},
    "noise": {"augment": ("noise",), "min_explained": NEAR},
    "noise, one candidate": {"augment": ("noise",), "candidates": 1},
}


def random_questions(lab: Lab, rng: random.Random, count: int) -> list[str]:
    """Well-formed ones about names that are put together from the domain's given and family names."""
    world = lab.world
    return [
        phrase_question(
            rng.randrange(len(ATTRIBUTES)),
            rng.randrange(RESERVED_PHRASING),
            f"{rng.choice(world.given)} {rng.choice(world.family)}",
        )
        for _ in range(count)
    ]


def enumerated(lab: Lab, sources: list[str], rng: random.Random) -> list[str]:
    """Two other attributes of each source's name, in a random wording."""
    made = []
    for source in sources:
        fact = lab.world.ask(lab.pool[source]["question"])
        assert fact is not None
        others = [a for a in range(len(ATTRIBUTES)) if a != fact.attribute]
        made += [phrase_question(a, rng.randrange(RESERVED_PHRASING), fact.person.name) for a in rng.sample(others, 2)]
    return made


def measured(lab: Lab, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """`new_unknown_facts` are distinct, never seen by the model, and asked by no question of the corpus."""
    questions = [q for split in ("probe", "pool") for q in lab.tables[split]["question"].to_pylist()]
    asked = {f.fact_id for q in questions if (f := lab.world.ask(q))}
    kept = [r["decoded_question"] for r in rows if r["status"] == "kept"]
    facts = [lab.world.ask(question) for question in kept]
    return {
        "tried": len(rows),
        "kept": len(kept),
        "statuses": dict(Counter(r["status"] for r in rows)),
        "answerable": fmean(f is not None for f in facts) if facts else None,
        "truly_unknown": fmean(f is not None and f.truth == "unseen" for f in facts) if facts else None,
        "new_unknown_facts": len({f.fact_id for f in facts if f and f.truth == "unseen"} - asked),
        "explained": fmean(float(r["explained"]) for r in rows) if "explained" in rows[0] else None,
    }


def ways(lab: Lab) -> Iterator[tuple[str, dict[str, Any]]]:
    seed, rng = lab.setting.seed, random.Random(lab.setting.seed)
    unknown = lab.bought("ka2l", SOURCES, seed)
    by_p = sorted(lab.rows, key=lambda r: r.p_unknown or 0.0)
    for name, fields in WAYS.items():
        yield name, measured(lab, lab.decoded(unknown, DecodeSection(**fields)))
    known = lab.decoded([r.id for r in by_p[:SOURCES]], DecodeSection(**WAYS["steer"]))
    yield "steer, from known questions", measured(lab, known)
    yield "random names", measured(lab, lab.filtered(random_questions(lab, rng, 2 * SOURCES)))
    yield "enumeration", measured(lab, lab.filtered(enumerated(lab, unknown, rng)))


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, dict[str, Any]] = {}
    for seed in SEEDS:
        lab = Lab(Setting(0.5, seed, 600, 1600, 200, facts_per_person=3), build_world())
        for candidates, corrections in ((1, 0), (4, 0), (16, 0), (1, 2), (4, 2), (16, 2)):
            again = asdict(lab.found_again(AGAIN, candidates, corrections))
            way = f"itself, best of {candidates}" + (f", {corrections} corrections" if corrections else "")
            found.setdefault(way, {})[str(seed)] = again
            print(f"seed {seed} {way}: {json.dumps(again)}", flush=True)
        for name, figures in ways(lab):
            found.setdefault(name, {})[str(seed)] = figures
            print(f"seed {seed} {name}: {json.dumps(figures)}", flush=True)
            RESULTS.write_text(json.dumps({"command": f"python {' '.join(sys.argv)}", "ways": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
