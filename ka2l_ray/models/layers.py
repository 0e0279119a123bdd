"""Which layers of a model a run stores.

In: a `Config`. Out: layer numbers, as `schema` counts them. Refuses to know: states, Ray.
"""

from ka2l_ray.config import Config, ConfigError
from ka2l_ray.models.loading import depth_and_width


def wanted_layers(config: Config) -> tuple[int, ...]:
    """Layers to store. Raises `ConfigError` for a layer that the model does not have."""
    depth, _ = depth_and_width(config.model)
    layers = tuple(range(depth + 1)) if config.collect.layers == "all" else config.collect.layers
    if wrong := [n for n in layers if n > depth]:
        raise ConfigError(
            f"collect.layers = {list(layers)}: {config.model.name_or_path} has layers 0 … {depth}, not {wrong}"
        )
    return layers
