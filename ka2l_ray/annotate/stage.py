"""Every question that a round bought gets its row in `annotations`, answered or not.

In: the round's questions, in order. Out: the table, each id once; `status` says what became of it, `cost` what it is worth.
A chat endpoint is asked through Ray Data's HTTP processor: one actor, so that its limits hold over the whole pipeline. Replies lie
in `RUN/annotation_cache/` (of a comparison: beside its runs), named by content, one file each: a killed run asks again what was under
way, equal questions of rounds, strategies and seeds are asked once, and the table is made from these files alone. People are asked for
what no round of the run has an answer to.
Refuses to know: how questions were chosen, what is trained on.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray
import ray.data
from pydantic import SecretStr
from ray.data import DataContext
from ray.data.llm import HttpRequestProcessorConfig, build_processor
from ray.exceptions import RayError

from ka2l_ray import schema
from ka2l_ray.annotate.claims import Claims
from ka2l_ray.annotate.endpoint import Completion, content_hash, judge, request, token_cost
from ka2l_ray.annotate.file import answers_in, asked_in, is_waiting, pose
from ka2l_ray.annotate.ledger import ledger
from ka2l_ray.annotate.session import Asker, reply
from ka2l_ray.annotate.sources import (
    Annotated,
    AnnotatorName,
    Asked,
    WaitingForOthers,
    ask_reference,
    ask_world,
    source_of,
)
from ka2l_ray.config import ConfigError, EndpointSection
from ka2l_ray.dataflow.log import log, log_progress
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.dataflow.tasks import one_line, raised_by_library
from ka2l_ray.errors import StageError
from ka2l_ray.world.facts import build_world

CACHE = "annotation_cache"
CLAIMS = "ka2l_claims"
"""Name of the actor that keeps the curves of a comparison from asking the same at the same time."""
CLAIMED_FOR = 1.5
"""A claim lasts for this many time-outs of a request."""
BATCH_ROWS = 64
"""Rows that one session holds at least; four sessions are open at once, so a slow reply holds nobody up."""

Rows = list[dict[str, Any]]


def annotate(run: Run, questions: Sequence[Asked], target: Table) -> None:
    """Write the annotations of a round's questions to `target`, unless they are there; people's files lie in its folder too.

    Raises `Waiting` where people have not answered yet, `StageError` where an endpoint left more than `run.max_error_fraction` of the
    questions without a reply (what came is kept, so that the next try asks for the rest), and `ConfigError` for imported answers to
    other questions.
    """
    if target.is_done:
        return
    source, facts = source_of(run.config), {}
    if source == "endpoint":
        rows, facts = _from_endpoint(run, questions, target)
    elif source == "file":
        rows = _from_file(run, questions, target.folder)
    else:
        ask = ask_world(build_world()) if source == "world" else ask_reference
        rows = [_row(q, source, ask(q.question, q.answers), run.config.annotate.cost) for q in questions]
    target.write((None, pa.Table.from_pylist(rows, schema=schema.ANNOTATIONS)), **facts)
    log.info("%-10s %s", "annotate", " ".join(f"{name} {value:g}" for name, value in ledger(target).items() if value))


def _row(asked: Asked, source: AnnotatorName, got: Annotated, cost: float, cached: bool = False) -> dict[str, Any]:
    return {
        "id": asked.id,
        "question": asked.question,
        "answer": got.answer,
        "annotator": source,
        "cost": cost,
        "status": got.status,
        "cached": cached,
    }


def _from_file(run: Run, questions: Sequence[Asked], folder: Folder) -> Rows:
    """People are asked for what no other round has an answer to, and is not asked in the file of one that waits."""
    others = [f for f in _annotation_folders(run) if f.path != folder.path]
    own, ids = answers_in(folder), {q.id for q in questions}
    given = {i: replace(g, cached=True) for f in others for i, g in answers_in(f).items()} | own
    missing = [q for q in questions if q.id not in given]
    asked_elsewhere = {i for f in others if is_waiting(f) for i in asked_in(f)}
    unasked = [q for q in missing if q.id not in asked_elsewhere]
    if own and (unasked or not own.keys() <= ids):
        raise ConfigError(
            f"{folder.path}: its imported answers belong to other questions; delete answers.jsonl there and import again"
        )
    if missing:
        raise pose(unasked, folder) if unasked else WaitingForOthers(len(missing))
    return [_row(q, "file", given[q.id].got, run.config.annotate.cost, given[q.id].cached) for q in questions]


def _annotation_folders(run: Run) -> list[Folder]:
    """Where the rounds of all strategies and draws keep what they asked."""
    found = [run.folder / "strategies"]
    for _ in ("strategy", "draw", "round"):
        found = [f / name for f in found for name in f.names(files_only=False)]
    return [f / "annotations" for f in found]


def _from_endpoint(run: Run, questions: Sequence[Asked], target: Table) -> tuple[Rows, dict[str, Any]]:
    """Ask what no kept reply answers, then make every row from the kept replies; one without is `failed` and costs nothing."""
    endpoint = run.config.annotate.endpoint
    requests = {q.id: request(endpoint, q.question) for q in questions}
    names = {i: content_hash(asked) for i, asked in requests.items()}
    kept_before = set(_kept(run).names())
    wanted = {name: requests[i] for i, name in names.items() if f"{name}.json" not in kept_before}
    asked_by = f"{run.config.run.name}/{target.folder.path.removeprefix(run.folder.path).strip('/')}"
    failed = _ask(run, wanted, asked_by)
    _report_failures(run, failed, len(set(names.values())))
    replies = {name: (_kept(run) / f"{name}.json").read_json() for name in set(names.values()) - failed.keys()}
    rows, paid_for = [], set()
    for q in questions:
        kept = replies.get(name := names[q.id])
        if kept is None:
            rows.append(_row(q, "endpoint", Annotated(None, "failed"), 0.0))
            continue
        cached = kept["asked_by"] != asked_by or name in paid_for
        paid_for.add(name)
        completion = reply(kept)
        rows.append(
            _row(
                q,
                "endpoint",
                judge(endpoint, completion),
                run.config.annotate.cost + token_cost(endpoint, completion),
                cached,
            )
        )
    return rows, {"without_usage": _count_without_usage(endpoint, [reply(r) for r in replies.values()])}


def _kept(run: Run) -> Folder:
    """Where replies are kept."""
    named = run.config.annotate.endpoint.replies
    return run.folder / CACHE if named is None else Folder.of(named)


@dataclass(frozen=True)
class _SharedClaims:
    """A `Claimer` by way of the comparison's actor."""

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


def _ask(run: Run, wanted: Mapping[str, dict[str, Any]], asked_by: str) -> dict[str, str]:
    """Post the requests, by content hash; returns the reasons of those that got no valid reply."""
    if not wanted:
        return {}
    endpoint, replies = run.config.annotate.endpoint, _kept(run).make()
    config = HttpRequestProcessorConfig(
        url=endpoint.url,
        batch_size=max(BATCH_ROWS, endpoint.concurrency),
        concurrency=1,
        session_factory=Asker(endpoint, key_of(endpoint), replies, asked_by, _claims(endpoint, asked_by)),
    )
    processor = build_processor(config, postprocess=_outcome)

    def progress() -> str:
        return f"{len(wanted.keys() & {n.removesuffix('.json') for n in replies.names()}):,} of {len(wanted):,} replies"

    items = [{"name": name, "payload": asked} for name, asked in wanted.items()]
    with _context(), log_progress("annotate", progress):
        try:
            outcomes = list(processor(ray.data.from_items(items, override_num_blocks=1)).iter_rows())
        except RayError as error:
            if raised_by_library(error):
                raise
            raise StageError(f"annotate: {one_line(error)}; replies so far are kept") from error
    return {row["name"]: row["failed"] for row in outcomes if row["failed"]}


def _outcome(row: dict[str, Any]) -> dict[str, Any]:
    return {"name": row["name"], "failed": row["http_response"]["failed"]}


@contextlib.contextmanager
def _context() -> Iterator[None]:
    """No limit on time without a finished block: each request has its own, and all of them are in one block."""
    context = DataContext.get_current()
    before, context.execution_no_progress_timeout_s = context.execution_no_progress_timeout_s, -1
    try:
        yield
    finally:
        context.execution_no_progress_timeout_s = before


def key_of(endpoint: EndpointSection) -> SecretStr | None:
    """The key from the driver's environment; None where it is not set."""
    key = os.environ.get(endpoint.key_variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"the environment variable {endpoint.key_variable} holds characters that no HTTP header may hold"
        )
    return SecretStr(key) if key else None


def _report_failures(run: Run, failed: Mapping[str, str], asked: int) -> None:
    """Say how many questions the endpoint gave up on, and why the first; raise where they are too many to go on without them."""
    if not failed:
        return
    endpoint, first, allowed = (
        run.config.annotate.endpoint,
        next(iter(failed.values())),
        run.config.run.max_error_fraction,
    )
    if len(failed) == asked:
        unset = "" if key_of(endpoint) else f" ({endpoint.key_variable} is not set, so no key was sent)"
        raise StageError(f"annotate: {endpoint.url} answered none of {asked:,} questions. First: {first}{unset}")
    if len(failed) > allowed * asked:
        raise StageError(
            f"annotate: {endpoint.url} gave no valid reply to {len(failed):,} of {asked:,} questions, more than run.max_error_fraction "
            f"allows ({allowed:g}). First: {first}. The other replies are kept: the same command asks for the missing ones alone"
        )
    log.warning(
        "annotate: no valid reply to %d of %d questions; they are marked failed. First: %s", len(failed), asked, first
    )


def _count_without_usage(endpoint: EndpointSection, completions: Sequence[Completion]) -> int:
    """Replies whose tokens were not reported; said aloud where tokens cost something, for their cost is then booked as 0."""
    count = sum(c.usage is None for c in completions)
    if count and (endpoint.cost_per_million_prompt_tokens or endpoint.cost_per_million_completion_tokens):
        log.warning(
            "annotate: %d of %d replies report no token usage; their tokens are booked at no cost",
            count,
            len(completions),
        )
    return count
