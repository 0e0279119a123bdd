"""The stage that reads the states of a decoder's card, and where a run's decoder is.

In: a run, a card. Out: a `Stage` for `decoder_states` or `probe_states`; addresses. Refuses to know: what is done with
the states.
"""

from collections.abc import Collection

import pyarrow as pa

from ka2l_ray import schema
from ka2l_ray.dataflow.placement import of_actor
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.shard_size import row_seconds
from ka2l_ray.dataflow.stage import Stage
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.decode.decoders import Card
from ka2l_ray.decode.reading import ReadActor, ReadSetup
from ka2l_ray.decode.whom import CommonWords
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.examine import abilities_of
from ka2l_ray.models.prompts import Tokenize, corpus_prompt

TRAINED = "training.json"
"""Written last into the folder of a decoder that a run has trained."""


def decoder_of(run: Run) -> Folder:
    """The folder of the decoder that a run has trained, or will."""
    return run.folder / "base/decoder/trained"


def is_trained(run: Run) -> bool:
    """Whether the run has trained a decoder."""
    return (decoder_of(run) / TRAINED).exists()


def decoder_address(run: Run) -> str:
    """Where the run's decoder is: as `decode.decoder` says or, where that is null, what the run has trained."""
    return run.config.decode.decoder or decoder_of(run).uri


def common_words(run: Run) -> CommonWords:
    """Which words say what is asked rather than of whom: by the questions that the run's decoder is trained on, else by
    the probe split."""
    asked = run.base("decoder/questions")
    names = ["question", "group"]
    batches = asked.batches(names) if asked.is_done else run.table("questions").batches(names, part="probe")
    return CommonWords.of((r["question"], r["group"]) for b in batches for r in b.to_pylist())


def reading(run: Run, card: Card, table: str, kinds: Collection[str] | None = None) -> Stage[ReadSetup]:
    """The stage that writes the states of a card into `table`, on the pool that scores: both read first blocks. `kinds`
    are the ids of the questions of whom it also reads of what kind they are; None adds no such column."""
    config, prompt, pool = run.config, corpus_prompt(run), run.config.score.pool
    pooled, half = pa.list_(pa.float32(), card.width), pa.list_(pa.float16(), card.width)
    return Stage(
        name="decode",
        run=config.run.name,
        spec=schema.TABLES[table],
        actor=ReadActor,
        setup=ReadSetup(
            model=config.model,
            prompt=prompt,
            layer=card.layer,
            position=card.position,
            token_layer=card.token_layer,
            kinds=None if kinds is None else frozenset(kinds),
            common=common_words(run),
            limits=Limits.of(pool),
            placement=of_actor(config.model, pool, "score"),
            abilities=abilities_of(config.model),
        ),
        pool=pool,
        tasks=config.ray.tasks,
        states=pa.schema(
            [("state", pooled), ("tokens", pa.list_(half)), *([] if kinds is None else [("kind_state", pooled)])]
        ),
        max_error_fraction=config.run.max_error_fraction,
        prepare=Tokenize(config.model, prompt),
        row_seconds=row_seconds(pool),
    )
