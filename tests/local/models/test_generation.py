"""Generation: the same answers as a simple loop without cache or batches, cut and counted where they stop."""

import random
import re

import numpy as np
import pytest
import torch

from ka2l_ray.config import PromptSection
from ka2l_ray.models.activations import prompt_states
from ka2l_ray.models.answers import Decoding
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.engine import Engine
from ka2l_ray.models.generation import Generator
from ka2l_ray.models.prompts import encode
from ka2l_ray.models.sampling import uniforms
from ka2l_ray.text.prompts import Prompter

QUESTIONS = ["Why?", "Where does she live, and with whom?", "Ωé 42", "Who?", "What is the home city of anyone?"]
IDS = [f"q{i}" for i in range(len(QUESTIONS))]
STEPS = 8


def decoding(**changes):
    return Decoding(
        **{
            "seed": 3,
            "samples": 4,
            "temperature": 1.0,
            "greedy_temperature": 0.0,
            "max_new_tokens": STEPS,
            "stop": ("\n",),
        }
        | changes
    )


def generator_of(model, tokenizer, settings, batch_rows=8):
    """A generator, and what makes its prompts."""
    prompts = Prompter(tokenizer, PromptSection())
    engine = Engine(model, tokenizer.pad_token_id, prompts.shared, Limits(rows=batch_rows))
    return Generator(engine, tokenizer, settings), prompts


@pytest.fixture
def answers(tokenizer):
    """Answers of a model by question id, for any batch of questions."""

    def answers(model, settings, rows=(0, 1, 2, 3, 4), batch_rows=8):
        generator, prompts = generator_of(model, tokenizer, settings, batch_rows)
        ids = [IDS[i] for i in rows]
        reading = generator(ids, prompts([QUESTIONS[i] for i in rows]))
        assert reading.failed == {}
        return dict(zip(ids, reading.answers, strict=True))

    return answers


def nucleus(p, share):
    """Probabilities (V,) with 0 for all but the fewest most probable tokens that hold `share` of the mass."""
    order = np.argsort(-p, kind="stable")
    count = int(np.searchsorted(p[order].cumsum(), share * p.sum())) + 1
    return np.where(np.isin(np.arange(len(p)), order[:count]), p, 0)


def simple_loop(model, tokenizer, settings, row, copy):
    """One answer by full forward passes over prompt and answer, one token at a time: (text, log-probability,
    tokens)."""
    prompt = encode(tokenizer, PromptSection(), [QUESTIONS[row]]).ids
    number = uniforms(settings.seed, IDS[row], copy + 1, STEPS)[copy]
    temperature = settings.temperature if copy else settings.greedy_temperature
    generated, logprob = [], 0.0
    for step in range(STEPS):
        with torch.inference_mode():
            logits = model(torch.cat([prompt, torch.tensor([generated], dtype=torch.long)], -1)).logits[0, -1].double()
        if temperature == 0:
            token = int(logits.argmax())
        else:
            p = torch.softmax(logits / temperature, -1).numpy()
            if copy:
                p = nucleus(np.where(p >= settings.min_p * p.max(), p, 0), settings.top_p)
            token = int(np.searchsorted(p.cumsum() / p.sum(), number[step], side="right"))
        generated.append(token)
        logprob += float(torch.log_softmax(logits, -1)[token])
        text = tokenizer.decode(generated, skip_special_tokens=True)
        if token == tokenizer.eos_token_id or "\n" in text:
            break
    return text.split("\n")[0].strip(), logprob, len(generated)


@pytest.mark.parametrize(
    "settings",
    [
        decoding(),
        decoding(temperature=0.6, greedy_temperature=0.1),
        decoding(temperature=0.7, top_p=0.9),
        decoding(greedy_temperature=2.0, top_p=0.6, min_p=0.02),
    ],
    ids=["argmax", "warm", "nucleus", "greedy warmer"],
)
def test_answers_are_those_of_a_simple_loop(model, tokenizer, answers, settings):
    """Log-probabilities are the model's at T = 1, whatever temperature and tokens the draw is restricted to; greedy
    answers are not restricted."""
    found = answers(model, settings)
    for row in (0, 1, 4):
        assert len(found[IDS[row]]) == 1 + settings.samples
        for copy, answer in enumerate(found[IDS[row]]):
            text, logprob, tokens = simple_loop(model, tokenizer, settings, row, copy)
            assert (answer.text, answer.tokens) == (text, tokens)
            assert answer.logprob == pytest.approx(logprob, abs=1e-3)


def test_random_models_do_not_always_give_the_same_answer(llama, answers):
    """Otherwise the tests of this file would show little."""
    found = answers(llama, decoding())
    assert len({a.text for row in found.values() for a in row}) > 15
    assert len({a.tokens for row in answers(llama, decoding(samples=40)).values() for a in row}) > 1


@torch.inference_mode()
def test_greedy_answers_are_hugging_faces(model, tokenizer, answers):
    encoded = encode(tokenizer, PromptSection(), QUESTIONS)
    inputs = {"input_ids": encoded.ids, "attention_mask": encoded.mask}
    whole = model.generate(**inputs, do_sample=False, max_new_tokens=STEPS, pad_token_id=tokenizer.pad_token_id)
    texts = tokenizer.batch_decode(whole[:, encoded.ids.shape[1] :], skip_special_tokens=True)
    found = answers(model, decoding(stop=()))
    assert [found[i][0].text for i in IDS] == [t.strip() for t in texts]


@pytest.mark.parametrize(
    ("batch_rows", "order"), [(1, range(5)), (2, range(5)), (64, range(5)), (5, random.Random(0).sample(range(5), 5))]
)
def test_batches_and_order_change_no_answer(model, answers, batch_rows, order):
    whole, other = answers(model, decoding()), answers(model, decoding(), order, batch_rows)
    for i in IDS:
        assert [(a.text, a.tokens) for a in other[i]] == [(a.text, a.tokens) for a in whole[i]]
        assert [a.logprob for a in other[i]] == pytest.approx([a.logprob for a in whole[i]], abs=1e-4)


def test_more_samples_keep_the_earlier_ones(llama, answers):
    few, many = answers(llama, decoding(samples=2)), answers(llama, decoding(samples=6))
    assert all([a.text for a in many[i][:3]] == [a.text for a in few[i]] for i in IDS)
    assert all(len(many[i]) == 7 for i in IDS)


def test_another_seed_draws_other_samples_and_the_same_greedy_answer(llama, answers):
    one, other = answers(llama, decoding()), answers(llama, decoding(seed=4))
    assert all(one[i][0] == other[i][0] for i in IDS)
    assert all([a.text for a in one[i][1:]] != [a.text for a in other[i][1:]] for i in IDS)


def test_without_samples_there_is_only_the_greedy_answer(llama, answers):
    alone, with_samples = answers(llama, decoding(samples=0)), answers(llama, decoding())
    assert {i: [a.text for a in row] for i, row in alone.items()} == {
        i: [row[0].text] for i, row in with_samples.items()
    }


def test_states_come_from_the_same_pass(model, tokenizer):
    encoded = encode(tokenizer, PromptSection(), QUESTIONS)
    generator, prompts = generator_of(model, tokenizer, decoding())
    states = generator(IDS, prompts(QUESTIONS), [0, 2, 3], ["last", "mean"]).states
    assert set(states) == {(p, layer) for p in ("last", "mean") for layer in (0, 2, 3)}
    for (position, layer), values in states.items():
        expected = prompt_states(model, 3, encoded, position, [layer])[layer].numpy()
        assert values == pytest.approx(expected, abs=1e-4)
        assert values.dtype == np.float32


def answer_of(scripted, tokenizer, text, stop, max_new_tokens=STEPS, logit=60.0):
    """The answers to two questions of a model that generates `text`."""
    settings = decoding(samples=2, stop=stop, max_new_tokens=max_new_tokens)
    generator, prompts = generator_of(scripted(text, logit), tokenizer, settings)
    (first, *others) = [a for row in generator(["a", "b"], prompts(["Who?", "Where is it?"])).answers for a in row]
    assert all(a == first for a in others)
    assert len(others) == 5
    return first


@pytest.mark.parametrize(
    ("text", "stop", "answer", "tokens"),
    [
        (" Port Alba\nQuestion: Where", ("\n", "Question:"), "Port Alba", 3),
        (" Port Alba\nQuestion: Where", ("Question:",), "Port Alba", 4),
        (" Port Alba\nQuestion: Where", ("Question:", "\n"), "Port Alba", 3),
        (" Port Alba\nQuestion: Where", ("lba",), "Port A", 2),
        (" Port Alba\nQuestion: Where", ("Port",), "", 1),
        (" Port Alba\nQuestion: Where", ("Question: Where does",), "Port Alba\nQuestion: Where", 7),
        (" Port Alba\nQuestion", ("Question:",), "Port Alba\nQuestion", 5),
        (" Port Alba", (), "Port Alba", 3),
        ("", ("\n",), "", 1),
        (" Zé\nx", ("\n",), "Zé", 5),
    ],
)
def test_an_answer_is_cut_before_the_stop_and_counted_up_to_its_first_token(
    scripted, tokenizer, text, stop, answer, tokens
):
    """Tokens here: one per word of the world, one per byte of anything else, one for the end."""
    found = answer_of(scripted, tokenizer, text, stop)
    assert (found.text, found.tokens) == (answer, tokens)


def test_an_answer_that_never_stops_ends_at_the_token_limit(scripted, tokenizer):
    assert answer_of(scripted, tokenizer, " Port Alba Port Alba", ("\n",), max_new_tokens=3).text == "Port Alba Port"
    assert answer_of(scripted, tokenizer, " Port Alba Port Alba", ("\n",), max_new_tokens=3).tokens == 3


def test_the_log_probability_ends_with_the_tokens_counted(scripted, tokenizer):
    """Each generated token has probability e^s / (e^s + V - 1), and a vocabulary of V = 791."""
    logit = 14.0
    each = -np.log1p((len(tokenizer) - 1) * np.exp(-logit))
    found = answer_of(scripted, tokenizer, " Port Alba\nQuestion: Where", ("Question:",), logit=logit)
    assert (found.text, found.tokens) == ("Port Alba", 4)
    assert found.logprob == pytest.approx(4 * each, rel=1e-3)


@pytest.mark.parametrize(("steps", "fits"), [(64 - 6, True), (64 - 5, False)])
def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused(scripted, tokenizer, steps, fits):
    """The prompt has 6 tokens, the model a context of 64."""
    generator, prompts = generator_of(scripted(" x"), tokenizer, decoding(max_new_tokens=steps))
    (prompt,) = prompts(["Where"])
    assert len(prompt.ids) == 6
    reading = generator(["a"], [prompt])
    if fits:
        assert len(reading.answers[0]) == 5
    else:
        assert reading.answers == [[]]
        assert re.fullmatch(
            rf"prompt of 6 tokens \+ {steps} new ones exceed the model's context of 64", str(reading.failed[0])
        )


def test_batches_of_64_and_7_and_1_draw_the_same_answers(llama, tokenizer):
    """130 questions, shuffled. Only a draw that is counted as near an edge may differ; of 791 tokens, about one draw in
    sixty is."""
    names = random.Random(1).sample(range(130), 130)
    questions = [f"Who is {'no' * (n % 5)}{n}?" for n in names]
    found, edges = [], []
    for batch_rows in (64, 7, 1):
        generator, prompts = generator_of(llama, tokenizer, decoding(max_new_tokens=3), batch_rows)
        reading = generator([f"q{n}" for n in names], prompts(questions))
        found.append([(a.text, a.tokens) for row in reading.answers for a in row])
        edges.append(generator.tally.edge_draws)
    for other in found[1:]:
        assert sum(a != b for a, b in zip(found[0], other, strict=True)) <= edges[0]
    assert 0 < edges[0] < 0.05 * len(found[0])


def test_draws_near_an_edge_are_counted(scripted, tokenizer, monkeypatch):
    """A model that gives nearly all probability to one token: numbers below and beyond it are near no edge,
    those at 1 are."""
    generator, prompts = generator_of(scripted(" x", logit=60.0), tokenizer, decoding(samples=3, max_new_tokens=2))
    monkeypatch.setattr(
        "ka2l_ray.models.generation.uniforms", lambda seed, name, samples, steps: np.full((samples, steps), 0.5)
    )
    generator(["a", "b"], prompts(["Who?", "Where is it?"]))
    assert generator.engine.tally.edge_draws == 0
    monkeypatch.setattr(
        "ka2l_ray.models.generation.uniforms", lambda seed, name, samples, steps: np.full((samples, steps), 1 - 1e-7)
    )
    generator(["a", "b"], prompts(["Who?", "Where is it?"]))
    assert generator.engine.tally.edge_draws == 2 * 3 * 2
