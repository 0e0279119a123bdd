"""The world's tokenizer: one token per word, any text survives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.world.facts import ATTRIBUTES, all_words, phrase_question
from ka2l_ray.world_model.tokenizer import END, PAD


@given(st.text(max_size=40))
def test_any_text_survives_a_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@given(st.text(max_size=40).filter(lambda t: PAD not in t and END not in t))
def test_text_never_becomes_a_special_token(tokenizer, text):
    assert not {tokenizer.pad_token_id, tokenizer.eos_token_id} & set(tokenizer(text)["input_ids"])


def test_every_word_and_name_of_the_world_is_one_token_of_its_own(world, tokenizer):
    texts = [f" {w}" for w in [*all_words(), *world.given, *world.family, *world.outer_given, *world.outer_family]]
    tokens = tokenizer(texts)["input_ids"]
    assert [t for t, ids in zip(texts, tokens, strict=True) if len(ids) != 1] == []
    assert len({ids[0] for ids in tokens}) == len(texts)


def test_every_question_needs_one_token_per_word_and_one_for_the_mark(world, tokenizer):
    name = world.people[0].name
    for attribute in range(len(ATTRIBUTES)):
        for phrasing in range(4):
            question = phrase_question(attribute, phrasing, name)
            assert len(tokenizer(f" {question}")["input_ids"]) == len(question.split()) + 1


@pytest.mark.parametrize("text", ["Question", "Answer", "Question: ", "\n"])
def test_the_prompt_is_made_of_few_tokens(tokenizer, text):
    assert len(tokenizer(text)["input_ids"]) == {"Question": 1, "Answer": 1, "Question: ": 3, "\n": 1}[text]


def test_batches_are_padded_on_the_left(tokenizer):
    batch = tokenizer(["Question", "Question Question Question"], padding=True)
    assert batch["attention_mask"][0][0] == 0
    assert batch["attention_mask"][0][-1] == 1
    assert batch["input_ids"][0][0] == tokenizer.pad_token_id


def test_pad_and_end_differ(tokenizer):
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert max(tokenizer.get_vocab().values()) == len(tokenizer) - 1
