"""What a chat endpoint is asked, and what its replies mean and cost.

In: the `annotate.endpoint` section, a question, a reply's bytes.
Out: a request, its content hash, an `Annotated`, a cost.
Refuses to know: HTTP, Ray, files, keys.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Annotated as Typed
from typing import TypedDict

from pydantic import BaseModel, Field, ValidationError

from ka2l_ray.annotate.annotators import Annotated
from ka2l_ray.config import EndpointSection

MILLION = 1_000_000


class NoCompletionError(ValueError):
    """A reply that is not a chat completion: not JSON, cut off, or of another shape."""


class ChatMessage(TypedDict):
    role: str
    content: str


class ChatRequest(TypedDict):
    """The JSON that is posted."""

    model: str
    messages: list[ChatMessage]
    max_tokens: int
    temperature: float


class ReplyMessage(BaseModel):
    content: str | None = None
    refusal: str | None = None


class CompletionChoice(BaseModel):
    message: ReplyMessage
    finish_reason: str | None = None


class Usage(BaseModel):
    prompt_tokens: Typed[int, Field(ge=0)] = 0
    completion_tokens: Typed[int, Field(ge=0)] = 0


class Completion(BaseModel):
    """The part of OpenAI's chat completion object that is used; `usage` is None where the server does not count
    tokens."""

    choices: Typed[list[CompletionChoice], Field(min_length=1)]
    usage: Usage | None = None


def request(endpoint: EndpointSection, question: str) -> ChatRequest:
    """What is posted for a question."""
    system: list[ChatMessage] = [{"role": "system", "content": endpoint.system}] if endpoint.system else []
    return {
        "model": endpoint.model,
        "messages": [*system, {"role": "user", "content": endpoint.template.replace("{question}", question)}],
        "max_tokens": endpoint.max_tokens,
        "temperature": endpoint.temperature,
    }


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
    text = (choice.message.content or "").strip()
    if choice.message.refusal or choice.finish_reason == "content_filter":
        return Annotated(None, "refused")
    if _begins_or_ends(text, endpoint.no_such_thing):
        return Annotated(None, "no_such_thing")
    if _begins_or_ends(text, endpoint.refusals):
        return Annotated(None, "refused")
    if choice.finish_reason == "length":
        return Annotated(None, "truncated")
    return Annotated(text, "answered") if text else Annotated(None, "blank")


def _begins_or_ends(text: str, phrases: Sequence[str]) -> bool:
    """Whether a text begins or ends with one of the phrases, word by word."""
    words = _words(text)
    wanted = [w for w in map(_words, phrases) if w]
    return any(words[: len(w)] == w or words[-len(w) :] == w for w in wanted)


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.casefold().replace("’", "'"))


def token_cost(endpoint: EndpointSection, completion: Completion) -> float:
    """Price of a reply's tokens; 0 where the server reports no usage."""
    used = completion.usage or Usage()
    prompt = used.prompt_tokens * endpoint.cost_per_million_prompt_tokens
    return (prompt + used.completion_tokens * endpoint.cost_per_million_completion_tokens) / MILLION


def share(endpoint: EndpointSection, among: int) -> EndpointSection:
    """The endpoint with the limits for one of `among` curves at once; each may ask at least one question at a time."""
    rate = endpoint.requests_per_s
    limits = {"concurrency": max(1, endpoint.concurrency // among), "requests_per_s": rate and rate / among}
    return endpoint.model_copy(update=limits)
