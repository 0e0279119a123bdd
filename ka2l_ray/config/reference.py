"""The reference of all sections and fields, written from the tree itself.

In: the class `Config`. Out: one Markdown text, the same for the same tree: `python -m ka2l_ray.config.reference > docs/configuration.md`.
Refuses to know: files, and what any field does beyond its docstring.
"""

import inspect
import json
import sys
import textwrap
from collections.abc import Iterator
from typing import Any, get_args

import yaml

from ka2l_ray.config.base import Section
from ka2l_ray.config.tree import NO_RESULTS, Config

WIDTH = 140
HEAD = """\
# Configuration

A run is one YAML file with the sections below; what it leaves out has the default. This page is generated from `ka2l_ray/config/` by
`make docs`, and a test holds it to be up to date.

- Unknown names are errors, and the message names the nearest one. Values are never converted: `"3"` is no number.
- `--set section.field=value` overrides one field; the value is YAML: `--set collect.layers=[2,4]`, `--set model.adapter=null`. A value
  that begins with `*`, `&`, `%`, `@` or a backtick is a text, such as `--set corpus.source=*.jsonl`.
- YAML reads some words as something else: `off` and `no` as false, `123` as a number, `{question}` as a mapping. Put quotes around a text
  that looks like one of these. A number with an exponent needs a point and a sign: `1.0e-4`, not `1e-4`.
- The resolved configuration is kept as `RUN/config.yaml`. A run folder is opened again only with the same values, except for those marked
  *changes no result*.
- What the fields are for: [concepts](concepts.md), [corpora](corpora.md), [a real model](real-model.md).
"""


def reference() -> str:
    """The whole page."""
    parts = [
        HEAD,
        _refusals(Config, "Refused across sections"),
        *(_section(path, kind, at) for path, kind, at in sections()),
    ]
    return "\n".join(p for p in parts if p)


def sections(
    of: type[Section] = Config, prefix: str = "", at: Section | None = None
) -> Iterator[tuple[str, type[Section], Section]]:
    """(dotted path, class, its defaults there) of every section, in the order of the file, a section before those inside it."""
    for name, field in of.model_fields.items():
        if (kind := section_of(field.annotation)) is not None:
            path, default = f"{prefix}{field.alias or name}", getattr(at or of(), name)
            yield path, kind, default
            yield from sections(kind, f"{path}.", default)


def section_of(annotation: Any) -> type[Section] | None:
    """The section that a field holds; None for a value."""
    kinds = (annotation, *get_args(annotation))
    return next((k for k in kinds if inspect.isclass(k) and issubclass(k, Section)), None)


def _section(path: str, kind: type[Section], at: Section) -> str:
    """A heading, what the section is for, and its fields; of one that stands in several places only its first place lists them."""
    lines = [f"{'#' * (2 + path.count('.'))} `{path}`\n", *_wrapped(_own_text(path, kind), ""), ""]
    first = next(p for p, k, _ in sections() if k is kind)
    if first != path:
        changed = [
            f"`{n}` is {_value(v)}"
            for n, v in at.model_dump(mode="json").items()
            if v != kind().model_dump(mode="json")[n]
        ]
        same = (
            f"The fields of [`{first}`](#{first.replace('.', '')}){', but ' + ', '.join(changed) if changed else ''}."
        )
        return "\n".join([*lines, same + (f" {_NO_RESULT}." if _changes_nothing(path) else ""), ""])
    schema = kind.model_json_schema(by_alias=True)["properties"]
    for name, field in kind.model_fields.items():
        shown = field.alias or name
        if section_of(field.annotation) is None:
            lines += _field(shown, f"{path}.{shown}", schema[shown])
    refusals = _refusals(kind, "Refused")
    return "\n".join([*lines, *(["", refusals] if refusals else [""] if lines[-1] else [])])


_NO_RESULT = "Changes no result"


def _own_text(path: str, kind: type[Section]) -> str:
    """A section's docstring, behind that of the field that holds it, where it has one."""
    parent: type[Section] = Config
    *above, last = path.split(".")
    for name in above:
        parent = section_of(parent.model_fields[name].annotation) or parent
    return " ".join(_plain(text) for text in (parent.model_fields[last].description, kind.__doc__) if text)


def _field(name: str, path: str, schema: dict[str, Any]) -> list[str]:
    mark = f"; {_NO_RESULT.lower()}" if _changes_nothing(path) else ""
    head = f"- **`{name}`**: {_type(schema)}. Default: {_value(schema['default'])}{mark}."
    return [*_wrapped(head, "  ", ""), *_wrapped(_plain(schema.get("description", "")), "  ")]


def _changes_nothing(path: str) -> bool:
    steps = path.split(".")
    return any(".".join(steps[: n + 1]) in NO_RESULTS for n in range(len(steps)))


def _refusals(kind: type[Section], head: str) -> str:
    """What the section's own checks refuse, by their docstrings."""
    checks = kind.__pydantic_decorators__.model_validators.values()
    said = "; ".join(_plain(check.func.__doc__ or "").rstrip(".") for check in checks)
    return "\n".join([*_wrapped(f"{head}: {said}.", ""), ""]) if said else ""


def _type(schema: dict[str, Any]) -> str:
    """A JSON schema in words."""
    return _listed([words for s in schema.get("anyOf", [schema]) for words in _types(s)])


def _types(schema: dict[str, Any]) -> list[str]:
    """What one of a schema's alternatives allows: its values by name, or a kind of value."""
    if "const" in schema or "enum" in schema:
        return [_value(v) for v in schema.get("enum", [schema.get("const")])]
    if schema["type"] == "array":
        return [f"a list{', not empty,' if schema.get('minItems') else ''} of {_type(schema['items'])}"]
    names = {
        "string": "text",
        "integer": "whole number",
        "number": "number",
        "boolean": "`true` or `false`",
        "null": "`null`",
    }
    return [names[schema["type"]] + _bounds(schema)]


def _bounds(schema: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    if schema.get("minLength"):
        found.append("not empty")
    if "pattern" in schema:
        found.append(f"of the form `{schema['pattern']}`")
    return f" ({', '.join(found)})" if found else ""


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _value(value: Any) -> str:
    """A value as the file has it: JSON, which is YAML too; a text of one word without quotes, unless YAML reads it otherwise (`off`)."""
    plain = isinstance(value, str) and value.split() == [value] and yaml.safe_load(value) == value
    return f"`{value if plain else json.dumps(value, ensure_ascii=False)}`"


def _plain(text: str) -> str:
    return " ".join(text.split())


def _wrapped(text: str, indent: str, first: str | None = None) -> list[str]:
    start = indent if first is None else first
    return textwrap.wrap(
        text, WIDTH, initial_indent=start, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


if __name__ == "__main__":
    sys.stdout.write(reference())
