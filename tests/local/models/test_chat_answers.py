"""Scripted answers of chat models: thoughts, channels, turns that end as the template ends them."""

import copy
from typing import Any, cast

import pytest
from tiny_models import ScriptedModel

from ka2l_ray.config import PromptSection
from ka2l_ray.models.answers import Decoding, StopCriteria
from ka2l_ray.models.engine import Engine
from ka2l_ray.models.generation import Generator
from ka2l_ray.text.answers import ends_in_thought
from ka2l_ray.text.prompts import Prompter, resolve

THINKER = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
CHANNELS = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>"
    "{{ m.content }}{% if loop.last and m.role == 'assistant' %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
MARKS = ("<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|return|>", "<|channel|>", "<|message|>")
ROOM = 60


@pytest.fixture
def answer(tokenizer):
    """The greedy answer of a chat model that writes a given text, and the number of tokens of some text."""

    def answer(template, text, thinking=False, room=ROOM, stop=("\n", "Question:")):
        chat = copy.deepcopy(tokenizer)
        chat.add_tokens(list(MARKS), special_tokens=True)
        chat.chat_template = template
        prompt = resolve(PromptSection(style="chat", instruction="", enable_thinking=thinking, stop=stop), (), chat)
        prompts, model = Prompter(chat, prompt), cast(Any, ScriptedModel(chat, text, 60.0))
        model.config.max_position_embeddings = 200
        decoding = Decoding(0, 1, 1.0, 0.0, room, prompt.stop, ends_in_thought(prompt.template))
        reading = Generator(Engine(model, 0, prompts.shared), chat, decoding)(["q"], prompts(["Where?"]))
        assert reading.failed == {}
        ((greedy, sample),) = reading.answers
        assert greedy == sample
        return greedy, len(chat(text)["input_ids"])

    return answer


@pytest.mark.parametrize(
    ("template", "text", "thinking", "wanted"),
    [
        (THINKER, "Rome<|im_end|>\n<|im_start|>assistant\nMore", False, "Rome"),
        (THINKER, "Rome\nMore", False, "Rome"),
        (THINKER, "\n\nRome\nMore", False, "Rome"),
        (THINKER, "\n<|im_end|>", False, ""),
        (THINKER, "Hm.\nA city.\n</think>\n\nRome<|im_end|>\n", True, "Rome"),
        (THINKER, "Hm.\n</think>\n\nRome\nMore", True, "Rome"),
        (THINKER, "Hm.\n</think>\n\n<answer>Rome</answer><|im_end|>", True, "Rome"),
        (THINKER, "<think>\nHm.\n</think>\n\nRome<|im_end|>", False, "Rome"),
        (CHANNELS, "Rome<|return|>", False, "Rome"),
        (CHANNELS, "Rome<|end|><|start|>user", False, "Rome"),
        (
            CHANNELS,
            "<|channel|>analysis<|message|>Hm.\nWhere?<|end|><|start|>assistant<|channel|>final<|message|>Rome<|return|>",
            True,
            "Rome",
        ),
        (THINKER, "<|im_end|>", False, ""),
    ],
)
def test_an_answer_is_without_thoughts_and_ends_with_the_turn(answer, template, text, thinking, wanted):
    found, _ = answer(template, text, thinking)
    assert (found.text, found.in_thought) == (wanted, False)


@pytest.mark.parametrize(
    ("template", "text"),
    [(THINKER, "Hm.\nA city, where?"), (CHANNELS, "<|channel|>analysis<|message|>Hm. A city, where?")],
)
def test_a_thought_that_does_not_end_is_no_answer(answer, template, text):
    found, tokens = answer(template, text, thinking=True)
    assert (found.text, found.in_thought, found.tokens) == ("", True, tokens + 1)
    assert answer(template, text, thinking=True, room=4)[0].tokens == 4


def test_tokens_and_log_probability_count_the_thought(answer):
    found, tokens = answer(THINKER, "Hm.\n</think>\n\nRome<|im_end|>", thinking=True)
    assert found.tokens == tokens
    assert found.logprob == pytest.approx(0.0, abs=1e-3)
    cut, _ = answer(THINKER, "Hm.\n</think>\n\nRome\nMore", thinking=True)
    assert cut.tokens == tokens


def test_a_special_token_may_be_a_stop_string(tokenizer):
    marked = copy.deepcopy(tokenizer)
    marked.add_tokens(["<|im_end|>"], special_tokens=True)
    stop = StopCriteria(marked, None, ("<|im_end|>", "\n"))
    tokens = marked("Rome<|im_end|>")["input_ids"]
    assert stop.finish(tokens[:-1], [0.0] * 9, at_limit=False) is None
    ended = stop.finish(tokens, [0.0] * 9, at_limit=False)
    assert ended is not None
    assert ended.text == "Rome"
    assert stop.possible_last_tokens(len(marked))[tokens[-1]]
