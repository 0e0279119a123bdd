"""One round: its folder, tables, budget and state.

In: a run, a strategy, a draw, a number. Out: where its output lies, and what it does next.
Refuses to know: what a step does, Ray.
"""

from dataclasses import dataclass
from enum import StrEnum

from ka2l_ray.annotate.file import is_waiting
from ka2l_ray.config import Strategy
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.records import Records
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.results_schema import RoundResult


class RoundState(StrEnum):
    """What a round does next according to its records; a killed round stays in its state."""

    ACQUIRE = "acquire"
    ANNOTATE = "annotate"
    WAITING = "waiting"
    """For people's answers, which `ka2l annotate --import` reads."""
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

    def __str__(self) -> str:
        return f"{self.strategy} seed {self.seed} round {self.number}"

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
        """Annotations of this round: equal parts of the budget, the first rounds one more if a rest remains."""
        total, rounds = self.run.config.active.budget, self.run.config.active.rounds
        return total // rounds + (self.number <= total % rounds)

    @property
    def state(self) -> RoundState:
        done = self.records.done()
        state = next(s for s in RoundState if s != RoundState.WAITING and s not in done)
        waits = state == RoundState.ANNOTATE and is_waiting(self.folder / "annotations")
        return RoundState.WAITING if waits else state

    @property
    def records(self) -> Records:
        return Records(self.folder)

    @property
    def model(self) -> Folder:
        """The fine-tuned model; `finetune` writes `training.json` after everything else in it."""
        return self.folder / "finetune/model"

    @property
    def bought_before(self) -> set[str]:
        """Ids of what the earlier rounds acquired."""
        return {i for r in self.earlier for i in r.table("acquired").read(["id"])["id"].to_pylist()}

    def table(self, name: str) -> Table:
        return Table(self.folder / name)

    def record(self) -> RoundResult:
        """The figures of a finished round, with the seconds of each step."""
        return self.records.result(RoundState.EVALUATE) | {"seconds": self.records.seconds()}
