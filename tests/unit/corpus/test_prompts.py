"""Prompts: which tokens are the question's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.config import PromptSection
from ka2l_ray.corpus.prompts import encode, render

TEMPLATES = ["Question: {question}\nAnswer:", "{question}", "Réponds à «{question}» !", "A\n\n{question}"]
QUESTIONS = st.text(st.characters(categories=["L", "N", "P", "S"], max_codepoint=0x2FFFF), min_size=1, max_size=12)


def own_text(tokenizer, encoded, row):
    return tokenizer.decode(encoded.ids[row][encoded.own[row].bool()])


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_prompt_is_the_template_with_the_question_in_it(template):
    prompt = PromptSection(template=template)
    assert render(prompt, "Why {question}?") == template.format(question="Why {question}?")


@pytest.mark.parametrize("template", TEMPLATES)
@given(st.lists(QUESTIONS, min_size=1, max_size=4))
def test_own_tokens_are_exactly_the_questions_text(tokenizer, template, questions):
    """A token may bring along the space before the question, and nothing else."""
    encoded = encode(tokenizer, PromptSection(template=template), questions)
    for row, question in enumerate(questions):
        assert own_text(tokenizer, encoded, row).removeprefix(" ") == question


def test_own_marks_of_a_world_question(world, tokenizer):
    question = f"Where does {world.people[0].name} live?"
    encoded = encode(tokenizer, PromptSection(), [question])
    assert own_text(tokenizer, encoded, 0) == f" {question}"
    assert encoded.own[0].tolist() == [0, 0, *[1] * 6, 0, 0, 0]  # `Question` `:` | five words, `?` | `\n` `Answer` `:`


def test_batches_are_padded_on_the_left_without_own_marks(tokenizer):
    short, long = "Why?", "Where does she live?"
    encoded = encode(tokenizer, PromptSection(), [short, long])
    alone = encode(tokenizer, PromptSection(), [short])
    pads = encoded.ids.shape[1] - alone.ids.shape[1]
    assert pads > 0
    assert encoded.mask[0].tolist() == [0] * pads + [1] * alone.ids.shape[1]
    assert encoded.ids[0, pads:].tolist() == alone.ids[0].tolist()
    assert encoded.own[0].tolist() == [0] * pads + alone.own[0].tolist()
    assert encoded.ids[0, :pads].tolist() == [tokenizer.pad_token_id] * pads


@pytest.mark.parametrize("questions", [[""], ["Why?", ""]])
def test_an_empty_question_is_refused(tokenizer, questions):
    with pytest.raises(ValueError, match="empty question"):
        encode(tokenizer, PromptSection(), questions)
