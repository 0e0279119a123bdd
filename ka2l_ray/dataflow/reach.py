"""Whether every node reaches what a run needs: its storage, to read and to write, and folders on local disks.

In: a configuration, and the reports of the nodes. Out: a note in storage for the nodes to read, and what is wrong.
Refuses to know: Ray, which runs `inspect_from_node` on the other nodes.
"""

import glob
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ka2l_ray.config import Config
from ka2l_ray.dataflow.paths import NAMED_MODELS, SHIPPED
from ka2l_ray.dataflow.runs import storage_errors, storage_of
from ka2l_ray.dataflow.source_names import WIKIFACTS, is_hub_id
from ka2l_ray.dataflow.storage import Folder


@dataclass(frozen=True)
class NodeReport:
    """What one node reaches."""

    read_error: str | None
    """Why it could not read the driver's note; None where it could."""
    write_error: str | None
    """Why it could not write a note of its own; None where it could, or did not try."""
    missing: tuple[str, ...]
    """The fields, with their values, whose path does not exist there."""


@contextmanager
def shared_note(config: Config) -> Iterator[Folder]:
    """A temporary folder in `run.storage` with a note of the driver. Raises `ConfigError` where it cannot be made."""
    folder = storage_of(config) / f".reach-{uuid.uuid4().hex[:12]}"
    with storage_errors(config):
        (folder / "driver").write_bytes(b"")
    try:
        yield folder
    finally:
        folder.delete()


def inspect_from_node(uri: str, node: str, paths: Mapping[str, str]) -> NodeReport:
    """On another node: read the driver's note, write one called `node`, and check that the `paths`, by field, exist.

    Where the driver's note is missing nothing is written, since the driver could not delete it.
    """
    folder = Folder.of(uri)
    read_error = _error_of(lambda: (folder / "driver").read_bytes())
    return NodeReport(
        read_error,
        write_error=None if read_error else _error_of(lambda: (folder / node).write_bytes(b"")),
        missing=tuple(field for field, path in paths.items() if not Path(path).exists() and not glob.glob(path)),
    )


def _error_of(act: Callable[[], object]) -> str | None:
    """The first line of the error that storage raises; None where it raises none."""
    try:
        act()
    except (OSError, pa.ArrowException) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None


def local_paths(config: Config) -> dict[str, str]:
    """{`FIELD = 'VALUE'`: local path that other nodes open}, without URIs, hub ids and what is shipped."""
    sources = [config.corpus.source] if isinstance(config.corpus.source, str) else config.corpus.source
    model, replies = config.model.name_or_path, config.annotate.endpoint.replies
    is_path = model not in NAMED_MODELS and (Path(model).is_absolute() or Path(model).exists())
    named = [
        *(("corpus.source", s) for s in sources if not is_hub_id(s) or Path(s).exists()),
        ("model.name_or_path", model if is_path else None),
        ("model.adapter", config.model.adapter),
        ("decode.decoder", config.decode.decoder if config.decode.enabled else None),
        ("annotate.endpoint.replies", replies if replies and Path(replies).exists() else None),
    ]
    shipped = (SHIPPED, WIKIFACTS)
    return {f"{field} = {path!r}": path for field, path in named if path and path not in shipped and "://" not in path}


def problem_of(config: Config, reports: Sequence[tuple[str, NodeReport, bool]]) -> str | None:
    """What a node does not reach, and how to fix it; None where all nodes reach everything.

    `reports`: (name of the node, its report, whether the driver can see the note that it wrote).
    """
    storage = f"run.storage = {config.run.storage!r}"
    fix = "Use a folder that all nodes mount at this path, or a bucket (s3://…, gs://…)"
    for node, report, arrived in reports:
        if report.read_error is not None:
            return (
                f"{storage} is not shared: node {node} cannot read what the driver wrote ({report.read_error}). {fix}"
            )
        if report.write_error is not None:
            return f"{storage}: node {node} cannot write there ({report.write_error}). {fix}, with write permission"
        if not arrived:
            return f"{storage} is not shared: the driver cannot read what node {node} wrote. {fix}"
        if report.missing:
            return f"{'; '.join(report.missing)}: not found on node {node}. Give a path or URI that every node reaches"
    return None
