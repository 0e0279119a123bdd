"""`steps.json`: what became of each step of a run or of a round.

In: the folder of a run or a round. Out: for each step the seconds of all its attempts and, once done, its rows and
its result.
Refuses to know: what a step does.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypedDict

from ka2l_ray.dataflow.storage import Folder

FILE = "steps.json"


class StepRecord(TypedDict, total=False):
    """What `steps.json` contains of a step."""

    seconds: float
    done: bool
    rows: Mapping[str, int] | None
    result: Any


@dataclass(frozen=True)
class Records:
    """The records of the steps in `folder`; only one process may write them at a time."""

    folder: Folder

    def all(self) -> dict[str, StepRecord]:
        """Records by step: `seconds` once it was attempted; `done`, `rows` and `result` once it is done."""
        return (self.folder / FILE).read_json_or_empty()

    def done(self) -> set[str]:
        """Names of the steps that are done."""
        return {name for name, record in self.all().items() if record.get("done")}

    def is_done(self, name: str) -> bool:
        return name in self.done()

    def result(self, name: str) -> Any:
        """The result of a step that is done; None where it is not done or has no result."""
        record = self.all().get(name, {})
        return record.get("result") if record.get("done") else None

    def rows(self) -> dict[str, Mapping[str, int]]:
        """{step: {`in`: rows read, `out`: rows written, `errors`: failed rows}} of the steps that count rows."""
        return {name: rows for name, record in self.all().items() if (rows := record.get("rows")) is not None}

    def seconds(self) -> dict[str, float]:
        """Seconds by step, over all attempts except those ended by SIGKILL."""
        return {name: record["seconds"] for name, record in self.all().items() if "seconds" in record}

    @contextmanager
    def timed(self, name: str, before_s: float = 0.0) -> Iterator[None]:
        """Add the seconds spent inside, and those `before_s`, to the step's, even if the work fails."""
        started = time.monotonic() - before_s
        try:
            yield
        finally:
            self._update(name, seconds=round(self.seconds().get(name, 0.0) + time.monotonic() - started, 3))

    def finish(self, name: str, rows: Mapping[str, int] | None = None, result: Any = None) -> None:
        """Record that a step is done, so that it is not repeated. `rows` as `rows()` returns them, `result` as JSON."""
        self._update(name, done=True, rows=rows, result=result)

    def reopen(self, name: str) -> None:
        """Mark a step as not done; the seconds it has taken so far still count. Ignores a step without a record."""
        if name in self.all():
            self._update(name, done=False, result=None)

    def forget(self, names: set[str]) -> None:
        """Delete the records of some steps, seconds included."""
        if (kept := {n: r for n, r in self.all().items() if n not in names}) != self.all():
            (self.folder / FILE).write_json(kept)

    def _update(self, name: str, **changed: object) -> None:
        records = self.all()
        if (updated := records | {name: records.get(name, {}) | changed}) != records:
            (self.folder / FILE).write_json(updated)
