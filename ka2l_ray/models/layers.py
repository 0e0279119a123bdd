"""Which layers of a model a run stores, and what is loaded to read a layer.

In: a `Config`. Out: layer numbers, as `schema` counts them; a model. Refuses to know: states, Ray.
"""

from transformers import PreTrainedModel

from ka2l_ray.config import Config, ConfigError, ModelSection
from ka2l_ray.dataflow.placement import CPU, Placement
from ka2l_ray.models.abilities import Abilities
from ka2l_ray.models.loading import depth_and_width, load_blocks


def wanted_layers(config: Config) -> tuple[int, ...]:
    """Layers to store. Raises `ConfigError` for a layer that the model does not have."""
    depth, _ = depth_and_width(config.model)
    layers = tuple(range(depth + 1)) if config.collect.layers == "all" else config.collect.layers
    if wrong := [n for n in layers if n > depth]:
        raise ConfigError(
            f"collect.layers = {list(layers)}: {config.model.name_or_path} has layers 0 … {depth}, not {wrong}"
        )
    return layers


def load_up_to(layer: int, model: ModelSection, abilities: Abilities, placement: Placement = CPU) -> PreTrainedModel:
    """What the states of a layer are read from: the blocks up to it or, where these depend on later ones, all.

    Raises what `load_blocks` raises.
    """
    blocks = layer if abilities.first_blocks else depth_and_width(model)[0]
    return load_blocks(model, blocks, placement)
