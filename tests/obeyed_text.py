"""A text with everything that a terminal, or the library that writes to it, would obey."""

import unicodedata

ATTACK = "\x1b]0;mine\x07\x1b[2J\x9b31m \r\x08[bold]red[/bold] [/x] :smile: \u202etxt.exe \udc81 \x00"
SHOWN = r"\x1b]0;mine\x07\x1b[2J\x9b31m \r\x08[bold]red[/bold] [/x] :smile: \u202etxt.exe \udc81 \x00"
"""What is shown of it."""


def obeyed(shown: str) -> set[str]:
    """The characters that a terminal would obey, line feeds aside."""
    return {c for c in shown if unicodedata.category(c) in ("Cc", "Cs") and c != "\n"} | set(shown) & {"\u202e"}
