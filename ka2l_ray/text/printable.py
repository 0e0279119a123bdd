r"""Text that others wrote, as a terminal may show it.

In: any text: questions, answers of models, what a server says, names of files. Out: the same text, in which characters
that a terminal would obey instead of showing them are written as escapes, such as \x1b.
Refuses to know: terminals, logs.
"""

import re

OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except tab and line feed; those that reverse the order of what follows (Boucher and Anderson,
Trojan Source, 2021); halves of surrogate pairs, which no terminal can be sent."""


def printable(text: str) -> str:
    r"""The text with every obeyed character escaped; lines and tabs stay.

    >>> printable("\x1b]0;mine\x07 a\rb")
    '\\x1b]0;mine\\x07 a\\rb'
    """
    return OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
