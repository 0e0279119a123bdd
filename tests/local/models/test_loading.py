"""Loading: a model with fine-tuned weights on top, and one with other parts than its text decoder, have the states of
the whole model."""

import copy
import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import BLOCKS, WIDTH, tiny_model
from transformers import ByT5Tokenizer

from ka2l_ray.config import ModelSection, PromptSection
from ka2l_ray.models.activations import blocks, prompt_states
from ka2l_ray.models.loading import check_model, depth_and_width, load_blocks, load_model, with_adapter
from ka2l_ray.models.prompts import encode

DEPTH = 3
LAYERS = list(range(DEPTH + 1))


@pytest.fixture(scope="module")
def encoded(tokenizer):
    return encode(tokenizer, PromptSection(), ["Why?", "Where does she live, and with whom?"])


@pytest.fixture(scope="module")
def tuned(model, tmp_path_factory):
    """(folder of the base model, folder of a PEFT adapter, the merged model in memory, its folder)."""
    folder = tmp_path_factory.mktemp(model.config.model_type)
    model.save_pretrained(folder / "base")
    merged = save_adapter(model, folder / "adapter", seed=1).merge_and_unload().eval()
    merged.save_pretrained(folder / "merged")
    return folder, merged


def save_adapter(model, folder, seed) -> Any:
    """A random PEFT adapter in a folder; returns a copy of the model with it, not merged."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(copy.deepcopy(model), lora)
    adapted.save_pretrained(folder)
    return adapted


def section(folder, adapter: str) -> ModelSection:
    return ModelSection(name_or_path=str(folder / "base"), adapter=str(folder / adapter))


@pytest.mark.parametrize("adapter", ["adapter", "merged"])
def test_the_first_blocks_have_the_states_of_the_whole_tuned_model_at_every_layer(model, tuned, encoded, adapter):
    folder, merged = tuned
    wanted = prompt_states(merged, DEPTH, encoded, "last", LAYERS)
    base = prompt_states(model, DEPTH, encoded, "last", LAYERS)
    for layer in LAYERS:
        part = load_blocks(section(folder, adapter), layer)
        depth = part.config.num_hidden_layers
        assert (depth, len(blocks(part, depth))) == (max(1, layer),) * 2
        assert "lm_head" not in dict(part.named_modules())
        states = prompt_states(part, depth, encoded, "last", [layer])[layer]
        torch.testing.assert_close(states, wanted[layer], atol=1e-4, rtol=1e-4)
        assert layer == 0 or not torch.allclose(states, base[layer], atol=1e-2)


@pytest.mark.parametrize("adapter", ["adapter", "merged"])
def test_the_whole_tuned_model_has_its_own_logits(tuned, encoded, adapter):
    folder, merged = tuned
    loaded = load_model(section(folder, adapter))
    with torch.inference_mode():
        torch.testing.assert_close(
            loaded(**encoded.inputs()).logits, merged(**encoded.inputs()).logits, atol=1e-3, rtol=1e-3
        )
    assert not loaded.training


@pytest.mark.parametrize("start", ["adapter", "merged"])
def test_an_adapter_trained_on_a_tuned_model_is_merged_on_top_of_it(tuned, tmp_path, start):
    folder, merged = tuned
    again = save_adapter(merged, tmp_path / "again", seed=2).merge_and_unload()
    loaded = load_model(section(folder, start), str(tmp_path / "again"))
    torch.testing.assert_close(loaded.state_dict(), again.state_dict(), atol=1e-4, rtol=1e-4)
    assert not loaded.training


def test_on_weights_that_are_stored_quantized_an_adapter_is_not_merged(tokenizer, encoded, tmp_path):
    tiny_model("llama", tokenizer).save_pretrained(tmp_path / "plain")
    plain = ModelSection(name_or_path=str(tmp_path / "plain"))
    load_model(plain.model_copy(update={"quantization": "8bit"})).save_pretrained(tmp_path / "base")
    save_adapter(load_model(plain), tmp_path / "adapter", seed=1)
    stored = ModelSection(name_or_path=str(tmp_path / "base"))
    loaded = load_model(stored, str(tmp_path / "adapter"))
    wanted = with_adapter(load_model(stored), str(tmp_path / "adapter")).eval()
    assert any("lora_B" in name for name in loaded.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(loaded(**encoded.inputs()).logits, wanted(**encoded.inputs()).logits)


def test_a_full_model_replaces_everything(tuned):
    folder, merged = tuned
    loaded = load_model(ModelSection(name_or_path="nowhere", adapter="nowhere"), str(folder / "merged"))
    torch.testing.assert_close(loaded.state_dict(), merged.state_dict(), atol=0, rtol=0)


def test_layers_that_a_tuned_model_lacks_are_refused(tuned):
    with pytest.raises(ValueError, match=r"layer 4 is out of range.*1 … 3"):
        load_blocks(section(tuned[0], "adapter"), DEPTH + 1)


def test_an_adapter_in_a_pickle_is_refused(tuned, tmp_path):
    folder, _ = tuned
    shutil.copytree(folder / "adapter", tmp_path / "pickled")
    weights = tmp_path / "pickled" / "adapter_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises((OSError, ValueError)):
        load_model(ModelSection(name_or_path=str(folder / "base"), adapter=str(tmp_path / "pickled")))


@pytest.fixture(scope="module")
def composite(tokenizer, tmp_path_factory):
    """A Gemma 3 with a vision tower of as many blocks, its folder, and an adapter's."""
    folder, model = tmp_path_factory.mktemp("gemma3"), tiny_model("gemma3", tokenizer)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return folder, model, save_adapter(model, folder / "adapter", seed=1).merge_and_unload().eval()


def test_the_blocks_are_the_text_decoders_where_a_vision_tower_has_as_many(composite):
    _, model, _ = composite
    assert len(model.model.vision_tower.encoder.layers) == BLOCKS
    for part in (model, model.model, model.get_decoder()):
        assert blocks(part, BLOCKS) is model.model.language_model.layers


@pytest.mark.parametrize("adapter", [None, "adapter"])
def test_only_the_text_decoder_of_a_model_with_a_vision_tower_is_read(composite, encoded, adapter):
    folder, base, merged = composite
    section = ModelSection(name_or_path=str(folder / "base"), adapter=adapter and str(folder / adapter))
    check_model(section)
    assert depth_and_width(section) == (BLOCKS, WIDTH)
    wanted = prompt_states(merged if adapter else base, BLOCKS, encoded, "last", LAYERS)
    for layer in LAYERS:
        part = load_blocks(section, layer)
        assert part.config.num_hidden_layers == len(blocks(part, max(1, layer))) == max(1, layer)
        assert not {n.partition(".")[0] for n, _ in part.named_parameters()} & {
            "vision_tower",
            "multi_modal_projector",
            "lm_head",
        }
        states = prompt_states(part, part.config.num_hidden_layers, encoded, "last", [layer])[layer]
        torch.testing.assert_close(states, wanted[layer], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"layer 4 is out of range.*1 … 3"):
        load_blocks(section, BLOCKS + 1)


def test_a_tokenizer_without_offsets_is_refused(tmp_path, llama):
    """ByT5 has no fast tokenizer."""
    llama.save_pretrained(tmp_path)
    ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="its tokenizer ByT5Tokenizer gives no character offsets; a fast tokenizer"):
        check_model(ModelSection(name_or_path=str(tmp_path)))
