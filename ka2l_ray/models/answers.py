"""What an answer is and where it ends.

In: the tokens that a model generated after a prompt. Out: the answer's text, log-probability and number of tokens.
Refuses to know: how tokens are drawn, and by which engine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from ka2l_ray.models.engine import States
from ka2l_ray.text.tokens import text_of


@dataclass(frozen=True)
class Answer:
    """`logprob` in nats at T = 1, summed over the first `tokens` tokens: up to and including the end token or the first
    token of the stop string."""

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
    """How many samples are drawn together before `enough` is asked; their sum is `samples`. Empty: all at once."""
    enough: Callable[[Sequence[Answer]], bool] = lambda samples: False
    """Whether the samples drawn so far are enough, so that no others are drawn."""


@dataclass
class GenerationResult:
    """Of N prompts the states (N, D) per (position, layer), 1 + K answers each (the greedy one first), and the error of
    each row that failed; a failed row has states of zero and no answers."""

    states: States
    answers: list[list[Answer]]
    failed: dict[int, Exception] = field(default_factory=dict)


class StopCriteria:
    """Answers end at an end token (the model's generation configuration's or the tokenizer's) or at a stop string."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, eos_token_id: int | list[int] | None, stop: Sequence[str]
    ) -> None:
        configured = eos_token_id if isinstance(eos_token_id, list) else [eos_token_id]
        self.end_tokens = {i for i in [*configured, tokenizer.eos_token_id] if isinstance(i, int)}
        self._tokenizer, self._stop = tokenizer, tuple(stop)

    def possible_last_tokens(self, vocabulary: int) -> list[bool]:
        """For each token id below `vocabulary`, whether an answer may end with it: end tokens, and tokens that contain
        the last character of a stop string.

        A character outside ASCII may be made of several tokens: with such a stop string an answer may end with any
        token.
        """
        last_characters = {s[-1] for s in self._stop}
        if not all(c.isascii() for c in last_characters):
            return [True] * vocabulary
        known = range(min(vocabulary, len(self._tokenizer)))
        pieces = self._tokenizer.batch_decode([[i] for i in known]) if last_characters else []
        stopping = {i for i, piece in enumerate(pieces) if last_characters.intersection(piece)}
        return [i in self.end_tokens or i in stopping for i in range(vocabulary)]

    def finish(self, tokens: list[int], logprobs: Sequence[float], at_limit: bool) -> Answer | None:
        """The answer that ends with the last of the tokens, or None where generation goes on; `at_limit`: no more
        tokens are allowed.

        `logprobs` (nats at T = 1) has one entry per token, or more.
        """
        text = str(self._tokenizer.decode(tokens, skip_special_tokens=True))
        cuts = [start for s in self._stop if (start := text.find(s)) >= 0]
        if tokens[-1] in self.end_tokens:
            counted = len(tokens)
        elif cuts:
            text, counted = text[: min(cuts)], self._tokens_before(tokens, min(cuts)) + 1
        elif at_limit:
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
