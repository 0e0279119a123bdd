"""Folders on a node's disk that are made once for all of its processes: weights that were fetched or converted.

In: a place, a name, and what fills a folder. Out: the folder, complete. One process makes it while the others wait;
one that was interrupted is never used, and one whose files have changed size is made again.
Refuses to know: what the files mean, and where they come from.
"""

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ka2l_ray.dataflow.log import log
from ka2l_ray.errors import ConfigError

CONTENTS = ".ka2l-files.json"
"""{file: bytes} of a complete folder; written after all of them."""
FULL = (errno.ENOSPC, errno.EDQUOT)


def cached(place: Path, name: str, build: Callable[[Path], None]) -> Path:
    """The folder `place/name` with what `build` writes into the empty folder that it is given.

    It is built once per disk: under a lock, next to its place, and moved there when it is whole. Raises `ConfigError`
    where the disk is full, and whatever `build` raises; then nothing is left behind that another process would use.

    >>> def build(folder: Path) -> None:
    ...     _ = (folder / "weights").write_bytes(b"1234")
    >>> cached(Path(tempfile.mkdtemp()), "model", build).name
    'model'
    """
    folder = place / name
    if _is_whole(folder):
        return folder
    with locked(place / f"{name}.lock"):
        if not _is_whole(folder):
            if folder.exists():
                log.warning("%s: files are missing or have another size; making it again", folder)
                shutil.rmtree(folder)
            partial = place / f"{name}.part"
            shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
            partial.mkdir(parents=True)
            with room_for(0, place):
                build(partial)
                files = {str(f.relative_to(partial)): f.stat().st_size for f in partial.rglob("*") if f.is_file()}
                (partial / CONTENTS).write_text(json.dumps(files))
            partial.rename(folder)
    return folder


def _is_whole(folder: Path) -> bool:
    return are_whole(folder, recorded(folder / CONTENTS))


def recorded(record: Path) -> dict[str, int]:
    """{file: bytes} that a record lists; empty where there is none, or it was cut off."""
    try:
        return json.loads(record.read_bytes())
    except (OSError, ValueError):
        return {}


def are_whole(folder: Path, sizes: Mapping[str, int]) -> bool:
    """Whether all these files of a folder exist and have these sizes; False without any."""
    return bool(sizes) and not damaged(folder, sizes)


def damaged(folder: Path, sizes: Mapping[str, int]) -> list[str]:
    """The files that are missing or have another size."""
    return [name for name, size in sizes.items() if not (folder / name).is_file() or _size(folder / name) != size]


def _size(file: Path) -> int:
    return file.stat().st_size


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Only one process of all that see this disk is within this context for a file; the others wait."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases the lock of a process that is killed
        yield


@contextmanager
def room_for(needed: int, place: Path) -> Iterator[None]:
    """Within this context `needed` bytes are written below `place`, which exists. Raises `ConfigError` before it if
    they do not fit, and within it if the disk is full after all."""
    fix = "Free some space, or set model.cache to a folder on a larger disk of every node"
    if needed > (free := shutil.disk_usage(place).free):
        raise ConfigError(
            f"{place}: {needed / 1e9:,.1f} GB of weights are to be stored here, where {free / 1e9:,.1f} GB are free "
            f"on node {os.uname().nodename}. {fix}"
        )
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # libraries wrap the system's error in classes of their own
        if getattr(error, "errno", None) in FULL or any(os.strerror(number) in str(error) for number in FULL):
            raise ConfigError(
                f"{place}: the disk of node {os.uname().nodename} is full; what was fetched of the weights is not "
                f"used. {fix}"
            ) from error
        raise


def copies_folder(cache: str | None) -> Path:
    """Where copies of folders at URIs are: in `model.cache`, or by default in a folder of this user below TMPDIR.

    No other user can write to it, because a model may bring code that is run. Raises `ConfigError` where it belongs to
    another user.
    """
    folder = Path(cache, "copies") if cache else Path(tempfile.gettempdir(), f"ka2l-copies-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"model.cache = {cache!r}: cannot be written on node {os.uname().nodename}: {error}"
        ) from error
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise ConfigError(f"{folder}: belongs to another user; set TMPDIR or model.cache to a folder of your own")
    return folder
