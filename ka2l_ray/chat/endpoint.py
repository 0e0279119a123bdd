"""What a chat endpoint is asked, and what its replies mean and cost.

In: the `annotate.endpoint` section, a question, a reply's bytes.
Out: a request, its content hash, an `Annotated`, a cost.
Refuses to know: HTTP, Ray, files, keys.
"""

import hashlib
import json
from collections.abc import Set
from dataclasses import dataclass
from typing import Annotated as Typed
from typing import Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    Field,
    JsonValue,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from ka2l_ray.chat.server_errors import SYSTEM
from ka2l_ray.config import EndpointSection
from ka2l_ray.text.answers import answer_in, says, unquoted

Status = Literal["answered", "no_such_thing", "no_reference", "refused", "truncated", "blank", "failed"]


@dataclass(frozen=True)
class Annotated:
    """`answer` is None unless `status` is `answered`; an unanswered question is paid for and never trained on."""

    answer: str | None
    status: Status


class NoCompletionError(ValueError):
    """A reply that is not a chat completion: not JSON, cut off, or of another shape."""


ChatRequest = dict[str, JsonValue]
"""The JSON that is posted: `model`, `messages`, and optional fields."""
OTHER_NAMES = {"max_tokens": "max_completion_tokens"}
"""What newer servers call a field that they refuse under its old name."""
ANSWERING_PARTS = (None, "text", "output_text")
"""Types of the parts of a content that belong to the answer; the others are thoughts and media."""


class ReplyMessage(BaseModel):
    """Its other fields, such as `reasoning_content`, are thoughts and no part of an answer."""

    content: str | None = None
    refusal: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _joined(cls, given: object) -> object:
        """A content in parts, as one text."""
        if not isinstance(given, dict) or not isinstance(parts := given.get("content"), list):
            return given
        known = [p for p in parts if isinstance(p, dict)]
        texts = [p.get("text") for p in known if p.get("type") in ANSWERING_PARTS]
        refusals = [p["refusal"] for p in known if isinstance(p.get("refusal"), str)]
        return {
            "content": "".join(t for t in texts if isinstance(t, str)),
            "refusal": given.get("refusal") or "".join(refusals) or None,
        }


class CompletionChoice(BaseModel):
    message: ReplyMessage
    finish_reason: str | None = None


class Usage(BaseModel):
    prompt_tokens: Typed[int, Field(ge=0, validation_alias=AliasChoices("prompt_tokens", "input_tokens"))]
    completion_tokens: Typed[int, Field(ge=0, validation_alias=AliasChoices("completion_tokens", "output_tokens"))]


def _usage_or_none(given: object, read: ValidatorFunctionWrapHandler) -> Usage | None:
    """A reply that is paid for is not thrown away for the way in which its tokens are counted."""
    try:
        return read(given)
    except ValidationError:
        return None


class Completion(BaseModel):
    """The part of OpenAI's chat completion object that is used; `usage` is None where the server does not count
    tokens in a way known here."""

    choices: Typed[list[CompletionChoice], Field(min_length=1)]
    usage: Typed[Usage | None, WrapValidator(_usage_or_none)] = None


def request(endpoint: EndpointSection, question: str) -> ChatRequest:
    """What is posted for a question."""
    system: list[JsonValue] = [{"role": SYSTEM, "content": endpoint.system}] if endpoint.system else []
    return {
        "model": endpoint.model,
        "messages": [*system, {"role": "user", "content": endpoint.template.replace("{question}", question)}],
        "max_tokens": endpoint.max_tokens,
        "temperature": endpoint.temperature,
        **endpoint.parameters,
    }


def without(asked: ChatRequest, refused: Set[str]) -> ChatRequest:
    """A request without the parts that a server refuses: under its other name where it has one that is not refused too,
    and the system message at the beginning of the user's."""
    sent: ChatRequest = {}
    for name, value in asked.items():
        other = OTHER_NAMES.get(name, "")
        sent |= {name: value} if name not in refused else {other: value} if other and other not in refused else {}
    messages = asked["messages"]
    if SYSTEM in refused and isinstance(messages, list):
        texts = [m["content"] for m in messages if isinstance(m, dict)]
        sent["messages"] = [{"role": "user", "content": "\n\n".join(t for t in texts if isinstance(t, str))}]
    return sent


def content_hash(asked: ChatRequest) -> str:
    """The name of a reply, which requests share when model, messages and sampling parameters are equal. The address is
    left out, so that an endpoint that moves is not paid again for what it has answered."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


def parse(body: bytes) -> Completion:
    """Read a reply. Raises `NoCompletionError`, whose text quotes nothing from the body."""
    try:
        return Completion.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise NoCompletionError(f"not a chat completion: {where}: {first['msg']}") from None


def meaning(endpoint: EndpointSection, completion: Completion) -> Annotated:
    """What a reply means. Only a complete answer counts: refusals, "no such thing", empty and truncated replies are
    paid for and dropped."""
    choice = completion.choices[0]
    if choice.message.refusal or choice.finish_reason == "content_filter":
        return Annotated(None, "refused")
    meant = text_meaning(endpoint, choice.message.content or "")
    is_cut_off = choice.finish_reason == "length" and meant.status in ("answered", "blank")
    return Annotated(None, "truncated") if is_cut_off else meant


def text_meaning(endpoint: EndpointSection, text: str) -> Annotated:
    """What the text of an answer means, whoever wrote it. Thoughts before the answer are no part of it, nor are quotes
    around it; a text that ends inside a thought is truncated."""
    answer = answer_in(text)
    if answer is None:
        return Annotated(None, "truncated")
    if says(answer, endpoint.no_such_thing):
        return Annotated(None, "no_such_thing")
    if says(answer, endpoint.refusals):
        return Annotated(None, "refused")
    return Annotated(unquoted(answer), "answered") if answer else Annotated(None, "blank")


def token_cost(endpoint: EndpointSection, completion: Completion) -> float:
    """Price of a reply's tokens; 0 where the server reports no usage."""
    used = completion.usage or Usage(prompt_tokens=0, completion_tokens=0)
    prompt = used.prompt_tokens * endpoint.cost_per_million_prompt_tokens
    return (prompt + used.completion_tokens * endpoint.cost_per_million_completion_tokens) / 1_000_000


def share(endpoint: EndpointSection, among: int) -> EndpointSection:
    """The endpoint with the limits for one of `among` curves at once; each may ask at least one question at a time."""
    rate = endpoint.requests_per_s
    return endpoint.model_copy(
        update={"concurrency": max(1, endpoint.concurrency // among), "requests_per_s": rate and rate / among}
    )
