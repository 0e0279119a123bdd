"""An encoder-decoder as question decoder: hidden states go in as its encoder's embeddings, a question comes out.

In: of each question a pooled state (D,), and states (n, D) of the tokens that say of whom, none where the card reads
none. Out: questions in words, by the encoder-decoder's own tokenizer.
`Linear → GELU → Linear` turns the pooled state into pseudo-tokens, a linear map each token state into one; projections
and encoder-decoder are trained together. All of it is stored, so that nothing else is needed to decode, the studied
model least of all. Refuses to know: where states come from, Ray, tables. Source: KA2L, stage 2 (a projection and T5).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from ka2l_ray.config import ModelSection
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.decode.model import CARD
from ka2l_ray.decode.question_states import QuestionStates
from ka2l_ray.decode.standards import WEIGHTS, Standards, StatesCard, stored_weights
from ka2l_ray.decode.writing_loop import write_tokens
from ka2l_ray.errors import ConfigError
from ka2l_ray.models.hub import check_on_hub, is_on_hub
from ka2l_ray.models.loading import load_tokenizer, local_folder, named_by
from ka2l_ray.models.weights import check_weights
from ka2l_ray.text.tokens import end_id, ids_of, text_of

WRITER, FIELD = "writer", "decode.training.writer"


@dataclass(frozen=True, kw_only=True)
class Seq2SeqCard(StatesCard):
    """With what the writer began as, the `pooled_tokens` that it reads, and the most tokens of a question."""

    kind: str = "seq2seq"
    writer: str
    pooled_tokens: int = 8
    max_tokens: int = 64


def read_seq2seq_card(folder: Path) -> Seq2SeqCard:
    """The card of a decoder. Raises `OSError`, `ValueError` or `TypeError` where the folder contains none."""
    return Seq2SeqCard(**json.loads((folder / CARD).read_text()))


class Seq2SeqDecoder(nn.Module):
    """`writer` is any encoder-decoder of Hugging Face whose encoder reads embeddings."""

    def __init__(self, card: Seq2SeqCard, writer: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        embedding = int(cast(Any, writer.get_input_embeddings()).weight.shape[1])
        self.card, self.writer, self.tokenizer, self._wide = card, cast(Any, writer), tokenizer, embedding
        self.of_pooled, self.of_tokens = Standards(card.width), Standards(card.width)
        self.project = nn.Sequential(
            nn.Linear(card.width, 2 * card.width),
            nn.GELU(),
            nn.Linear(2 * card.width, card.pooled_tokens * embedding),
        )
        self.project_tokens = nn.Linear(card.width, embedding)
        self._end = end_id(tokenizer)
        self._start: int = self.writer.config.decoder_start_token_id

    def place(self, device: torch.device) -> "Seq2SeqDecoder":
        """Move everything to a device."""
        return self.to(device)

    def standardised(self, states: QuestionStates) -> QuestionStates:
        """Raw states less their mean, in standard deviations, of the training states."""
        return QuestionStates(self.of_pooled.less(states.pooled), [self.of_tokens.less(t) for t in states.tokens])

    def raw(self, standardised: QuestionStates) -> QuestionStates:
        """The inverse of `standardised`."""
        tokens = [self.of_tokens.more(t) for t in standardised.tokens]
        return QuestionStates(self.of_pooled.more(standardised.pooled), tokens)

    def begin(self, states: QuestionStates, questions: Sequence[str], whom: Sequence[Sequence[int]]) -> None:
        """Take means and deviations from states. The writer knows nothing of the studied model's tokens (`whom`), so
        the projections begin at random."""
        self.of_pooled.measure(torch.from_numpy(states.pooled))
        if any(map(len, states.tokens)):
            self.of_tokens.measure(torch.from_numpy(np.concatenate(states.tokens)))

    def labels(self, question: str) -> list[int]:
        """Token ids of the question, and the end token."""
        return [*ids_of(self.tokenizer, question, special_tokens=False), self._end]

    def read(self, states: QuestionStates) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (B, T, E) for the encoder, and their mask (B, T)."""
        device, standard = self.of_pooled.mean.device, self.standardised(states)
        pooled = self.project(torch.from_numpy(standard.pooled).to(device))
        pooled = pooled.unflatten(-1, (self.card.pooled_tokens, self._wide))
        lengths = [len(t) for t in standard.tokens]
        flat = np.concatenate([*standard.tokens, np.zeros((0, self.card.width), np.float32)])
        tokens = self.project_tokens(torch.from_numpy(flat).to(device)).split(lengths)
        rows = [torch.cat([p, t]) for p, t in zip(pooled, tokens, strict=True)]
        mask = pad_sequence([torch.ones(len(r), dtype=torch.long, device=device) for r in rows], batch_first=True)
        return pad_sequence(rows, batch_first=True), mask

    def forward(self, states: QuestionStates, questions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (A, V) that predict the tokens of questions, one after the other, and those tokens (A,)."""
        inputs, mask = self.read(states)
        written = [torch.tensor(self.labels(q), device=inputs.device) for q in questions]
        labels = pad_sequence(written, batch_first=True, padding_value=self._end)
        before = torch.cat([labels.new_full((len(labels), 1), self._start), labels[:, :-1]], 1)
        read = {"inputs_embeds": inputs, "attention_mask": mask}
        logits = self.writer(**read, decoder_input_ids=before, use_cache=False).logits
        lengths = torch.tensor([len(w) for w in written], device=inputs.device)
        own = torch.arange(labels.shape[1], device=inputs.device) < lengths.unsqueeze(-1)
        return logits[own], torch.cat(written)

    @torch.inference_mode()
    def write(self, states: QuestionStates, ids: Sequence[str], seed: int, temperature: float) -> list[str]:
        """A question for each row. A temperature of 0 is argmax; draws depend on (seed, id) only."""
        inputs, mask = self.read(states)
        most, ends = self.card.max_tokens, self._end
        rows = write_tokens(self.writer, inputs, mask, (self._start, ends), most, ids, seed, temperature)
        return [text_of(self.tokenizer, row) for row in rows]

    def stored(self) -> dict[str, torch.Tensor]:
        """What a decoder is, by name; tensors that are tied once."""
        found, seen = dict[str, torch.Tensor](), set[int]()
        for name, tensor in self.state_dict().items():
            if tensor.data_ptr() not in seen:
                found[name] = tensor
            seen.add(tensor.data_ptr())
        return found

    def _untie(self, names: Iterable[str]) -> None:
        """Give parameters of these names, which are others' too, values of their own: an encoder-decoder such as T5 1.1
        has them, whatever its configuration says of ties."""
        own = {name for name, _ in self.named_parameters(remove_duplicate=False)}
        for name in own.intersection(names):
            module, _, leaf = name.rpartition(".")
            place = self.get_submodule(module)
            setattr(place, leaf, nn.Parameter(getattr(place, leaf).detach().clone()))

    def save(self, folder: Path) -> None:
        """Write weights, the writer's configuration and tokenizer, and the card `decoder.json`, last."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.detach().cpu().contiguous() for k, v in self.stored().items()}, folder / WEIGHTS)
        self.writer.config.save_pretrained(folder / WRITER)
        self.tokenizer.save_pretrained(folder / WRITER)
        (folder / CARD).write_text(json.dumps(asdict(self.card), indent=1) + "\n")

    @classmethod
    def begun(cls, card: Seq2SeqCard, cache: str | None) -> "Seq2SeqDecoder":
        """With the pretrained writer that the card names: a hub id, a folder or a URI (`check_writer`)."""
        section = ModelSection(name_or_path=card.writer, cache=cache)
        with named_by(FIELD, section):
            writer = AutoModelForSeq2SeqLM.from_pretrained(local_folder(section), use_safetensors=True, dtype="float32")
            return cls(card, writer, load_tokenizer(section))

    @classmethod
    def load(cls, folder: Path) -> "Seq2SeqDecoder":
        """The decoder that `save` wrote, in evaluation mode.

        Raises `ConfigError` where the weights are no safetensors, or do not match the card.
        """
        writer = AutoModelForSeq2SeqLM.from_config(AutoConfig.from_pretrained(folder / WRITER))
        decoder = cls(read_seq2seq_card(folder), writer, AutoTokenizer.from_pretrained(folder / WRITER))
        tensors = stored_weights(folder)
        decoder._untie(tensors.keys() - decoder.stored().keys())
        if {k: v.shape for k, v in decoder.stored().items()} != {k: v.shape for k, v in tensors.items()}:
            raise ConfigError(f"{folder}: {WEIGHTS} does not match {CARD} and the configuration in {WRITER}")
        decoder.load_state_dict(tensors, strict=False)
        return decoder.eval()


def check_writer(name: str, cache: str | None) -> None:
    """Check what can be seen of a writer without reading weights, on the hub too.

    Raises `ConfigError` for one that is not there, is no encoder-decoder that writes text, has no safetensors, or says
    neither where a text begins nor where it ends.
    """
    section = ModelSection(name_or_path=name, cache=cache)
    with named_by(FIELD, section):
        if is_on_hub(section):
            check_on_hub(section)
        config: Any = AutoConfig.from_pretrained(local_folder(section, weights=False))
        if config.model_type not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
            raise ConfigError(
                f"{FIELD} = {name!r}: model type {config.model_type!r} is no encoder-decoder, as T5 and BART are; null "
                "lets the studied model write"
            )
        if not isinstance(getattr(config, "decoder_start_token_id", None), int):
            raise ConfigError(f"{FIELD} = {name!r}: its configuration has no decoder_start_token_id")
        if not is_on_hub(section):
            check_weights(Folder.of(name), f"{FIELD} = {name!r}")
        end_id(load_tokenizer(section))
