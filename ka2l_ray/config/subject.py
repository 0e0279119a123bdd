"""Sections that say where a run is stored, which model it studies, and which questions it asks.

In: values of the file. Out: frozen, bounded sections.
Refuses to know: whether a file, model or cluster exists.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ka2l_ray.config.base import NoKeys, Section, Share, Template, Text


class RunSection(Section):
    """Which run this is and where it is stored."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] = "run"
    """Name of the run's folder below `storage`."""
    storage: Annotated[Text, NoKeys] = "runs"
    """Folder or URI (`s3://…`, `gs://…`) that contains the runs; on a cluster every node must reach it. Here and in
    every other path, `~`, `$NAME` and `${NAME}` are replaced, and a relative path starts from where the command is
    started."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of splits, samples, acquisition and training."""
    max_error_fraction: Share = 0.01
    """A stage stops as soon as more than this share of its rows has failed. Up to five failed rows do not stop it, as
    long as they are at most a tenth of its rows. 0 allows none."""


class RaySection(Section):
    """The Ray cluster to use."""

    address: str | None = None
    """`auto`, `local`, `host:port` or `ray://…`. Null uses RAY_ADDRESS if it is set, and otherwise starts a local
    cluster for this run."""
    local_cpus: Annotated[int, Field(ge=4)] = 6
    """Logical CPUs of a local cluster; at least 4, because reading and writing take one each besides the actors."""


class ModelSection(Section):
    """The causal language model under study."""

    name_or_path: Annotated[Text, NoKeys] = "world"
    """`world` (the shipped model), a Hugging Face folder or its URI (copied once to every node that needs it), or a hub
    id."""
    revision: str | None = None
    """Commit or tag of a hub id."""
    adapter: Annotated[str | None, NoKeys] = None
    """Fine-tuned weights on top of it: a folder or URI with a PEFT adapter, which is merged, or with a full model of
    the same kind."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision to load in; `auto` is the checkpoint's own."""
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


class PromptSection(Section):
    """How a question becomes a prompt, and where an answer ends."""

    style: Literal["bare", "fewshot", "chat"] = "bare"
    """`bare`: the template alone. `fewshot`: instruction, solved examples, template. `chat`: instruction and question
    as a user's turn in the tokenizer's chat template."""
    template: Template = "Question: {question}\nAnswer:"
    """Text that contains `{question}` exactly once. With `fewshot` also the text of every solved example, followed by a
    space and its first gold answer. `chat` does not use it."""
    instruction: str = "Answer the question as briefly as you can."
    """What `fewshot` and `chat` prompts begin with."""
    shots: Annotated[int, Field(ge=0, le=64)] | None = None
    """Number of solved examples, drawn with the run's seed from outside pool and eval; they are not asked themselves.
    Null: 5 for `fewshot`, none for `chat`, where they are earlier turns."""
    stop: tuple[Text, ...] = ("\n", "Question:")
    """An answer ends before the first of these, or at the model's end token."""
    special_tokens: bool = True
    """Whether the tokenizer adds its own tokens, such as one that begins a text; `chat` templates contain theirs."""

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
    """Share that accuracy is measured on: facts that no pool question asks."""

    @model_validator(mode="after")
    def _sums(self) -> "SplitSection":
        """shares that do not add up to 1."""
        if abs(self.probe + self.pool + self.eval - 1.0) > 1e-9:
            raise ValueError(f"probe + pool + eval must be 1, got {self.probe + self.pool + self.eval:g}")
        return self


class WorldCorpusSection(Section):
    """What is asked about the knowledge world."""

    pool_questions: Annotated[int, Field(ge=10, le=2000)] = 600
    """Questions that may be bought."""
    probe_questions: Annotated[int, Field(ge=100, le=3000)] = 2200
    """Questions for labels, search and the probe."""
    domain_questions: Annotated[int, Field(ge=10, le=1000)] = 200
    """Eval questions about facts that no pool question asks."""
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


Format = Literal["generic", "nq_open", "trivia_qa", "medmcqa", "popqa", "entity_questions", "squad", "simpleqa"]


class CorpusSection(Section):
    """Where questions come from."""

    source: Annotated[Text | Annotated[tuple[Text, ...], Field(min_length=1)], NoKeys] = "world"
    """`world`, or one or several of: JSONL, JSON, CSV, TSV, Parquet and text files, compressed or not (globs, folders,
    local or URI), folders saved by `datasets`, hub ids OWNER/NAME."""
    format: Format = "generic"
    """How rows are read: as a known question set, or as `generic`, by the columns below."""
    question_column: str = "question"
    """For `generic`. A dotted path reaches into nested columns and cells of JSON: `doc.question.text`."""
    answers_column: str = "answers"
    """Gold answers: a text, a number, or a list of these. The column may be missing; then nothing is graded."""
    id_column: str = "id"
    """The corpus' own ids, which must differ. The column may be missing; then the id is a hash of the question."""
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
    prompt: PromptSection = PromptSection()
    split: SplitSection = SplitSection()
    world: WorldCorpusSection = WorldCorpusSection()
