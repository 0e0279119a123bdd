"""What the name of a corpus source alone says: a kind of file, or a hub id.

In: a path, pattern, URI or hub id. Out: how its files are read.
Refuses to know: what exists under the name.
"""

import re

COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}


WIKIFACTS = "wikifacts"
"""The corpus of real questions that comes with the package."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def kind_of(name: str) -> str | None:
    """How files of this name are read; None where the ending is not known."""
    plain = (name.partition("?")[0] if "://" in name else name).lower()
    for ending in COMPRESSED:
        plain = plain.removesuffix(ending)
    return next((kind for ending, kind in ENDINGS.items() if plain.endswith(ending)), None)


ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}


def is_hub_id(source: str) -> bool:
    """Whether a source that does not exist as a file or folder is read from the hub."""
    return "://" not in source and HUB_ID.fullmatch(source) is not None and kind_of(source) is None
