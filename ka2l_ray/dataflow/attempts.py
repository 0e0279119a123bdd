"""Attempts at one stage: a shard is done when a file of its number counts, and what counts is decided here.

In: a stage's state folder, the folder of its data files, how its rows are cut. Out: an `Attempt`: the shards that are missing, the file
that counts of each of the others.
Several tries may write the same shard: Ray repeats a task whose node is gone while the task lives on, and workers of a killed driver live
on for a moment, on another node for longer. So every try writes a file of its own name, whole or not at all; within an attempt the first
that the driver hears of counts, and after its death the one whose name comes first. `attempt.json` names the last attempt that began and
the files that counted then, so that what an earlier one writes late never counts. Nothing but names is read: a shard's rows follow from
its number, and its name holds how many of them failed.
Refuses to know: Ray, and what the columns mean.
"""

import re
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import StageError

NOTE = "attempt.json"
SHARDS_PER_FOLDER = 1000
"""One page of a listing on object storage; the folders are listed side by side."""
LISTED_AT_ONCE = 16
_NAME = re.compile(r"\d{3,}/(\d{6,})-([0-9a-f]{8})-([0-9a-f]{8})-(\d+)-(\d+)\.parquet")


@dataclass(frozen=True)
class Shards:
    """How the `rows` rows of a stage are cut: `size` to a shard, the last may be shorter."""

    stage: str
    rows: int
    size: int

    @property
    def count(self) -> int:
        return -(-self.rows // self.size)

    def span(self, shard: int) -> tuple[int, int]:
        """Its rows: [start, stop)."""
        return shard * self.size, min((shard + 1) * self.size, self.rows)

    def length(self, shard: int) -> int:
        start, stop = self.span(shard)
        return stop - start


@dataclass(frozen=True, order=True)
class ShardFile:
    """A shard's file. `errors` of its rows failed, `own` of them in this stage, the others before it."""

    shard: int
    attempt: str
    writer: str
    errors: int
    own: int

    @classmethod
    def new(cls, shard: int, attempt: str, errors: int, own: int) -> "ShardFile":
        """A name that no other try has."""
        return cls(shard, attempt, uuid.uuid4().hex[:8], errors, own)

    @classmethod
    def parse(cls, name: str) -> "ShardFile | None":
        """None where the name is none of a shard's, such as that of a file that is being written."""
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        shard, attempt, writer, errors, own = found.groups()
        return cls(int(shard), attempt, writer, int(errors), int(own))

    @property
    def name(self) -> str:
        """Below the folder of data files."""
        return f"{_folder(self.shard)}/{self.shard:06d}-{self.attempt}-{self.writer}-{self.errors}-{self.own}.parquet"


def _folder(shard: int) -> str:
    return f"{shard // SHARDS_PER_FOLDER:03d}"


def chosen(names: Iterable[str], attempt: str, shards: Shards) -> dict[int, ShardFile]:
    """Of each shard the one file of an attempt that counts: of several tries the one whose name comes first."""
    found: dict[int, ShardFile] = {}
    for file in sorted(
        f for n in names if (f := ShardFile.parse(n)) and f.attempt == attempt and f.shard < shards.count
    ):
        found.setdefault(file.shard, file)
    return found


def listed(data: Folder, shards: Shards) -> list[str]:
    """Names of the files below `data`, folder by folder side by side."""
    folders = [_folder(n) for n in range(0, shards.count, SHARDS_PER_FOLDER)]
    with ThreadPoolExecutor(LISTED_AT_ONCE) as pool:
        return [
            f"{f}/{n}"
            for f, names in zip(folders, pool.map(lambda f: (data / f).names(), folders), strict=True)
            for n in names
        ]


@dataclass
class Attempt:
    """One attempt. `counted` holds the file of each shard that is done; of those in `again` only the failed rows are done anew."""

    token: str
    shards: Shards
    counted: dict[int, ShardFile]
    again: set[int] = field(default_factory=set)

    @classmethod
    def begin(cls, state: Folder, data: Folder, shards: Shards) -> "Attempt":
        """Take over what the last attempt committed. The note is written last: one that is killed before has not begun.

        How rows are cut is kept from the first attempt to the last, whatever `shards` says by now. Raises `StageError` where the stage
        has other rows by now.
        """
        note = (state / NOTE).read_json_or_empty()
        counted: dict[int, ShardFile] = {}
        again: set[int] = set()
        if note.get("stage") == shards.stage:
            if note["rows"] != shards.rows:
                raise StageError(
                    f"{shards.stage}: {data.path} was begun for {note['rows']:,} rows, there are {shards.rows:,} now; "
                    f"delete {data.path} and {state.path}, and run again"
                )
            shards = Shards(shards.stage, shards.rows, note["size"])
            counted, again = _taken_over(note, data, shards)
        attempt = cls(uuid.uuid4().hex[:8], shards, counted, again)
        (state / NOTE).write_json(attempt.note())
        return attempt

    def note(self) -> dict[str, Any]:
        return _note(self.token, self.shards, self.counted.values(), self.again)

    @property
    def missing(self) -> list[int]:
        """Shards to be done, in order."""
        return [n for n in range(self.shards.count) if n not in self.counted or n in self.again]

    def accept(self, file: ShardFile) -> bool:
        """Let a file count. False, and nothing changes, where another try of its shard came first, or another attempt wrote it."""
        if file.attempt != self.token or (file.shard in self.counted and file.shard not in self.again):
            return False
        self.counted[file.shard] = file
        self.again.discard(file.shard)
        return True

    @property
    def done(self) -> list[int]:
        """Shards that are done; another thread may ask while the driver accepts."""
        return sorted(n for n in list(self.counted) if n not in self.again)

    @property
    def own_errors(self) -> int:
        """Rows that failed in this stage, but for those that are done anew."""
        return sum(f.own for n, f in list(self.counted.items()) if n not in self.again)


def reopen(state: Folder, shards: Shards, files: Iterable[ShardFile], again: Iterable[int]) -> None:
    """Leave a note from which the next attempt takes over `files`, and does the failed rows of the shards `again` anew."""
    (state / NOTE).write_json(_note("", shards, files, again))


def failed(state: Folder, data: Folder) -> int:
    """Rows that have failed so far at a stage that is not finished."""
    return sum(f.errors for f in _left(state, data)[1].values())


def retry(state: Folder, data: Folder) -> int:
    """Have the next attempt at a stage that is not finished do its failed rows anew; returns their number."""
    shards, counted = _left(state, data)
    again = {n for n, f in counted.items() if f.errors}
    if again:
        reopen(state, shards, counted.values(), again)
    return sum(counted[n].errors for n in again)


def _left(state: Folder, data: Folder) -> tuple[Shards, dict[int, ShardFile]]:
    """What the last attempt left: how it was cut, and the files that count; nothing where none began."""
    note = (state / NOTE).read_json_or_empty()
    if not note:
        return Shards("", 0, 1), {}
    shards = Shards(note["stage"], note["rows"], note["size"])
    return shards, _taken_over(note, data, shards)[0]


def _note(token: str, shards: Shards, files: Iterable[ShardFile], again: Iterable[int]) -> dict[str, Any]:
    cut = {"stage": shards.stage, "rows": shards.rows, "size": shards.size}
    return cut | {"token": token, "files": sorted(f.name for f in files), "again": sorted(again)}


def _taken_over(note: Mapping[str, Any], data: Folder, shards: Shards) -> tuple[dict[int, ShardFile], set[int]]:
    """What counted when the last attempt began and is still there, what it committed itself, and what is still to be done anew."""
    there = listed(data, shards)
    earlier = {f.shard: f for n in set(note["files"]).intersection(there) if (f := ShardFile.parse(n))}
    own = chosen(there, note["token"], shards)
    own = {n: f for n, f in own.items() if n not in earlier or n in note["again"]}
    again = {n for n in note["again"] if n in earlier and n not in own}
    return earlier | own, again
