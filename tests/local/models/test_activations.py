"""Hidden states: the same as Hugging Face's, whatever the padding, and no unnecessary block runs."""

import pytest
import torch

from ka2l_ray.config import ModelSection, PromptSection
from ka2l_ray.models.activations import Encoded, blocks, capture, prompt_states
from ka2l_ray.models.loading import depth_and_width, load_blocks
from ka2l_ray.models.prompts import encode

DEPTH = 3
LAYERS = list(range(DEPTH + 1))
QUESTIONS = ["Why?", "Where does she live, and with whom?", "Ωé 42"]


@pytest.fixture(scope="module")
def encoded(tokenizer):
    return encode(tokenizer, PromptSection(), QUESTIONS)


@torch.inference_mode()
def hugging_face_states(model, encoded):
    return model(**encoded.inputs(), output_hidden_states=True).hidden_states


@pytest.mark.parametrize("position", ["last", "mean"])
def test_states_below_the_last_layer_are_hugging_faces(model, encoded, position):
    states = prompt_states(model, DEPTH, encoded, position, LAYERS)
    theirs = hugging_face_states(model, encoded)
    for layer in range(DEPTH):
        for row in range(len(QUESTIONS)):
            own = encoded.question_mask[row].bool()
            expected = theirs[layer][row, -1] if position == "last" else theirs[layer][row, own].mean(0)
            torch.testing.assert_close(states[layer][row], expected, atol=1e-4, rtol=1e-4)


def test_the_last_layer_is_taken_before_the_final_norm(model, encoded):
    """So the final norm of `last_L` is what Hugging Face calls the last hidden state."""
    norm = "transformer.ln_f" if model.config.model_type == "gpt2" else "model.norm"
    states = prompt_states(model, DEPTH, encoded, "last", [DEPTH])[DEPTH]
    with torch.inference_mode():
        normed = model.get_submodule(norm)(states)
    final = hugging_face_states(model, encoded)[-1][:, -1]
    torch.testing.assert_close(normed, final, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(states, final, atol=1e-2)


@pytest.mark.parametrize("position", ["last", "mean"])
def test_padding_and_other_rows_change_no_state(model, tokenizer, encoded, position):
    together = prompt_states(model, DEPTH, encoded, position, LAYERS)
    for row, question in enumerate(QUESTIONS):
        alone = prompt_states(model, DEPTH, encode(tokenizer, PromptSection(), [question]), position, LAYERS)
        for layer in LAYERS:
            torch.testing.assert_close(together[layer][row], alone[layer][0], atol=1e-4, rtol=1e-4)


def test_a_state_keeps_no_residual_stream_in_memory(model, encoded):
    with capture(model, DEPTH, encoded, [1], ["last", "mean"]) as states, torch.inference_mode():
        model(**encoded.inputs())
    for state in states.values():
        assert state.untyped_storage().nbytes() == state.numel() * state.element_size()


@pytest.mark.parametrize("last", LAYERS)
def test_an_early_exit_gives_the_same_states_and_runs_no_later_block(model, encoded, last):
    full = prompt_states(model, DEPTH, encoded, "last", LAYERS)
    ran = []
    hooks = [b.register_forward_pre_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(blocks(model, DEPTH), 1)]
    early = prompt_states(model, DEPTH, encoded, "last", list(range(last + 1)))
    for hook in hooks:
        hook.remove()
    for layer in range(last + 1):
        assert early[layer].equal(full[layer])
    assert [i for i in ran if i > max(1, last)] == []


def test_a_capture_removes_its_hooks(model, encoded):
    """Hugging Face may have hooks of its own there."""
    before = [(len(b._forward_hooks), len(b._forward_pre_hooks)) for b in blocks(model, DEPTH)]
    prompt_states(model, DEPTH, encoded, "last", LAYERS)
    assert [(len(b._forward_hooks), len(b._forward_pre_hooks)) for b in blocks(model, DEPTH)] == before


@pytest.mark.parametrize("layers", [[-1], [0, DEPTH + 1]])
def test_layers_that_do_not_exist_are_refused(llama, encoded, layers):
    refused = pytest.raises(ValueError, match=rf"out of range: the model has 0 … {DEPTH}")
    with refused, capture(llama, DEPTH, encoded, layers, ["last"]):
        pass


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ValueError, match="Linear has no list of 3 blocks"):
        blocks(torch.nn.Linear(2, 2), DEPTH)


def test_positions_are_counted_from_the_first_real_token():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert Encoded(mask, mask, mask).positions.tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return ModelSection(name_or_path=str(path))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_model_of_the_first_blocks_has_the_same_states(model, folder, encoded, layer):
    part = load_blocks(folder, layer)
    depth = part.config.num_hidden_layers
    assert (depth, len(blocks(part, depth))) == (max(1, layer),) * 2
    states = prompt_states(part, depth, encoded, "last", [layer])[layer]
    assert states.equal(prompt_states(model, DEPTH, encoded, "last", [layer])[layer])
    assert "lm_head" not in dict(part.named_children())


def test_more_blocks_than_the_model_has_are_refused(folder):
    assert depth_and_width(folder)[0] == DEPTH
    with pytest.raises(ValueError, match=r"layer 4 is out of range.*1 … 3"):
        load_blocks(folder, DEPTH + 1)
