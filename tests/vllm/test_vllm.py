"""vLLM as the sampling engine, on the CPU with the world model: distribution, scores and states as with our own."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from ka2l_ray.collect.actor import CollectActor, CollectSetup
from ka2l_ray.config import CollectSection, Config, ModelSection, PromptSection, VllmSection, load_config
from ka2l_ray.dataflow.cluster import connect
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.models.prompts import Tokenize
from ka2l_ray.pipeline import loop
from ka2l_ray.tables import matrix
from ka2l_ray.text.prompts import prompts_of
from ka2l_ray.world.facts import build_world, phrase_question

SMOKE = Path(__file__).parents[2] / "jobs/configs/smoke.yaml"
QUESTIONS, SAMPLES, STEPS = 24, 100, 8
SECTION = CollectSection(
    positions=("last", "mean"),
    samples=SAMPLES,
    max_new_tokens=STEPS,
    engine="vllm",
    vllm=VllmSection(eager=True, context=64),
)
OWN = SECTION.model_copy(update={"engine": "own"})


def questions(count: int) -> pa.Table:
    """Known and unseen people in turn, so that answers are sure and unsure."""
    by_truth = [[f for f in build_world().facts if f.truth == truth] for truth in ("known", "unseen")]
    chosen = [f for pair in zip(*by_truth, strict=False) for f in pair][:count]
    asked = pa.table(
        {
            "id": [f.fact_id for f in chosen],
            "question": [phrase_question(f.attribute, 0, f.person.name) for f in chosen],
        }
    )
    return Tokenize(ModelSection(), PromptSection()).add(asked)


def collector(prompt: PromptSection, collect: CollectSection, layers: list[int], seed: int) -> CollectActor:
    return CollectActor(CollectSetup(model=ModelSection(), prompt=prompt, collect=collect, layers=layers, seed=seed))


@pytest.fixture(scope="module")
def sides():
    """The columns of either engine for the same questions, with the actor of vLLM's."""
    table = questions(QUESTIONS)
    vllm = collector(PromptSection(), SECTION, [0, 3, 6], seed=0)
    own = collector(PromptSection(), OWN, [0, 3, 6], seed=0)
    return vllm(table), own(table), vllm


def test_states_and_greedy_answers_are_the_same(sides):
    theirs, ours, _ = sides
    assert theirs["greedy"] == ours["greedy"]
    assert theirs["greedy_logprob"] == pytest.approx(ours["greedy_logprob"], abs=1e-3)
    for column in ("last_000", "mean_003", "last_006"):
        assert matrix(theirs[column]) == pytest.approx(matrix(ours[column]), rel=2e-3, abs=2e-3)


def test_an_answer_drawn_by_both_has_the_same_log_probability(sides):
    theirs, ours, _ = sides
    columns, common = ("samples", "sample_logprobs", "sample_tokens"), 0
    for row in range(QUESTIONS):
        scored = {(t, n): p for t, p, n in zip(*(ours[c][row] for c in columns), strict=True)}
        for text, logprob, tokens in zip(*(theirs[c][row] for c in columns), strict=True):
            if (text, tokens) in scored:
                common += 1
                assert logprob == pytest.approx(scored[text, tokens], abs=1e-3)
    assert common > QUESTIONS * SAMPLES / 2


def test_both_draw_from_one_distribution(sides):
    """Total variation between the engines' answers, beside that between two seeds of our own engine."""
    theirs, ours, _ = sides
    again = collector(PromptSection(), OWN, [], seed=1)(questions(QUESTIONS))

    def variation(one, other):
        parts = []
        for a, b in zip(one["samples"], other["samples"], strict=True):
            counts, counted = Counter(a), Counter(b)
            parts.append(sum(abs(counts[t] - counted[t]) for t in counts | counted) / (2 * SAMPLES))
        return sum(parts) / len(parts)

    assert all(len(row) == SAMPLES for row in theirs["samples"])
    assert variation(ours, again) > 0.01
    assert variation(theirs, ours) < 1.3 * variation(ours, again)


def test_an_answer_is_cut_and_counted_at_a_stop_string_as_by_our_own_engine(sides):
    """The stop string is a letter that occurs in an answer after its first letter, so that answers do end there."""
    _, ours, _ = sides
    stop = next(letter for text in ours["greedy"] for letter in text[1:] if letter.isalpha())
    prompt = PromptSection(stop=(stop,))
    section = SECTION.model_copy(update={"samples": 2})
    theirs, cut = (
        collector(prompt, s, [], seed=0)(questions(QUESTIONS))
        for s in (section, section.model_copy(update={"engine": "own"}))
    )
    assert theirs["greedy"] == cut["greedy"]
    assert theirs["greedy"] != ours["greedy"]
    assert not any(stop in text for text in (*theirs["greedy"], *(t for row in theirs["samples"] for t in row)))
    assert theirs["greedy_logprob"] == pytest.approx(cut["greedy_logprob"], abs=1e-3)


def test_what_vllm_read_and_wrote_is_counted_also_where_no_states_are_wanted(sides):
    """Prompts are read twice, less what its prefix cache held; with states they are read a third time."""
    *_, actor = sides
    alone = collector(PromptSection(), SECTION, [], seed=0)
    columns = alone(questions(QUESTIONS))
    prompts = [len(p.ids) for p in prompts_of(questions(QUESTIONS))]
    tally = alone.tally
    assert tally.questions == QUESTIONS
    assert tally.prompt_tokens + tally.prefix_tokens_saved == 2 * sum(prompts)
    assert tally.generated_tokens >= sum(n for row in columns["sample_tokens"] for n in row)
    assert tally.model_s > 0
    assert actor.tally.questions % QUESTIONS == 0
    assert actor.tally.prompt_tokens + actor.tally.prefix_tokens_saved >= 3 * sum(prompts)


def test_a_seed_repeats_itself_and_bad_rows_cost_themselves_alone(sides):
    theirs, _, actor = sides
    table = questions(QUESTIONS)
    mixed = pa.concat_tables(
        [table.slice(0, 1), pa.table({"id": ["x", "y"], "question": [" ", "long " * 60]}), table.slice(1)]
    )
    columns = actor(mixed)
    assert [bool(e) for e in columns["error"]] == [False, True, True, *[False] * (QUESTIONS - 1)]
    kept = [0, *range(3, QUESTIONS + 2)]
    assert [columns["samples"][i] for i in kept] == theirs["samples"]


def test_a_run_labels_with_vllm_as_it_does_with_its_own_engine(tmp_path):
    """Through Ray Data: every row once, and a label summary that K = 10 samples cannot tell apart."""
    connect(Config())
    small = ["corpus.world.probe_questions=200", "corpus.world.pool_questions=20", "corpus.world.domain_questions=10"]
    engines = {"own": [], "vllm": ["collect.engine=vllm", "collect.vllm={eager: true, context: 64}"]}
    found = {}
    for name, overrides in engines.items():
        run = Run.open(load_config(SMOKE, [f"run.storage={tmp_path}", f"run.name={name}", *small, *overrides]))
        found[name] = loop.execute(run, "label", "a test")
        assert run.base("samples").rows == 200
        assert found[name]["rows"]["collect"]["errors"] == 0
    own, vllm = (found[n]["label"] for n in ("own", "vllm"))
    assert vllm["entropy_auroc_vs_truth"] == pytest.approx(own["entropy_auroc_vs_truth"], abs=0.03)
    assert vllm["unknown_fraction"] == pytest.approx(own["unknown_fraction"], abs=0.08)
