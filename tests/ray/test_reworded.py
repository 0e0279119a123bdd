"""A corpus from files with rewordings, played through: the world's facts as a file, whose truth the model knows."""

import json
from pathlib import Path
from typing import Any

import pytest
from runs import SMOKE

from ka2l_ray.config import Config, load_config
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.pipeline.loop import execute
from ka2l_ray.results_schema import Results
from ka2l_ray.world.facts import RESERVED_PHRASING, World, build_world, phrase_question

pytestmark = pytest.mark.long


def rows(world: World, people: int) -> list[dict[str, Any]]:
    """Facts of the first people whom the model knows and of as many whom it does not, in all phrasings."""
    facts = [f for f in world.facts if not f.person.tutor and f.truth in ("known", "unseen")]
    wanted = {known: list(dict.fromkeys(f.person.name for f in facts if f.person.known == known)) for known in (0, 1)}
    names = {*wanted[0][:people], *wanted[1][:people]}
    phrasings = range(1, RESERVED_PHRASING + 1)
    return [
        {
            "id": f.fact_id,
            "question": phrase_question(f.attribute, 0, f.person.name),
            "answers": [f.value],
            "entity": f.person.name,
            "group": f.truth,
            "rewordings": [phrase_question(f.attribute, p, f.person.name) for p in phrasings],
        }
        for f in facts
        if f.person.name in names
    ]


def config(folder: Path) -> Config:
    overrides = (
        f"run.storage={folder}",
        f"corpus.source={folder}/facts.jsonl",
        "corpus.near_duplicates=1",  # the world's questions differ in names alone
        "corpus.rewordings.source=column",
        "corpus.split={probe: 0.5, pool: 0.3, eval: 0.2}",
        "evaluate.same_words=true",
        "search.min_class_share=0.02",
        "decode.enabled=false",
        "active={strategies: [ka2l], rounds: 1, budget: 12}",
        "finetune={workers: 1, epochs: 20, learning_rate: 1.0e-3, replay: {ratio: 1.0, samples: 2}}",
    )
    return load_config(SMOKE, overrides)


@pytest.fixture(scope="module")
def played(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Results]:
    folder = tmp_path_factory.mktemp("reworded")
    (folder / "facts.jsonl").write_text("\n".join(map(json.dumps, rows(build_world(), 30))))
    run = Run.open(config(folder))
    return run, execute(run, None, "a test")


def test_accuracy_is_over_pool_facts_in_a_wording_that_was_never_taught(played: tuple[Run, Results]) -> None:
    run, results = played
    assert (results["eval_scope"], results["eval_wording"]) == ("pool", "reserved")
    base, tuned = results["rounds"]
    pool = run.table("questions").read(part="pool").to_pylist()
    known = sum(r["group"] == "known" for r in pool) / len(pool)
    assert base["accuracy"] is not None
    assert base["accuracy"] == pytest.approx(known, abs=0.1)
    assert base.get("same_words_accuracy") == pytest.approx(known, abs=0.1)
    assert base["domain_accuracy"] is not None
    examples = Table(run.round("ka2l", 0, 1) / "finetune/examples")
    shown = examples.read().to_pylist()
    taught = {q for r in shown for q in (r["question"], *r["rewordings"])}
    in_other_words = {r["id"]: r["rewordings"] for r in pool}
    assert all(r["rewordings"] == in_other_words[r["id"]] != [] for r in shown if r["source"] == "annotation")
    assert all(r["rewordings"] == [] for r in shown if r["source"] == "replay")
    asked = run.table("questions").read(part="eval").to_pylist()
    assert taught
    assert taught.isdisjoint(r["question"] for r in asked if r["scope"] != "same")
    assert tuned.get("taught_same_words") == 1.0
    assert (tuned.get("taught_accuracy") or 0) >= 0.5
    assert (tuned["accuracy"] or 0) > base["accuracy"]


def test_samples_are_drawn_of_what_is_right_in_both_wordings_and_losses_are_over_what_is_known(
    played: tuple[Run, Results],
) -> None:
    run, results = played
    evaluated = run.base("evaluation").read(["id", "fact_id", "scope", "correct"]).to_pylist()
    right = {s: {r["fact_id"] for r in evaluated if r["scope"] == s and r["correct"]} for s in ("pool", "same")}
    again = run.base("known/asked_again").read(["fact_id", "correct", "samples"]).to_pylist()
    assert {r["fact_id"] for r in again} == right["pool"] & right["same"]
    assert all(r["correct"] for r in again), "eval has asked them in these words"
    drawn = {"questions": len(again), "samples": run.config.collect.samples * len(again)}
    assert results["evaluation_ledger"]["known"] == drawn
    classes = {r["fact_id"]: r["class"] for r in run.base("known").read().to_pylist()}
    facts = [r["fact_id"] for r in evaluated if r["scope"] == "pool"]
    assert {*classes} == {*facts}
    assert {f for f, kind in classes.items() if kind != "wrong"} == right["pool"]
    known = {f for f, kind in classes.items() if kind == "known"}
    assert known <= right["pool"] & right["same"]
    assert len(known) > 10
    assert results["known"] == {k: sum(c == k for c in classes.values()) for k in ("known", "shaky", "wrong")}
    figures = results["rounds"][1]
    lost, gained = figures.get("lost"), figures.get("gained")
    assert lost
    assert gained
    examples = Table(run.round("ka2l", 0, 1) / "finetune/examples")
    touched = {*examples.read(["id"])["id"].to_pylist()}
    assert lost["of"] == len(known - touched)
    assert gained["of"] == sum(kind == "wrong" and fact not in touched for fact, kind in classes.items())
    assert figures["known_accuracy"] == 1 - lost["count"] / lost["of"]
    assert results["noise_floor"] is None, "the world's prompt has no examples that could be others"
