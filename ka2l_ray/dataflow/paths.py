"""Paths of a configuration that mean the same on every node, from whatever folder its processes are started.

In: a configuration as the user wrote it, and the folder that relative paths count from. Out: the same with absolute paths; URIs, hub ids
and `world` stay. `~`, `$NAME` and `${NAME}` are replaced here, once, by the driver's own. Refuses to know: Ray, and what the paths hold.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ka2l_ray.config import Config, ConfigError, parse_config
from ka2l_ray.dataflow.source_names import is_hub_id

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
SHIPPED = "world"
OWN = ("run.storage", "annotate.endpoint.replies")
"""What a run writes to: a copy of a working directory is no place for it."""


def absolute(config: Config, cwd: Path, goes_along: bool = False) -> Config:
    """The configuration with every path absolute, below `cwd` where it was relative.

    `goes_along`: `cwd` is a job's working directory, of which Ray gives every process its own copy, under another path in the next job.
    What is there is then named relative to it, the same on every node and when the job is submitted again; `run.storage` is not.

    Raises `ConfigError` for a variable or a `~NAME` that the driver does not know, and where a variable brings a key into a URI.
    """
    tree = config.model_dump(mode="json")
    for section, name, keep in (
        (tree["run"], "run.storage", _never),
        (tree["model"], "model.name_or_path", _is_model_id),
        (tree["model"], "model.adapter", _never),
        (tree["corpus"], "corpus.source", _is_corpus_id),
        (tree["decode"], "decode.decoder", _is_shipped),
        (tree["annotate"]["endpoint"], "annotate.endpoint.replies", _never),
    ):
        field = name.rpartition(".")[2]
        section[field] = _each(
            section[field], lambda text, name=name, keep=keep: _settled(text, name, cwd, keep, goes_along)
        )
    return parse_config(tree, "with ~ and variables replaced")


Keep = Callable[[str, Path], bool]
"""Whether a name is no path: (name, folder that relative paths count from)."""


def _never(name: str, cwd: Path) -> bool:
    return False


def _is_shipped(name: str, cwd: Path) -> bool:
    return name == SHIPPED


def _is_model_id(name: str, cwd: Path) -> bool:
    """As Hugging Face takes it: a folder where one is there, else a hub id; what begins as a path is one."""
    return name == SHIPPED or not (name.startswith((".", "/")) or os.path.exists(cwd / name))


def _is_corpus_id(name: str, cwd: Path) -> bool:
    return name == SHIPPED or (is_hub_id(name) and not name.startswith(".") and not os.path.exists(cwd / name))


def _each(value: Any, change: Callable[[str], str]) -> Any:
    """`change` of a text or of every text of a list; None stays."""
    if isinstance(value, list):
        return [change(one) for one in value]
    return None if value is None else change(value)


def _settled(text: str, field: str, cwd: Path, keep: Keep, goes_along: bool) -> str:
    name = text if os.path.exists(cwd / text) else _expanded(text, field)
    if "://" in name or keep(name, cwd):
        return name
    path = os.path.abspath(cwd / name)
    inside = goes_along and field not in OWN and not os.path.isabs(name) and Path(path).is_relative_to(cwd)
    return os.path.relpath(path, cwd) if inside else path


def _expanded(text: str, field: str) -> str:
    """The text with variables and a leading `~` replaced; what is not known is refused, for a folder of that name would be made."""

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name not in os.environ:
            raise ConfigError(
                f"{field} = {text!r}: the environment has no {name}; set it where `ka2l` is started, or write the path out"
            )
        return os.environ[name]

    expanded = os.path.expanduser(_VARIABLE.sub(value, text))
    if expanded.startswith("~"):
        raise ConfigError(f"{field} = {text!r}: there is no user of that name; write the path out")
    return expanded
