"""A chat endpoint's replies: where they are kept, how those that are missing are asked for.

In: requests by content hash, a folder of replies, the key in the driver's environment. Out: one file per reply; why
there is none for the others, or an error where these are too many.
Refuses to know: HTTP, Ray, what is asked and what replies mean.
"""

import asyncio
import os
from collections.abc import Mapping

from pydantic import BaseModel, SecretStr

from ka2l_ray.chat.claims import Claimer
from ka2l_ray.chat.client import ChatClient
from ka2l_ray.chat.endpoint import ChatRequest, Completion
from ka2l_ray.config import ConfigError, EndpointSection
from ka2l_ray.dataflow.log import log, log_progress
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import StageError

CACHE = "annotation_cache"


class KeptReply(BaseModel):
    """A reply, and the table for which it was asked."""

    asked_by: str
    reply: Completion


def kept_reply(replies: Folder, name: str) -> KeptReply:
    """The reply of this name."""
    return KeptReply.model_validate((replies / f"{name}.json").read_json())


def replies_folder(endpoint: EndpointSection, run: Folder) -> Folder:
    """Where replies are kept: `annotate.endpoint.replies`, else below the run's folder."""
    return run / CACHE if endpoint.replies is None else Folder.of(endpoint.replies)


def key_of(endpoint: EndpointSection) -> SecretStr | None:
    """The key from the driver's environment; None where it is not set."""
    key = os.environ.get(endpoint.key_variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"the environment variable {endpoint.key_variable} contains characters that an HTTP header cannot have"
        )
    return SecretStr(key) if key else None


def ask_missing(
    stage: str,
    endpoint: EndpointSection,
    requests: Mapping[str, ChatRequest],
    replies: Folder,
    asked_by: str,
    claims: Claimer | None = None,
) -> dict[str, str]:
    """Post the requests, by content hash, that have no kept reply; returns the reasons of those that got no valid
    one. `asked_by` is kept with every reply."""
    kept_before = set(replies.names())
    missing = {name: asked for name, asked in requests.items() if f"{name}.json" not in kept_before}
    if not missing:
        return {}
    client = ChatClient(endpoint, key_of(endpoint), replies.make(), asked_by, claims)

    def progress() -> str:
        kept = {n.removesuffix(".json") for n in replies.names()}
        return f"{len(missing.keys() & kept):,} of {len(missing):,} replies"

    with log_progress(stage, progress):
        return asyncio.run(client.ask(missing))


def check_failures(
    stage: str, endpoint: EndpointSection, failed: Mapping[str, str], asked: int, allowed: float
) -> None:
    """Warn of questions without a reply; raise `StageError` where they are more than the share `allowed`."""
    if not failed:
        return
    first = next(iter(failed.values()))
    if len(failed) == asked:
        unset = "" if key_of(endpoint) else f" ({endpoint.key_variable} is not set, so no key was sent)"
        raise StageError(f"{stage}: {endpoint.url} answered none of {asked:,} questions. First: {first}{unset}")
    if len(failed) > allowed * asked:
        raise StageError(
            f"{stage}: {endpoint.url} gave no valid reply to {len(failed):,} of {asked:,} questions, more than "
            f"run.max_error_fraction allows ({allowed:g}). First: {first}. The other replies are kept: the same "
            "command asks only for the missing ones"
        )
    log.warning(
        "%s: no valid reply to %d of %d questions; they are marked failed. First: %s",
        stage,
        len(failed),
        asked,
        first,
    )
