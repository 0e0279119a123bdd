"""What a GGUF file of a Llama says, calculated from its bytes: logits, and the tokens of a text.

In: a file. Out: what a model and a tokenizer made from it must give. Written from the formats' descriptions
(github.com/ggml-org/ggml, docs/gguf.md; Sennrich et al., 2016, for byte pairs), without transformers or tokenizers.
Refuses to know: the package under test.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import regex

WORD = regex.compile(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
"""How GPT-2 splits text."""
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
"""Bytes that byte-level tokens spell as the character of the same number; the others follow from 256 on."""
OTHERS = [b for b in range(256) if b not in PRINTABLE]
SPELLED = {b: chr(b) for b in PRINTABLE} | {b: chr(256 + n) for n, b in enumerate(OTHERS)}


def _weights(reader: Any) -> dict[str, np.ndarray]:
    """{name without `.weight`: float32 values in torch's order}; blocks of 32 numbers in Q8_0 or Q4_1 are undone."""
    found = {}
    for tensor in reader.tensors:
        kind, raw = tensor.tensor_type.name, np.asarray(tensor.data).tobytes()
        if kind == "Q8_0":
            blocks = np.frombuffer(raw, np.dtype([("scale", "<f2"), ("numbers", "i1", 32)]))
            values = blocks["scale"].astype(np.float32)[:, None] * blocks["numbers"]
        elif kind == "Q4_1":
            blocks = np.frombuffer(raw, np.dtype([("scale", "<f2"), ("least", "<f2"), ("halves", "u1", 16)]))
            numbers = np.concatenate([blocks["halves"] & 15, blocks["halves"] >> 4], 1)
            scale, least = (blocks[name].astype(np.float32)[:, None] for name in ("scale", "least"))
            values = scale * numbers + least
        else:
            assert kind == "F32", kind
            values = np.frombuffer(raw, "<f4")
        found[tensor.name.removesuffix(".weight")] = values.reshape([int(n) for n in reversed(tensor.shape)])
    return found


def logits_by_hand(file: Path, ids: list[int]) -> np.ndarray:
    """Logits (T, V) of a Llama whose embedding is its head too. Positions turn pairs of neighbours, as llama.cpp stores
    the rows of queries and keys."""
    reader: Any = gguf.GGUFReader(file)
    header = {name: field.contents() for name, field in reader.fields.items() if len(field.data) == 1}
    weights, attention = _weights(reader), "llama.attention."
    heads, kv_heads = header[attention + "head_count"], header[attention + "head_count_kv"]
    eps, theta = header[attention + "layer_norm_rms_epsilon"], header["llama.rope.freq_base"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weights[name]

    def turned(x: np.ndarray) -> np.ndarray:
        """Vectors (T, heads, width of a head) at their positions."""
        width = x.shape[-1]
        angles = np.arange(len(x))[:, None] * theta ** (-np.arange(0, width, 2) / width)
        pairs = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)[:, None]
        return np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)

    x, length = weights["token_embd"][ids].astype(np.float64), len(ids)
    for block in (f"blk.{n}." for n in range(header["llama.block_count"])):
        h = norm(x, block + "attn_norm")
        q, k, v = (h @ weights[f"{block}attn_{name}"].T for name in "qkv")
        q, k, v = q.reshape(length, heads, -1), k.reshape(length, kv_heads, -1), v.reshape(length, kv_heads, -1)
        q, k, v = turned(q), np.repeat(turned(k), heads // kv_heads, 1), np.repeat(v, heads // kv_heads, 1)
        scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(q.shape[-1])
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        x = x + np.einsum("hts,shd->thd", shares, v).reshape(length, -1) @ weights[block + "attn_output"].T
        h = norm(x, block + "ffn_norm")
        gate = h @ weights[block + "ffn_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ weights[block + "ffn_up"].T)) @ weights[block + "ffn_down"].T
    return norm(x, "output_norm") @ weights["token_embd"].T


def tokens_by_hand(file: Path, texts: list[str]) -> list[list[int]]:
    """Token ids of texts without special tokens, in a byte-level vocabulary where each digit stands alone."""
    reader: Any = gguf.GGUFReader(file)
    vocabulary = {token: n for n, token in enumerate(reader.get_field("tokenizer.ggml.tokens").contents())}
    ranks = {merge: n for n, merge in enumerate(reader.get_field("tokenizer.ggml.merges").contents())}
    words = [[w for piece in regex.findall(r"\p{N}|\P{N}+", text) for w in WORD.findall(piece)] for text in texts]
    return [[vocabulary[part] for word in of_text for part in _parts(word, ranks)] for of_text in words]


def _parts(word: str, ranks: dict[str, int]) -> list[str]:
    """The tokens of a word: the earliest merge of the list first, the leftmost of equal ones."""
    parts = [SPELLED[b] for b in word.encode()]
    while len(parts) > 1:
        rank, at = min((ranks.get(f"{a} {b}", len(ranks)), n) for n, (a, b) in enumerate(pairwise(parts)))
        if rank == len(ranks):
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
