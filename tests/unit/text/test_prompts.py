"""Prompts: which tokens are the question's own."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.config import ConfigError, PromptSection
from ka2l_ray.models.prompts import encode
from ka2l_ray.text.prompts import Prompter, render, resolve

TEMPLATES = ["Question: {question}\nAnswer:", "{question}", "Réponds à «{question}» !", "A\n\n{question}"]
QUESTIONS = st.text(st.characters(categories=["L", "N", "P", "S"], max_codepoint=0x2FFFF), min_size=1, max_size=12)


def own_text(tokenizer, encoded, row):
    return tokenizer.decode(encoded.ids[row][encoded.question_mask[row].bool()])


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_prompt_is_the_template_with_the_question_in_it(template):
    prompt = PromptSection(template=template)
    assert render(prompt, "Why {question}?") == template.format(question="Why {question}?")


@pytest.mark.parametrize("template", TEMPLATES)
@given(st.lists(QUESTIONS, min_size=1, max_size=4))
def test_own_tokens_are_exactly_the_questions_text(tokenizer, template, questions):
    """A token may include the space before the question, and nothing else."""
    encoded = encode(tokenizer, PromptSection(template=template), questions)
    for row, question in enumerate(questions):
        assert own_text(tokenizer, encoded, row).removeprefix(" ") == question


def test_the_question_mask_of_a_world_question(world, tokenizer):
    question = f"Where does {world.people[0].name} live?"
    encoded = encode(tokenizer, PromptSection(), [question])
    assert own_text(tokenizer, encoded, 0) == f" {question}"
    assert encoded.question_mask[0].tolist() == [
        0,
        0,
        *[1] * 6,
        0,
        0,
        0,
    ]  # `Question` `:` | five words, `?` | `\n` `Answer` `:`


def test_padding_is_on_the_left_and_no_part_of_the_question(tokenizer):
    short, long = "Why?", "Where does she live?"
    encoded = encode(tokenizer, PromptSection(), [short, long])
    alone = encode(tokenizer, PromptSection(), [short])
    pads = encoded.ids.shape[1] - alone.ids.shape[1]
    assert pads > 0
    assert encoded.mask[0].tolist() == [0] * pads + [1] * alone.ids.shape[1]
    assert encoded.ids[0, pads:].tolist() == alone.ids[0].tolist()
    assert encoded.question_mask[0].tolist() == [0] * pads + alone.question_mask[0].tolist()
    assert encoded.ids[0, :pads].tolist() == [tokenizer.pad_token_id] * pads


@pytest.mark.parametrize("questions", [[""], ["Why?", ""]])
def test_an_empty_question_is_refused(tokenizer, questions):
    with pytest.raises(ValueError, match="empty question"):
        encode(tokenizer, PromptSection(), questions)


SHOTS = [("Where is Ann?", "Here"), ("Who is Bob?", "He"), ("Why?", "So")]
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_a_fewshot_prompt_is_instruction_solved_examples_and_the_question():
    prompt = resolve(PromptSection(style="fewshot", shots=2, instruction="Be brief."), SHOTS)
    assert render(prompt, "What?") == (
        "Be brief.\n\nQuestion: Where is Ann?\nAnswer: Here\n\nQuestion: Who is Bob?\nAnswer: He\n\n"
        "Question: What?\nAnswer:"
    )


@pytest.mark.parametrize("shots", [None, 2])
def test_a_chat_prompt_has_the_ids_that_the_tokenizers_own_template_gives(tokenizer, shots):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CHAT
    section = PromptSection(style="chat", shots=shots, instruction="Be brief.")
    prompt = resolve(section, SHOTS, tokenizer)
    turns = [
        t
        for q, a in SHOTS[: shots or 0]
        for t in ({"role": "user", "content": f"Be brief.\n\n{q}"}, {"role": "assistant", "content": a})
    ]
    turns.append({"role": "user", "content": "Be brief.\n\nWhere does she live?"})
    wanted = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    prompter = Prompter(tokenizer, prompt)
    (found,) = prompter(["Where does she live?"])
    assert list(found.ids) == list(wanted)
    assert tokenizer.decode(found.ids[found.own_start : found.own_end]).strip() == "Where does she live?"
    assert len(prompter.shared) > 5


def test_a_prompt_that_contains_the_question_twice_is_refused():
    with pytest.raises(ConfigError, match=r"exactly once"):
        resolve(PromptSection(style="fewshot", shots=1), [("What does {question} mean?", "It")])


def test_chat_needs_a_template(tokenizer):
    with pytest.raises(ConfigError, match="no chat template"):
        resolve(PromptSection(style="chat"), [], tokenizer)
