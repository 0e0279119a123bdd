"""Which table and column of a run is made where, from the specs in `schema`; and the same as the README's table.

In: the name of a table, a column or a manifest's fact. Out: lines of text; Markdown between two markers of a page:
`python -m ka2l_ray.cli.tables README.md`.
Refuses to know: run folders, Ray.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from rich.console import Console

from ka2l_ray.config import ConfigError
from ka2l_ray.schema import MANIFEST_FACTS, ROUND, STAGE_FACTS, TABLES, TableSpec

BEGIN, END = "<!-- tables: written by `make docs` -->", "<!-- end of tables -->"


def print_tables(name: str | None) -> None:
    """Print all tables, or what concerns one name. Raises `ConfigError` where there is nothing of that name."""
    for line in _all() if name is None else _about(name):
        Console().print(line, soft_wrap=True, highlight=False, markup=False)


def _all() -> Iterator[str]:
    for spec in TABLES.values():
        yield from _whole(spec)
    yield "Besides, every manifest.json says:"
    yield from (_line(fact, "", meaning) for fact, meaning in MANIFEST_FACTS.items())
    yield "and that of a table that actors wrote:"
    yield from (_line(fact, "", meaning) for fact, meaning in STAGE_FACTS.items())


def _about(name: str) -> list[str]:
    """A table by name or folder, else columns and facts of that name, else those whose meaning mentions it; `gamma` is
    what a keyboard has of γ."""
    name = "γ" if name == "gamma" else name
    if specs := [spec for spec in TABLES.values() if name in (spec.name, spec.folder, spec.folder.split("/")[-1])]:
        return [line for spec in specs for line in _whole(spec)]
    for facts, of in ((MANIFEST_FACTS, "every manifest.json"), (STAGE_FACTS, "the manifest.json of a table of actors")):
        if name in facts:
            return [f"in {of}:", _line(name, "", facts[name])]
    made = {spec.name: list(_made(spec)) for spec in TABLES.values()}
    column = re.sub(r"\d{3}$", "LLL", name)
    found = {table: [line for n, line in lines if column in n.split(", ")] for table, lines in made.items()}
    if not any(found.values()):
        found = {table: [line for _, line in lines if name in line] for table, lines in made.items()}
    if not any(found.values()):
        raise ConfigError(f"no table, column or fact of a manifest is called {name!r}; tables are {', '.join(TABLES)}")
    carried = [spec.folder for spec in TABLES.values() if name in spec.carried]
    return [
        *(text for table, lines in found.items() if lines for text in (_head(TABLES[table]), *lines)),
        *([f"carried over into {', '.join(carried)}"] if carried else []),
    ]


def _whole(spec: TableSpec) -> Iterator[str]:
    yield _head(spec)
    yield f"  {spec.about}"
    if spec.carried and spec.source:
        yield f"  carried over from {spec.source.folder}: {', '.join(spec.carried)}"
    yield from (line for _, line in _made(spec))


def _head(spec: TableSpec) -> str:
    rows = f", one row per {spec.row}" if spec.row else ""
    return f"{spec.folder}{rows}: made by step {spec.step}, ka2l_ray/{spec.code}"


def _made(spec: TableSpec) -> Iterator[tuple[str, str]]:
    """(name, line) of each column that a table adds, and of each fact that its manifest says."""
    for column in spec.added:
        yield column.name, _line(column.name, _kind(column.type), column.meaning)
    for fact, meaning in spec.facts.items():
        yield fact, _line(fact, f"in {spec.facts_file}", meaning)


def _line(name: str, kind: str, meaning: str) -> str:
    return f"  {name:<20} {kind:<16} {meaning}"


def _kind(kind: pa.DataType | None) -> str:
    if kind is None:
        return "float16, float32"
    return f"list of {kind.value_type}" if pa.types.is_list(kind) else str(kind)


def markdown() -> str:
    """The tables of a run, then those of a round, as Markdown."""
    rounds = {name for name, spec in TABLES.items() if spec.folder.startswith(ROUND)}
    return "\n".join(
        [
            *_rows([spec for name, spec in TABLES.items() if name not in rounds]),
            "",
            f"Once per round, in `{ROUND}/`:",
            "",
            *_rows([TABLES[name] for name in TABLES if name in rounds]),
            "",
        ]
    )


def _rows(specs: list[TableSpec]) -> Iterator[str]:
    yield "| table | made by | from | one row per | what it is | columns added |"
    yield "|---|---|---|---|---|---|"
    for spec in specs:
        adds = ", ".join(f"`{c.name}`" for c in spec.added)
        folder, code = spec.folder.removeprefix(f"{ROUND}/"), spec.code.removesuffix(".py")
        source = spec.source.name if spec.source else "–"
        yield f"| `{folder}` | `{code}` | {source} | {spec.row or '–'} | {spec.about} | {adds or '–'} |"


def with_tables(page: str) -> str:
    """A page with the tables between its two markers."""
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n{markdown()}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(with_tables(file.read_text(encoding="utf-8")), encoding="utf-8")
