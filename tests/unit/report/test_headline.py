"""The sentence on the first screen says what was measured in every state of a run, and nothing else."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from ka2l_ray.active.saving import savings
from ka2l_ray.report.headline import NOTHING, Plan, comparison_sentence, result_sentence

TWO_ROUNDS = Plan({"ka2l": 1, "random": 1}, 2)
UP, HIGHER, LOWER = (0.5, 0.55, 0.6), (0.5, 0.6, 0.7), (0.5, 0.52, 0.55)
"""Accuracies after 0, 75 and 150 annotations."""
Accuracies = Sequence[float | None]


def measured(*draws: tuple[str, Accuracies], **parts: Any) -> Any:
    """Results with the given curves, one draw each, and their savings."""
    rounds: Any = [
        {"strategy": strategy, "seed": seed, "round": n, "annotations": 75 * n, "accuracy": accuracy}
        for seed, (strategy, accuracies) in enumerate(draws)
        for n, accuracy in enumerate(accuracies)
    ]
    return {"label": None, "eval_scope": "pool", "stopped": [], "rounds": rounds, "saving": savings(rounds)} | parts


def said(results: Any, plan: Plan = TWO_ROUNDS) -> str:
    return result_sentence(results, plan).replace("\N{NO-BREAK SPACE}", " ")


def stopped(after: int) -> dict[str, Any]:
    return {"stopped": [{"strategy": "ka2l", "seed": 0, "after_round": after, "reason": "no gain"}]}


@pytest.mark.parametrize(
    ("results", "sentence"),
    [
        pytest.param(
            measured(("ka2l", HIGHER), ("random", UP)),
            "ka2l reaches random's final accuracy of 60.0 % with 75 annotations instead of 150: 50 % saved.",
            id="finished",
        ),
        pytest.param(
            measured(("ka2l", HIGHER), ("random", UP), ("oracle", (0.5, 0.65, 0.7))),
            "ka2l reaches random's final accuracy of 60.0 % with 75 annotations instead of 150: 50 % saved "
            "(the oracle saves 67 %).",
            id="with the oracle",
        ),
        pytest.param(
            measured(("ka2l", LOWER), ("random", UP)),
            "ka2l ends at an accuracy of 55.0 % after 150 annotations and never reaches the 60.0 % that random ends "
            "with after 150.",
            id="never reached",
        ),
        pytest.param(
            measured(("ka2l", HIGHER), ("random", (0.5, 0.49, 0.48))),
            "150 annotations chosen by random do not raise accuracy (50.0 % before, 48.0 % after), so there is no "
            "saving to measure; ka2l ends at an accuracy of 70.0 % after 150 annotations.",
            id="random gains nothing",
        ),
        pytest.param(
            measured(("ka2l", (0.5, 0.52, 0.7)), ("random", (0.5, 0.6))),
            "So far (3 of 4 rounds), ka2l reaches random's present accuracy of 60.0 % with 108 annotations, random "
            "with 75: nothing saved.",
            id="dearer",
        ),
        pytest.param(
            measured(("ka2l", (0.5, 0.55)), ("random", UP)),
            "So far (3 of 4 rounds), ka2l is at an accuracy of 55.0 % after 75 annotations and has not reached the "
            "60.0 % that random ends with after 150.",
            id="not reached yet",
        ),
        pytest.param(
            measured(("ka2l", (0.5, 0.55)), ("random", (0.5,))),
            "So far (1 of 4 rounds), accuracy goes from 50.0 % to 55.0 % with 75 annotations chosen by ka2l; the "
            "first round of random is not finished yet.",
            id="random has no round",
        ),
        pytest.param(
            measured(("ka2l", (0.5,)), ("random", UP)),
            "So far (2 of 4 rounds), the first round of ka2l is not finished yet; accuracy goes from 50.0 % to 60.0 % "
            "with 150 annotations chosen by random.",
            id="ka2l has no round",
        ),
        pytest.param(
            measured(("ka2l", HIGHER[:2]), ("random", UP), **stopped(1)),
            "ka2l reaches random's final accuracy of 60.0 % with 75 annotations instead of 150: 50 % saved; "
            "ka2l stopped after round 1 (no gain).",
            id="stopped early",
        ),
        pytest.param(
            measured(("ka2l", LOWER[:2]), ("random", UP), **stopped(1)),
            "ka2l ends at an accuracy of 52.0 % after 75 annotations (stopped after round 1: no gain) and never "
            "reaches the 60.0 % that random ends with after 150.",
            id="stopped too early",
        ),
        pytest.param(
            measured(("ka2l", (0.5,)), ("random", UP), **stopped(0)),
            "ka2l stopped before its first round (no gain); accuracy goes from 50.0 % to 60.0 % with 150 annotations "
            "chosen by random.",
            id="stopped at once",
        ),
        pytest.param(
            measured(("ka2l", (0.5,)), ("random", (0.5,))),
            "The base model has an accuracy of 50.0 %; no round is finished yet.",
            id="base model only",
        ),
        pytest.param(
            measured(("ka2l", (None,) * 3), ("random", (None,) * 3)),
            "No eval question has a gold answer, so neither accuracy nor a saving can be measured.",
            id="no gold",
        ),
        pytest.param(
            measured(("ka2l", HIGHER), ("random", UP), eval_scope="other"),
            "ka2l reaches random's final accuracy of 60.0 % on facts that no pool question asks with 75 annotations "
            "instead of 150: 50 % saved.",
            id="other facts",
        ),
        pytest.param(
            measured(label={"questions": 2200, "unknown_fraction": 0.4832}),
            "Of 2,200 questions, the model does not know 48.3 %; what buying answers gains has not been measured yet.",
            id="labelled",
        ),
        pytest.param(measured(), "What buying answers gains has not been measured yet.", id="new"),
    ],
)
def test_the_sentence_of_every_state(results: Any, sentence: str) -> None:
    assert said(results) == sentence


@pytest.mark.parametrize(
    ("strategy", "sentence"),
    [
        ("coreset", "chosen by coreset; the run has no random to compare it with."),
        ("random", "chosen by random; the run has no other strategy to compare with it."),
    ],
)
def test_one_strategy_alone_is_compared_with_nothing(strategy: str, sentence: str) -> None:
    alone = said(measured((strategy, UP)), Plan({strategy: 1}, 2))
    assert alone == f"Accuracy goes from 50.0 % to 60.0 % with 150 annotations {sentence}"


def test_rounds_that_wait_for_people_are_counted() -> None:
    waiting = Plan({"ka2l": 1, "random": 1}, 2, waiting=2)
    found = said(measured(("ka2l", (0.5,)), ("random", (0.5,))), waiting)
    assert found.endswith("no round is finished yet; 2 rounds wait for people's answers.")


def test_the_baseline_is_the_mean_of_its_draws_at_rounds_that_all_have() -> None:
    results = measured(("ka2l", HIGHER), ("random", (0.5, 0.5, 0.7)), ("random", (0.5, 0.6)))
    found = said(results, Plan({"ka2l": 1, "random": 2}, 2))
    assert found.startswith("So far (5 of 6 rounds), ka2l reaches random's present accuracy of 55.0 % with 38 ")


def test_a_sentence_claims_a_saving_only_where_one_is_stored() -> None:
    rng = random.Random(0)
    claimed = 0
    for _ in range(300):
        curves = [
            (name, [0.5, *(rng.choice([0.45, 0.5, 0.55, 0.6, 0.7]) for _ in range(rng.randint(0, 2)))])
            for name in ("ka2l", "random")
        ]
        results = measured(*curves)
        stored = next((s["saving"] for s in results["saving"] if s["strategy"] == "ka2l"), None)
        found = said(results)
        assert ("% saved" in found) == (stored is not None and stored >= NOTHING), (curves, found)
        assert found.endswith(".")
        assert ". " not in found
        assert ("So far" in found) == (2 < sum(len(c) for _, c in curves) < 6)
        claimed += "% saved" in found
    assert claimed > 20


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (
            {"saving": 0.4567, "saving_ci": (0.4, 0.51), "reached": 3},
            "ka2l reaches the accuracy of 1,200 random annotations with 46 % fewer (mean of the 3 of 3 seeds that "
            "reach it, 95 % interval 40 % to 51 %; the oracle saves 49 %).",
        ),
        (
            {"saving": -0.12, "saving_ci": None, "reached": 1},
            "ka2l reaches the accuracy of 1,200 random annotations with 12 % more (mean of the 1 of 3 seeds that "
            "reaches it; the oracle saves 49 %).",
        ),
        (
            {"saving": None, "saving_ci": None, "reached": 0},
            "No saving was measured in 3 seeds: ka2l does not reach the accuracy of 1,200 random annotations, or these "
            "do not raise it.",
        ),
    ],
)
def test_a_comparison_is_a_sentence_too(entry: dict[str, Any], sentence: str) -> None:
    strategies = [{"strategy": "random"}, {"strategy": "coreset"}, {"strategy": "ka2l"} | entry]
    found: Any = {"seeds": [0, 1, 2], "random_budget": 1200, "ceiling": 0.4949, "eval_scope": "pool"}
    assert comparison_sentence(found | {"strategies": strategies}).replace("\N{NO-BREAK SPACE}", " ") == sentence
