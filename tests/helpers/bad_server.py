"""A tracking server that answers as none should, in one way: see QUICK and SLOW."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_HTML = b"<html>a proxy's page</html>"
_DRIP_SECONDS = 2.0
_ANSWERS = {
    "500": b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
    "429": b"HTTP/1.1 429 No\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n",
    "503": b"HTTP/1.1 503 No\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n",
    "redirect": b"HTTP/1.1 302 No\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n",
    "html": b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n" % len(_HTML) + _HTML,
}
_HEAD = b"HTTP/1.1 200 OK\r\n"
_LONG_BODY = b"Content-Type: application/json\r\nContent-Length: 4000000000\r\n\r\n{"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of no seconds
QUICK = (*_ANSWERS, "reset")
SLOW = ("drip", "headers", "huge")
"""`drip` sends a byte of its answer each 2 s, `headers` a header, `huge` 4 GB."""


@contextmanager
def serve(kind: str) -> Iterator[tuple[str, list[str]]]:
    """Serve in threads of this process until the end of the block; yield the address, and what is asked.

    That is the first line of each request.
    """
    ended, asked = threading.Event(), list[str]()
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        threading.Thread(target=_accept, args=(listener, kind, asked, ended), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
        finally:
            ended.set()
            listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, kind: str, asked: list[str], ended: threading.Event) -> None:
    with suppress(OSError):  # it was closed
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_answer, args=(client, kind, asked, ended), daemon=True).start()


def _answer(client: socket.socket, kind: str, asked: list[str], ended: threading.Event) -> None:
    with client, suppress(OSError):  # the client has left
        while request := client.recv(1 << 16):
            asked.append(request.partition(b"\r\n")[0].decode())
            if kind in _ANSWERS:
                client.sendall(_ANSWERS[kind])
                continue
            if kind == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                return
            client.sendall(_HEAD if kind == "headers" else _HEAD + _LONG_BODY)
            while not ended.wait(0.02 if kind == "huge" else _DRIP_SECONDS):
                client.sendall({"drip": b" ", "headers": b"A: b\r\n"}.get(kind, b" " * (1 << 20)))
