"""Chat templates of several kinds: where the answer begins, what ends it, what happens to thoughts and system texts."""

import copy

import pytest

from ka2l_ray.config import ConfigError, FinetuneSection, PromptSection
from ka2l_ray.finetune.examples import tokenize
from ka2l_ray.text.answers import ends_in_thought
from ka2l_ray.text.prompts import resolve

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
OPENS = "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
SWITCH = (
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
CHANNELS = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>"
    "{{ m.content }}{% if loop.last and m.role == 'assistant' %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}<eot>{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
)
DEAF = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}<eot>{% endfor %}"
PARTS = "{% for m in messages %}{{ m.role }}: {{ m.content[0].text }}\n### End\n{% endfor %}"
SPEAKERS = "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n{% endfor %}"
LINE = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
LINE += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
SPACE = "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>"
SPACE += "{% endif %}{% endfor %}"
MARKS = ("<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|return|>", "<|channel|>", "<|message|>", "<eot>")
BRIEF = PromptSection(style="chat", instruction="Be brief.")


@pytest.fixture
def chat(tokenizer):
    """The tokenizer with a template, and marks that are tokens of their own."""

    def chat(template):
        made = copy.deepcopy(tokenizer)
        made.add_tokens(list(MARKS), special_tokens=True)
        made.chat_template = template
        return made

    return chat


@pytest.mark.parametrize(
    ("template", "end", "ends"),
    [
        (CHATML + OPENS, "<|im_start|>assistant\n<think>\n\n</think>\n\n", ("<|im_end|>",)),
        (CHATML + SWITCH, "<|im_start|>assistant\n<think>\n\n</think>\n\n", ("<|im_end|>",)),
        (CHANNELS, "<|start|>assistant<|channel|>final<|message|>", ("<|return|>", "<|end|>")),
        (NO_SYSTEM, "{question}<eot><model>", ("<eot>",)),
        (PARTS, "{question}\n### End\nassistant:", ("### End", "### End\nuser:")),
        (SPEAKERS, "{question}\n### assistant:\n", ("### user:",)),
        (LINE, "{question}</s>\n<|assistant|>\n", ("</s>",)),
        (SPACE, "[INST] Be brief.\n\n{question} [/INST]", ("</s>",)),
    ],
    ids=["opens a thought", "empty thought", "channels", "model's turn", "parts", "no end", "line", "space"],
)
def test_a_prompt_ends_where_the_answer_begins_and_knows_how_it_ends(chat, template, end, ends):
    prompt = resolve(BRIEF, (), chat(template))
    assert prompt.template.endswith(end)
    assert prompt.stop == (*ends, *BRIEF.stop)
    assert not ends_in_thought(prompt.template)


@pytest.mark.parametrize(
    ("template", "end", "thinks"),
    [
        (CHATML + OPENS, "<|im_start|>assistant\n<think>\n", True),
        (CHATML + SWITCH, "<|im_start|>assistant\n", False),
        (CHANNELS, "<|start|>assistant", False),
    ],
)
def test_thoughts_are_left_to_the_model_on_request(chat, template, end, thinks):
    prompt = resolve(BRIEF.model_copy(update={"enable_thinking": True}), (), chat(template))
    assert prompt.template.endswith(end)
    assert ends_in_thought(prompt.template) is thinks


@pytest.mark.parametrize(
    ("template", "begin"),
    [
        (CHATML, "<|im_start|>system\nYou know much.<|im_end|>\n<|im_start|>user\nBe brief.\n\nWhere?"),
        (
            NO_SYSTEM,
            "<user>You know much.\n\nBe brief.\n\nWhere?<eot><assistant>Here<eot><user>Be brief.\n\n{question}",
        ),
        (DEAF, "<user>You know much.\n\nBe brief.\n\nWhere?<eot><assistant>Here<eot><user>Be brief.\n\n{question}"),
        (PARTS, "system: You know much.\n### End\nuser: Be brief.\n\nWhere?"),
    ],
    ids=["turn", "refuses the role", "leaves the role out", "parts"],
)
def test_a_systems_text_is_its_turn_or_begins_the_first_users(chat, template, begin):
    section = BRIEF.model_copy(update={"system": "You know much.", "shots": 1})
    assert resolve(section, [("Where?", "Here")], chat(template)).template.startswith(begin)


def test_without_an_instruction_a_turn_is_the_question_alone(chat):
    assert (
        "user\n{question}<|im_end|>" in resolve(PromptSection(style="chat", instruction=""), (), chat(CHATML)).template
    )


def test_a_template_gets_its_arguments(chat):
    section = BRIEF.model_copy(update={"template_arguments": {"effort": "low"}})
    assert resolve(section, (), chat("Effort: {{ effort }}\n" + CHATML)).template.startswith("Effort: low\n")
    with pytest.raises(ValueError, match="must not name tokenize, which decides what becomes of the text"):
        PromptSection(template_arguments={"tokenize": True})


@pytest.mark.parametrize(
    ("template", "says"),
    [("{{ raise_exception('no chats today') }}", "no chats today"), ("Hello", "leaves out what is said")],
)
def test_a_template_that_cannot_be_used_says_why(chat, template, says):
    with pytest.raises(ConfigError, match=f"the model's chat template cannot be used: .*{says}"):
        resolve(BRIEF, (), chat(template))


def test_training_ends_an_answer_as_the_template_does(chat):
    tokenizer = chat(CHATML + OPENS)
    row = tokenize(tokenizer, resolve(BRIEF, (), tokenizer), "Where?", "Port")
    assert tokenizer.decode(row.ids[row.prompt_length :]) == "Port<|im_end|>"
    bare = tokenize(tokenizer, PromptSection(), "Where?", "Port")
    assert bare.ids[-1] == tokenizer.eos_token_id


def test_answers_are_not_trained_inside_a_thought():
    with pytest.raises(ValueError, match=r"prompt\.enable_thinking must be false"):
        FinetuneSection(prompt=PromptSection(style="chat", enable_thinking=True))
