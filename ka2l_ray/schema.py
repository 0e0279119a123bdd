"""Every table's columns and types, and the one legend for shapes and units.

Shapes: B rows of a batch, T tokens, D width of the model, L its blocks, K samples per question, V vocabulary.
Units: `_nats` natural-log units, `_s` seconds, `_rows` rows, `last_012` layer 12 at the last prompt token.
Layers: 000 is the input of block 1, l the raw residual output of block l (also for l = L, before the final norm).
In every table `id` names the question; `error` is null, or says why a row failed and its other columns are null.
Refuses to know: Ray, torch, files.
"""

from collections.abc import Iterable

import pyarrow as pa

ID = pa.field("id", pa.string(), nullable=False)
ERROR = pa.field("error", pa.string())
_STRINGS, _FLOATS, _INTS = pa.list_(pa.string()), pa.list_(pa.float32()), pa.list_(pa.int32())

SPLITS = ("probe", "pool", "eval")
SHOTS = "shots"
"""Part of `questions`, beside the splits: the solved examples of few-shot prompts, which no stage asks."""
SCOPES = ("pool", "domain", "other")
"""What an eval question asks: `pool`, a pool question's fact in another wording; `domain`, a fact about an entity that no pool question is
about (both on the world); `other`, a question of a corpus from files, which no pool question resembles or shares an entity with."""
ACCURACY_OVER = {
    "pool": "facts that pool questions ask, in a wording of their own",
    "other": "facts that no pool question asks",
}
"""What `accuracy`, and so every saving, is over, by `eval_scope` of results.json."""
QUADRANTS = ("known", "misconception", "shaky", "unknown")
TRUTHS = ("known", "rare", "misconception", "unseen")
DECODE_STATUSES = ("kept", "duplicate", "eval", "known", "malformed")
ANNOTATION_STATUSES = ("answered", "no_such_thing", "no_reference", "refused", "truncated", "blank", "failed")


def _table(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([ID, *(pa.field(name, kind) for name, kind in columns.items())])


QUESTIONS = _table(
    question=pa.string(),
    answers=_STRINGS,  # gold with aliases; empty where there is none
    group=pa.string(),  # topic, null where there is none
    entity=pa.string(),  # whom or what it is about, by its own name; null where unknown
    split_group=pa.string(),  # what splits and the probe's own division never share: questions alike or about one entity, chains included
    fact_id=pa.string(),  # world only
    truth=pa.string(),  # world only: one of TRUTHS
    split=pa.string(),  # one of SPLITS, or SHOTS
    scope=pa.string(),  # eval only: one of SCOPES
)
SAMPLES = _table(
    greedy=pa.string(),
    greedy_logprob=pa.float32(),  # nats, sum over tokens
    samples=_STRINGS,  # K answers
    sample_logprobs=_FLOATS,  # nats, sum over tokens, at T = 1
    sample_tokens=_INTS,  # tokens summed over, the end token included
)
CLUSTERS = _table(
    cluster_ids=_INTS,  # K numbers, equal where answers mean the same
    entropy_nats=pa.float64(),  # null where sampling stopped before K samples
    entropy_lo=pa.float64(),  # least and greatest entropy that K samples can have: equal to it where all were drawn
    entropy_hi=pa.float64(),
    correct=pa.bool_(),  # greedy answer; null without gold
    sample_accuracy=pa.float32(),  # share of right samples; null without gold, or where sampling stopped
    likelihood=pa.float32(),  # baseline: -log p of the greedy answer, nats
    predictive_entropy=pa.float32(),  # baseline: mean of -log p over samples, nats; null where sampling stopped
    group=pa.string(),
    entity=pa.string(),
    split_group=pa.string(),
    truth=pa.string(),
)
KNOWLEDGE = pa.schema([*CLUSTERS, pa.field("unknown", pa.int8()), pa.field("quadrant", pa.string())])
SCORES = _table(p_unknown=pa.float32())
"""Where a strategy compares states, `state` besides: the fixed-size (D,) float32 state that the probe reads."""
ACQUIRED = _table(reason=pa.string(), rank=pa.int32())
DECODED = _table(
    source_id=pa.string(),
    variant=pa.int32(),
    question=pa.string(),
    similarity=pa.float32(),  # cosine of the question's own state with the source's, at the decoder's layer
    p_unknown=pa.float32(),
    status=pa.string(),  # one of DECODE_STATUSES
)
ANNOTATIONS = _table(
    question=pa.string(),
    answer=pa.string(),  # null unless `status` is `answered`
    annotator=pa.string(),
    cost=pa.float64(),  # what the annotation is worth, in the unit of `annotate.cost`; 0 where the annotator never replied
    status=pa.string(),  # one of ANNOTATION_STATUSES
    cached=pa.bool_(),  # served by an answer that another row of the run paid for
)
EVALUATION = _table(answer=pa.string(), correct=pa.bool_())


def state_column(position: str, layer: int) -> str:
    """Name of the column that holds a layer's states at a position, such as `last_004`."""
    return f"{position}_{layer:03d}"


def states(positions: Iterable[str], layers: Iterable[int], width: int, half: bool) -> pa.Schema:
    """Columns of stored hidden states, each a fixed-size list (D,) of float16 (`half`) or float32."""
    kind = pa.list_(pa.float16() if half else pa.float32(), width)
    chosen = list(layers)
    return pa.schema([pa.field(state_column(p, layer), kind) for p in positions for layer in chosen])


def join(*schemas: pa.Schema, error: bool = True) -> pa.Schema:
    """One schema of all columns, each once, `error` last."""
    fields = {f.name: f for s in schemas for f in s}
    fields.pop(ERROR.name, None)
    return pa.schema([*fields.values(), *([ERROR] if error else [])])
