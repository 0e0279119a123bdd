"""Attempts at one stage: what earlier ones committed counts once, and nothing that they write later counts at all.

In: a stage's checkpoint folder and the folder of its data files. Out: an `Attempt`, its folder for Ray Data's row-level checkpoints, and
the data files that count. Why: when a driver is killed, its workers live on for a moment, on another node for longer, and may commit a
block after the next driver has read what is there and given that block out again. So every attempt has a checkpoint folder of its own;
`attempt.json` names the last one that began and the files that counted then.
Refuses to know: Ray, and what the columns mean.
"""

import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ka2l_ray.artifacts import Folder

NOTE = "attempt.json"
EARLIER = "earlier.parquet"
PENDING = ".pending"
"""In the name of a checkpoint whose data file may not be whole: Ray Data writes it first and takes this out of the name last."""
READS_AT_ONCE = 16
"""On object storage each takes tens of milliseconds of waiting."""
IDS = pa.schema([("id", pa.string())])


@dataclass(frozen=True)
class Attempt:
    """One attempt. `earlier` are the files (`name` in `data`, `rows`) that counted when it began."""

    data: Folder
    checkpoint: Folder
    """Where Ray Data notes the ids of each block it has written; `earlier.parquet` in it holds those of the earlier files."""
    earlier: tuple[dict[str, Any], ...]

    @classmethod
    def begin(cls, checkpoints: Folder, data: Folder) -> "Attempt":
        """Take over what the last attempt committed. The note is written last: one that is killed before has not begun."""
        last = (checkpoints / NOTE).read_json_or_empty()
        earlier = cls(data, checkpoints / last["folder"], tuple(last["files"])).files() if last else []
        name = uuid.uuid4().hex[:8]
        attempt = cls(data, (checkpoints / name).make(), tuple(earlier))
        if earlier:
            _write_ids(data, [f["name"] for f in earlier], attempt.checkpoint / EARLIER)
        (checkpoints / NOTE).write_json({"folder": name, "files": earlier})
        return attempt

    def files(self) -> list[dict[str, Any]]:
        """The earlier files, and this attempt's data files whose checkpoint was committed and whose Parquet footer can be read."""
        committed = tuple(n.removesuffix(".parquet") for n in self._committed())
        names = [n for n in self.data.names() if committed and n.startswith(committed)]
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            rows = list(pool.map(lambda name: _rows(self.data / name), names))
        return [*self.earlier, *({"name": n, "rows": r} for n, r in zip(names, rows, strict=True) if r is not None)]

    def rows_about(self, block: int) -> int:
        """Committed rows from the number of blocks of `block` rows alone: cheap on object storage too; the last block may be smaller."""
        return sum(f["rows"] for f in self.earlier) + block * len(self._committed())

    def _committed(self) -> list[str]:
        """Names of committed checkpoints. One whose pending twin is there too is being written a second time, over its data file."""
        names = self.checkpoint.names()
        pending = {n.replace(PENDING, "") for n in names if PENDING in n}
        return [n for n in names if PENDING not in n and n not in pending and n != EARLIER]


def _rows(file: Folder) -> int | None:
    """None where the file is not whole, as after a power cut: its block is then done again."""
    try:
        return pq.read_metadata(file.path, filesystem=file.filesystem).num_rows
    except pa.ArrowInvalid:
        return None


def _write_ids(data: Folder, names: Sequence[str], target: Folder) -> None:
    """Write the `id` column of data files to one file."""

    def ids(name: str) -> pa.Table:
        with pq.ParquetFile((data / name).path, filesystem=data.filesystem) as file:
            return file.read(columns=["id"]).cast(IDS)

    with ThreadPoolExecutor(READS_AT_ONCE) as pool, pq.ParquetWriter(target.path, IDS, filesystem=target.filesystem) as writer:
        for table in pool.map(ids, names):
            writer.write_table(table)
