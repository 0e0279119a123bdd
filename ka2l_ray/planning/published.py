"""Published sizes of a few models and data sets, for plans made where neither is at hand.

In: `published.json`, which names the source of every entry. Out: fields of a model's `config.json`, rows of a data set.
Refuses to know: transformers, the hub, and whether the model or data set is at hand.
"""

import json
from functools import cache
from importlib.resources import files
from typing import TypedDict


class PublishedModel(TypedDict):
    """Models of one shape: their hub ids, where the numbers were published, and those fields of `config.json` that fix
    the shape."""

    names: list[str]
    source: str
    model_type: str
    config: dict[str, str | int | bool]


class PublishedDataSet(TypedDict):
    """A data set on the hub: its id, where the numbers were published, and its rows by split."""

    name: str
    source: str
    subset: str | None
    rows: dict[str, int]


class Published(TypedDict):
    """The whole file."""

    models: list[PublishedModel]
    data_sets: list[PublishedDataSet]


@cache
def published() -> Published:
    """All entries of `published.json`."""
    return json.loads(files("ka2l_ray.planning").joinpath("published.json").read_text(encoding="utf-8"))


def published_model(name: str) -> PublishedModel | None:
    """The entry of a hub id; None for a model that is not in the file."""
    return next((m for m in published()["models"] if name in m["names"]), None)


def data_set_rows(name: str, subset: str | None, split: str) -> int | None:
    """Rows of one split of a hub id; None for a data set, subset or split that is not in the file."""
    return next(
        (d["rows"].get(split) for d in published()["data_sets"] if (d["name"], d["subset"]) == (name, subset)), None
    )
