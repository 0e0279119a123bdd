"""Secrets with recognisable values, and the search for them in everything that was written."""

import base64
import secrets
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq


def plant() -> dict[str, str]:
    """What stands in the environment of a command that uses all of them."""
    return {
        "HF_TOKEN": f"hf_{secrets.token_hex(17)}",
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20),
        "KA2L_ANNOTATOR_KEY": f"sk-{secrets.token_hex(24)}",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }


def found_in(text: bytes, planted: Mapping[str, str]) -> set[str]:
    """Names of the secrets that a text contains, as they are or in base64."""
    forms = {name: (value.encode(), base64.b64encode(value.encode())) for name, value in planted.items()}
    return {name for name, spelt in forms.items() if any(form in text for form in spelt)}


def files_with(folder: Path, planted: Mapping[str, str]) -> list[tuple[str, str]]:
    """(file, secret) for each file below a folder that contains one; Parquet, which is compressed, is also read."""
    return [
        (str(file.relative_to(folder)), name) for file in files(folder) for name in found_in(content(file), planted)
    ]


def files(folder: Path) -> list[Path]:
    """Files below a folder; sockets and links are left out."""
    return [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]


def content(file: Path) -> bytes:
    rows = repr(pq.ParquetFile(file).read().to_pydict()) if file.suffix == ".parquet" else ""
    return file.read_bytes() + rows.encode()
