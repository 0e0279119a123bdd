"""The questions that a run asks about the knowledge world, and their splits.

In: a `World`, sizes, a seed. Out: `schema.QUESTIONS` tables, one per split. Refuses to know: models, Ray.
Splits never share a person, except that `eval` asks every pool fact again in the reserved phrasing (scope `pool`);
its other questions (scope `domain`) are about people whom no pool question asks about, in the same phrasing.
"""

import random
from collections.abc import Iterable, Iterator

import pyarrow as pa

from ka2l_ray import schema
from ka2l_ray.config import ConfigError, WorldCorpusSection
from ka2l_ray.world.facts import RESERVED_PHRASING, Fact, World, word

PROBE_UNKNOWN_SHARE = 0.5


def world_questions(world: World, corpus: WorldCorpusSection, seed: int) -> dict[str, pa.Table]:
    """Tables by split. Raises `ConfigError` where the world has too few people for the sizes asked."""
    rng = random.Random(f"questions-{seed}")
    facts = [f for f in world.facts if not f.person.tutor and (corpus.misconceptions or f.truth in ("known", "unseen"))]
    by_person: dict[str, list[Fact]] = {}
    for fact in facts:
        by_person.setdefault(fact.person.name, []).append(fact)
    people = list(by_person.values())
    rng.shuffle(people)
    known = iter([p for p in people if p[0].person.known])
    unseen = iter([p for p in people if not p[0].person.known])
    pool = _take(known, unseen, corpus.pool_questions, corpus.unknown_share, rng)
    domain = _take(known, unseen, corpus.domain_questions, corpus.unknown_share, rng)
    probe = _take(known, unseen, corpus.probe_questions, PROBE_UNKNOWN_SHARE, rng)
    for name, wanted, got in (
        ("pool", corpus.pool_questions, pool),
        ("domain", corpus.domain_questions, domain),
        ("probe", corpus.probe_questions, probe),
    ):
        if len(got) < wanted:
            raise ConfigError(
                f"corpus.world.{name}_questions = {wanted}: the world has only {len(got)} left at unknown_share = {corpus.unknown_share:g} "
                f"after {corpus.pool_questions} pool questions; ask for fewer"
            )
    return {
        "probe": _table(_row(f, rng.randrange(RESERVED_PHRASING), "probe", None) for f in probe),
        "pool": _table(_row(f, rng.randrange(RESERVED_PHRASING), "pool", None) for f in pool),
        "eval": _table(_row(f, RESERVED_PHRASING, "eval", s) for part, s in ((pool, "pool"), (domain, "domain")) for f in part),
    }


def _take(known: Iterator[list[Fact]], unseen: Iterator[list[Fact]], count: int, unknown_share: float, rng: random.Random) -> list[Fact]:
    """About `count` facts of whole people, the wanted share of them never seen by the model; fewer where people run out."""
    wanted = round(count * unknown_share)
    seen_facts: list[Fact] = []
    unseen_facts: list[Fact] = []
    for person in known:
        seen_facts += [f for f in person if f.truth != "unseen"]
        unseen_facts += [f for f in person if f.truth == "unseen"]
        if len(seen_facts) >= count - wanted:
            break
    for person in unseen:
        if len(unseen_facts) >= wanted:
            break
        unseen_facts += person
    chosen = seen_facts[: count - wanted] + unseen_facts[:wanted]
    rng.shuffle(chosen)
    return chosen


def _row(fact: Fact, phrasing: int, split: str, scope: str | None) -> dict[str, object]:
    return {
        "id": f"{fact.fact_id}-p{phrasing}",
        "question": word(fact.attribute, phrasing, fact.person.name),
        "answers": [fact.value],
        "group": fact.person.family,
        "entity": fact.person.name,
        "fact_id": fact.fact_id,
        "truth": fact.truth,
        "split": split,
        "scope": scope,
    }


def _table(rows: Iterable[dict[str, object]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=schema.QUESTIONS)
