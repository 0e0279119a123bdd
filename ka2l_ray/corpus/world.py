"""The questions that a run asks about the knowledge world, and their splits.

In: a `World`, sizes, a seed. Out: `schema.QUESTIONS` tables, one per split. Refuses to know: models, Ray.
Splits never share a person, except that `eval` asks every pool fact again in the reserved phrasing (scope `pool`);
its other questions are about people whom no pool question asks about (scope `domain`) or, where not all facts of a
person are asked, the pool's people's other facts (scope `beyond`), in the same phrasing.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
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
    asked_of_each = corpus.facts_per_person

    def some(of_person: list[Fact]) -> list[Fact]:
        return [
            of_person[n] for n in sorted(rng.sample(range(len(of_person)), min(asked_of_each or 0, len(of_person))))
        ]

    for name, wanted, share in (
        ("pool", corpus.pool_questions, corpus.unknown_share),
        ("domain", corpus.domain_questions, corpus.unknown_share),
        ("probe", corpus.probe_questions, PROBE_UNKNOWN_SHARE),
    ):
        drawn[name] = _take(known, unseen, wanted, share, rng, some if name == "pool" and asked_of_each else list)
        if len(drawn[name]) < wanted:
            raise ConfigError(
                f"corpus.world.{name}_questions = {wanted}: the world has only {len(drawn[name])} left at "
                f"unknown_share = {corpus.unknown_share:g} after {corpus.pool_questions} pool questions; ask for fewer"
            )
    about, in_pool = {f.person.name for f in drawn["pool"]}, {f.fact_id for f in drawn["pool"]}
    beyond = [f for f in facts if asked_of_each and f.person.name in about and f.fact_id not in in_pool]
    scopes = {"pool": drawn["pool"], "domain": drawn["domain"], "beyond": beyond}
    return {
        "probe": _table(_row(f, rng.randrange(RESERVED_PHRASING), "probe", None) for f in drawn["probe"]),
        "pool": _table(_row(f, rng.randrange(RESERVED_PHRASING), "pool", None) for f in drawn["pool"]),
        "eval": _table(_row(f, RESERVED_PHRASING, "eval", scope) for scope, facts in scopes.items() for f in facts),
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
    known: Iterator[list[Fact]],
    unseen: Iterator[list[Fact]],
    count: int,
    unknown_share: float,
    rng: random.Random,
    asked: Callable[[list[Fact]], list[Fact]],
) -> list[Fact]:
    """About `count` facts, with the facts of each person that are `asked`, the wanted share of them never
    seen by the model; fewer where people run out."""
    wanted = round(count * unknown_share)
    seen_facts: list[Fact] = []
    unseen_facts: list[Fact] = []
    for everything in known:
        person = asked(everything)
        seen_facts += [f for f in person if f.truth != "unseen"]
        unseen_facts += [f for f in person if f.truth == "unseen"]
        if len(seen_facts) >= count - wanted:
            break
    for everything in unseen:
        if len(unseen_facts) >= wanted:
            break
        unseen_facts += asked(everything)
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
