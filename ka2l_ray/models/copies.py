"""Local copies of models and decoders that lie in object storage, for libraries that read local files only.

In: a path or URI. Out: a local folder with its content: the path itself, or a copy that all processes of this node and user share.
A copy is there whole or not at all; one process makes it while the others wait. It belongs to what the storage listed (names, sizes,
times), so that other content gets another copy. Refuses to know: what the files mean, but for which of them hold weights.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import fs

from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import ConfigError

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
"""Endings of files that only those who load weights need; the others are small."""


def local_copy(address: str, weights: bool = True) -> Path:
    """The content of a folder or URI as a local folder, without its `WEIGHTS` where they are not wanted.

    Copies lie below TMPDIR in a folder of this user's own, and may be deleted at any time that nothing runs. Raises `ConfigError`
    where there is no such folder, the scheme is not supported, or another user owns the place.
    """
    folder = Folder.of(address)
    if folder.is_local:
        return Path(folder.path)
    wanted = _wanted(folder, weights)
    place = _place() / f"{Path(folder.path).name}-{_fingerprint(address, wanted)}"
    with _alone(place):
        if not place.exists():
            _fill(place, folder, wanted)
    return place


def _wanted(folder: Folder, weights: bool) -> list[fs.FileInfo]:
    found = folder.filesystem.get_file_info(fs.FileSelector(folder.path, recursive=True, allow_not_found=True))
    files = sorted((f for f in found if f.type == fs.FileType.File), key=lambda f: f.path)
    if not files:
        raise ConfigError(f"{folder.uri}: no such folder, or it is empty")
    return [f for f in files if weights or not f.path.endswith(WEIGHTS)]


def _fingerprint(address: str, files: list[fs.FileInfo]) -> str:
    listed = [address, *((f.path, f.size, f.mtime_ns) for f in files)]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]


def _place() -> Path:
    """A folder that no other user can write to: what lies in it may be code that a model brings along."""
    place = Path(tempfile.gettempdir(), f"ka2l-copies-{os.getuid()}")
    place.mkdir(mode=0o700, exist_ok=True)
    if place.is_symlink() or place.stat().st_uid != os.getuid():
        raise ConfigError(f"{place}: belongs to another user; set TMPDIR to a folder of your own")
    return place


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One process at a time; the system lets go of the lock of a process that is killed."""
    with place.with_name(f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fill(place: Path, folder: Folder, files: list[fs.FileInfo]) -> None:
    side = place.with_name(f"{place.name}.part")
    shutil.rmtree(side, ignore_errors=True)  # of a process that was killed
    for file in files:
        target = side / Path(file.path).relative_to(folder.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        fs.copy_files(
            file.path, str(target), source_filesystem=folder.filesystem, destination_filesystem=fs.LocalFileSystem()
        )
    side.rename(place)
