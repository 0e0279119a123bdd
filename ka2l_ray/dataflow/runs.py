"""The run folder, on any filesystem that pyarrow speaks (local, `s3://`, `gs://`).

In: a configuration, or a run folder's URI. Out: a run whose folder was locked, compared and only then written; where
its tables, rounds and records are. Refuses to know: Ray, models, and what the columns mean.
"""

import posixpath
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import yaml

from ka2l_ray.config import Config, ConfigError, config_hash, differing_fields, parse_config, read_yaml
from ka2l_ray.dataflow.manifests import MANIFEST, Table
from ka2l_ray.dataflow.records import Records
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.dataflow.versions import version_of
from ka2l_ray.errors import StageError

CONFIG_FILE, FORMAT_FILE, DRIVER_FILE = "config.yaml", "format.json", "driver.json"
FORMAT = 9
"""Format of a run folder; a run of another format is refused. Raise it with every change after which this version would
misread an older version's folder, or the other way round: names of files and folders, what counts as done, columns that
a later stage reads."""
DRAW_STRIDE = 1000
"""Distance between the seeds of a run's draws, so that runs with neighbouring seeds never share one."""


def storage_of(config: Config) -> Folder:
    """The folder of all runs, `run.storage`. Raises `ConfigError` where the scheme is not supported."""
    try:
        return Folder.of(config.run.storage)
    except ConfigError as error:
        raise ConfigError(f"run.storage = {error}") from error


def run_folder(config: Config) -> Folder:
    """The folder of a configuration's run. Raises as `storage_of` does."""
    return storage_of(config) / config.run.name


def _with_pinned_revision(config: Config, theirs: Config) -> Config:
    """The configuration with the commit that the run pinned, where it gives no `model.revision` of its own."""
    if config.model.revision is not None or config.model.name_or_path != theirs.model.name_or_path:
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"revision": theirs.model.revision})})


def _stored(file: Folder) -> Config:
    """The configuration stored with a run. Raises `ConfigError` where it cannot be read."""
    try:
        text = file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file.path}: cannot be read: {error}") from error
    return parse_config(read_yaml(text, file.path), file.path)


def _check_format(folder: Folder) -> None:
    """Raise `ConfigError` for a run folder of another format, naming the version that wrote it."""
    file = folder / FORMAT_FILE
    try:
        found = file.read_json_or_empty() or {"format": 1, "written_by": "an earlier version of ka2l-ray"}
        number, written_by = found["format"], found["written_by"]
    except (StageError, KeyError) as error:
        raise ConfigError(
            f"{file.path}: does not say which format the run has ({error}); choose another run.name"
        ) from error
    if number != FORMAT:
        raise ConfigError(
            f"{folder.path}: has run format {number}, written by {written_by}; {_this_version()} reads and writes "
            f"format {FORMAT}. Continue with the version that wrote it, or choose another run.name"
        )


def _this_version() -> str:
    return f"ka2l-ray {version_of('ka2l-ray')}"


def _compared(config: Config, pin: Callable[[Config], Config]) -> Config:
    """The configuration that a run starts or continues with.

    Raises `ConfigError` where its folder is not a run, has another format, or belongs to another configuration, naming
    the fields that differ.
    """
    folder = run_folder(config)
    if not (folder / CONFIG_FILE).exists():
        if any(not n.endswith(".part") and n not in (DRIVER_FILE, FORMAT_FILE) for n in folder.names(files_only=False)):
            raise ConfigError(
                f"{folder.path}: is not empty and has no config.yaml, so it is not a run. Choose another run.name"
            )
        return pin(config)
    _check_format(folder)
    theirs = _stored(folder / CONFIG_FILE)
    config = _with_pinned_revision(config, theirs)
    started = (folder / "questions" / MANIFEST).exists()
    if started and (different := differing_fields(theirs, config)):
        raise ConfigError(
            f"{folder.path}: belongs to another configuration (theirs → yours): {'; '.join(different)}. "
            "Choose another run.name or delete it"
        )
    return config


@contextmanager
def storage_errors(config: Config) -> Iterator[None]:
    """Raise what storage refuses as a `ConfigError`."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"run.storage = {config.run.storage!r}: cannot be written: {error}") from error


def _write(config: Config) -> None:
    """Write the format first: a folder with a configuration but no format is an earlier version's."""
    folder = run_folder(config)
    if not (folder / CONFIG_FILE).exists():
        (folder / FORMAT_FILE).write_json({"format": FORMAT, "written_by": _this_version()})
    (folder / CONFIG_FILE).write_bytes(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())


Hold = Callable[[Folder], Callable[[], None]]
"""Makes this process the driver of a run, or raises `ConfigError`; returns the function that releases the run."""


def held_by_nobody(folder: Folder) -> Callable[[], None]:
    """A `Hold` that does nothing, for callers that no other driver competes with."""
    return lambda: None


@dataclass(frozen=True)
class Run:
    """A run: its folder and its configuration."""

    folder: Folder
    config: Config

    @classmethod
    def open(
        cls, config: Config, pin: Callable[[Config], Config] = lambda config: config, hold: Hold = held_by_nobody
    ) -> "Run":
        """Open or create a run, as `open_all` does."""
        return cls.open_all([config], pin, hold)[0]

    @classmethod
    def open_all(
        cls,
        configs: Sequence[Config],
        pin: Callable[[Config], Config] = lambda config: config,
        hold: Hold = held_by_nobody,
    ) -> list["Run"]:
        """Open or create several runs: hold all, then compare all, then write all, so that a refusal changes nothing.

        A new run's configuration goes through `pin`. Raises `ConfigError`, and releases what it held, where another
        driver holds a folder, where a folder is not a run, or has another format or configuration, and where storage
        cannot be written.
        """
        with ExitStack() as held:
            for config in configs:
                with storage_errors(config):
                    held.callback(hold(run_folder(config)))
            compared = [_compared(config, pin) for config in configs]
            for config in compared:
                with storage_errors(config):
                    _write(config)
            held.pop_all()
        return [cls(run_folder(config), config) for config in compared]

    @classmethod
    def existing(cls, uri: str) -> "Run":
        """Open an existing run folder. Raises `ConfigError` where it is not one, or has another format."""
        folder = Folder.of(uri)
        if not (folder / CONFIG_FILE).exists():
            raise ConfigError(f"{uri}: has no config.yaml, so it is not a run folder")
        _check_format(folder)
        return cls(folder, _stored(folder / CONFIG_FILE))

    @property
    def hash(self) -> str:
        """Hash of the fields that change results."""
        return config_hash(self.config)

    @property
    def records(self) -> Records:
        """The records of the run's own steps; rounds have records of their own."""
        return Records(self.folder)

    def table(self, *path: str) -> Table:
        """The table in this folder of the run; it may not be done yet."""
        return Table(self.folder / posixpath.join(*path))

    def base(self, name: str) -> Table:
        """A table in `base/`, which all strategies share."""
        return self.table("base", name)

    def round(self, strategy: str, draw: int, number: int) -> Folder:
        """Folder of a round: `strategies/NAME/seed_S/round_NN`. Draws count from 0, rounds from 1."""
        return self.folder / f"strategies/{strategy}/seed_{self.draw_seed(draw)}/round_{number:02d}"

    def draw_seed(self, draw: int) -> int:
        """Seed of an independent draw of a strategy; that of draw 0 is the run's own."""
        return self.config.run.seed + DRAW_STRIDE * draw
