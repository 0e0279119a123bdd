"""Paths of a configuration that mean the same on every node, whatever folder its processes are started in.

In: a configuration as the user wrote it, and the folder that relative paths count from. Out: the same with absolute
paths; URIs, hub ids and `world` stay. `~`, `$NAME` and `${NAME}` are replaced here, once, with the driver's values.
Refuses to know: Ray, and what is at the paths.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

from ka2l_ray.config import Config, ConfigError, parse_config
from ka2l_ray.dataflow.source_names import is_hub_id

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
SHIPPED = "world"
OUTPUTS = ("run.storage", "annotate.endpoint.replies")
"""Fields that a run writes to, which must not be in a job's copy of its working directory."""


def absolute(config: Config, cwd: Path, is_copied: bool = False) -> Config:
    """The configuration with every path absolute; relative ones count from `cwd`.

    `is_copied`: `cwd` is a job's working directory, of which Ray gives every process its own copy, at another path in
    every job. Paths inside it stay relative, and so are the same on every node and when the job is submitted again;
    those of `OUTPUTS` do not.

    Raises `ConfigError` for a variable or a `~NAME` that the driver does not know, and where a variable would put a key
    into a URI.
    """
    tree = config.model_dump(mode="json")
    for section, name, is_id in (
        (tree["run"], "run.storage", _never),
        (tree["model"], "model.name_or_path", _is_model_id),
        (tree["model"], "model.adapter", _never),
        (tree["corpus"], "corpus.source", _is_corpus_id),
        (tree["decode"], "decode.decoder", _is_shipped),
        (tree["annotate"]["endpoint"], "annotate.endpoint.replies", _never),
    ):
        field = name.rpartition(".")[2]
        if isinstance(given := section[field], list):
            section[field] = [_settled(text, name, cwd, is_id, is_copied) for text in given]
        elif given is not None:
            section[field] = _settled(given, name, cwd, is_id, is_copied)
    return parse_config(tree, "with ~ and variables replaced")


IsId = Callable[[str, Path], bool]
"""Whether a name is an id rather than a path: (name, folder that relative paths count from)."""


def _never(name: str, cwd: Path) -> bool:
    return False


def _is_shipped(name: str, cwd: Path) -> bool:
    return name == SHIPPED


def _is_model_id(name: str, cwd: Path) -> bool:
    """As Hugging Face reads it: a path where it starts as one or such a folder exists, else a hub id."""
    return name == SHIPPED or not (name.startswith((".", "/")) or os.path.exists(cwd / name))


def _is_corpus_id(name: str, cwd: Path) -> bool:
    return name == SHIPPED or (is_hub_id(name) and not name.startswith(".") and not os.path.exists(cwd / name))


def _settled(text: str, field: str, cwd: Path, is_id: IsId, is_copied: bool) -> str:
    name = text if os.path.exists(cwd / text) else _expanded(text, field)
    if "://" in name or is_id(name, cwd):
        return name
    path = os.path.abspath(cwd / name)
    inside = is_copied and field not in OUTPUTS and not os.path.isabs(name) and Path(path).is_relative_to(cwd)
    return os.path.relpath(path, cwd) if inside else path


def _expanded(text: str, field: str) -> str:
    """The text with variables and a leading `~` replaced; unknown ones are refused, lest they name a new folder."""

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name not in os.environ:
            raise ConfigError(
                f"{field} = {text!r}: the environment has no {name}; "
                "set it where `ka2l` is started, or write the path out"
            )
        return os.environ[name]

    expanded = os.path.expanduser(_VARIABLE.sub(value, text))
    if expanded.startswith("~"):
        raise ConfigError(f"{field} = {text!r}: there is no user of that name; write the path out")
    return expanded
