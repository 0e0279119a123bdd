"""BERTScore by torchmetrics, with a tiny encoder made from a configuration."""

import sys
from pathlib import Path

import pytest
from tiny_models import tiny_encoder

from ka2l_ray.config import BertScoreSection
from ka2l_ray.decode.bertscore import bert_f1, check_encoder
from ka2l_ray.errors import ConfigError

QUESTIONS = ["Which pet does Bob keep?", "Where was Bob born?", "Which pet does Ann keep?"]


def test_equal_questions_have_one_and_others_less_the_more_words_differ(tmp_path: Path) -> None:
    given = BertScoreSection(encoder=str(tiny_encoder(tmp_path / "bert")), layer=1)

    def score(written: list[str]) -> float:
        return bert_f1(written, QUESTIONS, given, None, "cpu")

    same, one_word, another = score(QUESTIONS), score([QUESTIONS[2], *QUESTIONS[1:]]), score([QUESTIONS[1]] * 3)
    assert same == pytest.approx(1.0, abs=1e-5)
    assert 0.0 < another < one_word < same
    last = bert_f1([QUESTIONS[1]] * 3, QUESTIONS, given.model_copy(update={"layer": None}), None, "cpu")
    assert last != pytest.approx(another, abs=1e-4), "another layer, another score"


def test_an_encoder_that_cannot_be_used_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_encoder(tmp_path / "bert")
    check_encoder(BertScoreSection(encoder=str(folder)), None)
    check_encoder(BertScoreSection(), None)
    with pytest.raises(ConfigError, match=r"^decode\.bertscore\.encoder = '/nowhere/at/all': no such folder"):
        check_encoder(BertScoreSection(encoder="/nowhere/at/all"), None)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"decode\.bertscore\.encoder = .*read from safetensors only"):
        check_encoder(BertScoreSection(encoder=str(folder)), None)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(ConfigError, match=r"pip install 'ka2l-ray\[bertscore\]'"):
        check_encoder(BertScoreSection(encoder=str(folder)), None)
