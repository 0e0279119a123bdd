"""The question decoder: saved and loaded the same, and every question generated from its own state, id and seed
only."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from ka2l_ray.decode.model import DecoderCard, StateDecoder

CARD = DecoderCard(
    model="world",
    prompt="Q: {question}",
    layer=2,
    position="mean",
    width=12,
    vocabulary=40,
    pad_token=0,
    end_token=1,
    pseudo_tokens=3,
    inner_width=16,
    layers=1,
    heads=2,
    feed_forward=16,
    max_tokens=10,
)
IDS = [f"q{i}" for i in range(6)]


def random_decoder(card: DecoderCard = CARD) -> StateDecoder:
    """Every weight and both buffers are unlike their initial values, and large enough that states matter."""
    torch.manual_seed(0)
    decoder = StateDecoder(card).eval()
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.copy_(torch.randn_like(weight) * 0.7)
        decoder.register_buffer("mean", torch.randn(card.width))
        decoder.register_buffer("scale", torch.rand(card.width) + 0.5)
    return decoder


@pytest.fixture(scope="module")
def decoder():
    return random_decoder()


@pytest.fixture(scope="module")
def states():
    return torch.randn(len(IDS), CARD.width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_saved_decoder_writes_the_same(decoder, states, tmp_path, temperature):
    decoder.save(tmp_path / "decoder")
    again = StateDecoder.load(tmp_path / "decoder")
    assert again.card == CARD
    assert again.write(states, IDS, 0, temperature) == decoder.write(states, IDS, 0, temperature)
    labels = torch.tensor([[5, 6, 1, -100]] * len(IDS))
    with torch.inference_mode():
        for ours, theirs in zip(again(states, labels), decoder(states, labels), strict=True):
            assert ours.equal(theirs)


def test_the_folder_contains_no_pickle(decoder, tmp_path):
    decoder.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["decoder.json", "decoder.safetensors"]


@pytest.mark.parametrize("key", ["mean", "project.0.weight", "t5.shared.weight"])
def test_weights_that_are_missing_are_refused(decoder, tmp_path, key):
    decoder.save(tmp_path)
    weights = load_file(tmp_path / "decoder.safetensors")
    del weights[key]
    save_file(weights, tmp_path / "decoder.safetensors")
    with pytest.raises(ValueError, match=r"does not match decoder.*" + key):
        StateDecoder.load(tmp_path)


def test_a_card_of_another_size_is_refused(decoder, tmp_path):
    decoder.save(tmp_path)
    card = json.loads((tmp_path / "decoder.json").read_text())
    (tmp_path / "decoder.json").write_text(json.dumps(card | {"layers": 2}))
    with pytest.raises(ValueError, match="does not match decoder"):
        StateDecoder.load(tmp_path)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_other_rows_and_order_change_no_question(decoder, states, temperature):
    together = dict(zip(IDS, decoder.write(states, IDS, 0, temperature), strict=True))
    for i, name in enumerate(IDS):
        assert decoder.write(states[i : i + 1], [name], 0, temperature) == [together[name]]
    order = [4, 0, 5, 2, 1, 3]
    shuffled = decoder.write(states[order], [IDS[i] for i in order], 0, temperature)
    assert shuffled == [together[IDS[i]] for i in order]


def test_questions_depend_on_the_state_and_when_drawn_on_id_and_seed(decoder, states):
    same = states[:1].expand(len(IDS), -1)
    assert len({tuple(q) for q in decoder.write(states, IDS, 0, 0.0)}) > 1
    assert len({tuple(q) for q in decoder.write(same, IDS, 0, 0.0)}) == 1
    drawn = decoder.write(same, IDS, 0, 2.0)
    assert len({tuple(q) for q in drawn}) == len(IDS)
    assert decoder.write(same, IDS, 1, 2.0) != drawn
    assert decoder.write(same, IDS, 0, 2.0) == drawn


def greedy_by_hand(decoder: StateDecoder, state: torch.Tensor) -> list[int]:
    """Teacher forcing one token at a time, through `forward`."""
    written: list[int] = []
    while len(written) < decoder.card.max_tokens:
        with torch.inference_mode():
            _, logits = decoder(state.unsqueeze(0), torch.tensor([[*written, 2]]))
        token = int(logits[0, -1].argmax())
        if token == decoder.card.end_token:
            break
        written.append(token)
    return written


def test_writing_agrees_with_training(decoder, states):
    assert decoder.write(states, IDS, 0, 0.0) == [greedy_by_hand(decoder, s) for s in states]


def test_a_tokenizer_that_pads_with_its_end_token_works_too(states):
    """Such as GPT-2's and Llama's under `load_tokenizer`: a question must not end because it begins with the start
    token."""
    decoder = random_decoder(replace(CARD, pad_token=1))
    by_hand = [greedy_by_hand(decoder, s) for s in states]
    assert max(len(q) for q in by_hand) > 2
    assert decoder.write(states, IDS, 0, 0.0) == by_hand


def test_questions_end_before_the_end_token_and_at_the_latest_at_their_limit(decoder, states):
    many = decoder.write(states.repeat(20, 1), [f"q{i}" for i in range(20 * len(IDS))], 0, 3.0)
    assert all(CARD.end_token not in q and len(q) <= CARD.max_tokens for q in many)
    assert min(len(q) for q in many) < CARD.max_tokens == max(len(q) for q in many)


def test_states_are_standardised_before_anything_else(decoder, states):
    shifted = random_decoder()
    shifted.register_buffer("mean", 3 * decoder.mean + 7)
    shifted.register_buffer("scale", 3 * decoder.scale)
    torch.testing.assert_close(
        shifted.pseudo_tokens(3 * states + 7), decoder.pseudo_tokens(states), atol=1e-3, rtol=1e-3
    )
