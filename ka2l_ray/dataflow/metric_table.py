"""Every metric of this package: its name, kind, unit, meaning and tags; the ratios that are drawn from them.

In: nothing. Out: `METRICS`, which actors and workers report and `cluster/grafana.json` draws; `RATIOS`.
Refuses to know: Ray, who counts, how a dashboard looks.
"""

from dataclasses import dataclass
from typing import Literal

RUN_AND_STAGE = ("run", "stage")
"""A comparison's runs are its seeds, `seed_0` and so on."""
TRAINING = (*RUN_AND_STAGE, "round")


@dataclass(frozen=True)
class Metric:
    """`name` is without prefix and suffix. `unit` is a plural noun, or `s` for seconds.

    A counter only grows, and has no value before it was first raised. A gauge is of one process, and ends with it.
    `drawn`: a counter as its `rate` or, where it may grow only once per process, which no rate shows, as its `total`; a
    gauge as the `sum` or `max` over processes.
    """

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    about: str
    drawn: Literal["rate", "total", "sum", "max"]
    tags: tuple[str, ...] = RUN_AND_STAGE

    @property
    def reported(self) -> str:
        """The name that Ray is given."""
        return f"ka2l_{self.name}_total" if self.kind == "counter" else f"ka2l_{self.name}"

    @property
    def exported(self) -> str:
        """The name at the metrics endpoint of every node, where Prometheus reads it."""
        return f"ray_{self.reported}"


OF_STAGES = (
    Metric("rows", "counter", "rows", "Rows that actors finished in this stage, failed ones included.", "rate"),
    Metric("failed_rows", "counter", "rows", "Rows that failed in this stage; tables keep their errors.", "total"),
    Metric("busy_s", "counter", "s", "Time that actors worked on shards, in the model or not.", "rate"),
    Metric("waiting_s", "counter", "s", "Time that loaded actors waited for their next shard.", "rate"),
    Metric("actors_loaded", "counter", "actors", "Actors that loaded; many more than live means deaths.", "total"),
    Metric("load_s", "counter", "s", "Time that actors took to load, before their first row.", "total"),
    Metric("actors", "gauge", "actors", "Loaded actors that are alive.", "sum"),
)
"""Of every stage that is a pool of actors."""
OF_MODELS = (
    Metric("questions", "counter", "questions", "Questions that models read.", "rate"),
    Metric("prompt_tokens", "counter", "tokens", "Tokens read, of the questions' own parts of prompts.", "rate"),
    Metric("padding_tokens", "counter", "tokens", "Tokens of padding that were read with them.", "rate"),
    Metric("prefix_tokens_saved", "counter", "tokens", "Tokens of shared prefixes that were not read again.", "rate"),
    Metric("generated_tokens", "counter", "tokens", "Tokens of answers.", "rate"),
    Metric("edge_draws", "counter", "draws", "Draws that rounding might have decided otherwise.", "total"),
    Metric("out_of_memory", "counter", "batches", "Batches that did not fit into memory.", "total"),
    Metric("model_s", "counter", "s", "Time in forward passes and answers.", "rate"),
)
"""Of actors that contain a language model: what its `tally.Tally` counts."""
OF_TRAININGS = (
    Metric("training_step", "gauge", "steps", "Optimiser steps done.", "max", TRAINING),
    Metric("training_steps", "gauge", "steps", "Optimiser steps of the whole training run.", "max", TRAINING),
    Metric("training_loss", "gauge", "nats", "Loss of the last step, per answer token.", "max", TRAINING),
    Metric("training_step_s", "gauge", "s", "Time that the last step took.", "max", TRAINING),
)
"""Of rank 0 of a training run."""
METRICS = {m.name: m for m in (*OF_STAGES, *OF_MODELS, *OF_TRAININGS)}


@dataclass(frozen=True)
class Ratio:
    """How much one counter grew, by how much others grew together. `unit` is a metric's, or `share` (0 to 1)."""

    title: str
    about: str
    unit: str
    above: str
    below: tuple[str, ...]


SPENT = ("busy_s", "waiting_s")
RATIOS = (
    Ratio("Share of rows that failed", "`run.max_error_fraction` stops a stage.", "share", "failed_rows", ("rows",)),
    Ratio("Share of time waiting", "Near 1: reading is too slow for these actors.", "share", "waiting_s", SPENT),
    Ratio("Share of time in the model", "The rest is waiting, sorting and packing.", "share", "model_s", SPENT),
    Ratio("Share of padding", "Of tokens read.", "share", "padding_tokens", ("prompt_tokens", "padding_tokens")),
    Ratio("Tokens per question", "Of all its answers together.", "tokens", "generated_tokens", ("questions",)),
    Ratio("Time to load an actor", "Before its first row; the mean.", "s", "load_s", ("actors_loaded",)),
)
