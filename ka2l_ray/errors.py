"""Whose failure it is: the user's, with a message that says how to fix it, or an internal one, with its place.

In: an exception. Out: the error classes for mistakes of the user, and one line for every other error.
Refuses to know: Ray, commands, exit statuses, and what went wrong.
"""

import re
import traceback
from pathlib import PurePath

PACKAGE = __name__.partition(".")[0]
_FRAME = re.compile(r'^\s*File "([^"]+)", line (\d+), in ', re.MULTILINE)
_TYPED = re.compile(r"^([\w.]+(?:Error|Exception|Exit|Interrupt|Refusal))\b(?:: |$)")


class UserError(Exception):
    """An error that the user can fix. The message says what is wrong and what to do; nothing else is shown."""


class ConfigError(UserError, ValueError):
    """A configuration that cannot run; the message names file, dotted field, value and what is allowed."""


class StageError(UserError, RuntimeError):
    """A stage that cannot start or must not count as done."""


def internal(error: BaseException) -> str:
    """An internal error in one line: its type and message, where in this package it passed and where it was raised.

    Where the error crossed processes, its text contains the traceback of the other process, whose places count.
    """
    places = [_place(f.filename, f.lineno or 0) for f in traceback.extract_tb(error.__traceback__)]
    places += [_place(name, int(line)) for name, line in _FRAME.findall(str(error))]
    own = next((p for p in reversed(places) if p.startswith(f"{PACKAGE}.")), None)
    where = [f"in {own}"] if own else []
    if places and places[-1] != own:
        where.append(f"raised in {places[-1]}")
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    shown = f" ({', '.join(where)})" if where else ""
    return f"internal error: {one_line_with_type(error)}{shown}{notes}; run again with --debug for the whole traceback"


def one_line_with_type(error: BaseException) -> str:
    """Type and message of an error; the last line of its text where that ends with another process' traceback."""
    if _FRAME.search(str(error)) and _TYPED.match(last := last_line(str(error))):
        return last
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{name}: {_first_line(error)}"


def last_line(text: str) -> str:
    """The last line of an error's text that says something; empty where there is none.

    Ray Data appends advice of its own to the traceback of a function that it called: then it is the line that ends that
    traceback. Where the last line only refers to documentation, it is the first line.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    if lines[-1].startswith("To change retry attempts"):
        return next(
            (line for line in reversed(lines) if _TYPED.match(line) and not line.startswith("ray.exceptions.")),
            lines[-1],
        )
    return lines[0] if lines[-1].startswith(("Refer to", "See ")) else lines[-1]


def library_message(error: BaseException) -> str:
    """What a library says of a value that the user gave, with its name: `OSError of transformers: …`."""
    return f"{type(error).__name__} of {_raised_in(error) or PACKAGE}: {_first_line(error)}"


def is_from(error: BaseException) -> bool:
    """Whether an error was raised by a module of this package itself, not by what it called."""
    return _raised_in(error) == PACKAGE


def without_type(line: str) -> str:
    """The last line of a traceback, less the name of an error class of this package (whose messages are sentences)."""
    found = _TYPED.match(line)
    return line[found.end() :] if found and found[1].startswith(f"{PACKAGE}.") else line


def names_a_library(line: str) -> bool:
    """Whether the last line of a traceback names an error class that is neither this package's nor Ray's."""
    found = _TYPED.match(line)
    return bool(found) and not found[1].startswith((f"{PACKAGE}.", "ray."))


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


def _raised_in(error: BaseException) -> str | None:
    """The package whose code raised an error; None where the error has no traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return _place(frames[-1].filename, 0).partition(".")[0] if frames else None


def _place(file: str, line: int) -> str:
    """`package.module:line` of a source file; the path of a compiled module begins with its package."""
    path = PurePath(file).with_suffix("")
    parts = path.parts
    if path.is_absolute():
        roots = [
            n + 1
            for n, part in enumerate(parts)
            if part in ("site-packages", "dist-packages") or re.fullmatch(r"python\d+\.\d+", part)
        ]
        if PACKAGE in parts:
            roots.append(len(parts) - 1 - parts[::-1].index(PACKAGE))
        parts = parts[max(roots, default=len(parts) - 1) :]
    return f"{'.'.join(parts)}:{line}"
