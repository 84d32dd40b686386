"""Work directories on a local address, with a report that renews itself: ``evaluator.py --config … --serve``.

What can be read: report.html, leaderboard.csv, logs, results and predictions. What cannot: anything outside of the
directory (also through a link inside), hidden files, the ledger, settings, W&B's files. On an address that others can
reach a token is asked for. Requests for another host's name are refused: a web page must not read this through a name
that resolves to 127.0.0.1.
"""

from __future__ import annotations

import hmac
import ipaddress
import mimetypes
import os
import re
import secrets
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from threading import BoundedSemaphore, Event
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8765
TOKEN_VARIABLE = "AUTOEVAL_SERVE_TOKEN"
REPORT = "report.html"
LOOK_SECONDS, BEAT_SECONDS = 0.5, 15.0  # how often the report's time is looked at; how often a silent stream says so
MOST_STREAMS = 32
CHUNK = 1 << 16

_SHOWN = frozenset({".csv", ".json", ".jsonl", ".log", ".txt", ".md", ".tsv", ".png", ".svg"})
_NOT_SHOWN = frozenset({"settings.json", "wandb"})
_RELOAD = """<script>
new EventSource(%s).addEventListener("changed", () => location.reload());
</script>
"""
_WAITING = """<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">
<meta name="color-scheme" content="light dark"><title>waiting</title><body style="font:16px system-ui;margin:3rem">
<p>No report yet: it is written after the first checkpoint. This page shows it as soon as it is there.</p></body></html>"""


class ServeError(ValueError):
    """An address that cannot be served on."""


@dataclass
class Served:
    """``directories`` by the first part of the path, a single one at the root. ``token`` is asked for when not None."""

    directories: Mapping[str, Path]
    token: str | None = field(default=None, repr=False)
    hosts: frozenset[str] = frozenset()
    stopping: Event = field(default_factory=Event)
    streams: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(MOST_STREAMS))

    def root(self, path: str) -> tuple[Path, str] | None:
        """The directory that a path belongs to, and the rest of the path."""
        if len(self.directories) == 1:
            return next(iter(self.directories.values())), path
        name, _, rest = path.partition("/")
        return (self.directories[name], rest) if name in self.directories else None


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], served: Served):
        self.served = served
        if ":" in address[0]:
            self.address_family = 10  # AF_INET6
        super().__init__(address, Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that went away is no news."""


def make_server(directories: Mapping[str, Path], host: str = DEFAULT_HOST, port: int = DEFAULT_PORT) -> Server:
    """Raises ``ServeError`` when the address cannot be had, or the token of the environment is none."""
    token = None if is_loopback(host) else _token()
    served = Served({name: path.absolute() for name, path in directories.items()}, token)
    try:
        server = Server((host, port), served)
    except (OSError, OverflowError) as error:
        raise ServeError(f"cannot serve on {host} port {port}: {getattr(error, 'strerror', None) or error}") from error
    served.hosts = _hosts(host) if token is None else frozenset()
    return server


def address_of(server: Server) -> str:
    """The URL to open, with the token where one is asked for."""
    host, port = str(server.server_address[0]), server.server_address[1]
    name = f"[{host}]" if ":" in host else host
    token = server.served.token
    return f"http://{name}:{port}/{f'?token={quote(token)}' if token else ''}"


def serve(server: Server) -> None:
    """Until Ctrl-C (``KeyboardInterrupt`` is taken) or ``server.shutdown()``."""
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        pass
    finally:
        server.served.stopping.set()
        server.server_close()


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _token() -> str:
    """That of the environment, which must be hard to guess and fit into a cookie; else a new one."""
    given = os.environ.get(TOKEN_VARIABLE)
    if given and not re.fullmatch(r"[A-Za-z0-9_-]{16,200}", given):
        raise ServeError(
            f"{TOKEN_VARIABLE}: expected 16 to 200 letters, digits, '_' and '-'; unset, a token is made for this start"
        )
    return given or secrets.token_urlsafe(24)


def _hosts(host: str) -> frozenset[str]:
    return frozenset({"127.0.0.1", "localhost", "[::1]", f"[{host}]" if ":" in host else host})


def may_be_shown(relative: PurePosixPath) -> bool:
    """Whether a path below a work directory is for readers; directories without a suffix are looked into."""
    parts = relative.parts
    if any(part.startswith(".") or part in _NOT_SHOWN for part in parts):
        return False
    return len(parts) == 0 or parts == (REPORT,) or relative.suffix.lower() in _SHOWN


def find(root: Path, path: str) -> Path | None:
    """The file or directory that a decoded URL path means; ``None`` when it is not there or not for readers.

    The real path must lie below the real root, so no link leads out; only plain files and directories count.
    """
    parts = [part for part in path.split("/") if part]
    if any(part in (".", "..") or "\\" in part or "\0" in part for part in parts):
        return None
    relative = PurePosixPath(*parts)
    try:
        real_root, real = root.resolve(), root.joinpath(*parts).resolve(strict=True)
        mode = real.stat().st_mode
    except (OSError, RuntimeError, ValueError):
        return None
    if not real.is_relative_to(real_root):
        return None
    inside = PurePosixPath(real.relative_to(real_root).as_posix())  # what a link inside means must be shown as well
    if stat.S_ISDIR(mode):
        hidden = any(p.startswith(".") or p in _NOT_SHOWN for p in (*relative.parts, *inside.parts))
        return None if hidden else real
    shown = may_be_shown(relative) and may_be_shown(inside)
    return real if stat.S_ISREG(mode) and shown else None


class Handler(BaseHTTPRequestHandler):
    server: Server
    server_version = "autoeval"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = 60

    def log_message(self, *arguments: Any) -> None:
        """No access log: addresses may have the token."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        served = self.server.served
        parts = urlsplit(self.path)
        if served.hosts and self._host() not in served.hosts:
            return self._say(421, "This server is known by another name: open the address that it printed.")
        if served.token is not None and not self._knows_the_token(served.token):
            given = parse_qs(parts.query).get("token", [""])[0]
            if not hmac.compare_digest(given.encode(), served.token.encode()):
                return self._say(401, "A token is needed: open the address that the server printed when it started.")
            cookie = f"autoeval={served.token}; HttpOnly; SameSite=Strict; Path=/"
            return self._send(303, b"", "text/plain", {"Location": _here(parts.path), "Set-Cookie": cookie})
        try:
            path = unquote(parts.path, errors="strict").lstrip("/")
        except UnicodeDecodeError:
            return self._say(404, "Not found.")
        if path == "" and len(served.directories) > 1:
            return self._index()
        found = served.root(path)
        if found is None:
            return self._say(404, "Not found.")
        root, rest = found
        if rest == "favicon.ico":  # browsers ask for one, and complain
            return self._send(204, b"", "text/plain")
        if rest == "events":
            return self._stream(root / REPORT)
        if rest in ("", REPORT):
            if rest == "" and not parts.path.endswith("/"):
                return self._send(303, b"", "text/plain", {"Location": _here(parts.path) + "/"})
            return self._report(root)
        return self._file(root, rest)

    def _host(self) -> str:
        host = self.headers.get("Host", "")
        return host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host

    def _knows_the_token(self, token: str) -> bool:
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get("autoeval")
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), token.encode())

    def _report(self, root: Path) -> None:
        """The report with a script that listens for its next version."""
        path = find(root, REPORT)
        try:
            content = path.read_text(encoding="utf-8") if path is not None else _WAITING
        except OSError:
            content = _WAITING
        content = content.replace("default-src 'none';", "default-src 'none'; connect-src 'self';", 1)
        before, mark, after = content.rpartition("</body>")
        now = _stamp(root / REPORT)
        script = _RELOAD % f'"events?since={now}"'
        self._send(200, f"{before}{script}{mark}{after}".encode(), "text/html; charset=utf-8", policy="")

    def _stream(self, report: Path) -> None:
        """Server-sent events: ``changed`` when the report is another one than the reader has."""
        since = parse_qs(urlsplit(self.path).query).get("since", [""])[0]
        served = self.server.served
        if not served.streams.acquire(blocking=False):
            return self._say(503, "Too many readers wait for the next report.")
        try:
            self.close_connection = True
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            if self.command == "HEAD":
                return None
            self.wfile.write(b"retry: 2000\n\n")
            beat = time.monotonic()
            while not served.stopping.wait(LOOK_SECONDS):
                now = _stamp(report)
                if now != since and now:
                    since = now
                    self.wfile.write(b"event: changed\ndata: report\n\n")
                elif time.monotonic() - beat > BEAT_SECONDS:
                    beat = time.monotonic()
                    self.wfile.write(b": still here\n\n")  # and finds out whether the reader is
                self.wfile.flush()
        except OSError:
            pass
        finally:
            served.streams.release()
        return None

    def _file(self, root: Path, rest: str) -> None:
        path = find(root, rest)
        if path is None:
            return self._say(404, "Not found.")
        if path.is_dir():
            return self._listing(root, path)
        kind = mimetypes.guess_type(path.name)[0] if path.suffix in (".png", ".svg", ".json", ".csv") else None
        try:
            # A pipe may have taken the file's place: opening it must not wait.
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                self._head(200, size, f"{kind or 'text/plain'}; charset=utf-8")
                while self.command == "GET" and size > 0 and (chunk := stream.read(min(CHUNK, size))):
                    self.wfile.write(chunk)
                    size -= len(chunk)
                self.close_connection = self.close_connection or size > 0
        except OSError:
            self.close_connection = True

    def _listing(self, root: Path, directory: Path) -> None:
        inside = PurePosixPath(directory.relative_to(root.resolve()).as_posix())
        names = sorted(one.name + ("/" if one.is_dir() else "") for one in directory.iterdir())
        shown = [name for name in names if find(root, str(inside / name)) is not None]
        if not self.path.partition("?")[0].endswith("/"):
            return self._send(303, b"", "text/plain", {"Location": _here(self.path.partition("?")[0]) + "/"})
        return self._links(str(inside), shown)

    def _index(self) -> None:
        self._links("work directories", [f"{name}/" for name in self.server.served.directories])

    def _links(self, title: str, names: list[str]) -> None:
        items = "".join(f'<li><a href="{escape(quote(name))}">{escape(name)}</a>' for name in names)
        page = f'<!doctype html><meta charset=utf-8><meta name="color-scheme" content="light dark"><title>{escape(title)}</title><h1>{escape(title)}</h1><ul>{items}</ul>'
        self._send(200, page.encode("utf-8", "replace"), "text/html; charset=utf-8")

    def _say(self, status: int, text: str) -> None:
        self._send(status, f"{text}\n".encode(), "text/plain; charset=utf-8")

    def _send(
        self, status: int, body: bytes, kind: str, headers: Mapping[str, str] | None = None, policy: str | None = None
    ) -> None:
        self._head(status, len(body), kind, headers, policy)
        if self.command == "GET":
            self.wfile.write(body)

    def _head(
        self, status: int, size: int, kind: str, headers: Mapping[str, str] | None = None, policy: str | None = None
    ) -> None:
        """``policy``: the content's own; by default nothing in it may run or ask for anything."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(size))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Frame-Options", "DENY")
        if policy is None:
            self.send_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; sandbox")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()


def _here(path: str) -> str:
    """A path on this server: a browser would take one that begins with // or /\\ for another host's name."""
    return "/" + path.lstrip("/\\")


def _stamp(path: Path) -> str:
    """Names one version of a file; empty when it is not there."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{found.st_mtime_ns}-{found.st_ino}-{found.st_size}"
