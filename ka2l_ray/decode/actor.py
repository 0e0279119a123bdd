"""The decoding actors: a source question's state becomes a wanted state, from which questions are decoded; they are
re-embedded, and of those that could be kept the one nearest to what was wanted is taken and scored (`rereading`). A
correction adds half of what that one lacks to the state, and decodes again.

In: batches of `requests` with the sources' prompts (`prompts.PROMPT_COLUMNS`). Out: the columns that `schema.py` lists
for `written` or, where they are re-embedded elsewhere, for `candidates`. The decoder sees states, never text. Beside
one of kind `t5` or `seq2seq` the model's blocks are loaded up to the deepest that decoder or probe reads, and nothing
after them; for `self` the whole model.
Refuses to know: Ray, which questions exist.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from ka2l_ray.decode.decoders import load_decoder, write_all
from ka2l_ray.decode.question_states import QuestionStates
from ka2l_ray.decode.rereading import DecodeSetup, Judge, Reader, Text, Wanted, augmenter_of, once
from ka2l_ray.decode.states import decoder_folder
from ka2l_ray.decode.whom import whom_tokens
from ka2l_ray.models.loading import load_tokenizer
from ka2l_ray.models.probe import LinearProbe
from ka2l_ray.tables import error_column, fixed_size
from ka2l_ray.text.prompts import Prompt, prompts_of

CORRECTED = 0.5
"""Part of what the best text so far lacks of a wanted state that a correction adds to what is decoded next. On the
world 0.5 does better than 1."""
REQUESTED = ["id", "source_id", "variant", "augment", "group", "question", "entity", "turn", "asked"]


class CandidatesActor:
    """Writes candidates, and leaves them to `RereadActor`s. Raises `ConfigError` for a decoder that was trained on
    states of another model or prompt, or whose files do not match."""

    def __init__(self, setup: DecodeSetup) -> None:
        self._load(setup, 0)

    def _load(self, setup: DecodeSetup, deepest: int) -> None:
        """`deepest` is the last block that is read besides those that the decoder reads."""
        model, folder, tokenizer = setup.model, decoder_folder(setup.decoder), load_tokenizer(setup.model)
        self._decoder = load_decoder(folder, model, tokenizer, deepest, setup.abilities, setup.placement)
        parts = (self._decoder.card, self._decoder.blocks, tokenizer, self._decoder.standardised)
        self._reader = Reader(setup, *parts, self._decoder.reading)
        self._decode, self._seed, self._common = setup.decode, setup.seed, setup.common
        self._augmenter, self.tally = augmenter_of(setup, self._reader.card.width), self._reader.engine.tally

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        """Columns for a batch of any size; questions that cannot be read get an `error`."""
        wanted, failed = self._wanted(batch)
        tried = self._tried(wanted)
        texts: list[list[str]] = [[] for _ in wanted.requests]
        for (n, _), text in zip(tried, self._candidates(wanted, tried), strict=True):
            texts[n].append(text)
        return {
            "wanted": fixed_size(wanted.states.pooled, failed, half=False),
            "target": wanted.targets,
            "exhausted": wanted.exhausted,
            "aspects": [sorted(aspects) for aspects in wanted.asked],
            "texts": texts,
            **error_column(failed, batch.num_rows),
        }

    def _wanted(self, batch: pa.Table) -> tuple[Wanted, dict[int, Exception]]:
        """What is wanted, and the errors of the requests whose source cannot be read."""
        requests = batch.select(REQUESTED).to_pylist()
        source, failed = self._sources(prompts_of(batch), requests)
        asked = self._asked(requests)
        states, targets = self._augmenter.wanted(source, requests, asked)
        exhausted = [self._is_steered(r) and t is None for r, t in zip(requests, targets, strict=True)]
        return Wanted(requests, states, targets, asked, exhausted), failed

    def _tried(self, wanted: Wanted) -> list[tuple[int, int]]:
        """Each (row, candidate)."""
        many = [
            1 if done or r["augment"] == "none" else self._decode.candidates
            for r, done in zip(wanted.requests, wanted.exhausted, strict=True)
        ]
        return [(n, c) for n, count in enumerate(many) for c in range(count)]

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
        states, failed = np.zeros((len(texts), self._reader.card.width), np.float32), set[str]()
        if unread:
            read, _, errors = self._reader.read(self._reader.prompts(unread), scored=False)
            place = {text: n for n, text in enumerate(texts)}
            states[[place[t] for t in unread]] = read.pooled
            failed = {unread[n] for n in errors}
        groups = steering.groups_of(states, [group_of[t] for t in texts])
        aspect = {t: steering.aspects[g] for t, g in zip(texts, groups, strict=True) if t not in failed}
        return [frozenset(aspect[a["question"]] for a in r["asked"] or () if a["question"] in aspect) for r in requests]

    def _candidates(self, wanted: Wanted, tried: list[tuple[int, int]]) -> list[str]:
        """A text for each (row, candidate): the first of a row is greedy, unless other words are all that is wanted,
        the others are drawn at `temperature`; empty where nothing is left to ask."""
        texts = [""] * len(tried)
        left = [k for k, (n, _) in enumerate(tried) if not wanted.exhausted[n]]
        greedy = [k for k in left if tried[k][1] == 0 and wanted.requests[tried[k][0]]["augment"] != "temperature"]
        drawn = sorted({*left} - {*greedy})
        for at, temperature in ((greedy, 0.0), (drawn, self._decode.temperature)):
            ids = [f"{wanted.requests[tried[k][0]]['id']}\x1f{tried[k][1]}" for k in at]
            found = write_all(self._decoder, wanted.states[[tried[k][0] for k in at]], ids, self._seed, temperature)
            for k, text in zip(at, found, strict=True):
                texts[k] = text
        return texts

    def _sources(
        self, prompts: list[Prompt], requests: list[dict[str, Any]]
    ) -> tuple[QuestionStates, dict[int, Exception]]:
        """Of the sources the standardised states that the decoder reads, and the errors of those that cannot be read,
        whose states are zero. A source of several requests is read once."""
        whom = whom_tokens(self._reader.prompts, requests, self._common)
        first, rows = once([r["source_id"] for r in requests])
        states, _, failed = self._reader.read([prompts[n] for n in first], [whom[n] for n in first], scored=False)
        return states[rows], {n: failed[row] for n, row in enumerate(rows) if row in failed}


class DecodeActor(CandidatesActor):
    """Writes, re-embeds and chooses, with one copy of the model's weights. Raises as `CandidatesActor` does."""

    def __init__(self, setup: DecodeSetup) -> None:
        self._load(setup, LinearProbe.load(setup.probe).card.layer)
        self._judge = Judge(self._reader, self._augmenter)

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        """Columns for a batch of any size; questions that cannot be read get an `error`."""
        wanted, failed = self._wanted(batch)
        tried, best = self._tried(wanted), dict[int, Text]()
        self._judge.best(self._candidates(wanted, tried), [n for n, _ in tried], wanted, best)
        after = self._correct(best, wanted)
        return self._judge.columns(best, after, wanted, failed)

    def _correct(self, best: dict[int, Text], wanted: Wanted) -> list[list[float]]:
        """Replace texts by nearer ones, round by round. Returns of each request the share that its best text explains,
        at first and after each round; where the wanted state is not what counts, there are none."""
        requests, aims = wanted.requests, wanted.states
        after = [[best[n].explained] for n in range(len(requests))]
        counts = [r["augment"] not in ("none", "temperature") for r in requests]
        again = [n for n, so in enumerate(counts) if so and not wanted.exhausted[n] and best[n].error is None]
        aim = aims.pooled[again]
        for _ in range(self._decode.corrections if again else 0):
            aim += CORRECTED * (aims.pooled[again] - np.stack([best[n].state for n in again]))
            aimed = QuestionStates(aim, [aims.tokens[n] for n in again])
            texts = write_all(self._decoder, aimed, [requests[n]["id"] for n in again], self._seed)
            new = {n: text for n, text in zip(again, texts, strict=True) if text != best[n].text}
            if new:  # the others are read already
                self._judge.best([*new.values()], [*new], wanted, best)
            for n in again:
                after[n].append(best[n].explained)
        return after
