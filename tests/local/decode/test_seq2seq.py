"""An encoder-decoder as decoder: it learns to write what the studied model's states say, and is stored whole."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from decoder_jobs import CARD, QUESTIONS, WORLD, InFolder, batches, job, read
from safetensors.torch import load_file, save_file
from tiny_models import tiny_writer

from ka2l_ray.dataflow.placement import CPU
from ka2l_ray.decode.decoders import card_at, load_decoder, standardise
from ka2l_ray.decode.fitting import fit_rank
from ka2l_ray.decode.question_states import QuestionStates, states_of
from ka2l_ray.decode.seq2seq import Seq2SeqCard, Seq2SeqDecoder, check_writer
from ka2l_ray.errors import ConfigError
from ka2l_ray.models.abilities import Abilities
from ka2l_ray.models.loading import WORLD_MODEL, load_tokenizer
from ka2l_ray.text.tokens import text_of

FAMILIES = ("t5", "bart")


def card(writer: Path, **fields: Any) -> Seq2SeqCard:
    known: dict[str, Any] = {"model": CARD.model, "prompt": CARD.prompt, "layer": CARD.layer, "width": CARD.width}
    known |= {"position": CARD.position, "token_layer": CARD.token_layer, "max_tokens": 16, "pooled_tokens": 4}
    return Seq2SeqCard(writer=str(writer), **(known | fields))


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return pa.table({"question": QUESTIONS} | read(QUESTIONS))


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request: pytest.FixtureRequest, rows: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a decoder that was shown 48 questions, 50 times each; the last weights are kept."""
    folder = tmp_path_factory.mktemp(request.param)
    writer = tiny_writer(request.param, load_tokenizer(WORLD), folder / "pretrained")
    shown = {"examples": 48 * 50, "learning_rate": 3e-3, "evaluate_every_steps": 10_000}
    found = fit_rank(job(rows, folder, card(writer), **shown), batches(rows), 0, 1, InFolder(folder))
    assert found["losses"][-1] < found["losses"][0] / 5
    return folder / "decoder"


def test_it_writes_the_questions_that_it_was_shown_from_their_states(trained: Path, rows: pa.Table) -> None:
    decoder = load_decoder(trained, WORLD, load_tokenizer(WORLD), None, Abilities(), CPU)
    assert decoder.blocks is None
    states, asked = states_of(rows.slice(0, 48)), QUESTIONS[:48]
    written = decoder.write(decoder.standardised(states), asked, 0, 0.0)
    assert np.mean([w == q for w, q in zip(written, asked, strict=True)]) > 0.8
    apart = [decoder.write(decoder.standardised(states[[n]]), [asked[n]], 0, 0.0)[0] for n in range(6)]
    assert apart == written[:6], "whatever stands beside it"
    drawn = decoder.write(decoder.standardised(states), asked, 0, 1.5)
    assert drawn != written
    assert drawn == decoder.write(decoder.standardised(states), asked, 0, 1.5)


def test_greedy_text_is_what_hugging_face_generates(trained: Path, rows: pa.Table) -> None:
    decoder, states = Seq2SeqDecoder.load(trained), states_of(rows.slice(0, 8))
    inputs, mask = decoder.read(states)
    theirs = decoder.writer.generate(
        inputs_embeds=inputs, attention_mask=mask, max_new_tokens=16, do_sample=False, num_beams=1
    )
    wanted = [text_of(decoder.tokenizer, row.tolist()) for row in theirs]
    assert decoder.write(states, [str(n) for n in range(8)], 0, 0.0) == wanted


def test_a_stored_decoder_is_whole_without_the_pretrained_writer_and_the_studied_model(
    trained: Path, rows: pa.Table, tmp_path: Path
) -> None:
    names = {p.name for p in trained.rglob("*") if p.is_file()}
    assert {"decoder.json", "decoder.safetensors", "config.json", "tokenizer.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    found = card_at(trained)
    assert isinstance(found, Seq2SeqCard)
    states = states_of(rows.slice(0, 4))
    mine, without = Seq2SeqDecoder.load(trained).standardised(states), standardise(trained)(states)
    assert np.allclose(mine.pooled, without.pooled)
    assert all(np.allclose(a, b) for a, b in zip(mine.tokens, without.tokens, strict=True))
    back = Seq2SeqDecoder.load(trained).raw(mine)
    assert np.allclose(back.pooled, states.pooled, atol=1e-4)


def test_a_decoder_that_reads_no_tokens_reads_the_pooled_state_alone(rows: pa.Table, tmp_path: Path) -> None:
    decoder = Seq2SeqDecoder.begun(
        card(tiny_writer("t5", load_tokenizer(WORLD), tmp_path / "w"), token_layer=None), None
    ).eval()
    states = QuestionStates.pooled_alone(states_of(rows).pooled[:3])
    decoder.begin(states, QUESTIONS[:3], [[], [], []])
    inputs, mask = decoder.read(states)
    assert inputs.shape[:2] == (3, 4)
    assert mask.all()


@pytest.mark.parametrize("change", ["card", "weights"])
def test_a_folder_that_is_no_whole_decoder_is_refused(trained: Path, tmp_path: Path, change: str) -> None:
    for file in trained.rglob("*"):
        if file.is_file():
            (tmp_path / file.relative_to(trained)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file.relative_to(trained)).write_bytes(file.read_bytes())
    if change == "card":
        told = json.loads((tmp_path / "decoder.json").read_text())
        (tmp_path / "decoder.json").write_text(json.dumps(told | {"pooled_tokens": 7}))
    else:
        (tmp_path / "decoder.safetensors").write_bytes(b"not at all")
    with pytest.raises(ConfigError, match=r"does not match|is not a safetensors file"):
        Seq2SeqDecoder.load(tmp_path)


def test_a_writer_that_cannot_write_is_refused_before_any_model_loads(tmp_path: Path) -> None:
    def says(writer: str) -> str:
        with pytest.raises(ConfigError) as refused:
            check_writer(writer, None)
        return str(refused.value)

    assert says(str(WORLD_MODEL)).startswith("decode.training.writer = ")
    assert "is no encoder-decoder" in says(str(WORLD_MODEL))
    assert says("/nowhere/at/all") == "decode.training.writer = '/nowhere/at/all': no such folder"
    fine = tiny_writer("t5", load_tokenizer(WORLD), tmp_path / "fine")
    check_writer(str(fine), None)
    told = json.loads((fine / "config.json").read_text())
    (fine / "config.json").write_text(json.dumps(told | {"decoder_start_token_id": None}))
    assert "has no decoder_start_token_id" in says(str(fine))
    (fine / "config.json").write_text(json.dumps(told))
    (fine / "model.safetensors").rename(fine / "pytorch_model.bin")
    assert "safetensors" in says(str(fine))


def test_a_writer_whose_output_embedding_is_its_own_is_stored_and_loaded_whole(rows: pa.Table, tmp_path: Path) -> None:
    """As T5 1.1 and Flan-T5 are, whose configuration says that it is tied."""
    folder = tiny_writer("t5", load_tokenizer(WORLD), tmp_path / "w")
    tensors = load_file(folder / "model.safetensors")
    own = torch.randn_like(tensors["shared.weight"])
    save_file(tensors | {"lm_head.weight": own}, folder / "model.safetensors", metadata={"format": "pt"})
    decoder = Seq2SeqDecoder.begun(card(folder), None).eval()
    torch.testing.assert_close(decoder.writer.lm_head.weight.detach(), own)
    states = states_of(rows.slice(0, 8))
    decoder.begin(states, QUESTIONS[:8], [[]] * 8)
    decoder.save(tmp_path / "d")
    again = Seq2SeqDecoder.load(tmp_path / "d")
    torch.testing.assert_close(again.writer.lm_head.weight.detach(), own)
    torch.testing.assert_close(again.writer.shared.weight, decoder.writer.shared.weight)
    with torch.no_grad():
        for mine, theirs in zip(again(states, QUESTIONS[:8]), decoder(states, QUESTIONS[:8]), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_a_killed_training_with_dropout_ends_as_one_that_was_not(rows: pa.Table, tmp_path: Path) -> None:
    writer = tiny_writer("t5", load_tokenizer(WORLD), tmp_path / "w")
    told = json.loads((writer / "config.json").read_text())
    (writer / "config.json").write_text(json.dumps(told | {"dropout_rate": 0.3}))
    task = {n: job(rows, tmp_path / n, card(writer)) for n in ("calm", "killed")}
    calm = fit_rank(task["calm"], batches(rows), 0, 1, InFolder(tmp_path / "calm"))
    with pytest.raises(KeyboardInterrupt):
        fit_rank(task["killed"], batches(rows), 0, 1, InFolder(tmp_path / "killed", dies_at=10))
    killed = fit_rank(task["killed"], batches(rows), 0, 1, InFolder(tmp_path / "killed"))
    assert killed["resumed_at_steps"] == [5]
    assert killed["losses"] == pytest.approx(calm["losses"], rel=1e-4)
