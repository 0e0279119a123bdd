"""Attempts at one stage: a shard is done when a file with its number counts, and this module decides which files count.

In: a stage's state folder, the folder of its data files, how its rows are cut. Out: an `Attempt`: the missing shards,
and for each of the others the file that counts.
Several tries may write the same shard: Ray repeats a task whose node is lost although the task may still run, and
workers outlive a killed driver for a moment, on another node for longer. So every try writes a file under a name of its
own, whole or not at all. Within an attempt the first file that the driver hears of counts; after the driver's death,
the one whose name sorts first. `attempt.json` names the last attempt and the files that counted when it began, so
that a file which an earlier attempt writes late never counts. Only names are read: a shard's rows follow from its
number, and its file's name says how many of them failed.
Refuses to know: Ray, and what the columns mean.
"""

import re
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ka2l_ray.dataflow.storage import FILES_AT_ONCE, Folder
from ka2l_ray.errors import StageError

NOTE = "attempt.json"
SHARDS_PER_FOLDER = 1000
"""One page of a listing on object storage; the folders are listed in parallel."""
FILES_ASKED = 64
"""Last shards whose files are asked when they were written; shards are done nearly in the order of their numbers."""
_NAME = re.compile(r"\d{3,}/(\d{6,})-([0-9a-f]{8})-([0-9a-f]{8})-(\d+)-(\d+)\.parquet")


@dataclass(frozen=True)
class Shards:
    """How the `rows` rows of a stage are cut into shards of `size` rows; the last may be shorter."""

    stage: str
    rows: int
    size: int

    @property
    def count(self) -> int:
        return -(-self.rows // self.size)

    def span(self, shard: int) -> tuple[int, int]:
        """Its rows: [start, stop)."""
        start = shard * self.size
        return start, start + self.length(shard)

    def length(self, shard: int) -> int:
        return min(self.size, self.rows - shard * self.size)


@dataclass(frozen=True, order=True)
class ShardFile:
    """A shard's file. `errors` of its rows failed: `own` of them in this stage, the others in an earlier one."""

    shard: int
    attempt: str
    writer: str
    errors: int
    own: int

    @classmethod
    def new(cls, shard: int, attempt: str, errors: int, own: int) -> "ShardFile":
        """A file whose name no other try has."""
        return cls(shard, attempt, uuid.uuid4().hex[:8], errors, own)

    @classmethod
    def parse(cls, name: str) -> "ShardFile | None":
        """None for names that are not a shard's, such as that of a file still being written."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        shard, attempt, writer, errors, own = match.groups()
        return cls(int(shard), attempt, writer, int(errors), int(own))

    @property
    def name(self) -> str:
        """Path below the folder of data files."""
        return f"{_folder(self.shard)}/{self.shard:06d}-{self.attempt}-{self.writer}-{self.errors}-{self.own}.parquet"


def _folder(shard: int) -> str:
    return f"{shard // SHARDS_PER_FOLDER:03d}"


def chosen(names: Iterable[str], attempt: str, shards: Shards) -> dict[int, ShardFile]:
    """For each shard the file of an attempt that counts: of several tries, the one whose name sorts first."""
    first: dict[int, ShardFile] = {}
    for file in sorted(
        f for n in names if (f := ShardFile.parse(n)) and f.attempt == attempt and f.shard < shards.count
    ):
        first.setdefault(file.shard, file)
    return first


def listed(data: Folder, shards: Shards) -> list[str]:
    """Names of the files below `data`; its folders are listed in parallel."""
    folders = [_folder(n) for n in range(0, shards.count, SHARDS_PER_FOLDER)]
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        return [
            f"{f}/{n}"
            for f, names in zip(folders, pool.map(lambda f: (data / f).names(), folders), strict=True)
            for n in names
        ]


@dataclass
class Attempt:
    """One attempt; without arguments, one at nothing. `counted` has the file of each shard that is done; for those in
    `again` the failed rows are repeated."""

    token: str = ""
    shards: Shards = Shards("", 0, 1)
    counted: dict[int, ShardFile] = field(default_factory=dict)
    again: set[int] = field(default_factory=set)

    @classmethod
    def begin(cls, state: Folder, data: Folder, shards: Shards) -> "Attempt":
        """Take over what the last attempt committed. The note is written last: an attempt killed before that never
        began.

        How rows are cut stays the same from the first attempt to the last, whatever `shards` says. Raises `StageError`
        where the stage no longer has the same number of rows.
        """
        last = cls.left(state, data)
        if last.shards.stage != shards.stage:
            last = cls(shards=shards)
        if last.shards.rows != shards.rows:
            raise StageError(
                f"{shards.stage}: {data.path} was started for {last.shards.rows:,} rows, and there are "
                f"{shards.rows:,} now; delete {data.path} and {state.path}, and run again"
            )
        attempt = replace(last, token=uuid.uuid4().hex[:8])
        attempt.save(state)
        return attempt

    @classmethod
    def left(cls, state: Folder, data: Folder) -> "Attempt":
        """What the last attempt left: the files that count (those of earlier attempts that still exist, and its own),
        and the shards still to be repeated; nothing where there was no attempt."""
        note = (state / NOTE).read_json_or_empty()
        if not note:
            return cls()
        shards = Shards(note["stage"], note["rows"], note["size"])
        present = listed(data, shards)
        earlier = {f.shard: f for n in set(note["files"]).intersection(present) if (f := ShardFile.parse(n))}
        own = {
            n: f for n, f in chosen(present, note["token"], shards).items() if n not in earlier or n in note["again"]
        }
        again = {n for n in note["again"] if n in earlier and n not in own}
        return cls(note["token"], shards, earlier | own, again)

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> "Attempt":
        """The attempt that finished a table, by its manifest; one at nothing for a table that no stage wrote."""
        if "shard_rows" not in manifest:
            return cls()
        files = (ShardFile.parse(f["name"].removeprefix("data/")) for f in manifest["files"])
        shards = Shards(manifest["stage"], manifest["rows_in"], manifest["shard_rows"])
        return cls(shards=shards, counted={f.shard: f for f in files if f})

    def save(self, state: Folder) -> None:
        """Write the note by which the next attempt takes over the files that count."""
        files = sorted(f.name for f in self.counted.values())
        note = {"token": self.token, "files": files, "again": sorted(self.again)}
        (state / NOTE).write_json(asdict(self.shards) | note)

    def retry(self, state: Folder) -> int:
        """Have the next attempt repeat the failed rows; returns their number."""
        self.again = {n for n, f in self.counted.items() if f.errors}
        if self.again:
            replace(self, token="").save(state)
        return self.errors

    @property
    def missing(self) -> list[int]:
        """Numbers of the shards to be done, in order."""
        return [n for n in range(self.shards.count) if n not in self.counted or n in self.again]

    def accept(self, file: ShardFile) -> bool:
        """Let a file count. Returns False where another try came first or another attempt wrote it; nothing changes
        then."""
        if file.attempt != self.token or (file.shard in self.counted and file.shard not in self.again):
            return False
        self.counted[file.shard] = file
        self.again.discard(file.shard)
        return True

    @property
    def done(self) -> list[int]:
        """Numbers of the shards that are done; safe to ask from another thread while the driver accepts files."""
        return sorted(n for n in list(self.counted) if n not in self.again)

    @property
    def rows_done(self) -> int:
        """Rows of the shards that are done."""
        return sum(map(self.shards.length, self.done))

    @property
    def errors(self) -> int:
        """Rows that failed in this stage or in an earlier one."""
        return sum(f.errors for f in self.counted.values())

    @property
    def own_errors(self) -> int:
        """Rows that failed in this stage, without those that are being repeated."""
        return sum(f.own for n, f in list(self.counted.items()) if n not in self.again)


@dataclass(frozen=True)
class Progress:
    """What an attempt has done so far: `rows` by itself, since `began_unix_s`, its last file at `changed_unix_s`; times
    are those of the filesystem."""

    attempt: Attempt
    rows: int
    began_unix_s: float
    changed_unix_s: float

    @classmethod
    def of(cls, state: Folder, data: Folder) -> "Progress | None":
        """Progress of the last attempt at a stage, by names and times of its files; None where there is none."""
        last = Attempt.left(state, data)
        if not last.shards.stage:
            return None
        own = sorted(last.counted[n] for n in last.done if last.counted[n].attempt == last.token)
        began = (state / NOTE).changed_unix_s()
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            newest = list(pool.map(lambda f: (data / f.name).changed_unix_s(), own[-FILES_ASKED:]))
        return cls(last, sum(last.shards.length(f.shard) for f in own), began, max([began, *newest]))
