"""A chat endpoint rewords the questions that eval asks.

In: a `questions` table, a folder of replies. Out: a ledger of what was asked; then, from the kept replies alone, the
wordings of each question.
Refuses to know: Ray, which wording is reserved. Only pool and eval questions are asked for; equal requests are posted
and paid once, and a killed run posts only what is missing. The cost belongs to evaluation, not to any strategy.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ka2l_ray.chat.endpoint import ChatRequest, content_hash, token_cost
from ka2l_ray.chat.replies import ask_missing, check_failures, kept_reply
from ka2l_ray.config import Config
from ka2l_ray.corpus.again import Row
from ka2l_ray.corpus.rewordings import request, wordings_in
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.storage import Folder

REWORDED = ("pool", "eval")


@dataclass(frozen=True)
class RepliedWordings:
    """The wordings in the kept replies; none for a question that has no reply or was not asked."""

    config: Config
    replies: Folder

    def __call__(self, row: Row) -> list[str]:
        name = content_hash(self.request(row))
        if row["split"] not in REWORDED or not (self.replies / f"{name}.json").exists():
            return []
        endpoint, section = self.config.annotate.endpoint, self.config.corpus.rewordings
        return wordings_in(endpoint, section, row["question"], row["entity"], kept_reply(self.replies, name).reply)

    def request(self, row: Row) -> ChatRequest:
        """What is posted for a question."""
        return request(self.config.annotate.endpoint, self.config.corpus.rewordings, row["question"])


def ask_for_wordings(joined: Table, wordings: RepliedWordings) -> dict[str, float]:
    """Ask for the wordings that no kept reply has; returns the ledger of all, which are `asked`, `answered` (with a
    usable wording) or `rejected`; `cost` is what they are worth, `paid` what was spent for this run.

    Raises `StageError` where more than `run.max_error_fraction` of the questions got no valid reply.
    """
    config, replies = wordings.config, wordings.replies
    endpoint, asked_by = config.annotate.endpoint, f"{config.run.name}/questions"
    requests = {content_hash(r): r for r in map(wordings.request, _to_reword(joined))}
    failed = ask_missing("questions", endpoint, requests, replies, asked_by)
    check_failures("questions", endpoint, failed, len(requests), config.run.max_error_fraction)
    kept = [kept_reply(replies, name) for name in requests.keys() - failed.keys()]
    costs = [config.corpus.rewordings.cost + token_cost(endpoint, k.reply) for k in kept]
    answered = sum(bool(wordings(row)) for row in _to_reword(joined))
    asked = sum(1 for _ in _to_reword(joined))
    return {
        "asked": asked,
        "answered": answered,
        "rejected": asked - answered,
        "cached": sum(k.asked_by != asked_by for k in kept),
        "without_usage": sum(k.reply.usage is None for k in kept),
        "cost": sum(costs),
        "paid": sum(cost for cost, k in zip(costs, kept, strict=True) if k.asked_by == asked_by),
    }


def _to_reword(joined: Table) -> Iterator[Row]:
    columns = ["question", "entity", "split"]
    return (row for part in REWORDED for batch in joined.batches(columns, part=part) for row in batch.to_pylist())
