"""What the report reads from a run's tables. Tables are streamed: only what the page shows stays in memory.

In: a run, whose tables may be missing. Out: counts, a bounded sample of states, the first rows of every round.
Refuses to know: figures, HTML, Ray, models.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ka2l_ray import schema
from ka2l_ray.active.strategies import draws
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.hashing import uniform

MOST_STATES = 2000
MOST_ROWS = 500
Row = dict[str, Any]


@dataclass(frozen=True)
class ProbeStates:
    """Hidden states of a sample of the probe split's questions."""

    states: np.ndarray
    """(B, D) float32."""
    kinds: list[str]
    """What each question is: its truth, quadrant or label."""
    by: str
    """Which of these three `kinds` are."""
    column: str
    """The column of `activations` that the states are from."""
    questions: int
    """Questions in the table."""


@dataclass(frozen=True)
class Listing:
    """The first rows of every round's table, and the number of rows in all these tables."""

    rows: list[Row]
    total: int


def entropy_counts(knowledge: Table) -> dict[str, Counter[float]]:
    """{group: {entropy_nats: questions}}; a group is the truth where known, else `abstains` or the
    greedy answer's grade."""
    counts: defaultdict[str, Counter[float]] = defaultdict(Counter)
    for row in _counted(knowledge, "entropy_nats", "truth", "correct", "abstains"):
        grade = "abstains" if row["abstains"] else {True: "right", False: "wrong", None: "no gold"}[row["correct"]]
        counts[row["truth"] or grade][row["entropy_nats"]] += row["count_all"]
    return counts


def topic_counts(knowledge: Table) -> dict[str | None, tuple[int, int]]:
    """{topic: (questions, unknown ones)}, None for questions without a topic; failed rows are left out."""
    asked: Counter[str | None] = Counter()
    unknown: Counter[str | None] = Counter()
    for row in _counted(knowledge, "unknown", "group"):
        asked[row["group"]] += row["count_all"]
        unknown[row["group"]] += row["count_all"] * row["unknown"]
    return {topic: (count, unknown[topic]) for topic, count in asked.items()}


def _counted(table: Table, first: str, *others: str) -> Iterator[Row]:
    """The combinations of some columns' values in each batch, each with its rows as `count_all`; without those where
    the first column is null."""
    columns = [first, *others]
    for batch in table.batches(columns) if table.is_done else ():
        whole = pa.table(batch.filter(batch[first].is_valid()))
        yield from whole.group_by(columns).aggregate([([], "count_all")]).to_pylist()


def probe_states(run: Run, position: str, layer: int, most: int = MOST_STATES) -> ProbeStates | None:
    """States of at most `most` labelled questions, chosen and ordered by the hash of their id.

    None where labels or states are missing.
    """
    knowledge, activations = run.base("knowledge"), run.base("activations")
    if not (knowledge.is_done and activations.is_done):
        return None
    labels = {r["id"]: r for r in heapq.nsmallest(most, _labelled(knowledge), key=lambda r: uniform("map", r["id"]))}
    column = schema.state_column(position, layer)
    states = dict(_states(activations, column, labels))
    ids = [i for i in labels if i in states]
    if not ids:
        return None
    by = next((name for name in ("truth", "quadrant") if any(labels[i][name] for i in ids)), "label")
    kinds = [_kind(labels[i], by) for i in ids]
    return ProbeStates(np.stack([states[i] for i in ids]), kinds, by, column, knowledge.rows)


def _labelled(knowledge: Table) -> Iterator[Row]:
    rows = _stream(knowledge, ["id", "truth", "quadrant", "unknown", "abstains"])
    return (row for row in rows if row["unknown"] is not None)


def _kind(label: Row, by: str) -> str:
    if by != "truth" and label["abstains"]:
        return "abstains"
    return ("known", "unknown")[label["unknown"]] if by == "label" else label[by] or "not stated"


def _states(activations: Table, column: str, wanted: dict[str, Row]) -> Iterator[tuple[str, np.ndarray]]:
    ids = pa.array(list(wanted), pa.string())
    for batch in activations.batches(["id", column]):
        kept = batch.filter(pc.and_(pc.is_in(batch["id"], ids), batch[column].is_valid()))  # pyright: ignore
        states = kept[column].flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        # The array is a copy of the wanted rows, so that no batch is kept alive.
        yield from zip(kept["id"].to_pylist(), states.reshape(kept.num_rows, -1), strict=True)


def decoded_questions(run: Run, most: int = MOST_ROWS) -> Listing:
    """The first questions generated in every round, each with its `source`, the question it was decoded from."""
    listing = _listing(run, "decoded", most, _decoded)
    sources = _texts(run.table("questions"), {row["source_id"] for row in listing.rows})
    return Listing([row | {"source": sources.get(row["source_id"])} for row in listing.rows], listing.total)


def bought_questions(run: Run, most: int = MOST_ROWS) -> Listing:
    """The first questions bought in every round, by rank, each with its answer and the reason for choosing it."""
    return _listing(run, "annotations", most, _bought)


def _listing(run: Run, name: str, most: int, read: Callable[[Folder], Iterator[Row]]) -> Listing:
    finished = [(which, folder) for which, folder in _rounds(run) if Table(folder / name).is_done]
    sizes = [Table(folder / name).rows for _, folder in finished]
    shares = zip(finished, fair_shares(sizes, most), strict=True)
    return Listing(
        [which | row for (which, folder), share in shares for row in islice(read(folder), share)], sum(sizes)
    )


def fair_shares(sizes: Sequence[int], most: int) -> list[int]:
    """Rows to show of each table, at most `most` together: all where that suffices, else as evenly as possible."""
    shares = [0] * len(sizes)
    for done, n in enumerate(sorted(range(len(sizes)), key=lambda n: sizes[n])):
        shares[n] = min(sizes[n], most // (len(sizes) - done))
        most -= shares[n]
    return shares


def _rounds(run: Run) -> Iterator[tuple[Row, Folder]]:
    """Every round that the configuration plans, curve by curve, with its folder."""
    for strategy, draw in draws(run.config.active):
        for number in range(1, run.config.active.rounds + 1):
            which = {"strategy": strategy, "seed": run.draw_seed(draw), "round": number}
            yield which, run.round(strategy, draw, number)


def _decoded(folder: Folder) -> Iterator[Row]:
    return _stream(Table(folder / "decoded"), ["source_id", "question", "status", "p_unknown", "similarity"])


def _bought(folder: Folder) -> Iterator[Row]:
    """Reads whole rounds, which are bounded by the budget."""
    columns = ["id", "question", "answer", "status", "cost"]
    answered = {r["id"]: r for r in _stream(Table(folder / "annotations"), columns)}
    acquired = sorted(_stream(Table(folder / "acquired"), ["id", "reason", "rank"]), key=lambda r: r["rank"])
    return (choice | answered[choice["id"]] for choice in acquired)


def _texts(questions: Table, ids: set[str]) -> dict[str, str]:
    wanted = pa.array(list(ids), pa.string())
    batches = questions.batches(["id", "question"], part="pool") if ids else ()
    rows = (row for batch in batches for row in batch.filter(pc.is_in(batch["id"], wanted)).to_pylist())  # pyright: ignore
    return {row["id"]: row["question"] for row in rows}


def _stream(table: Table, columns: list[str]) -> Iterator[Row]:
    return (row for batch in table.batches(columns) for row in batch.to_pylist())
