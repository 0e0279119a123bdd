"""BERTScore: how near decoded questions are to true ones, token by token, in the states of an encoder.

In: decoded and true questions, an encoder. Out: the mean F1. Refuses to know: decoders, Ray. Source: Zhang et al., 2020
(arXiv 1904.09675), by torchmetrics, without rescaling and without weights by rarity.
"""

import importlib.util
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO

import torch

from ka2l_ray.config import BertScoreSection, ModelSection
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import ConfigError
from ka2l_ray.models.hub import is_on_hub
from ka2l_ray.models.loading import as_config_errors, load_tokenizer, local_folder
from ka2l_ray.models.weights import check_weights

MOST_TOKENS = 512
BATCH = 64


def check_encoder(section: BertScoreSection, cache: str | None) -> None:
    """Raises `ConfigError` without torchmetrics, and for an encoder that is not there or has no safetensors; one on the
    hub is not fetched for it."""
    if section.encoder is None:
        return
    if importlib.util.find_spec("torchmetrics") is None:
        raise ConfigError("decode.bertscore.encoder: needs torchmetrics: pip install 'ka2l-ray[bertscore]'")
    model = ModelSection(name_or_path=section.encoder, cache=cache)
    if not is_on_hub(model):
        field = f"decode.bertscore.encoder = {section.encoder!r}"
        try:
            local_folder(model, weights=False)
        except ConfigError as error:  # what opens a model takes the field for granted
            raise ConfigError(str(error).replace(f"model.name_or_path = {section.encoder!r}", field, 1)) from error
        check_weights(Folder.of(section.encoder), field)


def bert_f1(
    written: Sequence[str], true: Sequence[str], section: BertScoreSection, cache: str | None, device: str
) -> float:
    """Mean F1 over N decoded (`written`) and true questions, by the encoder that `section` names, on a device of torch.

    Raises `ConfigError` as `check_encoder` does, and where the hub does not have the encoder.
    """
    from torchmetrics.functional.text.bert import bert_score

    assert section.encoder is not None
    model = ModelSection(name_or_path=section.encoder, cache=cache)
    with as_config_errors(model):
        folder = local_folder(model)
        check_weights(Folder.of(folder), f"decode.bertscore.encoder = {section.encoder!r}")
        longest = min(MOST_TOKENS, load_tokenizer(model).model_max_length)
        with redirect_stderr(StringIO()):  # a progress bar for a few seconds' work
            found = bert_score(
                list(written),
                list(true),
                model_name_or_path=folder,
                num_layers=section.layer,
                max_length=longest,
                batch_size=BATCH,
                device=device,
                truncation=True,
            )
    return float(torch.as_tensor(found["f1"]).mean())
