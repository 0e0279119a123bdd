"""The three decoders behind one interface, each with what reads states for it.

In: a decoder's folder, the studied model. Out: a `Decoder`: the first blocks or the whole of the model, which states
are read, and questions from states.
`t5`, the world's, and `seq2seq` are encoder-decoders of their own, beside the model's first blocks. `self` is the
studied model, so one copy of its weights reads, writes and reads again.
Refuses to know: tables, Ray, how wanted states are made.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ka2l_ray.config import ModelSection
from ka2l_ray.dataflow.placement import Placement
from ka2l_ray.decode.model import CARD, DecoderCard, StateDecoder, read_card
from ka2l_ray.decode.question_states import QuestionStates
from ka2l_ray.decode.self_decoder import SelfCard, SelfDecoder, read_self_card
from ka2l_ray.decode.seq2seq import Seq2SeqCard, Seq2SeqDecoder, read_seq2seq_card
from ka2l_ray.decode.standards import stored_standards
from ka2l_ray.decode.states import decode_states
from ka2l_ray.models.abilities import Abilities
from ka2l_ray.models.layers import load_up_to
from ka2l_ray.models.loading import load_model

Card = DecoderCard | SelfCard | Seq2SeqCard
KINDS: dict[str, Callable[[Path], Card]] = {"self": read_self_card, "seq2seq": read_seq2seq_card, "t5": read_card}
WRITTEN_AT_ONCE = 64
"""Texts that are decoded together."""


class Decoder(Protocol):
    """Reads states of questions, standardises them, and writes questions from them."""

    card: Any
    blocks: Any
    """What reads states, within `reading`; None in one that only writes."""

    def reading(self) -> AbstractContextManager[Any]: ...

    def standardised(self, states: QuestionStates) -> QuestionStates: ...

    def write(self, states: QuestionStates, ids: Sequence[str], seed: int, temperature: float) -> list[str]:
        """A question for each row of standardised states; draws depend on (seed, id) alone."""
        ...


def write_all(
    decoder: Decoder, states: QuestionStates, ids: Sequence[str], seed: int, temperature: float = 0.0
) -> list[str]:
    """As `Decoder.write`, of any number of rows, some at a time."""
    parts = zip(states.batches(WRITTEN_AT_ONCE), range(0, len(ids), WRITTEN_AT_ONCE), strict=True)
    found = (decoder.write(part, ids[start : start + WRITTEN_AT_ONCE], seed, temperature) for part, start in parts)
    return [text for texts in found for text in texts]


def card_at(folder: Path) -> Card:
    """The card of a decoder. Raises `OSError`, `ValueError` or `TypeError` where the folder contains none."""
    card = json.loads((folder / CARD).read_text())
    kind = card.get("kind", "t5") if isinstance(card, dict) else None
    if kind not in KINDS:
        raise ValueError(f"{CARD} is of kind {kind!r}; known are {', '.join(f'`{k}`' for k in KINDS)}")
    return KINDS[kind](folder)


def load_decoder(
    folder: Path,
    model: ModelSection,
    tokenizer: PreTrainedTokenizerBase,
    deepest: int | None,
    abilities: Abilities,
    placement: Placement,
) -> Decoder:
    """A decoder, and the model's blocks up to its own layers and `deepest`; None for one that only writes, so that a
    decoder which is not the model itself has none. Raises `ConfigError` as the `load` of each does."""
    card, blocks = card_at(folder), None
    if isinstance(card, SelfCard):
        return _Self(folder, model, tokenizer, placement)
    if deepest is not None:
        blocks = load_up_to(max(card.layer, card.token_layer or 0, deepest), model, abilities, placement)
    if isinstance(card, Seq2SeqCard):
        return _Seq2Seq(folder, blocks, placement)
    return _T5(folder, blocks, tokenizer, placement)


class _T5:
    def __init__(
        self, folder: Path, blocks: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase, placement: Placement
    ) -> None:
        self.blocks, self._tokenizer = blocks, tokenizer
        self._decoder = StateDecoder.load(folder)
        self._decoder.to(placement.device)
        self.card = self._decoder.card

    def reading(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def standardised(self, states: QuestionStates) -> QuestionStates:
        return QuestionStates(self._decoder.standardised(states.pooled), states.tokens)

    def write(self, states: QuestionStates, ids: Sequence[str], seed: int, temperature: float) -> list[str]:
        raw = self._decoder.raw(states.pooled)
        return decode_states(raw, self._decoder, ids, 0.0, temperature, seed, self._tokenizer)


class _Seq2Seq:
    def __init__(self, folder: Path, blocks: PreTrainedModel | None, placement: Placement) -> None:
        self.blocks, self._decoder = blocks, Seq2SeqDecoder.load(folder).place(placement.device)
        self.card = self._decoder.card

    def reading(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def standardised(self, states: QuestionStates) -> QuestionStates:
        return self._decoder.standardised(states)

    def write(self, states: QuestionStates, ids: Sequence[str], seed: int, temperature: float) -> list[str]:
        return self._decoder.write(self._decoder.raw(states), ids, seed, temperature)


class _Self:
    def __init__(
        self, folder: Path, model: ModelSection, tokenizer: PreTrainedTokenizerBase, placement: Placement
    ) -> None:
        decoder = SelfDecoder.load(folder, load_model(model, placement=placement), tokenizer)
        self._decoder = decoder.place(placement.device)
        self.card, self.blocks = self._decoder.card, self._decoder.base

    def reading(self) -> AbstractContextManager[Any]:
        return self._decoder.as_studied()

    def standardised(self, states: QuestionStates) -> QuestionStates:
        return self._decoder.standardised(states)

    def write(self, states: QuestionStates, ids: Sequence[str], seed: int, temperature: float) -> list[str]:
        return self._decoder.write(self._decoder.raw(states), ids, seed, temperature)


def standardise(folder: Path) -> Callable[[QuestionStates], QuestionStates]:
    """How the decoder in a folder standardises states, without the studied model."""
    card = card_at(folder)
    prefixes = ("", "") if isinstance(card, DecoderCard) else ("of_pooled.", "of_tokens.")
    pooled, tokens = (stored_standards(folder, card.width, prefix) for prefix in prefixes)
    return lambda states: QuestionStates(pooled.less(states.pooled), [tokens.less(t) for t in states.tokens])
