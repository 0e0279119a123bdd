"""What an engine counts while it works.

In: nothing. Out: plain numbers, for metrics. Refuses to know: torch, Ray.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass
class Tally:
    """What an engine has done since it was created; each field is a metric of `metric_table.OF_MODELS`."""

    questions: int = 0
    prompt_tokens: int = 0
    """Tokens of the questions' own parts of prompts, which the passes had to read."""
    padding_tokens: int = 0
    prefix_tokens_saved: int = 0
    generated_tokens: int = 0
    edge_draws: int = 0
    """Draws so close to a boundary of the CDF that rounding may decide the token, so that another batch might have
    drawn differently."""
    out_of_memory: int = 0
    """Batches that did not fit into memory; after each the actor plans smaller ones."""
    model_s: float = 0.0
    """Seconds spent in passes and answers."""


@runtime_checkable
class Tallied(Protocol):
    """An actor that counts what it does, for metrics."""

    tally: Tally
