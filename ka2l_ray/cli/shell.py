"""Commands as a shell reads them.

In: words and overrides. Out: one line, for the record and for people to type again. Refuses to know: what commands do.
"""

import shlex
from collections.abc import Sequence


def command_line(*words: str, overrides: Sequence[str] = ()) -> str:
    """A command and its overrides, quoted for a shell."""
    return shlex.join([*words, *set_options(overrides)])


def set_options(overrides: Sequence[str]) -> list[str]:
    """`--set A.B=C` for every override."""
    return [part for o in overrides for part in ("--set", o)]
