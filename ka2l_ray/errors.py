"""Whose failure it is: a user's mistake says what to mend; whatever else is raised is internal, and is shown with the place it comes from.

In: an exception. Out: the error classes that are a user's to mend, and one line for all others.
Refuses to know: Ray, commands, exit statuses, and what went wrong.
"""

import re
import traceback
from pathlib import PurePath

PACKAGE = __name__.partition(".")[0]
_FRAME = re.compile(r'^\s*File "([^"]+)", line (\d+), in ', re.MULTILINE)
_TYPED = re.compile(r"^([\w.]+(?:Error|Exception|Exit|Interrupt|Refusal))\b(?:: |$)")


class UserError(Exception):
    """What whoever typed the command can mend: the message says what is wrong and what to do. Nothing else is shown as their mistake."""


class ConfigError(UserError, ValueError):
    """A configuration that cannot run; the message names file, dotted field, value and what is allowed."""


class StageError(UserError, RuntimeError):
    """A stage that cannot start or must not count as done."""


def internal(error: BaseException) -> str:
    """An error that is nobody's mistake at the keyboard, in one line: its type and words, where in this package it was met, and where in a
    library it was raised. Of an error that crossed processes, whose text holds the traceback of the other one, that place counts."""
    places = [_place(f.filename, f.lineno or 0) for f in traceback.extract_tb(error.__traceback__)]
    places += [_place(name, int(line)) for name, line in _FRAME.findall(str(error))]
    own = next((p for p in reversed(places) if p.startswith(f"{PACKAGE}.")), None)
    found = [f"in {own}"] if own else []
    if places and places[-1] != own:
        found.append(f"raised in {places[-1]}")
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    where = f" ({', '.join(found)})" if found else ""
    return f"internal error: {words_of(error)}{where}{notes}; run again with --debug for the whole traceback"


def words_of(error: BaseException) -> str:
    """Type and message of an error in one line. Where the text ends with another process' traceback, that one's last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    if _FRAME.search(str(error)) and _TYPED.match(last := last_words(str(error))):
        return last
    return f"{_name(type(error))}: {lines[0]}"


def last_words(text: str) -> str:
    """The last line of an error's text, empty where it has none. Below the traceback of a function that it called, Ray Data gives its own
    account and advice: there it is the line that ends that traceback; where the last line only points to documentation, the first."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    if lines[-1].startswith("To change retry attempts"):
        return next(
            (line for line in reversed(lines) if _TYPED.match(line) and not line.startswith("ray.exceptions.")),
            lines[-1],
        )
    return lines[0] if lines[-1].startswith(("Refer to", "See ")) else lines[-1]


def told_by(error: BaseException) -> str:
    """What a library says of a value that the user gave, named as the library's words: `OSError of transformers: …`."""
    frames = traceback.extract_tb(error.__traceback__)
    library = _place(frames[-1].filename, 0).partition(".")[0] if frames else PACKAGE
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return f"{type(error).__name__} of {library}: {said}"


def is_from(error: BaseException, package: str = PACKAGE) -> bool:
    """Whether an error was raised by a module of the package itself rather than by what it called."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and _place(frames[-1].filename, 0).partition(".")[0] == package


def without_type(line: str) -> str:
    """The last line of a traceback without the name of an error class of this package, whose messages are whole sentences."""
    found = _TYPED.match(line)
    return line[found.end() :] if found and found[1].startswith(f"{PACKAGE}.") else line


def names_a_library(line: str) -> bool:
    """Whether the last line of a traceback names an error class that is neither of this package nor Ray's own."""
    found = _TYPED.match(line)
    return bool(found) and not found[1].startswith((f"{PACKAGE}.", "ray."))


def _name(kind: type[BaseException]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _place(file: str, line: int) -> str:
    """`package.module:line` of a source file; compiled modules have a path that begins with their package."""
    path = PurePath(file).with_suffix("")
    if not path.is_absolute():
        return f"{'.'.join(path.parts)}:{line}"
    parts = path.parts
    roots = [
        n + 1
        for n, part in enumerate(parts)
        if part in ("site-packages", "dist-packages") or re.fullmatch(r"python\d+\.\d+", part)
    ]
    if PACKAGE in parts:
        roots.append(len(parts) - 1 - parts[::-1].index(PACKAGE))
    return f"{'.'.join(parts[max(roots, default=len(parts) - 1) :])}:{line}"
