"""What every section of the configuration is made of.

In: nothing. Out: the frozen base class, bounded types of values, an actor pool.
Refuses to know: any section.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Annotated, Self, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, model_validator

HOLDS_KEY = re.compile(
    r"://(?!anonymous@)[^/?]*@|://[^?]*\?(?:.*(?:secret|password|token|access_key|account_key|sas|credential)[^=&]*=|.*//[^/]*@|"
    r".*%2F%2F[^&]*%40)",
    re.IGNORECASE | re.DOTALL,
)
"""Matches a URI that holds a key, a password or a user's name; `anonymous@` is Arrow's word for none."""
Address = TypeVar("Address", bound=str | tuple[str, ...] | Mapping[str, tuple[str, ...]] | None)


def _without_keys(address: Address) -> Address:
    several = chain(*address.values()) if isinstance(address, Mapping) else address or ()
    if any(HOLDS_KEY.search(one) for one in ((address,) if isinstance(address, str) else several)):
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


REFUSALS = (
    *("i don't know", "i do not know", "i'm not sure", "i am not sure", "as an ai"),
    *("sorry but", "sorry i", "i'm sorry but", "i'm sorry i", "i am sorry but", "i am sorry i"),
    *(f"i {cannot} {do}" for cannot in ("cannot", "can't") for do in ("answer", "provide", "help", "assist")),
)
"""How models say that they have no answer."""


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

    def contradictions(self) -> Iterator[str]:
        """Which fields contradict each other, a sentence each. The docstring of an override lists what is refused."""
        return iter(())

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """Refuses the first contradiction."""
        if said := next(self.contradictions(), None):
            raise ValueError(said)
        return self


def section_of(annotation: object) -> type[Section] | None:
    """The class of the section that a field contains; None if it contains a value."""
    kinds = (annotation, *get_args(annotation))
    return next((k for k in kinds if inspect.isclass(k) and issubclass(k, Section)), None)


_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_LABEL = re.compile(rf"(?:{_NAME}/)?{_NAME}")
_WANTED = re.compile(rf"!?(?:{_NAME}|in\({_NAME}(?:, ?{_NAME})*\))")


def _resources(given: dict[str, float]) -> dict[str, float]:
    if taken := sorted({"CPU", "GPU", "memory", "object_store_memory"}.intersection(given)):
        raise ValueError(f"must not name {taken[0]}: CPUs and GPUs have fields of their own, and memory is Ray's")
    if none := sorted(name for name, amount in given.items() if not name or amount <= 0):
        raise ValueError(f"must give every resource a name and an amount above 0, not {none[0]!r}: {given[none[0]]:g}")
    return given


def _labels(given: dict[str, str]) -> dict[str, str]:
    for label, wanted in given.items():
        if not (_LABEL.fullmatch(label) and _WANTED.fullmatch(wanted)):
            raise ValueError(
                f"must be labels and what they are to be (a value, `!value`, `in(a, b)` or `!in(a, b)`; letters, "
                f"digits, `-`, `_` and `.`), not {label!r}: {wanted!r}"
            )
    return given


class NodesSection(Section):
    """Nodes of the cluster that have all of the following; by default any node."""

    resources: Annotated[dict[str, float], AfterValidator(_resources)] = {}
    """Ray's custom resources that each process takes, such as `{small_gpu: 1}`; the cluster's node types name them."""
    labels: Annotated[dict[str, str], AfterValidator(_labels)] = {}
    """Labels that the node must have: a value, `"!value"`, `in(a, b)` or `"!in(a, b)"`, such as `{ray.io/market-type:
    spot}` or `{ray.io/accelerator-type: in(H100, H200)}`."""


ANY_NODE = NodesSection()


class Pool(Section):
    """An actor pool: how many actors, what each one has, how many rows it gets at once."""

    min: Positive = 1
    """Actors at the start, and always at least."""
    max: Positive = 1
    """Actors at most; above `min` the pool grows with the cluster."""
    cpus: PositiveFloat = 1.0
    """Logical CPUs of one actor."""
    gpus: NonNegativeFloat = 0.0
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
    nodes: NodesSection = NodesSection()
    """Where the actors run."""

    def contradictions(self) -> Iterator[str]:
        """`max` below `min`; `gpus` above 1 that is not a whole number."""
        if self.max < self.min:
            yield f"max ({self.max}) must be at least min ({self.min})"
        if self.gpus > 1 and self.gpus % 1:
            yield f"gpus ({self.gpus:g}) must be a whole number if it is above 1, because Ray shares only single GPUs"
