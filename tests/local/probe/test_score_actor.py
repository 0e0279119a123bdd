"""The scoring actor: a probe reads states of the very weights it was fitted on, and hands them on where asked."""

import copy

import numpy as np
import pyarrow as pa
import pytest
import torch

from ka2l_ray.config import ModelSection, PromptSection
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import StageError
from ka2l_ray.models.activations import prompt_states
from ka2l_ray.models.probe import LinearProbe, ProbeCard
from ka2l_ray.models.prompts import Tokenize, encode
from ka2l_ray.probe.score import ScoreActor, ScoreSetup
from ka2l_ray.tables import matrix

PROMPT, LAYER = PromptSection(), 2
BATCH = pa.table({"question": ["Why?", "Where does she live?"]})


@pytest.fixture(scope="module")
def models(llama, tokenizer, tmp_path_factory):
    """The section of a base model, that of the same model with other weights, and those weights."""
    folder = tmp_path_factory.mktemp("models")
    tuned = copy.deepcopy(llama)
    with torch.no_grad():
        for weight in tuned.parameters():
            weight.mul_(1.1)
    llama.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    tuned.save_pretrained(folder / "tuned")
    base = ModelSection(name_or_path=str(folder / "base"))
    return base, base.model_copy(update={"adapter": str(folder / "tuned")}), tuned


def scorer(section: ModelSection, fitted_on: ModelSection, tmp_path, **arguments) -> ScoreActor:
    card = ProbeCard(fitted_on.identity, PROMPT.template, LAYER, "last", 32, 0.5, 1.0)
    LinearProbe(np.linspace(-0.1, 0.1, 32), 0.1, card).save(Folder.of(str(tmp_path)))
    return ScoreActor(ScoreSetup(model=section, prompt=PROMPT, probe=Folder.of(str(tmp_path)), **arguments))


def test_states_and_scores_are_those_of_the_tuned_weights(models, tokenizer, tmp_path):
    _, section, tuned = models
    actor = scorer(section, section, tmp_path, with_state=True)
    columns = actor(Tokenize(section, PROMPT).add(BATCH))
    expected = prompt_states(tuned, 3, encode(tokenizer, PROMPT, BATCH["question"].to_pylist()), "last", [LAYER])[
        LAYER
    ].numpy()
    assert matrix(columns["state"]) == pytest.approx(expected, rel=1e-3, abs=1e-3)  # stored as float16
    logits = expected @ np.linspace(-0.1, 0.1, 32) + 0.1
    assert columns["p_unknown"] == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-4)


def test_without_being_asked_it_hands_on_no_states(models, tmp_path):
    base, *_ = models
    assert set(scorer(base, base, tmp_path)(Tokenize(base, PROMPT).add(BATCH))) == {"p_unknown"}


def test_a_probe_of_the_base_model_is_refused_on_tuned_weights_and_the_other_way_round(models, tmp_path):
    base, tuned, _ = models
    for section, fitted_on in ((tuned, base), (base, tuned)):
        with pytest.raises(StageError, match="the probe reads states of"):
            scorer(section, fitted_on, tmp_path)
