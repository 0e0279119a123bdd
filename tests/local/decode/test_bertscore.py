"""BERTScore, with a tiny encoder made from a configuration, beside torchmetrics."""

from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_encoder
from torchmetrics.functional.text.bert import bert_score

from ka2l_ray.config import BertScoreSection
from ka2l_ray.decode.bertscore import bert_f1, check_encoder
from ka2l_ray.errors import ConfigError

QUESTIONS = ["Which pet does Bob keep?", "Where was Bob born?", "Bob?", "Where was the pet of Ann born, and Ann?"]
OTHERS = ["Where was the pet of Bob born?", "Bob born?", "Which pet does Bob keep where?", "Ann?"]


def test_each_text_is_compared_with_its_own_as_the_library_compares_one_pair(tmp_path: Path) -> None:
    """The library with several pairs at once compares them with others where lengths differ in order."""
    folder = str(tiny_encoder(tmp_path / "bert"))
    for layer in (1, 2):
        alone: list[Any] = [
            bert_score([a], [b], model_name_or_path=folder, num_layers=layer, max_length=64)["f1"]
            for a, b in zip(OTHERS, QUESTIONS, strict=True)
        ]
        wanted = sum(map(float, alone)) / len(alone)
        given = BertScoreSection(encoder=folder, layer=layer)
        assert bert_f1(OTHERS, QUESTIONS, given, None, "cpu") == pytest.approx(wanted, abs=1e-4)
    assert bert_f1(QUESTIONS, QUESTIONS, given, None, "cpu") == pytest.approx(1.0, abs=1e-5)
    last = given.model_copy(update={"layer": None})
    assert bert_f1(OTHERS, QUESTIONS, last, None, "cpu") == pytest.approx(wanted, abs=1e-4)
    assert bert_f1([""], QUESTIONS[:1], last, None, "cpu") == 0.0


def test_an_encoder_that_cannot_be_used_is_refused_before_any_work(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "bert")
    check_encoder(BertScoreSection(encoder=str(folder)), None)
    check_encoder(BertScoreSection(), None)
    with pytest.raises(ConfigError, match=r"^decode\.bertscore\.encoder = '/nowhere/at/all': no such folder"):
        check_encoder(BertScoreSection(encoder="/nowhere/at/all"), None)
    with pytest.raises(ConfigError, match=r"^decode\.bertscore\.layer = 3: .* has layers 1 … 2"):
        check_encoder(BertScoreSection(encoder=str(folder), layer=3), None)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"decode\.bertscore\.encoder = .*read from safetensors only"):
        check_encoder(BertScoreSection(encoder=str(folder)), None)
