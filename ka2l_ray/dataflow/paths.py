"""Paths of a configuration that mean the same on every node, whatever folder its processes are started in.

In: a configuration as the user wrote it, and the folder that relative paths count from. Out: the same with absolute
paths; URIs, hub ids and `world` stay. `~`, `$NAME` and `${NAME}` are replaced here, once, with the driver's values.
Refuses to know: Ray, and what is at the paths.
"""

import functools
import glob
import operator
import os
import re
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

from ka2l_ray.config import Config, ConfigError, parse_config
from ka2l_ray.dataflow.source_names import WIKIFACTS, is_hub_id

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
SHIPPED = "world"
SMOLLM2, GGUF = "smollm2", ".gguf"
NAMED_MODELS = (SHIPPED, SMOLLM2)
"""Values of `model.name_or_path` and `decode.decoder` that are neither paths nor hub ids, even if a file has that
name."""
SHIPS = ("model.name_or_path", "corpus.source", "decode.decoder")
"""Fields in which `SHIPPED` is what comes with the package."""
PATHS = (
    *(*SHIPS, "decode.grounding", "decode.training.questions", "decode.training.writer", "run.storage"),
    *("decode.bertscore.encoder", "model.adapter", "model.cache", "annotate.endpoint.replies"),
)
CORPUS = "corpus"
"""Value of `decode.grounding` that is no path: the corpus's own entities."""
OUTPUTS = ("run.storage", "model.cache", "annotate.endpoint.replies")
"""Fields that a run writes to, which must not be in a job's copy of its working directory."""


def is_gguf(model: str) -> bool:
    """Whether a `model.name_or_path` stands for a GGUF file: `smollm2`, a path, or `OWNER/NAME:FILE.gguf` on a hub."""
    return model == SMOLLM2 or model.endswith(GGUF)


def absolute(config: Config, cwd: Path, is_copied: bool = False) -> Config:
    """The configuration with every path absolute; relative ones count from `cwd`.

    `is_copied`: `cwd` is a job's working directory, of which Ray gives every process its own copy, at another path in
    every job. Paths inside it stay relative, and so are the same on every node and when the job is submitted again;
    those of `OUTPUTS` do not.

    Raises `ConfigError` for a variable or a `~NAME` that the driver does not know, and where a variable would put a key
    into a URI.
    """
    tree = config.model_dump(mode="json")
    for name in PATHS:
        section, field = _place(tree, name)
        section[field] = _each(section[field], lambda text, name=name: _settled(text, name, cwd, is_copied))
    return parse_config(tree, "with ~ and variables replaced")


def sent_with_job(config: Config, cwd: Path) -> list[Path]:
    """The files and folders that a job needs from this machine: those that are named by paths relative to `cwd`.

    URIs, ids and absolute paths, and what begins with `~` or a variable, are left to the job's driver. Raises
    `ConfigError` for a relative output, which would be deleted with the job, and for an input that is missing or
    outside `cwd`.
    """
    tree, found = config.model_dump(mode="json"), []
    for name in PATHS:
        section, field = _place(tree, name)
        given = list[str]()
        _each(section[field], given.append)
        for text in given:
            if text and not (_is_the_drivers(text) or _is_id(text, name, cwd)):
                found += _sent(text, name, cwd)
    return found


def _each(value: Any, change: Callable[[str], Any]) -> Any:
    """A field's value with each of its texts changed: it is a text, a list or a dictionary of such values, or null."""
    if isinstance(value, dict):
        return {key: _each(one, change) for key, one in value.items()}
    if isinstance(value, list):
        return [_each(one, change) for one in value]
    return None if value is None else change(value)


def _is_the_drivers(text: str) -> bool:
    """Whether a path means the same on the cluster, or what the job's driver makes of it."""
    return "://" in text or text.startswith(("/", "~")) or _VARIABLE.search(text) is not None


def _sent(text: str, field: str, cwd: Path) -> list[Path]:
    """The files and folders that a relative path or pattern stands for."""
    if field in OUTPUTS:
        raise ConfigError(
            f"{field} = {text!r}: is relative, so it would be in the job's working directory, which is deleted with "
            "the job; give a URI, or an absolute path that every node reaches"
        )
    path = Path(os.path.abspath(cwd / text))
    if not path.is_relative_to(cwd):
        raise ConfigError(
            f"{field} = {text!r}: is outside the current folder, so it is not sent with the job; start in a folder "
            "that contains it, or give a URI, or an absolute path that every node reaches"
        )
    found = [path] if path.exists() else [Path(f) for f in sorted(glob.glob(glob_pattern(str(path)), recursive=True))]
    if not found:
        raise ConfigError(f"{field} = {text!r}: no such file, so it cannot be sent with the job")
    return found


def glob_pattern(source: str) -> str:
    """A pattern of files, with brackets in names of existing folders escaped."""
    folders = list(takewhile(lambda part: "*" not in part and "?" not in part, Path(source).parts[:-1]))
    parent = Path(*folders)
    return (
        str(Path(glob.escape(str(parent)), *Path(source).parts[len(folders) :]))
        if folders and parent.exists()
        else source
    )


def _place(tree: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """The section of a configuration's tree that has a field, and the field's name there."""
    *sections, field = name.split(".")
    return functools.reduce(operator.getitem, sections, tree), field


def _is_id(name: str, field: str, cwd: Path) -> bool:
    """Whether the name in a field is an id rather than a path, as Hugging Face and the corpus' reader take it."""
    if name == SHIPPED or (name in NAMED_MODELS and field in ("model.name_or_path", "decode.decoder")):
        return field in SHIPS
    if (field, name) in (("corpus.source", WIKIFACTS), ("decode.grounding", CORPUS)):
        return True
    if field in ("model.name_or_path", "decode.training.writer", "decode.bertscore.encoder"):
        return not (name.startswith((".", "/")) or os.path.exists(cwd / name))
    by_corpus = field in ("corpus.source", "decode.training.questions")
    return by_corpus and is_hub_id(name) and not (name.startswith(".") or os.path.exists(cwd / name))


def _settled(text: str, field: str, cwd: Path, is_copied: bool) -> str:
    name = text if os.path.exists(cwd / text) else _expanded(text, field)
    if "://" in name or _is_id(name, field, cwd):
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
