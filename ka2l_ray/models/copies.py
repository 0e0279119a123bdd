"""Local copies of models and decoders in object storage, for libraries that read local files only.

In: a path or URI. Out: a local folder with its content: the path itself, or a copy that all processes of this user on
this node share. A copy is complete or absent; one process makes it while the others wait. It is identified by what the
storage lists (names, sizes, times), so changed content gets a new copy. Refuses to know: what the files mean, except
which of them contain weights.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from pyarrow import fs

from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import ConfigError

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
"""Endings of files with weights; all other files are small."""


def local_copy(address: str, weights: bool = True) -> Path:
    """The content of a folder or URI as a local folder; without `weights`, files that end in one of `WEIGHTS` are left
    out.

    Copies are in a folder of this user below TMPDIR, and may be deleted whenever nothing runs. Raises `ConfigError`
    where there is no such folder, the scheme is not supported, or the folder for copies belongs to another user.
    """
    folder = Folder.of(address)
    if folder.is_local:
        return Path(folder.path)
    files = _files(folder, weights)
    listing = json.dumps([address, *((f.path, f.size, f.mtime_ns) for f in files)])
    copy = _copies_folder() / f"{Path(folder.path).name}-{hashlib.sha256(listing.encode()).hexdigest()[:16]}"
    with copy.with_name(f"{copy.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases the lock of a process that is killed
        if not copy.exists():
            _download(folder, files, copy)
    return copy


def _files(folder: Folder, weights: bool) -> list[fs.FileInfo]:
    entries = folder.filesystem.get_file_info(fs.FileSelector(folder.path, recursive=True, allow_not_found=True))
    files = sorted((f for f in entries if f.type == fs.FileType.File), key=lambda f: f.path)
    if not files:
        raise ConfigError(f"{folder.uri}: no such folder, or it is empty")
    return [f for f in files if weights or not f.path.endswith(WEIGHTS)]


def _copies_folder() -> Path:
    """A folder that no other user can write to, because a model may bring code that is run."""
    folder = Path(tempfile.gettempdir(), f"ka2l-copies-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise ConfigError(f"{folder}: belongs to another user; set TMPDIR to a folder of your own")
    return folder


def _download(folder: Folder, files: list[fs.FileInfo], copy: Path) -> None:
    partial = copy.with_name(f"{copy.name}.part")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    for file in files:
        target = partial / Path(file.path).relative_to(folder.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        fs.copy_files(
            file.path, str(target), source_filesystem=folder.filesystem, destination_filesystem=fs.LocalFileSystem()
        )
    partial.rename(copy)
