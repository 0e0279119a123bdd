"""A Parquet table and the manifest that lists the files that count.

In: a folder. Out: rows, whole or streamed. A table is done when its manifest exists, which is written last; readers
open the files that it lists, never whatever else is in the folder.
Refuses to know: Ray, models, and what the columns mean.
"""

import posixpath
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from ka2l_ray.dataflow.parquet import open_parquet
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import StageError

MANIFEST, REOPENED = "manifest.json", "reopened.json"
"""The manifest of a table that was opened again is kept under the second name until the table is closed."""


class FileEntry(TypedDict):
    """A file as a manifest lists it."""

    name: str
    """Path relative to the table's folder."""
    rows: int
    part: NotRequired[str]
    """Of `questions`: the split that its rows belong to."""


@dataclass(frozen=True)
class Table:
    """A Parquet table in a folder of its own, with a manifest of its files.

    All methods that read raise `StageError` where the table is not done, and where a listed file is gone, and
    `ConfigError` for a column that may contain pickles.
    """

    folder: Folder

    @property
    def is_done(self) -> bool:
        return (self.folder / MANIFEST).exists()

    def manifest(self) -> dict[str, Any]:
        """`files` (of `FileEntry`), `rows`, `closed_unix_s`, and the facts that the table was closed with."""
        if not self.is_done:
            raise StageError(f"{self.folder.path}: this table is not finished (no {MANIFEST}); run its stage first")
        found = (self.folder / MANIFEST).read_json_or_empty()
        if lacks := [n for n in ("files", "rows") if n not in found]:
            raise StageError(
                f"{self.folder.path}/{MANIFEST}: lacks {' and '.join(lacks)}, so it does not describe a table. "
                "Delete it and run again: the stage is repeated"
            )
        return found

    @property
    def rows(self) -> int:
        return self.manifest()["rows"]

    def files(self, part: str | None = None) -> list[str]:
        """Paths of the listed files, on the table's filesystem; with `part`, only those of that part."""
        return [posixpath.normpath(posixpath.join(self.folder.path, f["name"])) for f in self.entries(part)]

    def listed_from(self, folder: Folder, part: str | None = None) -> list[FileEntry]:
        """The entries of this table's files for the manifest of a table in another folder: no file is copied."""
        return [
            {**f, "name": posixpath.relpath(posixpath.join(self.folder.path, f["name"]), folder.path)}
            for f in self.entries(part)
        ]

    def entries(self, part: str | None = None) -> list[FileEntry]:
        """The listed files; with `part`, only those of that part."""
        return [f for f in self.manifest()["files"] if part is None or f.get("part") == part]

    def part_rows(self, part: str | None) -> int:
        """Rows of a part; None: of all."""
        return sum(f["rows"] for f in self.entries(part))

    def schema(self) -> pa.Schema:
        """The columns, by the first file. Raises `StageError` for a table without files."""
        if not (files := self.files()):
            raise StageError(f"{self.folder.path}: the table has no files")
        with self._opened(files[0]) as file:
            return file.schema_arrow

    def _opened(self, path: str) -> pq.ParquetFile:
        try:
            return open_parquet(Folder(self.folder.filesystem, path, self.folder.query))
        except FileNotFoundError as error:
            raise StageError(
                f"{path}: the table's {MANIFEST} lists this file, but it is gone. Delete the table and run again"
            ) from error

    def batches(self, columns: Sequence[str] | None = None, part: str | None = None) -> Iterator[pa.RecordBatch]:
        """Stream the rows as record batches, so that memory does not grow with the table."""
        for path in self.files(part):
            with self._opened(path) as file:
                yield from file.iter_batches(columns=None if columns is None else list(columns))

    def read(self, columns: Sequence[str] | None = None, part: str | None = None) -> pa.Table:
        """The whole table in memory: for tables bounded by the budget or the probe split."""
        names = None if columns is None else list(columns)
        tables = [self._opened(f).read(names) for f in self.files(part)]
        # Permissive: states are float16 in some files and float32 in others.
        return pa.concat_tables(tables, promote_options="permissive")

    def write(self, *parts: tuple[str | None, pa.Table], **facts: object) -> None:
        """Write a small table to new files, one for each (name of the part or None, rows), then the manifest."""
        self.folder.make()
        files = []
        for label, table in parts:
            name = f"{label or 'part'}-{uuid.uuid4().hex[:8]}.parquet"
            pq.write_table(table, (self.folder / name).path, filesystem=self.folder.filesystem)
            files.append({"name": name, "rows": table.num_rows} | ({"part": label} if label else {}))
        self.close(files, **facts)

    def open_again(self) -> None:
        """Set the manifest aside: the table is no longer done, but `facts` still returns what the manifest says."""
        self.folder.filesystem.move((self.folder / MANIFEST).path, (self.folder / REOPENED).path)

    def facts(self) -> dict[str, Any]:
        """The manifest, also of a table that was opened again; empty for one that was never closed."""
        return self.manifest() if self.is_done else (self.folder / REOPENED).read_json_or_empty()

    def close(self, files: Sequence[Mapping[str, Any]], **facts: object) -> None:
        """Write the manifest with these `FileEntry`s and any further facts: the table is done."""
        closed = {"files": files, "rows": sum(f["rows"] for f in files), "closed_unix_s": round(time.time(), 3)}
        (self.folder / MANIFEST).write_json(closed | facts)
        (self.folder / REOPENED).delete()
