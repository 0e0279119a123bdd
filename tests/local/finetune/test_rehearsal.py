"""Fine-tuning that is sure to fail is refused at once, and the message names the setting."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ka2l_ray.config import ConfigError, FinetuneSection, LoraSection, ModelSection
from ka2l_ray.finetune.model import with_new_adapters
from ka2l_ray.finetune.rehearsal import rehearse

AWQ = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}
HEAD = {"targets": ("q_proj", "lm_head")}


@pytest.mark.parametrize(
    ("family", "changes", "lora", "tune", "says"),
    [
        ("llama", {}, None, {}, None),
        ("llama", {}, {"dropout": 0.05}, {"merge": True}, None),
        ("llama", {"tie_word_embeddings": True}, HEAD, {"merge": True}, r"finetune.lora.targets = .*'lm_head'\] does"),
        ("llama", {"tie_word_embeddings": True}, HEAD, {}, "adapter, once merged, gives other logits"),
        ("llama", {}, HEAD, {"merge": True}, None),
        ("llama", {}, {"last_blocks": 32}, {}, None),
        ("llama", {}, {"last_blocks": 33}, {}, r"finetune.lora.last_blocks = 33: the model has 32 blocks"),
        ("llama", {}, {"targets": ("nothing",)}, {}, r"finetune.lora.targets = \['nothing'\] does not go"),
        ("llama", {"dtype": "float16"}, {}, {}, "finetune.precision = 'auto' gives float16; set it to"),
        ("llama", {"dtype": "float16"}, {}, {"precision": "bfloat16"}, None),
        ("qwen3_moe", {}, {"dropout": 0.05}, {}, "finetune.lora.dropout = 0.05 does not go with this model"),
        ("qwen3_moe", {}, {}, {"merge": True}, None),
        ("llama", {}, {}, {"precision": "bfloat16", "merge": True}, None),
        ("deepseek_v3", {}, {}, {"precision": "bfloat16"}, None),  # merged in bfloat16 its router chooses otherwise
        ("llama", AWQ, {}, {}, None),
        ("llama", AWQ, None, {}, r"finetune.mode = full: .* are stored quantized \(awq\) .*; set finetune.mode: lora"),
        ("llama", AWQ, {}, {"merge": True}, r"finetune.merge = true: .* are stored quantized \(awq\)"),
        ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, None, {}, r"stored quantized \(gptq\)"),
        ("llama", {"quantization_config": {"quant_method": "fp8", "dequantize": True}}, None, {}, None),
        ("mamba", {}, {}, {}, "finetune.mode = lora: a tiny form of the model cannot be trained"),
    ],
)
def test_fine_tuning_that_cannot_work_is_refused_by_its_field(tmp_path, family, changes, lora, tune, says):
    AutoConfig.for_model(family, **changes).save_pretrained(tmp_path)
    mode = {"mode": "full"} if lora is None else {"mode": "lora", "lora": LoraSection(**lora)}
    model, finetune = ModelSection(name_or_path=str(tmp_path)), FinetuneSection(**mode, **tune)
    if says is None:
        rehearse(model, finetune)
        return
    with pytest.raises(ConfigError, match=says):
        rehearse(model, finetune)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_weights_that_are_quantized_while_loading_are_trained_on_as_they_are_loaded(tmp_path, quantization):
    for family in ("llama", "qwen3_moe", "deepseek_v3"):
        AutoConfig.for_model(family).save_pretrained(tmp_path / family)
    for family in ("llama", "qwen3_moe"):
        rehearse(ModelSection(name_or_path=str(tmp_path / family), quantization=quantization), FinetuneSection())
    if quantization == "8bit":  # its grouped experts
        with pytest.raises(ConfigError, match=r"model.quantization = 8bit does not go with this model"):
            rehearse(
                ModelSection(name_or_path=str(tmp_path / "deepseek_v3"), quantization=quantization), FinetuneSection()
            )


def test_an_image_tower_gets_no_adapters():
    """Gemma 3's tower and projector read images, which no question has; its blocks are linear too."""
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 99, "head_dim": 8}
    config = AutoConfig.for_model(
        "gemma3",
        text_config=text | {"num_attention_heads": 4, "num_key_value_heads": 2},
        vision_config=vision | {"image_size": 16, "patch_size": 8},
        image_token_index=98,
        mm_tokens_per_image=4,
    )
    for targets in ("all-linear", ("q_proj",)):
        adapted = with_new_adapters(AutoModelForCausalLM.from_config(config), LoraSection(targets=targets))
        names = [n for n, p in adapted.named_parameters() if p.requires_grad]
        assert names
        assert all(".language_model." in n for n in names)


def test_adapters_in_the_last_blocks_alone_leave_the_others_without_a_gradient():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 99}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", num_hidden_layers=12, **sizes))
    adapted = with_new_adapters(model, LoraSection(last_blocks=2))
    places = {n.split("layers.")[1].split(".")[0] for n, p in adapted.named_parameters() if p.requires_grad}
    assert places == {"10", "11"}
    needed = list[bool]()
    for block in model.model.layers:
        block.register_forward_hook(lambda _, __, states: needed.append(states.requires_grad))
    adapted(input_ids=torch.arange(5)[None])
    assert needed == [False] * 10 + [True] * 2


OWN = """
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnModel(LlamaModel):
    config_class = OwnConfig


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def as_own_code(folder):
    """A Llama's configuration, to be run by the code in `modeling_own.py`."""
    names = {"AutoConfig": "OwnConfig", "AutoModel": "OwnModel", "AutoModelForCausalLM": "OwnForCausalLM"}
    code = {"model_type": "own", "auto_map": {auto: f"modeling_own.{name}" for auto, name in names.items()}}
    AutoConfig.for_model("llama").save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | code))


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_model_that_brings_its_own_code_is_trained_and_loaded_with_it(tmp_path, mode):
    (tmp_path / "modeling_own.py").write_text(OWN)
    as_own_code(tmp_path)
    rehearse(ModelSection(name_or_path=str(tmp_path), trust_remote_code=True), FinetuneSection(mode=mode))


BY_NAME = """

    def forward(self, *given, **named):
        found = super().forward(*given, **named)
        weight = dict(self.named_parameters())[next(n for n, _ in self.named_parameters() if "layers.0.mlp.up" in n)]
        found.logits = found.logits + 0 * (weight @ torch.ones(self.config.hidden_size)).sum()
        return found
"""


def test_a_model_that_reads_weights_past_their_modules_is_refused_under_zero_3_alone(tmp_path):
    """DeepSpeed has divided them, and gathers a module's own only while that is run."""
    (tmp_path / "modeling_own.py").write_text("import torch\n" + OWN + BY_NAME)
    as_own_code(tmp_path)
    model = ModelSection(name_or_path=str(tmp_path), trust_remote_code=True)
    rehearse(model, FinetuneSection(mode="full"))
    with pytest.raises(ConfigError, match=r"finetune.zero_stage = 3 does not go with this model"):
        rehearse(model, FinetuneSection(mode="full", zero_stage=3))
