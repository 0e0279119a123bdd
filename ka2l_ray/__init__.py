"""What a language model does not know, found out from a notebook: no run folder, no Ray.

In: sampled answers, hidden states, a model, a decoder. Out: entropies, probes, P(unknown), questions in words.
A name is loaded when it is first used, so importing this package loads nothing else.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ka2l_ray.api import SampledAnswers, read_states, sample_answers
    from ka2l_ray.decode.states import decode_states
    from ka2l_ray.entropy.semantic import semantic_entropy
    from ka2l_ray.models.probe import LinearProbe, StateSource, score_states
    from ka2l_ray.probe.fit import ProbeFit, ProbeRows, fit_probe

__all__ = [
    "LinearProbe",
    "ProbeFit",
    "ProbeRows",
    "SampledAnswers",
    "StateSource",
    "decode_states",
    "fit_probe",
    "read_states",
    "sample_answers",
    "score_states",
    "semantic_entropy",
]

_MODULES = {
    "api": ("SampledAnswers", "read_states", "sample_answers"),
    "decode.states": ("decode_states",),
    "entropy.semantic": ("semantic_entropy",),
    "models.probe": ("LinearProbe", "StateSource", "score_states"),
    "probe.fit": ("ProbeFit", "ProbeRows", "fit_probe"),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
