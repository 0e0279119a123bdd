"""Plain actors with the least that a test needs. Ray workers import them by PYTHONPATH."""

import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from ka2l_ray.dataflow.tally import Tally
from ka2l_ray.errors import ConfigError


@dataclass(frozen=True)
class Setup:
    """What the actors below are made from: the log of their ids, the value that fails."""

    log: str
    poison: int = -1


class Doubler:
    """Doubles `value`, logs its ids, and fails on a poisonous row."""

    def __init__(self, setup: Setup) -> None:
        self.log, self.poison = setup.log, setup.poison

    def __call__(self, batch: pa.Table) -> dict[str, Any]:
        values = batch["value"].to_pylist()
        if self.poison in values:
            raise ValueError(f"value {self.poison} is poisonous")
        with open(self.log, "a") as file:
            file.writelines(f"{i}\n" for i in batch["id"].to_pylist())
        return {"doubled": [2 * v for v in values]}


class Tallying(Doubler):
    """A `Doubler` that tallies one of everything for each row that it doubles."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.tally = Tally()

    def __call__(self, batch: pa.Table) -> dict[str, Any]:
        doubled = super().__call__(batch)
        for name, value in asdict(self.tally).items():
            setattr(self.tally, name, value + batch.num_rows)
        return doubled


@dataclass(frozen=True, kw_only=True)
class KillerSetup(Setup):
    driver: int
    after: int
    data: str


class Killer(Doubler):
    """A `Doubler` that, once `after` rows are done and a shard of them is written, kills the driver with SIGKILL."""

    def __init__(self, setup: KillerSetup) -> None:
        super().__init__(setup)
        self.driver, self.after, self.data = setup.driver, setup.after, Path(setup.data)

    def __call__(self, batch: pa.Table) -> dict[str, Any]:
        done = len(Path(self.log).read_text().split()) if Path(self.log).exists() else 0
        if done >= self.after:
            while not any(self.data.glob("*/*.parquet")):
                time.sleep(0.1)
            os.kill(self.driver, signal.SIGKILL)
            time.sleep(60)
        return super().__call__(batch)


class Crasher(Doubler):
    """A `Doubler` whose process dies on the poisonous row, as one does that runs out of memory."""

    def __call__(self, batch: pa.Table) -> dict[str, Any]:
        if self.poison in batch["value"].to_pylist():
            os._exit(1)
        return super().__call__(batch)


class Unloadable:
    """Cannot be loaded."""

    def __init__(self, setup: Setup) -> None:
        raise ConfigError("decode.decoder = 'x' reads states of another model")

    def __call__(self, batch: pa.Table) -> dict[str, Any]:
        raise AssertionError("never called")


class Halver:
    """Halves `doubled`, notes how many rows each call had, and cannot halve nothing."""

    def __init__(self, setup: Setup) -> None:
        self.log = setup.log

    def __call__(self, batch: pa.Table) -> dict[str, Any]:
        with open(self.log, "a") as file:
            file.write(f"{batch.num_rows}\n")
        return {"half": [v // 2 for v in batch["doubled"].to_pylist()]}


class OddOnes(Doubler):
    """A slow `Doubler` that names odd values as failed."""

    def __call__(self, batch: pa.Table) -> dict[str, Any]:
        time.sleep(0.2)
        values = batch["value"].to_pylist()
        return super().__call__(batch) | {"error": [f"ValueError: value {v} is odd" if v % 2 else None for v in values]}


@dataclass(frozen=True)
class Square:
    """What prepares rows on a CPU."""

    poison: int
    columns: ClassVar[pa.Schema] = pa.schema([("square", pa.int64()), ("pid", pa.int64())])

    def load(self) -> None:
        """There is nothing to load."""

    def __call__(self, batch: pa.Table) -> dict[str, Any]:
        values = batch["value"].to_pylist()
        if self.poison in values:
            raise ValueError(f"{self.poison} has no square here")
        return {"square": [v * v for v in values], "pid": [os.getpid()] * len(values)}


class Sum(Doubler):
    """Adds the prepared square to the value, and tells whether another process prepared it."""

    def __call__(self, batch: pa.Table) -> dict[str, Any]:
        sums = [v + s for v, s in zip(batch["value"].to_pylist(), batch["square"].to_pylist(), strict=True)]
        return {"sum": sums, "apart": [pid != os.getpid() for pid in batch["pid"].to_pylist()]}


class Stater(Doubler):
    """Returns states (B, 3): float16 in the shard that holds row 0, float32 in the others."""

    def __call__(self, batch: pa.Table) -> dict[str, Any]:
        values = np.repeat(np.array(batch["value"].to_pylist(), np.float32), 3)
        kind = np.float16 if 0 in values else np.float32
        return {"state": pa.FixedSizeListArray.from_arrays(pa.array(values.astype(kind)), 3)}


@dataclass(frozen=True, kw_only=True)
class StickySetup(Setup):
    mark: str


class Sticky(Doubler):
    """A `Doubler` whose device breaks at the poisonous row, the first time that any actor meets it: from then on every
    call of its process fails. The error is of torch's own type."""

    def __init__(self, setup: StickySetup) -> None:
        super().__init__(Setup(setup.log))
        self.mark, self.trigger, self.broken = Path(setup.mark), setup.poison, False

    def __call__(self, batch: pa.Table) -> dict[str, Any]:
        if self.trigger in batch["value"].to_pylist() and not self.mark.exists():
            self.broken = True
        if self.broken:
            with self.mark.open("a") as file:
                file.write(f"{os.getpid()}\n")
            import torch

            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return super().__call__(batch)


class Useless(Doubler):
    """Fails at every row, in a way that says nothing about the row."""

    def __call__(self, batch: pa.Table) -> dict[str, Any]:
        raise RuntimeError("no such kernel")
