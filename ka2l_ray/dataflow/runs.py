"""The run folder, on any filesystem that pyarrow speaks (local, `s3://`, `gs://`).

In: a URI. Out: a run that is held, compared and only then written; tables whose manifest lists the files that count; small JSON and YAML
files. A table is done when its manifest exists; the manifest is written last, and readers open what it lists, never the folder.
Refuses to know: Ray, models, and what the columns mean.
"""

import importlib.metadata
import posixpath
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import yaml

from ka2l_ray.config import Config, ConfigError, config_hash, differing_fields, parse_config, read_yaml
from ka2l_ray.dataflow.manifests import MANIFEST, Table
from ka2l_ray.dataflow.records import Records
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import StageError

CONFIG_FILE, FORMAT_FILE, DRIVER_FILE = "config.yaml", "format.json", "driver.json"
FORMAT = 3
"""Of a run's folder. Raise it with every change after which this version would misread a folder that an older one began, or an older one
this version's: names of files and folders, what counts as done, columns that a later stage reads. A run of another format is refused."""
DRAW_STRIDE = 1000
"""Seeds of the draws of one run are this far apart, so that runs with neighbouring seeds never share one."""


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
        raise ConfigError(
            f"{file.path}: does not say which format the run has ({error}); choose another run.name"
        ) from error
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
            raise ConfigError(
                f"{folder.path}: is not empty and holds no config.yaml, so it is not a run. Choose another run.name"
            )
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
    def open(
        cls, config: Config, pin: Callable[[Config], Config] = lambda config: config, hold: Hold = held_by_nobody
    ) -> "Run":
        """Open or create a run's folder, as `open_all` does."""
        return cls.open_all([config], pin, hold)[0]

    @classmethod
    def open_all(
        cls,
        configs: Sequence[Config],
        pin: Callable[[Config], Config] = lambda config: config,
        hold: Hold = held_by_nobody,
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

    @property
    def records(self) -> Records:
        return Records(self.folder)

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
