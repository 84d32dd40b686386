"""The work directory in a browser: what is shown, what is not, to whom, and that it renews itself."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from report_world import Reader, browser, build, fill, needs_chromium

from recorder import serve as serving
from recorder.ledger import Ledger
from recorder.serve import ServeError, Server, address_of, make_server, serve

HOME = Path(__file__).resolve().parents[2]
SECRET = "nobody-may-read-this"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A work directory with everything that a run leaves, and a secret beside it."""
    directory = tmp_path / "work"
    for name, text in {
        "report.html": "<html><body><p>first</p></body></html>",
        "leaderboard.csv": "model,score\n",
        "logs/daemon.log": "a line\n",
        "logs/<b>odd</b> name.log": "odd\n",
        "gpt/iter_0001000/results/gpt/copy.json": "{}",
        "settings.json": SECRET,
        ".hidden": SECRET,
        ".pins/gpt/file.json": SECRET,
        "ledger.sqlite": SECRET,
        "ledger.sqlite-wal": SECRET,
        "wandb/run/config.json": SECRET,
        "page.html": f"<script>alert(1)</script>{SECRET}",
        "noted": SECRET,
    }.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "outside.txt").write_text(SECRET)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "inner.txt").write_text(SECRET)
    (directory / "logs" / "leads-out.txt").symlink_to(tmp_path / "outside.txt")
    (directory / "logs" / "leads-out").symlink_to(tmp_path / "outside")
    (directory / "logs" / "to-settings.txt").symlink_to(directory / "settings.json")
    (directory / "logs" / "round.txt").symlink_to(directory / "logs" / "round.txt")
    os.mkfifo(directory / "logs" / "pipe.txt")
    return directory


@pytest.fixture
def server(work: Path) -> Iterator[Server]:
    with running(make_server({"work": work}, port=0)) as started:
        yield started


@contextmanager
def running(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=serve, args=(server,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join(90)
    assert not thread.is_alive()


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=90)
    connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text, {name.lower(): value for name, value in answer.getheaders()}


def test_what_a_reader_may_see(server: Server) -> None:
    status, page, headers = ask(server, "/")
    assert (
        status == 200 and "first" in page and "EventSource" in page and headers["content-type"].startswith("text/html")
    )
    for path, text in {
        "/leaderboard.csv": "model,score\n",
        "/logs/daemon.log": "a line\n",
        "/gpt/iter_0001000/results/gpt/copy.json": "{}",
        "/logs/%3Cb%3Eodd%3C/b%3E%20name.log": "odd\n",
        "/logs/%3Cb%3Eodd%3C%2Fb%3E%20name.log": "odd\n",
    }.items():
        status, found, headers = ask(server, path)
        assert (status, found) == (200, text), path
        assert headers["x-content-type-options"] == "nosniff" and "sandbox" in headers["content-security-policy"]
    assert ask(server, "/leaderboard.csv", "HEAD")[:2] == (200, "")


@pytest.mark.parametrize(
    "path",
    [
        "/settings.json", "/ledger.sqlite", "/ledger.sqlite-wal", "/.hidden", "/.pins/gpt/file.json", "/page.html",
        "/wandb/run/config.json", "/wandb/", "/.pins/", "/noted",
        "/../outside.txt", "/..%2foutside.txt", "/%2e%2e/outside.txt", "/%2e%2e%2foutside.txt", "/logs/../../outside.txt",
        "/logs/..%5c..%5coutside.txt", "/..%252foutside.txt", "//etc/passwd", "/%2fetc%2fpasswd", "/etc/passwd",
        "/logs/leads-out.txt", "/logs/leads-out/inner.txt", "/logs/leads-out/", "/logs/to-settings.txt",
        "/logs/round.txt", "/logs/pipe.txt", "/logs/daemon.log%00.txt", "/logs/%ff.log", "/" + "a/" * 3000, "/logs/./../settings.json",
    ],
)  # fmt: skip
def test_nothing_else_is_found(server: Server, path: str) -> None:
    status, text, _ = ask(server, path)
    assert status == 404 and SECRET not in text and "root:" not in text


def test_a_listing_shows_only_what_can_be_opened(server: Server) -> None:
    status, listed, _ = ask(server, "/logs/")
    assert status == 200 and "daemon.log" in listed and "&lt;b&gt;odd" in listed and "<b>odd" not in listed
    for name in ("leads-out", "to-settings", "round", "pipe"):
        assert name not in listed
    assert ask(server, "/logs")[2]["location"] == "/logs/"


def test_only_reading(server: Server) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
        assert ask(server, "/report.html", method)[0] == 501


def test_another_hosts_name_is_refused(server: Server) -> None:
    """DNS rebinding: a page of evil.example, whose name suddenly means 127.0.0.1, would be of the same origin."""
    port = server.server_address[1]
    assert ask(server, "/", Host=f"evil.example:{port}")[0] == 421
    for name in ("127.0.0.1", "localhost", "[::1]"):
        assert ask(server, "/", Host=f"{name}:{port}")[0] == 200


def test_another_address_asks_for_a_token(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(make_server({"work": work}, "0.0.0.0", 0)) as server:
        token = server.served.token
        assert token is not None and len(token) >= 32 and f"?token={token}" in address_of(server)
        assert token not in repr(server.served)
        for path in ("/", "/logs/daemon.log", "/events", "/?token=wrong", "/?token="):
            status, text, _ = ask(server, path)
            assert status == 401 and "first" not in text and token not in text
        status, _, headers = ask(server, f"/?token={token}")
        assert (status, headers["location"]) == (303, "/")
        assert "HttpOnly" in headers["set-cookie"] and "SameSite=Strict" in headers["set-cookie"]
        cookie = headers["set-cookie"].partition(";")[0]
        assert ask(server, "/logs/daemon.log", Cookie=cookie)[:2] == (200, "a line\n")
        assert ask(server, "/logs/daemon.log", Cookie="autoeval=wrong")[0] == 401
    monkeypatch.setenv(serving.TOKEN_VARIABLE, "a-token_of-ones-own")
    with running(make_server({"work": work}, "0.0.0.0", 0)) as server:
        assert server.served.token == "a-token_of-ones-own"
    for host in ("127.0.0.1", "localhost", "127.0.0.2"):
        with running(make_server({"work": work}, host, 0)) as server:
            assert server.served.token is None


def test_several_work_directories_have_a_name_each(work: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with running(make_server({"work": work, "other": other}, port=0)) as server:
        assert 'href="work/"' in ask(server, "/")[1]
        assert "first" in ask(server, "/work/")[1] and "No report yet" in ask(server, "/other/")[1]
        assert ask(server, "/work")[2]["location"] == "/work/"
        assert ask(server, "/work/logs/daemon.log")[1] == "a line\n"
        assert ask(server, "/other/../work/settings.json")[0] == 404 and ask(server, "/third/")[0] == 404


def test_the_stream_tells_when_the_report_changes(server: Server, work: Path) -> None:
    page = ask(server, "/")[1]
    since = page.partition("events?since=")[2].partition('"')[0]
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=90)
    connection.request("GET", f"/events?since={since}")
    answer = connection.getresponse()
    assert answer.getheader("Content-Type") == "text/event-stream" and answer.readline() == b"retry: 2000\n"
    (work / "new.html").write_text("<html><body>second</body></html>")
    (work / "new.html").replace(work / "report.html")
    lines = [answer.readline() for _ in range(2)]
    assert b"event: changed\n" in lines
    connection.close()


def test_streams_are_limited(server: Server) -> None:
    for _ in range(serving.MOST_STREAMS):
        server.served.streams.acquire()
    assert ask(server, "/events")[0] == 503 and ask(server, "/")[0] == 200


def test_a_port_that_is_taken_is_told(work: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ServeError, match=r"cannot serve on 127.0.0.1 port \d+: Address already in use"):
            make_server({"work": work}, port=taken.getsockname()[1])
    with pytest.raises(ServeError, match=r"cannot serve on no\.such\.host\.invalid"):
        make_server({"work": work}, "no.such.host.invalid", 0)


CONFIG = """
auto_eval:
  project_name: demo
  model_name: gpt
  work_dir: work
  huggingface: {checkpoint_path: checkpoints}
  icl: {datasets: [hellaswag_ppl]}
"""


def test_the_command_serves_until_ctrl_c(work: Path) -> None:
    config = work.parent / "evaluator.yaml"
    config.write_text(CONFIG)
    command = [sys.executable, "evaluator.py", "--config", str(config), "--serve", "--port"]
    with subprocess.Popen([*command, "0"], cwd=HOME, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None and one.stderr is not None
        line = one.stdout.readline()
        address = line.split()[-1]
        host, _, port = address.removeprefix("http://").rstrip("/").partition(":")
        assert host == "127.0.0.1" and str(work) in line
        reader = http.client.HTTPConnection(host, int(port), timeout=90)
        reader.request("GET", "/events")  # a reader that waits must not keep the server from ending
        assert reader.getresponse().status == 200
        taken = subprocess.run([*command, port], cwd=HOME, capture_output=True, text=True, timeout=60)
        one.send_signal(signal.SIGINT)
        assert one.wait(90) == 0
        assert "Traceback" not in one.stderr.read()
        reader.close()
    assert taken.returncode == 2 and "Address already in use" in taken.stderr and "Traceback" not in taken.stderr


@pytest.mark.slow
@needs_chromium
def test_a_browser_reloads_when_the_report_is_rebuilt(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    with running(make_server({"work": tmp_path}, port=0)) as server, browser() as chromium:
        reader = Reader(chromium.new_page())
        reader.page.goto(address_of(server))
        assert "No report yet" in reader.page.inner_text("body")
        fill(ledger, (0.2,))
        build(ledger)
        until(lambda: "Its one checkpoint" in reader.page.inner_text("body"))
        reader.until_charts(4)
        reader.page.fill("[name=search]", "copy")
        reader.until_charts(2)
        fill(ledger, (0.2, 0.5))
        build(ledger)
        until(lambda: "All 2 checkpoints evaluated" in reader.page.inner_text("#glance"))
        reader.until_charts(2)  # and what was filtered is filtered still
        assert reader.complaints == []
    ledger.close()


def until(found, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            if found():
                return
        except Exception as error:  # between two pages
            assert "context" in str(error) or "navigat" in str(error).lower(), error
        assert time.monotonic() < end
        time.sleep(0.05)
