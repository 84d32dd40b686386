"""A server that follows OpenAI's published HTTP interface, with a real tiny model behind it, and our client."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from autoeval.models.hf import HuggingFaceModel
from autoeval.models.requests import GenerationRequest, LoglikelihoodRequest
from autoeval.models.server import UNLIMITED, ChatServer, CompletionsServer, ServerError, ServerRefusal
from autoeval.openicl.generation import ChatRequest
from autoeval.tasks.model_configs import build_model
from autoeval.tasks.stored import model_identity

KEY = "sk-very-secret"


@dataclass
class Backend:
    """What the imitated server does: ``faults`` are answered first; ``seen`` has every (path, headers, body)."""

    model: HuggingFaceModel
    faults: list[tuple[int, dict[str, str], str]] = field(default_factory=list)
    seen: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    logprobs: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            if path == "/v1/completions":
                return self._completions(body)
            assert path == "/v1/chat/completions"
            text = "|".join(f"{one['role']}:{one['content']}" for one in body["messages"])
            return self._wrap({"message": {"role": "assistant", "content": text}, "finish_reason": "stop"})

    def _completions(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"]
        ids = prompt if isinstance(prompt, list) else self.model.tokenizer(prompt)["input_ids"]
        request = GenerationRequest(tuple(ids), body["max_tokens"], tuple(body.get("stop", ())))
        made = self.model.generate([request])[0]
        if not body.get("echo"):
            return self._wrap({"text": made.text, "finish_reason": made.finish_reason, "logprobs": None})
        if not self.logprobs:
            return self._wrap({"text": made.text, "finish_reason": "length", "logprobs": None})
        whole = [*ids, *made.tokens]
        with torch.no_grad():
            table = torch.log_softmax(self.model.model(torch.tensor([whole])).logits[0].float(), dim=-1)
        tokens = [self.model.tokenizer.decode([token]) for token in whole]
        values = [None, *(float(table[place, token]) for place, token in enumerate(whole[1:]))]
        best = [None, *({"best": float(table[place].max())} for place in range(len(whole) - 1))]
        offsets = [sum(map(len, tokens[:place])) for place in range(len(tokens))]
        found = {"tokens": tokens, "token_logprobs": values, "top_logprobs": best, "text_offset": offsets}
        return self._wrap({"text": "".join(tokens), "finish_reason": "length", "logprobs": found})

    @staticmethod
    def _wrap(choice: dict[str, Any]) -> dict[str, Any]:
        usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
        return {"id": "x", "object": "completion", "model": "m", "choices": [{"index": 0, **choice}], "usage": usage}


@contextmanager
def serving(backend: Backend) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            backend.seen.append((self.path, dict(self.headers), body))
            status, headers, text = 200, {}, ""
            if backend.faults:
                status, headers, text = backend.faults.pop(0)
            if status == 200:
                text = text or json.dumps(backend.answer(self.path, body))
            content = text.encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def local(models_directory: Path) -> HuggingFaceModel:
    return HuggingFaceModel(models_directory / "gpt2", device="cpu")


@pytest.fixture
def backend(local: HuggingFaceModel) -> Backend:
    return Backend(local)


def ids(model: HuggingFaceModel, text: str) -> tuple[int, ...]:
    return tuple(model.tokenizer(text)["input_ids"])


def test_by_token_ids_it_answers_as_the_model_in_this_process(backend: Backend, local: HuggingFaceModel) -> None:
    with serving(backend) as url:
        model = CompletionsServer("m", base_url=url, key=KEY, tokenizer_path=local.path, max_seq_len=64)
        ranked = [
            LoglikelihoodRequest(ids(local, "The quick brown"), ids(local, " fox")),
            LoglikelihoodRequest(ids(local, "a cat sat on the mat, " * 6), ids(local, " and so on")),  # too long
            LoglikelihoodRequest(ids(local, "x"), ()),
        ]
        # In this process the last token is no input, and no further one is made.
        small = HuggingFaceModel(local.path, device="cpu", max_seq_len=62)
        for ours, theirs in zip(model.loglikelihoods(ranked), small.loglikelihoods(ranked), strict=True):
            assert ours.token_logprobs == pytest.approx(theirs.token_logprobs, abs=1e-4)
            assert ours.is_greedy == theirs.is_greedy
        made = [GenerationRequest(ids(local, "The quick"), 5), GenerationRequest(ids(local, "12 + 30"), 5, ("a", "e"))]
        assert [one.text for one in model.generate(made)] == [one.text for one in local.generate(made)]
    assert all(headers["Authorization"] == f"Bearer {KEY}" for _, headers, _ in backend.seen)
    assert all(body["model"] == "m" and isinstance(body["prompt"], list) for _, _, body in backend.seen)
    assert model.cost.prompt_tokens == 7 * len(backend.seen)


def test_without_a_tokenizer_texts_go_out(backend: Backend, local: HuggingFaceModel) -> None:
    with serving(backend) as url:
        model = CompletionsServer("m", base_url=url)
        assert model.max_seq_len == UNLIMITED

        def coded(text: str) -> tuple[int, ...]:
            return tuple(model.tokenizer(text)["input_ids"])

        (ours,) = model.loglikelihoods([LoglikelihoodRequest(coded("The quick brown"), coded(" fox jumps"))])
        whole = ids(local, "The quick brown fox jumps")
        head = len(ids(local, "The quick brown"))
        (theirs,) = local.loglikelihoods([LoglikelihoodRequest(whole[:head], whole[head:])])
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert len(ours.token_logprobs) == len(whole) - head  # the server's tokens, not characters
        request = GenerationRequest(coded("The quick"), 5, ("zz", "yy", "xx", "ww", "vv", " "))
        (made,) = model.generate([request])
        expected = local.generate([GenerationRequest(ids(local, "The quick"), 5, request.stop[:4])])[0]
        assert made.text == expected.text.partition(" ")[0]  # the fifth and sixth stop are cut here
        assert backend.seen[-1][2]["stop"] == list(request.stop[:4])


def test_a_chat_server_gets_messages(backend: Backend) -> None:
    with serving(backend) as url:
        model = ChatServer("m", base_url=url)
        said = ({"role": "system", "content": "s"}, {"role": "user", "content": "hello, you"})
        requests = [ChatRequest(said, 9, (",",)), ChatRequest(said, 9, (), 0.5, 0.9, 3)]
        first, second = model.generate_messages(requests)
        assert (first.text, second.text) == ("system:s|user:hello", "system:s|user:hello, you")
        bodies = {body["temperature"]: body for _, _, body in backend.seen}
        assert bodies[0.5] | {"top_p": 0.9, "seed": 3, "max_tokens": 9} == bodies[0.5] and "seed" not in bodies[0]
        with pytest.raises(ServerRefusal, match="only generates"):
            model.loglikelihoods([LoglikelihoodRequest((1,), (2,))])


def test_faults_that_pass_are_waited_out(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("autoeval.models.server.time.sleep", waits.append)
    with serving(backend) as url:
        model = CompletionsServer("m", base_url=url, key=KEY, retry=3, max_workers=1)
        request = GenerationRequest(tuple(map(ord, "The quick")), 3)
        backend.faults = [(429, {"Retry-After": "7"}, ""), (503, {}, "busy")]
        assert model.generate([request])[0].text
        assert waits == [7.0, 2.0] and len(backend.seen) == 3
        backend.faults = [(500, {}, f"broken, your key is {KEY}")] * 4
        with pytest.raises(ServerError, match=r"HTTP 500: broken, your key is \*\*\* \(after 4 tries\)"):
            model.generate([request])
    with pytest.raises(ServerError, match="Connection"):
        model.generate([request])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            (401, {}, f'{{"error": {{"message": "Incorrect API key provided: {KEY}"}}}}'),
            r"HTTP 401: .*provided: \*\*\*",
        ),
        ((400, {}, "context length exceeded"), "HTTP 400: context length exceeded"),
        ((302, {"Location": "http://127.0.0.1:1/"}, ""), "HTTP 302"),
        ((200, {}, "<html>"), "not an answer: '<html>'"),
        ((200, {}, '{"choices": []}'), "not an answer"),
    ],
)
def test_faults_that_stay_are_errors_at_once(backend: Backend, fault: Any, message: str) -> None:
    with serving(backend) as url:
        model = CompletionsServer("m", base_url=url, key=KEY)
        backend.faults = [fault]
        with pytest.raises(ServerRefusal, match=message) as caught:
            model.generate([GenerationRequest((65,), 3)])
        assert KEY not in str(caught.value) and len(backend.seen) == 1


def test_a_server_without_logprobs_of_the_prompt_does_not_rank(backend: Backend) -> None:
    backend.logprobs = False
    with serving(backend) as url, pytest.raises(ServerRefusal, match="gives no log-probabilities of the prompt"):
        CompletionsServer("m", base_url=url).loglikelihoods([LoglikelihoodRequest((65,), (66,))])


def test_from_a_configuration(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OTHER", "other")
    with serving(backend) as url:
        config = {"type": "OpenAI", "path": "m", "openai_api_base": f"{url}/chat/completions", "key": "ENV"}
        chat: Any = build_model(config)
        assert isinstance(chat, ChatServer)
        chat.generate_messages([ChatRequest(({"role": "user", "content": "x"},), 3)])
        base = {"type": "OpenAICompletions", "path": "m", "base_url": url, "key": "${OTHER}"}
        build_model(base).generate([GenerationRequest((65,), 3)])
    assert [headers["Authorization"] for _, headers, _ in backend.seen] == [f"Bearer {KEY}", "Bearer other"]
    assert model_identity(base) == model_identity({**base, "key": "x", "max_workers": 2})
    assert model_identity(base) != model_identity({**base, "path": "n"})
