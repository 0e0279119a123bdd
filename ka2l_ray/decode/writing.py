"""The writing actor: stored states → questions, greedily.

In: batches of `decoder_states`. Out: `decoded_question`. Reads no question. Refuses to know: Ray, what becomes of what
it writes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ka2l_ray.config import ModelSection
from ka2l_ray.dataflow.placement import CPU, Placement
from ka2l_ray.dataflow.tally import Tally
from ka2l_ray.decode.decoders import load_decoder, write_all
from ka2l_ray.decode.question_states import states_of
from ka2l_ray.decode.states import decoder_folder
from ka2l_ray.models.abilities import Abilities
from ka2l_ray.models.loading import load_tokenizer


@dataclass(frozen=True, kw_only=True)
class WriteSetup:
    """`decoder` is a folder or a URI."""

    model: ModelSection
    decoder: str
    seed: int
    placement: Placement = CPU
    abilities: Abilities = Abilities()


class WriteActor:
    """Has the decoder and, where it is the studied model itself, that."""

    def __init__(self, setup: WriteSetup) -> None:
        self._seed, self.tally = setup.seed, Tally()
        folder, tokenizer = decoder_folder(setup.decoder), load_tokenizer(setup.model)
        self._decoder = load_decoder(folder, setup.model, tokenizer, None, setup.abilities, setup.placement)

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        """The column for a batch of any size."""
        states, ids = self._decoder.standardised(states_of(batch)), batch["id"].to_pylist()
        return {"decoded_question": write_all(self._decoder, states, ids, self._seed)}
