"""Whether every node finds what a run needs: its storage, in both directions, and the folders that lie on local disks.

In: a configuration, and what each node saw. Out: a note in storage for the others to find, and in words what does not reach.
Refuses to know: Ray, which runs `look` on the other nodes.
"""

import glob
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ka2l_ray.config import Config, ConfigError
from ka2l_ray.dataflow.paths import SHIPPED, is_hub_id
from ka2l_ray.dataflow.runs import storage_of
from ka2l_ray.dataflow.storage import Folder


@dataclass(frozen=True)
class Seen:
    """What one node saw: why it could not read the driver's note or write its own (None where it could), and the fields whose path is
    not there."""

    unread: str | None
    unwritten: str | None
    missing: tuple[str, ...]


@contextmanager
def note(config: Config) -> Iterator[Folder]:
    """A folder in `run.storage` with one small file of the driver in it, gone afterwards. Raises `ConfigError` where it cannot be made."""
    folder = storage_of(config) / f".reach-{uuid.uuid4().hex[:12]}"
    try:
        (folder / "driver").write_bytes(b"")
    except OSError as error:
        raise ConfigError(f"run.storage = {config.run.storage!r}: cannot be written: {error}") from error
    try:
        yield folder
    finally:
        folder.delete()


def look(uri: str, node: str, paths: Mapping[str, str]) -> Seen:
    """On another node: read the driver's note, leave one called `node`, and see which of the paths, by field, are there.

    Where the note is not there nothing is written, for the driver could not remove it.
    """
    folder = Folder.of(uri)
    unread = _failed(lambda: (folder / "driver").read_bytes())
    unwritten = None if unread else _failed(lambda: (folder / node).write_bytes(b""))
    return Seen(
        unread,
        unwritten,
        tuple(field for field, path in paths.items() if not Path(path).exists() and not glob.glob(path)),
    )


def _failed(act: Callable[[], object]) -> str | None:
    """Why storage refused, None where it did not."""
    try:
        act()
    except (OSError, pa.ArrowException) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None


def local_paths(config: Config) -> dict[str, str]:
    """Paths that processes on other nodes open, by `FIELD = 'VALUE'`; URIs, hub ids and what is shipped are none."""
    sources = [config.corpus.source] if isinstance(config.corpus.source, str) else list(config.corpus.source)
    named = [("corpus.source", s) for s in sources if not is_hub_id(s) or Path(s).exists()]
    model = config.model.name_or_path
    named += [("model.name_or_path", model)] if Path(model).is_absolute() or Path(model).exists() else []
    named += [("model.adapter", config.model.adapter)] if config.model.adapter else []
    named += [("decode.decoder", config.decode.decoder)] if config.decode.enabled else []
    replies = config.annotate.endpoint.replies
    named += [("annotate.endpoint.replies", replies)] if replies and Path(replies).exists() else []
    return {f"{field} = {value!r}": value for field, value in named if value != SHIPPED and "://" not in value}


def refusal(config: Config, seen: Sequence[tuple[str, Seen, bool]]) -> str | None:
    """What is wrong, with the way out, where something does not reach a node; None where all is well.

    `seen`: of each node its name, what it saw, and whether the driver found the file that it wrote.
    """
    storage, way_out = (
        f"run.storage = {config.run.storage!r}",
        "Use a folder that all nodes mount at this path, or a bucket (s3://…, gs://…)",
    )
    for node, found, arrived in seen:
        if found.unread is not None:
            return f"{storage} is not shared: node {node} cannot read what the driver wrote ({found.unread}). {way_out}"
        if found.unwritten is not None:
            return f"{storage}: node {node} cannot write there ({found.unwritten}). {way_out}, with the right to write"
        if not arrived:
            return f"{storage} is not shared: the driver cannot read what node {node} wrote. {way_out}"
        if found.missing:
            return f"{'; '.join(found.missing)}: not there on node {node}. Give a path or URI that every node reaches"
    return None
