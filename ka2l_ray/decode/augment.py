"""Wanted states: which states new questions are decoded from, by the way in which they are made.

In: standardised states (B, D) of source questions. Out: the states (B, D) of the questions that are wanted.
`steer` asks something else about the same thing, `interpolate` goes half of the way to a near question that is unknown
too, `noise` shakes the state, `temperature` leaves it and draws other words; `none` reconstructs the source.
Refuses to know: decoders, texts, Ray. Source: KA2L, stage 2, for the aim; `steer` replaces what it does.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from ka2l_ray.config import DecodeSection
from ka2l_ray.config.knowing import Augment
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.decode.grounding import Names
from ka2l_ray.decode.question_states import QuestionStates
from ka2l_ray.decode.states import normal
from ka2l_ray.decode.steering import Steering, distances

STATES, CARD = "augmenter.safetensors", "augmenter.json"
INTERPOLATED = 0.5
"""How far `interpolate` goes towards the neighbour."""


@dataclass(frozen=True)
class Augmenter:
    """Makes wanted states. `steering` is None where nothing can be steered; `unknown` (M, D) are standardised states of
    questions that are labelled unknown; `names` are those that new questions must contain one of, None where
    nothing is checked."""

    decode: DecodeSection
    seed: int
    steering: Steering | None
    unknown: np.ndarray
    names: Names | None = None
    marked: bool = True
    """Whether the corpus's questions end with a question mark."""

    @classmethod
    def load(cls, folder: Folder, decode: DecodeSection, seed: int) -> "Augmenter":
        """From what `save` wrote. Raises `FileNotFoundError` where there is none."""
        tensors, card = load((folder / STATES).read_bytes()), (folder / CARD).read_json()
        steering = None
        if (made := card["steering"]) is not None:
            targets = tuple(map(tuple, made["targets"]))
            of_tokens = tensors.get("token_centroids")
            names, by_group, found = tuple(made["names"]), made["by_group"], made["found"]
            same = tuple(made["same"])
            steering = Steering(names, tensors["centroids"], targets, by_group, found, of_tokens, same)
        names = None if card["names"] is None else Names(frozenset(card["names"]))
        return cls(decode, seed, steering, tensors["unknown"], names, card["marked"])

    def save(self, folder: Folder) -> None:
        """Write what is fitted: states, then a card: a folder with that is whole."""
        tensors, made = {"unknown": np.ascontiguousarray(self.unknown)}, None
        if (steering := self.steering) is not None:
            tensors["centroids"] = np.ascontiguousarray(steering.centroids)
            if steering.token_centroids is not None:
                tensors["token_centroids"] = np.ascontiguousarray(steering.token_centroids)
            made = {"names": steering.names, "targets": steering.targets, "same": steering.same}
            made |= {"by_group": steering.by_group, "found": steering.found}
        (folder / STATES).write_bytes(save(tensors))
        names = None if self.names is None else sorted(self.names.names)
        (folder / CARD).write_json({"steering": made, "names": names, "marked": self.marked})

    def wanted(
        self,
        source: QuestionStates,
        requests: Sequence[Mapping[str, Any]],
        asked: Sequence[Set[int]] | None = None,
    ) -> tuple[QuestionStates, list[str | None]]:
        """Wanted states for standardised ones of B questions and rows of `requests`, and for each that is steered the
        group that it is steered to; None, and the state as it is, where nothing is left to ask: `asked` are the
        aspects that its entity is asked about. Steering moves the states of tokens too, which are in the light of what
        is asked; the other ways leave them."""
        states, tokens = source.pooled, list(source.tokens)
        wanted, targets = states.copy(), list[str | None]([None] * len(states))
        rows: dict[str, list[int]] = {}
        for n, request in enumerate(requests):
            rows.setdefault(request["augment"], []).append(n)
        if (steering := self.steering) is not None and (at := rows.get("steer")):
            own = steering.groups_of(states[at], [requests[n]["group"] for n in at])
            to = [
                steering.target(g, thing_of(requests[n]), requests[n]["turn"], asked[n] if asked else frozenset())
                for n, g in zip(at, own, strict=True)
            ]
            wanted[at] = steering.steered(states[at], own, to)
            for n, group, target in zip(at, own, to, strict=True):
                targets[n] = None if target is None else steering.names[target]
                if target is not None and len(tokens[n]) and steering.token_centroids is not None:
                    tokens[n] = tokens[n] - steering.token_centroids[group] + steering.token_centroids[target]
        if len(self.unknown) and (at := rows.get("interpolate")):
            wanted[at] += INTERPOLATED * (self._neighbours(states[at], [requests[n] for n in at]) - states[at])
        if at := rows.get("noise"):
            ids = [requests[n]["id"] for n in at]
            wanted[at] += self.decode.noise * normal(self.seed, ids, states.shape[1])
        return QuestionStates(wanted.astype(np.float32), tokens), targets

    def _neighbours(self, states: np.ndarray, requests: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Of each state the unknown one that is nearest but for as many as its variant counts."""
        order = np.argsort(distances(states, self.unknown), 1)
        return self.unknown[[row[r["variant"] % len(row)] for row, r in zip(order, requests, strict=True)]]


def decoded_id(source_id: str, augment: Augment, variant: int) -> str:
    """Id of a decoded question: a hash of its source, of how it was made, and of which of those it is."""
    return "d" + hashlib.blake2b(f"{source_id}\x1f{augment}\x1f{variant}".encode(), digest_size=10).hexdigest()


def source_fields(source: Mapping[str, Any]) -> dict[str, Any]:
    """What a request says of its source."""
    return {name: source.get(name) for name in ("question", "group", "entity")}


def thing_of(request: Mapping[str, Any]) -> str:
    """What a request is about: its entity or, where that is unknown, its source alone."""
    return request["entity"] or request["source_id"]


def requests_for(
    sources: Iterable[Mapping[str, Any]],
    decode: DecodeSection,
    asked: Mapping[str, Sequence[Mapping[str, str | None]]] | None = None,
) -> list[dict[str, Any]]:
    """Rows of `requests`: of each source, with `id`, `question`, `group` and perhaps `entity`, the variants of each way
    to augment. `asked` says of an entity what is asked about it already. `turn` counts the requests about one entity
    made in one way, so that each may ask something else."""
    rows, turns = [], Counter[tuple[str, str]]()
    asked, sources = asked or {}, list(sources)
    for augment in decode.augment:
        for variant in range(decode.variants):
            for source in sources:
                row = {"id": decoded_id(source["id"], augment, variant), "source_id": source["id"]}
                row |= {"variant": variant, "augment": augment} | source_fields(source)
                turn, row["asked"] = (augment, thing_of(row)), list(asked.get(row["entity"] or "", ()))
                rows.append(row | {"turn": turns[turn]})
                turns[turn] += 1
    return rows
