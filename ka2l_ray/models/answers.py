"""What an answer is and where it ends.

In: the tokens that a model generated after a prompt. Out: the answer's text, log-probability and number of tokens.
Refuses to know: how tokens are drawn, and by which engine.
"""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ka2l_ray.models.engine import States
from ka2l_ray.models.sampling import Sampling
from ka2l_ray.text.answers import answer_start, without_end
from ka2l_ray.text.tokens import special_tokens


@dataclass(frozen=True)
class Answer:
    """`logprob` in nats at T = 1, summed over the first `tokens` tokens: up to and including the end token or the first
    token of the stop string, thoughts included. `text` is without thoughts, and empty where one was cut off
    (`in_thought`)."""

    text: str
    logprob: float
    tokens: int
    in_thought: bool = False


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn. A temperature of 0 is argmax; `top_k`, `top_p` and `min_p` restrict the samples only."""

    seed: int
    samples: int
    temperature: float
    greedy_temperature: float
    max_new_tokens: int
    stop: tuple[str, ...]
    thinks: bool = False
    """Whether prompts end inside a thought, to which `stop` does not apply."""
    waves: tuple[int, ...] = ()
    """How many samples are drawn together before `enough` is asked; their sum is `samples`. Empty: all at once."""
    enough: Callable[[Sequence[Answer]], bool] = lambda samples: False
    """Whether the samples drawn so far are enough, so that no others are drawn."""
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def draws(self) -> tuple[Sampling, Sampling]:
        """How the greedy answer is drawn, and how a sample is."""
        return Sampling(self.greedy_temperature), Sampling(self.temperature, self.top_k, self.top_p, self.min_p)


@dataclass
class GenerationResult:
    """Of N prompts the states (N, D) per (position, layer), 1 + K answers each (the greedy one first), and the error of
    each row that failed; a failed row has states of zero and no answers."""

    states: States
    answers: list[list[Answer]]
    failed: dict[int, Exception]


class StopCriteria:
    """Answers end at an end token (the model's generation configuration's or the tokenizer's), at a special token of
    `stop` or at another string of `stop`; the latter two not inside a thought.

    `end_tokens` end a text wherever they stand, `turn_ends` are the special tokens of `stop`, `strings` the rest of it.
    With `has_late_strings` a text may go on after one of the strings: in a thought, or before a chat's answer begins.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_token_id: int | list[int] | None,
        stop: Sequence[str],
        thinks: bool = False,
    ) -> None:
        configured = eos_token_id if isinstance(eos_token_id, list) else [eos_token_id]
        self.end_tokens = {i for i in [*configured, tokenizer.eos_token_id] if isinstance(i, int)}
        special = special_tokens(tokenizer)
        self.turn_ends = {special[s] for s in stop if s in special}
        self.strings = tuple(s for s in stop if s not in special)
        self._tokenizer, self._thinks = tokenizer, thinks
        self.has_late_strings = thinks or bool(self.turn_ends)
        self._may_think = thinks or tokenizer.chat_template is not None

    def possible_last_tokens(self, vocabulary: int) -> list[bool]:
        """For each token id below `vocabulary`, whether an answer may end with it: end tokens, those of `stop`, and
        tokens that contain the last character of a stop string.

        A character outside ASCII may be made of several tokens: with such a stop string an answer may end with any
        token.
        """
        last_characters = {s[-1] for s in self.strings}
        if not all(c.isascii() for c in last_characters):
            return [True] * vocabulary
        known = range(min(vocabulary, len(self._tokenizer)))
        pieces = self._tokenizer.batch_decode([[i] for i in known]) if last_characters else []
        stopping = {i for i, piece in enumerate(pieces) if last_characters.intersection(piece)}
        ending = self.end_tokens | self.turn_ends | stopping
        return [i in ending for i in range(vocabulary)]

    def finish(self, tokens: list[int], logprobs: Sequence[float], at_limit: bool) -> Answer | None:
        """The answer that ends with the last of the tokens, or None where generation goes on; `at_limit`: no more
        tokens are allowed.

        `logprobs` (nats at T = 1) has one entry per token, or more.
        """
        before = self._before_answer(tokens)
        ended = tokens[-1] in self.end_tokens or at_limit
        if before is None:
            return Answer("", float(sum(logprobs[: len(tokens)])), len(tokens), in_thought=True) if ended else None
        own = tokens[before:]
        if turn_end := next((n for n, token in enumerate(own, 1) if token in self.turn_ends), None):
            own, ended = own[:turn_end], True
        text = str(self._tokenizer.decode(own, skip_special_tokens=True))
        # Empty lines after a thought, or at the start of a chat's turn, are no end of the answer after them.
        begin = len(text) - len(text.lstrip()) if before or self.turn_ends else 0
        cuts = [start for s in self.strings if (start := text.find(s, begin)) >= 0]
        if cuts:
            text, counted = text[: min(cuts)], self._tokens_before(own, min(cuts)) + 1
        elif ended:
            counted = len(own)
        else:
            return None
        text = without_end(text) if before else text.strip()
        return Answer(text, float(sum(logprobs[: before + counted])), before + counted)

    def _before_answer(self, tokens: list[int]) -> int | None:
        """Number of tokens before the answer, which are thoughts; None where it has not begun."""
        if not self._may_think:
            return 0
        if not (start := answer_start(str(self._tokenizer.decode(tokens)), self._thinks)):
            return start
        counts = range(len(tokens) + 1)
        return bisect.bisect_left(counts, start, key=lambda n: len(self._tokenizer.decode(tokens[:n])))

    def _tokens_before(self, tokens: list[int], characters: int) -> int:
        """How many leading tokens lie wholly before a character offset of the decoded text."""
        return max(
            n
            for n in range(len(tokens))
            if len(self._tokenizer.decode(tokens[:n], skip_special_tokens=True)) <= characters
        )
