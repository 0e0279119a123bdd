"""Which of the engine's ways of saving work are right for a model.

In: the results of a check. Out: `Abilities`, decided once on the driver and sent to every actor. Refuses to know:
models, how the check is made.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Sharing = Literal["attended", "copied", "none"]
"""How the tokens that all prompts begin with are shared."""


@dataclass(frozen=True)
class Abilities:
    """How the engine runs a model. The defaults save most; each other value gives the same states and answers for more
    work."""

    prefix: Sharing = "attended"
    """How the tokens that all prompts begin with are shared: by an attention of ours, as a copy per row of the model's
    own cache, or not at all."""
    padding: bool = True
    """Whether prompts of different length may share a batch."""
    answers: Literal["repeated", "per copy", "no cache"] = "repeated"
    """How the answers to a question begin: from copies of its prompt's cache, from a prompt read once per answer, or,
    where the model keeps nothing of earlier tokens, with the whole text read for every token."""
    step_mask: bool = True
    """Whether a pass over an answer's new token is told which earlier tokens are padding. A model without attention has
    left them out of its state, and takes a mask for those of the pass alone."""
    first_blocks: bool = True
    """Whether the first blocks, loaded alone, have the whole model's states."""

    def __str__(self) -> str:
        return "; ".join(self.costs()) or "every saving of the engine is right for it"

    def costs(self) -> Iterator[str]:
        """What each fall-back costs, one line each; none where the model allows everything."""
        if self.prefix == "copied":
            yield "the shared part of prompts is copied to every row of a batch: more memory, no more passes"
        if self.prefix == "none":
            yield "no shared prefix: the part that all prompts begin with is read again with every question"
        if not self.padding:
            yield "no padding: only prompts of one length share a batch, so batches are smaller"
        if self.answers == "per copy":
            yield "its cache cannot be repeated: a prompt is read once more for every answer"
        if self.answers == "no cache":
            yield "its cache cannot be used: prompt and answer so far are read again for every token of an answer"
        if not self.first_blocks:
            yield "its first blocks depend on later ones: scoring and decoding load the whole model"
