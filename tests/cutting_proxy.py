"""A TCP proxy that cuts the connections of one kind of request, as a network does."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

CHUNK = 4096


class CuttingProxy:
    """Passes bytes on to a server. Of the connections whose first request names `path`, the n-th is cut once it has
    brought `allowed[n]` bytes back; later ones are left alone."""

    def __init__(self, server: tuple[str, int], path: bytes, allowed: Sequence[int]) -> None:
        self._server, self._path, self._allowed, self._lock = server, path, list(allowed), threading.Lock()
        self.cut = 0

    def serve(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection(self._server) as server:
            request = client.recv(CHUNK)
            server.sendall(request)
            threading.Thread(target=_copy, args=(client, server, None), daemon=True).start()
            with self._lock:
                allowed = self._allowed.pop(0) if self._path in request and self._allowed else None
            if _copy(server, client, allowed):
                self.cut += 1


def _copy(source: socket.socket, target: socket.socket, allowed: int | None) -> bool:
    """Whether the connection was cut."""
    passed = 0
    with suppress(OSError):
        while (allowed is None or passed < allowed) and (data := source.recv(CHUNK)):
            target.sendall(data)
            passed += len(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    return allowed is not None and passed >= allowed


@contextmanager
def cutting_proxy(server: tuple[str, int], path: bytes, allowed: Sequence[int]) -> Iterator[tuple[CuttingProxy, int]]:
    """A proxy and its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = CuttingProxy(server, path, allowed)
        threading.Thread(target=proxy.serve, args=(listener,), daemon=True).start()
        yield proxy, listener.getsockname()[1]
