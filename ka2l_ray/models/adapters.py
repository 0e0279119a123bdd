"""Whether a `model.adapter` can be merged into its model, and whether a tokenizer's tokens are the model's.

In: a `ModelSection`, from which only configurations and the tokenizer are read. Out: nothing, or a `ConfigError`.
Refuses to know: weights, training.
"""

from ka2l_ray.config import ConfigError, ModelSection, PromptSection
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.models.loading import PEFT_CONFIG, configuration, load_tokenizer
from ka2l_ray.text.prompts import Prompter, resolve
from ka2l_ray.text.tokens import end_id


def check_adapter(model: ModelSection) -> None:
    """Raise `ConfigError` for an adapter that PEFT cannot merge, such as one that adds tokens to every prompt, or that
    has no safetensors. A full model passes."""
    if model.adapter is None or not (Folder.of(model.adapter) / PEFT_CONFIG).exists():
        return
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    folder = Folder.of(model.adapter)
    kind = (folder / PEFT_CONFIG).read_json().get("peft_type")
    tuners = {str(k.value): tuner for k, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items()}
    if not hasattr(tuners.get(kind), "merge_and_unload"):
        raise ConfigError(
            f"model.adapter = {model.adapter!r}: an adapter of kind {kind} cannot be merged into the weights; use one "
            "that can, such as LoRA, or a full model"
        )
    if not (folder / "adapter_model.safetensors").exists():
        raise ConfigError(f"{folder.path}: contains no adapter_model.safetensors; pickle files are not read")


STAND_IN = "Who?"
"""In the place of questions, and of solved examples and their answers, which are drawn from the corpus later."""


def check_tokens(model: ModelSection, *prompts: PromptSection) -> None:
    """Raise `ConfigError` where prompts, or the end of a taught answer, contain a token that was added to the tokenizer
    and that the model has no embedding for. What the corpus says is not known yet: a `STAND_IN` is in its place."""
    tokenizer, rows = load_tokenizer(model), configuration(model).get_text_config().vocab_size
    used = {end_id(tokenizer)}
    for prompt in prompts:
        whole = resolve(prompt, [(STAND_IN, STAND_IN)] * prompt.solved, tokenizer)
        used |= {i for p in Prompter(tokenizer, whole)([STAND_IN]) for i in p.ids}
    if beyond := sorted(i for i in used if i >= rows):
        names = ", ".join(f"{tokenizer.convert_ids_to_tokens(i)!r} ({i})" for i in beyond)
        raise ConfigError(
            f"model.name_or_path = {model.name_or_path!r}: prompts or answers contain {names}, but the model has "
            f"embeddings for ids 0 … {rows - 1} only; use the tokenizer that the model was trained with"
        )
