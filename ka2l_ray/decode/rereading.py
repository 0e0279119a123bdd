"""What texts are by their own states, and which of a request's is taken: the second half of decoding.

In: texts, what was wanted; or batches of `candidates`. Out: the columns that `schema.py` lists for `written`.
`RereadActor` holds the model's first blocks alone, up to the deepest that decoder or probe reads, and no decoder;
`actor.DecodeActor` does the same with the blocks that it has.
Refuses to know: Ray, how texts are written.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ka2l_ray.config import DecodeSection, ModelSection, PromptSection
from ka2l_ray.dataflow.placement import CPU, Placement
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.decode.augment import Augmenter
from ka2l_ray.decode.decoders import Card, card_at, standardise
from ka2l_ray.decode.filters import is_well_formed
from ka2l_ray.decode.grounding import Names
from ka2l_ray.decode.question_states import QuestionStates
from ka2l_ray.decode.states import decoder_folder
from ka2l_ray.decode.whom import NO_GROUPS, CommonWords
from ka2l_ray.errors import ConfigError
from ka2l_ray.models.abilities import Abilities
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.engine import Engine
from ka2l_ray.models.layers import load_up_to
from ka2l_ray.models.loading import load_tokenizer
from ka2l_ray.models.probe import LinearProbe, score_states
from ka2l_ray.tables import error_column, fixed_size, matrix, not_finite
from ka2l_ray.text.normal import normalize
from ka2l_ray.text.prompts import Prompt, Prompter
from ka2l_ray.text.tokens import pad_id

REREAD = ("augment", "question", "entity")
"""What re-reading knows of a request."""
ITSELF = ("none", "itself")
"""Ways that leave the state as it is and want the source again: greedily, or as the best of the candidates."""


@dataclass(frozen=True, kw_only=True)
class DecodeSetup:
    """`decoder` is `world`, a folder or a URI; `probe` the folder of a fitted probe; `augmenter` one that
    `Augmenter.save` wrote, None where questions are reconstructed alone. `common` tells which words say what is
    asked."""

    model: ModelSection
    prompt: PromptSection
    decode: DecodeSection
    decoder: str
    probe: Folder
    seed: int
    augmenter: Folder | None = None
    common: CommonWords = NO_GROUPS
    limits: Limits = Limits()
    placement: Placement = CPU
    abilities: Abilities = Abilities()


@dataclass(frozen=True)
class Wanted:
    """Of B requests, rows of `requests`, what is wanted: standardised states, the groups they were steered to, the
    aspects of their entities that are asked about already, and whether nothing is left to ask."""

    requests: list[dict[str, Any]]
    states: QuestionStates
    targets: list[str | None]
    asked: list[frozenset[int]]
    exhausted: list[bool]


@dataclass(frozen=True)
class Text:
    """What was written for a request: its own standardised state (D,), the group that it asks and of which aspect, and
    how it compares with others (`rank`): readable, new, with a name, of something not asked yet, near what was
    wanted."""

    text: str
    state: np.ndarray
    p_unknown: float
    asks: tuple[str | None, int | None]
    reworded: bool
    name: str | None
    error: Exception | None
    rank: tuple[bool, bool, bool, bool, float]

    @property
    def explained(self) -> float:
        """Share of the wanted state's variance that its own explains."""
        return self.rank[-1]


class Reader:
    """Reads prompts as a decoder and the probe need them: the decoder's states, standardised, and P(unknown).

    `blocks` read within `as_studied`. Raises `ConfigError` for a decoder of states of another model or prompt."""

    def __init__(
        self,
        setup: DecodeSetup,
        card: Card,
        blocks: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        standardised: Callable[[QuestionStates], QuestionStates],
        as_studied: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        if (card.model, card.prompt) != (setup.model.identity, setup.prompt.template):
            raise ConfigError(
                f"decode.decoder = {setup.decoder!r} reads states of model {card.model!r} under prompt "
                f"{card.prompt!r}, not of {setup.model.identity!r} under {setup.prompt.template!r}"
            )
        self.card, self.prompts = card, Prompter(tokenizer, setup.prompt)
        self._probe, self._standardised, self._as_studied = LinearProbe.load(setup.probe), standardised, as_studied
        with as_studied():
            self.engine = Engine(blocks, pad_id(tokenizer), self.prompts.shared, setup.limits, setup.abilities)

    def read(
        self, prompts: Sequence[Prompt], whom: list[tuple[int, int]] | None = None, scored: bool = True
    ) -> tuple[QuestionStates, np.ndarray, dict[int, Exception]]:
        """From one pass per prompt. States of tokens are read where `whom` says of which, and the decoder reads any.
        P(unknown) is NaN where it is not wanted (`scored`): the pass ends at the decoder's layer then, not at the
        probe's."""
        mine, probe, at = self.card, self._probe.card, self.card.token_layer
        wanted = [mine, probe] if scored else [mine]
        layers, positions = sorted({c.layer for c in wanted}), sorted({c.position for c in wanted})
        with self._as_studied():
            if whom is not None and at is not None:
                of_layer, states, failed = self.engine.token_states(prompts, whom, [at], layers, positions)
                tokens = of_layer[at]
            else:
                states, failed = self.engine.states(prompts, layers, positions)
                tokens = [np.zeros((0, mine.width), np.float32)] * len(prompts)
        failed |= not_finite(states)
        read = self._standardised(QuestionStates(states[mine.position, mine.layer], tokens))
        read.pooled[list(failed)] = 0.0
        read = QuestionStates(read.pooled, [t[:0] if n in failed else t for n, t in enumerate(read.tokens)])
        scores = (
            score_states(states[probe.position, probe.layer], self._probe) if scored else np.full(len(read), np.nan)
        )
        return read, scores, failed


class Judge:
    """Tells of texts what they are by their own states, and which of a request's is best."""

    def __init__(self, reader: Reader, augmenter: Augmenter) -> None:
        self._reader, self._augmenter = reader, augmenter

    def best(self, texts: list[str], at: Sequence[int], wanted: Wanted, best: dict[int, Text]) -> None:
        """Of texts, each written for the request `at` its place, the first of each request that none is better than;
        those in `best` came before, and are replaced there."""
        for n, text in self._read_back(texts, at, wanted):
            if n not in best or text.rank > best[n].rank:
                best[n] = text

    def columns(
        self, best: Mapping[int, Text], after: list[list[float]], wanted: Wanted, failed: dict[int, Exception]
    ) -> dict[str, Any]:
        """Columns of `written`; `after` is `explained_after`, `failed` the errors of requests so far."""
        chosen = [best[n] for n in range(len(wanted.requests))]
        states = np.stack([text.state for text in chosen]) if chosen else wanted.states.pooled
        failed |= {n: text.error for n, text in best.items() if text.error is not None and n not in failed}
        columns: dict[str, Any] = {
            "decoded_question": [text.text for text in chosen],
            "target": wanted.targets,
            "exhausted": wanted.exhausted,
            "asks": [text.asks[0] for text in chosen],
            "reworded": [text.reworded for text in chosen],
            "name": [text.name for text in chosen],
            "similarity": _cosine(states, wanted.states.pooled).astype("float32"),
            "explained": np.array([text.explained for text in chosen], "float32"),
            "explained_after": after,
            "p_unknown": np.array([text.p_unknown for text in chosen], "float32"),
            "state": fixed_size(states, failed, half=False),
        }
        return columns | error_column(failed, len(chosen))

    def _read_back(self, texts: list[str], at: Sequence[int], wanted: Wanted) -> Iterator[tuple[int, Text]]:
        """Of each text, written for the request `at` its place, what it is by its own state."""
        states, p_unknown, unreadable = self._written(texts)
        explained, asks = _explained(states, wanted.states.pooled[list(at)]), self._asks(states)
        for k, (n, text) in enumerate(zip(at, texts, strict=True)):
            request, name, (_, aspect) = wanted.requests[n], self._name(text, wanted.requests[n]), asks[k]
            again = request["augment"] in ITSELF
            known = name is not None and name == normalize(request["entity"] or "") and aspect in wanted.asked[n]
            new = is_well_formed(text, self._augmenter.marked) and (again or _differ(text, request["question"]))
            rank = (k not in unreadable, new, name is not None, again or not known, float(explained[k]))
            yield n, Text(text, states[k], float(p_unknown[k]), asks[k], known, name, unreadable.get(k), rank)

    def _asks(self, states: np.ndarray) -> list[tuple[str | None, int | None]]:
        """The groups of standardised states (N, D) and what they ask; None without groups."""
        if (steering := self._augmenter.steering) is None or not len(states):
            return [(None, None)] * len(states)
        return [(steering.names[g], steering.aspects[g]) for g in steering.group_of(states)]

    def _name(self, text: str, request: dict[str, Any]) -> str | None:
        """The name that a text contains: one that exists or, where nothing says which do, its source's entity."""
        if (names := self._augmenter.names) is None:
            names = Names.of([request["entity"]] if request["entity"] else [])
        return names.within(text)

    def _written(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray, dict[int, Exception]]:
        """Of texts the standardised states (N, D), P(unknown) (N,) and the errors of those that cannot be read. Each is
        read once."""
        first, rows = once(texts)
        states, p_unknown, failed = self._reader.read(self._reader.prompts([texts[n] or "?" for n in first]))
        return states.pooled[rows], p_unknown[rows], {n: failed[row] for n, row in enumerate(rows) if row in failed}


class RereadActor:
    """Raises as `Reader` does."""

    def __init__(self, setup: DecodeSetup) -> None:
        model, folder, tokenizer = setup.model, decoder_folder(setup.decoder), load_tokenizer(setup.model)
        card, probe = card_at(folder), LinearProbe.load(setup.probe).card
        blocks = load_up_to(max(card.layer, probe.layer), model, setup.abilities, setup.placement)
        reader = Reader(setup, card, blocks, tokenizer, standardise(folder))
        self._judge, self.tally = Judge(reader, augmenter_of(setup, card.width)), reader.engine.tally

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        """Columns for a batch of any size; requests whose best text cannot be read get an `error`."""
        rows = batch.select([*REREAD, "target", "exhausted", "aspects", "texts"]).to_pylist()
        wanted = Wanted(
            rows,
            QuestionStates.pooled_alone(matrix(batch["wanted"])),
            [r["target"] for r in rows],
            [frozenset(r["aspects"]) for r in rows],
            [r["exhausted"] for r in rows],
        )
        texts, at = [t for r in rows for t in r["texts"]], [n for n, r in enumerate(rows) for _ in r["texts"]]
        best = dict[int, Text]()
        self._judge.best(texts, at, wanted, best)
        return self._judge.columns(best, [[best[n].explained] for n in range(len(rows))], wanted, {})


def augmenter_of(setup: DecodeSetup, width: int) -> Augmenter:
    """What wanted states are made with; one that changes none where questions are reconstructed alone."""
    if setup.augmenter is None:
        return Augmenter(setup.decode, setup.seed, None, np.empty((0, width), np.float32))
    return Augmenter.load(setup.augmenter, setup.decode, setup.seed)


def once(names: Sequence[str]) -> tuple[list[int], list[int]]:
    """Where each distinct name comes first, and of all names which of those it is."""
    place = {name: n for n, name in enumerate(dict.fromkeys(names))}
    first = {name: n for n, name in reversed(list(enumerate(names)))}
    return [first[name] for name in place], [place[name] for name in names]


def _differ(text: str, source: str) -> bool:
    """Whether a text is not its source's."""
    return normalize(text) != normalize(source)


def _explained(states: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Shares (B,) of the variance of wanted states (B, D), which are standardised, that other states explain."""
    return 1 - ((states - wanted) ** 2).sum(1) / np.maximum((wanted**2).sum(1), 1e-12)


def _cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Cosines (B,) of states (B, D)."""
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return (one * other).sum(1) / np.maximum(norms, 1e-12)
