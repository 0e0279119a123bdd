"""The question decoder: a hidden state → a question in words.

In: states (B, D). Out: token ids. `Linear → GELU → Linear` turns a state into P pseudo-token embeddings that a T5
reads. Stored as safetensors next to a card that names the states it was trained on.
Refuses to know: where states come from, Ray, files outside its folder. Source: KA2L, stage 2.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from ka2l_ray.decode.standards import stored_weights
from ka2l_ray.decode.writing_loop import write_tokens
from ka2l_ray.errors import ConfigError

CARD = "decoder.json"


@dataclass(frozen=True)
class DecoderCard:
    """The states that a decoder reads (model, prompt, layer, position, width D), and its own size and vocabulary."""

    model: str
    prompt: str
    layer: int
    position: str
    width: int
    vocabulary: int
    pad_token: int
    end_token: int
    pseudo_tokens: int = 8
    inner_width: int = 128
    layers: int = 2
    heads: int = 4
    feed_forward: int = 384
    max_tokens: int = 24

    @property
    def token_layer(self) -> None:
        """It reads no states of tokens."""
        return None

    @property
    def held_out(self) -> float:
        """It was trained on questions that no corpus contains word by word."""
        return 1.0


def read_card(folder: Path) -> DecoderCard:
    """The card of a decoder. Raises `FileNotFoundError` where the folder contains none."""
    return DecoderCard(**json.loads((folder / CARD).read_text()))


class StateDecoder(nn.Module):
    """A T5 behind a projection. States are first standardised with the `mean` and `scale` (D,) of the training
    states."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, card: DecoderCard) -> None:
        super().__init__()
        self.card = card
        self.register_buffer("mean", torch.zeros(card.width))
        self.register_buffer("scale", torch.ones(card.width))
        self.project = nn.Sequential(
            nn.Linear(card.width, 2 * card.width),
            nn.GELU(),
            nn.Linear(2 * card.width, card.pseudo_tokens * card.inner_width),
        )
        self.t5 = T5ForConditionalGeneration(
            T5Config(
                vocab_size=card.vocabulary,
                d_model=card.inner_width,
                d_kv=card.inner_width // card.heads,
                d_ff=card.feed_forward,
                num_layers=card.layers,
                num_decoder_layers=card.layers,
                num_heads=card.heads,
                dropout_rate=0.0,
                pad_token_id=card.pad_token,
                eos_token_id=card.end_token,
            )
        )
        self.t5.config.decoder_start_token_id = card.pad_token

    def standardised(self, states: np.ndarray) -> np.ndarray:
        """Raw states (B, D) less the mean, in standard deviations, of the training states."""
        return ((states - self.mean.cpu().numpy()) / self.scale.cpu().numpy()).astype(np.float32)

    def raw(self, standardised: np.ndarray) -> np.ndarray:
        """The inverse of `standardised`."""
        return (standardised * self.scale.cpu().numpy() + self.mean.cpu().numpy()).astype(np.float32)

    def pseudo_tokens(self, states: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, P, d) of states (B, D)."""
        return self.project((states - self.mean) / self.scale).view(
            len(states), self.card.pseudo_tokens, self.card.inner_width
        )

    def forward(self, states: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy in nats per token, and teacher-forced logits (B, T, V), for questions `labels` (B, T) with -100
        as padding."""
        output = self.t5(inputs_embeds=self.pseudo_tokens(states), labels=labels)
        return output.loss, output.logits

    @torch.inference_mode()
    def write(self, states: torch.Tensor, ids: list[str], seed: int, temperature: float) -> list[list[int]]:
        """Token ids of one question per state (B, D), without the end token. A temperature of 0 is argmax; draws depend
        on (seed, id) only."""
        card, inputs = self.card, self.pseudo_tokens(states)
        ends = (card.pad_token, card.end_token)
        return write_tokens(self.t5, inputs, None, ends, card.max_tokens, ids, seed, temperature)

    def save(self, folder: Path) -> None:
        """Write `decoder.safetensors` and the card `decoder.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.contiguous() for k, v in self.state_dict().items() if k in self._stored_keys()}
        save_file(tensors, folder / "decoder.safetensors")
        (folder / CARD).write_text(json.dumps(asdict(self.card), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "StateDecoder":
        """The decoder that `save` wrote, in evaluation mode.

        Raises `ConfigError` where the weights are no safetensors, or do not match the card.
        """
        decoder = cls(read_card(folder))
        tensors = stored_weights(folder)
        missing, unexpected = decoder.load_state_dict(tensors, strict=False)
        if unexpected or set(missing) & decoder._stored_keys():
            raise ConfigError(
                f"{folder}: decoder.safetensors does not match decoder.json: missing {missing}, unexpected {unexpected}"
            )
        return decoder.eval()

    def _stored_keys(self) -> set[str]:
        """Keys that are written: tied embeddings only once, as `t5.shared`."""
        tied = {"t5.encoder.embed_tokens.weight", "t5.decoder.embed_tokens.weight", "t5.lm_head.weight"}
        return set(self.state_dict()) - tied
