"""The run folder, on any filesystem that pyarrow speaks (local, `s3://`, `gs://`).

In: a URI. Out: a run that is held, compared and only then written; tables whose manifest lists the files that count; small JSON and YAML
files. A table is done when its manifest exists; the manifest is written last, and readers open what it lists, never the folder.
Refuses to know: Ray, models, and what the columns mean.
"""

import importlib.metadata
import json
import os
import posixpath
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pyarrow import fs

from ka2l_ray.config import Config, ConfigError, config_hash, differing_fields, parse_config, read_yaml
from ka2l_ray.errors import StageError

MANIFEST = "manifest.json"
CONFIG_FILE, FORMAT_FILE, DRIVER_FILE = "config.yaml", "format.json", "driver.json"
FORMAT = 2
"""Of a run's folder. Raise it with every change after which this version would misread a folder that an older one began, or an older one
this version's: names of files and folders, what counts as done, columns that a later stage reads. A run of another format is refused."""
URI_CHARACTERS = "/:@%!$&'()*+,;=~[]"
"""What stands in a URI as it is, letters and digits besides; `%` because quoted names stay quoted. The rest, such as a space, is quoted."""
DRAW_STRIDE = 1000
"""Seeds of the draws of one run are this far apart, so that runs with neighbouring seeds never share one."""


@dataclass(frozen=True)
class Folder:
    """A folder on a filesystem; `path` is in that filesystem's own terms."""

    filesystem: fs.FileSystem
    path: str
    query: str = ""
    """Options of the URI it came from, such as `endpoint_override=…`; they hold no keys (`run.storage` refuses those)."""

    @classmethod
    def of(cls, uri: str) -> "Folder":
        """Open a local path or URI. Raises `ConfigError` where the scheme is not supported."""
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
        """What `Folder.of` opens again: a local path, or scheme, path and options of a remote filesystem."""
        if self.is_local:
            return self.path
        return f"{self.filesystem.type_name}://{quote(self.path)}" + (f"?{self.query}" if self.query else "")

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def exists(self) -> bool:
        return self.filesystem.get_file_info(self.path).type != fs.FileType.NotFound

    def make(self) -> "Folder":
        self.filesystem.create_dir(self.path, recursive=True)
        return self

    def delete(self) -> None:
        """Remove the folder or file with all it holds; nothing happens where there is none."""
        kind = self.filesystem.get_file_info(self.path).type
        if kind == fs.FileType.Directory:
            self.filesystem.delete_dir(self.path)
        elif kind == fs.FileType.File:
            self.filesystem.delete_file(self.path)

    def delete_if_empty(self) -> None:
        """Remove the folder unless something is in it, or it is not there."""
        if self.is_local:
            with suppress(OSError):  # the system itself refuses one that is not empty, also where another process has just filled it
                Path(self.path).rmdir()
        elif not self.names(files_only=False):
            self.delete()

    def names(self, files_only: bool = True) -> list[str]:
        """Names of what is directly inside, sorted; nothing where the folder is not there."""
        found = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return sorted(f.base_name for f in found if f.type == fs.FileType.File or not files_only)

    def read_bytes(self) -> bytes:
        with self.filesystem.open_input_stream(self.path) as stream:
            return stream.read()

    def write_bytes(self, data: bytes) -> None:
        """Write whole or not at all: to a side file, then moved into place."""
        parent = posixpath.dirname(self.path)
        self.filesystem.create_dir(parent, recursive=True)
        side = f"{self.path}.{uuid.uuid4().hex[:8]}.part"
        with self.filesystem.open_output_stream(side) as stream:
            stream.write(data)
        self.filesystem.move(side, self.path)

    def write_new(self, data: bytes) -> bool:
        """Write whole unless there is such a file; returns whether it was written. Of several processes at the same moment one does it on a
        local disk; in object storage, and on disks without hard links, all of them may."""
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
        """Raises `StageError` for a file that is not there, or is no whole JSON, such as one that another program cut short."""
        try:
            return json.loads(self.read_bytes())
        except FileNotFoundError as error:
            raise StageError(f"{self.path}: is gone. Write it anew with `ka2l run CONFIG --redo` and the stage that makes it") from error
        except (ValueError, RecursionError) as error:
            raise StageError(f"{self.path}: is no whole JSON ({error}). Delete it and run again") from error

    def read_json_or_empty(self) -> dict[str, Any]:
        """The object in the file; empty where there is no file."""
        found = self.read_json() if self.exists() else {}
        if not isinstance(found, dict):
            raise StageError(f"{self.path}: must hold a JSON object, not {type(found).__name__}. Delete it, and run again")
        return found

    def write_json(self, value: Any) -> None:
        self.write_bytes(as_json(value))

    @contextmanager
    def local(self) -> Iterator[str]:
        """A local path with this folder's content: the folder itself where it is local, else a copy that goes afterwards."""
        if self.is_local:
            yield self.path
            return
        with tempfile.TemporaryDirectory(prefix="ka2l-") as scratch:
            fs.copy_files(self.path, scratch, source_filesystem=self.filesystem, destination_filesystem=fs.LocalFileSystem())
            yield scratch

    def upload(self, local: Path) -> None:
        """Copy a local folder's content here."""
        self.make()
        fs.copy_files(str(local), self.path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=self.filesystem)


def as_json(value: Any) -> bytes:
    """As every JSON file of a run is written."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


@contextmanager
def booked(file: Folder, name: str) -> Iterator[None]:
    """Add the seconds spent inside to what the file holds under `name`, also where the work fails; a SIGKILL loses its attempt."""
    started = time.monotonic()
    try:
        yield
    finally:
        seconds = file.read_json_or_empty()
        file.write_json(seconds | {name: round(seconds.get(name, 0.0) + time.monotonic() - started, 3)})


@dataclass(frozen=True)
class Table:
    """A Parquet table in a folder of its own. `read` and `batches` open only the files its manifest lists."""

    folder: Folder

    @property
    def is_done(self) -> bool:
        return (self.folder / MANIFEST).exists()

    def manifest(self) -> dict[str, Any]:
        if not self.is_done:
            raise StageError(f"{self.folder.path}: this table is not finished (no {MANIFEST}); run its stage first")
        found = (self.folder / MANIFEST).read_json_or_empty()
        if lacks := [n for n in ("files", "rows") if n not in found]:
            raise StageError(
                f"{self.folder.path}/{MANIFEST}: lacks {' and '.join(lacks)}, so it lists no table. Delete it, and run again: the stage is "
                "repeated"
            )
        return found

    @property
    def rows(self) -> int:
        return self.manifest()["rows"]

    def files(self, part: str | None = None) -> list[str]:
        """Paths of the files that count; `part` keeps those of one part (for `questions`: a split)."""
        return [posixpath.normpath(posixpath.join(self.folder.path, f["name"])) for f in self.entries(part)]

    def listed_from(self, folder: Folder, part: str | None = None) -> list[dict[str, Any]]:
        """Manifest entries of these files as a table in another folder of this filesystem lists them: by relative path, no copy."""
        return [f | {"name": posixpath.relpath(posixpath.join(self.folder.path, f["name"]), folder.path)} for f in self.entries(part)]

    def entries(self, part: str | None = None) -> list[dict[str, Any]]:
        """What the manifest says of the files that count: `name`, `rows`, and `part` where it has parts."""
        return [f for f in self.manifest()["files"] if part is None or f.get("part") == part]

    def part_rows(self, part: str) -> int:
        return sum(f["rows"] for f in self.entries(part))

    def schema(self) -> pa.Schema:
        files = self.files()
        if not files:
            raise StageError(f"{self.folder.path}: the table holds no file")
        with self._opened(files[0]) as file:
            return file.schema_arrow

    def _opened(self, path: str) -> pq.ParquetFile:
        """Raises `StageError` for a file that the manifest lists and that is not there."""
        try:
            return pq.ParquetFile(path, filesystem=self.folder.filesystem)
        except FileNotFoundError as error:
            raise StageError(f"{path}: the table's {MANIFEST} lists this file, and it is gone. Delete the table and run again") from error

    def batches(self, columns: Sequence[str] | None = None, part: str | None = None) -> Iterator[pa.RecordBatch]:
        """Stream record batches, so that memory does not grow with the table."""
        for path in self.files(part):
            with self._opened(path) as file:
                yield from file.iter_batches(columns=None if columns is None else list(columns))

    def read(self, columns: Sequence[str] | None = None, part: str | None = None) -> pa.Table:
        """Read whole: for tables bounded by the budget or the probe split."""
        files = self.files(part)
        names = None if columns is None else list(columns)
        tables = [self._opened(f).read(names) for f in files]
        return pa.concat_tables(tables, promote_options="permissive")  # states are float16 in some files, float32 in others

    def write(self, *parts: tuple[str | None, pa.Table], **facts: Any) -> None:
        """Write a small table (one file per part) to a fresh set of files, then the manifest."""
        self.folder.make()
        files = []
        for label, table in parts:
            name = f"{label or 'part'}-{uuid.uuid4().hex[:8]}.parquet"
            pq.write_table(table, (self.folder / name).path, filesystem=self.folder.filesystem)
            files.append({"name": name, "rows": table.num_rows} | ({"part": label} if label else {}))
        self.close(files, **facts)

    def open_again(self) -> None:
        """Take the manifest away: from now on the table is not done."""
        (self.folder / MANIFEST).delete()

    def close(self, files: list[dict[str, Any]], **facts: Any) -> None:
        """Write the manifest: from now on the table is done."""
        rows = sum(f["rows"] for f in files)
        (self.folder / MANIFEST).write_json({"files": files, "rows": rows, "closed_unix_s": round(time.time(), 3)} | facts)


def storage_of(config: Config) -> Folder:
    """The folder that holds the runs. Raises `ConfigError` where the scheme is not supported."""
    try:
        return Folder.of(config.run.storage)
    except ConfigError as error:
        raise ConfigError(f"run.storage = {error}") from error


def run_folder(config: Config) -> Folder:
    """The folder of a configuration's run. Raises `ConfigError` as `storage_of` does."""
    return storage_of(config) / config.run.name


def _at_their_revision(config: Config, theirs: Config) -> Config:
    """The commit that a run pinned stands for a `model.revision` that is not given."""
    if config.model.revision is not None or config.model.name_or_path != theirs.model.name_or_path:
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"revision": theirs.model.revision})})


def _stored(file: Folder) -> Config:
    """A run's own configuration. Raises `ConfigError` where it cannot be read as one."""
    try:
        text = file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file.path}: cannot be read: {error}") from error
    return parse_config(read_yaml(text, file.path), file.path)


def _check_format(folder: Folder) -> None:
    """Raise `ConfigError` for a run's folder of another format, naming the version that wrote it."""
    file = folder / FORMAT_FILE
    try:
        found = file.read_json_or_empty() or {"format": 1, "written_by": "an earlier version of ka2l-ray"}
        number, written_by = found["format"], found["written_by"]
    except (StageError, KeyError) as error:
        raise ConfigError(f"{file.path}: does not say which format the run has ({error}); choose another run.name") from error
    if number != FORMAT:
        raise ConfigError(
            f"{folder.path}: has run format {number}, written by {written_by}; {_this_version()} reads and writes format {FORMAT}. "
            "Go on with the version that wrote it, or choose another run.name"
        )


def _this_version() -> str:
    try:
        return f"ka2l-ray {importlib.metadata.version('ka2l-ray')}"
    except importlib.metadata.PackageNotFoundError:
        return "ka2l-ray that is not installed"


def _compared(config: Config, pin: Callable[[Config], Config]) -> Config:
    """The configuration that a run goes on or begins with. Raises `ConfigError` where its folder is no run, has another format, or belongs
    to another configuration, naming what differs."""
    folder = run_folder(config)
    if not (folder / CONFIG_FILE).exists():
        if any(not n.endswith(".part") and n not in (DRIVER_FILE, FORMAT_FILE) for n in folder.names(files_only=False)):
            raise ConfigError(f"{folder.path}: is not empty and holds no config.yaml, so it is not a run. Choose another run.name")
        return pin(config)
    _check_format(folder)
    theirs = _stored(folder / CONFIG_FILE)
    config = _at_their_revision(config, theirs)
    begun = (folder / "questions" / MANIFEST).exists()
    if begun and (different := differing_fields(theirs, config)):
        fields = "; ".join(different)
        raise ConfigError(
            f"{folder.path}: belongs to another configuration (theirs → yours): {fields}. Choose another run.name or delete it"
        )
    return config


@contextmanager
def _writing(config: Config) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"run.storage = {config.run.storage!r}: cannot be written: {error}") from error


def _write(config: Config) -> None:
    """The format first: a folder with a configuration and no format is an earlier version's."""
    folder = run_folder(config)
    if not (folder / CONFIG_FILE).exists():
        (folder / FORMAT_FILE).write_json({"format": FORMAT, "written_by": _this_version()})
    (folder / CONFIG_FILE).write_bytes(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())


Hold = Callable[[Folder], Callable[[], None]]
"""Makes this process the driver of a run, or raises `ConfigError`; returns what ends that again."""


def held_by_nobody(folder: Folder) -> Callable[[], None]:
    """A `Hold` for callers that are the only ones who know the folder."""
    return lambda: None


@dataclass(frozen=True)
class Run:
    """A run's folder and its configuration."""

    folder: Folder
    config: Config

    @classmethod
    def open(cls, config: Config, pin: Callable[[Config], Config] = lambda config: config, hold: Hold = held_by_nobody) -> "Run":
        """Open or create a run's folder, as `open_all` does."""
        return cls.open_all([config], pin, hold)[0]

    @classmethod
    def open_all(
        cls, configs: Sequence[Config], pin: Callable[[Config], Config] = lambda config: config, hold: Hold = held_by_nobody
    ) -> list["Run"]:
        """Open or create the folders of several runs: hold all, compare all, write all, in this order, so that a refusal changes nothing.

        A new run's configuration goes through `pin`. Raises `ConfigError` where another driver holds a folder, where one is no run, has
        another format or another configuration, and where storage cannot be written; what was held is let go then.
        """
        with ExitStack() as held:
            for config in configs:
                with _writing(config):
                    held.callback(hold(run_folder(config)))
            compared = [_compared(config, pin) for config in configs]
            for config in compared:
                with _writing(config):
                    _write(config)
            held.pop_all()
        return [cls(run_folder(config), config) for config in compared]

    @classmethod
    def existing(cls, uri: str) -> "Run":
        """Open a run that is there. Raises `ConfigError` where it is not, or has another format."""
        folder = Folder.of(uri)
        if not (folder / CONFIG_FILE).exists():
            raise ConfigError(f"{uri}: holds no config.yaml, so it is not a run folder")
        _check_format(folder)
        return cls(folder, _stored(folder / CONFIG_FILE))

    @property
    def hash(self) -> str:
        return config_hash(self.config)

    def table(self, *path: str) -> Table:
        return Table(self.folder / posixpath.join(*path))

    def base(self, name: str) -> Table:
        """A table of the base model, shared by all strategies."""
        return self.table("base", name)

    def round(self, strategy: str, draw: int, number: int) -> Folder:
        """Folder of one round of one strategy: `strategies/NAME/seed_S/round_NN`."""
        return self.folder / f"strategies/{strategy}/seed_{self.draw_seed(draw)}/round_{number:02d}"

    def draw_seed(self, draw: int) -> int:
        """Seed of an independent draw of a strategy; draw 0 is the run's own seed."""
        return self.config.run.seed + DRAW_STRIDE * draw
