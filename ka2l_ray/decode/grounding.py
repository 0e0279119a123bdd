"""Names that exist, in which a new question must be grounded.

In: a list of names, question texts. Out: which name a text contains. Names are compared in the one form of a text
(`text.normal`), as whole words; of several the longest counts.
Refuses to know: decoders, Ray, corpora.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import ConfigError
from ka2l_ray.text.normal import normalize


@dataclass(frozen=True)
class Names:
    """Names in their one form."""

    names: frozenset[str]

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        """From names as they are written; empty ones are left out."""
        return cls(frozenset(n for n in map(normalize, names) if n))

    @cached_property
    def _longest(self) -> int:
        return max((n.count(" ") + 1 for n in self.names), default=0)

    def within(self, text: str) -> str | None:
        """The longest name in a text, in its one form; None where there is none."""
        words = normalize(text).split()
        for size in range(min(self._longest, len(words)), 0, -1):
            for start in range(len(words) - size + 1):
                if (name := " ".join(words[start : start + size])) in self.names:
                    return name
        return None


def read_names(file: str) -> list[str]:
    """The lines of a text file or URI. Raises `ConfigError` where there is no such file, or none in UTF-8."""
    try:
        return Folder.of(file).read_bytes().decode("utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise ConfigError(f"decode.grounding = {file!r}: no such file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"decode.grounding = {file!r}: is not a text file in UTF-8, one name on each line ({error.reason} at byte "
            f"{error.start})"
        ) from error
