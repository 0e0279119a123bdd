"""The reference of the configuration: complete, up to date, and true of the tree."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ka2l_ray.config import NO_RESULTS, Config, ConfigError, Pool, parse_config
from ka2l_ray.config.base import Section, section_of
from ka2l_ray.config.reference import reference, sections

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"
FIELDS = [
    (path, name, field)
    for path, kind, _ in sections()
    for name, field in kind.model_fields.items()
    if section_of(field.annotation) is None
]


def test_the_committed_page_is_the_generated_one():
    assert PAGE.read_text(encoding="utf-8") == reference(), "run `make docs`"


def test_it_lists_every_section_once_and_every_field_where_its_class_stands_first():
    page = reference()
    for path, _, _ in sections():
        assert page.count(f" `{path}`\n") == 1
    firsts = {kind: path for path, kind, _ in reversed(list(sections()))}
    listed = sum(len([f for f in kind.model_fields.values() if section_of(f.annotation) is None]) for kind in firsts)
    assert page.count("\n- **`") == listed


@pytest.mark.parametrize(("path", "name", "field"), FIELDS, ids=[f"{path}.{name}" for path, name, _ in FIELDS])
def test_every_field_is_described(path: str, name: str, field: Any):
    assert field.description
    assert field.description.strip().endswith(".")


def test_every_section_and_every_check_is_described():
    for kind in {k for _, k, _ in sections()} | {Config}:
        assert kind.__doc__
        assert kind.__doc__ != Section.__doc__, kind
        for check in kind.__pydantic_decorators__.model_validators.values():
            assert check.func.__doc__, check
        if "contradictions" in vars(kind):
            assert kind.contradictions.__doc__, kind


def test_defaults_are_written_as_in_a_file():
    """Every `Default: …` of the page, put into a file, is the default."""
    tree: dict[str, Any] = {}
    path, name = "", ""
    for line in reference().replace("\n  ", " ").splitlines():
        if line.startswith("##"):
            path = line.split("`")[1]
        elif line.startswith("- **`"):
            name = line.split("`")[1]
            section = tree
            for step in path.split("."):
                section = section.setdefault(step, {})
            section[name] = yaml.safe_load(line.split("Default: `", 1)[1].split("`. ")[0].split("`; changes")[0])
    firsts = set({kind: path for path, kind, _ in reversed(list(sections()))}.values())
    assert {p for p in firsts if _section(tree, p)} == firsts - {"score", "decode.reread"}, "which have a pool alone"
    assert parse_config(tree, "page") == Config()


def _section(tree: dict[str, Any], path: str) -> dict[str, Any]:
    for step in path.split("."):
        tree = tree.get(step, {})
    return tree


def test_what_changes_no_result_is_marked():
    page = reference().replace("\n  ", " ")
    assert "**`concurrency`**: whole number (≥ 1). Default: `8`; changes no result." in page
    assert "Default: `http://127.0.0.1:8000/v1/chat/completions`; changes no result." in page
    assert "**`max_tokens`**: whole number (≥ 1). Default: `64`. Tokens of a reply" in page
    assert all(_is_field(path) for path in NO_RESULTS)


def _is_field(path: str) -> bool:
    *above, last = path.split(".")
    kind: type[Section] | None = Config
    for name in above:
        kind = section_of(kind.model_fields[name].annotation) if kind else None
    return kind is not None and last in kind.model_fields


def test_bounds_are_those_that_are_checked():
    assert "**`dropout`**: number (≥ 0, < 1)." in reference()
    parse_config({"finetune": {"lora": {"dropout": 0.999}}}, "x")
    with pytest.raises(ConfigError):
        parse_config({"finetune": {"lora": {"dropout": 1.0}}}, "x")


def test_a_section_with_other_defaults_says_so():
    assert Config().decode.pool == Pool(shard_rows=64)
    assert "The fields of [`collect.pool`](#collectpool), but `shard_rows` is `64`. Changes no result." in reference()
