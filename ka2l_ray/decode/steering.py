"""Where new questions come from: states moved so that something else is asked about the same thing.

In: states (N, D) of questions, their groups and entities where there are any. Out: a `Steering`: a centroid per group,
the groups that each may be steered to, and which of them ask the same in other words; the steered states.
A question's state is, roughly, one part that says what is asked and one that says of whom. Taking away the mean state
of the question's own group and adding that of another changes the first and keeps the second, so that what is decoded
is a new question about the same thing, which the model is as likely not to know.
Refuses to know: decoders, texts, Ray, files.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors

from ka2l_ray.hashing import uniform

CLUSTERS = (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30)
"""Numbers of clusters that are tried where no groups are given."""
ROWS_PER_CLUSTER = 10
"""Questions that there must be for each cluster."""
STARTS = 10
"""Starts of each clustering, of which the best is taken."""
HELD_OUT = 0.3
"""Share of the entities (of the questions, where there are none) on which the number of clusters is chosen."""
SHARED_ENTITIES = 3
"""Entities that must be asked about in both groups before one is steered to the other."""
MOST_ROWS = 4096
"""Questions that groups are fitted on at most."""
NEIGHBOURS = 15
"""Names nearest to a name, by the states of what they are, that tell its kind."""
KIN = 0.5
"""Groups are about one kind of thing where among the neighbours of either's names the other's are at least this share
as frequent as its own, each relative to all names. On SmolLM2 and 20 relations of EntityQuestions and Wikidata (by
`reading.WHAT_IS`) pairs of different kinds have at most 0.40, but for bands and albums; most of one kind 0.5 to 1."""
KIN_ROWS = 30
"""Names that a group must have for its kind to be told."""
KIN_NAMES = 120
"""Names of a group that are asked of what kind they are. With 60, pairs of different kinds passed in 8 of 20
draws on SmolLM2, with 120 in none."""
FEWEST_KIN = 0.1
"""Where kinds are known: share of the questions whose group must have another, or clusters take the groups' place."""
EXPECTED = 5.0
"""Pairs of questions about one entity that two clusters must be expected to share for their sharing fewer to say
anything."""
AVOID = 0.3
"""Clusters ask the same in other words where, on average over their pairs, they share less than this part of the pairs
that chance would have them share: a corpus asks a fact once."""
COVERED = 0.5
"""Share of the questions whose group must have another to be steered to, or clusters take the groups' place."""


@dataclass(frozen=True)
class Steering:
    """`centroids` (G, D) of standardised states; `targets` are of each group the ones that it may be steered to, those
    with the most entities in common first; `names` are the given groups' where it is `by_group`, else the clusters'
    numbers. `found` is the share of questions whose thing is found again (see `same_thing`), of held-out ones where
    clusters were chosen by it; None where no entity is asked about twice."""

    names: tuple[str, ...]
    centroids: np.ndarray
    targets: tuple[tuple[int, ...], ...]
    by_group: bool = False
    found: float | None = None
    token_centroids: np.ndarray | None = None
    """Mean (G, D) of the groups' standardised token states; None where no states of tokens are read."""
    same: tuple[int, ...] = ()
    """What each group asks, as a number: groups with the same one ask the same in other words. Empty: each asks
    something of its own."""

    @cached_property
    def aspects(self) -> tuple[int, ...]:
        """What each group asks, as a number."""
        return self.same or tuple(range(len(self.names)))

    def group_of(self, states: np.ndarray) -> np.ndarray:
        """Indices (B,) of the groups whose centroids are nearest to states (B, D)."""
        return nearest(states, self.centroids)

    def groups_of(self, states: np.ndarray, named: Sequence[str | None]) -> list[int]:
        """Indices (B,) of the groups of questions: the `named` ones where it is `by_group`, else by states (B, D)."""
        index = {name: g for g, name in enumerate(self.names)} if self.by_group else {}
        near = map(int, self.group_of(states) if len(states) else ())
        return [index.get(name, g) if name else g for name, g in zip(named, near, strict=True)]

    def with_tokens(self, states: np.ndarray, tokens: np.ndarray, named: Sequence[str | None]) -> "Steering":
        """The same with the groups' mean token states, from those (N, D) of questions with states (N, D)."""
        own = np.array(self.groups_of(states, named))
        overall = tokens.mean(0)
        means = [tokens[own == g].mean(0) if (own == g).any() else overall for g in range(len(self.names))]
        return replace(self, token_centroids=np.stack(means).astype(np.float32))

    def target(self, group: int, thing: str, turn: int, asked: Set[int] = frozenset()) -> int | None:
        """The group that a question about a thing is steered to: one that asks what is not `asked` of it yet (aspects)
        and what no earlier turn asks; which of those that ask the same changes from thing to thing, and so does
        the order. None where nothing is left."""
        ways: dict[int, list[int]] = {}
        for target in self.targets[group]:
            if self.aspects[target] not in asked | {self.aspects[group]}:
                ways.setdefault(self.aspects[target], []).append(target)
        order = sorted(ways, key=lambda aspect: uniform("steer", f"{thing}\x1f{aspect}"))
        if turn >= len(order):
            return None
        found = ways[order[turn]]
        return found[int(uniform("way", f"{thing}\x1f{turn}") * len(found))]

    def steered(self, states: np.ndarray, groups: Sequence[int], targets: Sequence[int | None]) -> np.ndarray:
        """States (B, D) of `groups` (B,), moved to `targets` (B,); unchanged where there is none."""
        to = [g if t is None else t for g, t in zip(groups, targets, strict=True)]
        return states - self.centroids[list(groups)] + self.centroids[to]


def fit_steering(
    states: np.ndarray,
    groups: Sequence[str | None],
    entities: Sequence[str | None],
    seed: int = 0,
    tokens: np.ndarray | None = None,
    kinds: np.ndarray | None = None,
) -> Steering | None:
    """Centroids of standardised states (N, D): by group where groups share entities or, by the states (N, D) of what
    these are (`kinds`, NaN where none was read), kinds of them; else by clustering, with the number of clusters that
    does best on held-out entities; on `MOST_ROWS` at most. `tokens` (N, D) are the means of the questions' standardised
    token states, where any are read.

    Groups that share neither, such as topics, say of whom is asked rather than what, so that steering would leave the
    thing. None where there are neither such groups nor enough questions for two clusters.
    """
    states, groups, entities = states[:MOST_ROWS], groups[:MOST_ROWS], entities[:MOST_ROWS]
    tokens = None if tokens is None or not tokens.any() else tokens[:MOST_ROWS]
    made = _fitted(states, groups, entities, seed, None if kinds is None else kinds[:MOST_ROWS])
    return made if made is None or tokens is None else made.with_tokens(states, tokens, groups)


def names_asked(groups: Sequence[str | None], entities: Sequence[str | None]) -> list[int]:
    """Rows of the questions whose names are asked of what kind they are: the first `KIN_NAMES` names of each group that
    has enough for its kind to be told, each once."""
    of_group = defaultdict[str, dict[str, int]](dict)
    for n, (group, entity) in enumerate(zip(groups, entities, strict=True)):
        if group:
            of_group[group].setdefault(entity or f"\x1f{n}", n)
    return sorted(n for rows in of_group.values() if len(rows) >= KIN_ROWS for n in [*rows.values()][:KIN_NAMES])


def _fitted(
    states: np.ndarray,
    groups: Sequence[str | None],
    entities: Sequence[str | None],
    seed: int,
    kinds: np.ndarray | None,
) -> Steering | None:
    known = [n for n, g in enumerate(groups) if g]
    names = sorted({str(groups[n]) for n in known})
    index = {name: n for n, name in enumerate(names)}
    assigned, own = np.array([index[str(groups[n])] for n in known], int), [entities[n] for n in known]
    targets, least = _targets(len(names), assigned, own), COVERED
    if kinds is not None and known:
        told = ~np.isnan(kinds[known]).any(1)
        kin = _kin(len(names), assigned[told], kinds[known][told])
        known_kin = tuple(sharing or alike for sharing, alike in zip(targets, kin, strict=True))
        targets, least = known_kin, COVERED if known_kin == targets else FEWEST_KIN
    if sum(bool(targets[g]) for g in assigned) < least * len(states) or not known:
        return _by_clusters(states, entities, seed)
    centroids = np.stack([states[known][assigned == g].mean(0) for g in range(len(names))]).astype(np.float32)
    found = same_thing(centroids, states[known], assigned, own)
    return Steering(tuple(names), centroids, targets, True, found)


def _by_clusters(states: np.ndarray, entities: Sequence[str | None], seed: int) -> Steering | None:
    held = np.array([uniform(f"steering-{seed}", e or f"row {n}") < HELD_OUT for n, e in enumerate(entities)], bool)
    fit_on, kept = ([e for e, h in zip(entities, held, strict=True) if h == out] for out in (False, True))
    asked_again = len({e for e in kept if e}) < sum(bool(e) for e in kept)
    tried: list[tuple[float, Steering]] = []
    for k in CLUSTERS:
        if k * ROWS_PER_CLUSTER > len(fit_on) or k >= len(kept):
            break
        clusters = KMeans(k, n_init=STARTS, random_state=seed % 2**32)  # pyright: ignore[reportArgumentType]
        centroids = np.asarray(clusters.fit(states[~held]).cluster_centers_, np.float32)
        assigned = nearest(states, centroids)
        if asked_again:
            targets = _targets(k, assigned[~held], fit_on)
            score = found = same_thing(centroids, states[held], assigned[held], kept)
        else:
            targets, found = tuple(tuple(t for t in range(k) if t != g) for g in range(k)), None
            split = len({*assigned[held].tolist()}) > 1
            score = float(silhouette_score(states[held], assigned[held])) if split else -1.0
        if any(targets):
            made = Steering(tuple(map(str, range(k))), centroids, targets, False, found)
            tried.append((score or 0.0, replace(made, same=_same(k, assigned, entities))))
    if not tried:
        return None
    best = max(score for score, _ in tried)
    # of those no worse than the best by more than its standard error, the fewest: small clusters say little
    error = (best * (1 - best) / max(1, len(kept))) ** 0.5 if asked_again else 0.0
    return next(steering for score, steering in tried if score >= best - error)


def _targets(count: int, assigned: np.ndarray, entities: Sequence[str | None]) -> tuple[tuple[int, ...], ...]:
    """Of each group the ones that share entities with it, most first."""
    asked_in = defaultdict[str, set[int]](set)
    for group, entity in zip(assigned.tolist(), entities, strict=True):
        if entity:
            asked_in[entity].add(group)
    shared = np.zeros((count, count), int)
    for found in asked_in.values():
        for a, b in permutations(found, 2):
            shared[a, b] += 1
    return tuple(tuple(int(t) for t in np.argsort(-row, kind="stable") if row[t] >= SHARED_ENTITIES) for row in shared)


def _same(count: int, assigned: np.ndarray, entities: Sequence[str | None]) -> tuple[int, ...]:
    """A number for each cluster, the same for those that ask the same in other words: whose entities avoid each
    other."""
    asked_in = defaultdict[str, list[int]](list)
    for group, entity in zip(assigned.tolist(), entities, strict=True):
        if entity:
            asked_in[entity].append(group)
    pairs = [pair for found in asked_in.values() for pair in permutations(found, 2)]  # each both ways round
    met, apart = np.zeros((count, count)), np.ones((count, count))
    np.add.at(met, tuple(np.array(pairs, int).reshape(-1, 2).T), 1.0)
    share = met.sum(1) / max(1.0, met.sum())
    expected = met.sum() * np.outer(share, share)
    apart[expected >= EXPECTED] = np.minimum(1.0, met[expected >= EXPECTED] / expected[expected >= EXPECTED])
    np.fill_diagonal(apart, 0.0)
    found = fcluster(linkage(squareform(apart), "average"), AVOID, "distance")
    return tuple(int(n) for n in found)


def _kin(count: int, assigned: np.ndarray, kinds: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """Of each group the ones that ask about the same kind of thing, by the states (N, D) of what their names are,
    most alike first."""
    near = min(NEIGHBOURS, len(kinds) - 1)
    if near < 1:
        return ((),) * count
    scaled = (kinds - kinds.mean(0)) / np.maximum(kinds.std(0), 1e-6)
    found = NearestNeighbors(n_neighbors=near + 1).fit(scaled).kneighbors(scaled, return_distance=False)[:, 1:]
    met = np.zeros((count, count))
    np.add.at(met, (np.repeat(assigned, near), assigned[found].ravel()), 1.0)
    expected = met.sum(1, keepdims=True) * np.bincount(assigned, minlength=count) / len(assigned)
    times = met / np.maximum(expected, 1e-9)
    own = np.sqrt(np.outer(np.diag(times), np.diag(times)))
    times = np.minimum(times, times.T) / np.maximum(own, 1e-9)  # one kind of thing is one from both sides
    few = (np.bincount(assigned, minlength=count) < KIN_ROWS) | (np.diag(own) == 0)
    times[few] = times[:, few] = 0.0
    return tuple(
        tuple(int(t) for t in np.argsort(-times[g], kind="stable") if times[g, t] >= KIN and t != g)
        for g in range(count)
    )


def same_thing(
    centroids: np.ndarray, states: np.ndarray, assigned: np.ndarray, entities: Sequence[str | None]
) -> float | None:
    """The share of questions (rows of `states` (N, D)) whose state less its group's centroid is nearest to that of
    another question about the same entity, of those about an entity that is asked about twice; None without any.

    Low where a centroid says too little (what is asked is left over) and where it says too much (part of whom is asked
    about goes with it, and comes back as somebody else), so it tells good groups from bad ones.
    """
    times = Counter(e for e in entities if e)
    asked = [n for n, e in enumerate(entities) if e and times[e] > 1]
    if not asked:
        return None
    rest = states - centroids[assigned]
    found = nearest(rest[asked], rest, leaving_out=asked)
    return float(np.mean([entities[f] == entities[n] for f, n in zip(found.tolist(), asked, strict=True)]))


def nearest(states: np.ndarray, among: np.ndarray, leaving_out: Iterable[int] | None = None) -> np.ndarray:
    """Index (B,) of the row of `among` (N, D) nearest to each of states (B, D); on request not row n of its own."""
    far = distances(states, among)
    if leaving_out is not None:
        far[np.arange(len(states)), list(leaving_out)] = np.inf
    return far.argmin(1)


def distances(states: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (B, N) between states (B, D) and (N, D), less what all of a row have in common."""
    return (among**2).sum(1)[None] - 2 * states @ among.T
