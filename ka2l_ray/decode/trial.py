"""One trial of the search over the states that a decoder reads: they are read, and a decoder is trained on them.

In: questions, a card. Out: `trial.json`: the decoder's loss on held-out questions, and what it makes of their states.
Refuses to know: other cards, runs.
"""

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ka2l_ray.config import DecoderTrainingSection, ModelSection, PromptSection
from ka2l_ray.dataflow.placement import Placement
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.decode.decoders import load_decoder, write_all
from ka2l_ray.decode.fitting import DecoderJob, TrainedCard, fit_rank
from ka2l_ray.decode.metrics import reconstruction
from ka2l_ray.decode.question_states import states_of
from ka2l_ray.decode.reading import ReadActor, ReadSetup
from ka2l_ray.decode.whom import CommonWords
from ka2l_ray.errors import StageError
from ka2l_ray.models.abilities import Abilities
from ka2l_ray.models.loading import load_tokenizer
from ka2l_ray.models.prompts import Tokenize

RESULT = "trial.json"


@dataclass(frozen=True, kw_only=True)
class TrialSetup:
    """What all trials have in common. `questions` are rows of `decoder_questions`, held-out ones among them; `training`
    says how each is trained."""

    model: ModelSection
    prompt: PromptSection
    training: DecoderTrainingSection
    questions: pa.Table
    common: CommonWords
    placement: Placement
    abilities: Abilities
    seed: int


def run_trial(setup: TrialSetup, card: TrainedCard, output: Folder) -> dict[str, Any]:
    """Read the states that a card names, train on them, measure; writes `trial.json` last, and returns what is in it:
    `layer`, `position`, `token_layer`, `loss` on held-out questions in nats per token, and their `Reconstruction`.

    Raises `StageError` where no question can be read, `Refusal` as `fit_rank` does.
    """
    rows = _read(setup, card)
    held = rows.filter(rows["held_out"])
    taught = rows.filter(pc.invert(rows["held_out"]))  # pyright: ignore
    if not held.num_rows or taught.num_rows < setup.training.batch_rows:
        raise StageError(
            f"decode.training.search: {taught.num_rows} questions to train on and {held.num_rows} held out could be "
            f"read at layer {card.layer}; at least {setup.training.batch_rows} and 1 are needed"
        )
    with tempfile.TemporaryDirectory(prefix="ka2l-trial-") as scratch:
        decoder = Path(scratch) / "decoder"
        job = DecoderJob(
            card=card,
            model=setup.model,
            training=setup.training,
            placement=setup.placement,
            begin=taught,
            held=held,
            rows=taught.num_rows,
            output=Folder.of(str(decoder)),
            progress=output / "progress.json",
            seed=setup.seed,
        )
        history = fit_rank(job, lambda epoch: _batches(taught, job, epoch), 0, 1, _Nowhere(Path(scratch)))
        written = _written(setup, held, decoder)
    found = asdict(reconstruction(written, held["question"].to_pylist(), held["entity"].to_pylist()))
    states = {"layer": card.layer, "position": card.position, "token_layer": card.token_layer}
    result = states | {"loss": min(loss for _, loss in history["held_out"]), "steps": history["steps"]} | found
    (output / RESULT).write_json(result)
    return result


def _read(setup: TrialSetup, card: TrainedCard) -> pa.Table:
    """The questions that can be read, with the states that the card names."""
    where = {"layer": card.layer, "position": card.position, "token_layer": card.token_layer}
    common, placement = {"common": setup.common, "abilities": setup.abilities}, setup.placement
    actor = ReadActor(ReadSetup(model=setup.model, prompt=setup.prompt, placement=placement, **where, **common))
    asked = Tokenize(setup.model, setup.prompt).add(setup.questions)
    read = dict(actor(asked))
    errors = read.pop("error", [None] * asked.num_rows)
    rows = setup.questions.select(["question", "entity", "held_out"])
    for name, values in read.items():
        rows = rows.append_column(name, values if isinstance(values, pa.Array) else pa.array(values))
    return rows.filter(pa.array([e is None for e in errors]))


def _batches(rows: pa.Table, job: DecoderJob, epoch: int) -> Iterator[pa.Table]:
    """The rows in an order of the epoch's own, in whole batches."""
    order, size = np.random.default_rng([job.seed, epoch]).permutation(rows.num_rows), job.training.batch_rows
    for start in range(0, rows.num_rows - size + 1, size):
        yield rows.take(pa.array(order[start : start + size]))


def _written(setup: TrialSetup, held: pa.Table, folder: Path) -> list[str]:
    """Held-out questions, decoded greedily from their own states."""
    tokenizer = load_tokenizer(setup.model)
    decoder = load_decoder(folder, setup.model, tokenizer, None, setup.abilities, setup.placement)
    return write_all(decoder, decoder.standardised(states_of(held)), [str(n) for n in range(len(held))], setup.seed)


@dataclass(frozen=True)
class _Nowhere:
    """No checkpoints: a trial that is killed is short enough to be made again."""

    scratch: Path

    def latest(self) -> AbstractContextManager[str | None]:
        return nullcontext()

    def new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.scratch))

    def submit(self, folder: Path, step: int) -> None:
        pass

    def barrier(self) -> None:
        pass


def for_trials(training: DecoderTrainingSection) -> DecoderTrainingSection:
    """How each trial is trained: as the decoder will be, but by one worker and on fewer questions."""
    search = training.search
    steps = max(1, search.examples // training.batch_rows)
    short = {"examples": search.examples, "workers": 1, "evaluate_every_steps": max(1, steps // 4)}
    short |= {"held_out_rows": search.held_out_rows, "checkpoint_every_steps": steps + 1}
    return training.model_copy(update=short)


def cards_of(card: TrainedCard, training: DecoderTrainingSection) -> dict[str, TrainedCard]:
    """By name the cards that are tried: every combination of layer, position and token layer."""
    search = training.search
    token_layers = [None if at == "none" else at for at in search.token_layers]
    tried = product(search.layers, search.positions, token_layers)
    return {
        f"{position}_{layer:03d}_tokens_{'none' if at is None else f'{at:03d}'}": replace(
            card, layer=layer, position=position, token_layer=at
        )
        for layer, position, at in tried
    }
