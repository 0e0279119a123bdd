"""Every question that a round bought gets its row in `annotations`, answered or not.

In: the round's questions, in order. Out: the table, each id once; `status` says what became of it, `cost` what it is
worth.
A chat endpoint is asked from this process, so that its limits apply to the whole pipeline. Replies are in
`RUN/annotation_cache/` (of a comparison: next to its runs), named by content, one file each: after a kill only the
requests that were under way are sent again, equal questions of rounds, strategies and seeds are asked once, and the
table is made from these files alone. People are asked only what no round of the run has an answer to.
Refuses to know: HTTP, how questions were chosen, what is trained on.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pyarrow as pa
import ray
from pydantic import SecretStr
from ray.exceptions import RayActorError

from ka2l_ray import schema
from ka2l_ray.annotate.annotators import (
    Annotated,
    AnnotatorName,
    Asked,
    WaitingForOthers,
    annotator_of,
    ask_reference,
    ask_world,
)
from ka2l_ray.annotate.claims import Claims
from ka2l_ray.annotate.client import ChatClient
from ka2l_ray.annotate.endpoint import ChatRequest, Completion, content_hash, meaning, request, token_cost
from ka2l_ray.annotate.file import ANSWERS, answers_in, asked_in, is_waiting, write_questions
from ka2l_ray.annotate.ledger import ledger
from ka2l_ray.config import ConfigError, EndpointSection
from ka2l_ray.dataflow.log import log, log_progress
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.dataflow.tasks import one_line
from ka2l_ray.errors import StageError
from ka2l_ray.world.facts import build_world

CACHE = "annotation_cache"
CLAIMS = "ka2l_claims"
"""Name of the actor that keeps the curves of a comparison from asking the same question at the same time."""
CLAIMED_FOR = 1.5
"""A claim lasts for this many time-outs of a request."""

Row = dict[str, object]
"""A row of `schema.ANNOTATIONS`."""


class KeptReply(NamedTuple):
    """A reply, and the table whose round asked for it."""

    asked_by: str
    completion: Completion


def annotate(run: Run, questions: Sequence[Asked], target: Table) -> None:
    """Write the annotations of a round's questions to `target`, unless they are there; people's files are in its
    folder too.

    Raises `Waiting` where people have not answered yet, `StageError` where an endpoint left more than
    `run.max_error_fraction` of the questions without a reply (those that came are kept, so that the next run asks
    only for the rest), and `ConfigError` for imported answers to other questions.
    """
    if target.is_done:
        return
    annotator, facts = annotator_of(run.config), {}
    if annotator == "endpoint":
        rows, facts = _from_endpoint(run, questions, target)
    elif annotator == "file":
        rows = _from_file(run, questions, target.folder)
    else:
        ask = ask_world(build_world()) if annotator == "world" else ask_reference
        rows = [_row(q, annotator, ask(q.question, q.answers), run.config.annotate.cost) for q in questions]
    target.write((None, pa.Table.from_pylist(rows, schema=schema.ANNOTATIONS)), **facts)
    log.info("%-10s %s", "annotate", " ".join(f"{name} {value:g}" for name, value in ledger(target).items() if value))


def _row(asked: Asked, annotator: AnnotatorName, got: Annotated, cost: float, cached: bool = False) -> Row:
    return {
        "id": asked.id,
        "question": asked.question,
        "answer": got.answer,
        "annotator": annotator,
        "cost": cost,
        "status": got.status,
        "cached": cached,
    }


def _from_file(run: Run, questions: Sequence[Asked], folder: Folder) -> list[Row]:
    """Ask people what no other round has an answer to and what is not in the file of a round that waits."""
    others = [f for f in _annotation_folders(run) if f.path != folder.path]
    own, ids = answers_in(folder), {q.id for q in questions}
    imported = {i: replace(a, cached=True) for f in others for i, a in answers_in(f).items()} | own
    missing = [q for q in questions if q.id not in imported]
    asked_elsewhere = {i for f in others if is_waiting(f) for i in asked_in(f)}
    unasked = [q for q in missing if q.id not in asked_elsewhere]
    if own and (unasked or not own.keys() <= ids):
        raise ConfigError(
            f"{folder.path}: its imported answers belong to other questions; delete {ANSWERS} there and import again"
        )
    if missing:
        raise write_questions(unasked, folder) if unasked else WaitingForOthers(len(missing))
    return [
        _row(q, "file", imported[q.id].annotated, run.config.annotate.cost, imported[q.id].cached) for q in questions
    ]


def _annotation_folders(run: Run) -> list[Folder]:
    """The folders with annotations of all strategies, draws and rounds."""
    found = [run.folder / "strategies"]
    for _ in ("strategy", "draw", "round"):
        found = [f / name for f in found for name in f.names(files_only=False)]
    return [f / "annotations" for f in found]


def _from_endpoint(run: Run, questions: Sequence[Asked], target: Table) -> tuple[list[Row], dict[str, int]]:
    """Ask what no kept reply answers, then make all rows from the kept replies; one without is `failed` and costs
    nothing."""
    endpoint = run.config.annotate.endpoint
    requests = {q.id: request(endpoint, q.question) for q in questions}
    names = {i: content_hash(asked) for i, asked in requests.items()}
    kept_before = set(_replies(run).names())
    missing = {name: requests[i] for i, name in names.items() if f"{name}.json" not in kept_before}
    asked_by = f"{run.config.run.name}/{target.folder.path.removeprefix(run.folder.path).strip('/')}"
    failed = _ask(run, missing, asked_by)
    _report_failures(run, failed, len(set(names.values())))
    kept = {name: _kept_reply(_replies(run) / f"{name}.json") for name in set(names.values()) - failed.keys()}
    rows, paid_for = list[Row](), set[str]()
    for q in questions:
        if (reply := kept.get(name := names[q.id])) is None:
            rows.append(_row(q, "endpoint", Annotated(None, "failed"), 0.0))
            continue
        cost = run.config.annotate.cost + token_cost(endpoint, reply.completion)
        cached = reply.asked_by != asked_by or name in paid_for
        rows.append(_row(q, "endpoint", meaning(endpoint, reply.completion), cost, cached))
        paid_for.add(name)
    return rows, {"without_usage": _count_without_usage(endpoint, [r.completion for r in kept.values()])}


def _kept_reply(file: Folder) -> KeptReply:
    kept = file.read_json()
    return KeptReply(kept["asked_by"], Completion.model_validate(kept["reply"]))


def _replies(run: Run) -> Folder:
    """Where replies are kept."""
    named = run.config.annotate.endpoint.replies
    return run.folder / CACHE if named is None else Folder.of(named)


@dataclass(frozen=True)
class _SharedClaims:
    """A `Claimer` through the comparison's actor."""

    actor: Any
    owner: str
    lease_s: float

    async def take(self, name: str) -> bool:
        return await self.actor.take.remote(name, self.owner, self.lease_s)

    async def leave(self, name: str) -> None:
        await self.actor.leave.remote(name, self.owner)


def share_claims() -> Any:
    """The actor through which the curves of this Ray job claim questions, for as long as the caller holds it."""
    return ray.remote(Claims).options(name=CLAIMS, num_cpus=0).remote()


def _claims(endpoint: EndpointSection, asked_by: str) -> _SharedClaims | None:
    """None where no comparison runs: then nobody else asks."""
    try:
        actor = ray.get_actor(CLAIMS)
    except ValueError:
        return None
    return _SharedClaims(actor, asked_by, CLAIMED_FOR * endpoint.timeout_s)


def _ask(run: Run, requests: Mapping[str, ChatRequest], asked_by: str) -> dict[str, str]:
    """Post the requests, by content hash; returns the reasons of those that got no valid reply."""
    if not requests:
        return {}
    endpoint, replies = run.config.annotate.endpoint, _replies(run).make()
    client = ChatClient(endpoint, key_of(endpoint), replies, asked_by, _claims(endpoint, asked_by))

    def progress() -> str:
        kept = {n.removesuffix(".json") for n in replies.names()}
        return f"{len(requests.keys() & kept):,} of {len(requests):,} replies"

    with log_progress("annotate", progress):
        try:
            return asyncio.run(client.ask(requests))
        except RayActorError as error:  # the claims' actor
            raise StageError(f"annotate: {one_line(error)}; replies so far are kept") from error


def key_of(endpoint: EndpointSection) -> SecretStr | None:
    """The key from the driver's environment; None where it is not set."""
    key = os.environ.get(endpoint.key_variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"the environment variable {endpoint.key_variable} contains characters that an HTTP header cannot have"
        )
    return SecretStr(key) if key else None


def _report_failures(run: Run, failed: Mapping[str, str], asked: int) -> None:
    """Warn of questions that the endpoint gave no reply to; raise where they are too many to go on without them."""
    if not failed:
        return
    endpoint, allowed = run.config.annotate.endpoint, run.config.run.max_error_fraction
    first = next(iter(failed.values()))
    if len(failed) == asked:
        unset = "" if key_of(endpoint) else f" ({endpoint.key_variable} is not set, so no key was sent)"
        raise StageError(f"annotate: {endpoint.url} answered none of {asked:,} questions. First: {first}{unset}")
    if len(failed) > allowed * asked:
        raise StageError(
            f"annotate: {endpoint.url} gave no valid reply to {len(failed):,} of {asked:,} questions, more than "
            f"run.max_error_fraction allows ({allowed:g}). First: {first}. The other replies are kept: the same "
            "command asks only for the missing ones"
        )
    log.warning(
        "annotate: no valid reply to %d of %d questions; they are marked failed. First: %s", len(failed), asked, first
    )


def _count_without_usage(endpoint: EndpointSection, completions: Sequence[Completion]) -> int:
    """Replies whose tokens were not reported; warns where tokens cost something, because their cost is then booked as
    0."""
    count = sum(c.usage is None for c in completions)
    if count and (endpoint.cost_per_million_prompt_tokens or endpoint.cost_per_million_completion_tokens):
        log.warning(
            "annotate: %d of %d replies report no token usage; their tokens are booked at no cost",
            count,
            len(completions),
        )
    return count
