"""The linear probe: a layer's state → P(unknown).

In: states (N, D). Out: probabilities (N,). Stored as safetensors next to a card that names the states it was fitted on.
Refuses to know: how it was fitted, Ray. Source: KA2L, stage 1, step 6, with a linear map in place of the published MLP.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import StageError


@dataclass(frozen=True)
class StateSource:
    """Where states come from: the model's name, the prompt's template, the layer (0 … L), `last` or `mean`."""

    model: str
    prompt: str
    layer: int
    position: str


@dataclass(frozen=True)
class ProbeCard(StateSource):
    """The states that a probe reads, their width D, and the γ and C that it was fitted with."""

    width: int
    threshold_nats: float
    inverse_regularization: float


@dataclass(frozen=True)
class LinearProbe:
    """`weight` (D,) and `bias` act on raw states: the standardisation is folded in. `score_states` applies it."""

    weight: np.ndarray
    bias: float
    card: ProbeCard

    def save(self, folder: Folder | str | Path) -> None:
        """Write `probe.safetensors`, then `probe.json`, the card: a folder with a card has a whole probe."""
        place = _folder(folder)
        (place / "probe.safetensors").write_bytes(
            save({"weight": np.ascontiguousarray(self.weight), "bias": np.array([self.bias])})
        )
        (place / "probe.json").write_json(asdict(self.card))

    @classmethod
    def load(cls, folder: Folder | str | Path) -> "LinearProbe":
        """Read what `save` wrote, from a path or URI.

        Raises `FileNotFoundError` where there is no probe, `StageError` where a file is something else.
        """
        place = _folder(folder)
        file = place / "probe.safetensors"
        try:
            tensors = load(file.read_bytes())
        except SafetensorError as error:
            raise StageError(
                f"{file.path}: is not a safetensors file ({error}), and no other kind of weights is read. Write it "
                "again with `ka2l run CONFIG --redo search`"
            ) from error
        return cls(tensors["weight"], float(tensors["bias"][0]), ProbeCard(**(place / "probe.json").read_json()))


def score_states(states: np.ndarray, probe: LinearProbe) -> np.ndarray:
    """P(unknown) (N,), float64, of raw states (N, D): the logistic function of `states @ weight + bias`.

    Raises `ValueError` for states of another width. Source: KA2L, stage 1, step 6.

    >>> import numpy as np
    >>> from ka2l_ray import LinearProbe, ProbeRows, fit_probe, score_states
    >>> states = np.random.default_rng(0).normal(size=(400, 8))
    >>> probe = fit_probe(states, ProbeRows(states[:, 0] > 0)).probe
    >>> score_states(np.eye(8)[:2] * 3, probe).round(1)
    array([1. , 0.5])
    """
    if states.shape[-1] != len(probe.weight):
        raise ValueError(f"the probe reads states of width {len(probe.weight)}, got {states.shape[-1]}")
    logits = states.astype(np.float64) @ probe.weight + probe.bias
    return 1.0 / (1.0 + np.exp(-np.clip(logits, -500, 500)))


def _folder(folder: Folder | str | Path) -> Folder:
    return folder if isinstance(folder, Folder) else Folder.of(str(folder))
