"""What is stored with every decoder: which states it reads, their means and deviations, its weights.

In: states (N, D); a decoder's folder. Out: the same less their mean, in standard deviations, and back; tensors. Refuses
to know: how decoders write.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from ka2l_ray.errors import ConfigError

WEIGHTS = "decoder.safetensors"


@dataclass(frozen=True, kw_only=True)
class StatesCard:
    """The states that a decoder reads: of `model` (`ModelSection.identity`) under `prompt`, the pooled state at `layer`
    and `position`, and the states of tokens at `token_layer` (None: none), each of `width` D."""

    model: str
    prompt: str
    layer: int
    position: str
    token_layer: int | None
    width: int
    held_out: float = 0.05
    """Share of the entities that it was never trained on (`self_decoder.is_held_out`)."""


def stored_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a decoder's folder by name. Raises `ConfigError` where they are no safetensors."""
    try:
        return load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ConfigError(
            f"{folder}: {WEIGHTS} is not a safetensors file, and no other kind is read: {error}"
        ) from error


class Standards(nn.Module):
    """`mean` and `scale` (D,), which are stored with a decoder."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    @torch.no_grad()
    def measure(self, states: torch.Tensor) -> None:
        """Take both from states (N, D)."""
        self.mean.copy_(states.mean(0))
        self.scale.copy_(states.std(0, correction=0).clamp(min=1e-6))

    def standardised(self, states: torch.Tensor) -> torch.Tensor:
        """Raw states (…, D) less the mean, in standard deviations."""
        return (states.to(self.mean) - self.mean) / self.scale

    def less(self, states: np.ndarray) -> np.ndarray:
        """As `standardised`, of an array."""
        mean, scale = self._numbers()
        return ((states - mean) / scale).astype(np.float32)

    def more(self, standardised: np.ndarray) -> np.ndarray:
        """The inverse of `less`."""
        mean, scale = self._numbers()
        return (standardised * scale + mean).astype(np.float32)

    def _numbers(self) -> tuple[np.ndarray, np.ndarray]:
        return self.mean.float().cpu().numpy(), self.scale.float().cpu().numpy()


def stored_standards(folder: Path, width: int, prefix: str) -> Standards:
    """Those of the decoder in a folder whose tensors' names begin so."""
    made = Standards(width)
    with safe_open(folder / WEIGHTS, "pt") as stored:  # no other tensor is read
        made.load_state_dict({part: stored.get_tensor(f"{prefix}{part}") for part in ("mean", "scale")})
    return made
