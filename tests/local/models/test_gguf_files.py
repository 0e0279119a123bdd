"""GGUF files: a tiny Llama written as one has the logits of the model it was made from, and of a calculation that reads
the file by itself; what cannot be read as it is meant is refused."""

import concurrent.futures
import json
import os
import random
import struct
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ka2l_ray.config import ConfigError, ModelSection
from ka2l_ray.dataflow.paths import is_gguf
from ka2l_ray.models.gguf_files import MAGIC, folders
from ka2l_ray.models.loading import check_model, load_blocks, load_model, load_tokenizer, model_path

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")

WORDS = ["Ġthe", "Ġcat", "he", "Ġc", "at", "Ġt", "ĠĠ", "ĊĠ"]
MERGES = ["h e", "Ġ t", "Ġt he", "Ġ c", "a t", "Ġc at", "Ġ Ġ", "Ċ Ġ"]
TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
BLOCKS, WIDTH, HEADS, KV_HEADS, INNER, THETA, EPS = 2, 64, 4, 2, 96, 5000.0, 1e-5
Q8, F32 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F32


def vocabulary():
    """Special tokens, the 256 bytes as GPT-2 spells them, and some words."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return ["<unk>", "<s>", "</s>", *map(chr, printable), *(chr(256 + n) for n in range(len(others))), *WORDS]


TOKENS = vocabulary()


def random_weights():
    """{GGUF name: float32 array in torch's order}, rows of 32 numbers."""
    generator, head = np.random.default_rng(0), WIDTH // HEADS
    shapes = {"token_embd": (len(TOKENS), WIDTH), "output_norm": (WIDTH,)}
    for block in range(BLOCKS):
        of_block = {
            "attn_norm": (WIDTH,),
            "attn_q": (WIDTH, WIDTH),
            "attn_k": (KV_HEADS * head, WIDTH),
            "attn_v": (KV_HEADS * head, WIDTH),
            "attn_output": (WIDTH, WIDTH),
            "ffn_norm": (WIDTH,),
            "ffn_gate": (INNER, WIDTH),
            "ffn_up": (INNER, WIDTH),
            "ffn_down": (WIDTH, INNER),
        }
        shapes |= {f"blk.{block}.{name}": shape for name, shape in of_block.items()}
    return {f"{n}.weight": generator.normal(scale=0.3, size=s).astype(np.float32) for n, s in shapes.items()}


HEADER = {
    "llama.block_count": BLOCKS,
    "llama.context_length": 64,
    "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": INNER,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.attention.layer_norm_rms_epsilon": EPS,
    "llama.rope.freq_base": THETA,
    "llama.rope.dimension_count": WIDTH // HEADS,
    "llama.vocab_size": len(TOKENS),
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(TOKENS) - 3),
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.padding_token_id": 2,
    "tokenizer.chat_template": TEMPLATE,
}


def write_gguf(file, changes=None, tensors=None, architecture="llama", kind=Q8):
    """A GGUF file; `changes` to its header (None: left out), `tensors` instead of the random ones."""
    writer = gguf.GGUFWriter(file, architecture)
    for name, value in (HEADER | (changes or {})).items():
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif value is not None:
            writer.add_array(name, value)
    for name, values in (tensors or random_weights()).items():
        quantised = kind if values.ndim > 1 else F32
        writer.add_tensor(name, gguf.quantize(values, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test reads or fills the cache of whoever runs it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def section(file, **changes):
    return ModelSection(name_or_path=str(file), **changes)


def test_logits_are_those_calculated_from_the_files_bytes(file):
    from gguf_by_hand import logits_by_hand

    check_model(section(file))
    loaded, ids = load_model(section(file)), [5, 70, 200, 3, 260, 41, 12, 99]
    assert loaded.dtype == torch.float32
    with torch.inference_mode():
        logits = loaded(torch.tensor([ids])).logits[0].double().numpy()
    np.testing.assert_allclose(logits, logits_by_hand(file, ids), atol=2e-4)
    first: Any = load_blocks(section(file), 1)
    assert (first.config.num_hidden_layers, len(first.layers)) == (1, 1)


def test_an_unquantised_file_gives_back_the_model_it_was_made_from(tmp_path):
    """By the rules of llama.cpp's converter: rows of queries and keys reordered, one embedding for both ends."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        rms_norm_eps=EPS,
        rope_parameters={"rope_theta": THETA, "rope_type": "default"},
        tie_word_embeddings=True,
    )
    model, tensors = LlamaForCausalLM(config).eval(), {}
    places = {"embed_tokens": "token_embd", "model.norm": "output_norm", "input_layernorm": "attn_norm"}
    places |= {"post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attn_output"}
    places |= {f"self_attn.{n}_proj": f"attn_{n}" for n in "qkv"}
    places |= {f"mlp.{n}_proj": f"ffn_{n}" for n in ("gate", "up", "down")}
    for name, values in model.named_parameters():
        array, place = values.detach().numpy(), name
        for ours, theirs in places.items():
            place = place.replace(ours, theirs)
        place = place.replace("model.layers", "blk").removeprefix("model.")
        if ".attn_q." in place or ".attn_k." in place:
            heads = HEADS if ".attn_q." in place else KV_HEADS
            array = array.reshape(heads, 2, -1, WIDTH).swapaxes(1, 2).reshape(array.shape)
        tensors[place] = np.ascontiguousarray(array)
    loaded = load_model(section(write_gguf(tmp_path / "plain.gguf", tensors=tensors, kind=F32)))
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("the cat", ["t", "he", "Ġcat"]),
        ("in  26", ["i", "n", "ĠĠ", "2", "6"]),
        ("\n 7", ["ĊĠ", "7"]),
        ("</s>the", ["</s>", "t", "he"]),
        ("é", ["Ã", "©"]),
        ("<|e", ["<", "|", "e"]),
    ],
)
def test_text_is_split_as_the_file_says_and_comes_back(file, text, tokens):
    """Digits alone, so blanks before one are a word of their own; special tokens whole; any other text as bytes."""
    tokenizer = load_tokenizer(section(file))
    ids = tokenizer(text).input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == tokens
    assert tokenizer.decode(ids) == text
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    assert (offsets[0][0], offsets[-1][1]) == (0, len(text))
    assert tokenizer.get_vocab() == {token: n for n, token in enumerate(TOKENS)}


@pytest.mark.parametrize(
    ("changes", "ids"),
    [
        ({}, [87]),
        ({"tokenizer.ggml.add_bos_token": True}, [1, 87]),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}, [1, 87, 2]),
        ({"tokenizer.ggml.pre": "llama-bpe"}, [1, 87]),
        ({"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}, [87]),
    ],
)
def test_prompts_begin_and_end_as_the_file_says(tmp_path, changes, ids):
    assert TOKENS[87] == "u"
    assert load_tokenizer(section(write_gguf(tmp_path / "x.gguf", changes)))("u").input_ids == ids


def test_the_chat_template_is_kept_and_its_absence_stays_one(file, tmp_path):
    chat = [{"role": "user", "content": "the cat"}]
    kept = load_tokenizer(section(file))
    assert kept.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == "<s>the cat</s><s>"
    bare = write_gguf(tmp_path / "bare.gguf", {"tokenizer.chat_template": None})
    assert load_tokenizer(section(bare)).chat_template is None


def test_it_is_converted_once_and_found_by_its_content(file, tmp_path):
    path = model_path(section(file))
    weights = os.path.join(path, "model.safetensors")
    made = os.stat(weights).st_mtime_ns
    same = tmp_path / "tiny.gguf"
    same.write_bytes(file.read_bytes())
    assert model_path(section(same)) == path == model_path(section(same), weights=False)
    assert os.stat(weights).st_mtime_ns == made
    half = load_model(section(file, dtype="float16"))
    assert half.dtype == torch.float16
    other = model_path(section(write_gguf(same, {"llama.rope.freq_base": 1000.0})))
    assert other != path
    with open(weights, "r+b") as stream:
        stream.truncate(1000)
    assert model_path(section(file)) == path
    assert os.stat(weights).st_size > 1000
    AutoModelForCausalLM.from_pretrained(path)


def test_actors_that_start_together_share_one_conversion(tmp_path):
    file = section(write_gguf(tmp_path / "shared.gguf", {"general.name": "for two"}), cache=str(tmp_path / "cache"))
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        paths = set(pool.map(lambda weights: model_path(file, weights), [True, True, False]))
    assert {path.removesuffix("-small") for path in paths} == {model_path(file)}
    made = {p.name for p in folders(file).iterdir() if p.is_dir()}
    assert {name.endswith("-small") for name in made} == {True, False}
    assert len(made) == 2


REFUSED = {
    "part": ({"split.count": 3}, "is one of 3 parts; join them"),
    "adapter": ({"general.type": "adapter"}, "contains no model .general.type = 'adapter'"),
    "no tokenizer": ({"tokenizer.ggml.tokens": None, "tokenizer.ggml.model": None}, "contains no tokenizer"),
    "stretched": ({"llama.rope.scaling.type": "yarn"}, r"its positions are scaled \(yarn\)"),
    "split": ({"tokenizer.ggml.pre": "my-own"}, "its text is split into words as 'my-own'"),
    "old": ({"tokenizer.ggml.pre": None}, "its text is split into words as 'default'"),
    "shape": ({"llama.feed_forward_length": 64}, "holds 12,288 numbers more than"),
    "no size": ({"llama.block_count": None}, "holds|cannot be read"),
}


@pytest.mark.parametrize("changes, says", REFUSED.values(), ids=REFUSED.keys())  # noqa: PT006
def test_files_that_would_be_another_model_are_refused(tmp_path, changes, says):
    with pytest.raises(ConfigError, match=f"model.name_or_path = .*{says}"):
        check_model(section(write_gguf(tmp_path / "x.gguf", changes)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rope_freqs.weight": np.ones(8, np.float32)}, r"holds 8 numbers more than .*\(rope_freqs.weight\)"),
        ({"blk.1.ffn_up.weight": None}, "holds 6,144 numbers fewer than"),
        ({"blk.1.ffn_up.weight": None, "blk.1.other.weight": np.ones((INNER, WIDTH), np.float32)}, "has no weights"),
    ],
)
def test_tensors_that_no_parameter_takes_or_that_are_missing_are_refused(tmp_path, change, says):
    tensors = {n: v for n, v in (random_weights() | change).items() if v is not None}
    with pytest.raises(ConfigError, match=f"model.name_or_path = .*{says}"):
        load_model(section(write_gguf(tmp_path / "x.gguf", tensors=tensors)))


def test_another_architecture_is_refused(tmp_path):
    other = {"clip.block_count": 2}
    with pytest.raises(ConfigError, match=r"cannot be read as a causal language model: ValueError of .*clip"):
        check_model(section(write_gguf(tmp_path / "x.gguf", other, architecture="clip")))


def test_an_unknown_quantisation_is_refused(file, tmp_path):
    """The type of the first tensor (after its name, its two dimensions), changed to one that nobody defined."""
    data = bytearray(file.read_bytes())
    place = data.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 2 * 8
    assert struct.unpack_from("<I", data, place) == (int(Q8),)
    struct.pack_into("<I", data, place, 199)
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(ConfigError, match=r"199\)? is not a valid GGMLQuantizationType"):
        check_model(section(tmp_path / "x.gguf"))


def test_a_quantisation_that_cannot_be_undone_is_refused(tmp_path, monkeypatch):
    monkeypatch.delitem(gguf.quants._type_traits, Q8)
    monkeypatch.setattr(gguf, "quantize", lambda values, kind: np.zeros((len(values), 68), np.uint8))
    tensors = {"token_embd.weight": np.zeros((len(TOKENS), WIDTH), np.float32)}
    with pytest.raises(ConfigError, match="its weights are quantised as Q8_0, which cannot be undone"):
        check_model(section(write_gguf(tmp_path / "x.gguf", tensors=tensors)))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "does not begin with GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "does not begin with GGUF"),
        (b"PK\x03\x04" + bytes(100), "does not begin with GGUF"),
        (MAGIC + bytes(20), "is cut short, damaged"),
        (MAGIC + b"\xff" * 60, "is cut short, damaged"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, content, says):
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        check_model(section(tmp_path / "x.gguf"))


def test_a_file_cut_short_anywhere_is_refused(file, tmp_path):
    data, cut = file.read_bytes(), random.Random(0)
    for length in [len(data) - 1, len(data) // 2, *(cut.randrange(4, len(data)) for _ in range(12))]:
        (tmp_path / "x.gguf").write_bytes(data[:length])
        with pytest.raises(ConfigError, match=r"model\.name_or_path = "):
            check_model(section(tmp_path / "x.gguf"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere/x.gguf", "no such file; on a hub it is OWNER/NAME:FILE.gguf"),
        ("/nowhere/x.gguf", "no such file"),
        ("s3://bucket/x.gguf", "is read from a disk or a hub, not from a URI"),
    ],
)
def test_a_file_that_is_not_there_is_refused(name, says):
    with pytest.raises(ConfigError, match=says):
        check_model(ModelSection(name_or_path=name))


def test_only_names_of_gguf_files_are_taken_for_them():
    assert all(map(is_gguf, ("smollm2", "a/b.gguf", "OWNER/NAME:b-Q4_K_M.gguf", "s3://x/y.gguf")))
    assert not any(map(is_gguf, ("world", "OWNER/smollm2", "x/smollm2", "gguf", "a.gguf/model")))


def test_the_folder_states_nothing_of_where_it_was_made(file):
    """A folder in one user's cache may be copied to another's."""
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        with open(os.path.join(model_path(section(file)), name)) as stream:
            assert str(file.parent) not in json.dumps(json.load(stream))
    assert AutoTokenizer.from_pretrained(model_path(section(file))).eos_token == "</s>"
