"""Free ports of this machine, for servers that a test starts."""

import socket
from contextlib import ExitStack


def free_ports(count: int) -> list[int]:
    """Free at this moment, no two the same."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
