"""Whether a model can be read, asked, sampled and trained as a configuration says, before any weight is read.

In: a configuration. Out: nothing, or a `ConfigError`; the same in a run and in its plan. Configuration and tokenizer
are read, and a tiny form of the model is tried. Refuses to know: questions, stages, Ray.
"""

from ka2l_ray.config import Config
from ka2l_ray.finetune.rehearsal import rehearse
from ka2l_ray.models.adapters import check_adapter, check_tokens
from ka2l_ray.models.examine import abilities_of
from ka2l_ray.models.loading import as_config_errors, at_commit, check_model
from ka2l_ray.models.sampled_as import sampled_as


def check_subject(config: Config) -> None:
    """Raise `ConfigError` for a model that cannot be used so. A hub is asked once what its model is; then its files in
    the cache are read."""
    with as_config_errors(config.model):
        model = at_commit(config.model)
        check_model(model)
        abilities_of(model)
        check_tokens(model, config.corpus.prompt, config.finetune.prompt)
        sampled_as(model, config.collect)
        rehearse(model, config.finetune)
    check_adapter(config.model)
