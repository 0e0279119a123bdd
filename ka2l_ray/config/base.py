"""What every section of the configuration is made of.

In: nothing. Out: the frozen base class, bounded number types, an actor pool.
Refuses to know: any section.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of every section: frozen, strict about unknown keys, described by its docstrings."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        serialize_by_alias=True,
    )


class Pool(Section):
    """An actor pool: how many actors, what each one holds, how many rows it gets at once."""

    min: Positive = 1
    """Actors at the start and at the least."""
    max: Positive = 1
    """Actors at the most; above `min` the pool grows with the cluster."""
    cpus: Annotated[float, Field(gt=0)] = 1.0
    """Logical CPUs of one actor."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of one actor: 0 computes on the CPU, a fraction shares one GPU, a whole number above 1 spreads the model over so many."""
    batch_rows: Positive = 128
    """Rows of one forward batch at most. On a CPU some 400 tokens a batch are fastest, because their activations stay in its cache."""
    batch_tokens: Positive = 32_768
    """Tokens of one forward batch at most, padding counted and, where answers are written, every copy with room for its answer: the
    dial for memory. A batch that does not fit is halved, then done row by row, and later batches are planned smaller."""
    shard_rows: Positive | None = None
    """Rows that are sorted by length into batches and go into one file together: what a killed run loses at most per actor. Null: as many
    as an 8B model on one GPU does in two and a half minutes, and at most 4,096. Fewer where they would not fit one of Ray's blocks (128
    MiB: about 490 rows with all of 33 states of width 4,096), or where a small table would leave actors idle: at least four for each of
    `max`."""

    @model_validator(mode="after")
    def _ordered(self) -> "Pool":
        """`max` below `min`; `gpus` above 1 that are no whole number."""
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) must be at least min ({self.min})")
        if self.gpus > 1 and self.gpus % 1:
            raise ValueError(
                f"gpus ({self.gpus:g}) must be a whole number above 1, for Ray lends parts of one GPU alone"
            )
        return self
