"""Files and folders on any filesystem that pyarrow speaks (local, `s3://`, `gs://`).

In: a path or URI. Out: files that are written whole or not at all; JSON values; local copies.
Refuses to know: Ray, models, what the files mean.
"""

import json
import os
import posixpath
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pyarrow as pa
from pyarrow import fs

from ka2l_ray.config import ConfigError
from ka2l_ray.errors import StageError

FILES_AT_ONCE = 16
"""Files or folders that are listed, read or written side by side."""
URI_CHARACTERS = "/:@%!$&'()*+,;=~[]"
"""Characters that are not quoted in a URI, besides letters and digits; `%`, because quoted names stay quoted."""


@dataclass(frozen=True)
class Folder:
    """A folder or file on a filesystem; `path` is the filesystem's own, without a scheme."""

    filesystem: fs.FileSystem
    path: str
    query: str = ""
    """Options of the URI, such as `endpoint_override=…`. They contain no keys, which `run.storage` refuses."""

    @classmethod
    def of(cls, uri: str) -> "Folder":
        """A local path or URI; nothing is connected to yet. Raises `ConfigError` where the scheme is not supported."""
        if "://" not in uri:
            return cls(fs.LocalFileSystem(), str(Path(uri).absolute()))
        address, mark, options = uri.partition("?")
        try:
            filesystem, path = fs.FileSystem.from_uri(f"{quote(address, safe=URI_CHARACTERS)}{mark}{options}")
        except (pa.ArrowInvalid, OSError) as error:
            raise ConfigError(f"{uri!r}: {error}") from error
        return cls(filesystem, path, urlsplit(uri).query)

    def __truediv__(self, name: str) -> "Folder":
        return Folder(self.filesystem, posixpath.join(self.path, name), self.query)

    @property
    def uri(self) -> str:
        """The local path, or scheme, path and options of a remote filesystem: `Folder.of` of it is this folder."""
        if self.is_local:
            return self.path
        return f"{self.filesystem.type_name}://{quote(self.path)}" + (f"?{self.query}" if self.query else "")

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def exists(self) -> bool:
        return self.filesystem.get_file_info(self.path).type != fs.FileType.NotFound

    def changed_unix_s(self) -> float:
        """When the file was last written, by its filesystem's clock; 0 where it is gone."""
        changed = self.filesystem.get_file_info(self.path).mtime
        return changed.timestamp() if changed else 0.0

    def make(self) -> "Folder":
        """Create the folder and its parents where they are missing; returns it."""
        self.filesystem.create_dir(self.path, recursive=True)
        return self

    def delete(self) -> None:
        """Delete the file, or the folder with everything in it; does nothing where there is neither."""
        kind = self.filesystem.get_file_info(self.path).type
        if kind == fs.FileType.Directory:
            self.filesystem.delete_dir(self.path)
        elif kind == fs.FileType.File:
            self.filesystem.delete_file(self.path)

    def delete_if_empty(self) -> None:
        """Delete the folder where it exists and is empty."""
        if self.is_local:
            with suppress(OSError):  # the system refuses a folder that another process has just written to
                Path(self.path).rmdir()
        elif not self.names(files_only=False):
            self.delete()

    def names(self, files_only: bool = True) -> list[str]:
        """Sorted names of the files directly inside, on request of the folders too; none where it does not exist."""
        found = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return sorted(f.base_name for f in found if f.type == fs.FileType.File or not files_only)

    def read_bytes(self) -> bytes:
        """Raises `FileNotFoundError` where there is no such file."""
        with self.filesystem.open_input_stream(self.path) as stream:
            return stream.read()

    def write_bytes(self, data: bytes) -> None:
        """Write a file whole or not at all: to a temporary file next to it, which is then moved into place."""
        self.filesystem.create_dir(posixpath.dirname(self.path), recursive=True)
        side = f"{self.path}.{uuid.uuid4().hex[:8]}.part"
        with self.filesystem.open_output_stream(side) as stream:
            stream.write(data)
        self.filesystem.move(side, self.path)

    def write_new(self, data: bytes) -> bool:
        """Write a file unless it exists; returns whether it was written.

        Of several processes at the same moment, one succeeds on a local disk; in object storage, and on disks without
        hard links, several may.
        """
        if self.exists():
            return False
        if not self.is_local:
            self.write_bytes(data)
            return True
        side = self.path + f".{uuid.uuid4().hex[:8]}.part"
        Folder(self.filesystem, side).write_bytes(data)
        try:
            os.link(side, self.path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            self.write_bytes(data)
        finally:
            Path(side).unlink()
        return True

    def read_json(self) -> Any:
        """The JSON value in the file. Raises `StageError` where there is no file or it is not valid JSON."""
        try:
            return json.loads(self.read_bytes())
        except FileNotFoundError as error:
            raise StageError(
                f"{self.path}: is missing. Write it again with `ka2l run CONFIG --redo` and the stage that makes it"
            ) from error
        except (ValueError, RecursionError) as error:
            raise StageError(f"{self.path}: is not valid JSON ({error}). Delete it and run again") from error

    def read_json_or_empty(self) -> dict[str, Any]:
        """The JSON object in the file; empty where there is no file. Raises `StageError` for any other content."""
        found = self.read_json() if self.exists() else {}
        if not isinstance(found, dict):
            raise StageError(f"{self.path}: must be a JSON object, not {type(found).__name__}. Delete it and run again")
        return found

    def write_json(self, value: object) -> None:
        """Write a JSON value as `as_json` formats it, whole or not at all."""
        self.write_bytes(as_json(value))

    @contextmanager
    def local(self) -> Iterator[str]:
        """A local path with this folder's content: the folder itself where it is local, else a temporary copy."""
        if self.is_local:
            yield self.path
            return
        with tempfile.TemporaryDirectory(prefix="ka2l-") as scratch:
            fs.copy_files(
                self.path, scratch, source_filesystem=self.filesystem, destination_filesystem=fs.LocalFileSystem()
            )
            yield scratch

    def upload(self, local: Path) -> None:
        """Copy the content of a local folder into this one."""
        self.make()
        fs.copy_files(
            str(local), self.path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=self.filesystem
        )


def as_json(value: object) -> bytes:
    """A JSON value formatted as in every JSON file of a run: sorted keys, one per line."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
