"""What an answer is and where it ends.

In: the tokens that a model said after a prompt. Out: the answer's text, log-probability and token count.
Refuses to know: how tokens are drawn, by which engine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from ka2l_ray.models.engine import States
from ka2l_ray.text.tokens import text_of


@dataclass(frozen=True)
class Answer:
    """`logprob` in nats at T = 1, summed over `tokens`: up to and including the end token or the stop string's first token."""

    text: str
    logprob: float
    tokens: int


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn. A temperature of 0 is argmax."""

    seed: int
    samples: int
    temperature: float
    greedy_temperature: float
    max_new_tokens: int
    stop: tuple[str, ...]
    waves: tuple[int, ...] = ()
    """Samples drawn together, before a look at whether they are enough; empty draws all at once. Their sum is `samples`."""
    enough: Callable[[Sequence[Answer]], bool] = lambda samples: False
    """Whether the samples drawn so far settle what they are drawn for."""


@dataclass
class Reading:
    """What came of some prompts: states (N, D) per (position, layer), 1 + K answers per prompt (the greedy one first), and the error of
    each row that failed; such a row has states of zero and no answers."""

    states: States
    answers: list[list[Answer]]
    failed: dict[int, Exception] = field(default_factory=dict)


class Ending:
    """Where the answers of a model end: at its end tokens (its generation configuration's and the tokenizer's) or at a stop string."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end: int | list[int] | None, stop: Sequence[str]) -> None:
        ends: list[Any] = [*(end if isinstance(end, list) else [end]), tokenizer.eos_token_id]
        self.tokens: set[int] = {e for e in ends if e is not None}
        self._tokenizer, self._stop = tokenizer, tuple(stop)

    def may_come_with(self, size: int) -> list[bool]:
        """For each of `size` token ids, whether an answer may end with it: end tokens, and those with a stop string's last character.

        Characters outside ASCII may come from several tokens, so with such a stop string it is every token.
        """
        lasts = {s[-1] for s in self._stop}
        if not all(c.isascii() for c in lasts):
            return [True] * size
        pieces = self._tokenizer.batch_decode([[i] for i in range(min(size, len(self._tokenizer)))]) if lasts else []
        found = [any(c in piece for c in lasts) for piece in pieces]
        return [n in self.tokens or (n < len(found) and found[n]) for n in range(size)]

    def close(self, tokens: list[int], logprobs: Sequence[float], last: bool) -> Answer | None:
        """The answer that ends with the token said last, or None where it goes on; `last`: there is no room for another token."""
        text = str(self._tokenizer.decode(tokens, skip_special_tokens=True))
        cuts = [at for s in self._stop if (at := text.find(s)) >= 0]
        if tokens[-1] in self.tokens:
            counted = len(tokens)
        elif cuts:
            text, counted = text[: min(cuts)], self._tokens_before(tokens, min(cuts)) + 1
        elif last:
            text, counted = text_of(self._tokenizer, tokens), len(tokens)
        else:
            return None
        return Answer(text.strip(), float(sum(logprobs[:counted])), counted)

    def _tokens_before(self, tokens: list[int], characters: int) -> int:
        """How many leading tokens lie wholly before a character offset of the decoded text."""
        return max(
            n
            for n in range(len(tokens))
            if len(self._tokenizer.decode(tokens[:n], skip_special_tokens=True)) <= characters
        )
