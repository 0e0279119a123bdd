"""A command as a shell takes it.

In: words and overrides. Out: one line, for the record and for people to type again. Refuses to know: what commands do.
"""

import shlex
from collections.abc import Sequence


def command_line(*words: str, overrides: Sequence[str]) -> str:
    """A command with its overrides as a shell takes it: for the record, and for people to type again."""
    return shlex.join([*words, *set_options(overrides)])


def set_options(overrides: Sequence[str]) -> list[str]:
    return [part for o in overrides for part in ("--set", o)]
