"""The reference of all sections and fields, written from the tree itself.

In: the class `Config`. Out: one Markdown text, always the same for the same tree:
`python -m ka2l_ray.config.reference > docs/configuration.md`.
Refuses to know: files, and what any field does beyond its docstring.
"""

import json
import sys
import textwrap
from collections.abc import Iterator

import yaml
from pydantic.json_schema import JsonSchemaValue

from ka2l_ray.config.base import Section, section_of
from ka2l_ray.config.tree import NO_RESULTS, Config

WIDTH = 120
HEAD = """\
# Configuration

A run is one YAML file with the sections below; fields that it leaves out have their defaults. This page is generated
from `ka2l_ray/config/` by `make docs`, and a test checks that it is up to date.

- Unknown names are errors, and the message names the nearest one. Values are never converted: `"3"` is not a number.
- `--set section.field=value` overrides one field; the value is YAML: `--set collect.layers=[2,4]`,
  `--set model.adapter=null`. A value that begins with `*`, `&`, `%`, `@` or a backtick is read as a text:
  `--set corpus.source=*.jsonl`.
- YAML reads some words as something else: `off` and `no` as false, `123` as a number, `{question}` as a mapping. Put
  quotes around a text that looks like one of these. A number with an exponent needs a point and a sign: `1.0e-4`.
- Paths and URIs must not contain a key, a password or a user's name, because the configuration is stored with the run.
- The resolved configuration is stored as `RUN/config.yaml`. A run folder can only be opened again with the same values,
  except for fields marked *changes no result*.
- What the fields are for: [concepts](concepts.md), [corpora](corpora.md), [a real model](real-model.md).
"""
_NO_RESULT = "Changes no result"
_NAMES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "`true` or `false`",
    "null": "`null`",
}


def reference() -> str:
    """The whole page."""
    parts = [HEAD, _refusals(Config, "Refused across sections")]
    return "\n".join(p for p in [*parts, *(_section(*section) for section in sections())] if p)


def sections(
    parent: type[Section] = Config, prefix: str = "", defaults: Section | None = None
) -> Iterator[tuple[str, type[Section], Section]]:
    """(dotted path, class, its defaults there) of every section, in the order of the file, each before those inside
    it."""
    for name, field in parent.model_fields.items():
        if (kind := section_of(field.annotation)) is not None:
            path, default = f"{prefix}{field.alias or name}", getattr(defaults or parent(), name)
            yield path, kind, default
            yield from sections(kind, f"{path}.", default)


def _section(path: str, kind: type[Section], defaults: Section) -> str:
    """A heading, what the section is for, and its fields. A class that occurs in several places lists them in the
    first."""
    lines = [f"{'#' * (2 + path.count('.'))} `{path}`\n", *_wrapped(_own_text(path, kind)), ""]
    first = next(p for p, k, _ in sections() if k is kind)
    if first != path:
        usual = kind().model_dump(mode="json")
        changed = [f"`{n}` is {_value(v)}" for n, v in defaults.model_dump(mode="json").items() if v != usual[n]]
        but = f", but {', '.join(changed)}" if changed else ""
        mark = f" {_NO_RESULT}." if _changes_nothing(path) else ""
        return "\n".join([*lines, f"The fields of [`{first}`](#{first.replace('.', '')}){but}.{mark}", ""])
    schema = kind.model_json_schema(by_alias=True)["properties"]
    for name, field in kind.model_fields.items():
        shown = field.alias or name
        if section_of(field.annotation) is None:
            lines += _field(shown, f"{path}.{shown}", schema[shown])
    refusals = _refusals(kind, "Refused")
    return "\n".join([*lines, *(["", refusals] if refusals else [""] if lines[-1] else [])])


def _own_text(path: str, kind: type[Section]) -> str:
    """A section's docstring, after that of the field that contains it, if there is one."""
    above, _, name = path.rpartition(".")
    parent = next((k for p, k, _ in sections() if p == above), Config)
    return " ".join(text for text in (parent.model_fields[name].description, kind.__doc__) if text)


def _field(name: str, path: str, schema: JsonSchemaValue) -> list[str]:
    mark = f"; {_NO_RESULT.lower()}" if _changes_nothing(path) else ""
    head = f"- **`{name}`**: {_type(schema)}. Default: {_value(schema['default'])}{mark}."
    return [*_wrapped(head, "  ", ""), *_wrapped(schema.get("description", ""), "  ", "  ")]


def _changes_nothing(path: str) -> bool:
    steps = path.split(".")
    return any(".".join(steps[: n + 1]) in NO_RESULTS for n in range(len(steps)))


def _refusals(kind: type[Section], head: str) -> str:
    """What the section's own check refuses, from its docstring."""
    said = vars(kind)["contradictions"].__doc__.rstrip(".") if "contradictions" in vars(kind) else ""
    return "\n".join([*_wrapped(f"{head}: {said}."), ""]) if said else ""


def _type(schema: JsonSchemaValue) -> str:
    """A JSON schema in words."""
    names = [words for s in schema.get("anyOf", [schema]) for words in _types(s)]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _types(schema: JsonSchemaValue) -> list[str]:
    """What one of a schema's alternatives allows: its values by name, or a kind of value."""
    if "const" in schema or "enum" in schema:
        return [_value(v) for v in schema.get("enum", [schema.get("const")])]
    if "type" not in schema:
        return ["any value"]
    if schema["type"] == "array":
        return [f"a list{', not empty,' if schema.get('minItems') else ''} of {_type(schema['items'])}"]
    if schema["type"] == "object":
        return [f"a mapping of names to {_type(schema['additionalProperties'])}"]
    return [_NAMES[schema["type"]] + _bounds(schema)]


def _bounds(schema: JsonSchemaValue) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    found += ["not empty"] if schema.get("minLength") else []
    found += [f"of the form `{schema['pattern']}`"] if "pattern" in schema else []
    return f" ({', '.join(found)})" if found else ""


def _value(value: object) -> str:
    """A value as the file has it: JSON, which is also YAML; a single word without quotes, unless YAML reads it as
    something else (`off`)."""
    plain = isinstance(value, str) and value.split() == [value] and yaml.safe_load(value) == value
    return f"`{value if plain else json.dumps(value, ensure_ascii=False)}`"


def _wrapped(text: str, indent: str = "", first: str = "") -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        WIDTH,
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


if __name__ == "__main__":
    sys.stdout.write(reference())
