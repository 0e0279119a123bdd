"""Whether a model's files are what they seem, without reading the weights themselves.

In: a folder on any filesystem. Out: nothing, or a `ConfigError` that names the files and says what to type.
A safetensors file begins with a header that says how long the file is (github.com/huggingface/safetensors); a clone
without git-lfs has pointers of three lines instead (github.com/git-lfs/git-lfs, docs/spec.md).
Refuses to know: what the tensors are for.
"""

import json
import re
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath

from pyarrow import fs

from ka2l_ray.dataflow.storage import FILES_AT_ONCE, Folder
from ka2l_ray.errors import ConfigError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
POINTER = b"version https://git-lfs.github.com/spec/"
POINTER_BYTES = 1024
"""A pointer is shorter than this, by its specification."""
LARGEST_HEADER = 100_000_000
"""Bytes; safetensors itself refuses longer ones."""
READ_WITH_WEIGHTS = (".safetensors", ".json", ".model", ".txt", ".jinja", ".py")
"""Endings of the files of a model's folder that are read."""
LARGEST_VOCABULARY = 32_000_000
"""Bytes of a file of a tokenizer whose ending is none of these."""
_SHARD = re.compile(r"(.*)-\d{5}-of-(\d{5})\.safetensors")


def check_files(folder: Folder, field: str) -> None:
    """Raise `ConfigError` where a file that is read is a pointer of Git LFS or empty."""
    found = folder.filesystem.get_file_info(fs.FileSelector(folder.path, allow_not_found=True))
    read = [f for f in found if f.type == fs.FileType.File and f.path.endswith(READ_WITH_WEIGHTS)]
    small = [f.base_name for f in read if 0 < f.size < POINTER_BYTES]
    if pointers := [name for name in small if (folder / name).read_bytes().startswith(POINTER)]:
        raise ConfigError(
            f"{field}: an LFS pointer, not the file itself: {_some(pointers)}. Type `git lfs install` and "
            f"`git lfs pull` in the clone{f' {folder.path}' if folder.is_local else ', then upload it again'}"
        )
    if empty := [f.base_name for f in read if f.size == 0 and not f.path.endswith((".txt", ".py"))]:
        raise ConfigError(f"{field}: {_some(empty)}: 0 bytes; copy or download {_it(empty)} again")


def check_weights(folder: Folder, field: str) -> None:
    """Raise `ConfigError` where the weights in a folder, of a model or an adapter, are missing, of another kind than
    safetensors, cut short, or not what their index names."""
    check_files(folder, field)
    names = set(folder.names())
    if ADAPTER_CONFIG in names and SINGLE not in names and INDEX not in names:
        wanted = {ADAPTER: frozenset[str]()}
    else:
        wanted = wanted_weights(names, lambda: (folder / INDEX).read_bytes(), field)
    if missing := sorted(wanted.keys() - names):
        raise ConfigError(f"{field}: the folder lacks {_some(missing)}; weights are read from safetensors only")
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        problems = list(pool.map(lambda name: _problem(folder / name, wanted[name]), wanted))
    if wrong := [f"{name} {problem}" for name, problem in zip(wanted, problems, strict=True) if problem]:
        raise ConfigError(f"{field}: {_some(wrong)}; copy or download {_it(wrong)} again")


def wanted_weights(names: Collection[str], index: Callable[[], bytes], field: str) -> dict[str, frozenset[str]]:
    """{weights file that Hugging Face would read: tensors that the index names in it}, of a folder with these `names`.

    Raises `ConfigError` for an index that is cut short, names other files than safetensors, or lacks files of a set.
    """
    if SINGLE in names or INDEX not in names:
        return {SINGLE: frozenset()}
    try:
        found = json.loads(index())
        places, _ = found["weight_map"], found["metadata"]  # transformers reads both
        files = {file: frozenset(t for t, place in places.items() if place == file) for file in {*places.values()}}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{field}: {INDEX} is cut short or no index; copy or download it again ({error})") from error
    if others := sorted(name for name in files if not name.endswith(".safetensors")):
        raise ConfigError(f"{field}: its index names {_some(others)}; weights are read from safetensors only")
    if missing := sorted(_sets(files) - files.keys()):
        raise ConfigError(f"{field}: {INDEX} does not name {_some(missing)} of its set; copy or download it again")
    if not files:
        raise ConfigError(f"{field}: {INDEX} names no file; copy or download it again")
    return files


def _sets(files: Collection[str]) -> set[str]:
    """All files of the sets that numbered files belong to, such as `model-00001-of-00004.safetensors`."""
    found = {(match[1], match[2]) for match in map(_SHARD.fullmatch, files) if match}
    return {f"{stem}-{n:05d}-of-{last}.safetensors" for stem, last in found for n in range(1, int(last) + 1)}


def _problem(file: Folder, named: frozenset[str]) -> str | None:
    """What is wrong with a safetensors file, by its header; None where nothing is. `named`: tensors it should have."""
    with file.filesystem.open_input_file(file.path) as stream:
        size = stream.size()
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= LARGEST_HEADER:
            return "is not a safetensors file"
        if 8 + length > size:
            return f"is cut short within its header ({size:,} bytes)"
        try:
            header = json.loads(stream.read(length))
            tensors = {name: entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return "is not a safetensors file"
    whole = 8 + length + max(tensors.values(), default=0)
    if size < whole:
        return f"is cut short: {size:,} of {whole:,} bytes"
    if lacking := sorted(named - tensors.keys()):
        return f"lacks {_some(lacking)}, which {INDEX} names there"
    return None


def _some(names: Collection[str], at_most: int = 3) -> str:
    """The first names, and how many more there are."""
    shown = list(names)[:at_most]
    return ", ".join(shown) + (f" and {len(names) - at_most} more" if len(names) > at_most else "")


def _it(names: Collection[str]) -> str:
    return "it" if len(names) == 1 else "them"


def is_small(name: str, size: int) -> bool:
    """Whether a file of a repository is, or may be, part of a model's configuration, tokenizer or code: read by its
    ending, or beside them and no larger than a vocabulary. Weights in other formats than safetensors are larger."""
    if len(PurePath(name).parts) > 1:
        return name.endswith((".py", ".jinja"))
    return name.endswith(READ_WITH_WEIGHTS) or size <= LARGEST_VOCABULARY
