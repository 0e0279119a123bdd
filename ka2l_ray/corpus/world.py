"""The questions that a run asks about the knowledge world, and their splits.

In: a `World`, sizes, a seed. Out: `schema.QUESTIONS` tables, one per split. Refuses to know: models, Ray.
Splits never share a person, except that `eval` asks every pool fact again in the reserved phrasing (scope `pool`);
its other questions (scope `domain`) are about people whom no pool question asks about, in the same phrasing.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

import pyarrow as pa

from ka2l_ray import schema
from ka2l_ray.config import Config, ConfigError, WorldCorpusSection
from ka2l_ray.corpus.prepare import shots
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.hashing import uniform
from ka2l_ray.world.facts import RESERVED_PHRASING, Fact, World, build_world, phrase_question

PROBE_UNKNOWN_SHARE = 0.5


def world_questions(world: World, corpus: WorldCorpusSection, seed: int) -> dict[str, pa.Table]:
    """Tables of `schema.QUESTIONS` by split. Raises `ConfigError` where the world has too few people for these
    sizes."""
    rng = random.Random(f"questions-{seed}")
    facts = [f for f in world.facts if not f.person.tutor and (corpus.misconceptions or f.truth in ("known", "unseen"))]
    people = [list(own) for _, own in groupby(facts, lambda f: f.person.name)]
    rng.shuffle(people)
    known = iter([p for p in people if p[0].person.known])
    unseen = iter([p for p in people if not p[0].person.known])
    drawn: dict[str, list[Fact]] = {}
    for name, wanted, share in (
        ("pool", corpus.pool_questions, corpus.unknown_share),
        ("domain", corpus.domain_questions, corpus.unknown_share),
        ("probe", corpus.probe_questions, PROBE_UNKNOWN_SHARE),
    ):
        drawn[name] = _take(known, unseen, wanted, share, rng)
        if len(drawn[name]) < wanted:
            raise ConfigError(
                f"corpus.world.{name}_questions = {wanted}: the world has only {len(drawn[name])} left at "
                f"unknown_share = {corpus.unknown_share:g} after {corpus.pool_questions} pool questions; ask for fewer"
            )
    return {
        "probe": _table(_row(f, rng.randrange(RESERVED_PHRASING), "probe", None) for f in drawn["probe"]),
        "pool": _table(_row(f, rng.randrange(RESERVED_PHRASING), "pool", None) for f in drawn["pool"]),
        "eval": _table(_row(f, RESERVED_PHRASING, "eval", scope) for scope in ("pool", "domain") for f in drawn[scope]),
    }


def write_world(config: Config, table: Table) -> None:
    """The `questions` table of the world, with the solved examples that prompts need."""
    parts = world_questions(build_world(), config.corpus.world, config.run.seed)
    people = Counter(name for part in parts.values() for name in part["entity"].to_pylist())
    wanted = shots(config)
    table.write(
        *(set_aside(parts, wanted, config.run.seed) if wanted else parts).items(),
        merged=0,
        graded={split: part.num_rows for split, part in parts.items()},
        entities=len(people),
        split_groups=len(people),
        largest_group=max(people.values()),
    )


def set_aside(tables: Mapping[str, pa.Table], count: int, seed: int) -> dict[str, pa.Table]:
    """The same tables with `count` probe questions about known facts as a part of their own."""
    probe = tables["probe"]
    rows = [n for n, truth in enumerate(probe["truth"].to_pylist()) if truth == "known"]
    chosen = sorted(rows, key=lambda n: uniform(f"shots-{seed}", probe["id"][n].as_py()))[:count]
    rest = [n for n in range(probe.num_rows) if n not in set(chosen)]
    return {**tables, "probe": probe.take(rest), schema.SHOTS: probe.take(chosen)}


def _take(
    known: Iterator[list[Fact]], unseen: Iterator[list[Fact]], count: int, unknown_share: float, rng: random.Random
) -> list[Fact]:
    """About `count` facts, with all facts of each person, the wanted share of them never seen by the model; fewer
    where people run out."""
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
        "question": phrase_question(fact.attribute, phrasing, fact.person.name),
        "answers": [fact.value],
        "group": fact.person.family,
        "entity": fact.person.name,
        "split_group": fact.person.name,
        "fact_id": fact.fact_id,
        "truth": fact.truth,
        "split": split,
        "scope": scope,
    }


def _table(rows: Iterable[dict[str, object]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=schema.QUESTIONS)
