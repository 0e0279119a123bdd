"""One round: where its tables are, and the rows of the pool that they speak of.

In: a run, a strategy, a draw, a number. Out: folders, seeds, budgets, streamed rows. Refuses to know: what a step does, Ray.
"""

from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any

from ka2l_ray.active.acquire import Scored
from ka2l_ray.artifacts import Folder, Run, Table
from ka2l_ray.config import Strategy


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

    def table(self, name: str) -> Table:
        return Table(self.folder / name)


def scored_pool(run: Run) -> Iterator[Scored]:
    """Pool questions with their scores, streamed; failed rows have none and are left out."""
    for batch in run.base("scores").batches(["id", "p_unknown", "truth"]):
        for row in batch.to_pylist():
            if row["p_unknown"] is not None:
                yield Scored(row["id"], row["p_unknown"], row["truth"])


def pool_rows(run: Run, ids: Set[str]) -> list[dict[str, Any]]:
    """The rows of some pool questions, in the order of the table: the pool is streamed, only the wanted rows are kept."""
    return [r for batch in run.table("questions").batches(part="pool") for r in batch.to_pylist() if r["id"] in ids]


def replay_samples(run: Run) -> list[dict[str, Any]]:
    """Replay candidates with their samples; failed rows are left out."""
    rows = (
        run.base("replay").read(["id", "question", "samples", "greedy", "answers", "error"]).to_pylist() if run.base("replay").rows else []
    )
    return [r for r in rows if r["error"] is None]
