"""YAML of a configuration as plain values, safe against whatever a file contains.

In: text. Out: its values. Refuses to know: sections and fields.
PyYAML's safe loader runs no code, but it silently keeps the last of two equal keys, and ten lines of aliases can expand
to a billion values.
"""

import re
from collections.abc import Hashable

import yaml

from ka2l_ray.errors import ConfigError

MOST_BYTES, MOST_VALUES = 1_000_000, 100_000


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise yaml.constructor.ConstructorError(None, None, f"names `{twice[0]}` twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)
"""YAML 1.1 reads 1e-4 as a text, which nobody who writes it means."""


def read_yaml(text: str, source: str) -> object:
    """The values of a YAML text. Raises `ConfigError`, naming `source`, for a text that is not YAML or is too large, or
    whose aliases refer to themselves or expand to too many values."""
    if len(text) > MOST_BYTES:
        raise ConfigError(f"{source}: {len(text):,} bytes; a configuration has at most {MOST_BYTES:,}")
    try:
        tree = yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{source}: is not YAML: {' '.join(str(error).split())}") from error
    if _values(tree, {}) > MOST_VALUES:
        raise ConfigError(f"{source}: its aliases expand to more than {MOST_VALUES:,} values, or refer to themselves")
    return tree


def _values(tree: object, counted: dict[int, int]) -> int:
    """How many values a tree has, with each shared part counted wherever it occurs; a part inside itself counts as too
    many."""
    if not isinstance(tree, (dict, list)):
        return 1
    if id(tree) not in counted:
        counted[id(tree)] = MOST_VALUES + 1
        parts = tree.values() if isinstance(tree, dict) else tree
        counted[id(tree)] = 1 + sum(_values(part, counted) for part in parts)
    return counted[id(tree)]
