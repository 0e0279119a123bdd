"""What is in a cell of a row, whatever program wrote it: a plain value, a list, an object, the text of one.

In: rows by column, cells. Out: values, or an `UnusableError` naming the field.
Refuses to know: what columns mean, files.
"""

import ast
import io
import json
import math
import tokenize
import warnings
from collections.abc import Mapping
from itertools import pairwise

from ka2l_ray.dataflow.rows import BadRow, shortened

LONGEST_LIST = 1_000_000
"""Characters of a cell that is parsed as a list or an object."""


class UnusableError(Exception):
    """A field whose value cannot be used; becomes a `BadRow`."""

    def __init__(self, field: str, problem: str, value: str = "") -> None:
        self.bad = BadRow(field, problem, value)
        super().__init__(str(self.bad))


def plain(value: object) -> object:
    """A whole float as an int, and NaN, which tables write for an empty cell, as None."""
    if isinstance(value, float) and math.isnan(value):
        return None
    return int(value) if isinstance(value, float) and value.is_integer() else value


def parsed_cell(field: str, value: object) -> object:
    """The list or object in a cell of text, as JSON or as Python writes it; the text itself where it is neither."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")) or len(value) > LONGEST_LIST:
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings(action="ignore"):  # of a backslash in a text
            found = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value
    if _joins_texts(value):
        raise UnusableError(
            field,
            "contains strings with no commas between them, as numpy prints a list; write it as JSON",
            shortened(value),
        )
    return found if isinstance(found, (list, dict)) else value


def _joins_texts(code: str) -> bool:
    """Whether two Python strings are adjacent, which Python joins into one."""
    skipped = (tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT)
    kinds = [t.type for t in tokenize.generate_tokens(io.StringIO(code.strip()).readline) if t.type not in skipped]
    return any(a == b == tokenize.STRING for a, b in pairwise(kinds))


def value_at(row: Mapping[str, object], path: str) -> object:
    """The value of a column, or inside one by a dotted path; a cell of JSON text is parsed on the way. None where
    there is no value."""
    if path in row:
        return row[path]
    value: object = row
    for step in path.split("."):
        if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
            value = _from_json(path, value)
        if isinstance(value, list) and step.isdigit():
            value = value[int(step)] if int(step) < len(value) else None
        elif isinstance(value, list):
            value = [v[step] for v in value if isinstance(v, Mapping) and step in v]
        else:
            value = value.get(step) if isinstance(value, Mapping) else None
    return value


def _from_json(field: str, text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UnusableError(field, "is not JSON", shortened(text)) from None
