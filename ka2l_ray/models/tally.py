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
    model_s: float = 0.0
    """Seconds within passes and answers."""
