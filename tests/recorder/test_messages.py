"""Messages as a group sees them, and what happens when the service is away, slow, strict or asked twice."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import pytest
from lark_imitation import SECRET, TOKEN, Bot, running

from recorder.ledger import Ledger
from recorder.messages import delivery, lark
from recorder.messages.channel import ENVIRONMENT, Channel, Told, from_environment, to_environment
from recorder.messages.delivery import Courier, Pace, deliver, pace_of
from recorder.messages.message import Message
from recorder.messages.outbox import MessageOutbox
from recorder.refresh import Settings, rebuild_views
from recorder.results import CheckpointRef, Item, Score, TaskResult
from recorder.wandb_client import WandbSettings

HOME = Path(__file__).resolve().parents[2]
NEWS = Message(
    "verdict",
    "bad",
    "demo, iteration 2,000: worse",
    'Worse than iteration 1,000. <at user_id="all">all</at> <!channel> *bold*',
    (("go on?", "<at id=all></at> [x](http://y)"),),
    ("copy.acc: 0.5 → 0.3",),
    "project",
    "demo",
    2000,
)
SILENT = Settings("p", "p", None, WandbSettings("disabled", "p"))


def send(channel: Channel, message: Message = NEWS) -> tuple[str, str, list[float]]:
    waits: list[float] = []
    answer = deliver(channel, message, pace_of(channel), sleep=waits.append)
    return answer.verdict, answer.why, waits


@pytest.mark.parametrize("form", ["card", "post", "text"])
def test_lark_takes_every_format_signed(form) -> None:
    with running(Bot(secret=SECRET)) as bot:
        assert send(Channel("lark", bot.url, SECRET, form)) == ("taken", "", [])
    (message,) = bot.taken
    assert message["msg_type"] == {"card": "interactive"}.get(form, form)
    shown = bot.texts[0]
    assert "iteration 2,000: worse" in shown and "0.5 → 0.3" in shown
    if form == "text":  # there, a tag would call everybody
        assert "<at" not in shown
    if form == "card":
        assert message["card"]["header"]["template"] == "red"
        assert "<at id" not in shown and "&#60;at id" in shown


def test_the_signature_is_the_documented_one() -> None:
    """HMAC-SHA256 under the key "1599360473\\nsecret" of nothing, worked out with openssl."""
    made = subprocess.run(
        ["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", "hexkey:" + b"1599360473\nsecret".hex(), "-binary"],
        input=b"",
        capture_output=True,
        check=True,
    ).stdout
    import base64

    assert lark.signature("1599360473", "secret") == base64.b64encode(made).decode()


def test_slack_gets_blocks_and_a_webhook_gets_json() -> None:
    with running(Bot(), "/services/T0/B0/") as bot:
        assert send(Channel("slack", bot.url))[0] == "taken"
    assert "<!channel>" not in bot.texts[0] and "&lt;!channel&gt;" in bot.texts[0]
    assert bot.taken[0]["blocks"][0]["text"]["text"] == NEWS.title
    with running(Bot(), "/own/") as bot:
        assert send(Channel("webhook", bot.url))[0] == "taken"
    (message,) = bot.taken
    assert (message["event"], message["model"], message["iteration"]) == ("verdict", "demo", 2000)
    assert message["facts"] == dict(NEWS.facts) and bot.headers[0]["idempotency-key"]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ((200, {}, '{"code":11232,"msg":"frequency limited"}'), [2.0]),
        ((429, {"x-ogw-ratelimit-reset": "7"}, '{"code":99991400}'), [7.0]),
        ((400, {}, '{"code":11232}'), [2.0]),
        ((502, {}, "<html>bad gateway</html>"), [2.0]),
    ],
)
def test_a_service_that_is_busy_is_asked_again(fault, expected: list[float]) -> None:
    with running(Bot(faults=[fault])) as bot:
        assert send(Channel("lark", bot.url)) == ("taken", "", expected)
    assert len(bot.taken) == 1


@pytest.mark.parametrize(
    ("secret", "ending", "expected"),
    [("wrong", "", "19021"), (None, "", "19021"), (SECRET, "x", "19001")],
)
def test_a_wrong_secret_or_webhook_is_told_once_without_showing_either(
    secret: str | None, ending: str, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with running(Bot(secret=SECRET)) as bot:
        channel = Channel("lark", bot.url + ending, secret)
        verdict, why, waits = send(channel)
    assert (verdict, waits, bot.asked) == ("closed", [], 1) and expected in why
    shown = caplog.text + why + repr(channel) + str(channel)
    assert TOKEN not in shown and SECRET not in shown and "wrong" not in shown.replace("wrongly", "")


def test_a_card_that_lark_does_not_understand_goes_as_a_text() -> None:
    with running(Bot(faults=[(200, {}, '{"code":9499,"msg":"Bad Request","data":{}}')])) as bot:
        assert send(Channel("lark", bot.url))[0] == "taken"
    assert [message["msg_type"] for message in bot.taken] == ["text"]


def test_a_service_that_is_away_or_answers_nonsense_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with running(Bot()) as bot:
        url = bot.url
    verdict, why, waits = send(Channel("lark", url))
    assert (verdict, why, waits) == ("later", "ConnectionError", [2.0, 4.0])
    with running(Bot(faults=[(200, {}, "<html>please log in"), (301, {"Location": "http://127.0.0.1:1/"}, "")])) as bot:
        verdict, why, waits = send(Channel("lark", bot.url))
        assert (verdict, waits, bot.asked) == ("closed", [2.0], 2) and "HTTP 301" in why  # which is not followed
    assert TOKEN not in caplog.text


def test_never_more_than_five_a_second_and_a_hundred_a_minute() -> None:
    now, sent = [1000.0], []

    def sleep(seconds: float) -> None:
        now[0] += seconds

    pace = Pace(5, 100, [999.9] * 3, clock=lambda: now[0], sleep=sleep)
    for _ in range(230):
        pace.wait()
        sent.append(now[0])
    everything = [999.9] * 3 + sent
    for window, most in ((1.0, 5), (60.0, 100)):
        for start in everything:
            assert sum(start <= one < start + window - 1e-9 for one in everything) <= most
    assert sent[-1] < 1000 + 3 * 60


def test_a_long_message_is_cut_to_what_lark_takes() -> None:
    long = Message("failure", "bad", "t" * 999, "x" * 99_999, (("a", "b" * 9999),) * 30, ("log line " * 500,) * 200)
    for form in ("card", "post", "text"):
        with running(Bot()) as bot:
            assert send(Channel("lark", bot.url, None, form), long)[0] == "taken"  # type: ignore[arg-type]
        assert len(bot.texts[0].encode()) < 20 * 1024 and "and 188 more" in bot.texts[0]


def test_a_command_does_not_wait_for_a_service_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    with running(Bot(hold=Event())) as bot:
        courier = Courier([Channel("lark", bot.url)])
        begun = time.monotonic()
        courier.send(NEWS)
        assert time.monotonic() - begun < 20  # the service would take a minute and a half
        courier.close(0.2)
        assert time.monotonic() - begun < 40 and "not all were sent" in caplog.text
        assert bot.hold is not None
        bot.hold.set()
        courier.close(60)
    assert len(bot.taken) == 1


# Of a run


class Run:
    """A ledger with checkpoints, and rounds of the views' process over it."""

    def __init__(self, directory: Path, since: float = 0.0):
        self.directory, self.since = directory, since
        self.ledger = Ledger(directory / "ledger.sqlite")

    def checkpoint(self, iteration: int, right: int, *, failed: bool = False) -> CheckpointRef:
        ref = CheckpointRef("demo", iteration, f"f{iteration}", f"/checkpoints/{iteration}", iteration / 1000)
        self.ledger.note_checkpoint(ref)
        items = tuple(Item(f"i{number}", "acc", float(number < right)) for number in range(200))
        self.ledger.ingest(TaskResult(ref, "copy", "v1", "icl", (Score("acc", right / 200, 0.03, 200),), items))
        if failed:
            self.ledger.note_task(ref, "draw", "running", version="v1")
            self.ledger.note_task(ref, "draw", "failed", version="v1", error="no <b>pencil</b>", log="/logs/draw.log")
        self.ledger.set_state(ref, "recorded")
        return ref

    def round(self, *channels: Channel, finished: bool = False):
        told = Told(channels, "demo", "/checkpoints", ("copy", "draw"), self.since, finished)
        return rebuild_views(self.directory, SILENT, told)


@pytest.fixture
def run(tmp_path: Path):
    made = Run(tmp_path)
    yield made
    made.ledger.close()


def titles(bot: Bot) -> list[str]:
    return [message["card"]["header"]["title"]["content"] for message in bot.taken]


def test_a_run_is_told_from_start_to_finish_and_nothing_twice(run: Run) -> None:
    with running(Bot(secret=SECRET)) as bot:
        channel = Channel("lark", bot.url, SECRET)
        assert run.round(channel).sent == 1
        run.checkpoint(1000, 60)
        run.round(channel)
        run.checkpoint(2000, 120, failed=True)
        run.round(channel)
        assert run.round(channel) == (0, 0, None)  # as after a restart
        run.round(channel, finished=True)
        run.round(channel, finished=True)
    assert titles(bot) == [
        "demo: evaluation started",
        "demo, iteration 1,000: first scores",
        "demo, iteration 2,000: one task failed",
        "demo, iteration 2,000: better",
        "demo: evaluation finished",
    ]
    started, first, failure, better, finished = bot.texts
    assert "Watching /checkpoints; every checkpoint is scored on 2 tasks." in started and "copy, draw" in started
    assert "copy.acc: 0.300" in first
    assert "draw: no <b>pencil</b> (log: /logs/draw.log)" in failure
    assert "Iteration 2,000 is better than iteration 1,000: +30.0 points (95 %:" in better and "0.300 → 0.600" in better
    assert "All 2 checkpoints evaluated; 1 task run failed." in finished


def test_a_failure_after_a_retry_is_news_again(run: Run) -> None:
    with running(Bot()) as bot:
        channel = Channel("lark", bot.url)
        ref = run.checkpoint(1000, 60, failed=True)
        run.round(channel)
        run.ledger.note_task(ref, "draw", "running", version="v1")
        run.ledger.note_task(ref, "draw", "failed", version="v1", error="no <b>pencil</b>")
        run.round(channel)
    assert titles(bot).count("demo, iteration 1,000: one task failed") == 2


def test_what_a_server_that_was_away_did_not_get_comes_later_once_and_in_order(run: Run, monkeypatch) -> None:
    monkeypatch.setattr(delivery.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(deliver, "__kwdefaults__", {"tries": 2, "sleep": lambda seconds: None})
    with running(Bot()) as bot:
        address = bot.url
    run.checkpoint(1000, 60)
    away = run.round(Channel("lark", address))
    assert (away.sent, away.pending) == (0, 2) and "ConnectionError" in (away.error or "")
    assert TOKEN not in (away.error or "")
    run.checkpoint(2000, 120)
    with running(Bot()) as bot:
        assert run.round(Channel("lark", bot.url)).sent == 3
        assert run.round(Channel("lark", bot.url)).sent == 0
    assert titles(bot)[1:] == ["demo, iteration 1,000: first scores", "demo, iteration 2,000: better"]


def test_one_service_that_is_shut_keeps_no_message_from_the_others(run: Run) -> None:
    with running(Bot(secret=SECRET)) as shut, running(Bot(), "/own/") as open_one:
        told = run.round(Channel("lark", shut.url, "wrong"), Channel("webhook", open_one.url))
        assert (told.sent, told.pending) == (1, 0) and "19021" in (told.error or "")  # no use in trying again soon
        run.checkpoint(1000, 60)
        run.round(Channel("lark", shut.url, "wrong"), Channel("webhook", open_one.url))
        assert [message["event"] for message in open_one.taken] == ["started", "verdict"]
        run.round(Channel("lark", shut.url, SECRET), Channel("webhook", open_one.url))  # the secret was mended
    assert len(shut.taken) == 2 and len(open_one.taken) == 2


def test_a_message_that_was_being_sent_when_the_process_was_killed_is_not_sent_again(run: Run) -> None:
    outbox = MessageOutbox(run.ledger.path)
    outbox.put("lark", "started:demo", NEWS)
    (queued,) = outbox.pending("lark")
    outbox.mark(queued.id, "sending")
    outbox.close()
    with running(Bot()) as bot:
        run.checkpoint(1000, 60)
        run.round(Channel("lark", bot.url))
    assert titles(bot) == ["demo, iteration 1,000: first scores"]


def test_messages_that_begin_late_in_a_run_tell_nothing_old(run: Run) -> None:
    run.checkpoint(1000, 60)
    run.since = time.time() + 0.01
    with running(Bot()) as bot:
        run.round(Channel("lark", bot.url))
        time.sleep(0.02)
        run.checkpoint(2000, 120)
        run.round(Channel("lark", bot.url))
    assert titles(bot) == ["demo: evaluation started", "demo, iteration 2,000: better"]


def test_no_file_no_log_and_no_child_has_the_address(run: Run, tmp_path: Path) -> None:
    """The views' process as the daemon starts it, with all its logging on, against a bot that refuses."""
    run.checkpoint(1000, 60)
    run.ledger.close()
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"project": "p", "wandb": {"mode": "disabled"}}))
    with running(Bot(secret=SECRET)) as bot:
        told = to_environment(Told((Channel("lark", bot.url, "wrong-secret"),), "demo", "/c", ("copy",)))
        command = [sys.executable, "-m", "recorder.refresh", "--work-dir", str(tmp_path), "--settings", str(settings)]
        done = subprocess.run(command, cwd=HOME, env=os.environ | told, capture_output=True, text=True, check=True)
        assert bot.asked == 1
    answer = json.loads(done.stdout.splitlines()[-1])
    assert (answer["messages_sent"], answer["messages_pending"]) == (0, 0) and "19021" in answer["error"]
    everything = (done.stdout + done.stderr).encode()
    everything += b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert TOKEN.encode() not in everything and b"wrong-secret" not in everything


def test_what_the_process_was_told_does_not_stay_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told((Channel("lark", "https://h/x", "s", "text"), Channel("slack", "https://h/y")), "m", "/c", ("t",), 5.0)
    monkeypatch.setenv(ENVIRONMENT, to_environment(told)[ENVIRONMENT])
    assert from_environment() == told and ENVIRONMENT not in os.environ
    assert from_environment() == Told() and to_environment(Told()) == {}
