"""A door before a server: shut, and nobody gets through, as when an endpoint is down."""

from __future__ import annotations

import contextlib
import socket
import threading


class Gate:
    """Forwards connections to ``port`` on 127.0.0.1."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listening: socket.socket | None = None
        self._through: list[socket.socket] = []
        self._lock = threading.Lock()
        self.port = 0
        self.is_shut = threading.Event()
        self._text, self._left = b"", 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(self, *, shut_at: bytes = b"", times: int = 1) -> None:
        """From now on; at the ``times``-th request with the text ``shut_at`` it shuts by itself."""
        self._text, self._left = shut_at, times
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self.port))
        listening.listen(64)
        self.port = listening.getsockname()[1]
        self._listening = listening
        self.is_shut.clear()
        threading.Thread(target=self._accept, args=(listening,), daemon=True).start()

    def shut(self) -> None:
        with self._lock:
            self.is_shut.set()
            everything, self._through = [*self._through, *([self._listening] if self._listening else [])], []
            self._listening = None
        for one in everything:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                here, _ = listening.accept()
                there = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                return
            with self._lock:
                self._through += [here, there]
            for source, sink in ((here, there), (there, here)):
                threading.Thread(target=self._pump, args=(source, sink, source is here), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, asks: bool) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(1 << 16):
                if asks and self._text and self._text in content:
                    self._left -= 1
                    if self._left == 0:
                        self.shut()
                        return
                sink.sendall(content)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
