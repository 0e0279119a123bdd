"""A Parquet table and the manifest that lists the files that count.

In: a folder. Out: rows, whole or streamed. A table is done when its manifest exists; the manifest is written last, and readers open what it
lists, never the folder.
Refuses to know: Ray, models, and what the columns mean.
"""

import posixpath
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import StageError

MANIFEST, REOPENED = "manifest.json", "reopened.json"
"""A manifest that is set aside stays readable until the table is closed again."""


@dataclass(frozen=True)
class Table:
    """A Parquet table in a folder of its own. `read` and `batches` open only the files its manifest lists."""

    folder: Folder

    @property
    def is_done(self) -> bool:
        return (self.folder / MANIFEST).exists()

    def manifest(self) -> dict[str, Any]:
        if not self.is_done:
            raise StageError(f"{self.folder.path}: this table is not finished (no {MANIFEST}); run its stage first")
        found = (self.folder / MANIFEST).read_json_or_empty()
        if lacks := [n for n in ("files", "rows") if n not in found]:
            raise StageError(
                f"{self.folder.path}/{MANIFEST}: lacks {' and '.join(lacks)}, so it lists no table. Delete it, and run again: the stage is "
                "repeated"
            )
        return found

    @property
    def rows(self) -> int:
        return self.manifest()["rows"]

    def files(self, part: str | None = None) -> list[str]:
        """Paths of the files that count; `part` keeps those of one part (for `questions`: a split)."""
        return [posixpath.normpath(posixpath.join(self.folder.path, f["name"])) for f in self.entries(part)]

    def listed_from(self, folder: Folder, part: str | None = None) -> list[dict[str, Any]]:
        """Manifest entries of these files as a table in another folder of this filesystem lists them: by relative path, no copy."""
        return [
            f | {"name": posixpath.relpath(posixpath.join(self.folder.path, f["name"]), folder.path)}
            for f in self.entries(part)
        ]

    def entries(self, part: str | None = None) -> list[dict[str, Any]]:
        """What the manifest says of the files that count: `name`, `rows`, and `part` where it has parts."""
        return [f for f in self.manifest()["files"] if part is None or f.get("part") == part]

    def part_rows(self, part: str) -> int:
        return sum(f["rows"] for f in self.entries(part))

    def schema(self) -> pa.Schema:
        files = self.files()
        if not files:
            raise StageError(f"{self.folder.path}: the table holds no file")
        with self._opened(files[0]) as file:
            return file.schema_arrow

    def _opened(self, path: str) -> pq.ParquetFile:
        """Raises `StageError` for a file that the manifest lists and that is not there."""
        try:
            return pq.ParquetFile(path, filesystem=self.folder.filesystem)
        except FileNotFoundError as error:
            raise StageError(
                f"{path}: the table's {MANIFEST} lists this file, and it is gone. Delete the table and run again"
            ) from error

    def batches(self, columns: Sequence[str] | None = None, part: str | None = None) -> Iterator[pa.RecordBatch]:
        """Stream record batches, so that memory does not grow with the table."""
        for path in self.files(part):
            with self._opened(path) as file:
                yield from file.iter_batches(columns=None if columns is None else list(columns))

    def read(self, columns: Sequence[str] | None = None, part: str | None = None) -> pa.Table:
        """Read whole: for tables bounded by the budget or the probe split."""
        files = self.files(part)
        names = None if columns is None else list(columns)
        tables = [self._opened(f).read(names) for f in files]
        return pa.concat_tables(
            tables, promote_options="permissive"
        )  # states are float16 in some files, float32 in others

    def write(self, *parts: tuple[str | None, pa.Table], **facts: Any) -> None:
        """Write a small table (one file per part) to a fresh set of files, then the manifest."""
        self.folder.make()
        files = []
        for label, table in parts:
            name = f"{label or 'part'}-{uuid.uuid4().hex[:8]}.parquet"
            pq.write_table(table, (self.folder / name).path, filesystem=self.folder.filesystem)
            files.append({"name": name, "rows": table.num_rows} | ({"part": label} if label else {}))
        self.close(files, **facts)

    def open_again(self) -> None:
        """Set the manifest aside: from now on the table is not done, and `facts` still says what it said."""
        self.folder.filesystem.move((self.folder / MANIFEST).path, (self.folder / REOPENED).path)

    def facts(self) -> dict[str, Any]:
        """What the manifest says, or said before the table was opened again; empty where it was never closed."""
        return self.manifest() if self.is_done else (self.folder / REOPENED).read_json_or_empty()

    def close(self, files: list[dict[str, Any]], **facts: Any) -> None:
        """Write the manifest: from now on the table is done."""
        rows = sum(f["rows"] for f in files)
        (self.folder / MANIFEST).write_json(
            {"files": files, "rows": rows, "closed_unix_s": round(time.time(), 3)} | facts
        )
        (self.folder / REOPENED).delete()
