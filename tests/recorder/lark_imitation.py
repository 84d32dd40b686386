"""A Lark custom bot on this machine, as its documentation describes one: what it takes, and how it says no.

Source: open.larksuite.com/document/client-docs/bot-v3/add-custom-bot (formats, signature, codes 9499, 19001, 19021) and
open.feishu.cn/document/server-docs/im-v1/rate-limits (11232). It also stands for Slack and for a webhook of one's own.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any

TOKEN = "6d1f-token-nobody-may-see"
SECRET = "secret-nobody-may-see"


@dataclass
class Bot:
    """``faults`` are given as answers first, one each: (status, headers, body). ``taken`` are the messages shown."""

    url: str = ""
    secret: str | None = None
    faults: list[tuple[int, dict[str, str], str]] = field(default_factory=list)
    taken: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    asked: int = 0
    hold: Event | None = None  # answers wait for it
    lock: Lock = field(default_factory=Lock)

    @property
    def texts(self) -> list[str]:
        return [json.dumps(message, ensure_ascii=False) for message in self.taken]

    def answer(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], str]:
        with self.lock:
            self.asked += 1
            if self.faults:
                return self.faults.pop(0)
            if not path.endswith(TOKEN):
                return 200, {}, '{"code":19001,"msg":"param invalid: incoming webhook access token invalid"}'
            if len(body) > 20 * 1024:
                return 413, {}, "too large"
            message = json.loads(body)
            self.headers.append(headers)
            if path.startswith("/services/"):  # Slack
                good = isinstance(message.get("text"), str) and all("type" in block for block in message["blocks"])
                return self._take(message, "ok") if good else (400, {}, "invalid_payload")
            if path.startswith("/own/"):
                return self._take(message, "")
            if self.secret is not None and not self._signed(message):
                why = "sign match fail or timestamp is not within one hour from current time"
                return 200, {}, json.dumps({"code": 19021, "msg": why})
            if not well_formed(message):
                return 200, {}, '{"code":9499,"msg":"Bad Request","data":{}}'
            if len([one for one in self.times if time.time() - one < 1.0]) >= 5:
                return 200, {}, '{"code":11232,"msg":"frequency limited psm[lark.oapi.app_platform_runtime]"}'
            return self._take(message, '{"StatusCode":0,"StatusMessage":"success","code":0,"data":{},"msg":"success"}')

    def _take(self, message: dict[str, Any], said: str) -> tuple[int, dict[str, str], str]:
        self.taken.append(message)
        self.times.append(time.time())
        return 200, {}, said

    def _signed(self, message: dict[str, Any]) -> bool:
        stamp = message.get("timestamp", "")
        if not isinstance(stamp, str) or not stamp.isdigit() or abs(time.time() - int(stamp)) > 3600:
            return False
        digest = hmac.digest(f"{stamp}\n{self.secret}".encode(), b"", hashlib.sha256)
        return hmac.compare_digest(base64.b64encode(digest).decode(), message.get("sign", ""))


def well_formed(message: dict[str, Any]) -> bool:
    kind, content = message.get("msg_type"), message.get("content")
    if kind == "text":
        return isinstance(content, dict) and isinstance(content.get("text"), str)
    if kind == "post":
        body = content["post"]["zh_cn"] if isinstance(content, dict) else {}
        return all(part["tag"] in ("text", "a", "at") for line in body["content"] for part in line) and "title" in body
    if kind != "interactive" or "content" in message:
        return False
    card = message["card"]
    texts = [card["header"]["title"], *(e["text"] for e in card["elements"] if e["tag"] == "div" and "text" in e)]
    texts += [one["text"] for e in card["elements"] for one in e.get("fields", [])]
    return all(text["tag"] in ("plain_text", "lark_md") and isinstance(text["content"], str) for text in texts)


@contextmanager
def running(bot: Bot, path: str = "/open-apis/bot/v2/hook/") -> Iterator[Bot]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if bot.hold is not None:
                bot.hold.wait(90)
            status, headers, said = bot.answer(self.path, body, {k.lower(): v for k, v in self.headers.items()})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(said.encode())))
            self.end_headers()
            with suppress(OSError):  # who asked may have given up
                self.wfile.write(said.encode())

        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    bot.url = f"http://127.0.0.1:{server.server_address[1]}{path}{TOKEN}"
    try:
        yield bot
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
