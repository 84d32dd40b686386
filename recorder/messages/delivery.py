"""One message to one channel: a timeout, further tries, and no faster than the service allows."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from recorder.messages import lark, slack, webhook
from recorder.messages.answer import Answer, Reply
from recorder.messages.channel import Channel
from recorder.messages.message import Message

logger = logging.getLogger(__name__)

FORMATS: dict[str, ModuleType] = {"lark": lark, "slack": slack, "webhook": webhook}
CONNECT_SECONDS, READ_SECONDS = 5.0, 10.0
TRIES = 3
LONGEST_BODY = 20_000  # characters that are read of an answer


class Pace:
    """Sliding windows of one second and one minute. ``sent``: Unix times of earlier messages, of earlier processes too."""

    def __init__(
        self,
        per_second: int,
        per_minute: int,
        sent: Iterable[float] = (),
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._limits = ((1.0, per_second), (60.0, per_minute))
        self._sent = deque(sorted(sent), maxlen=max(per_second, per_minute))
        self._clock, self._sleep = clock, sleep

    def due_in(self) -> float:
        """Seconds until the next message may go."""
        now = self._clock()
        waits = [0.0]
        for window, most in self._limits:
            if len(self._sent) >= most:
                waits.append(self._sent[-most] + window - now)
        return max(waits)

    def wait(self) -> None:
        while (seconds := self.due_in()) > 0:
            self._sleep(min(seconds, 60.0))
        self._sent.append(self._clock())


def pace_of(channel: Channel, sent: Iterable[float] = ()) -> Pace:
    service = FORMATS[channel.name]
    return Pace(service.PER_SECOND, service.PER_MINUTE, sent)


def deliver(
    channel: Channel,
    message: Message,
    pace: Pace,
    *,
    tries: int = TRIES,
    sleep: Callable[[float], None] = time.sleep,
) -> Answer:
    """Send ``message``; up to ``tries`` times while the service is away or asks to wait. Raises nothing of the network.

    A message that the service finds malformed is sent once more as a plain text (Lark's cards have versions).
    """
    answer = Answer("later", "not tried")
    for attempt in range(tries):
        if attempt:
            sleep(answer.wait if answer.wait is not None else 2.0**attempt)
        answer = _send(channel, message, pace)
        if answer.verdict != "later":
            break
    if answer.verdict == "refused" and channel.name == "lark" and channel.format != "text":
        plainer = Channel(channel.name, channel.address, channel.secret, "text")
        logger.warning("lark: %s; sending it as a text", answer.why)
        answer = _send(plainer, message, pace)
    return answer


def _send(channel: Channel, message: Message, pace: Pace) -> Answer:
    pace.wait()
    service = FORMATS[channel.name]
    body = service.payload(message, channel, time.time())
    reply = _post(channel.address, body, hashlib.sha256(message.to_json().encode()).hexdigest()[:32])
    answer: Answer = reply if isinstance(reply, Answer) else service.judge(reply)
    return answer


def _post(address: str, body: dict[str, Any], name: str) -> Reply | Answer:
    """One POST. Redirects are not followed: they would carry the message to an address that nobody configured.

    What goes wrong is told by its class alone: the text of such an error has the address in it.
    """
    import requests

    logging.getLogger("urllib3").setLevel(logging.WARNING)  # its debug lines have the address
    try:
        with requests.post(
            address,
            json=body,
            headers={"Idempotency-Key": name, "User-Agent": "autoeval"},
            timeout=(CONNECT_SECONDS, READ_SECONDS),
            allow_redirects=False,
            stream=True,
        ) as answer:
            content = answer.raw.read(LONGEST_BODY, decode_content=True).decode("utf-8", "replace")
            headers = {key.lower(): value for key, value in answer.headers.items()}
            return Reply(answer.status_code, content, headers)
    except (requests.ConnectionError, requests.Timeout) as error:
        return Answer("later", type(error).__name__)
    except Exception as error:  # an address that requests refuses, an answer that is no HTTP, a broken proxy setting
        return Answer("later", type(error).__name__)


class Courier:
    """Sends in a thread of its own: for a command that must not wait. A message that fails is a line in the log."""

    def __init__(self, channels: Iterable[Channel]):
        self._channels = [(channel, pace_of(channel)) for channel in channels]
        self._waiting: deque[Message] = deque()
        self._news = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="messages", daemon=True)
        if self._channels:
            self._thread.start()

    def send(self, message: Message) -> None:
        """Returns at once."""
        with self._news:
            self._waiting.append(message)
            self._news.notify()

    def close(self, seconds: float = 20.0) -> None:
        """Give what is left this long; the command's end does not wait for longer."""
        if not self._channels:
            return
        with self._news:
            self._closed = True
            self._news.notify()
        self._thread.join(seconds)
        if self._thread.is_alive():
            logger.warning("messages: not all were sent within %.0f s", seconds)

    def _work(self) -> None:
        while True:
            with self._news:
                while not self._waiting and not self._closed:
                    self._news.wait()
                if not self._waiting:
                    return
                message = self._waiting.popleft()
            for channel, pace in self._channels:
                answer = deliver(channel, message, pace)
                if answer.verdict != "taken":
                    logger.warning("%s did not take a message (%s): %s", channel.name, message.kind, answer.why)
