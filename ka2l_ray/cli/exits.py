"""How a command ends: one line on stderr, and an exit status that says who can do something about it.

In: an error. Out: one line, plain or as JSON like the log (`run.log`), and exit status 2 for an error that the user can
fix (`UserError`, a full disk); any other error is internal: one line with its type and place, and exit status 1.
`--debug` shows the whole traceback before that line. Refuses to know: commands, and what went wrong.
"""

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from ka2l_ray.dataflow.log import log, writes_json
from ka2l_ray.errors import UserError, internal
from ka2l_ray.text.printable import printable

INTERNAL, MISTAKE, PAUSED = 1, 2, 3
"""Exit statuses: an internal error, an error that the user can fix, and a run that waits for people's answers."""


@contextmanager
def plain_errors(debug: bool) -> Iterator[None]:
    """Turn an error into one line on stderr and an exit status that says who can fix it."""
    try:
        yield
    except Exception as error:
        if debug and writes_json():
            log.error("%s", error, exc_info=error)
        elif debug:
            print(printable("".join(traceback.format_exception(error))), end="", file=sys.stderr)  # noqa: T201
        if full := _disk_full(error):
            fail(full, MISTAKE)
        if isinstance(error, UserError):
            fail(str(error), MISTAKE)
        fail(internal(error), INTERNAL)


def _disk_full(error: BaseException) -> str | None:
    """The message for a full disk, in whichever process or library it was noticed: all of them quote the system's."""
    words = os.strerror(errno.ENOSPC)
    line = next((line.strip()[:300] for line in str(error).splitlines() if words in line), None)
    where = f"run.storage: {words.lower()}, there or where Ray spills: {line}"
    return line and f"{where}. Free some space and type the same command again"


def fail(message: str, status: int) -> NoReturn:
    """End the command with a message and an exit status."""
    if writes_json():
        log.error("%s", message)
    else:
        print(f"ka2l: {printable(message)}", file=sys.stderr)  # noqa: T201
    raise SystemExit(status)
