"""What an engine counts while it works.

In: nothing. Out: plain numbers, for whoever reports them. Refuses to know: torch, Ray.
"""

from dataclasses import dataclass


@dataclass
class Tally:
    """What an engine has done since it was made, for metrics."""

    questions: int = 0
    prompt_tokens: int = 0
    """Tokens of the questions' own parts of prompts: what the passes had to read."""
    padding_tokens: int = 0
    prefix_tokens_saved: int = 0
    generated_tokens: int = 0
    edge_draws: int = 0
    """Draws so near a boundary of the CDF that rounding may decide the token: where another batch might have drawn otherwise."""
    out_of_memory: int = 0
    """Batches that did not fit, after each of which the actor plans smaller ones."""
    model_s: float = 0.0
    """Seconds within passes and answers."""
