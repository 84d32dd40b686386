"""A model behind a server that speaks OpenAI's HTTP interface: vLLM, SGLang, llama.cpp, OpenAI itself.

``/v1/completions`` generates and, where the server gives log-probabilities of the prompt (``echo`` with ``logprobs``),
ranks. ``/v1/chat/completions`` generates. With a local tokenizer prompts go out as token ids, exactly as an in-process
model would see them; without one as text, and then a token is a character to everybody who asks (``TextTokenizer``).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from autoeval.models.requests import (
    Cost,
    GenerationRequest,
    GenerationResult,
    LoglikelihoodRequest,
    LoglikelihoodResult,
)
from recorder.masking import masked

logger = logging.getLogger(__name__)

_AGAIN = {408, 409, 429, 500, 502, 503, 504}
_MAX_STOPS = 4  # the interface's limit; the others are cut here
UNLIMITED = 2**31


class ServerError(RuntimeError):
    """The server could not be reached or had no room, also after all tries: another attempt later may work."""


class ServerRefusal(ValueError):
    """The server will not answer this, however often it is asked."""


class TextTokenizer:
    """Every character is a token: for servers whose tokenizer is not known here."""

    bos_token_id = None
    eos_token_id = None

    def __call__(self, text: str, **_options: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(character) for character in text]}

    def decode(self, ids: Sequence[int], **_options: Any) -> str:
        return "".join(map(chr, ids))


class CompletionsServer:
    """``LanguageModel`` over HTTP.

    ``base_url`` ends before ``/completions`` (``http://127.0.0.1:8000/v1``). ``max_seq_len`` counts tokens of
    ``tokenizer_path``; without a tokenizer prompts are not shortened, and the server's refusal of a long one is the
    error. ``retry``: further tries after an error that may pass. ``max_workers`` requests are under way at once.
    """

    def __init__(
        self,
        path: str,
        *,
        base_url: str,
        key: str | None = None,
        tokenizer_path: Path | str | None = None,
        max_seq_len: int | None = None,
        retry: int = 5,
        query_per_second: float | None = None,
        max_workers: int = 8,
        timeout_seconds: float = 600.0,
    ) -> None:
        import requests

        self.path, self.base_url = path, base_url.rstrip("/")
        self.shown = masked(self.base_url, self.base_url)  # for messages
        self.max_seq_len = max_seq_len if max_seq_len and tokenizer_path else UNLIMITED
        self.cost = Cost()
        self.tokenizer: Any = TextTokenizer()
        self._by_id = tokenizer_path is not None
        if tokenizer_path is not None:
            from transformers import AutoTokenizer

            self.tokenizer = AutoTokenizer.from_pretrained(
                tokenizer_path, local_files_only=True, trust_remote_code=False
            )
        self._key, self._retry, self._timeout, self._workers = key, retry, timeout_seconds, max_workers
        self._interval = 1 / query_per_second if query_per_second else 0.0
        self._next = 0.0
        self._lock = threading.Lock()
        self._session = requests.Session()
        if key:
            # As an authenticator, because requests would let a ~/.netrc replace a plain header.
            self._session.auth = self._authorize

    def _authorize(self, request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def loglikelihoods(self, requests: Sequence[LoglikelihoodRequest]) -> list[LoglikelihoodResult]:
        """From the log-probabilities of the prompt. Raises ``ServerRefusal`` when the server gives none."""
        return self._all(self._loglikelihood, requests)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
        return self._all(self._generate, requests)

    def unload(self) -> None:
        self._session.close()

    def _all(self, ask: Any, requests: Sequence[Any]) -> list[Any]:
        started = time.perf_counter()
        with ThreadPoolExecutor(self._workers) as pool:
            try:
                return list(pool.map(ask, requests))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            finally:
                self.cost.seconds += time.perf_counter() - started

    def _loglikelihood(self, request: LoglikelihoodRequest) -> LoglikelihoodResult:
        if not request.continuation:
            return LoglikelihoodResult((), True)
        # The server's window holds the whole text and the one token that has to be asked for.
        excess = max(0, len(request.context) + len(request.continuation) - (self.max_seq_len - 1))
        context = request.context[excess:]
        ids = [*context, *request.continuation]
        # One token is asked for and dropped: not every server takes 0.
        choice = self._post(
            "/completions",
            {"prompt": self._prompt(ids), "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1},
        )
        logprobs = choice.get("logprobs") or {}
        values, offsets = logprobs.get("token_logprobs"), logprobs.get("text_offset")
        best = logprobs.get("top_logprobs") or []
        if not values or len(values) < 2 or (not self._by_id and not offsets):
            raise ServerRefusal(
                f"{self.shown}: the server gives no log-probabilities of the prompt (echo with logprobs); "
                "use a _gen dataset"
            )
        if self._by_id:
            if len(values) < len(ids):
                raise ServerRefusal(f"{self.shown}: {len(values)} log-probabilities for {len(ids)} tokens")
            chosen = list(range(len(context), len(ids)))
        else:
            chosen = self._in_continuation(len(context), len(ids), offsets or [])
        taken = [place for place in chosen if values[place] is not None]  # a text's first token has none
        if self._by_id and len(taken) < len(request.continuation):
            raise ServerRefusal(f"{self.shown}: an empty context has no log-probability there")
        greedy = all(
            place < len(best) and best[place] and values[place] >= max(best[place].values()) for place in taken
        )
        return LoglikelihoodResult(tuple(float(values[place]) for place in taken), greedy, excess)

    @staticmethod
    def _in_continuation(start: int, end: int, offsets: Sequence[int]) -> list[int]:
        """Tokens with a character of the continuation, also one that begins in the context."""
        ends = [*offsets[1:], end]
        return [place for place, offset in enumerate(offsets) if offset < end and ends[place] > start]

    def _prompt(self, ids: Sequence[int]) -> Any:
        return list(ids) if self._by_id else self.tokenizer.decode(ids)

    def _generate(self, request: GenerationRequest) -> GenerationResult:
        excess = max(0, len(request.prompt) - (self.max_seq_len - request.max_new_tokens))
        choice = self._post("/completions", {"prompt": self._prompt(request.prompt[excess:]), **_sampling(request)})
        return self._generated(request, choice, choice.get("text"), excess)

    def _generated(self, request: Any, choice: Mapping[str, Any], text: Any, excess: int) -> GenerationResult:
        text = text or ""
        ends = [place for place in map(text.find, request.stop) if place >= 0]
        text = text[: min(ends, default=len(text))]
        reason = "length" if choice.get("finish_reason") == "length" and not ends else "stop"
        tokens = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return GenerationResult(text, tokens, (), reason, excess)

    def _post(self, place: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The first choice of the answer, after as many tries as allowed."""
        import requests

        problem = ""
        for attempt in range(self._retry + 1):
            self._wait_turn()
            wait = min(60.0, 2.0**attempt)
            try:
                answer = self._session.post(
                    self.base_url + place,
                    json={"model": self.path, **body},
                    timeout=self._timeout,
                    allow_redirects=False,
                )
            except requests.RequestException as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if answer.status_code == 200:
                    return self._choice(answer)
                problem = f"HTTP {answer.status_code}: {answer.text[:500]}"
                if answer.status_code not in _AGAIN:
                    raise ServerRefusal(self._masked(f"{self.base_url}{place}: {problem}"))
                wait = _retry_after(answer.headers, wait)
            if attempt < self._retry:
                logger.warning("%s", self._masked(f"{self.base_url}{place}: {problem}; again in {wait:g} s"))
                time.sleep(wait)
        raise ServerError(self._masked(f"{self.base_url}{place}: {problem} (after {self._retry + 1} tries)"))

    def _choice(self, answer: Any) -> dict[str, Any]:
        try:
            content = answer.json()
            choice = dict(content["choices"][0])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ServerRefusal(self._masked(f"{self.base_url}: not an answer: {answer.text[:200]!r}")) from error
        usage = content.get("usage") or {}
        with self._lock:
            self.cost.prompt_tokens += int(usage.get("prompt_tokens") or 0)
            self.cost.generated_tokens += int(usage.get("completion_tokens") or 0)
        return choice

    def _wait_turn(self) -> None:
        """Keep to ``query_per_second``."""
        if not self._interval:
            return
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._interval
        time.sleep(turn - now)

    def _masked(self, text: str) -> str:
        """Servers like to repeat the key they do not accept."""
        return masked(text, self.base_url, self._key)


class ChatServer(CompletionsServer):
    """The same over ``/chat/completions``: it is asked with messages, and it does not rank."""

    def loglikelihoods(self, requests: Sequence[LoglikelihoodRequest]) -> list[LoglikelihoodResult]:
        raise ServerRefusal(f"{self.shown}: a chat server only generates; use a _gen dataset")

    def generate_messages(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """As ``generate``, for requests with ``messages`` (role and content) in place of a prompt's tokens."""
        return self._all(self._chat, requests)

    def _chat(self, request: Any) -> GenerationResult:
        choice = self._post(
            "/chat/completions", {"messages": [dict(one) for one in request.messages], **_sampling(request)}
        )
        return self._generated(request, choice, (choice.get("message") or {}).get("content"), 0)


def _sampling(request: Any) -> dict[str, Any]:
    """The protocol's parameters; ``top_k`` and ``min_tokens`` are vLLM's names for what the protocol does not have."""
    body: dict[str, Any] = {"max_tokens": request.max_new_tokens, "temperature": request.temperature}
    if request.temperature > 0:
        body["top_p"] = request.top_p
        if request.top_k:
            body["top_k"] = request.top_k
    if request.min_new_tokens:
        body["min_tokens"] = request.min_new_tokens
    if request.seed is not None:
        body["seed"] = request.seed
    if request.stop:
        body["stop"] = list(request.stop[:_MAX_STOPS])
    return body


def _retry_after(headers: Mapping[str, str], otherwise: float) -> float:
    try:
        return min(300.0, max(0.0, float(headers["Retry-After"])))
    except (KeyError, ValueError):
        return otherwise
