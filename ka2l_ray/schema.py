"""Every table of a run as a spec: where it is, which step makes it, what its columns mean, which of them it carries
over.

Shapes: B rows of a batch, T tokens, D width of the model, L its blocks, K samples per question, V vocabulary.
Units: `_nats` natural-log units, `_s` seconds, `_rows` rows, `last_012` layer 12 at the last prompt token.
Layers: 000 is the input of block 1, l the raw residual output of block l (also for l = L, before the final norm).
`ka2l tables` prints what is written here; stages, readers and tests use the same specs.
Refuses to know: Ray, torch, files.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import pyarrow as pa

ID = pa.field("id", pa.string(), nullable=False)
ERROR = pa.field("error", pa.string())
NO_COLUMNS = pa.schema([])

SPLITS = ("probe", "pool", "eval")
SHOTS = "shots"
"""A part of `questions` besides the splits: the solved examples of few-shot prompts, which no stage asks."""
SCOPES = ("pool", "domain", "beyond", "other", "same")
"""What an eval question asks: `pool`, a pool question's fact in the reserved wording; `domain`, a fact about an entity
that no pool question is about; `beyond`, a fact about a pool question's entity that no question asks; `other`, a fact
of either kind where eval asks no pool fact again; `same`, a pool question's fact in its own words."""
ACCURACY_OVER = {
    "pool": "facts that pool questions ask, in a wording of their own",
    "same": "facts that pool questions ask, in the same words, so it is memorisation",
    "other": "facts that no pool question asks",
}
"""What `accuracy`, and so every saving, is over, by `eval_scope` of results.json."""
QUADRANTS = ("known", "misconception", "shaky", "unknown", "abstains")
KNOWN_CLASSES = ("known", "shaky", "wrong")
"""What the base model's answers show of a fact: `known`, right greedily in every wording asked and in more than half of
its samples; `shaky`, right greedily in eval's wording only, or in half of its samples or fewer; `wrong` in eval's
wording."""
TRUTHS = ("known", "rare", "misconception", "unseen")
DECODE_STATUSES = ("kept", "exhausted", "malformed", "eval", "duplicate", "reworded", "far", "ungrounded", "known")
ANNOTATION_STATUSES = ("answered", "no_such_thing", "no_reference", "refused", "truncated", "blank", "failed")

ROUND = "strategies/NAME/seed_S/round_NN"
"""Folder of a round, below the run's."""
MANIFEST_FACTS = {
    "files": "the files that count, each with its rows and, where the table has parts, its part",
    "rows": "rows of all these files",
    "closed_unix_s": "when the table was finished",
}
"""What the manifest of every table says."""
STAGE_FACTS = {
    "rows_in": "rows of the source table, or of the part of it that was read",
    "errors": "rows whose `error` is not null",
    "seconds": "duration of the last attempt",
    "first_shard_s": "its seconds until the first rows were written; null where nothing was left to do",
    "stage": "name of the stage, as in the log and in Ray's dashboard",
    "shard_rows": "rows per file",
}
"""What the manifest of a table that a pool of actors wrote says besides."""


@dataclass(frozen=True)
class Column:
    """A column. Where `type` is None, the configuration decides which fields stand in its place (hidden states, whose
    width is the model's), and the stage is given them."""

    name: str
    type: pa.DataType | None
    meaning: str

    def fields(self, states: pa.Schema = NO_COLUMNS) -> list[pa.Field]:
        """Its Arrow fields: `states` where the configuration decides, else one."""
        return list(states) if self.type is None else [pa.field(self.name, self.type, self.name != ID.name)]


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """One table of a run.

    `folder` is below the run's (`ROUND` stands for that of a round); `step` of a run or a round makes it; `code` is
    the file that computes the columns it adds; `row` is what one row is about, empty for `search`, which is no table.

    Of its `source`, the step `reads` some columns and copies those `carried`. A file has `id`, the carried columns,
    the added ones and, where single rows `can_fail`, `error`: null, or why the row failed, whose added columns are
    then null.

    `facts` is what `facts_file` says besides `MANIFEST_FACTS` and, where rows can fail, `STAGE_FACTS`.
    """

    name: str
    folder: str
    step: str
    code: str
    row: str
    about: str
    source: "TableSpec | None" = None
    reads: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()
    added: tuple[Column, ...] = ()
    can_fail: bool = True
    facts: Mapping[str, str] = field(default_factory=dict)
    facts_file: str = "manifest.json"

    def added_fields(self, states: pa.Schema = NO_COLUMNS) -> pa.Schema:
        """Arrow fields of the added columns; `states` are those that the configuration decides on."""
        return pa.schema([f for column in self.added for f in column.fields(states)])

    @property
    def columns(self) -> tuple[Column, ...]:
        """All columns in the order of the files, `error` left out; none where it is no table."""
        if not self.row:
            return ()
        given = {c.name: c for c in self.source.columns} if self.source else {}
        return (_ID, *(given[name] for name in self.carried), *self.added)

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of all columns but `error` and those that the configuration decides on."""
        return pa.schema([f for column in self.columns for f in column.fields()])


_STRING, _INT, _FLOAT, _BOOL = pa.string(), pa.int32(), pa.float32(), pa.bool_()
_STRINGS, _FLOATS, _INTS = pa.list_(_STRING), pa.list_(_FLOAT), pa.list_(_INT)
_ID = Column("id", _STRING, "names the question")
_QUESTION = Column("question", _STRING, "the question's text")
_ANSWERS = Column("answers", _STRINGS, "gold answers with aliases; empty where there are none")
_SAMPLED = (
    Column("greedy", _STRING, "greedy answer"),
    Column("greedy_logprob", _FLOAT, "its log-probability in nats, summed over tokens"),
    Column("samples", _STRINGS, "K sampled answers, fewer where adaptive sampling stopped early"),
    Column("sample_logprobs", _FLOATS, "their log-probabilities in nats, summed over tokens, at temperature 1"),
    Column("sample_tokens", _INTS, "how many tokens each sum is over, the end token included"),
)
_STATES = Column(
    "last_LLL, mean_LLL",
    None,
    "hidden states (D,) of layer LLL, at the last prompt token or as the mean over the question's own tokens; "
    "float16 in files whose values fit, else float32",
)
_P_UNKNOWN = Column(
    "p_unknown", _FLOAT, "P(unknown): probability, by the probe, that the model does not know the answer"
)

_QUESTIONS = TableSpec(
    name="questions",
    folder="questions",
    step="questions",
    code="corpus/stage.py",
    row="question of the world or of the corpus' files",
    about="questions and gold answers, in the parts probe, pool, eval and shots",
    added=(
        _QUESTION,
        _ANSWERS,
        Column("group", _STRING, "topic; null where there is none"),
        Column("entity", _STRING, "whom or what the question is about; null where unknown"),
        Column(
            "split_group",
            _STRING,
            "group of questions that no split separates, nor the probe's own division: alike or about one entity, "
            "chains included",
        ),
        Column("rewordings", _STRINGS, "the same question in other words, without the reserved wording of eval"),
        Column(
            "fact_id", _STRING, "the fact that it asks; corpora from files have it where eval asks pool facts again"
        ),
        Column("truth", _STRING, f"what the model was shown of the fact: {', '.join(TRUTHS)}; world only"),
        Column("split", _STRING, f"{', '.join(SPLITS)}, or {SHOTS} for solved examples"),
        Column("scope", _STRING, f"what an eval question asks: {', '.join(SCOPES)}; null in the other splits"),
    ),
    can_fail=False,
    facts={
        "rows_in": "rows read (corpora from files, as all that follow but the last five)",
        "questions": "questions of the corpus itself, where eval asks pool facts again",
        "asked_again": "eval questions that ask a pool question's fact again, where there are any",
        "not_reworded": "pool and eval questions without a reserved wording, which eval does not ask",
        "rewordings_ledger": "what an endpoint was asked for rewordings, and what that cost",
        "dropped": "rows that cannot be used, listed in `questions/dropped`",
        "near_duplicates": "questions that repeat another almost word by word",
        "near_duplicate_groups": "groups that these form",
        "sources": "rows and dropped rows of each file",
        "merged": "rows merged with an equal question",
        "graded": "questions with gold answers, by split",
        "entities": "entities",
        "split_groups": "groups that stay together",
        "largest_group": "questions of the largest such group",
    },
)
_SAMPLES = TableSpec(
    name="samples",
    folder="base/samples",
    step="collect",
    code="collect/actor.py",
    row="probe question",
    about="a greedy answer and K samples (the same files as activations)",
    source=_QUESTIONS,
    reads=("question",),
    carried=("question", "answers", "group", "entity", "split_group", "truth"),
    added=(_STATES, *_SAMPLED),
    facts={
        "threshold_nats": "γ that adaptive sampling stopped by; null where all K samples were drawn",
        "float16_files": "files whose states are float16",
        "float32_files": "files whose states are float32, since some exceed float16's range",
    },
)
_ACTIVATIONS = replace(
    _SAMPLES,
    name="activations",
    folder="base/activations",
    about="hidden states per layer, a greedy answer and K samples, from one prompt pass",
    facts={"threshold_nats": "as in `samples`"},
)
_PILOT = replace(
    _SAMPLES,
    name="pilot",
    folder="base/pilot",
    row="question drawn from the probe split",
    about="K samples that γ is found from before adaptive sampling (`collect.adaptive.threshold: pilot`)",
    carried=(*_SAMPLES.carried, "fact_id"),
    added=_SAMPLED,
    facts={},
)
_POOL_SAMPLES = replace(
    _PILOT,
    name="pool_samples",
    folder="base/pool_samples",
    step="sample_pool",
    row="pool question",
    about="a greedy answer and K samples, for strategies that rank by them",
)
_REPLAY = replace(
    _PILOT,
    name="replay",
    folder="base/replay",
    step="replay",
    row="pool question that a round may replay",
    about="the base model's own answers, mixed into training against forgetting",
)
_CLUSTERS = TableSpec(
    name="clusters",
    folder="base/clusters",
    step="label",
    code="label/actor.py",
    row="probe question",
    about="clusters of the samples, semantic entropy, grades",
    source=_SAMPLES,
    reads=("samples", "sample_logprobs", "greedy", "greedy_logprob", "answers"),
    carried=("group", "entity", "split_group", "truth"),
    added=(
        Column("cluster_ids", _INTS, "a number per sample, equal where answers mean the same"),
        Column("entropy_nats", pa.float64(), "semantic entropy; null where sampling stopped before K samples"),
        Column("entropy_lo", pa.float64(), "least entropy that K samples can have; the entropy where all were drawn"),
        Column("entropy_hi", pa.float64(), "greatest entropy that K samples can have"),
        Column("abstains", _BOOL, "whether more than half of the samples are empty or refusals (`label.refusals`)"),
        Column("correct", _BOOL, "whether the greedy answer is right; null without gold"),
        Column("sample_accuracy", _FLOAT, "share of right samples; null without gold, or where sampling stopped"),
        Column("likelihood", _FLOAT, "baseline: -log p of the greedy answer in nats"),
        Column(
            "predictive_entropy",
            _FLOAT,
            "baseline: mean of -log p over the samples, in nats; null where sampling stopped",
        ),
    ),
)
_KNOWLEDGE = TableSpec(
    name="knowledge",
    folder="base/knowledge",
    step="label",
    code="label/stage.py",
    row="probe question",
    about="known or unknown by γ, and the quadrant",
    source=_CLUSTERS,
    reads=("entropy_lo", "abstains", "correct"),
    carried=(*(c.name for c in _CLUSTERS.added), *_CLUSTERS.carried),
    added=(
        Column(
            "unknown",
            pa.int8(),
            "1 where semantic entropy ≥ γ (by `entropy_lo` where sampling stopped early) or the model abstains, else 0",
        ),
        Column("quadrant", _STRING, f"it crossed with `correct`: {', '.join(QUADRANTS)}; null without gold"),
    ),
    facts={
        "threshold_nats": "γ: least semantic entropy in nats at which a question is unknown; by Otsu's method over the "
        "entropies of all questions that the model does not abstain from, or given as `label.threshold`, or what "
        "adaptive sampling stopped by"
    },
)
_POOL_CLUSTERS = replace(
    _CLUSTERS,
    name="pool_clusters",
    folder="base/pool_clusters",
    step="sample_pool",
    row="pool question",
    source=_POOL_SAMPLES,
)
_POOL_KNOWLEDGE = replace(
    _KNOWLEDGE,
    name="pool_knowledge",
    folder="base/pool_knowledge",
    step="sample_pool",
    row="pool question",
    about="entropy and quadrant of the pool, by the γ of `knowledge`; only for strategies that rank by them",
    source=_POOL_CLUSTERS,
    facts={"threshold_nats": "γ of `knowledge`"},
)
_SEARCH = TableSpec(
    name="search",
    folder="base/search",
    step="search",
    code="probe/search.py",
    row="",
    about="a linear probe per layer (`layers/`), the chosen one (`probe/`), the map layer × threshold (`heat.json`)",
    source=_KNOWLEDGE,
    can_fail=False,
    facts={
        "layer": "layer of the chosen probe",
        "position": "which token's state it reads: last or mean",
        "auroc": "its AUROC on held-out questions, against wrong answers or entropy ≥ γ, as `objective` says",
        "auroc_ci": "95 % interval of it",
        "auroc_vs_truth": "AUROC against the truth; world only",
        "auroc_topic_alone": "what a classifier reaches that sees only a question's topic (`group`)",
        "calibration_error": "mean distance of P(unknown) from the share that is labelled unknown, over ten parts by P",
        "objective": "what layers were chosen by",
        "questions": "questions that it was fitted and measured on",
        "graded": "those of them with gold",
        "note": "why it was chosen by entropy, where that is so",
        "threshold_nats": "threshold of entropy that its training labels were made by; the heat map compares several",
        "layers": "the same figures of every layer",
    },
    facts_file="search.json",
)
_SCORES = TableSpec(
    name="scores",
    folder="base/scores",
    step="score",
    code="probe/score.py",
    row="pool question",
    about="P(unknown), from blocks 1 … l alone",
    source=_QUESTIONS,
    reads=("question",),
    carried=("truth", "group"),
    added=(
        _P_UNKNOWN,
        Column(
            "state", None, "hidden state (D,) that the probe reads, as above; only where a strategy compares states"
        ),
    ),
)
_DECODER_QUESTIONS = TableSpec(
    name="decoder_questions",
    folder="base/decoder/questions",
    step="decode",
    code="decode/training_questions.py",
    row="question that a decoder is trained or measured on",
    about="the probe split and `decode.training.questions`, without what eval and pool ask and their entities",
    added=(
        _QUESTION,
        Column("group", _STRING, "topic; null where there is none"),
        Column("entity", _STRING, "whom or what it is about; null where unknown"),
        Column("held_out", _BOOL, "whether training never sees it, nor others about its entity"),
    ),
    can_fail=False,
    facts={
        "left_out": "questions of eval and pool, and about their entities",
        "of_format": "questions of the probe split, and of each format of `decode.training.questions`",
    },
)
_READ_STATES = "pooled state (D,); states (n, D) of the tokens that say of whom, none for a decoder that reads none"
_DECODER_STATES = TableSpec(
    name="decoder_states",
    folder="base/decoder/states",
    step="decode",
    code="decode/reading.py",
    row="question that a decoder is trained or measured on",
    about="the states that a decoder reads",
    source=_DECODER_QUESTIONS,
    reads=("question", "group", "entity"),
    carried=("question", "group", "entity", "held_out"),
    added=(Column("state, tokens", None, _READ_STATES), Column("whom_ids", _INTS, "these tokens")),
)
_PROBE_STATES = replace(
    _DECODER_STATES,
    name="probe_states",
    folder="base/decoder/probe_states",
    row="probe question",
    about="the states that the decoder reads, on which wanted states are fitted; at most 4,096",
    source=_QUESTIONS,
    carried=("question", "group", "entity"),
    added=(
        Column(
            "state, tokens, kind_state",
            None,
            f"{_READ_STATES}; where states are steered, the state (D,) in which the model is about to say what whom is "
            "(`reading.WHAT_IS`), of up to 120 names a group, null for the others",
        ),
        *_DECODER_STATES.added[1:],
    ),
)
_DECODER_CHECK = TableSpec(
    name="decoder_check",
    folder="base/decoder/check",
    step="decode",
    code="decode/writing.py",
    row="held-out question",
    about="held-out questions, decoded from their own states, greedily: how good a trained decoder is",
    source=_DECODER_STATES,
    reads=("state", "tokens"),
    carried=("question", "group", "entity"),
    added=(Column("decoded_question", _STRING, "what the decoder wrote"),),
)
_REQUESTS = TableSpec(
    name="requests",
    folder=f"{ROUND}/decoded/requests",
    step="acquire",
    code="decode/stage.py",
    row="state to be decoded",
    about="what the decoder is asked to write",
    source=_QUESTIONS,
    added=(
        Column("source_id", _STRING, "the question whose state is decoded"),
        Column("variant", _INT, "counts the questions made from one state in one way"),
        Column("augment", _STRING, "how the wanted state is made from the source's (`decode.augment`; none: it is it)"),
        replace(_QUESTION, meaning="the source's text"),
        Column("group", _STRING, "the source's group"),
        Column("entity", _STRING, "whom or what the source asks about; null where unknown"),
        Column("turn", _INT, "counts the requests about one entity made in one way: each asks something else"),
        Column(
            "asked",
            pa.list_(pa.struct([("question", _STRING), ("group", _STRING)])),
            "what probe, pool and earlier rounds ask about the entity",
        ),
    ),
    can_fail=False,
)
_STEERED = (
    Column("target", _STRING, "the group (or cluster) that the state was steered to; null where it was not"),
    Column("exhausted", _BOOL, "whether it was to be steered, and nothing was left to ask: nothing was written"),
)
_CANDIDATES = TableSpec(
    name="candidates",
    folder=f"{ROUND}/decoded/candidates",
    step="acquire",
    code="decode/actor.py",
    row="request",
    about="what is wanted, and the texts among which is chosen; with `decode.reread` only",
    source=_REQUESTS,
    reads=("source_id", "variant", "augment", "question", "group", "entity", "turn", "asked"),
    carried=("source_id", "variant", "augment", "question", "group", "entity"),
    added=(
        Column("wanted", None, "the wanted state (D,), standardised"),
        *_STEERED,
        Column("aspects", _INTS, "what its entity is asked about already, as numbers of groups (or clusters)"),
        Column(
            "texts",
            _STRINGS,
            "what the decoder wrote, greedily first (but for `temperature`); one empty text where nothing was left",
        ),
    ),
)
_WRITTEN = TableSpec(
    name="written",
    folder=f"{ROUND}/decoded/written",
    step="acquire",
    code="decode/rereading.py",
    row="request",
    about="questions that the decoder wrote",
    source=_REQUESTS,
    reads=("source_id", "variant", "augment", "question", "group", "entity", "turn", "asked"),
    carried=("source_id", "variant", "augment", "question", "group"),
    added=(
        Column("decoded_question", _STRING, "what the decoder wrote: the candidate nearest to the wanted state"),
        *_STEERED,
        Column("asks", _STRING, "the group (or cluster) of what was written, by its own state; null without groups"),
        Column("reworded", _BOOL, "whether it asks of the source's entity what is in `asked`, by those groups"),
        Column(
            "similarity", _FLOAT, "cosine of the decoded question's own state with the wanted one, both standardised"
        ),
        Column(
            "name",
            _STRING,
            "the name from `decode.grounding`, else the source's entity, that it contains, in lower case without "
            "punctuation",
        ),
        Column("explained", _FLOAT, "share of the wanted state's variance that the decoded question's own explains"),
        Column("explained_after", _FLOATS, "the same of the best text before any correction, and after each"),
        _P_UNKNOWN,
        Column("state", None, "state of what was written (D,), standardised"),
    ),
)
_RECONSTRUCTION = replace(
    _WRITTEN,
    name="reconstruction",
    folder="base/reconstruction",
    step="decode",
    row="probe question",
    about="questions that the decoder never saw, decoded from their own states, greedily: how good the decoder is",
    carried=(*_WRITTEN.carried, "entity"),
)
_RECONSTRUCTION_CANDIDATES = replace(
    _CANDIDATES,
    name="reconstruction_candidates",
    folder="base/reconstruction/candidates",
    step="decode",
    row="probe question",
    about="its state, and the text of it that is read again; with `decode.reread` only",
)
_DECODED = TableSpec(
    name="decoded",
    folder=f"{ROUND}/decoded",
    step="acquire",
    code="decode/stage.py",
    row="decoded question",
    about="new questions and what became of them",
    source=_WRITTEN,
    carried=(
        *("source_id", "variant", "augment", "question", "group"),
        *("target", "asks", "similarity", "name", "explained", "explained_after", "p_unknown"),
    ),
    added=(Column("status", _STRING, f"what became of it: {', '.join(DECODE_STATUSES)}"),),
    can_fail=False,
    facts={"rows_in": "requests", "errors": "requests that failed and are not in this table"},
)
_ACQUIRED = TableSpec(
    name="acquired",
    folder=f"{ROUND}/acquired",
    step="acquire",
    code="active/policies.py",
    row="question that the round buys",
    about="what a round buys, and why",
    source=_SCORES,
    added=(
        Column("reason", _STRING, "why the strategy chose it"),
        Column("rank", _INT, "its place in the choice, from 0"),
    ),
    can_fail=False,
)
_ANNOTATIONS = TableSpec(
    name="annotations",
    folder=f"{ROUND}/annotations",
    step="annotate",
    code="annotate/stage.py",
    row="question that the round buys",
    about="answers, what they cost, what became of the question",
    source=_ACQUIRED,
    added=(
        _QUESTION,
        Column("answer", _STRING, "the answer; null unless `status` is `answered`"),
        Column("annotator", _STRING, "who was asked: world, reference, endpoint or file"),
        Column(
            "cost",
            pa.float64(),
            "cost of the annotation in the unit of `annotate.cost`; 0 where the annotator never replied",
        ),
        Column("status", _STRING, f"what became of it: {', '.join(ANNOTATION_STATUSES)}"),
        Column("cached", _BOOL, "whether the answer is one that another row of the run paid for"),
    ),
    can_fail=False,
    facts={"without_usage": "replies without token usage, whose tokens are booked at no cost (endpoint only)"},
)
_EXAMPLES = TableSpec(
    name="examples",
    folder=f"{ROUND}/finetune/examples",
    step="finetune",
    code="active/examples.py",
    row="answered annotation of this round or an earlier one, or replayed question",
    about="what the model is trained on; the tuned model is in `finetune/model`",
    source=_ANNOTATIONS,
    added=(
        _QUESTION,
        Column(
            "answers", _STRINGS, "the answer that was bought, or the model's own answers, shown in turn epoch by epoch"
        ),
        Column("rewordings", _STRINGS, "the bought question in other words, shown in turn with it"),
        Column("source", _STRING, "annotation or replay"),
    ),
    can_fail=False,
)
_REPLAY_QUESTIONS = TableSpec(
    name="replay_questions",
    folder=f"{ROUND}/finetune/replay_questions",
    step="finetune",
    code="active/examples.py",
    row="pool question that the round replays",
    about="rows of questions whose own answers are trained on",
    source=_QUESTIONS,
    carried=tuple(c.name for c in _QUESTIONS.added),
    can_fail=False,
)
_WATCHED_QUESTIONS = replace(
    _REPLAY_QUESTIONS,
    name="watched_questions",
    folder=f"{ROUND}/finetune/watched_questions",
    row="eval question that training is measured on as it goes",
    about="drawn for the curves of `finetune.evaluate_every_epochs`",
    carried=("question", "answers"),
)
_EVALUATION = TableSpec(
    name="evaluation",
    folder="base/evaluation",
    step="evaluate",
    code="finetune/evaluate.py",
    row="eval question",
    about="graded greedy answers of the base model; in `corpus_prompt/` under `corpus.prompt`, where that differs",
    source=_QUESTIONS,
    reads=("question", "answers"),
    carried=("scope", "fact_id", "answers"),
    added=(
        Column("answer", _STRING, "greedy answer"),
        Column("correct", _BOOL, "whether it is right; null without gold"),
    ),
)
_ASKED_AGAIN = replace(
    _EVALUATION,
    name="asked_again",
    folder="base/known/asked_again",
    row="pool question whose fact the base model answers right in the reserved wording (of facts that eval asks in one "
    "wording: the eval question)",
    about="graded greedy answers under `finetune.prompt`, and K samples where they are right",
    carried=("fact_id", "answers"),
    added=(
        *_EVALUATION.added,
        Column("samples", _STRINGS, "K sampled answers; empty unless the greedy one is right"),
        Column("samples_right", _FLOAT, "share of right samples; null where there are none"),
    ),
)
_KNOWN = TableSpec(
    name="known",
    folder="base/known",
    step="evaluate",
    code="active/forgetting.py",
    row="eval question with gold, of the scope that accuracy is over",
    about="which facts the base model knows; without questions that could not be asked again",
    source=_EVALUATION,
    carried=("fact_id",),
    added=(
        Column("class", _STRING, f"what its answers show: {', '.join(KNOWN_CLASSES)}"),
        Column("samples_right", _FLOAT, "share of right samples; null where none were drawn"),
    ),
    can_fail=False,
    facts={"questions": "questions asked again for this", "samples": "samples drawn for this"},
)
_NOISE_FLOOR = replace(
    _EVALUATION,
    name="noise_floor",
    folder="base/noise_floor",
    row="eval question that is known or wrong",
    about="graded greedy answers of the base model after other solved examples; only where the prompt has some",
)
_ROUND_EVALUATION = replace(
    _EVALUATION,
    name="round_evaluation",
    folder=f"{ROUND}/evaluation",
    row="eval question or replayed question",
    about="graded greedy answers of the tuned model; `corpus_prompt/` likewise",
)
_ERRORS = TableSpec(
    name="errors",
    folder="TABLE/errors",
    step="every step whose rows can fail",
    code="dataflow/stage.py",
    row="row of TABLE that failed",
    about="the failed rows of the table above it, for reading (no manifest)",
    added=(Column(ERROR.name, ERROR.type, "type and text of the error"),),
    can_fail=False,
)
TABLES = {
    spec.name: spec
    for spec in (
        _QUESTIONS,
        _PILOT,
        _ACTIVATIONS,
        _SAMPLES,
        _CLUSTERS,
        _KNOWLEDGE,
        _SEARCH,
        _SCORES,
        _POOL_SAMPLES,
        _POOL_CLUSTERS,
        _POOL_KNOWLEDGE,
        _REPLAY,
        _DECODER_QUESTIONS,
        _DECODER_STATES,
        _DECODER_CHECK,
        _PROBE_STATES,
        _RECONSTRUCTION_CANDIDATES,
        _RECONSTRUCTION,
        _EVALUATION,
        _ASKED_AGAIN,
        _KNOWN,
        _NOISE_FLOOR,
        _ACQUIRED,
        _REQUESTS,
        _CANDIDATES,
        _WRITTEN,
        _DECODED,
        _ANNOTATIONS,
        _EXAMPLES,
        _REPLAY_QUESTIONS,
        _WATCHED_QUESTIONS,
        _ROUND_EVALUATION,
        _ERRORS,
    )
}
"""Every table by name, in the order in which a run makes them."""

QUESTIONS, SAMPLES, CLUSTERS = (TABLES[name].schema for name in ("questions", "samples", "clusters"))
KNOWLEDGE, SCORES, ACQUIRED = (TABLES[name].schema for name in ("knowledge", "scores", "acquired"))
KNOWN = TABLES["known"].schema
DECODED, ANNOTATIONS, EVALUATION = (TABLES[name].schema for name in ("decoded", "annotations", "evaluation"))


def reread(spec: TableSpec) -> TableSpec:
    """`written` or `reconstruction` as made from `candidates`."""
    added = tuple(c.name for c in _CANDIDATES.added)
    return replace(spec, source=_CANDIDATES, reads=("augment", "question", "entity", *added))


def state_column(position: str, layer: int) -> str:
    """Name of the column of a layer's states at a position, such as `last_004`."""
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
