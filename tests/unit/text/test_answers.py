"""What the answer in a generated text is, and what is no answer."""

import pytest

from ka2l_ray.config import EndpointSection, LabelSection
from ka2l_ray.text.answers import abstains, answer_in, answer_start, closed, ends_in_thought, says, unquoted

ENDPOINT = EndpointSection()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Paris", "Paris"),
        ("<think>\nHm.\n</think>\n\nParis", "Paris"),
        ("<think></think>Paris<|im_end|>", "Paris"),
        ("Hm.\n</think>\n\nParis", "Paris"),
        ("<think>Hm.", None),
        ("<think>A.</think>B<think>C", None),
        ("<think>A</think><think>B</think> Paris", "Paris"),
        ("<thinking>Hm.</thinking>Paris", "Paris"),
        ("[THINK]Hm.[/THINK]Paris", "Paris"),
        ("<|START_THINKING|>Hm.<|END_THINKING|>Paris", "Paris"),
        ("<|begin_of_thought|>Hm.<|end_of_thought|>Paris", "Paris"),
        ("<seed:think>Hm.</seed:think>Paris", "Paris"),
        ("◁think▷Hm.◁/think▷Paris", "Paris"),
        ("<think>Hm.</think>\n<answer>\nParis\n</answer>", "Paris"),
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Paris<|return|>",
            "Paris",
        ),
        ("<|channel|>analysis<|message|>Hm. The final answer", None),
        ("<|channel>thought\nHm.<channel|>Paris", "Paris"),
        ("analysisHm.assistantfinalParis", "Paris"),
        ("analysis of variance", "analysis of variance"),
        ("3 < 4 > 2", "3 < 4 > 2"),
        ("<b>", "<b>"),
        ("", ""),
    ],
)
def test_an_answer_is_what_follows_the_last_thought(text, answer):
    assert answer_in(text) == answer


def test_a_thought_that_the_prompt_has_opened_lasts_until_it_is_closed():
    assert answer_start("Hm.", thinks=True) is None
    assert answer_start("Hm.</think> Paris", thinks=True) == len("Hm.</think>")


@pytest.mark.parametrize(
    ("prompt", "whole"),
    [
        ("Q?<|im_start|>assistant\n<think>\n", "Q?<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        ("Q? [THINK]", "Q? [THINK]\n\n[/THINK]\n\n"),
        ("Q? <|START_THINKING|>", "Q? <|START_THINKING|>\n\n<|END_THINKING|>\n\n"),
        ("Q? <|begin_of_thought|>", "Q? <|begin_of_thought|>\n\n<|end_of_thought|>\n\n"),
        ("Q? <|channel>thought", "Q? <|channel>thought\n\n<channel|>\n\n"),
        ("Q? ◁think▷", "Q? ◁think▷\n\n◁/think▷\n\n"),
    ],
)
def test_a_thought_at_the_end_of_a_prompt_is_closed(prompt, whole):
    assert ends_in_thought(prompt)
    assert closed(prompt) == whole
    assert not ends_in_thought(whole)
    assert closed(whole) == whole
    assert answer_start(whole) is not None


@pytest.mark.parametrize("prompt", ["Q? A:", "Write <think> first. Q? A:", "<think>\n\n</think>\n\n"])
def test_a_thought_that_is_only_spoken_of_stays_as_it_is(prompt):
    assert closed(prompt) == prompt
    assert not ends_in_thought(prompt)


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I don't know.", True),
        ("I don’t know who wrote it", True),
        ("Rome, but I am not sure.", True),
        ("As an AI, I cannot say.", True),
        ("I can't help with that request.", True),
        ("I DON'T KNOW", True),
        ("I Can't Help Myself", False),
        ("I Can't Help Myself (Sugar Pie, Honey Bunch) by the Four Tops", False),
        ("I Don't Know How to Love Him", False),
        ("“I can't help falling in love with you”", False),
        ("The song is I can't help it", False),
        ("Rome", False),
        ("", False),
    ],
)
def test_a_refusal_is_said_and_a_title_is_not(text, refuses):
    assert says(text, ENDPOINT.refusals) is refuses


@pytest.mark.parametrize(
    ("text", "denies"),
    [
        ("no such thing", True),
        ("No such thing.", True),
        ("There is NO SUCH person.", True),
        ("That person does not exist.", True),
        ("No Such Thing", False),
        ("No Such Thing as a Fish", False),
        ("Love Does Not Exist", False),
    ],
)
def test_no_such_thing_is_said_and_a_title_is_not(text, denies):
    assert says(text, ENDPOINT.no_such_thing) is denies


@pytest.mark.parametrize(
    ("answer", "silent"),
    [
        ("", True),
        (" \n", True),
        ("...", True),
        ("—", True),
        ("Unknown", True),
        ("N/A", True),
        ("I have no information about this person.", True),
        ("It cannot be determined", True),
        ("Unknown Pleasures", False),
        ("The Great Unknown", False),
        ("%", False),
        ("C++", False),
        ("0", False),
        ("None", False),
        ("東京", False),
    ],
)
def test_a_model_abstains_with_nothing_or_a_refusal(answer, silent):
    assert abstains(answer, LabelSection().refusals) is silent


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ('"Paris"', "Paris"),
        ("“Paris”.", "Paris"),
        ("«Liberté»", "Liberté"),
        ("「東京」", "東京"),
        ("**Paris**", "Paris"),
        ("`C`", "C"),
        ("'Rock 'n' Roll'", "'Rock 'n' Roll'"),
        ('"Ja" and "Nein"', '"Ja" and "Nein"'),
        ("“Heroes” by David Bowie", "“Heroes” by David Bowie"),
        ("'It's Now or Never'", "It's Now or Never"),
        ("Paris.", "Paris."),
        ("''", "''"),
        ('"', '"'),
        ("", ""),
    ],
)
def test_marks_around_a_whole_answer_are_no_part_of_it(text, bare):
    assert unquoted(text) == bare
