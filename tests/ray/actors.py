"""Plain actors with the least that a test needs. Ray workers import them by PYTHONPATH."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa


class Doubler:
    """Doubles `value`, says so in a log, and fails on a poisonous row."""

    def __init__(self, log: str, poison: int = -1) -> None:
        self.log, self.poison = log, poison

    def __call__(self, batch: pa.Table) -> dict[str, Any]:
        values = batch["value"].to_pylist()
        if self.poison in values:
            raise ValueError(f"value {self.poison} is poisonous")
        with open(self.log, "a") as file:
            file.writelines(f"{i}\n" for i in batch["id"].to_pylist())
        return {"doubled": [2 * v for v in values]}


class Killer(Doubler):
    """A `Doubler` that, once `after` rows are done and a block of them is committed, kills the driver with SIGKILL."""

    def __init__(self, log: str, driver: int, after: int, checkpoint: str) -> None:
        super().__init__(log)
        self.driver, self.after, self.checkpoint = driver, after, Path(checkpoint)

    def __call__(self, batch: pa.Table) -> dict[str, Any]:
        done = len(Path(self.log).read_text().split()) if Path(self.log).exists() else 0
        if done >= self.after:
            while not any(".pending" not in f.name for f in self.checkpoint.glob("*/*.parquet")):
                time.sleep(0.1)
            os.kill(self.driver, signal.SIGKILL)
            time.sleep(60)
        return super().__call__(batch)


class Late(Doubler):
    """A `Doubler` that moves files into place before its first block: what a worker of a killed driver may still do then."""

    def __init__(self, log: str, moves: list[tuple[str, str]]) -> None:
        super().__init__(log)
        self.moves = moves

    def __call__(self, batch: pa.Table) -> dict[str, Any]:
        while self.moves:
            Path(self.moves[0][0]).rename(self.moves.pop(0)[1])
        return super().__call__(batch)


class Crasher(Doubler):
    """A `Doubler` whose process dies on the poisonous row, as one does that runs out of memory."""

    def __call__(self, batch: pa.Table) -> dict[str, Any]:
        if self.poison in batch["value"].to_pylist():
            os._exit(1)
        return super().__call__(batch)


class Unloadable:
    """Cannot be loaded."""

    def __init__(self, log: str) -> None:
        raise ValueError("decode.decoder = 'x' reads states of another model")

    def __call__(self, batch: pa.Table) -> dict[str, Any]:
        raise AssertionError("never called")
