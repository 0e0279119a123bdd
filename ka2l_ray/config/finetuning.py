"""Sections of fine-tuning: weights, replay, optimiser, DeepSpeed, workers.

In: values of the file. Out: frozen, bounded sections, refused if their fields contradict each other.
Refuses to know: DeepSpeed and its own configuration.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from ka2l_ray.config.base import NodesSection, Positive, Section, Share
from ka2l_ray.config.subject import PromptSection


class LoraSection(Section):
    """Low-rank adapters (PEFT)."""

    rank: Positive = 16
    """Rank of each adapter."""
    alpha: Positive = 32
    """Adapters are scaled by `alpha` / `rank`."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the adapters during training."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Modules that get an adapter: every linear one except the head, or names such as `[q_proj, v_proj]`."""
    last_blocks: Positive | None = None
    """Adapters in so many last blocks only. Earlier ones stay as they are: no gradient passes through them, and what
    they make of a row is kept once it was read (at most 1 GiB per worker), so a step takes about the share of the
    blocks that is left. Not under ZeRO-3, with `gradient_checkpointing`, or where anything drops out."""


class ReplaySection(Section):
    """Unbought pool questions mixed into training, labelled with the base model's own answers: no annotation cost."""

    ratio: NonNegativeFloat = 2.0
    """Questions replayed in every round, per annotation of the whole budget: the same number for every strategy and
    round."""
    unknown_share: Share = 0.5
    """Share of them that the probe predicts to be unknown, as far as the pool has them; the rest is predicted known."""
    source: Literal["samples", "greedy"] = "samples"
    """`samples`: drawn at T = 1, which keeps the base model's uncertainty. `greedy`: its single most likely answer."""
    samples: Positive = 4
    """Samples drawn per replayed question; training cycles through them from epoch to epoch."""
    gold_is_free: bool = False
    """For corpora where gold answers of unbought questions cost nothing: replay only the right ones among a question's
    own answers, if there are any."""
    kl_weight: NonNegativeFloat = 0.0
    """Weight of KL(base ‖ tuned), added to the cross-entropy at the answer tokens of replayed rows (except the end
    token, which a base model need not use). It preserves the base model's whole distribution there, not only what was
    sampled from it. Costs a second pass of the base model."""


class FinetuneSection(Section):
    """DeepSpeed-backed Ray Train on the annotations bought so far."""

    start: Literal["base"] = Field(default="base", alias="from")
    """Where a round starts: `base`, the model as it was before any round."""
    mode: Literal["lora", "full"] = "full"
    """What is trained: `lora` adapters, or the `full` weights."""
    prompt: PromptSection = PromptSection()
    """The prompt that the model is trained and evaluated with, and that its own answers for replay are sampled with;
    `bare` by default. Accuracy under `corpus.prompt` is reported as well."""
    lora: LoraSection = LoraSection()
    replay: ReplaySection = ReplaySection()
    rewordings: bool = True
    """Show a bought question in the corpus's other wordings too (`corpus.rewordings`), one per epoch in turn, so that
    the fact is learned and not its wording. The one that is reserved for eval is never shown."""
    epochs: Positive = 25
    """Passes over a round's annotations and replayed questions."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 5e-4
    """AdamW's learning rate after warm-up, the highest of a training run."""
    schedule: Literal["linear", "cosine"] = "linear"
    """How the learning rate falls to zero after warm-up."""
    warmup_share: Share = 0.1
    """Share of the steps over which the learning rate rises linearly."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's weight decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Norm that gradients are clipped to."""
    batch_rows: Positive = 32
    """Rows of one optimiser step over all workers and accumulation steps."""
    micro_batch_rows: Positive = 16
    """Rows of one forward pass on one worker."""
    group_by_length: bool = False
    """Fill each step with rows of similar length (shuffled within windows of 16 steps): less padding on real text."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of weights and passes: `auto` is what `model.dtype` loads. AdamW's own state is always float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third more time for much less memory."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO: 0 is plain data parallel, 1 shards optimiser state, 2 also gradients, 3 also weights."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What ZeRO keeps in the host's memory: the optimiser's state (stages 1 to 3), or also the weights (stage 3)."""
    workers: Positive = 2
    """Processes of one training run; each does its share of every step's rows."""
    cpus_per_worker: PositiveFloat = 1.0
    """Logical CPUs of one worker; without a GPU also the number of threads it computes with."""
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] = 0
    """GPUs of one worker; 0 trains on the CPU."""
    nodes: NodesSection = NodesSection()
    """Where the workers run. A worker that is lost costs all of them the steps since the last checkpoint, so keep them
    off nodes that may be taken away: `{ray.io/market-type: on-demand}`."""
    checkpoint_every_steps: NonNegativeInt = 200
    """Optimiser steps between checkpoints in the run's storage: the most that is lost when a worker or the driver dies;
    0 writes none."""
    max_failures: NonNegativeInt = 2
    """How often a training run starts again from its last checkpoint after a worker died."""
    evaluate_every_epochs: NonNegativeInt = 0
    """Epochs between evaluations (loss and token accuracy on `evaluate_rows` eval questions, for the record only); 0
    makes none."""
    evaluate_rows: Positive = 128
    """Number of eval questions with gold in these evaluations, drawn by their ids."""
    merge: bool = False
    """Also write the base model's weights with the adapter merged in, to `merged/`."""
    tensorboard: bool = False
    """Also write TensorBoard event files, to `tensorboard/` next to the model."""

    def contradictions(self) -> Iterator[str]:
        """`batch_rows` that is not a multiple of `workers` or, above `micro_batch_rows` × `workers`, not a multiple of
        that; `offload: all` without `zero_stage: 3`, `offload: optimizer` without 1, 2 or 3; `merge` without `mode:
        lora`; `prompt.enable_thinking: true`."""
        if self.prompt.enable_thinking:
            yield "prompt.enable_thinking must be false: the model is trained on answers without thoughts"
        if self.batch_rows % (per_step := self.micro_batch_rows * self.workers) and self.batch_rows > per_step:
            yield (f"batch_rows ({self.batch_rows}) must be a multiple of micro_batch_rows × workers ({per_step})")
        if self.batch_rows % self.workers:
            yield f"batch_rows ({self.batch_rows}) must be a multiple of workers ({self.workers})"
        if self.offload == "all" and self.zero_stage != 3:
            yield f"offload: all needs zero_stage: 3, got {self.zero_stage}; `optimizer` works from stage 1"
        if self.offload == "optimizer" and self.zero_stage == 0:
            yield "offload: optimizer needs zero_stage 1, 2 or 3"
        if self.merge and self.mode != "lora":
            yield "merge needs mode: lora; a full fine-tuning has nothing to merge"
