"""What a chat endpoint is asked, and what its replies mean and cost."""

import json
from typing import get_args

import pytest

from ka2l_ray import schema
from ka2l_ray.chat.endpoint import (
    Annotated,
    NoCompletionError,
    Status,
    content_hash,
    meaning,
    parse,
    request,
    share,
    token_cost,
)
from ka2l_ray.config import EndpointSection

ENDPOINT = EndpointSection(cost_per_million_prompt_tokens=3.0, cost_per_million_completion_tokens=15.0)


def body(content, finish_reason="stop", **more):
    return json.dumps({"choices": [{"message": {"content": content} | more, "finish_reason": finish_reason}]}).encode()


@pytest.mark.parametrize(
    ("content", "annotated"),
    [
        (" Paris\n", Annotated("Paris", "answered")),
        ("I don’t know.", Annotated(None, "refused")),
        ("As an AI, I cannot say.", Annotated(None, "refused")),
        ("I'm sorry, but I can't say.", Annotated(None, "refused")),
        ("There is NO SUCH person.", Annotated(None, "no_such_thing")),
        ("That person does not exist.", Annotated(None, "no_such_thing")),
        ("(I Can't Get No) Satisfaction", Annotated("(I Can't Get No) Satisfaction", "answered")),
        ("I'm Sorry", Annotated("I'm Sorry", "answered")),
        ("He served as an aide-de-camp", Annotated("He served as an aide-de-camp", "answered")),
        ("Nosuch", Annotated("Nosuch", "answered")),
        ("I Can't Help Myself", Annotated("I Can't Help Myself", "answered")),
        ("No Such Thing", Annotated("No Such Thing", "answered")),
        ("I Don’t Know How to Love Him.", Annotated("I Don’t Know How to Love Him.", "answered")),
        ("“I can't help falling in love with you”", Annotated("I can't help falling in love with you", "answered")),
        ('"I don\'t know."', Annotated(None, "refused")),
        ("no such thing", Annotated(None, "no_such_thing")),
        ("<think>France? I don't know.</think>\n\nParis", Annotated("Paris", "answered")),
        ("France, of course.\n</think>\n\n**Paris**", Annotated("Paris", "answered")),
        ("<think>France? Its capital", Annotated(None, "truncated")),
        ("<think>Who is that?</think> I don't know.", Annotated(None, "refused")),
        ("<think>Who is that?</think>", Annotated(None, "blank")),
        ("analysisFrance, of course.assistantfinalParis", Annotated("Paris", "answered")),
        (" \n", Annotated(None, "blank")),
        (None, Annotated(None, "blank")),
    ],
)
def test_a_reply_is_an_answer_a_refusal_or_no_such_thing(content, annotated):
    assert meaning(ENDPOINT, parse(body(content))) == annotated


def test_what_the_endpoint_itself_marks_is_dropped():
    assert meaning(ENDPOINT, parse(body("Par", "length"))).status == "truncated"
    assert meaning(ENDPOINT, parse(body("", "content_filter"))).status == "refused"
    assert meaning(ENDPOINT, parse(body(None, refusal="no"))).status == "refused"


@pytest.mark.parametrize(
    "reply", [b"", b"{", b"null", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{}]}', b"\xff\xfe", b"<html>"]
)
def test_what_is_no_completion_is_said_without_quoting_it(reply):
    with pytest.raises(NoCompletionError, match="not a chat completion"):
        parse(reply)


def test_tokens_are_paid_by_the_million():
    used = json.loads(body("x")) | {
        "usage": {"prompt_tokens": 1_000_000, "completion_tokens": 200_000, "total_tokens": 1_200_000}
    }
    assert token_cost(ENDPOINT, parse(json.dumps(used).encode())) == pytest.approx(3.0 + 3.0)
    assert token_cost(ENDPOINT, parse(body("x"))) == 0.0
    other_names = json.loads(body("x")) | {"usage": {"input_tokens": 1_000_000, "output_tokens": 200_000}}
    assert token_cost(ENDPOINT, parse(json.dumps(other_names).encode())) == pytest.approx(3.0 + 3.0)
    assert parse(json.dumps(json.loads(body("x")) | {"usage": {"total_tokens": 9}}).encode()).usage is None


def test_a_request_holds_the_template_and_a_question_with_braces_stays_itself():
    asked = request(EndpointSection(template="Q: {question}", system=""), "What is {x}?")
    assert asked["messages"] == [{"role": "user", "content": "Q: What is {x}?"}]


def test_replies_are_shared_by_content_alone():
    first = request(ENDPOINT, "Who?")
    assert content_hash(first) == content_hash(json.loads(json.dumps(first, indent=1)))
    assert content_hash(first) == content_hash(request(ENDPOINT.model_copy(update={"url": "http://moved/v1"}), "Who?"))
    changed = [request(ENDPOINT.model_copy(update={n: v}), "Who?") for n, v in CHANGES.items()]
    others = [content_hash(asked) for asked in (request(ENDPOINT, "What?"), *changed)]
    assert len({content_hash(first), *others}) == 1 + len(others)


@pytest.mark.parametrize(("concurrency", "among", "each"), [(8, 1, 8), (8, 3, 2), (8, 8, 1), (2, 5, 1)])
def test_limits_are_shared_out_and_nobody_is_left_without(concurrency, among, each):
    whole = EndpointSection(concurrency=concurrency, requests_per_s=6.0)
    part = share(whole, among)
    assert (part.concurrency, part.requests_per_s) == (each, 6.0 / among)
    assert part.model_copy(update={"concurrency": concurrency, "requests_per_s": 6.0}) == whole
    assert share(EndpointSection(), among).requests_per_s is None


def test_further_fields_are_part_of_the_request_and_of_its_name():
    low = EndpointSection(parameters={"reasoning_effort": "low", "temperature": 0.5, "extra": {"a": [1]}})
    assert request(low, "Who?") == request(EndpointSection(), "Who?") | low.parameters
    assert content_hash(request(low, "Who?")) != content_hash(request(EndpointSection(), "Who?"))
    with pytest.raises(ValueError, match=r"must not contain messages"):
        EndpointSection(parameters={"messages": []})


CHANGES = {"model": "m", "system": "s", "template": "T {question}", "max_tokens": 7, "temperature": 0.5}


def test_statuses_of_code_and_table_are_the_same():
    assert get_args(Status) == schema.ANNOTATION_STATUSES
