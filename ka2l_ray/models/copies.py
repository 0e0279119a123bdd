"""Local copies of models and decoders at URIs, for libraries that read local files only.

In: a path or URI. Out: a local folder with its content: the path itself, or a copy that all processes of this user on
this node share (`cache`). It is identified by what the storage lists (names, sizes, times), so changed content gets a
new copy. Refuses to know: what the files mean, except which of them contain weights.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from pyarrow import fs

from ka2l_ray.dataflow.storage import FILES_AT_ONCE, Folder
from ka2l_ray.errors import ConfigError
from ka2l_ray.models.cache import cached, copies_folder, room_for

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".onnx_data")
"""Endings of files with weights; all other files are small."""
READ = ".safetensors"
"""The only weights that are read, and so are copied."""


def local_copy(address: str, weights: bool = True, cache: str | None = None) -> Path:
    """The content of a folder or URI as a local folder; files that end in one of `WEIGHTS` are left out, except, with
    `weights`, those that are `READ`.

    Copies are in `cache` (`model.cache`), by default in a folder of this user below TMPDIR, and may be deleted whenever
    nothing runs. Raises `ConfigError` where there is no such folder, the scheme is not supported, the disk is full, or
    the folder for copies belongs to another user.
    """
    folder = Folder.of(address)
    if "://" not in address:
        return Path(folder.path)
    files = _files(folder, weights)
    listing = json.dumps([address, *((f.path, f.size, f.mtime_ns) for f in files)])
    name = f"{Path(folder.path).name}-{hashlib.sha256(listing.encode()).hexdigest()[:16]}"
    place = copies_folder(cache)
    return cached(place, name, partial(_download, folder, files, place))


def _files(folder: Folder, weights: bool) -> list[fs.FileInfo]:
    entries = folder.filesystem.get_file_info(fs.FileSelector(folder.path, recursive=True, allow_not_found=True))
    files = sorted((f for f in entries if f.type == fs.FileType.File), key=lambda f: f.path)
    if not files:
        raise ConfigError(f"{folder.uri}: no such folder, or it is empty")
    return [f for f in files if not f.path.endswith(WEIGHTS) or (weights and f.path.endswith(READ))]


def _download(folder: Folder, files: list[fs.FileInfo], place: Path, target: Path) -> None:
    """Copy files side by side; raises `ConfigError` where one arrives with another size than was listed."""

    def copy(file: fs.FileInfo) -> None:
        local = target / Path(file.path).relative_to(folder.path)
        local.parent.mkdir(parents=True, exist_ok=True)
        fs.copy_files(
            file.path, str(local), source_filesystem=folder.filesystem, destination_filesystem=fs.LocalFileSystem()
        )
        if (size := local.stat().st_size) != file.size:
            raise ConfigError(
                f"{folder.uri}: {file.base_name} arrived with {size:,} of {file.size:,} bytes; is it being written?"
            )

    with room_for(sum(f.size for f in files), place), ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        for _ in pool.map(copy, files):
            pass
