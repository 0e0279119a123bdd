"""Sections that say where a run is kept, which model it studies, and which questions it asks.

In: values of the file. Out: frozen, bounded sections.
Refuses to know: whether a file, model or cluster exists.
"""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ka2l_ray.config.base import Section, Share

_SECRET = re.compile(
    r"(secret|password|token|access_key|account_key|sas|credential)[^=&]*=|//[^/]*@|%2F%2F[^&]*%40", re.IGNORECASE
)


def refuse_keys(field: str, address: str) -> None:
    """Raise `ValueError`, which does not repeat the address, where it is a URI that holds a key, a password or a user's name."""
    place, _, query = address.partition("?")
    user = "://" in place and "@" in place.split("://")[1].split("/")[0]
    if user or ("://" in place and _SECRET.search(query)):
        raise ValueError(
            f"{field} must hold no keys, for it is kept with the run; set them in the environment, as AWS_ACCESS_KEY_ID"
        )


class RunSection(Section):
    """Which run this is and where it is kept."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] = "run"
    """Name of the run's folder below `storage`."""
    storage: Annotated[str, Field(min_length=1)] = "runs"
    """Folder or URI (`s3://…`, `gs://…`) that holds runs; on a cluster every node must reach it. Here and wherever a path is given, `~`,
    `$NAME` and `${NAME}` are replaced, and a relative path counts from where the command is started."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of splits, samples, acquisition and training."""
    max_error_fraction: Share = 0.01
    """A stage stops as soon as more than this share of its rows has failed in it; up to five rows are no reason to stop where they are at
    most a tenth of them. 0 allows none."""

    @model_validator(mode="after")
    def _no_keys(self) -> "RunSection":
        """a `storage` that holds a key, a password or a user's name."""
        refuse_keys("storage", self.storage)
        return self


class RaySection(Section):
    """The Ray cluster to use."""

    address: str | None = None
    """`auto`, `local`, `host:port` or `ray://…`; null uses RAY_ADDRESS where set and else starts a local cluster of its own."""
    local_cpus: Annotated[int, Field(ge=4)] = 6
    """Logical CPUs of a local cluster (at least 4: to read and to write take one each beside the actors)."""


class ModelSection(Section):
    """The causal language model under study."""

    name_or_path: Annotated[str, Field(min_length=1)] = "world"
    """`world` (the shipped model), a Hugging Face folder or its URI (copied once to every node that needs it), or a hub id."""
    revision: str | None = None
    """Commit or tag of a hub id."""
    adapter: str | None = None
    """Fine-tuned weights on top of it: a folder or URI with a PEFT adapter, which is merged, or with a full model of the same kind."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision to load in; `auto` is the checkpoint's own."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Load weights in 8 or 4 bits (bitsandbytes; `pip install 'ka2l-ray[quantization]'`): a half or a quarter of bfloat16's memory."""
    device: Literal["auto", "cpu"] = "auto"
    """Where models compute: `auto` is the GPUs that a stage's `pool.gpus` or `finetune.gpus_per_worker` allots, and the CPU where that is
    0; `cpu` keeps to the CPU whatever is allotted, for clusters whose GPUs are simulated."""
    trust_remote_code: bool = False
    """Run code from the model's repository. Off unless you trust its author."""

    @model_validator(mode="after")
    def _no_keys(self) -> "ModelSection":
        """a `name_or_path` or an `adapter` that holds a key, a password or a user's name."""
        refuse_keys("name_or_path", self.name_or_path)
        refuse_keys("adapter", self.adapter or "")
        return self

    @property
    def identity(self) -> str:
        """Names the weights, in cards and errors."""
        return "".join(
            (
                self.name_or_path,
                f"@{self.revision}" if self.revision else "",
                f" + {self.adapter}" if self.adapter else "",
            )
        )


class PromptSection(Section):
    """How a question becomes a prompt, and where an answer ends."""

    style: Literal["bare", "fewshot", "chat"] = "bare"
    """`bare`: the template alone; `fewshot`: instruction, solved examples, template; `chat`: instruction and question as a user's turn in
    the tokenizer's chat template."""
    template: str = "Question: {question}\nAnswer:"
    """Text with `{question}` in it; in `fewshot` of every solved example too, with a space and its first gold answer behind it. `chat`
    does not use it."""
    instruction: str = "Answer the question as briefly as you can."
    """What `fewshot` and `chat` begin with."""
    shots: Annotated[int, Field(ge=0, le=64)] | None = None
    """Solved examples, drawn by the run's seed from outside pool and eval and then asked no more: 5 for `fewshot` where left out, and none
    for `chat`, where they are earlier turns."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ("\n", "Question:")
    """An answer ends before the first of these, or at the model's end token."""

    special_tokens: bool = True
    """Whether the tokenizer adds its own tokens, such as one that begins a text; `chat` templates write theirs out."""

    @property
    def solved(self) -> int:
        """How many solved examples the prompt holds."""
        return (
            0 if self.style == "bare" else (5 if self.style == "fewshot" else 0) if self.shots is None else self.shots
        )

    @model_validator(mode="after")
    def _holds_question(self) -> "PromptSection":
        """a `template` that does not hold `{question}` exactly once."""
        if self.template.count("{question}") != 1:
            raise ValueError("template must hold {question} exactly once")
        return self


class SplitSection(Section):
    """Shares of a corpus of files, by groups of questions that are alike or about one entity; the world splits by `corpus.world`."""

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
    """Questions that label, search and fit the probe."""
    domain_questions: Annotated[int, Field(ge=10, le=1000)] = 200
    """Eval questions about facts that no pool question asks."""
    unknown_share: Annotated[float, Field(ge=0.05, le=0.95)] = 0.5
    """Share of pool questions about facts the model never saw."""
    misconceptions: bool = True
    """Whether facts learned wrong on purpose, and rare ones, are asked."""


class HubSection(Section):
    """Which part of a data set is read; for hub ids and folders saved by `datasets`."""

    subset: str | None = None
    """Its configuration, such as `rc.nocontext`."""
    split: str = "validation"
    """Its split, such as `train`. A saved folder without splits is read whole."""
    revision: str | None = None
    """Commit or tag; without one, a run on another day may read other rows."""


Source = Annotated[str, Field(min_length=1)]
Format = Literal["generic", "nq_open", "trivia_qa", "medmcqa", "popqa", "entity_questions", "squad", "simpleqa"]


class CorpusSection(Section):
    """Where questions come from."""

    source: Source | Annotated[tuple[Source, ...], Field(min_length=1)] = "world"
    """`world`; or one or several of: JSONL, JSON, CSV, TSV, Parquet and text files, packed or not (globs, folders, local or URI), folders
    saved by `datasets`, hub ids OWNER/NAME."""
    format: Format = "generic"
    """How rows are read: a known question set, or `generic`, by the columns below."""
    question_column: str = "question"
    """For `generic`. A dotted path reaches inside nested columns and cells of JSON: `doc.question.text`."""
    answers_column: str = "answers"
    """Gold answers: a text, a number, or a list of these; may be missing in the file, then nothing is graded."""
    id_column: str = "id"
    """The corpus' own ids, which must differ; where missing, the id is a hash of the question."""
    group_column: str = "group"
    """Topic, by which knowledge is reported and annotations may be balanced; may be missing."""
    entity_column: str = "entity"
    """Whom or what a question is about: questions about one entity never stand in two splits; may be missing."""
    hub: HubSection = HubSection()
    medmcqa_first: Literal["auto", 0, 1] = "auto"
    """What MedMCQA's `cop` counts options from: 1 in the authors' files, 0 on the hub. `auto` finds out, and refuses where both fit."""
    near_duplicates: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Questions at least this alike (Jaccard index of 4-letter pieces, by MinHash) never stand in two splits, and decoded ones this like
    an eval question are dropped; 1: only equal ones."""
    prompt: PromptSection = PromptSection()
    split: SplitSection = SplitSection()
    world: WorldCorpusSection = WorldCorpusSection()

    @model_validator(mode="after")
    def _no_keys(self) -> "CorpusSection":
        """a `source` that holds a key, a password or a user's name."""
        for source in (self.source,) if isinstance(self.source, str) else self.source:
            refuse_keys("source", source)
        return self
