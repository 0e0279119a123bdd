"""How samples are drawn: as the configuration says or, where it says `auto`, as the model's authors do.

In: the sections `model` and `collect`. Out: `collect` with numbers only, and a line that says where they come from; the
`Decoding` that it stands for.
Refuses to know: logits, engines, Ray.
"""

from pathlib import Path

from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from ka2l_ray.config import CollectSection, ConfigError, ModelSection, PromptSection
from ka2l_ray.models.answers import Decoding
from ka2l_ray.models.loading import local_folder
from ka2l_ray.text.answers import ends_in_thought

STATED = ("temperature", "top_k", "top_p", "min_p")
UNSTATED = {"temperature": 0.7, "top_p": 0.9}
"""For a model that states nothing: at T = 1 a real vocabulary gives ten different answers to any question."""


def sampled_as(model: ModelSection, collect: CollectSection) -> tuple[CollectSection, str | None]:
    """The section with a number for the temperature, where None for another field means that it drops no token; and
    what `auto` became, None where the configuration gives a temperature.

    Fields that the configuration gives are kept. Raises `ConfigError` for a temperature that nothing can be sampled at.
    """
    if collect.temperature != "auto":
        return collect, None
    own = _stated(model)
    values = {"temperature": 1.0} | (own or UNSTATED)
    values |= {name: getattr(collect, name) for name in STATED[1:] if getattr(collect, name) is not None}
    if not 0 < values["temperature"] <= 10:
        raise ConfigError(
            f"collect.temperature = 'auto': the generation_config.json of {model.name_or_path!r} says "
            f"{values['temperature']:g}, at which nothing can be sampled; give a number above 0"
        )
    shown = ", ".join(f"{name} = {values[name]:g}" for name in STATED if name in values)
    source = "as its generation_config.json states" if own else "because its generation_config.json states no sampling"
    return collect.model_copy(update=values), f"collect.temperature = 'auto': samples at {shown}, {source}"


def decoding_of(collect: CollectSection, prompt: PromptSection, seed: int, samples: int) -> Decoding:
    """A greedy answer and so many samples under a resolved prompt, drawn as `collect` says, which must give a number
    for the temperature where any are drawn."""
    return Decoding(
        seed=seed,
        samples=samples,
        temperature=float(collect.temperature) if samples else 1.0,
        greedy_temperature=collect.greedy_temperature,
        max_new_tokens=collect.max_new_tokens,
        stop=prompt.stop,
        thinks=ends_in_thought(prompt.template),
        top_k=collect.top_k,
        top_p=1.0 if collect.top_p is None else collect.top_p,
        min_p=collect.min_p or 0.0,
    )


def _stated(model: ModelSection) -> dict[str, float | int]:
    """What the model's authors state of sampling, without values that drop no token; empty where they state nothing.

    Raises what `local_folder` raises: a hub that does not answer states something all the same."""
    folder = local_folder(model, weights=False)
    if not Path(folder, GENERATION_CONFIG_NAME).is_file():
        return {}
    stated = GenerationConfig.from_pretrained(folder).to_dict()
    drops_none = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
    found = {name: value for name in STATED if (value := stated.get(name)) is not None}
    return {name: value for name, value in found.items() if value != drops_none.get(name) and value != -1}
