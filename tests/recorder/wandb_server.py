"""An imitation of W&B's server on 127.0.0.1: GraphQL, file stream and file upload, with faults on demand.

``with Imitation() as server:`` serves until the block ends. A fault is chosen for each request by ``server.fault``, a
function of (channel, count): channel is ``graphql:<operation>``, ``stream`` or ``upload``, count says how many requests
there were before. It returns what happens: ``None``, an HTTP status (``429`` comes with Retry-After), ``"drop"`` (the
connection ends before the request is taken), ``"lost"`` (after it was taken: the answer is lost) or ``"twice"`` (it is
delivered two times).
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

from wandb_answers import Backend, Refused

Fault = int | str | None
_OPERATION = re.compile(r"(?:query|mutation)\s+(\w+)")


class Imitation:
    def __init__(self, port: int = 0) -> None:
        self.backend = Backend()
        self.fault: Callable[[str, int], Fault] = lambda channel, count: None
        self.faults: list[tuple[str, Fault]] = []  # those that happened
        self.bodies: list[bytes] = []  # of all requests, where a test looks for what must not be sent
        self.requests = 0
        self.lock = threading.RLock()
        self._server: ThreadingHTTPServer | None = None
        self._port = port
        self.start()

    @property
    def url(self) -> str:
        return self.backend.url

    def start(self) -> None:
        handler = type("Handler", (_Handler,), {"imitation": self})
        self._server = _Server(("127.0.0.1", self._port), handler)
        self._port = self._server.server_port
        self.backend.url = f"http://127.0.0.1:{self._port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Nobody listens at the port any more, until ``start``."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> Imitation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Server(ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no error of ours."""


class _Handler(BaseHTTPRequestHandler):
    imitation: Imitation
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def do_POST(self) -> None:
        body = self._body()
        path = unquote(urlsplit(self.path).path)
        if path == "/graphql":
            asked = json.loads(body)
            found = _OPERATION.search(asked["query"])
            operation = asked.get("operationName") or (found[1] if found else "")
            variables = asked.get("variables") or {}
            self._serve(f"graphql:{operation}", body, lambda: self._graphql(operation, asked["query"], variables))
        elif match := re.fullmatch(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", path):
            self._serve("stream", body, lambda: self.imitation.backend.stream(*match.groups(), json.loads(body)))
        else:
            self.imitation.backend.unhandled.append(f"POST {path}")
            self._send(404, {"error": "not imitated"})

    def do_PUT(self) -> None:
        body = self._body()
        path = unquote(urlsplit(self.path).path).removeprefix("/storage/")

        def store() -> dict[str, Any]:
            self.imitation.backend.uploads[path] = body
            for run in self.imitation.backend.runs.values():
                if path.startswith(f"{run.storage_id}/"):
                    run.files[path.removeprefix(f"{run.storage_id}/")] = body
            return {}

        self._serve("upload", body, store)

    def do_GET(self) -> None:
        self.imitation.backend.unhandled.append(f"GET {self.path}")
        self._send(404, {"error": "not imitated"})

    def _graphql(self, operation: str, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        return {"data": self.imitation.backend.answer(operation, query, variables)}

    def _serve(self, channel: str, body: bytes, answer: Callable[[], dict[str, Any]]) -> None:
        here = self.imitation
        with here.lock:
            here.bodies.append(body)
            fault = here.fault(channel, here.requests)
            here.requests += 1
            if fault is not None:
                here.faults.append((channel, fault))
            if fault == "drop":
                self.close_connection = True
                return
            if isinstance(fault, int):
                self._send(fault, {"errors": [{"message": f"fault {fault}"}]})
                return
            if channel != "upload" and not self._authorized():
                self._send(401, {"errors": [{"message": "permission denied"}]})
                return
            try:
                result = answer()
                if fault == "twice":
                    result = answer()
            except Refused as refused:
                self._send(refused.status, {"data": None, "errors": [{"message": refused.message}]})
                return
            except Exception as error:  # ours: it must not look like a network that is away
                here.backend.unhandled.append(f"{channel}: {type(error).__name__}: {error}: {body[:2000]!r}")
                self._send(400, {"errors": [{"message": "the imitation failed"}]})
                return
            if fault == "lost":
                self.close_connection = True
                return
        self._send(200, result)

    def _authorized(self) -> bool:
        given = self.headers.get("Authorization") or ""
        return given == "Basic " + base64.b64encode(f"api:{self.imitation.backend.key}".encode()).decode()

    def _send(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 429:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(body)
