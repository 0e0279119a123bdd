"""What every section of the configuration is made of.

In: nothing. Out: the frozen base class, bounded types of values, an actor pool.
Refuses to know: any section.
"""

import re
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

HOLDS_KEY = re.compile(
    r"://[^/?]*@|://[^?]*\?(?:.*(?:secret|password|token|access_key|account_key|sas|credential)[^=&]*=|.*//[^/]*@|"
    r".*%2F%2F[^&]*%40)",
    re.IGNORECASE | re.DOTALL,
)
"""Matches a URI that holds a key, a password or a user's name."""
Address = TypeVar("Address", bound=str | tuple[str, ...] | None)


def _without_keys(address: Address) -> Address:
    if any(HOLDS_KEY.search(one) for one in ((address,) if isinstance(address, str) else address or ())):
        raise ValueError(
            "must contain no keys, because it is stored with the run; set them in the environment, as AWS_ACCESS_KEY_ID"
        )
    return address


def _with_question(template: str) -> str:
    if template.count("{question}") != 1:
        raise ValueError("must contain {question} exactly once")
    return template


NoKeys = AfterValidator(_without_keys)
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]
Template = Annotated[str, AfterValidator(_with_question)]


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
    """An actor pool: how many actors, what each one has, how many rows it gets at once."""

    min: Positive = 1
    """Actors at the start, and always at least."""
    max: Positive = 1
    """Actors at most; above `min` the pool grows with the cluster."""
    cpus: Annotated[float, Field(gt=0)] = 1.0
    """Logical CPUs of one actor."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of one actor: 0 computes on the CPU, a fraction shares one GPU, a whole number above 1 spreads the model
    over that many."""
    batch_rows: Positive = 128
    """Rows of one forward batch at most. On a CPU, batches of about 400 tokens are fastest, because their activations
    stay in its cache."""
    batch_tokens: Positive = 32_768
    """Tokens of one forward batch at most, padding included; where answers are generated, every copy counts with room
    for its answer. This is the setting to change when memory runs out. A batch that does not fit is halved, then done
    row by row, and later batches are planned smaller."""
    shard_rows: Positive | None = None
    """Rows that are sorted by length into batches and written to one file together: the most that each actor loses when
    a run is killed. Null: as many as an 8B model on one GPU does in two and a half minutes, and at most 4,096. Fewer if
    they would not fit into one of Ray's blocks (128 MiB: about 490 rows with all 33 states of width 4,096), or if a
    small table would leave actors idle: each of the `max` actors gets at least four shards."""

    @model_validator(mode="after")
    def _ordered(self) -> "Pool":
        """`max` below `min`; `gpus` above 1 that is not a whole number."""
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) must be at least min ({self.min})")
        if self.gpus > 1 and self.gpus % 1:
            raise ValueError(
                f"gpus ({self.gpus:g}) must be a whole number if it is above 1, because Ray shares only single GPUs"
            )
        return self
