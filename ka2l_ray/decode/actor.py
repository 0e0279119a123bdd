"""The decoding actor: the state of a source question becomes a wanted state, from which questions are decoded; they are
re-embedded, and of those that could be kept the one nearest to what was wanted is taken and scored. A correction adds
half of what that one lacks to the state, and decodes again.

In: batches of `requests` with the sources' prompts (`prompts.PROMPT_COLUMNS`). Out: the columns that `schema.py` lists
for `written`. The decoder sees states, never text. Beside one of kind `t5` or `seq2seq` the model's blocks are loaded
up to the deepest that decoder or probe reads, and nothing after them; for `self` the whole model.
Refuses to know: Ray, which questions exist.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ka2l_ray.config import DecodeSection, ModelSection, PromptSection
from ka2l_ray.dataflow.placement import CPU, Placement
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.decode.augment import Augmenter
from ka2l_ray.decode.decoders import load_decoder
from ka2l_ray.decode.filters import is_well_formed
from ka2l_ray.decode.grounding import Names
from ka2l_ray.decode.question_states import QuestionStates
from ka2l_ray.decode.states import decoder_folder
from ka2l_ray.decode.whom import NO_GROUPS, CommonWords, whom_tokens
from ka2l_ray.errors import ConfigError
from ka2l_ray.models.abilities import Abilities
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.engine import Engine
from ka2l_ray.models.loading import load_tokenizer
from ka2l_ray.models.probe import LinearProbe, score_states
from ka2l_ray.tables import error_column, fixed_size, not_finite
from ka2l_ray.text.normal import normalize
from ka2l_ray.text.prompts import Prompt, Prompter, prompts_of
from ka2l_ray.text.tokens import pad_id

CORRECTED = 0.5
"""Part of what the best text so far lacks of a wanted state that a correction adds to what is decoded next. On the
world 0.5 does better than 1."""
ITSELF = ("none", "itself")
"""Ways that leave the state as it is and want the source again: greedily, or as the best of the candidates."""
WRITTEN_AT_ONCE = 64
"""Texts that are decoded together."""
REQUESTED = ["id", "source_id", "variant", "augment", "group", "question", "entity", "turn", "asked"]


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
class _Text:
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


class DecodeActor:
    """Raises `ConfigError` for a decoder that was trained on states of another model or prompt, or whose files do not
    match."""

    def __init__(self, setup: DecodeSetup) -> None:
        model, prompt, decode, placement = setup.model, setup.prompt, setup.decode, setup.placement
        self._tokenizer, self._probe = load_tokenizer(model), LinearProbe.load(setup.probe)
        self._decoder = load_decoder(
            decoder_folder(setup.decoder), model, self._tokenizer, self._probe.card.layer, setup.abilities, placement
        )
        self._card = self._decoder.card
        self._decode, self._seed, self._common = decode, setup.seed, setup.common
        self._augmenter = Augmenter(decode, setup.seed, None, np.empty((0, self._card.width), np.float32))
        if setup.augmenter is not None:
            self._augmenter = Augmenter.load(setup.augmenter, decode, setup.seed)
        if (self._card.model, self._card.prompt) != (model.identity, prompt.template):
            raise ConfigError(
                f"decode.decoder = {setup.decoder!r} reads states of model {self._card.model!r} under prompt "
                f"{self._card.prompt!r}, not of {model.identity!r} under {prompt.template!r}"
            )
        self._prompts = Prompter(self._tokenizer, prompt)
        shared, pad = self._prompts.shared, pad_id(self._tokenizer)
        with self._decoder.reading():
            self._engine = Engine(self._decoder.blocks, pad, shared, setup.limits, setup.abilities)
        self.tally = self._engine.tally

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        """Columns for a batch of any size; questions that cannot be read get an `error`."""
        requests = batch.select(REQUESTED).to_pylist()
        source, failed = self._sources(prompts_of(batch), requests)
        asked = self._asked(requests)
        wanted, targets = self._augmenter.wanted(source, requests, asked)
        exhausted = [self._is_steered(r) and t is None for r, t in zip(requests, targets, strict=True)]
        many = [
            1 if done or r["augment"] == "none" else self._decode.candidates
            for r, done in zip(requests, exhausted, strict=True)
        ]
        tried = [(n, c) for n, count in enumerate(many) for c in range(count)]
        texts = self._candidates(wanted, requests, tried, exhausted)
        best: dict[int, _Text] = {}
        _keep_better(best, self._read_back(texts, [n for n, _ in tried], wanted, requests, asked))
        after = self._correct(best, wanted, requests, asked, exhausted)
        chosen = [best[n] for n in range(len(requests))]
        states = np.stack([text.state for text in chosen]) if chosen else wanted.pooled
        failed |= {n: text.error for n, text in best.items() if text.error is not None and n not in failed}
        columns: dict[str, Any] = {
            "decoded_question": [text.text for text in chosen],
            "target": targets,
            "exhausted": exhausted,
            "asks": [text.asks[0] for text in chosen],
            "reworded": [text.reworded for text in chosen],
            "name": [text.name for text in chosen],
            "similarity": _cosine(states, wanted.pooled).astype("float32"),
            "explained": np.array([text.explained for text in chosen], "float32"),
            "explained_after": after,
            "p_unknown": np.array([text.p_unknown for text in chosen], "float32"),
            "state": fixed_size(states, failed, half=False),
        }
        return columns | error_column(failed, batch.num_rows)

    def _correct(
        self,
        best: dict[int, _Text],
        wanted: QuestionStates,
        requests: list[dict[str, Any]],
        asked: list[frozenset[int]],
        exhausted: list[bool],
    ) -> list[list[float]]:
        """Replace texts by nearer ones, round by round. Returns of each request the share that its best text explains,
        at first and after each round; where the wanted state is not what counts, there are none."""
        after = [[best[n].explained] for n in range(len(requests))]
        counts = [r["augment"] not in ("none", "temperature") for r in requests]
        again = [n for n, so in enumerate(counts) if so and not exhausted[n] and best[n].error is None]
        aim = wanted.pooled[again]
        for _ in range(self._decode.corrections if again else 0):
            aim += CORRECTED * (wanted.pooled[again] - np.stack([best[n].state for n in again]))
            aimed = QuestionStates(aim, [wanted.tokens[n] for n in again])
            texts = self._decoded(aimed, [requests[n]["id"] for n in again])
            new = {n: text for n, text in zip(again, texts, strict=True) if text != best[n].text}
            if new:  # the others are read already
                _keep_better(best, self._read_back([*new.values()], [*new], wanted, requests, asked))
            for n in again:
                after[n].append(best[n].explained)
        return after

    def _read_back(
        self,
        texts: list[str],
        at: list[int],
        wanted: QuestionStates,
        requests: list[dict[str, Any]],
        asked: list[frozenset[int]],
    ) -> Iterator["tuple[int, _Text]"]:
        """Of each text, written for the request `at` its place, what it is by its own state."""
        states, p_unknown, unreadable = self._written(texts)
        explained, asks = _explained(states, wanted.pooled[at]), self._asks(states)
        for k, (n, text) in enumerate(zip(at, texts, strict=True)):
            request, name, (_, aspect) = requests[n], self._name(text, requests[n]), asks[k]
            again = request["augment"] in ITSELF
            known = name is not None and name == normalize(request["entity"] or "") and aspect in asked[n]
            new = is_well_formed(text, self._augmenter.marked) and (again or _differ(text, request["question"]))
            rank = (k not in unreadable, new, name is not None, again or not known, float(explained[k]))
            yield n, _Text(text, states[k], float(p_unknown[k]), asks[k], known, name, unreadable.get(k), rank)

    def _is_steered(self, request: dict[str, Any]) -> bool:
        return request["augment"] == "steer" and self._augmenter.steering is not None

    def _asked(self, requests: list[dict[str, Any]]) -> list[frozenset[int]]:
        """Of each request the aspects that its entity is asked about already, by group or else by the question's own
        state; one that cannot be read counts for none."""
        if (steering := self._augmenter.steering) is None:
            return [frozenset()] * len(requests)
        group_of = {a["question"]: a["group"] for r in requests for a in r["asked"] or ()}
        texts = list(group_of)
        unread = [t for t in texts if not (steering.by_group and group_of[t] in steering.names)]
        states, failed = np.zeros((len(texts), self._card.width), np.float32), set[str]()
        if unread:
            read, _, errors = self._read(self._prompts(unread), scored=False)
            place = {text: n for n, text in enumerate(texts)}
            states[[place[t] for t in unread]] = read.pooled
            failed = {unread[n] for n in errors}
        groups = steering.groups_of(states, [group_of[t] for t in texts])
        aspect = {t: steering.aspects[g] for t, g in zip(texts, groups, strict=True) if t not in failed}
        return [frozenset(aspect[a["question"]] for a in r["asked"] or () if a["question"] in aspect) for r in requests]

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

    def _candidates(
        self,
        wanted: QuestionStates,
        requests: list[dict[str, Any]],
        tried: list[tuple[int, int]],
        exhausted: list[bool],
    ) -> list[str]:
        """A text for each (row, candidate): the first of a row is greedy, unless other words are all that is wanted,
        the others are drawn at `temperature`; empty where nothing is left to ask."""
        texts = [""] * len(tried)
        left = [k for k, (n, _) in enumerate(tried) if not exhausted[n]]
        greedy = [k for k in left if tried[k][1] == 0 and requests[tried[k][0]]["augment"] != "temperature"]
        drawn = sorted({*left} - {*greedy})
        for at, temperature in ((greedy, 0.0), (drawn, self._decode.temperature)):
            ids = [f"{requests[tried[k][0]]['id']}\x1f{tried[k][1]}" for k in at]
            found = self._decoded(wanted[[tried[k][0] for k in at]], ids, temperature)
            for k, text in zip(at, found, strict=True):
                texts[k] = text
        return texts

    def _decoded(self, states: QuestionStates, ids: list[str], temperature: float = 0.0) -> list[str]:
        """A text for each row of states."""
        parts = zip(states.batches(WRITTEN_AT_ONCE), range(0, len(ids), WRITTEN_AT_ONCE), strict=True)
        found = (
            self._decoder.write(part, ids[start : start + WRITTEN_AT_ONCE], self._seed, temperature)
            for part, start in parts
        )
        return [text for texts in found for text in texts]

    def _sources(
        self, prompts: list[Prompt], requests: list[dict[str, Any]]
    ) -> tuple[QuestionStates, dict[int, Exception]]:
        """Of the sources the standardised states that the decoder reads, and the errors of those that cannot be read,
        whose states are zero. A source of several requests is read once."""
        whom = whom_tokens(self._prompts, requests, self._common)
        first, rows = _once([r["source_id"] for r in requests])
        states, _, failed = self._read([prompts[n] for n in first], [whom[n] for n in first], scored=False)
        return states[rows], {n: failed[row] for n, row in enumerate(rows) if row in failed}

    def _written(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray, dict[int, Exception]]:
        """As `_sources`, of what was written, pooled states (N, D) alone; and P(unknown) (N,)."""
        first, rows = _once(texts)
        states, p_unknown, failed = self._read(self._prompts([texts[n] or "?" for n in first]))
        return states.pooled[rows], p_unknown[rows], {n: failed[row] for n, row in enumerate(rows) if row in failed}

    def _read(
        self, prompts: list[Prompt], whom: list[tuple[int, int]] | None = None, scored: bool = True
    ) -> tuple[QuestionStates, np.ndarray, dict[int, Exception]]:
        """From one pass per prompt. States of tokens are read where `whom` says of which, and the decoder reads any.
        P(unknown) is NaN where it is not wanted (`scored`): the pass ends at the decoder's layer then, not at the
        probe's."""
        mine, probe, at = self._card, self._probe.card, self._card.token_layer
        wanted = [mine, probe] if scored else [mine]
        layers, positions = sorted({c.layer for c in wanted}), sorted({c.position for c in wanted})
        with self._decoder.reading():
            if whom is not None and at is not None:
                of_layer, states, failed = self._engine.token_states(prompts, whom, [at], layers, positions)
                tokens = of_layer[at]
            else:
                states, failed = self._engine.states(prompts, layers, positions)
                tokens = [np.zeros((0, mine.width), np.float32)] * len(prompts)
        failed |= not_finite(states)
        read = self._decoder.standardised(QuestionStates(states[mine.position, mine.layer], tokens))
        read.pooled[list(failed)] = 0.0
        read = QuestionStates(read.pooled, [t[:0] if n in failed else t for n, t in enumerate(read.tokens)])
        scores = (
            score_states(states[probe.position, probe.layer], self._probe) if scored else np.full(len(read), np.nan)
        )
        return read, scores, failed


def _keep_better(best: dict[int, _Text], found: Iterator[tuple[int, _Text]]) -> None:
    """Of each request the first of the texts that none is better than."""
    for n, text in found:
        if n not in best or text.rank > best[n].rank:
            best[n] = text


def _once(names: list[str]) -> tuple[list[int], list[int]]:
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
