"""The linear probe: a layer's state → P(unknown).

In: states (B, D). Out: probabilities (B,). Stored as safetensors next to a card that names the states it was fitted on.
Refuses to know: how it was fitted, Ray. Source: KA2L, stage 1, step 6, with a linear map in place of the published MLP.
"""

from dataclasses import asdict, dataclass

import numpy as np
from safetensors.numpy import load, save

from ka2l_ray.dataflow.storage import Folder


@dataclass(frozen=True)
class ProbeCard:
    """The states that a probe reads (model, prompt, layer, position, width D), γ in nats, and how it was fitted."""

    model: str
    prompt: str
    layer: int
    position: str
    width: int
    threshold_nats: float
    inverse_regularization: float


@dataclass(frozen=True)
class LinearProbe:
    """`weight` (D,) and `bias` act on raw states: the standardisation is folded in."""

    weight: np.ndarray
    bias: float
    card: ProbeCard

    def __call__(self, states: np.ndarray) -> np.ndarray:
        """P(unknown) (B,) of states (B, D). Raises `ValueError` for states of another width."""
        if states.shape[-1] != self.weight.shape[0]:
            raise ValueError(f"the probe reads states of width {self.weight.shape[0]}, got {states.shape[-1]}")
        logits = states.astype(np.float64) @ self.weight + self.bias
        return 1.0 / (1.0 + np.exp(-np.clip(logits, -500, 500)))

    def save(self, folder: Folder) -> None:
        """Write `probe.safetensors`, then the card `probe.json`: a folder with a card contains a complete probe."""
        tensors = {"weight": np.ascontiguousarray(self.weight), "bias": np.array([self.bias])}
        (folder / "probe.safetensors").write_bytes(save(tensors))
        (folder / "probe.json").write_json(asdict(self.card))

    @classmethod
    def load(cls, folder: Folder) -> "LinearProbe":
        """The probe that `save` wrote. Raises `FileNotFoundError` where there is none."""
        tensors = load((folder / "probe.safetensors").read_bytes())
        return cls(tensors["weight"], float(tensors["bias"][0]), ProbeCard(**(folder / "probe.json").read_json()))
