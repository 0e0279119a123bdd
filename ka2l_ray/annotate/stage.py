"""Every question that a round bought gets its row in `annotations`, answered or not.

In: the round's questions, in order. Out: the table, each id once; `status` says what became of it, `cost` what it is
worth.
A chat endpoint is asked from this process, so that its limits apply to the whole pipeline. Replies are in
`RUN/annotation_cache/` (of a comparison: next to its runs), named by content, one file each: after a kill only the
requests that were under way are sent again, equal questions of rounds, strategies and seeds are asked once, and the
table is made from these files alone. People are asked only what no round of the run has an answer to.
Refuses to know: HTTP, how questions were chosen, what is trained on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import ray
from ray.actor import ActorProxy
from ray.exceptions import RayActorError

from ka2l_ray import schema
from ka2l_ray.annotate.annotators import (
    Annotated,
    AnnotatorName,
    Asked,
    Waiting,
    annotator_of,
    ask_reference,
    ask_world,
)
from ka2l_ray.annotate.file import ANSWERS, answers_in, asked_in, is_waiting, write_questions
from ka2l_ray.annotate.ledger import ledger
from ka2l_ray.chat.claims import Claims
from ka2l_ray.chat.endpoint import Completion, content_hash, meaning, request, token_cost
from ka2l_ray.chat.replies import ask_missing, check_failures, kept_reply, replies_folder
from ka2l_ray.config import ConfigError, EndpointSection
from ka2l_ray.dataflow.log import log
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.dataflow.tasks import one_line
from ka2l_ray.errors import StageError
from ka2l_ray.world.facts import build_world

CLAIMS = "ka2l_claims"
"""Name of the actor that keeps the curves of a comparison from asking the same question at the same time."""
CLAIMED_FOR = 1.5
"""A claim lasts for this many time-outs of a request."""

Row = dict[str, object]
"""A row of `schema.ANNOTATIONS`."""


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
    counts = " ".join(f"{name} {value:g}" for name, value in ledger(target).items() if value)
    log.info("%s", counts, extra={"stage": "annotate"})


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
    if unasked:
        raise write_questions(unasked, folder)
    if missing:
        raise Waiting(f"{len(missing):,} questions wait for answers in the files of other rounds, which ask the same")
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
    replies = replies_folder(endpoint, run.folder)
    names = {q.id: content_hash(request(endpoint, q.question)) for q in questions}
    requests = {names[q.id]: request(endpoint, q.question) for q in questions}
    asked_by = f"{run.config.run.name}/{target.folder.path.removeprefix(run.folder.path).strip('/')}"
    try:
        failed = ask_missing("annotate", endpoint, requests, replies, asked_by, _claims(endpoint, asked_by))
    except RayActorError as error:  # the claims' actor
        raise StageError(f"annotate: {one_line(error)}; replies so far are kept") from error
    check_failures("annotate", endpoint, failed, len(requests), run.config.run.max_error_fraction)
    answered = requests.keys() - failed.keys()
    kept = {name: kept_reply(replies, name) for name in answered}
    rows, paid_for = list[Row](), set[str]()
    for q in questions:
        name = names[q.id]
        if name in failed:
            rows.append(_row(q, "endpoint", Annotated(None, "failed"), 0.0))
        else:
            cost = run.config.annotate.cost + token_cost(endpoint, kept[name].reply)
            cached = kept[name].asked_by != asked_by or name in paid_for
            rows.append(_row(q, "endpoint", meaning(endpoint, kept[name].reply), cost, cached))
            paid_for.add(name)
    return rows, {"without_usage": _count_without_usage(endpoint, [k.reply for k in kept.values()])}


@dataclass(frozen=True)
class _SharedClaims:
    """A `Claimer` through the comparison's actor."""

    actor: ActorProxy[Claims]
    owner: str
    lease_s: float

    async def take(self, name: str) -> bool:
        return await self.actor.take.remote(name, self.owner, self.lease_s)

    async def leave(self, name: str) -> None:
        await self.actor.leave.remote(name, self.owner)


def share_claims() -> ActorProxy[Claims]:
    """The actor through which the curves of this Ray job claim questions, for as long as the caller holds it."""
    return ray.remote(Claims).options(name=CLAIMS, num_cpus=0).remote()


def _claims(endpoint: EndpointSection, asked_by: str) -> _SharedClaims | None:
    """None where no comparison runs: then nobody else asks."""
    try:
        return _SharedClaims(ray.get_actor(CLAIMS), asked_by, CLAIMED_FOR * endpoint.timeout_s)
    except ValueError:
        return None


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
