"""One round: where its tables are, what state it is in, and the rows of the pool that its steps look at.

In: a run, a strategy, a draw, a number. Out: folders, seeds, budgets, streamed rows. Refuses to know: what a step does, Ray.
"""

from collections.abc import Iterator, Set
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ka2l_ray.active.acquire import PoolRow
from ka2l_ray.active.strategies import Need, needs
from ka2l_ray.annotate.file import is_waiting
from ka2l_ray.config import Strategy
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.records import Records
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.tables import matrix


class RoundState(StrEnum):
    """What a round does next, by its records: a killed round is in the state it died in."""

    ACQUIRE = "acquire"
    ANNOTATE = "annotate"
    WAITING = "waiting"
    """For people's answers: `ka2l annotate --import` goes on."""
    FINETUNE = "finetune"
    EVALUATE = "evaluate"
    DONE = "done"


@dataclass(frozen=True)
class Round:
    """One round of one strategy. `number` counts from 1."""

    run: Run
    strategy: Strategy
    draw: int
    number: int

    @property
    def folder(self) -> Folder:
        return self.run.round(self.strategy, self.draw, self.number)

    @property
    def seed(self) -> int:
        return self.run.draw_seed(self.draw)

    @property
    def earlier(self) -> list["Round"]:
        return [Round(self.run, self.strategy, self.draw, n) for n in range(1, self.number)]

    @property
    def budget(self) -> int:
        """Annotations of this round: equal parts, earlier rounds one more where the budget does not divide."""
        total, rounds = self.run.config.active.budget, self.run.config.active.rounds
        return total // rounds + (self.number <= total % rounds)

    @property
    def state(self) -> RoundState:
        done = self.records.done()
        for state in (RoundState.ACQUIRE, RoundState.ANNOTATE, RoundState.FINETUNE, RoundState.EVALUATE):
            if state not in done:
                waits = state == RoundState.ANNOTATE and is_waiting(self.folder / "annotations")
                return RoundState.WAITING if waits else state
        return RoundState.DONE

    @property
    def records(self) -> Records:
        return Records(self.folder)

    @property
    def model(self) -> Folder:
        """The fine-tuned model; `finetune` writes `training.json` after everything else in it."""
        return self.folder / "finetune/model"

    def table(self, name: str) -> Table:
        return Table(self.folder / name)

    def record(self) -> dict[str, Any]:
        """The figures of a finished round, with the seconds of each step."""
        return self.records.result(RoundState.EVALUATE) | {"seconds": self.records.seconds()}


def scored_pool(run: Run, with_state: bool = False) -> Iterator[PoolRow]:
    """Pool questions with their scores, on request with the states that the run keeps, streamed; failed rows are left out."""
    scores = run.base("scores")
    state = ["state"] if with_state and scores.rows and "state" in scores.schema().names else []
    for batch in scores.batches(["id", "p_unknown", "truth", "group", *state]):
        batch = batch.filter(batch["p_unknown"].is_valid())
        states = matrix(batch["state"]) if state else [None] * batch.num_rows
        for row, kept in zip(batch.drop_columns(state).to_pylist(), states, strict=True):
            # A copy: a view would keep its whole batch in memory as long as a policy keeps the row.
            yield PoolRow(
                row["id"], row["p_unknown"], row["truth"], row["group"], state=None if kept is None else kept.copy()
            )


def sampled_pool(run: Run) -> Iterator[PoolRow]:
    """Pool questions with what their K samples show, streamed; failed rows are left out."""
    for batch in run.base("pool_knowledge").batches(["id", "truth", "group", "entropy_nats", "likelihood", "quadrant"]):
        for row in batch.to_pylist():
            if row["entropy_nats"] is not None:
                yield PoolRow(**row)


def pool_for(strategy: Strategy, run: Run) -> Iterator[PoolRow]:
    """The pool as a strategy sees it: states are read only for those that compare them."""
    return sampled_pool(run) if needs(strategy, Need.SAMPLES) else scored_pool(run, needs(strategy, Need.STATES))


def pool_rows(run: Run, ids: Set[str]) -> list[dict[str, Any]]:
    """The rows of some pool questions, in the order of the table: the pool is streamed, only the wanted rows become Python objects."""
    wanted = pa.array(list(ids), pa.string())
    batches = run.table("questions").batches(part="pool")
    return [r for batch in batches for r in batch.filter(pc.is_in(batch["id"], wanted)).to_pylist()]  # pyright: ignore


def replay_samples(run: Run) -> list[dict[str, Any]]:
    """Replay candidates with their samples; failed rows are left out."""
    rows = (
        run.base("replay").read(["id", "question", "samples", "greedy", "answers", "error"]).to_pylist()
        if run.base("replay").rows
        else []
    )
    return [r for r in rows if r["error"] is None]
