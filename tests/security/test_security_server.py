"""The served report against a browser on the network; tests/recorder/test_serve.py has the rest."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from recorder import serve as serving
from recorder.serve import ServeError, Server, make_server, serve

TOKEN = "t" * 32


@pytest.fixture
def work(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    (work / "logs").mkdir(parents=True)
    (work / "report.html").write_text("<html><body>first</body></html>")
    (work / "logs" / "daemon.log").write_text("<script>alert(1)</script>\n")
    return work


@pytest.fixture
def server(work: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """On all addresses, so with a token."""
    monkeypatch.setenv(serving.TOKEN_VARIABLE, TOKEN)
    made = make_server({"work": work}, "0.0.0.0", 0)
    thread = threading.Thread(target=serve, args=(made,))
    thread.start()
    yield made
    made.shutdown()
    thread.join(90)


def raw(server: Server, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=90) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    "token", ["short", "fifteen-letters", "with a space in it", "semi;colon; Path=/x", "new\r\nSet-Cookie: x"]
)
def test_a_token_that_is_easy_to_guess_or_no_cookie_is_refused(
    token: str, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(serving.TOKEN_VARIABLE, token)
    with pytest.raises(ServeError, match="expected 16 to 200 letters") as caught:
        make_server({"work": work}, "0.0.0.0", 0)
    assert token not in str(caught.value)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "192.0.2.1", "example.org", "127.0.0.1.example.org", "2130706433"]
)
def test_only_this_machines_own_addresses_go_without_a_token(host: str) -> None:
    assert not serving.is_loopback(host)


@pytest.mark.parametrize(
    "path",
    [
        "//evil.example/%2e%2e",
        "//evil.example",
        "/\\evil.example",
        "/%0d%0aSet-Cookie:x",
        "//logs",
        "http://evil.example/logs",
    ],
)
def test_no_answer_leads_to_another_host(server: Server, path: str) -> None:
    request = (
        f"GET {path}{'&' if '?' in path else '?'}token={TOKEN} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
    )
    answer = raw(server, request.encode())
    places = [line for line in answer.split(b"\r\n") if line.lower().startswith(b"location:")]
    for place in places:
        assert place.startswith(b"Location: /") and not place.startswith((b"Location: //", b"Location: /\\"))
    assert answer.count(b"\r\nSet-Cookie:") <= 1


def test_the_token_goes_nowhere(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    """Not on in an address that a browser would hand on, not into a log; a wrong one is not repeated."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=90)
    connection.request("GET", f"/?token={TOKEN}")
    answer = connection.getresponse()
    answer.read()
    assert (answer.status, answer.getheader("Location"), answer.getheader("Referrer-Policy")) == (
        303,
        "/",
        "no-referrer",
    )
    connection.request("GET", "/?token=wrong-wrong-wrong")
    refused = connection.getresponse()
    assert refused.status == 401 and b"wrong" not in refused.read()
    connection.close()
    raw(server, f"GET /?token={TOKEN} HTTP/9.9\r\n\r\n".encode())  # what the library itself would log
    assert TOKEN not in "".join(capfd.readouterr())


def test_what_is_served_runs_nothing(server: Server) -> None:
    """A log is text, whatever is in it, and nothing in an answer may run or be framed."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=90)
    connection.request("GET", "/logs/daemon.log", headers={"Cookie": f"autoeval={TOKEN}"})
    answer = connection.getresponse()
    assert answer.read() == b"<script>alert(1)</script>\n"
    assert answer.getheader("Content-Type", "").startswith("text/plain")
    assert answer.getheader("X-Content-Type-Options") == "nosniff" and answer.getheader("X-Frame-Options") == "DENY"
    assert answer.getheader("Content-Security-Policy", "").endswith("sandbox")
    connection.close()


def test_tokens_are_compared_in_constant_time() -> None:
    source = Path(serving.__file__).read_text(encoding="utf-8")
    assert source.count("hmac.compare_digest(") == 2 and "token ==" not in source and "== token" not in source


def test_a_request_that_does_not_end_is_given_up() -> None:
    assert serving.Handler.timeout <= 60
