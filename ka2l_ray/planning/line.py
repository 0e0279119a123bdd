"""One stage of a plan.

In: its numbers. Out: a `Line`. Refuses to know: where they come from.
"""

from dataclasses import dataclass

TEXT_BYTES = 64
"""A stored answer with its numbers."""


@dataclass(frozen=True)
class Line:
    """One stage: its rows, tokens read and written, memory of one actor or worker, bytes it leaves in storage, and its
    price in the unit of `annotate.cost`.

    At least `count` actors or workers run, each on `gpus` GPUs, over which its `memory_bytes` are spread. `actors`,
    `memory_is` and `does` say in words who works, what the memory is for, and what the stage does.
    """

    stage: str
    rows: int
    actors: str
    count: int = 0
    gpus: float = 0.0
    read_tokens: int = 0
    written_tokens: int = 0
    memory_bytes: int = 0
    memory_is: str = ""
    storage_bytes: int = 0
    does: str = ""
    price: float = 0.0

    @property
    def gpu_bytes(self) -> int:
        """Bytes of memory that one GPU needs: its part of a model spread over several, or all the actors that share it;
        0 without GPUs."""
        return round(self.memory_bytes / self.gpus) if self.gpus else 0
